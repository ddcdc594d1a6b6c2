//! Input that waits for room, tenant by tenant: whose sockets are read, and whose wait.
//!
//! ```text
//!   bytes of a tenant ─► taken ───────────────────────────────────────────────► nothing is held
//!                          │ no room, or not its turn: held, charged to its tenant
//!                          ▼
//!   held of it     0 ────────── a quarter of what is free ──────── as much as is free ────►
//!   its sockets    read as they bring   a buffer at a time              wait in line, until there is room for a buffer
//!
//!   free = held_bytes_max − receive buffers − held of all
//! ```
//! **Invariant.** A tenant that holds nothing is read as long as anything is free, and what the others hold leaves some free:
//! whoever is alone holds at most a half, each of n that flood the shard 1 / (n + 1). Nobody is told a number that depends on
//! who else is there, so a tenant that is alone needs no share of anybody, and one that comes finds room at once.
//! **Failure.** What sockets bring that were being read when their tenant came to its bound is held all the same: a buffer
//! each, of those that were read freely a few dozen. Should that fill what is free, receive buffers are kept from the kernel
//! and nobody is read.
//! **Unit of backpressure.** One socket. Those of a tenant are read again in the order in which they had to wait, each for one
//! buffer.
//! **Memory.** Three words for each tenant with clients, one for each socket that waits.

use super::Net;
use super::connection::State;
use super::service::Service;
use crate::ring::{Kind, Ring, UserData};
use shards::ids::{ConnectionId, Now};
use std::collections::VecDeque;

/// Sockets that are read again in one turn.
const READ_AGAIN_PER_TURN_MAX: usize = 256;
/// Slots looked at in one turn for sockets that are read freely and should not be, and receives taken back for it.
const SWEEP_PER_TURN_MAX: usize = 4096;
const TAKEN_BACK_PER_TURN_MAX: usize = 128;

/// Whose connections' input it is: a small number, the service's own. 0: of nobody known.
pub type Owner = u32;

/// What is held of all tenants.
#[derive(Default)]
pub(super) struct HeldBytes {
    total: usize,
    owners: Vec<Part>,
    /// Owners with sockets that wait, each once.
    waiting: VecDeque<Owner>,
    /// Slots that are still to be swept, and the next one.
    sweep_left: usize,
    sweep_at: u32,
}

/// What is held of one tenant.
#[derive(Default)]
struct Part {
    bytes: usize,
    /// Sockets that wait to be read.
    unread: VecDeque<ConnectionId>,
    /// Its sockets that were read freely were, or are being, swept.
    is_swept: bool,
}

impl HeldBytes {
    /// Of all tenants.
    pub fn total(&self) -> usize {
        self.total
    }

    pub fn add(&mut self, owner: Owner, bytes: usize) {
        let at = owner as usize;
        if self.owners.len() <= at {
            self.owners.resize_with(at + 1, Part::default);
        }
        self.owners[at].bytes += bytes;
        self.total += bytes;
    }

    pub fn sub(&mut self, owner: Owner, bytes: usize) {
        let part = &mut self.owners[owner as usize];
        debug_assert!(part.bytes >= bytes, "what is taken away was added");
        part.bytes -= bytes.min(part.bytes);
        part.is_swept &= part.bytes > 0;
        self.total -= bytes.min(self.total);
    }

    /// Holds it as much as it may, where all may hold `room` bytes?
    pub fn is_full(&self, owner: Owner, room: usize) -> bool {
        self.bytes(owner) > 0 && self.bytes(owner) >= room.saturating_sub(self.total)
    }

    /// Are its sockets to bring no more than a buffer at a time?
    pub fn is_near(&self, owner: Owner, room: usize) -> bool {
        self.bytes(owner) > 0 && self.bytes(owner) >= room.saturating_sub(self.total) / 4
    }

