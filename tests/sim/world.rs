//! The world: one node of several shards, its disk, its clients and the network between, on one thread.
//!
//! ```text
//!   step:  a turn of some shard · bytes up or down some connection · some client acts · time passes
//!          · now and then: a crash and a boot, a graceful stop, a broken connection, a full disk, damage on the disk, a
//!            shard that gets no turn, a jump of the wall clock
//!   run:   safety   faults on, clients publish
//!          liveness faults off, all come to rest within a bound
//!          audit    a client that was never there reads everything from the start
//! ```
//! A shard sleeps when a turn did nothing and the park protocol lets it, and then runs only for bytes, disk answers, its
//! own deadline or a peer's wake: a lost wake-up shows as a world that does not come to rest.

mod drain;
mod duties;
mod end;
mod every_byte;
mod fate;
mod guests;
mod network;
mod node;

use super::client::{Client, Role, Start};
use super::counts::{Counts, FAULT, REFUSAL, WORLD};
use super::disk::{Answer, SimDisk};
use super::edge::Doors;
use super::options::Options;
use super::oracle::{Checked, Key, Oracle};
use super::random::Random;
use super::trace::Trace;
pub use guests::GuestOptions;
use network::Link;
use node::Node;
use shards::ids::Now;
use shards::rights::{Capability, Rights};
use std::sync::Arc;
use storage::disk::DiskOp;

/// Tenant of everybody.
pub const TENANT: &str = "default";

/// A run in progress.
pub struct World {
    options: Options,
    schedule: Random,
    net: Random,
    workload: Random,
    /// Dice of the faults that came later, so that the others keep their meaning.
    faults: Random,
    guests: Random,
    books: guests::Books,
    disk: SimDisk,
    oracle: Oracle,
    clients: Vec<Client>,
    /// Where each client is connected.
    links: Vec<Option<Link>>,
    node: Option<Node>,
    /// What every client may do: all it needs, and not to publish under other topics.
    rights: Arc<Rights>,
    now_us: u64,
    wall_offset_ms: i64,
    generation: u32,
    boots: u32,
    /// Events whose answer was lost with a connection of this node, and its refusals when that began.
    untold: Vec<(String, Key, u64)>,
    full_until_us: u64,
    /// When a graceful stop stops to wait for clients.
    stop_at_us: u64,
    /// The last process ended gracefully.
    clean: bool,
    /// And what its clients left behind was said to their homes.
    kept: bool,
    /// Frames queued for clients so far.
    frames: u64,
    calm: bool,
    /// A promise broken in bytes that arrived while the node died.
    broken_late: Option<String>,
    /// What happened.
    pub trace: Trace,
    /// Counted for the report.
    pub counts: Counts,
}

fn rights() -> Rights {
    let mut rights = Rights::none(false);
    let publish = ["*", "chat.>", "tool.>", "job.>", "control.>", "work.>", "side.>", "answer.>"]
        .map(|grant| (Capability::Publish, grant));
    let work = [(Capability::Queue, "*"), (Capability::Entries, "*"), (Capability::Admin, "q*")];
    for (capability, grant) in publish.into_iter().chain([(Capability::Subscribe, ">")]).chain(work) {
        rights.add(capability, grant).expect("a grant");
    }
    rights
}

impl World {
    /// The world of a seed, before its first boot.
    pub fn new(seed: u64, print: bool, no_crash: bool) -> Self {
        let mut options = Options::draw(seed);
        if no_crash {
            options.spare_crashes();
        }
        Self::of(options, seed, print)
    }

