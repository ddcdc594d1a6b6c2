//! The background thread: jobs that no event waits for, on one glommio executor for the whole process.
//!
//! ```text
//!   shard 0 ─ Desk ─┐ flume   ┌ lane "prepare"  new segments, many shares: a log waits for them when it rolls
//!   shard 1 ─ Desk ─┼────────►┤
//!   shard … ─ Desk ─┘         └ lane "bulk"     checkpoints, sidecars, re-clustering, removal: few shares
//!        ▲ flume + wake          │
//!        └──── JobAnswer ◄───────┘   one job at a time in each lane
//! ```
//! The thread is bound to no core and runs at a higher nice value than the shards: where every core has a shard it lives
//! off their idle time. A job is a list of steps, each durable before the next (`storage::jobs`), so it may be abandoned
//! between any two of them: that is all that shutdown does.
//!
//! **Bounds.** [`LANE_JOBS_MAX`] jobs wait in a lane, one runs. Memory is that of the running jobs (`storage::jobs` says
//! how much each takes) plus [`IO_BYTES`] per open file.

use super::folder::{DataFolder, temporary_name};
use super::{BLOCK_BYTES, fault_of, fault_of_error, recorder};
use glommio::io::{BufferedFile, DmaBuffer, DmaFile, OpenOptions, ReadResult};
use glommio::{ByteSliceMutExt, Latency, LocalExecutorBuilder, Placement, Shares};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use storage::disk::{DiskFault, FileId, OpId};
use storage::jobs::{Job, JobDone, JobRun, Step};

/// Jobs that wait in one lane. A log has one of each kind in flight, so this is room for every shard of a large host.
pub const LANE_JOBS_MAX: usize = 1024;

/// Bytes of one transfer of a job.
pub const IO_BYTES: usize = 1 << 20;

/// Locked memory that glommio registers for its three rings together; what does not fit comes from the heap.
const REGISTERED_BYTES: usize = 64 << 10;

/// Nice value of the thread: a shard that wants the core gets about nine times its share.
const NICE: i32 = 10;

/// Where jobs go, seen from a shard's executor.
pub trait Background {
    /// Takes a job, or gives it back because there is no room: hand it in again later.
    fn submit(&mut self, op: OpId, job: Job) -> Result<(), Job>;

    /// Next finished job.
    fn poll(&mut self) -> Option<JobAnswer>;
}

/// What became of a job.
#[derive(Debug)]
pub struct JobAnswer {
    /// Whose answer.
    pub op: OpId,
    /// What it made.
    pub result: Result<JobDone, DiskFault>,
    /// Names that now stand for another file or for none: open handles of them are stale.
    pub replaced: Vec<FileId>,
}

