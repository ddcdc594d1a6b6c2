//! The sealed segments of one shard: which there are, where in them an answer lies, and what is to be done with them.
//!
//! ```text
//!   filled, all durable ──► waiting ──Seal──► sealed ──Recluster──► clustered (covers several) ◄─┐ small ones together
//!                                               │                       │
//!                                               └──── retention ────────┴──► Remove
//! ```
//! One job at a time, in this order of urgency: remove what is due, seal (appends wait for it in the end), expire,
//! re-cluster. What is removed is forgotten first: a read that comes too late finds the file missing and is to be asked
//! again; the answer is then the clustered segment, or a gap.
//!
//! A shard reads segments of old logs too, where they hold slices it owns now. It expires only those it **manages**: its own
//! log's, and old logs dealt to it. It rewrites only its own, since nobody else reads them: another shard would take the
//! sources for expired.
//!
//! Memory: filters up to `dedupe_filter_bytes_max`, beyond which the oldest filters are given up (their tables are then
//! read for every new message of an old session); fences and slice ranges of all, about 60 KiB a segment of 64 MiB.

use crate::catalog::Run;
use crate::disk::FileId;
use crate::ids::{HashKey, LogId, LogSeq, SegmentId};
use crate::jobs::{Job, JobDone};
use crate::recluster::{self, ReclusterJob, ReclusterLimits, SegmentMap, Source, is_clustered};
use crate::retention::{self, RetentionLimits};
use crate::sidecar::{BlockAt, Contents, SealJob, SidecarIndex};
use std::collections::{BTreeMap, VecDeque};

/// What a shelf is bound by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShelfLimits {
    /// What is kept.
    pub retention: RetentionLimits,
    /// What is rewritten together; `None`: nothing.
    pub recluster: Option<ReclusterLimits>,
    /// Memory of all dedupe filters.
    pub dedupe_filter_bytes_max: usize,
    /// Time between two looks for expired segments, beside the one after every seal. Milliseconds.
    pub expire_every_ms: u64,
}

/// What a finished job changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ShelfChange {
    /// The sidecar of this segment answers from now on: its live index and hot dedupe keys may go.
    Sealed(SegmentId),
    /// The clustered segment stands in for the sources, which are forgotten.
    Clustered {
        /// New segment.
        segment: SegmentId,
        /// What it stands in for.
        sources: Vec<SegmentId>,
    },
    /// The segment does not verify. It keeps its live index, if it has one, and no job touches it again.
    Damaged {
        /// Segment.
        segment: SegmentId,
        /// Byte position.
        at: u64,
    },
    /// Nothing to be told.
    Nothing,
}

/// One per shard, owned by its log.
#[derive(Debug)]
pub struct Shelf {
    key: HashKey,
    /// The shard's own log.
    log: LogId,
    limits: ShelfLimits,
    map: SegmentMap,
    indexes: BTreeMap<SegmentId, SidecarIndex>,
    /// Old logs this shard expires.
    manages: Vec<LogId>,
    waiting: VecDeque<SealJob>,
    /// Segments a job found unreadable: they are left as they are for a human.
    damaged: Vec<SegmentId>,
    leaving: Vec<FileId>,
    /// Per log: the record after the last one that this process knows removed.
    gone: BTreeMap<LogId, LogSeq>,
    next_clustered: u32,
    running: bool,
    /// Look for expired segments and for neighbours again.
    look: bool,
    looked_ms: u64,
    /// As of the last look.
    replay_from: u32,
    /// Events of this time and later are still needed, Unix ms.
    pinned_ms: u64,
}

impl Shelf {
    /// Takes what recovery found: sidecars of all segments the shard reads, and the next number for a clustered one.
    /// `manages` are old logs beside its own `log`.
    pub fn new(
        key: HashKey,
        log: LogId,
        limits: ShelfLimits,
        manages: Vec<LogId>,
        sealed: Vec<SidecarIndex>,
        next_clustered: u32,
    ) -> Shelf {
        let mut shelf = Shelf {
            key,
            log,
            limits,
            map: SegmentMap::default(),
            indexes: BTreeMap::new(),
            manages,
            waiting: VecDeque::new(),
            damaged: Vec::new(),
            leaving: Vec::new(),
            gone: BTreeMap::new(),
            next_clustered,
            running: false,
            look: true,
            looked_ms: 0,
            replay_from: 0,
            pinned_ms: u64::MAX,
        };
        for index in sealed {
            shelf.put(index);
        }
        shelf
    }

