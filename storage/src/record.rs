//! One record: the atom of the log. A record is whole on disk or it does not exist.
//!
//! ```text
//!  0  u32  length      whole record, head and padding included, multiple of 8
//!  4  u32  crc32c      of bytes 8..length
//!  8  u8   kind        1 = commit, 2 = span
//!  9  u8   flags       0
//! 10  u16  slice
//! 12  u32  count       offsets covered, = slice_seqs covered; 0 for a record of markers only
//! 16  u64  slice_seq   of the first event
//! 24  u128 partition
//! 40  u64  offset      of the first event
//! 48  u64  epoch
//! 56  u64  time_ms     wall clock of the append, Unix ms
//! 64  u64  log_seq     dense in the log
//! 72  u32  body_bytes  rkyv root is at the end of body; padding follows
//! 76  u32  reserved 0
//! 80  rkyv body        [`CommitBody`] or [`SpanBody`], then zero padding to a multiple of 8
//! ```
//! All integers little endian. Bodies are rkyv 0.8 with `little_endian, unaligned, pointer_width_32`, read in
//! place from any address.

use crate::archived;
use crate::ids::{Epoch, LogSeq, Offset, PartitionId, SliceId, SliceSeq};
use rkyv::with::InlineAsBox;
use rkyv::{Archive, Serialize};
use std::fmt;
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
}

/// How an event's bytes are to be read by a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum DataKind {
    /// Well-formed JSON, passed through byte for byte.
    Json = 0,
    /// Anything; base64 on a JSON wire.
    Bytes = 1,
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

/// What is wrong with bytes that should be a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordFault {
    /// The length field cannot be a record's, or the bytes end before it does.
    Length,
    /// The checksum does not match.
    Checksum,
    /// The checksum matches, but a field of the head holds what no writer of this version writes.
    Head,
    /// The checksum matches, but the body is no valid archive or contradicts the head.
    Body,
}

impl fmt::Display for RecordFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            RecordFault::Length => "record length out of range",
            RecordFault::Checksum => "record checksum mismatch",
            RecordFault::Head => "record head holds an impossible value",
            RecordFault::Body => "record body is not a valid archive",
        })
    }
}

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
    assert!(body.events.len() <= RECORD_EVENTS_MAX && body.markers.len() <= RECORD_MARKERS_MAX);
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

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    match bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        Some(raw) => u32::from_le_bytes(*raw),
        None => 0,
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    match bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        Some(raw) => u64::from_le_bytes(*raw),
        None => 0,
    }
}

