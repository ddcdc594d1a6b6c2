//! `/v1/why`: what became of one event: when it passed each stage, who got it, who has not and why.
//!
//! ```text
//!   session:epoch:offset ─► every shard: whose is it? ─► the owner's answer: state, way, topic
//!                                                            │
//!                           every shard: whose cursor? ◄─────┘ ─► readers
//! ```

use super::request::{Answer, Status};
use super::{ANSWER_WITHIN, Desk};
use crate::http::Asked;
use crate::reactor::control::Control;
use crate::reactor::look::{EventLook, Look, ReadersLook};
use crate::wire::lives;
use serde_json::{Value, json};
use shards::traces::Trace;
use shards::why::{self, Found, Standing};
use std::time::{Duration, Instant};

/// Everybody's tenant while no key is configured.
const TENANT: &str = "default";
/// A session that is being brought from disk is asked for again this often, and this many times.
const ASK_AGAIN: Duration = Duration::from_millis(50);
const ASK_TIMES: usize = 20;

impl Desk {
    pub(super) fn why(&self, asked: &Asked) -> Answer {
        let tenant = asked.value("tenant").unwrap_or_else(|| TENANT.to_owned());
        let Some(mut event) = asked.value("event").and_then(|id| named(&id, &tenant)) else {
            return Answer::refused(Status::BadRequest, "give event=SESSION:EPOCH:OFFSET, as the server gave it");
        };
        let Some(owner) = self.owner(&event) else {
            return Answer::refused(Status::Busy, "the shard of this session does not answer: ask again");
        };
        event.topic = owner.looked_up.topic.clone();
        event.log_seq = owner.looked_up.trace.map(|trace| trace.log_seq);
        let looks = self.ask(|reply| Look::Readers { asked: event.clone(), reply });
        Answer::json(&told(&event, &owner, &looks, self.peers.len()))
    }

    fn owner(&self, event: &why::Asked) -> Option<EventLook> {
        let mut answer = None;
        for _ in 0..ASK_TIMES {
            let looks = self.ask(|reply| Look::Event { asked: event.clone(), reply });
            answer = looks.into_iter().find(|look| look.looked_up.found != Found::Elsewhere);
            if answer.as_ref().is_none_or(|look| look.looked_up.found != Found::Loading) {
                break;
            }
            std::thread::sleep(ASK_AGAIN);
        }
        answer
    }

    /// Asks every shard; those that do not answer in time are missing.
    fn ask<T>(&self, look: impl Fn(flume::Sender<T>) -> Look) -> Vec<T> {
        let (reply, replies) = flume::bounded(self.peers.len());
        for peer in self.peers.iter() {
            if peer.control.try_send(Control::Look(look(reply.clone()))).is_ok() {
                peer.waker.wake();
            }
        }
        drop(reply);
        let deadline = Instant::now() + ANSWER_WITHIN;
        std::iter::from_fn(|| replies.recv_deadline(deadline).ok()).take(self.peers.len()).collect()
    }
}

/// Read from the right: a session's name may hold colons.
fn named(id: &str, tenant: &str) -> Option<why::Asked> {
    let mut parts = id.rsplitn(3, ':');
    let offset = parts.next()?.parse().ok()?;
    let epoch = u64::from_str_radix(parts.next().filter(|epoch| epoch.len() == 16)?, 16).ok()?;
    let epoch = lives::stored(epoch);
    let session = parts.next().filter(|session| !session.is_empty())?.to_owned();
    Some(why::Asked { tenant: tenant.to_owned(), session, epoch, offset, topic: None, log_seq: None })
}

