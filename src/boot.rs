//! From a configuration to a serving process, and back.
//!
//! ```text
//!   refuse early     limits of the process · memory plan · data folder and its lock · port     exit status 2, one line
//!   recover          folder ─► one log per shard, with a verdict for each segment
//!   start            background thread; one pinned thread per shard, each opens its own ring and reports
//!   introduce        every shard learns how to reach the others, gets its listening socket, and accepts
//!   ready            what was opened · the memory plan · a line to paste · `ready http://ADDR`
//!   wait             a signal, a poisoned log, a broken ring
//!   stop             see `shutdown`
//! ```

use crate::config::{Config, Origin, Switch};
use crate::disk::background::{BackgroundThread, Desk};
use crate::disk::executor::Executor;
use crate::disk::folder::DataFolder;
use crate::disk::keys;
use crate::disk::words_of;
use crate::net::{NetConfig, SendLimits};
use crate::plan::{self, Parts, Plan};
use crate::reactor::clock::Clock;
use crate::reactor::control::{CONTROL_MESSAGES_MAX, Control, Peer, Report};
use crate::reactor::{Ended, Frames, Reactor, ReactorConfig, close_table, random_u64};
use crate::ring::{Ring, RingConfig, Waker};
use crate::shutdown;
use crate::wire::token::{Key, Tokens};
use shards::ids::ShardId;
use shards::limits::{POSITION_REPLY_BYTES_MAX, REPLY_BYTES_MAX};
use shards::{Shard, ShardConfig, mailbox};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use storage::ids::HashKey;
use storage::log::{Log, LogConfig, RecoveredLog};
use storage::recovery::{self, RecoverError};

mod listener;
pub(crate) mod process;

/// The request or the machine is wrong: one line on stderr.
const STATUS_REFUSED: u8 = 2;
/// The server failed while it ran.
const STATUS_FAILED: u8 = 1;

/// Serves until it is told to stop.
pub fn serve(config: Config) -> ExitCode {
    process::log_to_stderr(&config.log);
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { status, line }) => {
            eprintln!("tidegate: {line}");
            ExitCode::from(status)
        }
    }
}

struct Failure {
    status: u8,
    line: String,
}

fn refused(why: impl std::fmt::Display) -> Failure {
    Failure { status: STATUS_REFUSED, line: why.to_string() }
}

fn failed(why: impl std::fmt::Display) -> Failure {
    Failure { status: STATUS_FAILED, line: why.to_string() }
}

fn run(config: &Config) -> Result<(), Failure> {
    let shards = config.shard_count();
    let connections = connections_per_shard(config, shards)?;
    let plan = memory_plan(config);
    plan.check().map_err(refused)?;
    config.log_config().check().map_err(refused)?;

    // Before anything else uses io_uring: this is where it is said in words that help.
    Ring::open(&RingConfig::SMALLEST, Waker::new().map_err(refused)?).map_err(refused)?;

    shutdown::hold_signals();
    let folder = Arc::new(DataFolder::open(&config.data).map_err(refused)?);
    let (address, listeners) = listener::bind(config.listen, shards).map_err(refused)?;
    let logs = recover(&folder, shards)?;
    let keys = keys::load(folder.path()).map_err(|error| refused(format!("keys of resume tokens: {error}")))?;
    let keys = keys.into_iter().map(|key| Key { number: key.number, secret: key.secret }).collect();
    let tokens = Tokens::new(keys, config.resume_token_life_ms);
    let background = BackgroundThread::start(Arc::clone(&folder)).map_err(refused)?;

    let (reports_in, reports) = flume::unbounded(); // a handful of messages per shard in its whole life
    let mut threads = Vec::new();
    let clock = Clock::start();
    let cores = process::cores();
    let spin_us_max = if usize::from(shards) <= cores.len() { SPIN_US_MAX } else { 0 };
    for (number, (log, mail)) in logs.into_iter().zip(mailbox::mesh(shards, &config.limits())).enumerate() {
        let shard = ShardId(number as u16);
        let waker = Waker::new().map_err(refused)?;
        let bell = waker.clone();
        let seat = Seat {
            config: reactor_config(config, shard, connections, spin_us_max, tokens.clone()),
            shard: ShardConfig { shard, shards, limits: config.limits(), seed: random_u64() },
            log: config.log_config(),
            recovered: log,
            mail,
            folder: Arc::clone(&folder),
            desk: background.desk(move || bell.wake()),
            clock,
            waker,
            reports: reports_in.clone(),
            core: cores.get(number % cores.len().max(1)).copied(),
        };
        threads.push(seat.start().map_err(refused)?);
    }

    let peers = introduce(shards, listeners, &reports)?;
    announce(config, address, shards, &folder, &plan);
    shutdown::forward_signals(reports_in);
    let ended = wait(&reports, &peers, config);
    if ended.is_ok() {
        for thread in threads {
            let _ = thread.join();
        }
        background.stop();
    } else {
        // Threads that cannot be trusted to end must not keep a broken process alive: its end releases everything.
        std::mem::forget(background);
    }
    ended
}

