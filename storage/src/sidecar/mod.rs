//! The sidecar of a sealed segment: where its records are, and which messages it has seen.
//!
//! ```text
//!   block 0     header      magic "TGSIDE01", segment, what it covers, times, sizes of the rest          crc
//!   blocks      partitions  (partition, offset)   → position of the record                               crc each
//!   blocks      slices      (slice, slice_seq)    → position of the record                               crc each
//!   blocks      dedupe      key                   → offset, body hash                                    crc each
//!   tables      fences of the three · slice ranges · dedupe filter                                       crc together
//! ```
//! In memory stay the tables ([`SidecarIndex`]), which name the one 4 KiB block that answers a question. A history read of
//! one session over many segments so costs two small reads a segment, never a whole index.
//!
//! The slice table of an appended segment is sparse (its readers go through the log in order and need a place to
//! start), that of a clustered one has every record. A record of markers only is in no table: it has nothing to read.
//! Where a session was deleted and made again inside the segment, the partition table has its last life.
//!
//! Byte tables are in `FORMAT.md`. Reading takes any bytes: what does not verify is `Corrupt`, never a wrong row.

mod build;
mod table;

use crate::recluster::{SEGMENTS_END, is_clustered};
pub use build::{SealJob, SealRun, SidecarBuilder};
pub use table::{DedupeRow, Row, Rows};

use crate::bytes::{Put, Take};
use crate::disk::FileId;
use crate::filter::Filter;
use crate::group::BLOCK_BYTES;
use crate::ids::{COUNTER_MAX, LogId, LogSeq, Offset, PartitionId, SegmentId, SliceId, SliceSeq};
use crate::segment::{FORMAT_VERSION, is_readable};
use table::{Fence, TableKind};

/// Version this build writes.
pub const SIDECAR_VERSION: u32 = FORMAT_VERSION as u32;

const MAGIC: [u8; 8] = *b"TGSIDE01";
const FENCE_BYTES: usize = 24;
const RANGE_BYTES: usize = 24;

/// Why bytes are not a usable sidecar or block of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadSidecar {
    /// Written by another version of the format.
    Version {
        /// Version found.
        found: u32,
    },
    /// Does not verify. A sidecar can always be built again from its segment.
    Corrupt {
        /// Byte position of the structure at fault.
        at: u64,
    },
}

/// What a sealed segment holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Contents {
    /// The segment.
    pub segment: SegmentId,
    /// First and last number of the original segments whose records it holds: itself, unless clustered.
    pub covers: (u32, u32),
    /// Where its valid bytes end.
    pub end: u64,
    /// Records.
    pub records: u64,
    /// Events.
    pub events: u64,
    /// Earliest append, Unix ms; of no records, 0.
    pub time_min_ms: u64,
    /// Latest append, Unix ms: what retention by age asks.
    pub time_max_ms: u64,
    /// Lowest log sequence.
    pub log_seq_min: LogSeq,
    /// Highest log sequence.
    pub log_seq_max: LogSeq,
}

/// What a segment holds of one slice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SliceRange {
    /// Slice.
    pub slice: SliceId,
    /// First slice sequence.
    pub first: SliceSeq,
    /// One past the last.
    pub end: SliceSeq,
    /// Byte position of the first record.
    pub position: u32,
}

/// A block of the sidecar to be read: `len` bytes at `at` of `file`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockAt {
    /// The sidecar.
    pub file: FileId,
    /// Byte position.
    pub at: u64,
    /// One block, or of rows that go on, several.
    pub len: usize,
}

/// What stays in memory of a sidecar: about 1.5 bytes a message for the filter, 1 byte in 10 of a record's row for the
/// fences, 24 bytes a slice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SidecarIndex {
    /// What the segment holds.
    pub contents: Contents,
    partitions: Vec<Fence>,
    slices: Vec<Fence>,
    dedupe: Vec<u128>,
    ranges: Vec<SliceRange>,
    /// `None` once it was given up for memory: then every key is a maybe.
    filter: Option<Filter>,
}

impl SidecarIndex {
    /// Its file.
    pub fn file(&self) -> FileId {
        FileId::Sidecar(self.contents.segment)
    }

    /// Block to ask with [`SidecarIndex::partition_rows`] for the record that covers `offset` of `id`.
    pub fn partition_block(&self, id: PartitionId, offset: Offset) -> Option<BlockAt> {
        self.position_block(&self.partitions, 1, Fence { key: id.0, at: offset })
    }

