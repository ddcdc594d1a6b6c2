//! Workloads that publish: `chat` (many sessions, one reader each), `fanout` (one session, many readers), and, without readers,
//! `lone` (one client's round trip), `fill` (a log of a given size) and `sessions` (publishers that serve many sessions each).
//!
//! ```text
//!   chat      p0 ─► session 0 ─► r0          fanout    p0 ─► session 0 ─┬─► r0
//!             p1 ─► session 1 ─► r1                                     ├─► r1
//!             …     lanes = sessions                                    └─► …     one lane
//! ```
//! Open loop (`--rate`): event n leaves at start + n / rate whatever the server does, and its latency counts from then.
//! Saturation (no rate): a lane has at most `window` events between sending and (acknowledged and seen by every reader), and
//! is refilled in bursts of `burst`.

use super::placing::places;
use super::{costs, merge};
use crate::engine::{Engine, Handler};
use crate::measure::{Lag, Latency, Reading};
use crate::peer::{Link, Note, Peer, Publish, Role};
use crate::stamp::Stamp;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, Write as _};

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
    /// Stop after so many events instead of after `measure_s`.
    pub events: Option<u64>,
    pub spreading: Spreading,
    /// Name the session in the URL, so that connections live on its shard.
    pub placed: bool,
    /// Share of lanes whose connections live on another shard than their session.
    pub cross: f64,
    /// When everything is connected, say so on stdout and wait for a line on stdin.
    pub hold: bool,
    pub server: Option<u32>,
    /// Upgrades under way at once.
    pub opening_max: usize,
}

/// Which session an event of a lane goes to.
#[derive(Clone, Copy, PartialEq)]
pub enum Spreading {
    /// The lane's own.
    Own,
    /// The lane's own, but every so manieth event into one session of all lanes.
    Hot(u32),
    /// Each of so many sessions of the lane in turn.
    InTurn(u32),
    /// One of so many sessions of the lane, any.
    Any(u32),
}

impl Spreading {
    /// Writes the session of event `number` into `name`, which holds the lane's own.
    fn choose(self, name: &mut String, lane: u32, number: u32, prefix: &str) {
        let k = match self {
            Spreading::Own => return,
            Spreading::Hot(every) => {
                if number.is_multiple_of(every) {
                    name.clear();
                    name.push_str(prefix);
                    name.push_str("-hot");
                }
                return;
            }
            Spreading::InTurn(sessions) => number % sessions,
            Spreading::Any(sessions) => {
                // The finalizer of splitmix64: equal runs choose alike.
                let mut x = u64::from(lane) << 32 | u64::from(number);
                x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
                ((x ^ x >> 31) % u64::from(sessions)) as u32
            }
        };
        // A String takes every write.
        let _infallible = write!(name, "-{k}");
    }
}

/// A publisher whose own sends are this late cannot speak about latency.
const LAG_P99_US_MAX: f64 = 1_000.0;
/// After the last send, deliveries get this long.
const DRAIN_NS: u64 = 10_000_000_000;

struct Lane {
    connection: usize,
    published: u32,
    acknowledged: u32,
    delivered: u64,
    /// (number, intended, actual) of events that wait for their acknowledgement, oldest first.
    unacknowledged: VecDeque<(u32, u64, u64)>,
    queued: bool,
}

struct Run<'a> {
    peer: &'a mut dyn Peer,
    acknowledges: bool,
    spreading: Spreading,
    prefix: &'a str,
    /// Connections of this load begin with this one.
    first: usize,
    links: Vec<Link>,
    /// For each connection, the number of the next event that it must see.
    next: Vec<u32>,
    lanes: Vec<Lane>,
    sessions: Vec<String>,
    readers_per_lane: u64,
    ready: usize,
    /// Lanes that may have room in their window.
    woken: Vec<u32>,
    /// Empty between two messages.
    notes: Vec<Note>,
    name: String,
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

impl Run<'_> {
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
        let acknowledged = if self.acknowledges { l.acknowledged } else { u32::MAX };
        let seen = l.delivered.checked_div(self.readers_per_lane).map_or(u32::MAX, |seen| seen as u32);
        l.published - acknowledged.min(seen)
    }
}

