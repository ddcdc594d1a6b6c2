//! The side of the sessions: who is told that there is something, who gets what, who has to let go.
//!
//! ```text
//!   PULL begins ─► puller, dry ── something may be claimed ──► HINT, dry no more
//!   CLAIM n ─► up to n jobs, their events from the hot tail, or from disk: then a little later ── fewer than n ──► dry
//!       └─► record: claimed, with the next group; nobody waits for it
//!   RELEASE ─► waits again, as if it had not been claimed
//! ```
//! Hints are levels: one that finds the lane full is said again, and whoever is not dry asks by itself.

use super::jobs::{Claim, Due, State};
use super::line::Puller;
use super::{JobKey, packed};
use crate::behind::ReadFor;
use crate::command::Lease;
use crate::ids::{Now, ShardId};
use crate::mailbox::codec::{Reader, Writer};
use crate::mailbox::message::{reply, request};
use crate::shard::{Opened, Shard};
use std::sync::Arc;
use storage::catalog::is_group;
use storage::log::{Read, ReadFault, ReadTicket};
use storage::record::{JobAct, JobBody, Parts, RecordView};

/// Bytes of jobs that a reply aims at.
const CLAIM_BYTES: usize = 32 << 10;

/// A lease of a queue that is not known any more. Milliseconds.
const LEASE_MS: u64 = 30_000;

/// Room in the log for the word of a claim.
const CLAIM_RECORD_BYTES: usize = 1024;

/// What became of a job's event.
enum Event {
    Packed(Vec<u8>),
    /// On its way from disk.
    Coming,
    Lost,
}

impl Shard {
    /// Bytes of jobs that a reply aims at, and holds at most.
    pub(crate) fn claim_bytes(&self) -> (usize, usize) {
        let aim = CLAIM_BYTES.min(self.config.limits.mailbox_bytes / 8);
        (aim, aim + self.config.limits.event_bytes_max + 2048)
    }

    /// `PULL`: a shard has workers for a queue, or has none any more.
    pub(crate) fn handle_pull(&mut self, from: ShardId, r: &mut Reader<'_>) {
        let (tenant, queue, begins) = (r.text(), r.text(), r.u8() == 1);
        self.follow_queue(from, &tenant.into(), queue, begins);
    }

    pub(super) fn follow_queue(&mut self, shard: ShardId, tenant: &Arc<str>, queue: &str, begins: bool) {
        if is_group(queue) {
            return self.groups.follow(shard, tenant, queue, begins);
        }
        let line = self.queues.line(tenant, queue);
        let pullers = &mut self.queues.lines[line as usize].pullers;
        pullers.retain(|puller| puller.shard != shard);
        if begins {
            pullers.push(Puller { shard, dry: true });
            self.queues.note_news(line);
        }
    }

    /// Tells shards with workers that there is something. Returns how many were told.
    pub(super) fn serve_hints(&mut self) -> usize {
        let mut done = 0;
        for _ in 0..self.queues.news.len() {
            let Some(line) = self.queues.news.pop_front() else { break };
            let Some(here) = self.queues.lines.get_mut(line as usize) else { continue };
            // What is claimed is said in the log: where that has no room for it, there is nothing to be had yet.
            if here.is_claimable() && !self.log.room(CLAIM_RECORD_BYTES) && !self.log.no_space() {
                self.queues.news.push_back(line);
                continue;
            }
            here.has_news = false;
            if !here.is_claimable() {
                continue;
            }
            let (tenant, queue) = (here.tenant.clone(), here.queue.clone());
            let dry: Vec<ShardId> =
                here.pullers.iter().filter(|puller| puller.dry).map(|puller| puller.shard).collect();
            here.pullers.iter_mut().for_each(|puller| puller.dry = false);
            for shard in dry {
                done += 1;
                if shard == self.config.shard {
                    self.hear_hint(shard, &tenant, &queue);
                } else {
                    let mut word = Vec::new();
                    Writer(&mut word).u8(request::HINT).text(&tenant).text(&queue);
                    self.queues.tell(shard, word);
                }
            }
        }
        done
    }

