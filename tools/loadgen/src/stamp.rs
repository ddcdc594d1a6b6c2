//! The stamp that travels in the data of every event, through whatever server.
//!
//! ```text
//!   "@@" intended(16 hex) actual(16 hex) lane(8 hex) number(8 hex) padding…
//! ```
//! Both ends are this process, so there is one clock. `number` counts the events of one lane (a session and its publisher)
//! from 0: a reader that sees anything but the next number has found a loss, a repeat or a wrong order.

use memchr::memmem;
use std::io::Write as _;
use std::sync::LazyLock;

/// Bytes of a stamp; the smallest payload.
pub const STAMP_BYTES: usize = 2 + 16 + 16 + 8 + 8;

/// What an event carries about its sending, times in ns of the engine's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub intended: u64,
    pub actual: u64,
    pub lane: u32,
    pub number: u32,
}

impl Stamp {
    /// Appends the stamp and padding up to `bytes` of data.
    pub fn write(&self, out: &mut Vec<u8>, bytes: usize) {
        let Stamp { intended, actual, lane, number } = self;
        // A Vec takes every write.
        let _infallible = write!(out, "@@{intended:016x}{actual:016x}{lane:08x}{number:08x}");
        out.resize(out.len() + bytes.saturating_sub(STAMP_BYTES), b'x');
    }

    /// Finds the stamp in a message.
    pub fn find(message: &[u8]) -> Option<Stamp> {
        static MARK: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(b"@@"));
        let at = MARK.find(message)? + 2;
        let hex = |from: usize, digits: usize| hexadecimal(message.get(at + from..at + from + digits)?);
        Some(Stamp {
            intended: hex(0, 16)?,
            actual: hex(16, 16)?,
            lane: hex(32, 8)? as u32,
            number: hex(40, 8)? as u32,
        })
    }
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |n, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(n << 4 | u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_found_again_and_half_of_one_is_none() {
        let stamp = Stamp { intended: 0x1234, actual: u64::MAX, lane: 7, number: 41 };
        let mut out = b"{\"data\":\"".to_vec();
        stamp.write(&mut out, 128);
        assert_eq!(out.len(), 9 + 128);
        assert_eq!(Stamp::find(&out), Some(stamp));
        assert_eq!(Stamp::find(&out[..9 + STAMP_BYTES - 1]), None);
        assert_eq!(Stamp::find(b"nothing"), None);
    }
}
