//! Connections that speak TLS, on their way through [`Net`]: what differs from those that do not, and nothing else.
//!
//! ```text
//!   first bytes ─┬─ no TLS: an answer in plain words, closed
//!                ├─ gate open: taken at once
//!                └─ gate shut: a line, like all newcomers: a handshake costs more than anything else they do
//!                              └ too long: an alert, which costs nothing. When to come back cannot be said before a handshake
//!   later bytes ─► plaintext ─► as if it had come from the socket
//! ```

use super::Net;
use super::connection::State;
use super::lifecycle::connection_of;
use super::service::Service;
use super::tls::{HANDSHAKE_BYTES_MAX, SEND_BYTES_MAX, Tls, Took, Transport};
use crate::ring::{Completion, Kind, Ring, UserData};
use shards::ids::{ConnectionId, Now};
use std::io;
use std::sync::Arc;

/// A record that is not encrypted: fatal, internal_error, for whom there is no time or no memory.
pub(super) const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

impl Net {
    /// Sockets accepted from now on speak TLS with this configuration; those that are there go on with theirs.
    pub fn secure(&mut self, config: Arc<rustls::ServerConfig>) {
        self.tls = Some(config);
    }

    /// How bytes of a new socket travel.
    pub(super) fn transport(&self) -> Transport {
        self.tls.as_ref().and_then(Tls::new).map_or(Transport::Plain, Transport::Tls)
    }

    /// Bytes of a connection that speaks TLS.
    pub(super) fn secure_received<S: Service>(
        &mut self,
        id: ConnectionId,
        bytes: &[u8],
        now: Now,
        ring: &mut Ring,
        service: &mut S,
    ) {
        let Some(connection) = self.table.get_mut(id) else { return };
        let (state, silent) = (connection.state, connection.assembly.is_empty());
        let Some(tls) = connection.transport.tls() else { return };
        if !matches!(state, State::Upgrading | State::Waiting | State::Open | State::Closing) || tls.is_broken() {
            // What comes now is thrown away, or held back.
            return self.received(id, &mut [], now, ring, service);
        }
        if tls.admitted {
            return self.decrypt(id, bytes, now, ring, service);
        }
        if silent && !Tls::begins(bytes) {
            return self.tell_plain(id, bytes, now, ring, service);
        }
        let before = connection.assembly.capacity();
        connection.assembly.extend_from_slice(bytes);
        self.assembly_bytes += connection.assembly.capacity() - before;
        if connection.assembly.len() > HANDSHAKE_BYTES_MAX || self.assembly_bytes > self.config.assembly_bytes_max {
            self.stats.handshakes_failed += 1;
            return self.end(id, now, ring, service);
        }
        if state == State::Waiting {
            return;
        }
        if self.gate.is_open() && self.lines.is_empty() {
            return self.shake_hands(id, now, ring, service);
        }
        if self.is_short_of_memory() || self.gate.is_too_long(self.lines.len()) {
            self.refuse(id, now, service);
            return self.progress(id, now, ring, service);
        }
        if let Some(connection) = self.table.get_mut(id) {
            connection.state = State::Waiting;
        }
        self.stats.waited += 1;
        self.lines.join(id, None);
    }

    /// Its turn has come, or nobody waits: the handshake begins with the bytes that have come.
    pub(super) fn shake_hands<S: Service>(&mut self, id: ConnectionId, now: Now, ring: &mut Ring, service: &mut S) {
        let Some(connection) = self.table.get_mut(id) else { return };
        let Some(tls) = connection.transport.tls() else { return };
        tls.admitted = true;
        connection.state = State::Upgrading;
        self.gate.take();
        let bytes = std::mem::take(&mut connection.assembly);
        self.assembly_bytes -= bytes.capacity().min(self.assembly_bytes);
        self.decrypt(id, &bytes, now, ring, service);
        self.give_spare(bytes);
        self.progress(id, now, ring, service);
    }

    fn decrypt<S: Service>(&mut self, id: ConnectionId, bytes: &[u8], now: Now, ring: &mut Ring, service: &mut S) {
        let Some(connection) = self.table.get_mut(id) else { return };
        let Some(tls) = connection.transport.tls() else { return };
        let mut plain = std::mem::take(&mut self.plain);
        plain.clear();
        let was_shaking = tls.is_handshaking();
        let took = tls.take(bytes, &mut plain);
        self.stats.handshakes += u64::from(was_shaking && !tls.is_handshaking());
        // An answer of the handshake, an alert, or a ticket; most often nothing.
        self.secure_dirty.push(id);
        if !plain.is_empty() {
            match connection.state {
                State::Upgrading | State::Waiting => self.upgrade_received(id, &plain, now, ring, service),
                _ => self.received(id, &mut plain, now, ring, service),
            }
        }
        self.plain = plain;
        match took {
            Took::All => {}
            Took::Goodbye => self.goes(id, true),
            Took::Broken => {
                self.stats.handshakes_failed += u64::from(was_shaking);
                self.stats.records_broken += u64::from(!was_shaking);
                self.give_in(id, now, service);
            }
        }
    }

