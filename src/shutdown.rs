//! How a server ends: because an operator says so, or because another process takes over.
//!
//! ```text
//!   SIGTERM, SIGINT ─┐
//!   taker is ready ──┴► Drain all ─► all Drained ─► Stop all ─► all Stopped ─► Release all ─► exit 0
//!                       goaway in    or time is up   commits,    clean mark
//!                       waves    └► taker gone: Stay all, and serve on
//!   a second signal ─► Cut all: the rest of the clients at once, then Stop as above; exit 1
//!   a third          ─► exit 1 at once: what was acknowledged is on disk either way
//! ```
//! SIGHUP has nothing to do with the end: see `boot::keeper`.
//! Shards drain together and stop together: until the last one is drained, any of them may still owe a peer an answer.

use crate::disk::words_of;
use crate::reactor::control::{Control, Errand, Peer, Report};
use std::time::{Duration, Instant};

/// Signals that ask the server to stop, and last the one that asks it to read its files again.
const SIGNALS: [i32; 3] = [libc::SIGTERM, libc::SIGINT, RELOAD];
const RELOAD: i32 = libc::SIGHUP;

/// Keeps these signals for [`forward_signals`], in this thread and all it starts, and ignores SIGPIPE.
pub fn hold_signals() {
    // SAFETY: a zeroed set is valid memory for sigemptyset, which initialises it; the rest passes plain values.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        for signal in SIGNALS {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
}

/// Reports each stop signal, and tells the keeper of the other, from a thread of its own. Call [`hold_signals`] first, before any thread
/// is started.
pub fn forward_signals(reports: flume::Sender<Report>, keeper: flume::Sender<Errand>) {
    let wait = move || {
        loop {
            let mut signal = 0;
            // SAFETY: as in `hold_signals`; `signal` is writable.
            let failed = unsafe {
                let mut set = std::mem::zeroed::<libc::sigset_t>();
                libc::sigemptyset(&raw mut set);
                for signal in SIGNALS {
                    libc::sigaddset(&raw mut set, signal);
                }
                libc::sigwait(&raw const set, &raw mut signal)
            };
            if failed == 0 && signal == RELOAD {
                // What waits before it is written in no time.
                let _ = keeper.send(Errand::Reload);
                continue;
            }
            if failed == 0 && reports.send(Report::Signal(signal)).is_err() {
                return;
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("signals".into()).spawn(wait) {
        tracing::error!(%error, "no thread for signals: SIGTERM and SIGINT will not stop the server");
    }
}

/// Why the server ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// A signal asks for it.
    Signal,
    /// Another process is ready to take over.
    Takeover,
}

/// How long the parts of an end may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Until no client is left.
    pub drain: Duration,
    /// Until every log is closed.
    pub stop: Duration,
    /// The listening sockets are somebody else's and outlive the process: who comes while it ends waits for the next one.
    pub sockets_stay: bool,
}

impl Bounds {
    /// From the first order to the last answer, at most.
    pub fn sum(&self) -> Duration {
        self.drain + DRAIN_SLACK + self.stop
    }
}

/// What an end has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Every log is closed.
    Ended {
        /// A second signal came: the rest of the clients was not told.
        hurried: bool,
        /// The process that was to take over is gone.
        taker_gone: bool,
    },
    /// The process that was to take over went away in time: all shards serve as before.
    Stays,
}

/// Shards report the end of a drain by themselves; beyond this one of them is stuck.
const DRAIN_SLACK: Duration = Duration::from_secs(2);
/// A shard takes an order in its next turn.
const ORDER_WITHIN: Duration = Duration::from_secs(5);

/// All shards of the process on their way to their end.
struct Ending<'a> {
    peers: &'a [Peer],
    reports: &'a flume::Receiver<Report>,
    signals: u32,
    taker_gone: bool,
}

/// Stops all shards, or finds that the server stays.
///
/// # Errors
/// Not every log was closed: one line that says why.
pub fn stop(
    peers: &[Peer],
    reports: &flume::Receiver<Report>,
    bounds: Bounds,
    cause: Cause,
) -> Result<Outcome, String> {
    let signals = u32::from(cause == Cause::Signal);
    let mut ending = Ending { peers, reports, signals, taker_gone: false };
    ending.order(|| Control::Drain { taken_over: cause == Cause::Takeover || bounds.sockets_stay });
    if ending.drained(bounds.drain)? == Outcome::Stays {
        return Ok(Outcome::Stays);
    }
    tracing::info!("no client is left: closing the logs");
    ending.order(|| Control::Stop);
    ending.stopped(bounds.stop)?;
    tracing::info!("every log is closed");
    ending.order(|| Control::Release);
    Ok(Outcome::Ended { hurried: ending.signals > 1, taker_gone: ending.taker_gone })
}

