//! What clients were promised, and whether a server keeps it.
//!
//! ```text
//!   publishers: sent, acknowledged ─┐
//!   reader: delivered               ├─► Ledger ─► judge(what is stored now)
//!   earlier audits: read            ┘
//! ```
//! Each promise carries the length of the journal when it was received: a cut before that point may break it, a later
//! one may not. Promises of earlier runs stand at 0.

use crate::server::{Socket, connect, next, send};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Which event: publisher, session, number within both.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Key {
    /// Publisher.
    pub publisher: u64,
    /// Session.
    pub session: String,
    /// Number in it.
    pub n: u64,
}

/// An event as its publisher made it.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Topic.
    pub topic: String,
    /// Data.
    pub data: Value,
    /// First number and count of its commit.
    pub commit: Option<(u64, u64)>,
}

/// All that was promised, and all that was sent.
#[derive(Default)]
pub struct Ledger {
    /// Every event that a publisher put on a socket.
    pub sent: HashMap<Key, Sent>,
    /// Acknowledged: its event id, where the answer named one, and when.
    pub acknowledged: HashMap<Key, (Option<String>, u64)>,
    /// Shown to somebody: event id → key, place in its slice, and when.
    pub shown: BTreeMap<String, (Key, String, u64)>,
    /// Acknowledged markers: (session, name) → offset and when, oldest first.
    pub marked: BTreeMap<(String, String), Vec<(u64, u64)>>,
    /// (publisher, session) pairs whose pipeline a refusal broke: their order is the publisher's own doing.
    pub loose: BTreeSet<(u64, String)>,
}

/// What a server has stored.
#[derive(Default)]
pub struct Stored {
    /// Session → its events, by offset.
    pub sessions: BTreeMap<String, Vec<Value>>,
    /// (session, marker) → where a subscription from it begins.
    pub markers: BTreeMap<(String, String), Result<u64, String>>,
}

impl Stored {
    /// Events of all sessions.
    pub fn len(&self) -> usize {
        self.sessions.values().map(Vec::len).sum()
    }

    /// Slice → last sequence number in it.
    pub fn slices(&self) -> BTreeMap<u64, u64> {
        let mut last = BTreeMap::new();
        for event in self.sessions.values().flatten() {
            if let Some((slice, seq)) = place(event) {
                let seen = last.entry(slice).or_insert(seq);
                *seen = seq.max(*seen);
            }
        }
        last
    }
}

/// Slice and number in it.
pub fn place(event: &Value) -> Option<(u64, u64)> {
    let (slice, seq) = event["at"].as_str()?.split_once('.')?;
    Some((slice.parse().ok()?, seq.parse().ok()?))
}

/// The key that an event's data carries.
pub fn key_of(event: &Value) -> Option<Key> {
    let data = &event["data"];
    let session = event["session"].as_str()?.to_owned();
    Some(Key { publisher: data["p"].as_u64()?, session, n: data["n"].as_u64()? })
}

/// `session:epoch:offset`, cut.
pub fn cut_event_id(id: &str) -> Option<(&str, &str, u64)> {
    let (rest, offset) = id.rsplit_once(':')?;
    let (session, epoch) = rest.rsplit_once(':')?;
    Some((session, epoch, offset.parse().ok()?))
}

