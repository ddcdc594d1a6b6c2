//! Commands about groups.
//!
//! ```text
//!   client's shard: begin ─┬─ join, leave                 here
//!                          ├─ declare, drop ─► `$queues`: run    the shard that keeps the tenant's queues and groups
//!                          └─ list ─► run                 the shard that the cursor names
//!   session's shard: markers
//! ```
//! What a member has done with it says with `mark`, or in a commit.

use super::publish::{Form, NewParts, append};
use super::{Call, Outcome};
use crate::command::{Command, GroupAsk, NewEntry};
use crate::effect::{Reply, WorkReply};
use crate::groups::name_of;
use crate::groups::policy::Definition;
use crate::ids::{CommandId, ConnectionId, Now};
use crate::input::Handled;
use crate::mailbox::codec::Writer;
use crate::queues::QUEUES;
use crate::refusal::{Refusal, Refused};
use crate::sessions::{Asker, Origin};
use crate::shard::{Opened, Shard};

/// On the client's shard.
pub(crate) fn begin(
    shard: &mut Shard,
    connection: ConnectionId,
    id: CommandId,
    ask: &GroupAsk<'_>,
    now: Now,
) -> Handled {
    let Some(client) = shard.readers.clients.get(connection) else { return Handled::Done };
    let (tenant, client_id) = (client.tenant.clone(), client.client_id.clone());
    let asker = Asker { origin: Origin::Local(connection), id, tenant, client_id, rights: None };
    match *ask {
        GroupAsk::Declare { .. } | GroupAsk::Drop { .. } => {
            shard.session_command(asker, QUEUES, &Command::Group { ask: *ask }, now)
        }
        GroupAsk::Join { group, credit } => join(shard, &asker, connection, group, credit, now),
        GroupAsk::List { group, from } => {
            if shard.groups.definition(&asker.tenant, &name_of(group)).is_none() {
                shard.refuse_local(connection, id, Refused::field(Refusal::UnknownGroup, "group"));
                return Handled::Done;
            }
            let Some(owner) = shard.shard_with_dead(from) else {
                shard.refuse_local(connection, id, Refused::field(Refusal::OutOfRange, "from"));
                return Handled::Done;
            };
            if owner != shard.config.shard {
                return shard.forward(owner, &asker, connection, &Command::Group { ask: *ask });
            }
            shard.begin(connection);
            shard.list_group(&asker, group, from);
            Handled::Done
        }
    }
}

/// Where it is kept, or stands.
pub(crate) fn run(shard: &mut Shard, call: Call<'_>, ask: &GroupAsk<'_>) -> Outcome {
    match *ask {
        GroupAsk::Declare { group, topics, lease_ms } => declare(shard, call, group, topics, lease_ms),
        GroupAsk::Drop { group } => drop_group(shard, call, group),
        GroupAsk::List { group, from } => {
            shard.list_group(call.asker, group, from);
            Outcome::Done
        }
        // Stays where the client is.
        GroupAsk::Join { .. } => Outcome::Done,
    }
}

/// A group is to be so, from now on and after every restart: it wants what is published from then on. Declared again it goes on
/// where it stands.
fn declare(shard: &mut Shard, call: Call<'_>, group: &str, topics: &[&str], lease_ms: u64) -> Outcome {
    let limits = &shard.config.limits.work;
    let definition = match Definition::of(group, topics, lease_ms, limits) {
        Ok(definition) => definition,
        Err(refused) => return shard.refuse(call.asker, refused),
    };
    let known = shard.groups.by_name(&call.asker.tenant);
    if known.is_some_and(|known| !known.contains_key(&definition.name) && known.len() >= limits.groups_per_tenant_max) {
        return shard.refuse(call.asker, Refused::field(Refusal::TooManyGroups, "group"));
    }
    let mut value = Vec::new();
    definition.put(&mut Writer(&mut value));
    let entry = NewEntry { key: &definition.name, value: Some(&value), ttl_ms: None, if_revision: None };
    append(shard, call, &NewParts { entries: &[entry], ..NewParts::default() }, Form::Declare)
}

/// There is no such group any more: where it stands is forgotten.
fn drop_group(shard: &mut Shard, call: Call<'_>, group: &str) -> Outcome {
    let name = name_of(group);
    if shard.groups.definition(&call.asker.tenant, &name).is_none() {
        return shard.refuse(call.asker, Refused::field(Refusal::UnknownGroup, "group"));
    }
    let entry = NewEntry { key: &name, value: None, ttl_ms: None, if_revision: None };
    append(shard, call, &NewParts { entries: &[entry], ..NewParts::default() }, Form::Declare)
}

/// This connection takes up to so many sessions at once, from now on; with credit 0 it leaves, and what it had goes to others.
fn join(shard: &mut Shard, asker: &Asker, connection: ConnectionId, group: &str, credit: u64, now: Now) -> Handled {
    let name = name_of(group);
    let refused = if shard.groups.definition(&asker.tenant, &name).is_none() && credit > 0 {
        Some(Refused::field(Refusal::UnknownGroup, "group"))
    } else if credit > shard.config.limits.work.client_jobs_max {
        Some(Refused::expects(Refusal::OutOfRange, "credit", shard.config.limits.work.client_jobs_max))
    } else if credit > 0 && !shard.has_room_for_member(connection, &asker.tenant, &name) {
        Some(Refused { field: "group", ..Refused::later(Refusal::GroupFull, 1000) })
    } else {
        None
    };
    if let Some(refused) = refused {
        shard.refuse_local(connection, asker.id, refused);
        return Handled::Done;
    }
    shard.pull_jobs(connection, &asker.tenant, &name, credit);
    if credit == 0 {
        shard.leave_group(connection, &asker.tenant, &name, now);
    }
    shard.effects.reply(connection, asker.id, &Reply::Work(WorkReply::GroupJoined { group, credit }));
    Handled::Done
}

/// Markers of a session, with lag.
pub(crate) fn markers(shard: &mut Shard, call: Call<'_>, from: u64) -> Outcome {
    match shard.open(call.partition, &call.asker.tenant, call.session, None) {
        Opened::Ready(slot) => {
            shard.list_markers(call.asker, slot, from);
            Outcome::Done
        }
        Opened::Park => Outcome::Park,
        Opened::Absent => shard.refuse(call.asker, Refused::field(Refusal::UnknownSession, "session")),
        Opened::Refused(refused) => shard.refuse(call.asker, refused),
    }
}
