//! A segment file: one header block, then groups; and the verdict on one that is read back.
//!
//! ```text
//!  block 0                                    block 1 …                              end of file
//!  ┌───────────────┬──────────┬───────────┬──────────┬─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─┐
//!  │ SegmentHeader │ group g  │ group g+1 │ group …  │ zeros                        │
//!  └───────────────┴──────────┴───────────┴──────────┴─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─┘
//!
//!  SegmentHeader   0  u64  magic "TIDESEG\0"
//!                  8  u16  format version
//!                 10  u8   kind             1 = appended, 2 = clustered
//!                 11  u8   flags            bit 0: written without sync, so a hole in it is no proof of damage
//!                 12  u32  log
//!                 16  u32  number
//!                 20  u32  previous number  of the segment before it; own number = none
//!                 24  u64  previous end     where the valid bytes of that segment end, for ever
//!                 32  u64  bytes            length of the file
//!                 40  u64  first group
//!                 48  u64  first log_seq
//!                 56  u32  salt             keyed hash of the segment's name under the folder's key
//!                 60  u32  crc32c           of bytes 0..60; the rest of the block is zero
//! ```
//! The header goes to disk in the same write as the segment's first group, and only when every group of the
//! predecessor is durable. So a valid header proves where its predecessor ends: what lies behind that end (a torn
//! group that a recovery cut off, a whole one behind it) can never come back.

use crate::catalog::ReplayFault;
use crate::group::{BLOCK_BYTES, GroupFault, GroupHeader, GroupNumber, GroupPlace, check_group, group_records};
use crate::ids::{COUNTER_MAX, LogId, LogSeq, SegmentId};
use crate::record::RecordView;
use std::fmt;

/// Version of everything in `FORMAT.md`. A reader takes this version and the one before; a writer writes this one.
pub const FORMAT_VERSION: u16 = 2;

/// The oldest that it reads.
pub const FORMAT_VERSION_MIN: u16 = FORMAT_VERSION - 1;

/// Can this build read what was written in this version?
pub const fn is_readable(version: u16) -> bool {
    version >= FORMAT_VERSION_MIN && version <= FORMAT_VERSION
}

const MAGIC: u64 = u64::from_le_bytes(*b"TIDESEG\0");
const HEAD_BYTES: usize = 64;
const FLAG_UNSYNCED: u8 = 1;

/// Who filled a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum SegmentKind {
    /// A log, in the order of its appends.
    Appended = 1,
    /// Re-clustering: records of many segments, sorted by slice, partition, offset. `log_seq` is not dense in it.
    Clustered = 2,
}

/// Decoded header of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// Own name.
    pub segment: SegmentId,
    /// Who filled it.
    pub kind: SegmentKind,
    /// Written by a log that does not sync (`serve --sync off`).
    pub unsynced: bool,
    /// The segment before it in the same log, and where its valid bytes end.
    pub previous: Option<(u32, u64)>,
    /// Length of the file.
    pub bytes: u64,
    /// Number of the group in block 1.
    pub first_group: GroupNumber,
    /// Log sequence of the first record.
    pub first_log_seq: LogSeq,
    /// [`crate::ids::HashKey::segment_salt`] of the segment.
    pub salt: u32,
}

impl SegmentHeader {
    /// Writes the header block to the first [`BLOCK_BYTES`] of `out`.
    pub fn put(&self, out: &mut [u8]) {
        let out = &mut out[..BLOCK_BYTES];
        out.fill(0);
        let (previous, previous_end) = self.previous.unwrap_or((self.segment.number, 0));
        out[0..8].copy_from_slice(&MAGIC.to_le_bytes());
        out[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[10] = self.kind as u8;
        out[11] = if self.unsynced { FLAG_UNSYNCED } else { 0 };
        out[12..16].copy_from_slice(&self.segment.log.0.to_le_bytes());
        out[16..20].copy_from_slice(&self.segment.number.to_le_bytes());
        out[20..24].copy_from_slice(&previous.to_le_bytes());
        out[24..32].copy_from_slice(&previous_end.to_le_bytes());
        out[32..40].copy_from_slice(&self.bytes.to_le_bytes());
        out[40..48].copy_from_slice(&self.first_group.to_le_bytes());
        out[48..56].copy_from_slice(&self.first_log_seq.to_le_bytes());
        out[56..60].copy_from_slice(&self.salt.to_le_bytes());
        let crc = crc32c::crc32c(&out[..60]);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a header block.
    pub fn get(bytes: &[u8]) -> Result<SegmentHeader, HeaderFault> {
        let head: &[u8; HEAD_BYTES] = bytes.first_chunk().ok_or(HeaderFault::Damaged)?;
        let u32_at = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if head.iter().all(|byte| *byte == 0) {
            return Err(HeaderFault::Unused);
        }
        if u64_at(0) != MAGIC || crc32c::crc32c(&head[..60]) != u32_at(60) {
            return Err(HeaderFault::Damaged);
        }
        let version = u16::from_le_bytes([head[8], head[9]]);
        if !is_readable(version) {
            return Err(HeaderFault::Version { found: version });
        }
        let kind = match head[10] {
            1 => SegmentKind::Appended,
            2 => SegmentKind::Clustered,
            _ => return Err(HeaderFault::Damaged),
        };
        let number = u32_at(16);
        let previous = u32_at(20);
        if head[11] & !FLAG_UNSYNCED != 0 || previous > number || u64_at(40).max(u64_at(48)) > COUNTER_MAX {
            return Err(HeaderFault::Damaged);
        }
        Ok(SegmentHeader {
            segment: SegmentId { log: LogId(u32_at(12)), number },
            kind,
            unsynced: head[11] & FLAG_UNSYNCED != 0,
            previous: (previous != number).then_some((previous, u64_at(24))),
            bytes: u64_at(32),
            first_group: u64_at(40),
            first_log_seq: u64_at(48),
            salt: u32_at(56),
        })
    }
}

/// Why block 0 is no header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderFault {
    /// All zero: prepared, never used.
    Unused,
    /// Not a header, or a broken one.
    Damaged,
    /// A header of a version this build does not read.
    Version {
        /// Version in the file.
        found: u16,
    },
}

/// What a segment turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Every byte up to the end is accounted for.
    Clean,
    /// The last write did not finish, nothing that was ever durable is missing: cut here and go on.
    TornTail {
        /// First byte that is not part of the log any more.
        at: u64,
    },
    /// Something that was durable cannot be read. Boot stops for a human.
    Corrupt {
        /// First byte that does not verify.
        at: u64,
        /// What is wrong there.
        damage: Damage,
    },
}

