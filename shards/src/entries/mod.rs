//! Entries: small values under keys, of a session or of a bucket of the tenant, each change a revision of its session.
//!
//! ```text
//!   owner of the session                                               client's shard
//!   entry.put, commit ─► preconditions ─► one record ─► catalog          entry.get, list ── FORWARD ──► [`page`] ──► frame
//!                                            │  └ [`Entries`]: bytes by tenant, what expires when
//!                                            ▼                           [`watch`]: a cursor, a revision
//!                              walk: committed ── NEWS (revision) ─────►   └─ fetch ─► page ─► frame, when there is room
//!   wheel ─► its time is over ─► one record: expired
//! ```
//! **Invariant.** Nobody is told a value that may still be lost: a page waits until all it was read from is committed. From the
//! moment at which an entry's time is over it is not told either, though the record of that comes a little later.
//! **Failure.** A crash loses nothing that was acknowledged; what should have expired meanwhile expires at once.
//! **Backpressure.** Bytes: of a session (fixed by the format), of a tenant on a shard. A watcher without room holds a revision, no
//! queue. State itself is the catalog's ([`storage::catalog::Entries`]); here is only what time and tenants need.

pub(crate) mod page;
pub(crate) mod watch;

use crate::delivery::ByPartition;
use crate::ids::{Now, PartitionId};
use crate::shard::{Opened, Shard};
use crate::wheel::Wheel;
use hashbrown::HashMap;
use std::collections::{BTreeMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use storage::catalog::{NAME_BYTES_MAX, PartitionSlot};
use storage::log::Streaming;
use storage::record::{EntryAct, EntryBody, HEAD_BYTES, Parts};
use xxhash_rust::xxh3::Xxh3Default;

/// Entries whose time is over that one turn takes away.
const EXPIRES_PER_TURN_MAX: usize = 64;

/// Room for the record of one that expires.
const RECORD_BYTES_MAX: usize = HEAD_BYTES + 3 * NAME_BYTES_MAX + 256;

/// When an entry is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Due {
    /// Microseconds of this process.
    At(u64),
    /// After a restart, until the first turn: so many ms of its life had not passed by the wall clock, of so many in all.
    Recovered { expires_ms: u64, life_ms: u64 },
}

/// A session with entries.
#[derive(Debug)]
struct Held {
    tenant: Arc<str>,
    session: Box<str>,
    bytes: usize,
    /// By revision: key, and when.
    expiring: BTreeMap<u64, (Box<str>, Due)>,
}

/// What a shard knows of the entries that it owns, beside the catalog.
#[derive(Default)]
pub(crate) struct Entries {
    sessions: ByPartition<Held>,
    by_tenant: HashMap<Arc<str>, usize, BuildHasherDefault<Xxh3Default>>,
    wheel: Wheel<(PartitionId, u64)>,
    fired: Vec<(PartitionId, u64)>,
    /// Sessions whose entries have no time of this process yet.
    recovered: Vec<PartitionId>,
    /// Entries to be taken away as soon as their session is in memory and the log has room.
    due: VecDeque<(PartitionId, u64)>,
}

impl Entries {
    /// Those of a recovered log.
    pub fn recovered(log: &storage::log::Log, known: &[Streaming]) -> Entries {
        let mut entries = Entries::default();
        for Streaming { tenant, session, entries: held, .. } in known {
            let Some(held) = held else { continue };
            let tenant: Arc<str> = (&**tenant).into();
            let partition = log.partition_id(&tenant, session);
            let expiring: BTreeMap<_, _> = held
                .live()
                .filter(|(_, entry)| entry.expires_ms > 0)
                .map(|(key, entry)| {
                    let life_ms = entry.expires_ms.saturating_sub(entry.put_ms);
                    (entry.revision, (key.into(), Due::Recovered { expires_ms: entry.expires_ms, life_ms }))
                })
                .collect();
            if !expiring.is_empty() {
                entries.recovered.push(partition);
            }
            *entries.by_tenant.entry(tenant.clone()).or_default() += held.bytes();
            let held = Held { tenant, session: session.clone(), bytes: held.bytes(), expiring };
            entries.sessions.insert(partition, held);
        }
        entries
    }

    /// Bytes of a tenant's entries here.
    pub fn tenant_bytes(&self, tenant: &str) -> usize {
        self.by_tenant.get(tenant).copied().unwrap_or(0)
    }

    /// Tenants that have some here.
    pub fn tenants(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_tenant.keys()
    }

    /// Is the time of the entry with this revision over?
    pub fn is_over(&self, partition: PartitionId, revision: u64, now: Now) -> bool {
        let due = self.sessions.get(&partition).and_then(|held| held.expiring.get(&revision));
        match due {
            Some((_, Due::At(at_us))) => *at_us <= now.mono_us,
            Some((_, Due::Recovered { expires_ms, life_ms })) => rest_ms(*expires_ms, *life_ms, now) == 0,
            None => false,
        }
    }

