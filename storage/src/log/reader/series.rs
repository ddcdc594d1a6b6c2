//! Reads of one session that follow each other: each longer than the one before, and asked for before it is wanted.
//!
//! ```text
//!   offsets   0 ──64K──► a ──128K──► b ────256K────► c ────────512K────────► d ────────512K────────► e
//!                                    └ being delivered         └ asked for meanwhile: Ahead
//!
//!   Reading ─► Ready ──keep──► Kept ──claim──► Ready        what its reader had no room for yet
//!   Ahead ───────done────────► Kept                         or nobody has asked for yet
//!     └─claim─► Reading                                     its reader was faster than the disk
//! ```
//! A kept buffer belongs to nobody: whoever needs a buffer takes the one longest unused, and then its reader reads again.
//! So a reader that is slow or has left holds nothing, and a read ahead takes from others only what they have spare.

use super::{BLOCK_BYTES, Purpose, ReadFault, ReadTicket, Reader, State};
use crate::disk::FileId;
use crate::ids::{Epoch, Offset, PartitionId, SegmentId};
use crate::record::RecordView;

/// From the read of this number on, the next is asked for ahead: a page of history ends before.
const AHEAD_FROM: u8 = 2;

/// Longest read while events are being committed, as a number in a series: twice the shortest.
const BRIEF: u8 = 1;

/// Bytes that are read for a lone record: those few that are longer are read again. Two blocks hold the head of any, wherever
/// it begins.
const LONE_BYTES: usize = 2 * BLOCK_BYTES;

/// Blocks of a sidecar that one read of a long series takes: the places of about a thousand records.
const INDEX_BLOCKS_MAX: usize = 4;

/// Which read in a row.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Series {
    /// Life of the session.
    pub epoch: Epoch,
    /// Reads before it that ended where the next began.
    pub number: u8,
    /// Nobody waits for it.
    pub ahead: bool,
    /// What follows its first record is not wanted.
    pub lone: bool,
}

impl Series {
    /// No longer than [`BRIEF`] allows: while commits are on their way, which would wait behind it.
    pub(crate) fn brief(self) -> Self {
        Self { number: self.number.min(BRIEF), ..self }
    }

    /// Blocks of an index to read at once.
    pub(crate) fn index_blocks(self) -> usize {
        (1 << self.number.min(8)).min(INDEX_BLOCKS_MAX)
    }
}

/// A read of a session that is there or on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    Ready(ReadTicket),
    Coming(ReadTicket),
}

/// Where a read of a series would go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Onward {
    pub partition: PartitionId,
    pub from: Offset,
    pub series: Series,
}

impl Reader {
    /// Bytes that the read in this buffer asks for.
    pub(super) fn read_bytes(&self, index: u16) -> usize {
        let series = self.slots[usize::from(index)].series;
        if series.lone {
            return LONE_BYTES;
        }
        let doublings = u32::from(series.number.min(16));
        self.ahead_bytes.saturating_mul(1 << doublings).min(self.buffer_bytes)
    }

    /// Half of the buffers are not in use: long reads, and reads ahead, take from nobody.
    fn has_plenty(&self) -> bool {
        self.available() > self.slots.len() / 2 && self.free_for_reads()
    }

    /// What a read of the session from `from` on continues. There are few buffers, and a disk read follows: all are looked at.
    pub(crate) fn series_at(&self, partition: PartitionId, epoch: Epoch, from: Offset) -> Series {
        let led_here = |slot: &&super::Slot| {
            from > 0 && slot.next == from && slot.series.epoch == epoch && partition_of(slot.purpose) == Some(partition)
        };
        let before = self.slots.iter().find(led_here).filter(|_| self.has_plenty());
        let number = before.map_or(0, |slot| slot.series.number.saturating_add(1));
        Series { epoch, number, ahead: false, lone: false }
    }

