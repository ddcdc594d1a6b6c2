//! Connections come, are understood, and perhaps move to the shard that owns them.
//!
//! ```text
//!   kernel's backlog ─► accepted, silent ─► request ─┬─► gate open: upgraded at once
//!     costs nothing                                  ├─► gate shut: a line, resumes first ─► upgraded in a later turn
//!     and ranks nobody                               └─► the line is too long: 503, come back in N s
//! ```
//! Waiting is better than being refused, for both sides, while it is short: a refusal costs most of what a handshake does, and the
//! client comes again. But who stands in the backlog has not said whether it resumes, and who waits longer than its own patience has
//! cost a handshake for nothing. So sockets are accepted, some a turn, their requests are read, and those who would wait too long
//! are told when to come back. Only a shard that has no memory for more requests leaves them in the backlog.

use super::connection::{Connection, State};
use super::lifecycle::connection_of;
use super::secure::ALERT;
use super::send_queue::Class;
use super::service::{Admission, Adoption, Knock, Service};
use super::tls::Transport;
use super::vital::give_up_after;
use super::websocket::Decoder;
use super::{ACCEPT_LOOK_US, ACCEPT_RETRY_US, HEAD_BYTES_MAX, Net, SILENT_US_MIN};
use crate::ring::{Completion, Kind, Ring, Socket, UserData};
use shards::ids::{ConnectionId, Now, ShardId};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// A listening socket. Most often a shard has one; after a takeover with fewer shards some have more.
pub(super) struct Listener {
    socket: OwnedFd,
    /// Accepts with the kernel.
    accepts: u32,
}

impl Listener {
    fn user_data(at: usize) -> UserData {
        UserData::new(Kind::Accept, at as u32, 0)
    }
}

/// Why a request is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    /// More of it has come.
    Arrived,
    /// It has come from another shard, or could not go there.
    Moved,
    /// It has waited for its turn.
    ItsTurn,
}

impl Net {
    /// Starts to accept from these sockets, with the next [`Net::admit`].
    pub fn listen(&mut self, listeners: Vec<OwnedFd>) {
        for socket in &listeners {
            if let Err(error) = give_up_after(socket, self.config.idle_timeout_us) {
                tracing::warn!(%error, "peers that vanish are only found by the kernel's own timeout");
            }
        }
        self.listeners = listeners.into_iter().map(|socket| Listener { socket, accepts: 0 }).collect();
        self.listen_again();
    }

    /// Accepts again after [`Net::stop_listening`].
    pub fn listen_again(&mut self) {
        self.accepting = true;
    }

    /// Accepts nothing more. Connections that are there go on; so do those that the kernel has accepted already.
    pub fn stop_listening(&mut self, ring: &mut Ring) {
        self.accepting = false;
        self.accept_retry_us = None;
        for at in (0..self.listeners.len()).filter(|at| self.listeners[*at].accepts > 0) {
            ring.cancel_all(Listener::user_data(at), UserData::new(Kind::AcceptCancel, at as u32, 0));
        }
    }

    /// Are connections accepted?
    pub fn is_listening(&self) -> bool {
        self.accepting
    }

    /// Takes newcomers in: as many of those who wait as the gate lets through. Once a turn, behind the work of those who are
    /// in. Returns how many it looked at.
    pub fn admit<S: Service>(&mut self, now: Now, ring: &mut Ring, service: &mut S) -> usize {
        let mut count = 0;
        while self.gate.is_open()
            && let Some(id) = self.lines.next()
        {
            count += 1;
            let Some(connection) = self.table.get_mut(id).filter(|c| c.state == State::Waiting) else { continue };
            match connection.transport.tls() {
                Some(tls) if !tls.admitted => self.shake_hands(id, now, ring, service),
                _ => self.upgrade(id, Call::ItsTurn, now, ring, service),
            }
        }
        self.arm_accepts(now, ring, service);
        count
    }

    /// This turn has taken newcomers in, or seen others off: [`Net::turn_ended`] wants to know how long it was.
    pub fn took_newcomers(&self) -> bool {
        self.gate.was_used()
    }

    /// The turn is over, its requests are with the kernel.
    pub fn turn_ended(&mut self, turn_us: u64) {
        self.gate.turned(turn_us, self.lines.len(), self.gone.len(), self.waiting.len());
    }

