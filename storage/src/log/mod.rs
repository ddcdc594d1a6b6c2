//! The log of one shard: what the shard's brain appends to, reads from and asks about; the only way into this crate while
//! the server runs.
//!
//! ```text
//!   open ─► PartitionSlot ─► dedupe ─► room ─► append ─┐
//!                                                      ▼
//!                      poll_op ◄─────────── open group (hot tail) ─► handle_done ─► poll_event: Committed
//!                         │                                                            │
//!                         └─ Read · Job ─► executor ─► handle_done                     ▼
//!                                                             committed_records · read · scan
//! ```
//! **Contract.** `handle_done` takes what came of an operation, commands (`open`, `append`, `read`, …) change the log, getters
//! change nothing, and `poll_op` / `poll_event` are drained after each turn's inputs: with nothing in flight all of a turn's
//! appends share one group. `append` follows a `room` that said yes and cannot fail.

mod background;
mod config;
mod loads;
mod lookups;
mod names;
mod read;
mod reader;
mod scan;

pub use config::{ConfigFault, LogConfig};
pub use read::Read;
pub use reader::{ReadFault, ReadTicket};
pub use scan::{Scan, ScanCursor};

pub use crate::catalog::{Partition, PartitionSlot, Streaming};

use crate::catalog::{Catalog, Change, ProducerStep, REPLAY_RESIDENT_MAX, StreamStep};
use crate::commit::{CommitEvent, CommitStart, Filled, Pipeline};
use crate::dedupe::{HotKeys, SeenEvent};
use crate::disk::{DiskDone, DiskFault, DiskOp, OpId};
use crate::ids::{Epoch, HashKey, LogId, LogSeq, Offset, PartitionId, SliceId, SliceSeq};
use crate::live::LiveIndex;
use crate::recluster::CLUSTERED;
use crate::record::{
    DataKind, EntryView, EventBody, JobView, Kind, MarkerBody, NO_OFFSET, Parts, RECORD_EVENTS_MAX, RecordHead,
    RecordView, encode_parts, parts_bytes_max, text_bytes,
};
use crate::shelf::Shelf;
use crate::sidecar::{Contents, SidecarIndex};
use background::Background;
use loads::Loads;
use lookups::Lookups;
use reader::{Outcome, Purpose, Reader};
use std::collections::VecDeque;

/// What [`Log::open`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Open {
    /// In memory. The slot stays valid until the partition is evicted: pin it, or open it again in each turn.
    Ready(PartitionSlot),
    /// Its state is being read; [`LogEvent::Loaded`] tells when to open it again.
    Loading,
    /// No such session, and none was to be made.
    Absent,
    /// No memory for one more partition, or too many are loading: try again after a checkpoint or a load.
    Full,
    /// Another session has the same 128-bit hash. Never by chance: refuse.
    Collision,
}

/// Whether an event was appended before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// No: append it.
    No,
    /// Yes.
    Yes {
        /// Its offset.
        offset: Offset,
        /// Hash of what it said; another one means the message id was reused.
        body_hash: u64,
        /// It is durable; if not, the answer to the repeat waits for that.
        committed: bool,
    },
    /// Perhaps: a table is being read; [`LogEvent::Looked`] tells when to ask again.
    Looking,
}

/// Numbers given to what was appended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    /// Offset of the first event; of the next one, if there were only markers.
    pub offset: Offset,
    /// Slice sequence of the first event, likewise.
    pub slice_seq: SliceSeq,
    /// Place of the record in the log: committed once [`LogEvent::Committed`] goes beyond it.
    pub log_seq: LogSeq,
}

