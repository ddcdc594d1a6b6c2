//! Quotas of what is kept: sessions that exist, jobs that are open, bytes of entries. Counted by the shards that keep it.
//!
//! ```text
//!   owner of a session                                              the tenant's home
//!   a record would make one session, job or byte more
//!     ├ lent here ─► appended, counted                                Account
//!     ├ not: LEND ─────────────────────────────────────────────────►   │ all shards have said what they keep?
//!     │   parked behind its session ◄──── LENT: units, or none ────────┤ yes
//!     │                             ◄──── LENT: ask again ─────────────┘ not yet
//!     └ none: refused, over_quota
//!   boot, other bounds: what is kept is owed: REPAY …, then CENSUS to every shard
//! ```
//! **Invariant.** What is kept is counted as lent, whether it was lent or has been there since before the bound: a restart forgets
//! nothing and refuses nothing that is there. A home lends nothing of these kinds before every shard has said what it keeps, so
//! that there is never more than the bound but what was there already, or what the server itself made.
//! **Failure.** What the server itself must append (the end of a job, a dead letter driven again) is not refused: it is owed.
//! **Backpressure.** Who waits is parked behind its session, never in the lane it came by: there it would hold up the answer it
//! waits for. Where there is no room to park it is refused.

use super::{Part, Verdict, over_quota};
use crate::ids::{Now, PartitionId, ShardId};
use crate::limits::{Kind, Quota};
use crate::mailbox::codec::Writer;
use crate::mailbox::message::request;
use crate::shard::Shard;
use std::sync::Arc;
use storage::catalog::PartitionSlot;

/// Where there is no room to wait for the home's answer.
const NO_ROOM_TO_WAIT_US: u64 = 100_000;
/// The home counts still: it is asked again after so long.
const ASK_AGAIN_US: u64 = 1000;

/// How far the shards are in saying what they keep, and who waits for the homes of tenants.
#[derive(Default)]
pub(super) struct Census {
    /// Raised when bounds change; the same on every shard, for all are told of the same changes in one order.
    generation: u64,
    /// Something that is kept is bounded.
    is_on: bool,
    /// Up to which generation this shard has told the others, and itself; up to which they have told it.
    told: Vec<u64>,
    heard: Vec<u64>,
    /// Commands that are parked, by what they wait for, and of how much.
    waiting: Vec<(u32, Kind, u64, PartitionId)>,
}

impl Census {
    pub fn somebody_waits(&self) -> bool {
        !self.waiting.is_empty()
    }
}

/// What a record would add to what a tenant keeps.
#[derive(Clone, Copy, Default)]
pub(crate) struct Growth {
    pub sessions: u64,
    pub jobs: u64,
    pub entry_bytes: u64,
}

impl Shard {
    /// May the tenant keep so much more? Where it has to wait, what is parked behind the session is woken.
    pub(crate) fn may_keep(&mut self, tenant: &Arc<str>, partition: PartitionId, growth: Growth, now: Now) -> Verdict {
        if !self.accounts.census.is_on {
            return Verdict::Passes;
        }
        let quota = self.config.limits.quotas.of(tenant);
        let wants = [
            (Kind::Sessions, growth.sessions),
            (Kind::QueueDepth, growth.jobs),
            (Kind::EntryBytes, growth.entry_bytes),
        ];
        for (kind, need) in wants {
            if need == 0 || quota.max[kind as usize].is_none() {
                continue;
            }
            let slot = self.fair.tenants.hold(tenant, quota);
            self.count(slot, kind, now);
            match self.has_part(slot, kind, need, now) {
                Verdict::Passes => {}
                Verdict::Waits if self.parked.has_room(self.config.limits.parked_bytes_max) => {
                    self.accounts.census.waiting.push((slot, kind, need, partition));
                    self.sweep_soon(now);
                    return Verdict::Waits;
                }
                Verdict::Waits => return Verdict::Refused(over_quota(kind, NO_ROOM_TO_WAIT_US)),
                refused => {
                    self.fair.tenants.forget_if_done(slot);
                    return refused;
                }
            }
        }
        Verdict::Passes
    }

    /// Does the next record of this partition begin a session that counts? So many then.
    pub(crate) fn begins_session(&self, slot: PartitionSlot) -> u64 {
        let partition = self.log.partition(slot);
        u64::from(partition.last_change().is_none() && !partition.session().starts_with('$'))
    }

    /// A record was appended, or a job has ended: what the tenant keeps is counted.
    pub(crate) fn count_kept(&mut self, tenant: &str, now: Now) {
        if !self.accounts.census.is_on {
            return;
        }
        let Some(slot) = self.fair.tenants.find(tenant) else { return };
        for kind in Kind::KEPT {
            self.count(slot, kind, now);
        }
    }

    fn count(&mut self, slot: u32, kind: Kind, now: Now) {
        let Some(tenant) = self.fair.tenants.get(slot).filter(|tenant| tenant.max(kind).is_some()) else { return };
        let actual = self.kept(&tenant.name, kind);
        let Some(tenant) = self.fair.tenants.get_mut(slot) else { return };
        tenant.part(kind).count(actual, now.mono_us);
        self.accounts.is_restless = true;
    }

    /// What there is of a kind on this shard.
    fn kept(&self, tenant: &str, kind: Kind) -> u64 {
        match kind {
            Kind::Sessions => self.log.sessions_of(tenant),
            Kind::QueueDepth => self.queues.open_of(tenant),
            Kind::EntryBytes => self.entries.tenant_bytes(tenant) as u64,
            Kind::Events | Kind::Bytes | Kind::Connections | Kind::Subscriptions => 0,
        }
    }

