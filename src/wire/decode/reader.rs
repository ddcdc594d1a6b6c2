//! Objects to fields, and fields to values of the right type.

use super::Reader;
use super::fields::{Field, Fields, Inside};
use super::plan::Place;
use crate::wire::digits;
use crate::wire::json::{self, Broken, Kind, Scanner, Span, Value};
use shards::ids::{CommandId, InlineText};
use shards::limits::{COMMIT_EVENTS_MAX, WIRE_INTEGER_MAX};
use shards::names::is_name;
use shards::refusal::{Refusal, Refused};

impl Reader<'_, '_> {
    /// Scans one object into `fields`.
    #[inline(never)]
    pub(super) fn scan(&mut self, scanner: &mut Scanner<'_>, fields: &mut Fields) -> Result<(), Broken> {
        // A scanner of its own stays in registers.
        let mut here = *scanner;
        here.peek();
        let mut before = b'{';
        loop {
            let field = match here.short_key(before) {
                Some((bytes, length)) => Field::of_first(bytes, length),
                None => match self.key(&mut here, before)? {
                    Some(key) => self.field(key),
                    None => break,
                },
            };
            before = b',';
            let Some(field) = field else {
                here.value()?;
                continue;
            };
            if let Some(span) = here.short_string() {
                fields.set(field, Value { kind: Kind::Plain, depth: 0, span });
                continue;
            }
            let value = if field == Field::Events && fields.inside == Inside::Command && here.peek() == Some(b'[') {
                let mut events = here;
                let value = self.scan_events(&mut events, fields);
                here = events;
                value
            } else {
                here.value()
            };
            match value {
                Ok(value) => fields.set(field, value),
                Err(broken) => {
                    fields.broken = Some(field);
                    return Err(broken);
                }
            }
        }
        *scanner = here;
        Ok(())
    }

    /// A key that is written as few do, or the end of the object.
    #[inline(always)]
    fn key(&self, scanner: &mut Scanner<'_>, before: u8) -> Result<Option<Value>, Broken> {
        let first = before == b'{';
        if first {
            scanner.expect(b'{')?;
        }
        scanner.key(first)
    }

    /// The field of a key that is written as few do.
    #[inline(never)]
    fn field(&mut self, key: Value) -> Option<Field> {
        let place = self.place(key);
        Field::of(place.bytes(self.frame, &self.scratch.bytes))
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
                if event.broken == Some(Field::Data) {
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
            Kind::Plain | Kind::Escaped => {
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

    /// A required string, unescaped, of which `is_good` holds.
    #[inline(always)]
    pub(super) fn checked(
        &mut self,
        fields: &Fields,
        field: Field,
        is_good: impl Fn(&[u8]) -> bool,
        refusal: Refusal,
    ) -> Result<Place, Refused> {
        let place = self.string(fields, field)?;
        if is_good(place.bytes(self.frame, &self.scratch.bytes)) {
            Ok(place)
        } else {
            Err(fields.refused(refusal, field))
        }
    }

    /// A required string, unescaped.
    #[inline(always)]
    pub(super) fn string(&mut self, fields: &Fields, field: Field) -> Result<Place, Refused> {
        let value = fields.required(field)?;
        if value.kind.is_string() { Ok(self.place(value)) } else { Err(fields.refused(Refusal::WrongType, field)) }
    }

    pub(super) fn required_integer(&self, fields: &Fields, field: Field) -> Result<u64, Refused> {
        self.integer(fields, field, fields.required(field)?)
    }

    pub(super) fn optional_integer(&self, fields: &Fields, field: Field) -> Result<Option<u64>, Refused> {
        fields.get(field).map(|value| self.integer(fields, field, value)).transpose()
    }

    /// A number of digits only, below 2^53.
    pub(super) fn integer(&self, fields: &Fields, field: Field, value: Value) -> Result<u64, Refused> {
        if value.kind != Kind::Number {
            return Err(fields.refused(Refusal::WrongType, field));
        }
        let digits = self.raw(value.span);
        if let (1..=8, Some(word)) =
            (digits.len(), self.frame.as_bytes().get(value.span.start as usize..).and_then(<[u8]>::first_chunk))
            && let Some(number) = digits::short_integer(word, digits.len())
        {
            return Ok(number);
        }
        let mut number = 0u64;
        for digit in digits {
            match digit.wrapping_sub(b'0') {
                digit @ 0..=9 => number = number.wrapping_mul(10).wrapping_add(u64::from(digit)),
                _ => return Err(self.no_integer(fields, field, digits)),
            }
        }
        if digits.len() <= 16 && number < WIRE_INTEGER_MAX {
            Ok(number)
        } else {
            Err(fields.refused(Refusal::OutOfRange, field))
        }
    }

    /// Why a number that is not all digits is refused: below zero is a matter of range, a fraction one of type.
    #[cold]
    fn no_integer(&self, fields: &Fields, field: Field, number: &[u8]) -> Refused {
        let unsigned = number.strip_prefix(b"-").unwrap_or(number);
        let refusal = if unsigned.iter().all(u8::is_ascii_digit) { Refusal::OutOfRange } else { Refusal::WrongType };
        fields.refused(refusal, field)
    }

    /// Where a string's text is: in the frame, or unescaped in scratch.
    #[inline(always)]
    pub(super) fn place(&mut self, value: Value) -> Place {
        match value.kind {
            Kind::Escaped => self.unescaped(value),
            _ => Place { span: value.span, in_scratch: false },
        }
    }

    #[inline(never)]
    fn unescaped(&mut self, value: Value) -> Place {
        let start = self.scratch.bytes.len() as u32;
        let raw = self.frame.get(value.span.start as usize..value.span.end as usize).unwrap_or_default();
        json::unescape(raw, &mut self.scratch.bytes);
        Place { span: Span { start, end: self.scratch.bytes.len() as u32 }, in_scratch: true }
    }

    pub(super) fn bytes(&self, place: Place) -> &[u8] {
        place.bytes(self.frame, &self.scratch.bytes)
    }

    pub(super) fn text(&self, place: Place) -> &str {
        place.text(self.frame, &self.scratch.bytes)
    }

    pub(super) fn raw(&self, span: Span) -> &[u8] {
        self.frame.as_bytes().get(span.start as usize..span.end as usize).unwrap_or_default()
    }
}
