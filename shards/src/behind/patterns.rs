//! Pattern clients that are behind on a source: scans of this shard's own log, and batches to and from others.
//!
//! ```text
//!  own source ──── log.scan ──────────────────────────────────────────► push
//!  other source ── SCAN {what the client can take} ─► log.scan ─► batch ─► SCANNED ─► push; the next SCAN says how many were taken
//! ```

use super::ReadFor;
use crate::delivery::patterns::{Partials, Source};
use crate::delivery::{Pushed, Reader, ReaderState};
use crate::ids::{ConnectionId, Now, ShardId};
use crate::mailbox::codec::{Reader as MailReader, Writer};
use crate::mailbox::message::{get_connection, put_connection, reply, request};
use crate::outbox::{GapReason, Outbox};
use crate::packed::Records;
use crate::scan::{BatchFor, SCAN_RECORDS_PER_STEP_MAX, Scan, Wanted};
use crate::shard::Shard;
use storage::log::{ReadTicket, Scan as LogScan};

impl Shard {
    /// One piece for a pattern client that is behind on one source.
    pub(super) fn serve_pattern(
        &mut self,
        connection: ConnectionId,
        source: ShardId,
        now: Now,
        out: &mut impl Outbox,
    ) -> usize {
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
        // No more than the client can take: what is not taken is read again.
        let records_max = client.credit_left().min(u64::from(u32::MAX)) as u32;
        let bytes_max = out.room(connection).min(self.config.limits.page_bytes) as u32;
        let reply_bytes = self.page_reply_bytes();
        self.scratch.clear();
        let mut w = Writer(&mut self.scratch);
        w.u8(request::SCAN).u32(reply_bytes as u32).u32(records_max).u32(bytes_max);
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
                        if self.readers.push_scanned(connection, own, record, skip, now, out) != Some(Pushed::Whole) {
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
                    let wanted = BatchFor {
                        shard: own,
                        connection,
                        generation,
                        reply_bytes: 0,
                        records_max: u32::MAX,
                        bytes_max: u32::MAX,
                    };
                    self.reads.insert(ticket, ReadFor::Scan(wanted));
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
        (at.seq, at.partial, at.by_position) = (through, Partials::default(), false);
        if live.is_none_or(|live| live <= through) {
            at.state = ReaderState::Live;
            if feed.sources.iter().all(|at| at.state == ReaderState::Live) {
                feed.passed.forget();
            }
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
        let (reply_bytes, records_max, bytes_max) = (r.u32(), r.u32(), r.u32());
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
        self.scan_remote(BatchFor { shard: peer, connection, generation, reply_bytes, records_max, bytes_max });
        true
    }

    /// Fills one batch for another shard's client.
    fn scan_remote(&mut self, wanted: BatchFor) {
        let mut batch = Vec::new();
        let BatchFor { shard, connection, .. } = wanted;
        let Some(scan) = self.scans.get_mut(shard, connection) else { return };
        scan.begin_batch();
        let (mut ended, mut gap) = (None, None);
        for _ in 0..SCAN_RECORDS_PER_STEP_MAX {
            match self.log.scan(scan.cursor) {
                LogScan::Hot(record, next) => match scan.wants(record) {
                    Wanted::From(skip) => {
                        if !wanted.add(&mut batch, scan.batch_records(), record.bytes(), skip) {
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
                    self.reads.insert(ticket, ReadFor::Scan(wanted));
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
        self.send_scanned(wanted, ended, gap, &batch);
    }

    fn send_scanned(&mut self, wanted: BatchFor, ended: Option<u64>, gap: Option<GapReason>, batch: &[u8]) {
        let BatchFor { shard, connection, generation, reply_bytes, .. } = wanted;
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
    pub(super) fn scan_ready(&mut self, ticket: ReadTicket, wanted: BatchFor, now: Now, out: &mut impl Outbox) {
        let BatchFor { shard, connection, generation, .. } = wanted;
        let own = shard == self.config.shard;
        let scan = self.scans.get_mut(shard, connection).filter(|scan| scan.generation == generation);
        let Some(scan) = scan else {
            self.log.release(ticket);
            if !own {
                self.send_scanned(wanted, None, None, &[]);
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
                            if self.readers.push_scanned(connection, shard, record, skip, now, out)
                                != Some(Pushed::Whole)
                            {
                                blocked = true;
                                break;
                            }
                            scan.cursor = next;
                        }
                        Wanted::From(skip) => {
                            if !wanted.add(&mut batch, scan.batch_records(), record.bytes(), skip) {
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
            self.send_scanned(wanted, None, gap, &batch);
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
            if self.readers.push_scanned(connection, peer, record, skip, now, out) != Some(Pushed::Whole) {
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
}
