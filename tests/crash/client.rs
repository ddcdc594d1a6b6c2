//! Clients: publishers that keep each command until it is acknowledged, and a reader that resumes where it was.

use crate::history::{Key, Ledger, Sent, place};
use crate::random::Random;
use crate::server::{Socket, connect, next, send};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What all clients of a run share.
pub struct Run<'a> {
    /// Where the server listens.
    pub address: &'a str,
    /// Journal of the server, where it keeps one.
    pub journal: Option<PathBuf>,
    /// The server is about to go: errors are no surprise, and nothing new is begun.
    pub over: &'a AtomicBool,
}

impl Run<'_> {
    /// Length of the journal now: whatever happened before is within it.
    pub fn received(&self) -> u64 {
        self.journal.as_ref().and_then(|path| path.metadata().ok()).map_or(0, |file| file.len())
    }
}

struct Command {
    id: u64,
    text: String,
    session: String,
    /// Events it carries: first number and count.
    events: Option<(u64, u64)>,
    marker: Option<u64>,
}

/// Numbered messages into random sessions, in order, each sent again until it is acknowledged.
pub struct Publisher {
    number: u64,
    sessions: u64,
    random: Random,
    /// Numbers its messages instead of naming them.
    counts: bool,
    made: u64,
    next: BTreeMap<String, u64>,
    open: VecDeque<Command>,
    settled: BTreeMap<String, u64>,
    /// Commands that were acknowledged as new.
    originals: BTreeSet<u64>,
    /// What it learnt; taken out after each run.
    pub learnt: Ledger,
    /// Refusals that asked it to come back.
    pub refused: u64,
    /// Acknowledgements.
    pub acknowledged: u64,
    /// Answers that called a message a repeat.
    pub duplicates: u64,
}

impl Publisher {
    pub fn new(number: u64, sessions: u64, seed: u64) -> Self {
        let mut random = Random::new(seed ^ number << 32, "publisher");
        let counts = random.chance(250);
        Self {
            number,
            sessions,
            random,
            counts,
            made: 0,
            next: BTreeMap::new(),
            open: VecDeque::new(),
            settled: BTreeMap::new(),
            originals: BTreeSet::new(),
            learnt: Ledger::default(),
            refused: 0,
            acknowledged: 0,
            duplicates: 0,
        }
    }

    /// Publishes until the server goes. An error that is none of the network's doing is a broken promise.
    pub fn run(&mut self, run: &Run<'_>) -> Result<(), String> {
        while !run.over.load(Ordering::Relaxed) {
            let home = self.random.chance(500).then(|| format!("s{}", self.random.below(self.sessions)));
            let Ok(mut socket) = connect(run.address, &format!("p{}", self.number), home.as_deref()) else { continue };
            match self.converse(&mut socket, run) {
                Err(Broken::Promise(why)) => return Err(why),
                Err(Broken::Refused) => std::thread::sleep(Duration::from_millis(5)),
                Ok(()) | Err(Broken::Network) => {}
            }
        }
        Ok(())
    }

    fn converse(&mut self, socket: &mut Socket, run: &Run<'_>) -> Result<(), Broken> {
        let pipeline = *self.random.pick(&[1, 4, 16, 48]);
        let budget = self.random.between(20, 400);
        let mut refused = false;
        let again: Vec<String> = self.open.iter().map(|command| command.text.clone()).collect();
        for batch in again.chunks(8) {
            send(socket, frame(batch)).map_err(|_| Broken::Network)?;
        }
        let mut awaited = self.open.len() as u64;
        let mut sent = 0;
        loop {
            while self.open.len() < pipeline && sent < budget && !refused && !run.over.load(Ordering::Relaxed) {
                let batch: Vec<String> = (0..*self.random.pick(&[1, 1, 3, 8])).map(|_| self.make()).collect();
                sent += batch.len() as u64;
                awaited += batch.len() as u64;
                send(socket, frame(&batch)).map_err(|_| Broken::Network)?;
                if self.random.chance(50) {
                    awaited += batch.len() as u64;
                    send(socket, frame(&batch)).map_err(|_| Broken::Network)?;
                }
            }
            if awaited == 0 {
                return if refused { Err(Broken::Refused) } else { Ok(()) };
            }
            let reply = next(socket).map_err(|_| Broken::Network)?;
            let received = run.received();
            awaited -= u64::from(reply["type"] != "goaway" && reply["type"] != "slow_down");
            match reply["type"].as_str().unwrap_or_default() {
                "published" | "committed" | "marked" => self.acknowledge(&reply, received).map_err(Broken::Promise)?,
                "refused" => {
                    let code = reply["code"].as_u64().unwrap_or_default();
                    match reply["refusal"].as_str().unwrap_or_default() {
                        "marker_backwards" => self.drop_open(&reply),
                        // Behind a refused message of the same pipeline.
                        "producer_gap" if refused => {}
                        _ if code < 4200 => {
                            refused = true;
                            self.refused += 1;
                            for command in &self.open {
                                self.learnt.loose.insert((self.number, command.session.clone()));
                            }
                        }
                        _ => return Err(Broken::Promise(format!("refused for good: {reply}"))),
                    }
                }
                "goaway" | "slow_down" => {}
                _ => return Err(Broken::Promise(format!("a publisher got {reply}"))),
            }
        }
    }

