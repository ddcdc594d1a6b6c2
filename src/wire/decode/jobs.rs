//! Commands about queues and jobs.

use super::Reader;
use super::commands::{json_range, parse_epoch};
use super::fields::{Field, Fields, Inside};
use super::plan::{Place, Plan};
use crate::wire::json::{Kind, Scanner, Span, Value};
use shards::command::{Fallback, JobAsk, JobName, JobOrder, Lease, NewQueue, QueueAsk};
use shards::limits::{DATA_DEPTH_MAX, FALLBACK_DATA_BYTES_MAX, QUEUE_PATTERNS_MAX, WIRE_INTEGER_MAX};
use shards::names::{is_name, is_pattern, is_topic};
use shards::refusal::{Refusal, Refused};

/// What a queue does where it does not say.
const LEASE_MS: u64 = 5000;
const DEADLINE_MS: u64 = 10_000;
const CAPACITY: u64 = 10_000;
const ATTEMPTS: u64 = 3;
const BACKOFF_MS: u64 = 200;

/// A job as ranges: its session, and the rest of its name.
#[derive(Clone, Copy)]
pub(super) struct JobPlan {
    pub(super) session: Place,
    queue: Place,
    epoch: u64,
    offset: u64,
}

impl JobPlan {
    pub(super) fn name<'a>(&self, frame: &'a str, scratch: &'a [u8]) -> JobName<'a> {
        JobName { queue: self.queue.text(frame, scratch), epoch: self.epoch, offset: self.offset }
    }
}

/// What is asked about a job, as ranges.
#[derive(Clone, Copy)]
pub(super) enum JobAskPlan {
    Fail { lease: Lease, retry_after_ms: Option<u64>, retry: bool },
    Extend { lease: Lease, lease_ms: Option<u64> },
    Progress { lease: Lease, data: Place },
    Redrive,
    Drop,
}

impl JobAskPlan {
    pub(super) fn ask<'a>(self, frame: &'a str, scratch: &'a [u8]) -> JobAsk<'a> {
        match self {
            JobAskPlan::Fail { lease, retry_after_ms, retry } => JobAsk::Fail { lease, retry_after_ms, retry },
            JobAskPlan::Extend { lease, lease_ms } => JobAsk::Extend { lease, lease_ms },
            JobAskPlan::Progress { lease, data } => JobAsk::Progress { lease, partial: data.bytes(frame, scratch) },
            JobAskPlan::Redrive => JobAsk::Redrive,
            JobAskPlan::Drop => JobAsk::Drop,
        }
    }
}

/// A queue as ranges; its patterns are in scratch, so many of them priorities.
#[derive(Clone, Copy)]
pub(super) struct QueuePlan {
    queue: Place,
    priorities: usize,
    capacity: u64,
    lease_ms: u64,
    deadline_ms: u64,
    attempts: u64,
    backoff_ms: u64,
    order: JobOrder,
    fallback: Option<(Place, Place)>,
    dead_letter: Place,
}

impl QueuePlan {
    /// The command, with its patterns: topics first.
    pub(super) fn ask<'a>(&self, patterns: &'a [&'a str], frame: &'a str, scratch: &'a [u8]) -> QueueAsk<'a> {
        let (topics, priorities) = patterns.split_at(patterns.len().saturating_sub(self.priorities));
        let data = |(topic, data): (Place, Place)| Fallback {
            topic: topic.text(frame, scratch),
            data: data.bytes(frame, scratch),
        };
        QueueAsk::Declare(NewQueue {
            queue: self.queue.text(frame, scratch),
            topics,
            priorities,
            capacity: self.capacity,
            lease_ms: self.lease_ms,
            deadline_ms: self.deadline_ms,
            attempts: self.attempts,
            backoff_ms: self.backoff_ms,
            order: self.order,
            fallback: self.fallback.map(data),
            dead_letter: self.dead_letter.text(frame, scratch),
        })
    }
}

/// `attempt.nonce`, the nonce as sixteen hex digits.
pub(super) fn parse_lease(text: &[u8]) -> Option<Lease> {
    let text = std::str::from_utf8(text).ok()?;
    let (attempt, nonce) = text.split_once('.')?;
    let digits = attempt.bytes().all(|b| b.is_ascii_digit()) && attempt.len() <= 5;
    let attempt = attempt.parse().ok().filter(|_| digits)?;
    Some(Lease { attempt, nonce: parse_epoch(nonce.as_bytes())? })
}

impl Reader<'_, '_> {
    /// A command about a job.
    pub(super) fn job_ask(
        &mut self,
        fields: &Fields,
        ask: impl FnOnce(&mut Self, &Fields) -> Result<JobAskPlan, Refused>,
    ) -> Result<Plan, Refused> {
        let job = self.job(fields)?;
        ask(self, fields).map(|ask| Plan::Job { job, ask })
    }

