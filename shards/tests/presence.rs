//! Presence and receipts over several shards: who watches believes what is true, leases end what nobody renews, and nothing else
//! ends anything.

mod world;

use proptest::prelude::*;
use shards::command::{
    Claim, Command, DataKind, Durability, From, NewEvent, Policy, PresenceAct, PresenceState, RosterKind,
};
use shards::ids::LifeId;
use shards::limits::{Limits, PresenceLimits};
use shards::outbox::Happened;
use std::collections::BTreeMap;
use storage::log::LogConfig;
use world::{Got, Roster, World};

const ROOM: &str = "room";

fn world(shards: u16) -> World {
    World::new(shards, Limits::default(), LogConfig::small())
}

fn act(act: PresenceAct<'_>) -> Command<'_> {
    Command::Presence { session: ROOM, act }
}

fn enter<'a>() -> Command<'a> {
    act(PresenceAct::Enter { state: PresenceState::Idle, data: None, lease_ms: None, log: false })
}

fn watch<'a>(kind: RosterKind) -> Command<'a> {
    act(PresenceAct::Watch(kind))
}

/// Time goes by, and every shard runs.
fn pass(world: &mut World, ms: u64) {
    for _ in 0..ms.div_ceil(50) {
        world.now.mono_us += 50_000;
        world.settle();
    }
}

fn frames(world: &mut World, shard: usize, slot: u32) -> Vec<Roster> {
    let got = world.queues[shard].got.remove(&slot).unwrap_or_default();
    got.into_iter().filter_map(|got| if let Got::Roster(frame) = got { Some(frame) } else { None }).collect()
}

fn replies(world: &mut World, shard: usize, slot: u32) -> Vec<String> {
    let got = world.queues[shard].got.remove(&slot).unwrap_or_default();
    got.into_iter().filter_map(|got| if let Got::Reply(_, text) = got { Some(text) } else { None }).collect()
}

/// What one who hears frames believes; holes and what cannot be are found.
#[derive(Default, Debug)]
struct Believer {
    version: u64,
    more: bool,
    complete: bool,
    believes: BTreeMap<String, String>,
    left: Vec<String>,
}

impl Believer {
    fn hear(&mut self, frames: Vec<Roster>) {
        for frame in frames {
            if frame.snapshot {
                (self.version, self.more) = (0, true);
                self.believes.clear();
            }
            assert_eq!(frame.after, self.version, "a hole before {frame:?}");
            (self.version, self.more, self.complete) = (frame.version, frame.more, frame.complete);
            for (client, happened, value) in frame.changes {
                match happened {
                    Happened::Left => {
                        self.believes.remove(&client);
                        self.left.push(client);
                    }
                    // Of somebody known: it left and came again meanwhile.
                    Happened::Joined => {
                        self.believes.insert(client, value);
                    }
                    Happened::Updated => {
                        assert!(self.believes.insert(client, value).is_some(), "somebody unknown is updated");
                    }
                }
            }
        }
    }

    fn names(&self) -> Vec<&str> {
        self.believes.keys().map(String::as_str).collect()
    }
}

#[test]
fn watchers_on_every_shard_are_told_once_a_tick() {
    let mut world = world(3);
    for shard in 0..3 {
        world.connect(shard, 1, &format!("w{shard}"));
        world.connect(shard, 2, &format!("m{shard}"));
        world.send(shard, 1, watch(RosterKind::Presence)).expect("taken");
        world.send(shard, 2, enter()).expect("taken");
    }
    pass(&mut world, 250);
    let mut believers: Vec<Believer> = (0..3).map(|_| Believer::default()).collect();
    for (shard, believer) in believers.iter_mut().enumerate() {
        believer.hear(frames(&mut world, shard, 1));
        assert_eq!(believer.names(), ["m0", "m1", "m2"]);
        assert!(!believer.complete, "the server has just started");
        assert_eq!(replies(&mut world, shard, 2).len(), 1);
    }
    for n in 0..20u64 {
        let state = PresenceState::ALL[n as usize % 4];
        world.send(0, 2, act(PresenceAct::Update { state: Some(state), data: Some(b"[1]") })).expect("taken");
        world.settle();
    }
    pass(&mut world, 250);
    for (shard, believer) in believers.iter_mut().enumerate() {
        let heard = frames(&mut world, shard, 1);
        assert!((1..=2).contains(&heard.len()), "twenty changes are one or two frames: {heard:?}");
        believer.hear(heard);
        assert_eq!(believer.believes["m0"], "blocked [1]");
    }
    world.send(2, 2, act(PresenceAct::Leave)).expect("taken");
    world.send(1, 1, act(PresenceAct::Unwatch(RosterKind::Presence))).expect("taken");
    pass(&mut world, 250);
    believers[0].hear(frames(&mut world, 0, 1));
    assert_eq!(believers[0].names(), ["m0", "m1"]);
    assert_eq!(frames(&mut world, 1, 1), []);
}

#[test]
fn who_comes_and_goes_within_a_tick_is_no_news() {
    let mut world = world(2);
    world.connect(0, 1, "watcher");
    world.connect(1, 2, "flighty");
    world.send(0, 1, watch(RosterKind::Presence)).expect("taken");
    pass(&mut world, 250);
    assert_eq!(frames(&mut world, 0, 1).len(), 1, "the snapshot, empty");
    world.send(1, 2, enter()).expect("taken");
    world.send(1, 2, act(PresenceAct::Leave)).expect("taken");
    pass(&mut world, 250);
    assert_eq!(frames(&mut world, 0, 1), []);
    assert_eq!(replies(&mut world, 1, 2).len(), 2);
}

#[test]
fn a_quick_reconnect_is_no_leave_and_a_lease_ends_who_does_not_come_back() {
    let mut world = world(2);
    world.connect(0, 1, "watcher");
    world.send(0, 1, watch(RosterKind::Presence)).expect("taken");
    for shard in 0..2 {
        world.connect(shard, 2, &format!("m{shard}"));
        world.send(shard, 2, enter()).expect("taken");
    }
    let mut believer = Believer::default();
    // Connected, it stays for as long as it likes, without a word.
    pass(&mut world, 100_000);
    believer.hear(frames(&mut world, 0, 1));
    assert_eq!((believer.names(), &believer.left[..]), (vec!["m0", "m1"], &[][..]));
    for shard in 0..2 {
        world.disconnect(shard, 2);
    }
    pass(&mut world, 15_000);
    world.connect(0, 3, "m1");
    world.send(0, 3, enter()).expect("taken");
    pass(&mut world, 20_000);
    believer.hear(frames(&mut world, 0, 1));
    assert_eq!((believer.names(), &believer.left[..]), (vec!["m1"], &["m0".to_owned()][..]));
    world.disconnect(0, 3);
    pass(&mut world, 31_000);
    believer.hear(frames(&mut world, 0, 1));
    assert_eq!(believer.names(), [""; 0]);
}

#[test]
fn time_in_which_the_owner_did_not_run_ends_no_lease() {
    let mut world = world(2);
    world.connect(0, 1, "watcher");
    world.connect(1, 2, "member");
    world.send(0, 1, watch(RosterKind::Presence)).expect("taken");
    world.send(1, 2, enter()).expect("taken");
    pass(&mut world, 1000);
    world.now.mono_us += 100_000_000;
    pass(&mut world, 50_000);
    let mut believer = Believer::default();
    believer.hear(frames(&mut world, 0, 1));
    assert_eq!((believer.names(), believer.left.len()), (vec!["member"], 0));
}

#[test]
fn a_stop_of_the_whole_process_at_any_time_ends_no_lease() {
    for shard in 0..2 {
        for (before_ms, stop_ms) in (0..40).flat_map(|n| [(n * 777, 31_000), (n * 777, 600_000)]) {
            let mut world = world(2);
            world.connect(0, 1, "watcher");
            world.connect(shard, 2, "member");
            world.send(0, 1, watch(RosterKind::Presence)).expect("taken");
            world.send(shard, 2, enter()).expect("taken");
            pass(&mut world, before_ms);
            world.now.mono_us += stop_ms * 1000;
            pass(&mut world, 2000);
            let mut believer = Believer::default();
            believer.hear(frames(&mut world, 0, 1));
            assert_eq!(
                believer.left.len(),
                0,
                "stopped after {before_ms} ms for {stop_ms} ms, member at shard {shard}"
            );
        }
    }
}

#[test]
fn leaving_while_the_room_has_lost_the_member_is_leaving() {
    // The owner's lease has ended and the member's shard has not heard of it: what it holds would enter the member again.
    let mut world = world(2);
    let owner = usize::from(world.shards[0].owner("default", ROOM).0);
    let other = 1 - owner;
    world.connect(owner, 1, "watcher");
    world.connect(other, 2, "member");
    world.send(owner, 1, watch(RosterKind::Presence)).expect("taken");
    world.send(other, 2, enter()).expect("taken");
    pass(&mut world, 500);
    // Only the owner runs: nobody renews.
    for _ in 0..1400 {
        world.now.mono_us += 25_000;
        world.turn(owner);
    }
    let mut believer = Believer::default();
    believer.hear(frames(&mut world, owner, 1));
    assert_eq!((believer.names(), believer.left.len()), (vec![], 1), "its shard stood still for longer than its lease");
    replies(&mut world, other, 2);
    world.send(other, 2, act(PresenceAct::Leave)).expect("taken");
    pass(&mut world, 60_000);
    assert_eq!(replies(&mut world, other, 2), ["refused not_present session"]);
    believer.hear(frames(&mut world, owner, 1));
    assert_eq!(believer.names(), [""; 0], "it had left");
}

#[test]
fn two_connections_of_a_client_are_one_member_and_leaving_by_one_is_leaving() {
    for shards in 1..4 {
        let mut world = world(shards);
        let last = usize::from(shards) - 1;
        world.connect(0, 1, "watcher");
        world.send(0, 1, watch(RosterKind::Presence)).expect("taken");
        world.connect(0, 2, "member");
        world.connect(last, 3, "member");
        world.send(0, 2, enter()).expect("taken");
        world.send(last, 3, enter()).expect("taken");
        pass(&mut world, 1000);
        world.disconnect(0, 2);
        pass(&mut world, 60_000);
        let mut believer = Believer::default();
        believer.hear(frames(&mut world, 0, 1));
        assert_eq!((believer.names(), believer.left.len()), (vec!["member"], 0), "the other one holds it");
        world.connect(0, 4, "member");
        world.send(0, 4, act(PresenceAct::Leave)).expect("taken");
        // The other connection goes on renewing until it hears of it.
        pass(&mut world, 60_000);
        believer.hear(frames(&mut world, 0, 1));
        assert_eq!(believer.names(), [""; 0]);
        assert_eq!(believer.left.len(), 1, "it did not come back by itself");
    }
}

#[test]
fn a_flood_is_refused_with_the_time_to_wait() {
    let mut world = world(2);
    world.connect(0, 1, "noisy");
    let mut refused = 0;
    for _ in 0..80 {
        world.send(0, 1, enter()).expect("taken");
        world.settle();
        refused += replies(&mut world, 0, 1).iter().filter(|text| text.contains("presence_flood")).count();
    }
    assert!((25..=30).contains(&refused), "{refused}: fifty a second, all at once");
    pass(&mut world, 1000);
    world.send(0, 1, act(PresenceAct::Leave)).expect("taken");
    world.settle();
    assert!(replies(&mut world, 0, 1)[0].contains("Left"));
}

#[test]
fn what_cannot_be_is_refused() {
    let presence =
        PresenceLimits { session_members_max: 1, client_presences_max: 2, client_watches_max: 1, ..Default::default() };
    let mut world = World::new(2, Limits { presence, ..Limits::default() }, LogConfig::small());
    world.connect(0, 1, "ann");
    world.connect(1, 1, "bob");
    let mut ask = |shard: usize, session: &str, act: PresenceAct<'_>| {
        world.send(shard, 1, Command::Presence { session, act }).expect("taken");
        world.settle();
        replies(&mut world, shard, 1).pop().expect("an answer")
    };
    let enter = |lease_ms| PresenceAct::Enter { state: PresenceState::Tool, data: None, lease_ms, log: false };
    assert_eq!(ask(0, "a", PresenceAct::Leave), "refused not_present session");
    assert_eq!(ask(0, "a", PresenceAct::Update { state: None, data: None }), "refused not_present session");
    assert_eq!(ask(0, "a", enter(Some(999))), "refused out_of_range lease_ms");
    assert_eq!(ask(0, "a", enter(Some(600_001))), "refused out_of_range lease_ms");
    assert!(ask(0, "a", enter(Some(1000))).contains("Entered"));
    assert_eq!(ask(1, "a", enter(None)), "refused room_full ");
    assert!(ask(0, "b", enter(None)).contains("Entered"));
    assert_eq!(ask(0, "c", enter(None)), "refused too_many_presences session");
    assert_eq!(ask(0, "a", PresenceAct::Unwatch(RosterKind::Presence)), "refused not_watching session");
    assert!(ask(0, "a", PresenceAct::Watch(RosterKind::Presence)).contains("Watching"));
    assert!(ask(0, "a", PresenceAct::Watch(RosterKind::Presence)).contains("Watching"), "again is no more");
    assert_eq!(ask(0, "b", PresenceAct::Watch(RosterKind::Presence)), "refused too_many_presences session");
    assert_eq!(ask(1, "c", PresenceAct::Read { offset: 1 }), "refused offset_out_of_range offset");
}

