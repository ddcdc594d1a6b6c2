//! The ring and its receive buffers, with the flags of the server's own.
//!
//! ```text
//!   user_data   kind (8 bits) │ index (56 bits)
//! ```

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{BufRingEntry, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU16, Ordering};

/// What a completion answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Accept,
    Recv,
    Send,
    Write,
    Sync,
    Close,
}

const KINDS: [Kind; 6] = [Kind::Accept, Kind::Recv, Kind::Send, Kind::Write, Kind::Sync, Kind::Close];

/// One finished, or for multishot one more, request.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    pub kind: Kind,
    pub index: usize,
    pub result: i32,
    /// A multishot request that goes on.
    pub more: bool,
    /// The receive buffer with the bytes.
    pub buffer: Option<u16>,
}

const ENTRIES: u32 = 1024;
const BUFFERS: u16 = 1024;
const BUFFER_BYTES: usize = 2048;
const GROUP: u16 = 0;
/// With a log: an enter that runs completions comes at the latest after this many sends, or the disk's wait behind the sockets'.
const SENDS_PER_ENTER_MAX: u32 = 16;

pub struct Ring {
    // Before the buffers: closing the ring takes them away from the kernel.
    uring: IoUring,
    buffers: Buffers,
    /// Sends between two enters.
    sends_max: u32,
    sends: u32,
}

/// Receive buffers that the kernel picks from.
struct Buffers {
    base: *mut u8,
    tail: u16,
}

const ENTRIES_BYTES: usize = BUFFERS as usize * size_of::<BufRingEntry>();
const MAP_BYTES: usize = ENTRIES_BYTES + BUFFERS as usize * BUFFER_BYTES;
const _: () = assert!(ENTRIES_BYTES.is_multiple_of(4096));

impl Ring {
    /// Sockets live in a table of `slots` direct descriptors.
    pub fn open(slots: u32, log: bool) -> io::Result<Ring> {
        let uring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(ENTRIES * 8)
            .build(ENTRIES)?;
        uring.submitter().register_iowq_max_workers(&mut [1, 1])?;
        uring.submitter().register_files_sparse(slots)?;
        let mut buffers = Buffers::map()?;
        // SAFETY: the mapping outlives the ring, which `Ring` drops first.
        unsafe { uring.submitter().register_buf_ring_with_flags(buffers.base as u64, BUFFERS, GROUP, 0) }?;
        (0..BUFFERS).for_each(|bid| buffers.lend(bid));
        buffers.publish();
        Ok(Ring { uring, buffers, sends_max: if log { SENDS_PER_ENTER_MAX } else { u32::MAX }, sends: 0 })
    }

    pub fn accept(&mut self, listener: RawFd) -> io::Result<()> {
        let entry = opcode::AcceptMulti::new(Fd(listener)).allocate_file_index(true).build();
        self.push(entry, Kind::Accept, 0)
    }

    pub fn recv(&mut self, slot: u32, index: usize) -> io::Result<()> {
        self.push(opcode::RecvMulti::new(Fixed(slot), GROUP).build(), Kind::Recv, index)
    }

    pub fn close(&mut self, slot: u32) -> io::Result<()> {
        self.push(opcode::Close::new(Fixed(slot)).build(), Kind::Close, 0)
    }

    /// Sends all of `bytes`.
    ///
    /// # Safety
    /// `bytes` stays where it is, unchanged, until its completion.
    pub unsafe fn send(&mut self, slot: u32, bytes: &[u8], index: usize) -> io::Result<()> {
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let entry = opcode::Send::new(Fixed(slot), bytes.as_ptr(), bytes.len() as u32).flags(flags).build();
        self.push(entry, Kind::Send, index)?;
        self.sends += 1;
        if self.sends >= self.sends_max { self.enter() } else { Ok(()) }
    }

    /// Writes, then syncs.
    ///
    /// # Safety
    /// `bytes` stays where it is, unchanged, until the completion of the write.
    pub unsafe fn write_and_sync(&mut self, file: RawFd, bytes: &[u8], at: u64, index: usize) -> io::Result<()> {
        self.make_room(2)?;
        let write = opcode::Write::new(Fd(file), bytes.as_ptr(), bytes.len() as u32).offset(at).build();
        self.push(write.flags(Flags::IO_LINK), Kind::Write, index)?;
        let sync = opcode::Fsync::new(Fd(file)).flags(io_uring::types::FsyncFlags::DATASYNC).build();
        self.push(sync, Kind::Sync, index)?;
        self.enter()
    }

    /// Bytes of a receive buffer, until it is given back.
    pub fn received(&self, bid: u16, len: usize) -> &[u8] {
        assert!(bid < BUFFERS && len <= BUFFER_BYTES);
        // SAFETY: inside the mapping; the kernel leaves the buffer alone between its completion and `give_back`.
        unsafe { std::slice::from_raw_parts(self.buffers.address(bid), len) }
    }

