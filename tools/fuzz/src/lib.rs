//! How bytes of the fuzzer become bytes of a file that get past its checksums.
//!
//! ```text
//!   input:  0 · edits of a golden file     at u16 · count u8 · bytes …        small inputs reach every field
//!           1 · raw bytes of the file
//! ```
//! Then every checksum that the format has is made right: a flipped bit is found by the unit tests; what the parsers do with
//! fields that nobody would have written is found here.

use storage::ids::{HashKey, LogId, SegmentId};

/// Key of the golden files.
pub const KEY: HashKey = HashKey(1, 2);
/// Their log.
pub const LOG: LogId = LogId(3);

/// A segment of theirs.
pub fn segment(number: u32) -> SegmentId {
    SegmentId { log: LOG, number }
}

/// The file that the input stands for.
pub fn file_of(input: &[u8], golden: &[u8]) -> Vec<u8> {
    let Some((kind, mut rest)) = input.split_first() else { return golden.to_vec() };
    if kind % 2 == 1 {
        return rest.to_vec();
    }
    let mut file = golden.to_vec();
    while let [low, high, count, more @ ..] = rest {
        let at = usize::from(u16::from_le_bytes([*low, *high]));
        let (bytes, next) = more.split_at(usize::from(*count).min(more.len()));
        match bytes {
            // Nothing to write: the file ends here.
            [] => file.truncate(at),
            bytes => {
                for (offset, byte) in bytes.iter().enumerate() {
                    if let Some(place) = file.get_mut(at + offset) {
                        *place = *byte;
                    }
                }
            }
        }
        rest = next;
    }
    file
}

/// Bytes of a block and of a page's smallest unit.
pub const BLOCK: usize = 4096;

/// Writes the crc32c of `from..to` to `at`, as far as the file reaches.
pub fn seal(file: &mut [u8], at: usize, from: usize, to: usize) {
    if let Some(crc) = file.get(from..to).map(crc32c::crc32c)
        && let Some(place) = file.get_mut(at..at + 4)
    {
        place.copy_from_slice(&crc.to_le_bytes());
    }
}

/// The number at a place; 0 beyond the end.
pub fn u32_at(file: &[u8], at: usize) -> usize {
    file.get(at..at + 4).map_or(0, |raw| u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]) as usize)
}

/// Makes every checksum of a segment right, and its salt that of the name in its header.
pub fn seal_segment(file: &mut [u8], key: HashKey) {
    seal(file, 60, 0, 60);
    let mut at = BLOCK;
    while at + 64 <= file.len() {
        seal(file, at + 60, at, at + 60);
        let end = (at + 64 + u32_at(file, at + 12)).min(file.len());
        let mut record = at + 64;
        while record < end && u32_at(file, record) > 0 {
            record = seal_record(file, record);
        }
        at += BLOCK;
    }
    if let Ok(header) = storage::segment::SegmentHeader::get(file) {
        file[56..60].copy_from_slice(&key.segment_salt(header.segment).to_le_bytes());
        seal(file, 60, 0, 60);
    }
}

/// Makes every checksum of a sidecar right. Places of its header, see the table in `storage/FORMAT.md`: blocks of its three
/// tables, checksum of what follows them.
pub fn seal_sidecar(file: &mut [u8]) {
    const BLOCKS_AT: usize = 8 + 4 + 4 + 4 * 4 + 7 * 8;
    const TABLES_CRC_AT: usize = BLOCKS_AT + 3 * 4 + 4 + 8 + 8;
    let blocks: usize = (0..3).map(|table| u32_at(file, BLOCKS_AT + 4 * table)).fold(1, usize::saturating_add);
    for block in 1..blocks.min(file.len() / BLOCK) {
        seal(file, block * BLOCK, block * BLOCK + 4, (block + 1) * BLOCK);
    }
    let (tables, end) = (blocks.saturating_mul(BLOCK), file.len());
    seal(file, TABLES_CRC_AT, tables, end);
    seal(file, 8, 12, BLOCK);
}

/// Makes every checksum of a checkpoint right. Places in its footer: magic, own checksum, checksum of the tables, bytes of
/// the pages.
pub fn seal_checkpoint(file: &mut [u8]) {
    const FOOTER_CRC_AT: usize = 8;
    const TABLES_CRC_AT: usize = 12;
    const PAGES_BYTES_AT: usize = 16;
    let footer = file.len().saturating_sub(BLOCK);
    seal_around(file, 0, 12);
    let tables = BLOCK.saturating_add(u32_at(file, footer + PAGES_BYTES_AT));
    let mut page = BLOCK;
    while page < tables.min(footer) {
        let length = u32_at(file, page + 4).clamp(1, footer - page);
        seal(file, page, page + 4, page + length);
        page += length.max(BLOCK);
    }
    seal(file, footer + TABLES_CRC_AT, tables, footer);
    seal_around(file, footer, FOOTER_CRC_AT);
}

/// The checksum of a header block leaves itself out.
fn seal_around(file: &mut [u8], block: usize, at: usize) {
    let Some(bytes) = file.get(block..block + BLOCK) else { return };
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..at]), &bytes[at + 4..]);
    file[block + at..block + at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Makes the length and the checksum of a manifest right.
pub fn seal_manifest(file: &mut [u8]) {
    let end = file.len();
    if end >= 16 {
        file[12..16].copy_from_slice(&(end as u32).to_le_bytes());
    }
    seal(file, 8, 12, end);
}

/// Seals a record that begins at `at`; where the next one would begin.
pub fn seal_record(file: &mut [u8], at: usize) -> usize {
    let end = at + u32_at(file, at).max(8);
    seal(file, at + 4, at + 8, end.min(file.len()));
    end
}
