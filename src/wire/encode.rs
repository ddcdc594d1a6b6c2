//! Answers and events to the payloads of text frames, appended to the caller's bytes. Nothing is allocated but what
//! the bytes need to grow.
//!
//! ```text
//!   {"type":"event","event_id":"demo:00f1e2d3c4b5a697:41","session":"demo", … ,"data":…}
//!    └ keys are copied whole ┘└ names need no escapes ┘                          └ data is one memcpy
//! ```
//! Numbers are decimal, epochs sixteen hex digits, times Unix ms. An event's bytes are the same for every client.

mod groups;
mod presence;
mod work;

pub use groups::run;
pub use presence::roster;
pub use work::{dead, entries, job};

use super::json::append_string;
use super::lives::shown;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use shards::command::{DataKind, Durability};
use shards::effect::Reply;
use shards::ids::{CommandId, Epoch, Offset};
use shards::limits::{FRAME_COMMANDS_MAX, Kind, Limits, Quota};
use shards::outbox::{
    Gap, GapReason, HistoryHead, Notice, PageItem, PatternGap, StreamFrame, VolatileEvent, text_parts,
};
use shards::refusal::{Refusal, Refused};
use storage::record::{EventView, NO_OFFSET, RecordView};

/// First frame of every connection: who the client is, until when its token lets it stay, where it is, what it may send.
pub fn welcome(out: &mut Vec<u8>, client: &str, expires_ms: Option<u64>, shard: u16, limits: &Limits) {
    text(out, "{\"type\":\"welcome\",\"client\":\"");
    text(out, client);
    text(out, "\"");
    if let Some(expires_ms) = expires_ms {
        text(out, ",\"expires\":");
        number(out, expires_ms);
    }
    text(out, ",\"shard\":");
    number(out, u64::from(shard));
    for (key, value) in [
        (",\"limits\":{\"event_bytes_max\":", limits.event_bytes_max as u64),
        (",\"frame_bytes_max\":", limits.frame_bytes_max as u64),
        (",\"frame_commands_max\":", FRAME_COMMANDS_MAX as u64),
        (",\"client_commands_in_flight_max\":", u64::from(limits.client_commands_in_flight_max)),
        (",\"client_subscriptions_max\":", limits.client_subscriptions_max as u64),
    ] {
        text(out, key);
        number(out, value);
    }
    text(out, "}}");
}

/// The answer to `auth`: who the client is, and until when.
pub fn authenticated(out: &mut Vec<u8>, id: &CommandId, client: &str, expires_ms: u64) {
    begin(out, "authenticated", id);
    text(out, ",\"client\":\"");
    text(out, client);
    text(out, "\",\"expires\":");
    number(out, expires_ms);
    text(out, "}");
}

/// The answer to `revoke.client` and `revoke.token`: it is on disk, and every shard has been told.
pub fn revoked(out: &mut Vec<u8>, id: &CommandId) {
    begin(out, "revoked", id);
    text(out, "}");
}

/// The answer to `quota.get`, and to `quota.set` when it is on disk and every shard has been told: what is in force.
pub fn quota(out: &mut Vec<u8>, id: &CommandId, tenant: &str, quota: &Quota) {
    begin(out, "quota", id);
    text(out, ",\"tenant\":\"");
    text(out, tenant);
    text(out, "\",\"quota\":{\"weight\":");
    number(out, u64::from(quota.weight));
    for kind in Kind::ALL {
        if let Some(max) = quota.max[kind as usize] {
            text(out, ",\"");
            text(out, kind.name());
            text(out, "\":");
            number(out, max);
        }
    }
    text(out, "}}");
}

/// The server is about to close: finish what is open and come back.
pub fn goaway(out: &mut Vec<u8>, reconnect_after_ms: u64) {
    text(out, "{\"type\":\"goaway\",\"reconnect_after_ms\":");
    number(out, reconnect_after_ms);
    text(out, "}");
}

