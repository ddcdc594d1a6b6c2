//! The new process's side of a takeover.
//!
//! ```text
//!   begin ─► sockets, address          refused, nobody there, another user's, no answer: one line with the cure
//!   wait  ─► ready … released          the folder is free
//!                  … closed            the running process is gone: so is its lock, in a moment
//!                  … no                it goes on serving
//! ```

use super::rights;
use super::words::{self, VERSION, Word};
use crate::boot::listener;
use crate::boot::place;
use crate::disk::folder::{DataFolder, FolderError};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A server that is alive answers at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Listening sockets of one server: one for each shard it has, or had.
const LISTENERS_MAX: usize = 1024;
/// The kernel lets a dead process's lock go a moment later than the process itself.
const LOCK_WITHIN: Duration = Duration::from_secs(3);
/// What the running process says it needs is its own bound; beyond that it is stuck.
const RELEASE_SLACK: Duration = Duration::from_secs(2);

/// What a running process has handed over. It goes on serving until [`Takeover::wait`].
#[derive(Debug)]
pub(in crate::boot) struct Takeover {
    stream: UnixStream,
    within: Duration,
    /// Where the sockets listen.
    pub address: SocketAddr,
    /// The sockets.
    pub listeners: Vec<OwnedFd>,
    /// The running process.
    pub pid: u32,
}

/// Why there is no takeover. Its text is one line with the cure; the process ends with status 2.
#[derive(Debug)]
pub(in crate::boot) enum TakeoverError {
    /// Nobody listens in the folder.
    NoServer { folder: PathBuf },
    /// The folder or the server is another user's.
    Foreign { folder: PathBuf, why: String },
    /// The running server says no.
    Refused { why: String },
    /// It does not say anything.
    Silent { pid: u32, within: Duration },
    /// It was to let the folder go and does not.
    Stuck { pid: u32 },
    /// What it says makes no sense.
    Broken { doing: &'static str, error: io::Error },
}

impl fmt::Display for TakeoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TakeoverError::NoServer { folder } => write!(
                f,
                "no server runs on data folder {} that could be taken over: start without --takeover",
                folder.display()
            ),
            TakeoverError::Foreign { folder, why } => {
                write!(f, "the server on data folder {} cannot be reached: {why}", folder.display())
            }
            TakeoverError::Refused { why } => write!(f, "the running server refuses the takeover: {why}"),
            TakeoverError::Silent { pid, within } => write!(
                f,
                "the running server (process {pid}) did not answer within {} s: stop it (kill {pid}), then start without --takeover",
                within.as_secs_f32()
            ),
            TakeoverError::Stuck { pid } => write!(
                f,
                "the running server (process {pid}) did not let the data folder go in its time: look at its log; stop it, then start without --takeover"
            ),
            TakeoverError::Broken { doing, error } => {
                write!(
                    f,
                    "the takeover failed while {doing}: {error}; stop the running server, then start without --takeover"
                )
            }
        }
    }
}

impl Takeover {
    /// Asks the server that runs on `folder` for its listening sockets.
    pub fn begin(folder: &Path) -> Result<Takeover, TakeoverError> {
        let stream = place::connect(folder, place::TAKEOVER).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => {
                TakeoverError::NoServer { folder: folder.to_owned() }
            }
            io::ErrorKind::PermissionDenied => {
                let why = "it belongs to another user: take over as that user".into();
                TakeoverError::Foreign { folder: folder.to_owned(), why }
            }
            _ => TakeoverError::Broken { doing: "reaching the running server", error },
        })?;
        Self::ask(stream, folder, rights::own_uid(), ANSWER_WITHIN)
    }

    pub(super) fn ask(
        stream: UnixStream,
        folder: &Path,
        own_uid: u32,
        answer_within: Duration,
    ) -> Result<Takeover, TakeoverError> {
        let broken = |doing| move |error| TakeoverError::Broken { doing, error };
        let there = rights::process_at(&stream).map_err(broken("asking who is there"))?;
        if there.uid != own_uid {
            let why = format!("it belongs to user id {}: take over as that user, not as {own_uid}", there.uid);
            return Err(TakeoverError::Foreign { folder: folder.to_owned(), why });
        }
        let hello = Word::Hello { version: VERSION, pid: std::process::id() };
        // Whoever refuses without having heard a hello has closed; what it said can still be read.
        let said = stream.set_write_timeout(Some(answer_within)).and_then(|()| words::say(&stream, &hello));
        let (count, pid, within_ms, address) = match words::hear(&stream, Some(answer_within)) {
            Ok(Some(Word::Listeners { count, pid, within_ms, address })) => (count, pid, within_ms, address),
            Ok(Some(Word::No { why })) => return Err(TakeoverError::Refused { why }),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(TakeoverError::Silent { pid: there.pid, within: answer_within });
            }
            Err(error) => return Err(TakeoverError::Broken { doing: "waiting for an answer", error }),
            Ok(None) => {
                said.map_err(broken("saying hello"))?;
                return Err(TakeoverError::Refused { why: "it closed without a word: look at its log".into() });
            }
            Ok(Some(_)) => {
                let error = io::Error::other("the answer is another one's");
                return Err(TakeoverError::Broken { doing: "waiting for an answer", error });
            }
        };
        if !(1..=LISTENERS_MAX).contains(&count) {
            let error = io::Error::other(format!("{count} sockets were announced"));
            return Err(TakeoverError::Broken { doing: "taking the listening sockets", error });
        }
        let listeners = stream
            .set_read_timeout(Some(answer_within))
            .and_then(|()| rights::receive(&stream, count))
            .and_then(|sockets| listener::check_received(&sockets, address).map(|()| sockets))
            .map_err(broken("taking the listening sockets"))?;
        Ok(Takeover { stream, within: Duration::from_millis(within_ms), address, listeners, pid })
    }

    /// Everything but the folder is there: lets the running server drain, and returns when the folder is free, or may be.
    pub fn wait(&self) -> Result<(), TakeoverError> {
        // A server that is gone is noticed below.
        let _ = words::say(&self.stream, &Word::Ready);
        match words::hear(&self.stream, Some(self.within + RELEASE_SLACK)) {
            // Released, or closed: it is gone, and with it its lock. Whether that is so the lock will tell.
            Ok(Some(Word::Released) | None) => Ok(()),
            Ok(Some(Word::No { why })) => Err(TakeoverError::Refused { why }),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(TakeoverError::Stuck { pid: self.pid }),
            Ok(Some(_)) => Err(TakeoverError::Broken {
                doing: "waiting for the folder",
                error: io::Error::other("the answer is another one's"),
            }),
            Err(error) => Err(TakeoverError::Broken { doing: "waiting for the folder", error }),
        }
    }

    #[cfg(test)]
    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Opens the folder once its lock is free.
    pub fn open_folder(&self, path: &Path) -> Result<DataFolder, FolderError> {
        let deadline = Instant::now() + LOCK_WITHIN;
        loop {
            match DataFolder::open(path) {
                Err(FolderError::Locked { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                opened => return opened,
            }
        }
    }
}
