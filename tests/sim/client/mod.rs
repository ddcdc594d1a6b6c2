//! A simulated client: speaks masked WebSocket frames and JSON, retries what was not answered, resumes where it was, and
//! checks everything it is told against the oracle.
//!
//! ```text
//!   act ─► command ─► masked frame ─► outgoing ═ chunks ═► server
//!                 └─► pending (by id) ◄── answer ◄─┐
//!   work: not yet acknowledged, sent again ◄───────┤ lost connection, refusal with "retry"
//!   follow / feed: next offset, place per slice ◄──┴─ event, gap ◄─ frames ◄═ chunks ═ server
//! ```

mod amid;
mod bold;
mod declare;
mod hear;
mod keep;
mod labour;
mod life;
mod mixed;
mod presence;
mod provoke;
mod receipts;
mod say;
mod tell;

pub use declare::SIDE_QUEUE;
pub use labour::QUEUE;

use crate::counts::{CLOSE, Counts};
use crate::oracle::{Checked, Key, Oracle, Seen, Submission, parse_place};
use crate::random::Random;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::VecDeque;
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
    /// Sessions it is in now and then.
    pub rooms: Vec<String>,
    /// Sessions of which it watches who is in.
    pub watches: Vec<String>,
    /// Sessions of which it says how far it has read them.
    pub reads: Vec<String>,
    /// Sessions whose receipts it watches.
    pub minds: Vec<String>,
    /// Patterns of its feed.
    pub patterns: Vec<String>,
    /// Where its subscriptions to sessions begin.
    pub from: Start,
    /// Where its feed begins.
    pub feed_from: Start,
    /// Delivery credit it asks for, events.
    pub credit: Option<u64>,
    /// Delivery credit it asks for, payload bytes.
    pub credit_bytes: Option<u64>,
    /// It reads seldom.
    pub slow: bool,
    /// It sends mostly what no server should accept.
    pub rude: bool,
    /// It comes under another name each time, sends one numbered event and leaves.
    pub crowd: bool,
    /// Its subscriptions outlive its connections.
    pub resumes: bool,
    /// It does now and then what no careful client does.
    pub bold: bool,
    /// Sessions among its rooms whose comings and goings it wants in the log.
    pub logs: Vec<String>,
    /// Sessions it tells streams into.
    pub tells: Vec<String>,
    /// Sessions whose streams it listens to.
    pub listens: Vec<String>,
    /// Places where it keeps entries: sessions, or `bucket NAME`.
    pub keeps: Vec<String>,
    /// Sessions whose jobs it reads, and publishes.
    pub bosses: Vec<String>,
    /// It publishes none.
    pub silent: bool,
    /// The queue that it declares: fields of the command.
    pub declares: Option<String>,
    /// A second one that it declares and drops again: fields of the command.
    pub side: Option<String>,
    /// Seed of dice of its own about jobs.
    pub dice: u64,
    /// It works on so many jobs at once.
    pub works: Option<u64>,
    /// Subscriptions that a client may hold, of the server's limits.
    pub subscriptions_max: usize,
    /// Largest frame, likewise.
    pub frame_bytes_max: usize,
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
    /// Where the client's own marker stands, once it has set one.
    Marker,
}

impl Role {
    /// It takes no events.
    pub fn listens_to_none(&self) -> bool {
        let none = self.follows.is_empty() && self.patterns.is_empty();
        none && self.tells.is_empty() && self.listens.is_empty() && !self.crowd && !self.rude
    }
}

