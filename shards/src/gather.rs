//! Reads on behalf of somebody else: a page of history, or records for another shard's subscriber that is behind.
//!
//! ```text
//!  Gather ── log.read ──► Hot: copy, go on      Cold: wait for the buffer, copy, finish
//!                         Gap / End: finish
//! ```
//! Each holds at most one page of records. Their number is bounded by [`PAGES_MAX`](crate::limits::PAGES_MAX); what is asked beyond it waits
//! with its connection or in its mailbox.

use crate::delivery::SubscriptionId;
use crate::ids::{CommandId, Epoch, Offset, PartitionId, ShardId};
use crate::sessions::Origin;
use std::sync::Arc;
use storage::record::RecordView;

/// Whom a page is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum GatherFor {
    /// A `history` command.
    History { origin: Origin, id: CommandId },
    /// A subscription on another shard, and the room reserved there for the reply.
    Fetch { shard: ShardId, subscription: SubscriptionId, reply_bytes: u32 },
}

/// How a page ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PageEnd {
    /// More may follow.
    More,
    /// Everything committed is in it.
    End,
    /// The offsets up to here are gone; only ever without records.
    Gap(Offset),
    /// The bytes on disk are damaged or could not be read: nothing up to here can be had.
    Damaged(Offset),
}

/// One page in the making.
pub(crate) struct Gather {
    pub purpose: GatherFor,
    pub partition: PartitionId,
    pub tenant: Arc<str>,
    pub session: Box<str>,
    pub from: Offset,
    pub next: Offset,
    pub epoch: Epoch,
    pub tail: Offset,
    /// Events asked for.
    pub limit: u32,
    events_left: u32,
    bytes_max: usize,
    pub records: Vec<u8>,
}

impl Gather {
    pub fn new(
        purpose: GatherFor,
        partition: PartitionId,
        tenant: Arc<str>,
        session: &str,
        from: Offset,
        events: u32,
        bytes: usize,
    ) -> Self {
        Self {
            purpose,
            partition,
            tenant,
            session: session.into(),
            from,
            next: from,
            epoch: 0,
            tail: 0,
            limit: events,
            events_left: events,
            bytes_max: bytes,
            records: Vec::new(),
        }
    }

    /// Takes a record in; `false` if the page is full without it.
    pub fn take(&mut self, record: RecordView<'_>) -> bool {
        if record.next_offset() <= self.next {
            return true;
        }
        let bytes = record.bytes();
        if self.is_full() || (!self.records.is_empty() && self.records.len() + bytes.len() > self.bytes_max) {
            return false;
        }
        self.records.extend_from_slice(bytes);
        let fresh = record.next_offset() - self.next;
        self.events_left = self.events_left.saturating_sub(fresh.min(u64::from(u32::MAX)) as u32);
        self.next = record.next_offset();
        true
    }

    /// Holds as much as was asked for.
    pub fn is_full(&self) -> bool {
        self.events_left == 0 || self.records.len() >= self.bytes_max
    }
}

/// A finished page of history that waits for room in its connection's send queue.
pub(crate) struct Page {
    pub connection: crate::ids::ConnectionId,
    pub id: CommandId,
    pub session: Box<str>,
    pub epoch: Epoch,
    pub from: Offset,
    pub limit: u32,
    pub next: Offset,
    pub tail: Offset,
    pub records: Vec<u8>,
}
