//! `queue.list`: the tenant's queues, by name, a page at a time. Every shard knows them all.

use crate::effect::{QueueItem, Reply, WorkReply, put_queue_item};
use crate::ids::ConnectionId;
use crate::input::Handled;
use crate::sessions::Asker;
use crate::shard::Shard;
use std::ops::Bound;

/// Queues on one page: each takes up to 200 bytes of a reply.
const PAGE_QUEUES: usize = 4;

pub(super) fn run(shard: &mut Shard, asker: &Asker, connection: ConnectionId, after: Option<&str>) -> Handled {
    let (mut items, mut more) = (Vec::new(), false);
    if let Some(known) = shard.queues.by_name(&asker.tenant) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        for (at, (queue, is)) in known.range::<str, _>((from, Bound::Unbounded)).enumerate() {
            if at == PAGE_QUEUES {
                more = true;
                break;
            }
            let (capacity, lease_ms, deadline_ms, attempts) = (is.capacity, is.lease_ms, is.deadline_ms, is.attempts);
            put_queue_item(&mut items, &QueueItem { queue, capacity, lease_ms, deadline_ms, attempts });
        }
    }
    shard.effects.reply(connection, asker.id, &Reply::Work(WorkReply::Queues { items: &items, more }));
    Handled::Done
}
