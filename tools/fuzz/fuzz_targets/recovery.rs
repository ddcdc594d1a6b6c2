//! A whole folder with right checksums and anybody's bytes: a boot is refused, or the log that comes of it serves, whatever it
//! is asked, and goes on. No byte of a file stops the server in any other way.
//!
//! ```text
//!   input:  shards u8 · questions u8 · edits of files of the golden folder:  file u8 · block u8 · at u16 · count u8 · bytes …
//!                                                                            file + 128: to another name
//! ```
#![no_main]

#[path = "../../../storage/tests/world/mod.rs"]
mod world;

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use storage::disk::FileId;
use storage::ids::{HashKey, LogId, SegmentId};
use storage::log::{Log, LogConfig, Open, Read, Scan};
use storage::recluster::CLUSTERED;
use storage::recovery::{Folder, dump, recover, verify};
use tidegate_fuzz::{BLOCK, seal_checkpoint, seal_manifest, seal_segment, seal_sidecar};
use world::{Files, KEY, TENANT, World};

/// Smallest segments: a fuzzer's time goes with the bytes of its folder.
fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 24 << 10,
        commit_bytes_max: 8 << 10,
        group_close_bytes: 4 << 10,
        hot_tail_bytes: 72 << 10,
        segment_records_max: 64,
        checkpoint_bytes: 16 << 10,
        recluster_bytes_max: 64 << 10,
        partitions_resident_max: 8,
        read_buffers: 6,
        ..LogConfig::small()
    }
}

/// Appended, sealed and clustered segments, their sidecars, a checkpoint and records behind it.
static GOLDEN: LazyLock<Files> = LazyLock::new(|| {
    let (mut world, _) = World::boot(config(), Files::default());
    for n in 0..10 {
        for session in ["a", "b", "c", "d", "e", "f"] {
            world.append(session, &vec![b'x'; 40 + 13 * n]);
        }
        world.settle();
    }
    world.files
});

/// Names that no folder of its own holds.
const ODD: [FileId; 8] = [
    FileId::Segment(SegmentId { log: LogId(0), number: u32::MAX }),
    FileId::Segment(SegmentId { log: LogId(0), number: CLUSTERED - 1 }),
    FileId::Segment(SegmentId { log: LogId(0), number: 900 }),
    FileId::Sidecar(SegmentId { log: LogId(0), number: u32::MAX }),
    FileId::Sidecar(SegmentId { log: LogId(0), number: 900 }),
    FileId::Checkpoint(LogId(0), u32::MAX),
    FileId::Checkpoint(LogId(9), 1),
    FileId::Segment(SegmentId { log: LogId(9), number: 1 }),
];

fn folder_of(mut input: &[u8]) -> Files {
    let mut files = GOLDEN.clone();
    let names: Vec<FileId> = files.files.keys().copied().collect();
    let mut edited = Vec::new();
    while let [which, block, low, high, count, rest @ ..] = input {
        let name = names[usize::from(which & 127) % names.len()];
        let at = usize::from(*block) * BLOCK + usize::from(u16::from_le_bytes([*low, *high]));
        let (bytes, next) = rest.split_at(usize::from(*count).min(rest.len()));
        input = next;
        if *which >= 128 {
            let moved = files.files.get(&name).cloned().unwrap_or_default();
            let odd = ODD[usize::from(*block) % ODD.len()];
            files.files.insert(odd, moved);
            edited.push(odd);
            continue;
        }
        let Some(file) = files.files.get_mut(&name) else { continue };
        match bytes {
            // Nothing to write: the file ends here; at its start it is gone.
            [] if at == 0 => drop(files.files.remove(&name)),
            [] => file.truncate(at),
            bytes => {
                for (offset, byte) in bytes.iter().enumerate() {
                    if let Some(place) = file.get_mut(at + offset) {
                        *place = *byte;
                    }
                }
            }
        }
        edited.push(name);
    }
    for name in edited {
        let Some(file) = files.files.get_mut(&name) else { continue };
        match name {
            FileId::Segment(_) => seal_segment(file, KEY),
            FileId::Sidecar(_) => seal_sidecar(file),
            FileId::Checkpoint(..) => seal_checkpoint(file),
            FileId::Manifest => seal_manifest(file),
        }
    }
    files
}

/// A log over its folder, as a shard drives it; jobs included.
struct Driver {
    log: Log,
    files: Files,
    now_us: u64,
}

impl Driver {
    fn settle(&mut self) {
        // Jobs that fail are asked for again after a while; nobody waits for that here.
        for _ in 0..64 {
            self.now_us += 1000;
            let mut work = false;
            while let Some(op) = self.log.poll_op(self.now_us) {
                work = true;
                let done = self.files.perform(&mut self.log, op);
                self.log.handle_done(done);
            }
            while self.log.poll_event().is_some() {
                work = true;
            }
            if !work {
                return;
            }
        }
    }

