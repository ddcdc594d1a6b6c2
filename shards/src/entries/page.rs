//! Pages of entries: read on the owner's shard, told once all that they were read from is committed.
//!
//! ```text
//!   get   one key                       list  by key, from behind the last of the page before
//!   fetch by revision, from behind what the watcher knows; keys that went among them
//!
//!     revision   cursor            forgotten │
//!                  │  changed   changed      ▼  changed       cursor < forgotten, and nothing was begun after that:
//!                                                             all that is live, from the start: a snapshot
//! ```

use crate::command::EntryAsk;
use crate::commands::{Call, Outcome};
use crate::ids::{CommandId, ConnectionId};
use crate::limits::WorkLimits;
use crate::mailbox::codec::{Reader, Writer};
use crate::mailbox::message::{put_connection, put_id, reply};
use crate::outbox::{EntriesFrame, EntryItem, Outbox, item_bytes_max, put_item};
use crate::sessions::Origin;
use crate::sessions::waiters::{Answer, Waiter};
use crate::shard::{Opened, Shard};
use std::collections::VecDeque;
use storage::catalog::PartitionSlot;
use storage::record::EntryAct;

/// A page, on its way to whoever asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct EntriesPage {
    pub session: Box<str>,
    pub prefix: Option<Box<str>>,
    /// Where a watcher stood.
    pub after: Option<u64>,
    pub revision: u64,
    /// What went up to this revision was never told.
    pub base: u64,
    pub snapshot: bool,
    pub more: bool,
    pub items: Vec<u8>,
}

impl EntriesPage {
    pub fn put(&self, w: &mut Writer<'_>) {
        w.text(&self.session).option_text(self.prefix.as_deref()).option(self.after).u64(self.revision).u64(self.base);
        w.u8(u8::from(self.snapshot)).u8(u8::from(self.more)).bytes(&self.items);
    }

    pub fn get(r: &mut Reader<'_>) -> EntriesPage {
        EntriesPage {
            session: r.text().into(),
            prefix: r.option_text().map(Into::into),
            after: r.option(),
            revision: r.u64(),
            base: r.u64(),
            snapshot: r.u8() == 1,
            more: r.u8() == 1,
            items: r.bytes().to_vec(),
        }
    }

    pub fn frame(&self) -> EntriesFrame<'_> {
        let EntriesPage { session, prefix, after, revision, snapshot, more, items, .. } = self;
        let prefix = prefix.as_deref();
        let (after, revision, snapshot, more) = (*after, *revision, *snapshot, *more);
        EntriesFrame { session, prefix, after, revision, snapshot, more, items }
    }
}

/// Pages that wait for room in the queues of their connections.
pub(crate) type Pages = VecDeque<(ConnectionId, CommandId, Box<EntriesPage>)>;

/// `entry.get`, `entry.list`, or what a watch lacks, on the owner's shard.
pub(crate) fn run(shard: &mut Shard, call: Call<'_>, ask: &EntryAsk<'_>) -> Outcome {
    let Call { asker, partition, session, .. } = call;
    let slot = match shard.open(partition, &asker.tenant, session, None) {
        Opened::Ready(slot) => Some(slot),
        Opened::Park => return Outcome::Park,
        Opened::Absent => None,
        Opened::Refused(refused) => return shard.refuse(asker, refused),
    };
    let mut page = EntriesPage {
        session: session.into(),
        prefix: None,
        after: None,
        revision: 0,
        base: 0,
        snapshot: false,
        more: false,
        items: Vec::new(),
    };
    match *ask {
        EntryAsk::Get { key } => {
            slot.into_iter().for_each(|slot| get(shard, call, slot, key, &mut page));
        }
        EntryAsk::List { prefix, after } => {
            page.prefix = Some(prefix.into());
            slot.into_iter().for_each(|slot| list(shard, call, slot, (prefix, after), &mut page));
        }
        EntryAsk::Fetch { prefix, revision, base } => {
            (page.prefix, page.after, page.base) = (Some(prefix.into()), Some(revision), base);
            match slot {
                Some(slot) => fetch(shard, call, slot, (prefix, revision, base), &mut page),
                None => page.snapshot = true,
            }
        }
        EntryAsk::Set(_) | EntryAsk::Watch { .. } | EntryAsk::Unwatch { .. } => return Outcome::Done,
    }
    let (origin, id) = (asker.origin, asker.id);
    if slot.is_some_and(|slot| shard.log.unsettled(slot).is_some()) {
        // All that was appended so far includes what it was read from.
        let log_seq = shard.log.next_seq() - 1;
        shard.waiters.push(Waiter { log_seq, origin, id, answer: Answer::Entries(Box::new(page)) });
    } else {
        shard.answer_entries(origin, id, Box::new(page));
    }
    Outcome::Done
}

fn get(shard: &Shard, call: Call<'_>, slot: PartitionSlot, key: &str, page: &mut EntriesPage) {
    let Some(entries) = shard.log.partition(slot).entries() else { return };
    page.revision = entries.revision();
    let Some(entry) = entries.get(key).filter(|e| !shard.entries.is_over(call.partition, e.revision, call.now)) else {
        return;
    };
    let (revision, expires_ms) = (entry.revision, entry.expires_ms);
    put_item(&mut page.items, &EntryItem { key, revision, act: EntryAct::Put, expires_ms, value: &entry.value });
}

