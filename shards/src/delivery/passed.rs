//! How far a pattern feed has come in each slice, and deltas that the log has merged, from there on.
//!
//! ```text
//!   slice 7     70 a   71 b   72 a │ 73 e   77 b   78 a   79 b      a, b: deltas of two sessions, e: an event
//!                             heard: as events, while the feed was live
//!   the log, later:    73 e · a 70..78 · b 71..79   each stands at its last   ─►  e, stream.delta of 78, of 77 and 79
//!                                  scanned
//! ```
//! What was **heard** was heard to the delta: of a text it is left out. What was **scanned** was scanned record by record, in the order
//! in which they stand: a scan that finds its file replaced begins the new one, and what it brings again is left out. A record that was
//! merged once more meanwhile is not: its deltas come again, as they do for a reader that comes with a position, which
//! is of the one kind or of the other. They say so by their numbers.
//!
//! Memory: 16 KiB a feed that is behind, 8 KiB a shard.

use super::Pushed;
use super::client::Client;
use super::patterns::{PatternFeed, SessionFeeds};
use crate::ids::{ConnectionId, Offset, PartitionId, SliceId, SliceSeq};
use crate::outbox::{Outbox, StreamFrame, StreamPart};
use crate::streams::gathered::{add_to, frame_bytes_max};
use storage::ids::SLICES;
use storage::record::{DeltaView, RecordView};

/// Room that is left in a frame for another stream's names and the session's.
const FRESH_BYTES: usize = 1024;

/// Of each slice a sequence; none yet, until something is.
#[derive(Default, Debug)]
pub(crate) struct Slices(Box<[SliceSeq]>);

impl Slices {
    fn raise(&mut self, slice: SliceId, seq: SliceSeq) {
        if self.0.is_empty() {
            self.0 = vec![0; SLICES.into()].into();
        }
        if let Some(at) = self.0.get_mut(usize::from(slice.0)) {
            *at = seq.max(*at);
        }
    }

    fn of(&self, slice: SliceId) -> SliceSeq {
        self.0.get(usize::from(slice.0)).copied().unwrap_or(0)
    }

    /// A record was passed.
    pub fn pass(&mut self, record: RecordView<'_>) {
        if record.count() > 0 {
            self.raise(record.slice(), last_of(record));
        }
    }
}

pub(super) fn last_of(record: RecordView<'_>) -> SliceSeq {
    record.slice_seq() + u64::from(record.slice_count()).saturating_sub(1)
}

/// Of one feed.
#[derive(Default, Debug)]
pub(crate) struct Passed {
    heard: Slices,
    scanned: Slices,
    /// Where a text that found no room is to go on: its partition, and the offset; one of each source at most.
    told: Vec<(PartitionId, Offset)>,
}

impl Passed {
    /// The feed was live until now on the source of these slices, where so much was offered.
    pub fn fell_behind(&mut self, offered: &Slices, of: impl Fn(SliceId) -> bool) {
        for (slice, seq) in (0..).map(SliceId).zip(&offered.0).filter(|(slice, seq)| **seq > 0 && of(*slice)) {
            self.heard.raise(slice, *seq);
            self.scanned.raise(slice, *seq);
        }
    }

    /// A record that was read has been passed.
    pub fn pass(&mut self, record: RecordView<'_>) {
        self.scanned.pass(record);
        self.told.retain(|(partition, _)| *partition != record.partition());
    }

    /// Was all of a record passed that is read?
    pub fn has(&self, record: RecordView<'_>) -> bool {
        record.count() > 0 && last_of(record) <= self.scanned.of(record.slice())
    }

    /// The highest place in a slice that it was told of since it fell behind.
    fn reached(&self, slice: SliceId) -> SliceSeq {
        self.heard.of(slice).max(self.scanned.of(slice))
    }

    /// It is behind nothing.
    pub fn forget(&mut self) {
        *self = Passed::default();
    }

