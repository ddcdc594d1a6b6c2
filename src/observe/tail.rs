//! One shard's observer: the reactor tells it what happens, it tells the control plane when asked.

use super::recorder::Recorder;
use super::steps::{Stall, Stalls};
use super::turns::Turns;
use super::{Stage, Step};
use shards::ids::ShardId;
use shards::refusal::Refusal;
use shards::traces::Trace;
use storage::ids::LogSeq;
use storage::record::RecordView;

/// Records of one walk whose delivery is timed together with its end; of more the rest counts as delivered at once.
const PENDING_MAX: usize = 8192;

/// A record that is being delivered.
#[derive(Clone, Copy, Debug)]
struct Pending {
    /// When it came, or was appended.
    from_ns: u64,
    committed_ns: u64,
    count: u32,
    tenant: u32,
}

pub(super) const fn memory_bytes_max() -> usize {
    PENDING_MAX * size_of::<Pending>()
}

/// What a shard has at the moment, and has counted since its start. Filled by the reactor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gauges {
    /// Sockets held.
    pub connections: u64,
    /// Clients of the core.
    pub clients: u64,
    /// Connections whose input waits for room.
    pub inputs_waiting: u64,
    /// Sockets accepted; taken from peers; WebSockets opened; newcomers told to come back.
    pub accepted: u64,
    /// See `accepted`.
    pub adopted: u64,
    /// See `accepted`.
    pub opened: u64,
    /// See `accepted`.
    pub turned_away: u64,
    /// Sends asked of the kernel.
    pub sends: u64,
    /// Receives that found no buffer.
    pub buffers_short: u64,
    /// Chunks of the send pool in use.
    pub send_chunks: u64,
    /// Records appended by this process, and their bytes.
    pub records: u64,
    /// See `records`.
    pub record_bytes: u64,
    /// Records that are appended and not durable.
    pub uncommitted: u64,
    /// Sessions in memory; of these, changed since the checkpoint.
    pub sessions: u64,
    /// See `sessions`.
    pub sessions_dirty: u64,
    /// Log files that can be read.
    pub segments: u64,
    /// Reads from disk.
    pub cold_reads: u64,
    /// Checkpoints made.
    pub checkpoints: u64,
    /// The disk is full.
    pub no_space: bool,
    /// Files held open.
    pub open_files: u64,
    /// Messages in the lanes to other shards, and from them.
    pub mail_out: u64,
    /// See `mail_out`.
    pub mail_in: u64,
    /// Live streams to a peer that were interrupted by a full lane.
    pub mail_missed: u64,
    /// Reads that met damage.
    pub damaged_reads: u64,
    /// The last step over its budget.
    pub stall: Option<Stall>,
}

/// One per shard, touched only by its thread.
#[derive(Debug)]
pub struct Tail {
    recorder: Box<Recorder>,
    turns: Turns,
    stalls: Stalls,
    pending: Vec<Pending>,
    /// Last reading of the clock, and that at which the turn began.
    at_ns: u64,
    began_ns: u64,
    steps_ns: [u64; Step::ALL.len()],
    wall_ms: u64,
    stamp_us: u32,
    /// Records walked: before this turn, and so far.
    walked: (LogSeq, LogSeq),
}

impl Tail {
    /// A step that takes longer than `step_us_max` is a stall.
    pub fn new(shard: ShardId, step_us_max: u64) -> Self {
        Self {
            recorder: Box::default(),
            turns: Turns::new(),
            stalls: Stalls::new(shard, step_us_max.saturating_mul(1000)),
            pending: Vec::with_capacity(PENDING_MAX),
            at_ns: 0,
            began_ns: 0,
            steps_ns: [0; Step::ALL.len()],
            wall_ms: 0,
            stamp_us: 0,
            walked: (0, 0),
        }
    }

    /// A turn begins. Returns what its bytes are stamped with in the send queues.
    pub fn turn_begins(&mut self, ns: u64, wall_ms: u64) -> u32 {
        (self.at_ns, self.began_ns, self.wall_ms) = (ns, ns, wall_ms);
        self.stamp_us = (ns / 1000) as u32;
        self.walked.0 = self.walked.1;
        self.stamp_us
    }

    /// A step has ended.
    #[inline]
    pub fn step(&mut self, step: Step, ns: u64) {
        let took_ns = ns.saturating_sub(self.at_ns);
        self.at_ns = ns;
        self.steps_ns[step as usize] = took_ns;
        if self.stalls.look(step, took_ns, ns, self.wall_ms) {
            self.recorder.stalls[step as usize] += 1;
        }
    }

