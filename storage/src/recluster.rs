//! Rewriting sealed segments so that the records of one session lie together.
//!
//! ```text
//!   5: A1 B1 A2 C1      6: B2 A3 C2      7: C3 A4        appended segments: the order of the log
//!                        │
//!                        ▼
//!   clustered, covers 5..=7:  A1 A2 A3 A4 │ B1 B2 │ C1 C2 C3      by slice, partition, place in the log
//! ```
//! A history read becomes sequential. Offsets and slice sequences stay, and so do the bytes of every record but those of deltas: of
//! a session's neighbours that are deltas of token streams one record is made, with their text ([`crate::record::Kind::Text`]).
//! Every reader sees the same events, and of deltas the same text, before and after. Readers of a pattern go through the slice table of
//! the sidecar, which lists every record in the order of slice sequences.
//!
//! ```text
//!   d1 d2 event d3 │ d4 d5         event  t1..2  t3..5: text never passes an event, and an event never text
//!   1st job          1st job       in one job what lies in its segments
//!   └──────── 2nd job ──────┘      clustered segments that became small are rewritten together, and texts that meet are one
//! ```
//! A delta needs about 250 bytes on disk, half a byte beside its text when merged. A job sees only its own segments, so a stream that
//! took a while is left in pieces, with 250 bytes each; a segment of text is small, and [`plan`] takes small ones together until they
//! are a quarter of a job. Whether a stream is closed does not matter: what a session knows of an open one is in its partition.
//!
//! A clustered segment has the number of a new file (bit 31 set) and says in its header which original numbers it
//! **covers**. Sessions go on naming the original ones; the [`SegmentMap`] finds the file. The rename that publishes the
//! segment is the switch: a file that covers another one stands in for it, and recovery removes what is covered.
//! In the header of a clustered segment, the fields of the predecessor hold the first and last number covered.

use crate::disk::FileId;
use crate::group::{BLOCK_BYTES, GROUP_HEAD_BYTES, GroupHeader, group_bytes};
use crate::ids::{LogId, LogSeq, PartitionId, SegmentId};
use crate::jobs::{CHUNK_BYTES, JobDone, Step};
use crate::record::{RecordView, TextMerge, is_mergeable};
use crate::segment::{SegmentExpect, SegmentHeader, SegmentKind, Verdict, scan_segment};
use crate::sidecar::{Contents, SidecarBuilder, SidecarIndex};
use std::ops::Range;

/// Set in the number of a clustered segment.
pub const CLUSTERED: u32 = 1 << 31;

/// Segments of a log are numbered below this, so that there is always a next number that is not a clustered one's.
pub const SEGMENTS_END: u32 = CLUSTERED - 1;

/// Most bytes of one job: positions in what it writes are 32 bits, and so is their sum with a group.
const JOB_BYTES_MAX: u64 = (1 << 31) - 1;

/// Whether a segment is a clustered one, by its name.
pub fn is_clustered(segment: SegmentId) -> bool {
    segment.number & CLUSTERED != 0
}

/// Original numbers a segment covers, by its header: its own, unless clustered. `None` if the header contradicts itself.
pub fn covers(header: &SegmentHeader) -> Option<(u32, u32)> {
    let own = header.segment.number;
    match (header.kind, header.previous) {
        (SegmentKind::Appended, _) => (!is_clustered(header.segment)).then_some((own, own)),
        (SegmentKind::Clustered, Some((first, last))) => {
            let last = u32::try_from(last).ok()?;
            (is_clustered(header.segment) && first <= last && last < SEGMENTS_END).then_some((first, last))
        }
        (SegmentKind::Clustered, None) => None,
    }
}

/// How much one job may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReclusterLimits {
    /// Fewer segments than this are not worth it.
    pub segments_min: usize,
    /// More are left for the next job.
    pub segments_max: usize,
    /// Sum of the sources, which the job holds in memory.
    pub bytes_max: u64,
    /// Largest record that deltas are merged into; 0: they are left as they are.
    pub text_record_bytes_max: usize,
}

/// Clustered segments that are worth rewriting once more, so many at least and none larger than that part of a job: a byte is so
/// rewritten once each time what it lies in grows fourfold.
const CLUSTERED_MIN: usize = 4;

