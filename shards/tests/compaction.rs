//! Streams that the log has merged: every kind of reader goes on at the very delta where it stood, and nobody gets one twice.

mod world;

use shards::command::{Command, Durability, From, NewDelta, PatternFrom, Policy, StreamStatus};
use shards::limits::Limits;
use std::collections::{BTreeMap, BTreeSet};
use storage::disk::FileId;
use storage::ids::HashKey;
use storage::log::LogConfig;
use storage::recluster::is_clustered;
use world::{Got, World};

/// Two sessions of one slice, one of another slice of the same shard, one of another shard.
fn sessions() -> [String; 4] {
    let slice = |name: &str| HashKey(7, 9).partition("default", name).slice().0;
    let all: Vec<String> = (0..9000).map(|n| format!("s{n}")).collect();
    let first = slice(&all[0]);
    let find =
        |wanted: &dyn Fn(u16) -> bool| all[1..].iter().find(|name| wanted(slice(name))).expect("there is one").clone();
    let same = find(&|other| other == first);
    let near = find(&|other| other != first && other % 3 == first % 3);
    let far = find(&|other| other % 3 != first % 3);
    [all[0].clone(), same, near, far]
}

fn delta(n: usize) -> String {
    format!("\" {}\"", "word".repeat(n % 3 + 1))
}

struct Tale {
    world: World,
    sessions: [String; 4],
    told: usize,
}

impl Tale {
    fn new() -> Tale {
        let log = LogConfig { recluster_bytes_max: 512 << 10, checkpoint_bytes: 16 << 10, ..LogConfig::small() };
        let limits = Limits { stream_lease_ms: 1 << 40, ..Limits::default() };
        let mut world = World::new(3, limits, log);
        for shard in 0..3 {
            for slot in 1..8 {
                world.connect(shard, slot, &format!("client{slot}"));
            }
        }
        Tale { world, sessions: sessions(), told: 0 }
    }

    /// Tells so many deltas more, by turns in two streams of each session, and an event now and then.
    fn tell(&mut self, deltas: usize) {
        for n in self.told..self.told + deltas {
            let (session, stream) = (&self.sessions[n % 4], ["a", "b"][n / 4 % 2]);
            let text = delta(n);
            let append = NewDelta { stream, seq: (n / 8) as u64, delta: text.as_bytes(), topic: None };
            let command = Command::StreamAppend { session, delta: append, durability: Durability::Disk };
            while self.world.send(n % 3, 1, command).is_none() {
                self.world.settle();
            }
            // Each before the next: those of one stream come by way of three shards.
            self.world.settle();
        }
        self.told += deltas;
    }

    fn end(&mut self) {
        for session in &self.sessions.clone() {
            for stream in ["a", "b"] {
                self.world.send(0, 1, Command::StreamClose { session, stream, status: StreamStatus::Complete });
                self.world.settle();
            }
        }
    }

    fn clustered(&self) -> BTreeSet<u32> {
        let numbers = self.world.files.keys().filter_map(|file| match file {
            FileId::Segment(segment) if is_clustered(*segment) => Some(segment.number),
            _ => None,
        });
        numbers.collect()
    }

    /// Nothing twice, nothing missing, in every stream of every session: what frames say from `from[stream]` on. A frame of merged
    /// deltas does not name its session here, so their streams are told apart by what they say.
    fn whole(&self) -> Vec<String> {
        let mut texts = vec![String::new(); 8];
        for n in 0..self.told {
            texts[n % 8].push_str(delta(n).trim_matches('"'));
        }
        texts
    }
}

