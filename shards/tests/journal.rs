//! Comings and goings in the log: who follows the session learns them, a storm is one event, and nobody else's session has any.

mod world;

use shards::command::{Claim, Command, From, Policy, PresenceAct, PresenceState};
use shards::ids::LifeId;
use shards::limits::{Limits, PresenceLimits};
use std::collections::BTreeSet;
use storage::log::LogConfig;
use world::{Got, World};

const ROOM: &str = "room";

fn enter(log: bool) -> Command<'static> {
    enter_into(ROOM, log)
}

fn enter_into(session: &str, log: bool) -> Command<'_> {
    let act = PresenceAct::Enter { state: PresenceState::Idle, data: None, lease_ms: None, log };
    Command::Presence { session, act }
}

fn leave() -> Command<'static> {
    Command::Presence { session: ROOM, act: PresenceAct::Leave }
}

/// Time goes by, and every shard runs.
fn pass(world: &mut World, ms: u64) {
    for _ in 0..ms.div_ceil(50) {
        world.now.mono_us += 50_000;
        world.settle();
    }
}

/// Data of the events that a connection got.
fn events(world: &mut World, shard: usize, slot: u32) -> Vec<String> {
    let got = world.queues[shard].got.remove(&slot).unwrap_or_default();
    got.into_iter().filter_map(|got| if let Got::Event { data, .. } = got { Some(data) } else { None }).collect()
}

/// A world, with a connection that follows the room: slot 1 of shard 0.
fn world(shards: u16) -> World {
    let mut world = World::new(shards, Limits::default(), LogConfig::small());
    world.connect(0, 1, "reader");
    let follow = Command::Subscribe { session: ROOM, from: From::Earliest, policy: Policy::default() };
    world.send(0, 1, follow).expect("taken");
    world.settle();
    world
}

#[test]
fn comings_and_goings_are_events_as_long_as_a_member_wants_that() {
    for shards in 1..4 {
        let (mut world, last) = (world(shards), usize::from(shards) - 1);
        world.connect(last, 2, "ann");
        world.connect(0, 3, "bob");
        world.send(0, 3, enter(false)).expect("taken");
        pass(&mut world, 3000);
        assert_eq!(events(&mut world, 0, 1), [""; 0], "nobody wants it");
        world.send(last, 2, enter(true)).expect("taken");
        pass(&mut world, 3000);
        assert_eq!(events(&mut world, 0, 1), [r#"{"joined":["bob","ann"],"snapshot":true}"#]);
        // Somebody who is at something else, or comes back within the lease, is no news.
        let act = PresenceAct::Update { state: Some(PresenceState::Tool), data: None };
        world.send(last, 2, Command::Presence { session: ROOM, act }).expect("taken");
        world.disconnect(0, 3);
        pass(&mut world, 10_000);
        world.connect(last, 4, "bob");
        world.send(last, 4, enter(false)).expect("taken");
        pass(&mut world, 60_000);
        assert_eq!(events(&mut world, 0, 1), [""; 0]);
        world.disconnect(last, 4);
        pass(&mut world, 35_000);
        assert_eq!(events(&mut world, 0, 1), [r#"{"left":["bob"]}"#]);
        world.connect(0, 5, "cy");
        world.send(0, 5, enter(false)).expect("taken");
        world.send(last, 2, leave()).expect("taken");
        pass(&mut world, 3000);
        assert_eq!(events(&mut world, 0, 1), [r#"{"joined":["cy"],"left":["ann"],"ends":true}"#]);
        world.send(0, 5, leave()).expect("taken");
        pass(&mut world, 3000);
        assert_eq!(events(&mut world, 0, 1), [""; 0], "nobody wants it any more");
    }
}

#[test]
fn a_storm_is_an_event_a_second() {
    let mut world = world(3);
    world.connect(1, 2, "ann");
    world.send(1, 2, enter(true)).expect("taken");
    pass(&mut world, 2000);
    events(&mut world, 0, 1);
    for n in 0..600u32 {
        let (shard, slot) = (n as usize % 3, 10 + n);
        world.connect(shard, slot, &format!("c{n}"));
        world.send(shard, slot, enter(false)).expect("taken");
        if n % 2 > 0 {
            world.send(shard, slot, leave()).expect("taken");
        }
        // Three seconds in all.
        world.now.mono_us += 5000;
        world.settle();
    }
    pass(&mut world, 3000);
    let heard = events(&mut world, 0, 1);
    assert!((2..=4).contains(&heard.len()), "{heard:?}");
    let names =
        |text: &String| text.split('"').filter(|part| part.starts_with('c')).map(str::to_owned).collect::<Vec<_>>();
    let known: BTreeSet<String> = heard.iter().flat_map(names).collect();
    assert!((0..600).step_by(2).all(|n| known.contains(&format!("c{n}"))));
}

#[test]
fn a_shard_logs_so_many_a_second_and_the_rest_later() {
    let presence = PresenceLimits {
        client_presences_max: 1000,
        client_changes_per_second_max: 1000,
        session_members_max: 10,
        ..PresenceLimits::default()
    };
    let log = LogConfig { partitions_resident_max: 1000, ..LogConfig::small() };
    let mut world = World::new(1, Limits { presence, ..Limits::default() }, log);
    world.connect(0, 1, "ann");
    let rooms: Vec<String> = (0..180).map(|n| format!("r{n}")).collect();
    for room in &rooms {
        world.send(0, 1, enter_into(room, true)).expect("taken");
        world.settle();
    }
    let logged = |world: &mut World| {
        for room in &rooms {
            world.send(0, 1, Command::History { session: room, from: None, limit: 10 }).expect("taken");
            world.settle();
        }
        let got = world.queues[0].got.remove(&1).unwrap_or_default();
        let events = |got| if let Got::History { offsets, .. } = got { offsets.len() } else { 0 };
        got.into_iter().map(events).sum::<usize>()
    };
    pass(&mut world, 1250);
    assert!((120..160).contains(&logged(&mut world)), "a second's worth");
    pass(&mut world, 1000);
    assert_eq!(logged(&mut world), 180);
}

#[test]
fn a_life_brings_it_back() {
    let mut world = world(2);
    world.connect(1, 2, "ann");
    world.send(1, 2, Command::Resume { claim: Claim::New, seen: &[], position: None, attempt: 0 }).expect("taken");
    world.settle();
    let got = world.queues[1].got.remove(&2).unwrap_or_default();
    let generation = got.iter().find_map(|got| {
        let Got::Reply(_, text) = got else { return None };
        text.split_once("generation: ")?.1.split(',').next()?.parse().ok()
    });
    world.send(1, 2, enter(true)).expect("taken");
    pass(&mut world, 3000);
    world.disconnect(1, 2);
    pass(&mut world, 40_000);
    let first = [r#"{"joined":["ann"],"snapshot":true}"#, r#"{"left":["ann"],"ends":true}"#];
    assert_eq!(events(&mut world, 0, 1), first);
    world.connect(0, 3, "stranger");
    let claim = Claim::Life { client_id: "ann", life: LifeId { generation: generation.expect("resumed"), epoch: 0 } };
    world.send(0, 3, Command::Resume { claim, seen: &[], position: None, attempt: 0 }).expect("taken");
    pass(&mut world, 3000);
    assert_eq!(events(&mut world, 0, 1), [r#"{"joined":["ann"],"snapshot":true}"#]);
}