impl Run<'_> {
    fn note(&mut self, at: usize, now: u64, note: Note) {
        match (note, self.links[at].role) {
            (Note::Event(stamp), Role::Reader(lane)) => {
                let next = self.next[at];
                if stamp.lane != lane || stamp.number != next {
                    self.wrong += 1;
                    self.error(format!("reader of lane {lane} expected event {next}, saw {stamp:?}"));
                }
                self.next[at] = stamp.number.wrapping_add(1).max(next);
                self.delivered += 1;
                self.delivered_measured += u64::from(self.measured.contains(&now));
                if self.measured.contains(&stamp.intended) {
                    self.delivery.record(stamp.intended, stamp.actual, now);
                }
                self.lanes[lane as usize].delivered += 1;
                self.wake(lane);
            }
            (Note::Acknowledged(number), Role::Publisher(lane)) => {
                let l = &mut self.lanes[lane as usize];
                // Replies come in any order; in practice it is the oldest.
                let at = l.unacknowledged.iter().position(|waiting| waiting.0 == number);
                let Some((_, intended, actual)) = at.and_then(|at| l.unacknowledged.remove(at)) else {
                    return self.error(format!("lane {lane} did not wait for acknowledgement {number}"));
                };
                l.acknowledged += 1;
                self.acked += 1;
                self.acked_measured += u64::from(self.measured.contains(&now));
                if self.measured.contains(&intended) {
                    self.ack.record(intended, actual, now);
                }
                self.wake(lane);
            }
            (Note::Ready { .. }, _) => self.ready += 1,
            (Note::Error(why), _) => self.error(why),
            (note, role) => self.error(format!("{role:?} heard {note:?}")),
        }
    }
}

impl Handler for Run<'_> {
    fn opened(&mut self, connection: usize, out: &mut Vec<u8>) {
        if self.peer.opened(&mut self.links[connection - self.first], out) {
            self.ready += 1;
        }
    }

    fn received(&mut self, connection: usize, now: u64, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        let at = connection - self.first;
        let mut notes = std::mem::take(&mut self.notes);
        let taken = self.peer.receive(&mut self.links[at], bytes, out, &mut |note| notes.push(note));
        notes.drain(..).for_each(|note| self.note(at, now, note));
        self.notes = notes;
        taken
    }

    fn lost(&mut self, connection: usize, why: String) {
        self.error(format!("connection {connection} lost: {why}"));
    }
}

/// Runs the load and reports it.
pub fn run(engine: &mut Engine, peer: &mut dyn Peer, load: &Load, prefix: &str) -> io::Result<Value> {
    let sessions: Vec<String> = (0..load.lanes).map(|lane| format!("{prefix}-{lane}")).collect();
    peer.prepare(&sessions)?;
    let (places, crossing) = places(engine, peer, &sessions, load.cross)?;
    let lane = || Lane {
        connection: 0,
        published: 0,
        acknowledged: 0,
        delivered: 0,
        unacknowledged: VecDeque::new(),
        queued: false,
    };
    let mut run = Run {
        acknowledges: peer.acknowledges(),
        peer,
        spreading: load.spreading,
        prefix,
        first: engine.len(),
        links: Vec::new(),
        next: Vec::new(),
        lanes: (0..load.lanes).map(|_| lane()).collect(),
        readers_per_lane: u64::from(load.readers_per_lane),
        sessions,
        ready: 0,
        woken: Vec::new(),
        notes: Vec::new(),
        name: String::new(),
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

    let connect = connect(engine, load, &places, &mut run)?;
    if load.hold {
        println!("{}", json!({ "connected": run.links.len() }));
        io::stdout().flush()?;
        io::stdin().read_line(&mut String::new())?;
    }
    let settled = engine.now() + 300_000_000;
    while engine.now() < settled {
        engine.step(&mut run, 50_000_000);
    }

    engine.set_punctual(load.rate.is_some());
    let start = engine.now();
    let from = start + (load.warm_s * 1e9) as u64;
    let to = if load.events.is_some() { u64::MAX } else { from + (load.measure_s * 1e9) as u64 };
    let events_max = load.events.unwrap_or(u64::MAX);
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
        if now >= to || run.error_count > 1000 || sent >= events_max {
            break;
        }
        let mut wait = 20_000_000;
        match load.rate {
            Some(rate) => {
                let due = |n: u64| start + (n as f64 * 1e9 / rate) as u64;
                while due(sent) <= now && sent < events_max {
                    let lane = (sent % u64::from(load.lanes)) as u32;
                    let actual = engine.now();
                    if run.measured.contains(&due(sent)) {
                        lag.record(due(sent), actual);
                        sent_measured += 1;
                    }
                    send(engine, &mut run, load, lane, due(sent), actual);
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
                    while run.in_flight(lane) < load.window && sent < events_max {
                        send(engine, &mut run, load, lane, now, now);
                        sent += 1;
                        sent_measured += u64::from(run.measured.contains(&now));
                    }
                }
            }
        }
        engine.step(&mut run, wait);
    }
    if load.events.is_none() && readings.len() < 2 {
        readings.resize(2, Reading::take(engine.now(), load.server));
    }

    let deadline = engine.now() + DRAIN_NS;
    let expected = sent * run.readers_per_lane;
    let acks_expected = if run.acknowledges { sent } else { 0 };
    while (run.delivered < expected || run.acked < acks_expected) && engine.now() < deadline && run.error_count <= 1000
    {
        engine.step(&mut run, 20_000_000);
    }
    readings.resize_with(2, || Reading::take(engine.now(), load.server));
    let late_from = engine.now();
    while engine.now() < late_from + 50_000_000 {
        engine.step(&mut run, 10_000_000); // anything delivered twice would come now
    }

    let (seconds, _, _) = readings[1].since(&readings[0]);
    let per = |n: u64| readings[1].server_ns.saturating_sub(readings[0].server_ns) as f64 / 1000.0 / n.max(1) as f64;
    let mut invalid = Vec::new();
    if lag.p99_us() > LAG_P99_US_MAX {
        invalid.push(format!("the generator lagged: p99 {:.0} µs behind its schedule", lag.p99_us()));
    }
    if run.error_count > 0 {
        invalid.push(format!("{} errors, first: {}", run.error_count, run.errors[0]));
    }
    if run.delivered != expected || run.acked != acks_expected {
        let (delivered, acked) = (run.delivered, run.acked);
        invalid.push(format!("{sent} sent, {acked} acknowledged, {delivered} of {expected} delivered"));
    }
    let report = json!({
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
        "ack": run.ack.report(),
        "delivery": run.delivery.report(),
        "lag": lag.report(),
        "sent": sent,
        "acked": run.acked,
        "delivered": run.delivered,
        "lost": (sent * run.readers_per_lane).saturating_sub(run.delivered),
        "out_of_order": run.wrong,
        "lanes_crossing": crossing,
        "hot_events": match load.spreading {
            Spreading::Hot(every) => run.lanes.iter().map(|lane| u64::from(lane.published.div_ceil(every))).sum(),
            _ => 0,
        },
        "connect_s": connect,
        "valid": invalid.is_empty(),
        "invalid": invalid,
    });
    Ok(merge(report, costs(&readings[0], &readings[1], load.server)))
}