    fn read(&mut self, session: &str, mut next: u64) {
        let id = key_of(&self.files).partition(TENANT, session);
        for _ in 0..24 {
            let Open::Ready(slot) = self.log.open(id, TENANT, session, None) else {
                self.settle();
                continue;
            };
            let partition = self.log.partition(slot);
            std::hint::black_box((partition.first_offset(), partition.committed(), partition.marker("m")));
            match self.log.read(slot, next) {
                Read::Hot(record) => next = see(record).max(next + 1),
                found @ (Read::Cold(ticket) | Read::Ready(ticket)) => {
                    if matches!(found, Read::Cold(_)) {
                        self.settle();
                    }
                    let before = next;
                    match self.log.read_records(ticket) {
                        Ok(records) => records.for_each(|record| next = see(record).max(next)),
                        Err(_) => next += 1,
                    }
                    next = next.max(before + 1);
                    self.log.release(ticket);
                }
                Read::Gap { to } => next = to.max(next + 1),
                Read::Busy => self.settle(),
                Read::End | Read::Fault(_) => return,
            }
        }
    }

    fn scan(&mut self) {
        let mut cursor = self.log.scan_from(|_| Some(0));
        for _ in 0..150 {
            match self.log.scan(cursor) {
                Scan::Hot(record, after) => {
                    see(record);
                    cursor = after;
                }
                Scan::Cold(ticket) => {
                    self.settle();
                    let mut reached = self.log.scan_nothing(ticket);
                    let fault = match self.log.scan_records(ticket) {
                        Ok(records) => {
                            for (record, after) in records {
                                see(record);
                                reached = Some(after);
                            }
                            false
                        }
                        Err(_) => true,
                    };
                    self.log.release(ticket);
                    cursor = if fault { self.log.scan_past(cursor) } else { reached.unwrap_or(cursor) };
                }
                Scan::Skip(after) => cursor = after,
                Scan::Fault(_) => cursor = self.log.scan_past(cursor),
                Scan::Busy => self.settle(),
                Scan::End => return,
            }
        }
    }

    fn append(&mut self, session: &str) {
        let key = key_of(&self.files);
        let id = key.partition(TENANT, session);
        for _ in 0..4 {
            if let Open::Ready(slot) = self.log.open(id, TENANT, session, Some(7)) {
                let events = [world::event("m-new", b"1", key.dedupe(id, 7, "client", "m-new"))];
                let bytes = self.log.bytes_of(slot, &events, &[]);
                std::hint::black_box(self.log.dedupe(slot, 5));
                if self.log.room(bytes) {
                    self.log.append(slot, &events, &[], world::NOW_MS);
                    return;
                }
            }
            self.settle();
        }
    }
}

fn key_of(files: &Files) -> HashKey {
    let manifest = files.files.get(&FileId::Manifest).and_then(|bytes| storage::manifest::Manifest::parse(bytes).ok());
    manifest.map_or(KEY, |manifest| manifest.key)
}

fn see(record: storage::record::RecordView<'_>) -> u64 {
    for event in record.events() {
        std::hint::black_box((event.topic().len(), event.session().len(), event.data().len(), event.offset()));
    }
    record.next_offset()
}

fuzz_target!(|input: &[u8]| {
    let [shards, questions, edits @ ..] = input else { return };
    let files = folder_of(edits);
    if questions & 1 != 0 {
        let _ = std::hint::black_box(verify(&files));
    }
    if questions & 2 != 0 {
        let _ = dump(&files, |_, _, record| {
            see(record);
        });
    }
    let mut booted = files.clone();
    let shards = u16::from(shards % 3) + 1;
    let recovered = match recover(&mut booted, shards, KEY) {
        Ok(recovered) => recovered,
        Err(why) => {
            assert!(!why.to_string().is_empty());
            return;
        }
    };
    // A boot that was repeated finds the same.
    let mut again = booted.clone();
    if let Err(why) = recover(&mut again, shards, KEY) {
        panic!("recovered once, and not a second time: {why}");
    }
    // One of the logs serves: what differs between them is in the folder.
    for recovered in recovered.logs.into_iter().skip(usize::from(questions >> 6)).take(1) {
        let mut driver = Driver { log: Log::new(config(), recovered), files: booted.clone(), now_us: 0 };
        driver.settle();
        for session in ["a", "c", "f"] {
            driver.read(session, u64::from(questions >> 4 & 3));
        }
        if questions & 4 != 0 {
            driver.scan();
        }
        if questions & 8 != 0 {
            driver.append("a");
            driver.settle();
            driver.append("new");
            driver.settle();
            driver.read("a", 20);
        }
        std::hint::black_box(driver.files.list().is_ok());
    }
});
