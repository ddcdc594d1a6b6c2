//! Where deliveries go: the edge's send queues, seen from the core. The core asks for room and pushes; it never
//! queues a delivery itself, so a slow reader costs a cursor and nothing else.

pub mod entries;
pub mod jobs;
pub mod roster;
pub mod runs;

pub use entries::{EntriesFrame, EntryItem};
pub(crate) use entries::{item_bytes_max, put_item};
pub use jobs::{DeadFrame, DeadJob, JobFrame};
pub(crate) use jobs::{dead_bytes_max, put_dead};
pub use roster::{CHANGE_BYTES_MAX, Happened, ReceiptsOfAll, RosterChange, RosterFrame, RosterValue};
pub use runs::{RunEvent, RunFrame, RunHead};
pub(crate) use runs::{get_run_head, put_run_event, put_run_head, run_bytes_min, run_event_bytes_max};

use crate::ids::{CommandId, ConnectionId, Epoch, Offset, SliceId, SliceSeq};
use crate::streams::gathered::add_to;
use crate::traces::Trace;
use storage::record::{DataKind, EventView, RecordView};

/// Why offsets were skipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GapReason {
    /// Retention removed them.
    Retention,
    /// They expired or were compacted.
    Expired,
    /// The subscription's policy skipped them.
    Policy,
    /// The session began a new life.
    Epoch,
    /// The bytes on disk are damaged; the operator has a report.
    Damaged,
}

/// Offsets of a session that will not be delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gap<'a> {
    /// Session.
    pub session: &'a str,
    /// Its epoch.
    pub epoch: Epoch,
    /// First.
    pub from: Offset,
    /// One past the last.
    pub to: Offset,
    /// Why.
    pub reason: GapReason,
}

/// Events that a pattern feed will not deliver, because they are gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PatternGap {
    /// Slice, first and one past the last slice sequence; `None` where a reader was overtaken and only that is known.
    pub slice: Option<(SliceId, SliceSeq, SliceSeq)>,
    /// Why.
    pub reason: GapReason,
}

/// An event that is never logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VolatileEvent<'a> {
    /// Session.
    pub session: &'a str,
    /// Topic.
    pub topic: &'a str,
    /// Who sent it.
    pub client_id: &'a str,
    /// Next offset when it was taken in.
    pub after_offset: Offset,
    /// The session's own count of volatile events since the shard started.
    pub counter: u64,
    /// Payload.
    pub data: &'a [u8],
    /// How to read it.
    pub data_kind: DataKind,
    /// W3C trace context, or empty.
    pub traceparent: &'a str,
}

/// Head of a page of history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HistoryHead<'a> {
    /// Session.
    pub session: &'a str,
    /// Its epoch.
    pub epoch: Epoch,
    /// Where the next page starts.
    pub next: Offset,
    /// First offset not yet committed.
    pub tail: Offset,
}

/// What one stream said, merged: a run of its deltas, and its end if that is among them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamPart {
    /// Stream.
    pub stream: Box<str>,
    /// Topic of its events.
    pub topic: Box<str>,
    /// Numbers of the deltas; empty where only its end is here.
    pub seqs: std::ops::Range<u64>,
    /// Their text, back to back: JSON string bytes without the quotes.
    pub text: Vec<u8>,
    /// How it ended, as a JSON string; empty while it is open.
    pub status: Vec<u8>,
}

/// Neighbouring events of streams as one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamFrame<'a> {
    /// Session.
    pub session: &'a str,
    /// Its epoch.
    pub epoch: Epoch,
    /// The last of the events: with it the reader has all before. `Offset::MAX`: more is to follow first.
    pub offset: Offset,
    /// Its place in its slice, where a feed of patterns counts by that.
    pub at: Option<(SliceId, SliceSeq)>,
    /// By stream.
    pub parts: &'a [StreamPart],
}

/// What stands in a page of history.
#[derive(Clone, Copy, Debug)]
pub enum PageItem<'a> {
    /// An event.
    Event(EventView<'a>),
    /// Deltas that the log has merged, of these offsets.
    Text(RecordView<'a>, Offset, Offset),
}

impl PageItem<'_> {
    /// Its offset; of deltas, the last one's.
    pub fn offset(&self) -> Offset {
        match self {
            PageItem::Event(event) => event.offset(),
            PageItem::Text(_, _, to) => to - 1,
        }
    }
}

