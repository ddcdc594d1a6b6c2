//! What is done in each turn: leases end, holds are renewed, rooms with news are told.
//!
//! ```text
//!   wheel ─► leases, renewals        acknowledgements ─► receipts        lines to other shards, as far as their lanes have room
//!   rooms that are due ─► followers, a message each       watchers ─► frames, about FRAMES_BYTES a turn
//! ```

use super::roster::{End, RoomKey, Roster};
use super::value::{of_receipt, receipt, told};
use super::watch::{Place, Watched, Watches, happened};
use super::{ClientKey, RECEIPT_LEASE_MS, Timer, wants_log};
use crate::command::RosterKind;
use crate::ids::{ConnectionId, Now, PartitionId};
use crate::outbox::{Outbox, RosterChange, RosterFrame};
use crate::shard::Shard;
use std::sync::Arc;

/// Bytes of frames of one turn, about.
const FRAMES_BYTES: usize = 256 << 10;

/// Messages about rooms of one turn, about.
const MESSAGES: usize = 64;

/// What is stuck at a full lane is tried again this often. Microseconds.
const RETRY_EVERY_US: u64 = 1000;

impl Shard {
    /// Does what is due. Returns the work done.
    pub(crate) fn serve_presence(&mut self, now: Now, out: &mut impl Outbox) -> usize {
        let mut done = self.presence_time(now);
        done += self.presence_timers();
        done += self.move_receipts();
        done += self.send_holds();
        done += self.tell_rooms();
        done += self.tell_watchers(out);
        done += self.write_journals(now);
        let presence = &mut self.presence;
        presence.wanted_us = presence.wheel.next_deadline_us().map(|due_us| due_us + presence.lost_us);
        done
    }

    /// When a turn is due for presence alone.
    pub(crate) fn presence_deadline_us(&self) -> Option<u64> {
        let presence = &self.presence;
        let retry = presence.waits.then_some(presence.now_us + RETRY_EVERY_US);
        let ticks = !presence.holds.acknowledged.is_empty() || !presence.watches.stuck.is_empty();
        let tick = ticks.then_some(presence.tick_at_us);
        let due = presence.rooms.due.front().map(|(due_us, ..)| *due_us);
        let complete = presence.complete_at_us.filter(|_| !presence.rooms.complete && !presence.rooms.slots.is_empty());
        let journal = presence.journals_due_us();
        let next = [presence.wheel.next_deadline_us(), retry, tick, due, complete, journal].into_iter().flatten().min();
        next.map(|due_us| due_us + presence.lost_us)
    }

    /// Rooms are complete once everybody had time to come back.
    fn presence_time(&mut self, now: Now) -> usize {
        let presence = &mut self.presence;
        presence.look(now);
        let complete_at_us = presence.complete_at_us.unwrap_or(0);
        if !presence.rooms.complete && presence.now_us >= complete_at_us {
            let due_us = presence.due_us();
            presence.rooms.complete_all(due_us);
            return 1;
        }
        0
    }

    fn presence_timers(&mut self) -> usize {
        let presence = &mut self.presence;
        let mut fired = std::mem::take(&mut presence.fired);
        presence.wheel.expire(presence.now_us, &mut fired);
        let (done, due_us) = (fired.len(), presence.due_us());
        for timer in fired.drain(..) {
            match timer {
                Timer::Lease { room, entry } => {
                    presence.rooms.lease(room, entry, presence.now_us, due_us, &mut presence.wheel);
                }
                Timer::Renew(id) => {
                    if let Some(hold) = presence.holds.get(id) {
                        presence.wheel.put(presence.now_us + hold.lease_ms * 1000 / 3, timer);
                        presence.holds.renew(id);
                    }
                }
            }
        }
        presence.fired = fired;
        done
    }

    /// What connections with a life have acknowledged becomes what was delivered to them. Once a tick: acknowledgements are many.
    fn move_receipts(&mut self) -> usize {
        if self.presence.tick_at_us > self.presence.now_us {
            return 0;
        }
        self.presence.tick_at_us = self.presence.due_us();
        self.presence.watches.unstick();
        let mut done = 0;
        while let Some(connection) = self.presence.holds.acknowledged.pop_front() {
            done += 1;
            let Some(attendance) = self.presence.holds.of.get_mut(&connection) else { continue };
            attendance.acknowledged = false;
            for at in 0..attendance.holds.len() {
                self.move_receipt(connection, at);
            }
        }
        done
    }

