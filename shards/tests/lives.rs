//! Clients that come back: what stands again, what their homes are told, and what a connection that is lost in between takes away.

mod world;

use shards::command::{
    Claim, Command, DataKind, Durability, From, NewEvent, PatternFrom, Policy, PresenceAct, PresenceState, RosterKind,
    SeenEvent,
};
use shards::ids::LifeId;
use shards::ids::ShardId;
use shards::limits::Limits;
use storage::log::LogConfig;
use world::{Got, World};

/// Longer than what is kept by and by waits.
const LATER_MS: u64 = 6_000;

fn world(shards: u16) -> World {
    let mut world = World::new(shards, Limits::default(), LogConfig::small());
    // First segments are made.
    world.settle();
    world
}

fn pass(world: &mut World, ms: u64) {
    for _ in 0..ms.div_ceil(50) {
        world.now.mono_us += 50_000;
        world.settle();
    }
}

fn records(world: &World) -> u64 {
    world.shards.iter().map(|shard| shard.log().committed_seq()).sum()
}

fn texts(world: &mut World, shard: usize, slot: u32) -> Vec<String> {
    let got = world.queues[shard].got.remove(&slot).unwrap_or_default();
    got.into_iter().map(|got| format!("{got:?}")).collect()
}

fn publish<'a>(session: &'a str, message_id: &'a str) -> Command<'a> {
    let event = NewEvent {
        topic: "a.b",
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

/// The generation that a reply to `resume` names.
fn generation_in(got: &Got) -> Option<u64> {
    match got {
        Got::Reply(_, text) => text.split_once("generation: ")?.1.split(',').next()?.parse().ok(),
        _ => None,
    }
}

/// Resumes; its new generation.
fn resume(world: &mut World, shard: usize, slot: u32, generation: Option<u64>, seen: &[SeenEvent<'_>]) -> u64 {
    let claim = generation
        .map_or(Claim::New, |generation| Claim::Life { client_id: "c", life: LifeId { generation, epoch: 0 } });
    world.send(shard, slot, Command::Resume { claim, seen, position: None, attempt: 0 }).expect("taken");
    world.settle();
    world.queues[shard].got[&slot].iter().find_map(generation_in).expect("resumed")
}

#[test]
fn who_comes_back_to_where_it_was_costs_one_record() {
    for shards in [1, 3] {
        let mut world = world(shards);
        world.connect(0, 1, "c");
        let mut generation = resume(&mut world, 0, 1, None, &[]);
        world.send(0, 1, Command::Subscribe { session: "s", from: From::Earliest, policy: Policy::Lossless });
        pass(&mut world, LATER_MS);
        for slot in 2..5 {
            world.disconnect(0, slot - 1);
            pass(&mut world, LATER_MS);
            let before = records(&world);
            world.connect(0, slot, "c");
            generation = resume(&mut world, 0, slot, Some(generation), &[]);
            pass(&mut world, LATER_MS);
            assert_eq!(records(&world) - before, 1, "{shards} shards");
        }
        world.send(0, 4, publish("s", "m")).expect("taken");
        pass(&mut world, LATER_MS);
        assert!(texts(&mut world, 0, 4).iter().any(|got| got.starts_with("Event")));
    }
}

#[test]
fn positions_that_a_client_says_are_kept_by_and_by() {
    for shards in [1, 3] {
        let mut world = world(shards);
        world.connect(0, 1, "c");
        let generation = resume(&mut world, 0, 1, None, &[]);
        world.send(0, 1, Command::Subscribe { session: "s", from: From::Earliest, policy: Policy::Lossless });
        for message_id in ["m0", "m1"] {
            world.send(0, 1, publish("s", message_id)).expect("taken");
            world.settle();
        }
        world.disconnect(0, 1);
        pass(&mut world, LATER_MS);
        let before = records(&world);
        world.connect(0, 2, "c");
        // It does not know the epoch, and says none.
        let generation = resume(&mut world, 0, 2, Some(generation), &[SeenEvent { session: "s", epoch: 0, offset: 0 }]);
        assert_eq!(records(&world) - before, 1, "only the grant");
        let events = |got: Vec<String>| got.iter().filter(|got| got.starts_with("Event")).count();
        assert_eq!(events(texts(&mut world, 0, 2)), 1);
        pass(&mut world, LATER_MS);
        assert_eq!(records(&world) - before, 2, "and where it stands");
        // Lost without a word of its own: the next one begins there.
        world.disconnect(0, 2);
        world.connect(0, 3, "c");
        resume(&mut world, 0, 3, Some(generation), &[]);
        pass(&mut world, LATER_MS);
        assert_eq!(events(texts(&mut world, 0, 3)), 1, "the one that was not acknowledged");
    }
}

#[test]
fn a_place_that_is_gone_is_said_as_a_gap_whoever_owns_the_session() {
    for shards in [1, 3] {
        let mut world = world(shards);
        world.connect(0, 1, "c");
        for session in ["s", "t", "u", "v"] {
            world.send(0, 1, publish(session, "m")).expect("taken");
            world.settle();
        }
        let generation = resume(&mut world, 0, 1, None, &[]);
        for session in ["s", "t", "u", "v"] {
            world.send(0, 1, Command::Subscribe { session, from: From::Latest, policy: Policy::Lossless });
        }
        world.settle();
        world.disconnect(0, 1);
        pass(&mut world, LATER_MS);
        world.connect(0, 2, "c");
        let seen: Vec<_> =
            ["s", "t", "u", "v"].map(|session| SeenEvent { session, epoch: 99, offset: 5 }).into_iter().collect();
        let generation = resume(&mut world, 0, 2, Some(generation), &seen);
        pass(&mut world, LATER_MS);
        let heard = texts(&mut world, 0, 2);
        for session in ["s", "t", "u", "v"] {
            let said =
                |what: &str| heard.iter().any(|got| got.starts_with(what) && got.contains(&format!("\"{session}\"")));
            assert!(said("Gap") && said("Event"), "{shards} shards, {session}: {heard:?}");
        }
        world.disconnect(0, 2);
        pass(&mut world, LATER_MS);
        world.connect(0, 3, "c");
        resume(&mut world, 0, 3, Some(generation), &[]);
        assert!(texts(&mut world, 0, 3).iter().any(|got| got.contains("sessions: 4")), "all of them are kept");
    }
}

#[test]
fn a_feed_that_does_not_stand_again_yet_is_not_forgotten() {
    let mut world = world(3);
    world.connect(0, 1, "c");
    let mut generation = resume(&mut world, 0, 1, None, &[]);
    world.send(0, 1, Command::SubscribePatterns { patterns: &["a.>"], from: PatternFrom::Latest });
    pass(&mut world, LATER_MS);
    world.disconnect(0, 1);
    pass(&mut world, LATER_MS);
    // Lost after so many turns of its shard, the others standing still: at any step of the restore.
    for (slot, turns) in (2..).zip(0..12) {
        world.connect(0, slot, "c");
        let claim = Claim::Life { client_id: "c", life: LifeId { generation, epoch: 0 } };
        world.send(0, slot, Command::Resume { claim, seen: &[], position: None, attempt: 0 }).expect("taken");
        for _ in 0..20 {
            // Home, wherever it is, grants; nobody else moves once the grant is there.
            let told = world.queues[0].got.contains_key(&slot);
            for shard in if told { 0..1 } else { 0..3 } {
                world.turn(shard);
            }
            if told {
                break;
            }
        }
        for _ in 0..turns {
            world.turn(0);
        }
        let got = world.queues[0].got.get(&slot).cloned().unwrap_or_default();
        generation = got.iter().find_map(generation_in).expect("resumed");
        assert!(got.iter().any(|got| format!("{got:?}").contains("patterns: true")), "after {turns} turns: {got:?}");
        world.disconnect(0, slot);
        pass(&mut world, LATER_MS);
    }
}

/// Many come back whose states are no longer in memory, more than there are read buffers, and their home's disk takes its time.
#[test]
fn who_waits_for_a_state_from_disk_holds_up_nobody_elses_mail() {
    let mut world = world(2);
    let is_far = |world: &World, session: &str| world.shards[0].owner("default", session) == ShardId(1);
    let clients: Vec<String> =
        (0..).map(|n| format!("c{n}")).filter(|c| is_far(&world, &format!("$client.{c}"))).take(24).collect();
    let session = (0..).map(|n| format!("s{n}")).find(|s| is_far(&world, s)).expect("one of them");
    let come = |world: &mut World, slot: u32, client: &str, generation: Option<u64>| {
        world.connect(0, slot, client);
        let claim = generation
            .map_or(Claim::New, |generation| Claim::Life { client_id: client, life: LifeId { generation, epoch: 0 } });
        world.send(0, slot, Command::Resume { claim, seen: &[], position: None, attempt: 0 }).expect("taken");
    };
    let mut generations = vec![];
    for (slot, client) in (0..).zip(&clients) {
        come(&mut world, slot, client, None);
        world.settle();
        generations.push(world.queues[0].got[&slot].iter().find_map(generation_in));
        world.disconnect(0, slot);
        world.settle();
    }
    world.connect(0, 99, "reader");
    for number in 0..100 {
        world.send(0, 99, publish(&session, &format!("m{number}"))).expect("taken");
        world.settle();
    }
    texts(&mut world, 0, 99);
    world.still = true;
    for ((slot, client), generation) in (100..).zip(&clients).zip(generations) {
        come(&mut world, slot, client, generation);
    }
    let subscribe = Command::Subscribe { session: &session, from: From::Latest, policy: Policy::Lossless };
    world.send(0, 99, subscribe).expect("taken");
    for turn in 0..100 {
        world.turn(turn % 2);
    }
    assert!(texts(&mut world, 0, 99).iter().any(|got| got.contains("subscribed")), "it waits behind them");
    assert!((100..124).all(|slot| !world.queues[0].got.contains_key(&slot)), "their states are in memory");
    world.still = false;
    world.settle();
    let back = |slot: &u32| world.queues[0].got[slot].iter().any(|got| generation_in(got).is_some());
    assert_eq!((100..124).filter(back).count(), 24);
}

/// A gap is told, and the connection is lost before anything behind it is worked off.
#[test]
fn a_gap_that_nothing_acknowledged_is_told_again() {
    for shards in [1, 3] {
        let mut world = world(shards);
        world.connect(0, 1, "c");
        let generation = resume(&mut world, 0, 1, None, &[]);
        world.send(0, 1, Command::Hello { credit_events: Some(1), credit_bytes: None }).expect("taken");
        world.send(0, 1, Command::Subscribe { session: "s", from: From::Earliest, policy: Policy::Latest });
        world.settle();
        for number in 0..6 {
            world.send(0, 1, publish("s", &format!("m{number}"))).expect("taken");
            world.settle();
        }
        world.send(0, 1, Command::Acknowledge { events: 1, bytes: None }).expect("taken");
        pass(&mut world, LATER_MS);
        let heard = texts(&mut world, 0, 1);
        assert!(heard.iter().any(|got| got.starts_with("Gap")), "{shards} shards: {heard:?}");
        world.disconnect(0, 1);
        pass(&mut world, LATER_MS);
        world.connect(0, 2, "c");
        resume(&mut world, 0, 2, Some(generation), &[]);
        pass(&mut world, LATER_MS);
        let heard = texts(&mut world, 0, 2);
        let whole = heard.iter().filter(|got| got.starts_with("Event")).count() == 5;
        assert!(whole || heard.iter().any(|got| got.starts_with("Gap")), "{shards} shards: {heard:?}");
    }
}

/// The client comes on another connection while the one before it still stands: what that one did last is known.
#[test]
fn a_life_is_handed_over_with_its_last_words() {
    for (shards, other) in [(2, 1), (3, 1), (3, 2)] {
        let mut world = world(shards);
        world.connect(0, 1, "c");
        let generation = resume(&mut world, 0, 1, None, &[]);
        pass(&mut world, LATER_MS);
        world.send(0, 1, Command::Subscribe { session: "s", from: From::Earliest, policy: Policy::Lossless });
        world.settle();
        for message_id in ["m0", "m1"] {
            world.send(0, 1, publish("s", message_id)).expect("taken");
            world.settle();
        }
        world.send(0, 1, Command::Acknowledge { events: 2, bytes: None }).expect("taken");
        world.now.mono_us += 1000;
        world.connect(other, 2, "c");
        resume(&mut world, other, 2, Some(generation), &[]);
        pass(&mut world, LATER_MS);
        let heard = texts(&mut world, other, 2);
        assert!(heard.iter().any(|got| got.contains("sessions: 1")), "{shards} shards: {heard:?}");
        assert!(!heard.iter().any(|got| got.starts_with("Event")), "both were worked off: {heard:?}");
    }
}

/// Who was in a session when its connection was lost is in it again, without a word of its own.
#[test]
fn a_life_brings_back_the_sessions_that_it_is_in() {
    for shards in [1, 3] {
        let mut world = world(shards);
        world.connect(0, 1, "c");
        let generation = resume(&mut world, 0, 1, None, &[]);
        let act = PresenceAct::Enter { state: PresenceState::Tool, data: None, lease_ms: None, log: false };
        world.send(0, 1, Command::Presence { session: "room", act }).expect("taken");
        pass(&mut world, LATER_MS);
        world.disconnect(0, 1);
        pass(&mut world, 1000);
        world.connect(0, 2, "c");
        resume(&mut world, 0, 2, Some(generation), &[]);
        // Longer than a lease that nobody renews.
        pass(&mut world, 4 * Limits::default().presence.lease_ms);
        world.connect(0, 9, "watcher");
        let act = PresenceAct::Watch(RosterKind::Presence);
        world.send(0, 9, Command::Presence { session: "room", act }).expect("taken");
        pass(&mut world, 1000);
        let heard = texts(&mut world, 0, 9);
        assert!(
            heard.iter().any(|got| got.starts_with("Roster") && got.contains("\"c\"")),
            "{shards} shards: {heard:?}"
        );
    }
}
