//! The world: one node of several shards, its disk, its clients and the network between, on one thread.
//!
//! ```text
//!   step:  a turn of some shard · bytes up or down some connection · some client acts · time passes
//!          · now and then: a crash and a boot, a broken connection, a full disk, a jump of the wall clock
//!   run:   safety   faults on, clients publish
//!          liveness faults off, all come to rest within a bound
//!          audit    a client that was never there reads everything from the start
//! ```
//! A shard sleeps when a turn did nothing and the park protocol lets it, and then runs only for bytes, disk answers, its
//! own deadline or a peer's wake: a lost wake-up shows as a world that does not come to rest.

use super::boot;
use super::client::{Client, Role};
use super::disk::{Answer, Counts, Faults, SimDisk};
use super::edge::{Door, Doors};
use super::options::Options;
use super::oracle::{Checked, Key, Oracle};
use super::random::Random;
use super::trace::Trace;
use shards::effect::Effect;
use shards::ids::{ConnectionId, Now, ShardId};
use shards::input::{Handled, Input, Principal};
use shards::{Shard, ShardConfig, mailbox};
use std::collections::BTreeMap;
use storage::disk::{DiskDone, DiskOp};
use storage::log::Log;
use tidegate::wire::decode::Scratch;

/// Tenant of everybody.
const TENANT: &str = "default";
/// Steps of the liveness phase in which nothing is delivered before the world counts as stuck: a reader with a credit of one
/// event takes its time.
const QUIET_STEPS_MAX: u64 = 200_000;

/// A run in progress.
pub struct World {
    options: Options,
    schedule: Random,
    net: Random,
    workload: Random,
    disk: SimDisk,
    oracle: Oracle,
    clients: Vec<Client>,
    /// Where each client is connected.
    links: Vec<Option<Link>>,
    node: Option<Node>,
    now_us: u64,
    wall_offset_ms: i64,
    generation: u32,
    boots: u32,
    /// Events whose answer was lost with a connection of this node, and its refusals when that began.
    untold: Vec<(String, Key, u64)>,
    full_until_us: u64,
    calm: bool,
    /// A promise broken in bytes that arrived while the node died.
    broken_late: Option<String>,
    /// What happened.
    pub trace: Trace,
    /// Counted for the report.
    pub counts: Counts,
}

#[derive(Clone, Copy)]
struct Link {
    shard: usize,
    connection: ConnectionId,
    /// Refusals the node had given when the connection was made.
    refusals: u64,
}

struct Node {
    shards: Vec<Core>,
}

impl Node {
    /// Refusals given since the boot.
    fn refusals(&self) -> u64 {
        self.shards.iter().map(|core| core.shard.counters().refusals).sum()
    }
}

/// One shard with its edge.
struct Core {
    shard: Shard,
    doors: BTreeMap<ConnectionId, Door>,
    scratch: Scratch,
    answers: Vec<Answer>,
    /// Connections whose queue drained, connections that broke.
    drained: Vec<ConnectionId>,
    gone: Vec<ConnectionId>,
    asleep: bool,
    woken: bool,
    slots_free: Vec<u32>,
}

impl World {
    /// The world of a seed, before its first boot.
    pub fn new(seed: u64, print: bool, no_crash: bool) -> Self {
        let mut options = Options::draw(seed);
        if no_crash {
            options.spare_crashes();
        }
        let clients: Vec<Client> =
            options.roles.iter().enumerate().map(|(i, role)| Client::new(i as u32, role.clone())).collect();
        let mut oracle = Oracle::default();
        oracle.retention = options.log.retention_bytes > 0;
        let mut world = Self {
            schedule: Random::new(seed, "schedule"),
            net: Random::new(seed, "net"),
            workload: Random::new(seed, "workload"),
            disk: SimDisk::new(Random::new(seed, "disk"), options.faults),
            oracle,
            links: vec![None; clients.len()],
            clients,
            node: None,
            now_us: 1_000_000,
            wall_offset_ms: 1_700_000_000_000,
            generation: 0,
            boots: 0,
            untold: Vec::new(),
            full_until_us: 0,
            calm: false,
            broken_late: None,
            trace: Trace::new(print),
            counts: Counts::new(),
            options,
        };
        let text = format!("{:?}", world.options);
        world.say(format_args!("{text}"));
        world
    }

