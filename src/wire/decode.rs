//! Text frames to commands.
//!
//! ```text
//!   {…}  or  [{…},{…}]      frame, borrowed
//!      │ one pass per object: known fields as ranges, the first thing wrong with them remembered
//!      │ escaped strings and base64 ──► scratch, reused for every command of a shard
//!      ▼
//!   Plan (ranges) ──► Command<'_> (borrows frame and scratch) ──► each(id, Ok(command) | Err(refused))
//! ```
//! The fields of a command may come in any order. A command that is wrong is refused alone. A frame that is broken is
//! refused whole: an array is checked to its end before the first of its commands is handed out.

use super::json::{self, Broken, Kind, Scanner, Span, Value};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use shards::command::{Command, DataKind, Durability, From, NewEvent, NewMarker, PatternFrom};
use shards::ids::{CommandId, InlineText, SLICES};
use shards::limits::{
    CLIENT_PATTERNS_MAX, COMMIT_EVENTS_MAX, COMMIT_MARKERS_MAX, DATA_DEPTH_MAX, FRAME_COMMANDS_MAX, Limits,
    WIRE_INTEGER_MAX,
};
use shards::names::{is_name, is_pattern, is_topic, is_traceparent};
use shards::refusal::{Refusal, Refused};
use std::ops::ControlFlow;

/// Events of one page of history, at most and unless asked for fewer.
pub const HISTORY_EVENTS_MAX: u32 = 256;

/// Memory that decoding reuses. One per shard, touched only by its thread; it grows to the largest frame and stays.
#[derive(Debug)]
pub struct Scratch {
    event_bytes_max: usize,
    /// Unescaped text and decoded base64 of the command at hand.
    bytes: Vec<u8>,
    event_plans: Vec<EventPlan>,
    pattern_places: Vec<Place>,
    marker_plans: Vec<(Place, u64)>,
    // Empty between commands: only their allocations are kept.
    events: Vec<NewEvent<'static>>,
    markers: Vec<NewMarker<'static>>,
    patterns: Vec<&'static str>,
}

impl Scratch {
    /// For a shard with these limits.
    pub fn new(limits: &Limits) -> Self {
        Self {
            event_bytes_max: limits.event_bytes_max,
            bytes: Vec::new(),
            event_plans: Vec::new(),
            pattern_places: Vec::new(),
            marker_plans: Vec::new(),
            events: Vec::new(),
            markers: Vec::new(),
            patterns: Vec::new(),
        }
    }

    /// Bytes held between frames.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.capacity()
            + self.event_plans.capacity() * size_of::<EventPlan>()
            + self.pattern_places.capacity() * size_of::<Place>()
            + self.marker_plans.capacity() * size_of::<(Place, u64)>()
            + self.events.capacity() * size_of::<NewEvent<'_>>()
            + self.markers.capacity() * size_of::<NewMarker<'_>>()
            + self.patterns.capacity() * size_of::<&str>()
    }
}

/// Where decoding of a frame goes on. The default is its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Resume {
    at: u32,
    /// The frame is an array, known to be whole.
    in_array: bool,
}

impl Resume {
    /// As one number, to be kept with the frame. The start is 0.
    pub fn pack(self) -> u64 {
        u64::from(self.at) | u64::from(self.in_array) << 32
    }

    /// Back from [`Resume::pack`].
    pub fn unpack(packed: u64) -> Self {
        Self { at: packed as u32, in_array: packed >> 32 & 1 == 1 }
    }
}

/// Reads the commands of `frame` from `resume` on and hands each to `each`, with its id, or with why it is refused.
/// Where `each` breaks, decoding stops and the place of that very command is returned: keep the frame and hand both
/// in again, and the same command comes first.
pub fn decode(
    frame: &str,
    resume: Resume,
    scratch: &mut Scratch,
    mut each: impl FnMut(CommandId, Result<Command<'_>, Refused>) -> ControlFlow<()>,
) -> Option<Resume> {
    let mut scanner = Scanner::new(frame, resume.at as usize);
    let mut here = resume;
    if here == Resume::default() && scanner.take(b'[') {
        match check_array(scanner) {
            Ok(0) => return None,
            Ok(_) => here.in_array = true,
            Err(_) => {
                let flow = each(CommandId::None, Err(BAD_FRAME));
                return flow.is_break().then_some(resume);
            }
        }
    }
    loop {
        here.at = scanner.at() as u32;
        let mut reader = Reader { frame, scratch };
        let read = reader.object(&mut scanner, here.in_array);
        let flow = match read.plan {
            Ok(plan) => reader.hand_over(plan, |command| each(read.id, Ok(command))),
            Err(refused) => each(read.id, Err(refused)),
        };
        if flow.is_break() {
            return Some(here);
        }
        if !read.more {
            return None;
        }
    }
}

/// Checks an array of commands, its `[` taken, to the end of the frame. Returns how many they are.
fn check_array(mut scanner: Scanner<'_>) -> Result<usize, Broken> {
    let mut count = 0;
    while scanner.element(count == 0)? {
        let is_object = scanner.value()?.kind == Kind::Object;
        count += 1;
        if !is_object || count > FRAME_COMMANDS_MAX {
            return Err(Broken::Syntax);
        }
    }
    scanner.end().map(|()| count)
}

macro_rules! fields {
    ($($variant:ident $name:literal)*) => {
        /// Fields of commands and of the objects in them.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        enum Field { $($variant),* }

        const FIELDS: usize = [$(Field::$variant),*].len();

        #[cfg(test)]
        const ALL: [Field; FIELDS] = [$(Field::$variant),*];

        impl Field {
            #[inline]
            fn of(key: u128) -> Option<Field> {
                $(#[allow(non_upper_case_globals)]
                const $variant: u128 = packed($name.as_bytes());)*
                match key {
                    $($variant => Some(Field::$variant),)*
                    _ => None,
                }
            }

            /// Its name at the top of a command, or inside `events`.
            const fn name(self, inside: Inside) -> &'static str {
                match (self, inside) {
                    $((Field::$variant, Inside::Command) => $name,
                      (Field::$variant, Inside::Events) => concat!("events[].", $name),)*
                }
            }
        }
    };
}

