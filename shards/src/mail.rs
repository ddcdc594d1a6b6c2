//! Mail taken in: replies first, then requests, a bounded number from each peer in each turn.

use crate::command::Policy;
use crate::commands::subscribe::{Attached, attached};
use crate::commands::{Call, Outcome, subscribe_patterns};
use crate::delivery::patterns::Covered;
use crate::delivery::{ReaderState, SubscriptionId};
use crate::entries::page::EntriesPage;
use crate::gather::{Gather, GatherFor, Page, PageEnd};
use crate::ids::{Now, PartitionId, ShardId};
use crate::mailbox::LaneKind;
use crate::mailbox::codec::Reader;
use crate::mailbox::message::{
    get_connection, get_from, get_id, get_refused, get_reply, presence, reply, request, with_command,
};
use crate::outbox::{GapReason, Outbox};
use crate::packed::Records;
use crate::run::Run;
use crate::sessions::parked::{Known, Work};
use crate::sessions::{Asker, Origin, get_asker};
use crate::shard::Shard;
use crate::streams::notices;
use crate::traces::Stamps;
use crate::volatile;

impl Shard {
    /// Takes mail in. Returns the messages handled.
    pub fn collect(&mut self, now: Now, out: &mut impl Outbox) -> usize {
        let peers = self.mail.peers();
        let mut handled = 0;
        for kind in [LaneKind::Reply, LaneKind::Request] {
            for step in 0..peers {
                // Begin with another peer each turn: none is always the last one when room runs out.
                let peer = ShardId((self.first_peer + step) % peers);
                for _ in 0..self.config.limits.mail_per_peer_per_turn_max {
                    if !self.has_effect_room(2) {
                        return handled;
                    }
                    let Some(receiver) = self.mail.receiver(peer, kind) else { break };
                    let Some(message) = receiver.take() else { break };
                    let sent_us = receiver.sent_us();
                    let done = match kind {
                        LaneKind::Reply => {
                            self.handle_reply(peer, &message, now, out);
                            true
                        }
                        LaneKind::Request => self.handle_request(peer, &message, now, out),
                    };
                    if let Some(receiver) = self.mail.receiver(peer, kind) {
                        receiver.restore(message, done);
                    }
                    if !done {
                        break;
                    }
                    out.mail_waited(self.mail.since_us(sent_us));
                    handled += 1;
                }
            }
        }
        self.first_peer = (self.first_peer + 1) % peers.max(1);
        handled
    }

