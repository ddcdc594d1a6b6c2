//! Groups over several shards: members come and go, and of each session every event is acknowledged once, in order, by one at a time.

mod world;

use proptest::prelude::*;
use shards::command::{Command, DataKind, Durability, GroupAsk, Lease, NewEvent, NewMarker};
use shards::limits::Limits;
use std::collections::{BTreeMap, BTreeSet};
use storage::log::LogConfig;
use world::{Got, World};

const GROUP: &str = "flow";
const LEASE_MS: u64 = 1000;

fn world(shards: u16) -> World {
    let mut world = World::new(shards, Limits::default(), LogConfig::small());
    world.settle();
    world
}

fn declare<'a>() -> Command<'a> {
    Command::Group { ask: GroupAsk::Declare { group: GROUP, topics: &["chat.>"], lease_ms: LEASE_MS } }
}

fn join<'a>(credit: u64) -> Command<'a> {
    Command::Group { ask: GroupAsk::Join { group: GROUP, credit } }
}

fn event<'a>(topic: &'a str, message_id: &'a str) -> NewEvent<'a> {
    NewEvent {
        topic,
        message_id,
        prev_event_id: None,
        prev_message_id: None,
        data: b"1",
        data_kind: DataKind::Json,
        ttl_ms: None,
        producer: None,
        traceparent: "",
    }
}

fn publish<'a>(session: &'a str, topic: &'a str, message_id: &'a str) -> Command<'a> {
    Command::Publish { session, event: event(topic, message_id), durability: Durability::Disk }
}

/// Carries a command out and gives the words of its reply.
fn say(world: &mut World, shard: usize, slot: u32, command: Command<'_>) -> String {
    let id = world.send(shard, slot, command).expect("there is room");
    world.settle();
    let got = world.queues[shard].got.entry(slot).or_default();
    let at = got.iter().position(|got| matches!(got, Got::Reply(of, _) if *of == id)).expect("it is answered");
    match got.remove(at) {
        Got::Reply(_, text) => text,
        _ => unreachable!("found above"),
    }
}

/// A run as a member has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    session: String,
    lease: Lease,
    offsets: Vec<u64>,
    next: u64,
}

fn runs(world: &mut World, shard: usize, slot: u32) -> Vec<Run> {
    let got = world.queues[shard].got.entry(slot).or_default();
    let found: Vec<Got> = got.extract_if(.., |got| matches!(got, Got::Run(..))).collect();
    let run = |got| match got {
        Got::Run(session, lease, events, next, _) => {
            assert!(events.iter().all(|(_, topic)| topic.starts_with("chat.")), "only what it wants: {events:?}");
            Run { session, lease, offsets: events.into_iter().map(|(offset, _)| offset).collect(), next }
        }
        _ => unreachable!("extracted"),
    };
    found.into_iter().map(run).collect()
}

fn acked(run: &Run, offset: u64) -> NewMarker<'static> {
    NewMarker { name: GROUP, offset, lease: Some(run.lease) }
}

fn ack(world: &mut World, shard: usize, slot: u32, run: &Run, offset: u64) -> String {
    say(world, shard, slot, Command::Mark { session: &run.session, marker: acked(run, offset) })
}

fn markers(world: &mut World, session: &str) -> String {
    say(world, 0, 1, Command::Markers { session, from: 0 })
}

fn pass(world: &mut World, ms: u64) {
    for _ in 0..ms.div_ceil(20) {
        world.now.mono_us += 20_000;
        world.now.wall_ms += 20;
        world.settle();
    }
}

/// A group with a publisher `(0, 1)`.
fn group(shards: u16) -> World {
    let mut world = world(shards);
    world.connect(0, 1, "ann");
    assert!(say(&mut world, 0, 1, declare()).contains("GroupDeclared"));
    world
}

