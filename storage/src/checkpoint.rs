//! A checkpoint: every partition of one log as of a place in it, sorted, so that one block answers one question.
//!
//! ```text
//!   block 0   header     magic "TGCKPT01", version, log, number                          crc
//!   block 1…  pages      sorted entries; one block each, more only for one large entry   crc each
//!             tables     page index · filter · next slice_seq of every slice             crc together
//!   last      footer     magic "TGCKEND1", sizes, counts, log position, clean stop       crc
//! ```
//! In memory stay the tables ([`CheckpointIndex`]): the filter says "surely new" without a read, the page index says which
//! page to read. Byte tables are in `FORMAT.md`.
//!
//! Checkpoints are fuzzy: the catalog collects dirty partitions over many turns into a [`Draft`]; a background job merges
//! it with the previous checkpoint, streaming. Replay starts where the collection started, and an entry names the last
//! record it holds, so replaying over newer state skips exactly what is there.

use crate::bytes::{Put, Take};
use crate::catalog::{ENTRY_BYTES_MAX, Place};
use crate::disk::FileId;
use crate::filter::Filter;
use crate::group::BLOCK_BYTES;
use crate::ids::{LogId, LogSeq, PartitionId, SLICES, SliceId, SliceSeq};
use crate::jobs::{CHUNK_BYTES, JobDone, Step};
use std::ops::Range;

/// Version this build writes, and the only one it reads.
pub const CHECKPOINT_VERSION: u32 = 1;
/// Largest page: one entry of the largest size.
pub const PAGE_BYTES_MAX: usize = (PAGE_HEAD_BYTES + ENTRY_BYTES_MAX).next_multiple_of(BLOCK_BYTES);

const HEADER_MAGIC: [u8; 8] = *b"TGCKPT01";
const FOOTER_MAGIC: [u8; 8] = *b"TGCKEND1";
const PAGE_MAGIC: u16 = 0x4750;
const PAGE_HEAD_BYTES: usize = 24;
const PAGE_REF_BYTES: usize = 24;
const SLICE_TABLE_BYTES: usize = SLICES as usize * 8;
/// An entry up to and with `changed`.
const ENTRY_PREFIX_BYTES: usize = 56;

// A page must fit the arithmetic of its u32 length field, and a chunk must hold the largest page or a merge would stall.
const _: () = assert!(PAGE_BYTES_MAX <= CHUNK_BYTES);

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

    /// User memory in bytes: 24 a page (about 30 partitions), 12 bits a partition, 8 KiB of slices.
    pub fn memory_bytes(&self) -> usize {
        size_of::<CheckpointIndex>()
            + self.pages.capacity() * size_of::<PageRef>()
            + self.filter.as_bytes().len()
            + self.slice_next.capacity() * 8
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
        let sizes = [footer.pages_bytes, footer.index_bytes, footer.filter_bytes];
        let total = sizes.iter().try_fold(BLOCK_BYTES as u64 + SLICE_TABLE_BYTES as u64, |sum, n| sum.checked_add(*n));
        let padded = total.and_then(|total| total.checked_next_multiple_of(BLOCK_BYTES as u64));
        if padded != Some(footer_at as u64) || !footer.pages_bytes.is_multiple_of(BLOCK_BYTES as u64) {
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
        let (slices, _) = rest.as_chunks::<8>();
        let slice_next = slices.iter().take(SLICES.into()).map(|seq| u64::from_le_bytes(*seq)).collect();
        let (position, clean_stop, entries) = (footer.position, footer.clean_stop, footer.entries);
        Ok(CheckpointIndex { log, number, position, clean_stop, entries, pages, filter, slice_next })
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
    if version != CHECKPOINT_VERSION {
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
        Some(Footer { tables_crc, pages_bytes, index_bytes, filter_bytes, entries, position, clean_stop })
    }
}

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
fn entry_at(bytes: &[u8]) -> Option<Entry<'_>> {
    let mut take = Take(bytes);
    let length = take.u32()? as usize;
    let id = PartitionId(take.u128()?);
    take.bytes(24)?;
    let changed = Place { log: LogId(take.u32()?), log_seq: take.u64()? };
    (length >= ENTRY_PREFIX_BYTES).then_some(())?;
    Some(Entry { id, changed, bytes: bytes.get(..length)? })
}

