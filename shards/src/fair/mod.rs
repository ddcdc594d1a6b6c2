//! Tenants on one core: what each is given of it, and what it may use at all.
//!
//! ```text
//!   command ─► quota: its tenant may (lent part) ─► line: its turn ─► carried out, charged
//!                │ over_quota, after a computed time   │ Later: the connection stands in line, its input stays with it
//!                ▼                                     ▼
//!              refused                    Shard::next_in_line ─► the edge hands the input in again
//!
//!   committed event ─► live subscriber: its tenant has egress left ─► pushed, charged
//!                        │ no: a cursor that is behind, served in its turn (`behind`)
//! ```
//! **Invariant.** [`line`]: service of two tenants that both always want more differs by a quantum and an item, over weight.
//! **Failure.** A tenant over its share has its own connections' input held, TCP slows their senders, and after
//! `held_timeout_ms` a command is refused (`over_share`). Nobody else's input is behind it.
//! **Memory.** A place for each tenant with a client here, one for each session with input in line, one for each such connection.

pub(crate) mod line;
mod tenants;
#[cfg(test)]
mod tests;
mod wants;

pub(crate) use tenants::{Place, Tenants};

use crate::command::{Command, NewEvent};
use crate::delivery::Reader;
use crate::ids::{CommandId, ConnectionId, Now};
use crate::input::Handled;
use crate::limits::KINDS;
use crate::quota::Verdict;
use crate::refusal::Refused;
use crate::shard::Shard;
use line::{Cost, Line, Quanta};
use wants::{Waiting, Wants};

/// What a command costs besides its bytes: it takes as long as so many bytes take to be logged.
const COMMAND_COST: Cost = 512;
/// What a send costs besides its bytes.
const SEND_COST: Cost = 1024;

/// Room that the log must have for it not to be what a command waits for, bytes.
const LOG_ROOM_BYTES: usize = 64 << 10;

/// A quantum is about half a millisecond of a core, a turn at most a few of them.
const INPUT: Quanta = Quanta {
    tenant_cost: 16 << 10,
    session_cost: 4 << 10,
    fresh_cost_per_turn: 128 << 10,
    line_cost_per_turn: 64 << 10,
};

const OUTPUT: Quanta = Quanta {
    tenant_cost: 256 << 10,
    session_cost: 64 << 10,
    fresh_cost_per_turn: 4 << 20,
    line_cost_per_turn: 1 << 20,
};

/// What one tenant has had of a shard, for metrics and tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Share {
    /// Input handled while it was not alone, in units of about a byte's cost.
    pub served: u64,
    /// Times that its input was passed by for want of room of its own.
    pub passed: u64,
    /// Units of its quotas that were taken here, by kind.
    pub taken: [u64; KINDS],
    /// Of these, in use.
    pub used: [u64; KINDS],
}

/// Whose input is handled next.
pub(crate) struct Fair {
    pub tenants: Tenants,
    pub input: Line<Waiting>,
    /// It was given out, and what it hands in is served before what is fresh.
    served: Option<ConnectionId>,
}

impl Fair {
    pub fn new() -> Self {
        Self { tenants: Tenants::default(), input: Line::new(INPUT), served: None }
    }

    #[inline]
    fn has_turn(&mut self, slot: u32, served: bool) -> bool {
        if served { self.input.may_go_on() } else { self.input.may(slot) }
    }

    #[inline]
    fn charge(&mut self, slot: u32, cost: Cost, served: bool) {
        if served { self.input.charge_served(cost) } else { self.input.charge(slot, cost) }
    }
}

/// Cursors that are behind and wait for their turn, each at most once.
pub(crate) struct Queued {
    /// Since the last look; their clients' places are looked up then.
    pub incoming: Vec<Reader>,
    pub line: Line<Reader>,
}

impl Queued {
    pub fn new() -> Self {
        Self { incoming: Vec::new(), line: Line::new(OUTPUT) }
    }

