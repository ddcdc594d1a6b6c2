//! `crowd`: many clients with a session, a subscription and an event now and then, that all go at once and come back.
//!
//! ```text
//!   client i   reads session i, publishes into session i + 1: what is published while a reader is away is what it must not lose
//!
//!   stdin    go ───────────────► cut ────────────────────────────────── on ──────► end
//!   stdout   {connected} … {calm}      {live, after so many seconds}                    the report
//!            window "calm"             window "storm" (of those who stay), to the end
//! ```
//! Who was cut sends again under the same message ids what it had no acknowledgement for; some publish as soon as they are back, when
//! others are still away; the schedule goes on with `on`. Each reader checks that every event comes once and in order. Refused clients
//! come back when they were told to, lost ones after a moment.

use super::{costs, merge};
use crate::engine::{Engine, Handler};
use crate::measure::{Lag, Latency, Reading};
use crate::peer::life::{self, Heard};
use crate::stamp::Stamp;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::io::{self, Write as _};
use std::sync::mpsc;

/// Shape of the load.
pub struct Crowd<'a> {
    pub clients: usize,
    pub interval_s: f64,
    pub measure_s: f64,
    pub bytes: usize,
    /// Stay on `cut`.
    pub survive: bool,
    /// Show the token with the upgrade.
    pub shown: bool,
    /// Nobody resumes: connect and subscribe, each time.
    pub strangers: bool,
    /// Upgrades under way at once, the first time; after `cut` all come at once.
    pub opening_max: usize,
    pub prefix: &'a str,
}

/// A process whose own sends are this late cannot speak about latency.
const LAG_P99_US_MAX: f64 = 5_000.0;
/// The first connecting, and coming back, take at most this.
const CONNECT_NS_MAX: u64 = 120_000_000_000;
/// After `end`, deliveries get this long.
const DRAIN_NS: u64 = 20_000_000_000;
/// Of so many clients one publishes as soon as it is back.
const EARLY: usize = 16;
/// Connections begun between two looks at what has come.
const OPENS_PER_STEP: usize = 64;
/// A lost connection is opened again within this time, each at its own moment.
const REOPEN_NS: u64 = 500_000_000;
/// Refused clients add up to this to what they were told, each its own part.
const RETRY_SPREAD_NS: u64 = 1_000_000_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Away,
    Opening,
    Greeting,
    Live,
}

struct Client {
    connection: usize,
    stage: Stage,
    token: Option<Box<str>>,
    /// Its life has the subscription.
    subscribed: bool,
    /// Id of the last event that was seen.
    seen: String,
    /// Number of the event that must come next.
    next: u32,
    published: u32,
    /// (number, intended, actual) of events without an acknowledgement, oldest first.
    unacknowledged: VecDeque<(u32, u64, u64)>,
    /// Intended times of events that fell due while it was away, or while another one was under way.
    due: VecDeque<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Later {
    Open,
    Resume,
    Publish(u32),
}

#[derive(Default)]
struct Counts {
    sent: u64,
    acknowledged: u64,
    delivered: u64,
    repeated: u64,
    sent_again: u64,
    duplicate_replies: u64,
    /// Upgrades answered 503.
    refused: u64,
    /// Commands refused for a while, by name.
    refusals: BTreeMap<String, u64>,
    lost_connections: u64,
    /// Why they were lost, as the system says it.
    lost_why: BTreeMap<String, u64>,
    opened: u64,
    wrong: u64,
}

struct Run<'a> {
    crowd: &'a Crowd<'a>,
    clients: Vec<Client>,
    /// Client of each connection, by number.
    owners: Vec<u32>,
    live: usize,
    /// What is to be done with a client, when.
    later: BinaryHeap<Reverse<(u64, u32, Later)>>,
    now: u64,
    calm_window: std::ops::Range<u64>,
    storm_window: std::ops::Range<u64>,
    calm: Latency,
    storm: Latency,
    /// When each client was live again, ns after the cut.
    back: Vec<u64>,
    counts: Counts,
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

    /// The owner, where the connection is still its present one.
    fn owner(&self, connection: usize) -> Option<usize> {
        let client = self.owners[connection] as usize;
        let c = &self.clients[client];
        (c.connection == connection && c.stage != Stage::Away).then_some(client)
    }

