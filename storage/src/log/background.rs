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
use crate::ids::SegmentId;
use crate::jobs::{Job, JobDone};
use crate::recluster::{self, ReclusterJob, ReclusterLimits, Source};
use crate::retention::{self, RetentionLimits, SEGMENTS_MAX};
use crate::sidecar::{Contents, SealJob, SidecarIndex};
use std::collections::VecDeque;

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
const SEAL: u64 = 4;
const RECLUSTER: u64 = 5;

/// Fewest segments worth re-clustering.
const RECLUSTER_SEGMENTS_MIN: usize = 2;
/// Most at once.
const RECLUSTER_SEGMENTS_MAX: usize = 16;

#[derive(Debug)]
pub(super) struct Background {
    checkpointing: Checkpointing,
    next_checkpoint: u32,
    appended_since: u64,
    wanted_now: bool,
    stop: Stop,
    /// Segments that take no more records and have no sidecar, oldest first.
    filled: VecDeque<Filled>,
    sealing: bool,
    reclustering: bool,
    next_clustered: u32,
    /// A segment was sealed since retention and re-clustering last looked.
    sealed_new: bool,
    /// Latest append, Unix ms: the only wall clock here.
    wall_ms: u64,
    /// A segment could not be prepared for lack of space.
    prepare_no_space: bool,
    retry_asked: bool,
    retry_at_us: Option<u64>,
    pub(super) reported_no_space: bool,
}

