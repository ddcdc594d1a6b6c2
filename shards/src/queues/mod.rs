//! Queues: durable, bounded views of events to be worked on.
//!
//! ```text
//!   publish ─► topic matches ─► event and step `opened`: one record ─► committed ─► [`line`]: jobs of a queue on this shard
//!                   └ [`policy`]: definitions, the same on every shard                  │ by class, session, offset
//!                                                                                       │
//!   worker's shard                                                                session's shard
//!   pull ─► [`worker`]: credit ◄── HINT: there is something ─────────────────────── walk
//!     │ CLAIM (so many) ──────────────────────────────────────────────────────────► lease: attempt, nonce
//!     ◄─────────────────────────────────────────────── CLAIMED (jobs, their events)  │ [`jobs`]: state, timers
//!     └─► frame                                                                      │
//!   complete · fail · progress ── FORWARD, by session ─────────────────────────────► step, in one record with all that belongs to it
//!     ◄───────────────────────────────────────────────────────── FREE (credit back) ─┘
//!                               no worker in time, or no more attempts ─► [`ends`]: end and answer, one record
//! ```
//! **Invariant.** Each job ends exactly once in {done, fallback, dead letter}: its end is a step in the log, appended only while its
//! session's shard holds it open, and what is not in a committed record did not happen. A dead letter that is driven again is a job
//! again. Of `order: session` no job begins before the end of the one before it is committed.
//! **Failure.** Who works on what is logged with the next group, and nobody waits for that: after a crash a worker has what it had until
//! its lease is over, and the attempt counts. Only a claim of the last moment, whose group was not on disk, is forgotten: its job may be
//! claimed at once, and the worker that had it may still end it, as long as nobody else claimed it since. While the disk is full claims
//! are not logged. Steps, deadlines and attempts that ended are kept with the session.
//! **Backpressure.** Jobs: a queue's capacity, lent to the shards as permits ([`room`]); a publish beyond it is refused, with the time in
//! which one job usually ends. Credit: jobs that a connection takes at once. A worker without room in its socket claims nothing more.

mod audit;
pub(crate) mod claim;
pub(crate) mod dead;
mod deal;
pub(crate) mod declare;
pub(crate) mod ends;
pub(crate) mod jobs;
pub(crate) mod line;
pub(crate) mod packed;
pub(crate) mod policy;
mod recover;
mod room;
pub(crate) mod worker;

pub use audit::Overdue;
pub use declare::{Known, declared};

use crate::ids::{Offset, PartitionId, ShardId};
use crate::shard::Shard;
use hashbrown::HashMap;
use jobs::{Due, Job};
use line::Line;
use policy::Definition;
use slab::Slab;
use std::collections::{BTreeMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_128_with_seed};

/// The session of a tenant that keeps its queues, as entries.
pub(crate) const QUEUES: &str = "$queues";

/// Who ends jobs that no worker ended.
pub(crate) const SERVER: &str = "$server";

/// Names a job of a shard.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct JobKey(u128);

impl JobKey {
    pub fn of(partition: PartitionId, queue: &str, offset: Offset) -> JobKey {
        JobKey(partition.0 ^ xxh3_128_with_seed(queue.as_bytes(), offset ^ 0x6a6f_6273))
    }
}

type ByName<V> = HashMap<Arc<str>, V, BuildHasherDefault<Xxh3Default>>;

/// All that a shard knows of queues: their definitions, and the jobs whose sessions it owns.
#[derive(Default)]
pub(crate) struct Queues {
    /// By tenant and name.
    definitions: ByName<BTreeMap<Box<str>, Arc<Definition>>>,
    lines: Slab<Line>,
    line_of: ByName<BTreeMap<Box<str>, u32>>,
    jobs: Slab<Job>,
    job_of: HashMap<JobKey, u32, BuildHasherDefault<Xxh3Default>>,
    timers: jobs::Timers,
    graves: jobs::Graves,
    /// Jobs whose time has come, and for what.
    due: VecDeque<((u32, u32), Due)>,
    /// Jobs whose event is to be read before they can be handed out.
    fetches: VecDeque<(u32, u32)>,
    /// Lines with something to claim that not all who pull have been told of.
    news: VecDeque<u32>,
    /// What other shards are to be told, oldest first.
    words: VecDeque<(ShardId, Box<[u8]>)>,
    /// Permits: what is lent, and what this shard was lent.
    rooms: room::Rooms,
    /// Declarations that not every shard has heard of.
    declaring: Vec<declare::Declaring>,
    declarations: u64,
    dead_seq: u64,
    generation: u32,
}

