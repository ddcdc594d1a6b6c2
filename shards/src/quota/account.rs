//! The two sides of a quota: the account in the tenant's home shard, and the part that a shard was lent of it.
//!
//! ```text
//!   Account   level ──── grant ────► lent ──┐            level + lent ≤ capacity, always
//!               ▲ time (a rate)             ▼
//!               └──── settle: unspent ── Part  have ─ take ─► spent (a rate), used (a count)
//!                     spent: lent falls, level does not rise
//! ```
//! **Invariant.** Nothing is taken that was not lent, and nothing is lent that has not come: in any time `t` all shards together
//! take at most `capacity + rate × t`, of a count never more than `capacity` at once. Lending moves units, it makes none.

use crate::limits::Kind;

/// Parts of a unit that come in one microsecond at a rate of one a second are whole numbers.
const PARTS: u64 = 1_000_000;

/// In the home shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Account {
    kind: Kind,
    /// Units: those of one second, or those that may be in use.
    capacity: u64,
    /// What is here, in parts of a unit.
    level: u64,
    /// Units that shards have and have not settled.
    lent: u64,
    at_us: u64,
}

/// Answer to who asks for more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Grant {
    /// Units, at least what was needed.
    Units(u64),
    /// There are none: when there will be, microseconds from now.
    After(u64),
}

/// Nobody knows when somebody else gives back; it is worth asking again then.
const GIVEN_BACK_AFTER_US: u64 = 1_000_000;

impl Account {
    pub fn new(kind: Kind, capacity: u64, now_us: u64) -> Self {
        Self { kind, capacity, level: capacity.saturating_mul(PARTS), lent: 0, at_us: now_us }
    }

    /// Another bound from now on. What is lent already stays lent.
    pub fn resize(&mut self, capacity: u64, now_us: u64) {
        self.refill(now_us);
        if !self.kind.is_rate() {
            let free = capacity.saturating_sub(self.lent);
            self.level = free.saturating_mul(PARTS);
        }
        self.capacity = capacity;
        self.level = self.level.min(self.level_max());
    }

    /// `used` units are in use somewhere that were never lent: they were unlimited until now.
    pub fn owe(&mut self, used: u64) {
        self.lent += used;
        self.level = self.level.min(self.level_max());
    }

    /// Lends to a shard that has `have` and needs `need`, and some more if there is plenty: up to `chunk`.
    pub fn grant(&mut self, have: u64, need: u64, chunk: u64, now_us: u64) -> Grant {
        self.refill(now_us);
        let wanted = need.saturating_sub(have);
        let there = self.level / PARTS;
        if there >= wanted {
            let units = wanted.max(chunk.min(there));
            self.level -= units * PARTS;
            self.lent += units;
            return Grant::Units(units);
        }
        let missing = wanted.saturating_mul(PARTS) - self.level;
        if !self.kind.is_rate() || wanted.saturating_mul(PARTS) > self.level_max() || self.capacity == 0 {
            return Grant::After(GIVEN_BACK_AFTER_US);
        }
        Grant::After(missing.div_ceil(self.capacity))
    }

    /// A shard says what it has spent, and gives back what it has not.
    pub fn settle(&mut self, unspent: u64, spent: u64, now_us: u64) {
        self.refill(now_us);
        self.lent = self.lent.saturating_sub(unspent.saturating_add(spent));
        self.level = self.level.saturating_add(unspent.saturating_mul(PARTS)).min(self.level_max());
    }

    /// Nobody owes it anything, and it is full: it may be forgotten.
    pub fn is_idle(&mut self, now_us: u64) -> bool {
        self.refill(now_us);
        self.lent == 0 && self.level == self.level_max()
    }

    fn level_max(&self) -> u64 {
        self.capacity.saturating_sub(self.lent).saturating_mul(PARTS)
    }

