//! Workloads that publish: `chat` (many sessions, one reader each) and `fanout` (one session, many readers).
//!
//! ```text
//!   chat      p0 ─► session 0 ─► r0          fanout    p0 ─► session 0 ─┬─► r0
//!             p1 ─► session 1 ─► r1                                     ├─► r1
//!             …     lanes = sessions                                    └─► …     one lane
//! ```
//! Open loop (`--rate`): event n leaves at start + n / rate whatever the server does, and its latency counts from then.
//! Saturation (no rate): a lane has at most `window` events between sending and (acknowledged and seen by every reader), and
//! is refilled in bursts of `burst`.

use crate::engine::{Engine, Handler};
use crate::measure::{Lag, Latency, Reading};
use crate::protocol::{self, Frame, Parser, Publisher};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io;

/// Shape of the load.
pub struct Load {
    pub lanes: u32,
    pub readers_per_lane: u32,
    /// Bytes of `data`.
    pub bytes: usize,
    /// Events per second over all lanes; `None` = saturation.
    pub rate: Option<f64>,
    pub window: u32,
    pub burst: u32,
    pub warm_s: f64,
    pub measure_s: f64,
    /// Name the session in the URL, so that connections live on its shard.
    pub placed: bool,
    pub durability: Option<String>,
    pub server: Option<u32>,
    /// Upgrades under way at once.
    pub opening_max: usize,
}

/// A publisher whose own sends are this late cannot speak about latency.
const LAG_P99_US_MAX: f64 = 1_000.0;
/// From this share of its core on, this process may be what limits the result.
const OWN_CORE_FULL: f64 = 0.95;
/// After the last send, deliveries get this long.
const DRAIN_NS: u64 = 10_000_000_000;

#[derive(Clone, Copy, PartialEq)]
enum Role {
    Publisher(u32),
    /// Lane, and the number of the next event that this reader must see.
    Reader(u32, u32),
}

struct Lane {
    publisher: Publisher,
    connection: usize,
    published: u32,
    acknowledged: u32,
    delivered: u64,
    /// (intended, actual) of events that wait for their acknowledgement, oldest first.
    unacknowledged: VecDeque<(u64, u64)>,
    queued: bool,
}

struct Run {
    parser: Parser,
    roles: Vec<Role>,
    lanes: Vec<Lane>,
    sessions: Vec<String>,
    readers_per_lane: u64,
    ready: usize,
    /// Lanes that may have room in their window.
    woken: Vec<u32>,
    measured: std::ops::Range<u64>,
    ack: Latency,
    delivery: Latency,
    acked: u64,
    delivered: u64,
    acked_measured: u64,
    delivered_measured: u64,
    wrong: u64,
    errors: Vec<String>,
    error_count: u64,
}

impl Run {
    fn error(&mut self, why: String) {
        self.error_count += 1;
        if self.errors.len() < 5 {
            self.errors.push(why);
        }
    }

    fn wake(&mut self, lane: u32) {
        let l = &mut self.lanes[lane as usize];
        if !l.queued {
            l.queued = true;
            self.woken.push(lane);
        }
    }

    fn in_flight(&self, lane: u32) -> u32 {
        let l = &self.lanes[lane as usize];
        l.published - l.acknowledged.min((l.delivered / self.readers_per_lane) as u32)
    }
}

impl Handler for Run {
    fn opened(&mut self, connection: usize, out: &mut Vec<u8>) {
        match self.roles[connection] {
            Role::Reader(lane, _) => protocol::subscribe(out, &self.sessions[lane as usize]),
            Role::Publisher(_) => {}
        }
    }