    /// Runs the three phases.
    pub fn run(&mut self, steps: u64) -> Checked {
        self.boot()?;
        for _ in 0..steps {
            self.step()?;
        }
        self.come_to_rest("after the faults")?;
        self.audit()?;
        let counts = std::mem::take(&mut self.disk.counts);
        for (what, count) in counts {
            self.count(what, count);
        }
        let fingerprint = self.disk.fingerprint();
        self.say(format_args!("end, disk {fingerprint:016x}"));
        Ok(())
    }

    fn now(&self) -> Now {
        Now { mono_us: self.now_us, wall_ms: (self.wall_offset_ms + (self.now_us / 1000) as i64) as u64 }
    }

    fn say(&mut self, what: std::fmt::Arguments<'_>) {
        self.trace.say(self.now_us, what);
    }

    fn count(&mut self, what: &'static str, count: u64) {
        *self.counts.entry(what).or_default() += count;
    }

    fn step(&mut self) -> Checked {
        if let Some(why) = self.broken_late.take() {
            return Err(why);
        }
        self.pass_time();
        self.collect_answers()?;
        if self.calm {
            return self.ordinary_step();
        }
        let o = &self.options;
        let (crash, break_, full, jumps) = (o.crash_every, o.break_every, o.full_every, o.clock_jumps);
        if crash > 0 && self.schedule.below(crash) == 0 {
            self.crash("by chance");
            return self.boot();
        }
        if self.schedule.below(break_) == 0 {
            let client = self.schedule.index(self.clients.len());
            self.break_link(client, "by chance");
        }
        if full > 0 && self.schedule.below(full) == 0 {
            self.disk.set_full(true);
            self.full_until_us = self.now_us + self.schedule.delay(20_000);
            self.say(format_args!("disk full"));
        }
        if jumps && self.schedule.below(3000) == 0 {
            let jump = self.schedule.between(0, 8000) as i64 - 4000;
            self.wall_offset_ms += jump;
            self.say(format_args!("wall clock jumps {jump} ms"));
        }
        self.ordinary_step()
    }

    fn ordinary_step(&mut self) -> Checked {
        if self.disk.is_full() && (self.calm || self.now_us >= self.full_until_us) {
            self.disk.set_full(false);
            self.say(format_args!("disk has space"));
        }
        match self.schedule.below(100) {
            0..=44 => self.turn_somewhere(),
            45..=69 => self.move_bytes_down(),
            70..=84 => {
                self.move_bytes_up();
                Ok(())
            }
            _ => {
                self.client_acts();
                Ok(())
            }
        }
    }

    fn pass_time(&mut self) {
        self.now_us += match self.schedule.below(2000) {
            0 => self.schedule.below(300_000),
            // At rest only the disk may have something to do.
            1..=40 if self.calm => self.disk.next_due_us().map_or(0, |due| due.saturating_sub(self.now_us)),
            _ => self.schedule.below(self.options.step_us * 2 + 1),
        };
    }

    /// Hands what the disk finished to its shard, to be seen on that shard's next turn.
    fn collect_answers(&mut self) -> Checked {
        while let Some((shard, answer)) = self.disk.poll(self.now_us) {
            let Some(core) = self.node.as_mut().and_then(|node| node.shards.get_mut(usize::from(shard))) else {
                continue;
            };
            if let Answer::Commit { start, bytes, .. } = &answer
                && core.shard.log().arena(*start, bytes.len()) != &bytes[..]
            {
                return Err(format!("shard {shard} changed a group that was with the disk"));
            }
            core.answers.push(answer);
        }
        Ok(())
    }

    // ---- crash and boot ----------------------------------------------------------------------------------------------

