//! What waits to be sent, for every connection of a shard.
//!
//! ```text
//!   Outbox, replies, pongs ──► push ──► chain of pieces ──► one send in flight ──► completed: pieces go back
//!
//!   queued bytes   0 ······ low ················· max ················· max + reserve
//!                  │ room > 0, deliveries come    │ replies only        │ beyond: the connection is closed
//!                  └ falling to low (half, or less if a delivery needs it) says "drained" to a core that was refused
//! ```
//! Urgent frames go before all that waits, between two frames: see [`urgent`](super::urgent).
//!
//! Everything a turn has for one connection is one send. A reader that does not read costs its bound and no more;
//! its events wait in the log, where a cursor points at them.

use super::blocks::Shared;
use super::pieces::{CHUNK_BYTES, NONE, PiecePool};
use super::urgent::Urgent;
use shards::ids::ConnectionId;
use std::cell::{Cell, RefCell};

/// Pieces of one send; the rest follows when it completed.
pub const SEND_PIECES_MAX: usize = 64;

/// Stamps of taken sends that are kept until somebody asks: more than a turn has completions.
const TAKEN_MAX: usize = 1024;

/// The kernel refuses more than this in one message anyway.
const _: () = assert!(SEND_PIECES_MAX <= 1024);

/// Bounds of the send side.
#[derive(Clone, Copy, Debug)]
pub struct SendLimits {
    /// Bytes a connection's queue takes before its reader counts as slow.
    pub connection_send_bytes_max: usize,
    /// Bytes above that which only replies and control frames may use.
    pub reply_reserve_bytes: usize,
    /// Largest delivery, framed.
    pub delivery_bytes_max: usize,
    /// Bytes of all queues of the shard.
    pub shard_send_bytes_max: usize,
}

/// What a push is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// An event or gap: the caller has seen room for it.
    Delivery,
    /// An answer to a command, or a control frame: may use the reserve.
    Reply,
}

/// One connection's queue: 56 bytes when idle.
#[derive(Clone, Debug)]
struct Queue {
    generation: u32,
    open: bool,
    dirty: bool,
    /// Was short of room of its own; to be told when it has drained.
    refused: Cell<bool>,
    /// Was short of room in the pool; stands in `Sends::starved`.
    starved: Cell<bool>,
    /// Said by the close path: nothing more is taken.
    finished: bool,
    head: u32,
    tail: u32,
    queued: u32,
    in_flight: u32,
    /// Bytes from the head to where the first whole frame begins.
    boundary: u32,
    /// Turn in which the first byte was queued that was not taken yet, and that in which the send in flight began.
    since_us: u32,
    begun_us: u32,
    urgent: Option<Box<Urgent>>,
}

const _: () = assert!(size_of::<Queue>() <= 56);

const fn empty() -> Queue {
    Queue {
        generation: 0,
        open: false,
        dirty: false,
        refused: Cell::new(false),
        starved: Cell::new(false),
        finished: false,
        head: NONE,
        tail: NONE,
        queued: 0,
        in_flight: 0,
        boundary: 0,
        since_us: 0,
        begun_us: 0,
        urgent: None,
    }
}

/// A run of bytes to be handed to the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// First byte.
    pub bytes: *const u8,
    /// Bytes.
    pub len: usize,
}

/// All send queues of a shard. One per shard, touched only by its thread.
pub struct Sends {
    pool: PiecePool,
    queues: Vec<Queue>,
    limits: SendLimits,
    /// Chunks that deliveries leave to replies.
    reserve_chunks: usize,
    dirty: Vec<ConnectionId>,
    /// Connections that were told "no room" because the pool was short, not their own queue.
    starved: RefCell<Vec<ConnectionId>>,
    /// Connections that need to be told that they have drained.
    drained: Vec<ConnectionId>,
    /// Connections that exceeded even the reserve.
    overrun: Vec<ConnectionId>,
    /// Stamp of this turn: microseconds, wrapping.
    stamp_us: u32,
    /// Stamps of bytes that the kernel has taken since somebody asked.
    taken: Vec<u32>,
}