/// What one session's streams said to a reader, by stream: numbers and text, dense.
fn said(got: &[Got], of: Option<&str>) -> BTreeMap<String, (u64, u64, String)> {
    let mut all: BTreeMap<String, (u64, u64, String)> = BTreeMap::new();
    let mut put = |stream: &str, numbers: std::ops::Range<u64>, text: &str| {
        let known = all.entry(stream.to_owned()).or_insert((numbers.start, numbers.start, String::new()));
        assert_eq!(known.1, numbers.start, "{stream}: nothing twice, nothing missing");
        known.1 = numbers.end;
        known.2.push_str(text);
    };
    for g in got {
        match g {
            Got::Event { session, stream: Some((stream, seq)), data, .. }
                if of.is_none_or(|of| of == session) && StreamStatus::of(data.trim_matches('"')).is_none() =>
            {
                put(stream, *seq..*seq + 1, data.trim_matches('"'));
            }
            Got::Streams { session, parts, .. } if of.is_none_or(|of| of == session) => {
                parts.iter().filter(|part| !part.1.is_empty()).for_each(|part| put(&part.0, part.1.clone(), &part.2));
            }
            Got::Gap { .. } | Got::PatternGap => panic!("nothing is gone: {g:?}"),
            _ => {}
        }
    }
    all
}

fn frames(got: &[Got]) -> usize {
    got.iter().filter(|g| matches!(g, Got::Streams { .. })).count()
}

#[test]
fn a_late_reader_gets_the_text_whatever_its_policy_and_from_any_offset() {
    let mut tale = Tale::new();
    tale.tell(4000);
    tale.end();
    tale.world.settle();
    assert!(!tale.clustered().is_empty());
    let whole = tale.whole();
    for (at, session) in tale.sessions.clone().iter().enumerate() {
        for (slot, policy) in [(2, Policy::Lossless), (3, Policy::Rollup), (4, Policy::Latest)] {
            let shard = at % 3;
            tale.world.queues[shard].got.clear();
            tale.world.send(shard, slot, Command::Subscribe { session, from: From::Earliest, policy });
            tale.world.settle();
            let got = &tale.world.queues[shard].got[&slot];
            let heard = said(got, Some(session));
            for (stream, name) in ["a", "b"].iter().enumerate() {
                assert_eq!(heard[*name], (0, 500, whole[at + 4 * stream].clone()), "{session} {name} {policy:?}");
            }
            assert!(frames(got) > 0, "{session} {policy:?}");
            assert!(got.len() < 700, "{} frames for a thousand deltas", got.len());
            tale.world.send(shard, slot, Command::Unsubscribe { session });
        }
        for from in [1, 7, 100, 333, 501] {
            tale.world.queues[1].got.clear();
            let from_offset = From::Offset(from, None);
            tale.world.send(1, 5, Command::Subscribe { session, from: from_offset, policy: Policy::Lossless });
            tale.world.settle();
            let heard = said(&tale.world.queues[1].got[&5], Some(session));
            // Streams take turns in a session.
            assert_eq!((heard["a"].0, heard["b"].0), (from.div_ceil(2), from / 2), "{session} from {from}");
            assert_eq!((heard["a"].1, heard["b"].1), (500, 500));
            tale.world.send(1, 5, Command::Unsubscribe { session });
            tale.world.settle();
        }
    }
}

#[test]
fn pages_of_history_cover_every_offset_once() {
    let mut tale = Tale::new();
    tale.tell(4000);
    tale.end();
    let session = tale.sessions[0].clone();
    let (mut from, mut covered) = (0, 0);
    for _ in 0..2000 {
        tale.world.queues[2].got.clear();
        tale.world.send(2, 2, Command::History { session: &session, from: Some(from), limit: 100 });
        tale.world.settle();
        let found = tale.world.queues[2].got[&2].iter().find_map(|g| match g {
            Got::History { offsets, next, tail } => Some((offsets.clone(), *next, *tail)),
            _ => None,
        });
        let (offsets, next, tail) = found.expect("a page");
        assert!(offsets.windows(2).all(|pair| pair[0] < pair[1]) && next > from, "{offsets:?} {next}");
        assert!(offsets.first().is_some_and(|first| *first >= from) && offsets.last() == Some(&(next - 1)));
        covered += offsets.len();
        from = next;
        if next == tail {
            break;
        }
    }
    assert_eq!(from, 1002);
    assert!(covered < 700, "{covered} things for a thousand and two offsets");
}

