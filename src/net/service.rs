//! What stands behind the sockets, seen from them. The reactor implements it with the codec and the shard.

use super::CloseWords;
use super::connection::Door;
use super::held::Owner;
use super::send_queue::Sends;
use shards::ids::{ConnectionId, ShardId};
use std::os::fd::RawFd;

/// A connection's first bytes, and what there is to know about the moment they are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Knock<'a> {
    /// Whose.
    pub id: ConnectionId,
    /// All bytes so far.
    pub head: &'a [u8],
    /// The connection has not moved yet.
    pub may_hand_off: bool,
    /// The table has no room for one more.
    pub full: bool,
    /// This turn takes no more newcomers in: an upgrade waits.
    pub busy: bool,
}

/// What becomes of a connection whose first bytes have come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// The request is not whole.
    Incomplete,
    /// `answer` holds the reply; nothing more is served.
    Answer,
    /// `answer` holds the reply and the first frames; a WebSocket begins.
    Open {
        /// Bytes of the request; what follows is the first frame.
        head_bytes: usize,
        /// Largest message this connection may send, bytes.
        frame_bytes_max: usize,
        /// What it is for.
        door: Door,
    },
    /// Well asked, at a busy moment: it is looked at again when its turn has come.
    Wait {
        /// A mark of the client whose life goes on with this connection, if it has proved that one does.
        resumes: Option<u64>,
    },
    /// The connection belongs on another shard.
    HandOff {
        /// Which.
        shard: ShardId,
    },
}

/// What became of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// Carried out.
    All,
    /// There is no room for its consequences: hand it in again later with `place`.
    Later {
        /// Where to go on, in the service's own terms; 0 is the start.
        place: u64,
    },
    /// The connection is to be closed.
    Close(CloseWords),
}

/// A socket on its way to the shard that owns its session. The socket itself, where it is a direct one, travels by
/// ring; this travels ahead of it on the control channel.
#[derive(Debug)]
pub struct Adoption {
    /// Who gives.
    pub from: ShardId,
    /// The giver's number for it; the ring message carries the same.
    pub ticket: u32,
    /// The socket where it is an ordinary descriptor, to be owned by whoever holds this.
    pub fd: Option<RawFd>,
    /// All bytes received so far: the upgrade request and what followed it.
    pub head: Vec<u8>,
}

/// What the connections of a shard are for.
pub trait Service {
    /// Looks at the first bytes of a connection. The reply goes to `answer`, which is empty.
    fn head(&mut self, knock: &Knock<'_>, answer: &mut Vec<u8>) -> Admission;

    /// Writes to a newcomer that there is no time for it; those who wait are through after `wait_ms`.
    fn refuse(&mut self, wait_ms: u64, answer: &mut Vec<u8>);

    /// Writes to somebody who speaks plain where TLS is spoken.
    fn not_secure(&mut self, answer: &mut Vec<u8>);

    /// Gives a socket to a peer: returns the peer's ring, or the adoption if it cannot be delivered.
    ///
    /// # Errors
    /// The peer takes nothing now; the connection stays.
    fn give(&mut self, to: ShardId, adoption: Adoption) -> Result<RawFd, Adoption>;

    /// What became of a direct socket after [`Service::give`]. Where it has not moved the peer is to forget it.
    fn given(&mut self, ticket: u32, moved: bool);

    /// What was announced for a socket that has just come by ring.
    fn adopt(&mut self, from: ShardId, ticket: u32) -> Option<Adoption>;

    /// Whose client this is; a number that is given to another tenant when the last client has gone.
    fn owner(&self, _id: ConnectionId) -> Owner {
        0
    }

    /// The next messages came at this time, microseconds, and not in this turn.
    fn came(&mut self, _us: u64) {}

    /// Takes a whole text message, from `place` on. `overdue_us`: it has waited for so long, and is to wait no more.
    fn text(
        &mut self,
        id: ConnectionId,
        door: Door,
        text: &str,
        place: u64,
        overdue_us: Option<u64>,
        sends: &mut Sends,
    ) -> Taken;

    /// Whose held input is to be handed in now, until none: each once, and again when it was told [`Taken::Later`] once more. Input of
    /// [`Door::Echo`] is not asked for; it has a rotation of its own.
    fn next_held(&mut self) -> Option<ConnectionId> {
        None
    }

    /// A message of this connection has waited for so long: whoever sends is told to send less.
    fn slow_down(&mut self, id: ConnectionId, door: Door, waited_us: u64, sends: &mut Sends);

    /// Takes a whole binary message, from `place` on.
    fn binary(&mut self, id: ConnectionId, door: Door, bytes: &[u8], place: u64, sends: &mut Sends) -> Taken;

    /// The connection takes and brings nothing more. Once for each [`Admission::Open`].
    fn closed(&mut self, id: ConnectionId, door: Door);
}