impl Sends {
    /// Queues for `connections` slots.
    ///
    /// # Errors
    /// The memory cannot be had.
    pub fn new(connections: usize, limits: SendLimits) -> std::io::Result<Self> {
        let pool = PiecePool::new(limits.shard_send_bytes_max, connections)?;
        let reserve_chunks = pool.count() / 8;
        Ok(Self {
            pool,
            queues: vec![empty(); connections],
            limits,
            reserve_chunks,
            dirty: Vec::new(),
            starved: RefCell::new(Vec::new()),
            drained: Vec::new(),
            overrun: Vec::new(),
            stamp_us: 0,
            taken: Vec::with_capacity(TAKEN_MAX),
        })
    }

    /// A turn begins: what is queued in it has this stamp.
    pub fn turn_begins(&mut self, stamp_us: u32) {
        self.stamp_us = stamp_us;
    }

    /// Stamp of the first bytes of a send that was taken, one for each, until none.
    pub fn next_taken(&mut self) -> Option<u32> {
        self.taken.pop()
    }

    /// Something waits to be given to the kernel.
    pub fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Bytes that wait or are with the kernel, and the stamp of the first of them.
    pub fn queued_since(&self, id: ConnectionId) -> (usize, u32) {
        self.get(id).map_or((0, 0), |queue| (queue.queued as usize, queue.since_us))
    }

    /// Chunks in use.
    pub fn chunks_used(&self) -> usize {
        self.pool.count() - self.pool.free()
    }

    pub(super) fn open(&mut self, id: ConnectionId) {
        self.queues[id.slot as usize] = Queue { generation: id.generation, open: true, ..empty() };
    }

    /// Bytes the connection's queue still takes for deliveries; 0 for one that is gone.
    pub fn room(&self, id: ConnectionId) -> usize {
        let Some(queue) = self.get(id).filter(|q| !q.finished) else { return 0 };
        let own = self.limits.connection_send_bytes_max.saturating_sub(queue.queued as usize);
        let pool = self.pool.free().saturating_sub(self.reserve_chunks) * CHUNK_BYTES;
        // A refusal that this may lead to has to be ended by somebody: remember by whom.
        if own < self.limits.delivery_bytes_max {
            queue.refused.set(true);
        } else if pool < self.limits.delivery_bytes_max && !queue.starved.replace(true) {
            self.starved.borrow_mut().push(id);
        }
        own.min(pool)
    }

    /// Bytes that wait or are with the kernel.
    pub fn queued(&self, id: ConnectionId) -> usize {
        self.get(id).map_or(0, |q| q.queued as usize)
    }

    /// Whether the pool holds so many bytes now, its reserve aside.
    pub fn fits(&self, bytes: usize) -> bool {
        self.pool.free().saturating_sub(self.reserve_chunks) * CHUNK_BYTES >= bytes + CHUNK_BYTES
    }

    /// Queues bytes. `false` if they were not taken: the connection is gone or closing, or it exceeded its reserve
    /// and is about to be closed.
    pub fn push(&mut self, id: ConnectionId, bytes: &[u8], class: Class) -> bool {
        let limits = self.limits;
        let Some(queue) = self.queues.get(id.slot as usize) else { return false };
        if queue.generation != id.generation || !queue.open || queue.finished {
            return false;
        }
        let max = match class {
            // One delivery may overshoot: frame sizes are not known to the byte when room is asked for.
            Class::Delivery => usize::MAX,
            Class::Reply => limits.connection_send_bytes_max + limits.reply_reserve_bytes,
        };
        if queue.queued as usize + bytes.len() > max || self.pool.free() * CHUNK_BYTES < bytes.len() + CHUNK_BYTES {
            self.finish(id);
            self.overrun.push(id);
            return false;
        }
        self.append(id, bytes);
        true
    }

    /// Takes a frame in that many queues will send; `None` where there is no room for such frames.
    pub fn share(&mut self, bytes: &[u8]) -> Option<Shared> {
        self.pool.share(bytes)
    }

    /// Whether a shared frame is still where it was; it stays until the next [`Sends::share`] at least.
    pub fn holds(&self, frame: Shared) -> bool {
        self.pool.holds(frame)
    }

