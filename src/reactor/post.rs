//! The outbox: deliveries become frames here, once per event and shard.
//!
//! ```text
//!   EventView ─► cache? ── hit: shared ──► a pointer in the send queue of each further connection
//!                  └ miss: encode ─► copied into the send queue of the first
//! ```
//! Server frames carry no mask: equal bytes serve every subscriber. A frame is shared from its second subscriber on, so
//! that sessions with one subscriber do not fill blocks.

use crate::net::websocket::{Opcode, append_with};
use crate::net::{Class, Sends, Shared};
use crate::observe::{Stage, Tail, fault};
use crate::wire::encode;
use shards::ids::{CommandId, ConnectionId};
use shards::outbox::{
    DeadFrame, EntriesFrame, Gap, HistoryHead, JobFrame, Notice, Outbox, PageItem, PatternGap, RosterFrame, RunFrame,
    StreamFrame, VolatileEvent,
};
use shards::traces::Trace;
use storage::record::{EventView, RecordView};

/// Frames kept. Subscribers of one event are served close together, so few suffice.
const FRAMES: usize = 64;
/// A larger frame is not kept: sixty-four of these are the cache's bound.
const FRAME_BYTES_MAX: usize = 128 << 10;

/// Frames of recent events. One per shard, touched only by its thread.
pub struct Frames {
    slots: Vec<Frame>,
    scratch: Vec<u8>,
    /// The last frame about a roster, and where it is shared.
    roster: Vec<u8>,
    roster_shared: Option<Shared>,
}

#[derive(Default)]
struct Frame {
    slice: u16,
    /// 0 = empty; sequences begin at 1.
    seq: u64,
    payload_bytes: usize,
    bytes: Vec<u8>,
    shared: Option<Shared>,
}

impl Frames {
    /// An empty cache.
    pub fn new() -> Self {
        Self {
            slots: (0..FRAMES).map(|_| Frame::default()).collect(),
            scratch: Vec::new(),
            roster: Vec::new(),
            roster_shared: None,
        }
    }

    /// Most bytes the cache holds.
    pub const fn memory_bytes_max() -> usize {
        FRAMES * FRAME_BYTES_MAX
    }
}

impl Default for Frames {
    fn default() -> Self {
        Self::new()
    }
}

/// Where the core's deliveries go for the length of one step.
pub struct Post<'a> {
    /// Queues.
    pub sends: &'a mut Sends,
    /// Frames already encoded.
    pub frames: &'a mut Frames,
    /// Who observes.
    pub tail: &'a mut Tail,
}

