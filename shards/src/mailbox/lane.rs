//! One direction of mail between two shards: a ring of lengths and a ring of bytes, both lock-free, both bounded.
//!
//! ```text
//!  sender ── permit(bytes) ──► slots [len|len|…]      one length per message, and when it was sent
//!                              bytes [........…]      payloads back to back, wrapping
//!  receiver ── peek ──► mirror (one contiguous copy) ── pop
//! ```
//! A message exists once its length is in `slots`; its bytes were published before. One per ordered pair of shards
//! and lane; the sender half is touched only by the sender's thread, the receiver half only by the receiver's.

use super::rings::{Consumer, Producer, RingBuffer};

/// Sending half.
pub struct LaneSender {
    slots: Producer<u64>,
    capacity: usize,
    bytes: Producer<u8>,
}

/// Receiving half, with the mirror that the current message is copied into.
pub struct LaneReceiver {
    slots: Consumer<u64>,
    bytes: Consumer<u8>,
    mirror: Vec<u8>,
    held: bool,
    sent_us: u32,
}

/// A reserved place for one message. Spent by [`LaneSender::send`].
#[must_use]
pub struct Permit {
    bytes: usize,
}

/// A lane of at most `slots` messages and `bytes` payload bytes.
pub fn lane(slots: usize, bytes: usize) -> (LaneSender, LaneReceiver) {
    let (slot_in, slot_out) = RingBuffer::new(slots);
    let (byte_in, byte_out) = RingBuffer::new(bytes);
    (
        LaneSender { slots: slot_in, capacity: slots, bytes: byte_in },
        LaneReceiver { slots: slot_out, bytes: byte_out, mirror: Vec::new(), held: false, sent_us: 0 },
    )
}

impl LaneSender {
    /// Room for one message of `bytes`, or `None` while the lane is full.
    pub fn permit(&self, bytes: usize) -> Option<Permit> {
        (self.slots.slots() > 0 && self.bytes.slots() >= bytes).then_some(Permit { bytes })
    }

    /// Puts a message into the lane, sent at `sent_us` of whatever clock.
    pub fn send(&mut self, permit: Permit, message: &[u8], sent_us: u32) {
        assert!(message.len() <= permit.bytes, "a message is never larger than its permit");
        // Both calls succeed: only this half fills the lane, and the permit saw the room.
        if let Ok(mut chunk) = self.bytes.write_chunk(message.len()) {
            let (first, second) = chunk.as_mut_slices();
            let cut = first.len();
            first.copy_from_slice(&message[..cut]);
            second.copy_from_slice(&message[cut..]);
            chunk.commit_all();
        }
        let _ = self.slots.push(u64::from(sent_us) << 32 | message.len() as u64);
    }

    /// Messages that the receiver has not taken.
    pub fn waiting(&self) -> usize {
        self.capacity - self.slots.slots()
    }
}

impl LaneReceiver {
    /// Is there a message that nobody has looked at? Used by the park protocol after the sleeping flag was set. One that is
    /// held for want of room is not: what it waits for wakes the shard by itself.
    pub fn has_mail(&self) -> bool {
        !self.held && self.slots.slots() > 0
    }

    /// Is the oldest message held, for want of room?
    pub fn holds_mail(&self) -> bool {
        self.held
    }

    /// Messages that have not been handled.
    pub fn waiting(&self) -> usize {
        self.slots.slots() + usize::from(self.held)
    }

    /// When the message that was taken last was sent.
    pub fn sent_us(&self) -> u32 {
        self.sent_us
    }

    /// The oldest message, whole; it stays until [`LaneReceiver::pop`].
    pub fn peek(&mut self) -> Option<&[u8]> {
        if !self.held {
            let slot = self.slots.pop().ok()?;
            self.sent_us = (slot >> 32) as u32;
            let length = slot as u32 as usize;
            self.mirror.clear();
            if let Ok(chunk) = self.bytes.read_chunk(length) {
                let (first, second) = chunk.as_slices();
                self.mirror.extend_from_slice(first);
                self.mirror.extend_from_slice(second);
                chunk.commit_all();
            }
            self.held = true;
        }
        Some(&self.mirror)
    }

    /// Drops the message that was peeked at. A mirror that grew for one large message is given back.
    pub fn pop(&mut self) {
        self.held = false;
        if self.mirror.capacity() > 1 << 20 {
            self.mirror = Vec::new();
        }
    }

    /// Takes the peeked message's bytes out, so that they can be read while the shard changes; give the buffer back
    /// with [`LaneReceiver::restore`].
    pub fn take(&mut self) -> Option<Vec<u8>> {
        self.peek()?;
        Some(std::mem::take(&mut self.mirror))
    }

    /// Puts back what [`LaneReceiver::take`] took: done with it, or to be handled again on a later turn.
    pub fn restore(&mut self, bytes: Vec<u8>, done: bool) {
        self.mirror = bytes;
        if done {
            self.pop();
        }
    }
}
