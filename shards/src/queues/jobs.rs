//! Jobs whose sessions a shard owns: what state each is in, what time brings about, what the walk tells of them.
//!
//! ```text
//!   opened ─► Waiting ── claimed ──► Claimed ── complete ─► Settling ── committed ─► gone
//!                ▲  └─ event is on disk ─► Fetching ─┐         │ fail, lease over ─► Settling ── committed ─► Backoff or Waiting
//!                └──────────────────────────────────┘         └ deadline ─────────► Settling ── committed ─► gone, or Dead
//! ```
//! An end that is appended cannot be overtaken by another: between its append and its commit the job is *Settling*, and takes
//! nothing. Timers run on monotonic time; what is kept is wall time and duration, and of what is left after a restart no more is
//! believed than there ever was.

use super::recover::Recovered;
use super::{JobKey, Queues};
use crate::command::{JobName, Lease};
use crate::delivery::ByPartition;
use crate::ids::{Epoch, Now, Offset, PartitionId, ShardId};
use crate::shard::Shard;
use crate::wheel::Wheel;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use storage::catalog::is_group;
use storage::record::{JobAct, JobView, RecordView};

/// Who works on a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Claim {
    pub lease: Lease,
    /// Where its worker is.
    pub shard: ShardId,
    pub until_us: u64,
}

/// What a job is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// It may be claimed.
    Waiting,
    /// Not before a time.
    Backoff,
    /// Its event is being read.
    Fetching,
    /// Somebody works on it.
    Claimed(Claim),
    /// A step of it is appended and not committed.
    Settling,
    /// It was given up; its number among the dead of its queue.
    Dead(u64),
}

/// A job that is open, or dead.
pub(crate) struct Job {
    pub generation: u32,
    pub partition: PartitionId,
    pub session: Box<str>,
    pub epoch: Epoch,
    pub offset: Offset,
    pub line: u32,
    pub class: u8,
    pub attempts: u16,
    /// When its event was published, as far as this process knows: from there on the log keeps what there is.
    pub event_ms: u64,
    pub opened_ms: u64,
    /// Wall time; of a dead one, since when.
    pub deadline_ms: u64,
    pub deadline_us: u64,
    pub state: State,
    /// Somebody has claimed it since this process began.
    pub was_claimed: bool,
    /// An event wants it no longer.
    pub cancelled: bool,
    /// Its event, where it had to be read from disk.
    pub event: Option<Box<[u8]>>,
}

/// What time may bring about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    /// It ends now.
    Deadline,
    /// Its worker was not heard of; the lease by its nonce.
    Lease(u64),
    /// The next attempt may begin.
    Ready,
    /// Its event is gone: nobody can work on it.
    Lost,
}

/// Timers of jobs, and what is known only once the clock is.
#[derive(Default)]
pub(crate) struct Timers {
    wheel: Wheel<((u32, u32), Due)>,
    fired: Vec<((u32, u32), Due)>,
    /// Jobs of the recovered log.
    pub recovered: Vec<Recovered>,
    pub now_us: u64,
    /// When events of open jobs were published, in [`PIN_MS`], and of how many.
    pins: BTreeMap<u64, u32>,
    /// Jobs of all shards that were open when this process began, some perhaps with events in logs that others expire:
    /// since when, and for how long at most.
    pub boot_pin: Option<(u64, Rest)>,
}

/// How long something lasts: known only once the clock is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rest {
    /// So long, ms.
    For(u64),
    /// Until then, monotonic.
    Until(u64),
}

/// Grain in which is known when events of open jobs were published.
const PIN_MS: u64 = 1024;

impl Timers {
    pub(super) fn pin(&mut self, event_ms: u64) {
        *self.pins.entry(event_ms / PIN_MS).or_default() += 1;
    }

    fn unpin(&mut self, event_ms: u64) {
        if let Some(count) = self.pins.get_mut(&(event_ms / PIN_MS)) {
            *count -= 1;
            if *count == 0 {
                self.pins.remove(&(event_ms / PIN_MS));
            }
        }
    }

