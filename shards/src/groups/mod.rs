//! Groups: where several orchestrators together have come to in each session, and who goes on.
//!
//! ```text
//!   publish ─► topic matches, the group does not stand in the session ─► event and step `opened` at its offset: one record
//!                                                                                  │ committed
//!   member's shard                                                            session's shard
//!   group.join ─► [`crate::queues::worker`]: credit ◄── HINT ──────────────── [`line`]: sessions with something to be dealt
//!     │ CLAIM ───────────────────────────────────────────────────────────────► [`run`]: matching events from the marker on
//!     ◄────────────────────────────────────────────────────── CLAIMED (runs)   lease: attempt, nonce
//!     └─► frame: a run of one session                                              │
//!   group.ack, commit ── by session ─────────────────────────────────────────► [`ack`]: the marker moves, a record
//!   leave, socket gone ── RELEASE ───────────────────────────────────────────► the lease is over, the session is dealt again
//!     ◄──────────────────────────────────────────────────── FREE (credit back) ─── acknowledged, or not in time
//! ```
//! What is kept of a group in a session is one open step, whose offset is the marker; where it stands at the tail nothing is kept. So a
//! million sessions that a group has done with cost nothing, and after a restart those with lag are known without reading any other.
//!
//! A lease is for one **run**: events of one session, to be acknowledged whole or in parts. Then the session goes to the end of the
//! line, and whoever has credit is dealt the next: that is all there is to rebalancing, and why nobody keeps a session who does not
//! work on it.
//!
//! **Invariant.** Every event that matched when it was published is given to a member until one has acknowledged it; of a session only
//! one lease holds at a time, its events come in order, and from the marker on; the marker moves by records alone, forward only.
//! **Failure.** Leases are not logged: after a crash nobody has one, an acknowledgement under an earlier one is refused, and sessions are
//! dealt again from their markers. What was not acknowledged comes again (`attempt`).
//! **Backpressure.** Credit: sessions that a member has at once. A group without members costs its publishers nothing but the step,
//! pins no retention and refuses no publish: what is gone when its turn comes is told as `gap`.

pub(crate) mod ack;
mod line;
pub(crate) mod list;
pub(crate) mod policy;
pub(crate) mod run;

use crate::command::Lease;
use crate::ids::{Epoch, Now, Offset, PartitionId, ShardId};
use crate::queues::JobKey;
use crate::queues::line::Puller;
use crate::shard::{Opened, Shard};
use crate::wheel::Wheel;
use hashbrown::HashMap;
use policy::Definition;
use run::Draft;
use slab::Slab;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use storage::catalog::is_group;
use storage::ids::LogSeq;
use storage::log::{Log, Streaming};
use storage::record::{JobAct, JobBody, Parts};
use xxhash_rust::xxh3::Xxh3Default;

/// A group among queues, in mail, entries and records, goes by its name with this in front: no queue's name begins so.
pub(crate) const SIGN: char = '$';

/// The name by which a group goes among queues.
pub(crate) fn name_of(group: &str) -> String {
    format!("{SIGN}{group}")
}

/// The group that goes by this name; `None` where it is a queue's.
pub(crate) fn group_of(name: &str) -> Option<&str> {
    name.strip_prefix(SIGN)
}

/// Who is at a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// It may be dealt.
    Waiting,
    /// Its run is being read, or found to be empty.
    Reading,
    /// A member has a run of it.
    Leased(Held),
    /// Nothing is dealt before this record is committed.
    Settling(LogSeq),
}

/// What a member has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Held {
    lease: Lease,
    /// Where the member is.
    shard: ShardId,
    until_us: u64,
    /// The run: from the marker as it stood then, to before this.
    from: Offset,
    next: Offset,
}

/// A group stands in a session.
struct Stand {
    number: u64,
    line: u32,
    partition: PartitionId,
    session: Box<str>,
    epoch: Epoch,
    /// The marker, as appended.
    marker: Offset,
    /// The last event that matched, as far as this process knows.
    last: Option<Offset>,
    /// Others may have before this process began.
    is_recovered: bool,
    /// The record of the last one, and that which moved the marker.
    last_seq: LogSeq,
    moved_seq: LogSeq,
    /// Nothing is left: it goes when that is committed.
    has_ended: bool,
    state: State,
    attempts: u16,
    draft: Draft,
}

