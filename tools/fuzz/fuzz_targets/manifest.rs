//! A manifest with a right checksum: refused, or it is what it would be written as.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storage::manifest::Manifest;
use tidegate_fuzz::{file_of, seal_manifest};

const GOLDEN: &[u8] = include_bytes!("../../../storage/tests/golden/2/manifest");

fuzz_target!(|input: &[u8]| {
    let mut file = file_of(input, GOLDEN);
    seal_manifest(&mut file);
    if let Ok(manifest) = Manifest::parse(&file) {
        assert_eq!(manifest.encode(), file);
    }
});
