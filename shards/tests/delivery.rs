//! Who receives what: sessions and patterns, on the owner's shard and on others, live and behind.

mod world;

use shards::command::{Command, Durability, From, NewEvent, PatternFrom, Policy};
use shards::limits::Limits;
use storage::log::LogConfig;
use storage::record::DataKind;
use world::{Got, World};

fn event<'a>(topic: &'a str, message_id: &'a str, data: &'a [u8]) -> NewEvent<'a> {
    NewEvent {
        topic,
        message_id,
        prev_event_id: None,
        prev_message_id: None,
        data,
        data_kind: DataKind::Json,
        ttl_ms: None,
        producer: None,
        traceparent: "",
    }
}

fn publish<'a>(session: &'a str, topic: &'a str, message_id: &'a str, data: &'a [u8]) -> Command<'a> {
    Command::Publish { session, event: event(topic, message_id, data), durability: Durability::Disk }
}

fn offsets(got: &[Got], of: &str) -> Vec<u64> {
    got.iter()
        .filter_map(|g| match g {
            Got::Event { session, offset, .. } if session == of => Some(*offset),
            _ => None,
        })
        .collect()
}

fn reply(world: &World, shard: usize, slot: u32, id: u64) -> String {
    world.queues[shard].got[&slot]
        .iter()
        .find_map(|g| match g {
            Got::Reply(of, text) if *of == id => Some(text.clone()),
            _ => None,
        })
        .unwrap_or_else(|| panic!("no reply to {id}: {:?}", world.queues[shard].got[&slot]))
}

#[test]
fn an_event_reaches_every_kind_of_subscriber_once_and_in_order() {
    let mut world = World::new(3, Limits::default(), LogConfig::small());
    for shard in 0..3 {
        world.connect(shard, 1, "publisher");
        world.connect(shard, 2, "reader");
        world.connect(shard, 3, "watcher");
        world.send(shard, 2, Command::Subscribe { session: "demo", from: From::Latest, policy: Policy::Lossless });
        world.send(shard, 3, Command::SubscribePatterns { patterns: &["chat.>"], from: PatternFrom::Latest });
    }
    world.settle();
    for n in 0..50 {
        let id = format!("m{n}");
        let command = world.send(n % 3, 1, publish("demo", "chat.message", &id, b"1")).expect("room");
        world.settle();
        assert_eq!(reply(&world, n % 3, 1, command), format!("published {n} false"));
    }
    let repeat = world.send(0, 1, publish("demo", "chat.message", "m3", b"1")).expect("room");
    let reused = world.send(0, 1, publish("demo", "chat.message", "m3", b"2")).expect("room");
    world.settle();
    assert_eq!(reply(&world, 0, 1, repeat), "published 3 true");
    assert_eq!(reply(&world, 0, 1, reused), "refused message_id_reused message_id");
    for shard in 0..3 {
        for slot in [2, 3] {
            let got = offsets(&world.queues[shard].got[&slot], "demo");
            assert_eq!(got, (0..50).collect::<Vec<_>>(), "shard {shard} slot {slot}");
        }
    }
}

#[test]
fn a_late_subscriber_reads_the_log_and_meets_live() {
    let mut world = World::new(2, Limits::default(), LogConfig::small());
    for shard in 0..2 {
        world.connect(shard, 1, "publisher");
        world.connect(shard, 2, "reader");
        world.connect(shard, 3, "watcher");
    }
    for n in 0..400 {
        let id = format!("m{n}");
        while world.send(0, 1, publish("demo", "chat.message", &id, &[b'7'; 300])).is_none() {
            world.settle();
        }
    }
    world.settle();
    for shard in 0..2 {
        world.send(shard, 2, Command::Subscribe { session: "demo", from: From::Earliest, policy: Policy::Lossless });
        world.send(shard, 3, Command::SubscribePatterns { patterns: &[">"], from: PatternFrom::Earliest });
    }
    for n in 400..500 {
        world.turn(n % 2);
        let id = format!("m{n}");
        while world.send(0, 1, publish("demo", "chat.message", &id, &[b'7'; 300])).is_none() {
            world.settle();
        }
    }
    world.settle();
    for shard in 0..2 {
        for slot in [2, 3] {
            let got = offsets(&world.queues[shard].got[&slot], "demo");
            assert_eq!(got, (0..500).collect::<Vec<_>>(), "shard {shard} slot {slot}");
        }
    }
}

