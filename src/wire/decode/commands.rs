//! What each command asks of its fields.

use super::Reader;
use super::fields::{Field, Fields, Inside};
use super::plan::{EventPlan, FromPlan, Place, Plan};
use super::table::COMMANDS;
use crate::wire::json::{Kind, Scanner, Span, Value};
use crate::wire::lives::stored;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use shards::command::{Command, DataKind, Durability, NewEvent, Policy};
use shards::ids::{CommandId, InlineText, SLICES};
use shards::limits::{CLIENT_PATTERNS_MAX, COMMIT_MARKERS_MAX, DATA_DEPTH_MAX, RESUME_SEEN_MAX, WIRE_INTEGER_MAX};
use shards::names::{is_name, is_pattern, is_topic, is_traceparent};
use shards::refusal::{Refusal, Refused};

/// Fields that a publish which asks for nothing special may have.
const PLAIN: u64 = Fields::bits(&[Field::Type, Field::Id, Field::Session, Field::Topic, Field::MessageId, Field::Data]);

impl<'f> Reader<'f, '_> {
    /// Most commands are publishes of JSON with nothing special asked for and nothing wrong: such a one without the
    /// way through a plan, all of it borrowed from the frame. `None` for all others, and for what is wrong:
    /// [`Reader::plan`] finds out why.
    #[inline(always)]
    pub(super) fn plain_publish(&self, fields: &Fields) -> Option<(CommandId, Command<'f>)> {
        let data = fields.get_or_null(Field::Data)?;
        if !fields.are_only(PLAIN) || self.plain(fields, Field::Type)? != "publish" {
            return None;
        }
        let session = self.plain(fields, Field::Session).filter(|name| is_name(name.as_bytes()))?;
        let topic = self.plain(fields, Field::Topic).filter(|topic| is_topic(topic.as_bytes()))?;
        let message_id = self.plain(fields, Field::MessageId).filter(|name| is_name(name.as_bytes()))?;
        let id = match fields.get(Field::Id) {
            None => CommandId::None,
            Some(value) if value.kind == Kind::Number => {
                CommandId::Number(self.integer(fields, Field::Id, value).ok()?)
            }
            Some(_) => CommandId::Text(InlineText::new(self.plain(fields, Field::Id)?)?),
        };
        let data_bytes = self.frame.as_bytes().get(json_range(data))?;
        if usize::from(data.depth) > DATA_DEPTH_MAX || data_bytes.len() > self.scratch.event_bytes_max {
            return None;
        }
        let event = NewEvent {
            topic,
            message_id,
            prev_event_id: None,
            prev_message_id: None,
            data: data_bytes,
            data_kind: DataKind::Json,
            ttl_ms: None,
            producer: None,
            traceparent: "",
        };
        Some((id, Command::Publish { session, event, durability: Durability::Disk }))
    }

    /// A string that is given and has no escapes.
    #[inline(always)]
    fn plain(&self, fields: &Fields, field: Field) -> Option<&'f str> {
        let value = fields.get(field).filter(|value| value.kind == Kind::Plain)?;
        self.frame.get(value.span.start as usize..value.span.end as usize)
    }
}

/// Where a value's own JSON stands: the quotes belong to it.
#[inline(always)]
pub(super) fn json_range(value: Value) -> std::ops::Range<usize> {
    let quote = usize::from(value.kind.is_string());
    value.span.start as usize - quote..value.span.end as usize + quote
}

impl Reader<'_, '_> {
    pub(super) fn plan(&mut self, fields: &Fields) -> Result<Plan, Refused> {
        let kind = self.string(fields, Field::Type)?;
        if let Some(field) = fields.repeated {
            return Err(fields.refused(Refusal::RepeatedField, field));
        }
        match COMMANDS.iter().find(|(name, _)| *name == self.text(kind)) {
            Some((_, read)) => read(self, fields),
            None => Err(fields.refused(Refusal::UnknownCommand, Field::Type)),
        }
    }

