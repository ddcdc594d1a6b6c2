//! The decoder against one that is written to be read: it makes a tree of the whole frame, character by character,
//! and looks its fields up by name. What the two say of a frame must be the same, whatever was done to it. For tests and fuzzers only;
//! frames of over 4 KiB may hold more events and ids than it counts.

mod groups;
#[cfg(test)]
mod tests;
mod work;

use super::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use shards::command::{
    Claim, DataKind, Durability, From, JobName, Lease, NewDelta, NewEvent, NewMarker, PatternFrom, Policy, PresenceAct,
    PresenceState, QuotaAsk, Revocable, RosterKind, SeenEvent, StreamStatus,
};
use shards::ids::{InlineText, SLICES};
use shards::limits::{Kind, PresenceLimits, Quota, WorkLimits};

/// The bounds that [`decoded`] sets: small, so that frames of a few hundred bytes reach them.
const EVENT_BYTES_MAX: usize = 128;
const PRESENCE_BYTES_MAX: usize = 64;
const ENTRY_BYTES_MAX: usize = 48;
const PROGRESS_BYTES_MAX: usize = 32;

/// Every command of a frame, in words, as the decoder reads it.
pub fn decoded(frame: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut scratch = Scratch::new(&Limits {
        event_bytes_max: EVENT_BYTES_MAX,
        presence: PresenceLimits { data_bytes_max: PRESENCE_BYTES_MAX, ..PresenceLimits::default() },
        work: WorkLimits {
            entry_bytes_max: ENTRY_BYTES_MAX,
            progress_bytes_max: PROGRESS_BYTES_MAX,
            ..WorkLimits::default()
        },
        ..Limits::default()
    });
    let rest = decode(frame, Resume::default(), &mut scratch, |id, result| {
        out.push(match result {
            Ok(command) => format!("{id:?} {command:?}"),
            Err(refused) => format!("{id:?} {} {}", refused.refusal.name(), refused.field),
        });
        ControlFlow::Continue(())
    });
    assert_eq!(rest, None);
    out
}

#[derive(Clone, Debug, PartialEq)]
enum Tree {
    Null,
    True,
    False,
    Number,
    Text(String),
    Array(Vec<Node>),
    Object(Vec<(String, Node)>),
}

/// A value, how it is written, and the containers in it.
#[derive(Clone, Debug, PartialEq)]
struct Node {
    tree: Tree,
    raw: String,
    depth: usize,
}

/// Where a text broke: the keys that lead there, and the fields of the outermost object that were whole before.
#[derive(Default)]
struct Break {
    path: Vec<String>,
    before: Vec<(String, Node)>,
}

struct Parser<'a> {
    rest: &'a str,
    /// Keys of the objects that are open; an element of an array goes by `[]`.
    path: Vec<String>,
    /// Fields of the outermost object.
    outermost: Vec<(String, Node)>,
    open: usize,
}

