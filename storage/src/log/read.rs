//! Reading one session: from the hot tail, from a segment that has no sidecar yet, from a sealed one.
//!
//! ```text
//!   runs of the partition ─► which segment ─┬─ live index ─┬─ hot: the record itself
//!                                           │              └─ cold: its bytes ────────────────┐
//!                                           ├─ sealed: blocks of the sidecar ─► its bytes ────┴─► ReadReady ─┐
//!                                           └─ gone: a gap to what is retained                               │
//!                                                                                 the next bytes, ahead ◄────┘
//! ```

use super::reader::{Found, Outcome, Purpose, ReadFault, ReadTicket, Reader, Series, Wanted};
use super::{Log, LogEvent, READ, op_id};
use crate::catalog::PartitionSlot;
use crate::disk::{DiskFault, DiskOp, FileId};
use crate::group::BLOCK_BYTES;
use crate::ids::{LogSeq, Offset, SegmentId};
use crate::record::RecordView;
use crate::sidecar::{BlockAt, SidecarIndex};

/// What [`Log::read`] found.
#[derive(Clone, Copy, Debug)]
pub enum Read<'a> {
    /// The record that covers the offset. Go on at its [`RecordView::next_offset`].
    Hot(RecordView<'a>),
    /// Being read; [`LogEvent::ReadReady`] tells when [`Log::read_records`] has it.
    Cold(ReadTicket),
    /// It was read ahead, or kept: [`Log::read_records`] has it.
    Ready(ReadTicket),
    /// The offsets up to `to` are no longer retained.
    Gap {
        /// First offset that is.
        to: Offset,
    },
    /// Nothing committed at the offset yet.
    End,
    /// All read buffers are in use: ask again when one was released.
    Busy,
    /// It cannot be read.
    Fault(ReadFault),
}

/// Where the record that covers an offset is.
enum Place {
    End,
    Gap,
    Hot(LogSeq, u32),
    /// In the segment of this live index, out of the hot tail.
    Live(usize),
    /// In this sealed file.
    Sealed(SegmentId),
    Corrupt(FileId),
}

