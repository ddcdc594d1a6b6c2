//! From a configuration to a serving process, and back.
//!
//! ```text
//!   refuse early     limits of the process · memory plan · data folder and its lock · port     exit status 2, one line
//!   seats            one pinned thread per shard, each opens its own ring and reports
//!   folder           a takeover waits for it here: everything above is done while the running server serves
//!   recover          folder ─► one log per shard, with a verdict for each segment
//!   introduce        every shard gets its log, learns how to reach the others, gets its listening sockets, and accepts
//!   ready            what was opened · the memory plan · a line to paste · `ready http://ADDR`
//!   wait             a signal, a process that takes over, a poisoned log, a broken ring
//!   stop             see `shutdown`
//! ```

use crate::config::{Config, Origin, Switch};
use crate::disk::background::BackgroundThread;
use crate::disk::folder::DataFolder;
use crate::disk::keys;
use crate::disk::lives;
use crate::disk::words_of;
use crate::net::{GateConfig, HANDSHAKE_BYTES_MAX, NetConfig, SendLimits};
use crate::observe;
use crate::plan::{self, Parts, Plan, Room};
use crate::reactor::clock::Clock;
use crate::reactor::control::{Control, ERRANDS_MAX, Peer, Report};
use crate::reactor::{DrainLimits, Frames, ReactorConfig, close_table, random_u64};
use crate::ring::{Ring, RingConfig, Waker};
use crate::shutdown::{self, Bounds, Cause, Outcome};
use crate::wire;
use crate::wire::token::{Key, Tokens};
use activation::Activated;
use admin::Admin;
use keeper::Keeper;
use notify::Notify;
pub use quotas::QUOTAS_FILE;
use quotas::QuotaKeeper;
pub use revocations::{revoke, too_many};
use seat::{Belongings, Seat};
use shards::ids::ShardId;
use shards::limits::{Limits, POSITION_REPLY_BYTES_MAX, REPLY_BYTES_MAX};
use shards::queues::{Known, declared};
use shards::{ShardConfig, mailbox};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use storage::ids::HashKey;
use storage::log::RecoveredLog;
use storage::recovery::{self, RecoverError};
use takeover::{Gate, Offer, Takeover};

pub mod activation;
pub(crate) mod admin;
mod certificates;
mod keeper;
mod listener;
pub mod needs;
pub mod notify;
mod place;
pub(crate) mod process;
mod quotas;
mod revocations;
mod seat;
mod takeover;

/// The request or the machine is wrong: one line on stderr.
const STATUS_REFUSED: u8 = 2;
/// The server failed while it ran.
const STATUS_FAILED: u8 = 1;

/// Serves until it is told to stop.
pub fn serve(config: Config) -> ExitCode {
    end_of(&config, Way::Fresh)
}

/// Serves from sockets that a service manager has made; `config` says to listen where they do.
pub fn serve_from(activated: Activated, config: Config) -> ExitCode {
    end_of(&config, Way::Activated(activated))
}

/// Takes the place of the server that runs on the same data folder, and serves until it is told to stop.
pub fn take_over(config: Config) -> ExitCode {
    end_of(&config, Way::Takeover)
}

/// How a process comes to its folder and its port.
#[derive(Debug)]
enum Way {
    Fresh,
    Activated(Activated),
    Takeover,
}

fn end_of(config: &Config, way: Way) -> ExitCode {
    process::log_to_stderr(&config.log, config.log_format);
    process::give_back_large_blocks();
    match run(config, way) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { status, line, .. }) => {
            eprintln!("tidegate: {line}");
            ExitCode::from(status)
        }
    }
}

struct Failure {
    status: u8,
    line: String,
    /// Every log is closed all the same.
    closed: bool,
}

fn refused(why: impl std::fmt::Display) -> Failure {
    Failure { status: STATUS_REFUSED, line: why.to_string(), closed: false }
}

fn failed(why: impl std::fmt::Display) -> Failure {
    Failure { status: STATUS_FAILED, line: why.to_string(), closed: false }
}

