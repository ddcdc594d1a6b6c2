//! The node: its shards, each with its edge, and what must hold after each turn of any of them.

use super::drain::Drain;
use super::*;
use crate::edge::{Delivered, Door};
use shards::Shard;
use shards::command::{Claim, Command, Durability, EntryAsk, GroupAsk, JobAsk, PresenceAct, QueueAsk};
use shards::effect::{Effect, Reply};
use shards::ids::{ConnectionId, ShardId};
use shards::input::{Handled, Input};
use shards::refusal::Refusal;
use std::collections::BTreeMap;
use storage::disk::DiskDone;
use tidegate::wire::decode::Scratch;
use tidegate::wire::token::Tokens;

/// A process.
pub(super) struct Node {
    pub shards: Vec<Core>,
    /// Connections whose clients have left, and when the server notices.
    pub lingering: Vec<(usize, ConnectionId, u64)>,
    /// It takes no connection any more.
    pub stopping: bool,
    pub drain: Drain,
}

impl Node {
    /// Refusals given since the boot.
    pub fn refusals(&self) -> u64 {
        self.shards.iter().map(|core| core.shard.counters().refusals).sum()
    }

    /// What was delivered is committed at its owner.
    pub fn check_committed(&self, delivered: &[Delivered]) -> Checked {
        for Delivered { session, offset } in delivered {
            let owner = usize::from(self.shards[0].shard.owner(TENANT, session).0);
            let log = self.shards[owner].shard.log();
            let Some(slot) = log.resident(log.partition_id(TENANT, session)) else { continue };
            let committed = log.partition(slot).committed();
            if *offset >= committed {
                return Err(format!("{session}: offset {offset} was delivered, committed is {committed}"));
            }
        }
        Ok(())
    }
}

/// One shard with its edge.
pub(super) struct Core {
    pub shard: Shard,
    pub doors: BTreeMap<ConnectionId, Door>,
    pub scratch: Scratch,
    pub tokens: Tokens,
    pub answers: Vec<Answer>,
    pub lounge: guests::Lounge,
    /// Connections whose queue drained, connections that broke.
    pub drained: Vec<ConnectionId>,
    pub gone: Vec<ConnectionId>,
    pub asleep: bool,
    pub woken: bool,
    pub slots_free: Vec<u32>,
    /// It gets no turn before.
    pub stalled_until_us: u64,
    /// What it had committed after its last turn.
    pub committed: u64,
    /// A job of it is late.
    pub late: Option<duties::Late>,
}

#[derive(Default)]
pub(super) struct Effects {
    pub wakes: Vec<ShardId>,
    pub poisoned: Option<storage::disk::DiskFault>,
    /// Connections that had to let go of a life.
    pub replaced: u64,
    /// Refusals that were told, also to clients that have left.
    pub refused: Vec<Refusal>,
}

impl Core {
    pub fn has_reason(&self, now: Now) -> bool {
        self.woken
            || !self.answers.is_empty()
            || !self.drained.is_empty()
            || !self.gone.is_empty()
            || self.doors.values().any(|door| !door.backlog.is_empty())
            || self.shard.next_deadline_us().is_some_and(|deadline| deadline <= now.mono_us)
    }

    pub fn wake_up(&mut self) {
        if self.asleep {
            self.shard.unpark();
            self.asleep = false;
        }
        self.woken = false;
    }

    /// Answers of the disk, ends of connections, drained queues.
    pub fn reap(&mut self, now: Now) -> usize {
        let mut work = 0;
        for answer in std::mem::take(&mut self.answers) {
            let done = match answer {
                Answer::Commit { done, .. } | Answer::Job { done } => done,
                Answer::Read { done, slot, bytes } => {
                    if let DiskDone::Read { result: Ok(_), .. } = done {
                        self.shard.log_mut().read_buffer_mut(slot)[..bytes.len()].copy_from_slice(&bytes);
                    }
                    done
                }
            };
            self.shard.disk_done(done, now);
            work += 1;
        }
        let gone = std::mem::take(&mut self.gone);
        for connection in gone {
            match self.shard.handle(Input::Disconnected { connection }, now) {
                Handled::Done => self.slots_free.push(connection.slot),
                Handled::Later => self.gone.push(connection),
            }
            work += 1;
        }
        for connection in std::mem::take(&mut self.drained) {
            if self.doors.contains_key(&connection)
                && self.shard.handle(Input::Drained { connection }, now) == Handled::Later
            {
                self.drained.push(connection);
            }
            work += 1;
        }
        work
    }

