//! `stream.close`: the end of a token stream. Anybody who may publish may say it, and the server says it for a producer
//! that is gone.
//!
//! ```text
//!   open ───► append ─► waiter ─► published
//!   closed ─► same status: published, duplicate · another: refused
//!   never ──► refused
//! ```
//! The event has a dedupe key of its own, made of the stream's name: a stream ends once, also over restarts, and is known
//! as closed for as long as anything is kept.

use super::publish::{Form, Looked, look, repeat};
use super::stream_append::no_room;
use super::{Call, Outcome, permit};
use crate::command::{DataKind, Durability, StreamStatus};
use crate::ids::Now;
use crate::refusal::{Refusal, Refused};
use crate::sessions::waiters::{Answer, Waiter};
use crate::shard::{Opened, Shard};
use crate::streams::{StreamKey, closing_key};
use storage::catalog::PartitionSlot;
use storage::record::{EventBody, NO_OFFSET};
use xxhash_rust::xxh3::xxh3_64;

pub(crate) fn run(shard: &mut Shard, call: Call<'_>, stream: &str, status: StreamStatus) -> Outcome {
    let Call { asker, partition, session, known, now } = call;
    if let Some(outcome) =
        no_room(shard, call, stream.len() + asker.client_id.len() + asker.tenant.len() + session.len())
    {
        return outcome;
    }
    let unknown = Refused::field(Refusal::UnknownStream, "stream");
    let slot = match shard.open(partition, &asker.tenant, session, None) {
        Opened::Ready(slot) => slot,
        Opened::Park => return Outcome::Park,
        Opened::Refused(refused) => return shard.refuse(asker, refused),
        Opened::Absent => return shard.refuse(asker, unknown),
    };
    let epoch = shard.log.partition(slot).epoch();
    let key = closing_key(&shard.log, partition, epoch, stream);
    match look(shard, slot, key, known) {
        Looked::Park => return Outcome::Park,
        Looked::Yes(found) if found.body_hash == xxh3_64(status.json().as_bytes()) => {
            return repeat(shard, call, slot, found.offset, 1, Form::Publish(Durability::Disk));
        }
        Looked::Yes(_) => return shard.refuse(asker, Refused::field(Refusal::StreamClosed, "status")),
        Looked::No => {}
    }
    if let Err(refused) = permit::stream(shard, asker, Some(slot), (session, stream, None)) {
        return shard.refuse(asker, refused);
    }
    match close(shard, slot, &asker.client_id, stream, status, now) {
        Some(log_seq) => {
            let (origin, id) = (asker.origin, asker.id);
            shard.waiters.push(Waiter { log_seq, origin, id, answer: Answer::Published });
            Outcome::Done
        }
        None => shard.refuse(asker, unknown),
    }
}

/// Appends the end of a stream that is open; its place in the log. Room was proved.
pub(crate) fn close(
    shard: &mut Shard,
    slot: PartitionSlot,
    client_id: &str,
    stream: &str,
    status: StreamStatus,
    now: Now,
) -> Option<u64> {
    let partition = shard.log.partition(slot);
    let (id, epoch) = (partition.id(), partition.epoch());
    let open = partition.open_stream(stream)?;
    let (topic, deltas) = (open.topic.clone(), open.next_seq);
    let key = closing_key(&shard.log, id, epoch, stream);
    let data = status.json().as_bytes();
    let event = EventBody {
        topic: &topic,
        client_id,
        message_id: stream,
        traceparent: "",
        data,
        data_kind: DataKind::Close as u8,
        prev_offset: NO_OFFSET,
        expires_ms: 0,
        producer_epoch: 0,
        producer_seq: deltas,
        dedupe_low: key as u64,
        dedupe_high: (key >> 64) as u64,
        body_hash: xxh3_64(data),
    };
    shard.leases.end(StreamKey::of(id, stream));
    Some(shard.log.append(slot, &[event], &[], now.wall_ms).log_seq)
}