    /// Queues a delivery that lies in the blocks: nothing is copied, and frames of a burst become one piece. `false` if it
    /// was not taken: the connection is gone or closing, or pieces are short; then [`Sends::push`] the bytes.
    pub fn push_shared(&mut self, id: ConnectionId, frame: Shared) -> bool {
        let Some(queue) = self.queues.get_mut(id.slot as usize) else { return false };
        if queue.generation != id.generation || !queue.open || queue.finished {
            return false;
        }
        if queue.tail == NONE || !self.pool.extend(queue.tail, frame) {
            let Some(slice) = self.pool.slice(frame) else { return false };
            match queue.tail {
                NONE => queue.head = slice,
                tail => self.pool.link(tail, slice),
            }
            queue.tail = slice;
        }
        if queue.queued == 0 {
            queue.since_us = self.stamp_us;
        }
        queue.queued += frame.len;
        if !queue.dirty && queue.in_flight == 0 {
            queue.dirty = true;
            self.dirty.push(id);
        }
        true
    }

    /// Queues a small frame before all that waits. Given up where the connection is closing, or as many wait already as may.
    pub fn push_urgent(&mut self, id: ConnectionId, frame: &[u8]) {
        let Some(queue) = self.get_mut(id).filter(|queue| !queue.finished) else { return };
        if !queue.urgent.get_or_insert_default().push(frame) {
            return;
        }
        if !queue.dirty && queue.in_flight == 0 {
            queue.dirty = true;
            self.dirty.push(id);
        }
    }

    /// What is queued is no frame (the answer to an upgrade request): what comes behind it is.
    pub(super) fn frames_begin(&mut self, id: ConnectionId) {
        if let Some(queue) = self.get_mut(id) {
            queue.boundary = queue.queued;
        }
    }

    /// Queues the last bytes of a connection (a close frame, an HTTP answer): beyond every bound of its own, and
    /// nothing is taken after them.
    pub(super) fn push_last(&mut self, id: ConnectionId, bytes: &[u8]) {
        if self.get(id).is_some_and(|q| !q.finished) {
            if self.pool.free() * CHUNK_BYTES >= bytes.len() + CHUNK_BYTES {
                self.append(id, bytes);
            }
            self.finish(id);
        }
    }

    /// Takes nothing more for this connection.
    pub(super) fn finish(&mut self, id: ConnectionId) {
        if let Some(queue) = self.get_mut(id) {
            queue.finished = true;
        }
    }

    /// Nothing waits and nothing is with the kernel.
    pub(super) fn is_empty(&self, id: ConnectionId) -> bool {
        self.get(id).is_none_or(|q| q.queued == 0 && q.urgent.is_none())
    }

    /// A send is with the kernel.
    pub(super) fn is_in_flight(&self, id: ConnectionId) -> bool {
        self.get(id).is_some_and(|q| q.in_flight > 0)
    }

    /// Next connection that has bytes and no send in flight.
    pub(super) fn next_dirty(&mut self) -> Option<ConnectionId> {
        while let Some(id) = self.dirty.pop() {
            let Some(queue) = self.get_mut(id) else { continue };
            queue.dirty = false;
            if (queue.queued > 0 || queue.urgent.is_some()) && queue.in_flight == 0 {
                return Some(id);
            }
        }
        None
    }

    /// Marks up to [`SEND_PIECES_MAX`] pieces and about `bytes_max` bytes from the front as with the kernel. The bytes stay where they are until
    /// [`Sends::completed`].
    pub(super) fn begin(&mut self, id: ConnectionId, pieces: &mut Vec<Piece>, bytes_max: usize) {
        pieces.clear();
        let Some(queue) = self.queues.get_mut(id.slot as usize).filter(|q| q.generation == id.generation) else {
            return;
        };
        debug_assert!(queue.in_flight == 0, "one send in flight per connection");
        let (mut piece, mut total, mut most) = (queue.head, 0, bytes_max);
        if let Some(urgent) = &mut queue.urgent {
            // In the middle of a frame: up to its end first, then what is urgent, in a send of its own.
            if queue.boundary == 0 || urgent.is_begun() {
                let bytes = urgent.begin();
                pieces.push(Piece { bytes: bytes.as_ptr(), len: bytes.len() });
                total += bytes.len();
                piece = NONE;
            } else {
                most = most.min(queue.boundary as usize);
            }
        }
        while piece != NONE && pieces.len() < SEND_PIECES_MAX && total < most {
            let len = self.pool.len(piece).min(most - total);
            if len > 0 {
                pieces.push(Piece { bytes: self.pool.address(piece), len });
                total += len;
            }
            piece = self.pool.next(piece);
        }
        queue.in_flight = total as u32;
        queue.begun_us = self.stamp_us;
    }