#[test]
fn a_member_on_any_shard_is_dealt_runs_and_moves_the_marker() {
    for shards in [1, 3] {
        let mut world = world(shards);
        let there = usize::from(shards - 1);
        world.connect(0, 1, "ann");
        world.connect(there, 2, "member");
        assert_eq!(say(&mut world, there, 2, join(1)), "refused unknown_group group");
        assert_eq!(say(&mut world, 0, 1, publish("a", "chat.early", "m0")), "published 0 false");
        assert!(say(&mut world, 0, 1, declare()).contains("GroupDeclared"));
        for (n, topic) in ["chat.one", "other", "chat.two", "other"].into_iter().enumerate() {
            say(&mut world, 0, 1, publish("a", topic, &format!("m{}", n + 1)));
        }
        assert_eq!(markers(&mut world, "a"), "markers flow 1+4", "what came before it was declared is none of its");
        assert!(say(&mut world, there, 2, join(2)).contains("GroupJoined"));
        let got = runs(&mut world, there, 2);
        assert_eq!(got.len(), 1, "{shards} shards: {got:?}");
        let run = &got[0];
        assert_eq!((run.session.as_str(), &run.offsets[..], run.next, run.lease.attempt), ("a", &[1, 3][..], 5, 1));
        assert_eq!(markers(&mut world, "a"), "markers flow 1+4 held");
        let stale = Run { lease: Lease { nonce: run.lease.nonce ^ 1, ..run.lease }, ..run.clone() };
        assert_eq!(ack(&mut world, there, 2, &stale, 2), "refused stale_lease lease");
        assert_eq!(ack(&mut world, there, 2, run, 6), "refused offset_out_of_range offset 5");
        assert_eq!(ack(&mut world, there, 2, run, 0), "refused marker_backwards offset 1");
        assert!(ack(&mut world, there, 2, run, 3).contains("GroupAcked"));
        assert_eq!(markers(&mut world, "a"), "markers flow 3+2 held");
        assert_eq!(ack(&mut world, there, 2, run, 2), "refused marker_backwards offset 3");
        assert!(ack(&mut world, there, 2, run, 4).contains("GroupAcked"), "nothing it wants is behind");
        assert_eq!(markers(&mut world, "a"), "markers ", "and nothing is kept");
        assert_eq!(ack(&mut world, there, 2, run, 5), "refused stale_lease lease");
        say(&mut world, 0, 1, publish("a", "chat.three", "m9"));
        let got = runs(&mut world, there, 2);
        assert_eq!((&got[0].offsets[..], got[0].next), (&[5][..], 6));
    }
}

#[test]
fn a_session_is_at_one_member_at_a_time_and_many_go_side_by_side() {
    let mut world = group(2);
    world.connect(0, 2, "one");
    world.connect(1, 3, "two");
    say(&mut world, 0, 2, join(2));
    for n in 0..3 {
        for session in ["a", "b", "c"] {
            say(&mut world, 0, 1, publish(session, "chat.x", &format!("m{n}")));
        }
    }
    let first = runs(&mut world, 0, 2);
    assert_eq!(first.len(), 2, "no more than its credit: {first:?}");
    let sessions: BTreeSet<&str> = first.iter().map(|run| run.session.as_str()).collect();
    assert_eq!(sessions.len(), 2);
    // Another member takes what is left at once; what the first one has stays its own.
    say(&mut world, 1, 3, join(5));
    let second = runs(&mut world, 1, 3);
    assert_eq!(second.len(), 1);
    assert!(!sessions.contains(second[0].session.as_str()));
    assert_eq!(second[0].offsets, [0, 1, 2]);
    // A run that is acknowledged in part is still its member's, and goes on when it was acknowledged whole.
    let run = first.iter().find(|run| run.offsets == [0]).unwrap_or(&first[0]);
    assert!(ack(&mut world, 0, 2, run, run.next).contains("GroupAcked"));
    let mut next = runs(&mut world, 0, 2);
    next.extend(runs(&mut world, 1, 3));
    assert_eq!(next.len(), 1, "{next:?}");
    assert_eq!((&next[0].session, next[0].offsets[0]), (&run.session, run.next), "from the marker on");
}