    /// Events of this time and later may be those of open jobs.
    pub fn pinned_ms(&self) -> Option<u64> {
        let own = self.pins.first_key_value().map(|(grain, _)| grain * PIN_MS);
        let boot = self.boot_pin.map(|(since_ms, _)| since_ms);
        own.into_iter().chain(boot).min()
    }

    pub fn put(&mut self, at_us: u64, job: (u32, u32), due: Due) {
        self.wheel.put(at_us, (job, due));
    }
}

impl Queues {
    pub(super) fn insert(
        &mut self,
        partition: PartitionId,
        session: &str,
        epoch: Epoch,
        offset: Offset,
        line: u32,
        class: u8,
    ) -> (u32, u32) {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let job = Job {
            generation,
            partition,
            session: session.into(),
            epoch,
            offset,
            line,
            class,
            attempts: 0,
            event_ms: 0,
            opened_ms: 0,
            deadline_ms: 0,
            deadline_us: u64::MAX,
            state: State::Backoff,
            was_claimed: false,
            cancelled: false,
            event: None,
        };
        let slot = self.jobs.insert(job) as u32;
        self.job_of.insert(JobKey::of(partition, &self.lines[line as usize].queue, offset), slot);
        (slot, generation)
    }

    /// The job of a slot, if it is still that one.
    pub fn get(&self, (slot, generation): (u32, u32)) -> Option<&Job> {
        self.jobs.get(slot as usize).filter(|job| job.generation == generation)
    }

    /// It is in another state now.
    pub fn set_state(&mut self, slot: u32, state: State) {
        let job = &mut self.jobs[slot as usize];
        let (before, partition, offset, line) = (job.state, job.partition, job.offset, job.line);
        job.state = state;
        if (before == State::Waiting) != (state == State::Waiting) {
            self.lines[line as usize].waits(partition, offset, state == State::Waiting);
        }
        if state == State::Waiting {
            self.note_news(line);
        }
    }

    /// Something may be claimed in this line.
    pub fn note_news(&mut self, line: u32) {
        let here = &mut self.lines[line as usize];
        if here.is_claimable() && here.pullers.iter().any(|puller| puller.dry) && !here.has_news {
            here.has_news = true;
            self.news.push_back(line);
        }
    }

    /// It is open: it may be claimed, and ends at its deadline.
    pub(super) fn begin(&mut self, slot: u32, deadline_us: u64) {
        let job = &mut self.jobs[slot as usize];
        job.deadline_us = deadline_us;
        let (generation, partition, offset, line, class) =
            (job.generation, job.partition, job.offset, job.line, job.class);
        self.timers.put(deadline_us, (slot, generation), Due::Deadline);
        self.lines[line as usize].open(partition, offset, slot, class);
        self.set_state(slot, State::Waiting);
    }

    /// A dead one: kept to be looked at.
    pub(super) fn bury(&mut self, slot: u32) {
        self.dead_seq += 1;
        let job = &mut self.jobs[slot as usize];
        (job.state, job.event, job.was_claimed) = (State::Dead(self.dead_seq), None, false);
        let line = job.line;
        self.lines[line as usize].dead.insert(self.dead_seq, slot);
        self.graves.put(&self.jobs[slot as usize], slot);
    }

    fn remove(&mut self, slot: u32) {
        let job = self.jobs.remove(slot as usize);
        let line = &mut self.lines[job.line as usize];
        line.remove(job.partition, job.offset);
        if let State::Dead(seq) = job.state {
            line.dead.remove(&seq);
            self.graves.take(&job, slot);
        }
        let key = JobKey::of(job.partition, &line.queue, job.offset);
        self.job_of.remove(&key);
        self.forget_if_idle(job.line);
    }

    /// Forgets a line of which there is nothing to be kept.
    pub fn forget_if_idle(&mut self, line: u32) {
        if self.lines[line as usize].is_idle(self.timers.now_us) {
            let line = self.lines.remove(line as usize);
            if let Some(of_tenant) = self.line_of.get_mut(&line.tenant) {
                of_tenant.remove(&line.queue);
                if of_tenant.is_empty() {
                    self.line_of.remove(&line.tenant);
                }
            }
        }
    }

