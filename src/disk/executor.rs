//! Carries out a log's operations on the shard's own ring. One per shard, touched only by its thread.
//!
//! ```text
//!   DiskOp::Commit   open? ─► write ──link──► fdatasync ─► DiskDone     O_DIRECT, straight from the log's arena
//!                               │ short: the link breaks before the sync; the rest is written, then synced
//!   DiskOp::Read     open? ─► read … until the end of the file          O_DIRECT, straight into the log's buffer
//!   DiskOp::Job      ───────► background thread ─► DiskDone
//! ```
//! Files are opened and closed through the ring as well: a cold directory or the last close of a removed segment
//! must not stop a core. Open files are kept, at most [`OPEN_FILES_MAX`], the longest unused is closed first.
//!
//! A write and its sync are pushed as one chain ([`DiskRing::push`]): a link that is cut by a submit is no link. An
//! operation that finds every open file in use waits here; [`Executor::pump`] takes it up again.

use super::background::Background;
use super::folder::DataFolder;
use super::{BLOCK_BYTES, fault_of, recorder};
use hashbrown::HashMap;
use io_uring::{opcode, squeue, types};
use slab::Slab;
use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use storage::disk::{DiskDone, DiskFault, DiskOp, FileId, OpId};

/// Files one shard keeps open. A pattern reader that walks old segments needs one at a time, the log two or three.
pub const OPEN_FILES_MAX: usize = 64;

/// Times a write or read that was interrupted before it did anything is tried again.
const INTERRUPTED_MAX: u8 = 16;

/// The part of a ring that the executor needs. The ring gives completions back by token, in any order.
pub trait DiskRing {
    /// Queues a chain of entries, each linked to the next, in one submit; makes room where there is none. The
    /// completion of each is to reach [`Executor::complete`] with its token.
    ///
    /// # Safety
    /// Memory that the entries refer to stays valid, and is left alone, until their completions have been seen.
    unsafe fn push(&mut self, chain: &[(u32, squeue::Entry)]);
}

impl DiskRing for crate::ring::Ring {
    unsafe fn push(&mut self, chain: &[(u32, squeue::Entry)]) {
        // SAFETY: passed on to the caller.
        unsafe { self.push_disk(chain) }
    }
}

/// Memory of a log that the kernel reads and fills. Addresses stay valid and unmoved until the log is dropped.
pub trait LogMemory {
    /// Bytes of a closed commit group, not to be changed until its `DiskDone`.
    fn arena(&self, start: usize, len: usize) -> &[u8];

    /// A read buffer, not to be touched until its `DiskDone`.
    fn read_buffer_mut(&mut self, slot: usize) -> &mut [u8];
}

/// Which entry of a slot a completion answers: the low bits of its token.
const PART_BITS: u32 = 2;
const PART_OPEN: u32 = 0;
const PART_MOVE: u32 = 1;
const PART_SYNC: u32 = 2;
const PART_CLOSE: u32 = 3;

fn token(slot: usize, part: u32) -> u32 {
    let slot = u32::try_from(slot).expect("slots are bounded far below 2^30");
    slot << PART_BITS | part
}

/// Carries out a log's operations.
pub struct Executor<B: Background> {
    folder: Arc<DataFolder>,
    background: B,
    transfers: Slab<Transfer>,
    handles: Slab<Handle>,
    by_file: HashMap<FileId, usize>,
    /// Transfers that wait for room among the open files, first come first served.
    stalled: VecDeque<usize>,
    /// Jobs the background did not take yet: at most what the log has in flight.
    jobs: VecDeque<(OpId, storage::jobs::Job)>,
    done: VecDeque<DiskDone>,
    /// Entries whose completion is still to come.
    entries_in_flight: usize,
    clock: u64,
}

struct Transfer {
    op: OpId,
    file: FileId,
    handle: Option<usize>,
    direction: Direction,
    at: u64,
    memory: *mut u8,
    len: usize,
    /// Bytes already written or read.
    moved: usize,
    /// Entries of this transfer whose completion is still to come.
    pending: u8,
    interrupted: u8,
    fault: Option<DiskFault>,
    write: recorder::Begun,
    sync: recorder::Begun,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
    /// Write, then sync: `synced` once the kernel said so.
    WriteSync {
        synced: bool,
    },
}

