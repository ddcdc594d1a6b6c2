//! Parts that several messages share: who asked, commands, replies.
//!
//! ```text
//! request  kind u8 · …       FORWARD  ATTACH  DETACH  FETCH  ATTACH_PATTERNS  DETACH_PATTERNS  SCAN  EVENTS  ADVANCE  VOLATILE
//!                            KEEP  FENCE  NOTICE  WATCH  NEWS  PULL  HINT  CLAIM  RELEASE  FREE  DEFINE  DEFINED  LEND  REPAY  CENSUS
//!                            LEND_ROOM  REPAY_ROOM
//! reply    kind u8 · …       COMMAND  ATTACHED  FETCHED  PATTERNS_ATTACHED  SCANNED  HISTORY  ENTRIES  CLAIMED  DEAD  LENT
//!                            LENT_ROOM
//! ```

pub mod presence;
pub mod work;

use super::codec::{Reader, Writer};
use crate::command::{Command, DataKind, Durability, From, NewDelta, NewEntry, NewEvent, NewMarker, StreamStatus};
use crate::effect::Reply;
use crate::ids::{CommandId, ConnectionId, InlineText, LifeId};
use crate::refusal::{Refusal, Refused};

/// Kinds of request.
pub mod request {
    /// A session command of a client that lives on the sender.
    pub const FORWARD: u8 = 1;
    /// A session subscription begins.
    pub const ATTACH: u8 = 2;
    /// The sender has no subscriber of the partition left.
    pub const DETACH: u8 = 3;
    /// Records of a partition from an offset on.
    pub const FETCH: u8 = 4;
    /// A pattern client begins.
    pub const ATTACH_PATTERNS: u8 = 5;
    /// A pattern client has ended; maybe the sender's last of that tenant.
    pub const DETACH_PATTERNS: u8 = 6;
    /// More records for a pattern client that is behind.
    pub const SCAN: u8 = 7;
    /// Committed records that the receiver is interested in.
    pub const EVENTS: u8 = 8;
    /// Committed records that could not be sent: fetch them.
    pub const ADVANCE: u8 = 9;
    /// A volatile event.
    pub const VOLATILE: u8 = 10;
    /// What a client's home is to keep.
    pub const KEEP: u8 = 11;
    /// A connection's client was taken over.
    pub const FENCE: u8 = 12;
    /// A control event was committed.
    pub const NOTICE: u8 = 13;
    /// The sender watches entries of a session, or no longer.
    pub const WATCH: u8 = 14;
    /// Entries of a session changed.
    pub const NEWS: u8 = 15;
    /// The sender has workers for a queue, or has none any more.
    pub const PULL: u8 = 16;
    /// The sender has something to be claimed.
    pub const HINT: u8 = 17;
    /// Jobs for workers of the sender.
    pub const CLAIM: u8 = 18;
    /// A job that was given to the sender finds nobody there.
    pub const RELEASE: u8 = 19;
    /// A job is no longer that of its worker.
    pub const FREE: u8 = 20;
    /// A queue is so from now on.
    pub const DEFINE: u8 = 21;
    /// The sender knows it.
    pub const DEFINED: u8 = 22;
    /// A shard needs permits for jobs of a queue.
    pub const LEND_ROOM: u8 = 23;
    /// A shard gives some back.
    pub const REPAY_ROOM: u8 = 24;
    /// A shard needs more of a tenant's quota.
    pub const LEND: u8 = 60;
    /// A shard gives back, or says what it has spent.
    pub const REPAY: u8 = 61;
    /// All that the sender keeps of tenants under new bounds was said.
    pub const CENSUS: u8 = 62;
}

/// Kinds of reply.
pub mod reply {
    /// To a forwarded command.
    pub const COMMAND: u8 = 1;
    /// To `ATTACH`.
    pub const ATTACHED: u8 = 2;
    /// To `FETCH`.
    pub const FETCHED: u8 = 3;
    /// To `ATTACH_PATTERNS`.
    pub const PATTERNS_ATTACHED: u8 = 4;
    /// To `SCAN`.
    pub const SCANNED: u8 = 5;
    /// To a forwarded `history`.
    pub const HISTORY: u8 = 6;
    /// To commands about entries that are answered by a page.
    pub const ENTRIES: u8 = 7;
    /// To `CLAIM`.
    pub const CLAIMED: u8 = 8;
    /// To a forwarded list of dead letters.
    pub const DEAD: u8 = 9;
    /// To `LEND_ROOM`.
    pub const LENT_ROOM: u8 = 10;
    /// To `LEND`.
    pub const LENT: u8 = 60;
}

