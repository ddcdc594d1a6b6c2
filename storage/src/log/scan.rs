//! Reading in log order: how a subscriber to patterns catches up over all sessions of a shard.
//!
//! ```text
//!   old logs, oldest first        own log: sealed segments                    own log: not sealed yet
//!   ├─ appended ─┬─ clustered ─┤  ├─ clustered ─┬─ appended ─┬─ appended ─┤   ├─ by live index, hot or cold ─►
//!      group by     slice by
//!      group        slice
//! ```
//! In every kind the events of one slice come in the order of their slice sequence, which is all a pattern's position
//! relies on. A cursor counts log sequences as well: where re-clustering replaced the segment under it, it finds what it has
//! not seen in the new one and nothing twice.

use super::Log;
use super::reader::{Purpose, ReadFault, ReadTicket, Series};
use crate::disk::FileId;
use crate::group::BLOCK_BYTES;
use crate::ids::{LogId, LogSeq, SLICES, SegmentId, SliceId, SliceSeq};
use crate::recluster::is_clustered;
use crate::record::RecordView;

/// A place in log order. Opaque; valid for the life of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScanCursor {
    pub(super) log: LogId,
    /// Records of `log` below this are behind the cursor.
    pub(super) log_seq: LogSeq,
    pub(super) at: At,
}

/// Where in the file of a sealed segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum At {
    /// In none that is known: found by log and log sequence.
    Seq,
    /// In an appended one: byte position of the next record, and bytes of records left in its group; with none left, that
    /// of the next group.
    Appended { number: u32, position: u32, left: u32 },
    /// In a clustered one: next slice sequence of a slice.
    Clustered { number: u32, slice: SliceId, slice_seq: SliceSeq },
}

impl Default for ScanCursor {
    fn default() -> Self {
        ScanCursor { log: LogId(u32::MAX), log_seq: 0, at: At::Seq }
    }
}

/// What [`Log::scan`] found.
#[derive(Clone, Copy, Debug)]
pub enum Scan<'a> {
    /// The record at the cursor; go on at the second.
    Hot(RecordView<'a>, ScanCursor),
    /// Being read; [`LogEvent::ReadReady`](super::LogEvent::ReadReady) tells when [`Log::scan_records`] has it.
    Cold(ReadTicket),
    /// What stood here is no longer retained; go on at the cursor.
    Skip(ScanCursor),
    /// Nothing committed at the cursor yet.
    End,
    /// All read buffers are in use: ask again when one was released.
    Busy,
    /// It cannot be read.
    Fault(ReadFault),
}

/// Where a scan goes next.
enum Step {
    To(ScanCursor),
    Found(Found),
}

enum Found {
    End,
    Busy,
    Skip(ScanCursor),
    Cold(ReadTicket),
    Hot(LogSeq, u32),
}

impl Log {
    /// Whether a slice belongs to this log's shard.
    pub fn owns(&self, slice: SliceId) -> bool {
        slice.0 % self.shards == self.shard
    }

    /// Cursor at a record of this log, numbered by [`crate::record::RecordView::log_seq`]: where a reader of live records fell
    /// behind.
    pub fn scan_at(&self, log_seq: LogSeq) -> ScanCursor {
        ScanCursor { log: self.log, log_seq, at: At::Seq }
    }

    /// Cursor past damage that [`Scan::Fault`] or a cold read reported: behind the record, or behind the segment where that
    /// is as far as one can tell.
    pub fn scan_past(&self, cursor: ScanCursor) -> ScanCursor {
        match cursor.at {
            At::Seq => ScanCursor { log_seq: cursor.log_seq + 1, ..self.known_log(cursor) },
            At::Appended { number, .. } | At::Clustered { number, .. } => self.after_file(cursor, number),
        }
    }

    /// Cursor behind everything committed.
    pub fn scan_latest(&self) -> ScanCursor {
        self.scan_at(self.committed_seq())
    }

