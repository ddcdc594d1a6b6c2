//! Answers to commands about presence and receipts.

use crate::command::{PresenceState, RosterKind};
use crate::ids::Offset;

/// What became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PresenceReply<'a> {
    /// The client is in the session.
    Entered {
        /// What it is at.
        state: PresenceState,
        /// More about it; not told to the client, which said it.
        data: Option<&'a [u8]>,
        /// How long it stays when its connection is gone.
        lease_ms: u64,
        /// It wants comings and goings logged; not told either.
        log: bool,
    },
    /// What it is at has changed.
    Updated {
        /// What it is at.
        state: PresenceState,
        /// More about it; not told to the client.
        data: Option<&'a [u8]>,
        /// How long it stays when its connection is gone.
        lease_ms: u64,
        /// It wants comings and goings logged; not told either.
        log: bool,
    },
    /// It is no longer in it.
    Left,
    /// Its receipt stands here.
    Read {
        /// Everything below was acknowledged.
        delivered: Offset,
        /// Everything below was read.
        read: Offset,
        /// How long the receipt is kept when its connection is gone.
        lease_ms: u64,
    },
    /// Frames will follow.
    Watching(RosterKind),
    /// None will, but those under way.
    Unwatched(RosterKind),
}
