//! The small structures of a shard, each against the plainest model of it: whatever the order of calls, they agree.

use crate::command::{DataKind, Durability, NewEvent};
use crate::delivery::client::Clients;
use crate::effect::{Effect, Reply};
use crate::effect_queue::EffectQueue;
use crate::ids::{CommandId, ConnectionId, InlineText, Now, PartitionId, ShardId};
use crate::input::Principal;
use crate::mailbox::codec::Reader;
use crate::names::pattern_matches;
use crate::sessions::interest::Interests;
use crate::volatile::{Volatiles, read};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const CONNECTION: ConnectionId = ConnectionId { slot: 0, generation: 0 };

// ---- credit -----------------------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum CreditStep {
    Deliver(usize),
    Acknowledge(u64, Option<u64>),
    Window(Option<u64>, Option<u64>),
}

fn credit_step() -> impl Strategy<Value = CreditStep> {
    prop_oneof![
        4 => (0usize..200).prop_map(CreditStep::Deliver),
        3 => (0u64..40, proptest::option::of(0u64..4000)).prop_map(|(events, bytes)| CreditStep::Acknowledge(events, bytes)),
        1 => (proptest::option::of(0u64..20), proptest::option::of(0u64..2000)).prop_map(|(e, b)| CreditStep::Window(e, b)),
    ]
}

proptest! {
    /// Credit is what was delivered less what was acknowledged, never negative; an acknowledgement of what was never
    /// delivered, or of less than before, is refused and changes nothing.
    #[test]
    fn credit_is_a_window_over_two_counts(steps in proptest::collection::vec(credit_step(), 1..120)) {
        let mut clients = Clients::default();
        clients.insert(CONNECTION, Principal { tenant: "t", client_id: "c", rights: None }, Now::default());
        let client = clients.get_mut(CONNECTION).expect("just entered");
        let (mut window, mut delivered, mut acknowledged) = ((None, None), (0u64, 0u64), (0u64, 0u64));
        for step in steps {
            match step {
                CreditStep::Deliver(bytes) => {
                    // The core delivers only where there is credit.
                    if client.has_credit() {
                        client.delivered(bytes);
                        delivered = (delivered.0 + 1, delivered.1 + bytes as u64);
                    }
                }
                CreditStep::Acknowledge(events, bytes) => {
                    let good = (acknowledged.0..=delivered.0).contains(&events)
                        && bytes.is_none_or(|bytes| (acknowledged.1..=delivered.1).contains(&bytes));
                    prop_assert_eq!(client.acknowledge(events, bytes).is_ok(), good);
                    if good {
                        acknowledged.0 = events;
                        acknowledged.1 = match bytes {
                            Some(bytes) => bytes,
                            // A client that counts only events has worked off all bytes with the last of them.
                            None if events == delivered.0 => delivered.1,
                            None => acknowledged.1,
                        };
                    }
                }
                CreditStep::Window(events, bytes) => {
                    client.set_credit(events, bytes);
                    window = (events, bytes);
                }
            }
            let open = window.0.is_none_or(|most| delivered.0 - acknowledged.0 < most)
                && window.1.is_none_or(|most| delivered.1 - acknowledged.1 < most);
            prop_assert_eq!(client.has_credit(), open);
        }
    }
}

// ---- interest ---------------------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum InterestStep {
    Attach(u8, u16),
    Detach(u8, u16),
    Miss(u8, u16, u64),
    /// Tells; so many calls find room.
    Tell(usize),
}

fn interest_step() -> impl Strategy<Value = InterestStep> {
    let at = || (0u8..5, 0u16..4);
    prop_oneof![
        3 => at().prop_map(|(p, s)| InterestStep::Attach(p, s)),
        2 => at().prop_map(|(p, s)| InterestStep::Detach(p, s)),
        4 => (at(), 0u64..100).prop_map(|((p, s), to)| InterestStep::Miss(p, s, to)),
        2 => (0usize..5).prop_map(InterestStep::Tell),
    ]
}

