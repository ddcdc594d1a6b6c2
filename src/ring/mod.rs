//! The shard's ring: sockets, log, wake-ups, all on one io_uring that belongs to one thread.
//!
//! ```text
//!   net      accept recv send close ──┐                       ┌──► net      Accept Upgrade Recv Send HandOff …
//!   disk     write→fsync, read ───────┼──► SQ ═ kernel ═ CQ ──┼──► disk     Disk
//!   reactor  wake, enter, park ───────┘    by Kind (user_data)└──► reactor  Wake Control
//! ```
//! Rules kept here, each measured or met as a bug:
//! * SINGLE_ISSUER, DEFER_TASKRUN, TASKRUN_FLAG: completions run only inside `enter` with GETEVENTS, so every enter
//!   carries it; without it a turn that never waits never sees a completion.
//! * CQ = 8 × SQ; a full SQ is entered, never an error; a linked pair is never split across two enters.
//! * The ring is made on the thread that uses it; only its number (`raw_fd`) leaves, so that peers can ring it.
//! * io-wq workers are capped: fsync runs there, and an uncapped pool takes the cores from the shards.

mod buffers;
mod error;
mod socket;
#[cfg(test)]
mod tests;
mod user_data;
mod waker;

pub use buffers::{Filled, RECV_GROUP, RecvBuffers};
pub use error::{RingError, Step};
pub use socket::Socket;
pub use user_data::{Kind, SLOTS_MAX, UserData};
pub use waker::Waker;

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{CancelBuilder, DestinationSlot, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, cqueue, opcode};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// What a ring is made of.
#[derive(Clone, Copy, Debug)]
pub struct RingConfig {
    /// Entries of the submission queue, a power of two. The completion queue has eight times as many.
    pub entries: u32,
    /// Slots of the table of direct descriptors; 0 = sockets are ordinary descriptors.
    pub direct_slots: u32,
    /// Receive buffers, a power of two.
    pub recv_buffers: u16,
    /// Bytes of one.
    pub recv_buffer_bytes: u32,
    /// io-wq workers for files (bounded work) of this ring.
    pub io_workers: u32,
}

impl RingConfig {
    /// Entries a multishot receive and its neighbours never outgrow in one turn at full load.
    pub const ENTRIES: u32 = 1024;
    /// Below about 128 buffers a burst ends in a storm of ENOBUFS.
    pub const RECV_BUFFERS: u16 = 1024;
    /// 512-byte buffers cost 1.5 times as much per message.
    pub const RECV_BUFFER_BYTES: u32 = 2048;

    /// Just enough to find out whether rings can be had at all.
    pub const SMALLEST: RingConfig =
        RingConfig { entries: 8, direct_slots: 1, recv_buffers: 1, recv_buffer_bytes: 4096, io_workers: 1 };

    /// Bytes of user memory a ring of this kind maps: queues, buffers, and the kernel's table of direct slots.
    pub fn memory_bytes(&self) -> usize {
        let queues = self.entries as usize * 64 + self.entries as usize * 4 + self.entries as usize * 8 * 16;
        let buffers = usize::from(self.recv_buffers) * (self.recv_buffer_bytes as usize + 16);
        queues + buffers + self.direct_slots as usize * 8
    }
}

/// One finished (or, for multishot, one more) request.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// Who asked.
    pub user_data: UserData,
    /// Bytes, a descriptor, or minus errno.
    pub result: i32,
    flags: u32,
}

impl Completion {
    /// A multishot request that goes on.
    pub fn more(&self) -> bool {
        cqueue::more(self.flags)
    }

    /// The receive buffer that holds the bytes.
    pub fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }

    /// For receives: more bytes already wait in the socket.
    pub fn socket_not_empty(&self) -> bool {
        cqueue::sock_nonempty(self.flags)
    }

    /// Bytes or number, or the error.
    pub fn ok(&self) -> Result<u32, i32> {
        if self.result < 0 { Err(-self.result) } else { Ok(self.result as u32) }
    }
}

