//! Clients of this shard's connections: who they are, what they may be sent, what they listen to.
//!
//! ```text
//! Client ─ subscriptions ─► Subscription ─► Feed (one partition)
//!        └ patterns ──────► PatternFeed: one source per shard
//! credit: delivered − acknowledged ≤ window, for events and for payload bytes
//! ```
//! One table per shard, indexed by the connection's slot.

use super::patterns::PatternFeed;
use crate::clients::life::{Life, Positions};
use crate::fair::Place;
use crate::ids::{ConnectionId, Now};
use crate::input::Principal;
use crate::refusal::{Refusal, Refused};
use crate::rights::Rights;
use std::sync::Arc;

/// No subscription: end of a client's list.
pub(crate) const NONE: u32 = u32::MAX;

/// One connected client.
pub(crate) struct Client {
    pub generation: u32,
    /// Shared, so that a command can hold its principal's names while it changes the shard.
    pub tenant: Arc<str>,
    pub client_id: Arc<str>,
    /// What it may do; `None` = everything in its tenant.
    pub rights: Option<Arc<Rights>>,
    /// Commands that were taken and not answered.
    pub in_flight: u32,
    /// First of its subscriptions, a list through [`super::Subscription::next_of_client`].
    pub subscriptions: u32,
    pub subscription_count: u32,
    pub patterns: Option<Box<PatternFeed>>,
    /// A reader of this client waits for room or credit; it is on the blocked list.
    pub blocked: bool,
    /// When its connection was made, microseconds.
    pub since_us: u64,
    /// Another connection has this client now.
    pub fenced: bool,
    /// Positions of a `resume` that its home has not answered.
    pub opening: Option<Box<Positions>>,
    /// Among its tenant's.
    pub place: Place,
    /// What outlives this connection, if anything does.
    pub life: Option<Box<Life>>,
    credit: Credit,
}

const _: () = assert!(size_of::<Client>() <= 152);

/// Delivery credit. `u64::MAX` = no bound.
struct Credit {
    events_window: u64,
    bytes_window: u64,
    events_delivered: u64,
    bytes_delivered: u64,
    events_acknowledged: u64,
    bytes_acknowledged: u64,
}

impl Client {
    fn new(generation: u32, tenant: Arc<str>, client_id: &str, now: Now) -> Self {
        Self {
            generation,
            tenant,
            client_id: client_id.into(),
            rights: None,
            in_flight: 0,
            subscriptions: NONE,
            subscription_count: 0,
            patterns: None,
            blocked: false,
            since_us: now.mono_us,
            fenced: false,
            opening: None,
            place: Place::default(),
            life: None,
            credit: Credit {
                events_window: u64::MAX,
                bytes_window: u64::MAX,
                events_delivered: 0,
                bytes_delivered: 0,
                events_acknowledged: 0,
                bytes_acknowledged: 0,
            },
        }
    }

    /// Sets the windows.
    pub fn set_credit(&mut self, events: Option<u64>, bytes: Option<u64>) {
        self.credit.events_window = events.unwrap_or(u64::MAX);
        self.credit.bytes_window = bytes.unwrap_or(u64::MAX);
    }

    /// May one more event be delivered? A window counts as open while anything is left of it, so an event larger
    /// than the byte window still passes alone.
    pub fn has_credit(&self) -> bool {
        let c = &self.credit;
        c.events_delivered - c.events_acknowledged < c.events_window
            && c.bytes_delivered - c.bytes_acknowledged < c.bytes_window
    }

    /// Events that may still be delivered.
    pub fn credit_left(&self) -> u64 {
        let c = &self.credit;
        c.events_window.saturating_sub(c.events_delivered - c.events_acknowledged)
    }

    /// An event frame of `bytes` payload was queued.
    pub fn delivered(&mut self, bytes: usize) {
        self.credit.events_delivered += 1;
        self.credit.bytes_delivered += bytes as u64;
    }

    /// Payload bytes of event frames so far.
    pub fn bytes_delivered(&self) -> u64 {
        self.credit.bytes_delivered
    }