impl Outbox for Post<'_> {
    fn room(&self, connection: ConnectionId) -> usize {
        self.sends.room(connection)
    }

    fn walked(&mut self, trace: &Trace, record: RecordView<'_>) {
        self.tail.walked(trace, record);
    }

    fn mail_waited(&mut self, us: u32) {
        self.tail.mail_waited(us);
    }

    fn event(&mut self, connection: ConnectionId, event: &EventView<'_>) -> usize {
        fault::pass(Stage::Deliver);
        let (slice, seq) = (event.slice().0, event.slice_seq());
        let frame = &mut self.frames.slots[(usize::from(slice) ^ seq as usize) % FRAMES];
        if (frame.slice, frame.seq) != (slice, seq) {
            frame.bytes.clear();
            frame.bytes.shrink_to(FRAME_BYTES_MAX);
            frame.payload_bytes = append_with(&mut frame.bytes, Opcode::Text, |out| encode::event(out, event));
            (frame.slice, frame.seq) = (slice, seq);
            frame.shared = None;
            self.sends.push(connection, &frame.bytes, Class::Delivery);
            return frame.payload_bytes;
        }
        if frame.shared.is_none_or(|shared| !self.sends.holds(shared)) {
            frame.shared = self.sends.share(&frame.bytes);
        }
        if !frame.shared.is_some_and(|shared| self.sends.push_shared(connection, shared)) {
            self.sends.push(connection, &frame.bytes, Class::Delivery);
        }
        frame.payload_bytes
    }

    fn volatile(&mut self, connection: ConnectionId, event: &VolatileEvent<'_>) -> usize {
        // Not kept: it has no name of its own that is unique over tenants, and a frame must never meet another's name.
        let out = &mut self.frames.scratch;
        out.clear();
        let payload_bytes = append_with(out, Opcode::Text, |out| encode::volatile(out, event));
        self.sends.push(connection, out, Class::Delivery);
        payload_bytes
    }

    fn streams(&mut self, connection: ConnectionId, frame: &StreamFrame<'_>) -> usize {
        let out = &mut self.frames.scratch;
        out.clear();
        let payload_bytes = append_with(out, Opcode::Text, |out| encode::streams(out, frame));
        self.sends.push(connection, out, Class::Delivery);
        payload_bytes
    }

    fn notice(&mut self, connection: ConnectionId, notice: &Notice<'_>) {
        let out = &mut self.frames.scratch;
        out.clear();
        append_with(out, Opcode::Text, |out| encode::notice(out, notice));
        self.sends.push_urgent(connection, out);
    }

    fn gap(&mut self, connection: ConnectionId, gap: &Gap<'_>) {
        let out = &mut self.frames.scratch;
        out.clear();
        append_with(out, Opcode::Text, |out| encode::gap(out, gap));
        self.sends.push(connection, out, Class::Delivery);
    }

    fn pattern_gap(&mut self, connection: ConnectionId, gap: &PatternGap) {
        let out = &mut self.frames.scratch;
        out.clear();
        append_with(out, Opcode::Text, |out| encode::pattern_gap(out, gap));
        self.sends.push(connection, out, Class::Delivery);
    }

    fn roster(&mut self, connection: ConnectionId, frame: &RosterFrame<'_>, again: bool) {
        let Frames { roster: bytes, roster_shared: shared, .. } = &mut *self.frames;
        if !again {
            bytes.clear();
            append_with(bytes, Opcode::Text, |out| encode::roster(out, frame));
            *shared = None;
            self.sends.push(connection, bytes, Class::Delivery);
            return;
        }
        if shared.is_none_or(|shared| !self.sends.holds(shared)) {
            *shared = self.sends.share(bytes);
        }
        if !shared.is_some_and(|shared| self.sends.push_shared(connection, shared)) {
            self.sends.push(connection, bytes, Class::Delivery);
        }
    }

    fn entries(&mut self, connection: ConnectionId, id: CommandId, frame: &EntriesFrame<'_>) {
        let out = &mut self.frames.scratch;
        out.clear();
        append_with(out, Opcode::Text, |out| encode::entries(out, &id, frame));
        self.sends.push(connection, out, Class::Delivery);
    }

    fn job(&mut self, connection: ConnectionId, frame: &JobFrame<'_>) {
        let out = &mut self.frames.scratch;
        out.clear();
        append_with(out, Opcode::Text, |out| encode::job(out, frame));
        self.sends.push(connection, out, Class::Delivery);
    }

    fn run(&mut self, connection: ConnectionId, frame: &RunFrame<'_>) {
        let out = &mut self.frames.scratch;
        out.clear();
        append_with(out, Opcode::Text, |out| encode::run(out, frame));
        self.sends.push(connection, out, Class::Delivery);
    }

    fn dead(&mut self, connection: ConnectionId, id: CommandId, frame: &DeadFrame<'_>) {
        let out = &mut self.frames.scratch;
        out.clear();
        append_with(out, Opcode::Text, |out| encode::dead(out, &id, frame));
        self.sends.push(connection, out, Class::Delivery);
    }

    fn history(
        &mut self,
        connection: ConnectionId,
        id: CommandId,
        head: &HistoryHead<'_>,
        items: &mut dyn Iterator<Item = PageItem<'_>>,
    ) {
        let out = &mut self.frames.scratch;
        out.clear();
        append_with(out, Opcode::Text, |out| encode::history(out, &id, head, items));
        self.sends.push(connection, out, Class::Delivery);
        self.frames.scratch.shrink_to(FRAME_BYTES_MAX);
    }
}
