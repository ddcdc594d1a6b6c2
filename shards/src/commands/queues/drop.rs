//! `queue.drop`: there is no such queue any more, now and after every restart. Its jobs that are open end as dead letters,
//! unless a worker that has them, or still pulls, ends them before.

use crate::command::NewEntry;
use crate::commands::publish::{Form, NewParts, append};
use crate::commands::{Call, Outcome};
use crate::refusal::{Refusal, Refused};
use crate::shard::Shard;

pub(super) fn run(shard: &mut Shard, call: Call<'_>, queue: &str) -> Outcome {
    if shard.queues.definition(&call.asker.tenant, queue).is_none() {
        return shard.refuse(call.asker, Refused::field(Refusal::UnknownQueue, "queue"));
    }
    let entry = NewEntry { key: queue, value: None, ttl_ms: None, if_revision: None };
    append(shard, call, &NewParts { entries: &[entry], ..NewParts::default() }, Form::Declare)
}
