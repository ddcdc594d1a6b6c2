//! What was asked, what was promised, what was seen: and whether the three agree.
//!
//! ```text
//!   submitted ──► maybe ──┬─ acknowledged as `disk` ─┐
//!      (client, number)   ├─ delivered to anybody ───┼─► fact: this event has this offset, epoch and slice place,
//!                         ├─ seen in history ────────┘   for ever, through every crash
//!                         └─ refused, or never answered: whole or absent
//! ```
//! A fact never changes and never goes away (but for retention and expiry, which a gap must say). At the end an auditor
//! reads everything from the start: every fact is there, once, with its bytes; nothing is there that nobody sent; a
//! commit is there whole or not at all; each publisher's order is kept.

use crate::board::Board;
use crate::journal;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::collections::BTreeMap;
use std::fmt::Write;

/// A broken promise, in words.
pub type Checked<T = ()> = Result<T, String>;

/// Who published, and the publisher's own count of what it published.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Key {
    /// Client.
    pub client: u32,
    /// Number among its submissions.
    pub number: u64,
}

/// An event as its publisher sent it.
#[derive(Clone, Debug, Default)]
pub struct Submission {
    /// Topic.
    pub topic: String,
    /// Message id, empty for a numbering producer.
    pub message_id: String,
    /// Payload, byte for byte.
    pub data: String,
    /// Publisher's name.
    pub client: String,
    /// `data` travels as base64 of bytes.
    pub bytes: bool,
    /// It carries [`TRACEPARENT`].
    pub traceparent: bool,
    /// `prev_message_id` as sent, and the number of that message.
    pub prev_message: Option<(String, u64)>,
    /// `prev_event_id` as sent.
    pub prev_event_id: Option<String>,
    /// First number and count of the commit it belongs to.
    pub group: Option<(u64, u64)>,
    /// Life in ms.
    pub ttl_ms: Option<u64>,
    /// Wall clock when it was first sent.
    pub sent_ms: u64,
    /// Producer epoch and number.
    pub producer: Option<(u64, u64)>,
    /// Some attempt was refused: a later event may have overtaken it.
    pub refused: bool,
    /// Acknowledged as durable.
    pub acknowledged: bool,
    /// Place, once it is a fact.
    pub offset: Option<u64>,
    /// Place in its slice, once seen.
    pub at: Option<(u64, u64)>,
}

/// The trace context of every event that has one.
pub const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// An event as a frame brought it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// `session:epoch:offset`.
    pub event_id: &'a str,
    /// Session.
    pub session: &'a str,
    /// Topic.
    pub topic: &'a str,
    /// Publisher.
    pub client: &'a str,
    /// Message id, empty where absent.
    pub message_id: &'a str,
    /// Cause.
    pub prev_event_id: Option<&'a str>,
    /// Trace context, empty where absent.
    pub traceparent: &'a str,
    /// How `data` is to be read.
    pub data_kind: Option<&'a str>,
    /// Place in its slice, `slice.seq`.
    pub at: &'a str,
    /// Payload.
    pub data: &'a str,
}

/// All that is known.
#[derive(Default)]
pub struct Oracle {
    /// Who is in which session.
    pub board: Board,
    sessions: BTreeMap<String, Session>,
    /// Slice places taken: no two events share one.
    places: BTreeMap<(u64, u64), (String, u64)>,
    /// Some events may be gone by age or size.
    pub retention: bool,
    /// The disk is damaged, or fails to read, or was: what cannot be had is said to be so.
    pub damage: bool,
    /// Nothing is synced, and only the process dies.
    pub sync_off: bool,
    /// The disk may be full: what clients want kept is not, then.
    pub fills: bool,
    /// Token streams.
    pub streams: super::streams::Streams,
    /// Entries.
    pub entries: super::entries::Entries,
    /// Lives of entries are held against the clock.
    pub entries_clock: bool,
    /// Jobs.
    pub jobs: super::jobs::Jobs,
    /// Time of the world.
    pub now_us: u64,
    /// Comings and goings.
    pub journals: journal::Journals,
    /// How far the wall clock has jumped back so far: the server may have decided by the time before.
    pub clock_slack_ms: u64,
    /// Acknowledged by this process in memory alone: session, event, its provisional epoch and offset.
    early: Vec<(String, Key, u64, u64)>,
}