    /// Cursor at or before the first record that holds an event the reader has not seen: `seen` gives the last slice
    /// sequence it saw of each slice (0 = none). Slices for which it answers `None` do not matter. What lies behind the cursor may
    /// hold events already seen; the reader compares.
    pub fn scan_from(&self, seen: impl Fn(SliceId) -> Option<SliceSeq>) -> ScanCursor {
        let wanted = |slice: SliceId| seen(slice).filter(|seen| seen + 1 < self.slice_next(slice));
        let unseen = |file: &SegmentId| {
            let ranges = self.shelf.index(*file).map(|index| index.slice_ranges()).unwrap_or_default();
            ranges.iter().any(|range| wanted(range.slice).is_some_and(|seen| seen + 1 < range.end))
        };
        if let Some(file) = self.shelf.map().files().find(unseen) {
            return self.file_start(file);
        }
        let mut first = self.committed_seq();
        for slice in (0..SLICES).map(SliceId) {
            let Some(seen) = wanted(slice) else { continue };
            let found = self.live.iter().find_map(|live| live.slice_record(slice, seen + 1));
            first = first.min(found.map_or(first, |found| found.log_seq));
        }
        self.scan_at(first)
    }

    /// First slice sequence of `slice` that is still retained; the next one to come where there is none.
    pub fn slice_first(&self, slice: SliceId) -> SliceSeq {
        let sealed = self.shelf.segments().filter_map(|index| index.slice_range(slice)).map(|range| range.first).min();
        let live = || self.live.iter().find_map(|live| live.slice_record(slice, 0)).map(|found| found.slice_seq);
        sealed.or_else(live).unwrap_or_else(|| self.slice_next(slice))
    }

