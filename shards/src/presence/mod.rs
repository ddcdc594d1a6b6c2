//! Presence and receipts: who is in a session, and how far they are. In memory, under lease; logged where a member asks for it.
//!
//! ```text
//!   client's shard                                        owner of the session
//!   command ───────────────── FORWARD ──────────────────► room: roster of clients, by version
//!   hold ◄──────────────────── answer ───────────────────┤  │
//!     └─ RENEW, while the connection lives ──────────────►│  └ a lease that is over ends its client
//!     ◄─ GONE ───────────────────────────────────────────┘
//!   watcher's shard
//!   watched ── FOLLOW ───────────────────────────────────► follower: a cursor
//!     copy of the roster ◄── ROSTER, what changed, at most once a tick ──┘
//!      └─► watchers: cursors over the copy ─► frames
//! ```
//! **No ghosts.** Nobody is in a room but under a lease that its connection's shard renews; no message says that a connection
//! ended, so none can be lost. **No false leave.** A connection that is replaced within the lease is not noticed; where a
//! shard could not renew in time and its client lapsed, it enters again by itself. Time in which the owner's shard did not
//! run ends no lease.

mod flood;
mod hold;
mod journal;
mod mail;
mod room;
mod roster;
mod serve;
mod value;
mod watch;

pub(crate) use roster::{End, RoomKey};
pub(crate) use value::{of_presence, of_receipt, presence as presence_of, receipt as receipt_of, wants_log};

use crate::clients::state::{KeptPresence, KeptRead};
use crate::command::RosterKind;
use crate::effect::PresenceReply;
use crate::ids::{ConnectionId, Now};
use crate::limits::{CLIENT_PRESENCES_BYTES_MAX, Limits, PresenceLimits};
use crate::refusal::{Refusal, Refused};
use crate::sessions::Asker;
use crate::shard::Shard;
use crate::wheel::Wheel;
use flood::Flood;
use hold::{Hold, HoldId, Holds, kept_bytes};
use room::Rooms;
use roster::{ClientKey, bytes_of};
use std::collections::VecDeque;
use watch::Watches;

/// Receipts of a client that has gone are kept for so long; by then it is nobody that others wait for. Milliseconds.
pub(crate) const RECEIPT_LEASE_MS: u64 = 120_000;

/// What time brings about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Timer {
    /// A lease may be over.
    Lease { room: (u32, u32), entry: (u32, u32) },
    /// A hold is to be renewed.
    Renew(HoldId),
}

/// All of one shard.
pub(crate) struct Presence {
    limits: PresenceLimits,
    /// What frames and messages aim at.
    frame_bytes: usize,
    rooms: Rooms,
    holds: Holds,
    watches: Watches,
    wheel: Wheel<Timer>,
    /// Holds of other shards that stand for nobody, to be told: lines by shard.
    gone: Vec<VecDeque<(HoldId, bool)>>,
    fired: Vec<Timer>,
    /// As of the last look, less the time in which this shard did not run.
    now_us: u64,
    /// When this shard wanted to run next, and the time it lost so far.
    wanted_us: Option<u64>,
    lost_us: u64,
    /// Rooms are complete from here on; set at the first look.
    complete_at_us: Option<u64>,
    /// Acknowledgements become receipts then; stuck watchers are tried again.
    tick_at_us: u64,
    /// Journals pay for what they write, and wait until then where that was too much.
    journal_flood: Flood,
    journals_at_us: u64,
    /// A peer's lane was full.
    waits: bool,
}

impl Presence {
    pub fn new(limits: &Limits) -> Self {
        Self {
            limits: limits.presence.clone(),
            frame_bytes: PresenceLimits::frame_bytes(limits.connection_send_bytes_max, limits.mailbox_bytes),
            rooms: Rooms::default(),
            holds: Holds::default(),
            watches: Watches::default(),
            wheel: Wheel::default(),
            gone: Vec::new(),
            fired: Vec::new(),
            now_us: 0,
            wanted_us: None,
            lost_us: 0,
            complete_at_us: None,
            tick_at_us: 0,
            journal_flood: Flood::default(),
            journals_at_us: 0,
            waits: false,
        }
    }

    /// Has this connection anything to do with rooms?
    pub fn knows(&self, connection: ConnectionId) -> bool {
        self.holds.of.contains_key(&connection)
    }

    /// The connection acknowledged events.
    pub fn acknowledged(&mut self, connection: ConnectionId) {
        self.holds.acknowledged(connection);
    }

    /// Looks at the clock. Time in which this shard wanted to run and did not is left out: it ends no lease, as nobody could
    /// renew one.
    pub fn look(&mut self, now: Now) {
        let late_us = self.wanted_us.take().map_or(0, |wanted_us| now.mono_us.saturating_sub(wanted_us));
        if late_us > self.limits.tick_ms * 1000 {
            self.lost_us += late_us;
        }
        self.now_us = self.now_us.max(now.mono_us.saturating_sub(self.lost_us));
        self.complete_at_us.get_or_insert(self.now_us + self.limits.unknown_ms * 1000);
    }

