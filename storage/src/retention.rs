//! Which sealed segments may go, by age and by bytes. Pure: the log removes what this names.
//!
//! ```text
//!   log 3:   s0  s1  s2  s3 │ s4  s5 (active)        removed from the front only, so that what is retained of a
//!            └─ too old ─┘  └─ replay starts here    session is one piece
//! ```
//! What is **pinned**, since somebody still works on it, goes neither by age nor by bytes: only where there would be more
//! segments than memory was planned for.

use crate::catalog::RUNS_MAX;
use crate::ids::{LogId, SegmentId};
use crate::sidecar::Contents;

/// Most segments retained in a folder: memory of indexes and runs grows with each.
pub const SEGMENTS_MAX: usize = 1024;

// A session may have a run in every segment retained, and a few in segments that are gone but not yet dropped.
const _: () = assert!(SEGMENTS_MAX * 2 <= RUNS_MAX);

/// How much history is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RetentionLimits {
    /// A segment goes when its youngest record is older than this, ms.
    pub age_ms_max: u64,
    /// Bytes of all segments of one shard, those being filled included.
    pub bytes_max: u64,
    /// Sealed segments of one shard.
    pub segments_max: usize,
}

/// Sealed segments to remove now, in the order of removal. `open_bytes` are those of segments not sealed yet. Segments
/// of `replay_from.0` from number `replay_from.1` on stay: a recovery starts there.
///
/// Of each log only the front may go. By bytes, the log whose front is youngest goes last. A segment that may hold an event of
/// `pinned_ms` or later stays, as long as there are no more than `segments_max`.
pub fn plan(
    sealed: &[Contents],
    open_bytes: u64,
    now_ms: u64,
    replay_from: (LogId, u32),
    pinned_ms: u64,
    limits: RetentionLimits,
) -> Vec<SegmentId> {
    let mut order: Vec<&Contents> = sealed.iter().collect();
    order.sort_by_key(|contents| (contents.segment.log, contents.covers));
    let mut fronts: Vec<&[&Contents]> = order
        .chunk_by(|a, b| a.segment.log == b.segment.log)
        .map(|log| {
            let stays =
                |contents: &&Contents| contents.segment.log == replay_from.0 && contents.covers.1 >= replay_from.1;
            &log[..log.iter().position(stays).unwrap_or(log.len())]
        })
        .collect();
    let mut bytes = open_bytes + sealed.iter().map(|contents| contents.end).sum::<u64>();
    let mut segments = sealed.len();
    let mut removed = Vec::new();
    loop {
        let oldest = fronts
            .iter_mut()
            .filter(|front| !front.is_empty())
            .min_by_key(|front| front.first().map(|contents| (contents.time_max_ms, contents.segment.log)));
        let Some(front) = oldest else { break };
        let Some((contents, rest)) = front.split_first() else { break };
        let expired = contents.time_max_ms.saturating_add(limits.age_ms_max) < now_ms;
        // The oldest of all fronts: where it is pinned, the others are.
        let pinned = contents.time_max_ms >= pinned_ms;
        if (pinned || !expired && bytes <= limits.bytes_max) && segments <= limits.segments_max {
            break;
        }
        removed.push(contents.segment);
        bytes -= contents.end;
        segments -= 1;
        *front = rest;
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const KEEP_ALL: RetentionLimits =
        RetentionLimits { age_ms_max: u64::MAX, bytes_max: u64::MAX, segments_max: usize::MAX };

    fn sealed(log: u32, number: u32, time_max_ms: u64) -> Contents {
        Contents {
            segment: SegmentId { log: LogId(log), number },
            covers: (number, number),
            end: MIB,
            records: 1,
            events: 1,
            time_min_ms: 0,
            time_max_ms,
            log_seq_min: 0,
            log_seq_max: 0,
        }
    }

    fn numbers(removed: Vec<SegmentId>) -> Vec<(u32, u32)> {
        removed.into_iter().map(|segment| (segment.log.0, segment.number)).collect()
    }

    #[test]
    fn by_age_only_the_front_goes() {
        let all = [sealed(1, 0, 100), sealed(1, 1, 900), sealed(1, 2, 100)];
        let limits = RetentionLimits { age_ms_max: 500, ..KEEP_ALL };
        assert_eq!(numbers(plan(&all, 0, 1000, (LogId(1), 9), u64::MAX, limits)), [(1, 0)]);
        assert_eq!(numbers(plan(&all, 0, 600, (LogId(1), 9), u64::MAX, limits)), []);
        assert_eq!(numbers(plan(&all, 0, 2000, (LogId(1), 9), u64::MAX, limits)), [(1, 0), (1, 1), (1, 2)]);
    }

    #[test]
    fn by_bytes_the_oldest_of_all_logs_goes_and_open_segments_count() {
        let all = [sealed(2, 0, 300), sealed(1, 0, 100), sealed(1, 1, 200), sealed(2, 1, 400)];
        let limits = RetentionLimits { bytes_max: 3 * MIB, ..KEEP_ALL };
        assert_eq!(numbers(plan(&all, 0, 0, (LogId(2), 9), u64::MAX, limits)), [(1, 0)]);
        assert_eq!(numbers(plan(&all, 2 * MIB, 0, (LogId(2), 9), u64::MAX, limits)), [(1, 0), (1, 1), (2, 0)]);
        let limits = RetentionLimits { segments_max: 1, ..KEEP_ALL };
        assert_eq!(numbers(plan(&all, 0, 0, (LogId(2), 9), u64::MAX, limits)), [(1, 0), (1, 1), (2, 0)]);
    }

    #[test]
    fn what_recovery_needs_stays_whatever_the_limits() {
        let all = [sealed(1, 0, 1), sealed(1, 1, 2), sealed(1, 2, 3)];
        let limits = RetentionLimits { age_ms_max: 0, bytes_max: 0, segments_max: 0 };
        assert_eq!(numbers(plan(&all, 0, 1000, (LogId(1), 1), u64::MAX, limits)), [(1, 0)]);
    }

    #[test]
    fn what_is_worked_on_stays_unless_memory_is_short() {
        let all = [sealed(1, 0, 100), sealed(1, 1, 300), sealed(1, 2, 200)];
        let limits = RetentionLimits { age_ms_max: 0, bytes_max: 0, segments_max: usize::MAX };
        assert_eq!(numbers(plan(&all, 0, 1000, (LogId(1), 9), 200, limits)), [(1, 0)], "what is behind it too");
        assert_eq!(numbers(plan(&all, 0, 1000, (LogId(1), 9), 301, limits)), [(1, 0), (1, 1), (1, 2)]);
        assert_eq!(numbers(plan(&all, 0, 1000, (LogId(1), 9), 50, limits)), []);
        let limits = RetentionLimits { segments_max: 1, ..limits };
        assert_eq!(numbers(plan(&all, 0, 1000, (LogId(1), 9), 50, limits)), [(1, 0), (1, 1)]);
    }

    proptest! {
        /// Whatever the times: per log a prefix goes, and afterwards the limits hold or nothing more may go.
        #[test]
        fn removes_prefixes_until_the_limits_hold(
            times in proptest::collection::vec((0u32..3, 0u64..1000), 0..30),
            bytes_max in 0..30u64, age_ms_max in 0..1000u64, from in 0u32..12,
        ) {
            let mut next = [0; 3];
            let all: Vec<_> = times.into_iter().map(|(log, time)| {
                next[log as usize] += 1;
                sealed(log, next[log as usize] - 1, time)
            }).collect();
            let limits = RetentionLimits { age_ms_max, bytes_max: bytes_max * MIB, segments_max: usize::MAX };
            let removed = plan(&all, 0, 1000, (LogId(0), from), u64::MAX, limits);
            let kept: Vec<_> = all.iter().filter(|contents| !removed.contains(&contents.segment)).collect();
            for log in 0..3 {
                let gone = removed.iter().filter(|segment| segment.log.0 == log).count();
                prop_assert!(removed.iter().all(|s| s.log.0 != log || (s.number as usize) < gone));
                prop_assert!(log != 0 || gone <= from as usize);
            }
            let removable = kept.iter().filter(|contents| contents.segment.log.0 != 0 || contents.covers.1 < from).count();
            prop_assert!(kept.len() as u64 <= bytes_max || removable == 0);
        }
    }
}
