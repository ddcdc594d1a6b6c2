//! A client whose subscriptions outlive its connections: it resumes with the token of its last answer.
//!
//! ```text
//!   connect ─► resume {token, attempt} ─► resumed {token, generation, n} ─► n × subscribed, without id ─► the rest is subscribed
//!                 │        │
//!                 │        ├─ with own positions: each session goes on exactly there
//!                 │        └─ without: at or before what was seen, never behind it; what comes again is the same
//!                 └─ now and then an old token before it: refused, whatever else
//! ```
//! What the server has an acknowledgement of is not told again: a connection's last words bring it home before the life is
//! handed over.
//! A life is lost only where its home's newest event is: by retention, or by damage. Otherwise the newest token is always good,
//! and one whose answer was lost is good once more.

use super::*;

/// Half of the runs of frames that a server remembers one by one.
const FRAMES_KNOWN_ONE_BY_ONE: u64 = 32;

/// What a client knows of its life.
#[derive(Debug, Default)]
pub(super) struct Life {
    /// For the next connection.
    token: Option<String>,
    /// How often that was sent.
    attempt: u64,
    /// Tokens that later ones have replaced.
    old: Vec<String>,
    /// Tokens that it has lost, good until a later one replaces them.
    lost: Vec<String>,
    /// The newest it was told of.
    generation: u64,
    stage: Stage,
    /// The pending `resume` gives positions.
    exact: bool,
    /// Sessions that a subscribe of this life was answered for, on this process: their subscriptions are kept.
    sure: BTreeSet<String>,
    /// Restored because it named them, and kept once the life is whole.
    named: BTreeSet<String>,
    /// Those that are sure and have yet to be restored on this connection.
    owed: BTreeSet<String>,
    /// Event frames of this connection that came before its life began.
    frames_before: u64,
    /// Acknowledgements that the server has when it answers a command: its id, frames, sessions with their next offsets.
    acks: VecDeque<Ack>,
    /// So far the server has acknowledgements of a session: no life goes on before.
    acknowledged: BTreeMap<String, u64>,
}

/// The first command behind it, frames acknowledged, sessions with their next offsets.
type Ack = (u64, u64, Vec<(String, u64)>);

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Stage {
    /// This connection has not resumed.
    #[default]
    None,
    Asked,
    /// So many subscriptions are to be told, and maybe the feed.
    Restoring(u64, bool),
    Living,
}

/// Which `resume` was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Claim {
    New,
    Token,
    /// One that was replaced, or is no token.
    Bad(&'static str),
    /// A second one on the same connection.
    Again,
}

impl Life {
    /// The connection is gone.
    pub(super) fn cut_off(&mut self) {
        self.stage = Stage::None;
        self.named.clear();
        self.acks.clear();
    }

    /// Its client has lost the token, and begins another.
    fn forget_token(&mut self) {
        self.lost.extend(self.token.take());
        self.attempt = 0;
    }

    /// Subscriptions are being restored: what is missing is not known yet.
    pub(super) fn settles(&self) -> bool {
        matches!(self.stage, Stage::Asked | Stage::Restoring(..))
    }

    /// It was granted to this connection.
    pub(super) fn goes_on(&self) -> bool {
        matches!(self.stage, Stage::Restoring(..) | Stage::Living)
    }

    /// And everything of it stands again: what changes from here on is kept.
    pub(super) fn is_whole(&self) -> bool {
        self.stage == Stage::Living
    }

    /// It was asked for and not answered.
    pub(super) fn is_asked(&self) -> bool {
        self.stage == Stage::Asked
    }

    /// A feed is to be restored.
    pub(super) fn restores_feed(&self) -> bool {
        matches!(self.stage, Stage::Restoring(_, true))
    }

    /// A subscribe was answered.
    pub(super) fn stands(&mut self, session: &str) {
        if self.stage == Stage::Living {
            self.sure.insert(session.to_owned());
        }
    }

