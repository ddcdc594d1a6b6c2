//! Guests: clients of other tenants on the same shards, who want more than their share and more than their quota.
//!
//! ```text
//!   each turn   fresh publishes until told to wait ─► whose turn it is in line, guests and doors alike
//!   now and then   other weights, other quotas, heard by each shard at a turn of its own
//!   holds       service ÷ weight of tenants that had something in line all the time differs by a quantum and two items;
//!               all shards together never take more of a quota than there was since the boot
//! ```
//! They read nothing: that the others lose nothing by them is what the oracle is for.

use super::*;
use shards::Shard;
use shards::command::{Command, DataKind, Durability, NewEvent};
use shards::ids::{CommandId, ConnectionId};
use shards::input::{Handled, Input, Principal};
use shards::limits::{KINDS, Kind, Quota, Quotas};
use std::sync::Arc;

/// Tenants of guests.
const TENANTS: [&str; 3] = ["ga", "gb", "gc"];
/// Bytes of a guest's event at most; one costs so much at most in the units of the shares.
const DATA_BYTES_MAX: u64 = 200;
const COST_MAX: u64 = 512 + DATA_BYTES_MAX;
/// What a tenant of weight 1 is given in one round.
const QUANTUM: u64 = 16 << 10;

/// What a seed decides about guests.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Connections of each tenant on each shard; 0: there are no guests.
    pub connections: u64,
    /// Quotas change on average in this many steps; 0 = never.
    pub change_every: u64,
    /// In force at the first boot.
    pub quotas: Arc<Quotas>,
}

impl GuestOptions {
    /// Draws them.
    pub fn draw(r: &mut Random) -> Self {
        let none = Self { connections: 0, change_every: 0, quotas: Arc::default() };
        if !r.chance(350) {
            return none;
        }
        let change_every = if r.chance(500) { *r.pick(&[300, 3000]) } else { 0 };
        Self { connections: r.between(1, 8), change_every, quotas: quotas(r) }
    }
}

fn quotas(r: &mut Random) -> Arc<Quotas> {
    let mut quotas = Quotas::default();
    for tenant in TENANTS {
        let mut quota = Quota { weight: r.between(1, 5) as u32, max: [None; KINDS] };
        let mut bound = |kind: Kind, r: &mut Random, of: &[u64]| {
            if r.chance(400) {
                quota.max[kind as usize] = Some(*r.pick(of));
            }
        };
        bound(Kind::Events, r, &[3, 50, 2000]);
        bound(Kind::Bytes, r, &[DATA_BYTES_MAX, 5000, 100_000]);
        bound(Kind::Connections, r, &[1, 4, 40]);
        quotas.tenants.insert(tenant.into(), quota);
    }
    Arc::new(quotas)
}

/// One connection of a guest.
pub(super) struct Guest {
    tenant: usize,
    connection: ConnectionId,
    sessions: Vec<String>,
    random: Random,
    said: u64,
    /// What it hands in is told to wait.
    held: bool,
    /// It was told so before this turn, and each time that it was its turn.
    waits_all_the_time: bool,
    data: Vec<u8>,
}

/// Guests of one shard, and where their tenants stood when all of them began to wait all the time.
#[derive(Default)]
pub(super) struct Lounge {
    pub guests: Vec<Guest>,
    baseline: [Option<(u64, u64)>; TENANTS.len()],
    weights: [u64; TENANTS.len()],
    /// To be told at its next turn.
    pub news: Option<Arc<Quotas>>,
}

/// What all shards together may have taken since the boot.
pub(super) struct Books {
    pub quotas: Arc<Quotas>,
    began_us: u64,
    /// Largest bound since the boot, by tenant and kind; `None`: there was none at some time.
    most: [[Option<u64>; KINDS]; TENANTS.len()],
}

impl Books {
    pub fn new(quotas: Arc<Quotas>) -> Self {
        Self { quotas, began_us: 0, most: Default::default() }
    }

    fn boot(&mut self, now_us: u64) {
        self.began_us = now_us;
        self.most = TENANTS.map(|tenant| self.quotas.of(tenant).max);
    }

