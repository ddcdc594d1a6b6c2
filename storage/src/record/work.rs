//! Records that carry entries or jobs beside events and markers: one kind of its own, so that all others stay as they are.
//!
//! ```text
//!   WorkBody ─┬─ commit    CommitBody: events, markers, perhaps none of either
//!             ├─ entries   put · deleted · expired                         in order: each is the next revision
//!             └─ jobs      opened · tried · progress · ended … · dropped   each names queue and event
//! ```
//! All of it becomes durable together or not at all, which is what `commit` and the end of a job promise.

use super::{
    CommitBody, EventBody, HEAD_BYTES, Kind, MarkerBody, RECORD_ALIGN, RECORD_EVENTS_MAX, RECORD_MARKERS_MAX,
    RecordHead, RecordView, SCRATCH_BYTES, commit_bytes_max, encode_commit, seal,
};
use crate::archived;
use crate::catalog::NAME_BYTES_MAX;
use crate::ids::{COUNTER_MAX, Offset};
use rkyv::with::InlineAsBox;
use rkyv::{Archive, Serialize};
use std::mem::{MaybeUninit, size_of};

/// Largest count of entries in one record.
pub const RECORD_ENTRIES_MAX: usize = 64;
/// Largest count of steps of jobs in one record: each event may open one, and one more may end.
pub const RECORD_JOBS_MAX: usize = RECORD_EVENTS_MAX + 1;
/// Largest value of an entry, and likewise the largest partial result of a job, that this format holds.
pub const VALUE_BYTES_MAX: usize = u16::MAX as usize;

const _: () = assert!(size_of::<EntryBodyResolver>() * RECORD_ENTRIES_MAX <= SCRATCH_BYTES);
const _: () = assert!(size_of::<JobBodyResolver>() * RECORD_JOBS_MAX <= SCRATCH_BYTES);

/// What happens to an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EntryAct {
    /// It has this value now.
    Put = 0,
    /// Somebody took it away.
    Deleted = 1,
    /// Its time was over.
    Expired = 2,
}

impl EntryAct {
    const ALL: [EntryAct; 3] = [EntryAct::Put, EntryAct::Deleted, EntryAct::Expired];

    /// By its number.
    pub fn of(number: u8) -> Option<EntryAct> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// What happens to a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum JobAct {
    /// An event became a job; `at_ms` is its deadline.
    Opened = 0,
    /// An attempt failed, or nobody was heard of; `at_ms` is when the next may begin.
    Tried = 1,
    /// So much of a result there is.
    Progress = 2,
    /// A worker ended it.
    Done = 3,
    /// Its deadline was over, and the server answered.
    Fallback = 4,
    /// It was given up, and is kept to be looked at; `at_ms` says since when.
    Dead = 5,
    /// A dead one is open again, with a deadline of its own.
    Redriven = 6,
    /// A dead one is forgotten.
    Dropped = 7,
    /// An open one is wanted no longer, by word of an event in the same record: its deadline is over.
    Cancelled = 8,
    /// An attempt begins; `at_ms` is no time but the nonce of its lease. 0: the worker was gone before it was told, it does not begin.
    Claimed = 9,
}

impl JobAct {
    const ALL: [JobAct; 10] = [
        JobAct::Opened,
        JobAct::Tried,
        JobAct::Progress,
        JobAct::Done,
        JobAct::Fallback,
        JobAct::Dead,
        JobAct::Redriven,
        JobAct::Dropped,
        JobAct::Cancelled,
        JobAct::Claimed,
    ];

    /// By its number.
    pub fn of(number: u8) -> Option<JobAct> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Does the job end by it?
    pub const fn ends(self) -> bool {
        matches!(self, JobAct::Done | JobAct::Fallback | JobAct::Dead)
    }
}

/// One change of an entry.
#[derive(Archive, Serialize, Clone, Copy)]
pub struct EntryBody<'a> {
    /// Key, unique in the session.
    #[rkyv(with = InlineAsBox)]
    pub key: &'a str,
    /// Value; empty unless it is put.
    #[rkyv(with = InlineAsBox)]
    pub value: &'a [u8],
    /// [`EntryAct`] as a number.
    pub act: u8,
    /// Unix ms after which it is gone; 0 = never.
    pub expires_ms: u64,
}

