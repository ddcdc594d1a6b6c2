//! What stands behind the sockets of a shard: requests are answered, clients admitted, commands handed to the core.

use super::clock::Clock;
use super::control::{Control, Errand, Peer, Revoke, SetQuota};
use super::echo::{ECHO_BYTES_MAX, echo};
use super::guard::{Entry, Guard, TENANT, words};
use super::identity::Identities;
use crate::auth::{Denied, claimed_tenant};
use crate::http::{self, Head, Request, Upgrade};
use crate::net::websocket::{Opcode, append_with};
use crate::net::{Admission, Adoption, Class, CloseWords, Door, Knock, Owner, Sends, Service, Taken, retry_after_s};
use crate::observe::{Stage, fault};
use crate::wire::codes::Close;
use crate::wire::token::Tokens;
use crate::wire::{decode, encode};
use shards::Shard;
use shards::command::{Command, QuotaAsk};
use shards::ids::{ConnectionId, Now, ShardId};
use shards::input::{Handled, Input, Principal};
use shards::limits::Limits;
use shards::refusal::{Refusal, Refused};
use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::ControlFlow;
use std::os::fd::RawFd;
use std::sync::Arc;

/// To newcomers for whom there is no time, and to those for whom there is no room; connections that end make some.
const BUSY: &str = "too many clients connect at once: connect again after Retry-After";
const FULL: &str = "this shard holds as many connections as it may (connections_per_shard_max, `ulimit -n`): connect again after Retry-After";
const FULL_WAIT_MS: u64 = 2000;
/// Revocations come faster than they are written down: again after so long.
const REVOKE_AGAIN_MS: u32 = 200;

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
    /// Knows who the connections are.
    pub guard: Guard,
    /// Carries out what waits for a disk.
    keeper: flume::Sender<Errand>,
    /// Clients that spoke TLS where none is spoken.
    pub tls_on_plain: u64,
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
    pub fn new(
        own: ShardId,
        shard: Shard,
        limits: Limits,
        echo_open: bool,
        tokens: Tokens,
        (guard, keeper): (Guard, flume::Sender<Errand>),
        clock: Clock,
    ) -> Self {
        Self {
            shard,
            now: Now::default(),
            retry_after_s: None,
            turn_ns: 0,
            held_since_ns: None,
            tokens,
            guard,
            keeper,
            tls_on_plain: 0,
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
            // Where it goes its token is verified.
            let shard = self.claimed_tenant(upgrade).map(|tenant| self.shard.owner(&tenant, session));
            if let Some(shard) = shard.filter(|shard| *shard != self.own) {
                return Admission::HandOff { shard };
            }
        }
        if knock.busy {
            // Only now is it worth the proof, and not yet that of who the client is.
            let claim = upgrade.resume.and_then(|token| Some((token, self.claimed_tenant(upgrade)?)));
            let proved = claim.and_then(|(token, tenant)| {
                let token = self.tokens.verify(&tenant, token, self.now.wall_ms)?;
                Some(self.marks.hash_one((tenant, token.client_id)))
            });
            return Admission::Wait { resumes: proved };
        }
        let open = Admission::Open { head_bytes, frame_bytes_max: self.limits.frame_bytes_max, door: Door::Events };
        let entry = match self.guard.entry(upgrade.token, upgrade.client.as_deref(), self.now) {
            Ok(entry) => entry,
            Err(denied) => {
                http::append_unauthorized(answer, denied.told());
                return Admission::Answer;
            }
        };
        let anonymous;
        let client_id = match (&entry, &upgrade.client) {
            (Entry::Waiting, client) => {
                http::append_switching(answer, upgrade.key, upgrade.subprotocol);
                self.guard.wait(knock.id, client.as_deref(), self.now);
                return open;
            }
            (Entry::Open, Some(client)) => client.as_ref(),
            (Entry::Known(_, Some(name)), _) => name,
            (Entry::Open | Entry::Known(..), _) => {
                anonymous = self.identities.anonymous();
                anonymous.as_str()
            }
        };
        let (tenant, rights, expires_ms) = match &entry {
            Entry::Known(known, _) => (&*known.tenant, Some(&known.rights), Some(known.expires_ms)),
            Entry::Open | Entry::Waiting => (TENANT, None, None),
        };
        let principal = Principal { tenant, client_id, rights };
        if self.shard.handle(Input::Connected { connection: knock.id, principal }, self.now) == Handled::Later {
            http::append_unavailable(answer, 1, "the server is busy: try again");
            return Admission::Answer;
        }
        http::append_switching(answer, upgrade.key, upgrade.subprotocol);
        let (own, limits) = (self.own.0, &self.limits);
        append_with(answer, Opcode::Text, |out| encode::welcome(out, client_id, expires_ms, own, limits));
        let client_id = client_id.to_owned();
        if let Entry::Known(identity, _) = entry {
            self.guard.enter(knock.id, identity, &client_id, self.now);
        }
        open
    }

    /// The tenant that an upgrade is of, if its token is good.
    fn claimed_tenant<'a>(&self, upgrade: &Upgrade<'_>) -> Option<Cow<'a, str>> {
        match self.guard.is_strict() {
            false => Some(Cow::Borrowed(TENANT)),
            true => upgrade.token.and_then(claimed_tenant).map(Cow::Owned),
        }
    }

    /// The first commands of a connection that has yet to say who it is: the first of all does.
    fn introduce(&mut self, id: ConnectionId, text: &str, sends: &mut Sends) -> Taken {
        let (guard, shard, now) = (&mut self.guard, &mut self.shard, self.now);
        let mut outcome = None;
        let rest = decode::decode(text, decode::Resume::default(), &mut self.scratch, |command_id, decoded| {
            if outcome.is_some() {
                return ControlFlow::Break(());
            }
            let introduced = match decoded {
                Ok(Command::Auth { token }) => guard.introduce(id, token, now).map_err(close_of),
                _ => Err(words(Close::Unauthenticated)),
            };
            outcome = Some((command_id, introduced));
            ControlFlow::Continue(())
        });
        let (command_id, (identity, name)) = match outcome {
            Some((command_id, Ok(introduced))) => (command_id, introduced),
            Some((_, Err(words))) => return Taken::Close(words),
            // An array of no commands.
            None => return Taken::All,
        };
        let name = name.unwrap_or_else(|| self.identities.anonymous().into());
        let principal = Principal { tenant: &identity.tenant, client_id: &name, rights: Some(&identity.rights) };
        if shard.handle(Input::Connected { connection: id, principal }, now) == Handled::Later {
            return Taken::Close(words(Close::Unavailable));
        }
        let (own, limits, expires_ms) = (self.own.0, &self.limits, identity.expires_ms);
        self.hint.clear();
        append_with(&mut self.hint, Opcode::Text, |out| encode::welcome(out, &name, Some(expires_ms), own, limits));
        append_with(&mut self.hint, Opcode::Text, |out| encode::authenticated(out, &command_id, &name, expires_ms));
        self.guard.enter(id, identity, &name, now);
        sends.push(id, &self.hint, Class::Reply);
        match rest {
            None => Taken::All,
            Some(rest) => self.text(id, Door::Events, text, rest.pack(), None, sends),
        }
    }
}

