//! Who is in a session, or how far they are: clients in the order of their last change.
//!
//! ```text
//!   version   3      7      8      9                    version = 9, the last change
//!           ┌──────┬──────┬──────┬──────┐
//!           │ ann  │ cy ✝ │ bob  │ dan  │               ✝ ended: kept until everybody was told, and no longer than a lease
//!           └──────┴──────┴──────┴──────┘
//!              ▲ cursor of a watcher that was told 3: what it lacks is what stands behind
//! ```
//! A watcher is a cursor, as a reader of events is: it is told each client that changed once, with what holds then, however
//! often it changed meanwhile. A snapshot is a cursor that begins at 0. What ended and was forgotten raises `floor`: a cursor
//! below it begins anew. The same structure stands on the owner's shard and, filled by its messages, on each shard that has
//! watchers.

use super::value;
use crate::command::RosterKind;
use crate::delivery::ByPartition;
use crate::ids::PartitionId;
use crate::outbox::{CHANGE_BYTES_MAX, ReceiptsOfAll};
use std::collections::{BTreeMap, VecDeque};

/// A client of a tenant, as a keyed hash.
pub(crate) type ClientKey = PartitionId;

/// Ended ones that are kept; or as many as are present, where these are more.
const ENDED_MAX: usize = 1024;

/// Bytes of an entry beside its name and value: the entry and its places in two indexes.
const ENTRY_BYTES: usize = 256;

/// How a client's time in the session ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// It said so.
    Left,
    /// Its lease did.
    Lapsed,
}

/// One client.
#[derive(Debug)]
pub(crate) struct Entry {
    pub client: ClientKey,
    pub name: Box<str>,
    pub value: Box<[u8]>,
    /// Of its last change.
    pub version: u64,
    /// When it last came.
    pub joined: u64,
    /// It may be known to whoever stands here or further on.
    pub since: u64,
    pub ended: Option<End>,
    pub lease_ms: u64,
    /// On the owner's shard.
    pub lease_end_us: u64,
    /// Its lease was over once, and whoever renews it was given a moment more.
    pub is_doubted: bool,
    /// Tells this entry from others that had its slot.
    pub generation: u32,
}

impl Entry {
    fn bytes(&self) -> usize {
        bytes_of(&self.name, &self.value)
    }

    /// On a wire or in mail.
    fn told_bytes(&self) -> usize {
        CHANGE_BYTES_MAX + self.name.len() + self.value.len()
    }
}

/// Bytes that an entry takes.
pub(crate) fn bytes_of(name: &str, value: &[u8]) -> usize {
    ENTRY_BYTES + name.len() + value.len()
}

/// A change as the owner tells it to another shard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told<'a> {
    pub client: ClientKey,
    pub name: &'a str,
    pub value: &'a [u8],
    pub version: u64,
    pub joined: u64,
    pub since: u64,
    pub ended: bool,
}

/// All of a session.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    entries: slab::Slab<Entry>,
    by_client: ByPartition<u32>,
    order: BTreeMap<u64, u32>,
    /// Ended ones, oldest first; some have come back or are forgotten.
    ends: VecDeque<(u64, u32)>,
    pub version: u64,
    floor: u64,
    /// Raised when everything known is forgotten.
    pub incarnation: u32,
    /// Nobody is missing because the server has just started.
    pub complete: bool,
    /// It is not in the middle of being filled.
    pub whole: bool,
    present: usize,
    pub bytes: usize,
    generation: u32,
    all: Option<(u64, ReceiptsOfAll)>,
}

impl Roster {
    /// Nobody.
    pub fn new(complete: bool, whole: bool) -> Self {
        Self { complete, whole, ..Self::default() }
    }

    /// Clients that are in.
    pub fn present(&self) -> usize {
        self.present
    }

    /// Is this true of somebody who is in, by its value?
    pub fn any(&self, is: impl Fn(&[u8]) -> bool) -> bool {
        self.entries.iter().any(|(_, entry)| entry.ended.is_none() && is(&entry.value))
    }

