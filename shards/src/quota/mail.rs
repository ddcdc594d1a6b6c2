//! Lending over mail: what a shard asks of a tenant's home, and what the home answers.
//!
//! ```text
//!  LEND   tenant · kind · have · need · spent · more   an ask, room for the answer is reserved; `more` would be welcome
//!  LENT   tenant · kind · units · after_us             0 units: there are none before then; at 0: ask again, not all was counted
//!  REPAY  tenant · kind · unspent · spent · owed       owed: in use since before there was a bound
//!  CENSUS generation                                   see [`levels`](super::levels)
//! ```

use super::account::{Account, Grant, Part};
use super::levels::Census;
use crate::ids::{Now, ShardId};
use crate::limits::{Kind, Quotas};
use crate::mailbox::codec::{Reader, Writer};
use crate::mailbox::message::{reply, request};
use crate::shard::Shard;
use hashbrown::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3Default;

/// What was lent and is not used goes back after so long, and is looked for this often.
const UNUSED_US: u64 = 1_000_000;
const SWEEP_EVERY_US: u64 = 250_000;

/// The bound of a kind that has none at present: more than anybody has, and no number overflows.
const UNBOUNDED: u64 = 1 << 40;

/// Bytes of an answer.
const LENT_BYTES_MAX: usize = 256;

/// Name of the hidden session whose owner is a tenant's home.
const HOME: &str = "$quota";

/// Accounts of the tenants whose home this shard is, and when lent parts are looked at.
#[derive(Default)]
pub(crate) struct Accounts {
    of: HashMap<(Arc<str>, Kind), Account, BuildHasherDefault<Xxh3Default>>,
    pub(super) sweep_at_us: u64,
    /// Something is lent to this shard, or by it.
    pub(super) is_restless: bool,
    pub(super) census: Census,
}

impl Accounts {
    fn account(&mut self, quotas: &Quotas, tenant: &Arc<str>, kind: Kind, now_us: u64) -> &mut Account {
        let bound = || quotas.of(tenant).max[kind as usize].unwrap_or(UNBOUNDED);
        self.is_restless = true;
        self.of.entry((tenant.clone(), kind)).or_insert_with(|| Account::new(kind, bound(), now_us))
    }

    fn resize(&mut self, quotas: &Quotas, now_us: u64) {
        for ((tenant, kind), account) in &mut self.of {
            account.resize(quotas.of(tenant).max[*kind as usize].unwrap_or(UNBOUNDED), now_us);
        }
    }
}

impl Shard {
    fn home_of_tenant(&self, tenant: &str) -> ShardId {
        self.owner_of(self.log.partition_id(tenant, HOME))
    }

    /// What a shard gets at once where there is plenty: all of them together have no more than half of it.
    fn chunk(&self, max: u64, kind: Kind) -> u64 {
        if kind.is_rate() { max / (2 * u64::from(self.config.shards)) } else { 0 }
    }

    /// Asks for `need` units, all in all.
    pub(super) fn borrow(&mut self, slot: u32, kind: Kind, need: u64, now: Now) {
        let Some(tenant) = self.fair.tenants.get_mut(slot) else { return };
        let name = tenant.name.clone();
        let Part { have, spent, wanted, .. } = *tenant.part(kind);
        let home = self.home_of_tenant(&name);
        if home == self.config.shard {
            let grant = self.lend(&name, kind, (have, need, spent, wanted), now);
            let Some(tenant) = self.fair.tenants.get_mut(slot) else { return };
            (tenant.part(kind).spent, tenant.part(kind).wanted) = (0, 0);
            answered(tenant.part(kind), grant, now.mono_us);
            return;
        }
        self.accounts.is_restless = true;
        self.scratch.clear();
        let mut w = Writer(&mut self.scratch);
        w.u8(request::LEND)
            .u32(LENT_BYTES_MAX as u32)
            .text(&name)
            .u8(kind as u8)
            .u64(have)
            .u64(need)
            .u64(spent)
            .u64(wanted);
        let Some(ask) = self.mail.ask(home, self.scratch.len(), LENT_BYTES_MAX) else { return };
        self.mail.send_ask(home, ask, &self.scratch);
        self.wake(home);
        if let Some(tenant) = self.fair.tenants.get_mut(slot) {
            let part = tenant.part(kind);
            (part.spent, part.wanted) = (0, 0);
            part.asked = true;
        }
    }

