//! What the server does about jobs by itself: opens them, tries them again, ends them.
//!
//! ```text
//!   lease over, fail ─► attempts left? ─ yes ─► record: tried               ─► again after the backoff
//!                           └ no ─┐
//!   deadline, cancelled ─► fallback? ─ no ┴──► record: dead     + event of the dead letter's topic
//!                    └ yes ──────────────────► record: fallback + event of the fallback's topic
//! ```
//! The end and what the server says of it are one record. The event names its cause, the job's own event, and has a message id that no
//! client can have made: the job's name under `$server`. It is exempt from capacities: an answer is never refused.
//!
//! A `control.cancel` cancels the job whose event is its cause, or without a cause all jobs of its session that are open: the steps that
//! say so stand in its own record, so a crash forgets neither or both.

use super::jobs::{Due, State};
use super::policy::Definition;
use super::room::Admission;
use super::worker::Freed;
use super::{JobKey, SERVER};
use crate::command::{DataKind, JobName};
use crate::effect::JobHappened;
use crate::groups::ack::Move;
use crate::ids::{Now, Offset};
use crate::names::is_topic;
use crate::refusal::{Refusal, Refused};
use crate::shard::{Opened, Shard};
use std::sync::Arc;
use storage::catalog::PartitionSlot;
use storage::ids::LogSeq;
use storage::record::{EventBody, JobAct, JobBody, NO_OFFSET, Parts, parts_bytes_max};

/// Jobs that one turn ends or tries again.
const DUE_PER_TURN_MAX: usize = 256;

/// Topic of the event that cancels jobs.
const CANCEL: &str = "control.cancel";

/// Topic of what is given up where its queue is not known any more.
const DEAD_TOPIC: &str = "job.dead";

/// An event that becomes a job.
pub(crate) struct Opening {
    pub definition: Arc<Definition>,
    pub offset: Offset,
    pub class: u8,
    pub deadline_ms: u64,
}

impl Opening {
    /// As a step.
    pub fn body(&self) -> JobBody<'_> {
        JobBody {
            queue: &self.definition.queue,
            offset: self.offset,
            act: JobAct::Opened as u8,
            priority: self.class,
            attempts: 0,
            at_ms: self.deadline_ms,
            partial: b"",
        }
    }
}

/// Why the server ends a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reason {
    /// Its time is over.
    Deadline,
    /// An event wants it no longer.
    Cancelled,
    /// Its attempts are.
    Attempts,
    /// A worker said that trying again is no use.
    Failed,
    /// Its event cannot be read any more.
    Lost,
}

impl Reason {
    const fn name(self) -> &'static str {
        match self {
            Reason::Deadline => "deadline",
            Reason::Cancelled => "cancelled",
            Reason::Attempts => "attempts",
            Reason::Failed => "failed",
            Reason::Lost => "lost",
        }
    }
}