/// One step of a job.
#[derive(Archive, Serialize, Clone, Copy)]
pub struct JobBody<'a> {
    /// Queue.
    #[rkyv(with = InlineAsBox)]
    pub queue: &'a str,
    /// The event that is the job.
    pub offset: u64,
    /// [`JobAct`] as a number.
    pub act: u8,
    /// Class of priority, 0 first; counts where it opens.
    pub priority: u8,
    /// Attempts that have ended.
    pub attempts: u16,
    /// See [`JobAct`].
    pub at_ms: u64,
    /// Partial result; counts in a step of progress.
    #[rkyv(with = InlineAsBox)]
    pub partial: &'a [u8],
}

/// Body of [`Kind::Work`].
#[derive(Archive, Serialize, Clone, Copy)]
pub struct WorkBody<'a> {
    /// Names, events, markers.
    pub commit: CommitBody<'a>,
    /// Changes of entries, in order.
    #[rkyv(with = InlineAsBox)]
    pub entries: &'a [EntryBody<'a>],
    /// Steps of jobs, in order.
    #[rkyv(with = InlineAsBox)]
    pub jobs: &'a [JobBody<'a>],
}

impl ArchivedWorkBody<'static> {
    /// Counts, names and numbers are such as a writer makes.
    pub(super) fn is_sound(&self) -> bool {
        let entries = self.entries.iter().all(|entry| {
            EntryAct::of(entry.act).is_some()
                && entry.key.len() <= NAME_BYTES_MAX
                && entry.value.len() <= VALUE_BYTES_MAX
        });
        let jobs = self.jobs.iter().all(|job| {
            JobAct::of(job.act).is_some()
                && job.queue.len() <= NAME_BYTES_MAX
                && job.partial.len() <= VALUE_BYTES_MAX
                && job.offset.to_native() <= COUNTER_MAX
        });
        entries && jobs && self.entries.len() <= RECORD_ENTRIES_MAX && self.jobs.len() <= RECORD_JOBS_MAX
    }
}

/// Everything that a record may hold, but names.
#[derive(Clone, Copy, Default)]
pub struct Parts<'a> {
    /// Events.
    pub events: &'a [EventBody<'a>],
    /// Markers.
    pub markers: &'a [MarkerBody<'a>],
    /// Changes of entries.
    pub entries: &'a [EntryBody<'a>],
    /// Steps of jobs.
    pub jobs: &'a [JobBody<'a>],
}

impl<'a> Parts<'a> {
    /// The body of a plain commit.
    pub(crate) fn commit(&self, tenant: &'a str, session: &'a str) -> CommitBody<'a> {
        CommitBody { tenant, session, events: self.events, markers: self.markers }
    }

    fn is_plain(&self) -> bool {
        self.entries.is_empty() && self.jobs.is_empty()
    }
}

