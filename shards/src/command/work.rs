//! What a client may ask about entries, queues and jobs.
//!
//! ```text
//!   entries of a session, or of a bucket of the tenant     put · delete · get · list · watch
//!   queues of the tenant                                   declare · drop · list · pull · dead letters
//!   a job, by queue and event, under a lease               fail · extend · progress       dead: redrive · drop
//! ```
//! A bucket is a session that no client can name otherwise: `$entries.<bucket>`.

use crate::ids::{Epoch, Offset};

/// Beginning of the names of sessions that hold entries of a tenant.
pub const BUCKET: &str = "$entries.";

/// A change of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewEntry<'a> {
    /// Key.
    pub key: &'a str,
    /// JSON; `None` = take it away.
    pub value: Option<&'a [u8]>,
    /// Life in ms; `None` = for ever.
    pub ttl_ms: Option<u64>,
    /// Only where the entry has this revision; 0 = only where there is none.
    pub if_revision: Option<u64>,
}

/// What is asked about entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryAsk<'a> {
    /// Change one.
    Set(NewEntry<'a>),
    /// Tell one.
    Get {
        /// Key.
        key: &'a str,
    },
    /// Tell those whose keys begin so.
    List {
        /// Beginning.
        prefix: &'a str,
        /// Go on behind this key.
        after: Option<&'a str>,
    },
    /// Tell them, and what changes.
    Watch {
        /// Beginning.
        prefix: &'a str,
        /// What changed up to this revision is known; `None` = nothing is.
        revision: Option<u64>,
    },
    /// Stop telling.
    Unwatch {
        /// Beginning.
        prefix: &'a str,
    },
    /// What a watch becomes on the owner of the session. Never on a wire.
    Fetch {
        /// Beginning.
        prefix: &'a str,
        /// What changed up to this revision is known.
        revision: u64,
        /// What went up to this revision was never told.
        base: u64,
    },
}

/// Which event is a job for which queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JobName<'a> {
    /// Queue.
    pub queue: &'a str,
    /// Epoch of the session.
    pub epoch: Epoch,
    /// Its event.
    pub offset: Offset,
}

/// The right to work on a job, as its worker shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    /// Which attempt it is, from 1.
    pub attempt: u16,
    /// Tells apart leases of one attempt: over a restart there may be two.
    pub nonce: u64,
}

/// What is asked about a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobAsk<'a> {
    /// The attempt has failed.
    Fail {
        /// Lease.
        lease: Lease,
        /// Not before so long; `None` = as the queue has it.
        retry_after_ms: Option<u64>,
        /// Try again at all.
        retry: bool,
    },
    /// The worker is still at it.
    Extend {
        /// Lease.
        lease: Lease,
        /// For so long; `None` = as long as at first.
        lease_ms: Option<u64>,
    },
    /// So much there is.
    Progress {
        /// Lease.
        lease: Lease,
        /// JSON.
        partial: &'a [u8],
    },
    /// A dead one is to be tried again.
    Redrive,
    /// A dead one is to be forgotten.
    Drop,
}

/// In which order jobs of one session are worked on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum JobOrder {
    /// One after the other, as published.
    #[default]
    Session,
    /// Side by side.
    Free,
}

/// An event that the server publishes when a job ends otherwise than by a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fallback<'a> {
    /// Its topic.
    pub topic: &'a str,
    /// JSON to be handed on; empty = `null`.
    pub data: &'a [u8],
}

/// A queue: which events become jobs, and what becomes of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewQueue<'a> {
    /// Name.
    pub queue: &'a str,
    /// Patterns of topics.
    pub topics: &'a [&'a str],
    /// Patterns of topics that go first, the first of them first of all.
    pub priorities: &'a [&'a str],
    /// Jobs that may be open.
    pub capacity: u64,
    /// How long a worker is not heard of before somebody else gets the job.
    pub lease_ms: u64,
    /// When a job ends whatever happens.
    pub deadline_ms: u64,
    /// Attempts.
    pub attempts: u64,
    /// Before the second attempt; twice as long before each further one.
    pub backoff_ms: u64,
    /// Order.
    pub order: JobOrder,
    /// What the server answers at the deadline; `None` = it becomes a dead letter.
    pub fallback: Option<Fallback<'a>>,
    /// Topic of dead letters.
    pub dead_letter: &'a str,
}

/// What is asked about a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GroupAsk<'a> {
    /// It is to be so.
    Declare {
        /// Name.
        group: &'a str,
        /// Patterns of topics.
        topics: &'a [&'a str],
        /// How long a member may be silent before somebody else gets its session.
        lease_ms: u64,
    },
    /// It is to be no more.
    Drop {
        /// Group.
        group: &'a str,
    },
    /// The connection takes up to so many sessions of it at once; 0 = it leaves.
    Join {
        /// Group.
        group: &'a str,
        /// Sessions.
        credit: u64,
    },
    /// Where it stands in sessions that it has not done with.
    List {
        /// Group.
        group: &'a str,
        /// Where the page begins, as the last one said.
        from: u64,
    },
}

/// What is asked about a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueueAsk<'a> {
    /// It is to be so.
    Declare(NewQueue<'a>),
    /// It is to be no more.
    Drop {
        /// Queue.
        queue: &'a str,
    },
    /// Which there are.
    List {
        /// Go on behind this one.
        after: Option<&'a str>,
    },
    /// The connection takes up to so many of its jobs at once; 0 = no more.
    Pull {
        /// Queue.
        queue: &'a str,
        /// Jobs.
        credit: u64,
    },
    /// A page of its dead letters.
    Dead {
        /// Queue.
        queue: &'a str,
        /// Where the page begins, as the last one said.
        from: u64,
    },
}