/// Writes a connection.
pub fn put_connection(w: &mut Writer<'_>, connection: ConnectionId) {
    w.u32(connection.slot).u32(connection.generation);
}

/// Reads a connection.
pub fn get_connection(r: &mut Reader<'_>) -> ConnectionId {
    ConnectionId { slot: r.u32(), generation: r.u32() }
}

/// Writes a command id.
pub fn put_id(w: &mut Writer<'_>, id: CommandId) {
    match id {
        CommandId::None => w.u8(0),
        CommandId::Number(n) => w.u8(1).u64(n),
        CommandId::Text(t) => w.u8(2).text(t.as_str()),
    };
}

/// Reads a command id.
pub fn get_id(r: &mut Reader<'_>) -> CommandId {
    match r.u8() {
        1 => CommandId::Number(r.u64()),
        2 => InlineText::new(r.text()).map_or(CommandId::None, CommandId::Text),
        _ => CommandId::None,
    }
}

fn put_event(w: &mut Writer<'_>, event: &NewEvent<'_>) {
    w.text(event.topic).text(event.message_id);
    w.option_text(event.prev_event_id).option_text(event.prev_message_id);
    w.bytes(event.data).u8(event.data_kind as u8).option(event.ttl_ms);
    w.option(event.producer.map(|p| p.0)).option(event.producer.map(|p| p.1)).text(event.traceparent);
}

fn get_event<'a>(r: &mut Reader<'a>) -> NewEvent<'a> {
    NewEvent {
        topic: r.text(),
        message_id: r.text(),
        prev_event_id: r.option_text(),
        prev_message_id: r.option_text(),
        data: r.bytes(),
        data_kind: if r.u8() == DataKind::Bytes as u8 { DataKind::Bytes } else { DataKind::Json },
        ttl_ms: r.option(),
        producer: r.option().zip(r.option()),
        traceparent: r.text(),
    }
}

fn put_durability(w: &mut Writer<'_>, durability: Durability) {
    w.u8(match durability {
        Durability::Disk => 0,
        Durability::Memory => 1,
        Durability::Volatile => 2,
    });
}

fn get_durability(r: &mut Reader<'_>) -> Durability {
    match r.u8() {
        1 => Durability::Memory,
        2 => Durability::Volatile,
        _ => Durability::Disk,
    }
}

/// Writes where a subscription starts.
pub fn put_from(w: &mut Writer<'_>, from: From<'_>) {
    match from {
        From::Latest => w.u8(0),
        From::Earliest => w.u8(1),
        From::Offset(offset, epoch) => w.u8(2).u64(offset).option(epoch),
        From::Marker(name) => w.u8(3).text(name),
    };
}

/// Reads where a subscription starts.
pub fn get_from<'a>(r: &mut Reader<'a>) -> From<'a> {
    match r.u8() {
        1 => From::Earliest,
        2 => From::Offset(r.u64(), r.option()),
        3 => From::Marker(r.text()),
        _ => From::Latest,
    }
}

