//! Tenants with clients on this shard, or with something kept here of which they may have only so much. A slot is free again when
//! the last client has gone and nothing lent is left.

use crate::limits::{KINDS, Kind, Quota};
use crate::quota::Part;
use hashbrown::HashMap;
use slab::Slab;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3Default;

/// A client's place among its tenant's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Place {
    /// Of the tenant.
    pub slot: u32,
    /// Its input waits in line.
    pub waits: bool,
    /// Its tenant's home has not said yet that there may be one more connection.
    pub is_pending: bool,
    /// It counts as a connection.
    pub has_permit: bool,
    /// Subscriptions that count.
    pub subscriptions: u32,
}

/// One tenant.
pub(crate) struct Tenant {
    pub name: Arc<str>,
    pub clients: u32,
    pub quota: Quota,
    /// What this shard was lent, by kind.
    pub parts: [Part; KINDS],
    /// Its shares here may be asked for and given back by mail.
    pub is_limited: bool,
}

impl Tenant {
    /// What bounds a kind, if anything does.
    pub fn max(&self, kind: Kind) -> Option<u64> {
        self.quota.max[kind as usize]
    }

    pub fn part(&mut self, kind: Kind) -> &mut Part {
        &mut self.parts[kind as usize]
    }

    /// Nothing is lent to it here, and nothing of what it keeps here is counted.
    fn owes_nothing(&self) -> bool {
        // That the home has none is remembered, too: else whoever waits for the answer would ask again, and again.
        let kept = |kind: &Kind| {
            let part = &self.parts[*kind as usize];
            part.used == 0 && part.owed == 0 && part.none_until_us == 0
        };
        self.parts.iter().all(|part| part.have == 0 && part.spent == 0 && !part.asked) && Kind::KEPT.iter().all(kept)
    }
}

/// All of a shard.
#[derive(Default)]
pub(crate) struct Tenants {
    slots: Slab<Tenant>,
    by_name: HashMap<Arc<str>, u32, BuildHasherDefault<Xxh3Default>>,
}

impl Tenants {
    /// A client of it has come.
    pub fn enter(&mut self, name: &Arc<str>, quota: Quota) -> u32 {
        let slot = self.hold(name, quota);
        self.slots[slot as usize].clients += 1;
        slot
    }

    /// Its slot, made where it has none: until what it keeps here is no longer counted.
    pub fn hold(&mut self, name: &Arc<str>, quota: Quota) -> u32 {
        match self.by_name.get(name) {
            Some(slot) => *slot,
            None => {
                let is_limited = !quota.is_unlimited();
                let parts = [Part::default(); KINDS];
                let slot =
                    self.slots.insert(Tenant { name: name.clone(), clients: 0, quota, parts, is_limited }) as u32;
                self.by_name.insert(name.clone(), slot);
                slot
            }
        }
    }

    /// A client has gone; `true`: it was the last one of its tenant.
    pub fn leave(&mut self, slot: u32) -> bool {
        let tenant = &mut self.slots[slot as usize];
        tenant.clients -= 1;
        let is_last = tenant.clients == 0;
        self.forget_if_done(slot);
        is_last
    }

    /// Frees a slot that nothing needs any more.
    pub fn forget_if_done(&mut self, slot: u32) {
        let done = self.slots.get(slot as usize).is_some_and(|tenant| tenant.clients == 0 && tenant.owes_nothing());
        if done {
            let gone = self.slots.remove(slot as usize);
            self.by_name.remove(&gone.name);
        }
    }

    pub fn get(&self, slot: u32) -> Option<&Tenant> {
        self.slots.get(slot as usize)
    }

    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Tenant> {
        self.slots.get_mut(slot as usize)
    }

    pub fn find(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    pub fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.iter().map(|(slot, _)| slot as u32)
    }
}
