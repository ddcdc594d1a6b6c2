//! `queue.declare`: a queue is to be so, from now on and after every restart. Declared again, its jobs that are open follow the new
//! numbers from their next step on; their deadlines stay.

use crate::command::{NewEntry, NewQueue};
use crate::commands::publish::{Form, NewParts, append};
use crate::commands::{Call, Outcome};
use crate::mailbox::codec::Writer;
use crate::queues::policy::{Definition, loops};
use crate::refusal::{Refusal, Refused};
use crate::shard::Shard;

pub(super) fn run(shard: &mut Shard, call: Call<'_>, new: &NewQueue<'_>) -> Outcome {
    let Call { asker, .. } = call;
    let limits = &shard.config.limits;
    let definition = match Definition::of(new, &limits.work, limits.event_bytes_max) {
        Ok(definition) => definition,
        Err(refused) => return shard.refuse(asker, refused),
    };
    let known = shard.queues.by_name(&asker.tenant);
    if known.is_some_and(|known| !known.contains_key(new.queue) && known.len() >= limits.work.queues_per_tenant_max) {
        return shard.refuse(asker, Refused::field(Refusal::TooManyQueues, "queue"));
    }
    if known.map_or_else(|| loops(&Default::default(), &definition), |known| loops(known, &definition)) {
        return shard.refuse(asker, Refused::field(Refusal::QueueLoop, "fallback"));
    }
    let mut value = Vec::new();
    definition.put(&mut Writer(&mut value));
    let entry = NewEntry { key: new.queue, value: Some(&value), ttl_ms: None, if_revision: None };
    append(shard, call, &NewParts { entries: &[entry], ..NewParts::default() }, Form::Declare)
}
