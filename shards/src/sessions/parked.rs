//! Commands that wait for their partition, or for a dedupe lookup, to come from disk.
//!
//! ```text
//!  partition ─► [first: what it waits for] [next] [next]     later commands of the same partition queue behind it,
//!                                                            or a client's pipelined events would change places
//! ```
//! Bounded by `parked_bytes_max` per shard; beyond it a command is not taken and stays with its connection.

use super::Asker;
use crate::delivery::{ByPartition, SubscriptionId};
use crate::ids::PartitionId;
use crate::traces::Stamps;
use std::collections::VecDeque;

/// A parked command, as bytes of the mail codec.
pub(crate) struct Parked {
    pub asker: Asker,
    pub work: Work,
    pub known: Known,
    /// When it passed the stages before this one.
    pub stamps: Stamps,
}

/// What is to be done once it can be.
pub(crate) enum Work {
    /// A session command, encoded.
    Command(Box<[u8]>),
    /// A subscription that begins: the asker's subscription and where it starts, encoded.
    Attach { subscription: SubscriptionId, session: Box<str>, from: Box<[u8]> },
}

/// Dedupe lookups that were answered for a command while it was parked.
#[derive(Clone, Default, Debug)]
pub(crate) struct Known(pub Vec<(u128, Option<Found>)>);

/// What a dedupe lookup found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    pub offset: u64,
    pub body_hash: u64,
}

impl Known {
    pub fn get(&self, key: u128) -> Option<Option<Found>> {
        self.0.iter().find(|(k, _)| *k == key).map(|(_, found)| *found)
    }
}

impl Parked {
    fn bytes(&self) -> usize {
        let work = match &self.work {
            Work::Command(bytes) => bytes.len(),
            Work::Attach { session, from, .. } => session.len() + from.len(),
        };
        work + size_of::<Self>() + self.asker.tenant.len() + self.asker.client_id.len()
    }
}

/// All parked commands of a shard.
#[derive(Default)]
pub(crate) struct ParkedCommands {
    by_partition: ByPartition<VecDeque<Parked>>,
    bytes: usize,
}

impl ParkedCommands {
    /// Must a command of this partition queue behind others?
    pub fn holds(&self, partition: PartitionId) -> bool {
        !self.by_partition.is_empty() && self.by_partition.contains_key(&partition)
    }

    pub fn has_room(&self, bytes_max: usize) -> bool {
        self.bytes < bytes_max
    }

    pub fn push(&mut self, partition: PartitionId, parked: Parked) {
        self.bytes += parked.bytes();
        self.by_partition.entry(partition).or_default().push_back(parked);
    }

    /// Puts a command back in front: it must wait for something else now.
    pub fn push_front(&mut self, partition: PartitionId, parked: Parked) {
        self.bytes += parked.bytes();
        self.by_partition.entry(partition).or_default().push_front(parked);
    }

    pub fn pop(&mut self, partition: PartitionId) -> Option<Parked> {
        let queue = self.by_partition.get_mut(&partition)?;
        let parked = queue.pop_front();
        if queue.is_empty() {
            self.by_partition.remove(&partition);
        }
        if let Some(parked) = &parked {
            self.bytes -= parked.bytes();
        }
        parked
    }

    /// Answers a lookup for the command in front.
    pub fn answer(&mut self, partition: PartitionId, key: u128, found: Option<Found>) {
        if let Some(first) = self.by_partition.get_mut(&partition).and_then(VecDeque::front_mut) {
            first.known.0.push((key, found));
        }
    }
}
