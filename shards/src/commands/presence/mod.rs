//! Commands about presence and receipts, one file each.
//!
//! ```text
//!   client's shard: begin ─┬─ watch, unwatch             here
//!                          └─ enter, update, leave, read ─ how often, how many ─► the session's owner: run
//! ```

mod enter;
mod leave;
mod read;
mod unwatch;
mod update;
mod watch;

use super::{Call, Outcome};
use crate::command::{Command, PresenceAct, RosterKind};
use crate::ids::{CommandId, ConnectionId, Now};
use crate::input::Handled;
use crate::sessions::{Asker, Origin};
use crate::shard::Shard;

/// On the client's shard.
pub(crate) fn begin(
    shard: &mut Shard,
    connection: ConnectionId,
    id: CommandId,
    session: &str,
    act: &PresenceAct<'_>,
    now: Now,
) -> Handled {
    shard.presence.look(now);
    let Some(client) = shard.readers.clients.get(connection) else { return Handled::Done };
    let asker = Asker {
        origin: Origin::Local(connection),
        id,
        tenant: client.tenant.clone(),
        client_id: client.client_id.clone(),
        rights: None,
    };
    let partition = shard.log.partition_id(&asker.tenant, session);
    let held = match *act {
        PresenceAct::Watch(kind) => return watch::run(shard, &asker, connection, session, (partition, kind)),
        PresenceAct::Unwatch(kind) => {
            unwatch::run(shard, &asker, connection, session, (partition, kind));
            return Handled::Done;
        }
        PresenceAct::Enter { data, lease_ms, .. } => {
            if let Err(refused) = enter::check(shard.limits(), lease_ms) {
                shard.refuse_local(connection, id, refused);
                return Handled::Done;
            }
            Some(((partition, RosterKind::Presence), session, 1 + data.map_or(0, <[u8]>::len)))
        }
        PresenceAct::Read { .. } => Some(((partition, RosterKind::Receipts), session, 16)),
        PresenceAct::Update { .. } | PresenceAct::Leave => None,
    };
    if let Err(refused) = shard.presence_admits(connection, held, now) {
        shard.refuse_local(connection, id, refused);
        return Handled::Done;
    }
    let handled = shard.session_command(asker, session, &Command::Presence { session, act: *act }, now);
    if handled == Handled::Done {
        shard.presence_changed(connection, now);
        if matches!(act, PresenceAct::Leave) {
            shard.presence_lets_go(connection, (partition, RosterKind::Presence));
        }
    }
    handled
}

/// On the session's owner.
pub(crate) fn run(shard: &mut Shard, call: Call<'_>, act: &PresenceAct<'_>) -> Outcome {
    shard.presence.look(call.now);
    match *act {
        PresenceAct::Enter { state, data, lease_ms, log } => enter::run(shard, call, state, data, lease_ms, log),
        PresenceAct::Update { state, data } => update::run(shard, call, state, data),
        PresenceAct::Leave => leave::run(shard, call),
        PresenceAct::Read { offset } => read::run(shard, call, offset),
        // These stay where the client is.
        PresenceAct::Watch(_) | PresenceAct::Unwatch(_) => Outcome::Done,
    }
}
