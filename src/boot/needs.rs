//! What a server with a configuration asks of the operating system, for those who look before it starts.

use super::{PROCESS_DESCRIPTORS, SHARD_DESCRIPTORS, room};
use crate::config::{Config, Origin};
use crate::net::NetConfig;

/// Locked memory that the kernel counts for one shard's ring, rounded up; `tests/blackbox/doctor.py` starts servers at the bound.
const SHARD_LOCKED_BYTES: u64 = 224 << 10;
/// The same for the background executor's rings.
const PROCESS_LOCKED_BYTES: u64 = 64 << 10;
/// The background executor refuses to start below it.
const LOCKED_BYTES_MIN: u64 = 512 << 10;

/// Limits that a server needs, and those that it would like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Open files below which it does not start.
    pub open_files_min: u64,
    /// Open files for all connections that are configured.
    pub open_files_wanted: u64,
    /// The number of connections was chosen, so that the server refuses to start with fewer.
    pub connections_chosen: bool,
    /// Bytes of locked memory, where the process may not lock as much as it likes.
    pub locked_bytes: u64,
}

impl Needs {
    /// Of `config` with so many shards.
    pub fn of(config: &Config, shards: u16) -> Needs {
        let shards_u64 = u64::from(shards);
        let origin = config.origin("connections_per_shard_max");
        let slots = room(config, shards, u64::MAX).wanted + NetConfig::SPARE_SLOTS as u64;
        let open_files_min = PROCESS_DESCRIPTORS + shards_u64 * SHARD_DESCRIPTORS;
        Needs {
            open_files_min,
            open_files_wanted: slots.max(open_files_min),
            connections_chosen: !matches!(origin, None | Some(Origin::Default)),
            locked_bytes: (PROCESS_LOCKED_BYTES + shards_u64 * SHARD_LOCKED_BYTES).max(LOCKED_BYTES_MIN),
        }
    }
}
