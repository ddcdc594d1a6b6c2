//! The transcripts against the codec alone: no server, no sockets.

mod groups;
mod work;

use crate::transcript::{self, Step, Transcript};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use shards::command::{
    Command, DataKind, Durability, EntryAsk, GroupAsk, JobAsk, PresenceAct, PresenceState, QueueAsk, QuotaAsk,
    Revocable, RosterKind,
};
use shards::effect::{PresenceReply, Reply};
use shards::ids::{CommandId, InlineText, PartitionId, SliceId};
use shards::limits::{Kind, Limits, Quota, REPLY_BYTES_MAX};
use shards::outbox::{
    Gap, GapReason, Happened, HistoryHead, Notice, PageItem, PatternGap, ReceiptsOfAll, RosterChange, RosterFrame,
    RosterValue, StreamFrame, StreamPart, VolatileEvent, event_bytes_max,
};
use shards::refusal::{Refusal, Refused};
use std::collections::HashSet;
use std::ops::ControlFlow;
use storage::record::{
    CommitBody, EventBody, Kind as RecordKind, NO_OFFSET, RecordHead, RecordView, commit_bytes_max, encode_commit,
};
use tidegate::net::websocket::{Decoder, Message, Violation};
use tidegate::wire::codes::Close;
use tidegate::wire::decode::{Resume, Scratch, decode};
use tidegate::wire::encode;

#[test]
fn every_command_is_taken_or_refused_as_written() {
    for transcript in transcript::all() {
        let mut scratch = Scratch::new(&Limits::default());
        for (i, (number, step)) in transcript.steps.iter().enumerate() {
            let Step::Send { connection, text, .. } = step else { continue };
            let at = format!("{}:{number}", transcript.file);
            let answers = answers(&transcript, i, connection);
            let mut refusals = 0;
            decode(text, Resume::default(), &mut scratch, |id, result| {
                match result {
                    Ok(command) => {
                        // A command that decodes may only be refused for something the decoder cannot see.
                        if let Some(refused) = answers.iter().find(|a| a.contains("\"refused\"") && has_id(a, &id)) {
                            assert!(!is_decoders(refused), "{at}: decoded as {command:?}, but expected {refused}");
                        }
                    }
                    Err(refused) => {
                        refusals += 1;
                        let mut out = Vec::new();
                        encode::reply(&mut out, &id, &Reply::Refused(refused));
                        let out = String::from_utf8(out).unwrap();
                        assert!(answers.contains(&out.as_str()), "{at}: {out} is not among {answers:#?}");
                    }
                }
                ControlFlow::Continue(())
            });
            let expected = answers.iter().filter(|a| is_decoders(a)).count();
            assert_eq!(refusals, expected, "{at}");
        }
    }
}

/// What a connection gets between one of its sends and the next.
fn answers<'a>(transcript: &'a Transcript, send: usize, connection: &str) -> Vec<&'a str> {
    let mut answers = Vec::new();
    for (_, step) in &transcript.steps[send + 1..] {
        match step {
            Step::Send { connection: from, .. } if from == connection => break,
            Step::Expect { connection: to, text } if to == connection => answers.push(text.as_str()),
            _ => {}
        }
    }
    answers
}

fn has_id(frame: &str, id: &CommandId) -> bool {
    let value: Value = serde_json::from_str(frame).unwrap();
    command_id(value.get("id")) == *id
}

/// Refusals that only the decoder makes.
fn is_decoders(frame: &str) -> bool {
    let value: Value = serde_json::from_str(frame).unwrap();
    let name = value["refusal"].as_str().unwrap_or_default();
    [
        "bad_frame",
        "unknown_command",
        "missing_field",
        "wrong_type",
        "bad_name",
        "bad_topic",
        "bad_pattern",
        "bad_data",
        "event_too_large",
        "cross_session",
        "bad_position",
        "command_too_large",
        "out_of_range",
        "repeated_field",
        "presence_too_large",
        "entry_too_large",
        "progress_too_large",
    ]
    .contains(&name)
}

