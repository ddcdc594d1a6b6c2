//! Mail between shards: bounded lanes, permits, sleeping flags.
//!
//! ```text
//!          requests ──►            requests carry forwarded commands, interest, live events
//!  shard A ─────────── shard B     replies answer them and are always taken first:
//!          ◄── replies             a reply may never wait behind a request, or two shards could block each other
//! ```
//! Room for a reply is reserved by the *asker* when it sends the request ([`Mailboxes::ask`]), so that the answerer
//! can always answer. A full request lane is a normal answer: the command stays with its connection.
//!
//! `lane` and `sleep` import what they synchronise with from here, so that `tests/mailbox_loom.rs` can put loom's in its
//! place.

pub mod codec;
pub mod lane;
pub mod message;
pub mod sleep;

mod atomics {
    pub use std::sync::atomic::{AtomicBool, Ordering, fence};
}

mod rings {
    pub use rtrb::{Consumer, Producer, RingBuffer};
}

use crate::ids::ShardId;
use crate::limits::{Limits, REPLY_BYTES_MAX};
use lane::{LaneReceiver, LaneSender, Permit, lane};
use sleep::SleepFlag;
use std::sync::Arc;

/// What most requests fit in, bytes.
const COMMON_BYTES: usize = 1024;

/// All lanes of one shard. Made together by [`mesh`], then moved to the shard's thread.
pub struct Mailboxes {
    own: ShardId,
    requests_out: Vec<Option<LaneSender>>,
    requests_in: Vec<Option<LaneReceiver>>,
    replies_out: Vec<Option<LaneSender>>,
    replies_in: Vec<Option<LaneReceiver>>,
    /// Per peer: reply slots and bytes asked for and not yet received.
    asked: Vec<Asked>,
    reply_slots: usize,
    reply_bytes: usize,
    sleeping: Arc<[SleepFlag]>,
    /// Last reading of the clock, microseconds, wrapping.
    now_us: u32,
}

#[derive(Clone, Copy, Default)]
struct Asked {
    slots: usize,
    bytes: usize,
}

/// The right to send one request, with the room for its reply reserved.
#[must_use]
pub struct Ask {
    permit: Permit,
    reply_bytes: usize,
}

/// Which lane a message came in by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LaneKind {
    /// Answers.
    Reply,
    /// Everything else.
    Request,
}

/// Mailboxes of all shards of a process.
pub fn mesh(shards: u16, limits: &Limits) -> Vec<Mailboxes> {
    let count = usize::from(shards);
    let sleeping: Arc<[SleepFlag]> = (0..count).map(|_| SleepFlag::default()).collect();
    let mut all: Vec<Mailboxes> = (0..shards)
        .map(|own| Mailboxes {
            own: ShardId(own),
            requests_out: (0..count).map(|_| None).collect(),
            requests_in: (0..count).map(|_| None).collect(),
            replies_out: (0..count).map(|_| None).collect(),
            replies_in: (0..count).map(|_| None).collect(),
            asked: vec![Asked::default(); count],
            reply_slots: limits.mailbox_slots,
            reply_bytes: limits.mailbox_bytes,
            sleeping: Arc::clone(&sleeping),
            now_us: 0,
        })
        .collect();
    for from in 0..count {
        for to in 0..count {
            if from != to {
                let (tx, rx) = lane(limits.mailbox_slots, limits.mailbox_bytes);
                all[from].requests_out[to] = Some(tx);
                all[to].requests_in[from] = Some(rx);
                let (tx, rx) = lane(limits.mailbox_slots, limits.mailbox_bytes);
                all[from].replies_out[to] = Some(tx);
                all[to].replies_in[from] = Some(rx);
            }
        }
    }
    all
}

/// Bytes that the mailboxes of `shards` shards hold, all lanes together.
pub fn memory_bytes(shards: u16, limits: &Limits) -> usize {
    let pairs = usize::from(shards) * usize::from(shards.saturating_sub(1));
    pairs * 2 * (limits.mailbox_slots * size_of::<u64>() + limits.mailbox_bytes)
}

impl Mailboxes {
    /// Number of shards in the mesh.
    pub fn peers(&self) -> u16 {
        self.asked.len() as u16
    }

    /// The clock was read: mail is stamped with it.
    pub fn clock(&mut self, now_us: u32) {
        self.now_us = now_us;
    }

    /// How long ago mail with this stamp was sent; another shard's clock may be read a little ahead of this one's.
    pub fn since_us(&self, sent_us: u32) -> u32 {
        let us = self.now_us.wrapping_sub(sent_us);
        if us > u32::MAX / 2 { 0 } else { us }
    }

