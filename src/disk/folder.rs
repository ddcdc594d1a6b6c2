//! The data folder: who may use it, what is in it, and how a file is replaced so that a crash leaves the old or
//! the new one.
//!
//! ```text
//!   tidegate-data/            0700
//!     LOCK                    flock of the one server at work; holds its process id
//!     manifest                which logs and checkpoints count
//!     seg-LLLLLLLL-NNNNNNNN.log · .idx      ckp-LLLLLLLL-NNNNNNNN.ckp
//!     *.tmp                   half-made files of a crashed process; removed at boot
//! ```

use super::{BLOCK_BYTES, fault_of_error, recorder};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use storage::disk::{DiskFault, FileId};
use storage::ids::{LogId, SegmentId};
use storage::recovery::Folder;

const LOCK_NAME: &str = "LOCK";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// Why a folder cannot be used. Its text is one line with the cure; the process ends with status 2.
#[derive(Debug)]
pub enum FolderError {
    /// Another server holds the lock.
    Locked {
        /// Folder.
        path: PathBuf,
        /// Process id of the holder, where it could be read.
        holder: Option<u32>,
    },
    /// There are files here that no Tidegate made, and no manifest.
    Foreign {
        /// Folder.
        path: PathBuf,
        /// One of them.
        name: String,
    },
    /// The operating system said no.
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Its answer.
        error: io::Error,
    },
}

impl std::fmt::Display for FolderError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FolderError::Locked { path, holder } => {
                write!(f, "data folder {} is in use by another server", path.display())?;
                if let Some(holder) = holder {
                    write!(f, " (process {holder} holds its lock)")?;
                }
                f.write_str(": stop it, or give this one its own folder with --data")
            }
            FolderError::Foreign { path, name } => write!(
                f,
                "folder {} holds {name:?} and no manifest, so it is no data folder: give an empty or new one with --data",
                path.display()
            ),
            FolderError::Io { doing, path, error } => {
                write!(f, "cannot {doing} {}: {error}", path.display())?;
                f.write_str(match error.raw_os_error() {
                    Some(libc::EACCES | libc::EPERM) => ": the folder must belong to the user that runs the server",
                    Some(libc::EROFS) => ": mount its file system writable",
                    Some(libc::ENOSPC | libc::EDQUOT) => ": free some space, then start again",
                    Some(libc::ENOTDIR | libc::EEXIST) => ": give a folder with --data",
                    Some(libc::ENOENT) => ": give an existing folder",
                    _ => "",
                })
            }
        }
    }
}

impl std::error::Error for FolderError {}

/// An open data folder. One per process; shared by all threads, which only read it.
pub struct DataFolder {
    path: PathBuf,
    directory: File,
    /// Held for the life of the process; `None` when only looking.
    lock: Option<File>,
    direct: bool,
}

impl DataFolder {
    /// Opens the folder to serve from it: makes it if it does not exist, takes the lock, removes half-made files.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let failed = |doing, path: &Path| {
            let path = path.to_owned();
            move |error| FolderError::Io { doing, path, error }
        };
        if !path.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make the data folder", path))?;
            if let Some(parent) = path.parent() {
                let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                File::open(parent).and_then(|p| p.sync_all()).map_err(failed("sync", parent))?;
            }
        }
        let path = &path.canonicalize().map_err(failed("find", path))?;
        let directory = File::open(path).map_err(failed("open the data folder", path))?;
        let lock = take_lock(path)?;
        remove_temporary_files(path).map_err(failed("tidy the data folder", path))?;
        refuse_foreign_folder(path)?;
        // A process may have died between a rename and its sync: what this boot sees must be what the next one sees.
        directory.sync_all().map_err(failed("sync", path))?;
        let direct = takes_direct_writes(path).map_err(failed("write to the data folder", path))?;
        if !direct {
            tracing::warn!(
                folder = %path.display(),
                "this file system refuses O_DIRECT: writes go through the page cache; commits are durable but slower"
            );
        }
        Ok(Self { path: path.clone(), directory, lock: Some(lock), direct })
    }

    /// Opens the folder to look at it: nothing is made, locked or removed, and nothing can be written.
    pub fn inspect(path: &Path) -> Result<Self, FolderError> {
        let failed = |error| FolderError::Io { doing: "open the data folder", path: path.to_owned(), error };
        let directory = File::open(path).map_err(failed)?;
        if !directory.metadata().map_err(failed)?.is_dir() {
            return Err(failed(io::Error::from_raw_os_error(libc::ENOTDIR)));
        }
        Ok(Self { path: path.to_owned(), directory, lock: None, direct: false })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Path of a file in it.
    pub fn path_of(&self, file: FileId) -> PathBuf {
        self.path.join(file.file_name())
    }

    /// Path under which a file is made before it takes its name.
    pub fn temporary_path_of(&self, file: FileId) -> PathBuf {
        self.path.join(temporary_name(file))
    }

    /// Files may be opened with O_DIRECT.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// The folder itself, for opens relative to it.
    pub fn directory_fd(&self) -> RawFd {
        self.directory.as_raw_fd()
    }

    fn writable(&self) -> Result<(), DiskFault> {
        if self.lock.is_some() { Ok(()) } else { Err(DiskFault::Io { errno: libc::EROFS }) }
    }

    /// Makes entries added to or removed from the folder durable. A true fsync: an fdatasync of a directory need
    /// not commit an entry that left the directory's size as it was.
    pub fn sync_entries(&self) -> io::Result<()> {
        let sync = recorder::entries_sync_begins();
        self.directory.sync_all()?;
        recorder::sync_ends(sync);
        Ok(())
    }
}