struct Handle {
    file: FileId,
    state: HandleState,
    users: usize,
    used: u64,
    /// Removed or failed: no new users; closed with the last one.
    doomed: bool,
}

enum HandleState {
    /// The name is read by the kernel until the open completes.
    Opening {
        _name: CString,
        waiters: Vec<usize>,
    },
    Open(OwnedFd),
}

impl<B: Background> Executor<B> {
    /// An executor over `folder` whose jobs go to `background`.
    pub fn new(folder: Arc<DataFolder>, background: B) -> Self {
        Self {
            folder,
            background,
            transfers: Slab::new(),
            handles: Slab::with_capacity(OPEN_FILES_MAX),
            by_file: HashMap::new(),
            stalled: VecDeque::new(),
            jobs: VecDeque::new(),
            done: VecDeque::new(),
            entries_in_flight: 0,
            clock: 0,
        }
    }

    /// Starts an operation.
    ///
    /// The memory it names belongs to the kernel until the answer: the caller keeps `memory` alive until
    /// [`Executor::is_idle`].
    pub fn perform(&mut self, op: DiskOp, memory: &mut impl LogMemory, ring: &mut impl DiskRing) {
        let transfer = match op {
            DiskOp::Commit { op, segment, at, start, len, sync } => Transfer {
                op,
                file: FileId::Segment(segment),
                handle: None,
                direction: if sync { Direction::WriteSync { synced: false } } else { Direction::Write },
                at,
                memory: memory.arena(start, len).as_ptr().cast_mut(),
                len,
                moved: 0,
                pending: 0,
                interrupted: 0,
                fault: None,
                write: Default::default(),
                sync: Default::default(),
            },
            DiskOp::Read { op, file, at, len, slot } => {
                let buffer = &mut memory.read_buffer_mut(slot)[..len];
                Transfer {
                    op,
                    file,
                    handle: None,
                    direction: Direction::Read,
                    at,
                    memory: buffer.as_mut_ptr(),
                    len,
                    moved: 0,
                    pending: 0,
                    interrupted: 0,
                    fault: None,
                    write: Default::default(),
                    sync: Default::default(),
                }
            }
            DiskOp::Job { op, job } => {
                self.jobs.push_back((op, job));
                self.pump(ring);
                return;
            }
        };
        assert!(
            transfer.at.is_multiple_of(BLOCK_BYTES as u64)
                && transfer.len.is_multiple_of(BLOCK_BYTES)
                && (transfer.memory as usize).is_multiple_of(BLOCK_BYTES),
            "the log asked for an unaligned transfer"
        );
        let slot = self.transfers.insert(transfer);
        if !self.stalled.is_empty() || !self.advance(slot, ring) {
            self.stalled.push_back(slot);
        }
    }

    /// Takes up what waited for an open file, hands on jobs and collects their answers. Once a turn; returns work done.
    pub fn pump(&mut self, ring: &mut impl DiskRing) -> usize {
        let mut work = 0;
        while let Some(&slot) = self.stalled.front() {
            if !self.advance(slot, ring) {
                break;
            }
            self.stalled.pop_front();
            work += 1;
        }
        while let Some((op, job)) = self.jobs.pop_front() {
            if let Err(job) = self.background.submit(op, job) {
                self.jobs.push_front((op, job));
                break;
            }
            work += 1;
        }
        while let Some(answer) = self.background.poll() {
            // Before the log hears of it: what it reads next must be the new file, and a removed one's space returns.
            for file in answer.replaced {
                self.forget(file, ring);
            }
            self.done.push_back(DiskDone::Job { op: answer.op, result: answer.result });
            work += 1;
        }
        work
    }

    /// Handles the completion of the entry pushed with `token`.
    pub fn complete(&mut self, token: u32, result: i32, ring: &mut impl DiskRing) {
        self.entries_in_flight -= 1;
        let slot = (token >> PART_BITS) as usize;
        match token & ((1 << PART_BITS) - 1) {
            PART_OPEN => self.opened(slot, result, ring),
            PART_MOVE => self.moved(slot, result, ring),
            PART_SYNC => self.synced(slot, result, ring),
            _ => {} // closed; there is nobody to tell of a failure, and the descriptor is gone either way
        }
    }

