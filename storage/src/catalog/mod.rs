//! Which sessions exist and where they stand: the resident ones in memory, the rest in the checkpoint.
//!
//! ```text
//!                 create / load                    append                  collect
//!   checkpoint ──────────────► Idle (LRU) ───────────────────► Dirty ───────────────► Collected
//!       ▲                        │   ▲  ▲                       ▲                        │
//!       └───── evicted ──────────┘   │  └── installed ──────────┼────────────────────────┤
//!                          unpin │   │ pin                      └──── append, or failed ─┘
//!                                ▼   │
//!                               Pinned
//! ```
//! A partition is Dirty while the checkpoint does not hold its last record; only clean, unpinned ones may be evicted, the
//! longest unused first. Pinned ones (with subscribers or waiters) stay whatever their age. All four are lists threaded
//! through one slab, so every move is O(1) and a steady publish allocates nothing.
//!
//! Memory: `partitions_resident_max` × about 400 bytes + markers and producers in use, + the tables of the checkpoint
//! (see [`CheckpointIndex::memory_bytes`]), + 8 KiB for the slices.

mod collect;
mod entries;
mod jobs;
mod partition;
mod replay;
mod streams;
mod tenants;

pub use entries::{ENTRIES_BYTES_MAX, ENTRIES_GONE_MAX, Entries, Entry, Gone, entry_bytes};
pub use jobs::{GROUPS_MAX, JOB_QUEUES_MAX, JOBS_DEAD_MAX, JOBS_MAX, Jobs, OpenJob, PARTIALS_BYTES_MAX, is_group};
pub use partition::{
    ENTRY_BYTES_MAX, MARKERS_MAX, Marker, NAME_BYTES_MAX, PRODUCERS_MAX, Partition, Place, Producer, ProducerStep,
    RUNS_MAX, Run,
};
pub(crate) use partition::{ENTRY_PARTS_AT, ENTRY_STREAMS_AT};
pub use replay::{REPLAY_RESIDENT_MAX, Replay, ReplayFault, Replayed};
pub(crate) use streams::streaming;
pub use streams::{OpenStream, STREAM_RECENT_MAX, STREAMS_MAX, StreamStep, Streaming};
pub(crate) use tenants::sessions_by_tenant;

use crate::checkpoint::{self, CheckpointIndex, PageAt};
use crate::disk::FileId;
use crate::ids::{Epoch, LogId, LogSeq, Offset, PartitionId, SLICES, SegmentId, SliceId, SliceSeq};
use collect::Collecting;
use hashbrown::HashMap;
use slab::Slab;
use std::hash::{BuildHasherDefault, Hasher};
use tenants::Tally;

/// A resident partition. Spent when it is evicted: the generation tells.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PartitionSlot {
    index: u32,
    generation: u32,
}

/// Where a partition was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// In memory.
    Resident(PartitionSlot),
    /// Nowhere: the session is new.
    Absent,
    /// Perhaps in the checkpoint: read this page and give it to [`Catalog::load`].
    NeedsPage(PageAt),
    /// Another session has the same 128-bit hash. Never by chance; refuse.
    Collision,
}

/// What a page from the checkpoint held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Load {
    /// Now in memory.
    Resident(PartitionSlot),
    /// Not in the checkpoint: the session is new.
    Absent,
    /// A newer checkpoint was installed since; look up again.
    Stale,
    /// All resident partitions are dirty or pinned; try again after a checkpoint.
    Full,
    /// See [`Lookup::Collision`].
    Collision,
    /// The page does not verify.
    Corrupt {
        /// Checkpoint.
        file: FileId,
        /// Byte position.
        at: u64,
    },
}

/// All resident partitions are dirty or pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CatalogFull;

/// What a record changes in its partition: the record's head and the parts of its body the catalog keeps.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// Segment the record is in.
    pub segment: SegmentId,
    /// Place of the record in the log.
    pub log_seq: LogSeq,
    /// Offsets it covers; 0 for markers only.
    pub count: u32,
}

/// Numbers given to what was appended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    /// Offset of the first event (the tail, where there is none).
    pub offset: Offset,
    /// Slice sequence of the first event (the next one, where there is none).
    pub slice_seq: SliceSeq,
}

/// Memory in use and work to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CatalogStats {
    /// Partitions in memory.
    pub resident: usize,
    /// Of these, changed since the checkpoint.
    pub dirty: usize,
    /// Of these, evictable now.
    pub idle: usize,
    /// Partitions evicted since the start.
    pub evicted: u64,
    /// Partitions in the checkpoint.
    pub checkpointed: u64,
}

