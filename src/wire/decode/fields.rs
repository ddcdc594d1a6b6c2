//! The fields of one object, by name.

use crate::wire::json::{Kind, Value};
use shards::refusal::{Refusal, Refused};

macro_rules! fields {
    ($($variant:ident $name:literal)*) => {
        /// Fields of commands and of the objects in them.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(super) enum Field { $($variant),* }

        pub(super) const FIELDS: usize = [$(Field::$variant),*].len();

        #[cfg(test)]
        pub(super) const ALL: [Field; FIELDS] = [$(Field::$variant),*];

        impl Field {
            /// The field of this [`packed`] key.
            #[inline]
            // The constants bear the names of the variants: a macro cannot make others.
            #[allow(non_upper_case_globals)]
            pub(super) fn of(key: u128) -> Option<Field> {
                $(const $variant: u128 = packed($name.as_bytes());)*
                match key {
                    $($variant => Some(Field::$variant),)*
                    _ => None,
                }
            }

            /// Its name at the top of a command, or inside `events`.
            pub(super) const fn name(self, inside: Inside) -> &'static str {
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
pub(super) const fn packed(key: &[u8]) -> u128 {
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
pub(super) enum Inside {
    Command,
    Events,
}

/// The fields of one object.
pub(super) struct Fields {
    pub(super) values: [Option<Value>; FIELDS],
    pub(super) inside: Inside,
    /// The first field that came twice.
    pub(super) repeated: Option<Field>,
    /// What is wrong with the elements of `events`; counts only if the command is one that has them.
    pub(super) events: Result<(), Refused>,
    /// The field being scanned when the text broke.
    pub(super) last: Option<Field>,
}

impl Fields {
    pub(super) fn new(inside: Inside) -> Self {
        Self { values: [None; FIELDS], inside, repeated: None, events: Ok(()), last: None }
    }

    /// A field that is given; `null` counts as not given.
    pub(super) fn get(&self, field: Field) -> Option<Value> {
        self.values[field as usize].filter(|value| value.kind != Kind::Null)
    }

    pub(super) fn has(&self, field: Field) -> bool {
        self.get(field).is_some()
    }

    pub(super) fn required(&self, field: Field) -> Result<Value, Refused> {
        self.get(field).ok_or_else(|| self.refused(Refusal::MissingField, field))
    }

    pub(super) fn refused(&self, refusal: Refusal, field: Field) -> Refused {
        Refused::field(refusal, field.name(self.inside))
    }
}