    fn refill(&mut self, now_us: u64) {
        let passed_us = now_us.saturating_sub(self.at_us);
        self.at_us = self.at_us.max(now_us);
        if self.kind.is_rate() {
            let come = passed_us.saturating_mul(self.capacity);
            self.level = self.level.saturating_add(come).min(self.level_max());
        }
    }
}

/// In each shard that has clients of the tenant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Part {
    /// Units lent and not taken.
    pub have: u64,
    /// Taken of a rate and not settled.
    pub spent: u64,
    /// Taken of a count and not given back.
    pub used: u64,
    /// In use since before there was a bound, and not said to the home yet.
    pub owed: u64,
    /// The home was asked and has not answered.
    pub asked: bool,
    /// Units more that commands wait for than the home was asked for.
    pub wanted: u64,
    /// The home has none until then, microseconds.
    pub none_until_us: u64,
    /// All that was ever taken here.
    pub total: u64,
    /// Last taken of, microseconds.
    pub taken_us: u64,
}

impl Part {
    /// Are there so many?
    #[inline]
    pub fn has(&self, need: u64) -> bool {
        self.have >= need
    }

    /// Takes what there is; the caller has seen it.
    #[inline]
    pub fn take(&mut self, kind: Kind, units: u64, now_us: u64) {
        self.have -= units;
        self.total += units;
        self.taken_us = now_us;
        if kind.is_rate() {
            self.spent += units;
        } else {
            self.used += units;
        }
    }

    /// There are so many in use now, whether they were lent or not. What was not is owed.
    pub fn count(&mut self, actual: u64, now_us: u64) {
        if actual > self.used {
            let more = actual - self.used;
            let lent = more.min(self.have);
            self.have -= lent;
            self.owed += more - lent;
            self.total += more;
            self.taken_us = now_us;
        } else {
            // What is owed and was not said yet was never lent.
            let less = self.used - actual;
            let unsaid = self.owed.min(less);
            self.owed -= unsaid;
            self.have += less - unsaid;
        }
        self.used = actual;
    }

