//! Queues over several shards: each job ends once, sessions keep their order, credit and capacity hold, nobody waits for ever.

mod world;

use proptest::prelude::*;
use shards::command::{
    Command, DataKind, Durability, Fallback, JobAsk, JobName, JobOrder, Lease, NewEntry, NewEvent, NewQueue, QueueAsk,
};
use shards::limits::Limits;
use std::collections::{BTreeMap, BTreeSet};
use storage::log::LogConfig;
use world::{Got, World};

const QUEUE: &str = "llm";

fn world(shards: u16) -> World {
    let mut world = World::new(shards, Limits::default(), LogConfig::small());
    world.settle();
    world
}

fn policy<'a>() -> NewQueue<'a> {
    NewQueue {
        queue: QUEUE,
        topics: &["job.>"],
        priorities: &["job.urgent"],
        capacity: 100,
        lease_ms: 1000,
        deadline_ms: 10_000,
        attempts: 3,
        backoff_ms: 100,
        order: JobOrder::Session,
        fallback: Some(Fallback { topic: "answer.fallback", data: b"\"sorry\"" }),
        dead_letter: "answer.dead",
    }
}

fn declare(new: NewQueue<'_>) -> Command<'_> {
    Command::Queue { ask: QueueAsk::Declare(new) }
}

fn pull<'a>(credit: u64) -> Command<'a> {
    Command::Queue { ask: QueueAsk::Pull { queue: QUEUE, credit } }
}

fn event<'a>(topic: &'a str, message_id: &'a str) -> NewEvent<'a> {
    NewEvent {
        topic,
        message_id,
        prev_event_id: None,
        prev_message_id: None,
        data: b"{\"ask\":1}",
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

/// A job as a worker has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Work {
    session: String,
    offset: u64,
    lease: Lease,
}

fn jobs(world: &mut World, shard: usize, slot: u32) -> Vec<Work> {
    let got = world.queues[shard].got.entry(slot).or_default();
    let is_job = |got: &mut Got| matches!(got, Got::Job(..));
    let found: Vec<Got> = got.extract_if(.., is_job).collect();
    let work = |got| match got {
        Got::Job(_, session, offset, lease, data) => {
            assert_eq!(data, "{\"ask\":1}");
            Work { session, offset, lease }
        }
        _ => unreachable!("extracted"),
    };
    found.into_iter().map(work).collect()
}

fn epoch(world: &World, session: &str) -> u64 {
    let owner = usize::from(world.shards[0].owner("default", session).0);
    let log = world.shards[owner].log();
    let slot = log.resident(log.partition_id("default", session)).expect("it is in memory");
    log.partition(slot).epoch()
}

fn name(world: &World, work: &Work) -> JobName<'static> {
    JobName { queue: QUEUE, epoch: epoch(world, &work.session), offset: work.offset }
}

fn complete(world: &mut World, shard: usize, slot: u32, work: &Work) -> String {
    let name = name(world, work);
    let done = Command::Commit {
        session: &work.session,
        events: &[],
        markers: &[],
        entries: &[],
        complete: Some((name, work.lease)),
        holds: None,
        if_next: None,
    };
    say(world, shard, slot, done)
}

fn about(world: &mut World, shard: usize, slot: u32, work: &Work, ask: JobAsk<'_>) -> String {
    let name = name(world, work);
    say(world, shard, slot, Command::Job { session: &work.session, job: name, ask })
}

/// Topics and data of a session's events.
fn events(world: &mut World, session: &str) -> Vec<String> {
    world.connect(0, 99, "auditor");
    world.queues[0].got.remove(&99);
    let from = shards::command::From::Earliest;
    say(world, 0, 99, Command::Subscribe { session, from, policy: shards::command::Policy::Lossless });
    let got = world.queues[0].got.remove(&99).unwrap_or_default();
    world.disconnect(0, 99);
    got.into_iter().filter_map(|got| if let Got::Event { data, .. } = got { Some(data) } else { None }).collect()
}

/// Time goes by, and every shard runs.
fn pass(world: &mut World, ms: u64) {
    for _ in 0..ms.div_ceil(20) {
        world.now.mono_us += 20_000;
        world.now.wall_ms += 20;
        world.settle();
    }
}

#[test]
fn a_job_goes_to_a_worker_on_any_shard_and_ends_once() {
    for shards in [1, 3] {
        let mut world = world(shards);
        let worker = usize::from(shards - 1);
        world.connect(0, 1, "ann");
        world.connect(worker, 2, "worker");
        assert_eq!(say(&mut world, worker, 2, pull(1)), "refused unknown_queue queue");
        assert!(say(&mut world, 0, 1, declare(policy())).contains("Declared"));
        assert!(say(&mut world, worker, 2, pull(2)).contains("Pulling"));
        assert_eq!(say(&mut world, 0, 1, publish("a", "job.llm", "m1")), "published 0 false");
        assert_eq!(say(&mut world, 0, 1, publish("a", "chat", "m2")), "published 1 false");
        let got = jobs(&mut world, worker, 2);
        assert_eq!(got.len(), 1, "{shards} shards: {got:?}");
        let work = &got[0];
        assert_eq!((work.session.as_str(), work.offset, work.lease.attempt), ("a", 0, 1));
        // Its answer, an entry and its end are one record.
        let (one, name) = ([event("chat.answer", "w1")], name(&world, work));
        let kept = [NewEntry { key: "k", value: Some(b"1"), ttl_ms: None, if_revision: Some(0) }];
        let done = |lease| Command::Commit {
            session: "a",
            events: &one,
            markers: &[],
            entries: &kept,
            complete: Some((name, lease)),
            holds: None,
            if_next: None,
        };
        let stale = Lease { nonce: work.lease.nonce ^ 1, ..work.lease };
        let half = [event("chat", "half")];
        let under = |lease| Command::Commit {
            session: "a",
            events: &half,
            markers: &[],
            entries: &[],
            complete: None,
            holds: Some((name, lease)),
            if_next: None,
        };
        assert_eq!(say(&mut world, worker, 2, under(stale)), "refused stale_lease lease", "and nothing is done");
        assert_eq!(say(&mut world, worker, 2, under(work.lease)), "committed 2 1 false 0", "the job goes on");
        assert_eq!(say(&mut world, worker, 2, done(stale)), "refused stale_lease lease");
        assert_eq!(say(&mut world, worker, 2, done(work.lease)), "committed 3 1 false 1");
        assert_eq!(say(&mut world, worker, 2, done(work.lease)), "committed 3 1 true 0", "a repeat is answered as one");
        assert_eq!(complete(&mut world, worker, 2, work), "refused unknown_job job");
        pass(&mut world, 11_000);
        assert_eq!(events(&mut world, "a").len(), 4, "no fallback: it has ended");
    }
}

#[test]
fn a_session_keeps_its_order_and_many_go_side_by_side() {
    let mut world = world(2);
    world.connect(0, 1, "ann");
    world.connect(1, 2, "worker");
    say(&mut world, 0, 1, declare(policy()));
    say(&mut world, 1, 2, pull(10));
    for n in 0..3 {
        for session in ["a", "b", "c"] {
            say(&mut world, 0, 1, publish(session, "job.llm", &format!("m{n}")));
        }
    }
    let first = jobs(&mut world, 1, 2);
    assert_eq!(first.iter().map(|work| work.offset).collect::<Vec<_>>(), [0, 0, 0], "one of each session");
    assert_eq!(complete(&mut world, 1, 2, &first[1]), "committed 3 0 false 0");
    let next = jobs(&mut world, 1, 2);
    assert_eq!((next.len(), &next[0].session, next[0].offset), (1, &first[1].session, 1));
    // Free order: all at once, the urgent one first.
    say(&mut world, 0, 1, declare(NewQueue { order: JobOrder::Free, ..policy() }));
    say(&mut world, 0, 1, publish("a", "job.urgent", "u1"));
    let rest = jobs(&mut world, 1, 2);
    assert_eq!(rest.len(), 6, "{rest:?}");
}

#[test]
fn at_the_deadline_the_server_answers_with_what_there_is() {
    let mut world = world(2);
    world.connect(0, 1, "ann");
    world.connect(1, 2, "worker");
    say(&mut world, 0, 1, declare(policy()));
    say(&mut world, 1, 2, pull(1));
    say(&mut world, 0, 1, publish("a", "job.llm", "m1"));
    let work = jobs(&mut world, 1, 2).remove(0);
    for _ in 0..9 {
        pass(&mut world, 500);
        let ask = JobAsk::Extend { lease: work.lease, lease_ms: None };
        assert_eq!(about(&mut world, 1, 2, &work, ask), "Extended { lease_ms: 1000 }");
    }
    let ask = JobAsk::Progress { lease: work.lease, partial: b"[\"half\"]" };
    assert_eq!(about(&mut world, 1, 2, &work, ask), "Progressed");
    let ask = JobAsk::Extend { lease: work.lease, lease_ms: Some(60_000) };
    let said = about(&mut world, 1, 2, &work, ask);
    let rest = said.strip_prefix("refused past_deadline lease_ms ").expect("it is beyond").parse().unwrap();
    assert!((5000..6000).contains(&rest), "{rest}");
    let ask = JobAsk::Extend { lease: work.lease, lease_ms: Some(rest) };
    assert!(about(&mut world, 1, 2, &work, ask).starts_with("Extended"));
    pass(&mut world, rest - 40);
    assert_eq!(events(&mut world, "a").len(), 1, "not yet");
    pass(&mut world, 80);
    let said = events(&mut world, "a");
    assert_eq!(said.len(), 2);
    let name = format!("{QUEUE}/a:{:016x}:0", epoch(&world, "a"));
    let want = format!(r#"{{"job":"{name}","reason":"deadline","attempts":0,"data":"sorry","partial":["half"]}}"#);
    assert_eq!(said[1], want);
    assert_eq!(complete(&mut world, 1, 2, &work), "refused unknown_job job", "too late");
    let lost = |got: &Got| matches!(got, Got::Reply(..)) || matches!(got, Got::Job(..));
    assert!(!world.queues[1].got.entry(2).or_default().iter().any(lost));
    // Its credit is back.
    say(&mut world, 0, 1, publish("a", "job.llm", "m2"));
    assert_eq!(jobs(&mut world, 1, 2).len(), 1);
}

/// Dead letters, page by page: session, offset, attempts.
fn dead_list(world: &mut World) -> Vec<(String, u64, u16)> {
    let (mut found, mut from) = (Vec::new(), Some(0));
    while let Some(at) = from {
        let list = Command::Queue { ask: QueueAsk::Dead { queue: QUEUE, from: at } };
        let id = world.send(0, 1, list).unwrap();
        world.settle();
        let got = world.queues[0].got.entry(1).or_default();
        let at = got.iter().position(|got| matches!(got, Got::Dead(of, ..) if *of == Some(id))).unwrap();
        let Got::Dead(_, dead, next) = got.remove(at) else { panic!() };
        found.extend(dead);
        from = next;
    }
    found
}

#[test]
fn a_session_keeps_the_newest_dead_and_others_keep_theirs() {
    let mut world = world(1);
    world.connect(0, 1, "ann");
    world.connect(0, 2, "worker");
    say(&mut world, 0, 1, declare(policy()));
    say(&mut world, 0, 2, pull(1));
    let kept = storage::catalog::JOBS_DEAD_MAX as u64;
    for number in 0..=kept + 1 {
        let session = if number == 0 { "other" } else { "a" };
        say(&mut world, 0, 1, publish(session, "job.llm", &number.to_string()));
        let work = jobs(&mut world, 0, 2).remove(0);
        let over = JobAsk::Fail { lease: work.lease, retry_after_ms: None, retry: false };
        assert_eq!(about(&mut world, 0, 2, &work, over), "Dead { attempts: 1 }");
    }
    let mut found = dead_list(&mut world);
    found.sort();
    // Each was followed by what the server said of it.
    let mut expected: Vec<_> = (1..=kept).map(|number| ("a".to_owned(), number * 2, 1)).collect();
    expected.push(("other".to_owned(), 0, 1));
    assert_eq!(found, expected);
}

#[test]
fn attempts_fail_wait_and_end_as_a_dead_letter_that_can_be_driven_again() {
    let mut world = world(2);
    world.connect(0, 1, "ann");
    world.connect(1, 2, "worker");
    say(&mut world, 0, 1, declare(policy()));
    say(&mut world, 1, 2, pull(1));
    say(&mut world, 0, 1, publish("a", "job.llm", "m1"));
    let fail = |lease| JobAsk::Fail { lease, retry_after_ms: None, retry: true };
    let first = jobs(&mut world, 1, 2).remove(0);
    assert_eq!(about(&mut world, 1, 2, &first, fail(first.lease)), "Failed { attempts: 1 }");
    assert!(jobs(&mut world, 1, 2).is_empty(), "not before the backoff");
    pass(&mut world, 120);
    let second = jobs(&mut world, 1, 2).remove(0);
    assert_eq!(second.lease.attempt, 2);
    assert_eq!(about(&mut world, 1, 2, &second, fail(first.lease)), "refused stale_lease lease");
    // Nobody is heard of: the lease is over, and so is the second attempt.
    pass(&mut world, 1400);
    let third = jobs(&mut world, 1, 2).remove(0);
    assert_eq!(third.lease.attempt, 3);
    assert_eq!(complete(&mut world, 1, 2, &second), "refused stale_lease lease");
    assert_eq!(about(&mut world, 1, 2, &third, fail(third.lease)), "Dead { attempts: 3 }");
    assert!(events(&mut world, "a")[1].contains(r#""reason":"attempts","attempts":3"#));
    // It is listed, on its shard's page, and driven again.
    let found = dead_list(&mut world);
    assert_eq!(found, [("a".to_owned(), 0, 3)]);
    assert_eq!(about(&mut world, 0, 1, &third, JobAsk::Redrive), "Redriven");
    assert_eq!(about(&mut world, 0, 1, &third, JobAsk::Redrive), "refused not_dead job");
    let again = jobs(&mut world, 1, 2).remove(0);
    assert_eq!((again.offset, again.lease.attempt), (0, 1));
    assert_eq!(complete(&mut world, 1, 2, &again), "committed 2 0 false 0");
    assert_eq!(about(&mut world, 0, 1, &third, JobAsk::Drop), "refused unknown_job job");
}

#[test]
fn a_full_queue_refuses_with_advice_and_takes_again() {
    let mut world = world(1);
    world.connect(0, 1, "ann");
    say(&mut world, 0, 1, declare(NewQueue { capacity: 2, ..policy() }));
    assert_eq!(say(&mut world, 0, 1, publish("a", "job.llm", "m1")), "published 0 false");
    assert_eq!(say(&mut world, 0, 1, publish("b", "job.llm", "m1")), "published 0 false");
    assert_eq!(say(&mut world, 0, 1, publish("c", "job.llm", "m1")), "refused queue_full queue");
    assert_eq!(say(&mut world, 0, 1, publish("a", "job.llm", "m1")), "published 0 true", "a repeat is none more");
    assert_eq!(say(&mut world, 0, 1, publish("c", "chat", "m2")), "published 0 false", "others are not its jobs");
    pass(&mut world, 10_100);
    assert_eq!(say(&mut world, 0, 1, publish("c", "job.llm", "m1")), "published 1 false");
}

#[test]
fn the_whole_capacity_is_there_wherever_the_sessions_are() {
    let mut world = world(4);
    world.connect(0, 1, "ann");
    say(&mut world, 0, 1, declare(NewQueue { capacity: 3, ..policy() }));
    for (offset, id) in ["m1", "m2", "m3"].into_iter().enumerate() {
        let said = say(&mut world, 0, 1, publish("a", "job.llm", id));
        assert_eq!(said, format!("published {offset} false"), "all on one shard");
    }
    for session in ["a", "b", "c", "d", "e"] {
        assert_eq!(say(&mut world, 0, 1, publish(session, "job.llm", "n")), "refused queue_full queue", "{session}");
    }
    pass(&mut world, 10_100);
    for session in ["b", "c", "d"] {
        assert_eq!(say(&mut world, 0, 1, publish(session, "job.llm", "n")), "published 0 false", "{session}");
    }
    assert_eq!(say(&mut world, 0, 1, publish("e", "job.llm", "n")), "refused queue_full queue");
}

#[test]
fn a_queue_that_would_feed_itself_is_refused() {
    let mut world = world(3);
    world.connect(0, 1, "ann");
    let back = Some(Fallback { topic: "job.again", data: b"" });
    assert_eq!(say(&mut world, 0, 1, declare(NewQueue { fallback: back, ..policy() })), "refused queue_loop fallback");
    let bad = NewQueue { lease_ms: 20_000, ..policy() };
    assert_eq!(say(&mut world, 0, 1, declare(bad)), "refused bad_policy lease_ms 10000");
}

#[test]
fn a_worker_that_goes_before_it_was_told_costs_no_attempt() {
    let mut world = world(2);
    world.connect(0, 1, "ann");
    world.connect(1, 2, "worker");
    world.connect(0, 3, "other");
    say(&mut world, 0, 1, declare(policy()));
    say(&mut world, 1, 2, pull(1));
    // Its socket is full: the job waits on its shard.
    world.queues[1].room.insert(2, 0);
    say(&mut world, 0, 1, publish("a", "job.llm", "m1"));
    assert!(jobs(&mut world, 1, 2).is_empty());
    say(&mut world, 0, 3, pull(1));
    world.disconnect(1, 2);
    world.settle();
    let got = jobs(&mut world, 0, 3);
    assert_eq!((got.len(), got[0].lease.attempt), (1, 1));
}

fn cancel<'a>(session: &'a str, message_id: &'a str, cause: Option<&'a str>) -> Command<'a> {
    let event = NewEvent { prev_event_id: cause, data: b"\"stop\"", ..event("control.cancel", message_id) };
    Command::Publish { session, event, durability: Durability::Disk }
}

#[test]
fn who_is_cancelled_ends_at_once_and_its_worker_hears_of_it() {
    for shards in [1, 3] {
        let mut world = world(shards);
        world.connect(0, 1, "ann");
        let worker = usize::from(shards - 1);
        world.connect(worker, 2, "worker");
        say(&mut world, 0, 1, declare(NewQueue { order: JobOrder::Free, ..policy() }));
        say(&mut world, worker, 2, pull(2));
        for id in ["m1", "m2", "m3"] {
            say(&mut world, 0, 1, publish("a", "job.llm", id));
        }
        let got = jobs(&mut world, worker, 2);
        assert_eq!(got.iter().map(|work| work.offset).collect::<Vec<_>>(), [0, 1], "the third waits");
        about(&mut world, worker, 2, &got[1], JobAsk::Progress { lease: got[1].lease, partial: b"[1]" });
        let second = format!("a:{:016x}:1", epoch(&world, "a"));
        assert_eq!(say(&mut world, 0, 1, cancel("a", "c1", Some(&second))), "published 3 false");
        let lost = |world: &mut World| {
            let got = world.queues[worker].got.entry(2).or_default();
            let lost: Vec<Got> = got.extract_if(.., |got| matches!(got, Got::Lost(..))).collect();
            lost
        };
        assert_eq!(lost(&mut world), [Got::Lost("a".to_owned(), 1)]);
        assert_eq!(complete(&mut world, worker, 2, &got[1]), "refused unknown_job job", "it has ended");
        let said = events(&mut world, "a");
        assert!(said[4].contains(r#""reason":"cancelled","attempts":0,"data":"sorry","partial":[1]"#), "{said:?}");
        // Without a cause: everything that is open, also what nobody has yet. What ended is not ended again.
        assert_eq!(complete(&mut world, worker, 2, &got[0]), "committed 5 0 false 0");
        let third = jobs(&mut world, worker, 2);
        assert_eq!((third.len(), third[0].offset), (1, 2));
        say(&mut world, 0, 1, publish("a", "job.llm", "m4"));
        say(&mut world, 0, 1, cancel("a", "c2", None));
        pass(&mut world, 40);
        let said = events(&mut world, "a");
        assert_eq!(said.iter().filter(|data| data.contains("cancelled")).count(), 3, "{said:?}");
        pass(&mut world, 11_000);
        assert_eq!(events(&mut world, "a").len(), said.len(), "no deadline fires for what was cancelled");
    }
}

#[test]
fn a_commit_goes_only_where_nothing_came_in_between() {
    let mut world = world(2);
    world.connect(0, 1, "ann");
    let one = [event("chat", "e1")];
    let commit = |if_next| Command::Commit {
        session: "a",
        events: &one,
        markers: &[],
        entries: &[],
        complete: None,
        holds: None,
        if_next: Some(if_next),
    };
    assert_eq!(say(&mut world, 0, 1, commit(3)), "refused wrong_next if_next 0", "there is no such session");
    assert_eq!(say(&mut world, 0, 1, publish("a", "chat", "m1")), "published 0 false");
    assert_eq!(say(&mut world, 0, 1, commit(0)), "refused wrong_next if_next 1");
    assert_eq!(say(&mut world, 0, 1, commit(1)), "committed 1 1 false 0");
    assert_eq!(say(&mut world, 0, 1, commit(1)), "committed 1 1 true 0", "a repeat is answered as one");
}

#[test]
fn a_queue_that_is_dropped_takes_no_more_jobs_and_those_it_has_end() {
    let mut world = world(3);
    world.connect(0, 1, "ann");
    world.connect(1, 2, "worker");
    let list = |after| Command::Queue { ask: QueueAsk::List { after } };
    let drop = |queue| Command::Queue { ask: QueueAsk::Drop { queue } };
    for queue in ["q1", "q2", "q3", "q4", "q5"] {
        say(&mut world, 0, 1, declare(NewQueue { queue, topics: &["x"], ..policy() }));
    }
    say(&mut world, 0, 1, declare(policy()));
    assert_eq!(say(&mut world, 1, 2, list(None)), "queues llm 100, q1 100, q2 100, q3 100 more");
    assert_eq!(say(&mut world, 1, 2, list(Some("q3"))), "queues q4 100, q5 100");
    say(&mut world, 0, 1, publish("a", "job.llm", "m1"));
    assert_eq!(say(&mut world, 1, 2, drop("nobody")), "refused unknown_queue queue");
    assert_eq!(say(&mut world, 1, 2, drop(QUEUE)), "Work(QueueDropped { queue: \"llm\" })");
    say(&mut world, 0, 1, publish("a", "job.llm", "m2"));
    assert_eq!(say(&mut world, 0, 1, list(None)), "queues q1 100, q2 100, q3 100, q4 100 more");
    assert_eq!(say(&mut world, 1, 2, pull(1)), "refused unknown_queue queue");
    pass(&mut world, 10_100);
    let said = events(&mut world, "a");
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said[2].contains(r#""reason":"deadline""#), "the one that was a job is given up: {said:?}");
}

/// Everything that retention may take is taken, again and again; what somebody still has to work on is there.
#[test]
fn retention_takes_no_event_of_a_job_that_is_open() {
    let log = LogConfig { retention_bytes: 1, checkpoint_bytes: 32 << 10, ..LogConfig::small() };
    let mut world = World::new(1, Limits::default(), log);
    world.settle();
    world.connect(0, 1, "ann");
    world.connect(0, 2, "worker");
    say(&mut world, 0, 1, declare(NewQueue { deadline_ms: 600_000, lease_ms: 1000, ..policy() }));
    say(&mut world, 0, 1, publish("a", "job.llm", "m1"));
    let filler = vec![b'1'; 3000];
    let flood = |world: &mut World| {
        for n in 0..400 {
            let message_id = format!("f{n}.{}", world.now.wall_ms);
            let event = NewEvent { data: &filler, ..event("chat", &message_id) };
            say(world, 0, 1, Command::Publish { session: "b", event, durability: Durability::Disk });
            if n % 50 == 0 {
                pass(world, 40);
            }
        }
    };
    flood(&mut world);
    say(&mut world, 0, 2, pull(1));
    let work = jobs(&mut world, 0, 2);
    assert_eq!((work.len(), events(&mut world, "a").len()), (1, 1), "with its data");
    assert_eq!(complete(&mut world, 0, 2, &work[0]), "committed 1 0 false 0");
    flood(&mut world);
    assert_eq!(events(&mut world, "a").len(), 0, "it has ended: its event goes as others do");
}

/// What a step of the model does.
#[derive(Clone, Copy, Debug)]
enum Step {
    Publish(u8),
    Complete(usize),
    Fail(usize),
    Stale(usize),
    Pass(u64),
    Leave(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0u8..4).prop_map(Step::Publish),
        5 => (0usize..8).prop_map(Step::Complete),
        2 => (0usize..8).prop_map(Step::Fail),
        1 => (0usize..8).prop_map(Step::Stale),
        2 => (1u64..700).prop_map(Step::Pass),
        1 => (0usize..3).prop_map(Step::Leave),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever workers do, fail to do, or leave: each job ends exactly once, in order within its session, with no more at work
    /// than there is credit for.
    #[test]
    fn each_job_ends_exactly_once(steps in steps(), free in any::<bool>(), credit in 1u64..4) {
        let mut world = world(3);
        world.connect(0, 1, "ann");
        let order = if free { JobOrder::Free } else { JobOrder::Session };
        say(&mut world, 0, 1, declare(NewQueue { order, deadline_ms: 3000, ..policy() }));
        let mut slots = [(0usize, 10u32), (1, 11), (2, 12)];
        for (shard, slot) in slots {
            world.connect(shard, slot, "worker");
            say(&mut world, shard, slot, pull(credit));
        }
        let (mut published, mut done) = (BTreeSet::new(), BTreeMap::<(String, u64), u32>::new());
        let mut held: Vec<(usize, u32, Work)> = Vec::new();
        let mut old: Vec<(usize, u32, Work)> = Vec::new();
        let mut next = 0;
        for step in steps {
            match step {
                Step::Publish(session) => {
                    next += 1;
                    let session = format!("s{session}");
                    let said = say(&mut world, 0, 1, publish(&session, "job.llm", &format!("m{next}")));
                    let offset = said.split(' ').nth(1).unwrap().parse::<u64>().unwrap();
                    published.insert((session, offset));
                }
                Step::Complete(at) | Step::Fail(at) if !held.is_empty() => {
                    let (shard, slot, work) = held.swap_remove(at % held.len());
                    if matches!(step, Step::Complete(_)) {
                        let said = complete(&mut world, shard, slot, &work);
                        if said.starts_with("committed") {
                            *done.entry((work.session.clone(), work.offset)).or_default() += 1;
                        } else {
                            prop_assert!(said.contains("unknown_job") || said.contains("stale_lease"), "{}", said);
                        }
                    } else {
                        let ask = JobAsk::Fail { lease: work.lease, retry_after_ms: Some(50), retry: true };
                        about(&mut world, shard, slot, &work, ask);
                    }
                    old.push((shard, slot, work));
                }
                Step::Stale(at) if !old.is_empty() => {
                    let (_, _, work) = old[at % old.len()].clone();
                    let said = complete(&mut world, 0, 1, &work);
                    prop_assert!(said.contains("unknown_job") || said.contains("stale_lease"), "{}", said);
                }
                Step::Pass(ms) => pass(&mut world, ms),
                Step::Leave(at) => {
                    let (shard, slot) = slots[at];
                    world.disconnect(shard, slot);
                    held.retain(|(_, of, _)| *of != slot);
                    slots[at].1 = slot + 100;
                    world.connect(shard, slot + 100, "worker");
                    say(&mut world, shard, slot + 100, pull(credit));
                }
                _ => {}
            }
            for (shard, slot) in slots {
                let got = world.queues[shard].got.entry(slot).or_default();
                for lost in got.extract_if(.., |got| matches!(got, Got::Lost(..))).collect::<Vec<_>>() {
                    let Got::Lost(session, offset) = lost else { unreachable!("extracted") };
                    held.retain(|(.., other)| (&other.session, other.offset) != (&session, offset));
                }
                let fresh = jobs(&mut world, shard, slot);
                for work in fresh {
                    // A newer lease of the same job: the older one is over.
                    held.retain(|(.., other)| (&other.session, other.offset) != (&work.session, work.offset));
                    if !free {
                        let earlier = published.range((work.session.clone(), 0)..(work.session.clone(), work.offset));
                        for before in earlier {
                            let said = held.iter().any(|(.., o)| (&o.session, o.offset) == (&before.0, before.1));
                            prop_assert!(!said, "{work:?} before {before:?} has ended");
                        }
                    }
                    held.push((shard, slot, work));
                }
                let mine = held.iter().filter(|(_, of, _)| *of == slot).count() as u64;
                prop_assert!(mine <= credit, "{mine} of {credit}");
            }
        }
        // All workers stop: the deadline ends what is left.
        pass(&mut world, 3200);
        for session in 0..4 {
            let session = format!("s{session}");
            if published.iter().all(|(of, _)| *of != session) {
                continue;
            }
            for said in events(&mut world, &session) {
                if let Some(name) = said.strip_prefix(r#"{"job":""#) {
                    let offset: u64 = name.split('"').next().unwrap().rsplit(':').next().unwrap().parse().unwrap();
                    *done.entry((session.clone(), offset)).or_default() += 1;
                }
            }
        }
        for job in &published {
            prop_assert_eq!(done.get(job), Some(&1), "{:?} of {:?}", job, done);
        }
        prop_assert_eq!(done.len(), published.len());
    }
}
