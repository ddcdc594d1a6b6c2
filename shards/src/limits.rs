//! Every bound of the core, with its unit in its name. Relations between constants are asserted at compile time, those
//! between an operator's bounds by [`Limits::check`].

mod presence;
mod quotas;
mod work;

pub use work::{
    COMMIT_ENTRIES_MAX, DEAD_PAGE_MAX, ENTRIES_PAGE_BYTES, FALLBACK_DATA_BYTES_MAX, QUEUE_PATTERNS_MAX, WorkLimits,
};

pub use crate::clients::home::{AWAY_MAX, HOME_BYTES};
pub use crate::clients::life::LIFE_BYTES;
pub use crate::streams::notices::{NOTICE_BYTES, NOTICES_MAX};
pub use presence::{
    CLIENT_PRESENCES_BYTES_MAX, PRESENCE_FRAME_BYTES_MAX, PRESENCE_JOURNAL_EVERY_MS, PRESENCE_JOURNALS_PER_SECOND_MAX,
    PresenceLimits,
};

pub use quotas::{KINDS, Kind, QUOTA_MAX, Quota, Quotas, WEIGHT_MAX};

use crate::outbox::EVENT_FRAME_OVERHEAD_BYTES_MAX;
use std::sync::Arc;

/// Largest name: tenant, session, client, marker, message id. Bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Largest topic, bytes.
pub const TOPIC_BYTES_MAX: usize = 128;
/// Tokens of a topic or pattern.
pub const TOPIC_TOKENS_MAX: usize = 16;
/// Largest traceparent, bytes (W3C level 1 has 55).
pub const TRACEPARENT_BYTES_MAX: usize = 64;
/// Pages read for somebody else that one shard has under way or waiting for room.
pub const PAGES_MAX: usize = 256;
/// Bytes of token streams that all readers of a shard gather into merged frames, about; beyond it one more waits, or gets its
/// frame early.
pub const GATHERED_BYTES_MAX: usize = 8 << 20;
/// Commands in one frame.
pub const FRAME_COMMANDS_MAX: usize = 256;
/// Events in one commit.
pub const COMMIT_EVENTS_MAX: usize = 256;
/// Markers in one commit.
pub const COMMIT_MARKERS_MAX: usize = 64;
/// Depth of `data`.
pub const DATA_DEPTH_MAX: usize = 64;
/// Sessions that a `resume` may name.
pub const RESUME_SEEN_MAX: usize = 256;
/// Patterns of one client.
pub const CLIENT_PATTERNS_MAX: usize = 32;
/// Largest reply but history and pattern position, framed, bytes.
pub const REPLY_BYTES_MAX: usize = 1024;
/// Largest reply with the position of a pattern: `slice.sequence,` of every slice, framed. Bytes.
pub const POSITION_REPLY_BYTES_MAX: usize = storage::ids::SLICES as usize * 22 + REPLY_BYTES_MAX;
/// Largest head of a page of history, bytes.
pub(crate) const HISTORY_HEAD_BYTES_MAX: usize = 1024;
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
    /// A stream whose producer has not been heard of for so long is closed.
    pub stream_lease_ms: u64,
    /// Most text of one stream, bytes.
    pub stream_text_bytes_max: usize,
    /// Streams of one shard that are open at once.
    pub streams_per_shard_max: usize,
    /// Presence and receipts.
    pub presence: PresenceLimits,
    /// What each tenant may use.
    pub quotas: Arc<Quotas>,
    /// Entries, queues and jobs.
    pub work: WorkLimits,
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
            stream_lease_ms: 60_000,
            stream_text_bytes_max: 1 << 20,
            streams_per_shard_max: 16_384,
            presence: PresenceLimits::default(),
            quotas: Arc::default(),
            work: WorkLimits::default(),
        }
    }
}

impl Limits {
    /// Largest event frame, bytes: `data` as base64, and every name at its longest.
    pub fn event_frame_bytes_max(&self) -> usize {
        let names = 3 * NAME_BYTES_MAX + TOPIC_BYTES_MAX + 2 * NAME_BYTES_MAX + TRACEPARENT_BYTES_MAX;
        self.event_bytes_max.div_ceil(3) * 4 + 2 + names + EVENT_FRAME_OVERHEAD_BYTES_MAX
    }

    /// Bytes of the pages that one shard reads at once, for `history` and for other shards.
    pub fn pages_bytes_max(&self) -> usize {
        PAGES_MAX * self.page_bytes
    }