    /// The record at the cursor.
    pub fn scan(&mut self, cursor: ScanCursor) -> Scan<'_> {
        let mut cursor = self.known_log(cursor);
        loop {
            match self.scan_step(cursor) {
                Step::To(next) => cursor = next,
                Step::Found(Found::End) => return Scan::End,
                Step::Found(Found::Busy) => return Scan::Busy,
                Step::Found(Found::Skip(next)) => return Scan::Skip(next),
                Step::Found(Found::Cold(ticket)) => return Scan::Cold(ticket),
                Step::Found(Found::Hot(log_seq, position)) => {
                    let record = self.pipeline.hot_record(log_seq, position).expect("the step saw it");
                    return Scan::Hot(record, self.scan_at(log_seq + 1));
                }
            }
        }
    }

    /// Records of a finished cold read of [`Log::scan`], in order, each with the cursor behind it. There may be none; then
    /// [`Log::scan_nothing`] says where to go on.
    ///
    /// # Errors
    /// They cannot be had.
    pub fn scan_records(
        &self,
        ticket: ReadTicket,
    ) -> Result<impl Iterator<Item = (RecordView<'_>, ScanCursor)>, ReadFault> {
        let records = self.reader.scanned(ticket)?;
        Ok(records.map(|(record, after)| (record, self.known_log(after))))
    }

    /// Where to go on if a finished cold read of [`Log::scan`] holds nothing for this shard: only records of slices that others
    /// own now. `None` if it holds something.
    pub fn scan_nothing(&self, ticket: ReadTicket) -> Option<ScanCursor> {
        self.reader.scanned_nothing(ticket)
    }

    /// Cursors made by the reader leave the log out where it is this one.
    fn known_log(&self, cursor: ScanCursor) -> ScanCursor {
        if cursor.log == ScanCursor::default().log { ScanCursor { log: self.log, ..cursor } } else { cursor }
    }

    fn scan_step(&mut self, cursor: ScanCursor) -> Step {
        match cursor.at {
            At::Seq => self.step_by_seq(cursor),
            At::Appended { number, position, left } => {
                let segment = SegmentId { log: cursor.log, number };
                let Some(end) = self.shelf.index(segment).map(|index| index.contents.end) else {
                    return Step::To(ScanCursor { at: At::Seq, ..cursor });
                };
                if left == 0 && u64::from(position) >= end {
                    return Step::To(self.after_file(cursor, number));
                }
                let at = u64::from(position) / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
                let purpose = Purpose::Walk { at: cursor, position, left, end };
                self.step_cold(purpose, FileId::Segment(segment), at, self.config.read_ahead_bytes)
            }
            At::Clustered { number, slice, slice_seq } => {
                let segment = SegmentId { log: cursor.log, number };
                let Some(index) = self.shelf.index(segment) else {
                    return Step::To(ScanCursor { at: At::Seq, ..cursor });
                };
                let ahead = index.slice_ranges().iter().find(|range| {
                    self.owns(range.slice) && (range.slice > slice || (range.slice == slice && range.end > slice_seq))
                });
                let Some(range) = ahead.copied() else { return Step::To(self.after_file(cursor, number)) };
                let from = if range.slice == slice { slice_seq.max(range.first) } else { range.first };
                let Some(block) = index.slice_block(range.slice, from) else {
                    return Step::To(self.after_file(cursor, number));
                };
                let purpose = Purpose::SliceIndex { at: cursor, slice: range.slice, from, segment, block };
                self.step_cold(purpose, block.file, block.at, block.len)
            }
        }
    }

    fn step_cold(&mut self, purpose: Purpose, file: FileId, at: u64, len: usize) -> Step {
        if !self.reader.free_for_reads() {
            return Step::Found(Found::Busy);
        }
        let Some(wanted) = self.reader.begin(purpose, file, at, len) else { return Step::Found(Found::Busy) };
        self.stats.cold_reads += 1;
        Step::Found(Found::Cold(self.ask(wanted)))
    }

    fn step_by_seq(&mut self, cursor: ScanCursor) -> Step {
        let ScanCursor { log, log_seq, .. } = cursor;
        let live_from = self.live.front().map_or(self.next_seq(), |live| live.first_log_seq());
        if log != self.log || log_seq < live_from {
            let holds = |file: &SegmentId| {
                self.shelf.index(*file).is_some_and(|index| {
                    index.contents.records > 0
                        && (file.log > log || (file.log == log && index.contents.log_seq_max >= log_seq))
                })
            };
            // A later log begins where this one ended; inside one log, a jump may be history that is gone, or segments of
            // an old log that hold nothing for this shard.
            let (next, first) = match self.shelf.map().files().find(holds) {
                Some(file) => {
                    let start = self.file_start(file);
                    let seen = if file.log == log { log_seq.max(start.log_seq) } else { start.log_seq };
                    (ScanCursor { log_seq: seen, ..start }, start)
                }
                None => (self.scan_at(live_from), self.scan_at(live_from)),
            };
            let gone = first.log == log && log_seq < first.log_seq && self.shelf.is_gone(log, log_seq);
            return if gone { Step::Found(Found::Skip(next)) } else { Step::To(next) };
        }
        if log_seq >= self.committed_seq() {
            return Step::Found(Found::End);
        }
        let holds = self.live.iter().position(|live| log_seq < live.first_log_seq() + live.len() as u64);
        let Some(live) = holds else { return Step::Found(Found::End) };
        let Some(found) = self.live[live].log_record(log_seq) else {
            return Step::Found(Found::Skip(self.scan_at(self.live[live].first_log_seq())));
        };
        if self.pipeline.hot_record(log_seq, found.position).is_some() {
            return Step::Found(Found::Hot(log_seq, found.position));
        }
        match self.read_live(live, Purpose::Log { log_seq }, Series::default()) {
            Some(ticket) => Step::Found(Found::Cold(ticket)),
            None => Step::Found(Found::Busy),
        }
    }

    /// Cursor at the front of a sealed file.
    fn file_start(&self, file: SegmentId) -> ScanCursor {
        let SegmentId { log, number } = file;
        let at = if is_clustered(file) {
            At::Clustered { number, slice: SliceId(0), slice_seq: 0 }
        } else {
            At::Appended { number, position: BLOCK_BYTES as u32, left: 0 }
        };
        let log_seq = self.shelf.index(file).map_or(0, |index| index.contents.log_seq_min);
        ScanCursor { log, log_seq, at }
    }

    /// Cursor behind the last record of a sealed file.
    fn after_file(&self, cursor: ScanCursor, number: u32) -> ScanCursor {
        let index = self.shelf.index(SegmentId { log: cursor.log, number });
        let after = index.map_or(cursor.log_seq, |index| index.contents.log_seq_max + 1);
        ScanCursor { log: cursor.log, log_seq: after.max(cursor.log_seq), at: At::Seq }
    }
}
