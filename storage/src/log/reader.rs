//! Cold reads: a pool of aligned buffers, each filled by disk reads and then lent, checked, to one reader.
//!
//! ```text
//!   Free ──begin──► Reading ──done──► Ready ──release──► Free
//!                     │  ▲  └─ a block of an index: the log looks up where the records are, and reads on
//!                     │  └──── first record longer than what was asked: read again, longer
//!                     └─released meanwhile──► Abandoned ──done──► Free
//! ```
//! Nothing in a buffer is looked at before it verified: length, checksum, archive, and that the record is the one that
//! the index promised at that place. Reads of one session that follow each other are a series, see [`series`].

mod series;

pub(crate) use series::{Found, Series};

use super::config::{LOAD_BUFFERS, READ_RECORDS_MAX, SCAN_RECORDS_MAX};
use super::scan::{At, ScanCursor};
use crate::arena::Arena;
use crate::disk::{DiskFault, FileId};
use crate::group::{BLOCK_BYTES, GROUP_HEAD_BYTES, GroupHeader};
use crate::ids::{LogSeq, Offset, PartitionId, SegmentId, SliceId, SliceSeq};
use crate::record::{HEAD_BYTES, RecordFault, RecordView};
use crate::sidecar::BlockAt;
use std::collections::VecDeque;
use std::fmt;

/// A cold read, until it is released. Spent afterwards: the generation tells.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ReadTicket {
    pub(crate) slot: u16,
    pub(crate) generation: u32,
}

/// Why bytes could not be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadFault {
    /// Bytes that were durable do not verify: damage on disk. The server stays up for everything else; a human must look.
    Corrupt {
        /// File.
        file: FileId,
        /// Byte position.
        at: u64,
    },
    /// Retention or re-clustering took the segment meanwhile: read again, the answer will be a gap or another file.
    Gone,
    /// The disk did not answer.
    Disk(DiskFault),
}

impl fmt::Display for ReadFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadFault::Corrupt { file, at } => write!(out, "{} is corrupt at byte {at}", file.file_name()),
            ReadFault::Gone => out.write_str("the segment was removed by retention"),
            ReadFault::Disk(fault) => write!(out, "read failed: {fault:?}"),
        }
    }
}

/// What a buffer is being read for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// Records of one partition, the first of which covers `from`.
    Partition { partition: PartitionId, from: Offset },
    /// Records in log order, the first of which is `log_seq`.
    Log { log_seq: LogSeq },
    /// Records of an appended segment from a place on; `left` bytes of records remain in the group (0: its header is there);
    /// valid bytes end at `end`.
    Walk { at: ScanCursor, position: u32, left: u32, end: u64 },
    /// Records of one slice of a clustered segment, the first of which covers `from`.
    Slice { at: ScanCursor, slice: SliceId, from: SliceSeq },
    /// A block of a sidecar, to find the records of a partition.
    PartitionIndex { partition: PartitionId, from: Offset, segment: SegmentId, block: BlockAt },
    /// A block of a sidecar, to find the records of a slice.
    SliceIndex { at: ScanCursor, slice: SliceId, from: SliceSeq, segment: SegmentId, block: BlockAt },
    /// A block of a sidecar, for the look-up of a dedupe key at this place.
    KeyIndex { lookup: u32 },
    /// A page of the checkpoint for the load at this place.
    Page { load: u32 },
}

impl Purpose {
    /// Of a lookup, not of a reader of history.
    fn is_load(self) -> bool {
        matches!(self, Purpose::KeyIndex { .. } | Purpose::Page { .. })
    }

