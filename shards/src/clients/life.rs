//! A client's life on the shard of its connection: from `resume` to the end of the connection.
//!
//! ```text
//!  resume ─► opening ── ClientOpened ─► life: what was kept becomes subscriptions, one by one
//!                                        │ subscriptions change ─► kept at once
//!                                        │ acknowledgements, positions it came with ─► kept within KEEP_EVERY_US
//!                                        └ connection ends      ─► kept for the last time, home knows it is away
//! ```
//! Until all that was kept stands again, nothing newer is kept: a connection that is lost in between loses nothing.

use super::home;
use super::seen::PatternSeen;
use super::session_of;
use super::state::{ClientState, KeptSession};
use crate::command::{From, PatternFrom};
use crate::commands::{resume, subscribe, subscribe_patterns};
use crate::delivery::client::{Clients, NONE};
use crate::delivery::elsewhere::{DELIVERED_MAX, Delivered};
use crate::delivery::ledger::{HEAP_BYTES_MAX as LEDGER_HEAP_BYTES_MAX, Ledger};
use crate::delivery::patterns::PatternFeed;
use crate::delivery::{ReaderState, SubscriptionId};
use crate::effect::Reply;
use crate::ids::{CommandId, ConnectionId, LifeId, Now, ShardId, SliceSeq};
use crate::input::Handled;
use crate::mailbox::codec::{Reader, Writer};
use crate::mailbox::message::{get_connection, put_connection, request};
use crate::outbox::GapReason;
use crate::quota::Verdict;
use crate::refusal::{Refusal, Refused};
use crate::rights::{Capability, Rights};
use crate::sessions::{Asker, Origin};
use crate::shard::Shard;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;

/// Acknowledgements are kept this often at most: each time is an event of the log. What a crash may make a client see twice is what
/// it acknowledged in that time. Microseconds.
const KEEP_EVERY_US: u64 = 5_000_000;

/// While so many ended lives wait for room in a lane to their homes no new one begins. Each has its last words, exactly once: a
/// home that waits for them would wait for ever.
const LAST_WORDS_MAX: usize = 4096;

/// What a client says of its own positions when it resumes.
#[derive(Clone, Debug)]
pub(crate) struct Positions {
    /// Of the `resume`.
    pub id: CommandId,
    /// What it claims, to be asked again where the answer needs more room.
    pub claimed: Option<LifeId>,
    pub attempt: u64,
    /// The client whose life it is: the connection goes by its name once it has it.
    pub client_id: Arc<str>,
    pub sessions: Vec<KeptSession>,
    pub position: Option<Vec<(u16, SliceSeq)>>,
}

/// A life.
#[derive(Default)]
pub(crate) struct Life {
    pub generation: u64,
    claimed: u64,
    attempt: u64,
    pub ledger: Ledger,
    /// How far its pattern feed was acknowledged, where it has one.
    pub seen: Option<Box<PatternSeen>>,
    /// What was kept when it began, until all of it stands again.
    restore: Option<Box<Restore>>,
    /// Hash of the state that its home has: the same is not said again.
    kept: u64,
    /// Bytes that its session subscriptions take in its state.
    pub sessions_bytes: u32,
    changed: bool,
    /// It was to be kept while something had yet to stand again: it is kept when that stands.
    owed: bool,
    /// Stands in `Lives::soon`, in `Lives::later`.
    soon: bool,
    later: bool,
}

/// As many as there are clients.
const _: () = assert!(size_of::<Life>() <= 96);

/// Bytes of one, all it delivered unacknowledged and in pieces.
pub const LIFE_BYTES: usize = size_of::<Life>() + LEDGER_HEAP_BYTES_MAX;

/// What is to stand again.
#[derive(Default)]
struct Restore {
    /// The state that the life began with.
    before: Box<[u8]>,
    sessions: VecDeque<KeptSession>,
    patterns: Option<(Vec<Box<str>>, String)>,
    /// Restored and not answered by their owners.
    attaching: Vec<(SubscriptionId, KeptSession)>,
    /// What subscriptions delivered that ended before the feed was restored.
    left: Vec<Delivered>,
    /// What was refused for a while is tried again when the blocked clients are.
    pause: bool,
    /// Being subscribed to, and not answered: its owner may be this shard, and answer at once.
    current: Option<KeptSession>,
    /// Stands in `Lives::restoring`, or is worked at.
    listed: bool,
}

impl Restore {
    fn is_done(&self) -> bool {
        self.sessions.is_empty() && self.patterns.is_none() && self.attaching.is_empty() && self.current.is_none()
    }
}

