//! The catalog against a plain map: random sessions through eviction, fuzzy checkpoints, crashes and replay.

use proptest::prelude::*;
use std::collections::BTreeMap;
use storage::catalog::*;
use storage::checkpoint::{CheckpointIndex, CheckpointJob, LogPosition, PageAt, Previous, merge};
use storage::ids::{HashKey, LogId, PartitionId, SegmentId};

const KEY: HashKey = HashKey(1, 2);
const LOG: LogId = LogId(3);
const RECORDS_PER_SEGMENT: u64 = 5;

/// A record as the log would hold it.
#[derive(Clone, Debug)]
struct Record {
    session: String,
    epoch: u64,
    offset: u64,
    count: u32,
    slice_seq: u64,
    marker: Option<(String, u64)>,
    producer: Option<(String, u64)>,
}

impl Record {
    fn segment(log_seq: u64) -> SegmentId {
        SegmentId { log: LOG, number: (log_seq / RECORDS_PER_SEGMENT) as u32 }
    }

    fn markers(&self) -> impl Iterator<Item = (&str, u64)> {
        self.marker.iter().map(|(name, offset)| (name.as_str(), *offset))
    }

    fn producers(&self) -> impl Iterator<Item = ProducerStep<'_>> {
        self.producer.iter().map(|(client_id, seq)| ProducerStep {
            client_id,
            epoch: 1,
            seq: *seq,
            offset: self.offset,
        })
    }
}

/// What a session must be, worked out from the records alone.
#[derive(Clone, Default, PartialEq, Debug)]
struct Expected {
    epoch: u64,
    tail: u64,
    runs: Vec<(SegmentId, u64)>,
    markers: BTreeMap<String, u64>,
    producers: BTreeMap<String, (u64, u64)>,
}

fn expected(records: &[Record]) -> BTreeMap<String, Expected> {
    let mut all: BTreeMap<String, Expected> = BTreeMap::new();
    for (log_seq, record) in records.iter().enumerate() {
        let session = all.entry(record.session.clone()).or_default();
        if session.epoch != record.epoch {
            *session = Expected { epoch: record.epoch, ..Expected::default() };
        }
        let segment = Record::segment(log_seq as u64);
        if record.count > 0 && session.runs.last().is_none_or(|(last, _)| *last != segment) {
            session.runs.push((segment, session.tail));
        }
        session.tail += u64::from(record.count);
        if let Some((name, offset)) = &record.marker {
            let marker = session.markers.entry(name.clone()).or_default();
            *marker = (*marker).max(*offset);
        }
        if let Some((client, seq)) = &record.producer {
            let last = session.producers.entry(client.clone()).or_insert((*seq, record.offset));
            *last = if *seq > last.0 { (*seq, record.offset) } else { *last };
        }
    }
    all
}

fn observed(partition: &Partition) -> Expected {
    Expected {
        epoch: partition.epoch(),
        tail: partition.tail(),
        runs: partition.runs().iter().map(|run| (run.segment, run.first)).collect(),
        markers: partition.markers().iter().map(|m| (m.name.to_string(), m.offset)).collect(),
        producers: partition.producers().iter().map(|p| (p.client_id.to_string(), (p.seq, p.offset))).collect(),
    }
}

fn id(session: &str) -> PartitionId {
    KEY.partition("t", session)
}

fn page(file: &[u8], at: PageAt) -> &[u8] {
    &file[at.at as usize..at.at as usize + at.len]
}

/// A log with its catalog and the checkpoint that is on disk.
struct World {
    catalog: Catalog,
    records: Vec<Record>,
    committed: usize,
    file: Vec<u8>,
    number: u32,
    epochs: u64,
    resident_max: usize,
}

impl World {
    fn new(resident_max: usize) -> World {
        let catalog = Catalog::new(LOG, resident_max, None);
        World { catalog, records: vec![], committed: 0, file: vec![], number: 0, epochs: 0, resident_max }
    }