/// A whole file, mapped; an empty one has no map.
pub struct FileBytes(Option<memmap2::Mmap>);

impl std::ops::Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// For boot and tools, before and without a shard: a page fault may wait here, which would stop a core later.
impl Folder for &DataFolder {
    type Bytes = FileBytes;

    fn list(&self) -> Result<Vec<FileId>, DiskFault> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(|e| fault_of_error(&e))? {
            let name = entry.map_err(|e| fault_of_error(&e))?.file_name();
            files.extend(name.to_str().and_then(file_id));
        }
        files.sort_unstable();
        Ok(files)
    }

    fn read(&self, file: FileId) -> Result<FileBytes, DiskFault> {
        let map = || {
            let file = File::open(self.path_of(file))?;
            if file.metadata()?.len() == 0 {
                return Ok(None);
            }
            // SAFETY: the folder is locked, so only this process changes its files, and during boot it writes to a
            // mapped file nothing but the bytes that are there already (`harden`). A tool that looks at a folder
            // without the lock may see a file grow or vanish, not shrink: segments are written in place at full size.
            unsafe { memmap2::Mmap::map(&file) }.map(Some)
        };
        map().map(FileBytes).map_err(|error| fault_of_error(&error))
    }

    fn write_atomic(&mut self, file: FileId, bytes: &[u8]) -> Result<(), DiskFault> {
        let temporary = self.temporary_path_of(file);
        let write = || {
            let mut options = OpenOptions::new();
            let mut out = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            let name = || temporary_name(file);
            recorder::created(name);
            let write = recorder::write_begins(name, 0, bytes);
            out.write_all(bytes)?;
            recorder::write_ends(write);
            let sync = recorder::sync_begins(name, None);
            out.sync_all()?;
            recorder::sync_ends(sync);
            std::fs::rename(&temporary, self.path_of(file))?;
            recorder::renamed(name, || file.file_name());
            self.sync_entries()
        };
        self.writable()?;
        write().map_err(|error| fault_of_error(&error))
    }

    fn harden(&mut self, file: FileId, at: u64, bytes: &[u8]) -> Result<(), DiskFault> {
        // By way of a buffer: `bytes` may be a map of the very pages that are written.
        let write = || {
            let out = OpenOptions::new().write(true).open(self.path_of(file))?;
            let (mut at, mut buffer) = (at, Vec::with_capacity(HARDEN_BYTES));
            for chunk in bytes.chunks(HARDEN_BYTES) {
                buffer.clear();
                buffer.extend_from_slice(chunk);
                let write = recorder::write_begins(|| file.file_name(), at, chunk);
                out.write_all_at(&buffer, at)?;
                recorder::write_ends(write);
                at += chunk.len() as u64;
            }
            let sync = recorder::sync_begins(|| file.file_name(), None);
            out.sync_all()?;
            recorder::sync_ends(sync);
            Ok(())
        };
        self.writable()?;
        write().map_err(|error| fault_of_error(&error))
    }

    fn remove(&mut self, file: FileId) -> Result<(), DiskFault> {
        self.writable()?;
        match std::fs::remove_file(self.path_of(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fault_of_error(&error)),
            // Not synced: a file that comes back is removed again by the next boot.
            Ok(()) => {
                recorder::removed(|| file.file_name());
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }
}

/// Bytes of one write of [`Folder::harden`].
const HARDEN_BYTES: usize = 1 << 20;

/// File of a name; `None` for names that are not ours.
pub fn file_id(name: &str) -> Option<FileId> {
    if name == FileId::Manifest.file_name() {
        return Some(FileId::Manifest);
    }
    let (kind, rest) = name.split_at_checked(4)?;
    let (log, rest) = rest.split_at_checked(8)?;
    let (number, ending) = rest.strip_prefix('-')?.split_at_checked(8)?;
    let log = LogId(u32::from_str_radix(log, 16).ok()?);
    let number = u32::from_str_radix(number, 16).ok()?;
    let file = match (kind, ending) {
        ("seg-", ".log") => FileId::Segment(SegmentId { log, number }),
        ("seg-", ".idx") => FileId::Sidecar(SegmentId { log, number }),
        ("ckp-", ".ckp") => FileId::Checkpoint(log, number),
        _ => return None,
    };
    // Only the one spelling counts: no sign, no upper case.
    (file.file_name() == name).then_some(file)
}

/// Names that are no part of what the folder holds: a lock, a file that is not finished, anybody's dot file.
pub(super) fn is_passing(name: &str) -> bool {
    name == LOCK_NAME || name.starts_with('.') || name.ends_with(TEMPORARY_SUFFIX)
}

/// Name under which a file is made before it takes its own.
pub(super) fn temporary_name(file: FileId) -> String {
    file.file_name() + TEMPORARY_SUFFIX
}

fn take_lock(folder: &Path) -> Result<File, FolderError> {
    let path = folder.join(LOCK_NAME);
    let failed = |error| FolderError::Io { doing: "lock", path: path.clone(), error };
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    // SAFETY: flock takes a descriptor that is open here and touches no memory.
    if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EWOULDBLOCK) {
            return Err(failed(error));
        }
        let mut holder = String::new();
        let _ = Read::by_ref(&mut lock).take(32).read_to_string(&mut holder);
        return Err(FolderError::Locked { path: folder.to_owned(), holder: holder.trim().parse().ok() });
    }
    lock.set_len(0)
        .and_then(|()| lock.seek(SeekFrom::Start(0)))
        .and_then(|_| writeln!(lock, "{}", std::process::id()))
        .map_err(failed)?;
    Ok(lock)
}

