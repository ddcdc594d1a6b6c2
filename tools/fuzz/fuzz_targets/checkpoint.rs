//! A checkpoint with right checksums: refused, or every entry loads or is refused, and a merge of it ends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storage::catalog::Catalog;
use storage::checkpoint::{CheckpointIndex, entries, find_in_page, reshape};
use storage::ids::{LogId, PartitionId};
use tidegate_fuzz::{BLOCK, KEY, LOG, file_of, seal, u32_at};

const GOLDEN: &[u8] = include_bytes!("../../../storage/tests/golden/checkpoint.ckp");

/// The checksum of a header block leaves itself out.
fn seal_around(file: &mut [u8], block: usize, at: usize) {
    let Some(bytes) = file.get(block..block + BLOCK) else { return };
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..at]), &bytes[at + 4..]);
    file[block + at..block + at + 4].copy_from_slice(&crc.to_le_bytes());
}

fuzz_target!(|input: &[u8]| {
    let mut file = file_of(input, GOLDEN);
    let footer = file.len().saturating_sub(BLOCK);
    seal_around(&mut file, 0, 12);
    let tables = BLOCK.saturating_add(u32_at(&file, footer + PAGES_BYTES_AT));
    let mut page = BLOCK;
    while page < tables.min(footer) {
        let length = u32_at(&file, page + 4).clamp(BLOCK, footer - page);
        seal(&mut file, page, page + 4, page + length);
        page += length;
    }
    seal(&mut file, footer + TABLES_CRC_AT, tables, footer);
    seal_around(&mut file, footer, FOOTER_CRC_AT);
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

// The footer, see FORMAT-CHECKPOINT.md: magic, own checksum, checksum of the tables, bytes of the pages.
const FOOTER_CRC_AT: usize = 8;
const TABLES_CRC_AT: usize = 12;
const PAGES_BYTES_AT: usize = 16;