    fn open(&mut self, engine: &mut Engine, client: usize) -> io::Result<()> {
        let Crowd { prefix, shown, strangers, .. } = *self.crowd;
        let c = &mut self.clients[client];
        let token = c.token.clone().filter(|_| shown && !strangers);
        c.connection =
            engine.open_with(format!("/v1/ws?session={prefix}-{client}&client={prefix}-c{client}"), token)?;
        c.stage = Stage::Opening;
        self.owners.push(client as u32);
        self.counts.opened += 1;
        Ok(())
    }

    /// Not live any more; comes back at `at`.
    fn away(&mut self, client: usize, at: u64) {
        let c = &mut self.clients[client];
        self.live -= usize::from(c.stage == Stage::Live);
        c.stage = Stage::Away;
        self.later.push(Reverse((at, client as u32, Later::Open)));
    }

    fn greet(&mut self, client: usize, out: &mut Vec<u8>) {
        let c = &mut self.clients[client];
        c.stage = Stage::Greeting;
        if self.crowd.strangers {
            life::subscribe(out, &self.session(client), self.clients[client].next);
        } else {
            life::resume(out, c.token.as_deref(), Some(c.seen.as_str()).filter(|seen| !seen.is_empty()));
        }
    }

    fn session(&self, client: usize) -> String {
        format!("{}-{client}", self.crowd.prefix)
    }

    /// Everything stands: what was not acknowledged goes out again, then what fell due.
    fn is_live(&mut self, client: usize, out: &mut Vec<u8>) {
        self.clients[client].stage = Stage::Live;
        self.live += 1;
        if self.storm_window.start <= self.now {
            self.back.push(self.now - self.storm_window.start);
        }
        let again: Vec<_> = self.clients[client].unacknowledged.iter().copied().collect();
        self.counts.sent_again += again.len() as u64;
        for (number, intended, actual) in again {
            self.write(client, Stamp { intended, actual, lane: client as u32, number }, out);
        }
        if self.storm_window.start <= self.now && client.is_multiple_of(EARLY) {
            self.clients[client].due.push_back(self.now);
        }
        self.publish_due(client, out);
    }

    /// The next event that is due, if none is under way: one that is refused and sent again must not be overtaken.
    fn publish_due(&mut self, client: usize, out: &mut Vec<u8>) {
        let c = &mut self.clients[client];
        if !c.unacknowledged.is_empty() {
            return;
        }
        let Some(intended) = c.due.pop_front() else { return };
        let stamp = Stamp { intended, actual: self.now, lane: client as u32, number: c.published };
        c.published += 1;
        self.counts.sent += 1;
        c.unacknowledged.push_back((stamp.number, intended, self.now));
        self.write(client, stamp, out);
    }

    fn write(&self, client: usize, stamp: Stamp, out: &mut Vec<u8>) {
        life::publish(out, &self.session((client + 1) % self.clients.len()), &stamp, self.crowd.bytes);
    }

    fn event(&mut self, client: usize, now: u64, stamp: Stamp, id: &str) {
        let writer = (client + self.clients.len() - 1) % self.clients.len();
        let c = &mut self.clients[client];
        if stamp.lane as usize != writer || stamp.number != c.next {
            let next = c.next;
            self.counts.repeated += u64::from(stamp.number < next);
            self.counts.wrong += 1;
            return self.error(format!("client {client} expected event {next} of {writer}, saw {stamp:?}"));
        }
        c.next += 1;
        c.seen.clear();
        c.seen.push_str(id);
        self.counts.delivered += 1;
        if self.calm_window.contains(&stamp.intended) {
            self.calm.record(stamp.intended, stamp.actual, now);
        } else if self.storm_window.contains(&stamp.intended) {
            self.storm.record(stamp.intended, stamp.actual, now);
        }
    }