impl Stand {
    /// Is there something for the group at or behind this offset of a session with this tail, or may there be?
    fn goes_on(&self, from: Offset, tail: Offset) -> bool {
        self.last.is_some_and(|last| last >= from) || self.is_recovered && from < tail
    }
}

type ByName<V> = HashMap<Arc<str>, V, BuildHasherDefault<Xxh3Default>>;

/// All that a shard knows of groups: what they are, and where they stand in the sessions that it owns.
#[derive(Default)]
pub(crate) struct Groups {
    /// By tenant and name.
    definitions: ByName<BTreeMap<Box<str>, Arc<Definition>>>,
    lines: Slab<line::Line>,
    line_of: ByName<BTreeMap<Box<str>, u32>>,
    stands: Slab<Stand>,
    /// Leases that hold.
    leases: HashMap<JobKey, u32, BuildHasherDefault<Xxh3Default>>,
    /// What settles when records are committed.
    settling: BTreeSet<(LogSeq, u32, u64)>,
    wheel: Wheel<(u32, u64, u64)>,
    fired: Vec<(u32, u64, u64)>,
    /// Lines with something to be dealt that not all who pull have been told of.
    news: VecDeque<u32>,
    /// Runs that go on being read as soon as that can be asked for.
    reads: VecDeque<(u32, u64)>,
    /// Where nothing is left, which is to be kept.
    ends: VecDeque<(u32, u64)>,
    number: u64,
}

impl Groups {
    /// Is there no group at all? Then publishing costs nothing more.
    pub fn is_empty(&self) -> bool {
        self.definitions.is_empty()
    }

    /// Groups of a tenant, by name.
    pub fn by_name(&self, tenant: &str) -> Option<&BTreeMap<Box<str>, Arc<Definition>>> {
        self.definitions.get(tenant)
    }

    /// A group, by the name that it goes by.
    pub fn definition(&self, tenant: &str, name: &str) -> Option<&Arc<Definition>> {
        self.definitions.get(tenant)?.get(name)
    }

    /// A group is so from now on.
    pub fn define(&mut self, tenant: &str, definition: Definition) {
        let name = definition.name.clone();
        self.definitions.entry(tenant.into()).or_default().insert(name, Arc::new(definition));
    }

    /// There is no such group from now on: it stands nowhere any more, as soon as that is kept.
    pub fn undefine(&mut self, tenant: &str, name: &str) {
        if let Some(of_tenant) = self.definitions.get_mut(tenant) {
            of_tenant.remove(name);
            if of_tenant.is_empty() {
                self.definitions.remove(tenant);
            }
        }
        if let Some(line) = self.find_line(tenant, name) {
            let stands = self.lines[line as usize].stands.iter();
            self.ends.extend(stands.map(|(number, at)| (*at, *number)));
        }
    }

    /// All definitions are known: what stands for a group that was dropped goes.
    pub fn defined(&mut self) {
        for (at, stand) in &self.stands {
            let line = &self.lines[stand.line as usize];
            if self.definition(&line.tenant, &line.name).is_none() {
                self.ends.push_back((at as u32, stand.number));
            }
        }
    }

    /// Where groups stand in a recovered log.
    pub fn recover(&mut self, log: &Log, known: &[Streaming]) {
        for Streaming { tenant, session, epoch, jobs, .. } in known {
            let tenant: Arc<str> = (&**tenant).into();
            let partition = log.partition_id(&tenant, session);
            for step in jobs.iter().filter(|job| is_group(&job.queue)) {
                let line = self.line(&tenant, &step.queue);
                let at = self.insert(line, partition, session, *epoch, step.offset);
                self.stands[at as usize].is_recovered = true;
                self.wait_for_members(at);
            }
        }
    }

    fn find_line(&self, tenant: &str, name: &str) -> Option<u32> {
        self.line_of.get(tenant)?.get(name).copied()
    }

