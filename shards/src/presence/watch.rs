//! Watchers: connections of this shard that are told who is in a room.
//!
//! ```text
//!   room here ─────────────────────────┐
//!   room elsewhere ─ ROSTER ─► copy ───┴─► watcher: a cursor ─► frame ─► send queue
//!                                             │ no room in the queue: stuck, tried again each tick
//!                                             └ below what is forgotten: a snapshot
//! ```
//! Watchers that stand at the same place get the same bytes, which are made once.

use super::room::ByRoom;
use super::roster::{Entry, RoomKey, Roster};
use crate::ids::{ConnectionId, ShardId};
use crate::outbox::Happened;
use std::collections::VecDeque;

/// A room that connections of this shard watch.
pub(crate) struct Watched {
    pub key: RoomKey,
    pub session: Box<str>,
    pub owner: ShardId,
    /// What its owner's messages about it carry.
    pub follow: u32,
    /// Where another shard owns it.
    pub copy: Roster,
    pub watchers: Vec<u32>,
}

/// One connection's view of a room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watcher {
    pub generation: u32,
    pub connection: ConnectionId,
    pub watched: u32,
    pub place: Place,
    /// It stands in the queue, or among those that are stuck.
    pub queued: bool,
}

/// Where a watcher stands: all that decides over its next frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Place {
    /// What changed behind it is to be told.
    pub cursor: u64,
    /// Version at which its snapshot began.
    pub from: u64,
    /// Where it was told everything there was.
    pub whole: u64,
    /// Version of its last frame.
    pub told: u64,
    pub incarnation: u32,
    /// A snapshot has begun.
    pub begun: bool,
    /// It was told that the room is complete.
    pub complete: bool,
}

/// All of one shard.
#[derive(Default)]
pub(crate) struct Watches {
    pub watched: slab::Slab<Watched>,
    pub by_key: ByRoom<u32>,
    pub watchers: slab::Slab<Watcher>,
    /// Those with something to be told.
    pub queue: VecDeque<(u32, u32)>,
    /// Those whose connections have no room.
    pub stuck: Vec<(u32, u32)>,
    /// Rooms that nobody here watches any more, and their owners do not know yet.
    pub unfollow: VecDeque<(ShardId, RoomKey, u32)>,
    generation: u32,
}

/// What happened to an entry, for one who was told everything up to `whole`.
pub(crate) fn happened(entry: &Entry, whole: u64) -> Happened {
    if entry.ended.is_some() {
        Happened::Left
    } else if entry.joined > whole {
        Happened::Joined
    } else {
        Happened::Updated
    }
}

impl Watches {
    /// The connection's watcher of a room, among those it has.
    pub fn find(&self, watchers: &[u32], key: RoomKey) -> Option<u32> {
        let watched = *self.by_key.get(&key)?;
        watchers.iter().copied().find(|slot| self.watchers[*slot as usize].watched == watched)
    }

    /// A number for a room that is followed anew.
    pub fn next_follow(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        self.generation
    }

    /// Enters a watcher, which begins with a snapshot.
    pub fn insert(&mut self, connection: ConnectionId, watched: u32) -> u32 {
        let generation = self.next_follow();
        let watcher = Watcher { generation, connection, watched, place: Place::default(), queued: false };
        let slot = self.watchers.insert(watcher) as u32;
        self.watched[watched as usize].watchers.push(slot);
        slot
    }

    /// Takes a watcher out. Returns its room where it was the last.
    pub fn remove(&mut self, slot: u32) -> Option<u32> {
        let watcher = self.watchers.remove(slot as usize);
        let watchers = &mut self.watched[watcher.watched as usize].watchers;
        if let Some(at) = watchers.iter().position(|other| *other == slot) {
            watchers.swap_remove(at);
        }
        watchers.is_empty().then_some(watcher.watched)
    }

    /// A watcher has something to be told.
    pub fn queue(&mut self, slot: u32) {
        let watcher = &mut self.watchers[slot as usize];
        if !std::mem::replace(&mut watcher.queued, true) {
            self.queue.push_back((slot, watcher.generation));
        }
    }

    /// All watchers of a room have.
    pub fn queue_all(&mut self, watched: u32) {
        for at in 0..self.watched[watched as usize].watchers.len() {
            self.queue(self.watched[watched as usize].watchers[at]);
        }
    }

    /// The next watcher with something to be told, if it still stands.
    pub fn next(&mut self) -> Option<Option<u32>> {
        let (slot, generation) = self.queue.pop_front()?;
        let watcher = self.watchers.get_mut(slot as usize).filter(|watcher| watcher.generation == generation);
        Some(watcher.map(|watcher| {
            watcher.queued = false;
            slot
        }))
    }

    /// Those without room are tried again.
    pub fn unstick(&mut self) {
        self.queue.extend(self.stuck.drain(..));
    }
}
