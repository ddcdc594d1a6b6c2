//! The fields of one object, by name.

use crate::wire::json::{Kind, Span, Value};
use shards::refusal::{Refusal, Refused};

macro_rules! fields {
    ($($variant:ident $name:literal)*) => {
        /// Fields of commands and of the objects in them.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(super) enum Field { $($variant),* }

        pub(super) const FIELDS: usize = [$(Field::$variant),*].len();

        pub(super) const ALL: [Field; FIELDS] = [$(Field::$variant),*];

        impl Field {
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
    Token "token" Seen "seen" Attempt "attempt" Stream "stream" Seq "seq" Delta "delta" Status "status"
    Policy "policy" State "state" LeaseMs "lease_ms" Log "log"
    Bucket "bucket" Key "key" Prefix "prefix" After "after" Revision "revision" IfRevision "if_revision" Entries "entries"
    Complete "complete" Queue "queue" Group "group" Job "job" Lease "lease" Capacity "capacity" DeadlineMs "deadline_ms"
    Attempts "attempts" BackoffMs "backoff_ms" Order "order" Fallback "fallback" DeadLetter "dead_letter"
    Priorities "priorities" RetryAfterMs "retry_after_ms" Retry "retry" IfNext "if_next" Tenant "tenant" Quota "quota" Holds "holds"
}

/// A key of up to 15 bytes as one number, its length on top, so that looking up a field is comparing numbers.
const fn packed(key: &[u8]) -> u128 {
    let mut number = (key.len() as u128) << 120;
    let mut i = 0;
    while i < key.len() {
        number |= (key[i] as u128) << (8 * i);
        i += 1;
    }
    number
}

/// All fields by their packed names, each at its [`slot`]. An empty slot holds the empty key.
static TABLE: [(u128, Option<Field>); SLOTS] = {
    let mut table = [(0, None); SLOTS];
    let mut i = 0;
    while i < FIELDS {
        table[slot(KEYS[i])] = (KEYS[i], Some(ALL[i]));
        i += 1;
    }
    table
};

const KEYS: [u128; FIELDS] = {
    let mut keys = [0; FIELDS];
    let mut i = 0;
    while i < FIELDS {
        keys[i] = packed(ALL[i].name(Inside::Command).as_bytes());
        i += 1;
    }
    keys
};

const SLOTS: usize = 512;

/// A factor by which no two fields fall into one slot, found by trying.
#[allow(long_running_const_eval)]
const FACTOR: u64 = {
    let mut factor = 0x9e37_79b9_7f4a_7c15;
    while !is_perfect(factor) {
        factor = u64::wrapping_mul(factor, 0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f) | 1;
    }
    factor
};

const fn is_perfect(factor: u64) -> bool {
    let mut taken = [0u64; SLOTS / 64];
    let mut i = 0;
    while i < FIELDS {
        let slot = slot_by(KEYS[i], factor);
        if taken[slot / 64] & 1 << (slot % 64) != 0 {
            return false;
        }
        taken[slot / 64] |= 1 << (slot % 64);
        i += 1;
    }
    true
}

#[inline(always)]
const fn slot_by(key: u128, factor: u64) -> usize {
    ((key as u64 ^ (key >> 64) as u64).wrapping_mul(factor) >> (64 - SLOTS.ilog2())) as usize
}

#[inline(always)]
const fn slot(key: u128) -> usize {
    slot_by(key, FACTOR)
}

impl Field {
    /// The field of this name.
    pub(super) fn of(key: &[u8]) -> Option<Field> {
        if key.len() > 15 { None } else { Field::of_packed(packed(key)) }
    }

    /// The field whose name is the first `length` of these bytes.
    #[inline(always)]
    pub(super) fn of_first(bytes: &[u8; 16], length: usize) -> Option<Field> {
        const MASKS: [u128; 16] = {
            let mut masks = [0; 16];
            let mut i = 0;
            while i < 16 {
                masks[i] = (1 << (8 * i)) - 1;
                i += 1;
            }
            masks
        };
        let mask = MASKS.get(length)?;
        Field::of_packed(u128::from_le_bytes(*bytes) & mask | (length as u128) << 120)
    }

    #[inline(always)]
    fn of_packed(key: u128) -> Option<Field> {
        let (name, field) = TABLE[slot(key)];
        if name == key { field } else { None }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Inside {
    Command,
    Events,
}

/// The fields of one object.
pub(super) struct Fields {
    // Apart from one another: without padding an empty table is written in a few stores.
    spans: [Span; FIELDS],
    kinds: [Kind; FIELDS],
    depths: [u8; FIELDS],
    /// One bit for each field that is there.
    seen: u64,
    /// One bit for each that is there and not `null`.
    given: u64,
    pub(super) inside: Inside,
    /// The first field that came twice.
    pub(super) repeated: Option<Field>,
    /// What is wrong with the elements of `events`; counts only if the command is one that has them.
    pub(super) events: Result<(), Refused>,
    /// The field whose value is where the text broke.
    pub(super) broken: Option<Field>,
}

const _: () = assert!(FIELDS <= u64::BITS as usize);

impl Fields {
    #[inline(always)]
    pub(super) fn new(inside: Inside) -> Self {
        let (spans, kinds, depths) = ([Span::default(); FIELDS], [Kind::Null; FIELDS], [0; FIELDS]);
        Self { spans, kinds, depths, seen: 0, given: 0, inside, repeated: None, events: Ok(()), broken: None }
    }

    /// A set of fields, one bit each.
    pub(super) const fn bits(fields: &[Field]) -> u64 {
        let (mut bits, mut i) = (0, 0);
        while i < fields.len() {
            bits |= 1 << fields[i] as u64;
            i += 1;
        }
        bits
    }

    /// Whether no field outside the set is given, and none twice.
    #[inline(always)]
    pub(super) fn are_only(&self, bits: u64) -> bool {
        self.given & !bits == 0 && self.repeated.is_none()
    }

    #[inline(always)]
    pub(super) fn set(&mut self, field: Field, value: Value) {
        let bit = 1 << field as u64;
        if self.seen & bit != 0 {
            self.repeated.get_or_insert(field);
        }
        self.seen |= bit;
        self.given = self.given & !bit | u64::from(value.kind != Kind::Null) << field as u64;
        self.spans[field as usize] = value.span;
        self.kinds[field as usize] = value.kind;
        self.depths[field as usize] = value.depth;
    }

    #[inline(always)]
    fn value(&self, field: Field) -> Value {
        let at = field as usize;
        Value { kind: self.kinds[at], depth: self.depths[at], span: self.spans[at] }
    }

    /// A field that is there, `null` or not.
    #[inline(always)]
    pub(super) fn get_or_null(&self, field: Field) -> Option<Value> {
        (self.seen & 1 << field as u64 != 0).then(|| self.value(field))
    }

    /// A field that is given; `null` counts as not given.
    #[inline(always)]
    pub(super) fn get(&self, field: Field) -> Option<Value> {
        self.has(field).then(|| self.value(field))
    }

    #[inline(always)]
    pub(super) fn has(&self, field: Field) -> bool {
        self.given & 1 << field as u64 != 0
    }

    #[inline(always)]
    pub(super) fn required(&self, field: Field) -> Result<Value, Refused> {
        self.get(field).ok_or_else(|| self.refused(Refusal::MissingField, field))
    }

    #[cold]
    pub(super) fn refused(&self, refusal: Refusal, field: Field) -> Refused {
        Refused::field(refusal, field.name(self.inside))
    }
}
