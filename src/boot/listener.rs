//! Listening sockets: one per shard on the same port, so that the kernel deals connections out.
//!
//! ```text
//!   a fresh start      bind     port ─► one socket a shard
//!   a takeover         taken    sockets of the running server, all of them: a closed one would reset those who wait in it
//!                      join     more on the same port where there are fewer than shards
//!                      deal     shard 0: 0, n, 2n …   shard 1: 1, n+1 …      where there are more than shards
//! ```

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Connections the kernel holds for each shard until they are accepted: as many as it likes (`net.core.somaxconn`). Where it
/// holds no more it drops what comes, and a client's kernel tries again after 1, 3, 7, … seconds.
const BACKLOG: i32 = 65_535;

/// A connection is accepted when its request begins to come, or about so many seconds after it was made.
const REQUEST_WITHIN_S: libc::c_int = 3;

/// After a kill the kernel takes down the old process's rings, and with them its listening sockets, a moment later than
/// the process itself: a port is in use only if it stays so.
const PATIENCE: Duration = Duration::from_secs(3);

/// A port that cannot be had: one line with the cure.
#[derive(Debug)]
pub(super) struct BindError(String);

impl std::fmt::Display for BindError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Binds `count` sockets to one address; port 0 picks a free one. Returns the address they share.
pub(super) fn bind(address: SocketAddr, count: u16) -> Result<(SocketAddr, Vec<OwnedFd>), BindError> {
    let explain = |error: io::Error| {
        BindError(match error.raw_os_error() {
            Some(libc::EADDRINUSE) => {
                format!("address {address} is in use: stop the process that listens there, or give another --listen")
            }
            Some(libc::EADDRNOTAVAIL) => format!("{address} is no address of this machine: give another --listen"),
            Some(libc::EACCES) => format!("{address} may not be used ({error}): give a port from 1024 on to --listen"),
            _ => format!("cannot listen on {address}: {error}"),
        })
    };
    // With SO_REUSEPORT alone a second server of the same user would silently share the port: ask without it first.
    let deadline = Instant::now() + PATIENCE;
    loop {
        match bound(address, false) {
            Ok(probe) => break drop(probe),
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(explain(error)),
        }
    }
    let first = bound(address, true).map_err(explain)?;
    let address = local_address(&first).map_err(explain)?;
    let mut sockets = vec![first];
    for _ in 1..count {
        sockets.push(bound(address, true).map_err(explain)?);
    }
    listen(&sockets).map_err(explain)?;
    Ok((address, sockets))
}

/// Adds sockets to those of a server that was taken over, until there is one for each shard.
pub(super) fn join(address: SocketAddr, sockets: &mut Vec<OwnedFd>, count: u16) -> Result<(), BindError> {
    let more = (sockets.len()..usize::from(count)).map(|_| bound(address, true)).collect::<io::Result<Vec<_>>>();
    let explain = |error| BindError(format!("cannot listen on {address} with more shards: {error}"));
    let more = more.and_then(|more| listen(&more).map(|()| more)).map_err(explain)?;
    sockets.extend(more);
    Ok(())
}

/// Gives every shard its sockets. There are no fewer than shards.
pub(super) fn deal(sockets: Vec<OwnedFd>, shards: u16) -> Vec<Vec<OwnedFd>> {
    let mut dealt: Vec<Vec<OwnedFd>> = (0..shards).map(|_| Vec::new()).collect();
    for (at, socket) in sockets.into_iter().enumerate() {
        dealt[at % usize::from(shards)].push(socket);
    }
    dealt
}

/// Where a socket listens that somebody else has made.
pub(super) fn address_of(socket: &OwnedFd) -> io::Result<SocketAddr> {
    if get(socket, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)? == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not listen"));
    }
    local_address(socket)
}

/// Makes a socket that somebody else has made one of ours; it listens already, and goes on listening.
pub(super) fn prepare(socket: &OwnedFd) -> io::Result<()> {
    set_up(socket)?;
    // A second time: the length of the backlog is all that changes.
    listen(std::slice::from_ref(socket))
}

