//! Building a sidecar from the records of its segment.

use super::table::{self, DedupeRow, Row, TableKind};
use super::{Contents, Header, SidecarIndex, SliceRange};
use crate::bytes::Put;
use crate::disk::FileId;
use crate::filter::Filter;
use crate::group::BLOCK_BYTES;
use crate::ids::{Epoch, PartitionId, SegmentId, SliceId, SliceSeq};
use crate::jobs::{JobDone, Step};
use crate::record::RecordView;
use crate::segment::{SegmentExpect, SegmentKind, Verdict, scan_segment};

/// Bytes of log between two rows of one slice in the sparse slice table: what a pattern reader skips at most.
const SPARSE_STRIDE_BYTES: u32 = 64 << 10;

/// Gathers what the records of one segment are, in the order in which they lie in it. Up to 100 bytes a record.
#[derive(Debug)]
pub struct SidecarBuilder {
    contents: Contents,
    kind: SegmentKind,
    partitions: Vec<PartitionRow>,
    slices: Vec<SliceRow>,
    dedupe: Vec<DedupeRow>,
}

#[derive(Clone, Copy, Debug)]
struct PartitionRow {
    id: PartitionId,
    epoch: Epoch,
    row: Row,
}

#[derive(Clone, Copy, Debug)]
struct SliceRow {
    slice: SliceId,
    /// Lowest slice sequence of the record: of a text below its place.
    first: SliceSeq,
    row: Row,
}

impl SidecarBuilder {
    /// For a segment that covers the original segments `covers.0..=covers.1` (itself, if appended).
    pub fn new(segment: SegmentId, kind: SegmentKind, covers: (u32, u32)) -> SidecarBuilder {
        let contents = Contents {
            segment,
            covers,
            end: 0,
            records: 0,
            events: 0,
            time_min_ms: u64::MAX,
            time_max_ms: 0,
            log_seq_min: u64::MAX,
            log_seq_max: 0,
        };
        SidecarBuilder { contents, kind, partitions: Vec::new(), slices: Vec::new(), dedupe: Vec::new() }
    }

    /// The next record of the segment.
    pub fn add(&mut self, position: u32, record: RecordView<'_>) {
        let contents = &mut self.contents;
        contents.records += 1;
        contents.events += record.events().len() as u64;
        contents.time_min_ms = contents.time_min_ms.min(record.time_ms());
        contents.time_max_ms = contents.time_max_ms.max(record.time_ms());
        contents.log_seq_min = contents.log_seq_min.min(record.log_seq());
        contents.log_seq_max = contents.log_seq_max.max(record.log_seq());
        let count = record.count();
        if count == 0 {
            return;
        }
        let (id, epoch) = (record.partition(), record.epoch());
        self.partitions.push(PartitionRow { id, epoch, row: Row { at: record.offset(), position, count } });
        let row = Row { at: record.slice_seq(), position, count: record.slice_count() };
        self.slices.push(SliceRow { slice: record.slice(), first: record.first_slice_seq(), row });
        for event in record.events() {
            if let Some(key) = event.dedupe_key() {
                self.dedupe.push(DedupeRow { key, offset: event.offset(), body_hash: event.body_hash() });
            }
        }
    }

    /// The sidecar's bytes, and what of it stays in memory. `end` is where the segment's valid bytes end.
    pub fn finish(mut self, end: u64) -> (Vec<u8>, SidecarIndex) {
        self.contents.end = end;
        if self.contents.records == 0 {
            (self.contents.time_min_ms, self.contents.log_seq_min) = (0, 0);
        }
        let mut out = vec![0; BLOCK_BYTES];

        // Stable: inside a partition, rows stay in the order of the log, so the last one is of the last life.
        self.partitions.sort_by_key(|row| row.id);
        let lives = self.partitions.chunk_by(|a, b| a.id == b.id);
        let last_lives = lives.flat_map(|life| {
            let epoch = life.last().map(|row| row.epoch);
            life.iter().filter(move |row| Some(row.epoch) == epoch).map(|row| (row.id.0, row.row))
        });
        let partitions = table::write_positions(&mut out, TableKind::Partitions, last_lives);

        self.slices.sort_by_key(|found| (found.slice, found.row.at));
        let of_slices = || self.slices.chunk_by(|a, b| a.slice == b.slice);
        let ranges: Vec<SliceRange> = of_slices().filter_map(slice_range).collect();
        let rows = of_slices().flat_map(|rows| thinned(rows, self.kind));
        let slices = table::write_positions(&mut out, TableKind::Slices, rows);

        // One message has one row: the first, should a key ever be met twice.
        self.dedupe.sort_by_key(|row| (row.key, row.offset));
        self.dedupe.dedup_by_key(|row| row.key);
        let dedupe = table::write_dedupe(&mut out, &self.dedupe);
        let mut filter = Filter::for_keys(self.dedupe.len());
        self.dedupe.iter().for_each(|row| filter.insert(row.key));

        let tables_at = out.len();
        for fence in partitions.iter().chain(&slices) {
            out.put_u128(fence.key);
            out.put_u64(fence.at);
        }
        dedupe.iter().for_each(|key| out.put_u128(*key));
        for range in &ranges {
            out.put_u16(range.slice.0);
            out.put_u16(0);
            out.put_u32(range.position);
            out.put_u64(range.first);
            out.put_u64(range.end);
        }
        out.put(filter.as_bytes());
        let header = Header {
            contents: self.contents,
            blocks: [partitions.len() as u32, slices.len() as u32, dedupe.len() as u32],
            ranges: ranges.len() as u32,
            filter_bytes: filter.as_bytes().len() as u64,
            tables_bytes: (out.len() - tables_at) as u64,
            tables_crc: crc32c::crc32c(&out[tables_at..]),
        };
        out[..BLOCK_BYTES].copy_from_slice(&header.encode());
        let contents = self.contents;
        (out, SidecarIndex { contents, partitions, slices, dedupe, ranges, filter: Some(filter) })
    }
}