#[test]
fn a_watcher_without_room_is_told_what_holds_when_it_has_room() {
    let mut world = world(2);
    for shard in 0..2 {
        world.connect(shard, 1, &format!("w{shard}"));
        world.send(shard, 1, watch(RosterKind::Presence)).expect("taken");
    }
    pass(&mut world, 200);
    let mut believers = [Believer::default(), Believer::default()];
    for (shard, believer) in believers.iter_mut().enumerate() {
        believer.hear(frames(&mut world, shard, 1));
        world.drained(shard, 1, 0);
    }
    // More come and go than is remembered.
    for n in 0..3000u32 {
        let (shard, slot) = (n as usize % 2, 10 + n);
        world.connect(shard, slot, &format!("c{n}"));
        world.send(shard, slot, enter()).expect("taken");
        if n % 3 > 0 {
            world.send(shard, slot, act(PresenceAct::Leave)).expect("taken");
        }
        world.settle();
    }
    pass(&mut world, 300);
    for (shard, believer) in believers.iter_mut().enumerate() {
        assert_eq!(frames(&mut world, shard, 1), []);
        world.drained(shard, 1, usize::MAX);
        pass(&mut world, 300);
        believer.hear(frames(&mut world, shard, 1));
        assert_eq!(believer.believes.len(), 1000);
        assert!(!believer.more);
    }
}