    fn of(options: Options, seed: u64, print: bool) -> Self {
        let clients: Vec<Client> =
            options.roles.iter().enumerate().map(|(i, role)| Client::new(i as u32, role.clone())).collect();
        let mut oracle = Oracle::default();
        oracle.board.strict = options.limits.presence.lease_ms >= 3000;
        oracle.board.is_tight = options.limits.presence.session_members_max < options.roles.len();
        // One that begins at the latest, or has a feed beside it, passes over what came before or comes otherwise.
        let inexact = |(_, role): &(usize, &Role)| role.from != Start::Earliest || !role.patterns.is_empty();
        let roles = options.roles.iter().enumerate().filter(inexact);
        oracle.board.inexact = roles.map(|(index, _)| format!("c{index}")).collect();
        oracle.retention = options.log.retention_bytes > 0 || options.log.retention_ms > 0;
        oracle.damage = options.faults.read_fails > 0 || options.faults.misdirected > 0 || options.rot_every > 0;
        oracle.sync_off = !options.log.sync;
        oracle.entries_clock = !options.clock_jumps && !options.far_jumps;
        oracle.jobs.timely = oracle.entries_clock;
        oracle.jobs.ordered = options.jobs.ordered;
        oracle.jobs.deadline_ms = options.jobs.deadline_ms;
        // Where a claim may not be written nothing is said of how often a job is begun.
        let says = options.full_every == 0 && options.log.sync;
        oracle.jobs.attempts = if says { options.jobs.attempts } else { 0 };
        oracle.fills = options.full_every > 0 || options.faults.full_commit_fails > 0;
        let mut world = Self {
            schedule: Random::new(seed, "schedule"),
            net: Random::new(seed, "net"),
            workload: Random::new(seed, "workload"),
            faults: Random::new(seed, "faults"),
            guests: Random::new(seed, "guests"),
            books: guests::Books::new(options.guests.quotas.clone()),
            disk: SimDisk::new(Random::new(seed, "disk"), Random::new(seed, "damage"), options.faults),
            oracle,
            links: vec![None; clients.len()],
            clients,
            node: None,
            rights: Arc::new(rights()),
            now_us: 1_000_000,
            wall_offset_ms: 1_700_000_000_000,
            generation: 0,
            boots: 0,
            untold: Vec::new(),
            full_until_us: 0,
            stop_at_us: 0,
            clean: false,
            kept: false,
            frames: 0,
            calm: false,
            broken_late: None,
            trace: Trace::new(print),
            counts: Counts::default(),
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

    /// All that was counted, by the world, its disk and its clients.
    pub fn all_counts(&self) -> Counts {
        let mut all = self.counts.clone();
        all.take_in(&self.disk.counts);
        for client in &self.clients {
            all.take_in(&client.counts);
        }
        all
    }

    fn step(&mut self) -> Checked {
        if let Some(why) = self.broken_late.take() {
            return Err(why);
        }
        self.pass_time();
        self.oracle.now_us = self.now_us;
        self.collect_answers()?;
        if self.has_stopped()? {
            return self.boot();
        }
        self.end_lingering();
        if self.calm {
            return self.ordinary_step();
        }
        let o = &self.options;
        let (crash, break_, full, jumps) = (o.crash_every, o.break_every, o.full_every, o.clock_jumps);
        let dies = crash > 0 && self.schedule.below(crash) == 0;
        if dies || self.disk.take_death() {
            self.crash(if dies { "by chance" } else { "in the middle of a job" });
            return self.boot();
        }
        self.spread_faults();
        self.change_quotas();
        if self.schedule.below(break_) == 0 {
            let client = self.schedule.index(self.clients.len());
            self.break_by_chance(client)?;
        }
        self.break_a_join()?;
        if full > 0 && self.schedule.below(full) == 0 {
            self.disk.set_full(true);
            self.full_until_us = self.now_us + self.schedule.delay(20_000);
            self.counts.add(FAULT, "disk full");
            self.say(format_args!("disk full"));
        }
        if jumps && self.schedule.below(3000) == 0 {
            let jump = self.schedule.between(0, 8000) as i64 - 4000;
            self.wall_offset_ms += jump;
            if jump < 0 {
                self.oracle.clock_slack_ms += jump.unsigned_abs();
            }
            self.counts.add(FAULT, if jump < 0 { "clock jumps back" } else { "clock jumps ahead" });
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

    fn turn_somewhere(&mut self) -> Checked {
        let Some(node) = &self.node else { return Ok(()) };
        let index = self.schedule.index(node.shards.len());
        if !self.calm && node.shards[index].stalled_until_us > self.now_us {
            return Ok(());
        }
        self.turn(index)
    }

    /// One turn of one shard, in the reactor's order.
    fn turn(&mut self, index: usize) -> Checked {
        let now = self.now();
        let deliver_bytes = self.options.deliver_bytes;
        let Some(node) = &mut self.node else { return Ok(()) };
        let core = &mut node.shards[index];
        if core.asleep && !core.has_reason(now) {
            return self.check_jobs(index);
        }
        core.wake_up();
        let mut work = core.reap(now);
        if self.calm || node.stopping {
            core.lounge.leave(&mut core.gone);
        }
        core.lounge.begin_turn(&mut core.shard, now);
        work += core.read(now, self.options.patience_us, &mut self.net, &mut self.counts);
        let mut doors = Doors::new(&mut core.doors, &self.options.limits, now);
        let collected = core.shard.collect(now, &mut doors);
        work += collected;
        let mut frames = doors.finish()?;
        work += core.shard.expire(now);
        let mut effects = node::Effects::default();
        work += core.effects(&self.options, now, &mut effects)?;
        while let Some(op) = core.shard.poll_disk(now) {
            work += 1;
            let log = core.shard.log();
            if self.trace.prints() && !matches!(op, DiskOp::Job { .. }) {
                self.trace.note(self.now_us, format_args!("shard {index} asks {op:?}"));
            }
            if let DiskOp::Read { .. } = op {
                self.counts.add(WORLD, "cold reads");
            }
            self.disk.submit(index as u16, op, self.now_us, |start, len| log.arena(start, len));
        }
        work += core.effects(&self.options, now, &mut effects)?;
        let mut doors = Doors::new(&mut core.doors, &self.options.limits, now);
        work += core.shard.deliver(now, deliver_bytes, &mut doors);
        let delivered = std::mem::take(&mut doors.delivered);
        frames += doors.finish()?;
        work += core.effects(&self.options, now, &mut effects)?;
        core.check(&self.options)?;
        core.lounge.check(&core.shard)?;
        let settles = matches!(node.drain.stage, drain::Stage::Settling(_));
        if settles && collected == 0 && core.gone.is_empty() && core.shard.is_settled() {
            core.shard.stop();
        }
        if work == 0 && core.shard.prepare_park() {
            core.asleep = true;
        }
        node.check_committed(&delivered)?;
        self.counts.add(WORLD, "turns");
        self.counts.add_many(WORLD, "frames queued", frames);
        self.counts.add_many(WORLD, "lives taken over", effects.replaced);
        effects.refused.iter().for_each(|refusal| self.counts.add(REFUSAL, refusal.name()));
        self.frames += frames;
        self.trace.say(self.now_us, format_args!("turn of shard {index}, work {work}"));
        self.check_quotas()?;
        self.check_jobs(index)?;
        let Some(node) = &mut self.node else { return Ok(()) };
        for peer in effects.wakes {
            node.shards[usize::from(peer.0)].woken = true;
        }
        if let Some(fault) = effects.poisoned {
            self.counts.add(WORLD, "poisoned logs");
            self.crash(&format!("for {fault:?}"));
            return self.boot();
        }
        Ok(())
    }
}
