//! The running process's side of a takeover.
//!
//! ```text
//!   Serving ──hello──► Taking ──ready──► (boot drains) ──► release
//!      ▲  └─ busy: no     │ gone, late         │ gone before the logs are closed
//!      └──────────────────┴────────────────────┘
//!   Ending: a signal came first. Whoever comes now is told to wait for the end and start; whoever came before is released
//! ```

use super::rights;
use super::words::{self, VERSION, Word};
use crate::boot::place;
use crate::disk::folder::DataFolder;
use crate::reactor::control::Report;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A process that wants to take over says so at once.
const HELLO_WITHIN: Duration = Duration::from_secs(1);
/// Words and sockets fit the kernel's buffer: whoever does not take them is stuck.
const SAY_WITHIN: Duration = Duration::from_secs(1);
/// From the sockets to `ready`: it opens its rings meanwhile.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// After a failed accept (no descriptor is free) the next one is tried this much later.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What is handed over.
pub(in crate::boot) struct Offer {
    /// Copies of the listening sockets.
    pub listeners: Vec<OwnedFd>,
    /// Where they listen.
    pub address: SocketAddr,
    /// From `ready` to `released` it takes so long at most.
    pub within: Duration,
}

/// One per process, from `ready` to its end.
pub(in crate::boot) struct Gate {
    shared: Arc<Shared>,
    folder: PathBuf,
}

pub(super) struct Shared {
    offer: Offer,
    state: Mutex<State>,
    reports: flume::Sender<Report>,
}

enum State {
    Serving,
    Taking { pid: u32, stream: UnixStream },
    Ending { taker: Option<UnixStream> },
}

impl Gate {
    /// Lets other processes ask. A file system that holds no sockets makes takeovers impossible, and nothing else.
    pub fn open(folder: &DataFolder, offer: Offer, reports: flume::Sender<Report>) -> Gate {
        let shared = Shared::new(offer, reports);
        let gate = Gate { shared: Arc::clone(&shared), folder: folder.path().to_owned() };
        let listen = || {
            let listener = place::bind(folder.path(), place::TAKEOVER)?;
            std::thread::Builder::new().name("takeover".into()).spawn(move || shared.listen(&listener))
        };
        if let Err(error) = listen() {
            tracing::warn!(%error, "no process can take over from this one: stop it before starting another");
        }
        gate
    }

    /// The process ends because a signal asks for it. A process that is about to take over gets the folder all the same.
    pub fn end(&self) {
        self.shared.end();
    }

    /// The process goes on serving after all.
    pub fn serve_on(&self, why: &str) {
        self.shared.serve_on(why);
    }

    /// Before the lock is let go: a socket that is there later is another process's.
    pub fn close(&self) {
        if let Err(error) = place::remove(&self.folder, place::TAKEOVER) {
            tracing::warn!(%error, "the socket for takeovers stays behind: the next start replaces it");
        }
    }

    /// After the lock was let go: tells who waits for it.
    pub fn release(&self) {
        self.shared.say_released();
    }
}

impl Shared {
    pub(super) fn new(offer: Offer, reports: flume::Sender<Report>) -> Arc<Self> {
        Arc::new(Self { offer, state: Mutex::new(State::Serving), reports })
    }

