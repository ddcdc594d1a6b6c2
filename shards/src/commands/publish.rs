//! `publish`: append one event. Checks, in this order: size, parked predecessors, partition, repeat, producer, cause.
//!
//! ```text
//!             unseen ──► append ──► waiter ──► committed ──► published
//!  dedupe ──► seen, committed ──────────────────────────────► published, duplicate
//!             seen, not committed ──► waiter ───────────────► published, duplicate
//!             seen with another body ──► refused
//!             on disk, maybe ──► parked until the table was read
//! ```

use super::entries::check as check_entries;
use super::queues::job::held;
use super::{Call, Outcome};
use crate::command::{Durability, JobName, Lease, NewEntry, NewEvent, NewMarker};
use crate::effect::{Reply, WorkReply};
use crate::groups::ack::{self, Move};
use crate::ids::{Epoch, Now, Offset};
use crate::queues::ends::Opening;
use crate::queues::jobs::State;
use crate::quota::{self, Growth};
use crate::refusal::{Refusal, Refused};
use crate::sessions::Asker;
use crate::sessions::parked::{Found, Known};
use crate::sessions::waiters::{Answer, Waiter};
use crate::shard::{Opened, Shard};
use storage::catalog::PartitionSlot;
use storage::log::Seen;
use storage::record::{EntryAct, EntryBody, EventBody, JobAct, JobBody, MarkerBody, NO_OFFSET, Parts, RECORD_JOBS_MAX};
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub(crate) fn run(shard: &mut Shard, call: Call<'_>, event: &NewEvent<'_>, durability: Durability) -> Outcome {
    if durability == Durability::Volatile {
        return volatile(shard, call, event);
    }
    if let Err(refused) = check_event(shard, event) {
        return shard.refuse(call.asker, refused);
    }
    let parts = NewParts { events: std::slice::from_ref(event), ..NewParts::default() };
    append(shard, call, &parts, Form::Publish(durability))
}

/// Everything of a command that becomes one record.
#[derive(Clone, Copy, Default)]
pub(crate) struct NewParts<'a> {
    pub events: &'a [NewEvent<'a>],
    pub markers: &'a [NewMarker<'a>],
    pub entries: &'a [NewEntry<'a>],
    /// The job that it ends.
    pub complete: Option<(JobName<'a>, Lease)>,
    /// The job that its sender must have.
    pub holds: Option<(JobName<'a>, Lease)>,
    /// Where the session must go on.
    pub if_next: Option<u64>,
}

/// How the appended record was asked for, hence how it is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    Publish(Durability),
    Commit,
    Mark,
    Entry,
    Declare,
}

/// What can be said of an event without its partition.
pub(crate) fn check_event(shard: &Shard, event: &NewEvent<'_>) -> Result<(), Refused> {
    if event.data.len() > shard.config.limits.event_bytes_max {
        return Err(Refused::field(Refusal::EventTooLarge, "data"));
    }
    if event.message_id.is_empty() && event.producer.is_none() {
        return Err(Refused::field(Refusal::MissingField, "message_id"));
    }
    Ok(())
}

/// Appends parts of one session as one record, or answers why not.
pub(crate) fn append(shard: &mut Shard, call: Call<'_>, parts: &NewParts<'_>, form: Form) -> Outcome {
    // Reused from command to command: the steady path allocates nothing.
    let mut checked = std::mem::take(&mut shard.checked);
    checked.new.clear();
    checked.repeats.clear();
    let outcome = append_if_sound(shard, call, parts, form, &mut checked);
    shard.checked = checked;
    outcome
}