    pub fn give_back(&mut self, bid: u16) {
        self.buffers.lend(bid);
        self.buffers.publish();
    }

    /// Submits and runs what has completed.
    pub fn enter(&mut self) -> io::Result<()> {
        self.sends = 0;
        let to_submit = self.uring.submission().len() as u32;
        // SAFETY: no argument is passed; the count is the ring's own.
        forgive(unsafe {
            self.uring.submitter().enter::<libc::sigset_t>(to_submit, 0, EnterFlags::GETEVENTS.bits(), None)
        })
    }

    /// Submits and waits for a completion.
    pub fn wait(&mut self) -> io::Result<()> {
        self.sends = 0;
        let time = Timespec::new().sec(10);
        forgive(self.uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time)))
    }

    /// Nothing has completed.
    pub fn is_quiet(&mut self) -> bool {
        self.uring.completion().is_empty()
    }

    /// Moves what has completed into `into`, which is cleared first.
    pub fn reap(&mut self, into: &mut Vec<Completion>) {
        into.clear();
        into.extend(self.uring.completion().map(|entry| Completion {
            kind: KINDS[(entry.user_data() >> 56) as usize],
            index: (entry.user_data() & ((1 << 56) - 1)) as usize,
            result: entry.result(),
            more: cqueue::more(entry.flags()),
            buffer: cqueue::buffer_select(entry.flags()),
        }));
    }

    fn push(&mut self, entry: Entry, kind: Kind, index: usize) -> io::Result<()> {
        self.make_room(1)?;
        let entry = entry.user_data((kind as u64) << 56 | index as u64);
        // SAFETY: memory that an entry refers to is vouched for by the callers of `send` and `write_and_sync`.
        unsafe { self.uring.submission().push(&entry) }.map_err(|_full| io::Error::other("the ring takes no entries"))
    }

    fn make_room(&mut self, entries: usize) -> io::Result<()> {
        let queue = self.uring.submission();
        let free = queue.capacity() - queue.len();
        drop(queue);
        if free < entries { self.enter() } else { Ok(()) }
    }
}

/// Waiting was cut short, or completions must be reaped first: the next turn does both.
fn forgive<T>(result: io::Result<T>) -> io::Result<()> {
    match result {
        Err(why) if !matches!(why.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {
            Err(why)
        }
        _ => Ok(()),
    }
}

impl Buffers {
    fn map() -> io::Result<Buffers> {
        // SAFETY: an anonymous mapping at an address of the kernel's choice; the result is checked. It is kept for the life of
        // the process.
        let base = unsafe {
            let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            libc::mmap(std::ptr::null_mut(), MAP_BYTES, access, kind, -1, 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Buffers { base: base.cast(), tail: 0 })
    }

    fn address(&self, bid: u16) -> *mut u8 {
        // SAFETY: `bid` is below BUFFERS (checked where it comes from the kernel): inside the mapping.
        unsafe { self.base.add(ENTRIES_BYTES + usize::from(bid) * BUFFER_BYTES) }
    }

    fn lend(&mut self, bid: u16) {
        let address = self.address(bid) as u64;
        // SAFETY: the slot lies inside the mapping, which is zeroed (a valid entry) and aligned; field setters leave the tail
        // word in the first entry alone.
        let entry = unsafe { &mut *self.base.cast::<BufRingEntry>().add(usize::from(self.tail & (BUFFERS - 1))) };
        entry.set_addr(address);
        entry.set_len(BUFFER_BYTES as u32);
        entry.set_bid(bid);
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&mut self) {
        // SAFETY: the mapping begins with an initialised, aligned entry; the kernel only loads this word.
        let tail = unsafe { &*BufRingEntry::tail(self.base.cast()).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}

/// A backlog for thousands of clients that come at once.
pub fn listen_deeply(listener: &TcpListener) -> io::Result<()> {
    // SAFETY: a plain system call on a descriptor that lives.
    if unsafe { libc::listen(listener.as_raw_fd(), 4096) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Raises the descriptor limit to what the system allows and returns it: it bounds the table of direct descriptors as well.
pub fn descriptors_max() -> u32 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write only the struct on this stack frame.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
    limit.rlim_cur.min(60_000) as u32
}

/// Sends small frames at once.
pub fn no_delay(listener: &TcpListener) -> io::Result<()> {
    let one = 1i32;
    // SAFETY: the pointer is to a live local of the size passed along. Accepted sockets inherit the option.
    let done = unsafe {
        let (fd, size) = (listener.as_raw_fd(), size_of::<i32>() as u32);
        libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, (&raw const one).cast(), size)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
