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

use crate::catalog::{Catalog, ProducerStep, REPLAY_RESIDENT_MAX, ReplayFault, Replayed};
use crate::checkpoint::{self, CheckpointIndex, CheckpointJob, LogPosition, Previous};
use crate::commit::CommitStart;
use crate::disk::{DiskFault, FileId};
use crate::group::{BLOCK_BYTES, GroupHeader};
use crate::ids::{HashKey, LogId, SegmentId, SliceId};
use crate::log::RecoveredLog;
use crate::manifest::{BadManifest, Manifest};
use crate::recluster::{CLUSTERED, SegmentMap, covers, is_clustered};
use crate::record::RecordView;
use crate::segment::{
    Damage, HeaderFault, SegmentExpect, SegmentHeader, SegmentKind, SegmentScan, Verdict, scan_segment,
};
use crate::sidecar::{BadSidecar, SidecarBuilder, SidecarIndex};
use std::collections::{BTreeMap, BTreeSet};
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
    let manifest = match read_manifest(folder, &files)? {
        Some(manifest) => manifest,
        None => {
            let manifest = Manifest::new(fresh_key, shards);
            write(folder, FileId::Manifest, &manifest.encode())?;
            manifest
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
    if report.is_corrupt() {
        return Err(RecoverError::Corrupt(report));
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
    let manifest = read_manifest(folder, &files)?.ok_or(RecoverError::NoManifest)?;
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
    let manifest = read_manifest(folder, &files)?.ok_or(RecoverError::NoManifest)?;
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

/// Everything that was found out about one log.
struct Found<B> {
    log: LogId,
    catalog: Catalog,
    checkpoint: Option<B>,
    start: CommitStart,
    next_checkpoint: u32,
    next_clustered: u32,
    sidecars: Vec<SidecarIndex>,
    /// The tail to be made durable: file, from where, to where, its bytes.
    tail: Option<(FileId, u64, u64, B)>,
    build: Vec<(FileId, Vec<u8>)>,
    remove: Vec<FileId>,
}

impl<B: Deref<Target = [u8]>> Found<B> {
    /// Makes the folder what the recovery decided it to be.
    fn settle<F: Folder<Bytes = B>>(&mut self, folder: &mut F) -> Result<(), RecoverError> {
        if let Some((file, from, to, bytes)) = self.tail.take() {
            folder
                .harden(file, from, &bytes[from as usize..to as usize])
                .map_err(|fault| RecoverError::Disk { file: Some(file), fault })?;
        }
        for (file, bytes) in self.build.drain(..) {
            write(folder, file, &bytes)?;
        }
        for file in self.remove.drain(..) {
            remove(folder, file)?;
        }
        Ok(())
    }
}

/// Reads what there is of one log and decides on it; changes nothing.
fn inspect<F: Folder>(
    folder: &F,
    manifest: &Manifest,
    log: LogId,
    files: &BTreeSet<FileId>,
    current: bool,
    report: &mut Report,
) -> Result<Found<F::Bytes>, RecoverError> {
    let mut found = Found {
        log,
        catalog: Catalog::new(log, REPLAY_RESIDENT_MAX, None),
        checkpoint: None,
        start: CommitStart { log, next_segment: 0, previous: None, next_group: 1, next_log_seq: 0 },
        next_checkpoint: 0,
        next_clustered: CLUSTERED,
        sidecars: Vec::new(),
        tail: None,
        build: Vec::new(),
        remove: Vec::new(),
    };
    let checkpoints = files.iter().copied().filter(|file| matches!(file, FileId::Checkpoint(of, _) if *of == log));
    let position = if current {
        found.take_checkpoint(folder, checkpoints.collect(), report)?
    } else {
        // Superseded by a change of shards.
        found.remove.extend(checkpoints);
        None
    };
    let clean_stop = found.catalog.checkpoint().is_some_and(|index| index.clean_stop);

    // Sidecars vouch for their segments; one that cannot be read is built again.
    let mut sidecars: BTreeMap<u32, SidecarIndex> = BTreeMap::new();
    for file in files.iter().copied() {
        let FileId::Sidecar(segment) = file else { continue };
        if segment.log != log {
            continue;
        }
        if !files.contains(&FileId::Segment(segment)) {
            found.remove.push(file);
            continue;
        }
        match SidecarIndex::parse(segment, &read(folder, file)?) {
            Ok(index) => {
                sidecars.insert(segment.number, index);
            }
            Err(BadSidecar::Version { found }) => {
                report.corrupt(file, 0, Damage::Version { found: found as u16 });
            }
            Err(BadSidecar::Corrupt { .. }) => {}
        }
    }

    let mut map = SegmentMap::default();
    let mut appended: BTreeMap<u32, Result<SegmentHeader, HeaderFault>> = BTreeMap::new();
    for file in files.iter().copied() {
        let FileId::Segment(segment) = file else { continue };
        if segment.log != log {
            continue;
        }
        if is_clustered(segment) {
            found.next_clustered = found.next_clustered.max(segment.number + 1);
            found.take_clustered(folder, manifest, segment, &mut sidecars, &mut map, report)?;
        } else {
            found.start.next_segment = found.start.next_segment.max(segment.number + 1);
            let bytes = read(folder, file)?;
            appended.insert(segment.number, SegmentHeader::get(&bytes));
        }
    }
    // What a clustered segment stands in for is gone, whether or not the removal had begun.
    for number in appended.keys().copied().collect::<Vec<_>>() {
        let segment = SegmentId { log, number };
        if map.resolve(segment).is_some() {
            appended.remove(&number);
            sidecars.remove(&number);
            found.remove.extend([FileId::Segment(segment), FileId::Sidecar(segment)]);
        }
    }

    let chain = found.chain(&appended, position, current, report);
    let mut ends: BTreeMap<u32, u64> = sidecars.iter().map(|(number, index)| (*number, index.contents.end)).collect();
    for (_, header) in &chain {
        if let Some((previous, end)) = header.previous
            && *ends.entry(previous).or_insert(end) != end
        {
            report.corrupt(FileId::Segment(SegmentId { log, number: previous }), end, Damage::BeyondEnd);
        }
    }
    if let Some(position) = position
        && clean_stop
        && position.at > 0
    {
        ends.entry(position.segment).or_insert(position.at);
    }

    let first = position.map_or((1, 0), |position| (position.group.max(1), position.log_seq));
    let mut next = first;
    let mut follows: Option<u32> = None;
    for (number, header) in &chain {
        let segment = SegmentId { log, number: *number };
        let fixed_end = ends.get(number).copied();
        let replay = current
            && position.is_none_or(|position| {
                *number > position.segment || (*number == position.segment && fixed_end != Some(position.at))
            });
        if !replay && let Some(index) = sidecars.get(number) {
            found.sealed(segment, index, report);
            found.start.previous = Some((*number, index.contents.end));
            // Not replayed, so the checkpoint is at its end or behind it.
            (next, follows) = (first, None);
            continue;
        }
        let bytes = read(folder, FileId::Segment(segment))?;
        let expect = SegmentExpect {
            segment,
            salt: manifest.key.segment_salt(segment),
            first: (follows.is_some() && header.previous.map(|(previous, _)| previous) == follows).then_some(next),
            fixed_end,
            durable_end: position.filter(|position| position.segment == *number).map_or(0, |position| position.at),
        };
        let skip_below = position.map_or(0, |position| position.log_seq);
        let scan = found.scan(&bytes, expect, replay.then_some(skip_below), !sidecars.contains_key(number), report);
        if !matches!(scan.verdict, Verdict::Corrupt { .. }) && fixed_end.is_none() && scan.end > 0 {
            let from = first_undurable(&bytes, &scan);
            found.tail = Some((FileId::Segment(segment), from, scan.end, bytes));
        }
        next = (scan.next_group, scan.next_log_seq);
        follows = Some(*number);
        found.start.previous = Some((*number, scan.end));
    }
    (found.start.next_group, found.start.next_log_seq) = next;
    if let Some(position) = position {
        let at_least = if position.at > 0 { position.segment + 1 } else { position.segment };
        found.start.next_segment = found.start.next_segment.max(at_least);
        if next.1 < position.log_seq || (position.at > 0 && !appended.contains_key(&position.segment)) {
            let file = FileId::Segment(SegmentId { log, number: position.segment });
            report.corrupt(file, position.at, Damage::Missing);
        }
    }
    found.leftovers(folder, manifest, &appended, &chain, &sidecars, next, report)?;
    found.sidecars.extend(sidecars.into_values());
    found.sidecars.sort_by_key(|index| index.contents.covers);
    Ok(found)
}

impl<B: Deref<Target = [u8]>> Found<B> {
    /// The newest checkpoint, and where replay over it starts.
    fn take_checkpoint<F: Folder<Bytes = B>>(
        &mut self,
        folder: &F,
        mut checkpoints: Vec<FileId>,
        report: &mut Report,
    ) -> Result<Option<LogPosition>, RecoverError> {
        let Some(file @ FileId::Checkpoint(_, newest)) = checkpoints.pop() else { return Ok(None) };
        self.next_checkpoint = newest + 1;
        self.remove.append(&mut checkpoints);
        let bytes = read(folder, file)?;
        // It got its name when it was whole and durable, and the one before it went: there is no other to fall back to.
        match CheckpointIndex::parse(self.log, newest, &bytes) {
            Ok(index) => {
                let position = index.position;
                let end = bytes.len() as u64;
                let records = index.entries;
                report.findings.push(Finding { file, role: Role::Table, verdict: Verdict::Clean, end, records });
                self.catalog = Catalog::new(self.log, REPLAY_RESIDENT_MAX, Some(index));
                self.checkpoint = Some(bytes);
                Ok(Some(position))
            }
            Err(checkpoint::BadCheckpoint::Version { found }) => {
                report.corrupt(file, 0, Damage::Version { found: found as u16 });
                Ok(None)
            }
            Err(checkpoint::BadCheckpoint::Corrupt { at }) => {
                report.corrupt(file, at, Damage::Table);
                Ok(None)
            }
        }
    }

    /// A clustered segment: complete by construction, since it got its name last.
    fn take_clustered<F: Folder<Bytes = B>>(
        &mut self,
        folder: &F,
        manifest: &Manifest,
        segment: SegmentId,
        sidecars: &mut BTreeMap<u32, SidecarIndex>,
        map: &mut SegmentMap,
        report: &mut Report,
    ) -> Result<(), RecoverError> {
        let file = FileId::Segment(segment);
        if !sidecars.contains_key(&segment.number) {
            let bytes = read(folder, file)?;
            let header = SegmentHeader::get(&bytes).ok();
            let Some((header, range)) = header.and_then(|header| Some((header, covers(&header)?))) else {
                report.corrupt(file, 0, Damage::Header);
                return Ok(());
            };
            let mut builder = SidecarBuilder::new(segment, SegmentKind::Clustered, range);
            let expect = SegmentExpect {
                segment,
                salt: manifest.key.segment_salt(segment),
                first: None,
                fixed_end: Some(header.bytes),
                durable_end: header.bytes,
            };
            let scan = scan_segment(&bytes, expect, |position, record| builder.add(position as u32, record));
            if matches!(scan.verdict, Verdict::Corrupt { .. }) {
                let Verdict::Corrupt { at, damage } = scan.verdict else { return Ok(()) };
                report.corrupt(file, at, damage);
                return Ok(());
            }
            let (bytes, index) = builder.finish(scan.end);
            self.build.push((FileId::Sidecar(segment), bytes));
            sidecars.insert(segment.number, index);
        }
        let index = &sidecars[&segment.number];
        for gone in map.insert(segment, index.contents.covers) {
            self.remove.extend([FileId::Segment(gone), FileId::Sidecar(gone)]);
        }
        if map.resolve(SegmentId { log: segment.log, number: index.contents.covers.0 }) == Some(segment) {
            let index = index.clone();
            self.sealed(segment, &index, report);
        } else {
            sidecars.remove(&segment.number);
        }
        Ok(())
    }

    fn sealed(&mut self, segment: SegmentId, index: &SidecarIndex, report: &mut Report) {
        report.findings.push(Finding {
            file: FileId::Segment(segment),
            role: Role::Sealed,
            verdict: Verdict::Clean,
            end: index.contents.end,
            records: index.contents.records,
        });
    }

    /// The segments that make up the log, oldest first: from the newest with a valid header back along its predecessors.
    fn chain(
        &self,
        appended: &BTreeMap<u32, Result<SegmentHeader, HeaderFault>>,
        position: Option<LogPosition>,
        current: bool,
        report: &mut Report,
    ) -> Vec<(u32, SegmentHeader)> {
        let named = |number: u32| FileId::Segment(SegmentId { log: self.log, number });
        let mut chain = Vec::new();
        let mut next = appended.iter().rev().find_map(|(number, header)| header.is_ok().then_some(*number));
        while let Some(number) = next {
            match appended.get(&number) {
                Some(Ok(header)) if header.segment == (SegmentId { log: self.log, number }) => {
                    chain.push((number, *header));
                    next = header.previous.map(|(previous, _)| previous);
                }
                Some(Ok(_)) => {
                    report.corrupt(named(number), 0, Damage::Misplaced);
                    break;
                }
                Some(Err(_)) => {
                    report.corrupt(named(number), 0, Damage::Header);
                    break;
                }
                // Retention or re-clustering took it, which they may only do below the place where replay starts.
                None => {
                    let above = |position: LogPosition| (number, position.at.min(1)) > (position.segment, 0);
                    if current && position.is_none_or(above) {
                        report.corrupt(named(number), 0, Damage::Missing);
                    }
                    break;
                }
            }
        }
        chain.reverse();
        chain
    }

    /// Reads one segment of the chain; replays it from log sequence `replay` on, and builds its sidecar if asked to.
    fn scan(
        &mut self,
        bytes: &[u8],
        expect: SegmentExpect,
        replay: Option<u64>,
        build: bool,
        report: &mut Report,
    ) -> SegmentScan {
        let segment = expect.segment;
        let mut builder =
            build.then(|| SidecarBuilder::new(segment, SegmentKind::Appended, (segment.number, segment.number)));
        let mut bad: Option<(u64, ReplayFault)> = None;
        let pages = self.checkpoint.as_deref().unwrap_or_default();
        let mut scan = scan_segment(bytes, expect, |position, record| {
            if let Some(builder) = &mut builder {
                builder.add(position as u32, record);
            }
            if replay.is_some_and(|from| record.log_seq() >= from)
                && bad.is_none()
                && let Err(fault) = replay_record(&mut self.catalog, segment, record, pages)
            {
                bad = Some((position, fault));
            }
        });
        if let Some((at, fault)) = bad {
            scan.verdict = Verdict::Corrupt { at, damage: Damage::Replay(fault) };
        }
        let SegmentScan { verdict, end, records, .. } = scan;
        report.findings.push(Finding { file: FileId::Segment(segment), role: Role::Replayed, verdict, end, records });
        if let Some(builder) = builder
            && end > 0
            && !matches!(verdict, Verdict::Corrupt { .. })
        {
            let (bytes, index) = builder.finish(end);
            self.build.push((FileId::Sidecar(segment), bytes));
            self.sidecars.push(index);
        }
        scan
    }

    /// Segments outside the chain: sealed ones before a clustered range, prepared ones, and what an earlier recovery cut off.
    #[allow(clippy::too_many_arguments, reason = "one caller, and each is a table made there")]
    fn leftovers<F: Folder<Bytes = B>>(
        &mut self,
        folder: &F,
        manifest: &Manifest,
        appended: &BTreeMap<u32, Result<SegmentHeader, HeaderFault>>,
        chain: &[(u32, SegmentHeader)],
        sidecars: &BTreeMap<u32, SidecarIndex>,
        next: (u64, u64),
        report: &mut Report,
    ) -> Result<(), RecoverError> {
        let newest = chain.last().map(|(number, _)| *number);
        for (number, header) in appended {
            let segment = SegmentId { log: self.log, number: *number };
            let file = FileId::Segment(segment);
            if chain.iter().any(|(in_chain, _)| in_chain == number) {
                continue;
            }
            if let Some(index) = sidecars.get(number) {
                self.sealed(segment, index, report);
                continue;
            }
            let mut verdict = Verdict::Clean;
            if let Err(HeaderFault::Version { found }) = header {
                verdict = Verdict::Corrupt { at: 0, damage: Damage::Version { found: *found } };
            } else if newest.is_none_or(|newest| *number > newest) {
                let bytes = read(folder, file)?;
                // Prepared and unused, most likely. Its first group would be in block 1: where that is zero too, nothing
                // was ever written, and the rest need not be read.
                let front = bytes.get(..2 * BLOCK_BYTES).unwrap_or(&bytes);
                if !front.iter().all(|byte| *byte == 0) {
                    let salt = manifest.key.segment_salt(segment);
                    let expect = SegmentExpect { segment, salt, first: Some(next), fixed_end: None, durable_end: 0 };
                    verdict = scan_segment(&bytes, expect, |_, _| {}).verdict;
                }
            }
            report.findings.push(Finding { file, role: Role::Dropped, verdict, end: 0, records: 0 });
            self.remove.push(file);
        }
        Ok(())
    }
}

fn replay_record(
    catalog: &mut Catalog,
    segment: SegmentId,
    record: RecordView<'_>,
    pages: &[u8],
) -> Result<(), ReplayFault> {
    let replayed = Replayed {
        segment,
        log_seq: record.log_seq(),
        partition: record.partition(),
        tenant: record.tenant(),
        session: record.session(),
        epoch: record.epoch(),
        offset: record.offset(),
        count: record.count(),
        slice_seq: record.slice_seq(),
    };
    let producers = record.events().filter_map(|event| {
        let (epoch, seq) = event.producer()?;
        Some(ProducerStep { client_id: event.client_id(), epoch, seq, offset: event.offset() })
    });
    let page = |at: checkpoint::PageAt| {
        let from = usize::try_from(at.at).unwrap_or(usize::MAX);
        pages.get(from..).map_or(&[][..], |rest| &rest[..at.len.min(rest.len())])
    };
    catalog.replay(replayed, record.markers(), producers, page).map(|_| ())
}

/// Where the first group begins that nobody knows to be durable; the whole segment if not even its first is.
fn first_undurable(bytes: &[u8], scan: &SegmentScan) -> u64 {
    let mut at = BLOCK_BYTES as u64;
    while at < scan.end {
        match bytes.get(at as usize..).and_then(GroupHeader::get) {
            Some(group) if group.group <= scan.durable_through => at += u64::from(group.group_bytes),
            _ => break,
        }
    }
    if at == BLOCK_BYTES as u64 { 0 } else { at }
}

/// The same number of shards: each log goes on.
fn adopt<B: Deref<Target = [u8]>>(manifest: Manifest, current: Vec<Found<B>>, old: Vec<Found<B>>) -> Vec<RecoveredLog> {
    let shards = manifest.logs.len() as u16;
    let mut old: Vec<SidecarIndex> = old.into_iter().flat_map(|found| found.sidecars).collect();
    let mut logs: Vec<RecoveredLog> = (0..shards)
        .zip(current)
        .map(|(shard, found)| RecoveredLog {
            key: manifest.key,
            shard,
            shards,
            start: found.start,
            catalog: found.catalog,
            next_checkpoint: found.next_checkpoint,
            next_clustered: found.next_clustered,
            manages: managed(&manifest.old, shard, shards),
            segments: take_needed(&mut old, shard, shards).into_iter().chain(found.sidecars).collect(),
        })
        .collect();
    logs.iter_mut()
        .for_each(|log| log.segments.sort_by_key(|index| (index.contents.segment.log, index.contents.covers)));
    logs
}

/// Old logs whose segments this shard expires.
fn managed(old: &[LogId], shard: u16, shards: u16) -> Vec<LogId> {
    old.iter().copied().filter(|log| log.0 % u32::from(shards) == u32::from(shard)).collect()
}

/// Sealed segments of old logs that this shard reads, or manages.
fn take_needed(old: &mut [SidecarIndex], shard: u16, shards: u16) -> Vec<SidecarIndex> {
    let needed = |index: &&mut SidecarIndex| {
        index.contents.segment.log.0 % u32::from(shards) == u32::from(shard)
            || index.slice_ranges().iter().any(|range| owner(range.slice, shards) == usize::from(shard))
    };
    old.iter_mut().filter(needed).map(|index| index.clone()).collect()
}

/// Shard that owns a slice.
fn owner(slice: SliceId, shards: u16) -> usize {
    usize::from(slice.0 % shards)
}

/// Another number of shards: all partitions are dealt out to new logs.
fn reshard<F: Folder>(
    folder: &mut F,
    manifest: Manifest,
    current: Vec<Found<F::Bytes>>,
    old: Vec<Found<F::Bytes>>,
    shards: u16,
) -> Result<Vec<RecoveredLog>, RecoverError> {
    let mut sources = Vec::new();
    let mut sidecars: Vec<SidecarIndex> = old.into_iter().flat_map(|found| found.sidecars).collect();
    let mut superseded = Vec::new();
    for mut found in current {
        sidecars.append(&mut found.sidecars);
        found.catalog.collect_begin(LogPosition::default());
        while !found.catalog.collect(usize::MAX) {}
        let draft = found.catalog.collect_end(found.start.next_log_seq, true);
        let previous = found.catalog.checkpoint().map(Previous::from);
        superseded.extend(found.catalog.checkpoint().map(CheckpointIndex::file));
        let job = CheckpointJob { log: found.log, number: found.next_checkpoint, draft, previous };
        let file = FileId::Checkpoint(found.log, found.next_checkpoint.saturating_sub(1));
        let made = checkpoint::merge(job, found.checkpoint.as_deref().unwrap_or_default())
            .map_err(|bad| corrupt_checkpoint(file, bad))?;
        sources.push((file, made));
    }
    let logs: Vec<LogId> = (0..u32::from(shards)).map(|shard| LogId(manifest.next_log.0 + shard)).collect();
    let targets: Vec<checkpoint::Target> = logs.iter().map(|log| (*log, 0)).collect();
    let borrowed: Vec<_> = sources.iter().map(|(_, (bytes, index))| (index, &bytes[..])).collect();
    let made = checkpoint::reshape(&borrowed, &targets, |slice| owner(slice, shards))
        .map_err(|(at, bad)| corrupt_checkpoint(sources[at].0, bad))?;
    for (bytes, index) in &made {
        write(folder, index.file(), bytes)?;
    }
    let next = Manifest {
        key: manifest.key,
        next_log: LogId(manifest.next_log.0 + u32::from(shards)),
        logs: logs.clone(),
        old: manifest.old.iter().chain(&manifest.logs).copied().collect(),
    };
    write(folder, FileId::Manifest, &next.encode())?;
    // From here on the new logs count. A crash leaves files of old logs behind, which the next boot does not look at.
    for file in superseded {
        remove(folder, file)?;
    }
    sidecars.sort_by_key(|index| (index.contents.segment.log, index.contents.covers));
    Ok((0..shards)
        .zip(made)
        .map(|(shard, (_, index))| RecoveredLog {
            key: manifest.key,
            shard,
            shards,
            start: CommitStart {
                log: logs[usize::from(shard)],
                next_segment: 0,
                previous: None,
                next_group: 1,
                next_log_seq: 0,
            },
            catalog: Catalog::new(logs[usize::from(shard)], REPLAY_RESIDENT_MAX, Some(index)),
            next_checkpoint: 1,
            next_clustered: CLUSTERED,
            manages: managed(&next.old, shard, shards),
            segments: take_needed(&mut sidecars, shard, shards),
        })
        .collect())
}

fn corrupt_checkpoint(file: FileId, bad: checkpoint::BadCheckpoint) -> RecoverError {
    let mut report = Report::default();
    match bad {
        checkpoint::BadCheckpoint::Version { found } => {
            report.corrupt(file, 0, Damage::Version { found: found as u16 })
        }
        checkpoint::BadCheckpoint::Corrupt { at } => report.corrupt(file, at, Damage::Table),
    }
    RecoverError::Corrupt(report)
}

fn read_manifest<F: Folder>(folder: &F, files: &BTreeSet<FileId>) -> Result<Option<Manifest>, RecoverError> {
    if files.contains(&FileId::Manifest) {
        return Manifest::parse(&read(folder, FileId::Manifest)?).map(Some).map_err(RecoverError::Manifest);
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
