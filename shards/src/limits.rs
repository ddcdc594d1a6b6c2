//! Every bound of the core, with its unit in its name. Relations between bounds are asserted at compile time.

/// Largest name: tenant, session, client, marker, message id. Bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Largest topic, bytes.
pub const TOPIC_BYTES_MAX: usize = 128;
/// Tokens of a topic or pattern.
pub const TOPIC_TOKENS_MAX: usize = 16;
/// Largest traceparent, bytes (W3C level 1 has 55).
pub const TRACEPARENT_BYTES_MAX: usize = 64;
/// Commands in one frame.
pub const FRAME_COMMANDS_MAX: usize = 256;
/// Events in one commit.
pub const COMMIT_EVENTS_MAX: usize = 256;
/// Markers in one commit.
pub const COMMIT_MARKERS_MAX: usize = 64;
/// Depth of `data`.
pub const DATA_DEPTH_MAX: usize = 64;
/// Patterns of one client.
pub const CLIENT_PATTERNS_MAX: usize = 32;
/// Largest reply but history and pattern position, framed, bytes.
pub const REPLY_BYTES_MAX: usize = 1024;
/// A number on the wire stays below this.
pub const WIRE_INTEGER_MAX: u64 = 1 << 53;

const _: () = assert!(COMMIT_EVENTS_MAX <= storage::record::RECORD_EVENTS_MAX);

/// Bounds a folder's operator may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest `data` of an event, bytes.
    pub event_bytes_max: usize,
    /// Largest frame a client may send, bytes.
    pub frame_bytes_max: usize,
    /// Subscriptions one client may hold.
    pub client_subscriptions_max: usize,
    /// Commands of one client that may await their reply.
    pub client_commands_in_flight_max: u32,
    /// Connections of one shard.
    pub connections_per_shard_max: usize,
    /// Subscriptions of one shard.
    pub subscriptions_per_shard_max: usize,
    /// Bytes a connection's send queue takes before its reader counts as slow.
    pub connection_send_bytes_max: usize,
    /// Slots of a mailbox lane.
    pub mailbox_slots: usize,
    /// Payload bytes of a mailbox lane.
    pub mailbox_bytes: usize,
    /// Bytes of records that a page of history, or of catch-up for another shard, aims at.
    pub page_bytes: usize,
    /// Mail taken from one peer in one turn.
    pub mail_per_peer_per_turn_max: usize,
    /// Effects that may wait to be polled.
    pub effects_max: usize,
    /// Bytes of commands parked while their partition is read from disk, per shard.
    pub parked_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            event_bytes_max: 64 << 10,
            frame_bytes_max: 256 << 10,
            client_subscriptions_max: 256,
            client_commands_in_flight_max: 1024,
            connections_per_shard_max: 60_000,
            subscriptions_per_shard_max: 1 << 20,
            connection_send_bytes_max: 512 << 10,
            mailbox_slots: 1024,
            mailbox_bytes: 4 << 20,
            page_bytes: 128 << 10,
            mail_per_peer_per_turn_max: 64,
            effects_max: 4096,
            parked_bytes_max: 16 << 20,
        }
    }
}

impl Limits {
    /// Checks the relations between the bounds, given the largest record of the log in bytes.
    ///
    /// # Errors
    /// The first that does not hold: what to change.
    pub fn check(&self, record_bytes_max: usize) -> Result<(), &'static str> {
        if self.mailbox_bytes < 2 * (record_bytes_max.max(self.page_bytes) + 1024) {
            return Err("mailbox_bytes must hold two replies of record_bytes_max or page_bytes");
        }
        if self.mailbox_bytes < 64 << 10 {
            return Err("mailbox_bytes must be at least 64 KiB: the positions of every slice travel at once");
        }
        if self.connection_send_bytes_max < 4 * self.event_bytes_max {
            return Err("connection_send_bytes_max must hold four events of event_bytes_max, base64 included");
        }
        if record_bytes_max < self.frame_bytes_max + self.frame_bytes_max / 4 {
            return Err("commit_bytes_max must hold a record made of one frame of frame_bytes_max");
        }
        if self.effects_max < 64 || self.mailbox_slots < 8 {
            return Err("effects_max must be at least 64 and mailbox_slots at least 8");
        }
        Ok(())
    }
}
