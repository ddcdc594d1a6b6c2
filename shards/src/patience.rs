//! What a command waits for that finds no room, and what it is told when it has waited too long.
//!
//! ```text
//!   no room ─► held by its connection, TCP slows the sender ─► a hint, slow_down ─► a refusal
//!                                                              what waits: own answers · the log · another shard
//! ```
//! Held input keeps a client's order; a refusal ends the wait where what is waited for does not come: a disk that stands still, a
//! client that reads no answers.

use crate::command::Command;
use crate::ids::{CommandId, ConnectionId, Now};
use crate::input::Handled;
use crate::refusal::{Refusal, Refused};
use crate::shard::Shard;

/// A client comes back after as long as it has waited, but not later.
const RETRY_MS_MAX: u64 = 5000;

/// Room that the log must have for a command not to wait for it, bytes.
const LOG_ROOM_BYTES: usize = 64 << 10;

impl Shard {
    /// What the next command of this connection would wait for.
    pub fn waits_for(&mut self, connection: ConnectionId) -> Refusal {
        let own = self.readers.clients.get(connection);
        if own.is_some_and(|client| client.in_flight >= self.config.limits.client_commands_in_flight_max) {
            Refusal::NoCredit
        } else if self.is_over_share(connection) {
            Refusal::OverShare
        } else if !self.log.room(LOG_ROOM_BYTES.min(self.log.record_bytes_max())) {
            Refusal::LogBehind
        } else {
            Refusal::MailboxFull
        }
    }

    pub(crate) fn overdue(
        &mut self,
        connection: ConnectionId,
        id: CommandId,
        command: &Command<'_>,
        waited_ms: u64,
        now: Now,
    ) -> Handled {
        if self.command(connection, id, command, now) == Handled::Done {
            return Handled::Done;
        }
        if is_local(command) || !self.has_effect_room(1) {
            return Handled::Later;
        }
        let refused = Refused::later(self.waits_for(connection), waited_ms.min(RETRY_MS_MAX) as u32);
        self.refuse_local(connection, id, refused);
        Handled::Done
    }
}

/// Carried out where the client is, without anything of another's, and never counted as open.
pub(crate) fn is_local(command: &Command<'_>) -> bool {
    matches!(
        command,
        Command::Acknowledge { .. }
            | Command::Hello { .. }
            | Command::Ping
            | Command::Unsubscribe { .. }
            | Command::UnsubscribePatterns
    )
}
