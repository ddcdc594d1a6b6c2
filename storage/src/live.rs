//! Index of a segment that has no sidecar yet: the one being filled, and those whose sidecar is being built.
//!
//! ```text
//!   nodes:  0   1   2   3   4   5   6   …      one per record, in log order
//!           A ◄─────A ◄─────────A              by partition: each node points back to the one before it,
//!           ◄───────────────────┘              and, further, to a "jump" node: log n steps to any offset
//!           └─ likewise by slice
//! ```
//! Nodes are preallocated, and everything is reused from segment to segment: an append costs two map look-ups and, once the
//! map of partitions has grown to what a segment really holds, no allocation. (Spread over room for `records_max`, the
//! sessions of an ordinary shard would miss the cache at each append.)
//! (The jump pointers are those of skew-binary random-access lists: node n jumps as far as its predecessor's jump did
//! twice, where the two jumps before it were equally long.)

use crate::catalog::KeyMap;
use crate::ids::{LogSeq, Offset, PartitionId, SLICES, SegmentId, SliceId, SliceSeq};
use crate::record::RecordView;

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Links {
    previous: u32,
    jump: u32,
    depth: u32,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    offset: Offset,
    slice_seq: SliceSeq,
    position: u32,
    count: u32,
    by_partition: Links,
    by_slice: Links,
}

/// Bytes of memory per record of an unindexed segment.
pub const LIVE_BYTES_PER_RECORD: usize = size_of::<Node>() + 2 * (size_of::<(PartitionId, u32)>() + 1);

/// A record found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// Byte position in the segment.
    pub position: u32,
    /// Log sequence.
    pub log_seq: LogSeq,
    /// First offset.
    pub offset: Offset,
    /// First slice sequence.
    pub slice_seq: SliceSeq,
    /// Offsets (and slice sequences) covered.
    pub count: u32,
}

/// The index of one unindexed segment.
pub struct LiveIndex {
    segment: SegmentId,
    first_log_seq: LogSeq,
    nodes: Vec<Node>,
    partitions: KeyMap<PartitionId, u32>,
    slices: Box<[u32]>,
}

impl LiveIndex {
    /// Room for `records_max` records.
    pub fn new(records_max: u32) -> LiveIndex {
        LiveIndex {
            segment: SegmentId { log: crate::ids::LogId(0), number: 0 },
            first_log_seq: 0,
            nodes: Vec::with_capacity(records_max as usize),
            partitions: KeyMap::default(),
            slices: vec![NONE; usize::from(SLICES)].into(),
        }
    }

    /// Forgets everything and serves another segment.
    pub fn reset(&mut self, segment: SegmentId, first_log_seq: LogSeq) {
        self.segment = segment;
        self.first_log_seq = first_log_seq;
        self.nodes.clear();
        self.partitions.clear();
        self.slices.fill(NONE);
    }

    /// Segment it indexes.
    pub fn segment(&self) -> SegmentId {
        self.segment
    }

    /// Records in it.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// No records.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Log sequence of the first record.
    pub fn first_log_seq(&self) -> LogSeq {
        self.first_log_seq
    }

    /// Adds the next record of the segment.
    pub fn push(&mut self, record: RecordView<'_>, position: u32) {
        self.insert(record.partition(), record.offset(), record.slice(), record.slice_seq(), record.count(), position);
    }

    /// [`LiveIndex::push`] of a record whose fields are at hand.
    pub fn insert(
        &mut self,
        partition: PartitionId,
        offset: Offset,
        slice: SliceId,
        slice_seq: SliceSeq,
        count: u32,
        position: u32,
    ) {
        let node = self.nodes.len() as u32;
        let last = self.partitions.insert(partition, node).unwrap_or(NONE);
        // A session made again counts from 0: its first life is out of reach, as it is in the catalog.
        let again =
            self.nodes.get(last as usize).is_some_and(|before| before.offset + u64::from(before.count) > offset);
        let last = if again { NONE } else { last };
        let by_partition = self.links(last, |node| node.by_partition);
        let last = std::mem::replace(&mut self.slices[usize::from(slice.0)], node);
        let by_slice = self.links(last, |node| node.by_slice);
        self.nodes.push(Node { offset, slice_seq, position, count, by_partition, by_slice });
    }