    /// Records that one read of it answers for, at most.
    pub(crate) fn records_max(self) -> usize {
        match self {
            Purpose::Partition { .. } => READ_RECORDS_MAX,
            _ => SCAN_RECORDS_MAX,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Free,
    Reading,
    /// Reading, and nobody has asked for it yet.
    Ahead,
    Abandoned,
    Ready(Result<(), ReadFault>),
    /// Its records are good, nobody has its ticket: for whoever reads on there, or needs a buffer.
    Kept,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    state: State,
    purpose: Purpose,
    file: FileId,
    /// File position of the buffer's first byte.
    at: u64,
    /// Bytes asked for. A read that is shorter has met the end of the file, and asking again brings no more.
    asked: usize,
    /// Places of records: file positions until the read is done, then places in the memory. Never grows beyond its first
    /// capacity.
    records: Vec<u32>,
    /// For scans: the cursor behind each record, and behind all that was looked at.
    after: Vec<ScanCursor>,
    end: Option<ScanCursor>,
    /// Which read of a session in a row it is.
    series: Series,
    /// Offset behind the last record, where the next read of the session goes on. Outlives the buffer's use.
    next: Offset,
    /// Records at the front that its reader had before.
    taken: usize,
}

/// A read to be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wanted {
    pub slot: u16,
    pub generation: u32,
    pub file: FileId,
    pub at: u64,
    pub len: usize,
}

/// What came of a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// For a reader: tell it.
    Ready(ReadTicket),
    /// A block or page for the log itself is in the buffer (so many bytes).
    Table { purpose: Purpose, slot: u16, generation: u32, result: Result<usize, DiskFault> },
    /// Read again.
    Again(Wanted),
    /// Nobody waits for it any more.
    Nothing,
}

pub(crate) struct Reader {
    memory: Arena,
    buffer_bytes: usize,
    /// Bytes of the first read of a series.
    ahead_bytes: usize,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Buffers that may be taken as well, the longest unused first.
    kept: VecDeque<u16>,
    /// Buffers that lookups have.
    loading: usize,
    /// Buffers in flight for nobody.
    ahead: usize,
}

impl Reader {
    pub(crate) fn new(buffers: usize, buffer_bytes: usize, ahead_bytes: usize) -> Reader {
        let slot = |_| Slot {
            generation: 0,
            state: State::Free,
            purpose: Purpose::Page { load: 0 },
            file: FileId::Manifest,
            at: 0,
            asked: 0,
            records: Vec::with_capacity(READ_RECORDS_MAX),
            after: Vec::with_capacity(SCAN_RECORDS_MAX),
            end: None,
            series: Series::default(),
            next: 0,
            taken: 0,
        };
        Reader {
            memory: Arena::new(buffers * buffer_bytes),
            buffer_bytes,
            ahead_bytes,
            slots: (0..buffers).map(slot).collect(),
            free: (0..buffers as u16).rev().collect(),
            kept: VecDeque::with_capacity(buffers),
            loading: 0,
            ahead: 0,
        }
    }

    /// Whether a reader of history may take a buffer: so many stay for lookups, less those that lookups have already.
    pub(crate) fn free_for_reads(&self) -> bool {
        self.available() > LOAD_BUFFERS.saturating_sub(self.loading)
    }

    /// Buffers that can be taken.
    fn available(&self) -> usize {
        self.free.len() + self.kept.len()
    }

    /// Whether a lookup may take a buffer: one stays for readers of history, or those whose partition was just looked up would
    /// find none, and look it up again, for ever.
    pub(crate) fn free_for_loads(&self) -> bool {
        let reading = self.slots.len() - self.available() - self.loading - self.ahead;
        self.available() > usize::from(reading == 0)
    }

    pub(crate) fn buffer_mut(&mut self, slot: usize) -> &mut [u8] {
        self.memory.bytes_mut(slot * self.buffer_bytes, self.buffer_bytes)
    }

    pub(crate) fn buffer(&self, slot: u16) -> &[u8] {
        self.memory.bytes(usize::from(slot) * self.buffer_bytes, self.buffer_bytes)
    }

    /// File that a buffer is being filled from.
    pub(crate) fn file(&self, slot: u16) -> FileId {
        self.slots.get(usize::from(slot)).map_or(FileId::Manifest, |slot| slot.file)
    }

    /// Reads whole blocks `at..at + len` of `file`.
    pub(crate) fn begin(&mut self, purpose: Purpose, file: FileId, at: u64, len: usize) -> Option<Wanted> {
        self.begin_in(Series::default(), purpose, file, at, len)
    }

