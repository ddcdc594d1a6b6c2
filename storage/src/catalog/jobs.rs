//! Jobs of a session that have not ended, and those that were given up and are kept to be looked at.
//!
//! ```text
//!   opened ─► open ─┬─ tried (attempts, when again) ─┐      each step is part of a record: what a checkpoint and the records behind
//!                   │◄─ claimed, progress, cancelled ┘      it hold is all that a job is
//!                   ├─ done, fallback ─► forgotten
//!                   └─ dead ─► kept ─┬─ redriven ─► open
//!                                    └─ dropped, or too many: the oldest ─► forgotten
//! ```
//! Of who works on a job the lease is kept: after a restart it runs anew, and the attempt counts. Entry, little endian, not aligned:
//! ```text
//!  0  u8 queues   1  u16 jobs
//!     queues: u8 bytes, name
//!     jobs:   u64 offset, u64 opened, u64 deadline (of a dead one: since when), u64 ready, u64 event, u64 lease,
//!             u16 attempts, u8 queue, u8 priority, u8 dead, u16 partial bytes, partial          ascending by offset, then as opened
//! ```

use super::partition::Partition;
use super::{Catalog, NAME_BYTES_MAX, PartitionSlot};
use crate::bytes::{Put, Take};
use crate::ids::{COUNTER_MAX, Offset};
use crate::record::{JobAct, JobView};

/// Most jobs of one session, open and dead, and groups that stand in it.
pub const JOBS_MAX: usize = 256 + GROUPS_MAX;
/// Groups that may stand in one session: each keeps one open step, under its name with `$` in front. Queues never take their room.
pub const GROUPS_MAX: usize = 16;
/// Most dead ones among them; one more takes the place of the oldest.
pub const JOBS_DEAD_MAX: usize = 64;
/// Queues that jobs of one session may belong to, and groups that stand in it.
pub const JOB_QUEUES_MAX: usize = 32 + GROUPS_MAX;
/// Bytes of all partial results of a session.
pub const PARTIALS_BYTES_MAX: usize = 16 << 10;

const JOB_BYTES: usize = 55;

/// Largest part of a partition's entry that jobs can take.
pub(super) const JOBS_SECTION_BYTES_MAX: usize =
    3 + JOB_QUEUES_MAX * (1 + NAME_BYTES_MAX) + JOBS_MAX * JOB_BYTES + PARTIALS_BYTES_MAX;

/// A job that is open, or dead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenJob {
    /// Queue.
    pub queue: Box<str>,
    /// The event that it is.
    pub offset: Offset,
    /// When its event was published, Unix ms.
    pub event_ms: u64,
    /// When it was opened, Unix ms: then, or when it was driven again.
    pub opened_ms: u64,
    /// When it ends whatever happens, Unix ms; of a dead one: when it was given up; of a cancelled one: when it was opened.
    pub deadline_ms: u64,
    /// The next attempt begins no earlier, Unix ms.
    pub ready_ms: u64,
    /// Attempts that have ended.
    pub attempts: u16,
    /// The nonce of the lease of the attempt that has begun; 0: none has.
    pub lease: u64,
    /// Class of priority, 0 first.
    pub priority: u8,
    /// It was given up.
    pub dead: bool,
    /// What its worker has said so far.
    pub partial: Box<[u8]>,
}

/// Jobs of one session.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Jobs {
    list: Vec<OpenJob>,
    partial_bytes: usize,
}

/// Is it the step that a group keeps, and no job?
pub fn is_group(queue: &str) -> bool {
    queue.starts_with('$')
}

impl Jobs {
    /// All of them, by offset.
    pub fn all(&self) -> &[OpenJob] {
        &self.list
    }

    /// The job that an event is for a queue.
    pub fn get(&self, queue: &str, offset: Offset) -> Option<&OpenJob> {
        let from = self.list.partition_point(|job| job.offset < offset);
        self.list[from..].iter().take_while(|job| job.offset == offset).find(|job| &*job.queue == queue)
    }