    /// Messages in the lanes to others, and in those from others.
    pub fn waiting(&self) -> (usize, usize) {
        let out = self.requests_out.iter().chain(&self.replies_out).flatten().map(LaneSender::waiting).sum();
        let come = self.requests_in.iter().chain(&self.replies_in).flatten().map(LaneReceiver::waiting).sum();
        (out, come)
    }

    /// [`Mailboxes::ask`] for what may take long to answer: half of what may be asked at once stays for others.
    pub fn ask_patiently(&self, to: ShardId, bytes: usize, reply_bytes: usize) -> Option<Ask> {
        let asked = &self.asked[usize::from(to.0)];
        let has_room = asked.slots < self.reply_slots / 2 && asked.bytes <= self.reply_bytes / 2;
        if has_room { self.ask(to, bytes, reply_bytes) } else { None }
    }

    /// Would a common request find room? A look, for who would have to make one.
    pub fn may_ask(&self, to: ShardId, patiently: bool) -> bool {
        let ask = if patiently { Self::ask_patiently } else { Self::ask };
        ask(self, to, COMMON_BYTES, REPLY_BYTES_MAX).is_some()
    }

    /// Room for a request of `bytes` whose reply takes at most `reply_bytes`.
    pub fn ask(&self, to: ShardId, bytes: usize, reply_bytes: usize) -> Option<Ask> {
        let asked = &self.asked[usize::from(to.0)];
        if asked.slots >= self.reply_slots || asked.bytes + reply_bytes > self.reply_bytes {
            return None;
        }
        let permit = self.requests_out[usize::from(to.0)].as_ref()?.permit(bytes)?;
        Some(Ask { permit, reply_bytes })
    }

    /// Sends a request that will be answered.
    pub fn send_ask(&mut self, to: ShardId, ask: Ask, message: &[u8]) {
        let asked = &mut self.asked[usize::from(to.0)];
        asked.slots += 1;
        asked.bytes += ask.reply_bytes;
        if let Some(sender) = &mut self.requests_out[usize::from(to.0)] {
            sender.send(ask.permit, message, self.now_us);
        }
    }

    /// A reply came in: the room that was reserved for it is free again.
    pub fn answered(&mut self, from: ShardId, reply_bytes: usize) {
        let asked = &mut self.asked[usize::from(from.0)];
        asked.slots = asked.slots.saturating_sub(1);
        asked.bytes = asked.bytes.saturating_sub(reply_bytes);
    }

    /// Sends a request that has no reply; `false` while the lane is full.
    pub fn tell(&mut self, to: ShardId, message: &[u8]) -> bool {
        let Some(sender) = &mut self.requests_out[usize::from(to.0)] else { return false };
        match sender.permit(message.len()) {
            Some(permit) => {
                sender.send(permit, message, self.now_us);
                true
            }
            None => false,
        }
    }

    /// Answers a request. The asker reserved the room.
    pub fn reply(&mut self, to: ShardId, message: &[u8]) {
        if let Some(sender) = &mut self.replies_out[usize::from(to.0)] {
            let permit = sender.permit(message.len());
            assert!(permit.is_some(), "the asker reserves room for every reply");
            if let Some(permit) = permit {
                sender.send(permit, message, self.now_us);
            }
        }
    }

    /// Receiving half of a lane; `None` for oneself.
    pub fn receiver(&mut self, from: ShardId, kind: LaneKind) -> Option<&mut LaneReceiver> {
        match kind {
            LaneKind::Reply => self.replies_in[usize::from(from.0)].as_mut(),
            LaneKind::Request => self.requests_in[usize::from(from.0)].as_mut(),
        }
    }

    /// After mail was sent: is the peer asleep? Clears its flag, so that one sleeper is woken once.
    pub fn must_wake(&self, peer: ShardId) -> bool {
        self.sleeping[usize::from(peer.0)].must_wake()
    }

    /// Sets the sleeping flag; `false` if mail is there already and the shard must not park.
    pub fn prepare_park(&self) -> bool {
        let has_mail = || self.requests_in.iter().chain(&self.replies_in).flatten().any(LaneReceiver::has_mail);
        self.sleeping[usize::from(self.own.0)].prepare_park(has_mail)
    }

    /// Is a message held in a lane, for want of room?
    pub fn holds_mail(&self) -> bool {
        self.requests_in.iter().chain(&self.replies_in).flatten().any(LaneReceiver::holds_mail)
    }

    /// Clears the sleeping flag.
    pub fn unpark(&self) {
        self.sleeping[usize::from(self.own.0)].unpark();
    }
}
