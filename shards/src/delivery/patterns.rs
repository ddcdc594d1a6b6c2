//! Pattern clients: one feed per client over all sessions of its tenant, one cursor per source shard.
//!
//! ```text
//!  source shard 0 ──► seq ─┐
//!  source shard 1 ──► seq ─┼─► one client; an event passes if a pattern matches and no session subscription of
//!  source shard n ──► seq ─┘   the client covers it
//! ```
//! A source's order is its log's order, so order per session holds. A live cursor is implied by the tenant's live
//! point; only a cursor that fell behind has a number of its own. On the wire the position is one `slice_seq` per
//! slice, because that survives another number of shards.

use super::client::{Client, NONE};
use super::elsewhere::{Delivered, Elsewhere};
use super::passed::{self, Passed, Slices};
use super::{ByPartition, Feed, Pushed, Reader, ReaderState, Readers, Subscription, block, is_expired};
use crate::fair::{Queued, egress_cost};
use crate::ids::{CommandId, ConnectionId, Now, PartitionId, ShardId, SliceId, SliceSeq};
use crate::names::pattern_matches;
use crate::outbox::{GAP_FRAME_BYTES_MAX, GapReason, Outbox, PatternGap, event_bytes_max};
use hashbrown::HashMap;
use storage::ids::LogSeq;
use storage::record::{Kind, RecordView};

/// What a client listens to by pattern.
pub(crate) struct PatternFeed {
    pub patterns: Box<[Box<str>]>,
    pub sources: Box<[Source]>,
    /// Tells this feed from an earlier one of the same client, in answers that are under way.
    pub generation: u32,
    /// Sources that have not answered `ATTACH_PATTERNS`.
    pub attaching: u16,
    /// The `subscribe` that waits for them.
    pub id: CommandId,
    /// Their positions so far, `slice.seq,…`.
    pub position: String,
    /// What is gone of the slices it had seen in part; said right after the reply.
    pub gaps: Vec<SliceGap>,
    /// A gap of which only its reason is known, to be said before anything else.
    pub gap_owed: Option<GapReason>,
    /// What session subscriptions that have ended delivered, while the feed was behind on their source.
    pub delivered: Elsewhere,
    /// How far it has come in each slice, while it is behind.
    pub passed: Passed,
}

/// Slice, first and one past the last slice sequence that are gone.
pub(crate) type SliceGap = (SliceId, SliceSeq, SliceSeq);

/// One source shard of a pattern client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    /// Next record wanted, in the source's log order. While live: a record below it is not for this client.
    pub seq: LogSeq,
    /// Records of which only the first events were delivered.
    pub partial: Partials,
    pub state: ReaderState,
    /// The source still reads from a position of slices, not from `seq`.
    pub by_position: bool,
    /// Records of the source's last batch that were delivered whole.
    pub taken: u32,
}

impl Source {
    /// A source that has not answered yet.
    pub fn attaching(seq: LogSeq, by_position: bool) -> Source {
        Source { seq, partial: Partials::default(), state: ReaderState::Attaching, by_position, taken: 0 }
    }
}

/// Records that were delivered in part when their client had no more room, by their place in their slice.
///
/// Two at most. One is met where the client fell behind; re-clustering may then move that record behind others of its segment, and
/// one of those is blocked in the middle. A blocked record is the next one that is read, so it is whole before a third is met.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Partials([Option<(Place, u32)>; 2]);

/// Names a record across logs and re-clustering: its slice, and the slice sequence of its first event.
type Place = (SliceId, SliceSeq);

fn place(record: RecordView<'_>) -> Place {
    (record.slice(), record.slice_seq())
}

impl Partials {
    /// Events of the record that were delivered.
    fn of(&self, record: Place) -> u32 {
        self.0.iter().flatten().find(|held| held.0 == record).map_or(0, |held| held.1)
    }

    /// The record was delivered whole.
    fn pass(&mut self, record: Place) {
        for held in &mut self.0 {
            held.take_if(|held| held.0 == record);
        }
    }