    pub(super) fn job_fail(&mut self, fields: &Fields) -> Result<JobAskPlan, Refused> {
        let (lease, retry_after_ms) = (self.lease(fields)?, self.optional_integer(fields, Field::RetryAfterMs)?);
        let retry = match fields.get(Field::Retry).map(|value| value.kind) {
            None | Some(Kind::True) => true,
            Some(Kind::False) => false,
            Some(_) => return Err(fields.refused(Refusal::WrongType, Field::Retry)),
        };
        Ok(JobAskPlan::Fail { lease, retry_after_ms, retry })
    }

    pub(super) fn job_extend(&mut self, fields: &Fields) -> Result<JobAskPlan, Refused> {
        let (lease, lease_ms) = (self.lease(fields)?, self.optional_integer(fields, Field::LeaseMs)?);
        if lease_ms == Some(0) {
            return Err(fields.refused(Refusal::OutOfRange, Field::LeaseMs));
        }
        Ok(JobAskPlan::Extend { lease, lease_ms })
    }

    pub(super) fn job_progress(&mut self, fields: &Fields) -> Result<JobAskPlan, Refused> {
        let lease = self.lease(fields)?;
        let value =
            fields.get_or_null(Field::Data).ok_or_else(|| fields.refused(Refusal::MissingField, Field::Data))?;
        let bound = self.scratch.progress_bytes_max;
        let data = json_value(fields, Field::Data, value, bound, Refusal::ProgressTooLarge)?;
        Ok(JobAskPlan::Progress { lease, data })
    }

    /// `queue/session:epoch:offset`
    pub(super) fn job(&mut self, fields: &Fields) -> Result<JobPlan, Refused> {
        let place = self.string(fields, Field::Job)?;
        let wrong = fields.refused(Refusal::WrongType, Field::Job);
        let text = self.bytes(place);
        let slash = text.iter().position(|byte| *byte == b'/').ok_or(wrong)?;
        let (queue, event) = (&text[..slash], &text[slash + 1..]);
        let (session, epoch, offset) = super::commands::event_id_parts(event).ok_or(wrong)?;
        if !is_name(queue) || offset >= WIRE_INTEGER_MAX {
            return Err(wrong);
        }
        let at = |from: usize, to: usize| Place {
            span: Span { start: place.span.start + from as u32, end: place.span.start + to as u32 },
            ..place
        };
        Ok(JobPlan { session: at(slash + 1, slash + 1 + session), queue: at(0, slash), epoch, offset })
    }

    pub(super) fn lease(&mut self, fields: &Fields) -> Result<Lease, Refused> {
        let place = self.string(fields, Field::Lease)?;
        parse_lease(self.bytes(place)).ok_or_else(|| fields.refused(Refusal::WrongType, Field::Lease))
    }

    /// `complete`: a commit that is named after the job that it ends.
    pub(super) fn complete_alone(&mut self, fields: &Fields) -> Result<Plan, Refused> {
        let (job, lease) = (self.job(fields)?, self.lease(fields)?);
        self.commit_parts(fields, job.session)?;
        let if_next = self.optional_integer(fields, Field::IfNext)?;
        Ok(Plan::Commit { session: job.session, complete: Some((job, lease)), holds: None, if_next })
    }

    /// The job that a commit ends, or whose lease it is made under.
    pub(super) fn commit_job(
        &mut self,
        fields: &Fields,
        field: Field,
        session: Place,
    ) -> Result<Option<(JobPlan, Lease)>, Refused> {
        let Some(value) = fields.get(field) else { return Ok(None) };
        let inner = self.inner(fields, field, value)?;
        let outer = |refused: Refused| Refused::field(refused.refusal, field.name(Inside::Command));
        let (job, lease) = (self.job(&inner).map_err(outer)?, self.lease(&inner).map_err(outer)?);
        if self.text(job.session) != self.text(session) {
            return Err(fields.refused(Refusal::CrossSession, field));
        }
        Ok(Some((job, lease)))
    }

    pub(super) fn pull(&mut self, fields: &Fields) -> Result<Plan, Refused> {
        let queue = self.name(fields, Field::Queue)?;
        Ok(Plan::Pull { queue, credit: self.required_integer(fields, Field::Credit)? })
    }

    pub(super) fn list_queues(&mut self, fields: &Fields) -> Result<Plan, Refused> {
        let after = fields.has(Field::After).then(|| self.name(fields, Field::After)).transpose()?;
        Ok(Plan::Queues { after })
    }

    pub(super) fn dead_list(&mut self, fields: &Fields) -> Result<Plan, Refused> {
        let queue = self.name(fields, Field::Queue)?;
        Ok(Plan::Dead { queue, from: self.optional_integer(fields, Field::From)?.unwrap_or(0) })
    }

