//! A copy of a data folder that can be served from, also while a server writes to the folder.
//!
//! ```text
//!   pin       list ─► open every file ─► list again: the same? then all of them were there at one moment, and stay readable
//!   growing   segments without a sidecar, each log's newest first: as far as their groups verify, zeros behind that
//!   whole     everything else: it never changes once it has its name
//!   prove     every record of the copy is read ─► DEST.partial becomes DEST
//! ```
//! A plain copy is none: it may have a checkpoint without the segments that it counts on, or groups without those before
//! them. Here a segment with a valid header proves that the one before it, which is read later, is complete; and a group is
//! taken only when all before it were. So the copy is what a kill would have left at some moment after the start, for each
//! shard its own.

use super::BLOCK_BYTES;
use super::folder::{DataFolder, FolderError, file_id, is_passing};
use super::lives;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use storage::disk::FileId;
use storage::ids::SegmentId;
use storage::manifest::{BadManifest, Manifest};
use storage::recovery::{self, RecoverError, Report};
use storage::segment::{SegmentExpect, SegmentHeader, Verdict, scan_segment};

/// The set of files changes a few times a minute, and to open them takes milliseconds.
const PINS_MAX: u32 = 100;
/// A group that is being written is complete a moment later.
const READS_MAX: u32 = 50;
const READ_AGAIN: Duration = Duration::from_millis(20);
const PARTIAL_SUFFIX: &str = ".partial";

/// What was copied.
#[derive(Debug)]
pub struct Backup {
    /// Files.
    pub files: usize,
    /// Their bytes, zeros at the end of growing segments left out.
    pub bytes: u64,
    /// The verdict on each file of the copy: none is corrupt.
    pub report: Report,
}

/// Why there is no copy. One line with the cure; nothing is left of it.
#[derive(Debug)]
pub enum BackupError {
    /// The folder cannot be looked at.
    Folder(FolderError),
    /// It holds no log.
    Empty {
        /// Folder.
        path: PathBuf,
    },
    /// Its manifest is not one.
    Manifest(BadManifest),
    /// There is something where the copy is to be.
    InTheWay {
        /// It.
        path: PathBuf,
    },
    /// Files came and went faster than they could be opened.
    Restless {
        /// Folder.
        path: PathBuf,
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
    /// The copy cannot be served from, and so neither can the folder.
    Damaged {
        /// The report's lines on what is corrupt.
        lines: Vec<String>,
    },
    /// The copy cannot be read back.
    Unreadable(RecoverError),
}

impl fmt::Display for BackupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackupError::Folder(why) => why.fmt(f),
            BackupError::Empty { path } => {
                write!(f, "{} holds no log: name the server's folder with --data", path.display())
            }
            BackupError::Manifest(why) => why.fmt(f),
            BackupError::InTheWay { path } => {
                write!(
                    f,
                    "{} exists already: a backup goes where nothing is; remove it, or name another place",
                    path.display()
                )
            }
            BackupError::Restless { path } => {
                write!(
                    f,
                    "files of {} came and went while they were opened, {PINS_MAX} times: try again",
                    path.display()
                )
            }
            BackupError::Io { doing, path, error } => {
                write!(f, "cannot {doing} {}: {error}", path.display())?;
                f.write_str(match error.raw_os_error() {
                    Some(libc::EACCES | libc::EPERM) => ": run it as the user of the server",
                    Some(libc::ENOSPC | libc::EDQUOT) => ": free some space there, or name another place",
                    Some(libc::EMFILE) => ": every file of the folder is held open; raise `ulimit -n`",
                    _ => "",
                })
            }
            BackupError::Damaged { lines } => write!(
                f,
                "the log is damaged, so the copy was thrown away; keep the backup before it, and look at `tidegate log verify`: {}",
                lines.join("; ")
            ),
            BackupError::Unreadable(why) => write!(f, "the copy cannot be read back: {why}"),
        }
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |error| BackupError::Io { doing, path, error }
}

