//! Delivery: cursors over committed events, for the clients of this shard's connections.
//!
//! ```text
//!                 committed records, in order, from the shard itself or by mail
//!                                        │ offer
//!            cursor = live point         ▼              no room, no credit, or behind
//!  Live ◄──────────────────────── Feed of a partition ───────────────────────► Blocked / Queued
//!    ▲                                                                              │
//!    └───────────────── meets the live point again ◄── read from the log ◄──────────┘
//! ```
//! A subscription is a cursor: the next offset it wants. While it equals the feed's live point, a committed event is
//! pushed as it passes. Otherwise the cursor stands still and is served from the log, in turn with all others that are
//! behind, until it meets the live point. Nothing is queued for it anywhere.
//!
//! A pattern client has one such cursor per source shard, counted in the source's log order.

pub(crate) mod client;
pub(crate) mod elsewhere;
pub(crate) mod ledger;
mod passed;
pub(crate) mod patterns;

use crate::clients::state::KeptSession;
use crate::command::Policy;
use crate::fair::{Queued, egress_cost};
use crate::ids::{ConnectionId, Epoch, Now, Offset, PartitionId, ShardId};
use crate::outbox::{GAP_FRAME_BYTES_MAX, Gap, GapReason, Outbox, event_bytes_max};
use crate::streams::gathered::{Gathered, Newest};
use client::{Client, Clients, NONE};
use elsewhere::Delivered;
use hashbrown::HashMap;
use passed::Slices;
use patterns::TenantFeeds;
use storage::few::Few;
use storage::ids::LogSeq;
use storage::record::{EventView, Kind, RecordView};

/// Hasher for keys that are keyed hashes already.
pub(crate) type ByPartition<V> = HashMap<PartitionId, V, std::hash::BuildHasherDefault<PartitionHasher>>;

/// Takes the low 64 bits of a partition id: it is a keyed hash itself.
#[derive(Default, Clone, Copy)]
pub(crate) struct PartitionHasher(u64);

impl std::hash::Hasher for PartitionHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = self.0.rotate_left(5) ^ u64::from_le_bytes(word);
        }
    }
    fn write_u128(&mut self, value: u128) {
        self.0 = value as u64;
    }
}

/// Names a subscription: slot and generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SubscriptionId {
    pub slot: u32,
    pub generation: u32,
}

/// A client's interest in one session.
pub(crate) struct Subscription {
    pub generation: u32,
    pub connection: ConnectionId,
    pub feed: u32,
    /// First offset it covers: a pattern of the same client delivers what lies before.
    pub start: Offset,
    /// Next offset it wants.
    pub cursor: Offset,
    /// Events below it that the client's patterns match were left to this subscription by its pattern feed.
    pub skipped: Offset,
    pub state: ReaderState,
    pub policy: Policy,
    pub next_of_client: u32,
    /// What was read ahead of the cursor.
    pub gathered: Option<Box<Gathered>>,
}

impl Subscription {
    /// Are its events read by a policy?
    pub fn gathers(&self) -> bool {
        self.policy != Policy::Lossless || self.gathered.is_some()
    }

    /// Does it read what streams said before it begins?
    pub fn is_joining(&self) -> bool {
        self.gathered.as_ref().is_some_and(|gathered| gathered.is_joining())
    }

    /// Next offset to be read for it.
    pub fn reads_from(&self) -> Offset {
        self.gathered.as_ref().map_or(self.cursor, |gathered| gathered.next())
    }
}

/// Where a cursor stands with respect to its source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ReaderState {
    /// The owner has not answered yet.
    Attaching,
    /// At the live point.
    Live,
    /// Behind, waiting for its turn.
    Queued,
    /// Behind, a read or a fetch is under way.
    Reading,
    /// Behind, its client has no room or no credit.
    Blocked,
}