/// How a connection ends whose first token is not accepted.
fn close_of(denied: Denied) -> CloseWords {
    match denied {
        Denied::Expired => words(Close::Expired),
        Denied::Revoked => words(Close::Revoked),
        denied => (Close::Unauthenticated.code(), denied.told()),
    }
}

impl Service for Doors {
    fn head(&mut self, knock: &Knock<'_>, answer: &mut Vec<u8>) -> Admission {
        let Head::Complete { request, bytes } = http::parse(knock.head, self.echo_open) else {
            return Admission::Incomplete;
        };
        match request {
            Request::Bad(bad) => {
                self.tls_on_plain += u64::from(bad == http::Bad::Tls);
                http::append_bad(answer, bad);
            }
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
            Request::Upgrade(Upgrade { origin, .. }) | Request::Echo(Upgrade { origin, .. })
                if !self.guard.allows_origin(origin) =>
            {
                http::append_forbidden(answer);
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

    fn not_secure(&mut self, answer: &mut Vec<u8>) {
        http::append_not_secure(answer);
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

    fn owner(&self, id: ConnectionId) -> Owner {
        self.shard.tenant_slot(id).map_or(0, |slot| slot + 1)
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
        if self.guard.is_waiting(id) {
            return self.introduce(id, text, sends);
        }
        let (shard, now, tokens, guard) = (&mut self.shard, self.now, &self.tokens, &mut self.guard);
        let (hint, keeper, by) = (&mut self.hint, &self.keeper, self.own);
        let (clock, held_since_ns) = (self.clock, self.held_since_ns);
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
            let decoded = match decoded {
                Ok(Command::Auth { token }) if guard.is_strict() => match guard.renew(id, token, now) {
                    Ok((client, expires_ms, rights)) => {
                        let renewed = Input::Renewed { connection: id, rights: Some(&rights) };
                        if shard.handle(renewed, now) == Handled::Later {
                            return ControlFlow::Break(());
                        }
                        hint.clear();
                        append_with(hint, Opcode::Text, |out| {
                            encode::authenticated(out, &command_id, &client, expires_ms);
                        });
                        sends.push(id, hint, Class::Reply);
                        return ControlFlow::Continue(());
                    }
                    Err(refused) => Err(refused),
                },
                Ok(command @ Command::Revoke { .. }) if guard.is_strict() => {
                    let errand = |revocation| Errand::Revoke(Revoke { by, connection: id, id: command_id, revocation });
                    let full = Refused::later(Refusal::Unavailable, REVOKE_AGAIN_MS);
                    match guard.revocation(id, &command).map(|all| keeper.try_send(errand(all)).map_err(|_| full)) {
                        Ok(Ok(())) => return ControlFlow::Continue(()),
                        Ok(Err(refused)) | Err(refused) => Err(refused),
                    }
                }
                Ok(command @ Command::Quota { ask, .. }) => match (guard.tenant_of_quota(id, &command), ask) {
                    (Ok(tenant), QuotaAsk::Get) => {
                        let quota = shard.limits().quotas.of(&tenant);
                        hint.clear();
                        append_with(hint, Opcode::Text, |out| encode::quota(out, &command_id, &tenant, &quota));
                        sends.push(id, hint, Class::Reply);
                        return ControlFlow::Continue(());
                    }
                    (Ok(tenant), QuotaAsk::Set(quota)) => {
                        let set = SetQuota { by, connection: id, id: command_id, tenant, quota: quota.copied() };
                        if keeper.try_send(Errand::SetQuota(set)).is_ok() {
                            return ControlFlow::Continue(());
                        }
                        Err(Refused::later(Refusal::Unavailable, REVOKE_AGAIN_MS))
                    }
                    (Err(refused), _) => Err(refused),
                },
                Ok(command @ Command::Resume { .. }) => {
                    tokens.admit(guard.tenant_of(id), command, now.wall_ms, &mut token)
                }
                decoded => decoded,
            };
            let input = match decoded {
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

    fn next_held(&mut self) -> Option<ConnectionId> {
        self.shard.next_in_line()
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
        if door != Door::Events {
            return;
        }
        let known = !self.guard.is_waiting(id);
        self.guard.forget(id);
        if known && self.shard.handle(Input::Disconnected { connection: id }, self.now) == Handled::Later {
            self.unheard.push(id);
        }
    }
}