    /// A socket of a tenant that is full, or of which others wait, waits with them.
    fn stands_behind(&self, owner: Owner, room: usize) -> bool {
        self.is_full(owner, room) || self.owners.get(owner as usize).is_some_and(|part| !part.unread.is_empty())
    }

    fn wait(&mut self, owner: Owner, id: ConnectionId) {
        self.add(owner, 0);
        let part = &mut self.owners[owner as usize];
        if part.unread.is_empty() {
            self.waiting.push_back(owner);
        }
        part.unread.push_back(id);
    }

    /// A socket that is to be read again, where `promised` bytes are on their way to those that were said before.
    fn next_unread(&mut self, room: usize, promised: usize) -> Option<ConnectionId> {
        for _ in 0..self.waiting.len() {
            let owner = self.waiting.pop_front()?;
            let free = room.saturating_sub(self.total + promised);
            let part = &mut self.owners[owner as usize];
            let may = part.bytes == 0 || part.bytes + promised < free;
            let next = if may { part.unread.pop_front() } else { None };
            if !part.unread.is_empty() {
                self.waiting.push_back(owner);
            }
            if next.is_some() {
                return next;
            }
        }
        None
    }

    fn bytes(&self, owner: Owner) -> usize {
        self.owners.get(owner as usize).map_or(0, |part| part.bytes)
    }
}

impl Net {
    /// What all may hold, with every receive buffer full and on its way.
    fn held_room(&self, ring: &Ring) -> usize {
        self.config.held_bytes_max.saturating_sub(ring.recv_buffers.bytes())
    }

    /// Charges what a connection holds. Where its tenant holds much, its sockets that are read freely are looked for.
    pub(super) fn charge_held(&mut self, owner: Owner, bytes: usize, ring: &Ring) {
        self.held.add(owner, bytes);
        if self.held.is_near(owner, self.held_room(ring))
            && let Some(part) = self.held.owners.get_mut(owner as usize)
            && !std::mem::replace(&mut part.is_swept, true)
        {
            self.held.sweep_left = self.config.slots();
        }
    }

    /// Asks for bytes of a connection, unless enough of its tenant's wait already.
    pub(super) fn arm_receive(&mut self, id: ConnectionId, ring: &mut Ring) {
        let room = self.held_room(ring);
        let Some(connection) = self.table.get_mut(id) else { return };
        if connection.state == State::Open
            && connection.may_receive()
            && (connection.unread || self.held.stands_behind(connection.owner, room))
        {
            if !std::mem::replace(&mut connection.unread, true) {
                self.held.wait(connection.owner, id);
            }
            return;
        }
        self.receive(id, ring);
    }

    fn receive(&mut self, id: ConnectionId, ring: &mut Ring) {
        let room = self.held_room(ring);
        let Some(connection) = self.table.get_mut(id) else { return };
        if !connection.may_receive() {
            return;
        }
        connection.receiving = true;
        match connection.state {
            State::Upgrading | State::Waiting => {
                ring.recv_once(connection.socket, UserData::new(Kind::Upgrade, id.slot, id.generation));
            }
            // Whoever had to wait is likely to have to again: what comes at once may be all that its socket has, and a cancel
            // for each message costs more than a receive for each buffer.
            _ if std::mem::take(&mut connection.sips) || self.held.is_near(connection.owner, room) => {
                connection.streams = false;
                ring.recv_once(connection.socket, UserData::new(Kind::Recv, id.slot, id.generation));
            }
            _ => {
                connection.streams = true;
                ring.recv(connection.socket, UserData::new(Kind::Recv, id.slot, id.generation));
            }
        }
    }

