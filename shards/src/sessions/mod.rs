//! The owner's side of a session: who waits for a commit, which shards are interested, which commands are parked
//! until something was read from disk.

pub(crate) mod interest;
pub(crate) mod parked;
pub(crate) mod waiters;

use crate::ids::{CommandId, ConnectionId, ShardId};
use std::sync::Arc;

/// Where a command came from and where its answer goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// A connection of this shard.
    Local(ConnectionId),
    /// A connection of another shard, and the bytes of room for the answer that are reserved there.
    Remote(ShardId, ConnectionId, u32),
}

/// Who asks: the principal of a command and how to answer it.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    pub origin: Origin,
    pub id: CommandId,
    pub tenant: Arc<str>,
    pub client_id: Arc<str>,
}
