//! Commands about entries, queues and jobs, read the long way.

use super::{ENTRY_BYTES_MAX, No, Object, PROGRESS_BYTES_MAX, Tree, epoch, is_name, is_pattern, number};
use shards::command::{Command, EntryAsk, Fallback, JobAsk, JobName, JobOrder, Lease, NewEntry, NewQueue, QueueAsk};
use shards::refusal::Refusal;

fn set<'a>(fields: &Object<'a>) -> Result<NewEntry<'a>, No> {
    let key = fields.name("key")?;
    let value = match fields.node("data") {
        Some(node) if node.depth > 64 => return Err(fields.no(Refusal::BadData, "data")),
        Some(node) if node.raw.len() > ENTRY_BYTES_MAX => return Err(fields.no(Refusal::EntryTooLarge, "data")),
        node => node.map(|node| node.raw.as_bytes()),
    };
    let ttl_ms = fields.optional("ttl_ms", Object::integer)?;
    if ttl_ms == Some(0) {
        return Err(fields.no(Refusal::OutOfRange, "ttl_ms"));
    }
    Ok(NewEntry { key, value, ttl_ms, if_revision: fields.optional("if_revision", Object::integer)? })
}

pub(super) fn commit_entries<'a>(fields: &Object<'a>) -> Result<Vec<NewEntry<'a>>, No> {
    let Some(node) = fields.get("entries") else { return Ok(Vec::new()) };
    let Tree::Array(nodes) = &node.tree else { return Err(fields.no(Refusal::WrongType, "entries")) };
    let bounded = |(at, node)| match at {
        64 => Err(fields.no(Refusal::CommandTooLarge, "entries")),
        _ => fields.inside("entries", node, set),
    };
    nodes.iter().enumerate().map(bounded).collect()
}

pub(super) fn lease(fields: &Object<'_>) -> Result<Lease, No> {
    let parsed = |text: &str| {
        let (attempt, nonce) = text.split_once('.')?;
        let attempt = number(attempt).filter(|_| attempt.len() <= 5)?.try_into().ok()?;
        Some(Lease { attempt, nonce: epoch(nonce)? })
    };
    parsed(fields.text("lease")?).ok_or_else(|| fields.no(Refusal::WrongType, "lease"))
}

/// Its session and its name.
fn job<'a>(fields: &Object<'a>) -> Result<(&'a str, JobName<'a>), No> {
    let parsed = |text: &'a str| {
        let (queue, event) = text.split_once('/')?;
        let (rest, offset) = event.rsplit_once(':')?;
        let (session, life) = rest.rsplit_once(':')?;
        let offset = number(offset).filter(|offset| *offset < 1 << 53)?;
        let name = JobName { queue, epoch: epoch(life)?, offset };
        (is_name(queue) && is_name(session)).then_some((session, name))
    };
    parsed(fields.text("job")?).ok_or_else(|| fields.no(Refusal::WrongType, "job"))
}

fn job_command(kind: &str, fields: &Object<'_>) -> Result<String, No> {
    let (session, job) = job(fields)?;
    let ask = match kind {
        "job.fail" => {
            let (lease, retry_after_ms) = (lease(fields)?, fields.optional("retry_after_ms", Object::integer)?);
            let retry = match fields.get("retry").map(|node| &*node.raw) {
                None | Some("true") => true,
                Some("false") => false,
                Some(_) => return Err(fields.no(Refusal::WrongType, "retry")),
            };
            JobAsk::Fail { lease, retry_after_ms, retry }
        }
        "job.extend" => {
            let (lease, lease_ms) = (lease(fields)?, fields.optional("lease_ms", Object::integer)?);
            if lease_ms == Some(0) {
                return Err(fields.no(Refusal::OutOfRange, "lease_ms"));
            }
            JobAsk::Extend { lease, lease_ms }
        }
        "job.progress" => {
            let lease = lease(fields)?;
            let node = fields.node("data").ok_or_else(|| fields.no(Refusal::MissingField, "data"))?;
            if node.depth > 64 {
                return Err(fields.no(Refusal::BadData, "data"));
            }
            if node.raw.len() > PROGRESS_BYTES_MAX {
                return Err(fields.no(Refusal::ProgressTooLarge, "data"));
            }
            JobAsk::Progress { lease, partial: node.raw.as_bytes() }
        }
        "dead.redrive" => JobAsk::Redrive,
        _ => JobAsk::Drop,
    };
    Ok(format!("{:?}", Command::Job { session, job, ask }))
}

/// The job that a commit into this session says that it ends, or that its sender holds.
pub(super) fn commit_job<'a>(
    fields: &Object<'a>,
    field: &str,
    session: &str,
) -> Result<Option<(JobName<'a>, Lease)>, No> {
    let Some(node) = fields.get(field) else { return Ok(None) };
    let (of, name, lease) = fields.inside(field, node, |inner| {
        let (of, name) = job(inner)?;
        Ok((of, name, lease(inner)?))
    })?;
    if of != session {
        return Err(fields.no(Refusal::CrossSession, field));
    }
    Ok(Some((name, lease)))
}

fn complete(fields: &Object<'_>) -> Result<String, No> {
    let ((session, name), lease) = (job(fields)?, lease(fields)?);
    super::commit_into(fields, session, Some((name, lease)))
}

