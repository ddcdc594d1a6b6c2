//! Connections: everything between the ring and the wire.
//!
//! ```text
//!   Accept ─► Upgrade (single-shot recv) ─► Service::head ─┬─► peer: socket by ring, request by control channel
//!                                  gate shut: lines, 503 ──┤
//!                                                          ▼
//!   Recv ─► websocket::Decoder ─► Service::text ──► Sends ─► one send in flight ─► Send
//!             │ partial: assembly        │ Later: held, charged to its tenant, retried in rotation
//!   wheel ─► ping, idle, upgrade and close time-outs           leave: what a drain does to a connection
//! ```
//! Where TLS is spoken it lies between ring and decoder, and between queue and ring: see [`secure`](self).
//! One [`Net`] per shard, touched only by its thread. It owns sockets and bytes; what they mean is the [`Service`]'s.
//! A slot is free again only when the kernel holds nothing that names it.

mod arrive;
mod blocks;
mod connection;
mod depart;
mod gate;
mod held;
mod leave;
mod lifecycle;
mod lines;
mod pieces;
mod receive;
mod region;
mod secure;
mod send_queue;
mod service;
mod table;
pub mod tls;
mod transmit;
mod urgent;
mod vital;
pub mod websocket;
mod wheel;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_held;
#[cfg(test)]
mod tests_newcomers;

pub use blocks::Shared;
pub use connection::Door;
pub use gate::{GateConfig, retry_after_s};
pub use held::Owner;
pub use pieces::CHUNK_BYTES;
pub use send_queue::{Class, SendLimits, Sends};
pub use service::{Admission, Adoption, Knock, Service, Taken};
pub use tls::HANDSHAKE_BYTES_MAX;
pub use wheel::Wheel;

use crate::ring::Filled;
use arrive::Listener;
use gate::Gate;
use held::HeldBytes;
use lines::{Lines, Silent};
use shards::ids::{ConnectionId, Now, ShardId};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use table::Table;
use transmit::Scratch;

/// Code and reason of a close frame.
pub type CloseWords = (u16, &'static str);

/// What connections are told that end for a reason of this module's own. The wire's table decides the words.
#[derive(Clone, Copy, Debug)]
pub struct CloseTable {
    /// No sign of life.
    pub idle: CloseWords,
    /// Replies are not being read.
    pub too_slow: CloseWords,
    /// No memory for a message in parts.
    pub unavailable: CloseWords,
}

/// Bounds of a shard's connections.
#[derive(Clone, Copy, Debug)]
pub struct NetConfig {
    /// Whose they are.
    pub shard: ShardId,
    /// Connections served; a few more slots exist for those that are being refused or are ending.
    pub connections_max: usize,
    /// Bytes of messages and requests that have come in part, of all connections together.
    pub assembly_bytes_max: usize,
    /// Bytes of input that waits for room in the core, of all connections together, receive buffers that have yet to come
    /// included: a tenant may hold as much as is free. At least twice as much as those.
    pub held_bytes_max: usize,
    /// Bounds of the send side.
    pub sends: SendLimits,
    /// How long a message may wait for room in the core before it is refused.
    pub held_timeout_us: u64,
    /// From acceptance to the answer to the upgrade request.
    pub handshake_timeout_us: u64,
    /// Sockets accepted that have not sent a whole request; for one more the oldest is closed, if it had its second.
    pub silent_newcomers_max: usize,
    /// How many newcomers are taken in at a busy moment.
    pub gate: GateConfig,
    /// Silence after which a ping is sent.
    pub ping_interval_us: u64,
    /// Silence after which the connection is closed.
    pub idle_timeout_us: u64,
    /// Codes and reasons.
    pub closes: CloseTable,
}

impl NetConfig {
    /// Slots beyond `connections_max`.
    pub const SPARE_SLOTS: usize = 256;

    /// Slots of the connection table, and of the ring's table of direct sockets.
    pub fn slots(&self) -> usize {
        self.connections_max + Self::SPARE_SLOTS
    }
}

/// From our close frame, or our FIN, to the peer's.
const CLOSE_TIMEOUT_US: u64 = 2_000_000;
/// After a failed accept (no slot, no descriptor) the next one is tried this much later.
const ACCEPT_RETRY_US: u64 = 20_000;
/// Where nobody is accepted because room is being made, a look at it comes this much later.
const ACCEPT_LOOK_US: u64 = 1_000;
/// Nobody is pushed out by others who has been silent for less: a request takes a round trip.
const SILENT_US_MIN: u64 = 1_000_000;
/// Longest upgrade request, bytes; the service refuses a longer one.
const HEAD_BYTES_MAX: usize = 8192;
/// Held inputs tried again in one turn.
const RETRIES_PER_TURN_MAX: usize = 64;
/// Timers looked at in one turn.
const TIMERS_PER_TURN_MAX: usize = 256;

/// What a shard's connections have done so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct NetStats {
    /// Sockets accepted here.
    pub accepted: u64,
    /// Sockets given to peers.
    pub given: u64,
    /// Sockets taken from peers.
    pub adopted: u64,
    /// WebSockets opened.
    pub opened: u64,
    /// Newcomers that had to wait for their turn.
    pub waited: u64,
    /// Newcomers that were told to come back.
    pub refused: u64,
    /// Sockets closed because too many had not sent a whole request.
    pub pushed_out: u64,
    /// Sends asked for.
    pub sends: u64,
    /// Receives that found no buffer.
    pub buffers_short: u64,
    /// TLS handshakes that were completed.
    pub handshakes: u64,
    /// Those that were broken: no common ground, no certificate, too many bytes.
    pub handshakes_failed: u64,
    /// TLS connections that were broken later.
    pub records_broken: u64,
    /// Clients that spoke plain where TLS is spoken.
    pub plain_on_tls: u64,
}

