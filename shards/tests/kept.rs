//! Quotas of what is kept: sessions, open jobs, bytes of entries. Counted exactly over all shards, over restarts and changes of bounds.

mod world;

use shards::command::{
    Claim, Command, DataKind, Durability, EntryAsk, JobOrder, NewDelta, NewEntry, NewEvent, NewQueue, QueueAsk,
};
use shards::ids::Now;
use shards::input::{Handled, Input};
use shards::limits::{Kind, Limits, Quota, Quotas};
use std::sync::Arc;
use storage::log::LogConfig;
use world::{Got, World};

fn limits(bounds: &[(Kind, u64)]) -> Limits {
    let mut quota = Quota::default();
    bounds.iter().for_each(|(kind, max)| quota.max[*kind as usize] = Some(*max));
    let tenants = [("acme".into(), quota)].into();
    Limits { quotas: Arc::new(Quotas { others: Quota::default(), tenants }), ..Limits::default() }
}

fn change(world: &mut World, bounds: &[(Kind, u64)]) {
    let quotas = limits(bounds).quotas;
    for shard in &mut world.shards {
        assert_eq!(shard.handle(Input::Quotas { quotas: &quotas }, world.now), Handled::Done);
    }
}

fn publish<'a>(session: &'a str, topic: &'a str, message_id: &'a str) -> Command<'a> {
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
    Command::Publish { session, event, durability: Durability::Disk }
}

fn put<'a>(session: &'a str, key: &'a str, value: Option<&'a [u8]>, ttl_ms: Option<u64>) -> Command<'a> {
    Command::Entry { session, ask: EntryAsk::Set(NewEntry { key, value, ttl_ms, if_revision: None }) }
}

/// Two seconds: what is not used goes home, what was refused for a while may be asked for again.
fn rest(world: &mut World) {
    for _ in 0..8 {
        world.now.mono_us += 300_000;
        world.settle();
    }
}

fn answer(world: &World, shard: usize, slot: u32, id: u64) -> Option<String> {
    let got = world.queues[shard].got.get(&slot)?;
    got.iter().find_map(|got| if let Got::Reply(of, text) = got { (*of == id).then(|| text.clone()) } else { None })
}

/// Carries a command out and gives the words of its reply; what waits for the home is answered within a few ms.
fn say(world: &mut World, shard: usize, slot: u32, command: Command<'_>) -> String {
    let id = world.send(shard, slot, command).expect("there is room");
    for _ in 0..20 {
        world.settle();
        if let Some(text) = answer(world, shard, slot, id) {
            return text;
        }
        world.now.mono_us += 1000;
    }
    panic!("it waits for ever");
}

/// Publishes one event to each session, from two shards by turns, and counts what is taken.
fn publish_to(world: &mut World, sessions: std::ops::Range<u32>, tag: &str) -> usize {
    let mut taken = 0;
    for n in sessions {
        let at = n as usize % 2;
        let text = say(world, at, at as u32, publish(&format!("s{n}"), "chat", &format!("{tag}{n}")));
        match text.starts_with("published") {
            true => taken += 1,
            false => assert!(text.starts_with("refused over_quota sessions_max after"), "{text}"),
        }
    }
    taken
}

fn connect(world: &mut World) {
    for shard in 0..2 {
        world.connect_as("acme", shard, shard as u32, &format!("c{shard}"));
    }
    world.connect_as("other", 0, 9, "o");
    world.settle();
}

#[test]
fn sessions_are_counted_over_all_shards_and_over_restarts() {
    let bounds = limits(&[(Kind::Sessions, 5)]);
    let mut world = World::new(3, bounds.clone(), LogConfig::small());
    connect(&mut world);
    assert_eq!(publish_to(&mut world, 0..12, "a"), 5);
    let others =
        (0..9).filter(|n| say(&mut world, 0, 9, publish(&format!("s{n}"), "chat", "m")).starts_with("published"));
    assert_eq!(others.count(), 9, "another tenant has no bound");
    rest(&mut world);
    for (round, shards) in [3, 3, 2, 4].into_iter().enumerate() {
        assert_eq!(publish_to(&mut world, 0..12, &format!("b{round}-")), 5, "the same five exist, {shards}");
        // The client's own hidden session is no session of the tenant.
        let resume = Command::Resume { claim: Claim::New, seen: &[], position: None, attempt: 0 };
        let text = say(&mut world, 0, 0, resume);
        assert!(!text.starts_with("refused"), "{text}");
        world.restart(shards, bounds.clone(), LogConfig::small());
        connect(&mut world);
    }
    assert_eq!(publish_to(&mut world, 0..12, "c"), 5);
    change(&mut world, &[(Kind::Sessions, 7)]);
    rest(&mut world);
    assert_eq!(publish_to(&mut world, 0..12, "d"), 7);
    change(&mut world, &[(Kind::Sessions, 2)]);
    rest(&mut world);
    assert_eq!(publish_to(&mut world, 0..12, "e"), 7, "nobody is refused what is there");
    change(&mut world, &[]);
    rest(&mut world);
    assert_eq!(publish_to(&mut world, 0..14, "f"), 14);
}

/// A shard that keeps nothing of the tenant, and has none of its clients, hears the home's no as well.
#[test]
fn nobody_waits_for_ever_where_the_tenant_has_nothing() {
    for shards in [3, 5] {
        let mut world = World::new(shards, limits(&[(Kind::Sessions, 1)]), LogConfig::small());
        connect(&mut world);
        assert_eq!(publish_to(&mut world, 0..16, "a"), 1);
        rest(&mut world);
        assert_eq!(publish_to(&mut world, 0..16, "b"), 1);
    }
}