#[derive(Default)]
struct Session {
    epoch: Option<u64>,
    submissions: BTreeMap<Key, Submission>,
    facts: BTreeMap<u64, Key>,
    markers: BTreeMap<String, Marker>,
    /// Below this everything may be gone: some frame said so.
    earliest: u64,
}

#[derive(Default)]
struct Marker {
    acknowledged: u64,
    tried: u64,
}

impl Oracle {
    /// A client sends an event for the first time.
    pub fn submit(&mut self, session: &str, key: Key, submission: Submission) {
        self.session(session).submissions.insert(key, submission);
    }

    /// An attempt at it was refused.
    pub fn refused(&mut self, session: &str, key: Key) {
        if let Some(submission) = self.session(session).submissions.get_mut(&key) {
            submission.refused = true;
        }
    }

    /// It was acknowledged under this id. A durable acknowledgement is a fact; an early one only must not
    /// contradict what is one.
    pub fn acknowledged(&mut self, session: &str, key: Key, event_id: &str, durable: bool) -> Checked {
        let (named, epoch, offset) = parse_event_id(event_id)?;
        if named != session {
            return Err(format!("{event_id} acknowledges an event of session {session}"));
        }
        if durable {
            self.fact(session, key, epoch, offset)?;
            if let Some(submission) = self.session(session).submissions.get_mut(&key) {
                submission.acknowledged = true;
            }
            return Ok(());
        }
        self.early.push((session.to_owned(), key, epoch, offset));
        let known = self.session(session).submissions.get(&key).and_then(|s| s.offset);
        match known {
            Some(fact) if fact != offset && !self.retention => {
                Err(format!("{session}: {key:?} is at {fact} for ever, yet was acknowledged early at {offset}"))
            }
            _ => Ok(()),
        }
    }

    /// The process died: what it acknowledged in memory alone may be gone.
    pub fn process_died(&mut self) {
        self.early.clear();
    }

    /// The process ended by itself: what it acknowledged in any way is a fact.
    ///
    /// # Errors
    /// Something else is.
    pub fn process_ended(&mut self) -> Checked {
        for (session, key, epoch, offset) in std::mem::take(&mut self.early) {
            self.fact(&session, key, epoch, offset)?;
        }
        Ok(())
    }

    /// A frame brought an event. Returns whose it is, its epoch, its offset and its place.
    pub fn seen(&mut self, seen: &Seen<'_>) -> Checked<(Key, u64, u64, (u64, u64))> {
        let (named, epoch, offset) = parse_event_id(seen.event_id)?;
        if named != seen.session {
            return Err(format!("event {} in a frame of session {}", seen.event_id, seen.session));
        }
        let key = match seen.topic {
            journal::TOPIC => self.told_by_server(seen, offset)?,
            _ => parse_key(seen.data).ok_or_else(|| format!("nobody sent data {:?}", seen.data))?,
        };
        let at = parse_place(seen.at)?;
        let retention = self.retention;
        let session = self.session(seen.session);
        let submission = session
            .submissions
            .get(&key)
            .ok_or_else(|| format!("{}: nobody sent {key:?} into this session", seen.event_id))?;
        // A cause named by message is delivered as the event it became.
        let cause = match &submission.prev_message {
            None => submission.prev_event_id.clone(),
            Some((_, number)) => {
                let cause = Key { client: key.client, number: *number };
                let known = session.submissions.get(&cause).and_then(|cause| cause.offset);
                let named = seen.prev_event_id.map(parse_event_id).transpose()?;
                match named {
                    Some((name, life, at))
                        if name == seen.session
                            && life == epoch
                            && at < offset
                            && (retention || known.is_none_or(|known| known == at)) =>
                    {
                        seen.prev_event_id.map(str::to_owned)
                    }
                    _ => return Err(format!("{}: its cause {cause:?} is at {known:?}", seen.event_id)),
                }
            }
        };
        let expected = (
            submission.topic.as_str(),
            submission.client.as_str(),
            submission.message_id.as_str(),
            submission.data.as_str(),
            cause.as_deref(),
            if submission.traceparent { TRACEPARENT } else { "" },
            submission.bytes.then_some("bytes"),
        );
        let got = (
            seen.topic,
            seen.client,
            seen.message_id,
            seen.data,
            seen.prev_event_id,
            seen.traceparent,
            seen.data_kind.filter(|kind| *kind != "json"),
        );
        if expected != got {
            return Err(format!("{}: sent {expected:?}, delivered {got:?}", seen.event_id));
        }
        self.fact(seen.session, key, epoch, offset)?;
        let submission = self.session(seen.session).submissions.get_mut(&key).expect("found above");
        match submission.at {
            Some(before) if before != at && !retention => {
                return Err(format!("{}: slice place {before:?} became {at:?}", seen.event_id));
            }
            _ => submission.at = Some(at),
        }
        match self.places.insert(at, (seen.session.to_owned(), offset)) {
            Some(before) if before != (seen.session.to_owned(), offset) => {
                return Err(format!("{} and {before:?} share slice place {at:?}", seen.event_id));
            }
            _ => {}
        }
        Ok((key, epoch, offset, at))
    }

