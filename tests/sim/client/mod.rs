//! A simulated client: speaks masked WebSocket frames and JSON, retries what was not answered, resumes where it was, and
//! checks everything it is told against the oracle.
//!
//! ```text
//!   act ─► command ─► masked frame ─► outgoing ═ chunks ═► server
//!                 └─► pending (by id) ◄── answer ◄─┐
//!   work: not yet acknowledged, sent again ◄───────┤ lost connection, refusal with "retry"
//!   follow / feed: next offset, place per slice ◄──┴─ event, gap ◄─ frames ◄═ chunks ═ server
//! ```

mod hear;

use crate::oracle::{Checked, Key, Oracle, Seen, Submission, parse_place};
use crate::random::Random;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// What a client is for.
#[derive(Clone, Debug, Default)]
pub struct Role {
    /// Sessions it publishes into.
    pub publishes: Vec<String>,
    /// It numbers its messages instead of naming them.
    pub numbers: bool,
    /// It sends commits and batches, not only single events.
    pub commits: bool,
    /// Sessions it follows.
    pub follows: Vec<String>,
    /// Patterns of its feed.
    pub patterns: Vec<String>,
    /// Where its subscriptions begin.
    pub from: Start,
    /// Delivery credit it asks for, events.
    pub credit: Option<u64>,
    /// It reads seldom.
    pub slow: bool,
    /// Now and then it sends what no server should accept.
    pub rude: bool,
    /// Largest `data` it sends, bytes.
    pub data_bytes_max: u64,
}

/// Where subscriptions begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Start {
    /// At the first retained event.
    #[default]
    Earliest,
    /// After the last one.
    Latest,
}

/// A client of the world. Lives through crashes of the server and knows what it was promised.
pub struct Client {
    /// Number, and name `cNUMBER`.
    pub index: u32,
    /// What it does.
    pub role: Role,
    /// Bytes on their way to the server.
    pub outgoing: Vec<u8>,
    incoming: Vec<u8>,
    connected: bool,
    welcomed: bool,
    next_id: u64,
    next_number: u64,
    pending: BTreeMap<u64, Pending>,
    /// Not acknowledged, by number of its first event.
    work: BTreeMap<u64, Work>,
    /// Acknowledged, to be repeated now and then.
    done: Vec<(Work, String)>,
    /// Next `producer_seq` by session.
    producer_next: BTreeMap<String, u64>,
    /// Sessions followed.
    pub follows: BTreeMap<String, Follow>,
    /// Pattern feed.
    pub feed: Option<Feed>,
    event_frames: u64,
    event_frames_acknowledged: u64,
    /// Answers and refusals by name, for the report.
    pub counts: BTreeMap<String, u64>,
    /// The server closed the connection with this code.
    pub closed_with: Option<u16>,
    /// Texts sent, for a printed trace; the newest few.
    pub said: Vec<String>,
}

/// A session that is followed.
#[derive(Debug, Default)]
pub struct Follow {
    state: State,
    epoch: Option<u64>,
    /// Next offset; `None` before the first answer.
    pub next: Option<u64>,
    /// First offset the first answer gave.
    pub first: u64,
    /// Events, in the order they came.
    pub events: Vec<(u64, Key)>,
    /// Gaps, likewise.
    pub gaps: Vec<(u64, u64)>,
}

/// A pattern feed.
#[derive(Debug, Default)]
pub struct Feed {
    state: State,
    /// Position it began at.
    pub start: Option<BTreeMap<u64, u64>>,
    position: BTreeMap<u64, u64>,
    /// Events by place.
    pub events: BTreeMap<(u64, u64), (String, u64)>,
    last: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    #[default]
    Idle,
    Asked,
    Live,
    Leaving,
}

/// Events of one command that have to be acknowledged some day.
#[derive(Clone, Debug)]
struct Work {
    session: String,
    first: u64,
    events: Vec<Submission>,
    commit: bool,
    memory: bool,
    /// Offset of a marker that a commit sets beside its events.
    marker: Option<u64>,
}