#[test]
fn a_bound_that_comes_counts_what_was_there_before() {
    let mut world = World::new(3, limits(&[]), LogConfig::small());
    connect(&mut world);
    assert_eq!(publish_to(&mut world, 0..4, "a"), 4);
    change(&mut world, &[(Kind::Sessions, 6)]);
    // Asked at once, while the shards say what they keep.
    assert_eq!(publish_to(&mut world, 0..20, "b"), 6);
    let delta = NewDelta { stream: "answer", seq: 0, topic: None, delta: b"\"x\"" };
    let text = say(&mut world, 0, 0, Command::StreamAppend { session: "t", delta, durability: Durability::Disk });
    assert!(text.starts_with("refused over_quota sessions_max"), "{text}");
}

/// Both shards ask each other at once, with many commands on their way: nobody waits for ever, and none is let in too many.
#[test]
fn a_crowd_gets_exactly_what_there_is() {
    for max in [1, 63, 200] {
        let mut world = World::new(2, limits(&[(Kind::Sessions, max)]), LogConfig::small());
        connect(&mut world);
        let mut ids = Vec::new();
        for n in 0..200usize {
            let (session, message) = (format!("s{n}"), format!("m{n}"));
            for _ in 0..50 {
                if let Some(id) = world.send(n % 2, n as u32 % 2, publish(&session, "chat", &message)) {
                    ids.push((n % 2, id));
                    break;
                }
                world.settle();
            }
        }
        for _ in 0..100 {
            world.settle();
            world.now.mono_us += 1000;
        }
        let answers: Vec<String> =
            ids.iter().map(|(at, id)| answer(&world, *at, *at as u32, *id).expect("it is answered")).collect();
        let taken = answers.iter().filter(|text| text.starts_with("published")).count();
        assert!(answers.len() > 100, "{}", answers.len());
        assert_eq!(taken as u64, max.min(answers.len() as u64));
    }
}

#[test]
fn bytes_of_entries_come_back_when_they_go_and_are_counted_after_a_restart() {
    let value = [b'1'; 72];
    // Each takes 27 bytes, its key and its value: a hundred.
    let bounds = limits(&[(Kind::EntryBytes, 1000)]);
    let mut world = World::new(3, bounds.clone(), LogConfig::small());
    connect(&mut world);
    let fill = |world: &mut World, range: std::ops::Range<u32>, ttl_ms| {
        let mut taken = 0;
        for n in range {
            let at = n as usize % 2;
            let text = say(world, at, at as u32, put(&format!("s{n}"), "k", Some(&value), ttl_ms));
            match text.starts_with("put") {
                true => taken += 1,
                false => assert!(text.starts_with("refused over_quota entries_bytes_max after"), "{text}"),
            }
        }
        taken
    };
    assert_eq!(fill(&mut world, 0..14, None), 10);
    assert_eq!(fill(&mut world, 0..10, None), 10, "what replaces as much takes nothing");
    assert!(say(&mut world, 0, 0, put("s3", "k", None, None)).starts_with("deleted"));
    rest(&mut world);
    assert_eq!(fill(&mut world, 20..22, Some(5000)), 1);
    world.restart(2, bounds.clone(), LogConfig::small());
    connect(&mut world);
    assert_eq!(fill(&mut world, 30..33, None), 0, "all of it is there again");
    world.now = Now { mono_us: world.now.mono_us + 6_000_000, wall_ms: world.now.wall_ms + 6000 };
    world.settle();
    rest(&mut world);
    assert_eq!(fill(&mut world, 30..33, None), 1, "one has expired");
}

#[test]
fn open_jobs_are_counted_over_all_queues_until_they_end() {
    let bounds = limits(&[(Kind::QueueDepth, 3)]);
    let mut world = World::new(2, bounds.clone(), LogConfig::small());
    connect(&mut world);
    for (queue, topic) in [("q1", "job.a"), ("q2", "job.b")] {
        let policy = NewQueue {
            queue,
            topics: &[topic],
            priorities: &[],
            capacity: 100,
            lease_ms: 1000,
            deadline_ms: 5000,
            attempts: 3,
            backoff_ms: 100,
            order: JobOrder::Session,
            fallback: None,
            dead_letter: "job.dead",
        };
        let text = say(&mut world, 0, 0, Command::Queue { ask: QueueAsk::Declare(policy) });
        assert!(text.contains("Declared"), "{text}");
    }
    let ask = |world: &mut World, range: std::ops::Range<u32>| {
        let mut taken = 0;
        for n in range {
            let topic = if n % 3 == 0 { "job.a" } else { "job.b" };
            let at = n as usize % 2;
            let text = say(world, at, at as u32, publish(&format!("s{n}"), topic, "m"));
            match text.starts_with("published") {
                true => taken += 1,
                false => assert!(text.starts_with("refused over_quota queue_depth_max after"), "{text}"),
            }
        }
        taken
    };
    assert_eq!(ask(&mut world, 0..6), 3);
    world.restart(2, bounds.clone(), LogConfig::small());
    connect(&mut world);
    assert_eq!(ask(&mut world, 10..14), 0, "three are open still");
    // Nobody works: at their deadlines they are given up, and there is room again.
    for _ in 0..8 {
        world.now = Now { mono_us: world.now.mono_us + 1_000_000, wall_ms: world.now.wall_ms + 1000 };
        world.settle();
    }
    assert_eq!(ask(&mut world, 20..26), 3);
}
