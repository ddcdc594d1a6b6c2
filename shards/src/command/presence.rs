//! What a client may ask about who is in a session and how far they are.
//!
//! ```text
//!   rosters of a session   presence   client ─► state, data            entered, updated, left
//!                          receipts   client ─► delivered, read        read, acknowledged
//! ```
//! Both are kept in memory by the session's owner, under lease, and watched in the same way.

use crate::ids::Offset;

/// Which of a session's rosters.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum RosterKind {
    /// Who is in the session.
    Presence,
    /// How far those who follow it are.
    Receipts,
}

/// What a client, often an agent, is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PresenceState {
    /// Nothing, or nothing that others need to know.
    #[default]
    Idle,
    /// A model is at work.
    Thinking,
    /// A tool is at work.
    Tool,
    /// It waits for somebody.
    Blocked,
}

impl PresenceState {
    /// All of them.
    pub const ALL: [PresenceState; 4] =
        [PresenceState::Idle, PresenceState::Thinking, PresenceState::Tool, PresenceState::Blocked];

    /// Name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            PresenceState::Idle => "idle",
            PresenceState::Thinking => "thinking",
            PresenceState::Tool => "tool",
            PresenceState::Blocked => "blocked",
        }
    }

    /// Of a byte that [`PresenceState`] was cast to; anything else is idle.
    pub fn of_byte(byte: u8) -> Self {
        Self::ALL.get(usize::from(byte)).copied().unwrap_or_default()
    }
}

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PresenceAct<'a> {
    /// The client is in the session.
    Enter {
        /// What it is at.
        state: PresenceState,
        /// More about it, JSON.
        data: Option<&'a [u8]>,
        /// How long it stays when its connection is gone; `None` = the server's default.
        lease_ms: Option<u64>,
        /// While it is in, comings and goings are written to the session's log.
        log: bool,
    },
    /// What it is at has changed; what is not given stays as it is.
    Update {
        /// What it is at.
        state: Option<PresenceState>,
        /// More about it, JSON.
        data: Option<&'a [u8]>,
    },
    /// It leaves, at once.
    Leave,
    /// It has read everything below an offset.
    Read {
        /// Next offset it wants.
        offset: Offset,
    },
    /// Tell who is in it, and what changes.
    Watch(RosterKind),
    /// Stop telling.
    Unwatch(RosterKind),
}