/// Longest spin of a shard before it parks, where it has a core of its own.
const SPIN_US_MAX: u64 = 50;
/// Workers of io-wq for each ring: syncs run there, two groups are in flight at most.
const IO_WORKERS: u32 = 2;
/// Descriptors of a shard beside its sockets: ring, bell, listener, open files of the log.
const SHARD_DESCRIPTORS: u64 = 16 + crate::disk::executor::OPEN_FILES_MAX as u64;
/// Descriptors of the process: standard streams, folder, lock, background executor with its rings and files.
const PROCESS_DESCRIPTORS: u64 = 96;

/// Connections each shard may hold: what is configured, or what the limit of open files leaves of a default.
fn connections_per_shard(config: &Config, shards: u16) -> Result<usize, Failure> {
    let open_files = process::raise_open_files();
    let needed = PROCESS_DESCRIPTORS + u64::from(shards) * SHARD_DESCRIPTORS;
    if open_files < needed {
        return Err(refused(format!(
            "{shards} shards need {needed} open files and the limit (nofile) is {open_files}: raise `ulimit -n` or use fewer --shards"
        )));
    }
    let wanted = u64::from(config.connections_per_shard_max);
    // A ring's table of sockets may be as long as the limit of open files, whatever else is open.
    let possible = open_files.saturating_sub(NetConfig::SPARE_SLOTS as u64);
    if wanted <= possible {
        return Ok(wanted as usize);
    }
    let by_default = matches!(config.origin("connections_per_shard_max"), None | Some(Origin::Default));
    if !by_default || possible == 0 {
        return Err(refused(format!(
            "connections_per_shard_max is {wanted} and the limit of open files (nofile) allows {possible}: raise `ulimit -n` to {} or lower it",
            wanted + NetConfig::SPARE_SLOTS as u64
        )));
    }
    tracing::warn!(connections_per_shard_max = possible, "lowered to what `ulimit -n` allows");
    Ok(possible as usize)
}

const _: () = assert!(
    2 * RingConfig::RECV_BUFFERS as u64 * RingConfig::RECV_BUFFER_BYTES as u64 <= crate::config::HELD_BYTES_MIN,
    "reading stops when what waits and what is in the receive buffers reach the bound"
);

/// What a server with this configuration may hold, as it is checked before it starts.
pub fn memory_plan(config: &Config) -> Plan {
    let shard =
        reactor_config(config, ShardId(0), config.connections_per_shard_max as usize, 0, Tokens::new(Vec::new(), 0));
    let parts = Parts {
        ring_bytes: shard.ring.memory_bytes() as u64,
        frame_cache_bytes: Frames::memory_bytes_max() as u64,
        page_bytes: shard.limits.pages_bytes_max() as u64,
        echo_bytes: echo_bytes(config) as u64,
    };
    Plan::of(config, &parts, plan::memory_bytes())
}

fn echo_bytes(config: &Config) -> usize {
    if config.echo { crate::reactor::ECHO_ASSEMBLY_BYTES_MAX } else { 0 }
}