    /// `CLAIM`: a shard wants up to so many jobs of a queue.
    pub(crate) fn handle_claim(&mut self, from: ShardId, r: &mut Reader<'_>, now: Now) {
        let reply_bytes = r.u32();
        let (tenant, queue, count) = (r.text(), r.text(), r.u32());
        let mut jobs = Vec::new();
        let more = self.give_jobs(from, &tenant.into(), queue, count, &mut jobs, now);
        self.reply_scratch.clear();
        let mut w = Writer(&mut self.reply_scratch);
        w.u8(reply::CLAIMED).u32(reply_bytes).text(tenant).text(queue).u32(count).u8(u8::from(more)).bytes(&jobs);
        self.mail.reply(from, &self.reply_scratch);
        self.wake(from);
    }

    /// Gives out up to so many jobs. Returns whether there is more.
    pub(super) fn give_jobs(
        &mut self,
        to: ShardId,
        tenant: &Arc<str>,
        queue: &str,
        count: u32,
        jobs: &mut Vec<u8>,
        now: Now,
    ) -> bool {
        if is_group(queue) {
            return self.give_runs(to, tenant, queue, count, jobs, now);
        }
        let line = self.queues.line(tenant, queue);
        let lease_ms = self.queues.definition(tenant, queue).map_or(LEASE_MS, |definition| definition.lease_ms);
        let (aim, _) = self.claim_bytes();
        let (mut given, mut has_room) = (0, true);
        while given < count && jobs.len() < aim {
            let is_logged = !self.log.no_space();
            if is_logged && !self.log.room(CLAIM_RECORD_BYTES) {
                has_room = false;
                break;
            }
            let Some(job) = self.queues.lines[line as usize].claim() else { break };
            // The line has taken it out already.
            self.queues.jobs[job as usize].state = State::Fetching;
            let event = match self.event_of(job, tenant) {
                Event::Packed(event) => event,
                Event::Coming => continue,
                Event::Lost => {
                    let generation = self.queues.jobs[job as usize].generation;
                    self.queues.due.push_back(((job, generation), Due::Lost));
                    continue;
                }
            };
            let nonce = self.new_epoch();
            if is_logged && !self.say_claimed(job, nonce, now) {
                // Its session is on its way into memory.
                let known = &mut self.queues.jobs[job as usize];
                known.event = Some(event.into());
                let id = (job, known.generation);
                self.queues.fetches.push_back(id);
                continue;
            }
            let known = &mut self.queues.jobs[job as usize];
            let lease = Lease { attempt: known.attempts + 1, nonce };
            let rest_us = known.deadline_us.saturating_sub(now.mono_us);
            let until_us = now.mono_us + (lease_ms * 1000).min(rest_us);
            known.state = State::Claimed(Claim { lease, shard: to, until_us });
            (known.was_claimed, known.event) = (true, None);
            let head = packed::Head {
                session: &known.session,
                epoch: known.epoch,
                offset: known.offset,
                lease,
                deadline_ms: known.deadline_ms,
                lease_ms: lease_ms.min(rest_us / 1000),
            };
            let mut one = Vec::with_capacity(event.len() + 256);
            packed::put_head(&mut Writer(&mut one), &head);
            one.extend_from_slice(&event);
            Writer(jobs).bytes(&one);
            let id = (job, known.generation);
            self.queues.timers.put(until_us, id, Due::Lease(nonce));
            given += 1;
        }
        let here = &mut self.queues.lines[line as usize];
        let more = has_room && here.is_claimable();
        if let Some(puller) = here.pullers.iter_mut().find(|puller| puller.shard == to) {
            puller.dry = !more;
        }
        if !has_room {
            self.queues.note_news(line);
        }
        more
    }

    /// Appends that an attempt begins, or with nonce 0 that it does not. `false`: the session is not in memory.
    fn say_claimed(&mut self, job: u32, nonce: u64, now: Now) -> bool {
        let known = &self.queues.jobs[job as usize];
        let (partition, session, offset, attempts) =
            (known.partition, known.session.clone(), known.offset, known.attempts);
        let line = &self.queues.lines[known.line as usize];
        let (tenant, queue) = (line.tenant.clone(), line.queue.clone());
        let Opened::Ready(slot) = self.open(partition, &tenant, &session, None) else { return false };
        let act = JobAct::Claimed as u8;
        let step = JobBody { queue: &queue, offset, act, priority: 0, attempts, at_ms: nonce, partial: b"" };
        self.append_steps(slot, &Parts { jobs: &[step], ..Parts::default() }, now).is_some()
    }

