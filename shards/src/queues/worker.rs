//! The side of the workers: credit, claims, jobs on their way to sockets.
//!
//! ```text
//!   pull q, 4 ─► worker of the queue ── free credit and a shard that may have something ──► CLAIM (no more than the credit)
//!                     ▲                                                                          │
//!                     │ FREE: ended, failed, or its lease is over                                ▼
//!                     └───────────────────────── held ◄── frame, when there is room ◄── dealt to the workers in turn
//! ```
//! **Credit is exact**: what is asked for counts as taken until the answer says how much came, and what came counts until its
//! session's shard says FREE. A job for a worker that has gone before it was told goes back at once, and counts as no attempt; one that
//! it was told of runs until its lease is over, for a lost socket is no failure.

use super::deal::Deal;
use super::{JobKey, packed};
use crate::command::{JobName, Lease};
use crate::effect::{JobHappened, Reply, WorkReply};
use crate::groups::group_of;
use crate::ids::{CommandId, ConnectionId, Epoch, Now, Offset, ShardId};
use crate::mailbox::codec::{Reader, Writer};
use crate::mailbox::message::request;
use crate::outbox::{Outbox, RunFrame, RunHead, get_run_head};
use crate::shard::Shard;
use hashbrown::HashMap;
use std::collections::{BTreeMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use storage::catalog::is_group;
use xxhash_rust::xxh3::Xxh3Default;

/// Jobs of one claim.
const CLAIM_JOBS_MAX: u64 = 64;

/// A connection that takes jobs of a queue.
struct Worker {
    connection: ConnectionId,
    /// It takes so many at once, and has so many.
    window: u64,
    held: u64,
}

/// Where jobs may come from.
#[derive(Clone, Copy, Default)]
struct Source {
    /// It may have something.
    ready: bool,
    /// It has been asked.
    asked: bool,
}

/// A queue that is pulled here.
struct Pull {
    workers: VecDeque<Worker>,
    /// Jobs that were asked for.
    asked: u64,
    sources: Vec<Source>,
    next_source: usize,
    is_due: bool,
}

impl Pull {
    fn free(&self) -> u64 {
        let free: u64 = self.workers.iter().map(|worker| worker.window.saturating_sub(worker.held)).sum();
        free.saturating_sub(self.asked)
    }
}

/// How a job came to be its worker's no longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Freed {
    /// By its own word.
    Ended,
    /// Its lease or its deadline was over.
    Lost,
    /// It was cancelled.
    Cancelled,
}

impl Freed {
    fn of(number: u8) -> Freed {
        match number {
            0 => Freed::Ended,
            1 => Freed::Lost,
            _ => Freed::Cancelled,
        }
    }
}

/// A job that a connection has, or is about to be told of.
struct Held {
    connection: ConnectionId,
    tenant: Arc<str>,
    queue: Arc<str>,
    session: Box<str>,
    epoch: Epoch,
    offset: Offset,
    attempt: u16,
    nonce: u64,
    told: bool,
}

/// Tenant and queue.
pub(super) type QueueName = (Arc<str>, Arc<str>);

/// All that the connections of a shard take.
#[derive(Default)]
pub(crate) struct Workers {
    pulls: BTreeMap<QueueName, Pull>,
    held: HashMap<JobKey, Held, BuildHasherDefault<Xxh3Default>>,
    /// Queues with credit and something to ask for, perhaps.
    due: Deal,
    /// Jobs that wait for room in the socket of their worker.
    ready: VecDeque<(JobKey, u64, Box<[u8]>)>,
}

impl Workers {
    /// Does something wait for room?
    pub fn wait(&self) -> bool {
        !self.due.is_empty() || !self.ready.is_empty()
    }

    fn note_due(&mut self, name: &QueueName) {
        if let Some(pull) = self.pulls.get_mut(name)
            && pull.free() > 0
            && pull.sources.iter().any(|source| source.ready && !source.asked)
            && !std::mem::replace(&mut pull.is_due, true)
        {
            self.due.push(name.clone());
        }
    }
}

