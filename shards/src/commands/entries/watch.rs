//! `entry.watch`, `entry.unwatch`: what there is, then what changes; from a revision on only that.

use crate::effect::{Reply, WorkReply};
use crate::ids::ConnectionId;
use crate::input::Handled;
use crate::refusal::{Refusal, Refused};
use crate::sessions::Asker;
use crate::shard::Shard;

pub(super) fn begin(
    shard: &mut Shard,
    asker: &Asker,
    connection: ConnectionId,
    session: &str,
    (prefix, revision): (&str, Option<u64>),
) -> Handled {
    let partition = shard.log.partition_id(&asker.tenant, session);
    if !shard.entries_may_watch(connection, partition, prefix) {
        shard.refuse_local(connection, asker.id, Refused::field(Refusal::TooManyWatches, "prefix"));
        return Handled::Done;
    }
    if !shard.entries_watch(connection, &asker.tenant, session, prefix, revision) {
        return Handled::Later;
    }
    shard.effects.reply(connection, asker.id, &Reply::Work(WorkReply::Watching { session, prefix }));
    Handled::Done
}

pub(super) fn end(shard: &mut Shard, asker: &Asker, connection: ConnectionId, session: &str, prefix: &str) -> Handled {
    let partition = shard.log.partition_id(&asker.tenant, session);
    if !shard.entries_unwatch(connection, partition, prefix) {
        shard.refuse_local(connection, asker.id, Refused::field(Refusal::NotWatching, "prefix"));
        return Handled::Done;
    }
    shard.effects.reply(connection, asker.id, &Reply::Work(WorkReply::Unwatched { session, prefix }));
    Handled::Done
}
