//! Reads of one session that follow each other: asked for ahead, kept while there is room, and never in anybody's way.

mod world;

use storage::disk::{DiskOp, FileId};
use storage::ids::{LogId, Offset};
use storage::log::{Log, LogConfig, Read, ReadTicket, RecoveredLog};
use world::{Files, KEY, World};

const EVENTS: u64 = 3000;

/// A log with a session `a` of [`EVENTS`] events, alone in its segments, all but the last out of memory.
fn filled(config: LogConfig) -> World {
    let config = LogConfig {
        segment_bytes: 512 << 10,
        segment_records_max: 4096,
        dedupe_hot_bytes_max: 1 << 20, // a full table would end segments early
        ..config
    };
    let mut world = World::new(Log::new(config, RecoveredLog::empty(KEY, LogId(0))), Files::default());
    for at in 0..EVENTS {
        world.append("a", format!("{at}:{}", "x".repeat(at as usize * 37 % 600)).as_bytes());
        if at % 8 == 0 {
            world.settle();
        }
    }
    world.settle();
    world
}

/// Offsets that a finished read holds.
fn offsets(world: &World, ticket: ReadTicket) -> Vec<Offset> {
    world.log.read_records(ticket).unwrap().map(|record| record.offset()).collect()
}

/// Reads on from `from` until a read was there before it was asked for. Its first offset and ticket.
fn reach_ready(world: &mut World, mut from: Offset) -> (Offset, ReadTicket) {
    for _ in 0..16 {
        let slot = world.open("a");
        match world.log.read(slot, from) {
            Read::Ready(ticket) => return (from, ticket),
            Read::Cold(ticket) => {
                world.settle();
                let found = offsets(world, ticket);
                assert_eq!(found, (from..from + found.len() as u64).collect::<Vec<_>>());
                from += found.len() as u64;
                world.log.release(ticket);
            }
            other => panic!("at {from}: {other:?}"),
        }
    }
    panic!("nothing was read ahead");
}

#[test]
fn a_long_series_is_whole_and_its_reads_grow_and_come_ahead() {
    let mut world = filled(LogConfig::small());
    let slot = world.open("a");
    let Read::Cold(first) = world.log.read(slot, 0) else { panic!("not cold") };
    world.settle();
    let short = offsets(&world, first).len();
    world.log.release(first);
    let (mut from, mut ticket) = reach_ready(&mut world, short as u64);
    let before = world.log.stats().cold_reads;
    let (mut ready, mut long) = (0, 0);
    while from < EVENTS {
        let found = offsets(&world, ticket);
        assert_eq!(found, (from..from + found.len() as u64).collect::<Vec<_>>());
        (ready, long) = (ready + 1, long.max(found.len()));
        from += found.len() as u64;
        world.log.release(ticket);
        world.settle();
        let slot = world.open("a");
        match world.log.read(slot, from) {
            Read::Ready(next) => ticket = next,
            Read::Hot(_) => break,
            other => panic!("at {from}: {other:?}"),
        }
    }
    assert!(ready > 4 && long > 4 * short, "{ready} reads, {short} records in the first, {long} in the longest");
    assert!(world.log.stats().cold_reads - before <= ready, "no record is read twice");
    assert_eq!(world.read_all("a", 0).len() as u64, EVENTS);
}

#[test]
fn what_a_reader_has_no_room_for_is_kept_and_begins_where_it_asks() {
    let mut world = filled(LogConfig::small());
    let slot = world.open("a");
    let Read::Cold(ticket) = world.log.read(slot, 0) else { panic!("not cold") };
    world.settle();
    let found = offsets(&world, ticket);
    world.log.keep(ticket);
    let reads = world.log.stats().cold_reads;
    let slot = world.open("a");
    let Read::Ready(again) = world.log.read(slot, 5) else { panic!("not kept") };
    assert_eq!(offsets(&world, again), found[5..]);
    // One reader has it at a time; another reads for itself.
    let Read::Cold(other) = world.log.read(slot, 5) else { panic!("two tickets for one buffer") };
    world.settle();
    assert_eq!(offsets(&world, other)[0], 5);
    assert_eq!(world.log.stats().cold_reads, reads + 1);
    world.log.keep(again);
    world.log.release(other);
}

#[test]
fn a_reader_that_leaves_a_series_holds_no_buffer() {
    let mut world = filled(LogConfig::small());
    // Of some series, one is in flight, one kept, one read ahead; nobody comes back for them.
    for begin in [0, 200, 400, 600] {
        let (_, ticket) = reach_ready(&mut world, begin);
        world.log.keep(ticket);
        world.settle();
    }
    let slot = world.open("a");
    let mut tickets = vec![];
    loop {
        match world.log.read(slot, 1500 + 300 * tickets.len() as u64) {
            Read::Cold(ticket) | Read::Ready(ticket) => tickets.push(ticket),
            Read::Busy => break,
            other => panic!("{other:?}"),
        }
    }
    let config = LogConfig::small();
    assert_eq!(tickets.len(), config.read_buffers - 4, "all buffers but those of lookups");
    world.settle();
    for (number, ticket) in tickets.into_iter().enumerate() {
        let begin = 1500 + 300 * number as u64;
        assert_eq!(offsets(&world, ticket)[0], begin);
        world.log.release(ticket);
    }
}