/// Length of the page that begins at `bytes`, before it is verified; `None` if that cannot be a page.
fn page_length(bytes: &[u8]) -> Option<usize> {
    let length = Take(bytes.get(4..)?).u32()? as usize;
    (length.is_multiple_of(BLOCK_BYTES) && (BLOCK_BYTES..=PAGE_BYTES_MAX).contains(&length)).then_some(length)
}

/// Verifies a page read from block `block` and gives its packed entries.
fn page_entries(page: &[u8], block: u32) -> Option<&[u8]> {
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

/// Every entry of a whole checkpoint file, in order, each page verified: for `log verify`, `log dump` and [`reshape`].
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

/// Dirty partitions as they were when collected, and what the next checkpoint will stand for. Made by the catalog.
#[derive(Debug, Default)]
pub struct Draft {
    pub(crate) bytes: Vec<u8>,
    pub(crate) entries: Vec<(PartitionId, Range<usize>)>,
    pub(crate) slice_next: Vec<SliceSeq>,
    /// Replay starts here: the log's position when the collection began.
    pub position: LogPosition,
    /// Everything below is in the draft; the job may run only when it is committed.
    pub through: LogSeq,
    /// The log is being stopped and nothing will follow.
    pub clean_stop: bool,
}

impl Draft {
    /// Partitions in it.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// No partition changed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// User memory in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<(PartitionId, Range<usize>)>()
    }
}

/// The checkpoint a draft is merged with: what the job must know of it without reading its tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Previous {
    log: LogId,
    number: u32,
    pages_end: u64,
    entries: u64,
}

impl From<&CheckpointIndex> for Previous {
    fn from(index: &CheckpointIndex) -> Previous {
        let CheckpointIndex { log, number, entries, .. } = *index;
        Previous { log, number, pages_end: index.pages_end(), entries }
    }
}

/// A checkpoint to be made.
#[derive(Debug)]
pub struct CheckpointJob {
    /// Log.
    pub log: LogId,
    /// Number of the new checkpoint: one above every earlier one of the log.
    pub number: u32,
    /// What changed.
    pub draft: Draft,
    /// What it changed from.
    pub previous: Option<Previous>,
}

/// Collects entries in key order into pages.
#[derive(Debug)]
struct Writer {
    log: LogId,
    number: u32,
    /// Bytes not yet handed to the executor.
    out: Vec<u8>,
    /// Entries of the open page.
    page: Vec<u8>,
    page_first: PartitionId,
    pages: Vec<PageRef>,
    next_block: u32,
    filter: Filter,
    entries: u64,
}

impl Writer {
    fn new(log: LogId, number: u32, entries_max: u64) -> Writer {
        let mut out = Vec::with_capacity(CHUNK_BYTES + PAGE_BYTES_MAX);
        out.put(&HEADER_MAGIC);
        out.put_u32(CHECKPOINT_VERSION);
        out.put_u32(0);
        out.put_u32(log.0);
        out.put_u32(number);
        out.resize(BLOCK_BYTES, 0);
        let crc = header_crc(&out, 12);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        Writer {
            log,
            number,
            out,
            page: Vec::with_capacity(PAGE_BYTES_MAX),
            page_first: PartitionId(0),
            pages: Vec::new(),
            next_block: 1,
            filter: Filter::for_keys(entries_max as usize),
            entries: 0,
        }
    }

    fn push(&mut self, entry: Entry<'_>) {
        if !self.page.is_empty() && PAGE_HEAD_BYTES + self.page.len() + entry.bytes.len() > BLOCK_BYTES {
            self.close_page();
        }
        if self.page.is_empty() {
            self.page_first = entry.id;
        }
        self.page.put(entry.bytes);
        self.filter.insert(entry.id.0);
        self.entries += 1;
    }

