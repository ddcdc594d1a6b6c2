//! What is read ahead of a subscription's cursor: deltas that are merged into one frame, and events that its policy skips.
//!
//! ```text
//!   cursor                    next                       live point
//!     │ d a1 │ d b1 │ d a2 │ d a3 │ event │ …                │
//!     └──── one frame: a 1..3, b 1 ┘  ▲ pushed behind it
//!
//!   join           cursor                a subscriber that begins in the middle of open streams:
//!     │ a0 · b0 · a1 │ live              what they said so far is one frame, of other events nothing
//! ```
//! The cursor moves only when a frame is queued, past all that the frame stands for: a reader that is cut off in between
//! gets what it does not have, once. Nothing is kept for a reader that is blocked: it is read again. What is being gathered
//! is bounded by [`GATHERED_BYTES_MAX`] for all readers of a shard.
//!
//! Only readers that are behind come here. One that keeps up is given each event as it passes, whatever its policy. Deltas that the log
//! has merged ([`Kind::Text`]) come here whatever the policy, from the cursor on: they are no events any more.

use crate::command::{DataKind, Policy};
use crate::delivery::client::Client;
use crate::delivery::{Pushed, Readers, Subscription, SubscriptionId, block, is_expired, push_event, push_skip};
use crate::ids::{Now, Offset};
use crate::limits::GATHERED_BYTES_MAX;
use crate::names::pattern_matches;
use crate::outbox::{GAP_FRAME_BYTES_MAX, Gap, GapReason, Outbox, StreamFrame, StreamPart};
use crate::streams::notices::is_control;
use hashbrown::HashMap;
use std::hash::BuildHasherDefault;
use storage::record::{DeltaView, EventView, Kind, RecordView};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

/// A frame of deltas without sessions and parts.
const FRAME_BYTES: usize = 160;

/// A part of it without names and text.
const PART_BYTES: usize = 160;

/// Read and not yet delivered.
#[derive(Default)]
pub(crate) struct Gathered {
    /// Everything below was read.
    next: Offset,
    /// What is read here lies before the cursor: streams that are open where the subscription begins.
    join: Option<Offset>,
    parts: Vec<StreamPart>,
    /// What the parts take in a frame.
    bytes: usize,
    /// From the cursor on all is skipped by policy; no parts then.
    skips: bool,
    /// A part of what was said before the cursor was delivered already: how its streams ended must be told too.
    spilled: bool,
    /// Joining: streams that began in what was read. Others that are met in it are over before its end.
    begun: Vec<Box<str>>,
    /// Joining: something is gone, so beginnings may be.
    has_hole: bool,
}

impl Gathered {
    /// What open streams have said from `join` to the cursor.
    pub fn joining(join: Offset) -> Gathered {
        Gathered { next: join, join: Some(join), ..Gathered::default() }
    }

    /// Does it lie before the cursor?
    pub fn is_joining(&self) -> bool {
        self.join.is_some()
    }

    /// Where what lies before the cursor begins.
    pub fn join(&self) -> Option<Offset> {
        self.join
    }

    /// Next offset to be read.
    pub fn next(&self) -> Offset {
        self.next
    }

    /// The same joining, begun anew; what was delivered of it stays so.
    fn again(self) -> Option<Box<Gathered>> {
        let Gathered { join, spilled, begun, has_hole, .. } = self;
        Some(Box::new(Gathered { spilled, begun, has_hole, ..Gathered::joining(join?) }))
    }

    /// Does a joining want this of a stream?
    fn wants(&mut self, said: &Said<'_>) -> bool {
        let known = self.begun.iter().any(|begun| **begun == *said.stream);
        let begins = said.status.is_none() && (said.seq == 0 || self.has_hole);
        if begins && !known {
            self.begun.push(said.stream.into());
        }
        known || begins
    }

    /// What its parts take of the shard's bound.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What a delta, or an end, of a stream would add.
    fn cost(&self, said: &Said<'_>) -> usize {
        let fresh = self.parts.iter().all(|part| *part.stream != *said.stream);
        said.bytes() + if fresh { PART_BYTES + said.stream.len() + said.topic.len() } else { 0 }
    }

    fn add(&mut self, said: &Said<'_>) {
        self.bytes += self.cost(said);
        add_to(&mut self.parts, said);
    }
}

