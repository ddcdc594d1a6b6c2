//! The client's mask: XOR with four bytes, over and over.

/// Unmasks `bytes` in place and returns the mask turned to where it stands after them, for the next part of the
/// same payload.
pub fn unmask(bytes: &mut [u8], mask: [u8; 4]) -> [u8; 4] {
    unmask_whole(bytes, mask);
    let mut turned = mask;
    turned.rotate_left(bytes.len() % 4);
    turned
}

/// The same for a whole payload.
#[inline(always)]
pub(super) fn unmask_whole(bytes: &mut [u8], mask: [u8; 4]) {
    let word = u32::from_ne_bytes(mask);
    let wide = u64::from(word) | u64::from(word) << 32;
    // 32 bytes a step: without a branch inside, the compiler makes vector instructions of it.
    let (blocks, rest) = bytes.as_chunks_mut::<32>();
    for block in blocks {
        for lane in block.as_chunks_mut::<8>().0 {
            *lane = (u64::from_ne_bytes(*lane) ^ wide).to_ne_bytes();
        }
    }
    let (words, tail) = rest.as_chunks_mut::<4>();
    for quad in words {
        *quad = (u32::from_ne_bytes(*quad) ^ word).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(mask) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_the_definition_however_it_is_cut(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), mask: [u8; 4], cut in 0usize..200
        ) {
            let plain: Vec<u8> = bytes.iter().enumerate().map(|(i, b)| b ^ mask[i % 4]).collect();
            let mut cut_bytes = bytes.clone();
            let cut = cut.min(bytes.len());
            let turned = unmask(&mut cut_bytes[..cut], mask);
            let end = unmask(&mut cut_bytes[cut..], turned);
            prop_assert_eq!(&cut_bytes, &plain);
            let mut expected = mask;
            expected.rotate_left(bytes.len() % 4);
            prop_assert_eq!(end, expected);
        }
    }
}