    /// The sealed segment that holds what was appended to `original`; `None` if it is not sealed yet, or gone.
    pub fn find(&self, original: SegmentId) -> Option<&SidecarIndex> {
        self.indexes.get(&self.map.resolve(original)?)
    }

    /// Which file holds what was appended to an original segment.
    pub fn map(&self) -> &SegmentMap {
        &self.map
    }

    /// The sidecar of this very file.
    pub fn index(&self, file: SegmentId) -> Option<&SidecarIndex> {
        self.indexes.get(&file)
    }

    /// All sealed segments, by log and the numbers they cover.
    pub fn segments(&self) -> impl Iterator<Item = &SidecarIndex> {
        self.map.files().filter_map(|file| self.indexes.get(&file))
    }

    /// Blocks that may know `key`, youngest segment first: of the segments in `runs` that are sealed and whose filter does not
    /// exclude it, with an original segment in it. Ask [`SidecarIndex::dedupe_row`] of each in turn until one does.
    pub fn dedupe_blocks(&self, runs: &[Run], key: u128) -> impl Iterator<Item = (SegmentId, &SidecarIndex, BlockAt)> {
        let mut before = None;
        runs.iter().rev().filter_map(move |run| {
            let index = self.find(run.segment)?;
            // Runs of originals that were rewritten together lead to one file.
            let again = before.replace(index.contents.segment) == Some(index.contents.segment);
            let at = index.dedupe_block(key).filter(|_| !again)?;
            Some((run.segment, index, at))
        })
    }

    /// A segment takes no more records, and all of them are durable.
    pub fn filled(&mut self, segment: SegmentId, end: u64) {
        self.waiting.push_back(SealJob { segment, salt: self.key.segment_salt(segment), end });
    }

    /// Segments waiting for their sidecar.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Next job, if none is running. `open_bytes` are those of segments not sealed yet; recovery would read from segment
    /// number `replay_from` of the own log on; `now_ms` is wall time.
    pub fn poll_job(&mut self, now_ms: u64, open_bytes: u64, replay_from: u32) -> Option<Job> {
        if self.running {
            return None;
        }
        // A new checkpoint frees segments that a recovery would have replayed.
        let due = self.look
            || replay_from != self.replay_from
            || now_ms.saturating_sub(self.looked_ms) >= self.limits.expire_every_ms;
        if due && self.waiting.is_empty() {
            (self.look, self.looked_ms, self.replay_from) = (false, now_ms, replay_from);
            self.expire(now_ms, open_bytes, replay_from);
        }
        let job = if !self.leaving.is_empty() {
            Some(Job::Remove { files: std::mem::take(&mut self.leaving) })
        } else if let Some(seal) = self.waiting.front() {
            Some(Job::Seal(*seal))
        } else if due {
            self.recluster(replay_from).map(Job::Recluster)
        } else {
            None
        };
        self.running = job.is_some();
        job
    }

    /// When [`Shelf::poll_job`] has something to do without any other call, wall time.
    pub fn next_look_ms(&self) -> u64 {
        self.looked_ms.saturating_add(self.limits.expire_every_ms)
    }

    /// A job of this shelf ended.
    pub fn job_done(&mut self, done: JobDone) -> ShelfChange {
        self.running = false;
        match done {
            JobDone::Sealed { index } => {
                let segment = index.contents.segment;
                self.waiting.retain(|job| job.segment != segment);
                self.look = true;
                self.put(*index);
                ShelfChange::Sealed(segment)
            }
            JobDone::Reclustered { index, sources } => {
                let segment = index.contents.segment;
                self.look = true;
                self.put(*index);
                ShelfChange::Clustered { segment, sources }
            }
            JobDone::Corrupt { file: FileId::Segment(segment), at } => {
                self.waiting.retain(|job| job.segment != segment);
                self.damaged.push(segment);
                self.look = true;
                ShelfChange::Damaged { segment, at }
            }
            _ => ShelfChange::Nothing,
        }
    }

    /// A job of this shelf could not be done (no space, damage): it changed nothing. What waits is asked for again by the next
    /// [`Shelf::poll_job`], which the caller delays; a rewriting only when there is a new reason.
    pub fn job_failed(&mut self) {
        self.running = false;
    }