    /// Looks at the clock.
    fn look(&mut self, now: Now) {
        for partition in self.recovered.drain(..) {
            let Some(held) = self.sessions.get_mut(&partition) else { continue };
            for (revision, (_, due)) in &mut held.expiring {
                if let Due::Recovered { expires_ms, life_ms } = *due {
                    let at_us = now.mono_us + rest_ms(expires_ms, life_ms, now) * 1000;
                    *due = Due::At(at_us);
                    self.wheel.put(at_us, (partition, *revision));
                }
            }
        }
        let mut fired = std::mem::take(&mut self.fired);
        self.wheel.expire(now.mono_us, &mut fired);
        for (partition, revision) in fired.drain(..) {
            if self.sessions.get(&partition).is_some_and(|held| held.expiring.contains_key(&revision)) {
                self.due.push_back((partition, revision));
            }
        }
        self.fired = fired;
    }

    /// When to look next.
    pub fn next_deadline_us(&self) -> Option<u64> {
        if self.recovered.is_empty() { self.wheel.next_deadline_us() } else { Some(0) }
    }

    /// Does one wait to be taken away?
    pub fn wait(&self) -> bool {
        !self.due.is_empty()
    }
}

/// What is left of a life, by the wall clock, which may have jumped: no less than nothing, no more than all of it.
fn rest_ms(expires_ms: u64, life_ms: u64, now: Now) -> u64 {
    expires_ms.saturating_sub(now.wall_ms).min(life_ms)
}

impl Shard {
    /// A record with changes of entries was appended: from this revision on they are new, and may have a life.
    pub(crate) fn entries_changed(
        &mut self,
        partition: PartitionId,
        slot: PartitionSlot,
        tenant: &Arc<str>,
        changes: &[EntryBody<'_>],
        now: Now,
    ) {
        let state = self.log.partition(slot);
        let Some(known) = state.entries() else { return };
        let held = self.entries.sessions.entry(partition).or_insert_with(|| Held {
            tenant: tenant.clone(),
            session: state.session().into(),
            bytes: 0,
            expiring: BTreeMap::new(),
        });
        let of_tenant = self.entries.by_tenant.entry(tenant.clone()).or_default();
        *of_tenant = (*of_tenant + known.bytes()).saturating_sub(held.bytes);
        held.bytes = known.bytes();
        held.expiring.retain(|_, (key, _)| !changes.iter().any(|change| *change.key == **key));
        let first = known.revision() + 1 - changes.len() as u64;
        for (revision, change) in (first..).zip(changes) {
            if change.act == EntryAct::Put as u8 && change.expires_ms > 0 {
                let at_us = now.mono_us + change.expires_ms.saturating_sub(now.wall_ms) * 1000;
                held.expiring.insert(revision, (change.key.into(), Due::At(at_us)));
                self.entries.wheel.put(at_us, (partition, revision));
            }
        }
        if held.bytes == 0 && held.expiring.is_empty() {
            self.entries.sessions.remove(&partition);
        }
        if *of_tenant == 0 {
            self.entries.by_tenant.remove(tenant);
        }
        self.count_kept(tenant, now);
    }

    /// Takes away entries whose time is over. Returns how many were worked off.
    pub(crate) fn serve_entries(&mut self, now: Now) -> usize {
        self.entries.look(now);
        let mut done = 0;
        for _ in 0..self.entries.due.len().min(EXPIRES_PER_TURN_MAX) {
            if !self.log.room(RECORD_BYTES_MAX) {
                break;
            }
            let Some((partition, revision)) = self.entries.due.pop_front() else { break };
            let Some(held) = self.entries.sessions.get(&partition) else { continue };
            let Some((key, _)) = held.expiring.get(&revision) else { continue };
            let (tenant, session, key) = (held.tenant.clone(), held.session.clone(), key.clone());
            match self.open(partition, &tenant, &session, None) {
                Opened::Ready(slot) => {
                    let known = self.log.partition(slot).entries().and_then(|entries| entries.get(&key));
                    if known.is_some_and(|entry| entry.revision == revision) {
                        let expired = EntryBody { key: &key, value: b"", act: EntryAct::Expired as u8, expires_ms: 0 };
                        let parts = Parts { entries: &[expired], ..Parts::default() };
                        self.log.append_parts(slot, &parts, now.wall_ms);
                        self.entries_changed(partition, slot, &tenant, parts.entries, now);
                    }
                    done += 1;
                }
                Opened::Absent => {}
                Opened::Park | Opened::Refused(_) => self.entries.due.push_back((partition, revision)),
            }
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_life_is_between_nothing_and_all_of_it() {
        let now = |wall_ms| Now { mono_us: 0, wall_ms };
        assert_eq!(rest_ms(1000, 400, now(700)), 300);
        assert_eq!(rest_ms(1000, 400, now(2000)), 0, "over");
        assert_eq!(rest_ms(1000, 400, now(1)), 400, "the clock went back: no more than it was given");
    }

    #[test]
    fn an_entry_is_over_at_its_time_and_due_once() {
        let mut entries = Entries::default();
        let partition = PartitionId(7);
        let expiring = [(3, ("k".into(), Due::At(100_000)))].into();
        entries.sessions.insert(partition, Held { tenant: "t".into(), session: "s".into(), bytes: 1, expiring });
        entries.wheel.put(100_000, (partition, 3));
        let at = |mono_us| Now { mono_us, wall_ms: 0 };
        assert!(!entries.is_over(partition, 3, at(99_999)) && entries.is_over(partition, 3, at(100_000)));
        assert!(!entries.is_over(partition, 4, at(200_000)), "another one");
        entries.look(at(99_000));
        assert!(!entries.wait());
        entries.look(at(120_000));
        entries.look(at(140_000));
        assert_eq!(entries.due, [(partition, 3)]);
    }
}