    fn links(&self, previous: u32, of: impl Fn(&Node) -> Links) -> Links {
        let Some(before) = self.nodes.get(previous as usize) else {
            return Links { previous: NONE, jump: NONE, depth: 0 };
        };
        let before = of(before);
        let jumped = self.nodes.get(before.jump as usize).map(&of);
        let jump = match jumped {
            Some(far) if before.depth - far.depth == far.depth - self.depth_of(far.jump, &of) => far.jump,
            _ => previous,
        };
        Links { previous, jump, depth: before.depth + 1 }
    }

    fn depth_of(&self, node: u32, of: impl Fn(&Node) -> Links) -> u32 {
        self.nodes.get(node as usize).map_or(0, |node| of(node).depth)
    }

    /// Record of `partition` that covers `offset`, or the first one behind it (which may be one of markers only).
    pub fn partition_record(&self, partition: PartitionId, offset: Offset) -> Option<Found> {
        let last = *self.partitions.get(&partition)?;
        self.find(last, |node| node.offset + u64::from(node.count) > offset, |node| node.by_partition)
    }

    /// Record of `slice` that covers `slice_seq`, or the first one behind it.
    pub fn slice_record(&self, slice: SliceId, slice_seq: SliceSeq) -> Option<Found> {
        let last = self.slices[usize::from(slice.0)];
        self.find(last, |node| node.slice_seq + u64::from(node.count) > slice_seq, |node| node.by_slice)
    }

    /// The record at place `log_seq` of the log.
    pub fn log_record(&self, log_seq: LogSeq) -> Option<Found> {
        let node = log_seq.checked_sub(self.first_log_seq)? as u32;
        ((node as usize) < self.nodes.len()).then(|| self.found(node))
    }

    /// The oldest node of the chain that ends with `last` for which `behind` holds; it holds for all after it.
    fn find(&self, last: u32, behind: impl Fn(&Node) -> bool, of: impl Fn(&Node) -> Links) -> Option<Found> {
        let mut at = last;
        let mut best = NONE;
        while let Some(node) = self.nodes.get(at as usize) {
            if !behind(node) {
                break;
            }
            best = at;
            let links = of(node);
            at = match self.nodes.get(links.jump as usize) {
                Some(far) if behind(far) => links.jump,
                _ => links.previous,
            };
        }
        ((best as usize) < self.nodes.len()).then(|| self.found(best))
    }

    fn found(&self, node: u32) -> Found {
        let Node { offset, slice_seq, position, count, .. } = self.nodes[node as usize];
        Found { position, log_seq: self.first_log_seq + u64::from(node), offset, slice_seq, count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::LogId;
    use proptest::prelude::*;

    proptest! {
        /// Against a plain list, for every offset and slice sequence.
        #[test]
        fn finds_what_a_linear_search_finds(records in proptest::collection::vec((0u8..4, 0u32..4), 0..200)) {
            let mut index = LiveIndex::new(200);
            index.reset(SegmentId { log: LogId(0), number: 1 }, 1000);
            let mut tails = [0u64; 4];
            let mut slice_tails = [1u64; 2];
            let mut all = vec![];
            for (at, (partition, count)) in records.into_iter().enumerate() {
                let slice = partition / 2;
                let (tail, slice_tail) = (&mut tails[usize::from(partition)], &mut slice_tails[usize::from(slice)]);
                let position = 4160 + at as u32 * 8;
                index.insert(PartitionId(partition.into()), *tail, SliceId(slice.into()), *slice_tail, count, position);
                all.push((partition, slice, Found { position, log_seq: 1000 + at as u64, offset: *tail, slice_seq: *slice_tail, count }));
                *tail += u64::from(count);
                *slice_tail += u64::from(count);
            }
            for partition in 0..4u8 {
                for offset in 0..tails[usize::from(partition)] + 2 {
                    let want = all.iter().find(|(p, _, f)| *p == partition && f.offset + u64::from(f.count) > offset).map(|x| x.2);
                    prop_assert_eq!(index.partition_record(PartitionId(partition.into()), offset), want);
                }
            }
            for slice in 0..2u8 {
                for seq in 0..slice_tails[usize::from(slice)] + 2 {
                    let want = all.iter().find(|(_, s, f)| *s == slice && f.slice_seq + u64::from(f.count) > seq).map(|x| x.2);
                    prop_assert_eq!(index.slice_record(SliceId(slice.into()), seq), want);
                }
            }
        }
    }
}
