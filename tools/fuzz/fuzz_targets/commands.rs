//! The decoder of commands against the one that is written to be read: of any frame both say the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::wire::decode::reference::{decoded, expected};

/// The reference counts the lists that fit into so much.
const FRAME_BYTES_MAX: usize = 4096;

fuzz_target!(|input: &[u8]| {
    let Ok(frame) = std::str::from_utf8(input) else { return };
    if frame.len() <= FRAME_BYTES_MAX {
        assert_eq!(decoded(frame), expected(frame), "{frame}");
    }
});
