//! `read`: the client has read everything below an offset. Its receipt moves forward, and never beyond what is committed.

use crate::command::RosterKind;
use crate::commands::{Call, Outcome};
use crate::effect::{PresenceReply, Reply};
use crate::ids::Offset;
use crate::presence::{RECEIPT_LEASE_MS, of_receipt, receipt_of};
use crate::refusal::{Refusal, Refused};
use crate::shard::{Opened, Shard};

pub(super) fn run(shard: &mut Shard, call: Call<'_>, offset: Offset) -> Outcome {
    let Call { asker, partition, session, .. } = call;
    let committed = match shard.open(partition, &asker.tenant, session, None) {
        Opened::Ready(slot) => shard.log.partition(slot).committed(),
        Opened::Park => return Outcome::Park,
        Opened::Absent => 0,
        Opened::Refused(refused) => return shard.refuse(asker, refused),
    };
    if offset > committed {
        return shard.refuse(asker, Refused::field(Refusal::OffsetOutOfRange, "offset"));
    }
    let (client, key) = (shard.presence_client(asker), (partition, RosterKind::Receipts));
    let (delivered, read) = shard.presence.value(key, client).map_or((0, 0), |(value, _)| receipt_of(value));
    if offset < read {
        return shard.refuse(asker, Refused::field(Refusal::ReadBackwards, "offset"));
    }
    let value = of_receipt(delivered, offset);
    if let Err(refused) = shard.presence.put(key, (client, &asker.client_id), &value, RECEIPT_LEASE_MS) {
        return shard.refuse(asker, refused);
    }
    let (delivered, read) = receipt_of(&value);
    let reply = PresenceReply::Read { delivered, read, lease_ms: RECEIPT_LEASE_MS };
    shard.answer(asker.origin, asker.id, &Reply::Presence { session, reply });
    Outcome::Done
}
