//! `streams`: answers of models, token by token, each into a session of its own with two readers who keep up.
//!
//! ```text
//!   token k of all ─► stream k mod N, number k div N, due at start + k ÷ (rate × N)        a reader knows by its number when it was due
//!   stream 0: a reader joins when it has so many tokens       stream 1: a reader that takes a frame at a time, and slowly
//! ```
//! At the end every stream is closed, and every reader must have its text, byte for byte.

use super::{costs, merge};
use crate::engine::{Engine, Handler};
use crate::measure::{Lag, Latency, Reading};
use crate::websocket;
use serde_json::{Value, json};
use std::io;

/// Time between two frames that the slow reader works off.
const SLOW_EVERY_NS: u64 = 200_000_000;

/// Patience with what is still to come when all was said.
const PATIENCE_NS: u64 = 60_000_000_000;

/// What is to be done.
pub struct Streams<'a> {
    pub streams: usize,
    /// Tokens per second of each.
    pub rate: f64,
    /// Tokens of each.
    pub tokens: u64,
    /// When stream 0 has so many, a reader joins.
    pub join_at: u64,
    pub prefix: &'a str,
    pub server: Option<u32>,
}

/// Of about the length of a model's tokens, and no two neighbours the same.
fn token(number: u64) -> &'static str {
    const TOKENS: [&str; 8] = [" the", " answer", " is", ",", " because", " forty", "-two", " question"];
    TOKENS[((7 * number + number / 5) % 8) as usize]
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Producer,
    Reader,
    Joiner,
    Slow,
}

struct Seat {
    kind: Kind,
    stream: usize,
    is_ready: bool,
    next: u64,
    text: String,
    frames: u64,
    has_ended: bool,
}

struct Run<'a> {
    order: &'a Streams<'a>,
    seats: Vec<Seat>,
    /// When token 0 is due; 0: not yet.
    start: u64,
    tokens_acknowledged: u64,
    latency: Latency,
    /// Frames that told the joiner what was said before it came.
    joined_in: u64,
    /// A frame of the slow reader waits to be worked off.
    owes: bool,
    failed: Option<String>,
}

impl Run<'_> {
    fn due(&self, stream: usize, seq: u64) -> u64 {
        let k = seq as f64 * self.order.streams as f64 + stream as f64;
        self.start + (k * 1e9 / (self.order.rate * self.order.streams as f64)) as u64
    }

    fn say(&self, stream: usize, rest: &str, out: &mut Vec<u8>) {
        let text = format!(r#"{{"session":"{}-{stream}","stream":"s",{rest}}}"#, self.order.prefix);
        websocket::encode(out, websocket::TEXT, text.as_bytes());
    }

    fn take(&mut self, connection: usize, now: u64, frame: &Value) -> Option<String> {
        let order = self.order;
        let seat = &mut self.seats[connection];
        let mut hear = |from: u64, to: u64, text: &str| {
            let expected =
                if from == seat.next || (seat.kind == Kind::Joiner && seat.frames == 0) { from } else { seat.next };
            seat.next = to;
            seat.text.push_str(text);
            (from != expected).then(|| format!("stream {}: {expected} was next, {from} came", seat.stream))
        };
        let mut fault = None;
        match frame["type"].as_str() {
            Some("welcome") => seat.is_ready |= seat.kind == Kind::Producer,
            Some("subscribed") => seat.is_ready = true,
            Some("published") => self.tokens_acknowledged += 1,
            Some("event") if frame["status"].is_string() => seat.has_ended = true,
            Some("event") => {
                let seq = frame["seq"].as_u64()?;
                fault = hear(seq, seq + 1, frame["data"].as_str()?);
                seat.frames += 1;
                if seat.kind == Kind::Reader {
                    let (stream, before) = (seat.stream, now);
                    let due = self.due(stream, seq);
                    self.latency.record(due, due, before);
                }
            }
            Some("stream.delta") => {
                for part in frame["streams"].as_array()? {
                    if let Some(from) = part["from_seq"].as_u64() {
                        fault = fault.or(hear(from, part["to_seq"].as_u64()? + 1, part["delta"].as_str()?));
                    }
                    seat.has_ended |= part["status"].is_string();
                }
                seat.frames += 1;
                if seat.kind == Kind::Joiner && seat.next < order.tokens && self.joined_in == 0 {
                    self.joined_in = seat.frames;
                }
            }
            Some("gap" | "refused") | None => fault = Some(frame.to_string()),
            Some(_) => {}
        }
        self.owes |= self.seats[connection].kind == Kind::Slow;
        fault
    }

    fn has_all(&self) -> bool {
        self.seats.iter().all(|seat| seat.kind == Kind::Producer || seat.has_ended)
    }
}

