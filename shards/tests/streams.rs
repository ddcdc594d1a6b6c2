//! Token streams: numbering, ends, leases, late joiners, readers who lag, notices.

mod world;

use shards::command::{Command, Durability, From, NewDelta, NewEvent, PatternFrom, Policy, StreamStatus};
use shards::limits::Limits;
use storage::log::LogConfig;
use storage::record::DataKind;
use world::{Got, World};

fn append<'a>(stream: &'a str, seq: u64, delta: &'a str) -> Command<'a> {
    let delta = NewDelta { stream, seq, delta: delta.as_bytes(), topic: None };
    Command::StreamAppend { session: "demo", delta, durability: Durability::Disk }
}

fn close(stream: &str, status: StreamStatus) -> Command<'_> {
    Command::StreamClose { session: "demo", stream, status }
}

fn publish<'a>(topic: &'a str, message_id: &'a str) -> Command<'a> {
    let event = NewEvent {
        topic,
        message_id,
        prev_event_id: None,
        prev_message_id: None,
        data: b"1",
        data_kind: DataKind::Json,
        ttl_ms: None,
        producer: None,
        traceparent: "",
    };
    Command::Publish { session: "demo", event, durability: Durability::Disk }
}

fn subscribe(policy: Policy) -> Command<'static> {
    Command::Subscribe { session: "demo", from: From::Latest, policy }
}

fn says(world: &mut World, shard: usize, command: Command<'_>) -> String {
    world.settle();
    let id = world.send(shard, 1, command).expect("there is room");
    world.settle();
    let got = &world.queues[shard].got[&1];
    let reply = got.iter().find_map(|g| match g {
        Got::Reply(of, text) if *of == id => Some(text.clone()),
        _ => None,
    });
    reply.expect("an answer")
}

/// What a reader has of a stream, and its last offset: of single deltas and of merged ones. Nothing twice, nothing missing.
fn text(got: &[Got], stream: &str) -> (String, String) {
    let (mut whole, mut next, mut end) = (String::new(), None, String::new());
    let mut put = |numbers: std::ops::Range<u64>, said: &str| {
        assert!(next.is_none_or(|next| next == numbers.start), "{numbers:?} where {next:?} comes next");
        next = Some(numbers.end);
        whole.push_str(said);
    };
    for g in got {
        match g {
            Got::Event { stream: Some((name, seq)), data, .. } if name == stream => {
                let said = data.trim_matches('"');
                if StreamStatus::of(said).is_some() {
                    end = said.to_owned();
                } else {
                    put(*seq..*seq + 1, said);
                }
            }
            Got::Streams { parts, .. } => {
                for (_, numbers, said, status) in parts.iter().filter(|part| part.0 == stream) {
                    if !numbers.is_empty() {
                        put(numbers.clone(), said);
                    }
                    end.push_str(status.trim_matches('"'));
                }
            }
            _ => {}
        }
    }
    (whole, end)
}

fn frames(got: &[Got]) -> usize {
    got.iter().filter(|g| matches!(g, Got::Streams { .. })).count()
}

fn world(shards: u16) -> World {
    let limits = Limits { stream_lease_ms: 1000, stream_text_bytes_max: 3000, ..Limits::default() };
    let mut world = World::new(shards, limits, LogConfig::small());
    for shard in 0..usize::from(shards) {
        for slot in 1..4 {
            world.connect(shard, slot, &format!("client{slot}"));
        }
    }
    world
}

#[test]
fn numbers_are_dense_and_a_repeat_is_known() {
    for shard in 0..3 {
        let mut world = world(3);
        assert_eq!(says(&mut world, shard, append("s", 1, "\"x\"")), "refused stream_gap seq 0");
        assert_eq!(says(&mut world, shard, append("s", 0, "\"a\"")), "published 0 false");
        assert_eq!(says(&mut world, shard, publish("chat", "m")), "published 1 false");
        assert_eq!(says(&mut world, shard, append("s", 1, "\"b\"")), "published 2 false");
        assert_eq!(says(&mut world, shard, append("s", 0, "\"a\"")), "published 0 true");
        assert_eq!(says(&mut world, shard, append("s", 1, "\"B\"")), "refused stream_seq_reused seq 2");
        assert_eq!(says(&mut world, shard, append("s", 3, "\"d\"")), "refused stream_gap seq 2");
        assert_eq!(says(&mut world, shard, close("t", StreamStatus::Complete)), "refused unknown_stream stream");
        assert_eq!(says(&mut world, shard, close("s", StreamStatus::Complete)), "published 3 false");
        assert_eq!(says(&mut world, shard, close("s", StreamStatus::Complete)), "published 3 true");
        assert_eq!(says(&mut world, shard, close("s", StreamStatus::Failed)), "refused stream_closed status");
        assert_eq!(says(&mut world, shard, append("s", 2, "\"c\"")), "refused stream_closed stream");
        assert_eq!(says(&mut world, shard, append("s", 0, "\"a\"")), "refused stream_closed stream");
    }
}

