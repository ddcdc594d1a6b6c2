//! The commit pipeline: one open group, a few in flight, and the contiguous durable prefix.
//!
//! ```text
//!   append ─► open ──close──► in flight ─┬─ done ─► committed moves over the contiguous prefix only
//!               ▲   (poll_op)            │
//!               │                        ├─ NoSpace ─► the write is asked for again later, appends are refused meanwhile
//!               └─ room() said yes       └─ any other fault ─► poisoned: nothing is ever committed again
//!
//!   log_seq:   ──────────────┼──────────────────┼──────────────────┼─►
//!                        committed      closed (in flight)     next_log_seq
//! ```
//! A group is closed when the disk has nothing of this log, or when a slot is free and the group is big enough or old
//! enough. Groups may become durable in any order; a reader sees only what is durable without a hole.
//!
//! A segment is left for the next one only when nothing is in flight: the successor's header then proves, by being
//! there, that every byte of the predecessor is durable.

use crate::arena::Arena;
use crate::checkpoint::LogPosition;
use crate::disk::{DiskFault, DiskOp, OpId};
use crate::group::{BLOCK_BYTES, GROUP_HEAD_BYTES, GroupHeader, GroupNumber, group_bytes};
use crate::ids::{HashKey, LogId, LogSeq, SegmentId};
use crate::record::RecordView;
use crate::segment::{SegmentHeader, SegmentKind};
use std::collections::VecDeque;

/// Bounds of the pipeline; see [`LogConfig`](crate::log::LogConfig), whose values these are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommitConfig {
    /// Largest group on disk, bytes, header included.
    pub group_bytes_max: usize,
    /// Groups that may be in flight.
    pub groups_in_flight_max: usize,
    /// With something in flight, a group of this many bytes is closed at once.
    pub group_close_bytes: usize,
    /// With something in flight, a group this old is closed. Microseconds.
    pub group_close_us: u64,
    /// Wait between two tries of a write that found no space. Microseconds.
    pub no_space_retry_us: u64,
    /// Size of a segment file.
    pub segment_bytes: u64,
    /// Most records of a segment.
    pub segment_records_max: u32,
    /// Bytes of the hot tail.
    pub hot_tail_bytes: usize,
    /// fdatasync after each group. Without it committed means "write completed".
    pub sync: bool,
}

impl CommitConfig {
    /// Largest record a group can hold.
    pub fn record_bytes_max(&self) -> usize {
        self.group_bytes_max - GROUP_HEAD_BYTES
    }
}

/// Where the pipeline goes on after a boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommitStart {
    /// Log.
    pub log: LogId,
    /// Number of its next segment; greater than that of every file the log ever had.
    pub next_segment: u32,
    /// Its last segment with a valid header, and where the valid bytes of that one end.
    pub previous: Option<(u32, u64)>,
    /// Number of its next group.
    pub next_group: GroupNumber,
    /// Its next log sequence.
    pub next_log_seq: LogSeq,
}

/// Place of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordPlace {
    /// Segment it is in.
    pub segment: SegmentId,
    /// Byte position in the file.
    pub position: u32,
}

/// A segment that got its last group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Filled {
    /// Which.
    pub segment: SegmentId,
    /// Where its valid bytes end.
    pub end: u64,
}

/// What the pipeline reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommitEvent {
    /// Every record below is committed.
    Committed {
        /// First log sequence that is not.
        through: LogSeq,
    },
    /// The disk is full (true), or takes writes again (false).
    NoSpace(bool),
    /// Nothing will ever be committed again.
    Poisoned(DiskFault),
}

/// The segment that is being filled.
#[derive(Clone, Copy, Debug)]
struct Writing {
    id: SegmentId,
    salt: u32,
    /// Position of the next group.
    end: u64,
    /// Records in closed groups.
    records: u32,
}

/// A group somewhere in the arena: open, in flight or committed.
#[derive(Clone, Copy, Debug)]
struct HotGroup {
    /// Place of its header in the arena.
    start: usize,
    /// Place in the file.
    segment: SegmentId,
    position: u64,
    first_log_seq: LogSeq,
    count: u32,
    records_bytes: usize,
}