    /// Was it given up, and is nothing about to become of it?
    pub fn is_dead(&self, slot: u32) -> bool {
        matches!(self.jobs[slot as usize].state, State::Dead(_)) && !self.jobs[slot as usize].was_claimed
    }

    /// A step of a dead one is on its way: no second one is taken.
    pub fn settle_dead(&mut self, queue: &str, partition: PartitionId, offset: Offset) {
        if let Some(slot) = self.job_of.get(&JobKey::of(partition, queue, offset)) {
            self.jobs[*slot as usize].was_claimed = true;
        }
    }

    /// Their record was appended: however they end behind it, it is not because they were waited for.
    pub fn cancelled(&mut self, partition: PartitionId, cancels: &[(Box<str>, Offset)]) {
        for (queue, offset) in cancels {
            if let Some(slot) = self.job_of.get(&JobKey::of(partition, queue, *offset)) {
                self.jobs[*slot as usize].cancelled = true;
            }
        }
    }

    /// Its worker was heard of.
    pub fn extend_lease(&mut self, slot: u32, until_us: u64) {
        let job = &mut self.jobs[slot as usize];
        let deadline_us = job.deadline_us;
        if let State::Claimed(claim) = &mut job.state {
            claim.until_us = until_us.min(deadline_us);
        }
    }

    /// How long a worker of its queue may not be heard of.
    pub fn lease_ms_of(&self, slot: u32) -> u64 {
        let line = &self.lines[self.jobs[slot as usize].line as usize];
        self.definition(&line.tenant, &line.queue).map_or(1000, |definition| definition.lease_ms)
    }

    /// A record with steps of jobs is committed.
    pub fn note(&mut self, record: RecordView<'_>, now: Now) {
        for step in record.jobs().filter(|step| !is_group(step.queue)) {
            let key = JobKey::of(record.partition(), step.queue, step.offset);
            let known = self.job_of.get(&key).copied();
            match (step.act, known) {
                (JobAct::Opened, None) => self.opened(record, step, now),
                (JobAct::Opened, Some(_)) | (_, None) => {}
                (JobAct::Tried, Some(slot)) => {
                    let rest_us = step.at_ms.saturating_sub(record.time_ms()) * 1000;
                    let (at_us, job) = (now.mono_us + rest_us, &mut self.jobs[slot as usize]);
                    job.attempts = step.attempts;
                    let (id, over) = ((slot, job.generation), job.deadline_us <= now.mono_us);
                    if over {
                        // Its deadline came while the step was on its way, and found it settling.
                        self.set_state(slot, State::Backoff);
                        self.due.push_back((id, Due::Deadline));
                    } else if rest_us == 0 {
                        self.set_state(slot, State::Waiting);
                    } else {
                        self.set_state(slot, State::Backoff);
                        self.timers.put(at_us, id, Due::Ready);
                    }
                }
                (JobAct::Progress | JobAct::Claimed, Some(_)) => {}
                (JobAct::Done | JobAct::Fallback, Some(slot)) => {
                    self.freed(slot, now);
                    self.remove(slot);
                }
                (JobAct::Dead, Some(slot)) => {
                    self.freed(slot, now);
                    let job = &mut self.jobs[slot as usize];
                    (job.attempts, job.deadline_ms) = (step.attempts, step.at_ms);
                    let (line, partition, offset) = (job.line, job.partition, job.offset);
                    self.lines[line as usize].remove(partition, offset);
                    self.note_news(line);
                    self.bury(slot);
                    self.forget_the_oldest_dead(slot);
                }
                (JobAct::Redriven, Some(slot)) => {
                    let job = &self.jobs[slot as usize];
                    let (line, life_ms) = (job.line, step.at_ms.saturating_sub(record.time_ms()));
                    if let State::Dead(seq) = job.state {
                        self.lines[line as usize].dead.remove(&seq);
                        self.graves.take(job, slot);
                    }
                    let job = &mut self.jobs[slot as usize];
                    (job.attempts, job.opened_ms, job.deadline_ms) = (0, record.time_ms(), step.at_ms);
                    (job.state, job.was_claimed, job.cancelled) = (State::Backoff, false, false);
                    let event_ms = job.event_ms;
                    self.timers.pin(event_ms);
                    self.begin(slot, now.mono_us + life_ms * 1000);
                }
                (JobAct::Dropped, Some(slot)) => self.remove(slot),
                (JobAct::Cancelled, Some(slot)) => {
                    let job = &mut self.jobs[slot as usize];
                    if matches!(job.state, State::Dead(_)) {
                        continue;
                    }
                    (job.cancelled, job.deadline_us) = (true, job.deadline_us.min(now.mono_us));
                    // One that settles is looked at when it has.
                    self.due.push_back(((slot, job.generation), Due::Deadline));
                }
            }
        }
    }

