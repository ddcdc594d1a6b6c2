//! Entries of a session: what each key holds now, and which keys went lately.
//!
//! ```text
//!   revision   1      2      3      4      5          dense in the session; each change is the next
//!              put a  put b  del a  put b  expired b
//!                            └ gone └ live  └ gone: the newest few, so that a watcher who was told up to 2 hears of both
//!   forgotten ─┘ what went at or before it is not remembered: a watcher further back is told everything again
//! ```
//! All of it is in memory with the session and in its entry of the checkpoint, so retention takes nothing of it. Entry, little endian,
//! not aligned:
//! ```text
//!  0  u64 revision   8  u64 forgotten   16  u16 live   18  u16 gone
//!     live: u64 revision, u64 put, u64 expires, u8 key bytes, u16 value bytes, key, value     ascending by key
//!     gone: u64 revision, u8 act, u8 key bytes, key                                            oldest first
//! ```

use super::partition::Partition;
use super::{Catalog, NAME_BYTES_MAX, PartitionSlot};
use crate::bytes::{Put, Take};
use crate::ids::COUNTER_MAX;
use crate::record::{EntryAct, EntryView};
use std::collections::{BTreeMap, VecDeque};

/// Most bytes that live entries of one session take, as [`entry_bytes`] counts.
pub const ENTRIES_BYTES_MAX: usize = 64 << 10;
/// Keys that went and are remembered.
pub const ENTRIES_GONE_MAX: usize = 64;

const LIVE_HEAD_BYTES: usize = 27;
const GONE_HEAD_BYTES: usize = 10;
const HEAD_BYTES: usize = 20;

/// Largest part of a partition's entry that entries can take.
pub(super) const ENTRIES_SECTION_BYTES_MAX: usize =
    HEAD_BYTES + ENTRIES_BYTES_MAX + ENTRIES_GONE_MAX * (GONE_HEAD_BYTES + NAME_BYTES_MAX);

/// What an entry counts against [`ENTRIES_BYTES_MAX`]: no less than it takes.
pub const fn entry_bytes(key: usize, value: usize) -> usize {
    LIVE_HEAD_BYTES + key + value
}

/// What a key holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Value.
    pub value: Box<[u8]>,
    /// Of its last change.
    pub revision: u64,
    /// When it was put, Unix ms.
    pub put_ms: u64,
    /// When it is gone, Unix ms; 0 = never.
    pub expires_ms: u64,
}

/// A key that went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gone {
    /// Key.
    pub key: Box<str>,
    /// Of its going.
    pub revision: u64,
    /// Its time was over; else somebody took it away.
    pub expired: bool,
}

/// Entries of one session.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Entries {
    revision: u64,
    forgotten: u64,
    live: BTreeMap<Box<str>, Entry>,
    gone: VecDeque<Gone>,
    bytes: usize,
}

impl Entries {
    /// Revision of the last change; 0 = there was none.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What went at or before this revision is not remembered.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Bytes of what is live, as [`entry_bytes`] counts.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What a key holds.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.live.get(key)
    }

    /// What is live, from a key on, in the order of the keys.
    pub fn from<'a>(&'a self, key: &str) -> impl Iterator<Item = (&'a str, &'a Entry)> + use<'a> {
        self.live.range::<str, _>((std::ops::Bound::Included(key), std::ops::Bound::Unbounded)).map(|(k, e)| (&**k, e))
    }

    /// Everything that is live.
    pub fn live(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.live.iter().map(|(key, entry)| (&**key, entry))
    }

    /// Keys that went, oldest first, as far as they are remembered.
    pub fn gone(&self) -> impl Iterator<Item = &Gone> {
        self.gone.iter()
    }

    /// Takes a change in. One that does not fit is left out; whoever appends has asked.
    pub(super) fn step(&mut self, step: EntryView<'_>, time_ms: u64) {
        self.revision += 1;
        self.gone.retain(|gone| &*gone.key != step.key);
        if let Some(before) = self.live.remove(step.key) {
            self.bytes -= entry_bytes(step.key.len(), before.value.len());
        }
        if step.act == EntryAct::Put {
            let bytes = entry_bytes(step.key.len(), step.value.len());
            if self.bytes + bytes <= ENTRIES_BYTES_MAX {
                self.bytes += bytes;
                let (value, revision) = (step.value.into(), self.revision);
                let entry = Entry { value, revision, put_ms: time_ms, expires_ms: step.expires_ms };
                self.live.insert(step.key.into(), entry);
            }
            return;
        }
        if self.gone.len() == ENTRIES_GONE_MAX
            && let Some(oldest) = self.gone.pop_front()
        {
            self.forgotten = oldest.revision;
        }
        let (key, revision) = (step.key.into(), self.revision);
        self.gone.push_back(Gone { key, revision, expired: step.act == EntryAct::Expired });
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let live: usize =
            self.live.iter().map(|(key, e)| key.len() + e.value.len() + size_of::<(Box<str>, Entry)>()).sum();
        let gone: usize = self.gone.iter().map(|gone| gone.key.len() + size_of::<Gone>()).sum();
        size_of::<Entries>() + live + gone
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.revision);
        out.put_u64(self.forgotten);
        out.put_u16(self.live.len() as u16);
        out.put_u16(self.gone.len() as u16);
        for (key, entry) in &self.live {
            out.put_u64(entry.revision);
            out.put_u64(entry.put_ms);
            out.put_u64(entry.expires_ms);
            out.put_u8(key.len() as u8);
            out.put_u16(entry.value.len() as u16);
            out.put(key.as_bytes());
            out.put(&entry.value);
        }
        for gone in &self.gone {
            out.put_u64(gone.revision);
            out.put_u8(if gone.expired { EntryAct::Expired } else { EntryAct::Deleted } as u8);
            out.put_u8(gone.key.len() as u8);
            out.put(gone.key.as_bytes());
        }
    }

    pub(super) fn decode(take: &mut Take<'_>) -> Option<Entries> {
        let (revision, forgotten) = (take.u64()?, take.u64()?);
        let (live, gone) = (take.u16()?, take.u16()?);
        if revision > COUNTER_MAX || forgotten > revision || usize::from(gone) > ENTRIES_GONE_MAX {
            return None;
        }
        let mut entries = Entries { revision, forgotten, ..Entries::default() };
        let mut last: Option<Box<str>> = None;
        for _ in 0..live {
            let (of, put_ms, expires_ms) = (take.u64()?, take.u64()?, take.u64()?);
            let (key_bytes, value_bytes) = (take.u8()?, take.u16()?);
            let (key, value) = (take.str(key_bytes.into())?, take.bytes(value_bytes.into())?);
            entries.bytes += entry_bytes(key.len(), value.len());
            if of == 0 || of > revision || entries.bytes > ENTRIES_BYTES_MAX || last.is_some_and(|last| &*last >= key) {
                return None;
            }
            entries.live.insert(key.into(), Entry { value: value.into(), revision: of, put_ms, expires_ms });
            last = Some(key.into());
        }
        for _ in 0..gone {
            let (of, act, key_bytes) = (take.u64()?, take.u8()?, take.u8()?);
            let key = take.str(key_bytes.into())?;
            let ordered = entries.gone.back().is_none_or(|before| before.revision < of);
            let act = EntryAct::of(act).filter(|act| *act != EntryAct::Put)?;
            if of > revision || of <= forgotten || !ordered {
                return None;
            }
            entries.gone.push_back(Gone { key: key.into(), revision: of, expired: act == EntryAct::Expired });
        }
        Some(entries)
    }
}