impl Shard {
    /// The connection takes up to so many jobs of a queue at once.
    pub(crate) fn pull_jobs(&mut self, connection: ConnectionId, tenant: &Arc<str>, queue: &str, window: u64) {
        let name: QueueName = (tenant.clone(), queue.into());
        let shards = usize::from(self.config.shards);
        let fresh = !self.workers.pulls.contains_key(&name);
        if fresh && window == 0 {
            return;
        }
        let pull = self.workers.pulls.entry(name.clone()).or_insert_with(|| Pull {
            workers: VecDeque::new(),
            asked: 0,
            sources: vec![Source::default(); shards],
            next_source: 0,
            is_due: false,
        });
        match pull.workers.iter_mut().find(|worker| worker.connection == connection) {
            Some(worker) => worker.window = window,
            None => pull.workers.push_back(Worker { connection, window, held: 0 }),
        }
        if fresh {
            self.say_pull(&name, true);
        }
        self.leave_if_idle(&name);
        self.workers.note_due(&name);
    }

    /// The connection is gone. What it was told of runs on; what it was not goes back.
    pub(crate) fn worker_disconnected(&mut self, connection: ConnectionId, now: Now) {
        let names: Vec<QueueName> = self
            .workers
            .pulls
            .iter()
            .filter(|(_, pull)| pull.workers.iter().any(|worker| worker.connection == connection))
            .map(|(name, _)| name.clone())
            .collect();
        if names.is_empty() {
            return;
        }
        let untold: Vec<JobKey> =
            self.workers.held.iter().filter(|(_, held)| held.connection == connection).map(|(key, _)| *key).collect();
        for key in untold {
            // Where a member has come to is known: whoever goes on need not wait for the end of its lease.
            if let Some(held) = self.workers.held.remove(&key)
                && (!held.told || is_group(&held.queue))
            {
                self.say_release(&held, key, now);
            }
        }
        for name in names {
            if let Some(pull) = self.workers.pulls.get_mut(&name) {
                pull.workers.retain(|worker| worker.connection != connection);
            }
            self.leave_if_idle(&name);
            self.workers.note_due(&name);
        }
    }

    /// May one more connection be a member of this group here, or is it one already?
    pub(crate) fn has_room_for_member(&self, connection: ConnectionId, tenant: &Arc<str>, name: &str) -> bool {
        let Some(pull) = self.workers.pulls.get(&(tenant.clone(), name.into())) else { return true };
        pull.workers.len() < self.config.limits.work.group_members_per_shard_max
            || pull.workers.iter().any(|worker| worker.connection == connection)
    }

    /// The connection is no member of the group any more: what it has goes to others.
    pub(crate) fn leave_group(&mut self, connection: ConnectionId, tenant: &Arc<str>, name: &str, now: Now) {
        let is_its = |held: &Held| held.connection == connection && held.tenant == *tenant && &*held.queue == name;
        let its: Vec<JobKey> = self.workers.held.iter().filter(|(_, held)| is_its(held)).map(|(key, _)| *key).collect();
        for key in its {
            if let Some(held) = self.workers.held.remove(&key) {
                self.return_credit(&held);
                self.say_release(&held, key, now);
            }
        }
    }

    /// Nobody pulls the queue any more, and nothing is on its way: shards need not tell of it.
    fn leave_if_idle(&mut self, name: &QueueName) {
        let Some(pull) = self.workers.pulls.get_mut(name) else { return };
        pull.workers.retain(|worker| worker.window > 0 || worker.held > 0);
        if pull.workers.is_empty() && pull.asked == 0 {
            self.workers.pulls.remove(name);
            self.say_pull(name, false);
        }
    }

    fn say_pull(&mut self, name: &QueueName, begins: bool) {
        let own = self.config.shard;
        for shard in (0..self.config.shards).map(ShardId) {
            if shard == own {
                self.follow_queue(own, &name.0, &name.1, begins);
            } else {
                let mut word = Vec::new();
                Writer(&mut word).u8(request::PULL).text(&name.0).text(&name.1).u8(u8::from(begins));
                self.queues.tell(shard, word);
            }
        }
    }

    fn say_release(&mut self, held: &Held, key: JobKey, now: Now) {
        let owner = self.owner_of(self.log.partition_id(&held.tenant, &held.session));
        if owner == self.config.shard {
            self.release_job(key, held.nonce, now);
        } else {
            let mut word = Vec::new();
            Writer(&mut word).u8(request::RELEASE).u128(key.0).u64(held.nonce);
            self.queues.tell(owner, word);
        }
    }

    /// `HINT`: a shard has something of a queue.
    pub(crate) fn handle_hint(&mut self, from: ShardId, r: &mut Reader<'_>) {
        let (tenant, queue) = (r.text(), r.text());
        self.hear_hint(from, &tenant.into(), queue);
    }