/// A partition with at least one subscriber on this shard.
pub(crate) struct Feed {
    pub partition: PartitionId,
    pub session: Box<str>,
    pub owner: ShardId,
    pub epoch: Epoch,
    /// Everything below was offered to live subscribers here. `None` until the owner said where it begins.
    pub live_next: Option<Offset>,
    pub subscriptions: Few<u32>,
}

const _: () = assert!(size_of::<Subscription>() <= 56 && size_of::<Feed>() <= 80);

/// A cursor that is behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reader {
    Subscription(SubscriptionId),
    Pattern(ConnectionId, ShardId),
}

/// All cursors of one shard.
pub(crate) struct Readers {
    pub clients: Clients,
    pub subscriptions: slab::Slab<Subscription>,
    pub feeds: slab::Slab<Feed>,
    pub feed_of: ByPartition<u32>,
    pub tenants: TenantFeeds,
    /// Cursors that are behind and wait for their turn, each at most once.
    pub queued: Queued,
    /// Clients with a blocked reader.
    pub blocked: Vec<ConnectionId>,
    /// Subscriptions whose owner has answered; their cursors move once the reply is on its way.
    pub attached: Vec<SubscriptionId>,
    /// Pattern clients all of whose sources have answered, likewise.
    pub patterns_attached: Vec<ConnectionId>,
    /// Gaps that ended subscriptions leave behind, to be said as soon as there is room.
    pub gaps_owed: Vec<GapOwed>,
    /// Partitions whose last subscriber left and whose remote owner must be told.
    pub detach_due: Vec<(PartitionId, ShardId)>,
    /// Of the batch that is being read for a subscription with policy `latest`.
    pub newest: Newest,
    /// Bytes gathered by all subscriptions.
    pub gathered_bytes: usize,
    /// Largest frame of deltas.
    pub frame_bytes_max: usize,
    /// What was offered to pattern feeds.
    pub offered: Slices,
    generation: u32,
}

/// What an ended subscription had taken over from its client's pattern feed and not delivered.
pub(crate) struct GapOwed {
    connection: ConnectionId,
    session: Box<str>,
    epoch: Epoch,
    from: Offset,
    to: Offset,
    reason: GapReason,
}

/// How far a record got with one cursor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pushed {
    /// All of it.
    Whole,
    /// The client has no room or credit for what is left.
    Blocked,
}

impl Readers {
    pub fn new(frame_bytes_max: usize, connections_max: usize) -> Self {
        Self {
            clients: Clients::with_room(connections_max),
            subscriptions: slab::Slab::new(),
            feeds: slab::Slab::new(),
            feed_of: HashMap::default(),
            tenants: TenantFeeds::default(),
            queued: Queued::new(),
            blocked: Vec::new(),
            attached: Vec::new(),
            patterns_attached: Vec::new(),
            gaps_owed: Vec::new(),
            detach_due: Vec::new(),
            newest: Newest::default(),
            gathered_bytes: 0,
            frame_bytes_max,
            offered: Slices::default(),
            generation: 0,
        }
    }

    /// Enters a subscription that waits for its owner's answer.
    pub fn subscribe(
        &mut self,
        connection: ConnectionId,
        partition: PartitionId,
        owner: ShardId,
        session: &str,
        policy: Policy,
    ) -> SubscriptionId {
        let feed = match self.feed_of.get(&partition) {
            Some(feed) => *feed,
            None => {
                let feed = self.feeds.insert(Feed {
                    partition,
                    session: session.into(),
                    owner,
                    epoch: 0,
                    live_next: None,
                    subscriptions: Few::new(),
                }) as u32;
                self.feed_of.insert(partition, feed);
                feed
            }
        };
        self.detach_due.retain(|(due, _)| *due != partition);
        self.generation = self.generation.wrapping_add(1);
        let next_of_client = self.clients.get(connection).map_or(NONE, |c| c.subscriptions);
        let slot = self.subscriptions.insert(Subscription {
            generation: self.generation,
            connection,
            feed,
            start: Offset::MAX,
            cursor: Offset::MAX,
            skipped: 0,
            state: ReaderState::Attaching,
            policy,
            next_of_client,
            gathered: None,
        }) as u32;
        if let Some(client) = self.clients.get_mut(connection) {
            client.subscriptions = slot;
            client.subscription_count += 1;
            if let Some(life) = &mut client.life {
                life.sessions_bytes += KeptSession::bytes(session) as u32;
            }
        }
        self.feeds[feed as usize].subscriptions.push(slot);
        SubscriptionId { slot, generation: self.generation }
    }

