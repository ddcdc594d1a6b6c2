//! Connections come, are understood, and perhaps move to the shard that owns them.

use super::connection::{Connection, State};
use super::lifecycle::connection_of;
use super::send_queue::Class;
use super::service::{Admission, Adoption, Service};
use super::websocket::Decoder;
use super::{ACCEPT_RETRY_US, Net};
use crate::ring::{Completion, Kind, Ring, Socket, UserData};
use shards::ids::{ConnectionId, Now, ShardId};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// A listening socket. Most often a shard has one; after a takeover with fewer shards some have more.
pub(super) struct Listener {
    socket: OwnedFd,
    /// An accept is with the kernel.
    armed: bool,
}

impl Listener {
    fn user_data(at: usize) -> UserData {
        UserData::new(Kind::Accept, at as u32, 0)
    }
}

impl Net {
    /// Starts to accept from these sockets.
    pub fn listen(&mut self, listeners: Vec<OwnedFd>, ring: &mut Ring) {
        self.listeners = listeners.into_iter().map(|socket| Listener { socket, armed: false }).collect();
        self.listen_again(ring);
    }

    /// Accepts again after [`Net::stop_listening`].
    pub fn listen_again(&mut self, ring: &mut Ring) {
        self.accepting = true;
        self.arm_accept(ring);
    }

    /// Accepts nothing more. Connections that are there go on; so do those that the kernel has accepted already.
    pub fn stop_listening(&mut self, ring: &mut Ring) {
        self.accepting = false;
        self.accept_retry_us = None;
        for at in (0..self.listeners.len()).filter(|at| self.listeners[*at].armed) {
            ring.cancel(Listener::user_data(at), UserData::new(Kind::AcceptCancel, at as u32, 0));
        }
    }

    /// Are connections accepted?
    pub fn is_listening(&self) -> bool {
        self.accepting
    }

    pub(super) fn arm_accept(&mut self, ring: &mut Ring) {
        if !self.accepting {
            return;
        }
        for (at, listener) in self.listeners.iter_mut().enumerate().filter(|(_, listener)| !listener.armed) {
            ring.accept(listener.socket.as_raw_fd(), Listener::user_data(at));
            listener.armed = true;
        }
    }

    pub(super) fn accepted(&mut self, completion: &Completion, now: Now, ring: &mut Ring) {
        if let (false, Some(listener)) =
            (completion.more(), self.listeners.get_mut(completion.user_data.slot() as usize))
        {
            listener.armed = false;
        }
        match completion.ok() {
            Ok(number) => {
                let socket = socket(number, ring);
                // One that came while the accept was being taken back is served like those before it: it gets an answer.
                if self.table.is_full() {
                    ring.close(socket, UserData::only(Kind::Close));
                } else {
                    self.stats.accepted += 1;
                    let deadline = now.mono_us + self.config.handshake_timeout_us;
                    let id = self.admit(Connection::new(socket, now.mono_us, deadline));
                    self.arm_receive(id, ring);
                }
                if !completion.more() {
                    self.arm_accept(ring);
                }
            }
            // No slot or descriptor is free, or the listener is being taken away: try again a little later.
            Err(_) if !completion.more() && self.accepting => {
                self.accept_retry_us = Some(now.mono_us + ACCEPT_RETRY_US)
            }
            Err(_) => {}
        }
    }

    fn admit(&mut self, connection: Connection) -> ConnectionId {
        let deadline = connection.deadline_us;
        let id = self.table.insert(connection);
        self.sends.open(id);
        self.wheel.set(id.slot, deadline);
        id
    }

    /// Takes a socket that a peer has given. Direct sockets come by ring and find their request announced.
    pub(super) fn handed_over<S: Service>(
        &mut self,
        completion: &Completion,
        now: Now,
        ring: &mut Ring,
        service: &mut S,
    ) {
        let from = ShardId(completion.user_data.slot() as u16);
        let Ok(slot) = completion.ok() else { return };
        match service.adopt(from, completion.user_data.generation()) {
            Some(adoption) => self.adopt(Socket::Direct(slot), adoption.head, now, ring, service),
            None => ring.close(Socket::Direct(slot), UserData::only(Kind::Close)),
        }
    }

    /// Takes a socket with the bytes that were received from it elsewhere.
    pub fn adopt<S: Service>(&mut self, socket: Socket, head: Vec<u8>, now: Now, ring: &mut Ring, service: &mut S) {
        if self.table.is_full() {
            ring.close(socket, UserData::only(Kind::Close));
            return;
        }
        self.stats.adopted += 1;
        let deadline = now.mono_us + self.config.handshake_timeout_us;
        let mut connection = Connection::new(socket, now.mono_us, deadline);
        self.assembly_bytes += head.capacity();
        connection.assembly = head;
        let id = self.admit(connection);
        self.upgrade(id, false, now, ring, service);
    }

