//! Objects to fields, and fields to values of the right type.

use super::Reader;
use super::fields::{Field, Fields, Inside, packed};
use super::plan::Place;
use crate::wire::json::{self, Broken, Kind, Scanner, Span, Value};
use shards::ids::{CommandId, InlineText};
use shards::limits::{COMMIT_EVENTS_MAX, WIRE_INTEGER_MAX};
use shards::names::is_name;
use shards::refusal::{Refusal, Refused};

impl Reader<'_, '_> {
    /// Scans one object into `fields`.
    pub(super) fn scan(&mut self, scanner: &mut Scanner<'_>, fields: &mut Fields) -> Result<(), Broken> {
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
    pub(super) fn field(&mut self, key: Value) -> Option<Field> {
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
    pub(super) fn scan_events(&mut self, scanner: &mut Scanner<'_>, fields: &mut Fields) -> Result<Value, Broken> {
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

    pub(super) fn id(&mut self, fields: &Fields) -> Result<CommandId, Refused> {
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

    /// Scans an object inside a command; its text has been checked.
    pub(super) fn inner(&mut self, outer: &Fields, field: Field, value: Value) -> Result<Fields, Refused> {
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

    pub(super) fn name(&mut self, fields: &Fields, field: Field) -> Result<Place, Refused> {
        self.checked(fields, field, is_name, Refusal::BadName)
    }

    pub(super) fn checked(
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
    pub(super) fn string(&mut self, fields: &Fields, field: Field) -> Result<Place, Refused> {
        let value = fields.required(field)?;
        match value.kind {
            Kind::String { .. } => Ok(self.place(value)),
            _ => Err(fields.refused(Refusal::WrongType, field)),
        }
    }

    pub(super) fn required_integer(&self, fields: &Fields, field: Field) -> Result<u64, Refused> {
        self.integer(fields, field, fields.required(field)?)
    }

    pub(super) fn optional_integer(&self, fields: &Fields, field: Field) -> Result<Option<u64>, Refused> {
        fields.get(field).map(|value| self.integer(fields, field, value)).transpose()
    }

    /// A number of digits only, below 2^53.
    pub(super) fn integer(&self, fields: &Fields, field: Field, value: Value) -> Result<u64, Refused> {
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
    pub(super) fn place(&mut self, value: Value) -> Place {
        if !has_escapes(value) {
            return Place { span: value.span, in_scratch: false };
        }
        let start = self.scratch.bytes.len() as u32;
        let raw = self.frame.get(value.span.start as usize..value.span.end as usize).unwrap_or_default();
        json::unescape(raw, &mut self.scratch.bytes);
        Place { span: Span { start, end: self.scratch.bytes.len() as u32 }, in_scratch: true }
    }

    pub(super) fn text(&self, place: Place) -> &str {
        place.text(self.frame, &self.scratch.bytes)
    }

    pub(super) fn raw(&self, span: Span) -> &[u8] {
        self.frame.as_bytes().get(span.start as usize..span.end as usize).unwrap_or_default()
    }
}

pub(super) fn has_escapes(value: Value) -> bool {
    value.kind == Kind::String { escaped: true }
}
