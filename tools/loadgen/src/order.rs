//! What is asked of the generator: the grammar of its command line, and the way from there to a workload.
//!
//! ```text
//!   loadgen chat --sessions 1000 --rate 5000 …      the binary's command line
//!   Order::try_parse_from(["loadgen", "chat", …])   the same words from another program, with the same defaults
//! ```

use crate::engine::Engine;
use crate::peer::work::{self, Queue, Work};
use crate::peer::{self, Choice, Name};
use crate::workload::connect::{self, Door};
use crate::workload::crowd::{self, Crowd};
use crate::workload::jobs::{self, Jobs};
use crate::workload::publish::{self, Load, Spreading};
use crate::workload::read;
use crate::workload::stall::{self, Stall};
use crate::workload::streams::{self, Streams};
use crate::{line, net, stamp};
use clap::{Args, Parser, Subcommand};
use serde_json::Value;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

/// Open-loop load for an event server.
#[derive(Parser)]
pub struct Order {
    #[command(subcommand)]
    workload: Workload,
    /// Server.
    #[arg(long, global = true, default_value = "127.0.0.1:7777")]
    address: SocketAddrV4,
    /// What the server speaks.
    #[arg(long, global = true, value_enum, default_value = "tidegate")]
    peer: Name,
    /// Where the server keeps events only if asked to: ask.
    #[arg(long, global = true)]
    durable: bool,
    /// Plain TCP listener of a server that must be prepared before the run.
    #[arg(long, global = true)]
    setup: Option<SocketAddrV4>,
    /// Process whose CPU and memory are reported.
    #[arg(long, global = true)]
    pid: Option<u32>,
    /// Speak TLS, and believe the certificates in this file, which are for `localhost`.
    #[arg(long, global = true, value_name = "FILE")]
    authority: Option<PathBuf>,
    /// Address that connections come from: each has its own range of ports.
    #[arg(long, global = true)]
    source: Option<Ipv4Addr>,
    /// Token to show with the upgrade; may be repeated: sessions take them in turn.
    #[arg(long, global = true, value_name = "TOKEN")]
    bearer: Vec<String>,
    /// Upgrades under way at once.
    #[arg(long, global = true, default_value_t = 256)]
    opening_max: usize,
    /// Beginning of all session names; without it one of this run alone.
    #[arg(long, global = true)]
    prefix: Option<String>,
}

#[derive(Args)]
struct Shape {
    /// Bytes of data of each event.
    #[arg(long, default_value_t = 256)]
    bytes: usize,
    /// Events per second over all sessions; absent: saturation.
    #[arg(long)]
    rate: Option<f64>,
    /// Saturation: events of a session in flight.
    #[arg(long, default_value_t = 1)]
    window: u32,
    /// Saturation: a session is refilled when so many are missing; default half a window.
    #[arg(long)]
    burst: Option<u32>,
    /// Seconds before measuring.
    #[arg(long, default_value_t = 1.0)]
    warm: f64,
    /// Seconds measured.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Do not name the session in the URL: connections stay on the shard that accepted them.
    #[arg(long)]
    spread: bool,
    /// Share of sessions whose connections live on another shard.
    #[arg(long, default_value_t = 0.0)]
    cross: f64,
    /// When connected, print a line and wait for one on stdin.
    #[arg(long)]
    hold: bool,
    /// Durability class to ask for: disk, memory, volatile.
    #[arg(long)]
    durability: Option<String>,
}