#[derive(Debug)]
enum Pending {
    Work(u64),
    Repeat(usize),
    /// The message id of a done work with another body: must be refused.
    Reused,
    Subscribe(String),
    Unsubscribe(String),
    SubscribeFeed,
    Mark {
        session: String,
        name: String,
        offset: u64,
    },
    History {
        session: String,
        from: u64,
        limit: u64,
    },
    Volatile,
    Other,
}

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    id: Option<u64>,
    event_id: Option<Cow<'a, str>>,
    session: Option<Cow<'a, str>>,
    topic: Option<Cow<'a, str>>,
    client: Option<Cow<'a, str>>,
    message_id: Option<Cow<'a, str>>,
    prev_event_id: Option<Cow<'a, str>>,
    at: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    durability: Option<Cow<'a, str>>,
    #[serde(default)]
    duplicate: bool,
    count: Option<u64>,
    next: Option<u64>,
    earliest: Option<u64>,
    epoch: Option<Cow<'a, str>>,
    position: Option<Cow<'a, str>>,
    from: Option<u64>,
    to: Option<u64>,
    reason: Option<Cow<'a, str>>,
    code: Option<u64>,
    refusal: Option<Cow<'a, str>>,
    name: Option<Cow<'a, str>>,
    offset: Option<u64>,
    tail: Option<u64>,
    #[serde(borrow, default)]
    events: Vec<Frame<'a>>,
}

impl Frame<'_> {
    fn text<'f>(field: &'f Option<Cow<'_, str>>, name: &str) -> Checked<&'f str> {
        field.as_deref().ok_or_else(|| format!("a frame without {name}"))
    }
}

/// Commands without an answer that a client allows itself.
const PENDING_MAX: usize = 24;
/// Works without an acknowledgement.
const WORK_MAX: usize = 16;

impl Client {
    /// A client that was never connected.
    pub fn new(index: u32, role: Role) -> Self {
        let follows = role.follows.iter().map(|session| (session.clone(), Follow::default())).collect();
        let feed = (!role.patterns.is_empty()).then(Feed::default);
        Self {
            index,
            role,
            outgoing: Vec::new(),
            incoming: Vec::new(),
            connected: false,
            welcomed: false,
            next_id: 1,
            next_number: 0,
            pending: BTreeMap::new(),
            work: BTreeMap::new(),
            done: Vec::new(),
            producer_next: BTreeMap::new(),
            follows,
            feed,
            event_frames: 0,
            event_frames_acknowledged: 0,
            counts: BTreeMap::new(),
            closed_with: None,
            said: Vec::new(),
        }
    }

    /// Its `client_id`.
    pub fn name(&self) -> String {
        format!("c{}", self.index)
    }

    /// The upgrade is through.
    pub fn connected(&mut self, workload: &mut Random, net: &mut Random) {
        self.connected = true;
        self.closed_with = None;
        if let Some(credit) = self.role.credit {
            let id = self.command(Pending::Other);
            self.send(net, &format!("{{\"type\":\"hello\",\"id\":{id},\"credit\":{{\"events\":{credit}}}}}"));
        }
        // Most clients resume at once, and in order: what was sent first is sent first again.
        if workload.chance(800) {
            self.resend(net);
            self.subscribe_all(net);
        }
    }

    /// The connection is gone, with all that was on the way. Returns the events whose fate nobody told.
    pub fn disconnected(&mut self) -> Vec<(String, Key)> {
        let mut untold = Vec::new();
        for pending in std::mem::take(&mut self.pending).into_values() {
            let Pending::Work(first) = pending else { continue };
            let Some(work) = self.work.get(&first) else { continue };
            for number in first..first + work.events.len() as u64 {
                untold.push((work.session.clone(), Key { client: self.index, number }));
            }
        }
        self.connected = false;
        self.welcomed = false;
        self.outgoing.clear();
        self.incoming.clear();
        self.event_frames = 0;
        self.event_frames_acknowledged = 0;
        for follow in self.follows.values_mut() {
            follow.state = State::Idle;
        }
        if let Some(feed) = &mut self.feed {
            feed.state = State::Idle;
        }
        untold
    }

    /// Why it has not come to rest, if it has not: something unanswered, or behind the tail.
    pub fn unrest(&self, oracle: &Oracle) -> Option<String> {
        if !self.connected {
            return Some("not connected".to_owned());
        }
        if let Some(work) = self.work.values().next() {
            return Some(format!("unacknowledged work {} in {}", work.first, work.session));
        }
        if let Some(pending) = self.pending.values().next() {
            return Some(format!("no answer to {pending:?}"));
        }
        for (session, follow) in &self.follows {
            if follow.state != State::Live {
                return Some(format!("{session} is {:?}", follow.state));
            }
            let tail = oracle.tail(session);
            if follow.next < Some(tail) {
                return Some(format!("{session} stands at {:?} of {tail}", follow.next));
            }
        }
        match &self.feed {
            Some(feed) if feed.state != State::Live => Some(format!("its feed is {:?}", feed.state)),
            Some(feed) if !oracle.retention => {
                let missing = self.missing(feed, oracle)?;
                Some(format!("its feed has not seen {missing:?}"))
            }
            _ => None,
        }
    }