    /// `false`: no room for its consequences yet, it stays in its lane.
    fn handle_request(&mut self, peer: ShardId, message: &[u8], now: Now, out: &mut impl Outbox) -> bool {
        let mut r = Reader(message);
        let kind = r.u8();
        match kind {
            request::FORWARD => {
                let reply_bytes = r.u32();
                let stamps = Stamps { taken_ns: self.traces.now_ns(), ..Stamps::get(&mut r) };
                let origin = Origin::Remote(peer, get_connection(&mut r), reply_bytes);
                let id = get_id(&mut r);
                let asker = get_asker(&mut r, origin, id);
                let encoded = r.0;
                self.traces.begin(stamps);
                let (partition, outcome) = with_command(&mut r, |command| {
                    let session = command.session().unwrap_or_default();
                    let partition = self.log.partition_id(&asker.tenant, session);
                    let call = Call { asker: &asker, partition, session, known: &Known::default(), now };
                    (partition, self.execute(call, &command))
                });
                let taken = match outcome {
                    Outcome::Done => true,
                    Outcome::Later => false,
                    Outcome::Park => self.park(asker, partition, Work::Command(encoded.into())),
                };
                self.traces.appended(self.log.next_seq());
                self.traces.begin(Stamps::default());
                taken
            }
            request::ATTACH => {
                if !self.parked.has_room(self.config.limits.parked_bytes_max) {
                    return false;
                }
                let reply_bytes = r.u32();
                let origin = Origin::Remote(peer, get_connection(&mut r), reply_bytes);
                let id = get_id(&mut r);
                let tenant = r.text();
                let session = r.text();
                let from = get_from(&mut r);
                let subscription = SubscriptionId { slot: r.u32(), generation: r.u32() };
                let asker = Asker { origin, id, tenant: tenant.into(), client_id: "".into(), rights: None };
                self.attach_or_park(asker, subscription, session, from, now);
                true
            }
            request::DETACH => {
                self.interests.detach(PartitionId(r.u128()), peer);
                true
            }
            request::FETCH => {
                if !self.gathers_have_room() {
                    return false;
                }
                let reply_bytes = r.u32();
                let subscription = SubscriptionId { slot: r.u32(), generation: r.u32() };
                let (tenant, session, from, bytes) = (r.text(), r.text(), r.u64(), r.u32());
                let partition = self.log.partition_id(tenant, session);
                let purpose = GatherFor::Fetch { shard: peer, subscription, reply_bytes };
                let bytes = (bytes as usize).min(self.config.limits.page_bytes);
                self.gather(Gather::new(purpose, partition, tenant.into(), session, from, u32::MAX, bytes));
                true
            }
            request::ATTACH_PATTERNS => {
                subscribe_patterns::attach_from(self, peer, &mut r);
                true
            }
            request::DETACH_PATTERNS => {
                let connection = get_connection(&mut r);
                let generation = r.u32();
                self.interests.detach_patterns(r.text(), peer);
                self.scans.remove_generation(peer, connection, generation);
                true
            }
            request::SCAN => self.handle_scan(peer, &mut r),
            request::EVENTS => {
                self.take_events(&mut r, now, out);
                true
            }
            _ if presence::is_kind(kind) => {
                self.presence.look(now);
                self.handle_presence(kind, peer, &mut r);
                true
            }
            request::WATCH => {
                self.handle_watch(peer, &mut r);
                true
            }
            request::NEWS => {
                self.handle_news(&mut r);
                true
            }
            request::PULL => {
                self.handle_pull(peer, &mut r);
                true
            }
            request::HINT => {
                self.handle_hint(peer, &mut r);
                true
            }
            request::CLAIM => {
                self.handle_claim(peer, &mut r, now);
                true
            }
            request::RELEASE => {
                self.handle_release(&mut r, now);
                true
            }
            request::FREE => {
                self.handle_free(&mut r);
                true
            }
            request::DEFINE => {
                self.handle_define(peer, &mut r);
                true
            }
            request::DEFINED => {
                self.handle_defined(peer, &mut r);
                true
            }
            request::LEND_ROOM => {
                self.handle_lend_room(peer, &mut r, now);
                true
            }
            request::REPAY_ROOM => {
                self.handle_repay_room(&mut r, now);
                true
            }
            request::KEEP => self.handle_keep(peer, &mut r, now),
            request::LEND => {
                self.handle_lend(peer, &mut r, now);
                true
            }
            request::REPAY => {
                self.handle_repay(&mut r, now);
                true
            }
            request::CENSUS => {
                self.handle_census(peer, r.u64(), now);
                true
            }
            request::FENCE => self.fence(get_connection(&mut r)),
            request::ADVANCE => {
                let (partition, epoch, to) = (PartitionId(r.u128()), r.u64(), r.u64());
                self.readers.advance(partition, epoch, to);
                true
            }
            request::NOTICE => {
                let mail = notices::read(&mut r);
                self.readers.give_notice(&mail, out);
                true
            }
            request::VOLATILE => {
                let mail = volatile::read(&mut r);
                self.readers.offer_volatile(&mail, out);
                true
            }
            _ => {
                debug_assert!(false, "unknown request {kind}");
                true
            }
        }
    }

    /// Committed records of another shard.
    fn take_events(&mut self, r: &mut Reader<'_>, now: Now, out: &mut impl Outbox) {
        let source = ShardId(r.u16());
        let tenants = r.u16();
        let mut continued: Vec<&str> = Vec::new();
        for _ in 0..tenants {
            let (tenant, from, through) = (r.text(), r.u64(), r.u64());
            if self.readers.cover(tenant, source, from, through) == Covered::Continues {
                continued.push(tenant);
            }
        }
        let mut run = Run::default();
        for record in Records(r.0) {
            if !run.goes_on_with(record) {
                self.readers.offer(run.records(), now, out);
                run.begin();
            }
            run.take(record);
            if continued.contains(&record.tenant()) {
                self.readers.offer(run.records(), now, out);
                run.begin();
                self.readers.offer_patterns(source, record, now, out);
            }
        }
        self.readers.offer(run.records(), now, out);
    }