#[test]
fn every_frame_is_encoded_byte_for_byte() {
    for transcript in transcript::all() {
        for (number, step) in &transcript.steps {
            let Step::Expect { text, .. } = step else { continue };
            let mut out = Vec::new();
            encode_again(text, &mut out);
            assert_eq!(String::from_utf8_lossy(&out), *text, "{}:{number}", transcript.file);
            if !text.starts_with("{\"type\":\"event\"") && !text.starts_with("{\"type\":\"history\"") {
                assert!(out.len() <= REPLY_BYTES_MAX - 10, "{text}");
            }
        }
    }
}

#[test]
fn every_close_and_violation_is_in_the_table() {
    let mut seen = HashSet::new();
    for transcript in transcript::all() {
        let mut violation = None;
        for (number, step) in &transcript.steps {
            let at = format!("{}:{number}", transcript.file);
            match step {
                Step::Raw { bytes, .. } => {
                    let mut bytes = bytes.clone();
                    let mut assembly = Vec::new();
                    let taken = Decoder::new(Limits::default().frame_bytes_max).next(&mut bytes, &mut assembly);
                    violation = match taken {
                        Err(violation) => Some((violation.close_code(), violation.reason())),
                        Ok((_, Some(Message::Binary(_)))) => Some((1003, Close::UnsupportedData.reason())),
                        Ok((_, Some(Message::Close { code, .. }))) => Some((code.unwrap(), "")),
                        other => panic!("{at}: {other:?}"),
                    };
                }
                Step::Close { code, reason, .. } => {
                    let close = Close::ALL.iter().find(|close| close.code() == *code).expect(&at);
                    seen.insert(*code);
                    let reason = reason.as_deref().unwrap_or("");
                    match violation.take() {
                        Some(found) => assert_eq!(found, (*code, reason), "{at}"),
                        None => assert_eq!(close.reason(), reason, "{at}"),
                    }
                }
                _ => {}
            }
        }
    }
    for close in Close::ALL {
        assert!(seen.contains(&close.code()), "{close:?} has no example: add one to a transcript");
    }
    for violation in Violation::ALL {
        assert!(seen.contains(&violation.close_code()), "{violation:?} closes with a code that is not in the table");
    }
    // These two are said in two places.
    assert_eq!(Close::InvalidUtf8.reason(), Violation::InvalidUtf8.reason());
    assert_eq!(Close::TooLarge.reason(), Violation::TooLarge.reason());
}

#[test]
fn every_name_has_an_example() {
    let mut commands = HashSet::new();
    let mut frames = HashSet::new();
    let mut refusals = HashSet::new();
    for transcript in transcript::all() {
        for (_, step) in &transcript.steps {
            match step {
                Step::Send { text, .. } => {
                    let mut scratch = Scratch::new(&Limits::default());
                    decode(text, Resume::default(), &mut scratch, |_, result| {
                        if let Ok(command) = result {
                            commands.insert(command_name(&command));
                        }
                        ControlFlow::Continue(())
                    });
                }
                Step::Expect { text, .. } => {
                    let value: Value = serde_json::from_str(text).unwrap();
                    frames.insert(value["type"].as_str().unwrap().to_owned());
                    refusals.extend(value["refusal"].as_str().map(str::to_owned));
                    frames.extend(value["reason"].as_str().map(|reason| format!("gap {reason}")));
                }
                _ => {}
            }
        }
    }
    let mut missing: Vec<String> = Vec::new();
    missing.extend(Refusal::ALL.iter().map(|r| r.name().to_owned()).filter(|name| !refusals.contains(name)));
    missing.extend(COMMANDS.iter().filter(|name| !commands.contains(*name)).map(|name| name.to_string()));
    missing.extend(FRAMES.iter().filter(|name| !frames.contains(**name)).map(|name| name.to_string()));
    assert_eq!(missing, [""; 0], "add an example of each to PROTOCOL.md and a transcript");
}