    /// Are so many more jobs, of these queues, no more than a session may have? Dead ones make room.
    pub fn room<'a>(&'a self, count: usize, queues: impl Iterator<Item = &'a str>) -> bool {
        // Asked for every publish: most find room at a glance, and a queue that the session has jobs of.
        let free = |jobs: usize| jobs + count + JOBS_DEAD_MAX <= JOBS_MAX - GROUPS_MAX;
        if !free(self.list.len()) && !free(self.of_queues().filter(|job| !job.dead).count()) {
            return false;
        }
        let fresh: Vec<&str> = queues.filter(|queue| !self.has_of(queue)).collect();
        fresh.is_empty() || names(self.of_queues(), fresh) <= JOB_QUEUES_MAX - GROUPS_MAX
    }

    /// Jobs that are no groups.
    fn of_queues(&self) -> impl Iterator<Item = &OpenJob> {
        self.list.iter().filter(|job| !is_group(&job.queue))
    }

    fn has_of(&self, queue: &str) -> bool {
        self.list.iter().any(|job| &*job.queue == queue)
    }

    /// May this group stand in the session too?
    pub fn group_room(&self, group: &str) -> bool {
        let groups = || self.list.iter().filter(|job| is_group(&job.queue));
        groups().count() < GROUPS_MAX || groups().any(|job| &*job.queue == group)
    }

    /// Jobs that an event at `at` cancels: the one that is its cause, or all that are open before it.
    pub fn cancelled_by(&self, at: Offset, cause: Option<Offset>) -> impl Iterator<Item = &OpenJob> {
        let jobs = self.list.iter().filter(|job| !is_group(&job.queue));
        jobs.filter(move |job| !job.dead && cause.map_or(job.offset < at, |cause| cause == job.offset))
    }

    /// Is there room for a partial result of so many bytes in place of what this job has?
    pub fn partial_room(&self, job: &OpenJob, bytes: usize) -> bool {
        self.partial_bytes - job.partial.len() + bytes <= PARTIALS_BYTES_MAX
    }

    /// Takes a step in. What does not fit, or is of a job that is not there, is left out; whoever appends has asked.
    pub(super) fn step(&mut self, step: JobView<'_>, time_ms: u64) {
        let from = self.list.partition_point(|job| job.offset < step.offset);
        let mut here = self.list[from..].iter().take_while(|job| job.offset == step.offset);
        let known = here.position(|job| &*job.queue == step.queue).map(|at| from + at);
        match (step.act, known) {
            (JobAct::Opened, None) if self.list.len() < JOBS_MAX && self.names_fit(step.queue) => {
                let job = OpenJob {
                    queue: step.queue.into(),
                    offset: step.offset,
                    event_ms: time_ms,
                    opened_ms: time_ms,
                    deadline_ms: step.at_ms,
                    ready_ms: 0,
                    attempts: 0,
                    lease: 0,
                    priority: step.priority,
                    dead: false,
                    partial: Box::default(),
                };
                let at = self.list.partition_point(|other| other.offset <= step.offset);
                self.list.insert(at, job);
            }
            (JobAct::Opened, _) | (_, None) => {}
            (JobAct::Tried, Some(at)) => {
                let job = &mut self.list[at];
                (job.attempts, job.ready_ms, job.lease) = (step.attempts, step.at_ms, 0);
            }
            (JobAct::Claimed, Some(at)) => {
                let job = &mut self.list[at];
                job.lease = if job.dead { 0 } else { step.at_ms };
            }
            (JobAct::Progress, Some(at)) => {
                if self.partial_room(&self.list[at], step.partial.len()) {
                    self.partial_bytes = self.partial_bytes - self.list[at].partial.len() + step.partial.len();
                    self.list[at].partial = step.partial.into();
                }
            }
            (JobAct::Done | JobAct::Fallback | JobAct::Dropped, Some(at)) => self.remove(at),
            (JobAct::Dead, Some(at)) => {
                self.partial_bytes -= std::mem::take(&mut self.list[at].partial).len();
                let job = &mut self.list[at];
                (job.dead, job.deadline_ms, job.attempts, job.lease) = (true, step.at_ms, step.attempts, 0);
                if self.list.iter().filter(|job| job.dead).count() > JOBS_DEAD_MAX {
                    let oldest = (0..self.list.len())
                        .filter(|other| *other != at && self.list[*other].dead)
                        .min_by_key(|other| (self.list[*other].deadline_ms, *other));
                    oldest.into_iter().for_each(|oldest| self.remove(oldest));
                }
            }
            (JobAct::Redriven, Some(at)) => {
                let job = &mut self.list[at];
                (job.dead, job.attempts, job.ready_ms, job.lease) = (false, 0, 0, 0);
                (job.opened_ms, job.deadline_ms) = (time_ms, step.at_ms);
            }
            (JobAct::Cancelled, Some(at)) => {
                let job = &mut self.list[at];
                if !job.dead {
                    job.deadline_ms = job.opened_ms;
                }
            }
        }
    }

    fn names_fit(&self, queue: &str) -> bool {
        self.list.len() < JOB_QUEUES_MAX || self.has_of(queue) || names(self.list.iter(), Vec::new()) < JOB_QUEUES_MAX
    }

    fn remove(&mut self, at: usize) {
        let job = self.list.remove(at);
        self.partial_bytes -= job.partial.len();
    }

    /// There is nothing to keep.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let names: usize = self.list.iter().map(|job| job.queue.len()).sum();
        size_of::<Jobs>() + self.list.capacity() * size_of::<OpenJob>() + names + self.partial_bytes
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let mut queues: Vec<&str> = self.list.iter().map(|job| &*job.queue).collect();
        queues.sort_unstable();
        queues.dedup();
        out.put_u8(queues.len() as u8);
        out.put_u16(self.list.len() as u16);
        for queue in &queues {
            out.put_u8(queue.len() as u8);
            out.put(queue.as_bytes());
        }
        for job in &self.list {
            out.put_u64(job.offset);
            out.put_u64(job.opened_ms);
            out.put_u64(job.deadline_ms);
            out.put_u64(job.ready_ms);
            out.put_u64(job.event_ms);
            out.put_u64(job.lease);
            out.put_u16(job.attempts);
            out.put_u8(queues.partition_point(|queue| *queue < &*job.queue) as u8);
            out.put_u8(job.priority);
            out.put_u8(job.dead.into());
            out.put_u16(job.partial.len() as u16);
            out.put(&job.partial);
        }
    }

    /// Reads the jobs of a session whose tail is given.
    pub(super) fn decode(take: &mut Take<'_>, tail: Offset) -> Option<Jobs> {
        let (queues, count) = (usize::from(take.u8()?), usize::from(take.u16()?));
        if queues > JOB_QUEUES_MAX || count > JOBS_MAX {
            return None;
        }
        let mut names: Vec<&str> = Vec::with_capacity(queues);
        for _ in 0..queues {
            let bytes = take.u8()?;
            names.push(take.str(bytes.into())?);
        }
        let mut jobs = Jobs { list: Vec::with_capacity(count), partial_bytes: 0 };
        for _ in 0..count {
            let (offset, opened_ms, deadline_ms, ready_ms) = (take.u64()?, take.u64()?, take.u64()?, take.u64()?);
            let (event_ms, lease) = (take.u64()?, take.u64()?);
            let (attempts, queue, priority, dead) = (take.u16()?, take.u8()?, take.u8()?, take.u8()?);
            let bytes = take.u16()?;
            let partial = take.bytes(bytes.into())?;
            let queue = *names.get(usize::from(queue))?;
            jobs.partial_bytes += partial.len();
            let ordered = jobs.list.last().is_none_or(|before| before.offset <= offset);
            let known = jobs.get(queue, offset).is_some();
            if !ordered
                || known
                || offset >= tail
                || offset > COUNTER_MAX
                || dead > 1
                || jobs.partial_bytes > PARTIALS_BYTES_MAX
            {
                return None;
            }
            let (queue, dead, partial) = (queue.into(), dead == 1, partial.into());
            jobs.list.push(OpenJob {
                queue,
                offset,
                event_ms,
                opened_ms,
                deadline_ms,
                ready_ms,
                attempts,
                lease,
                priority,
                dead,
                partial,
            });
        }
        Some(jobs)
    }
}