    /// The session's slot, through whatever the catalog asks for. `None` when it is full.
    fn open(&mut self, session: &str) -> Option<PartitionSlot> {
        let absent = match self.catalog.lookup(id(session), "t", session) {
            Lookup::Resident(slot) => return Some(slot),
            Lookup::Absent => true,
            Lookup::NeedsPage(at) => match self.catalog.load(id(session), "t", session, at, page(&self.file, at)) {
                Load::Resident(slot) => return Some(slot),
                Load::Absent => true,
                Load::Full => false,
                other => panic!("{other:?}"),
            },
            Lookup::Collision => panic!("no two sessions here have one id"),
        };
        self.epochs += 1;
        absent.then(|| self.catalog.create(id(session), "t", session, self.epochs).ok()).flatten()
    }

    fn append(&mut self, session: &str, count: u32, marker: Option<u64>, producer: bool, restart: bool) {
        let Some(slot) = self.open(session) else {
            let stats = self.catalog.stats();
            assert!(stats.idle == 0 && stats.resident >= self.resident_max, "full with room: {stats:?}");
            return self.checkpoint(true, |_| {});
        };
        if restart {
            self.epochs += 1;
            self.catalog.restart(slot, self.epochs);
        }
        let log_seq = self.records.len() as u64;
        let (epoch, offset) = self.catalog.get(slot).map(|p| (p.epoch(), p.tail())).unwrap();
        let mut record = Record {
            session: session.to_owned(),
            epoch,
            offset,
            count,
            slice_seq: 0,
            marker: marker.map(|n| (format!("m{}", n % 3), n % (offset + 1))),
            producer: producer.then(|| (format!("c{}", offset % 2), log_seq)),
        };
        let change = Change { segment: Record::segment(log_seq), log_seq, count };
        let appended = self.catalog.append(slot, change, record.markers(), record.producers());
        assert_eq!(appended.offset, offset);
        record.slice_seq = appended.slice_seq;
        self.records.push(record);
    }

    fn commit(&mut self, upto: usize) {
        for record in &self.records[self.committed..upto] {
            self.catalog.committed(id(&record.session), record.epoch, record.offset + u64::from(record.count));
        }
        self.committed = self.committed.max(upto);
    }

    /// A checkpoint over several turns; `between` runs in the middle of it. The job starts when all is committed.
    fn checkpoint(&mut self, succeeds: bool, between: impl FnOnce(&mut World)) {
        let log_seq = self.records.len() as u64;
        self.catalog.collect_begin(LogPosition { log_seq, ..LogPosition::default() });
        self.catalog.collect(2);
        between(self);
        while !self.catalog.collect(2) {}
        let draft = self.catalog.collect_end(self.records.len() as u64, false);
        let through = draft.through as usize;
        if !succeeds {
            return self.catalog.checkpoint_failed();
        }
        self.commit(through);
        self.number += 1;
        let previous = self.catalog.checkpoint().map(Previous::from);
        let (file, index) =
            merge(CheckpointJob { log: LOG, number: self.number, draft, previous }, &self.file).unwrap();
        assert_eq!(CheckpointIndex::parse(LOG, self.number, &file), Ok(index.clone()));
        self.file = file;
        self.catalog.checkpoint_installed(index);
    }

