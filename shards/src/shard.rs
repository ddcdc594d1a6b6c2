//! The brain of one core. Only its reactor, or the simulator, calls it; both run this same code.
//!
//! ```text
//!  Input ──► handle ──► commands ──► log.append ──► poll_disk ──► … disk_done ──► deliver: walk what committed
//!  mail  ──► collect ──┘                                                             │
//!                                                    replies: poll_effect ◄──────────┴──► deliveries: Outbox
//! ```
//! **Contract.** One turn: `handle` each input, `collect`, `expire`, `poll_disk` until none, `deliver`, and
//! `poll_effect` until none before and after `deliver`. `handle` either takes an input whole or changes nothing
//! ([`Handled::Later`]): room for all that it may cause is proved first. Never nested, never from two threads.

use crate::behind::ReadFor;
use crate::clients::home::{self, Claimed, Homes};
use crate::clients::life::Lives;
use crate::command::{Command, Durability, QueueAsk};
use crate::commands::publish::NewParts;
use crate::commands::{
    Call, Outcome, acknowledge, commit, entries, groups, hello, history, mark, permit, ping, presence, publish, queues,
    resume, stream_append, stream_close, subscribe, subscribe_patterns, unsubscribe,
};
use crate::delivery::Readers;
use crate::delivery::patterns::PatternFeed;
use crate::effect::Effect;
use crate::effect_queue::EffectQueue;
use crate::entries::Entries;
use crate::entries::page::Pages;
use crate::entries::watch::Watches;
use crate::fair::Fair;
use crate::gather::{Gather, Page};
use crate::groups::Groups;
use crate::ids::{CommandId, ConnectionId, Epoch, Now, PartitionId, ShardId, SliceId, SliceSeq, masked};
use crate::input::{Handled, Input};
use crate::limits::{Limits, REPLY_BYTES_MAX};
use crate::mailbox::Mailboxes;
use crate::mailbox::codec::{Reader, Writer};
use crate::mailbox::message::{put_command, put_connection, put_id, request};
use crate::outbox::Outbox;
use crate::patience::is_local;
use crate::presence::Presence;
use crate::queues::Queues;
use crate::queues::dead::DeadPages;
use crate::queues::worker::Workers;
use crate::quota::Accounts;
use crate::refusal::{Refusal, Refused};
use crate::scan::Scans;
use crate::sessions::interest::Interests;
use crate::sessions::parked::{Known, ParkedCommands, Work};
use crate::sessions::waiters::Waiters;
use crate::sessions::{Asker, Origin, put_asker};
use crate::streams::leases::Leases;
use crate::streams::notices::Notices;
use crate::traces::{Stamps, Traces};
use crate::volatile::Volatiles;
use crate::walk::Batch;
use hashbrown::HashMap;
use std::collections::VecDeque;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use storage::catalog::PartitionSlot;
use storage::disk::{DiskDone, DiskOp};
use storage::ids::{LogSeq, SLICES};
use storage::log::Log;
use storage::log::ReadTicket;
use xxhash_rust::xxh3::Xxh3Default;

/// Blocked clients are tried again this often: room may come back without their own queue draining. Microseconds.
const UNBLOCK_EVERY_US: u64 = 100_000;

/// What waits for room in a peer's lane is tried again this often. Microseconds.
const RETRY_EVERY_US: u64 = 1000;

/// Retention by age looks at the clock this often, also where nothing is appended. Milliseconds.
const RETENTION_EVERY_MS: u64 = 60_000;

/// What a shard is told when it is made.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Which one it is.
    pub shard: ShardId,
    /// Of how many.
    pub shards: u16,
    /// Bounds.
    pub limits: Limits,
    /// Seeds the epochs of new sessions; from the operating system's randomness.
    pub seed: u64,
}

/// Counts for metrics and tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Live streams to a peer that were interrupted by a full lane.
    pub mail_missed: u64,
    /// Reads that met damage.
    pub damaged_reads: u64,
    /// Refusals given.
    pub refusals: u64,
}

