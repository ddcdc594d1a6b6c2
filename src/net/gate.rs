//! How many newcomers a turn takes in, how many of those who have gone it sees off, and for whom it is too long to wait.
//!
//! ```text
//!   turn   ├─ reap … deliver ─┤├─ gone ─┤├─ newcomers ─┤ enter ┤      newcomers per turn, and gone (allowance)
//!          └───────────────── turn_us ────────────────────────┘       grows while turns end in time and somebody waits,
//!                  longer than turn_newcomers_us_max?                  shrinks in proportion when they do not
//!                  input of those who are in waits for room?           halves: a newcomer's first word would wait behind it
//!
//!   waiting × us_each > newcomer_wait_us_max                   one more is told to come back instead of waiting
//! ```
//! Everybody who is there pays for a turn's length: an event takes about three turns from its publisher to its readers. So the
//! length of the turn is what is steered, whatever made it long: newcomers, the others' work, or somebody else on the core. A few
//! newcomers are taken in however long turns are: a busy server must not become one that nobody can reach.
//!
//! Everything here is a function of numbers that are passed in. One per shard, touched only by its thread.

use std::ops::RangeInclusive;

/// Newcomers that a turn takes in: at least, at most.
const TURN_NEWCOMERS: RangeInclusive<u32> = 4..=256;
/// Before anything was measured.
const TURN_NEWCOMERS_AT_FIRST: u32 = 32;
const NEWCOMER_US_AT_FIRST: u64 = 100;
/// Accepts that stand ready: so many sockets come in one turn. More than are taken in, or nobody could go first.
const ACCEPTS: RangeInclusive<u32> = 8..=32;
/// A refused newcomer is asked to come back within these bounds, seconds.
const RETRY_AFTER_S: RangeInclusive<u64> = 1..=60;
/// Spread of those who come back, where the line is shorter than this.
const RETRY_SPREAD_MS_MIN: u64 = 2000;

/// Bounds that are configured.
#[derive(Clone, Copy, Debug)]
pub struct GateConfig {
    /// A turn that takes newcomers in aims to end within this.
    pub turn_newcomers_us_max: u64,
    /// Who would wait longer than this for its turn is refused; those who come back to a life of theirs wait as long as they like.
    pub newcomer_wait_us_max: u64,
}

/// Connections whose input waits for room: more, and the shard has as many clients as it can serve just now.
const HELD_MAX: usize = 16;

/// What a turn that took newcomers in, or saw somebody off, was like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Past {
    /// From its beginning to its end.
    pub turn_us: u64,
    /// Newcomers it took in.
    pub taken: u32,
    /// Those whose peers had gone that it saw off.
    pub gone: u32,
    /// Newcomers that it left waiting.
    pub waiting: usize,
    /// Those who have gone that it left.
    pub leaving: usize,
    /// Connections whose input waits for room.
    pub held: usize,
}

/// The gate of one shard.
#[derive(Debug)]
pub struct Gate {
    config: GateConfig,
    /// Newcomers that this turn may take in.
    allowance: u32,
    /// Newcomers that it has taken in.
    taken: u32,
    /// Connections that it has seen off.
    gone: u32,
    /// Time for each newcomer while some wait, the work of all others included.
    us_each: u64,
}

impl Gate {
    /// Open.
    pub fn new(config: GateConfig) -> Self {
        Self { config, allowance: TURN_NEWCOMERS_AT_FIRST, taken: 0, gone: 0, us_each: NEWCOMER_US_AT_FIRST }
    }

    /// This turn takes one more.
    pub fn is_open(&self) -> bool {
        self.taken < self.allowance
    }

    /// One is taken in.
    pub fn take(&mut self) {
        self.taken += 1;
    }

    /// How many of those who have gone this turn sees off.
    pub fn see_off(&mut self, waiting: usize) -> usize {
        self.gone = self.allowance.min(u32::try_from(waiting).unwrap_or(u32::MAX));
        self.gone as usize
    }

    /// This turn has taken somebody in, or seen somebody off.
    pub fn was_used(&self) -> bool {
        self.taken > 0 || self.gone > 0
    }