    /// The subscription, while it lives.
    pub fn subscription(&self, id: SubscriptionId) -> Option<&Subscription> {
        self.subscriptions.get(id.slot as usize).filter(|s| s.generation == id.generation)
    }

    /// The subscription, while it lives.
    pub fn subscription_mut(&mut self, id: SubscriptionId) -> Option<&mut Subscription> {
        self.subscriptions.get_mut(id.slot as usize).filter(|s| s.generation == id.generation)
    }

    /// The client's subscription to a partition.
    pub fn find(&self, connection: ConnectionId, partition: PartitionId) -> Option<SubscriptionId> {
        let mut slot = self.clients.get(connection)?.subscriptions;
        while slot != NONE {
            let subscription = &self.subscriptions[slot as usize];
            if self.feeds[subscription.feed as usize].partition == partition {
                return Some(SubscriptionId { slot, generation: subscription.generation });
            }
            slot = subscription.next_of_client;
        }
        None
    }

    /// Ends a subscription at its client's word. What it delivered, the client's pattern feed must not deliver again; what
    /// that feed left to it and it did not deliver is said as a gap.
    pub fn end(&mut self, id: SubscriptionId) {
        let Some(subscription) = self.subscription(id) else { return };
        let Subscription { connection, feed, start, cursor, skipped, .. } = *subscription;
        let feed = &self.feeds[feed as usize];
        let range = Delivered { partition: feed.partition, source: feed.owner, from: start, to: cursor };
        if skipped > cursor {
            let (session, epoch) = (feed.session.clone(), feed.epoch);
            self.owe_gap(connection, session, epoch, cursor, skipped, GapReason::Policy);
        }
        if let Some(client) = self.clients.get_mut(connection) {
            match (&mut client.patterns, &mut client.life) {
                (Some(patterns), _) => patterns.delivered_elsewhere(range),
                (None, Some(life)) => life.delivered_elsewhere(range),
                _ => {}
            }
        }
        self.unsubscribe(id);
    }

    /// A gap to be said to a client as soon as there is room.
    pub fn owe_gap(
        &mut self,
        connection: ConnectionId,
        session: Box<str>,
        epoch: Epoch,
        from: Offset,
        to: Offset,
        reason: GapReason,
    ) {
        self.gaps_owed.push(GapOwed { connection, session, epoch, from, to, reason });
    }

    /// Says the gaps that are owed, where there is room.
    pub fn pay_gaps(&mut self, out: &mut impl Outbox) {
        let clients = &self.clients;
        self.gaps_owed.retain(|owed| {
            let room = out.room(owed.connection) >= GAP_FRAME_BYTES_MAX + owed.session.len();
            if room {
                let GapOwed { connection, session, epoch, from, to, reason } = owed;
                out.gap(*connection, &Gap { session, epoch: *epoch, from: *from, to: *to, reason: *reason });
            }
            !room && clients.get(owed.connection).is_some()
        });
    }

    /// Ends a subscription. The last of a feed takes the feed with it.
    pub fn unsubscribe(&mut self, id: SubscriptionId) {
        let Some(subscription) = self.subscription(id) else { return };
        let (connection, feed_slot, next) = (subscription.connection, subscription.feed, subscription.next_of_client);
        if let Some(client) = self.clients.get_mut(connection) {
            client.subscription_count -= 1;
            if let Some(life) = &mut client.life {
                life.ledger.forget(id.slot);
                let bytes = KeptSession::bytes(&self.feeds[feed_slot as usize].session) as u32;
                life.sessions_bytes -= bytes.min(life.sessions_bytes);
            }
            if client.subscriptions == id.slot {
                client.subscriptions = next;
            } else {
                let mut slot = client.subscriptions;
                while slot != NONE {
                    let here = &mut self.subscriptions[slot as usize];
                    if here.next_of_client == id.slot {
                        here.next_of_client = next;
                        break;
                    }
                    slot = here.next_of_client;
                }
            }
        }
        self.drop_subscription(id.slot, feed_slot);
    }

