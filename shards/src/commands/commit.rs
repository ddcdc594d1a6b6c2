//! `commit`: several events and markers of one session in one record, all or nothing.

use super::publish::{Form, append, check_event};
use super::{Call, Outcome};
use crate::command::{NewEvent, NewMarker};
use crate::limits::{COMMIT_EVENTS_MAX, COMMIT_MARKERS_MAX};
use crate::refusal::{Refusal, Refused};
use crate::shard::Shard;

pub(crate) fn run(shard: &mut Shard, call: Call<'_>, events: &[NewEvent<'_>], markers: &[NewMarker<'_>]) -> Outcome {
    if events.is_empty() && markers.is_empty() {
        return shard.refuse(call.asker, Refused::field(Refusal::MissingField, "events"));
    }
    if events.len() > COMMIT_EVENTS_MAX {
        return shard.refuse(call.asker, Refused::field(Refusal::CommandTooLarge, "events"));
    }
    if markers.len() > COMMIT_MARKERS_MAX {
        return shard.refuse(call.asker, Refused::field(Refusal::CommandTooLarge, "markers"));
    }
    for event in events {
        if let Err(refused) = check_event(shard, event) {
            return shard.refuse(call.asker, refused);
        }
    }
    append(shard, call, events, markers, Form::Commit)
}
