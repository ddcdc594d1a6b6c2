//! The steady publish path of catalog and dedupe map, under an allocator that counts. A test file of its own: the allocator is
//! the process's, and a test beside it would be counted too.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use storage::catalog::{Catalog, Change, Lookup, ProducerStep};
use storage::dedupe::{HotKeys, SeenEvent};
use storage::ids::{HashKey, LogId, PartitionId, SegmentId};

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

const KEY: HashKey = HashKey(1, 2);
const LOG: LogId = LogId(0);

#[test]
fn a_steady_publish_allocates_nothing() {
    COUNTED.set(true);
    let names: Vec<(String, PartitionId)> =
        (0..100).map(|n| format!("s{n}")).map(|name| (name.clone(), KEY.partition("t", &name))).collect();
    let mut catalog = Catalog::new(LOG, 1000, None);
    catalog.reserve();
    let mut hot = HotKeys::new(8 << 20);
    let mut log_seq = 0;
    let mut publish = |catalog: &mut Catalog, hot: &mut HotKeys, number: u32, id: PartitionId, name: &str| {
        let segment = SegmentId { log: LOG, number };
        let Lookup::Resident(slot) = catalog.lookup(id, "t", name) else { panic!() };
        let key = u128::from(log_seq) << 64 | u128::from(log_seq);
        assert!(hot.get(key).is_none() && hot.room(segment, 1));
        let step = ProducerStep { client_id: "c", epoch: 1, seq: log_seq, offset: log_seq };
        let change = Change { segment, log_seq, count: 1 };
        let appended = catalog.append(slot, change, [("marker", log_seq)], [step]);
        hot.insert(segment, key, SeenEvent { offset: appended.offset, body_hash: 0 });
        catalog.committed(id, 7, appended.offset + 1);
        log_seq += 1;
    };
    for (name, id) in &names {
        catalog.create(*id, "t", name, 7).unwrap();
        publish(&mut catalog, &mut hot, 0, *id, name);
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..100 {
        for (name, id) in &names {
            publish(&mut catalog, &mut hot, 0, *id, name);
        }
    }
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);

    // Another segment: a session's list of runs may move out, and grow once, nothing else.
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for number in 1..5 {
        hot.release(SegmentId { log: LOG, number: number - 1 });
        names.iter().for_each(|(name, id)| publish(&mut catalog, &mut hot, number, *id, name));
    }
    assert!(ALLOCATIONS.load(Ordering::Relaxed) - before <= 3 * names.len() as u64);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    std::hint::black_box(vec![0u8; 64]);
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 1, "the counter is alive");
}