fields! {
    Type "type" Session "session" Topic "topic" MessageId "message_id" Data "data" Id "id"
    PrevEventId "prev_event_id" PrevMessageId "prev_message_id" DataKind "data_kind" TtlMs "ttl_ms"
    Durability "durability" ProducerEpoch "producer_epoch" ProducerSeq "producer_seq" Traceparent "traceparent"
    Events "events" Markers "markers" From "from" Patterns "patterns" Offset "offset" Name "name" Limit "limit"
    Credit "credit" Bytes "bytes" Epoch "epoch" Marker "marker" Position "position"
}

/// A key of up to 15 bytes as one number, its length on top, so that looking up a field is comparing numbers.
const fn packed(key: &[u8]) -> u128 {
    if key.len() > 15 {
        return u128::MAX;
    }
    let mut number = (key.len() as u128) << 120;
    let mut i = 0;
    while i < key.len() {
        number |= (key[i] as u128) << (8 * i);
        i += 1;
    }
    number
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Inside {
    Command,
    Events,
}

/// The fields of one object.
struct Fields {
    values: [Option<Value>; FIELDS],
    inside: Inside,
    /// The first field that came twice.
    repeated: Option<Field>,
    /// What is wrong with the elements of `events`; counts only if the command is one that has them.
    events: Result<(), Refused>,
    /// The field being scanned when the text broke.
    last: Option<Field>,
}

impl Fields {
    fn new(inside: Inside) -> Self {
        Self { values: [None; FIELDS], inside, repeated: None, events: Ok(()), last: None }
    }

    /// A field that is given; `null` counts as not given.
    fn get(&self, field: Field) -> Option<Value> {
        self.values[field as usize].filter(|value| value.kind != Kind::Null)
    }

    fn has(&self, field: Field) -> bool {
        self.get(field).is_some()
    }

    fn required(&self, field: Field) -> Result<Value, Refused> {
        self.get(field).ok_or_else(|| self.refused(Refusal::MissingField, field))
    }

    fn refused(&self, refusal: Refusal, field: Field) -> Refused {
        Refused::field(refusal, field.name(self.inside))
    }
}

/// Bytes of the frame or of scratch.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    span: Span,
    in_scratch: bool,
}

impl Place {
    fn bytes<'a>(self, frame: &'a str, scratch: &'a [u8]) -> &'a [u8] {
        let from = if self.in_scratch { scratch } else { frame.as_bytes() };
        from.get(self.span.start as usize..self.span.end as usize).unwrap_or_default()
    }

    fn text<'a>(self, frame: &'a str, scratch: &'a [u8]) -> &'a str {
        if self.in_scratch {
            std::str::from_utf8(self.bytes(frame, scratch)).unwrap_or_default()
        } else {
            frame.get(self.span.start as usize..self.span.end as usize).unwrap_or_default()
        }
    }
}

/// An event as ranges.
#[derive(Clone, Copy, Debug)]
struct EventPlan {
    /// What the event itself says; in a commit it must be the commit's.
    session: Option<Place>,
    topic: Place,
    message_id: Place,
    prev_event_id: Option<Place>,
    prev_message_id: Option<Place>,
    data: Place,
    data_kind: DataKind,
    ttl_ms: Option<u64>,
    producer: Option<(u64, u64)>,
    traceparent: Place,
}

