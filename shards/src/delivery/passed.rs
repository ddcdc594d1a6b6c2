//! How far a pattern feed has come in each slice, and deltas that the log has merged, from there on.
//!
//! ```text
//!   slice 7     70 a   71 ·   72 a │ 73 a   77 ·   78 a      a: deltas of one stream, ·: others
//!                              passed
//!   the log, later:  one text a 70..78, which stands at 78   ─►  stream.delta of 73 and 78
//! ```
//! A feed that is live is behind nothing; when it falls behind, what its shard has offered until then is what it has passed. A scan
//! that finds its file replaced begins the new one: what it brings again is left out here.
//!
//! Memory: 8 KiB a feed that is behind, and a shard.

use super::Pushed;
use super::client::Client;
use super::patterns::{PatternFeed, SessionFeeds};
use crate::ids::{ConnectionId, Offset, SliceId, SliceSeq};
use crate::outbox::{Outbox, StreamFrame, StreamPart};
use crate::streams::gathered::{add_to, frame_bytes_max};
use storage::ids::SLICES;
use storage::record::{DeltaView, RecordView};

/// Room that is left in a frame for another stream's names and the session's.
const FRESH_BYTES: usize = 1024;

/// Of each slice the last sequence that was passed; none yet, until something is.
#[derive(Default, Debug)]
pub(crate) struct Passed(Box<[SliceSeq]>);

impl Passed {
    fn slices(&mut self) -> &mut [SliceSeq] {
        if self.0.is_empty() {
            self.0 = vec![0; SLICES.into()].into();
        }
        &mut self.0
    }

    /// A record was passed.
    pub fn pass(&mut self, record: RecordView<'_>) {
        if record.count() > 0 {
            self.pass_to(record.slice(), record.slice_seq() + u64::from(record.slice_count()) - 1);
        }
    }

    fn pass_to(&mut self, slice: SliceId, seq: SliceSeq) {
        if let Some(at) = self.slices().get_mut(usize::from(slice.0)) {
            *at = seq.max(*at);
        }
    }

    /// Takes over what another has passed, of some slices.
    pub fn join(&mut self, other: &Passed, of: impl Fn(SliceId) -> bool) {
        let others = (0..).map(SliceId).zip(&other.0).filter(|(slice, seq)| **seq > 0 && of(*slice));
        for (slice, seq) in others {
            self.pass_to(slice, *seq);
        }
    }

    fn of(&self, slice: SliceId) -> SliceSeq {
        self.0.get(usize::from(slice.0)).copied().unwrap_or(0)
    }

    /// Was all of the record passed?
    pub fn has(&self, record: RecordView<'_>) -> bool {
        record.slice_seq() + u64::from(record.slice_count()) <= self.of(record.slice()) + 1
    }

    /// It is behind nothing.
    pub fn forget(&mut self) {
        self.0 = Box::default();
    }
}

/// A text on its way to one pattern client.
pub(super) struct TextPush<'a> {
    pub client: &'a mut Client,
    pub connection: ConnectionId,
    pub record: RecordView<'a>,
    /// Deltas that the client had before it came.
    pub seen: u32,
    pub frame_bytes_max: usize,
}

impl TextPush<'_> {
    /// Pushes what a pattern matches, in as many frames as it takes. Blocked: what was pushed is passed.
    pub fn push(&mut self, patterns: &mut PatternFeed, mut feeds: SessionFeeds<'_>, out: &mut impl Outbox) -> Pushed {
        let (record, partition) = (self.record, self.record.partition());
        let passed = patterns.passed.of(record.slice());
        let mut covering = feeds.covering(self.client, partition);
        let mut gathered = Gathered::default();
        for delta in record.deltas().skip(self.seen as usize).filter(|delta| delta.slice_seq > passed) {
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
        if !self.client.has_credit() || out.room(self.connection) < frame_bytes_max(&parts) + 2 * session.len() {
            return false;
        }
        let frame = StreamFrame { session, epoch, offset, at: Some((slice, slice_seq)), parts: &parts };
        self.client.delivered(out.streams(self.connection, &frame));
        if let Some(life) = &mut self.client.life {
            life.ledger.passed();
            life.seen.delivered(slice.0, slice_seq);
        }
        patterns.passed.pass_to(slice, slice_seq);
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