    /// Reads again who had to wait and for whose next buffer there is room now, tenants in turns.
    pub(super) fn read_again<S: Service>(&mut self, now: Now, ring: &mut Ring, service: &mut S) {
        self.sweep(ring);
        let room = self.held_room(ring);
        let buffer_bytes = ring.recv_buffers.buffer_bytes();
        for count in 0..READ_AGAIN_PER_TURN_MAX {
            let Some(id) = self.held.next_unread(room, count * buffer_bytes) else { return };
            let Some(connection) = self.table.get_mut(id) else { continue };
            if !std::mem::take(&mut connection.unread) {
                continue;
            }
            if connection.state == State::Open {
                // Its silence was ours.
                connection.heard_us = now.mono_us;
                connection.sips = true;
                self.receive(id, ring);
            } else {
                self.progress(id, now, ring, service);
            }
        }
    }

    /// Takes back receives that bring all that a socket has, of tenants that hold much.
    fn sweep(&mut self, ring: &mut Ring) {
        let (room, mut taken_back) = (self.held_room(ring), 0);
        for _ in 0..SWEEP_PER_TURN_MAX.min(self.held.sweep_left) {
            if taken_back == TAKEN_BACK_PER_TURN_MAX {
                return;
            }
            self.held.sweep_left -= 1;
            let slot = self.held.sweep_at;
            self.held.sweep_at = (slot + 1) % self.config.slots() as u32;
            let Some(id) = self.table.at(slot) else { continue };
            if let Some(connection) = self.table.get_mut(id)
                && connection.state == State::Open
                && connection.receiving
                && connection.streams
                && self.held.is_near(connection.owner, room)
            {
                self.stop_receiving(id, ring);
                taken_back += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 1_000_000;

    fn id(slot: u32) -> ConnectionId {
        ConnectionId { slot, generation: 1 }
    }

    /// Holds as much as it may, ten bytes at a time.
    fn flood(held: &mut HeldBytes, owner: Owner) {
        while !held.is_full(owner, ROOM) {
            held.add(owner, 10);
        }
    }

    #[test]
    fn whoever_floods_leaves_room_for_everybody_who_does_not() {
        let mut held = HeldBytes::default();
        flood(&mut held, 1);
        assert_eq!(held.total(), ROOM / 2, "alone it has a half");
        assert!(!held.is_full(2, ROOM) && !held.is_near(2, ROOM), "who holds nothing is read");
        for owner in 2..=9 {
            flood(&mut held, owner);
            assert!(held.total() < ROOM && !held.is_full(owner + 1, ROOM), "{owner}: {}", held.total());
        }
        held.sub(1, held.bytes(1));
        assert!(!held.is_full(1, ROOM), "who has given it back is read again");
    }

    #[test]
    fn a_flood_of_many_shares_alike() {
        let mut held = HeldBytes::default();
        // All at once: each takes a little in turns, as long as it may.
        while (1..=4).any(|owner| !held.is_full(owner, ROOM)) {
            for owner in 1..=4 {
                if !held.is_full(owner, ROOM) {
                    held.add(owner, 10);
                }
            }
        }
        for owner in 1..=4 {
            assert!(held.bytes(owner).abs_diff(ROOM / 5) <= 10, "{owner}: {}", held.bytes(owner));
        }
    }

    #[test]
    fn sockets_are_read_again_as_there_is_room_and_tenants_take_turns() {
        let mut held = HeldBytes::default();
        flood(&mut held, 1);
        (0..3).for_each(|slot| held.wait(1, id(slot)));
        assert_eq!(held.next_unread(ROOM, 0), None, "it is full");
        held.add(2, 100_000);
        held.wait(2, id(7));
        held.wait(2, id(8));
        held.sub(1, 200_000);
        assert!(held.stands_behind(1, ROOM) && !held.is_full(1, ROOM), "nobody overtakes those who wait");
        let mut order = Vec::new();
        while let Some(id) = held.next_unread(ROOM, 0) {
            order.push(id.slot);
        }
        assert_eq!(order, [0, 7, 1, 8, 2]);
        assert!(!held.stands_behind(1, ROOM));
        held.wait(1, id(3));
        assert_eq!(held.next_unread(ROOM, 200_000), None, "what is promised is as good as held");
        assert_eq!(held.next_unread(ROOM, 100_000), Some(id(3)));
    }
}
