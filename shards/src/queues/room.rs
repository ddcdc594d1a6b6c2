//! Room in queues: a queue's capacity as permits, lent by its home to the shards whose sessions have its jobs.
//!
//! ```text
//!   shard of a session                                        home of the queue (owner of its hidden session)
//!   have ── opened ──► used                                   Account: level + lent ≤ capacity
//!    ▲  │ short: LEND_ROOM {have, need} ───────────────────────►  grant
//!    │  │ the command is parked ◄──── LENT_ROOM {units} ──────────┤ enough
//!    │  │ queue_full ◄───────── LENT_ROOM {0, retry_after_ms} ────┘ not
//!    └── ended, committed ── more than is soon needed, or for long unused: REPAY_ROOM ──► settle
//! ```
//! **Invariant.** Nothing is opened that was not lent: jobs that are open on all shards together are never more than the capacity. What the
//! server itself publishes is exempt, for an answer is never refused; it is owed to the home and counts like all others.
//! **Failure.** What is lent is not kept: a boot counts the jobs that are open anew, and begins with these lent.
//! **Backpressure.** A command waits parked behind its session for the home's answer, never in a lane, for that answer may need the lane;
//! after [`ANSWER_US_MAX`] it is refused.

use super::line::Drain;
use super::policy::Definition;
use super::{ByName, Queues};
use crate::ids::{Now, PartitionId, ShardId};
use crate::limits::Kind;
use crate::mailbox::codec::{Reader, Writer};
use crate::mailbox::message::{reply, request};
use crate::quota::{Account, Grant};
use crate::shard::Shard;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A share is looked at this often, and goes home where nothing was opened for so long.
const SWEEP_EVERY_US: u64 = 250_000;

/// A home that has not answered in so long is not waited for.
const ANSWER_US_MAX: u64 = 1_000_000;

/// Who was told that there is no room asks again no earlier.
const NONE_US: u64 = 5_000;

/// Who could not ask comes back after so long, ms.
const ASK_AGAIN_MS: u32 = 10;

/// Bytes of an answer: two names and a few numbers.
const LENT_BYTES_MAX: usize = 384;

/// Permits of one queue here.
#[derive(Default)]
pub(super) struct Share {
    /// Lent, and not in use.
    pub have: u64,
    /// Ends that the home was not told of.
    ended: u64,
    /// Opened without a permit, and not owed yet.
    owed: u64,
    asked_us: Option<u64>,
    none_until_us: u64,
    retry_ms: u32,
    taken_us: u64,
    /// Units that were asked for and not taken since they came, and when that was.
    need: u64,
    lent_us: u64,
    /// Sessions whose first parked command waits for permits.
    waiting: Vec<PartitionId>,
    /// It is among those that give something back.
    gives: bool,
}

impl Share {
    /// The capacity may be another one: what is not in use goes home.
    pub fn returns_all(&mut self) {
        (self.taken_us, self.need) = (0, 0);
    }

    /// There is nothing about it that is worth keeping: nor that there was no room a moment ago.
    pub fn is_idle(&self, now_us: u64) -> bool {
        now_us >= self.none_until_us
            && self.have == 0
            && self.owed == 0
            && self.asked_us.is_none()
            && self.waiting.is_empty()
    }
}

/// Permits of one queue at its home.
struct Room {
    account: Account,
    drain: Drain,
}

/// What a shard lends, and whose shares are to be looked at.
#[derive(Default)]
pub(super) struct Rooms {
    of: ByName<BTreeMap<Box<str>, Room>>,
    /// Lines that may have too much.
    gives: VecDeque<u32>,
    sweep_at_us: u64,
    /// Something is lent to this shard, or by it.
    is_restless: bool,
}

impl Rooms {
    /// Some share waits to be looked at in this turn.
    pub fn wait(&self) -> bool {
        !self.gives.is_empty()
    }

    pub fn next_deadline_us(&self) -> Option<u64> {
        self.is_restless.then_some(self.sweep_at_us)
    }

