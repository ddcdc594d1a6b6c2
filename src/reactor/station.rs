//! A core before it has a log: its ring and its sockets' memory. All that can be made while another process still has the folder.
//!
//! ```text
//!   open ─► Station { ring, net } ── log, keys, desk come ──► Reactor
//!              │ its address is known to its peers from here on
//! ```

use super::control::{Control, Errand, Peer, Report};
use super::doors::Doors;
use super::guard::Guard;
use super::pace::Pace;
use super::post::Frames;
use super::{Phase, Reactor, ReactorConfig, turn};
use crate::auth::Rules;
use crate::disk::background::Desk;
use crate::disk::executor::Executor;
use crate::net::Net;
use crate::observe::Tail;
use crate::reactor::clock::Clock;
use crate::ring::{Ring, RingError, Waker};
use crate::wire::token::Tokens;
use rustls::ServerConfig;
use shards::Shard;
use std::sync::Arc;

/// One per core, made by its thread and used up by it.
pub struct Station {
    ring: Ring,
    net: Net,
    config: ReactorConfig,
    clock: Clock,
}

impl Station {
    /// Opens the ring on the calling thread and takes the memory of its sockets.
    ///
    /// # Errors
    /// The ring or the memory cannot be had; one line with the cure.
    pub fn open(config: ReactorConfig, clock: Clock, waker: Waker) -> Result<Station, RingError> {
        let ring = Ring::open(&config.ring, waker)?;
        let net = Net::new(config.net, clock.read()).map_err(RingError::memory)?;
        Ok(Station { ring, net, config, clock })
    }

    /// How peers reach this core.
    pub fn address(&self, control: flume::Sender<Control>) -> Peer {
        Peer { ring: self.ring.raw_fd(), waker: self.ring.waker().clone(), control }
    }

    /// Slots for direct sockets.
    pub fn direct_slots(&self) -> u32 {
        self.ring.direct_slots()
    }

    /// Gives it what it serves.
    pub fn seat(
        self,
        shard: Shard,
        tokens: Tokens,
        (rules, tls, keeper): (Arc<Rules>, Option<Arc<ServerConfig>>, flume::Sender<Errand>),
        disk: Executor<Desk>,
        control: flume::Receiver<Control>,
        reports: flume::Sender<Report>,
    ) -> Reactor {
        let Station { ring, mut net, config, clock } = self;
        if let Some(tls) = tls {
            net.secure(tls);
        }
        let guard = Guard::new(rules, config.net.slots(), config.introduce_us_max, clock.read());
        Reactor {
            ring,
            net,
            doors: Doors::new(config.shard, shard, config.limits, config.echo_open, tokens, (guard, keeper), clock),
            disk,
            frames: Frames::new(),
            clock,
            tail: Tail::new(config.shard, config.turn_step_us_max),
            pace: Pace::new(config.spin_us_max),
            batch: Vec::with_capacity(turn::COMPLETIONS_PER_TURN_MAX),
            out: Vec::new(),
            control,
            reports,
            shard: config.shard,
            phase: Phase::Serving,
            drain_limits: config.drain,
            drain: None,
            settle_by_us: 0,
            poisoned: None,
        }
    }
}
