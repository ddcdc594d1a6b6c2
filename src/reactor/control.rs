//! The control plane: what reaches a shard beside mail. Rare, so a lock inside the channel does not matter.
//!
//! ```text
//!   boot ── Serve, Drain, Stop, Release ──┐
//!   peer ── Adopt, Revoke ────────────────┼──► flume, bounded ──► reactor (its bell rings: Kind::Control)
//!   boot ◄── Report ──────────────────────────────────────────── reactor
//! ```

use crate::net::Adoption;
use crate::ring::Waker;
use shards::ids::ShardId;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use storage::disk::DiskFault;

/// Messages that may wait for a shard. A hand-off that finds no place is served where it is.
pub const CONTROL_MESSAGES_MAX: usize = 1024;

/// To a shard.
#[derive(Debug)]
pub enum Control {
    /// Everybody is there: accept.
    Serve {
        /// How to reach each shard, by number.
        peers: Arc<[Peer]>,
        /// This shard's listening socket.
        listener: OwnedFd,
    },
    /// A socket comes from a peer.
    Adopt(Adoption),
    /// It does not come after all.
    Revoke {
        /// Who gave.
        from: ShardId,
        /// Its ticket.
        ticket: u32,
    },
    /// Accept nothing more, tell clients to go away, close their connections.
    Drain,
    /// Commit what is open, make the last checkpoint.
    Stop,
    /// Nobody needs this shard's ring any more: end the thread.
    Release,
}

/// From a shard.
#[derive(Debug)]
pub enum Report {
    /// The ring is open.
    Ready {
        /// Who.
        shard: ShardId,
        /// How peers reach it.
        peer: Peer,
        /// What was opened, for the log.
        direct_slots: u32,
    },
    /// The shard cannot start: one line with the cure.
    Refused {
        /// The line.
        why: String,
    },
    /// No connection is left.
    Drained {
        /// Who.
        shard: ShardId,
    },
    /// The log is closed.
    Stopped {
        /// Who.
        shard: ShardId,
    },
    /// The log is poisoned.
    Poisoned {
        /// Who.
        shard: ShardId,
        /// What broke.
        fault: DiskFault,
    },
    /// The ring broke.
    Broken {
        /// Who.
        shard: ShardId,
        /// What was said.
        why: String,
    },
    /// The operator asks to stop.
    Signal(i32),
}

/// How to reach a shard.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its ring, for MSG_RING.
    pub ring: RawFd,
    /// Its bell, for threads without a ring.
    pub waker: Waker,
    /// Its control channel.
    pub control: flume::Sender<Control>,
}
