//! A steady publish through the whole log (dedupe, room, append, group, commit, walk of what committed) under an allocator that
//! counts. A test file of its own: the allocator is the process's.

mod world;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use storage::disk::{DiskDone, DiskOp};
use storage::log::{LogConfig, LogEvent, Open, Read, Seen};
use world::{Files, KEY, TENANT, World, event};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Of the test's own thread: the harness allocates on another, when the machine is busy at any time.
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTED.try_with(Cell::get) == Ok(true) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_steady_publish_allocates_nothing() {
    COUNTED.set(true);
    let config = LogConfig {
        segment_bytes: 8 << 20,
        segment_records_max: 10_000,
        dedupe_hot_bytes_max: 8 << 20,
        ..LogConfig::small()
    };
    let config = LogConfig { checkpoint_bytes: 1 << 30, ..config };
    let (mut world, _) = World::boot(config, Files::default());
    let names: Vec<String> = (0..20).map(|n| format!("s{n}")).collect();
    for name in &names {
        world.append(name, b"first");
    }
    world.settle();
    let log = &mut world.log;
    let mut now_us = world.now_us;
    let mut turn = |number: u64| {
        let before = log.committed_seq();
        for name in &names {
            let id = KEY.partition(TENANT, name);
            let Open::Ready(slot) = log.open(id, TENANT, name, None) else { panic!() };
            let key = u128::from(number) << 64 | id.0 & u128::from(u64::MAX);
            assert_eq!(log.dedupe(slot, key), Seen::No);
            let events = [event("m", b"{\"text\":\"hello\"}", key)];
            assert!(log.room(log.bytes_of(slot, &events, &[])));
            log.append(slot, &events, &[], 1);
        }
        now_us += 1000;
        while let Some(op) = log.poll_op(now_us) {
            let DiskOp::Commit { op, .. } = op else { panic!("{op:?}") };
            log.handle_done(DiskDone::Commit { op, result: Ok(()) });
        }
        while let Some(event) = log.poll_event() {
            assert!(matches!(event, LogEvent::Committed { .. }));
            assert_eq!(log.committed_records(before).map(|record| record.events().len()).sum::<usize>(), names.len());
        }
        for name in &names {
            let Open::Ready(slot) = log.open(KEY.partition(TENANT, name), TENANT, name, None) else { panic!() };
            let last = log.partition(slot).committed() - 1;
            assert!(matches!(log.read(slot, last), Read::Hot(_)));
        }
    };
    (0..20).for_each(&mut turn);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    (20..200).for_each(&mut turn);
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
}
