//! A shard's thread: it makes what it can, says so, and serves when it is given a log.
//!
//! ```text
//!   start ─► pinned ─► Station::open ─► Ready ─► … waits … ─► Belongings ─► Reactor::run ─► end
//! ```

use super::process;
use crate::auth::Rules;
use crate::disk::background::Desk;
use crate::disk::executor::Executor;
use crate::disk::folder::DataFolder;
use crate::reactor::clock::Clock;
use crate::reactor::control::{CONTROL_MESSAGES_MAX, Errand, Report};
use crate::reactor::{Ended, ReactorConfig, Station};
use crate::ring::Waker;
use crate::wire;
use crate::wire::token::Tokens;
use rustls::ServerConfig;
use shards::ids::ShardId;
use shards::queues::Known;
use shards::{Shard, ShardConfig, mailbox};
use std::sync::Arc;
use std::thread::JoinHandle;
use storage::log::{Log, LogConfig, RecoveredLog};

/// All that a shard's thread takes with it.
pub(super) struct Seat {
    pub shard: ShardId,
    pub config: ReactorConfig,
    pub clock: Clock,
    pub waker: Waker,
    pub reports: flume::Sender<Report>,
    pub core: Option<usize>,
}

/// What it gets once the data folder is this process's own.
pub(super) struct Belongings {
    pub shard: ShardConfig,
    pub log: LogConfig,
    pub recovered: RecoveredLog,
    /// Every shard knows all queues before it serves anybody.
    pub queues: Arc<Known>,
    pub mail: mailbox::Mailboxes,
    pub folder: Arc<DataFolder>,
    pub desk: Desk,
    pub tokens: Tokens,
    pub rules: Arc<Rules>,
    pub tls: Option<Arc<ServerConfig>>,
    pub keeper: flume::Sender<Errand>,
}

/// A started thread, and where its belongings go. Without them it ends when this is dropped.
pub(super) struct Seated {
    pub thread: JoinHandle<()>,
    pub belongings: flume::Sender<Belongings>,
}

impl Seat {
    /// Starts the thread; it reports when it is ready.
    pub fn start(self) -> std::io::Result<Seated> {
        let (belongings, given) = flume::bounded(1);
        let name = format!("shard-{}", self.shard.0);
        let thread = std::thread::Builder::new().name(name).spawn(move || self.sit(&given))?;
        Ok(Seated { thread, belongings })
    }

    fn sit(self, given: &flume::Receiver<Belongings>) {
        let Seat { shard: own, config, clock, waker, reports, core } = self;
        if let Some(core) = core {
            process::pin_to(core);
        }
        let report = |report| {
            // Boot waits for reports until the process ends.
            let _ = reports.send(report);
        };
        let station = match Station::open(config, clock, waker) {
            Ok(station) => station,
            Err(why) => return report(Report::Refused { why: why.to_string() }),
        };
        let (control_in, control) = flume::bounded(CONTROL_MESSAGES_MAX);
        let (peer, direct_slots) = (station.address(control_in), station.direct_slots());
        report(Report::Ready { shard: own, peer, direct_slots });

        // Nothing comes where boot ends before: then there is nothing to serve.
        let Ok(Belongings { shard, log, recovered, queues, mail, folder, desk, tokens, rules, tls, keeper }) =
            given.recv()
        else {
            return;
        };
        let mut core = Shard::new(shard, Log::new(log, recovered), mail);
        core.know_queues(&queues);
        core.show_epochs_by(wire::lives::mask());
        let mut reactor =
            station.seat(core, tokens, (rules, tls, keeper), Executor::new(folder, desk), control, reports.clone());
        match reactor.run() {
            Ok(()) => {}
            Err(Ended::Poisoned(fault)) => report(Report::Poisoned { shard: own, fault }),
            Err(Ended::Broken(error)) => report(Report::Broken { shard: own, why: error.to_string() }),
        }
    }
}
