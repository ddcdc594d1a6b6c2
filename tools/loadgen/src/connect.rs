//! Workloads that only connect: `idle` (memory of a connection) and `handshake` (connections per second).
//!
//! ```text
//!   idle        open N, subscribe each to a session of its own, wait, compare resident memory
//!   handshake   open ─► upgrade ─► welcome ─► reset, again and again, at most `opening_max` under way
//! ```

use crate::engine::{Engine, Handler};
use crate::measure::{Reading, process_rss_kib};
use crate::protocol::{self, Frame, Parser};
use serde_json::{Value, json};
use std::io;

/// Time for the server to come to rest before its memory is read.
const SETTLE_NS: u64 = 3_000_000_000;

struct Run {
    parser: Parser,
    prefix: String,
    subscribe: bool,
    ready: usize,
    done: Vec<usize>,
    errors: Vec<String>,
}

impl Handler for Run {
    fn opened(&mut self, connection: usize, out: &mut Vec<u8>) {
        if self.subscribe {
            protocol::subscribe(out, &format!("{}-{connection}", self.prefix));
        }
    }

    fn frame(&mut self, connection: usize, _: u64, text: &[u8], _: &mut Vec<u8>) {
        let last = if self.subscribe { Frame::Subscribed } else { Frame::Welcome };
        match self.parser.parse(text) {
            frame if frame == last => {
                self.ready += 1;
                self.done.push(connection);
            }
            Frame::Refused(text) | Frame::Strange(text) => self.errors.push(text),
            _ => {}
        }
    }

    fn lost(&mut self, connection: usize, why: String) {
        self.errors.push(format!("connection {connection} lost: {why}"));
    }
}

impl Run {
    fn new(prefix: &str, subscribe: bool) -> Run {
        let prefix = prefix.to_string();
        Run { parser: Parser::new(), prefix, subscribe, ready: 0, done: Vec::new(), errors: Vec::new() }
    }

    fn check(&self, wanted: usize) -> io::Result<()> {
        match self.errors.first() {
            None => Ok(()),
            Some(first) => Err(io::Error::other(format!("{} of {wanted} ready, then: {first}", self.ready))),
        }
    }
}

/// Holds `count` connections and reports what each costs the server in memory.
pub fn idle(
    engine: &mut Engine,
    count: usize,
    subscribe: bool,
    opening_max: usize,
    server: Option<u32>,
    prefix: &str,
) -> io::Result<Value> {
    let mut run = Run::new(prefix, subscribe);
    let rss_before = server.map(process_rss_kib);
    let before = Reading::take(engine.now(), server);
    while run.ready < count {
        while engine.len() < count && engine.len() - run.ready < opening_max {
            let number = engine.len();
            engine.open(format!("/v1/ws?session={prefix}-{number}"))?;
        }
        engine.step(&mut run, 100_000_000);
        run.check(count)?;
        if engine.now() - before.at > 60_000_000_000 {
            return Err(io::Error::other(format!("{} of {count} ready after 60 s", run.ready)));
        }
    }
    let connected = Reading::take(engine.now(), server);
    let settled = engine.now() + SETTLE_NS;
    while engine.now() < settled {
        engine.step(&mut run, 100_000_000);
    }
    run.check(count)?;
    let rested = Reading::take(engine.now(), server);
    let (seconds, server_cores, own_cores) = connected.since(&before);
    let (_, idle_cores, _) = rested.since(&connected);
    let rss = server.map(process_rss_kib);
    let growth = rss.zip(rss_before).map(|(after, before)| (after as f64 - before as f64) / count as f64);
    Ok(json!({
        "connections": count,
        "subscribed": subscribe,
        "connects_per_s": count as f64 / seconds,
        "server_us_per_connect": server_cores * seconds * 1e6 / count as f64,
        "rss_kib_per_connection": growth,
        "rss_before_kib": rss_before,
        "rss_after_kib": rss,
        "idle_server_cores": idle_cores,
        "own_cores": own_cores,
        "valid": true,
    }))
}

/// Opens and resets connections for `seconds`.
pub fn handshake(
    engine: &mut Engine,
    seconds: f64,
    opening_max: usize,
    server: Option<u32>,
    prefix: &str,
) -> io::Result<Value> {
    let mut run = Run::new(prefix, false);
    let before = Reading::take(engine.now(), server);
    let end = before.at + (seconds * 1e9) as u64;
    while engine.now() < end {
        while engine.len() - run.ready < opening_max {
            engine.open("/v1/ws".into())?;
        }
        engine.step(&mut run, 50_000_000);
        for connection in std::mem::take(&mut run.done) {
            engine.close(connection);
        }
        run.check(engine.len())?;
    }
    let after = Reading::take(engine.now(), server);
    let (seconds, server_cores, own_cores) = after.since(&before);
    Ok(json!({
        "connects_per_s": run.ready as f64 / seconds,
        "server_us_per_connect": server_cores * seconds * 1e6 / run.ready.max(1) as f64,
        "server_cores": server_cores,
        "own_cores": own_cores,
        "generator_full": own_cores >= 0.95,
        "connects": run.ready,
        "valid": true,
    }))
}
