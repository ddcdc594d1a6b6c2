//! One core: its ring, its sockets, its log, its shard, and the loop that turns them.
//!
//! ```text
//!            ┌──────────────────────── turn ─────────────────────────┐
//!   ring ──► reap ─► collect ─► expire ─► handle ─► commit ─► deliver ─► submit ─► ring
//!             │        │          │         │         │          │
//!            net     shard    net,shard  net→shard  disk    shard→net
//! ```
//! [`turn`] is the loop, [`doors`] is what a socket's bytes mean, [`post`] is how events become frames, [`pace`] says
//! when to sleep, [`look`] what others may ask; [`station`] is a core before it has a log, [`control`], [`drain`] and
//! [`wind_down`] are everything that is rare; [`guard`] knows who the connections are. Nothing here decides about events;
//! the shard does.

pub mod clock;
pub mod control;
mod doors;
mod drain;
mod echo;
mod guard;
mod identity;
mod log_memory;
pub mod look;
mod pace;
mod post;
mod station;
mod turn;
mod wind_down;

pub use drain::DrainLimits;
pub use echo::ECHO_ASSEMBLY_BYTES_MAX;
pub use identity::random_u64;
pub use post::Frames;
pub use station::Station;

use crate::disk::background::Desk;
use crate::disk::executor::Executor;
use crate::net::{CloseTable, Net, NetConfig};
use crate::observe::Tail;
use crate::ring::{Completion, Ring, RingConfig};
use crate::wire::codes::Close;
use clock::Clock;
use control::{Control, Report};
use doors::Doors;
use drain::Drain;
use pace::Pace;
use shards::ids::ShardId;
use shards::limits::Limits;
use std::io;
use storage::disk::DiskFault;

/// What a reactor is made of, moved to its thread.
pub struct ReactorConfig {
    /// Number.
    pub shard: ShardId,
    /// Its ring.
    pub ring: RingConfig,
    /// Its sockets.
    pub net: NetConfig,
    /// Bounds of the core.
    pub limits: Limits,
    /// `/echo` is open.
    pub echo_open: bool,
    /// Longest spin before parking, microseconds; 0 where shards share a core.
    pub spin_us_max: u64,
    /// A step of a turn that takes longer is a stall, microseconds.
    pub turn_step_us_max: u64,
    /// How clients are sent away.
    pub drain: DrainLimits,
    /// How long a client has to say who it is, microseconds.
    pub introduce_us_max: u64,
}

/// Where a reactor stands between its start and its end. Only moves down.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Phase {
    /// Clients come and go.
    Serving,
    /// Clients are being sent away.
    Draining,
    /// No client is left; peers may still need the log.
    Drained,
    /// What the shards still have to say to each other is heard.
    Settling,
    /// The log is being closed.
    Stopping,
    /// The log is closed.
    Stopped,
    /// The thread ends.
    Released,
}

/// One per core, made and used by its thread alone.
pub struct Reactor {
    // The order of the fields is the order of their end: the ring goes first, and with it every request that points
    // into the memory of those below it.
    ring: Ring,
    net: Net,
    doors: Doors,
    disk: Executor<Desk>,
    frames: Frames,
    clock: Clock,
    tail: Tail,
    pace: Pace,
    batch: Vec<Completion>,
    out: Vec<u8>,
    control: flume::Receiver<Control>,
    reports: flume::Sender<Report>,
    shard: ShardId,
    phase: Phase,
    drain_limits: DrainLimits,
    drain: Option<Drain>,
    settle_by_us: u64,
    poisoned: Option<DiskFault>,
}

/// Why a reactor ended before it was released.
#[derive(Debug)]
pub enum Ended {
    /// The log is poisoned.
    Poisoned(DiskFault),
    /// The ring broke.
    Broken(io::Error),
}

impl Reactor {
    /// Turns until released.
    ///
    /// # Errors
    /// The log is poisoned or the ring broke: the process must end.
    pub fn run(&mut self) -> Result<(), Ended> {
        while self.phase != Phase::Released {
            self.turn().map_err(Ended::Broken)?;
            if let Some(fault) = self.poisoned {
                return Err(Ended::Poisoned(fault));
            }
        }
        Ok(())
    }
}

/// What the wire says when connections end for the sockets' own reasons.
pub fn close_table() -> CloseTable {
    let words = |close: Close| (close.code(), close.reason());
    CloseTable { idle: words(Close::Idle), too_slow: words(Close::TooSlow), unavailable: words(Close::Unavailable) }
}
