//! Checked commands as ranges of frame and scratch, and the commands made of them.

use super::groups::{GroupPlan, MarkerPlan};
use super::jobs::{JobAskPlan, JobPlan, QueuePlan};
use super::presence::ActPlan;
use super::work::EntryPlan;
use super::{Reader, Scratch};
use crate::wire::json::Span;
use shards::command::{
    Claim, Command, DataKind, Durability, From, Lease, NewDelta, NewEntry, NewEvent, NewMarker, PatternFrom, Policy,
    QueueAsk, QuotaAsk, Revocable, SeenEvent, StreamStatus,
};
use shards::limits::Quota;
use std::ops::ControlFlow;

/// Bytes of the frame or of scratch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    pub(super) span: Span,
    pub(super) in_scratch: bool,
}

impl Place {
    pub(super) fn bytes<'a>(self, frame: &'a str, scratch: &'a [u8]) -> &'a [u8] {
        let from = if self.in_scratch { scratch } else { frame.as_bytes() };
        from.get(self.span.start as usize..self.span.end as usize).unwrap_or_default()
    }

    pub(super) fn text<'a>(self, frame: &'a str, scratch: &'a [u8]) -> &'a str {
        if self.in_scratch {
            std::str::from_utf8(self.bytes(frame, scratch)).unwrap_or_default()
        } else {
            frame.get(self.span.start as usize..self.span.end as usize).unwrap_or_default()
        }
    }
}

/// An event as ranges.
#[derive(Clone, Copy, Debug)]
pub(super) struct EventPlan {
    /// What the event itself says; in a commit it must be the commit's.
    pub(super) session: Option<Place>,
    pub(super) topic: Place,
    pub(super) message_id: Place,
    pub(super) prev_event_id: Option<Place>,
    pub(super) prev_message_id: Option<Place>,
    pub(super) data: Place,
    pub(super) data_kind: DataKind,
    pub(super) ttl_ms: Option<u64>,
    pub(super) producer: Option<(u64, u64)>,
    pub(super) traceparent: Place,
}

impl EventPlan {
    pub(super) fn event<'a>(&self, frame: &'a str, scratch: &'a [u8]) -> NewEvent<'a> {
        NewEvent {
            topic: self.topic.text(frame, scratch),
            message_id: self.message_id.text(frame, scratch),
            prev_event_id: self.prev_event_id.map(|place| place.text(frame, scratch)),
            prev_message_id: self.prev_message_id.map(|place| place.text(frame, scratch)),
            data: self.data.bytes(frame, scratch),
            data_kind: self.data_kind,
            ttl_ms: self.ttl_ms,
            producer: self.producer,
            traceparent: self.traceparent.text(frame, scratch),
        }
    }
}

/// A checked command as ranges. The events of `Publish` and `Commit` and the lists are in scratch: a plan is handed
/// about and must be small.
pub(super) enum Plan {
    Hello { credit_events: Option<u64>, credit_bytes: Option<u64> },
    Acknowledge { events: u64, bytes: Option<u64> },
    Ping,
    UnsubscribePatterns,
    Publish { session: Place, durability: Durability },
    Commit { session: Place, complete: Option<(JobPlan, Lease)>, holds: Option<(JobPlan, Lease)>, if_next: Option<u64> },
    Subscribe { session: Place, from: FromPlan, policy: Policy },
    StreamAppend { session: Place, stream: Place, seq: u64, delta: Place, topic: Option<Place>, durability: Durability },
    StreamClose { session: Place, stream: Place, status: StreamStatus },
    SubscribePatterns { from: FromPlan },
    Unsubscribe { session: Place },
    Mark { session: Place, marker: MarkerPlan },
    Markers { session: Place, from: u64 },
    Group { group: Place, ask: GroupPlan },
    History { session: Place, from: Option<u64>, limit: u32 },
    Presence { session: Place, act: ActPlan },
    Auth { token: Place },
    Entry { session: Place, ask: EntryPlan },
    Job { job: JobPlan, ask: JobAskPlan },
    Declare(QueuePlan),
    Undeclare(Place),
    Queues { after: Option<Place> },
    Pull { queue: Place, credit: u64 },
    Dead { queue: Place, from: u64 },
    Revoke { what: Revocable, name: Place },
    QuotaGet { tenant: Option<Place> },
    QuotaSet { tenant: Option<Place>, quota: Option<Box<Quota>> },
    Resume { token: Option<Place>, position: Option<Place>, attempt: u64 },
}