    fn lend(
        &mut self,
        tenant: &Arc<str>,
        kind: Kind,
        (have, need, spent, more): (u64, u64, u64, u64),
        now: Now,
    ) -> Grant {
        if kind.is_kept() && !self.all_is_counted() {
            return Grant::Units(0);
        }
        let quotas = self.config.limits.quotas.clone();
        let chunk = self.chunk(quotas.of(tenant).max[kind as usize].unwrap_or(UNBOUNDED), kind).max(more);
        let account = self.accounts.account(&quotas, tenant, kind, now.mono_us);
        account.settle(0, spent, now.mono_us);
        account.grant(have, need, chunk, now.mono_us)
    }

    /// `LEND`, at the home. The asker has reserved the room for the answer.
    pub(crate) fn handle_lend(&mut self, from: ShardId, r: &mut Reader<'_>, now: Now) {
        let (reply_bytes, tenant) = (r.u32(), Arc::<str>::from(r.text()));
        let Some(kind) = Kind::of(r.u8()) else { return };
        let wants = (r.u64(), r.u64(), r.u64(), r.u64());
        let (units, after_us) = match self.lend(&tenant, kind, wants, now) {
            Grant::Units(units) => (units, 0),
            Grant::After(us) => (0, us.max(1)),
        };
        self.scratch.clear();
        let mut w = Writer(&mut self.scratch);
        w.u8(reply::LENT).u32(reply_bytes).text(&tenant).u8(kind as u8).u64(units).u64(after_us);
        self.mail.reply(from, &self.scratch);
        self.wake(from);
    }

    /// `LENT`, at the asker.
    pub(crate) fn take_lent(&mut self, r: &mut Reader<'_>, now: Now) {
        let (name, kind) = (r.text(), Kind::of(r.u8()));
        let slot = self.fair.tenants.find(name);
        let grant = match (r.u64(), r.u64()) {
            (units, 0) => Grant::Units(units),
            (_, after_us) => Grant::After(after_us),
        };
        let (Some(slot), Some(kind)) = (slot, kind) else { return };
        let Some(tenant) = self.fair.tenants.get_mut(slot) else { return };
        let part = tenant.part(kind);
        part.asked = false;
        answered(part, grant, now.mono_us);
        match (kind, grant) {
            (Kind::Connections, _) => self.look_at_pending(now),
            // Who waits goes on waiting.
            (_, Grant::Units(0)) => self.sweep_soon(now),
            _ if kind.is_kept() => self.wake_waiting(Some((slot, kind))),
            _ => {}
        }
        self.fair.tenants.forget_if_done(slot);
    }

    /// `REPAY`, at the home.
    pub(crate) fn handle_repay(&mut self, r: &mut Reader<'_>, now: Now) {
        let tenant = Arc::<str>::from(r.text());
        let Some(kind) = Kind::of(r.u8()) else { return };
        self.settle(&tenant, kind, (r.u64(), r.u64(), r.u64()), now);
    }

    fn settle(&mut self, tenant: &Arc<str>, kind: Kind, (unspent, spent, owed): (u64, u64, u64), now: Now) {
        let quotas = self.config.limits.quotas.clone();
        let account = self.accounts.account(&quotas, tenant, kind, now.mono_us);
        account.settle(unspent, spent, now.mono_us);
        account.owe(owed);
    }

    /// Gives back to the home. `false`: no room for the mail, nothing was done.
    fn repay(&mut self, tenant: &Arc<str>, kind: Kind, (unspent, spent, owed): (u64, u64, u64), now: Now) -> bool {
        let home = self.home_of_tenant(tenant);
        if home == self.config.shard {
            self.settle(tenant, kind, (unspent, spent, owed), now);
            return true;
        }
        self.scratch.clear();
        let mut w = Writer(&mut self.scratch);
        w.u8(request::REPAY).text(tenant).u8(kind as u8).u64(unspent).u64(spent).u64(owed);
        let told = self.mail.tell(home, &self.scratch);
        if told {
            self.wake(home);
        }
        told
    }