/// What this client sent has waited for so long: it does well to send nothing for as long. A hint: nothing is lost, and nothing is
/// refused yet.
pub fn slow_down(out: &mut Vec<u8>, waits_for: Refusal, retry_after_ms: u64) {
    text(out, "{\"type\":\"slow_down\",\"scope\":\"");
    text(
        out,
        match waits_for {
            Refusal::NoCredit => "client",
            Refusal::LogBehind => "log",
            Refusal::OverShare => "tenant",
            _ => "shard",
        },
    );
    text(out, "\",\"retry_after_ms\":");
    number(out, retry_after_ms);
    text(out, "}");
}

/// Whether a reply is sent at all: an `ack` is answered only where it has an id.
pub fn reply_is_sent(id: &CommandId, reply: &Reply<'_>) -> bool {
    !matches!((id, reply), (CommandId::None, Reply::Acknowledged | Reply::Hello))
}

/// The answer to a command.
pub fn reply(out: &mut Vec<u8>, id: &CommandId, reply: &Reply<'_>) {
    match reply {
        Reply::Hello => begin(out, "hello", id),
        Reply::Published { session, epoch, offset, durability, duplicate } => {
            begin(out, "published", id);
            // A numbering producer's repeat of anything but its last message: taken before, its offset not kept.
            if *offset != NO_OFFSET {
                text(out, ",\"event_id\":\"");
                event_id(out, session, *epoch, *offset);
                text(out, "\"");
            }
            earned(out, *durability, *duplicate);
        }
        Reply::PublishedVolatile { after_offset } => {
            begin(out, "published", id);
            text(out, ",\"durability\":\"volatile\",\"after_offset\":");
            number(out, *after_offset);
        }
        Reply::Committed { session, epoch, offset, count, durability, duplicate, revision } => {
            begin(out, "committed", id);
            if *count > 0 && *offset != NO_OFFSET {
                text(out, ",\"event_id\":\"");
                event_id(out, session, *epoch, *offset);
                text(out, "\"");
            }
            text(out, ",\"count\":");
            number(out, u64::from(*count));
            text(out, ",\"session\":\"");
            text(out, session);
            text(out, "\"");
            if *revision > 0 {
                text(out, ",\"revision\":");
                number(out, *revision);
            }
            earned(out, *durability, *duplicate);
        }
        Reply::Subscribed { session, epoch, next, earliest, joins } => {
            begin(out, "subscribed", id);
            text(out, ",\"session\":\"");
            text(out, session);
            if *epoch != 0 {
                text(out, "\",\"epoch\":\"");
                hex16(out, shown(*epoch));
            }
            text(out, "\",\"next\":");
            number(out, *next);
            text(out, ",\"earliest\":");
            number(out, *earliest);
            text(out, if *joins { ",\"joins\":true" } else { "" });
        }
        Reply::SubscribedPatterns { position } => {
            begin(out, "subscribed", id);
            text(out, ",\"patterns\":true,\"position\":\"");
            text(out, position);
            text(out, "\"");
        }
        Reply::Unsubscribed => begin(out, "unsubscribed", id),
        Reply::Acknowledged => begin(out, "acked", id),
        Reply::Marked { session, name, offset } => {
            begin(out, "marked", id);
            text(out, ",\"session\":\"");
            text(out, session);
            text(out, "\",\"name\":\"");
            text(out, name);
            text(out, "\",\"offset\":");
            number(out, *offset);
        }
        Reply::Work(reply) => work::reply(out, id, reply),
        Reply::Presence { session, reply } => presence::reply(out, id, session, reply),
        Reply::Pong { time_ms } => {
            begin(out, "pong", id);
            text(out, ",\"time\":");
            number(out, *time_ms);
        }
        Reply::Lost { session, refused: why } => {
            begin(out, "lost", id);
            text(out, ",\"session\":\"");
            text(out, session);
            text(out, "\"");
            refused(out, why);
        }
        // Of these the edge makes frames of their own, or none.
        Reply::Resumed { .. } | Reply::ClientOpened { .. } | Reply::ClientLarge { .. } => begin(out, "resumed", id),
        Reply::Refused(why) => {
            begin(out, "refused", id);
            refused(out, why);
        }
    }
    text(out, "}");
}

