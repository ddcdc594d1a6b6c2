//! The shelf of sealed segments: jobs run to the end in every order of events, and what is promised to readers stays true.

mod support;

use proptest::prelude::*;
use std::collections::BTreeMap;
use storage::catalog::Run;
use storage::disk::FileId;
use storage::ids::{LogId, SegmentId};
use storage::jobs::Job;
use storage::recluster::{CLUSTERED, ReclusterLimits, SegmentMap, covers, is_clustered};
use storage::record::RecordView;
use storage::retention::RetentionLimits;
use storage::segment::SegmentHeader;
use storage::shelf::{Shelf, ShelfChange, ShelfLimits};
use storage::sidecar::SidecarIndex;
use support::{Folder, KEY, LOG, Wanted, Writer, segment};

const KEEP: RetentionLimits = RetentionLimits { age_ms_max: u64::MAX, bytes_max: u64::MAX, segments_max: 1000 };
const PAIRS: ReclusterLimits =
    ReclusterLimits { segments_min: 2, segments_max: 3, bytes_max: 1 << 20, text_record_bytes_max: 1 << 20 };
const LIMITS: ShelfLimits =
    ShelfLimits { retention: KEEP, recluster: Some(PAIRS), dedupe_filter_bytes_max: 1 << 20, expire_every_ms: 1000 };

fn shelf(limits: ShelfLimits) -> Shelf {
    Shelf::new(KEY, LOG, limits, vec![], vec![], CLUSTERED)
}

/// A shelf over a folder, with what was ever appended: message keys by the original segment.
struct World {
    shelf: Shelf,
    folder: Folder,
    writer: Writer,
    next: u32,
    keys: BTreeMap<u32, Vec<(u128, u64)>>,
    changes: Vec<ShelfChange>,
}

impl World {
    fn new(limits: ShelfLimits) -> World {
        let (folder, writer, keys) = (Folder::default(), Writer::default(), BTreeMap::new());
        World { shelf: shelf(limits), folder, writer, next: 0, keys, changes: vec![] }
    }

    fn fill(&mut self, records: u8) {
        let wanted = |n| Wanted { session: n % 3, events: 2, marker: false, numbered: false, restart: false };
        let wanted: Vec<Wanted> = (0..records).map(wanted).collect();
        let bytes = self.writer.segment(self.next, &wanted);
        self.keys.insert(self.next, keys(&bytes));
        self.shelf.filled(segment(self.next), bytes.len() as u64);
        self.folder.files.insert(FileId::Segment(segment(self.next)), bytes);
        self.next += 1;
    }

    /// Runs up to `limit` jobs.
    fn work(&mut self, now_ms: u64, replay_from: u32, limit: usize) -> usize {
        for done in 0..limit {
            let Some(job) = self.shelf.poll_job(now_ms, 0, replay_from) else { return done };
            assert!(self.shelf.poll_job(now_ms, 0, replay_from).is_none(), "one at a time");
            let done = self.folder.run(job);
            match self.shelf.job_done(done) {
                ShelfChange::Nothing => {}
                change => self.changes.push(change),
            }
        }
        limit
    }

    /// What recovery does with the files that are there, by the rules of the format.
    fn boot(&mut self) {
        let (mut map, mut next_clustered, mut waiting) = (SegmentMap::default(), CLUSTERED, vec![]);
        for file in self.folder.files.keys().copied().collect::<Vec<_>>() {
            let FileId::Segment(segment) = file else { continue };
            let header = SegmentHeader::get(&self.folder.files[&file]).unwrap();
            for covered in map.insert(segment, covers(&header).unwrap()) {
                self.folder.files.remove(&FileId::Segment(covered));
                self.folder.files.remove(&FileId::Sidecar(covered));
            }
        }
        let mut sealed = vec![];
        for file in map.files() {
            match self.folder.files.get(&FileId::Sidecar(file)) {
                Some(sidecar) => sealed.push(SidecarIndex::parse(file, sidecar).unwrap()),
                None => waiting.push(file),
            }
            next_clustered = next_clustered.max(if is_clustered(file) { file.number + 1 } else { 0 });
        }
        let segments: Vec<SegmentId> = map.files().collect();
        self.folder
            .files
            .retain(|file, _| matches!(file, FileId::Segment(s) | FileId::Sidecar(s) if segments.contains(s)));
        self.shelf = Shelf::new(KEY, LOG, LIMITS, vec![], sealed, next_clustered);
        for file in waiting {
            assert!(!is_clustered(file), "a clustered segment has its sidecar before its name");
            self.shelf.filled(file, self.folder.files[&FileId::Segment(file)].len() as u64);
        }
    }

