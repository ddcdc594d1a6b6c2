//! The same cases on the real disk (executor on its own ring, background thread) and on the simulated one: what the
//! simulator proves holds for the server only as far as the two agree.

#[path = "sim/counts.rs"]
#[allow(dead_code)]
mod counts;
#[path = "sim/random.rs"]
#[allow(dead_code)]
mod random;
#[path = "sim/disk.rs"]
#[allow(dead_code)]
mod sim_disk;

use sim_disk::{Answer, Faults, SimDisk};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use storage::disk::{DiskDone, DiskFault, DiskOp, FileId, OpId};
use storage::ids::{LogId, SegmentId};
use storage::jobs::{Job, JobDone};
use storage::recluster::{CLUSTERED, ReclusterJob, Source};
use storage::record::{DataKind, EventBody, NO_OFFSET};
use storage::sidecar::SealJob;
use tidegate::disk::background::{BackgroundThread, Desk};
use tidegate::disk::executor::{Executor, LogMemory, OPEN_FILES_MAX};
use tidegate::disk::folder::{DataFolder, FolderError, file_id};
use tidegate::ring::{Kind, Ring, RingConfig, Waker};

const BLOCK: usize = 4096;
const SEGMENT_BYTES: u64 = 256 << 10;

/// Memory as a log has it: an arena and a few read buffers.
struct Memory {
    blocks: Vec<Block>,
}

#[repr(align(4096))]
#[derive(Clone)]
struct Block(#[allow(dead_code, reason = "read through the slice over all blocks")] [u8; BLOCK]);

const ARENA_BLOCKS: usize = 256;
const BUFFER_BLOCKS: usize = 32;

impl Memory {
    fn new() -> Self {
        Self { blocks: vec![Block([0; BLOCK]); ARENA_BLOCKS + 4 * BUFFER_BLOCKS] }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: blocks are plain bytes without padding, next to each other.
        unsafe { std::slice::from_raw_parts(self.blocks.as_ptr().cast(), self.blocks.len() * BLOCK) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.blocks.as_mut_ptr().cast(), self.blocks.len() * BLOCK) }
    }
}

impl LogMemory for Memory {
    fn arena(&self, start: usize, len: usize) -> &[u8] {
        &self.bytes()[..ARENA_BLOCKS * BLOCK][start..start + len]
    }

    fn read_buffer_mut(&mut self, slot: usize) -> &mut [u8] {
        let from = (ARENA_BLOCKS + slot * BUFFER_BLOCKS) * BLOCK;
        &mut self.bytes_mut()[from..from + BUFFER_BLOCKS * BLOCK]
    }
}

/// A disk with a log's memory beside it.
trait Rig {
    fn memory(&mut self) -> &mut Memory;
    fn perform(&mut self, op: DiskOp);
    fn wait(&mut self) -> DiskDone;
    /// Every file of the folder, whole.
    fn files(&self) -> BTreeMap<FileId, Vec<u8>>;
    /// Names in the folder that are no files of a log.
    fn strays(&self) -> Vec<String>;
    /// No space from now on, or space again. A real disk is as full as it is.
    fn set_full(&mut self, _full: bool) {}
}

struct Simulated {
    disk: SimDisk,
    memory: Memory,
    now_us: u64,
}

impl Simulated {
    fn new(seed: u64) -> Self {
        let faults = Faults { delay_us: 100, ..Faults::default() };
        let (random, damage) = (random::Random::new(seed, "disk"), random::Random::new(seed, "damage"));
        Self { disk: SimDisk::new(random, damage, faults), memory: Memory::new(), now_us: 0 }
    }
}

impl Rig for Simulated {
    fn memory(&mut self) -> &mut Memory {
        &mut self.memory
    }

    fn perform(&mut self, op: DiskOp) {
        let memory = &self.memory;
        self.disk.submit(0, op, self.now_us, |start, len| memory.arena(start, len));
    }

