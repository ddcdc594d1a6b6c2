//! Quotas of what is held: connections and subscriptions. Taken when they begin, given back when they end.
//!
//! ```text
//!   Connected ─► a permit here ─► works            subscribe ─► one here ─► counted when it stands
//!              ├► the home is asked: its commands wait         └► refused, over_quota
//!              └► none: turned away
//! ```

use super::Verdict;
use crate::command::Command;
use crate::fair::Place;
use crate::ids::{ConnectionId, Now};
use crate::limits::Kind;
use crate::shard::Shard;

impl Shard {
    /// A connection begins: it is counted, waits for its permit, or is turned away.
    pub(crate) fn take_connection_permit(&mut self, connection: ConnectionId, now: Now) {
        let Some(place) = self.readers.clients.get(connection).map(|client| client.place) else { return };
        let bound = self.fair.tenants.get(place.slot).and_then(|tenant| tenant.max(Kind::Connections));
        if bound.is_none() {
            return;
        }
        match self.has_part(place.slot, Kind::Connections, 1, now) {
            Verdict::Passes => self.give_permit(connection, now),
            Verdict::Waits => {
                self.pending.push(connection);
                self.accounts.is_restless = true;
                self.change_place(connection, |place| place.is_pending = true);
            }
            Verdict::Refused(_) => {
                self.change_place(connection, |place| place.is_pending = true);
                self.effects.turn_away(connection);
            }
        }
    }

    fn give_permit(&mut self, connection: ConnectionId, now: Now) {
        let Some(slot) = self.readers.clients.get(connection).map(|client| client.place.slot) else { return };
        if let Some(tenant) = self.fair.tenants.get_mut(slot) {
            tenant.part(Kind::Connections).take(Kind::Connections, 1, now.mono_us);
            self.change_place(connection, |place| (place.has_permit, place.is_pending) = (true, false));
        }
    }

    fn change_place(&mut self, connection: ConnectionId, change: impl FnOnce(&mut Place)) {
        if let Some(client) = self.readers.clients.get_mut(connection) {
            change(&mut client.place);
        }
    }

    /// Connections that wait for a permit are looked at again.
    pub(crate) fn look_at_pending(&mut self, now: Now) {
        for connection in std::mem::take(&mut self.pending) {
            let Some(place) = self.readers.clients.get(connection).map(|client| client.place) else { continue };
            let bound = self.fair.tenants.get(place.slot).and_then(|tenant| tenant.max(Kind::Connections));
            if bound.is_none() {
                self.change_place(connection, |place| place.is_pending = false);
                continue;
            }
            match self.has_part(place.slot, Kind::Connections, 1, now) {
                Verdict::Passes => self.give_permit(connection, now),
                Verdict::Refused(_) if self.has_effect_room(1) => self.effects.turn_away(connection),
                Verdict::Waits | Verdict::Refused(_) => self.pending.push(connection),
            }
        }
    }

    /// One more subscription needs a permit; one that replaces another of the client has its.
    pub(super) fn look_at_subscriptions(
        &mut self,
        connection: ConnectionId,
        command: &Command<'_>,
        now: Now,
    ) -> Verdict {
        let replaces = match *command {
            Command::Subscribe { session, .. } => self.readers.clients.get(connection).is_some_and(|client| {
                self.readers.find(connection, self.log.partition_id(&client.tenant, session)).is_some()
            }),
            Command::SubscribePatterns { .. } => false,
            _ => return Verdict::Passes,
        };
        if replaces { Verdict::Passes } else { self.may_subscribe(connection, now) }
    }

    /// May the client begin one more subscription?
    pub(crate) fn may_subscribe(&mut self, connection: ConnectionId, now: Now) -> Verdict {
        self.count_subscriptions(connection, now);
        let Some(place) = self.readers.clients.get(connection).map(|client| client.place) else {
            return Verdict::Passes;
        };
        self.has_part(place.slot, Kind::Subscriptions, 1, now)
    }

    /// Takes permits for subscriptions that began, which were seen to be there, and gives back those of subscriptions that ended.
    pub(crate) fn count_subscriptions(&mut self, connection: ConnectionId, now: Now) {
        let Some(client) = self.readers.clients.get_mut(connection) else { return };
        let (actual, slot) = (client.subscription_count + u32::from(client.patterns.is_some()), client.place.slot);
        let Some(tenant) = self.fair.tenants.get_mut(slot) else { return };
        if tenant.max(Kind::Subscriptions).is_none() {
            return;
        }
        let counted = std::mem::replace(&mut client.place.subscriptions, actual);
        let part = tenant.part(Kind::Subscriptions);
        if actual > counted {
            let more = u64::from(actual - counted);
            debug_assert!(part.has(more), "a subscription begins with a permit");
            part.take(Kind::Subscriptions, more.min(part.have), now.mono_us);
        } else if counted > actual {
            part.give_back(u64::from(counted - actual), true);
            self.accounts.is_restless = true;
        }
    }

    /// A client is gone, and what it held.
    pub(crate) fn return_permits(&mut self, place: Place) {
        let Some(tenant) = self.fair.tenants.get_mut(place.slot) else { return };
        for (kind, units) in
            [(Kind::Connections, u64::from(place.has_permit)), (Kind::Subscriptions, u64::from(place.subscriptions))]
        {
            if units > 0 && tenant.max(kind).is_some() {
                tenant.part(kind).give_back(units, true);
                self.accounts.is_restless = true;
            }
        }
        // Parts of a rate go home with the last client.
        self.accounts.is_restless |= tenant.is_limited;
    }

    /// A kind has a bound that had none: what is in use is owed to the home.
    pub(super) fn count_anew(&mut self, slot: u32, kind: Kind) {
        let mut used = 0;
        for client in self.readers.clients.iter_mut().filter(|client| client.place.slot == slot) {
            used += match kind {
                Kind::Connections => {
                    client.place.has_permit = !client.place.is_pending;
                    u64::from(client.place.has_permit)
                }
                _ => {
                    client.place.subscriptions = client.subscription_count + u32::from(client.patterns.is_some());
                    u64::from(client.place.subscriptions)
                }
            };
        }
        if let Some(tenant) = self.fair.tenants.get_mut(slot) {
            let part = tenant.part(kind);
            part.used = used;
            part.owed += used;
        }
    }

    /// A kind has no bound any more: everything goes back.
    pub(super) fn count_no_more(&mut self, slot: u32, kind: Kind) {
        for client in self.readers.clients.iter_mut().filter(|client| client.place.slot == slot) {
            match kind {
                Kind::Connections => (client.place.has_permit, client.place.is_pending) = (false, false),
                _ => client.place.subscriptions = 0,
            }
        }
        if let Some(tenant) = self.fair.tenants.get_mut(slot) {
            let part = tenant.part(kind);
            // What is owed and was not said yet comes back before it was lent.
            let unsaid = part.owed.min(part.used);
            part.owed -= unsaid;
            part.have += part.used - unsaid;
            part.used = 0;
        }
    }
}