/// Exact bytes of the record that [`encode_parts`] makes.
pub fn parts_bytes_max(tenant: &str, session: &str, parts: &Parts<'_>) -> usize {
    let commit = commit_bytes_max(&parts.commit(tenant, session));
    if parts.is_plain() {
        return commit;
    }
    let names = tenant.len() + session.len();
    let events: usize = parts
        .events
        .iter()
        .map(|e| {
            size_of::<super::ArchivedEventBody<'static>>()
                + e.topic.len()
                + e.client_id.len()
                + e.message_id.len()
                + e.traceparent.len()
                + e.data.len()
        })
        .sum();
    let markers: usize =
        parts.markers.iter().map(|m| size_of::<super::ArchivedMarkerBody<'static>>() + m.name.len()).sum();
    let entries: usize =
        parts.entries.iter().map(|e| size_of::<ArchivedEntryBody<'static>>() + e.key.len() + e.value.len()).sum();
    let jobs: usize =
        parts.jobs.iter().map(|j| size_of::<ArchivedJobBody<'static>>() + j.queue.len() + j.partial.len()).sum();
    let body = size_of::<ArchivedWorkBody<'static>>() + names + events + markers + entries + jobs;
    (HEAD_BYTES + body).next_multiple_of(RECORD_ALIGN)
}

/// Writes one record to the start of `out` and returns its length: a commit where there is nothing but events and markers.
///
/// # Panics
/// If `out` is shorter than [`parts_bytes_max`] or there are more parts than a record may hold: admission was skipped.
pub fn encode_parts(head: &RecordHead, tenant: &str, session: &str, parts: &Parts<'_>, out: &mut [u8]) -> usize {
    let commit = parts.commit(tenant, session);
    if parts.is_plain() {
        return encode_commit(head, &commit, out);
    }
    let fits = parts.events.len() <= RECORD_EVENTS_MAX
        && parts.markers.len() <= RECORD_MARKERS_MAX
        && parts.entries.len() <= RECORD_ENTRIES_MAX
        && parts.jobs.len() <= RECORD_JOBS_MAX;
    assert!(fits, "commands of more parts are refused");
    let mut scratch = [MaybeUninit::<u8>::uninit(); SCRATCH_BYTES];
    let body = WorkBody { commit, entries: parts.entries, jobs: parts.jobs };
    let body_bytes = archived::serialize(&body, &mut out[HEAD_BYTES..], &mut scratch);
    seal(RecordHead { kind: Kind::Work, count: parts.events.len() as u32, ..*head }, body_bytes, out)
}

/// A change of an entry, read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryView<'a> {
    /// Key.
    pub key: &'a str,
    /// Value.
    pub value: &'a [u8],
    /// What happens.
    pub act: EntryAct,
    /// When it is gone; 0 = never.
    pub expires_ms: u64,
}

/// A step of a job, read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobView<'a> {
    /// Queue.
    pub queue: &'a str,
    /// Event.
    pub offset: Offset,
    /// What happens.
    pub act: JobAct,
    /// Class of priority.
    pub priority: u8,
    /// Attempts that have ended.
    pub attempts: u16,
    /// See [`JobAct`].
    pub at_ms: u64,
    /// Partial result.
    pub partial: &'a [u8],
}

impl<'a> From<&EntryBody<'a>> for EntryView<'a> {
    fn from(body: &EntryBody<'a>) -> Self {
        let EntryBody { key, value, act, expires_ms } = *body;
        Self { key, value, act: EntryAct::of(act).unwrap_or(EntryAct::Deleted), expires_ms }
    }
}

impl<'a> From<&JobBody<'a>> for JobView<'a> {
    fn from(body: &JobBody<'a>) -> Self {
        let JobBody { queue, offset, act, priority, attempts, at_ms, partial } = *body;
        Self { queue, offset, act: JobAct::of(act).unwrap_or(JobAct::Dropped), priority, attempts, at_ms, partial }
    }
}

impl<'a> RecordView<'a> {
    /// Changes of entries.
    pub fn entries(self) -> impl Iterator<Item = EntryView<'a>> {
        let entries: &'a [ArchivedEntryBody<'static>] = match self.kind() {
            Kind::Work => &self.work().entries,
            Kind::Commit | Kind::Span | Kind::Text => &[],
        };
        entries.iter().map(|entry| EntryView {
            key: &entry.key,
            value: &entry.value,
            act: EntryAct::of(entry.act).unwrap_or(EntryAct::Deleted),
            expires_ms: entry.expires_ms.to_native(),
        })
    }

    /// Steps of jobs.
    pub fn jobs(self) -> impl Iterator<Item = JobView<'a>> {
        let jobs: &'a [ArchivedJobBody<'static>] = match self.kind() {
            Kind::Work => &self.work().jobs,
            Kind::Commit | Kind::Span | Kind::Text => &[],
        };
        jobs.iter().map(|job| JobView {
            queue: &job.queue,
            offset: job.offset.to_native(),
            act: JobAct::of(job.act).unwrap_or(JobAct::Dropped),
            priority: job.priority,
            attempts: job.attempts.to_native(),
            at_ms: job.at_ms.to_native(),
            partial: &job.partial,
        })
    }
}