/// A pattern feed that ended and whose source must be told.
pub(crate) struct PatternDetach {
    pub source: ShardId,
    pub connection: ConnectionId,
    pub generation: u32,
    pub tenant: Arc<str>,
}

/// One core's brain.
pub struct Shard {
    pub(crate) config: ShardConfig,
    pub(crate) log: Log,
    pub(crate) mail: Mailboxes,
    pub(crate) effects: EffectQueue,
    pub(crate) readers: Readers,
    pub(crate) interests: Interests,
    pub(crate) waiters: Waiters,
    pub(crate) parked: ParkedCommands,
    /// Partitions whose parked commands may go on.
    pub(crate) parked_ready: VecDeque<PartitionId>,
    pub(crate) reads: HashMap<ReadTicket, ReadFor, BuildHasherDefault<Xxh3Default>>,
    pub(crate) ready_reads: VecDeque<ReadTicket>,
    pub(crate) gathers: VecDeque<Gather>,
    pub(crate) pages: VecDeque<Page>,
    pub(crate) scans: Scans,
    pub(crate) pattern_detach_due: Vec<PatternDetach>,
    pub(crate) volatiles: Volatiles,
    pub(crate) notices: Notices,
    pub(crate) leases: Leases,
    pub(crate) homes: Homes,
    pub(crate) lives: Lives,
    pub(crate) presence: Presence,
    pub(crate) traces: Traces,
    pub(crate) fair: Fair,
    pub(crate) accounts: Accounts,
    /// Connections that wait for a permit of their tenant.
    pub(crate) pending: Vec<ConnectionId>,
    pub(crate) entries: Entries,
    pub(crate) watches: Watches,
    pub(crate) entry_pages: Pages,
    pub(crate) queues: Queues,
    pub(crate) workers: Workers,
    pub(crate) groups: Groups,
    pub(crate) dead_pages: DeadPages,
    /// Every record below was walked.
    pub(crate) announced: LogSeq,
    /// Last walked slice sequence of each slice.
    pub(crate) announced_slices: Box<[SliceSeq]>,
    pub(crate) batches: Vec<Batch>,
    pub(crate) scratch: Vec<u8>,
    pub(crate) reply_scratch: Vec<u8>,
    pub(crate) checked: publish::Checked,
    pub(crate) counters: Counters,
    pub(crate) first_peer: u16,
    pub(crate) pattern_generation: u32,
    pub(crate) random: u64,
    /// By which clients know epochs.
    epoch_mask: u64,
    unblock_at_us: u64,
    retry_at_us: u64,
    retention_at_ms: u64,
    unblock_scratch: Vec<ConnectionId>,
    pub(crate) stopped: bool,
}

/// What opening a partition came to.
pub(crate) enum Opened {
    Ready(PartitionSlot),
    Absent,
    Park,
    Refused(Refused),
}

impl Shard {
    /// Takes its log and its mailboxes.
    pub fn new(config: ShardConfig, mut log: Log, mail: Mailboxes) -> Self {
        let streaming = log.take_streaming();
        let announced = log.committed_seq();
        let announced_slices = (0..SLICES).map(|slice| log.slice_next(SliceId(slice)).saturating_sub(1)).collect();
        let mut queues = Queues::default();
        queues.recover(&log, &streaming);
        let mut groups = Groups::default();
        groups.recover(&log, &streaming);
        let durability = if log.config().sync { Durability::Disk } else { Durability::Memory };
        let mut shard = Self {
            effects: EffectQueue::new(config.limits.effects_max),
            readers: Readers::new(config.limits.event_frame_bytes_max(), config.limits.connections_per_shard_max),
            interests: Interests::default(),
            waiters: Waiters::new(durability),
            parked: ParkedCommands::default(),
            parked_ready: VecDeque::new(),
            reads: HashMap::default(),
            ready_reads: VecDeque::new(),
            gathers: VecDeque::new(),
            pages: VecDeque::new(),
            scans: Scans::default(),
            pattern_detach_due: Vec::new(),
            volatiles: Volatiles::default(),
            notices: Notices::default(),
            entries: Entries::recovered(&log, &streaming),
            watches: Watches::default(),
            entry_pages: Pages::default(),
            queues,
            workers: Workers::default(),
            groups,
            dead_pages: DeadPages::default(),
            leases: Leases::recovered(&log, streaming),
            homes: Homes::default(),
            lives: Lives::default(),
            presence: Presence::new(&config.limits),
            traces: Traces::new(log.next_seq()),
            fair: Fair::new(),
            accounts: Accounts::default(),
            pending: Vec::new(),
            announced,
            announced_slices,
            batches: (0..config.shards).map(|_| Batch::default()).collect(),
            scratch: Vec::new(),
            reply_scratch: Vec::new(),
            checked: publish::Checked::default(),
            counters: Counters::default(),
            first_peer: 0,
            pattern_generation: 0,
            random: config.seed,
            epoch_mask: 0,
            unblock_at_us: 0,
            retry_at_us: 0,
            retention_at_ms: 0,
            unblock_scratch: Vec::new(),
            stopped: false,
            config,
            log,
            mail,
        };
        shard.begin_census(Now { mono_us: 0, wall_ms: 0 });
        shard
    }