/// What streams said in a record of merged deltas, from one offset to before another.
pub fn text_parts(record: RecordView<'_>, from: Offset, to: Offset) -> Vec<StreamPart> {
    let mut parts = Vec::new();
    let wanted = record.deltas().filter(|delta| (from..to).contains(&delta.offset));
    wanted.for_each(|delta| add_to(&mut parts, &delta.into()));
    parts
}

/// A control event was committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Notice<'a> {
    /// Session.
    pub session: &'a str,
    /// Its epoch.
    pub epoch: Epoch,
    /// The event's offset.
    pub offset: Offset,
    /// Its topic.
    pub topic: &'a str,
}

/// Send queues of one shard's connections. Every call names a connection; one that is gone takes nothing and is
/// told apart by `room` = 0.
pub trait Outbox {
    /// Bytes the connection's send queue still takes for deliveries.
    fn room(&self, connection: ConnectionId) -> usize;

    /// Queues an event frame and returns its payload bytes. The caller has seen `room` ≥ [`event_bytes_max`].
    /// Frames of one event are the same for every connection: encode once.
    fn event(&mut self, connection: ConnectionId, event: &EventView<'_>) -> usize;

    /// A committed record is about to be delivered; `trace` is its way so far.
    fn walked(&mut self, _trace: &Trace, _record: RecordView<'_>) {}

    /// A message of another shard was handled that had waited for so long.
    fn mail_waited(&mut self, _us: u32) {}

    /// Queues a volatile frame and returns its payload bytes.
    fn volatile(&mut self, connection: ConnectionId, event: &VolatileEvent<'_>) -> usize;

    /// Queues a frame of merged deltas and returns its payload bytes.
    fn streams(&mut self, connection: ConnectionId, frame: &StreamFrame<'_>) -> usize;

    /// Queues a notice before all that waits. Where too many wait already it is given up: the event itself will come.
    fn notice(&mut self, connection: ConnectionId, notice: &Notice<'_>);

    /// Queues a gap frame.
    fn gap(&mut self, connection: ConnectionId, gap: &Gap<'_>);

    /// Queues a gap frame of a pattern feed.
    fn pattern_gap(&mut self, connection: ConnectionId, gap: &PatternGap);

    /// Queues a frame about a roster. The caller has seen `room` ≥ [`RosterFrame::bytes_max`]. `again`: it is the frame of the call
    /// before, for another connection.
    fn roster(&mut self, connection: ConnectionId, frame: &RosterFrame<'_>, again: bool);

    /// Queues a frame about entries: the answer to the command of this id, or, without one, news for a watcher. The caller has seen
    /// `room` ≥ [`EntriesFrame::bytes_max`].
    fn entries(&mut self, connection: ConnectionId, id: CommandId, frame: &EntriesFrame<'_>);

    /// Queues a job for its worker. The caller has seen `room` ≥ [`JobFrame::bytes_max`].
    fn job(&mut self, connection: ConnectionId, frame: &JobFrame<'_>);

    /// Queues a run for a member of a group. The caller has seen `room` ≥ [`RunFrame::bytes_max`].
    fn run(&mut self, connection: ConnectionId, frame: &RunFrame<'_>);

    /// Queues a page of dead letters: the answer to the command of this id. The caller has seen `room` ≥ [`DeadFrame::bytes_max`].
    fn dead(&mut self, connection: ConnectionId, id: CommandId, frame: &DeadFrame<'_>);

    /// Queues the reply to `history`: one frame of events.
    fn history(
        &mut self,
        connection: ConnectionId,
        id: CommandId,
        head: &HistoryHead<'_>,
        items: &mut dyn Iterator<Item = PageItem<'_>>,
    );
}

/// Upper bound of an event's frame on any wire: base64 and JSON escapes of names never exceed it.
/// Names and topics hold no byte that JSON escapes; `message_id` and `traceparent` are held to the same set.
pub fn event_bytes_max(event: &EventView<'_>) -> usize {
    let data = match event.data_kind() {
        DataKind::Json | DataKind::Delta | DataKind::Close => event.data().len(),
        DataKind::Bytes => event.data().len().div_ceil(3) * 4 + 2,
    };
    data + event.topic().len()
        + 3 * event.session().len()
        + event.client_id().len()
        + event.message_id().len()
        + event.traceparent().len()
        + EVENT_FRAME_OVERHEAD_BYTES_MAX
}

/// Everything in an event frame that is not a name or data: keys, numbers, frame head.
pub const EVENT_FRAME_OVERHEAD_BYTES_MAX: usize = 384;

/// A gap frame without the session name.
pub const GAP_FRAME_BYTES_MAX: usize = 256;