    /// Next answer for the log.
    pub fn poll_done(&mut self) -> Option<DiskDone> {
        self.done.pop_front()
    }

    /// No entry is in the kernel, no operation waits, no answer is unread: memory may go, the thread may end.
    /// Running jobs do not count: they own their memory.
    pub fn is_idle(&self) -> bool {
        self.entries_in_flight == 0 && self.transfers.is_empty() && self.done.is_empty()
    }

    /// Files held open, for the status page and tests.
    pub fn open_files(&self) -> usize {
        self.handles.len()
    }

    /// Takes the next step of a transfer that has nothing in flight. `false`: no file can be opened now.
    fn advance(&mut self, slot: usize, ring: &mut impl DiskRing) -> bool {
        let Some(handle) = self.transfers[slot].handle.or_else(|| self.handle_for(slot, ring)) else {
            return false;
        };
        self.transfers[slot].handle = Some(handle);
        let fd = match &mut self.handles[handle].state {
            HandleState::Opening { waiters, .. } => {
                waiters.push(slot);
                return true;
            }
            HandleState::Open(fd) => types::Fd(fd.as_raw_fd()),
        };
        let transfer = &mut self.transfers[slot];
        let rest = u32::try_from(transfer.len - transfer.moved).expect("an operation is smaller than 4 GiB");
        // SAFETY: `moved < len`, and `memory..memory + len` was one slice of the log's memory, which lives on and
        // does not move until the answer (contract of `perform`).
        let memory = unsafe { transfer.memory.add(transfer.moved) };
        let at = transfer.at + transfer.moved as u64;
        let write = || opcode::Write::new(fd, memory, rest).offset(at).build();
        if transfer.direction != Direction::Read {
            let name = || transfer.file.file_name();
            // SAFETY: as above; the log changes no byte of a closed group until the answer.
            let bytes = unsafe { std::slice::from_raw_parts(memory, rest as usize) };
            transfer.write = recorder::write_begins(name, at, bytes);
            if transfer.direction != Direction::Write {
                transfer.sync = recorder::sync_begins(name, Some(transfer.write));
            }
        }
        let (first, sync) = match transfer.direction {
            Direction::Read => (opcode::Read::new(fd, memory, rest).offset(at).build(), None),
            Direction::Write => (write(), None),
            Direction::WriteSync { .. } => {
                let sync = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build();
                (write().flags(squeue::Flags::IO_LINK), Some((token(slot, PART_SYNC), sync)))
            }
        };
        let first = (token(slot, PART_MOVE), first);
        transfer.pending = if sync.is_some() { 2 } else { 1 };
        // SAFETY: the memory is the log's, which keeps it until the answer (contract of `perform`).
        unsafe {
            match sync {
                Some(sync) => ring.push(&[first, sync]),
                None => ring.push(&[first]),
            }
        }
        self.entries_in_flight += usize::from(transfer.pending);
        true
    }