/// A client of the world. Lives through crashes of the server and knows what it was promised.
pub struct Client {
    /// Number, and name `cNUMBER`.
    pub index: u32,
    /// Of a crowd: how many came before under this number.
    incarnation: u32,
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
    /// `producer_epoch` and next `producer_seq` by session.
    producer_next: BTreeMap<String, (u64, u64)>,
    /// Sessions followed.
    pub follows: BTreeMap<String, Follow>,
    /// Sessions it may be in.
    rooms: BTreeMap<String, presence::Room>,
    /// Told that it changes too often, it waits for so many turns.
    presence_pause: u32,
    /// What it knows of those it watches.
    views: BTreeMap<String, presence::View>,
    receipts: receipts::Receipts,
    /// Pattern feed.
    pub feed: Option<Feed>,
    life: life::Life,
    tells: tell::Tells,
    keeps: keep::Keeps,
    labour: labour::Labour,
    event_frames: u64,
    event_frames_acknowledged: u64,
    /// Payload bytes of event frames: acknowledged, and of each frame that is not.
    event_bytes_acknowledged: u64,
    event_bytes: VecDeque<u64>,
    /// Of each of these: session and next offset of what a subscription brought, and of gaps said before it.
    event_places: VecDeque<Vec<(String, u64)>>,
    /// Gaps that were said and have arrived for sure with the next of these.
    gap_places: Vec<(String, u64)>,
    /// Refusals due that cannot name their command.
    nameless: BTreeMap<&'static str, u64>,
    /// What it sent ends the connection with this code.
    doomed: Option<u16>,
    /// Outcomes of commands, refusals and closes, for the report.
    pub counts: Counts,
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
    /// Those of them that damage made: the events are there, and were not to be had.
    pub damaged: Vec<(u64, u64)>,
    /// Asked to begin at the client's marker, acknowledged at this offset then.
    by_marker: Option<u64>,
    /// What it passed over when it began again at the latest.
    pub passed: Vec<(u64, u64)>,
    /// What ended subscriptions said they left.
    left: Vec<(u64, u64)>,
    /// What may have been left and not said, because the connection went.
    untold: Vec<(u64, u64)>,
    /// Asked to begin again from the latest, and not answered.
    maybe_latest: bool,
    /// What this connection brought, beside a feed.
    shared: mixed::Shared,
}

impl Follow {
    /// Whether its client listens to the session by its feed alone, and where the follow stopped.
    pub fn stopped_at(&self) -> Option<u64> {
        self.next.filter(|_| self.state == State::Left)
    }
}

/// A pattern feed.
#[derive(Debug, Default)]
pub struct Feed {
    state: State,
    /// It was told that it missed something, and not what.
    pub damaged: bool,
    /// Position it began at.
    pub start: Option<BTreeMap<u64, u64>>,
    position: BTreeMap<u64, u64>,
    /// Places that it may have reached, and a subscription that was about to end may have: its life knows which.
    either: BTreeSet<(u64, u64)>,
    /// Events by place.
    pub events: BTreeMap<(u64, u64), (String, u64)>,
    last: BTreeMap<String, u64>,
    /// Of each stream, by session and name: the places at which it was told something, and the number that comes next then.
    texts: BTreeMap<(String, String), Vec<Told>>,
}

/// A place of a slice, and the number of a stream that comes next behind it.
type Told = ((u64, u64), u64);

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum State {
    #[default]
    Idle,
    Asked,
    Live,
    Leaving,
    /// Ended, and the client's feed goes on alone.
    Left,
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
    /// Something wrong.
    Provoked(provoke::Expected),
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
    /// Of its presence in a session, or its view of one.
    Presence(String, presence::Ask),
    /// That it has read a session so far.
    Read(String, u64),
    /// That it watches the receipts of a session, or no longer.
    Minds(String, bool),
    Ping,
    Hello,
    Resume(life::Claim),
    /// A delta of a tale.
    Tell(usize, u64),
    /// The end of a tale.
    TellEnd(usize),
    Listen(String),
    /// Of entries: where, and what.
    Keep(String, keep::Ask),
    /// Of jobs.
    Labour(labour::Ask),
    Other,
}

