//! Every bound of one log, with its unit in its name, and the memory they add up to.

use crate::checkpoint::PAGE_BYTES_MAX;
use crate::commit::CommitConfig;
use crate::dedupe::DEDUPE_HOT_BYTES_MIN;
use crate::group::BLOCK_BYTES;
use crate::live::LIVE_BYTES_PER_RECORD;
use crate::recluster::ReclusterLimits;
use crate::record::{HEAD_BYTES, RECORD_EVENTS_MAX};
use crate::retention::{RetentionLimits, SEGMENTS_MAX};
use crate::shelf::ShelfLimits;
use std::fmt;

/// Bounds of one log. Defaults are for a shard of a server; [`LogConfig::small`] reaches every edge within a few events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogConfig {
    /// fdatasync after each group. Without it committed means "write completed".
    pub sync: bool,
    /// Size of a segment file, bytes, a multiple of 4096.
    pub segment_bytes: u64,
    /// Most records of a segment; bounds the memory of its live index.
    pub segment_records_max: u32,
    /// Largest CommitGroup on disk, bytes, a multiple of 4096. Bounds a record too.
    pub commit_bytes_max: usize,
    /// Groups in flight.
    pub groups_in_flight_max: usize,
    /// With a group in flight, the open one is closed at this size. Bytes.
    pub group_close_bytes: usize,
    /// With a group in flight, the open one is closed at this age. Microseconds.
    pub group_close_us: u64,
    /// Wait between two tries of a write or a job that found no space. Microseconds.
    pub no_space_retry_us: u64,
    /// Ring in which groups are built, written from and read back. Bytes.
    pub hot_tail_bytes: usize,
    /// Segments that may wait for their sidecar; then appends wait too.
    pub segments_unindexed_max: usize,
    /// Read buffers: cold reads in flight or lent to a reader.
    pub read_buffers: usize,
    /// Bytes of each: the largest record a cold read can return, and two blocks.
    pub read_buffer_bytes: usize,
    /// Bytes a cold read asks for before it knows how long its first record is; doubled from read to read of one session, up
    /// to the whole buffer. Multiple of 4096.
    pub read_ahead_bytes: usize,
    /// Partitions in memory.
    pub partitions_resident_max: usize,
    /// Lookups of partitions that may wait for their page of the checkpoint.
    pub partition_loads_max: usize,
    /// Bytes appended between two checkpoints: what a restart replays at most, about.
    pub checkpoint_bytes: u64,
    /// Recent dedupe keys in memory, bytes.
    pub dedupe_hot_bytes_max: usize,
    /// Dedupe filters of sealed segments in memory, bytes.
    pub dedupe_filter_bytes_max: usize,
    /// Position tables of sealed segments in memory, bytes.
    pub index_resident_bytes_max: usize,
    /// Age after which a sealed segment goes. Milliseconds; 0 = never.
    pub retention_ms: u64,
    /// Bytes of sealed segments above which the oldest go. 0 = no bound.
    pub retention_bytes: u64,
    /// Sealed segments rewritten together by partition, sum of their bytes; the job holds them in memory twice. 0 = never.
    pub recluster_bytes_max: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            sync: true,
            segment_bytes: 64 << 20,
            segment_records_max: 128 << 10,
            commit_bytes_max: 1 << 20,
            groups_in_flight_max: 2,
            group_close_bytes: 16 << 10,
            group_close_us: 200,
            no_space_retry_us: 500_000,
            hot_tail_bytes: 32 << 20,
            segments_unindexed_max: 4,
            read_buffers: 32,
            read_buffer_bytes: 512 << 10,
            read_ahead_bytes: 64 << 10,
            partitions_resident_max: 64 << 10,
            partition_loads_max: 1024,
            checkpoint_bytes: 64 << 20,
            dedupe_hot_bytes_max: 36 << 20,
            dedupe_filter_bytes_max: 32 << 20,
            index_resident_bytes_max: 16 << 20,
            retention_ms: 7 * 24 * 3600 * 1000,
            retention_bytes: 10 << 30,
            recluster_bytes_max: 128 << 20,
        }
    }
}

/// Two bounds that contradict each other: both by name, and the cure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConfigFault {
    /// What to change, and to what.
    pub cure: &'static str,
}

