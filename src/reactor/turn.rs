//! The turn: the only loop of a core.
//!
//! ```text
//!   now = clock.read()      once
//!   reap        completions → net, disk, control                     ≤ COMPLETIONS_PER_TURN_MAX
//!   collect     mail of the other shards, reply lane first           ≤ mail_per_peer_per_turn_max
//!   expire      timers of sockets and core                           ≤ timers per turn
//!   handle      inputs that waited, by whose turn it is              ≤ a budget per turn
//!   commit      the log's operations to the ring
//!   deliver     committed events to send queues                      ≤ DELIVER_BYTES_PER_TURN_MAX
//!   submit      one send per connection; newcomers, as many as the turn has time for; then enter — or park if every step
//!               did nothing
//! ```
//! Fresh input is handled where it lies, in the receive buffer, while its completion is reaped. Every step has a limit,
//! so no tenant and no peer can own a turn.

use super::Reactor;
use super::post::Post;
use crate::net::Class;
use crate::net::websocket::{Opcode, append_with};
use crate::observe::{Stage, Step, fault};
use crate::ring::Kind;
use crate::wire::codes::Close;
use crate::wire::encode;
use shards::effect::{Effect, Reply};
use shards::ids::Now;
use shards::input::Input;
use std::io;
use storage::disk::DiskOp;

/// Completions taken in one turn.
pub const COMPLETIONS_PER_TURN_MAX: usize = 512;
/// Bytes of catch-up in one turn; live events go out whole.
const DELIVER_BYTES_PER_TURN_MAX: usize = 1 << 20;
/// One enter hands out about twenty completions. When thousands of sockets come or go at once, those who stay must not wait
/// a turn for each twenty of them.
const STORM_ENTERS_MAX: usize = 8;
/// While inputs wait for room, nothing may wake the core when it comes: look again this soon.
const WAITING_PARK_US: u64 = 500;
/// Longest sleep. Nothing depends on it.
const PARK_US_MAX: u64 = 1_000_000;

impl Reactor {
    /// One turn.
    ///
    /// # Errors
    /// The ring is unusable.
    pub(super) fn turn(&mut self) -> io::Result<()> {
        let now = self.clock.read();
        self.doors.now = now;
        self.turn_begins(now);

        let mut work = self.reap(now);
        self.ended(Step::Reap);
        let collected = self.collect(now);
        work += collected;
        self.ended(Step::Collect);
        work += self.expire(now);
        self.ended(Step::Expire);
        work += self.handle(now);
        self.ended(Step::Handle);
        work += self.commit(now);
        self.ended(Step::Commit);
        work += self.deliver(now);
        let delivered_ns = self.ended(Step::Deliver);
        self.tail.delivered(delivered_ns);
        work += self.submit(now)?;
        self.ended(Step::Submit);
        work += self.wind_down(now, collected);
        self.ended(Step::WindDown);

        if work > 0 {
            self.pace.worked(now.mono_us);
            self.ring.enter()?;
            self.let_disk_workers_in();
            // Whose turn it is can only be said of input that was handed out.
            if self.net.is_stormy() || self.doors.shard.is_contended() {
                self.ring.enter_while_due(STORM_ENTERS_MAX)?;
            }
            self.ended(Step::Enter);
            self.tail.turn_worked();
            if self.net.took_newcomers() {
                self.net.turn_ended(self.clock.read().mono_us.saturating_sub(now.mono_us));
            }
            Ok(())
        } else {
            self.rest(now)?;
            self.tail.turn_rested(self.clock.ns());
            Ok(())
        }
    }

    fn turn_begins(&mut self, now: Now) {
        let ns = self.clock.ns();
        self.doors.shard.clock(ns);
        self.doors.turn_ns = ns;
        self.net.sends.turn_begins(self.tail.turn_begins(ns, now.wall_ms));
    }

    /// A step has ended, and with it all that was done in it.
    fn ended(&mut self, step: Step) -> u64 {
        let ns = self.clock.ns();
        self.doors.shard.clock(ns);
        self.tail.step(step, ns);
        ns
    }