fn run(config: &Config, way: Way) -> Result<(), Failure> {
    let keeper = Keeper::new(config);
    let rules = keeper.rules().map_err(refused)?;
    let tls = keeper.tls().map_err(refused)?;
    let shards = config.shard_count();
    let connections = connections_per_shard(config, shards)?;
    let plan = memory_plan(config);
    plan.check().map_err(refused)?;
    config.log_config().check().map_err(refused)?;

    // Before anything else uses io_uring: this is where it is said in words that help.
    Ring::open(&RingConfig::SMALLEST, Waker::new().map_err(refused)?).map_err(refused)?;

    shutdown::hold_signals();
    let notify = Notify::from_environment();
    let sockets_stay = matches!(way, Way::Activated(_));
    let (start, address, mut listeners) = Start::begin(config, shards, way)?;
    let (reports_in, reports) = flume::unbounded(); // a handful of messages per shard in its whole life
    let mut seats = Vec::new();
    let clock = Clock::start();
    let cores = process::cores();
    let spin_us_max = if usize::from(shards) <= cores.len() { SPIN_US_MAX } else { 0 };
    for number in 0..shards {
        let shard = ShardId(number);
        let seat = Seat {
            shard,
            config: reactor_config(config, shard, connections, spin_us_max),
            clock,
            waker: Waker::new().map_err(refused)?,
            reports: reports_in.clone(),
            core: cores.get(usize::from(number) % cores.len().max(1)).copied(),
        };
        seats.push(seat.start().map_err(refused)?);
    }
    let mails = mailbox::mesh(shards, &config.limits());
    let peers = ready(shards, &reports)?;

    let folder = Arc::new(start.folder(config)?);
    listener::join(address, &mut listeners, shards).map_err(refused)?;
    let quota_keeper = QuotaKeeper::new(config);
    let quotas = quota_keeper.quotas().map_err(refused)?;
    let limits = || Limits { quotas: Arc::clone(&quotas), ..config.limits() };
    let lives = lives::begin(folder.path(), random_u64)
        .map_err(|why| refused(format!("data folder {}: {why}", folder.path().display())))?;
    wire::lives::begin(lives.mask);
    let (mut logs, queues) = recover(&folder, shards)?;
    logs.iter_mut().for_each(|log| log.catalog.begin_slices_at(lives.slices_from()));
    let keys = keys::load(folder.path()).map_err(|error| refused(format!("keys of resume tokens: {error}")))?;
    let keys: Vec<Key> = keys.into_iter().map(|key| Key { number: key.number, secret: key.secret }).collect();
    let (errand, errands) = flume::bounded(ERRANDS_MAX);
    let background = BackgroundThread::start(Arc::clone(&folder)).map_err(refused)?;
    for (number, (recovered, mail)) in logs.into_iter().zip(mails).enumerate() {
        let bell = peers[number].waker.clone();
        let belongings = Belongings {
            shard: ShardConfig { shard: ShardId(number as u16), shards, limits: limits(), seed: random_u64() },
            log: config.log_config(),
            recovered,
            queues: Arc::clone(&queues),
            mail,
            folder: Arc::clone(&folder),
            desk: background.desk(move || bell.wake()),
            tokens: Tokens::new(keys.clone(), config.resume_token_life_ms),
            rules: Arc::clone(&rules),
            tls: tls.clone(),
            keeper: errand.clone(),
        };
        seats[number].belongings.send(belongings).map_err(|_| failed("a shard's thread died while starting"))?;
    }

    let bounds = Bounds {
        drain: Duration::from_millis(config.drain_ms_max),
        stop: Duration::from_millis(config.stop_timeout_ms),
        sockets_stay,
    };
    let copies = listeners.iter().map(OwnedFd::try_clone).collect::<std::io::Result<_>>().map_err(refused)?;
    introduce(&peers, listeners)?;
    let gate = Gate::open(&folder, Offer { listeners: copies, address, within: bounds.sum() }, reports_in.clone());
    let admin = Admin::open(config, &folder, Arc::clone(&peers), plan.total_bytes());
    announce(config, address, shards, &folder, &plan);
    shutdown::forward_signals(reports_in, errand);
    let (set, sets) = flume::bounded(ERRANDS_MAX);
    keeper.watch(rules, Arc::clone(&peers), errands, set);
    quota_keeper.watch(quotas, Arc::clone(&peers), sets);
    notify.watch(&peers);
    let ended = serve_until_the_end(&reports, &peers, bounds, &gate, &notify);
    if matches!(ended, Ok(_) | Err(Failure { closed: true, .. })) {
        for seat in seats {
            let _ = seat.thread.join();
        }
        background.stop();
        gate.close();
        admin.close();
        // The last owner: the lock goes with it.
        drop(folder);
        gate.release();
    } else {
        // Threads that cannot be trusted to end must not keep a broken process alive: its end releases everything.
        std::mem::forget(background);
    }
    ended
}