    fn boot(&mut self) -> Checked {
        let before = self.options.shards;
        if self.boots > 0 && self.options.reshard && self.schedule.chance(400) {
            self.options.shards = self.schedule.between(1, 8) as u16;
        }
        self.boots += 1;
        // A crash during recovery, some times in a row.
        while !self.calm && self.schedule.chance(200) {
            let writes = self.schedule.below(12);
            let cut = boot::recover(&mut self.disk, &self.options, Some(writes));
            match cut {
                Ok(None) => {
                    self.say(format_args!("crash during recovery, after {writes} changes"));
                    self.count("crashes during recovery", 1);
                    self.fail_disk();
                }
                Ok(Some(_)) => break,
                Err(why) => return Err(why),
            }
        }
        let recovered =
            boot::recover(&mut self.disk, &self.options, None)?.ok_or("a recovery without a crash did not finish")?;
        let (boots, shards) = (self.boots, self.options.shards);
        self.say(format_args!("boot {boots} with {shards} shards, before {before}"));
        let mails = mailbox::mesh(self.options.shards, &self.options.limits);
        let mut shards = Vec::new();
        self.count("torn tails cut", recovered.report.torn() as u64);
        for (index, (recovered, mailboxes)) in recovered.logs.into_iter().zip(mails).enumerate() {
            let config = ShardConfig {
                shard: ShardId(index as u16),
                shards: self.options.shards,
                limits: self.options.limits.clone(),
                seed: self.schedule.any(),
            };
            let log = Log::new(self.options.log, recovered);
            shards.push(Core {
                shard: Shard::new(config, log, mailboxes),
                doors: BTreeMap::new(),
                scratch: Scratch::new(&self.options.limits),
                answers: Vec::new(),
                drained: Vec::new(),
                gone: Vec::new(),
                asleep: false,
                woken: false,
                slots_free: (0..self.options.limits.connections_per_shard_max as u32).rev().collect(),
            });
        }
        self.node = Some(Node { shards });
        self.count("boots", 1);
        Ok(())
    }

    fn crash(&mut self, why: &str) {
        self.say(format_args!("crash {why}"));
        self.count("crashes", 1);
        for client in 0..self.clients.len() {
            // What the server had sent may still arrive, or not.
            if let Some(link) = self.links[client].take() {
                let last = self.net.chance(500);
                if let Some(door) = self.node.as_mut().and_then(|n| n.shards[link.shard].doors.remove(&link.connection))
                    && last
                    && !door.out.is_empty()
                {
                    let most = self.net.index(door.out.len() + 1);
                    let wall = self.now().wall_ms;
                    // A broken promise in these bytes is reported when the next step checks the oracle again.
                    let seen = self.clients[client].receive(&door.out[..most], &mut self.oracle, &mut self.net, wall);
                    if let Err(why) = seen {
                        self.broken_late.get_or_insert(why);
                    }
                }
                self.lose(client, link);
            }
        }
        self.forget_node();
        self.fail_disk();
        self.disk.set_full(false);
    }

    /// The process died, or the power failed with it.
    fn fail_disk(&mut self) {
        if self.schedule.chance(300) {
            self.disk.kill();
            self.count("deaths with power", 1);
        } else {
            self.disk.crash();
            self.count("power cuts", 1);
        }
        let fingerprint = self.disk.fingerprint();
        self.say(format_args!("disk {fingerprint:016x}"));
    }

    // ---- network -----------------------------------------------------------------------------------------------------

    fn break_link(&mut self, client: usize, why: &str) {
        let Some(link) = self.links[client].take() else { return };
        self.say(format_args!("connection of c{client} breaks {why}"));
        if let Some(node) = &mut self.node {
            let core = &mut node.shards[link.shard];
            if core.doors.remove(&link.connection).is_some() {
                core.gone.push(link.connection);
            }
        }
        self.lose(client, link);
    }

    /// What the client was waiting for may still be refused, and nobody will tell: its order is then no promise.
    fn lose(&mut self, client: usize, link: Link) {
        for (session, key) in self.clients[client].disconnected() {
            self.untold.push((session, key, link.refusals));
        }
    }

    /// The node is gone, or all has come to rest: whoever lost an answer while refusals were given may have been refused.
    fn forget_node(&mut self) {
        let refusals = self.node.as_ref().map_or(0, Node::refusals);
        for (session, key, before) in std::mem::take(&mut self.untold) {
            if refusals > before {
                self.oracle.refused(&session, key);
            }
        }
        self.node = None;
    }

