//! What leaves the core besides deliveries: answers, closes, wake-ups. Deliveries go through the outbox.

pub mod presence;
pub mod work;

pub use presence::PresenceReply;
pub use work::{
    JobHappened, MarkerItem, QueueItem, WorkReply, marker_items, put_marker_item, put_queue_item, queue_items,
};

use crate::command::Durability;
use crate::ids::{CommandId, ConnectionId, Epoch, LifeId, Offset, ShardId};
use crate::refusal::Refused;

/// One thing for the edge to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect<'a> {
    /// Encode and queue a reply.
    Reply {
        /// To whom.
        connection: ConnectionId,
        /// The command's own name for itself.
        id: CommandId,
        /// Answer.
        reply: Reply<'a>,
    },
    /// A peer that sleeps has mail.
    Wake {
        /// Peer.
        shard: ShardId,
    },
    /// A newer connection took this one's client: close it.
    Replaced {
        /// Which.
        connection: ConnectionId,
    },
    /// A connection's tenant may have no more of them: close it.
    TurnedAway {
        /// Which.
        connection: ConnectionId,
    },
    /// The log is poisoned: stop the process with a report and a non-zero status.
    Poisoned {
        /// What broke.
        fault: storage::disk::DiskFault,
    },
}

/// Answer to a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply<'a> {
    /// To `hello`.
    Hello,
    /// To `publish` of a logged event.
    Published {
        /// Session.
        session: &'a str,
        /// Its epoch.
        epoch: Epoch,
        /// The event's offset.
        offset: Offset,
        /// The promise earned.
        durability: Durability,
        /// It had been published before; the id is the first one's.
        duplicate: bool,
    },
    /// To `publish` of a volatile event.
    PublishedVolatile {
        /// Next offset at that moment: the event comes after all before it.
        after_offset: Offset,
    },
    /// To `commit`.
    Committed {
        /// Session.
        session: &'a str,
        /// Its epoch.
        epoch: Epoch,
        /// First event's offset.
        offset: Offset,
        /// Events.
        count: u32,
        /// The promise earned.
        durability: Durability,
        /// It had been committed before.
        duplicate: bool,
        /// Revision of its last change of an entry; 0 = it has none, or is told again.
        revision: u64,
    },
    /// To `subscribe` of a session.
    Subscribed {
        /// Session.
        session: &'a str,
        /// Its epoch; 0 where nothing is committed yet.
        epoch: Epoch,
        /// Offset of the first event that will be delivered.
        next: Offset,
        /// First offset still retained.
        earliest: Offset,
        /// What streams that are open there have said so far comes first.
        joins: bool,
    },
    /// To `subscribe` of patterns.
    SubscribedPatterns {
        /// Start position, `slice.seq,…`.
        position: &'a str,
    },
    /// To `unsubscribe`.
    Unsubscribed,
    /// To `ack`.
    Acknowledged,
    /// To `mark`.
    Marked {
        /// Session.
        session: &'a str,
        /// Marker.
        name: &'a str,
        /// Where it stands.
        offset: Offset,
    },
    /// To `resume`.
    Resumed {
        /// Client.
        client_id: &'a str,
        /// Its life; the edge signs a token for it.
        life: LifeId,
        /// Session subscriptions that are being restored; a `subscribed` tells of each.
        sessions: u32,
        /// Its pattern feed is being restored.
        patterns: bool,
    },
    /// A subscription that was to be restored cannot be.
    Lost {
        /// Session.
        session: &'a str,
        /// Why.
        refused: Refused,
    },
    /// To `Open`, between shards.
    ClientOpened {
        /// Tenant of the client.
        tenant: &'a str,
        /// Client.
        client_id: &'a str,
        /// The life that begins.
        life: LifeId,
        /// What was kept, as bytes.
        state: &'a [u8],
    },
    /// To commands about entries, queues and jobs.
    Work(WorkReply<'a>),
    /// To commands about presence and receipts.
    Presence {
        /// Session.
        session: &'a str,
        /// What became of it.
        reply: PresenceReply<'a>,
    },
    /// To `Open`, between shards: nothing was done, the state is larger than the room for it.
    ClientLarge {
        /// Bytes that it needs.
        bytes: u32,
    },
    /// To `ping`.
    Pong {
        /// Wall clock, Unix ms.
        time_ms: u64,
    },
    /// No.
    Refused(Refused),
}
