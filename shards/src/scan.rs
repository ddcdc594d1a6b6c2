//! Catch-up of pattern clients on the source's side: the log in log order, filtered by tenant and patterns.
//!
//! ```text
//!  Scan ── log.scan ──► record ── tenant? seen? pattern? ──► batch ──► local client, or SCANNED to its shard
//!   ▲                                                          │
//!   └── next request: how many records of the batch were taken ┘
//! ```
//! A scan lives from the moment its client falls behind (or starts from a position) until it meets the live point.

use crate::ids::{ConnectionId, ShardId, SliceId, SliceSeq};
use crate::names::pattern_matches;
use hashbrown::HashMap;
use std::hash::BuildHasherDefault;
use storage::ids::{LogSeq, SLICES};
use storage::log::Log;
use storage::log::ScanCursor;
use storage::record::{Kind, RecordView};
use xxhash_rust::xxh3::Xxh3Default;

/// Records a scan looks at in one step, wanted or not: bounds a turn.
pub(crate) const SCAN_RECORDS_PER_STEP_MAX: usize = 2048;

/// One pattern client that is behind on this source.
pub(crate) struct Scan {
    pub generation: u32,
    tenant: Box<str>,
    patterns: Box<[Box<str>]>,
    /// Next record to look at.
    pub cursor: ScanCursor,
    /// Last slice sequence seen of each slice; empty where the cursor says it all.
    seen: Box<[SliceSeq]>,
    /// Where the records of the last batch end; a batch that was not taken whole is read again from there.
    batch_start: ScanCursor,
    batch_ends: Vec<ScanCursor>,
}

/// Whom a batch is for, and how much of it the client can take now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchFor {
    pub shard: ShardId,
    pub connection: ConnectionId,
    pub generation: u32,
    /// Room reserved for the reply in the asker's lane.
    pub reply_bytes: u32,
    pub records_max: u32,
    pub bytes_max: u32,
}

impl BatchFor {
    /// Adds a record behind `records` others, with the events of it that are to be skipped; `false` if the batch is full. One
    /// record always fits.
    pub fn add(&self, batch: &mut Vec<u8>, records: usize, record: &[u8], skip: u32) -> bool {
        let full = records >= self.records_max as usize || batch.len() + record.len() + 4 > self.bytes_max as usize;
        if full && !batch.is_empty() {
            return false;
        }
        batch.extend_from_slice(&skip.to_le_bytes());
        batch.extend_from_slice(record);
        true
    }
}

/// What a record is to a scan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wanted {
    /// Nothing.
    No,
    /// From this event of it on.
    From(u32),
}

impl Scan {
    /// Starts after what a position says was seen.
    pub fn from_position(
        log: &Log,
        generation: u32,
        tenant: &str,
        patterns: &[&str],
        seen: &[(u16, SliceSeq)],
        own: impl Fn(SliceId) -> bool,
    ) -> Self {
        // What this shard does not own counts as seen: its owner delivers it.
        let mut by_slice: Vec<SliceSeq> =
            (0..SLICES).map(|slice| if own(SliceId(slice)) { 0 } else { SliceSeq::MAX }).collect();
        for (slice, seq) in seen {
            by_slice[usize::from(*slice)] = *seq;
        }
        let cursor = log.scan_from(|slice| own(slice).then(|| by_slice[usize::from(slice.0)]));
        Self {
            generation,
            tenant: tenant.into(),
            patterns: patterns.iter().map(|p| (*p).into()).collect(),
            cursor,
            seen: by_slice.into(),
            batch_start: cursor,
            batch_ends: Vec::new(),
        }
    }

    /// Starts at a record of this log.
    pub fn from_seq<'a>(
        log: &Log,
        generation: u32,
        tenant: &str,
        patterns: impl Iterator<Item = &'a str>,
        seq: LogSeq,
    ) -> Self {
        let cursor = log.scan_at(seq);
        Self {
            generation,
            tenant: tenant.into(),
            patterns: patterns.map(Into::into).collect(),
            cursor,
            seen: Box::default(),
            batch_start: cursor,
            batch_ends: Vec::new(),
        }
    }

    /// Is the record, or part of it, for this client?
    pub fn wants(&self, record: RecordView<'_>) -> Wanted {
        if record.count() == 0 || record.tenant() != &*self.tenant {
            return Wanted::No;
        }
        let seen = self.seen.get(usize::from(record.slice().0)).copied().unwrap_or(0);
        let last = record.slice_seq() + u64::from(record.slice_count()) - 1;
        if !self.seen.is_empty() && last <= seen {
            return Wanted::No;
        }
        if record.kind() == Kind::Text {
            // A position that lies in it says that it was not had as a whole, and no more: it comes whole. How far behind its end the
            // position is goes along, for no place named in it may be below.
            let short = if self.seen.is_empty() { 0 } else { u32::try_from(last - seen).unwrap_or(0) };
            let wanted = record.deltas().any(|delta| self.matches(delta.topic));
            return if wanted { Wanted::From(short) } else { Wanted::No };
        }
        let skip = if self.seen.is_empty() { 0 } else { (seen + 1).saturating_sub(record.slice_seq()) as u32 };
        let wanted = record.events().skip(skip as usize).any(|event| self.matches(event.topic()));
        if wanted { Wanted::From(skip) } else { Wanted::No }
    }

    fn matches(&self, topic: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern_matches(pattern, topic))
    }

    /// A batch begins.
    pub fn begin_batch(&mut self) {
        self.batch_start = self.cursor;
        self.batch_ends.clear();
    }

    /// Records in the batch.
    pub fn batch_records(&self) -> usize {
        self.batch_ends.len()
    }

    /// A record went into the batch; `end` is behind it.
    pub fn batched(&mut self, end: ScanCursor) {
        self.batch_ends.push(end);
        self.cursor = end;
    }

    /// So many records of the last batch were taken; goes on behind them.
    pub fn taken(&mut self, records: usize) {
        if records < self.batch_ends.len() {
            self.cursor = if records == 0 { self.batch_start } else { self.batch_ends[records - 1] };
        }
        self.batch_ends.clear();
    }
}

/// Scans of a source, by the shard and connection of their client.
#[derive(Default)]
pub(crate) struct Scans {
    by_client: HashMap<(ShardId, ConnectionId), Scan, BuildHasherDefault<Xxh3Default>>,
}

impl Scans {
    pub fn insert(&mut self, shard: ShardId, connection: ConnectionId, scan: Scan) {
        self.by_client.insert((shard, connection), scan);
    }

    pub fn get_mut(&mut self, shard: ShardId, connection: ConnectionId) -> Option<&mut Scan> {
        self.by_client.get_mut(&(shard, connection))
    }

    pub fn take(&mut self, shard: ShardId, connection: ConnectionId) -> Option<Scan> {
        self.by_client.remove(&(shard, connection))
    }

    /// Only if it is the feed's own: the connection may have begun another one since.
    pub fn remove_generation(&mut self, shard: ShardId, connection: ConnectionId, generation: u32) {
        if self.by_client.get(&(shard, connection)).is_some_and(|scan| scan.generation == generation) {
            self.by_client.remove(&(shard, connection));
        }
    }

    pub fn remove(&mut self, shard: ShardId, connection: ConnectionId) {
        self.by_client.remove(&(shard, connection));
    }
}
