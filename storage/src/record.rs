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
//! 80  rkyv body        [`CommitBody`] or [`SpanBody`]
//! ```
//! All integers little endian. Bodies are rkyv 0.8 with `little_endian, unaligned, pointer_width_32`, read in
//! place from any address.

use crate::ids::{Epoch, LogSeq, Offset, PartitionId, SliceId, SliceSeq};
use rkyv::with::InlineAsBox;
use rkyv::{Archive, Serialize};

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