const COMMANDS: &[&str] = &[
    "hello",
    "publish",
    "commit",
    "subscribe",
    "subscribe patterns",
    "unsubscribe",
    "unsubscribe patterns",
    "ack",
    "mark",
    "history",
    "resume",
    "ping",
    "auth",
    "revoke.client",
    "revoke.token",
    "quota.get",
    "quota.set",
    "stream.append",
    "stream.close",
    "presence.enter",
    "presence.update",
    "presence.leave",
    "presence.watch",
    "presence.unwatch",
    "read",
    "entry.put",
    "entry.delete",
    "entry.get",
    "entry.list",
    "entry.watch",
    "entry.unwatch",
    "queue.declare",
    "queue.drop",
    "queue.list",
    "pull",
    "dead.list",
    "job.fail",
    "job.extend",
    "job.progress",
    "dead.redrive",
    "dead.drop",
    "group.declare",
    "group.drop",
    "group.join",
    "group.leave",
    "group.ack",
    "group.list",
    "markers.list",
];

/// Fails to compile when a command joins: then it needs an example.
fn command_name(command: &Command<'_>) -> &'static str {
    match command {
        Command::Hello { .. } => "hello",
        Command::Publish { .. } => "publish",
        Command::Commit { .. } => "commit",
        Command::Subscribe { .. } => "subscribe",
        Command::SubscribePatterns { .. } => "subscribe patterns",
        Command::Unsubscribe { .. } => "unsubscribe",
        Command::UnsubscribePatterns => "unsubscribe patterns",
        Command::Acknowledge { .. } => "ack",
        Command::Mark { marker, .. } if marker.lease.is_some() => "group.ack",
        Command::Mark { .. } => "mark",
        Command::Markers { .. } => "markers.list",
        Command::Group { ask } => match ask {
            GroupAsk::Declare { .. } => "group.declare",
            GroupAsk::Drop { .. } => "group.drop",
            GroupAsk::Join { credit: 0, .. } => "group.leave",
            GroupAsk::Join { .. } => "group.join",
            GroupAsk::List { .. } => "group.list",
        },
        Command::History { .. } => "history",
        Command::Resume { .. } => "resume",
        // Between shards only.
        Command::Open { .. } => "open",
        Command::Ping => "ping",
        Command::Auth { .. } => "auth",
        Command::Revoke { what: Revocable::Client, .. } => "revoke.client",
        Command::Revoke { what: Revocable::Token, .. } => "revoke.token",
        Command::Quota { ask: QuotaAsk::Get, .. } => "quota.get",
        Command::Quota { ask: QuotaAsk::Set(_), .. } => "quota.set",
        Command::StreamAppend { .. } => "stream.append",
        Command::StreamClose { .. } => "stream.close",
        Command::Entry { ask, .. } => match ask {
            EntryAsk::Set(entry) if entry.value.is_some() => "entry.put",
            EntryAsk::Set(_) => "entry.delete",
            EntryAsk::Get { .. } => "entry.get",
            EntryAsk::List { .. } => "entry.list",
            EntryAsk::Watch { .. } => "entry.watch",
            EntryAsk::Unwatch { .. } => "entry.unwatch",
            // Between shards only.
            EntryAsk::Fetch { .. } => "fetch",
        },
        Command::Queue { ask } => match ask {
            QueueAsk::Declare(_) => "queue.declare",
            QueueAsk::Drop { .. } => "queue.drop",
            QueueAsk::List { .. } => "queue.list",
            QueueAsk::Pull { .. } => "pull",
            QueueAsk::Dead { .. } => "dead.list",
        },
        Command::Job { ask, .. } => match ask {
            JobAsk::Fail { .. } => "job.fail",
            JobAsk::Extend { .. } => "job.extend",
            JobAsk::Progress { .. } => "job.progress",
            JobAsk::Redrive => "dead.redrive",
            JobAsk::Drop => "dead.drop",
        },
        Command::Presence { act, .. } => match act {
            PresenceAct::Enter { .. } => "presence.enter",
            PresenceAct::Update { .. } => "presence.update",
            PresenceAct::Leave => "presence.leave",
            PresenceAct::Read { .. } => "read",
            PresenceAct::Watch(_) => "presence.watch",
            PresenceAct::Unwatch(_) => "presence.unwatch",
        },
    }
}

const FRAMES: &[&str] = &[
    "welcome",
    "authenticated",
    "revoked",
    "quota",
    "hello",
    "published",
    "committed",
    "subscribed",
    "unsubscribed",
    "acked",
    "marked",
    "pong",
    "history",
    "event",
    "stream.delta",
    "notice",
    "volatile",
    "gap",
    "refused",
    "goaway",
    "slow_down",
    "resumed",
    "lost",
    "entered",
    "updated",
    "left",
    "read",
    "watching",
    "unwatched",
    "presence",
    "receipts",
    "put",
    "deleted",
    "entries",
    "declared",
    "queue.dropped",
    "queues",
    "pulling",
    "job",
    "job.lost",
    "failed",
    "dead",
    "extended",
    "progressed",
    "dead.list",
    "redriven",
    "dropped",
    "group.declared",
    "group.dropped",
    "group.joined",
    "group.left",
    "group.acked",
    "group.lost",
    "group.run",
    "markers",
    "gap retention",
    "gap expired",
    "gap policy",
    "gap epoch",
    "gap damaged",
];

fn command_id(value: Option<&Value>) -> CommandId {
    match value {
        None => CommandId::None,
        Some(Value::Number(n)) => CommandId::Number(n.as_u64().unwrap()),
        Some(text) => CommandId::Text(InlineText::new(text.as_str().unwrap()).unwrap()),
    }
}

/// Event id as (epoch, offset).
fn event_id(text: &str) -> (u64, u64) {
    let mut parts = text.rsplitn(3, ':');
    let offset = parts.next().unwrap().parse().unwrap();
    (u64::from_str_radix(parts.next().unwrap(), 16).unwrap(), offset)
}

/// Builds what the encoder would be given for this frame, and encodes it.
fn encode_again(text: &str, out: &mut Vec<u8>) {
    let value: Value = serde_json::from_str(text).unwrap();
    let str = |key: &str| value[key].as_str().unwrap_or_default();
    let int = |key: &str| value[key].as_u64().unwrap_or_default();
    let id = command_id(value.get("id"));
    let epoch = u64::from_str_radix(str("epoch"), 16).unwrap_or(0);
    let durability = match str("durability") {
        "memory" => Durability::Memory,
        "volatile" => Durability::Volatile,
        _ => Durability::Disk,
    };
    let duplicate = value.get("duplicate").is_some();
    let (event_epoch, event_offset) = value.get("event_id").map_or((0, NO_OFFSET), |id| event_id(id.as_str().unwrap()));
    let reply = match str("type") {
        "welcome" => {
            let (expires_ms, limits) = (value["expires"].as_u64(), Limits::default());
            return encode::welcome(out, str("client"), expires_ms, int("shard") as u16, &limits);
        }
        "authenticated" => return encode::authenticated(out, &id, str("client"), int("expires")),
        "revoked" => return encode::revoked(out, &id),
        "quota" => {
            let bound = |kind: Kind| value["quota"][kind.name()].as_u64();
            let weight = value["quota"]["weight"].as_u64().unwrap() as u32;
            return encode::quota(out, &id, str("tenant"), &Quota { weight, max: Kind::ALL.map(bound) });
        }
        "goaway" => return encode::goaway(out, int("reconnect_after_ms")),
        "slow_down" => {
            let waits_for = match str("scope") {
                "client" => Refusal::NoCredit,
                "log" => Refusal::LogBehind,
                "tenant" => Refusal::OverShare,
                _ => Refusal::MailboxFull,
            };
            return encode::slow_down(out, waits_for, int("retry_after_ms"));
        }
        "resumed" => {
            let (sessions, patterns) = (int("sessions") as u32, value["patterns"] == true);
            let (client, token) = (str("client"), str("token"));
            return encode::resumed(out, &id, client, int("generation"), sessions, patterns, token, int("expires"));
        }
        "event" => return with_event(text, |view| encode::event(out, &view)),
        "history" => {
            let head = HistoryHead { session: str("session"), epoch, next: int("next"), tail: int("tail") };
            let page: Page<'_> = serde_json::from_str(text).unwrap();
            let records: Vec<Vec<u8>> = page.events.iter().map(|event| record_of(event.get())).collect();
            let views = records.iter().flat_map(|record| RecordView::checked(record).unwrap().events());
            return encode::history(out, &id, &head, views.map(PageItem::Event));
        }
        "stream.delta" => {
            let streams = value["streams"].as_array().unwrap();
            let raw = |part: &Value, key: &str| part.get(key).map_or(Vec::new(), |v| v.to_string().into_bytes());
            let part = |part: &Value| StreamPart {
                stream: part["stream"].as_str().unwrap().into(),
                topic: part["topic"].as_str().unwrap().into(),
                seqs: part["from_seq"].as_u64().unwrap()..part["to_seq"].as_u64().unwrap() + 1,
                text: raw(part, "delta").strip_prefix(b"\"").unwrap().strip_suffix(b"\"").unwrap().to_vec(),
                status: raw(part, "status"),
            };
            let parts: Vec<StreamPart> = streams.iter().map(part).collect();
            let (session, offset) = (str("session"), event_offset);
            let at = value["at"].as_str().map(|at| {
                let (slice, slice_seq) = at.split_once('.').unwrap();
                (SliceId(slice.parse().unwrap()), slice_seq.parse().unwrap())
            });
            return encode::streams(out, &StreamFrame { session, epoch: event_epoch, offset, at, parts: &parts });
        }
        "notice" => {
            let (session, topic) = (str("session"), str("topic"));
            return encode::notice(out, &Notice { session, epoch: event_epoch, offset: event_offset, topic });
        }
        "volatile" => {
            let data = value["data"].to_string();
            let event = VolatileEvent {
                session: str("session"),
                topic: str("topic"),
                client_id: str("client"),
                after_offset: int("after_offset"),
                counter: int("n"),
                data: data.as_bytes(),
                data_kind: DataKind::Json,
                traceparent: str("traceparent"),
            };
            return encode::volatile(out, &event);
        }
        "gap" => {
            let reason = match str("reason") {
                "retention" => GapReason::Retention,
                "expired" => GapReason::Expired,
                "policy" => GapReason::Policy,
                "epoch" => GapReason::Epoch,
                _ => GapReason::Damaged,
            };
            if value.get("patterns").is_some() {
                let slice = value.get("slice").map(|_| (SliceId(int("slice") as u16), int("from"), int("to")));
                return encode::pattern_gap(out, &PatternGap { slice, reason });
            }
            let gap = Gap { session: str("session"), epoch, from: int("from"), to: int("to"), reason };
            return encode::gap(out, &gap);
        }
        "entries" => return work::entries_again(text, &id, out),
        "job" => return work::job_again(text, out),
        "dead.list" => return work::dead_again(&value, &id, out),
        "group.run" => return groups::run_again(text, out),
        "group.declared" | "group.dropped" | "group.joined" | "group.left" | "group.acked" | "group.lost"
        | "markers" => {
            return groups::reply_again(&value, &id, out);
        }
        "put" | "deleted" | "declared" | "queue.dropped" | "queues" | "pulling" | "failed" | "dead" | "extended"
        | "progressed" | "redriven" | "dropped" | "job.lost" => return work::reply_again(&value, &id, out),
        "watching" | "unwatched" if str("of") == "entries" => return work::reply_again(&value, &id, out),
        "presence" | "receipts" => return roster_again(&value, out),
        "entered" | "updated" | "left" | "read" | "watching" | "unwatched" => {
            let (state, data, lease_ms) = (PresenceState::Idle, None, int("lease_ms"));
            let of = if str("of") == "receipts" { RosterKind::Receipts } else { RosterKind::Presence };
            let reply = match str("type") {
                "entered" => PresenceReply::Entered { state, data, lease_ms, log: false },
                "updated" => PresenceReply::Updated { state, data, lease_ms, log: false },
                "left" => PresenceReply::Left,
                "read" => PresenceReply::Read { delivered: 0, read: int("offset"), lease_ms },
                "watching" => PresenceReply::Watching(of),
                _ => PresenceReply::Unwatched(of),
            };
            Reply::Presence { session: str("session"), reply }
        }
        "hello" => Reply::Hello,
        "published" if durability == Durability::Volatile => {
            Reply::PublishedVolatile { after_offset: int("after_offset") }
        }
        "published" => {
            let session = str("event_id").rsplitn(3, ':').nth(2).unwrap_or("demo");
            Reply::Published { session, epoch: event_epoch, offset: event_offset, durability, duplicate }
        }
        "committed" => Reply::Committed {
            session: str("session"),
            epoch: event_epoch,
            offset: event_offset,
            count: int("count") as u32,
            durability,
            duplicate,
            revision: int("revision"),
        },
        "subscribed" if value.get("patterns").is_some() => Reply::SubscribedPatterns { position: str("position") },
        "subscribed" => {
            let joins = value.get("joins").is_some();
            Reply::Subscribed { session: str("session"), epoch, next: int("next"), earliest: int("earliest"), joins }
        }
        "unsubscribed" => Reply::Unsubscribed,
        "acked" => Reply::Acknowledged,
        "marked" => Reply::Marked { session: str("session"), name: str("name"), offset: int("offset") },
        "pong" => Reply::Pong { time_ms: int("time") },
        "lost" => Reply::Lost { session: str("session"), refused: refused_of(&value) },
        "refused" => Reply::Refused(refused_of(&value)),
        other => panic!("no such frame: {other}"),
    };
    encode::reply(out, &id, &reply);
}

fn refused_of(value: &Value) -> Refused {
    Refused {
        refusal: Refusal::from_code(value["code"].as_u64().unwrap() as u16)
            .unwrap_or_else(|| panic!("unknown code: {value}")),
        field: value["field"].as_str().unwrap_or_default().to_owned().leak(),
        retry_after_ms: value.get("retry_after_ms").map(|ms| ms.as_u64().unwrap() as u32),
        expected: value.get("expected").map(|n| n.as_u64().unwrap()),
    }
}

/// A frame about a roster.
fn roster_again(value: &Value, out: &mut Vec<u8>) {
    let int = |value: &Value, key: &str| value[key].as_u64().unwrap_or_default();
    let flag = |key: &str| value[key].as_bool().unwrap_or_default();
    let lists = [("joined", Happened::Joined), ("updated", Happened::Updated), ("left", Happened::Left)];
    let mut entries = Vec::new();
    for (key, happened) in lists {
        for one in value[key].as_array().into_iter().flatten() {
            let client = one["client"].as_str().or(one.as_str()).unwrap().to_owned();
            let data = one.get("data").map(|data| data.to_string());
            let state = PresenceState::ALL.into_iter().find(|state| Some(state.name()) == one["state"].as_str());
            entries.push((client, happened, state, data, int(one, "delivered"), int(one, "read")));
        }
    }
    let changes: Vec<RosterChange<'_>> = entries
        .iter()
        .map(|(client, happened, state, data, delivered, read)| {
            let value = match state {
                Some(state) => RosterValue::Presence { state: *state, data: data.as_ref().map(String::as_bytes) },
                None => RosterValue::Receipt { delivered: *delivered, read: *read },
            };
            RosterChange { client, happened: *happened, value }
        })
        .collect();
    let all = value.get("all").map(|all| ReceiptsOfAll {
        count: int(all, "count"),
        delivered: int(all, "delivered"),
        read: int(all, "read"),
    });
    let frame = RosterFrame {
        kind: if value["type"] == "receipts" { RosterKind::Receipts } else { RosterKind::Presence },
        session: value["session"].as_str().unwrap(),
        snapshot: flag("snapshot"),
        after: int(value, "after"),
        version: int(value, "version"),
        more: flag("more"),
        complete: flag("complete"),
        changes: &changes,
        all,
    };
    encode::roster(out, &frame);
    assert!(out.len() + 10 <= frame.bytes_max(), "the outbox is promised room for any frame");
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    events: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct EventFrame<'a> {
    event_id: &'a str,
    session: &'a str,
    topic: &'a str,
    client: &'a str,
    #[serde(default)]
    message_id: &'a str,
    prev_event_id: Option<&'a str>,
    time: u64,
    at: &'a str,
    #[serde(default)]
    traceparent: &'a str,
    data_kind: Option<&'a str>,
    stream: Option<&'a str>,
    seq: Option<u64>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

/// The record an event frame was made from.
fn record_of(text: &str) -> Vec<u8> {
    use base64::Engine;
    let frame: EventFrame<'_> = serde_json::from_str(text).unwrap();
    let (epoch, offset) = event_id(frame.event_id);
    let (slice, slice_seq) = frame.at.split_once('.').unwrap();
    let data = frame.status.or(frame.data).map_or("null", RawValue::get);
    let bytes = match frame.data_kind {
        None => data.as_bytes().to_vec(),
        Some(_) => base64::engine::general_purpose::STANDARD.decode(data.trim_matches('"')).unwrap(),
    };
    let data_kind = match (frame.stream, frame.status, frame.data_kind) {
        (Some(_), Some(_), _) => DataKind::Close,
        (Some(_), None, _) => DataKind::Delta,
        (None, _, Some(_)) => DataKind::Bytes,
        (None, _, None) => DataKind::Json,
    };
    let event = EventBody {
        topic: frame.topic,
        client_id: frame.client,
        message_id: frame.stream.unwrap_or(frame.message_id),
        traceparent: frame.traceparent,
        data: &bytes,
        data_kind: data_kind as u8,
        prev_offset: frame.prev_event_id.map_or(NO_OFFSET, |id| event_id(id).1),
        expires_ms: 0,
        producer_epoch: 0,
        producer_seq: frame.seq.unwrap_or(NO_OFFSET),
        dedupe_low: 1,
        dedupe_high: 1,
        body_hash: 0,
    };
    let body = CommitBody { tenant: "default", session: frame.session, events: &[event], markers: &[] };
    let slice = SliceId(slice.parse().unwrap());
    let head = RecordHead {
        length: 0,
        kind: RecordKind::Commit,
        slice,
        count: 1,
        slice_seq: slice_seq.parse().unwrap(),
        partition: PartitionId(u128::from(slice.0) << 118),
        offset,
        epoch,
        time_ms: frame.time,
        log_seq: 0,
        body_bytes: 0,
    };
    let mut record = vec![0; commit_bytes_max(&body)];
    let length = encode_commit(&head, &body, &mut record);
    record.truncate(length);
    record
}

fn with_event(text: &str, each: impl FnOnce(storage::record::EventView<'_>)) {
    let record = record_of(text);
    let view = RecordView::checked(&record).unwrap().events().next().unwrap();
    assert!(text.len() <= event_bytes_max(&view), "the outbox is promised room for any event");
    each(view);
}