    fn wait(&mut self) -> DiskDone {
        loop {
            match self.disk.poll(self.now_us) {
                Some((_, Answer::Commit { done, start, bytes })) => {
                    assert_eq!(self.memory.arena(start, bytes.len()), bytes);
                    return done;
                }
                Some((_, Answer::Read { done, slot, bytes })) => {
                    self.memory.read_buffer_mut(slot)[..bytes.len()].copy_from_slice(&bytes);
                    return done;
                }
                Some((_, Answer::Job { done })) => return done,
                None => self.now_us = self.disk.next_due_us().expect("something is in flight"),
            }
        }
    }

    fn files(&self) -> BTreeMap<FileId, Vec<u8>> {
        let content = |file| self.disk.content(file).expect("listed").to_vec();
        self.disk.list().into_iter().map(|file| (file, content(file))).collect()
    }

    fn strays(&self) -> Vec<String> {
        self.disk.temporaries().map(FileId::file_name).collect()
    }

    fn set_full(&mut self, full: bool) {
        self.disk.set_full(full);
    }
}

struct Real {
    executor: Executor<Desk>,
    ring: Ring,
    memory: Memory,
    _background: BackgroundThread,
    folder: Folder,
}

/// A folder of its own, gone with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new(base: &std::path::Path, name: &str) -> Self {
        let path = base.join(format!("tidegate-disk-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Real {
    /// Hands on what waits and takes what came back.
    fn turn(&mut self) {
        self.executor.pump(&mut self.ring);
        self.ring.park(10_000).unwrap();
        let mut batch = Vec::new();
        self.ring.reap(&mut batch, 64);
        for completion in &batch {
            match completion.user_data.kind() {
                Kind::Disk => {
                    let token = completion.user_data.generation();
                    self.executor.complete(token, completion.result, &mut self.ring);
                }
                Kind::Control => self.ring.waker_rang(completion),
                kind => panic!("{kind:?} on a ring of files"),
            }
        }
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.folder.0).expect("the folder is there");
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("an ASCII name")).collect()
    }

    fn new(base: &std::path::Path, name: &str) -> Self {
        let folder = Folder::new(base, name);
        let data = Arc::new(DataFolder::open(&folder.0).unwrap());
        let background = BackgroundThread::start(Arc::clone(&data)).unwrap();
        let waker = Waker::new().unwrap();
        let bell = waker.clone();
        let executor = Executor::new(data, background.desk(move || bell.wake()));
        let config =
            RingConfig { entries: 64, direct_slots: 0, recv_buffers: 16, recv_buffer_bytes: 256, io_workers: 2 };
        let ring = Ring::open(&config, waker).unwrap();
        Self { executor, ring, memory: Memory::new(), _background: background, folder }
    }
}

impl Rig for Real {
    fn memory(&mut self) -> &mut Memory {
        &mut self.memory
    }

    fn perform(&mut self, op: DiskOp) {
        self.executor.perform(op, &mut self.memory, &mut self.ring);
    }

    fn wait(&mut self) -> DiskDone {
        // On a busy machine the background thread, which runs at a higher nice value, takes its time.
        let began = std::time::Instant::now();
        while began.elapsed() < std::time::Duration::from_secs(300) {
            self.executor.pump(&mut self.ring);
            if let Some(done) = self.executor.poll_done() {
                return done;
            }
            self.turn();
        }
        panic!("no answer");
    }

    fn files(&self) -> BTreeMap<FileId, Vec<u8>> {
        let named = self.names().into_iter().filter_map(|name| Some((file_id(&name)?, self.folder.0.join(name))));
        named.map(|(file, path)| (file, std::fs::read(path).expect("listed"))).collect()
    }

    fn strays(&self) -> Vec<String> {
        self.names().into_iter().filter(|name| file_id(name).is_none() && name != "LOCK").collect()
    }
}

impl Drop for Real {
    /// The kernel must be done with the memory before it goes.
    fn drop(&mut self) {
        while !self.executor.is_idle() && !std::thread::panicking() {
            // A file that is being closed has no answer to wait for.
            let _ = self.executor.poll_done();
            self.turn();
        }
    }
}

/// The log's side of the conversation, for tests: fills the arena, asks, compares.
struct Log<'a> {
    rig: &'a mut dyn Rig,
    next_op: u64,
}

