//! Tenants on one node: whose turn it is, and who may at all. Quotas are held over all shards together.

mod world;

use shards::command::{Command, Durability, From, NewEvent, PatternFrom, Policy};
use shards::ids::{CommandId, ConnectionId};
use shards::input::{Handled, Input};
use shards::limits::{Kind, Limits, Quota, Quotas};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use storage::log::LogConfig;
use storage::record::DataKind;
use world::{Got, World};

fn event<'a>(message_id: &'a str, data: &'a [u8]) -> NewEvent<'a> {
    NewEvent {
        topic: "chat",
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

fn publish<'a>(session: &'a str, message_id: &'a str, data: &'a [u8]) -> Command<'a> {
    Command::Publish { session, event: event(message_id, data), durability: Durability::Disk }
}

fn quota(bounds: &[(Kind, u64)]) -> Quota {
    let mut quota = Quota::default();
    bounds.iter().for_each(|(kind, max)| quota.max[*kind as usize] = Some(*max));
    quota
}

fn limits(tenants: &[(&str, Quota)]) -> Limits {
    let tenants = tenants.iter().map(|(name, quota)| (Arc::from(*name), *quota)).collect();
    Limits { quotas: Arc::new(Quotas { others: Quota::default(), tenants }), ..Limits::default() }
}

fn replies(world: &World, shard: usize, slot: u32) -> Vec<(u64, String)> {
    let got = world.queues[shard].got.get(&slot).map_or(&[][..], |got| got);
    got.iter().filter_map(|g| if let Got::Reply(id, text) = g { Some((*id, text.clone())) } else { None }).collect()
}

/// Senders that hold what the shard does not take, as the edge does, and hand it in again when it is their turn.
#[derive(Default)]
struct Senders {
    /// By slot: tenant, session, and what it has yet to send.
    of: BTreeMap<u32, (usize, String, VecDeque<u64>)>,
    held: std::collections::BTreeSet<u32>,
    next: u64,
    taken: Vec<u64>,
}

impl Senders {
    fn add(&mut self, world: &mut World, tenant: usize, name: &str, slot: u32, session: &str, count: u64) {
        world.connect_as(name, 0, slot, &format!("c{slot}"));
        let ids = (0..count).map(|n| self.next + n).collect();
        self.next += count;
        self.of.insert(slot, (tenant, session.into(), ids));
        self.taken.resize(self.taken.len().max(tenant + 1), 0);
    }

    /// Hands in what one connection has until it is told to wait.
    fn hand_in(&mut self, world: &mut World, slot: u32, data: &[u8], most: usize) {
        let (tenant, session, ids) = self.of.get_mut(&slot).expect("a sender");
        for _ in 0..most {
            let Some(id) = ids.front() else { return };
            let connection = ConnectionId { slot, generation: 1 };
            let message_id = format!("m{id}");
            let command = publish(session, &message_id, data);
            let input = Input::Command { connection, id: CommandId::Number(*id), command };
            match world.shards[0].handle(input, world.now) {
                Handled::Done => {
                    ids.pop_front();
                    self.taken[*tenant] += 1;
                    self.held.remove(&slot);
                }
                Handled::Later => {
                    self.held.insert(slot);
                    return;
                }
            }
        }
    }

    /// One turn: fresh input in the order of the sockets, then whose turn it is in line.
    fn turn(&mut self, world: &mut World, data: &[u8]) {
        let fresh: Vec<u32> = self.of.keys().copied().filter(|slot| !self.held.contains(slot)).collect();
        for slot in fresh {
            self.hand_in(world, slot, data, 4);
        }
        while let Some(connection) = world.shards[0].next_in_line() {
            self.hand_in(world, connection.slot, data, usize::MAX);
        }
        for _ in 0..4 {
            world.turn(0);
        }
    }
}

/// Of which there is always room.
fn log() -> LogConfig {
    LogConfig { hot_tail_bytes: 8 << 20, segment_bytes: 8 << 20, ..LogConfig::small() }
}

/// Cost of one publish of a hundred bytes, and the quantum: what `fair` counts in.
const PUBLISH: u64 = 612;
const QUANTUM: u64 = 16 << 10;

