//! Boot over what a crash left behind.

mod world;

use storage::dedupe::DEDUPE_HOT_BYTES_MIN;
use storage::disk::FileId;
use storage::group::{BLOCK_BYTES, GroupHeader};
use storage::ids::{LogId, SegmentId};
use storage::log::{LogConfig, LogEvent, Read, ReadFault};
use storage::recluster::SEGMENTS_END;
use storage::recovery::{RecoverError, recover};
use storage::segment::{HeaderFault, SegmentHeader};
use world::{Files, KEY, World};

fn config() -> LogConfig {
    LogConfig::small()
}

fn fill(world: &mut World, turns: u64) {
    for turn in 0..turns {
        for session in ["a", "b", "c"] {
            let data = format!("{session}{turn}:{}", "x".repeat((turn as usize * 37) % 700));
            world.append(session, data.as_bytes());
        }
        world.settle();
    }
}

fn all(world: &mut World) -> Vec<Vec<(u64, Vec<u8>)>> {
    ["a", "b", "c"].iter().map(|session| world.read_all(session, 0)).collect()
}

#[test]
fn a_new_folder_gets_a_manifest_and_a_log() {
    let (mut world, report) = World::boot(config(), Files::default());
    assert!(report.findings.is_empty());
    world.append("a", b"1");
    world.settle();
    assert_eq!(world.read_all("a", 0), [(0, b"1".to_vec())]);
}

#[test]
fn everything_committed_is_there_after_a_crash_at_any_fill_and_again() {
    for turns in [0, 1, 5, 60, 150] {
        let (mut world, _) = World::boot(config(), Files::default());
        fill(&mut world, turns);
        let mut want = all(&mut world);
        for round in 0..3 {
            let (next, report) = World::boot(config(), world.files.clone());
            world = next;
            assert!(!report.is_corrupt() && report.torn() == 0, "{report}");
            assert_eq!(all(&mut world), want, "round {round} of {turns} turns");
            world.append("a", b"after");
            world.settle();
            want[0].push((turns + round, b"after".to_vec()));
        }
    }
}

#[test]
fn a_clean_stop_is_recognised_and_nothing_is_read_again() {
    let (mut world, _) = World::boot(config(), Files::default());
    fill(&mut world, 100);
    let want = all(&mut world);
    world.append("a", b"last");
    world.log.stop();
    assert!(!world.log.room(100), "stopping takes nothing more");
    world.settle();
    assert!(world.events.contains(&LogEvent::Stopped));
    let (mut world, report) = World::boot(config(), world.files);
    assert!(report.findings.iter().all(|finding| finding.role != storage::recovery::Role::Replayed), "{report}");
    assert_eq!(all(&mut world)[1..], want[1..]);
    assert_eq!(world.read_all("a", 100), [(100, b"last".to_vec())]);
    fill(&mut world, 1);
    assert_eq!(world.read_all("a", 101).len(), 1);
}