/// A delta or the end of a stream, whichever record it is in.
#[derive(Clone, Copy)]
pub(crate) struct Said<'a> {
    stream: &'a str,
    topic: &'a str,
    seq: u64,
    offset: Offset,
    /// JSON string bytes without the quotes.
    text: &'a [u8],
    /// JSON string.
    status: Option<&'a [u8]>,
}

impl<'a> Said<'a> {
    /// By an event, if it is of a stream.
    pub fn by(event: &EventView<'a>) -> Option<Said<'a>> {
        let (stream, seq) = event.stream()?;
        let data = event.data();
        let (text, status) = match event.data_kind() {
            DataKind::Close => (&[][..], Some(data)),
            _ => (data.get(1..data.len().saturating_sub(1)).unwrap_or_default(), None),
        };
        Some(Said { stream, topic: event.topic(), seq, offset: event.offset(), text, status })
    }

    fn bytes(&self) -> usize {
        self.text.len() + self.status.map_or(2, <[u8]>::len)
    }
}

impl<'a> From<DeltaView<'a>> for Said<'a> {
    fn from(delta: DeltaView<'a>) -> Said<'a> {
        let DeltaView { stream, topic, seq, offset, text, .. } = delta;
        Said { stream, topic, seq, offset, text: text.as_bytes(), status: None }
    }
}

/// Adds what was said to the part of its stream.
pub(crate) fn add_to(parts: &mut Vec<StreamPart>, said: &Said<'_>) {
    let Said { stream, topic, seq, text, status, .. } = *said;
    let at = match parts.iter().position(|part| *part.stream == *stream) {
        Some(at) => at,
        None => {
            let (stream, topic) = (stream.into(), topic.into());
            parts.push(StreamPart { stream, topic, seqs: seq..seq, text: Vec::new(), status: Vec::new() });
            parts.len() - 1
        }
    };
    let part = &mut parts[at];
    if let Some(status) = status {
        part.status = status.to_vec();
        return;
    }
    if part.seqs.end != seq {
        // Retention or damage took what was between: a text begins where it goes on without a hole.
        part.text.clear();
        part.seqs = seq..seq;
    }
    part.seqs.end = seq + 1;
    part.text.extend_from_slice(text);
}

/// What parts take in a frame, beside the names of the session.
pub(crate) fn frame_bytes_max(parts: &[StreamPart]) -> usize {
    let names = |part: &StreamPart| part.stream.len() + part.topic.len();
    FRAME_BYTES + parts.iter().map(|p| PART_BYTES + names(p) + p.text.len() + p.status.len() + 2).sum::<usize>()
}

/// The newest event of each topic among those that lie ready for one reader.
#[derive(Default)]
pub(crate) struct Newest(HashMap<u64, Offset, BuildHasherDefault<Xxh3Default>>);

impl Newest {
    /// Others lie ready now.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// One of them.
    pub fn note(&mut self, record: RecordView<'_>) {
        for event in record.events() {
            self.0.insert(xxh3_64(event.topic().as_bytes()), event.offset());
        }
    }

    /// Is there a newer one of its topic?
    fn supersedes(&self, event: &EventView<'_>) -> bool {
        self.0.get(&xxh3_64(event.topic().as_bytes())).is_some_and(|newest| *newest > event.offset())
    }
}

/// What one subscription's gathering needs of its shard.
struct Reach<'a, O> {
    slot: u32,
    subscription: &'a mut Subscription,
    client: &'a mut Client,
    session: &'a str,
    newest: &'a Newest,
    frame_bytes_max: usize,
    gathered_bytes: &'a mut usize,
    out: &'a mut O,
}

