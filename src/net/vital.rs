//! Peers that are gone without a word: their kernel acknowledges nothing any more.
//!
//! ```text
//!   bytes to be sent ──► our kernel's buffer ──► … nobody        sends "succeed" until the buffer is full: hours, for small events
//!                                            no acknowledgement for the time given ──► ETIMEDOUT: the connection ends
//! ```
//! A peer that answers no ping is found by the wheel, but a connection that takes our bytes counts as alive: a slow reader cannot answer
//! a ping that lies behind what it has still to read. This is the kernel's part of the same rule. A socket inherits it from its listener.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Connections accepted from now on end when their peer has acknowledged nothing of what was sent for `timeout_us`.
///
/// # Errors
/// The kernel does not know the option.
pub(super) fn give_up_after(listener: &OwnedFd, timeout_us: u64) -> io::Result<()> {
    let timeout_ms = libc::c_uint::try_from(timeout_us / 1000).unwrap_or(libc::c_uint::MAX).max(1);
    // SAFETY: the option's value is an unsigned int of the length that is passed.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_USER_TIMEOUT,
            (&raw const timeout_ms).cast(),
            size_of::<libc::c_uint>() as u32,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn accepted_sockets_inherit_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let owned = OwnedFd::from(listener.try_clone().unwrap());
        give_up_after(&owned, 1_234_000).unwrap();
        let _client = TcpStream::connect(address).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let (mut timeout_ms, mut len) = (0 as libc::c_uint, size_of::<libc::c_uint>() as u32);
        // SAFETY: both pointers are to live locals, `len` says how long the first one is.
        let result = unsafe {
            let value = (&raw mut timeout_ms).cast();
            libc::getsockopt(accepted.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, value, &raw mut len)
        };
        assert_eq!((result, timeout_ms), (0, 1234));
    }
}