    /// A send ended after `sent` bytes; the rest, if any, is sent again.
    pub(super) fn completed(&mut self, id: ConnectionId, sent: usize) {
        let max = self.limits.connection_send_bytes_max;
        let low = (max / 2).min(max.saturating_sub(self.limits.delivery_bytes_max));
        let Some(queue) = self.queues.get_mut(id.slot as usize).filter(|q| q.generation == id.generation) else {
            return;
        };
        let sent = sent.min(queue.in_flight as usize);
        queue.in_flight = 0;
        if let Some(urgent) = queue.urgent.as_mut().filter(|urgent| urgent.is_begun()) {
            if urgent.completed(sent) {
                queue.urgent = None;
            }
            if (queue.queued > 0 || queue.urgent.is_some()) && !queue.dirty {
                queue.dirty = true;
                self.dirty.push(id);
            }
            return;
        }
        queue.boundary = match queue.queued as usize - sent {
            0 => 0,
            _ => self.pool.boundary(queue.head, queue.boundary as usize, sent) as u32,
        };
        queue.queued -= sent as u32;
        if sent > 0 && self.taken.len() < TAKEN_MAX {
            self.taken.push(queue.since_us);
        }
        // What is left came after the send began, but for what a full kernel did not take.
        queue.since_us = queue.begun_us;
        let mut rest = sent;
        while rest > 0 {
            let here = self.pool.len(queue.head);
            if rest < here {
                self.pool.advance(queue.head, rest);
                break;
            }
            rest -= here;
            let next = self.pool.next(queue.head);
            self.pool.give_back(queue.head);
            queue.head = next;
            if next == NONE {
                queue.tail = NONE;
                break;
            }
        }
        if queue.queued as usize <= low && !queue.finished && queue.refused.take() {
            self.drained.push(id);
        }
        if (queue.queued > 0 || queue.urgent.is_some()) && !queue.dirty {
            queue.dirty = true;
            self.dirty.push(id);
        }
    }

    /// Gives everything back. No send is in flight.
    pub(super) fn close(&mut self, id: ConnectionId) {
        let Some(queue) = self.queues.get_mut(id.slot as usize).filter(|q| q.generation == id.generation) else {
            return;
        };
        debug_assert!(queue.in_flight == 0, "the kernel may still read these chunks");
        let mut piece = queue.head;
        *queue = empty();
        while piece != NONE {
            let next = self.pool.next(piece);
            self.pool.give_back(piece);
            piece = next;
        }
    }

    /// Next connection that was refused room and has it now.
    pub fn next_drained(&mut self) -> Option<ConnectionId> {
        if let Some(id) = self.drained.pop() {
            return Some(id);
        }
        let plenty =
            self.pool.free() * CHUNK_BYTES >= self.reserve_chunks * CHUNK_BYTES + 2 * self.limits.delivery_bytes_max;
        if !plenty {
            return None;
        }
        let starved = self.starved.get_mut();
        let id = starved.pop()?;
        if let Some(queue) = self.get_mut(id) {
            queue.starved.set(false);
        }
        Some(id)
    }

    /// Next connection that exceeded its reserve.
    pub(super) fn next_overrun(&mut self) -> Option<ConnectionId> {
        self.overrun.pop()
    }

    fn append(&mut self, id: ConnectionId, mut bytes: &[u8]) {
        let queue = &mut self.queues[id.slot as usize];
        if queue.queued == 0 {
            queue.since_us = self.stamp_us;
        }
        queue.queued += bytes.len() as u32;
        while !bytes.is_empty() {
            let here = if queue.tail == NONE { 0 } else { self.pool.write(queue.tail, bytes) };
            bytes = &bytes[here..];
            if here == 0 {
                // Every caller has seen that the pool holds enough.
                let Some(chunk) = self.pool.take() else { unreachable!("room was proved before") };
                match queue.tail {
                    NONE => queue.head = chunk,
                    tail => self.pool.link(tail, chunk),
                }
                queue.tail = chunk;
            }
        }
        if !queue.dirty && queue.in_flight == 0 {
            queue.dirty = true;
            self.dirty.push(id);
        }
    }

    fn get(&self, id: ConnectionId) -> Option<&Queue> {
        self.queues.get(id.slot as usize).filter(|q| q.open && q.generation == id.generation)
    }

    fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Queue> {
        self.queues.get_mut(id.slot as usize).filter(|q| q.open && q.generation == id.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::websocket::{Opcode, append_frame};
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// What waits longest has the least to wait for: of a full queue only the frame that is begun goes before it.
    #[test]
    fn what_is_urgent_overtakes_a_full_queue() {
        let mut sends = Sends::new(1, LIMITS).unwrap();
        sends.open(id(0));
        let mut frame = Vec::new();
        append_frame(&mut frame, Opcode::Text, &[b'd'; 1000]);
        for _ in 0..60 {
            assert!(sends.push(id(0), &frame, Class::Delivery));
        }
        let mut pieces = Vec::new();
        sends.begin(id(0), &mut pieces, usize::MAX);
        sends.completed(id(0), frame.len() * 3 + 10);
        sends.push_urgent(id(0), &[0x81, 1, b'u']);
        let mut out = Vec::new();
        for _ in 0..2 {
            let dirty = sends.next_dirty().unwrap();
            sends.begin(dirty, &mut pieces, usize::MAX);
            out.extend(bytes(&pieces));
            sends.completed(dirty, pieces.iter().map(|piece| piece.len).sum());
        }
        assert_eq!(out, [&frame[10..], &[0x81, 1, b'u']].concat());
    }

    const LIMITS: SendLimits = SendLimits {
        connection_send_bytes_max: 64 << 10,
        reply_reserve_bytes: 16 << 10,
        delivery_bytes_max: 32 << 10,
        shard_send_bytes_max: 1 << 20,
    };

    fn id(slot: u32) -> ConnectionId {
        ConnectionId { slot, generation: 7 }
    }

    fn bytes(pieces: &[Piece]) -> Vec<u8> {
        let mut all = Vec::new();
        for piece in pieces {
            // SAFETY: pieces of a queue whose chunks are not given back before `completed`.
            all.extend_from_slice(unsafe { std::slice::from_raw_parts(piece.bytes, piece.len) });
        }
        all
    }

    #[test]
    fn a_slow_reader_costs_its_bound_and_is_told_when_it_has_drained() {
        let mut sends = Sends::new(2, LIMITS).unwrap();
        sends.open(id(0));
        let frame = [7; 1000];
        let mut taken = 0;
        while sends.room(id(0)) >= frame.len() {
            assert!(sends.push(id(0), &frame, Class::Delivery));
            taken += 1;
        }
        assert_eq!(taken, 65);
        // Replies go on into the reserve, and one too many ends the connection.
        let mut replies = 0;
        while sends.push(id(0), &frame, Class::Reply) {
            replies += 1;
        }
        assert!((15..=17).contains(&replies), "{replies}");
        assert_eq!(sends.next_overrun(), Some(id(0)));
        assert_eq!(sends.room(id(0)), 0);
        sends.close(id(0));
        assert_eq!(sends.chunks_used(), 0);

        sends.open(id(1));
        assert!(sends.push(id(1), &vec![1; 40 << 10], Class::Delivery));
        assert_eq!(sends.room(id(1)), 24 << 10, "too little for the largest delivery");
        let mut pieces = Vec::new();
        sends.begin(id(1), &mut pieces, usize::MAX);
        sends.completed(id(1), 1 << 10);
        assert_eq!(sends.next_drained(), None, "39 KiB is above half");
        sends.begin(id(1), &mut pieces, usize::MAX);
        sends.completed(id(1), 20 << 10);
        assert_eq!(sends.next_drained(), Some(id(1)));
    }

    #[test]
    fn a_short_pool_refuses_deliveries_first_and_calls_back_when_it_has_room() {
        let mut sends = Sends::new(64, LIMITS).unwrap();
        let mut last = 0;
        for slot in 0..64 {
            sends.open(id(slot));
            let room = sends.room(id(slot));
            if room < 30 << 10 {
                last = slot;
                break;
            }
            assert!(sends.push(id(slot), &vec![1; 30 << 10], Class::Delivery));
        }
        assert!((20..64).contains(&last), "the pool ran short, not the queues");
        assert!(sends.push(id(last), b"reply", Class::Reply), "an eighth is kept for replies");
        assert_eq!(sends.next_drained(), None);
        for slot in 0..4 {
            sends.close(id(slot));
        }
        let mut told = Vec::new();
        while let Some(id) = sends.next_drained() {
            told.push(id.slot);
        }
        assert!(told.contains(&last));
    }

    proptest! {
        /// Whatever is pushed comes out once and in order, however sends are cut, and every chunk comes back.
        #[test]
        fn is_a_byte_queue(steps in proptest::collection::vec((0usize..9000, 0usize..12_000), 1..60)) {
            let mut sends = Sends::new(1, LIMITS).unwrap();
            sends.open(id(0));
            let mut model: VecDeque<u8> = VecDeque::new();
            let mut counter = 0u8;
            let mut pieces = Vec::new();
            for (push, send) in steps {
                let fresh: Vec<u8> = (0..push).map(|_| { counter = counter.wrapping_add(1); counter }).collect();
                if sends.room(id(0)) >= push && push > 0 {
                    prop_assert!(sends.push(id(0), &fresh, Class::Delivery));
                    model.extend(&fresh);
                }
                if let Some(dirty) = sends.next_dirty() {
                    sends.begin(dirty, &mut pieces, usize::MAX);
                    let out = bytes(&pieces);
                    // More may be pushed while a send is with the kernel.
                    if sends.room(id(0)) >= 10 {
                        sends.push(id(0), &[1, 2, 3], Class::Delivery);
                        model.extend([1, 2, 3]);
                    }
                    let sent = send.min(out.len());
                    let expected: Vec<u8> = model.drain(..sent).collect();
                    prop_assert_eq!(&out[..sent], &expected[..]);
                    sends.completed(dirty, sent);
                }
                prop_assert_eq!(sends.queued(id(0)), model.len());
                prop_assert_eq!(sends.chunks_used() == 0, model.is_empty());
            }
            sends.close(id(0));
            prop_assert_eq!(sends.chunks_used(), 0);
        }

        /// An urgent frame goes before all that waits, never inside a frame, however sends are cut: what comes out is whole frames,
        /// the ordinary ones in order.
        #[test]
        fn urgent_frames_go_between_frames(
            steps in proptest::collection::vec((0u8..5, 0usize..3000, 0usize..9000), 1..80),
        ) {
            let mut sends = Sends::new(2, LIMITS).unwrap();
            sends.open(id(0));
            let mut out = Vec::new();
            let mut pieces = Vec::new();
            let (mut pushed, mut urgent) = (0u32, 0u32);
            let head = b"HTTP/1.1 101\r\n\r\n";
            sends.push(id(0), head, Class::Reply);
            sends.frames_begin(id(0));
            let frame = |mark: u8, n: u32, len: usize| {
                let mut payload = vec![mark];
                payload.extend_from_slice(&n.to_be_bytes());
                payload.resize(5 + len, 0xff);
                let mut frame = Vec::new();
                append_frame(&mut frame, Opcode::Binary, &payload);
                frame
            };
            for (kind, len, send) in steps.into_iter().chain([(4, 0, 0); 3].into_iter().cycle().take(300)) {
                match kind {
                    0 | 1 => {
                        let bytes = frame(b'd', pushed, len);
                        if sends.room(id(0)) < bytes.len() {
                            continue;
                        }
                        let shared = (kind == 1).then(|| sends.share(&bytes)).flatten();
                        if !shared.is_some_and(|frame| sends.push_shared(id(0), frame)) {
                            prop_assert!(sends.push(id(0), &bytes, Class::Delivery));
                        }
                        pushed += 1;
                    }
                    2 => {
                        let before = sends.get(id(0)).unwrap().urgent.as_ref().map_or(0, |u| u.waiting_bytes());
                        sends.push_urgent(id(0), &frame(b'u', urgent, 20));
                        let after = sends.get(id(0)).unwrap().urgent.as_ref().map_or(0, |u| u.waiting_bytes());
                        urgent += u32::from(after > before);
                    }
                    _ => {
                        let Some(dirty) = sends.next_dirty() else { continue };
                        sends.begin(dirty, &mut pieces, usize::MAX);
                        let bytes = bytes(&pieces);
                        let all = kind == 4 || send > bytes.len();
                        let sent = if all { bytes.len() } else { send };
                        out.extend_from_slice(&bytes[..sent]);
                        sends.completed(dirty, sent);
                    }
                }
            }
            prop_assert!(sends.is_empty(id(0)));
            prop_assert_eq!(&out[..head.len()], &head[..]);
            let mut rest = &out[head.len()..];
            let (mut data, mut notices) = (0, 0);
            while !rest.is_empty() {
                let (start, len) = match rest[1] {
                    126 => (4, usize::from(u16::from_be_bytes([rest[2], rest[3]]))),
                    len => (2, usize::from(len)),
                };
                prop_assert_eq!(rest[0], 0x82);
                let payload = &rest[start..start + len];
                let number = u32::from_be_bytes(payload[1..5].try_into().unwrap());
                let count = if payload[0] == b'u' { &mut notices } else { &mut data };
                prop_assert_eq!(number, *count);
                *count += 1;
                rest = &rest[start + len..];
            }
            prop_assert_eq!((data, notices), (pushed, urgent));
            sends.close(id(0));
            prop_assert_eq!((sends.chunks_used(), sends.pool.blocks_used()), (0, 0));
        }

        /// Two queues that send the same frames and their own bytes, cut anywhere: each gets all of it once, in order, and no
        /// piece, chunk or block stays behind.
        #[test]
        fn shared_frames_are_bytes_like_all_others(
            steps in proptest::collection::vec((0u8..4, 1usize..9000, 0usize..12_000), 1..80),
        ) {
            let mut sends = Sends::new(2, LIMITS).unwrap();
            let mut models = [VecDeque::new(), VecDeque::new()];
            for slot in 0..2 {
                sends.open(id(slot));
            }
            let mut counter = 0u8;
            let mut pieces = Vec::new();
            for (kind, len, send) in steps {
                let fresh: Vec<u8> = (0..len).map(|_| { counter = counter.wrapping_add(1); counter }).collect();
                let to = match kind { 0 => vec![0], 1 => vec![1], _ => vec![0, 1] };
                let mut shared = None;
                for slot in to {
                    if sends.room(id(slot)) < len {
                        continue;
                    }
                    if kind == 2 && shared.is_none_or(|frame| !sends.holds(frame)) {
                        shared = sends.share(&fresh);
                    }
                    if !shared.is_some_and(|frame| sends.push_shared(id(slot), frame)) {
                        prop_assert!(sends.push(id(slot), &fresh, Class::Delivery));
                    }
                    models[slot as usize].extend(&fresh);
                }
                if kind == 3 && let Some(dirty) = sends.next_dirty() {
                    let model = &mut models[dirty.slot as usize];
                    sends.begin(dirty, &mut pieces, usize::MAX);
                    let out = bytes(&pieces);
                    // A burst goes on while its beginning is with the kernel.
                    if sends.room(dirty) >= 3 && let Some(frame) = sends.share(&[1, 2, 3]) {
                        prop_assert!(sends.push_shared(dirty, frame));
                        model.extend([1, 2, 3]);
                    }
                    let sent = send.min(out.len());
                    let expected: Vec<u8> = model.drain(..sent).collect();
                    prop_assert_eq!(&out[..sent], &expected[..]);
                    sends.completed(dirty, sent);
                }
                for slot in 0..2 {
                    prop_assert_eq!(sends.queued(id(slot)), models[slot as usize].len());
                }
            }
            for slot in 0..2 {
                sends.close(id(slot));
            }
            prop_assert_eq!(sends.chunks_used(), 0);
            prop_assert_eq!(sends.pool.blocks_used(), 0);
        }

        /// A burst to many queues is one piece of each.
        #[test]
        fn a_burst_is_one_piece(frames in proptest::collection::vec(1usize..2000, 1..20)) {
            let mut sends = Sends::new(3, LIMITS).unwrap();
            let burst: Vec<Vec<u8>> = frames.iter().enumerate().map(|(i, len)| vec![i as u8; *len]).collect();
            let mut pieces = Vec::new();
            for slot in 0..3 {
                sends.open(id(slot));
            }
            let mut places = vec![None; burst.len()];
            for slot in 0..3 {
                for (frame, place) in burst.iter().zip(&mut places) {
                    if place.is_none_or(|place| !sends.holds(place)) {
                        *place = sends.share(frame);
                    }
                    prop_assert!(sends.push_shared(id(slot), place.unwrap()));
                }
                sends.begin(id(slot), &mut pieces, usize::MAX);
                prop_assert_eq!(pieces.len(), 1);
                prop_assert_eq!(bytes(&pieces), burst.concat());
            }
        }
    }
}
