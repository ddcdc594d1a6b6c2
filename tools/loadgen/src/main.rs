//! Load for a Tidegate server: prints one JSON line per run.
//!
//! ```text
//!   chat        N sessions × (1 publisher + 1 reader)          --rate R: open loop   no rate: saturation
//!   fanout      1 publisher, N readers of one session          --window 1: one at a time
//!   idle        N connections, memory of each
//!   handshake   connections per second
//! ```
//! Every delivery is checked to come exactly once and in order. Exit status 1 where a run is INVALID: it lost something, or this
//! process was too slow to say anything about the server.

mod connect;
mod engine;
mod measure;
mod net;
mod protocol;
mod publish;
mod websocket;

use clap::{Args, Parser, Subcommand};
use engine::Engine;
use publish::Load;
use std::net::SocketAddrV4;
use std::process::ExitCode;

/// Open-loop load for a Tidegate server.
#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    workload: Workload,
    /// Server.
    #[arg(long, global = true, default_value = "127.0.0.1:7777")]
    address: SocketAddrV4,
    /// Process whose CPU and memory are reported.
    #[arg(long, global = true)]
    pid: Option<u32>,
    /// Upgrades under way at once.
    #[arg(long, global = true, default_value_t = 256)]
    opening_max: usize,
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
    /// Durability class to ask for: disk, memory.
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
    /// Connections that do nothing.
    Idle {
        #[arg(long, default_value_t = 10_000)]
        connections: usize,
        /// Do not subscribe them.
        #[arg(long)]
        bare: bool,
    },
    /// Connect, upgrade, reset, again.
    Handshake {
        #[arg(long, default_value_t = 4.0)]
        seconds: f64,
    },
}

fn main() -> ExitCode {
    let line = Line::parse();
    net::raise_nofile();
    let mut engine = match Engine::new(line.address) {
        Ok(engine) => engine,
        Err(why) => return failed(&why),
    };
    // Sessions of this run alone: an earlier run's events would be somebody else's.
    let epoch = std::time::SystemTime::UNIX_EPOCH;
    let prefix = format!("lg{:x}", epoch.elapsed().map_or(0, |since| since.as_millis()));
    let load = |lanes: u32, readers_per_lane: u32, shape: Shape| Load {
        lanes,
        readers_per_lane,
        bytes: shape.bytes.max(protocol::STAMP_BYTES),
        rate: shape.rate,
        window: shape.window,
        burst: shape.burst.unwrap_or(shape.window.div_ceil(2)),
        warm_s: shape.warm,
        measure_s: shape.seconds,
        placed: !shape.spread,
        durability: shape.durability,
        server: line.pid,
        opening_max: line.opening_max,
    };
    let (name, result) = match line.workload {
        Workload::Chat { sessions, shape } => ("chat", publish::run(&mut engine, &load(sessions, 1, shape), &prefix)),
        Workload::Fanout { readers, shape } => ("fanout", publish::run(&mut engine, &load(1, readers, shape), &prefix)),
        Workload::Idle { connections, bare } => {
            ("idle", connect::idle(&mut engine, connections, !bare, line.opening_max, line.pid, &prefix))
        }
        Workload::Handshake { seconds } => {
            ("handshake", connect::handshake(&mut engine, seconds, line.opening_max, line.pid, &prefix))
        }
    };
    match result {
        Ok(mut report) => {
            report["workload"] = name.into();
            println!("{report}");
            if report["valid"] == true {
                ExitCode::SUCCESS
            } else {
                eprintln!("loadgen: INVALID {}", report["invalid"]);
                ExitCode::FAILURE
            }
        }
        Err(why) => failed(&why),
    }
}

fn failed(why: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("loadgen: {why}");
    ExitCode::FAILURE
}
