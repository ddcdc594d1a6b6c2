//! Work off every event's path: what a background executor is given, and what it hands back.
//!
//! ```text
//!   Log ── DiskOp::Job{job} ──► executor:  let mut run = JobRun::new(job); let mut input = vec![];
//!                                          loop { match run.step(&input) {
//!                                              Zero{file, bytes}        create, fill with zeros, sync file and folder
//!                                              Read{file, at, len}      input = bytes read (short at the end of the file)
//!                                              Append{file, bytes}      to FILE.tmp; the first of a job empties it
//!                                              Publish{file}            sync FILE.tmp, rename it to FILE, sync the folder
//!                                              Remove{file}             remove; a file already gone is fine
//!                                              Done(done)               → DiskDone::Job{result: Ok(done)}
//!                                          }}                           any fault → DiskDone::Job{result: Err(fault)}
//! ```
//! A job holds no file, clock or thread: the background thread and the simulator run the same steps and differ only in how
//! they perform one. Each step is durable before the next begins, so a crash between any two of them leaves either the
//! old files, or the new ones, or both; never a mixture that recovery cannot name:
//!
//! | job        | order                                                  | after a crash in the middle |
//! |------------|--------------------------------------------------------|-----------------------------|
//! | Seal       | sidecar published                                      | no sidecar: it is built again |
//! | Checkpoint | new published; old removed by a later `Remove`         | highest whole number wins |
//! | Recluster  | sidecar published → segment published (the switch)     | a sidecar without its segment is removed |
//! | Remove     | one file after the other                               | the rest is removed at boot |
//!
//! **Memory** (`background_bytes_max`): Seal = segment + sidecar (at most a quarter more); Checkpoint = 3 × chunk + the
//! draft, which the catalog bounds by `partitions_resident_max`; Recluster = sources (their sum is bounded by the plan)
//! + one source more while reading + a sidecar + a record of text.

use crate::checkpoint::{CheckpointIndex, CheckpointJob, CheckpointRun};
use crate::disk::FileId;
use crate::ids::SegmentId;
use crate::recluster::{ReclusterJob, ReclusterRun};
use crate::sidecar::{SealJob, SealRun, SidecarIndex};

/// Bytes a job moves in one step where it does not need a whole file.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Background work the log asks for.
#[derive(Debug)]
pub enum Job {
    /// Make a segment file of `bytes` zeros, allocated and synced: a growing file costs milliseconds a commit.
    Prepare {
        /// Segment to make.
        segment: SegmentId,
        /// Its size, a multiple of the block size.
        bytes: u64,
    },
    /// Verify a segment that takes no more records and build its sidecar.
    Seal(SealJob),
    /// Merge the draft with the previous checkpoint into a new one. Start it only when everything the draft saw appended
    /// is committed.
    Checkpoint(Box<CheckpointJob>),
    /// Rewrite several sealed segments as one, sorted by slice and partition.
    Recluster(ReclusterJob),
    /// Replace a small file atomically.
    Replace {
        /// File.
        file: FileId,
        /// Its whole new content.
        bytes: Vec<u8>,
    },
    /// Remove files nothing refers to any more.
    Remove {
        /// Files, in the order of removal.
        files: Vec<FileId>,
    },
}

/// What a job made.
#[derive(Debug)]
pub enum JobDone {
    /// The segment is ready for commits.
    Prepared {
        /// Segment made.
        segment: SegmentId,
    },
    /// The sidecar is durable: keys of its segment may leave the hot dedupe map once this index is in use.
    Sealed {
        /// What stays in memory of it.
        index: Box<SidecarIndex>,
    },
    /// The clustered segment and its sidecar are durable and stand in for the sources: put the index in use, let reads in
    /// flight end, then remove the sources and their sidecars.
    Reclustered {
        /// What stays in memory of its sidecar.
        index: Box<SidecarIndex>,
        /// Segments it stands in for.
        sources: Vec<SegmentId>,
    },
    /// The checkpoint is durable under its name: install it in the catalog, then remove the previous one.
    Checkpointed {
        /// What the catalog needs of it in memory.
        index: Box<CheckpointIndex>,
    },
    /// The file has its new content.
    Replaced {
        /// File.
        file: FileId,
    },
    /// The files are gone.
    Removed {
        /// Files.
        files: Vec<FileId>,
    },
    /// An input does not verify. Nothing was published.
    Corrupt {
        /// Input at fault.
        file: FileId,
        /// Byte position of the first bad structure.
        at: u64,
    },
}

/// One thing for the executor to do, durable before the next step is asked for.
#[derive(Debug)]
pub enum Step<'a> {
    /// Create `file` with `bytes` zeros, really allocated; sync the file and its folder.
    Zero {
        /// File.
        file: FileId,
        /// Size in bytes.
        bytes: u64,
    },
    /// Read up to `len` bytes from `at` and hand them to the next step; fewer only at the end of the file.
    Read {
        /// File.
        file: FileId,
        /// Byte position, a multiple of the block size.
        at: u64,
        /// Bytes, a multiple of the block size.
        len: usize,
    },
    /// Append to the file's temporary (`NAME.tmp`), which the first append of a job creates empty.
    Append {
        /// Final name.
        file: FileId,
        /// Bytes; any length.
        bytes: &'a [u8],
    },
    /// Sync the temporary, rename it to its final name, sync the folder.
    Publish {
        /// Final name.
        file: FileId,
    },
    /// Remove the file; one already gone is no fault.
    Remove {
        /// File.
        file: FileId,
    },
    /// Finished: hand this back.
    Done(JobDone),
}