    fn connect(&mut self, client: usize) {
        let now = self.now();
        let Some(node) = &mut self.node else { return };
        let name = self.clients[client].name();
        let role = &self.clients[client].role;
        let named = role.publishes.first().or(role.follows.first());
        let index = match named.filter(|_| self.net.chance(self.options.at_owner)) {
            Some(session) => usize::from(node.shards[0].shard.owner(TENANT, session).0),
            None => self.net.index(node.shards.len()),
        };
        let core = &mut node.shards[index];
        let Some(slot) = core.slots_free.pop() else { return };
        self.generation += 1;
        let connection = ConnectionId { slot, generation: self.generation };
        let principal = Principal { tenant: TENANT, client_id: &name };
        core.wake_up();
        if core.shard.handle(Input::Connected { connection, principal }, now) == Handled::Later {
            core.slots_free.push(slot);
            return;
        }
        core.woken = true;
        let door = Door::new(&name, index as u16, &self.options.limits);
        core.doors.insert(connection, door);
        let refusals = node.refusals();
        self.links[client] = Some(Link { shard: index, connection, refusals });
        self.trace.say(self.now_us, format_args!("{name} connects to shard {index} as {connection:?}"));
        self.clients[client].connected(&mut self.workload, &mut self.net);
    }

    fn chunk_bytes_max(&self) -> u64 {
        // Rest is reached in a bounded number of steps, so bytes may not trickle then.
        if self.calm { 64 << 10 } else { self.options.chunk_bytes_max }
    }

    fn move_bytes_up(&mut self) {
        let client = self.net.index(self.clients.len());
        let Some(link) = self.links[client] else { return };
        let most = self.net.between(1, self.chunk_bytes_max()) as usize;
        let outgoing = &mut self.clients[client].outgoing;
        let rest = outgoing.split_off(most.min(outgoing.len()));
        let bytes = std::mem::replace(outgoing, rest);
        if bytes.is_empty() {
            return;
        }
        if self.trace.prints() {
            let texts = std::mem::take(&mut self.clients[client].said);
            for text in texts {
                self.trace.note(self.now_us, format_args!("c{client} ► {text}"));
            }
        }
        if let Some(core) = self.node.as_mut().map(|node| &mut node.shards[link.shard])
            && let Some(door) = core.doors.get_mut(&link.connection)
        {
            door.backlog.extend_from_slice(&bytes);
        }
    }

    fn move_bytes_down(&mut self) -> Checked {
        let client = self.net.index(self.clients.len());
        let Some(link) = self.links[client] else { return Ok(()) };
        if self.clients[client].role.slow && !self.calm && !self.net.chance(30) {
            return Ok(());
        }
        let most = self.net.between(1, self.chunk_bytes_max().max(512)) as usize;
        let Some(core) = self.node.as_mut().map(|node| &mut node.shards[link.shard]) else { return Ok(()) };
        let Some(door) = core.doors.get_mut(&link.connection) else { return Ok(()) };
        let (bytes, drained) = door.take(most, &self.options.limits);
        let ended = door.closing && door.out.is_empty();
        if drained {
            core.drained.push(link.connection);
        }
        self.trace.bytes(&bytes);
        if self.trace.prints() && !bytes.is_empty() {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            self.trace.note(self.now_us, format_args!("c{client} ◄ {text}"));
        }
        let wall = self.now().wall_ms;
        self.clients[client].receive(&bytes, &mut self.oracle, &mut self.net, wall)?;
        if ended {
            let code = self.clients[client].closed_with;
            self.break_link(client, &format!("by the server, {code:?}"));
        }
        Ok(())
    }

    fn client_acts(&mut self) {
        let client = self.workload.index(self.clients.len());
        let now = self.now();
        if self.links[client].is_none() {
            if self.calm || self.net.chance(300) {
                self.connect(client);
            }
            return;
        }
        let most = if self.calm { 1 } else { self.workload.between(1, 3) };
        for _ in 0..most {
            self.clients[client].act(&mut self.workload, &mut self.net, &mut self.oracle, now.wall_ms, self.calm);
        }
    }

    // ---- the turn ----------------------------------------------------------------------------------------------------

