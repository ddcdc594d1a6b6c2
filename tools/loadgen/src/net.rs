//! The only place with system calls: non-blocking TCP sockets and one epoll.
//!
//! ```text
//!   Poll::connect ─► Socket (fd, closed on drop) ─► read / write ─► WouldBlock? wait for Poll::wait
//! ```

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A connected or connecting TCP socket.
pub struct Socket(OwnedFd);

/// The epoll of the process.
pub struct Poll(OwnedFd);

/// What a wait reported about one token.
#[derive(Clone, Copy)]
pub struct Ready {
    pub token: usize,
    pub readable: bool,
    pub writable: bool,
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Raises the descriptor limit to what the system allows; returns it.
pub fn raise_nofile() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write only the struct on this stack frame.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
    limit.rlim_cur
}

impl Poll {
    pub fn new() -> io::Result<Poll> {
        // SAFETY: plain system calls without pointers; the descriptor is fresh and owned by nobody else.
        unsafe {
            // Paced sending needs wake-ups on time: the default slack of 50 µs would be charged to the server.
            libc::prctl(libc::PR_SET_TIMERSLACK, 1u64, 0, 0, 0);
            Ok(Poll(OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?)))
        }
    }

    /// Starts connecting; `token` reports writable when the connection stands.
    pub fn connect(&self, address: SocketAddrV4, token: usize) -> io::Result<Socket> {
        let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: a fresh descriptor, owned from here on.
        let socket = Socket(unsafe { OwnedFd::from_raw_fd(check(libc::socket(libc::AF_INET, kind, 0))?) });
        let one = 1i32;
        // A reset on close: thousands of ports in TIME_WAIT would spoil the next run.
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        let target = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: address.port().to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
            sin_zero: [0; 8],
        };
        // SAFETY: every pointer is to a live local of exactly the size passed along.
        let connected = unsafe {
            let fd = socket.0.as_raw_fd();
            libc::setsockopt(
                fd,
                libc::IPPROTO_TCP,
                libc::TCP_NODELAY,
                (&raw const one).cast(),
                size_of::<i32>() as u32,
            );
            let size = size_of::<libc::linger>() as u32;
            libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size);
            libc::connect(fd, (&raw const target).cast(), size_of::<libc::sockaddr_in>() as u32)
        };
        if connected < 0 {
            let why = io::Error::last_os_error();
            if why.raw_os_error() != Some(libc::EINPROGRESS) {
                return Err(why);
            }
        }
        self.control(libc::EPOLL_CTL_ADD, &socket, token, true)?;
        Ok(socket)
    }

    /// Asks for `writable` reports of `token` from now on, or no longer.
    pub fn want_write(&self, socket: &Socket, token: usize, want: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, socket, token, want)
    }

    fn control(&self, operation: i32, socket: &Socket, token: usize, write: bool) -> io::Result<()> {
        let events = libc::EPOLLIN | if write { libc::EPOLLOUT } else { 0 };
        let mut event = libc::epoll_event { events: events as u32, u64: token as u64 };
        // SAFETY: the event is a live local, copied by the kernel.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, socket.0.as_raw_fd(), &mut event) }).map(drop)
    }

    /// Waits up to `timeout_ns` and replaces `ready` by what is ready.
    pub fn wait(&self, ready: &mut Vec<Ready>, timeout_ns: u64) {
        const EVENTS: usize = 512;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        let second = 1_000_000_000;
        let timeout = libc::timespec { tv_sec: (timeout_ns / second) as i64, tv_nsec: (timeout_ns % second) as i64 };
        // SAFETY: the kernel writes at most EVENTS entries into the array and reads the timeout; the mask is null, which
        // makes its size irrelevant.
        let count = unsafe {
            let (fd, at) = (self.0.as_raw_fd(), events.as_mut_ptr());
            libc::syscall(libc::SYS_epoll_pwait2, fd, at, EVENTS as i32, &raw const timeout, 0usize, 8usize)
        };
        ready.clear();
        ready.extend(events.iter().take(count.max(0) as usize).map(|event| {
            let (bits, token) = (event.events as i32, event.u64 as usize);
            let readable = bits & (libc::EPOLLIN | libc::EPOLLHUP | libc::EPOLLERR) != 0;
            Ready { token, readable, writable: bits & libc::EPOLLOUT != 0 }
        }));
    }
}

impl Socket {
    /// Reads what is there; 0 = closed by the peer.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the kernel writes at most `buffer.len()` bytes into the exclusively borrowed buffer.
        let n = unsafe { libc::read(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Writes what the kernel takes.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: the kernel reads at most `bytes.len()` bytes of the borrowed slice.
        let n = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }
}
