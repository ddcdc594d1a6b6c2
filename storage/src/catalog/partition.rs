//! State of one session as the log keeps it, and its entry in a checkpoint.
//!
//! ```text
//!         first_offset             committed     tail
//!   gone ──────┼──── readable ─────────┼─ appended ─┼─ next offset
//!              │ runs[0] │ runs[1] │ …              │
//! ```
//! Entry, little endian, not aligned:
//! ```text
//!  0  u32  length      whole entry
//!  4  u128 partition
//! 20  u64  epoch
//! 28  u64  tail
//! 36  u64  first_offset
//! 44  u32  changed.log      place in the folder's history of the last record that is in this state
//! 48  u64  changed.log_seq
//! 56  u8   tenant bytes     57 u8 session bytes   58 u16 runs   60 u8 markers   61 u8 producers
//! 62  u8   open streams     63 u8 parts that follow: 1 entries, 2 jobs
//! 64  tenant, session
//!     runs:      u32 log, u32 number, u64 first offset
//!     markers:   u64 offset, u8 name bytes, name
//!     producers: u64 epoch, u64 seq, u64 offset, u8 client bytes, client
//!     streams:   see [`streams`](super::streams)
//!     entries:   see [`entries`](super::entries)
//!     jobs:      see [`jobs`](super::jobs)
//! ```
//! `committed` is not stored: a checkpoint is installed only when all it holds is committed, so it equals `tail`.

use super::entries::{ENTRIES_SECTION_BYTES_MAX, Entries};
use super::jobs::{JOBS_SECTION_BYTES_MAX, Jobs};
use super::streams::{STREAMS_BYTES_MAX, STREAMS_MAX, Streams};
use crate::bytes::{Put, Take};
use crate::few::Few;
use crate::ids::{COUNTER_MAX, Epoch, LogId, LogSeq, Offset, PartitionId, SegmentId};

/// Most markers a session keeps.
pub const MARKERS_MAX: usize = 64;
/// Most numbering producers a session remembers.
pub const PRODUCERS_MAX: usize = 64;
/// Longest name (tenant, session, marker, client) an entry can hold.
pub const NAME_BYTES_MAX: usize = 255;
/// Most runs of one partition. Retention keeps fewer segments than this in a folder
/// ([`SEGMENTS_MAX`](crate::retention::SEGMENTS_MAX)), so it is never reached.
pub const RUNS_MAX: usize = 2048;

/// Bytes of an entry before its names.
const ENTRY_HEAD_BYTES: usize = 64;

/// Where an entry says how long its names are.
const ENTRY_NAMES_AT: usize = 56;

/// Where an entry says how many streams are open.
pub(crate) const ENTRY_STREAMS_AT: usize = 62;

/// Where an entry says which parts follow the streams.
pub(crate) const ENTRY_PARTS_AT: usize = 63;
const PART_ENTRIES: u8 = 1;
const PART_JOBS: u8 = 2;

/// Largest entry: what a page of a checkpoint must be able to hold.
pub const ENTRY_BYTES_MAX: usize = ENTRY_HEAD_BYTES
    + 2 * NAME_BYTES_MAX
    + RUNS_MAX * 16
    + MARKERS_MAX * (9 + NAME_BYTES_MAX)
    + PRODUCERS_MAX * (25 + NAME_BYTES_MAX)
    + STREAMS_BYTES_MAX
    + ENTRIES_SECTION_BYTES_MAX
    + JOBS_SECTION_BYTES_MAX;

/// A place in the folder's history: logs are numbered in the order of their making and a partition only ever moves to a
/// newer one, so places of one partition compare.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Place {
    /// Log.
    pub log: LogId,
    /// Record in it.
    pub log_seq: LogSeq,
}

/// From `first` on (until the next run) the events are in `segment`, which names the segment as it was when they were
/// appended; re-clustering may have moved them (see [`SegmentMap`](crate::recluster::SegmentMap)).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Original segment.
    pub segment: SegmentId,
    /// First offset in it.
    pub first: Offset,
}

/// A named durable cursor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Marker {
    /// Name, unique in the session.
    pub name: Box<str>,
    /// Next offset its owner wants.
    pub offset: Offset,
}

/// A client that numbers its own messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Producer {
    /// Client.
    pub client_id: Box<str>,
    /// Its incarnation; a lower one is fenced.
    pub epoch: u64,
    /// Last number appended.
    pub seq: u64,
    /// Offset of that event.
    pub offset: Offset,
}

