//! Reading in log order: how a subscriber to patterns catches up over all sessions of a shard.

use super::reader::{Purpose, ReadFault, ReadTicket};
use super::Log;
use crate::ids::{LogSeq, SLICES, SliceId, SliceSeq};
use crate::record::RecordView;

/// A place in log order. Opaque; valid for the life of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScanCursor {
    log_seq: LogSeq,
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

impl Log {
    /// Cursor at a record of this log, numbered by [`crate::record::RecordView::log_seq`]: where a reader of live records fell
    /// behind.
    pub fn scan_at(&self, log_seq: LogSeq) -> ScanCursor {
        ScanCursor { log_seq }
    }

    /// Cursor one record on: past damage that [`Scan::Fault`] reported.
    pub fn scan_past(&self, cursor: ScanCursor) -> ScanCursor {
        ScanCursor { log_seq: cursor.log_seq + 1 }
    }

    /// Cursor behind everything committed.
    pub fn scan_latest(&self) -> ScanCursor {
        ScanCursor { log_seq: self.committed_seq() }
    }

    /// Cursor at or before the first record that holds an event the reader has not seen: `seen` gives the last slice
    /// sequence it saw of each slice (0 = none). Slices for which it answers `None` do not matter. What lies behind the cursor may
    /// hold events already seen; the reader compares.
    pub fn scan_from(&self, seen: impl Fn(SliceId) -> Option<SliceSeq>) -> ScanCursor {
        let mut first = self.committed_seq();
        for (slice, seen) in (0..SLICES).map(SliceId).filter_map(|slice| Some((slice, seen(slice)?))) {
            if seen + 1 >= self.slice_next(slice) {
                continue;
            }
            let found = self.live.iter().find_map(|live| live.slice_record(slice, seen + 1));
            first = first.min(found.map_or(first, |found| found.log_seq));
        }
        ScanCursor { log_seq: first }
    }

    /// The record at the cursor.
    pub fn scan(&mut self, cursor: ScanCursor) -> Scan<'_> {
        let ScanCursor { log_seq } = cursor;
        if log_seq >= self.committed_seq() {
            return Scan::End;
        }
        let holds = self.live.iter().position(|live| log_seq < live.first_log_seq() + live.len() as u64);
        let Some(live) = holds else { return Scan::End };
        let Some(found) = self.live[live].log_record(log_seq) else {
            return Scan::Skip(ScanCursor { log_seq: self.live[live].first_log_seq() });
        };
        // Asked twice, since a borrow of the record would last over the cold branch.
        if self.pipeline.hot_record(log_seq, found.position).is_some() {
            let record = self.pipeline.hot_record(log_seq, found.position).expect("asked just now");
            return Scan::Hot(record, ScanCursor { log_seq: log_seq + 1 });
        }
        match self.read_live(live, Purpose::Log { log_seq }, found.position) {
            Some(ticket) => Scan::Cold(ticket),
            None => Scan::Busy,
        }
    }

    /// Records of a finished cold read of [`Log::scan`], in order, each with the cursor behind it.
    ///
    /// # Errors
    /// They cannot be had.
    pub fn scan_records(
        &self,
        ticket: ReadTicket,
    ) -> Result<impl Iterator<Item = (RecordView<'_>, ScanCursor)>, ReadFault> {
        let records = self.read_records(ticket)?;
        Ok(records.map(|record| (record, ScanCursor { log_seq: record.log_seq() + 1 })))
    }
}