impl Log<'_> {
    fn op(&mut self) -> OpId {
        self.next_op += 1;
        OpId(self.next_op)
    }

    fn job(&mut self, job: Job) -> Result<JobDone, DiskFault> {
        let op = self.op();
        self.rig.perform(DiskOp::Job { op, job });
        match self.rig.wait() {
            DiskDone::Job { op: answered, result } => {
                assert_eq!(answered, op);
                result
            }
            other => panic!("{other:?}"),
        }
    }

    fn prepare(&mut self, number: u32) {
        let segment = segment(number);
        let done = self.job(Job::Prepare { segment, bytes: SEGMENT_BYTES });
        assert!(matches!(done, Ok(JobDone::Prepared { segment: made }) if made == segment), "{done:?}");
    }

    fn replace(&mut self, file: FileId, bytes: &[u8]) {
        let done = self.job(Job::Replace { file, bytes: bytes.to_vec() });
        assert!(matches!(done, Ok(JobDone::Replaced { file: made }) if made == file), "{done:?}");
    }

    /// Starts a commit of blocks filled with `fill`; the arena place is the position in the segment.
    fn start_commit(&mut self, number: u32, at: usize, blocks: usize, fill: u8, sync: bool) -> OpId {
        let len = blocks * BLOCK;
        self.rig.memory().bytes_mut()[at..at + len].fill(fill);
        let op = self.op();
        self.rig.perform(DiskOp::Commit { op, segment: segment(number), at: at as u64, start: at, len, sync });
        op
    }

    fn commit(&mut self, number: u32, at: usize, blocks: usize, fill: u8) -> Result<(), DiskFault> {
        let op = self.start_commit(number, at, blocks, fill, true);
        match self.rig.wait() {
            DiskDone::Commit { op: answered, result } => {
                assert_eq!(answered, op);
                result
            }
            other => panic!("{other:?}"),
        }
    }

    fn read(&mut self, file: FileId, at: u64, blocks: usize) -> Result<Vec<u8>, DiskFault> {
        let op = self.op();
        self.rig.memory().read_buffer_mut(1).fill(0xee);
        self.rig.perform(DiskOp::Read { op, file, at, len: blocks * BLOCK, slot: 1 });
        match self.rig.wait() {
            DiskDone::Read { op: answered, result } => {
                assert_eq!(answered, op);
                result.map(|bytes| self.rig.memory().read_buffer_mut(1)[..bytes].to_vec())
            }
            other => panic!("{other:?}"),
        }
    }
}

fn segment(number: u32) -> SegmentId {
    SegmentId { log: LogId(7), number }
}

fn file(number: u32) -> FileId {
    FileId::Segment(segment(number))
}

