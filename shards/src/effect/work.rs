//! Answers to commands about entries, queues and jobs.

use crate::command::{Durability, JobName};
use crate::mailbox::codec::{Reader, Writer};

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WorkReply<'a> {
    /// An entry was put.
    Put {
        /// Session.
        session: &'a str,
        /// Key.
        key: &'a str,
        /// Of the change.
        revision: u64,
        /// The promise earned.
        durability: Durability,
    },
    /// An entry was taken away.
    Deleted {
        /// Session.
        session: &'a str,
        /// Key.
        key: &'a str,
        /// Of the change.
        revision: u64,
        /// The promise earned.
        durability: Durability,
    },
    /// Frames about entries will follow.
    Watching {
        /// Session.
        session: &'a str,
        /// Keys that begin so.
        prefix: &'a str,
    },
    /// None will, but those under way.
    Unwatched {
        /// Session.
        session: &'a str,
        /// Keys that begin so.
        prefix: &'a str,
    },
    /// Every shard knows the queue.
    Declared {
        /// Queue.
        queue: &'a str,
    },
    /// No shard knows the queue any more.
    QueueDropped {
        /// Queue.
        queue: &'a str,
    },
    /// A page of the tenant's queues.
    Queues {
        /// What it tells, as [`put_queue_item`] wrote it: see [`queue_items`].
        items: &'a [u8],
        /// There are more behind the last of them.
        more: bool,
    },
    /// Jobs will come.
    Pulling {
        /// Queue.
        queue: &'a str,
        /// At most so many at once.
        credit: u64,
    },
    /// Something became of a job.
    Job {
        /// Session.
        session: &'a str,
        /// Job.
        job: JobName<'a>,
        /// What.
        happened: JobHappened,
    },
}

/// A queue in a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueItem<'a> {
    /// Name.
    pub queue: &'a str,
    /// Jobs that may be open.
    pub capacity: u64,
    /// How long a worker may be silent.
    pub lease_ms: u64,
    /// When a job ends whatever happens.
    pub deadline_ms: u64,
    /// Attempts.
    pub attempts: u16,
}

/// Appends one.
pub fn put_queue_item(items: &mut Vec<u8>, item: &QueueItem<'_>) {
    Writer(items).text(item.queue).u64(item.capacity).u64(item.lease_ms).u64(item.deadline_ms).u16(item.attempts);
}

/// What [`put_queue_item`] wrote.
pub fn queue_items(items: &[u8]) -> impl Iterator<Item = QueueItem<'_>> {
    let mut r = Reader(items);
    std::iter::from_fn(move || {
        (!r.0.is_empty()).then(|| QueueItem {
            queue: r.text(),
            capacity: r.u64(),
            lease_ms: r.u64(),
            deadline_ms: r.u64(),
            attempts: r.u16(),
        })
    })
}

/// What became of a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobHappened {
    /// The attempt counts as failed; the job is tried again.
    Failed {
        /// Attempts that have ended.
        attempts: u16,
    },
    /// The attempt counts as failed, and was the last: the job is a dead letter.
    Dead {
        /// Attempts that have ended.
        attempts: u16,
    },
    /// The lease goes on for so long.
    Extended {
        /// Milliseconds from now.
        lease_ms: u64,
    },
    /// The partial result is kept, and the lease began anew.
    Progressed,
    /// It is no longer the worker's: its lease or its deadline is over.
    Lost {
        /// Nobody wants it any more.
        cancelled: bool,
    },
    /// A dead letter is a job again.
    Redriven,
    /// A dead letter is forgotten.
    Dropped,
}
