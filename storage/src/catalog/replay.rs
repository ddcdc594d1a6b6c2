//! Records of the log's tail, taken into the state a checkpoint left: what recovery does.

use super::{Catalog, Change, Load, Lookup, NAME_BYTES_MAX, NONE, PartitionSlot, Place, ProducerStep, apply};
use crate::checkpoint::PageAt;
use crate::ids::{Epoch, LogSeq, Offset, PartitionId, SegmentId, SliceSeq};

/// "No bound": what a replay's catalog is made with.
pub const REPLAY_RESIDENT_MAX: usize = NONE as usize - 1;

/// A record met in replay.
#[derive(Clone, Copy, Debug)]
pub struct Replayed<'a> {
    /// Segment it is in; its log is the log of the record.
    pub segment: SegmentId,
    /// Its head.
    pub log_seq: LogSeq,
    /// Partition.
    pub partition: PartitionId,
    /// Tenant name.
    pub tenant: &'a str,
    /// Session name.
    pub session: &'a str,
    /// Incarnation.
    pub epoch: Epoch,
    /// First offset.
    pub offset: Offset,
    /// Offsets covered.
    pub count: u32,
    /// Slice sequence of the first event.
    pub slice_seq: SliceSeq,
}

/// What a replayed record did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replay {
    /// It is in the state now.
    Applied(PartitionSlot),
    /// The state held it already.
    Known,
}

/// Why a record cannot be replayed. Its bytes verified, so either the log lost a record before it or the code is wrong:
/// boot stops for a human.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplayFault {
    /// Offsets are not dense.
    Hole {
        /// Tail before the record.
        expected: Offset,
        /// Offset of the record.
        found: Offset,
    },
    /// See [`Lookup::Collision`].
    Collision,
    /// A name is longer than any the server accepts.
    Names,
    /// The checkpoint's page does not verify.
    Checkpoint {
        /// Byte position.
        at: u64,
    },
}

impl Catalog {
    /// Takes a record of the log's tail into the state, where it is not there yet. `page` gives bytes of the checkpoint.
    ///
    /// A replay must not run out of room: make its catalog with [`REPLAY_RESIDENT_MAX`] and set the real bound with
    /// [`Catalog::recovered`] afterwards. It holds what changed since the checkpoint, about what was dirty at the crash.
    ///
    /// # Errors
    /// The record does not continue what is known.
    pub fn replay<'a, 'p>(
        &mut self,
        record: Replayed<'_>,
        markers: impl IntoIterator<Item = (&'a str, Offset)>,
        producers: impl IntoIterator<Item = ProducerStep<'a>>,
        page: impl FnOnce(PageAt) -> &'p [u8],
    ) -> Result<Replay, ReplayFault> {
        let Replayed { partition: id, tenant, session, epoch, .. } = record;
        if tenant.len() > NAME_BYTES_MAX || session.len() > NAME_BYTES_MAX {
            return Err(ReplayFault::Names);
        }
        let found = match self.lookup(id, tenant, session) {
            Lookup::NeedsPage(at) => match self.load(id, tenant, session, at, page(at)) {
                Load::Resident(slot) => Some(slot),
                Load::Absent => None,
                Load::Collision => return Err(ReplayFault::Collision),
                Load::Corrupt { at, .. } => return Err(ReplayFault::Checkpoint { at }),
                Load::Stale | Load::Full => unreachable!("replay has one checkpoint and no bound"),
            },
            Lookup::Resident(slot) => Some(slot),
            Lookup::Absent => None,
            Lookup::Collision => return Err(ReplayFault::Collision),
        };
        let next = &mut self.slice_next[usize::from(id.slice().0)];
        *next = (*next).max(record.slice_seq.saturating_add(record.count.into()));
        let slot = match found {
            Some(slot) => slot,
            None => self.create(id, tenant, session, epoch).unwrap_or_else(|_| unreachable!("replay has no bound")),
        };
        let place = Place { log: record.segment.log, log_seq: record.log_seq };
        let partition = &mut self.resident_mut(slot).partition;
        if partition.changed.is_some_and(|changed| changed >= place) {
            return Ok(Replay::Known);
        }
        if partition.epoch != epoch {
            // Deleted and made again: the new life counts from 0.
            partition.restart(epoch, 0);
        }
        if partition.tail != record.offset || record.offset.checked_add(record.count.into()).is_none() {
            return Err(ReplayFault::Hole { expected: partition.tail, found: record.offset });
        }
        let change = Change { segment: record.segment, log_seq: record.log_seq, count: record.count };
        self.count_if_first(slot);
        let partition = &mut self.resident_mut(slot).partition;
        apply(partition, place, change, markers, producers);
        // What recovery replays is durable by definition.
        partition.committed = partition.tail;
        self.dirtied(slot.index);
        Ok(Replay::Applied(slot))
    }
}
