//! A log against a map: what was appended, by session and offset. Whatever is done with it (segments fill and are sealed,
//! checkpointed and rewritten, sessions leave the memory, the process dies), each question gets the map's answer: events
//! from any offset on, whether a message was appended before and as what, where a marker stands.

mod world;

use proptest::prelude::*;
use std::collections::BTreeMap;
use storage::log::{LogConfig, Seen};
use storage::record::MarkerBody;
use world::{Files, KEY, NOW_MS, TENANT, World};

const SESSIONS: u8 = 6;

#[derive(Clone, Debug)]
enum Step {
    /// Appends so many events of so many bytes as one record.
    Append { session: u8, events: u8, bytes: u16 },
    /// Moves a marker of the session to a fraction of its tail.
    Mark { session: u8, name: u8, part: u8 },
    /// The disk does everything it was asked for.
    Settle,
    /// Reads from a fraction of the session on.
    Read { session: u8, part: u8 },
    /// Was this message appended? One of those that were, and one that was not.
    Repeat { session: u8, part: u8 },
    /// The process dies after the disk did everything, and boots again.
    Die,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let session = || 0..SESSIONS;
    let step = prop_oneof![
        12 => (session(), 1u8..5, 0u16..1200).prop_map(|(session, events, bytes)| Step::Append { session, events, bytes }),
        2 => (session(), 0u8..3, any::<u8>()).prop_map(|(session, name, part)| Step::Mark { session, name, part }),
        3 => Just(Step::Settle),
        3 => (session(), any::<u8>()).prop_map(|(session, part)| Step::Read { session, part }),
        3 => (session(), any::<u8>()).prop_map(|(session, part)| Step::Repeat { session, part }),
        1 => Just(Step::Die),
    ];
    proptest::collection::vec(step, 1..300)
}

/// What a session must be.
#[derive(Default)]
struct Session {
    events: Vec<Vec<u8>>,
    markers: BTreeMap<String, u64>,
}

impl Session {
    fn at(&self, part: u8) -> u64 {
        self.events.len() as u64 * u64::from(part) / 255
    }
}

struct Model {
    world: World,
    config: LogConfig,
    sessions: Vec<Session>,
}

impl Model {
    fn step(&mut self, step: Step) {
        match step {
            Step::Append { session, events, bytes } => {
                let expected = &mut self.sessions[usize::from(session)];
                let first = expected.events.len();
                // No two events of a session are equal.
                let data = |at: u8| {
                    let mut data = format!("{}:", first + usize::from(at)).into_bytes();
                    data.resize(data.len() + usize::from(bytes), b'x');
                    data
                };
                let data: Vec<Vec<u8>> = (0..events).map(data).collect();
                let (offset, _) =
                    self.world.append_all(&name(session), &data.iter().map(|d| &d[..]).collect::<Vec<_>>());
                assert_eq!(offset, first as u64, "the next offset");
                self.sessions[usize::from(session)].events.extend(data);
            }
            Step::Mark { session, name: marker, part } => {
                let expected = &mut self.sessions[usize::from(session)];
                let (marker, offset) = (format!("marker-{marker}"), expected.at(part));
                if expected.events.is_empty() || expected.markers.get(&marker).is_some_and(|stands| *stands > offset) {
                    return;
                }
                expected.markers.insert(marker.clone(), offset);
                let markers = [MarkerBody { name: &marker, offset }];
                let slot = self.world.open(&name(session));
                if !self.world.log.room(self.world.log.bytes_of(slot, &[], &markers)) {
                    self.world.settle();
                }
                let slot = self.world.open(&name(session));
                self.world.log.append(slot, &[], &markers, NOW_MS);
            }
            Step::Settle => self.world.settle(),
            Step::Read { session, part } => {
                self.world.settle();
                let from = self.sessions[usize::from(session)].at(part);
                self.check_read(session, from);
            }
            Step::Repeat { session, part } => self.check_repeat(session, part),
            Step::Die => {
                self.world.settle();
                let (world, report) = World::boot(self.config, self.world.files.clone());
                assert!(!report.is_corrupt() && report.torn() == 0, "{report}");
                self.world = world;
            }
        }
    }

    fn check_read(&mut self, session: u8, from: u64) {
        let got = self.world.read_all(&name(session), from);
        let expected = &self.sessions[usize::from(session)].events;
        let expected = (0u64..).zip(expected).skip(from as usize);
        assert!(got.iter().map(|(offset, data)| (*offset, data)).eq(expected), "{} from {from}", name(session));
    }

    fn check_repeat(&mut self, session: u8, part: u8) {
        let slot = self.world.open(&name(session));
        let (id, epoch) = (self.world.log.partition(slot).id(), self.world.log.partition(slot).epoch());
        let tail = self.sessions[usize::from(session)].events.len() as u64;
        let key = |offset: u64| KEY.dedupe(id, epoch, "client", &format!("m-{offset}"));
        assert_eq!(self.world.seen(&name(session), key(tail)), Seen::No, "never appended");
        if tail > 0 {
            let offset = self.sessions[usize::from(session)].at(part).min(tail - 1);
            match self.world.seen(&name(session), key(offset)) {
                Seen::Yes { offset: first, body_hash: 5, .. } => assert_eq!(first, offset),
                other => panic!("{} forgot offset {offset}: {other:?}", name(session)),
            }
        }
    }

    fn check_all(&mut self) {
        self.world.settle();
        for session in 0..SESSIONS {
            self.check_read(session, 0);
            for part in (0..=255).step_by(51) {
                self.check_read(session, self.sessions[usize::from(session)].at(part));
                self.check_repeat(session, part);
            }
            let slot = self.world.open(&name(session));
            let partition = self.world.log.partition(slot);
            let expected = &self.sessions[usize::from(session)];
            assert_eq!(partition.committed(), expected.events.len() as u64);
            for marker in (0..3).map(|n| format!("marker-{n}")) {
                assert_eq!(partition.marker(&marker), expected.markers.get(&marker).copied(), "{marker}");
            }
            assert_eq!((partition.tenant(), partition.session()), (TENANT, &name(session)[..]));
        }
    }
}

fn name(session: u8) -> String {
    format!("session-{session}")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_log_answers_as_a_map_does(
        steps in steps(),
        recluster_bytes_max in prop_oneof![Just(0u64), Just(256u64 << 10)],
        partitions_resident_max in prop_oneof![Just(2usize), Just(64)],
        checkpoint_bytes in prop_oneof![Just(16u64 << 10), Just(96 << 10)],
    ) {
        let config = LogConfig { recluster_bytes_max, partitions_resident_max, checkpoint_bytes, ..LogConfig::small() };
        let (world, _) = World::boot(config, Files::default());
        let sessions = (0..SESSIONS).map(|_| Session::default()).collect();
        let mut model = Model { world, config, sessions };
        for step in steps {
            model.step(step);
        }
        model.check_all();
        model.step(Step::Die);
        model.check_all();
    }
}
