//! Token streams beside their records: who must be heard of again, what a reader who lags or joins late gets, and the
//! notices of control events.
//!
//! ```text
//!   stream.append ─► log (an event) ─► walk ─► live readers: each delta at once
//!        │                              └────► readers behind, or late: [`gathered`], one frame
//!        └─► [`leases`] ── not renewed ─► stream.close partial, by the server
//!   control.*     ─► log (an event) ─► walk ─► [`notices`]: overtake what is queued
//! ```

pub(crate) mod gathered;
pub(crate) mod leases;
pub(crate) mod notices;

pub(crate) use leases::StreamKey;

use crate::ids::{Epoch, PartitionId};
use storage::log::Log;

/// Topic of a stream whose first append names none.
pub(crate) const STREAM_TOPIC: &str = "stream";

/// Who closes streams whose producers are gone.
pub(crate) const SERVER: &str = "$server";

/// Whose messages the ends of streams are: no client can have this name.
const STREAMS: &str = "$stream";

/// Dedupe key of a stream's end.
pub(crate) fn closing_key(log: &Log, partition: PartitionId, epoch: Epoch, stream: &str) -> u128 {
    log.dedupe_key(partition, epoch, STREAMS, stream)
}
