//! Refusals: expected noes, typed, counted, with advice. One table for every edge.
//!
//! ```text
//! 4000–4099  retry now         the cause is momentary
//! 4100–4199  retry later       after `retry_after_ms`
//! 4200–4299  do not retry      the request itself is at fault
//! ```

/// Why a command was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Which no.
    pub refusal: Refusal,
    /// Field of the command at fault, or empty.
    pub field: &'static str,
    /// When trying again makes sense.
    pub retry_after_ms: Option<u32>,
    /// The number that the field should have had.
    pub expected: Option<u64>,
}

impl Refused {
    /// At fault is `field`.
    pub const fn field(refusal: Refusal, field: &'static str) -> Self {
        Self { refusal, field, retry_after_ms: None, expected: None }
    }

    /// Come back after `ms`.
    pub const fn later(refusal: Refusal, ms: u32) -> Self {
        Self { refusal, field: "", retry_after_ms: Some(ms), expected: None }
    }

    /// At fault is `field`, which should have been `expected`.
    pub const fn expects(refusal: Refusal, field: &'static str, expected: u64) -> Self {
        Self { refusal, field, retry_after_ms: None, expected: Some(expected) }
    }
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $variant:ident = $code:literal $name:literal $cure:literal;)*) => {
        /// The kinds of no.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u16)]
        pub enum Refusal { $($(#[$doc])* #[doc = $cure] $variant = $code,)* }

        impl Refusal {
            /// All of them, for tables and tests.
            pub const ALL: &'static [Refusal] = &[$(Refusal::$variant),*];

            /// Name on the wire.
            pub const fn name(self) -> &'static str {
                match self { $(Refusal::$variant => $name,)* }
            }

            /// What is wrong and what to do about it.
            pub const fn cure(self) -> &'static str {
                match self { $(Refusal::$variant => $cure,)* }
            }

            /// Number on the wire.
            pub const fn code(self) -> u16 { self as u16 }

            /// From a number on a mailbox.
            pub const fn from_code(code: u16) -> Option<Refusal> {
                match code { $($code => Some(Refusal::$variant),)* _ => None }
            }
        }
    };
}