    /// Event frames so far: queued, acknowledged.
    pub fn event_frames(&self) -> (u64, u64) {
        (self.credit.events_delivered, self.credit.events_acknowledged)
    }

    /// Cumulative acknowledgement. Refused where it runs ahead of what was delivered or falls back.
    pub fn acknowledge(&mut self, events: u64, bytes: Option<u64>) -> Result<(), Refused> {
        let c = &mut self.credit;
        if events > c.events_delivered || events < c.events_acknowledged {
            return Err(Refused::field(Refusal::BadCredit, "events"));
        }
        if let Some(bytes) = bytes {
            if bytes > c.bytes_delivered || bytes < c.bytes_acknowledged {
                return Err(Refused::field(Refusal::BadCredit, "bytes"));
            }
            c.bytes_acknowledged = bytes;
        } else if events == c.events_delivered {
            // Everything was worked off: the bytes too, even for a client that counts only events.
            c.bytes_acknowledged = c.bytes_delivered;
        }
        c.events_acknowledged = events;
        Ok(())
    }
}

/// All clients of a shard.
#[derive(Default)]
pub(crate) struct Clients {
    slots: Vec<Option<Client>>,
    count: usize,
    /// Tenant of who came last: neighbours share its name.
    tenant: Option<Arc<str>>,
}

impl Clients {
    /// Room for so many: what was never used was never touched, and a table that doubles leaves holes.
    pub fn with_room(connections_max: usize) -> Self {
        Self { slots: Vec::with_capacity(connections_max), ..Self::default() }
    }

    /// Enters a client. A slot is only given again after its connection was reported gone.
    pub fn insert(&mut self, connection: ConnectionId, principal: Principal<'_>, now: Now) {
        let slot = connection.slot as usize;
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, || None);
        }
        debug_assert!(self.slots[slot].is_none(), "a connection is entered once");
        let tenant = match self.tenant.take().filter(|tenant| **tenant == *principal.tenant) {
            Some(tenant) => tenant,
            None => principal.tenant.into(),
        };
        self.tenant = Some(tenant.clone());
        let rights = principal.rights.cloned();
        self.slots[slot] =
            Some(Client { rights, ..Client::new(connection.generation, tenant, principal.client_id, now) });
        self.count += 1;
    }

    /// Takes a client out.
    pub fn remove(&mut self, connection: ConnectionId) -> Option<Client> {
        let slot = self.slots.get_mut(connection.slot as usize)?;
        if slot.as_ref()?.generation != connection.generation {
            return None;
        }
        self.count -= 1;
        slot.take()
    }

    /// The client of a connection, while it lives.
    pub fn get(&self, connection: ConnectionId) -> Option<&Client> {
        self.slots.get(connection.slot as usize)?.as_ref().filter(|c| c.generation == connection.generation)
    }

    /// The client of a connection, while it lives.
    pub fn get_mut(&mut self, connection: ConnectionId) -> Option<&mut Client> {
        self.slots.get_mut(connection.slot as usize)?.as_mut().filter(|c| c.generation == connection.generation)
    }

    /// All of them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Client> {
        self.slots.iter_mut().flatten()
    }

    /// Clients entered.
    pub fn len(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_spent_by_delivery_and_returned_by_acknowledgement() {
        let mut client = Client::new(0, "t".into(), "c", Now::default());
        client.set_credit(Some(2), Some(100));
        assert!(client.has_credit());
        client.delivered(10);
        client.delivered(10);
        assert!(!client.has_credit());
        assert!(client.acknowledge(3, None).is_err(), "the future");
        assert!(client.acknowledge(1, Some(10)).is_ok());
        assert!(client.has_credit());
        assert!(client.acknowledge(0, None).is_err(), "backwards");
        client.delivered(500);
        assert!(!client.has_credit(), "bytes are out");
        assert!(client.acknowledge(3, None).is_ok());
        assert!(client.has_credit());
    }
}