#[test]
fn one_connection_gets_as_much_as_two_hundred_of_another_tenant() {
    share_by_two(log(), 200);
}

/// What is short is not the core but the log: its bytes are shared out in the same way.
#[test]
fn log_bytes_are_shared_where_the_log_is_behind() {
    share_by_two(LogConfig::small(), 3000);
}

fn share_by_two(log: LogConfig, turns: usize) {
    // What waits for its own answers waits for nobody else: here nothing is to wait for those.
    let limits = Limits { client_commands_in_flight_max: 1 << 20, ..Limits::default() };
    let mut world = World::new(1, limits, log);
    let mut senders = Senders::default();
    for slot in 0..200 {
        senders.add(&mut world, 0, "noisy", slot, &format!("s{}", slot % 40), 400);
    }
    senders.add(&mut world, 1, "quiet", 1000, "mine", 4000);
    let data = [b'7'; 100];
    for turn in 0..turns {
        senders.turn(&mut world, &data);
        let [noisy, quiet] = senders.taken[..] else { unreachable!() };
        assert!(noisy.abs_diff(quiet) * PUBLISH <= QUANTUM + 2 * PUBLISH, "turn {turn}: {noisy} and {quiet}");
        if quiet > 3500 {
            break;
        }
    }
    assert!(senders.taken[1] > 1000, "the core was not idle: {:?}", senders.taken);
}

#[test]
fn weights_are_shares_and_who_is_done_leaves_its_share_to_the_others() {
    let heavy = Quota { weight: 3, ..Quota::default() };
    let mut world = World::new(1, limits(&[("heavy", heavy)]), log());
    let mut senders = Senders::default();
    for slot in 0..20 {
        senders.add(&mut world, 0, "light", slot, &format!("a{slot}"), 1000);
        senders.add(&mut world, 1, "heavy", 100 + slot, &format!("b{slot}"), 300);
    }
    let data = [b'7'; 100];
    while senders.taken[1] < 5000 {
        senders.turn(&mut world, &data);
    }
    let [light, heavy] = senders.taken[..] else { unreachable!() };
    assert!((heavy / 3).abs_diff(light) * PUBLISH <= QUANTUM + 2 * PUBLISH, "{light} and {heavy}");
    let mut turns = 0;
    while senders.taken[0] < 20_000 {
        senders.turn(&mut world, &data);
        turns += 1;
        assert!(turns < 400, "{:?}", senders.taken);
    }
}

/// Held input is of its own tenant only: who comes now and then is taken in the turn in which it comes.
#[test]
fn who_comes_now_and_then_never_waits() {
    let mut world = World::new(1, Limits::default(), log());
    let mut senders = Senders::default();
    for slot in 0..300 {
        senders.add(&mut world, 0, "noisy", slot, &format!("s{slot}"), 10_000);
    }
    world.connect_as("quiet", 0, 1000, "q");
    world.settle();
    let data = [b'7'; 100];
    for n in 0..100 {
        senders.turn(&mut world, &data);
        // The last one that the turn comes to.
        let fresh: Vec<u32> = (0..300).filter(|slot| !senders.held.contains(slot)).collect();
        fresh.iter().for_each(|slot| senders.hand_in(&mut world, *slot, &data, 8));
        let id = format!("q{n}");
        assert!(world.send(0, 1000, publish("mine", &id, b"1")).is_some(), "publish {n} waits");
    }
    assert!(world.shards[0].has_line(), "the others do");
}