    /// Loses what was not committed, but for `survivors` records that happened to reach the disk.
    fn crash(&mut self, survivors: usize) {
        self.records.truncate(self.committed + survivors);
        self.committed = self.records.len();
        let checkpoint = (!self.file.is_empty()).then(|| CheckpointIndex::parse(LOG, self.number, &self.file).unwrap());
        let from = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.position.log_seq as usize);
        let mut catalog = Catalog::new(LOG, REPLAY_RESIDENT_MAX, checkpoint);
        // Replay may start too early, and twice: what is known stays as it is.
        for start in [from.saturating_sub(4), from] {
            for (at, record) in self.records.iter().enumerate().skip(start) {
                let replayed = Replayed {
                    segment: Record::segment(at as u64),
                    log_seq: at as u64,
                    partition: id(&record.session),
                    tenant: "t",
                    session: &record.session,
                    epoch: record.epoch,
                    offset: record.offset,
                    count: record.count,
                    slice_seq: record.slice_seq,
                };
                let file = &self.file;
                let done = catalog.replay(replayed, record.markers(), record.producers(), |at| page(file, at));
                assert!(done.is_ok(), "{done:?}");
            }
        }
        catalog.recovered(LOG, self.resident_max);
        self.catalog = catalog;
    }

    /// Every session is what its records say, in memory or through the checkpoint; slices count every offset.
    fn check(&mut self) {
        let expected = expected(&self.records);
        for (session, expected) in &expected {
            let Some(slot) = self.open(session) else { continue };
            let partition = self.catalog.get(slot).unwrap();
            assert_eq!(&observed(partition), expected, "{session}");
            assert_eq!((partition.tenant(), partition.session()), ("t", session.as_str()));
            assert!(partition.committed() <= partition.tail());
            let slice = id(session).slice();
            let of_slice = self.records.iter().filter(|record| id(&record.session).slice() == slice);
            assert_eq!(self.catalog.slice_next(slice), 1 + of_slice.map(|r| u64::from(r.count)).sum::<u64>());
        }
        let stats = self.catalog.stats();
        assert!(stats.resident <= self.resident_max.max(stats.dirty), "{stats:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_session_is_what_its_records_say(
        resident_max in 2usize..12,
        steps in proptest::collection::vec((0u8..32, 0usize..14, 0u32..4, 0u64..9), 1..160),
    ) {
        let mut world = World::new(resident_max);
        for (step, session, count, n) in steps {
            let name = format!("s{session}");
            match step {
                0..20 => {
                    let marker = (n < 3).then_some(n);
                    world.append(&name, if marker.is_some() { count } else { count + 1 }, marker, n == 4, false);
                }
                20 => world.append(&name, 1, None, false, true),
                21..26 => world.commit((world.committed + session).min(world.records.len())),
                26..28 => world.checkpoint(n > 1, |world| {
                    if matches!(world.catalog.lookup(id(&name), "t", &name), Lookup::Resident(_)) {
                        world.append(&name, 1, Some(2), true, false);
                    }
                }),
                28 => world.crash((n as usize).min(world.records.len() - world.committed)),
                _ => world.check(),
            }
        }
        world.crash(0);
        world.check();
    }
}

#[test]
fn the_longest_unused_goes_first_and_pinned_ones_stay() {
    let mut world = World::new(3);
    let a = world.open("a").unwrap();
    let b = world.open("b").unwrap();
    world.open("c").unwrap();
    world.catalog.pin(a);
    assert!(matches!(world.catalog.lookup(id("b"), "t", "b"), Lookup::Resident(slot) if slot == b));
    world.open("d").unwrap();
    assert_eq!(world.catalog.slot_of(id("c")), None, "c was unused longest");
    assert!(world.catalog.slot_of(id("a")).is_some() && world.catalog.slot_of(id("b")).is_some());
    world.catalog.unpin(a);
    world.open("e").unwrap();
    world.open("f").unwrap();
    assert!(
        world.catalog.get(b).is_none() && world.catalog.get(a).is_some(),
        "b went before a, which was unpinned last"
    );
    assert_eq!(world.catalog.stats().evicted, 3);
}

#[test]
fn dirty_sessions_fill_the_catalog_until_a_checkpoint() {
    let mut world = World::new(2);
    world.append("a", 1, None, false, false);
    world.append("b", 1, None, false, false);
    assert_eq!(world.open("c"), None);
    world.checkpoint(true, |_| {});
    assert!(world.open("c").is_some());
    world.check();
}

#[test]
fn a_page_of_a_replaced_checkpoint_is_stale() {
    let mut world = World::new(2);
    world.append("a", 1, None, false, false);
    world.checkpoint(true, |_| {});
    world.open("b").unwrap();
    world.open("c").unwrap();
    let Lookup::NeedsPage(at) = world.catalog.lookup(id("a"), "t", "a") else { panic!("a was evicted") };
    let old = page(&world.file, at).to_vec();
    // Meanwhile a is loaded by another, changes, is saved and evicted again.
    world.append("a", 1, None, false, false);
    world.checkpoint(true, |_| {});
    world.open("b").unwrap();
    world.open("c").unwrap();
    assert_eq!(world.catalog.load(id("a"), "t", "a", at, &old), Load::Stale);
    let slot = world.open("a").unwrap();
    assert_eq!(world.catalog.get(slot).unwrap().tail(), 2);
}

