//! Which shard serves which session, asked of the server itself: its welcome says so.
//!
//! ```text
//!   lane i       session on shard a      its connections: shard a, or, if its traffic is to cross, another one
//! ```

use crate::engine::{Engine, Handler};
use crate::peer::{Link, Note, Peer, Role};
use std::collections::BTreeMap;
use std::io;

struct Probe<'a> {
    peer: &'a mut dyn Peer,
    links: Vec<Link>,
    first: usize,
    shards: Vec<Option<u32>>,
    failed: Option<String>,
}

impl Handler for Probe<'_> {
    fn opened(&mut self, connection: usize, out: &mut Vec<u8>) {
        self.peer.opened(&mut self.links[connection - self.first], out);
    }

    fn received(&mut self, connection: usize, _: u64, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        let at = connection - self.first;
        let (shards, failed) = (&mut self.shards, &mut self.failed);
        self.peer.receive(&mut self.links[at], bytes, out, &mut |note| match note {
            Note::Ready { shard } => shards[at] = Some(shard),
            Note::Error(why) => *failed = Some(why),
            _ => {}
        })
    }

    fn lost(&mut self, _: usize, why: String) {
        self.failed = Some(why);
    }
}

/// For each session: the session by which its connections place themselves, so that the share `cross` of all lanes lives on
/// another shard than its session. Returns how many lanes that are.
pub fn places(
    engine: &mut Engine,
    peer: &mut dyn Peer,
    sessions: &[String],
    cross: f64,
) -> io::Result<(Vec<String>, usize)> {
    if cross <= 0.0 {
        return Ok((sessions.to_vec(), 0));
    }
    let first = engine.len();
    let links = sessions.iter().map(|session| Link::new(Role::Bare, session)).collect();
    let mut probe = Probe { peer, links, first, shards: vec![None; sessions.len()], failed: None };
    let start = engine.now();
    while probe.shards.contains(&None) {
        let open = probe.shards.iter().filter(|shard| shard.is_some()).count();
        while engine.len() - first < sessions.len() && engine.len() - first - open < 256 {
            let at = engine.len() - first;
            engine.open(probe.peer.path(&probe.links[at], &sessions[at]))?;
        }
        engine.step(&mut probe, 50_000_000);
        if let Some(why) = &probe.failed {
            return Err(io::Error::other(format!("asking where sessions live: {why}")));
        }
        if engine.now() - start > 60_000_000_000 {
            return Err(io::Error::other("asking where sessions live: 60 s are over"));
        }
    }
    (first..engine.len()).for_each(|connection| engine.close(connection));
    let shards: Vec<u32> = probe.shards.into_iter().flatten().collect();
    let examples: BTreeMap<u32, &String> = shards.iter().copied().zip(sessions).collect();
    let away = |own: u32| {
        let mut later = examples.range(own + 1..).chain(examples.range(..own));
        later.next().map(|(_, example)| (*example).clone())
    };
    let mut crossing = 0;
    let place = |(lane, (session, shard)): (usize, (&String, &u32))| {
        let chosen = (((lane + 1) as f64) * cross).floor() > (lane as f64 * cross).floor();
        match away(*shard).filter(|_| chosen) {
            Some(elsewhere) => {
                crossing += 1;
                elsewhere
            }
            None => session.clone(),
        }
    };
    let places = sessions.iter().zip(&shards).enumerate().map(place).collect();
    Ok((places, crossing))
}