/// The list a partition is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum List {
    Pinned = 0,
    Idle = 1,
    Dirty = 2,
    Collected = 3,
}

const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Resident {
    partition: Partition,
    generation: u32,
    pins: u32,
    list: List,
    before: u32,
    after: u32,
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    front: u32,
    back: u32,
    len: usize,
}

/// Partition ids are keyed hashes already; their low half is as good a hash as any. (The high bits choose the slice, so
/// within a shard they are not uniform.)
#[derive(Default)]
pub(crate) struct LowHalf(u64);

impl Hasher for LowHalf {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only u128 keys are hashed");
    }
    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// Map keyed by a keyed 128-bit hash.
pub(crate) type KeyMap<K, V> = HashMap<K, V, BuildHasherDefault<LowHalf>>;

/// One per shard, touched only by its thread.
#[derive(Debug)]
pub struct Catalog {
    log: LogId,
    residents: Slab<Resident>,
    by_id: KeyMap<PartitionId, u32>,
    lists: [Ends; 4],
    resident_max: usize,
    generation: u32,
    checkpoint: Option<CheckpointIndex>,
    slice_next: Vec<SliceSeq>,
    collecting: Option<Collecting>,
    evicted: u64,
    /// Sessions that exist, in memory and in the checkpoint.
    tally: Tally,
}

impl Catalog {
    /// A catalog over the checkpoint of `log`, if it has one. Replay, where records follow it, comes next.
    pub fn new(log: LogId, partitions_resident_max: usize, checkpoint: Option<CheckpointIndex>) -> Catalog {
        assert!(partitions_resident_max < NONE as usize, "slots are 32 bit");
        let slice_next = match &checkpoint {
            Some(checkpoint) => checkpoint.slice_next().to_vec(),
            None => vec![1; SLICES.into()],
        };
        Catalog {
            log,
            residents: Slab::new(),
            by_id: KeyMap::default(),
            lists: [Ends { front: NONE, back: NONE, len: 0 }; 4],
            resident_max: partitions_resident_max,
            generation: 0,
            checkpoint,
            slice_next,
            collecting: None,
            evicted: 0,
            tally: Tally::default(),
        }
    }

    /// Takes the memory of all residents at once, so that no later insertion moves them. The map of ids is left to grow,
    /// moving its keys at each doubling: a thousand of them in room for `resident_max` would lie a cache line and a page apart.
    pub fn reserve(&mut self) {
        self.residents.reserve(self.resident_max.saturating_sub(self.residents.len()));
    }

    /// After recovery: the log new records go to and the bound that holds from now on. Replay may have gone over it;
    /// what is clean and over is evicted now, the rest after the first checkpoint.
    pub fn recovered(&mut self, log: LogId, partitions_resident_max: usize) {
        (self.log, self.resident_max) = (log, partitions_resident_max);
        while self.residents.len() > self.resident_max && self.evict_one() {}
    }

    /// The installed checkpoint.
    pub fn checkpoint(&self) -> Option<&CheckpointIndex> {
        self.checkpoint.as_ref()
    }

    /// Finds a session. Names are compared, so two sessions of one hash are never mixed up.
    pub fn lookup(&mut self, id: PartitionId, tenant: &str, session: &str) -> Lookup {
        if let Some(&index) = self.by_id.get(&id) {
            let resident = &self.residents[index as usize];
            if resident.partition.tenant() != tenant || resident.partition.session() != session {
                return Lookup::Collision;
            }
            return Lookup::Resident(self.touch(index));
        }
        match self.checkpoint.as_ref().and_then(|checkpoint| checkpoint.page_of(id)) {
            Some(page) => Lookup::NeedsPage(page),
            None => Lookup::Absent,
        }
    }

    /// Slot of a session that is in memory.
    pub fn slot_of(&self, id: PartitionId) -> Option<PartitionSlot> {
        let index = *self.by_id.get(&id)?;
        Some(PartitionSlot { index, generation: self.residents[index as usize].generation })
    }

