//! What a connection's completions lead to, and what its state needs next.

use super::Net;
use super::connection::State;
use super::service::Service;
use crate::ring::{Completion, Kind, Ring, UserData};
use shards::ids::{ConnectionId, Now};

impl Net {
    /// Handles a completion of one of this module's kinds. Call [`Net::rearm`] after each batch.
    pub fn complete<S: Service>(&mut self, completion: &Completion, now: Now, ring: &mut Ring, service: &mut S) {
        match completion.user_data.kind() {
            Kind::Accept => self.accepted(completion, now, ring),
            Kind::Upgrade | Kind::Recv => self.receive_completed(completion, now, ring, service),
            Kind::Send => {
                if let Some((id, good)) = self.sent(completion, now.mono_us) {
                    if !good {
                        self.end(id, now, ring, service);
                    }
                    self.progress(id, now, ring, service);
                }
            }
            Kind::Cancel | Kind::Shutdown => {
                let id = connection_of(completion);
                if let Some(connection) = self.table.get_mut(id) {
                    connection.pending -= 1;
                    self.progress(id, now, ring, service);
                }
            }
            Kind::Close => {
                let id = connection_of(completion);
                if self.table.get(id).is_some_and(|c| c.close) {
                    self.forget(id);
                }
            }
            Kind::HandOffSent | Kind::HandOffClosed => self.hand_off_completed(completion, now, ring, service),
            Kind::HandOff => self.handed_over(completion, now, ring, service),
            _ => {}
        }
    }

    /// Arms receives that found no buffer, now that the batch has given its buffers back; while buffers are kept, once half
    /// of what had to wait has found room.
    pub fn rearm<S: Service>(&mut self, now: Now, ring: &mut Ring, service: &mut S) {
        if !self.kept.is_empty() {
            if self.held.total() > (self.config.held_bytes_max - ring.recv_buffers.bytes()) / 2 {
                return;
            }
            self.kept.drain(..).for_each(|buffer| ring.recv_buffers.give_back(buffer));
        }
        for id in std::mem::take(&mut self.unarmed) {
            self.progress(id, now, ring, service);
        }
        self.read_again(now, ring, service);
    }

    fn receive_completed<S: Service>(&mut self, completion: &Completion, now: Now, ring: &mut Ring, service: &mut S) {
        let id = connection_of(completion);
        let (mut upgrading, mut secure) = (false, false);
        if let Some(connection) = self.table.get_mut(id) {
            connection.receiving = completion.more();
            // Not by the kind of the receive: one that was asked for while the request waited may bring the first frame.
            upgrading = matches!(connection.state, State::Upgrading | State::Waiting);
            secure = !connection.transport.is_plain();
        }
        if let Some(bid) = completion.buffer() {
            let len = completion.ok().unwrap_or(0) as usize;
            if len > 0 && self.table.get(id).is_some() {
                let mut bytes = ring.recv_buffers.take(bid, len);
                if secure {
                    self.secure_received(id, &bytes, now, ring, service);
                } else if upgrading {
                    self.upgrade_received(id, &bytes, now, ring, service);
                } else {
                    self.received(id, &mut bytes, now, ring, service);
                }
                self.return_buffer(bytes, ring);
                self.progress(id, now, ring, service);
                return;
            }
            ring.recv_buffers.recycle(bid);
        }
        match completion.ok() {
            Ok(0) if !completion.more() => self.goes(id, true),
            Ok(_) | Err(libc::ECANCELED | libc::EINTR | libc::EAGAIN) => self.progress(id, now, ring, service),
            Err(libc::ENOBUFS) => {
                self.stats.buffers_short += 1;
                self.unarmed.push(id);
            }
            Err(_) => self.goes(id, false),
        }
    }

    /// The peer has gone; [`Net::see_off`] does the rest. When thousands go at once the rest is what everybody else would wait for.
    pub(super) fn goes(&mut self, id: ConnectionId, orderly: bool) {
        if let Some(connection) = self.table.get_mut(id) {
            // Nothing is received from it meanwhile.
            connection.eof = true;
            self.gone.push_back((id, orderly));
        }
    }

    /// Ends connections whose peers have gone, some a turn. Returns how many.
    pub fn see_off<S: Service>(&mut self, now: Now, ring: &mut Ring, service: &mut S) -> usize {
        let count = self.gate.see_off(self.gone.len());
        for _ in 0..count {
            let Some((id, orderly)) = self.gone.pop_front() else { break };
            if orderly {
                self.eof(id, now, ring, service);
                self.progress(id, now, ring, service);
            } else {
                self.end(id, now, ring, service);
            }
        }
        count
    }

    /// Asks for whatever the connection's state needs next and is not under way.
    pub(super) fn progress<S: Service>(&mut self, id: ConnectionId, now: Now, ring: &mut Ring, service: &mut S) {
        let Some(connection) = self.table.get_mut(id) else { return };
        match connection.state {
            State::HandingOff { .. } => {}
            State::Upgrading | State::Waiting | State::Open | State::Closing => self.arm_receive(id, ring),
            State::Finishing => {
                let (socket, eof, fin) = (connection.socket, connection.eof, connection.fin);
                if self.has_sent_all(id) {
                    if eof {
                        self.end(id, now, ring, service);
                        return;
                    }
                    if let Some(connection) = self.table.get_mut(id).filter(|_| !fin) {
                        connection.fin = true;
                        connection.pending += 1;
                        ring.shutdown(socket, false, UserData::new(Kind::Shutdown, id.slot, id.generation));
                    }
                    self.arm_receive(id, ring);
                }
            }
            State::Ending => {
                let quiet = !connection.receiving && connection.pending == 0;
                let quiet = quiet && !self.is_sending(id);
                if let Some(connection) = self.table.get_mut(id).filter(|c| quiet && !c.close) {
                    connection.close = true;
                    ring.close(connection.socket, UserData::new(Kind::Close, id.slot, id.generation));
                    self.sends.close(id);
                }
            }
        }
    }
}

pub(super) fn connection_of(completion: &Completion) -> ConnectionId {
    ConnectionId { slot: completion.user_data.slot(), generation: completion.user_data.generation() }
}