/// The answer to `resume`, with the token for the next one.
#[allow(clippy::too_many_arguments)]
pub fn resumed(
    out: &mut Vec<u8>,
    id: &CommandId,
    client: &str,
    generation: u64,
    sessions: u32,
    patterns: bool,
    token: &str,
    expires_ms: u64,
) {
    begin(out, "resumed", id);
    text(out, ",\"client\":\"");
    text(out, client);
    text(out, "\",\"generation\":");
    number(out, generation);
    text(out, ",\"sessions\":");
    number(out, u64::from(sessions));
    text(out, if patterns { ",\"patterns\":true" } else { ",\"patterns\":false" });
    text(out, ",\"token\":\"");
    text(out, token);
    text(out, "\",\"expires\":");
    number(out, expires_ms);
    text(out, "}");
}

/// An event; the same bytes for every client.
pub fn event(out: &mut Vec<u8>, event: &EventView<'_>) {
    let session = event.session();
    let data = event.data();
    out.reserve(data.len() + 512);
    text(out, "{\"type\":\"event\",\"event_id\":\"");
    event_id(out, session, event.epoch(), event.offset());
    text(out, "\",\"session\":\"");
    text(out, session);
    text(out, "\",\"topic\":\"");
    text(out, event.topic());
    text(out, "\",\"client\":\"");
    text(out, event.client_id());
    let message_id = event.message_id();
    if let Some((stream, seq)) = event.stream() {
        text(out, "\",\"seq\":");
        number(out, seq);
        text(out, ",\"stream\":\"");
        text(out, stream);
    } else if !message_id.is_empty() {
        text(out, "\",\"message_id\":\"");
        text(out, message_id);
    }
    if let Some(offset) = event.prev_offset() {
        text(out, "\",\"prev_event_id\":\"");
        event_id(out, session, event.epoch(), offset);
    }
    text(out, "\",\"time\":");
    number(out, event.time_ms());
    text(out, ",\"at\":\"");
    number(out, u64::from(event.slice().0));
    out.push(b'.');
    number(out, event.slice_seq());
    let traceparent = event.traceparent();
    if !traceparent.is_empty() {
        text(out, "\",\"traceparent\":\"");
        text(out, traceparent);
    }
    payload(out, data, event.data_kind());
}

/// A volatile event; the same bytes for every client.
pub fn volatile(out: &mut Vec<u8>, event: &VolatileEvent<'_>) {
    text(out, "{\"type\":\"volatile\",\"session\":\"");
    text(out, event.session);
    text(out, "\",\"after_offset\":");
    number(out, event.after_offset);
    text(out, ",\"n\":");
    number(out, event.counter);
    text(out, ",\"topic\":\"");
    text(out, event.topic);
    text(out, "\",\"client\":\"");
    text(out, event.client_id);
    if !event.traceparent.is_empty() {
        text(out, "\",\"traceparent\":\"");
        text(out, event.traceparent);
    }
    payload(out, event.data, event.data_kind);
}

