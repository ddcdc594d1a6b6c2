//! Under whose name a connection works, and which token names which life.

mod world;

use shards::command::{Claim, Command, DataKind, Durability, NewEvent};
use shards::ids::LifeId;
use shards::limits::Limits;
use storage::log::LogConfig;
use world::{Got, World};

fn publish<'a>(session: &'a str, message_id: &'a str) -> Command<'a> {
    let event = NewEvent {
        topic: "chat",
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

fn resume(claim: Claim<'_>) -> Command<'_> {
    Command::Resume { claim, seen: &[], position: None, attempt: 0 }
}

fn life(life: LifeId) -> Command<'static> {
    resume(Claim::Life { client_id: "c", life })
}

fn answer(world: &World, shard: usize, slot: u32, id: u64) -> Option<String> {
    let got = world.queues[shard].got.get(&slot)?;
    got.iter().find_map(|got| if let Got::Reply(of, text) = got { (*of == id).then(|| text.clone()) } else { None })
}

fn say(world: &mut World, shard: usize, slot: u32, command: Command<'_>) -> String {
    let id = world.send(shard, slot, command).expect("there is room");
    world.settle();
    answer(world, shard, slot, id).expect("it is answered")
}

/// The life that an answer to `resume` names.
fn begun(text: &str) -> LifeId {
    let number = |key: &str| {
        let digits = text.split_once(key).unwrap_or_else(|| panic!("{text}")).1;
        digits.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).expect("a number")
    };
    LifeId { generation: number("generation: "), epoch: number("epoch: ") }
}

/// On whichever shard the client's home is.
#[test]
fn who_is_refused_a_life_goes_on_under_its_own_name() {
    for shard in 0..3 {
        let mut world = World::new(3, Limits::default(), LogConfig::small());
        world.connect(shard, 1, "c");
        world.connect(shard, 2, "thief");
        let own = begun(&say(&mut world, shard, 1, resume(Claim::New)));
        assert_eq!(say(&mut world, shard, 1, publish("s", "m")), "published 0 false");
        // Both in one breath: what comes behind the claim waits until it is known in whose name.
        let claim = world.send(shard, 2, life(LifeId { generation: own.generation + 7, ..own })).expect("room");
        let mut early = world.send(shard, 2, publish("s", "m"));
        world.settle();
        assert!(answer(&world, shard, 2, claim).expect("an answer").starts_with("refused stale_token"));
        let late = early.take().unwrap_or_else(|| world.send(shard, 2, publish("s", "m")).expect("room"));
        world.settle();
        let text = answer(&world, shard, 2, late).expect("an answer");
        assert_eq!(text, "published 1 false", "the thief's own message, and no repeat of the other's");
        // The one whose life it is takes it along to another connection, with all that comes behind.
        world.connect(shard, 3, "anybody");
        let claim = world.send(shard, 3, life(own)).expect("room");
        let mut early = world.send(shard, 3, publish("s", "m"));
        world.settle();
        assert!(!answer(&world, shard, 3, claim).expect("an answer").starts_with("refused"));
        let late = early.take().unwrap_or_else(|| world.send(shard, 3, publish("s", "m")).expect("room"));
        world.settle();
        assert_eq!(answer(&world, shard, 3, late).expect("an answer"), "published 0 true");
    }
}

/// A folder that goes back in time counts the same generations again: a token of the time that is gone names none of them.
#[test]
fn a_token_of_an_earlier_counting_names_no_life() {
    let folder = || {
        let mut world = World::new(2, Limits::default(), LogConfig::small());
        world.connect(0, 1, "c");
        world.settle();
        world
    };
    let before = begun(&say(&mut folder(), 0, 1, resume(Claim::New)));
    let mut world = folder();
    // Other epochs than the folder before it.
    for n in 0..20 {
        say(&mut world, 0, 1, publish(&format!("s{n}"), "m"));
    }
    let now = begun(&say(&mut world, 0, 1, resume(Claim::New)));
    assert_eq!(before.generation, now.generation);
    assert_ne!(before.epoch, now.epoch);
    world.connect(0, 2, "x");
    assert!(say(&mut world, 0, 2, life(before)).starts_with("refused stale_token"), "while it is in memory");
    assert_eq!(say(&mut world, 0, 1, publish("s", "still-there")), "published 0 false", "nobody was fenced for it");
    world.restart(2, Limits::default(), LogConfig::small());
    world.connect(0, 2, "x");
    assert!(say(&mut world, 0, 2, life(before)).starts_with("refused stale_token"), "and when it is read");
    let next = begun(&say(&mut world, 0, 2, life(now)));
    assert_eq!(next, LifeId { generation: now.generation + 1, ..now });
    world.connect(0, 3, "y");
    let unnamed = LifeId { epoch: 0, ..next };
    assert!(!say(&mut world, 0, 3, life(unnamed)).starts_with("refused"), "a token from before epochs stood in them");
}
