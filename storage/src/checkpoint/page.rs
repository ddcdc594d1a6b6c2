//! Pages of a checkpoint: sorted entries behind a checksum.
//!
//! ```text
//!  0  u32  crc32c   of bytes 4..length
//!  4  u32  length   of the page, a multiple of 4096
//!  8  u32  block    own place in the file / 4096
//! 12  u32  used     bytes of entries
//! 16  u16  magic    0x4750
//! 18  zero
//! 24  entries, packed, sorted by partition; zero padding
//! ```

use super::{BadCheckpoint, CheckpointIndex, PAGE_BYTES_MAX};
use crate::bytes::Take;
use crate::catalog::Place;
use crate::group::BLOCK_BYTES;
use crate::ids::{LogId, PartitionId};

pub(super) const PAGE_MAGIC: u16 = 0x4750;
pub(super) const PAGE_HEAD_BYTES: usize = 24;
/// An entry up to and with `changed`.
pub(super) const ENTRY_PREFIX_BYTES: usize = 56;

/// One entry as it lies in a page or draft: its key, the last record in it, its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// Partition.
    pub id: PartitionId,
    /// Last record in this state.
    pub changed: Place,
    /// The whole entry.
    pub bytes: &'a [u8],
}

/// First entry of `bytes`, if they begin with one.
pub(super) fn entry_at(bytes: &[u8]) -> Option<Entry<'_>> {
    let mut take = Take(bytes);
    let length = take.u32()? as usize;
    let id = PartitionId(take.u128()?);
    take.bytes(24)?;
    let changed = Place { log: LogId(take.u32()?), log_seq: take.u64()? };
    (length >= ENTRY_PREFIX_BYTES).then_some(())?;
    Some(Entry { id, changed, bytes: bytes.get(..length)? })
}

/// Length of the page that begins at `bytes`, before it is verified; `None` if that cannot be a page.
pub(super) fn page_length(bytes: &[u8]) -> Option<usize> {
    let length = Take(bytes.get(4..)?).u32()? as usize;
    (length.is_multiple_of(BLOCK_BYTES) && (BLOCK_BYTES..=PAGE_BYTES_MAX).contains(&length)).then_some(length)
}

/// Verifies a page read from block `block` and gives its packed entries.
pub(super) fn page_entries(page: &[u8], block: u32) -> Option<&[u8]> {
    let mut take = Take(page);
    let crc = take.u32()?;
    let length = take.u32()? as usize;
    // The block number is inside, so that a page read from the wrong place does not pass for the right one.
    if length != page.len() || crc != crc32c::crc32c(&page[4..]) || take.u32()? != block {
        return None;
    }
    let used = take.u32()? as usize;
    let magic = take.u16()?;
    (magic == PAGE_MAGIC).then_some(())?;
    page.get(PAGE_HEAD_BYTES..PAGE_HEAD_BYTES.checked_add(used)?)
}

/// Looks for `id` in the page that [`CheckpointIndex::page_of`] named, read from `at`.
///
/// # Errors
/// The page does not verify.
pub fn find_in_page(page: &[u8], at: u64, id: PartitionId) -> Result<Option<Entry<'_>>, BadCheckpoint> {
    let corrupt = BadCheckpoint::Corrupt { at };
    let block = u32::try_from(at / BLOCK_BYTES as u64).map_err(|_| corrupt)?;
    let mut rest = page_entries(page, block).ok_or(corrupt)?;
    while !rest.is_empty() {
        let entry = entry_at(rest).ok_or(corrupt)?;
        if entry.id == id {
            return Ok(Some(entry));
        }
        rest = &rest[entry.bytes.len()..];
    }
    Ok(None)
}

/// Every entry of a whole checkpoint file, in order, each page verified: for `log verify`, `log dump` and [`reshape`](super::reshape()).
/// After an error there is nothing more.
pub fn entries<'a>(index: &CheckpointIndex, bytes: &'a [u8]) -> Entries<'a> {
    let end = usize::try_from(index.pages_end()).unwrap_or(usize::MAX).min(bytes.len());
    Entries { pages: &bytes[..end], at: BLOCK_BYTES, rest: &[], before: None, last: None }
}

/// See [`entries`].
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    pages: &'a [u8],
    at: usize,
    rest: &'a [u8],
    before: Option<PartitionId>,
    last: Option<BadCheckpoint>,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, BadCheckpoint>;

    fn next(&mut self) -> Option<Self::Item> {
        let corrupt = BadCheckpoint::Corrupt { at: self.at as u64 };
        if self.last.is_some() {
            return None;
        }
        if self.rest.is_empty() {
            let bytes = self.pages.get(self.at..).filter(|bytes| !bytes.is_empty())?;
            let page = page_length(bytes).and_then(|length| bytes.get(..length));
            let Some(entries) = page.and_then(|page| page_entries(page, (self.at / BLOCK_BYTES) as u32)) else {
                self.last = Some(corrupt);
                return Some(Err(corrupt));
            };
            self.at += page.map_or(0, <[u8]>::len);
            self.rest = entries;
        }
        let entry = entry_at(self.rest).filter(|entry| self.before.is_none_or(|before| before < entry.id));
        let Some(entry) = entry else {
            self.last = Some(corrupt);
            return Some(Err(corrupt));
        };
        self.rest = &self.rest[entry.bytes.len()..];
        self.before = Some(entry.id);
        Some(Ok(entry))
    }
}

/// Verifies every page.
///
/// # Errors
/// The first page that does not verify, or a count other than the footer's.
pub fn verify_pages(index: &CheckpointIndex, bytes: &[u8]) -> Result<(), BadCheckpoint> {
    let mut count = 0;
    for entry in entries(index, bytes) {
        entry?;
        count += 1;
    }
    if count == index.entries { Ok(()) } else { Err(BadCheckpoint::Corrupt { at: BLOCK_BYTES as u64 }) }
}
