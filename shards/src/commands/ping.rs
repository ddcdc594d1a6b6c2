//! `ping`: answered at once, with the server's wall clock.

use crate::effect::Reply;
use crate::ids::{CommandId, ConnectionId, Now};
use crate::shard::Shard;

pub(crate) fn run(shard: &mut Shard, connection: ConnectionId, id: CommandId, now: Now) {
    shard.effects.reply(connection, id, &Reply::Pong { time_ms: now.wall_ms });
}
