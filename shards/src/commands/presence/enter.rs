//! `presence.enter`: the client is in the session, under lease. Entering again replaces what was said before.

use crate::command::{PresenceState, RosterKind};
use crate::commands::{Call, Outcome};
use crate::effect::{PresenceReply, Reply};
use crate::limits::Limits;
use crate::presence::of_presence;
use crate::refusal::{Refusal, Refused};
use crate::shard::Shard;

/// Is it a lease that may be asked for?
pub(super) fn check(limits: &Limits, lease_ms: Option<u64>) -> Result<(), Refused> {
    let bounds = limits.presence.lease_ms_min..=limits.presence.lease_ms_max;
    match lease_ms {
        Some(ms) if !bounds.contains(&ms) => Err(Refused::field(Refusal::OutOfRange, "lease_ms")),
        _ => Ok(()),
    }
}

pub(super) fn run(
    shard: &mut Shard,
    call: Call<'_>,
    state: PresenceState,
    data: Option<&[u8]>,
    lease_ms: Option<u64>,
    log: bool,
) -> Outcome {
    let Call { asker, partition, session, .. } = call;
    let lease_ms = lease_ms.unwrap_or(shard.config.limits.presence.lease_ms);
    let client = shard.presence_client(asker);
    let (key, value) = ((partition, RosterKind::Presence), of_presence(state, data, log));
    let put = shard.presence.put(key, (client, &asker.client_id), &value, lease_ms);
    if let Err(refused) = put {
        return shard.refuse(asker, refused);
    }
    if log {
        shard.presence.begin_journal(key, &asker.tenant, session);
    }
    let reply = PresenceReply::Entered { state, data, lease_ms, log };
    shard.answer(asker.origin, asker.id, &Reply::Presence { session, reply });
    Outcome::Done
}
