//! `tidegate bench`: what this host makes of the server, and what limits it.
//!
//! ```text
//!   host      disk · loopback · a busy core                         what no server on this host can beat
//!   server    `serve --shards 1` of this binary on one core          its own folder, ended and removed in every case
//!   load      the generator's library, in this process on another core
//!   table     rates, CPU of the server for each event, latency from the intended send time  ─►  verdict in words
//! ```
//! With `--url` the server is somebody else's: then there is no look at its host.

mod host;
mod report;
mod server;
mod verdict;

use super::Failure;
use crate::boot::process;
use crate::config::{Config, Layers};
use clap::{Args, Parser as _};
use host::Host;
use report::{Report, Row};
use serde_json::Value;
use server::{Server, Stage};
use std::net::{SocketAddrV4, TcpStream, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Readers of the fan-out workloads. With its sessions twice, below the smallest common limit of open files.
const READERS: &str = "400";
const EVENTS_PER_BURST: u32 = 64;
/// Events written for each second asked for, before they are read back; one in five of them into the session that is read.
const FILL_EVENTS_PER_SECOND: f64 = 50_000.0;
const FILL_EVENTS_MAX: f64 = 500_000.0;
/// A floor is known after so long.
const HOST_SECONDS_MAX: f64 = 2.0;
/// Connections to a server elsewhere that tell how far away it is.
const PROBES: usize = 20;

/// Measure the server on this host, and say what limits it.
#[derive(Args)]
pub(super) struct BenchArgs {
    /// A running server, ws://HOST:PORT; events that this writes stay in it. Without it: one of this binary's own, on one core.
    #[arg(long)]
    url: Option<String>,
    /// Folder on the disk to measure; what is written there is removed. Default: where `serve` keeps its folder of data.
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    data: Option<PathBuf>,
    /// Seconds of each measurement; all of them take about twenty times as long.
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    seconds: f64,
    /// Sessions of the chat workloads, a publisher and a reader each.
    #[arg(long, value_name = "N", default_value_t = 300)]
    sessions: u32,
    /// Print JSON instead of tables.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &BenchArgs) -> Result<(), Failure> {
    if !(0.1..=600.0).contains(&args.seconds) || !(1..=10_000).contains(&args.sessions) {
        return Err(Failure::wrong("--seconds is from 0.1 to 600, --sessions from 1 to 10000"));
    }
    let report = match &args.url {
        Some(url) => elsewhere(args, url)?,
        None => here(args)?,
    };
    let text = if args.json { report.json() } else { report.table() };
    text.lines().try_for_each(super::print_line)
}

/// Which cores the server and the load run on; the same where there is only one.
struct Cores {
    server: usize,
    load: usize,
}

impl Cores {
    fn choose() -> Result<Cores, Failure> {
        let all = process::cores();
        let server = *all.first().ok_or_else(|| Failure::failed("this process may run on no core"))?;
        let siblings = host::siblings(server);
        let others = || all.iter().filter(|core| **core != server);
        let load = others().find(|core| !siblings.contains(core)).or_else(|| others().next());
        Ok(Cores { server, load: *load.unwrap_or(&server) })
    }
}

/// Starts a server, measures it and its host.
fn here(args: &BenchArgs) -> Result<Report, Failure> {
    let cores = Cores::choose()?;
    let stage = Stage::set(&parent(args)?)?;
    say("the host: disk, loopback, a busy core");
    let host = Host::measure(stage.folder(), args.seconds.min(HOST_SECONDS_MAX), &cores)
        .map_err(|why| Failure::failed(format!("{}: {why}", stage.folder().display())))?;
    process::pin_to(cores.load);

    let mut rows = Vec::new();
    let mut synced = Server::start(&stage, "synced", "on", &cores)?;
    let runs = Runs { address: synced.address, pid: Some(synced.pid), args };
    runs.chat("durable chat", &mut rows)?;
    runs.fan_out(&mut rows)?;
    runs.connections(&mut rows)?;
    let filled = runs.fill()?;
    // A server that has just started has nothing of the log in memory.
    synced.end();
    let synced = Server::start(&stage, "synced", "on", &cores)?;
    Runs { address: synced.address, pid: Some(synced.pid), args }.history(&filled, &mut rows)?;
    drop(synced);
    let unsynced = Server::start(&stage, "unsynced", "off", &cores)?;
    Runs { address: unsynced.address, pid: Some(unsynced.pid), args }.chat("chat with --sync off", &mut rows)?;
    drop(unsynced);

    let place = verdict::Place { shared_core: cores.server == cores.load, sessions: args.sessions, link_us: None };
    let verdict = verdict::verdict(Some(&host), &rows, &place);
    let server = format!("core {}, load on core {}, data in {}", cores.server, cores.load, parent_of(&stage));
    Ok(Report { server, host: Some(host), link_us: None, rows, verdict })
}

/// Measures a server that somebody else runs.
fn elsewhere(args: &BenchArgs, url: &str) -> Result<Report, Failure> {
    let address = address_of(url)?;
    let link_us = distance_us(address).map_err(|why| Failure::failed(format!("cannot connect to {address}: {why}")))?;
    let mut rows = Vec::new();
    let runs = Runs { address, pid: None, args };
    runs.chat("durable chat", &mut rows)?;
    runs.fan_out(&mut rows)?;
    runs.connections(&mut rows)?;
    runs.history(&runs.fill()?, &mut rows)?;
    let place = verdict::Place { shared_core: false, sessions: args.sessions, link_us: Some(link_us) };
    let verdict = verdict::verdict(None, &rows, &place);
    Ok(Report { server: address.to_string(), host: None, link_us: Some(link_us), rows, verdict })
}

/// Where the folder of this run goes.
fn parent(args: &BenchArgs) -> Result<PathBuf, Failure> {
    if let Some(folder) = &args.data {
        return Ok(folder.clone());
    }
    let config =
        Config::load(&Layers { file: None, env: super::environment(), flags: Vec::new() }).map_err(Failure::wrong)?;
    let parent = config.data.parent().filter(|parent| !parent.as_os_str().is_empty());
    Ok(parent.unwrap_or(Path::new(".")).to_path_buf())
}

fn parent_of(stage: &Arc<Stage>) -> String {
    stage.folder().parent().unwrap_or(Path::new(".")).display().to_string()
}

fn address_of(url: &str) -> Result<SocketAddrV4, Failure> {
    let wrong = |why: &str| Failure::wrong(format!("--url {url:?}: {why}"));
    let authority = url.strip_prefix("ws://").ok_or_else(|| wrong("expected ws://HOST:PORT"))?;
    let authority = authority.split(['/', '?']).next().unwrap_or_default();
    let named = if authority.contains(':') { authority.to_string() } else { format!("{authority}:80") };
    let found = named.to_socket_addrs().map_err(|why| wrong(&why.to_string()))?;
    let four = found.into_iter().find_map(|address| match address {
        std::net::SocketAddr::V4(four) => Some(four),
        std::net::SocketAddr::V6(_) => None,
    });
    four.ok_or_else(|| wrong("no IPv4 address"))
}

/// Median time in which a connection stands: one round trip.
fn distance_us(address: SocketAddrV4) -> std::io::Result<f64> {
    let mut took = Vec::new();
    for _ in 0..PROBES {
        let began = Instant::now();
        TcpStream::connect(address)?;
        took.push(began.elapsed().as_nanos() as u64);
    }
    Ok(host::Quantiles::of(took).p50_us)
}

/// Progress, for whoever waits.
fn say(what: &str) {
    eprintln!("tidegate bench: {what}");
}

/// The log that was filled.
struct Filled {
    prefix: String,
    hot_events: u64,
}

/// The workloads, against one server.
struct Runs<'a> {
    address: SocketAddrV4,
    pid: Option<u32>,
    args: &'a BenchArgs,
}