    #[cfg(test)]
    pub(super) fn is_serving(&self) -> bool {
        matches!(*self.state(), State::Serving)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn end(&self) {
        let mut state = self.state();
        *state = match std::mem::replace(&mut *state, State::Serving) {
            State::Serving => State::Ending { taker: None },
            State::Taking { stream, .. } => State::Ending { taker: Some(stream) },
            ending => ending,
        };
    }

    pub(super) fn serve_on(&self, why: &str) {
        let mut state = self.state();
        if let State::Taking { stream, .. } = &*state {
            // Most often it is gone; that is why.
            let _ = words::say(stream, &Word::No { why: why.to_owned() });
            *state = State::Serving;
        }
    }

    pub(super) fn say_released(&self) {
        if let State::Taking { stream, .. } | State::Ending { taker: Some(stream) } = &*self.state() {
            // It looks at the lock by itself when this process ends.
            let _ = words::say(stream, &Word::Released);
        }
    }

    fn listen(self: &Arc<Self>, listener: &UnixListener) {
        for stream in listener.incoming() {
            match stream {
                Ok(stream) => self.meet(stream, rights::own_uid()),
                Err(_) => std::thread::sleep(ACCEPT_AGAIN),
            }
        }
    }

    /// Hears who comes, and refuses or begins. Returns once it is known which.
    pub(super) fn meet(self: &Arc<Self>, stream: UnixStream, own_uid: u32) {
        let greeted = greet(&stream, own_uid).and_then(|pid| self.claim(pid, &stream));
        let pid = match greeted {
            Ok(pid) => pid,
            Err(why) => {
                tracing::warn!(why, "a takeover was refused");
                let _ = words::say(&stream, &Word::No { why });
                return;
            }
        };
        tracing::info!(pid, "a process is getting ready to take over");
        let shared = Arc::clone(self);
        let attend = move || shared.attend(pid, &stream);
        if let Err(error) = std::thread::Builder::new().name("taker".into()).spawn(attend) {
            tracing::warn!(%error, "no thread for a takeover");
            *self.state() = State::Serving;
        }
    }

    fn claim(&self, pid: u32, stream: &UnixStream) -> Result<u32, String> {
        let mut state = self.state();
        match &*state {
            State::Serving => {
                let stream = stream.try_clone().map_err(|error| format!("it cannot attend to it: {error}"))?;
                *state = State::Taking { pid, stream };
                Ok(pid)
            }
            State::Taking { pid, .. } => Err(format!("process {pid} is taking over already: wait for it")),
            State::Ending { .. } => {
                Err("it is going down: wait until it has ended, then start without --takeover".into())
            }
        }
    }

    fn attend(&self, pid: u32, stream: &UnixStream) {
        if let Err(error) = give(stream, &self.offer) {
            tracing::warn!(pid, %error, "a takeover ended before it was ready: nothing changes");
            let _ =
                words::say(stream, &Word::No { why: format!("it was not ready in time, or not as expected: {error}") });
            let mut state = self.state();
            if matches!(*state, State::Taking { .. }) {
                *state = State::Serving;
            }
            return;
        }
        // Boot outlives every thread; if it is gone the process is ending anyway.
        let _ = self.reports.send(Report::TakerReady { pid });
        // It has nothing more to say: what can be heard is its end.
        let _ = words::hear(stream, None);
        let _ = self.reports.send(Report::TakerGone { pid });
    }
}

/// Who comes, and may it?
fn greet(stream: &UnixStream, own_uid: u32) -> Result<u32, String> {
    let there = rights::process_at(stream).map_err(|error| format!("it cannot be seen who asks: {error}"))?;
    if there.uid != own_uid {
        return Err(format!("it belongs to user id {own_uid}: take over as that user, not as {}", there.uid));
    }
    stream.set_write_timeout(Some(SAY_WITHIN)).map_err(|error| error.to_string())?;
    match words::hear(stream, Some(HELLO_WITHIN)) {
        Ok(Some(Word::Hello { version: VERSION, pid })) => Ok(pid),
        Ok(Some(Word::Hello { version, .. })) => {
            Err(format!("it speaks version {VERSION} of takeovers, not {version}: stop it, then start"))
        }
        Ok(_) => Err("it expected a hello".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// Gives the sockets and waits for `ready`.
fn give(stream: &UnixStream, offer: &Offer) -> io::Result<()> {
    let (pid, within_ms) = (std::process::id(), offer.within.as_millis() as u64);
    words::say(stream, &Word::Listeners { count: offer.listeners.len(), pid, within_ms, address: offer.address })?;
    rights::send(stream, &offer.listeners)?;
    match words::hear(stream, Some(READY_WITHIN))? {
        Some(Word::Ready) => Ok(()),
        Some(word) => Err(io::Error::other(format!("it said {:?}", word.to_string().trim_end()))),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