    /// It acknowledged so many frames, which brought it this far in these sessions; the next command has this id.
    pub(super) fn acknowledges(&mut self, next_id: u64, frames: u64, places: Vec<(String, u64)>) {
        if self.stage == Stage::Living && frames >= self.frames_before {
            self.acks.push_back((next_id, frames, places));
        }
    }

    /// A command was answered, when so many frames had come: all that was sent before it has been worked off.
    pub(super) fn answered(&mut self, id: u64, frames: u64) {
        while self.acks.front().is_some_and(|ack| ack.0 <= id) {
            let Some((_, acknowledged, places)) = self.acks.pop_front() else { break };
            // Of more the server may remember only where they begin.
            if frames - acknowledged >= FRAMES_KNOWN_ONE_BY_ONE {
                continue;
            }
            for (session, next) in places {
                let most = self.acknowledged.entry(session).or_default();
                *most = next.max(*most);
            }
        }
    }

    /// An unsubscribe was sent.
    pub(super) fn leaves(&mut self, session: &str) {
        self.sure.remove(session);
        self.named.remove(session);
    }

    fn told(&mut self, feed: bool) -> Checked {
        self.stage = match self.stage {
            Stage::Restoring(left, owed) if !feed && left > 0 => Stage::Restoring(left - 1, owed),
            Stage::Restoring(left, true) if feed => Stage::Restoring(left, false),
            stage => return Err(format!("restored in {stage:?}")),
        };
        self.settle()
    }

    fn settle(&mut self) -> Checked {
        if self.stage == Stage::Restoring(0, false) {
            self.stage = Stage::Living;
            self.sure.append(&mut self.named);
            if let Some(session) = self.owed.first() {
                return Err(format!("{session} was subscribed and is not restored: {self:?}"));
            }
        }
        Ok(())
    }
}

impl Client {
    /// The server's process is a new one. Where the one before did not end well, what was not durable is gone.
    pub fn server_began(&mut self, kept: bool) {
        if !kept {
            self.life.sure.clear();
            self.life.acknowledged.clear();
            self.presence_may_be_lost();
        }
    }

    /// It waits for its life, and says nothing else on this connection.
    pub fn resumes_alone(&self) -> bool {
        self.life.is_asked() && self.life.token.is_some()
    }

    /// This connection has a life, or is to get one.
    pub fn has_life(&self) -> bool {
        self.life.is_asked() || self.life.goes_on()
    }

    /// So many events have come to it, by subscriptions of its life.
    pub fn has_seen(&self, events: u64) -> bool {
        let followed: usize = self.follows.values().map(|follow| follow.events.len()).sum();
        let fed = self.feed.as_ref().map_or(0, |feed| feed.events.len());
        self.life.is_whole() && (followed + fed) as u64 >= events
    }

    /// On a new connection: takes its life again, or begins one. Returns whether it did.
    pub(super) fn resume(&mut self, workload: &mut Random, net: &mut Random, oracle: &mut Oracle) -> bool {
        if !self.role.resumes || workload.chance(120) {
            return false;
        }
        if let Some(old) = self.life.old.last().cloned().filter(|_| workload.chance(150)) {
            let id = self.command(Pending::Resume(Claim::Bad("stale_token")));
            self.send(net, &format!("{{\"type\":\"resume\",\"id\":{id},\"token\":\"{old}\",\"attempt\":0}}"));
        }
        if workload.chance(50) {
            let id = self.command(Pending::Resume(Claim::Bad("bad_token")));
            let mut forged = self.life.token.clone().unwrap_or_else(|| "AQEAAAAA".to_owned());
            forged.insert(forged.len() / 2, 'A');
            self.send(net, &format!("{{\"type\":\"resume\",\"id\":{id},\"token\":\"{forged}\"}}"));
        }
        if self.role.bold && workload.chance(150) {
            self.life.forget_token();
        }
        self.life.stage = Stage::Asked;
        self.life.exact = workload.chance(400);
        let Some(token) = self.life.token.clone() else {
            let id = self.command(Pending::Resume(Claim::New));
            self.send(net, &format!("{{\"type\":\"resume\",\"id\":{id}}}"));
            return true;
        };
        self.life.attempt += 1;
        let own = if self.life.exact { self.own_positions() } else { String::new() };
        for (session, next) in self.follows.iter().filter_map(|(session, follow)| Some((session, follow.next?))) {
            if self.life.exact {
                oracle.board.confirms(session, &self.name(), next);
            }
        }
        let (id, attempt) = (self.command(Pending::Resume(Claim::Token)), self.life.attempt);
        let text = format!("{{\"type\":\"resume\",\"id\":{id},\"token\":\"{token}\",\"attempt\":{attempt}{own}}}");
        self.send(net, &text);
        true
    }