impl HotGroup {
    fn end(&self) -> usize {
        self.start + group_bytes(self.records_bytes)
    }
}

#[derive(Clone, Copy, Debug)]
struct Open {
    group: HotGroup,
    /// Arena place of the segment header in front of it, if it is the first of a segment.
    segment_header: Option<usize>,
    /// When `poll_op` first saw it.
    since_us: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flight {
    /// The executor has it.
    Writing(OpId),
    /// Found no space; waits to be asked for again.
    Waiting,
    /// Durable, but an earlier one is not.
    Durable,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    group: GroupNumber,
    /// Log sequence after its last record.
    log_seq_end: LogSeq,
    segment: SegmentId,
    at: u64,
    start: usize,
    len: usize,
    state: Flight,
}

/// The pipeline of one log. Lives in the log's shard.
pub struct Pipeline {
    config: CommitConfig,
    key: HashKey,
    log: LogId,
    arena: Arena,
    /// First free place of the arena, block aligned.
    head: usize,
    /// Groups readable in the arena, oldest first; the open one is not among them.
    hot: VecDeque<HotGroup>,
    open: Option<Open>,
    in_flight: VecDeque<InFlight>,
    writing: Option<Writing>,
    /// What the next segment's header says of its predecessor.
    previous: Option<(u32, u64)>,
    prepared: Option<SegmentId>,
    /// The segment is to be left before it is full.
    roll: bool,
    preparing: bool,
    next_segment: u32,
    next_group: GroupNumber,
    next_log_seq: LogSeq,
    committed: LogSeq,
    /// Last group that is known durable in this log.
    durable_group: GroupNumber,
    retry_at_us: Option<u64>,
    no_space: bool,
    poisoned: Option<DiskFault>,
    events: VecDeque<CommitEvent>,
    filled: Option<Filled>,
}

impl Pipeline {
    /// Allocates the hot tail; after this nothing here allocates.
    ///
    /// # Panics
    /// If the bounds contradict each other (`LogConfig::check` says it politely).
    pub fn new(config: CommitConfig, key: HashKey, start: CommitStart) -> Pipeline {
        let group_run = config.group_bytes_max + BLOCK_BYTES;
        // In flight, open, and what a wrap leaves unused: the open group can never meet an uncommitted one.
        assert!(
            config.hot_tail_bytes >= group_run * (config.groups_in_flight_max + 3),
            "hot tail holds too few groups"
        );
        assert!(
            config.group_bytes_max.is_multiple_of(BLOCK_BYTES) && config.groups_in_flight_max > 0,
            "groups are whole blocks, and one may be in flight"
        );
        assert!(
            config.segment_bytes >= (group_run + BLOCK_BYTES) as u64 && config.segment_bytes <= u64::from(u32::MAX),
            "a segment holds a header and a group, and its positions are 32 bits"
        );
        let arena = Arena::new(config.hot_tail_bytes);
        let groups_max = arena.len() / BLOCK_BYTES;
        Pipeline {
            config,
            key,
            log: start.log,
            arena,
            head: 0,
            hot: VecDeque::with_capacity(groups_max),
            open: None,
            in_flight: VecDeque::with_capacity(config.groups_in_flight_max),
            writing: None,
            previous: start.previous,
            prepared: None,
            roll: false,
            preparing: false,
            next_segment: start.next_segment,
            next_group: start.next_group,
            next_log_seq: start.next_log_seq,
            committed: start.next_log_seq,
            durable_group: start.next_group - 1,
            retry_at_us: None,
            no_space: false,
            poisoned: None,
            events: VecDeque::with_capacity(8),
            filled: None,
        }
    }

    /// Whether a record of up to `bytes` can be appended now. False is a matter of time (a group in flight, a segment being
    /// prepared, a full disk), unless `bytes` exceeds [`CommitConfig::record_bytes_max`] or the log is poisoned.
    pub fn room(&self, bytes: usize) -> bool {
        if self.poisoned.is_some() || self.no_space || bytes > self.config.record_bytes_max() {
            return false;
        }
        match &self.open {
            Some(open) => {
                let records = self.writing.as_ref().map_or(0, |writing| writing.records) + open.group.count;
                open.group.records_bytes + bytes <= self.config.record_bytes_max()
                    && records < self.config.segment_records_max
            }
            None => self.segment_takes_group() || (self.prepared.is_some() && self.in_flight.is_empty()),
        }
    }

