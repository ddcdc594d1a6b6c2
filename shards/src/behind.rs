//! Cursors that are behind, served in turn, a bounded piece each: from the hot tail, from disk, or from the shard that
//! owns the session.
//!
//! ```text
//!  queued ─► own session ── log.read ──► Hot: push   Cold: Reading … ReadReady ─► push
//!         ├► other shard's session ── FETCH ──► … FETCHED ─► push
//!         └► pattern source ── log.scan or SCAN ──► … push
//!                          then: live, or in line again, or blocked until its client has room
//! ```

use crate::delivery::patterns::Source;
use crate::delivery::{Pushed, Reader, ReaderState, SubscriptionId};
use crate::effect::Reply;
use crate::gather::{GATHERS_MAX, Gather, GatherFor, Page, PageEnd};
use crate::ids::{ConnectionId, Now, ShardId};
use crate::mailbox::codec::{Reader as MailReader, Writer};
use crate::mailbox::message::{get_connection, put_connection, put_id, reply, request};
use crate::outbox::{EVENT_FRAME_OVERHEAD_BYTES_MAX, GapReason, HistoryHead, Outbox, event_bytes_max};
use crate::packed::Records;
use crate::refusal::{Refusal, Refused};
use crate::scan::{SCAN_RECORDS_PER_STEP_MAX, Scan, Wanted};
use crate::sessions::{Asker, Origin};
use crate::shard::{Opened, Shard};
use storage::log::{Read, ReadTicket, Scan as LogScan};

/// Records pushed to one cursor before the next one's turn.
const RECORDS_PER_TURN_MAX: usize = 256;

/// What a cold read is for.
pub(crate) enum ReadFor {
    Subscription(SubscriptionId),
    Gather(Gather),
    /// A scan of this shard's log, for a client of the given shard.
    Scan {
        shard: ShardId,
        connection: ConnectionId,
        generation: u32,
        reply_bytes: u32,
    },
}

