//! Work around the log: prepared segments, checkpoints, stopping.
//!
//! ```text
//!   Idle ──enough appended, or too much dirty──► Collecting ──► Drafted ──all of it committed──► Making ──► Idle
//!                                                (some a turn)                                     └─ old file removed
//! ```

use super::reader::ReadFault;
use super::{JOB, Log, LogEvent, op_id};
use crate::checkpoint::{CheckpointJob, Draft, Previous};
use crate::commit::Filled;
use crate::disk::{DiskFault, DiskOp, FileId};
use crate::jobs::{Job, JobDone};

/// Partitions collected in one turn.
const COLLECT_PER_TURN: usize = 256;

#[derive(Debug)]
enum Checkpointing {
    Idle,
    Collecting { clean_stop: bool },
    Drafted(Box<Draft>),
    Making { clean_stop: bool },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stop {
    No,
    Asked,
    Done,
}

/// What a job's operation number says it was.
const PREPARE: u64 = 1;
const CHECKPOINT: u64 = 2;
const REMOVE: u64 = 3;

#[derive(Debug)]
pub(super) struct Background {
    checkpointing: Checkpointing,
    next_checkpoint: u32,
    appended_since: u64,
    wanted_now: bool,
    stop: Stop,
    /// A segment could not be prepared for lack of space.
    prepare_no_space: bool,
    retry_asked: bool,
    retry_at_us: Option<u64>,
    pub(super) reported_no_space: bool,
}

impl Background {
    pub(super) fn new(next_checkpoint: u32) -> Background {
        Background {
            checkpointing: Checkpointing::Idle,
            next_checkpoint,
            appended_since: 0,
            wanted_now: false,
            stop: Stop::No,
            prepare_no_space: false,
            retry_asked: false,
            retry_at_us: None,
            reported_no_space: false,
        }
    }

    pub(super) fn appended(&mut self, bytes: usize) {
        self.appended_since += bytes as u64;
    }

    pub(super) fn filled(&mut self, _filled: Filled) {}

    pub(super) fn stopping(&self) -> bool {
        self.stop != Stop::No
    }

    pub(super) fn no_space(&self) -> bool {
        self.prepare_no_space
    }

    pub(super) fn next_deadline_us(&self) -> Option<u64> {
        match (&self.checkpointing, self.retry_asked) {
            (Checkpointing::Collecting { .. }, _) => Some(0),
            (_, true) => Some(self.retry_at_us.unwrap_or(0)),
            _ => None,
        }
    }
}

impl Log {
    /// Makes a checkpoint now, whatever was appended since the last one.
    pub fn checkpoint_now(&mut self) {
        self.background.wanted_now = true;
    }

    /// Appends nothing more; commits what is open, then makes a last checkpoint with a mark that tells the next boot to read
    /// nothing else. [`LogEvent::Stopped`] follows.
    pub fn stop(&mut self) {
        if self.background.stop == Stop::No {
            self.background.stop = Stop::Asked;
        }
    }

    /// [`LogEvent::Stopped`] was reported or is about to be.
    pub fn stopped(&self) -> bool {
        self.background.stop == Stop::Done
    }

    /// One step of each background work; what it asks for is queued.
    pub(super) fn poll_background(&mut self, now_us: u64) {
        if self.pipeline.poisoned().is_some() {
            return;
        }
        if self.background.retry_asked {
            let at = *self.background.retry_at_us.get_or_insert(now_us + self.config.no_space_retry_us);
            if now_us < at {
                return;
            }
            self.background.retry_asked = false;
            self.background.retry_at_us = None;
        }
        if !self.background.stopping()
            && let Some(segment) = self.pipeline.poll_prepare()
        {
            self.job(PREPARE, Job::Prepare { segment, bytes: self.config.segment_bytes });
        }
        self.poll_checkpoint();
    }