    // ---- handle: world to core ------------------------------------------------------------------------------------

    /// Takes one input, or changes nothing and says later.
    pub fn handle(&mut self, input: Input<'_>, now: Now) -> Handled {
        match input {
            Input::Connected { connection, principal } => {
                if !self.has_effect_room(1) {
                    return Handled::Later;
                }
                self.readers.clients.insert(connection, principal, now);
                self.enter(connection, now);
                Handled::Done
            }
            Input::Disconnected { connection } => {
                self.disconnect(connection, now);
                Handled::Done
            }
            Input::Drained { connection } => {
                self.readers.unblock(connection);
                Handled::Done
            }
            Input::Renewed { connection, rights } => {
                if let Some(client) = self.readers.clients.get_mut(connection) {
                    client.rights = rights.cloned();
                }
                Handled::Done
            }
            Input::Rejected { connection, id, refused } => self.rejected(connection, id, refused),
            Input::Command { connection, id, command } => self.command(connection, id, &command, now),
            Input::Overdue { connection, id, command, waited_ms } => {
                self.overdue(connection, id, &command, waited_ms, now)
            }
            Input::Quotas { quotas } => {
                self.change_quotas(quotas, now);
                Handled::Done
            }
        }
    }

    /// Carries a command out, where it is its connection's turn.
    pub(crate) fn take_command(
        &mut self,
        connection: ConnectionId,
        id: CommandId,
        command: &Command<'_>,
        now: Now,
    ) -> Handled {
        let Some(client) = self.readers.clients.get(connection) else { return Handled::Done };
        // An acknowledgement is never behind what it may make room for.
        let full = client.in_flight >= self.config.limits.client_commands_in_flight_max && !is_local(command);
        if !self.has_effect_room(2) || full {
            return Handled::Later;
        }
        if client.fenced {
            self.refuse_local(connection, id, Refused::field(Refusal::Fenced, ""));
            return Handled::Done;
        }
        if client.opening.as_ref().is_some_and(|opening| opening.client_id != client.client_id) {
            // Who it is from here on, its home has yet to say: until then nothing is done in anybody's name.
            return Handled::Later;
        }
        if let Some(rights) = &client.rights
            && let Err(refused) = permit::check(rights, command)
        {
            self.refuse_local(connection, id, refused);
            return Handled::Done;
        }
        match *command {
            Command::Hello { credit_events, credit_bytes } => {
                hello::run(self, connection, id, credit_events, credit_bytes);
            }
            Command::Ping => ping::run(self, connection, id, now),
            Command::Presence { session, ref act } => {
                return presence::begin(self, connection, id, session, act, now);
            }
            Command::Acknowledge { events, bytes } => acknowledge::run(self, connection, id, events, bytes, now),
            Command::Resume { claim, seen, position, attempt } => {
                return resume::run(self, connection, id, (claim, attempt), (seen, position), now);
            }
            // Never on a wire.
            Command::Open { .. } => {}
            Command::Auth { .. } => {
                self.refuse_local(connection, id, Refused::field(Refusal::BadCredential, "token"));
            }
            Command::Quota { .. } => self.refuse_local(connection, id, Refused::later(Refusal::Unavailable, 1000)),
            Command::Revoke { .. } => self.refuse_local(connection, id, Refused::field(Refusal::NoKeys, "type")),
            Command::Unsubscribe { session } => unsubscribe::session(self, connection, id, session),
            Command::UnsubscribePatterns => unsubscribe::patterns(self, connection, id),
            Command::Subscribe { session, from, policy } => {
                return subscribe::run(self, connection, id, session, from, policy, now);
            }
            Command::SubscribePatterns { patterns, from } => {
                return subscribe_patterns::run(self, connection, id, patterns, from);
            }
            Command::Entry { session, ask } => return entries::begin(self, connection, id, session, ask, now),
            Command::Queue { ref ask } => return queues::begin(self, connection, id, ask, now),
            Command::Group { ref ask } => return groups::begin(self, connection, id, ask, now),
            Command::Job { session, .. }
            | Command::Publish { session, .. }
            | Command::Commit { session, .. }
            | Command::Mark { session, .. }
            | Command::Markers { session, .. }
            | Command::StreamAppend { session, .. }
            | Command::StreamClose { session, .. }
            | Command::History { session, .. } => {
                let (tenant, client_id) = (client.tenant.clone(), client.client_id.clone());
                // Only the owner knows a stream's topic; all else was looked at above.
                let is_stream = matches!(command, Command::StreamAppend { .. } | Command::StreamClose { .. });
                let rights = client.rights.as_ref().filter(|_| is_stream).cloned();
                let asker = Asker { origin: Origin::Local(connection), id, tenant, client_id, rights };
                return self.session_command(asker, session, command, now);
            }
        }
        Handled::Done
    }

