//! What each command needs of its client's rights. Looked at where the client is, before anything of the command is looked up:
//! a refusal says which capability is missing, and nothing about what exists.
//!
//! ```text
//!   says something     publish      its topic in the session; presence has the topic `presence`
//!   hears something    subscribe    the whole session, or the pattern in all sessions
//!   streams            publish      something in the session here; the stream's topic on the session's owner, who knows it
//!   entries            entries      the key, or every key with the prefix, in the session or in the bucket
//!   groups             queue        `group:` and the group's name: joining, acknowledging, listing; the events it wants are read with it
//!                      admin        likewise: declaring, dropping
//!   queues             queue        pulling, dead letters, and what a worker says of a job
//!                      admin        declaring, dropping; driving dead letters again, dropping them
//!   ends tokens        admin        `revoke`
//!   sees its quotas    admin        `quota`; another tenant's, and sets any: `$operator`
//! ```
//! A new command does not compile until it stands here.

use crate::command::work::BUCKET;
use crate::command::{Command, EntryAsk, GroupAsk, JobAsk, NewMarker, PresenceAct, QueueAsk, QuotaAsk};
use crate::refusal::Refused;
use crate::rights::{Capability, Rights};
use crate::sessions::Asker;
use crate::shard::Shard;
use storage::catalog::PartitionSlot;

/// Topic of being present, and of saying what one is at.
pub(crate) const PRESENCE_TOPIC: &str = "presence";

/// What of running a tenant it is to know its quotas.
const QUOTA: &str = "quota";
/// What of running a tenant it is to revoke tokens.
const REVOKE: &str = "revoke";

impl Rights {
    /// Refuses a command that they do not cover: for what the edge carries out by itself.
    ///
    /// # Errors
    /// The capability that is missing.
    pub fn check(&self, command: &Command<'_>) -> Result<(), Refused> {
        check(self, command)
    }
}

