//! The admin edge: what operators and Prometheus may ask of a running server, over HTTP on a socket that is not the clients'.
//!
//! ```text
//!   data folder/admin.sock   its owner only       ─┐                     ┌─ Look ─► shard 0 … n
//!   admin_listen, loopback   for Prometheus, curl ─┴─► a thread each ──► │
//!                                                      8 at once         └─ answers ◄─┘   added up in Totals
//!
//!   GET /metrics    GET /v1/top?seconds=1    GET /v1/why?event=ID&tenant=T
//! ```
//! Nobody is asked who they are: the folder's permissions are the key to the socket, and the port is for loopback. To be reached from
//! elsewhere it needs a principal with the capability `admin`, and TLS. A shard answers in the turn that finds the question and
//! never waits; this edge waits, for [`ANSWER_WITHIN`] at most.

mod event;
mod figures;
mod request;

use super::place;
use crate::config::{Config, OptionalAddress};
use crate::disk::folder::DataFolder;
use crate::observe::Totals;
use crate::reactor::control::{Control, Peer};
use crate::reactor::look::{Figures, Look};
use request::{Answer, Asked, Stream};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A shard that does not answer in this time is in a very long turn.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Requests served at once; one more is told to come back.
const REQUESTS_MAX: usize = 8;
/// A port that another process holds is tried again this often: one that is being taken over lets go when it ends.
const BIND_AGAIN: Duration = Duration::from_secs(1);
/// After a failed accept the next one is tried this much later.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Reaches the admin edge of the server that runs on a data folder.
///
/// # Errors
/// None runs there, or it belongs to somebody else.
pub(crate) fn connect(folder: &Path) -> std::io::Result<UnixStream> {
    place::connect(folder, place::ADMIN)
}

/// One per process.
pub(super) struct Admin {
    folder: PathBuf,
}

/// What all requests share.
struct Desk {
    peers: Arc<[Peer]>,
    totals: Mutex<Totals>,
    figures: flume::Sender<Figures>,
    figured: flume::Receiver<Figures>,
    plan_bytes: u64,
    requests: AtomicUsize,
}

impl Admin {
    /// Opens the edge. Without it the server serves all the same, and says so.
    pub fn open(config: &Config, folder: &DataFolder, peers: Arc<[Peer]>, plan_bytes: u64) -> Admin {
        // An answer that comes late is found by the next look: nothing that was recorded is lost.
        let (figures, figured) = flume::bounded(4 * peers.len());
        let totals = Mutex::new(Totals::new(peers.len()));
        let desk = Arc::new(Desk { peers, totals, figures, figured, plan_bytes, requests: AtomicUsize::new(0) });
        let path = folder.path().to_owned();
        let here = Arc::clone(&desk);
        let listen = || {
            let listener = place::bind(&path, place::ADMIN)?;
            spawn("admin", move || serve(&here, || listener.accept().map(|(stream, _)| Stream::Unix(stream))))
        };
        if let Err(error) = listen() {
            tracing::warn!(%error, "no socket for operators in the data folder: `tidegate top` and `why` will not work");
        }
        if let OptionalAddress(Some(address)) = config.admin_listen
            && let Err(error) = spawn("admin-tcp", move || listen_on(address, &desk))
        {
            tracing::warn!(%error, %address, "no admin edge over TCP");
        }
        Admin { folder: path }
    }

    /// Before the lock is let go: a socket that is there later is another process's.
    pub fn close(&self) {
        if let Err(error) = place::remove(&self.folder, place::ADMIN) {
            tracing::warn!(%error, "the socket for operators stays behind: the next start replaces it");
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name(name.into()).spawn(run).map(|_| ())
}

fn listen_on(address: SocketAddr, desk: &Arc<Desk>) {
    let mut said = false;
    let listener = loop {
        match TcpListener::bind(address) {
            Ok(listener) => break listener,
            Err(error) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(%error, %address, "the admin address cannot be had: trying again every second");
                }
                std::thread::sleep(BIND_AGAIN);
            }
        }
    };
    tracing::info!(%address, "admin edge: GET /metrics, without asking who asks");
    serve(desk, || listener.accept().map(|(stream, _)| Stream::Tcp(stream)));
}

/// Gives each connection a thread, while there are few.
fn serve(desk: &Arc<Desk>, accept: impl Fn() -> std::io::Result<Stream>) {
    loop {
        let Ok(mut stream) = accept() else {
            std::thread::sleep(ACCEPT_AGAIN);
            continue;
        };
        if desk.requests.fetch_add(1, Ordering::Relaxed) >= REQUESTS_MAX {
            desk.requests.fetch_sub(1, Ordering::Relaxed);
            stream.answer(&Answer::busy());
            continue;
        }
        let here = Arc::clone(desk);
        let one = move || {
            here.converse(&mut stream);
            here.requests.fetch_sub(1, Ordering::Relaxed);
        };
        if spawn("admin-request", one).is_err() {
            desk.requests.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Desk {
    fn converse(&self, stream: &mut Stream) {
        let answer = match stream.read() {
            Err(answer) => answer,
            Ok(asked) => self.reply(&asked),
        };
        stream.answer(&answer);
    }

    fn reply(&self, asked: &Asked) -> Answer {
        match (&*asked.method, &*asked.path) {
            ("GET", "/metrics") => self.metrics(asked),
            ("GET", "/v1/top") => self.top(asked),
            ("GET", "/v1/why") => self.why(asked),
            #[cfg(feature = "stall")]
            ("POST", "/stall") => stall(asked),
            (_, "/metrics" | "/v1/top" | "/v1/why") => Answer::refused("405 Method Not Allowed", "use GET"),
            _ => Answer::refused("404 Not Found", "there are /metrics, /v1/top and /v1/why"),
        }
    }

    /// The totals, with what every shard has recorded up to now, and the shards that did not answer in time.
    fn collect(&self) -> (Totals, Vec<usize>) {
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let mut silent: Vec<usize> = (0..self.peers.len()).collect();
        for peer in self.peers.iter() {
            let look = Look::Figures { empty: Box::default(), reply: self.figures.clone() };
            if peer.control.try_send(Control::Look(look)).is_ok() {
                peer.waker.wake();
            }
        }
        let deadline = Instant::now() + ANSWER_WITHIN;
        while !silent.is_empty()
            && let Ok(Figures { shard, recorder, gauges }) = self.figured.recv_deadline(deadline)
        {
            let shard = usize::from(shard.0);
            totals.take(shard, &recorder, gauges);
            silent.retain(|number| *number != shard);
        }
        (totals.clone(), silent)
    }
}

#[cfg(feature = "stall")]
fn stall(asked: &Asked) -> Answer {
    use crate::observe::{Stage, fault};
    let stage = Stage::ALL.into_iter().find(|stage| asked.value("stage").as_deref() == Some(stage.name()));
    let ms = asked.value("ms").and_then(|ms| ms.parse().ok());
    match (stage, ms) {
        (Some(stage), Some(ms)) => {
            fault::arm(stage, ms);
            Answer::json(&serde_json::json!({"stage": stage.name(), "ms": ms}))
        }
        _ => Answer::refused("400 Bad Request", "give stage and ms"),
    }
}