    /// Gives back what was taken of a count.
    pub fn give_back(&mut self, units: u64, is_limited: bool) {
        let units = units.min(self.used);
        self.used -= units;
        if is_limited {
            self.have += units;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND_US: u64 = 1_000_000;

    #[test]
    fn the_time_to_come_back_is_the_time_until_there_is_enough() {
        let mut account = Account::new(Kind::Events, 100, 0);
        assert_eq!(account.grant(0, 40, 0, 0), Grant::Units(40));
        assert_eq!(account.grant(0, 50, 60, 0), Grant::Units(60), "and some more while there is plenty");
        // All 100 are out: nothing comes before somebody says what it has spent.
        assert_eq!(account.grant(0, 1, 0, SECOND_US), Grant::After(GIVEN_BACK_AFTER_US));
        account.settle(0, 100, SECOND_US);
        assert_eq!(account.grant(0, 10, 0, SECOND_US), Grant::After(100_000), "ten at a hundred a second");
        assert_eq!(account.grant(4, 10, 0, SECOND_US), Grant::After(60_000), "four are there already");
        assert_eq!(account.grant(0, 10, 0, SECOND_US + 99_999), Grant::After(1));
        assert_eq!(account.grant(0, 10, 0, SECOND_US + 100_000), Grant::Units(10));
    }

    #[test]
    fn a_count_comes_back_when_it_is_given_back() {
        let mut account = Account::new(Kind::Connections, 2, 0);
        assert_eq!(account.grant(0, 1, 0, 0), Grant::Units(1));
        assert_eq!(account.grant(0, 1, 9, 0), Grant::Units(1));
        assert_eq!(account.grant(0, 1, 0, 1 << 40), Grant::After(GIVEN_BACK_AFTER_US), "time does not help");
        account.settle(1, 0, 0);
        assert_eq!(account.grant(0, 1, 0, 0), Grant::Units(1));
        account.resize(1, 0);
        account.settle(1, 0, 0);
        assert_eq!(account.grant(0, 1, 0, 0), Grant::After(GIVEN_BACK_AFTER_US), "one is in use, one is allowed");
        account.resize(3, 0);
        assert_eq!(account.grant(0, 2, 0, 0), Grant::Units(2));
    }

    /// However much comes and goes before it is said: what the home counts as lent is what is here.
    #[test]
    fn what_was_there_before_is_owed_and_what_goes_comes_back() {
        let (mut account, mut part) = (Account::new(Kind::Sessions, 10, 0), Part::default());
        let say = |account: &mut Account, part: &mut Part| {
            account.settle(std::mem::take(&mut part.have), 0, 0);
            account.owe(std::mem::take(&mut part.owed));
            account.lent
        };
        for (actual, lent) in [(4, 4), (12, 12), (3, 3), (0, 0), (9, 9)] {
            part.count(actual + 1, 0);
            part.count(actual, 0);
            assert_eq!(say(&mut account, &mut part), lent);
        }
        assert_eq!(account.grant(0, 2, 0, 0), Grant::After(GIVEN_BACK_AFTER_US), "nine of ten are in use");
        assert_eq!(account.grant(0, 1, 5, 0), Grant::Units(1));
        part.have = 1;
        part.count(10, 0);
        assert_eq!((part.have, part.owed), (0, 0), "it was lent");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take { shard: usize, units: u64 },
        Settle { shard: usize },
        Wait { us: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..3usize, 1..60u64).prop_map(|(shard, units)| Step::Take { shard, units }),
            1 => (0..3usize).prop_map(|shard| Step::Settle { shard }),
            3 => (0..300_000u64).prop_map(|us| Step::Wait { us }),
        ]
    }

    proptest! {
        /// Three shards take as they like: over every stretch of time all of them together take no more than the bound, and who
        /// was told to come back finds what it wanted then, if nobody else came first.
        #[test]
        fn all_shards_together_never_take_more(steps in proptest::collection::vec(step(), 1..200), rate in 1..500u64) {
            let (mut account, mut parts, mut now) = (Account::new(Kind::Events, rate, 0), [Part::default(); 3], 0u64);
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for step in steps {
                match step {
                    Step::Wait { us } => now += us,
                    Step::Settle { shard } => {
                        let part = &mut parts[shard];
                        account.settle(std::mem::take(&mut part.have), std::mem::take(&mut part.spent), now);
                    }
                    Step::Take { shard, units } => {
                        let units = units.min(rate);
                        let part = &mut parts[shard];
                        if !part.has(units) {
                            account.settle(0, std::mem::take(&mut part.spent), now);
                            match account.grant(part.have, units, rate / 6, now) {
                                Grant::Units(units) => part.have += units,
                                Grant::After(us) if us < GIVEN_BACK_AFTER_US => {
                                    let (mut early, mut late) = (account, account);
                                    prop_assert!(matches!(early.grant(part.have, units, 0, now + us - 1), Grant::After(1)));
                                    prop_assert!(matches!(late.grant(part.have, units, 0, now + us), Grant::Units(_)));
                                }
                                Grant::After(_) => {}
                            }
                        }
                        if parts[shard].has(units) {
                            parts[shard].take(Kind::Events, units, now);
                            taken.push((now, units));
                        }
                    }
                }
                let out: u64 = parts.iter().map(|part| part.have + part.spent).sum();
                prop_assert_eq!(account.lent, out, "what is lent is somewhere");
                prop_assert!(account.level / PARTS + account.lent <= rate);
            }
            for (from, (begin, _)) in taken.iter().enumerate() {
                let mut sum = 0;
                for (at, units) in &taken[from..] {
                    sum += units;
                    prop_assert!(sum <= rate + rate * (at - begin) / SECOND_US + 1, "{} in {} us", sum, at - begin);
                }
            }
        }
    }
}
