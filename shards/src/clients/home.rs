//! A client's home: the shard that owns its hidden session. It alone says which generation is the newest.
//!
//! ```text
//!   Open ─► known here? ─ no ─► newest event of the hidden session, from the hot tail or from disk
//!             │ yes              └─► what it says
//!             ▼
//!   claimed = generation ─► append `opened` (generation = its offset + 1) ─► committed ─► ClientOpened to who asked
//!   else: refused, stale_token                                          └► FENCE to the connection that had it
//! ```
//! What stands here is a cache of the log, bounded by [`HOMES_BYTES_MAX`]: states of clients that are away go first.

use super::state::{CLIENT_STATE_BYTES_MAX, ClientState};
use super::{KEPT, OPENED};
use crate::behind::ReadFor;
use crate::commands::{Call, Outcome};
use crate::delivery::ByPartition;
use crate::ids::{ConnectionId, Now, PartitionId, ShardId};
use crate::mailbox::codec::Writer;
use crate::mailbox::message::{put_connection, request};
use crate::refusal::{Refusal, Refused};
use crate::sessions::Asker;
use crate::sessions::waiters::{Answer, Waiter};
use crate::shard::{Opened, Shard};
use std::collections::VecDeque;
use storage::catalog::PartitionSlot;
use storage::log::{Read, ReadTicket};
use storage::record::{DataKind, EventBody, HEAD_BYTES, NO_OFFSET, RecordView};

/// Bytes of states kept in memory by one shard.
pub(crate) const HOMES_BYTES_MAX: usize = 16 << 20;

/// Bytes of an entry beside its state: the entry, its place in the table, its place in the line.
const HOME_BYTES: usize = 128;

/// Room for the record of a state.
const RECORD_BYTES_MAX: usize = HEAD_BYTES + CLIENT_STATE_BYTES_MAX + size_of::<EventBody<'static>>() + 1024;

/// One client that lives here.
struct Home {
    generation: u64,
    /// Who has it now.
    at: Option<(ShardId, ConnectionId)>,
    /// Its newest state, as bytes.
    state: Box<[u8]>,
}

/// All clients whose home is this shard, as far as they are in memory.
#[derive(Default)]
pub(crate) struct Homes {
    by_partition: ByPartition<Home>,
    bytes: usize,
    /// Clients that left, oldest first; some are back.
    away: VecDeque<PartitionId>,
    /// Connections that were taken over and have not been told.
    pub fences: VecDeque<(ShardId, ConnectionId)>,
    /// Opens whose state has come from disk and which wait for room in the log.
    ready: VecDeque<(Box<HomeRead>, Result<ClientState, Refused>)>,
}

/// An open that waits for the newest state of its client.
pub(crate) struct HomeRead {
    asker: Asker,
    partition: PartitionId,
    session: Box<str>,
    claimed: Option<u64>,
}

impl Homes {
    /// Does an open wait for room, or a fence?
    pub fn wait(&self) -> bool {
        !self.ready.is_empty() || !self.fences.is_empty()
    }

    fn put(&mut self, partition: PartitionId, home: Home) {
        self.bytes += HOME_BYTES + home.state.len();
        if let Some(old) = self.by_partition.insert(partition, home) {
            self.bytes -= HOME_BYTES + old.state.len();
        }
        while self.bytes > HOMES_BYTES_MAX {
            let Some(oldest) = self.away.pop_front() else { break };
            if self.by_partition.get(&oldest).is_some_and(|home| home.at.is_none())
                && let Some(home) = self.by_partition.remove(&oldest)
            {
                self.bytes -= HOME_BYTES + home.state.len();
            }
        }
    }
}