    fn close_page(&mut self) {
        if self.page.is_empty() {
            return;
        }
        let start = self.out.len();
        let length = (PAGE_HEAD_BYTES + self.page.len()).next_multiple_of(BLOCK_BYTES);
        self.out.put_u32(0);
        self.out.put_u32(length as u32);
        self.out.put_u32(self.next_block);
        self.out.put_u32(self.page.len() as u32);
        self.out.put_u16(PAGE_MAGIC);
        self.out.put(&[0; 6]);
        self.out.put(&self.page);
        self.out.resize(start + length, 0);
        let crc = crc32c::crc32c(&self.out[start + 4..]);
        self.out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        let blocks = (length / BLOCK_BYTES) as u32;
        self.pages.push(PageRef { first: self.page_first, block: self.next_block, blocks });
        self.next_block += blocks;
        self.page.clear();
    }

    /// Closes the last page and appends tables and footer to `out`.
    fn finish(&mut self, position: LogPosition, clean_stop: bool, slice_next: Vec<SliceSeq>) -> CheckpointIndex {
        assert_eq!(slice_next.len(), usize::from(SLICES), "one sequence a slice");
        self.close_page();
        let start = self.out.len();
        for page in &self.pages {
            self.out.put_u128(page.first.0);
            self.out.put_u32(page.block);
            self.out.put_u32(page.blocks);
        }
        self.out.put(self.filter.as_bytes());
        slice_next.iter().for_each(|seq| self.out.put_u64(*seq));
        // `start` is block aligned in the file, but `out` may have been drained at any multiple of a block: same thing.
        let tables = (self.out.len() - start).next_multiple_of(BLOCK_BYTES);
        self.out.resize(start + tables, 0);
        let footer = Footer {
            tables_crc: crc32c::crc32c(&self.out[start..]),
            pages_bytes: u64::from(self.next_block - 1) * BLOCK_BYTES as u64,
            index_bytes: (self.pages.len() * PAGE_REF_BYTES) as u64,
            filter_bytes: self.filter.as_bytes().len() as u64,
            entries: self.entries,
            position,
            clean_stop,
        };
        footer.encode(&mut self.out);
        CheckpointIndex {
            log: self.log,
            number: self.number,
            position,
            clean_stop,
            entries: self.entries,
            pages: std::mem::take(&mut self.pages),
            filter: std::mem::replace(&mut self.filter, Filter::for_keys(0)),
            slice_next,
        }
    }
}

/// Streaming reader of a checkpoint's pages, fed by the executor.
#[derive(Debug)]
struct OldPages {
    file: FileId,
    /// File position of `buffer[0]`.
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    /// Entries of the open page still to come, then the next page.
    entries: Range<usize>,
    next_page: usize,
}

/// What the next entry of the old checkpoint is.
enum Next {
    Entry(PartitionId, Range<usize>),
    NeedsBytes,
    End,
    Corrupt { at: u64 },
}

impl OldPages {
    fn new(previous: Previous) -> OldPages {
        OldPages {
            file: FileId::Checkpoint(previous.log, previous.number),
            at: BLOCK_BYTES as u64,
            end: previous.pages_end,
            buffer: Vec::new(),
            entries: 0..0,
            next_page: 0,
        }
    }

    fn peek(&mut self) -> Next {
        while self.entries.is_empty() {
            let page_at = self.at + self.next_page as u64;
            let bytes = &self.buffer[self.next_page..];
            if page_at == self.end {
                return Next::End;
            }
            if bytes.len() < BLOCK_BYTES {
                return Next::NeedsBytes;
            }
            let Some(length) = page_length(bytes) else { return Next::Corrupt { at: page_at } };
            let Some(page) = bytes.get(..length) else {
                let missing = page_at + length as u64 > self.end;
                return if missing { Next::Corrupt { at: page_at } } else { Next::NeedsBytes };
            };
            let Some(entries) = page_entries(page, (page_at / BLOCK_BYTES as u64) as u32) else {
                return Next::Corrupt { at: page_at };
            };
            let start = self.next_page + PAGE_HEAD_BYTES;
            self.entries = start..start + entries.len();
            self.next_page += length;
        }
        match entry_at(&self.buffer[self.entries.clone()]) {
            Some(entry) => Next::Entry(entry.id, self.entries.start..self.entries.start + entry.bytes.len()),
            None => Next::Corrupt { at: self.at + self.entries.start as u64 },
        }
    }

    /// Step past the entry just peeked.
    fn advance(&mut self, entry: Range<usize>) {
        self.entries.start = entry.end;
    }

