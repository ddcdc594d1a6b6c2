//! The one table of commands: what each is called and what reads its fields.
//!
//! ```text
//!   "publish" ─► Reader::publish ─► Plan::Publish
//!   …            what is not here is no command
//! ```
//! Tests walk it, so that a command that is added is held against tenants, documents and transcripts without another word.

use super::fields::{Field, Fields};
use super::groups::GroupPlan;
use super::jobs::JobAskPlan;
use super::plan::Plan;
use super::presence::ActPlan;
use super::{HISTORY_EVENTS_MAX, Reader};
use crate::wire::json::{Kind, Value};
use shards::command::{Revocable, RosterKind};
use shards::refusal::{Refusal, Refused};

/// Reads a command's fields.
pub(super) type Read = fn(&mut Reader<'_, '_>, &Fields) -> Result<Plan, Refused>;

/// The commonest first.
pub(super) const COMMANDS: &[(&str, Read)] = &[
    ("publish", |reader, fields| reader.publish(fields)),
    ("ack", |reader, fields| {
        let events = reader.required_integer(fields, Field::Events)?;
        let bytes = reader.optional_integer(fields, Field::Bytes)?;
        Ok(Plan::Acknowledge { events, bytes })
    }),
    ("stream.append", |reader, fields| reader.stream_append(fields)),
    ("stream.close", |reader, fields| reader.stream_close(fields)),
    ("commit", |reader, fields| reader.commit(fields)),
    ("subscribe", |reader, fields| match fields.has(Field::Patterns) {
        true => reader.subscribe_patterns(fields),
        false => reader.subscribe(fields),
    }),
    ("unsubscribe", |reader, fields| match fields.get(Field::Patterns) {
        Some(Value { kind: Kind::True, .. }) if !fields.has(Field::Session) => Ok(Plan::UnsubscribePatterns),
        Some(_) => Err(fields.refused(Refusal::WrongType, Field::Patterns)),
        None => Ok(Plan::Unsubscribe { session: reader.name(fields, Field::Session)? }),
    }),
    ("mark", |reader, fields| {
        let session = reader.name(fields, Field::Session)?;
        Ok(Plan::Mark { session, marker: reader.own_marker(fields)? })
    }),
    ("history", |reader, fields| {
        let session = reader.name(fields, Field::Session)?;
        let from = reader.optional_integer(fields, Field::From)?;
        let limit = reader.optional_integer(fields, Field::Limit)?.unwrap_or(u64::from(HISTORY_EVENTS_MAX));
        if !(1..=u64::from(HISTORY_EVENTS_MAX)).contains(&limit) {
            return Err(fields.refused(Refusal::OutOfRange, Field::Limit));
        }
        Ok(Plan::History { session, from, limit: limit as u32 })
    }),
    ("ping", |_, _| Ok(Plan::Ping)),
    ("resume", |reader, fields| reader.resume(fields)),
    ("hello", |reader, fields| reader.hello(fields)),
    ("auth", |reader, fields| Ok(Plan::Auth { token: reader.string(fields, Field::Token)? })),
    ("revoke.client", |reader, fields| {
        Ok(Plan::Revoke { what: Revocable::Client, name: reader.name(fields, Field::Name)? })
    }),
    ("revoke.token", |reader, fields| {
        Ok(Plan::Revoke { what: Revocable::Token, name: reader.name(fields, Field::Name)? })
    }),
    ("quota.get", |reader, fields| reader.quota_get(fields)),
    ("quota.set", |reader, fields| reader.quota_set(fields)),
    ("presence.enter", |reader, fields| reader.presence(fields, Reader::enter)),
    ("presence.update", |reader, fields| reader.presence(fields, Reader::update)),
    ("presence.leave", |reader, fields| reader.presence(fields, |_, _| Ok(ActPlan::Leave))),
    ("presence.watch", |reader, fields| reader.presence(fields, |_, _| Ok(ActPlan::Watch(RosterKind::Presence)))),
    ("presence.unwatch", |reader, fields| reader.presence(fields, |_, _| Ok(ActPlan::Unwatch(RosterKind::Presence)))),
    ("receipts.watch", |reader, fields| reader.presence(fields, |_, _| Ok(ActPlan::Watch(RosterKind::Receipts)))),
    ("receipts.unwatch", |reader, fields| reader.presence(fields, |_, _| Ok(ActPlan::Unwatch(RosterKind::Receipts)))),
    ("read", |reader, fields| {
        reader.presence(fields, |reader, fields| {
            Ok(ActPlan::Read { offset: reader.required_integer(fields, Field::Offset)? })
        })
    }),
    ("entry.put", |reader, fields| reader.entry(fields, Reader::entry_put)),
    ("entry.delete", |reader, fields| reader.entry(fields, Reader::entry_delete)),
    ("entry.get", |reader, fields| reader.entry(fields, Reader::entry_get)),
    ("entry.list", |reader, fields| reader.entry(fields, Reader::entry_list)),
    ("entry.watch", |reader, fields| reader.entry(fields, Reader::entry_watch)),
    ("entry.unwatch", |reader, fields| reader.entry(fields, Reader::entry_unwatch)),
    ("queue.declare", |reader, fields| reader.declare(fields)),
    ("queue.drop", |reader, fields| reader.name(fields, Field::Queue).map(Plan::Undeclare)),
    ("queue.list", |reader, fields| reader.list_queues(fields)),
    ("pull", |reader, fields| reader.pull(fields)),
    ("complete", |reader, fields| reader.complete_alone(fields)),
    ("job.fail", |reader, fields| reader.job_ask(fields, Reader::job_fail)),
    ("job.extend", |reader, fields| reader.job_ask(fields, Reader::job_extend)),
    ("job.progress", |reader, fields| reader.job_ask(fields, Reader::job_progress)),
    ("dead.list", |reader, fields| reader.dead_list(fields)),
    ("dead.redrive", |reader, fields| reader.job_ask(fields, |_, _| Ok(JobAskPlan::Redrive))),
    ("group.declare", |reader, fields| reader.group(fields, Reader::group_declare)),
    ("group.drop", |reader, fields| reader.group(fields, |_, _| Ok(GroupPlan::Drop))),
    ("group.join", |reader, fields| {
        reader.group(fields, |reader, fields| match reader.required_integer(fields, Field::Credit)? {
            0 => Err(fields.refused(Refusal::OutOfRange, Field::Credit)),
            credit => Ok(GroupPlan::Join { credit }),
        })
    }),
    ("group.leave", |reader, fields| reader.group(fields, |_, _| Ok(GroupPlan::Join { credit: 0 }))),
    ("group.ack", |reader, fields| reader.group_ack(fields)),
    ("group.list", |reader, fields| {
        reader.group(fields, |reader, fields| {
            Ok(GroupPlan::List { from: reader.optional_integer(fields, Field::From)?.unwrap_or(0) })
        })
    }),
    ("markers.list", |reader, fields| reader.list_markers(fields)),
    ("dead.drop", |reader, fields| reader.job_ask(fields, |_, _| Ok(JobAskPlan::Drop))),
];

/// Names of all commands.
pub fn commands() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_stands_once() {
        for (at, (name, _)) in COMMANDS.iter().enumerate() {
            assert!(COMMANDS[at + 1..].iter().all(|(other, _)| other != name), "{name}");
        }
    }
}
