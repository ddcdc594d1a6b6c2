//! What one shard has recorded since the control plane looked last. Swapped whole, so that nobody waits for anybody.
//!
//! ```text
//!   shard ── records ──► Recorder A ──┐ swap ┌──► Recorder B ── goes on recording
//!   look  ── empty Recorder B ────────┴──────┴──► Recorder A, to be added to the totals and cleared by nobody: it is dropped
//! ```

use super::tenants::{self, Tenants};
use super::{Histogram, Stage, Step};
use shards::refusal::Refusal;

/// Codes of refusals begin here, and there are so many.
const CODES: std::ops::Range<u16> = 4000..4300;

/// See the module.
#[derive(Clone, Debug)]
pub struct Recorder {
    /// By [`Stage`].
    pub stages: [Histogram; Stage::ALL.len()],
    /// By [`Step`], of turns that did something.
    pub steps: [Histogram; Step::ALL.len()],
    /// Such turns.
    pub turns: Histogram,
    /// Times a step took longer than its budget.
    pub stalls: [u64; Step::ALL.len()],
    /// In turns that did something, nanoseconds.
    pub busy_ns: u64,
    /// In turns that did nothing, and asleep.
    pub idle_ns: u64,
    /// Refusals given, by code.
    refusals: Box<[u64]>,
    /// The busiest by name.
    pub tenants: Tenants,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            stages: std::array::from_fn(|_| Histogram::fine()),
            steps: std::array::from_fn(|_| Histogram::fine()),
            turns: Histogram::fine(),
            stalls: [0; Step::ALL.len()],
            busy_ns: 0,
            idle_ns: 0,
            refusals: vec![0; CODES.len()].into(),
            tenants: Tenants::default(),
        }
    }
}

/// Bytes of one without its tenants.
pub const fn own_bytes_max() -> usize {
    (Stage::ALL.len() + Step::ALL.len() + 1) * Histogram::memory_bytes().0 + CODES.end as usize * 8
}

/// Bytes of one at most.
pub const fn memory_bytes_max() -> usize {
    own_bytes_max() + tenants::memory_bytes_max()
}

impl Recorder {
    /// A client was told no.
    pub fn refused(&mut self, refusal: Refusal) {
        if let Some(count) = self.refusals.get_mut(usize::from(refusal.code() - CODES.start)) {
            *count += 1;
        }
    }

    /// How often this no was said.
    pub fn refusals(&self, refusal: Refusal) -> u64 {
        self.refusals.get(usize::from(refusal.code() - CODES.start)).copied().unwrap_or_default()
    }

    /// Adds another one's figures, but for its tenants': [`Totals`](super::Totals) keeps those of all shards together.
    pub fn add(&mut self, other: &Recorder) {
        for (mine, theirs) in self.stages.iter_mut().zip(&other.stages) {
            mine.add(theirs);
        }
        for (mine, theirs) in self.steps.iter_mut().zip(&other.steps) {
            mine.add(theirs);
        }
        self.turns.add(&other.turns);
        for (mine, theirs) in self.stalls.iter_mut().zip(other.stalls) {
            *mine += theirs;
        }
        for (mine, theirs) in self.refusals.iter_mut().zip(&other.refusals) {
            *mine += theirs;
        }
        self.busy_ns += other.busy_ns;
        self.idle_ns += other.idle_ns;
    }

    /// Takes the figures of an earlier state of this one away, but for its tenants'.
    pub fn subtract(&mut self, earlier: &Recorder) {
        for (mine, theirs) in self.stages.iter_mut().zip(&earlier.stages) {
            mine.subtract(theirs);
        }
        for (mine, theirs) in self.steps.iter_mut().zip(&earlier.steps) {
            mine.subtract(theirs);
        }
        self.turns.subtract(&earlier.turns);
        for (mine, theirs) in self.stalls.iter_mut().zip(earlier.stalls) {
            *mine -= theirs;
        }
        for (mine, theirs) in self.refusals.iter_mut().zip(&earlier.refusals) {
            *mine -= theirs;
        }
        self.busy_ns -= earlier.busy_ns;
        self.idle_ns -= earlier.idle_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_count() {
        let mut recorder = Recorder::default();
        Refusal::ALL.iter().for_each(|refusal| recorder.refused(*refusal));
        let earlier = recorder.clone();
        recorder.refused(Refusal::NoSpace);
        recorder.add(&earlier);
        recorder.subtract(&earlier);
        for refusal in Refusal::ALL {
            assert_eq!(recorder.refusals(*refusal), 1 + u64::from(*refusal == Refusal::NoSpace), "{refusal:?}");
        }
    }
}
