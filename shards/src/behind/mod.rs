//! Cursors that are behind, served in turn, a bounded piece each: from the hot tail, from disk, or from the shard that
//! owns the session.
//!
//! ```text
//!  queued ─► own session ── log.read ──► Hot: push   Cold: Reading … ReadReady ─► push a piece, the log keeps the rest
//!         ├► other shard's session ── FETCH ──► … FETCHED ─► push
//!         └► pattern source ── log.scan or SCAN ──► … push
//!                          then: live, or in line again, or blocked until its client has room
//! ```

use crate::clients::home::Opening;
use crate::command::Policy;
use crate::delivery::{Pushed, Reader, ReaderState, Subscription, SubscriptionId};
use crate::effect::Reply;
use crate::fair::egress_cost;
use crate::gather::Gather;
use crate::ids::{ConnectionId, Now};
use crate::mailbox::codec::Writer;
use crate::mailbox::message::{put_connection, request};
use crate::outbox::{EVENT_FRAME_OVERHEAD_BYTES_MAX, GapReason, Outbox};
use crate::refusal::{Refusal, Refused};
use crate::scan::BatchFor;
use crate::sessions::Asker;
use crate::shard::{Opened, Shard};
use storage::catalog::PartitionSlot;
use storage::log::{Read, ReadTicket};

mod pages;
mod patterns;

/// Records pushed to one cursor before the next one's turn.
const RECORDS_PER_TURN_MAX: usize = 256;

/// How much of a finished read reached its subscription.
enum Piece {
    /// All of it.
    All,
    /// As much as one turn gives; the log has the rest.
    Some,
    /// The client has no room or is gone.
    Stopped,
    /// Nothing: damage.
    Fault,
}

/// What a cold read is for.
pub(crate) enum ReadFor {
    Subscription(SubscriptionId),
    Gather(Gather),
    /// A scan of this shard's log.
    Scan(BatchFor),
    /// The newest state of a client whose home is here.
    Home(Box<Opening>),
    /// The event of a job.
    Job((u32, u32)),
    /// Events of a run.
    Run((u32, u64)),
}

impl Shard {
    /// Serves cursors that are behind, about `bytes` in all. Returns the cursors served.
    pub(crate) fn serve_behind(&mut self, now: Now, bytes: usize, out: &mut impl Outbox) -> usize {
        let mut served = 0;
        let mut left = bytes;
        while left > 0
            && let Some(ticket) = self.ready_reads.pop_front()
        {
            served += 1;
            left = left.saturating_sub(self.serve_read(ticket, now, out).max(64));
        }
        for _ in 0..self.gathers.len() {
            let Some(gather) = self.gathers.pop_front() else { break };
            served += 1;
            self.step_gather(gather);
        }
        served += self.send_pages(out);
        self.sort_queued();
        while left > 0
            && let Some(reader) = self.readers.queued.line.next()
        {
            let used = match reader {
                Reader::Subscription(id) => self.serve_subscription(id, now, out),
                Reader::Pattern(connection, source) => self.serve_pattern(connection, source, now, out),
            };
            if used == 0 {
                self.readers.queued.line.failed();
            }
            self.readers.queued.line.charge_served(egress_cost(used as u64));
            served += usize::from(used > 0);
            left = left.saturating_sub(used.max(64));
        }
        served
    }