impl Parser<'_> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\n', '\r', '\t']);
    }

    fn take(&mut self, token: &str) -> bool {
        self.space();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn must(&mut self, token: &str) -> Option<()> {
        self.take(token).then_some(())
    }

    fn value(&mut self) -> Option<Node> {
        self.space();
        let start = self.rest;
        let mut depth = 0;
        let tree = match start.chars().next()? {
            '"' => Tree::Text(self.text()?),
            '{' | '[' => {
                if self.open == 125 {
                    return None;
                }
                self.open += 1;
                let tree = if self.take("{") { self.object()? } else { self.array()? };
                self.open -= 1;
                let inner: Vec<usize> = match &tree {
                    Tree::Object(fields) => fields.iter().map(|(_, node)| node.depth).collect(),
                    Tree::Array(nodes) => nodes.iter().map(|node| node.depth).collect(),
                    _ => Vec::new(),
                };
                depth = 1 + inner.into_iter().max().unwrap_or(0);
                tree
            }
            'n' => self.must("null").map(|()| Tree::Null)?,
            't' => self.must("true").map(|()| Tree::True)?,
            'f' => self.must("false").map(|()| Tree::False)?,
            _ => self.number().map(|()| Tree::Number)?,
        };
        Some(Node { tree, raw: start[..start.len() - self.rest.len()].to_owned(), depth })
    }

    fn object(&mut self) -> Option<Tree> {
        let outermost = self.path.is_empty();
        let mut fields = Vec::new();
        if self.take("}") {
            return Some(Tree::Object(fields));
        }
        loop {
            self.space();
            let key = self.text()?;
            self.must(":")?;
            self.path.push(key.clone());
            let node = self.value()?;
            self.path.pop();
            if outermost {
                self.outermost.push((key.clone(), node.clone()));
            }
            fields.push((key, node));
            if self.take("}") {
                return Some(Tree::Object(fields));
            }
            self.must(",")?;
        }
    }

    fn array(&mut self) -> Option<Tree> {
        self.must("[")?;
        let mut nodes = Vec::new();
        if self.take("]") {
            return Some(Tree::Array(nodes));
        }
        loop {
            self.path.push("[]".to_owned());
            nodes.push(self.value()?);
            self.path.pop();
            if self.take("]") {
                return Some(Tree::Array(nodes));
            }
            self.must(",")?;
        }
    }

    fn text(&mut self) -> Option<String> {
        let inside = self.rest.strip_prefix('"')?;
        let (mut end, mut escaped) = (None, false);
        for (at, c) in inside.char_indices() {
            match c {
                _ if c < ' ' => return None,
                '"' if !escaped => {
                    end = Some(at);
                    break;
                }
                _ => escaped = c == '\\' && !escaped,
            }
        }
        let end = end?;
        self.rest = &inside[end + 1..];
        // serde_json refuses half of a surrogate pair as the protocol does.
        serde_json::from_str(&format!("\"{}\"", &inside[..end])).ok()
    }

    fn number(&mut self) -> Option<()> {
        let digits = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let mut rest = self.rest.strip_prefix('-').unwrap_or(self.rest);
        let whole = if rest.starts_with('0') { 1 } else { digits(rest) };
        let mut good = whole > 0;
        rest = &rest[whole..];
        if let Some(fraction) = rest.strip_prefix('.') {
            good &= digits(fraction) > 0;
            rest = &fraction[digits(fraction)..];
        }
        if let Some(power) = rest.strip_prefix(['e', 'E']) {
            let power = power.strip_prefix(['+', '-']).unwrap_or(power);
            good &= digits(power) > 0;
            rest = &power[digits(power)..];
        }
        self.rest = rest;
        good.then_some(())
    }
}

/// The frame as a tree, or where it broke.
fn parsed(frame: &str) -> Result<Node, Break> {
    let mut parser = Parser { rest: frame, path: Vec::new(), outermost: Vec::new(), open: 0 };
    let node = parser.value();
    parser.space();
    match node {
        Some(node) if parser.rest.is_empty() => Ok(node),
        Some(_) => Err(Break { path: Vec::new(), before: parser.outermost }),
        None => Err(Break { path: parser.path, before: parser.outermost }),
    }
}

type No = (Refusal, String);

/// The fields of one object, and what is put before their names where one is refused.
struct Object<'a> {
    fields: &'a [(String, Node)],
    before: &'static str,
}

impl<'a> Object<'a> {
    fn no(&self, refusal: Refusal, field: &str) -> No {
        (refusal, format!("{}{field}", self.before))
    }