fn reactor_config(
    config: &Config,
    shard: ShardId,
    connections: usize,
    spin_us_max: u64,
    tokens: Tokens,
) -> ReactorConfig {
    let limits = config.limits();
    let us = |ms: u64| ms.saturating_mul(1000);
    let echo_bytes = echo_bytes(config);
    let net = NetConfig {
        shard,
        connections_max: connections,
        assembly_bytes_max: config.assembly_bytes_max as usize + echo_bytes,
        held_bytes_max: config.held_bytes_max as usize,
        sends: SendLimits {
            connection_send_bytes_max: limits.connection_send_bytes_max,
            reply_reserve_bytes: limits.client_commands_in_flight_max as usize * REPLY_BYTES_MAX
                + POSITION_REPLY_BYTES_MAX,
            delivery_bytes_max: limits.event_frame_bytes_max(),
            shard_send_bytes_max: config.shard_send_bytes_max as usize + echo_bytes,
        },
        held_timeout_us: us(config.held_timeout_ms),
        handshake_timeout_us: us(config.handshake_timeout_ms),
        ping_interval_us: us(config.ping_interval_ms),
        idle_timeout_us: us(config.idle_timeout_ms),
        closes: close_table(),
    };
    ReactorConfig {
        shard,
        ring: RingConfig {
            entries: RingConfig::ENTRIES,
            direct_slots: net.slots() as u32,
            recv_buffers: RingConfig::RECV_BUFFERS,
            recv_buffer_bytes: RingConfig::RECV_BUFFER_BYTES,
            io_workers: IO_WORKERS,
        },
        net,
        limits,
        tokens,
        echo_open: config.echo,
        spin_us_max,
        drain_us_max: us(config.stop_timeout_ms) / 2,
    }
}

/// Makes logs that go on of whatever the last process left.
fn recover(folder: &DataFolder, shards: u16) -> Result<Vec<RecoveredLog>, Failure> {
    let mut view = folder;
    let fresh_key = HashKey(random_u64(), random_u64());
    let recovered = recovery::recover(&mut view, shards, fresh_key).map_err(|why| {
        // The report has a line for each file; the refusal itself stays one line.
        let why = match why {
            RecoverError::Disk { file: Some(file), fault } => format!("{}: {}", file.file_name(), words_of(fault)),
            RecoverError::Disk { file: None, fault } => format!("cannot be listed: {}", words_of(fault)),
            why => why.to_string(),
        };
        let mut lines = why.lines();
        let first = lines.next().unwrap_or_default().to_owned();
        lines.for_each(|line| eprintln!("{line}"));
        refused(format!("data folder {}: {first}", folder.path().display()))
    })?;
    if recovered.report.torn() > 0 {
        tracing::info!(torn = recovered.report.torn(), "tails that a crash left unfinished were cut");
    }
    tracing::debug!(report = %recovered.report, "recovered");
    Ok(recovered.logs)
}

/// All that a shard's thread takes with it.
struct Seat {
    config: ReactorConfig,
    shard: ShardConfig,
    log: LogConfig,
    recovered: RecoveredLog,
    mail: mailbox::Mailboxes,
    folder: Arc<DataFolder>,
    desk: Desk,
    clock: Clock,
    waker: Waker,
    reports: flume::Sender<Report>,
    core: Option<usize>,
}

impl Seat {
    fn start(self) -> std::io::Result<JoinHandle<()>> {
        let name = format!("shard-{}", self.shard.shard.0);
        std::thread::Builder::new().name(name).spawn(move || self.sit())
    }