impl Partition {
    /// Its entries, if it ever had any.
    pub fn entries(&self) -> Option<&Entries> {
        self.work.as_ref()?.entries.as_ref()
    }
}

impl Catalog {
    /// Takes a change of an entry into the state. Its record was [appended](Catalog::append) or [replayed](Catalog::replay) just
    /// now.
    pub fn entry_changed(&mut self, slot: PartitionSlot, step: EntryView<'_>, time_ms: u64) {
        let work = self.resident_mut(slot).partition.work.get_or_insert_default();
        work.entries.get_or_insert_default().step(step, time_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put<'a>(key: &'a str, value: &'a [u8]) -> EntryView<'a> {
        EntryView { key, value, act: EntryAct::Put, expires_ms: 0 }
    }

    fn delete(key: &str) -> EntryView<'_> {
        EntryView { key, value: b"", act: EntryAct::Deleted, expires_ms: 0 }
    }

    #[test]
    fn each_change_is_the_next_revision_and_what_went_is_remembered() {
        let mut entries = Entries::default();
        for step in [put("a", b"1"), put("b", b"2"), delete("a"), put("b", b"3")] {
            entries.step(step, 7);
        }
        assert_eq!((entries.revision(), entries.forgotten()), (4, 0));
        assert_eq!(entries.get("a"), None);
        assert_eq!(entries.get("b").map(|e| (&*e.value, e.revision, e.put_ms)), Some((&b"3"[..], 4, 7)));
        assert_eq!(entries.gone().map(|g| (&*g.key, g.revision)).collect::<Vec<_>>(), [("a", 3)]);
        entries.step(put("a", b"4"), 8);
        assert_eq!(entries.gone().count(), 0, "it is there again");
        for n in 0..ENTRIES_GONE_MAX + 3 {
            entries.step(delete(&n.to_string()), 9);
        }
        assert_eq!((entries.gone().count(), entries.forgotten()), (ENTRIES_GONE_MAX, 8));
    }

    proptest! {
        #[test]
        fn what_is_kept_comes_back_and_no_bytes_make_it_panic(
            steps in proptest::collection::vec((0u8..9, 0usize..40, 0u8..3, any::<u64>()), 0..200), cut in any::<u16>(),
        ) {
            let mut entries = Entries::default();
            for (key, value, act, expires_ms) in steps {
                let (key, value) = (format!("key:{key}"), vec![b'x'; value * 40]);
                entries.step(EntryView { key: &key, value: &value, act: EntryAct::of(act).unwrap(), expires_ms }, 5);
                let bytes: usize = entries.live().map(|(k, e)| entry_bytes(k.len(), e.value.len())).sum();
                prop_assert_eq!(bytes, entries.bytes());
                prop_assert!(bytes <= ENTRIES_BYTES_MAX);
            }
            let mut bytes = Vec::new();
            entries.encode(&mut bytes);
            prop_assert!(bytes.len() <= ENTRIES_SECTION_BYTES_MAX);
            let mut take = Take(&bytes);
            let again = Entries::decode(&mut take);
            prop_assert_eq!(again.as_ref(), Some(&entries));
            prop_assert!(take.0.is_empty());
            let cut = usize::from(cut) % bytes.len().max(1);
            prop_assert_eq!(Entries::decode(&mut Take(&bytes[..cut])), None);
            bytes[cut] ^= 0x41;
            let _ = Entries::decode(&mut Take(&bytes));
        }
    }
}
