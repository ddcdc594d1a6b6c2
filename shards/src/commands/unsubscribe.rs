//! `unsubscribe`: from a session, or from all patterns.

use crate::effect::Reply;
use crate::ids::{CommandId, ConnectionId};
use crate::refusal::{Refusal, Refused};
use crate::sessions::Origin;
use crate::shard::Shard;

pub(crate) fn session(shard: &mut Shard, connection: ConnectionId, id: CommandId, session: &str) {
    let Some(client) = shard.readers.clients.get(connection) else { return };
    let partition = shard.log.partition_id(&client.tenant, session);
    match shard.readers.find(connection, partition) {
        Some(subscription) => {
            shard.readers.end(subscription);
            shard.life_changed(connection);
            shard.effects.reply(connection, id, &Reply::Unsubscribed);
        }
        None => shard.refuse_local(connection, id, Refused::field(Refusal::NotSubscribed, "session")),
    }
}

pub(crate) fn patterns(shard: &mut Shard, connection: ConnectionId, id: CommandId) {
    let Some(client) = shard.readers.clients.get_mut(connection) else { return };
    let tenant = client.tenant.clone();
    let Some(feed) = client.patterns.take() else {
        return shard.refuse_local(connection, id, Refused::field(Refusal::NotSubscribed, "patterns"));
    };
    shard.readers.tenants.remove(&tenant, connection);
    shard.detach_patterns(connection, &tenant, &feed);
    if feed.attaching > 0 {
        // Its sources' answers find no feed any more: the subscribe is answered all the same.
        shard.answer(Origin::Local(connection), feed.id, &Reply::Unsubscribed);
    }
    shard.life_changed(connection);
    shard.effects.reply(connection, id, &Reply::Unsubscribed);
}
