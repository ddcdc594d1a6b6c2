//! A checkpoint: every partition of one log as of a place in it, sorted, so that one block answers one question.
//!
//! ```text
//!   block 0   header     magic "TGCKPT01", version, log, number                          crc
//!   block 1…  pages      sorted entries; one block each, more only for one large entry   crc each
//!             tables     page index · filter · next slice_seq of every slice
//!                        · partitions with open streams, entries or jobs                crc together
//!   last      footer     magic "TGCKEND1", sizes, counts, log position, clean stop       crc
//! ```
//! In memory stay the tables ([`CheckpointIndex`]): the filter says "surely new" without a read, the page index says which
//! page to read. Byte tables are in `FORMAT.md`.
//!
//! Checkpoints are fuzzy: the catalog collects dirty partitions over many turns into a [`Draft`]; a background job merges
//! it with the previous checkpoint, streaming. Replay starts where the collection started, and an entry names the last
//! record it holds, so replaying over newer state skips exactly what is there.

mod merge;
mod page;
mod reshape;
mod write;

pub use merge::{CheckpointJob, CheckpointRun, Draft, Previous, merge};
pub use page::{Entries, Entry, entries, find_in_page, verify_pages};
pub use reshape::{Target, reshape};

use crate::bytes::{Put, Take};
use crate::catalog::ENTRY_BYTES_MAX;
use crate::disk::FileId;
use crate::filter::Filter;
use crate::group::BLOCK_BYTES;
use crate::ids::{COUNTER_MAX, LogId, LogSeq, PartitionId, SLICES, SliceSeq};
use crate::jobs::CHUNK_BYTES;
use crate::recluster::SEGMENTS_END;
use crate::segment::{FORMAT_VERSION, is_readable};
use page::PAGE_HEAD_BYTES;

/// Version this build writes.
pub const CHECKPOINT_VERSION: u32 = FORMAT_VERSION as u32;
/// Largest page: one entry of the largest size.
pub const PAGE_BYTES_MAX: usize = (PAGE_HEAD_BYTES + ENTRY_BYTES_MAX).next_multiple_of(BLOCK_BYTES);

const HEADER_MAGIC: [u8; 8] = *b"TGCKPT01";
const FOOTER_MAGIC: [u8; 8] = *b"TGCKEND1";
const PAGE_REF_BYTES: usize = 24;
const SLICE_TABLE_BYTES: usize = SLICES as usize * 8;
const PARTITION_BYTES: usize = 16;

// A chunk must hold the largest page, or a merge would wait for bytes that never come. FORMAT names the 53.
const _: () = assert!(PAGE_BYTES_MAX <= CHUNK_BYTES && PAGE_BYTES_MAX == 53 * BLOCK_BYTES);

/// A place in one log from which replay can start: the beginning of a CommitGroup.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct LogPosition {
    /// Segment number.
    pub segment: u32,
    /// Byte position of the group in it.
    pub at: u64,
    /// Group number.
    pub group: u64,
    /// First record not covered.
    pub log_seq: LogSeq,
}

/// Why bytes are not a usable checkpoint or page of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadCheckpoint {
    /// Written by another version of the format.
    Version {
        /// Version found.
        found: u32,
    },
    /// Does not verify.
    Corrupt {
        /// Byte position of the structure at fault.
        at: u64,
    },
}

/// What stays in memory of a checkpoint. One per shard, owned by its catalog.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckpointIndex {
    /// Log it belongs to.
    pub log: LogId,
    /// Dense number inside the log.
    pub number: u32,
    /// Replay starts here.
    pub position: LogPosition,
    /// Written by a clean stop: nothing follows the position.
    pub clean_stop: bool,
    /// Partitions in it.
    pub entries: u64,
    pages: Vec<PageRef>,
    filter: Filter,
    slice_next: Vec<SliceSeq>,
    /// Partitions with open streams, entries or jobs, ascending.
    streaming: Vec<PartitionId>,
}

/// A page: where it is and the first partition in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct PageRef {
    first: PartitionId,
    block: u32,
    blocks: u32,
}

/// Bytes to read to answer for one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageAt {
    /// Checkpoint file.
    pub file: FileId,
    /// Byte position, a multiple of [`BLOCK_BYTES`].
    pub at: u64,
    /// Bytes, a multiple of [`BLOCK_BYTES`], at most [`PAGE_BYTES_MAX`].
    pub len: usize,
}