/// The oldest neighbours that may be rewritten together: of one log, without a hole between their numbers, and all below
/// `replay_from`, because a recovery replays the log in its order. Appended ones first, then clustered ones that are small, then those
/// that stay alone. Empty if there are none.
///
/// `sealed` are the segments that have a sidecar.
pub fn plan(sealed: &[Contents], log: LogId, replay_from: u32, limits: ReclusterLimits) -> Vec<Contents> {
    let eligible = |contents: &&Contents| contents.segment.log == log && contents.covers.1 < replay_from;
    let mut order: Vec<Contents> = sealed.iter().filter(eligible).copied().collect();
    order.sort_by_key(|contents| contents.covers);
    let appended = |contents: &Contents| !is_clustered(contents.segment);
    let small =
        |contents: &Contents| is_clustered(contents.segment) && contents.end <= limits.bytes_max / CLUSTERED_MIN as u64;
    let first = neighbours(&order, appended, limits.segments_min.max(2), limits);
    let then = if first.is_empty() { neighbours(&order, small, CLUSTERED_MIN, limits) } else { first };
    if !then.is_empty() {
        return then;
    }
    // What every start leaves behind: numbers between them were prepared and never used, so nothing will ever join them.
    let newest = order.last().map_or(0, |contents| contents.covers.0);
    let alone: Vec<Contents> = order
        .chunk_by(|a, b| a.covers.1 + 1 == b.covers.0 && appended(a) == appended(b))
        .filter(|row| row.iter().all(|contents| contents.covers.0 < newest))
        .flatten()
        .copied()
        .collect();
    neighbours(&alone, appended, 1, limits)
}

/// The first of the segments in a row that are of a sort and enough for a job.
fn neighbours(
    order: &[Contents],
    sort: impl Fn(&Contents) -> bool,
    segments_min: usize,
    limits: ReclusterLimits,
) -> Vec<Contents> {
    for row in order.chunk_by(|a, b| a.covers.1 + 1 == b.covers.0 && sort(a) == sort(b)) {
        let mut bytes = 0;
        let fits = |contents: &&Contents| {
            bytes += contents.end;
            sort(contents) && bytes <= limits.bytes_max.min(JOB_BYTES_MAX)
        };
        let taken = row.iter().take(limits.segments_max).take_while(fits).count();
        if taken >= segments_min {
            return row[..taken].to_vec();
        }
    }
    Vec::new()
}

/// A segment to be read by a [`ReclusterJob`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    /// Segment, appended or clustered.
    pub segment: SegmentId,
    /// Its salt.
    pub salt: u32,
    /// Where its valid bytes end.
    pub end: u64,
}

/// Segments to be rewritten as one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReclusterJob {
    /// The new segment; [`is_clustered`], and a number never used before.
    pub target: SegmentId,
    /// Its salt.
    pub salt: u32,
    /// First and last original number covered.
    pub covers: (u32, u32),
    /// What to read, in the order of the log; their ends together below 2 GiB.
    pub sources: Vec<Source>,
    /// Largest record that deltas are merged into; 0: they are left as they are.
    pub text_record_bytes_max: usize,
}

/// A record held in memory: where it belongs, where its bytes are.
#[derive(Clone, Copy, Debug)]
struct Held {
    partition: PartitionId,
    log_seq: LogSeq,
    at: usize,
    len: u32,
    /// It holds no events: nothing is found by it, and deltas on both of its sides are neighbours.
    marks: bool,
}

/// A record of the new segment: one that is held, or what several are merged into.
#[derive(Clone, Copy, Debug)]
struct Item {
    first: u32,
    count: u32,
}

/// A group of the new segment: which records, and where it goes.
#[derive(Clone, Debug)]
struct Layout {
    items: Range<usize>,
    records_bytes: u32,
    position: u64,
}

/// A [`ReclusterJob`] being executed.
#[derive(Debug)]
pub struct ReclusterRun {
    job: ReclusterJob,
    stage: Stage,
    /// Bytes of all records, in the order they were read.
    bytes: Vec<u8>,
    records: Vec<Held>,
    items: Vec<Item>,
    groups: Vec<Layout>,
    /// A merged record.
    merged: Vec<u8>,
    chunk: Vec<u8>,
    index: Option<Box<SidecarIndex>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Asked for this many sources so far.
    Reading(usize),
    SidecarAppended,
    /// Wrote this many groups so far.
    Writing(usize),
    Written,
    Published,
}

impl ReclusterRun {
    /// Begins the job.
    pub fn new(job: ReclusterJob) -> ReclusterRun {
        let total: u64 = job.sources.iter().map(|source| source.end).sum();
        assert!(total <= JOB_BYTES_MAX && is_clustered(job.target), "the plan bounds a job");
        ReclusterRun {
            job,
            stage: Stage::Reading(0),
            bytes: Vec::with_capacity(total as usize),
            records: Vec::new(),
            items: Vec::new(),
            groups: Vec::new(),
            merged: Vec::new(),
            chunk: Vec::new(),
            index: None,
        }
    }