    /// The first event that its feed should have brought and did not.
    pub fn missing(&self, feed: &Feed, oracle: &Oracle) -> Option<((u64, u64), (String, u64))> {
        let patterns = &self.role.patterns;
        let wanted = |topic: &str| patterns.iter().any(|p| shards::names::pattern_matches(p, topic));
        let places = oracle.places_after(feed.start.as_ref()?, wanted);
        places.into_iter().find(|(place, event)| feed.events.get(place) != Some(event))
    }

    /// Follows these sessions from the start, and nothing else.
    pub fn audit(&mut self, sessions: impl IntoIterator<Item = String>) {
        self.follows = sessions.into_iter().map(|session| (session, Follow::default())).collect();
    }

    /// Does one thing. With `calm`, only what brings it to rest: resend, subscribe, acknowledge.
    pub fn act(&mut self, workload: &mut Random, net: &mut Random, oracle: &mut Oracle, wall_ms: u64, calm: bool) {
        if !self.connected {
            return;
        }
        if self.role.credit.is_some() && self.event_frames > self.event_frames_acknowledged {
            let fresh = self.event_frames - self.event_frames_acknowledged;
            if calm || workload.chance(300) {
                self.event_frames_acknowledged += if calm { fresh } else { workload.between(1, fresh) };
                let events = self.event_frames_acknowledged;
                self.send(net, &format!("{{\"type\":\"ack\",\"events\":{events}}}"));
                return;
            }
        }
        if self.pending.len() >= PENDING_MAX {
            return;
        }
        match workload.below(100) {
            0..=9 => self.resend(net),
            10..=14 => self.subscribe_all(net),
            _ if calm => {
                self.resend(net);
                self.subscribe_all(net);
            }
            15..=69 => self.publish(workload, net, oracle, wall_ms),
            // After retention a repeat is a new event: nothing could be said about the answer.
            70..=76 if !oracle.retention => self.repeat(workload, net),
            77..=80 => self.mark(workload, net, oracle),
            81..=84 => self.history(workload, net, oracle),
            85 => self.unsubscribe(workload, net),
            86..=87 => self.volatile(workload, net),
            88 if self.role.rude => self.be_rude(workload, net),
            89..=90 => {
                let id = self.command(Pending::Other);
                self.send(net, &format!("{{\"type\":\"ping\",\"id\":{id}}}"));
            }
            _ => {}
        }
    }

    fn publish(&mut self, workload: &mut Random, net: &mut Random, oracle: &mut Oracle, wall_ms: u64) {
        if self.role.publishes.is_empty() || self.work.len() >= WORK_MAX {
            return;
        }
        // What a lost connection or a refusal left behind goes first: its order is the promise.
        self.resend(net);
        let burst = if self.role.commits && workload.chance(200) { workload.between(2, 6) } else { 1 };
        let mut texts = Vec::new();
        for _ in 0..burst {
            let session = workload.pick(&self.role.publishes).clone();
            let commit = self.role.commits && workload.chance(300);
            let count = if commit { workload.between(1, 5) } else { 1 };
            let first = self.next_number;
            self.next_number += count;
            let mut events = Vec::new();
            for index in 0..count {
                let number = first + index;
                let mut submission = self.submission(workload, oracle, &session, number, wall_ms);
                submission.group = commit.then_some((first, count));
                oracle.submit(&session, Key { client: self.index, number }, submission.clone());
                events.push(submission);
            }
            let tail = oracle.tail(&session);
            let marker = (commit && workload.chance(300) && tail > 0).then_some(tail);
            if let Some(offset) = marker {
                oracle.mark_tried(&session, &self.marker_name(), offset);
            }
            // A numbered event that was acknowledged early and then lost would leave a gap nobody can fill.
            let memory = !commit && !self.role.numbers && workload.chance(100);
            self.work.insert(first, Work { session, first, events, commit, memory, marker });
            texts.push(self.text_of(first));
        }
        let frame = if texts.len() == 1 { texts.remove(0) } else { format!("[{}]", texts.join(",")) };
        self.send(net, &frame);
    }

