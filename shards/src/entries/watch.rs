//! Watches: cursors over the revisions of a session's entries.
//!
//! ```text
//!   client's shard                                        owner of the session
//!   watch ──── WATCH (first of the shard) ──────────────► follower
//!     │ behind ── fetch (cursor) ── FORWARD ────────────► page: what changed behind it
//!     │◄──────────────────────────── ENTRIES ────────────┘
//!     ├─► frame, where there is room; the cursor moves
//!     └◄──── NEWS (revision) ◄── walk: committed          level, not edge: told again while the lane is full
//! ```
//! A watcher that reads slowly has at most one page under way, and skips what was overtaken meanwhile. Sockets that end take their
//! watches with them; whoever comes back watches from the revision that it was told last.

use super::page::EntriesPage;
use crate::command::{Command, EntryAsk};
use crate::delivery::ByPartition;
use crate::ids::{CommandId, ConnectionId, Now, PartitionId, ShardId};
use crate::input::Handled;
use crate::mailbox::codec::{Reader, Writer};
use crate::mailbox::message::request;
use crate::outbox::{EntriesFrame, Outbox};
use crate::sessions::{Asker, Origin};
use crate::shard::Shard;
use hashbrown::HashMap;
use slab::Slab;
use std::collections::VecDeque;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use storage::log::Log;
use storage::record::RecordView;
use xxhash_rust::xxh3::Xxh3Default;

/// Those whose connections have no room are tried again this often. Microseconds.
const STUCK_EVERY_US: u64 = 100_000;

/// Words to other shards that may wait for room before nobody may begin to watch.
const WORDS_MAX: usize = 1024;

/// Ids of commands that the server asks itself: no client can have them, for theirs are below 2^53.
const OWN_ID: u64 = 1 << 63;

/// The watch whose fetch has this id.
pub(crate) fn of_id(id: CommandId) -> Option<(u32, u32)> {
    match id {
        CommandId::Number(n) if n & OWN_ID != 0 => Some(((n >> 31) as u32, n as u32 & ((OWN_ID >> 32) as u32 - 1))),
        _ => None,
    }
}

/// Slot, and its generation of 31 bits.
fn id_of(slot: u32, generation: u32) -> CommandId {
    CommandId::Number(OWN_ID | u64::from(slot) << 31 | u64::from(generation))
}

struct Watch {
    generation: u32,
    connection: ConnectionId,
    partition: PartitionId,
    tenant: Arc<str>,
    session: Box<str>,
    prefix: Box<str>,
    cursor: u64,
    /// Revision of the last frame that its client has, or that it said it knows.
    told: u64,
    base: u64,
    /// There is, or may be, something behind its cursor.
    behind: bool,
    asked: bool,
    queued: bool,
}

/// A session that is watched here, and by whom.
#[derive(Default)]
struct Watched {
    watches: Vec<u32>,
}

/// All watches of the connections of a shard, and who watches what it owns.
#[derive(Default)]
pub(crate) struct Watches {
    slots: Slab<Watch>,
    of: HashMap<ConnectionId, Vec<u32>, BuildHasherDefault<Xxh3Default>>,
    sessions: ByPartition<Watched>,
    generation: u32,
    /// Those that are behind, in turn; and those whose connections had no room.
    queue: VecDeque<(u32, u32)>,
    stuck: Vec<(u32, u32)>,
    stuck_at_us: u64,
    /// To owners: a session is watched here, or no longer.
    words: VecDeque<(ShardId, PartitionId, bool)>,
    /// As an owner: shards that watch a session, and what they are to be told.
    followers: ByPartition<Vec<ShardId>>,
    news: VecDeque<(ShardId, PartitionId, u64)>,
}

impl Watches {
    fn find(&self, connection: ConnectionId, partition: PartitionId, prefix: &str) -> Option<u32> {
        self.of.get(&connection)?.iter().copied().find(|slot| {
            let watch = &self.slots[*slot as usize];
            watch.partition == partition && *watch.prefix == *prefix
        })
    }

    fn queue(&mut self, slot: u32) {
        let watch = &mut self.slots[slot as usize];
        if watch.behind && !watch.asked && !std::mem::replace(&mut watch.queued, true) {
            self.queue.push_back((slot, watch.generation));
        }
    }

    /// Takes a watch out; its session, where it was the last.
    fn remove(&mut self, slot: u32) -> Option<PartitionId> {
        let watch = self.slots.remove(slot as usize);
        let watched = self.sessions.get_mut(&watch.partition)?;
        watched.watches.retain(|other| *other != slot);
        if !watched.watches.is_empty() {
            return None;
        }
        self.sessions.remove(&watch.partition);
        Some(watch.partition)
    }

    /// A record of this shard is committed.
    pub fn note_record(&mut self, log: &Log, record: RecordView<'_>) {
        let partition = record.partition();
        if self.followers.contains_key(&partition) && record.entries().next().is_some() {
            // No less than what is committed; where it is more, who looks is told a little later.
            let known = log.resident(partition).and_then(|slot| log.partition(slot).entries());
            self.note(partition, known.map_or(u64::MAX, |entries| entries.revision()));
        }
    }

