//! `hello`: how much may be delivered before it is acknowledged.

use crate::effect::Reply;
use crate::ids::{CommandId, ConnectionId};
use crate::refusal::{Refusal, Refused};
use crate::shard::Shard;

pub(crate) fn run(shard: &mut Shard, connection: ConnectionId, id: CommandId, events: Option<u64>, bytes: Option<u64>) {
    let zero = if events == Some(0) { Some("credit") } else { bytes.filter(|b| *b == 0).map(|_| "credit") };
    if let Some(field) = zero {
        return shard.refuse_local(connection, id, Refused::field(Refusal::OutOfRange, field));
    }
    if let Some(client) = shard.readers.clients.get_mut(connection) {
        client.set_credit(events, bytes);
    }
    shard.readers.unblock(connection);
    shard.effects.reply(connection, id, &Reply::Hello);
}
