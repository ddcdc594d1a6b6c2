//! `ack`: event frames worked off, counted from the connection's start. Returns delivery credit; answered only if the
//! client gave the command an id.

use crate::effect::Reply;
use crate::ids::{CommandId, ConnectionId, Now};
use crate::shard::Shard;

pub(crate) fn run(
    shard: &mut Shard,
    connection: ConnectionId,
    id: CommandId,
    events: u64,
    bytes: Option<u64>,
    now: Now,
) {
    let Some(client) = shard.readers.clients.get_mut(connection) else { return };
    match client.acknowledge(events, bytes) {
        Ok(()) => {
            shard.readers.unblock(connection);
            shard.life_acknowledged(connection, events, now);
            if id != CommandId::None {
                shard.effects.reply(connection, id, &Reply::Acknowledged);
            }
        }
        Err(refused) => shard.refuse_local(connection, id, refused),
    }
}