    /// Another capacity from now on; what is lent stays lent.
    pub fn resize(&mut self, tenant: &str, queue: &str, capacity: u64, now_us: u64) {
        if let Some(room) = self.of.get_mut(tenant).and_then(|of| of.get_mut(queue)) {
            room.account.resize(capacity, now_us);
        }
    }

    fn room(&mut self, tenant: &Arc<str>, queue: &str, capacity: u64, now_us: u64) -> &mut Room {
        self.is_restless = true;
        let of = self.of.entry(tenant.clone()).or_default();
        of.entry(queue.into()).or_insert_with(|| Room {
            // A count: what is lent comes back when it is given back, not by itself.
            account: Account::new(Kind::Connections, capacity, now_us),
            drain: Drain::default(),
        })
    }
}

/// Whether jobs may be opened.
pub(crate) enum Admission {
    /// They may.
    Passes,
    /// The home was asked.
    Waits,
    /// Not before so many milliseconds.
    Full(u32),
}

/// What a shard keeps for what comes next; all of them together never have more than a quarter of the capacity unused.
fn chunk(definition: Option<&Arc<Definition>>, shards: u16) -> u64 {
    definition.map_or(0, |definition| definition.capacity / (8 * u64::from(shards)))
}

impl Queues {
    /// A job is open: it has a permit from now on.
    pub(super) fn take_permit(&mut self, line: u32) {
        let now_us = self.timers.now_us;
        let here = &mut self.lines[line as usize];
        here.used += 1;
        here.share.taken_us = now_us;
        here.share.need = here.share.need.saturating_sub(1);
        match here.share.have.checked_sub(1) {
            Some(have) => here.share.have = have,
            None => {
                here.share.owed += 1;
                self.give(line);
            }
        }
    }

    /// A job has ended: another one may take its permit.
    pub(super) fn return_permit(&mut self, line: u32) {
        let here = &mut self.lines[line as usize];
        if here.used > 0 {
            here.used -= 1;
            here.share.have += 1;
            here.share.ended += 1;
            self.rooms.is_restless = true;
            self.give(line);
        }
    }

    /// It may have too much: that is looked at in this turn.
    pub(super) fn give(&mut self, line: u32) {
        if !std::mem::replace(&mut self.lines[line as usize].share.gives, true) {
            self.rooms.gives.push_back(line);
        }
    }
}

impl Shard {
    fn home_of_queue(&self, tenant: &str, queue: &str) -> ShardId {
        self.owner_of(self.log.partition_id(tenant, &format!("$room.{queue}")))
    }

    /// So many jobs of a recovered folder are open.
    pub(super) fn know_open(&mut self, tenant: &str, queue: &str, count: u64) {
        if self.home_of_queue(tenant, queue) == self.config.shard {
            let definition = self.queues.definition(tenant, queue);
            let capacity = definition.map_or(count, |definition| definition.capacity);
            let room = self.queues.rooms.room(&tenant.into(), queue, capacity, 0);
            room.account.owe(count);
        }
    }

    /// May so many jobs of a queue be opened? Else its home is asked, and the session's command waits.
    pub(super) fn room_for_jobs(
        &mut self,
        tenant: &Arc<str>,
        queue: &str,
        partition: PartitionId,
        count: u64,
        now: Now,
    ) -> Admission {
        let line = self.queues.line(tenant, queue);
        let share = &self.queues.lines[line as usize].share;
        if share.have >= count {
            return Admission::Passes;
        }
        if now.mono_us < share.none_until_us {
            return Admission::Full(share.retry_ms);
        }
        if share.asked_us.is_none()
            && let Some(admission) = self.borrow_room(tenant, queue, line, count, now)
        {
            return admission;
        }
        if !self.parked.has_room(self.config.limits.parked_bytes_max) {
            // A command that waits must not hold its lane.
            return Admission::Full(ASK_AGAIN_MS);
        }
        let share = &mut self.queues.lines[line as usize].share;
        if !share.waiting.contains(&partition) {
            share.waiting.push(partition);
        }
        Admission::Waits
    }