impl Runs<'_> {
    /// One run of the generator.
    fn load(&self, words: &[&str]) -> Result<Value, Failure> {
        let (address, pid) = (self.address.to_string(), self.pid.map(|pid| pid.to_string()));
        let mut all = vec!["loadgen"];
        all.extend(words);
        all.extend(["--address", &address]);
        all.extend(pid.iter().flat_map(|pid| ["--pid", pid.as_str()]));
        let order = loadgen::Order::try_parse_from(all).map_err(Failure::failed)?;
        loadgen::run(order).map_err(|why| Failure::failed(format!("{}: {why}", words.join(" "))))
    }

    fn timed(&self, words: &[&str]) -> Result<Value, Failure> {
        let (seconds, warm) = (self.args.seconds.to_string(), (self.args.seconds / 4.0).to_string());
        self.load(&[words, &["--seconds", &seconds, "--warm", &warm]].concat())
    }

    /// To saturation, then at half of that.
    fn chat(&self, name: &str, rows: &mut Vec<Row>) -> Result<(), Failure> {
        say(name);
        let sessions = self.args.sessions.to_string();
        let words = ["chat", "--sessions", sessions.as_str()];
        let most = Row::of(format!("{name}, {sessions} sessions: at most"), "delivered_per_s", self.timed(&words)?);
        let rate = (most.rate / 2.0).max(10.0).to_string();
        rows.push(most);
        let paced = self.timed(&[&words[..], &["--rate", &rate]].concat())?;
        rows.push(Row::of(format!("{name}: at half of that"), "delivered_per_s", paced).waiting("ack", "intended"));
        Ok(())
    }

    fn fan_out(&self, rows: &mut Vec<Row>) -> Result<(), Failure> {
        for burst in [1, EVENTS_PER_BURST] {
            let window = if burst == 1 { 1 } else { 2 * burst }.to_string();
            let name = match burst {
                1 => format!("fan-out to {READERS}, one at a time"),
                _ => format!("fan-out to {READERS}, in bursts of {burst}"),
            };
            say(&name);
            let burst = burst.to_string();
            let shape = ["fanout", "--readers", READERS, "--bytes", "128", "--window", &window, "--burst", &burst];
            rows.push(Row::of(name, "delivered_per_s", self.timed(&shape)?));
        }
        Ok(())
    }

    fn connections(&self, rows: &mut Vec<Row>) -> Result<(), Failure> {
        say("connections");
        let seconds = self.args.seconds.to_string();
        let report = self.load(&["handshake", "--seconds", &seconds])?;
        rows.push(Row::of("connect and upgrade".into(), "connects_per_s", report));
        say("a lone client");
        let report = self.timed(&["lone", "--durability", "memory"])?;
        rows.push(Row::of("a lone client, not durable".into(), "acked_per_s", report).waiting("ack", "actual"));
        let report = self.timed(&["lone"])?;
        rows.push(Row::of("a lone client, durable".into(), "acked_per_s", report).waiting("ack", "actual"));
        Ok(())
    }

    /// A log to read back.
    fn fill(&self) -> Result<Filled, Failure> {
        let events = (self.args.seconds * FILL_EVENTS_PER_SECOND).min(FILL_EVENTS_MAX) as u64;
        say(&format!("{events} events to read back"));
        let prefix = format!("bench-{}-{:x}", std::process::id(), crate::reactor::random_u64());
        let (count, sessions) = (events.to_string(), self.args.sessions.to_string());
        let words = ["fill", "--events", &count, "--sessions", &sessions, "--window", "32", "--prefix", &prefix];
        let report = self.load(&words)?;
        if report["valid"] != true {
            return Err(Failure::failed(format!("filling the log: {}", report["invalid"])));
        }
        Ok(Filled { prefix, hot_events: report["hot_events"].as_u64().unwrap_or(0) })
    }

    fn history(&self, filled: &Filled, rows: &mut Vec<Row>) -> Result<(), Failure> {
        say("history of one session");
        let (session, events) = (format!("{}-hot", filled.prefix), filled.hot_events.to_string());
        let report = self.load(&["read", "--session", &session, "--events", &events])?;
        rows.push(Row::of(format!("history of one session, {events} events"), "events_per_s", report));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_comes_from_a_url_with_or_without_port_and_path() {
        let of = |url| address_of(url).ok().map(|address| address.to_string());
        assert_eq!(of("ws://127.0.0.1:7777").as_deref(), Some("127.0.0.1:7777"));
        assert_eq!(of("ws://127.0.0.1/v1/ws?session=a").as_deref(), Some("127.0.0.1:80"));
        assert_eq!(of("http://127.0.0.1:7777"), None);
        assert_eq!(of("ws://[::1]:7777"), None);
    }
}