proptest! {
    /// A shard is listed once however often it attaches; an interrupted stream is told once, with where it stands last,
    /// and stays interrupted until there was room to tell; a shard that left is told nothing.
    #[test]
    fn an_interrupted_stream_is_told_once_and_never_forgotten(steps in proptest::collection::vec(interest_step(), 1..80)) {
        let mut interests = Interests::default();
        let mut attached: BTreeMap<u8, BTreeSet<u16>> = BTreeMap::new();
        let mut missed: BTreeMap<(u8, u16), u64> = BTreeMap::new();
        let id = |p: u8| PartitionId(u128::from(p) << 64 | u128::from(p));
        for step in steps {
            match step {
                InterestStep::Attach(p, s) => {
                    interests.attach(id(p), ShardId(s));
                    attached.entry(p).or_default().insert(s);
                }
                InterestStep::Detach(p, s) => {
                    interests.detach(id(p), ShardId(s));
                    attached.entry(p).or_default().remove(&s);
                    missed.remove(&(p, s));
                }
                InterestStep::Miss(p, s, to) => {
                    if attached.get(&p).is_some_and(|shards| shards.contains(&s)) {
                        interests.miss(id(p), ShardId(s), 7, to);
                        missed.insert((p, s), to);
                    }
                }
                InterestStep::Tell(room) => {
                    let (mut left, mut told) = (room, Vec::new());
                    let count = interests.tell_missed(|shard, partition, epoch, to| {
                        assert_eq!(epoch, 7);
                        if left == 0 {
                            return false;
                        }
                        left -= 1;
                        told.push(((partition.0 as u8, shard.0), to));
                        true
                    });
                    prop_assert_eq!(count, told.len());
                    prop_assert_eq!(count, room.min(missed.len()));
                    for (stream, to) in told {
                        prop_assert_eq!(missed.remove(&stream), Some(to));
                    }
                    prop_assert!(missed.is_empty() || interests.has_missed());
                }
            }
            for p in 0..5 {
                let mut listed: Vec<u16> = interests.sessions(id(p)).iter().map(|shard| shard.0).collect();
                listed.sort_unstable();
                let expected: Vec<u16> = attached.get(&p).into_iter().flatten().copied().collect();
                prop_assert_eq!(listed, expected);
            }
        }
    }

    /// What a shard is sent by pattern is at least what any of its clients asked for, however many patterns there are;
    /// it is forgotten with the last client.
    #[test]
    fn the_union_of_patterns_covers_every_client(
        clients in proptest::collection::vec(("[ab]", 0u16..3, proptest::collection::vec("[abc*](\\.[abc*]){0,2}(\\.>)?", 1..4)), 1..50),
        topics in proptest::collection::vec("[abc](\\.[abc]){0,3}", 1..10),
    ) {
        let mut interests = Interests::default();
        for (tenant, shard, patterns) in &clients {
            interests.attach_patterns(tenant, ShardId(*shard), patterns.iter().map(String::as_str), 5);
        }
        for (tenant, shard, patterns) in &clients {
            let interest = interests.tenant(tenant).iter_mut().find(|t| t.shard.0 == *shard).expect("attached");
            prop_assert_eq!(interest.sent, 5);
            for topic in &topics {
                let wanted = patterns.iter().any(|pattern| pattern_matches(pattern, topic));
                prop_assert!(!wanted || interest.matches(topic), "{:?} {}", patterns, topic);
            }
        }
        for (tenant, shard, _) in &clients {
            interests.detach_patterns(tenant, ShardId(*shard));
        }
        prop_assert!(interests.is_empty());
    }
}

// ---- effects ----------------------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum EffectStep {
    Published(String, u64, u64, bool),
    Marked(String, String, u64),
    Pong(u64),
    Wake(u16),
    Poll,
}

fn effect_step() -> impl Strategy<Value = EffectStep> {
    prop_oneof![
        2 => ("[a-z:]{1,20}", any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(s, e, o, d)| EffectStep::Published(s, e, o, d)),
        1 => ("[a-z]{1,8}", "[a-z]{1,8}", any::<u64>()).prop_map(|(s, n, o)| EffectStep::Marked(s, n, o)),
        1 => any::<u64>().prop_map(EffectStep::Pong),
        1 => any::<u16>().prop_map(EffectStep::Wake),
        4 => Just(EffectStep::Poll),
    ]
}