#[test]
fn a_room_is_complete_when_everybody_had_time_to_come_back() {
    let mut world = world(2);
    for shard in 0..2 {
        world.connect(shard, 1, &format!("w{shard}"));
        world.send(shard, 1, watch(RosterKind::Presence)).expect("taken");
    }
    pass(&mut world, 119_000);
    let mut believers = [Believer::default(), Believer::default()];
    for (shard, believer) in believers.iter_mut().enumerate() {
        believer.hear(frames(&mut world, shard, 1));
        assert!(!believer.complete);
    }
    pass(&mut world, 2000);
    for (shard, believer) in believers.iter_mut().enumerate() {
        believer.hear(frames(&mut world, shard, 1));
        assert!(believer.complete, "{believer:?}");
    }
}

fn publish<'a>(message_id: &'a str) -> Command<'a> {
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
    Command::Publish { session: ROOM, event, durability: Durability::Disk }
}

#[test]
fn receipts_follow_acknowledgements_and_reading_and_the_lowest_of_all_is_told() {
    let mut world = world(3);
    world.connect(0, 1, "watcher");
    world.send(0, 1, watch(RosterKind::Receipts)).expect("taken");
    for (shard, name) in [(1, "ann"), (2, "bob")] {
        world.connect(shard, 2, name);
        world
            .send(shard, 2, Command::Resume { claim: Claim::New, seen: &[], position: None, attempt: 0 })
            .expect("taken");
        world.settle();
        world
            .send(shard, 2, Command::Subscribe { session: ROOM, from: From::Earliest, policy: Policy::default() })
            .expect("taken");
        world.settle();
        world.send(shard, 2, act(PresenceAct::Read { offset: 0 })).expect("taken");
    }
    for id in ["a", "b", "c", "d"] {
        world.send(0, 1, publish(id)).expect("taken");
    }
    pass(&mut world, 300);
    let mut believer = Believer::default();
    let heard = frames(&mut world, 0, 1);
    assert_eq!(heard.last().and_then(|frame| frame.all), Some((2, 0, 0)));
    believer.hear(heard);
    world.send(1, 2, Command::Acknowledge { events: 3, bytes: None }).expect("taken");
    world.send(2, 2, Command::Acknowledge { events: 2, bytes: None }).expect("taken");
    world.send(2, 2, act(PresenceAct::Read { offset: 1 })).expect("taken");
    pass(&mut world, 300);
    let heard = frames(&mut world, 0, 1);
    assert_eq!(heard.last().and_then(|frame| frame.all), Some((2, 2, 0)));
    believer.hear(heard);
    assert_eq!((&*believer.believes["ann"], &*believer.believes["bob"]), ("3 0", "2 1"));
    replies(&mut world, 2, 2);
    for (offset, answer) in [(0, "refused read_backwards offset"), (5, "refused offset_out_of_range offset")] {
        world.send(2, 2, act(PresenceAct::Read { offset })).expect("taken");
        world.settle();
        assert_eq!(replies(&mut world, 2, 2), [answer]);
    }
    // Nobody waits for ever for one who has gone.
    world.disconnect(2, 2);
    pass(&mut world, 125_000);
    let heard = frames(&mut world, 0, 1);
    assert_eq!(heard.last().and_then(|frame| frame.all), Some((1, 3, 0)));
}

