//! The memory that send queues are made of: one bounded pool of pieces per shard.
//!
//! ```text
//!   chunks   [ chunk 0 ][ chunk 1 ] …           of one queue each; mapped at boot, touched when first used
//!   blocks   [ block 0 ][ block 1 ] …           frames that many queues send
//!   pieces   │ chunk 0 │ chunk 1 │ … │ slice of a block │ …      each: next, start, end
//!   queue    1 ─► slice ─► 0                    a chain of pieces
//!   free     1, 5, 4, …                         last given back, first taken: it is still in the cache
//! ```
//! An idle connection holds no piece. A piece handed to the kernel is not given back before its completion.

use super::blocks::{Blocks, Shared};
use super::region::Region;
use super::urgent::Heads;
use std::io;

/// Bytes of a chunk: a typical turn's output of one connection fits, ten thousand of them are 40 MiB.
pub const CHUNK_BYTES: usize = 4096;

/// No piece.
pub(super) const NONE: u32 = u32::MAX;

/// Of the pool's memory, one part in so many is for shared frames.
const SHARED_PART: usize = 8;

#[derive(Clone, Copy, Default)]
struct Node {
    next: u32,
    /// First byte not yet sent: of the chunk, or of the blocks' region.
    start: u32,
    /// One past the last byte.
    end: u32,
}

/// One per shard, touched only by its thread (and the kernel, which reads what is being sent).
pub(super) struct PiecePool {
    region: Region,
    blocks: Blocks,
    nodes: Vec<Node>,
    chunks: u32,
    free_chunks: Vec<u32>,
    /// Chunks from here on were never taken.
    fresh_chunk: u32,
    free_slices: Vec<u32>,
    fresh_slice: u32,
}

impl PiecePool {
    /// A pool of `bytes`; of shared frames, `connections` pieces and as many as there are chunks.
    ///
    /// # Errors
    /// The address space or the memory limit does not allow it.
    pub fn new(bytes: usize, connections: usize) -> io::Result<Self> {
        let blocks = Blocks::new(bytes / SHARED_PART)?;
        let chunks = ((bytes - bytes / SHARED_PART) / CHUNK_BYTES).clamp(1, NONE as usize / 4);
        let pieces = (2 * chunks + connections).min(NONE as usize - 1);
        Ok(Self {
            region: Region::new(chunks * CHUNK_BYTES)?,
            blocks,
            // All zeroes: untouched until used.
            nodes: vec![Node::default(); pieces],
            chunks: chunks as u32,
            free_chunks: Vec::new(),
            fresh_chunk: 0,
            free_slices: Vec::new(),
            fresh_slice: chunks as u32,
        })
    }

    /// Chunks that can still be taken.
    pub fn free(&self) -> usize {
        self.free_chunks.len() + (self.chunks - self.fresh_chunk) as usize
    }

    /// Chunks of the pool.
    pub fn count(&self) -> usize {
        self.chunks as usize
    }

    /// An empty chunk with nothing behind it.
    pub fn take(&mut self) -> Option<u32> {
        let chunk = match self.free_chunks.pop() {
            Some(chunk) => chunk,
            None if self.fresh_chunk < self.chunks => {
                self.fresh_chunk += 1;
                self.fresh_chunk - 1
            }
            None => return None,
        };
        self.nodes[chunk as usize] = Node { next: NONE, start: 0, end: 0 };
        Some(chunk)
    }

    /// Takes a frame into the blocks; `None` where there is no room.
    pub fn share(&mut self, bytes: &[u8]) -> Option<Shared> {
        self.blocks.append(bytes)
    }

    /// Whether the frame is still where it was.
    pub fn holds(&self, frame: Shared) -> bool {
        self.blocks.holds(frame)
    }

    /// A piece that is a frame of the blocks. `None` where all such pieces are in use.
    pub fn slice(&mut self, frame: Shared) -> Option<u32> {
        debug_assert!(self.holds(frame), "the caller has looked");
        let slice = match self.free_slices.pop() {
            Some(slice) => slice,
            None if (self.fresh_slice as usize) < self.nodes.len() => {
                self.fresh_slice += 1;
                self.fresh_slice - 1
            }
            None => return None,
        };
        self.blocks.retain(frame.start);
        self.nodes[slice as usize] = Node { next: NONE, start: frame.start, end: frame.start + frame.len };
        Some(slice)
    }

