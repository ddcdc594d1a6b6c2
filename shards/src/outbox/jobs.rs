//! Frames about jobs: one to be worked on, and pages of those that were given up.

use crate::command::{DataKind, Lease};
use crate::ids::{Epoch, Offset};
use crate::mailbox::codec::{Reader, Writer};

/// A job for a worker, with the event that it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JobFrame<'a> {
    /// Queue.
    pub queue: &'a str,
    /// Session.
    pub session: &'a str,
    /// Its epoch.
    pub epoch: Epoch,
    /// The event's offset.
    pub offset: Offset,
    /// The right to work on it.
    pub lease: Lease,
    /// When it ends whatever happens, Unix ms.
    pub deadline_ms: u64,
    /// How long the worker may not be heard of.
    pub lease_ms: u64,
    /// The event's topic.
    pub topic: &'a str,
    /// Who published it.
    pub client_id: &'a str,
    /// Its message id, or empty.
    pub message_id: &'a str,
    /// Its trace context, or empty.
    pub traceparent: &'a str,
    /// When it was published, Unix ms.
    pub time_ms: u64,
    /// Its cause.
    pub prev_offset: Option<Offset>,
    /// How to read its payload.
    pub data_kind: DataKind,
    /// Payload.
    pub data: &'a [u8],
}

/// Everything of a job's frame that is no name and no data.
const JOB_FRAME_BYTES_MAX: usize = 640;

impl JobFrame<'_> {
    /// Upper bound of the frame on any wire.
    pub fn bytes_max(&self) -> usize {
        let data = match self.data_kind {
            DataKind::Bytes => self.data.len().div_ceil(3) * 4 + 2,
            _ => self.data.len(),
        };
        let names = self.topic.len() + self.client_id.len() + self.message_id.len() + self.traceparent.len();
        JOB_FRAME_BYTES_MAX + 2 * self.queue.len() + 4 * self.session.len() + names + data
    }
}

/// A job that was given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeadJob<'a> {
    /// Session.
    pub session: &'a str,
    /// Its epoch.
    pub epoch: Epoch,
    /// The event's offset.
    pub offset: Offset,
    /// Attempts that it had.
    pub attempts: u16,
    /// When it was given up, Unix ms.
    pub time_ms: u64,
}

/// A page of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeadFrame<'a> {
    /// Queue.
    pub queue: &'a str,
    /// Where the next page begins, if there is one.
    pub next: Option<u64>,
    /// What it tells, as [`put_dead`] wrote it.
    pub items: &'a [u8],
}

/// Appends one.
pub(crate) fn put_dead(items: &mut Vec<u8>, dead: &DeadJob<'_>) {
    Writer(items).text(dead.session).u64(dead.epoch).u64(dead.offset).u16(dead.attempts).u64(dead.time_ms);
}

/// Bytes of one, in mail and in any frame.
pub(crate) const fn dead_bytes_max(queue: usize, session: usize) -> usize {
    128 + queue + session
}

impl<'a> DeadFrame<'a> {
    /// What it tells.
    pub fn items(&self) -> impl Iterator<Item = DeadJob<'a>> + use<'a> {
        let mut r = Reader(self.items);
        std::iter::from_fn(move || {
            (!r.0.is_empty()).then(|| DeadJob {
                session: r.text(),
                epoch: r.u64(),
                offset: r.u64(),
                attempts: r.u16(),
                time_ms: r.u64(),
            })
        })
    }

    /// Upper bound of the frame on any wire.
    pub fn bytes_max(&self) -> usize {
        let items: usize = self.items().map(|dead| dead_bytes_max(self.queue.len(), dead.session.len())).sum();
        256 + self.queue.len() + items
    }
}