    /// Every key of a retained sealed segment is found through a run, none of a gone one is; files are those of the shelf.
    fn check(&mut self) {
        for (number, keys) in &self.keys {
            let runs = [Run { segment: segment(*number), first: 0 }];
            let sealed = self.shelf.find(segment(*number)).is_some();
            for (key, offset) in keys {
                let found = self.shelf.dedupe_blocks(&runs, *key).find_map(|(_, index, at)| {
                    index.dedupe_row(at, self.folder.block(at), *key).unwrap().map(|row| row.offset)
                });
                assert_eq!(found, sealed.then_some(*offset), "segment {number}");
            }
        }
        if self.work(0, 0, 10) == 10 {
            return;
        }
        let sealed: Vec<SegmentId> = self.shelf.segments().map(|index| index.contents.segment).collect();
        let sidecars = self.folder.files.keys().filter_map(|file| match file {
            FileId::Sidecar(segment) => Some(*segment),
            _ => None,
        });
        assert!(sidecars.eq({
            let mut sorted = sealed.clone();
            sorted.sort();
            sorted
        }));
        assert!(sealed.iter().all(|file| self.folder.files.contains_key(&FileId::Segment(*file))));
    }
}

/// Dedupe keys of a segment made by hand.
fn keys(bytes: &[u8]) -> Vec<(u128, u64)> {
    let mut found = vec![];
    let mut at = 4096;
    while at + 64 < bytes.len() {
        let records = u32::from_le_bytes(bytes[at + 12..at + 16].try_into().unwrap()) as usize;
        let mut record_at = at + 64;
        while record_at < at + 64 + records {
            let record = RecordView::checked(&bytes[record_at..]).unwrap();
            found.extend(record.events().filter_map(|event| Some((event.dedupe_key()?, event.offset()))));
            record_at += record.bytes().len();
        }
        at += u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize;
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_key_is_found_while_its_segment_is_retained(
        steps in proptest::collection::vec((0u8..4, 0u8..30), 1..40),
        segments_max in 2usize..12,
        filter_bytes in prop_oneof![Just(0usize), Just(500), Just(1 << 20)],
    ) {
        let retention = RetentionLimits { segments_max, ..KEEP };
        let mut world = World::new(ShelfLimits { retention, dedupe_filter_bytes_max: filter_bytes, ..LIMITS });
        for (at, (step, n)) in steps.into_iter().enumerate() {
            match step {
                0 | 1 => world.fill(n),
                2 => { world.work(at as u64, world.next.saturating_sub(2), n as usize % 4); }
                _ => world.check(),
            }
        }
        world.work(0, world.next, 100);
        world.check();
        prop_assert!(world.shelf.waiting() == 0 && world.shelf.segments().count() <= segments_max);
        prop_assert!(world.shelf.bytes().2 <= filter_bytes.max(world.next as usize * 100));
        let sealed = world.changes.iter().filter(|change| matches!(change, ShelfChange::Sealed(_))).count();
        prop_assert_eq!(sealed, world.next as usize);
    }
}

#[test]
fn old_neighbours_are_rewritten_and_their_files_leave() {
    let mut world = World::new(LIMITS);
    (0..4).for_each(|_| world.fill(20));
    world.work(0, 3, 100);
    let clustered = segment(CLUSTERED);
    let sources = vec![segment(0), segment(1), segment(2)];
    assert_eq!(world.changes.last(), Some(&ShelfChange::Clustered { segment: clustered, sources }));
    let files: Vec<FileId> = world.folder.files.keys().copied().collect();
    let both = |segment| [FileId::Segment(segment), FileId::Sidecar(segment)];
    let mut expected: Vec<FileId> = [segment(3), clustered].into_iter().flat_map(both).collect();
    expected.sort();
    assert_eq!(files, expected);
    assert_eq!(world.shelf.find(segment(1)).map(|index| index.contents.segment), Some(clustered));
    // Three runs, one file: asked once.
    let runs: Vec<Run> = (0..3).map(|number| Run { segment: segment(number), first: number.into() }).collect();
    let (key, _) = world.keys[&1][0];
    assert_eq!(world.shelf.dedupe_blocks(&runs, key).count(), 1);
}

/// The process dies after every possible step, boots by the rules of the format, and goes on: no key is ever lost, and in
/// the end the files are the same.
#[test]
fn a_crash_after_any_step_loses_nothing() {
    let mut ends = vec![];
    for crash in 0.. {
        let mut world = World::new(LIMITS);
        (0..5).for_each(|_| world.fill(20));
        let mut steps = crash;
        let mut crashed = false;
        while let Some(job) = world.shelf.poll_job(0, 0, 4) {
            let Some(done) = world.folder.run_until(job, &mut steps) else {
                crashed = true;
                break;
            };
            world.shelf.job_done(done);
        }
        world.boot();
        world.work(0, 4, 100);
        world.check();
        let found = world.keys.keys().filter(|number| world.shelf.find(segment(**number)).is_some()).count();
        assert_eq!(found, 5, "crash after step {crash}");
        ends.push(world.folder.files.keys().map(|file| file.file_name()).collect::<Vec<_>>());
        if !crashed {
            break;
        }
    }
    assert!(ends.len() > 20, "{} steps", ends.len());
    let originals =
        |end: &Vec<String>| end.iter().filter(|name| !name.contains("-8000000")).cloned().collect::<Vec<_>>();
    assert!(ends.iter().all(|end| end.len() == ends[0].len() && originals(end) == originals(&ends[0])), "{ends:?}");
}

#[test]
fn recovery_keeps_what_it_would_replay() {
    let limits = ShelfLimits { retention: RetentionLimits { segments_max: 0, ..KEEP }, ..LIMITS };
    let mut world = World::new(limits);
    (0..4).for_each(|_| world.fill(9));
    world.work(0, 2, 100);
    assert_eq!(
        world.shelf.segments().map(|index| index.contents.segment).collect::<Vec<_>>(),
        [segment(2), segment(3)]
    );
    assert!(world.shelf.find(segment(1)).is_none());
}

#[test]
fn age_is_looked_at_without_any_other_event() {
    let limits = ShelfLimits { retention: RetentionLimits { age_ms_max: 500, ..KEEP }, ..LIMITS };
    let mut world = World::new(limits);
    world.fill(9);
    world.work(1000, 9, 100);
    assert_eq!(world.shelf.segments().count(), 1);
    assert!(world.shelf.next_look_ms() <= 2000);
    world.work(world.shelf.next_look_ms(), 9, 100);
    assert_eq!((world.shelf.segments().count(), world.folder.files.len()), (0, 0));
}

#[test]
fn damage_is_told_once_and_left_alone() {
    let mut world = World::new(LIMITS);
    (0..3).for_each(|_| world.fill(20));
    world.folder.files.get_mut(&FileId::Segment(segment(1))).unwrap()[4200] ^= 1;
    world.work(0, 9, 100);
    let damaged = ShelfChange::Damaged { segment: segment(1), at: 4096 };
    // Nothing will ever join what lies before it.
    let alone = ShelfChange::Clustered { segment: segment(CLUSTERED), sources: vec![segment(0)] };
    assert_eq!(world.changes, [ShelfChange::Sealed(segment(0)), damaged, ShelfChange::Sealed(segment(2)), alone]);
    assert!(world.folder.files.contains_key(&FileId::Segment(segment(1))));
    assert_eq!(world.work(5000, 9, 100), 0, "nothing to rewrite beside a hole, and nothing tried twice");
}

#[test]
fn a_failed_job_is_asked_for_again() {
    let mut world = World::new(LIMITS);
    world.fill(9);
    assert!(matches!(world.shelf.poll_job(0, 0, 0), Some(Job::Seal(_))));
    world.shelf.job_failed();
    assert_eq!(world.work(0, 0, 100), 1);
    assert_eq!(world.changes, [ShelfChange::Sealed(segment(0))]);
}

#[test]
fn old_logs_are_expired_by_their_manager_only_and_never_rewritten() {
    let mut world = World::new(ShelfLimits { recluster: None, ..LIMITS });
    (0..3).for_each(|_| world.fill(9));
    world.work(0, 0, 100);
    let sealed: Vec<_> = world.shelf.segments().cloned().collect();
    let limits = ShelfLimits { retention: RetentionLimits { segments_max: 0, ..KEEP }, ..LIMITS };
    let mut other = Shelf::new(KEY, LogId(9), limits, vec![], sealed.clone(), CLUSTERED);
    assert!(other.poll_job(0, 0, 0).is_none(), "not its business");
    assert!(other.find(segment(1)).is_some_and(|index| !is_clustered(index.contents.segment)));
    let mut manager = Shelf::new(KEY, LogId(8), limits, vec![LOG], sealed, CLUSTERED);
    assert!(matches!(manager.poll_job(0, 0, 0), Some(Job::Remove { files }) if files.len() == 6));
    assert!(other.missing(segment(1)) && !other.missing(segment(1)) && other.find(segment(1)).is_none());
}