    /// One piece for a subscription that is behind. Returns bytes of records pushed, at least 1 if anything happened.
    fn serve_subscription(&mut self, id: SubscriptionId, now: Now, out: &mut impl Outbox) -> usize {
        let Some(subscription) = self.readers.subscription(id).filter(|s| s.state == ReaderState::Queued) else {
            return 1;
        };
        let connection = subscription.connection;
        if !self.can_take(connection, out) {
            self.readers.forget_gathered(id);
            self.set_state(id, ReaderState::Blocked);
            return 1;
        }
        if self.readers.gathering_is_full(id) {
            self.readers.queued.push_back(Reader::Subscription(id));
            return 0;
        }
        let Some(subscription) = self.readers.subscription(id) else { return 1 };
        let feed = &self.readers.feeds[subscription.feed as usize];
        if feed.owner != self.config.shard {
            let room = out.room(connection);
            return self.fetch(id, room);
        }
        let (partition, session) = (feed.partition, feed.session.clone());
        let latest = subscription.policy == Policy::Latest;
        let Some(client) = self.readers.clients.get(connection) else { return 1 };
        let tenant = client.tenant.clone();
        let slot = match self.open(partition, &tenant, &session, None) {
            Opened::Ready(slot) => slot,
            Opened::Absent => {
                self.readers.settle(id, out);
                return 1;
            }
            Opened::Park | Opened::Refused(_) => {
                self.readers.queued.push_back(Reader::Subscription(id));
                return 0;
            }
        };
        let mut used = 1;
        if latest {
            self.survey_hot(id, slot);
        }
        for _ in 0..RECORDS_PER_TURN_MAX {
            let Some(cursor) = self.readers.subscription(id).map(Subscription::reads_from) else { return used };
            match self.log.read(slot, cursor) {
                Read::Hot(record) => {
                    used += record.bytes().len();
                    if self.readers.push_read(id, record, now, out) != Some(Pushed::Whole) {
                        return used;
                    }
                }
                Read::Cold(ticket) => {
                    self.reads.insert(ticket, ReadFor::Subscription(id));
                    self.set_state(id, ReaderState::Reading);
                    return used;
                }
                Read::Ready(ticket) => {
                    let (bytes, piece) = self.push_records(id, ticket, now, out);
                    used += bytes;
                    self.settle_piece(id, piece, out);
                    return used;
                }
                Read::Gap { to } => {
                    if !self.readers.push_gap(id, to, GapReason::Retention, out) {
                        return used;
                    }
                }
                Read::End => break,
                Read::Busy => {
                    self.readers.queued.push_back(Reader::Subscription(id));
                    return used - 1;
                }
                Read::Fault(_) => {
                    if !self.skip_damage(id, out) {
                        return used;
                    }
                }
            }
        }
        self.readers.settle(id, out);
        used
    }

    /// Looks through what lies ready in memory for the newest event of each topic.
    fn survey_hot(&mut self, id: SubscriptionId, slot: PartitionSlot) {
        self.readers.newest.clear();
        let Some(mut at) = self.readers.subscription(id).map(Subscription::reads_from) else { return };
        for _ in 0..RECORDS_PER_TURN_MAX {
            if !self.log.is_hot(slot, at) {
                break;
            }
            let Read::Hot(record) = self.log.read(slot, at) else { break };
            self.readers.newest.note(record);
            at = record.next_offset();
        }
    }

    /// Has the client credit, and room for a small event? If not it is blocked: reading for it would be for nothing.
    fn can_take(&mut self, connection: ConnectionId, out: &mut impl Outbox) -> bool {
        let Some(client) = self.readers.clients.get_mut(connection) else { return true };
        if client.has_credit() && out.room(connection) >= EVENT_FRAME_OVERHEAD_BYTES_MAX {
            return true;
        }
        crate::delivery::block(client, connection, &mut self.readers.blocked);
        false
    }

    /// Bytes that were durable cannot be had: say so as a gap up to what is committed now, never skip silently.
    fn skip_damage(&mut self, id: SubscriptionId, out: &mut impl Outbox) -> bool {
        self.counters.damaged_reads += 1;
        let Some(subscription) = self.readers.subscription(id) else { return false };
        let feed = &self.readers.feeds[subscription.feed as usize];
        let to = feed.live_next.unwrap_or(subscription.cursor).max(subscription.reads_from() + 1);
        self.readers.push_gap(id, to, GapReason::Damaged, out)
    }

    fn set_state(&mut self, id: SubscriptionId, state: ReaderState) {
        if let Some(subscription) = self.readers.subscription_mut(id) {
            subscription.state = state;
        }
    }

    /// Asks the owner for records, no more than its client has room for: what is not taken is read again.
    fn fetch(&mut self, id: SubscriptionId, room: usize) -> usize {
        let Some(subscription) = self.readers.subscription(id) else { return 1 };
        let (cursor, feed_slot, connection) = (subscription.reads_from(), subscription.feed, subscription.connection);
        let Some(client) = self.readers.clients.get(connection) else { return 1 };
        let feed = &self.readers.feeds[feed_slot as usize];
        let owner = feed.owner;
        let reply_bytes = self.page_reply_bytes();
        self.scratch.clear();
        let mut w = Writer(&mut self.scratch);
        w.u8(request::FETCH).u32(reply_bytes as u32).u32(id.slot).u32(id.generation);
        w.text(&client.tenant).text(&feed.session).u64(cursor).u32(room.min(self.config.limits.page_bytes) as u32);
        match self.mail.ask(owner, self.scratch.len(), reply_bytes) {
            Some(ask) => {
                self.mail.send_ask(owner, ask, &self.scratch);
                self.wake(owner);
                self.set_state(id, ReaderState::Reading);
                1
            }
            None => {
                self.readers.queued.push_back(Reader::Subscription(id));
                0
            }
        }
    }