    /// A command of a session: here, or on its owner's shard.
    pub(crate) fn session_command(&mut self, asker: Asker, session: &str, command: &Command<'_>, now: Now) -> Handled {
        let Origin::Local(connection) = asker.origin else { return Handled::Done };
        let partition = self.log.partition_id(&asker.tenant, session);
        let owner = self.owner_of(partition);
        if owner != self.config.shard {
            return self.forward(owner, &asker, connection, command);
        }
        self.begin(connection);
        let call = Call { asker: &asker, partition, session, known: &Known::default(), now };
        let handled = match self.execute(call, command) {
            Outcome::Done => Handled::Done,
            Outcome::Later => Handled::Later,
            Outcome::Park => {
                let mut bytes = Vec::new();
                put_command(&mut Writer(&mut bytes), command);
                if self.park(asker, partition, Work::Command(bytes.into())) { Handled::Done } else { Handled::Later }
            }
        };
        if handled == Handled::Later {
            self.end(connection);
        }
        handled
    }

    pub(crate) fn forward(
        &mut self,
        owner: ShardId,
        asker: &Asker,
        connection: ConnectionId,
        command: &Command<'_>,
    ) -> Handled {
        let reply_bytes = match command {
            Command::History { .. } => self.page_reply_bytes(),
            Command::Open { room, .. } => *room as usize + REPLY_BYTES_MAX,
            Command::Presence { .. } => self.config.limits.presence.data_bytes_max + REPLY_BYTES_MAX,
            Command::Entry { .. } => self.entries_page_bytes_max() + REPLY_BYTES_MAX,
            Command::Queue { ask: QueueAsk::Dead { .. } } => self.entries_page_bytes_max() + REPLY_BYTES_MAX,
            _ => REPLY_BYTES_MAX,
        };
        self.scratch.clear();
        let mut w = Writer(&mut self.scratch);
        w.u8(request::FORWARD).u32(reply_bytes as u32);
        Stamps { sent_ns: self.traces.now_ns(), ..self.traces.stamps() }.put(&mut w);
        put_connection(&mut w, connection);
        put_id(&mut w, asker.id);
        put_asker(&mut w, asker);
        put_command(&mut w, command);
        let ask = match command {
            Command::Open { .. } => self.mail.ask_patiently(owner, self.scratch.len(), reply_bytes),
            _ => self.mail.ask(owner, self.scratch.len(), reply_bytes),
        };
        match ask {
            Some(ask) => {
                self.mail.send_ask(owner, ask, &self.scratch);
                self.wake(owner);
                self.begin(connection);
                Handled::Done
            }
            None => Handled::Later,
        }
    }