/// What a record says of a numbering producer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProducerStep<'a> {
    /// Client.
    pub client_id: &'a str,
    /// Its incarnation.
    pub epoch: u64,
    /// Number of the event.
    pub seq: u64,
    /// Offset of the event.
    pub offset: Offset,
}

/// What a session keeps under names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Named {
    markers: Vec<Marker>,
    producers: Vec<Producer>,
}

/// State of one session. Lives in the [`Catalog`](super::Catalog) of the shard that owns its slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Partition {
    id: PartitionId,
    /// Tenant and session, back to back.
    names: Box<str>,
    tenant_bytes: u8,
    pub(super) epoch: Epoch,
    pub(super) tail: Offset,
    pub(super) committed: Offset,
    pub(super) first: Offset,
    /// Last record in this state; `None` until the first.
    pub(super) changed: Option<Place>,
    pub(super) runs: Few<Run>,
    /// Most sessions have none.
    named: Option<Box<Named>>,
    /// Open streams; most sessions have none.
    pub(super) streams: Option<Box<Streams>>,
    /// Entries and jobs; most sessions have none.
    pub(super) work: Option<Box<Work>>,
}

/// Entries, if the session ever had any, and jobs that are open or dead. Apart, for most sessions have neither.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Work {
    pub entries: Option<Entries>,
    pub jobs: Option<Jobs>,
}

/// Each client has one of its own, and another one for the session it is in.
const _: () = assert!(size_of::<Partition>() <= 144);

impl Partition {
    /// A session with no events. Names were checked by the caller: at most [`NAME_BYTES_MAX`] bytes each.
    pub(super) fn new(id: PartitionId, tenant: &str, session: &str, epoch: Epoch) -> Partition {
        assert!(tenant.len() <= NAME_BYTES_MAX && session.len() <= NAME_BYTES_MAX, "names are checked on the way in");
        let mut names = String::with_capacity(tenant.len() + session.len());
        names.push_str(tenant);
        names.push_str(session);
        Partition {
            id,
            names: names.into(),
            tenant_bytes: tenant.len() as u8,
            epoch,
            tail: 0,
            committed: 0,
            first: 0,
            changed: None,
            runs: Few::new(),
            named: None,
            streams: None,
            work: None,
        }
    }

    /// Keyed hash of (tenant, session).
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// Tenant name.
    pub fn tenant(&self) -> &str {
        &self.names[..usize::from(self.tenant_bytes)]
    }

    /// Session name.
    pub fn session(&self) -> &str {
        &self.names[usize::from(self.tenant_bytes)..]
    }

    /// Incarnation of the offsets.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Next offset to assign.
    pub fn tail(&self) -> Offset {
        self.tail
    }

    /// First offset that is not yet durable. Readers see only what is below.
    pub fn committed(&self) -> Offset {
        self.committed
    }

    /// First offset retained, as far as this state knows; [`Partition::drop_gone_runs`] moves it.
    pub fn first_offset(&self) -> Offset {
        self.first
    }

    /// Place of the last record in this state; `None` before the first.
    pub fn last_change(&self) -> Option<Place> {
        self.changed
    }

    /// Where the events are, oldest first.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Run that holds `offset`, if it is retained and below the tail: its place in [`Partition::runs`].
    pub fn run_of(&self, offset: Offset) -> Option<usize> {
        if offset < self.first || offset >= self.tail {
            return None;
        }
        self.runs.partition_point(|run| run.first <= offset).checked_sub(1)
    }

    /// Markers.
    pub fn markers(&self) -> &[Marker] {
        self.named.as_ref().map_or(&[], |named| &named.markers)
    }

    /// Offset of the marker `name`.
    pub fn marker(&self, name: &str) -> Option<Offset> {
        self.markers().iter().find(|m| &*m.name == name).map(|m| m.offset)
    }

    /// Whether a record may set marker `name`: it exists, or one more fits.
    pub fn marker_room(&self, name: &str) -> bool {
        self.markers().len() < MARKERS_MAX || self.marker(name).is_some()
    }

    /// Numbering producers.
    pub fn producers(&self) -> &[Producer] {
        self.named.as_ref().map_or(&[], |named| &named.producers)
    }

    /// What is known of the numbering producer `client_id`.
    pub fn producer(&self, client_id: &str) -> Option<&Producer> {
        self.producers().iter().find(|p| &*p.client_id == client_id)
    }

    /// Whether `client_id` may number messages here: it is known, or fits, or the one longest silent has no event left
    /// in retention and may be forgotten.
    pub fn producer_room(&self, client_id: &str) -> bool {
        self.producers().len() < PRODUCERS_MAX
            || self.producer(client_id).is_some()
            || self.producers().iter().any(|p| p.offset < self.first)
    }