fn list(shard: &Shard, call: Call<'_>, slot: PartitionSlot, of: (&str, Option<&str>), page: &mut EntriesPage) {
    let (prefix, after) = of;
    let Some(entries) = shard.log.partition(slot).entries() else { return };
    page.revision = entries.revision();
    let aim = shard.entries_page_bytes();
    let mut bytes = 0;
    for (key, entry) in entries.from(after.map_or(prefix, |after| after.max(prefix))) {
        if !key.starts_with(prefix) {
            break;
        }
        if after == Some(key) || shard.entries.is_over(call.partition, entry.revision, call.now) {
            continue;
        }
        if bytes >= aim {
            page.more = true;
            break;
        }
        bytes += item_bytes_max(key.len(), entry.value.len());
        let (revision, expires_ms) = (entry.revision, entry.expires_ms);
        put_item(&mut page.items, &EntryItem { key, revision, act: EntryAct::Put, expires_ms, value: &entry.value });
    }
}

fn fetch(shard: &Shard, call: Call<'_>, slot: PartitionSlot, of: (&str, u64, u64), page: &mut EntriesPage) {
    let (prefix, mut after, base) = of;
    let Some(entries) = shard.log.partition(slot).entries() else {
        page.snapshot = true;
        return;
    };
    // What went meanwhile is not remembered, or the place is none of this session's: from the start.
    if entries.forgotten() > after.max(base) || after > entries.revision() || after == 0 {
        (page.snapshot, page.base, after) = (true, entries.revision(), 0);
    }
    let live = entries.from(prefix).take_while(|(key, _)| key.starts_with(prefix)).map(|(key, entry)| EntryItem {
        key,
        revision: entry.revision,
        act: EntryAct::Put,
        expires_ms: entry.expires_ms,
        value: &entry.value,
    });
    // Who knows an older value must hear of this one, though its time is over: its end has no revision yet.
    let snapshot = page.snapshot;
    let live = live.filter(|item| !snapshot || !shard.entries.is_over(call.partition, item.revision, call.now));
    let gone = entries.gone().filter(|gone| !page.snapshot && gone.key.starts_with(prefix)).map(|gone| EntryItem {
        key: &gone.key,
        revision: gone.revision,
        act: if gone.expired { EntryAct::Expired } else { EntryAct::Deleted },
        expires_ms: 0,
        value: b"",
    });
    let mut items: Vec<EntryItem<'_>> = live.chain(gone).filter(|item| item.revision > after).collect();
    items.sort_unstable_by_key(|item| item.revision);
    let (aim, mut bytes) = (shard.entries_page_bytes(), 0);
    page.revision = entries.revision();
    for (at, item) in items.iter().enumerate() {
        if bytes >= aim {
            (page.more, page.revision) = (true, items[at - 1].revision);
            break;
        }
        bytes += item_bytes_max(item.key.len(), item.value.len());
        put_item(&mut page.items, item);
    }
}

impl Shard {
    /// What a page aims at.
    fn entries_page_bytes(&self) -> usize {
        WorkLimits::page_bytes(self.config.limits.connection_send_bytes_max, self.config.limits.mailbox_bytes)
    }

    /// Most bytes of a page, in a frame or in mail.
    pub(crate) fn entries_page_bytes_max(&self) -> usize {
        self.config.limits.work.page_bytes_max(self.entries_page_bytes())
    }

    /// A page goes to whoever asked for it.
    pub(crate) fn answer_entries(&mut self, origin: Origin, id: CommandId, page: Box<EntriesPage>) {
        match origin {
            Origin::Local(connection) => self.take_entries(connection, id, page),
            Origin::Remote(shard, connection, reply_bytes) => {
                write_page(&mut self.reply_scratch, connection, id, reply_bytes, &page);
                self.mail.reply(shard, &self.reply_scratch);
                self.wake(shard);
            }
        }
    }

    /// A page has come to the client's shard.
    pub(crate) fn take_entries(&mut self, connection: ConnectionId, id: CommandId, page: Box<EntriesPage>) {
        self.entry_pages.push_back((connection, id, page));
    }

    /// Hands pages to connections that have room. Returns how many went.
    pub(crate) fn send_entry_pages(&mut self, out: &mut impl Outbox) -> usize {
        let mut sent = 0;
        for _ in 0..self.entry_pages.len() {
            let Some((connection, id, page)) = self.entry_pages.pop_front() else { break };
            if self.readers.clients.get(connection).is_none() {
                continue;
            }
            let frame = page.frame();
            if out.room(connection) < frame.bytes_max() {
                self.entry_pages.push_back((connection, id, page));
                continue;
            }
            self.end(connection);
            sent += 1;
            match watch::of_id(id) {
                None => out.entries(connection, id, &frame),
                Some(watch) => self.entry_watch_page(connection, watch, &page, out),
            }
        }
        sent
    }
}

use super::watch;

/// Writes a page as the reply to a forwarded command into `scratch`.
pub(crate) fn write_page(
    scratch: &mut Vec<u8>,
    connection: ConnectionId,
    id: CommandId,
    reply_bytes: u32,
    page: &EntriesPage,
) {
    scratch.clear();
    let mut w = Writer(scratch);
    w.u8(reply::ENTRIES).u32(reply_bytes);
    put_connection(&mut w, connection);
    put_id(&mut w, id);
    page.put(&mut w);
}