    pub(super) fn hello(&mut self, fields: &Fields) -> Result<Plan, Refused> {
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

    pub(super) fn resume(&mut self, fields: &Fields) -> Result<Plan, Refused> {
        let token = match fields.has(Field::Token) {
            true => Some(self.string(fields, Field::Token)?),
            false => None,
        };
        let position = match fields.has(Field::Position) {
            true => Some(self.checked(fields, Field::Position, is_position, Refusal::BadPosition)?),
            false => None,
        };
        let attempt = match fields.get(Field::Attempt) {
            Some(value) => self.integer(fields, Field::Attempt, value)?,
            None => 0,
        };
        self.scratch.seen_plans.clear();
        if let Some(value) = fields.get(Field::Seen) {
            let wrong = fields.refused(Refusal::WrongType, Field::Seen);
            if value.kind != Kind::Array {
                return Err(wrong);
            }
            let mut scanner = Scanner::new(self.frame, value.span.start as usize + 1);
            while scanner.element(self.scratch.seen_plans.is_empty()).map_err(|_| wrong)? {
                let element = scanner.value().map_err(|_| wrong)?;
                if !element.kind.is_string() {
                    return Err(wrong);
                }
                if self.scratch.seen_plans.len() == RESUME_SEEN_MAX {
                    return Err(fields.refused(Refusal::CommandTooLarge, Field::Seen));
                }
                let place = self.place(element);
                let (session, epoch, offset) = event_id_parts(self.bytes(place)).ok_or(wrong)?;
                let end = place.span.start + session as u32;
                let session = Place { span: Span { end, ..place.span }, ..place };
                self.scratch.seen_plans.push((session, epoch, offset));
            }
        }
        Ok(Plan::Resume { token, position, attempt })
    }

    pub(super) fn publish(&mut self, fields: &Fields) -> Result<Plan, Refused> {
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
    pub(super) fn event(&mut self, fields: &Fields, volatile: bool) -> Result<(), Refused> {
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

    pub(super) fn data(&mut self, fields: &Fields) -> Result<(Place, DataKind), Refused> {
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
        let value =
            fields.get_or_null(Field::Data).ok_or_else(|| fields.refused(Refusal::MissingField, Field::Data))?;
        if usize::from(value.depth) > DATA_DEPTH_MAX {
            return Err(fields.refused(Refusal::BadData, Field::Data));
        }
        let place = match (kind, value.kind) {
            (DataKind::Json, _) => {
                let range = json_range(value);
                Place { span: Span { start: range.start as u32, end: range.end as u32 }, in_scratch: false }
            }
            (DataKind::Bytes, Kind::Plain | Kind::Escaped) => {
                if value.span.bytes() / 4 * 3 > self.scratch.event_bytes_max + 2 && value.kind == Kind::Plain {
                    return Err(fields.refused(Refusal::EventTooLarge, Field::Data));
                }
                let digits = self.place(value);
                self.base64(digits).ok_or_else(|| fields.refused(Refusal::BadData, Field::Data))?
            }
            (DataKind::Bytes | DataKind::Delta | DataKind::Close, _) => {
                return Err(fields.refused(Refusal::BadData, Field::Data));
            }
        };
        if place.span.bytes() > self.scratch.event_bytes_max {
            return Err(fields.refused(Refusal::EventTooLarge, Field::Data));
        }
        Ok((place, kind))
    }

    /// Decodes base64 (standard alphabet, padded) to the end of scratch.
    pub(super) fn base64(&mut self, digits: Place) -> Option<Place> {
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

    pub(super) fn commit(&mut self, fields: &Fields) -> Result<Plan, Refused> {
        let session = self.name(fields, Field::Session)?;
        self.commit_parts(fields, session)?;
        let complete = self.commit_job(fields, Field::Complete, session)?;
        let holds = self.commit_job(fields, Field::Holds, session)?;
        let scratch = &self.scratch;
        let has_parts =
            !scratch.event_plans.is_empty() || !scratch.marker_plans.is_empty() || !scratch.entry_plans.is_empty();
        if !has_parts && complete.is_none() {
            return Err(fields.refused(Refusal::MissingField, Field::Events));
        }
        Ok(Plan::Commit { session, complete, holds, if_next: self.optional_integer(fields, Field::IfNext)? })
    }

    /// Events, markers and entries of a commit into this session.
    pub(super) fn commit_parts(&mut self, fields: &Fields, session: Place) -> Result<(), Refused> {
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
                let marker = self.marker(&marker).map_err(outer)?;
                self.scratch.marker_plans.push(marker);
            }
        }
        self.commit_entries(fields)
    }

    pub(super) fn subscribe(&mut self, fields: &Fields) -> Result<Plan, Refused> {
        let session = self.name(fields, Field::Session)?;
        let from = match self.from(fields)? {
            FromPlan::Position(_) => return Err(fields.refused(Refusal::WrongType, Field::From)),
            from => from,
        };
        Ok(Plan::Subscribe { session, from, policy: self.policy(fields)? })
    }

    pub(super) fn subscribe_patterns(&mut self, fields: &Fields) -> Result<Plan, Refused> {
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
            if !element.kind.is_string() {
                return Err(wrong);
            }
            if self.scratch.pattern_places.len() == CLIENT_PATTERNS_MAX {
                return Err(fields.refused(Refusal::CommandTooLarge, Field::Patterns));
            }
            let place = self.place(element);
            if !is_pattern(self.bytes(place)) {
                return Err(fields.refused(Refusal::BadPattern, Field::Patterns));
            }
            self.scratch.pattern_places.push(place);
        }
        if first {
            return Err(fields.refused(Refusal::MissingField, Field::Patterns));
        }
        // A pattern feed leaves nothing out.
        if self.policy(fields)? != Policy::Lossless {
            return Err(fields.refused(Refusal::WrongType, Field::Policy));
        }
        match self.from(fields)? {
            FromPlan::Offset(..) | FromPlan::Marker(_) => Err(fields.refused(Refusal::WrongType, Field::From)),
            from => Ok(Plan::SubscribePatterns { from }),
        }
    }

    /// `"latest"`, `"earliest"`, or an object with `offset`, `marker` or `position`.
    pub(super) fn from(&mut self, fields: &Fields) -> Result<FromPlan, Refused> {
        let wrong = fields.refused(Refusal::WrongType, Field::From);
        let Some(value) = fields.get(Field::From) else { return Ok(FromPlan::Latest) };
        if value.kind.is_string() {
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
                        Some(stored(parse_epoch(self.bytes(place)).ok_or(wrong)?))
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
}

/// `session:epoch:offset`, read from the right because a session may hold colons.
fn is_event_id(id: &[u8]) -> bool {
    let mut parts = id.rsplitn(3, |b| *b == b':');
    let offset = parts.next().is_some_and(is_u64);
    let epoch = parts.next().is_some_and(|epoch| parse_epoch(epoch).is_some());
    offset && epoch && parts.next().is_some_and(is_name)
}

/// Length of the session, epoch and offset of an event id that the server may have given.
pub(super) fn event_id_parts(id: &[u8]) -> Option<(usize, u64, u64)> {
    let mut parts = id.rsplitn(3, |b| *b == b':');
    let offset = parts.next().and_then(parse_u64).filter(|offset| *offset < WIRE_INTEGER_MAX)?;
    let epoch = parts.next().and_then(parse_epoch)?;
    let session = parts.next().filter(|session| is_name(session))?;
    Some((session.len(), stored(epoch), offset))
}

/// Sixteen lower-case hex digits.
pub(super) fn parse_epoch(digits: &[u8]) -> Option<u64> {
    let good = digits.len() == 16 && digits.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    good.then(|| u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()).flatten()
}

/// `slice.seq,slice.seq,…`; empty is the position of a server that holds nothing.
fn is_position(text: &[u8]) -> bool {
    let is_part = |part: &[u8]| {
        let mut halves = part.splitn(2, |b| *b == b'.');
        let slice = halves.next().and_then(parse_u64);
        slice.is_some_and(|slice| slice < u64::from(SLICES)) && halves.next().is_some_and(is_u64)
    };
    text.is_empty() || text.split(|b| *b == b',').all(is_part)
}

fn is_u64(digits: &[u8]) -> bool {
    parse_u64(digits).is_some()
}

/// Digits only: `parse` alone would take a sign.
fn parse_u64(digits: &[u8]) -> Option<u64> {
    let good = digits.iter().all(u8::is_ascii_digit);
    good.then(|| std::str::from_utf8(digits).ok()?.parse().ok()).flatten()
}