impl<O: Outbox> Reach<'_, O> {
    /// Delivers what was gathered; the cursor moves past it. Blocked: nothing was delivered, and nothing is kept.
    fn flush(&mut self, epoch: u64) -> Pushed {
        let Some(mut gathered) = self.subscription.gathered.take() else { return Pushed::Whole };
        *self.gathered_bytes -= gathered.bytes;
        let connection = self.subscription.connection;
        let joining = gathered.join.is_some();
        if joining && !gathered.spilled {
            // Over before the subscription begins.
            gathered.parts.retain(|part| part.status.is_empty());
        }
        let (cursor, session) = (self.subscription.cursor, self.session);
        let next = if joining { cursor } else { gathered.next };
        let fits = if !gathered.parts.is_empty() {
            let bytes = FRAME_BYTES + 2 * session.len() + gathered.bytes;
            self.client.has_credit() && self.out.room(connection) >= bytes
        } else {
            !gathered.skips || self.out.room(connection) >= GAP_FRAME_BYTES_MAX + session.len()
        };
        if !fits {
            self.subscription.gathered = gathered.again();
            return Pushed::Blocked;
        }
        if !gathered.parts.is_empty() {
            let frame = StreamFrame { session, epoch, offset: next - 1, at: None, parts: &gathered.parts };
            self.client.delivered(self.out.streams(connection, &frame));
            if let Some(life) = &mut self.client.life {
                // Not acknowledged, it has to be had again: from where it began.
                life.ledger.delivered(self.slot, gathered.join.unwrap_or(cursor));
            }
        } else if gathered.skips {
            let gap = Gap { session, epoch, from: cursor, to: next, reason: GapReason::Policy };
            self.out.gap(connection, &gap);
            if let Some(life) = &mut self.client.life {
                life.ledger.skipped(self.slot, cursor);
            }
        }
        self.subscription.cursor = next;
        Pushed::Whole
    }

    /// Adds what a stream said, after a flush if it does not fit in the frame.
    fn add(&mut self, said: &Said<'_>, epoch: u64) -> Pushed {
        let room = self.frame_bytes_max.saturating_sub(FRAME_BYTES + 2 * self.session.len());
        if let Some(gathered) = &self.subscription.gathered {
            let full = !gathered.parts.is_empty() && gathered.bytes + gathered.cost(said) > room;
            if (full || gathered.skips) && self.flush(epoch) == Pushed::Blocked {
                return Pushed::Blocked;
            }
        }
        let gathered = self.subscription.gathered.get_or_insert_default();
        *self.gathered_bytes += gathered.cost(said);
        gathered.add(said);
        gathered.next = said.offset + 1;
        Pushed::Whole
    }

    /// What streams said before the subscription begins. Text that is too long for one frame goes in several: those
    /// before the last move no cursor and name no event.
    fn join(&mut self, record: RecordView<'_>) -> Pushed {
        let until = self.subscription.cursor;
        for delta in record.deltas() {
            if !self.join_said(Some(Said::from(delta)), delta.offset, until, record.epoch()) {
                return Pushed::Blocked;
            }
        }
        for event in record.events() {
            if !self.join_said(Said::by(&event), event.offset(), until, record.epoch()) {
                return Pushed::Blocked;
            }
        }
        if record.kind() == Kind::Span
            && let Some(gathered) = &mut self.subscription.gathered
        {
            gathered.next = record.next_offset().min(until);
        }
        self.joined(record.epoch())
    }

    /// Takes one offset of what is joined. `false`: no room; the joining begins anew.
    fn join_said(&mut self, said: Option<Said<'_>>, offset: Offset, until: Offset, epoch: u64) -> bool {
        let room = self.frame_bytes_max.saturating_sub(FRAME_BYTES + 2 * self.session.len());
        let Some(gathered) = &mut self.subscription.gathered else { return true };
        if offset >= until || offset < gathered.next {
            return true;
        }
        gathered.next = offset + 1;
        let Some(said) = said else { return true };
        if said.status.is_some() && !gathered.spilled {
            // Over before the subscription begins: what was gathered of it is of no use.
            let before = gathered.parts.len();
            gathered.parts.retain(|part| *part.stream != *said.stream);
            gathered.begun.retain(|begun| **begun != *said.stream);
            if gathered.parts.len() < before && gathered.parts.is_empty() {
                *self.gathered_bytes -= gathered.bytes;
                gathered.bytes = 0;
            }
        } else if gathered.wants(&said) {
            let cost = gathered.cost(&said);
            if !gathered.parts.is_empty() && gathered.bytes + cost > room && self.spill(epoch).is_none() {
                return false;
            }
            let Some(gathered) = &mut self.subscription.gathered else { return true };
            *self.gathered_bytes += gathered.cost(&said);
            gathered.add(&said);
        }
        true
    }

    /// Queues the text so far that fills a frame, and goes on. `None`: no room; the joining begins anew.
    fn spill(&mut self, epoch: u64) -> Option<()> {
        let connection = self.subscription.connection;
        let gathered = self.subscription.gathered.as_mut()?;
        let bytes = std::mem::take(&mut gathered.bytes);
        *self.gathered_bytes -= bytes;
        let parts = std::mem::take(&mut gathered.parts);
        if !self.client.has_credit() || self.out.room(connection) < FRAME_BYTES + 2 * self.session.len() + bytes {
            // Nothing was delivered yet, or the part before: its numbers tell the reader where it goes on.
            gathered.next = gathered.join.unwrap_or(gathered.next);
            return None;
        }
        let frame = StreamFrame { session: self.session, epoch, offset: Offset::MAX, at: None, parts: &parts };
        self.client.delivered(self.out.streams(connection, &frame));
        if let Some(life) = &mut self.client.life {
            life.ledger.passed();
        }
        // Where joining would begin anew: behind what is delivered.
        gathered.join = Some(gathered.next - 1);
        gathered.spilled = true;
        Some(())
    }

    /// All before the cursor was read: says it.
    fn joined(&mut self, epoch: u64) -> Pushed {
        let done =
            self.subscription.gathered.as_ref().is_some_and(|g| g.join.is_some() && g.next >= self.subscription.cursor);
        if done { self.flush(epoch) } else { Pushed::Whole }
    }

    /// A record for a subscription that is behind, by its policy.
    fn take(&mut self, record: RecordView<'_>, now: Now) -> Pushed {
        if self.subscription.is_joining() {
            if self.join(record) == Pushed::Blocked {
                return Pushed::Blocked;
            }
            if self.subscription.is_joining() {
                return Pushed::Whole;
            }
        }
        let connection = self.subscription.connection;
        if record.kind() == Kind::Span {
            if record.next_offset() <= self.subscription.reads_from() {
                return Pushed::Whole;
            }
            if self.flush(record.epoch()) == Pushed::Blocked {
                return Pushed::Blocked;
            }
            let to = record.next_offset();
            let cursor = &mut self.subscription.cursor;
            return push_skip(self.client, self.slot, cursor, record, to, connection, self.out);
        }
        let from = self.subscription.reads_from();
        for delta in record.deltas().filter(|delta| delta.offset >= from) {
            if self.add(&delta.into(), record.epoch()) == Pushed::Blocked {
                return Pushed::Blocked;
            }
        }
        for event in record.events() {
            if event.offset() < self.subscription.reads_from() {
                continue;
            }
            let policy = self.policy_of(&event);
            let said = Said::by(&event).filter(|_| policy != Policy::Lossless && !is_expired(&event, now));
            let pushed = if let Some(said) = said {
                self.add(&said, event.epoch())
            } else if policy == Policy::Latest && !is_control(event.topic()) && self.newest.supersedes(&event) {
                self.skip(&event)
            } else if self.flush(record.epoch()) == Pushed::Blocked {
                Pushed::Blocked
            } else {
                push_event(self.client, self.slot, connection, &mut self.subscription.cursor, &event, now, self.out)
            };
            if pushed == Pushed::Blocked {
                return Pushed::Blocked;
            }
        }
        Pushed::Whole
    }

    /// The strongest policy counts: what the client's patterns match is lossless.
    fn policy_of(&self, event: &EventView<'_>) -> Policy {
        let patterns = self.client.patterns.as_ref();
        let lossless = patterns.is_some_and(|feed| feed.patterns.iter().any(|p| pattern_matches(p, event.topic())));
        if lossless { Policy::Lossless } else { self.subscription.policy }
    }

    fn skip(&mut self, event: &EventView<'_>) -> Pushed {
        let has_parts = self.subscription.gathered.as_ref().is_some_and(|gathered| !gathered.parts.is_empty());
        if has_parts && self.flush(event.epoch()) == Pushed::Blocked {
            return Pushed::Blocked;
        }
        let gathered = self.subscription.gathered.get_or_insert_default();
        gathered.skips = true;
        gathered.next = event.offset() + 1;
        Pushed::Whole
    }
}