    /// Checks the relations between the bounds, given the largest record of the log in bytes.
    ///
    /// # Errors
    /// The first that does not hold: what to change. It begins with the name of a bound.
    pub fn check(&self, record_bytes_max: usize) -> Result<(), &'static str> {
        let half = self.connection_send_bytes_max / 2;
        let rules: [(bool, &'static str); 13] = [
            (self.event_bytes_max > 0, "event_bytes_max must be at least 1"),
            (
                self.stream_lease_ms > 0 && self.stream_text_bytes_max > 0 && self.streams_per_shard_max > 0,
                "stream_lease_ms, stream_text_bytes_max and streams_per_shard_max must be at least 1",
            ),
            (self.page_bytes > 0, "page_bytes must be at least 1: an empty page gets no reader any further"),
            (
                self.client_commands_in_flight_max > 0 && self.connections_per_shard_max > 0,
                "client_commands_in_flight_max and connections_per_shard_max must be at least 1",
            ),
            (
                self.mail_per_peer_per_turn_max > 0 && self.parked_bytes_max > 0,
                "mail_per_peer_per_turn_max and parked_bytes_max must be at least 1",
            ),
            (
                self.mailbox_bytes >= 2 * (record_bytes_max.max(self.page_bytes) + 1024),
                "mailbox_bytes must hold two replies of record_bytes_max or page_bytes: raise mailbox_bytes, or lower commit_bytes_max or page_bytes",
            ),
            (
                self.mailbox_bytes >= 64 << 10,
                "mailbox_bytes must be at least 64 KiB: the positions of every slice travel at once",
            ),
            (
                self.connection_send_bytes_max >= 4 * self.event_bytes_max,
                "connection_send_bytes_max must hold four events of event_bytes_max: raise connection_send_bytes_max or lower event_bytes_max",
            ),
            (
                half >= self.event_frame_bytes_max() + HISTORY_HEAD_BYTES_MAX,
                "connection_send_bytes_max must hold two frames of event_bytes_max, base64 and the longest names included, or such an event is never delivered: raise connection_send_bytes_max to 8 KiB or more",
            ),
            (
                self.page_bytes <= half,
                "page_bytes must be at most half of connection_send_bytes_max, which is all of a page that is sent: lower page_bytes or raise connection_send_bytes_max",
            ),
            (
                record_bytes_max >= self.frame_bytes_max + self.frame_bytes_max / 4,
                "commit_bytes_max must hold a record made of one frame of frame_bytes_max, and read_buffer_bytes too: raise them or lower frame_bytes_max",
            ),
            (
                self.effects_max >= 64 && self.mailbox_slots >= 8,
                "effects_max must be at least 64 and mailbox_slots at least 8",
            ),
            (
                (1..=self.subscriptions_per_shard_max).contains(&self.client_subscriptions_max),
                "client_subscriptions_max must be at least 1 and at most subscriptions_per_shard_max: lower the one or raise the other",
            ),
        ];
        rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, cure)| Err(*cure))?;
        self.presence.check(self.connection_send_bytes_max, self.mailbox_bytes)?;
        self.work.check(self.connection_send_bytes_max, self.mailbox_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD_BYTES_MAX: usize = 500 << 10;

    #[test]
    fn the_defaults_hold_every_relation() {
        assert_eq!(Limits::default().check(RECORD_BYTES_MAX), Ok(()));
    }

    /// Each relation broken by itself, by the smallest step; both bounds are named, and one step back it holds.
    #[test]
    fn a_contradiction_names_both_bounds_and_the_step_before_it_is_accepted() {
        type Change = fn(&mut Limits, usize);
        let cases: [(usize, usize, Change, &[&str]); 8] = [
            (256 << 10, (256 << 10) + 1, |l, n| l.page_bytes = n, &["page_bytes", "connection_send_bytes_max"]),
            (1, 0, |l, n| l.page_bytes = n, &["page_bytes"]),
            (
                256 << 10,
                (256 << 10) - 1,
                |l, n| l.connection_send_bytes_max = n,
                &["connection_send_bytes_max", "event_bytes_max"],
            ),
            (
                2 * (1024 + 1222),
                2 * (1024 + 1222) - 1,
                |l, n| {
                    (l.event_bytes_max, l.page_bytes, l.connection_send_bytes_max) = (1, 1, n);
                    l.work.entry_bytes_max = 1;
                },
                &["connection_send_bytes_max", "event_bytes_max"],
            ),
            (400 << 10, (400 << 10) + 1, |l, n| l.frame_bytes_max = n, &["frame_bytes_max", "commit_bytes_max"]),
            (
                1 << 20,
                (1 << 20) + 1,
                |l, n| l.client_subscriptions_max = n,
                &["client_subscriptions_max", "subscriptions_per_shard_max"],
            ),
            (
                2 * ((500 << 10) + 1024),
                2 * ((500 << 10) + 1024) - 1,
                |l, n| l.mailbox_bytes = n,
                &["mailbox_bytes", "page_bytes"],
            ),
            (1, 0, |l, n| l.parked_bytes_max = n, &["parked_bytes_max"]),
        ];
        for (good, bad, change, names) in cases {
            let mut limits = Limits::default();
            if names.len() > 1 && names[0] == "connection_send_bytes_max" {
                limits.page_bytes = 1 << 10;
            }
            change(&mut limits, good);
            assert_eq!(limits.check(RECORD_BYTES_MAX), Ok(()), "{good}: {names:?}");
            change(&mut limits, bad);
            let cure = limits.check(RECORD_BYTES_MAX).expect_err("the relation is broken");
            assert!(names.iter().all(|name| cure.contains(name)), "{bad}: {cure}");
        }
    }

    /// The bound of a frame is one: nothing that `event_bytes_max` of the outbox can say is larger.
    #[test]
    fn the_largest_frame_is_that_of_the_longest_names() {
        let limits = Limits { event_bytes_max: 1, ..Limits::default() };
        assert_eq!(limits.event_frame_bytes_max(), 4 + 2 + 5 * 128 + 128 + 64 + EVENT_FRAME_OVERHEAD_BYTES_MAX);
    }
}
