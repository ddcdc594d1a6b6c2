//! What a client may ask of a session: the decoded form of a frame, borrowed from the socket's bytes.
//! Each command is carried out by the file of its name in `commands/`.

pub mod presence;
pub mod work;

pub use work::{EntryAsk, Fallback, GroupAsk, JobAsk, JobName, JobOrder, Lease, NewEntry, NewQueue, QueueAsk};

use crate::ids::LifeId;
use crate::limits::Quota;
pub use presence::{PresenceAct, PresenceState, RosterKind};
pub use storage::record::DataKind;

/// Which promise an acknowledgement carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// Acknowledged after fdatasync.
    #[default]
    Disk,
    /// Acknowledged early with a provisional id; delivered only when committed.
    Memory,
    /// Never logged.
    Volatile,
}

/// How a token stream ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum StreamStatus {
    /// All of it is there.
    Complete = 0,
    /// It breaks off: its producer said so, or was not heard of for the length of its lease.
    Partial = 1,
    /// Somebody stopped it.
    Cancelled = 2,
    /// Its producer failed.
    Failed = 3,
}

impl StreamStatus {
    /// All of them, by number.
    pub const ALL: [StreamStatus; 4] =
        [StreamStatus::Complete, StreamStatus::Partial, StreamStatus::Cancelled, StreamStatus::Failed];

    /// As a JSON string: the data of the event that closes the stream.
    pub const fn json(self) -> &'static str {
        match self {
            StreamStatus::Complete => "\"complete\"",
            StreamStatus::Partial => "\"partial\"",
            StreamStatus::Cancelled => "\"cancelled\"",
            StreamStatus::Failed => "\"failed\"",
        }
    }

    /// By its name.
    pub fn of(name: &str) -> Option<StreamStatus> {
        Self::ALL.into_iter().find(|status| status.json().trim_matches('"') == name)
    }
}

/// The next text of a token stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewDelta<'a> {
    /// Stream.
    pub stream: &'a str,
    /// Its number in the stream, dense from 0.
    pub seq: u64,
    /// Text, as the JSON string that it came as, quotes included.
    pub delta: &'a [u8],
    /// Topic of the stream's events; counts in its first append.
    pub topic: Option<&'a str>,
}

/// What of a session reaches a subscriber that does not keep up. The strongest is the first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[repr(u8)]
pub enum Policy {
    /// Every event.
    #[default]
    Lossless = 0,
    /// Every event; deltas of token streams that lie ready are merged.
    Rollup = 1,
    /// Of the events that lie ready the newest of each topic; deltas are merged.
    Latest = 2,
}

impl Policy {
    /// From its number; what is none reads as lossless.
    pub const fn from_number(number: u8) -> Policy {
        match number {
            1 => Policy::Rollup,
            2 => Policy::Latest,
            _ => Policy::Lossless,
        }
    }
}

/// An event to be published.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewEvent<'a> {
    /// Dotted topic, 1 to 16 tokens.
    pub topic: &'a str,
    /// Empty only where `producer` is given or the event is volatile.
    pub message_id: &'a str,
    /// `session:epoch:offset` of the cause.
    pub prev_event_id: Option<&'a str>,
    /// One's own earlier message that is the cause.
    pub prev_message_id: Option<&'a str>,
    /// Payload: JSON text or, for [`DataKind::Bytes`], the decoded bytes.
    pub data: &'a [u8],
    /// How `data` is to be read.
    pub data_kind: DataKind,
    /// Life in ms; `None` = until retention.
    pub ttl_ms: Option<u64>,
    /// `(producer_epoch, seq)` of a producer that numbers its messages.
    pub producer: Option<(u64, u64)>,
    /// W3C trace context, or empty.
    pub traceparent: &'a str,
}

/// A marker to be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewMarker<'a> {
    /// Name, unique in the session; a group's where there is a lease.
    pub name: &'a str,
    /// Next offset its owner wants.
    pub offset: u64,
    /// The right to move the group's marker on.
    pub lease: Option<Lease>,
}