    fn move_receipt(&mut self, connection: ConnectionId, at: usize) {
        let Some(slot) = self.presence.holds.of.get(&connection).and_then(|of| of.holds.get(at)).copied() else {
            return;
        };
        let hold = &self.presence.holds.slots[slot as usize];
        let (id, (partition, kind)) = ((slot, hold.generation), hold.key);
        if kind != RosterKind::Receipts {
            return;
        }
        let (before, read) = receipt(&hold.value);
        let delivered = self.acknowledged_below(connection, partition).unwrap_or(0);
        if delivered > before {
            self.presence.holds.set(id, &of_receipt(delivered, read), RECEIPT_LEASE_MS);
            self.presence.holds.attend(id);
        }
    }

    /// Says to owners what this shard's connections hold, and to other shards which of theirs stand for nobody.
    fn send_holds(&mut self) -> usize {
        self.presence.waits = false;
        let mut done = 0;
        for _ in 0..self.presence.holds.attend.len() {
            let Some(id) = self.presence.holds.attend.pop_front() else { break };
            let Some(hold) = self.presence.holds.get_mut(id) else { continue };
            hold.attends = false;
            let (owner, key, client) = (hold.owner, hold.key, hold.client);
            let (tenant, session, value) = (hold.tenant.clone(), hold.session.clone(), hold.value.clone());
            let (connection, lease_ms) = (hold.connection, hold.lease_ms);
            let Some(name) = self.readers.clients.get(connection).map(|client| client.client_id.clone()) else {
                continue;
            };
            if owner == self.config.shard {
                self.attend(key, (&tenant, &session), (client, &name), &value, lease_ms);
            } else if !self.send_attend(owner, key.1, (&tenant, &session, &name), lease_ms, &value) {
                self.presence.holds.attend(id);
                self.presence.waits = true;
                continue;
            }
            done += 1;
        }
        done += self.send_renewals();
        done += self.send_gone();
        done + self.send_unfollows()
    }

    /// What a hold says of its client: it is in, unless the room knows better.
    pub(super) fn attend(
        &mut self,
        key: RoomKey,
        (tenant, session): (&str, &str),
        (client, name): (ClientKey, &str),
        value: &[u8],
        lease_ms: u64,
    ) {
        let known = self.presence.value(key, client).map(|(value, _)| value.to_vec());
        let value = match (key.1, &known) {
            // The room has heard of every change, the hold only of its own connection's.
            (RosterKind::Presence, Some(known)) => known.clone(),
            (RosterKind::Receipts, Some(known)) => {
                let ((delivered, read), (was_delivered, was_read)) = (receipt(value), receipt(known));
                of_receipt(delivered.max(was_delivered), read.max(was_read)).to_vec()
            }
            (_, None) => value.to_vec(),
        };
        // Where there is no room for it, it is tried again when it would be renewed.
        let is_in = self.presence.put(key, (client, name), &value, lease_ms).is_ok();
        if is_in && key.1 == RosterKind::Presence && wants_log(&value) {
            self.presence.begin_journal(key, tenant, session);
        }
    }

    /// A renewal on the owner's shard: `None` where the client is in, else whether it left by its own word.
    pub(super) fn renew(&mut self, key: RoomKey, client: ClientKey) -> Option<bool> {
        let presence = &mut self.presence;
        let Some(slot) = presence.rooms.by_key.get(&key) else { return Some(false) };
        let roster = &mut presence.rooms.slots[*slot as usize].roster;
        let Some((lease_ms, ended)) = roster.get(client).map(|entry| (entry.lease_ms, entry.ended)) else {
            return Some(false);
        };
        roster.renew(client, presence.now_us + lease_ms * 1000);
        ended.map(|end| end == End::Left)
    }

    /// The owner has heard nothing of what a hold stands for.
    pub(super) fn hold_gone(&mut self, id: super::HoldId, left: bool) {
        let Some(connection) = self.presence.holds.get(id).map(|hold| hold.connection) else { return };
        if left {
            self.presence.holds.remove(id);
            self.life_changed(connection);
        } else {
            self.presence.holds.attend(id);
        }
    }