    fn segment_takes_group(&self) -> bool {
        !self.roll
            && self.writing.as_ref().is_some_and(|writing| {
                writing.end + self.config.group_bytes_max as u64 <= self.config.segment_bytes
                    && writing.records < self.config.segment_records_max
            })
    }

    /// Less than an eighth of the segment being filled is left, and the next one is not there or may not be begun (`is_barred`).
    pub fn is_running_out(&self, is_barred: bool) -> bool {
        let Some(writing) = self.writing.as_ref() else { return false };
        let (open_bytes, open_records) =
            self.open.as_ref().map_or((0, 0), |open| (open.group.records_bytes as u64, open.group.count));
        let bytes_left = self.config.segment_bytes.saturating_sub(writing.end + open_bytes);
        let records_left = self.config.segment_records_max.saturating_sub(writing.records + open_records);
        let is_near = self.roll
            || bytes_left < self.config.segment_bytes / 8
            || records_left < self.config.segment_records_max / 8;
        is_near && (is_barred || self.prepared.is_none())
    }

    /// Place the next record will have, opening a group (and a segment) for it. [`Pipeline::room`] said yes.
    pub fn place(&mut self) -> RecordPlace {
        if self.open.is_none() {
            self.open_group();
        }
        let group = &self.open.as_ref().expect("opened above").group;
        RecordPlace {
            segment: group.segment,
            position: (group.position as usize + GROUP_HEAD_BYTES + group.records_bytes) as u32,
        }
    }

    /// Appends one record: `encode` writes at most `bytes` into the open group and returns how many. [`Pipeline::room`]
    /// said yes to `bytes`.
    pub fn append(&mut self, bytes: usize, encode: impl FnOnce(&mut [u8]) -> usize) -> RecordPlace {
        debug_assert!(self.room(bytes));
        let place = self.place();
        let group = self.open.as_ref().expect("place opens").group;
        let at = group.start + GROUP_HEAD_BYTES + group.records_bytes;
        self.forget_hot(at, at + bytes.next_multiple_of(BLOCK_BYTES) + BLOCK_BYTES);
        let written = encode(self.arena.bytes_mut(at, bytes));
        let open = self.open.as_mut().expect("place opens");
        open.group.records_bytes += written;
        open.group.count += 1;
        self.next_log_seq += 1;
        place
    }

    fn open_group(&mut self) {
        if !self.segment_takes_group() {
            assert!(self.in_flight.is_empty(), "a segment is left only when it is wholly durable");
            if let Some(full) = self.writing.take() {
                self.previous = Some((full.id.number, full.end));
                self.filled = Some(Filled { segment: full.id, end: full.end });
            }
            let id = self.prepared.take().expect("room() saw a prepared segment");
            self.roll = false;
            self.writing = Some(Writing { id, salt: self.key.segment_salt(id), end: 0, records: 0 });
        }
        let writing = self.writing.as_mut().expect("set above");
        let header_bytes = if writing.end == 0 { BLOCK_BYTES } else { 0 };
        if self.head + header_bytes + self.config.group_bytes_max > self.arena.len() {
            // What lies between here and the end was hot; it is the oldest and goes when the ring comes round.
            let (head, len) = (self.head, self.arena.len());
            self.forget_hot(head, len);
            self.head = 0;
        }
        let writing = self.writing.as_mut().expect("set above");
        let segment_header = (writing.end == 0).then_some(self.head);
        let group = HotGroup {
            start: self.head + header_bytes,
            segment: writing.id,
            position: writing.end + header_bytes as u64,
            first_log_seq: self.next_log_seq,
            count: 0,
            records_bytes: 0,
        };
        self.open = Some(Open { group, segment_header, since_us: None });
        self.forget_hot(group.start - header_bytes, group.start + BLOCK_BYTES);
    }

    /// Groups that overlap `from..to` of the arena are about to be overwritten: nobody finds them any more.
    fn forget_hot(&mut self, from: usize, to: usize) {
        while let Some(group) = self.hot.front()
            && group.start < to
            && group.end() > from
        {
            debug_assert!(
                group.first_log_seq + u64::from(group.count) <= self.committed,
                "overwrites what is in flight"
            );
            self.hot.pop_front();
        }
    }