    /// Takes the page [`Catalog::lookup`] asked for, as it was read from `at`.
    pub fn load(&mut self, id: PartitionId, tenant: &str, session: &str, at: PageAt, page: &[u8]) -> Load {
        // Between the read and now the session may have been loaded by another, or a newer checkpoint installed and
        // the session evicted: the page would then bring back an older state.
        if let Some(&index) = self.by_id.get(&id) {
            let partition = &self.residents[index as usize].partition;
            if partition.tenant() != tenant || partition.session() != session {
                return Load::Collision;
            }
            return Load::Resident(self.touch(index));
        }
        if self.checkpoint.as_ref().is_none_or(|checkpoint| checkpoint.file() != at.file) {
            return Load::Stale;
        }
        let corrupt = Load::Corrupt { file: at.file, at: at.at };
        let entry = match checkpoint::find_in_page(page, at.at, id) {
            Ok(Some(entry)) => entry,
            Ok(None) => return Load::Absent,
            Err(_) => return corrupt,
        };
        let Some(partition) = Partition::decode(entry.bytes) else { return corrupt };
        if partition.tenant() != tenant || partition.session() != session {
            return Load::Collision;
        }
        self.insert(partition).map_or(Load::Full, Load::Resident)
    }

    /// Makes a session that [`Catalog::lookup`] or [`Catalog::load`] called absent. It becomes durable with its first
    /// record; until then it may be evicted and forgotten.
    ///
    /// # Errors
    /// No room.
    pub fn create(
        &mut self,
        id: PartitionId,
        tenant: &str,
        session: &str,
        epoch: Epoch,
    ) -> Result<PartitionSlot, CatalogFull> {
        assert!(!self.by_id.contains_key(&id), "a session is created once");
        self.insert(Partition::new(id, tenant, session, epoch)).ok_or(CatalogFull)
    }

    /// State of a resident session; `None` if the slot is spent.
    pub fn get(&self, slot: PartitionSlot) -> Option<&Partition> {
        let resident = self.residents.get(slot.index as usize)?;
        (resident.generation == slot.generation).then_some(&resident.partition)
    }

    /// Next slice sequence of `slice`.
    pub fn slice_next(&self, slice: SliceId) -> SliceSeq {
        self.slice_next[usize::from(slice.0)]
    }

    /// Every slice goes on here, if it is not beyond it: after a folder went back in time no place in a slice is given twice.
    pub fn begin_slices_at(&mut self, first: SliceSeq) {
        self.slice_next.iter_mut().for_each(|next| *next = first.max(*next));
    }

    /// Holds the partition in memory until the matching [`Catalog::unpin`].
    pub fn pin(&mut self, slot: PartitionSlot) {
        let resident = self.resident_mut(slot);
        resident.pins += 1;
        if resident.list == List::Idle {
            self.move_to(slot.index, List::Pinned);
        }
    }

    /// Gives back one [`Catalog::pin`].
    pub fn unpin(&mut self, slot: PartitionSlot) {
        let resident = self.resident_mut(slot);
        assert!(resident.pins > 0, "unpinned more often than pinned");
        resident.pins -= 1;
        if resident.pins == 0 && resident.list == List::Pinned {
            self.move_to(slot.index, List::Idle);
        }
    }

    /// Takes a record about to be appended into the state. The caller has asked for room for its markers and producers.
    pub fn append<'a>(
        &mut self,
        slot: PartitionSlot,
        change: Change,
        markers: impl IntoIterator<Item = (&'a str, Offset)>,
        producers: impl IntoIterator<Item = ProducerStep<'a>>,
    ) -> Appended {
        let log = self.log;
        self.count_if_first(slot);
        let partition = &mut self.resident_mut(slot).partition;
        let (offset, slice) = (partition.tail, partition.id().slice());
        apply(partition, Place { log, log_seq: change.log_seq }, change, markers, producers);
        let next = &mut self.slice_next[usize::from(slice.0)];
        let slice_seq = *next;
        *next += u64::from(change.count);
        self.dirtied(slot.index);
        Appended { offset, slice_seq }
    }

    /// Everything of the partition below `end` is durable. Only forward; a partition no longer resident had nothing open.
    pub fn committed(&mut self, id: PartitionId, epoch: Epoch, end: Offset) {
        if let Some(&index) = self.by_id.get(&id) {
            let partition = &mut self.residents[index as usize].partition;
            if partition.epoch == epoch {
                partition.committed = partition.committed.max(end).min(partition.tail);
            }
        }
    }

    /// The partition's numbering begins again under another epoch (deleted and made again, restored). Durable with its
    /// next record.
    pub fn restart(&mut self, slot: PartitionSlot, epoch: Epoch) {
        self.resident_mut(slot).partition.restart(epoch, 0);
    }