/// A tenant's fan-out is served in its share of each turn, and loses nothing by it.
#[test]
fn egress_is_shared_and_nothing_is_lost() {
    let mut world = World::new(1, Limits::default(), log());
    for slot in 0..600 {
        world.connect_as("wide", 0, slot, &format!("r{slot}"));
        world.send(0, slot, Command::Subscribe { session: "w", from: From::Latest, policy: Policy::Lossless });
    }
    for slot in 600..610 {
        world.connect_as("wide", 0, slot, &format!("r{slot}"));
        world.send(0, slot, Command::SubscribePatterns { patterns: &[">"], from: PatternFrom::Latest });
    }
    world.connect_as("other", 0, 1000, "o");
    world.send(0, 1000, Command::Subscribe { session: "o", from: From::Latest, policy: Policy::Lossless });
    world.settle();
    let data = vec![b'7'; 1000];
    for n in 0..20 {
        let id = format!("m{n}");
        assert!(world.send(0, 0, publish("w", &id, &data)).is_some());
        assert!(world.send(0, 1000, publish("o", &id, &data)).is_some());
        let count = |world: &World, slot| {
            let got = world.queues[0].got.get(&slot).map_or(&[][..], |got| got);
            got.iter().filter(|g| matches!(g, Got::Event { .. })).count()
        };
        let mut turns = 0;
        while count(&world, 1000) <= n {
            let before: usize = (0..610).map(|slot| count(&world, slot)).sum();
            world.turn(0);
            let after: usize = (0..610).map(|slot| count(&world, slot)).sum();
            // A quantum of live events, and a turn's budget of cursors that are behind.
            assert!(after - before < 800, "{} deliveries of one tenant in one turn", after - before);
            turns += 1;
            assert!(turns < 50);
        }
    }
    world.settle();
    for slot in 0..610 {
        let offsets: Vec<u64> = world.queues[0].got[&slot]
            .iter()
            .filter_map(|g| match g {
                Got::Event { session, offset, .. } if session == "w" => Some(*offset),
                _ => None,
            })
            .collect();
        assert_eq!(offsets, (0..20).collect::<Vec<_>>(), "reader {slot}");
    }
}

/// Four seconds of publishing on three shards at ten times the quota: never more than the bound over all of them, and nearly
/// all of it.
#[test]
fn a_rate_holds_over_all_shards_and_the_advice_is_right() {
    let mut world = World::new(3, limits(&[("acme", quota(&[(Kind::Events, 300)]))]), log());
    for shard in 0..3 {
        world.connect_as("acme", shard, 1, &format!("c{shard}"));
    }
    let began = world.now.mono_us;
    let (mut accepted, mut refused, mut n) = (0u64, 0u64, 0u64);
    let mut until = [0u64; 3];
    while world.now.mono_us - began < 4_000_000 {
        for (shard, until) in until.iter_mut().enumerate() {
            if world.now.mono_us < *until {
                continue;
            }
            let (session, id) = (format!("s{}", n % 7), format!("m{n}"));
            n += 1;
            world.send(shard, 1, publish(&session, &id, b"1"));
        }
        for (shard, until) in until.iter_mut().enumerate() {
            while let Some(_held) = world.shards[shard].next_in_line() {}
            world.turn(shard);
            world.turn(shard);
            for (_, text) in replies(&world, shard, 1) {
                if text.starts_with("published") {
                    accepted += 1;
                } else if let Some(ms) = text.strip_prefix("refused over_quota events_per_second_max after ") {
                    refused += 1;
                    let ms: u64 = ms.parse().expect("a number");
                    assert!((1..=1000).contains(&ms), "{ms}");
                    *until = world.now.mono_us + ms * 1000;
                } else {
                    panic!("{text}");
                }
            }
            world.queues[shard].got.clear();
        }
        world.now.mono_us += 300;
        let seconds = (world.now.mono_us - began) as f64 / 1e6;
        assert!(accepted as f64 <= 300.0 + 300.0 * seconds + 1.0, "{accepted} in {seconds} s");
    }
    assert!(refused > 0, "more was offered");
    assert!(accepted >= 1200, "{accepted} of at most 1500");
}

#[test]
fn bytes_count_too_and_what_never_fits_is_not_to_be_tried_again() {
    let mut world = World::new(1, limits(&[("acme", quota(&[(Kind::Bytes, 1000)]))]), log());
    world.connect_as("acme", 0, 1, "c");
    world.settle();
    let sizes = [600, 600, 1001, 300];
    let ids: Vec<u64> = (sizes.iter().enumerate())
        .map(|(n, size)| world.send(0, 1, publish("s", &format!("m{n}"), &vec![b'1'; *size])).expect("taken"))
        .collect();
    world.settle();
    let texts: BTreeMap<u64, String> = replies(&world, 0, 1).into_iter().collect();
    assert_eq!(texts[&ids[0]], "published 0 false");
    assert_eq!(texts[&ids[1]], "refused over_quota bytes_per_second_max after 200", "600 - 400 at a thousand a second");
    assert_eq!(texts[&ids[2]], "refused over_quota bytes_per_second_max after 0");
    assert_eq!(texts[&ids[3]], "refused over_quota bytes_per_second_max after 200", "the advice stands until then");
}

