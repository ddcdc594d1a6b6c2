//! Names under the folder's key: partitions, dedupe keys, and what is in memory by name.

use super::Log;
use crate::catalog::PartitionSlot;
use crate::ids::{Epoch, PartitionId};

impl Log {
    /// Partition of a session, under the folder's key.
    pub fn partition_id(&self, tenant: &str, session: &str) -> PartitionId {
        self.key.partition(tenant, session)
    }

    /// Dedupe key of a message, under the folder's key.
    pub fn dedupe_key(&self, partition: PartitionId, epoch: Epoch, client_id: &str, message_id: &str) -> u128 {
        self.key.dedupe(partition, epoch, client_id, message_id)
    }

    /// Largest record, bytes.
    pub fn record_bytes_max(&self) -> usize {
        self.config.record_bytes_max()
    }

    /// Slot of a partition, if it is in memory.
    pub fn resident(&self, id: PartitionId) -> Option<PartitionSlot> {
        self.catalog.slot_of(id)
    }
}