    /// The last of this name.
    fn node(&self, field: &str) -> Option<&'a Node> {
        self.fields.iter().rev().find(|(key, _)| key == field).map(|(_, node)| node)
    }

    fn get(&self, field: &str) -> Option<&'a Node> {
        self.node(field).filter(|node| node.tree != Tree::Null)
    }

    fn must(&self, field: &str) -> Result<&'a Node, No> {
        self.get(field).ok_or_else(|| self.no(Refusal::MissingField, field))
    }

    fn once(&self) -> Result<(), No> {
        let known = |key: &String| super::fields::ALL.iter().any(|field| field.name(Inside::Command) == key);
        let again = |i: usize| self.fields[..i].iter().any(|(key, _)| *key == self.fields[i].0);
        match (0..self.fields.len()).find(|i| known(&self.fields[*i].0) && again(*i)) {
            Some(i) => Err(self.no(Refusal::RepeatedField, &self.fields[i].0)),
            None => Ok(()),
        }
    }

    fn text(&self, field: &str) -> Result<&'a str, No> {
        match &self.must(field)?.tree {
            Tree::Text(text) => Ok(text),
            _ => Err(self.no(Refusal::WrongType, field)),
        }
    }

    fn held(&self, field: &str, holds: impl Fn(&str) -> bool, refusal: Refusal) -> Result<&'a str, No> {
        self.text(field).and_then(|text| if holds(text) { Ok(text) } else { Err(self.no(refusal, field)) })
    }

    fn name(&self, field: &str) -> Result<&'a str, No> {
        self.held(field, is_name, Refusal::BadName)
    }

    fn integer(&self, field: &str) -> Result<u64, No> {
        let node = self.must(field)?;
        if node.tree != Tree::Number || node.raw.contains(['.', 'e', 'E']) {
            return Err(self.no(Refusal::WrongType, field));
        }
        node.raw.parse().ok().filter(|n| *n < 1u64 << 53).ok_or_else(|| self.no(Refusal::OutOfRange, field))
    }

    fn optional<T>(&self, field: &str, take: impl Fn(&Self, &str) -> Result<T, No>) -> Result<Option<T>, No> {
        self.get(field).map(|_| take(self, field)).transpose()
    }

    /// What is wrong inside is told by the field that holds it.
    fn inside<T>(&self, field: &str, node: &'a Node, take: impl Fn(&Object<'a>) -> Result<T, No>) -> Result<T, No> {
        let Tree::Object(fields) = &node.tree else { return Err(self.no(Refusal::WrongType, field)) };
        let inner = Object { fields, before: "" };
        inner.once().and_then(|()| take(&inner)).map_err(|(refusal, _)| self.no(refusal, field))
    }
}

fn of(bytes: &str, range: std::ops::RangeInclusive<usize>, good: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_alphanumeric() || good.contains(c);
    range.contains(&bytes.len()) && bytes.chars().all(alphanumeric)
}

fn is_name(text: &str) -> bool {
    of(text, 1..=128, "_.:-")
}

fn is_topic(text: &str) -> bool {
    text.len() <= 128 && text.split('.').count() <= 16 && text.split('.').all(|token| of(token, 1..=128, "_-"))
}

fn is_pattern(text: &str) -> bool {
    let whole = text.strip_suffix(".>").unwrap_or(if text == ">" { "x" } else { text });
    let tokens = text.split('.').count();
    text.len() <= 128 && tokens <= 16 && whole.split('.').all(|token| token == "*" || of(token, 1..=128, "_-"))
}

fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| !text.starts_with('+'))
}

fn epoch(text: &str) -> Option<u64> {
    let good = text.len() == 16 && text.chars().all(|c| "0123456789abcdef".contains(c));
    good.then(|| u64::from_str_radix(text, 16).ok())?
}

fn is_event_id(text: &str) -> bool {
    let Some((rest, offset)) = text.rsplit_once(':') else { return false };
    let Some((session, life)) = rest.rsplit_once(':') else { return false };
    is_name(session) && epoch(life).is_some() && number(offset).is_some()
}

fn is_position(text: &str) -> bool {
    let part = |(slice, seq)| number(slice).is_some_and(|n| n < u64::from(SLICES)) && number(seq).is_some();
    text.is_empty() || text.split(',').all(|one| one.split_once('.').is_some_and(part))
}

/// An event of which the data may have to be kept elsewhere.
struct Event<'a> {
    event: NewEvent<'a>,
    data: Option<Vec<u8>>,
}

