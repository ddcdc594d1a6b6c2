//! Damage to a small log: every byte cut and flipped, every way two groups in flight can tear. The verdict is Clean,
//! TornTail or Corrupt; never a panic, never an event that was not appended, never one fewer than is known to be durable.

mod world;

use storage::disk::{DiskOp, FileId};
use storage::group::{BLOCK_BYTES, GroupHeader};
use storage::ids::{LogId, SegmentId};
use storage::log::LogConfig;
use storage::recovery::{RecoverError, dump, recover};
use storage::segment::{SegmentExpect, Verdict, scan_segment};
use world::{Files, KEY, World};

const SEGMENT: SegmentId = SegmentId { log: LogId(0), number: 0 };

/// Six groups of a few records each, every one durable before the next was closed.
fn six_groups() -> (Files, Vec<Vec<u8>>, u64) {
    let (mut world, _) = World::boot(LogConfig::small(), Files::default());
    for group in 0..6 {
        for session in ["a", "b"] {
            world.append_all(session, &[format!("{session}{group}").as_bytes(), b"{\"second\":true}"]);
        }
        world.settle();
    }
    let mut records = vec![];
    let report = dump(&world.files, |_, _, record| records.push(record.bytes().to_vec())).unwrap();
    let end = report.findings.iter().find(|finding| finding.file == FileId::Segment(SEGMENT)).unwrap().end;
    assert_eq!((records.len(), end), (12, 7 * BLOCK_BYTES as u64));
    (world.files, records, end)
}

/// Whether to damage this byte: all that are in use, and of the long runs of zeros one in 61.
fn interesting(bytes: &[u8], at: usize) -> bool {
    at.is_multiple_of(61) || bytes[at.saturating_sub(8)..(at + 8).min(bytes.len())].iter().any(|byte| *byte != 0)
}

/// Verdict on the segment alone, and the records it shows.
fn scan(bytes: &[u8]) -> (Verdict, Vec<Vec<u8>>) {
    let salt = KEY.segment_salt(SEGMENT);
    let expect = SegmentExpect { segment: SEGMENT, salt, first: Some((1, 0)), fixed_end: None, durable_end: 0 };
    let mut records = vec![];
    let scan = scan_segment(bytes, expect, |_, record| records.push(record.bytes().to_vec()));
    (scan.verdict, records)
}

#[test]
fn every_flipped_bit_of_a_segment_gets_the_right_verdict() {
    let (files, records, end) = six_groups();
    let mut bytes = files.files[&FileId::Segment(SEGMENT)].clone();
    assert_eq!(scan(&bytes), (Verdict::Clean, records.clone()));
    let (pristine, last_group) = (bytes.clone(), end as usize - BLOCK_BYTES);
    for at in (0..end as usize + 2 * BLOCK_BYTES).filter(|at| interesting(&pristine, *at)) {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            let (verdict, shown) = scan(&bytes);
            bytes[at] ^= 1 << bit;
            assert!(records.starts_with(&shown), "byte {at} bit {bit}: a wrong event");
            match verdict {
                // Only padding, and the zeros behind the end, may change unnoticed: then nothing is missing either.
                Verdict::Clean => assert_eq!(shown.len(), records.len(), "byte {at} bit {bit}: lost unnoticed"),
                // Five groups are known to be durable from the header of the sixth.
                Verdict::TornTail { at: cut } => {
                    assert!(at >= last_group && cut as usize >= last_group, "byte {at} bit {bit}: {verdict}");
                    assert!(shown.len() >= 10);
                }
                Verdict::Corrupt { .. } => assert!(at < last_group, "byte {at} bit {bit}: {verdict}"),
            }
        }
    }
}

#[test]
fn every_truncation_of_a_segment_is_corrupt_and_shows_no_wrong_event() {
    let (files, records, end) = six_groups();
    let bytes = &files.files[&FileId::Segment(SEGMENT)];
    for len in (0..end as usize + 1000).chain(bytes.len() - 9..bytes.len()) {
        let (verdict, shown) = scan(&bytes[..len]);
        assert!(records.starts_with(&shown), "{len} bytes: a wrong event");
        // A prepared file has its full length from before its first commit: a shorter one is damage, never a torn write.
        let gone = len < 64 && matches!(verdict, Verdict::Clean | Verdict::TornTail { at: 0 });
        assert!(
            gone || matches!(verdict, Verdict::Corrupt { .. } | Verdict::TornTail { at: 0 }),
            "{len} bytes: {verdict}"
        );
    }
}

#[test]
fn a_boot_over_any_damaged_byte_of_any_file_serves_what_was_appended_or_stops() {
    let (files, records, _) = six_groups();
    let mut stopped = 0;
    for (file, bytes) in &files.files {
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 65).min(bytes.len());
        for at in (0..used).filter(|at| interesting(bytes, *at)) {
            let mut damaged = files.clone();
            damaged.files.get_mut(file).unwrap()[at] ^= 1 << (at % 8);
            match recover(&mut damaged, 1, KEY) {
                Ok(_) => {
                    let mut shown = vec![];
                    dump(&damaged, |_, _, record| shown.push(record.bytes().to_vec())).unwrap();
                    assert!(records.starts_with(&shown) && shown.len() >= 10, "{} byte {at}", file.file_name());
                }
                Err(RecoverError::Corrupt(report)) => {
                    stopped += 1;
                    assert!(report.is_corrupt() && !report.to_string().is_empty());
                    assert_eq!(damaged.files.len(), files.files.len(), "a boot that stops changes nothing");
                }
                Err(RecoverError::Manifest(_)) => assert_eq!(*file, FileId::Manifest),
                Err(other) => panic!("{}: {other}", file.file_name()),
            }
        }
    }
    assert!(stopped > 500, "{stopped}: nothing was damaged");
}