impl Partition {
    /// Its jobs that are open or dead.
    pub fn jobs(&self) -> &[OpenJob] {
        self.kept_jobs().map_or(&[], Jobs::all)
    }

    pub(super) fn kept_jobs(&self) -> Option<&Jobs> {
        self.work.as_ref()?.jobs.as_ref()
    }

    /// The job that an event is for a queue, if it is open or dead.
    pub fn job(&self, queue: &str, offset: Offset) -> Option<&OpenJob> {
        self.kept_jobs().and_then(|jobs| jobs.get(queue, offset))
    }

    /// See [`Jobs::room`].
    pub fn job_room<'a>(&'a self, count: usize, queues: impl Iterator<Item = &'a str>) -> bool {
        match self.kept_jobs() {
            Some(jobs) => jobs.room(count, queues),
            None => count + JOBS_DEAD_MAX <= JOBS_MAX - GROUPS_MAX && queues.count() <= JOB_QUEUES_MAX - GROUPS_MAX,
        }
    }

    /// See [`Jobs::group_room`].
    pub fn group_room(&self, group: &str) -> bool {
        self.kept_jobs().is_none_or(|jobs| jobs.group_room(group))
    }

    /// See [`Jobs::cancelled_by`].
    pub fn cancelled_by(&self, at: Offset, cause: Option<Offset>) -> impl Iterator<Item = &OpenJob> {
        self.kept_jobs().into_iter().flat_map(move |jobs| jobs.cancelled_by(at, cause))
    }

    /// See [`Jobs::partial_room`].
    pub fn partial_room(&self, job: &OpenJob, bytes: usize) -> bool {
        self.kept_jobs().is_some_and(|jobs| jobs.partial_room(job, bytes))
    }
}