/// A grant that has come from a client's home.
struct OpenedClient {
    connection: ConnectionId,
    id: CommandId,
    tenant: Arc<str>,
    client_id: Arc<str>,
    life: LifeId,
    state: Box<[u8]>,
}

/// What is to be said to a home.
struct LastWords {
    tenant: Arc<str>,
    client_id: Arc<str>,
    connection: ConnectionId,
    state: Vec<u8>,
}

/// Lives of this shard's connections that have something to do.
#[derive(Default)]
pub(crate) struct Lives {
    opened: VecDeque<OpenedClient>,
    /// Asked again with room for so many bytes of state.
    larger: VecDeque<(ConnectionId, u32)>,
    restoring: Vec<ConnectionId>,
    /// Changed subscriptions: kept in this turn.
    soon: VecDeque<ConnectionId>,
    /// Acknowledged: kept when due, oldest first.
    later: VecDeque<(u64, ConnectionId)>,
    last_words: VecDeque<LastWords>,
}

impl Lives {
    /// A home has granted a life to a connection of this shard.
    pub fn open(&mut self, connection: ConnectionId, id: CommandId, opened: &Opened<'_>) {
        let Opened { tenant, client_id, life, state } = *opened;
        let (tenant, client_id) = (tenant.into(), client_id.into());
        self.opened.push_back(OpenedClient { connection, id, tenant, client_id, life, state: state.into() });
    }

    /// A home asks for more room.
    pub fn ask_again(&mut self, connection: ConnectionId, room: u32) {
        self.larger.push_back((connection, room));
    }

    /// May a life begin?
    pub fn has_room(&self) -> bool {
        self.last_words.len() < LAST_WORDS_MAX
    }

    /// Is there something that waits for room?
    pub fn wait(&self) -> bool {
        !self.opened.is_empty()
            || !self.larger.is_empty()
            || !self.restoring.is_empty()
            || !self.soon.is_empty()
            || !self.last_words.is_empty()
    }

    /// Is anything being restored?
    pub fn restore(&self) -> bool {
        !self.restoring.is_empty()
    }

    /// When the next acknowledgement is to be kept, microseconds.
    pub fn next_deadline_us(&self) -> Option<u64> {
        self.later.front().map(|(due_us, _)| *due_us)
    }
}

impl Life {
    fn begin(generation: u64, kept: ClientState, before: Box<[u8]>, own: Option<Positions>) -> Self {
        let mut sessions: VecDeque<KeptSession> = kept.sessions.into();
        let (own_sessions, position) = own.map_or((Vec::new(), None), |own| (own.sessions, own.position));
        for position in own_sessions {
            match sessions.iter_mut().find(|kept| kept.session == position.session) {
                Some(kept) => *kept = KeptSession { policy: kept.policy, ..position },
                None => sessions.push_back(position),
            }
        }
        let position = position.unwrap_or(kept.position);
        let patterns = (!kept.patterns.is_empty()).then(|| (kept.patterns, position_text(&position)));
        let (claimed, attempt) = (kept.claimed, kept.attempt);
        let known = home::hash(&before);
        let restore = Some(Box::new(Restore { before, sessions, patterns, listed: true, ..Restore::default() }));
        Self { generation, claimed, attempt, restore, kept: known, ..Self::default() }
    }

    /// A subscription ended that the pattern feed has to know of, if one is to be restored that is not there yet.
    pub fn delivered_elsewhere(&mut self, range: Delivered) {
        if let Some(restore) = &mut self.restore
            && restore.patterns.is_some()
            && restore.left.len() < DELIVERED_MAX
        {
            restore.left.push(range);
        }
    }

    /// An event of the pattern feed took a frame.
    pub fn pattern_delivered(&mut self, slice: u16, seq: SliceSeq) {
        self.ledger.passed();
        self.seen.get_or_insert_default().delivered(self.ledger.frames(), slice, seq);
    }

    /// The subscription's owner has answered. What it was to restore, if it was.
    pub fn attached(&mut self, subscription: SubscriptionId) -> Option<KeptSession> {
        let Restore { attaching, current, .. } = &mut **self.restore.as_mut()?;
        match attaching.iter().position(|(id, _)| *id == subscription) {
            Some(at) => Some(attaching.swap_remove(at).1),
            None => current.take(),
        }
    }
}

