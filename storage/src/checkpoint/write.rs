//! Writing a checkpoint: sorted entries in, the bytes of the file and its tables out.

use super::page::{Entry, PAGE_HEAD_BYTES, PAGE_MAGIC};
use super::{
    CHECKPOINT_VERSION, CheckpointIndex, Footer, HEADER_MAGIC, LogPosition, PAGE_BYTES_MAX, PAGE_REF_BYTES,
    PARTITION_BYTES, PageRef, header_crc,
};
use crate::bytes::Put;
use crate::catalog::{ENTRY_PARTS_AT, ENTRY_STREAMS_AT};
use crate::filter::Filter;
use crate::group::BLOCK_BYTES;
use crate::ids::{LogId, PartitionId, SLICES, SliceSeq};
use crate::jobs::CHUNK_BYTES;

/// Collects entries in key order into pages.
#[derive(Debug)]
pub(super) struct Writer {
    pub log: LogId,
    pub number: u32,
    /// Bytes not yet handed to the executor.
    pub out: Vec<u8>,
    /// Entries of the open page.
    page: Vec<u8>,
    page_first: PartitionId,
    pages: Vec<PageRef>,
    next_block: u32,
    filter: Filter,
    entries: u64,
    /// Partitions with open streams, entries or jobs.
    streaming: Vec<PartitionId>,
}

impl Writer {
    pub fn new(log: LogId, number: u32, entries_max: u64) -> Writer {
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
            streaming: Vec::new(),
        }
    }

    pub fn push(&mut self, entry: Entry<'_>) {
        if !self.page.is_empty() && PAGE_HEAD_BYTES + self.page.len() + entry.bytes.len() > BLOCK_BYTES {
            self.close_page();
        }
        if self.page.is_empty() {
            self.page_first = entry.id;
        }
        self.page.put(entry.bytes);
        self.filter.insert(entry.id.0);
        self.entries += 1;
        if entry.bytes[ENTRY_STREAMS_AT] > 0 || entry.bytes[ENTRY_PARTS_AT] > 0 {
            self.streaming.push(entry.id);
        }
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
    pub fn finish(&mut self, position: LogPosition, clean_stop: bool, slice_next: Vec<SliceSeq>) -> CheckpointIndex {
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
        self.streaming.iter().for_each(|id| self.out.put_u128(id.0));
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
            streaming_bytes: (self.streaming.len() * PARTITION_BYTES) as u64,
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
            streaming: std::mem::take(&mut self.streaming),
        }
    }
}
