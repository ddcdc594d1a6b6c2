//! Connections come, move, and go.

use super::connection::{Connection, Door, State};
use super::receive::cancel_receive;
use super::send_queue::Class;
use super::service::{Admission, Adoption, Service};
use super::websocket::{Decoder, Opcode, append_close, append_frame};
use super::{ACCEPT_RETRY_US, CLOSE_TIMEOUT_US, CloseWords, GOODBYES_PER_TURN_MAX, Net, TIMERS_PER_TURN_MAX};
use crate::ring::{Completion, Kind, Ring, Socket, UserData};
use shards::ids::{ConnectionId, Now, ShardId};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

impl Net {
    // ---- coming --------------------------------------------------------------------------------------------------

    /// Starts to accept.
    pub fn listen(&mut self, listener: OwnedFd, ring: &mut Ring) {
        self.listener = Some(listener);
        self.accepting = true;
        self.arm_accept(ring);
    }

    /// Accepts nothing more. Connections that are there go on.
    pub fn stop_listening(&mut self, ring: &mut Ring) {
        self.accepting = false;
        self.accept_retry_us = None;
        if self.accept_armed {
            ring.cancel(UserData::only(Kind::Accept), UserData::only(Kind::AcceptCancel));
        }
    }

    fn arm_accept(&mut self, ring: &mut Ring) {
        if let (true, false, Some(listener)) = (self.accepting, self.accept_armed, &self.listener) {
            ring.accept(listener.as_raw_fd(), UserData::only(Kind::Accept));
            self.accept_armed = true;
        }
    }