    /// Next operation, if one is due. `op` names it.
    pub fn poll_op(&mut self, now_us: u64, op: OpId) -> Option<DiskOp> {
        if self.poisoned.is_some() {
            return None;
        }
        if self.no_space {
            let at = *self.retry_at_us.get_or_insert(now_us + self.config.no_space_retry_us);
            if now_us < at {
                return None;
            }
            let waiting = self.in_flight.iter_mut().find(|flight| flight.state == Flight::Waiting)?;
            waiting.state = Flight::Writing(op);
            self.retry_at_us = None;
            let (segment, at, start, len) = (waiting.segment, waiting.at, waiting.start, waiting.len);
            return Some(DiskOp::Commit { op, segment, at, start, len, sync: self.config.sync });
        }
        let open = self.open.as_mut()?;
        let since_us = *open.since_us.get_or_insert(now_us);
        let due = self.in_flight.is_empty()
            || open.group.records_bytes + GROUP_HEAD_BYTES >= self.config.group_close_bytes
            || now_us >= since_us + self.config.group_close_us;
        if !due || self.in_flight.len() >= self.config.groups_in_flight_max {
            return None;
        }
        Some(self.close_group(op))
    }

    fn close_group(&mut self, op: OpId) -> DiskOp {
        let Open { group, segment_header, .. } = self.open.take().expect("the caller saw it");
        let writing = self.writing.as_mut().expect("a group is open in it");
        let disk_bytes = group_bytes(group.records_bytes);
        if let Some(at) = segment_header {
            let header = SegmentHeader {
                segment: writing.id,
                kind: SegmentKind::Appended,
                unsynced: !self.config.sync,
                previous: self.previous,
                bytes: self.config.segment_bytes,
                first_group: self.next_group,
                first_log_seq: group.first_log_seq,
                salt: writing.salt,
            };
            header.put(self.arena.bytes_mut(at, BLOCK_BYTES));
        }
        let header = GroupHeader {
            group_bytes: disk_bytes as u32,
            records_bytes: group.records_bytes as u32,
            count: group.count,
            segment: group.segment,
            position: group.position,
            group: self.next_group,
            first_log_seq: group.first_log_seq,
            durable_through: if self.config.sync { self.durable_group } else { 0 },
            salt: writing.salt,
        };
        let bytes = self.arena.bytes_mut(group.start, disk_bytes);
        header.put(bytes);
        bytes[GROUP_HEAD_BYTES + group.records_bytes..].fill(0);

        let start = segment_header.unwrap_or(group.start);
        let at = if segment_header.is_some() { 0 } else { group.position };
        let len = group.start + disk_bytes - start;
        writing.end = group.position + disk_bytes as u64;
        writing.records += group.count;
        self.head = group.start + disk_bytes;
        self.hot.push_back(group);
        self.in_flight.push_back(InFlight {
            group: self.next_group,
            log_seq_end: group.first_log_seq + u64::from(group.count),
            segment: group.segment,
            at,
            start,
            len,
            state: Flight::Writing(op),
        });
        self.next_group += 1;
        DiskOp::Commit { op, segment: group.segment, at, start, len, sync: self.config.sync }
    }

    /// A commit came back. Unknown operations (of before a poisoning) are ignored.
    pub fn handle_done(&mut self, op: OpId, result: Result<(), DiskFault>) {
        if self.poisoned.is_some() {
            return;
        }
        let Some(flight) = self.in_flight.iter_mut().find(|flight| flight.state == Flight::Writing(op)) else { return };
        match result {
            Ok(()) => flight.state = Flight::Durable,
            Err(DiskFault::NoSpace) => {
                flight.state = Flight::Waiting;
                if !self.no_space {
                    self.no_space = true;
                    self.retry_at_us = None;
                    self.events.push_back(CommitEvent::NoSpace(true));
                }
                return;
            }
            Err(fault) => return self.poison(fault),
        }
        let before = self.committed;
        while let Some(first) = self.in_flight.front()
            && first.state == Flight::Durable
        {
            self.committed = first.log_seq_end;
            self.durable_group = first.group;
            self.in_flight.pop_front();
        }
        if self.no_space && !self.in_flight.iter().any(|flight| flight.state == Flight::Waiting) {
            self.no_space = false;
            self.events.push_back(CommitEvent::NoSpace(false));
        }
        if self.committed != before {
            match self.events.back_mut() {
                // Consecutive moves nobody has looked at yet are one move.
                Some(CommitEvent::Committed { through }) => *through = self.committed,
                _ => self.events.push_back(CommitEvent::Committed { through: self.committed }),
            }
        }
    }

