//! What a power cut would leave, written down while it happens. Tests only: without the feature `power-cut` every
//! function here is empty.
//!
//! ```text
//!   executor, background, folder ── each write, sync, create, rename, removal ──► file named by POWER_CUT_JOURNAL
//!                                                                                         │
//!                        tests/crash rebuilds the folder as a cut anywhere in it leaves it ◄┘
//! ```
//! SIGKILL cannot reveal a missing sync, because the page cache survives it. Here an entry says *begun* before the
//! kernel is asked and *ended* after it answered, so that what the journal calls durable is durable, whatever else ran
//! at the same time. One journal per process: a `write` to a file is atomic enough under one lock.
//!
//! An entry: u32 length of what follows · u8 kind · u64 number · u64 at · u64 extra · u16 name length · name · bytes.

/// A write, sync or change of the folder that has begun.
#[derive(Clone, Copy, Default)]
#[must_use]
pub struct Begun(#[cfg(feature = "power-cut")] u64);

#[cfg(not(feature = "power-cut"))]
mod imp {
    use super::Begun;

    #[inline(always)]
    pub fn write_begins(_: impl FnOnce() -> String, _: u64, _: &[u8]) -> Begun {
        Begun()
    }
    #[inline(always)]
    pub fn zeros_begin(_: impl FnOnce() -> String, _: u64, _: u64) -> Begun {
        Begun()
    }
    #[inline(always)]
    pub fn write_ends(_: Begun) {}
    #[inline(always)]
    pub fn sync_begins(_: impl FnOnce() -> String, _: Option<Begun>) -> Begun {
        Begun()
    }
    #[inline(always)]
    pub fn sync_ends(_: Begun) {}
    #[inline(always)]
    pub fn entries_sync_begins() -> Begun {
        Begun()
    }
    #[inline(always)]
    pub fn created(_: impl FnOnce() -> String) {}
    #[inline(always)]
    pub fn cut(_: impl FnOnce() -> String, _: u64) {}
    #[inline(always)]
    pub fn renamed(_: impl FnOnce() -> String, _: impl FnOnce() -> String) {}
    #[inline(always)]
    pub fn removed(_: impl FnOnce() -> String) {}
}

#[cfg(feature = "power-cut")]
mod imp {
    use super::Begun;
    use std::fs::File;
    use std::io::Write as _;
    use std::sync::{Mutex, OnceLock, PoisonError};

    const WRITE: u8 = 1;
    const ZEROS: u8 = 2;
    const WRITTEN: u8 = 3;
    const SYNC: u8 = 4;
    const SYNCED: u8 = 5;
    const ENTRIES_SYNC: u8 = 6;
    const CREATED: u8 = 7;
    const CUT: u8 = 8;
    const RENAMED: u8 = 9;
    const REMOVED: u8 = 10;

    struct Journal {
        file: File,
        next: u64,
    }

    static JOURNAL: OnceLock<Option<Mutex<Journal>>> = OnceLock::new();

    fn journal() -> Option<&'static Mutex<Journal>> {
        let open = || {
            let path = std::env::var_os("POWER_CUT_JOURNAL")?;
            let file = File::create(&path).unwrap_or_else(|why| panic!("journal {}: {why}", path.display()));
            Some(Mutex::new(Journal { file, next: 1 }))
        };
        JOURNAL.get_or_init(open).as_ref()
    }

    /// `refers` is the number of an earlier entry; 0 numbers this one.
    fn enter(kind: u8, refers: u64, at: u64, extra: u64, name: impl FnOnce() -> String, bytes: &[u8]) -> Begun {
        let Some(journal) = journal() else { return Begun(0) };
        let name = name();
        let mut journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
        let number = if refers != 0 {
            refers
        } else {
            journal.next += 1;
            journal.next
        };
        let mut entry = Vec::with_capacity(64 + bytes.len());
        entry.extend_from_slice(&[0; 4]);
        entry.push(kind);
        for field in [number, at, extra] {
            entry.extend_from_slice(&field.to_le_bytes());
        }
        entry.extend_from_slice(&(name.len() as u16).to_le_bytes());
        entry.extend_from_slice(name.as_bytes());
        entry.extend_from_slice(bytes);
        let length = (entry.len() - 4) as u32;
        entry[..4].copy_from_slice(&length.to_le_bytes());
        journal.file.write_all(&entry).expect("the journal's disk has room");
        Begun(number)
    }

    fn nothing() -> String {
        String::new()
    }

    pub fn write_begins(name: impl FnOnce() -> String, at: u64, bytes: &[u8]) -> Begun {
        enter(WRITE, 0, at, 0, name, bytes)
    }
    pub fn zeros_begin(name: impl FnOnce() -> String, at: u64, len: u64) -> Begun {
        enter(ZEROS, 0, at, len, name, &[])
    }
    pub fn write_ends(begun: Begun) {
        let _ = enter(WRITTEN, begun.0, 0, 0, nothing, &[]);
    }
    pub fn sync_begins(name: impl FnOnce() -> String, linked: Option<Begun>) -> Begun {
        enter(SYNC, 0, 0, linked.map_or(0, |write| write.0), name, &[])
    }
    pub fn sync_ends(begun: Begun) {
        let _ = enter(SYNCED, begun.0, 0, 0, nothing, &[]);
    }
    pub fn entries_sync_begins() -> Begun {
        enter(ENTRIES_SYNC, 0, 0, 0, nothing, &[])
    }
    pub fn created(name: impl FnOnce() -> String) {
        let _ = enter(CREATED, 0, 0, 0, name, &[]);
    }
    pub fn cut(name: impl FnOnce() -> String, len: u64) {
        let _ = enter(CUT, 0, len, 0, name, &[]);
    }
    pub fn renamed(from: impl FnOnce() -> String, to: impl FnOnce() -> String) {
        let _ = enter(RENAMED, 0, 0, 0, from, to().as_bytes());
    }
    pub fn removed(name: impl FnOnce() -> String) {
        let _ = enter(REMOVED, 0, 0, 0, name, &[]);
    }
}

/// The file was opened so that it exists and is empty.
pub use imp::created;
/// The file was cut, or grew, to a length.
pub use imp::cut;
/// A sync of the folder is about to be asked for.
pub use imp::entries_sync_begins;
/// The file has no name any more.
pub use imp::removed;
/// The file has another name.
pub use imp::renamed;
/// A sync of the file is about to be asked for; where it is linked behind a write that is not answered yet, that one
/// comes first.
pub use imp::sync_begins;
/// A sync, of a file or of the folder, was answered without an error.
pub use imp::sync_ends;
/// A write of `bytes` to the file is about to be asked for.
pub use imp::write_begins;
/// A write was answered: all of it is in the page cache or on the disk.
pub use imp::write_ends;
/// A write of so many zeros is.
pub use imp::zeros_begin;