    /// Gives back what is lent here and not used, and forgets accounts that nobody uses.
    pub(crate) fn serve_quotas(&mut self, now: Now) -> usize {
        if !self.accounts.is_restless || now.mono_us < self.accounts.sweep_at_us {
            return 0;
        }
        self.accounts.sweep_at_us = now.mono_us + SWEEP_EVERY_US;
        self.look_at_pending(now);
        let slots: Vec<u32> = self.fair.tenants.slots().collect();
        let (mut done, mut is_restless) = (0, !self.pending.is_empty() || self.accounts.census.somebody_waits());
        self.wake_waiting(None);
        for slot in slots {
            is_restless |= self.count_jobs(slot, now);
            for kind in Kind::ALL {
                let Some(tenant) = self.fair.tenants.get_mut(slot) else { continue };
                let (name, has_gone, bound) = (tenant.name.clone(), tenant.clients == 0, tenant.max(kind));
                if kind.is_kept() && tenant.part(kind).none_until_us <= now.mono_us {
                    tenant.part(kind).none_until_us = 0;
                }
                let Part { have, spent, owed, taken_us, asked, none_until_us, .. } = *tenant.part(kind);
                is_restless |= have > 0 || spent > 0 || owed > 0 || asked || (kind.is_kept() && none_until_us > 0);
                let is_unused =
                    has_gone || bound.is_none() || !kind.is_rate() || now.mono_us.saturating_sub(taken_us) >= UNUSED_US;
                let due = is_unused && have + spent > 0 && !asked;
                if !(due || owed > 0) || !self.repay(&name, kind, (have, spent, owed), now) {
                    continue;
                }
                done += 1;
                if let Some(tenant) = self.fair.tenants.get_mut(slot) {
                    let part = tenant.part(kind);
                    (part.have, part.spent, part.owed) = (0, 0, 0);
                }
            }
            self.fair.tenants.forget_if_done(slot);
        }
        is_restless |= !self.say_census();
        self.accounts.of.retain(|_, account| !account.is_idle(now.mono_us));
        self.accounts.is_restless |= is_restless;
        self.accounts.is_restless &= is_restless || !self.accounts.of.is_empty();
        done
    }

    /// When parts are to be looked at.
    pub(crate) fn quota_deadline_us(&self) -> Option<u64> {
        self.accounts.is_restless.then_some(self.accounts.sweep_at_us)
    }

    /// Other bounds and weights from now on.
    pub(crate) fn change_quotas(&mut self, quotas: &Arc<Quotas>, now: Now) {
        self.config.limits.quotas = quotas.clone();
        self.accounts.resize(quotas, now.mono_us);
        let slots: Vec<u32> = self.fair.tenants.slots().collect();
        for slot in slots {
            let Some(tenant) = self.fair.tenants.get_mut(slot) else { continue };
            let quota = quotas.of(&tenant.name);
            let before = std::mem::replace(&mut tenant.quota, quota);
            tenant.is_limited = !quota.is_unlimited();
            for part in &mut tenant.parts {
                part.none_until_us = 0;
            }
            if tenant.clients > 0 {
                self.fair.input.enter(slot, quota.weight);
                self.readers.queued.line.enter(slot, quota.weight);
            }
            for kind in [Kind::Connections, Kind::Subscriptions] {
                match (before.max[kind as usize], quota.max[kind as usize]) {
                    (None, Some(_)) => self.count_anew(slot, kind),
                    (Some(_), None) => self.count_no_more(slot, kind),
                    _ => {}
                }
            }
            self.count_kept_no_more(slot, before, now);
        }
        self.begin_census(now);
        self.accounts.is_restless = true;
        self.accounts.sweep_at_us = now.mono_us;
        self.look_at_pending(now);
    }
}

fn answered(part: &mut Part, grant: Grant, now_us: u64) {
    match grant {
        Grant::Units(units) => {
            part.have += units;
            part.none_until_us = 0;
        }
        Grant::After(us) => part.none_until_us = now_us.saturating_add(us),
    }
}
