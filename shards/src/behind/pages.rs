//! Pages for somebody else: records for another shard's subscriber that is behind, and `history`.
//!
//! ```text
//!  FETCH, history ─► Gather ─ read, a piece each turn ─► FETCHED or HISTORY to its shard, or a Page ─► client, when it has room
//! ```

use crate::effect::Reply;
use crate::gather::{Gather, GatherFor, Page, PageEnd};
use crate::ids::Offset;
use crate::limits::HISTORY_HEAD_BYTES_MAX;
use crate::limits::PAGES_MAX;
use crate::mailbox::codec::Writer;
use crate::mailbox::message::{put_connection, put_id, reply};
use crate::outbox::{EVENT_FRAME_OVERHEAD_BYTES_MAX, HistoryHead, Outbox, PageItem, event_bytes_max};
use crate::packed::Records;
use crate::refusal::{Refusal, Refused};
use crate::sessions::Origin;
use crate::shard::{Opened, Shard};
use storage::log::{Read, ReadFault, ReadTicket};
use storage::record::Kind;

use super::ReadFor;

impl Shard {
    /// Room for one more page?
    pub(crate) fn gathers_have_room(&self) -> bool {
        self.gathers.len() + self.pages.len() + self.reads.len() < PAGES_MAX
    }

    /// Begins a page; it is read in the deliver step.
    pub(crate) fn gather(&mut self, gather: Gather) {
        self.gathers.push_back(gather);
    }

    /// Bytes reserved for a page's reply: the page, or one largest record, with its head.
    pub(crate) fn page_reply_bytes(&self) -> usize {
        self.log.record_bytes_max().max(self.config.limits.page_bytes) + 512
    }

    pub(super) fn step_gather(&mut self, mut gather: Gather) {
        let slot = match self.open(gather.partition, &gather.tenant, &gather.session, None) {
            Opened::Ready(slot) => slot,
            Opened::Absent => return self.finish_gather(gather, PageEnd::End),
            Opened::Park | Opened::Refused(_) => return self.gathers.push_back(gather),
        };
        let partition = self.log.partition(slot);
        (gather.epoch, gather.tail) = (partition.epoch(), partition.committed());
        let end = loop {
            match self.log.read(slot, gather.next) {
                Read::Hot(record) => {
                    if !gather.take(record) || gather.is_full() {
                        break PageEnd::More;
                    }
                }
                Read::End => break PageEnd::End,
                Read::Gap { to } if gather.records.is_empty() => {
                    if let GatherFor::Fetch { .. } = gather.purpose {
                        break PageEnd::Gap(to);
                    }
                    // A page of history simply starts at what is retained: its events carry their offsets.
                    gather.next = to;
                }
                Read::Gap { .. } => break PageEnd::More,
                Read::Ready(ticket) => {
                    if let Some(end) = self.gather_records(&mut gather, ticket) {
                        break end;
                    }
                }
                Read::Cold(ticket) => {
                    self.reads.insert(ticket, ReadFor::Gather(gather));
                    return;
                }
                Read::Busy => return self.gathers.push_back(gather),
                Read::Fault(_) if gather.records.is_empty() => {
                    self.counters.damaged_reads += 1;
                    break PageEnd::Damaged(gather.tail.max(gather.next + 1));
                }
                Read::Fault(_) => break PageEnd::More,
            }
        };
        self.finish_gather(gather, end);
    }

    /// Takes what a finished read brought; how the page ends, if it does.
    pub(super) fn gather_records(&mut self, gather: &mut Gather, ticket: ReadTicket) -> Option<PageEnd> {
        let mut full = false;
        let end = match self.log.read_records(ticket) {
            Ok(mut records) => {
                full = records.any(|record| !gather.take(record) || gather.is_full());
                full.then_some(PageEnd::More)
            }
            Err(ReadFault::Gone) => None,
            Err(_) if gather.records.is_empty() => {
                self.counters.damaged_reads += 1;
                Some(PageEnd::Damaged(gather.tail.max(gather.next + 1)))
            }
            Err(_) => Some(PageEnd::More),
        };
        // The next page begins in the rest.
        if full {
            self.log.keep(ticket)
        } else {
            self.log.release(ticket)
        }
        end
    }