    fn accepted(&mut self, completion: &Completion, now: Now, ring: &mut Ring) {
        if !completion.more() {
            self.accept_armed = false;
        }
        match completion.ok() {
            Ok(number) => {
                let socket = socket(number, ring);
                if !self.accepting || self.table.is_full() {
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
            Err(_) if !self.accept_armed && self.accepting => {
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
    fn handed_over<S: Service>(&mut self, completion: &Completion, now: Now, ring: &mut Ring, service: &mut S) {
        let from = ShardId(completion.user_data.slot() as u16);
        let Ok(slot) = completion.ok() else { return };
        match service.adopt(from, completion.user_data.generation()) {
            Some(adoption) => self.adopt(Socket::Direct(slot), adoption.head, now, ring, service),
            None => ring.close(Socket::Direct(slot), UserData::only(Kind::Close)),
        }
    }

    /// Takes a socket with the bytes that were received from it elsewhere.
    pub fn adopt<S: Service>(&mut self, socket: Socket, head: Vec<u8>, now: Now, ring: &mut Ring, service: &mut S) {
        if self.table.is_full() || (!self.accepting && self.listener.is_some()) {
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

    // ---- the upgrade request -------------------------------------------------------------------------------------

    fn upgrade_received<S: Service>(
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

    fn hand_off_completed<S: Service>(&mut self, completion: &Completion, now: Now, ring: &mut Ring, service: &mut S) {
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

    // ---- completions ---------------------------------------------------------------------------------------------

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

    /// Arms receives that found no buffer, now that the batch has given its buffers back.
    pub fn rearm<S: Service>(&mut self, now: Now, ring: &mut Ring, service: &mut S) {
        for id in std::mem::take(&mut self.unarmed) {
            self.progress(id, now, ring, service);
        }
    }

    fn receive_completed<S: Service>(&mut self, completion: &Completion, now: Now, ring: &mut Ring, service: &mut S) {
        let id = connection_of(completion);
        let upgrading = completion.user_data.kind() == Kind::Upgrade;
        if let Some(connection) = self.table.get_mut(id) {
            connection.receiving = completion.more();
        }
        if let Some(bid) = completion.buffer() {
            let len = completion.ok().unwrap_or(0) as usize;
            if len > 0 && self.table.get(id).is_some() {
                let mut bytes = ring.recv_buffers.take(bid, len);
                if upgrading {
                    self.upgrade_received(id, &bytes, now, ring, service);
                } else {
                    self.received(id, &mut bytes, now, ring, service);
                }
                ring.recv_buffers.give_back(bytes);
                self.progress(id, now, ring, service);
                return;
            }
            ring.recv_buffers.recycle(bid);
        }
        match completion.ok() {
            Ok(0) if !completion.more() => {
                self.eof(id, now, ring, service);
                self.progress(id, now, ring, service);
            }
            Ok(_) | Err(libc::ECANCELED | libc::EINTR | libc::EAGAIN) => self.progress(id, now, ring, service),
            Err(libc::ENOBUFS) => {
                self.stats.buffers_short += 1;
                self.unarmed.push(id);
            }
            Err(_) => self.end(id, now, ring, service),
        }
    }

    /// Asks for whatever the connection's state needs next and is not under way.
    pub(super) fn progress<S: Service>(&mut self, id: ConnectionId, now: Now, ring: &mut Ring, service: &mut S) {
        let Some(connection) = self.table.get_mut(id) else { return };
        match connection.state {
            State::HandingOff { .. } => {}
            State::Upgrading | State::Open | State::Closing => self.arm_receive(id, ring),
            State::Finishing => {
                if self.sends.is_empty(id) {
                    if connection.eof {
                        self.end(id, now, ring, service);
                        return;
                    }
                    if !connection.fin {
                        connection.fin = true;
                        connection.pending += 1;
                        ring.shutdown(connection.socket, false, UserData::new(Kind::Shutdown, id.slot, id.generation));
                    }
                    self.arm_receive(id, ring);
                }
            }
            State::Ending => {
                let quiet = !connection.receiving && connection.pending == 0 && !self.sends.is_in_flight(id);
                if quiet && !connection.close {
                    connection.close = true;
                    ring.close(connection.socket, UserData::new(Kind::Close, id.slot, id.generation));
                    self.sends.close(id);
                }
            }
        }
    }

    fn arm_receive(&mut self, id: ConnectionId, ring: &mut Ring) {
        let Some(connection) = self.table.get_mut(id) else { return };
        // While a cancel is under way a new receive could be its victim.
        if connection.receiving || connection.eof || connection.held.is_some() || connection.pending > 0 {
            return;
        }
        connection.receiving = true;
        match connection.state {
            State::Upgrading => {
                ring.recv_once(connection.socket, UserData::new(Kind::Upgrade, id.slot, id.generation));
            }
            _ => ring.recv(connection.socket, UserData::new(Kind::Recv, id.slot, id.generation)),
        }
    }

    // ---- going ---------------------------------------------------------------------------------------------------

    /// Closes with a code; the peer's close frame is awaited for a while.
    pub fn close<S: Service>(&mut self, id: ConnectionId, (code, reason): CloseWords, now: Now, service: &mut S) {
        let Some(connection) = self.table.get(id) else { return };
        match connection.state {
            State::Open => {
                self.part(id, service);
                let mut frame = Vec::with_capacity(130);
                append_close(&mut frame, Some(code), reason);
                self.sends.push_last(id, &frame);
                self.move_to(id, State::Closing, now);
            }
            State::Upgrading => self.finish(id, now),
            _ => {}
        }
    }

    /// Fails the connection: says why, and does not wait for a close frame from a peer that breaks the rules.
    pub(super) fn fail<S: Service>(
        &mut self,
        id: ConnectionId,
        (code, reason): CloseWords,
        now: Now,
        ring: &mut Ring,
        service: &mut S,
    ) {
        let Some(connection) = self.table.get(id) else { return };
        if connection.state == State::Open {
            self.part(id, service);
            let mut frame = Vec::with_capacity(130);
            append_close(&mut frame, Some(code), reason);
            self.sends.push_last(id, &frame);
        }
        if self.table.get(id).is_some_and(|c| matches!(c.state, State::Open | State::Closing)) {
            self.finish(id, now);
        }
        self.progress(id, now, ring, service);
    }

    /// The peer sent a close frame: answer it if it was the first, and finish.
    pub(super) fn peer_closes<S: Service>(
        &mut self,
        id: ConnectionId,
        code: Option<u16>,
        now: Now,
        ring: &mut Ring,
        service: &mut S,
    ) {
        let Some(connection) = self.table.get(id) else { return };
        if connection.state == State::Open {
            self.part(id, service);
            let mut frame = Vec::with_capacity(130);
            append_close(&mut frame, code, "");
            self.sends.push_last(id, &frame);
        }
        self.finish(id, now);
        self.progress(id, now, ring, service);
    }

    /// The peer will send nothing more. What is queued for it is still sent.
    fn eof<S: Service>(&mut self, id: ConnectionId, now: Now, ring: &mut Ring, service: &mut S) {
        let Some(connection) = self.table.get_mut(id) else { return };
        connection.eof = true;
        match connection.state {
            State::Open | State::Closing => {
                self.part(id, service);
                self.finish(id, now);
            }
            State::Upgrading => self.end(id, now, ring, service),
            State::HandingOff { .. } | State::Finishing | State::Ending => {}
        }
    }

    fn finish(&mut self, id: ConnectionId, now: Now) {
        self.drop_input(id);
        self.sends.finish(id);
        self.move_to(id, State::Finishing, now);
    }

    /// Over, now: nothing more is sent or awaited but the kernel's last completions.
    pub(super) fn end<S: Service>(&mut self, id: ConnectionId, now: Now, ring: &mut Ring, service: &mut S) {
        let Some(connection) = self.table.get(id) else { return };
        if matches!(connection.state, State::Ending | State::HandingOff { .. }) {
            return;
        }
        self.part(id, service);
        self.drop_input(id);
        self.sends.finish(id);
        self.move_to(id, State::Ending, now);
        let in_flight = self.sends.is_in_flight(id);
        if let Some(connection) = self.table.get_mut(id)
            && (connection.receiving || in_flight)
        {
            // Ends both receive and send of a TCP socket, whatever they wait for.
            connection.pending += 1;
            ring.shutdown(connection.socket, true, UserData::new(Kind::Shutdown, id.slot, id.generation));
        }
        self.progress(id, now, ring, service);
    }

    fn move_to(&mut self, id: ConnectionId, state: State, now: Now) {
        let Some(connection) = self.table.get_mut(id) else { return };
        connection.state = state;
        connection.deadline_us = now.mono_us + CLOSE_TIMEOUT_US;
        self.wheel.set(id.slot, connection.deadline_us);
    }

    /// Tells the service, once, that the connection is over.
    fn part<S: Service>(&mut self, id: ConnectionId, service: &mut S) {
        if let Some(connection) = self.table.get_mut(id)
            && std::mem::take(&mut connection.known)
        {
            service.closed(id, connection.door);
        }
    }

    fn drop_input(&mut self, id: ConnectionId) {
        if let Some(held) = self.table.get_mut(id).and_then(|c| c.held.take()) {
            let bytes = held.message.capacity() + held.rest.len();
            self.assembly_bytes -= bytes.min(self.assembly_bytes);
        }
        // A decoder in the middle of a message needs its assembly until it is closed.
        if self.table.get(id).is_some_and(|c| c.state != State::Closing) {
            self.drop_assembly(id);
        }
    }

    fn drop_assembly(&mut self, id: ConnectionId) {
        if let Some(connection) = self.table.get_mut(id) {
            let assembly = std::mem::take(&mut connection.assembly);
            self.assembly_bytes -= assembly.capacity().min(self.assembly_bytes);
            self.give_spare(assembly);
        }
    }

    /// Frees the slot. Nothing that names it is with the kernel.
    fn forget(&mut self, id: ConnectionId) {
        self.drop_input(id);
        self.drop_assembly(id);
        self.sends.close(id);
        self.wheel.clear(id.slot);
        self.table.remove(id);
    }

    // ---- time ----------------------------------------------------------------------------------------------------

    /// Looks at connections whose time has come. Returns how many.
    pub fn expire<S: Service>(&mut self, now: Now, ring: &mut Ring, service: &mut S) -> usize {
        if self.accept_retry_us.is_some_and(|at| at <= now.mono_us) {
            self.accept_retry_us = None;
            self.arm_accept(ring);
        }
        let mut count = 0;
        while count < TIMERS_PER_TURN_MAX {
            let Some(slot) = self.wheel.pop(now.mono_us) else { break };
            if let Some(id) = self.table.at(slot) {
                self.look(id, now, ring, service);
            }
            count += 1;
        }
        count
    }

    fn look<S: Service>(&mut self, id: ConnectionId, now: Now, ring: &mut Ring, service: &mut S) {
        let Some(connection) = self.table.get_mut(id) else { return };
        let overdue = now.mono_us >= connection.deadline_us;
        match connection.state {
            State::HandingOff { .. } => self.wheel.set(id.slot, now.mono_us + CLOSE_TIMEOUT_US),
            State::Open => {
                let silent_us = now.mono_us.saturating_sub(connection.heard_us);
                let mut next = connection.heard_us + self.config.ping_interval_us;
                if silent_us >= self.config.idle_timeout_us {
                    self.fail(id, self.config.closes.idle, now, ring, service);
                    return;
                }
                if silent_us >= self.config.ping_interval_us {
                    if !connection.pinged {
                        connection.pinged = true;
                        let mut frame = Vec::with_capacity(2);
                        append_frame(&mut frame, Opcode::Ping, &[]);
                        self.sends.push(id, &frame, Class::Reply);
                    }
                    next = connection.heard_us + self.config.idle_timeout_us;
                }
                self.wheel.set(id.slot, next);
            }
            State::Upgrading | State::Closing | State::Finishing if overdue => self.end(id, now, ring, service),
            State::Ending if overdue => {
                // The shutdown did not end them: take them back one by one.
                connection.deadline_us = now.mono_us + CLOSE_TIMEOUT_US;
                if connection.receiving {
                    connection.pending += 1;
                    cancel_receive(id, ring);
                }
                if self.sends.is_in_flight(id) {
                    connection.pending += 1;
                    let target = UserData::new(Kind::Send, id.slot, id.generation);
                    ring.cancel(target, UserData::new(Kind::Cancel, id.slot, id.generation));
                }
                self.wheel.set(id.slot, connection.deadline_us);
            }
            _ => self.wheel.set(id.slot, connection.deadline_us),
        }
    }

    /// Closes every open connection with `words`, some in each call. `farewell` queues what is to be said before.
    /// Returns how many it closed; connections that are still there after it returns 0 are on their way out.
    pub fn say_goodbye<S: Service>(
        &mut self,
        words: CloseWords,
        now: Now,
        ring: &mut Ring,
        service: &mut S,
        mut farewell: impl FnMut(ConnectionId, Door, &mut super::Sends),
    ) -> usize {
        let from = *self.goodbye.get_or_insert(0);
        let wave: Vec<ConnectionId> = self.table.from(from).take(GOODBYES_PER_TURN_MAX).collect();
        let Some(last) = wave.last() else { return 0 };
        self.goodbye = Some(last.slot + 1);
        for id in &wave {
            match self.table.get(*id).map(|c| (c.state, c.door)) {
                Some((State::Open, door)) => {
                    farewell(*id, door, &mut self.sends);
                    self.close(*id, words, now, service);
                    self.progress(*id, now, ring, service);
                }
                Some((State::Upgrading, _)) => self.end(*id, now, ring, service),
                _ => {}
            }
        }
        wave.len()
    }
}

fn connection_of(completion: &Completion) -> ConnectionId {
    ConnectionId { slot: completion.user_data.slot(), generation: completion.user_data.generation() }
}

fn socket(number: u32, ring: &Ring) -> Socket {
    if ring.direct_slots() > 0 { Socket::Direct(number) } else { Socket::Fd(number as RawFd) }
}