    fn submission(
        &mut self,
        workload: &mut Random,
        oracle: &Oracle,
        session: &str,
        number: u64,
        wall_ms: u64,
    ) -> Submission {
        let padding = match workload.below(20) {
            0 => self.role.data_bytes_max,
            1..=4 => workload.below(self.role.data_bytes_max),
            _ => workload.below(64),
        };
        let mut data = format!("{{\"c\":{},\"n\":{number},\"p\":\"", self.index);
        for _ in 0..padding {
            data.push((b'a' + workload.below(26) as u8) as char);
        }
        data.push_str("\"}");
        let producer = self.role.numbers.then(|| {
            let next = self.producer_next.entry(session.to_owned()).or_default();
            *next += 1;
            (1, *next - 1)
        });
        let topics = ["chat.message", "chat.typing.note", "tool.call", "job.llm", "chat"];
        let cause = oracle.tail(session).checked_sub(1).filter(|_| workload.chance(100));
        Submission {
            topic: (*workload.pick(&topics)).to_owned(),
            message_id: if producer.is_some() { String::new() } else { format!("m{number}") },
            data,
            prev_event_id: cause.and_then(|offset| oracle.event_id(session, offset)),
            ttl_ms: match workload.below(40) {
                0 => Some(workload.between(1, 50)),
                1 => Some(24 * 3600 * 1000),
                _ => None,
            },
            sent_ms: wall_ms,
            producer,
            ..Submission::default()
        }
    }

    fn marker_name(&self) -> String {
        format!("mark-{}", self.index)
    }

    /// The command for a work, as pending under a new id.
    fn text_of(&mut self, first: u64) -> String {
        let id = self.command(Pending::Work(first));
        command_text(&self.work[&first], id, &self.marker_name())
    }

    /// Sends again what has no answer on this connection, oldest first.
    fn resend(&mut self, net: &mut Random) {
        let waiting: BTreeSet<u64> = self
            .pending
            .values()
            .filter_map(|p| if let Pending::Work(first) = p { Some(*first) } else { None })
            .collect();
        // A numbering producer may only go on from the oldest gap; the others do so too, to keep their order.
        let todo: Vec<u64> = self.work.keys().copied().filter(|first| !waiting.contains(first)).collect();
        for first in todo {
            let text = self.text_of(first);
            self.send(net, &text);
        }
    }

    fn repeat(&mut self, workload: &mut Random, net: &mut Random) {
        if self.done.is_empty() {
            return;
        }
        let index = workload.index(self.done.len());
        let (mut work, _) = self.done[index].clone();
        let numbered = work.events.iter().any(|e| e.producer.is_some());
        let marker = self.marker_name();
        if workload.chance(100) && !numbered {
            work.events[0].data = "{\"c\":0,\"n\":0,\"p\":\"another body under the same id\"}".to_owned();
            let id = self.command(Pending::Reused);
            self.send(net, &command_text(&work, id, &marker));
        } else {
            let id = self.command(Pending::Repeat(index));
            self.send(net, &command_text(&work, id, &marker));
        }
    }

    fn mark(&mut self, workload: &mut Random, net: &mut Random, oracle: &mut Oracle) {
        let Some((session, tail)) = self.some_session(workload, oracle) else { return };
        let name = self.marker_name();
        let offset = tail;
        oracle.mark_tried(&session, &name, offset);
        let id = self.command(Pending::Mark { session: session.clone(), name: name.clone(), offset });
        self.send(
            net,
            &format!(
                "{{\"type\":\"mark\",\"id\":{id},\"session\":\"{session}\",\"name\":\"{name}\",\"offset\":{offset}}}"
            ),
        );
    }

    fn history(&mut self, workload: &mut Random, net: &mut Random, oracle: &Oracle) {
        let Some((session, tail)) = self.some_session(workload, oracle) else { return };
        let from = workload.below(tail + 1).max(oracle.earliest(&session));
        let limit = workload.between(1, 40);
        let id = self.command(Pending::History { session: session.clone(), from, limit });
        self.send(
            net,
            &format!(
                "{{\"type\":\"history\",\"id\":{id},\"session\":\"{session}\",\"from\":{from},\"limit\":{limit}}}"
            ),
        );
    }