    fn change(&mut self, quotas: Arc<Quotas>) {
        for (most, tenant) in self.most.iter_mut().zip(TENANTS) {
            for (most, max) in most.iter_mut().zip(quotas.of(tenant).max) {
                *most = most.zip(max).map(|(a, b)| a.max(b));
            }
        }
        self.quotas = quotas;
    }
}

impl World {
    /// Guests come with each boot.
    pub(super) fn welcome_guests(&mut self) {
        let now = self.now();
        self.books.boot(now.mono_us);
        let connections = if self.calm { 0 } else { self.options.guests.connections };
        let Some(node) = &mut self.node else { return };
        for (index, core) in node.shards.iter_mut().enumerate() {
            for n in 0..connections * TENANTS.len() as u64 {
                let tenant = n as usize % TENANTS.len();
                let Some(slot) = core.slots_free.pop() else { break };
                self.generation += 1;
                let connection = ConnectionId { slot, generation: self.generation };
                let client_id = format!("guest{index}-{n}");
                let principal = Principal { tenant: TENANTS[tenant], client_id: &client_id, rights: None };
                if core.shard.handle(Input::Connected { connection, principal }, now) == Handled::Later {
                    core.slots_free.push(slot);
                    break;
                }
                // Of its own shard: what is short is what all of them share.
                let own = |session: &String| usize::from(core.shard.owner(TENANTS[tenant], session).0) == index;
                let sessions: Vec<String> = (0..200).map(|n| format!("g{n}")).filter(own).take(2).collect();
                if sessions.is_empty() {
                    core.gone.push(connection);
                    continue;
                }
                let random = Random::new(self.guests.any(), "guest");
                core.lounge.guests.push(Guest {
                    tenant,
                    connection,
                    sessions,
                    random,
                    said: 0,
                    held: false,
                    waits_all_the_time: false,
                    data: Vec::new(),
                });
            }
            core.lounge.weights = TENANTS.map(|tenant| u64::from(self.books.quotas.of(tenant).weight));
        }
    }

    /// Other quotas, now and then.
    pub(super) fn change_quotas(&mut self) {
        let every = self.options.guests.change_every;
        if every == 0 || self.guests.below(every) > 0 {
            return;
        }
        let quotas = quotas(&mut self.guests);
        self.books.change(quotas.clone());
        self.options.limits.quotas = quotas.clone();
        self.counts.add(FAULT, "quotas change");
        for core in self.node.iter_mut().flat_map(|node| &mut node.shards) {
            core.lounge.news = Some(quotas.clone());
        }
    }

    /// All shards together keep to the quotas.
    pub(super) fn check_quotas(&self) -> Checked {
        let Some(node) = &self.node else { return Ok(()) };
        if self.options.guests.connections == 0 {
            return Ok(());
        }
        let passed_us = u128::from(self.now_us - self.books.began_us);
        for (tenant, most) in TENANTS.iter().zip(&self.books.most) {
            let shares = || node.shards.iter().filter_map(|core| core.shard.share_of(tenant));
            for kind in Kind::ALL {
                let Some(max) = most[kind as usize].map(u128::from) else { continue };
                let (sum, bound) = if kind.is_rate() {
                    let taken = shares().map(|share| u128::from(share.taken[kind as usize])).sum::<u128>();
                    (taken, max + max * passed_us / 1_000_000 + 1)
                } else {
                    (shares().map(|share| u128::from(share.used[kind as usize])).sum(), max)
                };
                if sum > bound {
                    return Err(format!("{tenant} has {sum} of {}, {bound} may be, {passed_us} us", kind.name()));
                }
            }
        }
        Ok(())
    }
}

impl Lounge {
    /// All of them leave: the world comes to rest, or the node goes down.
    pub fn leave(&mut self, gone: &mut Vec<ConnectionId>) {
        gone.extend(self.guests.drain(..).map(|guest| guest.connection));
    }

    /// What is told to wait before the turn begins.
    pub fn begin_turn(&mut self, shard: &mut Shard, now: Now) {
        if let Some(quotas) = self.news.take() {
            self.baseline = Default::default();
            self.weights = TENANTS.map(|tenant| u64::from(quotas.of(tenant).weight));
            let done = shard.handle(Input::Quotas { quotas: &quotas }, now);
            debug_assert_eq!(done, Handled::Done);
        }
        for guest in &mut self.guests {
            guest.waits_all_the_time = guest.held;
        }
    }

