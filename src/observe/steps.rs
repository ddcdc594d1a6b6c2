//! The stall detector: which step of a turn took longer than its budget.
//!
//! ```text
//!   reading ── step ── reading ── step ── reading       one reading of the clock ends a step and begins the next
//!                │ longer than the budget: counted, remembered, and logged, a line a second at most
//! ```
//! It sees time, not work: a core that was taken away in a step makes it long, too.

use super::Step;
use shards::ids::ShardId;

/// Between two lines about stalls of one shard.
const NOTE_EVERY_NS: u64 = 1_000_000_000;

/// The last step over its budget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stall {
    /// Which.
    pub step: Step,
    /// How long it took.
    pub ns: u64,
    /// When it ended, Unix ms.
    pub wall_ms: u64,
}

/// One per shard.
#[derive(Debug)]
pub(super) struct Stalls {
    shard: ShardId,
    budget_ns: u64,
    last: Option<Stall>,
    note_at_ns: u64,
    /// Since the last line.
    unnoted: u64,
}

impl Stalls {
    pub fn new(shard: ShardId, budget_ns: u64) -> Self {
        Self { shard, budget_ns, last: None, note_at_ns: 0, unnoted: 0 }
    }

    pub fn last(&self) -> Option<Stall> {
        self.last
    }

    /// A step took `ns` and ended now. `true` where that is too long.
    #[inline]
    pub fn look(&mut self, step: Step, ns: u64, now_ns: u64, wall_ms: u64) -> bool {
        if ns <= self.budget_ns {
            return false;
        }
        self.last = Some(Stall { step, ns, wall_ms });
        self.note(step, ns, now_ns);
        true
    }

    #[cold]
    fn note(&mut self, step: Step, ns: u64, now_ns: u64) {
        if now_ns < self.note_at_ns {
            self.unnoted += 1;
            return;
        }
        self.note_at_ns = now_ns + NOTE_EVERY_NS;
        let others = std::mem::take(&mut self.unnoted);
        tracing::warn!(
            shard = self.shard.0,
            step = step.name(),
            ms = ns as f64 / 1e6,
            budget_ms = self.budget_ns as f64 / 1e6,
            others,
            "a step of the turn took longer than its budget (turn_step_us_max)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_over_the_budget_is_a_stall_and_lines_are_few() {
        let mut stalls = Stalls::new(ShardId(0), 10_000);
        assert!(!stalls.look(Step::Reap, 10_000, 1, 1));
        assert_eq!(stalls.last(), None);
        assert!(stalls.look(Step::Commit, 10_001, 2, 7));
        assert_eq!(stalls.last(), Some(Stall { step: Step::Commit, ns: 10_001, wall_ms: 7 }));
        for n in 0..100 {
            assert!(stalls.look(Step::Enter, 20_000, 3 + n, 8));
        }
        assert_eq!(stalls.unnoted, 100, "one line for the first, none for the others");
        stalls.look(Step::Enter, 20_000, 2 + NOTE_EVERY_NS, 9);
        assert_eq!(stalls.unnoted, 0);
    }
}
