//! Sorted tables in blocks that verify themselves, so that one read of 4 KiB answers one question.
//!
//! ```text
//!   block   0  u32  crc32c     of bytes 4..4096
//!           4  u32  block      own place in the file / 4096
//!           8  u16  used       bytes of content
//!          10  u8   kind       1 partitions, 2 slices, 3 dedupe
//!          11  u8   0, u32 0
//!          16  content, zero padding
//!   positions  groups of rows:  u128 key (partition, or slice), u32 rows, u32 0 │ rows: u64 at, u32 position, u32 count
//!   dedupe     rows:            u128 key, u64 offset, u64 body_hash
//! ```
//! `at` is an offset (partitions) or a slice sequence (slices). A fence is the key of a block's first row; the fences of
//! all blocks stay in memory and choose the block.

use crate::bytes::{Put, Take};
use crate::group::BLOCK_BYTES;

/// Bytes of a block before its content.
const HEAD_BYTES: usize = 16;
const GROUP_BYTES: usize = 24;
const ROW_BYTES: usize = 16;
const DEDUPE_ROW_BYTES: usize = 32;

/// What a block holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum TableKind {
    Partitions = 1,
    Slices = 2,
    Dedupe = 3,
}

/// Where a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// First offset of the record, or its first slice sequence.
    pub at: u64,
    /// Byte position in the segment.
    pub position: u32,
    /// Offsets it covers. In the sparse slice table of an appended segment: those of this one record.
    pub count: u32,
}

/// What an earlier event with a dedupe key was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DedupeRow {
    /// Key.
    pub key: u128,
    /// Offset of the event.
    pub offset: u64,
    /// Hash of what was said.
    pub body_hash: u64,
}

/// First key of a block of positions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Fence {
    pub key: u128,
    pub at: u64,
}

/// Appends blocks to a file being built.
pub(crate) struct Blocks<'a> {
    out: &'a mut Vec<u8>,
    kind: TableKind,
    content: Vec<u8>,
}

impl<'a> Blocks<'a> {
    pub fn new(out: &'a mut Vec<u8>, kind: TableKind) -> Blocks<'a> {
        Blocks { out, kind, content: Vec::with_capacity(BLOCK_BYTES) }
    }

    fn room(&self) -> usize {
        BLOCK_BYTES - HEAD_BYTES - self.content.len()
    }

    pub fn close(&mut self) {
        if self.content.is_empty() {
            return;
        }
        let start = self.out.len();
        self.out.put_u32(0);
        self.out.put_u32((start / BLOCK_BYTES) as u32);
        self.out.put_u16(self.content.len() as u16);
        self.out.put_u8(self.kind as u8);
        self.out.put(&[0; 5]);
        self.out.put(&self.content);
        self.out.resize(start + BLOCK_BYTES, 0);
        let crc = crc32c::crc32c(&self.out[start + 4..]);
        self.out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        self.content.clear();
    }
}

/// Writes rows sorted by (key, at) and gives the fences.
pub(crate) fn write_positions(
    out: &mut Vec<u8>,
    kind: TableKind,
    rows: impl Iterator<Item = (u128, Row)>,
) -> Vec<Fence> {
    let mut blocks = Blocks::new(out, kind);
    let mut fences = Vec::new();
    // Where in the open block the row count of the open group stands, and its key.
    let mut group: Option<(u128, usize)> = None;
    for (key, row) in rows {
        let continues = group.is_some_and(|(open, _)| open == key);
        let needed = if continues { ROW_BYTES } else { GROUP_BYTES + ROW_BYTES };
        let closes = blocks.room() < needed;
        if closes {
            blocks.close();
        }
        if blocks.content.is_empty() {
            fences.push(Fence { key, at: row.at });
        }
        if closes || !continues {
            blocks.content.put_u128(key);
            group = Some((key, blocks.content.len()));
            blocks.content.put_u64(0);
        }
        blocks.content.put_u64(row.at);
        blocks.content.put_u32(row.position);
        blocks.content.put_u32(row.count);
        if let Some((_, count_at)) = group {
            let rows = ((blocks.content.len() - count_at - 8) / ROW_BYTES) as u32;
            blocks.content[count_at..count_at + 4].copy_from_slice(&rows.to_le_bytes());
        }
    }
    blocks.close();
    fences
}

/// Writes dedupe rows sorted by key and gives the fences.
pub(crate) fn write_dedupe(out: &mut Vec<u8>, rows: &[DedupeRow]) -> Vec<u128> {
    let mut blocks = Blocks::new(out, TableKind::Dedupe);
    let mut fences = Vec::new();
    for row in rows {
        if blocks.room() < DEDUPE_ROW_BYTES {
            blocks.close();
        }
        if blocks.content.is_empty() {
            fences.push(row.key);
        }
        blocks.content.put_u128(row.key);
        blocks.content.put_u64(row.offset);
        blocks.content.put_u64(row.body_hash);
    }
    blocks.close();
    fences
}

/// Verifies a block that was read from block number `number` and gives its content.
pub(crate) fn content(block: &[u8], number: u32, kind: TableKind) -> Option<&[u8]> {
    let mut take = Take(block);
    let crc = take.u32()?;
    if block.len() != BLOCK_BYTES || crc != crc32c::crc32c(&block[4..]) || take.u32()? != number {
        return None;
    }
    let used = usize::from(take.u16()?);
    (take.u8()? == kind as u8).then_some(())?;
    block.get(HEAD_BYTES..HEAD_BYTES + used)
}

/// Rows of `key` in the content of a verified block: an empty run if it has none. `None` if the content is no table.
pub(crate) fn rows_of(content: &[u8], key: u128) -> Option<Rows<'_>> {
    let mut take = Take(content);
    while !take.0.is_empty() {
        let found = take.u128()?;
        let rows = take.u32()? as usize;
        take.u32()?;
        let bytes = take.bytes(rows.checked_mul(ROW_BYTES)?)?;
        if found == key {
            return Some(Rows { bytes });
        }
    }
    Some(Rows { bytes: &[] })
}