    fn poll_checkpoint(&mut self) {
        match &self.background.checkpointing {
            Checkpointing::Idle => {
                let idle_stop = self.background.stop == Stop::Asked && self.pipeline.idle();
                let dirty = self.catalog.stats().dirty;
                let due = self.background.appended_since >= self.config.checkpoint_bytes
                    || dirty >= self.config.partitions_resident_max.div_ceil(2)
                    || (self.background.wanted_now && dirty > 0);
                if idle_stop || (due && self.background.stop == Stop::No) {
                    self.background.appended_since = 0;
                    self.background.wanted_now = false;
                    self.catalog.collect_begin(self.pipeline.position());
                    self.background.checkpointing = Checkpointing::Collecting { clean_stop: idle_stop };
                }
            }
            Checkpointing::Collecting { clean_stop } => {
                let clean_stop = *clean_stop;
                if self.catalog.collect(COLLECT_PER_TURN) {
                    let draft = self.catalog.collect_end(self.pipeline.next_log_seq(), clean_stop);
                    self.background.checkpointing = Checkpointing::Drafted(Box::new(draft));
                    self.poll_checkpoint();
                }
            }
            Checkpointing::Drafted(draft) if draft.through <= self.pipeline.committed() => {
                let clean_stop = draft.clean_stop;
                let making = Checkpointing::Making { clean_stop };
                let Checkpointing::Drafted(draft) = std::mem::replace(&mut self.background.checkpointing, making) else {
                    return;
                };
                let number = self.background.next_checkpoint;
                self.background.next_checkpoint += 1;
                let previous = self.catalog.checkpoint().map(Previous::from);
                let job = CheckpointJob { log: self.log, number, draft: *draft, previous };
                self.job(CHECKPOINT, Job::Checkpoint(Box::new(job)));
            }
            Checkpointing::Drafted(_) | Checkpointing::Making { .. } => {}
        }
    }

    fn job(&mut self, kind: u64, job: Job) {
        let op = op_id(JOB, kind as u16, self.next_op);
        self.next_op += 1;
        self.ops.push_back(DiskOp::Job { op, job });
    }

    pub(super) fn job_done(&mut self, kind: u64, result: Result<JobDone, DiskFault>) {
        match result {
            Ok(JobDone::Prepared { segment }) => {
                self.background.prepare_no_space = false;
                self.pipeline.handle_prepared(Some(segment));
            }
            Ok(JobDone::Checkpointed { index }) => {
                let old = self.catalog.checkpoint().map(|old| old.file());
                let clean_stop = index.clean_stop;
                self.catalog.checkpoint_installed(*index);
                self.loads.forget_absent();
                self.background.checkpointing = Checkpointing::Idle;
                self.stats.checkpoints += 1;
                if let Some(old) = old {
                    self.job(REMOVE, Job::Remove { files: vec![old] });
                }
                if clean_stop {
                    self.background.stop = Stop::Done;
                    self.events.push_back(LogEvent::Stopped);
                }
            }
            Ok(JobDone::Corrupt { file, at }) => {
                self.events.push_back(LogEvent::Damaged(ReadFault::Corrupt { file, at }));
                self.job_failed(kind);
            }
            Ok(JobDone::Sealed { .. } | JobDone::Reclustered { .. } | JobDone::Replaced { .. } | JobDone::Removed { .. }) => {}
            Err(fault) => {
                if kind == PREPARE && fault == DiskFault::NoSpace {
                    self.background.prepare_no_space = true;
                } else if fault != DiskFault::NoSpace {
                    self.events.push_back(LogEvent::Damaged(ReadFault::Disk(fault)));
                }
                self.job_failed(kind);
            }
        }
    }

    /// A job did nothing; it is tried again after a while.
    fn job_failed(&mut self, kind: u64) {
        match kind {
            PREPARE => self.pipeline.handle_prepared(None),
            CHECKPOINT => {
                let clean_stop = matches!(self.background.checkpointing, Checkpointing::Making { clean_stop: true });
                self.catalog.checkpoint_failed();
                self.background.checkpointing = Checkpointing::Idle;
                self.background.wanted_now = true;
                if clean_stop {
                    // All is committed; only the next boot will take longer.
                    self.background.stop = Stop::Done;
                    self.events.push_back(LogEvent::Stopped);
                }
            }
            _ => return,
        }
        self.background.retry_asked = true;
    }

    /// Files that nothing refers to any more.
    pub(super) fn remove(&mut self, files: Vec<FileId>) {
        if !files.is_empty() {
            self.job(REMOVE, Job::Remove { files });
        }
    }
}