/// A commit in flight: where it goes, and its bytes.
type Write = (usize, Vec<u8>);

/// Two groups committed, two in flight: the folder before them, and their writes.
fn two_in_flight() -> (Files, Write, Write) {
    let (mut world, _) = World::boot(LogConfig::small(), Files::default());
    for turn in 0..2 {
        world.append("a", format!("durable {turn}").as_bytes());
        world.settle();
    }
    let mut writes = vec![];
    for turn in 0..2 {
        for _ in 0..5 {
            world.append("a", &vec![b'k' + turn; 900]);
        }
        let op = world.log.poll_op(world.now_us);
        let Some(DiskOp::Commit { at, start, len, .. }) = op else { panic!("{op:?}") };
        writes.push((at as usize, world.log.arena(start, len).to_vec()));
    }
    let second = writes.pop().unwrap();
    (world.files, writes.pop().unwrap(), second)
}

/// Writes the sectors that `lost` does not name.
fn write(files: &mut Files, (at, bytes): &Write, lost: impl Fn(usize) -> bool) {
    let file = files.files.get_mut(&FileId::Segment(SEGMENT)).unwrap();
    for (sector, chunk) in bytes.chunks(512).enumerate() {
        if !lost(sector) {
            file[at + sector * 512..][..chunk.len()].copy_from_slice(chunk);
        }
    }
}

#[test]
fn two_groups_in_flight_may_tear_in_any_way_and_nothing_cut_comes_back() {
    let (before, first, second) = two_in_flight();
    let sectors = first.1.len() / 512;
    assert_eq!(GroupHeader::get(&second.1).unwrap().durable_through, 2, "both were in flight at once");
    // Every single lost sector, every cut from either side, everything lost, nothing lost; for both groups.
    let mut masks: Vec<u64> = (0..sectors).map(|sector| 1 << sector).collect();
    masks.extend((0..=sectors).map(|cut| (1 << cut) - 1));
    masks.extend((0..sectors).map(|cut| !((1u64 << cut) - 1)));
    let whole = |mask: u64, bytes: &[u8]| {
        bytes
            .chunks(512)
            .enumerate()
            .all(|(sector, chunk)| mask >> sector & 1 == 0 || chunk.iter().all(|byte| *byte == 0))
    };
    for (case, (a, b)) in masks.iter().flat_map(|a| [(*a, 0), (*a, *a), (0, *a)]).enumerate() {
        let mut files = before.clone();
        write(&mut files, &first, |sector| a >> sector & 1 == 1);
        write(&mut files, &second, |sector| b >> sector & 1 == 1);
        let survive = match (whole(a, &first.1), whole(b, &second.1)) {
            (false, _) => 2,
            (true, false) => 7,
            (true, true) => 12,
        };
        let (mut world, report) = World::boot(LogConfig::small(), files);
        assert!(!report.is_corrupt(), "case {case}: {report}");
        let kept = world.read_all("a", 0);
        assert_eq!(kept.len(), survive, "case {case}");
        // The same offsets again, with other data; then crash again, twice.
        for turn in 0..3 {
            world.append("a", format!("new {turn}").as_bytes());
        }
        world.settle();
        for _ in 0..2 {
            let (again, report) = World::boot(LogConfig::small(), world.files.clone());
            world = again;
            assert!(!report.is_corrupt(), "case {case}: {report}");
            let read = world.read_all("a", 0);
            assert_eq!(read.len(), survive + 3, "case {case}");
            assert_eq!(read[..survive], kept, "case {case}");
            assert!(
                read[survive..].iter().all(|(_, data)| data.starts_with(b"new")),
                "case {case}: a cut event came back"
            );
        }
    }
}

#[test]
fn a_crash_between_recovery_and_the_next_commit_changes_nothing() {
    let (before, first, second) = two_in_flight();
    let mut files = before.clone();
    write(&mut files, &first, |sector| sector == 3);
    write(&mut files, &second, |_| false);
    for _ in 0..4 {
        // Boot, settle (a new segment is prepared), crash before anything is appended.
        let (mut world, report) = World::boot(LogConfig::small(), files);
        assert!(!report.is_corrupt(), "{report}");
        assert_eq!(world.read_all("a", 0).len(), 2);
        files = world.files;
    }
}

#[test]
fn a_group_that_was_durable_is_corruption_even_at_the_end_of_its_segment() {
    let (mut world, _) = World::boot(LogConfig::small(), Files::default());
    for turn in 0..60u64 {
        world.append("a", &vec![b'x'; 200 + turn as usize]);
        world.settle();
    }
    // Segment 1 exists, so its header fixes where segment 0 ends, and segment 0 has a sidecar that says so too.
    let mut files = world.files.clone();
    files.files.remove(&FileId::Sidecar(SEGMENT));
    files.files.retain(|file, _| !matches!(file, FileId::Checkpoint(..)));
    let bytes = files.files.get_mut(&FileId::Segment(SEGMENT)).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[end] ^= 1;
    let Err(RecoverError::Corrupt(report)) = recover(&mut files, 1, KEY) else { panic!("served a damaged log") };
    assert!(report.to_string().contains("seg-00000000-00000000.log"), "{report}");
}
