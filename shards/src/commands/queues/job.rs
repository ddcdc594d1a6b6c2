//! What a worker says of its job, and an operator of a dead one; on the shard of the job's session.
//!
//! ```text
//!   fail      lease holds ─► tried, or dead: a record ─► answered when committed
//!   extend    lease holds ─► runs longer, never beyond the deadline; nothing is logged
//!   progress  lease holds ─► partial result: a record; the lease begins anew
//!   redrive   dead ─► open again, its deadline anew      drop   dead ─► forgotten
//! ```

use crate::command::{JobAsk, JobName, Lease};
use crate::commands::publish::NO_SPACE_RETRY_MS;
use crate::commands::{Call, Outcome};
use crate::effect::{JobHappened, Reply, WorkReply};
use crate::ids::Now;
use crate::limits::FALLBACK_DATA_BYTES_MAX;
use crate::queues::jobs::State;
use crate::refusal::{Refusal, Refused};
use crate::sessions::waiters::{Answer, Waiter};
use crate::shard::{Opened, Shard};
use storage::catalog::PartitionSlot;
use storage::ids::LogSeq;
use storage::record::{HEAD_BYTES, JobAct, JobBody, Parts};

pub(crate) fn run(shard: &mut Shard, call: Call<'_>, job: &JobName<'_>, ask: &JobAsk<'_>) -> Outcome {
    let Call { asker, partition, session, now, .. } = call;
    let unknown = Refused::field(Refusal::UnknownJob, "job");
    if shard.log.no_space() && !matches!(ask, JobAsk::Extend { .. }) {
        return shard.refuse(asker, Refused::later(Refusal::NoSpace, NO_SPACE_RETRY_MS));
    }
    if !shard.log.room(room_for(shard, call, ask)) {
        return Outcome::Later;
    }
    let at = match shard.open(partition, &asker.tenant, session, None) {
        Opened::Ready(at) => at,
        Opened::Park => return Outcome::Park,
        Opened::Absent => return shard.refuse(asker, unknown),
        Opened::Refused(refused) => return shard.refuse(asker, refused),
    };
    let epoch = shard.log.partition(at).epoch();
    let Some((slot, _)) = shard.find_job(partition, epoch, job) else { return shard.refuse(asker, unknown) };
    let done = match *ask {
        JobAsk::Fail { lease, retry_after_ms, retry } => match held(shard, slot, lease) {
            Ok(()) => {
                let over = shard.attempt_over(slot, at, retry_after_ms, retry, now);
                if over.is_some() {
                    shard.free_worker(slot, false);
                    shard.queues.set_state(slot, State::Settling);
                }
                over
            }
            Err(refused) => return shard.refuse(asker, refused),
        },
        JobAsk::Extend { lease, lease_ms } => return extend(shard, call, slot, job, (lease, lease_ms)),
        JobAsk::Progress { lease, partial } => match held(shard, slot, lease) {
            Ok(()) => match progress(shard, slot, at, job, partial, now) {
                Ok(done) => done,
                Err(refused) => return shard.refuse(asker, refused),
            },
            Err(refused) => return shard.refuse(asker, refused),
        },
        JobAsk::Redrive | JobAsk::Drop if !shard.queues.is_dead(slot) => {
            return shard.refuse(asker, Refused::field(Refusal::NotDead, "job"));
        }
        JobAsk::Redrive => match redrive(shard, call, at, job) {
            Ok(Some(done)) => done,
            Ok(None) => return Outcome::Park,
            Err(refused) => return shard.refuse(asker, refused),
        },
        JobAsk::Drop => step(shard, at, job, JobAct::Dropped, 0, now).map(|seq| (seq, JobHappened::Dropped)),
    };
    let Some((log_seq, happened)) = done else { return Outcome::Later };
    let answer = Answer::Job { queue: job.queue.into(), epoch, offset: job.offset, happened };
    shard.waiters.push(Waiter { log_seq, origin: asker.origin, id: asker.id, answer });
    Outcome::Done
}

/// Bytes of the largest record that may come of it.
fn room_for(shard: &Shard, call: Call<'_>, ask: &JobAsk<'_>) -> usize {
    let names = call.session.len() + call.asker.tenant.len() + 1024;
    let bytes = match ask {
        JobAsk::Extend { .. } => 0,
        JobAsk::Progress { partial, .. } => HEAD_BYTES + names + partial.len(),
        // It may be the last attempt.
        _ => HEAD_BYTES + names + FALLBACK_DATA_BYTES_MAX + shard.config.limits.work.progress_bytes_max,
    };
    bytes.min(shard.log.record_bytes_max())
}

