//! A client's home: the shard that owns its hidden session. It alone says which generation is the newest.
//!
//! ```text
//!   Open ─► claim = newest generation? ─ no ─► refused, stale_token
//!             │ yes
//!             ├─ somebody has the life ─► FENCE to that connection ─► its last words ─┐
//!             ▼                                                                       │
//!   newest event of the hidden session, from the hot tail or from disk ◄──────────────┘
//!             ▼
//!   append `opened` (generation = its offset + 1) ─► committed ─► ClientOpened to who asked
//! ```
//! **Invariant.** Every grant is followed by exactly one KEEP that says *gone*: at the end of the connection, when it is fenced, or
//! when it was gone before it heard of its grant. So a life is handed over whole, and an open that waits is never forgotten.
//!
//! What stands in memory are generations and who has them; states are read from the log, where the newest is at hand.

use super::state::ClientState;
use super::{KEPT, OPENED};
use crate::behind::ReadFor;
use crate::commands::{Call, Outcome};
use crate::delivery::ByPartition;
use crate::effect::Reply;
use crate::ids::{ConnectionId, Epoch, LifeId, Now, PartitionId, ShardId};
use crate::mailbox::codec::Writer;
use crate::mailbox::message::{put_connection, request};
use crate::refusal::{Refusal, Refused};
use crate::sessions::waiters::{Answer, Waiter};
use crate::sessions::{Asker, Origin};
use crate::shard::{Opened, Shard};
use std::collections::VecDeque;
use storage::catalog::PartitionSlot;
use storage::log::{Read, ReadFault, ReadTicket};
use storage::record::{DataKind, EventBody, HEAD_BYTES, NO_OFFSET, RecordView};

/// Clients that are away and whose generation one shard remembers without reading it: 4 MiB.
pub const AWAY_MAX: usize = 65_536;

/// An open waits no longer for a read buffer or for room in the log, and is then told to come back. Microseconds, milliseconds.
const WAIT_US_MAX: u64 = 5_000_000;
const RETRY_MS: u32 = 5000;

/// Room for the record of a state of so many bytes.
const fn record_bytes(state: usize) -> usize {
    HEAD_BYTES + state + size_of::<EventBody<'static>>() + 1024
}

/// Where a connection is.
type Place = (ShardId, ConnectionId);

/// What an open claims.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Claimed {
    /// `None`: a new one.
    pub life: Option<LifeId>,
    /// How often it was claimed before, as the client counts.
    pub attempt: u64,
    /// When the claiming connection was made.
    pub since_us: u64,
    /// Bytes of state that its shard has kept room for.
    pub room: u32,
}

/// One client that lives here.
struct Home {
    /// Of the hidden session.
    epoch: Epoch,
    generation: u64,
    claimed: u64,
    attempt: u64,
    /// When the connection that had it last was made.
    since_us: u64,
    /// Of the state that was appended last.
    state_hash: u64,
    holder: Holder,
}

/// Who has a client's life.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holder {
    /// Nobody; when it went away, counted.
    Nobody { left: u64 },
    /// This connection.
    Has(Place),
    /// This connection, which was told to let go.
    Told(Place),
}

impl Holder {
    fn place(self) -> Option<Place> {
        match self {
            Holder::Nobody { .. } => None,
            Holder::Has(place) | Holder::Told(place) => Some(place),
        }
    }
}

/// As many as there are clients.
const _: () = assert!(size_of::<Home>() <= 64);

/// Bytes of a client in [`Homes`]: its entry, twice while the table grows, and its place among those who left.
pub const HOME_BYTES: usize = 2 * (size_of::<(PartitionId, Home)>() + 1) + 2 * size_of::<(u64, PartitionId)>();

/// An open that waits: for the newest state from disk, for the last words of who has the life, or for room.
pub(crate) struct Opening {
    asker: Asker,
    partition: PartitionId,
    session: Box<str>,
    claim: Claimed,
    asked_us: u64,
    /// What was read from disk for it, and the tail that it was the newest of.
    found: Option<Result<ClientState, Refused>>,
    found_tail: u64,
}

/// All clients whose home is this shard, as far as they are in memory.
#[derive(Default)]
pub(crate) struct Homes {
    by_partition: ByPartition<Home>,
    /// Opens that wait for who has their client, for each client its own: a storm of take-overs must not look through all of them
    /// for each. As many as connections have an open `resume`, at most.
    waiting: ByPartition<VecDeque<Box<Opening>>>,
    /// Clients that left, oldest first; some are back.
    away: VecDeque<(u64, PartitionId)>,
    departures: u64,
    /// Connections that are to let go and have not been told.
    fences: VecDeque<Place>,
    /// Opens that go on, or wait for a read buffer or for room in the log. Of other shards as many as they may ask at once.
    ready: VecDeque<Box<Opening>>,
}