    /// Nobody is in, and nobody is remembered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn get(&self, client: ClientKey) -> Option<&Entry> {
        self.by_client.get(&client).map(|slot| &self.entries[*slot as usize])
    }

    /// The entry of a slot that was given with this generation.
    pub fn at(&self, slot: u32, generation: u32) -> Option<&Entry> {
        self.entries.get(slot as usize).filter(|entry| entry.generation == generation)
    }

    /// The lease of a client that is in goes on until then. `false`: it is not in.
    pub fn renew(&mut self, client: ClientKey, lease_end_us: u64) -> bool {
        let Some(slot) = self.by_client.get(&client) else { return false };
        let entry = &mut self.entries[*slot as usize];
        if entry.ended.is_none() {
            entry.lease_end_us = entry.lease_end_us.max(lease_end_us);
            entry.is_doubted = false;
        }
        entry.ended.is_none()
    }

    /// Is this the first time that its lease is found to be over?
    pub fn doubt(&mut self, slot: u32) -> bool {
        self.entries.get_mut(slot as usize).is_some_and(|entry| !std::mem::replace(&mut entry.is_doubted, true))
    }

    /// A client is in, with this value. Returns slot and generation where it had none before.
    pub fn put(&mut self, client: ClientKey, name: &str, value: &[u8], lease_ms: u64) -> Option<(u32, u32)> {
        if let Some(slot) = self.by_client.get(&client).copied() {
            let entry = &mut self.entries[slot as usize];
            entry.lease_ms = lease_ms;
            if entry.ended.is_none() && *entry.value == *value {
                return None;
            }
            self.version += 1;
            self.bytes = self.bytes + value.len() - entry.value.len();
            if entry.ended.take().is_some() {
                entry.joined = self.version;
                self.present += 1;
            }
            entry.value = value.into();
            self.order.remove(&entry.version);
            entry.version = self.version;
            self.order.insert(self.version, slot);
            return None;
        }
        self.version += 1;
        let version = self.version;
        Some(
            self.insert(Told { client, name, value, version, joined: version, since: version, ended: false }, lease_ms),
        )
    }

    fn insert(&mut self, told: Told<'_>, lease_ms: u64) -> (u32, u32) {
        let Told { client, name, value, version, joined, since, .. } = told;
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let (name, value) = (name.into(), value.into());
        let entry = Entry {
            client,
            name,
            value,
            version,
            joined,
            since,
            ended: None,
            lease_ms,
            lease_end_us: 0,
            is_doubted: false,
            generation,
        };
        self.bytes += entry.bytes();
        let slot = self.entries.insert(entry) as u32;
        self.by_client.insert(client, slot);
        self.order.insert(version, slot);
        self.present += 1;
        (slot, generation)
    }

    /// A client is in no longer; it is remembered until then. `false`: it was not in.
    pub fn end(&mut self, client: ClientKey, end: End, until_us: u64) -> bool {
        let Some(slot) = self.by_client.get(&client).copied() else { return false };
        if self.entries[slot as usize].ended.is_some() {
            return false;
        }
        self.version += 1;
        let version = self.version;
        self.end_at(slot, end, version);
        self.entries[slot as usize].lease_end_us = until_us;
        true
    }

    fn end_at(&mut self, slot: u32, end: End, version: u64) {
        let entry = &mut self.entries[slot as usize];
        self.order.remove(&entry.version);
        self.bytes -= entry.value.len();
        if entry.ended.is_none() {
            self.present -= 1;
        }
        (entry.value, entry.ended, entry.version) = (Box::default(), Some(end), version);
        self.order.insert(version, slot);
        self.ends.push_back((version, slot));
        while self.ends.len() > self.present.max(ENDED_MAX) {
            let Some((version, slot)) = self.ends.pop_front() else { break };
            self.forget(slot, version);
        }
    }

    /// Forgets one that ended with this version.
    pub fn forget(&mut self, slot: u32, version: u64) {
        let is_it = |entry: &&Entry| entry.ended.is_some() && entry.version == version;
        let Some(client) = self.entries.get(slot as usize).filter(is_it).map(|entry| entry.client) else { return };
        let entry = self.entries.remove(slot as usize);
        self.bytes -= entry.bytes();
        self.by_client.remove(&client);
        self.order.remove(&version);
        self.floor = self.floor.max(version);
    }

    /// Must a cursor that stands here begin anew? What ended before it began, at version `from`, was never told to it.
    pub fn has_forgotten(&self, from: u64, cursor: u64) -> bool {
        from.max(cursor) < self.floor
    }

    /// Hands `take` what changed behind `cursor`, in order and about `bytes_max` of it, and says how far that goes. Who came
    /// and went unknown to whoever stands there is no news.
    pub fn changes<'a>(&'a self, cursor: u64, bytes_max: usize, take: impl FnMut(&'a Entry)) -> u64 {
        self.changes_by(cursor, bytes_max, Entry::told_bytes, take)
    }

    /// Likewise, where entries take bytes in a way of their own.
    pub fn changes_by<'a>(
        &'a self,
        cursor: u64,
        bytes_max: usize,
        weigh: impl Fn(&Entry) -> usize,
        mut take: impl FnMut(&'a Entry),
    ) -> u64 {
        let mut bytes = 0;
        for (version, slot) in self.order.range(cursor + 1..) {
            let entry = &self.entries[*slot as usize];
            if entry.ended.is_some() && entry.since > cursor {
                continue;
            }
            take(entry);
            bytes += weigh(entry);
            if bytes >= bytes_max {
                return *version;
            }
        }
        self.version
    }

    /// Takes over what the owner told. Versions rise.
    pub fn take(&mut self, told: Told<'_>) {
        self.version = self.version.max(told.version);
        let Some(slot) = self.by_client.get(&told.client).copied() else {
            // Of one that nobody here knew and that has gone, nobody needs to hear.
            if !told.ended {
                self.insert(told, 0);
            }
            return;
        };
        if told.ended {
            return self.end_at(slot, End::Left, told.version);
        }
        let entry = &mut self.entries[slot as usize];
        self.order.remove(&entry.version);
        self.bytes = self.bytes + told.value.len() - entry.value.len();
        if entry.ended.take().is_some() {
            self.present += 1;
        }
        entry.value = told.value.into();
        (entry.version, entry.joined, entry.since) = (told.version, told.joined, told.since.min(entry.since));
        self.order.insert(told.version, slot);
    }

    /// Forgets everything: it is going to be told anew.
    pub fn begin_anew(&mut self) {
        let (incarnation, generation) = (self.incarnation + 1, self.generation);
        *self = Self { incarnation, generation, ..Self::default() };
    }

    /// The lowest receipts of all.
    pub fn all(&mut self) -> ReceiptsOfAll {
        if let Some((_, all)) = self.all.filter(|(version, _)| *version == self.version) {
            return all;
        }
        let mut all = ReceiptsOfAll { count: 0, delivered: u64::MAX, read: u64::MAX };
        for (_, entry) in self.entries.iter().filter(|(_, entry)| entry.ended.is_none()) {
            let (delivered, read) = value::receipt(&entry.value);
            all.count += 1;
            (all.delivered, all.read) = (all.delivered.min(delivered), all.read.min(read));
        }
        if all.count == 0 {
            (all.delivered, all.read) = (0, 0);
        }
        self.all = Some((self.version, all));
        all
    }
}