/// One record, read in place. A view exists only over bytes that form a valid record: [`RecordView::checked`] proves it,
/// [`RecordView::trusted`] is told so.
#[derive(Clone, Copy)]
pub struct RecordView<'a> {
    /// Exactly the record: `bytes.len()` is its length field.
    bytes: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// View of the record at the start of `bytes` (which may go on behind it), after checking everything that
    /// reading it relies on: length, checksum, head, archive, and that head and body agree.
    pub fn checked(bytes: &'a [u8]) -> Result<RecordView<'a>, RecordFault> {
        let length = u32_at(bytes, 0) as usize;
        if length < HEAD_BYTES || length % RECORD_ALIGN != 0 || length > bytes.len() {
            return Err(RecordFault::Length);
        }
        let bytes = &bytes[..length];
        if crc32c::crc32c(&bytes[KIND_AT..]) != u32_at(bytes, 4) {
            return Err(RecordFault::Checksum);
        }
        let view = RecordView { bytes };
        let kind = match bytes[KIND_AT] {
            1 => Kind::Commit,
            2 => Kind::Span,
            _ => return Err(RecordFault::Head),
        };
        let body_bytes = u32_at(bytes, BODY_BYTES_AT) as usize;
        if bytes[FLAGS_AT] != 0
            || u32_at(bytes, RESERVED_AT) != 0
            || view.slice() != view.partition().slice()
            || view.epoch() == 0
            || view.offset().checked_add(u64::from(view.count())).is_none()
            || view.slice_seq().checked_add(u64::from(view.count())).is_none()
            || body_bytes > length - HEAD_BYTES
            || (HEAD_BYTES + body_bytes).next_multiple_of(RECORD_ALIGN) != length
        {
            return Err(RecordFault::Head);
        }
        let body = &bytes[HEAD_BYTES..HEAD_BYTES + body_bytes];
        let sound = match kind {
            Kind::Commit => archived::check_commit(body).is_some_and(|commit| {
                commit.events.len() == view.count() as usize
                    && commit.events.len() <= RECORD_EVENTS_MAX
                    && commit.markers.len() <= RECORD_MARKERS_MAX
                    && commit.events.iter().all(|event| event.data_kind <= DataKind::Bytes as u8)
            }),
            Kind::Span => archived::check_span(body).is_some(),
        };
        if sound { Ok(view) } else { Err(RecordFault::Body) }
    }

    /// View of the record at the start of `bytes`, checking nothing but its length.
    ///
    /// # Safety
    /// `bytes` must start with a record that this process encoded or [`RecordView::checked`] accepted, unchanged since.
    ///
    /// # Panics
    /// If the length field does not fit `bytes`.
    pub unsafe fn trusted(bytes: &'a [u8]) -> RecordView<'a> {
        let length = u32_at(bytes, 0) as usize;
        assert!(length >= HEAD_BYTES);
        RecordView { bytes: &bytes[..length] }
    }

    /// The record as it stands on disk.
    pub fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// What it is.
    pub fn kind(self) -> Kind {
        if self.bytes[KIND_AT] == Kind::Span as u8 { Kind::Span } else { Kind::Commit }
    }

    /// Slice of the partition.
    pub fn slice(self) -> SliceId {
        SliceId(u16::from_le_bytes([self.bytes[SLICE_AT], self.bytes[SLICE_AT + 1]]))
    }

    /// Offsets (and slice sequence numbers) covered.
    pub fn count(self) -> u32 {
        u32_at(self.bytes, COUNT_AT)
    }

    /// Slice sequence of the first event; of a record of markers only, that of the next event.
    pub fn slice_seq(self) -> SliceSeq {
        u64_at(self.bytes, SLICE_SEQ_AT)
    }

    /// Partition.
    pub fn partition(self) -> PartitionId {
        PartitionId(
            u128::from(u64_at(self.bytes, PARTITION_AT)) | u128::from(u64_at(self.bytes, PARTITION_AT + 8)) << 64,
        )
    }

    /// Offset of the first event; of a record of markers only, that of the next event.
    pub fn offset(self) -> Offset {
        u64_at(self.bytes, OFFSET_AT)
    }

    /// Offset after the last event: where the next record of the partition starts.
    pub fn next_offset(self) -> Offset {
        self.offset() + u64::from(self.count())
    }

    /// Incarnation of the session.
    pub fn epoch(self) -> Epoch {
        u64_at(self.bytes, EPOCH_AT)
    }

    /// Append time, Unix ms.
    pub fn time_ms(self) -> u64 {
        u64_at(self.bytes, TIME_AT)
    }

    /// Place in the log that first appended it.
    pub fn log_seq(self) -> LogSeq {
        u64_at(self.bytes, LOG_SEQ_AT)
    }

    /// The whole head, decoded.
    pub fn head(self) -> RecordHead {
        RecordHead {
            length: self.bytes.len() as u32,
            kind: self.kind(),
            slice: self.slice(),
            count: self.count(),
            slice_seq: self.slice_seq(),
            partition: self.partition(),
            offset: self.offset(),
            epoch: self.epoch(),
            time_ms: self.time_ms(),
            log_seq: self.log_seq(),
            body_bytes: u32_at(self.bytes, BODY_BYTES_AT),
        }
    }

    /// Tenant name.
    pub fn tenant(self) -> &'a str {
        match self.kind() {
            Kind::Commit => &self.commit().tenant,
            Kind::Span => &self.span().tenant,
        }
    }

    /// Session name.
    pub fn session(self) -> &'a str {
        match self.kind() {
            Kind::Commit => &self.commit().session,
            Kind::Span => &self.span().session,
        }
    }

    /// Events in offset order; none of a span.
    pub fn events(self) -> Events<'a> {
        let count = match self.kind() {
            Kind::Commit => self.count(),
            Kind::Span => 0,
        };
        Events { record: self, next: 0, count }
    }

    /// Markers set by this record, as (name, next offset wanted).
    pub fn markers(self) -> impl Iterator<Item = (&'a str, Offset)> {
        let markers: &'a [ArchivedMarkerBody<'static>] = match self.kind() {
            Kind::Commit => &self.commit().markers,
            Kind::Span => &[],
        };
        markers.iter().map(|marker| (&*marker.name, marker.offset.to_native()))
    }

    /// Why a span holds no events ([`SpanBody::reason`]); 0 of a commit.
    pub fn span_reason(self) -> u8 {
        match self.kind() {
            Kind::Commit => 0,
            Kind::Span => self.span().reason,
        }
    }

    fn body(self) -> &'a [u8] {
        &self.bytes[HEAD_BYTES..HEAD_BYTES + u32_at(self.bytes, BODY_BYTES_AT) as usize]
    }

    fn commit(self) -> &'a ArchivedCommitBody<'static> {
        debug_assert_eq!(self.kind(), Kind::Commit);
        // SAFETY: a view exists only over a valid record (see the type), and this one is a commit.
        unsafe { archived::commit(self.body()) }
    }

    fn span(self) -> &'a ArchivedSpanBody<'static> {
        debug_assert_eq!(self.kind(), Kind::Span);
        // SAFETY: as above, and this one is a span.
        unsafe { archived::span(self.body()) }
    }
}