    /// Carries out a session command on its owner's shard.
    pub(crate) fn execute(&mut self, call: Call<'_>, command: &Command<'_>) -> Outcome {
        if !self.has_effect_room(1) {
            return Outcome::Later;
        }
        // Commands of a partition that has parked ones queue behind them; a parked one itself was taken out first.
        if self.parked.holds(call.partition) {
            return Outcome::Park;
        }
        self.execute_now(call, command)
    }

    pub(crate) fn execute_now(&mut self, call: Call<'_>, command: &Command<'_>) -> Outcome {
        match *command {
            Command::Publish { event, durability, .. } => publish::run(self, call, &event, durability),
            Command::Commit { events, markers, entries, complete, holds, if_next, .. } => {
                commit::run(self, call, &NewParts { events, markers, entries, complete, holds, if_next })
            }
            Command::Entry { ref ask, .. } => entries::run(self, call, ask),
            Command::Queue { ref ask } => queues::run(self, call, ask),
            Command::Group { ref ask } => groups::run(self, call, ask),
            Command::Markers { from, .. } => groups::markers(self, call, from),
            Command::Job { ref job, ref ask, .. } => queues::job::run(self, call, job, ask),
            Command::Mark { marker, .. } => mark::run(self, call, &marker),
            Command::StreamAppend { delta, durability, .. } => stream_append::run(self, call, &delta, durability),
            Command::StreamClose { stream, status, .. } => stream_close::run(self, call, stream, status),
            Command::History { from, limit, .. } => history::run(self, call, from, limit),
            Command::Open { claimed, attempt, since_us, room, .. } => {
                home::open(self, call, Claimed { life: claimed, attempt, since_us, room })
            }
            Command::Presence { ref act, .. } => presence::run(self, call, act),
            _ => Outcome::Done,
        }
    }

    fn disconnect(&mut self, connection: ConnectionId, now: Now) {
        self.end_life(connection);
        self.presence_disconnected(connection);
        self.entries_disconnected(connection);
        self.worker_disconnected(connection, now);
        if let Some(client) = self.readers.remove_client(connection) {
            if let Some(feed) = &client.patterns {
                self.detach_patterns(connection, &client.tenant, feed);
            }
            self.leave(client.place);
        }
    }

    pub(crate) fn detach_patterns(&mut self, connection: ConnectionId, tenant: &Arc<str>, feed: &PatternFeed) {
        let own = self.config.shard;
        self.scans.remove(own, connection);
        for source in (0..self.config.shards).map(ShardId).filter(|source| *source != own) {
            let (generation, tenant) = (feed.generation, tenant.clone());
            self.pattern_detach_due.push(PatternDetach { source, connection, generation, tenant });
        }
    }

    // ---- the clock ------------------------------------------------------------------------------------------------

    /// The edge has read its clock: what was done since it did so before has happened by now. Times only what is told about
    /// the past; nothing is decided by it.
    pub fn clock(&mut self, ns: u64) {
        self.traces.clock(ns, self.log.next_seq());
        self.mail.clock((ns / 1000) as u32);
    }

    /// What came at `came_ns` is decoded from now on; its commands follow as inputs. `None`: there are no more of them.
    pub fn decodes(&mut self, came_ns: Option<u64>) {
        // The command before this had stamps of its own.
        self.traces.appended(self.log.next_seq());
        self.traces.begin(came_ns.map_or(Stamps::default(), |came_ns| Stamps {
            came_ns,
            begun_ns: self.traces.now_ns(),
            ..Stamps::default()
        }));
    }

    /// The next command was decoded by this reading of the clock, and is the next input. `again`: it was decoded when it came,
    /// too, and has waited for room since.
    pub fn decoded(&mut self, ns: u64, again: bool) {
        self.clock(ns);
        let stamps = self.traces.stamps_mut();
        stamps.decoded_ns = ns;
        if again {
            (stamps.begun_ns, stamps.decoded_ns) = (stamps.came_ns, stamps.came_ns);
        }
    }