    fn reap(&mut self, now: Now) -> usize {
        let mut batch = std::mem::take(&mut self.batch);
        self.ring.reap(&mut batch, COMPLETIONS_PER_TURN_MAX);
        for completion in &batch {
            if matches!(completion.user_data.kind(), Kind::Recv) {
                fault::pass(Stage::SocketIn);
            }
            match completion.user_data.kind() {
                Kind::Disk => {
                    let token = completion.user_data.generation();
                    self.disk.complete(token, completion.result, &mut self.ring);
                }
                // The mail itself is found by `collect`.
                Kind::Wake => {}
                // The peer's ring is full or gone; mail lies in its lane either way.
                Kind::WakeSent => {}
                Kind::Control => {
                    self.ring.waker_rang(completion);
                    self.obey(now);
                }
                Kind::HandOff => {
                    // The announcement was sent before the socket.
                    self.obey(now);
                    self.net.complete(completion, now, &mut self.ring, &mut self.doors);
                }
                _ => self.net.complete(completion, now, &mut self.ring, &mut self.doors),
            }
        }
        self.net.rearm(now, &mut self.ring, &mut self.doors);
        self.observe_sends();
        self.answer_disk(now);
        let count = batch.len();
        self.batch = batch;
        count
    }

    /// What the kernel has taken by now.
    fn observe_sends(&mut self) {
        let mut ns = None;
        while let Some(stamp_us) = self.net.sends.next_taken() {
            let ns = *ns.get_or_insert_with(|| self.clock.ns());
            self.tail.sent(stamp_us, ns);
        }
    }

    fn collect(&mut self, now: Now) -> usize {
        if cfg!(feature = "stall") && self.doors.shard.mail_waiting().1 > 0 && fault::pass(Stage::Mailbox) {
            self.doors.shard.clock(self.clock.ns());
        }
        let mut post = Post { sends: &mut self.net.sends, frames: &mut self.frames, tail: &mut self.tail };
        self.doors.shard.collect(now, &mut post)
    }

    fn expire(&mut self, now: Now) -> usize {
        let mut looked = 0;
        while let Some((id, words)) = self.doors.guard.next_overdue(now, &mut looked) {
            self.net.part_with(id, words, now, &mut self.ring, &mut self.doors);
        }
        let mut swept = 0;
        while let Some((id, words)) = self.doors.guard.next_unwanted(&mut swept) {
            self.net.part_with(id, words, now, &mut self.ring, &mut self.doors);
        }
        if self.doors.guard.is_note_due(now) {
            let stats = self.net.stats();
            let others = [
                ("TLS handshakes that failed", stats.handshakes_failed),
                ("broken TLS records", stats.records_broken),
                ("plain words on TLS", stats.plain_on_tls),
                ("TLS on a plain port", self.doors.tls_on_plain),
            ];
            self.doors.guard.note(now, others);
        }
        looked + swept + self.net.expire(now, &mut self.ring, &mut self.doors) + self.doors.shard.expire(now)
    }

    fn handle(&mut self, now: Now) -> usize {
        // Replies first: they make the room that inputs wait for.
        let mut work = self.reply();
        work += self.doors.tell_unheard();
        work += self.net.retry(now, &mut self.ring, &mut self.doors);
        self.doors.held_since_ns = None;
        while let Some(connection) = self.net.sends.next_drained() {
            // A core that has no room to hear it looks at its blocked clients by itself, by and by.
            let _ = self.doors.shard.handle(Input::Drained { connection }, now);
            work += 1;
        }
        work
    }

    fn commit(&mut self, now: Now) -> usize {
        let mut work = 0;
        while let Some(op) = self.doors.shard.poll_disk(now) {
            if matches!(op, DiskOp::Commit { .. }) {
                fault::pass(Stage::Commit);
            }
            self.disk.perform(op, self.doors.shard.log_mut(), &mut self.ring);
            work += 1;
        }
        work + self.disk.pump(&mut self.ring) + self.answer_disk(now)
    }

    fn deliver(&mut self, now: Now) -> usize {
        let mut work = self.reply();
        let mut post = Post { sends: &mut self.net.sends, frames: &mut self.frames, tail: &mut self.tail };
        work += self.doors.shard.deliver(now, DELIVER_BYTES_PER_TURN_MAX, &mut post);
        work + self.reply()
    }