    /// An event of a session's comings and goings: what is seen first is what was sent.
    fn told_by_server(&mut self, seen: &Seen<'_>, offset: u64) -> Checked<Key> {
        let told = self.journals.seen(seen.session, offset, seen.data, &self.board);
        told.map_err(|why| format!("{}: {why}", seen.event_id))?;
        let key = journal::key(offset);
        self.session(seen.session).submissions.entry(key).or_insert_with(|| Submission {
            topic: journal::TOPIC.to_owned(),
            client: journal::SERVER.to_owned(),
            data: seen.data.to_owned(),
            ..Submission::default()
        });
        Ok(key)
    }

    /// A gap frame, or the start of a subscription: these offsets are said to be gone.
    pub fn gone(&mut self, session: &str, from: u64, to: u64, reason: &str, wall_ms: u64) -> Checked {
        let (retention, damage, slack_ms) = (self.retention, self.damage, self.clock_slack_ms);
        let state = self.session(session);
        match reason {
            "damaged" if damage => Ok(()),
            "retention" if retention => {
                state.earliest = state.earliest.max(to);
                Ok(())
            }
            "expired" => {
                for (offset, key) in state.facts.range(from..to) {
                    let submission = &state.submissions[key];
                    let over = submission.ttl_ms.is_some_and(|ttl| submission.sent_ms + ttl <= wall_ms + slack_ms);
                    if !over {
                        return Err(format!("{session}: offset {offset} ({key:?}) was said to be expired and is not"));
                    }
                }
                Ok(())
            }
            _ => Err(format!("{session}: unexpected gap {from}..{to} ({reason})")),
        }
    }

    /// First offset that may still be there.
    pub fn earliest(&self, session: &str) -> u64 {
        self.sessions.get(session).map_or(0, |s| s.earliest)
    }

    /// First offset after everything that is a fact.
    pub fn tail(&self, session: &str) -> u64 {
        self.sessions.get(session).and_then(|s| s.facts.last_key_value()).map_or(0, |(offset, _)| offset + 1)
    }

    /// Id of a fact.
    pub fn event_id(&self, session: &str, offset: u64) -> Option<String> {
        let state = self.sessions.get(session)?;
        state.facts.get(&offset)?;
        Some(format!("{session}:{:016x}:{offset}", state.epoch?))
    }

    /// Where a marker stands at least, if it was ever acknowledged.
    pub fn marked(&self, session: &str, name: &str) -> Option<u64> {
        let marker = self.sessions.get(session)?.markers.get(name)?;
        (marker.acknowledged > 0).then_some(marker.acknowledged)
    }

    /// The furthest a marker was ever sent.
    pub fn mark_bound(&self, session: &str, name: &str) -> u64 {
        self.sessions.get(session).and_then(|s| s.markers.get(name)).map_or(0, |marker| marker.tried)
    }

