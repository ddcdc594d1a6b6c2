//! What input in line waits for, so that it is not decoded again before there is some.
//!
//! ```text
//!   taken ── no room of its own ──► Wants: own answers · lives · a peer's lane
//!                                     │ its turn: a look at two numbers
//!                  still none ◄───────┴───────► some, or LOOKS_MAX looks: handed in again
//!              passed by, a quarter of a try
//! ```
//! A belief only saves work: it is dropped after some looks, so input is refused in time (`held_timeout_ms`) whatever it waits
//! for.

use crate::command::Command;
use crate::ids::{ConnectionId, ShardId};
use crate::patience::is_local;
use crate::shard::Shard;

/// Looks that input is passed by after, before it is handed in once whatever is believed of it.
const LOOKS_MAX: u8 = 16;

/// What a command did not find.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Wants {
    /// Not known, or a turn.
    #[default]
    Unknown,
    /// Answers to the client's own commands.
    Answers,
    /// Word of lives that have ended, for a new one.
    Lives,
    /// Room in the lane to a shard, or for what it answers.
    Lane {
        to: ShardId,
        /// Half of it is others'.
        patient: bool,
    },
}

/// A connection in line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub connection: ConnectionId,
    pub wants: Wants,
    /// Looks that found none of it.
    pub looks: u8,
}

impl Shard {
    /// What a command that was not taken waits for. Looked for where that is told by a number; else it is unknown.
    pub(crate) fn lacks(&self, connection: ConnectionId, command: &Command<'_>) -> Wants {
        let Some(client) = self.readers.clients.get(connection) else { return Wants::Unknown };
        let resumes = matches!(command, Command::Resume { .. });
        let lane = |session: &str| Wants::Lane { to: self.owner(&client.tenant, session), patient: resumes };
        let lane = match command.session() {
            _ if resumes => lane(&crate::clients::session_of(&client.client_id)),
            Some(session) => lane(session),
            None => Wants::Unknown,
        };
        let candidates = [(Wants::Answers, !is_local(command)), (Wants::Lives, resumes), (lane, true)];
        let lacked = candidates.into_iter().find(|(wants, applies)| *applies && self.is_lacking(connection, *wants));
        lacked.map_or(Wants::Unknown, |(wants, _)| wants)
    }

    /// Is there still none of it?
    fn is_lacking(&self, connection: ConnectionId, wants: Wants) -> bool {
        match wants {
            Wants::Unknown => false,
            Wants::Answers => {
                let client = self.readers.clients.get(connection);
                client.is_some_and(|client| client.in_flight >= self.config.limits.client_commands_in_flight_max)
            }
            Wants::Lives => !self.lives.has_room(),
            Wants::Lane { to, patient } => to != self.config.shard && !self.mail.may_ask(to, patient),
        }
    }

    /// Its turn has come: is it not worth handing its input in?
    pub(crate) fn still_lacks(&self, waiting: &Waiting) -> bool {
        waiting.looks < LOOKS_MAX && self.is_lacking(waiting.connection, waiting.wants)
    }
}
