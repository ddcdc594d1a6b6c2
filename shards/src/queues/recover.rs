//! Jobs of a recovered log: what is left of their times, and who may still be at work.
//!
//! ```text
//!   opened, deadline, ready: wall time ─┐
//!                                       ├─ first look at the clock ─► deadlines and leases of this process
//!   lease: an attempt had begun ────────┘
//! ```

use super::Queues;
use super::jobs::{Claim, Due, State};
use crate::command::Lease;
use crate::ids::{Now, PartitionId};
use crate::shard::Shard;
use hashbrown::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use storage::catalog::{OpenJob, is_group};
use storage::log::{Log, Streaming};
use xxhash_rust::xxh3::Xxh3Default;

/// A job of the recovered log that has no time of this process yet.
pub(crate) struct Recovered {
    id: (u32, u32),
    /// When its next attempt may begin.
    ready_ms: u64,
    /// The attempt that had begun; 0: none.
    nonce: u64,
}

/// By session and line.
type ByLane<V> = HashMap<(PartitionId, u32), V, BuildHasherDefault<Xxh3Default>>;

/// What is left of a duration, by the wall clock, which may have jumped.
fn rest_ms(until_ms: u64, all_ms: u64, wall_ms: u64) -> u64 {
    until_ms.saturating_sub(wall_ms).min(all_ms)
}

impl Queues {
    /// Jobs of a recovered log; definitions are known.
    pub fn recover(&mut self, log: &Log, known: &[Streaming]) {
        for Streaming { tenant, session, epoch, jobs, .. } in known {
            let tenant: Arc<str> = (&**tenant).into();
            let partition = log.partition_id(&tenant, session);
            for job in jobs.iter().filter(|job| !is_group(&job.queue)) {
                let OpenJob { queue, offset, event_ms, opened_ms, deadline_ms, attempts, priority, dead, .. } = job;
                let line = self.line(&tenant, queue);
                let (slot, generation) = self.insert(partition, session, *epoch, *offset, line, *priority);
                let fresh = &mut self.jobs[slot as usize];
                (fresh.opened_ms, fresh.deadline_ms, fresh.attempts) = (*opened_ms, *deadline_ms, *attempts);
                (fresh.event_ms, fresh.cancelled) = (*event_ms, !*dead && deadline_ms == opened_ms);
                if *dead {
                    self.bury(slot);
                } else {
                    self.lines[line as usize].used += 1;
                    let (id, ready_ms, nonce) = ((slot, generation), job.ready_ms, job.lease);
                    self.timers.recovered.push(Recovered { id, ready_ms, nonce });
                    self.timers.pin(*event_ms);
                }
            }
        }
    }

    /// What is left of the lives of recovered jobs, and until their next attempts: milliseconds.
    ///
    /// Clocks may have jumped between two jobs of a session. One that was opened before another, and was to live no longer, ends no
    /// later, whatever the wall clock says of the two.
    fn rests(&mut self, wall_ms: u64) -> Vec<(Recovered, u64, u64)> {
        let recovered = std::mem::take(&mut self.timers.recovered);
        let mut rests = Vec::with_capacity(recovered.len());
        // Of the jobs behind one in its session and queue: how long they live, and what is left of that.
        let mut behind: ByLane<Vec<(u64, u64)>> = ByLane::default();
        for one in recovered.into_iter().rev() {
            let Some(job) = self.get(one.id) else { continue };
            let life_ms = job.deadline_ms.saturating_sub(job.opened_ms);
            let lane = behind.entry((job.partition, job.line)).or_default();
            let own_ms = rest_ms(job.deadline_ms, life_ms, wall_ms);
            let least_ms = lane.iter().filter(|(life, _)| *life >= life_ms).map(|(_, rest)| *rest).min();
            let left_ms = least_ms.map_or(own_ms, |least| own_ms.min(least));
            // One that is cancelled lives for nothing: it says nothing about the others.
            if life_ms > 0 {
                lane.retain(|(life, rest)| *life > life_ms || *rest < left_ms);
                lane.push((life_ms, left_ms));
            }
            let ready_ms = rest_ms(one.ready_ms, life_ms, wall_ms);
            rests.push((one, left_ms, ready_ms));
        }
        rests.reverse();
        rests
    }
}

impl Shard {
    /// Jobs of the recovered log have times of this process from now on.
    pub(super) fn go_on_with_recovered(&mut self, now: Now) {
        if self.queues.timers.recovered.is_empty() {
            return;
        }
        for (Recovered { id, nonce, .. }, rest_ms, ready_ms) in self.queues.rests(now.wall_ms) {
            let deadline_us = now.mono_us + rest_ms * 1000;
            let ready_us = now.mono_us + ready_ms * 1000;
            self.queues.begin(id.0, deadline_us);
            if nonce != 0 {
                // Whoever worked on it may come back; if nobody does, the attempt counts all the same.
                let until_us = (now.mono_us + self.queues.lease_ms_of(id.0) * 1000).min(deadline_us);
                let lease = Lease { attempt: self.queues.job(id.0).attempts + 1, nonce };
                self.queues.set_state(id.0, State::Claimed(Claim { lease, shard: self.config.shard, until_us }));
                self.queues.jobs[id.0 as usize].was_claimed = true;
                self.queues.timers.put(until_us, id, Due::Lease(nonce));
            } else if ready_us > now.mono_us {
                self.queues.set_state(id.0, State::Backoff);
                self.queues.timers.put(ready_us, id, Due::Ready);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_between_nothing_and_all_there_was() {
        assert_eq!(rest_ms(1000, 400, 700), 300);
        assert_eq!(rest_ms(1000, 400, 2000), 0);
        assert_eq!(rest_ms(1000, 400, 1), 400);
    }

    #[test]
    fn jobs_of_a_session_keep_their_order_though_the_clock_jumped_between_them() {
        let mut queues = Queues::default();
        let line = queues.line(&"t".into(), "q");
        // Opened, deadline: the clock went back by 500 before the second, the third is cancelled, the fourth lives for longer.
        let mut put = |offset, opened_ms, deadline_ms| {
            let (slot, generation) = queues.insert(PartitionId(1), "s", 7, offset, line, 0);
            let job = &mut queues.jobs[slot as usize];
            (job.opened_ms, job.deadline_ms) = (opened_ms, deadline_ms);
            queues.timers.recovered.push(Recovered { id: (slot, generation), ready_ms: 0, nonce: 0 });
        };
        put(0, 1000, 1400);
        put(1, 600, 1000);
        put(2, 700, 700);
        put(3, 700, 5700);
        let rests: Vec<u64> = queues.rests(900).into_iter().map(|(_, rest_ms, _)| rest_ms).collect();
        assert_eq!(rests, [100, 100, 0, 4800], "not 400, as the clock of the first says");
    }
}