    fn submit(&mut self, now: Now) -> io::Result<usize> {
        self.net.close_overrun(now, &mut self.ring, &mut self.doors);
        if self.net.sends.has_dirty() {
            self.tail.submits();
            fault::pass(Stage::SocketOut);
        }
        let mut work = self.net.transmit(&mut self.ring)?;
        work += self.net.see_off(now, &mut self.ring, &mut self.doors);
        work += self.net.admit(now, &mut self.ring, &mut self.doors);
        Ok(work + self.net.transmit(&mut self.ring)?)
    }

    /// A sync runs in a kernel worker of this ring, which may live on this core: it would wait for the scheduler's next tick,
    /// milliseconds, while this thread goes from turn to turn without sleeping. Costs one system call where nobody waits.
    fn let_disk_workers_in(&self) {
        if !self.disk.is_idle() {
            std::thread::yield_now();
        }
    }

    /// Every step did nothing: spin a little, then sleep until a completion, mail, or the next timer.
    fn rest(&mut self, now: Now) -> io::Result<()> {
        if !self.pace.may_park(now.mono_us) {
            std::hint::spin_loop();
            self.let_disk_workers_in();
            return self.ring.enter();
        }
        let mut timeout_us = PARK_US_MAX;
        let deadlines =
            [self.net.next_deadline_us(), self.doors.shard.next_deadline_us(), self.doors.guard.next_deadline_us()];
        for deadline_us in deadlines.into_iter().flatten() {
            timeout_us = timeout_us.min(deadline_us.saturating_sub(now.mono_us));
        }
        if self.net.waiting() > 0 || self.doors.shard.holds_mail() || self.is_ending() {
            timeout_us = timeout_us.min(WAITING_PARK_US);
        }
        // Mail that came before the flag was set is found here; mail that comes after rings the ring.
        if self.doors.shard.prepare_park() {
            self.ring.park(timeout_us.max(1))?;
            self.doors.shard.unpark();
            Ok(())
        } else {
            // Not a turn without entering the kernel: completions, the disk's too, are only handed out there.
            self.doors.shard.unpark();
            self.ring.enter()
        }
    }

    /// Carries out what the core has decided.
    fn reply(&mut self) -> usize {
        let mut work = 0;
        while let Some(effect) = self.doors.shard.poll_effect() {
            work += 1;
            match effect {
                Effect::Reply { connection, id, reply: Reply::Resumed { client_id, life, sessions, patterns } } => {
                    let wall_ms = self.doors.now.wall_ms;
                    let tenant = self.doors.guard.tenant_of(connection);
                    let (token, expires_ms) = self.doors.tokens.sign(tenant, client_id, life, wall_ms);
                    self.out.clear();
                    append_with(&mut self.out, Opcode::Text, |out| {
                        encode::resumed(out, &id, client_id, life.generation, sessions, patterns, &token, expires_ms);
                    });
                    self.net.sends.push(connection, &self.out, Class::Reply);
                }
                Effect::Replaced { connection } => {
                    let words = (Close::Replaced.code(), Close::Replaced.reason());
                    self.net.close(connection, words, self.doors.now, &mut self.doors);
                }
                Effect::TurnedAway { connection } => {
                    let words = (Close::OverQuota.code(), Close::OverQuota.reason());
                    self.net.close(connection, words, self.doors.now, &mut self.doors);
                }
                Effect::Reply { connection, id, reply } => {
                    if let Reply::Refused(refused) = &reply {
                        self.tail.refused(refused.refusal);
                    }
                    if encode::reply_is_sent(&id, &reply) {
                        self.out.clear();
                        append_with(&mut self.out, Opcode::Text, |out| encode::reply(out, &id, &reply));
                        self.net.sends.push(connection, &self.out, Class::Reply);
                    }
                }
                Effect::Wake { shard } => {
                    if let Some(ring) = self.doors.ring_of(shard) {
                        self.ring.wake(ring);
                    }
                }
                Effect::Poisoned { fault } => self.poisoned = Some(fault),
            }
        }
        work
    }

    /// Gives the log the answers of the disk.
    fn answer_disk(&mut self, now: Now) -> usize {
        let mut work = 0;
        while let Some(done) = self.disk.poll_done() {
            self.doors.shard.disk_done(done, now);
            work += 1;
        }
        work
    }
}