    fn sit(self) {
        let Seat { config, shard, log, recovered, mail, folder, desk, clock, waker, reports, core } = self;
        let own = shard.shard;
        if let Some(core) = core {
            process::pin_to(core);
        }
        let (control_in, control) = flume::bounded(CONTROL_MESSAGES_MAX);
        let core = Shard::new(shard, Log::new(log, recovered), mail);
        let disk = Executor::new(folder, desk);
        let report = |report| {
            // Boot waits for reports until the process ends.
            let _ = reports.send(report);
        };
        let mut reactor = match Reactor::open(config, core, disk, clock, waker, control, reports.clone()) {
            Ok(reactor) => reactor,
            Err(why) => return report(Report::Refused { why: why.to_string() }),
        };
        let (peer, direct_slots) = (reactor.address(control_in), reactor.direct_slots());
        report(Report::Ready { shard: own, peer, direct_slots });
        match reactor.run() {
            Ok(()) => {}
            Err(Ended::Poisoned(fault)) => report(Report::Poisoned { shard: own, fault }),
            Err(Ended::Broken(error)) => report(Report::Broken { shard: own, why: error.to_string() }),
        }
    }
}

/// Waits until every shard is there, then lets them know each other and accept.
fn introduce(shards: u16, listeners: Vec<OwnedFd>, reports: &flume::Receiver<Report>) -> Result<Arc<[Peer]>, Failure> {
    let mut seats: Vec<Option<Peer>> = vec![None; usize::from(shards)];
    while seats.iter().any(Option::is_none) {
        match reports.recv() {
            Ok(Report::Ready { shard, peer, direct_slots }) => {
                tracing::debug!(shard = shard.0, direct_slots, "ring open");
                seats[usize::from(shard.0)] = Some(peer);
            }
            Ok(Report::Refused { why }) => return Err(refused(why)),
            Ok(other) => return Err(failed(format!("a shard ended while starting: {other:?}"))),
            Err(_) => return Err(failed("a shard's thread died while starting")),
        }
    }
    let peers: Arc<[Peer]> = seats.into_iter().flatten().collect();
    for (peer, listener) in peers.iter().zip(listeners) {
        let serve = Control::Serve { peers: Arc::clone(&peers), listener };
        peer.control.send(serve).map_err(|_| failed("a shard's thread died while starting"))?;
        peer.waker.wake();
    }
    Ok(peers)
}

/// Tells whoever started the server what it is and how to talk to it. The last line is for programs.
fn announce(config: &Config, address: SocketAddr, shards: u16, folder: &DataFolder, plan: &Plan) {
    let program = std::env::current_exe().map_or_else(|_| "tidegate".into(), |path| path.display().to_string());
    let sync = if config.sync == Switch::On { "on" } else { "off: acknowledged means written, not synced" };
    let mut out = std::io::stdout().lock();
    // Nobody may be reading; the server serves all the same.
    let _ = writeln!(
        out,
        "tidegate {}: {shards} shards, data {}, sync {sync}{}",
        env!("CARGO_PKG_VERSION"),
        folder.path().display(),
        if config.echo { ", echo door open" } else { "" },
    );
    let _ = writeln!(out, "{plan}");
    let _ = writeln!(out, "listening on loopback only: without keys every client may do everything");
    let _ = writeln!(
        out,
        "try: {program} pub --url ws://{address} --session demo --topic chat.message '{{\"text\":\"hello\"}}'"
    );
    let _ = writeln!(out, "ready http://{address}");
    let _ = out.flush();
}

fn wait(reports: &flume::Receiver<Report>, peers: &[Peer], config: &Config) -> Result<(), Failure> {
    loop {
        match reports.recv() {
            Ok(Report::Signal(signal)) => {
                tracing::info!(signal, "stopping");
                let timeout = Duration::from_millis(config.stop_timeout_ms);
                return shutdown::stop(peers, reports, timeout).map_err(failed);
            }
            Ok(Report::Poisoned { shard, fault }) => {
                return Err(failed(format!(
                    "the log of shard {} is poisoned ({}): what was acknowledged is on disk; check the disk, then start again",
                    shard.0,
                    words_of(fault)
                )));
            }
            Ok(Report::Broken { shard, why }) => {
                return Err(failed(format!("the ring of shard {} broke: {why}; start again", shard.0)));
            }
            Ok(other) => tracing::debug!(?other, "late report"),
            Err(_) => return Err(failed("every shard's thread died")),
        }
    }
}