    /// Forgets the oldest runs whose segment is gone; true if that moved `first_offset`. A gone run behind a retained one
    /// (possible only after a move between logs) stays, so that a reader meets it as a gap. The derived state is the
    /// same after a reload, hence it is no change to be saved.
    pub fn drop_gone_runs(&mut self, gone: impl Fn(SegmentId) -> bool) -> bool {
        let before = self.first;
        let kept = self.runs.iter().position(|run| !gone(run.segment)).unwrap_or(self.runs.len());
        self.runs.remove_first(kept);
        let front = self.runs.first().map_or(self.tail, |run| run.first);
        self.first = self.first.max(front);
        self.first != before
    }

    /// User memory in bytes, the slab's slot included.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Partition>()
            + self.names.len()
            + self.runs.heap_bytes()
            + self.named.as_ref().map_or(0, |named| size_of_val(&**named))
            + self.markers().iter().map(|m| size_of::<Marker>() + m.name.len()).sum::<usize>()
            + self.producers().iter().map(|p| size_of::<Producer>() + p.client_id.len()).sum::<usize>()
            + self.streams.as_ref().map_or(0, |streams| streams.memory_bytes())
            + self.entries().map_or(0, Entries::memory_bytes)
            + self.kept_jobs().map_or(0, Jobs::memory_bytes)
    }

    /// Numbering begins again at `tail`: nothing of the earlier epoch remains.
    pub(super) fn restart(&mut self, epoch: Epoch, tail: Offset) {
        self.epoch = epoch;
        self.tail = tail;
        self.committed = tail;
        self.first = tail;
        self.runs.clear();
        self.named = None;
        (self.streams, self.work) = (None, None);
    }

    /// The next `count` offsets go to `segment`.
    pub(super) fn extend(&mut self, segment: SegmentId, count: u32) {
        if count == 0 {
            return;
        }
        if self.runs.last().is_none_or(|run| run.segment != segment) {
            if self.runs.len() == RUNS_MAX {
                // Unreachable while retention holds its bound; if it ever were, the oldest run goes as retention would
                // have it, and readers are told of the gap.
                self.runs.remove_first(1);
                self.first = self.runs[0].first;
            }
            self.runs.push(Run { segment, first: self.tail });
        }
        self.tail += u64::from(count);
    }

    /// Moves marker `name` forward; never backwards, so that a replay changes nothing. One that does not fit is left
    /// out; the append asked [`Partition::marker_room`] before.
    pub(super) fn mark(&mut self, name: &str, offset: Offset) {
        let Named { markers, .. } = &mut **self.named.get_or_insert_default();
        if let Some(marker) = markers.iter_mut().find(|m| &*m.name == name) {
            marker.offset = marker.offset.max(offset);
        } else if markers.len() < MARKERS_MAX {
            markers.push(Marker { name: name.into(), offset });
        }
    }

    /// Remembers the last number of a producer; when the table is full, in place of the one longest silent.
    pub(super) fn produced(&mut self, step: ProducerStep<'_>) {
        let Named { producers, .. } = &mut **self.named.get_or_insert_default();
        if let Some(known) = producers.iter_mut().find(|p| &*p.client_id == step.client_id) {
            if (step.epoch, step.seq) > (known.epoch, known.seq) {
                (known.epoch, known.seq, known.offset) = (step.epoch, step.seq, step.offset);
            }
            return;
        }
        if producers.len() == PRODUCERS_MAX {
            let silent = (0..PRODUCERS_MAX).min_by_key(|&at| producers[at].offset).expect("the table is full");
            producers.swap_remove(silent);
        }
        let ProducerStep { client_id, epoch, seq, offset } = step;
        producers.push(Producer { client_id: client_id.into(), epoch, seq, offset });
    }

    /// Appends the entry to `out`. Only a partition with a record in it has one.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let changed = self.changed.expect("only changed partitions are saved");
        let start = out.len();
        out.put_u32(0);
        out.put_u128(self.id.0);
        out.put_u64(self.epoch);
        out.put_u64(self.tail);
        out.put_u64(self.first);
        out.put_u32(changed.log.0);
        out.put_u64(changed.log_seq);
        out.put_u8(self.tenant_bytes);
        out.put_u8((self.names.len() - usize::from(self.tenant_bytes)) as u8);
        out.put_u16(self.runs.len() as u16);
        out.put_u8(self.markers().len() as u8);
        out.put_u8(self.producers().len() as u8);
        out.put_u8(self.open_streams().count() as u8);
        let parts = self.entries().map_or(0, |_| PART_ENTRIES) | self.kept_jobs().map_or(0, |_| PART_JOBS);
        out.put_u8(parts);
        out.put(self.names.as_bytes());
        for run in &self.runs {
            out.put_u32(run.segment.log.0);
            out.put_u32(run.segment.number);
            out.put_u64(run.first);
        }
        for marker in self.markers() {
            out.put_u64(marker.offset);
            out.put_u8(marker.name.len() as u8);
            out.put(marker.name.as_bytes());
        }
        for producer in self.producers() {
            out.put_u64(producer.epoch);
            out.put_u64(producer.seq);
            out.put_u64(producer.offset);
            out.put_u8(producer.client_id.len() as u8);
            out.put(producer.client_id.as_bytes());
        }
        if let Some(streams) = &self.streams {
            streams.encode(out);
        }
        if let Some(entries) = self.entries() {
            entries.encode(out);
        }
        if let Some(jobs) = self.kept_jobs() {
            jobs.encode(out);
        }
        let length = (out.len() - start) as u32;
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// Tenant and session of an entry, without reading the rest.
    pub(super) fn names(entry: &[u8]) -> Option<(&str, &str)> {
        let mut take = Take(entry.get(ENTRY_NAMES_AT..)?);
        let (tenant_bytes, session_bytes) = (take.u8()?, take.u8()?);
        let mut take = Take(entry.get(ENTRY_HEAD_BYTES..)?);
        Some((take.str(tenant_bytes.into())?, take.str(session_bytes.into())?))
    }

    /// Reads an entry. `None` if it is not one: the caller names the file and place.
    pub(super) fn decode(entry: &[u8]) -> Option<Partition> {
        let mut take = Take(entry);
        let length = take.u32()? as usize;
        let id = PartitionId(take.u128()?);
        let (epoch, tail, first) = (take.u64()?, take.u64()?, take.u64()?);
        let changed = Place { log: LogId(take.u32()?), log_seq: take.u64()? };
        let (tenant_bytes, session_bytes) = (take.u8()?, take.u8()?);
        let (runs, markers, producers) = (take.u16()?, take.u8()?, take.u8()?);
        let (streams, parts) = (usize::from(take.u8()?), take.u8()?);
        let tenant = take.str(tenant_bytes.into())?;
        let session = take.str(session_bytes.into())?;
        let bounds = usize::from(runs) <= RUNS_MAX
            && usize::from(markers) <= MARKERS_MAX
            && usize::from(producers) <= PRODUCERS_MAX
            && streams <= STREAMS_MAX;
        if length != entry.len()
            || parts & !(PART_ENTRIES | PART_JOBS) != 0
            || !bounds
            || first > tail
            || tail > COUNTER_MAX
        {
            return None;
        }
        let mut partition = Partition::new(id, tenant, session, epoch);
        for _ in 0..runs {
            let segment = SegmentId { log: LogId(take.u32()?), number: take.u32()? };
            let run = Run { segment, first: take.u64()? };
            if run.first >= tail || partition.runs.last().is_some_and(|before| before.first >= run.first) {
                return None;
            }
            partition.runs.push(run);
        }
        for _ in 0..markers {
            let offset = take.u64()?;
            let bytes = take.u8()?;
            let marker = Marker { name: take.str(bytes.into())?.into(), offset };
            partition.named.get_or_insert_default().markers.push(marker);
        }
        for _ in 0..producers {
            let (epoch, seq, offset) = (take.u64()?, take.u64()?, take.u64()?);
            let bytes = take.u8()?;
            let producer = Producer { client_id: take.str(bytes.into())?.into(), epoch, seq, offset };
            partition.named.get_or_insert_default().producers.push(producer);
        }
        if streams > 0 {
            partition.streams = Some(Box::new(Streams::decode(&mut take, streams, tail)?));
        }
        if parts != 0 {
            let entries = if parts & PART_ENTRIES != 0 { Some(Entries::decode(&mut take)?) } else { None };
            let jobs = if parts & PART_JOBS != 0 { Some(Jobs::decode(&mut take, tail)?) } else { None };
            partition.work = Some(Box::new(Work { entries, jobs }));
        }
        if !take.0.is_empty() {
            return None;
        }
        (partition.tail, partition.committed, partition.first) = (tail, tail, first);
        partition.changed = Some(changed);
        Some(partition)
    }
}