/// All that was kept stands again; a pattern feed does when all shards have answered.
fn is_restored(life: &Life, patterns: Option<&PatternFeed>) -> bool {
    life.restore.as_ref().is_none_or(|restore| restore.is_done() && patterns.is_none_or(|feed| feed.attaching == 0))
}

fn position_text(position: &[(u16, SliceSeq)]) -> String {
    let mut text = String::new();
    for (slice, seq) in position {
        // Writing to a string cannot fail.
        let _ = write!(text, "{}{slice}.{seq}", if text.is_empty() { "" } else { "," });
    }
    text
}

impl Clients {
    /// What of a client's life is to stand again.
    fn restore(&mut self, connection: ConnectionId) -> Option<&mut Restore> {
        self.get_mut(connection)?.life.as_mut()?.restore.as_deref_mut()
    }
}

impl Shard {
    /// The client's subscriptions changed.
    pub(crate) fn life_changed(&mut self, connection: ConnectionId) {
        if let Some(life) = self.readers.clients.get_mut(connection).and_then(|c| c.life.as_mut()) {
            life.changed = true;
            if !std::mem::replace(&mut life.soon, true) {
                self.lives.soon.push_back(connection);
            }
        }
    }

    /// Restores that were put off are tried again.
    pub(crate) fn retry_restores(&mut self) {
        for connection in &self.lives.restoring {
            if let Some(restore) = self.readers.clients.restore(*connection) {
                restore.pause = false;
            }
        }
    }

    /// A subscription's owner has answered. One that was kept stands again: only what waited for that is kept now.
    pub(crate) fn life_attached(&mut self, connection: ConnectionId, subscription: SubscriptionId) {
        let Some(client) = self.readers.clients.get_mut(connection) else { return };
        let Some(life) = &mut client.life else { return };
        if life.attached(subscription).is_none() || life.owed {
            self.life_changed(connection);
        } else if is_restored(life, client.patterns.as_deref()) {
            life.restore = None;
        }
    }

    /// The client acknowledged.
    pub(crate) fn life_acknowledged(&mut self, connection: ConnectionId, frames: u64, now: Now) {
        if let Some(life) = self.readers.clients.get_mut(connection).and_then(|c| c.life.as_mut()) {
            if frames > 0 {
                // It has read what came after the answer to its `resume`: that will not be said again.
                life.attempt = u64::MAX;
            }
            life.ledger.acknowledged(frames);
            if let Some(seen) = &mut life.seen {
                seen.acknowledge(frames, life.ledger.frames());
            }
            self.presence.acknowledged(connection);
            self.life_changed_later(connection, now.mono_us);
        }
    }

    /// Something changed that changes often: it is kept by and by.
    pub(crate) fn life_changed_later(&mut self, connection: ConnectionId, now_us: u64) {
        if let Some(life) = self.readers.clients.get_mut(connection).and_then(|c| c.life.as_mut()) {
            life.changed = true;
            if !std::mem::replace(&mut life.later, true) {
                self.lives.later.push_back((now_us + KEEP_EVERY_US, connection));
            }
        }
    }

    /// Takes grants, restores what was kept, keeps what changed.
    pub(crate) fn serve_lives(&mut self, now: Now) -> usize {
        let mut done = 0;
        while let Some(opened) = self.lives.opened.pop_front() {
            if !self.has_effect_room(2) {
                self.lives.opened.push_front(opened);
                break;
            }
            self.begin_life(opened);
            done += 1;
        }
        while let Some((connection, room)) = self.lives.larger.front().copied() {
            if resume::ask(self, connection, room, now) == Handled::Later {
                break;
            }
            self.lives.larger.pop_front();
            done += 1;
        }
        for connection in std::mem::take(&mut self.lives.restoring) {
            done += self.restore(connection, now);
        }
        while let Some(words) = self.lives.last_words.pop_front() {
            let LastWords { tenant, client_id, connection, state } = &words;
            if !self.say_keep(tenant, client_id, *connection, true, state, now) {
                self.lives.last_words.push_front(words);
                break;
            }
            done += 1;
        }
        while let Some(connection) = self.lives.soon.pop_front() {
            if !self.keep(connection, now) {
                self.lives.soon.push_front(connection);
                break;
            }
            if let Some(life) = self.readers.clients.get_mut(connection).and_then(|c| c.life.as_mut()) {
                life.soon = false;
            }
            done += 1;
        }
        while let Some((_, connection)) = self.lives.later.front().copied().filter(|(due_us, _)| *due_us <= now.mono_us)
        {
            self.lives.later.pop_front();
            if let Some(life) = self.readers.clients.get_mut(connection).and_then(|c| c.life.as_mut()) {
                life.later = false;
            }
            if !self.keep(connection, now) {
                self.life_changed(connection);
            }
            done += 1;
        }
        done
    }