impl Homes {
    /// May this open, for which there is no buffer or no room, wait here? One from a peer always: in its lane it would hold up
    /// the publishes behind it, and when thousands come back after so long that their states are cold, everybody would wait.
    fn takes(&self, opening: &Opening, local_max: usize) -> bool {
        matches!(opening.asker.origin, Origin::Remote(..)) || self.ready.len() < local_max
    }

    /// Does something wait for room?
    pub fn wait(&self) -> bool {
        !self.ready.is_empty() || !self.fences.is_empty()
    }

    /// Who had the client has gone: opens that wait for it go on.
    fn depart(&mut self, partition: PartitionId) {
        let Some(home) = self.by_partition.get_mut(&partition) else { return };
        self.departures += 1;
        home.holder = Holder::Nobody { left: self.departures };
        self.away.push_back((self.departures, partition));
        self.ready.extend(self.waiting.remove(&partition).into_iter().flatten());
        while self.away.len() > AWAY_MAX {
            let Some((left, oldest)) = self.away.pop_front() else { break };
            if self.by_partition.get(&oldest).is_some_and(|home| home.holder == Holder::Nobody { left }) {
                self.by_partition.remove(&oldest);
            }
        }
    }
}

/// Is this claim one of this epoch, and that of the newest generation, or a later attempt of the claim that made it? An earlier one comes from a connection
/// that its client has left, however late its bytes are read.
fn admits(claim: Claimed, epoch: Epoch, generation: u64, claimed: u64, attempt: u64) -> bool {
    match claim.life {
        None => true,
        Some(wanted) if !wanted.is_of(epoch) => false,
        Some(wanted) if wanted.generation == generation => true,
        Some(wanted) => wanted.generation == claimed && claim.attempt > attempt,
    }
}

fn stale() -> Refused {
    Refused::field(Refusal::StaleToken, "token")
}

fn place_of(asker: &Asker, own: ShardId) -> Place {
    match asker.origin {
        Origin::Local(connection) => (own, connection),
        Origin::Remote(from, connection, _) => (from, connection),
    }
}

/// `Open`, on the owner's shard.
pub(crate) fn open(shard: &mut Shard, call: Call<'_>, claim: Claimed) -> Outcome {
    let Call { asker, partition, session, now, .. } = call;
    let opening = Opening {
        asker: asker.clone(),
        partition,
        session: session.into(),
        claim,
        asked_us: now.mono_us,
        found: None,
        found_tail: 0,
    };
    match step(shard, Box::new(opening), now) {
        Ok(()) => Outcome::Done,
        Err((opening, Outcome::Later)) if shard.homes.takes(&opening, shard.config.limits.mailbox_slots) => {
            shard.homes.ready.push_back(opening);
            Outcome::Done
        }
        Err((_, outcome)) => outcome,
    }
}

