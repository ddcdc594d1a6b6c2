//! When to spin and when to sleep.
//!
//! ```text
//!   last work ──── spin: turns without entering the kernel ────► park until a completion or the next timer
//!             20 … 50 µs, longer while it pays: waking a sleeping core costs about 25 µs
//! ```

/// Shortest spin where spinning is allowed at all.
const SPIN_US_MIN: u64 = 20;

/// One per shard.
#[derive(Debug)]
pub struct Pace {
    spin_us_max: u64,
    /// How long to spin now.
    spin_us: u64,
    last_work_us: u64,
    /// Since the last work no park was needed.
    spinning: bool,
}

impl Pace {
    /// Spins at most so long; 0 = never.
    pub fn new(spin_us_max: u64) -> Self {
        let spin_us = SPIN_US_MIN.min(spin_us_max);
        Self { spin_us_max, spin_us, last_work_us: 0, spinning: false }
    }

    /// A turn did something.
    pub fn worked(&mut self, now_us: u64) {
        if self.spinning && now_us > self.last_work_us {
            // The wait ended inside the spin: it paid.
            self.spin_us = (self.spin_us + 5).min(self.spin_us_max);
        }
        self.last_work_us = now_us;
        self.spinning = true;
    }

    /// A turn did nothing: is it time to park?
    pub fn may_park(&mut self, now_us: u64) -> bool {
        if now_us.saturating_sub(self.last_work_us) < self.spin_us {
            return false;
        }
        if self.spinning {
            // Nothing came in time: it was wasted.
            self.spin_us = (self.spin_us - self.spin_us / 8).max(SPIN_US_MIN.min(self.spin_us_max));
            self.spinning = false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spins_longer_while_it_pays_and_shorter_when_it_does_not() {
        let mut pace = Pace::new(50);
        let mut now = 1000;
        for _ in 0..20 {
            pace.worked(now);
            assert!(!pace.may_park(now + 19));
            now += 15;
        }
        assert!(!pace.may_park(now + 30), "grown beyond the least");
        for _ in 0..20 {
            pace.worked(now);
            now += 1000;
            assert!(pace.may_park(now));
        }
        pace.worked(now);
        assert!(pace.may_park(now + SPIN_US_MIN), "shrunk to the least");
        assert!(Pace::new(0).may_park(0), "a shared core never spins");
    }
}