pub(super) enum FromPlan {
    Latest,
    Earliest,
    Offset(u64, Option<u64>),
    Marker(Place),
    Position(Place),
}

impl Reader<'_, '_> {
    /// Makes the command of a plan and lends it to `each`.
    pub(super) fn hand_over(
        &mut self,
        plan: Plan,
        each: impl FnOnce(Command<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let frame = self.frame;
        let Scratch {
            bytes,
            event_plans,
            pattern_places,
            marker_plans,
            seen_plans,
            entry_plans,
            entries,
            events,
            markers,
            patterns,
            seen,
            ..
        } = &mut *self.scratch;
        let bytes = bytes.as_slice();
        let text = |place: Place| place.text(frame, bytes);
        match plan {
            Plan::Hello { credit_events, credit_bytes } => each(Command::Hello { credit_events, credit_bytes }),
            Plan::Acknowledge { events, bytes } => each(Command::Acknowledge { events, bytes }),
            Plan::Ping => each(Command::Ping),
            Plan::Auth { token } => each(Command::Auth { token: text(token) }),
            Plan::Revoke { what, name } => each(Command::Revoke { what, name: text(name) }),
            Plan::QuotaGet { tenant } => each(Command::Quota { tenant: tenant.map(text), ask: QuotaAsk::Get }),
            Plan::QuotaSet { tenant, quota } => {
                each(Command::Quota { tenant: tenant.map(text), ask: QuotaAsk::Set(quota.as_deref()) })
            }
            Plan::Presence { session, act } => {
                each(Command::Presence { session: text(session), act: act.act(frame, bytes) })
            }
            Plan::Entry { session, ask } => each(Command::Entry { session: text(session), ask: ask.ask(frame, bytes) }),
            Plan::Job { job, ask } => {
                let (session, name, ask) = (text(job.session), job.name(frame, bytes), ask.ask(frame, bytes));
                each(Command::Job { session, job: name, ask })
            }
            Plan::Declare(plan) => {
                let mut some_patterns: Vec<&str> = recycled(std::mem::take(patterns));
                some_patterns.extend(pattern_places.iter().map(|place| text(*place)));
                let flow = each(Command::Queue { ask: plan.ask(&some_patterns, frame, bytes) });
                *patterns = recycled(some_patterns);
                flow
            }
            Plan::Undeclare(queue) => each(Command::Queue { ask: QueueAsk::Drop { queue: text(queue) } }),
            Plan::Queues { after } => each(Command::Queue { ask: QueueAsk::List { after: after.map(text) } }),
            Plan::Pull { queue, credit } => each(Command::Queue { ask: QueueAsk::Pull { queue: text(queue), credit } }),
            Plan::Dead { queue, from } => each(Command::Queue { ask: QueueAsk::Dead { queue: text(queue), from } }),
            Plan::UnsubscribePatterns => each(Command::UnsubscribePatterns),
            Plan::Publish { session, durability } => match event_plans.first() {
                Some(plan) => {
                    each(Command::Publish { session: text(session), event: plan.event(frame, bytes), durability })
                }
                // `publish` has just planned it.
                None => ControlFlow::Continue(()),
            },
            Plan::Commit { session, complete, holds, if_next } => {
                let mut some_events: Vec<NewEvent<'_>> = recycled(std::mem::take(events));
                some_events.extend(event_plans.iter().map(|plan| plan.event(frame, bytes)));
                let mut some_markers: Vec<NewMarker<'_>> = recycled(std::mem::take(markers));
                some_markers.extend(marker_plans.iter().map(|plan| plan.marker(frame, bytes)));
                let mut some_entries: Vec<NewEntry<'_>> = recycled(std::mem::take(entries));
                some_entries.extend(entry_plans.iter().map(|plan| plan.entry(frame, bytes)));
                let command = Command::Commit {
                    session: text(session),
                    events: &some_events,
                    markers: &some_markers,
                    entries: &some_entries,
                    complete: complete.map(|(job, lease)| (job.name(frame, bytes), lease)),
                    holds: holds.map(|(job, lease)| (job.name(frame, bytes), lease)),
                    if_next,
                };
                let flow = each(command);
                *entries = recycled(some_entries);
                *events = recycled(some_events);
                *markers = recycled(some_markers);
                flow
            }
            Plan::StreamAppend { session, stream, seq, delta, topic, durability } => {
                let delta =
                    NewDelta { stream: text(stream), seq, delta: delta.bytes(frame, bytes), topic: topic.map(text) };
                each(Command::StreamAppend { session: text(session), delta, durability })
            }
            Plan::StreamClose { session, stream, status } => {
                each(Command::StreamClose { session: text(session), stream: text(stream), status })
            }
            Plan::Subscribe { session, from, policy } => {
                let from = match from {
                    FromPlan::Earliest => From::Earliest,
                    FromPlan::Offset(offset, epoch) => From::Offset(offset, epoch),
                    FromPlan::Marker(name) => From::Marker(text(name)),
                    FromPlan::Latest | FromPlan::Position(_) => From::Latest,
                };
                each(Command::Subscribe { session: text(session), from, policy })
            }
            Plan::SubscribePatterns { from } => {
                let from = match from {
                    FromPlan::Earliest => PatternFrom::Earliest,
                    FromPlan::Position(position) => PatternFrom::Position(text(position)),
                    _ => PatternFrom::Latest,
                };
                let mut some_patterns: Vec<&str> = recycled(std::mem::take(patterns));
                some_patterns.extend(pattern_places.iter().map(|place| text(*place)));
                let flow = each(Command::SubscribePatterns { patterns: &some_patterns, from });
                *patterns = recycled(some_patterns);
                flow
            }
            Plan::Unsubscribe { session } => each(Command::Unsubscribe { session: text(session) }),
            Plan::Mark { session, marker } => {
                each(Command::Mark { session: text(session), marker: marker.marker(frame, bytes) })
            }
            Plan::Markers { session, from } => each(Command::Markers { session: text(session), from }),
            Plan::Group { group, ask } => {
                let mut some_patterns: Vec<&str> = recycled(std::mem::take(patterns));
                some_patterns.extend(pattern_places.iter().map(|place| text(*place)));
                let flow = each(Command::Group { ask: ask.ask(text(group), &some_patterns) });
                *patterns = recycled(some_patterns);
                flow
            }
            Plan::History { session, from, limit } => each(Command::History { session: text(session), from, limit }),
            Plan::Resume { token, position, attempt } => {
                let claim = token.map_or(Claim::New, |token| Claim::Token(text(token)));
                let mut some_seen: Vec<SeenEvent<'_>> = recycled(std::mem::take(seen));
                let plans = seen_plans.iter();
                some_seen.extend(plans.map(|&(session, epoch, offset)| SeenEvent {
                    session: text(session),
                    epoch,
                    offset,
                }));
                let flow = each(Command::Resume { claim, seen: &some_seen, position: position.map(text), attempt });
                *seen = recycled(some_seen);
                flow
            }
        }
    }
}

/// The allocation of an old list for a new one: collecting in place keeps it, as both have the same layout.
fn recycled<A, B>(mut list: Vec<A>) -> Vec<B> {
    list.clear();
    list.into_iter().map(|_| unreachable!("the list is empty")).collect()
}
