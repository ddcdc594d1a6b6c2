//! What clients call an epoch: the log's own, or, in a folder that went back in time, another one for each.
//!
//! ```text
//!   log 00f1e2d3c4b5a697 ── shown ──► 8c32…   event ids, gaps, jobs, resume tokens
//!                        ◄─ stored ──
//! ```
//! One process serves one folder, so the mask is the process's: set before anything is served, and never again.

use shards::ids::{Epoch, masked};
use std::sync::atomic::{AtomicU64, Ordering};

static MASK: AtomicU64 = AtomicU64::new(0);

/// Epochs go by this mask from now on.
pub fn begin(mask: u64) {
    // Before the threads that use it are handed anything to serve.
    MASK.store(mask, Ordering::Relaxed);
}

/// The mask.
pub fn mask() -> u64 {
    MASK.load(Ordering::Relaxed)
}

/// As clients know it.
#[inline]
pub fn shown(epoch: Epoch) -> Epoch {
    masked(epoch, mask())
}

/// As the log knows it.
#[inline]
pub fn stored(epoch: Epoch) -> Epoch {
    masked(epoch, mask())
}