#[derive(Subcommand)]
enum Workload {
    /// Many sessions, each with one publisher and one reader.
    Chat {
        #[arg(long, default_value_t = 1000)]
        sessions: u32,
        #[command(flatten)]
        shape: Shape,
    },
    /// One publisher, many readers of one session.
    Fanout {
        #[arg(long, default_value_t = 1000)]
        readers: u32,
        #[command(flatten)]
        shape: Shape,
    },
    /// One client that waits for each answer.
    Lone {
        #[command(flatten)]
        shape: Shape,
    },
    /// Publishers with many sessions each, chosen at random.
    Sessions {
        #[arg(long, default_value_t = 1000)]
        publishers: u32,
        /// Over all publishers.
        #[arg(long, default_value_t = 1000)]
        sessions: u32,
        /// Instead of measuring: one event into each session.
        #[arg(long)]
        create: bool,
        #[command(flatten)]
        shape: Shape,
    },
    /// Writes a log.
    Fill {
        #[arg(long, default_value_t = 1000)]
        sessions: u32,
        #[arg(long, default_value_t = 1_000_000)]
        events: u64,
        /// Every so manieth event goes into the session PREFIX-hot.
        #[arg(long, default_value_t = 5)]
        hot_every: u32,
        #[command(flatten)]
        shape: Shape,
    },
    /// Reads one session from its first event on.
    Read {
        #[arg(long)]
        session: String,
        /// Events to read.
        #[arg(long)]
        events: u64,
    },
    /// Connections that do nothing.
    Idle {
        #[arg(long, default_value_t = 10_000)]
        connections: usize,
        /// Do not subscribe them.
        #[arg(long)]
        bare: bool,
        /// Seconds for the server to come to rest.
        #[arg(long, default_value_t = 3.0)]
        settle: f64,
    },
    /// Clients with a life each that go and come back; told what to do on stdin: `go`, `cut`, `end`.
    Crowd {
        #[arg(long, default_value_t = 1000)]
        clients: usize,
        /// Seconds between two events of a client.
        #[arg(long, default_value_t = 10.0)]
        interval: f64,
        /// Seconds measured after `go`.
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
        /// Bytes of data of each event.
        #[arg(long, default_value_t = 128)]
        bytes: usize,
        /// On `cut` these stay, and are measured meanwhile.
        #[arg(long)]
        survive: bool,
        /// Come back without showing the resume token with the upgrade.
        #[arg(long)]
        unshown: bool,
        /// Come back as strangers: subscribe anew instead of resuming.
        #[arg(long)]
        strangers: bool,
    },
    /// Readers of whom every so manieth stops reading for a while.
    Stall {
        #[arg(long, default_value_t = 10_000)]
        clients: usize,
        /// Every so manieth stops.
        #[arg(long, default_value_t = 20)]
        every: usize,
        /// Sessions that they read, one each.
        #[arg(long, default_value_t = 500)]
        sessions: usize,
        /// Events per second, over all sessions.
        #[arg(long, default_value_t = 1000.0)]
        rate: f64,
        /// Bytes of data of each event.
        #[arg(long, default_value_t = 256)]
        bytes: usize,
        /// Those who will stop read one more session, all of them: events per second there.
        #[arg(long, default_value_t = 12.0)]
        flood_rate: f64,
        /// And bytes of data of each.
        #[arg(long, default_value_t = 8192)]
        flood_bytes: usize,
        /// Seconds before measuring.
        #[arg(long, default_value_t = 1.0)]
        warm: f64,
        /// Seconds measured, while all read and while some do not.
        #[arg(long, default_value_t = 12.0)]
        seconds: f64,
    },
    /// Streams of tokens, each into a session of its own.
    Streams {
        #[arg(long, default_value_t = 2000)]
        streams: usize,
        /// Tokens per second of each.
        #[arg(long, default_value_t = 150.0)]
        token_rate: f64,
        /// Tokens of each.
        #[arg(long, default_value_t = 5000)]
        tokens: u64,
        /// A reader joins the first stream when it has so many.
        #[arg(long, default_value_t = 4000)]
        join_at: u64,
    },
    /// Producers and workers of one queue.
    Jobs {
        #[arg(long, default_value_t = 8)]
        producers: u32,
        #[arg(long, default_value_t = 8)]
        workers: u32,
        /// Of all producers together.
        #[arg(long, default_value_t = 2048)]
        sessions: u32,
        /// Bytes of data of each job.
        #[arg(long, default_value_t = 256)]
        bytes: usize,
        /// Jobs per second over all producers; absent: saturation.
        #[arg(long)]
        rate: Option<f64>,
        /// Saturation: unacknowledged jobs of a producer.
        #[arg(long, default_value_t = 256)]
        window: u64,
        /// Seconds before measuring.
        #[arg(long, default_value_t = 1.0)]
        warm: f64,
        /// Seconds measured.
        #[arg(long, default_value_t = 4.0)]
        seconds: f64,
        /// Jobs of one session one after the other.
        #[arg(long)]
        ordered: bool,
        /// Workers live on another shard than the jobs.
        #[arg(long)]
        cross: bool,
    },
    /// Jobs that nobody does: the server answers each at its deadline.
    Deadlines {
        #[arg(long, default_value_t = 100_000)]
        jobs: u64,
        #[arg(long, default_value_t = 64)]
        producers: u32,
        /// Of all producers together; one takes some two hundred open jobs.
        #[arg(long, default_value_t = 1024)]
        sessions: u32,
        /// Bytes of data of each job.
        #[arg(long, default_value_t = 256)]
        bytes: usize,
        /// Jobs asked for, and then due, per second.
        #[arg(long, default_value_t = 10_000.0)]
        rate: f64,
        /// Longer than it takes to ask for all of them.
        #[arg(long, default_value_t = 15_000)]
        deadline_ms: u64,
    },
    /// Connect, upgrade, reset, again.
    Handshake {
        #[arg(long, default_value_t = 4.0)]
        seconds: f64,
    },
}