    /// A read found the file missing: its manager removed it. True if that was news.
    pub fn missing(&mut self, file: SegmentId) -> bool {
        self.map.remove(file);
        self.forget(file)
    }

    /// Whether records of `log` from `log_seq` on were removed in the life of this process. A mere jump in what the shelf
    /// holds proves nothing: of an old log it has only segments with slices of its own shard.
    pub fn is_gone(&self, log: LogId, log_seq: LogSeq) -> bool {
        self.gone.get(&log).is_some_and(|end| log_seq < *end)
    }

    fn forget(&mut self, file: SegmentId) -> bool {
        let Some(index) = self.indexes.remove(&file) else { return false };
        let end = self.gone.entry(file.log).or_default();
        *end = (*end).max(index.contents.log_seq_max + 1);
        true
    }

    /// Bytes of sealed segments, and of memory for their indexes and for their filters.
    pub fn bytes(&self) -> (u64, usize, usize) {
        let disk = self.indexes.values().map(|index| index.contents.end).sum();
        let memory = self.indexes.values().map(SidecarIndex::memory_bytes).sum();
        (disk, memory, self.filter_bytes())
    }

    fn filter_bytes(&self) -> usize {
        self.indexes.values().map(SidecarIndex::filter_bytes).sum()
    }

    fn put(&mut self, index: SidecarIndex) {
        let Contents { segment, covers, .. } = index.contents;
        let superseded = self.map.insert(segment, covers);
        self.indexes.insert(segment, index);
        for file in superseded {
            self.indexes.remove(&file);
            self.leave(file);
        }
        let mut over = self.filter_bytes().saturating_sub(self.limits.dedupe_filter_bytes_max);
        let oldest_first = self.map.files();
        for file in oldest_first {
            if over == 0 {
                break;
            }
            if let Some(index) = self.indexes.get_mut(&file) {
                let before = index.filter_bytes();
                index.drop_filter();
                over = over.saturating_sub(before - index.filter_bytes());
            }
        }
    }

    /// The file first, then its sidecar: a segment without one would be sealed again by the next boot.
    fn leave(&mut self, file: SegmentId) {
        self.leaving.extend([FileId::Segment(file), FileId::Sidecar(file)]);
    }

    /// Events of this time and later are still needed: their segments stay. `u64::MAX`: none is.
    pub fn pin(&mut self, from_ms: u64) {
        // What may go now is looked for as after a seal.
        self.look |= from_ms > self.pinned_ms;
        self.pinned_ms = from_ms;
    }

    fn managed(&self) -> Vec<Contents> {
        let manages = |log: LogId| log == self.log || self.manages.contains(&log);
        let contents = self.indexes.values().map(|index| index.contents);
        contents.filter(|contents| manages(contents.segment.log)).collect()
    }

    fn expire(&mut self, now_ms: u64, open_bytes: u64, replay_from: u32) {
        let (from, limits) = ((self.log, replay_from), self.limits.retention);
        let expired = retention::plan(&self.managed(), open_bytes, now_ms, from, self.pinned_ms, limits);
        for file in expired {
            self.map.remove(file);
            self.forget(file);
            self.leave(file);
        }
    }

    fn recluster(&mut self, replay_from: u32) -> Option<ReclusterJob> {
        let limits = self.limits.recluster?;
        let mut sealed = self.managed();
        sealed.retain(|contents| !self.damaged.contains(&contents.segment));
        let neighbours = recluster::plan(&sealed, self.log, replay_from, limits);
        let (first, last) = (neighbours.first()?, neighbours.last()?);
        let target = SegmentId { log: first.segment.log, number: self.next_clustered };
        assert!(is_clustered(target), "recovery counts clustered segments from bit 31 on");
        // Spent even if the job fails: half a file under the number may exist.
        self.next_clustered += 1;
        let source = |contents: &Contents| Source {
            segment: contents.segment,
            salt: self.key.segment_salt(contents.segment),
            end: contents.end,
        };
        Some(ReclusterJob {
            target,
            salt: self.key.segment_salt(target),
            covers: (first.covers.0, last.covers.1),
            sources: neighbours.iter().map(source).collect(),
            text_record_bytes_max: limits.text_record_bytes_max,
        })
    }
}
