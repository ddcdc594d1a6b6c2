//! What all commands share: answers and refusals, to a client of this shard or of another, and the opening of a session.

use crate::clients::life::Opened as Life;
use crate::commands::Outcome;
use crate::effect::Reply;
use crate::entries::watch::of_id;
use crate::ids::{CommandId, ConnectionId, Epoch, PartitionId, ShardId};
use crate::mailbox::codec::Writer;
use crate::mailbox::message::{put_connection, put_id, put_reply, reply};
use crate::refusal::{Refusal, Refused};
use crate::sessions::{Asker, Origin};
use crate::shard::{Opened, Shard};
use storage::log::Open;

impl Shard {
    /// Room for `count` effects beside one for every command that will be answered by a commit?
    pub(crate) fn has_effect_room(&self, count: usize) -> bool {
        self.effects.has_room(count + self.waiters.len())
    }

    /// A command of a local client was taken and will be answered.
    pub(crate) fn begin(&mut self, connection: ConnectionId) {
        if let Some(client) = self.readers.clients.get_mut(connection) {
            client.in_flight += 1;
        }
    }

    pub(crate) fn end(&mut self, connection: ConnectionId) {
        if let Some(client) = self.readers.clients.get_mut(connection) {
            client.in_flight = client.in_flight.saturating_sub(1);
        }
    }

    /// Answers a command that was begun.
    pub(crate) fn answer(&mut self, origin: Origin, id: CommandId, reply: &Reply<'_>) {
        if let Reply::Refused(_) = reply {
            self.counters.refusals += 1;
        }
        match origin {
            Origin::Local(connection) => {
                if let Reply::ClientOpened { tenant, client_id, life, state } = *reply {
                    return self.lives.open(connection, id, &Life { tenant, client_id, life, state });
                }
                if let Reply::ClientLarge { bytes } = *reply {
                    self.end(connection);
                    return self.lives.ask_again(connection, bytes);
                }
                if let (Reply::Refused(_), Some(watch)) = (reply, of_id(id)) {
                    self.end(connection);
                    return self.entry_watch_refused(watch);
                }
                if let Reply::Presence { session, reply } = reply {
                    self.presence_answered(connection, session, reply);
                }
                if let Some(client) = self.readers.clients.get_mut(connection) {
                    // A refused `resume` may be tried again.
                    if matches!(reply, Reply::Refused(_)) && client.opening.as_ref().is_some_and(|own| own.id == id) {
                        client.opening = None;
                    }
                    self.end(connection);
                    self.effects.reply(connection, id, reply);
                }
            }
            Origin::Remote(shard, connection, reply_bytes) => {
                write_command_reply(&mut self.reply_scratch, connection, id, reply_bytes, |w| put_reply(w, reply));
                self.mail.reply(shard, &self.reply_scratch);
                self.wake(shard);
            }
        }
    }

    /// Answers a begun command with a no.
    pub(crate) fn refuse(&mut self, asker: &Asker, refused: Refused) -> Outcome {
        self.answer(asker.origin, asker.id, &Reply::Refused(refused));
        Outcome::Done
    }

    /// Refuses a command that was never begun.
    pub(crate) fn refuse_local(&mut self, connection: ConnectionId, id: CommandId, refused: Refused) {
        self.counters.refusals += 1;
        self.effects.reply(connection, id, &Reply::Refused(refused));
    }

    /// After mail was sent to a peer: wake it if it sleeps.
    pub(crate) fn wake(&mut self, peer: ShardId) {
        if self.mail.must_wake(peer) {
            self.effects.wake(peer);
        }
    }

    /// Opens a partition, making it under `create` if it does not exist.
    pub(crate) fn open(&mut self, id: PartitionId, tenant: &str, session: &str, create: Option<Epoch>) -> Opened {
        match self.log.open(id, tenant, session, create) {
            Open::Ready(slot) => Opened::Ready(slot),
            Open::Absent => Opened::Absent,
            Open::Loading => Opened::Park,
            Open::Full => Opened::Refused(Refused::later(Refusal::PartitionsFull, 1000)),
            Open::Collision => Opened::Refused(Refused::field(Refusal::BadName, "session")),
        }
    }

    /// A new session's epoch: random and never 0 (SplitMix64, Steele et al. 2014, from the seed).
    pub(crate) fn new_epoch(&mut self) -> Epoch {
        loop {
            self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.random;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            if z != 0 {
                return z;
            }
        }
    }

    pub(crate) fn next_pattern_generation(&mut self) -> u32 {
        self.pattern_generation = self.pattern_generation.wrapping_add(1);
        self.pattern_generation
    }
}

/// Writes the reply to a forwarded command into `scratch`.
pub(crate) fn write_command_reply(
    scratch: &mut Vec<u8>,
    connection: ConnectionId,
    id: CommandId,
    reply_bytes: u32,
    put: impl FnOnce(&mut Writer<'_>),
) {
    scratch.clear();
    let mut w = Writer(scratch);
    w.u8(reply::COMMAND).u32(reply_bytes);
    put_connection(&mut w, connection);
    put_id(&mut w, id);
    put(&mut w);
}