/// Copies `folder` to `to`, which does not exist yet. What was acknowledged before the call is in the copy.
///
/// # Errors
/// [`BackupError`]; nothing is at `to` then.
pub fn copy(folder: &Path, to: &Path) -> Result<Backup, BackupError> {
    let source = DataFolder::inspect(folder).map_err(BackupError::Folder)?;
    let mut partial = to.as_os_str().to_owned();
    partial.push(PARTIAL_SUFFIX);
    let partial = PathBuf::from(partial);
    for path in [to, &partial] {
        if path.symlink_metadata().is_ok() {
            return Err(BackupError::InTheWay { path: path.to_owned() });
        }
    }
    let pinned = Pinned::of(source.path())?;
    DirBuilder::new().mode(0o700).create(&partial).map_err(failed("make the folder", &partial))?;
    let done = pinned.copy_to(&partial).and_then(|backup| {
        fs::rename(&partial, to).map_err(failed("rename", &partial))?;
        sync_folder(to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        Ok(backup)
    });
    if done.is_err() {
        // This call has made it.
        let _ = fs::remove_dir_all(&partial);
    }
    done
}

/// Open files that were all in the folder at one moment. They can be read whatever becomes of their names.
struct Pinned {
    path: PathBuf,
    files: BTreeMap<String, File>,
    manifest: Manifest,
}

impl Pinned {
    fn of(path: &Path) -> Result<Pinned, BackupError> {
        for _ in 0..PINS_MAX {
            let before = names(path)?;
            let mut files = BTreeMap::new();
            for name in &before {
                match File::open(path.join(name)) {
                    Ok(file) => files.insert(name.clone(), file),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error) => return Err(failed("open", &path.join(name))(error)),
                };
            }
            // Names are never used again, so whatever is there before and after was there all the time.
            if files.len() == before.len() && names(path)? == before {
                let Some(manifest) = files.get(&FileId::Manifest.file_name()) else {
                    return Err(BackupError::Empty { path: path.to_owned() });
                };
                let bytes = read_all(manifest).map_err(failed("read the manifest of", path))?;
                let manifest = Manifest::parse(&bytes).map_err(BackupError::Manifest)?;
                return Ok(Pinned { path: path.to_owned(), files, manifest });
            }
        }
        Err(BackupError::Restless { path: path.to_owned() })
    }

    fn copy_to(&self, partial: &Path) -> Result<Backup, BackupError> {
        let growing = self.growing();
        let mut bytes = 0;
        // First, so that the moment that the copy shows is near its start.
        for segment in &growing {
            bytes += self.copy_growing(*segment, partial)?;
        }
        let growing: BTreeSet<String> = growing.iter().map(|segment| FileId::Segment(*segment).file_name()).collect();
        for (name, file) in self.files.iter().filter(|(name, _)| !growing.contains(*name)) {
            let to = partial.join(name);
            let copied = create(&to).and_then(|mut out| {
                let mut from = file;
                let bytes = io::copy(&mut from, &mut out)?;
                out.sync_all().map(|()| bytes)
            });
            bytes += copied.map_err(failed("copy to", &to))?;
        }
        lives::mark(partial).map_err(failed("mark", partial))?;
        sync_folder(partial)?;
        let copy = DataFolder::inspect(partial).map_err(BackupError::Folder)?;
        let report = recovery::verify(&&copy).map_err(BackupError::Unreadable)?;
        if report.is_corrupt() {
            let lines = report.to_string();
            let lines = lines.lines().filter(|line| line.contains("CORRUPT")).map(str::to_owned).collect();
            return Err(BackupError::Damaged { lines });
        }
        Ok(Backup { files: self.files.len(), bytes, report })
    }

    /// Segments that may still be written to, of each log the newest first.
    fn growing(&self) -> Vec<SegmentId> {
        let named: BTreeSet<FileId> = self.files.keys().filter_map(|name| file_id(name)).collect();
        let mut growing: Vec<SegmentId> = named
            .iter()
            .filter_map(|file| match file {
                FileId::Segment(segment) if !named.contains(&FileId::Sidecar(*segment)) => Some(*segment),
                _ => None,
            })
            .collect();
        growing.sort_by_key(|segment| std::cmp::Reverse((segment.log, segment.number)));
        growing
    }

    fn copy_growing(&self, segment: SegmentId, partial: &Path) -> Result<u64, BackupError> {
        let name = FileId::Segment(segment).file_name();
        let salt = self.manifest.key.segment_salt(segment);
        let mut bytes = Vec::new();
        let mut end = None;
        for _ in 0..READS_MAX {
            bytes = read_all(&self.files[&name]).map_err(failed("read", &self.path.join(&name)))?;
            end = settled_end(&bytes, segment, salt);
            if end.is_some() {
                break;
            }
            std::thread::sleep(READ_AGAIN);
        }
        // What stays unsettled is damage; the proof at the end names it.
        let end = end.unwrap_or(bytes.len());
        let to = partial.join(&name);
        create(&to)
            .and_then(|mut out| {
                out.write_all(&bytes[..end])?;
                out.set_len(bytes.len() as u64)?;
                out.sync_all()
            })
            .map_err(failed("copy to", &to))?;
        Ok(end as u64)
    }
}

/// How far a segment may be taken; `None` if something in its middle is not there yet.
fn settled_end(bytes: &[u8], segment: SegmentId, salt: u32) -> Option<usize> {
    if SegmentHeader::get(bytes).is_err() {
        // Prepared and unused.
        return bytes.iter().take(BLOCK_BYTES).all(|byte| *byte == 0).then_some(0);
    }
    let expect = SegmentExpect { segment, salt, first: None, fixed_end: None, durable_end: 0 };
    let scan = scan_segment(bytes, expect, |_, _| {});
    match scan.verdict {
        Verdict::Corrupt { .. } => None,
        Verdict::Clean | Verdict::TornTail { .. } => usize::try_from(scan.end).ok(),
    }
}

/// Everything in the folder that belongs to a copy. What a later version keeps there beside the log belongs to it too.
fn names(path: &Path) -> Result<BTreeSet<String>, BackupError> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(path).map_err(failed("list", path))? {
        let entry = entry.map_err(failed("list", path))?;
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        names.extend(entry.file_name().into_string().ok().filter(|name| is_file && !is_passing(name)));
    }
    Ok(names)
}

fn read_all(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn sync_folder(path: &Path) -> Result<(), BackupError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(failed("sync", path))
}