    /// So many of the record's events were delivered.
    fn hold(&mut self, record: Place, events: u32) {
        self.pass(record);
        if events == 0 {
            return;
        }
        if self.0.iter().all(Option::is_some) {
            // Retention took the oldest before it was read again.
            self.0.rotate_left(1);
            self.0[1] = None;
        }
        if let Some(free) = self.0.iter_mut().find(|held| held.is_none()) {
            *free = Some((record, events));
        }
    }
}

impl PatternFeed {
    /// It was live on this source until now.
    fn fell_behind(&mut self, source: ShardId, offered: &Slices) {
        let shards = self.sources.len() as u16;
        self.passed.fell_behind(offered, |slice| slice.0 % shards == source.0);
    }

    pub fn matches(&self, topic: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern_matches(pattern, topic))
    }

    /// Remembers what another subscription delivered, until the feed has passed it.
    pub fn delivered_elsewhere(&mut self, range: Delivered) {
        let sources = &self.sources;
        self.delivered.insert(range, |source| sources[usize::from(source.0)].state == ReaderState::Live);
    }

    /// Is as much remembered as may be? Then no other subscription may begin, which would have to be remembered when it ends.
    pub fn remembers_all_it_may(&self) -> bool {
        self.delivered.is_full(|source| self.sources[usize::from(source.0)].state == ReaderState::Live)
    }

    pub fn unblock(&mut self, connection: ConnectionId, queued: &mut Queued) {
        for (shard, source) in self.sources.iter_mut().enumerate() {
            if source.state == ReaderState::Blocked {
                source.state = ReaderState::Queued;
                queued.push_back(Reader::Pattern(connection, ShardId(shard as u16)));
            }
        }
    }
}

/// Tenants with at least one pattern client on this shard.
#[derive(Default)]
pub(crate) struct TenantFeeds {
    by_tenant: HashMap<Box<str>, TenantFeed, std::hash::BuildHasherDefault<xxhash_rust::xxh3::Xxh3Default>>,
}

/// Pattern clients of one tenant.
pub(crate) struct TenantFeed {
    pub clients: Vec<ConnectionId>,
    /// Per source: everything below was offered to live clients here. `None` until the source said where it begins.
    pub live: Box<[Option<LogSeq>]>,
}

impl TenantFeeds {
    pub fn is_empty(&self) -> bool {
        self.by_tenant.is_empty()
    }

    pub fn get_mut(&mut self, tenant: &str) -> Option<&mut TenantFeed> {
        self.by_tenant.get_mut(tenant)
    }

    pub fn get(&self, tenant: &str) -> Option<&TenantFeed> {
        self.by_tenant.get(tenant)
    }

    pub fn insert(&mut self, tenant: &str, connection: ConnectionId, shards: u16) {
        self.by_tenant
            .entry_ref(tenant)
            .or_insert_with(|| TenantFeed { clients: Vec::new(), live: vec![None; usize::from(shards)].into() })
            .clients
            .push(connection);
    }

    pub fn remove(&mut self, tenant: &str, connection: ConnectionId) {
        if let Some(feed) = self.by_tenant.get_mut(tenant) {
            feed.clients.retain(|c| *c != connection);
            if feed.clients.is_empty() {
                self.by_tenant.remove(tenant);
            }
        }
    }
}

