//! What a service manager hears of the process: lines over a datagram socket that it names in `NOTIFY_SOCKET`.
//!
//! ```text
//!   READY=1      accepts
//!   STOPPING=1   drains, then closes its logs   WATCHDOG=1   every shard has taken a turn since the last one
//! ```
//! Nothing is said of SIGHUP: it is no step of the service's life, and a manager that waits for its end would only be slower.
//! The watchdog asks the shards, so that one that hangs is restarted: a thread that only says that it lives itself proves
//! nothing. A process that nobody listens to says nothing.

use crate::reactor::control::{Control, Peer};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where to say it. Cheap to copy; a message is sent from whatever thread has something to say.
#[derive(Clone, Debug, Default)]
pub struct Notify(Option<Arc<(UnixDatagram, SocketAddr)>>);

impl Notify {
    /// Speaks to whoever started this process, if it wants to hear.
    pub fn from_environment() -> Notify {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Notify::default() };
        Notify::to(name.as_bytes()).unwrap_or_else(|error| {
            tracing::warn!(%error, ?name, "NOTIFY_SOCKET cannot be reached: the service manager hears nothing");
            Notify::default()
        })
    }

    fn to(name: &[u8]) -> std::io::Result<Notify> {
        let address = match name.split_first() {
            Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must not hold a shard's start or end up.
        socket.set_nonblocking(true)?;
        Ok(Notify(Some(Arc::new((socket, address)))))
    }

    fn say(&self, lines: &str) {
        let Some(to) = &self.0 else { return };
        if let Err(error) = to.0.send_to_addr(lines.as_bytes(), &to.1) {
            tracing::debug!(%error, lines, "the service manager did not hear it");
        }
    }

    /// Serves. The process id is said as well: after a takeover it is another one.
    pub fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nMAINPID={}\nSTATUS={status}", std::process::id()));
    }

    /// Begins to end.
    pub fn stopping(&self, status: &str) {
        self.say(&format!("STOPPING=1\nSTATUS={status}"));
    }

    /// Starts the watchdog, where one is wanted.
    pub(super) fn watch(&self, peers: &Arc<[Peer]>) {
        let variable = |name: &str| std::env::var(name).ok();
        let within = watched(variable("WATCHDOG_PID").as_deref(), variable("WATCHDOG_USEC").as_deref());
        let (Some(within), Some(_)) = (within, &self.0) else { return };
        let (notify, peers) = (self.clone(), Arc::clone(peers));
        let watch = move || {
            // Two rounds in each period: one that is late does not end the process.
            loop {
                match ask(&peers, within / 2) {
                    Round::Alive => notify.say("WATCHDOG=1"),
                    Round::Silent => {
                        tracing::error!("a shard takes no turns, and the service manager hears nothing of it")
                    }
                    Round::Gone => return,
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("watchdog".into()).spawn(watch) {
            tracing::error!(%error, "no thread for the watchdog: the service manager will take the process for dead");
        }
    }
}

/// The period in which a sign of life is wanted of this process.
fn watched(pid: Option<&str>, us: Option<&str>) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(std::process::id())) {
        return None;
    }
    let us: u64 = us?.parse().ok()?;
    (us > 0).then(|| Duration::from_micros(us))
}

/// What the shards have answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Round {
    /// All of them.
    Alive,
    /// Not all, though the round took twice its time.
    Silent,
    /// The process ends.
    Gone,
}

/// Asks every shard once, and takes `round` for it where all answer.
fn ask(peers: &[Peer], round: Duration) -> Round {
    let until = Instant::now() + round;
    let (answer, answers) = flume::bounded(peers.len());
    for peer in peers {
        match peer.control.try_send(Control::Ask { answer: answer.clone() }) {
            Ok(()) => peer.waker.wake(),
            Err(flume::TrySendError::Disconnected(_)) => return Round::Gone,
            // So many orders wait for it that it cannot even be asked.
            Err(flume::TrySendError::Full(_)) => {
                std::thread::sleep(round);
                return Round::Silent;
            }
        }
    }
    drop(answer);
    for _ in peers {
        match answers.recv_deadline(until + round) {
            Ok(()) => {}
            Err(flume::RecvTimeoutError::Timeout) => return Round::Silent,
            Err(flume::RecvTimeoutError::Disconnected) => return Round::Gone,
        }
    }
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
    Round::Alive
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Waker;

    fn heard(listener: &UnixDatagram) -> String {
        let mut bytes = [0; 512];
        listener.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let length = listener.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[test]
    fn a_manager_hears_it_by_path_and_by_abstract_name() {
        let path = std::env::temp_dir().join(format!("tidegate-notify-{}", std::process::id()));
        let name = format!("tidegate-notify-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path).unwrap();
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (listener, name) in [(by_path, path.to_str().unwrap().to_owned()), (by_name, format!("@{name}"))] {
            let notify = Notify::to(name.as_bytes()).unwrap();
            notify.ready("here");
            assert_eq!(heard(&listener), format!("READY=1\nMAINPID={}\nSTATUS=here", std::process::id()));
            notify.stopping("ends");
            assert_eq!(heard(&listener), "STOPPING=1\nSTATUS=ends");
            drop(listener);
            notify.ready("nobody hears it, and nothing breaks");
        }
        std::fs::remove_file(path).unwrap();
        Notify::default().ready("nobody");
    }

    #[test]
    fn the_period_is_this_process_s_own() {
        let own = std::process::id().to_string();
        assert_eq!(watched(Some(&own), Some("2000000")), Some(Duration::from_secs(2)));
        assert_eq!(watched(None, Some("1")), Some(Duration::from_micros(1)));
        assert_eq!(watched(Some("1"), Some("2000000")), None);
        assert_eq!(watched(None, None), None);
        assert_eq!(watched(None, Some("0")), None);
    }

    #[test]
    fn one_shard_that_hangs_is_enough() {
        let peer = |answers: bool| {
            let (control, orders) = flume::unbounded::<Control>();
            let thread = std::thread::spawn(move || {
                let mut kept = Vec::new();
                for order in orders {
                    match order {
                        // Who asked may be gone by now.
                        Control::Ask { answer } if answers => answer.send(()).unwrap_or_default(),
                        order => kept.push(order),
                    }
                }
            });
            (Peer { ring: -1, waker: Waker::new().unwrap(), control }, thread)
        };
        let ((good, one), (hung, two)) = (peer(true), peer(false));
        let round = Duration::from_millis(20);
        assert_eq!(ask(std::slice::from_ref(&good), Duration::from_secs(5)), Round::Alive);
        assert_eq!(ask(&[good.clone(), hung.clone()], round), Round::Silent);
        let ended = Peer { control: flume::bounded(1).0, ..good.clone() };
        assert_eq!(ask(&[good.clone(), ended], round), Round::Gone);
        drop((good, hung));
        one.join().unwrap();
        two.join().unwrap();
    }
}
