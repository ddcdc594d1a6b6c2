//! Who the connections of a shard are, for how long, and whether they still may be: rules that change under way included.
//!
//! ```text
//!   upgrade with a token ──────────────► Known ── auth ─► Known anew
//!   upgrade without one ─► Waiting ─ auth ─┘ │
//!                             │ time is up   │ its token expires · is revoked · its key is gone
//!                             ▼              ▼
//!                        4203 closed      4201, 4202 closed
//! ```
//! Without keys there is nobody to know: every connection is tenant `default` and may do everything. One per shard, touched only
//! by its thread; rules come from the control plane and are shared.

use crate::auth::{Denied, Identity, Named, Revocation, Rules};
use crate::net::{CloseWords, Wheel};
use crate::wire::codes::Close;
use shards::command::{Command, Revocable};
use shards::ids::{ConnectionId, Now};
use shards::refusal::{Refusal, Refused};
use shards::rights::{Capability, Rights};
use std::fmt::Write as _;
use std::sync::Arc;

/// Tenant of everybody while no key is configured.
pub(super) const TENANT: &str = "default";

/// Connections held against new rules in one turn.
const SWEPT_PER_TURN_MAX: usize = 4096;
/// Connections looked at in one turn because their time has come.
const EXPIRED_PER_TURN_MAX: usize = 256;
/// What was denied is logged this often at most.
const NOTED_EVERY_US: u64 = 5_000_000;

/// A connection that came in, or is about to.
struct Person {
    generation: u32,
    state: State,
}

enum State {
    /// It has sent no token yet; until then it has this long, microseconds.
    Waiting { until_us: u64, client: Option<Arc<str>> },
    /// Somebody.
    Known { identity: Identity, client: Arc<str> },
}

/// Whom an upgrade lets in.
pub(super) enum Entry {
    /// Everybody comes in as this client, or as one that the server names.
    Open,
    /// Somebody, by this name; without one the server makes it up.
    Known(Identity, Option<Arc<str>>),
    /// Nobody yet: the token is to come as the first command.
    Waiting,
}

/// One per shard.
pub(super) struct Guard {
    rules: Arc<Rules>,
    people: Vec<Option<Box<Person>>>,
    /// When to look at whom; of no size while there are no keys.
    due: Option<Wheel>,
    slots: usize,
    wait_us: u64,
    /// Next slot to be held against rules that have changed.
    sweep: Option<usize>,
    denied: [u64; Denied::ALL.len()],
    /// What was logged of them, and of what others turned away.
    noted: [u64; Denied::ALL.len()],
    noted_others: [u64; OTHERS],
    note_at_us: u64,
}

/// Reasons to turn somebody away that are not a token's.
pub(super) const OTHERS: usize = 4;

impl Guard {
    /// For connections in `slots` slots, which have `wait_us` to show a token.
    pub fn new(rules: Arc<Rules>, slots: usize, wait_us: u64, now: Now) -> Self {
        let mut guard = Self {
            rules: Arc::default(),
            people: Vec::new(),
            due: None,
            slots,
            wait_us,
            sweep: None,
            denied: [0; Denied::ALL.len()],
            noted: [0; Denied::ALL.len()],
            noted_others: [0; OTHERS],
            note_at_us: 0,
        };
        guard.change(rules, now);
        guard.sweep = None;
        guard
    }

    /// New rules: everybody who is there is held against them, some a turn.
    pub fn change(&mut self, rules: Arc<Rules>, now: Now) {
        self.rules = rules;
        self.sweep = Some(0);
        if self.rules.keys.is_some() && self.due.is_none() {
            self.due = Some(Wheel::new(self.slots, now.mono_us));
        }
    }

    /// Are there keys?
    pub fn is_strict(&self) -> bool {
        self.rules.keys.is_some()
    }

    /// May a page of this origin connect?
    pub fn allows_origin(&self, origin: Option<&str>) -> bool {
        origin.is_none_or(|origin| self.rules.origins.allow(origin))
    }

    /// Whom the token of an upgrade lets in, if it goes by the name `client`.
    pub fn entry(&mut self, token: Option<&str>, client: Option<&str>, now: Now) -> Result<Entry, Denied> {
        if !self.is_strict() {
            return Ok(Entry::Open);
        }
        let Some(token) = token else { return Ok(Entry::Waiting) };
        let entry = self.identify(token, client, now);
        self.counted(entry).map(|(identity, name)| Entry::Known(identity, name))
    }

