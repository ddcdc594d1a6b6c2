//! Rewriting sealed segments so that the records of one session lie together.
//!
//! ```text
//!   5: A1 B1 A2 C1      6: B2 A3 C2      7: C3 A4        appended segments: the order of the log
//!                        │
//!                        ▼
//!   clustered, covers 5..=7:  A1 A2 A3 A4 │ B1 B2 │ C1 C2 C3      by slice, partition, place in the log
//! ```
//! A history read becomes sequential. Nothing is dropped and no record is changed: offsets, slice sequences and bytes are
//! the same, so every reader sees the same events before and after. Readers of a pattern go through the slice table
//! of the sidecar, which lists every record in the order of slice sequences.
//!
//! A clustered segment has the number of a new file (bit 31 set) and says in its header which original numbers it
//! **covers**. Sessions go on naming the original ones; the [`SegmentMap`] finds the file. The rename that publishes the
//! segment is the switch: a file that covers another one stands in for it, and recovery removes what is covered.
//! In the header of a clustered segment, the fields of the predecessor hold the first and last number covered.

use crate::disk::FileId;
use crate::group::{BLOCK_BYTES, GROUP_HEAD_BYTES, GroupHeader, group_bytes};
use crate::ids::{LogId, LogSeq, PartitionId, SegmentId};
use crate::jobs::{CHUNK_BYTES, JobDone, Step};
use crate::record::RecordView;
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
}

/// The oldest neighbours that may be rewritten together: appended, of one log, without a hole between their numbers, and
/// all below `replay_from`, because a recovery replays the log in its order. Empty if there are none.
///
/// `sealed` are the segments that have a sidecar.
pub fn plan(sealed: &[Contents], log: LogId, replay_from: u32, limits: ReclusterLimits) -> Vec<Contents> {
    let eligible = |contents: &&Contents| {
        contents.segment.log == log && !is_clustered(contents.segment) && contents.covers.1 < replay_from
    };
    let mut order: Vec<Contents> = sealed.iter().filter(eligible).copied().collect();
    order.sort_by_key(|contents| contents.covers);
    for neighbours in order.chunk_by(|a, b| a.covers.1 + 1 == b.covers.0) {
        let mut bytes = 0;
        let fits = |contents: &&Contents| {
            bytes += contents.end;
            bytes <= limits.bytes_max.min(JOB_BYTES_MAX)
        };
        let taken = neighbours.iter().take(limits.segments_max).take_while(fits).count();
        if taken >= limits.segments_min.max(2) {
            return neighbours[..taken].to_vec();
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
}

/// A record held in memory: where it belongs, where its bytes are.
#[derive(Clone, Copy, Debug)]
struct Held {
    partition: PartitionId,
    log_seq: LogSeq,
    at: usize,
    len: u32,
}

/// A group of the new segment: which records, and where it goes.
#[derive(Clone, Debug)]
struct Layout {
    records: Range<usize>,
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
    groups: Vec<Layout>,
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
            groups: Vec::new(),
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
            records.push(Held { partition: record.partition(), log_seq: record.log_seq(), at, len });
        });
        match scan.verdict {
            Verdict::Clean if scan.end == end => Ok(()),
            Verdict::Clean => Err(scan.end),
            Verdict::TornTail { at } | Verdict::Corrupt { at, .. } => Err(at),
        }
    }

    /// Sorts the records, gives each its place and builds the sidecar into `chunk`.
    fn lay_out(&mut self) {
        // The slice is the top of the partition, so this is the order of (slice, partition, place in the log).
        self.records.sort_unstable_by_key(|held| (held.partition, held.log_seq));
        let mut sidecar = SidecarBuilder::new(self.job.target, SegmentKind::Clustered, self.job.covers);
        let (mut position, mut first, mut records_bytes) = (BLOCK_BYTES as u64, 0, 0);
        for at in 0..self.records.len() {
            let len = self.records[at].len;
            if at > first && group_bytes((records_bytes + len) as usize) > CHUNK_BYTES {
                self.groups.push(Layout { records: first..at, records_bytes, position });
                position += group_bytes(records_bytes as usize) as u64;
                (first, records_bytes) = (at, 0);
            }
            let in_file = position + (GROUP_HEAD_BYTES as u32 + records_bytes) as u64;
            sidecar.add(in_file as u32, view(&self.bytes, self.records[at]));
            records_bytes += len;
        }
        if first < self.records.len() {
            self.groups.push(Layout { records: first..self.records.len(), records_bytes, position });
        }
        let (bytes, index) = sidecar.finish(self.end());
        (self.chunk, self.index) = (bytes, Some(Box::new(index)));
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
        let log_seq = |at: usize| self.records.get(at).map_or(0, |held| held.log_seq);
        self.chunk.clear();
        if written == 0 {
            let header = SegmentHeader {
                segment: target,
                kind: SegmentKind::Clustered,
                unsynced: false,
                previous: Some((covers.0, covers.1.into())),
                bytes: self.end(),
                first_group: 1,
                first_log_seq: log_seq(0),
                salt,
            };
            self.chunk.resize(BLOCK_BYTES, 0);
            header.put(&mut self.chunk);
        }
        while written < self.groups.len() && self.chunk.len() < CHUNK_BYTES {
            let Layout { records, records_bytes, position } = self.groups[written].clone();
            let number = written as u64 + 1;
            let header = GroupHeader {
                group_bytes: group_bytes(records_bytes as usize) as u32,
                records_bytes,
                count: records.len() as u32,
                segment: target,
                position,
                group: number,
                first_log_seq: log_seq(records.start),
                // The file appears under its name only when all of it is durable.
                durable_through: number - 1,
                salt,
            };
            let start = self.chunk.len();
            self.chunk.resize(start + GROUP_HEAD_BYTES, 0);
            header.put(&mut self.chunk[start..]);
            for held in &self.records[records] {
                self.chunk.extend_from_slice(&self.bytes[held.at..held.at + held.len as usize]);
            }
            self.chunk.resize(start + header.group_bytes as usize, 0);
            written += 1;
        }
        written
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
