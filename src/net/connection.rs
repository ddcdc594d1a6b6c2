//! One socket, from its acceptance to the last completion that names it.
//!
//! ```text
//!   Upgrading ──► HandingOff ──► gone (lives on at a peer)
//!       │ └──► Waiting ─┐ move failed     at a busy moment: for its turn
//!       ▼               ▼
//!     Open ──► Closing ──► Finishing ──► Ending ──► slot free
//!       │         our close    flush, FIN,   no completion outstanding:
//!       │         frame sent   wait for EOF  close, and only then
//!       └─────────────────────────┘ peer's close frame, a violation, EOF
//! ```
//! A state only moves to the right, except that a failed move goes on locally.

use super::held::Owner;
use super::tls::Transport;
use super::websocket::Decoder;
use crate::ring::Socket;

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Door {
    /// `/v1/ws`: commands and events.
    Events,
    /// `/echo`: for conformance suites.
    Echo,
}

/// Where a connection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Reading the upgrade request, one receive at a time.
    Upgrading,
    /// The socket is on its way to a peer, who was told this number.
    HandingOff {
        /// Ours, unique among those under way.
        ticket: u32,
    },
    /// The upgrade request is whole and waits for its turn in a line of [`super::lines::Lines`].
    Waiting,
    /// Messages flow.
    Open,
    /// Our close frame is queued; the peer's is awaited, data is discarded.
    Closing,
    /// What is queued is sent, then FIN, then the peer's FIN is awaited. Input is discarded.
    Finishing,
    /// Over: completions that are still to come are awaited, then the socket is closed.
    Ending,
}

/// Input that was decoded but could not be taken yet, and what follows it.
pub(super) struct Held {
    pub text: bool,
    pub message: Vec<u8>,
    /// Where the service goes on, in its own terms.
    pub place: u64,
    /// Bytes that came after the message, as they came.
    pub rest: Vec<u8>,
    /// When the message first found no room.
    pub since_us: u64,
    /// Whom it is charged to.
    pub owner: Owner,
    /// Its sender was told to slow down.
    pub told: bool,
}

/// A slot of the connection table. Under 200 bytes: this and the core's client are what an idle connection costs.
pub(super) struct Connection {
    pub socket: Socket,
    pub transport: Transport,
    pub state: State,
    pub door: Door,
    /// The service knows this connection and must be told when it ends.
    pub known: bool,
    /// A receive is with the kernel.
    pub receiving: bool,
    /// The peer will send nothing more.
    pub eof: bool,
    /// FIN was asked for.
    pub fin: bool,
    /// The last close was asked for.
    pub close: bool,
    /// A ping is unanswered.
    pub pinged: bool,
    /// What it sends is thrown away: it is about to be closed.
    pub deaf: bool,
    /// Counted among those who have not sent a whole request.
    pub silent: bool,
    /// It waits to be read until less of its tenant's input is held.
    pub unread: bool,
    /// The next receive brings one buffer.
    pub sips: bool,
    /// The present one goes on for as long as there are bytes.
    pub streams: bool,
    /// Cancels and shutdowns whose completion is still to come.
    pub pending: u8,
    /// Whose client it is.
    pub owner: Owner,
    pub decoder: Decoder,
    /// The part of a message, or of the upgrade request, that has come.
    pub assembly: Vec<u8>,
    pub held: Option<Box<Held>>,
    /// Last sign of life: bytes came, or bytes were taken.
    pub heard_us: u64,
    /// When the present state ends by itself (not for `Open`). Bytes that come do not move it: whoever dribbles is done in time.
    pub deadline_us: u64,
}

const _: () = assert!(size_of::<Connection>() <= 200);

impl Connection {
    pub fn new(socket: Socket, transport: Transport, now_us: u64, deadline_us: u64) -> Self {
        Self {
            socket,
            transport,
            state: State::Upgrading,
            door: Door::Events,
            known: false,
            receiving: false,
            eof: false,
            fin: false,
            close: false,
            pinged: false,
            deaf: false,
            silent: true,
            unread: false,
            sips: false,
            streams: false,
            owner: 0,
            pending: 0,
            decoder: Decoder::new(0),
            assembly: Vec::new(),
            held: None,
            heard_us: now_us,
            deadline_us,
        }
    }
    /// A receive may be asked for: none is with the kernel, and what came of the last one was taken. While a cancel is under
    /// way a new one could be its victim.
    pub fn may_receive(&self) -> bool {
        !(self.receiving || self.eof || self.held.is_some() || self.pending > 0)
    }
}
