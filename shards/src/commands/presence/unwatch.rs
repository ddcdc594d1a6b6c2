//! `presence.unwatch`, `receipts.unwatch`: frames that are under way may still come.

use crate::effect::{PresenceReply, Reply};
use crate::ids::ConnectionId;
use crate::presence::RoomKey;
use crate::refusal::{Refusal, Refused};
use crate::sessions::Asker;
use crate::shard::Shard;

pub(super) fn run(shard: &mut Shard, asker: &Asker, connection: ConnectionId, session: &str, key: RoomKey) {
    if !shard.presence_unwatch(connection, key) {
        return shard.refuse_local(connection, asker.id, Refused::field(Refusal::NotWatching, "session"));
    }
    let reply = Reply::Presence { session, reply: PresenceReply::Unwatched(key.1) };
    shard.effects.reply(connection, asker.id, &reply);
}
