//! Frames about entries, queues and jobs, made again from their text.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use shards::command::{DataKind, Durability, JobName, Lease};
use shards::effect::{JobHappened, QueueItem, Reply, WorkReply, put_queue_item};
use shards::ids::CommandId;
use shards::outbox::{DeadFrame, DeadJob, EntriesFrame, JobFrame};
use storage::record::EntryAct;
use tidegate::wire::encode;

/// A session, or the one that stands for a bucket.
fn session_of(value: &Value) -> String {
    match value["bucket"].as_str() {
        Some(bucket) => format!("$entries.{bucket}"),
        None => value["session"].as_str().unwrap_or_default().to_owned(),
    }
}

/// Queue, session, epoch and offset of a job's name.
fn name_of(job: &str) -> (&str, &str, u64, u64) {
    let (queue, event) = job.split_once('/').unwrap();
    let (rest, offset) = event.rsplit_once(':').unwrap();
    let (session, epoch) = rest.rsplit_once(':').unwrap();
    (queue, session, u64::from_str_radix(epoch, 16).unwrap(), offset.parse().unwrap())
}

pub fn reply_again(value: &Value, id: &CommandId, out: &mut Vec<u8>) {
    let str = |key: &str| value[key].as_str().unwrap_or_default();
    let int = |key: &str| value[key].as_u64().unwrap_or_default();
    let session = session_of(value);
    let session = session.as_str();
    let durability = Durability::Disk;
    let (key, prefix, queue, revision) = (str("key"), str("prefix"), str("queue"), int("revision"));
    let attempts = int("attempts") as u16;
    let happened = match str("type") {
        "failed" => Some(JobHappened::Failed { attempts }),
        "dead" => Some(JobHappened::Dead { attempts }),
        "extended" => Some(JobHappened::Extended { lease_ms: int("lease_ms") }),
        "progressed" => Some(JobHappened::Progressed),
        "redriven" => Some(JobHappened::Redriven),
        "dropped" => Some(JobHappened::Dropped),
        "job.lost" => Some(JobHappened::Lost { cancelled: value["cancelled"] == true }),
        _ => None,
    };
    if let Some(happened) = happened {
        let (queue, session, epoch, offset) = name_of(str("job"));
        let job = JobName { queue, epoch, offset };
        return encode::reply(out, id, &Reply::Work(WorkReply::Job { session, job, happened }));
    }
    let mut items = Vec::new();
    for item in value["queues"].as_array().into_iter().flatten() {
        let int = |key: &str| item[key].as_u64().unwrap();
        let queue = item["queue"].as_str().unwrap();
        let (capacity, lease_ms, deadline_ms) = (int("capacity"), int("lease_ms"), int("deadline_ms"));
        let attempts = int("attempts") as u16;
        put_queue_item(&mut items, &QueueItem { queue, capacity, lease_ms, deadline_ms, attempts });
    }
    let reply = match str("type") {
        "queues" => WorkReply::Queues { items: &items, more: value["more"] == true },
        "queue.dropped" => WorkReply::QueueDropped { queue },
        "put" => WorkReply::Put { session, key, revision, durability },
        "deleted" => WorkReply::Deleted { session, key, revision, durability },
        "watching" => WorkReply::Watching { session, prefix },
        "unwatched" => WorkReply::Unwatched { session, prefix },
        "declared" => WorkReply::Declared { queue },
        _ => WorkReply::Pulling { queue, credit: int("credit") },
    };
    encode::reply(out, id, &Reply::Work(reply));
}

#[derive(Deserialize)]
struct EntriesText<'a> {
    prefix: Option<&'a str>,
    after: Option<u64>,
    revision: u64,
    #[serde(default)]
    snapshot: bool,
    #[serde(default)]
    more: bool,
    #[serde(borrow)]
    entries: Vec<ItemText<'a>>,
    #[serde(borrow, default)]
    deleted: Vec<ItemText<'a>>,
}

#[derive(Deserialize)]
struct ItemText<'a> {
    key: &'a str,
    revision: u64,
    #[serde(default)]
    expires: u64,
    #[serde(default)]
    expired: bool,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