impl Handler for Run<'_> {
    fn opened(&mut self, connection: usize, out: &mut Vec<u8>) {
        let Seat { kind, stream, .. } = self.seats[connection];
        if kind == Kind::Producer {
            return;
        }
        if kind == Kind::Slow {
            websocket::encode(out, websocket::TEXT, br#"{"type":"hello","credit":{"events":1}}"#);
        }
        let policy = if kind == Kind::Reader { "lossless" } else { "rollup" };
        self.say(stream, &format!(r#""type":"subscribe","id":1,"policy":"{policy}""#), out);
    }

    fn received(&mut self, connection: usize, now: u64, bytes: &[u8], _: &mut Vec<u8>) -> usize {
        let fault = match serde_json::from_slice::<Value>(bytes) {
            Ok(frame) => self.take(connection, now, &frame),
            Err(why) => Some(why.to_string()),
        };
        self.failed = self.failed.take().or(fault);
        bytes.len()
    }

    fn lost(&mut self, _: usize, why: String) {
        self.failed = Some(why);
    }
}

fn open(engine: &mut Engine, run: &mut Run<'_>, kind: Kind, stream: usize) -> io::Result<usize> {
    let connection = engine.open(format!("/v1/ws?session={}-{stream}", run.order.prefix))?;
    debug_assert_eq!(connection, run.seats.len(), "connections are numbered from 0");
    let text = String::new();
    run.seats.push(Seat { kind, stream, is_ready: false, next: 0, text, frames: 0, has_ended: false });
    Ok(connection)
}

/// Says it all, and reports.
pub fn run(engine: &mut Engine, order: &Streams<'_>) -> io::Result<Value> {
    let mut run = Run {
        order,
        seats: Vec::new(),
        start: 0,
        tokens_acknowledged: 0,
        latency: Latency::new(),
        joined_in: 0,
        owes: false,
        failed: None,
    };
    for stream in 0..order.streams {
        for kind in [Kind::Producer, Kind::Reader, Kind::Reader] {
            open(engine, &mut run, kind, stream)?;
        }
    }
    let slow = open(engine, &mut run, Kind::Slow, 1 % order.streams)?;
    let asked = engine.now();
    while !run.seats.iter().all(|seat| seat.is_ready) && run.failed.is_none() {
        engine.step(&mut run, 10_000_000);
        if engine.now() - asked > PATIENCE_NS {
            run.failed = Some("not everybody was let in".into());
        }
    }
    let before = Reading::take(engine.now(), order.server);
    run.start = engine.now() + 10_000_000;
    let (mut lag, mut k, mut worked_off, mut slow_at) = (Lag::new(), 0, 0u64, run.start);
    let (streams, all) = (order.streams as u64, order.tokens * order.streams as u64);
    let mut finished = None;
    while run.failed.is_none() && !(k == all + streams && run.has_all()) {
        let now = engine.now();
        while k < all + streams {
            let (stream, seq) = ((k % streams) as usize, k / streams);
            let due = run.due(stream, seq);
            if due > now {
                break;
            }
            let mut command = Vec::new();
            if seq < order.tokens {
                lag.record(due, now);
                run.say(
                    stream,
                    &format!(r#""type":"stream.append","id":{seq},"seq":{seq},"delta":"{}""#, token(seq)),
                    &mut command,
                );
            } else {
                run.say(stream, r#""type":"stream.close","id":1,"status":"complete""#, &mut command);
            }
            engine.out(3 * stream).extend_from_slice(&command);
            k += 1;
            if stream == 0 && seq == order.join_at {
                open(engine, &mut run, Kind::Joiner, 0)?;
            }
        }
        if run.owes && now >= slow_at {
            (worked_off, slow_at, run.owes) = (worked_off + 1, now + SLOW_EVERY_NS, false);
            let ack = format!(r#"{{"type":"ack","events":{}}}"#, run.seats[slow].frames.min(worked_off));
            websocket::encode(engine.out(slow), websocket::TEXT, ack.as_bytes());
        }
        engine.flush(&mut run);
        engine.step(&mut run, 1_000_000);
        if k == all + streams && now - *finished.get_or_insert(now) > PATIENCE_NS {
            run.failed = Some("not everybody has heard every end".into());
        }
    }
    let after = Reading::take(engine.now(), order.server);
    let text: String = (0..order.tokens).map(token).collect();
    let mut invalid: Vec<String> = run.failed.iter().cloned().collect();
    let wrong = run.seats.iter().filter(|seat| seat.kind != Kind::Producer && seat.text != text).count();
    if wrong > 0 && invalid.is_empty() {
        invalid.push(format!("{wrong} readers have another text"));
    }
    let joined = run.seats.iter().any(|seat| seat.kind == Kind::Joiner);
    let report = json!({
        "tokens": k.min(all),
        "acknowledged": run.tokens_acknowledged,
        "tokens_per_s": all as f64 / ((after.at - run.start.min(after.at)).max(1) as f64 / 1e9),
        "text_bytes": text.len() as u64 * streams,
        "delivery": run.latency.report(),
        "lag": lag.report(),
        "join_frames": joined.then_some(run.joined_in),
        "slow_frames": run.seats[slow].frames,
        "valid": invalid.is_empty(),
        "invalid": invalid,
    });
    Ok(merge(report, costs(&before, &after, order.server)))
}