/// A room: a roster of a session.
pub(crate) type RoomKey = (PartitionId, RosterKind);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::Happened;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// What somebody believes who hears frames.
    #[derive(Default, Debug, Clone)]
    struct Believer {
        from: Option<u64>,
        cursor: u64,
        whole: u64,
        believes: BTreeMap<String, Vec<u8>>,
        begins: u32,
    }

    impl Believer {
        fn hear(&mut self, roster: &Roster, bytes_max: usize) -> Result<(), String> {
            if self.from.is_some_and(|from| roster.has_forgotten(from, self.cursor)) {
                *self = Self { begins: self.begins + 1, ..Self::default() };
            }
            self.from.get_or_insert(roster.version);
            let mut told = Vec::new();
            let upto = roster.changes(self.cursor, bytes_max, |entry| {
                told.push((
                    entry.name.to_string(),
                    super::super::watch::happened(entry, self.whole),
                    entry.value.to_vec(),
                ));
            });
            for (name, happened, value) in told {
                let known = self.believes.contains_key(&name);
                match happened {
                    Happened::Left => {
                        self.believes.remove(&name);
                    }
                    Happened::Updated if !known => return Err(format!("{name} is updated and was never told")),
                    _ => {
                        self.believes.insert(name, value);
                    }
                }
            }
            self.cursor = upto;
            if upto == roster.version {
                self.whole = upto;
            }
            Ok(())
        }
    }

    fn truth(roster: &Roster) -> BTreeMap<String, Vec<u8>> {
        let present = roster.entries.iter().filter(|(_, entry)| entry.ended.is_none());
        present.map(|(_, entry)| (entry.name.to_string(), entry.value.to_vec())).collect()
    }

    fn told(entry: &Entry) -> Told<'_> {
        let Entry { client, version, joined, since, .. } = *entry;
        Told { client, name: &entry.name, value: &entry.value, version, joined, since, ended: entry.ended.is_some() }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(u8, u8),
        End(u8),
        Forget,
        /// A watcher at the owner, or at the copy, hears so many bytes.
        Hear(bool, usize),
        Copy(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0u8..12, 0u8..3).prop_map(|(who, what)| Step::Put(who, what)),
            3 => (0u8..12).prop_map(Step::End),
            1 => Just(Step::Forget),
            3 => (any::<bool>(), 1usize..600).prop_map(|(owner, bytes)| Step::Hear(owner, bytes)),
            2 => (1usize..600).prop_map(Step::Copy),
        ];
        prop::collection::vec(step, 1..200)
    }

    fn copy(roster: &Roster, replica: &mut Roster, (from, cursor): &mut (Option<u64>, u64), bytes_max: usize) {
        if from.is_some_and(|from| roster.has_forgotten(from, *cursor)) {
            replica.begin_anew();
            (*from, *cursor) = (None, 0);
        }
        from.get_or_insert(roster.version);
        let mut row = Vec::new();
        let upto = roster.changes(*cursor, bytes_max, |entry| row.push(entry));
        row.into_iter().for_each(|entry| replica.take(told(entry)));
        replica.version = upto;
        replica.whole = upto == roster.version;
        *cursor = upto;
    }

    proptest! {
        /// Against what is true: whoever hears all of it believes that, at the owner and at a copy, whatever was forgotten.
        #[test]
        fn after_quiet_everybody_believes_what_is_true(steps in steps()) {
            let mut roster = Roster::new(true, true);
            let (mut replica, mut copied) = (Roster::default(), (None, 0));
            let (mut near, mut far, mut far_incarnation) = (Believer::default(), Believer::default(), 0);
            let mut model: BTreeMap<String, Vec<u8>> = BTreeMap::new();
            let mut hear_far = |replica: &Roster, far: &mut Believer, bytes: usize| {
                if far_incarnation != replica.incarnation {
                    far_incarnation = replica.incarnation;
                    *far = Believer::default();
                }
                if replica.whole { far.hear(replica, bytes) } else { Ok(()) }
            };
            for step in steps {
                match step {
                    Step::Put(who, what) => {
                        let name = format!("c{who}");
                        let version = roster.version;
                        roster.put(PartitionId(who.into()), &name, &[what], 1);
                        let news = model.insert(name, vec![what]) != Some(vec![what]);
                        prop_assert_eq!(roster.version, version + u64::from(news));
                    }
                    Step::End(who) => {
                        let was = model.remove(&format!("c{who}")).is_some();
                        prop_assert_eq!(roster.end(PartitionId(who.into()), End::Left, 0), was);
                    }
                    Step::Forget => {
                        let ended = roster.entries.iter().find(|(_, entry)| entry.ended.is_some());
                        if let Some((slot, version)) = ended.map(|(slot, entry)| (slot as u32, entry.version)) {
                            roster.forget(slot, version);
                        }
                    }
                    Step::Hear(true, bytes) => prop_assert_eq!(near.hear(&roster, bytes), Ok(())),
                    Step::Hear(false, bytes) => prop_assert_eq!(hear_far(&replica, &mut far, bytes), Ok(())),
                    Step::Copy(bytes) => copy(&roster, &mut replica, &mut copied, bytes),
                }
                prop_assert_eq!(roster.present(), model.len());
                let bytes: usize = roster.entries.iter().map(|(_, entry)| entry.bytes()).sum();
                prop_assert_eq!(roster.bytes, bytes);
                prop_assert_eq!(roster.order.len(), roster.entries.len());
            }
            prop_assert_eq!(truth(&roster), model.clone());
            copy(&roster, &mut replica, &mut copied, usize::MAX);
            prop_assert_eq!(truth(&replica), model.clone());
            while near.cursor < roster.version {
                prop_assert_eq!(near.hear(&roster, 200), Ok(()));
            }
            while far.cursor < replica.version {
                prop_assert_eq!(hear_far(&replica, &mut far, 200), Ok(()));
            }
            prop_assert_eq!((&near.believes, &far.believes), (&model, &model));
        }
    }

    #[test]
    fn who_comes_and_goes_between_two_looks_is_no_news() {
        let mut roster = Roster::new(true, true);
        roster.put(PartitionId(1), "ann", b"x", 1);
        let cursor = roster.version;
        roster.put(PartitionId(2), "bob", b"x", 1);
        roster.end(PartitionId(2), End::Left, 0);
        let mut told = 0;
        assert_eq!(roster.changes(cursor, usize::MAX, |_| told += 1), roster.version);
        assert_eq!(told, 0);
        roster.end(PartitionId(1), End::Lapsed, 0);
        roster.changes(cursor, usize::MAX, |entry| assert_eq!(&*entry.name, "ann"));
    }

    #[test]
    fn what_ended_is_bounded_and_whoever_missed_it_begins_anew() {
        let mut roster = Roster::new(true, true);
        for n in 0..3 * ENDED_MAX as u128 {
            roster.put(PartitionId(n), "somebody", b"x", 1);
            roster.end(PartitionId(n), End::Left, 0);
        }
        assert_eq!(roster.entries.len(), ENDED_MAX);
        assert!(
            roster.has_forgotten(1, roster.version - ENDED_MAX as u64 * 2 - 1)
                && !roster.has_forgotten(1, roster.version)
        );
    }
}
