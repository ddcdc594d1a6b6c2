//! Connections go: closed by us, by the peer, by time, or with the server.

use super::connection::State;
use super::receive::cancel_receive;
use super::send_queue::Class;
use super::service::Service;
use super::websocket::{Opcode, append_close, append_frame};
use super::{CLOSE_TIMEOUT_US, CloseWords, Net, TIMERS_PER_TURN_MAX};
use crate::ring::{Kind, Ring, UserData};
use shards::ids::{ConnectionId, Now};

impl Net {
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
            State::Upgrading | State::Waiting => self.finish(id, now),
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
    pub(super) fn eof<S: Service>(&mut self, id: ConnectionId, now: Now, ring: &mut Ring, service: &mut S) {
        let Some(connection) = self.table.get_mut(id) else { return };
        connection.eof = true;
        match connection.state {
            State::Open | State::Closing => {
                self.part(id, service);
                self.finish(id, now);
            }
            State::Upgrading | State::Waiting => self.end(id, now, ring, service),
            State::HandingOff { .. } | State::Finishing | State::Ending => {}
        }
    }

    pub(super) fn finish(&mut self, id: ConnectionId, now: Now) {
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
        let in_flight = self.is_sending(id);
        if let Some(connection) = self.table.get_mut(id)
            && (connection.receiving || in_flight)
        {
            // Ends both receive and send of a TCP socket, whatever they wait for.
            connection.pending += 1;
            ring.shutdown(connection.socket, true, UserData::new(Kind::Shutdown, id.slot, id.generation));
        }
        self.progress(id, now, ring, service);
    }

    /// Nothing can be said any more but an alert: what is queued stays unsaid.
    pub(super) fn give_in<S: Service>(&mut self, id: ConnectionId, now: Now, service: &mut S) {
        self.part(id, service);
        self.finish(id, now);
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
            self.holding -= 1;
            self.held.sub(held.owner, held.message.capacity() + held.rest.len());
        }
        // A decoder in the middle of a message needs its assembly until it is closed.
        if self.table.get(id).is_some_and(|c| c.state != State::Closing) {
            self.drop_assembly(id);
        }
    }

    pub(super) fn drop_assembly(&mut self, id: ConnectionId) {
        if let Some(connection) = self.table.get_mut(id) {
            let assembly = std::mem::take(&mut connection.assembly);
            self.assembly_bytes -= assembly.capacity().min(self.assembly_bytes);
            self.give_spare(assembly);
        }
    }

    /// Frees the slot. Nothing that names it is with the kernel.
    pub(super) fn forget(&mut self, id: ConnectionId) {
        self.spoken(id);
        self.drop_input(id);
        self.drop_assembly(id);
        self.sends.close(id);
        self.forget_secure(id);
        self.wheel.clear(id.slot);
        self.table.remove(id);
        self.freed += 1;
    }

    /// Looks at connections whose time has come. Returns how many.
    pub fn expire<S: Service>(&mut self, now: Now, ring: &mut Ring, service: &mut S) -> usize {
        if self.accept_retry_us.is_some_and(|at| at <= now.mono_us) {
            // [`Net::admit`] accepts again.
            self.accept_retry_us = None;
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
            // What it says waits in its socket.
            State::Open if connection.unread => self.wheel.set(id.slot, now.mono_us + self.config.ping_interval_us),
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
            State::Waiting if overdue => {
                self.refuse(id, now, service);
                self.progress(id, now, ring, service);
            }
            State::Upgrading | State::Closing | State::Finishing if overdue => self.end(id, now, ring, service),
            State::Ending if overdue => {
                // The shutdown did not end them: take them back one by one.
                connection.deadline_us = now.mono_us + CLOSE_TIMEOUT_US;
                if connection.receiving {
                    connection.pending += 1;
                    cancel_receive(id, ring);
                }
                if self.is_sending(id)
                    && let Some(connection) = self.table.get_mut(id)
                {
                    connection.pending += 1;
                    let target = UserData::new(Kind::Send, id.slot, id.generation);
                    ring.cancel(target, UserData::new(Kind::Cancel, id.slot, id.generation));
                }
                self.wheel.set(id.slot, now.mono_us + CLOSE_TIMEOUT_US);
            }
            _ => self.wheel.set(id.slot, connection.deadline_us),
        }
    }
}
