//! What a client was sent and has not acknowledged: from where its cursors must go on if this connection is lost.
//!
//! ```text
//!   frames     1 2 3 4 5 │ 6 7 8 9          acknowledged up to 5
//!   runs                 │ A:40..42 B:7 A:42..43
//!   positions            └ A stands at 40, B at 7, everybody else at its cursor
//! ```
//! A gap that was said is like an event: who is lost before it arrives must be told again.
//!
//! Frames are counted, not named, in an acknowledgement; neighbours of one cursor are one run. Where a client leaves more
//! runs open than [`RUNS_MAX`], the older half is remembered by its first offsets alone until all of it is acknowledged:
//! a resume then repeats a little more than it must, and never less.

use crate::ids::Offset;
use std::collections::VecDeque;

/// Runs kept for one client. 64 of 24 bytes are as much as six subscriptions.
const RUNS_MAX: usize = 64;

/// A stretch of deliveries of one cursor.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Run {
    /// Slot of the subscription.
    cursor: u32,
    /// Deliveries; 0: none.
    count: u32,
    /// Number of its first frame; the first of a connection is 1.
    frame: u64,
    offset: Offset,
}

/// One client's. Most clients listen to one session and acknowledge what they get: they have one run, or none.
#[derive(Clone, Default, Debug)]
pub(crate) struct Ledger {
    frames: u64,
    newest: Run,
    older: Option<Box<Older>>,
}

#[derive(Clone, Default, Debug)]
struct Older {
    runs: VecDeque<Run>,
    /// First offsets of runs that were given up, and the last frame of them.
    coarse: Vec<(u32, Offset)>,
    coarse_until: u64,
}

const _: () = assert!(size_of::<Ledger>() <= 40 && size_of::<Run>() == 24);

/// Bytes beside its own, all runs open; first offsets of what was given up are at most as many as subscriptions.
pub(crate) const HEAP_BYTES_MAX: usize = size_of::<Older>() + RUNS_MAX * size_of::<Run>();

impl Run {
    /// All frames up to the `frames`th are worked off. `true`: of this run too.
    fn acknowledged(&mut self, frames: u64) -> bool {
        let done = (frames + 1).saturating_sub(self.frame);
        if done >= u64::from(self.count) {
            return true;
        }
        self.frame += done;
        self.offset += done;
        self.count -= done as u32;
        false
    }
}

impl Ledger {
    /// For a connection that was sent `frames` before it had a ledger, of which `acknowledged` are worked off; `cursors` had been
    /// sent something: slot and first offset.
    pub fn begin_at(&mut self, frames: u64, acknowledged: u64, cursors: impl Iterator<Item = (u32, Offset)>) {
        self.frames = frames;
        if acknowledged < frames {
            let older = self.older.get_or_insert_default();
            older.coarse.extend(cursors);
            older.coarse_until = frames;
        }
    }

    /// Event frames that were queued.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// An event frame was queued for a cursor.
    pub fn delivered(&mut self, cursor: u32, offset: Offset) {
        self.frames += 1;
        let last = &mut self.newest;
        let count = u64::from(last.count);
        if (last.cursor, last.offset + count, last.frame + count) == (cursor, offset, self.frames)
            && 0 < last.count
            && last.count < u32::MAX
        {
            last.count += 1;
            return;
        }
        self.begin(Run { cursor, count: 1, frame: self.frames, offset });
    }

    /// A gap of a cursor was said. It takes no frame of its own: it has arrived when the next event has.
    pub fn skipped(&mut self, cursor: u32, from: Offset) {
        self.begin(Run { cursor, count: 1, frame: self.frames + 1, offset: from });
    }

    fn begin(&mut self, run: Run) {
        let before = std::mem::replace(&mut self.newest, run);
        if before.count == 0 {
            return;
        }
        let Older { runs, coarse, coarse_until } = &mut **self.older.get_or_insert_default();
        if runs.len() + 1 == RUNS_MAX {
            for run in runs.drain(..RUNS_MAX / 2) {
                *coarse_until = run.frame + u64::from(run.count) - 1;
                if coarse.iter().all(|(cursor, _)| *cursor != run.cursor) {
                    coarse.push((run.cursor, run.offset));
                }
            }
        }
        runs.push_back(before);
    }

    /// An event frame of a cursor that this ledger does not place (a pattern's) was queued.
    pub fn passed(&mut self) {
        self.frames += 1;
    }

    /// All frames up to the `frames`th are worked off.
    pub fn acknowledged(&mut self, frames: u64) {
        if let Some(older) = &mut self.older {
            if frames >= older.coarse_until {
                older.coarse.clear();
            }
            while let Some(first) = older.runs.front_mut() {
                if !first.acknowledged(frames) {
                    return;
                }
                older.runs.pop_front();
            }
        }
        if self.newest.acknowledged(frames) {
            self.newest.count = 0;
        }
    }

    /// First offset of a cursor that is not acknowledged; `None` where everything it delivered is.
    pub fn unacknowledged(&self, cursor: u32) -> Option<Offset> {
        let newest = Some(self.newest).filter(|run| run.count > 0 && run.cursor == cursor).map(|run| run.offset);
        let Some(older) = &self.older else { return newest };
        let coarse = older.coarse.iter().find(|(of, _)| *of == cursor).map(|(_, offset)| *offset);
        let run = || older.runs.iter().find(|run| run.cursor == cursor).map(|run| run.offset);
        coarse.or_else(run).or(newest)
    }