/// Opens readers, then publishers, and waits until all are ready. Returns the seconds it took.
fn connect(engine: &mut Engine, load: &Load, places: &[String], run: &mut Run) -> io::Result<f64> {
    let readers = (0..load.lanes).flat_map(|lane| (0..load.readers_per_lane).map(move |_| Role::Reader(lane)));
    let wanted: Vec<Role> = readers.chain((0..load.lanes).map(Role::Publisher)).collect();
    let start = engine.now();
    while run.ready < wanted.len() {
        while run.links.len() < wanted.len() && run.links.len() - run.ready < load.opening_max {
            let role = wanted[run.links.len()];
            let (Role::Reader(lane) | Role::Publisher(lane)) = role else { continue };
            let link = Link::new(role, &run.sessions[lane as usize]);
            let place = if load.placed { places[lane as usize].as_str() } else { "" };
            engine.in_the_name_of(lane as usize);
            let connection = engine.open(run.peer.path(&link, place))?;
            if matches!(role, Role::Publisher(_)) {
                run.lanes[lane as usize].connection = connection;
            }
            run.links.push(link);
            run.next.push(0);
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

fn send(engine: &mut Engine, run: &mut Run, load: &Load, lane: u32, intended: u64, actual: u64) {
    let l = &mut run.lanes[lane as usize];
    let number = l.published;
    run.name.clear();
    run.name.push_str(&run.sessions[lane as usize]);
    run.spreading.choose(&mut run.name, lane, number, run.prefix);
    let stamp = Stamp { intended, actual, lane, number };
    let publish = Publish { session: &run.name, stamp, bytes: load.bytes };
    run.peer.publish(&mut run.links[l.connection - run.first], &publish, engine.out(l.connection));
    if run.acknowledges {
        l.unacknowledged.push_back((number, intended, actual));
    }
    l.published += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_go_where_the_spreading_says() {
        let chosen = |spreading: Spreading, number| {
            let mut name = "p-3".to_string();
            spreading.choose(&mut name, 3, number, "p");
            name
        };
        assert_eq!(chosen(Spreading::Own, 9), "p-3");
        assert_eq!([5, 6].map(|n| chosen(Spreading::Hot(5), n)), ["p-hot", "p-3"]);
        assert_eq!([0, 5, 9].map(|n| chosen(Spreading::InTurn(5), n)), ["p-3-0", "p-3-0", "p-3-4"]);
        let seen: std::collections::BTreeSet<String> = (0..1000).map(|n| chosen(Spreading::Any(50), n)).collect();
        assert_eq!(seen.len(), 50);
    }
}
