//! When events passed which stage, for the last of them. The edge reads the clock; this only keeps what it was told.
//!
//! ```text
//!   edge    came ────── begun ────── decoded ──┬──────────────── appended ── closed ── committed ── delivered
//!           │ socket in │   decode   │         │ sent ── taken   │          │ group │   disk      │           │
//!           │           │            │         └─ mailbox ─┘     │          │ waits │             │  deliver  │
//!           │           │            │        append (room, lookups)        └─── commit ──────────┘           │
//!
//!   ring    [ trace | trace | trace | … ]  the last of the log, by log sequence
//!                └─ overwritten, and slow ─► [ trace | trace ]  kept longer
//! ```
//! A thing has happened by the first reading of the clock after it ([`Traces::clock`]), and a stage begins at the last reading before
//! it: each reading ends all that was done since the one before, so that nothing is timed by itself. What was appended without
//! a client's command (leases, lives of clients) has no stamps before `appended`.

use crate::ids::{Epoch, Offset, PartitionId};
use crate::mailbox::codec::{Reader, Writer};
use std::collections::VecDeque;
use storage::ids::LogSeq;
use storage::record::RecordView;

/// Records whose traces are kept.
pub const TRACES_MAX: usize = 8192;
/// Slow ones among those that were overwritten.
pub const SLOW_TRACES_MAX: usize = 1024;
/// From its coming to its delivery: what takes longer is kept longer.
pub const SLOW_NS: u64 = 10_000_000;
/// Commit groups between their closing and the walk.
const GROUPS_MAX: usize = 64;

/// When a command passed the stages before the log, nanoseconds of the process's clock; 0 = not passed, or not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stamps {
    /// Its bytes were there.
    pub came_ns: u64,
    /// The decoder got them.
    pub begun_ns: u64,
    /// It was a command.
    pub decoded_ns: u64,
    /// It was put into a mailbox.
    pub sent_ns: u64,
    /// The owner took it out.
    pub taken_ns: u64,
}

impl Stamps {
    pub(crate) fn put(self, w: &mut Writer<'_>) {
        w.u64(self.came_ns).u64(self.begun_ns).u64(self.decoded_ns).u64(self.sent_ns).u64(self.taken_ns);
    }

    pub(crate) fn get(r: &mut Reader<'_>) -> Self {
        Self { came_ns: r.u64(), begun_ns: r.u64(), decoded_ns: r.u64(), sent_ns: r.u64(), taken_ns: r.u64() }
    }
}

/// The way of one record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trace {
    /// Which.
    pub log_seq: LogSeq,
    /// Its session; of no meaning before it was walked.
    pub partition: PartitionId,
    /// The session's life.
    pub epoch: Epoch,
    /// Its first event.
    pub offset: Offset,
    /// Events in it.
    pub count: u32,
    /// Before the log.
    pub stamps: Stamps,
    /// It was in the open group.
    pub appended_ns: u64,
    /// Its group was given to the disk.
    pub closed_ns: u64,
    /// The disk had it.
    pub committed_ns: u64,
    /// It was in the send queues of all that could take it, and in the mailboxes of the other shards.
    pub delivered_ns: u64,
}

impl Trace {
    /// From its coming, or its append where it has none, to its delivery or to what it has reached.
    pub fn total_ns(&self) -> u64 {
        let from = if self.stamps.came_ns > 0 { self.stamps.came_ns } else { self.appended_ns };
        self.delivered_ns.max(self.committed_ns).saturating_sub(from)
    }

    fn holds(&self, partition: PartitionId, epoch: Epoch, offset: Offset) -> bool {
        self.partition == partition
            && self.epoch == epoch
            && (self.offset..self.offset + u64::from(self.count)).contains(&offset)
    }
}

/// A run of records that shared their commit.
#[derive(Clone, Copy)]
struct Group {
    /// Log sequence after its last.
    end: LogSeq,
    closed_ns: u64,
    /// 0 = under way.
    committed_ns: u64,
}