/// Where a session subscription starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum From<'a> {
    /// After the last committed event.
    Latest,
    /// At the first retained event.
    Earliest,
    /// At an offset; with an epoch it must be the session's.
    Offset(u64, Option<u64>),
    /// Where a marker stands.
    Marker(&'a str),
}

/// Where a pattern subscription starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PatternFrom<'a> {
    /// After what is committed now.
    Latest,
    /// At the first retained event of every slice.
    Earliest,
    /// `slice.seq,slice.seq,…`: after these.
    Position(&'a str),
}

/// A decoded command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command<'a> {
    /// Says how much may be delivered before it is acknowledged. `None` = no bound but the send buffer's.
    Hello {
        /// Events.
        credit_events: Option<u64>,
        /// Payload bytes of event frames.
        credit_bytes: Option<u64>,
    },
    /// Append one event.
    Publish {
        /// Session.
        session: &'a str,
        /// Event.
        event: NewEvent<'a>,
        /// Promise wanted.
        durability: Durability,
    },
    /// Append several events, markers and changes of entries of one session, and end a job of it, all or nothing.
    Commit {
        /// Session.
        session: &'a str,
        /// Events, 0 to 256.
        events: &'a [NewEvent<'a>],
        /// Markers.
        markers: &'a [NewMarker<'a>],
        /// Changes of entries.
        entries: &'a [NewEntry<'a>],
        /// The job that it ends.
        complete: Option<(JobName<'a>, Lease)>,
        /// Only while this lease has this job, which goes on.
        holds: Option<(JobName<'a>, Lease)>,
        /// Only where the session goes on at this offset: nothing came in between.
        if_next: Option<u64>,
    },
    /// A queue of the tenant.
    Group {
        /// What.
        ask: GroupAsk<'a>,
    },
    /// Tell the markers of a session, with lag.
    Markers {
        /// Session.
        session: &'a str,
        /// Where the page begins, as the last one said.
        from: u64,
    },
    /// Something about a queue.
    Queue {
        /// What is asked.
        ask: QueueAsk<'a>,
    },
    /// A job of a session.
    Job {
        /// Session.
        session: &'a str,
        /// Job.
        job: JobName<'a>,
        /// What is asked.
        ask: JobAsk<'a>,
    },
    /// Entries of a session, or of a bucket.
    Entry {
        /// Session.
        session: &'a str,
        /// What is asked.
        ask: EntryAsk<'a>,
    },
    /// Append the next text of a token stream.
    StreamAppend {
        /// Session.
        session: &'a str,
        /// Text.
        delta: NewDelta<'a>,
        /// Promise wanted: `Disk` or `Memory`.
        durability: Durability,
    },
    /// End a token stream.
    StreamClose {
        /// Session.
        session: &'a str,
        /// Stream.
        stream: &'a str,
        /// How.
        status: StreamStatus,
    },
    /// Deliver a session's events.
    Subscribe {
        /// Session.
        session: &'a str,
        /// Start.
        from: From<'a>,
        /// What it gets where it does not keep up.
        policy: Policy,
    },
    /// Deliver the tenant's events whose topic matches one of the patterns.
    SubscribePatterns {
        /// Patterns: `*` one token, `>` the rest.
        patterns: &'a [&'a str],
        /// Start.
        from: PatternFrom<'a>,
    },
    /// Stop delivering a session.
    Unsubscribe {
        /// Session.
        session: &'a str,
    },
    /// Stop delivering by pattern.
    UnsubscribePatterns,
    /// Event frames of this connection that have been worked off, counted from its start; returns credit.
    Acknowledge {
        /// Frames, cumulative.
        events: u64,
        /// Payload bytes of those frames, cumulative.
        bytes: Option<u64>,
    },
    /// Move a marker forward.
    Mark {
        /// Session.
        session: &'a str,
        /// Marker.
        marker: NewMarker<'a>,
    },
    /// Read a page of a session.
    History {
        /// Session.
        session: &'a str,
        /// First offset wanted; `None` = first retained.
        from: Option<u64>,
        /// Events at most.
        limit: u32,
    },
    /// Takes a client's life: subscriptions and positions that outlive this connection.
    Resume {
        /// Which.
        claim: Claim<'a>,
        /// Last events that the client has worked off, one a session.
        seen: &'a [SeenEvent<'a>],
        /// Position of its pattern feed.
        position: Option<&'a str>,
        /// How often this token was sent, counted by the client: where an answer was lost, a later attempt is taken all the same.
        attempt: u64,
    },
    /// What `Resume` becomes on the owner of the client's hidden session. Never on a wire.
    Open {
        /// Hidden session.
        session: &'a str,
        /// Life that the claim names; `None` = a new one.
        claimed: Option<LifeId>,
        /// Of the claim.
        attempt: u64,
        /// When the connection was made, microseconds of the process's clock: the newest one has the client.
        since_us: u64,
        /// Bytes of kept state that there is room for in the answer.
        room: u32,
    },
    /// Who is in a session, and how far they are.
    Presence {
        /// Session.
        session: &'a str,
        /// What is asked.
        act: PresenceAct<'a>,
    },
    /// Answered at once.
    Ping,
    /// Who the client is, anew. The edge verifies the token and answers; where no key is configured it comes here and is refused.
    Auth {
        /// Token, as it was sent.
        token: &'a str,
    },
    /// Ends what tokens of the tenant let in. The edge carries it out; where no key is configured it comes here and is refused.
    Revoke {
        /// What the name is of.
        what: Revocable,
        /// Name.
        name: &'a str,
    },
    /// What a tenant may use. The edge carries it out, where the file is that keeps it.
    Quota {
        /// Which one; `None`: that of who asks.
        tenant: Option<&'a str>,
        /// What is asked.
        ask: QuotaAsk<'a>,
    },
}

