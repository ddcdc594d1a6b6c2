//! Rooms: the rosters of the sessions that this shard owns, and which shards follow them.
//!
//! ```text
//!   enter, update, leave, read ─► put, end ─► due in a tick ─► followers: a message for what lies behind each one's cursor
//!   RENEW ─► lease goes on                                 └─► watchers of this shard
//!   wheel ─► lease over ─► end ─► a lease later: forgotten
//! ```
//! A follower whose lane is full keeps its cursor and is served from there when there is room.

use super::Timer;
use super::journal::Journal;
use super::roster::{ClientKey, Entry, RoomKey, Roster};
use crate::delivery::PartitionHasher;
use crate::ids::ShardId;
use crate::wheel::Wheel;
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::hash::BuildHasherDefault;

/// Hasher for keys that begin with a keyed hash.
pub(crate) type ByRoom<V> = HashMap<RoomKey, V, BuildHasherDefault<PartitionHasher>>;

/// A shard with watchers of a room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Follower {
    pub shard: ShardId,
    /// Its number for this; messages carry it, so that what belongs to an earlier one is told apart.
    pub follow: u32,
    pub cursor: u64,
    /// Version at which it began.
    pub from: u64,
    /// Nothing was sent yet, or all has to be sent anew.
    pub anew: bool,
    /// It was told that the room is complete.
    pub complete: bool,
}

/// One room.
pub(crate) struct Room {
    pub generation: u32,
    pub key: RoomKey,
    pub roster: Roster,
    pub followers: Vec<Follower>,
    /// This shard's own watchers.
    pub watched: Option<u32>,
    pub journal: Option<Box<Journal>>,
    due: bool,
    hurries: bool,
}

/// All rooms of one shard.
#[derive(Default)]
pub(crate) struct Rooms {
    pub slots: slab::Slab<Room>,
    pub by_key: ByRoom<u32>,
    /// Rooms with news, and when they are told; by time.
    pub due: VecDeque<(u64, u32, u32)>,
    /// Rooms that have more to say to a follower than one message took, or found its lane full.
    hurry: VecDeque<(u32, u32)>,
    /// Rooms with a journal that may have something to say, by the time when it is due.
    pub journals: VecDeque<(u64, u32)>,
    /// Of all rosters.
    pub bytes: usize,
    /// Rooms that begin now say that they are complete.
    pub complete: bool,
    generation: u32,
}

impl Rooms {
    /// The room of a key, made if need be.
    pub fn open(&mut self, key: RoomKey) -> u32 {
        if let Some(slot) = self.by_key.get(&key) {
            return *slot;
        }
        self.generation = self.generation.wrapping_add(1);
        let slot = self.slots.insert(Room {
            generation: self.generation,
            key,
            roster: Roster::new(self.complete, true),
            followers: Vec::new(),
            watched: None,
            journal: None,
            due: false,
            hurries: false,
        }) as u32;
        self.by_key.insert(key, slot);
        slot
    }

    pub fn get(&self, key: RoomKey) -> Option<&Room> {
        self.by_key.get(&key).map(|slot| &self.slots[*slot as usize])
    }

    pub fn get_mut(&mut self, key: RoomKey) -> Option<&mut Room> {
        self.by_key.get(&key).map(|slot| &mut self.slots[*slot as usize])
    }

    /// Who is in the room under this name.
    pub fn entry(&self, key: RoomKey, client: ClientKey) -> Option<&Entry> {
        self.get(key)?.roster.get(client)
    }

    /// Changes a room's roster, keeps count of its bytes, and lets it be told where there is news.
    pub fn change<T>(&mut self, slot: u32, due_us: u64, change: impl FnOnce(&mut Roster) -> T) -> T {
        let room = &mut self.slots[slot as usize];
        let (bytes, version) = (room.roster.bytes, room.roster.version);
        let result = change(&mut room.roster);
        self.bytes = self.bytes - bytes + room.roster.bytes;
        if room.roster.version != version {
            self.tell(slot, due_us);
        }
        result
    }

    /// A room is to be told at this time, or sooner where it is due already. Times given rise.
    pub fn tell(&mut self, slot: u32, due_us: u64) {
        self.journal(slot, due_us);
        let room = &mut self.slots[slot as usize];
        if !std::mem::replace(&mut room.due, true) {
            self.due.push_back((due_us, slot, room.generation));
        }
    }

    /// A room has followers that are not told everything: it goes on with the next turn.
    pub fn hurry(&mut self, slot: u32) {
        let room = &mut self.slots[slot as usize];
        if !std::mem::replace(&mut room.hurries, true) {
            self.hurry.push_back((slot, room.generation));
        }
    }

    /// Rooms that may be due now.
    pub fn waiting(&self) -> usize {
        self.hurry.len() + self.due.len()
    }

    /// The next room that is due, and whether because there is news.
    pub fn next_due(&mut self, now_us: u64) -> Option<(u32, bool)> {
        while let Some((slot, generation)) = self.hurry.pop_front() {
            if let Some(room) = self.slots.get_mut(slot as usize).filter(|room| room.generation == generation) {
                room.hurries = false;
                return Some((slot, false));
            }
        }
        while let Some((due_us, slot, generation)) = self.due.front().copied() {
            if due_us > now_us {
                break;
            }
            self.due.pop_front();
            if let Some(room) = self.slots.get_mut(slot as usize).filter(|room| room.generation == generation) {
                room.due = false;
                return Some((slot, true));
            }
        }
        None
    }

    /// Every room is complete from now on.
    pub fn complete_all(&mut self, due_us: u64) {
        self.complete = true;
        let slots: Vec<u32> = self.slots.iter().map(|(slot, _)| slot as u32).collect();
        for slot in slots {
            self.change(slot, due_us, |roster| {
                roster.complete = true;
                roster.version += 1;
            });
        }
    }

    /// A lease may be over. Puts the next timer in, or ends the entry, or forgets it.
    pub fn lease(&mut self, room: (u32, u32), entry: (u32, u32), now_us: u64, due_us: u64, wheel: &mut Wheel<Timer>) {
        let Some(found) = self.slots.get(room.0 as usize).filter(|found| found.generation == room.1) else { return };
        let Some(at) = found.roster.at(entry.0, entry.1) else { return };
        let (client, version, end_us, lease_us) = (at.client, at.version, at.lease_end_us, at.lease_ms * 1000);
        if end_us > now_us {
            return wheel.put(end_us, Timer::Lease { room, entry });
        }
        if at.ended.is_none() {
            // The whole process may have stood still until now: who renews it from another shard has its turn first.
            if self.slots[room.0 as usize].roster.doubt(entry.0) {
                return wheel.put(due_us + (due_us - now_us), Timer::Lease { room, entry });
            }
            self.change(room.0, due_us, |roster| roster.end(client, super::roster::End::Lapsed, now_us + lease_us));
            wheel.put(now_us + lease_us, Timer::Lease { room, entry });
            return;
        }
        self.change(room.0, due_us, |roster| roster.forget(entry.0, version));
        self.close_if_empty(room.0);
    }

    /// A room without anybody in it, around it or remembered goes.
    pub fn close_if_empty(&mut self, slot: u32) {
        let Some(room) = self.slots.get(slot as usize) else { return };
        let is_empty = room.roster.is_empty() && room.followers.is_empty();
        if is_empty && room.watched.is_none() && room.journal.is_none() {
            let room = self.slots.remove(slot as usize);
            self.by_key.remove(&room.key);
        }
    }
}