    /// The same as one of a series.
    pub(crate) fn begin_in(
        &mut self,
        series: Series,
        purpose: Purpose,
        file: FileId,
        at: u64,
        len: usize,
    ) -> Option<Wanted> {
        debug_assert!(len <= self.buffer_bytes && at.is_multiple_of(BLOCK_BYTES as u64));
        let index = self.free.pop().or_else(|| self.kept.pop_front())?;
        let slot = &mut self.slots[usize::from(index)];
        slot.generation = slot.generation.wrapping_add(1);
        slot.state = if series.ahead { State::Ahead } else { State::Reading };
        self.ahead += usize::from(series.ahead);
        self.loading += usize::from(purpose.is_load());
        (slot.purpose, slot.file, slot.at, slot.asked, slot.end) = (purpose, file, at, len, None);
        (slot.series, slot.next, slot.taken) = (series, 0, 0);
        slot.records.clear();
        slot.after.clear();
        Some(Wanted { slot: index, generation: slot.generation, file, at, len })
    }

    /// Reads the records at `positions` of a segment; as many as one read of the series holds, at least the first.
    pub(crate) fn begin_records(
        &mut self,
        series: Series,
        purpose: Purpose,
        segment: SegmentId,
        positions: impl Iterator<Item = u32>,
    ) -> Option<Wanted> {
        let wanted = self.begin_in(series, purpose, FileId::Segment(segment), 0, BLOCK_BYTES)?;
        let slot = &mut self.slots[usize::from(wanted.slot)];
        slot.records.extend(positions.take(purpose.records_max()));
        match self.aim(wanted.slot) {
            Some(wanted) => Some(wanted),
            None => {
                self.put_back(wanted.slot);
                None
            }
        }
    }

    /// Goes on with another block of an index in the same buffer.
    pub(crate) fn again(&mut self, index: u16, purpose: Purpose, block: BlockAt) -> Wanted {
        let slot = &mut self.slots[usize::from(index)];
        (slot.purpose, slot.file, slot.at, slot.asked) = (purpose, block.file, block.at, block.len);
        Wanted { slot: index, generation: slot.generation, file: block.file, at: block.at, len: block.len }
    }

    /// Goes on from a block of an index to the records it named.
    pub(crate) fn go_to_records(
        &mut self,
        index: u16,
        purpose: Purpose,
        segment: SegmentId,
        fill: impl FnOnce(&[u8], &mut Vec<u32>),
    ) -> Option<Wanted> {
        let slot = &mut self.slots[usize::from(index)];
        (slot.purpose, slot.file) = (purpose, FileId::Segment(segment));
        slot.records.clear();
        fill(self.memory.bytes(usize::from(index) * self.buffer_bytes, slot.asked), &mut slot.records);
        self.aim(index)
    }

    /// Chooses what to read so that the first record and as many as possible of those behind it are in the buffer; drops
    /// the rest of the list. Positions of a slice in a clustered segment are not ascending.
    fn aim(&mut self, index: u16) -> Option<Wanted> {
        let len = self.read_bytes(index);
        let slot = &mut self.slots[usize::from(index)];
        let first = *slot.records.first()? as usize;
        let (mut low, mut high) = (first, first);
        let kept = slot.records.iter().take_while(|position| {
            let position = **position as usize;
            let (lower, higher) = (low.min(position), high.max(position));
            // Those behind the first are taken along as far as one read of the ordinary length reaches.
            let fits = higher + HEAD_BYTES - lower / BLOCK_BYTES * BLOCK_BYTES <= len;
            if fits {
                (low, high) = (lower, higher);
            }
            fits || position == first
        });
        let kept = kept.count();
        slot.records.truncate(kept.max(1));
        slot.at = (low / BLOCK_BYTES * BLOCK_BYTES) as u64;
        // A long read ends where its last record may: at the end of a session it would be for nothing.
        let reached = high / BLOCK_BYTES * BLOCK_BYTES - low / BLOCK_BYTES * BLOCK_BYTES;
        let len = len.min(reached + self.ahead_bytes);
        slot.asked = len;
        Some(Wanted { slot: index, generation: slot.generation, file: slot.file, at: slot.at, len })
    }