    /// The handle of a transfer's file with this transfer as a user; starts to open it where need be.
    fn handle_for(&mut self, slot: usize, ring: &mut impl DiskRing) -> Option<usize> {
        let file = self.transfers[slot].file;
        self.clock += 1;
        if let Some(&index) = self.by_file.get(&file) {
            self.handles[index].users += 1;
            self.handles[index].used = self.clock;
            return Some(index);
        }
        if !self.spare_handle(ring) {
            return None;
        }
        let name = CString::new(file.file_name()).expect("file names hold no zero byte");
        let access = if let FileId::Segment(_) = file { libc::O_RDWR } else { libc::O_RDONLY };
        let direct = if self.folder.is_direct() { libc::O_DIRECT } else { 0 };
        let entry = opcode::OpenAt::new(types::Fd(self.folder.directory_fd()), name.as_ptr())
            .flags(access | direct | libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .build();
        let index = self.handles.insert(Handle {
            file,
            state: HandleState::Opening { _name: name, waiters: Vec::new() },
            users: 1,
            used: self.clock,
            doomed: false,
        });
        self.by_file.insert(file, index);
        // SAFETY: the name lies on the heap and is kept in the handle until the open completes.
        unsafe { ring.push(&[(token(index, PART_OPEN), entry)]) };
        self.entries_in_flight += 1;
        Some(index)
    }

    /// Makes room for one more open file. `false`: all are in use.
    fn spare_handle(&mut self, ring: &mut impl DiskRing) -> bool {
        if self.handles.len() < OPEN_FILES_MAX {
            return true;
        }
        let idle = self.handles.iter().filter(|(_, h)| h.users == 0).min_by_key(|(_, h)| h.used).map(|(i, _)| i);
        if let Some(index) = idle {
            self.close(index, ring);
        }
        idle.is_some()
    }

    /// Drops the handle of a removed file, now or with its last user.
    fn forget(&mut self, file: FileId, ring: &mut impl DiskRing) {
        if let Some(index) = self.by_file.remove(&file) {
            self.handles[index].doomed = true;
            if self.handles[index].users == 0 {
                self.close(index, ring);
            }
        }
    }

    fn close(&mut self, index: usize, ring: &mut impl DiskRing) {
        let handle = self.handles.remove(index);
        debug_assert_eq!(handle.users, 0);
        if !handle.doomed {
            self.by_file.remove(&handle.file);
        }
        if let HandleState::Open(fd) = handle.state {
            // The last close of a removed segment gives back its blocks: on a worker, not on this thread.
            let fd: RawFd = fd.into_raw_fd();
            let entry = opcode::Close::new(types::Fd(fd)).build().flags(squeue::Flags::ASYNC);
            // SAFETY: a close refers to no memory.
            unsafe { ring.push(&[(token(0, PART_CLOSE), entry)]) };
            self.entries_in_flight += 1;
        }
    }

    fn opened(&mut self, index: usize, result: i32, ring: &mut impl DiskRing) {
        // SAFETY: a non-negative result of an open is a new descriptor that nobody else owns.
        let fd = (result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(result) });
        let Some(fd) = fd else {
            let handle = self.handles.remove(index);
            if !handle.doomed {
                self.by_file.remove(&handle.file);
            }
            if let HandleState::Opening { waiters, .. } = handle.state {
                for slot in waiters {
                    let transfer = &mut self.transfers[slot];
                    transfer.handle = None;
                    transfer.fault = Some(fault_of(-result));
                    self.finish(slot, ring);
                }
            }
            return;
        };
        let before = std::mem::replace(&mut self.handles[index].state, HandleState::Open(fd));
        if let HandleState::Opening { waiters, .. } = before {
            for slot in waiters {
                if !self.advance(slot, ring) {
                    self.stalled.push_back(slot);
                }
            }
        }
    }

    fn moved(&mut self, slot: usize, result: i32, ring: &mut impl DiskRing) {
        let transfer = &mut self.transfers[slot];
        transfer.pending -= 1;
        match result {
            error if error == -libc::EINTR || error == -libc::EAGAIN => {
                transfer.interrupted += 1;
                if transfer.interrupted > INTERRUPTED_MAX {
                    transfer.fault = Some(fault_of(-error));
                }
            }
            error if error < 0 => transfer.fault = transfer.fault.or(Some(fault_of(-error))),
            bytes if transfer.direction == Direction::Read => {
                transfer.moved += bytes as usize;
                // An unaligned or empty read is the end of the file.
                if bytes == 0 || !transfer.moved.is_multiple_of(BLOCK_BYTES) {
                    transfer.len = transfer.moved;
                }
            }
            bytes => {
                // The rest is written from a block boundary on: a direct write may start nowhere else, and to
                // write the same bytes twice does no harm.
                let before = transfer.moved;
                transfer.moved += bytes as usize;
                recorder::write_ends(transfer.write);
                if transfer.moved < transfer.len {
                    transfer.moved -= transfer.moved % BLOCK_BYTES;
                    if transfer.moved == before {
                        transfer.fault = transfer.fault.or(Some(DiskFault::Io { errno: libc::EIO }));
                    }
                }
            }
        }
        self.step(slot, ring);
    }