    /// `seen` and `position` as fields.
    fn own_positions(&self) -> String {
        let seen: Vec<String> = self
            .follows
            .iter()
            .filter_map(|(session, follow)| {
                let (last, epoch) = (follow.next?.checked_sub(1)?, follow.epoch?);
                Some(format!("\"{session}:{epoch:016x}:{last}\""))
            })
            .collect();
        let mut text = format!(",\"seen\":[{}]", seen.join(","));
        if let Some(feed) = self.feed.as_ref().filter(|feed| feed.start.is_some()) {
            let parts: Vec<String> = feed.position.iter().map(|(slice, seq)| format!("{slice}.{seq}")).collect();
            let _ = write!(text, ",\"position\":\"{}\"", parts.join(","));
        }
        text
    }

    /// A second `resume` where there was one.
    pub(super) fn resume_again(&mut self, net: &mut Random) {
        if self.life.stage == Stage::Living {
            let id = self.command(Pending::Resume(Claim::Again));
            self.send(net, &format!("{{\"type\":\"resume\",\"id\":{id}}}"));
        }
    }

    pub(super) fn resumed(&mut self, claim: Claim, frame: &Frame<'_>, oracle: &Oracle) -> Checked {
        if matches!(claim, Claim::Bad(_) | Claim::Again) {
            return Err(format!("{claim:?} was taken"));
        }
        let (Some(generation), Some(sessions)) = (frame.generation, frame.sessions) else {
            return Err("no generation".to_owned());
        };
        let named = Frame::text(&frame.client, "client")?;
        if named != self.name() {
            return Err(format!("resumed as {named}"));
        }
        // Where its home's session is gone, with all that was, a new life begins to count anew.
        let lost = claim == Claim::New && (oracle.retention || oracle.damage);
        if generation <= self.life.generation && !lost {
            return Err(format!("generation {generation} after {}", self.life.generation));
        }
        if claim == Claim::New && (sessions > 0 || frame.patterns == Some(true)) {
            return Err("a new life with a past".to_owned());
        }
        if !oracle.retention && !oracle.damage && sessions > self.follows.len() as u64 {
            return Err(format!("{sessions} sessions, follows {}", self.follows.len()));
        }
        let token = Frame::text(&frame.token, "token")?.to_owned();
        self.life.old.append(&mut self.life.lost);
        self.life.old.extend(self.life.token.replace(token));
        self.life.attempt = 0;
        self.life.generation = generation;
        self.life.stage = Stage::Restoring(sessions, frame.patterns == Some(true));
        if claim == Claim::New || oracle.fills || oracle.retention || oracle.damage {
            self.life.sure.clear();
            self.life.acknowledged.clear();
            self.presence_may_be_lost();
        }
        self.life.frames_before = self.event_frames;
        if claim == Claim::New {
            self.presence_enters_anew();
        }
        self.life.owed = self.life.sure.clone();
        self.life.settle()
    }

    pub(super) fn resume_refused(&mut self, claim: Claim, refusal: &str, retry: bool, oracle: &Oracle) -> Checked {
        let lost = oracle.retention || oracle.damage;
        match claim {
            Claim::Bad(expected) if refusal == expected => return Ok(()),
            // What is wrong with a second one is seen first, or last.
            Claim::Bad(_) | Claim::Again if refusal == "already_resumed" || retry => return Ok(()),
            Claim::New | Claim::Token if retry => {}
            Claim::Token if refusal == "stale_token" && lost => {
                self.life.token = None;
                self.life.attempt = 0;
                self.presence_may_be_lost();
            }
            _ => return Err(format!("{claim:?} was refused with {refusal}: {:?}", self.life)),
        }
        self.life.stage = Stage::None;
        self.presence_enters_anew();
        Ok(())
    }

