//! Work around the log: prepared segments, sidecars, checkpoints, retention, re-clustering, stopping.
//!
//! ```text
//!   segments:    Prepare ─► filled ─► Seal ─► sealed ─┬─► Recluster ─► its sources go
//!                                                      └─► retention: the oldest go
//!   checkpoint:  Idle ──enough appended, or too much dirty──► Collecting ──► Drafted ──all of it committed──► Making ──► Idle
//!                (some a turn) └─ the old file goes
//! ```
//! One job of each kind at a time. A job that fails is tried again after a while; nothing depends on when it succeeds but the
//! bounds: without sidecars appends wait in the end, without checkpoints a restart takes longer.

use super::reader::ReadFault;
use super::{JOB, Log, LogEvent, op_id};
use crate::checkpoint::{CheckpointJob, Draft, Previous};
use crate::commit::Filled;
use crate::disk::{DiskFault, DiskOp, FileId};
use crate::jobs::{Job, JobDone};
use crate::shelf::ShelfChange;

/// Linux's number for "input/output error".
const EIO: i32 = 5;

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
const SHELF: u64 = 4;

#[derive(Debug)]
pub(super) struct Background {
    checkpointing: Checkpointing,
    next_checkpoint: u32,
    appended_since: u64,
    wanted_now: bool,
    stop: Stop,
    /// Latest append, Unix ms: the only wall clock here.
    wall_ms: u64,
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
            wall_ms: 0,
            prepare_no_space: false,
            retry_asked: false,
            retry_at_us: None,
            reported_no_space: false,
        }
    }

    pub(super) fn appended(&mut self, bytes: usize, time_ms: u64) {
        self.appended_since += bytes as u64;
        self.wall_ms = self.wall_ms.max(time_ms);
    }

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
        if self.pipeline.poisoned().is_some() || self.background.stop == Stop::Done {
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
        self.poll_shelf();
        self.poll_checkpoint();
    }

    /// Sealing, removal and re-clustering: what the shelf wants done next.
    fn poll_shelf(&mut self) {
        // A segment is sealed when the next append begins another; but if the log stops (so that the next boot need not read
        // it), or if that append waits for the room which only sealing makes, it is left now.
        if (self.background.stop == Stop::Asked || self.pipeline.rolls_next())
            && let Some(Filled { segment, end }) = self.pipeline.leave_segment()
        {
            self.shelf.filled(segment, end);
        }
        let open_bytes = self.live.len() as u64 * self.config.segment_bytes;
        let replay_from = self.catalog.checkpoint().map_or(0, |index| index.position.segment);
        if let Some(job) = self.shelf.poll_job(self.background.wall_ms, open_bytes, replay_from) {
            self.job(SHELF, job);
        }
    }

    fn shelf_done(&mut self, done: JobDone) {
        match self.shelf.job_done(done) {
            ShelfChange::Sealed(segment) => {
                if let Some(at) = self.live.iter().position(|live| live.segment() == segment)
                    && let Some(live) = self.live.remove(at)
                {
                    self.spare.push(live);
                }
                self.hot_keys.release(segment);
                self.forget_unseen();
            }
            ShelfChange::Damaged { segment, at } => {
                let file = FileId::Segment(segment);
                self.events.push_back(LogEvent::Damaged(ReadFault::Corrupt { file, at }));
                if self.live.iter().any(|live| live.segment() == segment) {
                    // What this log has just filled does not read back: promise nothing more on this disk.
                    self.poison(DiskFault::Io { errno: EIO });
                }
            }
            ShelfChange::Clustered { .. } | ShelfChange::Nothing => {}
        }
    }

    /// Tells the log the wall clock, by which sealed segments expire; it also goes by the times of appends. A server that may
    /// be idle for long calls it now and then.
    pub fn set_wall_ms(&mut self, now_ms: u64) {
        self.background.wall_ms = self.background.wall_ms.max(now_ms);
    }

    /// Tells the log that events of this time (Unix ms) and later are still needed, whatever retention says; `None`: none is.
    pub fn keep_from(&mut self, from_ms: Option<u64>) {
        self.shelf.pin(from_ms.unwrap_or(u64::MAX));
    }

    fn poll_checkpoint(&mut self) {
        match &self.background.checkpointing {
            Checkpointing::Idle => {
                let sealed = self.pipeline.writing().is_none() && self.shelf.waiting() == 0;
                let idle_stop = self.background.stop == Stop::Asked && self.pipeline.idle() && sealed;
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
                let Checkpointing::Drafted(draft) = std::mem::replace(&mut self.background.checkpointing, making)
                else {
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
            Ok(done) if kind == SHELF => self.shelf_done(done),
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
            Ok(
                JobDone::Sealed { .. }
                | JobDone::Reclustered { .. }
                | JobDone::Replaced { .. }
                | JobDone::Removed { .. },
            ) => {}
            Err(DiskFault::NoSpace) => {
                self.background.prepare_no_space |= kind == PREPARE;
                self.job_failed(kind);
            }
            // What a failed sync left of the files and their names is unknown, and the next sync would not tell.
            Err(fault @ DiskFault::SyncFailed { .. }) => self.poison(fault),
            // Nothing can be appended any more, and nobody would be told.
            Err(fault) if kind == PREPARE && !self.pipeline.has_segment() => self.poison(fault),
            Err(fault) => {
                self.events.push_back(LogEvent::Damaged(ReadFault::Disk(fault)));
                self.job_failed(kind);
            }
        }
    }

    /// Promises nothing more on this disk, and says so.
    fn poison(&mut self, fault: DiskFault) {
        self.pipeline.poison(fault);
        self.committed(self.pipeline.committed());
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
            SHELF => self.shelf.job_failed(),
            _ => return,
        }
        self.background.retry_asked = true;
    }
}
