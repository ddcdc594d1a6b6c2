//! Identifiers of the log. Each is its own type, so that none can be passed for another.

/// Number of slices the key space is cut into when a data folder is created; fixed for its life.
pub const SLICES: u16 = 1024;

/// Keyed 128-bit hash of (tenant, session): what the log calls a partition. The key is the folder's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PartitionId(pub u128);

/// Fixed piece of the key space, `0..SLICES`, owned whole by one shard.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SliceId(pub u16);

/// Names one log: one life of one shard's append stream. Unique in the folder, never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct LogId(pub u32);

/// Names one segment file: the log that filled it and its place in that log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SegmentId {
    /// Log that filled the segment.
    pub log: LogId,
    /// Dense number inside that log, from 0.
    pub number: u32,
}

/// Dense number of an event in its session, from 0.
pub type Offset = u64;

/// Incarnation of a session's numbering: random, never 0.
pub type Epoch = u64;

/// Dense number of an event inside its slice, from 1; 0 means "before the first".
pub type SliceSeq = u64;

/// Dense number of a record inside its log, from 0. Orders everything one shard appends.
pub type LogSeq = u64;

/// Above what any counter of a log reaches: a number of a group, a record or an event beyond it is damage, whatever its
/// checksum says. Below it there is always a next one.
pub const COUNTER_MAX: u64 = 1 << 62;

/// The two 64-bit keys under which a folder hashes names. Secret: a client that knew them could aim
/// at one slice or forge a dedupe collision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HashKey(pub u64, pub u64);

impl HashKey {
    /// Partition of (tenant, session): SipHash-2-4-128 over `tenant 0x00 session`; names hold no zero byte.
    pub fn partition(self, tenant: &str, session: &str) -> PartitionId {
        PartitionId(self.hash128(&[tenant.as_bytes(), &[0], session.as_bytes()]))
    }

    /// Dedupe key of a message: over epoch, partition, client and message id. The epoch is inside so that a
    /// session which was deleted and made again forgets its first life.
    pub fn dedupe(self, partition: PartitionId, epoch: Epoch, client: &str, message: &str) -> u128 {
        self.hash128(&[&partition.0.to_le_bytes(), &epoch.to_le_bytes(), client.as_bytes(), &[0], message.as_bytes()])
    }

    /// Salt in the headers of a segment: what a client cannot forge.
    pub fn segment_salt(self, segment: SegmentId) -> u32 {
        self.hash128(&[b"segment", &segment.log.0.to_le_bytes(), &segment.number.to_le_bytes()]) as u32
    }

    fn hash128(self, parts: &[&[u8]]) -> u128 {
        use siphasher::sip128::{Hasher128, SipHasher24};
        use std::hash::Hasher;
        let mut hasher = SipHasher24::new_with_keys(self.0, self.1);
        for part in parts {
            hasher.write(part);
        }
        hasher.finish128().as_u128()
    }
}

impl PartitionId {
    /// Slice that holds this partition: the top bits of the keyed hash.
    pub fn slice(self) -> SliceId {
        const _: () = assert!(SLICES.is_power_of_two());
        SliceId((self.0 >> (128 - SLICES.trailing_zeros())) as u16)
    }
}