#[test]
fn whoever_goes_leaves_what_it_had_and_is_fenced() {
    for dies in [false, true] {
        let mut world = group(2);
        world.connect(0, 2, "one");
        world.connect(1, 3, "two");
        say(&mut world, 0, 2, join(4));
        for n in 0..4 {
            say(&mut world, 0, 1, publish("a", "chat.x", &format!("m{n}")));
        }
        let first = runs(&mut world, 0, 2).remove(0);
        say(&mut world, 1, 3, join(4));
        assert_eq!(runs(&mut world, 1, 3), [], "it has it");
        assert_eq!(first.offsets, [0], "the others came later");
        if dies {
            world.disconnect(0, 2);
            world.settle();
        } else {
            assert!(say(&mut world, 0, 2, join(0)).contains("GroupJoined"));
        }
        let second = runs(&mut world, 1, 3).remove(0);
        assert_eq!((second.session.as_str(), &second.offsets[..], second.lease.attempt), ("a", &[0, 1, 2, 3][..], 2));
        assert_eq!(ack(&mut world, 0, 1, &first, 1), "refused stale_lease lease", "from wherever it is said");
        assert!(ack(&mut world, 1, 3, &second, 4).contains("GroupAcked"));
        assert_eq!(markers(&mut world, "a"), "markers ");
    }
}

#[test]
fn a_member_that_is_silent_loses_its_session_and_hears_of_it() {
    let mut world = group(2);
    world.connect(0, 2, "one");
    world.connect(1, 3, "two");
    say(&mut world, 0, 2, join(1));
    say(&mut world, 0, 1, publish("a", "chat.x", "m0"));
    let first = runs(&mut world, 0, 2).remove(0);
    say(&mut world, 1, 3, join(1));
    pass(&mut world, 700);
    assert!(ack(&mut world, 0, 2, &first, 0).contains("GroupAcked"), "so far as it was: it is still at it");
    pass(&mut world, 700);
    assert_eq!(runs(&mut world, 1, 3), [], "the lease began anew");
    pass(&mut world, 400);
    assert_eq!(world.queues[0].got.remove(&2), Some(vec![Got::Lost("a".into(), first.lease.nonce)]));
    let second = runs(&mut world, 1, 3).remove(0);
    assert_eq!((&second.offsets[..], second.lease.attempt), (&[0][..], 2));
    assert_eq!(ack(&mut world, 0, 2, &first, 1), "refused stale_lease lease");
    assert!(ack(&mut world, 1, 3, &second, 1).contains("GroupAcked"));
    // It is dealt nothing more until it joins again.
    say(&mut world, 1, 3, join(0));
    say(&mut world, 0, 1, publish("a", "chat.x", "m1"));
    assert_eq!(runs(&mut world, 0, 2), []);
    say(&mut world, 0, 2, join(1));
    assert_eq!(runs(&mut world, 0, 2).len(), 1);
}

#[test]
fn a_commit_moves_the_marker_with_all_that_belongs_to_it_or_nothing() {
    let mut world = group(2);
    world.connect(1, 2, "member");
    say(&mut world, 1, 2, join(1));
    say(&mut world, 0, 1, publish("a", "chat.x", "m0"));
    let run = runs(&mut world, 1, 2).remove(0);
    let commit = |world: &mut World, topic: &str, markers: &[NewMarker<'_>]| {
        let events = [event(topic, topic)];
        let parts = Command::Commit {
            session: "a",
            events: &events,
            markers,
            entries: &[],
            complete: None,
            holds: None,
            if_next: None,
        };
        say(world, 1, 2, parts)
    };
    let own = NewMarker { name: "own", offset: 1, lease: None };
    let stale = NewMarker { lease: Some(Lease { nonce: 1, attempt: 1 }), ..acked(&run, 1) };
    assert_eq!(commit(&mut world, "answer", &[own, stale]), "refused stale_lease lease");
    assert_eq!(markers(&mut world, "a"), "markers flow 0+1 held");
    assert_eq!(commit(&mut world, "answer", &[own, acked(&run, 1)]), "committed 1 1 false 0");
    assert_eq!(markers(&mut world, "a"), "markers own 1+1");
    say(&mut world, 0, 1, publish("a", "chat.y", "m1"));
    let run = runs(&mut world, 1, 2).remove(0);
    assert_eq!((&run.offsets[..], run.next), (&[2][..], 3));
    // What it says itself is for the group too.
    assert_eq!(commit(&mut world, "chat.more", &[acked(&run, 3)]), "committed 3 1 false 0");
    let run = runs(&mut world, 1, 2).remove(0);
    assert_eq!((&run.offsets[..], run.next), (&[3][..], 4));
}