/// Where the folder and the sockets come from.
enum Start {
    /// They were free.
    Fresh(DataFolder),
    /// A running server has them. It is asked for the folder when everything else is there.
    Taking(Box<Takeover>),
}

impl Start {
    fn begin(config: &Config, shards: u16, way: Way) -> Result<(Start, SocketAddr, Vec<OwnedFd>), Failure> {
        match way {
            Way::Fresh => {
                let folder = DataFolder::open(&config.data).map_err(refused)?;
                let (address, listeners) = listener::bind(config.listen, shards).map_err(refused)?;
                return Ok((Start::Fresh(folder), address, listeners));
            }
            Way::Activated(activated) => {
                let folder = DataFolder::open(&config.data).map_err(refused)?;
                let address = activated.address;
                return Ok((Start::Fresh(folder), address, activated.shared_by(shards).map_err(refused)?));
            }
            Way::Takeover => {}
        }
        let mut taking = Takeover::begin(&config.data).map_err(refused)?;
        let (address, listeners) = (taking.address, std::mem::take(&mut taking.listeners));
        let chosen = !matches!(config.origin("listen"), None | Some(Origin::Default));
        if chosen && config.listen != address {
            return Err(refused(format!(
                "the running server listens on {address}, not on {}: a takeover keeps the address; leave --listen out, or stop and start",
                config.listen
            )));
        }
        Ok((Start::Taking(Box::new(taking)), address, listeners))
    }

    /// The folder, once it is this process's own.
    fn folder(self, config: &Config) -> Result<DataFolder, Failure> {
        match self {
            Start::Fresh(folder) => Ok(folder),
            Start::Taking(taking) => {
                tracing::info!(
                    pid = taking.pid,
                    "all is ready but the data folder: the running server begins to drain"
                );
                taking.wait().map_err(refused)?;
                let folder = taking.open_folder(&config.data).map_err(refused)?;
                tracing::info!(pid = taking.pid, "the data folder is free");
                Ok(folder)
            }
        }
    }
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
    let room = room(config, shards, open_files);
    let (wanted, possible) = (room.wanted, room.possible());
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

/// A ring's table of sockets may be as long as the limit of open files, whatever else is open.
fn room(config: &Config, shards: u16, open_files: u64) -> Room {
    let (shards, wanted) = (u64::from(shards), u64::from(config.connections_per_shard_max));
    Room { shards, wanted, open_files, spare: NetConfig::SPARE_SLOTS as u64 }
}

const _: () = assert!(
    2 * RingConfig::RECV_BUFFERS as u64 * RingConfig::RECV_BUFFER_BYTES as u64 <= crate::config::HELD_BYTES_MIN,
    "reading stops when what waits and what is in the receive buffers reach the bound"
);

/// What a server with this configuration may hold, as it is checked before it starts.
pub fn memory_plan(config: &Config) -> Plan {
    let shard = reactor_config(config, ShardId(0), config.connections_per_shard_max as usize, 0);
    let parts = Parts {
        ring_bytes: shard.ring.memory_bytes() as u64,
        frame_cache_bytes: Frames::memory_bytes_max() as u64,
        page_bytes: shard.limits.pages_bytes_max() as u64,
        echo_bytes: echo_bytes(config) as u64,
        tail_bytes: (observe::memory_bytes_max(admin::TOTALS_MAX) + shards::traces::memory_bytes_max()) as u64,
        client_chain_bytes: config.tls_client_authorities_file.as_ref().map_or(0, |_| HANDSHAKE_BYTES_MAX as u64),
    };
    let room = room(config, config.shard_count(), process::raise_open_files());
    Plan { room: Some(room), ..Plan::of(config, &parts, plan::memory_bytes()) }
}

fn echo_bytes(config: &Config) -> usize {
    if config.echo { crate::reactor::ECHO_ASSEMBLY_BYTES_MAX } else { 0 }
}

fn reactor_config(config: &Config, shard: ShardId, connections: usize, spin_us_max: u64) -> ReactorConfig {
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
        silent_newcomers_max: config.silent_newcomers_per_shard_max as usize,
        gate: GateConfig {
            turn_newcomers_us_max: config.turn_newcomers_us_max,
            newcomer_wait_us_max: us(config.newcomer_wait_ms),
        },
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
        introduce_us_max: us(config.handshake_timeout_ms),
        echo_open: config.echo,
        spin_us_max,
        turn_step_us_max: config.turn_step_us_max,
        drain: DrainLimits {
            drain_us_max: us(config.drain_ms_max),
            wave_us: us(config.drain_wave_ms),
            wave_connections: config.drain_wave_connections as usize,
            grace_us: us(config.drain_grace_ms),
        },
    }
}