    fn drop_subscription(&mut self, slot: u32, feed_slot: u32) {
        let gone = self.subscriptions.remove(slot as usize);
        self.gathered_bytes -= gone.gathered.map_or(0, |gathered| gathered.bytes());
        let feed = &mut self.feeds[feed_slot as usize];
        if let Some(at) = feed.subscriptions.iter().position(|s| *s == slot) {
            feed.subscriptions.swap_remove(at);
        }
        if feed.subscriptions.is_empty() {
            let feed = self.feeds.remove(feed_slot as usize);
            self.feed_of.remove(&feed.partition);
            self.detach_due.push((feed.partition, feed.owner));
        }
    }

    /// Takes a client and all it listens to out; the sources of its pattern feed, if it had one, are returned.
    pub fn remove_client(&mut self, connection: ConnectionId) -> Option<Client> {
        let client = self.clients.remove(connection)?;
        let mut slot = client.subscriptions;
        while slot != NONE {
            let (next, feed) =
                (self.subscriptions[slot as usize].next_of_client, self.subscriptions[slot as usize].feed);
            self.drop_subscription(slot, feed);
            slot = next;
        }
        if client.patterns.is_some() {
            self.tenants.remove(&client.tenant, connection);
        }
        Some(client)
    }

    /// Offers committed records of one session, each beginning where the one before ends, to its live subscribers. One
    /// subscriber takes all of them before the next: what is known of it is fetched into the cache once.
    pub fn offer(&mut self, run: &[RecordView<'_>], now: Now, out: &mut impl Outbox) {
        let Some(newest) = run.last() else { return };
        let Some(feed) = self.feed_of.get(&newest.partition()).map(|f| &mut self.feeds[*f as usize]) else { return };
        let next = newest.next_offset();
        let live = feed.live_next.unwrap_or(0);
        let seen = run.iter().take_while(|record| record.next_offset() <= live).count();
        let Some(first) = run.get(seen).map(|record| record.offset()) else { return };
        feed.live_next = Some(next);
        feed.epoch = newest.epoch();
        for slot in &feed.subscriptions {
            let subscription = &mut self.subscriptions[*slot as usize];
            if subscription.state != ReaderState::Live {
                continue;
            }
            let id = SubscriptionId { slot: *slot, generation: subscription.generation };
            if next <= subscription.cursor {
                // It starts further on, or a fetch ran ahead of the live stream.
                continue;
            }
            if subscription.cursor < first {
                // The live stream skipped: mail was lost to a full lane. The log has what is missing.
                subscription.state = ReaderState::Queued;
                self.queued.push_back(Reader::Subscription(id));
                continue;
            }
            let Some(client) = self.clients.get_mut(subscription.connection) else { continue };
            if !self.queued.line.may_pass(client.place.slot) {
                // Its tenant has had its share of this turn's egress: the cursor goes on in its turn.
                subscription.state = ReaderState::Queued;
                self.queued.push_back(Reader::Subscription(id));
                continue;
            }
            let before = client.bytes_delivered();
            for record in &run[seen..] {
                if record.next_offset() <= subscription.cursor {
                    continue;
                }
                if push(client, *slot, subscription.connection, &mut subscription.cursor, *record, now, out)
                    == Pushed::Blocked
                {
                    subscription.state = ReaderState::Blocked;
                    block(client, subscription.connection, &mut self.blocked);
                    break;
                }
            }
            self.queued.line.charge(client.place.slot, egress_cost(client.bytes_delivered() - before));
        }
    }

    /// The live stream of a partition moved to `to` without its records: live subscribers are behind now.
    pub fn advance(&mut self, partition: PartitionId, epoch: Epoch, to: Offset) {
        let Some(feed) = self.feed_of.get(&partition).map(|f| &mut self.feeds[*f as usize]) else { return };
        if feed.live_next.is_some_and(|live| to <= live) {
            return;
        }
        feed.live_next = Some(to);
        feed.epoch = epoch;
        for slot in &feed.subscriptions {
            let subscription = &mut self.subscriptions[*slot as usize];
            if subscription.state == ReaderState::Live && subscription.cursor < to {
                subscription.state = ReaderState::Queued;
                let id = SubscriptionId { slot: *slot, generation: subscription.generation };
                self.queued.push_back(Reader::Subscription(id));
            }
        }
    }

    /// Pushes a record that was read for one subscription; its cursor moves.
    pub fn push_read(
        &mut self,
        id: SubscriptionId,
        record: RecordView<'_>,
        now: Now,
        out: &mut impl Outbox,
    ) -> Option<Pushed> {
        let subscription = self.subscriptions.get_mut(id.slot as usize).filter(|s| s.generation == id.generation)?;
        if subscription.gathers() || record.kind() == Kind::Text {
            return self.gather(id, record, now, out);
        }
        let client = self.clients.get_mut(subscription.connection)?;
        if record.next_offset() <= subscription.cursor {
            return Some(Pushed::Whole);
        }
        let pushed = push(client, id.slot, subscription.connection, &mut subscription.cursor, record, now, out);
        if pushed == Pushed::Blocked {
            subscription.state = ReaderState::Blocked;
            block(client, subscription.connection, &mut self.blocked);
        }
        Some(pushed)
    }

    /// Says a gap to one subscription and moves its cursor past it. `false`: no room, it is blocked now.
    pub fn push_gap(&mut self, id: SubscriptionId, to: Offset, reason: GapReason, out: &mut impl Outbox) -> bool {
        if self.joins_behind(id, to) {
            return true;
        }
        if !self.flush_gathered(id, out) {
            return false;
        }
        let Some(subscription) = self.subscriptions.get_mut(id.slot as usize).filter(|s| s.generation == id.generation)
        else {
            return false;
        };
        let Some(client) = self.clients.get_mut(subscription.connection) else { return false };
        let feed = &self.feeds[subscription.feed as usize];
        if out.room(subscription.connection) < GAP_FRAME_BYTES_MAX + feed.session.len() {
            subscription.state = ReaderState::Blocked;
            block(client, subscription.connection, &mut self.blocked);
            return false;
        }
        let gap = Gap { session: &feed.session, epoch: feed.epoch, from: subscription.cursor, to, reason };
        out.gap(subscription.connection, &gap);
        if let Some(life) = &mut client.life {
            life.ledger.skipped(id.slot, subscription.cursor);
        }
        subscription.cursor = to;
        true
    }

    /// A cursor that was served: live if it met the live point, else in line again.
    pub fn settle(&mut self, id: SubscriptionId, out: &mut impl Outbox) {
        if self.subscription(id).is_some_and(|s| s.gathered.is_some()) && !self.settle_gathered(id, out) {
            return;
        }
        let Some(subscription) = self.subscriptions.get_mut(id.slot as usize).filter(|s| s.generation == id.generation)
        else {
            return;
        };
        let live = self.feeds[subscription.feed as usize].live_next;
        if subscription.gathered.is_none() && live.is_some_and(|live| subscription.cursor >= live) {
            subscription.state = ReaderState::Live;
        } else {
            subscription.state = ReaderState::Queued;
            self.queued.push_back(Reader::Subscription(id));
        }
    }

    /// Cursors whose replies have left begin to move.
    pub fn settle_attached(&mut self, own: ShardId, announced: LogSeq, out: &mut impl Outbox) {
        while let Some(id) = self.attached.pop() {
            self.settle(id, out);
        }
        while let Some(connection) = self.patterns_attached.pop() {
            self.settle_patterns(connection, own, announced, out);
        }
    }

    /// The client has room or credit again: what it blocked goes in line.
    pub fn unblock(&mut self, connection: ConnectionId) {
        let Some(client) = self.clients.get_mut(connection) else { return };
        if !std::mem::take(&mut client.blocked) {
            return;
        }
        let mut slot = client.subscriptions;
        while slot != NONE {
            let subscription = &mut self.subscriptions[slot as usize];
            if subscription.state == ReaderState::Blocked {
                subscription.state = ReaderState::Queued;
                let id = SubscriptionId { slot, generation: subscription.generation };
                self.queued.push_back(Reader::Subscription(id));
            }
            slot = subscription.next_of_client;
        }
        if let Some(patterns) = &mut client.patterns {
            patterns.unblock(connection, &mut self.queued);
        }
    }

    /// Tries every blocked client again: room can also return without its own queue draining, when a pool that all
    /// share has chunks again.
    pub fn unblock_all(&mut self, out_of: &mut Vec<ConnectionId>) {
        std::mem::swap(&mut self.blocked, out_of);
        for connection in out_of.drain(..) {
            self.unblock(connection);
        }
    }
}

/// Notes that a client must be tried again.
pub(crate) fn block(client: &mut Client, connection: ConnectionId, blocked: &mut Vec<ConnectionId>) {
    if !client.blocked {
        client.blocked = true;
        blocked.push(connection);
    }
}

/// Pushes what a record holds from `cursor` on, event by event; stops where the client has no room or credit.
pub(crate) fn push(
    client: &mut Client,
    slot: u32,
    connection: ConnectionId,
    cursor: &mut Offset,
    record: RecordView<'_>,
    now: Now,
    out: &mut impl Outbox,
) -> Pushed {
    if record.kind() == Kind::Span {
        return push_skip(client, slot, cursor, record, record.next_offset(), connection, out);
    }
    for event in record.events() {
        if event.offset() < *cursor {
            continue;
        }
        if push_event(client, slot, connection, cursor, &event, now, out) == Pushed::Blocked {
            return Pushed::Blocked;
        }
    }
    Pushed::Whole
}

/// Pushes the event at `cursor`.
#[inline]
pub(crate) fn push_event(
    client: &mut Client,
    slot: u32,
    connection: ConnectionId,
    cursor: &mut Offset,
    event: &EventView<'_>,
    now: Now,
    out: &mut impl Outbox,
) -> Pushed {
    if is_expired(event, now) {
        return push_skip(client, slot, cursor, event.record(), event.offset() + 1, connection, out);
    }
    if !client.has_credit() || out.room(connection) < event_bytes_max(event) {
        return Pushed::Blocked;
    }
    client.delivered(out.event(connection, event));
    if let Some(life) = &mut client.life {
        life.ledger.delivered(slot, event.offset());
    }
    *cursor = event.offset() + 1;
    Pushed::Whole
}

pub(crate) fn push_skip(
    client: &mut Client,
    slot: u32,
    cursor: &mut Offset,
    record: RecordView<'_>,
    to: Offset,
    connection: ConnectionId,
    out: &mut impl Outbox,
) -> Pushed {
    if out.room(connection) < GAP_FRAME_BYTES_MAX + record.session().len() {
        return Pushed::Blocked;
    }
    let gap = Gap { session: record.session(), epoch: record.epoch(), from: *cursor, to, reason: GapReason::Expired };
    out.gap(connection, &gap);
    if let Some(life) = &mut client.life {
        life.ledger.skipped(slot, *cursor);
    }
    *cursor = to;
    Pushed::Whole
}

/// Has the event's life ended?
pub(crate) fn is_expired(event: &EventView<'_>, now: Now) -> bool {
    event.expires_ms().is_some_and(|ms| ms <= now.wall_ms)
}