    /// See [`Partition::drop_gone_runs`].
    pub fn drop_gone_runs(&mut self, slot: PartitionSlot, gone: impl Fn(SegmentId) -> bool) -> bool {
        self.resident_mut(slot).partition.drop_gone_runs(gone)
    }

    /// Memory in use, and how much a checkpoint would save.
    pub fn stats(&self) -> CatalogStats {
        CatalogStats {
            resident: self.residents.len(),
            dirty: self.lists[List::Dirty as usize].len + self.lists[List::Collected as usize].len,
            idle: self.lists[List::Idle as usize].len,
            evicted: self.evicted,
            checkpointed: self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.entries),
        }
    }

    /// User memory in bytes of everything here. Walks all residents: for reports, not for turns.
    pub fn memory_bytes(&self) -> usize {
        let links = size_of::<Resident>() - size_of::<Partition>();
        self.residents.iter().map(|(_, resident)| resident.partition.memory_bytes() + links).sum::<usize>()
            + self.by_id.capacity() * size_of::<(PartitionId, u32)>()
            + self.checkpoint.as_ref().map_or(0, CheckpointIndex::memory_bytes)
            + self.slice_next.capacity() * size_of::<SliceSeq>()
            + self.collecting.as_ref().map_or(0, |collecting| collecting.draft.memory_bytes())
    }

    /// Every resident partition, in slot order.
    pub fn residents(&self) -> impl Iterator<Item = &Partition> {
        self.residents.iter().map(|(_, resident)| &resident.partition)
    }

    fn insert(&mut self, partition: Partition) -> Option<PartitionSlot> {
        if self.residents.len() >= self.resident_max && !self.evict_one() {
            return None;
        }
        let id = partition.id();
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let resident = Resident { partition, generation, pins: 0, list: List::Idle, before: NONE, after: NONE };
        let index = self.residents.insert(resident) as u32;
        self.by_id.insert(id, index);
        self.link_back(index, List::Idle);
        Some(PartitionSlot { index, generation })
    }

    /// Evicts the idle partition longest unused; false if there is none.
    fn evict_one(&mut self) -> bool {
        let index = self.lists[List::Idle as usize].front;
        if index == NONE {
            return false;
        }
        self.unlink(index);
        let resident = self.residents.remove(index as usize);
        assert!(resident.pins == 0 && resident.partition.committed == resident.partition.tail, "idle means clean");
        self.by_id.remove(&resident.partition.id());
        self.evicted += 1;
        true
    }

    fn touch(&mut self, index: u32) -> PartitionSlot {
        let Resident { generation, list, .. } = self.residents[index as usize];
        if list == List::Idle {
            self.move_to(index, List::Idle);
        }
        PartitionSlot { index, generation }
    }

    fn dirtied(&mut self, index: u32) {
        if self.residents[index as usize].list != List::Dirty {
            self.move_to(index, List::Dirty);
        }
    }

    fn resident_mut(&mut self, slot: PartitionSlot) -> &mut Resident {
        let resident = &mut self.residents[slot.index as usize];
        assert_eq!(resident.generation, slot.generation, "the slot was evicted; pin what you hold");
        resident
    }

    fn move_to(&mut self, index: u32, list: List) {
        self.unlink(index);
        self.link_back(index, list);
    }

    fn unlink(&mut self, index: u32) {
        let Resident { list, before, after, .. } = self.residents[index as usize];
        let ends = &mut self.lists[list as usize];
        ends.len -= 1;
        match before {
            NONE => ends.front = after,
            before => self.residents[before as usize].after = after,
        }
        match after {
            NONE => self.lists[list as usize].back = before,
            after => self.residents[after as usize].before = before,
        }
    }

    fn link_back(&mut self, index: u32, list: List) {
        let ends = &mut self.lists[list as usize];
        let before = ends.back;
        ends.back = index;
        ends.len += 1;
        if before == NONE {
            ends.front = index;
        } else {
            self.residents[before as usize].after = index;
        }
        let resident = &mut self.residents[index as usize];
        (resident.list, resident.before, resident.after) = (list, before, NONE);
    }
}

/// The one place where a record becomes state, live and in replay alike.
fn apply<'a>(
    partition: &mut Partition,
    place: Place,
    change: Change,
    markers: impl IntoIterator<Item = (&'a str, Offset)>,
    producers: impl IntoIterator<Item = ProducerStep<'a>>,
) {
    partition.extend(change.segment, change.count);
    partition.changed = Some(place);
    markers.into_iter().for_each(|(name, offset)| partition.mark(name, offset));
    producers.into_iter().for_each(|step| partition.produced(step));
}
