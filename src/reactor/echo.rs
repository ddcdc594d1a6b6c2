//! The echo door: what comes goes back, through the same framer and the same send path as events.

use crate::net::websocket::{Opcode, head};
use crate::net::{Class, Sends, Taken};
use shards::ids::ConnectionId;

/// Largest message the echo door takes: conformance suites send 16 MiB.
pub const ECHO_BYTES_MAX: usize = 32 << 20;

/// Memory that an open echo door adds to a shard, for messages coming in and once more for messages going out.
pub const ECHO_ASSEMBLY_BYTES_MAX: usize = 4 * ECHO_BYTES_MAX;

/// Sends a message back, or puts it off while the last ones are not read.
pub fn echo(id: ConnectionId, opcode: Opcode, payload: &[u8], sends: &mut Sends) -> Taken {
    let head = head(opcode, payload.len());
    let bytes = head.as_bytes().len() + payload.len();
    // A message larger than the queue's bound goes out alone.
    if sends.queued(id) > 0 && sends.room(id) < bytes || !sends.fits(bytes) {
        return Taken::Later { place: 0 };
    }
    sends.push(id, head.as_bytes(), Class::Delivery);
    sends.push(id, payload, Class::Delivery);
    Taken::All
}