/// Refuses a command that the rights do not cover.
pub(crate) fn check(rights: &Rights, command: &Command<'_>) -> Result<(), Refused> {
    let (capability, covered) = match *command {
        Command::Hello { .. }
        | Command::Acknowledge { .. }
        | Command::Ping
        | Command::Auth { .. }
        | Command::Unsubscribe { .. }
        | Command::UnsubscribePatterns
        | Command::Resume { .. }
        | Command::Open { .. } => return Ok(()),
        Command::Publish { session, ref event, .. } => {
            (Capability::Publish, rights.covers_topic(Capability::Publish, session, event.topic))
        }
        Command::Commit { session, events, markers, entries, complete, holds, .. } => {
            if !markers.iter().all(|marker| acknowledges(rights, session, marker)) {
                return Err(Capability::Queue.refused());
            }
            if markers.iter().any(|marker| marker.lease.is_none())
                && !rights.covers_session(Capability::Subscribe, session)
            {
                return Err(Capability::Subscribe.refused());
            }
            if !entries.iter().all(|entry| rights.covers_name(Capability::Entries, Some(session), entry.key)) {
                return Err(Capability::Entries.refused());
            }
            let covers = |queue| rights.covers_name(Capability::Queue, Some(session), queue);
            if !complete.iter().chain(&holds).all(|(job, _)| covers(job.queue)) {
                return Err(Capability::Queue.refused());
            }
            let covered = |topic| rights.covers_topic(Capability::Publish, session, topic);
            (Capability::Publish, events.iter().all(|event| covered(event.topic)))
        }
        Command::Entry { session, ask } => {
            let place = session.strip_prefix(BUCKET).unwrap_or(session);
            let covered = match ask {
                EntryAsk::Set(entry) => rights.covers_name(Capability::Entries, Some(place), entry.key),
                EntryAsk::Get { key } => rights.covers_name(Capability::Entries, Some(place), key),
                EntryAsk::List { prefix, .. } | EntryAsk::Watch { prefix, .. } => {
                    rights.covers_prefix(Capability::Entries, place, prefix)
                }
                EntryAsk::Unwatch { .. } | EntryAsk::Fetch { .. } => true,
            };
            (Capability::Entries, covered)
        }
        Command::Queue { ask } => match ask {
            QueueAsk::Declare(queue) => (Capability::Admin, rights.covers_name(Capability::Admin, None, queue.queue)),
            QueueAsk::Drop { queue } => (Capability::Admin, rights.covers_name(Capability::Admin, None, queue)),
            QueueAsk::List { .. } => (Capability::Queue, rights.covers_name(Capability::Queue, None, "*")),
            QueueAsk::Pull { queue, .. } | QueueAsk::Dead { queue, .. } => {
                (Capability::Queue, rights.covers_name(Capability::Queue, None, queue))
            }
        },
        Command::Group { ask } => match ask {
            GroupAsk::Declare { group, .. } | GroupAsk::Drop { group } => {
                (Capability::Admin, rights.covers_name(Capability::Admin, None, &group_right(group)))
            }
            GroupAsk::Join { group, .. } | GroupAsk::List { group, .. } => {
                (Capability::Queue, rights.covers_name(Capability::Queue, None, &group_right(group)))
            }
        },
        Command::Mark { session, ref marker } if marker.lease.is_some() => {
            (Capability::Queue, acknowledges(rights, session, marker))
        }
        Command::Job { session, job, ask } => match ask {
            JobAsk::Fail { .. } | JobAsk::Extend { .. } | JobAsk::Progress { .. } => {
                (Capability::Queue, rights.covers_name(Capability::Queue, Some(session), job.queue))
            }
            JobAsk::Redrive | JobAsk::Drop => {
                (Capability::Admin, rights.covers_name(Capability::Admin, Some(session), job.queue))
            }
        },
        Command::StreamAppend { session, .. } | Command::StreamClose { session, .. } => {
            (Capability::Publish, rights.touches(Capability::Publish, session))
        }
        Command::Mark { session, .. }
        | Command::Markers { session, .. }
        | Command::Subscribe { session, .. }
        | Command::History { session, .. } => {
            (Capability::Subscribe, rights.covers_session(Capability::Subscribe, session))
        }
        Command::SubscribePatterns { patterns, .. } => {
            let covered = |pattern: &&str| rights.covers_pattern(Capability::Subscribe, pattern);
            (Capability::Subscribe, patterns.iter().all(covered))
        }
        Command::Presence { session, act } => match act {
            PresenceAct::Enter { .. } | PresenceAct::Update { .. } => {
                (Capability::Publish, rights.covers_topic(Capability::Publish, session, PRESENCE_TOPIC))
            }
            PresenceAct::Read { .. } | PresenceAct::Watch(_) => {
                (Capability::Subscribe, rights.covers_session(Capability::Subscribe, session))
            }
            PresenceAct::Leave | PresenceAct::Unwatch(_) => return Ok(()),
        },
        Command::Quota { tenant: None, ask: QuotaAsk::Get } => {
            (Capability::Admin, rights.covers_name(Capability::Admin, None, QUOTA) || rights.is_operator())
        }
        // Nobody raises its own.
        Command::Quota { .. } => (Capability::Admin, rights.is_operator()),
        Command::Revoke { .. } => (Capability::Admin, rights.covers_name(Capability::Admin, None, REVOKE)),
    };
    if covered { Ok(()) } else { Err(capability.refused()) }
}

/// A group is a name of its own among those of queues.
fn group_right(group: &str) -> String {
    format!("group:{group}")
}

/// May it move this marker, where it is a group's?
fn acknowledges(rights: &Rights, session: &str, marker: &NewMarker<'_>) -> bool {
    marker.lease.is_none() || rights.covers_name(Capability::Queue, Some(session), &group_right(marker.name))
}