refusals! {
    NoCredit = 4000 "no_credit" "too many commands of this client await their reply: read replies before sending more";
    LogBehind = 4100 "log_behind" "the log cannot take more at present: retry after the given time";
    MailboxFull = 4101 "mailbox_full" "the owning shard is behind: retry after the given time";
    NoSpace = 4102 "no_space" "the server's disk is full: retry later; reads go on";
    PartitionsFull = 4103 "partitions_full" "too many sessions are in use at once: retry later or raise partitions_resident_max";
    Unavailable = 4104 "unavailable" "the server cannot serve this now: retry after the given time";
    TooManyConnections = 4105 "too_many_connections" "this shard holds as many connections as it may: retry later";
    OverQuota = 4106 "over_quota" "the tenant has used what it may, as field says: retry after the given time";
    OverShare = 4107 "over_share" "the tenant has more under way than its share of this core: send less, or retry after the given time";
    PresenceFlood = 4120 "presence_flood" "this connection changes its presence or receipts too often: send the latest after the given time";
    RoomFull = 4121 "room_full" "the session, or the server, holds as many members as it may: retry after the given time";
    EntriesFull = 4131 "entries_full" "the session, or the tenant, holds as many bytes of entries as it may: delete some, or give them a ttl_ms";
    GroupFull = 4132 "group_full" "the group has as many members here as it may: retry after the given time";
    QueueFull = 4130 "queue_full" "the queue, or the session, holds as many open jobs as it may: retry after the given time";
    BadFrame = 4200 "bad_frame" "the frame is no JSON object or array of at most 256 objects: send one";
    UnknownCommand = 4201 "unknown_command" "the type names no command: see PROTOCOL.md";
    MissingField = 4202 "missing_field" "this field is required: give it";
    WrongType = 4203 "wrong_type" "this field has the wrong type: see PROTOCOL.md";
    BadName = 4204 "bad_name" "names are 1 to 128 of A-Z a-z 0-9 _ . : - and may not start with $";
    BadTopic = 4205 "bad_topic" "a topic is 1 to 16 dot-separated tokens of A-Z a-z 0-9 _ -, 128 bytes at most, not starting with $";
    BadPattern = 4206 "bad_pattern" "a pattern is a topic in which * stands for one token and a last > for the rest";
    BadData = 4207 "bad_data" "data must be well-formed JSON no deeper than 64, or base64 where data_kind is bytes";
    EventTooLarge = 4208 "event_too_large" "the event is larger than event_bytes_max: make it smaller or store it elsewhere and send a reference";
    FrameTooLarge = 4209 "frame_too_large" "the frame is larger than frame_bytes_max: send less at once";
    TooManySubscriptions = 4210 "too_many_subscriptions" "this client holds as many subscriptions as it may: unsubscribe or use a pattern";
    UnknownSession = 4211 "unknown_session" "nothing was ever published into this session: publish first or subscribe from latest";
    UnknownMarker = 4212 "unknown_marker" "no marker of this name stands in the session: mark first or give an offset";
    OffsetOutOfRange = 4213 "offset_out_of_range" "the offset lies beyond the next event: use an offset the server has given";
    ForeignEpoch = 4214 "foreign_epoch" "the position belongs to another life of the session: start from earliest or latest";
    UnknownJob = 4283 "unknown_job" "the job has ended, or never was: nothing is left to be done";
    UnknownQueue = 4280 "unknown_queue" "no queue of this name is declared: declare it first";
    BadPolicy = 4281 "bad_policy" "this number of the queue contradicts another one, or is outside its bounds: see what is expected, and PROTOCOL.md";
    QueueLoop = 4282 "queue_loop" "what the server says for this queue would become a job of it again: give fallback and dead letter topics that lead nowhere back";
    StaleLease = 4284 "stale_lease" "this lease is over, or another one is newer: leave the job, or the session, alone";
    PastDeadline = 4285 "past_deadline" "the job ends before that: ask for no more than is expected";
    ProgressTooLarge = 4286 "progress_too_large" "partial results of the job, or of all jobs of the session, are larger than they may be: publish an event and name it here";
    TooManyQueues = 4287 "too_many_queues" "the tenant has as many queues as it may: use one of them";
    WrongNext = 4289 "wrong_next" "the session goes on at another offset than if_next says: read up to there, then decide again";
    UnknownGroup = 4274 "unknown_group" "no group of this name is declared: declare it first";
    TooManyGroups = 4275 "too_many_groups" "the tenant has as many groups as it may: use one of them";
    NotDead = 4288 "not_dead" "the job is no dead letter: it is still open, or was driven again";
    MessageIdReused = 4215 "message_id_reused" "this message_id was used for another event: give each event its own";
    CausalGap = 4216 "causal_gap" "the cause does not exist in this session: publish it first";
    CrossSession = 4217 "cross_session" "all parts belong to one session: name events of the same session only";
    ProducerFenced = 4218 "producer_fenced" "a newer producer_epoch is at work: stop, or take a higher one";
    ProducerGap = 4219 "producer_gap" "producer_seq must be the last one plus one: send what is missing first";
    MarkerBackwards = 4220 "marker_backwards" "a marker only moves forward: set it at or beyond where it stands";
    TooManyMarkers = 4221 "too_many_markers" "the session holds as many markers as it may: reuse one";
    TooManyProducers = 4222 "too_many_producers" "the session holds as many numbering producers as it may: use message_id";
    BadPosition = 4223 "bad_position" "a position is slice.seq,slice.seq,… as the server gave it";
    PatternsHeld = 4224 "patterns_held" "this client already has a pattern feed: unsubscribe it first, or give all patterns at once";
    BadCredit = 4225 "bad_credit" "acknowledge only what was delivered, never less than before";
    NotSubscribed = 4226 "not_subscribed" "this client has no such subscription";
    CommandTooLarge = 4227 "command_too_large" "the command has too many parts: at most 256 events, 64 markers and 32 patterns";
    BadUpgrade = 4228 "bad_upgrade" "the request is no WebSocket upgrade for /v1/ws with subprotocol tidegate.v1.json";
    OutOfRange = 4229 "out_of_range" "this number is outside its bounds: see PROTOCOL.md";
    StaleToken = 4231 "stale_token" "another connection has resumed this client since, or it is no longer kept: resume without a token and subscribe again";
    BadToken = 4232 "bad_token" "the token is not one of this server for this tenant, or it has expired: resume without it";
    AlreadyResumed = 4233 "already_resumed" "this connection has its client's life already: resume once, first of all";
    ResumeTooLate = 4234 "resume_too_late" "the token names another client and this connection has begun to work: resume before anything else";
    Fenced = 4235 "fenced" "a newer connection has this client: use that one";
    StreamGap = 4240 "stream_gap" "seq must be the stream's next one, from 0: send what is expected";
    StreamSeqReused = 4241 "stream_seq_reused" "this seq was used for another delta: go on with what is expected";
    StreamClosed = 4242 "stream_closed" "the stream is closed: begin another one under another name";
    UnknownStream = 4243 "unknown_stream" "no stream of this name is open in the session: append first";
    TooManyStreams = 4244 "too_many_streams" "as many streams are open as may be: close one first";
    StreamTooLong = 4245 "stream_too_long" "the stream has as much text as it may: close it and begin another one";
    NotPresent = 4260 "not_present" "this client is not in the session: enter it first";
    NotWatching = 4261 "not_watching" "this connection does not watch that: watch it first";
    TooManyPresences = 4262 "too_many_presences" "this connection is in, or watches, as many sessions as it may: leave or unwatch one";
    PresenceTooLarge = 4263 "presence_too_large" "data of presence is larger than presence_data_bytes_max: publish an event and name it here";
    ReadBackwards = 4264 "read_backwards" "what was read stays read: send an offset at or beyond the last one";
    WrongRevision = 4270 "wrong_revision" "the entry has another revision than if_revision says: read it again";
    EntryTooLarge = 4271 "entry_too_large" "the value is larger than entry_bytes_max: publish an event and name it here";
    UnknownEntry = 4272 "unknown_entry" "no entry has this key: it was never put, was deleted, or has expired";
    TooManyWatches = 4273 "too_many_watches" "this connection watches as many prefixes of entries as it may: unwatch one";
    Forbidden = 4290 "forbidden" "the client's token does not grant this: ask its issuer for the capability named in field";
    BadCredential = 4291 "bad_credential" "the client's token is not accepted here: get a new one from its issuer";
    NarrowerRights = 4292 "narrower_rights" "a connection keeps what it may read: connect again with this token";
    NoKeys = 4293 "no_keys" "this server has no keys, so there is nobody to revoke: configure auth_keys_file";
    TooManyRevocations = 4294 "too_many_revocations" "as many revocations of this tenant are kept as may be: change the key that its tokens are signed with";
    RepeatedField = 4230 "repeated_field" "this field is given twice: give it once";
}