fn slice_range(rows: &[SliceRow]) -> Option<SliceRange> {
    let SliceRow { slice, row: Row { position, .. }, .. } = *rows.first()?;
    let last = rows.last()?.row;
    // A text that stands behind others may have begun before them.
    let first = rows.iter().map(|found| found.first).min()?;
    Some(SliceRange { slice, first, end: last.at + u64::from(last.count), position })
}

/// All rows of one slice for a clustered segment; for an appended one, the first and then one every stride.
fn thinned(rows: &[SliceRow], kind: SegmentKind) -> impl Iterator<Item = (u128, Row)> {
    let mut kept: Option<u32> = None;
    rows.iter().filter_map(move |SliceRow { slice, row, .. }| {
        let near = kept.is_some_and(|kept| row.position < kept.saturating_add(SPARSE_STRIDE_BYTES));
        if near && kind == SegmentKind::Appended {
            return None;
        }
        kept = Some(row.position);
        Some((u128::from(slice.0), *row))
    })
}

/// A segment that takes no more records: verify it once more and build its sidecar.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SealJob {
    /// Segment, appended.
    pub segment: SegmentId,
    /// Its salt.
    pub salt: u32,
    /// Where its valid bytes end; all of them durable.
    pub end: u64,
}

impl SealJob {
    /// Verifies the segment's bytes (`end` of them are enough) and builds the sidecar.
    ///
    /// # Errors
    /// Byte position of the first thing that does not verify.
    pub fn build(&self, bytes: &[u8]) -> Result<(Vec<u8>, SidecarIndex), u64> {
        let SealJob { segment, salt, end } = *self;
        let mut builder = SidecarBuilder::new(segment, SegmentKind::Appended, (segment.number, segment.number));
        let expect = SegmentExpect { segment, salt, first: None, fixed_end: Some(end), durable_end: end };
        // Positions fit 32 bits: a segment is shorter than 4 GiB.
        let scan = scan_segment(bytes, expect, |position, record| builder.add(position as u32, record));
        match scan.verdict {
            Verdict::Clean if scan.end == end => Ok(builder.finish(end)),
            Verdict::Clean => Err(scan.end),
            Verdict::TornTail { at } | Verdict::Corrupt { at, .. } => Err(at),
        }
    }
}

/// A [`SealJob`] being executed.
#[derive(Debug)]
pub struct SealRun {
    job: SealJob,
    stage: Stage,
    sidecar: Vec<u8>,
    index: Option<Box<SidecarIndex>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Read,
    Build,
    Publish,
    Done,
}

impl SealRun {
    /// Begins the job.
    pub fn new(job: SealJob) -> SealRun {
        SealRun { job, stage: Stage::Read, sidecar: Vec::new(), index: None }
    }

    /// See [`JobRun::step`](crate::jobs::JobRun::step).
    pub fn step(&mut self, input: &[u8]) -> Step<'_> {
        let file = FileId::Sidecar(self.job.segment);
        match self.stage {
            Stage::Read => {
                self.stage = Stage::Build;
                Step::Read { file: FileId::Segment(self.job.segment), at: 0, len: self.job.end as usize }
            }
            Stage::Build => match self.job.build(input) {
                Ok((sidecar, index)) => {
                    (self.sidecar, self.index, self.stage) = (sidecar, Some(Box::new(index)), Stage::Publish);
                    Step::Append { file, bytes: &self.sidecar }
                }
                Err(at) => {
                    self.stage = Stage::Done;
                    Step::Done(JobDone::Corrupt { file: FileId::Segment(self.job.segment), at })
                }
            },
            Stage::Publish => {
                self.stage = Stage::Done;
                Step::Publish { file }
            }
            Stage::Done => {
                let index = self.index.take().expect("a finished job was stepped again");
                Step::Done(JobDone::Sealed { index })
            }
        }
    }
}
