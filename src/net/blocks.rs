//! Frames that many queues send: written once, pointed at by each.
//!
//! ```text
//!   open block   [ frame 7 | frame 8 | frame 9 |          ]   a burst lies in one piece
//!   uses            ▲ 1000 queues: frames 7 to 9 are one piece of each
//! ```
//! A block is free again when no piece points into it. A reader that stands still keeps its blocks; when none is left,
//! frames are copied into the queues as if there were no blocks, so it costs others time and never memory.

use super::region::Region;
use std::io;

/// Bytes of a block: a burst of a hundred and fifty small events is one piece.
pub(super) const BLOCK_BYTES: usize = 64 << 10;

/// No block.
const NONE: u32 = u32::MAX;

/// A frame in a block. Good for as long as [`Blocks::holds`] says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shared {
    /// First byte, counted in the region.
    pub(super) start: u32,
    /// Bytes; never 0.
    pub(super) len: u32,
    generation: u32,
}

#[derive(Clone, Default)]
struct Block {
    /// Pieces that point into it.
    uses: u32,
    /// Told on each time it begins anew.
    generation: u32,
}

/// All blocks of a shard.
pub(super) struct Blocks {
    region: Region,
    blocks: Vec<Block>,
    free: Vec<u32>,
    /// Blocks from here on were never taken.
    fresh: u32,
    open: u32,
    used: usize,
}

impl Blocks {
    /// Maps `bytes`, rounded down to whole blocks.
    ///
    /// # Errors
    /// The address space or the memory limit does not allow it.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let count = (bytes / BLOCK_BYTES).clamp(1, u32::MAX as usize / BLOCK_BYTES);
        Ok(Self {
            region: Region::new(count * BLOCK_BYTES)?,
            blocks: vec![Block::default(); count],
            free: Vec::with_capacity(count),
            fresh: 0,
            open: NONE,
            used: 0,
        })
    }

    /// Takes a frame in. `None` where no block is free, or the frame is larger than one.
    pub fn append(&mut self, bytes: &[u8]) -> Option<Shared> {
        if bytes.is_empty() || bytes.len() > BLOCK_BYTES {
            return None;
        }
        if self.open != NONE && self.blocks[self.open as usize].uses == 0 {
            // Nobody points into it: begin again where the cache is warm.
            self.begin(self.open);
        }
        if self.open == NONE || self.used + bytes.len() > BLOCK_BYTES {
            let next = self.take()?;
            self.begin(next);
        }
        let start = self.open as usize * BLOCK_BYTES + self.used;
        self.region.write(start, bytes);
        self.used += bytes.len();
        let generation = self.blocks[self.open as usize].generation;
        Some(Shared { start: start as u32, len: bytes.len() as u32, generation })
    }

    /// Whether the frame is still there.
    pub fn holds(&self, frame: Shared) -> bool {
        self.blocks[block_of(frame.start)].generation == frame.generation
    }

    /// One more piece begins at `start`.
    pub fn retain(&mut self, start: u32) {
        self.blocks[block_of(start)].uses += 1;
    }

    /// A piece that held a byte at `at` is gone.
    pub fn release(&mut self, at: u32) {
        let block = &mut self.blocks[block_of(at)];
        block.uses -= 1;
        if block.uses == 0 && block_of(at) != self.open as usize {
            self.free.push(block_of(at) as u32);
        }
    }

    /// Where byte `at` of the region lies.
    pub fn address(&self, at: u32) -> *const u8 {
        self.region.address(at as usize)
    }

    /// Byte `at` of the region.
    pub fn byte(&self, at: usize) -> u8 {
        self.region.byte(at)
    }

    /// Whether two places lie in one block.
    pub fn same(&self, a: u32, b: u32) -> bool {
        block_of(a) == block_of(b)
    }

    /// Blocks that pieces point into.
    #[cfg(test)]
    pub fn used(&self) -> usize {
        self.blocks.iter().filter(|block| block.uses > 0).count()
    }

    fn take(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| {
            let fresh = self.fresh;
            ((fresh as usize) < self.blocks.len()).then(|| {
                self.fresh += 1;
                fresh
            })
        })
    }

    fn begin(&mut self, block: u32) {
        self.open = block;
        self.used = 0;
        let block = &mut self.blocks[block as usize];
        block.generation = block.generation.wrapping_add(1);
    }
}

const fn block_of(at: u32) -> usize {
    at as usize / BLOCK_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_lives_as_long_as_a_piece_points_into_it() {
        let mut blocks = Blocks::new(2 * BLOCK_BYTES).unwrap();
        let half = vec![1; BLOCK_BYTES / 2];
        let first = blocks.append(&half).unwrap();
        blocks.retain(first.start);
        let second = blocks.append(&half).unwrap();
        blocks.retain(second.start);
        assert!(blocks.same(first.start, second.start));
        let third = blocks.append(&half).unwrap();
        assert!(!blocks.same(first.start, third.start));
        blocks.retain(third.start);
        let fourth = blocks.append(&half).unwrap();
        blocks.retain(fourth.start);
        assert_eq!(blocks.append(&half), None, "both are full and in use");
        assert!(blocks.holds(first));

        blocks.release(first.start);
        assert_eq!(blocks.append(&half), None, "the second frame is still sent");
        blocks.release(second.start + 5);
        let again = blocks.append(&half).unwrap();
        assert_eq!(again.start, first.start);
        assert!(!blocks.holds(first), "the place holds another frame now");
        assert!(blocks.holds(again) && blocks.holds(third));
    }

    #[test]
    fn an_open_block_that_nobody_uses_begins_again() {
        let mut blocks = Blocks::new(BLOCK_BYTES).unwrap();
        let first = blocks.append(b"one").unwrap();
        blocks.retain(first.start);
        blocks.release(first.start);
        let second = blocks.append(b"two").unwrap();
        assert_eq!(first.start, second.start);
        assert!(!blocks.holds(first));
        assert_eq!(blocks.append(&vec![0; BLOCK_BYTES + 1]), None, "larger than a block");
    }
}