    /// Input of all connections that are not told to wait, in an order of chance; then of those that are, as the shard says.
    pub fn read(&mut self, now: Now, patience_us: u64, net: &mut Random, counts: &mut Counts) -> usize {
        let mut ready: Vec<ConnectionId> =
            self.doors.iter().filter(|(_, door)| door.has_input()).map(|(id, _)| *id).collect();
        let mut work = 0;
        while !ready.is_empty() {
            let connection = ready.swap_remove(net.index(ready.len()));
            if self.doors.get(&connection).is_some_and(|door| !door.is_held()) {
                work += self.work(connection, now, patience_us, counts);
            }
        }
        work += self.lounge.read(&mut self.shard, now, counts);
        while let Some(connection) = self.shard.next_in_line() {
            work += match self.lounge.serve(connection, &mut self.shard, now, counts) {
                Some(done) => done,
                None => self.work(connection, now, patience_us, counts),
            };
        }
        assert!(!self.shard.idles_beside_line(), "the core is given to whoever wants it, however few they are");
        work
    }

    fn work(&mut self, connection: ConnectionId, now: Now, patience_us: u64, counts: &mut Counts) -> usize {
        let Some(door) = self.doors.get_mut(&connection) else { return 0 };
        let (shard, tokens) = (&mut self.shard, &self.tokens);
        let progress = door.work(&mut self.scratch, now, patience_us, |id, command, overdue_ms| {
            let mut token = None;
            let admitted = command.and_then(|command| tokens.admit(TENANT, command, now.wall_ms, &mut token));
            let (input, name) = match admitted {
                Ok(command) => {
                    let input = match overdue_ms {
                        None => Input::Command { connection, id, command },
                        Some(waited_ms) => Input::Overdue { connection, id, command, waited_ms },
                    };
                    (input, name_of(&command))
                }
                Err(refused) => (Input::Rejected { connection, id, refused }, "not well formed"),
            };
            let taken = shard.handle(input, now) == Handled::Done;
            counts.add(if taken { "command taken" } else { "command told to wait" }, name);
            taken
        });
        usize::from(progress)
    }

    pub fn effects(&mut self, options: &Options, now: Now, effects: &mut Effects) -> Checked<usize> {
        let mut doors = Doors::new(&mut self.doors, &options.limits, now);
        let mut work = 0;
        while let Some(effect) = self.shard.poll_effect() {
            work += 1;
            match effect {
                Effect::Reply { connection, id, reply } => {
                    if let Reply::Refused(refused) = &reply {
                        effects.refused.push(refused.refusal);
                    }
                    doors.reply(connection, &id, &reply);
                }
                Effect::Replaced { connection } => {
                    effects.replaced += 1;
                    doors.replaced(connection);
                }
                Effect::TurnedAway { connection } => {
                    if self.lounge.turned_away(connection) {
                        self.gone.push(connection);
                    }
                }
                Effect::Wake { shard } => effects.wakes.push(shard),
                Effect::Poisoned { fault } => effects.poisoned = Some(fault),
            }
        }
        doors.finish()?;
        Ok(work)
    }

