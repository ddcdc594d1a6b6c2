//! Receive buffers the kernel picks from: one ring of them per shard, lent and given back.
//!
//! ```text
//!   entries [ addr len bid | addr len bid | … ]   shared with the kernel, page aligned; `tail` is ours to move
//!   bytes   [ buffer 0 ][ buffer 1 ] …            lent (kernel) → completion names it → read → recycled (tail + 1)
//! ```
//! An idle connection holds no buffer: that is what keeps it under a kilobyte.

use io_uring::types::BufRingEntry;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

/// Buffer group of every receive.
pub const RECV_GROUP: u16 = 0;

/// One per shard, touched only by its thread and the kernel.
pub struct RecvBuffers {
    map: NonNull<u8>,
    map_bytes: usize,
    entries_bytes: usize,
    count: u16,
    buffer_bytes: u32,
    tail: u16,
}

impl RecvBuffers {
    /// Maps and fills the ring. `count` is a power of two, at most 32768.
    pub(super) fn new(count: u16, buffer_bytes: u32) -> io::Result<Self> {
        assert!(count.is_power_of_two(), "the kernel masks the buffer ring's tail");
        let page = 4096;
        let entries_bytes = (usize::from(count) * size_of::<BufRingEntry>()).next_multiple_of(page);
        let map_bytes = entries_bytes + usize::from(count) * buffer_bytes as usize;
        // SAFETY: an anonymous mapping at an address of the kernel's choice; the result is checked.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                map_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map = NonNull::new(map.cast::<u8>()).ok_or_else(|| io::Error::other("mmap returned address zero"))?;
        let mut buffers = Self { map, map_bytes, entries_bytes, count, buffer_bytes, tail: 0 };
        for bid in 0..count {
            buffers.place(bid);
        }
        buffers.publish();
        Ok(buffers)
    }

    /// Where the kernel finds the entries.
    pub(super) fn ring_address(&self) -> u64 {
        self.map.as_ptr() as u64
    }

    /// Buffers.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// The bytes a completion put into buffer `bid`. The buffer is ours until [`RecvBuffers::recycle`].
    pub fn bytes_mut(&mut self, bid: u16, len: usize) -> &mut [u8] {
        assert!(bid < self.count && len <= self.buffer_bytes as usize, "the kernel named a buffer of this ring");
        // SAFETY: in bounds by the assertion; the kernel does not touch a buffer between its completion and its
        // recycling, and `&mut self` keeps a second view from being made.
        unsafe { std::slice::from_raw_parts_mut(self.buffer(bid), len) }
    }

    /// Gives buffer `bid` back to the kernel. Call it once per completion that named one, before the receive is
    /// armed again.
    pub fn recycle(&mut self, bid: u16) {
        assert!(bid < self.count, "the kernel named a buffer of this ring");
        self.place(bid);
        self.publish();
    }

    fn buffer(&self, bid: u16) -> *mut u8 {
        // SAFETY: `bid` < `count`, so the offset lies inside the mapping.
        unsafe { self.map.as_ptr().add(self.entries_bytes + usize::from(bid) * self.buffer_bytes as usize) }
    }

    fn place(&mut self, bid: u16) {
        let address = self.buffer(bid) as u64;
        let slot = usize::from(self.tail & (self.count - 1));
        // SAFETY: `slot` < `count`: inside the mapping, which is zeroed (a valid entry) and aligned. Field setters
        // leave `resv` alone, which in entry 0 is the tail that the kernel reads.
        let entry = unsafe { &mut *self.map.as_ptr().cast::<BufRingEntry>().add(slot) };
        entry.set_addr(address);
        entry.set_len(self.buffer_bytes);
        entry.set_bid(bid);
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&mut self) {
        // SAFETY: the mapping begins with an initialised entry, is page aligned, and lives as long as `self`; the
        // kernel only loads this word.
        let tail = unsafe { &*BufRingEntry::tail(self.map.as_ptr().cast()).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for RecvBuffers {
    fn drop(&mut self) {
        // SAFETY: made by mmap with this length; the ring that lent the buffers is closed before (see `Ring`'s
        // field order), so the kernel no longer writes here.
        unsafe { libc::munmap(self.map.as_ptr().cast(), self.map_bytes) };
    }
}