/// What is asked of a quota.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QuotaAsk<'a> {
    /// What is in force.
    Get,
    /// These from now on; `None`: as the configuration says.
    Set(Option<&'a Quota>),
}

/// Whom a revocation names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Revocable {
    /// A client: all tokens of it that were issued until now.
    Client,
    /// One token.
    Token,
}

/// Whose life a connection wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim<'a> {
    /// A new one for this connection's client; whoever has the client's life now loses it.
    New,
    /// As it was sent. The edge verifies it before the core sees it.
    Token(&'a str),
    /// That of a verified token.
    Life {
        /// Client.
        client_id: &'a str,
        /// Which of its lives.
        life: LifeId,
    },
}

/// An event that a client has worked off, and with it all before it in its session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SeenEvent<'a> {
    /// Session.
    pub session: &'a str,
    /// Its epoch.
    pub epoch: u64,
    /// The event's offset.
    pub offset: u64,
}

impl<'a> Command<'a> {
    /// The session whose owner carries the command out; `None` where the client's shard does.
    pub fn session(&self) -> Option<&'a str> {
        match *self {
            Command::Publish { session, .. }
            | Command::Commit { session, .. }
            | Command::Mark { session, .. }
            | Command::StreamAppend { session, .. }
            | Command::StreamClose { session, .. }
            | Command::History { session, .. }
            | Command::Open { session, .. }
            | Command::Entry { session, .. }
            | Command::Job { session, .. }
            | Command::Markers { session, .. }
            | Command::Presence { session, .. } => Some(session),
            Command::Group { ask: GroupAsk::Declare { .. } | GroupAsk::Drop { .. } } => Some(crate::queues::QUEUES),
            Command::Queue { ask: QueueAsk::Declare(_) | QueueAsk::Drop { .. } } => Some(crate::queues::QUEUES),
            _ => None,
        }
    }
}
