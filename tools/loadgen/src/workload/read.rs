//! `read`: one session from its first event to a given one, as fast as it comes.

use super::{costs, merge};
use crate::engine::{Engine, Handler};
use crate::measure::Reading;
use crate::peer::{Link, Note, Peer, Role, subscribe_from_start};
use serde_json::{Value, json};
use std::io;

struct Run<'a> {
    peer: &'a mut dyn Peer,
    link: Link,
    ready: bool,
    events: u64,
    bytes: u64,
    first_at: Option<u64>,
    last_at: u64,
    failed: Option<String>,
}

impl Handler for Run<'_> {
    fn opened(&mut self, _: usize, out: &mut Vec<u8>) {
        self.peer.opened(&mut self.link, out);
    }

    fn received(&mut self, _: usize, now: u64, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        let Run { peer, link, ready, events, failed, .. } = self;
        let before = *events;
        let taken = peer.receive(link, bytes, out, &mut |note| match note {
            Note::Ready { .. } => *ready = true,
            Note::Event(_) => *events += 1,
            Note::Error(why) => *failed = Some(why),
            Note::Acknowledged(_) => {}
        });
        if self.events > before {
            self.first_at.get_or_insert(now);
            self.last_at = now;
            self.bytes += taken as u64;
        }
        taken
    }

    fn lost(&mut self, _: usize, why: String) {
        self.failed = Some(why);
    }
}

/// Reads `events` events of `session`.
pub fn run(
    engine: &mut Engine,
    peer: &mut dyn Peer,
    session: &str,
    events: u64,
    server: Option<u32>,
) -> io::Result<Value> {
    let link = Link::new(Role::Bare, session);
    let path = peer.path(&link, session);
    let mut run = Run { peer, link, ready: false, events: 0, bytes: 0, first_at: None, last_at: 0, failed: None };
    let connection = engine.open(path)?;
    while !run.ready && run.failed.is_none() {
        engine.step(&mut run, 100_000_000);
    }
    let before = Reading::take(engine.now(), server);
    subscribe_from_start(engine.out(connection), session);
    let asked = engine.now();
    let mut heard = asked;
    while run.events < events && run.failed.is_none() {
        let had = run.events;
        engine.step(&mut run, 100_000_000);
        if run.events > had {
            heard = engine.now();
        } else if engine.now() - heard > 30_000_000_000 {
            run.failed = Some("nothing came for 30 s".into());
        }
    }
    let after = Reading::take(engine.now(), server);
    if let Some(why) = run.failed {
        return Err(io::Error::other(format!("{} of {events} events, then: {why}", run.events)));
    }
    let seconds = (run.last_at - asked) as f64 / 1e9;
    let (_, server_cores, _) = after.since(&before);
    let report = json!({
        "events": run.events,
        "frame_bytes": run.bytes,
        "first_event_ms": run.first_at.map(|at| (at - asked) as f64 / 1e6),
        "read_s": seconds,
        "events_per_s": run.events as f64 / seconds,
        "mb_per_s": run.bytes as f64 / 1e6 / seconds,
        "server_us_per_event": server_cores * (after.at - before.at) as f64 / 1e3 / run.events.max(1) as f64,
        "valid": true,
    });
    Ok(merge(report, costs(&before, &after, server)))
}
