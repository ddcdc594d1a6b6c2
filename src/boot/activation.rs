//! Listening sockets that a service manager has made: they outlive the process, so that a restart refuses nobody.
//!
//! ```text
//!   systemd ── binds, listens ──► LISTEN_PID=… LISTEN_FDS=n  descriptors 3 … 3+n−1 ──► serve: shard 0: 3, shard 1: 4 …
//!      │                                                                                │ fewer than shards: copies of them
//!      └── keeps its own copies: while no server runs, whoever connects waits in the backlog ◄── drains, ends
//! ```
//! Sockets of our own are not added to them: they would go with the process, and reset whoever waits in them.

use super::listener;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first descriptor that is given; those below are the standard streams.
const FIRST: RawFd = 3;
/// Sockets that are taken at most.
const SOCKETS_MAX: usize = 1024;

/// What was given.
#[derive(Debug)]
pub struct Activated {
    /// Where all of them listen.
    pub address: SocketAddr,
    pub(super) sockets: Vec<OwnedFd>,
}

/// Something was given that cannot be served from. One line with the cure; the process ends with status 2.
#[derive(Debug, PartialEq, Eq)]
pub struct ActivationError(String);

impl fmt::Display for ActivationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "socket activation: {}", self.0)
    }
}

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes what was given to this process, once; `None` where nothing was.
///
/// # Errors
/// What was given is no set of listening TCP sockets of one address.
pub fn take() -> Result<Option<Activated>, ActivationError> {
    let variable = |name: &str| std::env::var(name).ok();
    let count = announced(variable("LISTEN_PID").as_deref(), variable("LISTEN_FDS").as_deref(), std::process::id())?;
    if count == 0 || TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(None);
    }
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut sockets = Vec::new();
    for fd in (FIRST..).take(count) {
        // SAFETY: asks for and sets a flag of a descriptor number; one that is not open is an error.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            let why = format!("descriptor {fd} was announced and is not open: {}", io::Error::last_os_error());
            return Err(ActivationError(why));
        }
        // SAFETY: it is open, and whoever started this process gave it to us alone; `TAKEN` lets that happen once.
        sockets.push(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    Activated::of(sockets, &names).map(Some)
}

/// How many were announced to the process `own`; a parent's announcement is none for its children.
fn announced(pid: Option<&str>, count: Option<&str>, own: u32) -> Result<usize, ActivationError> {
    let (Some(pid), Some(count)) = (pid, count) else { return Ok(0) };
    if pid.parse() != Ok(own) {
        return Ok(0);
    }
    match count.parse() {
        Ok(count) if count <= SOCKETS_MAX => Ok(count),
        _ => Err(ActivationError(format!("LISTEN_FDS={count} is no number of sockets up to {SOCKETS_MAX}"))),
    }
}

impl Activated {
    fn of(sockets: Vec<OwnedFd>, names: &str) -> Result<Self, ActivationError> {
        let mut names = names.split(':').filter(|name| !name.is_empty());
        let mut address = None;
        for (at, socket) in sockets.iter().enumerate() {
            let name = names.next().unwrap_or("unnamed");
            let fd = socket.as_raw_fd();
            let wrong = |why: String| ActivationError(format!("socket {at} ({name}, descriptor {fd}) {why}"));
            let here = listener::address_of(socket).map_err(|error| {
                wrong(format!("is no listening TCP socket ({error}): use ListenStream=ADDRESS:PORT"))
            })?;
            match address {
                None => address = Some(here),
                Some(first) if first == here => {}
                Some(first) => {
                    let cure = "use the same ListenStream= once for each shard, with ReusePort=yes";
                    return Err(wrong(format!("listens on {here}, and the first on {first}: {cure}")));
                }
            }
            listener::prepare(socket).map_err(|error| wrong(format!("cannot be prepared: {error}")))?;
        }
        let address = address.ok_or_else(|| ActivationError("no socket was given".into()))?;
        Ok(Self { address, sockets })
    }

    /// One socket for each shard at least: where fewer were given, shards accept from the same ones.
    pub(super) fn shared_by(self, shards: u16) -> io::Result<Vec<OwnedFd>> {
        let (given, wanted) = (self.sockets.len(), usize::from(shards));
        let mut sockets = self.sockets;
        if given < wanted {
            tracing::info!(
                given,
                shards,
                "shards share sockets, and connections are not dealt out evenly: give one ListenStream= for each, with ReusePort=yes"
            );
        }
        for at in given..wanted {
            sockets.push(sockets[at % given].try_clone()?);
        }
        Ok(sockets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_announced_to_this_process_counts() {
        assert_eq!(announced(None, Some("2"), 7), Ok(0));
        assert_eq!(announced(Some("7"), None, 7), Ok(0));
        assert_eq!(announced(Some("8"), Some("2"), 7), Ok(0));
        assert_eq!(announced(Some("7"), Some("2"), 7), Ok(2));
        for nonsense in ["-1", "x", "99999999"] {
            announced(Some("7"), Some(nonsense), 7).unwrap_err();
        }
    }

    #[test]
    fn sockets_of_one_address_are_taken_and_shared_and_others_are_named() {
        let listening = |address: &str| std::net::TcpListener::bind(address).unwrap();
        let first = listening("127.0.0.1:0");
        let address = first.local_addr().unwrap();
        let copy = first.try_clone().unwrap();
        let activated = Activated::of(vec![first.into(), copy.into()], "").unwrap();
        assert_eq!(activated.address, address);
        let shared = activated.shared_by(5).unwrap();
        assert_eq!(shared.len(), 5);
        listener::check_received(&shared, address).unwrap();

        let other = Activated::of(vec![listening("127.0.0.1:0").into(), listening("127.0.0.1:0").into()], "a:b");
        let line = other.unwrap_err().to_string();
        assert!(line.contains("(b, ") && line.contains("ReusePort=yes"), "{line}");
        let line = Activated::of(vec![io::pipe().unwrap().0.into()], "log").unwrap_err().to_string();
        assert!(line.contains("(log, ") && line.contains("ListenStream="), "{line}");
        Activated::of(Vec::new(), "").unwrap_err();
    }
}