    /// All steps of a turn that did something have ended.
    pub fn turn_worked(&mut self) {
        let recorder = &mut *self.recorder;
        for (histogram, ns) in recorder.steps.iter_mut().zip(self.steps_ns) {
            histogram.record(ns);
        }
        let took_ns = self.at_ns - self.began_ns;
        recorder.turns.record(took_ns);
        recorder.busy_ns += took_ns;
    }

    /// The turn did nothing, and the shard has rested until now.
    pub fn turn_rested(&mut self, ns: u64) {
        self.recorder.idle_ns += ns.saturating_sub(self.began_ns);
    }

    /// A committed record is being delivered.
    #[inline]
    pub fn walked(&mut self, trace: &Trace, record: RecordView<'_>) {
        self.walked.1 = trace.log_seq + 1;
        let count = u64::from(record.count());
        if count == 0 {
            return;
        }
        let recorder = &mut *self.recorder;
        let stamps = trace.stamps;
        let mut from_ns = trace.appended_ns;
        if stamps.came_ns > 0 {
            from_ns = stamps.came_ns;
            let append_ns = stamps.decoded_ns.max(stamps.taken_ns);
            let mut note = |stage: Stage, from: u64, to: u64| {
                recorder.stages[stage as usize].record_n(to.saturating_sub(from), count);
            };
            note(Stage::SocketIn, stamps.came_ns, stamps.begun_ns);
            note(Stage::Decode, stamps.begun_ns, stamps.decoded_ns);
            note(Stage::Append, append_ns, trace.appended_ns);
        }
        if trace.committed_ns > 0 {
            let ns = trace.committed_ns.saturating_sub(trace.appended_ns);
            recorder.stages[Stage::Commit as usize].record_n(ns, count);
        }
        let place = recorder.tenants.place(record.tenant());
        if place.taken {
            let gone = place.number as u32;
            self.pending.iter_mut().filter(|pending| pending.tenant == gone).for_each(|pending| pending.tenant = 0);
        }
        let tenant = recorder.tenants.at(place.number);
        tenant.events += count;
        tenant.bytes += record.bytes().len() as u64;
        if self.pending.len() == PENDING_MAX {
            self.delivered(self.at_ns);
        }
        let committed_ns = if trace.committed_ns > 0 { trace.committed_ns } else { self.at_ns };
        self.pending.push(Pending { from_ns, committed_ns, count: record.count(), tenant: place.number as u32 });
    }

    /// All that was walked is in the send queues.
    pub fn delivered(&mut self, ns: u64) {
        let recorder = &mut *self.recorder;
        for pending in self.pending.drain(..) {
            let count = u64::from(pending.count);
            recorder.stages[Stage::Deliver as usize].record_n(ns.saturating_sub(pending.committed_ns), count);
            let way_ns = ns.saturating_sub(pending.from_ns);
            recorder.tenants.at(pending.tenant as usize).way.record_n(way_ns, count);
        }
    }

    /// A message of another shard was handled.
    #[inline]
    pub fn mail_waited(&mut self, us: u32) {
        self.recorder.stages[Stage::Mailbox as usize].record(u64::from(us) * 1000);
    }

    /// What the turn has queued goes to the kernel from now on.
    pub fn submits(&mut self) {
        let (from, to) = self.walked;
        self.turns.submit(self.stamp_us, self.at_ns, from, to);
    }

    /// The kernel has taken bytes whose first was queued under this stamp.
    pub fn sent(&mut self, stamp_us: u32, ns: u64) {
        let ns = match self.turns.taken(stamp_us, ns) {
            Some(submit_ns) => ns.saturating_sub(submit_ns),
            None => u64::from(((ns / 1000) as u32).wrapping_sub(stamp_us)) * 1000,
        };
        self.recorder.stages[Stage::SocketOut as usize].record(ns);
    }

    /// A client was told no.
    pub fn refused(&mut self, refusal: Refusal) {
        self.recorder.refused(refusal);
    }

    /// The last step over its budget.
    pub fn last_stall(&self) -> Option<Stall> {
        self.stalls.last()
    }

    /// When the bytes that a record caused were given to the kernel, and when the last of them was taken so far.
    pub fn out_of(&self, seq: LogSeq) -> Option<(u64, u64)> {
        self.turns.of(seq)
    }

    /// Goes on with an empty recorder and gives the full one away. Deliveries under way go on in the new one.
    pub fn swap(&mut self, empty: Box<Recorder>) -> Box<Recorder> {
        // Places of tenants are the recorder's own.
        self.delivered(self.at_ns);
        std::mem::replace(&mut self.recorder, empty)
    }
}
