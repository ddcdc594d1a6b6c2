//! The seam to the disk: operations the log asks for, answers it is given, faults it understands.
//!
//! ```text
//!   Log ── poll_op ──► DiskOp ──► executor (shard ring · background thread · simulator)
//!   Log ◄─ handle_done ── DiskDone ◄──────────┘
//! ```
//! The log never touches a file. An executor must: perform `Commit` as one write followed, where `sync` is set, by
//! an fdatasync that starts after that write completed; complete operations in any order; never report `Ok` for a
//! commit whose sync did not return 0; never retry a failed sync.

use crate::ids::{LogId, SegmentId};

/// Names an operation until its [`DiskDone`] came back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct OpId(pub u64);

/// A file of the data folder. Executors map it to a path with [`FileId::file_name`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum FileId {
    /// `seg-LLLLLLLL-NNNNNNNN.log`: records.
    Segment(SegmentId),
    /// `seg-LLLLLLLL-NNNNNNNN.idx`: positions, dedupe filter and table of a sealed segment.
    Sidecar(SegmentId),
    /// `ckp-LLLLLLLL-NNNNNNNN.ckp`: partitions as of a place in the log.
    Checkpoint(LogId, u32),
    /// `manifest`: folder identity, shards, logs. Replaced atomically.
    Manifest,
}

impl FileId {
    /// Name inside the data folder.
    pub fn file_name(self) -> String {
        match self {
            FileId::Segment(s) => format!("seg-{:08x}-{:08x}.log", s.log.0, s.number),
            FileId::Sidecar(s) => format!("seg-{:08x}-{:08x}.idx", s.log.0, s.number),
            FileId::Checkpoint(log, n) => format!("ckp-{:08x}-{n:08x}.ckp", log.0),
            FileId::Manifest => "manifest".to_owned(),
        }
    }
}

/// What the log asks for.
#[derive(Debug)]
pub enum DiskOp {
    /// Write `arena[start..start + len]` at `at` of a prepared segment, then sync its data.
    Commit {
        /// Answer with this.
        op: OpId,
        /// Segment, already created and zeroed by [`Job::Prepare`].
        segment: SegmentId,
        /// Byte position, a multiple of the block size.
        at: u64,
        /// Start in the log's arena (`Log::arena`), a multiple of the block size.
        start: usize,
        /// Bytes, a multiple of the block size.
        len: usize,
        /// fdatasync after the write.
        sync: bool,
    },
    /// Fill `Log::read_buffer_mut(slot)[..len]` from a file. A short read at the end of the file is no fault: the
    /// answer carries the bytes read.
    Read {
        /// Answer with this.
        op: OpId,
        /// File.
        file: FileId,
        /// Byte position, a multiple of the block size.
        at: u64,
        /// Bytes, a multiple of the block size, at most the read buffer.
        len: usize,
        /// Read buffer of the log.
        slot: usize,
    },
    /// Work that is not on any event's path; run it in the background.
    Job {
        /// Answer with this.
        op: OpId,
        /// The work.
        job: crate::jobs::Job,
    },
}

/// What came of a [`DiskOp`].
#[derive(Debug)]
pub enum DiskDone {
    /// Of `Commit`.
    Commit {
        /// Whose answer.
        op: OpId,
        /// Written and, where asked, synced.
        result: Result<(), DiskFault>,
    },
    /// Of `Read`: bytes read.
    Read {
        /// Whose answer.
        op: OpId,
        /// Bytes now in the read buffer.
        result: Result<usize, DiskFault>,
    },
    /// Of `Job`.
    Job {
        /// Whose answer.
        op: OpId,
        /// What the job made.
        result: Result<crate::jobs::JobDone, DiskFault>,
    },
}

/// The world broke. Torn and corrupt bytes are verdicts of recovery and reads, not faults of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskFault {
    /// No space left (ENOSPC, EDQUOT): appends are refused until space returns; reads go on.
    NoSpace,
    /// A sync failed: what the page cache holds is unknown. The log is poisoned and the process restarts.
    SyncFailed {
        /// Operating system error number.
        errno: i32,
    },
    /// The file is gone (retention removed it).
    Missing,
    /// Anything else.
    Io {
        /// Operating system error number.
        errno: i32,
    },
}
