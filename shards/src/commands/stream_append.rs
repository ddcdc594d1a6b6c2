//! `stream.append`: the next text of a token stream, an event of its session like any other.
//!
//! ```text
//!   no such stream ─ seq 0 ─► append, the stream is open ──► waiter ─► published
//!   open ─ seq = next ──────► append, its lease begins anew ─► waiter ─► published
//!        ├ seq < next ──────► same body, or too long ago to tell: published, duplicate · another: refused
//!        └ seq > next ──────► refused, with what is expected
//!   closed ─────────────────► refused
//! ```

use super::publish::{Form, Looked, NO_SPACE_RETRY_MS, look, repeat};
use super::{Call, Outcome, permit};
use crate::command::{DataKind, Durability, NewDelta};
use crate::effect::Reply;
use crate::ids::Offset;
use crate::quota::{Growth, Verdict};
use crate::refusal::{Refusal, Refused};
use crate::sessions::waiters::{Answer, Waiter};
use crate::shard::{Opened, Shard};
use crate::streams::{STREAM_TOPIC, StreamKey, closing_key};
use arrayvec::ArrayString;
use storage::catalog::{NAME_BYTES_MAX, PartitionSlot, STREAMS_MAX};
use storage::record::{EventBody, NO_OFFSET};
use xxhash_rust::xxh3::xxh3_64;

pub(crate) fn run(shard: &mut Shard, call: Call<'_>, delta: &NewDelta<'_>, durability: Durability) -> Outcome {
    let Call { asker, partition, session, .. } = call;
    if delta.delta.len() > shard.config.limits.event_bytes_max {
        return shard.refuse(asker, Refused::field(Refusal::EventTooLarge, "delta"));
    }
    let bytes = delta.delta.len() + delta.stream.len() + asker.client_id.len() + asker.tenant.len() + session.len();
    if let Some(outcome) = no_room(shard, call, bytes) {
        return outcome;
    }
    let first = (delta.seq == 0).then(|| delta.topic.unwrap_or(STREAM_TOPIC));
    let slot = match shard.open(partition, &asker.tenant, session, None) {
        Opened::Ready(slot) => slot,
        Opened::Park => return Outcome::Park,
        Opened::Refused(refused) => return shard.refuse(asker, refused),
        Opened::Absent if delta.seq > 0 => return shard.refuse(asker, Refused::expects(Refusal::StreamGap, "seq", 0)),
        Opened::Absent => {
            if let Err(refused) = permit::stream(shard, asker, None, (session, delta.stream, first)) {
                return shard.refuse(asker, refused);
            }
            let epoch = shard.new_epoch();
            match shard.open(partition, &asker.tenant, session, Some(epoch)) {
                Opened::Ready(slot) => slot,
                Opened::Refused(refused) => return shard.refuse(asker, refused),
                Opened::Park | Opened::Absent => return Outcome::Park,
            }
        }
    };
    if let Err(refused) = permit::stream(shard, asker, Some(slot), (session, delta.stream, first)) {
        return shard.refuse(asker, refused);
    }
    let body_hash = xxh3_64(delta.delta);
    match place(shard, call, slot, delta, body_hash) {
        Place::Next => {}
        Place::Repeat(offset) => return repeat(shard, call, slot, offset, 1, Form::Publish(durability)),
        Place::Refused(refused) => return shard.refuse(asker, refused),
        Place::Park => return Outcome::Park,
    }
    let growth = Growth { sessions: shard.begins_session(slot), ..Growth::default() };
    match shard.may_keep(&asker.tenant, partition, growth, call.now) {
        Verdict::Passes => {}
        Verdict::Waits => return Outcome::Park,
        Verdict::Refused(refused) => return shard.refuse(asker, refused),
    }
    append(shard, call, slot, delta, body_hash, durability);
    shard.count_kept(&asker.tenant, call.now);
    Outcome::Done
}

