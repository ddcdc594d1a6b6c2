//! One record: the atom of the log. A record is whole on disk or it does not exist.
//!
//! ```text
//!  0  u32  length      whole record, head and padding included, multiple of 8
//!  4  u32  crc32c      of bytes 8..length
//!  8  u8   kind        1 = commit, 2 = span, 3 = text, 4 = work
//!  9  u8   flags       0
//! 10  u16  slice
//! 12  u32  count       offsets covered, = slice_seqs but for a text; 0 for a record of markers only
//! 16  u64  slice_seq   of the first event; of a text, of its last delta
//! 24  u128 partition
//! 40  u64  offset      of the first event
//! 48  u64  epoch
//! 56  u64  time_ms     wall clock of the append, Unix ms
//! 64  u64  log_seq     dense in the log
//! 72  u32  body_bytes  rkyv root is at the end of body; padding follows
//! 76  u32  reserved 0
//! 80  rkyv body        [`CommitBody`], [`SpanBody`], [`TextBody`] or [`WorkBody`], then zero padding to a multiple of 8
//! ```
//! All integers little endian. Bodies are rkyv 0.8 with `little_endian, unaligned, pointer_width_32`, read in
//! place from any address.

mod bits;
mod text;
mod view;
mod work;

pub use work::{
    ArchivedWorkBody, EntryAct, EntryBody, EntryView, JobAct, JobBody, JobView, Parts, RECORD_ENTRIES_MAX,
    RECORD_JOBS_MAX, VALUE_BYTES_MAX, WorkBody, encode_parts, parts_bytes_max,
};

pub(crate) use text::{ArchivedTextBody, TextMerge, is_mergeable};
pub use text::{DeltaView, Deltas, TEXT_BYTES_MAX, TEXT_DELTAS_MAX, TEXT_PARTS_MAX, TextBody, TextPart};
pub(crate) use view::text_bytes;
pub use view::{EventView, Events, RecordFault, RecordView};

use crate::archived;
use crate::ids::{Epoch, LogSeq, Offset, PartitionId, SliceId, SliceSeq};
use rkyv::with::InlineAsBox;
use rkyv::{Archive, Serialize};
use std::mem::{MaybeUninit, size_of};

/// Bytes before the body.
pub const HEAD_BYTES: usize = 80;

/// Largest count of events in one record.
pub const RECORD_EVENTS_MAX: usize = 256;

/// "No event", where an offset is optional.
pub const NO_OFFSET: u64 = u64::MAX;

/// What a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Events and markers of one session, all or nothing.
    Commit = 1,
    /// Offsets that no longer hold events.
    Span = 2,
    /// Offsets that held deltas of token streams, and their text.
    Text = 3,
    /// As a commit, and entries or jobs with it.
    Work = 4,
}

/// How an event's bytes are to be read by a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum DataKind {
    /// Well-formed JSON, passed through byte for byte.
    Json = 0,
    /// Anything; base64 on a JSON wire.
    Bytes = 1,
    /// The next text of a token stream, as a JSON string. The message id names the stream, the producer seq numbers it.
    Delta = 2,
    /// The end of a token stream: its status as a JSON string, its name and how many deltas it had likewise.
    Close = 3,
}

impl DataKind {
    /// Is the event one of a token stream?
    pub const fn is_stream(self) -> bool {
        matches!(self, DataKind::Delta | DataKind::Close)
    }
}

/// Decoded head of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHead {
    /// Whole length in bytes.
    pub length: u32,
    /// What it is.
    pub kind: Kind,
    /// Slice of the partition.
    pub slice: SliceId,
    /// Offsets covered.
    pub count: u32,
    /// Slice sequence of the first event.
    pub slice_seq: SliceSeq,
    /// Partition.
    pub partition: PartitionId,
    /// Offset of the first event.
    pub offset: Offset,
    /// Incarnation of the session.
    pub epoch: Epoch,
    /// Append time, Unix ms.
    pub time_ms: u64,
    /// Place in the log.
    pub log_seq: LogSeq,
    /// Bytes of the rkyv body.
    pub body_bytes: u32,
}

