//! Workloads that only connect: `idle` (memory of a connection) and `handshake` (connections per second).
//!
//! ```text
//!   idle        open N, subscribe each to a session of its own, wait, compare resident memory
//!   handshake   open ─► upgrade ─► ready ─► reset, again and again, at most `opening_max` under way
//! ```

use super::{costs, merge};
use crate::engine::{Engine, Handler};
use crate::measure::{Reading, process_rss_kib};
use crate::peer::{Link, Note, Peer, Role};
use serde_json::{Value, json};
use std::io;

/// Connections that are opened.
pub struct Door<'a> {
    pub peer: &'a mut dyn Peer,
    /// Each subscribes to a session of its own.
    pub subscribe: bool,
    /// Upgrades under way at once.
    pub opening_max: usize,
    pub server: Option<u32>,
    pub prefix: &'a str,
}

struct Run<'a> {
    door: Door<'a>,
    links: Vec<Link>,
    ready: usize,
    done: Vec<usize>,
    errors: Vec<String>,
}

impl Handler for Run<'_> {
    fn opened(&mut self, connection: usize, out: &mut Vec<u8>) {
        if self.door.peer.opened(&mut self.links[connection], out) {
            self.ready += 1;
            self.done.push(connection);
        }
    }

    fn received(&mut self, connection: usize, _: u64, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        let Run { door, links, ready, done, errors } = self;
        door.peer.receive(&mut links[connection], bytes, out, &mut |note| match note {
            Note::Ready { .. } => {
                *ready += 1;
                done.push(connection);
            }
            Note::Error(why) => errors.push(why),
            _ => {}
        })
    }

    fn lost(&mut self, connection: usize, why: String) {
        self.errors.push(format!("connection {connection} lost: {why}"));
    }
}

impl<'a> Run<'a> {
    fn new(door: Door<'a>) -> Run<'a> {
        Run { door, links: Vec::new(), ready: 0, done: Vec::new(), errors: Vec::new() }
    }

    fn open(&mut self, engine: &mut Engine) -> io::Result<()> {
        let number = self.links.len();
        let session = format!("{}-{number}", self.door.prefix);
        let role = if self.door.subscribe { Role::Reader(number as u32) } else { Role::Bare };
        let link = Link::new(role, &session);
        engine.open(self.door.peer.path(&link, if self.door.subscribe { &session } else { "" }))?;
        self.links.push(link);
        Ok(())
    }

    fn check(&self, wanted: usize) -> io::Result<()> {
        match self.errors.first() {
            None => Ok(()),
            Some(first) => Err(io::Error::other(format!("{} of {wanted} ready, then: {first}", self.ready))),
        }
    }
}

/// Holds `count` connections and reports what each costs the server in memory, once it came to rest for `settle_s`.
pub fn idle(engine: &mut Engine, door: Door, count: usize, settle_s: f64) -> io::Result<Value> {
    let (server, subscribe, opening_max) = (door.server, door.subscribe, door.opening_max);
    let mut run = Run::new(door);
    let rss_before = server.map(process_rss_kib);
    let before = Reading::take(engine.now(), server);
    while run.ready < count {
        while run.links.len() < count && run.links.len() - run.ready < opening_max {
            run.open(engine)?;
        }
        engine.step(&mut run, 100_000_000);
        run.check(count)?;
        if engine.now() - before.at > 60_000_000_000 {
            return Err(io::Error::other(format!("{} of {count} ready after 60 s", run.ready)));
        }
    }
    let connected = Reading::take(engine.now(), server);
    let rest = |engine: &mut Engine, run: &mut Run| {
        let until = engine.now() + (settle_s * 5e8) as u64;
        while engine.now() < until {
            engine.step(run, 100_000_000);
        }
    };
    rest(engine, &mut run);
    let resting = Reading::take(engine.now(), server);
    rest(engine, &mut run);
    run.check(count)?;
    let rested = Reading::take(engine.now(), server);
    let (seconds, server_cores, _) = connected.since(&before);
    let (_, idle_cores, _) = rested.since(&resting);
    let rss = server.map(process_rss_kib);
    let growth = rss.zip(rss_before).map(|(after, before)| (after as f64 - before as f64) / count as f64);
    let report = json!({
        "connections": count,
        "subscribed": subscribe,
        "connects_per_s": count as f64 / seconds,
        "server_us_per_connect": server_cores * seconds * 1e6 / count as f64,
        "rss_kib_per_connection": growth,
        "rss_before_kib": rss_before,
        "idle_server_cores": idle_cores,
        "valid": true,
    });
    Ok(merge(report, costs(&before, &connected, server)))
}

/// Opens and resets connections for `seconds`.
pub fn handshake(engine: &mut Engine, door: Door, seconds: f64) -> io::Result<Value> {
    let (server, opening_max) = (door.server, door.opening_max);
    let mut run = Run::new(door);
    let before = Reading::take(engine.now(), server);
    let end = before.at + (seconds * 1e9) as u64;
    while engine.now() < end {
        while run.links.len() - run.ready < opening_max {
            run.open(engine)?;
        }
        engine.step(&mut run, 50_000_000);
        for connection in std::mem::take(&mut run.done) {
            engine.close(connection);
        }
        run.check(engine.len())?;
    }
    let after = Reading::take(engine.now(), server);
    let (seconds, server_cores, _) = after.since(&before);
    let report = json!({
        "connects_per_s": run.ready as f64 / seconds,
        "server_us_per_connect": server_cores * seconds * 1e6 / run.ready.max(1) as f64,
        "connects": run.ready,
        "valid": true,
    });
    Ok(merge(report, costs(&before, &after, server)))
}
