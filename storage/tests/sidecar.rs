//! Sidecars and clustered segments: every lookup against a scan, every reader the same before and after.

mod support;

use proptest::prelude::*;
use std::collections::BTreeMap;
use storage::disk::FileId;
use storage::ids::{LogId, PartitionId, SegmentId, SliceId};
use storage::jobs::{Job, JobDone};
use storage::recluster::{CLUSTERED, ReclusterJob, ReclusterLimits, SegmentMap, Source, covers, plan};
use storage::record::*;
use storage::segment::{SegmentHeader, SegmentKind};
use storage::sidecar::{BadSidecar, BlockAt, SealJob, SidecarIndex};
use support::{Folder, KEY, LOG, Wanted, Writer, partition_rows, scan, seal, segment, slice_rows};

/// Every question the index can be asked, against the scan.
fn check_index(folder: &Folder, index: &SidecarIndex, offsets_step: usize) {
    let segment = index.contents.segment;
    let clustered = segment.number & CLUSTERED != 0;
    let records = scan(&folder.files[&FileId::Segment(segment)], segment);
    let mut partitions: BTreeMap<PartitionId, Vec<(u64, u32, u32)>> = BTreeMap::new();
    let mut epochs: BTreeMap<PartitionId, u64> = BTreeMap::new();
    let mut slices: BTreeMap<SliceId, Vec<(u64, u32, u32)>> = BTreeMap::new();
    let mut events = 0;
    for (position, record) in &records {
        for event in record.events() {
            events += 1;
            let Some(key) = event.dedupe_key() else { continue };
            let at = index.dedupe_block(key).expect("no false negatives");
            let row = index.dedupe_row(at, folder.block(at), key).unwrap().unwrap();
            assert_eq!((row.offset, row.body_hash), (event.offset(), event.body_hash()));
        }
        if record.count() == 0 {
            continue;
        }
        if epochs.insert(record.partition(), record.epoch()).is_some_and(|epoch| epoch != record.epoch()) {
            partitions.remove(&record.partition());
        }
        partitions.entry(record.partition()).or_default().push((record.offset(), *position, record.count()));
        slices.entry(record.slice()).or_default().push((record.slice_seq(), *position, record.count()));
    }
    let contents = index.contents;
    assert_eq!((contents.records, contents.events), (records.len() as u64, events));
    assert_eq!(contents.time_max_ms, records.iter().map(|(_, r)| r.time_ms()).max().unwrap_or(0));
    assert_eq!(contents.time_min_ms, records.iter().map(|(_, r)| r.time_ms()).min().unwrap_or(0));
    for (id, rows) in &partitions {
        let end = rows.last().map_or(0, |row| row.0 + u64::from(row.2));
        for offset in (0..end + 2).step_by(offsets_step) {
            let first = rows.partition_point(|row| row.0 + u64::from(row.2) <= offset);
            assert_eq!(partition_rows(folder, index, *id, offset), rows[first..], "{id:?} from {offset}");
        }
    }
    assert_eq!(partition_rows(folder, index, PartitionId(77), 0), []);
    for (slice, rows) in &mut slices {
        rows.sort();
        let range = index.slice_range(*slice).unwrap();
        let last = rows[rows.len() - 1];
        assert_eq!((range.first, range.end, range.position), (rows[0].0, last.0 + u64::from(last.2), rows[0].1));
        for seq in (range.first.saturating_sub(1)..range.end + 2).step_by(offsets_step) {
            let found = slice_rows(folder, index, *slice, seq);
            let begun = rows.partition_point(|row| row.0 <= seq).saturating_sub(1);
            if clustered {
                assert_eq!(found, rows[begun..], "{slice:?} from {seq}");
            } else {
                let start = rows.iter().position(|row| *row == found[0]).expect("a row of the slice");
                assert!(start <= begun && rows[begun].1 - rows[start].1 < 64 << 10, "{slice:?} from {seq}");
            }
        }
    }
    assert_eq!(index.slice_ranges().len(), slices.len());
}

/// All a session's reader and a pattern's reader see: (session, epoch, offset, slice_seq, data) in their orders. A reader
/// of a clustered segment goes by its index, one of an appended segment by the log.
type Seen = (String, u64, u64, u64, Vec<u8>);

