//! A checkpoint with right checksums: refused, or every entry loads or is refused, and a merge of it ends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storage::catalog::Catalog;
use storage::checkpoint::{CheckpointIndex, entries, find_in_page, reshape};
use storage::ids::{LogId, PartitionId};
use tidegate_fuzz::{KEY, LOG, file_of, seal_checkpoint};

const GOLDEN: &[u8] = include_bytes!("../../../storage/tests/golden/2/checkpoint.ckp");

fuzz_target!(|input: &[u8]| {
    let mut file = file_of(input, GOLDEN);
    seal_checkpoint(&mut file);
    let Ok(index) = CheckpointIndex::parse(LOG, 9, &file) else { return };
    let mut catalog = Catalog::new(LOG, 100, Some(index.clone()));
    for n in 0..5 {
        let session = format!("session-{n}");
        let id = KEY.partition("acme", &session);
        if let Some(at) = index.page_of(id)
            && let Some(page) = file.get(at.at as usize..).and_then(|rest| rest.get(..at.len))
        {
            let _ = find_in_page(page, at.at, PartitionId(id.0 ^ 1));
            std::hint::black_box(catalog.load(id, "acme", &session, at, page));
        }
    }
    for entry in entries(&index, &file) {
        if entry.is_err() {
            return;
        }
    }
    let _ = reshape(&[(&index, &file)], &[(LogId(8), 0), (LogId(9), 0)], |slice| usize::from(slice.0 % 2));
});