    /// The subscription in this slot ended; another may take the slot.
    pub fn forget(&mut self, cursor: u32) {
        if self.newest.cursor == cursor {
            self.newest.count = 0;
        }
        if let Some(older) = &mut self.older {
            older.coarse.retain(|(of, _)| *of != cursor);
            older.runs.retain(|run| run.cursor != cursor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_run_is_acknowledged_in_its_middle() {
        let mut ledger = Ledger::default();
        for offset in 40..43 {
            ledger.delivered(1, offset);
        }
        ledger.delivered(2, 7);
        ledger.delivered(1, 43);
        assert_eq!((ledger.unacknowledged(1), ledger.unacknowledged(2)), (Some(40), Some(7)));
        ledger.acknowledged(2);
        assert_eq!((ledger.unacknowledged(1), ledger.unacknowledged(2)), (Some(42), Some(7)));
        ledger.acknowledged(4);
        assert_eq!((ledger.unacknowledged(1), ledger.unacknowledged(2)), (Some(43), None));
        ledger.acknowledged(5);
        assert_eq!(ledger.unacknowledged(1), None);
    }

    #[test]
    fn a_gap_has_arrived_when_the_next_event_has() {
        let mut ledger = Ledger::default();
        ledger.delivered(1, 4);
        ledger.skipped(1, 5);
        ledger.acknowledged(1);
        assert_eq!(ledger.unacknowledged(1), Some(5), "said, and nothing after it acknowledged");
        ledger.delivered(1, 6);
        assert_eq!(ledger.unacknowledged(1), Some(5));
        ledger.acknowledged(2);
        assert_eq!(ledger.unacknowledged(1), None);
    }

    #[test]
    fn a_frame_of_a_pattern_between_two_events_ends_a_run() {
        let mut ledger = Ledger::default();
        ledger.delivered(1, 0);
        ledger.passed();
        ledger.delivered(1, 1);
        ledger.acknowledged(2);
        assert_eq!(ledger.unacknowledged(1), Some(1));
    }

    #[test]
    fn frames_from_before_it_began_count_and_come_again() {
        let mut ledger = Ledger::default();
        ledger.begin_at(2, 1, [(1, 40)].into_iter());
        ledger.delivered(1, 42);
        assert_eq!(ledger.unacknowledged(1), Some(40));
        ledger.acknowledged(2);
        assert_eq!(ledger.unacknowledged(1), Some(42), "the third frame is not worked off by two");
        ledger.acknowledged(3);
        assert_eq!(ledger.unacknowledged(1), None);
    }

    proptest! {
        /// Against a list of all frames: never later than the first frame that is not acknowledged, and exactly it as long as
        /// no run was given up.
        #[test]
        fn never_says_more_was_acknowledged_than_was(
            steps in proptest::collection::vec((0u32..4, 0u32..10, 0u64..40), 1..400),
        ) {
            let mut ledger = Ledger::default();
            // Cursor and offset of each frame; of a pattern's only that it was there.
            let mut frames: Vec<(u32, u64)> = Vec::new();
            // Gaps: cursor, offset, frames before.
            let mut gaps: Vec<(u32, u64, usize)> = Vec::new();
            let mut next = [0u64; 4];
            let mut acknowledged = 0;
            let mut exact = true;
            for (cursor, what, jump) in steps {
                if what < 2 {
                    acknowledged = (acknowledged + jump).min(frames.len() as u64);
                    ledger.acknowledged(acknowledged);
                } else if what == 2 {
                    ledger.passed();
                    frames.push((99, 0));
                } else if what == 3 {
                    ledger.skipped(cursor, next[cursor as usize]);
                    gaps.push((cursor, next[cursor as usize], frames.len()));
                    next[cursor as usize] += 1 + jump % 3;
                } else {
                    // Now and then an expired event leaves a hole.
                    next[cursor as usize] += u64::from(jump == 0);
                    ledger.delivered(cursor, next[cursor as usize]);
                    frames.push((cursor, next[cursor as usize]));
                    next[cursor as usize] += 1;
                }
                exact &= ledger.older.as_ref().is_none_or(|older| older.coarse.is_empty());
                for cursor in 0..4 {
                    let event = frames[acknowledged as usize..].iter().find(|frame| frame.0 == cursor).map(|f| f.1);
                    let open = gaps.iter().find(|gap| gap.0 == cursor && gap.2 >= acknowledged as usize).map(|gap| gap.1);
                    let truth = [event, open].into_iter().flatten().min();
                    let said = ledger.unacknowledged(cursor);
                    if exact {
                        prop_assert_eq!(said, truth);
                    } else if let Some(truth) = truth {
                        prop_assert!(said.is_some_and(|said| said <= truth), "{:?} {:?}", said, truth);
                    }
                }
                prop_assert!(ledger.older.as_ref().is_none_or(|older| older.runs.len() < RUNS_MAX));
            }
        }
    }
}