    fn frame(&mut self, connection: usize, now: u64, text: &[u8], _: &mut Vec<u8>) {
        match (self.parser.parse(text), self.roles[connection]) {
            (Frame::Event(stamp), Role::Reader(lane, next)) => {
                if stamp.lane != lane || stamp.number != next {
                    self.wrong += 1;
                    self.error(format!("reader of lane {lane} expected event {next}, saw {stamp:?}"));
                }
                self.roles[connection] = Role::Reader(lane, stamp.number.wrapping_add(1).max(next));
                self.delivered += 1;
                self.delivered_measured += u64::from(self.measured.contains(&now));
                if self.measured.contains(&stamp.intended) {
                    self.delivery.record(stamp.intended, stamp.actual, now);
                }
                self.lanes[lane as usize].delivered += 1;
                self.wake(lane);
            }
            (Frame::Published(id), Role::Publisher(lane)) => {
                let l = &mut self.lanes[lane as usize];
                let Some((intended, actual)) = l.unacknowledged.pop_front().filter(|_| id == l.acknowledged) else {
                    let expected = l.acknowledged;
                    return self.error(format!("lane {lane} expected acknowledgement {expected}, got {id}"));
                };
                l.acknowledged += 1;
                self.acked += 1;
                self.acked_measured += u64::from(self.measured.contains(&now));
                if self.measured.contains(&intended) {
                    self.ack.record(intended, actual, now);
                }
                self.wake(lane);
            }
            (Frame::Welcome, Role::Publisher(_)) | (Frame::Subscribed, Role::Reader(..)) => self.ready += 1,
            (Frame::Welcome | Frame::Other, _) => {}
            (Frame::Refused(text) | Frame::Strange(text), _) => self.error(text),
            (frame, _) => self.error(format!("unexpected {frame:?}")),
        }
    }

    fn lost(&mut self, connection: usize, why: String) {
        self.error(format!("connection {connection} lost: {why}"));
    }
}

/// Runs the load and reports it.
pub fn run(engine: &mut Engine, load: &Load, prefix: &str) -> io::Result<Value> {
    let sessions: Vec<String> = (0..load.lanes).map(|lane| format!("{prefix}-{lane}")).collect();
    let lane = |i: u32| Lane {
        publisher: Publisher::new(&sessions[i as usize], i, load.bytes, load.durability.as_deref()),
        connection: 0,
        published: 0,
        acknowledged: 0,
        delivered: 0,
        unacknowledged: VecDeque::new(),
        queued: false,
    };
    let mut run = Run {
        parser: Parser::new(),
        roles: Vec::new(),
        lanes: (0..load.lanes).map(lane).collect(),
        readers_per_lane: u64::from(load.readers_per_lane),
        sessions,
        ready: 0,
        woken: Vec::new(),
        measured: u64::MAX..u64::MAX,
        ack: Latency::new(),
        delivery: Latency::new(),
        acked: 0,
        delivered: 0,
        acked_measured: 0,
        delivered_measured: 0,
        wrong: 0,
        errors: Vec::new(),
        error_count: 0,
    };

    let connect = connect(engine, load, &mut run)?;
    let settled = engine.now() + 300_000_000;
    while engine.now() < settled {
        engine.step(&mut run, 50_000_000);
    }

    let start = engine.now();
    let from = start + (load.warm_s * 1e9) as u64;
    let to = from + (load.measure_s * 1e9) as u64;
    run.measured = from..to;
    let mut lag = Lag::new();
    let mut readings: Vec<Reading> = Vec::new();
    let (mut sent, mut sent_measured) = (0u64, 0u64);
    (0..load.lanes).for_each(|lane| run.wake(lane));
    loop {
        let now = engine.now();
        if readings.len() < 2 && now >= if readings.is_empty() { from } else { to } {
            readings.push(Reading::take(now, load.server));
        }
        if now >= to || run.error_count > 1000 {
            break;
        }
        let mut wait = 20_000_000;
        match load.rate {
            Some(rate) => {
                let due = |n: u64| start + (n as f64 * 1e9 / rate) as u64;
                while due(sent) <= now {
                    let lane = (sent % u64::from(load.lanes)) as u32;
                    let actual = engine.now();
                    if run.measured.contains(&due(sent)) {
                        lag.record(due(sent), actual);
                        sent_measured += 1;
                    }
                    send(engine, &mut run, lane, due(sent), actual);
                    sent += 1;
                }
                wait = due(sent).saturating_sub(engine.now()).min(wait);
            }
            None => {
                while let Some(lane) = run.woken.pop() {
                    run.lanes[lane as usize].queued = false;
                    // Refilled in bursts: a trickle would decide for the server how much it may merge.
                    if run.in_flight(lane) + load.burst > load.window {
                        continue;
                    }
                    while run.in_flight(lane) < load.window {
                        send(engine, &mut run, lane, now, now);
                        sent += 1;
                        sent_measured += u64::from(run.measured.contains(&now));
                    }
                }
            }
        }
        engine.step(&mut run, wait);
    }
    if readings.len() < 2 {
        readings.resize(2, Reading::take(engine.now(), load.server));
    }

    let deadline = engine.now() + DRAIN_NS;
    let expected = sent * run.readers_per_lane;
    while (run.delivered < expected || run.acked < sent) && engine.now() < deadline && run.error_count <= 1000 {
        engine.step(&mut run, 20_000_000);
    }
    let late_from = engine.now();
    while engine.now() < late_from + 50_000_000 {
        engine.step(&mut run, 10_000_000); // anything delivered twice would come now
    }

    let (seconds, server_cores, own_cores) = readings[1].since(&readings[0]);
    let per = |n: u64| readings[1].server_ns.saturating_sub(readings[0].server_ns) as f64 / 1000.0 / n.max(1) as f64;
    let mut invalid = Vec::new();
    if lag.p99_us() > LAG_P99_US_MAX {
        invalid.push(format!("the generator lagged: p99 {:.0} µs behind its schedule", lag.p99_us()));
    }
    if run.error_count > 0 {
        invalid.push(format!("{} errors, first: {}", run.error_count, run.errors[0]));
    }
    if run.delivered != expected || run.acked != sent {
        let (delivered, acked) = (run.delivered, run.acked);
        invalid.push(format!("{sent} sent, {acked} acknowledged, {delivered} of {expected} delivered"));
    }
    Ok(json!({
        "mode": if load.rate.is_some() { "open" } else { "saturation" },
        "lanes": load.lanes,
        "readers_per_lane": load.readers_per_lane,
        "data_bytes": load.bytes,
        "window": load.window,
        "burst": load.burst,
        "offered_per_s": load.rate,
        "sent_per_s": sent_measured as f64 / seconds,
        "acked_per_s": run.acked_measured as f64 / seconds,
        "delivered_per_s": run.delivered_measured as f64 / seconds,
        "server_us_per_event": per(run.acked_measured),
        "server_us_per_delivery": per(run.delivered_measured),
        "server_cores": server_cores,
        "own_cores": own_cores,
        // True: the server could do more than this process asks of it, and the rate is a lower bound.
        "generator_full": own_cores >= OWN_CORE_FULL,
        "ack": run.ack.report(),
        "delivery": run.delivery.report(),
        "lag": lag.report(),
        "sent": sent,
        "acked": run.acked,
        "delivered": run.delivered,
        "out_of_order_or_lost": run.wrong,
        "connect_s": connect,
        "server_rss_kib": load.server.map(crate::measure::process_rss_kib),
        "valid": invalid.is_empty(),
        "invalid": invalid,
    }))
}

