//! How far a client has acknowledged its pattern feed, slice by slice.
//!
//! ```text
//!   frames    1   2     3   4   5     of the connection, whatever they brought
//!   events    3.8 (…)   9.1 9.2 (…)   slice.sequence; frames of session subscriptions between them
//!   position  3.8 9.0 ──────┘ moves with acknowledgements, never past them
//! ```

use crate::ids::SliceSeq;
use std::collections::{BTreeMap, VecDeque};

/// Pattern events delivered and not acknowledged that are remembered one by one; beyond, the position stands still until
/// everything is acknowledged.
const PATTERN_EVENTS_MAX: usize = 1024;

/// One client's, while it has or had a pattern feed.
#[derive(Default)]
pub(crate) struct PatternSeen {
    delivered: BTreeMap<u16, SliceSeq>,
    acknowledged: BTreeMap<u16, SliceSeq>,
    events: VecDeque<(u64, u16, SliceSeq)>,
    /// More was delivered than is remembered.
    overflown: bool,
}

impl PatternSeen {
    /// The feed begins here.
    pub fn begin(&mut self, position: impl IntoIterator<Item = (u16, SliceSeq)>) {
        self.delivered = position.into_iter().collect();
        self.acknowledged = self.delivered.clone();
        self.events.clear();
        self.overflown = false;
    }

    /// An event of the feed took the `frame`th frame.
    pub fn delivered(&mut self, frame: u64, slice: u16, seq: SliceSeq) {
        let at = self.delivered.entry(slice).or_default();
        *at = seq.max(*at);
        if self.events.len() == PATTERN_EVENTS_MAX {
            self.overflown = true;
        }
        if !self.overflown {
            self.events.push_back((frame, slice, seq));
        }
    }

    /// All frames up to the `frames`th, of `of`, are worked off.
    pub fn acknowledge(&mut self, frames: u64, of: u64) {
        while let Some((_, slice, seq)) = self.events.front().copied().filter(|event| event.0 <= frames) {
            self.events.pop_front();
            let at = self.acknowledged.entry(slice).or_default();
            *at = seq.max(*at);
        }
        if self.overflown && frames >= of {
            self.overflown = false;
            self.acknowledged = self.delivered.clone();
        }
    }

    pub fn position(&self) -> Vec<(u16, SliceSeq)> {
        self.acknowledged.iter().map(|(slice, seq)| (*slice, *seq)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_position_moves_with_acknowledgements_and_never_past_them() {
        const MANY: u64 = 2 * PATTERN_EVENTS_MAX as u64;
        let mut seen = PatternSeen::default();
        seen.begin([(3, 7)]);
        seen.delivered(1, 3, 8);
        seen.delivered(3, 9, 1);
        assert_eq!(seen.position(), [(3, 7)]);
        seen.acknowledge(2, 3);
        assert_eq!(seen.position(), [(3, 8)]);
        for seq in 2..2 + MANY {
            seen.delivered(2 + seq, 9, seq);
        }
        seen.acknowledge(4, 3 + MANY);
        assert_eq!(seen.position(), [(3, 8), (9, 2)]);
        seen.acknowledge(2000, 3 + MANY);
        assert!(seen.position()[1].1 <= 2 + 2000 - 4, "more than is remembered: it stands still");
        seen.acknowledge(3 + MANY, 3 + MANY);
        assert_eq!(seen.position()[1].1, 1 + MANY);
    }
}
