//! Commands whose answer waits for a commit, in log order. One queue per shard.
//!
//! ```text
//!  append ── push_back ─►  [w w w w w w]  ─ pop_front ─ record committed ─► reply
//! ```
//! Commits move by contiguous prefix, so the queue is answered from its front and never searched.

use super::Origin;
use crate::command::Durability;
use crate::effect::JobHappened;
use crate::entries::page::EntriesPage;
use crate::ids::{CommandId, Epoch, Offset};
use std::collections::VecDeque;
use storage::ids::LogSeq;

/// One command.
pub(crate) struct Waiter {
    /// Record it waits for.
    pub log_seq: LogSeq,
    pub origin: Origin,
    pub id: CommandId,
    pub answer: Answer,
}

/// What it will be told.
pub(crate) enum Answer {
    /// Its event's id; session, epoch and offset are read from the record.
    Published,
    /// Its events' ids, and the revision of its last change of an entry.
    Committed { revision: u64 },
    /// Its entry, the only one of the record, at this revision.
    EntrySet { revision: u64 },
    /// What became of a job.
    Job { queue: Box<str>, epoch: Epoch, offset: Offset, happened: JobHappened },
    /// A page that was read from what was not committed yet.
    Entries(Box<EntriesPage>),
    /// Its marker, the only one of the record.
    Marked,
    /// So much of a session is acknowledged for a group.
    GroupAcked { group: Box<str>, offset: Offset },
    /// Its client's life has begun; generation and state are the record's event.
    Opened,
    /// The id of an earlier event that was not committed yet.
    Duplicate { session: Box<str>, epoch: Epoch, offset: Offset, count: Option<u32> },
}

/// The queue.
pub(crate) struct Waiters {
    queue: VecDeque<Waiter>,
    /// What committed means here: `disk`, or `memory` where the server runs without sync.
    pub durability: Durability,
}

impl Waiters {
    pub fn new(durability: Durability) -> Self {
        Self { queue: VecDeque::new(), durability }
    }

    pub fn push(&mut self, waiter: Waiter) {
        debug_assert!(self.queue.back().is_none_or(|last| last.log_seq <= waiter.log_seq), "waiters are in log order");
        self.queue.push_back(waiter);
    }

    pub fn pop(&mut self, committed: LogSeq) -> Option<Waiter> {
        if self.queue.front()?.log_seq < committed { self.queue.pop_front() } else { None }
    }

    pub fn len(&self) -> usize {
        self.queue.len()
    }
}