/// What the log reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogEvent {
    /// Every record below is durable, and readers see it. Walk [`Log::committed_records`] before the next append.
    Committed {
        /// First log sequence that is not.
        through: LogSeq,
    },
    /// [`Log::open`] has an answer now, or never will.
    Loaded {
        /// Partition.
        id: PartitionId,
        /// The state could not be read: refuse what waits for it.
        fault: Option<ReadFault>,
    },
    /// [`Log::dedupe`] has an answer now, or never will.
    Looked {
        /// Partition.
        id: PartitionId,
        /// Key asked for.
        key: u128,
        /// The table could not be read: refuse what waits for it.
        fault: Option<ReadFault>,
    },
    /// A cold read finished.
    ReadReady(ReadTicket),
    /// Nothing will ever be committed again: the process reports and ends.
    Poisoned(DiskFault),
    /// The disk is full (true), or takes writes again.
    NoSpace(bool),
    /// A background job found damage. Nothing was lost by it; a human must look.
    Damaged(ReadFault),
    /// [`Log::stop`] is done: all is committed and marked. The process may end.
    Stopped,
}

/// Sizes and counts, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogStats {
    /// Records appended by this process.
    pub records: u64,
    /// Bytes of records appended by this process.
    pub record_bytes: u64,
    /// Partitions in memory.
    pub partitions: usize,
    /// Of these, changed since the checkpoint.
    pub partitions_dirty: usize,
    /// Segments that can be read.
    pub segments: usize,
    /// Of these, without a sidecar.
    pub segments_unindexed: usize,
    /// Cold reads begun.
    pub cold_reads: u64,
    /// Checkpoints made.
    pub checkpoints: u64,
}

/// What boot hands to a shard.
#[derive(Debug)]
pub struct RecoveredLog {
    /// Key of the folder.
    pub key: HashKey,
    /// Shard it is for.
    pub shard: u16,
    /// Shards of the folder; a slice belongs to shard `slice % shards`.
    pub shards: u16,
    /// Where appends go on.
    pub start: CommitStart,
    /// State of every partition the shard owns.
    pub catalog: Catalog,
    /// Number of the next checkpoint.
    pub next_checkpoint: u32,
    /// Number of the next clustered segment.
    pub next_clustered: u32,
    /// Old logs whose segments this shard expires.
    pub manages: Vec<LogId>,
    /// Sealed segments the shard reads: its own, and those of old logs that hold slices it owns now or that it manages; by
    /// log and number.
    pub segments: Vec<SidecarIndex>,
    /// Sessions of the checkpoint in which something waits for its time.
    pub streaming: Vec<Streaming>,
    /// Sessions of the checkpoint, by tenant.
    pub sessions: Vec<(Box<str>, u64)>,
}

impl RecoveredLog {
    /// The log of a new folder.
    pub fn empty(key: HashKey, log: LogId) -> RecoveredLog {
        RecoveredLog {
            key,
            shard: 0,
            shards: 1,
            start: CommitStart { log, next_segment: 0, previous: None, next_group: 1, next_log_seq: 0 },
            catalog: Catalog::new(log, REPLAY_RESIDENT_MAX, None),
            next_checkpoint: 0,
            next_clustered: CLUSTERED,
            manages: Vec::new(),
            segments: Vec::new(),
            streaming: Vec::new(),
            sessions: Vec::new(),
        }
    }
}

/// The log of one shard. Touched only by the shard's thread.
pub struct Log {
    config: LogConfig,
    key: HashKey,
    log: LogId,
    pipeline: Pipeline,
    catalog: Catalog,
    /// Indexes of segments without a sidecar, oldest first; the last is the one being filled.
    live: VecDeque<LiveIndex>,
    spare: Vec<LiveIndex>,
    reader: Reader,
    loads: Loads,
    background: Background,
    lookups: Lookups,
    hot_keys: HotKeys,
    /// Sealed segments.
    shelf: Shelf,
    shard: u16,
    shards: u16,
    ops: VecDeque<DiskOp>,
    events: VecDeque<LogEvent>,
    streaming: Vec<Streaming>,
    next_op: u64,
    stats: LogStats,
}

/// What an operation's number says about it: kind in the top byte, then what the kind needs.
const COMMIT: u64 = 1;
const READ: u64 = 2;
const JOB: u64 = 3;