fn remove_temporary_files(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.ends_with(TEMPORARY_SUFFIX)) {
            std::fs::remove_file(entry.path())?;
            recorder::removed(|| entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(())
}

/// A typing error after `--data` must not fill somebody's home directory with segments.
fn refuse_foreign_folder(folder: &Path) -> Result<(), FolderError> {
    let failed = |error| FolderError::Io { doing: "list", path: folder.to_owned(), error };
    let mut foreign = None;
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        match file_id(&name) {
            Some(FileId::Manifest) => return Ok(()),
            Some(_) => {}
            // A mount point comes with `lost+found`; dot files are anybody's.
            None if name == LOCK_NAME || name == "lost+found" || name.starts_with('.') => {}
            None => foreign = Some(name),
        }
    }
    match foreign {
        Some(name) => Err(FolderError::Foreign { path: folder.to_owned(), name }),
        None => Ok(()),
    }
}

/// Some file systems refuse the flag at open, some the write: so try both, with one block.
fn takes_direct_writes(folder: &Path) -> io::Result<bool> {
    #[repr(align(4096))]
    struct Block([u8; BLOCK_BYTES]);
    let block = Block([0; BLOCK_BYTES]);
    let path = folder.join(format!("direct{TEMPORARY_SUFFIX}"));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(&path)?;
    let tried = options.custom_flags(libc::O_DIRECT).open(&path).and_then(|mut f| f.write_all(&block.0));
    std::fs::remove_file(&path)?;
    match tried {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}