fn events(record: RecordView<'_>) -> impl Iterator<Item = Seen> {
    record.events().map(|e| (e.session().to_owned(), e.epoch(), e.offset(), e.slice_seq(), e.data().to_vec()))
}

fn session_reads(
    folder: &Folder,
    map: &SegmentMap,
    indexes: &BTreeMap<SegmentId, SidecarIndex>,
    id: PartitionId,
) -> Vec<Seen> {
    let mut seen = vec![];
    for file in map.files() {
        for (_, position, _) in partition_rows(folder, &indexes[&file], id, 0) {
            seen.extend(events(folder.record(file, position)));
        }
    }
    seen
}

fn pattern_reads(
    folder: &Folder,
    map: &SegmentMap,
    indexes: &BTreeMap<SegmentId, SidecarIndex>,
    slice: SliceId,
) -> Vec<Seen> {
    let mut seen = vec![];
    for file in map.files() {
        if file.number & CLUSTERED != 0 {
            for (_, position, _) in slice_rows(folder, &indexes[&file], slice, 0) {
                seen.extend(events(folder.record(file, position)));
            }
        } else {
            let records = scan(&folder.files[&FileId::Segment(file)], file);
            seen.extend(records.iter().filter(|(_, r)| r.slice() == slice).flat_map(|(_, r)| events(*r)));
        }
    }
    seen
}