#[test]
fn a_life_goes_on_where_it_was() {
    let mut world = world(3);
    world.connect(0, 1, "watcher");
    world.send(0, 1, watch(RosterKind::Presence)).expect("taken");
    world.connect(1, 2, "agent");
    world.send(1, 2, Command::Resume { claim: Claim::New, seen: &[], position: None, attempt: 0 }).expect("taken");
    world.settle();
    let generation = replies(&mut world, 1, 2)
        .iter()
        .find_map(|text| text.split_once("generation: ")?.1.split(',').next()?.parse().ok())
        .expect("resumed");
    let lease_ms = Some(2000);
    let data = Some(&b"{\"job\":7}"[..]);
    world
        .send(1, 2, act(PresenceAct::Enter { state: PresenceState::Thinking, data, lease_ms, log: false }))
        .expect("taken");
    world.send(1, 2, publish("x")).expect("taken");
    world.settle();
    world.send(1, 2, act(PresenceAct::Read { offset: 1 })).expect("taken");
    pass(&mut world, 500);
    world.disconnect(1, 2);
    pass(&mut world, 10_000);
    let mut believer = Believer::default();
    believer.hear(frames(&mut world, 0, 1));
    assert_eq!(believer.left, ["agent"], "away for longer than its lease");
    world.connect(2, 3, "stranger");
    let claim = Claim::Life { client_id: "agent", life: LifeId { generation, epoch: 0 } };
    world.send(2, 3, Command::Resume { claim, seen: &[], position: None, attempt: 0 }).expect("taken");
    world.send(0, 1, watch(RosterKind::Receipts)).expect("taken");
    pass(&mut world, 10_000);
    let (receipts, presence): (Vec<_>, Vec<_>) =
        frames(&mut world, 0, 1).into_iter().partition(|frame| frame.all.is_some());
    believer.hear(presence);
    assert_eq!(believer.believes["agent"], "thinking {\"job\":7}");
    assert_eq!(receipts.last().and_then(|frame| frame.all), Some((1, 1, 1)));
}

