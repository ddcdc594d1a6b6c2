//! `history`: one page of a session, read on its owner's shard and sent as one reply.

use super::{Call, Outcome};
use crate::gather::{Gather, GatherFor};
use crate::refusal::{Refusal, Refused};
use crate::shard::{Opened, Shard};

/// Events of a page.
pub(crate) const HISTORY_EVENTS_MAX: u32 = 256;

pub(crate) fn run(shard: &mut Shard, call: Call<'_>, from: Option<u64>, limit: u32) -> Outcome {
    let Call { asker, partition, session, .. } = call;
    if limit == 0 || limit > HISTORY_EVENTS_MAX {
        return shard.refuse(asker, Refused::field(Refusal::OutOfRange, "limit"));
    }
    if !shard.gathers_have_room() {
        return Outcome::Later;
    }
    let slot = match shard.open(partition, &asker.tenant, session, None) {
        Opened::Ready(slot) => slot,
        Opened::Park => return Outcome::Park,
        Opened::Absent => return shard.refuse(asker, Refused::field(Refusal::UnknownSession, "session")),
        Opened::Refused(refused) => return shard.refuse(asker, refused),
    };
    let found = shard.log.partition(slot);
    let from = from.unwrap_or(found.first_offset());
    if from > found.committed() {
        return shard.refuse(asker, Refused::field(Refusal::OffsetOutOfRange, "from"));
    }
    let purpose = GatherFor::History { origin: asker.origin, id: asker.id };
    let bytes = shard.config.limits.page_bytes;
    shard.gather(Gather::new(purpose, partition, asker.tenant.clone(), session, from, limit, bytes));
    Outcome::Done
}