/// Writes a command that its session's owner carries out: publish, commit, mark, history, open, appends and ends of streams. Others stay where the
/// client is and are not written.
pub fn put_command(w: &mut Writer<'_>, command: &Command<'_>) {
    match command {
        Command::Publish { session, event, durability } => {
            w.u8(1).text(session);
            put_durability(w, *durability);
            put_event(w, event);
        }
        Command::Commit { session, events, markers, entries, complete, holds, if_next } => {
            w.u8(2).text(session).u32(events.len() as u32).u32(markers.len() as u32).u32(entries.len() as u32);
            work::put_complete(w, complete);
            work::put_complete(w, holds);
            w.option(*if_next);
            entries.iter().for_each(|entry| work::put_entry(w, entry));
            events.iter().for_each(|event| put_event(w, event));
            markers.iter().for_each(|marker| work::put_marker(w, marker));
        }
        Command::Mark { session, marker } => {
            work::put_marker(w.u8(3).text(session), marker);
        }
        Command::History { session, from, limit } => {
            w.u8(4).text(session).option(*from).u32(*limit);
        }
        Command::Open { session, claimed, attempt, since_us, room } => {
            w.u8(5)
                .text(session)
                .option(claimed.map(|life| life.generation))
                .u64(claimed.map_or(0, |life| life.epoch))
                .u64(*attempt)
                .u64(*since_us)
                .u32(*room);
        }
        Command::StreamAppend { session, delta, durability } => {
            w.u8(6).text(session);
            put_durability(w, *durability);
            w.text(delta.stream).u64(delta.seq).bytes(delta.delta).option_text(delta.topic);
        }
        Command::StreamClose { session, stream, status } => {
            w.u8(7).text(session).text(stream).u8(*status as u8);
        }
        Command::Presence { session, act } => presence::put_act(w.u8(8), session, act),
        Command::Entry { session, ask } => work::put_entry_ask(w.u8(9), session, ask),
        Command::Job { session, job, ask } => work::put_job_ask(w.u8(10), session, job, ask),
        Command::Queue { ask } => work::put_queue_ask(w.u8(11), ask),
        Command::Group { ask } => work::put_group_ask(w.u8(12), ask),
        Command::Markers { session, from } => {
            w.u8(13).text(session).u64(*from);
        }
        _ => {
            w.u8(0);
        }
    }
}

/// Reads a command and hands it on: commits borrow their lists from this frame.
pub fn with_command<T>(r: &mut Reader<'_>, then: impl FnOnce(Command<'_>) -> T) -> T {
    match r.u8() {
        1 => {
            let session = r.text();
            let durability = get_durability(r);
            then(Command::Publish { session, durability, event: get_event(r) })
        }
        2 => {
            let session = r.text();
            let (events, markers, entries) = (r.u32(), r.u32(), r.u32());
            let (complete, holds, if_next) = (work::get_complete(r), work::get_complete(r), r.option());
            let entries: Vec<NewEntry<'_>> = (0..entries).map(|_| work::get_entry(r)).collect();
            let events: Vec<NewEvent<'_>> = (0..events).map(|_| get_event(r)).collect();
            let markers: Vec<NewMarker<'_>> = (0..markers).map(|_| work::get_marker(r)).collect();
            let (events, markers, entries) = (&events, &markers, &entries);
            then(Command::Commit { session, events, markers, entries, complete, holds, if_next })
        }
        3 => then(Command::Mark { session: r.text(), marker: work::get_marker(r) }),
        4 => then(Command::History { session: r.text(), from: r.option(), limit: r.u32() }),
        5 => {
            let (session, claimed, epoch) = (r.text(), r.option(), r.u64());
            let claimed = claimed.map(|generation| LifeId { generation, epoch });
            then(Command::Open { session, claimed, attempt: r.u64(), since_us: r.u64(), room: r.u32() })
        }
        6 => {
            let session = r.text();
            let durability = get_durability(r);
            let delta = NewDelta { stream: r.text(), seq: r.u64(), delta: r.bytes(), topic: r.option_text() };
            then(Command::StreamAppend { session, delta, durability })
        }
        7 => {
            let (session, stream, status) = (r.text(), r.text(), usize::from(r.u8()));
            let status = StreamStatus::ALL.get(status).copied().unwrap_or(StreamStatus::Partial);
            then(Command::StreamClose { session, stream, status })
        }
        8 => then(presence::get_act(r)),
        9 => then(work::get_entry_ask(r)),
        10 => then(work::get_job_ask(r)),
        11 => work::with_queue_ask(r, then),
        12 => work::with_group_ask(r, then),
        13 => then(Command::Markers { session: r.text(), from: r.u64() }),
        _ => then(Command::Ping),
    }
}

/// Writes a refusal.
pub fn put_refused(w: &mut Writer<'_>, refused: &Refused) {
    w.u16(refused.refusal.code()).text(refused.field).option(refused.retry_after_ms.map(u64::from));
    w.option(refused.expected);
}

/// Reads a refusal. A field that is not in the table of refusals reads as none.
pub fn get_refused(r: &mut Reader<'_>) -> Refused {
    let refusal = Refusal::from_code(r.u16()).unwrap_or(Refusal::Unavailable);
    let field = field_name(r.text());
    let retry_after_ms = r.option().map(|ms| ms as u32);
    Refused { refusal, field, retry_after_ms, expected: r.option() }
}

fn field_name(text: &str) -> &'static str {
    crate::refusal::FIELDS.iter().find(|field| **field == text).copied().unwrap_or("")
}