fn wanted() -> impl Strategy<Value = Wanted> {
    (0u8..7, 0u8..5, any::<bool>(), 0u8..8, 0u8..40).prop_map(|(session, events, marker, numbered, restart)| Wanted {
        session,
        events,
        marker,
        numbered: numbered == 0,
        restart: restart == 0,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_sidecar_knows_what_a_scan_finds(records in proptest::collection::vec(wanted(), 0..400)) {
        let (mut folder, mut writer) = (Folder::default(), Writer::default());
        folder.files.insert(FileId::Segment(segment(4)), writer.segment(4, &records));
        let index = seal(&mut folder, 4);
        check_index(&folder, &index, 1);
    }

    /// Sessions and patterns read the same before and after; so does a second round over the result.
    #[test]
    fn re_clustering_changes_no_readers_events(
        sources in proptest::collection::vec(proptest::collection::vec(wanted(), 0..120), 3..6),
    ) {
        let (mut folder, mut writer) = (Folder::default(), Writer::default());
        let (mut map, mut indexes) = (SegmentMap::default(), BTreeMap::new());
        for (number, records) in sources.iter().enumerate() {
            let number = number as u32;
            folder.files.insert(FileId::Segment(segment(number)), writer.segment(number, records));
            indexes.insert(segment(number), seal(&mut folder, number));
            prop_assert_eq!(map.insert(segment(number), (number, number)), vec![]);
        }
        let ids: Vec<_> = (0..7).map(|n| KEY.partition("t", &format!("s{n}"))).collect();
        let last = sources.len() as u32 - 1;
        // First all but the oldest and the youngest, then the result with its older neighbour.
        for (target, covers) in [(CLUSTERED, (1, last - 1)), (CLUSTERED + 1, (0, last - 1))] {
            let target = segment(target);
            let before: Vec<_> = ids.iter().map(|id| session_reads(&folder, &map, &indexes, *id)).collect();
            let patterns: Vec<_> = ids.iter().map(|id| pattern_reads(&folder, &map, &indexes, id.slice())).collect();
            let sources: Vec<_> = map.files()
                .filter(|file| *file != segment(last) && (covers.0 == 0 || *file != segment(0)))
                .map(|segment| Source { segment, salt: KEY.segment_salt(segment), end: indexes[&segment].contents.end })
                .collect();
            let job = ReclusterJob { target, salt: KEY.segment_salt(target), covers, sources: sources.clone(), text_record_bytes_max: 1 << 20 };
            folder.published.clear();
            let JobDone::Reclustered { index, sources: replaced } = folder.run(Job::Recluster(job)) else { panic!() };
            prop_assert_eq!(&folder.published, &[FileId::Sidecar(target), FileId::Segment(target)]);
            prop_assert_eq!(&replaced, &sources.iter().map(|source| source.segment).collect::<Vec<_>>());
            prop_assert_eq!(SidecarIndex::parse(target, &folder.files[&FileId::Sidecar(target)]), Ok((*index).clone()));
            check_index(&folder, &index, 1);
            prop_assert_eq!(index.contents.covers, covers);
            let header = SegmentHeader::get(&folder.files[&FileId::Segment(target)]).unwrap();
            prop_assert_eq!(storage::recluster::covers(&header), Some(covers));

            indexes.insert(target, *index);
            prop_assert_eq!(map.insert(target, covers), replaced.clone());
            let files = replaced.iter().flat_map(|s| [FileId::Segment(*s), FileId::Sidecar(*s)]).collect();
            folder.run(Job::Remove { files });
            for number in covers.0..=covers.1 {
                prop_assert_eq!(map.resolve(segment(number)), Some(target));
            }
            prop_assert_eq!(map.resolve(segment(last)), Some(segment(last)));
            prop_assert_eq!(map.resolve(segment(last + 1)), None);
            let after: Vec<_> = ids.iter().map(|id| session_reads(&folder, &map, &indexes, *id)).collect();
            for ((before, after), id) in before.iter().zip(&after).zip(&ids) {
                // An earlier life that lay in a segment of its own is no session's history any more.
                let epoch = writer.sessions.values().zip(writer.sessions.keys())
                    .find(|(_, name)| KEY.partition("t", name) == *id).map_or(0, |(session, _)| session.epoch);
                let alive = |seen: &Vec<Seen>| seen.iter().filter(|e| e.1 == epoch).cloned().collect::<Vec<_>>();
                prop_assert_eq!(alive(before), alive(after));
            }
            let again: Vec<_> = ids.iter().map(|id| pattern_reads(&folder, &map, &indexes, id.slice())).collect();
            prop_assert_eq!(&patterns, &again);
        }
    }
}

/// Enough records for many blocks of every table, and groups of a megabyte in the clustered segment.
#[test]
fn tables_of_many_blocks() {
    let (mut folder, mut writer) = (Folder::default(), Writer::default());
    let records: Vec<Wanted> = (0..9000u32)
        .map(|n| Wanted { session: (n * n % 31) as u8, events: 2, marker: false, numbered: false, restart: false })
        .collect();
    let mut sources = vec![];
    for (number, records) in records.chunks(4500).enumerate() {
        let number = number as u32;
        folder.files.insert(FileId::Segment(segment(number)), writer.segment(number, records));
        let index = seal(&mut folder, number);
        check_index(&folder, &index, 37);
        assert!(index.memory_bytes() < 60_000, "{}", index.memory_bytes());
        sources.push(Source {
            segment: segment(number),
            salt: KEY.segment_salt(segment(number)),
            end: index.contents.end,
        });
    }
    let target = segment(CLUSTERED | 7);
    let job = ReclusterJob {
        target,
        salt: KEY.segment_salt(target),
        covers: (0, 1),
        sources,
        text_record_bytes_max: 1 << 20,
    };
    let JobDone::Reclustered { mut index, .. } = folder.run(Job::Recluster(job)) else { panic!() };
    assert!(index.contents.end > 2 << 20, "{}", index.contents.end);
    check_index(&folder, &index, 101);
    let strangers = (0..20_000u128).filter(|n| index.dedupe_block((n << 64) | (n * n)).is_some()).count();
    assert!(strangers < 400, "{strangers} of 20000");
    index.drop_filter();
    check_index(&folder, &index, 1009);
}

fn small() -> (Folder, SidecarIndex, Vec<Wanted>) {
    let (mut folder, mut writer) = (Folder::default(), Writer::default());
    let records: Vec<Wanted> = (0..40)
        .map(|n| Wanted { session: n % 5, events: n % 3, marker: false, numbered: n % 7 == 0, restart: false })
        .collect();
    folder.files.insert(FileId::Segment(segment(4)), writer.segment(4, &records));
    let index = seal(&mut folder, 4);
    (folder, index, records)
}

/// (at, position, count) of rows.
type Rows = Vec<(u64, u32, u32)>;

/// A whole sidecar and the right answers.
struct Good {
    bytes: Vec<u8>,
    rows: BTreeMap<(PartitionId, u64), Rows>,
    slices: BTreeMap<SliceId, Rows>,
    keys: Vec<(u128, u64)>,
}

fn good() -> Good {
    let (folder, index, _) = small();
    let ids: Vec<_> = (0..5).map(|n| KEY.partition("t", &format!("s{n}"))).collect();
    let questions = ids.iter().flat_map(|id| (0..12).map(|offset| (*id, offset)));
    let records = scan(&folder.files[&FileId::Segment(segment(4))], segment(4));
    let events = records.iter().flat_map(|(_, record)| record.events());
    Good {
        bytes: folder.files[&FileId::Sidecar(segment(4))].clone(),
        rows: questions.map(|(id, offset)| ((id, offset), partition_rows(&folder, &index, id, offset))).collect(),
        slices: ids.iter().map(|id| (id.slice(), slice_rows(&folder, &index, id.slice(), 1))).collect(),
        keys: events.filter_map(|event| Some((event.dedupe_key()?, event.offset()))).collect(),
    }
}

/// Asks everything of a damaged sidecar: each answer is the right one or an error. True if nothing was amiss.
fn never_wrong(good: &Good, bad: &[u8]) -> bool {
    let Good { rows, slices, keys, .. } = good;
    let Ok(index) = SidecarIndex::parse(segment(4), bad) else { return false };
    let mut whole = true;
    let block = |at: BlockAt| bad.get(at.at as usize..at.at as usize + at.len).unwrap_or(&[]);
    for ((id, offset), right) in rows {
        match index.partition_block(*id, *offset).map(|at| index.partition_rows(at, block(at), *id, *offset)) {
            Some(Ok(rows)) => assert!(rows.map(|row| (row.at, row.position, row.count)).eq(right.iter().copied())),
            Some(Err(_)) => whole = false,
            None => panic!("the tables verified, so they name the block"),
        }
    }
    for (slice, right) in slices {
        match index.slice_block(*slice, 1).map(|at| index.slice_rows(at, block(at), *slice, 1)) {
            Some(Ok(rows)) => assert!(rows.map(|row| (row.at, row.position, row.count)).eq(right.iter().copied())),
            Some(Err(_)) => whole = false,
            None => panic!("the tables verified, so they name the block"),
        }
    }
    for (key, offset) in keys {
        let at = index.dedupe_block(*key).expect("no false negatives");
        match index.dedupe_row(at, block(at), *key) {
            Ok(row) => assert_eq!(row.map(|row| row.offset), Some(*offset)),
            Err(_) => whole = false,
        }
    }
    whole
}

#[test]
fn no_flipped_byte_gives_a_wrong_row() {
    let good = good();
    let mut bytes = good.bytes.clone();
    assert!(never_wrong(&good, &bytes));
    for at in 0..bytes.len() {
        let flip = 1 << (at % 8);
        bytes[at] ^= flip;
        assert!(!never_wrong(&good, &bytes), "byte {at} is not covered");
        bytes[at] ^= flip;
    }
}

#[test]
fn no_truncation_gives_a_wrong_row() {
    let good = good();
    for end in 0..good.bytes.len() {
        assert!(!never_wrong(&good, &good.bytes[..end]), "cut at {end}");
    }
}

#[test]
fn another_segments_sidecar_or_version_is_refused() {
    let (folder, ..) = small();
    let mut bytes = folder.files[&FileId::Sidecar(segment(4))].clone();
    assert_eq!(SidecarIndex::parse(segment(5), &bytes), Err(BadSidecar::Corrupt { at: 0 }));
    bytes[12] = 9;
    let crc = crc32c::crc32c(&bytes[12..4096]);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(SidecarIndex::parse(segment(4), &bytes), Err(BadSidecar::Version { found: 9 }));
    assert!(SidecarIndex::parse(segment(4), &vec![0; 10_000]).is_err());
}

/// A damaged source publishes nothing.
#[test]
fn damage_in_a_segment_is_reported_and_not_carried_on() {
    let (good, index, _) = small();
    let (salt, end) = (KEY.segment_salt(segment(4)), index.contents.end);
    for at in (0..end as usize).step_by(61).filter(|at| !(64..4096).contains(at)) {
        let mut folder = good.clone();
        folder.published.clear();
        let bytes = folder.files.get_mut(&FileId::Segment(segment(4))).unwrap();
        // Padding behind the records of a group is not covered by anything, and holds nothing.
        if bytes[at] == 0 {
            continue;
        }
        bytes[at] ^= 1;
        let seal = Job::Seal(SealJob { segment: segment(4), salt, end });
        assert!(
            matches!(folder.run(seal), JobDone::Corrupt { file: FileId::Segment(s), .. } if s == segment(4)),
            "byte {at}"
        );
        let target = segment(CLUSTERED);
        let sources = vec![Source { segment: segment(4), salt, end }];
        let job = ReclusterJob {
            target,
            salt: KEY.segment_salt(target),
            covers: (4, 4),
            sources,
            text_record_bytes_max: 1 << 20,
        };
        assert!(matches!(folder.run(Job::Recluster(job)), JobDone::Corrupt { .. }), "byte {at}");
        assert_eq!(folder.published, []);
    }
}

#[test]
fn the_plan_takes_old_neighbours_only() {
    let (_, index, _) = small();
    let sealed = |number: u32| {
        let mut contents = index.contents;
        (contents.segment, contents.covers, contents.end) = (segment(number), (number, number), 100);
        contents
    };
    let mut all: Vec<_> = [0, 1, 3, 4, 5, 6, 7].map(sealed).to_vec();
    let numbers = |limits, replay_from, all: &[_]| -> Vec<u32> {
        plan(all, LOG, replay_from, limits).iter().map(|contents| contents.segment.number).collect()
    };
    let limits = ReclusterLimits { segments_min: 3, segments_max: 4, bytes_max: 1000, text_record_bytes_max: 0 };
    assert_eq!(numbers(limits, 9, &all), [3, 4, 5, 6], "0 and 1 are too few: 2 is not sealed");
    assert_eq!(numbers(ReclusterLimits { segments_min: 2, ..limits }, 9, &all), [0, 1]);
    assert_eq!(numbers(ReclusterLimits { bytes_max: 300, ..limits }, 9, &all), [3, 4, 5]);
    assert_eq!(numbers(ReclusterLimits { bytes_max: 299, ..limits }, 9, &all), [0, 1], "nothing will ever join them");
    assert_eq!(numbers(ReclusterLimits { bytes_max: 99, ..limits }, 9, &all), [0u32; 0]);
    assert_eq!(numbers(limits, 6, &all), [3, 4, 5], "recovery replays 6");
    assert_eq!(numbers(limits, 5, &all), [0, 1]);
    assert_eq!(numbers(limits, 5, &all[2..]), [0u32; 0], "5 may join 3 and 4");
    all[3].segment.number = CLUSTERED;
    assert_eq!(numbers(limits, 9, &all), [5, 6, 7]);
    assert_eq!(plan(&all, LogId(9), 9, limits), []);
}

/// Whatever the order in which boot meets the files, and whichever of them a crash left.
#[test]
fn a_covering_file_stands_in_for_the_covered() {
    let files = [(0, (0, 0)), (1, (1, 1)), (2, (2, 2)), (CLUSTERED, (0, 1)), (CLUSTERED + 1, (0, 2)), (3, (3, 3))];
    for start in 0..files.len() {
        for step in [1, 5] {
            let (mut map, mut superseded) = (SegmentMap::default(), vec![]);
            for n in 0..files.len() {
                let (number, covers) = files[(start + n * step) % files.len()];
                superseded.extend(map.insert(segment(number), covers));
            }
            superseded.sort();
            assert_eq!(superseded, [0, 1, 2, CLUSTERED].map(segment));
            assert_eq!(map.files().collect::<Vec<_>>(), [CLUSTERED + 1, 3].map(segment));
            assert_eq!(
                (0..5).map(|n| map.resolve(segment(n))).collect::<Vec<_>>(),
                [
                    Some(segment(CLUSTERED + 1)),
                    Some(segment(CLUSTERED + 1)),
                    Some(segment(CLUSTERED + 1)),
                    Some(segment(3)),
                    None
                ]
            );
            assert_eq!(map.resolve(SegmentId { log: LogId(9), number: 0 }), None);
        }
    }
    let mut header = SegmentHeader {
        segment: segment(CLUSTERED),
        kind: SegmentKind::Clustered,
        unsynced: false,
        previous: Some((5, 4)),
        bytes: 0,
        first_group: 1,
        first_log_seq: 0,
        salt: 0,
    };
    assert_eq!(covers(&header), None, "first above last");
    header.previous = Some((4, u64::from(CLUSTERED)));
    assert_eq!(covers(&header), None, "covers a clustered number");
    header.previous = Some((4, 4));
    assert_eq!(covers(&header), Some((4, 4)));
    header.segment.number = 9;
    assert_eq!(covers(&header), None, "a name of an appended segment");
}