impl Pending {
    /// Under which its outcome is counted.
    fn kind(&self, work: &BTreeMap<u64, Work>) -> &'static str {
        match self {
            Pending::Work(first) if work.get(first).is_some_and(|work| work.commit) => "commit",
            Pending::Work(_) => "publish",
            Pending::Repeat(_) => "publish or commit again",
            Pending::Reused => "publish under a message id in use",
            Pending::Provoked(_) => "provocation",
            Pending::Subscribe(_) => "subscribe to a session",
            Pending::Unsubscribe(_) => "unsubscribe",
            Pending::SubscribeFeed => "subscribe to patterns",
            Pending::Mark { .. } => "mark",
            Pending::History { .. } => "history",
            Pending::Volatile => "publish, volatile",
            Pending::Presence(..) => "presence",
            Pending::Read(..) => "read",
            Pending::Minds(..) => "watch receipts",
            Pending::Ping => "ping",
            Pending::Hello => "hello",
            Pending::Resume(_) => "resume",
            Pending::Tell(..) => "stream.append",
            Pending::TellEnd(_) => "stream.close",
            Pending::Listen(_) => "subscribe by a policy",
            Pending::Keep(..) => "entries",
            Pending::Labour(_) => "jobs",
            Pending::Other => "other",
        }
    }
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
    traceparent: Option<Cow<'a, str>>,
    data_kind: Option<Cow<'a, str>>,
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
    token: Option<Cow<'a, str>>,
    generation: Option<u64>,
    sessions: Option<u64>,
    patterns: Option<bool>,
    stream: Option<Cow<'a, str>>,
    seq: Option<u64>,
    status: Option<Cow<'a, str>>,
    expected: Option<u64>,
    revision: Option<u64>,
    job: Option<Cow<'a, str>>,
    lease: Option<Cow<'a, str>>,
    time: Option<u64>,
    #[serde(default)]
    joins: bool,
    #[serde(borrow, default)]
    streams: Vec<tell::Part<'a>>,
    #[serde(borrow, default)]
    queues: Vec<declare::Listed<'a>>,
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
        let tells = tell::Tells::new(&role);
        let receipts = receipts::Receipts::new(&role);
        let (keeps, labour) = (keep::Keeps::new(&role, index), labour::Labour::new(&role));
        let rooms = role.rooms.iter().map(|session| (session.clone(), presence::Room::default())).collect();
        let views = role.watches.iter().map(|session| (session.clone(), presence::View::default())).collect();
        Self {
            index,
            incarnation: 0,
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
            rooms,
            presence_pause: 0,
            views,
            receipts,
            life: life::Life::default(),
            tells,
            keeps,
            labour,
            event_frames: 0,
            event_frames_acknowledged: 0,
            event_bytes_acknowledged: 0,
            event_bytes: VecDeque::new(),
            event_places: VecDeque::new(),
            gap_places: Vec::new(),
            nameless: BTreeMap::new(),
            doomed: None,
            counts: Counts::default(),
            closed_with: None,
            said: Vec::new(),
        }
    }

    /// Its `client_id`.
    pub fn name(&self) -> String {
        if self.role.crowd { format!("c{}x{}", self.index, self.incarnation) } else { format!("c{}", self.index) }
    }

    /// Whether it has done what it came for.
    pub fn leaves(&self) -> bool {
        self.role.crowd
            && self.connected
            && self.work.is_empty()
            && self.pending.is_empty()
            && self.next_number > u64::from(self.incarnation)
    }

    /// It comes back as somebody else.
    pub fn left(&mut self) {
        self.incarnation += 1;
    }

    /// The upgrade is through.
    pub fn connected(&mut self, workload: &mut Random, net: &mut Random, oracle: &mut Oracle) {
        self.connected = true;
        self.closed_with = None;
        let credit: Vec<String> = [("events", self.role.credit), ("bytes", self.role.credit_bytes)]
            .iter()
            .filter_map(|(name, bound)| Some(format!("\"{name}\":{}", (*bound)?)))
            .collect();
        if !credit.is_empty() {
            let id = self.command(Pending::Hello);
            let credit = credit.join(",");
            self.send(net, &format!("{{\"type\":\"hello\",\"id\":{id},\"credit\":{{{credit}}}}}"));
        }
        if self.resume(workload, net, oracle) {
            self.resend(net);
            return;
        }
        self.presence_enters_anew();
        // Most clients resume at once, and in order: what was sent first is sent first again.
        if workload.chance(800) {
            self.resend(net);
            self.subscribe_all(net, oracle);
        }
    }

    /// The connection is gone, with all that was on the way. Returns the events whose fate nobody told.
    pub fn disconnected(&mut self) -> Vec<(String, Key)> {
        let mut untold = Vec::new();
        for pending in std::mem::take(&mut self.pending).into_values() {
            self.counts.add(pending.kind(&self.work), "never answered, the connection went");
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
        self.event_bytes_acknowledged = 0;
        self.event_bytes.clear();
        self.event_places.clear();
        self.gap_places.clear();
        self.nameless.clear();
        self.doomed = None;
        self.life.cut_off();
        self.tells.cut_off(self.role.bold && self.role.from == Start::Latest);
        self.keeps.cut_off();
        self.labour.cut_off();
        self.follows.values_mut().for_each(Follow::cut_off);
        self.presence_cut_off();
        self.receipts.cut_off();
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
        if let Some((refusal, _)) = self.nameless.iter().find(|(_, due)| **due > 0) {
            return Some(format!("{refusal} is due"));
        }
        if let Some(why) = self.keeps.unrest(oracle).or_else(|| self.labour.unrest(oracle)) {
            return Some(why);
        }
        if let Some(why) = self.tells.unrest(oracle).or_else(|| self.presence_unrest(&oracle.board)) {
            return Some(why);
        }
        if let Some(why) = self.receipts_unrest(oracle) {
            return Some(why);
        }
        for (session, follow) in &self.follows {
            if follow.state == State::Left {
                continue;
            }
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
            Some(feed) if !oracle.retention && !feed.damaged => {
                let missing = self.missing(feed, oracle)?;
                Some(format!("its feed has not seen {missing:?}"))
            }
            _ => None,
        }
    }

    /// The first event that its feed should have brought, or a subscription beside it, and neither did.
    pub fn missing(&self, feed: &Feed, oracle: &Oracle) -> Option<((u64, u64), (String, u64))> {
        let patterns = &self.role.patterns;
        let wanted = |topic: &str| patterns.iter().any(|p| shards::names::pattern_matches(p, topic));
        let seen = |place, name: &str, offset| {
            feed.events.get(&place).is_some_and(|(n, o)| (n.as_str(), *o) == (name, offset))
        };
        let elsewhere = |session: &str, offset| self.follows.get(session).is_some_and(|f| f.answers_for(offset));
        // What was seen goes out first: it is nearly all of it, and this runs often.
        let places = oracle.places_after(feed.start.as_ref()?).filter(|(place, name, offset, event)| {
            !seen(*place, name, *offset) && wanted(&event.topic) && !elsewhere(name, *offset)
        });
        places.min_by_key(|(place, ..)| *place).map(|(place, name, offset, _)| (place, (name.to_owned(), offset)))
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
        let bounded = self.role.credit.is_some() || self.role.credit_bytes.is_some() || self.role.resumes;
        if bounded && self.event_frames > self.event_frames_acknowledged {
            let fresh = self.event_frames - self.event_frames_acknowledged;
            if calm || workload.chance(300) {
                let worked_off = if calm { fresh } else { workload.between(1, fresh) };
                self.event_frames_acknowledged += worked_off;
                self.event_bytes_acknowledged += self.event_bytes.drain(..worked_off as usize).sum::<u64>();
                let name = self.name();
                let places: Vec<_> = self.event_places.drain(..worked_off as usize).flatten().collect();
                places.iter().for_each(|(session, next)| oracle.board.confirms(session, &name, *next));
                self.life.acknowledges(self.next_id, self.event_frames_acknowledged, places);
                let (events, bytes) = (self.event_frames_acknowledged, self.event_bytes_acknowledged);
                self.counts.add("ack", "sent");
                // Who lent events alone counts events alone.
                let bytes = self.role.credit_bytes.map_or(String::new(), |_| format!(",\"bytes\":{bytes}"));
                self.send(net, &format!("{{\"type\":\"ack\",\"events\":{events}{bytes}}}"));
                return;
            }
        }
        if self.pending.len() >= PENDING_MAX || self.doomed.is_some() {
            return;
        }
        if self.role.crowd {
            self.resend(net);
            if self.next_number <= u64::from(self.incarnation) && !calm {
                self.publish(workload, net, oracle, wall_ms);
            }
            return;
        }
        if self.tell(workload, net, oracle, calm) && self.follows.is_empty() {
            return self.presence_aside(workload, net, oracle, calm);
        }
        if self.keep(workload, net, oracle, calm) || self.labours(workload, net, oracle, calm) {
            return;
        }
        if self.role.rude && !calm && workload.chance(500) {
            return self.provoke(workload, net, oracle);
        }
        match workload.below(100) {
            0..=9 => self.resend(net),
            10..=14 => self.subscribe_all(net, oracle),
            _ if calm => {
                self.resend(net);
                self.subscribe_all(net, oracle);
                self.presence_settles(workload.chance(20), net, &mut oracle.board);
                self.receipts_settle(net, oracle);
            }
            15..=69 => self.publish(workload, net, oracle, wall_ms),
            // After retention a repeat is a new event: nothing could be said about the answer.
            70..=76 if !oracle.retention => self.repeat(workload, net),
            77..=80 if !self.role.rude => self.mark(workload, net, oracle),
            81..=84 => self.history(workload, net, oracle),
            85 => self.unsubscribe(workload, net),
            86..=87 if self.is_mixed() => self.come_back(workload, net),
            91..=93 if self.is_mixed() => self.unsubscribe(workload, net),
            86..=87 => self.volatile(workload, net),
            95..=99 if !self.receipts.is_empty() && workload.chance(500) => self.receipts_act(workload, net, oracle),
            95..=99 => self.presence_acts(workload, net, &mut oracle.board),
            94 if self.role.resumes => self.resume_again(net),
            94 if self.role.bold => self.resume_as_another(net, wall_ms),
            88..=90 => {
                let id = self.command(Pending::Ping);
                self.send(net, &format!("{{\"type\":\"ping\",\"id\":{id}}}"));
            }
            _ => {}
        }
    }
}