    pub fn push_back(&mut self, reader: Reader) {
        self.incoming.push(reader);
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn len(&self) -> usize {
        self.incoming.len() + self.line.len()
    }
}

/// What a command costs.
fn cost(command: &Command<'_>) -> Cost {
    let of = |event: &NewEvent<'_>| COMMAND_COST + event.data.len() as Cost;
    match *command {
        Command::Publish { ref event, .. } => of(event),
        Command::Commit { events, markers, .. } => {
            COMMAND_COST + events.iter().map(of).sum::<Cost>() + markers.len() as Cost * (COMMAND_COST / 4)
        }
        Command::StreamAppend { delta, .. } => COMMAND_COST + delta.delta.len() as Cost,
        // Work for this core and maybe another, a disk read among it.
        Command::Subscribe { .. } | Command::SubscribePatterns { .. } | Command::History { .. } => 4 * COMMAND_COST,
        _ => COMMAND_COST,
    }
}

/// Does it need room in the log?
fn is_logged(command: &Command<'_>) -> bool {
    matches!(
        command,
        Command::Publish { .. }
            | Command::Commit { .. }
            | Command::Mark { .. }
            | Command::StreamAppend { .. }
            | Command::StreamClose { .. }
    )
}

impl Shard {
    /// A client has come: it has a place among its tenant's.
    pub(crate) fn enter(&mut self, connection: ConnectionId, now: Now) {
        let Some(client) = self.readers.clients.get_mut(connection) else { return };
        let tenant = client.tenant.clone();
        let quota = self.config.limits.quotas.of(&tenant);
        let slot = self.fair.tenants.enter(&tenant, quota);
        client.place = Place { slot, ..Place::default() };
        self.fair.input.enter(slot, quota.weight);
        self.readers.queued.line.enter(slot, quota.weight);
        self.take_connection_permit(connection, now);
    }

    /// A client has gone.
    pub(crate) fn leave(&mut self, place: Place) {
        self.return_permits(place);
        if self.fair.tenants.leave(place.slot) {
            self.fair.input.leave(place.slot);
            self.readers.queued.line.leave(place.slot);
        }
    }

    /// Takes a command in its tenant's turn, or puts its connection in line and says later.
    pub(crate) fn command(
        &mut self,
        connection: ConnectionId,
        id: CommandId,
        command: &Command<'_>,
        now: Now,
    ) -> Handled {
        let Some(client) = self.readers.clients.get(connection) else { return Handled::Done };
        let slot = client.place.slot;
        let served = self.fair.served == Some(connection);
        if !self.fair.has_turn(slot, served) {
            self.stand_in_line(connection, command.session());
            return Handled::Later;
        }
        let keeps = served && is_logged(command) && self.keeps_log();
        let handled = match self.look_at_quota(connection, command, now) {
            _ if keeps => Handled::Later,
            Verdict::Passes => self.take_command(connection, id, command, now),
            Verdict::Refused(refused) if self.has_effect_room(1) => {
                self.refuse_local(connection, id, refused);
                self.fair.charge(slot, COMMAND_COST, served);
                return Handled::Done;
            }
            Verdict::Refused(_) | Verdict::Waits => Handled::Later,
        };
        if handled == Handled::Later {
            if served && (keeps || self.lacks_shared_room(command)) {
                self.put_back(connection);
                return Handled::Later;
            }
            if served {
                self.fair.input.failed();
            }
            let wants = self.lacks(connection, command);
            self.wait_for(connection, command.session(), wants);
            return Handled::Later;
        }
        self.fair.charge(slot, cost(command), served);
        self.spend_quota(connection, command, now);
        Handled::Done
    }

    /// Refuses what is no command, in its tenant's turn: it costs what a command does.
    pub(crate) fn rejected(&mut self, connection: ConnectionId, id: CommandId, refused: Refused) -> Handled {
        let Some(client) = self.readers.clients.get(connection) else { return Handled::Done };
        let slot = client.place.slot;
        let served = self.fair.served == Some(connection);
        if !self.fair.has_turn(slot, served) {
            self.stand_in_line(connection, None);
            return Handled::Later;
        }
        if !self.has_effect_room(1) {
            if served {
                self.put_back(connection)
            } else {
                self.stand_in_line(connection, None)
            }
            return Handled::Later;
        }
        self.refuse_local(connection, id, refused);
        self.fair.charge(slot, COMMAND_COST, served);
        Handled::Done
    }

    /// Is what is left of the log that of those who keep within their share, until there is a next segment? Whoever fills
    /// segments faster than they can be made would have all others wait with it, for as long as making one takes.
    fn keeps_log(&self) -> bool {
        !self.fair.input.is_alone() && self.log.is_running_out()
    }

    /// Is the room that a command did not find that of everybody?
    fn lacks_shared_room(&self, command: &Command<'_>) -> bool {
        let bytes = (cost(command) as usize).max(LOG_ROOM_BYTES).min(self.log.record_bytes_max());
        !self.has_effect_room(2) || (is_logged(command) && !self.log.room(bytes))
    }