impl Readers {
    /// Offers a committed record of `source` to the tenant's live pattern clients.
    pub fn offer_patterns(&mut self, source: ShardId, record: RecordView<'_>, now: Now, out: &mut impl Outbox) {
        let Some(tenant) = self.tenants.get_mut(record.tenant()) else { return };
        for connection in &tenant.clients {
            let Some(client) = self.clients.get_mut(*connection) else { continue };
            let Some(mut patterns) = client.patterns.take() else { continue };
            let at = patterns.sources[usize::from(source.0)];
            if at.state == ReaderState::Live
                && record.log_seq() >= at.seq
                && !self.queued.line.may_pass(client.place.slot)
            {
                // Its tenant has had its share of this turn's egress: the cursor goes on in its turn.
                patterns.fell_behind(source, &self.offered);
                let at = &mut patterns.sources[usize::from(source.0)];
                *at = Source {
                    seq: record.log_seq(),
                    partial: Partials::default(),
                    state: ReaderState::Queued,
                    by_position: false,
                    taken: 0,
                };
                self.queued.push_back(Reader::Pattern(*connection, source));
            } else if at.state == ReaderState::Live && record.log_seq() >= at.seq {
                let before = client.bytes_delivered();
                let mut skip = 0;
                let feeds =
                    SessionFeeds { subscriptions: &mut self.subscriptions, feeds: &self.feeds, feed_of: &self.feed_of };
                let pushed = push_matching(client, *connection, &patterns, &mut skip, record, feeds, now, out);
                if pushed == Pushed::Whole {
                    patterns.delivered.pass(record.partition(), record.next_offset());
                } else {
                    patterns.fell_behind(source, &self.offered);
                    let at = &mut patterns.sources[usize::from(source.0)];
                    at.state = ReaderState::Blocked;
                    at.seq = record.log_seq();
                    at.partial = Partials::default();
                    at.partial.hold(place(record), skip);
                    at.by_position = false;
                    block(client, *connection, &mut self.blocked);
                }
                let bytes = client.bytes_delivered() - before;
                if bytes > 0 {
                    self.queued.line.charge(client.place.slot, egress_cost(bytes));
                }
            }
            client.patterns = Some(patterns);
        }
        self.offered.pass(record);
    }

    /// All sources have answered and the reply has left: each source's cursor is live, or behind.
    pub fn settle_patterns(
        &mut self,
        connection: ConnectionId,
        own: ShardId,
        announced: LogSeq,
        out: &mut impl Outbox,
    ) {
        let Some(client) = self.clients.get_mut(connection) else { return };
        let Some(feed) = client.patterns.as_mut().filter(|feed| feed.attaching == 0) else { return };
        let reason = GapReason::Retention;
        if out.room(connection) >= feed.gaps.len() * GAP_FRAME_BYTES_MAX {
            for slice in feed.gaps.drain(..) {
                out.pattern_gap(connection, &PatternGap { slice: Some(slice), reason });
            }
        } else {
            // Which slices they were is forgotten, not that there are gaps.
            feed.gaps.clear();
            feed.gap_owed = Some(reason);
        }
        let owes = feed.gap_owed.is_some();
        let live = self.tenants.get(&client.tenant);
        for (shard, at) in feed.sources.iter_mut().enumerate() {
            if at.state != ReaderState::Attaching {
                continue;
            }
            let source = ShardId(shard as u16);
            let live = if source == own { Some(announced) } else { live.and_then(|tenant| tenant.live[shard]) };
            // A gap that is owed is said by a source that is served from the log, before it delivers anything.
            if at.by_position || owes || live.is_some_and(|live| live > at.seq) {
                at.state = ReaderState::Queued;
                self.queued.push_back(Reader::Pattern(connection, source));
            } else {
                at.state = ReaderState::Live;
            }
        }
    }

    /// Says that something is gone, of which only that is known. `false`: no room, the source is blocked now.
    pub fn push_pattern_gap(
        &mut self,
        connection: ConnectionId,
        source: ShardId,
        reason: GapReason,
        out: &mut impl Outbox,
    ) -> bool {
        let Some(client) = self.clients.get_mut(connection) else { return false };
        if out.room(connection) < GAP_FRAME_BYTES_MAX {
            if let Some(feed) = &mut client.patterns {
                feed.sources[usize::from(source.0)].state = ReaderState::Blocked;
            }
            block(client, connection, &mut self.blocked);
            return false;
        }
        out.pattern_gap(connection, &PatternGap { slice: None, reason });
        true
    }

