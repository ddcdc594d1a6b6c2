//! Checkpoints: merged like a map, read by the page, dealt out by slice, and never wrong where bytes are.

use proptest::prelude::*;
use std::collections::BTreeMap;
use storage::catalog::*;
use storage::checkpoint::Entry;
use storage::checkpoint::*;
use storage::disk::FileId;
use storage::ids::{HashKey, LogId, PartitionId, SegmentId};
use storage::jobs::{CHUNK_BYTES, Job, JobDone, JobRun, Step};

const KEY: HashKey = HashKey(1, 2);
const LOG: LogId = LogId(3);

fn id(session: &str) -> PartitionId {
    KEY.partition("t", session)
}

/// A catalog without bound; sessions changed in it make the draft.
fn draft(catalog: &mut Catalog, log_seq: &mut u64, sessions: &[(String, u32, usize)]) -> Draft {
    for (session, count, markers) in sessions {
        let slot = match catalog.slot_of(id(session)) {
            Some(slot) => slot,
            None => catalog.create(id(session), "t", session, 7).unwrap(),
        };
        let change = Change { segment: SegmentId { log: LOG, number: 1 }, log_seq: *log_seq, count: *count };
        let names: Vec<String> = (0..*markers).map(|n| format!("{n:0>200}")).collect();
        catalog.append(slot, change, names.iter().map(|name| (name.as_str(), 1)), []);
        *log_seq += 1;
    }
    let position = LogPosition { segment: 1, at: 4096, group: 2, log_seq: *log_seq };
    catalog.collect_begin(position);
    while !catalog.collect(100) {}
    catalog.collect_end(*log_seq, false)
}

fn tails(index: &CheckpointIndex, file: &[u8]) -> BTreeMap<PartitionId, u64> {
    verify_pages(index, file).unwrap();
    entries(index, file).map(|entry| entry.unwrap()).map(|entry| (entry.id, tail(entry))).collect()
}

/// `tail` is at a fixed place of an entry.
fn tail(entry: Entry<'_>) -> u64 {
    u64::from_le_bytes(entry.bytes[28..36].try_into().unwrap())
}

fn lookup(index: &CheckpointIndex, file: &[u8], id: PartitionId) -> Result<Option<u64>, BadCheckpoint> {
    let Some(at) = index.page_of(id) else { return Ok(None) };
    let page = file.get(at.at as usize..at.at as usize + at.len).ok_or(BadCheckpoint::Corrupt { at: at.at })?;
    Ok(find_in_page(page, at.at, id)?.map(tail))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Round after round, the file holds what a map would, and every partition is found by one page.
    #[test]
    fn a_checkpoint_is_a_map(
        rounds in proptest::collection::vec(
            proptest::collection::vec((0u32..60, 1u32..5, prop_oneof![9 => 0usize..2, 1 => 20usize..64]), 0..40),
            1..5,
        ),
    ) {
        let mut catalog = Catalog::new(LOG, 1 << 20, None);
        let (mut log_seq, mut file, mut model) = (0, vec![], BTreeMap::new());
        for (number, round) in rounds.iter().enumerate() {
            let sessions: Vec<_> = round.iter().map(|(s, count, markers)| (format!("s{s}"), *count, *markers)).collect();
            sessions.iter().for_each(|(s, count, _)| *model.entry(id(s)).or_insert(0) += u64::from(*count));
            let draft = draft(&mut catalog, &mut log_seq, &sessions);
            let previous = catalog.checkpoint().map(Previous::from);
            let job = CheckpointJob { log: LOG, number: number as u32, draft, previous };
            let (new, index) = merge(job, &file).unwrap();
            prop_assert_eq!(CheckpointIndex::parse(LOG, number as u32, &new), Ok(index.clone()));
            prop_assert_eq!(index.entries, model.len() as u64);
            prop_assert_eq!(&tails(&index, &new), &model);
            for n in 0..70 {
                let id = id(&format!("s{n}"));
                prop_assert_eq!(lookup(&index, &new, id), Ok(model.get(&id).copied()));
            }
            catalog.checkpoint_installed(index);
            file = new;
        }
    }
}

