//! A latency histogram of fixed size: recording never allocates, never fails.
//!
//! ```text
//!   nanoseconds 1 ……………………… 68 s   what is longer counts as 68 s
//!   fine    2 digits, 30 KiB: within 1 %       of stages and steps
//!   coarse  1 digit, 4 KiB: within 7 %         of tenants, of which there are many
//! ```

/// Longest time that is told from a longer one.
const NS_MAX: u64 = (1 << 36) - 1;

/// Times in nanoseconds.
#[derive(Clone, Debug)]
pub struct Histogram(hdrhistogram::Histogram<u64>);

impl Histogram {
    /// Two significant digits.
    pub fn fine() -> Self {
        Self::with_digits(2)
    }

    /// One.
    pub fn coarse() -> Self {
        Self::with_digits(1)
    }

    fn with_digits(digits: u8) -> Self {
        // The bounds are constants that the crate takes.
        Self(hdrhistogram::Histogram::new_with_bounds(1, NS_MAX, digits).expect("constant bounds"))
    }

    /// Bytes of a fine and of a coarse one.
    pub const fn memory_bytes() -> (usize, usize) {
        (30 * 128 * 8 + 128, 33 * 16 * 8 + 128)
    }

    /// One time.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    /// The same time often.
    #[inline]
    pub fn record_n(&mut self, ns: u64, count: u64) {
        self.0.saturating_record_n(ns, count);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// Adds another one's times.
    pub fn add(&mut self, other: &Histogram) {
        if !other.0.is_empty() {
            // Made by the same constants; a coarse one into a fine one fits, too.
            let added = self.0.add(&other.0);
            debug_assert!(added.is_ok());
        }
    }

    /// Takes the times of an earlier state of this one away.
    pub fn subtract(&mut self, earlier: &Histogram) {
        let subtracted = self.0.subtract(&earlier.0);
        debug_assert!(subtracted.is_ok());
    }

    /// How many times.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The time that so many of all times do not exceed, ns; 0 where there is none.
    pub fn quantile(&self, of: f64) -> u64 {
        if self.0.is_empty() { 0 } else { self.0.value_at_quantile(of) }
    }

    /// p50, p99, p99.9 and the longest, ns.
    pub fn tail(&self) -> [u64; 4] {
        [self.quantile(0.5), self.quantile(0.99), self.quantile(0.999), self.0.max()]
    }

    /// Counts at or below each of `bounds_ns` (ascending), and the sum of all times.
    pub fn cumulative(&self, bounds_ns: &[u64]) -> (Vec<u64>, u64) {
        let mut counts = vec![0; bounds_ns.len()];
        let mut sum = 0u64;
        let mut at = 0;
        for step in self.0.iter_recorded() {
            let (ns, count) = (step.value_iterated_to(), step.count_since_last_iteration());
            sum = sum.saturating_add(ns.saturating_mul(count));
            while at < bounds_ns.len() && bounds_ns[at] < ns {
                at += 1;
            }
            if let Some(bucket) = counts.get_mut(at) {
                *bucket += count;
            }
        }
        for i in 1..counts.len() {
            counts[i] += counts[i - 1];
        }
        (counts, sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_buckets_agree_with_what_was_recorded() {
        let mut all = Histogram::fine();
        (1..=1000).for_each(|us| all.record(us * 1000));
        all.record(u64::MAX);
        let [p50, p99, _, max] = all.tail();
        assert!((495_000..=506_000).contains(&p50), "{p50}");
        assert!((985_000..=1_000_000).contains(&p99), "{p99}");
        assert!(max >= NS_MAX / 100 * 99, "{max}");
        let (counts, sum) = all.cumulative(&[10_000, 105_000, 2_000_000]);
        assert!((9..=10).contains(&counts[0]) && (103..=105).contains(&counts[1]), "{counts:?}");
        assert_eq!(counts[2], 1000, "the longest lies beyond every bucket");
        assert!(sum > 500_000_000);
    }

    #[test]
    fn an_interval_is_what_is_left_of_the_whole() {
        let mut whole = Histogram::coarse();
        whole.record_n(5000, 10);
        let earlier = whole.clone();
        whole.record_n(90_000, 3);
        whole.subtract(&earlier);
        assert_eq!((whole.count(), whole.quantile(0.01) > 80_000), (3, true));
        let mut sum = Histogram::coarse();
        sum.add(&whole);
        sum.add(&earlier);
        assert_eq!(sum.count(), 13);
    }

    #[test]
    fn the_plan_knows_their_size() {
        let bytes = |h: &Histogram| h.0.distinct_values() * 8;
        let (fine, coarse) = Histogram::memory_bytes();
        assert!(bytes(&Histogram::fine()) <= fine, "{}", bytes(&Histogram::fine()));
        assert!(bytes(&Histogram::coarse()) <= coarse, "{}", bytes(&Histogram::coarse()));
    }
}