#[derive(Clone, Debug)]
enum Step {
    Enter(usize, u8),
    Update(usize, u8),
    Leave(usize),
    /// The client's connection is lost; it comes back at once on another shard and enters again, or not.
    Move(usize, bool),
    Watch(usize),
    Unwatch(usize),
    /// A watcher's queue is full, or empty again.
    Room(usize, bool),
    Pass(u64),
    Turn(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0usize..6, any::<u8>()).prop_map(|(who, n)| Step::Enter(who, n)),
        3 => (0usize..6, any::<u8>()).prop_map(|(who, n)| Step::Update(who, n)),
        2 => (0usize..6).prop_map(Step::Leave),
        1 => (0usize..6, any::<bool>()).prop_map(|(who, enters)| Step::Move(who, enters)),
        1 => (0usize..4).prop_map(Step::Watch),
        1 => (0usize..4).prop_map(Step::Unwatch),
        1 => (0usize..4, any::<bool>()).prop_map(|(who, full)| Step::Room(who, full)),
        2 => (1u64..400).prop_map(Step::Pass),
        3 => (0usize..3).prop_map(Step::Turn),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Six clients in one room, four watchers, three shards, tiny lanes: after quiet every watcher believes what is true, and
    /// whoever is connected and has entered never left but by its own word.
    #[test]
    fn after_quiet_every_watcher_believes_what_is_true(steps in steps(), slots in 8usize..12) {
        let presence = PresenceLimits { lease_ms: 600, lease_ms_min: 300, tick_ms: 100, ..Default::default() };
        let limits = Limits { mailbox_slots: slots, mail_per_peer_per_turn_max: 2, presence, ..Limits::default() };
        let mut world = World::new(3, limits, LogConfig::small());
        // Of each client: shard, slot, what it said last.
        let mut clients: Vec<(usize, u32, Option<String>)> = Vec::new();
        for who in 0..6u32 {
            world.connect(who as usize % 3, 100 + who, &format!("c{who}"));
            clients.push((who as usize % 3, 100 + who, None));
        }
        for watcher in 0..4u32 {
            world.connect(watcher as usize % 3, watcher, &format!("w{watcher}"));
        }
        let mut watching = [false; 4];
        let mut next_slot = 200;
        for step in steps {
            match step {
                Step::Enter(who, n) => {
                    let (data, state) = (n.to_string(), PresenceState::ALL[usize::from(n) % 4]);
                    let (shard, slot, said) = &mut clients[who];
                    let enter = PresenceAct::Enter { state, data: Some(data.as_bytes()), lease_ms: None, log: false };
                    if world.send(*shard, *slot, act(enter)).is_some() {
                        *said = Some(format!("{} {data}", state.name()));
                    }
                }
                // An update within the lease makes the new connection a holder: of one that does not enter nothing is sent.
                Step::Update(who, _) if clients[who].2.is_none() => {}
                Step::Update(who, n) => {
                    let (data, (shard, slot, said)) = (n.to_string(), &mut clients[who]);
                    let update = PresenceAct::Update { state: Some(PresenceState::Tool), data: Some(data.as_bytes()) };
                    if world.send(*shard, *slot, act(update)).is_some() {
                        *said = Some(format!("tool {data}"));
                    }
                }
                Step::Leave(who) => {
                    let (shard, slot, said) = &mut clients[who];
                    if world.send(*shard, *slot, act(PresenceAct::Leave)).is_some() {
                        *said = None;
                    }
                }
                Step::Move(who, enters) => {
                    // What is on its way over two roads has no order: it arrives first.
                    world.settle();
                    let (shard, slot, said) = &mut clients[who];
                    world.disconnect(*shard, *slot);
                    (*shard, *slot) = ((*shard + 1) % 3, next_slot);
                    next_slot += 1;
                    world.connect(*shard, *slot, &format!("c{who}"));
                    *said = None;
                    let enter = PresenceAct::Enter { state: PresenceState::Idle, data: None, lease_ms: None, log: false };
                    if enters && world.send(*shard, *slot, act(enter)).is_some() {
                        *said = Some("idle ".to_owned());
                    }
                }
                Step::Watch(who) => {
                    watching[who] |= world.send(who % 3, who as u32, watch(RosterKind::Presence)).is_some();
                }
                Step::Unwatch(who) => {
                    if world.send(who % 3, who as u32, act(PresenceAct::Unwatch(RosterKind::Presence))).is_some() {
                        watching[who] = false;
                    }
                }
                Step::Room(who, full) => world.drained(who % 3, who as u32, if full { 0 } else { usize::MAX }),
                Step::Pass(ms) => pass(&mut world, ms),
                Step::Turn(shard) => {
                    world.turn(shard);
                }
            }
        }
        for who in 0..4 {
            world.drained(who % 3, who as u32, usize::MAX);
        }
        // Longer than a lease: what nobody holds is gone, what somebody holds is there.
        pass(&mut world, 2000);
        let truth: BTreeMap<String, String> =
            clients.iter().enumerate().filter_map(|(who, (.., said))| Some((format!("c{who}"), said.clone()?))).collect();
        for (who, watches) in watching.into_iter().enumerate() {
            let mut believer = Believer::default();
            believer.hear(frames(&mut world, who % 3, who as u32));
            if watches {
                prop_assert_eq!(&believer.believes, &truth, "watcher {}", who);
            }
        }
    }
}