impl Ending<'_> {
    fn order(&self, control: impl Fn() -> Control) {
        for peer in self.peers {
            // A shard that takes no orders any more has ended already.
            let _ = peer.control.send(control());
            peer.waker.wake();
        }
    }

    /// Waits until every shard is drained. A taker that goes away before calls it off, unless a signal wants the end anyway.
    fn drained(&mut self, bound: Duration) -> Result<Outcome, String> {
        let deadline = Instant::now() + bound + DRAIN_SLACK;
        let mut left = self.peers.len();
        while left > 0 {
            match self.next(deadline, "clients were not sent away within drain_ms_max")? {
                Report::Drained { .. } => left -= 1,
                Report::Signal(signal) if self.signals == 2 => {
                    tracing::info!(signal, "a second signal: closing the connections that are left");
                    self.order(|| Control::Cut);
                }
                Report::TakerGone { pid } if self.signals == 0 => {
                    tracing::warn!(pid, "the process that was to take over is gone: serving on");
                    return self.stay();
                }
                _ => {}
            }
        }
        Ok(Outcome::Ended { hurried: false, taker_gone: false })
    }

    fn stay(&mut self) -> Result<Outcome, String> {
        self.order(|| Control::Stay);
        let deadline = Instant::now() + ORDER_WITHIN;
        let mut left = self.peers.len();
        while left > 0 {
            // A shard that was drained before it was told to stay has said so before.
            if let Report::Stays { .. } = self.next(deadline, "a shard does not serve again")? {
                left -= 1;
            }
        }
        Ok(Outcome::Stays)
    }

    fn stopped(&mut self, bound: Duration) -> Result<(), String> {
        let deadline = Instant::now() + bound;
        let mut left = self.peers.len();
        while left > 0 {
            if let Report::Stopped { .. } = self.next(deadline, "the stop took longer than stop_timeout_ms")? {
                left -= 1;
            }
        }
        Ok(())
    }

    /// The next report that does not end it all.
    fn next(&mut self, deadline: Instant, late: &str) -> Result<Report, String> {
        match self.reports.recv_deadline(deadline) {
            Ok(Report::Signal(_)) if self.signals >= 2 => Err("a third signal: ending at once".into()),
            Ok(Report::Poisoned { shard, fault }) => Err(format!("shard {}: {}", shard.0, words_of(fault))),
            Ok(Report::Broken { shard, why }) => Err(format!("shard {}: {why}", shard.0)),
            Ok(report) => {
                self.signals += u32::from(matches!(report, Report::Signal(_)));
                self.taker_gone |= matches!(report, Report::TakerGone { .. });
                Ok(report)
            }
            Err(_) => Err(late.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Waker;
    use shards::ids::ShardId;

    const BOUNDS: Bounds = Bounds { drain: Duration::from_secs(5), stop: Duration::from_secs(5), sockets_stay: false };

    /// Two shards that do as they are told, and whatever else is reported once they drain.
    fn run(cause: Cause, meanwhile: Vec<Report>) -> (Result<Outcome, String>, Vec<String>) {
        run_within(BOUNDS, cause, meanwhile)
    }

    fn run_within(bounds: Bounds, cause: Cause, meanwhile: Vec<Report>) -> (Result<Outcome, String>, Vec<String>) {
        let (reports_in, reports) = flume::unbounded();
        let (seen_in, seen) = flume::unbounded();
        let peers: Vec<Peer> = (0..2u16)
            .map(|number| {
                let (control, orders) = flume::unbounded::<Control>();
                let (reports, seen, shard) = (reports_in.clone(), seen_in.clone(), ShardId(number));
                let has_clients = number == 1;
                std::thread::spawn(move || {
                    for order in orders {
                        let _ = seen.send(format!("{} {order:?}", shard.0));
                        let report = match order {
                            // Only the second shard has clients that stay until they are cut off.
                            Control::Drain { .. } if !has_clients => Report::Drained { shard },
                            Control::Cut if has_clients => Report::Drained { shard },
                            Control::Stay => Report::Stays { shard },
                            Control::Stop => Report::Stopped { shard },
                            Control::Release => return,
                            _ => continue,
                        };
                        let _ = reports.send(report);
                    }
                });
                Peer { ring: -1, waker: Waker::new().unwrap(), control }
            })
            .collect();
        for report in meanwhile {
            reports_in.send(report).unwrap();
        }
        let outcome = stop(&peers, &reports, bounds, cause);
        drop((peers, seen_in));
        (outcome, seen.iter().collect())
    }

    #[test]
    fn a_second_signal_cuts_off_and_still_closes_the_logs() {
        let (outcome, seen) = run(Cause::Signal, vec![Report::Signal(15)]);
        assert_eq!(outcome, Ok(Outcome::Ended { hurried: true, taker_gone: false }));
        assert!(seen.contains(&"1 Cut".into()) && seen.contains(&"1 Stop".into()), "{seen:?}");
        let (outcome, seen) = run(Cause::Signal, vec![Report::Signal(15), Report::Signal(2)]);
        assert!(outcome.unwrap_err().contains("third signal"));
        assert!(!seen.contains(&"0 Release".into()), "{seen:?}");
    }

    #[test]
    fn a_taker_that_goes_away_calls_it_off_unless_a_signal_wants_the_end() {
        let (outcome, seen) = run(Cause::Takeover, vec![Report::TakerGone { pid: 1 }]);
        assert_eq!(outcome, Ok(Outcome::Stays));
        assert!(seen.contains(&"0 Stay".into()) && !seen.contains(&"0 Stop".into()), "{seen:?}");
        let reports = vec![Report::Signal(15), Report::TakerGone { pid: 1 }, Report::Signal(15)];
        let (outcome, seen) = run(Cause::Takeover, reports);
        assert_eq!(outcome, Ok(Outcome::Ended { hurried: true, taker_gone: true }));
        assert!(seen.contains(&"1 Stop".into()), "{seen:?}");
    }

    #[test]
    fn sockets_that_stay_are_left_to_the_next_process() {
        let signals = || vec![Report::Signal(15)];
        for (bounds, wanted) in [(BOUNDS, "false"), (Bounds { sockets_stay: true, ..BOUNDS }, "true")] {
            let (_, seen) = run_within(bounds, Cause::Signal, signals());
            assert!(seen.contains(&format!("0 Drain {{ taken_over: {wanted} }}")), "{seen:?}");
        }
    }

    #[test]
    fn a_log_that_breaks_meanwhile_is_no_good_end() {
        let poisoned = Report::Poisoned { shard: ShardId(1), fault: storage::disk::DiskFault::Missing };
        let (outcome, _) = run(Cause::Takeover, vec![poisoned]);
        assert!(outcome.unwrap_err().contains("shard 1"));
    }
}
