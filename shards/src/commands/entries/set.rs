//! `entry.put`, `entry.delete`, and what a commit changes of entries.
//!
//! ```text
//!   if_revision = that of what is there now? ─ no ─► refused, with what it is
//!     │ yes, or not asked
//!   bytes of the session, of the tenant ─ too many ─► refused
//!     ▼
//!   one record: the next revision
//! ```
//! What has expired is not there, also where the record of that is still to come.

use crate::command::NewEntry;
use crate::commands::publish::{Form, NewParts, append};
use crate::commands::{Call, Outcome};
use crate::ids::{Now, PartitionId};
use crate::queues::QUEUES;
use crate::refusal::{Refusal, Refused};
use crate::shard::Shard;
use storage::catalog::{ENTRIES_BYTES_MAX, PartitionSlot, entry_bytes};

/// Advice where there is no room for entries.
const FULL_RETRY_MS: u32 = 1000;

pub(super) fn run(shard: &mut Shard, call: Call<'_>, entry: &NewEntry<'_>) -> Outcome {
    append(shard, call, &NewParts { entries: std::slice::from_ref(entry), ..NewParts::default() }, Form::Entry)
}

/// May these be changed so, all of them? By how many bytes they grow.
pub(crate) fn check(
    shard: &Shard,
    partition: PartitionId,
    slot: PartitionSlot,
    tenant: &str,
    entries: &[NewEntry<'_>],
    now: Now,
) -> Result<u64, Refused> {
    let limits = &shard.config.limits.work;
    let (session, state) = (shard.log.partition(slot).session(), shard.log.partition(slot).entries());
    let (mut freed, mut taken) = (0, 0);
    for (at, entry) in entries.iter().enumerate() {
        if entries[..at].iter().any(|before| before.key == entry.key) {
            return Err(Refused::field(Refusal::RepeatedField, "key"));
        }
        let known = state.and_then(|state| state.get(entry.key));
        let there = known.filter(|known| !shard.entries.is_over(partition, known.revision, now));
        let revision = there.map_or(0, |there| there.revision);
        if entry.if_revision.is_some_and(|wanted| wanted != revision) {
            return Err(Refused::expects(Refusal::WrongRevision, "if_revision", revision));
        }
        freed += known.map_or(0, |known| entry_bytes(entry.key.len(), known.value.len()));
        match entry.value {
            // Queues are kept as entries, and have bounds of their own.
            Some(value) if value.len() > limits.entry_bytes_max && session != QUEUES => {
                return Err(Refused::field(Refusal::EntryTooLarge, "data"));
            }
            Some(value) => taken += entry_bytes(entry.key.len(), value.len()),
            None if there.is_none() => return Err(Refused::field(Refusal::UnknownEntry, "key")),
            None => {}
        }
    }
    let session_bytes = state.map_or(0, |state| state.bytes());
    let tenant_bytes = shard.entries.tenant_bytes(tenant);
    let share = limits.entries_bytes_per_tenant_max / usize::from(shard.config.shards);
    if taken > freed && (session_bytes + taken > ENTRIES_BYTES_MAX + freed || tenant_bytes + taken > share + freed) {
        return Err(Refused { field: "data", ..Refused::later(Refusal::EntriesFull, FULL_RETRY_MS) });
    }
    Ok(taken.saturating_sub(freed) as u64)
}
