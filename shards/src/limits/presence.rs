//! Bounds of presence and receipts.
//!
//! ```text
//!   a client     presences, watches, changes a second         a session   members
//!   a shard      bytes of rooms, bytes of what its connections hold, watches
//! ```

use super::NAME_BYTES_MAX;

/// Bytes that a frame or message of a roster aims at; one change more may make it larger.
pub const PRESENCE_FRAME_BYTES_MAX: usize = 8 << 10;

/// Bytes that presences and receipts of one client may take in what is kept of it.
pub const CLIENT_PRESENCES_BYTES_MAX: usize = 8 << 10;

/// A session's comings and goings are logged this often at most, where they are. Milliseconds.
pub const PRESENCE_JOURNAL_EVERY_MS: u64 = 1000;

/// Events of comings and goings that one shard logs in a second, of all its sessions together.
pub const PRESENCE_JOURNALS_PER_SECOND_MAX: u32 = 128;

/// Bounds a folder's operator may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresenceLimits {
    /// Largest `data` of a member, bytes.
    pub data_bytes_max: usize,
    /// Members of one session, and likewise clients with a receipt in it.
    pub session_members_max: usize,
    /// Sessions that one connection is in, or has receipts of.
    pub client_presences_max: usize,
    /// Bytes of what one connection holds in sessions; it is kept with the client's life.
    pub client_presence_bytes_max: usize,
    /// Rosters that one connection watches.
    pub client_watches_max: usize,
    /// Changes of presence and receipts that one connection may make in a second, on average.
    pub client_changes_per_second_max: u32,
    /// Rosters watched by the connections of one shard.
    pub watches_per_shard_max: usize,
    /// Bytes of members that one shard owns, and likewise of what its connections hold.
    pub shard_bytes_max: usize,
    /// Changes of a room are told together, this often. Milliseconds.
    pub tick_ms: u64,
    /// How long a member stays whose connection is gone, where it does not say. Milliseconds.
    pub lease_ms: u64,
    /// Shortest lease that a client may ask for. Milliseconds.
    pub lease_ms_min: u64,
    /// Longest. Milliseconds.
    pub lease_ms_max: u64,
    /// After a start a room may lack members that have not come back: so long it says that it is not complete. Milliseconds.
    pub unknown_ms: u64,
}

impl Default for PresenceLimits {
    fn default() -> Self {
        Self {
            data_bytes_max: 1024,
            session_members_max: 16_384,
            client_presences_max: 64,
            client_presence_bytes_max: 4096,
            client_watches_max: 64,
            client_changes_per_second_max: 50,
            watches_per_shard_max: 65_536,
            shard_bytes_max: 8 << 20,
            tick_ms: 100,
            lease_ms: 30_000,
            lease_ms_min: 1000,
            lease_ms_max: 600_000,
            unknown_ms: 120_000,
        }
    }
}

impl PresenceLimits {
    /// Largest change, in a frame or in mail, bytes.
    pub fn change_bytes_max(&self) -> usize {
        self.data_bytes_max + NAME_BYTES_MAX + 128
    }

    /// Largest frame or message of a roster, bytes, where it aims at `aim`.
    pub fn frame_bytes_max(&self, aim: usize) -> usize {
        aim + self.change_bytes_max() + NAME_BYTES_MAX + 512
    }

    /// What frames and messages of a roster aim at, bytes, where queues and lanes have these bounds.
    pub fn frame_bytes(connection_send_bytes_max: usize, mailbox_bytes: usize) -> usize {
        PRESENCE_FRAME_BYTES_MAX.min(connection_send_bytes_max / 4).min(mailbox_bytes / 8)
    }

    /// Bytes that one shard may take of rooms that others own, given how many shards there are.
    pub fn watched_bytes_max(&self, shards: usize) -> usize {
        shards.saturating_sub(1).saturating_mul(self.shard_bytes_max)
    }

    pub(super) fn check(&self, connection_send_bytes_max: usize, mailbox_bytes: usize) -> Result<(), &'static str> {
        let aim = Self::frame_bytes(connection_send_bytes_max, mailbox_bytes);
        let rules: [(bool, &'static str); 6] = [
            (
                self.frame_bytes_max(aim) <= connection_send_bytes_max,
                "presence_data_bytes_max must leave room for four members in connection_send_bytes_max: lower the one or raise the other",
            ),
            (
                self.frame_bytes_max(aim) <= mailbox_bytes / 2,
                "presence_data_bytes_max must leave room for eight members in mailbox_bytes: lower the one or raise the other",
            ),
            (
                (1..=self.lease_ms).contains(&self.lease_ms_min) && self.lease_ms <= self.lease_ms_max,
                "presence_lease_ms must lie between presence_lease_ms_min, at least 1, and presence_lease_ms_max",
            ),
            (
                self.tick_ms >= 1 && self.lease_ms_min >= 3 * self.tick_ms,
                "presence_tick_ms must be at least 1, and presence_lease_ms_min three times as much: a lease is renewed in thirds",
            ),
            (
                self.client_changes_per_second_max > 0 && self.data_bytes_max <= self.client_presence_bytes_max,
                "client_changes_per_second_max must be at least 1, and client_presence_bytes_max hold data of presence_data_bytes_max",
            ),
            (
                self.client_presence_bytes_max <= CLIENT_PRESENCES_BYTES_MAX,
                "client_presence_bytes_max must be at most 8 KiB: it is kept with the client",
            ),
        ];
        rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, cure)| Err(cure))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_relation_can_be_broken() {
        let check = |change: fn(&mut PresenceLimits)| {
            let mut limits = PresenceLimits::default();
            change(&mut limits);
            limits.check(512 << 10, 4 << 20).is_ok()
        };
        assert!(check(|_| ()));
        assert!(!check(|l| l.data_bytes_max = 1 << 20));
        assert!(!check(|l| l.lease_ms_min = 30_001));
        assert!(!check(|l| l.lease_ms_max = 29_999));
        assert!(!check(|l| l.tick_ms = 334));
        assert!(!check(|l| l.client_changes_per_second_max = 0));
        assert!(!check(|l| l.client_presence_bytes_max = 8193));
        assert!(PresenceLimits::default().check(2 << 10, 4 << 20).is_err());
        assert!(PresenceLimits::default().check(512 << 10, 4 << 10).is_err());
    }
}