/// Does what the order says and returns the report. Raises the limit of open files of this process.
///
/// # Errors
/// What kept the load from being put on the server at all; a run that went wrong is a report with `valid: false`.
pub fn run(order: Order) -> io::Result<Value> {
    net::raise_nofile();
    // Sessions of this run alone: an earlier run's events would be somebody else's.
    let epoch = std::time::SystemTime::UNIX_EPOCH;
    let run = format!("lg{:x}{:x}", epoch.elapsed().map_or(0, |since| since.as_millis()), std::process::id());
    let prefix = order.prefix.clone().unwrap_or_else(|| run.clone());
    let durability = match &order.workload {
        Workload::Chat { shape, .. }
        | Workload::Fanout { shape, .. }
        | Workload::Lone { shape }
        | Workload::Sessions { shape, .. }
        | Workload::Fill { shape, .. } => shape.durability.clone(),
        _ => None,
    };
    let mut peer = peer::make(&Choice {
        name: order.peer,
        durable: order.durable,
        durability,
        setup: order.setup,
        run: run.clone(),
    });
    let peer = peer.as_mut();
    let mut engine = Engine::new(order.address, peer.transport(), peer.subprotocol())?;
    engine.come_from(order.source);
    engine.encrypt(order.authority.as_deref().map(line::believing).transpose()?);
    engine.speak_for(order.bearer.iter().cloned());
    let load = |lanes: u32, readers_per_lane: u32, spreading: Spreading, shape: Shape| Load {
        lanes,
        readers_per_lane,
        bytes: shape.bytes.max(stamp::STAMP_BYTES),
        rate: shape.rate,
        window: shape.window,
        burst: shape.burst.unwrap_or(shape.window.div_ceil(2)),
        warm_s: shape.warm,
        measure_s: shape.seconds,
        events: None,
        spreading,
        placed: !shape.spread,
        cross: shape.cross,
        hold: shape.hold,
        server: order.pid,
        opening_max: order.opening_max,
    };
    let (name, load) = match order.workload {
        Workload::Chat { sessions, shape } => ("chat", load(sessions, 1, Spreading::Own, shape)),
        Workload::Fanout { readers, shape } => ("fanout", load(1, readers, Spreading::Own, shape)),
        Workload::Lone { shape } => ("lone", load(1, 0, Spreading::Own, shape)),
        Workload::Sessions { publishers, sessions, create, shape } => {
            let each = sessions.div_ceil(publishers);
            let spreading = if create { Spreading::InTurn(each) } else { Spreading::Any(each) };
            let mut load = load(publishers, 0, spreading, shape);
            // Equal windows: the publishers move through their sessions side by side.
            load.events = create.then_some(u64::from(each) * u64::from(publishers));
            ("sessions", load)
        }
        Workload::Fill { sessions, events, hot_every, shape } => {
            let load = load(sessions, 0, Spreading::Hot(hot_every), shape);
            ("fill", Load { events: Some(events), warm_s: 0.0, ..load })
        }
        Workload::Read { session, events } => {
            return named("read", read::run(&mut engine, peer, &session, events, order.pid));
        }
        Workload::Idle { connections, bare, settle } => {
            let (opening_max, server) = (order.opening_max, order.pid);
            let door = Door { peer, subscribe: !bare, opening_max, server, prefix: &prefix };
            return named("idle", connect::idle(&mut engine, door, connections, settle));
        }
        Workload::Crowd { clients, interval, seconds, bytes, survive, unshown, strangers } => {
            let crowd = Crowd {
                clients,
                interval_s: interval,
                measure_s: seconds,
                bytes: bytes.max(stamp::STAMP_BYTES),
                survive,
                shown: !unshown,
                strangers,
                opening_max: order.opening_max,
                prefix: &prefix,
            };
            return named("crowd", crowd::run(&mut engine, &crowd));
        }
        Workload::Stall { clients, every, sessions, rate, bytes, flood_rate, flood_bytes, warm, seconds } => {
            let stall = Stall {
                clients,
                every: every.max(1),
                sessions: sessions.clamp(1, clients.max(1)),
                rate,
                bytes: bytes.max(stamp::STAMP_BYTES),
                flood_rate,
                flood_bytes: flood_bytes.max(stamp::STAMP_BYTES),
                warm_s: warm,
                measure_s: seconds,
                opening_max: order.opening_max,
                server: order.pid,
                prefix: &prefix,
            };
            return named("stall", stall::run(&mut engine, &stall));
        }
        Workload::Streams { streams, token_rate, tokens, join_at } => {
            let (rate, prefix, server) = (token_rate, prefix.as_str(), order.pid);
            let streams = Streams { streams, rate, tokens, join_at, prefix, server };
            return named("streams", streams::run(&mut engine, &streams));
        }
        Workload::Jobs { producers, workers, sessions, bytes, rate, window, warm, seconds, ordered, cross } => {
            let (deadline_ms, capacity) = (60_000, 200_000);
            let mut work = work_of(order.peer, order.address, &run, ordered, deadline_ms, capacity)?;
            let jobs = Jobs {
                producers: producers.max(1),
                workers,
                sessions,
                bytes: bytes.max(stamp::STAMP_BYTES),
                rate,
                window: window.max(1),
                warm_s: warm,
                measure_s: seconds,
                cross,
                left: None,
                prefix: &prefix,
                server: order.pid,
            };
            return named("jobs", jobs::run(&mut engine, peer, work.as_mut(), &jobs));
        }
        Workload::Deadlines { jobs, producers, sessions, bytes, rate, deadline_ms } => {
            let mut work = work_of(order.peer, order.address, &run, false, deadline_ms, jobs.max(1))?;
            let left = Jobs {
                producers: producers.max(1),
                workers: 0,
                sessions,
                bytes: bytes.max(stamp::STAMP_BYTES),
                rate: Some(rate),
                window: 1,
                warm_s: 0.0,
                measure_s: 0.0,
                cross: false,
                left: Some((jobs, deadline_ms)),
                prefix: &prefix,
                server: order.pid,
            };
            return named("deadlines", jobs::run(&mut engine, peer, work.as_mut(), &left));
        }
        Workload::Handshake { seconds } => {
            let (opening_max, server) = (order.opening_max, order.pid);
            let door = Door { peer, subscribe: false, opening_max, server, prefix: &prefix };
            return named("handshake", connect::handshake(&mut engine, door, seconds));
        }
    };
    named(name, publish::run(&mut engine, peer, &load, &prefix))
}

/// The dialect of those that have queues.
fn work_of(
    name: Name,
    address: SocketAddrV4,
    run: &str,
    ordered: bool,
    deadline_ms: u64,
    capacity: u64,
) -> io::Result<Box<dyn Work>> {
    match name {
        Name::Tidegate => {
            let queue = Queue { name: format!("q{run}"), ordered, deadline_ms, capacity };
            Ok(Box::new(work::Ours::new(run, queue)))
        }
        Name::Redis => Ok(Box::new(work::Groups::new(address))),
        Name::Ws | Name::Nats => Err(io::Error::other("jobs are known of tidegate and redis")),
    }
}

/// The report with the name of its workload.
fn named(name: &str, report: io::Result<Value>) -> io::Result<Value> {
    report.map(|mut report| {
        report["workload"] = name.into();
        report
    })
}