    /// What holds after each turn: committed never falls and never passes the tail, memory stays within its bounds.
    pub fn check(&mut self, options: &Options) -> Checked {
        let log = self.shard.log();
        let (committed, next) = (log.committed_seq(), log.next_seq());
        if committed < self.committed || committed > next {
            return Err(format!("committed {committed} after {}, next {next}", self.committed));
        }
        self.committed = committed;
        let stats = log.stats();
        if stats.partitions > options.log.partitions_resident_max
            || stats.segments_unindexed > options.log.segments_unindexed_max
        {
            return Err(format!("beyond the plan: {stats:?}"));
        }
        for partition in log.residents() {
            let (first, committed, tail) = (partition.first_offset(), partition.committed(), partition.tail());
            let marker = partition.markers().iter().map(|marker| marker.offset).max().unwrap_or(0);
            if committed > tail || first > tail || marker > tail {
                return Err(format!(
                    "{}: first {first}, committed {committed}, tail {tail}, a marker at {marker}",
                    partition.session()
                ));
            }
        }
        let most = options.limits.connection_send_bytes_max + crate::edge::OVER_BYTES_MAX;
        match self.doors.values().find(|door| door.out.len() > most) {
            Some(door) => Err(format!("{} bytes wait in a connection, {most} may", door.out.len())),
            None => Ok(()),
        }
    }
}

fn name_of(command: &Command<'_>) -> &'static str {
    match command {
        Command::Hello { .. } => "hello",
        Command::Publish { durability: Durability::Disk, .. } => "publish",
        Command::Publish { durability: Durability::Memory, .. } => "publish, memory",
        Command::Publish { durability: Durability::Volatile, .. } => "publish, volatile",
        Command::Commit { .. } => "commit",
        Command::Subscribe { .. } => "subscribe to a session",
        Command::SubscribePatterns { .. } => "subscribe to patterns",
        Command::Unsubscribe { .. } => "unsubscribe from a session",
        Command::UnsubscribePatterns => "unsubscribe from patterns",
        Command::Acknowledge { .. } => "ack",
        Command::Mark { marker, .. } if marker.lease.is_some() => "group.ack",
        Command::Mark { .. } => "mark",
        Command::History { .. } => "history",
        Command::Resume { claim: Claim::New, .. } => "resume: a new life",
        Command::Resume { .. } => "resume: a token",
        Command::Open { .. } => "open, which is on no wire",
        Command::StreamAppend { .. } => "append to a stream",
        Command::StreamClose { .. } => "close a stream",
        Command::Ping => "ping",
        Command::Auth { .. } => "auth",
        Command::Group { ask } => match ask {
            GroupAsk::Declare { .. } => "group.declare",
            GroupAsk::Drop { .. } => "group.drop",
            GroupAsk::Join { credit: 0, .. } => "group.leave",
            GroupAsk::Join { .. } => "group.join",
            GroupAsk::List { .. } => "group.list",
        },
        Command::Markers { .. } => "markers.list",
        Command::Queue { ask } => match ask {
            QueueAsk::Declare(_) => "queue.declare",
            QueueAsk::Drop { .. } => "queue.drop",
            QueueAsk::List { .. } => "queue.list",
            QueueAsk::Pull { .. } => "pull",
            QueueAsk::Dead { .. } => "dead.list",
        },
        Command::Job { ask, .. } => match ask {
            JobAsk::Fail { .. } => "job.fail",
            JobAsk::Extend { .. } => "job.extend",
            JobAsk::Progress { .. } => "job.progress",
            JobAsk::Redrive => "dead.redrive",
            JobAsk::Drop => "dead.drop",
        },
        Command::Entry { ask, .. } => match ask {
            EntryAsk::Set(entry) if entry.value.is_some() => "entry.put",
            EntryAsk::Set(_) => "entry.delete",
            EntryAsk::Get { .. } => "entry.get",
            EntryAsk::List { .. } => "entry.list",
            EntryAsk::Watch { .. } => "entry.watch",
            EntryAsk::Unwatch { .. } => "entry.unwatch",
            EntryAsk::Fetch { .. } => "entry.fetch, which is on no wire",
        },
        Command::Revoke { .. } => "revoke",
        Command::Quota { .. } => "quota",
        Command::Presence { act, .. } => match act {
            PresenceAct::Enter { .. } => "presence.enter",
            PresenceAct::Update { .. } => "presence.update",
            PresenceAct::Leave => "presence.leave",
            PresenceAct::Read { .. } => "read",
            PresenceAct::Watch(_) => "watch",
            PresenceAct::Unwatch(_) => "unwatch",
        },
    }
}
