//! How often a connection may change its presence: a bucket of one second's worth, kept as one number.
//!
//! ```text
//!   paid until ──────────────┐        each change pays 1/rate further on; refused where that is more than a second ahead
//!   now ──────┤◄── ≤ 1 s ───►│
//! ```

/// How far ahead a connection may pay, microseconds.
const AHEAD_US: u64 = 1_000_000;

/// One connection's.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Flood {
    paid_until_us: u64,
}

impl Flood {
    /// One more change now, or in how many milliseconds.
    ///
    /// # Errors
    /// When there is room for one.
    pub fn check(&self, now_us: u64, per_second: u32) -> Result<Flood, u32> {
        let paid_until_us = self.paid_until_us.max(now_us) + AHEAD_US / u64::from(per_second.max(1));
        let ahead_us = paid_until_us - now_us;
        if ahead_us > AHEAD_US {
            return Err((ahead_us - AHEAD_US).div_ceil(1000) as u32);
        }
        Ok(Flood { paid_until_us })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seconds_worth_at_once_then_the_rate_and_the_advice_is_right() {
        let (mut flood, mut now, mut taken) = (Flood::default(), 5_000_000, 0);
        while let Ok(next) = flood.check(now, 50) {
            (flood, taken) = (next, taken + 1);
        }
        assert_eq!(taken, 50);
        for _ in 0..100 {
            let wait_ms = flood.check(now, 50).expect_err("the bucket is empty");
            assert!((1..=20).contains(&wait_ms), "{wait_ms}");
            assert!(flood.check(now + (u64::from(wait_ms) - 1) * 1000, 50).is_err(), "no sooner");
            now += u64::from(wait_ms) * 1000;
            flood = flood.check(now, 50).expect("as was said");
        }
        assert!(now >= 5_000_000 + 100 * 19_000);
    }
}