    fn identify(&self, token: &str, client: Option<&str>, now: Now) -> Result<(Identity, Option<Arc<str>>), Denied> {
        let identity = self.rules.identify(token, now.wall_ms)?;
        let name: Option<Arc<str>> = match (&identity.client, client) {
            (Named::Fixed(own), None) => Some(Arc::clone(own)),
            (Named::Fixed(own), Some(client)) if **own == *client => Some(Arc::clone(own)),
            (Named::Any, client) => client.map(Into::into),
            (Named::Nobody, None) => None,
            (Named::Fixed(_) | Named::Nobody, Some(_)) => return Err(Denied::OtherClient),
        };
        if self.rules.revocations.covers(&identity, name.as_deref()) {
            return Err(Denied::Revoked);
        }
        Ok((identity, name))
    }

    fn counted<T>(&mut self, entry: Result<T, Denied>) -> Result<T, Denied> {
        if let Err(denied) = &entry {
            self.denied[*denied as usize] += 1;
        }
        entry
    }

    /// Somebody has come in under this name.
    pub fn enter(&mut self, id: ConnectionId, identity: Identity, client: &str, now: Now) {
        let expires_us = in_mono_us(identity.expires_ms, now);
        self.put(id, State::Known { identity, client: client.into() }, expires_us);
    }

    /// Somebody has come in who has yet to show a token.
    pub fn wait(&mut self, id: ConnectionId, client: Option<&str>, now: Now) {
        let until_us = now.mono_us + self.wait_us;
        self.put(id, State::Waiting { until_us, client: client.map(Into::into) }, until_us);
    }

    fn put(&mut self, id: ConnectionId, state: State, at_us: u64) {
        let slot = id.slot as usize;
        if self.people.len() <= slot {
            self.people.resize_with(slot + 1, || None);
        }
        self.people[slot] = Some(Box::new(Person { generation: id.generation, state }));
        if let Some(due) = &mut self.due {
            due.set(id.slot, at_us);
        }
    }

    /// It is gone.
    pub fn forget(&mut self, id: ConnectionId) {
        if let Some(place) = self.people.get_mut(id.slot as usize)
            && place.as_ref().is_some_and(|person| person.generation == id.generation)
        {
            *place = None;
            if let Some(due) = &mut self.due {
                due.clear(id.slot);
            }
        }
    }

    fn get(&self, id: ConnectionId) -> Option<&State> {
        let person = self.people.get(id.slot as usize)?.as_deref()?;
        Some(&person.state).filter(|_| person.generation == id.generation)
    }

    /// Has it yet to show a token?
    pub fn is_waiting(&self, id: ConnectionId) -> bool {
        matches!(self.get(id), Some(State::Waiting { .. }))
    }

    /// Tenant of a connection.
    pub fn tenant_of(&self, id: ConnectionId) -> &str {
        match self.get(id) {
            Some(State::Known { identity, .. }) => &identity.tenant,
            _ => TENANT,
        }
    }

    /// The token of a connection that waits for it: who it is, and by which name, if not one that is to be made up.
    pub fn introduce(
        &mut self,
        id: ConnectionId,
        token: &str,
        now: Now,
    ) -> Result<(Identity, Option<Arc<str>>), Denied> {
        let client = match self.get(id) {
            Some(State::Waiting { client, .. }) => client.clone(),
            _ => None,
        };
        let entry = self.identify(token, client.as_deref(), now);
        self.counted(entry)
    }

    /// A newer token of somebody who is known: client, until when, and what it may do from here on.
    pub fn renew(&mut self, id: ConnectionId, token: &str, now: Now) -> Result<(Arc<str>, u64, Arc<Rights>), Refused> {
        let refused = Refused::field(Refusal::BadCredential, "token");
        let Some(State::Known { identity: old, client }) = self.get(id) else { return Err(refused) };
        let (old_tenant, old_rights, client) = (Arc::clone(&old.tenant), Arc::clone(&old.rights), Arc::clone(client));
        let entry = self.identify(token, None, now).and_then(|(identity, _)| {
            if identity.tenant != old_tenant {
                return Err(Denied::OtherTenant);
            }
            let same = match &identity.client {
                Named::Fixed(name) => *name == client,
                Named::Any => true,
                Named::Nobody => matches!(old.client, Named::Nobody),
            };
            match same {
                false => Err(Denied::OtherClient),
                true if self.rules.revocations.covers(&identity, Some(&client)) => Err(Denied::Revoked),
                true => Ok(identity),
            }
        });
        let identity = self.counted(entry).map_err(|_| refused)?;
        // Subscriptions stand as long as the connection does.
        if !identity.rights.covers(Capability::Subscribe, &old_rights) {
            return Err(Refused::field(Refusal::NarrowerRights, "capabilities.subscribe"));
        }
        let (expires_ms, rights) = (identity.expires_ms, Arc::clone(&identity.rights));
        self.enter(id, identity, &client, now);
        Ok((client, expires_ms, rights))
    }

