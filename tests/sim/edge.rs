//! The server's side of a simulated connection: the real framer, decoder and encoder around a send queue that is only
//! bytes. What the reactor and `net` do with sockets, without the sockets.

use super::oracle::Checked;
use super::world::TENANT;
use shards::command::Command;
use shards::effect::Reply;
use shards::ids::{CommandId, ConnectionId, Now};
use shards::limits::{Limits, REPLY_BYTES_MAX};
use shards::outbox::{
    DeadFrame, EntriesFrame, GAP_FRAME_BYTES_MAX, Gap, HistoryHead, JobFrame, Notice, Outbox, PageItem, PatternGap,
    RosterFrame, RunFrame, StreamFrame, VolatileEvent, event_bytes_max,
};
use shards::refusal::Refused;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use storage::record::EventView;
use tidegate::net::websocket::{Decoder, Message, Opcode, append_close, append_frame};
use tidegate::wire::codes::Close;
use tidegate::wire::decode::{self, Resume, Scratch};
use tidegate::wire::encode;
use tidegate::wire::token::{KEY_BYTES, Key, Tokens};

/// Bytes above the queue's bound that only replies may use.
const REPLY_RESERVE_BYTES: usize = 64 << 10;

/// Bytes above the queue's bound at most: replies, one more of them, and the words at the end.
pub const OVER_BYTES_MAX: usize = REPLY_RESERVE_BYTES + (64 << 10);

/// Longer than any jump of the clock.
const TOKEN_LIFE_MS: u64 = 100 * 365 * 24 * 3600 * 1000;

/// An event that was put into some connection.
#[derive(Debug)]
pub struct Delivered {
    /// Session.
    pub session: String,
    /// Its offset.
    pub offset: u64,
}

/// One connection of one shard.
pub struct Door {
    decoder: Decoder,
    assembly: Vec<u8>,
    /// Bytes that came and were not looked at.
    pub backlog: Vec<u8>,
    /// A message the shard had no room for, and how far it got.
    held: Option<(String, Resume)>,
    held_since_us: u64,
    /// Bytes on their way to the client.
    pub out: Vec<u8>,
    /// Of these, what is left of a frame that is on its way in part.
    begun: usize,
    /// Nothing more is taken; the connection ends when `out` is empty.
    pub closing: bool,
    /// What comes is thrown away: it is about to be closed.
    pub deaf: bool,
    over_half: bool,
}

impl Door {
    /// An upgraded connection whose welcome is queued.
    pub fn new(name: &str, shard: u16, limits: &Limits) -> Self {
        let mut payload = Vec::new();
        encode::welcome(&mut payload, name, None, shard, limits);
        let mut out = Vec::new();
        append_frame(&mut out, Opcode::Text, &payload);
        Self {
            decoder: Decoder::new(limits.frame_bytes_max),
            assembly: Vec::new(),
            backlog: Vec::new(),
            held: None,
            held_since_us: 0,
            // Nothing goes before the welcome.
            begun: out.len(),
            out,
            closing: false,
            deaf: false,
            over_half: false,
        }
    }

    /// Whether it has input to be worked off.
    pub fn has_input(&self) -> bool {
        !self.closing && (self.held.is_some() || !self.backlog.is_empty())
    }

