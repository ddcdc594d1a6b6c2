//! Entries over several shards: revisions, preconditions, lives that end, watchers that believe what is true.

mod world;

use proptest::prelude::*;
use shards::command::{Command, EntryAsk, NewEntry, NewEvent};
use shards::limits::{Limits, WorkLimits};
use std::collections::BTreeMap;
use storage::log::LogConfig;
use world::{Got, Page, World};

const SESSION: &str = "room";

fn world(shards: u16) -> World {
    settled(World::new(shards, Limits::default(), LogConfig::small()))
}

fn settled(mut world: World) -> World {
    world.settle();
    world
}

fn ask(ask: EntryAsk<'_>) -> Command<'_> {
    Command::Entry { session: SESSION, ask }
}

fn put<'a>(key: &'a str, value: &'a str) -> NewEntry<'a> {
    NewEntry { key, value: Some(value.as_bytes()), ttl_ms: None, if_revision: None }
}

fn delete(key: &str) -> NewEntry<'_> {
    NewEntry { key, value: None, ttl_ms: None, if_revision: None }
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

fn page(world: &mut World, shard: usize, slot: u32, command: Command<'_>) -> Page {
    let id = world.send(shard, slot, command).expect("there is room");
    world.settle();
    let got = world.queues[shard].got.entry(slot).or_default();
    let at = got.iter().position(|got| matches!(got, Got::Entries(page) if page.id == Some(id))).expect("a page");
    match got.remove(at) {
        Got::Entries(page) => page,
        _ => unreachable!("found above"),
    }
}

fn frames(world: &mut World, shard: usize, slot: u32) -> Vec<Page> {
    let got = world.queues[shard].got.remove(&slot).unwrap_or_default();
    got.into_iter().filter_map(|got| if let Got::Entries(page) = got { Some(page) } else { None }).collect()
}

/// What one who hears frames believes.
#[derive(Default, Debug)]
struct Believer {
    revision: u64,
    believes: BTreeMap<String, String>,
}

impl Believer {
    fn hear(&mut self, pages: Vec<Page>) {
        for page in pages {
            assert!(page.id.is_none() && page.revision >= self.revision || page.snapshot, "{page:?} after {self:?}");
            if page.snapshot && page.after == Some(0) {
                self.believes.clear();
            }
            self.revision = page.revision;
            for (key, revision, value) in page.items {
                assert!(revision <= page.revision);
                match value {
                    Some(value) => self.believes.insert(key, value),
                    None => self.believes.remove(&key),
                };
            }
        }
    }
}

#[test]
fn a_change_is_the_next_revision_and_preconditions_hold() {
    for shards in [1, 3] {
        let mut world = world(shards);
        world.connect(0, 1, "ann");
        let set = |entry| ask(EntryAsk::Set(entry));
        assert_eq!(say(&mut world, 0, 1, set(put("a", "1"))), "put a 1");
        assert_eq!(say(&mut world, 0, 1, set(NewEntry { if_revision: Some(1), ..put("a", "2") })), "put a 2");
        let stale = set(NewEntry { if_revision: Some(1), ..put("a", "3") });
        assert_eq!(say(&mut world, 0, 1, stale), "refused wrong_revision if_revision 2");
        let fresh = set(NewEntry { if_revision: Some(0), ..put("b", "3") });
        assert_eq!(say(&mut world, 0, 1, fresh), "put b 3");
        assert_eq!(say(&mut world, 0, 1, fresh), "refused wrong_revision if_revision 3");
        assert_eq!(say(&mut world, 0, 1, set(delete("a"))), "deleted a 4");
        assert_eq!(say(&mut world, 0, 1, set(delete("a"))), "refused unknown_entry key");
        let got = page(&mut world, 0, 1, ask(EntryAsk::Get { key: "b" }));
        assert_eq!((got.revision, got.items), (4, vec![("b".into(), 3, Some("3".into()))]));
        assert!(page(&mut world, 0, 1, ask(EntryAsk::Get { key: "a" })).items.is_empty());
        let large = "x".repeat(4097);
        assert_eq!(say(&mut world, 0, 1, set(put("c", &large))), "refused entry_too_large data");
    }
}

#[test]
fn a_list_is_told_in_pages_by_key() {
    let mut world = world(2);
    world.connect(0, 1, "ann");
    let value = format!("\"{}\"", "v".repeat(1000));
    for n in 0..40 {
        let key = format!("{}:{n:02}", if n % 4 == 0 { "b" } else { "a" });
        let said = say(&mut world, 0, 1, ask(EntryAsk::Set(put(&key, &value))));
        assert_eq!(said, format!("put {key} {}", n + 1));
    }
    let (mut keys, mut after, mut pages) = (Vec::new(), None, 0);
    loop {
        let list = ask(EntryAsk::List { prefix: "a", after: after.as_deref() });
        let got = page(&mut world, 0, 1, list);
        keys.extend(got.items.iter().map(|item| item.0.clone()));
        pages += 1;
        after = keys.last().cloned();
        if !got.more {
            break;
        }
    }
    let want: Vec<String> = (0..40).filter(|n| n % 4 != 0).map(|n| format!("a:{n:02}")).collect();
    assert_eq!(keys, want);
    assert!(pages > 1, "more than one page");
    // As much as a session holds, and not more.
    let mut full = 0;
    for n in 40..100 {
        let key = format!("c:{n}");
        let said = say(&mut world, 0, 1, ask(EntryAsk::Set(put(&key, &value))));
        full += usize::from(said == "refused entries_full data");
    }
    assert_eq!(full, 100 - 64 * 1024 / (27 + 4 + 1002));
}

#[test]
fn an_entry_ends_at_its_time_for_everybody_and_is_said_to_have() {
    let mut world = world(2);
    world.connect(0, 1, "ann");
    world.connect(1, 2, "bob");
    let short = NewEntry { ttl_ms: Some(500), ..put("k", "1") };
    say(&mut world, 0, 1, ask(EntryAsk::Set(short)));
    say(&mut world, 1, 2, ask(EntryAsk::Watch { prefix: "", revision: None }));
    world.settle();
    let mut bob = Believer::default();
    bob.hear(frames(&mut world, 1, 2));
    assert_eq!(bob.believes.get("k").map(String::as_str), Some("1"));
    world.now.mono_us += 499_000;
    assert_eq!(page(&mut world, 0, 1, ask(EntryAsk::Get { key: "k" })).items.len(), 1, "not yet");
    world.now.mono_us += 1000;
    assert_eq!(page(&mut world, 0, 1, ask(EntryAsk::Get { key: "k" })).items.len(), 0, "its time is over");
    let again = NewEntry { if_revision: Some(0), ..put("l", "2") };
    say(&mut world, 0, 1, ask(EntryAsk::Set(again)));
    world.now.mono_us += 20_000;
    world.settle();
    bob.hear(frames(&mut world, 1, 2));
    assert_eq!(bob.believes.into_iter().collect::<Vec<_>>(), [("l".to_owned(), "2".to_owned())]);
}

#[test]
fn a_commit_is_all_or_nothing() {
    let mut world = world(2);
    world.connect(0, 1, "ann");
    let event = |message_id| NewEvent {
        topic: "chat",
        message_id,
        prev_event_id: None,
        prev_message_id: None,
        data: b"1",
        data_kind: shards::command::DataKind::Json,
        ttl_ms: None,
        producer: None,
        traceparent: "",
    };
    let (one, entries) = ([event("m1")], [put("a", "1"), put("b", "2")]);
    let commit = Command::Commit {
        session: SESSION,
        events: &one,
        markers: &[],
        entries: &entries,
        complete: None,
        holds: None,
        if_next: None,
    };
    assert_eq!(say(&mut world, 0, 1, commit), "committed 0 1 false 2");
    assert_eq!(say(&mut world, 0, 1, commit), "committed 0 1 true 0", "a repeat changes nothing");
    let (two, entries) = ([event("m2")], [put("c", "3"), NewEntry { if_revision: Some(7), ..put("b", "4") }]);
    let commit = Command::Commit {
        session: SESSION,
        events: &two,
        markers: &[],
        entries: &entries,
        complete: None,
        holds: None,
        if_next: None,
    };
    assert_eq!(say(&mut world, 0, 1, commit), "refused wrong_revision if_revision 2");
    let twice = [put("c", "3"), delete("c")];
    let commit = Command::Commit {
        session: SESSION,
        events: &[],
        markers: &[],
        entries: &twice,
        complete: None,
        holds: None,
        if_next: None,
    };
    assert_eq!(say(&mut world, 0, 1, commit), "refused repeated_field key");
    let list = page(&mut world, 0, 1, ask(EntryAsk::List { prefix: "", after: None }));
    assert_eq!(list.items.iter().map(|item| item.0.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let again = Command::Commit {
        session: SESSION,
        events: &two,
        markers: &[],
        entries: &[],
        complete: None,
        holds: None,
        if_next: None,
    };
    assert_eq!(say(&mut world, 0, 1, again), "committed 1 1 false 0", "its event was not taken before");
}

#[test]
fn a_tenant_has_its_share() {
    let work = WorkLimits { entries_bytes_per_tenant_max: 400, ..WorkLimits::default() };
    let mut world = settled(World::new(1, Limits { work, ..Limits::default() }, LogConfig::small()));
    world.connect(0, 1, "ann");
    let value = "1".repeat(300);
    assert_eq!(say(&mut world, 0, 1, ask(EntryAsk::Set(put("a", &value)))), "put a 1");
    let other = Command::Entry { session: "other", ask: EntryAsk::Set(put("a", &value)) };
    assert_eq!(say(&mut world, 0, 1, other), "refused entries_full data");
    assert_eq!(say(&mut world, 0, 1, ask(EntryAsk::Set(put("a", "2")))), "put a 2", "less than before always fits");
    assert_eq!(say(&mut world, 0, 1, other), "put a 1");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever is put and deleted, wherever a watcher begins, comes back or reads slowly: it believes what is true.
    #[test]
    fn who_watches_believes_what_is_true(
        steps in proptest::collection::vec((0u8..10, 0usize..30, any::<bool>()), 1..160),
        back in 0usize..160, slow in any::<bool>(),
    ) {
        let mut world = world(3);
        world.connect(0, 1, "ann");
        world.connect(1, 2, "bob");
        world.connect(2, 3, "cy");
        let watch = |revision| ask(EntryAsk::Watch { prefix: "k", revision });
        world.send(1, 2, watch(None));
        let (mut bob, mut cy) = (Believer::default(), Believer::default());
        let mut truth = BTreeMap::new();
        for (n, (kind, key, calm)) in steps.into_iter().enumerate() {
            let (key, value) = (format!("{}{key}", if kind == 9 { "x" } else { "k" }), format!("\"{n} {}\"", "v".repeat(60)));
            let entry = if kind < 6 || kind == 9 { put(&key, &value) } else { delete(&key) };
            let said = say(&mut world, 0, 1, ask(EntryAsk::Set(entry)));
            if said.starts_with("put k") {
                truth.insert(key, value);
            } else if said.starts_with("deleted") {
                truth.remove(&key);
            }
            if slow && n % 7 == 0 {
                world.queues[1].room.insert(2, if n % 14 == 0 { 0 } else { usize::MAX });
            }
            if n == back {
                // Another begins where bob stands.
                bob.hear(frames(&mut world, 1, 2));
                (cy.revision, cy.believes) = (bob.revision, bob.believes.clone());
                world.send(2, 3, watch(Some(bob.revision)));
            }
            if calm {
                world.settle();
            }
        }
        world.drained(1, 2, usize::MAX);
        world.now.mono_us += 200_000;
        world.settle();
        world.now.mono_us += 200_000;
        world.settle();
        bob.hear(frames(&mut world, 1, 2));
        prop_assert_eq!(&bob.believes, &truth);
        cy.hear(frames(&mut world, 2, 3));
        if cy.revision > 0 {
            prop_assert_eq!(&cy.believes, &truth);
        }
    }
}