impl Background {
    pub(super) fn new(next_checkpoint: u32, next_clustered: u32) -> Background {
        Background {
            checkpointing: Checkpointing::Idle,
            next_checkpoint,
            appended_since: 0,
            wanted_now: false,
            stop: Stop::No,
            filled: VecDeque::new(),
            sealing: false,
            reclustering: false,
            next_clustered,
            sealed_new: true,
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

    pub(super) fn filled(&mut self, filled: Filled) {
        self.filled.push_back(filled);
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
        self.poll_seal();
        self.poll_checkpoint();
        if std::mem::take(&mut self.background.sealed_new) {
            self.retain(self.background.wall_ms);
            self.poll_recluster();
        }
    }

    fn poll_seal(&mut self) {
        if self.background.stop == Stop::Asked
            && self.pipeline.idle()
            && let Some(last) = self.pipeline.leave_segment()
        {
            // So that the next boot need not read it to index it.
            self.background.filled(last);
        }
        if !self.background.sealing
            && let Some(Filled { segment, end }) = self.background.filled.front().copied()
        {
            self.background.sealing = true;
            self.job(SEAL, Job::Seal(SealJob { segment, salt: self.key.segment_salt(segment), end }));
        }
    }

    fn sealed_one(&mut self, index: SidecarIndex) {
        let segment = index.contents.segment;
        self.background.sealing = false;
        self.background.filled.pop_front();
        self.background.sealed_new = true;
        self.map.insert(segment, index.contents.covers);
        self.sealed.insert(segment, index);
        if let Some(at) = self.live.iter().position(|live| live.segment() == segment)
            && let Some(live) = self.live.remove(at)
        {
            self.spare.push(live);
        }
        self.hot_keys.release(segment);
        self.forget_unseen();
        self.bound_filters();
    }

    /// Gives up the oldest filters beyond their budget: lookups stay right and cost a read each.
    pub(super) fn bound_filters(&mut self) {
        let mut bytes: usize = self.sealed.values().map(|index| index.filter_bytes()).sum();
        for index in self.sealed.values_mut() {
            if bytes <= self.config.dedupe_filter_bytes_max {
                break;
            }
            bytes -= index.filter_bytes();
            index.drop_filter();
            bytes += index.filter_bytes();
        }
    }

    /// Removes sealed segments that are too old or too many. The log does so by itself when a segment is sealed; a server
    /// that may be idle for long calls it now and then with its wall clock.
    pub fn retain(&mut self, now_ms: u64) {
        self.background.wall_ms = self.background.wall_ms.max(now_ms);
        let unbounded = |bound: u64| if bound == 0 { u64::MAX } else { bound };
        let limits = RetentionLimits {
            age_ms_max: unbounded(self.config.retention_ms),
            bytes_max: unbounded(self.config.retention_bytes),
            segments_max: SEGMENTS_MAX,
        };
        let (log, shard, shards) = (self.log, u32::from(self.shard), u32::from(self.shards));
        // Segments of an old log are managed by one shard; the others find them gone.
        let managed = |contents: &Contents| contents.segment.log == log || contents.segment.log.0 % shards == shard;
        let sealed: Vec<Contents> =
            self.sealed.values().map(|index| index.contents).filter(|contents| managed(contents)).collect();
        let open_bytes = self.live.len() as u64 * self.config.segment_bytes;
        let removed = retention::plan(&sealed, open_bytes, now_ms, (log, self.replay_from()), limits);
        let mut files = Vec::new();
        for segment in removed {
            self.map.remove(segment);
            self.sealed.remove(&segment);
            files.extend([FileId::Sidecar(segment), FileId::Segment(segment)]);
        }
        self.remove(files);
    }

    /// Segment from which a recovery would replay.
    fn replay_from(&self) -> u32 {
        self.catalog.checkpoint().map_or(0, |index| index.position.segment)
    }

    fn poll_recluster(&mut self) {
        if self.background.reclustering || self.background.stopping() || self.config.recluster_bytes_max == 0 {
            return;
        }
        let sealed: Vec<Contents> = self.sealed.values().map(|index| index.contents).collect();
        let limits = ReclusterLimits {
            segments_min: RECLUSTER_SEGMENTS_MIN,
            segments_max: RECLUSTER_SEGMENTS_MAX,
            bytes_max: self.config.recluster_bytes_max,
        };
        let sources = recluster::plan(&sealed, self.log, self.replay_from(), limits);
        let (Some(first), Some(last)) = (sources.first(), sources.last()) else { return };
        let target = SegmentId { log: self.log, number: self.background.next_clustered };
        let job = ReclusterJob {
            target,
            salt: self.key.segment_salt(target),
            covers: (first.covers.0, last.covers.1),
            sources: sources
                .iter()
                .map(|contents| Source {
                    segment: contents.segment,
                    salt: self.key.segment_salt(contents.segment),
                    end: contents.end,
                })
                .collect(),
        };
        self.background.next_clustered += 1;
        self.background.reclustering = true;
        self.job(RECLUSTER, Job::Recluster(job));
    }

    fn reclustered(&mut self, index: SidecarIndex) {
        self.background.reclustering = false;
        self.background.sealed_new = true;
        let mut files = Vec::new();
        // A source that retention removed meanwhile stays removed in the map: its successor covers a bit more.
        for segment in self.map.insert(index.contents.segment, index.contents.covers) {
            self.sealed.remove(&segment);
            files.extend([FileId::Sidecar(segment), FileId::Segment(segment)]);
        }
        self.sealed.insert(index.contents.segment, index);
        self.remove(files);
        self.bound_filters();
    }

    fn poll_checkpoint(&mut self) {
        match &self.background.checkpointing {
            Checkpointing::Idle => {
                let unsealed = self.background.sealing || !self.background.filled.is_empty();
                let idle_stop = self.background.stop == Stop::Asked && self.pipeline.idle() && !unsealed;
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
                if kind == SEAL {
                    // The segment this log has just filled does not read back: stop promising durability on this disk.
                    self.pipeline.poison(DiskFault::Io { errno: EIO });
                    self.committed(self.pipeline.committed());
                    return;
                }
                self.job_failed(kind);
            }
            Ok(JobDone::Sealed { index }) => self.sealed_one(*index),
            Ok(JobDone::Reclustered { index, .. }) => self.reclustered(*index),
            Ok(JobDone::Replaced { .. } | JobDone::Removed { .. }) => {}
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
            SEAL => self.background.sealing = false,
            RECLUSTER => self.background.reclustering = false,
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