fn told(event: &why::Asked, owner: &EventLook, looks: &[ReadersLook], shards: usize) -> Value {
    let known = &owner.looked_up;
    let [first, committed, next] = known.offsets;
    let readers: Vec<Value> = looks.iter().flat_map(readers_of).collect();
    let stages = known.trace.map(|trace| stages(&trace, owner.out)).unwrap_or_default();
    let slowest = stages.iter().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(stage, _)| *stage);
    let came_ns =
        known.trace.map(|trace| if trace.stamps.came_ns > 0 { trace.stamps.came_ns } else { trace.appended_ns });
    json!({
        "event_id": format!("{}:{:016x}:{}", event.session, lives::shown(event.epoch), event.offset),
        "tenant": event.tenant,
        "owner": owner.shard.0,
        "state": words_of(known.found),
        "session": {"first": first, "committed": committed, "next": next},
        "topic": known.topic,
        "age_ms": came_ns.map(|ns| known.now_ns.saturating_sub(ns) as f64 / 1e6),
        "stages": stages.iter().map(|(stage, us)| json!({"stage": stage, "us": us})).collect::<Vec<_>>(),
        "slowest": slowest,
        "commit": known.trace.filter(|trace| trace.closed_ns > 0).map(|trace| json!({
            "group_us": us(trace.appended_ns, trace.closed_ns),
            "disk_us": us(trace.closed_ns, trace.committed_ns),
        })),
        "total_us": known.trace.map(|trace| trace.total_ns() as f64 / 1000.0),
        "trace": match known.trace {
            Some(_) => "kept",
            None => "not kept: it is not among the last events of its shard, nor the last slow ones, or was appended before the last start",
        },
        "readers": readers,
        "readers_unnamed": looks.iter().map(|look| look.more).sum::<usize>(),
        "shards_silent": shards - looks.len(),
        "not_shown": "clients that are not connected",
    })
}

fn us(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 / 1000.0
}

/// What each stage took, in the order of the way; stages that were not passed, or are not known, are left out.
fn stages(trace: &Trace, out: Option<(u64, u64)>) -> Vec<(&'static str, f64)> {
    let stamps = trace.stamps;
    let (submit_ns, taken_ns) = out.unwrap_or_default();
    let steps = [
        ("socket_in", stamps.came_ns, stamps.begun_ns),
        ("decode", stamps.begun_ns, stamps.decoded_ns),
        ("mailbox", stamps.sent_ns, stamps.taken_ns),
        ("append", stamps.decoded_ns.max(stamps.taken_ns), trace.appended_ns),
        ("commit", trace.appended_ns, trace.committed_ns),
        ("deliver", trace.committed_ns, trace.delivered_ns),
        ("socket_out", submit_ns, taken_ns),
    ];
    let passed = steps.into_iter().filter(|(_, from, to)| *from > 0 && *to > 0);
    passed.map(|(stage, from, to)| (stage, us(from, to))).collect()
}

fn readers_of(look: &ReadersLook) -> impl Iterator<Item = Value> + '_ {
    look.named.iter().map(|(reader, queued_bytes, queued_us)| {
        let got = reader.standing == Standing::Delivered;
        json!({
            "client": reader.client_id,
            "shard": look.shard.0,
            "by": if reader.by_pattern { "pattern" } else { "session" },
            "cursor": reader.cursor,
            "got": got,
            "why": match (reader.standing, queued_bytes) {
                (Standing::Delivered, 0) => "sent to its socket",
                (Standing::Delivered, _) => "in its send queue, or sent before what is in it",
                (standing, _) => reason_of(standing),
            },
            "queued_bytes": queued_bytes,
            "queued_ms": *queued_us as f64 / 1000.0,
        })
    })
}

fn reason_of(standing: Standing) -> &'static str {
    match standing {
        Standing::Delivered => "sent to its socket",
        Standing::NotForIt => "it subscribed after this event",
        Standing::Attaching => "its subscription has not begun: the session's shard has not answered",
        Standing::Live => "it is at the live point, which has not come to this event",
        Standing::Queued => "it is behind: waits for its turn to be read from the log",
        Standing::Reading => "it is behind: a read is under way",
        Standing::NoCredit => "out of credit: it has to acknowledge what it has",
        Standing::NoRoom => "its send queue is full: it does not read",
        Standing::Unknown => "not known for an event whose way is not kept",
    }
}

fn words_of(found: Found) -> Value {
    match found {
        Found::Elsewhere => json!("owned by another shard"),
        Found::Loading => json!("its session is being brought from disk: ask again"),
        Found::NoSession => json!("no such session in this tenant"),
        Found::OtherEpoch(epoch) => {
            json!(format!("the session lives under another epoch: {:016x}", lives::shown(epoch)))
        }
        Found::Beyond => json!("never appended"),
        Found::Uncommitted => json!("appended, not durable"),
        Found::Expired => json!("removed by retention"),
        Found::Committed => json!("durable"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_id_is_read_from_the_right() {
        let event = named("a:b:00000000000000ff:7", "t").unwrap();
        assert_eq!((&*event.session, event.epoch, event.offset), ("a:b", 255, 7));
        for bad in ["", "x", "a:ff:7", "a:00000000000000ff:", ":00000000000000ff:7", "a:00000000000000fg:7"] {
            assert_eq!(named(bad, "t"), None, "{bad}");
        }
    }
}