/// Bytes of one shard's traces at most.
pub const fn memory_bytes_max() -> usize {
    (TRACES_MAX + SLOW_TRACES_MAX) * size_of::<Trace>() + GROUPS_MAX * size_of::<Group>()
}

/// One per shard. Public for the bench of its cost; nobody but the shard has one.
pub struct Traces {
    ring: Vec<Trace>,
    slow: VecDeque<Trace>,
    /// Last reading of the clock.
    now_ns: u64,
    /// Of the command that is being handled.
    stamps: Stamps,
    /// First log sequence without a trace.
    next: LogSeq,
    /// First that has no `appended_ns`.
    unsettled: LogSeq,
    /// First that was not walked.
    unwalked: LogSeq,
    /// First that has no `delivered_ns`.
    undelivered: LogSeq,
    groups: VecDeque<Group>,
}

impl Traces {
    /// For a log that goes on at `next`.
    pub fn new(next: LogSeq) -> Self {
        Self {
            ring: Vec::with_capacity(TRACES_MAX),
            slow: VecDeque::with_capacity(SLOW_TRACES_MAX),
            now_ns: 0,
            stamps: Stamps::default(),
            next,
            unsettled: next,
            unwalked: next,
            undelivered: next,
            groups: VecDeque::with_capacity(GROUPS_MAX),
        }
    }

    /// Last reading of the clock.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// The clock was read: what was done since the last reading has happened by now. `next`: the log's next sequence.
    pub fn clock(&mut self, ns: u64, next: LogSeq) {
        self.now_ns = ns.max(self.now_ns);
        if self.unsettled == next && self.undelivered == self.unwalked {
            return;
        }
        self.appended(next);
        let now_ns = self.now_ns;
        for seq in self.kept(self.unsettled)..self.next {
            self.ring[seq as usize % TRACES_MAX].appended_ns = now_ns;
        }
        self.unsettled = self.next;
        for seq in self.kept(self.undelivered)..self.unwalked {
            self.ring[seq as usize % TRACES_MAX].delivered_ns = now_ns;
        }
        self.undelivered = self.unwalked;
    }

    /// A command comes, or none is handled any more.
    pub fn begin(&mut self, stamps: Stamps) {
        self.stamps = stamps;
    }

    /// Stamps of the command that is being handled.
    pub fn stamps(&self) -> Stamps {
        self.stamps
    }

    /// The same, to be filled in.
    pub fn stamps_mut(&mut self) -> &mut Stamps {
        &mut self.stamps
    }

    /// What was appended since the last call belongs to the command that is being handled.
    pub fn appended(&mut self, next: LogSeq) {
        // Of so many at once only the last are kept.
        let from = self.next.max(next.saturating_sub(TRACES_MAX as u64));
        for log_seq in from..next {
            let trace = Trace {
                log_seq,
                partition: PartitionId(0),
                epoch: 0,
                offset: 0,
                count: 0,
                stamps: self.stamps,
                appended_ns: 0,
                closed_ns: 0,
                committed_ns: 0,
                delivered_ns: 0,
            };
            let at = log_seq as usize % TRACES_MAX;
            while self.ring.len() <= at {
                // A log goes on anywhere in the ring; what lies before is empty.
                self.ring.push(Trace { log_seq: LogSeq::MAX, ..trace });
            }
            let old = std::mem::replace(&mut self.ring[at], trace);
            if old.count > 0 && old.total_ns() >= SLOW_NS {
                if self.slow.len() == SLOW_TRACES_MAX {
                    self.slow.pop_front();
                }
                self.slow.push_back(old);
            }
        }
        self.next = self.next.max(next);
    }

    /// A group was given to the disk: all below `end` is in it or in one before.
    pub fn closed(&mut self, end: LogSeq) {
        if self.groups.back().is_none_or(|last| last.end < end) && self.groups.len() < GROUPS_MAX {
            self.groups.push_back(Group { end, closed_ns: self.now_ns, committed_ns: 0 });
        }
    }

