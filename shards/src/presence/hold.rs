//! Holds: what connections of this shard have entered. They renew leases while their connections live.
//!
//! ```text
//!   Entered ─► hold ─ every third of a lease ─► RENEW ─► owner: lease goes on
//!               ▲  ▲                             └ GONE ─┬ left: another connection of the client said so, the hold goes
//!   resume ─────┘  └── ATTEND ◄──────────────────────────┴ lapsed: it enters again
//! ```
//! When a connection ends its holds simply stop: what they held ends with its lease, or goes on if the client is back before.

use super::flood::Flood;
use super::roster::{ClientKey, RoomKey, bytes_of};
use crate::ids::{ConnectionId, ShardId};
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3Default;

/// One room that one connection is in.
pub(crate) struct Hold {
    pub generation: u32,
    pub connection: ConnectionId,
    pub key: RoomKey,
    pub client: ClientKey,
    pub owner: ShardId,
    pub tenant: Arc<str>,
    pub session: Box<str>,
    pub value: Box<[u8]>,
    pub lease_ms: u64,
    /// It waits to be renewed, to be said whole.
    pub renews: bool,
    pub attends: bool,
}

impl Hold {
    fn bytes(&self) -> usize {
        bytes_of(&self.session, &self.value)
    }
}

/// What one connection has to do with rooms.
#[derive(Default)]
pub(crate) struct Attendance {
    pub holds: Vec<u32>,
    pub watchers: Vec<u32>,
    /// Of its holds, in the state that is kept of a client.
    pub bytes: usize,
    pub flood: Flood,
    /// It has acknowledged events and its receipts may have moved.
    pub acknowledged: bool,
}

/// A hold's name: slot and generation.
pub(crate) type HoldId = (u32, u32);

/// All holds of one shard.
#[derive(Default)]
pub(crate) struct Holds {
    pub slots: slab::Slab<Hold>,
    pub of: HashMap<ConnectionId, Attendance, BuildHasherDefault<Xxh3Default>>,
    /// To be said whole to their owners.
    pub attend: VecDeque<HoldId>,
    /// To be renewed, in lines by owner.
    pub renew: Vec<VecDeque<HoldId>>,
    /// Connections that have acknowledged.
    pub acknowledged: VecDeque<ConnectionId>,
    pub bytes: usize,
    generation: u32,
}

/// Bytes of a hold in the kept state of a client.
pub(crate) fn kept_bytes(session: &str, value: &[u8]) -> usize {
    session.len() + value.len() + 16
}

impl Holds {
    /// The hold, while it stands.
    pub fn get(&self, id: HoldId) -> Option<&Hold> {
        self.slots.get(id.0 as usize).filter(|hold| hold.generation == id.1)
    }

    /// The hold, while it stands.
    pub fn get_mut(&mut self, id: HoldId) -> Option<&mut Hold> {
        self.slots.get_mut(id.0 as usize).filter(|hold| hold.generation == id.1)
    }

    /// The connection's hold of a room.
    pub fn find(&self, connection: ConnectionId, key: RoomKey) -> Option<HoldId> {
        let holds = &self.of.get(&connection)?.holds;
        let slot = holds.iter().find(|slot| self.slots[**slot as usize].key == key)?;
        Some((*slot, self.slots[*slot as usize].generation))
    }

    /// Enters a hold.
    pub fn insert(&mut self, hold: Hold) -> HoldId {
        self.generation = self.generation.wrapping_add(1);
        let hold = Hold { generation: self.generation, ..hold };
        self.bytes += hold.bytes();
        let attendance = self.of.entry(hold.connection).or_default();
        attendance.bytes += kept_bytes(&hold.session, &hold.value);
        let slot = self.slots.insert(hold) as u32;
        attendance.holds.push(slot);
        (slot, self.generation)
    }

    /// What is held has changed.
    pub fn set(&mut self, id: HoldId, value: &[u8], lease_ms: u64) {
        let Some(hold) = self.slots.get_mut(id.0 as usize).filter(|hold| hold.generation == id.1) else { return };
        hold.lease_ms = lease_ms;
        self.bytes = self.bytes + value.len() - hold.value.len();
        if let Some(attendance) = self.of.get_mut(&hold.connection) {
            attendance.bytes = attendance.bytes + value.len() - hold.value.len();
        }
        hold.value = value.into();
    }

    /// A hold ends.
    pub fn remove(&mut self, id: HoldId) {
        if self.get(id).is_none() {
            return;
        }
        let hold = self.slots.remove(id.0 as usize);
        self.bytes -= hold.bytes();
        if let Some(attendance) = self.of.get_mut(&hold.connection) {
            attendance.bytes -= kept_bytes(&hold.session, &hold.value);
            attendance.holds.retain(|slot| *slot != id.0);
        }
    }

    /// A connection ends, and its holds with it. Its watchers are handed back.
    pub fn end(&mut self, connection: ConnectionId) -> Vec<u32> {
        let Some(attendance) = self.of.remove(&connection) else { return Vec::new() };
        for slot in attendance.holds {
            self.bytes -= self.slots.remove(slot as usize).bytes();
        }
        attendance.watchers
    }

    /// To be said whole to its owner.
    pub fn attend(&mut self, id: HoldId) {
        if let Some(hold) = self.get_mut(id)
            && !std::mem::replace(&mut hold.attends, true)
        {
            self.attend.push_back(id);
        }
    }

    /// To be renewed.
    pub fn renew(&mut self, id: HoldId) {
        let Some(hold) = self.get_mut(id) else { return };
        if std::mem::replace(&mut hold.renews, true) {
            return;
        }
        let owner = usize::from(hold.owner.0);
        if self.renew.len() <= owner {
            self.renew.resize_with(owner + 1, VecDeque::new);
        }
        self.renew[owner].push_back(id);
    }

    /// The connection acknowledged events.
    pub fn acknowledged(&mut self, connection: ConnectionId) {
        if let Some(attendance) = self.of.get_mut(&connection)
            && !attendance.holds.is_empty()
            && !std::mem::replace(&mut attendance.acknowledged, true)
        {
            self.acknowledged.push_back(connection);
        }
    }
}