/// Why a segment is corrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    /// The header block is gone although groups of this segment were durable.
    Header,
    /// The header is of a format version that this build cannot read.
    Version {
        /// Version in the file.
        found: u16,
    },
    /// The header is another segment's, or does not continue its predecessor.
    Misplaced,
    /// The file is shorter than the day it was prepared.
    FileShort,
    /// A group that was durable does not verify.
    Group(GroupFault),
    /// The file is gone although it must be there.
    Missing,
    /// A table (checkpoint) does not verify.
    Table,
    /// The records verify, but do not continue what is known of their session.
    Replay(ReplayFault),
    /// Groups go on beyond the end that the successor fixed: the successor or this segment is not what it says.
    BeyondEnd,
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Clean => out.write_str("clean"),
            Verdict::TornTail { at } => write!(out, "torn tail at byte {at}: cut, nothing durable is missing"),
            Verdict::Corrupt { at, damage } => {
                write!(out, "CORRUPT at byte {at}: ")?;
                match damage {
                    Damage::Header => out.write_str("segment header is damaged although its groups were durable"),
                    Damage::Version { found } => {
                        write!(
                            out,
                            "format version {found}, this build reads {FORMAT_VERSION_MIN} to {FORMAT_VERSION}; use the build that wrote it"
                        )
                    }
                    Damage::Misplaced => out.write_str("segment does not continue its predecessor"),
                    Damage::FileShort => out.write_str("file is shorter than when it was prepared"),
                    Damage::Group(fault) => fault.fmt(out),
                    Damage::Missing => out.write_str("file is missing"),
                    Damage::Table => out.write_str("table does not verify"),
                    Damage::Replay(ReplayFault::Hole { expected, found }) => {
                        write!(out, "offset {found} where {expected} is next: a record before it is missing")
                    }
                    Damage::Replay(ReplayFault::Collision) => out.write_str("two sessions share one hash"),
                    Damage::Replay(ReplayFault::Names) => out.write_str("a name is longer than any the server accepts"),
                    Damage::Replay(ReplayFault::Checkpoint { at }) => {
                        write!(out, "the checkpoint's page at byte {at} does not verify")
                    }
                    Damage::BeyondEnd => out.write_str("a group reaches beyond the end that the next segment fixed"),
                }
            }
        }
    }
}

/// What is known about a segment before it is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentExpect {
    /// Its name.
    pub segment: SegmentId,
    /// Its salt.
    pub salt: u32,
    /// Where it must start, if its predecessor is known: group number and log sequence.
    pub first: Option<(GroupNumber, LogSeq)>,
    /// Where its valid bytes end, if a successor or a checkpoint fixed that.
    pub fixed_end: Option<u64>,
    /// Bytes before this position were durable, says somebody else (a checkpoint). 0 = nobody says anything.
    pub durable_end: u64,
}

/// What was found in a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentScan {
    /// Its header, if it has one.
    pub header: Option<SegmentHeader>,
    /// The verdict.
    pub verdict: Verdict,
    /// End of the valid bytes; 0 if not even the header is.
    pub end: u64,
    /// Valid groups.
    pub groups: u32,
    /// Valid records.
    pub records: u64,
    /// Number after the last valid group.
    pub next_group: GroupNumber,
    /// Log sequence after the last valid record.
    pub next_log_seq: LogSeq,
    /// Highest group that a valid group of this segment says was durable.
    pub durable_through: GroupNumber,
}

