//! What stands behind the sockets of a shard: requests are answered, clients admitted, commands handed to the core.

use super::clock::Clock;
use super::control::{Control, Peer};
use super::echo::{ECHO_BYTES_MAX, echo};
use super::identity::Identities;
use crate::http::{self, Head, Request, Upgrade};
use crate::net::websocket::{Opcode, append_with};
use crate::net::{Admission, Adoption, Class, Door, Knock, Sends, Service, Taken, retry_after_s};
use crate::observe::{Stage, fault};
use crate::wire::codes::Close;
use crate::wire::token::Tokens;
use crate::wire::{decode, encode};
use shards::Shard;
use shards::ids::{ConnectionId, Now, ShardId};
use shards::input::{Handled, Input, Principal};
use shards::limits::Limits;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::ControlFlow;
use std::os::fd::RawFd;
use std::sync::Arc;

/// To newcomers for whom there is no time, and to those for whom there is no room; connections that end make some.
const BUSY: &str = "too many clients connect at once: connect again after Retry-After";
const FULL: &str = "this shard holds as many connections as it may (connections_per_shard_max, `ulimit -n`): connect again after Retry-After";
const FULL_WAIT_MS: u64 = 2000;

/// Who everybody is while no key is configured.
pub(super) const TENANT: &str = "default";

/// One per shard, touched only by its thread.
pub struct Doors {
    /// The core.
    pub shard: Shard,
    /// Time of this turn.
    pub now: Now,
    /// Clients are sent away: whoever comes is to come back after so many seconds.
    pub retry_after_s: Option<u32>,
    /// When the turn began, nanoseconds of the shard's clock: what it takes in came then.
    pub turn_ns: u64,
    /// What is taken in now came at this time, and has waited for room since.
    pub held_since_ns: Option<u64>,
    /// Signs and verifies what clients resume with.
    pub tokens: Tokens,
    clock: Clock,
    hint: Vec<u8>,
    own: ShardId,
    limits: Limits,
    echo_open: bool,
    scratch: decode::Scratch,
    identities: Identities,
    /// Makes marks of clients.
    marks: RandomState,
    peers: Arc<[Peer]>,
    /// Announced sockets that have not come by ring yet.
    announced: HashMap<(ShardId, u32), Adoption>,
    /// The peer each of our own tickets went to, until the move is known to have worked.
    given: HashMap<u32, ShardId>,
    /// Connections whose end the core had no room to hear of.
    unheard: Vec<ConnectionId>,
}

impl Doors {
    /// Doors of shard `own` with this core behind them.
    pub fn new(own: ShardId, shard: Shard, limits: Limits, echo_open: bool, tokens: Tokens, clock: Clock) -> Self {
        Self {
            shard,
            now: Now::default(),
            retry_after_s: None,
            turn_ns: 0,
            held_since_ns: None,
            tokens,
            clock,
            hint: Vec::new(),
            own,
            scratch: decode::Scratch::new(&limits),
            limits,
            echo_open,
            identities: Identities::new(),
            marks: RandomState::new(),
            peers: Arc::from([]),
            announced: HashMap::new(),
            given: HashMap::new(),
            unheard: Vec::new(),
        }
    }

    /// Learns how to reach the other shards.
    pub fn meet(&mut self, peers: Arc<[Peer]>) {
        self.peers = peers;
    }

    /// Ring of a peer.
    pub fn ring_of(&self, shard: ShardId) -> Option<RawFd> {
        self.peers.get(usize::from(shard.0)).map(|peer| peer.ring)
    }

    /// A socket was announced; one that travels by ring is kept until it comes.
    pub fn announce(&mut self, adoption: Adoption) {
        self.announced.insert((adoption.from, adoption.ticket), adoption);
    }

    /// An announced socket does not come.
    pub fn forget(&mut self, from: ShardId, ticket: u32) {
        self.announced.remove(&(from, ticket));
    }

