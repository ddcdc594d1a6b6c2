//! The memory that send queues are made of: one bounded pool of small chunks per shard.
//!
//! ```text
//!   region   [ chunk 0 ][ chunk 1 ][ chunk 2 ] …        mapped at boot, touched when first used
//!   next     [    2     |   NONE   |   NONE  ] …        queues are chains: 0 → 2
//!   free     1, 5, 4, …                                 last given back, first taken: it is still in the cache
//! ```
//! An idle connection holds no chunk. A chunk handed to the kernel is not given back before its completion.

use std::io;
use std::ptr::NonNull;

/// Bytes of a chunk: a typical turn's output of one connection fits, ten thousand of them are 40 MiB.
pub const CHUNK_BYTES: usize = 4096;

/// No chunk.
pub(super) const NONE: u32 = u32::MAX;

/// One per shard, touched only by its thread (and the kernel, which reads what is being sent).
pub struct ChunkPool {
    region: NonNull<u8>,
    next: Vec<u32>,
    free: Vec<u32>,
    /// Chunks from here on were never taken.
    fresh: u32,
}

impl ChunkPool {
    /// Maps a pool of `bytes`, rounded down to whole chunks.
    ///
    /// # Errors
    /// The address space or the memory limit does not allow it.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let count = (bytes / CHUNK_BYTES).clamp(1, NONE as usize - 1);
        // SAFETY: an anonymous mapping at an address of the kernel's choice; the result is checked.
        let region = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                count * CHUNK_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if region == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let region = NonNull::new(region.cast()).ok_or_else(|| io::Error::other("mmap returned address zero"))?;
        Ok(Self { region, next: vec![0; count], free: Vec::new(), fresh: 0 })
    }

    /// Chunks that can still be taken.
    pub fn free(&self) -> usize {
        self.free.len() + self.next.len() - self.fresh as usize
    }

    /// Chunks of the pool.
    pub fn count(&self) -> usize {
        self.next.len()
    }

    /// A chunk with nothing behind it.
    pub(super) fn take(&mut self) -> Option<u32> {
        let chunk = match self.free.pop() {
            Some(chunk) => chunk,
            None if (self.fresh as usize) < self.next.len() => {
                self.fresh += 1;
                self.fresh - 1
            }
            None => return None,
        };
        self.next[chunk as usize] = NONE;
        Some(chunk)
    }

    pub(super) fn give_back(&mut self, chunk: u32) {
        debug_assert!(!self.free.contains(&chunk) || self.free.len() > 64, "a chunk is given back once");
        self.free.push(chunk);
    }

    pub(super) fn next(&self, chunk: u32) -> u32 {
        self.next[chunk as usize]
    }

    pub(super) fn link(&mut self, chunk: u32, next: u32) {
        self.next[chunk as usize] = next;
    }

    /// Where byte `at` of a chunk lies.
    pub(super) fn address(&self, chunk: u32, at: usize) -> *const u8 {
        self.place(chunk, at)
    }

    /// Copies `bytes` into a chunk, from byte `at` on. Bytes before `at` may be with the kernel.
    pub(super) fn write(&mut self, chunk: u32, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= CHUNK_BYTES, "a write stays inside its chunk");
        // SAFETY: in bounds by the assertion and `place`; `bytes` is ordinary memory outside the region, because
        // nothing hands out references into it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.place(chunk, at), bytes.len()) };
    }

    fn place(&self, chunk: u32, at: usize) -> *mut u8 {
        assert!((chunk as usize) < self.next.len() && at <= CHUNK_BYTES, "a queue holds chunks of this pool only");
        // SAFETY: inside the mapping (or one past its end) by the assertion.
        unsafe { self.region.as_ptr().add(chunk as usize * CHUNK_BYTES + at) }
    }
}

impl Drop for ChunkPool {
    fn drop(&mut self) {
        // SAFETY: made by mmap with this length. A shard drops its ring, and with it every send, before its pool.
        unsafe { libc::munmap(self.region.as_ptr().cast(), self.next.len() * CHUNK_BYTES) };
    }
}
