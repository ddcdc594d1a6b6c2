//! `subscribe` by pattern: one feed per client, one source per shard, one reply when all sources have answered.
//!
//! ```text
//!  client's shard ── ATTACH_PATTERNS (patterns, start) ──► every shard
//!                 ◄── PATTERNS_ATTACHED (where its stream stands, where the client starts, slice positions)
//! ```

use crate::command::PatternFrom;
use crate::delivery::patterns::{PatternFeed, SliceGap, Source};
use crate::effect::Reply;
use crate::ids::{CommandId, ConnectionId, ShardId, SliceSeq};
use crate::input::Handled;
use crate::limits::CLIENT_PATTERNS_MAX;
use crate::mailbox::codec::{Reader, Writer};
use crate::mailbox::message::{get_connection, put_connection, reply, request};
use crate::refusal::{Refusal, Refused};
use crate::scan::Scan;
use crate::sessions::Origin;
use crate::shard::Shard;
use std::fmt::Write as _;
use storage::ids::{LogSeq, SLICES, SliceId};

/// Room for a source's answer: every slice's position, and a gap in each.
pub(crate) const PATTERNS_REPLY_BYTES_MAX: usize = SLICES as usize * (10 + 18) + 256;

/// Where a client starts, as told to each source.
const FROM_LATEST: u8 = 0;
const FROM_POSITION: u8 = 1;

/// A source's answer.
struct PatternsAttached {
    /// The stream to the client's shard stands here.
    live: LogSeq,
    /// The client starts here; with `by_position` the source remembers a finer place.
    seq: LogSeq,
    by_position: bool,
    /// Slices of which less is retained than the client has yet to see.
    gaps: Vec<SliceGap>,
}

pub(crate) fn run(
    shard: &mut Shard,
    connection: ConnectionId,
    id: CommandId,
    patterns: &[&str],
    from: PatternFrom<'_>,
) -> Handled {
    let Some(client) = shard.readers.clients.get(connection) else { return Handled::Done };
    let tenant = client.tenant.clone();
    let refused = if client.patterns.is_some() {
        Some(Refused::field(Refusal::PatternsHeld, "patterns"))
    } else if patterns.is_empty() || patterns.len() > CLIENT_PATTERNS_MAX {
        Some(Refused::field(Refusal::OutOfRange, "patterns"))
    } else {
        None
    };
    let seen = match from {
        PatternFrom::Latest => Ok(None),
        PatternFrom::Earliest => Ok(Some(Vec::new())),
        PatternFrom::Position(text) => parse_position(text).map(Some),
    };
    let seen = match (refused, seen) {
        (Some(refused), _) | (None, Err(refused)) => {
            shard.refuse_local(connection, id, refused);
            return Handled::Done;
        }
        (None, Ok(seen)) => seen,
    };
    let own = shard.config.shard;
    let peers: Vec<ShardId> = (0..shard.config.shards).map(ShardId).filter(|peer| *peer != own).collect();
    let generation = shard.next_pattern_generation();
    let messages: Vec<Vec<u8>> = peers
        .iter()
        .map(|peer| {
            let mut message = Vec::new();
            let mut w = Writer(&mut message);
            w.u8(request::ATTACH_PATTERNS).u32(PATTERNS_REPLY_BYTES_MAX as u32);
            put_connection(&mut w, connection);
            w.u32(generation).text(&tenant).u16(patterns.len() as u16);
            patterns.iter().for_each(|pattern| {
                w.text(pattern);
            });
            put_start(&mut w, seen.as_deref(), |slice| shard.owner_of_slice(slice) == *peer);
            message
        })
        .collect();
    let room = peers
        .iter()
        .zip(&messages)
        .all(|(peer, message)| shard.mail.ask(*peer, message.len(), PATTERNS_REPLY_BYTES_MAX).is_some());
    if !room {
        return Handled::Later;
    }
    let attaching = Source::attaching(0, false);
    let feed = PatternFeed {
        patterns: patterns.iter().map(|pattern| (*pattern).into()).collect(),
        sources: vec![attaching; usize::from(shard.config.shards)].into(),
        generation,
        attaching: shard.config.shards,
        id,
        position: String::new(),
        gaps: Vec::new(),
        gap_owed: None,
        delivered: Default::default(),
        passed: Default::default(),
    };
    if let Some(client) = shard.readers.clients.get_mut(connection) {
        client.patterns = Some(Box::new(feed));
    }
    shard.readers.tenants.insert(&tenant, connection, shard.config.shards);
    shard.begin(connection);
    for (peer, message) in peers.iter().zip(&messages) {
        if let Some(ask) = shard.mail.ask(*peer, message.len(), PATTERNS_REPLY_BYTES_MAX) {
            shard.mail.send_ask(*peer, ask, message);
            shard.wake(*peer);
        }
    }
    let seen = seen.map(|seen| of_slices(&seen, |slice| shard.owner_of_slice(slice) == own));
    let owned: Vec<&str> = patterns.to_vec();
    let (found, positions) = attach(shard, own, connection, generation, &tenant, &owned, seen);
    attached(shard, own, connection, generation, found, positions.iter().copied());
    Handled::Done
}

