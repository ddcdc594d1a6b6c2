//! Boot: from whatever a crash left in the folder to logs that go on.
//!
//! ```text
//!   manifest ─► logs ─► newest checkpoint ─► partitions
//!                  │                            ▲
//!                  └─► segments, as a chain ────┘ replay from the checkpoint's position on
//!
//!   s3 ◄── s4 ◄── s5 ◄── s6        each header names its predecessor and where that one ends
//!   │ sealed │     └──┬──┘
//!   └─sidecar┘      replayed; the end of s6 is found by reading it, that of every other is known
//! ```
//! What is read is decided first, for all logs; a single `Corrupt` verdict stops the boot with the report and before a byte
//! was changed. Then, in this order: the tail that was found is made durable (what a crash left in the page cache was never
//! synced), sidecars that are missing are built, files that no longer count are removed. Each log then goes on in a new
//! segment, whose header fixes for ever where the recovered one ended. A boot that crashes anywhere is simply repeated.
//!
//! Another number of shards: the partitions of all logs are dealt out to new logs by slice; the manifest that names them is the
//! switch. The old logs keep their sealed segments, which whoever owns a slice in them reads.
//!
//! A log that ran without sync keeps what reached the disk; after a power cut it may have lost its middle, and that is
//! reported as corruption like any other: such a folder made no promise.

mod inspect;
mod reshard;

use crate::checkpoint::{self, CheckpointIndex};
use crate::disk::{DiskFault, FileId};
use crate::group::BLOCK_BYTES;
use crate::ids::{HashKey, LogId, SegmentId};
use crate::log::RecoveredLog;
use crate::manifest::{BadManifest, Manifest};
use crate::record::RecordView;
use crate::segment::{Damage, SegmentExpect, Verdict, scan_segment};
use inspect::inspect;
use reshard::{adopt, reshard};
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;

/// The data folder, used only while booting (and by tools).
pub trait Folder {
    /// A file's bytes: a memory map, a vector.
    type Bytes: Deref<Target = [u8]>;

    /// All files that are ours.
    fn list(&self) -> Result<Vec<FileId>, DiskFault>;

    /// A whole file.
    fn read(&self, file: FileId) -> Result<Self::Bytes, DiskFault>;

    /// Replaces a file: temporary, sync, rename, sync of the folder.
    fn write_atomic(&mut self, file: FileId, bytes: &[u8]) -> Result<(), DiskFault>;

    /// Makes durable what [`Folder::read`] returned from `at` on: writes the same bytes there again and syncs. Writing again
    /// matters: after a failed sync the page cache may hold clean pages that never reached the disk.
    fn harden(&mut self, file: FileId, at: u64, bytes: &[u8]) -> Result<(), DiskFault>;

    /// Removes a file; one already gone is no fault.
    fn remove(&mut self, file: FileId) -> Result<(), DiskFault>;
}

/// How a file took part in the recovery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Read, checked, and what follows the checkpoint was replayed.
    Replayed,
    /// Sealed: its sidecar vouches for it, it was not read.
    Sealed,
    /// Prepared and never used, or cut off by an earlier recovery: removed.
    Dropped,
    /// A checkpoint, sidecar or manifest.
    Table,
}

/// What was found out about one file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Finding {
    /// File.
    pub file: FileId,
    /// How it took part.
    pub role: Role,
    /// Verdict.
    pub verdict: Verdict,
    /// End of its valid bytes.
    pub end: u64,
    /// Records in it.
    pub records: u64,
}

/// What a recovery found, file by file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// By log and file.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Something that was durable cannot be read.
    pub fn is_corrupt(&self) -> bool {
        self.findings.iter().any(|finding| matches!(finding.verdict, Verdict::Corrupt { .. }))
    }

    /// Bytes of torn tails that were cut.
    pub fn torn(&self) -> usize {
        self.findings.iter().filter(|finding| matches!(finding.verdict, Verdict::TornTail { .. })).count()
    }

    fn corrupt(&mut self, file: FileId, at: u64, damage: Damage) {
        let verdict = Verdict::Corrupt { at, damage };
        self.findings.push(Finding { file, role: Role::Table, verdict, end: at, records: 0 });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { file, role, verdict, end, records } in &self.findings {
            let role = match role {
                Role::Replayed => "read",
                Role::Sealed => "sealed",
                Role::Dropped => "dropped",
                Role::Table => "table",
            };
            writeln!(out, "{:<28} {role:<8} {records:>8} records {end:>10} bytes  {verdict}", file.file_name())?;
        }
        Ok(())
    }
}