    fn volatile(&mut self, workload: &mut Random, net: &mut Random) {
        if self.role.publishes.is_empty() {
            return;
        }
        let session = workload.pick(&self.role.publishes).clone();
        let id = self.command(Pending::Volatile);
        self.send(
            net,
            &format!(
                "{{\"type\":\"publish\",\"id\":{id},\"session\":\"{session}\",\"topic\":\"chat.typing\",\
                 \"durability\":\"volatile\",\"data\":{{\"v\":{}}}}}",
                self.index
            ),
        );
    }

    /// A session that has facts, of those this client has to do with.
    fn some_session(&self, workload: &mut Random, oracle: &Oracle) -> Option<(String, u64)> {
        let mine: Vec<&String> =
            self.role.publishes.iter().chain(self.follows.keys()).filter(|s| oracle.tail(s) > 0).collect();
        if mine.is_empty() {
            return None;
        }
        let session = (*workload.pick(&mine)).clone();
        let tail = oracle.tail(&session);
        Some((session, tail))
    }

    fn unsubscribe(&mut self, workload: &mut Random, net: &mut Random) {
        let live: Vec<String> =
            self.follows.iter().filter(|(_, f)| f.state == State::Live).map(|(s, _)| s.clone()).collect();
        if live.is_empty() {
            return;
        }
        let session = workload.pick(&live).clone();
        let id = self.command(Pending::Unsubscribe(session.clone()));
        self.send(net, &format!("{{\"type\":\"unsubscribe\",\"id\":{id},\"session\":\"{session}\"}}"));
        self.follows.get_mut(&session).expect("live").state = State::Leaving;
    }

    fn subscribe_all(&mut self, net: &mut Random) {
        let idle: Vec<String> =
            self.follows.iter().filter(|(_, f)| f.state == State::Idle).map(|(s, _)| s.clone()).collect();
        for session in idle {
            let from = match (&self.follows[&session].next, &self.follows[&session].epoch) {
                (Some(next), Some(epoch)) => format!("{{\"offset\":{next},\"epoch\":\"{epoch:016x}\"}}"),
                (Some(next), None) => format!("{{\"offset\":{next}}}"),
                (None, _) if self.role.from == Start::Latest => "\"latest\"".to_owned(),
                (None, _) => "\"earliest\"".to_owned(),
            };
            let id = self.command(Pending::Subscribe(session.clone()));
            let text = format!("{{\"type\":\"subscribe\",\"id\":{id},\"session\":\"{session}\",\"from\":{from}}}");
            self.send(net, &text);
            self.follows.get_mut(&session).expect("idle").state = State::Asked;
        }
        let Some(feed) = self.feed.as_mut().filter(|feed| feed.state == State::Idle) else { return };
        feed.state = State::Asked;
        let from = match (&feed.start, self.role.from) {
            (Some(_), _) => {
                let parts: Vec<String> = feed.position.iter().map(|(slice, seq)| format!("{slice}.{seq}")).collect();
                format!("{{\"position\":\"{}\"}}", parts.join(","))
            }
            (None, Start::Latest) => "\"latest\"".to_owned(),
            (None, Start::Earliest) => "\"earliest\"".to_owned(),
        };
        let patterns: Vec<String> = self.role.patterns.iter().map(|p| format!("\"{p}\"")).collect();
        let id = self.command(Pending::SubscribeFeed);
        let text =
            format!("{{\"type\":\"subscribe\",\"id\":{id},\"patterns\":[{}],\"from\":{from}}}", patterns.join(","));
        self.send(net, &text);
    }