impl CheckpointIndex {
    /// Its file.
    pub fn file(&self) -> FileId {
        FileId::Checkpoint(self.log, self.number)
    }

    /// Page that holds `id` if any does; `None` means the partition is surely not in the checkpoint.
    pub fn page_of(&self, id: PartitionId) -> Option<PageAt> {
        if !self.filter.maybe(id.0) {
            return None;
        }
        let page = self.pages[self.pages.partition_point(|page| page.first <= id).checked_sub(1)?];
        let (at, len) = (u64::from(page.block) * BLOCK_BYTES as u64, page.blocks as usize * BLOCK_BYTES);
        Some(PageAt { file: self.file(), at, len })
    }

    /// Next slice sequence of every slice as far as the checkpoint knows, indexed by slice.
    pub fn slice_next(&self) -> &[SliceSeq] {
        &self.slice_next
    }

    /// Partitions with open streams, entries or jobs, ascending.
    pub fn streaming(&self) -> &[PartitionId] {
        &self.streaming
    }

    /// User memory in bytes: 24 a page (about 30 partitions), 12 bits a partition, 8 KiB of slices.
    pub fn memory_bytes(&self) -> usize {
        size_of::<CheckpointIndex>()
            + self.pages.capacity() * size_of::<PageRef>()
            + self.filter.as_bytes().len()
            + self.slice_next.capacity() * 8
            + self.streaming.capacity() * PARTITION_BYTES
    }

    /// Bytes of the header and all pages.
    fn pages_end(&self) -> u64 {
        let last = self.pages.last().map_or(1, |page| u64::from(page.block) + u64::from(page.blocks));
        last * BLOCK_BYTES as u64
    }

    /// Reads the tables of a whole checkpoint file. Pages are verified when they are read, or by [`verify_pages`].
    ///
    /// # Errors
    /// Another version, or bytes that do not verify.
    pub fn parse(log: LogId, number: u32, bytes: &[u8]) -> Result<CheckpointIndex, BadCheckpoint> {
        let corrupt = |at: usize| BadCheckpoint::Corrupt { at: at as u64 };
        parse_header(log, number, bytes)?;
        let footer_at = bytes.len().checked_sub(BLOCK_BYTES).filter(|at| *at >= BLOCK_BYTES).ok_or(corrupt(0))?;
        let (tables, footer) = bytes.split_at(footer_at);
        let footer = Footer::parse(footer).ok_or(corrupt(footer_at))?;
        let sizes = [footer.pages_bytes, footer.index_bytes, footer.filter_bytes, footer.streaming_bytes];
        let total = sizes.iter().try_fold(BLOCK_BYTES as u64 + SLICE_TABLE_BYTES as u64, |sum, n| sum.checked_add(*n));
        let padded = total.and_then(|total| total.checked_next_multiple_of(BLOCK_BYTES as u64));
        if padded != Some(footer_at as u64) || !footer.pages_bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return Err(corrupt(footer_at));
        }
        // Memory of the next checkpoint's filter goes by the count: no more entries than the pages have room for.
        if footer.entries > footer.pages_bytes / page::ENTRY_PREFIX_BYTES as u64 {
            return Err(corrupt(footer_at));
        }
        let tables_at = BLOCK_BYTES + footer.pages_bytes as usize;
        let tables = &tables[tables_at..];
        if crc32c::crc32c(tables) != footer.tables_crc {
            return Err(corrupt(tables_at));
        }
        let (index, rest) = tables.split_at(footer.index_bytes as usize);
        let (filter, rest) = rest.split_at(footer.filter_bytes as usize);
        let pages = parse_pages(index, (tables_at / BLOCK_BYTES) as u64).ok_or(corrupt(tables_at))?;
        let filter = Filter::from_bytes(filter).ok_or(corrupt(tables_at + index.len()))?;
        let (slices, streaming) = rest.split_at(SLICE_TABLE_BYTES);
        let slice_next: Vec<SliceSeq> = slices.as_chunks().0.iter().map(|seq| u64::from_le_bytes(*seq)).collect();
        let (streaming, odd) = streaming[..footer.streaming_bytes as usize].as_chunks();
        let streaming: Vec<PartitionId> = streaming.iter().map(|id| PartitionId(u128::from_le_bytes(*id))).collect();
        if slice_next.iter().any(|seq| *seq > COUNTER_MAX) || !odd.is_empty() {
            return Err(corrupt(tables_at + tables.len() - rest.len()));
        }
        let (position, clean_stop, entries) = (footer.position, footer.clean_stop, footer.entries);
        Ok(CheckpointIndex { log, number, position, clean_stop, entries, pages, filter, slice_next, streaming })
    }
}