    pub(crate) fn hear_hint(&mut self, from: ShardId, tenant: &Arc<str>, queue: &str) {
        let name: QueueName = (tenant.clone(), queue.into());
        if let Some(pull) = self.workers.pulls.get_mut(&name) {
            pull.sources[usize::from(from.0)].ready = true;
            self.workers.note_due(&name);
        }
    }

    /// Asks for jobs, as far as there is credit. Returns how often.
    pub(super) fn serve_claims(&mut self, now: Now) -> usize {
        let mut done = 0;
        for _ in 0..self.workers.due.len() {
            let Some(name) = self.workers.due.pop() else { break };
            let Some(pull) = self.workers.pulls.get_mut(&name) else { continue };
            pull.is_due = false;
            let count = pull.free().min(CLAIM_JOBS_MAX);
            let shards = pull.sources.len();
            let next = (0..shards).map(|step| (pull.next_source + step) % shards);
            let found = next.into_iter().find(|at| pull.sources[*at].ready && !pull.sources[*at].asked);
            let (Some(at), true) = (found, count > 0) else { continue };
            pull.next_source = (at + 1) % shards;
            let source = ShardId(at as u16);
            if source == self.config.shard {
                pull.sources[at].ready = false;
                let mut jobs = Vec::new();
                let more = self.give_jobs(source, &name.0, &name.1, count as u32, &mut jobs, now);
                self.take_jobs(source, &name, more, &jobs, now);
                done += 1;
            } else {
                let (_, reply_bytes) = self.claim_bytes();
                self.scratch.clear();
                let mut w = Writer(&mut self.scratch);
                w.u8(request::CLAIM).u32(reply_bytes as u32).text(&name.0).text(&name.1).u32(count as u32);
                match self.mail.ask(source, self.scratch.len(), reply_bytes) {
                    Some(ask) => {
                        self.mail.send_ask(source, ask, &self.scratch);
                        self.wake(source);
                        if let Some(pull) = self.workers.pulls.get_mut(&name) {
                            pull.asked += count;
                            pull.sources[at] = Source { ready: false, asked: true };
                        }
                        done += 1;
                    }
                    None => {
                        if let Some(pull) = self.workers.pulls.get_mut(&name) {
                            pull.is_due = true;
                        }
                        self.workers.due.push(name);
                        break;
                    }
                }
            }
            self.workers.note_due(&name);
        }
        done
    }

    /// `CLAIMED`: what came of a claim.
    pub(crate) fn handle_claimed(&mut self, from: ShardId, r: &mut Reader<'_>, now: Now) {
        let name: QueueName = (r.text().into(), r.text().into());
        let (count, more, jobs) = (r.u32(), r.u8() == 1, r.bytes());
        if let Some(pull) = self.workers.pulls.get_mut(&name) {
            pull.asked = pull.asked.saturating_sub(u64::from(count));
            pull.sources[usize::from(from.0)].asked = false;
        }
        self.take_jobs(from, &name, more, jobs, now);
        self.leave_if_idle(&name);
    }

    /// Deals jobs to the workers of a queue.
    fn take_jobs(&mut self, from: ShardId, name: &QueueName, more: bool, jobs: &[u8], now: Now) {
        let mut r = Reader(jobs);
        while !r.0.is_empty() {
            let bytes = r.bytes();
            let (session, epoch, offset, lease) = if is_group(&name.1) {
                let RunHead { session, epoch, from, lease, .. } = get_run_head(&mut Reader(bytes));
                (session, epoch, from, lease)
            } else {
                let packed::Head { session, epoch, offset, lease, .. } = packed::get_head(&mut Reader(bytes));
                (session, epoch, offset, lease)
            };
            let key = JobKey::of(self.log.partition_id(&name.0, session), &name.1, offset);
            let mut held = Held {
                connection: ConnectionId { slot: u32::MAX, generation: 0 },
                tenant: name.0.clone(),
                queue: name.1.clone(),
                session: session.into(),
                epoch,
                offset,
                attempt: lease.attempt,
                nonce: lease.nonce,
                told: false,
            };
            let worker = self.workers.pulls.get_mut(name).and_then(|pull| {
                let at = pull.workers.iter().position(|worker| worker.held < worker.window)?;
                // Whoever got one goes to the end of the row.
                let mut worker = pull.workers.remove(at)?;
                worker.held += 1;
                let connection = worker.connection;
                pull.workers.push_back(worker);
                Some(connection)
            });
            match worker {
                Some(connection) => {
                    held.connection = connection;
                    if let Some(before) = self.workers.held.insert(key, held) {
                        // An earlier lease of the same job, whose end is still on its way.
                        self.return_credit(&before);
                    }
                    self.workers.ready.push_back((key, lease.nonce, bytes.into()));
                }
                None => self.say_release(&held, key, now),
            }
        }
        if let Some(pull) = self.workers.pulls.get_mut(name) {
            pull.sources[usize::from(from.0)].ready |= more;
        }
        self.workers.note_due(name);
    }