    /// Jobs before this one in its session and queue that are to have ended by the time that this one is.
    pub fn overdue_before(&self, slot: u32) -> impl Iterator<Item = &Job> {
        let job = &self.jobs[slot as usize];
        let before = self.lines[job.line as usize].open_before(job.partition, job.offset);
        before.map(|slot| &self.jobs[slot as usize]).filter(|other| other.deadline_us <= job.deadline_us)
    }

    fn opened(&mut self, record: RecordView<'_>, step: JobView<'_>, now: Now) {
        let tenant: Arc<str> = match self.definitions.get_key_value(record.tenant()) {
            Some((tenant, _)) => tenant.clone(),
            None => record.tenant().into(),
        };
        let line = self.line(&tenant, step.queue);
        let (partition, session, epoch) = (record.partition(), record.session(), record.epoch());
        let (slot, _) = self.insert(partition, session, epoch, step.offset, line, step.priority);
        let job = &mut self.jobs[slot as usize];
        (job.event_ms, job.opened_ms, job.deadline_ms) = (record.time_ms(), record.time_ms(), step.at_ms);
        self.timers.pin(record.time_ms());
        let life_us = step.at_ms.saturating_sub(record.time_ms()) * 1000;
        self.begin(slot, now.mono_us + life_us);
    }

    /// One less is open: its queue has room for another, and its session for the next.
    fn freed(&mut self, slot: u32, now: Now) {
        let line = self.jobs[slot as usize].line;
        self.return_permit(line);
        self.lines[line as usize].drain.ended(now.mono_us);
        let job = &self.jobs[slot as usize];
        let (partition, offset) = (job.partition, job.offset);
        self.timers.unpin(job.event_ms);
        self.lines[line as usize].remove(partition, offset);
        self.note_news(line);
    }

    /// A session keeps only so many dead; the catalog has forgotten the oldest.
    fn forget_the_oldest_dead(&mut self, slot: u32) {
        if let Some(oldest) = self.graves.oldest_too_many(&self.jobs[slot as usize], slot) {
            self.remove(oldest);
        }
    }
}

/// The dead of each session, the oldest first.
#[derive(Default)]
pub(super) struct Graves(ByPartition<BTreeSet<(u64, Offset, u32)>>);

impl Graves {
    fn put(&mut self, job: &Job, slot: u32) {
        self.0.entry(job.partition).or_default().insert((job.deadline_ms, job.offset, slot));
    }

    fn take(&mut self, job: &Job, slot: u32) {
        if let Some(dead) = self.0.get_mut(&job.partition) {
            dead.remove(&(job.deadline_ms, job.offset, slot));
            if dead.is_empty() {
                self.0.remove(&job.partition);
            }
        }
    }

    /// The oldest but this one, where its session has more than are kept.
    fn oldest_too_many(&self, job: &Job, slot: u32) -> Option<u32> {
        let dead = self.0.get(&job.partition).filter(|dead| dead.len() > storage::catalog::JOBS_DEAD_MAX)?;
        dead.iter().map(|(.., other)| *other).find(|other| *other != slot)
    }
}