impl Readers {
    /// Pushes a record that was read for a subscription with a policy, or one that joins.
    pub fn gather(
        &mut self,
        id: SubscriptionId,
        record: RecordView<'_>,
        now: Now,
        out: &mut impl Outbox,
    ) -> Option<Pushed> {
        let mut reach = self.reach(id, out)?;
        let pushed = reach.take(record, now);
        if pushed == Pushed::Blocked {
            self.blocks(id);
        }
        Some(pushed)
    }

    /// Delivers what was gathered, unless more lies ready and may be merged with it. `false`: blocked.
    pub fn settle_gathered(&mut self, id: SubscriptionId, out: &mut impl Outbox) -> bool {
        let crowded = self.gathered_bytes > GATHERED_BYTES_MAX;
        let Some(subscription) = self.subscription(id) else { return false };
        let feed = &self.feeds[subscription.feed as usize];
        let (epoch, next) = (feed.epoch, subscription.reads_from());
        let meets_live = feed.live_next.is_some_and(|live| next >= live);
        let joining = subscription.is_joining();
        let Some(mut reach) = self.reach(id, out) else { return false };
        let pushed = match joining {
            true => reach.joined(epoch),
            false if meets_live || crowded => reach.flush(epoch),
            false => Pushed::Whole,
        };
        if pushed == Pushed::Blocked {
            self.blocks(id);
        }
        pushed == Pushed::Whole
    }