    /// Makes a slice longer by the frame behind it. `false` where the frame lies elsewhere.
    pub fn extend(&mut self, piece: u32, frame: Shared) -> bool {
        let last = self.nodes[piece as usize].end;
        let fits = self.is_slice(piece) && last == frame.start && self.blocks.same(last - 1, frame.start);
        if fits {
            self.nodes[piece as usize].end += frame.len;
        }
        fits
    }

    /// Gives a piece back, sent or not.
    pub fn give_back(&mut self, piece: u32) {
        if self.is_slice(piece) {
            // Its last byte names its block even when all of it is sent.
            self.blocks.release(self.nodes[piece as usize].end - 1);
            self.free_slices.push(piece);
        } else {
            debug_assert!(!self.free_chunks.contains(&piece) || self.free_chunks.len() > 64, "given back once");
            self.free_chunks.push(piece);
        }
    }

    /// The piece behind.
    pub fn next(&self, piece: u32) -> u32 {
        self.nodes[piece as usize].next
    }

    /// Puts `next` behind.
    pub fn link(&mut self, piece: u32, next: u32) {
        self.nodes[piece as usize].next = next;
    }

    /// Bytes of it that are not yet sent.
    pub fn len(&self, piece: u32) -> usize {
        let node = &self.nodes[piece as usize];
        (node.end - node.start) as usize
    }

    /// The first `bytes` of it are sent.
    pub fn advance(&mut self, piece: u32, bytes: usize) {
        self.nodes[piece as usize].start += bytes as u32;
    }

    /// Where its first byte that is not sent lies.
    pub fn address(&self, piece: u32) -> *const u8 {
        let start = self.nodes[piece as usize].start;
        if self.is_slice(piece) {
            self.blocks.address(start)
        } else {
            self.region.address(piece as usize * CHUNK_BYTES + start as usize)
        }
    }

    /// Bytes from `sent` on to where a frame begins, in the chain from `piece`, whose first frame begins at `from`.
    pub fn boundary(&self, mut piece: u32, from: usize, sent: usize) -> usize {
        let mut heads = Heads::behind(from);
        let (mut total, mut at) = (0, 0);
        loop {
            if let Some(begins) = heads.rest().map(|rest| rest.saturating_add(total)).filter(|begins| *begins >= sent) {
                return begins - sent;
            }
            while piece != NONE && at == self.len(piece) {
                (piece, at) = (self.next(piece), 0);
            }
            if piece == NONE {
                return total.saturating_sub(sent);
            }
            let here = match heads.skip(self.len(piece) - at) {
                0 => {
                    heads.take(self.byte(piece, at));
                    1
                }
                skipped => skipped,
            };
            (total, at) = (total + here, at + here);
        }
    }

    /// A byte of it, counted from the first that is not yet sent.
    fn byte(&self, piece: u32, at: usize) -> u8 {
        let start = self.nodes[piece as usize].start as usize + at;
        if self.is_slice(piece) {
            self.blocks.byte(start)
        } else {
            self.region.byte(piece as usize * CHUNK_BYTES + start)
        }
    }

    /// Copies as much of `bytes` behind what the piece holds as there is room for: none for a slice. Returns how many.
    pub fn write(&mut self, piece: u32, bytes: &[u8]) -> usize {
        if self.is_slice(piece) {
            return 0;
        }
        let node = &mut self.nodes[piece as usize];
        let at = node.end as usize;
        let here = bytes.len().min(CHUNK_BYTES - at);
        node.end += here as u32;
        self.region.write(piece as usize * CHUNK_BYTES + at, &bytes[..here]);
        here
    }

    /// Blocks that pieces point into.
    #[cfg(test)]
    pub fn blocks_used(&self) -> usize {
        self.blocks.used()
    }

    fn is_slice(&self, piece: u32) -> bool {
        piece >= self.chunks
    }
}