    /// Something of a session that this shard owns is committed up to this revision.
    fn note(&mut self, partition: PartitionId, revision: u64) {
        for shard in self.followers.get(&partition).into_iter().flatten() {
            match self.news.iter_mut().find(|(to, of, _)| (to, of) == (shard, &partition)) {
                Some((_, _, told)) => *told = revision.max(*told),
                None => self.news.push_back((*shard, partition, revision)),
            }
        }
    }

    /// Does a word wait for room in a lane?
    pub fn wait(&self) -> bool {
        !self.words.is_empty() || !self.news.is_empty() || !self.queue.is_empty()
    }

    /// When stuck ones are tried again.
    pub fn next_deadline_us(&self) -> Option<u64> {
        (!self.stuck.is_empty()).then_some(self.stuck_at_us)
    }
}

impl Shard {
    /// May the connection watch one more prefix, or this one again?
    pub(crate) fn entries_may_watch(&self, connection: ConnectionId, partition: PartitionId, prefix: &str) -> bool {
        let (watches, limits) = (&self.watches, &self.config.limits.work);
        let own = watches.of.get(&connection).map_or(0, Vec::len);
        let fits = own < limits.client_watches_max && watches.slots.len() < limits.entry_watches_per_shard_max;
        fits || watches.find(connection, partition, prefix).is_some()
    }

    /// The connection is told of entries whose keys begin so, from behind a revision. `false`: no room yet.
    pub(crate) fn entries_watch(
        &mut self,
        connection: ConnectionId,
        tenant: &Arc<str>,
        session: &str,
        prefix: &str,
        revision: Option<u64>,
    ) -> bool {
        let partition = self.log.partition_id(tenant, session);
        if self.watches.words.len() >= WORDS_MAX {
            return false;
        }
        self.entries_unwatch(connection, partition, prefix);
        let watches = &mut self.watches;
        watches.generation = (watches.generation + 1) & ((OWN_ID >> 32) as u32 - 1);
        let watch = Watch {
            generation: watches.generation,
            connection,
            partition,
            tenant: tenant.clone(),
            session: session.into(),
            prefix: prefix.into(),
            cursor: revision.unwrap_or(0),
            told: revision.unwrap_or(0),
            base: 0,
            behind: true,
            asked: false,
            queued: false,
        };
        let slot = watches.slots.insert(watch) as u32;
        watches.of.entry(connection).or_default().push(slot);
        let watched = watches.sessions.entry(partition).or_default();
        watched.watches.push(slot);
        if watched.watches.len() == 1 {
            let owner = self.owner_of(partition);
            self.watches.words.push_back((owner, partition, true));
        }
        self.watches.queue(slot);
        true
    }

    /// It is told no longer. `false`: it was not.
    pub(crate) fn entries_unwatch(&mut self, connection: ConnectionId, partition: PartitionId, prefix: &str) -> bool {
        let Some(slot) = self.watches.find(connection, partition, prefix) else { return false };
        if let Some(own) = self.watches.of.get_mut(&connection) {
            own.retain(|other| *other != slot);
            if own.is_empty() {
                self.watches.of.remove(&connection);
            }
        }
        self.drop_watch(slot);
        true
    }

    /// The connection is gone.
    pub(crate) fn entries_disconnected(&mut self, connection: ConnectionId) {
        for slot in self.watches.of.remove(&connection).unwrap_or_default() {
            self.drop_watch(slot);
        }
    }

    fn drop_watch(&mut self, slot: u32) {
        if let Some(partition) = self.watches.remove(slot) {
            let owner = self.owner_of(partition);
            self.watches.words.push_back((owner, partition, false));
        }
    }

    /// Tells other shards, asks for what watches lack. Returns the work done.
    pub(crate) fn serve_watches(&mut self, now: Now, out: &impl Outbox) -> usize {
        let mut done = self.send_watch_words();
        done += self.send_news();
        if now.mono_us >= self.watches.stuck_at_us {
            self.watches.stuck_at_us = now.mono_us + STUCK_EVERY_US;
            self.watches.queue.extend(self.watches.stuck.drain(..));
        }
        for _ in 0..self.watches.queue.len() {
            let Some((slot, generation)) = self.watches.queue.pop_front() else { break };
            let page_bytes_max = self.entries_page_bytes_max();
            let Some(watch) = self.watches.slots.get_mut(slot as usize).filter(|w| w.generation == generation) else {
                continue;
            };
            watch.queued = false;
            if !watch.behind || watch.asked {
                continue;
            }
            if out.room(watch.connection) < page_bytes_max {
                watch.queued = true;
                self.watches.stuck.push((slot, generation));
                continue;
            }
            let (connection, tenant, session) = (watch.connection, watch.tenant.clone(), watch.session.clone());
            let (prefix, revision, base) = (watch.prefix.clone(), watch.cursor, watch.base);
            let origin = Origin::Local(connection);
            let asker = Asker { origin, id: id_of(slot, generation), tenant, client_id: "".into(), rights: None };
            // Taken for asked before it is: its answer may be here at once.
            (watch.asked, watch.behind) = (true, false);
            let entries = EntryAsk::Fetch { prefix: &prefix, revision, base };
            let command = Command::Entry { session: &session, ask: entries };
            if self.session_command(asker, &session, &command, now) == Handled::Later {
                if let Some(watch) = self.watches.slots.get_mut(slot as usize) {
                    (watch.asked, watch.behind) = (false, true);
                    self.watches.queue(slot);
                }
                break;
            }
            done += 1;
        }
        done
    }

