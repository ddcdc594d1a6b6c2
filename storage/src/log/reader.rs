//! Cold reads: a pool of aligned buffers, each filled by one disk read and then lent, checked, to one reader.
//!
//! ```text
//!   Free ──begin──► Reading ──done──► Ready ──release──► Free
//!                     │  ▲  └─ first record longer than what was asked: read again, longer
//!                     │  └────┘
//!                     └─released meanwhile──► Abandoned ──done──► Free
//! ```
//! Nothing in a buffer is looked at before it verified: length, checksum, archive, and that the record is the one that
//! the index promised at that place.

use super::config::READ_RECORDS_MAX;
use crate::arena::Arena;
use crate::disk::{DiskFault, FileId};
use crate::group::BLOCK_BYTES;
use crate::ids::{LogSeq, Offset, PartitionId, SegmentId};
use crate::record::{HEAD_BYTES, RecordFault, RecordView};
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
    /// Retention removed the segment meanwhile: read again, the answer will be a gap.
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
    /// A page of the checkpoint for the load at this place.
    Page { load: u32 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Free,
    Reading,
    Abandoned,
    Ready(Result<(), ReadFault>),
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    state: State,
    purpose: Purpose,
    file: FileId,
    /// File position of the buffer's first byte.
    at: u64,
    /// Places of records in the buffer; file positions until the read is done. Never grows beyond its first capacity.
    records: Vec<u32>,
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
pub(crate) enum Filled {
    /// For a reader: tell it.
    Ready(ReadTicket),
    /// A page of the checkpoint is in the buffer (this many bytes); release the slot when it was used.
    Page { load: u32, slot: u16, result: Result<usize, DiskFault> },
    /// Read again.
    Again(Wanted),
    /// Nobody waits for it any more.
    Nothing,
}

pub(crate) struct Reader {
    memory: Arena,
    buffer_bytes: usize,
    slots: Vec<Slot>,
    free: Vec<u16>,
}

impl Reader {
    pub(crate) fn new(buffers: usize, buffer_bytes: usize) -> Reader {
        let slot = |_| Slot {
            generation: 0,
            state: State::Free,
            purpose: Purpose::Page { load: 0 },
            file: FileId::Manifest,
            at: 0,
            records: Vec::with_capacity(READ_RECORDS_MAX),
        };
        Reader {
            memory: Arena::new(buffers * buffer_bytes),
            buffer_bytes,
            slots: (0..buffers).map(slot).collect(),
            free: (0..buffers as u16).rev().collect(),
        }
    }

    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn buffer_mut(&mut self, slot: usize) -> &mut [u8] {
        self.memory.bytes_mut(slot * self.buffer_bytes, self.buffer_bytes)
    }

    pub(crate) fn buffer(&self, slot: u16) -> &[u8] {
        self.memory.bytes(usize::from(slot) * self.buffer_bytes, self.buffer_bytes)
    }

    /// Reads whole blocks `at..at + len` of `file`.
    pub(crate) fn begin_page(&mut self, load: u32, file: FileId, at: u64, len: usize) -> Option<Wanted> {
        debug_assert!(len <= self.buffer_bytes);
        self.begin(Purpose::Page { load }, file, at, len, |_| {})
    }

    /// Reads the records at `positions` of a segment, ascending; as many as `len` bytes hold, at least the first.
    pub(crate) fn begin_records(
        &mut self,
        purpose: Purpose,
        segment: SegmentId,
        len: usize,
        mut positions: impl Iterator<Item = u32>,
    ) -> Option<Wanted> {
        let first = positions.next()?;
        let at = first as usize / BLOCK_BYTES * BLOCK_BYTES;
        self.begin(purpose, FileId::Segment(segment), at as u64, len, |records| {
            records.push(first);
            records.extend(
                positions.take(READ_RECORDS_MAX - 1).take_while(|position| *position as usize + HEAD_BYTES <= at + len),
            );
        })
    }

    fn begin(
        &mut self,
        purpose: Purpose,
        file: FileId,
        at: u64,
        len: usize,
        fill: impl FnOnce(&mut Vec<u32>),
    ) -> Option<Wanted> {
        let index = self.free.pop()?;
        let slot = &mut self.slots[usize::from(index)];
        slot.generation = slot.generation.wrapping_add(1);
        slot.state = State::Reading;
        (slot.purpose, slot.file, slot.at) = (purpose, file, at);
        slot.records.clear();
        fill(&mut slot.records);
        Some(Wanted { slot: index, generation: slot.generation, file, at, len })
    }

    /// A read came back with so many bytes.
    pub(crate) fn handle_done(&mut self, slot: u16, generation: u32, result: Result<usize, DiskFault>) -> Filled {
        let Some(state) = self.slots.get(usize::from(slot)).filter(|found| found.generation == generation) else {
            return Filled::Nothing;
        };
        match (state.state, state.purpose) {
            (State::Abandoned, _) => {
                self.put_back(slot);
                Filled::Nothing
            }
            (State::Reading, Purpose::Page { load }) => Filled::Page { load, slot, result },
            (State::Reading, _) => {
                let checked = match result {
                    Ok(bytes) => self.check(slot, bytes),
                    Err(DiskFault::Missing) => Err(Unusable::Fault(ReadFault::Gone)),
                    Err(fault) => Err(Unusable::Fault(ReadFault::Disk(fault))),
                };
                let state = &mut self.slots[usize::from(slot)];
                state.state = State::Ready(match checked {
                    Ok(()) => Ok(()),
                    Err(Unusable::Fault(fault)) => Err(fault),
                    Err(Unusable::Longer(len)) => {
                        return Filled::Again(Wanted { slot, generation, file: state.file, at: state.at, len });
                    }
                });
                Filled::Ready(ReadTicket { slot, generation })
            }
            (State::Free | State::Ready(_), _) => Filled::Nothing,
        }
    }

    /// Verifies the records in the buffer, of which `bytes` were read, and keeps the places of those that are whole.
    fn check(&mut self, index: u16, bytes: usize) -> Result<(), Unusable> {
        let bytes = bytes.min(self.buffer_bytes);
        let buffer = self.memory.bytes(usize::from(index) * self.buffer_bytes, bytes);
        let slot = &mut self.slots[usize::from(index)];
        let corrupt = |position: u32| {
            Unusable::Fault(ReadFault::Corrupt { file: slot.file, at: u64::from(position) })
        };
        let (mut expect_offset, mut expect_seq) = match slot.purpose {
            Purpose::Partition { from, .. } => (Some(from), None),
            Purpose::Log { log_seq } => (None, Some(log_seq)),
            Purpose::Page { .. } => (None, None),
        };
        let mut whole = 0;
        while let Some(&position) = slot.records.get(whole) {
            let at = (u64::from(position) - slot.at) as usize;
            let rest = buffer.get(at..).unwrap_or_default();
            let record = match RecordView::checked(rest) {
                Ok(record) => record,
                Err(RecordFault::Length) => {
                    let length = rest.first_chunk::<4>().map(|raw| u32::from_le_bytes(*raw) as usize);
                    let end = (at + length.unwrap_or(0)).next_multiple_of(BLOCK_BYTES);
                    let cut_off = length.is_none() || (end > bytes && end <= self.buffer_bytes);
                    match (whole, cut_off) {
                        // It lies across the end of what was read; the reader asks for it with its next read.
                        (1.., true) => break,
                        (0, true) if length.is_some() => return Err(Unusable::Longer(end)),
                        _ => return Err(corrupt(position)),
                    }
                }
                Err(_) => return Err(corrupt(position)),
            };
            let promised = match slot.purpose {
                Purpose::Partition { partition, .. } => {
                    let next = expect_offset.replace(record.next_offset());
                    record.partition() == partition
                        && next.is_some_and(|next| {
                            if whole == 0 {
                                record.offset() <= next && next < record.next_offset()
                            } else {
                                record.offset() == next
                            }
                        })
                }
                Purpose::Log { .. } => expect_seq.replace(record.log_seq() + 1) == Some(record.log_seq()),
                Purpose::Page { .. } => false,
            };
            if !promised {
                return Err(corrupt(position));
            }
            whole += 1;
        }
        slot.records.truncate(whole);
        let start = usize::from(index) * self.buffer_bytes;
        for record in &mut slot.records {
            *record = (start + (u64::from(*record) - slot.at) as usize) as u32;
        }
        Ok(())
    }

    /// Records of a finished read.
    pub(crate) fn records(&self, ticket: ReadTicket) -> Result<impl Iterator<Item = RecordView<'_>>, ReadFault> {
        let slot = &self.slots[usize::from(ticket.slot)];
        assert_eq!(slot.generation, ticket.generation, "the ticket was released");
        match slot.state {
            State::Ready(Ok(())) => Ok(slot.records.iter().map(|at| self.memory.record(*at as usize))),
            State::Ready(Err(fault)) => Err(fault),
            State::Free | State::Reading | State::Abandoned => panic!("the read is not finished"),
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
            State::Free | State::Abandoned => {}
        }
    }

    pub(crate) fn put_back(&mut self, slot: u16) {
        self.slots[usize::from(slot)].state = State::Free;
        self.free.push(slot);
    }
}

/// Why a buffer holds nothing usable.
enum Unusable {
    Fault(ReadFault),
    /// The first record needs this many bytes.
    Longer(usize),
}
