//! Effects that wait to be polled. Texts go into one reused buffer, so that queueing allocates nothing once warm.
//! One per shard.

use crate::effect::{Effect, Reply};
use crate::ids::{CommandId, ConnectionId, ShardId};
use crate::mailbox::codec::{Reader, Writer};
use crate::mailbox::message::{get_reply, put_reply};
use std::collections::VecDeque;
use storage::disk::DiskFault;

/// Bounded by `effects_max`, which callers prove before they change anything.
pub struct EffectQueue {
    items: VecDeque<Item>,
    bytes: Vec<u8>,
    max: usize,
}

enum Item {
    Reply { connection: ConnectionId, id: CommandId, start: usize, end: usize },
    Wake(ShardId),
    Replaced(ConnectionId),
    TurnedAway(ConnectionId),
    Poisoned(DiskFault),
}

impl EffectQueue {
    /// Of at most `max` effects.
    pub fn new(max: usize) -> Self {
        Self { items: VecDeque::with_capacity(max), bytes: Vec::new(), max }
    }

    /// Room for `count` more?
    pub fn has_room(&self, count: usize) -> bool {
        self.items.len() + count <= self.max
    }

    /// Queues a reply.
    pub fn reply(&mut self, connection: ConnectionId, id: CommandId, reply: &Reply<'_>) {
        let start = self.bytes.len();
        put_reply(&mut Writer(&mut self.bytes), reply);
        self.items.push_back(Item::Reply { connection, id, start, end: self.bytes.len() });
    }

    /// Queues a wake-up.
    pub fn wake(&mut self, shard: ShardId) {
        self.items.push_back(Item::Wake(shard));
    }

    /// Queues the close of a connection that was taken over.
    pub fn close(&mut self, connection: ConnectionId) {
        self.items.push_back(Item::Replaced(connection));
    }

    /// Queues the close of a connection for which there is no permit.
    pub fn turn_away(&mut self, connection: ConnectionId) {
        self.items.push_back(Item::TurnedAway(connection));
    }

    /// Queues the end.
    pub fn poisoned(&mut self, fault: DiskFault) {
        self.items.push_back(Item::Poisoned(fault));
    }

    /// The oldest effect.
    pub fn poll(&mut self) -> Option<Effect<'_>> {
        let Some(item) = self.items.pop_front() else {
            self.bytes.clear();
            return None;
        };
        Some(match item {
            Item::Reply { connection, id, start, end } => {
                Effect::Reply { connection, id, reply: get_reply(&mut Reader(&self.bytes[start..end])) }
            }
            Item::Wake(shard) => Effect::Wake { shard },
            Item::Replaced(connection) => Effect::Replaced { connection },
            Item::TurnedAway(connection) => Effect::TurnedAway { connection },
            Item::Poisoned(fault) => Effect::Poisoned { fault },
        })
    }
}
