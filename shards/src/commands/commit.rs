//! `commit`: events, markers, changes of entries and the end of a job, all of one session, in one record: all or nothing.

use super::publish::{Form, NewParts, append, check_event};
use super::{Call, Outcome};
use crate::limits::{COMMIT_ENTRIES_MAX, COMMIT_EVENTS_MAX, COMMIT_MARKERS_MAX};
use crate::refusal::{Refusal, Refused};
use crate::shard::Shard;

pub(crate) fn run(shard: &mut Shard, call: Call<'_>, parts: &NewParts<'_>) -> Outcome {
    let NewParts { events, markers, entries, complete, .. } = *parts;
    if events.is_empty() && markers.is_empty() && entries.is_empty() && complete.is_none() {
        return shard.refuse(call.asker, Refused::field(Refusal::MissingField, "events"));
    }
    let too_large = [
        (events.len() > COMMIT_EVENTS_MAX, "events"),
        (markers.len() > COMMIT_MARKERS_MAX, "markers"),
        (entries.len() > COMMIT_ENTRIES_MAX, "entries"),
    ];
    if let Some((_, field)) = too_large.into_iter().find(|(too_large, _)| *too_large) {
        return shard.refuse(call.asker, Refused::field(Refusal::CommandTooLarge, field));
    }
    for event in events {
        if let Err(refused) = check_event(shard, event) {
            return shard.refuse(call.asker, refused);
        }
    }
    append(shard, call, parts, Form::Commit)
}