/// Thousands of partitions: many chunks, pages that lie across their borders, entries of the largest size.
#[test]
fn a_merge_of_many_chunks_streams() {
    let mut catalog = Catalog::new(LOG, 1 << 20, None);
    let mut log_seq = 0;
    let sessions = |from: u32, to: u32, count: u32| -> Vec<(String, u32, usize)> {
        (from..to).map(|n| (format!("session-{n}"), count, if n % 97 == 0 { 64 } else { 1 })).collect()
    };
    let first = draft(&mut catalog, &mut log_seq, &sessions(0, 9000, 1));
    let (old, index) = merge(CheckpointJob { log: LOG, number: 1, draft: first, previous: None }, &[]).unwrap();
    assert!(old.len() > 3 * CHUNK_BYTES, "{}", old.len());
    let previous = Some(Previous::from(&index));
    catalog.checkpoint_installed(index);
    let second = draft(&mut catalog, &mut log_seq, &sessions(8000, 10000, 4));

    let mut run =
        JobRun::new(Job::Checkpoint(Box::new(CheckpointJob { log: LOG, number: 2, draft: second, previous })));
    let (mut file, mut input, mut published) = (vec![], vec![], false);
    let index = loop {
        match run.step(&input) {
            Step::Read { file, at, len } => {
                assert_eq!(file, FileId::Checkpoint(LOG, 1));
                assert!(at % 4096 == 0 && len % 4096 == 0 && len <= CHUNK_BYTES);
                input = old[at as usize..at as usize + len].to_vec();
            }
            Step::Append { file: to, bytes } => {
                assert!(to == FileId::Checkpoint(LOG, 2) && !published);
                assert!(bytes.len() <= CHUNK_BYTES + PAGE_BYTES_MAX || bytes.len() < 4 * CHUNK_BYTES);
                file.extend_from_slice(bytes);
            }
            Step::Publish { file } => published = file == FileId::Checkpoint(LOG, 2),
            Step::Done(JobDone::Checkpointed { index }) => break index,
            other => panic!("{other:?}"),
        }
    };
    assert!(published);
    let found = tails(&index, &file);
    assert_eq!(found.len(), 10_000);
    for n in 0..10_000 {
        let id = id(&format!("session-{n}"));
        let expected = if n < 8000 {
            1
        } else if n < 9000 {
            5
        } else {
            4
        };
        assert_eq!((found[&id], lookup(&index, &file, id)), (expected, Ok(Some(expected))), "{n}");
    }
}

fn small() -> (Vec<u8>, BTreeMap<PartitionId, u64>) {
    let mut catalog = Catalog::new(LOG, 100, None);
    let sessions: Vec<_> = (0..40).map(|n| (format!("s{n}"), n + 1, usize::from(n == 7) * 30)).collect();
    let draft = draft(&mut catalog, &mut 0, &sessions);
    let (file, index) = merge(CheckpointJob { log: LOG, number: 1, draft, previous: None }, &[]).unwrap();
    let model = tails(&index, &file);
    (file, model)
}

/// Whatever byte is wrong: the tables are refused, or the page, or the answer is the right one.
fn never_wrong(file: &[u8], model: &BTreeMap<PartitionId, u64>) -> bool {
    let Ok(index) = CheckpointIndex::parse(LOG, 1, file) else { return false };
    let mut whole = verify_pages(&index, file).is_ok();
    for (id, tail) in model {
        match lookup(&index, file, *id) {
            Ok(found) => assert_eq!(found, Some(*tail)),
            Err(_) => whole = false,
        }
    }
    for entry in entries(&index, file).map_while(Result::ok) {
        assert_eq!(model.get(&entry.id), Some(&tail(entry)));
    }
    let previous = Some(Previous::from(&index));
    let job =
        CheckpointJob { log: LOG, number: 2, draft: draft(&mut Catalog::new(LOG, 9, None), &mut 0, &[]), previous };
    match merge(job, file) {
        Ok((copy, index)) => assert_eq!(&tails(&index, &copy), model),
        Err(_) => whole = false,
    }
    whole
}

#[test]
fn no_flipped_byte_gives_a_wrong_partition() {
    let (mut file, model) = small();
    assert!(never_wrong(&file, &model));
    for at in 0..file.len() {
        let flip = 1 << (at % 8);
        file[at] ^= flip;
        assert!(!never_wrong(&file, &model), "byte {at} is not covered");
        file[at] ^= flip;
    }
}

#[test]
fn no_truncation_gives_a_wrong_partition() {
    let (file, model) = small();
    for end in 0..file.len() {
        assert!(!never_wrong(&file[..end], &model), "cut at {end}");
    }
}

#[test]
fn another_checkpoint_or_version_is_not_taken_for_this_one() {
    let (mut file, _) = small();
    assert_eq!(CheckpointIndex::parse(LOG, 2, &file), Err(BadCheckpoint::Corrupt { at: 0 }));
    assert_eq!(CheckpointIndex::parse(LogId(4), 1, &file), Err(BadCheckpoint::Corrupt { at: 0 }));
    file[8] = 9;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&file[..12]), &file[16..4096]);
    file[12..16].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(CheckpointIndex::parse(LOG, 1, &file), Err(BadCheckpoint::Version { found: 9 }));
}