    /// Something of the client's is gone: said as soon as there is room.
    pub fn owe_pattern_gap(&mut self, connection: ConnectionId, reason: GapReason) {
        if let Some(feed) = self.clients.get_mut(connection).and_then(|c| c.patterns.as_mut()) {
            feed.gap_owed = Some(reason);
        }
    }

    /// Says the gap that is owed, if one is. `false`: no room, the source is blocked now.
    pub fn pay_pattern_gap(&mut self, connection: ConnectionId, source: ShardId, out: &mut impl Outbox) -> bool {
        let owed =
            self.clients.get_mut(connection).and_then(|c| c.patterns.as_mut()).and_then(|feed| feed.gap_owed.take());
        let Some(reason) = owed else { return true };
        let said = self.push_pattern_gap(connection, source, reason, out);
        if !said {
            self.owe_pattern_gap(connection, reason);
        }
        said
    }

    /// Pushes a record that was read for one pattern client, but for its first `seen` events, which the client had before it came;
    /// of a text all is pushed, and `seen` is how far before its end the client stood, if it came with a position. Its cursor moves
    /// past the record, or stands inside it.
    pub fn push_scanned(
        &mut self,
        connection: ConnectionId,
        source: ShardId,
        record: RecordView<'_>,
        seen: u32,
        now: Now,
        out: &mut impl Outbox,
    ) -> Option<Pushed> {
        let client = self.clients.get_mut(connection)?;
        let mut patterns = client.patterns.take()?;
        let at = patterns.sources[usize::from(source.0)];
        let mut skip = at.partial.of(place(record)).max(seen);
        let feeds = SessionFeeds { subscriptions: &mut self.subscriptions, feeds: &self.feeds, feed_of: &self.feed_of };
        let pushed = if patterns.passed.has(record) {
            // A file was replaced under the scan, which began it anew.
            Pushed::Whole
        } else if record.kind() == Kind::Text {
            let stood = if seen == 0 { 0 } else { passed::last_of(record).saturating_sub(seen.into()) };
            skip = 0;
            let frame_bytes_max = self.frame_bytes_max;
            let mut text = passed::TextPush { client, connection, record, stood, frame_bytes_max };
            text.push(&mut patterns, feeds, out)
        } else {
            push_matching(client, connection, &patterns, &mut skip, record, feeds, now, out)
        };
        let at = &mut patterns.sources[usize::from(source.0)];
        match pushed {
            Pushed::Whole => {
                patterns.passed.pass(record);
                patterns.delivered.pass(record.partition(), record.next_offset());
                let at = &mut patterns.sources[usize::from(source.0)];
                at.partial.pass(place(record));
                if !at.by_position {
                    at.seq = record.log_seq() + 1;
                }
            }
            Pushed::Blocked => {
                at.partial.hold(place(record), skip);
                if !at.by_position {
                    at.seq = record.log_seq();
                }
                at.state = ReaderState::Blocked;
                block(client, connection, &mut self.blocked);
            }
        }
        client.patterns = Some(patterns);
        Some(pushed)
    }

    /// The live stream of a tenant from `source` now stands at `through`. Where it did not continue from where it
    /// stood, live clients are behind.
    pub fn cover(&mut self, tenant_name: &str, source: ShardId, from: LogSeq, through: LogSeq) -> Covered {
        let Some(tenant) = self.tenants.get_mut(tenant_name) else { return Covered::Stale };
        let live = &mut tenant.live[usize::from(source.0)];
        let Some(stood) = *live else {
            *live = Some(through);
            return Covered::Stale;
        };
        if through <= stood {
            return Covered::Stale;
        }
        *live = Some(through);
        if from <= stood {
            return Covered::Continues;
        }
        for connection in &tenant.clients {
            let Some(patterns) = self.clients.get_mut(*connection).and_then(|c| c.patterns.as_mut()) else { continue };
            let at = patterns.sources[usize::from(source.0)];
            if at.state == ReaderState::Live {
                patterns.fell_behind(source, &self.offered);
                let at = &mut patterns.sources[usize::from(source.0)];
                *at = Source {
                    seq: stood.max(at.seq),
                    partial: Partials::default(),
                    state: ReaderState::Queued,
                    by_position: false,
                    taken: 0,
                };
                self.queued.push_back(Reader::Pattern(*connection, source));
            }
        }
        Covered::Skipped
    }
}

