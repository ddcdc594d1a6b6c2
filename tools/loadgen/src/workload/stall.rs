//! `stall`: many readers, of whom some stop reading for a while. What do the others notice?
//!
//! ```text
//!   reader i ◄── session i mod S      one publisher for all of these            measured: those who never stop
//!   every n-th reader ◄── one more session, with much to read: its queue is full soon after it stops
//!
//!   warm ─► calm: all read ─► stalled: every n-th does not ─► all read again ─► all that was sent has come, once and in order
//! ```
//! Open loop. What is offered is the same in both windows; what is delivered is not: nobody sends to those who do not take it.

use super::{costs, merge};
use crate::engine::{Engine, Handler};
use crate::measure::{Lag, Latency, Reading, process_rss_kib};
use crate::peer::life::{self, Heard};
use crate::stamp::Stamp;
use serde_json::{Value, json};
use std::io;
use std::ops::Range;

/// Shape of the load.
pub struct Stall<'a> {
    pub clients: usize,
    /// Every so manieth stops.
    pub every: usize,
    pub sessions: usize,
    /// Events per second over all sessions.
    pub rate: f64,
    pub bytes: usize,
    /// Of the session that those who stop read beside their own.
    pub flood_rate: f64,
    pub flood_bytes: usize,
    pub warm_s: f64,
    pub measure_s: f64,
    pub opening_max: usize,
    pub server: Option<u32>,
    pub prefix: &'a str,
}

/// A publisher whose own sends are this late cannot speak about latency.
const LAG_P99_US_MAX: f64 = 1_000.0;
const CONNECT_NS_MAX: u64 = 60_000_000_000;
/// Those who stopped have to read what they left, from the log.
const DRAIN_NS: u64 = 60_000_000_000;

#[derive(Default)]
struct Client {
    connection: usize,
    /// Subscriptions answered.
    subscribed: usize,
    /// Number of the event that must come next: of its session, of the other one.
    next: [u32; 2],
}

struct Run<'a> {
    stall: &'a Stall<'a>,
    clients: Vec<Client>,
    /// The publisher is connected.
    publishes: bool,
    ready: usize,
    /// Events published, by session; the one of those who stop comes last.
    published: Vec<u32>,
    acknowledged: u64,
    windows: [Range<u64>; 2],
    latency: [Latency; 2],
    delivered: u64,
    repeated: u64,
    errors: Vec<String>,
    error_count: u64,
}

impl Run<'_> {
    fn error(&mut self, why: String) {
        self.error_count += 1;
        if self.errors.len() < 5 {
            self.errors.push(why);
        }
    }

    fn stops(&self, client: usize) -> bool {
        client.is_multiple_of(self.stall.every)
    }

    fn session(&self, lane: usize) -> String {
        format!("{}-{lane}", self.stall.prefix)
    }

    fn event(&mut self, client: usize, now: u64, stamp: Stamp) {
        let (sessions, lane) = (self.stall.sessions, stamp.lane as usize);
        let own = lane == client % sessions;
        let extra = lane == sessions && self.stops(client);
        if !own && !extra {
            return self.error(format!("client {client} saw {stamp:?}"));
        }
        let next = &mut self.clients[client].next[usize::from(!own)];
        let expected = *next;
        *next = stamp.number + 1;
        self.delivered += 1;
        if stamp.number != expected {
            self.repeated += u64::from(stamp.number < expected);
            return self.error(format!("client {client} expected event {expected}, saw {stamp:?}"));
        }
        if !self.stops(client)
            && let Some(at) = self.windows.iter().position(|window| window.contains(&stamp.intended))
        {
            self.latency[at].record(stamp.intended, stamp.actual, now);
        }
    }

    /// All that was published has been acknowledged and has come to everybody.
    fn is_whole(&self) -> bool {
        let sessions = self.stall.sessions;
        let seen = |(number, client): (usize, &Client)| {
            client.next[0] == self.published[number % sessions]
                && (!self.stops(number) || client.next[1] == self.published[sessions])
        };
        let sent: u64 = self.published.iter().map(|sent| u64::from(*sent)).sum();
        self.acknowledged == sent && self.clients.iter().enumerate().all(seen)
    }
}

impl Handler for Run<'_> {
    fn opened(&mut self, _: usize, _: &mut Vec<u8>) {}

    fn received(&mut self, connection: usize, now: u64, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        let client = connection;
        match life::heard(bytes) {
            Heard::Welcome if client == self.clients.len() => self.publishes = true,
            Heard::Welcome => {
                life::subscribe(out, &self.session(client % self.stall.sessions), 0);
                if self.stops(client) {
                    life::subscribe(out, &self.session(self.stall.sessions), 0);
                }
            }
            Heard::Subscribed => {
                self.clients[client].subscribed += 1;
                let wanted = if self.stops(client) { 2 } else { 1 };
                self.ready += usize::from(self.clients[client].subscribed == wanted);
            }
            Heard::Event { stamp, .. } => self.event(client, now, stamp),
            Heard::Published { .. } => self.acknowledged += 1,
            Heard::Other => {}
            _ => self.error(format!("connection {connection}: {}", String::from_utf8_lossy(bytes))),
        }
        bytes.len()
    }

    fn lost(&mut self, connection: usize, why: String) {
        self.error(format!("connection {connection} lost: {why}"));
    }
}