#[test]
fn a_slow_reader_keeps_its_cursor_and_gets_everything_when_it_reads_again() {
    let mut world = World::new(2, Limits::default(), LogConfig::small());
    for shard in 0..2 {
        world.connect(shard, 1, "publisher");
        world.connect(shard, 2, "reader");
        world.connect(shard, 3, "watcher");
        world.send(shard, 2, Command::Subscribe { session: "demo", from: From::Latest, policy: Policy::Lossless });
        world.send(shard, 3, Command::SubscribePatterns { patterns: &[">"], from: PatternFrom::Latest });
    }
    world.settle();
    for shard in 0..2 {
        for slot in [2, 3] {
            world.queues[shard].room.insert(slot, 3000);
        }
    }
    for n in 0..300 {
        let id = format!("m{n}");
        while world.send(0, 1, publish("demo", "chat.message", &id, &[b'7'; 300])).is_none() {
            for shard in 0..2 {
                world.turn(shard);
            }
        }
    }
    for _ in 0..200 {
        for shard in 0..2 {
            world.turn(shard);
        }
    }
    assert!(offsets(&world.queues[0].got[&2], "demo").len() < 10);
    for _ in 0..2000 {
        for shard in 0..2 {
            for slot in [2, 3] {
                world.drained(shard, slot, 3000);
            }
        }
        for shard in 0..2 {
            world.turn(shard);
            world.turn(shard);
        }
    }
    for shard in 0..2 {
        for slot in [2, 3] {
            let got = offsets(&world.queues[shard].got[&slot], "demo");
            assert_eq!(got, (0..300).collect::<Vec<_>>(), "shard {shard} slot {slot}");
        }
    }
}

#[test]
fn an_event_of_two_subscriptions_comes_once() {
    let mut world = World::new(2, Limits::default(), LogConfig::small());
    for shard in 0..2 {
        world.connect(shard, 1, "both");
        world.send(shard, 1, Command::SubscribePatterns { patterns: &["a.>", "a.b"], from: PatternFrom::Latest });
        world.settle();
        world.send(shard, 1, Command::Subscribe { session: "demo", from: From::Latest, policy: Policy::Lossless });
        world.settle();
    }
    for n in 0..20 {
        let id = format!("m{n}");
        world.send(0, 1, publish(if n % 2 == 0 { "demo" } else { "other" }, "a.b", &id, b"1"));
        world.settle();
    }
    for shard in 0..2 {
        assert_eq!(offsets(&world.queues[shard].got[&1], "demo"), (0..10).collect::<Vec<_>>());
        assert_eq!(offsets(&world.queues[shard].got[&1], "other"), (0..10).collect::<Vec<_>>());
    }
}

#[test]
fn history_pages_and_volatile_events() {
    let mut world = World::new(2, Limits::default(), LogConfig::small());
    for shard in 0..2 {
        world.connect(shard, 1, "c");
        world.send(shard, 1, Command::Subscribe { session: "demo", from: From::Latest, policy: Policy::Lossless });
    }
    for n in 0..30 {
        let id = format!("m{n}");
        world.send(0, 1, publish("demo", "t", &id, b"1"));
        world.settle();
    }
    for shard in 0..2 {
        world.send(shard, 1, Command::History { session: "demo", from: Some(5), limit: 7 });
        let volatile =
            Command::Publish { session: "demo", event: event("typing", "", b"1"), durability: Durability::Volatile };
        world.send(shard, 1, volatile);
        world.settle();
        let got = &world.queues[shard].got[&1];
        assert!(got.contains(&Got::History { offsets: (5..12).collect(), next: 12, tail: 30 }), "{got:?}");
        assert!(got.contains(&Got::Volatile { session: "demo".into(), counter: shard as u64 + 1 }), "{got:?}");
    }
}

#[test]
fn a_pattern_feed_and_a_session_that_is_left_share_the_work_exactly() {
    for shard in 0..2 {
        let mut world = World::new(2, Limits::default(), LogConfig::small());
        world.connect(shard, 1, "both");
        world.connect(0, 2, "publisher");
        world.send(shard, 1, Command::SubscribePatterns { patterns: &[">"], from: PatternFrom::Latest });
        world.settle();
        world.send(shard, 1, Command::Subscribe { session: "demo", from: From::Latest, policy: Policy::Lossless });
        world.settle();
        // The session's reader is slow from here on; the pattern feed leaves the session to it.
        world.queues[shard].room.insert(1, 2000);
        for n in 0..40 {
            let id = format!("m{n}");
            while world.send(0, 2, publish("demo", "a.b", &id, &[b'7'; 300])).is_none() {
                world.settle();
            }
        }
        for _ in 0..50 {
            world.turn(0);
            world.turn(1);
        }
        world.send(shard, 1, Command::Unsubscribe { session: "demo" });
        for _ in 0..400 {
            world.drained(shard, 1, 3000);
            world.turn(0);
            world.turn(1);
        }
        let got = &world.queues[shard].got[&1];
        let mut seen: Vec<u64> = offsets(got, "demo");
        for gap in got {
            if let Got::Gap { from, to, .. } = gap {
                seen.extend(*from..*to);
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..40).collect::<Vec<_>>(), "shard {shard}: delivered once or said to be skipped, {got:?}");
    }
}

#[test]
fn regression_a_pattern_subscribe_that_is_taken_back_while_it_attaches_is_answered() {
    let mut world = World::new(3, Limits::default(), LogConfig::small());
    world.connect(0, 1, "watcher");
    let from = PatternFrom::Latest;
    let subscribe = world.send(0, 1, Command::SubscribePatterns { patterns: &["a.>"], from }).expect("room");
    let unsubscribe = world.send(0, 1, Command::UnsubscribePatterns).expect("room");
    world.settle();
    assert_eq!(reply(&world, 0, 1, subscribe), "Unsubscribed");
    assert_eq!(reply(&world, 0, 1, unsubscribe), "Unsubscribed");
}