    pub(super) fn finish_gather(&mut self, gather: Gather, end: PageEnd) {
        let mut message = std::mem::take(&mut self.scratch);
        message.clear();
        let mut w = Writer(&mut message);
        match gather.purpose {
            GatherFor::Fetch { shard, subscription, reply_bytes } => {
                w.u8(reply::FETCHED).u32(reply_bytes).u32(subscription.slot).u32(subscription.generation);
                match end {
                    PageEnd::More => w.u8(0),
                    PageEnd::End => w.u8(1),
                    PageEnd::Gap(to) => w.u8(2).u64(to),
                    PageEnd::Damaged(to) => w.u8(3).u64(to),
                };
                message.extend_from_slice(&gather.records);
                self.mail.reply(shard, &message);
                self.wake(shard);
            }
            GatherFor::History { origin, id } => {
                if let PageEnd::Damaged(_) = end {
                    self.answer(origin, id, &Reply::Refused(Refused::later(Refusal::Unavailable, 1000)));
                } else {
                    match origin {
                        Origin::Local(connection) => self.pages.push_back(Page {
                            connection,
                            id,
                            session: gather.session,
                            epoch: gather.epoch,
                            from: gather.from,
                            limit: gather.limit,
                            next: gather.next,
                            tail: gather.tail,
                            records: gather.records,
                        }),
                        Origin::Remote(shard, connection, reply_bytes) => {
                            w.u8(reply::HISTORY).u32(reply_bytes);
                            put_connection(&mut w, connection);
                            put_id(&mut w, id);
                            w.text(&gather.session).u64(gather.epoch).u64(gather.from).u32(gather.limit);
                            w.u64(gather.next).u64(gather.tail);
                            message.extend_from_slice(&gather.records);
                            self.mail.reply(shard, &message);
                            self.wake(shard);
                        }
                    }
                }
            }
        }
        self.scratch = message;
    }

    /// Hands finished pages of history to connections that have room.
    pub(super) fn send_pages(&mut self, out: &mut impl Outbox) -> usize {
        let mut sent = 0;
        for _ in 0..self.pages.len() {
            let Some(page) = self.pages.pop_front() else { break };
            let Some(client) = self.readers.clients.get_mut(page.connection) else { continue };
            let room = out.room(page.connection);
            let (mut bytes, mut next, mut events) = (HISTORY_HEAD_BYTES_MAX, page.from, 0);
            let budget = self.config.limits.connection_send_bytes_max / 2;
            for item in items(&page.records, page.from) {
                let (item_bytes, to) = fitting(&item, budget.saturating_sub(bytes));
                if events == page.limit || (bytes + item_bytes > budget && events > 0) {
                    break;
                }
                events += 1;
                bytes += item_bytes;
                next = to;
                if to <= item.offset() {
                    break;
                }
            }
            let all = Records(&page.records).last().is_none_or(|record| record.next_offset() <= next);
            if room < bytes.min(budget) {
                self.pages.push_back(page);
                continue;
            }
            let next = if all { page.next.max(next) } else { next };
            let head = HistoryHead { session: &page.session, epoch: page.epoch, next, tail: page.tail };
            let mut items = items(&page.records, page.from).filter_map(|item| match item {
                PageItem::Text(record, from, to) if from < next => Some(PageItem::Text(record, from, to.min(next))),
                item => (item.offset() < next).then_some(item),
            });
            out.history(page.connection, page.id, &head, &mut items);
            client.in_flight = client.in_flight.saturating_sub(1);
            sent += 1;
        }
        sent
    }
}

/// What a page holds from an offset on.
fn items(records: &[u8], page_from: Offset) -> impl Iterator<Item = PageItem<'_>> {
    Records(records).flat_map(move |record| {
        let from = record.offset().max(page_from);
        let text = record.kind() == Kind::Text && from < record.next_offset();
        let text = text.then(|| PageItem::Text(record, from, record.next_offset()));
        let events = record.events().filter(move |event| event.offset() >= page_from);
        text.into_iter().chain(events.map(PageItem::Event))
    })
}

/// Bytes that an item takes of a page, and where it ends: an event is whole, of deltas as many as find room, one at least.
fn fitting(item: &PageItem<'_>, room: usize) -> (usize, Offset) {
    match item {
        PageItem::Event(event) => (event_bytes_max(event), event.offset() + 1),
        PageItem::Text(record, from, to) => {
            let (mut bytes, mut end) = (EVENT_FRAME_OVERHEAD_BYTES_MAX + 2 * record.session().len(), *from);
            let mut known: Vec<&str> = Vec::new();
            for delta in record.deltas().filter(|delta| (*from..*to).contains(&delta.offset)) {
                let fresh = !known.contains(&delta.stream);
                let names =
                    if fresh { EVENT_FRAME_OVERHEAD_BYTES_MAX + delta.stream.len() + delta.topic.len() } else { 0 };
                if end > *from && bytes + names + delta.text.len() > room {
                    break;
                }
                if fresh {
                    known.push(delta.stream);
                }
                bytes += names + delta.text.len();
                end = delta.offset + 1;
            }
            (bytes, end)
        }
    }
}