    /// Others wait in the kernel's backlog, which costs nothing: as long as it takes nobody is refused.
    fn arm_accepts<S: Service>(&mut self, now: Now, ring: &mut Ring, service: &mut S) {
        let freed = std::mem::take(&mut self.freed);
        if !self.accepting || self.accept_retry_us.is_some() {
            return;
        }
        let wanted = self.accepts_wanted(freed).min(self.silent_room(now, ring, service));
        // Each has one at least: connections hash to all sockets of the group.
        let each = wanted.div_ceil(self.listeners.len().max(1));
        for (at, listener) in self.listeners.iter_mut().enumerate() {
            while (listener.accepts as usize) < each {
                ring.accept(listener.socket.as_raw_fd(), Listener::user_data(at));
                listener.accepts += 1;
            }
        }
        if wanted == 0 {
            self.accept_retry_us = Some(now.mono_us + ACCEPT_LOOK_US);
        }
    }

    /// How many accepts are to stand ready, where `freed` slots have become free lately.
    fn accepts_wanted(&self, freed: usize) -> usize {
        let (wanted, slots) = (self.gate.accepts() as usize, self.config.connections_max);
        let asked: usize = self.listeners.iter().map(|listener| listener.accepts as usize).sum();
        let taken = self.table.len() + asked;
        if self.is_short_of_memory() {
            1
        } else if taken >= slots {
            // The next one is told that there is no room; not while room is being made.
            usize::from(freed == 0)
        } else if taken >= slots - slots / 8 && freed > 0 {
            // Many went at once, and perhaps come back before their slots are free: one for one. What is left is for peers'.
            wanted.min(freed)
        } else {
            wanted
        }
    }

    /// How many more may be silent. One too many, and the oldest makes room, if it had its time.
    fn silent_room<S: Service>(&mut self, now: Now, ring: &mut Ring, service: &mut S) -> usize {
        let bound = self.config.silent_newcomers_max;
        if self.silent.count() < bound {
            return bound - self.silent.count();
        }
        while let Some(oldest) = self.silent.oldest(|id| self.table.get(id).is_some_and(|c| c.silent)) {
            // Silent since it came: nothing was heard after that.
            if self.table.get(oldest).is_some_and(|c| now.mono_us < c.heard_us + SILENT_US_MIN) {
                return 0;
            }
            if self.silent.count() <= bound {
                return 1;
            }
            self.stats.pushed_out += 1;
            self.spoken(oldest);
            self.end(oldest, now, ring, service);
        }
        1
    }

    /// Requests that wait may use half of what there is for bytes that have come in part.
    pub(super) fn is_short_of_memory(&self) -> bool {
        self.assembly_bytes > self.config.assembly_bytes_max / 2
    }

    pub(super) fn accepted(&mut self, completion: &Completion, now: Now, ring: &mut Ring) {
        if let Some(listener) = self.listeners.get_mut(completion.user_data.slot() as usize) {
            listener.accepts -= 1;
        }
        match completion.ok() {
            Ok(number) => {
                let socket = socket(number, ring);
                // One that came while the accept was being taken back is served like those before it: it gets an answer.
                if self.table.is_full() {
                    ring.close(socket, UserData::only(Kind::Close));
                    return;
                }
                self.stats.accepted += 1;
                let deadline = now.mono_us + self.config.handshake_timeout_us;
                let transport = self.transport();
                let id = self.enter(Connection::new(socket, transport, now.mono_us, deadline));
                self.arm_receive(id, ring);
            }
            // No slot or descriptor is free, or the listener is being taken away: try again a little later.
            Err(_) if self.accepting => self.accept_retry_us = Some(now.mono_us + ACCEPT_RETRY_US),
            Err(_) => {}
        }
    }

    fn enter(&mut self, connection: Connection) -> ConnectionId {
        let deadline = connection.deadline_us;
        let id = self.table.insert(connection);
        self.sends.open(id);
        self.wheel.set(id.slot, deadline);
        let table = &self.table;
        self.silent.add(id, |id| table.get(id).is_some_and(|c| c.silent));
        id
    }

