//! How many sessions each tenant has: counted when a session gets its first record, and from the checkpoint at boot.
//!
//! ```text
//!   checkpoint ── sessions_by_tenant, at boot ──┐
//!                                               ├─► Tally: acme 41 · bcorp 7
//!   first record, appended or replayed ─────────┘
//! ```
//! A session exists from its first record on, and its numbering is kept for ever: retention takes events, no session. What the
//! server keeps under names of its own (`$…`) is nobody's session.

use super::{Catalog, Partition, PartitionSlot};
use crate::checkpoint::{self, CheckpointIndex};
use hashbrown::HashMap;
use std::hash::BuildHasherDefault;
use xxhash_rust::xxh3::Xxh3Default;

/// Sessions by tenant.
pub(super) type Tally = HashMap<Box<str>, u64, BuildHasherDefault<Xxh3Default>>;

/// Is it a tenant's own session, and not the server's?
fn is_counted(session: &str) -> bool {
    !session.starts_with('$')
}

fn count(tally: &mut Tally, tenant: &str, sessions: u64) {
    match tally.get_mut(tenant) {
        Some(known) => *known += sessions,
        None => drop(tally.insert(tenant.into(), sessions)),
    }
}

/// Sessions of a whole checkpoint. Behind a page that does not verify nothing is counted: whoever needs it next meets the damage.
pub(crate) fn sessions_by_tenant(index: &CheckpointIndex, bytes: &[u8]) -> Vec<(Box<str>, u64)> {
    let mut tally = Tally::default();
    for entry in checkpoint::entries(index, bytes).map_while(Result::ok) {
        if let Some((tenant, session)) = Partition::names(entry.bytes)
            && is_counted(session)
        {
            count(&mut tally, tenant, 1);
        }
    }
    tally.into_iter().collect()
}

impl Catalog {
    /// Sessions that the checkpoint held at boot.
    pub fn count_sessions(&mut self, known: Vec<(Box<str>, u64)>) {
        known.iter().for_each(|(tenant, sessions)| count(&mut self.tally, tenant, *sessions));
    }

    /// Sessions of a tenant.
    pub fn sessions_of(&self, tenant: &str) -> u64 {
        self.tally.get(tenant).copied().unwrap_or(0)
    }

    /// Tenants with sessions, in no particular order.
    pub fn tenants(&self) -> impl Iterator<Item = &str> {
        self.tally.keys().map(|tenant| &**tenant)
    }

    /// Before a record becomes state: is it the session's first?
    pub(super) fn count_if_first(&mut self, slot: PartitionSlot) {
        let partition = &self.residents[slot.index as usize].partition;
        if partition.last_change().is_none() && is_counted(partition.session()) {
            count(&mut self.tally, partition.tenant(), 1);
        }
    }
}