/// All connections of one shard.
pub struct Net {
    config: NetConfig,
    table: Table,
    /// Queues of bytes to be sent.
    pub sends: Sends,
    wheel: Wheel,
    listeners: Vec<Listener>,
    accepting: bool,
    accept_retry_us: Option<u64>,
    gate: Gate,
    /// Newcomers that wait for their turn.
    lines: Lines,
    silent: Silent,
    /// Connections whose peers have gone, and whether they said so in order.
    gone: VecDeque<(ConnectionId, bool)>,
    /// Slots that have become free since the last look at who comes.
    freed: usize,
    /// Echo doors with held input, in rotation; whose turn it is of the others the service knows.
    waiting: VecDeque<ConnectionId>,
    /// Connections with held input.
    holding: usize,
    /// Connections whose receive found no buffer; armed again when the batch of completions is through.
    unarmed: Vec<ConnectionId>,
    assembly_bytes: usize,
    held: HeldBytes,
    /// Receive buffers kept from the kernel while too much input waits.
    kept: Vec<Filled>,
    /// Empty buffers with capacity, for messages that come in parts.
    spare: Vec<Vec<u8>>,
    answer: Vec<u8>,
    refusal: Vec<u8>,
    scratch: Scratch,
    /// What new sockets speak TLS with, if they do.
    tls: Option<Arc<rustls::ServerConfig>>,
    /// Connections whose TLS may have something to send.
    secure_dirty: Vec<ConnectionId>,
    /// Those that wait until others' ciphertext is through, and its bytes.
    secure_waiting: VecDeque<ConnectionId>,
    secure_bytes: usize,
    /// Plaintext of one receive.
    plain: Vec<u8>,
    ticket: u32,
    stats: NetStats,
}

impl Net {
    /// Tables and pools of one shard; nothing is accepted yet.
    ///
    /// # Errors
    /// The memory cannot be had.
    pub fn new(config: NetConfig, now: Now) -> io::Result<Self> {
        Ok(Self {
            config,
            table: Table::new(config.slots()),
            sends: Sends::new(config.slots(), config.sends)?,
            wheel: Wheel::new(config.slots(), now.mono_us),
            listeners: Vec::new(),
            accepting: false,
            accept_retry_us: None,
            gate: Gate::new(config.gate),
            lines: Lines::default(),
            silent: Silent::default(),
            gone: VecDeque::new(),
            freed: 0,
            waiting: VecDeque::new(),
            holding: 0,
            unarmed: Vec::new(),
            assembly_bytes: 0,
            held: HeldBytes::default(),
            kept: Vec::new(),
            spare: Vec::new(),
            answer: Vec::new(),
            refusal: Vec::new(),
            scratch: Scratch::new(),
            tls: None,
            secure_dirty: Vec::new(),
            secure_waiting: VecDeque::new(),
            secure_bytes: 0,
            plain: Vec::new(),
            ticket: 0,
            stats: NetStats::default(),
        })
    }

    /// Sockets held, in whatever state.
    pub fn connections(&self) -> usize {
        self.table.len()
    }

    /// Connections whose input waits for room, or for its turn.
    pub fn waiting(&self) -> usize {
        self.holding
    }

    /// Many come or go at once: more completions wait in the kernel than one enter hands out.
    pub fn is_stormy(&self) -> bool {
        !self.gone.is_empty() || !self.lines.is_empty()
    }

    /// Counts since the start.
    pub fn stats(&self) -> NetStats {
        self.stats
    }

    /// When [`Net::expire`] has something to do, microseconds.
    pub fn next_deadline_us(&self) -> Option<u64> {
        [self.wheel.next_us(), self.accept_retry_us].into_iter().flatten().min()
    }
}
