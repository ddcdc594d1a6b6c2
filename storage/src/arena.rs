//! The hot tail: one aligned ring of memory in which groups are built, from which they are written, and where they stay
//! readable until the ring comes round again.
//!
//! ```text
//!   0                                                            bytes
//!   ├──────────┬──────────┬──────────┬───────────────┬─────────────┤
//!   │ in flight│   open → │ (free)   │ oldest hot    │ … committed │
//!   └──────────┴──────────┴──────────┴───────────────┴─────────────┘
//! ```
//! An event's bytes are copied once, into the open group. The executor reads from here (O_DIRECT: address, position and
//! length are multiples of the block), readers of what just committed do too.

use crate::group::BLOCK_BYTES;
use crate::record::RecordView;
use bytemuck::{Pod, Zeroable};

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4096))]
struct Block([u8; BLOCK_BYTES]);

/// Memory in whole, aligned blocks; made at boot and never moved. One per log, another per pool of read buffers.
pub(crate) struct Arena {
    blocks: Box<[Block]>,
}

impl Arena {
    /// At least `bytes`, zeroed, and touched now, so that the hot path meets no page fault.
    pub(crate) fn new(bytes: usize) -> Arena {
        Arena { blocks: vec![Block::zeroed(); bytes.div_ceil(BLOCK_BYTES)].into() }
    }

    pub(crate) fn len(&self) -> usize {
        self.blocks.len() * BLOCK_BYTES
    }

    pub(crate) fn bytes(&self, start: usize, len: usize) -> &[u8] {
        &bytemuck::cast_slice(&self.blocks)[start..start + len]
    }

    pub(crate) fn bytes_mut(&mut self, start: usize, len: usize) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.blocks)[start..start + len]
    }

    /// The record at `at`. Callers pass only places where this log encoded a record, or where it checked one it read,
    /// and that it did not overwrite since; both kinds of owner keep such places in an index which they clean first.
    pub(crate) fn record(&self, at: usize) -> RecordView<'_> {
        let bytes = &bytemuck::cast_slice(&self.blocks)[at..];
        debug_assert!(RecordView::checked(bytes).is_ok(), "no record at {at} of the arena");
        // SAFETY: see the contract above; it is upheld inside this crate only, by `commit` and `reader`.
        unsafe { RecordView::trusted(bytes) }
    }

    /// Where the memory starts, for an executor that hands it to the kernel.
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.blocks.as_ptr().cast()
    }
}