    fn hear(&mut self, client: usize, heard: Heard<'_>, text: &[u8], out: &mut Vec<u8>) {
        let (now, stage) = (self.now, self.clients[client].stage);
        match (heard, stage) {
            (Heard::Event { stamp, id }, _) => self.event(client, now, stamp, id),
            (Heard::Welcome, Stage::Opening) => self.greet(client, out),
            (Heard::Resumed { token }, Stage::Greeting) => {
                self.clients[client].token = Some(token.into());
                if self.clients[client].subscribed {
                    self.is_live(client, out);
                } else {
                    life::subscribe(out, &self.session(client), 0);
                }
            }
            (Heard::Subscribed, Stage::Greeting) => {
                self.clients[client].subscribed = true;
                self.is_live(client, out);
            }
            (Heard::Published { number, duplicate }, Stage::Live) => {
                let waiting = &mut self.clients[client].unacknowledged;
                if waiting.front().is_some_and(|oldest| oldest.0 == number) {
                    waiting.pop_front();
                } else if let Some(at) = waiting.iter().position(|waiting| waiting.0 == number) {
                    waiting.remove(at);
                } else {
                    return self.error(format!("client {client} did not wait for acknowledgement {number}"));
                }
                self.counts.acknowledged += 1;
                self.counts.duplicate_replies += u64::from(duplicate);
                self.publish_due(client, out);
            }
            (Heard::Refused { id, again_ms: Some(ms) }, _) => {
                let what = if id >= life::RESUME { Later::Resume } else { Later::Publish(id as u32) };
                let frame = serde_json::from_slice::<Value>(text).unwrap_or_default();
                *self.counts.refusals.entry(frame["refusal"].as_str().unwrap_or_default().into()).or_default() += 1;
                self.later.push(Reverse((now + ms * 1_000_000, client as u32, what)));
            }
            (Heard::Other, _) => {}
            _ => self.error(format!("client {client}, {stage:?}: {}", String::from_utf8_lossy(text))),
        }
    }

    /// Does what is due. Returns when to look again, at the latest.
    fn catch_up(&mut self, engine: &mut Engine) -> io::Result<u64> {
        let mut opened = 0;
        while let Some(Reverse((at, client, what))) = self.later.peek().copied() {
            if at > self.now || opened >= OPENS_PER_STEP {
                return Ok(at);
            }
            self.later.pop();
            let number = client as usize;
            let (stage, connection) = (self.clients[number].stage, self.clients[number].connection);
            match (what, stage) {
                (Later::Open, Stage::Away) => {
                    opened += 1;
                    self.open(engine, number)?;
                }
                (Later::Resume, Stage::Greeting) => self.greet(number, engine.out(connection)),
                (Later::Publish(event), Stage::Live) => {
                    let waiting = self.clients[number].unacknowledged.iter().find(|waiting| waiting.0 == event);
                    if let Some((number, intended, actual)) = waiting.copied() {
                        self.write(
                            client as usize,
                            Stamp { intended, actual, lane: client, number },
                            engine.out(connection),
                        );
                    }
                }
                // It has gone meanwhile: coming back does the same.
                _ => {}
            }
        }
        Ok(self.now + 20_000_000)
    }
}

impl Handler for Run<'_> {
    fn opened(&mut self, _: usize, _: &mut Vec<u8>) {}

    fn received(&mut self, connection: usize, now: u64, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        self.now = now;
        if let Some(client) = self.owner(connection) {
            self.hear(client, life::heard(bytes), bytes, out);
        }
        bytes.len()
    }

    fn refused(&mut self, connection: usize, head: &str) {
        let Some(client) = self.owner(connection) else { return };
        let after = head.lines().find_map(|line| line.strip_prefix("Retry-After: ")?.trim().parse::<u64>().ok());
        match after.filter(|_| head.starts_with("HTTP/1.1 503")) {
            Some(seconds) => {
                self.counts.refused += 1;
                let at = self.now + seconds * 1_000_000_000 + moment(client, self.counts.opened, RETRY_SPREAD_NS);
                self.away(client, at);
            }
            None => self.error(format!("client {client}: {}", head.lines().next().unwrap_or_default())),
        }
    }

    fn lost(&mut self, connection: usize, why: String) {
        let Some(client) = self.owner(connection) else { return };
        self.counts.lost_connections += 1;
        *self.counts.lost_why.entry(format!("{:?}: {why}", self.clients[client].stage)).or_default() += 1;
        if self.clients[client].stage == Stage::Live || self.counts.lost_connections > 10 * self.clients.len() as u64 {
            self.error(format!("client {client} lost its connection: {why}"));
        }
        let at = self.now + moment(client, self.counts.opened, REOPEN_NS);
        self.away(client, at);
    }
}