    /// The same block and those behind it that go on with `id`, `blocks_max` at most.
    pub(crate) fn partition_blocks(&self, id: PartitionId, offset: Offset, blocks_max: usize) -> Option<BlockAt> {
        let first = self.partition_block(id, offset)?;
        let behind = self.partitions.get(block_number(first) as usize..).unwrap_or_default();
        let more = behind.iter().take(blocks_max.saturating_sub(1)).take_while(|fence| fence.key == id.0).count();
        Some(BlockAt { len: (1 + more) * BLOCK_BYTES, ..first })
    }

    /// Rows of `id` in a block, from the record that covers `offset` on; where none does, from the first behind it. Where
    /// they end, more may follow in [`SidecarIndex::next_partition_block`].
    ///
    /// # Errors
    /// The block does not verify.
    pub fn partition_rows<'a>(
        &self,
        at: BlockAt,
        block: &'a [u8],
        id: PartitionId,
        offset: Offset,
    ) -> Result<Rows<'a>, BadSidecar> {
        Ok(read_rows(at, block, TableKind::Partitions, id.0)?.covering(offset))
    }

    /// The block after `at`, if it goes on with `id`.
    pub fn next_partition_block(&self, at: BlockAt, id: PartitionId) -> Option<BlockAt> {
        self.next_block(&self.partitions, 1, at, id.0)
    }

    /// Block to ask with [`SidecarIndex::slice_rows`] for a place from which `slice_seq` of `slice` is reached.
    pub fn slice_block(&self, slice: SliceId, slice_seq: SliceSeq) -> Option<BlockAt> {
        let key = Fence { key: slice.0.into(), at: slice_seq };
        self.position_block(&self.slices, 1 + self.partitions.len(), key)
    }

    /// Rows of `slice` in a block, from the last that begins at or before `slice_seq`, or the first there is.
    ///
    /// # Errors
    /// The block does not verify.
    pub fn slice_rows<'a>(
        &self,
        at: BlockAt,
        block: &'a [u8],
        slice: SliceId,
        slice_seq: SliceSeq,
    ) -> Result<Rows<'a>, BadSidecar> {
        Ok(read_rows(at, block, TableKind::Slices, slice.0.into())?.reaching(slice_seq))
    }

    /// The block after `at`, if it goes on with `slice`.
    pub fn next_slice_block(&self, at: BlockAt, slice: SliceId) -> Option<BlockAt> {
        self.next_block(&self.slices, 1 + self.partitions.len(), at, slice.0.into())
    }

    /// What the segment holds of each slice, by slice.
    pub fn slice_ranges(&self) -> &[SliceRange] {
        &self.ranges
    }

    /// What the segment holds of `slice`.
    pub fn slice_range(&self, slice: SliceId) -> Option<SliceRange> {
        self.ranges.binary_search_by_key(&slice, |range| range.slice).ok().map(|at| self.ranges[at])
    }

    /// Block to ask with [`SidecarIndex::dedupe_row`] whether the segment has seen `key`; `None` means it has not.
    pub fn dedupe_block(&self, key: u128) -> Option<BlockAt> {
        if self.filter.as_ref().is_some_and(|filter| !filter.maybe(key)) {
            return None;
        }
        let block = self.dedupe.partition_point(|fence| *fence <= key).checked_sub(1)?;
        Some(self.block_at(1 + self.partitions.len() + self.slices.len() + block))
    }

    /// What `key` was, if the block knows it.
    ///
    /// # Errors
    /// The block does not verify.
    pub fn dedupe_row(&self, at: BlockAt, block: &[u8], key: u128) -> Result<Option<DedupeRow>, BadSidecar> {
        let corrupt = BadSidecar::Corrupt { at: at.at };
        let content = table::content(block, block_number(at), TableKind::Dedupe).ok_or(corrupt)?;
        table::dedupe_row(content, key).map_err(|()| corrupt)
    }

    /// Gives up the filter's memory; lookups stay right and cost a read each.
    pub fn drop_filter(&mut self) {
        self.filter = None;
    }

    /// Bytes of the filter in memory (counted against `dedupe_filter_bytes_max`).
    pub fn filter_bytes(&self) -> usize {
        self.filter.as_ref().map_or(0, |filter| filter.as_bytes().len()) + self.dedupe.capacity() * size_of::<u128>()
    }

    /// All bytes in memory.
    pub fn memory_bytes(&self) -> usize {
        size_of::<SidecarIndex>()
            + self.filter_bytes()
            + (self.partitions.capacity() + self.slices.capacity()) * size_of::<Fence>()
            + self.ranges.capacity() * size_of::<SliceRange>()
    }

    fn block_at(&self, block: usize) -> BlockAt {
        BlockAt { file: self.file(), at: (block * BLOCK_BYTES) as u64, len: BLOCK_BYTES }
    }

    fn position_block(&self, fences: &[Fence], first_block: usize, key: Fence) -> Option<BlockAt> {
        match fences.partition_point(|fence| *fence <= key).checked_sub(1) {
            // The row is in this block, or it is the first of the next one: then this one has no row left to give and
            // the caller goes on there.
            Some(block) => Some(self.block_at(first_block + block)),
            None => fences.first().filter(|fence| fence.key == key.key).map(|_| self.block_at(first_block)),
        }
    }

    fn next_block(&self, fences: &[Fence], first_block: usize, at: BlockAt, key: u128) -> Option<BlockAt> {
        let next = (block_number(at) as usize + at.len / BLOCK_BYTES).checked_sub(first_block)?;
        fences.get(next).filter(|fence| fence.key == key).map(|_| self.block_at(first_block + next))
    }

    /// Reads the tables of a whole sidecar file. Blocks are verified when they are read.
    ///
    /// # Errors
    /// Another version, another segment's, or bytes that do not verify.
    pub fn parse(segment: SegmentId, bytes: &[u8]) -> Result<SidecarIndex, BadSidecar> {
        let corrupt = |at: usize| BadSidecar::Corrupt { at: at as u64 };
        let (header, _) = bytes.split_at_checked(BLOCK_BYTES).ok_or(corrupt(0))?;
        let header = Header::parse(header)?;
        if header.contents.segment != segment {
            return Err(corrupt(0));
        }
        let tables_at = header.tables_at().filter(|at| *at <= bytes.len()).ok_or(corrupt(0))?;
        let tables = &bytes[tables_at..];
        if tables.len() as u64 != header.tables_bytes || crc32c::crc32c(tables) != header.tables_crc {
            return Err(corrupt(tables_at));
        }
        header.parse_tables(tables).ok_or(corrupt(tables_at))
    }
}