impl Log {
    /// The record that covers offset `from`, if it is committed and retained. Ask again at its end for the next.
    pub fn read(&mut self, slot: PartitionSlot, from: Offset) -> Read<'_> {
        self.read_as(slot, from, false)
    }

    /// [`Log::read`] for whoever wants no more than that record: a short read, where others read ahead. Thousands who ask for
    /// one small record each would keep the disk from commits.
    pub fn read_lone(&mut self, slot: PartitionSlot, from: Offset) -> Read<'_> {
        self.read_as(slot, from, true)
    }

    fn read_as(&mut self, slot: PartitionSlot, from: Offset, lone: bool) -> Read<'_> {
        let segment = match self.place(slot, from) {
            Place::End => return Read::End,
            Place::Gap => return Read::Gap { to: self.gap_end(slot, from) },
            Place::Corrupt(file) => return Read::Fault(ReadFault::Corrupt { file, at: 0 }),
            Place::Hot(log_seq, position) => {
                return Read::Hot(self.pipeline.hot_record(log_seq, position).expect("its place is hot"));
            }
            Place::Live(live) => self.live[live].segment(),
            Place::Sealed(segment) => segment,
        };
        let (id, epoch) = (self.partition(slot).id(), self.partition(slot).epoch());
        match self.reader.claim(id, epoch, from, segment) {
            Some(Found::Ready(ticket)) => {
                self.read_ahead(ticket);
                return Read::Ready(ticket);
            }
            Some(Found::Coming(ticket)) => return Read::Cold(ticket),
            None => {}
        }
        let series = self.reader.series_at(id, epoch, from);
        // A commit waits at the disk behind what is being read.
        let series = if self.pipeline.idle() { series } else { series.brief() };
        let series = Series { lone, ..series };
        match self.begin_read(slot, from, series) {
            Ok(ticket) => ticket.map_or(Read::Busy, Read::Cold),
            Err(file) => Read::Fault(ReadFault::Corrupt { file, at: 0 }),
        }
    }

    /// Is the record that covers the offset in memory? Then [`Log::read`] gives it, and those behind it, at once.
    pub fn is_hot(&self, slot: PartitionSlot, from: Offset) -> bool {
        matches!(self.place(slot, from), Place::Hot(..))
    }

    fn place(&self, slot: PartitionSlot, from: Offset) -> Place {
        let partition = self.partition(slot);
        if from >= partition.committed() {
            return Place::End;
        }
        let Some(segment) = partition.run_of(from).map(|run| partition.runs()[run].segment) else { return Place::Gap };
        if let Some(live) = self.live.iter().position(|live| live.segment() == segment) {
            let Some(found) = self.live[live].partition_record(partition.id(), from) else {
                return Place::Corrupt(FileId::Segment(segment));
            };
            let is_hot = self.pipeline.hot_record(found.log_seq, found.position).is_some();
            return if is_hot { Place::Hot(found.log_seq, found.position) } else { Place::Live(live) };
        }
        self.shelf.find(segment).map_or(Place::Gap, |index| Place::Sealed(index.contents.segment))
    }

    /// Asks the disk for the records from a place that is cold on. `None`: no buffer.
    fn begin_read(&mut self, slot: PartitionSlot, from: Offset, series: Series) -> Result<Option<ReadTicket>, FileId> {
        let partition = self.partition(slot).id();
        match self.place(slot, from) {
            Place::Live(live) => Ok(self.read_live(live, Purpose::Partition { partition, from }, series)),
            Place::Sealed(segment) => {
                let file = FileId::Sidecar(segment);
                let index = self.shelf.index(segment).ok_or(file)?;
                let block = index.partition_blocks(partition, from, series.index_blocks()).ok_or(file)?;
                if !self.reader.free_for_reads() {
                    return Ok(None);
                }
                let purpose = Purpose::PartitionIndex { partition, from, segment, block };
                let wanted = self.reader.begin_in(series, purpose, block.file, block.at, block.len);
                self.stats.cold_reads += u64::from(wanted.is_some());
                Ok(wanted.map(|wanted| self.ask(wanted)))
            }
            Place::Corrupt(file) => Err(file),
            Place::End | Place::Gap | Place::Hot(..) => Ok(None),
        }
    }

    /// Asks for what follows a finished read of a long series before its reader does.
    pub(super) fn read_ahead(&mut self, ticket: ReadTicket) {
        if !self.pipeline.idle() {
            return;
        }
        let Some(onward) = self.reader.onward(ticket) else { return };
        let slot = self.catalog.slot_of(onward.partition);
        let Some(slot) = slot.filter(|slot| self.partition(*slot).epoch() == onward.series.epoch) else { return };
        // Nothing there, or damaged: its reader will find out.
        let _begun = self.begin_read(slot, onward.from, onward.series);
    }

    /// Drops runs whose segment is gone; where reading may go on. Beyond `from` in any case: segments of old logs do not
    /// leave in the order of a session's offsets, so a run in the middle may be gone before the first.
    pub(super) fn gap_end(&mut self, slot: PartitionSlot, from: Offset) -> Offset {
        let (live, shelf) = (&self.live, &self.shelf);
        let gone = |segment| shelf.find(segment).is_none() && !live.iter().any(|live| live.segment() == segment);
        self.catalog.drop_gone_runs(slot, gone);
        let partition = self.catalog.get(slot).expect("the slot was evicted; pin what you hold");
        if partition.first_offset() > from {
            return partition.first_offset();
        }
        let next = partition.runs().iter().find(|run| run.first > from && !gone(run.segment));
        next.map_or(partition.committed(), |run| run.first.min(partition.committed()))
    }

    /// Begins a cold read of records in a segment without sidecar: their places are known.
    pub(super) fn read_live(&mut self, live: usize, purpose: Purpose, series: Series) -> Option<ReadTicket> {
        if !self.reader.free_for_reads() {
            return None;
        }
        let index = &self.live[live];
        let mut next = match purpose {
            Purpose::Partition { partition, from } => index.partition_record(partition, from),
            Purpose::Log { log_seq } => index.log_record(log_seq),
            _ => None,
        };
        let committed = self.pipeline.committed();
        let positions = std::iter::from_fn(|| {
            let found = next.filter(|found| found.log_seq < committed)?;
            next = match purpose {
                Purpose::Partition { partition, .. } => {
                    index.partition_record(partition, found.offset + u64::from(found.count))
                }
                _ => index.log_record(found.log_seq + 1),
            };
            Some(found.position)
        });
        let wanted = self.reader.begin_records(series, purpose, index.segment(), positions)?;
        self.stats.cold_reads += 1;
        Some(self.ask(wanted))
    }

    /// A block of a sidecar is there: find the records in it and read them into the same buffer.
    pub(super) fn index_read(&mut self, purpose: Purpose, slot: u16, result: Result<usize, DiskFault>) {
        let (segment, block) = match purpose {
            Purpose::PartitionIndex { segment, block, .. } | Purpose::SliceIndex { segment, block, .. } => {
                (segment, block)
            }
            _ => return,
        };
        let next = match (result, self.shelf.index(segment)) {
            (Ok(bytes), Some(index)) => follow_index(&mut self.reader, index, purpose, slot, bytes),
            (Err(DiskFault::Missing), _) | (_, None) => Err(ReadFault::Gone),
            (Err(fault), _) => Err(ReadFault::Disk(fault)),
        };
        if next == Err(ReadFault::Gone) {
            self.segment_gone(block.file);
        }
        match next {
            Ok(wanted) => {
                self.ask(wanted);
            }
            Err(fault) => {
                if let Outcome::Ready(ticket) = self.reader.finish(slot, Err(fault)) {
                    self.events.push_back(LogEvent::ReadReady(ticket));
                }
            }
        }
    }

    /// Another shard's retention removed a segment of an old log.
    pub(super) fn segment_gone(&mut self, file: FileId) {
        let (FileId::Segment(segment) | FileId::Sidecar(segment)) = file else { return };
        if segment.log != self.log {
            self.shelf.missing(segment);
        }
    }

    pub(super) fn ask(&mut self, wanted: Wanted) -> ReadTicket {
        let Wanted { slot, generation, file, at, len } = wanted;
        let op = op_id(READ, slot, u64::from(generation));
        self.ops.push_back(DiskOp::Read { op, file, at, len, slot: usize::from(slot) });
        ReadTicket { slot, generation }
    }

    /// Records of a finished cold read: for a [`Log::read`], those of the partition from the one that covers the offset on; for
    /// a [`Log::scan`], all of them in log order. At least one.
    ///
    /// # Errors
    /// They cannot be had.
    ///
    /// # Panics
    /// If the ticket is spent or not ready.
    pub fn read_records(&self, ticket: ReadTicket) -> Result<impl Iterator<Item = RecordView<'_>>, ReadFault> {
        self.reader.records(ticket)
    }

    /// Gives the read's buffer back, finished or not.
    pub fn release(&mut self, ticket: ReadTicket) {
        self.reader.release(ticket);
    }

    /// Gives the buffer of a finished read back, of which its reader had no room for all: what it holds is likely still there
    /// when the reader asks again.
    pub fn keep(&mut self, ticket: ReadTicket) {
        self.reader.keep(ticket);
    }
}

