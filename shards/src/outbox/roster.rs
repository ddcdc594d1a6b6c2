//! A frame about a roster: who is in a session, or how far they are.

use crate::command::{PresenceState, RosterKind};
use crate::ids::Offset;

/// What is known of one client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RosterValue<'a> {
    /// It is in the session.
    Presence {
        /// What it is at.
        state: PresenceState,
        /// More about it, JSON.
        data: Option<&'a [u8]>,
    },
    /// How far it is.
    Receipt {
        /// Everything below was acknowledged.
        delivered: Offset,
        /// Everything below was read.
        read: Offset,
    },
}

/// What happened to one client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Happened {
    /// It has come since its watcher was told of everything.
    Joined,
    /// Its value has changed.
    Updated,
    /// It is gone; its value is of no interest.
    Left,
}

/// One client in a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RosterChange<'a> {
    /// Client.
    pub client: &'a str,
    /// What happened.
    pub happened: Happened,
    /// What holds now.
    pub value: RosterValue<'a>,
}

/// The lowest receipts of all that are tracked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReceiptsOfAll {
    /// Clients.
    pub count: u64,
    /// Lowest delivered.
    pub delivered: Offset,
    /// Lowest read.
    pub read: Offset,
}

/// A frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RosterFrame<'a> {
    /// Which roster.
    pub kind: RosterKind,
    /// Of which session.
    pub session: &'a str,
    /// Forget what was told before: this begins anew.
    pub snapshot: bool,
    /// Version of the frame before; 0 in a snapshot's first.
    pub after: u64,
    /// What is known with this frame.
    pub version: u64,
    /// More follow until everything is told.
    pub more: bool,
    /// Nobody is missing because the server has just started.
    pub complete: bool,
    /// By version.
    pub changes: &'a [RosterChange<'a>],
    /// Of receipts, in the last frame of a row.
    pub all: Option<ReceiptsOfAll>,
}

/// Everything in a frame that is neither a change nor the session's name.
const HEAD_BYTES_MAX: usize = 320;

/// Everything of a change that is neither a name nor data: keys, numbers, state.
pub const CHANGE_BYTES_MAX: usize = 96;

impl RosterChange<'_> {
    /// Upper bound of its bytes on any wire.
    pub fn bytes_max(&self) -> usize {
        let data = match self.value {
            RosterValue::Presence { data: Some(data), .. } if self.happened != Happened::Left => data.len(),
            _ => 0,
        };
        CHANGE_BYTES_MAX + self.client.len() + data
    }
}

impl RosterFrame<'_> {
    /// Upper bound of the frame on any wire.
    pub fn bytes_max(&self) -> usize {
        HEAD_BYTES_MAX + self.session.len() + self.changes.iter().map(RosterChange::bytes_max).sum::<usize>()
    }
}
