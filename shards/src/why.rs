//! What became of one event, as this shard knows it: asked for by an operator, seldom.
//!
//! ```text
//!   look_up ── the owner: where the event stands in its session, its trace while that is kept, its topic while it is hot
//!   readers ── every shard: who on it has it, who has not, and what that cursor waits for
//! ```
//! Cursors say who got it, for events of any age: one beyond the event has it in its send queue or has sent it. Nothing is kept
//! for each event and reader.

use crate::delivery::client::{Client, NONE};
use crate::delivery::{ReaderState, Subscription};
use crate::ids::{ConnectionId, Epoch, Offset, PartitionId, ShardId};
use crate::shard::Shard;
use crate::traces::Trace;
use storage::ids::LogSeq;
use storage::log::Open;

/// Readers that one shard names; the others are counted.
pub const READERS_MAX: usize = 256;

/// Where an event stands with its owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// Another shard owns the session.
    Elsewhere,
    /// The session is being brought from disk: ask again.
    Loading,
    /// No such session.
    NoSession,
    /// The session lives under another epoch.
    OtherEpoch(Epoch),
    /// It was never appended.
    Beyond,
    /// It is appended and not durable.
    Uncommitted,
    /// Retention removed it.
    Expired,
    /// It is in the log.
    Committed,
}

/// What the owner knows.
#[derive(Clone, PartialEq, Debug)]
pub struct LookedUp {
    /// Where it stands.
    pub found: Found,
    /// Offsets of the session: the first that is kept, the first that is not durable, the next.
    pub offsets: [Offset; 3],
    /// Its way, while that is kept.
    pub trace: Option<Trace>,
    /// Its topic, while it is in the hot tail.
    pub topic: Option<String>,
    /// Time of this shard's clock.
    pub now_ns: u64,
}

/// What a reader's cursor says of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Its frame was queued for the reader's socket.
    Delivered,
    /// The subscription begins after it.
    NotForIt,
    /// The subscription has not begun: its owner has not answered.
    Attaching,
    /// At the live point, which has not reached it.
    Live,
    /// Behind: waits for its turn to be read from the log.
    Queued,
    /// Behind: a read is under way.
    Reading,
    /// The client must acknowledge before it gets more.
    NoCredit,
    /// Its send queue is full: the client does not read.
    NoRoom,
    /// A pattern feed; whether it has passed an event so old is not known.
    Unknown,
}

/// One reader.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReaderOf {
    /// Its connection.
    pub connection: ConnectionId,
    /// Its client.
    pub client_id: String,
    /// By pattern, not by session.
    pub by_pattern: bool,
    /// Next offset it wants; for a pattern feed, next log sequence.
    pub cursor: Option<u64>,
    /// What that says.
    pub standing: Standing,
}

/// Readers on one shard.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReadersOf {
    /// The first of them.
    pub named: Vec<ReaderOf>,
    /// How many more.
    pub more: usize,
}

/// An event, as the readers' shards are asked for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// Tenant.
    pub tenant: String,
    /// Session.
    pub session: String,
    /// Its life.
    pub epoch: Epoch,
    /// Its place.
    pub offset: Offset,
    /// Its topic, where the owner knew it.
    pub topic: Option<String>,
    /// Its place in the owner's log, where the owner knew it.
    pub log_seq: Option<LogSeq>,
}

impl Shard {
    /// What the owner knows of an event. May begin to bring its session from disk.
    pub fn look_up(&mut self, asked: &Asked) -> LookedUp {
        let partition = self.log.partition_id(&asked.tenant, &asked.session);
        let mut answer = LookedUp {
            found: Found::Elsewhere,
            offsets: [0; 3],
            trace: None,
            topic: None,
            now_ns: self.traces.now_ns(),
        };
        if self.owner_of(partition) != self.config.shard {
            return answer;
        }
        answer.trace = self.traces.find(partition, asked.epoch, asked.offset).copied();
        let slot = match self.log.open(partition, &asked.tenant, &asked.session, None) {
            Open::Ready(slot) => slot,
            Open::Loading | Open::Full => return LookedUp { found: Found::Loading, ..answer },
            Open::Absent | Open::Collision => return LookedUp { found: Found::NoSession, ..answer },
        };
        let session = self.log.partition(slot);
        answer.offsets = [session.first_offset(), session.committed(), session.tail()];
        let [first, committed, tail] = answer.offsets;
        answer.found = match asked.offset {
            _ if session.epoch() != asked.epoch => Found::OtherEpoch(session.epoch()),
            offset if offset >= tail => Found::Beyond,
            offset if offset >= committed => Found::Uncommitted,
            offset if offset < first => Found::Expired,
            _ => Found::Committed,
        };
        answer.topic = answer.trace.and_then(|trace| self.hot_topic(&trace, asked.offset));
        answer
    }

