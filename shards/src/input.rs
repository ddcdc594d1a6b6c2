//! What enters the core.

use crate::command::Command;
use crate::ids::{CommandId, ConnectionId};
use crate::refusal::Refused;
use crate::rights::Rights;
use std::sync::Arc;

/// One thing that happened outside.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// A connection finished its upgrade. The principal stays with it and is on every later input.
    Connected {
        /// Connection.
        connection: ConnectionId,
        /// Who it is.
        principal: Principal<'a>,
    },
    /// The connection is gone; its subscriptions go with it.
    Disconnected {
        /// Connection.
        connection: ConnectionId,
    },
    /// A decoded command.
    Command {
        /// Connection.
        connection: ConnectionId,
        /// The client's name for it.
        id: CommandId,
        /// Command.
        command: Command<'a>,
    },
    /// A command that has found no room for longer than it may wait: carried out if there is room now, else refused with what
    /// it waits for. What returns room itself (`ack`, `hello`, `unsubscribe`, `ping`) goes on waiting.
    Overdue {
        /// Connection.
        connection: ConnectionId,
        /// The client's name for it.
        id: CommandId,
        /// Command.
        command: Command<'a>,
        /// How long it has waited.
        waited_ms: u64,
    },
    /// The decoder refused what the client sent: counted and answered like any refusal.
    Rejected {
        /// Connection.
        connection: ConnectionId,
        /// The client's name for it, where it could be read.
        id: CommandId,
        /// Why.
        refused: Refused,
    },
    /// The principal of a connection has shown a newer token: what it may do from here on.
    Renewed {
        /// Connection.
        connection: ConnectionId,
        /// Its rights; `None` = everything.
        rights: Option<&'a Arc<Rights>>,
    },
    /// Other quotas and weights are in force from now on.
    Quotas {
        /// Of all tenants.
        quotas: &'a Arc<crate::limits::Quotas>,
    },
    /// The connection's send queue has drained to a level where the core may deliver again.
    Drained {
        /// Connection.
        connection: ConnectionId,
    },
}

/// Who an input comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Principal<'a> {
    /// Unit of isolation.
    pub tenant: &'a str,
    /// Resumable identity.
    pub client_id: &'a str,
    /// What it may do; `None` = everything in its tenant.
    pub rights: Option<&'a Arc<Rights>>,
}

/// What became of an input.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handled {
    /// Taken.
    Done,
    /// Nothing was changed: there is no room for its consequences yet. Keep it, stop reading from that connection,
    /// and hand it in again on a later turn.
    Later,
}
