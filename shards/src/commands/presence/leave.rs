//! `presence.leave`: the client is in the session no longer, by whichever of its connections it entered.

use crate::command::RosterKind;
use crate::commands::{Call, Outcome};
use crate::effect::{PresenceReply, Reply};
use crate::refusal::{Refusal, Refused};
use crate::shard::Shard;

pub(super) fn run(shard: &mut Shard, call: Call<'_>) -> Outcome {
    let Call { asker, partition, session, .. } = call;
    let client = shard.presence_client(asker);
    if !shard.presence.leave((partition, RosterKind::Presence), client) {
        return shard.refuse(asker, Refused::field(Refusal::NotPresent, "session"));
    }
    shard.answer(asker.origin, asker.id, &Reply::Presence { session, reply: PresenceReply::Left });
    Outcome::Done
}