    fn begin_life(&mut self, opened: OpenedClient) {
        let OpenedClient { connection, id, tenant, client_id, life: LifeId { generation, epoch }, state } = opened;
        let mut kept = ClientState::get(&state).unwrap_or_default();
        let Some(client) = self.readers.clients.get_mut(connection).filter(|client| !client.fenced) else {
            // Gone, or taken over, before it was told: the life ends as it began, and its home hears of it.
            self.lives.last_words.push_back(LastWords { tenant, client_id, connection, state: state.into() });
            return;
        };
        client.in_flight = client.in_flight.saturating_sub(1);
        if let Some(rights) = &client.rights
            && !kept.patterns.iter().all(|pattern| rights.covers_pattern(Capability::Subscribe, pattern))
        {
            // Its token covers less than the one before: the answer says that there is no feed.
            kept.patterns = Vec::new();
            kept.position = Vec::new();
        }
        let own = client.opening.take().map(|own| *own);
        client.client_id = client_id.clone();
        let presence = (kept.presences.clone(), kept.reads.clone());
        let mut life = Life::begin(generation, kept, state, own);
        // What it subscribed to before it had a life, and was sent: frames are counted from the connection's first.
        let (frames, acknowledged) = client.event_frames();
        let mut sent = Vec::new();
        let mut slot = client.subscriptions;
        while slot != NONE {
            let subscription = &self.readers.subscriptions[slot as usize];
            if subscription.cursor != u64::MAX && subscription.cursor > subscription.start {
                sent.push((slot, subscription.start));
            }
            slot = subscription.next_of_client;
        }
        life.ledger.begin_at(frames, acknowledged, sent.into_iter());
        let restored = |restore: &Restore| (restore.sessions.len() as u32, restore.patterns.is_some());
        let (sessions, patterns) = life.restore.as_deref().map(restored).unwrap_or_default();
        client.life = Some(Box::new(life));
        match sessions == 0 && !patterns {
            true => self.life_changed(connection),
            // It is marked so from its beginning.
            false => self.lives.restoring.push(connection),
        }
        self.presence_restore(connection, &presence.0, &presence.1);
        let reply = Reply::Resumed { client_id: &client_id, life: LifeId { generation, epoch }, sessions, patterns };
        self.effects.reply(connection, id, &reply);
    }

    /// Puts kept subscriptions in place again, as many as there is room for.
    fn restore(&mut self, connection: ConnectionId, now: Now) -> usize {
        let mut done = 0;
        loop {
            let room = self.has_effect_room(2);
            let Some(client) = self.readers.clients.get_mut(connection) else { return done };
            let busy = client.in_flight >= self.config.limits.client_commands_in_flight_max;
            let Some(life) = &mut client.life else { return done };
            let Some(restore) = life.restore.as_mut().filter(|r| !r.sessions.is_empty() || r.patterns.is_some()) else {
                if let Some(restore) = &mut life.restore {
                    restore.listed = false;
                }
                if is_restored(life, client.patterns.as_deref()) {
                    life.restore = None;
                }
                // What was kept is older where the client said where it stands, and still right.
                self.life_changed_later(connection, now.mono_us);
                return done;
            };
            let waits = !room || busy || restore.pause;
            // What is restored needs its tenant's permit like any other, and waits for it.
            if waits || !matches!(self.may_subscribe(connection, now), Verdict::Passes) {
                self.lives.restoring.push(connection);
                return done;
            }
            let Some(client) = self.readers.clients.get_mut(connection) else { return done };
            let Some(restore) = client.life.as_mut().and_then(|life| life.restore.as_mut()) else { return done };
            if let Some(kept) = restore.sessions.pop_front() {
                // Its token may be another one than that with which it subscribed.
                let covers = |own: &Arc<Rights>| own.covers_session(Capability::Subscribe, &kept.session);
                if !client.rights.as_ref().is_none_or(covers) {
                    self.restore_otherwise(connection, kept, Capability::Subscribe.refused());
                    done += 1;
                    continue;
                }
                let (session, policy) = (kept.session.clone(), kept.policy);
                let from = From::Offset(kept.offset, (kept.epoch != 0).then_some(kept.epoch));
                restore.current = Some(kept);
                let handled = subscribe::run(self, connection, CommandId::None, &session, from, policy, now);
                // Where it was the last one, and was answered, nothing is left to be restored.
                let unanswered = self.readers.clients.restore(connection).and_then(|restore| restore.current.take());
                match (handled, unanswered) {
                    (Handled::Done, Some(kept)) => self.restored(connection, kept),
                    (Handled::Done, None) => {}
                    (Handled::Later, unanswered) => {
                        if let Some(restore) = self.readers.clients.restore(connection) {
                            unanswered.into_iter().for_each(|kept| restore.sessions.push_front(kept));
                        }
                        self.lives.restoring.push(connection);
                        return done;
                    }
                }
            } else if let Some((patterns, position)) = restore.patterns.take() {
                let list: Vec<&str> = patterns.iter().map(|pattern| &**pattern).collect();
                let from = PatternFrom::Position(&position);
                if subscribe_patterns::run(self, connection, CommandId::None, &list, from) == Handled::Later {
                    if let Some(restore) = self.readers.clients.restore(connection) {
                        restore.patterns = Some((patterns, position));
                    }
                    self.lives.restoring.push(connection);
                    return done;
                }
                if let Some(client) = self.readers.clients.get_mut(connection)
                    && let (Some(feed), Some(life)) = (&mut client.patterns, &mut client.life)
                    && let Some(restore) = &mut life.restore
                {
                    restore.left.drain(..).for_each(|range| feed.delivered_elsewhere(range));
                }
            }
            self.count_subscriptions(connection, now);
            done += 1;
        }
    }