/// Reads a whole segment file: checks each group before its records are shown to `visit` (with their byte position),
/// stops at the first group that does not verify, and decides what that means.
///
/// With an invalid group g: `Corrupt` if the bytes must hold it (a fixed or durable end lies behind it, or a later valid
/// header of this segment says that g was durable), else `TornTail`. All zero from there on is `Clean`.
pub fn scan_segment(bytes: &[u8], expect: SegmentExpect, mut visit: impl FnMut(u64, RecordView<'_>)) -> SegmentScan {
    let (first_group, first_log_seq) = expect.first.unwrap_or((0, 0));
    let mut scan = SegmentScan {
        header: None,
        verdict: Verdict::Clean,
        end: 0,
        groups: 0,
        records: 0,
        next_group: first_group,
        next_log_seq: first_log_seq,
        durable_through: 0,
    };
    let corrupt = |at: u64, damage: Damage| Verdict::Corrupt { at, damage };
    let header = match SegmentHeader::get(bytes) {
        Ok(header) => header,
        Err(HeaderFault::Version { found }) => {
            scan.verdict = corrupt(0, Damage::Version { found });
            return scan;
        }
        Err(_) => {
            let must_exist = expect.fixed_end.is_some() || expect.durable_end > 0;
            let proof = durable_evidence(bytes, 0, expect) >= expect.first.map_or(1, |(group, _)| group);
            scan.verdict = if must_exist || proof {
                corrupt(0, Damage::Header)
            } else if bytes.iter().all(|byte| *byte == 0) {
                Verdict::Clean
            } else {
                Verdict::TornTail { at: 0 }
            };
            return scan;
        }
    };
    if header.segment != expect.segment
        || header.salt != expect.salt
        || expect.first.is_some_and(|first| first != (header.first_group, header.first_log_seq))
    {
        scan.verdict = corrupt(0, Damage::Misplaced);
        return scan;
    }
    scan.header = Some(header);
    if bytes.len() < BLOCK_BYTES {
        scan.verdict = corrupt(0, Damage::FileShort);
        return scan;
    }
    scan.end = BLOCK_BYTES as u64;
    scan.next_group = header.first_group;
    scan.next_log_seq = header.first_log_seq;
    let dense = header.kind == SegmentKind::Appended;

    let fault = loop {
        let at = scan.end;
        if expect.fixed_end == Some(at) {
            return scan;
        }
        let rest = bytes.get(at as usize..).unwrap_or_default();
        if rest.is_empty() && header.bytes == at {
            break None;
        }
        let place = GroupPlace {
            segment: expect.segment,
            salt: expect.salt,
            position: at,
            group: scan.next_group,
            first_log_seq: dense.then_some(scan.next_log_seq),
        };
        let group = match check_group(rest, place) {
            Ok(group) => group,
            Err(fault) => break Some(fault),
        };
        let end = at + u64::from(group.group_bytes);
        if expect.fixed_end.is_some_and(|fixed| end > fixed) {
            scan.verdict = corrupt(at, Damage::BeyondEnd);
            return scan;
        }
        for (position, record) in group_records(rest, &group) {
            visit(at + u64::from(position), record);
        }
        scan.end = end;
        scan.groups += 1;
        scan.records += u64::from(group.count);
        scan.next_group += 1;
        scan.next_log_seq += u64::from(group.count);
        scan.durable_through = scan.durable_through.max(group.durable_through);
    };

    let at = scan.end;
    let must_exist = expect.fixed_end.is_some_and(|end| end > at) || expect.durable_end > at;
    scan.verdict = match fault {
        None if !must_exist => Verdict::Clean,
        None => corrupt(at, Damage::FileShort),
        Some(fault) if must_exist => corrupt(at, Damage::Group(fault)),
        Some(_) if (bytes.len() as u64) < header.bytes => corrupt(at, Damage::FileShort),
        Some(_) if bytes.get(at as usize..).unwrap_or_default().iter().all(|byte| *byte == 0) => Verdict::Clean,
        Some(fault) if durable_evidence(bytes, at, expect) >= scan.next_group => corrupt(at, Damage::Group(fault)),
        Some(_) => Verdict::TornTail { at },
    };
    scan
}

/// Highest `durable_through` of any valid group header of this segment in the blocks from `from` on; 0 if there is none.
fn durable_evidence(bytes: &[u8], from: u64, expect: SegmentExpect) -> GroupNumber {
    let mut at = (from as usize).next_multiple_of(BLOCK_BYTES);
    let mut durable_through = 0;
    while let Some(block) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        if let Some(group) = GroupHeader::get(block)
            && group.segment == expect.segment
            && group.salt == expect.salt
            && group.position == at as u64
        {
            durable_through = durable_through.max(group.durable_through);
        }
        at += BLOCK_BYTES;
    }
    durable_through
}
