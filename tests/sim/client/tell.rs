//! Token streams: a client tells, in streams of its own, and listens to those of others by a policy.
//!
//! ```text
//!   tale:   begin ─► append, append, … ─┬─► close        each delta sent again until it is acknowledged
//!                                       └─► left alone: the server closes it
//!   heard:  per stream the next number: a delta, or a run of them, must begin there
//! ```

use super::*;

/// A stream that is told.
#[derive(Debug, Default)]
struct Tale {
    session: String,
    stream: String,
    /// Deltas, as JSON string bytes without quotes.
    deltas: Vec<String>,
    /// Of these, acknowledged; from the first on.
    acknowledged: u64,
    /// And sent on this connection.
    sent: u64,
    /// How it shall end, and whether that was sent.
    closing: Option<(&'static str, bool)>,
    /// Nothing more is said.
    over: bool,
}

/// What was heard in a session.
#[derive(Debug, Default)]
pub(super) struct Heard {
    state: State,
    epoch: Option<u64>,
    next: Option<u64>,
    /// What open streams said before is to come first.
    joins: bool,
    /// Next number by stream; `None`: it has ended.
    streams: BTreeMap<String, Option<u64>>,
}

/// A client's tales, and what it heard.
#[derive(Debug, Default)]
pub(super) struct Tells {
    tales: Vec<Tale>,
    heard: BTreeMap<String, Heard>,
    frames: u64,
}

const POLICIES: [&str; 3] = ["lossless", "rollup", "latest"];

/// One part of a merged frame.
#[derive(Deserialize)]
pub(super) struct Part<'a> {
    #[serde(borrow)]
    stream: Cow<'a, str>,
    from_seq: Option<u64>,
    to_seq: Option<u64>,
    #[serde(borrow)]
    delta: Option<&'a RawValue>,
    status: Option<Cow<'a, str>>,
}