    /// A marker was sent.
    pub fn mark_tried(&mut self, session: &str, name: &str, offset: u64) {
        let marker = self.session(session).markers.entry(name.to_owned()).or_default();
        marker.tried = marker.tried.max(offset);
    }

    /// A marker was acknowledged, or an answer says where it stands.
    pub fn mark_seen(&mut self, session: &str, name: &str, offset: u64, acknowledged: Option<u64>) -> Checked {
        let marker = self.session(session).markers.entry(name.to_owned()).or_default();
        if offset < marker.acknowledged || offset > marker.tried {
            return Err(format!(
                "{session}: marker {name} stands at {offset}, acknowledged {}, tried {}",
                marker.acknowledged, marker.tried
            ));
        }
        marker.acknowledged = marker.acknowledged.max(acknowledged.unwrap_or(0));
        Ok(())
    }

    /// The whole of a session as the auditor read it: `earliest` and then (offset, key) in order. Offsets in `gaps`
    /// were said to hold nothing.
    pub fn audit(&self, name: &str, earliest: u64, events: &[(u64, Key)], gaps: &[(u64, u64)]) -> Checked {
        let Some(session) = self.sessions.get(name) else { return Ok(()) };
        if earliest > 0 && !self.retention {
            return Err(format!("{name}: starts at {earliest}, and nothing was to be removed"));
        }
        let in_gap = |offset: u64| offset < earliest || gaps.iter().any(|(from, to)| (*from..*to).contains(&offset));
        let read: BTreeMap<u64, Key> = events.iter().copied().collect();
        if read.len() != events.len() {
            return Err(format!("{name}: an offset was delivered twice"));
        }
        let mut next = earliest;
        for (offset, _) in events {
            while in_gap(next) && next < *offset {
                next += 1;
            }
            if *offset != next {
                return Err(format!("{name}: offset {next} is missing, {offset} follows"));
            }
            next += 1;
        }
        for (offset, key) in &session.facts {
            match read.get(offset) {
                Some(found) if found == key => {}
                None if in_gap(*offset) => {}
                found => return Err(format!("{name}: offset {offset} was {key:?} and now is {found:?}")),
            }
        }
        let mut places: BTreeMap<Key, u64> = BTreeMap::new();
        for (offset, key) in events {
            if let Some(before) = places.insert(*key, *offset)
                && !self.retention
            {
                return Err(format!("{name}: {key:?} is at {before} and again at {offset}"));
            }
        }
        self.audit_groups(name, session, &places, &in_gap)?;
        // Published again after retention took it, an event has lost its place among the others.
        if self.retention { Ok(()) } else { audit_order(name, session, &places) }
    }

    fn audit_groups(
        &self,
        name: &str,
        session: &Session,
        places: &BTreeMap<Key, u64>,
        in_gap: &dyn Fn(u64) -> bool,
    ) -> Checked {
        for (key, submission) in &session.submissions {
            let (Some((first, count)), Some(offset)) = (submission.group, places.get(key)) else { continue };
            let start = offset - (key.number - first);
            for index in 0..count {
                let other = Key { client: key.client, number: first + index };
                let found = places.get(&other).copied();
                if found != Some(start + index) && !(found.is_none() && in_gap(start + index)) {
                    return Err(format!("{name}: a commit of {count} holds {key:?} but {other:?} is at {found:?}"));
                }
            }
        }
        Ok(())
    }