/// Changes bytes of a file and makes the checksum over `sealed` right again.
fn forge(files: &mut Files, file: FileId, at: usize, bytes: &[u8], crc_at: usize, sealed: std::ops::Range<usize>) {
    let content = files.files.get_mut(&file).expect("it exists");
    content[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = crc32c::crc32c(&content[sealed]);
    content[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
}

fn corrupt(mut files: Files) -> bool {
    matches!(recover(&mut files, 1, KEY), Err(RecoverError::Corrupt(report)) if report.is_corrupt())
}

/// Numbers have ends: a file whose name leaves no name for the next one came from nowhere, and no number may wrap round.
#[test]
fn regression_a_file_of_the_last_number_is_damage() {
    let (mut world, _) = World::boot(config(), Files::default());
    fill(&mut world, 3);
    let (log, first) = (LogId(0), SegmentId { log: LogId(0), number: 0 });
    let bytes = world.files.files[&FileId::Segment(first)].clone();
    let last_of = |number| FileId::Segment(SegmentId { log, number });
    for odd in [last_of(SEGMENTS_END), last_of(u32::MAX), FileId::Checkpoint(log, u32::MAX)] {
        let mut files = world.files.clone();
        files.files.insert(odd, bytes.clone());
        assert!(corrupt(files), "{odd:?}");
    }
}

/// A group or a segment that says it is the last there can be: damage, though its checksum is right.
#[test]
fn regression_counters_at_their_end_are_damage() {
    let (mut world, _) = World::boot(config(), Files::default());
    fill(&mut world, 3);
    let file = FileId::Segment(SegmentId { log: LogId(0), number: 0 });
    for at in [40, 48] {
        let mut files = world.files.clone();
        forge(&mut files, file, at, &u64::MAX.to_le_bytes(), 60, 0..60);
        let header = SegmentHeader::get(&files.files[&file]);
        assert_eq!(header, Err(HeaderFault::Damaged), "byte {at}");
        assert!(corrupt(files), "byte {at}");
    }
    let mut files = world.files.clone();
    forge(&mut files, file, 4096 + 32, &u64::MAX.to_le_bytes(), 4096 + 60, 4096..4096 + 60);
    assert_eq!(GroupHeader::get(&files.files[&file][4096..]), None);
}

/// The least memory for message ids that is allowed takes the largest record again and again.
#[test]
fn regression_the_least_dedupe_memory_takes_every_record() {
    let config = LogConfig { dedupe_hot_bytes_max: DEDUPE_HOT_BYTES_MIN, commit_bytes_max: 128 << 10, ..config() };
    let config =
        LogConfig { segment_bytes: 512 << 10, hot_tail_bytes: 1 << 20, read_buffer_bytes: 256 << 10, ..config };
    let (mut world, _) = World::boot(config, Files::default());
    for turn in 0..20 {
        let (offset, _) = world.append_all("a", &[&b"1"[..]; 256]);
        assert_eq!(offset, turn * 256);
    }
}

/// Found by the fuzzer: a segment that ends inside its header block, with a header that calls itself whole. It was clean as far
/// as a block that is not there, and the boot made that durable.
#[test]
fn regression_a_segment_that_ends_in_its_header_is_damage() {
    let (mut world, _) = World::boot(config(), Files::default());
    fill(&mut world, 3);
    let file = FileId::Segment(SegmentId { log: LogId(0), number: 0 });
    forge(&mut world.files, file, 32, &4096u64.to_le_bytes(), 60, 0..60);
    world.files.files.get_mut(&file).expect("it exists").truncate(1024);
    assert!(corrupt(world.files));
}

/// Found by the fuzzer: a sealed segment that lost its end while nobody looked. Its sidecar vouches for it, so boot does not read
/// it; a reader asked for the same bytes again and again, and the disk never had more.
#[test]
fn regression_a_sealed_segment_that_lost_its_end_is_a_fault_to_its_reader() {
    let (mut world, _) = World::boot(config(), Files::default());
    fill(&mut world, 60);
    let (mut world, _) = World::boot(config(), world.files);
    let segment = SegmentId { log: LogId(0), number: 0 };
    assert!(world.files.files.contains_key(&FileId::Sidecar(segment)), "sealed");
    for length in [4096, 8192, 9000, 0] {
        world.files.files.get_mut(&FileId::Segment(segment)).expect("it exists").truncate(length);
        let slot = world.open("a");
        let Read::Cold(ticket) = world.log.read(slot, 3) else { panic!("long out of memory") };
        let mut asked = 0;
        while let Some(op) = world.log.poll_op(world.now_us) {
            asked += 1;
            assert!(asked < 20, "the same is asked for again and again");
            let done = world.files.perform(&mut world.log, op);
            world.log.handle_done(done);
        }
        assert!(matches!(world.log.read_records(ticket).map(|_| ()), Err(ReadFault::Corrupt { .. })), "{length}");
        world.log.release(ticket);
    }
}

/// Found by the fuzzer: the header block of the segment in which the checkpoint stands is unreadable, and nothing was committed
/// behind the checkpoint that would prove it had been there. The boot took the segment for one never used, removed it and
/// served a session without its history; the boot after that missed the file.
#[test]
fn regression_an_unreadable_header_where_the_checkpoint_stands_is_damage() {
    let (mut world, _) = World::boot(config(), Files::default());
    fill(&mut world, 3);
    world.log.checkpoint_now();
    world.settle();
    let segment = FileId::Segment(SegmentId { log: LogId(0), number: 0 });
    let checkpoints = world.files.files.keys().filter(|file| matches!(file, FileId::Checkpoint(..))).count();
    assert_eq!((checkpoints, world.files.files.contains_key(&segment)), (1, true));
    let mut files = world.files.clone();
    files.files.get_mut(&segment).expect("it exists")[3] ^= 1;
    assert!(corrupt(files));
    let mut files = world.files.clone();
    files.files.remove(&segment);
    assert!(corrupt(files));
    assert!(!corrupt(world.files));
}

/// A sealed segment that no successor names any more was thought to be left over when its sidecar had rotted, and was removed.
#[test]
fn regression_a_sealed_segment_before_a_hole_outlives_its_sidecar() {
    let (mut world, _) = World::boot(config(), Files::default());
    fill(&mut world, 150);
    world.log.checkpoint_now();
    world.settle();
    let first = |number| SegmentId { log: LogId(0), number };
    let mut files = world.files.clone();
    let sidecar = files.files.get_mut(&FileId::Sidecar(first(0))).expect("the first segment is sealed");
    sidecar.iter_mut().for_each(|byte| *byte ^= 0x55);
    // As retention leaves them after a change of the number of shards: not in the order of their numbers.
    for gone in [FileId::Segment(first(1)), FileId::Sidecar(first(1))] {
        assert!(files.files.remove(&gone).is_some());
    }
    let (mut again, report) = World::boot(config(), files.clone());
    assert!(!report.is_corrupt(), "{report}");
    assert_eq!(again.read_all("a", 0)[0], (0, b"a0:".to_vec()), "{report}");

    // Where its own bytes are damaged too, the boot stops and changes nothing.
    let segment = files.files.get_mut(&FileId::Segment(first(0))).expect("it is there");
    segment[BLOCK_BYTES + 100] ^= 1;
    let mut folder = files.clone();
    assert!(matches!(recover(&mut folder, 1, KEY), Err(RecoverError::Corrupt(_))));
    assert_eq!(folder.files, files.files);
}

/// A crash before the first commit of a life leaves a sealed segment that no successor speaks for. Where its last group and its
/// sidecar had both rotted, what was acknowledged passed for a torn tail.
#[test]
fn regression_a_sealed_segment_has_no_torn_tail() {
    let (mut world, _) = World::boot(config(), Files::default());
    fill(&mut world, 1);
    let (mut world, _) = World::boot(config(), world.files);
    world.settle();
    let first = SegmentId { log: LogId(0), number: 0 };
    let mut files = world.files;
    files.files.get_mut(&FileId::Segment(first)).expect("it is there")[BLOCK_BYTES + 100] ^= 1;
    assert!(corrupt(files.clone()), "its sidecar says where it ends");
    files.files.get_mut(&FileId::Sidecar(first)).expect("boot has made it").iter_mut().for_each(|byte| *byte ^= 0x55);
    assert!(corrupt(files), "its sidecar says by being there that it was sealed");
}

/// The build that made the folder would take a text for damage: from then on it refuses the version instead.
#[test]
fn a_folder_of_the_version_before_becomes_one_of_this() {
    let (mut world, _) = World::boot(LogConfig::small(), Files::default());
    world.append("demo", b"1");
    world.settle();
    let mut files = world.files;
    let now = files.files[&FileId::Manifest].clone();
    let mut before = now.clone();
    before[16] -= 1;
    let crc = crc32c::crc32c(&before[12..]);
    before[8..12].copy_from_slice(&crc.to_le_bytes());
    files.files.insert(FileId::Manifest, before);
    let (mut world, _) = World::boot(LogConfig::small(), files);
    assert_eq!(world.files.files[&FileId::Manifest], now);
    assert_eq!(world.read_all("demo", 0), [(0, b"1".to_vec())]);
}