/// Deltas of streams, merged.
pub fn streams(out: &mut Vec<u8>, frame: &StreamFrame<'_>) {
    out.reserve(frame.parts.iter().map(|part| part.text.len() + 256).sum::<usize>() + 256);
    text(out, "{\"type\":\"stream.delta\",");
    if frame.offset != Offset::MAX {
        text(out, "\"event_id\":\"");
        event_id(out, frame.session, frame.epoch, frame.offset);
        text(out, "\",");
    }
    if let Some((slice, slice_seq)) = frame.at {
        text(out, "\"at\":\"");
        number(out, slice.0.into());
        text(out, ".");
        number(out, slice_seq);
        text(out, "\",");
    }
    text(out, "\"session\":\"");
    text(out, frame.session);
    text(out, "\",\"streams\":[");
    for (i, part) in frame.parts.iter().enumerate() {
        text(out, if i > 0 { ",{\"stream\":\"" } else { "{\"stream\":\"" });
        text(out, &part.stream);
        text(out, "\",\"topic\":\"");
        text(out, &part.topic);
        text(out, "\"");
        if !part.seqs.is_empty() {
            text(out, ",\"from_seq\":");
            number(out, part.seqs.start);
            text(out, ",\"to_seq\":");
            number(out, part.seqs.end - 1);
            text(out, ",\"delta\":\"");
            out.extend_from_slice(&part.text);
            text(out, "\"");
        }
        if !part.status.is_empty() {
            text(out, ",\"status\":");
            out.extend_from_slice(&part.status);
        }
        text(out, "}");
    }
    text(out, "]}");
}

/// Deltas that the log has merged, of these offsets: like those that were merged for a reader.
pub fn merged(out: &mut Vec<u8>, record: RecordView<'_>, from: Offset, to: Offset) {
    let parts = text_parts(record, from, to);
    let frame =
        StreamFrame { session: record.session(), epoch: record.epoch(), offset: to - 1, at: None, parts: &parts };
    streams(out, &frame);
}

/// A control event was committed; it comes at its place too.
pub fn notice(out: &mut Vec<u8>, notice: &Notice<'_>) {
    text(out, "{\"type\":\"notice\",\"event_id\":\"");
    event_id(out, notice.session, notice.epoch, notice.offset);
    text(out, "\",\"session\":\"");
    text(out, notice.session);
    text(out, "\",\"topic\":\"");
    text(out, notice.topic);
    text(out, "\"}");
}

/// Offsets that will not be delivered.
pub fn gap(out: &mut Vec<u8>, gap: &Gap<'_>) {
    text(out, "{\"type\":\"gap\",\"session\":\"");
    text(out, gap.session);
    text(out, "\",\"epoch\":\"");
    hex16(out, shown(gap.epoch));
    text(out, "\",\"from\":");
    number(out, gap.from);
    text(out, ",\"to\":");
    number(out, gap.to);
    text(out, ",\"reason\":\"");
    text(out, gap_reason(gap.reason));
    text(out, "\"}");
}

/// Events of a slice, or of some slices, that a pattern feed will never deliver.
pub fn pattern_gap(out: &mut Vec<u8>, gap: &PatternGap) {
    text(out, "{\"type\":\"gap\",\"patterns\":true");
    if let Some((slice, from, to)) = gap.slice {
        text(out, ",\"slice\":");
        number(out, u64::from(slice.0));
        text(out, ",\"from\":");
        number(out, from);
        text(out, ",\"to\":");
        number(out, to);
    }
    text(out, ",\"reason\":\"");
    text(out, gap_reason(gap.reason));
    text(out, "\"}");
}

/// A page of history: the answer to `history`.
pub fn history<'a>(
    out: &mut Vec<u8>,
    id: &CommandId,
    head: &HistoryHead<'_>,
    items: impl IntoIterator<Item = PageItem<'a>>,
) {
    begin(out, "history", id);
    text(out, ",\"session\":\"");
    text(out, head.session);
    text(out, "\",\"epoch\":\"");
    hex16(out, shown(head.epoch));
    text(out, "\",\"next\":");
    number(out, head.next);
    text(out, ",\"tail\":");
    number(out, head.tail);
    text(out, ",\"events\":[");
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        match item {
            PageItem::Event(view) => event(out, &view),
            PageItem::Text(record, from, to) => merged(out, record, from, to),
        }
    }
    text(out, "]}");
}

/// Name of a reason on the wire.
pub const fn gap_reason(reason: GapReason) -> &'static str {
    match reason {
        GapReason::Retention => "retention",
        GapReason::Expired => "expired",
        GapReason::Policy => "policy",
        GapReason::Epoch => "epoch",
        GapReason::Damaged => "damaged",
    }
}