/// `Open`, on the owner's shard.
pub(crate) fn open(shard: &mut Shard, call: Call<'_>, claimed: Option<u64>) -> Outcome {
    let Call { asker, partition, session, now, .. } = call;
    if let Some(outcome) = no_room(shard, asker) {
        return outcome;
    }
    let stale = Refused::field(Refusal::StaleToken, "token");
    let slot = match shard.open(partition, &asker.tenant, session, None) {
        Opened::Ready(slot) => slot,
        Opened::Park => return Outcome::Park,
        Opened::Refused(refused) => return shard.refuse(asker, refused),
        Opened::Absent if claimed.is_some() => return shard.refuse(asker, stale),
        Opened::Absent => {
            let epoch = shard.new_epoch();
            match shard.open(partition, &asker.tenant, session, Some(epoch)) {
                Opened::Ready(slot) => slot,
                Opened::Refused(refused) => return shard.refuse(asker, refused),
                Opened::Park | Opened::Absent => return Outcome::Park,
            }
        }
    };
    let tail = shard.log.partition(slot).tail();
    let known = if let Some(home) = shard.homes.by_partition.get(&partition) {
        ClientState::get(&home.state).map(|state| ClientState { generation: home.generation, ..state })
    } else if tail == 0 {
        Some(ClientState::default())
    } else {
        let read = shard.log.read(slot, tail - 1);
        let is_ready = matches!(read, Read::Ready(_));
        match read {
            Read::Hot(record) => newest(record),
            Read::Cold(ticket) | Read::Ready(ticket) => {
                let read = HomeRead { asker: asker.clone(), partition, session: session.into(), claimed };
                shard.reads.insert(ticket, ReadFor::Home(Box::new(read)));
                if is_ready {
                    shard.ready_reads.push_back(ticket);
                }
                return Outcome::Done;
            }
            // Retention took it: the client was away for longer than anything is kept.
            Read::Gap { .. } => None,
            Read::End | Read::Busy => return Outcome::Later,
            Read::Fault(_) => return shard.refuse(asker, Refused::later(Refusal::Unavailable, 1000)),
        }
    };
    grant(shard, asker, slot, partition, claimed, known, now);
    Outcome::Done
}

/// Refuses, or puts off, what would find no room in the log.
fn no_room(shard: &mut Shard, asker: &Asker) -> Option<Outcome> {
    if shard.log.room(RECORD_BYTES_MAX) {
        return None;
    }
    if shard.log.no_space() {
        return Some(shard.refuse(asker, Refused::later(Refusal::NoSpace, 1000)));
    }
    Some(Outcome::Later)
}

/// The state in the last event of a record; `None` where it is unreadable or of another version.
fn newest(record: RecordView<'_>) -> Option<ClientState> {
    record.events().last().and_then(|event| ClientState::get(event.data()))
}