/// Are these listening TCP sockets of that address?
pub(super) fn check_received(sockets: &[OwnedFd], address: SocketAddr) -> io::Result<()> {
    for socket in sockets {
        if get(socket, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)? == 0 || local_address(socket)? != address {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("what came does not listen on {address}")));
        }
    }
    Ok(())
}

fn listen(sockets: &[OwnedFd]) -> io::Result<()> {
    for socket in sockets {
        // SAFETY: a valid descriptor and a plain number.
        check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    }
    Ok(())
}

fn bound(address: SocketAddr, shared: bool) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointers are passed; the result is checked before it is owned.
    let fd = check(unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: `fd` was just created and is owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    if shared {
        set(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    }
    set_up(&socket)?;
    match address {
        SocketAddr::V4(v4) => {
            let name = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            bind_to(&socket, &name)?;
        }
        SocketAddr::V6(v6) => {
            let name = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            bind_to(&socket, &name)?;
        }
    }
    if !shared {
        // Two that are bound but do not listen yet are both let in; to listen is what collides.
        // SAFETY: a valid descriptor and a plain number.
        check(unsafe { libc::listen(socket.as_raw_fd(), 1) })?;
    }
    Ok(socket)
}

fn set_up(socket: &OwnedFd) -> io::Result<()> {
    // Accepted sockets inherit it.
    set(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    // Until its request is there a connection is the listening socket's, and moves with it to whoever takes over.
    set(socket, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, REQUEST_WITHIN_S)
}

fn bind_to<T>(socket: &OwnedFd, name: &T) -> io::Result<()> {
    // SAFETY: `name` is a socket address of the length that is passed.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const *name).cast(), size_of::<T>() as u32) }).map(drop)
}

fn set(socket: &OwnedFd, level: i32, option: i32, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the option's value is an int of the length that is passed.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), size_of::<libc::c_int>() as u32)
    })
    .map(drop)
}

fn get(socket: &OwnedFd, level: i32, option: i32) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut bytes = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option's value is an int, and `value` is a writable one of the length that is passed.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut bytes) })?;
    Ok(value)
}

fn local_address(socket: &OwnedFd) -> io::Result<SocketAddr> {
    std::net::TcpListener::from(socket.try_clone()?).local_addr()
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_share_a_port_and_nobody_else_does() {
        let any = "127.0.0.1:0".parse().unwrap();
        let (address, sockets) = bind(any, 3).unwrap();
        assert_eq!(sockets.len(), 3);
        let line = bind(address, 2).unwrap_err().to_string();
        assert!(line.contains("is in use") && line.contains("--listen"), "{line}");
        // A connection that was closed by us leaves the port in TIME_WAIT; a restart must not stumble over it.
        let client = std::net::TcpStream::connect(address).unwrap();
        drop(sockets);
        drop(client);
        bind(address, 1).unwrap();
        bind("[::1]:0".parse().unwrap(), 2).unwrap();
        let line = bind("203.0.113.1:7777".parse().unwrap(), 1).unwrap_err().to_string();
        assert!(line.contains("no address of this machine"), "{line}");
    }

    #[test]
    fn sockets_that_were_taken_over_are_checked_joined_and_dealt_out() {
        let (address, mut sockets) = bind("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        check_received(&sockets, address).unwrap();
        check_received(&sockets, "127.0.0.1:1".parse().unwrap()).unwrap_err();
        let client = std::net::TcpStream::connect(address).unwrap();
        check_received(&[OwnedFd::from(client)], address).unwrap_err();
        check_received(&[OwnedFd::from(io::pipe().unwrap().0)], address).unwrap_err();
        join(address, &mut sockets, 1).unwrap();
        assert_eq!(sockets.len(), 2, "none is closed: connections wait in it");
        join(address, &mut sockets, 5).unwrap();
        check_received(&sockets, address).unwrap();
        let dealt: Vec<usize> = deal(sockets, 2).iter().map(Vec::len).collect();
        assert_eq!(dealt, [3, 2]);
    }
}