/// Does the lease hold?
pub(crate) fn held(shard: &Shard, slot: u32, lease: Lease) -> Result<(), Refused> {
    let job = shard.queues.job(slot);
    match job.state {
        State::Settling | State::Dead(_) => Err(Refused::field(Refusal::UnknownJob, "job")),
        _ if Shard::holds_job(job, lease) => Ok(()),
        _ => Err(Refused::field(Refusal::StaleLease, "lease")),
    }
}

fn extend(
    shard: &mut Shard,
    call: Call<'_>,
    slot: u32,
    job: &JobName<'_>,
    (lease, lease_ms): (Lease, Option<u64>),
) -> Outcome {
    let Call { asker, session, now, .. } = call;
    if let Err(refused) = held(shard, slot, lease) {
        return shard.refuse(asker, refused);
    }
    let rest_ms = shard.queues.job(slot).deadline_us.saturating_sub(now.mono_us) / 1000;
    if lease_ms.is_some_and(|wanted| wanted > rest_ms) {
        return shard.refuse(asker, Refused::expects(Refusal::PastDeadline, "lease_ms", rest_ms));
    }
    let usual_ms = shard.queues.definition(&asker.tenant, job.queue).map_or(rest_ms, |d| d.lease_ms);
    let lease_ms = lease_ms.unwrap_or(usual_ms.min(rest_ms)).max(1);
    shard.queues.extend_lease(slot, now.mono_us + lease_ms * 1000);
    let happened = JobHappened::Extended { lease_ms };
    let reply = Reply::Work(WorkReply::Job { session, job: *job, happened });
    shard.answer(asker.origin, asker.id, &reply);
    Outcome::Done
}

type Done = Option<(LogSeq, JobHappened)>;

fn progress(
    shard: &mut Shard,
    slot: u32,
    at: PartitionSlot,
    job: &JobName<'_>,
    partial: &[u8],
    now: Now,
) -> Result<Done, Refused> {
    let too_large = Refused::field(Refusal::ProgressTooLarge, "data");
    if partial.len() > shard.config.limits.work.progress_bytes_max {
        return Err(too_large);
    }
    let partition = shard.log.partition(at);
    let Some(known) = partition.job(job.queue, job.offset) else {
        return Err(Refused::field(Refusal::UnknownJob, "job"));
    };
    if !partition.partial_room(known, partial.len()) {
        return Err(too_large);
    }
    let act = JobAct::Progress as u8;
    let step = JobBody { queue: job.queue, offset: job.offset, act, priority: 0, attempts: 0, at_ms: 0, partial };
    let Some(log_seq) = shard.append_steps(at, &Parts { jobs: &[step], ..Parts::default() }, now) else {
        return Ok(None);
    };
    let lease_ms = shard.queues.lease_ms_of(slot);
    shard.queues.extend_lease(slot, now.mono_us + lease_ms * 1000);
    Ok(Some((log_seq, JobHappened::Progressed)))
}

/// `None`: it waits for room in the queue.
fn redrive(shard: &mut Shard, call: Call<'_>, at: PartitionSlot, job: &JobName<'_>) -> Result<Option<Done>, Refused> {
    let Call { asker, now, .. } = call;
    let Some(definition) = shard.queues.definition(&asker.tenant, job.queue).cloned() else {
        return Err(Refused::field(Refusal::UnknownQueue, "job"));
    };
    let opening = crate::queues::ends::Opening {
        offset: job.offset,
        class: 0,
        deadline_ms: now.wall_ms + definition.deadline_ms,
        definition,
    };
    let openings = [opening];
    if !shard.admit_jobs(&asker.tenant, at, &openings, now)? {
        return Ok(None);
    }
    let done = step(shard, at, job, JobAct::Redriven, openings[0].deadline_ms, now);
    if done.is_some() {
        shard.jobs_opened(&asker.tenant, &openings);
    }
    Ok(Some(done.map(|log_seq| (log_seq, JobHappened::Redriven))))
}

fn step(shard: &mut Shard, at: PartitionSlot, job: &JobName<'_>, act: JobAct, at_ms: u64, now: Now) -> Option<LogSeq> {
    let (queue, offset, act) = (job.queue, job.offset, act as u8);
    let step = JobBody { queue, offset, act, priority: 0, attempts: 0, at_ms, partial: b"" };
    let log_seq = shard.append_steps(at, &Parts { jobs: &[step], ..Parts::default() }, now)?;
    shard.queues.settle_dead(job.queue, shard.log.partition(at).id(), offset);
    Some(log_seq)
}