    fn turn_somewhere(&mut self) -> Checked {
        let Some(node) = &self.node else { return Ok(()) };
        let index = self.schedule.index(node.shards.len());
        self.turn(index)
    }

    /// One turn of one shard, in the reactor's order.
    fn turn(&mut self, index: usize) -> Checked {
        let now = self.now();
        let deliver_bytes = self.options.deliver_bytes;
        let Some(node) = &mut self.node else { return Ok(()) };
        let core = &mut node.shards[index];
        if core.asleep && !core.has_reason(now) {
            return Ok(());
        }
        core.wake_up();
        let mut work = core.reap(now);
        work += core.read(now, &mut self.net);
        let mut doors = Doors::new(&mut core.doors, &self.options.limits);
        work += core.shard.collect(now, &mut doors);
        let mut frames = doors.finish()?;
        work += core.shard.expire(now);
        let mut effects = Effects::default();
        work += core.effects(&self.options, &mut effects)?;
        while let Some(op) = core.shard.poll_disk(now) {
            work += 1;
            let log = core.shard.log();
            if let DiskOp::Read { .. } = op {
                *self.counts.entry("cold reads").or_default() += 1;
            }
            self.disk.submit(index as u16, op, self.now_us, |start, len| log.arena(start, len));
        }
        work += core.effects(&self.options, &mut effects)?;
        let mut doors = Doors::new(&mut core.doors, &self.options.limits);
        work += core.shard.deliver(now, deliver_bytes, &mut doors);
        frames += doors.finish()?;
        work += core.effects(&self.options, &mut effects)?;
        if work == 0 && core.shard.prepare_park() {
            core.asleep = true;
        }
        *self.counts.entry("turns").or_default() += 1;
        *self.counts.entry("frames delivered").or_default() += frames;
        self.trace.say(self.now_us, format_args!("turn of shard {index}, work {work}"));
        for peer in effects.wakes {
            node.shards[usize::from(peer.0)].woken = true;
        }
        if let Some(fault) = effects.poisoned {
            self.count("poisoned logs", 1);
            self.crash(&format!("for {fault:?}"));
            return self.boot();
        }
        Ok(())
    }

    // ---- the end -----------------------------------------------------------------------------------------------------

    fn come_to_rest(&mut self, when: &str) -> Checked {
        self.calm = true;
        self.disk.set_faults(Faults { delay_us: self.options.faults.delay_us, ..Faults::default() });
        self.say(format_args!("calm"));
        let mut why = String::new();
        let (mut quiet, mut delivered) = (0, 0);
        while quiet < QUIET_STEPS_MAX {
            self.step()?;
            quiet += 1;
            if quiet % 64 == 0 {
                match self.unrest() {
                    None => return Ok(()),
                    Some(unrest) => why = unrest,
                }
                let now = self.counts.get("frames delivered").copied().unwrap_or_default();
                if now > delivered {
                    (quiet, delivered) = (0, now);
                }
            }
        }
        Err(format!("no rest {when}: {why}"))
    }

    fn unrest(&self) -> Option<String> {
        for (client, link) in self.clients.iter().zip(&self.links) {
            if let Some(why) = client.unrest(&self.oracle) {
                return Some(format!("{}: {why}", client.name()));
            }
            if !client.outgoing.is_empty() {
                return Some(format!("{} has bytes to send", client.name()));
            }
            let Some(link) = link else { continue };
            let door = self.node.as_ref().and_then(|n| n.shards[link.shard].doors.get(&link.connection));
            if door.is_some_and(|door| !door.out.is_empty() || door.has_input()) {
                return Some(format!("{} has bytes in its connection", client.name()));
            }
        }
        None
    }

