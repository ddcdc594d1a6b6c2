//! Clients that may not do everything: what is refused, on which shard, and what comes of what they had before.

mod world;

use shards::command::{
    Claim, Command, DataKind, Durability, From, NewDelta, NewEvent, PatternFrom, Policy, PresenceAct, PresenceState,
    StreamStatus,
};
use shards::ids::LifeId;
use shards::limits::Limits;
use shards::rights::{Capability, Rights};
use std::sync::Arc;
use storage::log::LogConfig;
use world::{Got, World};

fn rights(grants: &[(Capability, &str)]) -> Arc<Rights> {
    let mut rights = Rights::none(true);
    for (capability, grant) in grants {
        rights.add(*capability, grant).unwrap();
    }
    Arc::new(rights)
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

fn append<'a>(session: &'a str, stream: &'a str, seq: u64, topic: Option<&'a str>) -> Command<'a> {
    let delta = NewDelta { stream, seq, delta: b"\"x\"", topic };
    Command::StreamAppend { session, delta, durability: Durability::Disk }
}

fn world() -> World {
    let mut world = World::new(2, Limits::default(), LogConfig::default());
    world.settle();
    world
}

/// Sends, settles, and says what the answer was.
fn answer(world: &mut World, slot: u32, command: Command<'_>) -> String {
    let id = world.send(0, slot, command).expect("there is room");
    world.settle();
    let got = world.queues[0].got.get(&slot).into_iter().flatten();
    let mut replies = got.filter_map(|got| match got {
        Got::Reply(of, text) if *of == id => Some(text.clone()),
        _ => None,
    });
    replies.next().expect("an answer")
}

const FORBIDDEN: &str = "refused forbidden capabilities.";

#[test]
fn what_is_not_granted_is_refused_wherever_the_session_lives() {
    let mut world = world();
    let own = rights(&[(Capability::Publish, "mine-*/chat.>"), (Capability::Subscribe, "mine-*/>")]);
    world.connect_with(0, 1, "ann", Some(&own));
    world.connect(0, 2, "all");
    for n in 0..8 {
        let (mine, theirs) = (format!("mine-{n}"), format!("theirs-{n}"));
        assert_eq!(answer(&mut world, 2, publish(&theirs, "chat.a", "m")), "published 0 false");
        assert_eq!(answer(&mut world, 1, publish(&mine, "chat.a", "m")), "published 0 false");
        assert_eq!(answer(&mut world, 1, publish(&mine, "tool.a", "m")), format!("{FORBIDDEN}publish"));
        let subscribe = |session| Command::Subscribe { session, from: From::Earliest, policy: Policy::Lossless };
        assert_eq!(answer(&mut world, 1, subscribe(&mine)), "subscribed 0");
        // Of what exists and of what does not nothing is said.
        for there in [theirs.as_str(), "nowhere"] {
            for command in [publish(there, "chat.a", "m"), append(there, "s", 0, None)] {
                assert_eq!(answer(&mut world, 1, command), format!("{FORBIDDEN}publish"));
            }
            let history = Command::History { session: there, from: None, limit: 1 };
            for command in [subscribe(there), history] {
                assert_eq!(answer(&mut world, 1, command), format!("{FORBIDDEN}subscribe"));
            }
        }
    }
    let patterns = Command::SubscribePatterns { patterns: &["chat.>"], from: PatternFrom::Latest };
    assert_eq!(answer(&mut world, 1, patterns), format!("{FORBIDDEN}subscribe"));
    let all = rights(&[(Capability::Subscribe, "chat.>")]);
    world.renew(0, 1, &all);
    assert!(answer(&mut world, 1, patterns).starts_with("SubscribedPatterns"));
    assert_eq!(
        answer(&mut world, 1, publish("mine-1", "chat.a", "m2")),
        format!("{FORBIDDEN}publish"),
        "the newer token counts"
    );
}

/// A stream's topic is known to its session's owner alone.
#[test]
fn a_stream_is_held_against_its_own_topic() {
    let mut world = world();
    let own = rights(&[(Capability::Publish, "llm.>")]);
    world.connect_with(0, 1, "worker", Some(&own));
    world.connect(0, 2, "all");
    for n in 0..8 {
        let session = format!("s{n}");
        let close = |stream| Command::StreamClose { session: &session, stream, status: StreamStatus::Complete };
        assert_eq!(
            answer(&mut world, 1, append(&session, "own", 0, None)),
            format!("{FORBIDDEN}publish"),
            "topic `stream`"
        );
        assert_eq!(answer(&mut world, 1, append(&session, "own", 0, Some("llm.answer"))), "published 0 false");
        assert_eq!(answer(&mut world, 1, append(&session, "own", 1, None)), "published 1 false");
        assert_eq!(answer(&mut world, 2, append(&session, "theirs", 0, Some("chat.a"))), "published 2 false");
        for command in
            [append(&session, "theirs", 1, None), append(&session, "theirs", 1, Some("llm.x")), close("theirs")]
        {
            assert_eq!(answer(&mut world, 1, command), format!("{FORBIDDEN}publish"));
        }
        assert_eq!(answer(&mut world, 1, append(&session, "own", 7, None)), "refused stream_gap seq 2");
        assert_eq!(answer(&mut world, 1, close("own")), "published 3 false");
        assert_eq!(answer(&mut world, 1, close("nobody")), "refused unknown_stream stream");
        assert_eq!(answer(&mut world, 2, close("theirs")), "published 4 false");
    }
}

/// What a client had under one token it does not get back under a narrower one.
#[test]
fn a_life_goes_on_as_far_as_the_token_reaches() {
    let mut world = world();
    let wide = rights(&[(Capability::Subscribe, ">"), (Capability::Publish, "presence")]);
    world.connect_with(0, 1, "ann", Some(&wide));
    let resume = |claim| Command::Resume { claim, seen: &[], position: None, attempt: 0 };
    assert!(answer(&mut world, 1, resume(Claim::New)).contains("generation: 1"));
    for session in ["a", "b"] {
        let subscribe = Command::Subscribe { session, from: From::Latest, policy: Policy::Lossless };
        assert_eq!(answer(&mut world, 1, subscribe), "subscribed 0");
    }
    let patterns = Command::SubscribePatterns { patterns: &["chat.>"], from: PatternFrom::Latest };
    assert!(answer(&mut world, 1, patterns).starts_with("SubscribedPatterns"));
    let enter = PresenceAct::Enter { state: PresenceState::Idle, data: None, lease_ms: None, log: false };
    assert!(!answer(&mut world, 1, Command::Presence { session: "a", act: enter }).starts_with("refused"));
    world.disconnect(0, 1);
    world.settle();

    let narrow = rights(&[(Capability::Subscribe, "b/>")]);
    world.connect_with(0, 3, "ann", Some(&narrow));
    let life = Claim::Life { client_id: "ann", life: LifeId { generation: 1, epoch: 0 } };
    let resumed = answer(&mut world, 3, resume(life));
    assert!(resumed.contains("sessions: 2") && resumed.contains("patterns: false"), "{resumed}");
    assert!(world.shards[0].counters().refusals == 0, "what is lost is told, and refused to nobody");
    // Whoever is bound to a name does not come back under another one, whatever it can show.
    world.connect_with(0, 4, "bob", Some(&narrow));
    let stolen =
        answer(&mut world, 4, resume(Claim::Life { client_id: "ann", life: LifeId { generation: 2, epoch: 0 } }));
    assert_eq!(stolen, "refused bad_token token");
}
