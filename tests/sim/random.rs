//! One stream of chance per concern. A new draw in one does not shift another, so that a seed keeps its meaning
//! while the simulator grows.

/// xoshiro256++, seeded by splitmix64 from (seed, name of the concern).
#[derive(Clone, Debug)]
pub struct Random {
    state: [u64; 4],
}

impl Random {
    /// The stream of `concern` under `seed`.
    pub fn new(seed: u64, concern: &str) -> Self {
        let mut mix = seed;
        for byte in concern.bytes() {
            mix = splitmix(&mut mix) ^ u64::from(byte);
        }
        let state = std::array::from_fn(|_| splitmix(&mut mix));
        Self { state }
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        let [a, b, c, d] = self.state;
        let result = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let mut next = [a, b, c ^ a, d ^ b];
        next[1] ^= next[2];
        next[0] ^= next[3];
        next[2] ^= b << 17;
        next[3] = next[3].rotate_left(45);
        self.state = next;
        result
    }

    /// `0..bound`; 0 where `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.any()) * u128::from(bound)) >> 64) as u64
    }

    /// `from..=to`.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// An index of a collection of `len` things.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True `per_mille` times of a thousand.
    pub fn chance(&mut self, per_mille: u32) -> bool {
        self.below(1000) < u64::from(per_mille)
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, things: &'a [T]) -> &'a T {
        &things[self.index(things.len())]
    }

    /// A time with a long tail: mostly near `typical`, now and then up to a hundred times as long.
    pub fn delay(&mut self, typical: u64) -> u64 {
        let stretch = match self.below(100) {
            0 => 100,
            1..=9 => 10,
            _ => 2,
        };
        1 + self.below(typical * stretch)
    }
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