/// A number below `below`, another one for each client and occasion.
fn moment(client: usize, occasion: u64, below: u64) -> u64 {
    let mut x = (client as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ occasion;
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (x ^ x >> 31) % below
}

/// Lines of stdin as they come; its end is an `end`.
fn words() -> mpsc::Receiver<String> {
    let (say, words) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        while matches!(io::stdin().read_line(&mut line), Ok(n) if n > 0) {
            if say.send(line.trim().to_owned()).is_err() {
                return;
            }
            line.clear();
        }
        // Nobody may be there to hear it.
        let _ = say.send("end".into());
    });
    words
}

fn tell(what: &Value) -> io::Result<()> {
    println!("{what}");
    io::stdout().flush()
}

/// Runs the crowd and reports it.
pub fn run(engine: &mut Engine, crowd: &Crowd) -> io::Result<Value> {
    let client = |_| Client {
        connection: 0,
        stage: Stage::Away,
        token: None,
        subscribed: false,
        seen: String::new(),
        next: 0,
        published: 0,
        unacknowledged: VecDeque::new(),
        due: VecDeque::new(),
    };
    let mut run = Run {
        crowd,
        clients: (0..crowd.clients).map(client).collect(),
        owners: Vec::new(),
        live: 0,
        later: BinaryHeap::new(),
        now: engine.now(),
        calm_window: u64::MAX..u64::MAX,
        storm_window: u64::MAX..u64::MAX,
        calm: Latency::new(),
        storm: Latency::new(),
        back: Vec::new(),
        counts: Counts::default(),
        errors: Vec::new(),
        error_count: 0,
    };
    let began = engine.now();
    let mut started = 0;
    while run.live < crowd.clients {
        while started < crowd.clients && started - run.live.min(started) < crowd.opening_max {
            run.open(engine, started)?;
            started += 1;
        }
        step(engine, &mut run, 100_000_000)?;
        if run.error_count > 0 || engine.now() - began > CONNECT_NS_MAX {
            let first = run.errors.first().cloned().unwrap_or_else(|| "time is up".into());
            return Err(io::Error::other(format!("{} of {} clients live, then: {first}", run.live, crowd.clients)));
        }
    }
    let connected = Reading::take(engine.now(), None);
    tell(&json!({ "connected": crowd.clients, "seconds": (connected.at - began) as f64 / 1e9 }))?;
    let mut report = follow(engine, &mut run)?;
    report["connect_s"] = ((connected.at - began) as f64 / 1e9).into();
    Ok(merge(report, costs(&connected, &Reading::take(engine.now(), None), None)))
}

fn step(engine: &mut Engine, run: &mut Run, wait_ns: u64) -> io::Result<()> {
    run.now = engine.now();
    let next = run.catch_up(engine)?;
    let wait = next.saturating_sub(run.now).min(wait_ns);
    engine.step(run, wait);
    Ok(())
}