    /// Asks the home; `None`: its answer is on the way.
    fn borrow_room(&mut self, tenant: &Arc<str>, queue: &str, line: u32, need: u64, now: Now) -> Option<Admission> {
        let home = self.home_of_queue(tenant, queue);
        let have = self.queues.lines[line as usize].share.have;
        self.queues.rooms.is_restless = true;
        if home == self.config.shard {
            let lent = self.lend_room(tenant, queue, have, need, now);
            return Some(self.queues.lines[line as usize].share.answered(lent, now.mono_us));
        }
        self.scratch.clear();
        let mut w = Writer(&mut self.scratch);
        w.u8(request::LEND_ROOM).u32(LENT_BYTES_MAX as u32).text(tenant).text(queue).u64(have).u64(need);
        let Some(ask) = self.mail.ask(home, self.scratch.len(), LENT_BYTES_MAX) else {
            return Some(Admission::Full(ASK_AGAIN_MS));
        };
        self.mail.send_ask(home, ask, &self.scratch);
        self.wake(home);
        let share = &mut self.queues.lines[line as usize].share;
        (share.asked_us, share.need) = (Some(now.mono_us), need);
        None
    }

    /// At the home: units, or when to come back.
    fn lend_room(&mut self, tenant: &Arc<str>, queue: &str, have: u64, need: u64, now: Now) -> Result<u64, u32> {
        let Some(definition) = self.queues.definition(tenant, queue) else { return Err(ASK_AGAIN_MS) };
        let (capacity, chunk) = (definition.capacity, chunk(Some(definition), self.config.shards));
        let room = self.queues.rooms.room(tenant, queue, capacity, now.mono_us);
        match room.account.grant(have, need, chunk, now.mono_us) {
            Grant::Units(units) => Ok(units),
            Grant::After(_) => Err(room.drain.retry_after_ms(now.mono_us)),
        }
    }

    /// `LEND_ROOM`, at the home. The asker has reserved the room for the answer.
    pub(crate) fn handle_lend_room(&mut self, from: ShardId, r: &mut Reader<'_>, now: Now) {
        let (reply_bytes, tenant, queue) = (r.u32(), Arc::<str>::from(r.text()), r.text());
        let (have, need) = (r.u64(), r.u64());
        let (units, retry_ms) = match self.lend_room(&tenant, queue, have, need, now) {
            Ok(units) => (units, 0),
            Err(retry_ms) => (0, retry_ms),
        };
        self.scratch.clear();
        let mut w = Writer(&mut self.scratch);
        w.u8(reply::LENT_ROOM).u32(reply_bytes).text(&tenant).text(queue).u64(units).u32(retry_ms);
        self.mail.reply(from, &self.scratch);
        self.wake(from);
    }

    /// `LENT_ROOM`, at the asker.
    pub(crate) fn take_lent_room(&mut self, r: &mut Reader<'_>, now: Now) {
        let (tenant, queue, units, retry_ms) = (r.text(), r.text(), r.u64(), r.u32());
        let Some(line) = self.queues.find_line(tenant, queue) else {
            debug_assert!(false, "a line that waits is kept");
            return;
        };
        let share = &mut self.queues.lines[line as usize].share;
        share.asked_us = None;
        share.answered(if units > 0 { Ok(units) } else { Err(retry_ms) }, now.mono_us);
        (share.taken_us, share.lent_us) = (now.mono_us, now.mono_us);
        let waiting = std::mem::take(&mut share.waiting);
        self.parked_ready.extend(waiting);
        self.queues.give(line);
    }

    /// `REPAY_ROOM`, at the home.
    pub(crate) fn handle_repay_room(&mut self, r: &mut Reader<'_>, now: Now) {
        let (tenant, queue) = (Arc::<str>::from(r.text()), r.text());
        let (unused, ended, owed) = (r.u64(), r.u64(), r.u64());
        self.settle_room(&tenant, queue, (unused, ended, owed), now.mono_us);
    }

