//! A frame about entries: a page of what there is, or what has changed.

use crate::mailbox::codec::{Reader, Writer};
use storage::record::EntryAct;

/// One entry in a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryItem<'a> {
    /// Key.
    pub key: &'a str,
    /// Of its last change.
    pub revision: u64,
    /// What that was.
    pub act: EntryAct,
    /// When it is gone, Unix ms; 0 = never.
    pub expires_ms: u64,
    /// JSON; empty where it is gone.
    pub value: &'a [u8],
}

/// A frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntriesFrame<'a> {
    /// Of which session.
    pub session: &'a str,
    /// Of keys that begin so; `None`: of one that was asked for.
    pub prefix: Option<&'a str>,
    /// It goes on where a watcher stood.
    pub after: Option<u64>,
    /// What is known with it; while `more` follows, up to there.
    pub revision: u64,
    /// A watcher forgets what it was told before.
    pub snapshot: bool,
    /// More follows, or can be asked for.
    pub more: bool,
    /// What it tells, as [`put_item`] wrote it.
    pub items: &'a [u8],
}

/// Everything in a frame but items and names.
const HEAD_BYTES_MAX: usize = 320;

/// Everything of an item but its key and value: names of fields, numbers.
const ITEM_BYTES_MAX: usize = 96;

/// Appends an item.
pub(crate) fn put_item(items: &mut Vec<u8>, item: &EntryItem<'_>) {
    let mut w = Writer(items);
    w.u8(item.act as u8).u64(item.revision).u64(item.expires_ms).text(item.key).bytes(item.value);
}

/// Bytes of an item, in mail and in any frame.
pub(crate) const fn item_bytes_max(key: usize, value: usize) -> usize {
    ITEM_BYTES_MAX + key + value
}

impl<'a> EntriesFrame<'a> {
    /// What it tells.
    pub fn items(&self) -> impl Iterator<Item = EntryItem<'a>> + use<'a> {
        let mut r = Reader(self.items);
        std::iter::from_fn(move || {
            if r.0.is_empty() {
                return None;
            }
            let act = EntryAct::of(r.u8()).unwrap_or(EntryAct::Deleted);
            let (revision, expires_ms) = (r.u64(), r.u64());
            Some(EntryItem { act, revision, expires_ms, key: r.text(), value: r.bytes() })
        })
    }

    /// Upper bound of the frame on any wire.
    pub fn bytes_max(&self) -> usize {
        let items: usize = self.items().map(|item| item_bytes_max(item.key.len(), item.value.len())).sum();
        HEAD_BYTES_MAX + self.session.len() + self.prefix.map_or(0, str::len) + items
    }
}