fn append_if_sound(
    shard: &mut Shard,
    call: Call<'_>,
    parts: &NewParts<'_>,
    form: Form,
    checked: &mut Checked,
) -> Outcome {
    let Call { asker, partition, session, now, .. } = call;
    let NewParts { events, markers, entries, complete, holds, if_next } = *parts;
    let bytes = record_bytes_max(shard, asker, session, parts);
    if !shard.log.room(bytes) {
        if shard.log.no_space() {
            return shard.refuse(asker, Refused::later(Refusal::NoSpace, NO_SPACE_RETRY_MS));
        }
        if bytes > shard.log.record_bytes_max() {
            return shard.refuse(asker, Refused::field(Refusal::CommandTooLarge, "events"));
        }
        return Outcome::Later;
    }
    let slot = match shard.open(partition, &asker.tenant, session, None) {
        Opened::Ready(slot) => slot,
        Opened::Park => return Outcome::Park,
        Opened::Refused(refused) => return shard.refuse(asker, refused),
        Opened::Absent => {
            if let Some(refused) = first_needs_no_past(parts) {
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
    for event in events {
        match check(shard, call, slot, event, checked) {
            Verdict::New(one) => checked.new.push(one),
            Verdict::Repeat(offset) => checked.repeats.push(offset),
            Verdict::Refused(refused) => return shard.refuse(asker, refused),
            Verdict::Park => return Outcome::Park,
        }
    }
    if !checked.repeats.is_empty() {
        if checked.new.is_empty() && checked.repeats.windows(2).all(|w| w[0] == NO_OFFSET || w[1] == w[0] + 1) {
            return repeat(shard, call, slot, checked.repeats[0], events.len() as u32, form);
        }
        return shard.refuse(asker, Refused::field(Refusal::MessageIdReused, "message_id"));
    }
    // A repeat was answered: what it came after has not changed for it.
    let tail = shard.log.partition(slot).tail();
    if if_next.is_some_and(|next| next != tail) {
        return shard.refuse(asker, Refused::expects(Refusal::WrongNext, "if_next", tail));
    }
    let mut growth = Growth { sessions: shard.begins_session(slot), ..Growth::default() };
    if !entries.is_empty() {
        match check_entries(shard, partition, slot, &asker.tenant, entries, now) {
            Ok(more) => growth.entry_bytes = more,
            Err(refused) => return shard.refuse(asker, refused),
        }
    }
    let mut done = None;
    for (job, lease) in holds.into_iter().chain(complete) {
        let epoch = shard.log.partition(slot).epoch();
        let Some((found, _)) = shard.find_job(partition, epoch, &job) else {
            return shard.refuse(asker, Refused::field(Refusal::UnknownJob, "job"));
        };
        if let Err(refused) = held(shard, found, lease) {
            return shard.refuse(asker, refused);
        }
        done = complete.map(|_| found);
    }
    let causes = checked.new.iter().map(|new| (new.prev_offset != NO_OFFSET).then_some(new.prev_offset));
    let topics = events.iter().map(|event| event.topic);
    let cancels = shard.cancels(slot, topics.zip(causes), complete.as_ref().map(|(job, _)| job));
    if !cancels.is_empty() {
        let bytes = bytes + cancels.iter().map(|(queue, _)| queue.len() + size_of::<JobBody<'_>>()).sum::<usize>();
        if bytes > shard.log.record_bytes_max() {
            return shard.refuse(asker, Refused::field(Refusal::CommandTooLarge, "events"));
        }
        if !shard.log.room(bytes) {
            return Outcome::Later;
        }
    }
    if let Some(refused) = check_markers(shard, slot, markers, events.len() as u64) {
        return shard.refuse(asker, refused);
    }
    let openings = shard.openings(&asker.tenant, session, events.iter().map(|event| event.topic), tail, now);
    if !openings.is_empty() {
        if openings.len() + cancels.len() >= RECORD_JOBS_MAX {
            return shard.refuse(asker, Refused::field(Refusal::CommandTooLarge, "events"));
        }
        match shard.admit_jobs(&asker.tenant, slot, &openings, now) {
            Ok(true) => {}
            Ok(false) => return Outcome::Park,
            Err(refused) => return shard.refuse(asker, refused),
        }
        growth.jobs = openings.len() as u64;
    }
    if let Some(refused) = check_markers(shard, slot, markers, events.len() as u64) {
        return shard.refuse(asker, refused);
    }
    let topics = events.iter().map(|event| event.topic);
    let groups = match group_moves(shard, slot, asker, topics, markers) {
        Ok(groups) => groups,
        Err(refused) => return shard.refuse(asker, refused),
    };
    if openings.len() + cancels.len() + ack::steps(&groups) >= RECORD_JOBS_MAX {
        return shard.refuse(asker, Refused::field(Refusal::CommandTooLarge, "events"));
    }
    let steps = Steps { done, openings: &openings, cancels: &cancels, groups: &groups };
    if events.is_empty() && entries.is_empty() && done.is_none() && steps.are_none() && plain(markers).next().is_none()
    {
        return nothing_moved(shard, call, slot, markers, &groups, form);
    }
    match shard.may_keep(&asker.tenant, partition, growth, now) {
        quota::Verdict::Passes => {}
        quota::Verdict::Waits => return Outcome::Park,
        quota::Verdict::Refused(refused) => return shard.refuse(asker, refused),
    }
    shard.append_checked(call, slot, parts, &checked.new, steps, form);
    Outcome::Done
}

/// What becomes of jobs by one record.
#[derive(Clone, Copy)]
struct Steps<'a> {
    /// The one that it ends.
    done: Option<u32>,
    openings: &'a [Opening],
    cancels: &'a [(Box<str>, Offset)],
    /// What becomes of groups.
    groups: &'a [Move],
}

impl Steps<'_> {
    fn are_none(&self) -> bool {
        self.openings.is_empty() && self.cancels.is_empty() && ack::steps(self.groups) == 0
    }
}

/// Markers that are their owner's own, and no group's.
fn plain<'a>(markers: &'a [NewMarker<'a>]) -> impl Iterator<Item = &'a NewMarker<'a>> {
    markers.iter().filter(|marker| marker.lease.is_none())
}

fn group_moves<'a>(
    shard: &Shard,
    slot: PartitionSlot,
    asker: &Asker,
    topics: impl Iterator<Item = &'a str> + Clone,
    markers: &[NewMarker<'_>],
) -> Result<Vec<Move>, Refused> {
    // The steady path: no groups, or none of them acknowledged.
    if shard.groups.is_empty() && markers.iter().all(|marker| marker.lease.is_none()) {
        return Ok(Vec::new());
    }
    shard.group_moves(slot, &asker.tenant, topics, markers)
}

/// Acknowledged is what was acknowledged before: the leases go on, and there is nothing to be kept.
fn nothing_moved(
    shard: &mut Shard,
    call: Call<'_>,
    slot: PartitionSlot,
    markers: &[NewMarker<'_>],
    groups: &[Move],
    form: Form,
) -> Outcome {
    let Call { asker, session, now, .. } = call;
    let log_seq = shard.log.next_seq();
    shard.groups_moved(&asker.tenant, slot, groups, log_seq, now);
    let (partition, durability) = (shard.log.partition(slot), shard.waiters.durability);
    let (epoch, offset) = (partition.epoch(), partition.tail());
    let reply = match (form, markers) {
        (Form::Mark, [NewMarker { name, offset, .. }, ..]) => {
            Reply::Work(WorkReply::GroupAcked { session, group: name, offset: *offset })
        }
        _ => Reply::Committed { session, epoch, offset, count: 0, durability, duplicate: false, revision: 0 },
    };
    shard.answer(asker.origin, asker.id, &reply);
    Outcome::Done
}

/// Advice while the disk is full: as long as the log itself waits before it tries again.
pub(crate) const NO_SPACE_RETRY_MS: u32 = 1000;

/// Verdicts over the events of one record so far.
#[derive(Default)]
pub(crate) struct Checked {
    new: Vec<New>,
    repeats: Vec<Offset>,
}

/// An event that may be appended.
#[derive(Clone, Copy)]
pub(crate) struct New {
    key: u128,
    body_hash: u64,
    prev_offset: u64,
}

enum Verdict {
    New(New),
    Repeat(Offset),
    Refused(Refused),
    Park,
}

/// A session's first record can have no cause, and its producers begin at 0.
fn first_needs_no_past(parts: &NewParts<'_>) -> Option<Refused> {
    let NewParts { events, markers, .. } = *parts;
    if parts.complete.is_some() || parts.holds.is_some() {
        return Some(Refused::field(Refusal::UnknownJob, "job"));
    }
    if parts.if_next.is_some_and(|next| next > 0) {
        return Some(Refused::expects(Refusal::WrongNext, "if_next", 0));
    }
    if markers.iter().any(|marker| marker.lease.is_some()) {
        return Some(Refused::field(Refusal::StaleLease, "lease"));
    }
    if events.is_empty() && !markers.is_empty() {
        return Some(Refused::field(Refusal::UnknownSession, "session"));
    }
    events.iter().find(|e| e.prev_event_id.is_some()).map(|_| Refused::field(Refusal::CausalGap, "prev_event_id"))
}

fn check(shard: &mut Shard, call: Call<'_>, slot: PartitionSlot, event: &NewEvent<'_>, before: &Checked) -> Verdict {
    let Call { asker, partition, session, known, .. } = call;
    let (epoch, tail) = {
        let p = shard.log.partition(slot);
        (p.epoch(), p.tail())
    };
    let body_hash = body_hash(event);
    let mut key = 0;
    if let Some((producer_epoch, seq)) = event.producer {
        match check_producer(shard, asker, slot, producer_epoch, seq, before.new.len() as u64) {
            Verdict::New(_) => {}
            other => return other,
        }
    } else {
        key = shard.log.dedupe_key(partition, epoch, &asker.client_id, event.message_id);
        if before.new.iter().any(|new| new.key == key) {
            return Verdict::Refused(Refused::field(Refusal::MessageIdReused, "message_id"));
        }
        match look(shard, slot, key, known) {
            Looked::No => {}
            Looked::Park => return Verdict::Park,
            Looked::Yes(found) if found.body_hash == body_hash => return Verdict::Repeat(found.offset),
            Looked::Yes(_) => return Verdict::Refused(Refused::field(Refusal::MessageIdReused, "message_id")),
        }
    }
    let mut prev_offset = NO_OFFSET;
    if let Some(prev) = event.prev_event_id {
        match cause(prev, session, shard.shown(epoch), tail + before.new.len() as u64) {
            Ok(offset) => prev_offset = offset,
            Err(refused) => return Verdict::Refused(refused),
        }
    } else if let Some(prev) = event.prev_message_id {
        let prev_key = shard.log.dedupe_key(partition, epoch, &asker.client_id, prev);
        prev_offset = match before.new.iter().position(|new| new.key == prev_key) {
            Some(at) => tail + at as u64,
            None => match look(shard, slot, prev_key, known) {
                Looked::Yes(found) => found.offset,
                Looked::Park => return Verdict::Park,
                Looked::No => return Verdict::Refused(Refused::field(Refusal::CausalGap, "prev_message_id")),
            },
        };
    }
    Verdict::New(New { key, body_hash, prev_offset })
}

pub(super) enum Looked {
    No,
    Yes(Found),
    Park,
}

pub(super) fn look(shard: &mut Shard, slot: PartitionSlot, key: u128, known: &Known) -> Looked {
    let known = known.get(key);
    if let Some(Some(found)) = known {
        return Looked::Yes(found);
    }
    match shard.log.dedupe(slot, key) {
        Seen::No => Looked::No,
        // Also where the lookup found nothing: the same message, parked before this one, was appended since.
        Seen::Yes { offset, body_hash, .. } => Looked::Yes(Found { offset, body_hash }),
        Seen::Looking if known.is_some() => Looked::No,
        Seen::Looking => Looked::Park,
    }
}

/// A numbering producer: its number must be the next one. What it sent before is answered as a repeat; only for its
/// last event is the offset still known.
fn check_producer(shard: &Shard, asker: &Asker, slot: PartitionSlot, epoch: u64, seq: u64, before: u64) -> Verdict {
    let none = Verdict::New(New { key: 0, body_hash: 0, prev_offset: NO_OFFSET });
    let partition = shard.log.partition(slot);
    let Some(producer) = partition.producer(&asker.client_id) else {
        if !partition.producer_room(&asker.client_id) {
            return Verdict::Refused(Refused::field(Refusal::TooManyProducers, "producer_epoch"));
        }
        return if seq == before {
            none
        } else {
            Verdict::Refused(Refused::field(Refusal::ProducerGap, "producer_seq"))
        };
    };
    if epoch < producer.epoch {
        return Verdict::Refused(Refused::field(Refusal::ProducerFenced, "producer_epoch"));
    }
    let next = if epoch > producer.epoch { before } else { producer.seq + 1 + before };
    if seq == next {
        none
    } else if epoch == producer.epoch && seq <= producer.seq {
        Verdict::Repeat(if seq == producer.seq { producer.offset } else { NO_OFFSET })
    } else {
        Verdict::Refused(Refused::field(Refusal::ProducerGap, "producer_seq"))
    }
}

/// Offset that an event id names, if it is of this session and life and before `tail`.
fn cause(event_id: &str, session: &str, epoch: Epoch, tail: Offset) -> Result<Offset, Refused> {
    let gap = Refused::field(Refusal::CausalGap, "prev_event_id");
    // Read from the right: a session's name may hold colons.
    let mut parts = event_id.rsplitn(3, ':');
    let offset = parts.next().and_then(|t| t.parse::<u64>().ok());
    let prev_epoch = parts.next().filter(|t| t.len() == 16).and_then(|t| u64::from_str_radix(t, 16).ok());
    let (Some(offset), Some(prev_epoch), Some(name)) = (offset, prev_epoch, parts.next()) else { return Err(gap) };
    if name != session {
        return Err(Refused::field(Refusal::CrossSession, "prev_event_id"));
    }
    if prev_epoch != epoch || offset >= tail { Err(gap) } else { Ok(offset) }
}

fn check_markers(shard: &Shard, slot: PartitionSlot, markers: &[NewMarker<'_>], appended: u64) -> Option<Refused> {
    let partition = shard.log.partition(slot);
    let mut fresh = 0;
    for (i, marker) in markers.iter().enumerate() {
        if marker.lease.is_some() {
            continue;
        }
        if marker.offset > partition.tail() + appended {
            return Some(Refused::field(Refusal::OffsetOutOfRange, "offset"));
        }
        if plain(&markers[..i]).any(|m| m.name == marker.name) {
            return Some(Refused::field(Refusal::MarkerBackwards, "name"));
        }
        match partition.marker(marker.name) {
            Some(stands) if marker.offset < stands => return Some(Refused::field(Refusal::MarkerBackwards, "offset")),
            Some(_) => {}
            None => fresh += 1,
        }
    }
    let held = partition.markers().len();
    (fresh > 0 && held + fresh > storage::catalog::MARKERS_MAX)
        .then_some(Refused::field(Refusal::TooManyMarkers, "name"))
}

/// A repeat: answered with the first one's id, once that is committed.
pub(super) fn repeat(
    shard: &mut Shard,
    call: Call<'_>,
    slot: PartitionSlot,
    offset: Offset,
    count: u32,
    form: Form,
) -> Outcome {
    let Call { asker, session, .. } = call;
    let (epoch, committed) = {
        let p = shard.log.partition(slot);
        (p.epoch(), p.committed())
    };
    let count = (form == Form::Commit).then_some(count);
    let last = if offset == NO_OFFSET { 0 } else { offset + u64::from(count.unwrap_or(1)) };
    let everything_committed = shard.log.committed_seq() == shard.log.next_seq();
    if last <= committed && (offset != NO_OFFSET || everything_committed) {
        let durability = shard.waiters.durability;
        let reply = match count {
            Some(count) => Reply::Committed { session, epoch, offset, count, durability, duplicate: true, revision: 0 },
            None => Reply::Published { session, epoch, offset, durability, duplicate: true },
        };
        shard.answer(asker.origin, asker.id, &reply);
    } else {
        // All that was appended so far includes the first one.
        let log_seq = shard.log.next_seq() - 1;
        let answer = Answer::Duplicate { session: session.into(), epoch, offset, count };
        shard.waiters.push(Waiter { log_seq, origin: asker.origin, id: asker.id, answer });
    }
    Outcome::Done
}

/// Tells a repeat from a reused id. xxh3 is enough: whoever collides harms only their own message.
fn body_hash(event: &NewEvent<'_>) -> u64 {
    let topic = xxh3_64_with_seed(event.topic.as_bytes(), u64::from(event.data_kind as u8));
    let data = xxh3_64_with_seed(event.data, topic);
    match event.prev_event_id.or(event.prev_message_id) {
        Some(cause) => xxh3_64_with_seed(cause.as_bytes(), data),
        None => data,
    }
}

/// Bound of the record's bytes, proved before anything changes.
fn record_bytes_max(shard: &Shard, asker: &Asker, session: &str, parts: &NewParts<'_>) -> usize {
    let events: usize = parts
        .events
        .iter()
        .map(|e| {
            e.topic.len()
                + e.message_id.len()
                + e.traceparent.len()
                + e.data.len()
                + asker.client_id.len()
                + size_of::<EventBody<'_>>()
        })
        .sum();
    let markers: usize = parts.markers.iter().map(|m| m.name.len() + size_of::<MarkerBody<'_>>()).sum();
    let entry = |e: &NewEntry<'_>| e.key.len() + e.value.map_or(0, <[u8]>::len) + size_of::<EntryBody<'_>>();
    let entries: usize = parts.entries.iter().map(entry).sum();
    let complete = parts.complete.map_or(0, |(job, _)| job.queue.len() + size_of::<JobBody<'_>>());
    // Each event may be a job of a few queues; what is more does not fit into a record anyway.
    let jobs = complete + shard.openings_bytes_max(&asker.tenant, parts.events.iter().map(|event| event.topic));
    let jobs = jobs + shard.group_bytes_max(&asker.tenant, parts.markers);
    storage::record::HEAD_BYTES + asker.tenant.len() + session.len() + events + markers + entries + jobs + 64
}

fn body<'a>(asker: &'a Asker, event: &NewEvent<'a>, new: &New, now: Now) -> EventBody<'a> {
    EventBody {
        topic: event.topic,
        client_id: &asker.client_id,
        message_id: event.message_id,
        traceparent: event.traceparent,
        data: event.data,
        data_kind: event.data_kind as u8,
        prev_offset: new.prev_offset,
        // 0 would mean "never": a life that ended before 1970 still ended.
        expires_ms: event.ttl_ms.map_or(0, |ttl| now.wall_ms.saturating_add(ttl).max(1)),
        producer_epoch: event.producer.map_or(0, |p| p.0),
        producer_seq: event.producer.map_or(NO_OFFSET, |p| p.1),
        dedupe_low: new.key as u64,
        dedupe_high: (new.key >> 64) as u64,
        body_hash: new.body_hash,
    }
}

fn entry_body<'a>(entry: &NewEntry<'a>, now: Now) -> EntryBody<'a> {
    EntryBody {
        key: entry.key,
        value: entry.value.unwrap_or_default(),
        act: if entry.value.is_some() { EntryAct::Put } else { EntryAct::Deleted } as u8,
        // 0 would mean "never".
        expires_ms: entry.ttl_ms.map_or(0, |ttl| now.wall_ms.saturating_add(ttl).max(1)),
    }
}

impl Shard {
    fn append_checked(
        &mut self,
        call: Call<'_>,
        slot: PartitionSlot,
        parts: &NewParts<'_>,
        new: &[New],
        Steps { done, openings, cancels, groups }: Steps<'_>,
        form: Form,
    ) {
        let Call { asker, partition, now, .. } = call;
        let NewParts { events, markers, entries, complete, .. } = *parts;
        let is_plain = entries.is_empty() && openings.is_empty() && cancels.is_empty() && complete.is_none();
        let is_plain = is_plain && ack::steps(groups) == 0;
        let appended = if let ([event], [new], [], true) = (events, new, markers, is_plain) {
            self.log.append(slot, &[body(asker, event, new, now)], &[], now.wall_ms)
        } else {
            let bodies: Vec<EventBody<'_>> =
                events.iter().zip(new).map(|(event, new)| body(asker, event, new, now)).collect();
            let markers: Vec<MarkerBody<'_>> =
                plain(markers).map(|marker| MarkerBody { name: marker.name, offset: marker.offset }).collect();
            let entries: Vec<EntryBody<'_>> = entries.iter().map(|entry| entry_body(entry, now)).collect();
            let mut jobs: Vec<JobBody<'_>> = openings.iter().map(Opening::body).collect();
            let step = |queue, offset, act| JobBody {
                queue,
                offset,
                act: act as u8,
                priority: 0,
                attempts: 0,
                at_ms: now.wall_ms,
                partial: b"",
            };
            jobs.extend(complete.iter().map(|(job, _)| step(job.queue, job.offset, JobAct::Done)));
            jobs.extend(cancels.iter().map(|(queue, offset)| step(queue, *offset, JobAct::Cancelled)));
            jobs.extend(groups.iter().flat_map(Move::bodies));
            let parts = Parts { events: &bodies, markers: &markers, entries: &entries, jobs: &jobs };
            let appended = self.log.append_parts(slot, &parts, now.wall_ms);
            if !entries.is_empty() {
                self.entries_changed(partition, slot, &asker.tenant, &entries, now);
            }
            self.jobs_opened(&asker.tenant, openings);
            self.queues.cancelled(partition, cancels);
            if let Some(done) = done {
                self.free_worker(done, false);
                self.queues.set_state(done, State::Settling);
            }
            appended
        };
        self.count_kept(&asker.tenant, now);
        if !groups.is_empty() {
            self.groups_moved(&asker.tenant, slot, groups, appended.log_seq, now);
        }
        let revision = match self.log.partition(slot).entries() {
            Some(known) if !entries.is_empty() => known.revision(),
            _ => 0,
        };
        if form == Form::Publish(Durability::Memory) {
            let (origin, id) = (asker.origin, asker.id);
            let partition = self.log.partition(slot);
            let (session, epoch) = (partition.session().to_owned(), partition.epoch());
            let reply = Reply::Published {
                session: &session,
                epoch,
                offset: appended.offset,
                durability: Durability::Memory,
                duplicate: false,
            };
            return self.answer(origin, id, &reply);
        }
        if let (Form::Declare, [entry]) = (form, entries) {
            let (queue, value) = (entry.key, entry.value.unwrap_or_default().to_vec());
            return self.declaring(asker.origin, asker.id, &asker.tenant, queue, value, appended.log_seq);
        }
        let answer = match form {
            Form::Publish(_) => Answer::Published,
            Form::Commit => Answer::Committed { revision },
            Form::Mark => match markers {
                [NewMarker { name, offset, lease: Some(_) }] => {
                    Answer::GroupAcked { group: (*name).into(), offset: *offset }
                }
                _ => Answer::Marked,
            },
            Form::Entry | Form::Declare => Answer::EntrySet { revision },
        };
        self.waiters.push(Waiter { log_seq: appended.log_seq, origin: asker.origin, id: asker.id, answer });
    }
}

/// An event that is not logged: for those who listen now.
fn volatile(shard: &mut Shard, call: Call<'_>, event: &NewEvent<'_>) -> Outcome {
    let Call { asker, partition, session, .. } = call;
    if event.data.len() > shard.config.limits.event_bytes_max {
        return shard.refuse(asker, Refused::field(Refusal::EventTooLarge, "data"));
    }
    if !shard.volatiles.has_room() {
        return Outcome::Later;
    }
    let after_offset = match shard.open(partition, &asker.tenant, session, None) {
        Opened::Ready(slot) => shard.log.partition(slot).committed(),
        Opened::Absent => 0,
        Opened::Park => return Outcome::Park,
        Opened::Refused(refused) => return shard.refuse(asker, refused),
    };
    shard.volatiles.push(partition, &asker.tenant, session, &asker.client_id, after_offset, event);
    shard.answer(asker.origin, asker.id, &Reply::PublishedVolatile { after_offset });
    Outcome::Done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_read_from_the_right_and_must_exist() {
        assert_eq!(cause("a:b:00000000000000ff:3", "a:b", 255, 4), Ok(3));
        let refusal = |id: &str, tail| cause(id, "a:b", 255, tail).map_err(|r| r.refusal);
        assert_eq!(refusal("a:b:00000000000000ff:3", 3), Err(Refusal::CausalGap), "not appended yet");
        assert_eq!(refusal("a:b:00000000000000fe:3", 9), Err(Refusal::CausalGap), "another life");
        assert_eq!(refusal("a:c:00000000000000ff:3", 9), Err(Refusal::CrossSession));
        for garbage in ["", "3", "ff:3", "a:b:ff:3", "a:b:00000000000000ff:", "a:b:00000000000000ff:-1"] {
            assert_eq!(refusal(garbage, 9), Err(Refusal::CausalGap), "{garbage}");
        }
    }
}