/// One per shard, made and used by its thread alone.
pub struct Ring {
    // Dropped first: closing the ring takes the buffers away from the kernel before they are unmapped.
    uring: IoUring,
    /// Receive buffers, lent to the kernel.
    pub recv_buffers: RecvBuffers,
    waker: Waker,
    direct_slots: u32,
    sends_since_enter: u32,
    enters: u64,
}

/// An enter that runs completions comes at the latest after this many sends: disk completions queue behind ready
/// sockets otherwise.
const SENDS_PER_ENTER_MAX: u32 = 16;

impl Ring {
    /// Opens the ring on the calling thread, which is the only one that may use it from now on.
    ///
    /// # Errors
    /// [`RingError`] names the step that failed and what an operator can do about it.
    pub fn open(config: &RingConfig, waker: Waker) -> Result<Ring, RingError> {
        let uring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(config.entries * 8)
            .build(config.entries)
            .map_err(|e| RingError::new(Step::Setup, &e))?;
        probe(&uring)?;
        let submitter = uring.submitter();
        submitter
            .register_iowq_max_workers(&mut [config.io_workers.max(1), 1])
            .map_err(|e| RingError::new(Step::Workers, &e))?;
        if config.direct_slots > 0 {
            submitter
                .register_files_sparse(config.direct_slots)
                .map_err(|e| RingError::new(Step::DirectSlots(config.direct_slots), &e))?;
        }
        let recv_buffers = RecvBuffers::new(config.recv_buffers, config.recv_buffer_bytes)
            .map_err(|e| RingError::new(Step::RecvBuffers, &e))?;
        // SAFETY: the mapping lives in `recv_buffers`, which `Ring` drops after the ring itself.
        unsafe {
            submitter.register_buf_ring_with_flags(recv_buffers.ring_address(), recv_buffers.count(), RECV_GROUP, 0)
        }
        .map_err(|e| RingError::new(Step::RecvBuffers, &e))?;
        let mut ring =
            Ring { uring, recv_buffers, waker, direct_slots: config.direct_slots, sends_since_enter: 0, enters: 0 };
        ring.listen_to_waker();
        Ok(ring)
    }