impl Catalog {
    /// Takes a step of a job into the state. Its record was [appended](Catalog::append) or [replayed](Catalog::replay) just now.
    pub fn job_stepped(&mut self, slot: PartitionSlot, step: JobView<'_>, time_ms: u64) {
        let work = self.resident_mut(slot).partition.work.get_or_insert_default();
        let jobs = &mut work.jobs;
        jobs.get_or_insert_default().step(step, time_ms);
        if jobs.as_ref().is_some_and(Jobs::is_empty) {
            *jobs = None;
        }
    }
}

/// Queues of these jobs, with these names.
fn names<'a>(jobs: impl Iterator<Item = &'a OpenJob>, mut names: Vec<&'a str>) -> usize {
    names.extend(jobs.map(|job| &*job.queue));
    names.sort_unstable();
    names.dedup();
    names.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn step(queue: &str, offset: Offset, act: JobAct) -> JobView<'_> {
        JobView { queue, offset, act, priority: 0, attempts: 1, at_ms: 1000, partial: b"" }
    }

    #[test]
    fn a_job_is_known_from_its_opening_to_its_end() {
        let mut jobs = Jobs::default();
        jobs.step(step("q", 3, JobAct::Opened), 10);
        jobs.step(step("r", 3, JobAct::Opened), 10);
        jobs.step(step("q", 3, JobAct::Opened), 11);
        assert_eq!(jobs.all().len(), 2, "opened once for each queue");
        jobs.step(JobView { partial: b"half", ..step("q", 3, JobAct::Progress) }, 12);
        jobs.step(step("q", 3, JobAct::Tried), 13);
        let job = jobs.get("q", 3).unwrap();
        assert_eq!((job.opened_ms, job.deadline_ms, job.attempts, &*job.partial), (10, 1000, 1, &b"half"[..]));
        let lease = |jobs: &Jobs| jobs.get("q", 3).map(|job| job.lease);
        jobs.step(JobView { at_ms: 77, ..step("q", 3, JobAct::Claimed) }, 13);
        assert_eq!(lease(&jobs), Some(77), "somebody works on it");
        jobs.step(step("q", 3, JobAct::Tried), 14);
        assert_eq!(lease(&jobs), Some(0), "and no longer");
        jobs.step(step("q", 3, JobAct::Done), 14);
        jobs.step(step("q", 3, JobAct::Fallback), 15);
        assert_eq!((jobs.all().len(), jobs.partial_bytes), (1, 0));
    }

    #[test]
    fn the_dead_are_kept_up_to_a_bound_and_come_back() {
        let mut jobs = Jobs::default();
        for n in 0..JOBS_DEAD_MAX as u64 + 2 {
            jobs.step(step("q", n, JobAct::Opened), n);
            jobs.step(JobView { at_ms: 500 + n, ..step("q", n, JobAct::Dead) }, n);
        }
        assert_eq!((jobs.all().len(), jobs.all()[0].offset), (JOBS_DEAD_MAX, 2), "the oldest two went");
        jobs.step(JobView { at_ms: 9000, ..step("q", 5, JobAct::Redriven) }, 8000);
        let job = jobs.get("q", 5).unwrap();
        assert_eq!((job.dead, job.opened_ms, job.deadline_ms, job.attempts), (false, 8000, 9000, 0));
        assert_eq!(job.event_ms, 5, "its event is no younger for that");
        jobs.step(step("q", 6, JobAct::Dropped), 8001);
        assert!(jobs.get("q", 6).is_none());
        let cancelled = |jobs: &Jobs, at, cause| jobs.cancelled_by(at, cause).map(|job| job.offset).collect::<Vec<_>>();
        assert_eq!((cancelled(&jobs, 9, None), cancelled(&jobs, 5, None)), (vec![5], vec![]), "open ones before it");
        assert_eq!((cancelled(&jobs, 9, Some(5)), cancelled(&jobs, 9, Some(7))), (vec![5], vec![]), "or the one named");
        jobs.step(step("q", 5, JobAct::Cancelled), 8002);
        jobs.step(step("q", 7, JobAct::Cancelled), 8002);
        let deadline = |offset| jobs.get("q", offset).map(|job| job.deadline_ms);
        assert_eq!((deadline(5), deadline(7)), (Some(8000), Some(507)), "a dead one stays as it is");
    }

    proptest! {
        /// The way at a glance and the way of counting say the same.
        #[test]
        fn room_is_what_counting_says(
            held in proptest::collection::vec((0u8..32, any::<bool>()), 0..JOBS_MAX + 40),
            wanted in proptest::collection::vec(0u8..40, 0..40),
        ) {
            let mut jobs = Jobs::default();
            let name = |queue: u8| format!("queue-{queue}");
            for (offset, (queue, dies)) in held.into_iter().enumerate() {
                jobs.step(step(&name(queue), offset as u64, JobAct::Opened), 1);
                if dies {
                    jobs.step(step(&name(queue), offset as u64, JobAct::Dead), 2);
                }
            }
            let open = jobs.list.iter().filter(|job| !job.dead).count();
            let wanted: Vec<String> = wanted.into_iter().map(name).collect();
            let own = jobs.list.iter().map(|job| &*job.queue);
            let names: std::collections::BTreeSet<&str> = own.chain(wanted.iter().map(|queue| &**queue)).collect();
            let (most, queues) = (JOBS_MAX - GROUPS_MAX, JOB_QUEUES_MAX - GROUPS_MAX);
            let counted = open + wanted.len() + JOBS_DEAD_MAX <= most && names.len() <= queues;
            prop_assert_eq!(jobs.room(wanted.len(), wanted.iter().map(|queue| &**queue)), counted);
        }

        #[test]
        fn what_is_kept_comes_back_and_no_bytes_make_it_panic(
            steps in proptest::collection::vec((0u64..20, 0u8..3, 0u8..10, 0usize..900), 0..300), cut in any::<u16>(),
        ) {
            let mut jobs = Jobs::default();
            for (offset, queue, act, partial) in steps {
                let (queue, partial) = (format!("queue-{queue}"), vec![b'p'; partial]);
                let act = JobAct::of(act).unwrap();
                jobs.step(JobView { queue: &queue, offset, act, priority: 2, attempts: 3, at_ms: 77, partial: &partial }, 5);
                prop_assert_eq!(jobs.list.iter().map(|job| job.partial.len()).sum::<usize>(), jobs.partial_bytes);
            }
            let mut bytes = Vec::new();
            jobs.encode(&mut bytes);
            prop_assert!(bytes.len() <= JOBS_SECTION_BYTES_MAX);
            let mut take = Take(&bytes);
            let again = Jobs::decode(&mut take, 20);
            prop_assert_eq!(again.as_ref(), Some(&jobs));
            prop_assert!(take.0.is_empty());
            let cut = usize::from(cut) % bytes.len();
            prop_assert_eq!(Jobs::decode(&mut Take(&bytes[..cut]), 20), None);
            bytes[cut] ^= 0x41;
            let _ = Jobs::decode(&mut Take(&bytes), 20);
        }
    }
}
