//! Rings a shard from a thread that has no ring of its own: signals, admin, the background executor.
//!
//! Peers do not use this; they send `MSG_RING`, which is cheaper.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

/// The bell of one shard. Clones ring the same bell; any thread may hold one.
#[derive(Clone, Debug)]
pub struct Waker {
    event: Arc<OwnedFd>,
}

impl Waker {
    /// Makes a bell.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers; the result is checked before it is owned.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just created and is owned by nobody else.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { event: Arc::new(event) })
    }

    /// Wakes the shard if it sleeps; rings before it looked count as one.
    pub fn wake(&self) {
        let one = 1u64;
        // SAFETY: `one` is 8 readable bytes. The only failure is a full counter, and then the bell is ringing anyway.
        unsafe { libc::write(self.event.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Silences the bell, before looking at what it was rung for.
    pub(super) fn silence(&self) {
        let mut count = 0u64;
        // SAFETY: `count` is 8 writable bytes. Failure means that nobody rang.
        unsafe { libc::read(self.event.as_raw_fd(), (&raw mut count).cast(), 8) };
    }

    pub(super) fn raw_fd(&self) -> i32 {
        self.event.as_raw_fd()
    }
}