impl EventPlan {
    fn event<'a>(&self, frame: &'a str, scratch: &'a [u8]) -> NewEvent<'a> {
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
enum Plan {
    Hello { credit_events: Option<u64>, credit_bytes: Option<u64> },
    Acknowledge { events: u64, bytes: Option<u64> },
    Ping,
    UnsubscribePatterns,
    Publish { session: Place, durability: Durability },
    Commit { session: Place },
    Subscribe { session: Place, from: FromPlan },
    SubscribePatterns { from: FromPlan },
    Unsubscribe { session: Place },
    Mark { session: Place, name: Place, offset: u64 },
    History { session: Place, from: Option<u64>, limit: u32 },
}

enum FromPlan {
    Latest,
    Earliest,
    Offset(u64, Option<u64>),
    Marker(Place),
    Position(Place),
}

/// What came of one object.
struct Read {
    id: CommandId,
    plan: Result<Plan, Refused>,
    /// Whether another object follows.
    more: bool,
}

struct Reader<'f, 's> {
    frame: &'f str,
    scratch: &'s mut Scratch,
}

const BAD_FRAME: Refused = Refused::field(Refusal::BadFrame, "");

impl Reader<'_, '_> {
    /// Reads one command and what must follow it.
    fn object(&mut self, scanner: &mut Scanner<'_>, in_array: bool) -> Read {
        self.scratch.bytes.clear();
        self.scratch.event_plans.clear();
        let mut fields = Fields::new(Inside::Command);
        let scanned = self.scan(scanner, &mut fields);
        let more = match scanned {
            Ok(()) if in_array => match scanner.element(false) {
                Ok(false) => scanner.end().map(|()| false),
                other => other,
            },
            Ok(()) => scanner.end().map(|()| false),
            Err(broken) => Err(broken),
        };
        let id = self.id(&fields);
        let plan = match (more, id) {
            (Err(_), _) if fields.last == Some(Field::Data) => Err(fields.refused(Refusal::BadData, Field::Data)),
            (Err(_), _) if fields.events.is_err_and(|refused| refused.refusal == Refusal::BadData) => {
                Err(fields.events.err().unwrap_or(BAD_FRAME))
            }
            (Err(_), _) => Err(BAD_FRAME),
            (Ok(_), Err(refused)) => Err(refused),
            (Ok(_), Ok(_)) => self.plan(&fields),
        };
        Read { id: id.unwrap_or(CommandId::None), plan, more: more.unwrap_or(false) }
    }

    /// Scans one object into `fields`.
    fn scan(&mut self, scanner: &mut Scanner<'_>, fields: &mut Fields) -> Result<(), Broken> {
        scanner.expect(b'{')?;
        let mut first = true;
        while let Some(key) = scanner.key(first)? {
            first = false;
            let Some(field) = self.field(key) else {
                scanner.value()?;
                continue;
            };
            fields.last = Some(field);
            let value = if field == Field::Events && fields.inside == Inside::Command && scanner.peek() == Some(b'[') {
                self.scan_events(scanner, fields)?
            } else {
                scanner.value()?
            };
            fields.last = None;
            if fields.values[field as usize].replace(value).is_some() {
                fields.repeated.get_or_insert(field);
            }
        }
        Ok(())
    }

    #[inline]
    fn field(&mut self, key: Value) -> Option<Field> {
        if key.kind == (Kind::String { escaped: true }) {
            let place = self.place(key);
            return Field::of(packed(place.bytes(self.frame, &self.scratch.bytes)));
        }
        let (start, length) = (key.span.start as usize, key.span.bytes());
        match self.frame.as_bytes().get(start..).and_then(<[u8]>::first_chunk::<16>) {
            // The same as `packed`, of sixteen bytes at once.
            Some(chunk) if length <= 15 => {
                let mask = (1u128 << (8 * length)) - 1;
                Field::of(u128::from_le_bytes(*chunk) & mask | (length as u128) << 120)
            }
            _ => Field::of(packed(self.raw(key.span))),
        }
    }

    /// Scans the array of a commit's events into plans.
    fn scan_events(&mut self, scanner: &mut Scanner<'_>, fields: &mut Fields) -> Result<Value, Broken> {
        self.scratch.event_plans.clear();
        fields.events = Ok(());
        let start = scanner.at() as u32;
        scanner.expect(b'[')?;
        let mut first = true;
        while scanner.element(first)? {
            first = false;
            if scanner.peek() != Some(b'{') {
                scanner.value()?;
                fields.events = fields.events.and(Err(fields.refused(Refusal::WrongType, Field::Events)));
                continue;
            }
            let mut event = Fields::new(Inside::Events);
            if let Err(broken) = self.scan(scanner, &mut event) {
                if event.last == Some(Field::Data) {
                    fields.events = Err(event.refused(Refusal::BadData, Field::Data));
                }
                return Err(broken);
            }
            if fields.events.is_err() {
                continue;
            }
            if self.scratch.event_plans.len() == COMMIT_EVENTS_MAX {
                fields.events = Err(fields.refused(Refusal::CommandTooLarge, Field::Events));
                continue;
            }
            fields.events = self.event(&event, false);
        }
        Ok(Value { kind: Kind::Array, depth: 0, span: Span { start, end: scanner.at() as u32 } })
    }

    fn id(&mut self, fields: &Fields) -> Result<CommandId, Refused> {
        let Some(value) = fields.get(Field::Id) else { return Ok(CommandId::None) };
        match value.kind {
            Kind::Number => Ok(CommandId::Number(self.integer(fields, Field::Id, value)?)),
            Kind::String { .. } => {
                let place = self.place(value);
                InlineText::new(place.text(self.frame, &self.scratch.bytes))
                    .map(CommandId::Text)
                    .ok_or_else(|| fields.refused(Refusal::OutOfRange, Field::Id))
            }
            _ => Err(fields.refused(Refusal::WrongType, Field::Id)),
        }
    }

    fn plan(&mut self, fields: &Fields) -> Result<Plan, Refused> {
        let kind = self.string(fields, Field::Type)?;
        if let Some(field) = fields.repeated {
            return Err(fields.refused(Refusal::RepeatedField, field));
        }
        match self.text(kind) {
            "publish" => self.publish(fields),
            "ack" => {
                let events = self.required_integer(fields, Field::Events)?;
                let bytes = self.optional_integer(fields, Field::Bytes)?;
                Ok(Plan::Acknowledge { events, bytes })
            }
            "commit" => self.commit(fields),
            "subscribe" if fields.has(Field::Patterns) => self.subscribe_patterns(fields),
            "subscribe" => self.subscribe(fields),
            "unsubscribe" => match fields.get(Field::Patterns) {
                Some(Value { kind: Kind::True, .. }) if !fields.has(Field::Session) => Ok(Plan::UnsubscribePatterns),
                Some(_) => Err(fields.refused(Refusal::WrongType, Field::Patterns)),
                None => Ok(Plan::Unsubscribe { session: self.name(fields, Field::Session)? }),
            },
            "mark" => Ok(Plan::Mark {
                session: self.name(fields, Field::Session)?,
                name: self.name(fields, Field::Name)?,
                offset: self.required_integer(fields, Field::Offset)?,
            }),
            "history" => {
                let session = self.name(fields, Field::Session)?;
                let from = self.optional_integer(fields, Field::From)?;
                let limit = self.optional_integer(fields, Field::Limit)?.unwrap_or(u64::from(HISTORY_EVENTS_MAX));
                if !(1..=u64::from(HISTORY_EVENTS_MAX)).contains(&limit) {
                    return Err(fields.refused(Refusal::OutOfRange, Field::Limit));
                }
                Ok(Plan::History { session, from, limit: limit as u32 })
            }
            "ping" => Ok(Plan::Ping),
            "hello" => self.hello(fields),
            _ => Err(fields.refused(Refusal::UnknownCommand, Field::Type)),
        }
    }

    fn hello(&mut self, fields: &Fields) -> Result<Plan, Refused> {
        let (mut credit_events, mut credit_bytes) = (None, None);
        if let Some(value) = fields.get(Field::Credit) {
            let credit = self.inner(fields, Field::Credit, value)?;
            // What is wrong inside is told by the outer field: it is small.
            let outer = |refused: Refused| Refused::field(refused.refusal, "credit");
            credit_events = self.optional_integer(&credit, Field::Events).map_err(outer)?;
            credit_bytes = self.optional_integer(&credit, Field::Bytes).map_err(outer)?;
        }
        Ok(Plan::Hello { credit_events, credit_bytes })
    }

    fn publish(&mut self, fields: &Fields) -> Result<Plan, Refused> {
        let session = self.name(fields, Field::Session)?;
        let durability = match fields.has(Field::Durability) {
            false => Durability::Disk,
            true => {
                let place = self.string(fields, Field::Durability)?;
                match self.text(place) {
                    "disk" => Durability::Disk,
                    "memory" => Durability::Memory,
                    "volatile" => Durability::Volatile,
                    _ => return Err(fields.refused(Refusal::WrongType, Field::Durability)),
                }
            }
        };
        self.scratch.event_plans.clear();
        self.event(fields, durability == Durability::Volatile)?;
        Ok(Plan::Publish { session, durability })
    }

    /// Plans the event in `fields`, which are those of a publish or of an element of a commit.
    fn event(&mut self, fields: &Fields, volatile: bool) -> Result<(), Refused> {
        if let Some(field) = fields.repeated {
            return Err(fields.refused(Refusal::RepeatedField, field));
        }
        let topic = self.checked(fields, Field::Topic, is_topic, Refusal::BadTopic)?;
        let producer = match (fields.has(Field::ProducerEpoch), fields.has(Field::ProducerSeq)) {
            (false, false) => None,
            _ => Some((
                self.required_integer(fields, Field::ProducerEpoch)?,
                self.required_integer(fields, Field::ProducerSeq)?,
            )),
        };
        let message_id = if (volatile || producer.is_some()) && !fields.has(Field::MessageId) {
            Place::default()
        } else {
            self.name(fields, Field::MessageId)?
        };
        let prev_event_id = match fields.has(Field::PrevEventId) {
            true => Some(self.checked(fields, Field::PrevEventId, is_event_id, Refusal::WrongType)?),
            false => None,
        };
        let prev_message_id = match fields.has(Field::PrevMessageId) {
            true => Some(self.name(fields, Field::PrevMessageId)?),
            false => None,
        };
        let ttl_ms = self.optional_integer(fields, Field::TtlMs)?;
        if ttl_ms == Some(0) {
            return Err(fields.refused(Refusal::OutOfRange, Field::TtlMs));
        }
        let traceparent = match fields.has(Field::Traceparent) {
            true => self.checked(fields, Field::Traceparent, is_traceparent, Refusal::WrongType)?,
            false => Place::default(),
        };
        let session = match fields.has(Field::Session) {
            true => Some(self.string(fields, Field::Session)?),
            false => None,
        };
        let (data, data_kind) = self.data(fields)?;
        self.scratch.event_plans.push(EventPlan {
            session,
            topic,
            message_id,
            prev_event_id,
            prev_message_id,
            data,
            data_kind,
            ttl_ms,
            producer,
            traceparent,
        });
        Ok(())
    }

    fn data(&mut self, fields: &Fields) -> Result<(Place, DataKind), Refused> {
        let kind = match fields.has(Field::DataKind) {
            false => DataKind::Json,
            true => {
                let place = self.string(fields, Field::DataKind)?;
                match self.text(place) {
                    "json" => DataKind::Json,
                    "bytes" => DataKind::Bytes,
                    _ => return Err(fields.refused(Refusal::WrongType, Field::DataKind)),
                }
            }
        };
        // Here `null` is a value like any other.
        let value = fields.values[Field::Data as usize];
        let value = value.ok_or_else(|| fields.refused(Refusal::MissingField, Field::Data))?;
        if usize::from(value.depth) > DATA_DEPTH_MAX {
            return Err(fields.refused(Refusal::BadData, Field::Data));
        }
        let place = match (kind, value.kind) {
            (DataKind::Json, Kind::String { .. }) => {
                // The quotes belong to the data.
                Place { span: Span { start: value.span.start - 1, end: value.span.end + 1 }, in_scratch: false }
            }
            (DataKind::Json, _) => Place { span: value.span, in_scratch: false },
            (DataKind::Bytes, Kind::String { .. }) => {
                if value.span.bytes() / 4 * 3 > self.scratch.event_bytes_max + 2 && !has_escapes(value) {
                    return Err(fields.refused(Refusal::EventTooLarge, Field::Data));
                }
                let digits = self.place(value);
                self.base64(digits).ok_or_else(|| fields.refused(Refusal::BadData, Field::Data))?
            }
            (DataKind::Bytes, _) => return Err(fields.refused(Refusal::BadData, Field::Data)),
        };
        if place.span.bytes() > self.scratch.event_bytes_max {
            return Err(fields.refused(Refusal::EventTooLarge, Field::Data));
        }
        Ok((place, kind))
    }

    /// Decodes base64 (standard alphabet, padded) to the end of scratch.
    fn base64(&mut self, digits: Place) -> Option<Place> {
        let bytes = &mut self.scratch.bytes;
        let start = bytes.len();
        let (from, to) = (digits.span.start as usize, digits.span.end as usize);
        let room = digits.span.bytes().div_ceil(4) * 3;
        bytes.resize(start + room, 0);
        let (before, out) = bytes.split_at_mut(start);
        let source = if digits.in_scratch { &*before } else { self.frame.as_bytes() };
        let length = STANDARD.decode_slice(source.get(from..to)?, out).ok()?;
        bytes.truncate(start + length);
        Some(Place { span: Span { start: start as u32, end: (start + length) as u32 }, in_scratch: true })
    }

    fn commit(&mut self, fields: &Fields) -> Result<Plan, Refused> {
        let session = self.name(fields, Field::Session)?;
        if fields.get(Field::Events).is_some_and(|value| value.kind != Kind::Array) {
            return Err(fields.refused(Refusal::WrongType, Field::Events));
        }
        fields.events?;
        let elsewhere = |plan: &EventPlan| plan.session.is_some_and(|own| self.text(own) != self.text(session));
        if self.scratch.event_plans.iter().any(elsewhere) {
            return Err(Refused::field(Refusal::CrossSession, Field::Session.name(Inside::Events)));
        }
        self.scratch.marker_plans.clear();
        if let Some(value) = fields.get(Field::Markers) {
            let wrong = fields.refused(Refusal::WrongType, Field::Markers);
            if value.kind != Kind::Array {
                return Err(wrong);
            }
            let mut scanner = Scanner::new(self.frame, value.span.start as usize + 1);
            let mut first = true;
            while scanner.element(first).map_err(|_| wrong)? {
                first = false;
                let element = scanner.value().map_err(|_| wrong)?;
                if self.scratch.marker_plans.len() == COMMIT_MARKERS_MAX {
                    return Err(fields.refused(Refusal::CommandTooLarge, Field::Markers));
                }
                let marker = self.inner(fields, Field::Markers, element)?;
                let outer = |refused: Refused| Refused::field(refused.refusal, "markers");
                let name = self.name(&marker, Field::Name).map_err(outer)?;
                let offset = self.required_integer(&marker, Field::Offset).map_err(outer)?;
                self.scratch.marker_plans.push((name, offset));
            }
        }
        if self.scratch.event_plans.is_empty() && self.scratch.marker_plans.is_empty() {
            return Err(fields.refused(Refusal::MissingField, Field::Events));
        }
        Ok(Plan::Commit { session })
    }

    fn subscribe(&mut self, fields: &Fields) -> Result<Plan, Refused> {
        let session = self.name(fields, Field::Session)?;
        let from = match self.from(fields)? {
            FromPlan::Position(_) => return Err(fields.refused(Refusal::WrongType, Field::From)),
            from => from,
        };
        Ok(Plan::Subscribe { session, from })
    }

    fn subscribe_patterns(&mut self, fields: &Fields) -> Result<Plan, Refused> {
        let wrong = fields.refused(Refusal::WrongType, Field::Patterns);
        let value = fields.required(Field::Patterns)?;
        if value.kind != Kind::Array || fields.has(Field::Session) {
            return Err(wrong);
        }
        self.scratch.pattern_places.clear();
        let mut scanner = Scanner::new(self.frame, value.span.start as usize + 1);
        let mut first = true;
        while scanner.element(first).map_err(|_| wrong)? {
            first = false;
            let element = scanner.value().map_err(|_| wrong)?;
            if !matches!(element.kind, Kind::String { .. }) {
                return Err(wrong);
            }
            if self.scratch.pattern_places.len() == CLIENT_PATTERNS_MAX {
                return Err(fields.refused(Refusal::CommandTooLarge, Field::Patterns));
            }
            let place = self.place(element);
            if !is_pattern(self.text(place)) {
                return Err(fields.refused(Refusal::BadPattern, Field::Patterns));
            }
            self.scratch.pattern_places.push(place);
        }
        if first {
            return Err(fields.refused(Refusal::MissingField, Field::Patterns));
        }
        match self.from(fields)? {
            FromPlan::Offset(..) | FromPlan::Marker(_) => Err(fields.refused(Refusal::WrongType, Field::From)),
            from => Ok(Plan::SubscribePatterns { from }),
        }
    }

    /// `"latest"`, `"earliest"`, or an object with `offset`, `marker` or `position`.
    fn from(&mut self, fields: &Fields) -> Result<FromPlan, Refused> {
        let wrong = fields.refused(Refusal::WrongType, Field::From);
        let Some(value) = fields.get(Field::From) else { return Ok(FromPlan::Latest) };
        if let Kind::String { .. } = value.kind {
            let place = self.place(value);
            return match self.text(place) {
                "latest" => Ok(FromPlan::Latest),
                "earliest" => Ok(FromPlan::Earliest),
                _ => Err(wrong),
            };
        }
        let inner = self.inner(fields, Field::From, value)?;
        let outer = |refused: Refused| Refused::field(refused.refusal, "from");
        match (inner.has(Field::Offset), inner.has(Field::Marker), inner.has(Field::Position)) {
            (true, false, false) => {
                let offset = self.required_integer(&inner, Field::Offset).map_err(outer)?;
                let epoch = match inner.has(Field::Epoch) {
                    true => {
                        let place = self.string(&inner, Field::Epoch).map_err(outer)?;
                        Some(parse_epoch(self.text(place)).ok_or(wrong)?)
                    }
                    false => None,
                };
                Ok(FromPlan::Offset(offset, epoch))
            }
            (false, true, false) => Ok(FromPlan::Marker(self.name(&inner, Field::Marker).map_err(outer)?)),
            (false, false, true) => {
                let place = self.checked(&inner, Field::Position, is_position, Refusal::BadPosition).map_err(outer)?;
                Ok(FromPlan::Position(place))
            }
            _ => Err(wrong),
        }
    }

    /// Scans an object inside a command; its text has been checked.
    fn inner(&mut self, outer: &Fields, field: Field, value: Value) -> Result<Fields, Refused> {
        let wrong = outer.refused(Refusal::WrongType, field);
        if value.kind != Kind::Object {
            return Err(wrong);
        }
        let mut scanner = Scanner::new(self.frame, value.span.start as usize);
        // `Events` inside is a plain field: only a commit's own is walked into.
        let mut inner = Fields::new(Inside::Events);
        self.scan(&mut scanner, &mut inner).map_err(|_| wrong)?;
        match inner.repeated {
            Some(_) => Err(outer.refused(Refusal::RepeatedField, field)),
            None => Ok(inner),
        }
    }

    fn name(&mut self, fields: &Fields, field: Field) -> Result<Place, Refused> {
        self.checked(fields, field, is_name, Refusal::BadName)
    }

    fn checked(
        &mut self,
        fields: &Fields,
        field: Field,
        is_good: impl Fn(&str) -> bool,
        refusal: Refusal,
    ) -> Result<Place, Refused> {
        let place = self.string(fields, field)?;
        if is_good(self.text(place)) { Ok(place) } else { Err(fields.refused(refusal, field)) }
    }

    /// A required string, unescaped.
    fn string(&mut self, fields: &Fields, field: Field) -> Result<Place, Refused> {
        let value = fields.required(field)?;
        match value.kind {
            Kind::String { .. } => Ok(self.place(value)),
            _ => Err(fields.refused(Refusal::WrongType, field)),
        }
    }

    fn required_integer(&self, fields: &Fields, field: Field) -> Result<u64, Refused> {
        self.integer(fields, field, fields.required(field)?)
    }

    fn optional_integer(&self, fields: &Fields, field: Field) -> Result<Option<u64>, Refused> {
        fields.get(field).map(|value| self.integer(fields, field, value)).transpose()
    }

    /// A number of digits only, below 2^53.
    fn integer(&self, fields: &Fields, field: Field, value: Value) -> Result<u64, Refused> {
        let digits = self.raw(value.span);
        let unsigned = digits.strip_prefix(b"-").unwrap_or(digits);
        if value.kind != Kind::Number || !unsigned.iter().all(u8::is_ascii_digit) {
            return Err(fields.refused(Refusal::WrongType, field));
        }
        let out_of_range = fields.refused(Refusal::OutOfRange, field);
        if unsigned.len() != digits.len() || digits.len() > 16 {
            return Err(out_of_range);
        }
        let number = digits.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0'));
        if number < WIRE_INTEGER_MAX { Ok(number) } else { Err(out_of_range) }
    }

    /// Where a string's text is: in the frame, or unescaped in scratch.
    fn place(&mut self, value: Value) -> Place {
        if !has_escapes(value) {
            return Place { span: value.span, in_scratch: false };
        }
        let start = self.scratch.bytes.len() as u32;
        let raw = self.frame.get(value.span.start as usize..value.span.end as usize).unwrap_or_default();
        json::unescape(raw, &mut self.scratch.bytes);
        Place { span: Span { start, end: self.scratch.bytes.len() as u32 }, in_scratch: true }
    }

    fn text(&self, place: Place) -> &str {
        place.text(self.frame, &self.scratch.bytes)
    }

    fn raw(&self, span: Span) -> &[u8] {
        self.frame.as_bytes().get(span.start as usize..span.end as usize).unwrap_or_default()
    }

    /// Makes the command of a plan and lends it to `each`.
    fn hand_over(&mut self, plan: Plan, each: impl FnOnce(Command<'_>) -> ControlFlow<()>) -> ControlFlow<()> {
        let frame = self.frame;
        let Scratch { bytes, event_plans, pattern_places, marker_plans, events, markers, patterns, .. } =
            &mut *self.scratch;
        let bytes = bytes.as_slice();
        let text = |place: Place| place.text(frame, bytes);
        match plan {
            Plan::Hello { credit_events, credit_bytes } => each(Command::Hello { credit_events, credit_bytes }),
            Plan::Acknowledge { events, bytes } => each(Command::Acknowledge { events, bytes }),
            Plan::Ping => each(Command::Ping),
            Plan::UnsubscribePatterns => each(Command::UnsubscribePatterns),
            Plan::Publish { session, durability } => match event_plans.first() {
                Some(plan) => {
                    each(Command::Publish { session: text(session), event: plan.event(frame, bytes), durability })
                }
                // `publish` has just planned it.
                None => ControlFlow::Continue(()),
            },
            Plan::Commit { session } => {
                let mut some_events: Vec<NewEvent<'_>> = recycled(std::mem::take(events));
                some_events.extend(event_plans.iter().map(|plan| plan.event(frame, bytes)));
                let mut some_markers: Vec<NewMarker<'_>> = recycled(std::mem::take(markers));
                some_markers.extend(marker_plans.iter().map(|&(name, offset)| NewMarker { name: text(name), offset }));
                let command = Command::Commit { session: text(session), events: &some_events, markers: &some_markers };
                let flow = each(command);
                *events = recycled(some_events);
                *markers = recycled(some_markers);
                flow
            }
            Plan::Subscribe { session, from } => {
                let from = match from {
                    FromPlan::Earliest => From::Earliest,
                    FromPlan::Offset(offset, epoch) => From::Offset(offset, epoch),
                    FromPlan::Marker(name) => From::Marker(text(name)),
                    FromPlan::Latest | FromPlan::Position(_) => From::Latest,
                };
                each(Command::Subscribe { session: text(session), from })
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
            Plan::Mark { session, name, offset } => {
                each(Command::Mark { session: text(session), marker: NewMarker { name: text(name), offset } })
            }
            Plan::History { session, from, limit } => each(Command::History { session: text(session), from, limit }),
        }
    }
}

/// The allocation of an old list for a new one: collecting in place keeps it, as both have the same layout.
fn recycled<A, B>(mut list: Vec<A>) -> Vec<B> {
    list.clear();
    list.into_iter().map(|_| unreachable!("the list is empty")).collect()
}

fn has_escapes(value: Value) -> bool {
    value.kind == Kind::String { escaped: true }
}

/// `session:epoch:offset`, read from the right because a session may hold colons.
fn is_event_id(text: &str) -> bool {
    let mut parts = text.rsplitn(3, ':');
    let offset = parts.next().is_some_and(is_u64);
    let epoch = parts.next().is_some_and(|epoch| parse_epoch(epoch).is_some());
    offset && epoch && parts.next().is_some_and(is_name)
}

/// Sixteen lower-case hex digits.
fn parse_epoch(text: &str) -> Option<u64> {
    let good = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    good.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// `slice.seq,slice.seq,…`; empty is the position of a server that holds nothing.
fn is_position(text: &str) -> bool {
    let is_part = |part: &str| {
        part.split_once('.').is_some_and(|(slice, seq)| {
            is_u64(slice) && slice.parse::<u16>().is_ok_and(|slice| slice < SLICES) && is_u64(seq)
        })
    };
    text.is_empty() || text.split(',').all(is_part)
}

/// Digits only: `parse` alone would take a sign.
fn is_u64(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u64>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every command of a frame, in words.
    fn decoded(frame: &str) -> Vec<String> {
        let mut out = Vec::new();
        let mut scratch = Scratch::new(&Limits { event_bytes_max: 128, ..Limits::default() });
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

    fn one(frame: &str) -> String {
        let mut all = decoded(frame);
        assert_eq!(all.len(), 1, "{frame}");
        all.remove(0)
    }

    #[test]
    fn fields_come_in_any_order_and_escapes_are_read() {
        let plain = one(r#"{"type":"publish","id":7,"session":"s","topic":"a.b","message_id":"m","data":{"a":[1]}}"#);
        let other = one(
            r#" { "data" : {"a":[1]} , "unknown":[{}], "m\u0065ssage_id":"\u006d","topic":"a\u002eb","id":7,"session":"s","type":"publish" } "#,
        );
        assert_eq!(plain, other);
        assert!(plain.starts_with("7 Publish"), "{plain}");
    }

    #[test]
    fn data_is_passed_through_as_it_stands() {
        for data in ["null", "\"a\\u0041\"", "[ 1 ,2]", "-0.5e3", "{\"a\":1,\"a\":2}"] {
            let frame = format!(r#"{{"type":"publish","session":"s","topic":"t","message_id":"m","data":  {data}  }}"#);
            let mut scratch = Scratch::new(&Limits::default());
            let mut seen = false;
            decode(&frame, Resume::default(), &mut scratch, |_, result| {
                let Ok(Command::Publish { event, .. }) = result else { panic!("{result:?}") };
                assert_eq!(event.data, data.as_bytes());
                seen = true;
                ControlFlow::Continue(())
            });
            assert!(seen);
        }
    }

    #[test]
    fn a_broken_frame_is_refused_whole() {
        assert_eq!(decoded(r#"[{"type":"ping","id":1},{"type":"ping","id":2}]"#), ["1 Ping", "2 Ping"]);
        assert_eq!(decoded(r#"[{"type":"ping","id":1},{"type":"ping","id":2"#), ["- bad_frame "]);
        assert_eq!(decoded(r#"[{"type":"ping","id":1},7]"#), ["- bad_frame "]);
        assert_eq!(decoded(r#"[{"type":"ping","id":1},{"type":1}]"#), ["1 Ping", "- wrong_type type"]);
        assert_eq!(decoded("[]"), [""; 0]);
        for frame in ["", "7", "[", "{", "{}x", "[]x", "null", "[[]]", "\u{feff}{}"] {
            assert!(one(frame).ends_with("bad_frame "), "{frame}: {}", one(frame));
        }
        assert_eq!(one(r#"{"type":"ping","id":3}]"#), "3 bad_frame ");
    }

    #[test]
    fn a_frame_holds_at_most_256_commands() {
        let frame = |n: usize| format!("[{}]", vec![r#"{"type":"ping"}"#; n].join(","));
        assert_eq!(decoded(&frame(256)).len(), 256);
        assert_eq!(decoded(&frame(257)), ["- bad_frame "]);
    }

    #[test]
    fn data_that_is_too_deep_is_refused_alone() {
        let publish = |depth: usize| {
            let data = "[".repeat(depth) + &"]".repeat(depth);
            format!(r#"{{"type":"publish","session":"s","topic":"t","message_id":"m","id":5,"data":{data}}}"#)
        };
        assert_eq!(one(&publish(65)), "5 bad_data data");
        assert_eq!(one(&publish(1000)), "5 bad_data data");
        let both = decoded(&format!("[{},{}]", publish(65), publish(64).replace("\"id\":5", "\"id\":6")));
        assert_eq!(both[0], "5 bad_data data");
        assert!(both[1].starts_with("6 Publish"), "{}", both[1]);
    }

    #[test]
    fn a_stopped_frame_goes_on_at_the_same_command() {
        let frame =
            r#" [ {"type":"ping","id":1} , {"type":"ping","id":2} ,{"type":"nope","id":3}, {"type":"ping","id":4}]"#;
        let mut scratch = Scratch::new(&Limits::default());
        let mut seen = Vec::new();
        let mut resume = Resume::default();
        let mut stops = 0;
        // Every command is refused room once and taken the second time.
        loop {
            let mut refuse = true;
            let rest = decode(frame, resume, &mut scratch, |id, result| {
                if stops % 2 == 0 && refuse {
                    return ControlFlow::Break(());
                }
                refuse = true;
                stops += 1;
                seen.push(format!("{id:?} {}", result.is_ok()));
                ControlFlow::Continue(())
            });
            stops += 1;
            match rest {
                Some(rest) => resume = rest,
                None => break,
            }
        }
        assert_eq!(seen, ["1 true", "2 true", "3 false", "4 true"]);
    }

    #[test]
    fn the_allocations_of_lists_are_kept() {
        let frame = r#"{"type":"commit","session":"s","events":[{"topic":"t","message_id":"m","data":1}],"markers":[{"name":"n","offset":1}]}"#;
        let mut scratch = Scratch::new(&Limits::default());
        let mut at = Vec::new();
        for _ in 0..3 {
            decode(frame, Resume::default(), &mut scratch, |_, result| {
                let Ok(Command::Commit { events, markers, .. }) = result else { panic!("{result:?}") };
                at.push((events.as_ptr() as usize, markers.as_ptr() as usize));
                ControlFlow::Continue(())
            });
        }
        assert_eq!(at[0], at[1]);
        assert_eq!(at[1], at[2]);
    }

    #[test]
    fn bytes_are_decoded_and_bounded() {
        let publish = |data: &str| {
            one(&format!(
                r#"{{"type":"publish","session":"s","topic":"t","message_id":"m","data_kind":"bytes","data":{data}}}"#
            ))
        };
        assert!(publish("\"AP+\\/\"").contains("data: [0, 255, 191]"));
        assert!(publish("\"\"").contains("data: []"));
        for bad in ["\"A\"", "\"AA\"", "\"AA=\"", "\"A A=\"", "7", "null", "\"__8=\""] {
            assert_eq!(publish(bad), "- bad_data data", "{bad}");
        }
        let full = STANDARD.encode([7; 128]);
        assert!(publish(&format!("\"{full}\"")).contains("Publish"));
        let over = STANDARD.encode([7; 129]);
        assert_eq!(publish(&format!("\"{over}\"")), "- event_too_large data");
        assert_eq!(publish(&format!("\"{}\"", over.replace('B', "\\u0042"))), "- event_too_large data");
    }

    #[test]
    fn every_field_is_known_to_the_table_of_refusals() {
        // What is inside `from` is told by `from`.
        let inner = [Field::Epoch, Field::Marker, Field::Position];
        for field in ALL.into_iter().filter(|field| !inner.contains(field)) {
            assert!(shards::refusal::FIELDS.contains(&field.name(Inside::Command)), "{field:?}");
        }
        let keys = r#""topic":1,"message_id":1,"prev_event_id":1,"prev_message_id":1,"data_kind":1,"ttl_ms":"","producer_epoch":"","producer_seq":"","traceparent":1,"session":1"#;
        for key in keys.split(',') {
            let good = r#""topic":"t","message_id":"m","data":1,"producer_epoch":1,"producer_seq":1"#;
            let name = key.split('"').nth(1).unwrap();
            let rest: Vec<&str> = good.split(',').filter(|field| !field.contains(&format!("\"{name}\""))).collect();
            let refused = one(&format!(r#"{{"type":"commit","session":"s","events":[{{{key},{}}}]}}"#, rest.join(",")));
            let field = refused.rsplit(' ').next().unwrap();
            assert_eq!(field, format!("events[].{name}"));
            assert!(shards::refusal::FIELDS.contains(&field), "{field}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[\\[\\]{}:,\"\\\\a-z0-9. _]{0,80}") {
            decoded(&text);
        }

        #[test]
        fn a_mangled_command_is_taken_or_refused_once(at: proptest::sample::Index, with in "[\\[\\]{}:,\"\\\\a0. -]?") {
            let frame = r#"{"type":"commit","id":"x","session":"s","events":[{"topic":"t","message_id":"m","data":{"a":[1,"b"]},"producer_epoch":1,"producer_seq":0}],"markers":[{"name":"n","offset":1}]}"#;
            let at = at.index(frame.len());
            one(&format!("{}{with}{}", &frame[..at], &frame[at + 1..]));
        }
    }
}