    /// Tells the core of ends it had no room for. Returns how many it took.
    pub fn tell_unheard(&mut self) -> usize {
        let before = self.unheard.len();
        let now = self.now;
        let shard = &mut self.shard;
        self.unheard
            .retain(|connection| shard.handle(Input::Disconnected { connection: *connection }, now) == Handled::Later);
        before - self.unheard.len()
    }

    /// The core has yet to hear of an end.
    pub fn has_unheard(&self) -> bool {
        !self.unheard.is_empty()
    }

    fn admit(
        &mut self,
        knock: &Knock<'_>,
        upgrade: &Upgrade<'_>,
        head_bytes: usize,
        answer: &mut Vec<u8>,
    ) -> Admission {
        if knock.may_hand_off
            && let Some(session) = &upgrade.session
        {
            let shard = self.shard.owner(TENANT, session);
            if shard != self.own {
                return Admission::HandOff { shard };
            }
        }
        if knock.busy {
            // Only now is it worth the proof.
            let token = upgrade.resume.and_then(|token| self.tokens.verify(TENANT, token, self.now.wall_ms));
            return Admission::Wait { resumes: token.map(|token| self.marks.hash_one(token.client_id)) };
        }
        let anonymous;
        let client_id = match &upgrade.client {
            Some(client) => client.as_ref(),
            None => {
                anonymous = self.identities.anonymous();
                anonymous.as_str()
            }
        };
        let principal = Principal { tenant: TENANT, client_id };
        if self.shard.handle(Input::Connected { connection: knock.id, principal }, self.now) == Handled::Later {
            http::append_unavailable(answer, 1, "the server is busy: try again");
            return Admission::Answer;
        }
        http::append_switching(answer, upgrade.key, upgrade.subprotocol);
        let (own, limits) = (self.own.0, &self.limits);
        append_with(answer, Opcode::Text, |out| encode::welcome(out, client_id, own, limits));
        Admission::Open { head_bytes, frame_bytes_max: self.limits.frame_bytes_max, door: Door::Events }
    }
}

impl Service for Doors {
    fn head(&mut self, knock: &Knock<'_>, answer: &mut Vec<u8>) -> Admission {
        let Head::Complete { request, bytes } = http::parse(knock.head, self.echo_open) else {
            return Admission::Incomplete;
        };
        match request {
            Request::Bad(bad) => http::append_bad(answer, bad),
            Request::NotFound => http::append_not_found(answer),
            Request::Ready => http::append_health(answer, self.retry_after_s.is_none()),
            Request::Health => http::append_health(answer, true),
            Request::Upgrade(_) | Request::Echo(_) if self.retry_after_s.is_some() => {
                // Half of them a second later.
                let seconds = u64::from(self.retry_after_s.unwrap_or_default() + (knock.id.slot & 1));
                let why = "the server is going down: connect again, everything durable is kept";
                http::append_unavailable(answer, seconds, why);
            }
            Request::Upgrade(_) | Request::Echo(_) if knock.full => {
                let after_s = retry_after_s(FULL_WAIT_MS, self.identities.random());
                http::append_unavailable(answer, after_s, FULL);
            }
            Request::Echo(_) if knock.busy => return Admission::Wait { resumes: None },
            Request::Echo(upgrade) => {
                http::append_switching(answer, upgrade.key, None);
                return Admission::Open { head_bytes: bytes, frame_bytes_max: ECHO_BYTES_MAX, door: Door::Echo };
            }
            Request::Upgrade(upgrade) => return self.admit(knock, &upgrade, bytes, answer),
        }
        Admission::Answer
    }

    fn refuse(&mut self, wait_ms: u64, answer: &mut Vec<u8>) {
        http::append_unavailable(answer, retry_after_s(wait_ms, self.identities.random()), BUSY);
    }