    /// The line of a group, made where there is none.
    fn line(&mut self, tenant: &Arc<str>, name: &str) -> u32 {
        if let Some(line) = self.find_line(tenant, name) {
            return line;
        }
        let line = self.lines.insert(line::Line::new(tenant.clone(), name)) as u32;
        self.line_of.entry(tenant.clone()).or_default().insert(name.into(), line);
        line
    }

    /// A line in which nothing stands and which nobody pulls from goes.
    fn drop_line_if_idle(&mut self, line: u32) {
        if self.lines[line as usize].is_idle() {
            let line = self.lines.remove(line as usize);
            if let Some(of_tenant) = self.line_of.get_mut(&line.tenant) {
                of_tenant.remove(&line.name);
                if of_tenant.is_empty() {
                    self.line_of.remove(&line.tenant);
                }
            }
        }
    }

    fn find(&self, tenant: &str, name: &str, session: &str) -> Option<u32> {
        self.lines[self.find_line(tenant, name)? as usize].by_session.get(session).copied()
    }

    fn get(&self, (at, number): (u32, u64)) -> Option<&Stand> {
        self.stands.get(at as usize).filter(|stand| stand.number == number)
    }

    fn insert(&mut self, line: u32, partition: PartitionId, session: &str, epoch: Epoch, marker: Offset) -> u32 {
        self.number += 1;
        let number = self.number;
        let stand = Stand {
            number,
            line,
            partition,
            session: session.into(),
            epoch,
            marker,
            last: None,
            is_recovered: false,
            last_seq: 0,
            moved_seq: 0,
            has_ended: false,
            state: State::Reading,
            attempts: 0,
            draft: Draft::default(),
        };
        let at = self.stands.insert(stand) as u32;
        let line = &mut self.lines[line as usize];
        line.by_session.insert(session.into(), at);
        line.stands.insert(number, at);
        at
    }

    fn remove(&mut self, at: u32) {
        let stand = self.stands.remove(at as usize);
        let line = &mut self.lines[stand.line as usize];
        line.by_session.remove(&stand.session);
        line.stands.remove(&stand.number);
        self.drop_line_if_idle(stand.line);
    }

    /// It may be dealt, after those that wait already.
    fn wait_for_members(&mut self, at: u32) {
        let stand = &mut self.stands[at as usize];
        stand.state = State::Waiting;
        let line = stand.line;
        self.lines[line as usize].ring.push_back((at, stand.number));
        self.note_news(line);
    }

    /// Nothing is dealt of it before this record is committed.
    fn settle_at(&mut self, at: u32, log_seq: LogSeq) {
        let stand = &mut self.stands[at as usize];
        stand.state = State::Settling(log_seq);
        self.settling.insert((log_seq, at, stand.number));
    }

    /// Records below this one are committed. Returns what settled.
    fn committed(&mut self, announced: LogSeq) -> usize {
        let mut done = 0;
        while let Some(&(log_seq, at, number)) = self.settling.first().filter(|first| first.0 < announced) {
            self.settling.pop_first();
            done += 1;
            let Some(stand) = self.get((at, number)) else { continue };
            if stand.state != State::Settling(log_seq) {
                continue;
            }
            if stand.has_ended { self.remove(at) } else { self.wait_for_members(at) }
        }
        done
    }

    fn note_news(&mut self, line: u32) {
        let here = &mut self.lines[line as usize];
        if here.is_claimable() && here.pullers.iter().any(|puller| puller.dry) && !here.has_news {
            here.has_news = true;
            self.news.push_back(line);
        }
    }

    /// A shard has members of a group, or has none any more.
    pub fn follow(&mut self, shard: ShardId, tenant: &Arc<str>, name: &str, begins: bool) {
        let line = self.line(tenant, name);
        let pullers = &mut self.lines[line as usize].pullers;
        pullers.retain(|puller| puller.shard != shard);
        if begins {
            pullers.push(Puller { shard, dry: true });
            self.note_news(line);
        } else {
            self.drop_line_if_idle(line);
        }
    }

    /// Does something wait for room, or for its session?
    pub fn wait(&self) -> bool {
        !self.news.is_empty() || !self.reads.is_empty() || !self.ends.is_empty()
    }

    /// When a lease may be over.
    pub fn next_deadline_us(&self) -> Option<u64> {
        self.wheel.next_deadline_us()
    }
}

