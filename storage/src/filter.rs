//! A blocked Bloom filter over 128-bit keys that are uniform already (keyed hashes).
//!
//! ```text
//!   high half ──► block (64 bytes, one cache line)      low half ──► 8 bits inside it
//! ```
//! 12 bits a key give about 1 false positive in 200; there is no false negative. A filter of no keys is empty and says no.

/// Bytes of one block: one cache line, so that a question costs one miss.
const BLOCK_BYTES: usize = 64;
const BITS_PER_KEY: usize = 12;
const PROBES: u32 = 8;

/// Says "surely not" or "maybe". Immutable once its segment or checkpoint is written.
#[derive(Clone, PartialEq, Eq)]
pub struct Filter {
    bytes: Vec<u8>,
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Filter({} bytes)", self.bytes.len())
    }
}

impl Filter {
    /// Bytes a filter for `keys` keys takes.
    pub fn bytes_for(keys: usize) -> usize {
        (keys * BITS_PER_KEY).div_ceil(BLOCK_BYTES * 8) * BLOCK_BYTES
    }

    /// An empty filter with room for `keys` keys; more than that only makes "maybe" more frequent.
    pub fn for_keys(keys: usize) -> Filter {
        Filter { bytes: vec![0; Filter::bytes_for(keys)] }
    }

    /// Takes a filter as it was stored. `None` if the length cannot be one.
    pub fn from_bytes(bytes: &[u8]) -> Option<Filter> {
        bytes.len().is_multiple_of(BLOCK_BYTES).then(|| Filter { bytes: bytes.to_vec() })
    }

    /// As stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Adds a key. A filter made for no keys cannot take any.
    pub fn insert(&mut self, key: u128) {
        let Some(block) = self.block(key) else { return };
        let mut bits = key as u64;
        for _ in 0..PROBES {
            // A block has 2^9 places; 8 × 9 bits are more than the half has, so it is stirred as they are used up.
            let bit = (bits & 511) as usize;
            self.bytes[block + bit / 8] |= 1 << (bit % 8);
            bits = bits.rotate_right(9).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        }
    }

    /// False means the key was never added.
    pub fn maybe(&self, key: u128) -> bool {
        let Some(block) = self.block(key) else { return false };
        let mut bits = key as u64;
        for _ in 0..PROBES {
            let bit = (bits & 511) as usize;
            if self.bytes[block + bit / 8] & (1 << (bit % 8)) == 0 {
                return false;
            }
            bits = bits.rotate_right(9).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        }
        true
    }

    fn block(&self, key: u128) -> Option<usize> {
        let blocks = (self.bytes.len() / BLOCK_BYTES) as u128;
        // Multiply-shift maps the high half evenly onto the blocks without a division.
        (blocks > 0).then(|| ((((key >> 64) * blocks) >> 64) as usize) * BLOCK_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> u128 {
        crate::ids::HashKey(1, 2).partition("t", &n.to_string()).0
    }

    #[test]
    fn never_denies_a_key_and_rarely_invents_one() {
        let mut filter = Filter::for_keys(10_000);
        (0..10_000).for_each(|n| filter.insert(key(n)));
        let stored = Filter::from_bytes(filter.as_bytes()).unwrap();
        assert!((0..10_000).all(|n| stored.maybe(key(n))));
        let invented = (10_000..110_000).filter(|&n| stored.maybe(key(n))).count();
        assert!(invented < 1_500, "{invented} of 100000");
    }

    #[test]
    fn an_empty_filter_says_no() {
        let mut filter = Filter::for_keys(0);
        filter.insert(7);
        assert!(!filter.maybe(7) && filter.as_bytes().is_empty());
        assert!(Filter::from_bytes(&[0; 65]).is_none());
    }
}