/// The thread, as its owner (boot) sees it.
pub struct BackgroundThread {
    lanes: Lanes,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// One shard's end. Moves to the shard's thread.
pub struct Desk {
    lanes: Lanes,
    bell: Arc<dyn Fn() + Send + Sync>,
    answers_in: flume::Sender<JobAnswer>,
    answers: flume::Receiver<JobAnswer>,
}

#[derive(Clone)]
struct Lanes {
    prepare: flume::Sender<Errand>,
    bulk: flume::Sender<Errand>,
}

/// A job with the way back.
struct Task {
    op: OpId,
    job: Job,
    answers: flume::Sender<JobAnswer>,
    bell: Arc<dyn Fn() + Send + Sync>,
}

enum Errand {
    Run(Task),
    Stop,
}

impl BackgroundThread {
    /// Starts the thread over `folder`. Fails where glommio finds no io_uring or too little lockable memory.
    pub fn start(folder: Arc<DataFolder>) -> io::Result<Self> {
        let (prepare, prepare_lane) = flume::bounded(LANE_JOBS_MAX);
        let (bulk, bulk_lane) = flume::bounded(LANE_JOBS_MAX);
        let stop = Arc::new(AtomicBool::new(false));
        let (started, start) = flume::bounded(1);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("background".to_owned()).spawn(move || {
            // SAFETY: setpriority touches no memory; 0 is the calling thread. Failure leaves the priority as it is.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
            let executor = LocalExecutorBuilder::new(Placement::Unbound)
                .name("background")
                .io_memory(REGISTERED_BYTES)
                .ring_depth(16)
                .make();
            let executor = match executor {
                Ok(executor) => executor,
                Err(error) => {
                    let _ = started.send(Err(io::Error::other(format!("background executor: {error}"))));
                    return;
                }
            };
            let _ = started.send(Ok(()));
            executor.run(async move {
                let queue = |shares, name| {
                    glommio::executor().create_task_queue(Shares::Static(shares), Latency::NotImportant, name)
                };
                let (prepare, bulk) = (queue(900, "prepare"), queue(100, "bulk"));
                let serve = |lane, queue| {
                    let work = serve(lane, Arc::clone(&folder), Arc::clone(&stopped));
                    glommio::spawn_local_into(work, queue).expect("the queue was just made").detach()
                };
                let (prepare, bulk) = (serve(prepare_lane, prepare), serve(bulk_lane, bulk));
                prepare.await;
                bulk.await;
            });
        })?;
        start.recv().map_err(|_| io::Error::other("background executor: the thread died"))??;
        Ok(Self { lanes: Lanes { prepare, bulk }, stop, thread: Some(thread) })
    }

    /// An end for one shard; `bell` is rung, from the background thread, when an answer lies ready.
    pub fn desk(&self, bell: impl Fn() + Send + Sync + 'static) -> Desk {
        let (answers_in, answers) = flume::unbounded(); // holds at most the jobs of one log, which the log bounds
        Desk { lanes: self.lanes.clone(), bell: Arc::new(bell), answers_in, answers }
    }

    /// Abandons waiting jobs, and running ones at their next step, and ends the thread.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        // A full lane needs no message: its server looks at the flag before every job.
        let _ = self.lanes.prepare.try_send(Errand::Stop);
        let _ = self.lanes.bulk.try_send(Errand::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the background thread panicked");
        }
    }
}

impl Drop for BackgroundThread {
    fn drop(&mut self) {
        self.end();
    }
}

impl Background for Desk {
    fn submit(&mut self, op: OpId, job: Job) -> Result<(), Job> {
        let lane = if let Job::Prepare { .. } = job { &self.lanes.prepare } else { &self.lanes.bulk };
        let task = Task { op, job, answers: self.answers_in.clone(), bell: Arc::clone(&self.bell) };
        lane.try_send(Errand::Run(task)).map_err(|error| match error.into_inner() {
            Errand::Run(task) => task.job,
            Errand::Stop => unreachable!("a job was sent"),
        })
    }

    fn poll(&mut self) -> Option<JobAnswer> {
        self.answers.try_recv().ok()
    }
}

/// Runs the jobs of one lane, one after the other.
async fn serve(lane: flume::Receiver<Errand>, folder: Arc<DataFolder>, stop: Arc<AtomicBool>) {
    while let Ok(Errand::Run(task)) = lane.recv_async().await {
        let mut files = JobFiles::new(Arc::clone(&folder));
        let result = run_job(task.job, &mut files, &stop).await;
        let replaced = files.finish().await;
        let Some(result) = result else { return };
        if let Err(fault) = result {
            tracing::warn!(?fault, "a background job failed");
        }
        // A shard that is gone needs no answer.
        let _ = task.answers.send(JobAnswer { op: task.op, result, replaced });
        (task.bell)();
    }
}

