//! Text sixteen bytes at a time: where a run of plain characters ends.
//!
//! ```text
//!   {"topic":"chat.message","data":"two\nlines"}
//!             ^^^^^^^^^^^^ plain          ^ stop: a quote, a backslash or a control character
//! ```
//! Most keys and names end inside the first block, so that finding an end is one load, a few comparisons and no loop.

/// Bytes of a block.
pub const BLOCK: usize = 16;

/// Bit i is set where byte i is no plain character: a quote, a backslash or a control character.
#[inline(always)]
pub fn stops(block: &[u8; BLOCK]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        vector::stops(block)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        words::stops(block)
    }
}

/// Whether any of 64 bytes is no plain character.
#[inline(always)]
fn any_stop(blocks: &[u8; 4 * BLOCK]) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        vector::any_stop(blocks)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        blocks.as_chunks::<BLOCK>().0.iter().any(|block| words::stops(block) != 0)
    }
}

/// First place from `at` on that is no plain character; the length if all are.
#[inline]
pub fn plain_end(bytes: &[u8], mut at: usize) -> usize {
    while let Some(blocks) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        if any_stop(blocks) {
            break;
        }
        at += 4 * BLOCK;
    }
    while let Some(block) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        let stops = stops(block);
        if stops != 0 {
            return at + stops.trailing_zeros() as usize;
        }
        at += BLOCK;
    }
    let rest = bytes.get(at..).unwrap_or_default();
    match bytes.last_chunk() {
        // The last block once more, without what has been looked at.
        Some(block) => match stops(block) >> (BLOCK - rest.len()) {
            0 => bytes.len(),
            stops => at + stops.trailing_zeros() as usize,
        },
        None => at + rest.iter().position(|b| matches!(b, b'"' | b'\\' | 0..0x20)).unwrap_or(rest.len()),
    }
}

#[cfg(target_arch = "x86_64")]
mod vector {
    use super::BLOCK;
    use core::arch::x86_64::*;

    /// Zero in every byte that is a stop.
    ///
    /// # Safety
    /// The machine has SSE2.
    #[inline(always)]
    unsafe fn zero_at_stops(block: &[u8; BLOCK]) -> __m128i {
        // SAFETY: a block is sixteen readable bytes; the rest is arithmetic of SSE2, see above.
        unsafe {
            let bytes = _mm_loadu_si128(block.as_ptr().cast());
            // Two changes places with a blank: quotes and control characters, and nothing else, are then 0 to 0x20.
            let turned = _mm_xor_si128(bytes, _mm_set1_epi8(0x02));
            let quote_or_control = _mm_subs_epu8(turned, _mm_set1_epi8(0x20));
            _mm_min_epu8(quote_or_control, _mm_xor_si128(bytes, _mm_set1_epi8(0x5c)))
        }
    }

    #[inline(always)]
    pub fn stops(block: &[u8; BLOCK]) -> u32 {
        // SAFETY: SSE2 belongs to every x86-64.
        unsafe { _mm_movemask_epi8(_mm_cmpeq_epi8(zero_at_stops(block), _mm_setzero_si128())) as u32 }
    }

    #[inline(always)]
    pub fn any_stop(blocks: &[u8; 4 * BLOCK]) -> bool {
        let ([a, b, c, d], []) = blocks.as_chunks() else { return true };
        // SAFETY: SSE2 belongs to every x86-64.
        unsafe {
            let low = _mm_min_epu8(
                _mm_min_epu8(zero_at_stops(a), zero_at_stops(b)),
                _mm_min_epu8(zero_at_stops(c), zero_at_stops(d)),
            );
            _mm_movemask_epi8(_mm_cmpeq_epi8(low, _mm_setzero_si128())) != 0
        }
    }
}

#[cfg(any(test, not(target_arch = "x86_64")))]
mod words {
    use super::BLOCK;

    pub fn stops(block: &[u8; BLOCK]) -> u32 {
        let (words, _) = block.as_chunks::<8>();
        words.iter().rev().fold(0, |stops, word| stops << 8 | in_word(u64::from_le_bytes(*word)))
    }

    fn in_word(word: u64) -> u32 {
        const ONES: u64 = u64::MAX / 255;
        const HIGHS: u64 = ONES << 7;
        // The high bit of every byte that is not zero; no carry leaves a byte.
        let filled = |word: u64| (word & !HIGHS).wrapping_add(!HIGHS) | word;
        let printed = (word & !HIGHS).wrapping_add(ONES * (0x80 - 0x20)) | word;
        let plain = filled(word ^ (ONES * 0x22)) & filled(word ^ (ONES * 0x5c)) & printed;
        // Eight high bits to eight bits in a row.
        (((!plain & HIGHS) >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn by_hand(bytes: &[u8]) -> usize {
        bytes.iter().position(|b| *b == b'"' || *b == b'\\' || *b < 0x20).unwrap_or(bytes.len())
    }

    #[test]
    fn every_byte_at_every_place_of_a_block() {
        for byte in 0..=255 {
            for place in 0..BLOCK {
                let mut block = [b'a'; BLOCK];
                block[place] = byte;
                let want = if by_hand(&[byte]) == 0 { 1 << place } else { 0 };
                assert_eq!(stops(&block), want, "{byte:#x} at {place}");
                assert_eq!(words::stops(&block), want, "{byte:#x} at {place}, in words");
            }
        }
    }

    proptest! {
        #[test]
        fn blocks_of_any_bytes(block: [u8; BLOCK]) {
            let want = block.iter().rev().fold(0, |stops, byte| stops << 1 | u32::from(by_hand(&[*byte]) == 0));
            prop_assert_eq!(stops(&block), want);
            prop_assert_eq!(words::stops(&block), want);
        }

        #[test]
        fn the_first_stop_of_texts_of_any_length(
            length in 0usize..300, stops in proptest::collection::vec((0usize..300, prop_oneof![Just(b'"'), Just(b'\\'), 0u8..0x22]), 0..3)
        ) {
            let mut text = vec![b'\xc3'; length];
            for (at, byte) in stops {
                if at < length {
                    text[at] = byte;
                }
            }
            for start in 0..length.min(70) {
                prop_assert_eq!(plain_end(&text, start), start + by_hand(&text[start..]));
            }
        }
    }
}