    /// A read of this segment that holds the record which covers `from`, or will begin with it.
    pub(crate) fn claim(
        &mut self,
        partition: PartitionId,
        epoch: Epoch,
        from: Offset,
        segment: SegmentId,
    ) -> Option<Found> {
        // A kept buffer is one of the free: those that stay for lookups are not for readers.
        let may_take = self.free_for_reads();
        let index = self.slots.iter().position(|slot| {
            let begins = match slot.purpose {
                Purpose::Partition { partition: own, from } | Purpose::PartitionIndex { partition: own, from, .. } => {
                    (own == partition).then_some(from)
                }
                _ => None,
            };
            let Some(begins) = begins else { return false };
            let holds = match slot.state {
                State::Ahead => begins == from,
                State::Kept => may_take && begins <= from && from < slot.next,
                _ => false,
            };
            holds && slot.series.epoch == epoch && segment_of(slot.file) == Some(segment)
        })?;
        let memory = &self.memory;
        let slot = &mut self.slots[index];
        let ticket = ReadTicket { slot: index as u16, generation: slot.generation };
        if slot.state == State::Ahead {
            slot.state = State::Reading;
            self.ahead -= 1;
            return Some(Found::Coming(ticket));
        }
        let passed = |at: &u32| RecordView::next_offset(memory.record(*at as usize)) <= from;
        slot.taken = slot.records.partition_point(passed);
        slot.state = State::Ready(Ok(()));
        self.kept.retain(|kept| *kept != ticket.slot);
        Some(Found::Ready(ticket))
    }

    /// Where to read on behind a finished read, if that is worth it now.
    pub(crate) fn onward(&self, ticket: ReadTicket) -> Option<Onward> {
        let slot = &self.slots[usize::from(ticket.slot)];
        let Purpose::Partition { partition, .. } = slot.purpose else { return None };
        let good = slot.generation == ticket.generation && slot.state == State::Ready(Ok(()));
        if !good || slot.series.number < AHEAD_FROM || !self.has_plenty() {
            return None;
        }
        let from = slot.next;
        let asked = |other: &super::Slot| {
            let at = match other.purpose {
                Purpose::Partition { partition: own, from } | Purpose::PartitionIndex { partition: own, from, .. } => {
                    (own == partition).then_some(from)
                }
                _ => None,
            };
            at == Some(from) && matches!(other.state, State::Reading | State::Ahead | State::Kept | State::Ready(_))
        };
        if self.slots.iter().any(asked) {
            return None;
        }
        let series = Series { number: slot.series.number.saturating_add(1), ahead: true, ..slot.series };
        Some(Onward { partition, from, series })
    }

    /// Gives the buffer back as [`Reader::release`] does; what it holds may be had again until the buffer is needed.
    pub(crate) fn keep(&mut self, ticket: ReadTicket) {
        let Some(slot) = self.slots.get_mut(usize::from(ticket.slot)) else { return };
        let is_good = slot.generation == ticket.generation && slot.state == State::Ready(Ok(()));
        if is_good && matches!(slot.purpose, Purpose::Partition { .. }) {
            slot.state = State::Kept;
            self.kept.push_back(ticket.slot);
        } else {
            self.release(ticket);
        }
    }

    /// A read that nobody waited for came back. Why it failed, its reader will find out.
    pub(super) fn finish_ahead(&mut self, index: u16, result: Result<(), ReadFault>) {
        self.ahead -= 1;
        if result.is_ok() {
            self.slots[usize::from(index)].state = State::Kept;
            self.kept.push_back(index);
        } else {
            self.put_back(index);
        }
    }
}

fn partition_of(purpose: Purpose) -> Option<PartitionId> {
    match purpose {
        Purpose::Partition { partition, .. } => Some(partition),
        _ => None,
    }
}

fn segment_of(file: FileId) -> Option<SegmentId> {
    match file {
        FileId::Segment(segment) | FileId::Sidecar(segment) => Some(segment),
        _ => None,
    }
}

const _: () = assert!(INDEX_BLOCKS_MAX * BLOCK_BYTES <= crate::checkpoint::PAGE_BYTES_MAX, "a read buffer holds them");
