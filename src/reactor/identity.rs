//! Names for clients that bring none.

use std::fmt::Write as _;

/// Makes client ids that no other client can guess. One per shard.
pub struct Identities {
    state: [u64; 2],
}

impl Identities {
    /// Seeded by the kernel.
    pub fn new() -> Self {
        Self { state: [random_u64(), random_u64()] }
    }

    /// `anon-` and 16 hex digits.
    pub fn anonymous(&mut self) -> String {
        let mut name = String::with_capacity(21);
        // Writing to a string cannot fail.
        let _ = write!(name, "anon-{:016x}", self.random());
        name
    }

    /// Any number: xorshift128+.
    pub fn random(&mut self) -> u64 {
        let [mut a, b] = self.state;
        a ^= a << 23;
        a ^= a >> 17;
        a ^= b ^ (b >> 26);
        self.state = [b, a];
        a.wrapping_add(b)
    }
}

impl Default for Identities {
    fn default() -> Self {
        Self::new()
    }
}

/// Eight bytes of the kernel's randomness, never 0.
pub fn random_u64() -> u64 {
    loop {
        let mut bytes = [0u8; 8];
        // SAFETY: eight writable bytes. So few are never cut short once the kernel's pool is ready, which it waits for.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        let number = u64::from_ne_bytes(bytes);
        if got == 8 && number != 0 {
            return number;
        }
    }
}