    /// Fresh publishes of guests that are not told to wait.
    pub fn read(&mut self, shard: &mut Shard, now: Now, counts: &mut Counts) -> usize {
        let mut work = 0;
        for at in 0..self.guests.len() {
            if !self.guests[at].held {
                work += self.hand_in(at, 3, shard, now, counts);
            }
        }
        work
    }

    /// It is this guest's turn; `None`: it is none of them.
    pub fn serve(&mut self, id: ConnectionId, shard: &mut Shard, now: Now, counts: &mut Counts) -> Option<usize> {
        let at = self.guests.iter().position(|guest| guest.connection == id)?;
        let work = self.hand_in(at, u64::MAX, shard, now, counts);
        let guest = &mut self.guests[at];
        guest.waits_all_the_time &= guest.held;
        Some(work)
    }

    /// A tenant has as many connections as it may.
    pub fn turned_away(&mut self, id: ConnectionId) -> bool {
        let before = self.guests.len();
        self.guests.retain(|guest| guest.connection != id);
        before > self.guests.len()
    }

    fn hand_in(&mut self, at: usize, most: u64, shard: &mut Shard, now: Now, counts: &mut Counts) -> usize {
        let guest = &mut self.guests[at];
        let mut work = 0;
        for _ in 0..most.min(64) {
            if !guest.held {
                guest.data.clear();
                guest.data.resize(guest.random.between(1, DATA_BYTES_MAX) as usize, b'7');
                guest.said += 1;
            }
            let session = &guest.sessions[guest.said as usize % guest.sessions.len()];
            let message_id = format!("m{}-{}", guest.connection.generation, guest.said);
            let event = NewEvent {
                topic: "guest",
                message_id: &message_id,
                prev_event_id: None,
                prev_message_id: None,
                data: &guest.data,
                data_kind: DataKind::Json,
                ttl_ms: None,
                producer: None,
                traceparent: "",
            };
            let command = Command::Publish { session, event, durability: Durability::Disk };
            let connection = guest.connection;
            let input = Input::Command { connection, id: CommandId::Number(guest.said), command };
            guest.held = shard.handle(input, now) == Handled::Later;
            counts.add(if guest.held { "guest told to wait" } else { "guest taken" }, TENANTS[guest.tenant]);
            if guest.held {
                return work;
            }
            work += 1;
        }
        work
    }

    /// Tenants that had something in line all the time were served alike.
    pub fn check(&mut self, shard: &Shard) -> Checked {
        let mut shares: Vec<(usize, u64)> = Vec::new();
        for (tenant, name) in TENANTS.iter().enumerate() {
            let waits = self.guests.iter().any(|guest| guest.tenant == tenant && guest.waits_all_the_time);
            let share = shard.share_of(name).filter(|_| waits);
            self.baseline[tenant] = match (share, self.baseline[tenant]) {
                // Passed by for a want of its own: counted from here on.
                (Some(share), Some((_, passed))) if share.passed != passed => None,
                (Some(share), None) => Some((share.served, share.passed)),
                (Some(_), baseline) => baseline,
                (None, _) => None,
            };
            if let (Some(share), Some((served, _))) = (share, self.baseline[tenant]) {
                shares.push((tenant, (share.served - served) / self.weights[tenant]));
            }
        }
        // They are compared from where the last of them began to wait.
        let began = shares.iter().any(|(tenant, _)| {
            shard
                .share_of(TENANTS[*tenant])
                .is_some_and(|share| self.baseline[*tenant] == Some((share.served, share.passed)))
        });
        if began || shares.len() < 2 {
            for (tenant, _) in &shares {
                let share = shard.share_of(TENANTS[*tenant]).unwrap_or_default();
                self.baseline[*tenant] = Some((share.served, share.passed));
            }
            return Ok(());
        }
        let least = shares.iter().map(|(_, share)| *share).min().unwrap_or(0);
        let most = shares.iter().map(|(_, share)| *share).max().unwrap_or(0);
        if most - least > QUANTUM + 2 * COST_MAX {
            return Err(format!("tenants that all waited were served {shares:?}, weights {:?}", self.weights));
        }
        Ok(())
    }
}