    /// The connection was given out, and its turn has not ended.
    fn put_back(&mut self, connection: ConnectionId) {
        if let Some(client) = self.readers.clients.get_mut(connection)
            && !std::mem::replace(&mut client.place.waits, true)
        {
            self.fair.input.put_back(Waiting { connection, wants: Wants::Unknown, looks: 0 });
        }
    }

    /// The connection's input waits; it is given out by [`Shard::next_in_line`].
    pub(crate) fn stand_in_line(&mut self, connection: ConnectionId, session: Option<&str>) {
        self.wait_for(connection, session, Wants::Unknown);
    }

    fn wait_for(&mut self, connection: ConnectionId, session: Option<&str>, wants: Wants) {
        let Some(client) = self.readers.clients.get_mut(connection) else { return };
        if std::mem::replace(&mut client.place.waits, true) {
            return;
        }
        let key = match session {
            Some(session) => self.log.partition_id(&client.tenant, session).0 as u64,
            None => u64::from(connection.slot),
        };
        self.fair.input.hold(client.place.slot, key, Waiting { connection, wants, looks: 0 });
    }

    /// Whose held input is to be handed in now, until none. The edge asks in each turn, and hands in what it holds of that
    /// connection until the shard says later.
    pub fn next_in_line(&mut self) -> Option<ConnectionId> {
        loop {
            let next = self.fair.input.next();
            self.fair.served = next.map(|waiting| waiting.connection);
            let waiting = next?;
            if self.still_lacks(&waiting) {
                self.fair.input.pass_by(Waiting { looks: waiting.looks + 1, ..waiting });
                continue;
            }
            let connection = waiting.connection;
            if let Some(client) = self.readers.clients.get_mut(connection) {
                client.place.waits = false;
                return Some(connection);
            }
        }
    }

    /// What a tenant with clients here has had.
    pub fn share_of(&self, tenant: &str) -> Option<Share> {
        let slot = self.fair.tenants.find(tenant)?;
        let parts = &self.fair.tenants.get(slot)?.parts;
        let (served, passed) = self.fair.input.served(slot);
        Some(Share { served, passed, taken: parts.map(|part| part.total), used: parts.map(|part| part.used) })
    }

    /// The place of a client's tenant here: a small number, another tenant's when this one's last client has gone.
    pub fn tenant_slot(&self, connection: ConnectionId) -> Option<u32> {
        self.readers.clients.get(connection).map(|client| client.place.slot)
    }

    /// Some input waits in line.
    pub fn has_line(&self) -> bool {
        self.fair.input.len() > 0
    }

    /// Input waits for nothing: neither the turn's time nor room is short. Never so when [`Shard::next_in_line`] has said none.
    pub fn idles_beside_line(&self) -> bool {
        self.fair.input.idles()
    }

    /// Some input waits while there are several tenants.
    pub fn is_contended(&self) -> bool {
        self.has_line() && !self.fair.input.is_alone()
    }

    /// Does the connection wait because its tenant has had its share?
    pub(crate) fn is_over_share(&mut self, connection: ConnectionId) -> bool {
        let Some(client) = self.readers.clients.get(connection) else { return false };
        !self.fair.input.may_pass(client.place.slot)
    }

    /// Cursors that came to be behind since the last look are put in line.
    pub(crate) fn sort_queued(&mut self) {
        let mut incoming = std::mem::take(&mut self.readers.queued.incoming);
        for reader in incoming.drain(..) {
            let (connection, key) = match reader {
                Reader::Subscription(id) => match self.readers.subscription(id) {
                    Some(s) => (s.connection, self.readers.feeds[s.feed as usize].partition.0 as u64),
                    None => continue,
                },
                Reader::Pattern(connection, source) => {
                    (connection, u64::from(connection.slot) << 16 | u64::from(source.0))
                }
            };
            if let Some(client) = self.readers.clients.get(connection) {
                self.readers.queued.line.hold(client.place.slot, key, reader);
            }
        }
        self.readers.queued.incoming = incoming;
    }

    /// The turn's shares are given anew.
    pub(crate) fn begin_shares(&mut self) {
        self.fair.served = None;
        self.fair.input.begin_turn();
        self.readers.queued.line.begin_turn();
    }
}

/// What one reader was given in one go costs.
pub(crate) fn egress_cost(bytes: u64) -> Cost {
    SEND_COST + bytes
}