#[test]
fn a_read_ahead_of_a_segment_that_went_is_not_shown() {
    let config = LogConfig { retention_bytes: 3 << 20, ..LogConfig::small() };
    let mut world = filled(config);
    let slot = world.open("a");
    let first = world.log.partition(slot).first_offset();
    let (from, ticket) = reach_ready(&mut world, first);
    world.log.keep(ticket);
    // Later events push the segment out, while what was read of it is still in memory.
    for at in 0..2 * EVENTS {
        world.append("b", &[b'y'; 400]);
        if at % 64 == 0 {
            world.log.set_wall_ms(world::NOW_MS + at * 1000);
            world.settle();
        }
    }
    world.settle();
    let slot = world.open("a");
    let found = world.log.read(slot, from);
    let Read::Gap { to } = found else { panic!("what is gone was shown: {found:?}") };
    assert!(to > from);
}

#[test]
fn damage_met_ahead_is_told_to_its_reader_and_to_nobody_before() {
    let mut world = filled(LogConfig::small());
    let mut sealed: Vec<_> = world.log.sealed().map(|contents| contents.segment).collect();
    sealed.sort();
    let second = sealed[1];
    let file = world.files.files.get_mut(&FileId::Segment(second)).unwrap();
    file[5000..].iter_mut().for_each(|byte| *byte ^= 1);
    let mut from = 0;
    let fault = loop {
        let slot = world.open("a");
        let ticket = match world.log.read(slot, from) {
            Read::Ready(ticket) => ticket,
            Read::Cold(ticket) => {
                world.settle();
                ticket
            }
            other => panic!("at {from}: {other:?}"),
        };
        match world.log.read_records(ticket).map(|records| records.last().unwrap().next_offset()) {
            Ok(next) => from = next,
            Err(fault) => break fault,
        }
        world.log.release(ticket);
    };
    assert!(from > 500, "everything before the damage was read, to {from}");
    assert!(matches!(fault, storage::log::ReadFault::Corrupt { file: FileId::Segment(at), .. } if at == second));
}

/// A record across the end of the longest read was taken for damage: the subscriber was told a gap up to the live point.
#[test]
fn regression_a_record_across_the_end_of_the_buffer_is_read_by_the_next_read() {
    let mut world = filled(LogConfig::small());
    let mut cut = 0;
    let mut from = 0;
    loop {
        let slot = world.open("a");
        let mut longest = 0;
        let ticket = match world.log.read(slot, from) {
            Read::Ready(ticket) | Read::Cold(ticket) => ticket,
            Read::Hot(_) => break,
            other => panic!("at {from}: {other:?}"),
        };
        while let Some(op) = world.log.poll_op(world.now_us) {
            if let DiskOp::Read { len, .. } = op {
                longest = longest.max(len);
            }
            let done = world.files.perform(&mut world.log, op);
            world.log.handle_done(done);
        }
        cut += usize::from(longest == LogConfig::small().read_buffer_bytes);
        from += offsets(&world, ticket).len() as u64;
        world.log.release(ticket);
    }
    assert!(cut > 2, "{cut} reads of a whole buffer prove little");
}

/// Performs all there is to do; bytes asked for by the longest read among it.
fn longest_read(world: &mut World) -> usize {
    let mut longest = 0;
    while let Some(op) = world.log.poll_op(world.now_us) {
        if let DiskOp::Read { len, .. } = op {
            longest = longest.max(len);
        }
        let done = world.files.perform(&mut world.log, op);
        world.log.handle_done(done);
    }
    longest
}

#[test]
fn a_lone_record_is_a_short_read_and_whole_all_the_same() {
    const AHEAD: usize = 32 << 10;
    let mut world = filled(LogConfig { read_ahead_bytes: AHEAD, ..LogConfig::small() });
    world.append("b", &[b'x'; 12_000]);
    for _ in 0..300 {
        world.append("a", &[b'x'; 600]);
        world.settle();
    }
    let slot = world.open("a");
    let Read::Cold(ticket) = world.log.read(slot, 5) else { panic!("not cold") };
    assert_eq!(longest_read(&mut world), AHEAD);
    world.log.release(ticket);
    let Read::Cold(ticket) = world.log.read_lone(slot, 500) else { panic!("not cold") };
    assert_eq!(longest_read(&mut world), 8 << 10);
    assert_eq!(offsets(&world, ticket)[0], 500);
    world.log.release(ticket);
    let slot = world.open("b");
    let Read::Cold(ticket) = world.log.read_lone(slot, 0) else { panic!("not cold") };
    let long = longest_read(&mut world);
    assert!((12_000..AHEAD).contains(&long), "{long}");
    let data: Vec<usize> = world
        .log
        .read_records(ticket)
        .unwrap()
        .flat_map(|r| r.events().map(|e| e.data().len()).collect::<Vec<_>>())
        .collect();
    assert_eq!(data, [12_000]);
}