    /// Tells workers of their jobs, as far as their sockets have room. Returns how many were told.
    pub(super) fn send_jobs(&mut self, out: &mut impl Outbox) -> usize {
        let mut sent = 0;
        for _ in 0..self.workers.ready.len() {
            let Some((key, nonce, bytes)) = self.workers.ready.pop_front() else { break };
            let Some(held) = self.workers.held.get_mut(&key).filter(|held| held.nonce == nonce) else { continue };
            if let Some(group) = group_of(&held.queue) {
                let frame = RunFrame::of(group, &bytes);
                if out.room(held.connection) < frame.bytes_max() {
                    self.workers.ready.push_back((key, nonce, bytes));
                    continue;
                }
                out.run(held.connection, &frame);
                held.told = true;
                sent += 1;
                continue;
            }
            let frame = packed::frame(&held.queue, &bytes);
            if out.room(held.connection) < frame.bytes_max() {
                self.workers.ready.push_back((key, nonce, bytes));
                continue;
            }
            out.job(held.connection, &frame);
            held.told = true;
            sent += 1;
        }
        sent
    }

    /// Tells the shard of a worker that its job is no longer its own.
    pub(crate) fn say_free(&mut self, shard: ShardId, key: JobKey, nonce: u64, how: Freed) {
        if shard == self.config.shard {
            self.job_freed(key, nonce, how);
        } else {
            let mut word = Vec::new();
            Writer(&mut word).u8(request::FREE).u128(key.0).u64(nonce).u8(how as u8);
            self.queues.tell(shard, word);
        }
    }

    /// `FREE`: a job of a worker here is no longer its own.
    pub(crate) fn handle_free(&mut self, r: &mut Reader<'_>) {
        let (key, nonce, how) = (JobKey(r.u128()), r.u64(), Freed::of(r.u8()));
        self.job_freed(key, nonce, how);
    }

    fn job_freed(&mut self, key: JobKey, nonce: u64, how: Freed) {
        if self.workers.held.get(&key).is_none_or(|held| held.nonce != nonce) {
            return;
        }
        let Some(held) = self.workers.held.remove(&key) else { return };
        self.return_credit(&held);
        if how != Freed::Ended
            && held.told
            && self.has_effect_room(1)
            && self.readers.clients.get(held.connection).is_some()
        {
            if let Some(group) = group_of(&held.queue) {
                self.exclude(&held);
                let lease = Lease { attempt: held.attempt, nonce };
                let reply = WorkReply::GroupLost { session: &held.session, group, lease };
                self.effects.reply(held.connection, CommandId::None, &Reply::Work(reply));
                return;
            }
            let job = JobName { queue: &held.queue, epoch: held.epoch, offset: held.offset };
            let happened = JobHappened::Lost { cancelled: how == Freed::Cancelled };
            let reply = WorkReply::Job { session: &held.session, job, happened };
            self.effects.reply(held.connection, CommandId::None, &Reply::Work(reply));
        }
    }

    /// A member that was silent is dealt nothing more before it joins again: a session that went to it once more would wait for
    /// another lease, for as often as it has credit.
    fn exclude(&mut self, held: &Held) {
        let name = (held.tenant.clone(), held.queue.clone());
        if let Some(pull) = self.workers.pulls.get_mut(&name)
            && let Some(worker) = pull.workers.iter_mut().find(|worker| worker.connection == held.connection)
        {
            worker.window = 0;
        }
        self.leave_if_idle(&name);
    }

    fn return_credit(&mut self, held: &Held) {
        let name = (held.tenant.clone(), held.queue.clone());
        if let Some(pull) = self.workers.pulls.get_mut(&name)
            && let Some(worker) = pull.workers.iter_mut().find(|worker| worker.connection == held.connection)
        {
            worker.held = worker.held.saturating_sub(1);
        }
        self.leave_if_idle(&name);
        self.workers.note_due(&name);
    }
}