#[test]
fn bounds_are_refusals() {
    let mut world = world(1);
    for n in 0..storage::catalog::STREAMS_MAX {
        assert!(says(&mut world, 0, append(&format!("s{n}"), 0, "\"x\"")).starts_with("published"));
    }
    assert_eq!(says(&mut world, 0, append("more", 0, "\"x\"")), "refused too_many_streams stream");
    says(&mut world, 0, close("s0", StreamStatus::Complete));
    assert!(says(&mut world, 0, append("more", 0, "\"x\"")).starts_with("published"));
    let long = format!("\"{}\"", "x".repeat(2000));
    assert!(says(&mut world, 0, append("s1", 1, &long)).starts_with("published"));
    assert_eq!(says(&mut world, 0, append("s1", 2, &long)), "refused stream_too_long delta");
}

#[test]
fn a_producer_that_is_gone_is_closed_once_and_one_that_is_heard_of_is_not() {
    let mut world = world(2);
    world.send(1, 2, subscribe(Policy::Lossless));
    world.settle();
    says(&mut world, 0, append("gone", 0, "\"g\""));
    says(&mut world, 0, append("here", 0, "\"h\""));
    for seq in 1..6 {
        world.now.mono_us += 400_000;
        world.settle();
        says(&mut world, 0, append("here", seq, "\"h\""));
    }
    let got = &world.queues[1].got[&2];
    assert_eq!(text(got, "gone"), ("g".into(), "partial".into()));
    assert_eq!(text(got, "here"), ("hhhhhh".into(), String::new()));
    let ends = got.iter().filter(|g| matches!(g, Got::Event { data, .. } if data == "\"partial\"")).count();
    assert_eq!(ends, 1);
    assert_eq!(says(&mut world, 0, append("gone", 1, "\"x\"")), "refused stream_closed stream");
    assert_eq!(says(&mut world, 0, close("gone", StreamStatus::Complete)), "refused stream_closed status");
}

#[test]
fn a_late_joiner_gets_the_text_so_far_in_one_frame_and_then_the_tail() {
    for (shard, policy) in [(0, Policy::Lossless), (1, Policy::Rollup), (2, Policy::Latest)] {
        let mut world = world(3);
        says(&mut world, 0, append("over", 0, "\"o\""));
        for seq in 0..300 {
            says(&mut world, 0, append("s", seq, &format!("\"{seq},\"")));
            says(&mut world, 0, publish("chat", &format!("m{seq}")));
        }
        says(&mut world, 0, append("t", 0, "\"t\""));
        says(&mut world, 0, close("over", StreamStatus::Complete));
        let tail = 604;
        world.send(shard, 2, subscribe(policy));
        world.settle();
        let got = world.queues[shard].got[&2].clone();
        assert_eq!(frames(&got), 1, "{policy:?}");
        assert!(!got.iter().any(|g| matches!(g, Got::Event { .. })), "nothing else of what was before");
        let Some(Got::Streams { offset, parts, .. }) = got.last() else { panic!("{got:?}") };
        assert_eq!((*offset, parts.len()), (tail - 2, 2), "only what is open");
        for seq in 300..310 {
            says(&mut world, 0, append("s", seq, &format!("\"{seq},\"")));
        }
        says(&mut world, 0, close("s", StreamStatus::Cancelled));
        let expected: String = (0..310).map(|seq| format!("{seq},")).collect();
        let got = &world.queues[shard].got[&2];
        assert_eq!(text(got, "s"), (expected, "cancelled".into()));
        assert_eq!(frames(got), 1, "a reader that keeps up gets each delta at once");
    }
}