/// Makes logs that go on of whatever the last process left.
fn recover(folder: &DataFolder, shards: u16) -> Result<(Vec<RecoveredLog>, Arc<Known>), Failure> {
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
    let queues = Arc::new(declared(&recovered));
    Ok((recovered.logs, queues))
}

/// Waits until every shard has its ring.
fn ready(shards: u16, reports: &flume::Receiver<Report>) -> Result<Arc<[Peer]>, Failure> {
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
    Ok(seats.into_iter().flatten().collect())
}

/// Lets the shards know each other and accept.
fn introduce(peers: &Arc<[Peer]>, listeners: Vec<OwnedFd>) -> Result<(), Failure> {
    for (peer, listeners) in peers.iter().zip(listener::deal(listeners, peers.len() as u16)) {
        let serve = Control::Serve { peers: Arc::clone(peers), listeners };
        peer.control.send(serve).map_err(|_| failed("a shard's thread died while starting"))?;
        peer.waker.wake();
    }
    Ok(())
}

/// Tells whoever started the server what it is and how to talk to it. The last line is for programs.
fn announce(config: &Config, address: SocketAddr, shards: u16, folder: &DataFolder, plan: &Plan) {
    let program = std::env::current_exe().map_or_else(|_| "tidegate".into(), |path| path.display().to_string());
    let sync = if config.sync == Switch::On { "on" } else { "off: acknowledged means written, not synced" };
    let (http, ws) = if config.tls_certificate_file.is_some() { ("https", "wss") } else { ("http", "ws") };
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
    let _ = writeln!(out, "{}", keeper::words(config));
    let _ = writeln!(
        out,
        "try: {program} pub --url {ws}://{address} --session demo --topic chat.message '{{\"text\":\"hello\"}}'"
    );
    let _ = writeln!(out, "ready {http}://{address}");
    let _ = out.flush();
}

/// Serves, also past a takeover that came to nothing, until all logs are closed.
fn serve_until_the_end(
    reports: &flume::Receiver<Report>,
    peers: &[Peer],
    bounds: Bounds,
    gate: &Gate,
    notify: &Notify,
) -> Result<(), Failure> {
    loop {
        notify.ready("serves");
        let cause = wait(reports)?;
        notify.stopping("sends its clients away and closes its logs");
        if cause == Cause::Signal {
            gate.end();
        }
        let closed = |line: &str| Failure { closed: true, ..failed(line) };
        match shutdown::stop(peers, reports, bounds, cause).map_err(failed)? {
            Outcome::Stays => gate.serve_on("it serves on, since the takeover did not come about"),
            Outcome::Ended { hurried: true, .. } => {
                return Err(closed("a second signal: clients were cut off; what was acknowledged is on disk"));
            }
            Outcome::Ended { taker_gone: true, .. } if cause == Cause::Takeover => {
                return Err(closed("the process that was to take over is gone: start the server again"));
            }
            Outcome::Ended { .. } => return Ok(()),
        }
    }
}

/// Waits for a reason to end.
fn wait(reports: &flume::Receiver<Report>) -> Result<Cause, Failure> {
    loop {
        match reports.recv() {
            Ok(Report::Signal(signal)) => {
                tracing::info!(signal, "stopping");
                return Ok(Cause::Signal);
            }
            Ok(Report::TakerReady { pid }) => {
                tracing::info!(pid, "another process takes over: stopping");
                return Ok(Cause::Takeover);
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
