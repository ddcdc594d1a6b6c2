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

/// Seals a record that begins at `at`; where the next one would begin.
pub fn seal_record(file: &mut [u8], at: usize) -> usize {
    let end = at + u32_at(file, at).max(8);
    seal(file, at + 4, at + 8, end.min(file.len()));
    end
}