    /// The disk broke elsewhere (a sync of another file of this log): commit nothing more.
    pub fn poison(&mut self, fault: DiskFault) {
        if self.poisoned.is_none() {
            self.poisoned = Some(fault);
            self.events.push_back(CommitEvent::Poisoned(fault));
        }
    }

    /// Next thing to report.
    pub fn poll_event(&mut self) -> Option<CommitEvent> {
        self.events.pop_front()
    }

    /// The segment that got its last group, once.
    pub fn poll_filled(&mut self) -> Option<Filled> {
        self.filled.take()
    }

    /// Leaves the segment for good, if nothing is open or in flight: no record follows in this life of the log.
    pub fn leave_segment(&mut self) -> Option<Filled> {
        let full = if self.idle() { self.writing.take() } else { None }?;
        self.roll = false;
        self.previous = Some((full.id.number, full.end));
        Some(Filled { segment: full.id, end: full.end })
    }

    /// Segment to prepare, one ahead of the one in use; answered by [`Pipeline::handle_prepared`].
    pub fn poll_prepare(&mut self) -> Option<SegmentId> {
        if self.prepared.is_some() || self.preparing || self.poisoned.is_some() {
            return None;
        }
        let segment = SegmentId { log: self.log, number: self.next_segment };
        self.next_segment += 1;
        self.preparing = true;
        Some(segment)
    }

    /// A segment is ready, or could not be made; then the next [`Pipeline::poll_prepare`] asks for one under a new number,
    /// since nobody knows what became of the file.
    pub fn handle_prepared(&mut self, segment: Option<SegmentId>) {
        self.preparing = false;
        self.prepared = segment;
    }

    /// When [`Pipeline::poll_op`] will have something without any other call. Microseconds.
    pub fn next_deadline_us(&self) -> Option<u64> {
        if self.poisoned.is_some() {
            return None;
        }
        if self.no_space {
            let waiting = self.in_flight.iter().any(|flight| flight.state == Flight::Waiting);
            return waiting.then(|| self.retry_at_us.unwrap_or(0));
        }
        let open = self.open.as_ref()?;
        (self.in_flight.len() < self.config.groups_in_flight_max)
            .then(|| open.since_us.map_or(0, |since_us| since_us + self.config.group_close_us))
    }

    /// First log sequence that is not committed.
    pub fn committed(&self) -> LogSeq {
        self.committed
    }

    /// Log sequence the next record gets.
    pub fn next_log_seq(&self) -> LogSeq {
        self.next_log_seq
    }

    /// First log sequence that is in no closed group.
    pub fn closed(&self) -> LogSeq {
        self.open.as_ref().map_or(self.next_log_seq, |open| open.group.first_log_seq)
    }

    /// Number of the next group.
    pub fn next_group(&self) -> GroupNumber {
        self.next_group
    }

    /// Nothing open, nothing in flight: everything appended is committed.
    pub fn idle(&self) -> bool {
        self.open.is_none() && self.in_flight.is_empty()
    }

    /// Where the group that is open (or the next one, if none is) begins: replay from here meets everything not yet closed.
    pub fn position(&self) -> LogPosition {
        let (segment, at) = match (&self.open, &self.writing) {
            (Some(open), _) => (open.group.segment.number, open.group.position),
            (None, Some(writing)) => (writing.id.number, writing.end),
            (None, None) => (self.unwritten_segment().number, 0),
        };
        let log_seq = self.open.as_ref().map_or(self.next_log_seq, |open| open.group.first_log_seq);
        LogPosition { segment, at, group: self.next_group, log_seq }
    }