/// Body of [`Kind::Commit`].
#[derive(Archive, Serialize, Clone, Copy)]
pub struct CommitBody<'a> {
    /// Tenant name.
    #[rkyv(with = InlineAsBox)]
    pub tenant: &'a str,
    /// Session name.
    #[rkyv(with = InlineAsBox)]
    pub session: &'a str,
    /// Events, in offset order.
    #[rkyv(with = InlineAsBox)]
    pub events: &'a [EventBody<'a>],
    /// Markers set by the same record.
    #[rkyv(with = InlineAsBox)]
    pub markers: &'a [MarkerBody<'a>],
}

/// One event.
#[derive(Archive, Serialize, Clone, Copy)]
pub struct EventBody<'a> {
    /// Dotted topic.
    #[rkyv(with = InlineAsBox)]
    pub topic: &'a str,
    /// Who published it.
    #[rkyv(with = InlineAsBox)]
    pub client_id: &'a str,
    /// The publisher's id for it; empty if the producer numbers its messages.
    #[rkyv(with = InlineAsBox)]
    pub message_id: &'a str,
    /// W3C trace context, or empty.
    #[rkyv(with = InlineAsBox)]
    pub traceparent: &'a str,
    /// Payload.
    #[rkyv(with = InlineAsBox)]
    pub data: &'a [u8],
    /// [`DataKind`] as a number.
    pub data_kind: u8,
    /// Offset of the causing event in the same session, or [`NO_OFFSET`].
    pub prev_offset: u64,
    /// Unix ms after which the event is a span; 0 = never.
    pub expires_ms: u64,
    /// Producer epoch; meaningful only where `producer_seq` is not [`NO_OFFSET`].
    pub producer_epoch: u64,
    /// Producer's own dense number, or [`NO_OFFSET`].
    pub producer_seq: u64,
    /// Low half of the 128-bit dedupe key; both halves 0 if the producer numbers its messages.
    pub dedupe_low: u64,
    /// High half of the dedupe key.
    pub dedupe_high: u64,
    /// xxh3-64 of topic, data kind, data and cause: tells a repeat from a reused id.
    pub body_hash: u64,
}

/// A marker set: a named durable cursor.
#[derive(Archive, Serialize, Clone, Copy)]
pub struct MarkerBody<'a> {
    /// Name, unique in the session.
    #[rkyv(with = InlineAsBox)]
    pub name: &'a str,
    /// Next offset its owner wants.
    pub offset: u64,
}

/// Body of [`Kind::Span`].
#[derive(Archive, Serialize, Clone, Copy)]
pub struct SpanBody<'a> {
    /// Tenant name.
    #[rkyv(with = InlineAsBox)]
    pub tenant: &'a str,
    /// Session name.
    #[rkyv(with = InlineAsBox)]
    pub session: &'a str,
    /// Why: 1 = expired, 2 = compacted, 3 = lost to repair.
    pub reason: u8,
}

/// `expires_ms` of an event that never expires.
const NEVER_MS: u64 = 0;

/// Alignment of records inside a group.
pub const RECORD_ALIGN: usize = 8;

/// Scratch the encoder needs: rkyv keeps one resolver per event while it writes their strings.
const SCRATCH_BYTES: usize = 24 * 1024;
const _: () = assert!(size_of::<EventBodyResolver>() * RECORD_EVENTS_MAX <= SCRATCH_BYTES);
const _: () = assert!(size_of::<MarkerBodyResolver>() * RECORD_MARKERS_MAX <= SCRATCH_BYTES);

/// Largest count of markers in one record.
pub const RECORD_MARKERS_MAX: usize = 256;

const KIND_AT: usize = 8;
const FLAGS_AT: usize = 9;
const SLICE_AT: usize = 10;
const COUNT_AT: usize = 12;
const SLICE_SEQ_AT: usize = 16;
const PARTITION_AT: usize = 24;
const OFFSET_AT: usize = 40;
const EPOCH_AT: usize = 48;
const TIME_AT: usize = 56;
const LOG_SEQ_AT: usize = 64;
const BODY_BYTES_AT: usize = 72;
const RESERVED_AT: usize = 76;