    /// The event of a job, if it is at hand; where it is not, it is fetched.
    fn event_of(&mut self, job: u32, tenant: &Arc<str>) -> Event {
        let known = &mut self.queues.jobs[job as usize];
        if let Some(event) = known.event.take() {
            return Event::Packed(event.into());
        }
        let (id, partition, offset) = ((job, known.generation), known.partition, known.offset);
        let session = known.session.clone();
        let slot = match self.open(partition, tenant, &session, None) {
            Opened::Ready(slot) => slot,
            Opened::Absent => return Event::Lost,
            Opened::Park | Opened::Refused(_) => {
                self.queues.fetches.push_back(id);
                return Event::Coming;
            }
        };
        let read = self.log.read(slot, offset);
        let is_ready = matches!(read, Read::Ready(_));
        match read {
            Read::Hot(record) => match pack(record, offset) {
                Some(event) => Event::Packed(event),
                None => Event::Lost,
            },
            Read::Cold(ticket) | Read::Ready(ticket) => {
                self.reads.insert(ticket, ReadFor::Job(id));
                if is_ready {
                    self.ready_reads.push_back(ticket);
                }
                Event::Coming
            }
            Read::Busy | Read::End => {
                self.queues.fetches.push_back(id);
                Event::Coming
            }
            Read::Gap { .. } | Read::Fault(_) => Event::Lost,
        }
    }

    /// Jobs whose event could not be asked for are tried again. Returns how many were.
    pub(super) fn serve_fetches(&mut self) -> usize {
        let mut done = 0;
        for _ in 0..self.queues.fetches.len() {
            let Some(id) = self.queues.fetches.pop_front() else { break };
            let Some(job) = self.queues.get(id).filter(|job| job.state == State::Fetching) else { continue };
            let tenant = self.queues.lines[job.line as usize].tenant.clone();
            match self.event_of(id.0, &tenant) {
                Event::Packed(event) => self.job_fetched(id, Some(event)),
                Event::Coming => continue,
                Event::Lost => self.job_fetched(id, None),
            }
            done += 1;
        }
        done
    }

    /// The event of a job has come from disk, or cannot.
    pub(crate) fn job_read(&mut self, ticket: ReadTicket, id: (u32, u32)) {
        let offset = self.queues.get(id).map(|job| job.offset);
        let found = match self.log.read_records(ticket) {
            Ok(mut records) => Ok(offset.and_then(|offset| records.find_map(|record| pack(record, offset)))),
            Err(fault) => Err(fault),
        };
        self.log.release(ticket);
        match found {
            Ok(event) => self.job_fetched(id, event),
            // The segment went, and what it held stands elsewhere, or a gap says that it does not: look again.
            Err(ReadFault::Gone) => self.queues.fetches.push_back(id),
            Err(_) => self.job_fetched(id, None),
        }
    }

    fn job_fetched(&mut self, id: (u32, u32), event: Option<Vec<u8>>) {
        let Some(job) = self.queues.jobs.get_mut(id.0 as usize).filter(|job| job.generation == id.1) else { return };
        if job.state != State::Fetching {
            return;
        }
        match event {
            Some(event) => {
                job.event = Some(event.into());
                self.queues.set_state(id.0, State::Waiting);
            }
            None => self.queues.due.push_back((id, Due::Lost)),
        }
    }

    /// `RELEASE`: a job was given to a shard whose worker is gone.
    pub(crate) fn handle_release(&mut self, r: &mut Reader<'_>, now: Now) {
        let (key, nonce) = (JobKey(r.u128()), r.u64());
        self.release_job(key, nonce, now);
    }

    pub(super) fn release_job(&mut self, key: JobKey, nonce: u64, now: Now) {
        let Some((slot, job)) = self.queues.find(key) else { return self.release_run(key, nonce) };
        if matches!(job.state, State::Claimed(claim) if claim.lease.nonce == nonce) {
            self.queues.set_state(slot, State::Waiting);
            // Where there is no room to say so, the next claim does; or after a crash it waits for a lease of nobody.
            self.say_claimed(slot, 0, now);
        }
    }
}

/// What a worker is told of the event at this offset.
fn pack(record: RecordView<'_>, offset: u64) -> Option<Vec<u8>> {
    let event = record.events().find(|event| event.offset() == offset)?;
    let mut out = Vec::with_capacity(event.data().len() + 256);
    packed::put_event(&mut Writer(&mut out), &event);
    Some(out)
}