impl fmt::Display for ConfigFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.cure)
    }
}

impl LogConfig {
    /// Tiny bounds for tests: segments of a few groups, a hot tail that comes round at once.
    pub fn small() -> LogConfig {
        LogConfig {
            segment_bytes: 64 << 10,
            segment_records_max: 256,
            commit_bytes_max: 16 << 10,
            group_close_bytes: 4 << 10,
            hot_tail_bytes: 112 << 10,
            read_buffers: 8,
            read_buffer_bytes: PAGE_BYTES_MAX.next_multiple_of(BLOCK_BYTES),
            read_ahead_bytes: 8 << 10,
            partitions_resident_max: 64,
            partition_loads_max: 64,
            checkpoint_bytes: 96 << 10,
            dedupe_hot_bytes_max: 64 << 10,
            dedupe_filter_bytes_max: 1 << 20,
            index_resident_bytes_max: 256 << 10,
            retention_ms: 0,
            retention_bytes: 0,
            recluster_bytes_max: 0,
            ..LogConfig::default()
        }
    }

    /// Largest record this log takes: a group must hold it, and so must a read buffer.
    pub fn record_bytes_max(&self) -> usize {
        self.commit().record_bytes_max().min(self.read_buffer_bytes.saturating_sub(2 * BLOCK_BYTES))
    }

    /// Checks the relations between the bounds.
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn check(&self) -> Result<(), ConfigFault> {
        let group_run = self.commit_bytes_max + BLOCK_BYTES;
        let rules: [(bool, &'static str); 12] = [
            (self.commit_bytes_max.is_multiple_of(BLOCK_BYTES), "commit_bytes_max must be a multiple of 4096"),
            (self.segment_bytes.is_multiple_of(BLOCK_BYTES as u64), "segment_bytes must be a multiple of 4096"),
            (self.read_ahead_bytes.is_multiple_of(BLOCK_BYTES), "read_ahead_bytes must be a multiple of 4096"),
            (self.read_buffer_bytes.is_multiple_of(BLOCK_BYTES), "read_buffer_bytes must be a multiple of 4096"),
            (self.commit_bytes_max >= 2 * BLOCK_BYTES, "commit_bytes_max must be at least 8192"),
            (
                self.segment_bytes >= (group_run + BLOCK_BYTES) as u64 && self.segment_bytes <= 2 << 30,
                "segment_bytes must hold commit_bytes_max and two blocks, and be at most 2 GiB",
            ),
            (
                self.hot_tail_bytes >= group_run * (self.groups_in_flight_max + 3),
                "hot_tail_bytes must be at least (groups_in_flight_max + 3) x (commit_bytes_max + 4096)",
            ),
            (
                self.groups_in_flight_max > 0 && self.segments_unindexed_max > 1 && self.segment_records_max > 0,
                "groups_in_flight_max and segment_records_max must be at least 1, segments_unindexed_max at least 2",
            ),
            (
                self.read_buffers > LOAD_BUFFERS && self.read_buffers < usize::from(u16::MAX),
                "read_buffers must be between 5 and 65534",
            ),
            (
                self.read_buffer_bytes >= PAGE_BYTES_MAX && self.read_ahead_bytes >= 2 * BLOCK_BYTES,
                "read_buffer_bytes must hold the largest page of a checkpoint (204 KiB), read_ahead_bytes two blocks",
            ),
            (
                self.dedupe_hot_bytes_max >= DEDUPE_HOT_BYTES_MIN,
                "dedupe_hot_bytes_max must be at least 33 KiB, the message ids of two records of 256 events: with less the log never takes one",
            ),
            (
                self.read_ahead_bytes <= self.read_buffer_bytes && self.partitions_resident_max > 0,
                "read_ahead_bytes must not exceed read_buffer_bytes; partitions_resident_max must be at least 1",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, cure)) => Err(ConfigFault { cure }),
            None => Ok(()),
        }
    }