    /// Whether it was told to wait.
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Works off input until the shard says later. `handle` gives each command to the shard; `false` = later.
    /// Returns whether anything was done.
    pub fn work(
        &mut self,
        scratch: &mut Scratch,
        now: Now,
        patience_us: u64,
        mut handle: impl FnMut(CommandId, Result<Command<'_>, Refused>, Option<u64>) -> bool,
    ) -> bool {
        let waited_us = now.mono_us - self.held_since_us.min(now.mono_us);
        let overdue_ms = (self.held.is_some() && waited_us > patience_us).then_some(waited_us / 1000);
        let mut each = |id: CommandId, command: Result<Command<'_>, Refused>, overdue_ms| {
            if handle(id, command, overdue_ms) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        if let Some((text, resume)) = self.held.take()
            && let Some(later) = decode::decode(&text, resume, scratch, |id, command| each(id, command, overdue_ms))
        {
            let progress = later != resume;
            self.held = Some((text, later));
            return progress;
        }
        if self.deaf {
            self.backlog.clear();
            return true;
        }
        let mut backlog = std::mem::take(&mut self.backlog);
        let mut at = 0;
        let mut closing = None;
        while at < backlog.len() && self.held.is_none() && closing.is_none() {
            match self.decoder.next(&mut backlog[at..], &mut self.assembly) {
                Err(violation) => closing = Some((violation.close_code(), violation.reason())),
                Ok((taken, message)) => {
                    at += taken;
                    match message {
                        Some(Message::Text(text)) => {
                            let stopped =
                                decode::decode(text, Resume::default(), scratch, |id, command| each(id, command, None));
                            if let Some(later) = stopped {
                                self.held = Some((text.to_owned(), later));
                                self.held_since_us = now.mono_us;
                            }
                        }
                        Some(Message::Ping(bytes)) => append_frame(&mut self.out, Opcode::Pong, bytes),
                        Some(Message::Close { .. }) => closing = Some((1000, "")),
                        Some(Message::Binary(_)) => closing = Some(close(Close::UnsupportedData)),
                        _ => {}
                    }
                }
            }
        }
        self.backlog = backlog.split_off(at);
        if let Some((code, reason)) = closing {
            append_close(&mut self.out, Some(code), reason);
            self.closing = true;
        }
        true
    }

    /// Takes up to `most` bytes to the client. `true` with them: the queue fell below half, tell the shard.
    pub fn take(&mut self, most: usize, limits: &Limits) -> (Vec<u8>, bool) {
        let most = most.min(self.out.len());
        while self.begun < most {
            self.begun += frame_bytes(&self.out[self.begun..]);
        }
        self.begun -= most;
        let rest = self.out.split_off(most);
        let taken = std::mem::replace(&mut self.out, rest);
        let half = limits.connection_send_bytes_max / 2;
        let drained = self.over_half && self.out.len() <= half;
        if drained {
            self.over_half = false;
        }
        (taken, drained)
    }

    /// Puts a frame before all that wait.
    fn push_urgent(&mut self, payload: &[u8]) {
        let mut frame = Vec::new();
        append_frame(&mut frame, Opcode::Text, payload);
        let at = self.begun;
        self.out.splice(at..at, frame);
    }

    fn push(&mut self, payload: &[u8], limits: &Limits) {
        append_frame(&mut self.out, Opcode::Text, payload);
        self.over_half |= self.out.len() > limits.connection_send_bytes_max / 2;
    }
}

/// What the node signs with: the same after each crash.
pub fn tokens() -> Tokens {
    Tokens::new(vec![Key { number: 1, secret: [7; KEY_BYTES] }], TOKEN_LIFE_MS)
}

/// Length of the frame that begins here; it has no mask.
fn frame_bytes(bytes: &[u8]) -> usize {
    match bytes[1] & 0x7f {
        126 => 4 + usize::from(u16::from_be_bytes([bytes[2], bytes[3]])),
        127 => 10 + u64::from_be_bytes(bytes[2..10].try_into().expect("eight bytes")) as usize,
        length => 2 + usize::from(length),
    }
}

fn close(close: Close) -> (u16, &'static str) {
    (close.code(), close.reason())
}

/// The doors of one shard as its core sees them.
pub struct Doors<'a> {
    /// By connection.
    doors: &'a mut BTreeMap<ConnectionId, Door>,
    limits: &'a Limits,
    now_ms: u64,
    /// A promise that the core broke towards its outbox.
    broken: Checked,
    frames: u64,
    /// Events, to be held against what is committed.
    pub delivered: Vec<Delivered>,
    /// The last frame about a roster, and its bound.
    roster: (Vec<u8>, usize),
}

impl<'a> Doors<'a> {
    /// An outbox over these doors.
    pub fn new(doors: &'a mut BTreeMap<ConnectionId, Door>, limits: &'a Limits, now: Now) -> Self {
        Self {
            doors,
            limits,
            now_ms: now.wall_ms,
            broken: Ok(()),
            frames: 0,
            delivered: Vec::new(),
            roster: (Vec::new(), 0),
        }
    }

    /// Frames queued, those about rosters aside, or the promise that was broken.
    pub fn finish(self) -> Checked<u64> {
        self.broken.map(|()| self.frames)
    }

    /// Queues a reply. A client that reads no replies is closed, as the server does.
    pub fn reply(&mut self, connection: ConnectionId, id: &CommandId, reply: &Reply<'_>) {
        if !encode::reply_is_sent(id, reply) {
            return;
        }
        let now_ms = self.now_ms;
        let Some(door) = self.doors.get_mut(&connection).filter(|door| !door.closing) else { return };
        let mut payload = Vec::new();
        if let Reply::Resumed { client_id, life, sessions, patterns } = *reply {
            let (token, expires_ms) = tokens().sign(TENANT, client_id, life, now_ms);
            encode::resumed(&mut payload, id, client_id, life.generation, sessions, patterns, &token, expires_ms);
        } else {
            encode::reply(&mut payload, id, reply);
        }
        let position = matches!(reply, Reply::SubscribedPatterns { .. });
        if payload.len() + 10 > REPLY_BYTES_MAX && !position {
            self.broken = Err(format!("a reply of {} bytes: {reply:?}", payload.len()));
        }
        if door.out.len() + payload.len() > self.limits.connection_send_bytes_max + REPLY_RESERVE_BYTES {
            let (code, reason) = close(Close::TooSlow);
            append_close(&mut door.out, Some(code), reason);
            door.closing = true;
            return;
        }
        door.push(&payload, self.limits);
        self.frames += 1;
    }