    fn request(&self) -> Step<'static> {
        let at = self.at + self.buffer.len() as u64;
        Step::Read { file: self.file, at, len: CHUNK_BYTES.min((self.end - at) as usize) }
    }

    /// Takes what [`OldPages::request`] asked for; false if the file ends before its pages do.
    fn feed(&mut self, input: &[u8]) -> bool {
        self.buffer.drain(..self.next_page);
        self.at += self.next_page as u64;
        self.next_page = 0;
        self.entries = 0..0;
        self.buffer.extend_from_slice(input);
        !input.is_empty()
    }
}

/// A [`CheckpointJob`] being executed: a merge of two sorted streams, in chunks.
#[derive(Debug)]
pub struct CheckpointRun {
    writer: Writer,
    draft: Draft,
    /// Entries of the draft already merged.
    merged: usize,
    old: Option<OldPages>,
    phase: Phase,
    /// Handed to the executor by the last step.
    chunk: Vec<u8>,
    index: Option<CheckpointIndex>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Merging,
    Reading,
    Appending,
    Publishing,
    Finished,
}

impl CheckpointRun {
    /// Begins the job.
    pub fn new(job: CheckpointJob) -> CheckpointRun {
        let CheckpointJob { log, number, mut draft, previous } = job;
        draft.entries.sort_unstable_by_key(|(id, _)| *id);
        let entries_max = draft.entries.len() as u64 + previous.map_or(0, |previous| previous.entries);
        CheckpointRun {
            writer: Writer::new(log, number, entries_max),
            draft,
            merged: 0,
            old: previous.map(OldPages::new),
            phase: Phase::Merging,
            chunk: Vec::new(),
            index: None,
        }
    }

    /// See [`JobRun::step`](crate::jobs::JobRun::step).
    pub fn step(&mut self, input: &[u8]) -> Step<'_> {
        let file = FileId::Checkpoint(self.writer.log, self.writer.number);
        match self.phase {
            Phase::Reading => {
                let old = self.old.as_mut().expect("reading means there is an old checkpoint");
                if !old.feed(input) {
                    let at = old.at;
                    return self.corrupt(at);
                }
                self.phase = Phase::Merging;
            }
            Phase::Publishing => {
                self.phase = Phase::Finished;
                return Step::Publish { file };
            }
            Phase::Finished => {
                let index = self.index.take().expect("a finished job was stepped again");
                return Step::Done(JobDone::Checkpointed { index: Box::new(index) });
            }
            Phase::Merging | Phase::Appending => {}
        }
        while self.writer.out.len() < CHUNK_BYTES && self.index.is_none() {
            match self.merge_one() {
                Next::Entry(..) => {}
                Next::NeedsBytes => {
                    self.phase = Phase::Reading;
                    return self.old.as_ref().expect("only an old checkpoint needs bytes").request();
                }
                Next::Corrupt { at } => return self.corrupt(at),
                Next::End => {
                    let slice_next = std::mem::take(&mut self.draft.slice_next);
                    let Draft { position, clean_stop, .. } = self.draft;
                    self.index = Some(self.writer.finish(position, clean_stop, slice_next));
                }
            }
        }
        self.phase = if self.index.is_some() { Phase::Publishing } else { Phase::Appending };
        self.chunk.clear();
        std::mem::swap(&mut self.chunk, &mut self.writer.out);
        Step::Append { file, bytes: &self.chunk }
    }

    /// Moves the smallest entry of both streams to the writer; the draft's wins where both have one.
    fn merge_one(&mut self) -> Next {
        let next_old = self.old.as_mut().map_or(Next::End, OldPages::peek);
        let fresh = self.draft.entries.get(self.merged).map(|(id, range)| (*id, range.clone()));
        match (next_old, fresh) {
            (Next::Entry(id, range), fresh) if fresh.as_ref().is_none_or(|(fresh, _)| id <= *fresh) => {
                let old = self.old.as_mut().expect("an entry was peeked from it");
                if fresh.is_none_or(|(fresh, _)| fresh != id) {
                    let entry = entry_at(&old.buffer[range.clone()]).expect("peeked");
                    self.writer.push(entry);
                }
                old.advance(range.clone());
                Next::Entry(id, range)
            }
            (Next::Entry(..) | Next::End, Some((id, range))) => {
                self.writer.push(entry_at(&self.draft.bytes[range.clone()]).expect("the catalog encoded it"));
                self.merged += 1;
                Next::Entry(id, range)
            }
            (other, _) => other,
        }
    }

    fn corrupt(&mut self, at: u64) -> Step<'static> {
        self.phase = Phase::Finished;
        let file = self.old.as_ref().map_or(FileId::Manifest, |old| old.file);
        Step::Done(JobDone::Corrupt { file, at })
    }
}

