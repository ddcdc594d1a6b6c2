//! A data folder in memory, an executor over it, and a log with a tiny vocabulary: what the tests of this crate share.
#![allow(dead_code, reason = "each test uses its part")]

use std::collections::BTreeMap;
use storage::disk::{DiskDone, DiskFault, DiskOp, FileId};
use storage::ids::{HashKey, LogSeq, Offset};
use storage::jobs::{Job, JobRun, Step};
use storage::log::{Log, LogConfig, LogEvent, Open, PartitionSlot, Read, Scan, Seen};
use storage::record::{DataKind, EventBody, NO_OFFSET};
use storage::recovery::{Folder, Report, recover};

pub const KEY: HashKey = HashKey(11, 22);
pub const TENANT: &str = "acme";
pub const NOW_MS: u64 = 1_700_000_000_000;

/// Files by name, as if all were synced.
#[derive(Default, Clone)]
pub struct Files {
    pub files: BTreeMap<FileId, Vec<u8>>,
    /// What every job ends with from now on, if it is to fail.
    pub job_fault: Option<DiskFault>,
    temporary: BTreeMap<FileId, Vec<u8>>,
}

impl Files {
    /// Does what a job asks, to its end.
    pub fn run_job(&mut self, job: Job) -> storage::jobs::JobDone {
        let mut run = JobRun::new(job);
        let mut input = Vec::new();
        self.temporary.clear();
        loop {
            let step = run.step(&input);
            match step {
                Step::Zero { file, bytes } => {
                    self.files.insert(file, vec![0; bytes as usize]);
                }
                Step::Read { file, at, len } => {
                    let bytes = self.files.get(&file).map_or(&[][..], |bytes| bytes);
                    let at = (at as usize).min(bytes.len());
                    input = bytes[at..(at + len).min(bytes.len())].to_vec();
                }
                Step::Append { file, bytes } => self.temporary.entry(file).or_default().extend_from_slice(bytes),
                Step::Publish { file } => {
                    let bytes = self.temporary.remove(&file).unwrap_or_default();
                    self.files.insert(file, bytes);
                }
                Step::Remove { file } => {
                    self.files.remove(&file);
                }
                Step::Done(done) => return done,
            }
        }
    }

    /// Performs an operation and answers it.
    pub fn perform(&mut self, log: &mut Log, op: DiskOp) -> DiskDone {
        match op {
            DiskOp::Commit { op, segment, at, start, len, .. } => {
                let bytes = log.arena(start, len).to_vec();
                let file = self.files.get_mut(&FileId::Segment(segment)).expect("segments are prepared first");
                file[at as usize..at as usize + len].copy_from_slice(&bytes);
                DiskDone::Commit { op, result: Ok(()) }
            }
            DiskOp::Read { op, file, at, len, slot } => {
                let result = match self.files.get(&file) {
                    None => Err(DiskFault::Missing),
                    Some(bytes) => {
                        let at = (at as usize).min(bytes.len());
                        let found = &bytes[at..(at + len).min(bytes.len())];
                        log.read_buffer_mut(slot)[..found.len()].copy_from_slice(found);
                        Ok(found.len())
                    }
                };
                DiskDone::Read { op, result }
            }
            DiskOp::Job { op, job } => match self.job_fault {
                Some(fault) => DiskDone::Job { op, result: Err(fault) },
                None => DiskDone::Job { op, result: Ok(self.run_job(job)) },
            },
        }
    }
}

impl Folder for Files {
    type Bytes = Vec<u8>;

    fn list(&self) -> Result<Vec<FileId>, DiskFault> {
        Ok(self.files.keys().copied().collect())
    }

    fn read(&self, file: FileId) -> Result<Vec<u8>, DiskFault> {
        self.files.get(&file).cloned().ok_or(DiskFault::Missing)
    }

    fn write_atomic(&mut self, file: FileId, bytes: &[u8]) -> Result<(), DiskFault> {
        self.files.insert(file, bytes.to_vec());
        Ok(())
    }

    fn harden(&mut self, file: FileId, at: u64, bytes: &[u8]) -> Result<(), DiskFault> {
        let file = self.files.get_mut(&file).ok_or(DiskFault::Missing)?;
        assert_eq!(&file[at as usize..at as usize + bytes.len()], bytes, "hardens what it read");
        Ok(())
    }

    fn remove(&mut self, file: FileId) -> Result<(), DiskFault> {
        self.files.remove(&file);
        Ok(())
    }
}

/// A log over such a folder.
pub struct World {
    pub files: Files,
    pub log: Log,
    pub now_us: u64,
    pub events: Vec<LogEvent>,
    /// Times a scan said that history is gone.
    pub skips: usize,
}

impl World {
    pub fn new(log: Log, files: Files) -> World {
        let mut world = World { files, log, now_us: 0, events: vec![], skips: 0 };
        world.settle();
        world
    }

    /// Boots over a folder of one shard.
    pub fn boot(config: LogConfig, mut files: Files) -> (World, Report) {
        let mut recovered = recover(&mut files, 1, KEY).expect("the folder recovers");
        let log = Log::new(config, recovered.logs.remove(0));
        (World::new(log, files), recovered.report)
    }

    /// Performs operations until the log asks for nothing more.
    pub fn settle(&mut self) {
        let mut idle = 0;
        let begun_us = self.now_us;
        while idle < 3 {
            idle += 1;
            if self.turn() {
                idle = 0;
            }
            assert!(self.now_us < begun_us + 100_000_000_000, "the log never comes to rest");
        }
    }