/// How a stretch of a source's stream fits to what was seen of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Covered {
    /// It continues: offer its records to live clients.
    Continues,
    /// It skipped: clients that were live are behind now.
    Skipped,
    /// It was seen before, or nobody listens.
    Stale,
}

/// What is needed to see whether a session subscription of the same client covers an event.
pub(super) struct SessionFeeds<'a> {
    subscriptions: &'a mut slab::Slab<Subscription>,
    feeds: &'a slab::Slab<Feed>,
    feed_of: &'a ByPartition<u32>,
}

impl SessionFeeds<'_> {
    /// The client's subscription to the partition.
    pub(super) fn covering(&mut self, client: &Client, partition: PartitionId) -> Option<&mut Subscription> {
        if client.subscriptions == NONE || !self.feed_of.contains_key(&partition) {
            return None;
        }
        let mut slot = client.subscriptions;
        while slot != NONE {
            let subscription = &self.subscriptions[slot as usize];
            if self.feeds[subscription.feed as usize].partition == partition {
                return Some(&mut self.subscriptions[slot as usize]);
            }
            slot = subscription.next_of_client;
        }
        None
    }
}

/// Pushes the events of a record that a pattern matches; `skip` counts those that are done with.
#[allow(clippy::too_many_arguments)]
fn push_matching(
    client: &mut Client,
    connection: ConnectionId,
    patterns: &PatternFeed,
    skip: &mut u32,
    record: RecordView<'_>,
    mut feeds: SessionFeeds<'_>,
    now: Now,
    out: &mut impl Outbox,
) -> Pushed {
    let partition = record.partition();
    let mut covering = feeds.covering(client, partition);
    for event in record.events().skip(*skip as usize) {
        let offset = event.offset();
        if !patterns.matches(event.topic()) || patterns.delivered.contains(partition, offset) {
        } else if let Some(subscription) = covering.as_mut().filter(|s| offset >= s.start) {
            subscription.skipped = subscription.skipped.max(offset + 1);
        } else if !is_expired(&event, now) {
            if !client.has_credit() || out.room(connection) < event_bytes_max(&event) {
                return Pushed::Blocked;
            }
            client.delivered(out.event(connection, &event));
            if let Some(life) = &mut client.life {
                life.pattern_delivered(event.slice().0, event.slice_seq());
            }
        }
        *skip += 1;
    }
    Pushed::Whole
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Re-clustering puts others before the record at which a reader fell behind: they must not make it forget how far it was.
    #[test]
    fn regression_a_record_delivered_in_part_goes_on_where_it_was_after_others_of_its_segment() {
        let (fell_behind, before, third) = ((SliceId(9), 4), (SliceId(3), 1), (SliceId(1), 1));
        let mut partial = Partials::default();
        partial.hold(fell_behind, 2);
        partial.pass(before);
        assert_eq!(partial.of(fell_behind), 2);
        partial.hold(before, 1);
        partial.hold(before, 3);
        assert_eq!((partial.of(fell_behind), partial.of(before)), (2, 3), "blocked twice in the other one");
        partial.pass(before);
        partial.pass(fell_behind);
        assert_eq!((partial.of(fell_behind), partial.of(before)), (0, 0));
        // Gone with retention, never passed: the newest two are kept.
        partial.hold(fell_behind, 1);
        partial.hold(before, 1);
        partial.hold(third, 5);
        assert_eq!((partial.of(fell_behind), partial.of(before), partial.of(third)), (0, 1, 5));
    }
}