fn event<'a>(fields: &Object<'a>, volatile: bool) -> Result<Event<'a>, No> {
    fields.once()?;
    let topic = fields.held("topic", is_topic, Refusal::BadTopic)?;
    let numbered = fields.get("producer_epoch").or(fields.get("producer_seq")).is_some();
    let producer = match numbered {
        true => Some((fields.integer("producer_epoch")?, fields.integer("producer_seq")?)),
        false => None,
    };
    let message_id = match fields.get("message_id") {
        None if volatile || numbered => "",
        _ => fields.name("message_id")?,
    };
    let prev_event_id = fields.optional("prev_event_id", |f, at| f.held(at, is_event_id, Refusal::WrongType))?;
    let prev_message_id = fields.optional("prev_message_id", Object::name)?;
    let ttl_ms = fields.optional("ttl_ms", Object::integer)?;
    if ttl_ms == Some(0) {
        return Err(fields.no(Refusal::OutOfRange, "ttl_ms"));
    }
    let is_traceparent = |text: &str| text.len() <= 64 && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    let traceparent = fields.optional("traceparent", |f, at| f.held(at, is_traceparent, Refusal::WrongType))?;
    fields.optional("session", Object::text)?;
    let data_kind = match fields.optional("data_kind", Object::text)? {
        None | Some("json") => DataKind::Json,
        Some("bytes") => DataKind::Bytes,
        Some(_) => return Err(fields.no(Refusal::WrongType, "data_kind")),
    };
    let node = fields.node("data").ok_or_else(|| fields.no(Refusal::MissingField, "data"))?;
    let bad = fields.no(Refusal::BadData, "data");
    let too_large = fields.no(Refusal::EventTooLarge, "data");
    let data = match (data_kind, &node.tree) {
        _ if node.depth > 64 => return Err(bad),
        (DataKind::Json, _) => None,
        (DataKind::Bytes, Tree::Text(digits)) => {
            // So many are refused before anyone looks whether they are base64.
            if !node.raw.contains('\\') && digits.len() / 4 * 3 > EVENT_BYTES_MAX + 2 {
                return Err(too_large);
            }
            Some(STANDARD.decode(digits).map_err(|_| bad)?)
        }
        (DataKind::Bytes | DataKind::Delta | DataKind::Close, _) => return Err(bad),
    };
    if data.as_ref().map_or(node.raw.len(), Vec::len) > EVENT_BYTES_MAX {
        return Err(too_large);
    }
    let traceparent = traceparent.unwrap_or("");
    let raw = node.raw.as_bytes();
    let event = NewEvent {
        topic,
        message_id,
        prev_event_id,
        prev_message_id,
        data: raw,
        data_kind,
        ttl_ms,
        producer,
        traceparent,
    };
    Ok(Event { event, data })
}

/// The start of a subscription; the position of one by pattern apart.
fn from<'a>(fields: &Object<'a>) -> Result<(From<'a>, Option<&'a str>), No> {
    let wrong = || fields.no(Refusal::WrongType, "from");
    let Some(node) = fields.get("from") else { return Ok((From::Latest, None)) };
    if let Tree::Text(text) = &node.tree {
        return match text.as_str() {
            "latest" => Ok((From::Latest, None)),
            "earliest" => Ok((From::Earliest, None)),
            _ => Err(wrong()),
        };
    }
    fields.inside("from", node, |inner| {
        match ["offset", "marker", "position"].map(|field| inner.get(field).is_some()) {
            [true, false, false] => {
                let offset = inner.integer("offset")?;
                let life = inner.optional("epoch", Object::text)?;
                let life = life.map(|text| epoch(text).ok_or_else(wrong)).transpose()?;
                Ok((From::Offset(offset, life), None))
            }
            [false, true, false] => Ok((From::Marker(inner.name("marker")?), None)),
            [false, false, true] => {
                Ok((From::Latest, Some(inner.held("position", is_position, Refusal::BadPosition)?)))
            }
            _ => Err(wrong()),
        }
    })
}