impl fmt::Debug for RecordView<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.head().fmt(out)
    }
}

/// Events of one record, in offset order.
#[derive(Clone)]
pub struct Events<'a> {
    record: RecordView<'a>,
    next: u32,
    count: u32,
}

impl<'a> Iterator for Events<'a> {
    type Item = EventView<'a>;

    fn next(&mut self) -> Option<EventView<'a>> {
        if self.next >= self.count {
            return None;
        }
        let index = self.next;
        self.next += 1;
        Some(EventView { record: self.record, index, event: &self.record.commit().events[index as usize] })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.count - self.next) as usize;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Events<'_> {}

/// One event of a record, read in place.
#[derive(Clone, Copy)]
pub struct EventView<'a> {
    record: RecordView<'a>,
    index: u32,
    event: &'a ArchivedEventBody<'static>,
}

impl<'a> EventView<'a> {
    /// Record that holds it.
    pub fn record(self) -> RecordView<'a> {
        self.record
    }

    /// Tenant name.
    pub fn tenant(self) -> &'a str {
        self.record.tenant()
    }

    /// Session name.
    pub fn session(self) -> &'a str {
        self.record.session()
    }

    /// Incarnation of the session.
    pub fn epoch(self) -> Epoch {
        self.record.epoch()
    }

    /// Offset in its session.
    pub fn offset(self) -> Offset {
        self.record.offset() + u64::from(self.index)
    }

    /// Slice of its session.
    pub fn slice(self) -> SliceId {
        self.record.slice()
    }

    /// Place in its slice.
    pub fn slice_seq(self) -> SliceSeq {
        self.record.slice_seq() + u64::from(self.index)
    }

    /// Append time, Unix ms.
    pub fn time_ms(self) -> u64 {
        self.record.time_ms()
    }

    /// Dotted topic.
    pub fn topic(self) -> &'a str {
        &self.event.topic
    }

    /// Who published it.
    pub fn client_id(self) -> &'a str {
        &self.event.client_id
    }

    /// The publisher's id for it; empty if the producer numbers its messages.
    pub fn message_id(self) -> &'a str {
        &self.event.message_id
    }

    /// W3C trace context, or empty.
    pub fn traceparent(self) -> &'a str {
        &self.event.traceparent
    }

    /// Payload.
    pub fn data(self) -> &'a [u8] {
        &self.event.data
    }

    /// How the payload is to be read.
    pub fn data_kind(self) -> DataKind {
        if self.event.data_kind == DataKind::Bytes as u8 { DataKind::Bytes } else { DataKind::Json }
    }

    /// Offset of the causing event in the same session.
    pub fn prev_offset(self) -> Option<Offset> {
        let offset = self.event.prev_offset.to_native();
        (offset != NO_OFFSET).then_some(offset)
    }

    /// Unix ms after which it is a span.
    pub fn expires_ms(self) -> Option<u64> {
        let expires_ms = self.event.expires_ms.to_native();
        (expires_ms != NEVER_MS).then_some(expires_ms)
    }

    /// Producer epoch and number, where the producer numbers its messages.
    pub fn producer(self) -> Option<(u64, u64)> {
        let seq = self.event.producer_seq.to_native();
        (seq != NO_OFFSET).then_some((self.event.producer_epoch.to_native(), seq))
    }

    /// Key under which a repeat is found; none where the producer numbers its messages.
    pub fn dedupe_key(self) -> Option<u128> {
        let key = u128::from(self.event.dedupe_low.to_native()) | u128::from(self.event.dedupe_high.to_native()) << 64;
        (key != 0).then_some(key)
    }

    /// Hash of what the publisher said, see [`EventBody::body_hash`].
    pub fn body_hash(self) -> u64 {
        self.event.body_hash.to_native()
    }
}

impl fmt::Debug for EventView<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("EventView")
            .field("session", &self.session())
            .field("offset", &self.offset())
            .field("slice_seq", &self.slice_seq())
            .field("topic", &self.topic())
            .field("message_id", &self.message_id())
            .field("data_bytes", &self.data().len())
            .finish()
    }
}
