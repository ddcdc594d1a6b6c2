//! The ways of events through shards, and what is said of who has them: by the owner, and by the shards of the readers.

mod world;

use shards::command::{Command, Durability, From, NewEvent, PatternFrom, Policy};
use shards::limits::Limits;
use shards::why::{Asked, Found, Standing};
use storage::log::LogConfig;
use storage::record::DataKind;
use world::World;

const SESSION: &str = "demo";

fn publish<'a>(message_id: &'a str, topic: &'a str) -> Command<'a> {
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
    Command::Publish { session: SESSION, event, durability: Durability::Disk }
}

fn asked(world: &World, owner: usize, offset: u64) -> Asked {
    let log = world.shards[owner].log();
    let slot = log.resident(log.partition_id("default", SESSION)).expect("used just now");
    let epoch = log.partition(slot).epoch();
    Asked { tenant: "default".into(), session: SESSION.into(), epoch, offset, topic: None, log_seq: None }
}

/// Asks the owner, then every shard, as the admin edge does: what the owner knows goes with the second question.
fn standings(world: &mut World, owner: usize, offset: u64) -> Vec<(usize, String, bool, Standing)> {
    let mut asked = asked(world, owner, offset);
    let known = world.shards[owner].look_up(&asked);
    asked.topic = known.topic;
    asked.log_seq = known.trace.map(|trace| trace.log_seq);
    let mut all = Vec::new();
    for (shard, core) in world.shards.iter().enumerate() {
        for reader in core.readers_of(&asked).named {
            all.push((shard, reader.client_id, reader.by_pattern, reader.standing));
        }
    }
    all.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    all
}

#[test]
fn the_owner_knows_the_way_and_every_shard_its_readers() {
    let mut world = World::new(3, Limits::default(), LogConfig::small());
    let owner = usize::from(world.shards[0].owner("default", SESSION).0);
    for shard in 0..3 {
        world.connect(shard, 1, "publisher");
        world.connect(shard, 2, "reader");
        world.connect(shard, 3, "watcher");
        world.connect(shard, 4, "poor");
        world.connect(shard, 5, "stranger");
        world.send(shard, 4, Command::Hello { credit_events: Some(1), credit_bytes: None });
        for slot in [2, 4] {
            world.send(
                shard,
                slot,
                Command::Subscribe { session: SESSION, from: From::Latest, policy: Policy::Lossless },
            );
        }
        world.send(shard, 3, Command::SubscribePatterns { patterns: &["chat.>"], from: PatternFrom::Latest });
        world.send(shard, 5, Command::SubscribePatterns { patterns: &["tool.>"], from: PatternFrom::Latest });
    }
    world.settle();
    // One of the events comes by mail.
    world.ns = 1000;
    for (shard, id) in [(owner, "m0"), ((owner + 1) % 3, "m1"), (owner, "m2")] {
        let came = world.tick(shard);
        world.shards[shard].decodes(Some(came));
        let decoded = world.tick(shard);
        world.shards[shard].decoded(decoded, false);
        world.send(shard, 1, publish(id, "chat.message"));
        if id != "m2" {
            let handled = world.tick(shard);
            world.shards[shard].handled(handled);
        }
        // Where nothing follows in its frame the next reading is not taken for it, and it has its stamps all the same.
        world.shards[shard].decodes(None);
        world.settle();
    }
    for offset in 0..3 {
        let question = asked(&world, owner, offset);
        let known = world.shards[owner].look_up(&question);
        assert_eq!(
            (known.found, known.offsets, known.topic.as_deref()),
            (Found::Committed, [0, 3, 3], Some("chat.message"))
        );
        let trace = known.trace.expect("kept");
        let stamps = trace.stamps;
        assert_eq!((trace.offset, trace.count), (offset, 1));
        let by_mail = offset == 1;
        assert_eq!(stamps.sent_ns > 0, by_mail, "{trace:?}");
        assert_eq!(stamps.taken_ns >= stamps.sent_ns && stamps.taken_ns > 0, by_mail, "{trace:?}");
        let way = [stamps.came_ns, stamps.decoded_ns, trace.appended_ns, trace.committed_ns, trace.delivered_ns];
        assert!(stamps.came_ns > 0 && way.is_sorted(), "{trace:?}");
        assert_eq!(stamps.decoded_ns - stamps.came_ns, 1000, "{trace:?}");
        assert_eq!(world.shards[(owner + 1) % 3].look_up(&question).found, Found::Elsewhere);
        for (shard, client, by_pattern, standing) in standings(&mut world, owner, offset) {
            let want = match client.as_str() {
                "reader" | "watcher" => Standing::Delivered,
                "poor" if offset == 0 => Standing::Delivered,
                "poor" => Standing::NoCredit,
                other => panic!("{other} has nothing to do with it"),
            };
            assert_eq!((standing, by_pattern), (want, client == "watcher"), "{client} on {shard}, {offset}");
        }
        assert_eq!(standings(&mut world, owner, offset).len(), 9);
    }
    // Who comes later has no part in what was before.
    world.connect(0, 6, "late");
    world.send(0, 6, Command::Subscribe { session: SESSION, from: From::Latest, policy: Policy::Lossless });
    world.settle();
    let of_late = |world: &mut World, offset| {
        standings(world, owner, offset).into_iter().find(|reader| reader.1 == "late").map(|reader| reader.3)
    };
    assert_eq!(of_late(&mut world, 2), Some(Standing::NotForIt));
    assert_eq!(of_late(&mut world, 3), Some(Standing::Live), "not appended");
    let mut question = asked(&world, owner, 3);
    assert_eq!(world.shards[owner].look_up(&question).found, Found::Beyond);
    let epoch = std::mem::replace(&mut question.epoch, 1);
    assert_eq!(world.shards[owner].look_up(&question).found, Found::OtherEpoch(epoch));
    question.session = "nobody".into();
    let other = usize::from(world.shards[0].owner("default", "nobody").0);
    assert_eq!(world.shards[other].look_up(&question).found, Found::NoSession);
}
