//! The shard's connections: a slab with a generation for each slot.

use super::connection::Connection;
use shards::ids::ConnectionId;
use slab::Slab;

/// One per shard, touched only by its thread.
pub(super) struct Table {
    slots: Slab<Connection>,
    /// Life of each slot; raised when the slot is given away, so that a late answer finds nobody.
    generations: Vec<u32>,
}

impl Table {
    pub fn new(connections_max: usize) -> Self {
        // Room for all: what was never used was never touched, and a table that doubles leaves holes.
        Self { slots: Slab::with_capacity(connections_max), generations: vec![0; connections_max] }
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_full(&self) -> bool {
        self.slots.len() >= self.generations.len()
    }

    /// Gives a slot away. The table is not full.
    pub fn insert(&mut self, connection: Connection) -> ConnectionId {
        assert!(!self.is_full(), "whoever inserts has seen that the table is not full");
        let slot = self.slots.insert(connection);
        self.generations[slot] = self.generations[slot].wrapping_add(1);
        ConnectionId { slot: slot as u32, generation: self.generations[slot] }
    }

    pub fn remove(&mut self, id: ConnectionId) -> Option<Connection> {
        self.get(id)?;
        self.slots.try_remove(id.slot as usize)
    }

    pub fn get(&self, id: ConnectionId) -> Option<&Connection> {
        let life = *self.generations.get(id.slot as usize)?;
        self.slots.get(id.slot as usize).filter(|_| life == id.generation)
    }

    pub fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        let life = *self.generations.get(id.slot as usize)?;
        self.slots.get_mut(id.slot as usize).filter(|_| life == id.generation)
    }

    /// The present owner of a slot.
    pub fn at(&self, slot: u32) -> Option<ConnectionId> {
        self.slots.get(slot as usize)?;
        Some(ConnectionId { slot, generation: self.generations[slot as usize] })
    }

    /// Owners of the slots from `slot` on.
    pub fn from(&self, slot: u32) -> impl Iterator<Item = ConnectionId> + '_ {
        (slot..self.generations.len() as u32).filter_map(|slot| self.at(slot))
    }
}