/// What the queue is asked for, kept by value.
fn queue_effect(queue: &mut EffectQueue, step: &EffectStep) {
    let id = InlineText::new("x").map_or(CommandId::None, CommandId::Text);
    match step {
        EffectStep::Published(session, epoch, offset, duplicate) => {
            let (durability, duplicate) = (Durability::Disk, *duplicate);
            let reply = Reply::Published { session, epoch: *epoch, offset: *offset, durability, duplicate };
            queue.reply(CONNECTION, id, &reply);
        }
        EffectStep::Marked(session, name, offset) => {
            queue.reply(CONNECTION, id, &Reply::Marked { session, name, offset: *offset });
        }
        EffectStep::Pong(time_ms) => queue.reply(CONNECTION, CommandId::Number(1), &Reply::Pong { time_ms: *time_ms }),
        EffectStep::Wake(shard) => queue.wake(ShardId(*shard)),
        EffectStep::Poll => {}
    }
}

proptest! {
    /// Effects come out in the order they went in, each with the bytes it went in with, whenever it is polled.
    #[test]
    fn no_effect_is_lost_or_mixed_up(steps in proptest::collection::vec(effect_step(), 1..200), max in 1usize..20) {
        let mut queue = EffectQueue::new(max);
        let mut model: VecDeque<EffectStep> = VecDeque::new();
        for step in steps {
            prop_assert_eq!(queue.has_room(1), model.len() < max);
            if !matches!(step, EffectStep::Poll) {
                if queue.has_room(1) {
                    queue_effect(&mut queue, &step);
                    model.push_back(step);
                }
                continue;
            }
            let effect = queue.poll();
            let Some(expected) = model.pop_front() else {
                prop_assert_eq!(effect, None);
                continue;
            };
            let same = match (&expected, effect) {
                (
                    EffectStep::Published(s, e, o, d),
                    Some(Effect::Reply { reply: Reply::Published { session, epoch, offset, durability, duplicate }, .. }),
                ) => (session, epoch, offset, durability, duplicate) == (s, *e, *o, Durability::Disk, *d),
                (EffectStep::Marked(s, n, o), Some(Effect::Reply { reply: Reply::Marked { session, name, offset }, .. })) => {
                    (session, name, offset) == (s, n, *o)
                }
                (EffectStep::Pong(t), Some(Effect::Reply { id, reply: Reply::Pong { time_ms }, .. })) => {
                    id == CommandId::Number(1) && time_ms == *t
                }
                (EffectStep::Wake(s), Some(Effect::Wake { shard })) => shard.0 == *s,
                _ => false,
            };
            prop_assert!(same, "{:?}", expected);
        }
    }
}

// ---- volatile events --------------------------------------------------------------------------------------------------

proptest! {
    /// Volatile events leave in the order they came, counted from 1 in each session without a hole, and the memory they
    /// hold is given back.
    #[test]
    fn volatile_events_are_counted_by_session(
        pushes in proptest::collection::vec((0u8..4, "[a-z]{0,40}", any::<bool>()), 1..100),
    ) {
        let mut volatiles = Volatiles::default();
        let mut model: VecDeque<(u8, String, u64)> = VecDeque::new();
        let mut counts = [0u64; 4];
        let id = |p: u8| PartitionId(u128::from(p));
        let pop = |volatiles: &mut Volatiles, model: &mut VecDeque<(u8, String, u64)>| {
            let expected = model.pop_front();
            let got = volatiles.pop().map(|(partition, bytes)| {
                let mail = read(&mut Reader(&bytes[1..]));
                assert_eq!((partition, mail.tenant, mail.event.after_offset), (mail.partition, "t", 9));
                (partition.0 as u8, String::from_utf8(mail.event.data.to_vec()).expect("as pushed"), mail.event.counter)
            });
            assert_eq!(got, expected);
        };
        for (p, data, pops) in pushes {
            let event = NewEvent {
                topic: "a.b",
                message_id: "",
                prev_event_id: None,
                prev_message_id: None,
                data: data.as_bytes(),
                data_kind: DataKind::Json,
                ttl_ms: None,
                producer: None,
                traceparent: "",
            };
            prop_assert!(volatiles.has_room());
            volatiles.push(id(p), "t", "s", "c", 9, &event);
            counts[usize::from(p)] += 1;
            model.push_back((p, data, counts[usize::from(p)]));
            if pops {
                pop(&mut volatiles, &mut model);
            }
        }
        while !model.is_empty() {
            pop(&mut volatiles, &mut model);
        }
        pop(&mut volatiles, &mut model);
    }
}