    /// Worst-case user memory of one log, bytes:
    ///
    /// ```text
    ///   hot_tail_bytes
    /// + read_buffers × (read_buffer_bytes + 16 KiB)      places of records
    /// + segments_unindexed_max × (segment_records_max × about 120 + 8 KiB)
    /// + partitions_resident_max × 512        names, a few runs, no markers; twice that while a checkpoint is collected
    /// + dedupe_hot_bytes_max + dedupe_filter_bytes_max + index_resident_bytes_max
    /// ```
    /// Jobs run on the background executor and are counted there.
    pub fn memory_bytes(&self) -> usize {
        self.hot_tail_bytes
            + self.read_buffers * (self.read_buffer_bytes + READ_PLACES_BYTES)
            + self.segments_unindexed_max * (self.segment_records_max as usize * LIVE_BYTES_PER_RECORD + (8 << 10))
            + self.partitions_resident_max * 512
            + self.dedupe_hot_bytes_max
            + self.dedupe_filter_bytes_max
            + self.index_resident_bytes_max
    }

    pub(crate) fn shelf(&self) -> ShelfLimits {
        let unbounded = |bound: u64| if bound == 0 { u64::MAX } else { bound };
        ShelfLimits {
            retention: RetentionLimits {
                age_ms_max: unbounded(self.retention_ms),
                bytes_max: unbounded(self.retention_bytes),
                segments_max: SEGMENTS_MAX,
            },
            recluster: (self.recluster_bytes_max > 0).then_some(ReclusterLimits {
                segments_min: RECLUSTER_SEGMENTS_MIN,
                segments_max: RECLUSTER_SEGMENTS_MAX,
                bytes_max: self.recluster_bytes_max,
                text_record_bytes_max: self.record_bytes_max(),
            }),
            dedupe_filter_bytes_max: self.dedupe_filter_bytes_max,
            expire_every_ms: EXPIRE_EVERY_MS,
        }
    }

    pub(crate) fn commit(&self) -> CommitConfig {
        CommitConfig {
            group_bytes_max: self.commit_bytes_max,
            groups_in_flight_max: self.groups_in_flight_max,
            group_close_bytes: self.group_close_bytes,
            group_close_us: self.group_close_us,
            no_space_retry_us: self.no_space_retry_us,
            segment_bytes: self.segment_bytes,
            segment_records_max: self.segment_records_max,
            hot_tail_bytes: self.hot_tail_bytes,
            sync: self.sync,
        }
    }
}

/// Fewest segments worth re-clustering, and most at once.
const RECLUSTER_SEGMENTS_MIN: usize = 2;
const RECLUSTER_SEGMENTS_MAX: usize = 16;

/// Time between two looks for expired segments. Milliseconds.
const EXPIRE_EVERY_MS: u64 = 60_000;

/// Read buffers that only lookups of partitions and tables may use, so that readers of history cannot starve them.
pub(crate) const LOAD_BUFFERS: usize = 4;

/// Records that one cold read of a session answers for: small ones fill a buffer.
pub(crate) const READ_RECORDS_MAX: usize = 1024;

/// The same of a scan, which keeps a cursor for each.
pub(crate) const SCAN_RECORDS_MAX: usize = RECORD_EVENTS_MAX;

/// Memory for them beside each buffer.
const READ_PLACES_BYTES: usize = 16 << 10;

const _: () = assert!(
    READ_RECORDS_MAX * size_of::<u32>() + SCAN_RECORDS_MAX * size_of::<super::ScanCursor>() <= READ_PLACES_BYTES,
    "the plan counts them"
);

const _: () = assert!(HEAD_BYTES < BLOCK_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_presets_hold_their_own_rules() {
        assert_eq!(LogConfig::default().check(), Ok(()));
        assert_eq!(LogConfig::small().check(), Ok(()));
    }

    // The cure says so.
    const _: () = assert!(DEDUPE_HOT_BYTES_MIN == 33 << 10);

    #[test]
    fn a_contradiction_names_its_cure() {
        let config = LogConfig { hot_tail_bytes: 4 << 20, ..LogConfig::default() };
        assert!(config.check().unwrap_err().to_string().starts_with("hot_tail_bytes must be at least"));
        // Found by the fuzzer of recovery: with 16 KiB no record was ever taken, and nobody said why.
        for (bytes, holds) in [(16 << 10, false), (DEDUPE_HOT_BYTES_MIN - 1, false), (DEDUPE_HOT_BYTES_MIN, true)] {
            let config = LogConfig { dedupe_hot_bytes_max: bytes, ..LogConfig::small() };
            assert_eq!(config.check().is_ok(), holds, "{bytes}");
        }
    }
}