    fn unrestore(&mut self, connection: ConnectionId, kept: KeptSession) {
        if let Some(restore) = self.readers.clients.restore(connection) {
            restore.sessions.push_front(kept);
            if !std::mem::replace(&mut restore.listed, true) {
                self.lives.restoring.push(connection);
            }
        }
    }

    /// A kept subscription attaches, unless its owner has answered already.
    fn restored(&mut self, connection: ConnectionId, kept: KeptSession) {
        let Some(client) = self.readers.clients.get(connection) else { return };
        let partition = self.log.partition_id(&client.tenant, &kept.session);
        let Some(id) = self.readers.find(connection, partition) else { return };
        let attaching =
            self.readers.subscription(id).is_some_and(|s| s.state == ReaderState::Attaching && s.cursor == u64::MAX);
        if let Some(restore) = self.readers.clients.restore(connection)
            && attaching
        {
            restore.attaching.push((id, kept));
        }
    }

    /// The owner refused a kept subscription. Where its place is no more, it begins at what there is, and that is said as a
    /// gap; what time mends is tried again; all else is told.
    pub(crate) fn restore_otherwise(&mut self, connection: ConnectionId, kept: KeptSession, refused: Refused) {
        match refused.refusal {
            Refusal::ForeignEpoch | Refusal::OffsetOutOfRange => {
                let KeptSession { session, epoch, offset, policy } = kept;
                self.readers.owe_gap(connection, session.clone(), epoch, offset, offset, GapReason::Epoch);
                self.unrestore(connection, KeptSession { session, epoch: 0, offset: 0, policy });
            }
            Refusal::Unavailable | Refusal::PartitionsFull => {
                if let Some(restore) = self.readers.clients.restore(connection) {
                    restore.pause = true;
                }
                self.unrestore(connection, kept);
            }
            _ => {
                let lost = Reply::Lost { session: &kept.session, refused };
                self.effects.reply(connection, CommandId::None, &lost);
                self.life_changed(connection);
            }
        }
    }

    /// Says to the client's home what is to be kept. `false`: no room.
    fn keep(&mut self, connection: ConnectionId, now: Now) -> bool {
        let Some(client) = self.readers.clients.get_mut(connection) else { return true };
        let Some(life) = &mut client.life else { return true };
        if !life.changed {
            return true;
        }
        if !is_restored(life, client.patterns.as_deref()) {
            life.owed = true;
            return true;
        }
        life.restore = None;
        let (tenant, client_id, known) = (client.tenant.clone(), client.client_id.clone(), life.kept);
        let mut state = Vec::new();
        self.state_of(connection).put(&mut state);
        let kept = home::hash(&state);
        if kept != known && !self.say_keep(&tenant, &client_id, connection, false, &state, now) {
            return false;
        }
        if let Some(life) = self.readers.clients.get_mut(connection).and_then(|c| c.life.as_mut()) {
            (life.changed, life.owed, life.kept) = (false, false, kept);
        }
        true
    }