#[test]
fn where_a_group_stands_is_listed_over_all_shards() {
    let mut world = group(3);
    let sessions: Vec<String> = (0..20).map(|n| format!("s{n}")).collect();
    for session in &sessions {
        say(&mut world, 0, 1, publish(session, "chat.x", "m"));
        say(&mut world, 0, 1, publish(session, "chat.x", "n"));
    }
    let (mut from, mut found) = (0, BTreeMap::new());
    for _ in 0..100 {
        let page = say(&mut world, 0, 1, Command::Group { ask: GroupAsk::List { group: GROUP, from } });
        let (items, next) =
            page.split_once(" next ").map_or((page.as_str(), None), |(items, next)| (items, Some(next)));
        for item in items.trim_start_matches("markers").split(',').filter(|item| !item.trim().is_empty()) {
            let (session, at) = item.trim().split_once(' ').unwrap();
            assert_eq!(found.insert(session.to_owned(), at.to_owned()), None, "told twice");
        }
        match next {
            Some(next) => from = next.parse().unwrap(),
            None => break,
        }
    }
    let expected: BTreeMap<String, String> = sessions.iter().map(|session| (session.clone(), "0+2".into())).collect();
    assert_eq!(found, expected);
    assert_eq!(markers(&mut world, "nowhere"), "refused unknown_session session");
}

#[test]
fn a_group_that_is_dropped_stands_nowhere() {
    let mut world = group(2);
    world.connect(1, 2, "member");
    say(&mut world, 1, 2, join(1));
    for session in ["a", "b"] {
        say(&mut world, 0, 1, publish(session, "chat.x", "m"));
    }
    let run = runs(&mut world, 1, 2).remove(0);
    let drop_it = Command::Group { ask: GroupAsk::Drop { group: GROUP } };
    assert!(say(&mut world, 0, 1, drop_it).contains("GroupDropped"));
    assert_eq!(markers(&mut world, "a"), "markers ");
    assert_eq!(markers(&mut world, "b"), "markers ");
    assert_eq!(ack(&mut world, 1, 2, &run, 1), "refused stale_lease lease");
    assert!(say(&mut world, 0, 1, declare()).contains("GroupDeclared"));
    say(&mut world, 0, 1, publish("a", "chat.x", "n"));
    say(&mut world, 1, 2, join(1));
    assert_eq!(runs(&mut world, 1, 2).len(), 1);
}

#[test]
fn what_is_read_from_disk_comes_in_runs_and_in_order() {
    let mut world = group(2);
    for n in 0..300 {
        let topic = if n % 3 == 0 { "other" } else { "chat.x" };
        say(&mut world, 0, 1, publish("a", topic, &format!("m{n}")));
    }
    world.connect(1, 2, "member");
    say(&mut world, 1, 2, join(1));
    let mut heard: Vec<u64> = Vec::new();
    for _ in 0..20 {
        let got = runs(&mut world, 1, 2);
        let [run] = &got[..] else { break };
        heard.extend(&run.offsets);
        assert!(ack(&mut world, 1, 2, run, run.next).contains("GroupAcked"));
    }
    assert_eq!(heard, (0..300).filter(|n| n % 3 != 0).collect::<Vec<u64>>());
    assert_eq!(markers(&mut world, "a"), "markers ");
}