    /// Events that lie behind `start` in their slice: place as (slice, seq), session, offset, what was sent.
    pub fn places_after<'a>(
        &'a self,
        start: &'a BTreeMap<u64, u64>,
    ) -> impl Iterator<Item = ((u64, u64), &'a str, u64, &'a Submission)> {
        self.sessions.iter().flat_map(move |(name, session)| {
            session.facts.range(session.earliest..).filter_map(move |(offset, key)| {
                let submission = &session.submissions[key];
                let (slice, seq) = submission.at.filter(|_| submission.ttl_ms.is_none())?;
                let is_after = seq > start.get(&slice).copied().unwrap_or(0);
                is_after.then_some(((slice, seq), name.as_str(), *offset, submission))
            })
        })
    }

    /// Sessions anything was sent into.
    pub fn names(&self) -> Vec<String> {
        self.sessions.iter().filter(|(_, s)| !s.submissions.is_empty()).map(|(name, _)| name.clone()).collect()
    }

    /// What is known of a session, for a person.
    pub fn describe(&self, name: &str) -> String {
        let mut text = String::new();
        if let Some(session) = self.sessions.get(name) {
            for (offset, key) in &session.facts {
                let s = &session.submissions[key];
                let _ = writeln!(
                    text,
                    "  {offset} {key:?} {:?} at {:?} acknowledged {}",
                    s.message_id, s.at, s.acknowledged
                );
            }
        }
        text
    }

    fn fact(&mut self, name: &str, key: Key, epoch: u64, offset: u64) -> Checked {
        let retention = self.retention;
        let session = self.session(name);
        if let Some(before) = session.epoch.replace(epoch)
            && before != epoch
        {
            return Err(format!("{name}: epoch {before:016x} became {epoch:016x}"));
        }
        match session.facts.insert(offset, key) {
            Some(before) if before != key => {
                return Err(format!("{name}: offset {offset} was {before:?} and now is {key:?}"));
            }
            _ => {}
        }
        let submission = session.submissions.get_mut(&key).ok_or_else(|| format!("{name}: nobody sent {key:?}"))?;
        match submission.offset.replace(offset) {
            // A repeat is known for as long as the first one is retained; after that it is a new event.
            Some(before) if before != offset && !retention => {
                Err(format!("{name}: {key:?} was at {before} and now is at {offset}"))
            }
            _ => Ok(()),
        }
    }

    fn session(&mut self, name: &str) -> &mut Session {
        self.sessions.entry(name.to_owned()).or_default()
    }
}

/// Of one client: what was first sent first comes first, unless some attempt at it was refused.
fn audit_order(name: &str, session: &Session, places: &BTreeMap<Key, u64>) -> Checked {
    let mut last: BTreeMap<u32, (u64, Key)> = BTreeMap::new();
    for (key, submission) in &session.submissions {
        let Some(offset) = places.get(key) else { continue };
        if let Some((before, earlier)) = last.get(&key.client)
            && offset < before
        {
            return Err(format!("{name}: {earlier:?} was sent before {key:?} and lies behind it, {before} > {offset}"));
        }
        if !submission.refused {
            last.insert(key.client, (*offset, *key));
        }
    }
    Ok(())
}

/// `session:epoch:offset`, read from the right.
pub fn parse_event_id(event_id: &str) -> Checked<(&str, u64, u64)> {
    let parse = || {
        let (rest, offset) = event_id.rsplit_once(':')?;
        let (session, epoch) = rest.rsplit_once(':')?;
        let epoch = (epoch.len() == 16).then(|| u64::from_str_radix(epoch, 16).ok())??;
        Some((session, epoch, offset.parse().ok()?))
    };
    parse().ok_or_else(|| format!("{event_id:?} is no event id"))
}

/// `slice.seq`.
pub fn parse_place(at: &str) -> Checked<(u64, u64)> {
    let parse = || {
        let (slice, seq) = at.split_once('.')?;
        Some((slice.parse().ok()?, seq.parse().ok()?))
    };
    parse().ok_or_else(|| format!("{at:?} is no place in a slice"))
}

/// Every payload of the simulator begins `{"c":CLIENT,"n":NUMBER`.
pub fn parse_key(data: &str) -> Option<Key> {
    if let Some(digits) = data.strip_prefix('"') {
        let bytes = BASE64.decode(digits.strip_suffix('"')?).ok()?;
        return parse_key(std::str::from_utf8(&bytes).ok()?);
    }
    let rest = data.strip_prefix("{\"c\":")?;
    let (client, rest) = rest.split_once(",\"n\":")?;
    let end = rest.find([',', '}'])?;
    Some(Key { client: client.parse().ok()?, number: rest[..end].parse().ok()? })
}