    /// A connection with a life ends: before its client and its subscriptions are removed.
    pub(crate) fn end_life(&mut self, connection: ConnectionId) {
        let Some(client) = self.readers.clients.get(connection) else { return };
        let Some(life) = &client.life else { return };
        let (tenant, client_id) = (client.tenant.clone(), client.client_id.clone());
        let state = match life.restore.as_ref().filter(|_| !is_restored(life, client.patterns.as_deref())) {
            Some(restore) => restore.before.to_vec(),
            None => {
                let mut state = Vec::new();
                self.state_of(connection).put(&mut state);
                state
            }
        };
        self.lives.last_words.push_back(LastWords { tenant, client_id, connection, state });
    }

    /// What is to be kept of a client now.
    fn state_of(&self, connection: ConnectionId) -> ClientState {
        let Some(client) = self.readers.clients.get(connection) else { return ClientState::default() };
        let Some(life) = &client.life else { return ClientState::default() };
        let mut sessions = Vec::new();
        let mut slot = client.subscriptions;
        while slot != NONE {
            let subscription = &self.readers.subscriptions[slot as usize];
            let feed = &self.readers.feeds[subscription.feed as usize];
            if subscription.cursor != u64::MAX {
                let wants = subscription.gathered.as_ref().and_then(|gathered| gathered.join());
                let wants = wants.unwrap_or(subscription.cursor);
                let offset = life.ledger.unacknowledged(slot).unwrap_or(wants);
                // Before its first event a crash may still take the epoch back.
                let epoch = if offset == 0 { 0 } else { feed.epoch };
                let (session, policy) = (feed.session.clone(), subscription.policy);
                sessions.push(KeptSession { session, epoch, offset, policy });
            }
            slot = subscription.next_of_client;
        }
        let patterns = client.patterns.as_ref().filter(|feed| feed.attaching == 0);
        let (presences, reads) = self.presence_kept(connection);
        ClientState {
            presences,
            reads,
            generation: life.generation,
            claimed: life.claimed,
            attempt: life.attempt,
            sessions,
            position: patterns.and(life.seen.as_ref()).map_or_else(Vec::new, |seen| seen.position()),
            patterns: patterns.map_or_else(Vec::new, |feed| feed.patterns.to_vec()),
        }
    }

    fn say_keep(
        &mut self,
        tenant: &Arc<str>,
        client_id: &Arc<str>,
        connection: ConnectionId,
        gone: bool,
        state: &[u8],
        now: Now,
    ) -> bool {
        let session = session_of(client_id);
        let home = self.owner_of(self.log.partition_id(tenant, &session));
        if home == self.config.shard {
            let origin = Origin::Local(connection);
            let asker = Asker {
                origin,
                id: CommandId::None,
                tenant: tenant.clone(),
                client_id: client_id.clone(),
                rights: None,
            };
            return home::keep(self, &asker, &session, gone, state, now);
        }
        self.scratch.clear();
        let mut w = Writer(&mut self.scratch);
        w.u8(request::KEEP);
        put_connection(&mut w, connection);
        w.text(tenant).text(client_id).u8(u8::from(gone)).bytes(state);
        let told = self.mail.tell(home, &self.scratch);
        if told {
            self.wake(home);
        }
        told
    }

    /// `KEEP`, on the client's home. `false`: no room.
    pub(crate) fn handle_keep(&mut self, from: ShardId, r: &mut Reader<'_>, now: Now) -> bool {
        let connection = get_connection(r);
        let (tenant, client_id, gone, state) = (r.text(), r.text(), r.u8() == 1, r.bytes());
        let session = session_of(client_id);
        let origin = Origin::Remote(from, connection, 0);
        let asker =
            Asker { origin, id: CommandId::None, tenant: tenant.into(), client_id: client_id.into(), rights: None };
        home::keep(self, &asker, &session, gone, state, now)
    }

    /// Another connection wants this client's life: nothing this one sends counts any more, and its last words go home. `false`:
    /// no room.
    pub(crate) fn fence(&mut self, connection: ConnectionId) -> bool {
        if !self.has_effect_room(1) {
            return false;
        }
        self.end_life(connection);
        if let Some(client) = self.readers.clients.get_mut(connection) {
            client.fenced = true;
            client.life = None;
            self.effects.close(connection);
        }
        // Whoever is gone, or has not been told of its life, has had its last words, or will.
        true
    }
}

/// A life that a home grants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Opened<'a> {
    pub tenant: &'a str,
    pub client_id: &'a str,
    pub life: LifeId,
    pub state: &'a [u8],
}