/// Why a folder cannot be served. Nothing in it was changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecoverError {
    /// The disk did not do what was asked.
    Disk {
        /// File, where one was concerned.
        file: Option<FileId>,
        /// Its answer.
        fault: DiskFault,
    },
    /// The manifest cannot be used.
    Manifest(BadManifest),
    /// There are logs, but no manifest.
    NoManifest,
    /// Something that was durable cannot be read: a human must look.
    Corrupt(Report),
}

impl fmt::Display for RecoverError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecoverError::Disk { file: Some(file), fault } => write!(out, "{}: {fault:?}", file.file_name()),
            RecoverError::Disk { file: None, fault } => write!(out, "cannot list the data folder: {fault:?}"),
            RecoverError::Manifest(bad) => bad.fmt(out),
            RecoverError::NoManifest => {
                out.write_str("there are logs but no manifest; restore it from a backup, or name an empty folder")
            }
            RecoverError::Corrupt(report) => {
                write!(out, "the log is damaged; restore the files named below from a backup\n{report}")
            }
        }
    }
}

impl std::error::Error for RecoverError {}

/// A folder that can be served.
#[derive(Debug)]
pub struct Recovered {
    /// One for each shard.
    pub logs: Vec<RecoveredLog>,
    /// Key of the folder.
    pub key: HashKey,
    /// What was found.
    pub report: Report,
}

/// Recovers the folder for so many shards. `fresh_key` becomes the key of a folder that is new; it must be random.
///
/// # Errors
/// The folder cannot be served; nothing was changed, unless the disk failed in the middle.
pub fn recover<F: Folder>(folder: &mut F, shards: u16, fresh_key: HashKey) -> Result<Recovered, RecoverError> {
    let files: BTreeSet<FileId> =
        folder.list().map_err(|fault| RecoverError::Disk { file: None, fault })?.into_iter().collect();
    let mut report = Report::default();
    let (manifest, is_before) = match read_manifest(folder, &files)? {
        Some(found) => found,
        None => {
            let manifest = Manifest::new(fresh_key, shards);
            write(folder, FileId::Manifest, &manifest.encode())?;
            (manifest, false)
        }
    };

    let mut current = Vec::new();
    for log in &manifest.logs {
        current.push(inspect(folder, &manifest, *log, &files, true, &mut report)?);
    }
    let mut old = Vec::new();
    for log in &manifest.old {
        old.push(inspect(folder, &manifest, *log, &files, false, &mut report)?);
    }
    // A change of the number of shards reads every page of the checkpoints: also that before anything is changed.
    for found in current.iter().filter(|_| manifest.logs.len() != usize::from(shards)) {
        if let (Some(index), Some(bytes)) = (found.catalog.checkpoint(), found.checkpoint.as_deref())
            && checkpoint::verify_pages(index, bytes).is_err()
        {
            report.corrupt(index.file(), 0, Damage::Table);
        }
    }
    if report.is_corrupt() {
        return Err(RecoverError::Corrupt(report));
    }

    if is_before {
        write(folder, FileId::Manifest, &manifest.encode())?;
    }
    for found in current.iter_mut().chain(&mut old) {
        found.settle(folder)?;
    }
    let known = |log: LogId| manifest.logs.contains(&log) || manifest.old.contains(&log);
    for file in files.iter().filter(|file| log_of(**file).is_some_and(|log| !known(log))) {
        // Of a change of shards that crashed before its manifest.
        remove(folder, *file)?;
    }

    let key = manifest.key;
    let logs = if manifest.logs.len() == usize::from(shards) {
        adopt(manifest, current, old)
    } else {
        reshard(folder, manifest, current, old, shards)?
    };
    Ok(Recovered { logs, key, report })
}

