//! A CommitGroup: the records that share one sync, valid only as a whole.
//!
//! ```text
//!  0  u32  magic "TGRP"
//!  4  u16  format version
//!  6  u16  flags             0
//!  8  u32  group_bytes       header, records and zero padding; multiple of 4096
//! 12  u32  records_bytes
//! 16  u32  count             records
//! 20  u32  segment number
//! 24  u32  log
//! 28  u32  position          own byte position in the segment / 4096
//! 32  u64  group             dense number in the log, from 1
//! 40  u64  first_log_seq
//! 48  u64  durable_through   every group up to this one was durable when this one was closed; 0 = none known
//! 56  u32  salt              keyed hash of the segment's name under the folder's key
//! 60  u32  crc32c            of bytes 0..60
//! 64  records, packed back to back
//! ```
//! The header names its own place, so that a block which a disk put somewhere else, or which an earlier life of the
//! file left behind, is never taken for a group; and the salt, so that a client cannot publish bytes that recovery, when
//! it looks for evidence behind a torn group, takes for a header. `durable_through` is what tells a torn tail from corruption: a later
//! group that says "g was durable" turns an unreadable g into damage that a human must see.

use crate::ids::{COUNTER_MAX, LogId, LogSeq, SegmentId};
use crate::record::{RecordFault, RecordView};
use crate::segment::{FORMAT_VERSION, is_readable};
use std::fmt;

/// Grain of positions and lengths on disk: what O_DIRECT needs.
pub const BLOCK_BYTES: usize = 4096;

/// Bytes before the records.
pub const GROUP_HEAD_BYTES: usize = 64;

const MAGIC: u32 = u32::from_le_bytes(*b"TGRP");

/// Dense number of a group in its log, from 1.
pub type GroupNumber = u64;

/// Decoded header of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupHeader {
    /// Bytes on disk, padding included.
    pub group_bytes: u32,
    /// Bytes of records.
    pub records_bytes: u32,
    /// Records.
    pub count: u32,
    /// Segment it was written to.
    pub segment: SegmentId,
    /// Byte position it was written to.
    pub position: u64,
    /// Its number.
    pub group: GroupNumber,
    /// Log sequence of its first record.
    pub first_log_seq: LogSeq,
    /// Every group up to this one was durable when this one was closed.
    pub durable_through: GroupNumber,
    /// [`crate::ids::HashKey::segment_salt`] of the segment.
    pub salt: u32,
}

/// What is wrong with bytes that should be a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GroupFault {
    /// No header of this version: magic, checksum or an impossible length.
    Header,
    /// A sound header, but of another place, another log or out of turn.
    Misplaced,
    /// The file ends inside the group.
    Short,
    /// A record does not verify.
    Record {
        /// Byte position in the group.
        at: u32,
        /// What is wrong with it.
        fault: RecordFault,
    },
    /// All records verify, but they are not those the header announces.
    Records,
}

impl fmt::Display for GroupFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GroupFault::Header => out.write_str("no valid group header"),
            GroupFault::Misplaced => out.write_str("group header of another place or out of turn"),
            GroupFault::Short => out.write_str("file ends inside the group"),
            GroupFault::Record { at, fault } => write!(out, "{fault} at byte {at} of the group"),
            GroupFault::Records => out.write_str("records are not those the group header announces"),
        }
    }
}

/// Bytes that a group with this many bytes of records takes on disk.
pub const fn group_bytes(records_bytes: usize) -> usize {
    (GROUP_HEAD_BYTES + records_bytes).next_multiple_of(BLOCK_BYTES)
}