    /// Makes a command and keeps it open.
    fn make(&mut self) -> String {
        let session = format!("s{}", self.random.below(self.sessions));
        let id = self.made;
        self.made += 1;
        let command = match (self.random.below(20), self.settled.get(&session)) {
            (0, Some(&offset)) => {
                let text =
                    json!({"type": "mark", "id": id, "session": session, "name": self.marker(), "offset": offset});
                Command { id, text: text.to_string(), session, events: None, marker: Some(offset) }
            }
            (1..=2, _) if !self.counts => {
                let count = self.random.between(2, 4);
                let first = *self.next.get(&session).unwrap_or(&0);
                let events: Vec<Value> = (0..count).map(|_| self.event(&session, Some((first, count)))).collect();
                let text = json!({"type": "commit", "id": id, "session": session, "events": events});
                Command { id, text: text.to_string(), session, events: Some((first, count)), marker: None }
            }
            _ => {
                let first = *self.next.get(&session).unwrap_or(&0);
                let mut text = self.event(&session, None);
                text["type"] = "publish".into();
                text["id"] = id.into();
                text["session"] = session.clone().into();
                Command { id, text: text.to_string(), session, events: Some((first, 1)), marker: None }
            }
        };
        let text = command.text.clone();
        self.open.push_back(command);
        text
    }

    fn marker(&self) -> String {
        format!("marker{}", self.number)
    }

    fn event(&mut self, session: &str, commit: Option<(u64, u64)>) -> Value {
        let next = self.next.entry(session.to_owned()).or_default();
        let n = *next;
        *next += 1;
        let length = if self.random.chance(100) { 1500 } else { 120 };
        let pad: String =
            (0..self.random.below(length)).map(|_| (b'a' + self.random.below(26) as u8) as char).collect();
        let data = json!({"p": self.number, "n": n, "pad": pad});
        let topic = (*self.random.pick(&["chat.message", "tool.call", "job.llm.step"])).to_owned();
        let key = Key { publisher: self.number, session: session.to_owned(), n };
        let mut event = json!({"topic": topic, "data": data});
        if self.counts {
            event["producer_epoch"] = 1.into();
            event["producer_seq"] = n.into();
        } else {
            event["message_id"] = format!("m{n}").into();
        }
        self.learnt.sent.insert(key, Sent { topic, data, commit });
        event
    }

    fn drop_open(&mut self, reply: &Value) {
        self.open.retain(|command| reply["id"] != command.id);
    }

    fn acknowledge(&mut self, reply: &Value, received: u64) -> Result<(), String> {
        let duplicate = reply["duplicate"] == true;
        self.duplicates += u64::from(duplicate);
        if !duplicate && reply["type"] != "marked" && !self.originals.insert(reply["id"].as_u64().unwrap_or(u64::MAX)) {
            return Err(format!("a repeat is not called a duplicate: {reply}"));
        }
        // Answers come in any order, that to a repeat maybe first; the first one is compared with what is stored.
        let Some(index) = self.open.iter().position(|command| reply["id"] == command.id) else { return Ok(()) };
        let command = self.open.remove(index).expect("just found");
        self.acknowledged += 1;
        if let Some(offset) = command.marker {
            let markers = self.learnt.marked.entry((command.session, self.marker())).or_default();
            markers.push((offset, received));
            return Ok(());
        }
        let Some((first, count)) = command.events else { return Ok(()) };
        if reply["durability"] != "disk" {
            return Err(format!("acknowledged with another durability than disk: {reply}"));
        }
        let id = reply["event_id"].as_str().map(str::to_owned);
        if id.is_none() && !(self.counts && duplicate) {
            return Err(format!("acknowledged without an event id: {reply}"));
        }
        for part in 0..count {
            let id = id.as_ref().and_then(|id| {
                let (session, epoch, offset) = crate::history::cut_event_id(id)?;
                self.settled.insert(session.to_owned(), offset + part);
                Some(format!("{session}:{epoch}:{}", offset + part))
            });
            let key = Key { publisher: self.number, session: command.session.clone(), n: first + part };
            self.learnt.acknowledged.insert(key, (id, received));
        }
        Ok(())
    }
}

