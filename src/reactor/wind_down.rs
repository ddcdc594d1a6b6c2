//! What is rare in the life of a core: orders from the control plane, and its end.
//!
//! ```text
//!   Serving ──Drain──► Draining ──no connection──► Drained ──Stop──► Stopping ──checkpoint──► Stopped ──Release──► end
//!             goaway, close          │ or time is up                 commits, clean mark       │
//!                                    └ cut off                                                 └ the ring stays: peers
//!                                                                                                may still ring it
//! ```

use super::control::{Control, Report};
use super::{Phase, Reactor};
use crate::net::websocket::{Opcode, append_with};
use crate::net::{Class, Door};
use crate::ring::Socket;
use crate::wire::codes::Close;
use crate::wire::encode;
use shards::ids::Now;

/// Clients are asked to come back within this time, each at its own moment.
const RECONNECT_WITHIN_MS: u64 = 2000;

impl Reactor {
    /// Takes orders.
    pub(super) fn obey(&mut self, now: Now) {
        while let Ok(order) = self.control.try_recv() {
            match order {
                Control::Serve { peers, listener } => {
                    self.doors.meet(peers);
                    self.net.listen(listener, &mut self.ring);
                }
                Control::Adopt(mut adoption) => match adoption.fd.take() {
                    Some(fd) => {
                        self.net.adopt(Socket::Fd(fd), adoption.head, now, &mut self.ring, &mut self.doors);
                    }
                    None => self.doors.announce(adoption),
                },
                Control::Revoke { from, ticket } => self.doors.forget(from, ticket),
                Control::Drain if self.phase == Phase::Serving => {
                    self.doors.draining = true;
                    self.net.stop_listening(&mut self.ring);
                    self.phase = Phase::Draining { deadline_us: now.mono_us + self.drain_us_max };
                }
                Control::Stop if self.phase < Phase::Stopping => {
                    self.doors.shard.stop();
                    self.phase = Phase::Stopping;
                }
                Control::Release => self.phase = Phase::Released,
                Control::Drain | Control::Stop => {}
            }
        }
    }

    /// Takes the next step of the end, if it has begun. Returns work done.
    pub(super) fn wind_down(&mut self, now: Now) -> usize {
        match self.phase {
            Phase::Serving | Phase::Drained | Phase::Stopped | Phase::Released => 0,
            Phase::Draining { deadline_us } => {
                let words = (Close::GoingAway.code(), Close::GoingAway.reason());
                let told = self.net.say_goodbye(words, now, &mut self.ring, &mut self.doors, |id, door, sends| {
                    if door == Door::Events {
                        let mut frame = Vec::with_capacity(64);
                        let jitter = u64::from(id.slot.wrapping_mul(0x9e37_79b9)) % RECONNECT_WITHIN_MS;
                        append_with(&mut frame, Opcode::Text, |out| encode::goaway(out, jitter));
                        sends.push(id, &frame, Class::Reply);
                    }
                });
                if self.net.connections() == 0 || now.mono_us >= deadline_us {
                    self.phase = Phase::Drained;
                    self.report(Report::Drained { shard: self.shard });
                }
                told
            }
            Phase::Stopping if self.doors.shard.stopped() && self.disk.is_idle() => {
                self.phase = Phase::Stopped;
                self.report(Report::Stopped { shard: self.shard });
                1
            }
            Phase::Stopping => 0,
        }
    }

    /// The end has begun: look often, nothing may ring.
    pub(super) fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Draining { .. } | Phase::Stopping)
    }

    fn report(&self, report: Report) {
        // Boot outlives every shard; if it is gone the process is ending anyway.
        let _ = self.reports.send(report);
    }
}