#[test]
fn garbage_is_never_a_checkpoint() {
    for len in [0, 1, 4095, 4096, 8192, 20_000] {
        for byte in [0, 0x55, 0xff] {
            assert!(CheckpointIndex::parse(LOG, 1, &vec![byte; len]).is_err());
            assert!(find_in_page(&vec![byte; len], 4096, id("a")).is_err());
        }
    }
}

/// From three shards to two and back to one: every partition arrives once, at the shard that owns its slice.
#[test]
fn partitions_are_dealt_out_by_slice() {
    let mut all = BTreeMap::new();
    let sources: Vec<Made> = (0..3u32)
        .map(|shard| {
            let log = LogId(shard);
            let mut catalog = Catalog::new(log, 1 << 20, None);
            let mut sessions: Vec<_> = (0..3000).map(|n| (format!("s{n}"), 1 + n % 7, 0)).collect();
            sessions.retain(|(session, ..)| u32::from(id(session).slice().0) % 3 == shard);
            all.extend(sessions.iter().map(|(s, count, _)| (id(s), u64::from(*count))));
            let draft = draft(&mut catalog, &mut 0, &sessions);
            merge(CheckpointJob { log, number: 1, draft, previous: None }, &[]).unwrap()
        })
        .collect();
    assert_eq!(all.len(), 3000);
    let views: Vec<_> = sources.iter().map(|(file, index)| (index, &file[..])).collect();
    let targets = [(LogId(3), 0), (LogId(4), 0)];
    let two = reshape(&views, &targets, |slice| usize::from(slice.0 % 2)).unwrap();
    for (shard, (file, index)) in two.iter().enumerate() {
        assert_eq!(CheckpointIndex::parse(targets[shard].0, 0, file).as_ref(), Ok(index));
        assert!(index.clean_stop && index.position == LogPosition::default());
        let mine = all.iter().filter(|(id, _)| usize::from(id.slice().0 % 2) == shard);
        assert_eq!(tails(index, file), mine.map(|(id, tail)| (*id, *tail)).collect());
    }
    let views: Vec<_> = two.iter().map(|(file, index)| (index, &file[..])).collect();
    let one = reshape(&views, &[(LogId(5), 0)], |_| 0).unwrap();
    let (file, index) = &one[0];
    assert_eq!(tails(index, file), all);
    for slice in 0..1024u16 {
        let of_slice = all.iter().filter(|(id, _)| id.slice().0 == slice);
        assert_eq!(index.slice_next()[usize::from(slice)], 1 + of_slice.map(|(_, tail)| tail).sum::<u64>());
    }
}

#[test]
fn of_two_copies_of_a_partition_the_newer_wins() {
    let copy = |log: u32, count| {
        let log = LogId(log);
        let mut catalog = Catalog::new(log, 9, None);
        let draft = draft(&mut catalog, &mut 0, &[("a".to_owned(), count, 0)]);
        merge(CheckpointJob { log, number: 1, draft, previous: None }, &[]).unwrap()
    };
    let (old, new) = (copy(1, 3), copy(2, 5));
    for sources in [[&old, &new], [&new, &old]] {
        let views = sources.map(|(file, index)| (index, &file[..]));
        let one = reshape(&views, &[(LogId(9), 0)], |_| 0).unwrap();
        assert_eq!(tails(&one[0].1, &one[0].0), BTreeMap::from([(id("a"), 5)]));
    }
}

/// Found by the fuzzer: a footer with a right checksum that counts more partitions than its pages can hold. The filter of the
/// next checkpoint is made for as many, and the process ended where it asked for terabytes.
#[test]
fn regression_a_checkpoint_counts_no_more_entries_than_its_pages_hold() {
    let (mut file, model) = small();
    let footer = file.len() - 4096;
    let count = |file: &mut Vec<u8>, entries: u64| {
        file[footer + 40..footer + 48].copy_from_slice(&entries.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&file[footer..footer + 8]), &file[footer + 12..]);
        file[footer + 8..footer + 12].copy_from_slice(&crc.to_le_bytes());
    };
    count(&mut file, model.len() as u64);
    assert!(CheckpointIndex::parse(LOG, 1, &file).is_ok(), "the place of the count is right");
    for entries in [u64::MAX, 1 << 40, file.len() as u64] {
        count(&mut file, entries);
        let verdict = CheckpointIndex::parse(LOG, 1, &file);
        assert_eq!(verdict, Err(BadCheckpoint::Corrupt { at: footer as u64 }), "{entries}");
    }
}