    /// A `subscribed` without id: a kept subscription stands again.
    pub(super) fn restored(&mut self, frame: &Frame<'_>, oracle: &mut Oracle) -> Checked {
        let Some(session) = frame.session.as_deref() else {
            self.life.told(true)?;
            if !self.life.exact {
                self.rewind_feed(Frame::text(&frame.position, "position")?)?;
            }
            self.counts.add("resume", "a feed restored");
            return self.subscribed_feed(frame);
        };
        self.life.owed.remove(session);
        let is_named = self.life.exact && !self.life.sure.contains(session);
        let stands = if is_named { &mut self.life.named } else { &mut self.life.sure };
        stands.insert(session.to_owned());
        self.life.told(false)?;
        let next = frame.next.ok_or("no offset")?;
        let exact = self.life.exact;
        let follow = self.follows.get_mut(session).ok_or("a session that was never followed")?;
        if exact && follow.next.is_some_and(|stood| stood > 0) && follow.epoch.is_some() {
            self.counts.add("resume", "a session restored where it stood");
        } else {
            self.counts.add("resume", "a session restored by acknowledgements");
            if let Some(acknowledged) = self.life.acknowledged.get(session).filter(|acknowledged| next < **acknowledged)
            {
                return Err(format!("{session} goes on at {next}, and was acknowledged below {acknowledged}"));
            }
            // An answer that was lost may have named another place.
            follow.by_marker = None;
            follow.rewind(next, oracle.retention)?;
        }
        let session = session.to_owned();
        self.subscribed(&session, frame, oracle)
    }

    fn rewind_feed(&mut self, position: &str) -> Checked {
        let feed = self.feed.as_mut().ok_or("no feed was asked for")?;
        if feed.start.is_none() {
            return Ok(());
        }
        let mut given = BTreeMap::new();
        for part in position.split(',').filter(|part| !part.is_empty()) {
            let (slice, seq) = parse_place(part)?;
            given.insert(slice, seq);
        }
        for (slice, seq) in &given {
            let stood = feed.position.get(slice).copied().unwrap_or(0);
            if *seq > stood && !feed.either.contains(&(*slice, *seq)) {
                return Err(format!("slice {slice} resumes at {seq}, stood at {stood}"));
            }
        }
        feed.position = given;
        feed.either.clear();
        let position = &feed.position;
        feed.events.retain(|(slice, seq), _| *seq <= position.get(slice).copied().unwrap_or(0));
        let position = position.clone();
        feed.forget_texts(&position);
        feed.last.clear();
        for (session, offset) in feed.events.values() {
            let last = feed.last.entry(session.clone()).or_default();
            *last = (*last).max(*offset);
        }
        Ok(())
    }
}

impl Follow {
    /// What was not acknowledged comes again.
    fn rewind(&mut self, next: u64, retention: bool) -> Checked {
        let Some(stood) = self.next else {
            // The answer to the subscribe was lost: where it began is known now.
            (self.first, self.next) = (next, Some(next));
            return Ok(());
        };
        if next > stood && self.maybe_latest {
            // It had begun again from the latest, and the answer was lost; what lies between was the feed's.
            self.passed.push((stood, next));
            self.untold.push((stood, next));
            self.next = Some(next);
            return Ok(());
        }
        if next > stood && !retention {
            return Err(format!("goes on at {next}, stood at {stood}: what lies between is lost"));
        }
        self.first = self.first.min(next);
        self.next = Some(next.min(stood));
        self.events.retain(|(offset, _)| *offset < next);
        for ranges in [&mut self.gaps, &mut self.damaged, &mut self.passed] {
            ranges.retain(|(from, _)| *from < next);
            ranges.iter_mut().for_each(|(_, to)| *to = next.min(*to));
        }
        Ok(())
    }
}
