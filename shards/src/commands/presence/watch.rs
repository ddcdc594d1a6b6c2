//! `presence.watch`, `receipts.watch`: a snapshot, then what changes. Watching again begins with a snapshot again.

use crate::effect::{PresenceReply, Reply};
use crate::ids::ConnectionId;
use crate::input::Handled;
use crate::presence::RoomKey;
use crate::refusal::{Refusal, Refused};
use crate::sessions::Asker;
use crate::shard::Shard;

pub(super) fn run(shard: &mut Shard, asker: &Asker, connection: ConnectionId, session: &str, key: RoomKey) -> Handled {
    if !shard.presence_may_watch(connection, key) {
        shard.refuse_local(connection, asker.id, Refused::field(Refusal::TooManyPresences, "session"));
        return Handled::Done;
    }
    if !shard.presence_watch(connection, &asker.tenant, session, key) {
        return Handled::Later;
    }
    let reply = Reply::Presence { session, reply: PresenceReply::Watching(key.1) };
    shard.effects.reply(connection, asker.id, &reply);
    Handled::Done
}