/// Looks at a folder without changing it: the verdict on every file, every record read. For `tidegate log verify`.
///
/// # Errors
/// The folder cannot even be looked at. Damage is in the report, not an error.
pub fn verify<F: Folder>(folder: &F) -> Result<Report, RecoverError> {
    let files: BTreeSet<FileId> =
        folder.list().map_err(|fault| RecoverError::Disk { file: None, fault })?.into_iter().collect();
    let (manifest, _) = read_manifest(folder, &files)?.ok_or(RecoverError::NoManifest)?;
    let mut report = Report::default();
    for (log, current) in manifest.old.iter().map(|log| (log, false)).chain(manifest.logs.iter().map(|log| (log, true)))
    {
        inspect(folder, &manifest, *log, &files, current, &mut report)?;
    }
    // What the recovery takes on trust, read as well.
    for at in 0..report.findings.len() {
        let finding = report.findings[at];
        match (finding.role, finding.file) {
            (Role::Sealed, FileId::Segment(segment)) => {
                let bytes = read(folder, finding.file)?;
                let expect = SegmentExpect {
                    segment,
                    salt: manifest.key.segment_salt(segment),
                    first: None,
                    fixed_end: Some(finding.end),
                    durable_end: finding.end,
                };
                report.findings[at].verdict = scan_segment(&bytes, expect, |_, _| {}).verdict;
            }
            (Role::Table, FileId::Checkpoint(log, number)) => {
                let bytes = read(folder, finding.file)?;
                let verified = CheckpointIndex::parse(log, number, &bytes)
                    .and_then(|index| checkpoint::verify_pages(&index, &bytes));
                if verified.is_err() {
                    report.findings[at].verdict = Verdict::Corrupt { at: 0, damage: Damage::Table };
                }
            }
            _ => {}
        }
    }
    Ok(report)
}

/// Shows every record of the folder's logs to `visit`, file by file in the order of the logs, as far as it verifies. For
/// `tidegate log dump`.
///
/// # Errors
/// The folder cannot even be looked at.
pub fn dump<F: Folder>(
    folder: &F,
    mut visit: impl FnMut(SegmentId, u64, RecordView<'_>),
) -> Result<Report, RecoverError> {
    let files: BTreeSet<FileId> =
        folder.list().map_err(|fault| RecoverError::Disk { file: None, fault })?.into_iter().collect();
    let (manifest, _) = read_manifest(folder, &files)?.ok_or(RecoverError::NoManifest)?;
    let mut report = Report::default();
    for (log, current) in manifest.old.iter().map(|log| (log, false)).chain(manifest.logs.iter().map(|log| (log, true)))
    {
        inspect(folder, &manifest, *log, &files, current, &mut report)?;
    }
    for finding in &report.findings {
        let FileId::Segment(segment) = finding.file else { continue };
        if finding.role == Role::Dropped || finding.end <= BLOCK_BYTES as u64 {
            continue;
        }
        let bytes = read(folder, finding.file)?;
        let expect = SegmentExpect {
            segment,
            salt: manifest.key.segment_salt(segment),
            first: None,
            fixed_end: Some(finding.end),
            durable_end: 0,
        };
        scan_segment(&bytes, expect, |position, record| visit(segment, position, record));
    }
    Ok(report)
}

/// The manifest, and whether it is of the version before.
fn read_manifest<F: Folder>(folder: &F, files: &BTreeSet<FileId>) -> Result<Option<(Manifest, bool)>, RecoverError> {
    if files.contains(&FileId::Manifest) {
        let bytes = read(folder, FileId::Manifest)?;
        let manifest = Manifest::parse(&bytes).map_err(RecoverError::Manifest)?;
        return Ok(Some((manifest, Manifest::is_of_version_before(&bytes))));
    }
    if files.is_empty() { Ok(None) } else { Err(RecoverError::NoManifest) }
}

fn log_of(file: FileId) -> Option<LogId> {
    match file {
        FileId::Segment(segment) | FileId::Sidecar(segment) => Some(segment.log),
        FileId::Checkpoint(log, _) => Some(log),
        FileId::Manifest => None,
    }
}

fn read<F: Folder>(folder: &F, file: FileId) -> Result<F::Bytes, RecoverError> {
    folder.read(file).map_err(|fault| RecoverError::Disk { file: Some(file), fault })
}

fn write<F: Folder>(folder: &mut F, file: FileId, bytes: &[u8]) -> Result<(), RecoverError> {
    folder.write_atomic(file, bytes).map_err(|fault| RecoverError::Disk { file: Some(file), fault })
}

fn remove<F: Folder>(folder: &mut F, file: FileId) -> Result<(), RecoverError> {
    folder.remove(file).map_err(|fault| RecoverError::Disk { file: Some(file), fault })
}
