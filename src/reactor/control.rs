//! The control plane: what reaches a shard beside mail. Rare, so a lock inside the channel does not matter.
//!
//! ```text
//!   boot ── Serve, Drain, Cut, Stay, Stop, Release ──┐
//!   keepers ── Rules, Secure, Quotas, Revoked, … ────┤
//!   admin ── Look      watchdog ── Ask ──────────────┤
//!   peer ── Adopt, Revoke ───────────────────────────┼──► flume, bounded ──► reactor (its bell rings: Kind::Control)
//!   keeper ◄── Errand ───────────────────────────────────────────────────── reactor, signals
//!   boot ◄── Report ─────────────────────────────────────────────────────── reactor, signals, taker
//! ```

use super::look::Look;
use crate::auth::{Revocation, Rules};
use crate::net::Adoption;
use crate::ring::Waker;
use shards::ids::{CommandId, ConnectionId, ShardId};
use shards::limits::{Quota, Quotas};
use shards::refusal::Refused;
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
        /// This shard's listening sockets.
        listeners: Vec<OwnedFd>,
    },
    /// A socket comes from a peer.
    Adopt(Adoption),
    /// Who comes in is decided by these from now on.
    Rules(Arc<Rules>),
    /// What a client revoked is in force, or why not.
    Revoked {
        /// Who asked.
        connection: ConnectionId,
        /// Its command.
        id: CommandId,
        /// Why not.
        refused: Option<Refused>,
    },
    /// Sockets accepted from now on speak TLS with this.
    Secure(Arc<rustls::ServerConfig>),
    /// Other quotas and weights are in force from now on.
    Quotas(Arc<Quotas>),
    /// What is in force of a tenant since a client set its quota, or why nothing else is.
    QuotaSet {
        /// Who asked.
        connection: ConnectionId,
        /// Its command.
        id: CommandId,
        /// Tenant, and its quota.
        outcome: Result<(String, Quota), Refused>,
    },
    /// It does not come after all.
    Revoke {
        /// Who gave.
        from: ShardId,
        /// Its ticket.
        ticket: u32,
    },
    /// Tell clients in waves to go away, and close their connections.
    Drain {
        /// The sockets stay open, and another process will accept who comes next; else who comes is told to come back later.
        taken_over: bool,
    },
    /// Close the rest of the connections now.
    Cut,
    /// Do not drain after all: accept again.
    Stay,
    /// Commit what is open, make the last checkpoint.
    Stop,
    /// Somebody wants to know something.
    Look(Look),
    /// Nobody needs this shard's ring any more: end the thread.
    Release,
    /// Say that the shard takes turns.
    Ask {
        /// Where to say it.
        answer: flume::Sender<()>,
    },
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
    /// No client is left.
    Drained {
        /// Who.
        shard: ShardId,
    },
    /// Accepts again.
    Stays {
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
    /// Another process is ready to take over.
    TakerReady {
        /// Which.
        pid: u32,
    },
    /// It is gone.
    TakerGone {
        /// Which.
        pid: u32,
    },
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

/// Errands that may wait. A client whose revocation finds no place is told to try again.
pub const ERRANDS_MAX: usize = 64;

/// To the keeper of keys and revocations, which waits for disks so that no shard has to.
#[derive(Debug)]
pub enum Errand {
    /// The operator asks to read the files again.
    Reload,
    /// A client revokes.
    Revoke(Revoke),
    /// A client sets a quota.
    SetQuota(SetQuota),
}

/// What quota a client sets.
#[derive(Debug)]
pub struct SetQuota {
    /// Shard of the client.
    pub by: ShardId,
    /// Who asks.
    pub connection: ConnectionId,
    /// Its command.
    pub id: CommandId,
    /// Whose quota.
    pub tenant: String,
    /// `None`: what the configuration says.
    pub quota: Option<Quota>,
}

/// What a client revokes.
#[derive(Debug)]
pub struct Revoke {
    /// Shard of the client.
    pub by: ShardId,
    /// Who asks.
    pub connection: ConnectionId,
    /// Its command.
    pub id: CommandId,
    /// Whom, in its own tenant.
    pub revocation: Revocation,
}
