//! What must hold of a shard's jobs after each turn, for whoever looks on: the simulator.
//!
//! ```text
//!   open jobs of a queue, over all shards ≤ its capacity          an open job whose deadline is over ─► it is ending
//! ```

use super::jobs::State;
use crate::ids::{Now, Offset, PartitionId};
use crate::shard::Shard;
use crate::wheel;

/// An open job whose time is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overdue {
    /// Its session.
    pub partition: PartitionId,
    /// Its event.
    pub offset: Offset,
    /// By so much, microseconds.
    pub by_us: u64,
}

impl Shard {
    /// Jobs of a queue that are open on this shard: appended as opened, and not committed as ended.
    pub fn open_jobs(&self, tenant: &str, queue: &str) -> u64 {
        let line = self.queues.find_line(tenant, queue);
        line.map_or(0, |line| self.queues.lines[line as usize].used)
    }

    /// The job that has waited for longest beyond its deadline and one tick, with no end of it on its way.
    pub fn overdue_job(&self, now: Now) -> Option<Overdue> {
        let open = self.queues.jobs.iter().filter(|(_, job)| !matches!(job.state, State::Settling | State::Dead(_)));
        let late = open.filter_map(|(_, job)| {
            let by_us = now.mono_us.checked_sub(job.deadline_us.saturating_add(wheel::TICK_US))?;
            Some(Overdue { partition: job.partition, offset: job.offset, by_us })
        });
        late.max_by_key(|late| late.by_us)
    }
}
