//! `resume`: this connection takes its client's life: a new one, or that which a token names.

use crate::clients::life::Positions;
use crate::clients::session_of;
use crate::clients::state::KeptSession;
use crate::command::{Claim, Command, Policy, SeenEvent};
use crate::commands::subscribe_patterns::parse_position;
use crate::ids::{CommandId, ConnectionId, Now};
use crate::input::Handled;
use crate::refusal::{Refusal, Refused};
use crate::sessions::{Asker, Origin};
use crate::shard::Shard;

/// Room that most states need, bytes: five subscriptions with long names. A lane that kept room for the largest would let three
/// dozen clients resume at once.
const STATE_BYTES: u32 = 1024;

pub(crate) fn run(
    shard: &mut Shard,
    connection: ConnectionId,
    id: CommandId,
    (claim, attempt): (Claim<'_>, u64),
    (seen, position): (&[SeenEvent<'_>], Option<&str>),
    now: Now,
) -> Handled {
    // Lives that ended and could not be said to their homes yet are bounded by letting no new one begin.
    if !shard.lives.has_room() {
        return Handled::Later;
    }
    let Some(client) = shard.readers.clients.get_mut(connection) else { return Handled::Done };
    let refuse = |shard: &mut Shard, refused| {
        shard.refuse_local(connection, id, refused);
        Handled::Done
    };
    if client.opening.is_some() {
        // Its home answers first.
        return Handled::Later;
    }
    if client.life.is_some() {
        return refuse(shard, Refused::field(Refusal::AlreadyResumed, "type"));
    }
    let mut client_id = client.client_id.clone();
    let claimed = match claim {
        Claim::New => None,
        // The edge verifies tokens; one that comes here as it was sent was not.
        Claim::Token(_) => return refuse(shard, Refused::field(Refusal::BadToken, "token")),
        Claim::Life { client_id: wanted, life } => {
            if *client.client_id != *wanted {
                if client.rights.as_ref().is_some_and(|rights| rights.is_bound()) {
                    return refuse(shard, Refused::field(Refusal::BadToken, "token"));
                }
                let untouched = client.subscription_count == 0
                    && client.patterns.is_none()
                    && client.in_flight == 0
                    && !shard.presence.knows(connection);
                if !untouched {
                    return refuse(shard, Refused::field(Refusal::ResumeTooLate, "type"));
                }
                client_id = wanted.into();
            }
            Some(life)
        }
    };
    let position = match position.map(parse_position) {
        None => None,
        Some(Ok(position)) => Some(position),
        Some(Err(refused)) => return refuse(shard, refused),
    };
    let sessions = seen
        .iter()
        .map(|seen| KeptSession {
            session: seen.session.into(),
            epoch: seen.epoch,
            offset: seen.offset + 1,
            policy: Policy::default(),
        })
        .collect();
    client.opening = Some(Box::new(Positions { id, claimed, attempt, client_id, sessions, position }));
    let handled = ask(shard, connection, STATE_BYTES, now);
    if handled == Handled::Later
        && let Some(client) = shard.readers.clients.get_mut(connection)
    {
        client.opening = None;
    }
    handled
}

/// Asks the client's home for its life, with room for `room` bytes of state in the answer.
pub(crate) fn ask(shard: &mut Shard, connection: ConnectionId, room: u32, now: Now) -> Handled {
    let Some(client) = shard.readers.clients.get(connection) else { return Handled::Done };
    let Some(opening) = &client.opening else { return Handled::Done };
    let (id, claimed, attempt) = (opening.id, opening.claimed, opening.attempt);
    let session = session_of(&opening.client_id);
    let (tenant, client_id, since_us) = (client.tenant.clone(), opening.client_id.clone(), client.since_us);
    let asker = Asker { origin: Origin::Local(connection), id, tenant, client_id, rights: None };
    shard.session_command(asker, &session, &Command::Open { session: &session, claimed, attempt, since_us, room }, now)
}