    fn hot_topic(&self, trace: &Trace, offset: Offset) -> Option<String> {
        if trace.log_seq >= self.log.committed_seq() {
            return None;
        }
        let record = self.log.committed_records(trace.log_seq).next().filter(|r| r.log_seq() == trace.log_seq)?;
        record.events().find(|event| event.offset() == offset).map(|event| event.topic().to_owned())
    }

    /// Readers on this shard and what their cursors say of an event.
    pub fn readers_of(&self, asked: &Asked) -> ReadersOf {
        let partition = self.log.partition_id(&asked.tenant, &asked.session);
        let mut readers = ReadersOf::default();
        if let Some(feed) = self.readers.feed_of.get(&partition) {
            let feed = &self.readers.feeds[*feed as usize];
            for slot in &feed.subscriptions {
                let subscription = &self.readers.subscriptions[*slot as usize];
                let Some(client) = self.readers.clients.get(subscription.connection) else { continue };
                let standing = standing_of(subscription, client, asked.offset);
                let cursor = (subscription.cursor != Offset::MAX).then_some(subscription.cursor);
                readers.add(subscription.connection, client, false, cursor, standing);
            }
        }
        if let Some(tenant) = self.readers.tenants.get(&asked.tenant) {
            let owner = self.owner_of(partition);
            for connection in &tenant.clients {
                let Some(client) = self.readers.clients.get(*connection) else { continue };
                let Some(feed) = &client.patterns else { continue };
                if asked.topic.as_ref().is_some_and(|topic| !feed.matches(topic)) || self.covers(client, partition) {
                    continue;
                }
                let (cursor, standing) = self.pattern_standing(client, owner, tenant.live[usize::from(owner.0)], asked);
                readers.add(*connection, client, true, cursor, standing);
            }
        }
        readers
    }

    /// A session subscription of the same client has the session in the feed's place.
    fn covers(&self, client: &Client, partition: PartitionId) -> bool {
        let mut slot = client.subscriptions;
        while slot != NONE {
            let subscription = &self.readers.subscriptions[slot as usize];
            if self.readers.feeds[subscription.feed as usize].partition == partition {
                return true;
            }
            slot = subscription.next_of_client;
        }
        false
    }

    fn pattern_standing(
        &self,
        client: &Client,
        owner: ShardId,
        live: Option<LogSeq>,
        asked: &Asked,
    ) -> (Option<u64>, Standing) {
        let Some(source) = client.patterns.as_ref().map(|feed| feed.sources[usize::from(owner.0)]) else {
            return (None, Standing::Unknown);
        };
        let live = if owner == self.config.shard { Some(self.announced) } else { live };
        let cursor = match source.state {
            ReaderState::Live => live.map(|live| live.max(source.seq)),
            _ if source.by_position => None,
            _ => Some(source.seq),
        };
        let standing = match (asked.log_seq, cursor) {
            (Some(seq), Some(cursor)) if seq < cursor => Standing::Delivered,
            (None, _) => Standing::Unknown,
            _ => waiting(source.state, client),
        };
        (cursor, standing)
    }
}

impl ReadersOf {
    fn add(
        &mut self,
        connection: ConnectionId,
        client: &Client,
        by_pattern: bool,
        cursor: Option<u64>,
        standing: Standing,
    ) {
        if self.named.len() == READERS_MAX {
            self.more += 1;
            return;
        }
        let client_id = client.client_id.to_string();
        self.named.push(ReaderOf { connection, client_id, by_pattern, cursor, standing });
    }
}

fn standing_of(subscription: &Subscription, client: &Client, offset: Offset) -> Standing {
    match subscription.state {
        ReaderState::Attaching => Standing::Attaching,
        _ if offset < subscription.start => Standing::NotForIt,
        _ if offset < subscription.cursor => Standing::Delivered,
        state => waiting(state, client),
    }
}

fn waiting(state: ReaderState, client: &Client) -> Standing {
    match state {
        ReaderState::Attaching => Standing::Attaching,
        ReaderState::Live => Standing::Live,
        ReaderState::Queued => Standing::Queued,
        ReaderState::Reading => Standing::Reading,
        ReaderState::Blocked if client.has_credit() => Standing::NoRoom,
        ReaderState::Blocked => Standing::NoCredit,
    }
}
