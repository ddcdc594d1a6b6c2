//! How an operator stops the server, and what a stop is.
//!
//! ```text
//!   SIGTERM, SIGINT ─► Drain all ─► all Drained ─► Stop all ─► all Stopped ─► Release all ─► exit 0
//!                      goaway       or time is up  commits,    clean mark
//!   a second signal ─► exit 1 at once: what was acknowledged is on disk either way
//! ```
//! Shards drain together and stop together: until the last one is drained, any of them may still owe a peer an answer.

use crate::disk::words_of;
use crate::reactor::control::{Control, Peer, Report};
use std::time::{Duration, Instant};

/// Signals that ask the server to stop.
const SIGNALS: [i32; 2] = [libc::SIGTERM, libc::SIGINT];

/// Keeps the stop signals for [`forward_signals`], in this thread and all it starts, and ignores SIGPIPE.
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

/// Reports each stop signal, from a thread of its own. Call [`hold_signals`] first, before any thread is started.
pub fn forward_signals(reports: flume::Sender<Report>) {
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
            if failed == 0 && reports.send(Report::Signal(signal)).is_err() {
                return;
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("signals".into()).spawn(wait) {
        tracing::error!(%error, "no thread for signals: SIGTERM and SIGINT will not stop the server");
    }
}

/// Stops all shards. Returns whether every log was closed in time.
pub fn stop(peers: &[Peer], reports: &flume::Receiver<Report>, timeout: Duration) -> Result<(), String> {
    let deadline = Instant::now() + timeout;
    order(peers, || Control::Drain);
    gather(reports, peers.len(), deadline, |report| matches!(report, Report::Drained { .. }))?;
    order(peers, || Control::Stop);
    // The last checkpoint of a busy log may take longer than the farewell: give it its own time.
    let deadline = deadline.max(Instant::now() + timeout);
    gather(reports, peers.len(), deadline, |report| matches!(report, Report::Stopped { .. }))?;
    order(peers, || Control::Release);
    Ok(())
}

fn order(peers: &[Peer], control: impl Fn() -> Control) {
    for peer in peers {
        // A shard that takes no orders any more has ended already.
        let _ = peer.control.send(control());
        peer.waker.wake();
    }
}

fn gather(
    reports: &flume::Receiver<Report>,
    shards: usize,
    deadline: Instant,
    wanted: impl Fn(&Report) -> bool,
) -> Result<(), String> {
    let mut seen = 0;
    while seen < shards {
        match reports.recv_deadline(deadline) {
            Ok(report) if wanted(&report) => seen += 1,
            Ok(Report::Signal(_)) => return Err("a second signal: stopping at once".into()),
            Ok(Report::Poisoned { shard, fault }) => return Err(format!("shard {}: {}", shard.0, words_of(fault))),
            Ok(Report::Broken { shard, why }) => return Err(format!("shard {}: {why}", shard.0)),
            Ok(_) => {}
            Err(_) => return Err("the stop took longer than stop_timeout_ms".into()),
        }
    }
    Ok(())
}