/// Does what stdin says.
fn follow(engine: &mut Engine, run: &mut Run) -> io::Result<Value> {
    let (words, clients) = (words(), run.clients.len());
    let mut lag = Lag::new();
    let every_ns = run.crowd.interval_s * 1e9 / clients as f64;
    let (mut start, mut scheduled, mut paused) = (u64::MAX, 0u64, None);
    let (mut told_calm, mut told_live) = (false, false);
    loop {
        run.now = engine.now();
        match words.try_recv().as_deref() {
            Ok("go") if start == u64::MAX => {
                start = run.now;
                run.calm_window = start..start + (run.crowd.measure_s * 1e9) as u64;
            }
            Ok("cut") if run.storm_window.start == u64::MAX => {
                run.calm_window.end = run.calm_window.end.min(run.now);
                run.storm_window = run.now..u64::MAX;
                told_live = run.crowd.survive;
                if !run.crowd.survive {
                    paused = Some(run.now);
                    for client in 0..clients {
                        engine.close(run.clients[client].connection);
                        run.away(client, run.now);
                    }
                }
            }
            Ok("on") => start += paused.take().map_or(0, |since| run.now - since),
            Ok("end") => break,
            Ok(other) => run.error(format!("told {other:?} at the wrong time")),
            Err(_) => {}
        }
        let due = |n: u64| start.saturating_add((n as f64 * every_ns) as u64);
        while start < u64::MAX && paused.is_none() && due(scheduled) <= run.now {
            let (client, intended) = ((scheduled % clients as u64) as usize, due(scheduled));
            lag.record(intended, run.now);
            run.clients[client].due.push_back(intended);
            if run.clients[client].stage == Stage::Live {
                let connection = run.clients[client].connection;
                run.publish_due(client, engine.out(connection));
            }
            scheduled += 1;
        }
        if !told_calm && run.now >= run.calm_window.end {
            told_calm = true;
            tell(&json!({ "calm": true }))?;
        }
        if run.storm_window.start < u64::MAX && !told_live && run.live == clients {
            told_live = true;
            tell(&json!({ "live": clients, "seconds": (run.now - run.storm_window.start) as f64 / 1e9 }))?;
        }
        if !told_live && run.now.saturating_sub(run.storm_window.start) > CONNECT_NS_MAX {
            run.error(format!("{} of {clients} are not back", clients - run.live));
            break;
        }
        let idle = start == u64::MAX || paused.is_some();
        let wait = if idle { 20_000_000 } else { due(scheduled).saturating_sub(run.now) };
        step(engine, run, wait.min(5_000_000))?;
    }
    drain(engine, run)?;
    Ok(report(run, &lag))
}

/// Until everything that was sent has been acknowledged and seen, and a moment longer: anything twice would come now.
fn drain(engine: &mut Engine, run: &mut Run) -> io::Result<()> {
    run.storm_window.end = engine.now();
    let deadline = engine.now() + DRAIN_NS;
    while engine.now() < deadline
        && (run.live < run.clients.len()
            || run.counts.delivered < run.counts.sent
            || run.counts.acknowledged < run.counts.sent)
    {
        step(engine, run, 20_000_000)?;
    }
    let late = engine.now() + 300_000_000;
    while engine.now() < late {
        step(engine, run, 20_000_000)?;
    }
    Ok(())
}

fn report(run: &mut Run, lag: &Lag) -> Value {
    let mut invalid = Vec::new();
    if lag.p99_us() > LAG_P99_US_MAX {
        invalid.push(format!("the generator lagged: p99 {:.0} µs behind its schedule", lag.p99_us()));
    }
    if run.error_count > 0 {
        invalid.push(format!("{} errors, first: {}", run.error_count, run.errors[0]));
    }
    let Counts { sent, delivered, acknowledged, .. } = run.counts;
    if delivered != sent || acknowledged != sent {
        invalid.push(format!("{sent} sent, {acknowledged} acknowledged, {delivered} delivered"));
    }
    run.back.sort_unstable();
    let back = |q: f64| {
        let at = ((run.back.len() as f64 * q) as usize).min(run.back.len().saturating_sub(1));
        run.back.get(at).map(|ns| *ns as f64 / 1e9)
    };
    json!({
        "clients": run.clients.len(),
        "interval_s": run.crowd.interval_s,
        "resumes": !run.crowd.strangers,
        "shown": run.crowd.shown,
        "calm": run.calm.report(),
        "storm": run.storm.report(),
        "back_p50_s": back(0.5),
        "back_p99_s": back(0.99),
        "back_all_s": back(1.0),
        "opened": run.counts.opened,
        "refused": run.counts.refused,
        "refusals": run.counts.refusals,
        "lost_connections": run.counts.lost_connections,
        "lost_why": run.counts.lost_why,
        "sent": sent,
        "acknowledged": acknowledged,
        "delivered": delivered,
        "lost": sent.saturating_sub(delivered),
        "repeated": run.counts.repeated,
        "out_of_order": run.counts.wrong,
        "sent_again": run.counts.sent_again,
        "duplicate_replies": run.counts.duplicate_replies,
        "lag": lag.report(),
        "valid": invalid.is_empty(),
        "invalid": invalid,
    })
}