    fn handle_reply(&mut self, peer: ShardId, message: &[u8], now: Now, out: &mut impl Outbox) {
        let mut r = Reader(message);
        let (kind, reply_bytes) = (r.u8(), r.u32());
        self.mail.answered(peer, reply_bytes as usize);
        match kind {
            reply::COMMAND => {
                let connection = get_connection(&mut r);
                let id = get_id(&mut r);
                let reply = get_reply(&mut r);
                self.answer(Origin::Local(connection), id, &reply);
            }
            reply::ATTACHED => {
                let connection = get_connection(&mut r);
                let id = get_id(&mut r);
                let subscription = SubscriptionId { slot: r.u32(), generation: r.u32() };
                let partition = PartitionId(r.u128());
                let found = if r.u8() == 1 {
                    Ok(Attached {
                        epoch: r.u64(),
                        next: r.u64(),
                        earliest: r.u64(),
                        live: r.u64(),
                        latest: r.u8() == 1,
                        join: r.u64(),
                    })
                } else {
                    Err(get_refused(&mut r))
                };
                attached(self, peer, connection, id, subscription, partition, found);
            }
            reply::FETCHED => {
                let subscription = SubscriptionId { slot: r.u32(), generation: r.u32() };
                let end = match r.u8() {
                    1 => PageEnd::End,
                    2 => PageEnd::Gap(r.u64()),
                    3 => PageEnd::Damaged(r.u64()),
                    _ => PageEnd::More,
                };
                self.take_fetched(subscription, end, r.0, now, out);
            }
            reply::HISTORY => {
                let connection = get_connection(&mut r);
                let id = get_id(&mut r);
                let session = r.text().into();
                let (epoch, from, limit, next, tail) = (r.u64(), r.u64(), r.u32(), r.u64(), r.u64());
                let records = r.0.to_vec();
                self.pages.push_back(Page { connection, id, session, epoch, from, limit, next, tail, records });
            }
            reply::ENTRIES => {
                let connection = get_connection(&mut r);
                let id = get_id(&mut r);
                let page = EntriesPage::get(&mut r);
                self.take_entries(connection, id, Box::new(page));
            }
            reply::CLAIMED => self.handle_claimed(peer, &mut r, now),
            reply::LENT_ROOM => self.take_lent_room(&mut r, now),
            reply::DEAD => {
                let connection = get_connection(&mut r);
                let id = get_id(&mut r);
                self.take_dead(connection, id, &mut r);
            }
            reply::PATTERNS_ATTACHED => subscribe_patterns::attached_from(self, peer, &mut r),
            reply::LENT => self.take_lent(&mut r, now),
            reply::SCANNED => self.take_scanned(peer, &mut r, now, out),
            _ => debug_assert!(false, "unknown reply {kind}"),
        }
    }

    /// Records fetched for a subscription that is behind.
    fn take_fetched(
        &mut self,
        subscription: SubscriptionId,
        end: PageEnd,
        records: &[u8],
        now: Now,
        out: &mut impl Outbox,
    ) {
        if self.readers.subscription(subscription).is_none_or(|s| s.state != ReaderState::Reading) {
            return;
        }
        if self.readers.subscription(subscription).is_some_and(|s| s.policy == Policy::Latest) {
            self.readers.newest.clear();
            Records(records).for_each(|record| self.readers.newest.note(record));
        }
        for record in Records(records) {
            if self.readers.push_read(subscription, record, now, out) != Some(crate::delivery::Pushed::Whole) {
                return;
            }
        }
        let passed = match end {
            PageEnd::More | PageEnd::End => true,
            PageEnd::Gap(to) => self.readers.push_gap(subscription, to, GapReason::Retention, out),
            PageEnd::Damaged(to) => self.readers.push_gap(subscription, to, GapReason::Damaged, out),
        };
        if passed {
            self.readers.settle(subscription, out);
        }
    }
}
