//! The simulated disk: one folder, whose files keep what was synced apart from what was only written.
//!
//! ```text
//!   file      now      what a read sees                          names     now       what an open sees
//!             durable  what survives a crash for certain                   durable   what survives for certain
//!             writes   since the last sync, each 512-byte                  changes   since the last sync of the folder,
//!                      sector of each kept or lost by chance                         a prefix or any subset kept
//! ```
//! A write in flight when the node crashes counts like one that was never synced. A sync covers the writes that had
//! completed when it began, and no others. After a failed sync those writes are in limbo: no later sync makes them
//! durable, chance at the crash decides (what Linux does with a page whose writeback failed).

#[path = "disk/damage.rs"]
mod damage;

use super::counts::{Counts, FAULT, WORLD};
use super::random::Random;
use damage::Damage;
use std::collections::BTreeMap;
use storage::disk::{DiskDone, DiskFault, DiskOp, FileId, OpId};
use storage::group::BLOCK_BYTES;
use storage::jobs::{Job, JobDone, JobRun, Step};

/// What a device writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// A name in the folder: of a file or of its temporary.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Name {
    /// Of a file.
    Final(FileId),
    /// Of a file that is being made.
    Temporary(FileId),
}

/// How often the disk misbehaves, per mille of the operations of each kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A commit's write fails with EIO, part of it done.
    pub write_fails: u32,
    /// A sync fails.
    pub sync_fails: u32,
    /// A read fails with EIO.
    pub read_fails: u32,
    /// While the disk is full: a commit fails. New and growing files always do.
    pub full_commit_fails: u32,
    /// Typical time of a write, sync or read, microseconds.
    pub delay_us: u64,
    /// Changes of names that were not synced survive a crash in any combination, not only as a prefix.
    pub names_reorder: bool,
    /// A commit's write also lands, or only lands, somewhere on a sealed file.
    pub misdirected: u32,
    /// The node dies between two pieces of a job, per ten thousand of them.
    pub job_deaths: u32,
}

/// One data folder.
pub struct SimDisk {
    files: BTreeMap<u64, File>,
    names: BTreeMap<Name, u64>,
    names_durable: BTreeMap<Name, u64>,
    name_changes: Vec<NameChange>,
    operations: Vec<Operation>,
    next_id: u64,
    faults: Faults,
    full: bool,
    random: Random,
    /// Dice of the faults that came later, so that the others keep their meaning.
    damage_random: Random,
    damages: Vec<Damage>,
    death_due: bool,
    /// What happened, for the report.
    pub counts: Counts,
}

#[derive(Default, Clone)]
struct File {
    now: Vec<u8>,
    durable: Vec<u8>,
    writes: Vec<Write>,
}

#[derive(Clone)]
struct Write {
    id: u64,
    at: usize,
    bytes: Vec<u8>,
    /// A sync of it failed: no later one covers it.
    limbo: bool,
}

#[derive(Clone, Copy)]
enum NameChange {
    Link(Name, u64),
    Unlink(Name),
    Rename(Name, Name),
}

struct Operation {
    shard: u16,
    op: OpId,
    due_us: u64,
    order: u64,
    stage: Stage,
}

enum Stage {
    Write { file: FileId, at: usize, start: usize, bytes: Vec<u8>, sync: bool },
    Sync { file: u64, through: u64, start: usize, bytes: Vec<u8> },
    Read { file: FileId, at: usize, len: usize, slot: usize },
    Job { kind: &'static str, run: Box<JobRun>, todo: Vec<Task>, input: Vec<u8>, drafts: Vec<Name> },
}

/// How a death in the middle of the job is counted.
fn death_of(job: &Job) -> &'static str {
    match job {
        Job::Prepare { .. } => "death: job, prepare",
        Job::Seal(_) => "death: job, seal",
        Job::Checkpoint(_) => "death: job, checkpoint",
        Job::Recluster(_) => "death: job, recluster",
        Job::Replace { .. } | Job::Remove { .. } => "death: job, remove",
    }
}

/// A step of a job in pieces, between any two of which the node may crash. Done from the back of the list.
enum Task {
    Create(Name),
    Write(Name, Vec<u8>),
    Sync(Name),
    Rename(Name, Name),
    Unlink(Name),
    SyncNames,
    Read { file: FileId, at: usize, len: usize },
}