    /// That input was handled by this reading of the clock; what follows in the same frame is decoded from now on. Where nothing
    /// follows the next reading will do.
    pub fn handled(&mut self, ns: u64) {
        self.clock(ns);
        self.traces.stamps_mut().begun_ns = ns;
    }

    // ---- the disk -------------------------------------------------------------------------------------------------

    /// The next disk operation, until none.
    pub fn poll_disk(&mut self, now: Now) -> Option<DiskOp> {
        let op = self.log.poll_op(now.mono_us);
        if matches!(op, Some(DiskOp::Commit { .. })) {
            self.traces.closed(self.log.closed_seq());
        }
        op
    }

    /// What came of a disk operation.
    pub fn disk_done(&mut self, done: DiskDone, _now: Now) {
        self.log.handle_done(done);
        self.traces.committed(self.log.committed_seq());
        self.drain_log_events();
    }

    // ---- the turn -------------------------------------------------------------------------------------------------

    /// Work that time alone makes due.
    pub fn expire(&mut self, now: Now) -> usize {
        if now.wall_ms >= self.retention_at_ms || self.retention_at_ms > now.wall_ms + RETENTION_EVERY_MS {
            self.retention_at_ms = now.wall_ms + RETENTION_EVERY_MS;
            self.log.set_wall_ms(now.wall_ms);
        }
        if now.mono_us >= self.unblock_at_us && (!self.readers.blocked.is_empty() || self.lives.restore()) {
            self.unblock_at_us = now.mono_us + UNBLOCK_EVERY_US;
            self.retry_restores();
            let mut scratch = std::mem::take(&mut self.unblock_scratch);
            self.readers.unblock_all(&mut scratch);
            self.unblock_scratch = scratch;
        }
        0
    }

    /// Walks what was committed, goes on with parked commands, serves cursors that are behind with about `bytes`.
    /// Returns 0 only if nothing was done, and nothing can be done before something else happens.
    pub fn deliver(&mut self, now: Now, bytes: usize, out: &mut impl Outbox) -> usize {
        self.retry_at_us = now.mono_us + RETRY_EVERY_US;
        self.begin_shares();
        self.drain_log_events();
        self.readers.settle_attached(self.config.shard, self.announced, out);
        self.readers.pay_gaps(out);
        let mut done = self.announce(now, out);
        done += self.send_notices(out);
        done += self.send_volatiles(out);
        done += self.tell_missed();
        done += self.send_detaches();
        done += self.serve_behind(now, bytes, out);
        done += self.serve_homes(now);
        done += self.serve_lives(now);
        done += self.serve_leases(now);
        done += self.serve_entries(now);
        done += self.serve_watches(now, out);
        done += self.send_entry_pages(out);
        done += self.serve_declarations();
        done += self.serve_groups(now);
        done += self.serve_queues(now, out);
        done += self.send_dead_pages(out);
        done += self.serve_presence(now, out);
        done += self.serve_quotas(now);
        // Last: a subscription that resumes here is answered before anything is delivered to it.
        done += self.resume_parked(now);
        done
    }

    fn send_volatiles(&mut self, out: &mut impl Outbox) -> usize {
        let mut sent = 0;
        while let Some((partition, message)) = self.volatiles.pop() {
            let mail = crate::volatile::read(&mut Reader(&message[1..]));
            self.readers.offer_volatile(&mail, out);
            let mut peers: Vec<ShardId> = self.interests.sessions(partition).to_vec();
            for interest in self.interests.tenant(mail.tenant) {
                if interest.matches(mail.event.topic) && !peers.contains(&interest.shard) {
                    peers.push(interest.shard);
                }
            }
            for peer in peers {
                // No room: it is volatile, and the count shows the hole.
                if self.mail.tell(peer, &message) {
                    self.wake(peer);
                }
            }
            sent += 1;
        }
        sent
    }