/// On a source: notes the interest and where the client starts.
fn attach(
    shard: &mut Shard,
    client_shard: ShardId,
    connection: ConnectionId,
    generation: u32,
    tenant: &str,
    patterns: &[&str],
    seen: Option<Vec<(u16, SliceSeq)>>,
) -> (PatternsAttached, Vec<(u16, SliceSeq)>) {
    let announced = shard.announced;
    let live = if client_shard == shard.config.shard {
        announced
    } else {
        shard.interests.attach_patterns(tenant, client_shard, patterns.iter().copied(), announced)
    };
    match seen {
        None => {
            let positions = (0..SLICES)
                .filter(|slice| shard.owner_of_slice(SliceId(*slice)) == shard.config.shard)
                .map(|slice| (slice, shard.announced_slices[usize::from(slice)]))
                .filter(|(_, seq)| *seq > 0)
                .collect();
            (PatternsAttached { live, seq: announced, by_position: false, gaps: Vec::new() }, positions)
        }
        Some(seen) => {
            let scan = Scan::from_position(&shard.log, generation, tenant, patterns, &seen, |slice| {
                shard.owner_of_slice(slice) == shard.config.shard
            });
            shard.scans.insert(client_shard, connection, scan);
            let gap = |(slice, seq): &(u16, SliceSeq)| {
                let first = shard.log.slice_first(SliceId(*slice));
                (seq + 1 < first).then_some((SliceId(*slice), seq + 1, first))
            };
            let gaps = seen.iter().filter_map(gap).collect();
            (PatternsAttached { live, seq: announced, by_position: true, gaps }, seen)
        }
    }
}

/// On the client's shard: one source has answered.
fn attached(
    shard: &mut Shard,
    source: ShardId,
    connection: ConnectionId,
    generation: u32,
    found: PatternsAttached,
    positions: impl Iterator<Item = (u16, SliceSeq)>,
) {
    let readers = &mut shard.readers;
    let Some(client) = readers.clients.get_mut(connection) else { return };
    let tenant = client.tenant.clone();
    let Some(feed) = client.patterns.as_mut().filter(|feed| feed.generation == generation) else { return };
    for (slice, seq) in positions {
        let comma = if feed.position.is_empty() { "" } else { "," };
        let _ = write!(feed.position, "{comma}{slice}.{seq}");
    }
    feed.sources[usize::from(source.0)] = Source::attaching(found.seq, found.by_position);
    feed.gaps.extend(found.gaps);
    feed.attaching -= 1;
    let whole = (feed.attaching == 0).then(|| (feed.id, std::mem::take(&mut feed.position)));
    if source != shard.config.shard {
        // The answer may overtake the live stream: other clients that are live and behind it read what it skips.
        readers.cover(&tenant, source, found.live, found.live);
    }
    if let Some((id, position)) = whole {
        readers.patterns_attached.push(connection);
        if let Some(life) = readers.clients.get_mut(connection).and_then(|c| c.life.as_mut()) {
            life.seen.get_or_insert_default().begin(parse_position(&position).unwrap_or_default());
        }
        shard.life_changed(connection);
        shard.answer(Origin::Local(connection), id, &Reply::SubscribedPatterns { position: &position });
    }
}