/// From blocks of a sidecar to the records it names, or to the next block.
fn follow_index(
    reader: &mut Reader,
    index: &SidecarIndex,
    purpose: Purpose,
    slot: u16,
    bytes: usize,
) -> Result<Wanted, ReadFault> {
    let corrupt = |block: BlockAt| ReadFault::Corrupt { file: block.file, at: block.at };
    let (then, more, block) = match purpose {
        Purpose::PartitionIndex { partition, from, segment, block } => {
            let more = index.next_partition_block(block, partition);
            let more = more.map(|block| (Purpose::PartitionIndex { partition, from, segment, block }, block));
            (Purpose::Partition { partition, from }, more, block)
        }
        Purpose::SliceIndex { at, slice, from, segment, block } => {
            let more = index.next_slice_block(block, slice);
            let more = more.map(|block| (Purpose::SliceIndex { at, slice, from, segment, block }, block));
            (Purpose::Slice { at, slice, from }, more, block)
        }
        _ => return Err(ReadFault::Gone),
    };
    let mut bad = None;
    let segment = index.contents.segment;
    let wanted = reader.go_to_records(slot, then, segment, |buffer, records| {
        let buffer = &buffer[..bytes.min(buffer.len())];
        for at in (0..block.len).step_by(BLOCK_BYTES) {
            let here = BlockAt { at: block.at + at as u64, len: BLOCK_BYTES, ..block };
            let buffer = buffer.get(at..buffer.len().min(at + BLOCK_BYTES)).unwrap_or_default();
            let (rows, from) = match then {
                Purpose::Partition { partition, from } => (index.partition_rows(here, buffer, partition, from), from),
                Purpose::Slice { slice, from, .. } => (index.slice_rows(here, buffer, slice, from), from),
                _ => return,
            };
            match rows {
                Ok(rows) => {
                    let reached = rows.skip_while(|row| row.at.saturating_add(row.count.into()) <= from);
                    let room = then.records_max() - records.len();
                    records.extend(reached.take(room).map(|row| row.position));
                }
                // What lies before is good; who reads on meets the damage.
                Err(_) if !records.is_empty() => return,
                Err(_) => {
                    bad = Some(corrupt(here));
                    return;
                }
            }
        }
    });
    match (bad, wanted, more) {
        (Some(fault), ..) => Err(fault),
        (None, Some(wanted), _) => Ok(wanted),
        (None, None, Some((purpose, block))) => Ok(reader.again(slot, purpose, block)),
        // The index said that the record is in this segment.
        (None, None, None) => Err(corrupt(block)),
    }
}
