//! Bytes to text. Most text is ASCII, and that is asked sixteen bytes and more at a time.

/// The bytes as text, if they are UTF-8.
#[inline]
pub(super) fn text(bytes: &[u8]) -> Option<&str> {
    if bytes.is_ascii() {
        // SAFETY: ASCII is UTF-8.
        return Some(unsafe { std::str::from_utf8_unchecked(bytes) });
    }
    std::str::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_byte_at_every_place() {
        for place in 0..70 {
            for byte in 0..=255 {
                let mut bytes = [b'a'; 70];
                bytes[place] = byte;
                assert_eq!(text(&bytes).is_some(), byte < 0x80, "{byte} at {place}");
            }
        }
    }

    proptest! {
        #[test]
        fn is_what_the_standard_library_says(mut bytes in "[a-z ä€😀]{0,60}".prop_map(String::into_bytes), at: prop::sample::Index, byte: u8) {
            prop_assert_eq!(text(&bytes), std::str::from_utf8(&bytes).ok());
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
                prop_assert_eq!(text(&bytes), std::str::from_utf8(&bytes).ok());
            }
        }
    }
}