    /// A read came back with so many bytes. `owns` tells which slices a scan shows.
    pub(crate) fn handle_done(
        &mut self,
        slot: u16,
        generation: u32,
        result: Result<usize, DiskFault>,
        owns: impl Fn(SliceId) -> bool,
    ) -> Outcome {
        let Some(state) = self.slots.get(usize::from(slot)).filter(|found| found.generation == generation) else {
            return Outcome::Nothing;
        };
        let purpose = state.purpose;
        match (state.state, purpose) {
            // Tables are the log's own business, whether or not somebody still waits.
            (State::Reading, Purpose::Page { .. } | Purpose::KeyIndex { .. }) => {
                return Outcome::Table { purpose, slot, generation, result };
            }
            (State::Abandoned, _) => {
                self.put_back(slot);
                return Outcome::Nothing;
            }
            (State::Reading | State::Ahead, Purpose::PartitionIndex { .. } | Purpose::SliceIndex { .. }) => {
                return Outcome::Table { purpose, slot, generation, result };
            }
            (State::Reading | State::Ahead, _) => {}
            (State::Free | State::Ready(_) | State::Kept, _) => return Outcome::Nothing,
        }
        let checked = match result {
            Ok(bytes) => match purpose {
                Purpose::Walk { at, position, left, end } => self.walk(slot, bytes, at, position, left, end, owns),
                _ => self.check(slot, bytes),
            },
            Err(DiskFault::Missing) => Err(Unusable::Fault(ReadFault::Gone)),
            Err(fault) => Err(Unusable::Fault(ReadFault::Disk(fault))),
        };
        match checked {
            Ok(()) => self.finish(slot, Ok(())),
            Err(Unusable::Fault(fault)) => self.finish(slot, Err(fault)),
            Err(Unusable::Longer(len)) => {
                let state = &mut self.slots[usize::from(slot)];
                let (file, at) = (state.file, state.at);
                if len <= state.asked {
                    return self.finish(slot, Err(ReadFault::Corrupt { file, at }));
                }
                state.asked = len;
                Outcome::Again(Wanted { slot, generation, file, at, len })
            }
        }
    }

    /// The read is ready for its reader, or failed.
    pub(crate) fn finish(&mut self, index: u16, result: Result<(), ReadFault>) -> Outcome {
        let slot = &mut self.slots[usize::from(index)];
        if slot.state == State::Ahead {
            self.finish_ahead(index, result);
            return Outcome::Nothing;
        }
        slot.state = State::Ready(result);
        Outcome::Ready(ReadTicket { slot: index, generation: slot.generation })
    }

    /// Verifies the records in the buffer, of which `bytes` were read, and keeps the places of those that are whole.
    fn check(&mut self, index: u16, bytes: usize) -> Result<(), Unusable> {
        let bytes = bytes.min(self.buffer_bytes);
        let start = usize::from(index) * self.buffer_bytes;
        let buffer = self.memory.bytes(start, bytes);
        let slot = &mut self.slots[usize::from(index)];
        let (file, file_at) = (slot.file, slot.at);
        let corrupt = |position: u32| Unusable::Fault(ReadFault::Corrupt { file, at: u64::from(position) });
        let mut expect = match slot.purpose {
            Purpose::Partition { from, .. } | Purpose::Slice { from, .. } => from,
            Purpose::Log { log_seq } => log_seq,
            _ => return Err(corrupt(0)),
        };
        let (mut whole, mut kept) = (0, 0);
        while let Some(&position) = slot.records.get(whole) {
            let at = (u64::from(position) - file_at) as usize;
            let rest = buffer.get(at..).unwrap_or_default();
            let record = match RecordView::checked(rest) {
                Ok(record) => record,
                Err(RecordFault::Length) => match cut_off(rest, at, bytes) {
                    // It lies across the end of what was read; the reader asks for it with its next read.
                    Some(_) if whole > 0 => break,
                    Some(len) if len <= self.buffer_bytes => return Err(Unusable::Longer(len)),
                    _ => return Err(corrupt(position)),
                },
                Err(_) => return Err(corrupt(position)),
            };
            let (own, first, end) = match slot.purpose {
                Purpose::Partition { partition, .. } => {
                    (record.partition() == partition, record.offset(), record.next_offset())
                }
                Purpose::Slice { slice, .. } => {
                    let first = record.slice_seq();
                    (record.slice() == slice, first, first + u64::from(record.slice_count()))
                }
                _ => (true, record.log_seq(), record.log_seq() + 1),
            };
            let continues = match slot.purpose {
                // Merged deltas stand where the last of them stood: the places of the others are nobody's.
                Purpose::Slice { .. } => expect < end && (whole == 0 || first >= expect),
                _ if whole == 0 => first <= expect && expect < end,
                _ => first == expect,
            };
            if !own || !continues {
                return Err(corrupt(position));
            }
            expect = end;
            whole += 1;
            let after = match slot.purpose {
                Purpose::Slice { at, slice, .. } => Some(at.in_clustered(slice, end)),
                Purpose::Log { .. } => Some(ScanCursor { log_seq: end, ..ScanCursor::default() }),
                _ => None,
            };
            slot.end = after;
            // A scan that met its segment again in another shape has seen part of it.
            if matches!(slot.purpose, Purpose::Slice { at, .. } if record.log_seq() < at.log_seq) {
                continue;
            }
            slot.after.extend(after);
            slot.records[kept] = (start + at) as u32;
            kept += 1;
        }
        slot.records.truncate(kept);
        slot.next = expect;
        Ok(())
    }