    fn be_rude(&mut self, workload: &mut Random, net: &mut Random) {
        let id = self.command(Pending::Other);
        let texts = [
            "{".to_owned(),
            "[]".to_owned(),
            "null".to_owned(),
            format!("{{\"type\":\"destroy\",\"id\":{id}}}"),
            format!(
                "{{\"type\":\"publish\",\"id\":{id},\"session\":\"no spaces\",\"topic\":\"a\",\"message_id\":\"x\",\"data\":1}}"
            ),
            format!(
                "{{\"type\":\"publish\",\"id\":{id},\"session\":\"s\",\"topic\":\"a..b\",\"message_id\":\"x\",\"data\":1}}"
            ),
            format!(
                "{{\"type\":\"publish\",\"id\":{id},\"session\":\"s\",\"topic\":\"a\",\"message_id\":\"x\",\"data\":[[}}"
            ),
            format!("{{\"type\":\"publish\",\"id\":{id},\"session\":\"s\",\"topic\":\"a\",\"data\":1}}"),
            format!("{{\"type\":\"subscribe\",\"id\":{id},\"session\":\"nobody\",\"from\":{{\"offset\":99}}}}"),
            format!("{{\"type\":\"subscribe\",\"id\":{id},\"session\":\"nobody\",\"from\":{{\"marker\":\"none\"}}}}"),
            format!("{{\"type\":\"subscribe\",\"id\":{id},\"patterns\":[\"a.>.b\"]}}"),
            format!("{{\"type\":\"subscribe\",\"id\":{id},\"patterns\":[\"a\"],\"from\":{{\"position\":\"9999.1\"}}}}"),
            format!("{{\"type\":\"history\",\"id\":{id},\"session\":\"nobody\",\"limit\":0}}"),
            format!("{{\"type\":\"ack\",\"id\":{id},\"events\":999999}}"),
            format!("{{\"type\":\"mark\",\"id\":{id},\"session\":\"nobody\",\"name\":\"m\",\"offset\":5}}"),
            format!("{{\"type\":\"unsubscribe\",\"id\":{id},\"session\":\"nobody\"}}"),
            format!("{{\"type\":\"commit\",\"id\":{id},\"session\":\"s\",\"events\":[]}}"),
        ];
        let text = workload.pick(&texts).clone();
        if !text.contains("\"id\"") || text.contains("[[") {
            // The answer cannot name the command.
            self.pending.remove(&id);
        }
        self.send(net, &text);
    }

    fn command(&mut self, pending: Pending) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.pending.insert(id, pending);
        id
    }

    /// One masked text frame, now and then in two fragments.
    fn send(&mut self, net: &mut Random, text: &str) {
        if self.said.len() < 64 {
            self.said.push(text.to_owned());
        }
        if net.chance(30) && text.len() > 2 {
            let cut = net.between(1, text.len() as u64 - 1) as usize;
            put_frame(&mut self.outgoing, net, 0x01, &text.as_bytes()[..cut]);
            put_frame(&mut self.outgoing, net, 0x80, &text.as_bytes()[cut..]);
        } else {
            put_frame(&mut self.outgoing, net, 0x81, text.as_bytes());
        }
    }
}

fn command_text(work: &Work, id: u64, marker_name: &str) -> String {
    let session = &work.session;
    if !work.commit {
        let fields = event_fields(&work.events[0]);
        let durability = if work.memory { ",\"durability\":\"memory\"" } else { "" };
        return format!("{{\"type\":\"publish\",\"id\":{id},\"session\":\"{session}\",{fields}{durability}}}");
    }
    let events: Vec<String> = work.events.iter().map(|event| format!("{{{}}}", event_fields(event))).collect();
    let markers = work
        .marker
        .map_or(String::new(), |offset| format!(",\"markers\":[{{\"name\":\"{marker_name}\",\"offset\":{offset}}}]"));
    format!("{{\"type\":\"commit\",\"id\":{id},\"session\":\"{session}\",\"events\":[{}]{markers}}}", events.join(","))
}

fn event_fields(event: &Submission) -> String {
    let mut text = format!("\"topic\":\"{}\"", event.topic);
    if !event.message_id.is_empty() {
        let _ = write!(text, ",\"message_id\":\"{}\"", event.message_id);
    }
    if let Some((epoch, seq)) = event.producer {
        let _ = write!(text, ",\"producer_epoch\":{epoch},\"producer_seq\":{seq}");
    }
    if let Some(prev) = &event.prev_event_id {
        let _ = write!(text, ",\"prev_event_id\":\"{prev}\"");
    }
    if let Some(ttl) = event.ttl_ms {
        let _ = write!(text, ",\"ttl_ms\":{ttl}");
    }
    let _ = write!(text, ",\"data\":{}", event.data);
    text
}

/// Appends a masked frame; `head` is FIN and opcode.
fn put_frame(out: &mut Vec<u8>, net: &mut Random, head: u8, payload: &[u8]) {
    out.push(head);
    match payload.len() {
        length @ 0..=125 => out.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    let mask = (net.any() as u32).to_be_bytes();
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}