/// Every field that a refusal may name. A refusal travels as bytes, and its field is found here again.
pub const FIELDS: &[&str] = &[
    "type",
    "id",
    "session",
    "topic",
    "message_id",
    "prev_event_id",
    "prev_message_id",
    "data",
    "data_kind",
    "ttl_ms",
    "producer_epoch",
    "producer_seq",
    "traceparent",
    "durability",
    "events",
    "markers",
    "name",
    "offset",
    "from",
    "limit",
    "patterns",
    "credit",
    "bytes",
    "token",
    "seen",
    "position",
    "attempt",
    "stream",
    "seq",
    "delta",
    "status",
    "policy",
    "state",
    "lease_ms",
    "log",
    "entries",
    "key",
    "prefix",
    "after",
    "if_revision",
    "if_next",
    "revision",
    "bucket",
    "complete",
    "queue",
    "group",
    "job",
    "lease",
    "priorities",
    "capacity",
    "deadline_ms",
    "attempts",
    "backoff_ms",
    "order",
    "fallback",
    "dead_letter",
    "retry_after_ms",
    "retry",
    "capabilities.publish",
    "capabilities.subscribe",
    "capabilities.queue",
    "capabilities.entries",
    "capabilities.admin",
    "events_per_second_max",
    "bytes_per_second_max",
    "connections_max",
    "subscriptions_max",
    "sessions_max",
    "queue_depth_max",
    "entries_bytes_max",
    "tenant",
    "quota",
    "events[].session",
    "events[].topic",
    "events[].message_id",
    "events[].prev_event_id",
    "events[].prev_message_id",
    "events[].data",
    "events[].data_kind",
    "events[].ttl_ms",
    "events[].producer_epoch",
    "events[].producer_seq",
    "events[].traceparent",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_in_a_range_with_advice() {
        for (i, a) in Refusal::ALL.iter().enumerate() {
            assert!((4000..4300).contains(&a.code()));
            assert_eq!(Refusal::from_code(a.code()), Some(*a));
            for b in &Refusal::ALL[i + 1..] {
                assert_ne!(a.code(), b.code());
                assert_ne!(a.name(), b.name());
            }
        }
    }
}
