//! Entries, queues and jobs: answers and frames.
//!
//! ```text
//!   {"type":"put","id":1,"session":"demo","key":"k","revision":3,"durability":"disk"}
//!   {"type":"entries","id":2,"bucket":"b","prefix":"a","after":3,"revision":7,"snapshot":true,"more":true,
//!    "entries":[{"key":"k","revision":3,"expires":1767225600000,"data":…}],"deleted":[{"key":"x","revision":6,"expired":true}]}
//!   {"type":"job","queue":"q","job":"q/demo:00f1e2d3c4b5a697:4","lease":"1.8899aabbccddeeff","attempt":1,"lease_ms":5000, …
//!    "deadline":1767225610000,"time":1767225600000,"event_id":"demo:00f1e2d3c4b5a697:4","session":"demo","topic":"job.llm", … ,"data":…}
//! ```
//! What has nothing to say is left out.

use super::{begin, durability_name, event_id, hex16, number, payload, text};
use shards::command::JobName;
use shards::command::work::BUCKET;
use shards::effect::{JobHappened, WorkReply, queue_items};
use shards::ids::CommandId;
use shards::outbox::{DeadFrame, EntriesFrame, JobFrame};
use storage::record::EntryAct;

/// A session, or the bucket that it stands for.
fn place(out: &mut Vec<u8>, session: &str) {
    match session.strip_prefix(BUCKET) {
        Some(bucket) => {
            text(out, ",\"bucket\":\"");
            text(out, bucket);
        }
        None => {
            text(out, ",\"session\":\"");
            text(out, session);
        }
    }
    text(out, "\"");
}

/// The answer to a command, without the brace at its end.
pub(super) fn reply(out: &mut Vec<u8>, id: &CommandId, reply: &WorkReply<'_>) {
    match *reply {
        WorkReply::Put { session, key, revision, durability }
        | WorkReply::Deleted { session, key, revision, durability } => {
            begin(out, if matches!(reply, WorkReply::Put { .. }) { "put" } else { "deleted" }, id);
            place(out, session);
            text(out, ",\"key\":\"");
            text(out, key);
            text(out, "\",\"revision\":");
            number(out, revision);
            text(out, ",\"durability\":\"");
            text(out, durability_name(durability));
            text(out, "\"");
        }
        WorkReply::Watching { session, prefix } | WorkReply::Unwatched { session, prefix } => {
            begin(out, if matches!(reply, WorkReply::Watching { .. }) { "watching" } else { "unwatched" }, id);
            place(out, session);
            text(out, ",\"of\":\"entries\",\"prefix\":\"");
            text(out, prefix);
            text(out, "\"");
        }
        WorkReply::Queues { items, more } => {
            begin(out, "queues", id);
            text(out, ",\"queues\":[");
            let mut before = "{\"queue\":\"";
            for item in queue_items(items) {
                text(out, before);
                before = ",{\"queue\":\"";
                text(out, item.queue);
                let numbers = [
                    ("\",\"capacity\":", item.capacity),
                    (",\"lease_ms\":", item.lease_ms),
                    (",\"deadline_ms\":", item.deadline_ms),
                    (",\"attempts\":", item.attempts.into()),
                ];
                for (name, value) in numbers {
                    text(out, name);
                    number(out, value);
                }
                text(out, "}");
            }
            text(out, if more { "],\"more\":true" } else { "]" });
        }
        WorkReply::Declared { queue } | WorkReply::QueueDropped { queue } => {
            begin(out, if matches!(reply, WorkReply::Declared { .. }) { "declared" } else { "queue.dropped" }, id);
            text(out, ",\"queue\":\"");
            text(out, queue);
            text(out, "\"");
        }
        WorkReply::Pulling { queue, credit } => {
            begin(out, "pulling", id);
            text(out, ",\"queue\":\"");
            text(out, queue);
            text(out, "\",\"credit\":");
            number(out, credit);
        }
        WorkReply::GroupDeclared { .. }
        | WorkReply::GroupDropped { .. }
        | WorkReply::GroupJoined { .. }
        | WorkReply::GroupAcked { .. }
        | WorkReply::GroupLost { .. }
        | WorkReply::Markers { .. } => super::groups::reply(out, id, reply),
        WorkReply::Job { session, job, happened } => {
            let kind = match happened {
                JobHappened::Failed { .. } => "failed",
                JobHappened::Dead { .. } => "dead",
                JobHappened::Extended { .. } => "extended",
                JobHappened::Progressed => "progressed",
                JobHappened::Lost { .. } => "job.lost",
                JobHappened::Redriven => "redriven",
                JobHappened::Dropped => "dropped",
            };
            begin(out, kind, id);
            text(out, ",\"job\":\"");
            job_name(out, session, &job);
            text(out, "\"");
            match happened {
                JobHappened::Failed { attempts } | JobHappened::Dead { attempts } => {
                    text(out, ",\"attempts\":");
                    number(out, attempts.into());
                }
                JobHappened::Extended { lease_ms } => {
                    text(out, ",\"lease_ms\":");
                    number(out, lease_ms);
                }
                JobHappened::Lost { cancelled: true } => text(out, ",\"cancelled\":true"),
                _ => {}
            }
        }
    }
}

