//! The least that makes an event durable: groups of events, one write and one fdatasync each, into a file that was written once
//! before, so that nothing but data changes.
//!
//! ```text
//!   filling ──(a place is free)──► on its way: O_DIRECT write → fdatasync ──► what waited for it may go out
//! ```

use crate::ring::Ring;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

const BLOCK: usize = 4096;
/// The file begins again after so many bytes.
const FILE_BYTES: u64 = 256 << 20;
/// Biggest group.
const GROUP_BYTES: usize = 1 << 20;

pub struct Log {
    file: File,
    at: u64,
    groups: Vec<Group>,
    /// Groups that can be filled.
    free: Vec<usize>,
    filling: usize,
    /// On their way, oldest first: syncs may overtake each other, acknowledgements may not.
    flying: VecDeque<usize>,
    depth: usize,
}

struct Group {
    /// Bytes, and where the aligned part begins.
    memory: Vec<u8>,
    start: usize,
    len: usize,
    synced: bool,
    /// Events in it: what the server made of each.
    owed: Vec<usize>,
}

impl Group {
    fn new() -> Group {
        let memory = vec![0; GROUP_BYTES + BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        Group { memory, start, len: 0, synced: false, owed: Vec::new() }
    }
}

impl Log {
    pub fn create(path: &Path, depth: usize) -> io::Result<Log> {
        let mut zeroed = File::create(path)?;
        for _ in 0..FILE_BYTES / GROUP_BYTES as u64 {
            zeroed.write_all(&vec![0; GROUP_BYTES])?;
        }
        zeroed.sync_all()?;
        let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path)?;
        let groups: Vec<Group> = (0..=depth).map(|_| Group::new()).collect();
        Ok(Log { file, at: 0, free: (1..=depth).collect(), filling: 0, flying: VecDeque::new(), groups, depth })
    }

    /// Whether an event of this size fits into the group that is being filled.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.groups[self.filling].len + bytes <= GROUP_BYTES
    }

    /// Adds an event; `owed` comes back when it is on disk.
    pub fn append(&mut self, bytes: &[u8], owed: usize) {
        let group = &mut self.groups[self.filling];
        let at = group.start + group.len;
        group.memory[at..at + bytes.len()].copy_from_slice(bytes);
        group.len += bytes.len();
        group.owed.push(owed);
    }

    /// Sends the group that is being filled on its way, if it holds anything and there is a place.
    pub fn close(&mut self, ring: &mut Ring) -> io::Result<()> {
        if self.groups[self.filling].len == 0 || self.flying.len() == self.depth {
            return Ok(());
        }
        let Some(next) = self.free.pop() else { return Ok(()) };
        let closed = std::mem::replace(&mut self.filling, next);
        let group = &mut self.groups[closed];
        let whole = group.len.next_multiple_of(BLOCK);
        group.memory[group.start + group.len..group.start + whole].fill(0);
        if self.at + whole as u64 > FILE_BYTES {
            self.at = 0;
        }
        let bytes = &group.memory[group.start..group.start + whole];
        // SAFETY: a closed group is not touched until its sync has completed, which comes after the write.
        unsafe { ring.write_and_sync(self.file.as_raw_fd(), bytes, self.at, closed) }?;
        self.at += whole as u64;
        self.flying.push_back(closed);
        Ok(())
    }

    /// The sync of a group has completed: appends what is durable now, in order, to `durable`.
    pub fn synced(&mut self, group: usize, durable: &mut Vec<usize>) {
        self.groups[group].synced = true;
        while let Some(oldest) = self.flying.front().copied().filter(|oldest| self.groups[*oldest].synced) {
            self.flying.pop_front();
            let group = &mut self.groups[oldest];
            durable.append(&mut group.owed);
            (group.len, group.synced) = (0, false);
            self.free.push(oldest);
        }
    }
}
