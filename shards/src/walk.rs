//! The walk: what was just committed, in log order, once. Everything that a commit causes happens here.
//!
//! ```text
//!  announced            committed
//!      │ record record record │
//!      ▼
//!   per record: waiters ─► replies
//!               local feeds, local pattern clients ─► outbox
//!               interested shards ─► batch, one message per shard and walk
//! ```
//! Readers see nothing else: an offset is delivered only after the walk, or a read below it, has passed.

use crate::clients::life::Opened;
use crate::command::{Durability, JobName};
use crate::effect::{Reply, WorkReply};
use crate::ids::{LifeId, Now, ShardId};
use crate::mailbox::codec::Writer;
use crate::mailbox::message::{put_reply, request};
use crate::outbox::Outbox;
use crate::run::Run;
use crate::sessions::Origin;
use crate::sessions::waiters::{Answer, Waiter};
use crate::shard::Shard;
use crate::streams::notices::is_control;
use storage::ids::LogSeq;
use storage::record::{EntryAct, Kind, RecordView};

/// Records of one walk for one shard, and which tenants' streams they continue.
#[derive(Default)]
pub(crate) struct Batch {
    /// Records back to back.
    records: Vec<u8>,
    /// Partitions and tenants in it, to be marked where the message finds no room.
    sessions: Vec<(storage::ids::PartitionId, u64, u64)>,
    tenants: Vec<(Box<str>, LogSeq)>,
}

impl Batch {
    fn clear(&mut self) {
        self.records.clear();
        self.sessions.clear();
        self.tenants.clear();
    }
}

impl Shard {
    /// Walks what was committed since the last time. Returns the records walked.
    pub(crate) fn announce(&mut self, now: Now, out: &mut impl Outbox) -> usize {
        let committed = self.log.committed_seq();
        if self.announced == committed {
            return 0;
        }
        let own = self.config.shard;
        let interested = !self.interests.is_empty();
        let mut walked = 0;
        let mut run = Run::default();
        let mut pages = Vec::new();
        for record in self.log.committed_records(self.announced) {
            if record.log_seq() >= committed {
                break;
            }
            assert_eq!(record.log_seq(), self.announced + walked as u64, "every committed record is walked, in order");
            walked += 1;
            if let Some(trace) = self.traces.walk(record) {
                out.walked(trace, record);
            }
            while let Some(waiter) = self.waiters.pop(record.log_seq() + 1) {
                if let Answer::Entries(page) = waiter.answer {
                    pages.push((waiter.origin, waiter.id, page));
                    continue;
                }
                let reply = reply_of(&waiter, record, self.waiters.durability);
                if let (Reply::ClientOpened { tenant, client_id, life, state }, Origin::Local(connection)) =
                    (reply, waiter.origin)
                {
                    self.lives.open(connection, waiter.id, &Opened { tenant, client_id, life, state });
                    continue;
                }
                answer(&mut self.readers, &mut self.effects, &mut self.mail, &mut self.reply_scratch, &waiter, &reply);
            }
            if record.kind() == Kind::Work {
                self.watches.note_record(&self.log, record);
                self.queues.note(record, now);
            }
            if record.count() == 0 {
                continue;
            }
            self.announced_slices[usize::from(record.slice().0)] = record.slice_seq() + u64::from(record.count()) - 1;
            if !run.goes_on_with(record) {
                self.readers.offer(run.records(), now, out);
                run.begin();
            }
            run.take(record);
            if record.events().any(|event| is_control(event.topic())) {
                self.notices.note(record);
            }
            let tenants = &self.readers.tenants;
            if !tenants.is_empty() && tenants.get(record.tenant()).is_some() {
                // A client may have a session from its pattern feed up to an offset and from a subscription after it.
                self.readers.offer(run.records(), now, out);
                run.begin();
                self.readers.offer_patterns(own, record, now, out);
            }
            if interested {
                for shard in self.interests.sessions(record.partition()) {
                    let batch = &mut self.batches[usize::from(shard.0)];
                    batch.records.extend_from_slice(record.bytes());
                    batch.sessions.push((record.partition(), record.epoch(), record.next_offset()));
                }
                batch_for_patterns(&mut self.interests, &mut self.batches, record);
            }
        }
        self.readers.offer(run.records(), now, out);
        drop(run);
        self.announced = committed;
        for (origin, id, page) in pages {
            self.answer_entries(origin, id, page);
        }
        if interested {
            self.send_batches();
        }
        walked
    }

    fn send_batches(&mut self) {
        for peer in 0..self.batches.len() {
            let batch = &mut self.batches[peer];
            if batch.records.is_empty() {
                continue;
            }
            let mut batch = std::mem::take(batch);
            let peer = ShardId(peer as u16);
            let through = self.announced;
            let mut message = std::mem::take(&mut self.scratch);
            message.clear();
            let mut w = Writer(&mut message);
            w.u8(request::EVENTS).u16(self.config.shard.0).u16(batch.tenants.len() as u16);
            for (tenant, from) in &batch.tenants {
                w.text(tenant).u64(*from).u64(through);
            }
            message.extend_from_slice(&batch.records);
            if self.mail.tell(peer, &message) {
                for (tenant, _) in &batch.tenants {
                    if let Some(interest) = self.interests.tenant(tenant).iter_mut().find(|t| t.shard == peer) {
                        interest.sent = through;
                        interest.missed = false;
                    }
                }
                self.wake(peer);
            } else {
                self.counters.mail_missed += 1;
                for (partition, epoch, to) in &batch.sessions {
                    self.interests.miss(*partition, peer, *epoch, *to);
                }
                for (tenant, _) in &batch.tenants {
                    self.interests.miss_tenant(tenant, peer, through);
                }
            }
            self.scratch = message;
            batch.clear();
            self.batches[usize::from(peer.0)] = batch;
        }
    }

