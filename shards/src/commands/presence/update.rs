//! `presence.update`: what the client is at has changed; what is not given stays.

use crate::command::{PresenceState, RosterKind};
use crate::commands::{Call, Outcome};
use crate::effect::{PresenceReply, Reply};
use crate::presence::{of_presence, presence_of, wants_log};
use crate::refusal::{Refusal, Refused};
use crate::shard::Shard;

pub(super) fn run(shard: &mut Shard, call: Call<'_>, state: Option<PresenceState>, data: Option<&[u8]>) -> Outcome {
    let Call { asker, partition, session, .. } = call;
    let (client, key) = (shard.presence_client(asker), (partition, RosterKind::Presence));
    let Some((value, lease_ms)) = shard.presence.value(key, client) else {
        return shard.refuse(asker, Refused::field(Refusal::NotPresent, "session"));
    };
    let known = value.to_vec();
    let (known_state, known_data) = presence_of(&known);
    let (state, data, log) = (state.unwrap_or(known_state), data.or(known_data), wants_log(&known));
    let value = of_presence(state, data, log);
    let put = shard.presence.put(key, (client, &asker.client_id), &value, lease_ms);
    if let Err(refused) = put {
        return shard.refuse(asker, refused);
    }
    let reply = PresenceReply::Updated { state, data, lease_ms, log };
    shard.answer(asker.origin, asker.id, &Reply::Presence { session, reply });
    Outcome::Done
}
