//! From the logs of a folder to those of the shards that serve it now.

use super::inspect::Found;
use super::{Folder, RecoverError, Report, remove, write};
use crate::catalog::{self, Catalog, REPLAY_RESIDENT_MAX};
use crate::checkpoint::{self, CheckpointIndex, CheckpointJob, LogPosition, Previous};
use crate::commit::CommitStart;
use crate::disk::FileId;
use crate::ids::{LogId, SliceId};
use crate::log::RecoveredLog;
use crate::manifest::Manifest;
use crate::recluster::CLUSTERED;
use crate::segment::Damage;
use crate::sidecar::SidecarIndex;
use std::ops::Deref;

/// The same number of shards: each log goes on.
pub(super) fn adopt<B: Deref<Target = [u8]>>(
    manifest: Manifest,
    current: Vec<Found<B>>,
    old: Vec<Found<B>>,
) -> Vec<RecoveredLog> {
    let shards = manifest.logs.len() as u16;
    let mut old: Vec<SidecarIndex> = old.into_iter().flat_map(|found| found.sidecars).collect();
    let mut logs: Vec<RecoveredLog> = (0..shards)
        .zip(current)
        .map(|(shard, found)| RecoveredLog {
            streaming: match (found.catalog.checkpoint(), found.checkpoint.as_deref()) {
                (Some(index), Some(bytes)) => catalog::streaming(index, bytes),
                _ => Vec::new(),
            },
            sessions: match (found.catalog.checkpoint(), found.checkpoint.as_deref()) {
                (Some(index), Some(bytes)) => catalog::sessions_by_tenant(index, bytes),
                _ => Vec::new(),
            },
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
pub(super) fn reshard<F: Folder>(
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
        .map(|(shard, (bytes, index))| RecoveredLog {
            streaming: catalog::streaming(&index, &bytes),
            sessions: catalog::sessions_by_tenant(&index, &bytes),
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