/// Reads `ATTACH_PATTERNS`, after its kind.
pub(crate) fn attach_from(shard: &mut Shard, peer: ShardId, r: &mut Reader<'_>) {
    let reply_bytes = r.u32();
    let connection = get_connection(r);
    let (generation, tenant, count) = (r.u32(), r.text(), r.u16());
    let patterns: Vec<&str> = (0..count).map(|_| r.text()).collect();
    let seen = get_start(r);
    let (found, positions) = attach(shard, peer, connection, generation, tenant, &patterns, seen);
    let mut message = std::mem::take(&mut shard.scratch);
    message.clear();
    let mut w = Writer(&mut message);
    w.u8(reply::PATTERNS_ATTACHED).u32(reply_bytes);
    put_connection(&mut w, connection);
    w.u32(generation).u64(found.live).u64(found.seq).u8(u8::from(found.by_position)).u16(positions.len() as u16);
    for (slice, seq) in &positions {
        w.u16(*slice).u64(*seq);
    }
    w.u16(found.gaps.len() as u16);
    for (slice, from, to) in &found.gaps {
        w.u16(slice.0).u64(*from).u64(*to);
    }
    shard.mail.reply(peer, &message);
    shard.wake(peer);
    shard.scratch = message;
}

/// Reads `PATTERNS_ATTACHED`, after its kind and the reserved room.
pub(crate) fn attached_from(shard: &mut Shard, peer: ShardId, r: &mut Reader<'_>) {
    let connection = get_connection(r);
    let generation = r.u32();
    let (live, seq, by_position) = (r.u64(), r.u64(), r.u8() == 1);
    let count = r.u16();
    let positions: Vec<(u16, SliceSeq)> = (0..count).map(|_| (r.u16(), r.u64())).collect();
    let count = r.u16();
    let gaps = (0..count).map(|_| (SliceId(r.u16()), r.u64(), r.u64())).collect();
    let found = PatternsAttached { live, seq, by_position, gaps };
    attached(shard, peer, connection, generation, found, positions.into_iter());
}

fn of_slices(seen: &[(u16, SliceSeq)], of: impl Fn(SliceId) -> bool) -> Vec<(u16, SliceSeq)> {
    seen.iter().copied().filter(|(slice, _)| of(SliceId(*slice))).collect()
}

fn put_start(w: &mut Writer<'_>, seen: Option<&[(u16, SliceSeq)]>, of: impl Fn(SliceId) -> bool) {
    match seen {
        None => {
            w.u8(FROM_LATEST);
        }
        Some(seen) => {
            let seen = of_slices(seen, of);
            w.u8(FROM_POSITION).u16(seen.len() as u16);
            for (slice, seq) in seen {
                w.u16(slice).u64(seq);
            }
        }
    }
}

fn get_start(r: &mut Reader<'_>) -> Option<Vec<(u16, SliceSeq)>> {
    (r.u8() == FROM_POSITION).then(|| {
        let count = r.u16();
        (0..count).map(|_| (r.u16(), r.u64())).collect()
    })
}

/// `slice.seq,slice.seq,…`, each slice once at most; the empty text is the beginning.
pub(crate) fn parse_position(text: &str) -> Result<Vec<(u16, SliceSeq)>, Refused> {
    let bad = Refused::field(Refusal::BadPosition, "from");
    let mut seen: Vec<(u16, SliceSeq)> = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (slice, seq) = part.split_once('.').ok_or(bad)?;
        let (slice, seq) = (slice.parse::<u16>().map_err(|_| bad)?, seq.parse::<u64>().map_err(|_| bad)?);
        if slice >= SLICES || seen.len() >= usize::from(SLICES) || seq >= crate::limits::WIRE_INTEGER_MAX {
            return Err(bad);
        }
        seen.push((slice, seq));
    }
    seen.sort_unstable();
    if seen.windows(2).any(|w| w[0].0 == w[1].0) { Err(bad) } else { Ok(seen) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_one_number_per_slice() {
        assert_eq!(parse_position("").ok(), Some(vec![]));
        assert_eq!(parse_position("40.17,12.9931").ok(), Some(vec![(12, 9931), (40, 17)]));
        for bad in ["x", "1", "1.", ".1", "1.2.3", "1024.1", "1.1,1.2", "1.-1", "1.99999999999999999999"] {
            assert!(parse_position(bad).is_err(), "{bad}");
        }
    }
}
