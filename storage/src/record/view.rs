//! Reading a record in place: checked once, then looked at without a copy.

use super::*;
use crate::archived;
use crate::catalog::StreamStep;
use crate::ids::COUNTER_MAX;
use std::fmt;

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
        if length < HEAD_BYTES || !length.is_multiple_of(RECORD_ALIGN) || length > bytes.len() {
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
            3 => Kind::Text,
            4 => Kind::Work,
            _ => return Err(RecordFault::Head),
        };
        let body_bytes = u32_at(bytes, BODY_BYTES_AT) as usize;
        if bytes[FLAGS_AT] != 0
            || u32_at(bytes, RESERVED_AT) != 0
            || view.slice() != view.partition().slice()
            || view.epoch() == 0
            || view.offset().max(view.slice_seq()).max(view.log_seq()) > COUNTER_MAX
            || body_bytes > length - HEAD_BYTES
            || (HEAD_BYTES + body_bytes).next_multiple_of(RECORD_ALIGN) != length
        {
            return Err(RecordFault::Head);
        }
        let body = &bytes[HEAD_BYTES..HEAD_BYTES + body_bytes];
        let commit_is_sound = |commit: &ArchivedCommitBody<'static>| {
            commit.events.len() == view.count() as usize
                && commit.events.len() <= RECORD_EVENTS_MAX
                && commit.markers.len() <= RECORD_MARKERS_MAX
                && commit.events.iter().all(|event| event.data_kind <= DataKind::Close as u8)
        };
        let sound = match kind {
            Kind::Commit => archived::check_commit(body).is_some_and(commit_is_sound),
            Kind::Work => {
                archived::check_work(body).is_some_and(|work| commit_is_sound(&work.commit) && work.is_sound())
            }
            Kind::Span => archived::check_span(body).is_some(),
            Kind::Text => archived::check_text(body).is_some_and(|text| text::is_sound(text, view)),
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
        assert!(length >= HEAD_BYTES, "a record starts here, as the caller vouches");
        RecordView { bytes: &bytes[..length] }
    }

    /// The record as it stands on disk.
    pub fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// What it is.
    pub fn kind(self) -> Kind {
        match self.bytes[KIND_AT] {
            2 => Kind::Span,
            3 => Kind::Text,
            4 => Kind::Work,
            _ => Kind::Commit,
        }
    }

    /// Slice of the partition.
    pub fn slice(self) -> SliceId {
        SliceId(u16::from_le_bytes([self.bytes[SLICE_AT], self.bytes[SLICE_AT + 1]]))
    }

    /// Offsets covered.
    pub fn count(self) -> u32 {
        u32_at(self.bytes, COUNT_AT)
    }

    /// Where it stands in its slice: slice sequence of the first event; of a text, of its last delta; of a record of markers only,
    /// that of the next event.
    pub fn slice_seq(self) -> SliceSeq {
        u64_at(self.bytes, SLICE_SEQ_AT)
    }

    /// Slice sequences from there on that are its own: one of a text, because others lie between those of its deltas.
    pub fn slice_count(self) -> u32 {
        if self.kind() == Kind::Text { 1 } else { self.count() }
    }

    /// Lowest slice sequence of what it holds.
    pub fn first_slice_seq(self) -> SliceSeq {
        match self.kind() {
            Kind::Text => self.text().first_slice_seq.to_native(),
            Kind::Commit | Kind::Span | Kind::Work => self.slice_seq(),
        }
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
            Kind::Commit | Kind::Work => &self.commit().tenant,
            Kind::Span => &self.span().tenant,
            Kind::Text => &self.text().tenant,
        }
    }

    /// Session name.
    pub fn session(self) -> &'a str {
        match self.kind() {
            Kind::Commit | Kind::Work => &self.commit().session,
            Kind::Span => &self.span().session,
            Kind::Text => &self.text().session,
        }
    }

    /// Events in offset order; none of a span, and of a text [`RecordView::deltas`].
    pub fn events(self) -> Events<'a> {
        let count = match self.kind() {
            Kind::Commit | Kind::Work => self.count(),
            Kind::Span | Kind::Text => 0,
        };
        Events { record: self, next: 0, count }
    }

    /// Markers set by this record, as (name, next offset wanted).
    pub fn markers(self) -> impl Iterator<Item = (&'a str, Offset)> {
        let markers: &'a [ArchivedMarkerBody<'static>] = match self.kind() {
            Kind::Commit | Kind::Work => &self.commit().markers,
            Kind::Span | Kind::Text => &[],
        };
        markers.iter().map(|marker| (&*marker.name, marker.offset.to_native()))
    }

    /// Deltas that were merged into a text, in offset order; none of other records.
    pub fn deltas(self) -> Deltas<'a> {
        match self.kind() {
            Kind::Text => Deltas::of(self.text(), self.offset(), self.next_offset()),
            Kind::Commit | Kind::Span | Kind::Work => Deltas::none(),
        }
    }

    /// Shows each delta, whether merged or an event of its own, until one is not taken. Were all?
    pub(crate) fn each_delta(self, mut take: impl FnMut(DeltaView<'a>) -> bool) -> bool {
        self.deltas().all(&mut take) && self.events().filter_map(EventView::delta).all(&mut take)
    }

    /// Why a span holds no events ([`SpanBody::reason`]); 0 of others.
    pub fn span_reason(self) -> u8 {
        match self.kind() {
            Kind::Commit | Kind::Text | Kind::Work => 0,
            Kind::Span => self.span().reason,
        }
    }

    pub(super) fn body(self) -> &'a [u8] {
        &self.bytes[HEAD_BYTES..HEAD_BYTES + u32_at(self.bytes, BODY_BYTES_AT) as usize]
    }

    fn commit(self) -> &'a ArchivedCommitBody<'static> {
        if self.kind() == Kind::Work {
            return &self.work().commit;
        }
        debug_assert_eq!(self.kind(), Kind::Commit);
        // SAFETY: a view exists only over a valid record (see the type), and this one is a commit.
        unsafe { archived::commit(self.body()) }
    }

    pub(super) fn work(self) -> &'a ArchivedWorkBody<'static> {
        debug_assert_eq!(self.kind(), Kind::Work);
        // SAFETY: as above, and this one is work.
        unsafe { archived::work(self.body()) }
    }

    fn span(self) -> &'a ArchivedSpanBody<'static> {
        debug_assert_eq!(self.kind(), Kind::Span);
        // SAFETY: as for a commit, and this one is a span.
        unsafe { archived::span(self.body()) }
    }

    fn text(self) -> &'a ArchivedTextBody<'static> {
        debug_assert_eq!(self.kind(), Kind::Text);
        // SAFETY: as above, and this one is a text.
        unsafe { archived::text(self.body()) }
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
        const KINDS: [DataKind; 4] = [DataKind::Json, DataKind::Bytes, DataKind::Delta, DataKind::Close];
        KINDS.get(usize::from(self.event.data_kind)).copied().unwrap_or(DataKind::Json)
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
        let numbered = seq != NO_OFFSET && !self.data_kind().is_stream();
        numbered.then_some((self.event.producer_epoch.to_native(), seq))
    }

    /// The stream that it belongs to and its number there (of the end: how many deltas there were), if it is of a stream.
    pub fn stream(self) -> Option<(&'a str, u64)> {
        self.data_kind().is_stream().then(|| (&*self.event.message_id, self.event.producer_seq.to_native()))
    }

    /// The delta that it is, if it is one.
    pub fn delta(self) -> Option<DeltaView<'a>> {
        let (stream, seq) = self.stream().filter(|_| self.data_kind() == DataKind::Delta)?;
        let (offset, slice_seq, topic) = (self.offset(), self.slice_seq(), self.topic());
        Some(DeltaView { stream, topic, seq, offset, slice_seq, text: text::delta_text(self.data())? })
    }

    /// What a catalog keeps of it, if it is of a stream.
    pub(crate) fn stream_step(self) -> Option<StreamStep<'a>> {
        let (name, seq) = self.stream()?;
        Some(StreamStep {
            name,
            topic: self.topic(),
            seq,
            offset: self.offset(),
            text_bytes: text_bytes(self.data()),
            body_hash: self.body_hash(),
            closes: self.data_kind() == DataKind::Close,
        })
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

/// Bytes of text in a delta: what stands between the quotes.
pub(crate) fn text_bytes(data: &[u8]) -> u64 {
    data.len().saturating_sub(2) as u64
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