impl GroupHeader {
    /// Writes the header to the first [`GROUP_HEAD_BYTES`] of `out`.
    pub fn put(&self, out: &mut [u8]) {
        let out = &mut out[..GROUP_HEAD_BYTES];
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[6..8].fill(0);
        out[8..12].copy_from_slice(&self.group_bytes.to_le_bytes());
        out[12..16].copy_from_slice(&self.records_bytes.to_le_bytes());
        out[16..20].copy_from_slice(&self.count.to_le_bytes());
        out[20..24].copy_from_slice(&self.segment.number.to_le_bytes());
        out[24..28].copy_from_slice(&self.segment.log.0.to_le_bytes());
        out[28..32].copy_from_slice(&((self.position / BLOCK_BYTES as u64) as u32).to_le_bytes());
        out[32..40].copy_from_slice(&self.group.to_le_bytes());
        out[40..48].copy_from_slice(&self.first_log_seq.to_le_bytes());
        out[48..56].copy_from_slice(&self.durable_through.to_le_bytes());
        out[56..60].copy_from_slice(&self.salt.to_le_bytes());
        let crc = crc32c::crc32c(&out[..60]);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a header; none if the bytes are not one of this version with possible lengths.
    pub fn get(bytes: &[u8]) -> Option<GroupHeader> {
        let head: &[u8; GROUP_HEAD_BYTES] = bytes.first_chunk()?;
        let u32_at = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let version = u16::from_le_bytes([head[4], head[5]]);
        if u32_at(0) != MAGIC || !is_readable(version) || head[6..8] != [0, 0] {
            return None;
        }
        if crc32c::crc32c(&head[..60]) != u32_at(60) {
            return None;
        }
        let header = GroupHeader {
            group_bytes: u32_at(8),
            records_bytes: u32_at(12),
            count: u32_at(16),
            segment: SegmentId { log: LogId(u32_at(24)), number: u32_at(20) },
            position: u64::from(u32_at(28)) * BLOCK_BYTES as u64,
            group: u64_at(32),
            first_log_seq: u64_at(40),
            durable_through: u64_at(48),
            salt: u32_at(56),
        };
        let whole = (GROUP_HEAD_BYTES as u64 + u64::from(header.records_bytes)).next_multiple_of(BLOCK_BYTES as u64);
        let sound = header.durable_through < header.group && header.group.max(header.first_log_seq) <= COUNTER_MAX;
        (u64::from(header.group_bytes) == whole && sound).then_some(header)
    }
}

/// The place where a group is expected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupPlace {
    /// Segment that is being read.
    pub segment: SegmentId,
    /// Its salt.
    pub salt: u32,
    /// Byte position in it.
    pub position: u64,
    /// Number that is next.
    pub group: GroupNumber,
    /// Log sequence that is next; none in a clustered segment, whose records come from many places.
    pub first_log_seq: Option<LogSeq>,
}

/// Checks a whole group: header, place, and every record with [`RecordView::checked`]. `bytes` starts at the group and may go
/// on behind it.
pub fn check_group(bytes: &[u8], place: GroupPlace) -> Result<GroupHeader, GroupFault> {
    let header = GroupHeader::get(bytes).ok_or(GroupFault::Header)?;
    if header.segment != place.segment
        || header.salt != place.salt
        || header.position != place.position
        || header.group != place.group
        || place.first_log_seq.is_some_and(|log_seq| log_seq != header.first_log_seq)
    {
        return Err(GroupFault::Misplaced);
    }
    if bytes.len() < header.group_bytes as usize {
        return Err(GroupFault::Short);
    }
    let end = GROUP_HEAD_BYTES + header.records_bytes as usize;
    let mut at = GROUP_HEAD_BYTES;
    let mut count = 0;
    while at < end {
        let record =
            RecordView::checked(&bytes[at..end]).map_err(|fault| GroupFault::Record { at: at as u32, fault })?;
        if place.first_log_seq.is_some_and(|first| record.log_seq() != first.wrapping_add(u64::from(count))) {
            return Err(GroupFault::Records);
        }
        count += 1;
        at += record.bytes().len();
    }
    if count == header.count { Ok(header) } else { Err(GroupFault::Records) }
}

/// Records of a group that [`check_group`] accepted, each with its byte position inside the group.
pub fn group_records<'a>(bytes: &'a [u8], header: &GroupHeader) -> impl Iterator<Item = (u32, RecordView<'a>)> {
    let end = GROUP_HEAD_BYTES + header.records_bytes as usize;
    let mut at = GROUP_HEAD_BYTES;
    std::iter::from_fn(move || {
        let record = bytes.get(at..end).filter(|rest| !rest.is_empty()).map(RecordView::checked)?.ok()?;
        let position = at as u32;
        at += record.bytes().len();
        Some((position, record))
    })
}
