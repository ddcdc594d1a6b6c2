//! Groups: answers, and the frame that deals a run.
//!
//! ```text
//!   {"type":"group.run","group":"flow","session":"demo","lease":"1.8899aabbccddeeff","attempt":1,"lease_ms":5000,"from":4,"next":7,
//!    "gap":{"from":4,"to":5},"events":[{"event_id":"demo:00f1e2d3c4b5a697:5","topic":"chat.ask","client":"ann",…,"data":…}]}
//! ```
//! What has nothing to say is left out.

use super::{begin, event_id, hex16, number, payload, text};
use shards::command::Lease;
use shards::effect::{WorkReply, marker_items};
use shards::ids::CommandId;
use shards::outbox::RunFrame;

/// `attempt.nonce`
fn lease_text(out: &mut Vec<u8>, lease: Lease) {
    number(out, lease.attempt.into());
    text(out, ".");
    hex16(out, lease.nonce);
}

/// The answer to a command, without the brace at its end, if it is about groups or markers.
pub(super) fn reply(out: &mut Vec<u8>, id: &CommandId, reply: &WorkReply<'_>) {
    let (kind, group) = match *reply {
        WorkReply::GroupDeclared { group } => ("group.declared", group),
        WorkReply::GroupDropped { group } => ("group.dropped", group),
        WorkReply::GroupJoined { group, credit: 0 } => ("group.left", group),
        WorkReply::GroupJoined { group, .. } => ("group.joined", group),
        WorkReply::GroupAcked { group, .. } => ("group.acked", group),
        WorkReply::GroupLost { group, .. } => ("group.lost", group),
        WorkReply::Markers { items, next } => return markers(out, id, items, next),
        _ => return,
    };
    begin(out, kind, id);
    text(out, ",\"group\":\"");
    text(out, group);
    text(out, "\"");
    match *reply {
        WorkReply::GroupJoined { credit: 1.., .. } | WorkReply::GroupAcked { .. } | WorkReply::GroupLost { .. } => {}
        _ => return,
    }
    if let WorkReply::GroupAcked { session, .. } | WorkReply::GroupLost { session, .. } = *reply {
        text(out, ",\"session\":\"");
        text(out, session);
        text(out, "\"");
    }
    match *reply {
        WorkReply::GroupJoined { credit, .. } => {
            text(out, ",\"credit\":");
            number(out, credit);
        }
        WorkReply::GroupAcked { offset, .. } => {
            text(out, ",\"offset\":");
            number(out, offset);
        }
        WorkReply::GroupLost { lease, .. } => {
            text(out, ",\"lease\":\"");
            lease_text(out, lease);
            text(out, "\"");
        }
        _ => {}
    }
}

fn markers(out: &mut Vec<u8>, id: &CommandId, items: &[u8], next: Option<u64>) {
    begin(out, "markers", id);
    text(out, ",\"markers\":[");
    let mut before = "{";
    for item in marker_items(items) {
        text(out, before);
        before = ",{";
        for (key, name) in [("\"session\":\"", item.session), ("\"name\":\"", item.name), ("\"group\":\"", item.group)]
        {
            if !name.is_empty() {
                text(out, key);
                text(out, name);
                text(out, "\",");
            }
        }
        text(out, "\"offset\":");
        number(out, item.offset);
        text(out, ",\"lag\":");
        number(out, item.lag);
        text(out, if item.is_held { ",\"leased\":true}" } else { "}" });
    }
    text(out, "]");
    if let Some(next) = next {
        text(out, ",\"next\":");
        number(out, next);
    }
}

/// A run for a member.
pub fn run(out: &mut Vec<u8>, frame: &RunFrame<'_>) {
    let head = frame.head;
    text(out, "{\"type\":\"group.run\",\"group\":\"");
    text(out, frame.group);
    text(out, "\",\"session\":\"");
    text(out, head.session);
    text(out, "\",\"lease\":\"");
    lease_text(out, head.lease);
    text(out, "\",\"attempt\":");
    number(out, head.lease.attempt.into());
    text(out, ",\"lease_ms\":");
    number(out, head.lease_ms);
    text(out, ",\"from\":");
    number(out, head.from);
    text(out, ",\"next\":");
    number(out, head.next);
    if let Some((from, to)) = head.gap {
        text(out, ",\"gap\":{\"from\":");
        number(out, from);
        text(out, ",\"to\":");
        number(out, to);
        text(out, "}");
    }
    text(out, ",\"events\":[");
    let mut before = "{\"event_id\":\"";
    for event in frame.events() {
        text(out, before);
        before = ",{\"event_id\":\"";
        event_id(out, head.session, head.epoch, event.offset);
        text(out, "\",\"topic\":\"");
        text(out, event.topic);
        text(out, "\",\"time\":");
        number(out, event.time_ms);
        text(out, ",\"client\":\"");
        text(out, event.client_id);
        if !event.message_id.is_empty() {
            text(out, "\",\"message_id\":\"");
            text(out, event.message_id);
        }
        if let Some(offset) = event.prev_offset {
            text(out, "\",\"prev_event_id\":\"");
            event_id(out, head.session, head.epoch, offset);
        }
        if !event.traceparent.is_empty() {
            text(out, "\",\"traceparent\":\"");
            text(out, event.traceparent);
        }
        payload(out, event.data, event.data_kind);
    }
    text(out, "]}");
}