    fn settle_room(&mut self, tenant: &Arc<str>, queue: &str, (unused, ended, owed): (u64, u64, u64), now_us: u64) {
        let capacity = self.queues.definition(tenant, queue).map_or(0, |definition| definition.capacity);
        let room = self.queues.rooms.room(tenant, queue, capacity, now_us);
        room.account.settle(unused, 0, now_us);
        room.account.owe(owed);
        (0..ended.min(super::line::ENDS_MAX as u64)).for_each(|_| room.drain.ended(now_us));
    }

    /// Gives back what is more than will soon be needed, and goes on with commands whose home does not answer. Returns the work done.
    pub(super) fn serve_rooms(&mut self, now: Now) -> usize {
        let mut done = 0;
        let sweeps = self.queues.rooms.is_restless && now.mono_us >= self.queues.rooms.sweep_at_us;
        if sweeps {
            self.queues.rooms.sweep_at_us = now.mono_us + SWEEP_EVERY_US;
            self.queues.rooms.is_restless = false;
            let lines: Vec<u32> = self.queues.lines.iter().map(|(line, _)| line as u32).collect();
            for line in lines {
                let share = &mut self.queues.lines[line as usize].share;
                if share.asked_us.is_some_and(|us| now.mono_us >= us + ANSWER_US_MAX) {
                    (share.none_until_us, share.retry_ms) = (now.mono_us + SWEEP_EVERY_US, ASK_AGAIN_MS);
                    self.parked_ready.extend(std::mem::take(&mut share.waiting));
                    done += 1;
                }
                if share.have > 0 {
                    self.queues.give(line);
                }
                self.queues.rooms.is_restless |= !self.queues.lines[line as usize].share.is_idle(now.mono_us);
                self.queues.forget_if_idle(line);
            }
            for of in self.queues.rooms.of.values_mut() {
                of.retain(|_, room| !room.account.is_idle(now.mono_us));
            }
            self.queues.rooms.of.retain(|_, of| !of.is_empty());
            self.queues.rooms.is_restless |= !self.queues.rooms.of.is_empty();
        }
        while let Some(line) = self.queues.rooms.gives.pop_front() {
            let Some(here) = self.queues.lines.get_mut(line as usize) else { continue };
            let (tenant, queue) = (here.tenant.clone(), here.queue.clone());
            let chunk = chunk(self.queues.definition(&tenant, &queue), self.config.shards);
            let share = &mut self.queues.lines[line as usize].share;
            share.gives = false;
            // What was lent for a command that waits is not given back before that has had its turn.
            let need = if now.mono_us < share.lent_us + NONE_US { share.need } else { 0 };
            let unused = share.taken_us == 0 || now.mono_us >= share.taken_us + SWEEP_EVERY_US;
            let keeps = if unused { 0 } else { need.max(2 * chunk) };
            let back = share.have.saturating_sub(keeps);
            if back + share.owed > 0 {
                share.have -= back;
                let (ended, owed) = (std::mem::take(&mut share.ended), std::mem::take(&mut share.owed));
                self.repay_room(&tenant, &queue, (back, ended, owed), now.mono_us);
                done += 1;
            }
            self.queues.forget_if_idle(line);
        }
        done
    }

    fn repay_room(&mut self, tenant: &Arc<str>, queue: &str, (unused, ended, owed): (u64, u64, u64), now_us: u64) {
        let home = self.home_of_queue(tenant, queue);
        if home == self.config.shard {
            return self.settle_room(tenant, queue, (unused, ended, owed), now_us);
        }
        let mut word = Vec::new();
        Writer(&mut word).u8(request::REPAY_ROOM).text(tenant).text(queue).u64(unused).u64(ended).u64(owed);
        self.queues.tell(home, word);
    }
}

impl Share {
    fn answered(&mut self, lent: Result<u64, u32>, now_us: u64) -> Admission {
        match lent {
            Ok(units) => {
                self.have += units;
                self.none_until_us = 0;
                Admission::Passes
            }
            Err(retry_ms) => {
                (self.none_until_us, self.retry_ms) = (now_us + NONE_US, retry_ms);
                Admission::Full(retry_ms)
            }
        }
    }
}