fn block_number(at: BlockAt) -> u32 {
    u32::try_from(at.at / BLOCK_BYTES as u64).unwrap_or(u32::MAX)
}

fn read_rows(at: BlockAt, block: &[u8], kind: TableKind, key: u128) -> Result<Rows<'_>, BadSidecar> {
    let content = table::content(block, block_number(at), kind);
    content.and_then(|content| table::rows_of(content, key)).ok_or(BadSidecar::Corrupt { at: at.at })
}

/// Block 0 of the file.
struct Header {
    contents: Contents,
    /// Blocks of the three tables.
    blocks: [u32; 3],
    ranges: u32,
    filter_bytes: u64,
    tables_bytes: u64,
    tables_crc: u32,
}

impl Header {
    fn tables_at(&self) -> Option<usize> {
        let blocks = self.blocks.iter().try_fold(1usize, |sum, blocks| sum.checked_add(*blocks as usize))?;
        blocks.checked_mul(BLOCK_BYTES)
    }

    fn encode(&self) -> [u8; BLOCK_BYTES] {
        let Contents { segment, covers, end, records, events, time_min_ms, time_max_ms, log_seq_min, log_seq_max } =
            self.contents;
        let mut out = Vec::with_capacity(BLOCK_BYTES);
        out.put(&MAGIC);
        out.put_u32(0);
        out.put_u32(SIDECAR_VERSION);
        out.put_u32(segment.log.0);
        out.put_u32(segment.number);
        out.put_u32(covers.0);
        out.put_u32(covers.1);
        for n in [end, records, events, time_min_ms, time_max_ms, log_seq_min, log_seq_max] {
            out.put_u64(n);
        }
        self.blocks.iter().for_each(|blocks| out.put_u32(*blocks));
        out.put_u32(self.ranges);
        out.put_u64(self.filter_bytes);
        out.put_u64(self.tables_bytes);
        out.put_u32(self.tables_crc);
        let mut block = [0; BLOCK_BYTES];
        block[..out.len()].copy_from_slice(&out);
        let crc = crc32c::crc32c(&block[12..]);
        block[8..12].copy_from_slice(&crc.to_le_bytes());
        block
    }

