//! Boot on the simulated disk: the real recovery, which may itself be cut short by a crash.

use super::disk::SimDisk;
use super::options::Options;
use std::cell::Cell;
use storage::disk::{DiskFault, FileId};
use storage::ids::HashKey;
use storage::recovery::{self, Folder, RecoverError, Recovered};

/// The folder of a booting node. With `cut`, the node dies in the middle of that change.
struct BootFolder<'a> {
    disk: &'a mut SimDisk,
    cut: Option<u64>,
    died: bool,
    /// Reads until one fails.
    reads: Cell<Option<u64>>,
}

/// What came of a boot.
pub enum Booted {
    /// Logs that go on.
    Ready(Recovered),
    /// The node died in the middle.
    Died,
    /// A read failed, and the boot said so.
    Unreadable,
    /// The folder is damaged, it says.
    Refused(RecoverError),
}

const DEAD: DiskFault = DiskFault::Io { errno: libc::EIO };

impl BootFolder<'_> {
    /// Counts a change; `None`: it is not made, or only in part.
    fn change(&mut self) -> Option<()> {
        if self.died {
            return None;
        }
        if let Some(left) = &mut self.cut {
            if *left == 0 {
                self.died = true;
                return None;
            }
            *left -= 1;
        }
        Some(())
    }
}

impl Folder for BootFolder<'_> {
    type Bytes = Vec<u8>;

    fn list(&self) -> Result<Vec<FileId>, DiskFault> {
        Ok(self.disk.list())
    }

    fn read(&self, file: FileId) -> Result<Vec<u8>, DiskFault> {
        if let Some(reads) = self.reads.get() {
            self.reads.set(Some(reads.saturating_sub(1)));
            if reads == 0 {
                return Err(DEAD);
            }
        }
        self.disk.content(file).map(<[u8]>::to_vec).ok_or(DiskFault::Missing)
    }

    fn write_atomic(&mut self, file: FileId, bytes: &[u8]) -> Result<(), DiskFault> {
        let alive = !self.died;
        if self.change().is_none() {
            if alive {
                self.disk.write_atomic_cut(file, bytes);
            }
            return Err(DEAD);
        }
        self.disk.write_atomic(file, bytes);
        Ok(())
    }

    fn harden(&mut self, file: FileId, at: u64, bytes: &[u8]) -> Result<(), DiskFault> {
        let alive = !self.died;
        let whole = self.change().is_some();
        if whole || alive {
            self.disk.harden(file, at as usize, bytes, whole);
        }
        if whole { Ok(()) } else { Err(DEAD) }
    }

    fn remove(&mut self, file: FileId) -> Result<(), DiskFault> {
        self.change().ok_or(DEAD)?;
        self.disk.remove(file);
        Ok(())
    }
}

/// Recovers. With `cut`, the node dies after so many changes; with `reads_fail`, a read may.
pub fn recover(disk: &mut SimDisk, options: &Options, cut: Option<u64>, reads_fail: bool) -> Booted {
    disk.open();
    let reads = Cell::new(if reads_fail { disk.reads_until_a_fault() } else { None });
    let mut folder = BootFolder { disk, cut, died: false, reads };
    let recovered = recovery::recover(&mut folder, options.shards, HashKey(17, 4711));
    let (died, unreadable) = (folder.died, folder.reads.get() == Some(0));
    match recovered {
        Ok(recovered) => Booted::Ready(recovered),
        Err(_) if died => Booted::Died,
        Err(RecoverError::Disk { fault: DEAD, .. }) if unreadable => Booted::Unreadable,
        Err(error) => Booted::Refused(error),
    }
}
