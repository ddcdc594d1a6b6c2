//! One log: what is in its files, decided without changing any.

use super::{Finding, Folder, RecoverError, Report, Role, read, remove, write};
use crate::catalog::{Catalog, ProducerStep, REPLAY_RESIDENT_MAX, Replay, ReplayFault, Replayed};
use crate::checkpoint::{self, CheckpointIndex, LogPosition};
use crate::commit::CommitStart;
use crate::disk::FileId;
use crate::group::{BLOCK_BYTES, GroupFault, GroupHeader};
use crate::ids::{LogId, SegmentId};
use crate::manifest::Manifest;
use crate::recluster::{CLUSTERED, SEGMENTS_END, SegmentMap, covers, is_clustered};
use crate::record::{EventView, RecordView};
use crate::segment::{
    Damage, HeaderFault, SegmentExpect, SegmentHeader, SegmentKind, SegmentScan, Verdict, scan_segment,
};
use crate::sidecar::{BadSidecar, SidecarBuilder, SidecarIndex};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

/// Everything that was found out about one log.
pub(super) struct Found<B> {
    pub(super) log: LogId,
    pub(super) catalog: Catalog,
    pub(super) checkpoint: Option<B>,
    pub(super) start: CommitStart,
    pub(super) next_checkpoint: u32,
    pub(super) next_clustered: u32,
    pub(super) sidecars: Vec<SidecarIndex>,
    /// The tail to be made durable: file, from where, to where, its bytes.
    tail: Option<(FileId, u64, u64, B)>,
    build: Vec<(FileId, Vec<u8>)>,
    remove: Vec<FileId>,
}

/// What a segment's sidecar says of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SidecarOf {
    /// Everything.
    Known,
    /// It is there and cannot be read: the segment was sealed.
    Sealed,
    /// There is none: the segment may end in a torn group.
    Unsealed,
}

impl<B: Deref<Target = [u8]>> Found<B> {
    /// Makes the folder what the recovery decided it to be.
    pub(super) fn settle<F: Folder<Bytes = B>>(&mut self, folder: &mut F) -> Result<(), RecoverError> {
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
pub(super) fn inspect<F: Folder>(
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

    // Sidecars vouch for their segments; one that cannot be read is built again, and still says by being there that its
    // segment was sealed, and so wholly durable.
    let mut sidecars: BTreeMap<u32, SidecarIndex> = BTreeMap::new();
    let mut unreadable: BTreeSet<u32> = BTreeSet::new();
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
            Err(BadSidecar::Corrupt { .. }) => {
                unreadable.insert(segment.number);
            }
        }
    }

    let mut map = SegmentMap::default();
    let mut appended: BTreeMap<u32, Result<SegmentHeader, HeaderFault>> = BTreeMap::new();
    for file in files.iter().copied() {
        let FileId::Segment(segment) = file else { continue };
        if segment.log != log {
            continue;
        }
        if matches!(segment.number, SEGMENTS_END | u32::MAX) {
            // No log gets this far, and after it there is no number for the next file.
            report.corrupt(file, 0, Damage::Misplaced);
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
        let sidecar = match (sidecars.contains_key(number), unreadable.contains(number)) {
            (true, _) => SidecarOf::Known,
            (_, true) => SidecarOf::Sealed,
            _ => SidecarOf::Unsealed,
        };
        let scan = found.scan(&bytes, expect, replay.then_some(skip_below), sidecar, report);
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
        // A file that is there and not in the chain has no header that can be read, though there were groups behind it.
        let held = chain.iter().any(|(number, _)| *number == position.segment);
        if next.1 < position.log_seq || (position.at > 0 && !held) {
            let file = FileId::Segment(SegmentId { log, number: position.segment });
            let there = !held && appended.contains_key(&position.segment);
            report.corrupt(file, position.at, if there { Damage::Header } else { Damage::Missing });
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
        let Some(next) = newest.checked_add(1) else {
            report.corrupt(file, 0, Damage::Misplaced);
            return Ok(None);
        };
        self.next_checkpoint = next;
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
        if let Entry::Vacant(vacant) = sidecars.entry(segment.number) {
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
            vacant.insert(index);
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

    /// Reads one segment of the chain; replays it from log sequence `replay` on, and builds its sidecar unless it is known. A torn
    /// tail in a sealed segment is damage.
    fn scan(
        &mut self,
        bytes: &[u8],
        expect: SegmentExpect,
        replay: Option<u64>,
        sidecar: SidecarOf,
        report: &mut Report,
    ) -> SegmentScan {
        let segment = expect.segment;
        let mut builder = (sidecar != SidecarOf::Known)
            .then(|| SidecarBuilder::new(segment, SegmentKind::Appended, (segment.number, segment.number)));
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
        if let (SidecarOf::Sealed, Verdict::TornTail { at }) = (sidecar, scan.verdict) {
            scan.verdict = Verdict::Corrupt { at, damage: Damage::Group(GroupFault::Header) };
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

    /// A sealed segment whose sidecar is lost: all of it was durable, so it is read and gets another one, or it is damage.
    fn sealed_without_sidecar(&mut self, bytes: &[u8], expect: SegmentExpect, report: &mut Report) {
        let segment = expect.segment;
        let mut builder = SidecarBuilder::new(segment, SegmentKind::Appended, (segment.number, segment.number));
        let scan = scan_segment(bytes, expect, |position, record| builder.add(position as u32, record));
        let verdict = match scan.verdict {
            Verdict::TornTail { at } => Verdict::Corrupt { at, damage: Damage::Group(GroupFault::Header) },
            _ if scan.end == 0 => Verdict::Corrupt { at: 0, damage: Damage::Header },
            verdict => verdict,
        };
        let SegmentScan { end, records, .. } = scan;
        report.findings.push(Finding { file: FileId::Segment(segment), role: Role::Replayed, verdict, end, records });
        if !matches!(verdict, Verdict::Corrupt { .. }) {
            let (bytes, index) = builder.finish(end);
            self.build.push((FileId::Sidecar(segment), bytes));
            self.sidecars.push(index);
        }
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
        let oldest = chain.first().map(|(number, _)| *number);
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
            } else if oldest.is_some_and(|oldest| *number < oldest) {
                // Sealed long ago, before a range that was clustered: only its sidecar said so, and that cannot be read.
                let bytes = read(folder, file)?;
                if !bytes.iter().skip(BLOCK_BYTES).take(BLOCK_BYTES).all(|byte| *byte == 0) {
                    let next_header = appended.get(&(number + 1)).and_then(|header| header.as_ref().ok());
                    let fixed_end =
                        next_header.and_then(|header| header.previous).filter(|previous| previous.0 == *number);
                    let salt = manifest.key.segment_salt(segment);
                    let fixed_end = fixed_end.map(|(_, end)| end);
                    let durable_end = fixed_end.unwrap_or(0);
                    let expect = SegmentExpect { segment, salt, first: None, fixed_end, durable_end };
                    self.sealed_without_sidecar(&bytes, expect, report);
                    continue;
                }
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
    if let Replay::Applied(slot) = catalog.replay(replayed, record.markers(), producers, page)? {
        record.events().filter_map(EventView::stream_step).for_each(|step| catalog.streamed(slot, step));
        record.entries().for_each(|step| catalog.entry_changed(slot, step, record.time_ms()));
        record.jobs().for_each(|step| catalog.job_stepped(slot, step, record.time_ms()));
    }
    Ok(())
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