impl Shard {
    /// Everything about groups that is due. Returns the work done.
    pub(crate) fn serve_groups(&mut self, now: Now) -> usize {
        let mut done = self.groups.committed(self.announced);
        done += self.end_leases(now);
        done += self.serve_runs();
        done += self.serve_group_ends(now);
        done + self.serve_group_hints()
    }

    /// Leases whose time is over. Returns how many timers fired.
    fn end_leases(&mut self, now: Now) -> usize {
        let mut fired = std::mem::take(&mut self.groups.fired);
        self.groups.wheel.expire(now.mono_us, &mut fired);
        let count = fired.len();
        for (at, number, nonce) in fired.drain(..) {
            let Some(State::Leased(held)) = self.groups.get((at, number)).map(|stand| stand.state) else { continue };
            if held.lease.nonce != nonce {
                continue;
            }
            if held.until_us > now.mono_us {
                self.groups.wheel.put(held.until_us, (at, number, nonce));
            } else {
                self.end_lease(at, true);
            }
        }
        self.groups.fired = fired;
        count
    }

    /// Where nothing is left, or the group is no more, that is kept. Returns how many were.
    fn serve_group_ends(&mut self, now: Now) -> usize {
        let mut done = 0;
        for _ in 0..self.groups.ends.len() {
            let Some(id) = self.groups.ends.pop_front() else { break };
            let Some(stand) = self.groups.get(id).filter(|stand| !stand.has_ended) else { continue };
            let (partition, session, marker) = (stand.partition, stand.session.clone(), stand.marker);
            let line = &self.groups.lines[stand.line as usize];
            let (tenant, name) = (line.tenant.clone(), line.name.clone());
            let is_dropped = self.groups.definition(&tenant, &name).is_none();
            let slot = match self.open(partition, &tenant, &session, None) {
                Opened::Ready(slot) => slot,
                Opened::Absent => {
                    self.end_lease(id.0, true);
                    self.groups.remove(id.0);
                    continue;
                }
                Opened::Park | Opened::Refused(_) => {
                    self.groups.ends.push_back(id);
                    continue;
                }
            };
            let stand = &self.groups.stands[id.0 as usize];
            if !is_dropped && (stand.state != State::Reading || stand.goes_on(stand.draft.at, 0)) {
                // Declared again, or an event has come since.
                if stand.state == State::Reading {
                    let last_seq = stand.last_seq;
                    self.groups.settle_at(id.0, last_seq);
                }
                continue;
            }
            let act = JobAct::Done as u8;
            let step = JobBody { queue: &name, offset: marker, act, priority: 0, attempts: 0, at_ms: 0, partial: b"" };
            let Some(log_seq) = self.append_steps(slot, &Parts { jobs: &[step], ..Parts::default() }, now) else {
                self.groups.ends.push_front(id);
                break;
            };
            self.end_lease(id.0, true);
            self.groups.stands[id.0 as usize].has_ended = true;
            self.groups.settle_at(id.0, log_seq);
            done += 1;
        }
        done
    }

    /// The lease of a session is over, if there is one: it is dealt again. `lost`: not by its member's word.
    fn end_lease(&mut self, at: u32, lost: bool) {
        let stand = &self.groups.stands[at as usize];
        let State::Leased(held) = stand.state else { return };
        let key = JobKey::of(stand.partition, &self.groups.lines[stand.line as usize].name, held.from);
        self.groups.leases.remove(&key);
        let moved_seq = stand.moved_seq;
        if moved_seq >= self.announced && moved_seq > 0 {
            self.groups.settle_at(at, moved_seq);
        } else {
            self.groups.wait_for_members(at);
        }
        self.say_run_over(held.shard, key, held.lease.nonce, lost);
    }

    /// `RELEASE`: a run was given to a shard whose member is gone.
    pub(crate) fn release_run(&mut self, key: JobKey, nonce: u64) {
        let Some(&at) = self.groups.leases.get(&key) else { return };
        if matches!(self.groups.stands[at as usize].state, State::Leased(held) if held.lease.nonce == nonce) {
            self.end_lease(at, true);
        }
    }
}