/// Is the event one of a numbering producer? The numbers of a stream are its own.
fn numbers(event: &EventBody<'_>) -> bool {
    event.producer_seq != NO_OFFSET && event.data_kind < DataKind::Delta as u8
}

fn op_id(kind: u64, slot: u16, number: u64) -> OpId {
    OpId(kind << 56 | u64::from(slot) << 40 | number & ((1 << 40) - 1))
}

impl Log {
    /// Takes all its memory now; the steady path allocates nothing afterwards.
    ///
    /// # Panics
    /// If [`LogConfig::check`] would not pass.
    pub fn new(config: LogConfig, recovered: RecoveredLog) -> Log {
        if let Err(fault) = config.check() {
            panic!("{fault}");
        }
        let RecoveredLog {
            key,
            shard,
            shards,
            start,
            mut catalog,
            next_checkpoint,
            next_clustered,
            manages,
            segments,
            mut streaming,
            sessions,
        } = recovered;
        catalog.count_sessions(sessions);
        // Before residents beyond the bound go: what replay brought back is newer than what the checkpoint says.
        streaming.retain(|known| catalog.slot_of(key.partition(&known.tenant, &known.session)).is_none());
        streaming.extend(catalog.residents().filter_map(Streaming::of));
        catalog.recovered(start.log, config.partitions_resident_max);
        catalog.reserve();
        let shelf = Shelf::new(key, start.log, config.shelf(), manages, segments, next_clustered);
        Log {
            config,
            key,
            log: start.log,
            pipeline: Pipeline::new(config.commit(), key, start),
            catalog,
            live: VecDeque::with_capacity(config.segments_unindexed_max),
            spare: (0..2).map(|_| LiveIndex::new(config.segment_records_max)).collect(),
            reader: Reader::new(config.read_buffers, config.read_buffer_bytes, config.read_ahead_bytes),
            loads: Loads::new(config.partition_loads_max),
            background: Background::new(next_checkpoint),
            lookups: Lookups::new(),
            hot_keys: HotKeys::new(config.dedupe_hot_bytes_max),
            shelf,
            shard,
            shards,
            ops: VecDeque::with_capacity(config.read_buffers + 8),
            events: VecDeque::with_capacity(64),
            streaming,
            next_op: 0,
            stats: LogStats::default(),
        }
    }

    // ---- commands: sessions ----------------------------------------------------------------------------------------------

    /// Finds a session, or makes it under epoch `create` if there is none. A new one becomes durable with its first
    /// record.
    pub fn open(&mut self, id: PartitionId, tenant: &str, session: &str, create: Option<Epoch>) -> Open {
        self.open_partition(id, tenant, session, create)
    }

    /// State of an open session.
    ///
    /// # Panics
    /// If the slot is spent: the partition was evicted, because nobody had pinned it.
    pub fn partition(&self, slot: PartitionSlot) -> &Partition {
        self.catalog.get(slot).expect("the slot was evicted; pin what you hold")
    }

    /// Keeps the session in memory until the matching [`Log::unpin`].
    pub fn pin(&mut self, slot: PartitionSlot) {
        self.catalog.pin(slot);
    }

    /// Gives back one [`Log::pin`].
    pub fn unpin(&mut self, slot: PartitionSlot) {
        self.catalog.unpin(slot);
    }

    /// Whether the event with this dedupe key was appended before (in this incarnation of the session, within retention).
    pub fn dedupe(&mut self, slot: PartitionSlot, key: u128) -> Seen {
        self.seen(slot, key)
    }

    /// Sessions in which something waited for its time at the start; once.
    pub fn take_streaming(&mut self) -> Vec<Streaming> {
        std::mem::take(&mut self.streaming)
    }

    // ---- commands: append ------------------------------------------------------------------------------------------------

    /// Bytes to ask [`Log::room`] for before appending this body.
    pub fn bytes_of(&self, slot: PartitionSlot, events: &[EventBody<'_>], markers: &[MarkerBody<'_>]) -> usize {
        let partition = self.partition(slot);
        let parts = Parts { events, markers, ..Parts::default() };
        parts_bytes_max(partition.tenant(), partition.session(), &parts)
    }