    /// Number by which peers address this ring in [`Ring::wake`] and [`Ring::hand_off`].
    pub fn raw_fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }

    /// The bell that [`Kind::Control`] completions come from.
    pub fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Slots of the table of direct descriptors.
    pub fn direct_slots(&self) -> u32 {
        self.direct_slots
    }

    /// Enters so far.
    pub fn enters(&self) -> u64 {
        self.enters
    }

    // ---- sockets -------------------------------------------------------------------------------------------------

    /// Accepts one connection. Not all there are: a multishot accept empties the kernel's backlog within one enter, and
    /// everybody who is there already waits for it.
    pub fn accept(&mut self, listener: RawFd, user_data: UserData) {
        let null = std::ptr::null_mut();
        let entry = opcode::Accept::new(Fd(listener), null, null.cast())
            .file_index((self.direct_slots > 0).then(DestinationSlot::auto_target))
            .flags(if self.direct_slots > 0 { 0 } else { libc::SOCK_CLOEXEC })
            .build();
        self.push_safe(entry, user_data);
    }

    /// One receive into a buffer of the ring.
    pub fn recv_once(&mut self, socket: Socket, user_data: UserData) {
        // The kernel takes the length of the buffer it picks where the request names none.
        let null = std::ptr::null_mut();
        let recv = match socket {
            Socket::Fd(fd) => opcode::Recv::new(Fd(fd), null, 0).buf_group(RECV_GROUP).build(),
            Socket::Direct(slot) => opcode::Recv::new(Fixed(slot), null, 0).buf_group(RECV_GROUP).build(),
        };
        let entry = recv.flags(Flags::BUFFER_SELECT);
        self.push_safe(entry, user_data);
    }

    /// Receives into buffers of the ring until cancelled, the peer closes, or buffers run out.
    pub fn recv(&mut self, socket: Socket, user_data: UserData) {
        let entry = match socket {
            Socket::Fd(fd) => opcode::RecvMulti::new(Fd(fd), RECV_GROUP).build(),
            Socket::Direct(slot) => opcode::RecvMulti::new(Fixed(slot), RECV_GROUP).build(),
        };
        self.push_safe(entry, user_data);
    }

    /// Sends all of the bytes, or fails.
    ///
    /// # Safety
    /// `bytes` stays readable and unchanged until the completion of `user_data` has been seen.
    pub unsafe fn send(&mut self, socket: Socket, bytes: *const u8, len: u32, user_data: UserData) {
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let entry = match socket {
            Socket::Fd(fd) => opcode::Send::new(Fd(fd), bytes, len).flags(flags).build(),
            Socket::Direct(slot) => opcode::Send::new(Fixed(slot), bytes, len).flags(flags).build(),
        };
        // SAFETY: passed on to the caller.
        unsafe { self.push(entry, user_data) };
        self.sends_since_enter += 1;
    }

    /// Sends the bytes of several pieces as one.
    ///
    /// # Safety
    /// `message` and its iovec stay unchanged until the next [`Ring::enter`] (the kernel copies them there), the
    /// pieces until the completion of `user_data` has been seen.
    pub unsafe fn send_pieces(&mut self, socket: Socket, message: *const libc::msghdr, user_data: UserData) {
        let flags = (libc::MSG_WAITALL | libc::MSG_NOSIGNAL) as u32;
        let entry = match socket {
            Socket::Fd(fd) => opcode::SendMsg::new(Fd(fd), message).flags(flags).build(),
            Socket::Direct(slot) => opcode::SendMsg::new(Fixed(slot), message).flags(flags).build(),
        };
        // SAFETY: passed on to the caller.
        unsafe { self.push(entry, user_data) };
        self.sends_since_enter += 1;
    }

    /// Cancels the request that carries `target`. Both complete: the target with ECANCELED, this one with its fate.
    pub fn cancel(&mut self, target: UserData, user_data: UserData) {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::user_data(target.raw())).build();
        self.push_safe(entry, user_data);
    }

    /// Cancels all requests that carry `target`.
    pub fn cancel_all(&mut self, target: UserData, user_data: UserData) {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::user_data(target.raw()).all()).build();
        self.push_safe(entry, user_data);
    }

    /// Ends the sending side (FIN), or both.
    pub fn shutdown(&mut self, socket: Socket, both: bool, user_data: UserData) {
        let how = if both { libc::SHUT_RDWR } else { libc::SHUT_WR };
        let entry = match socket {
            Socket::Fd(fd) => opcode::Shutdown::new(Fd(fd), how).build(),
            Socket::Direct(slot) => opcode::Shutdown::new(Fixed(slot), how).build(),
        };
        self.push_safe(entry, user_data);
    }

    /// Closes. Requests still in flight keep the socket alive: cancel them first.
    pub fn close(&mut self, socket: Socket, user_data: UserData) {
        let entry = close_entry(socket);
        self.push_safe(entry, user_data);
    }

    /// Moves a direct socket to the ring `peer`, where it completes `seen_by_peer` with the slot it got, and closes
    /// the slot here. If the move fails the close is cancelled and the socket stays.
    pub fn hand_off(
        &mut self,
        slot: u32,
        peer: RawFd,
        seen_by_peer: UserData,
        user_data: UserData,
        user_data_close: UserData,
    ) {
        let give =
            opcode::MsgRingSendFd::new(Fd(peer), Fixed(slot), DestinationSlot::auto_target(), seen_by_peer.raw())
                .build()
                .user_data(user_data.raw())
                .flags(Flags::IO_LINK);
        let close = close_entry(Socket::Direct(slot)).user_data(user_data_close.raw());
        // SAFETY: neither request refers to memory.
        unsafe { self.push_linked(give, close) };
    }

    // ---- wake-ups ------------------------------------------------------------------------------------------------

    /// Completes `Kind::Wake` on the ring `peer`. Success is silent here; failure completes `Kind::WakeSent`.
    pub fn wake(&mut self, peer: RawFd) {
        let entry = opcode::MsgRingData::new(Fd(peer), 0, UserData::only(Kind::Wake).raw(), None)
            .build()
            .flags(Flags::SKIP_SUCCESS);
        self.push_safe(entry, UserData::only(Kind::WakeSent));
    }

    /// To be called on a `Kind::Control` completion, before looking at the control channel.
    pub fn waker_rang(&mut self, completion: &Completion) {
        self.waker.silence();
        if !completion.more() {
            self.listen_to_waker();
        }
    }

    fn listen_to_waker(&mut self) {
        let entry = opcode::PollAdd::new(Fd(self.waker.raw_fd()), libc::POLLIN as u32).multi(true).build();
        self.push_safe(entry, UserData::only(Kind::Control));
    }

    // ---- files ---------------------------------------------------------------------------------------------------

    /// Queues a chain of file requests, each linked to the next by its own flags, in one submit. A completion carries the
    /// token as its generation; its kind is [`Kind::Disk`].
    ///
    /// # Safety
    /// Memory that the entries refer to stays valid, and is left alone, until their completions have been seen.
    pub unsafe fn push_disk(&mut self, chain: &[(u32, Entry)]) {
        self.make_room(chain.len());
        for (token, entry) in chain {
            let entry = entry.clone().user_data(UserData::new(Kind::Disk, 0, *token).raw());
            // SAFETY: passed on to the caller. There is room: `make_room` made it.
            let pushed = unsafe { self.uring.submission().push(&entry) };
            assert!(pushed.is_ok(), "room was made for the chain");
        }
    }

    // ---- entering ------------------------------------------------------------------------------------------------

    /// Submits what was pushed and runs what has completed, if there is either. Never waits.
    ///
    /// # Errors
    /// The ring is unusable; the shard cannot go on.
    pub fn enter(&mut self) -> io::Result<()> {
        let mut queue = self.uring.submission();
        let due = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
        queue.sync();
        drop(queue);
        if due { self.enter_now() } else { Ok(()) }
    }

    /// [`Ring::enter`] again as long as completions wait that it did not hand out, at most so often.
    ///
    /// # Errors
    /// As [`Ring::enter`].
    pub fn enter_while_due(&mut self, enters_max: usize) -> io::Result<()> {
        for _ in 0..enters_max {
            if !self.uring.submission().taskrun() {
                break;
            }
            self.enter_now()?;
        }
        Ok(())
    }

    /// [`Ring::enter`] if many sends wait: keeps disk completions from starving behind a long delivery.
    ///
    /// # Errors
    /// As [`Ring::enter`].
    pub fn enter_if_many_sends(&mut self) -> io::Result<()> {
        if self.sends_since_enter >= SENDS_PER_ENTER_MAX { self.enter_now() } else { Ok(()) }
    }

    /// Submits, then waits until something completes or the time is over.
    ///
    /// # Errors
    /// As [`Ring::enter`].
    pub fn park(&mut self, timeout_us: u64) -> io::Result<()> {
        self.sends_since_enter = 0;
        self.enters += 1;
        let time = Timespec::new().sec(timeout_us / 1_000_000).nsec((timeout_us % 1_000_000) as u32 * 1000);
        let args = SubmitArgs::new().timespec(&time);
        match self.uring.submitter().submit_with_args(1, &args) {
            Ok(_) => Ok(()),
            Err(e) => forgive(e),
        }
    }

    /// Moves up to `limit` completions into `into`, which is cleared first.
    pub fn reap(&mut self, into: &mut Vec<Completion>, limit: usize) {
        into.clear();
        for entry in self.uring.completion().take(limit) {
            // A word this process never sent can only be a kernel fault; there is nobody to give it to.
            if let Some(user_data) = UserData::from_raw(entry.user_data()) {
                into.push(Completion { user_data, result: entry.result(), flags: entry.flags() });
            }
        }
    }

    /// Nothing has completed that was not reaped.
    pub fn is_quiet(&mut self) -> bool {
        let quiet = self.uring.completion().is_empty();
        quiet && !self.uring.submission().taskrun()
    }

    fn enter_now(&mut self) -> io::Result<()> {
        self.sends_since_enter = 0;
        self.enters += 1;
        let to_submit = self.uring.submission().len() as u32;
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument is passed; the counts are the ring's own.
        match unsafe { self.uring.submitter().enter::<libc::sigset_t>(to_submit, 0, flags, None) } {
            Ok(_) => Ok(()),
            Err(e) => forgive(e),
        }
    }

    fn push_safe(&mut self, entry: Entry, user_data: UserData) {
        // SAFETY: callers of this function build entries that refer to no memory of ours.
        unsafe { self.push(entry, user_data) }
    }

    /// # Safety
    /// Memory that the entry refers to stays valid until its completion has been seen.
    unsafe fn push(&mut self, entry: Entry, user_data: UserData) {
        self.make_room(1);
        let entry = entry.user_data(user_data.raw());
        // SAFETY: passed on to the caller. There is room: `make_room` made it.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        assert!(pushed.is_ok(), "room was made for one entry");
    }

    /// # Safety
    /// As [`Ring::push`], for both.
    unsafe fn push_linked(&mut self, first: Entry, second: Entry) {
        self.make_room(2);
        // SAFETY: passed on to the caller. There is room: `make_room` made it.
        let pushed = unsafe { self.uring.submission().push_multiple(&[first, second]) };
        assert!(pushed.is_ok(), "room was made for two entries");
    }

    fn make_room(&mut self, entries: usize) {
        let queue = self.uring.submission();
        let free = queue.capacity() - queue.len();
        drop(queue);
        if free < entries {
            // The kernel takes every entry of a SUBMIT_ALL ring; only a broken ring leaves them.
            let entered = self.enter_now();
            let queue = self.uring.submission();
            assert!(queue.capacity() - queue.len() >= entries, "the ring takes no entries: {entered:?}");
        }
    }
}