/// An answer with what the world has to copy or to compare.
#[derive(Debug)]
pub enum Answer {
    /// A commit; the arena must still hold `bytes` at `start`.
    Commit {
        /// Answer.
        done: DiskDone,
        /// Place in the arena.
        start: usize,
        /// Bytes as they were when the operation was given.
        bytes: Vec<u8>,
    },
    /// A read; `bytes` go to the read buffer `slot`.
    Read {
        /// Answer.
        done: DiskDone,
        /// Read buffer.
        slot: usize,
        /// Bytes read.
        bytes: Vec<u8>,
    },
    /// A job.
    Job {
        /// Answer.
        done: DiskDone,
    },
}

impl SimDisk {
    /// An empty folder.
    pub fn new(random: Random, damage_random: Random, faults: Faults) -> Self {
        Self {
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            names_durable: BTreeMap::new(),
            name_changes: Vec::new(),
            operations: Vec::new(),
            next_id: 0,
            faults,
            full: false,
            random,
            damage_random,
            damages: Vec::new(),
            death_due: false,
            counts: Counts::default(),
        }
    }

    /// Another set of faults from now on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// No space left, or space again.
    pub fn set_full(&mut self, full: bool) {
        self.full = full;
    }

    /// Whether the node was to die just now, in the middle of a job.
    pub fn take_death(&mut self) -> bool {
        std::mem::take(&mut self.death_due)
    }