    /// How many accepts are to stand ready.
    pub fn accepts(&self) -> u32 {
        (2 * self.allowance).clamp(*ACCEPTS.start(), *ACCEPTS.end())
    }

    /// The turn is over; the next one begins.
    pub fn turned(&mut self, turn_us: u64, waiting: usize, leaving: usize, held: usize) {
        let (taken, gone) = (std::mem::take(&mut self.taken), std::mem::take(&mut self.gone));
        let past = Past { turn_us, taken, gone, waiting, leaving, held };
        self.allowance = allowance_after(self.allowance, self.config.turn_newcomers_us_max, past);
        self.us_each = us_each_after(self.us_each, past);
    }

    /// How long somebody waits who has so many before it.
    pub fn wait_us(&self, ahead: usize) -> u64 {
        (ahead as u64).saturating_mul(self.us_each)
    }

    /// Whether that is too long.
    pub fn is_too_long(&self, ahead: usize) -> bool {
        self.wait_us(ahead) > self.config.newcomer_wait_us_max
    }
}

/// Newcomers for the next turn. Halves and doubles at most: one turn in which the thread was not running says little.
pub fn allowance_after(present: u32, turn_us_max: u64, past: Past) -> u32 {
    let served = past.taken.max(past.gone);
    if served == 0 {
        return present;
    }
    let in_time = u64::from(served).saturating_mul(turn_us_max) / past.turn_us.max(1);
    let in_time = u32::try_from(in_time).unwrap_or(u32::MAX);
    let next = match past.turn_us > turn_us_max {
        _ if past.held > HELD_MAX => present / 2,
        true => in_time.max(present / 2).min(present),
        // More would have been taken, and fitted.
        false if past.waiting > 0 || past.leaving > 0 => in_time.min(present.saturating_mul(2)).max(present),
        false => present,
    };
    next.clamp(*TURN_NEWCOMERS.start(), *TURN_NEWCOMERS.end())
}

/// Time for each newcomer, smoothed. Only turns that left somebody waiting say how fast a line moves.
pub fn us_each_after(present: u64, past: Past) -> u64 {
    if past.taken == 0 || past.waiting == 0 {
        return present;
    }
    let each = past.turn_us / u64::from(past.taken);
    ((present * 7 + each) / 8).max(1)
}