    /// The next effect, until none.
    pub fn poll_effect(&mut self) -> Option<Effect<'_>> {
        self.effects.poll()
    }

    /// When a turn is due even if nothing happens, microseconds of [`Now::mono_us`].
    pub fn next_deadline_us(&self) -> Option<u64> {
        let unblock = (!self.readers.blocked.is_empty() || self.lives.restore()).then_some(self.unblock_at_us);
        // What found a peer's lane full is tried again: nobody tells a sleeping sender that there is room.
        let waits = !self.readers.queued.is_empty()
            || self.interests.has_missed()
            || !self.readers.detach_due.is_empty()
            || !self.pattern_detach_due.is_empty()
            || self.homes.wait()
            || self.lives.wait()
            || self.notices.wait()
            || self.leases.wait()
            || self.entries.wait()
            || self.watches.wait()
            || !self.entry_pages.is_empty()
            || self.queues.wait()
            || self.groups.wait()
            || self.workers.wait()
            || !self.dead_pages.is_empty();
        let unblock =
            if waits { Some(unblock.map_or(self.retry_at_us, |us| us.min(self.retry_at_us))) } else { unblock };
        let deadlines = [
            self.log.next_deadline_us(),
            unblock,
            self.lives.next_deadline_us(),
            self.leases.next_deadline_us(),
            self.entries.next_deadline_us(),
            self.watches.next_deadline_us(),
            self.queues_deadline_us(),
            self.groups.next_deadline_us(),
            self.presence_deadline_us(),
            self.quota_deadline_us(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Does mail wait in a lane for room that something else must make first? Such mail does not keep a shard awake; it
    /// is looked at again each turn.
    pub fn holds_mail(&self) -> bool {
        self.mail.holds_mail()
    }

    /// Sets the sleeping flag and looks at the lanes again; `false`: mail came, do not park.
    pub fn prepare_park(&self) -> bool {
        self.mail.prepare_park()
    }

    /// Clears the sleeping flag.
    pub fn unpark(&self) {
        self.mail.unpark();
    }

    /// Begins the end: everything appended is committed, then a checkpoint with a clean mark is written.
    pub fn stop(&mut self) {
        self.log.stop();
    }

    /// Is the end reached? Then the process may exit.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Clients know epochs by this mask; before anything is handled.
    pub fn show_epochs_by(&mut self, mask: u64) {
        self.epoch_mask = mask;
    }

    /// An epoch as clients know it: wherever it is not the edge that names it.
    pub(crate) fn shown(&self, epoch: Epoch) -> Epoch {
        masked(epoch, self.epoch_mask)
    }

    // ---- getters --------------------------------------------------------------------------------------------------

    /// Shard that owns a session.
    pub fn owner(&self, tenant: &str, session: &str) -> ShardId {
        self.owner_of(self.log.partition_id(tenant, session))
    }

    pub(crate) fn owner_of(&self, partition: PartitionId) -> ShardId {
        self.owner_of_slice(partition.slice())
    }

    pub(crate) fn owner_of_slice(&self, slice: SliceId) -> ShardId {
        ShardId(slice.0 % self.config.shards)
    }

    /// The log, for the disk executor and for metrics.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The log's memory, for the disk executor.
    pub fn log_mut(&mut self) -> &mut Log {
        &mut self.log
    }

    /// Counts since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Commands of this connection that were taken and have no reply yet.
    pub fn commands_in_flight(&self, connection: ConnectionId) -> u32 {
        self.readers.clients.get(connection).map_or(0, |client| client.in_flight)
    }

    /// Nothing is left to be said to another shard or kept of a client that is gone, but for mail that is on its way.
    pub fn is_settled(&self) -> bool {
        !self.mail.holds_mail() && !self.lives.wait() && !self.homes.wait()
    }

    /// Messages in the lanes to other shards, and in those from them.
    pub fn mail_waiting(&self) -> (usize, usize) {
        self.mail.waiting()
    }

    /// Connected clients.
    pub fn clients(&self) -> usize {
        self.readers.clients.len()
    }

    /// Bounds it runs under.
    pub fn limits(&self) -> &Limits {
        &self.config.limits
    }
}