/// On the source's shard and on another one; blocked in the middle of what is merged then, and served a little at a time while files are
/// rewritten under it, clustered ones too.
#[test]
fn a_pattern_reader_that_lags_gets_each_delta_once() {
    let mut tale = Tale::new();
    let patterns = Command::SubscribePatterns { patterns: &["stream"], from: PatternFrom::Latest };
    for shard in 0..3 {
        tale.world.send(shard, 6, patterns);
    }
    tale.world.settle();
    tale.tell(101);
    for shard in 0..3 {
        tale.world.queues[shard].room.insert(6, 0);
    }
    tale.tell(2500);
    let mut files = BTreeSet::new();
    for _ in 0..300 {
        files.append(&mut tale.clustered());
        for shard in 0..3 {
            tale.world.drained(shard, 6, 2000);
        }
        tale.tell(10);
    }
    tale.end();
    for shard in 0..3 {
        tale.world.drained(shard, 6, usize::MAX);
    }
    tale.world.settle();
    let gone = files.difference(&tale.clustered()).count();
    assert!(gone > 2, "clustered segments were rewritten: {files:?}, now {:?}", tale.clustered());
    let whole = tale.whole();
    for shard in 0..3 {
        let got = &tale.world.queues[shard].got[&6];
        assert!(frames(got) > 4, "{} frames", frames(got));
        for (at, session) in tale.sessions.iter().enumerate() {
            let heard = said(got, Some(session));
            for (stream, name) in ["a", "b"].iter().enumerate() {
                let (first, _, text) = &heard[*name];
                assert_eq!((*first, text), (0, &whole[at + 4 * stream]), "{session} {name} on shard {shard}");
            }
        }
    }
}

#[test]
fn a_position_in_the_middle_of_what_was_merged_gets_that_whole() {
    let mut tale = Tale::new();
    tale.world.send(0, 6, Command::SubscribePatterns { patterns: &["stream"], from: PatternFrom::Latest });
    tale.world.settle();
    tale.tell(3000);
    tale.end();
    let singles: Vec<Got> = tale.world.queues[0].got[&6].clone();
    assert_eq!(frames(&singles), 0);
    let whole = tale.whole();
    for seen in [1, 50, 333, 800, 1201] {
        let mut position: BTreeMap<u16, u64> = BTreeMap::new();
        let mut had: BTreeMap<(String, String), u64> = BTreeMap::new();
        for g in singles.iter().filter(|g| matches!(g, Got::Event { .. })).take(seen) {
            let Got::Event { session, slice, slice_seq, stream: Some((stream, seq)), .. } = g else { continue };
            position.insert(*slice, *slice_seq);
            had.insert((session.clone(), stream.clone()), seq + 1);
        }
        let position: Vec<String> = position.iter().map(|(slice, seq)| format!("{slice}.{seq}")).collect();
        for shard in 0..3 {
            tale.world.queues[shard].got.remove(&7);
            let position = position.join(",");
            let from = PatternFrom::Position(&position);
            tale.world.send(shard, 7, Command::SubscribePatterns { patterns: &["stream"], from });
            tale.world.settle();
            let got = tale.world.queues[shard].got[&7].clone();
            assert!(frames(&got) > 0);
            for g in &got {
                let Got::Streams { at, .. } = g else { continue };
                assert!(at.is_some(), "a pattern's reader needs the place: {g:?}");
            }
            for (at, session) in tale.sessions.iter().enumerate() {
                let heard = said(&got, Some(session));
                for (stream, name) in ["a", "b"].iter().enumerate() {
                    let first = had.get(&(session.clone(), (*name).to_owned())).copied().unwrap_or(0);
                    assert!(heard[*name].0 <= first, "{session} {name} after {seen} on {shard}: nothing is missing");
                    assert_eq!(heard[*name].1, 375);
                    assert!(whole[at + 4 * stream].ends_with(&heard[*name].2));
                }
            }
            tale.world.send(shard, 7, Command::UnsubscribePatterns);
            tale.world.settle();
        }
    }
}