#[test]
fn two_sessions_of_one_hash_are_told_apart() {
    let mut world = World::new(2);
    world.append("a", 1, None, false, false);
    assert_eq!(world.catalog.lookup(id("a"), "t", "other"), Lookup::Collision);
    assert_eq!(world.catalog.lookup(id("a"), "other", "a"), Lookup::Collision);
    world.checkpoint(true, |_| {});
    world.open("b").unwrap();
    world.open("c").unwrap();
    let Lookup::NeedsPage(at) = world.catalog.lookup(id("a"), "t", "a") else { panic!("a was evicted") };
    assert_eq!(world.catalog.load(id("a"), "other", "a", at, page(&world.file, at)), Load::Collision);
}

#[test]
fn a_hole_in_the_log_is_not_replayed_over() {
    let mut catalog = Catalog::new(LOG, REPLAY_RESIDENT_MAX, None);
    let mut replay = |log_seq, offset, count, epoch| {
        let (segment, partition) = (Record::segment(log_seq), id("a"));
        let (tenant, session, slice_seq) = ("t", "a", offset + 1);
        let record = Replayed { segment, log_seq, partition, tenant, session, epoch, offset, count, slice_seq };
        catalog.replay(record, [], [], |_| &[])
    };
    assert_eq!(replay(0, 3, 1, 7), Err(ReplayFault::Hole { expected: 0, found: 3 }));
    assert!(matches!(replay(1, 0, 2, 7), Ok(Replay::Applied(_))));
    assert_eq!(replay(1, 0, 2, 7), Ok(Replay::Known));
    assert_eq!(replay(2, 3, 1, 7), Err(ReplayFault::Hole { expected: 2, found: 3 }));
    assert!(matches!(replay(3, 0, 1, 8), Ok(Replay::Applied(_))), "another life counts from 0");
    assert_eq!(replay(2, 2, 1, 7), Ok(Replay::Known), "the earlier life is over");
}

#[test]
fn tables_of_markers_and_producers_are_bounded() {
    let mut world = World::new(2);
    let slot = world.open("a").unwrap();
    for n in 0..100u64 {
        let (name, change) = (format!("n{n}"), Change { segment: Record::segment(n), log_seq: n, count: 1 });
        let step = ProducerStep { client_id: &name, epoch: 1, seq: 1, offset: n };
        world.catalog.append(slot, change, [(name.as_str(), 1)], [step]);
    }
    let partition = world.catalog.get(slot).unwrap();
    assert_eq!((partition.markers().len(), partition.producers().len()), (MARKERS_MAX, PRODUCERS_MAX));
    assert!(!partition.marker_room("new") && partition.marker_room("n3"));
    assert!(!partition.producer_room("new") && partition.producer_room("n99"));
    assert!(partition.producer("n35").is_none() && partition.producer("n36").is_some(), "the longest silent went");
}

#[test]
fn runs_leave_from_the_front_with_their_segments() {
    let mut world = World::new(2);
    let slot = world.open("a").unwrap();
    for number in 0..4 {
        let change = Change { segment: SegmentId { log: LOG, number }, log_seq: number.into(), count: 10 };
        world.catalog.append(slot, change, [], []);
    }
    assert_eq!(world.catalog.get(slot).unwrap().run_of(25), Some(2));
    assert!(!world.catalog.drop_gone_runs(slot, |segment| segment.number == 2), "a gap behind the front stays");
    assert!(world.catalog.drop_gone_runs(slot, |segment| segment.number < 2));
    let partition = world.catalog.get(slot).unwrap();
    assert_eq!((partition.first_offset(), partition.run_of(19), partition.run_of(20)), (20, None, Some(0)));
    assert_eq!(partition.run_of(40), None);
    assert!(world.catalog.drop_gone_runs(slot, |_| true));
    assert_eq!(world.catalog.get(slot).unwrap().first_offset(), 40);
}
