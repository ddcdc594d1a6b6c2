//! Collecting what changed for the next checkpoint, over many turns, while appends go on.
//!
//! ```text
//!   collect_begin ─► collect ─► collect … ─► collect_end ─► Draft ─► (all of it committed) ─► job ─► installed | failed
//!       dirty ────────────────────────────► collected ───────────────────────────────────────► clean | dirty
//!                                               └── appended to meanwhile: dirty again, and for the next one
//! ```

use super::{Catalog, List, NONE};
use crate::checkpoint::{CheckpointIndex, Draft, LogPosition};
use crate::ids::LogSeq;

/// Bytes of an entry with a few runs and markers.
const ENTRY_BYTES_USUAL: usize = 192;

/// A draft in the making.
#[derive(Debug)]
pub(super) struct Collecting {
    pub draft: Draft,
    /// Partitions at the front of the dirty list that were dirty when the collection began.
    left: usize,
}

impl Catalog {
    /// Begins a checkpoint: everything dirty now will be in it. `position` is where a replay over it must start: the
    /// beginning of the CommitGroup now open. One at a time.
    pub fn collect_begin(&mut self, position: LogPosition) {
        assert!(self.collecting.is_none() && self.lists[List::Collected as usize].len == 0, "one checkpoint at a time");
        let left = self.lists[List::Dirty as usize].len;
        // Asked for at once: a buffer that doubles would stop a turn for a copy of all that was collected.
        let (bytes, entries) = (Vec::with_capacity(left * ENTRY_BYTES_USUAL), Vec::with_capacity(left));
        self.collecting = Some(Collecting { draft: Draft { bytes, entries, position, ..Draft::default() }, left });
    }

    /// Collects up to `limit` partitions; true when none is left. Call it once a turn.
    pub fn collect(&mut self, limit: usize) -> bool {
        let mut collecting = self.collecting.take().expect("collect follows collect_begin");
        for _ in 0..limit.min(collecting.left) {
            let index = self.lists[List::Dirty as usize].front;
            let partition = &self.residents[index as usize].partition;
            let start = collecting.draft.bytes.len();
            partition.encode(&mut collecting.draft.bytes);
            collecting.draft.entries.push((partition.id(), start..collecting.draft.bytes.len()));
            self.move_to(index, List::Collected);
            collecting.left -= 1;
        }
        let done = collecting.left == 0;
        self.collecting = Some(collecting);
        done
    }

    /// Finishes the draft. `log_next` is the next record the log will append: the checkpoint may be made durable only
    /// when all before it is committed.
    pub fn collect_end(&mut self, log_next: LogSeq, clean_stop: bool) -> Draft {
        let Collecting { mut draft, left } = self.collecting.take().expect("collect_end follows collect");
        assert_eq!(left, 0, "the collection is not complete");
        draft.slice_next.clone_from(&self.slice_next);
        (draft.through, draft.clean_stop) = (log_next, clean_stop);
        draft
    }

    /// The draft's checkpoint is durable: lookups go there from now on, and what did not change since is clean.
    pub fn checkpoint_installed(&mut self, index: CheckpointIndex) {
        self.checkpoint = Some(index);
        self.release_collected(|pins| if pins > 0 { List::Pinned } else { List::Idle });
        while self.residents.len() > self.resident_max && self.evict_one() {}
    }

    /// The draft's checkpoint could not be made: all it held is dirty again.
    pub fn checkpoint_failed(&mut self) {
        self.collecting = None;
        self.release_collected(|_| List::Dirty);
    }

    fn release_collected(&mut self, to: impl Fn(u32) -> List) {
        loop {
            let index = self.lists[List::Collected as usize].front;
            if index == NONE {
                return;
            }
            self.move_to(index, to(self.residents[index as usize].pins));
        }
    }
}
