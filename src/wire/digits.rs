//! Decimal digits, eight at a time.

/// Eight digits 0.
const ZEROS: u64 = u64::from_le_bytes([b'0'; 8]);

/// First place from `at` on that is no digit.
#[inline(always)]
pub fn end(bytes: &[u8], mut at: usize) -> usize {
    while let Some(word) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        match no_digits(u64::from_le_bytes(*word) ^ ZEROS) {
            0 => at += 8,
            others => return at + others.trailing_zeros() as usize / 8,
        }
    }
    while let Some(b'0'..=b'9') = bytes.get(at) {
        at += 1;
    }
    at
}

/// The high bit of the bytes that are above 9, exact up to the lowest such byte: a carry only reaches those above it.
#[inline(always)]
fn no_digits(values: u64) -> u64 {
    (values.wrapping_add(u64::from_le_bytes([0x80 - 10; 8])) | values) & u64::from_le_bytes([0x80; 8])
}

/// The number of which the first `length` bytes of the word are the digits, 1 to 8 of them; `None` if one is no digit.
#[inline(always)]
pub fn short_integer(word: &[u8; 8], length: usize) -> Option<u64> {
    // The first digit is the lowest byte: what is shifted in below are leading zeros.
    let values = (u64::from_le_bytes(*word) ^ ZEROS) << (64 - 8 * length as u32);
    if no_digits(values) != 0 {
        return None;
    }
    let pairs = values.wrapping_mul(10 << 8 | 1) >> 8 & 0x00ff_00ff_00ff_00ff;
    let fours = pairs.wrapping_mul(100 << 16 | 1) >> 16 & 0x0000_ffff_0000_ffff;
    Some(fours.wrapping_mul(10_000 << 32 | 1) >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_integers_are_their_digits() {
        for number in (0..2000).chain([12_345, 999_999, 1_234_567, 10_000_000, 87_654_321, 99_999_999]) {
            let digits = number.to_string();
            for behind in [",1234567", "}       ", "99999999", "\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}"] {
                let text = format!("{digits}{behind}");
                assert_eq!(short_integer(text.as_bytes().first_chunk().unwrap(), digits.len()), Some(number), "{text}");
            }
        }
        for byte in 0..=255u8 {
            for place in 0..8 {
                let mut word = *b"12345678";
                word[place] = byte;
                assert_eq!(short_integer(&word, 8).is_some(), byte.is_ascii_digit(), "{byte} at {place}");
                assert_eq!(short_integer(&word, place.max(1)).is_some(), place > 0 || byte.is_ascii_digit());
            }
        }
    }

    #[test]
    fn digits_end_at_the_first_other_byte() {
        for length in 0..20 {
            for other in (0..=255u8).filter(|byte| !byte.is_ascii_digit()) {
                let mut text = vec![b'7'; length];
                text.push(other);
                text.extend_from_slice(b"12345678");
                assert_eq!(end(&text, 0), length, "{other}");
                assert_eq!(end(&text[..length], 0), length);
            }
        }
    }
}
