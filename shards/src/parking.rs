//! Commands that wait for the disk: parked behind their partition, and taken up again when the log has what they need.
//!
//! ```text
//!  command ─► partition or key not in memory ─► parked ── Loaded, Looked ──► ready ─► the command, once more
//!                                                  └───── fault ───────────► refused
//! ```

use crate::command::From;
use crate::commands::{Call, Outcome, subscribe};
use crate::delivery::SubscriptionId;
use crate::ids::{Now, PartitionId};
use crate::mailbox::codec::{Reader, Writer};
use crate::mailbox::message::{get_from, put_from, with_command};
use crate::refusal::{Refusal, Refused};
use crate::sessions::Asker;
use crate::sessions::parked::{Found, Known, Parked, Work};
use crate::shard::Shard;
use crate::traces::Stamps;
use storage::log::LogEvent;

impl Shard {
    /// Parks a command behind its partition; `false` if there is no room for it.
    pub(crate) fn park(&mut self, asker: Asker, partition: PartitionId, work: Work) -> bool {
        if !self.parked.has_room(self.config.limits.parked_bytes_max) {
            return false;
        }
        let stamps = self.traces.stamps();
        self.parked.push(partition, Parked { asker, work, known: Known::default(), stamps });
        true
    }

    /// Attaches a subscription now, or parks it. The caller has seen room to park.
    pub(crate) fn attach_or_park(
        &mut self,
        asker: Asker,
        subscription: SubscriptionId,
        session: &str,
        from: From<'_>,
        _now: Now,
    ) {
        if subscribe::attach(self, &asker, subscription, session, from) != Outcome::Park {
            return;
        }
        let mut bytes = Vec::new();
        put_from(&mut Writer(&mut bytes), from);
        let work = Work::Attach { subscription, session: session.into(), from: bytes.into() };
        let partition = self.log.partition_id(&asker.tenant, session);
        let parked = self.park(asker, partition, work);
        debug_assert!(parked, "room to park was seen before");
    }

    /// Goes on with commands whose partition or lookup has come. Stops at one that must wait again.
    pub(crate) fn resume_parked(&mut self, now: Now) -> usize {
        let mut resumed = 0;
        for _ in 0..self.parked_ready.len() {
            let Some(partition) = self.parked_ready.pop_front() else { break };
            while let Some(parked) = self.parked.pop(partition) {
                if !self.has_effect_room(1) {
                    self.parked.push_front(partition, parked);
                    self.parked_ready.push_back(partition);
                    return resumed;
                }
                self.traces.begin(parked.stamps);
                let outcome = match &parked.work {
                    Work::Command(bytes) => with_command(&mut Reader(bytes), |command| {
                        let session = command.session().unwrap_or_default();
                        let call = Call { asker: &parked.asker, partition, session, known: &parked.known, now };
                        self.execute_now(call, &command)
                    }),
                    Work::Attach { subscription, session, from } => {
                        subscribe::attach_now(self, &parked.asker, *subscription, session, get_from(&mut Reader(from)))
                    }
                };
                self.traces.appended(self.log.next_seq());
                self.traces.begin(Stamps::default());
                match outcome {
                    Outcome::Done => resumed += 1,
                    Outcome::Park => {
                        self.parked.push_front(partition, parked);
                        break;
                    }
                    Outcome::Later => {
                        self.parked.push_front(partition, parked);
                        self.parked_ready.push_back(partition);
                        break;
                    }
                }
            }
        }
        resumed
    }

    /// Everything parked on a partition that cannot be read is refused.
    fn refuse_parked(&mut self, partition: PartitionId) {
        while let Some(parked) = self.parked.pop(partition) {
            match parked.work {
                Work::Command(_) => self.refuse_unreadable(&parked.asker),
                Work::Attach { subscription, session, .. } => {
                    let refused = Refused::later(Refusal::Unavailable, 1000);
                    subscribe::answer_attach(self, &parked.asker, subscription, &session, Err(refused));
                }
            }
        }
    }

    /// Takes what the log has to say.
    pub(crate) fn drain_log_events(&mut self, now: Now) {
        while let Some(event) = self.log.poll_event() {
            match event {
                // Walked in the deliver step, where there is an outbox.
                LogEvent::Committed { .. } => {}
                LogEvent::Loaded { id, fault } => {
                    match fault {
                        None => self.parked_ready.push_back(id),
                        Some(_) => self.refuse_parked(id),
                    }
                    self.serve_due_of(id, now);
                }
                LogEvent::Looked { id, key, fault } => {
                    if fault.is_some() {
                        self.refuse_parked(id);
                    } else {
                        self.answer_lookup(id, key);
                        self.parked_ready.push_back(id);
                    }
                }
                LogEvent::ReadReady(ticket) => self.ready_reads.push_back(ticket),
                LogEvent::Poisoned(fault) => self.effects.poisoned(fault),
                LogEvent::NoSpace(_) => {}
                LogEvent::Damaged(_) => self.counters.damaged_reads += 1,
                LogEvent::Stopped => self.stopped = true,
            }
        }
    }

    /// Keeps what a lookup found with the command that waits for it: the log may forget it before the command's turn.
    fn answer_lookup(&mut self, partition: PartitionId, key: u128) {
        let Some(slot) = self.log.resident(partition) else { return };
        match self.log.dedupe(slot, key) {
            storage::log::Seen::Yes { offset, body_hash, .. } => {
                self.parked.answer(partition, key, Some(Found { offset, body_hash }));
            }
            storage::log::Seen::No => self.parked.answer(partition, key, None),
            storage::log::Seen::Looking => {}
        }
    }
}