    pub(super) fn declare(&mut self, fields: &Fields) -> Result<Plan, Refused> {
        let queue = self.name(fields, Field::Queue)?;
        self.scratch.pattern_places.clear();
        self.topics_of(fields)?;
        let topics = self.scratch.pattern_places.len();
        self.patterns_of(fields, Field::Priorities)?;
        let priorities = self.scratch.pattern_places.len() - topics;
        let deadline_ms = self.optional_integer(fields, Field::DeadlineMs)?.unwrap_or(DEADLINE_MS);
        let order = match fields.has(Field::Order) {
            false => JobOrder::Session,
            true => {
                let place = self.string(fields, Field::Order)?;
                match self.text(place) {
                    "session" => JobOrder::Session,
                    "none" => JobOrder::Free,
                    _ => return Err(fields.refused(Refusal::WrongType, Field::Order)),
                }
            }
        };
        let fallback = match fields.get(Field::Fallback) {
            None => None,
            Some(value) => {
                let inner = self.inner(fields, Field::Fallback, value)?;
                let outer = |refused: Refused| Refused::field(refused.refusal, "fallback");
                let topic = self.checked(&inner, Field::Topic, is_topic, Refusal::BadTopic).map_err(outer)?;
                let data = match inner.get_or_null(Field::Data) {
                    Some(value) => {
                        let bound = FALLBACK_DATA_BYTES_MAX;
                        json_value(&inner, Field::Data, value, bound, Refusal::EventTooLarge).map_err(outer)?
                    }
                    None => Place::default(),
                };
                Some((topic, data))
            }
        };
        let dead_letter = match fields.has(Field::DeadLetter) {
            true => self.checked(fields, Field::DeadLetter, is_topic, Refusal::BadTopic)?,
            false => self.in_scratch(b"job.dead"),
        };
        Ok(Plan::Declare(QueuePlan {
            queue,
            priorities,
            capacity: self.optional_integer(fields, Field::Capacity)?.unwrap_or(CAPACITY),
            lease_ms: self.optional_integer(fields, Field::LeaseMs)?.unwrap_or(LEASE_MS.min(deadline_ms)),
            deadline_ms,
            attempts: self.optional_integer(fields, Field::Attempts)?.unwrap_or(ATTEMPTS),
            backoff_ms: self.optional_integer(fields, Field::BackoffMs)?.unwrap_or(BACKOFF_MS.min(deadline_ms)),
            order,
            fallback,
            dead_letter,
        }))
    }

    /// The patterns of what becomes a job, or is for a group.
    pub(super) fn topics_of(&mut self, fields: &Fields) -> Result<(), Refused> {
        self.patterns_of(fields, Field::Patterns)?;
        if self.scratch.pattern_places.is_empty() {
            return Err(fields.refused(Refusal::MissingField, Field::Patterns));
        }
        Ok(())
    }

    /// Adds the patterns of a list.
    fn patterns_of(&mut self, fields: &Fields, field: Field) -> Result<(), Refused> {
        let Some(value) = fields.get(field) else { return Ok(()) };
        let wrong = fields.refused(Refusal::WrongType, field);
        if value.kind != Kind::Array {
            return Err(wrong);
        }
        let mut scanner = Scanner::new(self.frame, value.span.start as usize + 1);
        let mut count = 0;
        while scanner.element(count == 0).map_err(|_| wrong)? {
            let element = scanner.value().map_err(|_| wrong)?;
            if !element.kind.is_string() {
                return Err(wrong);
            }
            if count == QUEUE_PATTERNS_MAX {
                return Err(fields.refused(Refusal::CommandTooLarge, field));
            }
            count += 1;
            let place = self.place(element);
            if !is_pattern(self.bytes(place)) {
                return Err(fields.refused(Refusal::BadPattern, field));
            }
            self.scratch.pattern_places.push(place);
        }
        Ok(())
    }

    fn in_scratch(&mut self, text: &[u8]) -> Place {
        let bytes = &mut self.scratch.bytes;
        let start = bytes.len() as u32;
        bytes.extend_from_slice(text);
        Place { span: Span { start, end: bytes.len() as u32 }, in_scratch: true }
    }
}

/// A JSON value of bounded size, as it came.
fn json_value(fields: &Fields, field: Field, value: Value, bound: usize, no: Refusal) -> Result<Place, Refused> {
    let range = json_range(value);
    if usize::from(value.depth) > DATA_DEPTH_MAX {
        return Err(fields.refused(Refusal::BadData, field));
    }
    if range.len() > bound {
        return Err(fields.refused(no, field));
    }
    Ok(Place { span: Span { start: range.start as u32, end: range.end as u32 }, in_scratch: false })
}
