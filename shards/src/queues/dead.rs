//! Dead letters: jobs that were given up, by shard and in the order in which they were.
//!
//! ```text
//!   from = shard, number ─► that shard: up to a page ── no more? ──► next = the next shard, 0 ─► … ─► none
//! ```
//! A cursor is good for going on with a list, not for keeping: a restart numbers anew.

use crate::ids::{CommandId, ConnectionId, ShardId};
use crate::limits::{DEAD_PAGE_MAX, WorkLimits};
use crate::mailbox::codec::{Reader, Writer};
use crate::mailbox::message::{put_connection, put_id, reply};
use crate::outbox::{DeadFrame, DeadJob, Outbox, dead_bytes_max, put_dead};
use crate::sessions::{Asker, Origin};
use crate::shard::Shard;
use std::collections::VecDeque;

/// Where the number of a shard stands in a cursor.
pub(crate) const SHARD_AT: u32 = 40;

/// A page on its way to its client.
pub(crate) struct DeadPage {
    queue: Box<str>,
    next: Option<u64>,
    items: Vec<u8>,
}

/// Pages that wait for room.
pub(crate) type DeadPages = VecDeque<(ConnectionId, CommandId, DeadPage)>;

/// The shard that a cursor names.
pub(crate) fn shard_of(from: u64) -> u64 {
    from >> SHARD_AT
}

impl Shard {
    /// Makes a page of what this shard has.
    pub(crate) fn list_dead(&mut self, asker: &Asker, queue: &str, from: u64) {
        let mut page = DeadPage { queue: queue.into(), next: None, items: Vec::new() };
        let (own, first) = (u64::from(self.config.shard.0), from & ((1 << SHARD_AT) - 1));
        let limits = &self.config.limits;
        let aim = WorkLimits::page_bytes(limits.connection_send_bytes_max, limits.mailbox_bytes);
        let (mut count, mut bytes) = (0, 0);
        let line = self.queues.find_line(&asker.tenant, queue);
        let dead: Vec<(u64, u32)> = line.map_or(Vec::new(), |line| {
            self.queues.lines[line as usize].dead.range(first..).map(|(seq, slot)| (*seq, *slot)).collect()
        });
        for (seq, slot) in dead {
            if count == DEAD_PAGE_MAX || bytes >= aim {
                page.next = Some(own << SHARD_AT | seq);
                break;
            }
            let job = &self.queues.jobs[slot as usize];
            count += 1;
            bytes += dead_bytes_max(queue.len(), job.session.len());
            let (epoch, offset, attempts, time_ms) = (job.epoch, job.offset, job.attempts, job.deadline_ms);
            put_dead(&mut page.items, &DeadJob { session: &job.session, epoch, offset, attempts, time_ms });
        }
        if page.next.is_none() && own + 1 < u64::from(self.config.shards) {
            page.next = Some((own + 1) << SHARD_AT);
        }
        self.answer_dead(asker.origin, asker.id, page);
    }

    fn answer_dead(&mut self, origin: Origin, id: CommandId, page: DeadPage) {
        match origin {
            Origin::Local(connection) => self.dead_pages.push_back((connection, id, page)),
            Origin::Remote(shard, connection, reply_bytes) => {
                self.reply_scratch.clear();
                let mut w = Writer(&mut self.reply_scratch);
                w.u8(reply::DEAD).u32(reply_bytes);
                put_connection(&mut w, connection);
                put_id(&mut w, id);
                w.text(&page.queue).option(page.next).bytes(&page.items);
                self.mail.reply(shard, &self.reply_scratch);
                self.wake(shard);
            }
        }
    }

    /// A page has come from another shard.
    pub(crate) fn take_dead(&mut self, connection: ConnectionId, id: CommandId, r: &mut Reader<'_>) {
        let page = DeadPage { queue: r.text().into(), next: r.option(), items: r.bytes().to_vec() };
        self.dead_pages.push_back((connection, id, page));
    }

    /// Hands pages to connections that have room. Returns how many went.
    pub(crate) fn send_dead_pages(&mut self, out: &mut impl Outbox) -> usize {
        let mut sent = 0;
        for _ in 0..self.dead_pages.len() {
            let Some((connection, id, page)) = self.dead_pages.pop_front() else { break };
            if self.readers.clients.get(connection).is_none() {
                continue;
            }
            let DeadPage { queue, next, items } = &page;
            let frame = DeadFrame { queue, next: *next, items };
            if out.room(connection) < frame.bytes_max() {
                self.dead_pages.push_back((connection, id, page));
                continue;
            }
            out.dead(connection, id, &frame);
            self.end(connection);
            sent += 1;
        }
        sent
    }

    /// The shard whose dead letters a cursor is in the middle of.
    pub(crate) fn shard_with_dead(&self, from: u64) -> Option<ShardId> {
        let shard = shard_of(from);
        (shard < u64::from(self.config.shards)).then_some(ShardId(shard as u16))
    }
}