    fn tell_rooms(&mut self) -> usize {
        let (mut done, now_us) = (0, self.presence.now_us);
        for _ in 0..self.presence.rooms.waiting() {
            if done >= MESSAGES {
                break;
            }
            let Some((slot, news)) = self.presence.rooms.next_due(now_us) else { break };
            done += usize::from(news);
            let room = &self.presence.rooms.slots[slot as usize];
            let followers = room.followers.len();
            if let Some(watched) = room.watched.filter(|_| news) {
                self.presence.watches.queue_all(watched);
            }
            for at in 0..followers {
                match self.tell_follower(slot, at) {
                    Told::Nothing => {}
                    Told::All => done += 1,
                    Told::More => {
                        done += 1;
                        self.presence.rooms.hurry(slot);
                    }
                    Told::Full => {
                        self.presence.waits = true;
                        self.presence.rooms.hurry(slot);
                    }
                }
            }
        }
        done
    }

    /// Queues what a watcher lacks, a frame at a time, for as many as a turn has room for.
    fn tell_watchers(&mut self, out: &mut impl Outbox) -> usize {
        let (mut done, mut bytes) = (0, 0);
        let mut last = Last::default();
        while bytes < FRAMES_BYTES {
            let Some(next) = self.presence.watches.next() else { break };
            done += 1;
            let Some(watcher) = next else { continue };
            bytes += self.tell_watcher(watcher, &mut last, out);
        }
        done
    }

    fn tell_watcher(&mut self, slot: u32, last: &mut Last, out: &mut impl Outbox) -> usize {
        let presence = &mut self.presence;
        let frame_bytes = presence.frame_bytes;
        let Watches { watched, watchers, queue, stuck, .. } = &mut presence.watches;
        let watcher = &mut watchers[slot as usize];
        let Watched { key, session, copy, owner, .. } = &mut watched[watcher.watched as usize];
        let (key, own) = (*key, *owner == self.config.shard);
        let roster: &mut Roster = match presence.rooms.get_mut(key) {
            Some(room) if own => &mut room.roster,
            _ => copy,
        };
        if !roster.whole {
            // Its owner has more to say: its watchers are told when that has come.
            return 0;
        }
        let place = &mut watcher.place;
        let forgotten = place.begun && roster.has_forgotten(place.from, place.cursor);
        if place.incarnation != roster.incarnation || forgotten {
            *place = Place { incarnation: roster.incarnation, ..Default::default() };
        }
        if !place.begun {
            place.from = roster.version;
        }
        if place.begun && place.cursor == roster.version && place.complete == roster.complete {
            return 0;
        }
        let (room, again) = (out.room(watcher.connection), last.of == Some((watcher.watched, *place)));
        let all = match key.1 {
            RosterKind::Receipts => Some(roster.all()),
            RosterKind::Presence => None,
        };
        let mut changes = Vec::new();
        let to = if again {
            last.to
        } else {
            roster.changes(place.cursor, frame_bytes, |entry| {
                let (client, value) = (&*entry.name, told(key.1, &entry.value));
                changes.push(RosterChange { client, happened: happened(entry, place.whole), value });
            })
        };
        let whole = to == roster.version;
        if !again && changes.is_empty() && place.begun && place.complete == roster.complete {
            // Somebody came and went: no news.
            (place.cursor, place.whole) = (to, if whole { to } else { place.whole });
            return 0;
        }
        let frame = RosterFrame {
            kind: key.1,
            session,
            snapshot: !place.begun,
            after: place.told,
            version: to,
            more: !whole,
            complete: roster.complete,
            changes: &changes,
            all: all.filter(|_| whole),
        };
        let frame_bytes = if again { last.bytes } else { frame.bytes_max() };
        if room < frame_bytes {
            watcher.queued = true;
            stuck.push((slot, watcher.generation));
            return 0;
        }
        // Remembered even where it was not this one that made it: the next in line stands where this one stood.
        *last = Last { of: Some((watcher.watched, *place)), to, bytes: frame_bytes };
        out.roster(watcher.connection, &frame, again);
        (place.cursor, place.told, place.begun, place.complete) = (to, to, true, roster.complete);
        if whole {
            place.whole = to;
        } else {
            watcher.queued = true;
            queue.push_back((slot, watcher.generation));
        }
        frame_bytes
    }

