//! What observing costs an event, ns, one core, warm cache. `cargo bench --bench tail`.
//!
//! ```text
//!   clock          one reading
//!   steps          the nine readings of a turn, their histograms: a turn's price, whatever it does
//!   event          two readings, its trace, six histograms, its tenant, two sends; commits of 1, 16, 64 events
//!   turn of N      both together, for each of N events
//! ```
//! `share` is of 17.5 µs, what a durable event costs with everything (README). Under `cargo test`, or with `--tiny`, each case runs
//! once over few events, so that it cannot rot. What the numbers do not show: lines of the cache that the rest of an event's way
//! would otherwise have kept; the ring of traces and the histograms are a megabyte a shard, of which an event touches some ten lines.

use shards::ids::ShardId;
use shards::traces::{Stamps, Traces};
use std::hint::black_box;
use std::time::Instant;
use storage::ids::{PartitionId, SliceId};
use storage::record::{
    CommitBody, EventBody, Kind, NO_OFFSET, RecordHead, RecordView, commit_bytes_max, encode_commit,
};
use tidegate::observe::{Step, Tail};
use tidegate::reactor::clock::Clock;

const EVENTS: usize = 16 << 10;
/// CPU of a durable event, ns.
const EVENT_NS: f64 = 17_500.0;
const TENANTS: usize = 8;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let has = |flag: &str| arguments.iter().any(|a| a == flag);
    let (events, rounds) = if has("--bench") && !has("--tiny") { (EVENTS, 9) } else { (256, 1) };
    let records: Vec<Vec<u8>> = (0..events as u64).map(record).collect();
    let views: Vec<RecordView<'_>> =
        records.iter().map(|record| RecordView::checked(record).expect("just encoded")).collect();
    println!("{:<16}{:>10}{:>10}{:>10}", "case", "ns", "least", "share");
    let clock = Clock::start();
    report("clock", rounds, || {
        for _ in 0..events {
            black_box(clock.ns());
        }
        events
    });
    report("steps", rounds, || {
        let mut world = World::new();
        for _ in 0..events {
            world.turn_begins();
            world.steps(&Step::ALL);
            world.tail.turn_worked();
        }
        events
    });
    for group in [1, 16, 64] {
        report(&format!("event, group {group}"), rounds, || {
            let mut world = World::new();
            views.chunks(group).for_each(|group| world.events(group));
            assert_eq!(world.delivered(), views.len() as u64);
            views.len()
        });
    }
    for group in [1, 4, 16, 64] {
        report(&format!("turn of {group}"), rounds, || {
            let mut world = World::new();
            for group in views.chunks(group) {
                world.events(group);
                world.steps(&Step::ALL);
                world.tail.turn_worked();
            }
            assert_eq!(world.delivered(), views.len() as u64);
            views.len()
        });
    }
}

/// Runs a case: it returns how many times it did what is measured.
fn report(name: &str, rounds: usize, mut case: impl FnMut() -> usize) {
    let mut ns: Vec<f64> = (0..rounds)
        .map(|_| {
            let began = Instant::now();
            let times = case();
            began.elapsed().as_nanos() as f64 / times as f64
        })
        .collect();
    ns.sort_by(f64::total_cmp);
    let (median, least) = (ns[ns.len() / 2], ns[0]);
    println!("{name:<16}{median:>10.1}{least:>10.1}{:>9.2}%", median / EVENT_NS * 100.0);
}

/// What a shard has to do with observing, without the shard.
struct World {
    clock: Clock,
    traces: Traces,
    tail: Tail,
    next: u64,
}

impl World {
    fn new() -> Self {
        Self { clock: Clock::start(), traces: Traces::new(0), tail: Tail::new(ShardId(0), 1_000_000), next: 0 }
    }

    fn turn_begins(&mut self) -> u32 {
        self.tail.turn_begins(self.clock.ns(), 0)
    }

    fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            let ns = self.clock.ns();
            self.traces.clock(ns, self.next);
            self.tail.step(*step, ns);
        }
    }

    /// One commit group: each of its events came, was decoded and appended; then all were committed, walked and sent.
    fn events(&mut self, group: &[RecordView<'_>]) {
        let stamp_us = self.turn_begins();
        let came_ns = self.traces.now_ns().max(1);
        for _ in group {
            let begun_ns = self.clock.ns();
            self.traces.clock(begun_ns, self.next);
            self.traces.begin(Stamps { came_ns, begun_ns, ..Stamps::default() });
            let ns = self.clock.ns();
            self.traces.clock(ns, self.next);
            self.traces.stamps_mut().decoded_ns = ns;
            self.next += 1;
            self.traces.appended(self.next);
            self.traces.begin(Stamps::default());
        }
        self.traces.clock(self.clock.ns(), self.next);
        self.traces.closed(self.next);
        self.traces.committed(self.next);
        for record in group {
            if let Some(trace) = self.traces.walk(*record) {
                self.tail.walked(trace, *record);
            }
        }
        let ns = self.clock.ns();
        self.traces.clock(ns, self.next);
        self.tail.delivered(ns);
        self.tail.submits();
        for _ in group {
            // The publisher's acknowledgement and one delivery.
            self.tail.sent(black_box(stamp_us), ns);
            self.tail.sent(black_box(stamp_us), ns);
        }
    }

    fn delivered(&mut self) -> u64 {
        let recorder = self.tail.swap(Box::default());
        recorder.tenants.all().iter().map(|tenant| tenant.way.count()).sum()
    }
}

fn record(log_seq: u64) -> Vec<u8> {
    let data = [b'x'; 256];
    let event = EventBody {
        topic: "chat.message",
        client_id: "client-0007",
        message_id: "01J9ZK3N5T8W2Q",
        traceparent: "",
        data: &data,
        data_kind: 1,
        prev_offset: NO_OFFSET,
        expires_ms: 0,
        producer_epoch: 0,
        producer_seq: NO_OFFSET,
        dedupe_low: 1,
        dedupe_high: 1,
        body_hash: 1,
    };
    // Neighbours are of different tenants, as they would be.
    let tenant = format!("tenant-{}", log_seq as usize * 5 % TENANTS);
    let body = CommitBody { tenant: &tenant, session: "session-0042", events: &[event], markers: &[] };
    let head = RecordHead {
        length: 0,
        kind: Kind::Commit,
        slice: SliceId(318),
        count: 1,
        slice_seq: log_seq + 1,
        partition: PartitionId(318 << 118),
        offset: log_seq,
        epoch: 0x00f1_e2d3_c4b5_a697,
        time_ms: 1_767_225_600_000,
        log_seq,
        body_bytes: 0,
    };
    let mut record = vec![0; commit_bytes_max(&body)];
    let length = encode_commit(&head, &body, &mut record);
    record.truncate(length);
    record
}