    /// A newer connection has this one's client.
    pub fn replaced(&mut self, connection: ConnectionId) {
        let Some(door) = self.doors.get_mut(&connection).filter(|door| !door.closing) else { return };
        let (code, reason) = close(Close::Replaced);
        append_close(&mut door.out, Some(code), reason);
        door.closing = true;
    }

    fn deliver(&mut self, connection: ConnectionId, bound: usize, encode: impl FnOnce(&mut Vec<u8>)) -> usize {
        let room = self.room(connection);
        let Some(door) = self.doors.get_mut(&connection) else {
            self.broken = Err(format!("a delivery to {connection:?}, which is gone"));
            return 0;
        };
        let mut payload = Vec::new();
        encode(&mut payload);
        if payload.len() + 10 > bound {
            self.broken = Err(format!("a frame of {} bytes, bound {bound}", payload.len() + 10));
        }
        if bound > room {
            self.broken = Err(format!("a delivery of up to {bound} bytes into room for {room}"));
        }
        door.push(&payload, self.limits);
        self.frames += 1;
        payload.len()
    }
}

impl Outbox for Doors<'_> {
    fn room(&self, connection: ConnectionId) -> usize {
        match self.doors.get(&connection) {
            Some(door) if !door.closing => self.limits.connection_send_bytes_max.saturating_sub(door.out.len()),
            _ => 0,
        }
    }

    fn event(&mut self, connection: ConnectionId, event: &EventView<'_>) -> usize {
        self.delivered.push(Delivered { session: event.session().to_owned(), offset: event.offset() });
        self.deliver(connection, event_bytes_max(event), |payload| encode::event(payload, event))
    }

    fn volatile(&mut self, connection: ConnectionId, event: &VolatileEvent<'_>) -> usize {
        let room = self.room(connection);
        self.deliver(connection, room, |payload| encode::volatile(payload, event))
    }

    fn streams(&mut self, connection: ConnectionId, frame: &StreamFrame<'_>) -> usize {
        let room = self.room(connection);
        self.deliver(connection, room, |payload| encode::streams(payload, frame))
    }

    fn notice(&mut self, connection: ConnectionId, notice: &Notice<'_>) {
        // Beyond a bound a notice is given up.
        let Some(door) = self.doors.get_mut(&connection).filter(|door| !door.closing) else { return };
        let mut payload = Vec::new();
        encode::notice(&mut payload, notice);
        if door.out.len() + payload.len() <= self.limits.connection_send_bytes_max + REPLY_RESERVE_BYTES {
            door.push_urgent(&payload);
        }
    }

    fn gap(&mut self, connection: ConnectionId, gap: &Gap<'_>) {
        self.deliver(connection, GAP_FRAME_BYTES_MAX + gap.session.len(), |payload| encode::gap(payload, gap));
    }

    fn pattern_gap(&mut self, connection: ConnectionId, gap: &PatternGap) {
        self.deliver(connection, GAP_FRAME_BYTES_MAX, |payload| encode::pattern_gap(payload, gap));
    }

    fn roster(&mut self, connection: ConnectionId, frame: &RosterFrame<'_>, again: bool) {
        if !again {
            self.roster.0.clear();
            encode::roster(&mut self.roster.0, frame);
            self.roster.1 = frame.bytes_max();
        }
        let (bytes, bound) = std::mem::take(&mut self.roster);
        // Not counted: with short leases members come and go for ever, and that is no progress towards rest.
        let frames = self.frames;
        self.deliver(connection, bound, |payload| payload.extend_from_slice(&bytes));
        (self.roster, self.frames) = ((bytes, bound), frames);
    }

    fn entries(&mut self, connection: ConnectionId, id: CommandId, frame: &EntriesFrame<'_>) {
        self.deliver(connection, frame.bytes_max(), |payload| encode::entries(payload, &id, frame));
    }

    fn job(&mut self, connection: ConnectionId, frame: &JobFrame<'_>) {
        self.deliver(connection, frame.bytes_max(), |payload| encode::job(payload, frame));
    }

    fn run(&mut self, connection: ConnectionId, frame: &RunFrame<'_>) {
        self.deliver(connection, frame.bytes_max(), |payload| encode::run(payload, frame));
    }

    fn dead(&mut self, connection: ConnectionId, id: CommandId, frame: &DeadFrame<'_>) {
        self.deliver(connection, frame.bytes_max(), |payload| encode::dead(payload, &id, frame));
    }

    fn history(
        &mut self,
        connection: ConnectionId,
        id: CommandId,
        head: &HistoryHead<'_>,
        items: &mut dyn Iterator<Item = PageItem<'_>>,
    ) {
        let room = self.room(connection);
        self.deliver(connection, room, |payload| encode::history(payload, &id, head, items));
    }
}