#[test]
fn a_reader_that_lags_gets_merged_deltas_and_the_same_text() {
    for shard in 0..3 {
        let mut world = world(3);
        world.send(shard, 2, subscribe(Policy::Rollup));
        world.send(shard, 3, subscribe(Policy::Lossless));
        world.settle();
        says(&mut world, 0, append("a", 0, "\"0\""));
        world.queues[shard].room.insert(2, 0);
        for seq in 1..200 {
            says(&mut world, 0, append("a", seq, &format!("\"{seq}\"")));
            says(&mut world, 0, append("b", seq - 1, "\"b\""));
            if seq == 100 {
                says(&mut world, 0, publish("chat", "m"));
            }
        }
        says(&mut world, 0, close("a", StreamStatus::Complete));
        world.drained(shard, 2, usize::MAX);
        world.settle();
        let (slow, fast) = (&world.queues[shard].got[&2], &world.queues[shard].got[&3]);
        assert_eq!(text(slow, "a"), text(fast, "a"));
        assert_eq!(text(slow, "b"), text(fast, "b"));
        assert_eq!(text(fast, "a").1, "complete");
        assert!(slow.len() < 8, "{} frames: the first, two runs of deltas, what was between", slow.len());
        assert_eq!(slow.iter().filter(|g| matches!(g, Got::Event { stream: None, .. })).count(), 1);
    }
}

#[test]
fn latest_keeps_the_newest_of_each_topic_and_says_what_it_left_out() {
    for shard in 0..3 {
        let mut world = world(3);
        world.send(shard, 2, subscribe(Policy::Latest));
        world.settle();
        world.queues[shard].room.insert(2, 0);
        for n in 0..60 {
            says(&mut world, 0, publish(["a", "b", "c"][n % 3], &format!("m{n}")));
        }
        says(&mut world, 0, append("s", 0, "\"x\""));
        says(&mut world, 0, publish("a", "last"));
        world.drained(shard, 2, usize::MAX);
        world.settle();
        let mut next = 0;
        let mut seen = Vec::new();
        for g in &world.queues[shard].got[&2] {
            match g {
                Got::Gap { from, to, .. } => {
                    assert_eq!(*from, next, "what is skipped is said exactly");
                    next = *to;
                }
                Got::Event { offset, .. } => {
                    assert_eq!(*offset, next);
                    next += 1;
                    seen.push(*offset);
                }
                Got::Streams { offset, .. } => next = offset + 1,
                _ => {}
            }
        }
        assert_eq!((next, seen.last()), (62, Some(&61)));
        // What lies ready is what one read brings.
        assert!(seen.len() <= 31, "{seen:?}");
        assert_eq!(text(&world.queues[shard].got[&2], "s").0, "x");
    }
}

#[test]
fn what_patterns_match_is_lossless() {
    let mut world = world(2);
    world.send(0, 2, Command::SubscribePatterns { patterns: &["chat.>"], from: PatternFrom::Latest });
    world.send(0, 2, subscribe(Policy::Latest));
    world.settle();
    world.queues[0].room.insert(2, 0);
    for n in 0..10 {
        says(&mut world, 0, publish("chat.a", &format!("c{n}")));
        says(&mut world, 0, publish("noise", &format!("n{n}")));
    }
    world.drained(0, 2, usize::MAX);
    world.settle();
    let got = &world.queues[0].got[&2];
    let events = got.iter().filter(|g| matches!(g, Got::Event { .. })).count();
    assert_eq!(events, 11, "ten of chat, one of noise: {got:?}");
}

#[test]
fn a_control_event_is_noticed_by_whoever_listens_and_keeps_its_place() {
    let mut world = world(3);
    for shard in 0..3 {
        world.send(shard, 2, subscribe(Policy::Lossless));
        world.send(shard, 3, Command::SubscribePatterns { patterns: &["control.*"], from: PatternFrom::Latest });
    }
    world.settle();
    says(&mut world, 0, publish("chat", "m0"));
    says(&mut world, 1, publish("control.cancel", "m1"));
    says(&mut world, 1, publish("control.other", "m2"));
    for shard in 0..3 {
        for slot in [2, 3] {
            let got = &world.queues[shard].got[&slot];
            let notices: Vec<_> = got.iter().filter(|g| matches!(g, Got::Notice { .. })).collect();
            assert_eq!(notices, [&Got::Notice { offset: 1, topic: "control.cancel".into() }], "{shard} {slot}");
            assert!(got.iter().any(|g| matches!(g, Got::Event { offset: 1, .. })), "the event comes too");
        }
    }
}