    /// What a cold read brought, to whom it is for. Returns bytes of records pushed.
    fn serve_read(&mut self, ticket: ReadTicket, now: Now, out: &mut impl Outbox) -> usize {
        match self.reads.remove(&ticket) {
            Some(ReadFor::Subscription(id)) => {
                let (bytes, piece) = self.push_records(id, ticket, now, out);
                self.settle_piece(id, piece, out);
                return bytes;
            }
            Some(ReadFor::Gather(mut gather)) => match self.gather_records(&mut gather, ticket) {
                Some(end) => self.finish_gather(gather, end),
                None => self.gathers.push_back(gather),
            },
            Some(ReadFor::Scan(wanted)) => self.scan_ready(ticket, wanted, now, out),
            Some(ReadFor::Home(read)) => self.home_read(ticket, read),
            Some(ReadFor::Job(id)) => self.job_read(ticket, id),
            Some(ReadFor::Run(id)) => self.run_read(ticket, id),
            None => self.log.release(ticket),
        }
        0
    }

    /// Pushes one piece of a finished read. Returns its bytes too.
    fn push_records(
        &mut self,
        id: SubscriptionId,
        ticket: ReadTicket,
        now: Now,
        out: &mut impl Outbox,
    ) -> (usize, Piece) {
        let (mut bytes, mut piece) = (0, Piece::All);
        if self.readers.subscription(id).is_some_and(|s| s.policy == Policy::Latest) {
            self.readers.newest.clear();
            if let Ok(records) = self.log.read_records(ticket) {
                records.take(RECORDS_PER_TURN_MAX).for_each(|record| self.readers.newest.note(record));
            }
        }
        match self.log.read_records(ticket) {
            Ok(records) => {
                for (number, record) in records.enumerate() {
                    if number == RECORDS_PER_TURN_MAX {
                        piece = Piece::Some;
                        break;
                    }
                    if self.readers.push_read(id, record, now, out) != Some(Pushed::Whole) {
                        piece = Piece::Stopped;
                        break;
                    }
                    bytes += record.bytes().len();
                }
            }
            // Retention was faster: the next read says the gap.
            Err(storage::log::ReadFault::Gone) => {}
            Err(_) => piece = Piece::Fault,
        }
        match piece {
            Piece::Some | Piece::Stopped => self.log.keep(ticket),
            Piece::All | Piece::Fault => self.log.release(ticket),
        }
        (bytes, piece)
    }

    fn settle_piece(&mut self, id: SubscriptionId, piece: Piece, out: &mut impl Outbox) {
        let settles = match piece {
            Piece::All | Piece::Some => true,
            Piece::Stopped => false,
            Piece::Fault => self.skip_damage(id, out),
        };
        if settles {
            self.readers.settle(id, out);
        }
    }

    /// Tells owners that nobody here listens to a partition any more.
    pub(crate) fn send_detaches(&mut self) -> usize {
        let mut sent = 0;
        while let Some((partition, owner)) = self.readers.detach_due.last().copied() {
            if owner != self.config.shard {
                self.scratch.clear();
                Writer(&mut self.scratch).u8(request::DETACH).u128(partition.0);
                if !self.mail.tell(owner, &self.scratch) {
                    break;
                }
                self.wake(owner);
                sent += 1;
            }
            self.readers.detach_due.pop();
        }
        while let Some(due) = self.pattern_detach_due.pop() {
            self.scratch.clear();
            let mut w = Writer(&mut self.scratch);
            w.u8(request::DETACH_PATTERNS);
            put_connection(&mut w, due.connection);
            w.u32(due.generation).text(&due.tenant);
            if !self.mail.tell(due.source, &self.scratch) {
                self.pattern_detach_due.push(due);
                break;
            }
            self.wake(due.source);
            sent += 1;
        }
        sent
    }

    /// Refuses what waits for a partition that cannot be read.
    pub(crate) fn refuse_unreadable(&mut self, asker: &Asker) {
        self.answer(asker.origin, asker.id, &Reply::Refused(Refused::later(Refusal::Unavailable, 1000)));
    }
}