enum Broken {
    /// The connection ended.
    Network,
    /// The server asked to come back later.
    Refused,
    /// The server broke its word.
    Promise(String),
}

fn frame(commands: &[String]) -> String {
    match commands {
        [one] => one.clone(),
        many => format!("[{}]", many.join(",")),
    }
}

/// Reads all sessions by pattern, with credit, and resumes from the position that its own events make.
#[derive(Default)]
pub struct Reader {
    position: Option<BTreeMap<u64, u64>>,
    seen: BTreeSet<String>,
    /// What it was shown; taken out after each run.
    pub shown: Vec<(Value, u64)>,
    /// Times it went on from a position.
    pub resumed: u64,
}

impl Reader {
    /// Reads until the server goes, or until everything below `until` (slice → sequence number) has come.
    pub fn run(&mut self, run: &Run<'_>, until: Option<&BTreeMap<u64, u64>>) -> Result<(), String> {
        while !run.over.load(Ordering::Relaxed) {
            if until.is_some_and(|until| self.has_reached(until)) {
                return Ok(());
            }
            let Ok(mut socket) = connect(run.address, "reader", None) else { continue };
            self.read(&mut socket, run, until)?;
        }
        Ok(())
    }

    fn has_reached(&self, until: &BTreeMap<u64, u64>) -> bool {
        self.position
            .as_ref()
            .is_some_and(|position| until.iter().all(|(slice, seq)| position.get(slice).is_some_and(|at| at >= seq)))
    }

    fn read(&mut self, socket: &mut Socket, run: &Run<'_>, until: Option<&BTreeMap<u64, u64>>) -> Result<(), String> {
        let from = match &self.position {
            None => json!("earliest"),
            Some(position) => {
                self.resumed += 1;
                let parts: Vec<String> = position.iter().map(|(slice, seq)| format!("{slice}.{seq}")).collect();
                json!({"position": parts.join(",")})
            }
        };
        let hello = json!({"type": "hello", "credit": {"events": 64}});
        let subscribe = json!({"type": "subscribe", "id": "r", "patterns": [">"], "from": from});
        if send(socket, format!("[{hello},{subscribe}]")).is_err() {
            return Ok(());
        }
        let mut worked_off = 0;
        loop {
            let Ok(frame) = next(socket) else { return Ok(()) };
            match frame["type"].as_str().unwrap_or_default() {
                "subscribed" => {
                    self.position.get_or_insert_default();
                }
                "event" => {
                    worked_off += 1;
                    self.take(frame, run.received())?;
                }
                "goaway" | "slow_down" => {}
                _ => return Err(format!("the reader got {frame}")),
            }
            if worked_off % 16 == 0 && send(socket, format!(r#"{{"type":"ack","events":{worked_off}}}"#)).is_err() {
                return Ok(());
            }
            if until.is_some_and(|until| self.has_reached(until)) {
                return Ok(());
            }
        }
    }

    fn take(&mut self, event: Value, received: u64) -> Result<(), String> {
        let Some((slice, seq)) = place(&event) else { return Err(format!("no place: {event}")) };
        let id = event["event_id"].as_str().unwrap_or_default().to_owned();
        let Some(position) = &mut self.position else {
            return Err(format!("an event before its subscription: {event}"));
        };
        let before = position.insert(slice, seq);
        if before.is_some_and(|before| before >= seq) {
            return Err(format!("slice {slice} went from {before:?} to {seq}: {id}"));
        }
        if !self.seen.insert(id.clone()) {
            return Err(format!("the reader got {id} twice"));
        }
        self.shown.push((event, received));
        Ok(())
    }

    /// Everything below its position was shown, once.
    pub fn judge<'a>(&self, stored: impl Iterator<Item = &'a Value>) -> Result<(), String> {
        for event in stored {
            let id = event["event_id"].as_str().unwrap_or_default();
            if !self.seen.contains(id) {
                return Err(format!("the reader never got {id} at {}", event["at"]));
            }
        }
        Ok(())
    }
}
