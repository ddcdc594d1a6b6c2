//! The admin edge: what operators and Prometheus may ask of a running server, over HTTP on a socket that is not the clients'.
//!
//! ```text
//!   data folder/admin.sock   its owner only       ─┐  8 at once each     ┌─ Look ─► shard 0 … n
//!   admin_listen, loopback   for Prometheus, curl ─┴─► a thread each ──► │
//!                                                                        └─ answers ◄─┘   added up in Totals
//!
//!   GET /metrics    GET /v1/top?seconds=1    GET /v1/why?event=ID&tenant=T
//! ```
//! Nobody is asked who they are: the folder's permissions are the key to the socket, and the port is for loopback. To be reached from
//! elsewhere it needs a principal with the capability `admin`, and TLS. The clients' own listener has none of these paths. Whoever
//! fills the port's seats leaves those of the socket free. A shard answers in the turn that finds the question and never waits;
//! this edge waits, for [`ANSWER_WITHIN`] at most.

mod event;
mod figures;
mod request;
mod seats;

use super::place;
use crate::config::{Config, OptionalAddress};
use crate::disk::folder::DataFolder;
use crate::http::Asked;
use crate::observe::Totals;
use crate::reactor::control::{Control, Peer};
use crate::reactor::look::{Figures, Look};
use request::{Answer, LINGER, Status, Stream};
use seats::Seats;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A shard that does not answer in this time is in a very long turn.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Requests served at once on each of both ways; one more is told to come back.
const REQUESTS_MAX: usize = 8;
/// Of these on both ways, those to `top`: each holds two copies of the totals.
const TOPS_MAX: usize = 2;
/// Copies of the totals that there may be, and they.
pub(super) const TOTALS_MAX: usize = 1 + 2 * TOPS_MAX;
/// Who finds no seat is listened to for so long, so that its answer arrives; others wait meanwhile.
const LINGER_BUSY: Duration = Duration::from_millis(20);
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
    tops: Arc<Seats>,
    socket: Way,
    port: Way,
}

/// One of both ways here.
struct Way {
    name: &'static str,
    seats: Arc<Seats>,
    /// Answers given, by [`Status`].
    answers: [AtomicU64; Status::ALL.len()],
}

impl Way {
    fn named(name: &'static str) -> Self {
        Self { name, seats: Seats::new(REQUESTS_MAX), answers: Default::default() }
    }
}

impl Admin {
    /// Opens the edge. Without it the server serves all the same, and says so.
    pub fn open(config: &Config, folder: &DataFolder, peers: Arc<[Peer]>, plan_bytes: u64) -> Admin {
        // An answer that comes late is found by the next look: nothing that was recorded is lost.
        let (figures, figured) = flume::bounded(4 * peers.len());
        let totals = Mutex::new(Totals::new(peers.len()));
        let (socket, port) = (Way::named("socket"), Way::named("port"));
        let tops = Seats::new(TOPS_MAX);
        let desk = Arc::new(Desk { peers, totals, figures, figured, plan_bytes, tops, socket, port });
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
        let Some(seat) = desk.way(&stream).seats.enter() else {
            desk.tell(&mut stream, &Answer::busy());
            stream.close(LINGER_BUSY);
            continue;
        };
        let here = Arc::clone(desk);
        let one = move || {
            let _seat = seat;
            here.converse(stream);
        };
        if let Err(error) = spawn("admin-request", one) {
            tracing::warn!(%error, "no thread for a request on the admin edge");
        }
    }
}

impl Desk {
    fn way(&self, stream: &Stream) -> &Way {
        match stream {
            Stream::Unix(_) => &self.socket,
            Stream::Tcp(_) => &self.port,
        }
    }

    fn converse(&self, mut stream: Stream) {
        let answer = stream.read().map_or_else(|refused| refused, |asked| self.reply(&asked));
        self.tell(&mut stream, &answer);
        stream.close(LINGER);
    }

    /// Counts the answer, then gives it.
    fn tell(&self, stream: &mut Stream, answer: &Answer) {
        self.way(stream).answers[answer.status as usize].fetch_add(1, Ordering::Relaxed);
        stream.answer(answer);
    }

    /// Way, status and number of the answers so far.
    fn answers(&self) -> Vec<(&'static str, &'static str, u64)> {
        let each = [&self.socket, &self.port].into_iter().flat_map(|way| {
            let counts = Status::ALL.iter().zip(&way.answers);
            counts.map(|(status, count)| (way.name, status.code(), count.load(Ordering::Relaxed)))
        });
        each.collect()
    }

    fn reply(&self, asked: &Asked) -> Answer {
        match (&*asked.method, &*asked.path) {
            ("GET", "/metrics") => self.metrics(asked),
            ("GET", "/v1/top") => self.top(asked),
            ("GET", "/v1/why") => self.why(asked),
            #[cfg(feature = "stall")]
            ("POST", "/stall") => stall(asked),
            (_, "/metrics" | "/v1/top" | "/v1/why") => Answer::refused(Status::MethodNotAllowed, "use GET"),
            _ => Answer::refused(Status::NotFound, "there are /metrics, /v1/top and /v1/why"),
        }
    }

    /// Shows the totals, with what every shard has recorded up to now, and the shards that did not answer in time.
    fn collect<T>(&self, then: impl FnOnce(&Totals, &[usize]) -> T) -> T {
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        totals.look();
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
        then(&totals, &silent)
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
        _ => Answer::refused(Status::BadRequest, "give stage and ms"),
    }
}