    /// Goes over the groups of an appended segment from `position` on, verifies their records and keeps those the scan shows.
    #[allow(clippy::too_many_arguments, reason = "the fields of one purpose")]
    fn walk(
        &mut self,
        index: u16,
        bytes: usize,
        mut cursor: ScanCursor,
        mut position: u32,
        mut left: u32,
        end: u64,
        owns: impl Fn(SliceId) -> bool,
    ) -> Result<(), Unusable> {
        let bytes = bytes.min(self.buffer_bytes);
        let start = usize::from(index) * self.buffer_bytes;
        let buffer = self.memory.bytes(start, bytes);
        let slot = &mut self.slots[usize::from(index)];
        let (file, file_at) = (slot.file, slot.at);
        let corrupt = |position: u32| Unusable::Fault(ReadFault::Corrupt { file, at: u64::from(position) });
        let first = position;
        slot.records.clear();
        slot.after.clear();
        while slot.records.len() < SCAN_RECORDS_MAX && (left > 0 || u64::from(position) < end) {
            let at = (u64::from(position) - file_at) as usize;
            let rest = buffer.get(at..).unwrap_or_default();
            if left == 0 {
                if rest.len() < GROUP_HEAD_BYTES {
                    if position == first {
                        return Err(corrupt(position));
                    }
                    break;
                }
                let group = GroupHeader::get(rest).ok_or(corrupt(position))?;
                if FileId::Segment(group.segment) != file || group.position != u64::from(position) {
                    return Err(corrupt(position));
                }
                left = group.records_bytes;
                position = if left == 0 { position + group.group_bytes } else { position + GROUP_HEAD_BYTES as u32 };
                continue;
            }
            let rest = &rest[..rest.len().min(left as usize)];
            let record = match RecordView::checked(rest) {
                Ok(record) => record,
                Err(RecordFault::Length) => match cut_off(rest, at, bytes) {
                    Some(_) if position > first + GROUP_HEAD_BYTES as u32 => break,
                    Some(len) if len <= self.buffer_bytes => return Err(Unusable::Longer(len)),
                    _ => return Err(corrupt(position)),
                },
                Err(_) => return Err(corrupt(position)),
            };
            let shown = record.log_seq() >= cursor.log_seq && owns(record.slice());
            let length = record.bytes().len() as u32;
            (position, left) = (position + length, left.saturating_sub(length));
            if left == 0 {
                position = position.next_multiple_of(BLOCK_BYTES as u32);
            }
            cursor.log_seq = cursor.log_seq.max(record.log_seq() + 1);
            cursor = cursor.in_appended(position, left);
            if shown {
                slot.records.push((start + at) as u32);
                slot.after.push(cursor);
            }
        }
        slot.end = Some(cursor.in_appended(position, left));
        Ok(())
    }

