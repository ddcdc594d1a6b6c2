//! Commands about groups, read the long way.

use super::work::{lease, patterns};
use super::{No, Object};
use shards::command::{Command, GroupAsk, Lease, NewMarker};
use shards::refusal::Refusal;

/// A marker of a group, or of one's own: name, offset, lease.
pub(super) type Marker<'a> = (&'a str, u64, Option<Lease>);

pub(super) fn own<'a>(fields: &Object<'a>) -> Result<Marker<'a>, No> {
    Ok((fields.name("name")?, fields.integer("offset")?, None))
}

fn acked<'a>(fields: &Object<'a>) -> Result<Marker<'a>, No> {
    let (group, lease) = (fields.name("group")?, lease(fields)?);
    Ok((group, fields.integer("offset")?, Some(lease)))
}

pub(super) fn marker<'a>(fields: &Object<'a>) -> Result<Marker<'a>, No> {
    if fields.get("group").is_some() { acked(fields) } else { own(fields) }
}

/// The command of this type, if it is one of these.
pub(super) fn command(kind: &str, fields: &Object<'_>) -> Option<Result<String, No>> {
    let from = || Ok(fields.optional("from", Object::integer)?.unwrap_or(0));
    let ask = |ask: GroupAsk<'_>| format!("{:?}", Command::Group { ask });
    let said = || {
        let group = fields.name("group")?;
        Ok(match kind {
            "group.declare" => {
                let topics = patterns(fields, "patterns")?;
                if topics.is_empty() {
                    return Err(fields.no(Refusal::MissingField, "patterns"));
                }
                let lease_ms = fields.optional("lease_ms", Object::integer)?.unwrap_or(5000);
                ask(GroupAsk::Declare { group, topics: &topics, lease_ms })
            }
            "group.drop" => ask(GroupAsk::Drop { group }),
            "group.leave" => ask(GroupAsk::Join { group, credit: 0 }),
            "group.join" => match fields.integer("credit")? {
                0 => return Err(fields.no(Refusal::OutOfRange, "credit")),
                credit => ask(GroupAsk::Join { group, credit }),
            },
            _ => ask(GroupAsk::List { group, from: from()? }),
        })
    };
    match kind {
        "group.declare" | "group.drop" | "group.join" | "group.leave" | "group.list" => Some(said()),
        "group.ack" => Some(fields.name("session").and_then(|session| {
            let (name, offset, lease) = acked(fields)?;
            Ok(format!("{:?}", Command::Mark { session, marker: NewMarker { name, offset, lease } }))
        })),
        "markers.list" => Some(
            fields.name("session").and_then(|session| Ok(format!("{:?}", Command::Markers { session, from: from()? }))),
        ),
        _ => None,
    }
}
