//! Presence and receipts: answers, and frames about rosters.
//!
//! ```text
//!   {"type":"presence","session":"room","snapshot":true,"after":0,"version":3,"more":true,"complete":true,
//!    "joined":[{"client":"ann","state":"idle","data":…}],"updated":[…],"left":["bob"]}
//!   {"type":"receipts", … ,"joined":[{"client":"ann","delivered":7,"read":4}],"all":{"count":2,"delivered":7,"read":4}}
//! ```
//! What has nothing to say is left out.

use super::{begin, number, text};
use shards::command::RosterKind;
use shards::effect::PresenceReply;
use shards::ids::CommandId;
use shards::outbox::{Happened, RosterChange, RosterFrame, RosterValue};

/// Name of a roster in the types of its frames.
const fn name(kind: RosterKind) -> &'static str {
    match kind {
        RosterKind::Presence => "presence",
        RosterKind::Receipts => "receipts",
    }
}

/// The answer to a command, without the brace at its end.
pub(super) fn reply(out: &mut Vec<u8>, id: &CommandId, session: &str, reply: &PresenceReply<'_>) {
    let kind = match reply {
        PresenceReply::Entered { .. } => "entered",
        PresenceReply::Updated { .. } => "updated",
        PresenceReply::Left => "left",
        PresenceReply::Read { .. } => "read",
        PresenceReply::Watching(_) => "watching",
        PresenceReply::Unwatched(_) => "unwatched",
    };
    begin(out, kind, id);
    text(out, ",\"session\":\"");
    text(out, session);
    text(out, "\"");
    match *reply {
        PresenceReply::Entered { lease_ms, .. } => {
            text(out, ",\"lease_ms\":");
            number(out, lease_ms);
        }
        PresenceReply::Read { read, .. } => {
            text(out, ",\"offset\":");
            number(out, read);
        }
        PresenceReply::Watching(kind) | PresenceReply::Unwatched(kind) => {
            text(out, ",\"of\":\"");
            text(out, name(kind));
            text(out, "\"");
        }
        PresenceReply::Updated { .. } | PresenceReply::Left => {}
    }
}

/// A frame about a roster; the same bytes for everybody who stands where it begins.
pub fn roster(out: &mut Vec<u8>, frame: &RosterFrame<'_>) {
    text(out, "{\"type\":\"");
    text(out, name(frame.kind));
    text(out, "\",\"session\":\"");
    text(out, frame.session);
    text(out, if frame.snapshot { "\",\"snapshot\":true" } else { "\"" });
    text(out, ",\"after\":");
    number(out, frame.after);
    text(out, ",\"version\":");
    number(out, frame.version);
    if frame.more {
        text(out, ",\"more\":true");
    }
    text(out, if frame.complete { ",\"complete\":true" } else { ",\"complete\":false" });
    list(out, ",\"joined\":[", frame.changes, Happened::Joined);
    list(out, ",\"updated\":[", frame.changes, Happened::Updated);
    list(out, ",\"left\":[", frame.changes, Happened::Left);
    if let Some(all) = frame.all {
        text(out, ",\"all\":{\"count\":");
        number(out, all.count);
        text(out, ",\"delivered\":");
        number(out, all.delivered);
        text(out, ",\"read\":");
        number(out, all.read);
        text(out, "}");
    }
    text(out, "}");
}

fn list(out: &mut Vec<u8>, key: &str, changes: &[RosterChange<'_>], happened: Happened) {
    let mut before = key;
    for change in changes.iter().filter(|change| change.happened == happened) {
        text(out, before);
        before = ",";
        if happened == Happened::Left {
            text(out, "\"");
            text(out, change.client);
            text(out, "\"");
            continue;
        }
        text(out, "{\"client\":\"");
        text(out, change.client);
        match change.value {
            RosterValue::Presence { state, data } => {
                text(out, "\",\"state\":\"");
                text(out, state.name());
                text(out, "\"");
                if let Some(data) = data {
                    text(out, ",\"data\":");
                    out.extend_from_slice(data);
                }
            }
            RosterValue::Receipt { delivered, read } => {
                text(out, "\",\"delivered\":");
                number(out, delivered);
                text(out, ",\"read\":");
                number(out, read);
            }
        }
        text(out, "}");
    }
    if before == "," {
        text(out, "]");
    }
}