fn get_life(r: &mut Reader<'_>) -> LifeId {
    LifeId { generation: r.u64(), epoch: r.u64() }
}

/// Writes a reply.
pub fn put_reply(w: &mut Writer<'_>, reply: &Reply<'_>) {
    match reply {
        Reply::Published { session, epoch, offset, durability, duplicate } => {
            w.u8(1).text(session).u64(*epoch).u64(*offset).u8(u8::from(*duplicate));
            put_durability(w, *durability);
        }
        Reply::PublishedVolatile { after_offset } => {
            w.u8(2).u64(*after_offset);
        }
        Reply::Committed { session, epoch, offset, count, durability, duplicate, revision } => {
            w.u8(3).text(session).u64(*epoch).u64(*offset).u32(*count).u8(u8::from(*duplicate)).u64(*revision);
            put_durability(w, *durability);
        }
        Reply::Marked { session, name, offset } => {
            w.u8(4).text(session).text(name).u64(*offset);
        }
        Reply::Refused(refused) => {
            w.u8(5);
            put_refused(w, refused);
        }
        Reply::Subscribed { session, epoch, next, earliest, joins } => {
            w.u8(6).text(session).u64(*epoch).u64(*next).u64(*earliest).u8(u8::from(*joins));
        }
        Reply::SubscribedPatterns { position } => {
            w.u8(7).text(position);
        }
        Reply::Pong { time_ms } => {
            w.u8(8).u64(*time_ms);
        }
        Reply::Hello => {
            w.u8(9);
        }
        Reply::Unsubscribed => {
            w.u8(10);
        }
        Reply::Acknowledged => {
            w.u8(11);
        }
        Reply::Resumed { client_id, life, sessions, patterns } => {
            w.u8(12).text(client_id).u64(life.generation).u64(life.epoch).u32(*sessions).u8(u8::from(*patterns));
        }
        Reply::Lost { session, refused } => {
            w.u8(14).text(session);
            put_refused(w, refused);
        }
        Reply::ClientLarge { bytes } => {
            w.u8(15).u32(*bytes);
        }
        Reply::Work(reply) => work::put_work_reply(w.u8(21), reply),
        Reply::Presence { session, reply } => presence::put_presence_reply(w.u8(20), session, reply),
        Reply::ClientOpened { tenant, client_id, life, state } => {
            w.u8(13).text(tenant).text(client_id).u64(life.generation).u64(life.epoch).bytes(state);
        }
    }
}

/// Reads a reply.
pub fn get_reply<'a>(r: &mut Reader<'a>) -> Reply<'a> {
    match r.u8() {
        1 => {
            let (session, epoch, offset, duplicate) = (r.text(), r.u64(), r.u64(), r.u8() == 1);
            Reply::Published { session, epoch, offset, duplicate, durability: get_durability(r) }
        }
        2 => Reply::PublishedVolatile { after_offset: r.u64() },
        3 => {
            let (session, epoch, offset, count, duplicate) = (r.text(), r.u64(), r.u64(), r.u32(), r.u8() == 1);
            let revision = r.u64();
            Reply::Committed { session, epoch, offset, count, duplicate, revision, durability: get_durability(r) }
        }
        4 => Reply::Marked { session: r.text(), name: r.text(), offset: r.u64() },
        6 => {
            let (session, epoch, next, earliest) = (r.text(), r.u64(), r.u64(), r.u64());
            Reply::Subscribed { session, epoch, next, earliest, joins: r.u8() == 1 }
        }
        7 => Reply::SubscribedPatterns { position: r.text() },
        8 => Reply::Pong { time_ms: r.u64() },
        9 => Reply::Hello,
        10 => Reply::Unsubscribed,
        11 => Reply::Acknowledged,
        12 => Reply::Resumed { client_id: r.text(), life: get_life(r), sessions: r.u32(), patterns: r.u8() == 1 },
        14 => Reply::Lost { session: r.text(), refused: get_refused(r) },
        13 => {
            let (tenant, client_id) = (r.text(), r.text());
            Reply::ClientOpened { tenant, client_id, life: get_life(r), state: r.bytes() }
        }
        15 => Reply::ClientLarge { bytes: r.u32() },
        20 => presence::get_presence_reply(r),
        21 => Reply::Work(work::get_work_reply(r)),
        _ => Reply::Refused(get_refused(r)),
    }
}