/// `None`: abandoned.
async fn run_job(job: Job, files: &mut JobFiles, stop: &AtomicBool) -> Option<Result<JobDone, DiskFault>> {
    let mut run = JobRun::new(job);
    let mut input = Vec::new();
    loop {
        if stop.load(Ordering::Acquire) {
            return None;
        }
        let step = run.step(&input);
        let performed = match step {
            Step::Zero { file, bytes } => files.zero(file, bytes).await,
            Step::Read { file, at, len } => {
                input.clear();
                let read = files.read(file, at, len, &mut input).await;
                glommio::yield_if_needed().await;
                match read {
                    Ok(()) => continue,
                    Err(fault) => Err(fault),
                }
            }
            Step::Append { file, bytes } => files.append(file, bytes).await,
            Step::Publish { file } => files.publish(file).await,
            Step::Remove { file } => files.remove(file).await,
            Step::Done(done) => return Some(Ok(done)),
        };
        if let Err(fault) = performed {
            return Some(Err(fault));
        }
        input.clear();
        glommio::yield_if_needed().await;
    }
}

/// The files of one running job.
struct JobFiles {
    folder: Arc<DataFolder>,
    reader: Option<(FileId, JobFile)>,
    drafts: Vec<Draft>,
    replaced: Vec<FileId>,
}

/// A file being made under its temporary name.
struct Draft {
    file: FileId,
    out: JobFile,
    /// Bytes on their way; full ones are written.
    buffer: Vec<u8>,
    written: u64,
}

type GlommioResult<T> = Result<T, glommio::GlommioError<()>>;

fn fault_of_glommio(error: glommio::GlommioError<()>) -> DiskFault {
    fault_of(error.raw_os_error().unwrap_or(libc::EIO))
}

fn sync_fault(fault: DiskFault) -> DiskFault {
    match fault {
        DiskFault::Io { errno } => DiskFault::SyncFailed { errno },
        DiskFault::NoSpace => DiskFault::SyncFailed { errno: libc::ENOSPC },
        fault => fault,
    }
}

impl JobFiles {
    fn new(folder: Arc<DataFolder>) -> Self {
        Self { folder, reader: None, drafts: Vec::new(), replaced: Vec::new() }
    }

    async fn zero(&mut self, file: FileId, bytes: u64) -> Result<(), DiskFault> {
        let path = self.folder.path_of(file);
        self.replaced.push(file);
        let zeroed = zero_file(file, &path, bytes, self.folder.is_direct()).await;
        if let Err(fault) = zeroed {
            // Gives the space back; a file that stays is made anew by the next attempt or removed at boot.
            if glommio::io::remove(&path).await.is_ok() {
                recorder::removed(|| file.file_name());
            }
            return Err(fault);
        }
        self.sync_entries().await
    }

    async fn read(&mut self, file: FileId, at: u64, len: usize, input: &mut Vec<u8>) -> Result<(), DiskFault> {
        if self.reader.as_ref().is_none_or(|(open, _)| *open != file) {
            if let Some((_, before)) = self.reader.take() {
                before.close().await;
            }
            let mut options = OpenOptions::new();
            options.read(true);
            let path = self.folder.path_of(file);
            let opened = JobFile::open(&options, &path, self.folder.is_direct()).await;
            self.reader = Some((file, opened.map_err(fault_of_glommio)?));
        }
        let (_, reader) = self.reader.as_ref().expect("just opened");
        while input.len() < len {
            let want = IO_BYTES.min(len - input.len());
            let bytes = reader.read(at + input.len() as u64, want).await.map_err(fault_of_glommio)?;
            input.extend_from_slice(&bytes);
            // An unaligned or empty read is the end of the file.
            if bytes.is_empty() || !bytes.len().is_multiple_of(BLOCK_BYTES) {
                break;
            }
        }
        Ok(())
    }