    /// Performs what the log asks for now, a second later. Whether there was anything.
    pub fn turn(&mut self) -> bool {
        let mut busy = false;
        self.now_us += 1_000_000;
        while let Some(op) = self.log.poll_op(self.now_us) {
            busy = true;
            let done = self.files.perform(&mut self.log, op);
            self.log.handle_done(done);
        }
        while let Some(event) = self.log.poll_event() {
            busy = true;
            self.events.push(event);
        }
        busy
    }

    /// Opens a session, making it if need be.
    pub fn open(&mut self, session: &str) -> PartitionSlot {
        let id = KEY.partition(TENANT, session);
        for _ in 0..8 {
            match self.log.open(id, TENANT, session, Some(7)) {
                Open::Ready(slot) => return slot,
                // Full: a checkpoint makes room.
                Open::Loading | Open::Full => self.settle(),
                other => panic!("{other:?}"),
            }
        }
        panic!("{session} never opens");
    }

    /// Appends one event and returns (offset, log_seq). Settles first if there is no room.
    pub fn append(&mut self, session: &str, data: &[u8]) -> (Offset, LogSeq) {
        self.append_all(session, &[data])
    }

    /// Appends several events as one record.
    pub fn append_all(&mut self, session: &str, data: &[&[u8]]) -> (Offset, LogSeq) {
        let slot = self.open(session);
        let partition = self.log.partition(slot);
        let (id, epoch, tail) = (partition.id(), partition.epoch(), partition.tail());
        let ids: Vec<String> = (0..data.len()).map(|at| format!("m-{}", tail + at as u64)).collect();
        let events: Vec<EventBody<'_>> = data
            .iter()
            .zip(&ids)
            .map(|(data, message_id)| {
                let key = KEY.dedupe(id, epoch, "client", message_id);
                event(message_id, data, key)
            })
            .collect();
        let bytes = self.log.bytes_of(slot, &events, &[]);
        if !self.log.room(bytes) {
            self.settle();
            assert!(self.log.room(bytes), "no room for {bytes} bytes after everything settled");
        }
        let slot = self.open(session);
        let appended = self.log.append(slot, &events, &[], NOW_MS);
        (appended.offset, appended.log_seq)
    }

    /// Asks for a dedupe key until there is an answer.
    pub fn seen(&mut self, session: &str, key: u128) -> Seen {
        loop {
            let slot = self.open(session);
            match self.log.dedupe(slot, key) {
                Seen::Looking => self.settle(),
                seen => return seen,
            }
        }
    }

    /// Every event a scan from the beginning shows, as (session, offset).
    pub fn scan_all(&mut self) -> Vec<(String, Offset)> {
        let mut all = vec![];
        let mut cursor = self.log.scan_from(|_| Some(0));
        loop {
            let ticket = match self.log.scan(cursor) {
                Scan::Hot(record, next) => {
                    all.extend(record.events().map(|event| (event.session().to_owned(), event.offset())));
                    cursor = next;
                    continue;
                }
                Scan::Cold(ticket) => ticket,
                Scan::Skip(next) => {
                    assert_ne!(cursor, next, "a skip that leads nowhere");
                    self.skips += 1;
                    cursor = next;
                    continue;
                }
                Scan::End => return all,
                Scan::Busy => {
                    self.settle();
                    continue;
                }
                Scan::Fault(fault) => panic!("{fault}"),
            };
            self.settle();
            cursor = self.log.scan_nothing(ticket).unwrap_or(cursor);
            for (record, next) in self.log.scan_records(ticket).unwrap() {
                all.extend(record.events().map(|event| (event.session().to_owned(), event.offset())));
                cursor = next;
            }
            self.log.release(ticket);
        }
    }

    /// Data of every readable event of a session, from `from` on, with its offset; cold reads are waited for.
    pub fn read_all(&mut self, session: &str, from: Offset) -> Vec<(Offset, Vec<u8>)> {
        let mut all = vec![];
        let mut next = from;
        loop {
            let slot = self.open(session);
            let mut is_ready = false;
            let ticket = match self.log.read(slot, next) {
                Read::Hot(record) => {
                    all.extend(
                        record
                            .events()
                            .filter(|event| event.offset() >= next)
                            .map(|event| (event.offset(), event.data().to_vec())),
                    );
                    next = record.next_offset();
                    continue;
                }
                Read::Cold(ticket) => ticket,
                Read::Ready(ticket) => {
                    is_ready = true;
                    ticket
                }
                Read::Gap { to } => {
                    assert!(to > next, "a gap that leads nowhere");
                    next = to;
                    continue;
                }
                Read::End => return all,
                Read::Busy => {
                    self.settle();
                    continue;
                }
                Read::Fault(fault) => panic!("{fault}"),
            };
            if !is_ready {
                self.settle();
            }
            let before = next;
            for record in self.log.read_records(ticket).unwrap() {
                all.extend(
                    record
                        .events()
                        .filter(|event| event.offset() >= next)
                        .map(|event| (event.offset(), event.data().to_vec())),
                );
                next = record.next_offset();
            }
            assert!(next > before, "a cold read without a record");
            self.log.release(ticket);
        }
    }
}

/// One event of client "client".
pub fn event<'a>(message_id: &'a str, data: &'a [u8], key: u128) -> EventBody<'a> {
    EventBody {
        topic: "chat.message",
        client_id: "client",
        message_id,
        traceparent: "",
        data,
        data_kind: DataKind::Json as u8,
        prev_offset: NO_OFFSET,
        expires_ms: 0,
        producer_epoch: 0,
        producer_seq: NO_OFFSET,
        dedupe_low: key as u64,
        dedupe_high: (key >> 64) as u64,
        body_hash: 5,
    }
}