/// A case runs on the simulated disk under several seeds, on the folder for temporary files and on tmpfs.
fn on_every_disk(name: &str, case: impl Fn(&mut Log<'_>)) {
    for seed in 0..20 {
        case(&mut Log { rig: &mut Simulated::new(seed), next_op: 0 });
    }
    let memory = std::path::Path::new("/dev/shm");
    let mut bases = vec![std::env::temp_dir()];
    bases.extend(memory.is_dir().then(|| memory.to_owned()));
    for base in bases {
        case(&mut Log { rig: &mut Real::new(&base, name), next_op: 0 });
    }
}

#[test]
fn a_prepared_segment_is_zeros_of_its_full_size() {
    on_every_disk("prepared", |log| {
        log.prepare(0);
        assert_eq!(log.read(file(0), 0, 16).unwrap(), vec![0; 16 * BLOCK]);
        let near_the_end = SEGMENT_BYTES - 2 * BLOCK as u64;
        assert_eq!(log.read(file(0), near_the_end, 8).unwrap(), vec![0; 2 * BLOCK], "short at the end of the file");
        assert_eq!(log.read(file(0), SEGMENT_BYTES, 1).unwrap(), Vec::<u8>::new(), "nothing behind it");
    });
}

#[test]
fn a_commit_is_read_back_and_touches_nothing_else() {
    on_every_disk("commit", |log| {
        log.prepare(0);
        log.commit(0, BLOCK, 3, 0xa1).unwrap();
        let read = log.read(file(0), 0, 5).unwrap();
        let expected = [vec![0; BLOCK], vec![0xa1; 3 * BLOCK], vec![0; BLOCK]].concat();
        assert!(read == expected);
    });
}

#[test]
fn a_commit_without_sync_is_read_back_too() {
    on_every_disk("unsynced", |log| {
        log.prepare(0);
        let op = log.start_commit(0, 0, 2, 0xb2, false);
        let done = log.rig.wait();
        assert!(matches!(done, DiskDone::Commit { op: answered, result: Ok(()) } if answered == op), "{done:?}");
        assert!(log.read(file(0), 0, 2).unwrap() == vec![0xb2; 2 * BLOCK]);
    });
}

#[test]
fn commits_in_flight_together_are_each_answered_once() {
    on_every_disk("together", |log| {
        log.prepare(0);
        let mut open: Vec<OpId> = (0..16).map(|i| log.start_commit(0, i * 2 * BLOCK, 2, i as u8 + 1, true)).collect();
        while !open.is_empty() {
            match log.rig.wait() {
                DiskDone::Commit { op, result: Ok(()) } => {
                    let index = open.iter().position(|o| *o == op).expect("an open operation, answered once");
                    open.remove(index);
                }
                other => panic!("{other:?}"),
            }
        }
        let read = log.read(file(0), 0, 32).unwrap();
        for (i, block) in read.chunks(2 * BLOCK).enumerate() {
            assert!(block.iter().all(|byte| *byte == i as u8 + 1), "commit {i}");
        }
    });
}

#[test]
fn what_does_not_exist_is_missing() {
    on_every_disk("missing", |log| {
        assert_eq!(log.commit(9, 0, 1, 1), Err(DiskFault::Missing));
        assert_eq!(log.read(file(9), 0, 1), Err(DiskFault::Missing));
        assert_eq!(log.read(FileId::Sidecar(segment(9)), 0, 1), Err(DiskFault::Missing));
        // And is found as soon as it exists: a failed open is not remembered.
        log.prepare(9);
        assert_eq!(log.commit(9, 0, 1, 1), Ok(()));
    });
}

#[test]
fn a_replaced_file_is_the_new_one_for_the_next_read() {
    on_every_disk("replaced", |log| {
        let file = FileId::Sidecar(segment(3));
        log.replace(file, &[1; 10_001]);
        assert!(log.read(file, 0, 8).unwrap() == [1; 10_001], "any length, short at its end");
        assert!(log.read(file, 2 * BLOCK as u64, 1).unwrap() == vec![1; 10_001 - 2 * BLOCK]);
        log.replace(file, &[2; 512]);
        assert!(log.read(file, 0, 8).unwrap() == [2; 512]);
        log.replace(file, &vec![3; 3 << 20]);
        assert!(log.read(file, (3 << 20) - BLOCK as u64, 2).unwrap() == vec![3; BLOCK]);
    });
}

#[test]
fn a_removed_file_is_missing_and_may_be_removed_again() {
    on_every_disk("removed", |log| {
        log.prepare(0);
        log.prepare(1);
        log.commit(0, 0, 1, 5).unwrap();
        log.commit(1, 0, 1, 6).unwrap();
        for _ in 0..2 {
            let done = log.job(Job::Remove { files: vec![file(0)] });
            assert!(matches!(done, Ok(JobDone::Removed { ref files }) if files == &[file(0)]), "{done:?}");
        }
        assert_eq!(log.read(file(0), 0, 1), Err(DiskFault::Missing));
        assert!(log.read(file(1), 0, 1).unwrap() == vec![6; BLOCK]);
        // Its name can be used again, and then means the new file.
        log.prepare(0);
        assert!(log.read(file(0), 0, 1).unwrap() == vec![0; BLOCK]);
    });
}

#[test]
fn more_files_than_may_be_open_are_all_read() {
    on_every_disk("many", |log| {
        let count = OPEN_FILES_MAX as u32 + 40;
        for number in 0..count {
            log.replace(FileId::Sidecar(segment(number)), &[number as u8; BLOCK]);
        }
        // All at once, on one buffer: only the answers count here.
        let mut open = BTreeSet::new();
        for number in 0..count {
            let op = log.op();
            open.insert(op);
            let file = FileId::Sidecar(segment(number));
            log.rig.perform(DiskOp::Read { op, file, at: 0, len: BLOCK, slot: 2 });
        }
        while !open.is_empty() {
            match log.rig.wait() {
                DiskDone::Read { op, result: Ok(BLOCK) } => assert!(open.remove(&op)),
                other => panic!("{other:?}"),
            }
        }
        for number in 0..count {
            assert!(log.read(FileId::Sidecar(segment(number)), 0, 1).unwrap() == vec![number as u8; BLOCK]);
        }
    });
}

#[test]
fn a_segment_prepared_again_is_zeros_again() {
    on_every_disk("again", |log| {
        log.prepare(0);
        log.commit(0, 0, 4, 7).unwrap();
        // What an attempt that failed half way left behind is no better than what was never there.
        log.prepare(0);
        assert!(log.read(file(0), 0, 5).unwrap() == vec![0; 5 * BLOCK]);
        log.commit(0, BLOCK, 1, 8).unwrap();
        assert!(log.read(file(0), 0, 3).unwrap() == [vec![0; BLOCK], vec![8; BLOCK], vec![0; BLOCK]].concat());
    });
}

#[test]
fn a_job_without_its_input_makes_nothing() {
    on_every_disk("no-input", |log| {
        log.prepare(0);
        let before = log.rig.files();
        let seal = |number| Job::Seal(SealJob { segment: segment(number), salt: 1, end: 2 * BLOCK as u64 });
        assert!(matches!(log.job(seal(9)), Err(DiskFault::Missing)), "no such segment");
        let done = log.job(seal(0));
        assert!(matches!(done, Ok(JobDone::Corrupt { file: of, .. }) if of == file(0)), "zeros: {done:?}");
        let source = |number| Source { segment: segment(number), salt: 1, end: 2 * BLOCK as u64 };
        for sources in [vec![source(9), source(10)], vec![source(0), source(0)]] {
            let expected = sources[0].segment;
            let job = ReclusterJob {
                target: segment(CLUSTERED),
                salt: 1,
                covers: (0, 1),
                sources,
                text_record_bytes_max: 1 << 20,
            };
            let done = log.job(Job::Recluster(job));
            match done {
                Err(DiskFault::Missing) => assert_eq!(expected, segment(9)),
                Ok(JobDone::Corrupt { file: of, .. }) => assert_eq!((of, expected), (file(0), segment(0))),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(log.rig.files(), before, "nothing new, nothing changed");
        assert_eq!(log.rig.strays(), Vec::<String>::new(), "no draft is left");
    });
}

/// Whatever order the disk takes them in: a read that crosses a removal or a replacement shows one of the two, whole.
#[test]
fn a_read_beside_a_job_on_its_file_sees_before_or_after() {
    on_every_disk("beside", |log| {
        let sidecar = FileId::Sidecar(segment(0));
        for round in 0..16 {
            log.replace(sidecar, &[1; 4 * BLOCK]);
            let read = log.op();
            log.rig.memory().read_buffer_mut(1).fill(0xee);
            log.rig.perform(DiskOp::Read { op: read, file: sidecar, at: 0, len: 8 * BLOCK, slot: 1 });
            let job = log.op();
            let removes = round % 2 == 0;
            let what = match removes {
                true => Job::Remove { files: vec![sidecar] },
                false => Job::Replace { file: sidecar, bytes: vec![2; 2 * BLOCK] },
            };
            log.rig.perform(DiskOp::Job { op: job, job: what });
            for _ in 0..2 {
                match log.rig.wait() {
                    DiskDone::Job { op, result: Ok(_) } => assert_eq!(op, job),
                    DiskDone::Read { op, result: Err(DiskFault::Missing) } => assert!(op == read && removes),
                    DiskDone::Read { op, result: Ok(bytes) } => {
                        assert_eq!(op, read);
                        let seen = &log.rig.memory().read_buffer_mut(1)[..bytes];
                        assert!(seen == [1; 4 * BLOCK] || (!removes && seen == [2; 2 * BLOCK]), "{bytes} bytes");
                    }
                    other => panic!("{other:?}"),
                }
            }
            // The next read is after the job, wherever the file was open before.
            match log.read(sidecar, 0, 8) {
                Err(DiskFault::Missing) => assert!(removes),
                Ok(bytes) => assert!(!removes && bytes == [2; 2 * BLOCK]),
                Err(other) => panic!("{other:?}"),
            }
        }
    });
}

/// Drives a whole log, one operation at a time: its segments fill, are sealed, checkpointed, rewritten and removed.
/// Every operation and every kind of job in the order a log asks for them; returns the kinds that were seen.
fn drive(log: &mut Log<'_>) -> BTreeSet<&'static str> {
    use storage::ids::HashKey;
    use storage::log::{LogConfig, Open, RecoveredLog};
    let key = HashKey(3, 4);
    let config = LogConfig {
        recluster_bytes_max: 512 << 10,
        retention_bytes: 1 << 20,
        checkpoint_bytes: 32 << 10,
        ..LogConfig::small()
    };
    let mut core = storage::log::Log::new(config, RecoveredLog::empty(key, LogId(7)));
    let (mut seen, mut now_us, mut tail) = (BTreeSet::new(), 0, [0u64; 6]);
    for turn in 0..500u64 {
        let session = (turn % 6) as usize;
        let name = format!("session-{session}");
        let id = key.partition("acme", &name);
        if let Open::Ready(slot) = core.open(id, "acme", &name, Some(7)) {
            let (message_id, data) = (format!("m-{}", tail[session]), vec![b'x'; 300 + (turn as usize * 37) % 1500]);
            let event = EventBody {
                topic: "chat",
                client_id: "client",
                message_id: &message_id,
                traceparent: "",
                data: &data,
                data_kind: DataKind::Json as u8,
                prev_offset: NO_OFFSET,
                expires_ms: 0,
                producer_epoch: 0,
                producer_seq: NO_OFFSET,
                dedupe_low: turn + 1,
                dedupe_high: 1,
                body_hash: 5,
            };
            if core.room(core.bytes_of(slot, &[event], &[])) {
                core.append(slot, &[event], &[], 1_700_000_000_000 + turn);
                tail[session] += 1;
            }
            if turn % 7 == 0 {
                // A key that was never seen: filters and tables of sealed segments are asked.
                core.dedupe(slot, 1u128 << 64 | u128::from(turn / 2));
            }
            if let storage::log::Read::Cold(ticket) = core.read(slot, tail[session] / 2) {
                core.release(ticket);
            }
        }
        now_us += 1_000_000;
        while let Some(op) = core.poll_op(now_us) {
            let done = match op {
                DiskOp::Commit { op, segment, at, start, len, sync } => {
                    seen.insert("commit");
                    log.rig.memory().bytes_mut()[start..start + len].copy_from_slice(core.arena(start, len));
                    log.rig.perform(DiskOp::Commit { op, segment, at, start, len, sync });
                    log.rig.wait()
                }
                DiskOp::Read { op, file, at, len, slot } => {
                    seen.insert("read");
                    log.rig.perform(DiskOp::Read { op, file, at, len, slot: 1 });
                    let done = log.rig.wait();
                    if let DiskDone::Read { result: Ok(bytes), .. } = &done {
                        core.read_buffer_mut(slot)[..*bytes]
                            .copy_from_slice(&log.rig.memory().read_buffer_mut(1)[..*bytes]);
                    }
                    done
                }
                DiskOp::Job { op, job } => {
                    seen.insert(match &job {
                        Job::Prepare { .. } => "prepare",
                        Job::Seal(_) => "seal",
                        Job::Checkpoint(_) => "checkpoint",
                        Job::Recluster(_) => "recluster",
                        Job::Replace { .. } => "replace",
                        Job::Remove { .. } => "remove",
                    });
                    log.rig.perform(DiskOp::Job { op, job });
                    log.rig.wait()
                }
            };
            core.handle_done(done);
        }
        while core.poll_event().is_some() {}
        core.set_wall_ms(1_700_000_000_000 + turn);
    }
    seen
}

/// The same log on every disk leaves the same files, byte for byte.
#[test]
fn a_whole_log_leaves_the_same_bytes_on_every_disk() {
    let expected = ["checkpoint", "commit", "prepare", "read", "recluster", "remove", "seal"];
    let first: std::cell::RefCell<Option<BTreeMap<FileId, Vec<u8>>>> = Default::default();
    on_every_disk("whole", |log| {
        let seen = drive(log);
        assert!(seen.iter().eq(&expected), "{seen:?}");
        assert_eq!(log.rig.strays(), Vec::<String>::new());
        let files = log.rig.files();
        let mut first = first.borrow_mut();
        let first = first.get_or_insert_with(|| files.clone());
        assert!(first.keys().eq(files.keys()), "{:?} {:?}", first.keys(), files.keys());
        for (name, bytes) in &files {
            assert!(first[name] == *bytes, "{name:?}: {} and {} bytes", first[name].len(), bytes.len());
        }
    });
}

/// A disk without space refuses whole jobs, which leave nothing; what was committed stays readable, and with space again
/// all goes on.
fn full_disk(log: &mut Log<'_>) {
    log.prepare(0);
    log.commit(0, 0, 4, 3).unwrap();
    let before = log.rig.files();
    log.rig.set_full(true);
    let prepare = Job::Prepare { segment: segment(1), bytes: 4 * SEGMENT_BYTES };
    assert!(matches!(log.job(prepare), Err(DiskFault::NoSpace)));
    let replace = Job::Replace { file: FileId::Sidecar(segment(0)), bytes: vec![5; 4 * SEGMENT_BYTES as usize] };
    assert!(matches!(log.job(replace), Err(DiskFault::NoSpace)));
    assert!(log.read(file(0), 0, 4).unwrap() == vec![3; 4 * BLOCK], "reads go on");
    let strays = log.rig.strays();
    assert!(strays.is_empty(), "left behind: {strays:?}");
    log.rig.set_full(false);
    log.replace(FileId::Sidecar(segment(0)), &[6; 700]);
    log.commit(0, 4 * BLOCK, 1, 4).unwrap();
    let after = log.rig.files();
    assert_eq!(after.len(), before.len() + 1, "the segment that had no space does not exist");
}

#[test]
fn without_space_jobs_fail_whole_and_reads_go_on() {
    for seed in 0..20 {
        full_disk(&mut Log { rig: &mut Simulated::new(seed), next_op: 0 });
    }
    let Some(small) = SmallDisk::new(2 * SEGMENT_BYTES) else {
        eprintln!("skipped on a real disk: mounting a small tmpfs needs root");
        return;
    };
    full_disk(&mut Log { rig: &mut Real::new(&small.0, "full"), next_op: 0 });
}

/// A tmpfs of so many bytes, unmounted with its owner.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new(bytes: u64) -> Option<Self> {
        let path = std::env::temp_dir().join(format!("tidegate-small-{}", std::process::id()));
        std::fs::create_dir_all(&path).ok()?;
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(&path)
            .stderr(std::process::Stdio::null())
            .status();
        let disk = mounted.is_ok_and(|status| status.success()).then(|| Self(path.clone()));
        if disk.is_none() {
            let _ = std::fs::remove_dir(&path);
        }
        disk
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Of the simulated disk alone: the reason why it exists.
#[test]
fn what_was_answered_survives_a_power_cut_and_what_was_not_may_be_torn() {
    let (mut whole, mut torn, mut lost) = (0, 0, 0);
    for seed in 0..200 {
        let mut rig = Simulated::new(seed);
        let mut log = Log { rig: &mut rig, next_op: 0 };
        log.prepare(0);
        log.replace(FileId::Sidecar(segment(0)), &[8; 700]);
        log.commit(0, 0, 2, 1).unwrap();
        log.start_commit(0, 2 * BLOCK, 2, 2, false);
        log.rig.wait();
        log.start_commit(0, 4 * BLOCK, 2, 3, true);
        rig.disk.crash();
        let now = rig.disk.content(file(0)).expect("a prepared segment exists");
        assert_eq!(now.len(), SEGMENT_BYTES as usize);
        assert!(now[..2 * BLOCK].iter().all(|byte| *byte == 1), "an answered commit is whole");
        assert_eq!(rig.disk.content(FileId::Sidecar(segment(0))), Some(&[8; 700][..]));
        for (part, fill) in [(&now[2 * BLOCK..4 * BLOCK], 2), (&now[4 * BLOCK..6 * BLOCK], 3)] {
            for sector in part.chunks(sim_disk::SECTOR_BYTES) {
                assert!(sector.iter().all(|b| *b == fill) || sector.iter().all(|b| *b == 0), "sectors are atomic");
            }
            match part.iter().filter(|byte| **byte == fill).count() {
                0 => lost += 1,
                count if count == part.len() => whole += 1,
                _ => torn += 1,
            }
        }
    }
    assert!(whole > 20 && torn > 20 && lost > 20, "all three happen: {whole} {torn} {lost}");
}

#[test]
fn open_files_stay_bounded() {
    let mut real = Real::new(&std::env::temp_dir(), "bounded");
    let mut log = Log { rig: &mut real, next_op: 0 };
    for number in 0..OPEN_FILES_MAX as u32 * 2 {
        log.replace(FileId::Sidecar(segment(number)), &[0; BLOCK]);
        log.read(FileId::Sidecar(segment(number)), 0, 1).unwrap();
    }
    assert!(real.executor.open_files() <= OPEN_FILES_MAX);
}

#[test]
fn a_second_server_is_told_who_holds_the_folder() {
    let real = Real::new(&std::env::temp_dir(), "locked");
    match DataFolder::open(&real.folder.0) {
        Err(error @ FolderError::Locked { holder, .. }) => {
            assert_eq!(holder, Some(std::process::id()));
            let line = error.to_string();
            assert!(!line.contains('\n') && line.contains("--data"), "{line}");
        }
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn a_folder_is_private_and_loses_half_made_files_at_boot() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new(&std::env::temp_dir(), "tidy");
    drop(DataFolder::open(&folder.0).unwrap());
    assert_eq!(std::fs::metadata(&folder.0).unwrap().permissions().mode() & 0o777, 0o700);
    let half_made = folder.0.join("manifest.tmp");
    std::fs::write(&half_made, b"half").unwrap();
    drop(DataFolder::open(&folder.0).unwrap());
    assert!(!half_made.exists());
}

#[test]
fn somebody_elses_folder_is_refused() {
    let folder = Folder::new(&std::env::temp_dir(), "foreign");
    std::fs::create_dir(&folder.0).unwrap();
    std::fs::write(folder.0.join("thesis.txt"), b"do not touch").unwrap();
    assert!(matches!(DataFolder::open(&folder.0), Err(FolderError::Foreign { name, .. }) if name == "thesis.txt"));
    let file = folder.0.join("thesis.txt");
    assert!(matches!(DataFolder::open(&file), Err(FolderError::Io { .. })));
}

#[test]
fn a_file_name_says_which_file_it_is() {
    for file in
        [file(0), file(u32::MAX), FileId::Sidecar(segment(4)), FileId::Checkpoint(LogId(1), 2), FileId::Manifest]
    {
        assert_eq!(file_id(&file.file_name()), Some(file));
    }
    for name in [
        "",
        "LOCK",
        "manifest.tmp",
        "seg-00000007-0000000g.log",
        "seg-00000007-00000000.idx.tmp",
        "seg-+0000007-00000000.log",
        "ckp-0000000A-00000000.ckp",
    ] {
        assert_eq!(file_id(name), None, "{name}");
    }
}
