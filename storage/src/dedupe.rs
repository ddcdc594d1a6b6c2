//! Keys of recent messages, in memory, so that a publish is checked for a repeat without a read.
//!
//! ```text
//!   hot:      [ segment 41 ][ segment 42 │ 42 cont. ][ segment 43 (being filled) ]      maps of fixed size
//!   sidecars: … 38  39  40  [ 41 ]                                                      filters of sealed segments
//! ```
//! Keys leave a whole segment at a time, and only when the sidecar of that segment answers for them
//! ([`HotKeys::release`]): at no time is a key in neither.
//!
//! Memory: all maps are made at boot and reused, `dedupe_hot_bytes_max` in all, 33 bytes a bucket, 8 buckets for 7 keys.
//! A segment that would take more than a quarter of them is to be sealed early ([`HotKeys::wants_roll`]), so that
//! there is always one to fill while another is being indexed; without room the log refuses appends until a sidecar
//! is built.

use crate::catalog::KeyMap;
use crate::ids::{Offset, SegmentId};
use crate::record::RECORD_EVENTS_MAX;
use std::collections::VecDeque;

/// Maps the memory is cut into.
const MAPS: usize = 8;
/// Maps one segment may take before it is to be sealed.
const MAPS_PER_SEGMENT: usize = MAPS / 4;
/// Bytes of a bucket: key, offset, body hash, control byte.
const BUCKET_BYTES: usize = 33;
/// Smallest map: all of them hold two of the largest records, one in a segment that is being indexed, one to come. With less
/// there would never be room for the next record.
const BUCKETS_MIN: usize = 128;
const _: () = assert!(BUCKETS_MIN / 8 * 7 * MAPS >= 2 * RECORD_EVENTS_MAX);

/// Least `dedupe_hot_bytes_max` that works.
pub const DEDUPE_HOT_BYTES_MIN: usize = MAPS * BUCKETS_MIN * BUCKET_BYTES;

/// An event a key was seen with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeenEvent {
    /// Its offset.
    pub offset: Offset,
    /// Hash of what was said: another one under the same key is a reused id.
    pub body_hash: u64,
}

/// Keys of one segment, or of a part of it.
#[derive(Debug)]
struct Generation {
    segment: SegmentId,
    keys: KeyMap<u128, SeenEvent>,
}

/// One per log, touched only by its shard.
#[derive(Debug)]
pub struct HotKeys {
    /// Oldest first; the last one is being filled.
    generations: VecDeque<Generation>,
    spare: Vec<KeyMap<u128, SeenEvent>>,
    keys_per_map: usize,
}

impl HotKeys {
    /// Takes its memory now: at most `dedupe_hot_bytes_max` bytes, at least [`DEDUPE_HOT_BYTES_MIN`].
    pub fn new(dedupe_hot_bytes_max: usize) -> HotKeys {
        let buckets = (dedupe_hot_bytes_max / MAPS / BUCKET_BYTES).max(BUCKETS_MIN);
        // The map rounds up to a power of two buckets; ask for one that does not.
        let keys_per_map = (1usize << buckets.ilog2()) / 8 * 7;
        let map = || KeyMap::with_capacity_and_hasher(keys_per_map, Default::default());
        HotKeys {
            generations: VecDeque::with_capacity(MAPS),
            spare: std::iter::repeat_with(map).take(MAPS).collect(),
            keys_per_map,
        }
    }

    /// Whether `keys` more of `segment` fit. Ask before an append; afterwards it is too late.
    pub fn room(&self, segment: SegmentId, keys: usize) -> bool {
        let filling = self.generations.back().filter(|last| last.segment == segment);
        let left = filling.map_or(0, |last| self.keys_per_map - last.keys.len());
        keys <= left + self.spare.len() * self.keys_per_map
    }

    /// Whether one more segment can be begun.
    pub fn has_spare(&self) -> bool {
        !self.spare.is_empty()
    }

    /// Whether the segment being filled has had its share of the memory and is to be sealed.
    pub fn wants_roll(&self) -> bool {
        let Some(last) = self.generations.back() else { return false };
        let maps = self.generations.iter().rev().take_while(|generation| generation.segment == last.segment).count();
        maps >= MAPS_PER_SEGMENT && (last.keys.len() >= self.keys_per_map / 2 || maps > MAPS_PER_SEGMENT)
    }

