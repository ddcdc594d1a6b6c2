//! Bounds of entries, queues and jobs.
//!
//! ```text
//!   an entry    bytes        a tenant   bytes of entries, queues        a shard   watches, jobs, connections that pull
//!   a queue     the bounds of its policy                                a job     bytes of a partial result
//! ```
//! How much one session keeps of entries and jobs is fixed by the format (`storage::catalog`).

use super::NAME_BYTES_MAX;

/// Entries in one commit.
pub const COMMIT_ENTRIES_MAX: usize = 64;
/// Bytes that a page of entries aims at.
pub const ENTRIES_PAGE_BYTES: usize = 8 << 10;
/// Topic patterns of one queue, and likewise those of its priorities.
pub const QUEUE_PATTERNS_MAX: usize = 16;
/// Largest `data` of a queue's fallback, bytes.
pub const FALLBACK_DATA_BYTES_MAX: usize = 2 << 10;
/// Dead letters on one page.
pub const DEAD_PAGE_MAX: usize = 64;

const _: () = assert!(COMMIT_ENTRIES_MAX <= storage::record::RECORD_ENTRIES_MAX);

/// Bounds a folder's operator may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkLimits {
    /// Largest value of an entry, bytes.
    pub entry_bytes_max: usize,
    /// Bytes of entries of one tenant, all shards together; each shard has its share.
    pub entries_bytes_per_tenant_max: usize,
    /// Prefixes that one connection watches.
    pub client_watches_max: usize,
    /// Prefixes watched by the connections of one shard.
    pub entry_watches_per_shard_max: usize,
    /// Queues of one tenant.
    pub queues_per_tenant_max: usize,
    /// Largest capacity of a queue.
    pub queue_capacity_max: u64,
    /// Longest deadline of a job. Milliseconds.
    pub job_deadline_ms_max: u64,
    /// Largest partial result, bytes.
    pub progress_bytes_max: usize,
    /// Jobs of one shard that are open.
    pub jobs_per_shard_max: usize,
    /// Jobs of a queue, or sessions of a group, that one connection may hold.
    pub client_jobs_max: u64,
    /// Groups of one tenant.
    pub groups_per_tenant_max: usize,
    /// Members of one group among the connections of one shard.
    pub group_members_per_shard_max: usize,
}

impl Default for WorkLimits {
    fn default() -> Self {
        Self {
            entry_bytes_max: 4 << 10,
            entries_bytes_per_tenant_max: 16 << 20,
            client_watches_max: 64,
            entry_watches_per_shard_max: 65_536,
            queues_per_tenant_max: 64,
            queue_capacity_max: 1 << 20,
            job_deadline_ms_max: 3_600_000,
            progress_bytes_max: 2 << 10,
            jobs_per_shard_max: 1 << 17,
            client_jobs_max: 256,
            groups_per_tenant_max: storage::catalog::GROUPS_MAX,
            group_members_per_shard_max: 1024,
        }
    }
}

impl WorkLimits {
    /// What a page of entries aims at, bytes, where queues and lanes have these bounds.
    pub fn page_bytes(connection_send_bytes_max: usize, mailbox_bytes: usize) -> usize {
        ENTRIES_PAGE_BYTES.min(connection_send_bytes_max / 4).min(mailbox_bytes / 8)
    }

    /// Largest page of entries, bytes, where it aims at `aim`.
    pub fn page_bytes_max(&self, aim: usize) -> usize {
        aim + self.entry_bytes_max + 4 * NAME_BYTES_MAX + 768
    }

    pub(super) fn check(&self, connection_send_bytes_max: usize, mailbox_bytes: usize) -> Result<(), &'static str> {
        let page = self.page_bytes_max(Self::page_bytes(connection_send_bytes_max, mailbox_bytes));
        let rules: [(bool, &'static str); 6] = [
            (
                page <= connection_send_bytes_max,
                "entry_bytes_max must leave room for a page of entries in connection_send_bytes_max: lower the one or raise the other",
            ),
            (
                page <= mailbox_bytes / 2,
                "entry_bytes_max must leave room for two pages of entries in mailbox_bytes: lower the one or raise the other",
            ),
            (
                (1..=storage::catalog::ENTRIES_BYTES_MAX / 2).contains(&self.entry_bytes_max),
                "entry_bytes_max must be between 1 and 32 KiB: a session keeps 64 KiB of entries",
            ),
            (
                (1..=storage::catalog::PARTIALS_BYTES_MAX / 2).contains(&self.progress_bytes_max),
                "progress_bytes_max must be between 1 and 8 KiB: a session keeps 16 KiB of partial results",
            ),
            (
                self.queue_capacity_max > 0 && self.job_deadline_ms_max > 0 && self.client_jobs_max > 0,
                "queue_capacity_max, job_deadline_ms_max and client_jobs_max must be at least 1",
            ),
            (
                self.groups_per_tenant_max <= storage::catalog::GROUPS_MAX && self.group_members_per_shard_max > 0,
                "groups_per_tenant_max is 16 at most, for a session keeps as many; group_members_per_shard_max must be at least 1",
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
        let check = |change: fn(&mut WorkLimits)| {
            let mut limits = WorkLimits::default();
            change(&mut limits);
            limits.check(512 << 10, 4 << 20).is_ok()
        };
        assert!(check(|_| ()));
        assert!(!check(|l| l.entry_bytes_max = 0));
        assert!(!check(|l| l.entry_bytes_max = (32 << 10) + 1));
        assert!(!check(|l| l.progress_bytes_max = (8 << 10) + 1));
        assert!(!check(|l| l.client_jobs_max = 0));
        assert!(!check(|l| l.groups_per_tenant_max = 17));
        assert!(WorkLimits::default().check(6 << 10, 4 << 20).is_err());
        assert!(WorkLimits::default().check(512 << 10, 10 << 10).is_err());
    }
}