    fn synced(&mut self, slot: usize, result: i32, ring: &mut impl DiskRing) {
        let transfer = &mut self.transfers[slot];
        transfer.pending -= 1;
        match result {
            0 => {
                transfer.direction = Direction::WriteSync { synced: true };
                recorder::sync_ends(transfer.sync);
            }
            // The write before it failed or was short: this sync never began.
            error if error == -libc::ECANCELED => {}
            error => transfer.fault = Some(DiskFault::SyncFailed { errno: -error }),
        }
        self.step(slot, ring);
    }

    /// Once all entries of a transfer came back: finish, or go on with the rest.
    fn step(&mut self, slot: usize, ring: &mut impl DiskRing) {
        let transfer = &mut self.transfers[slot];
        if transfer.pending > 0 {
            return;
        }
        let whole = transfer.moved == transfer.len;
        if whole && transfer.direction == (Direction::WriteSync { synced: false }) {
            // All bytes are down and yet no sync returned 0: it was cancelled from outside. Never tried again.
            transfer.fault = transfer.fault.or(Some(DiskFault::SyncFailed { errno: libc::ECANCELED }));
        }
        if whole || transfer.fault.is_some() {
            self.finish(slot, ring);
        } else if !self.advance(slot, ring) {
            self.stalled.push_back(slot);
        }
    }