    fn told(&self, partition: PartitionId) -> Offset {
        self.told.iter().find(|(of, _)| *of == partition).map_or(0, |(_, next)| *next)
    }

    fn tell(&mut self, partition: PartitionId, next: Offset) {
        self.told.retain(|(of, _)| *of != partition);
        self.told.push((partition, next));
    }
}

/// A text on its way to one pattern client.
pub(super) struct TextPush<'a> {
    pub client: &'a mut Client,
    pub connection: ConnectionId,
    pub record: RecordView<'a>,
    /// Where in the slice the client stood when it came, if that was within the record; else 0.
    pub stood: SliceSeq,
    pub frame_bytes_max: usize,
}

impl TextPush<'_> {
    /// Pushes what a pattern matches, in as many frames as it takes. Blocked: what was pushed is passed.
    pub fn push(&mut self, patterns: &mut PatternFeed, mut feeds: SessionFeeds<'_>, out: &mut impl Outbox) -> Pushed {
        let (record, partition) = (self.record, self.record.partition());
        let (heard, told) = (patterns.passed.heard.of(record.slice()), patterns.passed.told(partition));
        let mut covering = feeds.covering(self.client, partition);
        let mut gathered = Gathered::default();
        for delta in record.deltas().filter(|delta| delta.slice_seq > heard && delta.offset >= told) {
            if !patterns.matches(delta.topic) || patterns.delivered.contains(partition, delta.offset) {
                continue;
            }
            if let Some(subscription) = covering.as_mut().filter(|s| delta.offset >= s.start) {
                subscription.skipped = subscription.skipped.max(delta.offset + 1);
                continue;
            }
            if !gathered.takes(&delta, self.frame_bytes_max) && !self.send(&mut gathered, patterns, out) {
                return Pushed::Blocked;
            }
            gathered.last = Some((delta.offset, delta.slice_seq));
            add_to(&mut gathered.parts, &delta.into());
        }
        if self.send(&mut gathered, patterns, out) { Pushed::Whole } else { Pushed::Blocked }
    }

    /// Queues what was gathered, if anything was; it is passed then. `false`: no room.
    fn send(&mut self, gathered: &mut Gathered, patterns: &mut PatternFeed, out: &mut impl Outbox) -> bool {
        let Gathered { parts, last } = std::mem::take(gathered);
        let Some((offset, slice_seq)) = last else { return true };
        let (session, epoch, slice) = (self.record.session(), self.record.epoch(), self.record.slice());
        // Where a text is told again in several frames, a client that takes the last frame's place for its own must not go back.
        let slice_seq = slice_seq.max(self.stood).max(patterns.passed.reached(slice));
        if !self.client.has_credit() || out.room(self.connection) < frame_bytes_max(&parts) + 2 * session.len() {
            return false;
        }
        let frame = StreamFrame { session, epoch, offset, at: Some((slice, slice_seq)), parts: &parts };
        self.client.delivered(out.streams(self.connection, &frame));
        if let Some(life) = &mut self.client.life {
            life.pattern_delivered(slice.0, slice_seq);
        }
        patterns.passed.tell(self.record.partition(), offset + 1);
        true
    }
}

/// Deltas of one frame.
#[derive(Default)]
struct Gathered {
    parts: Vec<StreamPart>,
    last: Option<(Offset, SliceSeq)>,
}

impl Gathered {
    /// May the delta stand in the same frame? What a subscription has delivered leaves holes.
    fn takes(&self, delta: &DeltaView<'_>, bytes_max: usize) -> bool {
        let known = self.parts.iter().find(|part| *part.stream == *delta.stream);
        let goes_on = known.is_none_or(|part| part.seqs.end == delta.seq);
        goes_on && (self.parts.is_empty() || frame_bytes_max(&self.parts) + delta.text.len() + FRESH_BYTES <= bytes_max)
    }
}
