//! From received bytes to messages, and what happens to those that cannot be taken yet.

use super::connection::{Door, Held, State};
use super::send_queue::Class;
use super::service::{Service, Taken};
use super::websocket::{Message, Opcode, append_frame};
use super::{CloseWords, Net, RETRIES_PER_TURN_MAX};
use crate::ring::{Filled, Ring};
use shards::ids::{ConnectionId, Now};

/// Buffers kept for messages that come in parts, and the largest one kept.
const SPARE_BUFFERS_MAX: usize = 64;
const SPARE_BYTES_MAX: usize = 64 << 10;

/// A message that waits for so long makes its sender hear of it.
const SLOW_DOWN_AFTER_US: u64 = 250_000;

/// How decoding ended.
enum Outcome {
    /// All bytes are taken.
    All,
    /// The service has no room.
    Held(Box<Held>),
    /// The peer closes.
    PeerCloses(Option<u16>),
    /// The connection is failed with this code.
    Fail(CloseWords),
}

impl Net {
    /// Bytes of an open, closing or finishing connection.
    pub(super) fn received<S: Service>(
        &mut self,
        id: ConnectionId,
        bytes: &mut [u8],
        now: Now,
        ring: &mut Ring,
        service: &mut S,
    ) {
        let Some(connection) = self.table.get_mut(id) else { return };
        connection.heard_us = now.mono_us;
        connection.pinged = false;
        match (connection.state, &mut connection.held) {
            (State::Open, Some(held)) => {
                // From here on TCP holds the peer back; what was under way still comes, bounded by the receive buffers. One message
                // that waits for its turn is not worth a cancel.
                held.rest.extend_from_slice(bytes);
                let owner = held.owner;
                self.charge_held(owner, bytes.len(), ring);
                self.stop_receiving(id, ring);
            }
            (State::Open | State::Closing, _) => self.take(id, bytes, now, ring, service),
            // A peer that goes on talking while it does not read what is left for it: TCP holds it back from here on.
            (State::Finishing, _) if !connection.fin && connection.receiving && connection.pending == 0 => {
                connection.pending += 1;
                cancel_receive(id, ring);
            }
            _ => {}
        }
    }

    /// Tries held inputs again, those whose turn it is. Returns how many got on.
    pub fn retry<S: Service>(&mut self, now: Now, ring: &mut Ring, service: &mut S) -> usize {
        let mut progress = 0;
        while let Some(id) = service.next_held() {
            progress += self.retry_one(id, now, ring, service);
        }
        for _ in 0..self.waiting.len().min(RETRIES_PER_TURN_MAX) {
            let Some(id) = self.waiting.pop_front() else { break };
            progress += self.retry_one(id, now, ring, service);
        }
        progress
    }

    fn retry_one<S: Service>(&mut self, id: ConnectionId, now: Now, ring: &mut Ring, service: &mut S) -> usize {
        let Some(connection) = self.table.get_mut(id) else { return 0 };
        let Some(mut held) = connection.held.take() else { return 0 };
        self.holding -= 1;
        self.held.sub(held.owner, held.message.capacity() + held.rest.len());
        let door = connection.door;
        let waited_us = now.mono_us.saturating_sub(held.since_us);
        let overdue_us = (waited_us > self.config.held_timeout_us).then_some(waited_us);
        service.came(held.since_us);
        let taken = if held.text {
            match std::str::from_utf8(&held.message) {
                Ok(text) => service.text(id, door, text, held.place, overdue_us, &mut self.sends),
                // Checked before it was held; a refusal is better than a panic all the same.
                Err(_) => Taken::Close((1007, "text is not UTF-8: send UTF-8")),
            }
        } else {
            service.binary(id, door, &held.message, held.place, &mut self.sends)
        };
        match taken {
            Taken::Later { place } => {
                let progress = usize::from(place != held.place);
                held.place = place;
                if waited_us > SLOW_DOWN_AFTER_US && !std::mem::replace(&mut held.told, true) {
                    service.slow_down(id, door, waited_us, &mut self.sends);
                }
                self.hold(id, held, ring, service);
                return progress;
            }
            Taken::Close(words) => self.fail(id, words, now, ring, service),
            Taken::All => {
                let mut rest = std::mem::take(&mut held.rest);
                self.give_spare(held.message);
                self.take(id, &mut rest, now, ring, service);
                self.progress(id, now, ring, service);
            }
        }
        1
    }

    /// Decodes `bytes` and does what they ask.
    pub(super) fn take<S: Service>(
        &mut self,
        id: ConnectionId,
        bytes: &mut [u8],
        now: Now,
        ring: &mut Ring,
        service: &mut S,
    ) {
        match self.decode(id, bytes, now, service) {
            Outcome::All => {}
            Outcome::Held(held) => self.hold(id, held, ring, service),
            Outcome::PeerCloses(code) => self.peer_closes(id, code, now, ring, service),
            Outcome::Fail(words) => self.fail(id, words, now, ring, service),
        }
    }