/// Seconds after which a refused newcomer is to come back: not before those who wait now are through, and all who are refused
/// now spread over as long again. `random`: any number.
pub fn retry_after_s(wait_ms: u64, random: u64) -> u64 {
    let spread_ms = wait_ms.max(RETRY_SPREAD_MS_MIN);
    let after_ms = wait_ms.saturating_add(random % spread_ms);
    after_ms.div_ceil(1000).clamp(*RETRY_AFTER_S.start(), *RETRY_AFTER_S.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET_US: u64 = 1000;

    fn past(turn_us: u64, taken: u32, waiting: usize) -> Past {
        Past { turn_us, taken, waiting, ..Past::default() }
    }

    fn after(present: u32, turn_us: u64, taken: u32, waiting: usize) -> u32 {
        allowance_after(present, BUDGET_US, past(turn_us, taken, waiting))
    }

    #[test]
    fn long_turns_take_fewer_in_proportion_and_never_none() {
        assert_eq!(after(40, 1250, 40, 9), 32);
        assert_eq!(after(40, 100_000, 40, 9), 20, "one turn says little");
        assert_eq!(after(40, 1250, 40, 0), 32, "whoever made it long");
        assert_eq!(after(40, 100_000, 1, 0), 20);
        assert_eq!(after(5, 100_000, 5, 9), 4, "a busy server can be reached");
        assert_eq!(after(4, u64::MAX, u32::MAX, 9), 4);
        assert_eq!(after(40, 1100, 60, 9), 40, "a long turn never raises it");
    }

    #[test]
    fn those_who_go_are_seen_off_as_turns_allow() {
        let gone =
            |turn_us, gone, leaving| allowance_after(40, BUDGET_US, Past { turn_us, gone, leaving, ..Past::default() });
        assert_eq!((gone(1250, 40, 9), gone(800, 40, 9), gone(800, 40, 0)), (32, 50, 40));
        let mut gate = Gate::new(GateConfig { turn_newcomers_us_max: BUDGET_US, newcomer_wait_us_max: 0 });
        assert_eq!((gate.see_off(5), gate.was_used(), gate.see_off(1000)), (5, true, 32));
        gate.turned(4000, 0, 968, 0);
        assert_eq!((gate.was_used(), gate.see_off(1000), gate.see_off(0), gate.was_used()), (false, 16, 0, false));
    }

    #[test]
    fn nobody_more_is_taken_in_while_those_who_are_in_wait_for_room() {
        let busy = |turn_us, held| {
            allowance_after(40, BUDGET_US, Past { turn_us, taken: 40, waiting: 9, held, ..Past::default() })
        };
        assert_eq!((busy(100, 16), busy(100, 17), busy(1250, 17)), (80, 20, 20));
        assert_eq!(
            allowance_after(4, BUDGET_US, Past { taken: 4, held: 1000, ..Past::default() }),
            4,
            "it can be reached"
        );
    }

    #[test]
    fn short_turns_take_more_only_while_somebody_waits() {
        assert_eq!(after(40, 800, 40, 9), 50);
        assert_eq!(after(40, 100, 40, 9), 80, "one turn says little");
        assert_eq!(after(40, 100, 40, 0), 40);
        assert_eq!(after(40, 900, 1, 9), 40, "a short turn never lowers it");
        assert_eq!(after(200, 0, 200, 9), 256);
        assert_eq!(after(40, 100_000, 0, 9), 40, "a turn without newcomers says nothing about them");
    }

    /// A model of a core: each newcomer costs, others' work costs. The allowance settles where turns end in time.
    #[test]
    fn it_settles_where_turns_end_in_time() {
        for (newcomer_us, others_us) in [(10, 0), (50, 0), (50, 600), (200, 100), (50, 5000)] {
            let mut gate = Gate::new(GateConfig { turn_newcomers_us_max: BUDGET_US, newcomer_wait_us_max: 2_000_000 });
            let mut turns = Vec::new();
            for _ in 0..200 {
                while gate.is_open() {
                    gate.take();
                }
                turns.push(others_us + u64::from(gate.taken) * newcomer_us);
                gate.turned(*turns.last().unwrap(), 10_000, 0, 0);
            }
            let settled = &turns[100..];
            let least = others_us + 4 * newcomer_us;
            let fits = *settled.iter().max().unwrap() <= BUDGET_US.max(least);
            assert!(fits, "{newcomer_us} {others_us}: {settled:?}");
            assert!(*settled.iter().min().unwrap() >= (BUDGET_US / 2).min(256 * newcomer_us), "{settled:?}");
            let each = *settled.last().unwrap() / u64::from(gate.allowance);
            assert!(gate.wait_us(100).abs_diff(100 * each) <= 10 * each + 800, "{} {each}", gate.us_each);
        }
    }

    #[test]
    fn a_line_that_takes_too_long_is_not_joined() {
        let mut gate = Gate::new(GateConfig { turn_newcomers_us_max: BUDGET_US, newcomer_wait_us_max: 2_000_000 });
        assert!(!gate.is_too_long(20_000) && gate.is_too_long(20_001), "as long as nothing was measured");
        for _ in 0..100 {
            gate.take();
            gate.turned(1000, 1, 0, 0);
        }
        assert!(gate.is_too_long(2100) && !gate.is_too_long(1900), "{}", gate.us_each);
        gate.take();
        gate.turned(50, 0, 0, 0);
        assert!(gate.is_too_long(2100), "an empty line says nothing about a long one");
    }

    #[test]
    fn the_refused_come_back_after_the_line_and_not_at_once() {
        assert_eq!(retry_after_s(0, 0), 1);
        assert_eq!(retry_after_s(0, 1999), 2);
        assert_eq!(retry_after_s(5000, 0), 5);
        assert_eq!(retry_after_s(5000, 4999), 10);
        assert_eq!(retry_after_s(u64::MAX, 7), 60);
        let seconds: std::collections::BTreeSet<u64> = (0..10_000).map(|n| retry_after_s(5000, n * 7)).collect();
        assert_eq!(seconds.into_iter().collect::<Vec<_>>(), [5, 6, 7, 8, 9, 10]);
    }
}