    fn send_watch_words(&mut self) -> usize {
        let mut done = 0;
        while let Some((owner, partition, begins)) = self.watches.words.front().copied() {
            if owner == self.config.shard {
                self.follow_entries(owner, partition, begins);
            } else {
                self.scratch.clear();
                Writer(&mut self.scratch).u8(request::WATCH).u128(partition.0).u8(u8::from(begins));
                if !self.mail.tell(owner, &self.scratch) {
                    break;
                }
                self.wake(owner);
            }
            self.watches.words.pop_front();
            done += 1;
        }
        done
    }

    fn send_news(&mut self) -> usize {
        let mut done = 0;
        for _ in 0..self.watches.news.len() {
            let Some((shard, partition, revision)) = self.watches.news.pop_front() else { break };
            if shard == self.config.shard {
                self.hear_news(partition, revision);
            } else {
                self.scratch.clear();
                Writer(&mut self.scratch).u8(request::NEWS).u128(partition.0).u64(revision);
                if !self.mail.tell(shard, &self.scratch) {
                    self.watches.news.push_back((shard, partition, revision));
                    continue;
                }
                self.wake(shard);
            }
            done += 1;
        }
        done
    }

    /// `WATCH`: a shard watches a session of this one, or no longer.
    pub(crate) fn handle_watch(&mut self, from: ShardId, r: &mut Reader<'_>) {
        let (partition, begins) = (PartitionId(r.u128()), r.u8() == 1);
        self.follow_entries(from, partition, begins);
    }

    fn follow_entries(&mut self, shard: ShardId, partition: PartitionId, begins: bool) {
        let followers = self.watches.followers.entry(partition).or_default();
        followers.retain(|other| *other != shard);
        if begins {
            followers.push(shard);
        } else if followers.is_empty() {
            self.watches.followers.remove(&partition);
        }
    }

    /// `NEWS`: entries of a session changed.
    pub(crate) fn handle_news(&mut self, r: &mut Reader<'_>) {
        let (partition, revision) = (PartitionId(r.u128()), r.u64());
        self.hear_news(partition, revision);
    }

    fn hear_news(&mut self, partition: PartitionId, revision: u64) {
        let Some(watched) = self.watches.sessions.get(&partition) else { return };
        for slot in watched.watches.clone() {
            let watch = &mut self.watches.slots[slot as usize];
            // One that has asked is told of the change or not: it looks again.
            watch.behind |= watch.asked || watch.cursor < revision;
            self.watches.queue(slot);
        }
    }

    /// What a watch asked for has come, and its connection has room for it.
    pub(crate) fn entry_watch_page(
        &mut self,
        connection: ConnectionId,
        (slot, generation): (u32, u32),
        page: &EntriesPage,
        out: &mut impl Outbox,
    ) {
        let Some(watch) = self.watches.slots.get_mut(slot as usize).filter(|w| w.generation == generation) else {
            return;
        };
        let begins = page.snapshot && page.base != watch.base || watch.cursor == 0;
        if begins || !page.items.is_empty() {
            // Pages with nothing of its prefix were looked at in between, and are no hole.
            let frame = page.frame();
            out.entries(connection, CommandId::None, &EntriesFrame { after: frame.after.map(|_| watch.told), ..frame });
            watch.told = page.revision;
        }
        (watch.cursor, watch.base, watch.asked) = (page.revision, page.base, false);
        watch.behind |= page.more;
        self.watches.queue(slot);
    }

    /// It could not be told: again, a little later.
    pub(crate) fn entry_watch_refused(&mut self, (slot, generation): (u32, u32)) {
        if let Some(watch) = self.watches.slots.get_mut(slot as usize).filter(|w| w.generation == generation) {
            (watch.asked, watch.behind, watch.queued) = (false, true, true);
            self.watches.stuck.push((slot, generation));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_fetch_names_its_watch_and_no_client_has_it() {
        for (slot, generation) in [(0, 0), (7, 1), (u32::MAX, (1 << 31) - 1)] {
            assert_eq!(of_id(id_of(slot, generation)), Some((slot, generation)));
        }
        assert_eq!(of_id(CommandId::Number((1 << 53) - 1)), None);
        assert_eq!(of_id(CommandId::None), None);
    }
}