    /// Delivers what was gathered: something follows that must not overtake it. `false`: blocked.
    pub fn flush_gathered(&mut self, id: SubscriptionId, out: &mut impl Outbox) -> bool {
        let Some(subscription) = self.subscription(id).filter(|s| s.gathered.is_some() && !s.is_joining()) else {
            return true;
        };
        let epoch = self.feeds[subscription.feed as usize].epoch;
        let Some(mut reach) = self.reach(id, out) else { return false };
        let pushed = reach.flush(epoch);
        if pushed == Pushed::Blocked {
            self.blocks(id);
        }
        pushed == Pushed::Whole
    }

    /// Joining skips what is gone: what it brings tells by its numbers where it begins. `false`: it is not joining.
    pub fn joins_behind(&mut self, id: SubscriptionId, to: Offset) -> bool {
        let Some(subscription) = self.subscription_mut(id).filter(|s| s.is_joining()) else { return false };
        let until = subscription.cursor;
        if let Some(gathered) = &mut subscription.gathered {
            gathered.next = to.min(until);
            gathered.has_hole = true;
        }
        true
    }

    /// Forgets what was gathered for a subscription that is blocked: it is read again.
    pub fn forget_gathered(&mut self, id: SubscriptionId) {
        let Some(subscription) = self.subscription_mut(id) else { return };
        let Some(gathered) = subscription.gathered.take() else { return };
        let bytes = gathered.bytes;
        subscription.gathered = gathered.again();
        self.gathered_bytes -= bytes;
    }

    /// Must the subscription wait until others have delivered what they gathered?
    pub fn gathering_is_full(&self, id: SubscriptionId) -> bool {
        self.gathered_bytes > GATHERED_BYTES_MAX
            && self.subscription(id).is_some_and(|subscription| {
                subscription.gathers() && subscription.gathered.as_ref().is_none_or(|gathered| gathered.bytes == 0)
            })
    }

    fn reach<'a, O: Outbox>(&'a mut self, id: SubscriptionId, out: &'a mut O) -> Option<Reach<'a, O>> {
        let subscription = self.subscriptions.get_mut(id.slot as usize).filter(|s| s.generation == id.generation)?;
        let client = self.clients.get_mut(subscription.connection)?;
        Some(Reach {
            slot: id.slot,
            client,
            session: &self.feeds[subscription.feed as usize].session,
            subscription,
            newest: &self.newest,
            frame_bytes_max: self.frame_bytes_max,
            gathered_bytes: &mut self.gathered_bytes,
            out,
        })
    }

    fn blocks(&mut self, id: SubscriptionId) {
        let Some(subscription) = self.subscription_mut(id) else { return };
        subscription.state = crate::delivery::ReaderState::Blocked;
        let connection = subscription.connection;
        if let Some(client) = self.clients.get_mut(connection) {
            block(client, connection, &mut self.blocked);
        }
    }
}