/// Rows of one key inside one block, in order.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    bytes: &'a [u8],
}

impl Rows<'_> {
    fn at(&self, index: usize) -> Option<Row> {
        let mut take = Take(self.bytes.get(index * ROW_BYTES..)?);
        Some(Row { at: take.u64()?, position: take.u32()?, count: take.u32()? })
    }

    /// Leaves out the rows before the one that covers `at`; where none does, before the first behind it.
    pub(crate) fn covering(mut self, at: u64) -> Self {
        let before = self.count_while(|row| row.at.saturating_add(row.count.into()) <= at);
        self.bytes = &self.bytes[before * ROW_BYTES..];
        self
    }

    /// Leaves out the rows before the last that begins at or before `at`.
    pub(crate) fn reaching(mut self, at: u64) -> Self {
        let begun = self.count_while(|row| row.at <= at);
        self.bytes = &self.bytes[begun.saturating_sub(1) * ROW_BYTES..];
        self
    }

    /// Rows at the front for which `before` holds; it is monotonic.
    fn count_while(&self, before: impl Fn(Row) -> bool) -> usize {
        let (mut low, mut high) = (0, self.bytes.len() / ROW_BYTES);
        while low < high {
            let middle = (low + high) / 2;
            if self.at(middle).is_some_and(&before) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

impl Iterator for Rows<'_> {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        let row = self.at(0)?;
        self.bytes = &self.bytes[ROW_BYTES..];
        Some(row)
    }
}

/// The row of `key` in the content of a verified dedupe block. `Err` if the content is no table.
pub(crate) fn dedupe_row(content: &[u8], key: u128) -> Result<Option<DedupeRow>, ()> {
    let (rows, rest) = content.as_chunks::<DEDUPE_ROW_BYTES>();
    if !rest.is_empty() {
        return Err(());
    }
    let key_of = |row: &[u8; DEDUPE_ROW_BYTES]| Take(row).u128().unwrap_or(0);
    let Ok(at) = rows.binary_search_by_key(&key, key_of) else { return Ok(None) };
    let mut take = Take(&rows[at][16..]);
    match (take.u64(), take.u64()) {
        (Some(offset), Some(body_hash)) => Ok(Some(DedupeRow { key, offset, body_hash })),
        _ => Err(()),
    }
}
