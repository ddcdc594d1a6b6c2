//! A manifest with a right checksum: refused, or it is what it would be written as.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storage::manifest::Manifest;
use tidegate_fuzz::{file_of, seal};

const GOLDEN: &[u8] = include_bytes!("../../../storage/tests/golden/manifest");

fuzz_target!(|input: &[u8]| {
    let mut file = file_of(input, GOLDEN);
    let end = file.len();
    if end >= 16 {
        file[12..16].copy_from_slice(&(end as u32).to_le_bytes());
    }
    seal(&mut file, 8, 12, end);
    if let Ok(manifest) = Manifest::parse(&file) {
        assert_eq!(manifest.encode(), file);
    }
});