impl Shard {
    /// Jobs that events of these topics will be, from this offset on.
    pub(crate) fn openings<'a>(
        &self,
        tenant: &str,
        session: &str,
        topics: impl Iterator<Item = &'a str>,
        tail: Offset,
        now: Now,
    ) -> Vec<Opening> {
        let mut openings = Vec::new();
        if self.queues.is_empty() || session.starts_with('$') {
            return openings;
        }
        for (offset, topic) in (tail..).zip(topics) {
            for definition in self.queues.of(tenant).filter(|definition| definition.matches(topic)) {
                let (class, deadline_ms) = (definition.priority(topic), now.wall_ms + definition.deadline_ms);
                openings.push(Opening { definition: definition.clone(), offset, class, deadline_ms });
            }
        }
        openings
    }

    /// Bytes that jobs of events of these topics may take in a record.
    pub(crate) fn openings_bytes_max<'a>(&self, tenant: &str, topics: impl Iterator<Item = &'a str>) -> usize {
        if self.queues.is_empty() {
            return 0;
        }
        let of = |topic: &str| -> usize {
            let matching = self.queues.of(tenant).filter(|definition| definition.matches(topic));
            matching.map(|definition| definition.queue.len() + size_of::<JobBody<'_>>()).sum()
        };
        topics.map(of).sum()
    }

    /// Have queues, session and shard room for these jobs? `false`: a queue's home was asked, the session's command waits parked.
    pub(crate) fn admit_jobs(
        &mut self,
        tenant: &Arc<str>,
        slot: PartitionSlot,
        openings: &[Opening],
        now: Now,
    ) -> Result<bool, Refused> {
        let names = openings.iter().map(|opening| &*opening.definition.queue);
        if !self.log.partition(slot).job_room(openings.len(), names) {
            return Err(Refused { field: "session", ..Refused::later(Refusal::QueueFull, 1000) });
        }
        if self.queues.open() + openings.len() > self.config.limits.work.jobs_per_shard_max {
            return Err(Refused::later(Refusal::QueueFull, 1000));
        }
        let partition = self.log.partition(slot).id();
        for (at, opening) in openings.iter().enumerate() {
            let same = |other: &&Opening| other.definition.queue == opening.definition.queue;
            if openings[..at].iter().any(|other| same(&other)) {
                continue;
            }
            let count = openings.iter().filter(same).count() as u64;
            match self.room_for_jobs(tenant, &opening.definition.queue, partition, count, now) {
                Admission::Passes => {}
                Admission::Waits => return Ok(false),
                Admission::Full(ms) => {
                    return Err(Refused { field: "queue", ..Refused::later(Refusal::QueueFull, ms) });
                }
            }
        }
        Ok(true)
    }

    /// Jobs that these events cancel; not the one that their record ends. Their offsets begin at the tail.
    pub(crate) fn cancels<'a>(
        &self,
        slot: PartitionSlot,
        events: impl Iterator<Item = (&'a str, Option<Offset>)>,
        done: Option<&JobName<'_>>,
    ) -> Vec<(Box<str>, Offset)> {
        let mut cancels: Vec<(Box<str>, Offset)> = Vec::new();
        if self.queues.is_empty() && self.queues.open() == 0 {
            return cancels;
        }
        let partition = self.log.partition(slot);
        for (at, (topic, cause)) in (partition.tail()..).zip(events) {
            if topic != CANCEL {
                continue;
            }
            for job in partition.cancelled_by(at, cause) {
                let is_done = done.is_some_and(|done| done.queue == &*job.queue && done.offset == job.offset);
                let known = cancels.iter().any(|(queue, offset)| (queue, *offset) == (&job.queue, job.offset));
                if !is_done && !known {
                    cancels.push((job.queue.clone(), job.offset));
                }
            }
        }
        cancels
    }

    /// They were appended.
    pub(crate) fn jobs_opened(&mut self, tenant: &Arc<str>, openings: &[Opening]) {
        for opening in openings {
            let line = self.queues.line(tenant, &opening.definition.queue);
            self.queues.take_permit(line);
        }
    }

    /// Does what time has made due. Returns how many were worked off.
    pub(super) fn serve_due(&mut self, now: Now) -> usize {
        let mut done = 0;
        for _ in 0..self.queues.due.len().min(DUE_PER_TURN_MAX) {
            let Some((id, due)) = self.queues.due.pop_front() else { break };
            let Some(job) = self.queues.get(id) else { continue };
            let is_due = match (due, job.state) {
                (_, State::Settling | State::Dead(_)) => false,
                (Due::Lease(nonce), State::Claimed(claim)) => {
                    claim.lease.nonce == nonce && claim.until_us <= now.mono_us
                }
                (Due::Lease(_) | Due::Ready, _) => false,
                (Due::Deadline | Due::Lost, _) => true,
            };
            if !is_due {
                continue;
            }
            let (partition, session, line) = (job.partition, job.session.clone(), job.line);
            let over = if job.cancelled { Reason::Cancelled } else { Reason::Deadline };
            let tenant = self.queues.lines[line as usize].tenant.clone();
            let slot = match self.open(partition, &tenant, &session, None) {
                Opened::Ready(slot) => slot,
                Opened::Absent => continue,
                Opened::Park | Opened::Refused(_) => {
                    self.queues.due.push_back((id, due));
                    continue;
                }
            };
            if due == Due::Deadline && self.waits_for_earlier(id.0, slot) {
                self.queues.due.push_back((id, due));
                continue;
            }
            let ended = match due {
                Due::Deadline => self.end_job(id.0, slot, over, now).map(|_| ()),
                Due::Lost => self.end_job(id.0, slot, Reason::Lost, now).map(|_| ()),
                _ => self.attempt_over(id.0, slot, None, true, now).map(|_| ()),
            };
            match ended {
                Some(()) => {
                    self.free_worker(id.0, true);
                    self.queues.set_state(id.0, State::Settling);
                    done += 1;
                }
                // No room in the log: nothing else has either.
                None => {
                    self.queues.due.push_front((id, due));
                    break;
                }
            }
        }
        done
    }

    /// Is one before it in its session overdue as well, and its end not appended? Then that one goes first.
    fn waits_for_earlier(&self, job: u32, slot: PartitionSlot) -> bool {
        let queue = &self.queues.lines[self.queues.jobs[job as usize].line as usize].queue;
        let is_open = |offset| self.log.partition(slot).job(queue, offset).is_some_and(|job| !job.dead);
        self.queues.overdue_before(job).any(|earlier| is_open(earlier.offset))
    }

    /// An attempt has failed. `None`: no room. The job settles from now on; the caller says so.
    pub(crate) fn attempt_over(
        &mut self,
        job: u32,
        slot: PartitionSlot,
        retry_after_ms: Option<u64>,
        retry: bool,
        now: Now,
    ) -> Option<(LogSeq, JobHappened)> {
        let known = &self.queues.jobs[job as usize];
        let (attempts, offset, line) = (known.attempts + 1, known.offset, known.line);
        let line = &self.queues.lines[line as usize];
        let (tenant, queue) = (line.tenant.clone(), line.queue.clone());
        let definition = self.queues.definition(&tenant, &queue);
        if !retry || definition.is_none_or(|definition| attempts >= definition.attempts) {
            let reason = if retry { Reason::Attempts } else { Reason::Failed };
            return self.end_job(job, slot, reason, now).map(|log_seq| (log_seq, JobHappened::Dead { attempts }));
        }
        let usual_ms = definition.map_or(0, |definition| definition.backoff_ms(attempts));
        let at_ms = now.wall_ms.saturating_add(retry_after_ms.unwrap_or(usual_ms));
        let act = JobAct::Tried as u8;
        let step = JobBody { queue: &queue, offset, act, priority: 0, attempts, at_ms, partial: b"" };
        let log_seq = self.append_steps(slot, &Parts { jobs: &[step], ..Parts::default() }, now)?;
        Some((log_seq, JobHappened::Failed { attempts }))
    }

    /// Appends a record of the server's own, if there is room.
    pub(crate) fn append_steps(&mut self, slot: PartitionSlot, parts: &Parts<'_>, now: Now) -> Option<LogSeq> {
        let partition = self.log.partition(slot);
        if !self.log.room(parts_bytes_max(partition.tenant(), partition.session(), parts)) {
            return None;
        }
        Some(self.log.append_parts(slot, parts, now.wall_ms).log_seq)
    }

    /// Ends a job for which no worker did. `None`: no room.
    pub(crate) fn end_job(&mut self, job: u32, slot: PartitionSlot, reason: Reason, now: Now) -> Option<LogSeq> {
        let known = &self.queues.jobs[job as usize];
        let (offset, opened_ms) = (known.offset, known.opened_ms);
        let attempts = known.attempts + u16::from(matches!(reason, Reason::Attempts | Reason::Failed));
        let line = &self.queues.lines[known.line as usize];
        let (tenant, queue) = (line.tenant.clone(), line.queue.clone());
        let definition = self.queues.definition(&tenant, &queue).cloned();
        let fallback = definition.as_ref().and_then(|definition| definition.fallback.as_ref());
        let (act, topic, said) = match (reason, fallback) {
            (Reason::Deadline | Reason::Cancelled | Reason::Lost, Some((topic, data))) => {
                (JobAct::Fallback, &**topic, &**data)
            }
            _ => (JobAct::Dead, definition.as_ref().map_or(DEAD_TOPIC, |d| &d.dead_letter), &b""[..]),
        };
        debug_assert!(is_topic(topic.as_bytes()), "declared");
        let partition = self.log.partition(slot);
        let (id, epoch, tail, session) = (partition.id(), partition.epoch(), partition.tail(), partition.session());
        let partial = partition.job(&queue, offset).map_or(&b""[..], |job| &job.partial);
        let name = format!("{queue}/{session}:{:016x}:{offset}", self.shown(epoch));
        let mut data = answer(&name, reason, attempts, said, partial);
        if data.len() > self.config.limits.event_bytes_max.min(self.log.record_bytes_max() / 2) {
            data = answer(&name, reason, attempts, b"", b"");
        }
        let message_id = format!("{queue}:{offset}:{opened_ms}");
        let key = self.log.dedupe_key(id, epoch, SERVER, &message_id);
        let event = EventBody {
            topic,
            client_id: SERVER,
            message_id: &message_id,
            traceparent: "",
            data: &data,
            data_kind: DataKind::Json as u8,
            prev_offset: if offset < tail { offset } else { NO_OFFSET },
            expires_ms: 0,
            producer_epoch: 0,
            producer_seq: NO_OFFSET,
            dedupe_low: key as u64,
            dedupe_high: (key >> 64) as u64,
            body_hash: 0,
        };
        let mut openings = self.openings(&tenant, session, [topic].into_iter(), tail, now);
        let names = openings.iter().map(|opening| &*opening.definition.queue);
        if !partition.job_room(openings.len(), names) {
            openings.clear();
        }
        let groups = self.group_moves(slot, &tenant, [topic].into_iter(), &[]).unwrap_or_default();
        let at_ms = now.wall_ms;
        let act = act as u8;
        let mut steps = vec![JobBody { queue: &queue, offset, act, priority: 0, attempts, at_ms, partial: b"" }];
        steps.extend(openings.iter().map(Opening::body));
        steps.extend(groups.iter().flat_map(Move::bodies));
        let log_seq = self.append_steps(slot, &Parts { events: &[event], jobs: &steps, ..Parts::default() }, now)?;
        self.jobs_opened(&tenant, &openings);
        self.groups_moved(&tenant, slot, &groups, log_seq, now);
        Some(log_seq)
    }

    /// Whoever works on the job does so no longer: its credit goes back. `lost`: not by its own word.
    pub(crate) fn free_worker(&mut self, job: u32, lost: bool) {
        let known = &self.queues.jobs[job as usize];
        let State::Claimed(claim) = known.state else { return };
        let lost = match (lost, known.cancelled) {
            (false, _) => Freed::Ended,
            (true, false) => Freed::Lost,
            (true, true) => Freed::Cancelled,
        };
        let key = JobKey::of(known.partition, &self.queues.lines[known.line as usize].queue, known.offset);
        self.say_free(claim.shard, key, claim.lease.nonce, lost);
    }
}

/// What the server says of a job's end: JSON. Names hold no byte that needs an escape.
fn answer(name: &str, reason: Reason, attempts: u16, data: &[u8], partial: &[u8]) -> Vec<u8> {
    let mut out = format!("{{\"job\":\"{name}\",\"reason\":\"{}\",\"attempts\":{attempts}", reason.name()).into_bytes();
    for (key, value) in [(&b",\"data\":"[..], data), (b",\"partial\":", partial)] {
        if !value.is_empty() {
            out.extend_from_slice(key);
            out.extend_from_slice(value);
        }
    }
    out.push(b'}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_leaves_out_what_there_is_not() {
        let said = |data, partial| String::from_utf8(answer("q/s:1:2", Reason::Deadline, 3, data, partial)).unwrap();
        assert_eq!(said(b"", b""), r#"{"job":"q/s:1:2","reason":"deadline","attempts":3}"#);
        assert_eq!(
            said(b"\"sorry\"", b"[1]"),
            r#"{"job":"q/s:1:2","reason":"deadline","attempts":3,"data":"sorry","partial":[1]}"#
        );
    }
}