    /// Tells peers of interrupted streams, now that there may be room.
    pub(crate) fn tell_missed(&mut self) -> usize {
        if !self.interests.has_missed() {
            return 0;
        }
        let (mail, scratch, own) = (&mut self.mail, &mut self.scratch, self.config.shard);
        let mut woken = Vec::new();
        let mut tell = |shard: ShardId, message: &[u8]| {
            let told = mail.tell(shard, message);
            if told && !woken.contains(&shard) {
                woken.push(shard);
            }
            told
        };
        let mut told = self.interests.tell_missed(|shard, partition, epoch, to| {
            scratch.clear();
            Writer(scratch).u8(request::ADVANCE).u128(partition.0).u64(epoch).u64(to);
            tell(shard, scratch)
        });
        told += self.interests.tell_missed_tenants(|shard, tenant, sent| {
            scratch.clear();
            Writer(scratch).u8(request::EVENTS).u16(own.0).u16(1).text(tenant).u64(sent).u64(sent);
            tell(shard, scratch)
        });
        for shard in woken {
            self.wake(shard);
        }
        told
    }
}

/// Adds the record to the batch of each shard with a pattern client that wants it, unless it is in there already.
fn batch_for_patterns(
    interests: &mut crate::sessions::interest::Interests,
    batches: &mut [Batch],
    record: RecordView<'_>,
) {
    let partition = record.partition();
    let next = record.next_offset();
    for interest in interests.tenant(record.tenant()) {
        if !record.events().any(|event| interest.matches(event.topic())) {
            continue;
        }
        let batch = &mut batches[usize::from(interest.shard.0)];
        if batch.sessions.last().is_none_or(|last| (last.0, last.2) != (partition, next)) {
            batch.records.extend_from_slice(record.bytes());
        }
        if batch.tenants.iter().all(|(tenant, _)| &**tenant != record.tenant()) {
            batch.tenants.push((record.tenant().into(), interest.sent));
        }
    }
}

/// Answers a waiter without borrowing the whole shard, since the record borrows the log.
fn answer(
    readers: &mut crate::delivery::Readers,
    effects: &mut crate::effect_queue::EffectQueue,
    mail: &mut crate::mailbox::Mailboxes,
    scratch: &mut Vec<u8>,
    waiter: &Waiter,
    reply: &Reply<'_>,
) {
    match waiter.origin {
        Origin::Local(connection) => {
            if let Some(client) = readers.clients.get_mut(connection) {
                client.in_flight = client.in_flight.saturating_sub(1);
                effects.reply(connection, waiter.id, reply);
            }
        }
        Origin::Remote(shard, connection, reply_bytes) => {
            crate::answers::write_command_reply(scratch, connection, waiter.id, reply_bytes, |w| put_reply(w, reply));
            mail.reply(shard, scratch);
            if mail.must_wake(shard) {
                effects.wake(shard);
            }
        }
    }
}

fn reply_of<'a>(waiter: &'a Waiter, record: RecordView<'a>, durability: Durability) -> Reply<'a> {
    let (session, epoch, offset) = (record.session(), record.epoch(), record.offset());
    match &waiter.answer {
        Answer::Published => Reply::Published { session, epoch, offset, durability, duplicate: false },
        Answer::Committed { revision } => {
            let (count, revision) = (record.count(), *revision);
            Reply::Committed { session, epoch, offset, count, durability, duplicate: false, revision }
        }
        Answer::EntrySet { revision } => {
            let revision = *revision;
            let set = record.entries().next();
            let key = set.map_or("", |set| set.key);
            Reply::Work(if set.is_some_and(|set| set.act == EntryAct::Put) {
                WorkReply::Put { session, key, revision, durability }
            } else {
                WorkReply::Deleted { session, key, revision, durability }
            })
        }
        Answer::Job { queue, epoch, offset, happened } => {
            let job = JobName { queue, epoch: *epoch, offset: *offset };
            Reply::Work(WorkReply::Job { session, job, happened: *happened })
        }
        // Told as a frame of its own.
        Answer::Entries(_) => Reply::Acknowledged,
        Answer::Marked => {
            let (name, offset) = record.markers().next().unwrap_or(("", 0));
            Reply::Marked { session, name, offset }
        }
        Answer::GroupAcked { group, offset } => Reply::Work(WorkReply::GroupAcked { session, group, offset: *offset }),
        Answer::Opened => {
            // What was appended for this waiter; nothing else stands under its sequence.
            let (client_id, state) = record.events().last().map_or(("", &[][..]), |e| (e.client_id(), e.data()));
            let life = LifeId { generation: offset + 1, epoch: record.epoch() };
            Reply::ClientOpened { tenant: record.tenant(), client_id, life, state }
        }
        Answer::Duplicate { session, epoch, offset, count } => match count {
            Some(count) => {
                let (epoch, offset, count) = (*epoch, *offset, *count);
                Reply::Committed { session, epoch, offset, count, durability, duplicate: true, revision: 0 }
            }
            None => Reply::Published { session, epoch: *epoch, offset: *offset, durability, duplicate: true },
        },
    }
}