/// Exact bytes of the record that [`encode_commit`] makes of this body, padding included. The layout has no
/// alignment inside the body, so nothing is estimated; admission uses it as the upper bound.
pub fn commit_bytes_max(body: &CommitBody<'_>) -> usize {
    let mut bytes = HEAD_BYTES + size_of::<ArchivedCommitBody<'static>>() + body.tenant.len() + body.session.len();
    for event in body.events {
        bytes += size_of::<ArchivedEventBody<'static>>()
            + event.topic.len()
            + event.client_id.len()
            + event.message_id.len()
            + event.traceparent.len()
            + event.data.len();
    }
    for marker in body.markers {
        bytes += size_of::<ArchivedMarkerBody<'static>>() + marker.name.len();
    }
    bytes.next_multiple_of(RECORD_ALIGN)
}

/// Exact bytes of the record that [`encode_span`] makes of this body.
pub fn span_bytes_max(body: &SpanBody<'_>) -> usize {
    (HEAD_BYTES + size_of::<ArchivedSpanBody<'static>>() + body.tenant.len() + body.session.len())
        .next_multiple_of(RECORD_ALIGN)
}

/// Writes one commit record to the start of `out` and returns its length. Allocates nothing. `length`, `kind`, `count`
/// and `body_bytes` of `head` are set from the body, whatever they were.
///
/// # Panics
/// If `out` is shorter than [`commit_bytes_max`] or the body holds more than [`RECORD_EVENTS_MAX`] events or
/// [`RECORD_MARKERS_MAX`] markers: admission was skipped.
pub fn encode_commit(head: &RecordHead, body: &CommitBody<'_>, out: &mut [u8]) -> usize {
    let fits = body.events.len() <= RECORD_EVENTS_MAX && body.markers.len() <= RECORD_MARKERS_MAX;
    assert!(fits, "commands of more events or markers are refused");
    let mut scratch = [MaybeUninit::<u8>::uninit(); SCRATCH_BYTES];
    let body_bytes = archived::serialize(body, &mut out[HEAD_BYTES..], &mut scratch);
    let head = RecordHead { kind: Kind::Commit, count: body.events.len() as u32, ..*head };
    seal(head, body_bytes, out)
}

/// Writes one span record to the start of `out` and returns its length. `count` of `head` says how many offsets it
/// covers.
///
/// # Panics
/// If `out` is shorter than [`span_bytes_max`].
pub fn encode_span(head: &RecordHead, body: &SpanBody<'_>, out: &mut [u8]) -> usize {
    let mut scratch = [MaybeUninit::<u8>::uninit(); 64];
    let body_bytes = archived::serialize(body, &mut out[HEAD_BYTES..], &mut scratch);
    seal(RecordHead { kind: Kind::Span, ..*head }, body_bytes, out)
}

/// Puts the head before a body that is already in place, zeroes the padding and seals both with the checksum.
fn seal(head: RecordHead, body_bytes: usize, out: &mut [u8]) -> usize {
    let length = (HEAD_BYTES + body_bytes).next_multiple_of(RECORD_ALIGN);
    out[HEAD_BYTES + body_bytes..length].fill(0);
    let head = RecordHead { length: length as u32, body_bytes: body_bytes as u32, ..head };
    head.put(out);
    let crc = crc32c::crc32c(&out[KIND_AT..length]);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
    length
}

impl RecordHead {
    fn put(&self, out: &mut [u8]) {
        out[..4].copy_from_slice(&self.length.to_le_bytes());
        out[KIND_AT] = self.kind as u8;
        out[FLAGS_AT] = 0;
        out[SLICE_AT..][..2].copy_from_slice(&self.slice.0.to_le_bytes());
        out[COUNT_AT..][..4].copy_from_slice(&self.count.to_le_bytes());
        out[SLICE_SEQ_AT..][..8].copy_from_slice(&self.slice_seq.to_le_bytes());
        out[PARTITION_AT..][..16].copy_from_slice(&self.partition.0.to_le_bytes());
        out[OFFSET_AT..][..8].copy_from_slice(&self.offset.to_le_bytes());
        out[EPOCH_AT..][..8].copy_from_slice(&self.epoch.to_le_bytes());
        out[TIME_AT..][..8].copy_from_slice(&self.time_ms.to_le_bytes());
        out[LOG_SEQ_AT..][..8].copy_from_slice(&self.log_seq.to_le_bytes());
        out[BODY_BYTES_AT..][..4].copy_from_slice(&self.body_bytes.to_le_bytes());
        out[RESERVED_AT..][..4].fill(0);
    }
}