/// Takes an open as far as it goes. Handed back: it has to be tried again, and how.
fn step(shard: &mut Shard, mut opening: Box<Opening>, now: Now) -> Result<(), (Box<Opening>, Outcome)> {
    let (partition, claim) = (opening.partition, opening.claim);
    if shard.log.no_space() {
        shard.refuse(&opening.asker, Refused::later(Refusal::NoSpace, 1000));
        return Ok(());
    }
    let own = place_of(&opening.asker, shard.config.shard);
    if let Some(home) = shard.homes.by_partition.get_mut(&partition) {
        if !admits(claim, home.epoch, home.generation, home.claimed, home.attempt) {
            shard.refuse(&opening.asker, stale());
            return Ok(());
        }
        // However late its bytes are read: a connection that its client has left for a newer one takes nothing from it.
        if claim.since_us < home.since_us {
            shard.refuse(&opening.asker, Refused::field(Refusal::Fenced, ""));
            return Ok(());
        }
        if let Some(holder) = home.holder.place().filter(|holder| *holder != own) {
            if std::mem::replace(&mut home.holder, Holder::Told(holder)) != Holder::Told(holder) {
                shard.homes.fences.push_back(holder);
            }
            shard.homes.waiting.entry(partition).or_default().push_back(opening);
            return Ok(());
        }
    }
    let slot = match shard.open(partition, &opening.asker.tenant, &opening.session, None) {
        Opened::Ready(slot) => slot,
        Opened::Park => return Err((opening, Outcome::Park)),
        Opened::Refused(refused) => {
            shard.refuse(&opening.asker, refused);
            return Ok(());
        }
        Opened::Absent if claim.life.is_some() => {
            shard.refuse(&opening.asker, stale());
            return Ok(());
        }
        Opened::Absent => {
            let epoch = shard.new_epoch();
            match shard.open(partition, &opening.asker.tenant, &opening.session, Some(epoch)) {
                Opened::Ready(slot) => slot,
                Opened::Refused(refused) => {
                    shard.refuse(&opening.asker, refused);
                    return Ok(());
                }
                Opened::Park | Opened::Absent => return Err((opening, Outcome::Park)),
            }
        }
    };
    let (epoch, tail) = (shard.log.partition(slot).epoch(), shard.log.partition(slot).tail());
    let found = opening.found.take().filter(|_| opening.found_tail == tail);
    let known = if let Some(found) = found {
        found
    } else if tail == 0 {
        Ok(ClientState::default())
    } else {
        let read = shard.log.read_lone(slot, tail - 1);
        let is_ready = matches!(read, Read::Ready(_));
        match read {
            Read::Hot(record) => newest(record).ok_or(stale()),
            Read::Cold(ticket) | Read::Ready(ticket) => {
                opening.found_tail = tail;
                shard.reads.insert(ticket, ReadFor::Home(opening));
                if is_ready {
                    shard.ready_reads.push_back(ticket);
                }
                return Ok(());
            }
            // Retention took it: the client was away for longer than anything is kept.
            Read::Gap { .. } => Err(stale()),
            Read::End | Read::Busy => return Err((opening, Outcome::Later)),
            Read::Fault(_) => Err(Refused::later(Refusal::Unavailable, 1000)),
        }
    };
    let kept = match known {
        // A new life begins with nothing, whatever there was; a resumed one with what was kept.
        _ if claim.life.is_none() => ClientState::default(),
        Ok(known) if admits(claim, epoch, known.generation, known.claimed, known.attempt) => known,
        Ok(_) => {
            shard.refuse(&opening.asker, stale());
            return Ok(());
        }
        Err(refused) => {
            shard.refuse(&opening.asker, refused);
            return Ok(());
        }
    };
    let mut state = Vec::new();
    let generation = tail + 1;
    let (claimed, attempt) = (claim.life.map_or(0, |life| life.generation), claim.attempt);
    ClientState { generation, claimed, attempt, ..kept.clone() }.put(&mut state);
    if matches!(opening.asker.origin, Origin::Remote(..)) && state.len() > claim.room as usize {
        let large = Reply::ClientLarge { bytes: state.len() as u32 };
        shard.answer(opening.asker.origin, opening.asker.id, &large);
        return Ok(());
    }
    if !shard.log.room(record_bytes(state.len())) {
        opening.found = Some(Ok(kept));
        opening.found_tail = tail;
        return Err((opening, Outcome::Later));
    }
    grant(shard, &opening, slot, generation, &state, now);
    Ok(())
}

/// The state in the last event of a record; `None` where it is unreadable or of another version.
fn newest(record: RecordView<'_>) -> Option<ClientState> {
    record.events().last().and_then(|event| ClientState::get(event.data()))
}

/// Begins a new generation. Room was proved.
fn grant(shard: &mut Shard, opening: &Opening, slot: PartitionSlot, generation: u64, state: &[u8], now: Now) {
    let Opening { asker, partition, claim, .. } = opening;
    let log_seq = append(shard, slot, asker, OPENED, state, now);
    shard.waiters.push(Waiter { log_seq, origin: asker.origin, id: asker.id, answer: Answer::Opened });
    let home = Home {
        epoch: shard.log.partition(slot).epoch(),
        generation,
        claimed: claim.life.map_or(0, |life| life.generation),
        attempt: claim.attempt,
        since_us: claim.since_us,
        state_hash: hash(state),
        holder: Holder::Has(place_of(asker, shard.config.shard)),
    };
    shard.homes.by_partition.insert(*partition, home);
}

/// Tells states apart.
pub(crate) fn hash(state: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(state)
}