/// Begins a new generation, or refuses. Room was proved.
fn grant(
    shard: &mut Shard,
    asker: &Asker,
    slot: PartitionSlot,
    partition: PartitionId,
    claimed: Option<u64>,
    known: Option<ClientState>,
    now: Now,
) {
    if claimed.is_some() && known.as_ref().map(|state| state.generation) != claimed {
        shard.refuse(asker, Refused::field(Refusal::StaleToken, "token"));
        return;
    }
    // A new life begins with nothing; a resumed one with what was kept.
    let kept = if claimed.is_some() { known.unwrap_or_default() } else { ClientState::default() };
    let generation = shard.log.partition(slot).tail() + 1;
    let mut state = Vec::new();
    ClientState { generation, ..kept }.put(&mut state);
    let log_seq = append(shard, slot, asker, OPENED, &state, now);
    shard.waiters.push(Waiter { log_seq, origin: asker.origin, id: asker.id, answer: Answer::Opened });
    let at = match asker.origin {
        crate::sessions::Origin::Local(connection) => (shard.config.shard, connection),
        crate::sessions::Origin::Remote(from, connection, _) => (from, connection),
    };
    let before = shard.homes.by_partition.get(&partition).and_then(|home| home.at);
    if let Some(before) = before.filter(|before| *before != at) {
        shard.homes.fences.push_back(before);
    }
    shard.homes.put(partition, Home { generation, at: Some(at), state: state.into() });
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

/// What a client's shard wants kept. `gone`: its connection has ended. `false`: no room, say it again.
pub(crate) fn keep(
    shard: &mut Shard,
    asker: &Asker,
    session: &str,
    connection: (ShardId, ConnectionId),
    gone: bool,
    state: &[u8],
    now: Now,
) -> bool {
    let partition = shard.log.partition_id(&asker.tenant, session);
    let Some(home) = shard.homes.by_partition.get(&partition) else { return true };
    let current = ClientState::get(state).is_some_and(|state| state.generation == home.generation);
    // Taken over meanwhile: what the old connection has to say is of no interest.
    if !current || home.at != Some(connection) {
        return true;
    }
    if *home.state != *state {
        if !shard.log.room(RECORD_BYTES_MAX) {
            // A full disk must not hold up the mail of others; what was kept before is older and still right.
            return shard.log.no_space();
        }
        match shard.open(partition, &asker.tenant, session, None) {
            Opened::Ready(slot) => {
                append(shard, slot, asker, KEPT, state, now);
            }
            Opened::Park => return false,
            Opened::Absent | Opened::Refused(_) => return true,
        }
    }
    let generation = shard.homes.by_partition.get(&partition).map_or(0, |home| home.generation);
    let at = if gone { None } else { Some(connection) };
    if gone {
        shard.homes.away.push_back(partition);
    }
    shard.homes.put(partition, Home { generation, at, state: state.into() });
    true
}

impl Shard {
    /// A state has come from disk, or cannot.
    pub(crate) fn home_read(&mut self, ticket: ReadTicket, read: Box<HomeRead>) {
        let found = match self.log.read_records(ticket) {
            Ok(records) => {
                let newest = records.last().and_then(newest);
                newest.ok_or(Refused::field(Refusal::StaleToken, "token"))
            }
            Err(storage::log::ReadFault::Gone) => Err(Refused::field(Refusal::StaleToken, "token")),
            Err(_) => Err(Refused::later(Refusal::Unavailable, 1000)),
        };
        self.log.release(ticket);
        self.homes.ready.push_back((read, found));
    }

    /// Goes on with opens that were read, and tells connections that were taken over.
    pub(crate) fn serve_homes(&mut self, now: Now) -> usize {
        let mut done = 0;
        while let Some((read, found)) = self.homes.ready.pop_front() {
            if !self.has_effect_room(1) || (no_room_for(self)) {
                self.homes.ready.push_front((read, found));
                break;
            }
            done += 1;
            self.go_on(&read, found, now);
        }
        while let Some((shard, connection)) = self.homes.fences.front().copied() {
            if shard == self.config.shard {
                self.fence(connection);
            } else {
                self.scratch.clear();
                let mut w = Writer(&mut self.scratch);
                w.u8(request::FENCE);
                put_connection(&mut w, connection);
                if !self.mail.tell(shard, &self.scratch) {
                    break;
                }
                self.wake(shard);
            }
            self.homes.fences.pop_front();
            done += 1;
        }
        done
    }

    fn go_on(&mut self, read: &HomeRead, found: Result<ClientState, Refused>, now: Now) {
        let HomeRead { asker, partition, session, claimed } = read;
        if no_room(self, asker).is_some() {
            // Full, and refused: for room it would not have been handed on.
            return;
        }
        if self.homes.by_partition.contains_key(partition) {
            // Somebody else opened it meanwhile: that is newer than what was read.
            let known = crate::sessions::parked::Known::default();
            let call = Call { asker, partition: *partition, session, known: &known, now };
            if open(self, call, *claimed) != Outcome::Done {
                self.refuse(asker, Refused::later(Refusal::Unavailable, 100));
            }
            return;
        }
        let known = match found {
            Ok(state) => Some(state),
            // Nothing to claim, nothing lost: a new life begins all the same.
            Err(_) if claimed.is_none() => None,
            Err(refused) => {
                self.refuse(asker, refused);
                return;
            }
        };
        match self.open(*partition, &asker.tenant, session, None) {
            Opened::Ready(slot) => grant(self, asker, slot, *partition, *claimed, known, now),
            Opened::Refused(refused) => {
                self.refuse(asker, refused);
            }
            Opened::Park | Opened::Absent => {
                self.refuse(asker, Refused::later(Refusal::Unavailable, 100));
            }
        }
    }
}

fn no_room_for(shard: &Shard) -> bool {
    !shard.log.room(RECORD_BYTES_MAX) && !shard.log.no_space()
}