    /// Has its handshake yet to begin? Then what it is told is not encrypted.
    pub(super) fn is_before_handshake(&mut self, id: ConnectionId) -> bool {
        let Some(connection) = self.table.get_mut(id) else { return false };
        let before = connection.transport.tls().is_some_and(|tls| !tls.admitted);
        if before {
            connection.transport = Transport::Plain;
        }
        before
    }

    /// Somebody speaks plain where TLS is spoken: in words, if they look like it.
    fn tell_plain<S: Service>(&mut self, id: ConnectionId, bytes: &[u8], now: Now, ring: &mut Ring, service: &mut S) {
        self.stats.plain_on_tls += 1;
        if !bytes.first().is_some_and(u8::is_ascii_uppercase) {
            return self.end(id, now, ring, service);
        }
        if let Some(connection) = self.table.get_mut(id) {
            connection.transport = Transport::Plain;
        }
        let mut answer = std::mem::take(&mut self.refusal);
        answer.clear();
        service.not_secure(&mut answer);
        self.sends.push_last(id, &answer);
        self.refusal = answer;
        self.finish(id, now);
    }

    /// Begins what the TLS of connections has to send. Returns how many it looked at.
    ///
    /// # Errors
    /// The ring is unusable.
    pub(super) fn transmit_secure(&mut self, ring: &mut Ring) -> io::Result<usize> {
        let mut count = 0;
        loop {
            let has_room = self.secure_bytes < self.config.sends.shard_send_bytes_max;
            let waiting = || if has_room { self.secure_waiting.pop_front() } else { None };
            let Some(id) = self.secure_dirty.pop().or_else(waiting) else { return Ok(count) };
            self.begin_secure(id, ring);
            ring.enter_if_many_sends()?;
            count += 1;
        }
    }

    /// Sends what is ready, and of the send queue what fits behind it.
    fn begin_secure(&mut self, id: ConnectionId, ring: &mut Ring) {
        // Nothing is begun on a socket that is on its way out: its number may soon be another's.
        let Some(connection) = self.table.get_mut(id).filter(|c| c.state != State::Ending) else { return };
        let socket = connection.socket;
        let Some(tls) = connection.transport.tls() else { return };
        let before = tls.out_bytes();
        let full = self.secure_bytes >= self.config.sends.shard_send_bytes_max;
        if tls.takes_plain() && full && !self.sends.is_empty(id) {
            // A frame that is shared by thousands of queues is encrypted for each: not for all of them at once.
            self.secure_waiting.push_back(id);
        } else if tls.takes_plain() {
            let pieces = &mut self.scratch.pieces;
            self.sends.begin(id, pieces, SEND_BYTES_MAX);
            for piece in pieces.iter() {
                // SAFETY: the piece stays where it is, and unchanged, until `sends.completed`, which is not called here.
                tls.put(unsafe { std::slice::from_raw_parts(piece.bytes, piece.len) });
            }
        }
        if let Some(bytes) = tls.begin() {
            let user_data = UserData::new(Kind::Send, id.slot, id.generation);
            // SAFETY: the bytes are `out` of this connection's TLS, which is neither changed nor dropped before the completion: it is
            // changed only where no send is under way, and a slot is free only when its sends are through.
            unsafe { ring.send(socket, bytes.as_ptr(), bytes.len() as u32, user_data) };
        }
        self.secure_bytes = self.secure_bytes + tls.out_bytes() - before;
    }

    /// A send of a connection that speaks TLS is over. Whether that was in order.
    pub(super) fn secure_sent(&mut self, completion: &Completion) -> bool {
        let id = connection_of(completion);
        let Some(tls) = self.table.get_mut(id).and_then(|connection| connection.transport.tls()) else { return true };
        let before = tls.out_bytes();
        let (good, plain) = match completion.ok() {
            Ok(bytes) => (true, tls.completed(bytes as usize).filter(|plain| *plain > 0)),
            Err(libc::EINTR | libc::EAGAIN) => (true, tls.completed(0).filter(|plain| *plain > 0)),
            Err(_) => {
                tls.gives_up();
                (false, Some(0))
            }
        };
        self.secure_bytes -= before - tls.out_bytes();
        if let Some(plain) = plain {
            self.sends.completed(id, plain);
        }
        // More may wait, here or in the send queue.
        self.secure_dirty.push(id);
        good
    }

    /// A connection's slot is given back.
    pub(super) fn forget_secure(&mut self, id: ConnectionId) {
        if let Some(tls) = self.table.get_mut(id).and_then(|connection| connection.transport.tls()) {
            self.secure_bytes -= tls.out_bytes();
        }
    }

    /// A send of this connection is with the kernel.
    pub(super) fn is_sending(&mut self, id: ConnectionId) -> bool {
        let secure = self.table.get_mut(id).and_then(|connection| connection.transport.tls());
        secure.is_some_and(|tls| tls.is_sending()) || self.sends.is_in_flight(id)
    }

    /// Everything that was queued is sent, the goodbye included.
    pub(super) fn has_sent_all(&mut self, id: ConnectionId) -> bool {
        let empty = self.sends.is_empty(id);
        let Some(tls) = self.table.get_mut(id).and_then(|connection| connection.transport.tls()) else { return empty };
        if !empty && !tls.is_broken() {
            return false;
        }
        if !tls.is_handshaking() && tls.say_goodbye() {
            self.secure_dirty.push(id);
            return false;
        }
        tls.is_idle()
    }
}