    fn finish(&mut self, slot: usize, ring: &mut impl DiskRing) {
        let transfer = self.transfers.remove(slot);
        if let Some(index) = transfer.handle {
            let handle = &mut self.handles[index];
            handle.users -= 1;
            if handle.doomed && handle.users == 0 {
                self.close(index, ring);
            }
        }
        let result = transfer.fault.map_or(Ok(transfer.moved), Err);
        self.done.push_back(match transfer.direction {
            Direction::Read => DiskDone::Read { op: transfer.op, result },
            _ => DiskDone::Commit { op: transfer.op, result: result.map(|_| ()) },
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::background::JobAnswer;
    use storage::ids::{LogId, SegmentId};
    use storage::jobs::Job;

    /// A ring whose completions the test makes up.
    #[derive(Default)]
    struct Script {
        chains: VecDeque<Vec<u32>>,
    }

    impl DiskRing for Script {
        unsafe fn push(&mut self, chain: &[(u32, squeue::Entry)]) {
            self.chains.push_back(chain.iter().map(|(token, _)| *token).collect());
        }
    }

    struct NoJobs;

    impl Background for NoJobs {
        fn submit(&mut self, _: OpId, _: Job) -> Result<(), Job> {
            unreachable!("no job is given")
        }

        fn poll(&mut self) -> Option<JobAnswer> {
            None
        }
    }

    struct Memory(Box<Aligned>);

    #[repr(align(4096))]
    struct Aligned([u8; 4 * BLOCK_BYTES]);

    impl LogMemory for Memory {
        fn arena(&self, start: usize, len: usize) -> &[u8] {
            &self.0.0[start..start + len]
        }

        fn read_buffer_mut(&mut self, _: usize) -> &mut [u8] {
            &mut self.0.0
        }
    }

    struct Bench {
        executor: Executor<NoJobs>,
        ring: Script,
        path: std::path::PathBuf,
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }

    /// An executor that was asked for a synced commit of four blocks, its file already open.
    fn commit(name: &str, sync: bool) -> Bench {
        let path = std::env::temp_dir().join(format!("tidegate-executor-{}-{name}", std::process::id()));
        let folder = Arc::new(DataFolder::open(&path).unwrap());
        let mut bench = Bench { executor: Executor::new(folder, NoJobs), ring: Script::default(), path };
        let mut memory = Memory(Box::new(Aligned([7; 4 * BLOCK_BYTES])));
        let op = DiskOp::Commit {
            op: OpId(1),
            segment: SegmentId { log: LogId(0), number: 0 },
            at: 0,
            start: 0,
            len: 4 * BLOCK_BYTES,
            sync,
        };
        bench.executor.perform(op, &mut memory, &mut bench.ring);
        let opened = std::fs::File::open("/dev/null").unwrap().into_raw_fd();
        let open = bench.chain(1)[0];
        bench.executor.complete(open, opened, &mut bench.ring);
        // Nothing reads the memory: the ring is a script.
        drop(memory);
        bench
    }

    impl Bench {
        fn chain(&mut self, len: usize) -> Vec<u32> {
            let chain = self.ring.chains.pop_front().expect("a chain was pushed");
            assert_eq!(chain.len(), len);
            chain
        }

        fn complete(&mut self, token: u32, result: i32) {
            self.executor.complete(token, result, &mut self.ring);
        }

        fn answer(&mut self) -> Option<Result<(), DiskFault>> {
            let answer = self.executor.poll_done().map(|done| match done {
                DiskDone::Commit { op: OpId(1), result } => result,
                other => panic!("{other:?}"),
            });
            assert_eq!(answer.is_some(), self.executor.is_idle());
            answer
        }
    }

    const ALL: i32 = 4 * BLOCK_BYTES as i32;

    #[test]
    fn a_commit_is_answered_only_after_its_sync() {
        let mut bench = commit("whole", true);
        let chain = bench.chain(2);
        bench.complete(chain[0], ALL);
        assert_eq!(bench.answer(), None);
        bench.complete(chain[1], 0);
        assert_eq!(bench.answer(), Some(Ok(())));
    }

    #[test]
    fn a_short_write_is_completed_from_a_block_boundary_and_then_synced() {
        let mut bench = commit("short", true);
        let chain = bench.chain(2);
        bench.complete(chain[1], -libc::ECANCELED); // in whatever order the two come
        bench.complete(chain[0], 2 * BLOCK_BYTES as i32 + 512);
        assert_eq!(bench.answer(), None);
        let rest = bench.chain(2);
        bench.complete(rest[0], 2 * BLOCK_BYTES as i32);
        bench.complete(rest[1], 0);
        assert_eq!(bench.answer(), Some(Ok(())));
    }

    #[test]
    fn a_write_that_gets_nowhere_is_a_fault() {
        let mut bench = commit("stuck", true);
        let chain = bench.chain(2);
        bench.complete(chain[0], 512);
        bench.complete(chain[1], -libc::ECANCELED);
        assert_eq!(bench.answer(), Some(Err(DiskFault::Io { errno: libc::EIO })));
    }

    #[test]
    fn a_failed_write_is_answered_after_both_entries_came_back() {
        for (errno, fault) in
            [(libc::ENOSPC, DiskFault::NoSpace), (libc::EDQUOT, DiskFault::NoSpace), (5, DiskFault::Io { errno: 5 })]
        {
            let mut bench = commit("failed", true);
            let chain = bench.chain(2);
            bench.complete(chain[0], -errno);
            assert_eq!(bench.answer(), None);
            bench.complete(chain[1], -libc::ECANCELED);
            assert_eq!(bench.answer(), Some(Err(fault)));
        }
    }

    #[test]
    fn a_failed_sync_is_never_tried_again() {
        for errno in [libc::EIO, libc::ENOSPC, libc::EINTR, libc::EAGAIN] {
            let mut bench = commit("unsynced", true);
            let chain = bench.chain(2);
            bench.complete(chain[0], ALL);
            bench.complete(chain[1], -errno);
            assert_eq!(bench.answer(), Some(Err(DiskFault::SyncFailed { errno })));
            assert!(bench.ring.chains.is_empty());
        }
    }

    #[test]
    fn a_cancelled_sync_after_a_whole_write_counts_as_failed() {
        let mut bench = commit("cancelled", true);
        let chain = bench.chain(2);
        bench.complete(chain[0], ALL);
        bench.complete(chain[1], -libc::ECANCELED);
        assert_eq!(bench.answer(), Some(Err(DiskFault::SyncFailed { errno: libc::ECANCELED })));
    }

    #[test]
    fn an_interrupted_write_is_tried_again_but_not_for_ever() {
        let mut bench = commit("interrupted", false);
        for _ in 0..=INTERRUPTED_MAX {
            assert_eq!(bench.answer(), None);
            let chain = bench.chain(1);
            bench.complete(chain[0], -libc::EINTR);
        }
        assert_eq!(bench.answer(), Some(Err(DiskFault::Io { errno: libc::EINTR })));
    }
}