fn close_entry(socket: Socket) -> Entry {
    match socket {
        Socket::Fd(fd) => opcode::Close::new(Fd(fd)).build(),
        Socket::Direct(slot) => opcode::Close::new(Fixed(slot)).build(),
    }
}

/// Waiting was cut short, or completions must be reaped first: the next turn does both.
fn forgive(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
        _ => Err(error),
    }
}

fn probe(uring: &IoUring) -> Result<(), RingError> {
    let mut probe = Probe::new();
    uring.submitter().register_probe(&mut probe).map_err(|e| RingError::new(Step::Probe, &e))?;
    let needed = [
        ("accept", opcode::Accept::CODE),
        ("recv", opcode::RecvMulti::CODE),
        ("send", opcode::Send::CODE),
        ("sendmsg", opcode::SendMsg::CODE),
        ("shutdown", opcode::Shutdown::CODE),
        ("close", opcode::Close::CODE),
        ("cancel", opcode::AsyncCancel2::CODE),
        ("msg_ring", opcode::MsgRingData::CODE),
        ("poll", opcode::PollAdd::CODE),
        ("write", opcode::Write::CODE),
        ("read", opcode::Read::CODE),
        ("fsync", opcode::Fsync::CODE),
        ("openat", opcode::OpenAt::CODE),
    ];
    match needed.into_iter().find(|(_, code)| !probe.is_supported(*code)) {
        None => Ok(()),
        Some((name, _)) => Err(RingError::missing(name)),
    }
}