    async fn append(&mut self, file: FileId, mut bytes: &[u8]) -> Result<(), DiskFault> {
        let draft = match self.drafts.iter().position(|d| d.file == file) {
            Some(index) => &mut self.drafts[index],
            None => {
                let path = self.folder.temporary_path_of(file);
                let mut options = OpenOptions::new();
                options.write(true).create(true).truncate(true).mode(0o600);
                let out = JobFile::open(&options, &path, self.folder.is_direct()).await;
                let out = out.map_err(fault_of_glommio)?;
                recorder::created(|| temporary_name(file));
                self.drafts.push(Draft { file, out, buffer: Vec::with_capacity(IO_BYTES), written: 0 });
                self.drafts.last_mut().expect("just pushed")
            }
        };
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(IO_BYTES - draft.buffer.len()));
            draft.buffer.extend_from_slice(now);
            bytes = later;
            if draft.buffer.len() == IO_BYTES {
                draft.write().await?;
                draft.written += IO_BYTES as u64;
                draft.buffer.clear();
            }
        }
        Ok(())
    }

    async fn publish(&mut self, file: FileId) -> Result<(), DiskFault> {
        let index = self.drafts.iter().position(|d| d.file == file).expect("a job publishes only what it appended");
        let mut draft = self.drafts.swap_remove(index);
        let length = draft.written + draft.buffer.len() as u64;
        // Direct writes are whole blocks: pad the last one, then cut the file to its length.
        draft.buffer.resize(draft.buffer.len().next_multiple_of(BLOCK_BYTES), 0);
        let mut made = draft.write().await;
        if made.is_ok() {
            made = draft.out.cut_and_sync(length, || temporary_name(file)).await;
        }
        draft.out.close().await;
        let temporary = self.folder.temporary_path_of(file);
        if let Err(fault) = made {
            remove_draft(&self.folder, file).await;
            return Err(fault);
        }
        self.replaced.push(file);
        glommio::io::rename(&temporary, self.folder.path_of(file)).await.map_err(fault_of_glommio)?;
        recorder::renamed(|| temporary_name(file), || file.file_name());
        self.sync_entries().await
    }

    async fn remove(&mut self, file: FileId) -> Result<(), DiskFault> {
        self.replaced.push(file);
        match glommio::io::remove(self.folder.path_of(file)).await.map_err(fault_of_glommio) {
            Ok(()) => {
                recorder::removed(|| file.file_name());
                self.sync_entries().await
            }
            Err(DiskFault::Missing) => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    /// On glommio's blocking thread, as a true fsync: glommio's own directory sync is an fdatasync, which need not
    /// commit a new entry.
    async fn sync_entries(&self) -> Result<(), DiskFault> {
        let folder = Arc::clone(&self.folder);
        let synced = glommio::executor().spawn_blocking(move || folder.sync_entries()).await;
        synced.map_err(|error| sync_fault(fault_of_error(&error)))
    }

    /// Closes everything, removes unpublished drafts and tells which names changed.
    async fn finish(self) -> Vec<FileId> {
        if let Some((_, reader)) = self.reader {
            reader.close().await;
        }
        for draft in self.drafts {
            draft.out.close().await;
            remove_draft(&self.folder, draft.file).await;
        }
        self.replaced
    }
}

impl Draft {
    /// Writes the buffer, which holds whole blocks, at the end of what was written.
    async fn write(&self) -> Result<(), DiskFault> {
        let write = recorder::write_begins(|| temporary_name(self.file), self.written, &self.buffer);
        self.out.write_all(&self.buffer, self.written).await?;
        recorder::write_ends(write);
        Ok(())
    }
}

async fn remove_draft(folder: &DataFolder, file: FileId) {
    if glommio::io::remove(folder.temporary_path_of(file)).await.is_ok() {
        recorder::removed(|| temporary_name(file));
    }
}

async fn zero_file(name: FileId, path: &Path, bytes: u64, direct: bool) -> Result<(), DiskFault> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let file = JobFile::open(&options, path, direct).await.map_err(fault_of_glommio)?;
    recorder::created(|| name.file_name());
    let write = recorder::zeros_begin(|| name.file_name(), 0, bytes);
    let mut zeroed = file.fill_with_zeros(bytes).await;
    if zeroed.is_ok() {
        recorder::write_ends(write);
        zeroed = file.cut_and_sync(bytes, || name.file_name()).await;
    }
    file.close().await;
    zeroed
}