impl Queues {
    /// Is there no queue at all? Then publishing costs nothing more.
    pub fn is_empty(&self) -> bool {
        self.definitions.is_empty()
    }

    /// Queues of a tenant.
    pub fn of(&self, tenant: &str) -> impl Iterator<Item = &Arc<Definition>> {
        self.definitions.get(tenant).into_iter().flat_map(BTreeMap::values)
    }

    /// A queue.
    pub fn definition(&self, tenant: &str, queue: &str) -> Option<&Arc<Definition>> {
        self.definitions.get(tenant)?.get(queue)
    }

    /// A queue is so from now on.
    pub fn define(&mut self, tenant: &str, definition: Definition) {
        let queue = definition.queue.clone();
        if let Some(line) = self.find_line(tenant, &queue) {
            self.lines[line as usize].reorder(definition.order);
            self.lines[line as usize].share.returns_all();
            self.give(line);
        }
        self.rooms.resize(tenant, &queue, definition.capacity, self.timers.now_us);
        self.definitions.entry(tenant.into()).or_default().insert(queue, Arc::new(definition));
    }

    /// There is no such queue from now on. Its jobs that are open go on to their deadlines, and end as dead letters.
    pub fn undefine(&mut self, tenant: &str, queue: &str) {
        if let Some(of_tenant) = self.definitions.get_mut(tenant) {
            of_tenant.remove(queue);
            if of_tenant.is_empty() {
                self.definitions.remove(tenant);
            }
        }
    }

    fn find_line(&self, tenant: &str, queue: &str) -> Option<u32> {
        self.line_of.get(tenant)?.get(queue).copied()
    }

    /// The line of a queue, made where there is none.
    fn line(&mut self, tenant: &Arc<str>, queue: &str) -> u32 {
        if let Some(line) = self.find_line(tenant, queue) {
            return line;
        }
        let order = self.definition(tenant, queue).map(|definition| definition.order).unwrap_or_default();
        let line = self.lines.insert(Line::new(tenant.clone(), queue, order)) as u32;
        self.line_of.entry(tenant.clone()).or_default().insert(queue.into(), line);
        line
    }

    /// Queues of a tenant, by name.
    pub fn by_name(&self, tenant: &str) -> Option<&BTreeMap<Box<str>, Arc<Definition>>> {
        self.definitions.get(tenant)
    }

    /// The job of a slot.
    pub fn job(&self, slot: u32) -> &Job {
        &self.jobs[slot as usize]
    }

    /// Jobs that are open, and dead ones that are kept.
    pub fn open(&self) -> usize {
        self.jobs.len()
    }

    /// A job that is open, or dead.
    pub fn find(&self, key: JobKey) -> Option<(u32, &Job)> {
        let slot = *self.job_of.get(&key)?;
        Some((slot, &self.jobs[slot as usize]))
    }

    /// Jobs of a tenant that are open, in all its queues.
    pub fn open_of(&self, tenant: &str) -> u64 {
        let lines = self.line_of.get(tenant).into_iter().flat_map(BTreeMap::values);
        lines.map(|line| self.lines[*line as usize].used).sum()
    }

    /// Tenants with jobs here.
    pub fn tenants(&self) -> impl Iterator<Item = &Arc<str>> {
        self.line_of.keys()
    }

    /// To be told to another shard as soon as its lane has room.
    pub fn tell(&mut self, shard: ShardId, word: Vec<u8>) {
        self.words.push_back((shard, word.into()));
    }

    /// Does something wait for room, or for its session?
    pub fn wait(&self) -> bool {
        self.rooms.wait()
            || !self.words.is_empty()
            || !self.due.is_empty()
            || !self.fetches.is_empty()
            || !self.news.is_empty()
    }
}

impl Shard {
    /// Everything about queues that is due. Returns the work done.
    pub(crate) fn serve_queues(&mut self, now: crate::ids::Now, out: &mut impl crate::outbox::Outbox) -> usize {
        let mut done = self.jobs_look(now);
        done += self.serve_due(now);
        done += self.serve_fetches();
        done += self.serve_hints();
        done += self.serve_claims(now);
        done += self.send_jobs(out);
        done += self.serve_rooms(now);
        done + self.send_words()
    }

    fn send_words(&mut self) -> usize {
        let (mut done, mut full) = (0, Vec::new());
        for _ in 0..self.queues.words.len() {
            let Some((shard, word)) = self.queues.words.pop_front() else { break };
            // Words to one shard keep their order.
            if full.contains(&shard) || !self.mail.tell(shard, &word) {
                full.push(shard);
                self.queues.words.push_back((shard, word));
                continue;
            }
            self.wake(shard);
            done += 1;
        }
        done
    }
}