#[derive(Clone, Debug)]
enum Step {
    Publish { session: u8, wanted: bool },
    Join { member: u8, credit: u64 },
    Die { member: u8 },
    Ack { member: u8, half: bool },
    Pass { ms: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = prop_oneof![
        4 => (0u8..4, any::<bool>()).prop_map(|(session, wanted)| Step::Publish { session, wanted }),
        2 => (0u8..3, 0u64..3).prop_map(|(member, credit)| Step::Join { member, credit }),
        1 => (0u8..3).prop_map(|member| Step::Die { member }),
        4 => (0u8..3, any::<bool>()).prop_map(|(member, half)| Step::Ack { member, half }),
        1 => (1u64..1500).prop_map(|ms| Step::Pass { ms }),
    ];
    proptest::collection::vec(one, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever members do: an acknowledged event was told to whoever acknowledged it, events of a session come in order from the
    /// marker on, two leases of a session never hold at once, and in the end everything is acknowledged.
    #[test]
    fn whatever_members_do_nothing_is_lost_or_out_of_order(steps in steps()) {
        let mut world = group(2);
        let mut tails = [0u64; 4];
        let mut wanted: [Vec<u64>; 4] = Default::default();
        let mut marker = [0u64; 4];
        let mut held: BTreeMap<u8, Vec<Run>> = BTreeMap::new();
        let mut generation = [10u32; 3];
        for member in 0..3u8 {
            world.connect(usize::from(member) % 2, 10 + u32::from(member), "m");
        }
        let mut all = steps;
        // In the end one member stays and does its work.
        all.extend([Step::Die { member: 1 }, Step::Die { member: 2 }, Step::Pass { ms: 1500 }, Step::Join { member: 0, credit: 2 }]);
        all.extend((0..200).map(|_| Step::Ack { member: 0, half: false }));
        for step in all {
            match step {
                Step::Publish { session, wanted: is_wanted } => {
                    let at = usize::from(session);
                    let topic = if is_wanted { "chat.x" } else { "other" };
                    say(&mut world, 0, 1, publish(&format!("s{session}"), topic, &format!("m{}", tails[at])));
                    if is_wanted {
                        wanted[at].push(tails[at]);
                    }
                    tails[at] += 1;
                }
                Step::Join { member, credit } => {
                    say(&mut world, usize::from(member) % 2, generation[usize::from(member)] + u32::from(member), join(credit));
                    if credit == 0 {
                        held.remove(&member);
                    }
                }
                Step::Die { member } => {
                    let (shard, at) = (usize::from(member) % 2, usize::from(member));
                    world.disconnect(shard, generation[at] + u32::from(member));
                    world.settle();
                    generation[at] += 10;
                    world.connect(shard, generation[at] + u32::from(member), "m");
                    held.remove(&member);
                }
                Step::Pass { ms } => pass(&mut world, ms),
                Step::Ack { member, half } => {
                    if let Some(run) = held.get(&member).and_then(|runs| runs.first()).cloned() {
                        let to = if half { run.offsets[0] + 1 } else { run.next };
                        let slot = generation[usize::from(member)] + u32::from(member);
                        let said = ack(&mut world, usize::from(member) % 2, slot, &run, to);
                        let at = usize::from(run.session.as_bytes()[1] - b'0');
                        prop_assert!(said.contains("GroupAcked"), "{said}: {run:?}");
                        prop_assert!(to >= marker[at], "forward only");
                        marker[at] = to;
                        let mine = held.get_mut(&member).unwrap();
                        mine[0].offsets.retain(|offset| *offset >= to);
                        if mine[0].offsets.is_empty() {
                            mine.remove(0);
                        }
                    }
                }
            }
            let mut lost = Vec::new();
            for member in 0..3u8 {
                let (shard, slot) = (usize::from(member) % 2, generation[usize::from(member)] + u32::from(member));
                let got = world.queues[shard].got.entry(slot).or_default();
                for got in got.extract_if(.., |got| matches!(got, Got::Lost(..))).collect::<Vec<_>>() {
                    let Got::Lost(session, nonce) = got else { continue };
                    lost.push(nonce);
                    held.entry(member).or_default().retain(|run| run.session != session || run.lease.nonce != nonce);
                }
            }
            for member in 0..3u8 {
                let (shard, slot) = (usize::from(member) % 2, generation[usize::from(member)] + u32::from(member));
                // What came and was lost in the same step is nobody's.
                for run in runs(&mut world, shard, slot).into_iter().filter(|run| !lost.contains(&run.lease.nonce)) {
                    let at = usize::from(run.session.as_bytes()[1] - b'0');
                    prop_assert!(held.values().flatten().all(|other| other.session != run.session), "{run:?} is at two: {held:?}");
                    let due: Vec<u64> = wanted[at].iter().copied().filter(|offset| *offset >= marker[at]).collect();
                    prop_assert!(due.starts_with(&run.offsets), "{run:?}, but due are {due:?}");
                    held.entry(member).or_default().push(run);
                }
            }
        }
        for (session, tail) in tails.into_iter().enumerate() {
            if tail > 0 {
                let left = markers(&mut world, &format!("s{session}"));
                prop_assert_eq!(left, "markers ", "{} {:?}", session, held);
            }
        }
    }
}
