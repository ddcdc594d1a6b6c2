//! Answers to commands about entries, queues and jobs.

use crate::command::{Durability, JobName};

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
    Lost,
    /// A dead letter is a job again.
    Redriven,
    /// A dead letter is forgotten.
    Dropped,
}