    /// Jobs end at any time. `true`: some are open that count.
    pub(super) fn count_jobs(&mut self, slot: u32, now: Now) -> bool {
        if self.accounts.census.is_on {
            self.count(slot, Kind::QueueDepth, now);
        }
        self.fair.tenants.get_mut(slot).is_some_and(|tenant| tenant.part(Kind::QueueDepth).used > 0)
    }

    /// Who waits for these parts, or for any, goes on: it has them, asks again, or is refused.
    pub(super) fn wake_waiting(&mut self, of: Option<(u32, Kind)>) {
        if !self.accounts.census.somebody_waits() {
            return;
        }
        let mut wanted = 0;
        let (woken, rest) = std::mem::take(&mut self.accounts.census.waiting)
            .into_iter()
            .partition(|(slot, kind, ..)| of.is_none_or(|of| of == (*slot, *kind)));
        self.accounts.census.waiting = rest;
        let woken: Vec<(u32, Kind, u64, PartitionId)> = woken;
        for (_, _, need, partition) in woken {
            wanted += need;
            self.parked_ready.push_back(partition);
        }
        // All of them at once are asked for when the first one asks, if there is so much.
        if let Some((slot, kind)) = of
            && let Some(tenant) = self.fair.tenants.get_mut(slot)
        {
            let part = tenant.part(kind);
            part.wanted = wanted.saturating_sub(part.have);
        }
    }

    /// Parts are looked at before long.
    pub(super) fn sweep_soon(&mut self, now: Now) {
        self.accounts.is_restless = true;
        self.accounts.sweep_at_us = self.accounts.sweep_at_us.min(now.mono_us + ASK_AGAIN_US);
    }

    // ---- who keeps what, when there are other bounds ----------------------------------------------------------------

    /// Bounds are others, or it is the beginning: what is kept under a new one is owed to the home.
    pub(crate) fn begin_census(&mut self, now: Now) {
        let shards = usize::from(self.config.shards);
        let quotas = self.config.limits.quotas.clone();
        let census = &mut self.accounts.census;
        census.generation += 1;
        census.is_on = quotas.bound_kept();
        census.told.resize(shards, 0);
        census.heard.resize(shards, 0);
        if !census.is_on {
            return;
        }
        self.accounts.is_restless = true;
        let mut tenants: Vec<Arc<str>> = self.log.tenants().map(Arc::from).collect();
        tenants.extend(self.entries.tenants().chain(self.queues.tenants()).cloned());
        for tenant in tenants {
            let quota = quotas.of(&tenant);
            if quota.bounds_kept() {
                let slot = self.fair.tenants.hold(&tenant, quota);
                Kind::KEPT.into_iter().for_each(|kind| self.count(slot, kind, now));
                self.fair.tenants.forget_if_done(slot);
            }
        }
    }

    /// A kind has no bound any more: everything goes back.
    pub(super) fn count_kept_no_more(&mut self, slot: u32, before: Quota, now: Now) {
        let Some(tenant) = self.fair.tenants.get_mut(slot) else { return };
        for kind in Kind::KEPT {
            if before.max[kind as usize].is_some() && tenant.max(kind).is_none() {
                tenant.part(kind).count(0, now.mono_us);
            }
        }
    }

    /// Has every shard said what it keeps under the bounds that hold here?
    pub(super) fn all_is_counted(&self) -> bool {
        let Census { generation, told, heard, .. } = &self.accounts.census;
        let own = usize::from(self.config.shard.0);
        let heard = |shard: usize| shard == own || heard[shard] >= *generation;
        told.get(own).is_some_and(|told| told >= generation) && (0..told.len()).all(heard)
    }

    /// Says that all was said, once that is so. `false`: not to everybody yet.
    pub(super) fn say_census(&mut self) -> bool {
        let own = usize::from(self.config.shard.0);
        let generation = self.accounts.census.generation;
        if !self.accounts.census.is_on || self.accounts.census.told.iter().all(|told| *told >= generation) {
            return true;
        }
        let owes = |part: &Part| part.owed > 0;
        let slots: Vec<u32> = self.fair.tenants.slots().collect();
        if slots.into_iter().filter_map(|slot| self.fair.tenants.get(slot)).any(|tenant| tenant.parts.iter().any(owes))
        {
            return false;
        }
        for shard in 0..self.accounts.census.told.len() {
            if self.accounts.census.told[shard] >= generation {
                continue;
            }
            if shard != own {
                self.scratch.clear();
                Writer(&mut self.scratch).u8(request::CENSUS).u64(generation);
                if !self.mail.tell(ShardId(shard as u16), &self.scratch) {
                    continue;
                }
                self.wake(ShardId(shard as u16));
            }
            self.accounts.census.told[shard] = generation;
        }
        self.accounts.census.told.iter().all(|told| *told >= generation)
    }

    /// `CENSUS`: another shard has said what it keeps.
    pub(crate) fn handle_census(&mut self, from: ShardId, generation: u64, now: Now) {
        let heard = &mut self.accounts.census.heard;
        heard.resize(usize::from(self.config.shards), 0);
        if let Some(heard) = heard.get_mut(usize::from(from.0)) {
            *heard = generation.max(*heard);
        }
        self.sweep_soon(now);
    }
}