fn policy(fields: &Object<'_>) -> Result<Policy, No> {
    match fields.optional("policy", Object::text)? {
        None | Some("lossless") => Ok(Policy::Lossless),
        Some("rollup") => Ok(Policy::Rollup),
        Some("latest") => Ok(Policy::Latest),
        Some(_) => Err(fields.no(Refusal::WrongType, "policy")),
    }
}

fn commit(fields: &Object<'_>) -> Result<String, No> {
    commit_into(fields, fields.name("session")?, None)
}

/// A commit into this session; without `ends` it may say itself which job it ends.
fn commit_into(fields: &Object<'_>, session: &str, ends: Option<(JobName<'_>, Lease)>) -> Result<String, No> {
    let mut events = Vec::new();
    match fields.get("events").map(|node| &node.tree) {
        None => {}
        Some(Tree::Array(nodes)) => {
            for node in nodes {
                let Tree::Object(inner) = &node.tree else { return Err(fields.no(Refusal::WrongType, "events")) };
                let inner = Object { fields: inner, before: "events[]." };
                events.push((inner.get("session").map(|node| &node.tree), event(&inner, false)?));
            }
        }
        Some(_) => return Err(fields.no(Refusal::WrongType, "events")),
    }
    if events.iter().any(|(own, _)| own.is_some_and(|own| *own != Tree::Text(session.to_owned()))) {
        return Err((Refusal::CrossSession, "events[].session".to_owned()));
    }
    let mut markers = Vec::new();
    if let Some(node) = fields.get("markers") {
        let Tree::Array(nodes) = &node.tree else { return Err(fields.no(Refusal::WrongType, "markers")) };
        for node in nodes {
            if markers.len() == 64 {
                return Err(fields.no(Refusal::CommandTooLarge, "markers"));
            }
            let take = |inner: &Object<'_>| {
                let (name, offset, lease) = groups::marker(inner)?;
                Ok((name.to_owned(), offset, lease))
            };
            markers.push(fields.inside("markers", node, take)?);
        }
    }
    let entries = work::commit_entries(fields)?;
    let is_commit = ends.is_none();
    let complete = match ends {
        None => work::commit_job(fields, "complete", session)?,
        ends => ends,
    };
    let holds = if is_commit { work::commit_job(fields, "holds", session)? } else { None };
    if events.is_empty() && markers.is_empty() && entries.is_empty() && complete.is_none() {
        return Err(fields.no(Refusal::MissingField, "events"));
    }
    let events: Vec<NewEvent<'_>> = events.iter().map(|(_, event)| whole(event)).collect();
    let markers: Vec<NewMarker<'_>> =
        markers.iter().map(|(name, offset, lease)| NewMarker { name, offset: *offset, lease: *lease }).collect();
    let (events, markers, entries) = (&events, &markers, &entries);
    let if_next = fields.optional("if_next", Object::integer)?;
    Ok(format!("{:?}", Command::Commit { session, events, markers, entries, complete, holds, if_next }))
}

fn whole<'a>(event: &'a Event<'_>) -> NewEvent<'a> {
    NewEvent { data: event.data.as_deref().unwrap_or(event.event.data), ..event.event }
}

fn subscribe_patterns(fields: &Object<'_>) -> Result<String, No> {
    let wrong = fields.no(Refusal::WrongType, "patterns");
    let Tree::Array(nodes) = &fields.must("patterns")?.tree else { return Err(wrong) };
    if fields.get("session").is_some() {
        return Err(wrong);
    }
    let mut patterns = Vec::new();
    for node in nodes {
        match &node.tree {
            Tree::Text(_) if patterns.len() == 32 => return Err(fields.no(Refusal::CommandTooLarge, "patterns")),
            Tree::Text(text) if is_pattern(text) => patterns.push(text.as_str()),
            Tree::Text(_) => return Err(fields.no(Refusal::BadPattern, "patterns")),
            _ => return Err(wrong),
        }
    }
    if patterns.is_empty() {
        return Err(fields.no(Refusal::MissingField, "patterns"));
    }
    if policy(fields)? != Policy::Lossless {
        return Err(fields.no(Refusal::WrongType, "policy"));
    }
    let from = match from(fields)? {
        (_, Some(position)) => PatternFrom::Position(position),
        (From::Latest, None) => PatternFrom::Latest,
        (From::Earliest, None) => PatternFrom::Earliest,
        _ => return Err(fields.no(Refusal::WrongType, "from")),
    };
    Ok(format!("{:?}", Command::SubscribePatterns { patterns: &patterns, from }))
}