/// As the core packs an item of a page: an act, its revision, when it goes, key and value.
fn put_item(items: &mut Vec<u8>, act: EntryAct, item: &ItemText<'_>) {
    items.push(act as u8);
    items.extend_from_slice(&item.revision.to_le_bytes());
    items.extend_from_slice(&item.expires.to_le_bytes());
    for bytes in [item.key.as_bytes(), item.data.map_or("", RawValue::get).as_bytes()] {
        items.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        items.extend_from_slice(bytes);
    }
}

pub fn entries_again(text: &str, id: &CommandId, out: &mut Vec<u8>) {
    let session = session_of(&serde_json::from_str(text).unwrap());
    let page: EntriesText<'_> = serde_json::from_str(text).unwrap();
    let mut items = Vec::new();
    page.entries.iter().for_each(|item| put_item(&mut items, EntryAct::Put, item));
    page.deleted.iter().for_each(|item| {
        put_item(&mut items, if item.expired { EntryAct::Expired } else { EntryAct::Deleted }, item);
    });
    let EntriesText { prefix, after, revision, snapshot, more, .. } = page;
    let frame = EntriesFrame { session: &session, prefix, after, revision, snapshot, more, items: &items };
    encode::entries(out, id, &frame);
    assert!(out.len() + 10 <= frame.bytes_max(), "the outbox is promised room for any frame");
}

#[derive(Deserialize)]
struct JobText<'a> {
    job: &'a str,
    lease: &'a str,
    lease_ms: u64,
    deadline: u64,
    topic: &'a str,
    client: &'a str,
    #[serde(default)]
    message_id: &'a str,
    prev_event_id: Option<&'a str>,
    time: u64,
    #[serde(default)]
    traceparent: &'a str,
    #[serde(borrow)]
    data: &'a RawValue,
}

pub fn job_again(text: &str, out: &mut Vec<u8>) {
    let job: JobText<'_> = serde_json::from_str(text).unwrap();
    let (queue, session, epoch, offset) = name_of(job.job);
    let (attempt, nonce) = job.lease.split_once('.').unwrap();
    let lease = Lease { attempt: attempt.parse().unwrap(), nonce: u64::from_str_radix(nonce, 16).unwrap() };
    let frame = JobFrame {
        queue,
        session,
        epoch,
        offset,
        lease,
        deadline_ms: job.deadline,
        lease_ms: job.lease_ms,
        topic: job.topic,
        client_id: job.client,
        message_id: job.message_id,
        traceparent: job.traceparent,
        time_ms: job.time,
        prev_offset: job.prev_event_id.map(|id| id.rsplit_once(':').unwrap().1.parse().unwrap()),
        data_kind: DataKind::Json,
        data: job.data.get().as_bytes(),
    };
    encode::job(out, &frame);
    assert!(out.len() + 10 <= frame.bytes_max(), "the outbox is promised room for any frame");
}

pub fn dead_again(value: &Value, id: &CommandId, out: &mut Vec<u8>) {
    let mut items = Vec::new();
    for one in value["dead"].as_array().unwrap() {
        let (_, session, epoch, offset) = name_of(one["job"].as_str().unwrap());
        let (attempts, time_ms) = (one["attempts"].as_u64().unwrap() as u16, one["time"].as_u64().unwrap());
        put_dead(&mut items, &DeadJob { session, epoch, offset, attempts, time_ms });
    }
    let frame = DeadFrame { queue: value["queue"].as_str().unwrap(), next: value["next"].as_u64(), items: &items };
    encode::dead(out, id, &frame);
    assert!(out.len() + 10 <= frame.bytes_max(), "the outbox is promised room for any frame");
}

/// As the core packs a dead letter.
fn put_dead(items: &mut Vec<u8>, dead: &DeadJob<'_>) {
    items.extend_from_slice(&(dead.session.len() as u32).to_le_bytes());
    items.extend_from_slice(dead.session.as_bytes());
    items.extend_from_slice(&dead.epoch.to_le_bytes());
    items.extend_from_slice(&dead.offset.to_le_bytes());
    items.extend_from_slice(&dead.attempts.to_le_bytes());
    items.extend_from_slice(&dead.time_ms.to_le_bytes());
}