    /// All below `end` is durable.
    pub fn committed(&mut self, end: LogSeq) {
        let now_ns = self.now_ns;
        for group in self.groups.iter_mut().filter(|group| group.end <= end && group.committed_ns == 0) {
            group.committed_ns = now_ns;
        }
    }

    /// A committed record is walked: returns its trace as far as it has come.
    pub fn walk(&mut self, record: RecordView<'_>) -> Option<&Trace> {
        let seq = record.log_seq();
        self.unwalked = seq + 1;
        while self.groups.front().is_some_and(|group| group.end <= seq) {
            self.groups.pop_front();
        }
        let group = self.groups.front().copied();
        let trace = self.ring.get_mut(seq as usize % TRACES_MAX).filter(|trace| trace.log_seq == seq)?;
        (trace.partition, trace.epoch) = (record.partition(), record.epoch());
        (trace.offset, trace.count) = (record.offset(), record.count());
        if let Some(group) = group {
            (trace.closed_ns, trace.committed_ns) = (group.closed_ns, group.committed_ns);
        }
        Some(trace)
    }

    /// The trace of an event, if it is kept.
    pub fn find(&self, partition: PartitionId, epoch: Epoch, offset: Offset) -> Option<&Trace> {
        self.ring.iter().chain(&self.slow).find(|trace| trace.holds(partition, epoch, offset))
    }

    /// The oldest sequence from `seq` on that is still in the ring.
    fn kept(&self, seq: LogSeq) -> LogSeq {
        seq.max(self.next.saturating_sub(TRACES_MAX as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(traces: &Traces, seq: LogSeq) -> Trace {
        traces.ring[seq as usize % TRACES_MAX]
    }

    #[test]
    fn a_thing_has_happened_by_the_next_reading() {
        let mut traces = Traces::new(5);
        traces.clock(100, 5);
        traces.begin(Stamps { came_ns: 90, begun_ns: 100, ..Stamps::default() });
        traces.stamps_mut().decoded_ns = 110;
        traces.clock(110, 5);
        traces.appended(6);
        traces.clock(150, 6);
        let trace = at(&traces, 5);
        assert_eq!((trace.stamps.came_ns, trace.stamps.decoded_ns, trace.appended_ns), (90, 110, 150));
        traces.begin(Stamps::default());
        traces.clock(160, 8);
        assert_eq!((at(&traces, 7).stamps.came_ns, at(&traces, 7).appended_ns), (0, 160), "nobody's command");
        assert_eq!(at(&traces, 5).appended_ns, 150, "stands");
        assert_eq!(at(&traces, 4).log_seq, LogSeq::MAX, "of before this process");
    }

    #[test]
    fn the_ring_goes_round_and_keeps_the_slow_ones() {
        let mut traces = Traces::new(0);
        for seq in 0..3 * TRACES_MAX as u64 {
            traces.begin(Stamps { came_ns: seq * 100 + 1, ..Stamps::default() });
            traces.clock(seq * 100 + 50, seq + 1);
            let slow = u64::from(seq % 100 == 7) * SLOW_NS;
            let trace = &mut traces.ring[seq as usize % TRACES_MAX];
            (trace.partition, trace.offset, trace.count) = (PartitionId(1), seq, 1);
            trace.delivered_ns = seq * 100 + 60 + slow;
        }
        assert_eq!(traces.ring.len(), TRACES_MAX);
        assert!(traces.find(PartitionId(1), 0, 8).is_none(), "long gone");
        assert!(traces.find(PartitionId(1), 0, 7).is_some(), "slow, hence kept");
        assert!(traces.find(PartitionId(1), 0, 3 * TRACES_MAX as u64 - 1).is_some());
        assert!(traces.slow.len() <= SLOW_TRACES_MAX);
    }

    #[test]
    fn a_jump_longer_than_the_ring_keeps_its_end() {
        let mut traces = Traces::new(0);
        let end = 5 * TRACES_MAX as u64 + 3;
        traces.clock(10, end);
        assert_eq!(at(&traces, end - 1).log_seq, end - 1);
        assert_eq!((traces.ring.len(), traces.next), (TRACES_MAX, end));
    }
}