    /// Whether nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.operations.is_empty()
    }

    /// Whether there is no space left.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Files as an open sees them.
    pub fn list(&self) -> Vec<FileId> {
        self.names.keys().filter_map(|name| if let Name::Final(file) = name { Some(*file) } else { None }).collect()
    }

    /// Files that are being made, by the names they will have.
    #[allow(dead_code, reason = "for the conformance suite")]
    pub fn temporaries(&self) -> impl Iterator<Item = FileId> {
        self.names.keys().filter_map(|name| if let Name::Temporary(file) = name { Some(*file) } else { None })
    }

    /// Content as a read sees it.
    pub fn content(&self, file: FileId) -> Option<&[u8]> {
        Some(&self.files[self.names.get(&Name::Final(file))?].now)
    }

    /// Opens the folder as boot does it: no half-made files, and names as they are seen are durable.
    pub fn open(&mut self) {
        self.remove_temporaries();
        self.sync_names();
    }

    /// Replaces a file as boot does it: whole and durable when it returns.
    pub fn write_atomic(&mut self, file: FileId, bytes: &[u8]) {
        let temporary = Name::Temporary(file);
        self.create(temporary);
        self.write(temporary, 0, bytes.to_vec());
        self.sync(temporary);
        self.change_name(NameChange::Rename(temporary, Name::Final(file)));
        self.sync_names();
    }

    /// The same, cut short by a crash in one of its pieces.
    pub fn write_atomic_cut(&mut self, file: FileId, bytes: &[u8]) {
        let temporary = Name::Temporary(file);
        let pieces = self.random.below(4);
        self.create(temporary);
        if pieces > 0 {
            self.write(temporary, 0, bytes.to_vec());
        }
        if pieces > 1 {
            self.sync(temporary);
        }
        if pieces > 2 {
            self.change_name(NameChange::Rename(temporary, Name::Final(file)));
        }
    }

    /// Writes bytes again that a read showed, and with `sync` makes them durable.
    pub fn harden(&mut self, file: FileId, at: usize, bytes: &[u8], sync: bool) {
        let name = Name::Final(file);
        assert_eq!(&self.files[&self.names[&name]].now[at..at + bytes.len()], bytes, "harden changes {file:?}");
        self.write(name, at, bytes.to_vec());
        if sync {
            self.sync(name);
        }
    }

    /// Removes a file as boot does it. Durable only with the next sync of the names.
    pub fn remove(&mut self, file: FileId) {
        if self.names.contains_key(&Name::Final(file)) {
            self.change_name(NameChange::Unlink(Name::Final(file)));
        }
    }

    /// Takes an operation; `arena` gives the bytes a commit names.
    pub fn submit<'a>(&mut self, shard: u16, op: DiskOp, now_us: u64, arena: impl FnOnce(usize, usize) -> &'a [u8]) {
        let (op, stage) = match op {
            DiskOp::Commit { op, segment, at, start, len, sync } => {
                let bytes = arena(start, len).to_vec();
                (op, Stage::Write { file: FileId::Segment(segment), at: at as usize, start, bytes, sync })
            }
            DiskOp::Read { op, file, at, len, slot } => (op, Stage::Read { file, at: at as usize, len, slot }),
            DiskOp::Job { op, job } => {
                let kind = death_of(&job);
                let run = Box::new(JobRun::new(job));
                (op, Stage::Job { kind, run, todo: Vec::new(), input: Vec::new(), drafts: Vec::new() })
            }
        };
        self.schedule(Operation { shard, op, due_us: now_us, order: 0, stage }, now_us);
    }

    /// When the next operation takes a step.
    pub fn next_due_us(&self) -> Option<u64> {
        self.operations.iter().map(|o| o.due_us).min()
    }

    /// The next answer that is ready by `now_us`.
    pub fn poll(&mut self, now_us: u64) -> Option<(u16, Answer)> {
        loop {
            let next = (0..self.operations.len())
                .filter(|&i| self.operations[i].due_us <= now_us)
                .min_by_key(|&i| (self.operations[i].due_us, self.operations[i].order))?;
            let operation = self.operations.swap_remove(next);
            if let Some(answer) = self.step(operation, now_us) {
                return Some(answer);
            }
        }
    }

    /// The process dies. Operations in flight may or may not have reached the kernel; what did is read back by the next
    /// boot, though it is not durable yet.
    pub fn kill(&mut self) {
        self.death_due = false;
        let kept_per_mille = *self.random.pick(&[0, 500, 1000]);
        for operation in std::mem::take(&mut self.operations) {
            match operation.stage {
                Stage::Write { file, at, bytes, .. } => {
                    let first = at <= BLOCK_BYTES;
                    let name =
                        if first { "death: write in flight, first of a segment" } else { "death: write in flight" };
                    self.counts.add(FAULT, name);
                    if let Some(inode) = self.names.get(&Name::Final(file)).copied() {
                        for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                            if self.random.chance(kept_per_mille) {
                                self.write_inode(inode, at + index * SECTOR_BYTES, sector.to_vec());
                            }
                        }
                    }
                }
                Stage::Sync { .. } => self.counts.add(FAULT, "death: sync in flight"),
                Stage::Job { kind, .. } => self.counts.add(FAULT, kind),
                Stage::Read { .. } => {}
            }
        }
    }

    /// The power fails. What was not synced is there, partly there, or not.
    pub fn crash(&mut self) {
        self.kill();
        // One draw for the mood of this crash: nothing survives, everything does, or each piece by itself.
        let kept_per_mille = *self.random.pick(&[0, 0, 100, 500, 500, 900, 1000]);
        let random = &mut self.random;
        let changes = std::mem::take(&mut self.name_changes);
        let prefix = if self.faults.names_reorder { changes.len() } else { random.index(changes.len() + 1) };
        for change in &changes[..prefix] {
            if !self.faults.names_reorder || random.chance(kept_per_mille) {
                apply(&mut self.names_durable, *change);
            }
        }
        self.names = self.names_durable.clone();
        for file in self.files.values_mut() {
            for write in std::mem::take(&mut file.writes) {
                for (index, sector) in write.bytes.chunks(SECTOR_BYTES).enumerate() {
                    if random.chance(kept_per_mille) {
                        put(&mut file.durable, write.at + index * SECTOR_BYTES, sector);
                    }
                }
            }
            file.now = file.durable.clone();
        }
        let names = &self.names;
        self.files.retain(|inode, _| names.values().any(|named| named == inode));
    }

    /// What a real boot does with half-made files.
    fn remove_temporaries(&mut self) {
        let temporaries: Vec<Name> = self.names.keys().filter(|n| matches!(n, Name::Temporary(_))).copied().collect();
        for name in temporaries {
            self.change_name(NameChange::Unlink(name));
        }
    }

    /// A hash of all that a read can see, for the trace.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3Default::new();
        for (name, inode) in &self.names {
            hasher.update(format!("{name:?}").as_bytes());
            // A folder is megabytes, and this runs at each crash: the sum that the processor computes.
            hasher.update(&crc32c::crc32c(&self.files[inode].now).to_le_bytes());
        }
        hasher.digest()
    }

    fn step(&mut self, mut operation: Operation, now_us: u64) -> Option<(u16, Answer)> {
        let (shard, op) = (operation.shard, operation.op);
        match operation.stage {
            Stage::Write { file, at, start, bytes, sync } => {
                let failed = |fault, bytes| {
                    Some((shard, Answer::Commit { done: DiskDone::Commit { op, result: Err(fault) }, start, bytes }))
                };
                let Some(inode) = self.names.get(&Name::Final(file)).copied() else {
                    return failed(DiskFault::Missing, bytes);
                };
                let fault = if self.full && self.random.chance(self.faults.full_commit_fails) {
                    Some(DiskFault::NoSpace)
                } else if self.random.chance(self.faults.write_fails) {
                    Some(DiskFault::Io { errno: libc::EIO })
                } else {
                    None
                };
                if let Some(fault) = fault {
                    let no_space = fault == DiskFault::NoSpace;
                    self.counts.add(FAULT, if no_space { "commit finds no space" } else { "commit's write fails" });
                    let done = self.random.index(bytes.len() / SECTOR_BYTES + 1) * SECTOR_BYTES;
                    self.write_inode(inode, at, bytes[..done].to_vec());
                    return failed(fault, bytes);
                }
                if self.faults.misdirected > 0 && self.damage_random.chance(self.faults.misdirected) {
                    self.misdirect(inode, at, &bytes);
                } else {
                    self.write_inode(inode, at, bytes.clone());
                }
                if !sync {
                    let done = DiskDone::Commit { op, result: Ok(()) };
                    return Some((shard, Answer::Commit { done, start, bytes }));
                }
                operation.stage = Stage::Sync { file: inode, through: self.next_id + 1, start, bytes };
                self.schedule(operation, now_us);
                None
            }
            Stage::Sync { file, through, start, bytes } => {
                let result = self.sync_inode(file, through);
                Some((shard, Answer::Commit { done: DiskDone::Commit { op, result }, start, bytes }))
            }
            Stage::Read { file, at, len, slot } => {
                let read = self.read(file, at, len);
                let bytes = read.clone().unwrap_or_default();
                let done = DiskDone::Read { op, result: read.map(|bytes| bytes.len()) };
                Some((shard, Answer::Read { done, slot, bytes }))
            }
            Stage::Job { kind, mut run, mut todo, mut input, mut drafts } => {
                self.death_due |=
                    self.faults.job_deaths > 0 && self.damage_random.below(10_000) < u64::from(self.faults.job_deaths);
                let mut result = Ok(None);
                match todo.pop() {
                    None => match run.step(&std::mem::take(&mut input)) {
                        Step::Done(done) => result = Ok(Some(done)),
                        step => todo = tasks_of(step),
                    },
                    Some(task) => result = self.perform(task, &mut input, &mut drafts).map(|()| None),
                }
                let result: Result<JobDone, DiskFault> = match result {
                    Ok(None) => {
                        operation.stage = Stage::Job { kind, run, todo, input, drafts };
                        self.schedule(operation, now_us);
                        return None;
                    }
                    Ok(Some(done)) => Ok(done),
                    Err(fault) => {
                        self.counts.add(FAULT, "job fails");
                        self.tidy_after(&drafts);
                        Err(fault)
                    }
                };
                self.counts.add(WORLD, "jobs");
                Some((shard, Answer::Job { done: DiskDone::Job { op, result } }))
            }
        }
    }

    fn perform(&mut self, task: Task, input: &mut Vec<u8>, drafts: &mut Vec<Name>) -> Result<(), DiskFault> {
        match task {
            Task::Create(name) => {
                self.create(name);
                drafts.push(name);
            }
            Task::Write(name, bytes) => {
                if self.full {
                    self.counts.add(FAULT, "job finds no space");
                    return Err(DiskFault::NoSpace);
                }
                if !drafts.contains(&name) {
                    self.create(name); // the first append of a job empties what is left of an earlier attempt
                    drafts.push(name);
                }
                let at = self.files[&self.names[&name]].now.len();
                self.write(name, at, bytes);
            }
            Task::Sync(name) => {
                let inode = self.names[&name];
                return self.sync_inode(inode, self.next_id + 1);
            }
            Task::Rename(from, to) => {
                self.change_name(NameChange::Rename(from, to));
                drafts.retain(|draft| *draft != from);
            }
            Task::Unlink(name) => {
                if self.names.contains_key(&name) {
                    self.change_name(NameChange::Unlink(name));
                }
            }
            Task::SyncNames => {
                if self.random.chance(self.faults.sync_fails) {
                    self.counts.add(FAULT, "sync fails");
                    return Err(DiskFault::SyncFailed { errno: libc::EIO });
                }
                self.sync_names();
            }
            Task::Read { file, at, len } => *input = self.read(file, at, len)?,
        }
        Ok(())
    }

    /// What a failed job leaves: nothing under a temporary name, no half-made segment.
    fn tidy_after(&mut self, drafts: &[Name]) {
        for name in drafts {
            if self.names.contains_key(name) {
                self.change_name(NameChange::Unlink(*name));
            }
        }
    }

    fn read(&mut self, file: FileId, at: usize, len: usize) -> Result<Vec<u8>, DiskFault> {
        if self.random.chance(self.faults.read_fails) {
            self.counts.add(FAULT, "read fails");
            return Err(DiskFault::Io { errno: libc::EIO });
        }
        let now = self.content(file).ok_or(DiskFault::Missing)?;
        let from = at.min(now.len());
        Ok(now[from..(at + len).min(now.len())].to_vec())
    }

    fn schedule(&mut self, mut operation: Operation, now_us: u64) {
        operation.due_us = now_us + self.random.delay(self.faults.delay_us.max(1));
        operation.order = self.take_id();
        self.operations.push(operation);
    }

    fn create(&mut self, name: Name) {
        let inode = self.take_id();
        self.files.insert(inode, File::default());
        self.change_name(NameChange::Link(name, inode));
    }

    fn write(&mut self, name: Name, at: usize, bytes: Vec<u8>) {
        self.write_inode(self.names[&name], at, bytes);
    }

    fn write_inode(&mut self, inode: u64, at: usize, bytes: Vec<u8>) {
        let id = self.take_id();
        let file = self.files.get_mut(&inode).expect("an open file exists");
        put(&mut file.now, at, &bytes);
        file.writes.push(Write { id, at, bytes, limbo: false });
    }

    fn sync(&mut self, name: Name) {
        let file = self.files.get_mut(&self.names[&name]).expect("a named file exists");
        file.durable = file.now.clone();
        file.writes.clear();
    }

    fn sync_inode(&mut self, inode: u64, through: u64) -> Result<(), DiskFault> {
        let failed = self.random.chance(self.faults.sync_fails);
        if failed {
            self.counts.add(FAULT, "sync fails");
        }
        let Some(file) = self.files.get_mut(&inode) else { return Ok(()) };
        for mut write in std::mem::take(&mut file.writes) {
            if write.id >= through || write.limbo {
                file.writes.push(write);
            } else if failed {
                write.limbo = true;
                file.writes.push(write);
            } else {
                put(&mut file.durable, write.at, &write.bytes);
            }
        }
        if failed { Err(DiskFault::SyncFailed { errno: libc::EIO }) } else { Ok(()) }
    }

    fn change_name(&mut self, change: NameChange) {
        apply(&mut self.names, change);
        self.name_changes.push(change);
    }

    fn sync_names(&mut self) {
        self.name_changes.clear();
        self.names_durable = self.names.clone();
    }

    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