    /// A whole request has come, or nothing will come any more.
    pub(super) fn spoken(&mut self, id: ConnectionId) {
        if let Some(connection) = self.table.get_mut(id)
            && std::mem::take(&mut connection.silent)
        {
            self.silent.leave();
        }
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
        // Sockets that speak TLS stay where they were accepted.
        let mut connection = Connection::new(socket, Transport::Plain, now.mono_us, deadline);
        self.assembly_bytes += head.capacity();
        connection.assembly = head;
        let id = self.enter(connection);
        self.upgrade(id, Call::Moved, now, ring, service);
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
        let before = connection.assembly.capacity();
        let first = connection.assembly.is_empty();
        connection.assembly.extend_from_slice(bytes);
        let too_long = connection.assembly.len() >= HEAD_BYTES_MAX;
        let waiting = connection.state == State::Waiting;
        self.assembly_bytes += connection.assembly.capacity() - before;
        if self.assembly_bytes > self.config.assembly_bytes_max || (waiting && too_long) {
            self.end(id, now, ring, service);
            return;
        }
        // A head in single bytes is not read anew for each of them.
        if !waiting && (first || too_long || bytes.contains(&b'\n')) {
            self.upgrade(id, Call::Arrived, now, ring, service);
        }
    }

    fn upgrade<S: Service>(&mut self, id: ConnectionId, call: Call, now: Now, ring: &mut Ring, service: &mut S) {
        let full = self.table.len() > self.config.connections_max;
        // Nobody overtakes those who wait.
        let busy = call != Call::ItsTurn && (!self.gate.is_open() || !self.lines.is_empty());
        let Some(connection) = self.table.get_mut(id) else { return };
        let is_plain = connection.transport.is_plain();
        // Who speaks TLS has waited for its handshake, which was most of the work, and stays.
        let busy = busy && is_plain;
        let mut answer = std::mem::take(&mut self.answer);
        answer.clear();
        let knock =
            Knock { id, head: &connection.assembly, may_hand_off: call == Call::Arrived && is_plain, full, busy };
        let admission = service.head(&knock, &mut answer);
        match admission {
            Admission::Incomplete => {}
            Admission::Answer => {
                self.spoken(id);
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
                connection.owner = service.owner(id);
                self.stats.opened += 1;
                if is_plain {
                    self.gate.take();
                }
                self.sends.push(id, &answer, Class::Reply);
                self.sends.frames_begin(id);
                self.wheel.set(id.slot, now.mono_us + self.config.ping_interval_us);
                let mut rest = connection.assembly.split_off(head_bytes.min(connection.assembly.len()));
                self.spoken(id);
                self.drop_assembly(id);
                self.take(id, &mut rest, now, ring, service);
            }
            Admission::Wait { resumes } => {
                self.spoken(id);
                let first = self.lines.is_first(resumes);
                let ahead = self.lines.ahead(first);
                if self.is_short_of_memory() || (!first && self.gate.is_too_long(ahead)) {
                    self.refuse(id, now, service);
                } else if let Some(connection) = self.table.get_mut(id) {
                    connection.state = State::Waiting;
                    self.stats.waited += 1;
                    self.lines.join(id, resumes);
                }
            }
            Admission::HandOff { shard } => {
                answer.clear();
                self.answer = answer;
                self.hand_off(id, shard, now, ring, service);
                return;
            }
        }
        self.answer = answer;
        self.progress(id, now, ring, service);
    }

    /// Tells a newcomer to come back, and closes behind the answer: all it has sent was read, so nothing resets the answer, and
    /// its slot is free as soon as the kernel has the bytes.
    pub(super) fn refuse<S: Service>(&mut self, id: ConnectionId, now: Now, service: &mut S) {
        self.stats.refused += 1;
        let mut answer = std::mem::take(&mut self.refusal);
        answer.clear();
        if self.is_before_handshake(id) {
            answer.extend_from_slice(&ALERT);
        } else {
            service.refuse(self.gate.wait_us(self.lines.len()) / 1000, &mut answer);
        }
        self.drop_assembly(id);
        self.sends.push_last(id, &answer);
        self.refusal = answer;
        self.finish(id, now);
        if let Some(connection) = self.table.get_mut(id) {
            connection.eof = true;
        }
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
            (Err(_), _) => self.upgrade(id, Call::Moved, now, ring, service),
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
                self.upgrade(id, Call::Moved, now, ring, service);
            }
            _ => {}
        }
    }
}

fn socket(number: u32, ring: &Ring) -> Socket {
    if ring.direct_slots() > 0 { Socket::Direct(number) } else { Socket::Fd(number as RawFd) }
}