    fn parse(block: &[u8]) -> Result<Header, BadSidecar> {
        let corrupt = BadSidecar::Corrupt { at: 0 };
        let mut take = Take(block);
        if take.bytes(8) != Some(&MAGIC) || take.u32() != Some(crc32c::crc32c(&block[12..])) {
            return Err(corrupt);
        }
        match take.u32() {
            Some(version) if u16::try_from(version).is_ok_and(is_readable) => Header::parse_fields(take).ok_or(corrupt),
            Some(found) => Err(BadSidecar::Version { found }),
            None => Err(corrupt),
        }
    }

    fn parse_fields(mut take: Take<'_>) -> Option<Header> {
        let segment = SegmentId { log: LogId(take.u32()?), number: take.u32()? };
        let covers = (take.u32()?, take.u32()?);
        let (end, records, events) = (take.u64()?, take.u64()?, take.u64()?);
        let (time_min_ms, time_max_ms) = (take.u64()?, take.u64()?);
        let (log_seq_min, log_seq_max) = (take.u64()?, take.u64()?);
        let contents =
            Contents { segment, covers, end, records, events, time_min_ms, time_max_ms, log_seq_min, log_seq_max };
        let own = segment.number;
        let covered = if is_clustered(segment) {
            covers.0 <= covers.1 && covers.1 < SEGMENTS_END && own < u32::MAX
        } else {
            covers == (own, own) && own < SEGMENTS_END
        };
        (covered && end <= u64::from(u32::MAX) && log_seq_max <= COUNTER_MAX).then_some(())?;
        let blocks = [take.u32()?, take.u32()?, take.u32()?];
        let ranges = take.u32()?;
        let (filter_bytes, tables_bytes, tables_crc) = (take.u64()?, take.u64()?, take.u32()?);
        Some(Header { contents, blocks, ranges, filter_bytes, tables_bytes, tables_crc })
    }

    /// Tables whose crc was right; still nothing is taken for granted.
    fn parse_tables(&self, tables: &[u8]) -> Option<SidecarIndex> {
        let mut take = Take(tables);
        let [partitions, slices, dedupe] = self.blocks.map(|blocks| blocks as usize);
        let partitions = parse_fences(take.bytes(partitions.checked_mul(FENCE_BYTES)?)?)?;
        let slices = parse_fences(take.bytes(slices.checked_mul(FENCE_BYTES)?)?)?;
        let (dedupe, _) = take.bytes(dedupe.checked_mul(16)?)?.as_chunks::<16>();
        let dedupe = dedupe.iter().map(|key| u128::from_le_bytes(*key)).collect();
        let (ranges, _) = take.bytes((self.ranges as usize).checked_mul(RANGE_BYTES)?)?.as_chunks::<RANGE_BYTES>();
        let ranges = ranges.iter().map(|range| parse_range(range)).collect::<Option<Vec<_>>>()?;
        let filter = Filter::from_bytes(take.bytes(usize::try_from(self.filter_bytes).ok()?)?)?;
        let sorted = ranges.is_sorted_by(|a, b| a.slice < b.slice);
        (take.0.is_empty() && sorted).then_some(())?;
        Some(SidecarIndex { contents: self.contents, partitions, slices, dedupe, ranges, filter: Some(filter) })
    }
}

fn parse_fences(bytes: &[u8]) -> Option<Vec<Fence>> {
    let (fences, _) = bytes.as_chunks::<FENCE_BYTES>();
    let fence = |bytes: &[u8; FENCE_BYTES]| {
        let mut take = Take(bytes);
        Some(Fence { key: take.u128()?, at: take.u64()? })
    };
    fences.iter().map(fence).collect()
}

fn parse_range(bytes: &[u8]) -> Option<SliceRange> {
    let mut take = Take(bytes);
    let (slice, zero, position) = (SliceId(take.u16()?), take.u16()?, take.u32()?);
    let (first, end) = (take.u64()?, take.u64()?);
    (zero == 0).then_some(SliceRange { slice, first, end, position })
}
