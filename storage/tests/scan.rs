//! A slow scan while the log goes on: segments are sealed and rewritten under its cursor, it takes a few records at a time,
//! asks for the same ones again, and still sees every event of every session in order. Where its file is rewritten, it begins the new
//! one: what it is shown again it knows by its place in its slice.

mod world;

use proptest::prelude::*;
use std::collections::BTreeMap;
use storage::ids::SliceId;
use storage::log::{LogConfig, Scan, ScanCursor};
use world::{Files, World};

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Appends so many events of so many bytes to one of five sessions.
    Append { session: u8, events: u8, bytes: u16 },
    /// The disk does everything it was asked for.
    Settle,
    /// Scans and takes at most so many records.
    Take(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u8..5, 1u8..4, 0u16..900).prop_map(|(session, events, bytes)| Step::Append { session, events, bytes }),
        2 => Just(Step::Settle),
        3 => (0u8..12).prop_map(Step::Take),
    ];
    proptest::collection::vec(step, 1..600)
}

struct Slow {
    cursor: ScanCursor,
    next: BTreeMap<String, u64>,
    passed: BTreeMap<SliceId, u64>,
}

impl Slow {
    /// One step of the scan; false at the end.
    fn take(&mut self, world: &mut World, most: usize) -> bool {
        let Slow { cursor, next, passed } = self;
        let mut see = |record: storage::record::RecordView<'_>| {
            for event in record.events() {
                let expected = next.entry(event.session().to_owned()).or_insert(0);
                let passed = passed.entry(event.slice()).or_insert(0);
                if event.slice_seq() <= *passed {
                    assert!(event.offset() < *expected, "{}: never seen at {cursor:?}", event.session());
                    continue;
                }
                *passed = event.slice_seq();
                assert_eq!(event.offset(), *expected, "{} at {cursor:?}", event.session());
                *expected += 1;
            }
        };
        match world.log.scan(*cursor) {
            Scan::Hot(record, after) => {
                if most > 0 {
                    see(record);
                    *cursor = after;
                }
            }
            Scan::Cold(ticket) => {
                world.settle();
                let mut reached = world.log.scan_nothing(ticket);
                match world.log.scan_records(ticket) {
                    Ok(records) => {
                        for (record, after) in records.take(most) {
                            see(record);
                            reached = Some(after);
                        }
                    }
                    Err(fault) => assert_eq!(fault, storage::log::ReadFault::Gone),
                }
                *cursor = reached.unwrap_or(*cursor);
                world.log.release(ticket);
            }
            Scan::Skip(_) => panic!("nothing was removed, and yet there is a gap at {cursor:?}"),
            Scan::End => return false,
            Scan::Busy => world.settle(),
            Scan::Fault(fault) => panic!("{fault}"),
        }
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn sees_every_event_once_and_in_order(
        steps in steps(),
        recluster_bytes_max in prop_oneof![Just(0u64), Just(128u64 << 10), Just(512 << 10)],
        hot_tail_bytes in prop_oneof![Just(112usize << 10), Just(512 << 10)],
        checkpoint_bytes in prop_oneof![Just(16u64 << 10), Just(96 << 10)],
    ) {
        let config = LogConfig { recluster_bytes_max, hot_tail_bytes, checkpoint_bytes, ..LogConfig::small() };
        let (mut world, _) = World::boot(config, Files::default());
        let mut slow = Slow { cursor: world.log.scan_from(|_| Some(0)), next: BTreeMap::new(), passed: BTreeMap::new() };
        let mut tails = [0u64; 5];
        for step in steps {
            match step {
                Step::Append { session, events, bytes } => {
                    let data = vec![b'x'; bytes.into()];
                    world.append_all(&format!("s{session}"), &vec![&data[..]; events.into()]);
                    tails[usize::from(session)] += u64::from(events);
                }
                Step::Settle => world.settle(),
                Step::Take(most) => {
                    slow.take(&mut world, most.into());
                }
            }
        }
        world.settle();
        while slow.take(&mut world, 100) {}
        for (session, tail) in tails.iter().enumerate() {
            prop_assert_eq!(slow.next.get(&format!("s{session}")).copied().unwrap_or(0), *tail, "session {}", session);
        }
    }
}