fn resume(fields: &Object<'_>) -> Result<String, No> {
    let claim = fields.optional("token", Object::text)?.map_or(Claim::New, Claim::Token);
    let position = fields.optional("position", |f, at| f.held(at, is_position, Refusal::BadPosition))?;
    let attempt = fields.optional("attempt", Object::integer)?.unwrap_or(0);
    let mut seen = Vec::new();
    if let Some(node) = fields.get("seen") {
        let wrong = || fields.no(Refusal::WrongType, "seen");
        let Tree::Array(nodes) = &node.tree else { return Err(wrong()) };
        for node in nodes {
            let Tree::Text(text) = &node.tree else { return Err(wrong()) };
            let (rest, offset) = text.rsplit_once(':').ok_or_else(wrong)?;
            let (session, life) = rest.rsplit_once(':').ok_or_else(wrong)?;
            let offset = number(offset).filter(|n| *n < 1u64 << 53).ok_or_else(wrong)?;
            let epoch = epoch(life).filter(|_| is_name(session)).ok_or_else(wrong)?;
            seen.push(SeenEvent { session, epoch, offset });
        }
    }
    Ok(format!("{:?}", Command::Resume { claim, seen: &seen, position, attempt }))
}

fn presence<'a>(kind: &str, fields: &Object<'a>) -> Result<PresenceAct<'a>, No> {
    let of = if kind.starts_with("receipts") { RosterKind::Receipts } else { RosterKind::Presence };
    match kind {
        "presence.leave" => return Ok(PresenceAct::Leave),
        "presence.watch" | "receipts.watch" => return Ok(PresenceAct::Watch(of)),
        "presence.unwatch" | "receipts.unwatch" => return Ok(PresenceAct::Unwatch(of)),
        "read" => return Ok(PresenceAct::Read { offset: fields.integer("offset")? }),
        _ => {}
    }
    let state = match fields.optional("state", Object::text)? {
        None => None,
        Some("idle") => Some(PresenceState::Idle),
        Some("thinking") => Some(PresenceState::Thinking),
        Some("tool") => Some(PresenceState::Tool),
        Some("blocked") => Some(PresenceState::Blocked),
        Some(_) => return Err(fields.no(Refusal::WrongType, "state")),
    };
    let data = match fields.node("data") {
        Some(node) if node.depth > 64 => return Err(fields.no(Refusal::BadData, "data")),
        Some(node) if node.raw.len() > PRESENCE_BYTES_MAX => return Err(fields.no(Refusal::PresenceTooLarge, "data")),
        node => node.map(|node| node.raw.as_bytes()),
    };
    if kind == "presence.update" {
        return Ok(PresenceAct::Update { state, data });
    }
    let lease_ms = fields.optional("lease_ms", Object::integer)?;
    let log = match fields.get("log").map(|node| &node.tree) {
        None | Some(Tree::False) => false,
        Some(Tree::True) => true,
        Some(_) => return Err(fields.no(Refusal::WrongType, "log")),
    };
    Ok(PresenceAct::Enter { state: state.unwrap_or(PresenceState::Idle), data, lease_ms, log })
}