    fn give(&mut self, to: ShardId, adoption: Adoption) -> Result<RawFd, Adoption> {
        let Some(peer) = self.peers.get(usize::from(to.0)) else { return Err(adoption) };
        let (ticket, by_ring) = (adoption.ticket, adoption.fd.is_none());
        let ring = peer.ring;
        match peer.control.try_send(Control::Adopt(adoption)) {
            Ok(()) => {
                if by_ring {
                    self.given.insert(ticket, to);
                } else {
                    peer.waker.wake();
                }
                Ok(ring)
            }
            Err(flume::TrySendError::Full(control) | flume::TrySendError::Disconnected(control)) => match control {
                Control::Adopt(adoption) => Err(adoption),
                _ => unreachable!("an adoption was sent"),
            },
        }
    }

    fn given(&mut self, ticket: u32, moved: bool) {
        let Some(to) = self.given.remove(&ticket) else { return };
        if let (false, Some(peer)) = (moved, self.peers.get(usize::from(to.0))) {
            // Where the channel is full the announcement stays behind: a few hundred bytes, once.
            let _ = peer.control.try_send(Control::Revoke { from: self.own, ticket });
            peer.waker.wake();
        }
    }

    fn adopt(&mut self, from: ShardId, ticket: u32) -> Option<Adoption> {
        self.announced.remove(&(from, ticket))
    }

    fn came(&mut self, us: u64) {
        self.held_since_ns = Some(us * 1000);
    }

    fn text(
        &mut self,
        id: ConnectionId,
        door: Door,
        text: &str,
        place: u64,
        overdue_us: Option<u64>,
        sends: &mut Sends,
    ) -> Taken {
        if door == Door::Echo {
            return echo(id, Opcode::Text, text.as_bytes(), sends);
        }
        let (shard, now, tokens, clock) = (&mut self.shard, self.now, &self.tokens, self.clock);
        let held_since_ns = self.held_since_ns;
        shard.clock(clock.ns());
        shard.decodes(Some(held_since_ns.unwrap_or(self.turn_ns)));
        fault::pass(Stage::Decode);
        let resume = decode::Resume::unpack(place);
        // What one command appended has happened by the next reading, whoever takes it. In a frame of many it is taken at once, or the
        // next one's decoding would begin before.
        let many = text.trim_ascii_start().starts_with('[');
        let stopped_at = decode::decode(text, resume, &mut self.scratch, |command_id, decoded| {
            shard.decoded(clock.ns(), held_since_ns.is_some());
            fault::pass(Stage::Append);
            let mut token = None;
            let input = match decoded.and_then(|command| tokens.admit(TENANT, command, now.wall_ms, &mut token)) {
                Ok(command) => match overdue_us {
                    None => Input::Command { connection: id, id: command_id, command },
                    Some(us) => Input::Overdue { connection: id, id: command_id, command, waited_ms: us / 1000 },
                },
                Err(refused) => Input::Rejected { connection: id, id: command_id, refused },
            };
            let handled = shard.handle(input, now);
            if many {
                shard.handled(clock.ns());
            }
            match handled {
                Handled::Done => ControlFlow::Continue(()),
                Handled::Later => ControlFlow::Break(()),
            }
        });
        shard.decodes(None);
        match stopped_at {
            None => Taken::All,
            Some(resume) => Taken::Later { place: resume.pack() },
        }
    }

    fn binary(&mut self, id: ConnectionId, door: Door, bytes: &[u8], _place: u64, sends: &mut Sends) -> Taken {
        match door {
            Door::Echo => echo(id, Opcode::Binary, bytes, sends),
            Door::Events => Taken::Close((Close::UnsupportedData.code(), Close::UnsupportedData.reason())),
        }
    }

    fn slow_down(&mut self, id: ConnectionId, door: Door, waited_us: u64, sends: &mut Sends) {
        if door == Door::Events {
            let waits_for = self.shard.waits_for(id);
            self.hint.clear();
            append_with(&mut self.hint, Opcode::Text, |out| encode::slow_down(out, waits_for, waited_us / 1000));
            sends.push(id, &self.hint, Class::Reply);
        }
    }

    fn closed(&mut self, id: ConnectionId, door: Door) {
        if door == Door::Events && self.shard.handle(Input::Disconnected { connection: id }, self.now) == Handled::Later
        {
            self.unheard.push(id);
        }
    }
}