    /// Whether a record of up to `bytes` can be appended now. No means: not in this turn (a group in flight, a segment being
    /// prepared), or, for longer, a full disk ([`Log::no_space`]) or a poisoned log.
    pub fn room(&self, bytes: usize) -> bool {
        bytes <= self.config.record_bytes_max()
            && self.pipeline.room(bytes)
            && !self.background.stopping()
            && (self.live.len() < self.config.segments_unindexed_max || !self.pipeline.rolls_next())
            && self.hot_keys.room(self.pipeline.next_segment(), RECORD_EVENTS_MAX)
    }

    /// What is left of the segment being filled may be all that can be appended for a while: the next one is still being
    /// prepared, or waits for older ones to be indexed. Who appends much is to leave it to the others.
    pub fn is_running_out(&self) -> bool {
        let is_barred = self.live.len() >= self.config.segments_unindexed_max || !self.hot_keys.has_spare();
        !self.no_space() && self.pipeline.is_running_out(is_barred)
    }

    /// Appends one record: its events and markers become durable together or not at all. [`Log::room`] said yes to
    /// [`Log::bytes_of`], and the partition has room for the markers and producers.
    pub fn append(
        &mut self,
        slot: PartitionSlot,
        events: &[EventBody<'_>],
        markers: &[MarkerBody<'_>],
        time_ms: u64,
    ) -> Appended {
        self.append_parts(slot, &Parts { events, markers, ..Parts::default() }, time_ms)
    }

    /// As [`Log::append`], with entries and jobs.
    pub fn append_parts(&mut self, slot: PartitionSlot, parts: &Parts<'_>, time_ms: u64) -> Appended {
        let Parts { events, markers, entries, jobs } = *parts;
        let place = self.pipeline.place();
        self.follow_segment();
        let log_seq = self.pipeline.next_log_seq();
        let partition = self.partition(slot);
        let (id, epoch, tail) = (partition.id(), partition.epoch(), partition.tail());
        let change = Change { segment: place.segment, log_seq, count: events.len() as u32 };
        let producers = (tail..).zip(events).filter(|(_, event)| numbers(event)).map(|(offset, event)| ProducerStep {
            client_id: event.client_id,
            epoch: event.producer_epoch,
            seq: event.producer_seq,
            offset,
        });
        let numbers =
            self.catalog.append(slot, change, markers.iter().map(|marker| (marker.name, marker.offset)), producers);
        for (offset, event) in (tail..).zip(events).filter(|(_, event)| event.data_kind >= DataKind::Delta as u8) {
            let step = StreamStep {
                name: event.message_id,
                topic: event.topic,
                seq: event.producer_seq,
                offset,
                text_bytes: text_bytes(event.data),
                body_hash: event.body_hash,
                closes: event.data_kind == DataKind::Close as u8,
            };
            self.catalog.streamed(slot, step);
        }
        entries.iter().for_each(|entry| self.catalog.entry_changed(slot, EntryView::from(entry), time_ms));
        jobs.iter().for_each(|job| self.catalog.job_stepped(slot, JobView::from(job), time_ms));
        let partition = self.catalog.get(slot).expect("appended to above");
        let (tenant, session) = (partition.tenant(), partition.session());
        let bytes = parts_bytes_max(tenant, session, parts);
        let head = RecordHead {
            length: 0,
            kind: Kind::Commit,
            slice: id.slice(),
            count: change.count,
            slice_seq: numbers.slice_seq,
            partition: id,
            offset: numbers.offset,
            epoch,
            time_ms,
            log_seq,
            body_bytes: 0,
        };
        self.pipeline.append(bytes, |out| encode_parts(&head, tenant, session, parts, out));
        let live = self.live.back_mut().expect("follow_segment made it");
        live.insert(id, numbers.offset, head.slice, numbers.slice_seq, change.count, place.position);
        for (offset, event) in (numbers.offset..).zip(events) {
            let key = u128::from(event.dedupe_low) | u128::from(event.dedupe_high) << 64;
            if key != 0 {
                self.hot_keys.insert(place.segment, key, SeenEvent { offset, body_hash: event.body_hash });
            }
        }
        if self.hot_keys.wants_roll() {
            self.pipeline.roll();
        }
        self.background.appended(bytes, time_ms);
        self.stats.records += 1;
        self.stats.record_bytes += bytes as u64;
        Appended { offset: numbers.offset, slice_seq: numbers.slice_seq, log_seq }
    }

    /// The pipeline may have gone over to its next segment: give that one an index.
    fn follow_segment(&mut self) {
        let Some(writing) = self.pipeline.writing() else { return };
        if self.live.back().map(LiveIndex::segment) == Some(writing.segment) {
            return;
        }
        let mut index = self.spare.pop().unwrap_or_else(|| LiveIndex::new(self.config.segment_records_max));
        index.reset(writing.segment, self.pipeline.next_log_seq());
        self.live.push_back(index);
        if let Some(Filled { segment, end }) = self.pipeline.poll_filled() {
            self.shelf.filled(segment, end);
        }
    }

    // ---- operations ------------------------------------------------------------------------------------------------------

    /// Next operation for the disk; drain it after each turn's inputs.
    pub fn poll_op(&mut self, now_us: u64) -> Option<DiskOp> {
        let op = op_id(COMMIT, 0, self.next_op);
        if let Some(commit) = self.pipeline.poll_op(now_us, op) {
            self.next_op += 1;
            return Some(commit);
        }
        self.poll_background(now_us);
        self.ops.pop_front()
    }

    /// When [`Log::poll_op`] will have something without any other call; microseconds of the caller's clock.
    pub fn next_deadline_us(&self) -> Option<u64> {
        match (self.pipeline.next_deadline_us(), self.background.next_deadline_us()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// What came of an operation.
    pub fn handle_done(&mut self, done: DiskDone) {
        match done {
            DiskDone::Commit { op, result } => {
                let before = self.pipeline.committed();
                self.pipeline.handle_done(op, result);
                self.committed(before);
            }
            DiskDone::Read { op: OpId(op), result } => {
                let (slot, generation) = ((op >> 40) as u16, op as u32);
                let (shard, shards) = (self.shard, self.shards);
                let owns = |slice: SliceId| slice.0 % shards == shard;
                let file = self.reader.file(slot);
                if result == Err(DiskFault::Missing) {
                    self.segment_gone(file);
                }
                match self.reader.handle_done(slot, generation, result, owns) {
                    Outcome::Ready(ticket) => {
                        self.events.push_back(LogEvent::ReadReady(ticket));
                        self.read_ahead(ticket);
                    }
                    Outcome::Table { purpose: Purpose::Page { load }, slot, result, .. } => {
                        self.page_read(load, slot, result);
                    }
                    Outcome::Table { purpose: Purpose::KeyIndex { lookup }, slot, result, .. } => {
                        self.key_block_read(lookup, slot, result);
                    }
                    Outcome::Table { purpose, slot, result, .. } => self.index_read(purpose, slot, result),
                    Outcome::Again(wanted) => {
                        self.ask(wanted);
                    }
                    Outcome::Nothing => {}
                }
                self.begin_loads();
                self.begin_lookups();
            }
            DiskDone::Job { op: OpId(op), result } => self.job_done(op >> 40 & 0xffff, result),
        }
        self.report_space();
    }

    /// The committed prefix may have moved: take it into the partitions, and report.
    fn committed(&mut self, before: LogSeq) {
        if self.pipeline.committed() != before {
            for (_, record) in self.pipeline.committed_records(before) {
                self.catalog.committed(record.partition(), record.epoch(), record.next_offset());
            }
        }
        while let Some(event) = self.pipeline.poll_event() {
            match event {
                CommitEvent::Committed { through } => self.events.push_back(LogEvent::Committed { through }),
                CommitEvent::Poisoned(fault) => self.events.push_back(LogEvent::Poisoned(fault)),
                // Reported with the other cause of a full disk, a segment that could not be prepared.
                CommitEvent::NoSpace(_) => {}
            }
        }
    }

    fn report_space(&mut self) {
        let no_space = self.pipeline.no_space() || (self.background.no_space() && !self.pipeline.has_segment());
        if self.background.reported_no_space != no_space {
            self.background.reported_no_space = no_space;
            self.events.push_back(LogEvent::NoSpace(no_space));
        }
    }

    /// Next thing to report.
    pub fn poll_event(&mut self) -> Option<LogEvent> {
        self.events.pop_front()
    }

    /// Records from `from` on that are committed and still in the hot tail, in log order: after [`LogEvent::Committed`], those
    /// that just were.
    pub fn committed_records(&self, from: LogSeq) -> impl Iterator<Item = RecordView<'_>> {
        self.pipeline.committed_records(from).map(|(_, record)| record)
    }

    // ---- getters ---------------------------------------------------------------------------------------------------------

    /// Its name.
    pub fn id(&self) -> LogId {
        self.log
    }

    /// Its bounds.
    pub fn config(&self) -> &LogConfig {
        &self.config
    }

    /// First log sequence that is not committed.
    pub fn committed_seq(&self) -> LogSeq {
        self.pipeline.committed()
    }

    /// First log sequence that was not given to the disk.
    pub fn closed_seq(&self) -> LogSeq {
        self.pipeline.closed()
    }

    /// Log sequence the next record gets.
    pub fn next_seq(&self) -> LogSeq {
        self.pipeline.next_log_seq()
    }

    /// Slice sequence the next event of `slice` gets.
    pub fn slice_next(&self, slice: SliceId) -> SliceSeq {
        self.catalog.slice_next(slice)
    }

    /// The last record of the session that is not durable; `None`: all of it is.
    pub fn unsettled(&self, slot: PartitionSlot) -> Option<LogSeq> {
        let change = self.partition(slot).last_change()?;
        (change.log == self.log && change.log_seq >= self.committed_seq()).then_some(change.log_seq)
    }

    /// The disk is full: appends are refused until it is not.
    pub fn no_space(&self) -> bool {
        self.background.reported_no_space
    }

    /// What broke, if something did.
    pub fn poisoned(&self) -> Option<DiskFault> {
        self.pipeline.poisoned()
    }

    /// Bytes that a `Commit` names.
    pub fn arena(&self, start: usize, len: usize) -> &[u8] {
        self.pipeline.arena(start, len)
    }

    /// Start of the memory that `Commit` operations name, and its length: for an executor that hands it to the kernel.
    pub fn arena_memory(&self) -> (*const u8, usize) {
        (self.pipeline.arena_ptr(), self.pipeline.arena_bytes())
    }

    /// The whole buffer that a `Read` names. It stays where it is while the read is in flight.
    pub fn read_buffer_mut(&mut self, slot: usize) -> &mut [u8] {
        self.reader.buffer_mut(slot)
    }

    /// Sizes and counts.
    pub fn stats(&self) -> LogStats {
        let catalog = self.catalog.stats();
        LogStats {
            partitions: catalog.resident,
            partitions_dirty: catalog.dirty,
            segments: self.live.len() + self.shelf.segments().count(),
            segments_unindexed: self.live.len(),
            ..self.stats
        }
    }

    /// Sessions of a tenant, in memory or not.
    pub fn sessions_of(&self, tenant: &str) -> u64 {
        self.catalog.sessions_of(tenant)
    }

    /// Tenants with sessions, in no particular order.
    pub fn tenants(&self) -> impl Iterator<Item = &str> {
        self.catalog.tenants()
    }

    /// Every partition in memory, in no particular order.
    pub fn residents(&self) -> impl Iterator<Item = &Partition> {
        self.catalog.residents()
    }

    /// What each sealed segment this shard reads holds, by log and number.
    pub fn sealed(&self) -> impl Iterator<Item = &Contents> {
        self.shelf.segments().map(|index| &index.contents)
    }
}
