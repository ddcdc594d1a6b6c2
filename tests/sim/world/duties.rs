//! What must hold of jobs after each turn.
//!
//! ```text
//!   all shards together   open jobs of a queue ≤ its capacity
//!   a shard               an open job whose deadline and one tick are over ends, unless its disk is full or it gets no turn
//! ```

use super::*;
use crate::client::{QUEUE, SIDE_QUEUE};

/// A job may wait for so long beyond its deadline, and for so many turns: for a read of its session, for a group that is full.
const LATE_US_MAX: u64 = 100_000;
const LATE_TURNS_MAX: u32 = 200;

/// Who is late in a shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Late {
    job: (u128, u64),
    since_us: u64,
    turns: u32,
}

impl World {
    /// Looks at one shard, whether it has had its turn or sleeps.
    pub(super) fn check_jobs(&mut self, index: usize) -> Checked {
        let (now, is_full) = (self.now(), self.disk.is_full());
        let Some(node) = &mut self.node else { return Ok(()) };
        for (queue, capacity) in [(QUEUE, self.options.jobs.capacity), (SIDE_QUEUE, self.options.jobs.side_capacity)] {
            let open: u64 = node.shards.iter().map(|core| core.shard.open_jobs(TENANT, queue)).sum();
            if open > capacity {
                return Err(format!("{open} jobs of {queue} are open, {capacity} may be"));
            }
        }
        let core = &mut node.shards[index];
        let overdue = core.shard.overdue_job(now).filter(|_| !is_full && !core.shard.log().no_space());
        let Some(overdue) = overdue else {
            core.late = None;
            return Ok(());
        };
        let job = (overdue.partition.0, overdue.offset);
        let late = core.late.get_or_insert(Late { job, since_us: now.mono_us, turns: 0 });
        if late.job != job {
            *late = Late { job, since_us: now.mono_us, turns: 0 };
        }
        late.turns += 1;
        if late.turns > LATE_TURNS_MAX && now.mono_us - late.since_us > LATE_US_MAX {
            return Err(format!("shard {index}: a job waits {} us beyond its deadline: {overdue:?}", overdue.by_us));
        }
        Ok(())
    }
}