#[test]
fn connections_and_subscriptions_are_counted_over_all_shards_and_come_back() {
    let bounds = quota(&[(Kind::Connections, 3), (Kind::Subscriptions, 2)]);
    let mut world = World::new(3, limits(&[("acme", bounds)]), log());
    world.connect_as("other", 0, 50, "o");
    let turned_away = |world: &World| {
        (0..3)
            .flat_map(|shard| world.queues[shard].got.values())
            .flatten()
            .filter(|g| matches!(g, Got::Reply(0, text) if text == "turned away"))
            .count()
    };
    for n in 0..5u32 {
        world.connect_as("acme", n as usize % 3, n, &format!("c{n}"));
        world.settle();
    }
    assert_eq!(turned_away(&world), 2, "{:?}", world.queues.iter().map(|q| &q.got).collect::<Vec<_>>());
    for n in [3, 4] {
        world.disconnect(n as usize % 3, n);
    }
    // One goes, one may come, wherever it comes.
    world.disconnect(0, 0);
    rest(&mut world);
    world.connect_as("acme", 1, 10, "c10");
    world.settle();
    assert_eq!(turned_away(&world), 2);

    let subscribe = |session| Command::Subscribe { session, from: From::Latest, policy: Policy::Lossless };
    let mut ids = Vec::new();
    for (shard, slot, session) in [(1, 1, "a"), (2, 2, "b"), (1, 10, "c"), (1, 1, "a")] {
        let id = hand_in(&mut world, shard, slot, subscribe(session));
        ids.push((shard, slot, id));
    }
    let texts: Vec<String> = ids
        .iter()
        .map(|(shard, slot, id)| {
            replies(&world, *shard, *slot).into_iter().find(|(of, _)| of == id).map(|(_, text)| text).expect("a reply")
        })
        .collect();
    assert_eq!(texts[0], "subscribed 0");
    assert_eq!(texts[1], "subscribed 0");
    assert!(texts[2].starts_with("refused over_quota subscriptions_max"), "{texts:?}");
    assert_eq!(texts[3], "subscribed 0", "it replaces one that counts already");
    hand_in(&mut world, 2, 2, Command::Unsubscribe { session: "b" });
    rest(&mut world);
    let id = hand_in(&mut world, 1, 10, subscribe("c"));
    assert!(replies(&world, 1, 10).contains(&(id, "subscribed 0".into())));
}

/// Bounds that come, change and go while clients are there: what is in use counts, and more is refused until it falls below.
#[test]
fn quotas_change_while_it_runs() {
    let mut world = World::new(2, limits(&[]), log());
    for n in 0..4u32 {
        world.connect_as("acme", n as usize % 2, n, &format!("c{n}"));
    }
    rest(&mut world);
    change(&mut world, &[("acme", quota(&[(Kind::Connections, 3), (Kind::Events, 50)]))]);
    rest(&mut world);
    world.connect_as("acme", 0, 10, "c10");
    rest(&mut world);
    assert!(replies(&world, 0, 10).iter().any(|(_, text)| text == "turned away"), "four are there, three may be");
    world.disconnect(0, 10);
    for slot in [0, 2] {
        world.disconnect(0, slot);
    }
    rest(&mut world);
    world.connect_as("acme", 1, 11, "c11");
    rest(&mut world);
    assert!(replies(&world, 1, 11).is_empty(), "two were there");
    let mut taken = 0;
    for n in 0..200 {
        let id = hand_in(&mut world, 1, 11, publish("s", &format!("m{n}"), b"1"));
        taken +=
            usize::from(replies(&world, 1, 11).iter().any(|(of, text)| *of == id && text.starts_with("published")));
    }
    assert!((45..=120).contains(&taken), "{taken}");
    change(&mut world, &[]);
    rest(&mut world);
    for n in 200..400 {
        let id = hand_in(&mut world, 1, 11, publish("s", &format!("m{n}"), b"1"));
        assert!(replies(&world, 1, 11).iter().any(|(of, text)| *of == id && text.starts_with("published")));
    }
    for n in 20..26 {
        world.connect_as("acme", 0, n, &format!("c{n}"));
    }
    rest(&mut world);
    assert!((20..26).all(|slot| replies(&world, 0, slot).is_empty()), "as many as come");
}