fn command(fields: &Object<'_>) -> Result<String, No> {
    let kind = fields.text("type")?;
    fields.once()?;
    let command = match kind {
        "publish" => {
            let session = fields.name("session")?;
            let durability = match fields.optional("durability", Object::text)? {
                None | Some("disk") => Durability::Disk,
                Some("memory") => Durability::Memory,
                Some("volatile") => Durability::Volatile,
                Some(_) => return Err(fields.no(Refusal::WrongType, "durability")),
            };
            let event = event(fields, durability == Durability::Volatile)?;
            return Ok(format!("{:?}", Command::Publish { session, event: whole(&event), durability }));
        }
        "commit" => return commit(fields),
        "resume" => return resume(fields),
        "subscribe" if fields.get("patterns").is_some() => return subscribe_patterns(fields),
        "subscribe" => {
            let session = fields.name("session")?;
            match from(fields)? {
                (_, Some(_)) => return Err(fields.no(Refusal::WrongType, "from")),
                (from, None) => Command::Subscribe { session, from, policy: policy(fields)? },
            }
        }
        "stream.append" => {
            let (session, stream) = (fields.name("session")?, fields.name("stream")?);
            let seq = fields.integer("seq")?;
            let node = fields.get("delta").ok_or_else(|| fields.no(Refusal::MissingField, "delta"))?;
            let Tree::Text(_) = node.tree else { return Err(fields.no(Refusal::WrongType, "delta")) };
            if node.raw.len() > EVENT_BYTES_MAX {
                return Err(fields.no(Refusal::EventTooLarge, "delta"));
            }
            let topic = fields.optional("topic", |f, at| f.held(at, is_topic, Refusal::BadTopic))?;
            let durability = match fields.optional("durability", Object::text)? {
                None | Some("disk") => Durability::Disk,
                Some("memory") => Durability::Memory,
                Some(_) => return Err(fields.no(Refusal::WrongType, "durability")),
            };
            let delta = NewDelta { stream, seq, delta: node.raw.as_bytes(), topic };
            Command::StreamAppend { session, delta, durability }
        }
        "stream.close" => {
            let (session, stream) = (fields.name("session")?, fields.name("stream")?);
            let status = match fields.text("status")? {
                "complete" => StreamStatus::Complete,
                "partial" => StreamStatus::Partial,
                "cancelled" => StreamStatus::Cancelled,
                "failed" => StreamStatus::Failed,
                _ => return Err(fields.no(Refusal::WrongType, "status")),
            };
            Command::StreamClose { session, stream, status }
        }
        "unsubscribe" => match fields.get("patterns").map(|node| &node.tree) {
            None => Command::Unsubscribe { session: fields.name("session")? },
            Some(Tree::True) if fields.get("session").is_none() => Command::UnsubscribePatterns,
            Some(_) => return Err(fields.no(Refusal::WrongType, "patterns")),
        },
        "ack" => {
            let events = fields.integer("events")?;
            Command::Acknowledge { events, bytes: fields.optional("bytes", Object::integer)? }
        }
        "mark" => {
            let session = fields.name("session")?;
            let (name, offset, lease) = groups::own(fields)?;
            Command::Mark { session, marker: NewMarker { name, offset, lease } }
        }
        "history" => {
            let session = fields.name("session")?;
            let from = fields.optional("from", Object::integer)?;
            match fields.optional("limit", Object::integer)?.unwrap_or(256) {
                limit @ 1..=256 => Command::History { session, from, limit: limit as u32 },
                _ => return Err(fields.no(Refusal::OutOfRange, "limit")),
            }
        }
        "ping" => Command::Ping,
        "auth" => Command::Auth { token: fields.text("token")? },
        "revoke.client" => Command::Revoke { what: Revocable::Client, name: fields.name("name")? },
        "revoke.token" => Command::Revoke { what: Revocable::Token, name: fields.name("name")? },
        "quota.get" => Command::Quota { tenant: fields.optional("tenant", Object::name)?, ask: QuotaAsk::Get },
        "quota.set" => {
            let tenant = fields.optional("tenant", Object::name)?;
            let quota = fields.get("quota").map(|node| quota(fields, node)).transpose()?;
            let ask = QuotaAsk::Set(quota.as_ref());
            return Ok(format!("{:?}", Command::Quota { tenant, ask }));
        }
        "presence.enter" | "presence.update" | "presence.leave" | "presence.watch" | "presence.unwatch" | "read"
        | "receipts.watch" | "receipts.unwatch" => {
            let session = fields.name("session")?;
            Command::Presence { session, act: presence(kind, fields)? }
        }
        "hello" => {
            let credit = fields.get("credit");
            let bounds = credit.map(|node| {
                fields.inside("credit", node, |inner| {
                    Ok((inner.optional("events", Object::integer)?, inner.optional("bytes", Object::integer)?))
                })
            });
            let (credit_events, credit_bytes) = bounds.transpose()?.unwrap_or_default();
            Command::Hello { credit_events, credit_bytes }
        }
        _ => {
            let unknown = || Err(fields.no(Refusal::UnknownCommand, "type"));
            return work::command(kind, fields).or_else(|| groups::command(kind, fields)).unwrap_or_else(unknown);
        }
    };
    Ok(format!("{command:?}"))
}