    /// The segment that follows the one being filled: prepared, on its way, or not yet asked for. Should the one on its way
    /// fail, a later number follows.
    fn unwritten_segment(&self) -> SegmentId {
        let number = if self.preparing { self.next_segment - 1 } else { self.next_segment };
        self.prepared.unwrap_or(SegmentId { log: self.log, number })
    }

    /// Leaves the segment after the group that is open, full or not.
    pub fn roll(&mut self) {
        self.roll = self.writing.is_some();
    }

    /// Segment the next record goes to (once there is room for it).
    pub fn next_segment(&self) -> SegmentId {
        match (&self.open, &self.writing, self.prepared) {
            (Some(open), ..) => open.group.segment,
            (None, Some(writing), _) if self.segment_takes_group() => writing.id,
            (None, ..) => self.unwritten_segment(),
        }
    }

    /// Whether the next append begins a segment.
    pub fn rolls_next(&self) -> bool {
        self.open.is_none() && !self.segment_takes_group()
    }

    /// Whether an open or future group has a segment to go to, without waiting for one to be prepared.
    pub fn has_segment(&self) -> bool {
        self.open.is_some() || self.prepared.is_some() || self.segment_takes_group()
    }

    /// Segment being filled, and the end of its closed groups.
    pub fn writing(&self) -> Option<Filled> {
        self.writing.as_ref().map(|writing| Filled { segment: writing.id, end: writing.end })
    }

    /// What broke, if something did.
    pub fn poisoned(&self) -> Option<DiskFault> {
        self.poisoned
    }

    /// Whether the disk is full.
    pub fn no_space(&self) -> bool {
        self.no_space
    }

    /// Bytes of the arena that an operation names.
    pub fn arena(&self, start: usize, len: usize) -> &[u8] {
        self.arena.bytes(start, len)
    }

    /// Start of the arena.
    pub fn arena_ptr(&self) -> *const u8 {
        self.arena.as_ptr()
    }

    /// Bytes of the arena.
    pub fn arena_bytes(&self) -> usize {
        self.arena.len()
    }

    /// Oldest log sequence still in the hot tail; `next_log_seq` if it is empty.
    pub fn hot_from(&self) -> LogSeq {
        match (self.hot.front(), &self.open) {
            (Some(group), _) => group.first_log_seq,
            (None, Some(open)) => open.group.first_log_seq,
            (None, None) => self.next_log_seq,
        }
    }

    /// The record `log_seq` at `position` of its segment, if it is still hot.
    pub fn hot_record(&self, log_seq: LogSeq, position: u32) -> Option<RecordView<'_>> {
        let group = match self.hot.partition_point(|group| group.first_log_seq <= log_seq) {
            0 => return None,
            after => &self.hot[after - 1],
        };
        let in_group = log_seq < group.first_log_seq + u64::from(group.count);
        let at = u64::from(position).checked_sub(group.position)? as usize;
        (in_group && at >= GROUP_HEAD_BYTES && at < GROUP_HEAD_BYTES + group.records_bytes)
            .then(|| self.arena.record(group.start + at))
    }

    /// Committed records from `from` on (or from the oldest hot one), in log order.
    pub fn committed_records(&self, from: LogSeq) -> impl Iterator<Item = (RecordPlace, RecordView<'_>)> {
        let first = self.hot.partition_point(|group| group.first_log_seq + u64::from(group.count) <= from);
        let committed = self.committed;
        self.hot
            .range(first..)
            .take_while(move |group| group.first_log_seq < committed)
            .flat_map(move |group| self.group_records(group))
            .filter(move |(_, record)| record.log_seq() >= from)
    }

    fn group_records<'a>(&'a self, group: &HotGroup) -> impl Iterator<Item = (RecordPlace, RecordView<'a>)> + use<'a> {
        let HotGroup { start, segment, position, records_bytes, .. } = *group;
        let mut at = GROUP_HEAD_BYTES;
        std::iter::from_fn(move || {
            if at >= GROUP_HEAD_BYTES + records_bytes {
                return None;
            }
            let record = self.arena.record(start + at);
            let place = RecordPlace { segment, position: (position as usize + at) as u32 };
            at += record.bytes().len();
            Some((place, record))
        })
    }
}