    /// Whom a command of a known connection revokes, if it may: nobody but of its own tenant.
    pub fn revocation(&self, id: ConnectionId, command: &Command<'_>) -> Result<Revocation, Refused> {
        let none = Refused::field(Refusal::Forbidden, "capabilities.admin");
        let Some(State::Known { identity, .. }) = self.get(id) else { return Err(none) };
        identity.rights.check(command)?;
        let tenant = identity.tenant.to_string();
        match *command {
            Command::Revoke { what: Revocable::Client, name } => {
                Ok(Revocation::Client { tenant, client: name.to_owned() })
            }
            Command::Revoke { what: Revocable::Token, name } => {
                Ok(Revocation::Token { tenant, token: name.to_owned() })
            }
            _ => Err(none),
        }
    }

    /// Whose quota a command is about, if who sends it may: without keys everybody may.
    pub fn tenant_of_quota(&self, id: ConnectionId, command: &Command<'_>) -> Result<String, Refused> {
        let Command::Quota { tenant, .. } = *command else { return Err(Capability::Admin.refused()) };
        let own = match self.get(id) {
            Some(State::Known { identity, .. }) => {
                identity.rights.check(command)?;
                &identity.tenant
            }
            _ if self.is_strict() => return Err(Capability::Admin.refused()),
            _ => TENANT,
        };
        Ok(tenant.unwrap_or(own).to_owned())
    }

    /// Next connection that is to be closed because its time is up.
    pub fn next_overdue(&mut self, now: Now, looked: &mut usize) -> Option<(ConnectionId, CloseWords)> {
        while *looked < EXPIRED_PER_TURN_MAX {
            let slot = self.due.as_mut()?.pop(now.mono_us)?;
            *looked += 1;
            let Some(person) = self.people.get(slot as usize).and_then(Option::as_ref) else { continue };
            let id = ConnectionId { slot, generation: person.generation };
            let (over, at_us) = match &person.state {
                State::Waiting { until_us, .. } => {
                    ((now.mono_us >= *until_us).then_some(Close::Unauthenticated), *until_us)
                }
                State::Known { identity, .. } => {
                    let over = (identity.expires_ms <= now.wall_ms).then_some(Close::Expired);
                    (over, in_mono_us(identity.expires_ms, now))
                }
            };
            match over {
                Some(close) => return Some((id, words(close))),
                // The wheel looks no further than half a minute ahead; nor does anybody know what the clock will do until then.
                None => self.due.as_mut()?.set(slot, at_us),
            }
        }
        None
    }

    /// Next connection that may not stay under the present rules, some looks a turn.
    pub fn next_unwanted(&mut self, looked: &mut usize) -> Option<(ConnectionId, CloseWords)> {
        while let Some(slot) = self.sweep.filter(|_| *looked < SWEPT_PER_TURN_MAX) {
            self.sweep = Some(slot + 1).filter(|next| *next < self.people.len());
            *looked += 1;
            let Some(Some(person)) = self.people.get(slot) else { continue };
            let State::Known { identity, client } = &person.state else { continue };
            let keyed = self.rules.keys.as_ref().is_some_and(|keys| keys.holds(identity.key));
            if !keyed || self.rules.revocations.covers(identity, Some(client)) {
                let id = ConnectionId { slot: slot as u32, generation: person.generation };
                return Some((id, words(Close::Revoked)));
            }
        }
        None
    }

    /// When there is something to look at, microseconds.
    pub fn next_deadline_us(&self) -> Option<u64> {
        if self.sweep.is_some() { Some(0) } else { self.due.as_ref()?.next_us() }
    }

    /// Is it time to log who was turned away?
    pub fn is_note_due(&self, now: Now) -> bool {
        now.mono_us >= self.note_at_us
    }

    /// Logs who was turned away since the last time, if anybody was: for its token, and for what `others` count since the start.
    pub fn note(&mut self, now: Now, others: [(&str, u64); OTHERS]) {
        self.note_at_us = now.mono_us + NOTED_EVERY_US;
        let denied = Denied::ALL.iter().map(|denied| denied.name()).zip(self.denied);
        let counts = denied.chain(others).zip(self.noted.iter_mut().chain(&mut self.noted_others));
        let mut line = String::new();
        for ((name, count), noted) in counts {
            if count > *noted {
                // Writing to a string cannot fail.
                let _ = write!(line, "{}{name} {}", if line.is_empty() { "" } else { ", " }, count - *noted);
                *noted = count;
            }
        }
        if !line.is_empty() {
            tracing::warn!("turned away: {line}");
        }
    }
}

/// Close code and reason.
pub(super) fn words(close: Close) -> CloseWords {
    (close.code(), close.reason())
}

/// When a time of the wall clock comes, if that goes on as it does.
fn in_mono_us(wall_ms: u64, now: Now) -> u64 {
    now.mono_us.saturating_add(wall_ms.saturating_sub(now.wall_ms).saturating_mul(1000))
}

#[cfg(test)]
mod tests;
