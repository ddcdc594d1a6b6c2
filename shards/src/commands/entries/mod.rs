//! Commands about entries, one file each.
//!
//! ```text
//!   client's shard: begin ─┬─ watch, unwatch        here
//!                          └─ put, delete ─► set ┐
//!                             get, list ─► page  ┴─ the session's owner: run
//! ```

mod set;
mod watch;

use super::{Call, Outcome};
use crate::command::{Command, EntryAsk};
use crate::entries::page;
use crate::ids::{CommandId, ConnectionId, Now};
use crate::input::Handled;
use crate::sessions::{Asker, Origin};
use crate::shard::Shard;

pub(crate) use set::check;

/// On the client's shard.
pub(crate) fn begin(
    shard: &mut Shard,
    connection: ConnectionId,
    id: CommandId,
    session: &str,
    ask: EntryAsk<'_>,
    now: Now,
) -> Handled {
    let Some(client) = shard.readers.clients.get(connection) else { return Handled::Done };
    let (tenant, client_id) = (client.tenant.clone(), client.client_id.clone());
    let asker = Asker { origin: Origin::Local(connection), id, tenant, client_id, rights: None };
    match ask {
        EntryAsk::Watch { prefix, revision } => watch::begin(shard, &asker, connection, session, (prefix, revision)),
        EntryAsk::Unwatch { prefix } => watch::end(shard, &asker, connection, session, prefix),
        // The server's own.
        EntryAsk::Fetch { .. } => Handled::Done,
        EntryAsk::Set(_) | EntryAsk::Get { .. } | EntryAsk::List { .. } => {
            shard.session_command(asker, session, &Command::Entry { session, ask }, now)
        }
    }
}

/// On the session's owner.
pub(crate) fn run(shard: &mut Shard, call: Call<'_>, ask: &EntryAsk<'_>) -> Outcome {
    match ask {
        EntryAsk::Set(entry) => set::run(shard, call, entry),
        _ => page::run(shard, call, ask),
    }
}