/// A table of bounds. What is wrong inside is told by the field that holds it.
fn quota(fields: &Object<'_>, node: &Node) -> Result<Quota, No> {
    let Tree::Object(bounds) = &node.tree else { return Err(fields.no(Refusal::WrongType, "quota")) };
    let mut quota = Quota::default();
    for (at, (name, node)) in bounds.iter().enumerate() {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
        if kind.is_none() && name != "weight" {
            return Err(fields.no(Refusal::WrongType, "quota"));
        }
        if bounds[..at].iter().any(|(before, _)| before == name) {
            return Err(fields.no(Refusal::RepeatedField, "quota"));
        }
        if node.tree == Tree::Null {
            continue;
        }
        let inner = Object { fields: &bounds[at..=at], before: "" };
        let number = inner.integer(name).map_err(|(refusal, _)| fields.no(refusal, "quota"))?;
        match kind {
            Some(kind) if (1..=1 << 40).contains(&number) => quota.max[kind as usize] = Some(number),
            None if (1..=100).contains(&number) => quota.weight = number as u32,
            _ => return Err(fields.no(Refusal::OutOfRange, "quota")),
        }
    }
    Ok(quota)
}

fn id(fields: &Object<'_>) -> Result<CommandId, No> {
    match fields.get("id").map(|node| &node.tree) {
        None => Ok(CommandId::None),
        Some(Tree::Number) => fields.integer("id").map(CommandId::Number),
        Some(Tree::Text(text)) => {
            InlineText::new(text).map(CommandId::Text).ok_or_else(|| fields.no(Refusal::OutOfRange, "id"))
        }
        Some(_) => Err(fields.no(Refusal::WrongType, "id")),
    }
}

/// What [`decoded`] must say of a frame.
pub fn expected(frame: &str) -> Vec<String> {
    let one = |node: &Node| {
        let Tree::Object(fields) = &node.tree else { return "- bad_frame ".to_owned() };
        let fields = Object { fields, before: "" };
        let (id, said) = match id(&fields) {
            Ok(id) => (id, command(&fields)),
            Err(no) => (CommandId::None, Err(no)),
        };
        match said {
            Ok(command) => format!("{id:?} {command}"),
            Err((refusal, field)) => format!("{id:?} {} {field}", refusal.name()),
        }
    };
    match parsed(frame) {
        Ok(Node { tree: Tree::Array(nodes), .. }) => {
            match nodes.len() <= 256 && nodes.iter().all(|node| matches!(node.tree, Tree::Object(_))) {
                true => nodes.iter().map(one).collect(),
                false => vec!["- bad_frame ".to_owned()],
            }
        }
        Ok(node) => vec![one(&node)],
        Err(at) => {
            let fields = Object { fields: &at.before, before: "" };
            let id = id(&fields).unwrap_or(CommandId::None);
            let path: Vec<&str> = at.path.iter().map(String::as_str).collect();
            vec![match path[..] {
                ["data", ..] => format!("{id:?} bad_data data"),
                ["events", "[]", "data", ..] => format!("{id:?} bad_data events[].data"),
                _ => format!("{id:?} bad_frame "),
            }]
        }
    }
}
