//! The only place with system calls: non-blocking TCP sockets and one epoll.
//!
//! ```text
//!   Poll::connect ─► Socket (fd, closed on drop) ─► read / write ─► WouldBlock? wait for Poll::wait
//! ```

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
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

fn internet_address(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
        sin_zero: [0; 8],
    }
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

    /// Starts connecting, from `source` if it is given; `token` reports writable when the connection stands.
    pub fn connect(&self, address: SocketAddrV4, source: Option<Ipv4Addr>, token: usize) -> io::Result<Socket> {
        let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: a fresh descriptor, owned from here on.
        let socket = Socket(unsafe { OwnedFd::from_raw_fd(check(libc::socket(libc::AF_INET, kind, 0))?) });
        let one = 1i32;
        // A reset on close: thousands of ports in TIME_WAIT would spoil the next run.
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        let target = internet_address(address);
        if let Some(source) = source {
            let own = internet_address(SocketAddrV4::new(source, 0));
            // SAFETY: every pointer is to a live local of exactly the size passed along.
            check(unsafe {
                let (fd, size) = (socket.0.as_raw_fd(), size_of::<i32>() as u32);
                // The port is chosen with the target in view: a source address has a range of ports for each target.
                libc::setsockopt(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, (&raw const one).cast(), size);
                libc::bind(fd, (&raw const own).cast(), size_of::<libc::sockaddr_in>() as u32)
            })?;
        }
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
        self.control(libc::EPOLL_CTL_ADD, &socket, token, libc::EPOLLIN | libc::EPOLLOUT)?;
        Ok(socket)
    }

    /// Asks for `writable` reports of `token` from now on, or no longer.
    pub fn want_write(&self, socket: &Socket, token: usize, want: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, socket, token, libc::EPOLLIN | if want { libc::EPOLLOUT } else { 0 })
    }

    /// Asks for no reports of `token` until the next [`Poll::want_write`]: what comes stays in the kernel.
    pub fn look_away(&self, socket: &Socket, token: usize) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, socket, token, 0)
    }

    fn control(&self, operation: i32, socket: &Socket, token: usize, events: i32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: token as u64 };
        // SAFETY: the event is a live local, copied by the kernel.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, socket.0.as_raw_fd(), &mut event) }).map(drop)
    }

    /// Waits up to `timeout_ns` and replaces `ready` by what is ready, so many at most.
    pub fn wait(&self, ready: &mut Vec<Ready>, timeout_ns: u64, ready_max: usize) {
        const EVENTS: usize = 512;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        let second = 1_000_000_000;
        let timeout = libc::timespec { tv_sec: (timeout_ns / second) as i64, tv_nsec: (timeout_ns % second) as i64 };
        // SAFETY: the kernel writes at most EVENTS entries into the array and reads the timeout; the mask is null, which
        // makes its size irrelevant.
        let count = unsafe {
            let (fd, at) = (self.0.as_raw_fd(), events.as_mut_ptr());
            libc::syscall(
                libc::SYS_epoll_pwait2,
                fd,
                at,
                EVENTS.min(ready_max) as i32,
                &raw const timeout,
                0usize,
                8usize,
            )
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};

    const TOKEN: usize = 7;
    /// Waits of a second each before a test gives up; one is enough on a machine that does anything at all.
    const WAITS_MAX: usize = 60;

    /// A connected pair: ours, and the peer's end.
    fn pair(poll: &Poll) -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let Ok(SocketAddr::V4(address)) = listener.local_addr() else { panic!("not of IPv4") };
        let socket = poll.connect(address, None, TOKEN).expect("connecting begins");
        let (peer, _) = listener.accept().expect("it arrives");
        wait_for(poll, |ready| ready.writable);
        (socket, peer)
    }

    fn wait_for(poll: &Poll, wanted: impl Fn(&Ready) -> bool) {
        let mut ready = Vec::new();
        for _ in 0..WAITS_MAX {
            poll.wait(&mut ready, 1_000_000_000, usize::MAX);
            assert!(ready.iter().all(|r| r.token == TOKEN), "a token that nobody gave");
            if ready.iter().any(&wanted) {
                return;
            }
        }
        panic!("nothing came");
    }

    fn is_would_block(result: io::Result<usize>) -> bool {
        result.is_err_and(|why| why.kind() == io::ErrorKind::WouldBlock)
    }

    #[test]
    fn bytes_cross_both_ways_and_an_end_is_a_read_of_nothing() {
        let poll = Poll::new().expect("an epoll");
        let (socket, mut peer) = pair(&poll);
        let mut buffer = [0u8; 16];
        assert!(is_would_block(socket.read(&mut buffer)), "nothing was sent yet");
        assert_eq!(socket.write(b"to the peer").expect("room in the kernel"), 11);
        peer.read_exact(&mut buffer[..11]).expect("it arrives");
        assert_eq!(&buffer[..11], b"to the peer");

        peer.write_all(b"and back").expect("it leaves");
        wait_for(&poll, |ready| ready.readable);
        // No more than the buffer holds, and the rest on the next call.
        assert_eq!(socket.read(&mut buffer[..3]).expect("bytes are there"), 3);
        assert_eq!(socket.read(&mut buffer[3..]).expect("bytes are there"), 5);
        assert_eq!(&buffer[..8], b"and back");

        drop(peer);
        wait_for(&poll, |ready| ready.readable);
        assert_eq!(socket.read(&mut buffer).expect("an end is no error"), 0);
    }

    #[test]
    fn a_peer_that_does_not_read_blocks_nobody_and_is_said_to_take_bytes_again() {
        let poll = Poll::new().expect("an epoll");
        let (socket, mut peer) = pair(&poll);
        let block = vec![b'x'; 64 << 10];
        let mut sent = 0;
        let full = loop {
            match socket.write(&block) {
                Ok(n) => sent += n,
                full => break full,
            }
        };
        assert!(is_would_block(full), "full is an answer");
        // Nothing to read, and no report of room is wanted: a wait comes back empty.
        poll.want_write(&socket, TOKEN, false).expect("known to the epoll");
        let mut ready = vec![Ready { token: 0, readable: true, writable: true }];
        poll.wait(&mut ready, 0, usize::MAX);
        assert!(ready.is_empty());
        poll.want_write(&socket, TOKEN, true).expect("known to the epoll");
        std::io::copy(&mut (&mut peer).take(sent as u64), &mut std::io::sink()).expect("all that was sent");
        wait_for(&poll, |ready| ready.writable);
    }

    #[test]
    fn who_looks_away_hears_of_what_came_when_it_looks_again() {
        let poll = Poll::new().expect("an epoll");
        let (socket, mut peer) = pair(&poll);
        poll.look_away(&socket, TOKEN).expect("known to the epoll");
        peer.write_all(b"unseen").expect("it leaves");
        let mut ready = Vec::new();
        poll.wait(&mut ready, 20_000_000, usize::MAX);
        assert!(ready.is_empty());
        poll.want_write(&socket, TOKEN, false).expect("known to the epoll");
        wait_for(&poll, |ready| ready.readable && !ready.writable);
    }

    #[test]
    fn a_closed_socket_leaves_the_epoll_and_resets_its_peer() {
        let poll = Poll::new().expect("an epoll");
        let (socket, mut peer) = pair(&poll);
        drop(socket);
        let why = peer.read(&mut [0u8; 1]).expect_err("no orderly end: no port stays in TIME_WAIT");
        assert_eq!(why.kind(), io::ErrorKind::ConnectionReset);
        let mut ready = Vec::new();
        poll.wait(&mut ready, 0, usize::MAX);
        assert!(ready.is_empty(), "its descriptor is gone");
    }

    #[test]
    fn a_refused_connection_is_reported_and_reads_as_an_error() {
        let poll = Poll::new().expect("an epoll");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let Ok(SocketAddr::V4(address)) = listener.local_addr() else { panic!("not of IPv4") };
        drop(listener);
        // Refused at once, or by the report.
        let Ok(socket) = poll.connect(address, None, TOKEN) else { return };
        wait_for(&poll, |ready| ready.readable);
        let why = socket.read(&mut [0u8; 1]).expect_err("nobody listens");
        assert_eq!(why.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_connection_comes_from_the_address_it_was_told_to() {
        let poll = Poll::new().expect("an epoll");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let Ok(SocketAddr::V4(address)) = listener.local_addr() else { panic!("not of IPv4") };
        let source = Ipv4Addr::new(127, 0, 0, 9);
        let _socket = poll.connect(address, Some(source), TOKEN).expect("connecting begins");
        let (_, from) = listener.accept().expect("it arrives");
        assert_eq!(from.ip(), source);
    }

    #[test]
    fn the_descriptor_limit_is_what_the_system_allows() {
        let raised = raise_nofile();
        assert!(raised > 0);
        assert_eq!(raise_nofile(), raised, "nothing is left to raise");
    }
}