    /// See [`JobRun::step`](crate::jobs::JobRun::step).
    pub fn step(&mut self, input: &[u8]) -> Step<'_> {
        match self.stage {
            Stage::Reading(asked) => {
                let read = asked.checked_sub(1).and_then(|at| self.job.sources.get(at)).copied();
                if let Some(source) = read
                    && let Err(at) = self.take(source, input)
                {
                    self.stage = Stage::Published;
                    return Step::Done(JobDone::Corrupt { file: FileId::Segment(source.segment), at });
                }
                if let Some(source) = self.job.sources.get(asked) {
                    self.stage = Stage::Reading(asked + 1);
                    return Step::Read { file: FileId::Segment(source.segment), at: 0, len: source.end as usize };
                }
                self.lay_out();
                self.stage = Stage::SidecarAppended;
                Step::Append { file: FileId::Sidecar(self.job.target), bytes: &self.chunk }
            }
            Stage::SidecarAppended => {
                self.stage = Stage::Writing(0);
                Step::Publish { file: FileId::Sidecar(self.job.target) }
            }
            Stage::Writing(written) => {
                let written = self.write_groups(written);
                self.stage = if written == self.groups.len() { Stage::Written } else { Stage::Writing(written) };
                Step::Append { file: FileId::Segment(self.job.target), bytes: &self.chunk }
            }
            Stage::Written => {
                self.stage = Stage::Published;
                Step::Publish { file: FileId::Segment(self.job.target) }
            }
            Stage::Published => {
                let index = self.index.take().expect("a finished job was stepped again");
                let sources = self.job.sources.iter().map(|source| source.segment).collect();
                Step::Done(JobDone::Reclustered { index, sources })
            }
        }
    }

    /// Verifies a source and keeps its records.
    fn take(&mut self, source: Source, input: &[u8]) -> Result<(), u64> {
        let Source { segment, salt, end } = source;
        let expect = SegmentExpect { segment, salt, first: None, fixed_end: Some(end), durable_end: end };
        let (bytes, records) = (&mut self.bytes, &mut self.records);
        let scan = scan_segment(input, expect, |_, record| {
            let (at, len) = (bytes.len(), record.bytes().len() as u32);
            bytes.extend_from_slice(record.bytes());
            let marks = record.count() == 0;
            records.push(Held { partition: record.partition(), log_seq: record.log_seq(), at, len, marks });
        });
        match scan.verdict {
            Verdict::Clean if scan.end == end => Ok(()),
            Verdict::Clean => Err(scan.end),
            Verdict::TornTail { at } | Verdict::Corrupt { at, .. } => Err(at),
        }
    }

    /// Sorts the records, merges deltas, gives each record its place and builds the sidecar into `chunk`.
    fn lay_out(&mut self) {
        // The slice is the top of the partition, so this is the order of (slice, partition, place in the log).
        self.records.sort_unstable_by_key(|held| (held.partition, !held.marks, held.log_seq));
        let mut sidecar = SidecarBuilder::new(self.job.target, SegmentKind::Clustered, self.job.covers);
        let (mut position, mut first, mut records_bytes) = (BLOCK_BYTES as u64, 0, 0);
        let mut at = 0;
        while at < self.records.len() {
            let count = self.merge_at(at);
            let merged = if count > 1 { RecordView::checked(&self.merged).ok() } else { None };
            let (record, count) = match merged {
                Some(record) => (record, count),
                None => (view(&self.bytes, self.records[at]), 1),
            };
            let len = record.bytes().len() as u32;
            let item = self.items.len();
            if item > first && group_bytes((records_bytes + len) as usize) > CHUNK_BYTES {
                self.groups.push(Layout { items: first..item, records_bytes, position });
                position += group_bytes(records_bytes as usize) as u64;
                (first, records_bytes) = (item, 0);
            }
            let in_file = position + (GROUP_HEAD_BYTES as u32 + records_bytes) as u64;
            sidecar.add(in_file as u32, record);
            self.items.push(Item { first: at as u32, count: count as u32 });
            records_bytes += len;
            at += count;
        }
        if first < self.items.len() {
            self.groups.push(Layout { items: first..self.items.len(), records_bytes, position });
        }
        let (bytes, index) = sidecar.finish(self.end());
        (self.chunk, self.index) = (bytes, Some(Box::new(index)));
    }

    /// Merges as many of the records from this one on as may be into `merged`; how many, if that takes fewer bytes than they do.
    fn merge_at(&mut self, at: usize) -> usize {
        let mut merge = TextMerge::default();
        let (mut count, mut bytes) = (0, 0);
        for held in &self.records[at..] {
            let record = view(&self.bytes, *held);
            let taken = is_mergeable(record) && merge.take(record, self.job.text_record_bytes_max);
            if !taken {
                break;
            }
            count += 1;
            bytes += held.len as usize;
        }
        if count > 1 {
            merge.finish(&mut self.merged);
        }
        if count > 1 && self.merged.len() < bytes { count } else { 1 }
    }

    /// Bytes of an item, which are those of its record or put into `merged`.
    fn item_bytes(&mut self, item: Item) -> &[u8] {
        let (first, count) = (item.first as usize, item.count as usize);
        if count == 1 {
            let held = self.records[first];
            return &self.bytes[held.at..held.at + held.len as usize];
        }
        let mut merge = TextMerge::default();
        let whole = self.records[first..first + count]
            .iter()
            .all(|held| merge.take(view(&self.bytes, *held), self.job.text_record_bytes_max));
        assert!(whole, "they were merged when the segment was laid out");
        merge.finish(&mut self.merged);
        &self.merged
    }

    /// Length of the new segment.
    fn end(&self) -> u64 {
        self.groups
            .last()
            .map_or(BLOCK_BYTES as u64, |last| last.position + group_bytes(last.records_bytes as usize) as u64)
    }

    /// Fills `chunk` with the next groups, before the first of them the header; how many are written then.
    fn write_groups(&mut self, mut written: usize) -> usize {
        let ReclusterJob { target, salt, covers, .. } = self.job;
        let mut chunk = std::mem::take(&mut self.chunk);
        chunk.clear();
        if written == 0 {
            let header = SegmentHeader {
                segment: target,
                kind: SegmentKind::Clustered,
                unsynced: false,
                previous: Some((covers.0, covers.1.into())),
                bytes: self.end(),
                first_group: 1,
                first_log_seq: self.first_log_seq(0),
                salt,
            };
            chunk.resize(BLOCK_BYTES, 0);
            header.put(&mut chunk);
        }
        while written < self.groups.len() && chunk.len() < CHUNK_BYTES {
            let Layout { items, records_bytes, position } = self.groups[written].clone();
            let number = written as u64 + 1;
            let header = GroupHeader {
                group_bytes: group_bytes(records_bytes as usize) as u32,
                records_bytes,
                count: items.len() as u32,
                segment: target,
                position,
                group: number,
                first_log_seq: self.first_log_seq(items.start),
                // The file appears under its name only when all of it is durable.
                durable_through: number - 1,
                salt,
            };
            let start = chunk.len();
            chunk.resize(start + GROUP_HEAD_BYTES, 0);
            header.put(&mut chunk[start..]);
            for item in items {
                let item = self.items[item];
                chunk.extend_from_slice(self.item_bytes(item));
            }
            chunk.resize(start + header.group_bytes as usize, 0);
            written += 1;
        }
        self.chunk = chunk;
        written
    }

    /// Log sequence of an item: of its last record, as a merged one says.
    fn first_log_seq(&self, item: usize) -> LogSeq {
        let last = self.items.get(item).and_then(|item| self.records.get((item.first + item.count - 1) as usize));
        last.map_or(0, |held| held.log_seq)
    }
}

