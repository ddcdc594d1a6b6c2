//! Newcomers that are not connections yet: those who have not said what they want, and those who wait for their turn.
//!
//! ```text
//!   accepted ─► Silent ── too many: the oldest out ──► closed
//!                 │ whole request
//!                 ▼
//!               Lines ─┬─ resumes (one place for each client) ──► first
//!                      └─ others ──────────────────────────────► then
//! ```
//! Both hold ids only; who has gone meanwhile is found out when its id comes up. One per shard, touched only by its thread.

use shards::ids::ConnectionId;
use std::collections::{HashSet, VecDeque};

/// Who waits for its turn, in order of arrival.
#[derive(Default)]
pub(super) struct Lines {
    /// With the mark of the client that comes back.
    resumes: VecDeque<(ConnectionId, u64)>,
    /// Marks of those: a token that is shown often gives one place in front.
    marks: HashSet<u64>,
    others: VecDeque<ConnectionId>,
}

impl Lines {
    pub fn len(&self) -> usize {
        self.resumes.len() + self.others.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether this client's mark gives a place among the resumes.
    pub fn is_first(&self, resumes: Option<u64>) -> bool {
        resumes.is_some_and(|mark| !self.marks.contains(&mark))
    }

    /// How many would stand before one more.
    pub fn ahead(&self, first: bool) -> usize {
        if first { self.resumes.len() } else { self.len() }
    }

    pub fn join(&mut self, id: ConnectionId, resumes: Option<u64>) {
        match resumes {
            Some(mark) if self.marks.insert(mark) => self.resumes.push_back((id, mark)),
            _ => self.others.push_back(id),
        }
    }

    pub fn next(&mut self) -> Option<ConnectionId> {
        match self.resumes.pop_front() {
            Some((id, mark)) => {
                self.marks.remove(&mark);
                Some(id)
            }
            None => self.others.pop_front(),
        }
    }
}

/// Who has been accepted and not sent a whole request yet.
#[derive(Default)]
pub(super) struct Silent {
    /// Oldest first; those who have spoken or gone stay until they come up.
    order: VecDeque<ConnectionId>,
    /// Those of them that are still silent.
    count: usize,
}

impl Silent {
    pub fn count(&self) -> usize {
        self.count
    }

    /// One more. Those at the front who are not `silent` any more are forgotten.
    pub fn add(&mut self, id: ConnectionId, silent: impl Fn(ConnectionId) -> bool) {
        while self.order.front().is_some_and(|oldest| !silent(*oldest)) {
            self.order.pop_front();
        }
        self.order.push_back(id);
        self.count += 1;
    }

    /// One has spoken, or is gone.
    pub fn leave(&mut self) {
        self.count -= 1;
    }

    /// The one that has been silent longest.
    pub fn oldest(&mut self, silent: impl Fn(ConnectionId) -> bool) -> Option<ConnectionId> {
        while let Some(id) = self.order.front().copied() {
            if silent(id) {
                return Some(id);
            }
            self.order.pop_front();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(slot: u32) -> ConnectionId {
        ConnectionId { slot, generation: 1 }
    }

    #[test]
    fn resumes_go_first_and_a_token_gives_one_place() {
        let mut lines = Lines::default();
        lines.join(id(0), None);
        lines.join(id(1), Some(7));
        lines.join(id(2), None);
        assert!(!lines.is_first(Some(7)) && lines.is_first(Some(8)) && !lines.is_first(None));
        lines.join(id(3), Some(7));
        lines.join(id(4), Some(8));
        assert_eq!((lines.ahead(true), lines.ahead(false), lines.len()), (2, 5, 5));
        let order: Vec<u32> = std::iter::from_fn(|| lines.next()).map(|id| id.slot).collect();
        assert_eq!(order, [1, 4, 0, 2, 3]);
        assert!(lines.is_empty() && lines.is_first(Some(7)), "a place is given again");
    }

    #[test]
    fn the_oldest_silent_one_is_found_and_the_others_are_forgotten() {
        let mut silent = Silent::default();
        let spoken = |id: ConnectionId| id.slot % 2 == 1;
        for slot in 0..6 {
            silent.add(id(slot), spoken);
        }
        assert_eq!(silent.order.len(), 5, "the first is no longer at the front");
        for _ in 0..3 {
            silent.leave();
        }
        assert_eq!(silent.count(), 3);
        assert_eq!(silent.oldest(spoken), Some(id(1)));
        assert_eq!(silent.oldest(|id| id.slot > 3), Some(id(4)));
        assert_eq!(silent.oldest(|_| false), None);
    }
}
