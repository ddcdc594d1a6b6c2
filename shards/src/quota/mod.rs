//! Quotas: what a tenant may use at all, wherever its clients are.
//!
//! ```text
//!   a shard with clients of the tenant                      the tenant's home (owner of its hidden session)
//!   Part: have ── take ──► spent, used                      Account: level, lent
//!     │ short: LEND {spent, have, need} ────────────────────►  grant
//!     │ waits ◄──────────────────────────── LENT {units} ──────┤ enough
//!     │ refused, over_quota ◄── LENT {0, after_us} ────────────┘ not: when there will be
//!     └ not used for a second: REPAY {unspent, spent} ──────►  settle
//! ```
//! **Invariant.** [`account`]: all shards together never take more than the bound. Units that are on their way count as lent.
//! **Failure.** A shard that cannot reach the home waits, and its senders with it; it never helps itself.
//! **Unit of backpressure.** One connection's input. An unlimited tenant pays one comparison a command.
//!
//! What a command asks for is charged when it is taken, whatever becomes of it then; one that is refused for its quota is not. What
//! is kept in the log is charged where it is kept: see [`levels`].

mod account;
mod levels;
mod mail;
mod permits;

pub(crate) use account::{Account, Grant, Part};
pub(crate) use levels::Growth;
pub(crate) use mail::Accounts;

use crate::command::Command;
use crate::ids::{ConnectionId, Now};
use crate::limits::Kind;
use crate::refusal::{Refusal, Refused};
use crate::shard::Shard;

/// What a tenant's quota says of a command.
pub(crate) enum Verdict {
    /// Go on.
    Passes,
    /// The home was asked.
    Waits,
    /// No.
    Refused(Refused),
}

/// Events and bytes that a command wants to publish.
fn rates(command: &Command<'_>) -> Option<[(Kind, u64); 2]> {
    let (events, bytes) = match *command {
        Command::Publish { ref event, .. } => (1, event.data.len()),
        Command::Commit { events, .. } => (events.len(), events.iter().map(|event| event.data.len()).sum()),
        Command::StreamAppend { delta, .. } => (1, delta.delta.len()),
        Command::StreamClose { .. } => (1, 0),
        _ => return None,
    };
    Some([(Kind::Events, events as u64), (Kind::Bytes, bytes as u64)])
}

fn is_about_subscriptions(command: &Command<'_>) -> bool {
    matches!(
        command,
        Command::Subscribe { .. }
            | Command::SubscribePatterns { .. }
            | Command::Unsubscribe { .. }
            | Command::UnsubscribePatterns
    )
}

impl Shard {
    /// Whether the command's tenant may. Changes nothing of what the tenant has; may ask its home for more.
    #[inline]
    pub(crate) fn look_at_quota(&mut self, connection: ConnectionId, command: &Command<'_>, now: Now) -> Verdict {
        let Some(client) = self.readers.clients.get(connection) else { return Verdict::Passes };
        let slot = client.place.slot;
        if self.fair.tenants.get(slot).is_none_or(|tenant| !tenant.is_limited) {
            return Verdict::Passes;
        }
        if client.place.is_pending {
            return Verdict::Waits;
        }
        let wants = match rates(command) {
            Some(wants) => wants,
            None => return self.look_at_subscriptions(connection, command, now),
        };
        for (kind, need) in wants {
            match self.has_part(slot, kind, need, now) {
                Verdict::Passes => {}
                other => return other,
            }
        }
        Verdict::Passes
    }

    /// Are there `need` units of the kind here? Else the home is asked.
    pub(crate) fn has_part(&mut self, slot: u32, kind: Kind, need: u64, now: Now) -> Verdict {
        let Some(tenant) = self.fair.tenants.get_mut(slot) else { return Verdict::Passes };
        let Some(max) = tenant.max(kind) else { return Verdict::Passes };
        let part = tenant.part(kind);
        if part.has(need) {
            return Verdict::Passes;
        }
        if kind.is_rate() && need > max {
            // It would never fit: the bound of one second is the largest burst too.
            return Verdict::Refused(Refused::field(Refusal::OverQuota, kind.name()));
        }
        if !part.asked && now.mono_us >= part.none_until_us {
            self.borrow(slot, kind, need, now);
        }
        let Some(part) = self.fair.tenants.get_mut(slot).map(|tenant| tenant.part(kind)) else {
            return Verdict::Passes;
        };
        if part.has(need) {
            Verdict::Passes
        } else if now.mono_us < part.none_until_us {
            Verdict::Refused(over_quota(kind, part.none_until_us - now.mono_us))
        } else {
            Verdict::Waits
        }
    }

    /// Charges a command that was taken.
    #[inline]
    pub(crate) fn spend_quota(&mut self, connection: ConnectionId, command: &Command<'_>, now: Now) {
        let Some(slot) = self.readers.clients.get(connection).map(|client| client.place.slot) else { return };
        let Some(tenant) = self.fair.tenants.get_mut(slot).filter(|tenant| tenant.is_limited) else { return };
        for (kind, units) in rates(command).into_iter().flatten() {
            if tenant.max(kind).is_some() {
                tenant.part(kind).take(kind, units, now.mono_us);
            }
        }
        if is_about_subscriptions(command) {
            self.count_subscriptions(connection, now);
        }
    }
}

/// Come back after so long, rounded up.
fn over_quota(kind: Kind, after_us: u64) -> Refused {
    let ms = after_us.div_ceil(1000).min(u64::from(u32::MAX)) as u32;
    Refused { field: kind.name(), ..Refused::later(Refusal::OverQuota, ms) }
}