/// Opens readers, then publishers, and waits until all are ready. Returns the seconds it took.
fn connect(engine: &mut Engine, load: &Load, run: &mut Run) -> io::Result<f64> {
    let readers = (0..load.lanes).flat_map(|lane| (0..load.readers_per_lane).map(move |_| Role::Reader(lane, 0)));
    let wanted: Vec<Role> = readers.chain((0..load.lanes).map(Role::Publisher)).collect();
    let start = engine.now();
    while run.ready < wanted.len() {
        while run.roles.len() < wanted.len() && run.roles.len() - run.ready < load.opening_max {
            let role = wanted[run.roles.len()];
            let (lane, client) = match role {
                Role::Reader(lane, _) => (lane, String::new()),
                Role::Publisher(lane) => (lane, format!("client={}-p", run.sessions[lane as usize])),
            };
            let session = if load.placed { format!("session={}", run.sessions[lane as usize]) } else { String::new() };
            let query = [session, client].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("&");
            let connection = engine.open(format!("/v1/ws?{query}"))?;
            if let Role::Publisher(lane) = role {
                run.lanes[lane as usize].connection = connection;
            }
            run.roles.push(role);
        }
        engine.step(run, 100_000_000);
        let (ready, all) = (run.ready, wanted.len());
        if run.error_count > 0 || engine.now() - start > 60_000_000_000 {
            let first = run.errors.first().cloned().unwrap_or_else(|| "60 s are over".into());
            return Err(io::Error::other(format!("{ready} of {all} connections ready, then: {first}")));
        }
    }
    Ok((engine.now() - start) as f64 / 1e9)
}

fn send(engine: &mut Engine, run: &mut Run, lane: u32, intended: u64, actual: u64) {
    let l = &mut run.lanes[lane as usize];
    l.publisher.publish(engine.out(l.connection), l.published, intended, actual);
    l.unacknowledged.push_back((intended, actual));
    l.published += 1;
}