impl Shard {
    /// Looks at the clock. Returns how many timers fired.
    pub(super) fn jobs_look(&mut self, now: Now) -> usize {
        self.go_on_with_recovered(now);
        let queues = &mut self.queues;
        queues.timers.now_us = now.mono_us;
        queues.timers.boot_pin = match queues.timers.boot_pin {
            Some((since_ms, Rest::For(ms))) => Some((since_ms, Rest::Until(now.mono_us + ms * 1000))),
            Some((_, Rest::Until(us))) if us <= now.mono_us => None,
            pin => pin,
        };
        let mut fired = std::mem::take(&mut queues.timers.fired);
        queues.timers.wheel.expire(now.mono_us, &mut fired);
        // A slot of the wheel holds what came in it as it was put in: those whose time is over end as they were opened.
        fired.sort_by_key(|(id, _)| queues.get(*id).map_or((0, 0), |job| (job.deadline_us, job.offset)));
        let count = fired.len();
        for (id, due) in fired.drain(..) {
            let Some(job) = queues.get(id) else { continue };
            match (due, job.state) {
                (Due::Ready, State::Backoff) => queues.set_state(id.0, State::Waiting),
                (Due::Lease(nonce), State::Claimed(claim)) if claim.lease.nonce == nonce => {
                    if claim.until_us <= now.mono_us {
                        queues.due.push_back((id, due));
                    } else {
                        queues.timers.put(claim.until_us, id, due);
                    }
                }
                // A dead one that was driven again has a later one; one that settles is looked at when it has.
                (Due::Deadline, State::Dead(_) | State::Settling) => {}
                (Due::Deadline, _) if job.deadline_us <= now.mono_us => queues.due.push_back((id, due)),
                _ => {}
            }
        }
        queues.timers.fired = fired;
        self.log.keep_from(self.queues.timers.pinned_ms());
        count
    }

    /// When a turn is due for queues alone.
    pub(crate) fn queues_deadline_us(&self) -> Option<u64> {
        let timers = &self.queues.timers;
        let wheel_us = if timers.recovered.is_empty() { timers.wheel.next_deadline_us() } else { Some(0) };
        wheel_us.into_iter().chain(self.queues.rooms.next_deadline_us()).min()
    }

    /// The job of this name that is open or dead, on its session's shard.
    pub(crate) fn find_job(&self, partition: PartitionId, epoch: Epoch, name: &JobName<'_>) -> Option<(u32, &Job)> {
        let (slot, job) = self.queues.find(JobKey::of(partition, name.queue, name.offset))?;
        // Of a recovered one the session's epoch stands in the catalog alone.
        (name.epoch == epoch && job.epoch == epoch).then_some((slot, job))
    }

    /// Has this lease the job?
    pub(crate) fn holds_job(job: &Job, lease: Lease) -> bool {
        match job.state {
            State::Claimed(claim) => claim.lease == lease,
            // Before a crash that lost the word of it, it had: nobody else was given it since.
            State::Waiting | State::Backoff | State::Fetching => {
                !job.was_claimed && lease.attempt == job.attempts + 1 && lease.nonce != 0
            }
            State::Settling | State::Dead(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_open_job_says_what_is_kept() {
        let mut timers = Timers::default();
        assert_eq!(timers.pinned_ms(), None);
        for event_ms in [9 * PIN_MS + 5, 3 * PIN_MS + 1, 3 * PIN_MS + 9] {
            timers.pin(event_ms);
        }
        timers.unpin(3 * PIN_MS + 1);
        assert_eq!(timers.pinned_ms(), Some(3 * PIN_MS), "not later than the event");
        timers.unpin(3 * PIN_MS + 9);
        assert_eq!(timers.pinned_ms(), Some(9 * PIN_MS));
        timers.boot_pin = Some((7, Rest::For(5)));
        assert_eq!(timers.pinned_ms(), Some(7));
    }
}
