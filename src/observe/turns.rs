//! The last turns that put something into send queues: which send belongs to which of them, and when its last was taken.
//!
//! ```text
//!   queue: empty ─► first byte, stamped with the turn ─ … ─► the kernel has taken all, or a part of it
//!                             │                                      │
//!                             ▼ submit_ns                            ▼ taken_ns
//!   ring:  [ turn | turn | turn | … ]      records from..to were walked in it
//! ```

use std::collections::VecDeque;
use storage::ids::LogSeq;

/// Turns that are remembered.
const TURNS_MAX: usize = 1024;

/// One of them.
#[derive(Clone, Copy, Debug)]
struct Turn {
    /// What its bytes are stamped with: microseconds, wrapping.
    stamp_us: u32,
    submit_ns: u64,
    from: LogSeq,
    to: LogSeq,
    taken_ns: u64,
}

/// One per shard.
#[derive(Debug)]
pub(super) struct Turns(VecDeque<Turn>);

pub(super) const fn memory_bytes_max() -> usize {
    TURNS_MAX * size_of::<Turn>()
}

impl Turns {
    pub fn new() -> Self {
        Self(VecDeque::with_capacity(TURNS_MAX))
    }

    /// A turn is about to give the kernel what it has queued; it walked the records `from..to`.
    pub fn submit(&mut self, stamp_us: u32, submit_ns: u64, from: LogSeq, to: LogSeq) {
        if self.0.len() == TURNS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Turn { stamp_us, submit_ns, from, to, taken_ns: 0 });
    }

    /// A send with this stamp was taken: since when it could have been; `None` where its turn is forgotten.
    pub fn taken(&mut self, stamp_us: u32, ns: u64) -> Option<u64> {
        let newest = self.0.back()?.stamp_us;
        // Most often it is of the turn before. Stamps ascend; a ring that lasted longer than they do may miss one.
        let age_us = newest.wrapping_sub(stamp_us);
        let at = match self.0.iter().rev().take(4).position(|turn| turn.stamp_us == stamp_us) {
            Some(back) => self.0.len() - 1 - back,
            None => self.0.partition_point(|turn| newest.wrapping_sub(turn.stamp_us) > age_us),
        };
        let turn = self.0.get_mut(at).filter(|turn| turn.stamp_us == stamp_us)?;
        turn.taken_ns = turn.taken_ns.max(ns);
        Some(turn.submit_ns)
    }

    /// When the bytes of the turn that walked this record were given to the kernel, and when the last of them was taken so far.
    pub fn of(&self, seq: LogSeq) -> Option<(u64, u64)> {
        let turn = self.0.iter().rev().find(|turn| (turn.from..turn.to).contains(&seq))?;
        Some((turn.submit_ns, turn.taken_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_send_is_of_the_turn_that_queued_its_first_byte() {
        let mut turns = Turns::new();
        for n in 0..3 * TURNS_MAX as u64 {
            turns.submit(n as u32, n * 1000 + 5, n * 10, n * 10 + 10);
        }
        let last = 3 * TURNS_MAX as u64 - 1;
        assert_eq!(turns.taken(last as u32, last * 1000 + 50), Some(last * 1000 + 5));
        assert_eq!(turns.taken(last as u32, last * 1000 + 40), Some(last * 1000 + 5), "an earlier one moves nothing");
        assert_eq!(turns.of(last * 10 + 3), Some((last * 1000 + 5, last * 1000 + 50)));
        let slow = last - TURNS_MAX as u64 / 2;
        assert_eq!(turns.taken(slow as u32, slow * 1000 + 9), Some(slow * 1000 + 5), "a slow one is found, too");
        assert_eq!(turns.taken(0, 1), None, "forgotten");
        assert_eq!((turns.0.len(), turns.of(3)), (TURNS_MAX, None));
    }
}
