//! A connected socket, however the kernel names it.

use std::os::fd::RawFd;

/// A connected socket. It is plain data: whoever holds it must close it through the ring exactly once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Socket {
    /// An ordinary descriptor: counts against `nofile`.
    Fd(RawFd),
    /// A slot of the ring's table of direct descriptors: does not count, and exists on this ring only.
    Direct(u32),
}