    fn due_us(&self) -> u64 {
        self.now_us + self.limits.tick_ms * 1000
    }

    /// A client is in a room, with this value. On the owner's shard.
    ///
    /// # Errors
    /// Why it is not.
    pub fn put(
        &mut self,
        key: RoomKey,
        (client, name): (ClientKey, &str),
        value: &[u8],
        lease_ms: u64,
    ) -> Result<(), Refused> {
        let room = self.rooms.get(key);
        let known = room.and_then(|room| room.roster.get(client)).filter(|entry| entry.ended.is_none());
        let bytes = match known {
            Some(known) => value.len().saturating_sub(known.value.len()),
            None => bytes_of(name, value),
        };
        let full = known.is_none() && room.map_or(0, |room| room.roster.present()) >= self.limits.session_members_max;
        if full || (bytes > 0 && self.rooms.bytes + bytes > self.limits.shard_bytes_max) {
            return Err(Refused::later(Refusal::RoomFull, 1000));
        }
        let due_us = self.due_us();
        let slot = self.rooms.open(key);
        let end_us = self.now_us + lease_ms * 1000;
        let fresh = self.rooms.change(slot, due_us, |roster| {
            let fresh = roster.put(client, name, value, lease_ms);
            roster.renew(client, end_us);
            fresh
        });
        if let Some(entry) = fresh {
            let room = (slot, self.rooms.slots[slot as usize].generation);
            self.wheel.put(end_us, Timer::Lease { room, entry });
        }
        Ok(())
    }

    /// A client leaves a room. `false`: it was not in.
    pub fn leave(&mut self, key: RoomKey, client: ClientKey) -> bool {
        let due_us = self.due_us();
        let Some(slot) = self.rooms.by_key.get(&key).copied() else { return false };
        let Some(entry) = self.rooms.slots[slot as usize].roster.get(client) else { return false };
        // Remembered for a lease: other connections of the client that hold it hear of it when they renew.
        let until_us = self.now_us + entry.lease_ms * 1000;
        self.rooms.change(slot, due_us, |roster| roster.end(client, End::Left, until_us))
    }

    /// What is known of a client that is in a room: its value and its lease.
    pub fn value(&self, key: RoomKey, client: ClientKey) -> Option<(&[u8], u64)> {
        let entry = self.rooms.entry(key, client).filter(|entry| entry.ended.is_none())?;
        Some((&entry.value, entry.lease_ms))
    }
}