pub(super) fn patterns<'a>(fields: &Object<'a>, field: &str) -> Result<Vec<&'a str>, No> {
    let Some(node) = fields.get(field) else { return Ok(Vec::new()) };
    let Tree::Array(nodes) = &node.tree else { return Err(fields.no(Refusal::WrongType, field)) };
    let mut patterns = Vec::new();
    for node in nodes {
        let Tree::Text(text) = &node.tree else { return Err(fields.no(Refusal::WrongType, field)) };
        if patterns.len() == 16 {
            return Err(fields.no(Refusal::CommandTooLarge, field));
        }
        if !is_pattern(text) {
            return Err(fields.no(Refusal::BadPattern, field));
        }
        patterns.push(&**text);
    }
    Ok(patterns)
}

fn declare(fields: &Object<'_>) -> Result<String, No> {
    let queue = fields.name("queue")?;
    let topics = patterns(fields, "patterns")?;
    if topics.is_empty() {
        return Err(fields.no(Refusal::MissingField, "patterns"));
    }
    let priorities = patterns(fields, "priorities")?;
    let integer = |field| fields.optional(field, Object::integer);
    let deadline_ms = integer("deadline_ms")?.unwrap_or(10_000);
    let order = match fields.optional("order", Object::text)? {
        None | Some("session") => JobOrder::Session,
        Some("none") => JobOrder::Free,
        Some(_) => return Err(fields.no(Refusal::WrongType, "order")),
    };
    let is_topic =
        |inner: &Object<'_>, field: &str| inner.held(field, super::is_topic, Refusal::BadTopic).map(str::to_owned);
    let fallback = match fields.get("fallback") {
        None => None,
        Some(node) => Some(fields.inside("fallback", node, |inner| {
            let topic = is_topic(inner, "topic")?;
            match inner.node("data") {
                Some(node) if node.depth > 64 => Err(inner.no(Refusal::BadData, "data")),
                Some(node) if node.raw.len() > 2048 => Err(inner.no(Refusal::EventTooLarge, "data")),
                node => Ok((topic, node.map_or("", |node| &*node.raw))),
            }
        })?),
    };
    let dead_letter = fields.optional("dead_letter", is_topic)?.unwrap_or_else(|| "job.dead".to_owned());
    let new = NewQueue {
        queue,
        topics: &topics,
        priorities: &priorities,
        capacity: integer("capacity")?.unwrap_or(10_000),
        lease_ms: integer("lease_ms")?.unwrap_or(deadline_ms.min(5000)),
        deadline_ms,
        attempts: integer("attempts")?.unwrap_or(3),
        backoff_ms: integer("backoff_ms")?.unwrap_or(deadline_ms.min(200)),
        order,
        fallback: fallback.as_ref().map(|(topic, data)| Fallback { topic, data: data.as_bytes() }),
        dead_letter: &dead_letter,
    };
    Ok(format!("{:?}", Command::Queue { ask: QueueAsk::Declare(new) }))
}

fn queue_command(kind: &str, fields: &Object<'_>) -> Result<String, No> {
    if kind == "queue.list" {
        let ask = QueueAsk::List { after: fields.optional("after", |f, at| f.name(at))? };
        return Ok(format!("{:?}", Command::Queue { ask }));
    }
    let queue = fields.name("queue")?;
    let ask = match kind {
        "queue.drop" => QueueAsk::Drop { queue },
        "pull" => QueueAsk::Pull { queue, credit: fields.integer("credit")? },
        _ => QueueAsk::Dead { queue, from: fields.optional("from", Object::integer)?.unwrap_or(0) },
    };
    Ok(format!("{:?}", Command::Queue { ask }))
}

/// The command of this type, if it is one of these.
pub(super) fn command(kind: &str, fields: &Object<'_>) -> Option<Result<String, No>> {
    match kind {
        "job.fail" | "job.extend" | "job.progress" | "dead.redrive" | "dead.drop" => {
            return Some(job_command(kind, fields));
        }
        "pull" | "dead.list" | "queue.drop" | "queue.list" => return Some(queue_command(kind, fields)),
        "queue.declare" => return Some(declare(fields)),
        "complete" => return Some(complete(fields)),
        _ => {}
    }
    if !["put", "delete", "get", "list", "watch", "unwatch"].iter().any(|act| kind == format!("entry.{act}")) {
        return None;
    }
    let entry = || {
        let session = match (fields.get("bucket"), fields.get("session")) {
            (None, _) => fields.name("session")?.to_owned(),
            (Some(_), Some(_)) => return Err(fields.no(Refusal::WrongType, "bucket")),
            (Some(_), None) => format!("$entries.{}", fields.name("bucket")?),
        };
        let prefix = || {
            let empty_or_name = |text: &str| text.is_empty() || is_name(text);
            let prefix = fields.optional("prefix", |f, at| f.held(at, empty_or_name, Refusal::BadName))?;
            Ok(prefix.unwrap_or(""))
        };
        let ask = match kind {
            "entry.put" => {
                let entry = set(fields)?;
                if entry.value.is_none() {
                    return Err(fields.no(Refusal::MissingField, "data"));
                }
                EntryAsk::Set(entry)
            }
            "entry.delete" => EntryAsk::Set(NewEntry { value: None, ttl_ms: None, ..set(fields)? }),
            "entry.get" => EntryAsk::Get { key: fields.name("key")? },
            "entry.list" => EntryAsk::List { prefix: prefix()?, after: fields.optional("after", |f, at| f.name(at))? },
            "entry.watch" => {
                EntryAsk::Watch { prefix: prefix()?, revision: fields.optional("revision", Object::integer)? }
            }
            _ => EntryAsk::Unwatch { prefix: prefix()? },
        };
        Ok(format!("{:?}", Command::Entry { session: &session, ask }))
    };
    Some(entry())
}
