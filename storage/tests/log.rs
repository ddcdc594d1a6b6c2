//! The log through its facade, over a folder that never fails.

mod world;

use storage::disk::{DiskFault, DiskOp};
use storage::ids::LogId;
use storage::log::{Log, LogConfig, LogEvent, Read, RecoveredLog, Scan, Seen};
use world::{Files, KEY, TENANT, World};

fn fresh() -> World {
    let config = LogConfig::small();
    World::new(Log::new(config, RecoveredLog::empty(KEY, LogId(0))), Files::default())
}

#[test]
fn an_event_is_read_only_after_its_commit() {
    let mut world = fresh();
    let slot = world.open("demo");
    assert!(matches!(world.log.read(slot, 0), Read::End));
    let (offset, log_seq) = world.append("demo", b"1");
    assert_eq!((offset, log_seq), (0, 0));
    let slot = world.open("demo");
    assert!(matches!(world.log.read(slot, 0), Read::End), "appended is not committed");
    world.settle();
    assert!(world.events.contains(&LogEvent::Committed { through: 1 }));
    assert_eq!(world.read_all("demo", 0), [(0, b"1".to_vec())]);
}

#[test]
fn one_turn_shares_one_group_and_a_record_holds_many_events() {
    let mut world = fresh();
    world.append_all("a", &[b"1", b"2", b"3"]);
    world.append("b", b"4");
    let (offset, log_seq) = world.append("a", b"5");
    assert_eq!((offset, log_seq), (3, 2));
    let op = world.log.poll_op(world.now_us).expect("the disk is idle: close at once");
    while let Some(op) = world.log.poll_op(world.now_us) {
        assert!(!matches!(op, DiskOp::Commit { .. }), "one group for the whole turn");
        let done = world.files.perform(&mut world.log, op);
        world.log.handle_done(done);
    }
    let done = world.files.perform(&mut world.log, op);
    world.log.handle_done(done);
    assert_eq!(world.log.poll_event(), Some(LogEvent::Committed { through: 3 }));
    let sessions: Vec<_> = world.log.committed_records(0).map(|record| (record.session(), record.count())).collect();
    assert_eq!(sessions, [("a", 3), ("b", 1), ("a", 1)]);
    assert_eq!(world.read_all("a", 1).iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn history_longer_than_the_hot_tail_and_many_segments_is_read_back_whole() {
    let mut world = fresh();
    let mut want = [vec![], vec![], vec![]];
    for turn in 0..150u64 {
        for (at, session) in ["a", "b", "c"].into_iter().enumerate() {
            let data = vec![b'0' + at as u8; 40 + (turn as usize * 37) % 900];
            let (offset, _) = world.append(session, &data);
            want[at].push((offset, data));
        }
        world.settle();
    }
    for (at, session) in ["a", "b", "c"].into_iter().enumerate() {
        assert_eq!(world.read_all(session, 0), want[at]);
        assert_eq!(world.read_all(session, 77), want[at][77..]);
    }
    assert!(world.log.stats().cold_reads > 0, "nothing was read from disk");
    assert!(world.log.stats().segments > 3, "one segment proves little");
}

#[test]
fn a_scan_sees_every_record_once_in_log_order_and_slice_order() {
    let mut world = fresh();
    for turn in 0..100u64 {
        for session in ["a", "b", "c", "d"] {
            world.append(session, &vec![b'x'; 30 + (turn as usize * 13) % 700]);
        }
        world.settle();
    }
    let (mut cursor, mut seen, mut slices) =
        (world.log.scan_from(|_| Some(0)), vec![], std::collections::BTreeMap::new());
    loop {
        match world.log.scan(cursor) {
            Scan::Hot(record, next) => {
                seen.push((record.log_seq(), record.session().to_owned(), record.slice(), record.slice_seq()));
                cursor = next;
            }
            Scan::Cold(ticket) => {
                world.settle();
                for (record, next) in world.log.scan_records(ticket).unwrap() {
                    seen.push((record.log_seq(), record.session().to_owned(), record.slice(), record.slice_seq()));
                    cursor = next;
                }
                world.log.release(ticket);
            }
            Scan::End => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen.len(), 400);
    for (at, (_, session, slice, slice_seq)) in seen.iter().enumerate() {
        assert_eq!(session, ["a", "b", "c", "d"][at % 4]);
        let before = slices.insert(*slice, *slice_seq).unwrap_or(0);
        assert_eq!(before + 1, *slice_seq);
    }
    assert_eq!(world.log.scan_latest(), cursor);
}

#[test]
fn a_repeat_is_seen_before_and_after_its_commit() {
    let mut world = fresh();
    world.append("demo", b"1");
    let slot = world.open("demo");
    let key = KEY.dedupe(KEY.partition(TENANT, "demo"), 7, "client", "m-0");
    assert_eq!(world.log.dedupe(slot, key), Seen::Yes { offset: 0, body_hash: 5, committed: false });
    world.settle();
    let slot = world.open("demo");
    assert_eq!(world.log.dedupe(slot, key), Seen::Yes { offset: 0, body_hash: 5, committed: true });
    assert_eq!(world.log.dedupe(slot, key + 1), Seen::No);
}

#[test]
fn a_repeat_is_found_in_every_sealed_segment_and_a_new_message_in_none() {
    let mut world = fresh();
    for turn in 0..200u64 {
        world.append("a", &vec![b'x'; 300 + (turn as usize * 37) % 600]);
        world.append("b", b"1");
        world.settle();
    }
    assert!(world.log.sealed().count() > 2, "nothing is sealed");
    let id = KEY.partition(TENANT, "a");
    for offset in (0..200).step_by(7) {
        let key = KEY.dedupe(id, 7, "client", &format!("m-{offset}"));
        assert_eq!(world.seen("a", key), Seen::Yes { offset, body_hash: 5, committed: true }, "offset {offset}");
    }
    for other in 0..200 {
        assert_eq!(world.seen("a", KEY.dedupe(id, 7, "client", &format!("n-{other}"))), Seen::No);
    }
}

#[test]
fn what_retention_removed_is_a_gap_and_the_rest_reads_on() {
    let mut world = World::new(
        Log::new(LogConfig { retention_bytes: 192 << 10, ..LogConfig::small() }, RecoveredLog::empty(KEY, LogId(0))),
        Files::default(),
    );
    for _ in 0..300u64 {
        world.append("a", &[b'x'; 900]);
        world.settle();
    }
    let slot = world.open("a");
    let Read::Gap { to } = world.log.read(slot, 0) else { panic!("nothing was removed") };
    assert!(to > 50 && to < 290, "{to}");
    let read = world.read_all("a", 0);
    assert_eq!(read.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), (to..300).collect::<Vec<_>>());
    let on_disk = world.files.files.keys().filter(|file| matches!(file, storage::disk::FileId::Segment(_))).count();
    assert!(on_disk < 8, "{on_disk} segments on disk");
    assert_eq!(world.scan_all(), (to..300).map(|offset| ("a".to_owned(), offset)).collect::<Vec<_>>());
}

#[test]
fn clustered_segments_read_and_scan_like_those_they_stand_in_for() {
    let config = LogConfig { recluster_bytes_max: 256 << 10, ..LogConfig::small() };
    let (mut world, _) = World::boot(config, Files::default());
    let sessions = ["a", "b", "c", "d", "e"];
    for turn in 0..200usize {
        for session in sessions {
            world.append(session, &vec![b'x'; 60 + (turn * 13) % 500]);
        }
        world.settle();
    }
    assert!(world.log.sealed().any(|contents| contents.covers.0 != contents.covers.1), "nothing was clustered");
    for session in sessions {
        assert_eq!(world.read_all(session, 3).len(), 197);
    }
    let mut next = std::collections::BTreeMap::new();
    for (session, offset) in world.scan_all() {
        let expected = next.entry(session.clone()).or_insert(0);
        assert_eq!(*expected, offset, "{session}");
        *expected += 1;
    }
    assert!(sessions.iter().all(|session| next[*session] == 200));
    let files = world.files.clone();
    let (mut world, report) = World::boot(config, files);
    assert!(!report.is_corrupt(), "{report}");
    assert_eq!(world.read_all("e", 0).len(), 200);
    assert_eq!(world.scan_all().len(), 1000);
}

#[test]
fn damage_met_by_a_read_is_a_typed_fault() {
    let mut world = fresh();
    for _ in 0..200u64 {
        world.append("a", &[b'x'; 900]);
        world.settle();
    }
    let first = world.log.sealed().next().expect("sealed").segment;
    let file = world.files.files.get_mut(&storage::disk::FileId::Segment(first)).unwrap();
    for at in (5000..60_000).step_by(500) {
        file[at] ^= 1;
    }
    let slot = world.open("a");
    let Read::Cold(ticket) = world.log.read(slot, 3) else { panic!("not cold") };
    world.settle();
    let fault = world.log.read_records(ticket).map(|_| ()).unwrap_err();
    assert!(matches!(fault, storage::log::ReadFault::Corrupt { .. }), "{fault}");
    world.log.release(ticket);
    assert!(world.read_all("a", 150).len() == 50, "the rest still reads");
}

fn poisoned_by(world: &World) -> Option<DiskFault> {
    world.events.iter().find_map(|event| match event {
        LogEvent::Poisoned(fault) => Some(*fault),
        _ => None,
    })
}

/// A checkpoint whose sync failed was made again and trusted: nobody knew which entries of the folder were durable.
#[test]
fn regression_a_failed_sync_of_a_background_job_poisons_the_log() {
    let mut world = fresh();
    world.append("a", b"1");
    world.settle();
    world.files.job_fault = Some(DiskFault::SyncFailed { errno: 5 });
    world.log.checkpoint_now();
    world.settle();
    assert_eq!(poisoned_by(&world), Some(DiskFault::SyncFailed { errno: 5 }));
    assert!(!world.log.room(1), "a poisoned log takes nothing");
}

/// On a disk that went read-only a publisher waited for the next segment for ever, without an answer.
#[test]
fn regression_a_log_that_can_make_no_segment_ends_instead_of_letting_publishers_wait() {
    let mut world = fresh();
    world.append("a", b"1");
    world.settle();
    world.files.job_fault = Some(DiskFault::Io { errno: 30 });
    for _ in 0..400 {
        if !world.log.room(1200) {
            break;
        }
        assert_eq!(poisoned_by(&world), None, "as long as there is a segment, the log goes on");
        world.append("a", &[b'x'; 900]);
        world.turn();
    }
    world.turn();
    assert_eq!(poisoned_by(&world), Some(DiskFault::Io { errno: 30 }));
}