fn parse_header(log: LogId, number: u32, bytes: &[u8]) -> Result<(), BadCheckpoint> {
    let corrupt = BadCheckpoint::Corrupt { at: 0 };
    let header = bytes.get(..BLOCK_BYTES).ok_or(corrupt)?;
    let mut take = Take(header);
    if take.bytes(8) != Some(&HEADER_MAGIC) {
        return Err(corrupt);
    }
    let (Some(version), Some(crc)) = (take.u32(), take.u32()) else { return Err(corrupt) };
    // The crc covers the version too, so that a flipped bit is damage and not "another version".
    if crc != header_crc(header, 12) {
        return Err(corrupt);
    }
    if !u16::try_from(version).is_ok_and(is_readable) {
        return Err(BadCheckpoint::Version { found: version });
    }
    if take.u32() != Some(log.0) || take.u32() != Some(number) {
        return Err(corrupt);
    }
    Ok(())
}

/// Crc32c of a block with the four bytes of the crc itself, at `crc_at`, left out.
fn header_crc(block: &[u8], crc_at: usize) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[..crc_at]), &block[crc_at + 4..])
}

fn parse_pages(index: &[u8], blocks_end: u64) -> Option<Vec<PageRef>> {
    let (refs, rest) = index.as_chunks::<PAGE_REF_BYTES>();
    if !rest.is_empty() {
        return None;
    }
    let mut pages: Vec<PageRef> = Vec::with_capacity(refs.len());
    let mut next_block = 1u64;
    for bytes in refs {
        let mut take = Take(bytes);
        let page = PageRef { first: PartitionId(take.u128()?), block: take.u32()?, blocks: take.u32()? };
        let ordered = pages.last().is_none_or(|before| before.first < page.first);
        let fits = (1..=PAGE_BYTES_MAX / BLOCK_BYTES).contains(&(page.blocks as usize));
        if !ordered || !fits || u64::from(page.block) != next_block {
            return None;
        }
        next_block += u64::from(page.blocks);
        pages.push(page);
    }
    (next_block == blocks_end).then_some(pages)
}

/// Last block of the file: what the tables are and what the checkpoint stands for.
struct Footer {
    tables_crc: u32,
    pages_bytes: u64,
    index_bytes: u64,
    filter_bytes: u64,
    entries: u64,
    position: LogPosition,
    clean_stop: bool,
    streaming_bytes: u64,
}

impl Footer {
    fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.put(&FOOTER_MAGIC);
        out.put_u32(0);
        out.put_u32(self.tables_crc);
        out.put_u64(self.pages_bytes);
        out.put_u64(self.index_bytes);
        out.put_u64(self.filter_bytes);
        out.put_u64(self.entries);
        out.put_u32(self.position.segment);
        out.put_u32(self.clean_stop.into());
        out.put_u64(self.position.at);
        out.put_u64(self.position.group);
        out.put_u64(self.position.log_seq);
        out.put_u64(self.streaming_bytes);
        out.resize(start + BLOCK_BYTES, 0);
        let crc = header_crc(&out[start..], 8);
        out[start + 8..start + 12].copy_from_slice(&crc.to_le_bytes());
    }

    fn parse(block: &[u8]) -> Option<Footer> {
        let mut take = Take(block);
        if take.bytes(8)? != FOOTER_MAGIC || take.u32()? != header_crc(block, 8) {
            return None;
        }
        let tables_crc = take.u32()?;
        let (pages_bytes, index_bytes, filter_bytes, entries) = (take.u64()?, take.u64()?, take.u64()?, take.u64()?);
        let (segment, clean_stop) = (take.u32()?, take.u32()? != 0);
        let position = LogPosition { segment, at: take.u64()?, group: take.u64()?, log_seq: take.u64()? };
        // Absent where streams were not known yet: zero.
        let streaming_bytes = take.u64()?;
        let sound = position.segment < SEGMENTS_END && position.group.max(position.log_seq) <= COUNTER_MAX;
        sound.then_some(Footer {
            tables_crc,
            pages_bytes,
            index_bytes,
            filter_bytes,
            entries,
            position,
            clean_stop,
            streaming_bytes,
        })
    }
}

/// A checkpoint made in memory: the bytes of its file, and its tables.
pub type Made = (Vec<u8>, CheckpointIndex);