impl Shard {
    /// May the connection change its presence once more, and hold one more room? On the client's shard.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn presence_admits(
        &self,
        connection: ConnectionId,
        held: Option<(RoomKey, &str, usize)>,
        now: Now,
    ) -> Result<(), Refused> {
        let presence = &self.presence;
        let limits = &presence.limits;
        let Some(attendance) = presence.holds.of.get(&connection) else { return Ok(()) };
        if let Err(ms) = attendance.flood.check(now.mono_us, limits.client_changes_per_second_max) {
            return Err(Refused { field: "", ..Refused::later(Refusal::PresenceFlood, ms) });
        }
        let Some((key, session, value_bytes)) = held else { return Ok(()) };
        if presence.holds.find(connection, key).is_some() {
            return Ok(());
        }
        let bytes = attendance.bytes + kept_bytes(session, &[]) + value_bytes;
        if attendance.holds.len() >= limits.client_presences_max || bytes > limits.client_presence_bytes_max {
            return Err(Refused::field(Refusal::TooManyPresences, "session"));
        }
        if presence.holds.bytes > limits.shard_bytes_max {
            return Err(Refused::later(Refusal::RoomFull, 1000));
        }
        Ok(())
    }

    /// The connection has made one more change.
    pub(crate) fn presence_changed(&mut self, connection: ConnectionId, now: Now) {
        let rate = self.presence.limits.client_changes_per_second_max;
        let attendance = self.presence.holds.of.entry(connection).or_default();
        if let Ok(flood) = attendance.flood.check(now.mono_us, rate) {
            attendance.flood = flood;
        }
    }

    /// An answer about presence has come for a connection of this shard: what it holds changes.
    pub(crate) fn presence_answered(&mut self, connection: ConnectionId, session: &str, reply: &PresenceReply<'_>) {
        let Some(client) = self.readers.clients.get(connection) else { return };
        let partition = self.log.partition_id(&client.tenant, session);
        match *reply {
            PresenceReply::Entered { state, data, lease_ms, log }
            | PresenceReply::Updated { state, data, lease_ms, log } => {
                let key = (partition, RosterKind::Presence);
                let fresh = self.hold(connection, key, session, &of_presence(state, data, log), lease_ms, false);
                self.presence_to_be_kept(connection, fresh);
            }
            PresenceReply::Read { delivered, read, lease_ms } => {
                let key = (partition, RosterKind::Receipts);
                let fresh = self.hold(connection, key, session, &of_receipt(delivered, read), lease_ms, false);
                // What it has acknowledged before counts too.
                self.presence.acknowledged(connection);
                self.presence_to_be_kept(connection, fresh);
            }
            PresenceReply::Left => self.presence_lets_go(connection, (partition, RosterKind::Presence)),
            PresenceReply::Watching(_) | PresenceReply::Unwatched(_) => {}
        }
    }

    /// The connection leaves, or has asked to: whatever the answer, it holds nothing there. A room that has lost it already
    /// refuses the leaving, and what was still held would enter it again.
    pub(crate) fn presence_lets_go(&mut self, connection: ConnectionId, key: RoomKey) {
        if let Some(id) = self.presence.holds.find(connection, key) {
            self.presence.holds.remove(id);
            self.presence_to_be_kept(connection, true);
        }
    }

    /// What comes and goes is kept at once; what changes often is kept by and by, or it would be a log of its own.
    fn presence_to_be_kept(&mut self, connection: ConnectionId, at_once: bool) {
        if at_once {
            self.life_changed(connection);
        } else {
            self.life_changed_later(connection, self.presence.now_us + self.presence.lost_us);
        }
    }

    /// The connection holds this. Returns whether it is new.
    fn hold(
        &mut self,
        connection: ConnectionId,
        key: RoomKey,
        session: &str,
        value: &[u8],
        lease_ms: u64,
        attend: bool,
    ) -> bool {
        if let Some(id) = self.presence.holds.find(connection, key) {
            self.presence.holds.set(id, value, lease_ms);
            return false;
        }
        let Some(client) = self.readers.clients.get(connection) else { return false };
        let tenant = client.tenant.clone();
        let client = self.log.partition_id(&tenant, &client.client_id);
        let owner = self.owner_of(key.0);
        let (generation, renews, attends) = (0, false, false);
        let (session, value) = (session.into(), value.into());
        let hold =
            Hold { generation, connection, key, client, owner, tenant, session, value, lease_ms, renews, attends };
        let id = self.presence.holds.insert(hold);
        let due_us = self.presence.now_us + lease_ms * 1000 / 3;
        self.presence.wheel.put(due_us, Timer::Renew(id));
        if attend {
            self.presence.holds.attend(id);
        }
        true
    }

    /// A connection has ended: what it held stays until its lease ends, what it watched is not told any more.
    pub(crate) fn presence_disconnected(&mut self, connection: ConnectionId) {
        for watcher in self.presence.holds.end(connection) {
            self.remove_watcher(watcher);
        }
    }

    /// What is to be kept of a client with a life: where it is, and what it has read.
    pub(crate) fn presence_kept(&self, connection: ConnectionId) -> (Vec<KeptPresence>, Vec<KeptRead>) {
        let (mut presences, mut reads) = (Vec::new(), Vec::new());
        let Some(attendance) = self.presence.holds.of.get(&connection) else { return (presences, reads) };
        let mut bytes = 0;
        for slot in &attendance.holds {
            let hold = &self.presence.holds.slots[*slot as usize];
            bytes += kept_bytes(&hold.session, &hold.value);
            // Commands that were on their way together may have gone beyond the bound by a few.
            if bytes > CLIENT_PRESENCES_BYTES_MAX {
                break;
            }
            let session = hold.session.clone();
            match hold.key.1 {
                RosterKind::Presence => {
                    let (value, lease_ms) = (hold.value.clone(), hold.lease_ms);
                    presences.push(KeptPresence { session, lease_ms, value });
                }
                RosterKind::Receipts => reads.push(KeptRead { session, offset: receipt_of(&hold.value).1 }),
            }
        }
        (presences, reads)
    }

    /// A client's life has begun on this connection: it is again where it was.
    pub(crate) fn presence_restore(
        &mut self,
        connection: ConnectionId,
        presences: &[KeptPresence],
        reads: &[KeptRead],
    ) {
        let Some(tenant) = self.readers.clients.get(connection).map(|client| client.tenant.clone()) else { return };
        for KeptPresence { session, lease_ms, value } in presences {
            let key = (self.log.partition_id(&tenant, session), RosterKind::Presence);
            let lease_ms = (*lease_ms).clamp(self.presence.limits.lease_ms_min, self.presence.limits.lease_ms_max);
            self.hold(connection, key, session, value, lease_ms, true);
        }
        for KeptRead { session, offset } in reads {
            let key = (self.log.partition_id(&tenant, session), RosterKind::Receipts);
            self.hold(connection, key, session, &of_receipt(0, *offset), RECEIPT_LEASE_MS, true);
        }
    }

    /// The key under which rooms know who asks.
    pub(crate) fn presence_client(&self, asker: &Asker) -> ClientKey {
        self.log.partition_id(&asker.tenant, &asker.client_id)
    }
}
