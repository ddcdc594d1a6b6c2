//! `commit`: several events and markers of one session in one record, all or nothing.

use super::Outcome;
use super::publish::{Form, append, check_event};
use crate::command::{NewEvent, NewMarker};
use crate::ids::Now;
use crate::limits::{COMMIT_EVENTS_MAX, COMMIT_MARKERS_MAX};
use crate::refusal::{Refusal, Refused};
use crate::sessions::Asker;
use crate::sessions::parked::Known;
use crate::shard::Shard;

pub(crate) fn run(
    shard: &mut Shard,
    asker: &Asker,
    session: &str,
    events: &[NewEvent<'_>],
    markers: &[NewMarker<'_>],
    known: &Known,
    now: Now,
) -> Outcome {
    if events.is_empty() && markers.is_empty() {
        return shard.refuse(asker, Refused::field(Refusal::MissingField, "events"));
    }
    if events.len() > COMMIT_EVENTS_MAX {
        return shard.refuse(asker, Refused::field(Refusal::CommandTooLarge, "events"));
    }
    if markers.len() > COMMIT_MARKERS_MAX {
        return shard.refuse(asker, Refused::field(Refusal::CommandTooLarge, "markers"));
    }
    for event in events {
        if let Err(refused) = check_event(shard, event) {
            return shard.refuse(asker, refused);
        }
    }
    append(shard, asker, session, events, markers, Form::Commit, known, now)
}