    /// Records of a finished read.
    pub(crate) fn records(&self, ticket: ReadTicket) -> Result<impl Iterator<Item = RecordView<'_>>, ReadFault> {
        let slot = self.ready(ticket)?;
        Ok(slot.records[slot.taken..].iter().map(|at| self.memory.record(*at as usize)))
    }

    /// Records of a finished scan, each with the cursor behind it.
    pub(crate) fn scanned(
        &self,
        ticket: ReadTicket,
    ) -> Result<impl Iterator<Item = (RecordView<'_>, ScanCursor)>, ReadFault> {
        let slot = self.ready(ticket)?;
        Ok(slot.records.iter().zip(&slot.after).map(|(at, after)| (self.memory.record(*at as usize), *after)))
    }

    /// Cursor behind all that a finished scan looked at, if none of it was for the reader.
    pub(crate) fn scanned_nothing(&self, ticket: ReadTicket) -> Option<ScanCursor> {
        let slot = self.ready(ticket).ok()?;
        slot.end.filter(|_| slot.records.is_empty())
    }

    fn ready(&self, ticket: ReadTicket) -> Result<&Slot, ReadFault> {
        let slot = &self.slots[usize::from(ticket.slot)];
        assert_eq!(slot.generation, ticket.generation, "the ticket was released");
        match slot.state {
            State::Ready(Ok(())) => Ok(slot),
            State::Ready(Err(fault)) => Err(fault),
            State::Free | State::Reading | State::Ahead | State::Abandoned | State::Kept => {
                panic!("the read is not finished, or not the ticket holder's")
            }
        }
    }

    /// Gives the buffer back. A read in flight finishes first; nobody is told.
    pub(crate) fn release(&mut self, ticket: ReadTicket) {
        let Some(slot) = self.slots.get_mut(usize::from(ticket.slot)) else { return };
        if slot.generation != ticket.generation {
            return;
        }
        match slot.state {
            State::Reading => slot.state = State::Abandoned,
            State::Ready(_) => self.put_back(ticket.slot),
            State::Free | State::Ahead | State::Abandoned | State::Kept => {}
        }
    }

    pub(crate) fn put_back(&mut self, slot: u16) {
        let given_back = &mut self.slots[usize::from(slot)];
        given_back.state = State::Free;
        self.loading -= usize::from(given_back.purpose.is_load());
        self.free.push(slot);
    }
}

/// Why a buffer holds nothing usable.
enum Unusable {
    Fault(ReadFault),
    /// The first record needs this many bytes.
    Longer(usize),
}

/// Whether a record that begins at `at` of a buffer is only cut off by the end of what was read: bytes to read instead,
/// more than a buffer holds where its length is damaged or others were read before it.
fn cut_off(rest: &[u8], at: usize, bytes: usize) -> Option<usize> {
    let length = match rest.first_chunk::<4>() {
        Some(raw) => u32::from_le_bytes(*raw) as usize,
        None => HEAD_BYTES,
    };
    let end = at.checked_add(length)?.next_multiple_of(BLOCK_BYTES);
    (length >= HEAD_BYTES && end > bytes).then_some(end)
}

impl ScanCursor {
    fn in_clustered(self, slice: SliceId, slice_seq: SliceSeq) -> ScanCursor {
        match self.at {
            At::Clustered { number, .. } => ScanCursor { at: At::Clustered { number, slice, slice_seq }, ..self },
            _ => self,
        }
    }

    fn in_appended(self, position: u32, left: u32) -> ScanCursor {
        match self.at {
            At::Appended { number, .. } => ScanCursor { at: At::Appended { number, position, left }, ..self },
            _ => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::LogId;

    #[test]
    fn regression_lookups_leave_a_buffer_to_the_readers_they_are_for() {
        let block = 4096;
        let mut reader = Reader::new(LOAD_BUFFERS + 1, block, block);
        let file = FileId::Checkpoint(LogId(0), 0);
        let mut pages = Vec::new();
        while reader.free_for_loads() {
            pages.push(reader.begin(Purpose::Page { load: 0 }, file, 0, block).expect("free").slot);
        }
        assert_eq!(pages.len(), LOAD_BUFFERS);
        assert!(reader.free_for_reads(), "the lookups have what is theirs");
        let read = reader.begin(Purpose::Log { log_seq: 0 }, file, 0, block).expect("free").slot;
        assert!(!reader.free_for_reads() && !reader.free_for_loads());
        reader.put_back(pages.pop().expect("taken above"));
        assert!(reader.free_for_loads(), "a reader has the buffer of the readers");
        assert!(!reader.free_for_reads(), "and no other");
        reader.put_back(read);
        assert!(reader.free_for_reads());
    }
}