fn tasks_of(step: Step<'_>) -> Vec<Task> {
    let mut tasks = match step {
        Step::Zero { file, bytes } => {
            let name = Name::Final(file);
            vec![Task::Create(name), Task::Write(name, vec![0; bytes as usize]), Task::Sync(name), Task::SyncNames]
        }
        Step::Read { file, at, len } => vec![Task::Read { file, at: at as usize, len }],
        Step::Append { file, bytes } => vec![Task::Write(Name::Temporary(file), bytes.to_vec())],
        Step::Publish { file } => {
            let temporary = Name::Temporary(file);
            vec![Task::Sync(temporary), Task::Rename(temporary, Name::Final(file)), Task::SyncNames]
        }
        Step::Remove { file } => vec![Task::Unlink(Name::Final(file)), Task::SyncNames],
        Step::Done(_) => unreachable!("handled by the caller"),
    };
    tasks.reverse();
    tasks
}

fn apply(names: &mut BTreeMap<Name, u64>, change: NameChange) {
    match change {
        NameChange::Link(name, inode) => {
            names.insert(name, inode);
        }
        NameChange::Unlink(name) => {
            names.remove(&name);
        }
        NameChange::Rename(from, to) => {
            if let Some(inode) = names.remove(&from) {
                names.insert(to, inode);
            }
        }
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    if bytes.len() < at + new.len() {
        bytes.resize(at + new.len(), 0);
    }
    bytes[at..at + new.len()].copy_from_slice(new);
}