/// Name of a promise on the wire.
pub const fn durability_name(durability: Durability) -> &'static str {
    match durability {
        Durability::Disk => "disk",
        Durability::Memory => "memory",
        Durability::Volatile => "volatile",
    }
}

/// `{"type":…` and the id as the client gave it.
fn begin(out: &mut Vec<u8>, kind: &str, id: &CommandId) {
    text(out, "{\"type\":\"");
    text(out, kind);
    text(out, "\"");
    match id {
        CommandId::None => {}
        CommandId::Number(n) => {
            text(out, ",\"id\":");
            number(out, *n);
        }
        CommandId::Text(id) => {
            text(out, ",\"id\":");
            append_string(out, id.as_str());
        }
    }
}

fn earned(out: &mut Vec<u8>, durability: Durability, duplicate: bool) {
    text(out, ",\"durability\":\"");
    text(out, durability_name(durability));
    text(out, if duplicate { "\",\"duplicate\":true" } else { "\"" });
}

fn refused(out: &mut Vec<u8>, refused: &Refused) {
    text(out, ",\"code\":");
    number(out, u64::from(refused.refusal.code()));
    text(out, ",\"refusal\":\"");
    text(out, refused.refusal.name());
    if !refused.field.is_empty() {
        text(out, "\",\"field\":\"");
        text(out, refused.field);
    }
    text(out, "\",\"message\":");
    append_string(out, refused.refusal.cure());
    if let Some(expected) = refused.expected {
        text(out, ",\"expected\":");
        number(out, expected);
    }
    if let Some(ms) = refused.retry_after_ms {
        text(out, ",\"retry_after_ms\":");
        number(out, u64::from(ms));
    }
}

/// The last field of an event. Closes the string before it, and the object.
fn payload(out: &mut Vec<u8>, data: &[u8], kind: DataKind) {
    match kind {
        DataKind::Json | DataKind::Delta | DataKind::Close => {
            text(out, if kind == DataKind::Close { "\",\"status\":" } else { "\",\"data\":" });
            out.extend_from_slice(data);
            text(out, "}");
        }
        DataKind::Bytes => {
            text(out, "\",\"data_kind\":\"bytes\",\"data\":\"");
            let start = out.len();
            out.resize(start + data.len().div_ceil(3) * 4, 0);
            let written = STANDARD.encode_slice(data, &mut out[start..]).unwrap_or(0);
            out.truncate(start + written);
            text(out, "\"}");
        }
    }
}

/// `session:epoch:offset`
fn event_id(out: &mut Vec<u8>, session: &str, epoch: Epoch, offset: Offset) {
    text(out, session);
    text(out, ":");
    hex16(out, shown(epoch));
    text(out, ":");
    number(out, offset);
}

#[inline]
fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

#[inline]
fn number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

#[inline]
fn hex16(out: &mut Vec<u8>, number: u64) {
    let (high, low) = (hex8((number >> 32) as u32), hex8(number as u32));
    let mut hex = [0; 16];
    hex[..8].copy_from_slice(&high);
    hex[8..].copy_from_slice(&low);
    out.extend_from_slice(&hex);
}

/// Eight digits in a word: each half is spread over twice its room until a digit fills a byte.
#[inline(always)]
fn hex8(number: u32) -> [u8; 8] {
    const ONES: u64 = u64::MAX / 255;
    let mut digits = u64::from(number);
    digits = (digits | digits << 16) & 0x0000_ffff_0000_ffff;
    digits = (digits | digits << 8) & 0x00ff_00ff_00ff_00ff;
    digits = (digits | digits << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    let letters = (digits + ONES * 6) >> 4 & ONES;
    (digits + ONES * u64::from(b'0') + letters * u64::from(b'a' - b'0' - 10)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hex_is_what_format_makes(number: u64) {
            let mut out = Vec::new();
            hex16(&mut out, number);
            prop_assert_eq!(String::from_utf8(out).unwrap(), format!("{number:016x}"));
        }
    }
}
