//! A mapped piece of address space that outlives every send that points into it.
//!
//! ```text
//!   [ ······ written ······ | zeroes, not yet touched, cost nothing ]
//!        ▲ address(at): the kernel reads here while a send is in flight
//! ```
//! Nothing hands out a reference into it: bytes are copied in, and addresses go to the kernel.

use std::io;
use std::ptr::NonNull;

/// One mapping. Touched only by its shard's thread, and by the kernel, which reads.
pub(super) struct Region {
    start: NonNull<u8>,
    bytes: usize,
}

impl Region {
    /// Maps `bytes`, of which none is touched.
    ///
    /// # Errors
    /// The address space or the memory limit does not allow it.
    pub fn new(bytes: usize) -> io::Result<Self> {
        // SAFETY: an anonymous mapping at an address of the kernel's choice; the result is checked.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap returned address zero"))?;
        Ok(Self { start, bytes })
    }

    /// Where byte `at` lies; the address one past the end is one too.
    pub fn address(&self, at: usize) -> *const u8 {
        self.place(at)
    }

    /// Copies `bytes` to `at`. Bytes elsewhere may be with the kernel.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at <= self.bytes && bytes.len() <= self.bytes - at, "a write stays inside its region");
        // SAFETY: in bounds by the assertion; `bytes` is ordinary memory outside the region, because nothing hands
        // out references into it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.place(at), bytes.len()) };
    }

    /// Byte `at`.
    pub fn byte(&self, at: usize) -> u8 {
        assert!(at < self.bytes, "a byte lies in its region");
        // SAFETY: in bounds by the assertion, and zero where nothing was written yet; others only read.
        unsafe { self.place(at).read() }
    }

    fn place(&self, at: usize) -> *mut u8 {
        assert!(at <= self.bytes, "an address lies in its region");
        // SAFETY: inside the mapping, or one past its end, by the assertion.
        unsafe { self.start.as_ptr().add(at) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: made by mmap with this length. A shard drops its ring, and with it every send, before its queues.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