/// Runs a checkpoint job in memory, for boot and tests: the new file and its tables. `previous` is the whole old file.
///
/// # Errors
/// The old file does not verify.
pub fn merge(job: CheckpointJob, previous: &[u8]) -> Result<Made, BadCheckpoint> {
    let mut run = CheckpointRun::new(job);
    let (mut file, mut input) = (Vec::new(), Vec::new());
    loop {
        let step = run.step(&input);
        match step {
            Step::Read { at, len, .. } => {
                let at = usize::try_from(at).unwrap_or(usize::MAX).min(previous.len());
                input = previous[at..(at + len).min(previous.len())].to_vec();
            }
            Step::Append { bytes, .. } => file.extend_from_slice(bytes),
            Step::Done(JobDone::Checkpointed { index }) => return Ok((file, *index)),
            Step::Done(JobDone::Corrupt { at, .. }) => return Err(BadCheckpoint::Corrupt { at }),
            Step::Publish { .. } => {}
            Step::Zero { .. } | Step::Remove { .. } | Step::Done(_) => unreachable!("not a step of a checkpoint"),
        }
    }
}

/// A checkpoint to be made by [`reshape`]: its log and number.
pub type Target = (LogId, u32);

/// A checkpoint made in memory: the bytes of its file, and its tables.
pub type Made = (Vec<u8>, CheckpointIndex);

/// Deals the partitions of several checkpoints out to new ones by slice: how a folder changes its number of shards. Every
/// source must stand for the end of its log. Each target begins its log at position 0. Where two sources hold the same
/// partition (an older log kept a copy), the one changed last wins.
///
/// # Errors
/// The place of the source in `sources`, and what is wrong with it.
pub fn reshape(
    sources: &[(&CheckpointIndex, &[u8])],
    targets: &[Target],
    owner: impl Fn(SliceId) -> usize,
) -> Result<Vec<Made>, (usize, BadCheckpoint)> {
    // Slices spread evenly; a target with more than its share only has a filter that says "maybe" more often.
    let total: u64 = sources.iter().map(|(index, _)| index.entries).sum();
    let entries_max = total / targets.len().max(1) as u64 * 5 / 4 + 64;
    let mut writers: Vec<_> = targets.iter().map(|(log, number)| Writer::new(*log, *number, entries_max)).collect();
    let mut streams: Vec<_> = sources.iter().map(|(index, bytes)| entries(index, bytes).peekable()).collect();
    let mut slice_next = vec![1; SLICES.into()];
    for (index, _) in sources {
        slice_next.iter_mut().zip(&index.slice_next).for_each(|(max, next)| *max = (*max).max(*next));
    }
    loop {
        let mut newest: Option<Entry<'_>> = None;
        for (at, stream) in streams.iter_mut().enumerate() {
            match stream.peek() {
                Some(Ok(entry)) => {
                    let better = newest.is_none_or(|best| {
                        (entry.id, std::cmp::Reverse(entry.changed)) < (best.id, std::cmp::Reverse(best.changed))
                    });
                    newest = if better { Some(*entry) } else { newest };
                }
                Some(Err(bad)) => return Err((at, *bad)),
                None => {}
            }
        }
        let Some(entry) = newest else { break };
        for stream in &mut streams {
            stream.next_if(|next| next.is_ok_and(|next| next.id == entry.id));
        }
        writers[owner(entry.id.slice())].push(entry);
    }
    Ok(writers
        .into_iter()
        .map(|mut writer| {
            let index = writer.finish(LogPosition::default(), true, slice_next.clone());
            (writer.out, index)
        })
        .collect())
}
