//! Which other shards want what commits here, and how far each was served.
//!
//! ```text
//!  partition ─► shards with session subscribers
//!  tenant    ─► shards with pattern clients: union of their patterns, and the log order they were sent through
//! ```
//! A shard gets each committed record once, however many of its clients want it, in one message per walk of the log.
//! Where its lane is full the records are not queued: the shard is marked `missed`, and is told where the stream
//! stands as soon as there is room. What it missed it fetches.

use crate::delivery::ByPartition;
use crate::ids::{Epoch, Offset, PartitionId, ShardId};
use crate::names::pattern_matches;
use hashbrown::{HashMap, HashSet};
use std::hash::BuildHasherDefault;
use storage::few::Few;
use storage::ids::LogSeq;
use xxhash_rust::xxh3::Xxh3Default;

type ByTenant<V> = HashMap<Box<str>, V, BuildHasherDefault<Xxh3Default>>;

/// Distinct patterns kept per tenant and shard; beyond it everything of the tenant is sent.
const UNION_PATTERNS_MAX: usize = 64;

/// One per shard.
#[derive(Default)]
pub(crate) struct Interests {
    sessions: ByPartition<Few<ShardId>>,
    tenants: ByTenant<Vec<TenantInterest>>,
    /// Partitions whose live stream to a shard was interrupted, and where it stands.
    missed: ByPartition<Vec<(ShardId, Epoch, Offset)>>,
    missed_any: bool,
}

/// A shard's pattern clients of one tenant.
pub(crate) struct TenantInterest {
    pub shard: ShardId,
    /// Pattern clients there.
    pub clients: u32,
    patterns: HashSet<Box<str>, BuildHasherDefault<Xxh3Default>>,
    /// Everything below was sent, or is skipped and will be said to be.
    pub sent: LogSeq,
    /// Records were skipped and the shard does not know yet.
    pub missed: bool,
}

impl Interests {
    pub fn attach(&mut self, partition: PartitionId, shard: ShardId) {
        let shards = self.sessions.entry(partition).or_default();
        if !shards.contains(&shard) {
            shards.push(shard);
        }
    }

    pub fn detach(&mut self, partition: PartitionId, shard: ShardId) {
        if let Some(shards) = self.sessions.get_mut(&partition) {
            shards.retain(|s| *s != shard);
            if shards.is_empty() {
                self.sessions.remove(&partition);
            }
        }
        if let Some(missed) = self.missed.get_mut(&partition) {
            missed.retain(|(s, _, _)| *s != shard);
            if missed.is_empty() {
                self.missed.remove(&partition);
            }
        }
    }

    pub fn attach_patterns<'a>(
        &mut self,
        tenant: &str,
        shard: ShardId,
        patterns: impl Iterator<Item = &'a str>,
        sent: LogSeq,
    ) -> LogSeq {
        let shards = self.tenants.entry_ref(tenant).or_default();
        let at = match shards.iter().position(|t| t.shard == shard) {
            Some(at) => at,
            None => {
                shards.push(TenantInterest { shard, clients: 0, patterns: HashSet::default(), sent, missed: false });
                shards.len() - 1
            }
        };
        let interest = &mut shards[at];
        interest.clients += 1;
        for pattern in patterns {
            if interest.patterns.len() >= UNION_PATTERNS_MAX {
                interest.patterns.clear();
                interest.patterns.insert(">".into());
            }
            if !interest.patterns.contains(pattern) {
                interest.patterns.insert(pattern.into());
            }
        }
        interest.sent
    }

    pub fn detach_patterns(&mut self, tenant: &str, shard: ShardId) {
        if let Some(shards) = self.tenants.get_mut(tenant) {
            if let Some(interest) = shards.iter_mut().find(|t| t.shard == shard) {
                interest.clients -= 1;
            }
            shards.retain(|t| t.clients > 0);
            if shards.is_empty() {
                self.tenants.remove(tenant);
            }
        }
    }

    /// Shards with session subscribers of the partition.
    pub fn sessions(&self, partition: PartitionId) -> &[ShardId] {
        self.sessions.get(&partition).map_or(&[], |shards| shards)
    }

    /// Shards with pattern clients of the tenant.
    pub fn tenant(&mut self, tenant: &str) -> &mut [TenantInterest] {
        self.tenants.get_mut(tenant).map_or(&mut [], Vec::as_mut_slice)
    }

    /// Nobody anywhere is interested in anything.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty() && self.tenants.is_empty()
    }

    /// The partition's stream to a shard was interrupted at `to`.
    pub fn miss(&mut self, partition: PartitionId, shard: ShardId, epoch: Epoch, to: Offset) {
        let missed = self.missed.entry(partition).or_default();
        match missed.iter_mut().find(|(s, _, _)| *s == shard) {
            Some(entry) => *entry = (shard, epoch, to),
            None => missed.push((shard, epoch, to)),
        }
        self.missed_any = true;
    }

    /// Says each interrupted stream's place with `tell`, which answers whether there was room.
    pub fn tell_missed(&mut self, mut tell: impl FnMut(ShardId, PartitionId, Epoch, Offset) -> bool) -> usize {
        if !self.missed_any {
            return 0;
        }
        let mut told = 0;
        self.missed.retain(|partition, missed| {
            missed.retain(|(shard, epoch, to)| {
                let done = tell(*shard, *partition, *epoch, *to);
                told += usize::from(done);
                !done
            });
            !missed.is_empty()
        });
        self.missed_any = !self.missed.is_empty();
        told
    }

    /// A tenant's stream to a shard was interrupted: everything below `through` is skipped.
    pub fn miss_tenant(&mut self, tenant: &str, shard: ShardId, through: LogSeq) {
        if let Some(interest) = self.tenant(tenant).iter_mut().find(|t| t.shard == shard) {
            interest.sent = through;
            interest.missed = true;
            self.missed_any = true;
        }
    }

    /// As [`Interests::tell_missed`], for the streams of tenants.
    pub fn tell_missed_tenants(&mut self, mut tell: impl FnMut(ShardId, &str, LogSeq) -> bool) -> usize {
        let (mut told, mut left) = (0, false);
        for (tenant, shards) in &mut self.tenants {
            for interest in shards.iter_mut().filter(|t| t.missed) {
                interest.missed = !tell(interest.shard, tenant, interest.sent);
                told += usize::from(!interest.missed);
                left |= interest.missed;
            }
        }
        self.missed_any |= left;
        told
    }

    /// Has a stream been interrupted and not yet said?
    pub fn has_missed(&self) -> bool {
        self.missed_any
    }
}

impl TenantInterest {
    /// Does anybody there want this topic?
    pub fn matches(&self, topic: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern_matches(pattern, topic))
    }
}