/// Reads everything back.
pub fn read(address: &str, sessions: usize, ledger: &Ledger) -> Result<Stored, String> {
    let mut socket = connect(address, "auditor", None)?;
    let mut stored = Stored::default();
    for session in (0..sessions).map(|n| format!("s{n}")) {
        let mut events = Vec::new();
        loop {
            let from = events.len();
            send(&mut socket, format!(r#"{{"type":"history","session":"{session}","from":{from},"limit":256}}"#))?;
            let mut page = answer(&mut socket)?;
            if page["refusal"] == "unknown_session" {
                break;
            }
            if page["type"] != "history" {
                return Err(format!("history of {session} from {from}: {page}"));
            }
            let Value::Array(more) = page["events"].take() else {
                return Err(format!("a page without events: {page}"));
            };
            let empty = more.is_empty();
            events.extend(more);
            if page["tail"] == page["next"] {
                break;
            }
            if empty {
                return Err(format!("an empty page of {session} before its tail: {page}"));
            }
        }
        stored.sessions.insert(session, events);
    }
    for (session, name) in ledger.marked.keys() {
        send(
            &mut socket,
            format!(r#"{{"type":"subscribe","id":"m","session":"{session}","from":{{"marker":"{name}"}}}}"#),
        )?;
        let reply = loop {
            let frame = next(&mut socket)?;
            if frame["id"] == "m" {
                break frame;
            }
        };
        let begins = reply["next"].as_u64().ok_or_else(|| reply.to_string());
        if begins.is_ok() {
            send(&mut socket, format!(r#"{{"type":"unsubscribe","session":"{session}"}}"#))?;
        }
        stored.markers.insert((session.clone(), name.clone()), begins);
    }
    Ok(stored)
}

/// The next frame that is no delivery.
fn answer(socket: &mut Socket) -> Result<Value, String> {
    loop {
        let frame = next(socket)?;
        if !matches!(frame["type"].as_str(), Some("event" | "gap" | "unsubscribed")) {
            return Ok(frame);
        }
    }
}

impl Ledger {
    /// Every promise received before byte `cut` of the journal is kept by what is stored, and nothing else is there.
    pub fn judge(&self, stored: &Stored, cut: u64) -> Result<(), String> {
        let mut found: HashMap<Key, &Value> = HashMap::new();
        let mut slices: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for (session, events) in &stored.sessions {
            let mut last: BTreeMap<u64, u64> = BTreeMap::new();
            let mut epoch = None;
            for (expected, event) in events.iter().enumerate() {
                let id = event["event_id"].as_str().unwrap_or_default();
                let Some((named, own_epoch, offset)) = cut_event_id(id) else {
                    return Err(format!("no event id: {event}"));
                };
                if (named, offset) != (session.as_str(), expected as u64) {
                    return Err(format!("{session}: offset {expected} expected, {id} found"));
                }
                if *epoch.get_or_insert(own_epoch) != own_epoch {
                    return Err(format!("{session}: two epochs, {id}"));
                }
                let Some((key, sent)) = key_of(event).and_then(|key| Some((key.clone(), self.sent.get(&key)?))) else {
                    return Err(format!("an event that nobody sent: {event}"));
                };
                if sent.data != event["data"] || event["topic"] != *sent.topic {
                    return Err(format!("not what was sent, {sent:?}: {event}"));
                }
                let before = last.insert(key.publisher, key.n);
                let loose = self.loose.contains(&(key.publisher, session.clone()));
                if before.is_some_and(|before| before >= key.n) && !loose {
                    return Err(format!("{key:?} stands behind {before:?} of the same publisher"));
                }
                if let Some((first, count)) = sent.commit {
                    let part = key.n - first;
                    let whole = expected as u64 >= part
                        && (0..count).all(|other| {
                            let at = expected as u64 - part + other;
                            let other = Key { n: first + other, ..key.clone() };
                            events.get(at as usize).and_then(key_of) == Some(other)
                        });
                    if !whole {
                        return Err(format!("a commit of {count} from {first} is torn at {id}"));
                    }
                }
                match place(event) {
                    Some((slice, seq)) => slices.entry(slice).or_default().push(seq),
                    None => return Err(format!("no place: {event}")),
                }
                if found.insert(key.clone(), event).is_some() {
                    return Err(format!("{key:?} is there twice"));
                }
            }
        }
        for (slice, mut seqs) in slices {
            seqs.sort_unstable();
            let from = seqs[0];
            if seqs.iter().enumerate().any(|(index, seq)| *seq != from + index as u64) {
                return Err(format!("places in slice {slice} are not dense: {seqs:?}"));
            }
        }
        for (key, (id, received)) in &self.acknowledged {
            match found.get(key) {
                None if *received > cut => {}
                None => return Err(format!("acknowledged at {received} and lost: {key:?} {id:?}")),
                Some(event) if id.as_ref().is_some_and(|id| event["event_id"] != **id) && *received <= cut => {
                    return Err(format!("acknowledged as {id:?}, stored as {}", event["event_id"]));
                }
                Some(_) => {}
            }
        }
        for (id, (key, at, received)) in &self.shown {
            match found.get(key) {
                _ if *received > cut => {}
                None => return Err(format!("delivered at {received} and lost: {key:?} {id}")),
                Some(event) if event["event_id"] != **id || event["at"] != **at => {
                    return Err(format!(
                        "delivered as {id} at {at}, stored as {} at {}",
                        event["event_id"], event["at"]
                    ));
                }
                Some(_) => {}
            }
        }
        for (marker, acknowledged) in &self.marked {
            let least = acknowledged.iter().filter(|(_, received)| *received <= cut).map(|(offset, _)| *offset).max();
            match (least, stored.markers.get(marker)) {
                (Some(least), Some(Ok(begins))) if *begins >= least => {}
                (None, _) => {}
                (least, found) => {
                    return Err(format!("marker {marker:?} was acknowledged at {least:?}, found {found:?}"));
                }
            }
        }
        Ok(())
    }

    /// Whatever was read has been shown.
    pub fn show(&mut self, stored: &Stored, received: u64) {
        for event in stored.sessions.values().flatten() {
            self.show_one(event, received);
        }
    }

    /// An event that a client got.
    pub fn show_one(&mut self, event: &Value, received: u64) {
        if let (Some(key), Some(id), Some(at)) = (key_of(event), event["event_id"].as_str(), event["at"].as_str()) {
            self.shown.entry(id.to_owned()).or_insert_with(|| (key, at.to_owned(), received));
        }
    }

    /// The run is over and its folder is the next one's beginning: all promises bind from now on.
    pub fn settle(&mut self) {
        self.acknowledged.values_mut().for_each(|(_, received)| *received = 0);
        self.shown.values_mut().for_each(|(_, _, received)| *received = 0);
        self.marked.values_mut().flatten().for_each(|(_, received)| *received = 0);
    }
}