/// A record kept by [`ReclusterRun::take`].
fn view(bytes: &[u8], held: Held) -> RecordView<'_> {
    RecordView::checked(&bytes[held.at..held.at + held.len as usize]).expect("its segment was verified")
}

/// Which file holds the records of an original segment. One per shard, over all logs of the folder it reads.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SegmentMap {
    /// Sorted by log and first number; ranges do not overlap.
    files: Vec<(SegmentId, (u32, u32))>,
}

impl SegmentMap {
    /// Adds a file and gives those that need not be kept beside it: what it covers, or itself, if another covers it.
    pub fn insert(&mut self, segment: SegmentId, covers: (u32, u32)) -> Vec<SegmentId> {
        let mut superseded = Vec::new();
        let inside = |inner: (u32, u32), outer: (u32, u32)| outer.0 <= inner.0 && inner.1 <= outer.1;
        let wins = |(other, range): &(SegmentId, (u32, u32))| {
            other.log == segment.log && inside(covers, *range) && (covers != *range || other.number > segment.number)
        };
        if self.files.iter().any(wins) {
            return vec![segment];
        }
        self.files.retain(|(other, range)| {
            let covered = other.log == segment.log && inside(*range, covers);
            if covered && *other != segment {
                superseded.push(*other);
            }
            !covered
        });
        let at = self.files.partition_point(|(other, range)| (other.log, range.0) < (segment.log, covers.0));
        self.files.insert(at, (segment, covers));
        superseded
    }

    /// Forgets a file (removed by retention).
    pub fn remove(&mut self, segment: SegmentId) {
        self.files.retain(|(other, _)| *other != segment);
    }

    /// The file that holds what was appended to `original`; `None` if that is gone.
    pub fn resolve(&self, original: SegmentId) -> Option<SegmentId> {
        let after = self.files.partition_point(|(file, range)| (file.log, range.0) <= (original.log, original.number));
        let (file, range) = self.files[..after].last()?;
        (file.log == original.log && range.1 >= original.number).then_some(*file)
    }

    /// All files, by log and number covered.
    pub fn files(&self) -> impl Iterator<Item = SegmentId> {
        self.files.iter().map(|(file, _)| *file)
    }
}