fn change(world: &mut World, tenants: &[(&str, Quota)]) {
    let quotas = limits(tenants).quotas;
    for shard in &mut world.shards {
        assert_eq!(shard.handle(Input::Quotas { quotas: &quotas }, world.now), Handled::Done);
    }
}

/// Two seconds: what is not used goes home.
fn rest(world: &mut World) {
    for _ in 0..8 {
        world.now.mono_us += 300_000;
        world.settle();
    }
}

/// A command that may wait for its tenant's home.
fn hand_in(world: &mut World, shard: usize, slot: u32, command: Command<'_>) -> u64 {
    for _ in 0..100 {
        if let Some(id) = world.send(shard, slot, command) {
            world.settle();
            return id;
        }
        (0..world.shards.len()).for_each(|shard| while world.shards[shard].next_in_line().is_some() {});
        world.settle();
    }
    panic!("it waits for ever");
}

/// Input that waits for answers to its own connection is handed out when they have come, not decoded in vain before.
#[test]
fn what_waits_for_its_own_answers_is_handed_out_when_they_come() {
    let limits = Limits { client_commands_in_flight_max: 2, ..Limits::default() };
    let mut world = World::new(1, limits, log());
    world.connect_as("acme", 0, 1, "c1");
    world.connect_as("other", 0, 2, "c2");
    world.settle();
    assert!(world.send(0, 1, publish("s", "m1", b"1")).is_some());
    assert!(world.send(0, 1, publish("s", "m2", b"1")).is_some());
    assert!(world.send(0, 1, publish("s", "m3", b"1")).is_none(), "two are under way");
    assert!(world.shards[0].has_line());
    assert_eq!(world.shards[0].next_in_line(), None, "nothing was answered");
    assert!(world.shards[0].has_line(), "it still stands there");
    world.settle();
    assert_eq!(world.shards[0].next_in_line(), Some(ConnectionId { slot: 1, generation: 1 }));
    assert!(world.send(0, 1, publish("s", "m3", b"1")).is_some());
    assert_eq!(world.shards[0].next_in_line(), None);
    assert!(!world.shards[0].has_line());
}

/// Whoever fills segments faster than they are made waits for them alone: the end of each is for those who keep within their
/// shares.
#[test]
fn the_end_of_a_segment_is_kept_for_those_within_their_shares() {
    let limits = Limits { client_commands_in_flight_max: 1 << 20, ..Limits::default() };
    let config = LogConfig { segment_records_max: 800, dedupe_hot_bytes_max: 8 << 20, ..log() };
    let mut world = World::new(1, limits, config);
    let mut senders = Senders::default();
    for slot in 0..50 {
        senders.add(&mut world, 0, "noisy", slot, &format!("s{slot}"), 400);
    }
    world.connect_as("quiet", 0, 1000, "q");
    let data = [b'7'; 100];
    // The first segment and the one behind it are there; no third comes.
    world.settle();
    assert!(world.send(0, 1000, publish("mine", "first", &data)).is_some());
    world.settle();
    world.no_segments = true;
    for _ in 0..200 {
        senders.turn(&mut world, &data);
    }
    let before = senders.taken[0];
    assert!((400..1600).contains(&before), "{before} of two segments");
    for n in 0..20 {
        senders.turn(&mut world, &data);
        assert!(
            world.send(0, 1000, publish("mine", &format!("m{n}"), &data)).is_some(),
            "event {n} waits for a segment"
        );
    }
    assert_eq!(senders.taken[0], before, "there was room for the noise");
    world.no_segments = false;
    for _ in 0..20 {
        senders.turn(&mut world, &data);
    }
    assert!(senders.taken[0] > before, "it goes on where it stood");
}