/// `queue/session:epoch:offset`
fn job_name(out: &mut Vec<u8>, session: &str, job: &JobName<'_>) {
    text(out, job.queue);
    text(out, "/");
    event_id(out, session, job.epoch, job.offset);
}

/// A job for a worker.
pub fn job(out: &mut Vec<u8>, frame: &JobFrame<'_>) {
    let JobFrame { queue, session, epoch, offset, lease, .. } = *frame;
    text(out, "{\"type\":\"job\",\"queue\":\"");
    text(out, queue);
    text(out, "\",\"job\":\"");
    job_name(out, session, &JobName { queue, epoch, offset });
    text(out, "\",\"lease\":\"");
    number(out, lease.attempt.into());
    text(out, ".");
    hex16(out, lease.nonce);
    text(out, "\",\"attempt\":");
    number(out, lease.attempt.into());
    text(out, ",\"lease_ms\":");
    number(out, frame.lease_ms);
    text(out, ",\"deadline\":");
    number(out, frame.deadline_ms);
    text(out, ",\"time\":");
    number(out, frame.time_ms);
    text(out, ",\"event_id\":\"");
    event_id(out, session, epoch, offset);
    text(out, "\",\"session\":\"");
    text(out, session);
    text(out, "\",\"topic\":\"");
    text(out, frame.topic);
    text(out, "\",\"client\":\"");
    text(out, frame.client_id);
    if !frame.message_id.is_empty() {
        text(out, "\",\"message_id\":\"");
        text(out, frame.message_id);
    }
    if let Some(offset) = frame.prev_offset {
        text(out, "\",\"prev_event_id\":\"");
        event_id(out, session, epoch, offset);
    }
    if !frame.traceparent.is_empty() {
        text(out, "\",\"traceparent\":\"");
        text(out, frame.traceparent);
    }
    payload(out, frame.data, frame.data_kind);
}

/// A page of dead letters.
pub fn dead(out: &mut Vec<u8>, id: &CommandId, frame: &DeadFrame<'_>) {
    begin(out, "dead.list", id);
    text(out, ",\"queue\":\"");
    text(out, frame.queue);
    text(out, "\",\"dead\":[");
    let mut before = "{\"job\":\"";
    for item in frame.items() {
        text(out, before);
        before = ",{\"job\":\"";
        job_name(out, item.session, &JobName { queue: frame.queue, epoch: item.epoch, offset: item.offset });
        text(out, "\",\"attempts\":");
        number(out, item.attempts.into());
        text(out, ",\"time\":");
        number(out, item.time_ms);
        text(out, "}");
    }
    text(out, "]");
    if let Some(next) = frame.next {
        text(out, ",\"next\":");
        number(out, next);
    }
    text(out, "}");
}

/// A page of entries: the answer to a command, or what has changed for a watcher.
pub fn entries(out: &mut Vec<u8>, id: &CommandId, frame: &EntriesFrame<'_>) {
    begin(out, "entries", id);
    place(out, frame.session);
    if let Some(prefix) = frame.prefix {
        text(out, ",\"prefix\":\"");
        text(out, prefix);
        text(out, "\"");
    }
    if let Some(after) = frame.after {
        text(out, ",\"after\":");
        number(out, after);
    }
    text(out, ",\"revision\":");
    number(out, frame.revision);
    text(out, if frame.snapshot { ",\"snapshot\":true" } else { "" });
    text(out, if frame.more { ",\"more\":true" } else { "" });
    text(out, ",\"entries\":[");
    let mut before = "{\"key\":\"";
    for item in frame.items().filter(|item| item.act == EntryAct::Put) {
        text(out, before);
        before = ",{\"key\":\"";
        text(out, item.key);
        text(out, "\",\"revision\":");
        number(out, item.revision);
        if item.expires_ms > 0 {
            text(out, ",\"expires\":");
            number(out, item.expires_ms);
        }
        text(out, ",\"data\":");
        out.extend_from_slice(item.value);
        text(out, "}");
    }
    text(out, "]");
    let mut before = ",\"deleted\":[{\"key\":\"";
    for item in frame.items().filter(|item| item.act != EntryAct::Put) {
        text(out, before);
        before = ",{\"key\":\"";
        text(out, item.key);
        text(out, "\",\"revision\":");
        number(out, item.revision);
        text(out, if item.act == EntryAct::Expired { ",\"expired\":true}" } else { "}" });
    }
    text(out, if before.starts_with(",{") { "]}" } else { "}" });
}