    pub(super) fn upgrade_received<S: Service>(
        &mut self,
        id: ConnectionId,
        bytes: &[u8],
        now: Now,
        ring: &mut Ring,
        service: &mut S,
    ) {
        let Some(connection) = self.table.get_mut(id) else { return };
        if connection.state != State::Upgrading {
            return;
        }
        let before = connection.assembly.capacity();
        connection.assembly.extend_from_slice(bytes);
        self.assembly_bytes += connection.assembly.capacity() - before;
        if self.assembly_bytes > self.config.assembly_bytes_max {
            self.end(id, now, ring, service);
            return;
        }
        self.upgrade(id, true, now, ring, service);
    }

    fn upgrade<S: Service>(
        &mut self,
        id: ConnectionId,
        may_hand_off: bool,
        now: Now,
        ring: &mut Ring,
        service: &mut S,
    ) {
        let full = self.table.len() > self.config.connections_max;
        let mut answer = std::mem::take(&mut self.answer);
        answer.clear();
        if let Some(connection) = self.table.get_mut(id) {
            match service.head(id, &connection.assembly, may_hand_off, full, &mut answer) {
                Admission::Incomplete => {}
                Admission::Answer => {
                    self.drop_assembly(id);
                    self.sends.push_last(id, &answer);
                    self.finish(id, now);
                }
                Admission::Open { head_bytes, frame_bytes_max, door } => {
                    connection.state = State::Open;
                    connection.door = door;
                    connection.known = true;
                    connection.decoder = Decoder::new(frame_bytes_max);
                    connection.heard_us = now.mono_us;
                    self.stats.opened += 1;
                    self.sends.push(id, &answer, Class::Reply);
                    self.wheel.set(id.slot, now.mono_us + self.config.ping_interval_us);
                    let mut rest = connection.assembly.split_off(head_bytes.min(connection.assembly.len()));
                    self.drop_assembly(id);
                    self.take(id, &mut rest, now, ring, service);
                }
                Admission::HandOff { shard } => {
                    answer.clear();
                    self.answer = answer;
                    self.hand_off(id, shard, now, ring, service);
                    return;
                }
            }
        }
        self.answer = answer;
        self.progress(id, now, ring, service);
    }

    fn hand_off<S: Service>(&mut self, id: ConnectionId, to: ShardId, now: Now, ring: &mut Ring, service: &mut S) {
        let Some(connection) = self.table.get_mut(id) else { return };
        self.ticket = self.ticket.wrapping_add(1);
        let ticket = self.ticket;
        let fd = match connection.socket {
            Socket::Fd(fd) => Some(fd),
            Socket::Direct(_) => None,
        };
        let adoption = Adoption { from: self.config.shard, ticket, fd, head: connection.assembly.clone() };
        let given = service.give(to, adoption);
        match (given, connection.socket) {
            (Err(_), _) => self.upgrade(id, false, now, ring, service),
            // The descriptor has a new owner; nothing of it is with our kernel side.
            (Ok(_), Socket::Fd(_)) => {
                self.stats.given += 1;
                self.forget(id);
            }
            (Ok(peer), Socket::Direct(slot)) => {
                connection.state = State::HandingOff { ticket };
                connection.pending = 2;
                let (slot_here, generation) = (id.slot, id.generation);
                ring.hand_off(
                    slot,
                    peer,
                    UserData::new(Kind::HandOff, u32::from(self.config.shard.0), ticket),
                    UserData::new(Kind::HandOffSent, slot_here, generation),
                    UserData::new(Kind::HandOffClosed, slot_here, generation),
                );
            }
        }
    }

    pub(super) fn hand_off_completed<S: Service>(
        &mut self,
        completion: &Completion,
        now: Now,
        ring: &mut Ring,
        service: &mut S,
    ) {
        let id = connection_of(completion);
        let Some(connection) = self.table.get_mut(id) else { return };
        let State::HandingOff { ticket } = connection.state else { return };
        connection.pending -= 1;
        match (completion.user_data.kind(), completion.ok()) {
            (Kind::HandOffSent, sent) => service.given(ticket, sent.is_ok()),
            (Kind::HandOffClosed, Ok(_)) => {
                self.stats.given += 1;
                self.forget(id);
            }
            // Not moved, so not closed either: it is served here.
            (Kind::HandOffClosed, Err(_)) => {
                connection.state = State::Upgrading;
                connection.deadline_us = now.mono_us + self.config.handshake_timeout_us;
                self.wheel.set(id.slot, connection.deadline_us);
                self.upgrade(id, false, now, ring, service);
            }
            _ => {}
        }
    }
}

fn socket(number: u32, ring: &Ring) -> Socket {
    if ring.direct_slots() > 0 { Socket::Direct(number) } else { Socket::Fd(number as RawFd) }
}
