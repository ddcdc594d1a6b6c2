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

/// Runs kept for one client. 64 of 32 bytes are as much as ten subscriptions.
const RUNS_MAX: usize = 64;

/// A stretch of deliveries of one cursor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    /// Slot of the subscription.
    cursor: u32,
    /// Number of its first frame; the first of a connection is 1.
    frame: u64,
    offset: Offset,
    count: u64,
}

/// One client's.
#[derive(Clone, Default, Debug)]
pub(crate) struct Ledger {
    frames: u64,
    runs: VecDeque<Run>,
    /// First offsets of runs that were given up, and the last frame of them.
    coarse: Vec<(u32, Offset)>,
    coarse_until: u64,
}

impl Ledger {
    /// For a connection that was sent `frames` before it had a ledger, of which `acknowledged` are worked off; `cursors` had been
    /// sent something: slot and first offset.
    pub fn begin_at(&mut self, frames: u64, acknowledged: u64, cursors: impl Iterator<Item = (u32, Offset)>) {
        self.frames = frames;
        if acknowledged < frames {
            self.coarse.extend(cursors);
            self.coarse_until = frames;
        }
    }

    /// An event frame was queued for a cursor.
    pub fn delivered(&mut self, cursor: u32, offset: Offset) {
        self.frames += 1;
        if let Some(last) = self.runs.back_mut()
            && (last.cursor, last.offset + last.count, last.frame + last.count) == (cursor, offset, self.frames)
        {
            last.count += 1;
            return;
        }
        self.begin(Run { cursor, frame: self.frames, offset, count: 1 });
    }

    /// A gap of a cursor was said. It takes no frame of its own: it has arrived when the next event has.
    pub fn skipped(&mut self, cursor: u32, from: Offset) {
        self.begin(Run { cursor, frame: self.frames + 1, offset: from, count: 1 });
    }

    fn begin(&mut self, run: Run) {
        if self.runs.len() == RUNS_MAX {
            for run in self.runs.drain(..RUNS_MAX / 2) {
                self.coarse_until = run.frame + run.count - 1;
                if self.coarse.iter().all(|(cursor, _)| *cursor != run.cursor) {
                    self.coarse.push((run.cursor, run.offset));
                }
            }
        }
        self.runs.push_back(run);
    }

    /// An event frame of a cursor that this ledger does not place (a pattern's) was queued.
    pub fn passed(&mut self) {
        self.frames += 1;
    }

    /// All frames up to the `frames`th are worked off.
    pub fn acknowledged(&mut self, frames: u64) {
        if frames >= self.coarse_until {
            self.coarse.clear();
        }
        while let Some(first) = self.runs.front_mut() {
            let done = (frames + 1).saturating_sub(first.frame);
            if done < first.count {
                first.frame += done;
                first.offset += done;
                first.count -= done;
                break;
            }
            self.runs.pop_front();
        }
    }

    /// First offset of a cursor that is not acknowledged; `None` where everything it delivered is.
    pub fn unacknowledged(&self, cursor: u32) -> Option<Offset> {
        let coarse = self.coarse.iter().find(|(of, _)| *of == cursor).map(|(_, offset)| *offset);
        coarse.or_else(|| self.runs.iter().find(|run| run.cursor == cursor).map(|run| run.offset))
    }

    /// The subscription in this slot ended; another may take the slot.
    pub fn forget(&mut self, cursor: u32) {
        self.coarse.retain(|(of, _)| *of != cursor);
        self.runs.retain(|run| run.cursor != cursor);
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
                exact &= ledger.coarse.is_empty();
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
                prop_assert!(ledger.runs.len() <= RUNS_MAX);
            }
        }
    }
}
