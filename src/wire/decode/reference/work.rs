//! Commands about entries, queues and jobs, read the long way.

use super::{No, Object, Tree, epoch, is_name, number};
use shards::command::{Command, EntryAsk, JobAsk, JobName, Lease, NewEntry, QueueAsk};
use shards::refusal::Refusal;

const ENTRY_BYTES_MAX: usize = 48;

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
    nodes.iter().map(|node| fields.inside("entries", node, set)).collect()
}

fn lease(fields: &Object<'_>) -> Result<Lease, No> {
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
            JobAsk::Progress { lease, partial: node.raw.as_bytes() }
        }
        "dead.redrive" => JobAsk::Redrive,
        _ => JobAsk::Drop,
    };
    Ok(format!("{:?}", Command::Job { session, job, ask }))
}

fn queue_command(kind: &str, fields: &Object<'_>) -> Result<String, No> {
    let queue = fields.name("queue")?;
    let ask = match kind {
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
        "pull" | "dead.list" => return Some(queue_command(kind, fields)),
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