    /// A client that was never there reads everything; then each follower is compared with it.
    fn audit(&mut self) -> Checked {
        let sessions = self.oracle.names();
        let index = self.clients.len();
        let role = Role { follows: sessions.clone(), ..Role::default() };
        self.clients.push(Client::new(index as u32, role));
        self.links.push(None);
        self.come_to_rest("at the audit")?;
        // A crash at rest must lose nothing either.
        if self.schedule.chance(500) {
            self.crash("at rest");
            self.boot()?;
            self.clients[index].audit(sessions);
            self.come_to_rest("at the second audit")?;
        }
        self.forget_node();
        let follows = std::mem::take(&mut self.clients[index].follows);
        for (session, follow) in &follows {
            let checked = self.oracle.audit(session, follow.first, &follow.events, &follow.gaps);
            checked.map_err(|why| format!("{why}\n{}", self.oracle.describe(session)))?;
        }
        self.count("events audited", follows.values().map(|f| f.events.len() as u64).sum());
        for client in &self.clients[..index] {
            for (session, follow) in &client.follows {
                // Nothing was ever sent into a session without an audit.
                let Some(audited) = follows.get(session) else { continue };
                let gone = |offset: u64| follow.gaps.iter().any(|(from, to)| (*from..*to).contains(&offset));
                let expected: Vec<_> =
                    audited.events.iter().filter(|(offset, _)| *offset >= follow.first && !gone(*offset)).collect();
                let got: Vec<_> = follow.events.iter().filter(|(offset, _)| *offset >= audited.first).collect();
                let got: Vec<_> = got.into_iter().filter(|(o, _)| audited.events.iter().any(|(a, _)| a == o)).collect();
                if expected != got {
                    return Err(format!(
                        "{} saw {} events of {session}, there are {}",
                        client.name(),
                        got.len(),
                        expected.len()
                    ));
                }
            }
            let Some(feed) = &client.feed else { continue };
            if let Some(missing) = client.missing(feed, &self.oracle).filter(|_| !self.oracle.retention) {
                return Err(format!("{} (feed {:?}) missed {missing:?}", client.name(), client.role.patterns));
            }
        }
        Ok(())
    }

    /// Names of answers and refusals the clients met, for the report.
    pub fn client_counts(&self) -> BTreeMap<String, u64> {
        let mut all: BTreeMap<String, u64> = BTreeMap::new();
        for client in &self.clients {
            for (what, count) in &client.counts {
                *all.entry(what.clone()).or_default() += count;
            }
        }
        all
    }
}

#[derive(Default)]
struct Effects {
    wakes: Vec<ShardId>,
    poisoned: Option<storage::disk::DiskFault>,
}

impl Core {
    fn has_reason(&self, now: Now) -> bool {
        self.woken
            || !self.answers.is_empty()
            || !self.drained.is_empty()
            || !self.gone.is_empty()
            || self.doors.values().any(|door| !door.backlog.is_empty())
            || self.shard.next_deadline_us().is_some_and(|deadline| deadline <= now.mono_us)
    }

    fn wake_up(&mut self) {
        if self.asleep {
            self.shard.unpark();
            self.asleep = false;
        }
        self.woken = false;
    }

    /// Answers of the disk, ends of connections, drained queues.
    fn reap(&mut self, now: Now) -> usize {
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

    /// Input of some connections, in an order of chance.
    fn read(&mut self, now: Now, net: &mut Random) -> usize {
        let mut ready: Vec<ConnectionId> =
            self.doors.iter().filter(|(_, door)| door.has_input()).map(|(id, _)| *id).collect();
        let mut work = 0;
        while !ready.is_empty() {
            let connection = ready.swap_remove(net.index(ready.len()));
            let Some(door) = self.doors.get_mut(&connection) else { continue };
            let shard = &mut self.shard;
            let progress = door.work(&mut self.scratch, |id, command| {
                let input = match command {
                    Ok(command) => Input::Command { connection, id, command },
                    Err(refused) => Input::Rejected { connection, id, refused },
                };
                shard.handle(input, now) == Handled::Done
            });
            work += usize::from(progress);
        }
        work
    }

    fn effects(&mut self, options: &Options, effects: &mut Effects) -> Checked<usize> {
        let mut doors = Doors::new(&mut self.doors, &options.limits);
        let mut work = 0;
        while let Some(effect) = self.shard.poll_effect() {
            work += 1;
            match effect {
                Effect::Reply { connection, id, reply } => doors.reply(connection, &id, &reply),
                Effect::Wake { shard } => effects.wakes.push(shard),
                Effect::Poisoned { fault } => effects.poisoned = Some(fault),
            }
        }
        doors.finish()?;
        Ok(work)
    }
}
