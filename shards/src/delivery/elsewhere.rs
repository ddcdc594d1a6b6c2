//! What a client was sent by session subscriptions that have ended, where its pattern feed has yet to pass it.
//!
//! ```text
//!   feed              ▼ behind
//!   session s    ─────┼────[ 40..57 ]──[ 57..60 ]────►     delivered by subscriptions: the feed leaves it out
//!                               └── one range: neighbours are merged
//! ```
//! Also where the feed is live: a subscription that fetched from another shard may be ahead of the stream that comes from there. Those
//! of live sources may be forgotten, the oldest first; those of others must not be, so while [`DELIVERED_MAX`] of them are
//! remembered, no subscription begins: at most as many more are added as there are subscriptions.

use crate::ids::{Offset, PartitionId, ShardId};

/// Ranges remembered before something gives way.
pub(crate) const DELIVERED_MAX: usize = 256;

/// Offsets of a session that a session subscription delivered before it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Delivered {
    pub partition: PartitionId,
    pub source: ShardId,
    pub from: Offset,
    pub to: Offset,
}

/// One feed's; ranges of one session neither overlap nor touch.
#[derive(Default, Debug)]
pub(crate) struct Elsewhere(Vec<Delivered>);

impl Elsewhere {
    /// Remembers a range.
    pub fn insert(&mut self, mut range: Delivered, is_live: impl Fn(ShardId) -> bool) {
        if range.from >= range.to {
            return;
        }
        self.0.retain(|known| {
            let meets = known.partition == range.partition && known.from <= range.to && range.from <= known.to;
            if meets {
                (range.from, range.to) = (range.from.min(known.from), range.to.max(known.to));
            }
            !meets
        });
        if self.0.len() >= DELIVERED_MAX
            && let Some(oldest) = self.0.iter().position(|known| is_live(known.source))
        {
            self.0.remove(oldest);
        }
        self.0.push(range);
    }

    /// Would one more have to be remembered beyond the bound?
    pub fn is_full(&self, is_live: impl Fn(ShardId) -> bool) -> bool {
        self.0.len() >= DELIVERED_MAX && self.0.iter().filter(|known| !is_live(known.source)).count() >= DELIVERED_MAX
    }

    /// The feed has passed an offset: what ended at it or before need not be remembered.
    pub fn pass(&mut self, partition: PartitionId, next: Offset) {
        if !self.0.is_empty() {
            self.0.retain(|known| known.partition != partition || known.to > next);
        }
    }

    /// Was the offset delivered?
    pub fn contains(&self, partition: PartitionId, offset: Offset) -> bool {
        self.0.iter().any(|known| known.partition == partition && (known.from..known.to).contains(&offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn range(partition: u128, from: Offset, to: Offset) -> Delivered {
        Delivered { partition: PartitionId(partition), source: ShardId(partition as u16 % 2), from, to }
    }

    proptest! {
        /// Against a set of offsets; and a session's ranges are apart.
        #[test]
        fn remembers_every_offset_until_it_is_passed(
            steps in proptest::collection::vec((0u128..3, 0u64..60, 0u64..12, any::<bool>()), 0..120),
        ) {
            let (mut elsewhere, mut model) = (Elsewhere::default(), BTreeSet::new());
            let mut passed = [0; 3];
            for (partition, from, len, passes) in steps {
                if passes {
                    elsewhere.pass(PartitionId(partition), from);
                    passed[partition as usize] = from.max(passed[partition as usize]);
                } else {
                    elsewhere.insert(range(partition, from, from + len), |_| false);
                    model.extend((from..from + len).map(|offset| (partition, offset)));
                }
                for (partition, offset) in &model {
                    let due = *offset >= passed[*partition as usize];
                    prop_assert!(!due || elsewhere.contains(PartitionId(*partition), *offset));
                }
                prop_assert!((0..3).all(|p| (0..80).all(|at| model.contains(&(p, at)) || !elsewhere.contains(PartitionId(p), at))));
                prop_assert!(elsewhere.0.len() <= 3 * 31, "apart, so at most every other offset begins one");
            }
        }
    }

    #[test]
    fn a_client_that_comes_and_goes_leaves_one_range() {
        let mut elsewhere = Elsewhere::default();
        for n in 0..10_000 {
            elsewhere.insert(range(0, n, n + 1), |_| false);
        }
        assert_eq!(elsewhere.0, [range(0, 0, 10_000)]);
        elsewhere.pass(PartitionId(0), 10_000);
        assert!(elsewhere.0.is_empty());
    }

    #[test]
    fn what_must_be_remembered_is_and_then_no_more_may_come() {
        let mut elsewhere = Elsewhere::default();
        let live = |source: ShardId| source.0 == 0;
        for n in 0..DELIVERED_MAX as u128 * 2 {
            assert!(!elsewhere.is_full(live));
            elsewhere.insert(range(n, 0, 1), live);
        }
        assert!(elsewhere.is_full(live), "all that is left is of the source that is behind");
        assert!((0..DELIVERED_MAX as u128).all(|n| elsewhere.contains(PartitionId(2 * n + 1), 0)));
        assert_eq!(elsewhere.0.len(), DELIVERED_MAX);
    }
}