fn inner(text: &str) -> &str {
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

impl Tells {
    pub fn new(role: &Role) -> Tells {
        Tells { heard: role.listens.iter().map(|s| (s.clone(), Heard::default())).collect(), ..Tells::default() }
    }

    /// Is the session one of those that are listened to?
    pub fn listens(&self, session: &str) -> bool {
        self.heard.contains_key(session)
    }

    /// The connection is gone. `forgets`: where it was in what it heard, too.
    pub fn cut_off(&mut self, forgets: bool) {
        for tale in &mut self.tales {
            tale.sent = tale.acknowledged;
            if let Some((_, sent)) = &mut tale.closing {
                *sent = false;
            }
        }
        for heard in self.heard.values_mut() {
            heard.state = State::Idle;
            if heard.joins || forgets {
                *heard = Heard::default();
            }
        }
    }

    /// Session, stream and number of the newest delta of an open stream that is acknowledged.
    pub fn newest(&self) -> Option<(&str, &str, u64)> {
        let tale = self.tales.iter().rev().find(|tale| !tale.over && tale.acknowledged > 0)?;
        Some((&tale.session, &tale.stream, tale.acknowledged - 1))
    }

    /// Some stream is told in part.
    pub fn tells_something(&self) -> bool {
        self.tales.iter().any(|tale| !tale.over && tale.acknowledged > 0)
    }

    /// What open streams said before is on its way.
    pub fn joins(&self) -> bool {
        self.heard.values().any(|heard| heard.joins)
    }

    /// Why it has not come to rest.
    pub fn unrest(&self, oracle: &Oracle) -> Option<String> {
        if let Some(tale) = self.tales.iter().find(|t| !t.over && t.acknowledged < t.deltas.len() as u64) {
            return Some(format!("{} is told up to {} of {}", tale.stream, tale.acknowledged, tale.deltas.len()));
        }
        for (session, heard) in &self.heard {
            // A late join whose streams were all over before it began brings nothing; one that is owed shows with what comes next of
            // its streams, at the latest with their end.
            if heard.state != State::Live {
                return Some(format!("{session} is {:?}", heard.state));
            }
            let tail = oracle.streams.tail(session);
            if heard.next < Some(tail) {
                return Some(format!("{session} is heard up to {:?} of {tail}", heard.next));
            }
            if let Some((stream, next)) = heard.streams.iter().find(|(_, next)| next.is_some()) {
                return Some(format!("{stream} is heard up to {next:?}"));
            }
        }
        None
    }
}

impl Client {
    /// Says or asks for something about streams. `false`: it is no such client.
    pub(super) fn tell(&mut self, workload: &mut Random, net: &mut Random, oracle: &mut Oracle, calm: bool) -> bool {
        if self.role.tells.is_empty() && self.role.listens.is_empty() {
            return false;
        }
        self.listen(net);
        if !calm && !self.role.tells.is_empty() {
            let open = self.tells.tales.iter().filter(|tale| !tale.over).count();
            match workload.below(100) {
                0..=9 if open < 3 => {
                    let session = workload.pick(&self.role.tells).clone();
                    let stream = format!("t{}.{}", self.index, self.tells.tales.len());
                    self.tells.tales.push(Tale { session, stream, ..Tale::default() });
                }
                10..=69 if open > 0 => {
                    let at = workload.index(open);
                    let burst = workload.between(1, 4);
                    let most = self.role.data_bytes_max.min(60);
                    if let Some(tale) = self.tells.tales.iter_mut().filter(|tale| !tale.over).nth(at)
                        && tale.closing.is_none()
                        && tale.deltas.len() < 400
                    {
                        for _ in 0..burst {
                            let mut delta = format!("{}.", tale.deltas.len());
                            for _ in 0..workload.below(most) {
                                delta.push((b'a' + workload.below(26) as u8) as char);
                            }
                            delta.push_str(["", "\\n", "\\\"", "\\u00e9", "ü"][workload.index(5)]);
                            oracle.streams.sent(&tale.session, &tale.stream, &delta);
                            tale.deltas.push(delta);
                        }
                    }
                }
                70..=73 if open > 0 => {
                    let status = *workload.pick(&["complete", "partial", "cancelled", "failed"]);
                    let at = workload.index(open);
                    let tale = self.tells.tales.iter_mut().filter(|tale| !tale.over).nth(at);
                    if let Some(tale) = tale.filter(|tale| tale.closing.is_none() && !tale.deltas.is_empty()) {
                        tale.closing = Some((status, false));
                        oracle.streams.closing(&tale.session, &tale.stream, status);
                    }
                }
                // Left alone: what was sent may still come, nothing more is said.
                74..=75 if open > 0 => {
                    let at = workload.index(open);
                    let tale = self.tells.tales.iter_mut().filter(|tale| !tale.over).nth(at);
                    if let Some(tale) = tale.filter(|tale| tale.closing.is_none()) {
                        tale.over = true;
                        self.counts.add("stream", "left alone");
                    }
                }
                _ => {}
            }
        }
        self.tell_on(net);
        if !calm && self.role.bold {
            self.tell_wrongly(workload, net);
        }
        true
    }

    /// Sends what is not sent on this connection.
    fn tell_on(&mut self, net: &mut Random) {
        let mut texts = Vec::new();
        for at in 0..self.tells.tales.len() {
            let tale = &self.tells.tales[at];
            if tale.over {
                continue;
            }
            let (session, stream) = (tale.session.clone(), tale.stream.clone());
            let todo = tale.sent..tale.deltas.len() as u64;
            for seq in todo {
                if self.pending.len() >= PENDING_MAX {
                    break;
                }
                let id = self.command(Pending::Tell(at, seq));
                let tale = &mut self.tells.tales[at];
                tale.sent = seq + 1;
                let delta = &tale.deltas[seq as usize];
                texts.push(format!(
                    "{{\"type\":\"stream.append\",\"id\":{id},\"session\":\"{session}\",\"stream\":\"{stream}\",\
                     \"seq\":{seq},\"delta\":\"{delta}\"}}"
                ));
            }
            let tale = &self.tells.tales[at];
            let all = tale.acknowledged == tale.deltas.len() as u64;
            if let Some((status, false)) = tale.closing
                && all
            {
                let id = self.command(Pending::TellEnd(at));
                self.tells.tales[at].closing = Some((status, true));
                texts.push(format!(
                    "{{\"type\":\"stream.close\",\"id\":{id},\"session\":\"{session}\",\"stream\":\"{stream}\",\
                     \"status\":\"{status}\"}}"
                ));
            }
        }
        for text in texts {
            self.send(net, &text);
        }
    }

    /// Subscribes where it should and does not.
    fn listen(&mut self, net: &mut Random) {
        let policy = POLICIES[self.index as usize % 3];
        let idle: Vec<String> =
            self.tells.heard.iter().filter(|(_, h)| h.state == State::Idle).map(|(s, _)| s.clone()).collect();
        for session in idle {
            let heard = &self.tells.heard[&session];
            let from = match (heard.next, heard.epoch) {
                (Some(next), Some(epoch)) => format!("{{\"offset\":{next},\"epoch\":\"{epoch:016x}\"}}"),
                (Some(next), None) => format!("{{\"offset\":{next}}}"),
                (None, _) if self.role.from == Start::Latest => "\"latest\"".to_owned(),
                (None, _) => "\"earliest\"".to_owned(),
            };
            let id = self.command(Pending::Listen(session.clone()));
            self.send(
                net,
                &format!(
                    "{{\"type\":\"subscribe\",\"id\":{id},\"session\":\"{session}\",\"from\":{from},\
                     \"policy\":\"{policy}\"}}"
                ),
            );
            self.tells.heard.get_mut(&session).expect("idle").state = State::Asked;
        }
    }

    /// It could not be listened to.
    pub(super) fn unlisten(&mut self, session: &str) {
        if let Some(heard) = self.tells.heard.get_mut(session) {
            heard.state = State::Idle;
        }
    }

    pub(super) fn listening(&mut self, session: &str, frame: &Frame<'_>) -> Checked {
        let heard = self.tells.heard.get_mut(session).ok_or("a session that is not listened to")?;
        let next = frame.next.ok_or("no offset")?;
        if let Some(epoch) = &frame.epoch {
            heard.epoch = Some(u64::from_str_radix(epoch, 16).map_err(|e| e.to_string())?);
        }
        if heard.next.is_some_and(|wanted| wanted != next) {
            return Err(format!("{session}: {:?} was next", heard.next));
        }
        (heard.next, heard.state, heard.joins) = (Some(next), State::Live, frame.joins);
        Ok(())
    }

    /// An append or an end was acknowledged.
    pub(super) fn told(&mut self, at: usize, seq: Option<u64>, frame: &Frame<'_>, oracle: &mut Oracle) -> Checked {
        let tale = &mut self.tells.tales[at];
        let Some(seq) = seq else {
            let (status, _) = tale.closing.ok_or("an end that was not sent")?;
            let event_id = Frame::text(&frame.event_id, "event_id")?;
            tale.over = true;
            let count = tale.deltas.len() as u64;
            return oracle.streams.ended(event_id, &tale.session, &tale.stream, status, Some(count));
        };
        match frame.event_id.as_deref() {
            Some(event_id) => oracle.streams.fact(event_id, &tale.session, &tale.stream, seq, None).map(|_| ())?,
            // Of what was appended long ago only that it is there is known.
            None if frame.duplicate => {}
            None => return Err("no event id".to_owned()),
        }
        // Answers may overtake each other; a later one says that the earlier ones are there as well.
        tale.acknowledged = tale.acknowledged.max(seq + 1);
        tale.sent = tale.sent.max(tale.acknowledged);
        Ok(())
    }

    pub(super) fn not_told(&mut self, at: usize, seq: Option<u64>, refusal: &str, frame: &Frame<'_>) -> Checked {
        let retry = frame.code.is_some_and(|code| code < 4200);
        let tale = &mut self.tells.tales[at];
        match refusal {
            _ if retry => {
                tale.sent = tale.acknowledged;
                if let (None, Some((_, sent))) = (seq, &mut tale.closing) {
                    *sent = false;
                }
                Ok(())
            }
            // One before it was put off.
            "stream_gap" => {
                let expected = frame.expected.ok_or("nothing is expected")?;
                if expected < tale.acknowledged || Some(expected) >= seq {
                    return Err(format!("{expected} is expected after {} was acknowledged", tale.acknowledged));
                }
                tale.sent = tale.acknowledged;
                Ok(())
            }
            // The server was faster: its lease was over.
            "stream_closed" => {
                tale.over = true;
                Ok(())
            }
            "too_many_streams" | "stream_too_long" => {
                tale.over = true;
                Ok(())
            }
            "unknown_stream" if tale.acknowledged == 0 => {
                tale.over = true;
                Ok(())
            }
            _ => Err("a good delta was refused for ever".to_owned()),
        }
    }

    /// An event of a stream. `true`: it is one of a session that is listened to.
    pub(super) fn heard(&mut self, frame: &Frame<'_>, oracle: &mut Oracle) -> Checked<(bool, u64)> {
        let session = Frame::text(&frame.session, "session")?;
        let stream = Frame::text(&frame.stream, "stream")?;
        let event_id = Frame::text(&frame.event_id, "event_id")?;
        let seq = frame.seq.ok_or("no seq")?;
        let client = Frame::text(&frame.client, "client")?;
        let (_, epoch, offset) = crate::oracle::parse_event_id(event_id)?;
        match (&frame.status, frame.data) {
            (Some(status), _) => {
                if client == "$server" && status != "partial" {
                    return Err("the server says partial".to_owned());
                }
                self.counts
                    .add("stream", if client == "$server" { "ended by its lease" } else { "ended by its teller" });
                oracle.streams.ended(event_id, session, stream, status, Some(seq))?;
            }
            (None, Some(data)) => {
                oracle.streams.fact(event_id, session, stream, seq, Some(inner(data.get())))?;
            }
            (None, None) => return Err("neither data nor status".to_owned()),
        }
        let Some(heard) = self.tells.heard.get_mut(session) else { return Ok((false, offset)) };
        // Nothing was left to join: a stream that is owed its beginning shows here, by its number.
        heard.joins = false;
        if heard.state != State::Live || heard.next != Some(offset) {
            return Err(format!("{heard:?}"));
        }
        (heard.next, heard.epoch) = (Some(offset + 1), Some(epoch));
        let end = frame.status.is_some();
        heard.goes_on(stream, seq..seq + u64::from(!end), end).map(|()| (true, offset))
    }

    /// Merged deltas.
    pub(super) fn heard_merged(&mut self, frame: &Frame<'_>, oracle: &mut Oracle) -> Checked {
        self.counts.add("frame", "stream.delta");
        self.tells.frames += 1;
        let session = Frame::text(&frame.session, "session")?;
        let joins = self.tells.heard.get(session).ok_or("a session that is not listened to")?.joins;
        for part in &frame.streams {
            let numbers = match (part.from_seq, part.to_seq, part.delta) {
                (Some(from), Some(to), Some(delta)) if from <= to => {
                    oracle.streams.merged(session, &part.stream, from, to, inner(delta.get()))?;
                    from..to + 1
                }
                (None, None, None) => 0..0,
                _ => return Err("a part with half of its fields".to_owned()),
            };
            let heard = self.tells.heard.get_mut(session).expect("looked up above");
            if let Some(status) = &part.status {
                let stood = heard.streams.get(&*part.stream).copied().flatten().unwrap_or(0);
                let count = if numbers.is_empty() { stood } else { numbers.end };
                oracle.streams.end(session, &part.stream, status, None, Some(count))?;
            }
            heard.goes_on(&part.stream, numbers, part.status.is_some())?;
        }
        let heard = self.tells.heard.get_mut(session).expect("looked up above");
        match &frame.event_id {
            None if joins => Ok(()),
            None => Err("no event id".to_owned()),
            Some(event_id) => {
                let (_, epoch, offset) = crate::oracle::parse_event_id(event_id)?;
                let next = heard.next.ok_or("nothing was asked for")?;
                // What was said before the subscription began moves nothing, and may be nothing.
                if (joins && offset + 1 < next) || (!joins && offset < next) {
                    return Err(format!("{session}: {next} was next"));
                }
                (heard.next, heard.epoch, heard.joins) = (Some(offset + 1), Some(epoch), false);
                Ok(())
            }
        }
    }
}

impl Client {
    /// Deltas that the log has merged, of the pattern feed.
    pub(super) fn fed_merged(&mut self, frame: &Frame<'_>, oracle: &mut Oracle) -> Checked {
        self.counts.add("frame", "stream.delta of a feed");
        let session = Frame::text(&frame.session, "session")?;
        let at = crate::oracle::parse_place(Frame::text(&frame.at, "at")?)?;
        let (_, _, offset) = crate::oracle::parse_event_id(Frame::text(&frame.event_id, "event_id")?)?;
        let Some(feed) = self.feed.as_mut().filter(|feed| feed.state == State::Live) else {
            return Err("deltas nobody asked for".to_owned());
        };
        let place = feed.position.entry(at.0).or_default();
        // A text that the feed's first position lies in is told again, at that place, until it is past it.
        let again = at.1 == *place;
        let last = feed.last.entry(session.to_owned()).or_default();
        if at.1 < *place || !again && *last >= offset && offset > 0 {
            return Err(format!("slice {} stood at {place} already, or {session} at {last}: {offset}", at.0));
        }
        (*place, *last) = (at.1, offset.max(*last));
        for part in &frame.streams {
            let (Some(from), Some(to), Some(delta)) = (part.from_seq, part.to_seq, part.delta) else {
                return Err("a part with half of its fields".to_owned());
            };
            oracle.streams.merged(session, &part.stream, from, to, inner(delta.get()))?;
            // What it had of a text before that is told again.
            let next = feed.next_of(session, &part.stream).unwrap_or(from);
            if from > next && !oracle.retention && !feed.damaged {
                return Err(format!("{}: {next} was next", part.stream));
            }
            if next <= to {
                feed.told(session, &part.stream, at, next..to + 1, oracle.retention)?;
            }
        }
        Ok(())
    }
}

impl super::Feed {
    fn next_of(&self, session: &str, stream: &str) -> Option<u64> {
        let texts = self.texts.get(&(session.to_owned(), stream.to_owned()))?;
        texts.last().map(|(_, next)| *next)
    }

    /// It was told these numbers of a stream.
    pub(super) fn told(
        &mut self,
        session: &str,
        stream: &str,
        at: (u64, u64),
        numbers: std::ops::Range<u64>,
        holes: bool,
    ) -> Checked {
        if let Some(next) =
            self.next_of(session, stream).filter(|next| *next != numbers.start && !holes && !self.damaged)
        {
            return Err(format!("{stream}: {next} was next, not {}", numbers.start));
        }
        let texts = self.texts.entry((session.to_owned(), stream.to_owned())).or_default();
        texts.push((at, numbers.end));
        Ok(())
    }

    /// It goes on from a position: what came behind that comes again.
    pub(super) fn forget_texts(&mut self, position: &BTreeMap<u64, u64>) {
        for texts in self.texts.values_mut() {
            texts.retain(|((slice, seq), _)| *seq <= position.get(slice).copied().unwrap_or(0));
        }
    }
}

impl Heard {
    /// These numbers of a stream came, and maybe its end: they begin where the last ended, the first at 0.
    fn goes_on(&mut self, stream: &str, numbers: std::ops::Range<u64>, end: bool) -> Checked {
        let next = self.streams.entry(stream.to_owned()).or_insert(Some(0));
        let Some(stands) = *next else { return Err(format!("{stream} has ended")) };
        if !numbers.is_empty() && stands != numbers.start {
            return Err(format!("{stream}: {stands} was next"));
        }
        *next = (!end).then_some(if numbers.is_empty() { stands } else { numbers.end });
        Ok(())
    }
}
