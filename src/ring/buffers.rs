//! Receive buffers the kernel picks from: one ring of them per shard, lent and given back.
//!
//! ```text
//!   entries [ addr len bid | addr len bid | … ]   shared with the kernel, page aligned; `tail` is ours to move
//!   bytes   [ buffer 0 ][ buffer 1 ] …            lent (kernel) → completion names it → Filled → given back (tail + 1)
//! ```
//! An idle connection holds no buffer: that is what keeps it under a kilobyte.

use io_uring::types::BufRingEntry;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

/// Buffer group of every receive.
pub const RECV_GROUP: u16 = 0;

const PAGE_BYTES: usize = 4096;

/// One per shard, touched only by its thread and the kernel.
pub struct RecvBuffers {
    map: Rc<Map>,
    /// Buffers that a [`Filled`] stands for at this moment.
    filled: Vec<bool>,
    tail: u16,
}

/// A buffer with received bytes, ours until it is given back.
pub struct Filled {
    map: Rc<Map>,
    bid: u16,
    len: usize,
}

struct Map {
    base: NonNull<u8>,
    bytes: usize,
    entries_bytes: usize,
    count: u16,
    buffer_bytes: u32,
}

impl RecvBuffers {
    /// Maps and fills the ring. `count` is a power of two, at most 32768.
    pub(super) fn new(count: u16, buffer_bytes: u32) -> io::Result<Self> {
        assert!(count.is_power_of_two(), "the kernel masks the buffer ring's tail");
        let map = Rc::new(Map::new(count, buffer_bytes)?);
        let mut buffers = Self { map, filled: vec![false; usize::from(count)], tail: 0 };
        for bid in 0..count {
            buffers.place(bid);
        }
        buffers.publish();
        Ok(buffers)
    }

    /// Where the kernel finds the entries.
    pub(super) fn ring_address(&self) -> u64 {
        self.map.base.as_ptr() as u64
    }

    /// Bytes of all buffers.
    pub fn bytes(&self) -> usize {
        usize::from(self.map.count) * self.map.buffer_bytes as usize
    }

    /// Bytes of one.
    pub fn buffer_bytes(&self) -> usize {
        self.map.buffer_bytes as usize
    }

    /// Buffers.
    pub fn count(&self) -> u16 {
        self.map.count
    }

    /// The first `len` bytes of buffer `bid`, which a completion has just named. Give them back before the receive is
    /// armed again.
    pub fn take(&mut self, bid: u16, len: usize) -> Filled {
        let taken = std::mem::replace(&mut self.filled[usize::from(bid)], true);
        assert!(!taken && len <= self.map.buffer_bytes as usize, "the kernel names a buffer once for each loan");
        Filled { map: self.map.clone(), bid, len }
    }

    /// Lends the buffer to the kernel again.
    pub fn give_back(&mut self, filled: Filled) {
        assert!(Rc::ptr_eq(&self.map, &filled.map), "a buffer goes back to the ring that lent it");
        self.filled[usize::from(filled.bid)] = false;
        self.recycle(filled.bid);
    }

    /// Lends a buffer that a completion named and nobody wants to the kernel again.
    pub fn recycle(&mut self, bid: u16) {
        assert!(!self.filled[usize::from(bid)], "somebody still reads this buffer");
        self.place(bid);
        self.publish();
    }

    fn place(&mut self, bid: u16) {
        let address = self.map.buffer(bid) as u64;
        let slot = usize::from(self.tail & (self.map.count - 1));
        // SAFETY: `slot` < `count`: inside the mapping, which is zeroed (a valid entry) and aligned. Field setters
        // leave `resv` alone, which in entry 0 is the tail that the kernel reads.
        let entry = unsafe { &mut *self.map.base.as_ptr().cast::<BufRingEntry>().add(slot) };
        entry.set_addr(address);
        entry.set_len(self.map.buffer_bytes);
        entry.set_bid(bid);
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&mut self) {
        // SAFETY: the mapping begins with an initialised entry, is page aligned, and lives as long as `self`; the
        // kernel only loads this word.
        let tail = unsafe { &*BufRingEntry::tail(self.map.base.as_ptr().cast()).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}

impl std::ops::Deref for Filled {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `take` checked the bounds; `map` keeps the memory; the kernel leaves a buffer alone between its
        // completion and `give_back`, and `filled` lets only one `Filled` exist for it.
        unsafe { std::slice::from_raw_parts(self.map.buffer(self.bid), self.len) }
    }
}

impl std::ops::DerefMut for Filled {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` is the only way to the only `Filled` of this buffer.
        unsafe { std::slice::from_raw_parts_mut(self.map.buffer(self.bid), self.len) }
    }
}

impl Map {
    fn new(count: u16, buffer_bytes: u32) -> io::Result<Self> {
        let entries_bytes = (usize::from(count) * size_of::<BufRingEntry>()).next_multiple_of(PAGE_BYTES);
        let bytes = entries_bytes + usize::from(count) * buffer_bytes as usize;
        // SAFETY: an anonymous mapping at an address of the kernel's choice; the result is checked.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| io::Error::other("mmap returned address zero"))?;
        Ok(Self { base, bytes, entries_bytes, count, buffer_bytes })
    }

    fn buffer(&self, bid: u16) -> *mut u8 {
        assert!(bid < self.count, "the kernel names buffers of this ring only");
        // SAFETY: `bid` < `count`, so the offset lies inside the mapping.
        unsafe { self.base.as_ptr().add(self.entries_bytes + usize::from(bid) * self.buffer_bytes as usize) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: made by mmap with this length. The ring that lent the buffers is closed before (see `Ring`'s field
        // order), and no `Filled` is left, so neither the kernel nor we look here again.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