/// Appends one event to a hidden session.
fn append(shard: &mut Shard, slot: PartitionSlot, asker: &Asker, topic: &str, data: &[u8], now: Now) -> u64 {
    let partition = shard.log.partition(slot);
    let (id, epoch, offset) = (partition.id(), partition.epoch(), partition.tail());
    // Offsets are never used twice in one epoch, so no two events have one key.
    let mut digits = itoa::Buffer::new();
    let message_id = digits.format(offset);
    let key = shard.log.dedupe_key(id, epoch, &asker.client_id, message_id);
    let event = EventBody {
        topic,
        client_id: &asker.client_id,
        message_id,
        traceparent: "",
        data,
        data_kind: DataKind::Bytes as u8,
        prev_offset: NO_OFFSET,
        expires_ms: 0,
        producer_epoch: 0,
        producer_seq: NO_OFFSET,
        dedupe_low: key as u64,
        dedupe_high: (key >> 64) as u64,
        body_hash: 0,
    };
    shard.log.append(slot, &[event], &[], now.wall_ms).log_seq
}

/// What a client's shard wants kept. `gone`: its life has ended there. `false`: no room, say it again.
pub(crate) fn keep(shard: &mut Shard, asker: &Asker, session: &str, gone: bool, state: &[u8], now: Now) -> bool {
    let partition = shard.log.partition_id(&asker.tenant, session);
    let place = place_of(asker, shard.config.shard);
    let Some(home) = shard.homes.by_partition.get(&partition).filter(|home| home.holder.place() == Some(place)) else {
        return true;
    };
    let said = ClientState::get(state).filter(|said| said.generation == home.generation);
    // What was kept before is older and still right: a full disk must not hold up the mail of others, nor a log whose records are
    // too small for it (`commit_bytes_max` below 64 KiB, and patterns over a thousand sessions).
    if let Some(said) = said.filter(|_| hash(state) != home.state_hash)
        && !shard.log.no_space()
        && record_bytes(state.len()) <= shard.log.record_bytes_max()
    {
        if !shard.log.room(record_bytes(state.len())) {
            return false;
        }
        match shard.open(partition, &asker.tenant, session, None) {
            Opened::Ready(slot) => {
                append(shard, slot, asker, KEPT, state, now);
                if let Some(home) = shard.homes.by_partition.get_mut(&partition) {
                    (home.attempt, home.state_hash) = (said.attempt, hash(state));
                }
            }
            // Another partition makes room as soon as its events are committed.
            Opened::Park => return false,
            Opened::Refused(refused) if refused.retry_after_ms.is_some() => return false,
            Opened::Absent | Opened::Refused(_) => {}
        }
    }
    if gone {
        shard.homes.depart(partition);
    }
    true
}

impl Shard {
    /// A state has come from disk, or cannot.
    pub(crate) fn home_read(&mut self, ticket: ReadTicket, mut opening: Box<Opening>) {
        opening.found = match self.log.read_records(ticket) {
            Ok(records) => Some(records.last().and_then(newest).ok_or(stale())),
            // The segment went, and what it held stands elsewhere, or a gap says that it does not: look again.
            Err(ReadFault::Gone) => None,
            Err(_) => Some(Err(Refused::later(Refusal::Unavailable, 1000))),
        };
        self.log.release(ticket);
        // Before those that wait for a buffer: they wait for what this one needs no more.
        self.homes.ready.push_front(opening);
    }

    /// Goes on with opens, and tells connections to let go.
    pub(crate) fn serve_homes(&mut self, now: Now) -> usize {
        let mut done = 0;
        for _ in 0..self.homes.ready.len() {
            if !self.has_effect_room(1) {
                break;
            }
            let Some(opening) = self.homes.ready.pop_front() else { break };
            match step(self, opening, now) {
                Ok(()) => done += 1,
                Err((opening, Outcome::Later)) => {
                    if now.mono_us.saturating_sub(opening.asked_us) > WAIT_US_MAX {
                        self.refuse(&opening.asker, Refused::later(Refusal::LogBehind, RETRY_MS));
                        done += 1;
                        continue;
                    }
                    // Nor is there for those behind it.
                    self.homes.ready.push_front(opening);
                    break;
                }
                Err((opening, _)) => self.homes.ready.push_back(opening),
            }
        }
        while let Some((shard, connection)) = self.homes.fences.front().copied() {
            let told = if shard == self.config.shard {
                self.fence(connection)
            } else {
                self.scratch.clear();
                let mut w = Writer(&mut self.scratch);
                w.u8(request::FENCE);
                put_connection(&mut w, connection);
                let told = self.mail.tell(shard, &self.scratch);
                if told {
                    self.wake(shard);
                }
                told
            };
            if !told {
                break;
            }
            self.homes.fences.pop_front();
            done += 1;
        }
        done
    }
}
