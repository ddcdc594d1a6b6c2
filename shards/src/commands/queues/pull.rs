//! `pull`: this connection takes up to so many jobs of a queue at once, from now on.

use crate::effect::{Reply, WorkReply};
use crate::ids::ConnectionId;
use crate::input::Handled;
use crate::refusal::{Refusal, Refused};
use crate::sessions::Asker;
use crate::shard::Shard;

pub(super) fn run(shard: &mut Shard, asker: &Asker, connection: ConnectionId, queue: &str, credit: u64) -> Handled {
    if shard.queues.definition(&asker.tenant, queue).is_none() {
        shard.refuse_local(connection, asker.id, Refused::field(Refusal::UnknownQueue, "queue"));
        return Handled::Done;
    }
    let most = shard.config.limits.work.client_jobs_max;
    if credit > most {
        shard.refuse_local(connection, asker.id, Refused::expects(Refusal::OutOfRange, "credit", most));
        return Handled::Done;
    }
    shard.pull_jobs(connection, &asker.tenant, queue, credit);
    shard.effects.reply(connection, asker.id, &Reply::Work(WorkReply::Pulling { queue, credit }));
    Handled::Done
}