    /// Closes connections whose replies nobody reads. Call it after anything that queued replies.
    pub fn close_overrun<S: Service>(&mut self, now: Now, ring: &mut Ring, service: &mut S) {
        while let Some(id) = self.sends.next_overrun() {
            self.fail(id, self.config.closes.too_slow, now, ring, service);
        }
    }

    fn decode<S: Service>(&mut self, id: ConnectionId, bytes: &mut [u8], now: Now, service: &mut S) -> Outcome {
        let Some(connection) = self.table.get_mut(id) else { return Outcome::All };
        let (door, hears) = (connection.door, connection.state == State::Open && !connection.deaf);
        let mut decoder = connection.decoder.clone();
        let mut assembly = std::mem::take(&mut connection.assembly);
        let before = assembly.capacity();
        if before == 0 {
            assembly = self.spare.pop().unwrap_or_default();
        }

        let mut outcome = Outcome::All;
        let mut at = 0;
        while at < bytes.len() {
            let (used, message) = match decoder.next(&mut bytes[at..], &mut assembly) {
                Ok(step) => step,
                Err(violation) => {
                    outcome = Outcome::Fail((violation.close_code(), violation.reason()));
                    break;
                }
            };
            at += used;
            let (text, payload, taken) = match message {
                None => continue,
                Some(Message::Close { code, .. }) => {
                    outcome = Outcome::PeerCloses(code);
                    break;
                }
                Some(Message::Pong(_)) => continue,
                // After our close frame, or shortly before it, data is read only to find the peer's.
                Some(_) if !hears => continue,
                Some(Message::Ping(payload)) => {
                    self.answer.clear();
                    append_frame(&mut self.answer, Opcode::Pong, payload);
                    self.sends.push(id, &self.answer, Class::Reply);
                    continue;
                }
                Some(Message::Text(text)) => {
                    (true, text.as_bytes(), service.text(id, door, text, 0, None, &mut self.sends))
                }
                Some(Message::Binary(payload)) => {
                    (false, payload, service.binary(id, door, payload, 0, &mut self.sends))
                }
            };
            match taken {
                Taken::All => {}
                Taken::Close(words) => {
                    outcome = Outcome::Fail(words);
                    break;
                }
                Taken::Later { place } => {
                    let (message, rest, since_us) = (payload.to_vec(), bytes[at..].to_vec(), now.mono_us);
                    let (owner, told) = (0, false);
                    outcome = Outcome::Held(Box::new(Held { text, message, place, rest, since_us, owner, told }));
                    break;
                }
            }
        }

        let after = if decoder.holds_assembly() { assembly.capacity() } else { 0 };
        if after == 0 {
            self.give_spare(std::mem::take(&mut assembly));
        }
        self.assembly_bytes = self.assembly_bytes + after - before;
        if let Some(connection) = self.table.get_mut(id) {
            connection.decoder = decoder;
            connection.assembly = assembly;
        }
        if self.assembly_bytes > self.config.assembly_bytes_max && after > 0 {
            return Outcome::Fail(self.config.closes.unavailable);
        }
        outcome
    }

    /// Keeps input that has no room or not its turn. The second message stops the socket from bringing more.
    fn hold<S: Service>(&mut self, id: ConnectionId, mut held: Box<Held>, ring: &mut Ring, service: &mut S) {
        let Some(connection) = self.table.get_mut(id) else { return };
        self.holding += 1;
        let (more, bytes) = (!held.rest.is_empty(), held.message.capacity() + held.rest.len());
        let owner = service.owner(id);
        (connection.owner, held.owner) = (owner, owner);
        connection.sips = true;
        connection.held = Some(held);
        if connection.door == Door::Echo {
            self.waiting.push_back(id);
        }
        if more {
            self.stop_receiving(id, ring);
        }
        self.charge_held(owner, bytes, ring);
    }

    pub(super) fn stop_receiving(&mut self, id: ConnectionId, ring: &mut Ring) {
        if let Some(connection) = self.table.get_mut(id)
            && connection.receiving
            && connection.pending == 0
        {
            connection.pending += 1;
            cancel_receive(id, ring);
        }
    }

    /// Lends a buffer that was read to the kernel again, unless too much input waits for room of all tenants together: what was
    /// under way when theirs were no longer read. Then the kernel runs out of buffers and its receives end: every sender is
    /// slowed by TCP, and what waits stays bounded by what was lent.
    pub(super) fn return_buffer(&mut self, buffer: Filled, ring: &mut Ring) {
        if self.held.total() + ring.recv_buffers.bytes() > self.config.held_bytes_max {
            self.kept.push(buffer);
        } else {
            ring.recv_buffers.give_back(buffer);
        }
    }

    /// Takes a used buffer back for the next message that comes in parts.
    pub(super) fn give_spare(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() > 0 && buffer.capacity() <= SPARE_BYTES_MAX && self.spare.len() < SPARE_BUFFERS_MAX {
            buffer.clear();
            self.spare.push(buffer);
        }
    }
}

pub(super) fn cancel_receive(id: ConnectionId, ring: &mut Ring) {
    use crate::ring::{Kind, UserData};
    ring.cancel(UserData::new(Kind::Recv, id.slot, id.generation), UserData::new(Kind::Cancel, id.slot, id.generation));
}
