//! Answers to commands about entries, queues and jobs.

use crate::command::{Durability, JobName, Lease};
use crate::ids::Offset;
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
    /// Every shard knows the group.
    GroupDeclared {
        /// Group.
        group: &'a str,
    },
    /// No shard knows the group any more.
    GroupDropped {
        /// Group.
        group: &'a str,
    },
    /// Runs will come; with credit 0 none will any more.
    GroupJoined {
        /// Group.
        group: &'a str,
        /// Of at most so many sessions at once.
        credit: u64,
    },
    /// The group's marker stands here.
    GroupAcked {
        /// Session.
        session: &'a str,
        /// Group.
        group: &'a str,
        /// The next offset the group wants.
        offset: Offset,
    },
    /// A run is no longer its member's.
    GroupLost {
        /// Session.
        session: &'a str,
        /// Group.
        group: &'a str,
        /// The lease that is over.
        lease: Lease,
    },
    /// Markers with lag.
    Markers {
        /// What it tells, as [`put_marker_item`] wrote it: see [`marker_items`].
        items: &'a [u8],
        /// Where the next page begins, if there is one.
        next: Option<u64>,
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

/// A marker in a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MarkerItem<'a> {
    /// Session; empty in the list of one session.
    pub session: &'a str,
    /// Its name; empty where it is a group's.
    pub name: &'a str,
    /// The group; empty where it is none's, and in the list of one group.
    pub group: &'a str,
    /// Next offset wanted.
    pub offset: Offset,
    /// Offsets from there to the tail.
    pub lag: u64,
    /// A member of the group has the session.
    pub is_held: bool,
}

/// Appends one.
pub fn put_marker_item(items: &mut Vec<u8>, item: &MarkerItem<'_>) {
    let mut w = Writer(items);
    w.text(item.session).text(item.name).text(item.group).u64(item.offset).u64(item.lag).u8(u8::from(item.is_held));
}

/// What [`put_marker_item`] wrote.
pub fn marker_items(items: &[u8]) -> impl Iterator<Item = MarkerItem<'_>> {
    let mut r = Reader(items);
    std::iter::from_fn(move || {
        (!r.0.is_empty()).then(|| MarkerItem {
            session: r.text(),
            name: r.text(),
            group: r.text(),
            offset: r.u64(),
            lag: r.u64(),
            is_held: r.u8() == 1,
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
