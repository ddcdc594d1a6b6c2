//! Files: the data folder, the executor that carries out what a log asks for, and the background thread.
//!
//! ```text
//!   boot ────────────► folder      lock, format probe, read-only maps, atomic replace
//!   shard's turn ────► executor    Commit, Read: on the shard's own ring
//!                        └───────► background    Job: one glommio executor for the whole process, off every hot path
//!   tidegate backup ─► backup      a copy of the folder of a running server
//! ```
//! Nothing here knows what the bytes mean; `storage` decides that.

pub mod background;
pub mod backup;
pub mod executor;
pub mod folder;
pub mod keys;
pub mod lives;
mod recorder;
pub mod small;

use storage::disk::DiskFault;

/// Smallest unit the log reads and writes: position, length and memory of every operation are multiples of it.
pub const BLOCK_BYTES: usize = 4096;

/// What an operating system error means to the log. A failed sync is told apart by the caller, not by its number.
pub fn fault_of(errno: i32) -> DiskFault {
    match errno {
        libc::ENOSPC | libc::EDQUOT => DiskFault::NoSpace,
        libc::ENOENT => DiskFault::Missing,
        errno => DiskFault::Io { errno },
    }
}

/// The same for a standard library error.
pub fn fault_of_error(error: &std::io::Error) -> DiskFault {
    fault_of(error.raw_os_error().unwrap_or(libc::EIO))
}

/// The same for whoever runs the server: what happened, and the cure where there is one.
pub fn words_of(fault: DiskFault) -> String {
    let of = |errno| std::io::Error::from_raw_os_error(errno);
    match fault {
        DiskFault::NoSpace => "no space is left on the disk: free some, then start again".into(),
        DiskFault::SyncFailed { errno } => format!("a sync failed: {}", of(errno)),
        DiskFault::Missing => "a file is missing".into(),
        DiskFault::Io { errno } => of(errno).to_string(),
    }
}
