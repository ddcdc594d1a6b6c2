//! Numbers as bits: what a text record says of each delta that it stands for takes about as many bits as it is surprising.
//!
//! ```text
//!   rice(v, k):   v >> k ones · a zero · the k low bits of v         v >> k below 16
//!                 16 ones · all 64 bits of v                         else
//!   rice(0, 16):  nothing
//! ```
//! Bits fill a byte from its lowest on. With the best `k` of 0..=15 a length of text never takes more than a bit and an eighth a
//! byte, whatever the deltas are like.

/// Ones that say: the number follows whole.
const ESCAPE_ONES: u32 = 16;

/// Largest `k` that takes bits.
pub(super) const RICE_MAX: u8 = 15;

/// The `k` of numbers that are all 0: they take none.
pub(super) const RICE_NONE: u8 = 16;

/// Bits that `rice(v, k)` takes; more than any number's where it cannot be said.
pub(super) fn rice_bits(v: u64, k: u8) -> u64 {
    if k == RICE_NONE {
        return if v == 0 { 0 } else { u64::from(u32::MAX) };
    }
    let ones = v >> k;
    if ones < ESCAPE_ONES.into() { ones + 1 + u64::from(k) } else { u64::from(ESCAPE_ONES) + 64 }
}

/// Writes bits.
#[derive(Debug, Default)]
pub(super) struct BitWriter {
    bytes: Vec<u8>,
    used: u32,
}

impl BitWriter {
    /// The `count` low bits of `v`.
    pub fn bits(&mut self, v: u64, count: u32) {
        for bit in 0..count {
            if self.used == 0 {
                self.bytes.push(0);
            }
            if let Some(last) = self.bytes.last_mut() {
                *last |= (((v >> bit) & 1) as u8) << self.used;
            }
            self.used = (self.used + 1) % 8;
        }
    }

    pub fn rice(&mut self, v: u64, k: u8) {
        if k == RICE_NONE {
            return;
        }
        let ones = v >> k;
        if ones >= ESCAPE_ONES.into() {
            self.bits(u64::MAX, ESCAPE_ONES);
            return self.bits(v, 64);
        }
        self.bits((1 << ones) - 1, ones as u32 + 1);
        self.bits(v, k.into());
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads them; `None` past the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> BitReader<'a> {
    pub fn new(bytes: &'a [u8]) -> BitReader<'a> {
        BitReader { bytes, at: 0 }
    }

    fn bit(&mut self) -> Option<u64> {
        let byte = self.bytes.get(self.at / 8)?;
        let bit = (byte >> (self.at % 8)) & 1;
        self.at += 1;
        Some(bit.into())
    }

    pub fn bits(&mut self, count: u32) -> Option<u64> {
        let mut v = 0;
        for bit in 0..count {
            v |= self.bit()? << bit;
        }
        Some(v)
    }

    pub fn rice(&mut self, k: u8) -> Option<u64> {
        if k == RICE_NONE {
            return Some(0);
        }
        let mut ones = 0;
        while ones < ESCAPE_ONES && self.bit()? == 1 {
            ones += 1;
        }
        if ones == ESCAPE_ONES {
            return self.bits(64);
        }
        Some(u64::from(ones) << k | self.bits(k.into())?)
    }

    /// Nothing but the zeros that fill the last byte is left.
    pub fn is_done(mut self) -> bool {
        let left = self.bytes.len() * 8 - self.at;
        left < 8 && self.bits(left as u32) == Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(values in proptest::collection::vec((any::<u64>(), 0u32..64, 0u8..=RICE_MAX), 0..60)) {
            let mut writer = BitWriter::default();
            let mut bits = 0;
            for (v, shift, k) in &values {
                writer.bits(v >> shift, 5);
                writer.rice(v >> shift, *k);
                bits += 5 + rice_bits(v >> shift, *k);
            }
            let bytes = writer.into_bytes();
            prop_assert_eq!(bytes.len() as u64, bits.div_ceil(8));
            let mut reader = BitReader::new(&bytes);
            for (v, shift, k) in &values {
                prop_assert_eq!(reader.bits(5), Some(v >> shift & 31));
                prop_assert_eq!(reader.rice(*k), Some(v >> shift));
            }
            prop_assert!(reader.is_done());
            prop_assert_eq!(reader.bits(8), None);
        }

        #[test]
        fn any_bytes_are_read_to_their_end(bytes in proptest::collection::vec(any::<u8>(), 0..40), k in 0u8..=RICE_MAX) {
            let mut reader = BitReader::new(&bytes);
            while reader.rice(k).is_some() {}
        }
    }
}