    /// Has the connection room for one more watcher, or this one already?
    pub(crate) fn presence_may_watch(&self, connection: ConnectionId, key: RoomKey) -> bool {
        let (presence, limits) = (&self.presence, &self.presence.limits);
        let own = presence.holds.of.get(&connection).map_or(&[][..], |attendance| &attendance.watchers);
        let fits =
            own.len() < limits.client_watches_max && presence.watches.watchers.len() < limits.watches_per_shard_max;
        fits || presence.watches.find(own, key).is_some()
    }

    /// The connection is told who is in a room, from the beginning. `false`: no room in the lane to its owner.
    pub(crate) fn presence_watch(
        &mut self,
        connection: ConnectionId,
        tenant: &Arc<str>,
        session: &str,
        key: RoomKey,
    ) -> bool {
        let owner = self.owner_of(key.0);
        let watched = match self.presence.watches.by_key.get(&key) {
            Some(watched) => *watched,
            None => {
                let follow = self.presence.watches.next_follow();
                if owner != self.config.shard && !self.follow(owner, key.1, tenant, session, follow) {
                    return false;
                }
                let (session, copy, watchers) = (session.into(), Roster::default(), Vec::new());
                let watched = Watched { key, session, owner, follow, copy, watchers };
                let watched = self.presence.watches.watched.insert(watched) as u32;
                self.presence.watches.by_key.insert(key, watched);
                watched
            }
        };
        if owner == self.config.shard {
            let room = self.presence.rooms.open(key);
            self.presence.rooms.slots[room as usize].watched = Some(watched);
        }
        let presence = &mut self.presence;
        let own = presence.holds.of.entry(connection).or_default();
        // The new one first: were the old one the last, the room would be given up for a moment.
        let before = presence.watches.find(&own.watchers, key);
        let watcher = presence.watches.insert(connection, watched);
        own.watchers.retain(|slot| Some(*slot) != before);
        own.watchers.push(watcher);
        presence.watches.queue(watcher);
        if let Some(before) = before {
            self.remove_watcher(before);
        }
        true
    }

    /// It is told no longer. `false`: it was not.
    pub(crate) fn presence_unwatch(&mut self, connection: ConnectionId, key: RoomKey) -> bool {
        let presence = &mut self.presence;
        let Some(own) = presence.holds.of.get_mut(&connection) else { return false };
        let Some(watcher) = presence.watches.find(&own.watchers, key) else { return false };
        own.watchers.retain(|slot| *slot != watcher);
        self.remove_watcher(watcher);
        true
    }

    /// A watcher ends; the last of a room takes its copy with it, and the owner is told.
    pub(crate) fn remove_watcher(&mut self, slot: u32) {
        let presence = &mut self.presence;
        let Some(watched) = presence.watches.remove(slot) else { return };
        let Watched { key, owner, follow, .. } = presence.watches.watched.remove(watched as usize);
        presence.watches.by_key.remove(&key);
        if owner != self.config.shard {
            presence.watches.unfollow.push_back((owner, key, follow));
        } else if let Some(room) = presence.rooms.by_key.get(&key).copied() {
            presence.rooms.slots[room as usize].watched = None;
            presence.rooms.close_if_empty(room);
        }
    }

    /// Everything below was acknowledged by a connection with a life that follows the session.
    fn acknowledged_below(&self, connection: ConnectionId, partition: PartitionId) -> Option<u64> {
        let life = self.readers.clients.get(connection)?.life.as_ref()?;
        let id = self.readers.find(connection, partition)?;
        let subscription = self.readers.subscription(id)?;
        let cursor = Some(subscription.cursor).filter(|cursor| *cursor != u64::MAX);
        life.ledger.unacknowledged(id.slot).or(cursor)
    }
}

/// How far a follower was told.
pub(super) enum Told {
    /// It knows everything.
    Nothing,
    All,
    More,
    Full,
}

/// The frame of the call before: of which place it was, how far it went, how large it is at most.
#[derive(Default)]
struct Last {
    of: Option<(u32, Place)>,
    to: u64,
    bytes: usize,
}
