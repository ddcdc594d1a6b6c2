//! Commands about queues and jobs, one file each.
//!
//! ```text
//!   client's shard: begin ─┬─ pull, list                  here
//!                          ├─ declare, drop ─► `$queues`: run    the shard that keeps the tenant's queues
//!                          └─ dead ─► run                  the shard that the cursor names
//!   session's shard: job   fail, extend, progress, redrive, drop
//! ```

mod declare;
mod drop;
pub(crate) mod job;
mod list;
mod pull;

use super::{Call, Outcome};
use crate::command::{Command, QueueAsk};
use crate::ids::{CommandId, ConnectionId, Now};
use crate::input::Handled;
use crate::queues::QUEUES;
use crate::refusal::{Refusal, Refused};
use crate::sessions::{Asker, Origin};
use crate::shard::Shard;

/// On the client's shard.
pub(crate) fn begin(
    shard: &mut Shard,
    connection: ConnectionId,
    id: CommandId,
    ask: &QueueAsk<'_>,
    now: Now,
) -> Handled {
    let Some(client) = shard.readers.clients.get(connection) else { return Handled::Done };
    let (tenant, client_id) = (client.tenant.clone(), client.client_id.clone());
    let asker = Asker { origin: Origin::Local(connection), id, tenant, client_id, rights: None };
    match *ask {
        QueueAsk::Declare(_) | QueueAsk::Drop { .. } => {
            shard.session_command(asker, QUEUES, &Command::Queue { ask: *ask }, now)
        }
        QueueAsk::Pull { queue, credit } => pull::run(shard, &asker, connection, queue, credit),
        QueueAsk::List { after } => list::run(shard, &asker, connection, after),
        QueueAsk::Dead { queue, from } => {
            if shard.queues.definition(&asker.tenant, queue).is_none() {
                shard.refuse_local(connection, id, Refused::field(Refusal::UnknownQueue, "queue"));
                return Handled::Done;
            }
            let Some(owner) = shard.shard_with_dead(from) else {
                shard.refuse_local(connection, id, Refused::field(Refusal::OutOfRange, "from"));
                return Handled::Done;
            };
            if owner != shard.config.shard {
                return shard.forward(owner, &asker, connection, &Command::Queue { ask: *ask });
            }
            shard.begin(connection);
            shard.list_dead(&asker, queue, from);
            Handled::Done
        }
    }
}

/// Where it is kept.
pub(crate) fn run(shard: &mut Shard, call: Call<'_>, ask: &QueueAsk<'_>) -> Outcome {
    match ask {
        QueueAsk::Declare(new) => declare::run(shard, call, new),
        QueueAsk::Drop { queue } => drop::run(shard, call, queue),
        QueueAsk::Dead { queue, from } => {
            shard.list_dead(call.asker, queue, *from);
            Outcome::Done
        }
        // Stay where the client is.
        QueueAsk::Pull { .. } | QueueAsk::List { .. } => Outcome::Done,
    }
}
