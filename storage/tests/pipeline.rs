//! The commit pipeline against a model: whatever order the disk answers in and whatever it answers, committed is the
//! contiguous durable prefix, in order, and nothing but a failed sync ends it.

use proptest::prelude::*;
use std::collections::BTreeMap;
use storage::commit::{CommitConfig, CommitEvent, CommitStart, Pipeline};
use storage::disk::{DiskFault, DiskOp, OpId};
use storage::group::{BLOCK_BYTES, GroupPlace, check_group, group_records};
use storage::ids::{HashKey, LogId, SegmentId};
use storage::record::*;

const KEY: HashKey = HashKey(5, 6);
const LOG: LogId = LogId(3);

fn config() -> CommitConfig {
    CommitConfig {
        group_bytes_max: 8 << 10,
        groups_in_flight_max: 2,
        group_close_bytes: 2 << 10,
        group_close_us: 200,
        no_space_retry_us: 1000,
        segment_bytes: 48 << 10,
        segment_records_max: 40,
        hot_tail_bytes: 60 << 10,
        sync: true,
    }
}

/// What the test does next.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Append a record with so many bytes of data, if there is room.
    Append(u16),
    /// Let so many microseconds pass and take what is due.
    Poll(u16),
    /// Answer one of the operations in flight: which, and how.
    Answer(u8, Answer),
    /// Answer the request for a segment.
    Prepared(bool),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    Ok,
    NoSpace,
    Broken,
}

fn steps(broken: bool) -> impl Strategy<Value = Vec<Step>> {
    let answer =
        prop_oneof![8 => Just(Answer::Ok), 1 => Just(Answer::NoSpace), u32::from(broken) => Just(Answer::Broken)];
    let step = prop_oneof![
        4 => (0u16..1500).prop_map(Step::Append),
        3 => (0u16..500).prop_map(Step::Poll),
        3 => (any::<u8>(), answer).prop_map(|(which, answer)| Step::Answer(which, answer)),
        1 => any::<bool>().prop_map(Step::Prepared),
    ];
    proptest::collection::vec(step, 1..200)
}

struct Model {
    pipeline: Pipeline,
    now_us: u64,
    next_op: u64,
    appended: Vec<Vec<u8>>,
    /// In flight: file position, bytes as they were when the operation was taken.
    flight: BTreeMap<u64, (SegmentId, u64, usize, usize, Vec<u8>)>,
    preparing: Option<SegmentId>,
    committed: u64,
    /// Records of each group in the order of closing, and whether it is durable.
    groups: Vec<(SegmentId, u64, u64, bool)>,
    poisoned: bool,
}

impl Model {
    fn new() -> Model {
        let start = CommitStart { log: LOG, next_segment: 0, previous: None, next_group: 1, next_log_seq: 0 };
        Model {
            pipeline: Pipeline::new(config(), KEY, start),
            now_us: 0,
            next_op: 0,
            appended: vec![],
            flight: BTreeMap::new(),
            preparing: None,
            committed: 0,
            groups: vec![],
            poisoned: false,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Append(bytes) => self.append(bytes.into()),
            Step::Poll(us) => {
                self.now_us += u64::from(us);
                self.poll();
            }
            Step::Answer(which, answer) => {
                let nth = usize::from(which) % self.flight.len().max(1);
                if let Some(op) = self.flight.keys().nth(nth).copied() {
                    self.answer(op, answer);
                }
            }
            Step::Prepared(well) => {
                self.preparing = self.preparing.or_else(|| self.pipeline.poll_prepare());
                if let Some(segment) = self.preparing.take() {
                    self.pipeline.handle_prepared(well.then_some(segment));
                }
            }
        }
        self.check();
    }

    fn append(&mut self, bytes: usize) {
        let partition = KEY.partition("t", "s");
        let data = vec![self.appended.len() as u8; bytes];
        let events = [EventBody {
            topic: "a",
            client_id: "c",
            message_id: "m",
            traceparent: "",
            data: &data,
            data_kind: 0,
            prev_offset: NO_OFFSET,
            expires_ms: 0,
            producer_epoch: 0,
            producer_seq: NO_OFFSET,
            dedupe_low: 1,
            dedupe_high: 0,
            body_hash: 0,
        }];
        let body = CommitBody { tenant: "t", session: "s", events: &events, markers: &[] };
        let bytes = commit_bytes_max(&body);
        if !self.pipeline.room(bytes) {
            return;
        }
        let number = self.appended.len() as u64;
        assert_eq!(self.pipeline.next_log_seq(), number);
        let head = RecordHead {
            length: 0,
            kind: Kind::Commit,
            slice: partition.slice(),
            count: 0,
            slice_seq: number + 1,
            partition,
            offset: number,
            epoch: 1,
            time_ms: 1,
            log_seq: number,
            body_bytes: 0,
        };
        self.pipeline.append(bytes, |out| encode_commit(&head, &body, out));
        let mut kept = vec![0; bytes];
        encode_commit(&head, &body, &mut kept);
        self.appended.push(kept);
    }