/// A job being executed. Lives on the executor, one per job.
#[derive(Debug)]
pub struct JobRun {
    state: Run,
}

#[derive(Debug)]
enum Run {
    Prepare { segment: SegmentId, bytes: u64, zeroed: bool },
    Seal(Box<SealRun>),
    Checkpoint(Box<CheckpointRun>),
    Recluster(Box<ReclusterRun>),
    Replace { file: FileId, bytes: Vec<u8>, stage: u8 },
    Remove { files: Vec<FileId>, next: usize },
    Finished,
}

impl JobRun {
    /// Begins a job. Nothing happens until [`JobRun::step`].
    pub fn new(job: Job) -> JobRun {
        let state = match job {
            Job::Prepare { segment, bytes } => Run::Prepare { segment, bytes, zeroed: false },
            Job::Seal(job) => Run::Seal(Box::new(SealRun::new(job))),
            Job::Recluster(job) => Run::Recluster(Box::new(ReclusterRun::new(job))),
            Job::Checkpoint(job) => Run::Checkpoint(Box::new(CheckpointRun::new(*job))),
            Job::Replace { file, bytes } => Run::Replace { file, bytes, stage: 0 },
            Job::Remove { files } => Run::Remove { files, next: 0 },
        };
        JobRun { state }
    }

    /// The next step. `input` is what the previous step read, empty after any other step. After [`Step::Done`] the run
    /// is spent and must not be asked again.
    pub fn step(&mut self, input: &[u8]) -> Step<'_> {
        // Leaving is decided first, so that a finished job gives up its parts by value.
        match &self.state {
            Run::Prepare { zeroed: true, .. } | Run::Replace { stage: 2, .. } => return self.finish(),
            Run::Remove { files, next } if *next == files.len() => return self.finish(),
            _ => {}
        }
        match &mut self.state {
            Run::Prepare { segment, bytes, zeroed } => {
                *zeroed = true;
                Step::Zero { file: FileId::Segment(*segment), bytes: *bytes }
            }
            Run::Seal(run) => run.step(input),
            Run::Checkpoint(run) => run.step(input),
            Run::Recluster(run) => run.step(input),
            Run::Replace { file, bytes, stage } => {
                *stage += 1;
                match *stage {
                    1 => Step::Append { file: *file, bytes },
                    _ => Step::Publish { file: *file },
                }
            }
            Run::Remove { files, next } => {
                *next += 1;
                Step::Remove { file: files[*next - 1] }
            }
            Run::Finished => unreachable!("a finished job was stepped again"),
        }
    }

    fn finish(&mut self) -> Step<'_> {
        Step::Done(match std::mem::replace(&mut self.state, Run::Finished) {
            Run::Prepare { segment, .. } => JobDone::Prepared { segment },
            Run::Replace { file, .. } => JobDone::Replaced { file },
            Run::Remove { files, .. } => JobDone::Removed { files },
            Run::Seal(_) | Run::Checkpoint(_) | Run::Recluster(_) | Run::Finished => {
                unreachable!("only plain jobs finish here")
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::LogId;

    /// The names of the steps a job asks for, none of which reads.
    fn steps(job: Job) -> Vec<String> {
        let mut run = JobRun::new(job);
        let mut steps = vec![];
        loop {
            let step = run.step(&[]);
            steps.push(format!("{step:?}"));
            if matches!(step, Step::Done(_)) {
                return steps;
            }
        }
    }

    #[test]
    fn plain_jobs_are_steps_in_the_order_of_durability() {
        let segment = SegmentId { log: LogId(1), number: 2 };
        let [zero, done] = &steps(Job::Prepare { segment, bytes: 8192 })[..] else { panic!() };
        assert!(zero.starts_with("Zero") && zero.contains("8192") && done.contains("Prepared"));

        let replaced = steps(Job::Replace { file: FileId::Manifest, bytes: vec![7] });
        let [append, publish, done] = &replaced[..] else { panic!("{replaced:?}") };
        assert!(append.starts_with("Append") && append.contains("[7]"));
        assert!(publish.starts_with("Publish") && done.contains("Replaced"));

        let files = vec![FileId::Segment(segment), FileId::Sidecar(segment)];
        let removed = steps(Job::Remove { files });
        let [first, second, done] = &removed[..] else { panic!("{removed:?}") };
        assert!(first.contains("Remove") && first.contains("Segment(") && second.contains("Sidecar("));
        assert!(done.contains("Removed"));
        assert_eq!(steps(Job::Remove { files: vec![] }).len(), 1);
    }
}