/// Refuses, or puts off, what would find no room in the log.
pub(super) fn no_room(shard: &mut Shard, call: Call<'_>, bytes: usize) -> Option<Outcome> {
    let bytes = storage::record::HEAD_BYTES + size_of::<EventBody<'_>>() + crate::limits::TOPIC_BYTES_MAX + bytes + 64;
    if shard.log.room(bytes) {
        return None;
    }
    if shard.log.no_space() {
        return Some(shard.refuse(call.asker, Refused::later(Refusal::NoSpace, NO_SPACE_RETRY_MS)));
    }
    if bytes > shard.log.record_bytes_max() {
        return Some(shard.refuse(call.asker, Refused::field(Refusal::CommandTooLarge, "delta")));
    }
    Some(Outcome::Later)
}

/// What an append is to its stream.
enum Place {
    Next,
    Repeat(Offset),
    Refused(Refused),
    Park,
}

fn place(shard: &mut Shard, call: Call<'_>, slot: PartitionSlot, delta: &NewDelta<'_>, body_hash: u64) -> Place {
    let (seq, text_bytes_max) = (delta.seq, shard.config.limits.stream_text_bytes_max as u64);
    let partition = shard.log.partition(slot);
    if let Some(stream) = partition.open_stream(delta.stream) {
        let next = stream.next_seq;
        return match stream.recent(seq) {
            _ if seq > next => Place::Refused(Refused::expects(Refusal::StreamGap, "seq", next)),
            _ if seq == next && stream.text_bytes + delta.delta.len() as u64 > text_bytes_max => {
                Place::Refused(Refused::field(Refusal::StreamTooLong, "delta"))
            }
            _ if seq == next => Place::Next,
            Some((offset, known)) if known == body_hash => Place::Repeat(offset),
            Some(_) => Place::Refused(Refused::expects(Refusal::StreamSeqReused, "seq", next)),
            None => Place::Repeat(NO_OFFSET),
        };
    }
    let (open, epoch) = (partition.open_streams().count(), partition.epoch());
    let key = closing_key(&shard.log, call.partition, epoch, delta.stream);
    match look(shard, slot, key, call.known) {
        Looked::Park => Place::Park,
        Looked::Yes(_) => Place::Refused(Refused::field(Refusal::StreamClosed, "stream")),
        Looked::No if seq > 0 => Place::Refused(Refused::expects(Refusal::StreamGap, "seq", 0)),
        Looked::No if open >= STREAMS_MAX || shard.leases.len() >= shard.config.limits.streams_per_shard_max => {
            Place::Refused(Refused::field(Refusal::TooManyStreams, "stream"))
        }
        Looked::No => Place::Next,
    }
}

fn append(
    shard: &mut Shard,
    call: Call<'_>,
    slot: PartitionSlot,
    delta: &NewDelta<'_>,
    body_hash: u64,
    durability: Durability,
) {
    let Call { asker, partition, session, now, .. } = call;
    // On the stack: the steady path allocates nothing.
    let stream = shard.log.partition(slot).open_stream(delta.stream);
    let topic: ArrayString<NAME_BYTES_MAX> =
        ArrayString::from(stream.map_or(delta.topic.unwrap_or(STREAM_TOPIC), |stream| &stream.topic))
            .unwrap_or_default();
    let event = EventBody {
        topic: &topic,
        client_id: &asker.client_id,
        message_id: delta.stream,
        traceparent: "",
        data: delta.delta,
        data_kind: DataKind::Delta as u8,
        prev_offset: NO_OFFSET,
        expires_ms: 0,
        producer_epoch: 0,
        producer_seq: delta.seq,
        dedupe_low: 0,
        dedupe_high: 0,
        body_hash,
    };
    let appended = shard.log.append(slot, &[event], &[], now.wall_ms);
    let lease_us = shard.config.limits.stream_lease_ms * 1000;
    let key = StreamKey::of(partition, delta.stream);
    shard.leases.renew(key, &asker.tenant, session, delta.stream, now.mono_us, lease_us);
    let (origin, id) = (asker.origin, asker.id);
    if durability == Durability::Memory {
        let epoch = shard.log.partition(slot).epoch();
        let durability = Durability::Memory;
        let reply = Reply::Published { session, epoch, offset: appended.offset, durability, duplicate: false };
        return shard.answer(origin, id, &reply);
    }
    shard.waiters.push(Waiter { log_seq: appended.log_seq, origin, id, answer: Answer::Published });
}
