//! What is rare in the life of a core: orders from the control plane, and its end.
//!
//! ```text
//!   Serving ──Drain──► Draining ──nobody is open──► Drained ──Stop──► Settling ──► Stopping ──checkpoint──► Stopped ──Release──► end
//!      ▲   goaway in waves  │ or time is up: cut off  │    mail of the others,       commits, clean mark      │
//!      └───────Stay─────────┴─────────────────────────┘    last words of clients             the ring stays: peers may still ring it
//! ```
//! Each shard settles after all of them are drained: what they had to say to each other is in the lanes by then.

use super::control::{Control, Report};
use super::drain::Drain;
use super::{Phase, Reactor};
use crate::net::websocket::{Opcode, append_with};
use crate::net::{Class, CloseWords, Door};
use crate::ring::Socket;
use crate::wire::codes::Close;
use crate::wire::encode;
use shards::effect::Reply;
use shards::ids::{ConnectionId, Now};
use shards::input::Input;

/// Connections told to go away, and connections looked at on their way out, in one turn.
const GOODBYES_PER_TURN_MAX: usize = 512;
/// Longest wait for what shards have to say to each other before their logs are closed. What is not heard by then is only
/// what clients acknowledged last: they see it again.
const SETTLE_US_MAX: u64 = 1_000_000;
/// Longest wait for requests of connections that were accepted before; most never send one.
const ANSWER_US_MAX: u64 = 100_000;

impl Reactor {
    /// Takes orders.
    pub(super) fn obey(&mut self, now: Now) {
        while let Ok(order) = self.control.try_recv() {
            match order {
                Control::Serve { peers, listeners } => {
                    self.doors.meet(peers);
                    self.net.listen(listeners);
                }
                Control::Adopt(mut adoption) => match adoption.fd.take() {
                    Some(fd) => {
                        self.net.adopt(Socket::Fd(fd), adoption.head, now, &mut self.ring, &mut self.doors);
                    }
                    None => self.doors.announce(adoption),
                },
                Control::Secure(config) => self.net.secure(config),
                Control::Rules(rules) => self.doors.guard.change(rules, now),
                Control::Quotas(quotas) => {
                    let _done = self.doors.shard.handle(Input::Quotas { quotas: &quotas }, now);
                }
                Control::Revoked { connection, id, refused } => {
                    self.out.clear();
                    append_with(&mut self.out, Opcode::Text, |out| match refused {
                        None => encode::revoked(out, &id),
                        Some(refused) => encode::reply(out, &id, &Reply::Refused(refused)),
                    });
                    self.net.sends.push(connection, &self.out, Class::Reply);
                }
                Control::QuotaSet { connection, id, outcome } => {
                    self.out.clear();
                    append_with(&mut self.out, Opcode::Text, |out| match &outcome {
                        Ok((tenant, quota)) => encode::quota(out, &id, tenant, quota),
                        Err(refused) => encode::reply(out, &id, &Reply::Refused(*refused)),
                    });
                    self.net.sends.push(connection, &self.out, Class::Reply);
                }
                Control::Revoke { from, ticket } => self.doors.forget(from, ticket),
                Control::Drain { taken_over } if self.phase == Phase::Serving => self.begin_drain(taken_over, now),
                Control::Cut => {
                    if let Some(drain) = &mut self.drain {
                        drain.hurry(now.mono_us);
                    }
                }
                Control::Stay if self.phase <= Phase::Drained => {
                    if let Some(drain) = &mut self.drain {
                        drain.stay();
                    }
                    self.doors.retry_after_s = None;
                    self.net.listen_again();
                    self.phase = Phase::Serving;
                    self.report(Report::Stays { shard: self.shard });
                }
                Control::Stop if self.phase < Phase::Settling => {
                    // Until every shard was drained, whoever came was told when to come back.
                    self.net.stop_listening(&mut self.ring);
                    self.phase = Phase::Settling;
                    self.settle_by_us = now.mono_us + SETTLE_US_MAX;
                }
                Control::Look(look) => self.look(look),
                Control::Release => self.phase = Phase::Released,
                Control::Ask { answer } => {
                    // Whoever asked may have given up.
                    let _ = answer.try_send(());
                }
                Control::Drain { .. } | Control::Stay | Control::Stop => {}
            }
        }
    }

    fn begin_drain(&mut self, taken_over: bool, now: Now) {
        let connections = self.net.open_connections();
        let drain = Drain::new(self.drain_limits, self.shard, connections, taken_over, now.mono_us);
        self.doors.retry_after_s = Some(drain.retry_after_s(now.mono_us));
        if taken_over {
            // Who comes now waits in the sockets until the next process accepts; else it is told to come back.
            self.net.stop_listening(&mut self.ring);
        }
        self.drain = Some(drain);
        self.phase = Phase::Draining;
    }

