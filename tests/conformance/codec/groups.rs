//! Frames about groups, made again from their text.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use shards::command::Lease;
use shards::effect::{MarkerItem, Reply, WorkReply, put_marker_item};
use shards::ids::CommandId;
use shards::outbox::{RunFrame, RunHead};
use tidegate::wire::encode;

fn lease_of(text: &str) -> Lease {
    let (attempt, nonce) = text.split_once('.').unwrap();
    Lease { attempt: attempt.parse().unwrap(), nonce: u64::from_str_radix(nonce, 16).unwrap() }
}

pub fn reply_again(value: &Value, id: &CommandId, out: &mut Vec<u8>) {
    let str = |key: &str| value[key].as_str().unwrap_or_default();
    let int = |key: &str| value[key].as_u64().unwrap_or_default();
    let (group, session) = (str("group"), str("session"));
    let mut items = Vec::new();
    for item in value["markers"].as_array().into_iter().flatten() {
        let str = |key: &str| item[key].as_str().unwrap_or_default();
        let (session, name, group, is_held) = (str("session"), str("name"), str("group"), item["leased"] == true);
        let (offset, lag) = (item["offset"].as_u64().unwrap(), item["lag"].as_u64().unwrap());
        put_marker_item(&mut items, &MarkerItem { session, name, group, offset, lag, is_held });
    }
    let reply = match str("type") {
        "group.declared" => WorkReply::GroupDeclared { group },
        "group.dropped" => WorkReply::GroupDropped { group },
        "group.acked" => WorkReply::GroupAcked { session, group, offset: int("offset") },
        "group.lost" => WorkReply::GroupLost { session, group, lease: lease_of(str("lease")) },
        "markers" => WorkReply::Markers { items: &items, next: value["next"].as_u64() },
        _ => WorkReply::GroupJoined { group, credit: int("credit") },
    };
    encode::reply(out, id, &Reply::Work(reply));
}

#[derive(Deserialize)]
struct RunText<'a> {
    group: &'a str,
    session: &'a str,
    lease: &'a str,
    lease_ms: u64,
    from: u64,
    next: u64,
    gap: Option<GapText>,
    #[serde(borrow)]
    events: Vec<EventText<'a>>,
}

#[derive(Deserialize)]
struct GapText {
    from: u64,
    to: u64,
}

#[derive(Deserialize)]
struct EventText<'a> {
    event_id: &'a str,
    topic: &'a str,
    time: u64,
    client: &'a str,
    #[serde(default)]
    message_id: &'a str,
    prev_event_id: Option<&'a str>,
    #[serde(default)]
    traceparent: &'a str,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// As the core packs an event of a run.
fn put_event(out: &mut Vec<u8>, event: &EventText<'_>) {
    let offset = |id: &str| id.rsplit_once(':').unwrap().1.parse::<u64>().unwrap();
    let bytes = |out: &mut Vec<u8>, bytes: &[u8]| {
        out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(bytes);
    };
    out.extend_from_slice(&offset(event.event_id).to_le_bytes());
    for text in [event.topic, event.client, event.message_id, event.traceparent] {
        bytes(out, text.as_bytes());
    }
    out.extend_from_slice(&event.time.to_le_bytes());
    out.extend_from_slice(&event.prev_event_id.map_or(storage::record::NO_OFFSET, offset).to_le_bytes());
    out.push(0);
    bytes(out, event.data.get().as_bytes());
}

pub fn run_again(text: &str, out: &mut Vec<u8>) {
    let run: RunText<'_> = serde_json::from_str(text).unwrap();
    let epoch = run.events[0].event_id.rsplit(':').nth(1).unwrap();
    let mut events = Vec::new();
    run.events.iter().for_each(|event| put_event(&mut events, event));
    let head = RunHead {
        session: run.session,
        epoch: u64::from_str_radix(epoch, 16).unwrap(),
        from: run.from,
        lease: lease_of(run.lease),
        next: run.next,
        lease_ms: run.lease_ms,
        gap: run.gap.map(|gap| (gap.from, gap.to)),
    };
    let frame = RunFrame { group: run.group, head, events: &events };
    encode::run(out, &frame);
    assert!(out.len() + 10 <= frame.bytes_max(), "the outbox is promised room for any frame");
}