impl Shard {
    /// Serves cursors that are behind, about `bytes` in all. Returns the cursors served.
    pub(crate) fn serve_behind(&mut self, now: Now, bytes: usize, out: &mut impl Outbox) -> usize {
        let mut served = 0;
        let mut left = bytes;
        for ticket in std::mem::take(&mut self.ready_reads) {
            served += 1;
            self.serve_read(ticket, now, out);
        }
        for _ in 0..self.gathers.len() {
            let Some(gather) = self.gathers.pop_front() else { break };
            served += 1;
            self.step_gather(gather);
        }
        served += self.send_pages(out);
        for _ in 0..self.readers.queued.len() {
            if left == 0 {
                break;
            }
            let Some(reader) = self.readers.queued.pop_front() else { break };
            let used = match reader {
                Reader::Subscription(id) => self.serve_subscription(id, now, out),
                Reader::Pattern(connection, source) => self.serve_pattern(connection, source, now, out),
            };
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
            self.set_state(id, ReaderState::Blocked);
            return 1;
        }
        let Some(subscription) = self.readers.subscription(id) else { return 1 };
        let feed = &self.readers.feeds[subscription.feed as usize];
        if feed.owner != self.config.shard {
            let room = out.room(connection);
            return self.fetch(id, room);
        }
        let (partition, session) = (feed.partition, feed.session.clone());
        let Some(client) = self.readers.clients.get(connection) else { return 1 };
        let tenant = client.tenant.clone();
        let slot = match self.open(partition, &tenant, &session, None) {
            Opened::Ready(slot) => slot,
            Opened::Absent => {
                self.readers.settle(id);
                return 1;
            }
            Opened::Park | Opened::Refused(_) => {
                self.readers.queued.push_back(Reader::Subscription(id));
                return 0;
            }
        };
        let mut used = 1;
        for _ in 0..RECORDS_PER_TURN_MAX {
            let Some(cursor) = self.readers.subscription(id).map(|s| s.cursor) else { return used };
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
        self.readers.settle(id);
        used
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
        let to = feed.live_next.unwrap_or(subscription.cursor).max(subscription.cursor + 1);
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
        let (cursor, feed_slot, connection) = (subscription.cursor, subscription.feed, subscription.connection);
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

    fn serve_read(&mut self, ticket: ReadTicket, now: Now, out: &mut impl Outbox) {
        match self.reads.remove(&ticket) {
            Some(ReadFor::Subscription(id)) => {
                let mut whole = self.readers.subscription(id).is_some();
                let mut fault = false;
                match self.log.read_records(ticket) {
                    Ok(records) => {
                        for record in records {
                            if self.readers.push_read(id, record, now, out) != Some(Pushed::Whole) {
                                whole = false;
                                break;
                            }
                        }
                    }
                    // Retention was faster: the next read says the gap.
                    Err(storage::log::ReadFault::Gone) => {}
                    Err(_) => fault = true,
                }
                self.log.release(ticket);
                if fault {
                    whole = self.skip_damage(id, out);
                }
                if whole {
                    self.readers.settle(id);
                }
            }
            Some(ReadFor::Gather(mut gather)) => {
                let end = match self.log.read_records(ticket) {
                    Ok(records) => {
                        let mut full = false;
                        for record in records {
                            full = !gather.take(record) || gather.is_full();
                            if full {
                                break;
                            }
                        }
                        full.then_some(PageEnd::More)
                    }
                    Err(storage::log::ReadFault::Gone) => None,
                    Err(_) if gather.records.is_empty() => {
                        self.counters.damaged_reads += 1;
                        Some(PageEnd::Damaged(gather.tail.max(gather.next + 1)))
                    }
                    Err(_) => Some(PageEnd::More),
                };
                self.log.release(ticket);
                match end {
                    Some(end) => self.finish_gather(gather, end),
                    None => self.gathers.push_back(gather),
                }
            }
            Some(ReadFor::Scan { shard, connection, generation, reply_bytes }) => {
                self.scan_ready(ticket, shard, connection, generation, reply_bytes, now, out);
            }
            None => self.log.release(ticket),
        }
    }

    // ---- pages for somebody else ----------------------------------------------------------------------------------

    /// Room for one more page?
    pub(crate) fn gathers_have_room(&self) -> bool {
        self.gathers.len() + self.pages.len() + self.reads.len() < GATHERS_MAX
    }

    /// Begins a page; it is read in the deliver step.
    pub(crate) fn gather(&mut self, gather: Gather) {
        self.gathers.push_back(gather);
    }

    /// Bytes reserved for a page's reply: the page, or one largest record, with its head.
    pub(crate) fn page_reply_bytes(&self) -> usize {
        self.log.record_bytes_max().max(self.config.limits.page_bytes) + 512
    }

    fn step_gather(&mut self, mut gather: Gather) {
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

    fn finish_gather(&mut self, gather: Gather, end: PageEnd) {
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
    fn send_pages(&mut self, out: &mut impl Outbox) -> usize {
        let mut sent = 0;
        for _ in 0..self.pages.len() {
            let Some(page) = self.pages.pop_front() else { break };
            let Some(client) = self.readers.clients.get_mut(page.connection) else { continue };
            let room = out.room(page.connection);
            let (mut bytes, mut next, mut events) = (1024, page.from, 0);
            let budget = self.config.limits.connection_send_bytes_max / 2;
            for event in Records(&page.records).flat_map(|record| record.events()).filter(|e| e.offset() >= page.from) {
                let event_bytes = event_bytes_max(&event);
                if events == page.limit || (bytes + event_bytes > budget && events > 0) {
                    break;
                }
                events += 1;
                bytes += event_bytes;
                next = event.offset() + 1;
            }
            let all = Records(&page.records).last().is_none_or(|record| record.next_offset() <= next);
            if room < bytes.min(budget) {
                self.pages.push_back(page);
                continue;
            }
            let next = if all { page.next.max(next) } else { next };
            let head = HistoryHead { session: &page.session, epoch: page.epoch, next, tail: page.tail };
            let mut events = Records(&page.records)
                .flat_map(|record| record.events())
                .filter(|event| event.offset() >= page.from && event.offset() < next);
            out.history(page.connection, page.id, &head, &mut events);
            client.in_flight = client.in_flight.saturating_sub(1);
            sent += 1;
        }
        sent
    }

    // ---- pattern clients ------------------------------------------------------------------------------------------

    /// One piece for a pattern client that is behind on one source.
    fn serve_pattern(&mut self, connection: ConnectionId, source: ShardId, now: Now, out: &mut impl Outbox) -> usize {
        let Some(client) = self.readers.clients.get(connection) else { return 1 };
        let Some(feed) = &client.patterns else { return 1 };
        let at = feed.sources[usize::from(source.0)];
        if at.state != ReaderState::Queued {
            return 1;
        }
        let generation = feed.generation;
        if !self.can_take(connection, out) {
            self.set_source(connection, source, |at| at.state = ReaderState::Blocked);
            return 1;
        }
        if !self.readers.pay_pattern_gap(connection, source, out) {
            return 1;
        }
        let Some(client) = self.readers.clients.get(connection) else { return 1 };
        let Some(feed) = &client.patterns else { return 1 };
        if source == self.config.shard {
            if !at.by_position {
                let scan = self.scans.take(source, connection).filter(|scan| scan.generation == generation);
                if scan.is_none() {
                    let patterns = feed.patterns.iter().map(|p| &**p);
                    let scan = Scan::from_seq(&self.log, generation, &client.tenant, patterns, at.seq);
                    self.scans.insert(source, connection, scan);
                } else if let Some(scan) = scan {
                    self.scans.insert(source, connection, scan);
                }
            }
            return self.scan_local(connection, now, out);
        }
        let reply_bytes = self.page_reply_bytes();
        self.scratch.clear();
        let mut w = Writer(&mut self.scratch);
        w.u8(request::SCAN).u32(reply_bytes as u32);
        put_connection(&mut w, connection);
        w.u32(generation).u8(u8::from(at.by_position)).u64(at.seq).u32(at.taken);
        w.text(&client.tenant).u16(feed.patterns.len() as u16);
        feed.patterns.iter().for_each(|pattern| {
            w.text(pattern);
        });
        match self.mail.ask(source, self.scratch.len(), reply_bytes) {
            Some(ask) => {
                self.mail.send_ask(source, ask, &self.scratch);
                self.wake(source);
                self.set_source(connection, source, |at| at.state = ReaderState::Reading);
                1
            }
            None => {
                self.readers.queued.push_back(Reader::Pattern(connection, source));
                0
            }
        }
    }

    fn set_source(&mut self, connection: ConnectionId, source: ShardId, change: impl FnOnce(&mut Source)) {
        if let Some(feed) = self.readers.clients.get_mut(connection).and_then(|c| c.patterns.as_mut()) {
            change(&mut feed.sources[usize::from(source.0)]);
        }
    }

    /// Scans this shard's own log for one of its own clients.
    fn scan_local(&mut self, connection: ConnectionId, now: Now, out: &mut impl Outbox) -> usize {
        let own = self.config.shard;
        let mut used = 1;
        for _ in 0..SCAN_RECORDS_PER_STEP_MAX {
            let Some(scan) = self.scans.get_mut(own, connection) else { return used };
            let (cursor, generation) = (scan.cursor, scan.generation);
            match self.log.scan(cursor) {
                LogScan::Hot(record, next) => {
                    if let Wanted::From(skip) = scan.wants(record) {
                        used += record.bytes().len();
                        self.readers.skip_to(connection, own, skip);
                        if self.readers.push_scanned(connection, own, record, now, out) != Some(Pushed::Whole) {
                            return used;
                        }
                    }
                    scan.cursor = next;
                    if used > self.config.limits.page_bytes {
                        break;
                    }
                }
                LogScan::Skip(next) => {
                    if !self.readers.push_pattern_gap(connection, own, GapReason::Retention, out) {
                        return used;
                    }
                    scan.cursor = next;
                }
                LogScan::Cold(ticket) => {
                    self.reads.insert(ticket, ReadFor::Scan { shard: own, connection, generation, reply_bytes: 0 });
                    self.set_source(connection, own, |at| at.state = ReaderState::Reading);
                    return used;
                }
                LogScan::End => {
                    self.scans.remove(own, connection);
                    let committed = self.log.committed_seq();
                    self.scan_ended(connection, own, committed);
                    return used;
                }
                LogScan::Busy => {
                    self.readers.queued.push_back(Reader::Pattern(connection, own));
                    return used - 1;
                }
                LogScan::Fault(_) => {
                    self.counters.damaged_reads += 1;
                    if !self.readers.push_pattern_gap(connection, own, GapReason::Damaged, out) {
                        return used;
                    }
                    scan.cursor = self.log.scan_past(cursor);
                }
            }
        }
        self.readers.queued.push_back(Reader::Pattern(connection, own));
        used
    }

    /// A pattern client has seen everything of a source below `through`.
    fn scan_ended(&mut self, connection: ConnectionId, source: ShardId, through: u64) {
        let own = source == self.config.shard;
        let announced = self.announced;
        let Some(client) = self.readers.clients.get_mut(connection) else { return };
        let live = if own {
            Some(announced)
        } else {
            self.readers.tenants.get(&client.tenant).and_then(|tenant| tenant.live[usize::from(source.0)])
        };
        let Some(feed) = &mut client.patterns else { return };
        let at = &mut feed.sources[usize::from(source.0)];
        (at.seq, at.skip, at.by_position) = (through, 0, false);
        if live.is_none_or(|live| live <= through) {
            at.state = ReaderState::Live;
        } else {
            at.state = ReaderState::Queued;
            self.readers.queued.push_back(Reader::Pattern(connection, source));
        }
    }

    /// `SCAN`: another shard's client is behind on this shard's log.
    pub(crate) fn handle_scan(&mut self, peer: ShardId, r: &mut MailReader<'_>) -> bool {
        if !self.gathers_have_room() {
            return false;
        }
        let reply_bytes = r.u32();
        let connection = get_connection(r);
        let (generation, by_position, seq, taken) = (r.u32(), r.u8() == 1, r.u64(), r.u32());
        let tenant = r.text();
        let count = r.u16();
        let patterns: Vec<&str> = (0..count).map(|_| r.text()).collect();
        match self.scans.get_mut(peer, connection).filter(|scan| scan.generation == generation) {
            Some(scan) => scan.taken(taken as usize),
            None => {
                debug_assert!(!by_position, "a scan by position is kept until it has met the live point");
                let scan = Scan::from_seq(&self.log, generation, tenant, patterns.iter().copied(), seq);
                self.scans.insert(peer, connection, scan);
            }
        }
        self.scan_remote(peer, connection, reply_bytes);
        true
    }

    /// Fills one batch for another shard's client.
    fn scan_remote(&mut self, shard: ShardId, connection: ConnectionId, reply_bytes: u32) {
        let mut batch = Vec::new();
        let bytes_max = self.config.limits.page_bytes;
        let Some(scan) = self.scans.get_mut(shard, connection) else { return };
        let generation = scan.generation;
        scan.begin_batch();
        let (mut ended, mut gap) = (None, None);
        for _ in 0..SCAN_RECORDS_PER_STEP_MAX {
            match self.log.scan(scan.cursor) {
                LogScan::Hot(record, next) => match scan.wants(record) {
                    Wanted::From(skip) => {
                        if !batch_record(&mut batch, record.bytes(), skip, bytes_max) {
                            break;
                        }
                        scan.batched(next);
                    }
                    Wanted::No => scan.cursor = next,
                },
                // A gap comes before all records of its batch.
                LogScan::Skip(_) | LogScan::Fault(_) if !batch.is_empty() => break,
                LogScan::Skip(next) => {
                    gap = Some(GapReason::Retention);
                    scan.cursor = next;
                    scan.begin_batch();
                }
                LogScan::Fault(_) => {
                    self.counters.damaged_reads += 1;
                    gap = Some(GapReason::Damaged);
                    scan.cursor = self.log.scan_past(scan.cursor);
                    scan.begin_batch();
                }
                LogScan::Cold(ticket) if batch.is_empty() && gap.is_none() => {
                    self.reads.insert(ticket, ReadFor::Scan { shard, connection, generation, reply_bytes });
                    return;
                }
                LogScan::Cold(ticket) => {
                    self.log.release(ticket);
                    break;
                }
                LogScan::End => {
                    ended = Some(self.log.committed_seq());
                    break;
                }
                LogScan::Busy => break,
            }
        }
        if ended.is_some() && batch.is_empty() && gap.is_none() {
            self.scans.remove(shard, connection);
        } else {
            // What is in the batch may not be taken whole: the end is said when nothing is left.
            ended = None;
        }
        self.send_scanned(shard, connection, generation, reply_bytes, ended, gap, &batch);
    }

    #[allow(clippy::too_many_arguments)]
    fn send_scanned(
        &mut self,
        shard: ShardId,
        connection: ConnectionId,
        generation: u32,
        reply_bytes: u32,
        ended: Option<u64>,
        gap: Option<GapReason>,
        batch: &[u8],
    ) {
        let mut message = std::mem::take(&mut self.scratch);
        message.clear();
        let mut w = Writer(&mut message);
        w.u8(reply::SCANNED).u32(reply_bytes);
        put_connection(&mut w, connection);
        w.u32(generation).option(ended).u8(match gap {
            None => 0,
            Some(GapReason::Damaged) => 2,
            Some(_) => 1,
        });
        message.extend_from_slice(batch);
        self.mail.reply(shard, &message);
        self.wake(shard);
        self.scratch = message;
    }

    /// A cold read of a scan is there.
    #[allow(clippy::too_many_arguments)]
    fn scan_ready(
        &mut self,
        ticket: ReadTicket,
        shard: ShardId,
        connection: ConnectionId,
        generation: u32,
        reply_bytes: u32,
        now: Now,
        out: &mut impl Outbox,
    ) {
        let own = shard == self.config.shard;
        let bytes_max = self.config.limits.page_bytes;
        let scan = self.scans.get_mut(shard, connection).filter(|scan| scan.generation == generation);
        let Some(scan) = scan else {
            self.log.release(ticket);
            if !own {
                self.send_scanned(shard, connection, generation, reply_bytes, None, None, &[]);
            }
            return;
        };
        let mut batch = Vec::new();
        let (mut blocked, mut gap) = (false, None);
        if let Some(next) = self.log.scan_nothing(ticket) {
            // Only records of slices that other shards own now.
            scan.cursor = next;
        }
        match self.log.scan_records(ticket) {
            Ok(records) => {
                for (record, next) in records {
                    match scan.wants(record) {
                        Wanted::From(skip) if own => {
                            self.readers.skip_to(connection, shard, skip);
                            if self.readers.push_scanned(connection, shard, record, now, out) != Some(Pushed::Whole) {
                                blocked = true;
                                break;
                            }
                            scan.cursor = next;
                        }
                        Wanted::From(skip) => {
                            if !batch_record(&mut batch, record.bytes(), skip, bytes_max) {
                                break;
                            }
                            scan.batched(next);
                        }
                        Wanted::No => scan.cursor = next,
                    }
                }
            }
            Err(storage::log::ReadFault::Gone) => {}
            Err(_) => {
                self.counters.damaged_reads += 1;
                scan.cursor = self.log.scan_past(scan.cursor);
                scan.begin_batch();
                gap = Some(GapReason::Damaged);
            }
        }
        self.log.release(ticket);
        if own && let Some(reason) = gap {
            self.readers.owe_pattern_gap(connection, reason);
        }
        if !own {
            self.send_scanned(shard, connection, generation, reply_bytes, None, gap, &batch);
        } else if !blocked {
            self.set_source(connection, shard, |at| at.state = ReaderState::Queued);
            self.readers.queued.push_back(Reader::Pattern(connection, shard));
        }
    }

    /// `SCANNED`: records for a pattern client of this shard.
    pub(crate) fn take_scanned(&mut self, peer: ShardId, r: &mut MailReader<'_>, now: Now, out: &mut impl Outbox) {
        let connection = get_connection(r);
        let generation = r.u32();
        let ended = r.option();
        let gap = match r.u8() {
            0 => None,
            2 => Some(GapReason::Damaged),
            _ => Some(GapReason::Retention),
        };
        let Some(feed) = self.readers.clients.get_mut(connection).and_then(|c| c.patterns.as_mut()) else { return };
        if feed.generation != generation {
            return;
        }
        if let Some(reason) = gap {
            self.readers.owe_pattern_gap(connection, reason);
            if !self.readers.pay_pattern_gap(connection, peer, out) {
                return self.set_source(connection, peer, |at| at.taken = 0);
            }
        }
        let mut taken = 0;
        let mut rest = r.0;
        while rest.len() > 4 {
            let skip = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
            let Some(record) = Records(&rest[4..]).next() else { break };
            rest = &rest[4 + record.bytes().len()..];
            self.readers.skip_to(connection, peer, skip);
            if self.readers.push_scanned(connection, peer, record, now, out) != Some(Pushed::Whole) {
                self.set_source(connection, peer, |at| at.taken = taken);
                return;
            }
            taken += 1;
        }
        self.set_source(connection, peer, |at| at.taken = taken);
        match ended {
            Some(through) => self.scan_ended(connection, peer, through),
            None => {
                self.set_source(connection, peer, |at| at.state = ReaderState::Queued);
                self.readers.queued.push_back(Reader::Pattern(connection, peer));
            }
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

/// Adds a record, with the events of it that are to be skipped; `false` if the batch is full.
fn batch_record(batch: &mut Vec<u8>, record: &[u8], skip: u32, bytes_max: usize) -> bool {
    if !batch.is_empty() && batch.len() + record.len() + 4 > bytes_max {
        return false;
    }
    batch.extend_from_slice(&skip.to_le_bytes());
    batch.extend_from_slice(record);
    true
}