/// Runs the load and reports it.
pub fn run(engine: &mut Engine, stall: &Stall) -> io::Result<Value> {
    let mut run = Run {
        stall,
        clients: (0..stall.clients).map(|_| Client::default()).collect(),
        publishes: false,
        ready: 0,
        published: vec![0; stall.sessions + 1],
        acknowledged: 0,
        windows: [u64::MAX..u64::MAX, u64::MAX..u64::MAX],
        latency: [Latency::new(), Latency::new()],
        delivered: 0,
        repeated: 0,
        errors: Vec::new(),
        error_count: 0,
    };
    connect(engine, &mut run)?;
    let publisher = stall.clients;
    let rss = || stall.server.map(process_rss_kib);
    let start = engine.now() + 300_000_000;
    let second = |s: f64| (s * 1e9) as u64;
    let calm = start + second(stall.warm_s);
    let stop = calm + second(stall.measure_s);
    let end = stop + second(stall.measure_s);
    run.windows = [calm..stop, stop..end];
    let mut lag = Lag::new();
    let mut readings: Vec<(Reading, Option<u64>)> = Vec::new();
    let (mut sent, mut flooded) = (0u64, 0u64);
    while engine.now() < end && run.error_count == 0 {
        let now = engine.now();
        if now >= [calm, stop].get(readings.len()).copied().unwrap_or(u64::MAX) {
            readings.push((Reading::take(now, stall.server), rss()));
            if readings.len() == 2 {
                for client in (0..stall.clients).step_by(stall.every) {
                    engine.stop_reading(run.clients[client].connection)?;
                }
            }
        }
        let due = |n: u64, rate: f64| start + (n as f64 * 1e9 / rate) as u64;
        while due(sent, stall.rate) <= now {
            let lane = (sent % stall.sessions as u64) as usize;
            publish(engine, &mut run, publisher, lane, due(sent, stall.rate), &mut lag);
            sent += 1;
        }
        while due(flooded, stall.flood_rate) <= now {
            publish(engine, &mut run, publisher, stall.sessions, due(flooded, stall.flood_rate), &mut lag);
            flooded += 1;
        }
        let next = due(sent, stall.rate).min(due(flooded, stall.flood_rate)).min(end);
        engine.step(&mut run, next.saturating_sub(engine.now()).min(20_000_000));
    }
    readings.resize_with(3, || (Reading::take(engine.now(), stall.server), rss()));
    for client in (0..stall.clients).step_by(stall.every) {
        engine.read_again(run.clients[client].connection)?;
    }
    let (behind, deadline) = (engine.now(), engine.now() + DRAIN_NS);
    while !run.is_whole() && run.error_count == 0 && engine.now() < deadline {
        engine.step(&mut run, 20_000_000);
    }
    let (whole, caught_up) = (run.is_whole(), engine.now());
    while engine.now() < caught_up + 50_000_000 {
        engine.step(&mut run, 10_000_000); // anything delivered twice would come now
    }

    let mut invalid = Vec::new();
    if lag.p99_us() > LAG_P99_US_MAX {
        invalid.push(format!("the generator lagged: p99 {:.0} µs behind its schedule", lag.p99_us()));
    }
    if run.error_count > 0 {
        invalid.push(format!("{} errors, first: {}", run.error_count, run.errors[0]));
    }
    if !whole {
        invalid.push(format!("{} sent, not all of it has come", sent + flooded));
    }
    let report = json!({
        "clients": stall.clients,
        "stopped": stall.clients.div_ceil(stall.every),
        "calm": run.latency[0].report(),
        "stalled": run.latency[1].report(),
        "rss_calm_kib": readings[1].1,
        "rss_stalled_kib": readings[2].1,
        "server_cores_calm": readings[1].0.since(&readings[0].0).1,
        "caught_up_s": (caught_up - behind) as f64 / 1e9,
        "sent": sent + flooded,
        "delivered": run.delivered,
        "lost": u64::from(!whole),
        "repeated": run.repeated,
        "lag": lag.report(),
        "valid": invalid.is_empty(),
        "invalid": invalid,
    });
    Ok(merge(report, costs(&readings[1].0, &readings[2].0, stall.server)))
}

/// Opens readers, then the publisher, and waits until all are ready.
fn connect(engine: &mut Engine, run: &mut Run) -> io::Result<()> {
    let Stall { clients, opening_max, prefix, .. } = *run.stall;
    let begin = engine.now();
    let mut opened = 0;
    while run.ready < clients || !run.publishes {
        while opened < clients && opened - run.ready.min(opened) < opening_max {
            run.clients[opened].connection = engine.open(format!("/v1/ws?client={prefix}-r{opened}"))?;
            opened += 1;
        }
        if run.ready == clients && engine.len() == clients {
            engine.open(format!("/v1/ws?client={prefix}-p"))?;
        }
        engine.step(run, 100_000_000);
        if run.error_count > 0 || engine.now() - begin > CONNECT_NS_MAX {
            let first = run.errors.first().cloned().unwrap_or_else(|| "time is up".into());
            return Err(io::Error::other(format!("{} of {clients} readers ready, then: {first}", run.ready)));
        }
    }
    Ok(())
}

fn publish(engine: &mut Engine, run: &mut Run, publisher: usize, lane: usize, intended: u64, lag: &mut Lag) {
    let actual = engine.now();
    lag.record(intended, actual);
    let stamp = Stamp { intended, actual, lane: lane as u32, number: run.published[lane] };
    run.published[lane] += 1;
    let bytes = if lane == run.stall.sessions { run.stall.flood_bytes } else { run.stall.bytes };
    life::publish(engine.out(publisher), &run.session(lane), &stamp, bytes);
}