/// Refuses what would say something in a stream whose topic the rights do not cover. On the session's owner. A stream that is open
/// has its topic; a `first` append brings one; where there is neither nothing will be said. `slot` is `None` where the session is
/// not there yet.
pub(crate) fn stream(
    shard: &Shard,
    asker: &Asker,
    slot: Option<PartitionSlot>,
    (session, stream, first): (&str, &str, Option<&str>),
) -> Result<(), Refused> {
    let Some(rights) = &asker.rights else { return Ok(()) };
    let open = slot.and_then(|slot| shard.log.partition(slot).open_stream(stream));
    let topic = open.map(|open| &*open.topic).or(first);
    match topic.is_none_or(|topic| rights.covers_topic(Capability::Publish, session, topic)) {
        true => Ok(()),
        false => Err(Capability::Publish.refused()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{
        DataKind, Durability, From, JobName, JobOrder, Lease, NewDelta, NewEntry, NewEvent, NewQueue, PatternFrom,
        Policy, PresenceState, Revocable, RosterKind, StreamStatus,
    };
    use crate::refusal::Refusal;

    const fn event(topic: &str) -> NewEvent<'_> {
        NewEvent {
            topic,
            message_id: "m",
            prev_event_id: None,
            prev_message_id: None,
            data: b"1",
            data_kind: DataKind::Json,
            ttl_ms: None,
            producer: None,
            traceparent: "",
        }
    }

    /// Each command, and the one grant with which it is allowed.
    #[test]
    fn each_command_needs_its_grant_and_no_other() {
        let (durability, session) = (Durability::Disk, "s");
        let delta = NewDelta { stream: "a", seq: 0, delta: b"\"x\"", topic: None };
        let marker = NewMarker { name: "m", offset: 0, lease: None };
        let presence = |act| Command::Presence { session, act };
        let entry = NewEntry { key: "plan-1", value: None, ttl_ms: None, if_revision: None };
        let lease = Lease { attempt: 1, nonce: 1 };
        let name = JobName { queue: "llm", epoch: 1, offset: 0 };
        let queue = NewQueue {
            queue: "llm",
            topics: &["job.>"],
            priorities: &[],
            capacity: 1,
            lease_ms: 1,
            deadline_ms: 1,
            attempts: 1,
            backoff_ms: 1,
            order: JobOrder::Free,
            fallback: None,
            dead_letter: "dead",
        };
        let (markers, puts) = ([marker], [entry]);
        let commit = |events, markers, entries, complete| Command::Commit {
            session,
            events,
            markers,
            entries,
            complete,
            holds: None,
            if_next: None,
        };
        let entries = |ask| Command::Entry { session, ask };
        let job = |ask| Command::Job { session, job: name, ask };
        let group = |ask| Command::Group { ask };
        let acked = [NewMarker { name: "flow", offset: 0, lease: Some(lease) }];
        let events = [event("chat.a"), event("chat.b")];
        let cases: &[(Command<'_>, Option<(Capability, &str)>)] = &[
            (Command::Hello { credit_events: None, credit_bytes: None }, None),
            (Command::Ping, None),
            (Command::Unsubscribe { session }, None),
            (Command::UnsubscribePatterns, None),
            (presence(PresenceAct::Leave), None),
            (presence(PresenceAct::Unwatch(RosterKind::Presence)), None),
            (Command::Publish { session, event: event("chat.a"), durability }, Some((Capability::Publish, "s/chat.*"))),
            (commit(&events, &[], &[], None), Some((Capability::Publish, "chat.>"))),
            (commit(&[], &markers, &[], None), Some((Capability::Subscribe, "s/>"))),
            (commit(&[], &[], &puts, None), Some((Capability::Entries, "s/plan*"))),
            (commit(&[], &[], &[], Some((name, lease))), Some((Capability::Queue, "s/llm"))),
            (entries(EntryAsk::Set(entry)), Some((Capability::Entries, "plan-1"))),
            (entries(EntryAsk::Get { key: "plan-1" }), Some((Capability::Entries, "plan*"))),
            (entries(EntryAsk::List { prefix: "plan", after: None }), Some((Capability::Entries, "s/pl*"))),
            (entries(EntryAsk::Watch { prefix: "", revision: None }), Some((Capability::Entries, "*"))),
            (entries(EntryAsk::Unwatch { prefix: "" }), None),
            (
                Command::Entry { session: "$entries.flags", ask: EntryAsk::Get { key: "dark" } },
                Some((Capability::Entries, "flags/*")),
            ),
            (Command::Queue { ask: QueueAsk::Declare(queue) }, Some((Capability::Admin, "llm"))),
            (Command::Queue { ask: QueueAsk::Pull { queue: "llm", credit: 1 } }, Some((Capability::Queue, "llm"))),
            (Command::Queue { ask: QueueAsk::Dead { queue: "llm", from: 0 } }, Some((Capability::Queue, "l*"))),
            (job(JobAsk::Fail { lease, retry_after_ms: None, retry: true }), Some((Capability::Queue, "s/llm"))),
            (job(JobAsk::Extend { lease, lease_ms: None }), Some((Capability::Queue, "llm"))),
            (job(JobAsk::Progress { lease, partial: b"1" }), Some((Capability::Queue, "llm"))),
            (
                group(GroupAsk::Declare { group: "flow", topics: &["a"], lease_ms: 1 }),
                Some((Capability::Admin, "group:flow")),
            ),
            (group(GroupAsk::Drop { group: "flow" }), Some((Capability::Admin, "group:*"))),
            (group(GroupAsk::Join { group: "flow", credit: 1 }), Some((Capability::Queue, "group:flow"))),
            (group(GroupAsk::List { group: "flow", from: 0 }), Some((Capability::Queue, "group:f*"))),
            (Command::Mark { session, marker: acked[0] }, Some((Capability::Queue, "s/group:flow"))),
            (commit(&[], &acked, &[], None), Some((Capability::Queue, "group:flow"))),
            (Command::Markers { session, from: 0 }, Some((Capability::Subscribe, "s/>"))),
            (job(JobAsk::Redrive), Some((Capability::Admin, "llm"))),
            (job(JobAsk::Drop), Some((Capability::Admin, "s/llm"))),
            (Command::StreamAppend { session, delta, durability }, Some((Capability::Publish, "s/stream"))),
            (
                Command::StreamClose { session, stream: "a", status: StreamStatus::Complete },
                Some((Capability::Publish, "s*/stream")),
            ),
            (Command::Mark { session, marker }, Some((Capability::Subscribe, "s/>"))),
            (Command::History { session, from: None, limit: 1 }, Some((Capability::Subscribe, ">"))),
            (
                Command::Subscribe { session, from: From::Latest, policy: Policy::Lossless },
                Some((Capability::Subscribe, "s/>")),
            ),
            (
                Command::SubscribePatterns { patterns: &["chat.a", "chat.*"], from: PatternFrom::Latest },
                Some((Capability::Subscribe, "chat.*")),
            ),
            (
                presence(PresenceAct::Enter { state: PresenceState::Idle, data: None, lease_ms: None, log: false }),
                Some((Capability::Publish, "presence")),
            ),
            (presence(PresenceAct::Update { state: None, data: None }), Some((Capability::Publish, "s/>"))),
            (presence(PresenceAct::Read { offset: 0 }), Some((Capability::Subscribe, "s/>"))),
            (presence(PresenceAct::Watch(RosterKind::Receipts)), Some((Capability::Subscribe, "s/>"))),
            (Command::Revoke { what: Revocable::Client, name: "ann" }, Some((Capability::Admin, "rev*"))),
            (Command::Revoke { what: Revocable::Token, name: "t-1" }, Some((Capability::Admin, "revoke"))),
        ];
        for (command, needs) in cases {
            let none = check(&Rights::none(true), command);
            let Some((capability, grant)) = needs else {
                assert_eq!(none, Ok(()), "{command:?}");
                continue;
            };
            assert_eq!(none, Err(capability.refused()), "{command:?}");
            let mut all_but = Rights::none(true);
            for other in Capability::ALL.into_iter().filter(|other| other != capability) {
                all_but
                    .add(other, if matches!(other, Capability::Publish | Capability::Subscribe) { ">" } else { "*" })
                    .unwrap();
            }
            all_but.add(*capability, "elsewhere/>").or_else(|_| all_but.add(*capability, "elsewhere")).unwrap();
            assert_eq!(
                check(&all_but, command).map_err(|refused| refused.refusal),
                Err(Refusal::Forbidden),
                "{command:?}"
            );
            let mut own = Rights::none(true);
            own.add(*capability, grant).unwrap();
            assert_eq!(check(&own, command), Ok(()), "{command:?} {grant}");
        }
    }
}