    /// Takes the next step of the end, if it has begun. Returns work done. `collected`: mail taken in this turn.
    pub(super) fn wind_down(&mut self, now: Now, collected: usize) -> usize {
        let done = self.send_away(now);
        match self.phase {
            Phase::Serving | Phase::Drained | Phase::Stopped | Phase::Released => done,
            Phase::Draining => {
                if self.is_drained(now) {
                    self.phase = Phase::Drained;
                    self.report(Report::Drained { shard: self.shard });
                }
                done
            }
            Phase::Settling => {
                let settled = collected == 0 && self.has_said_all();
                if settled || now.mono_us >= self.settle_by_us {
                    self.doors.shard.stop();
                    self.phase = Phase::Stopping;
                    return done + 1;
                }
                done
            }
            Phase::Stopping if self.doors.shard.stopped() && self.disk.is_idle() => {
                self.phase = Phase::Stopped;
                self.report(Report::Stopped { shard: self.shard });
                done + 1
            }
            Phase::Stopping => done,
        }
    }

    /// Tells whose turn it is, and closes whose time has come and who is owed nothing.
    fn send_away(&mut self, now: Now) -> usize {
        let Some(mut drain) = self.drain.take() else { return 0 };
        let asked = drain.due(now.mono_us).min(GOODBYES_PER_TURN_MAX);
        let mut done = 0;
        if asked > 0 {
            let wave = self.net.open_from(drain.cursor, asked);
            for (id, door) in &wave {
                if *door == Door::Events {
                    let back_ms = drain.reconnect_after_ms(*id, now.mono_us);
                    self.out.clear();
                    append_with(&mut self.out, Opcode::Text, |out| encode::goaway(out, back_ms));
                    self.net.sends.push(*id, &self.out, Class::Reply);
                }
            }
            done += wave.len();
            drain.have_told(wave.iter().map(|(id, _)| *id), asked, now.mono_us);
        }
        while done < GOODBYES_PER_TURN_MAX
            && let Some(id) = drain.next_deaf(now.mono_us)
        {
            self.net.hear_no_more(id);
            done += 1;
        }
        let late = drain.is_late(now.mono_us);
        for _ in 0..drain.leaving().len().min(GOODBYES_PER_TURN_MAX) {
            let Some(id) = drain.leaving().pop_front() else { break };
            if !self.net.is_open(id) {
                continue;
            }
            if self.is_owed(id) && !late {
                drain.leaving().push_back(id);
                continue;
            }
            self.net.part_with(id, going_away(), now, &mut self.ring, &mut self.doors);
            drain.parted(id);
            done += 1;
        }
        // A drain that was called off ends here.
        if !(self.phase == Phase::Serving && drain.is_over()) {
            self.drain = Some(drain);
        }
        done
    }

    /// A command of this connection was taken and has no reply yet.
    fn is_owed(&self, id: ConnectionId) -> bool {
        self.net.holds_input(id) || self.doors.shard.commands_in_flight(id) > 0
    }

    /// No client is left, or no more time; and what they leave behind is in the lanes to other shards.
    fn is_drained(&mut self, now: Now) -> bool {
        let Some(drain) = &mut self.drain else { return true };
        let over_us = drain.over_since_us(now.mono_us);
        let end_us = drain.end_us();
        // Requests that are on their way when nobody accepts any more get their answer, too.
        let answering = over_us.is_some_and(|over_us| now.mono_us < over_us + ANSWER_US_MAX)
            && !self.net.is_listening()
            && self.net.has_upgrading();
        let nobody = drain.is_over() && drain.all_parted(GOODBYES_PER_TURN_MAX, |id| self.net.holds(id));
        if !nobody || answering {
            if now.mono_us < end_us {
                return false;
            }
            self.net.cut_off(now, &mut self.ring, &mut self.doors);
        }
        // Last words of those who were cut off in this turn are said in the next one.
        self.has_said_all() || now.mono_us >= end_us + SETTLE_US_MAX
    }

    fn has_said_all(&self) -> bool {
        self.doors.shard.is_settled() && !self.doors.has_unheard()
    }

    /// The end has begun: look often, nothing may ring.
    pub(super) fn is_ending(&self) -> bool {
        self.drain.is_some() && self.phase <= Phase::Draining || matches!(self.phase, Phase::Settling | Phase::Stopping)
    }

    fn report(&self, report: Report) {
        // Boot outlives every shard; if it is gone the process is ending anyway.
        let _ = self.reports.send(report);
    }
}

fn going_away() -> CloseWords {
    (Close::GoingAway.code(), Close::GoingAway.reason())
}