    fn poll(&mut self) {
        self.preparing = self.preparing.or_else(|| self.pipeline.poll_prepare());
        while let Some(op) = self.pipeline.poll_op(self.now_us, OpId(self.next_op)) {
            self.next_op += 1;
            let DiskOp::Commit { op, segment, at, start, len, sync } = op else { panic!("{op:?}") };
            assert!(sync && !self.poisoned, "a poisoned log writes no more");
            let bytes = self.pipeline.arena(start, len).to_vec();
            let first = if at == 0 { BLOCK_BYTES } else { 0 };
            let group = storage::group::GroupHeader::get(&bytes[first..]).expect("a group");
            let place = GroupPlace {
                segment,
                salt: KEY.segment_salt(segment),
                position: at + first as u64,
                group: group.group,
                first_log_seq: Some(group.first_log_seq),
            };
            check_group(&bytes[first..], place).expect("what is written verifies");
            for (_, record) in group_records(&bytes[first..], &group) {
                assert_eq!(record.bytes(), self.appended[record.log_seq() as usize]);
            }
            if group.group as usize > self.groups.len() {
                assert_eq!(group.group as usize, self.groups.len() + 1);
                let end = group.first_log_seq + u64::from(group.count);
                self.groups.push((segment, at + first as u64, end, false));
                let before = self.groups.iter().take_while(|(.., durable)| *durable).count();
                assert_eq!(group.durable_through as usize, before, "the header says what is known");
                assert!(first == 0 || before + 1 == self.groups.len(), "a segment begins when all before is durable");
            }
            self.flight.insert(op.0, (segment, at, start, len, bytes));
            assert!(self.flight.len() <= config().groups_in_flight_max);
        }
    }

    fn answer(&mut self, op: u64, answer: Answer) {
        let (segment, at, start, len, bytes) = self.flight.remove(&op).unwrap();
        assert_eq!(self.pipeline.arena(start, len), bytes, "what the disk has was overwritten meanwhile");
        let result = match answer {
            Answer::Ok => Ok(()),
            Answer::NoSpace => Err(DiskFault::NoSpace),
            Answer::Broken => Err(DiskFault::SyncFailed { errno: 5 }),
        };
        self.pipeline.handle_done(OpId(op), result);
        let position = at + if at == 0 { BLOCK_BYTES as u64 } else { 0 };
        match answer {
            Answer::Ok if !self.poisoned => {
                let group = self.groups.iter_mut().find(|(s, p, ..)| (*s, *p) == (segment, position)).unwrap();
                group.3 = true;
            }
            Answer::Broken => self.poisoned = true,
            _ => {}
        }
        let prefix = self.groups.iter().take_while(|(.., durable)| *durable).last();
        let expected = prefix.map_or(0, |(_, _, end, _)| *end);
        assert_eq!(self.pipeline.committed(), expected, "the contiguous durable prefix, no more, no less");
    }

    fn check(&mut self) {
        while let Some(event) = self.pipeline.poll_event() {
            match event {
                CommitEvent::Committed { through } => {
                    assert!(through > self.committed);
                    let fresh: Vec<Vec<u8>> =
                        self.pipeline.committed_records(self.committed).map(|(_, r)| r.bytes().to_vec()).collect();
                    assert_eq!(fresh, self.appended[self.committed as usize..through as usize]);
                    self.committed = through;
                }
                CommitEvent::Poisoned(_) => assert!(self.poisoned),
                CommitEvent::NoSpace(full) => assert_eq!(full, self.pipeline.no_space()),
            }
        }
        assert_eq!(self.committed, self.pipeline.committed());
        if self.poisoned || self.pipeline.no_space() {
            assert!(!self.pipeline.room(8));
        }
        if let Some((_, oldest)) = self.pipeline.committed_records(0).next() {
            assert_eq!(oldest.bytes(), self.appended[oldest.log_seq() as usize], "hot bytes changed");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Faults that pass: in the end everything appended is committed.
    #[test]
    fn everything_is_committed_once_faults_stop(steps in steps(false)) {
        let mut model = Model::new();
        for step in steps {
            model.step(step);
        }
        for _ in 0..200 {
            if model.pipeline.idle() && model.pipeline.room(100) {
                break;
            }
            model.step(Step::Prepared(true));
            model.step(Step::Poll(2000));
            while let Some(op) = model.flight.keys().next().copied() {
                model.answer(op, Answer::Ok);
                model.check();
            }
        }
        prop_assert!(model.pipeline.idle(), "liveness");
        prop_assert_eq!(model.committed, model.appended.len() as u64);
        prop_assert!(model.pipeline.room(100));
    }

    /// A failed sync at any time: nothing is written or committed afterwards.
    #[test]
    fn a_failed_sync_ends_it(steps in steps(true)) {
        let mut model = Model::new();
        for step in steps {
            model.step(step);
        }
    }
}

/// Found by the crash test: right after a boot the first segment was still being prepared, a checkpoint named the one
/// after it, and the next boot skipped all that the first one held.
#[test]
fn regression_a_position_names_the_segment_on_its_way() {
    let start = CommitStart { log: LOG, next_segment: 1, previous: None, next_group: 4, next_log_seq: 24 };
    let mut pipeline = Pipeline::new(config(), KEY, start);
    assert_eq!(pipeline.position().segment, 1);
    let segment = pipeline.poll_prepare().expect("none is prepared");
    assert_eq!(pipeline.position().segment, segment.number, "asked for");
    assert_eq!(pipeline.next_segment(), segment);
    pipeline.handle_prepared(Some(segment));
    assert_eq!(pipeline.position().segment, segment.number, "there");

    let mut pipeline = Pipeline::new(config(), KEY, start);
    pipeline.poll_prepare();
    pipeline.handle_prepared(None);
    assert_eq!(pipeline.position().segment, 2, "the first could not be made: its number is not used again");
}