    /// Remembers a message appended to `segment`, which is the one keys were last added to or a newer one.
    ///
    /// # Panics
    /// Without [`HotKeys::room`].
    pub fn insert(&mut self, segment: SegmentId, key: u128, seen: SeenEvent) {
        let full = |last: &Generation| last.segment != segment || last.keys.len() >= self.keys_per_map;
        if self.generations.back().is_none_or(full) {
            let keys = self.spare.pop().expect("the log asks for room before it appends");
            self.generations.push_back(Generation { segment, keys });
        }
        if let Some(last) = self.generations.back_mut() {
            last.keys.entry(key).or_insert(seen);
        }
    }

    /// The event `key` was seen with, if recent.
    pub fn get(&self, key: u128) -> Option<SeenEvent> {
        self.generations.iter().rev().find_map(|generation| generation.keys.get(&key).copied())
    }

    /// The sidecar of `segment` answers for its keys from now on: they leave.
    pub fn release(&mut self, segment: SegmentId) {
        while let Some(at) = self.generations.iter().position(|generation| generation.segment == segment) {
            if let Some(mut generation) = self.generations.remove(at) {
                generation.keys.clear();
                self.spare.push(generation.keys);
            }
        }
    }

    /// Keys held.
    pub fn len(&self) -> usize {
        self.generations.iter().map(|generation| generation.keys.len()).sum()
    }

    /// Holds no key.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory; the same from boot on.
    pub fn memory_bytes(&self) -> usize {
        let maps = self.spare.iter().chain(self.generations.iter().map(|generation| &generation.keys));
        maps.map(|map| map.allocation_size()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::LogId;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn segment(number: u32) -> SegmentId {
        SegmentId { log: LogId(1), number }
    }

    fn seen(n: u64) -> SeenEvent {
        SeenEvent { offset: n, body_hash: !n }
    }

    proptest! {
        /// Every key is found until its segment is released, whatever the order of release, and never another's event;
        /// the memory does not move.
        #[test]
        fn keeps_every_key_until_its_segment_is_released(
            steps in proptest::collection::vec((0u8..10, 0usize..40), 1..60),
        ) {
            let mut hot = HotKeys::new(DEDUPE_HOT_BYTES_MIN);
            let memory = hot.memory_bytes();
            let mut model: BTreeMap<u128, (u32, u64)> = BTreeMap::new();
            let (mut next, mut filling) = (0u64, 0u32);
            for (step, n) in steps {
                match step {
                    0..7 if hot.room(segment(filling), n) => for _ in 0..n {
                        next += 1;
                        let key = u128::from(next) << 60 | u128::from(next);
                        hot.insert(segment(filling), key, seen(next));
                        model.insert(key, (filling, next));
                    },
                    7 => filling += 1,
                    _ => {
                        let sealed = n as u32 % (filling + 1);
                        if sealed < filling {
                            hot.release(segment(sealed));
                            model.retain(|_, (segment, _)| *segment != sealed);
                        }
                    }
                }
                prop_assert_eq!(hot.len(), model.len());
                prop_assert!(model.iter().all(|(key, (_, n))| hot.get(*key) == Some(seen(*n))));
                prop_assert_eq!(hot.get(u128::from(next + 1)), None);
                prop_assert_eq!(hot.memory_bytes(), memory);
            }
        }
    }

    #[test]
    fn stays_inside_its_memory_and_asks_for_a_roll_in_time() {
        for bytes in [DEDUPE_HOT_BYTES_MIN, 100_000, 1 << 20, 32 << 20] {
            let mut hot = HotKeys::new(bytes);
            assert!(hot.memory_bytes() <= bytes * 11 / 10 && hot.memory_bytes() >= bytes / 3, "{bytes}");
            let mut next = 0u64;
            // Two segments are being indexed; a third must still fit before it is sealed.
            for number in 0..3 {
                while !hot.wants_roll() || hot.generations.back().is_some_and(|last| last.segment != segment(number)) {
                    assert!(hot.room(segment(number), 1), "{bytes}: segment {number} full after {next} keys");
                    next += 1;
                    hot.insert(segment(number), u128::from(next), seen(next));
                }
            }
            hot.release(segment(0));
            assert!(hot.get(1).is_none() && hot.get(u128::from(next)) == Some(seen(next)));
        }
    }

    #[test]
    fn the_first_event_of_a_key_stands() {
        let mut hot = HotKeys::new(DEDUPE_HOT_BYTES_MIN);
        hot.insert(segment(1), 5, seen(1));
        hot.insert(segment(1), 5, seen(2));
        assert_eq!(hot.get(5), Some(seen(1)));
    }
}