/// One file, direct where the file system can do it.
enum JobFile {
    Direct(DmaFile),
    Buffered(BufferedFile),
}

impl JobFile {
    async fn open(options: &OpenOptions, path: &Path, direct: bool) -> GlommioResult<Self> {
        Ok(if direct {
            JobFile::Direct(options.dma_open(path).await?)
        } else {
            JobFile::Buffered(options.buffered_open(path).await?)
        })
    }

    async fn read(&self, at: u64, len: usize) -> GlommioResult<ReadResult> {
        match self {
            JobFile::Direct(file) => file.read_at_aligned(at, len).await,
            JobFile::Buffered(file) => file.read_at(at, len).await,
        }
    }

    /// Writes whole blocks.
    async fn write_all(&self, bytes: &[u8], at: u64) -> Result<(), DiskFault> {
        let mut moved = 0;
        while moved < bytes.len() {
            let rest = &bytes[moved..];
            let written = match self {
                JobFile::Direct(file) => {
                    let mut buffer: DmaBuffer = file.alloc_dma_buffer(rest.len());
                    buffer.as_bytes_mut().copy_from_slice(rest);
                    file.write_at(buffer, at + moved as u64).await
                }
                JobFile::Buffered(file) => file.write_at(rest.to_vec(), at + moved as u64).await,
            };
            moved = progress(moved, written.map_err(fault_of_glommio)?, bytes.len())?;
        }
        Ok(())
    }

    async fn fill_with_zeros(&self, bytes: u64) -> Result<(), DiskFault> {
        let chunk = IO_BYTES.min(usize::try_from(bytes).unwrap_or(IO_BYTES));
        let zeros = match self {
            JobFile::Direct(file) => {
                let mut zeros = file.alloc_dma_buffer(chunk);
                zeros.memset(0);
                Some(Rc::new(zeros))
            }
            JobFile::Buffered(_) => None,
        };
        let mut at = 0;
        while at < bytes {
            // The last write may reach beyond `bytes`; the file is cut afterwards.
            let written = match (self, &zeros) {
                (JobFile::Direct(file), Some(zeros)) => file.write_rc_at(Rc::clone(zeros), at).await,
                (JobFile::Buffered(file), _) => file.write_at(vec![0; chunk], at).await,
                (JobFile::Direct(_), None) => unreachable!("made above"),
            };
            at += progress(0, written.map_err(fault_of_glommio)?, chunk)? as u64;
        }
        Ok(())
    }

    async fn cut_and_sync(&self, length: u64, name: impl Fn() -> String) -> Result<(), DiskFault> {
        let cut = match self {
            JobFile::Direct(file) => file.truncate(length).await,
            JobFile::Buffered(file) => file.truncate(length).await,
        };
        cut.map_err(fault_of_glommio)?;
        recorder::cut(&name, length);
        let sync = recorder::sync_begins(&name, None);
        let synced = match self {
            JobFile::Direct(file) => file.fdatasync().await,
            JobFile::Buffered(file) => file.fdatasync().await,
        };
        synced.map_err(|error| sync_fault(fault_of_glommio(error)))?;
        recorder::sync_ends(sync);
        Ok(())
    }

    async fn close(self) {
        // Everything that must be durable was synced before: a failed close loses nothing.
        let _ = match self {
            JobFile::Direct(file) => file.close().await,
            JobFile::Buffered(file) => file.close().await,
        };
    }
}

/// Bytes done after a write that may have been short: back to a block boundary, and an error if that is no progress.
fn progress(before: usize, written: usize, len: usize) -> Result<usize, DiskFault> {
    let moved = before + written;
    let whole = if moved >= len { len } else { moved - moved % BLOCK_BYTES };
    if whole == before { Err(DiskFault::Io { errno: libc::EIO }) } else { Ok(whole) }
}
