//! What a seed decides once: how many shards, how tiny the limits, which faults, which clients.

use super::client::{Role, Start};
use super::disk::Faults;
use super::random::Random;
use super::world::GuestOptions;
use shards::limits::{Limits, PresenceLimits};
use storage::log::LogConfig;

/// The world of one seed.
#[derive(Clone, Debug)]
pub struct Options {
    /// Shards of the first boot.
    pub shards: u16,
    /// The number of shards may change with a restart.
    pub reshard: bool,
    /// Bounds of the core.
    pub limits: Limits,
    /// Bounds of each log.
    pub log: LogConfig,
    /// Misbehaviour of the disk before the liveness phase.
    pub faults: Faults,
    /// Crashes on average in this many steps.
    pub crash_every: u64,
    /// A disk without space for a while, on average in this many steps; 0 = never.
    pub full_every: u64,
    /// A graceful stop on average in this many steps; 0 = never. So with the next two.
    pub stop_every: u64,
    /// A shard that gets no turn for a while: mail waits, lanes fill.
    pub stall_every: u64,
    /// A bit of a sealed file turns round.
    pub rot_every: u64,
    /// The server notices late that a client has left, per mille of the breaks.
    pub linger: u32,
    /// The wall clock jumps ahead by up to a day.
    pub far_jumps: bool,
    /// The wall clock jumps now and then.
    pub clock_jumps: bool,
    /// Connections break on average in this many steps.
    pub break_every: u64,
    /// A connection whose late join is on its way breaks on average in this many steps.
    pub break_joins_every: u64,
    /// A client arrives on the shard that owns its first session, per mille.
    pub at_owner: u32,
    /// Largest piece in which bytes travel.
    pub chunk_bytes_max: u64,
    /// Bytes of deliveries of one turn.
    pub deliver_bytes: usize,
    /// Typical microseconds between two steps.
    pub step_us: u64,
    /// A command waits for room for so long before it is refused.
    pub patience_us: u64,
    /// Clients of other tenants.
    pub guests: GuestOptions,
    /// Clients.
    pub roles: Vec<Role>,
    /// Its queue.
    pub jobs: JobOptions,
}

/// What the queue of a world is.
#[derive(Clone, Copy, Debug, Default)]
pub struct JobOptions {
    /// Sessions keep their order.
    pub ordered: bool,
    /// When a job ends whatever happens.
    pub deadline_ms: u64,
    /// Of the queue, and of the one that comes and goes.
    pub capacity: u64,
    pub side_capacity: u64,
    /// How often a job is begun at most.
    pub attempts: u64,
}

impl Options {
    /// Draws a world.
    pub fn draw(seed: u64) -> Self {
        let r = &mut Random::new(seed, "options");
        // What came later has dice of its own, so that the others keep their meaning.
        let swarm = &mut Random::new(seed, "swarm");
        let far_jumps = swarm.chance(200);
        let presence = presence_limits(&mut Random::new(seed, "presence limits"));
        let limits = Limits { client_subscriptions_max: *swarm.pick(&[16, 64]), presence, ..limits(r) };
        let log = LogConfig {
            sync: !swarm.chance(60),
            retention_ms: if far_jumps && swarm.chance(400) { *swarm.pick(&[60_000, 3_600_000]) } else { 0 },
            recluster_bytes_max: if swarm.chance(500) { *swarm.pick(&[512 << 10, 2 << 20]) } else { 0 },
            segments_unindexed_max: *swarm.pick(&[2, 4]),
            read_buffers: *swarm.pick(&[5, 8, 16]),
            ..log_config(r)
        };
        if let Err(fault) = log.check() {
            panic!("the simulator drew a bad log: {fault}");
        }
        if let Err(cure) = limits.check(log.record_bytes_max()) {
            panic!("the simulator drew bad limits: {cure}");
        }
        let data_bytes_max = limits.event_bytes_max as u64 - 64;
        let sessions: Vec<String> = (0..r.between(1, 12)).map(|n| format!("s{n}")).collect();
        let mut roles = Vec::new();
        for index in 0..r.between(1, 6) {
            let mut publishes: Vec<String> = sessions.iter().filter(|_| r.chance(400)).cloned().collect();
            if publishes.is_empty() {
                publishes.push(r.pick(&sessions).clone());
            }
            roles.push(Role {
                publishes,
                numbers: r.chance(200),
                commits: index == 0 || r.chance(400),
                follows: sessions.iter().filter(|_| r.chance(100)).cloned().collect(),
                rude: r.chance(150),
                data_bytes_max,
                ..Role::default()
            });
        }
        for _ in 0..r.between(1, 5) {
            let by_pattern = r.chance(400);
            let patterns: &[&str] =
                [&[">"][..], &["chat.>"], &["chat.*", "tool.call"], &["*"], &["job.llm", "chat"]][r.index(5)];
            roles.push(Role {
                follows: if by_pattern { vec![] } else { sessions.iter().filter(|_| r.chance(600)).cloned().collect() },
                patterns: if by_pattern { patterns.iter().map(|p| (*p).to_owned()).collect() } else { vec![] },
                from: if r.chance(250) { Start::Latest } else { Start::Earliest },
                credit: r.chance(300).then(|| r.between(1, 40)),
                slow: r.chance(300),
                data_bytes_max,
                ..Role::default()
            });
        }
        for role in &mut roles {
            role.rude = false;
            if role.credit.is_some() || swarm.chance(150) {
                role.credit_bytes = swarm.chance(400).then(|| swarm.between(1, 8) << 10);
            }
            if !role.follows.is_empty() && swarm.chance(200) {
                role.from = Start::Marker;
            }
        }
        if swarm.chance(400) {
            for n in 0..swarm.between(1, 2) {
                let publishes = vec![format!("p{n}")];
                roles.push(Role { publishes, rude: true, data_bytes_max, ..Role::default() });
            }
        }
        // So many come that a session has no room for one more numbering producer.
        let crowded = swarm.chance(50);
        if crowded {
            roles.truncate(2);
            for _ in 0..12 {
                let publishes = vec!["crowd".to_owned()];
                roles.push(Role { publishes, crowd: true, data_bytes_max: 64, ..Role::default() });
            }
        }
        for role in &mut roles {
            role.subscriptions_max = limits.client_subscriptions_max;
            role.frame_bytes_max = limits.frame_bytes_max;
        }
        // Some clients hold both kinds of subscriptions; what came last of all has dice of its own as well.
        let mixed = &mut Random::new(seed, "mixed");
        for role in &mut roles {
            role.feed_from = role.from;
            if (role.follows.is_empty() && role.patterns.is_empty()) || !mixed.chance(350) {
                continue;
            }
            if role.follows.is_empty() {
                role.follows = sessions.iter().filter(|_| mixed.chance(500)).cloned().collect();
                role.from = *mixed.pick(&[Start::Earliest, Start::Latest, Start::Marker]);
            } else if role.patterns.is_empty() {
                role.patterns =
                    mixed.pick(&[&[">"][..], &["chat.>"], &["*", "chat.*"]]).iter().map(|p| (*p).to_owned()).collect();
                role.feed_from = *mixed.pick(&[Start::Earliest, Start::Latest]);
            }
        }
        // Streams are told where nothing is removed or damaged: a text that is not whole is a fault.
        let tells = &mut Random::new(seed, "streams");
        let mut limits = limits;
        limits.stream_lease_ms = *tells.pick(&[3, 20, 80]);
        limits.streams_per_shard_max = *tells.pick(&[4, 1000]);
        limits.stream_text_bytes_max = *tells.pick(&[500, 20_000]);
        let kept = log.retention_ms == 0 && log.retention_bytes == 0;
        let telling = kept && tells.chance(500);
        if telling {
            let sessions: Vec<String> = (0..tells.between(1, 2)).map(|n| format!("t{n}")).collect();
            for _ in 0..tells.between(1, 2) {
                let role = Role { tells: sessions.clone(), data_bytes_max, ..Role::default() };
                roles.push(Role {
                    subscriptions_max: limits.client_subscriptions_max,
                    frame_bytes_max: limits.frame_bytes_max,
                    ..role
                });
            }
            for _ in 0..tells.between(1, 3) {
                let role = Role {
                    listens: sessions.clone(),
                    from: if tells.chance(600) { Start::Latest } else { Start::Earliest },
                    credit: tells.chance(400).then(|| tells.between(1, 10)),
                    slow: tells.chance(500),
                    data_bytes_max,
                    ..Role::default()
                };
                roles.push(Role {
                    subscriptions_max: limits.client_subscriptions_max,
                    frame_bytes_max: limits.frame_bytes_max,
                    ..role
                });
            }
        }
        // Who is in a session, and who wants to know.
        let presence = &mut Random::new(seed, "presence");
        if presence.chance(500) {
            for role in roles.iter_mut().filter(|role| !role.crowd && !role.rude) {
                role.rooms = sessions.iter().filter(|_| presence.chance(300)).take(4).cloned().collect();
                role.watches = sessions.iter().filter(|_| presence.chance(300)).take(4).cloned().collect();
            }
        }
        let receipts = &mut Random::new(seed, "receipts");
        if receipts.chance(400) {
            for role in roles.iter_mut().filter(|role| !role.crowd && !role.rude) {
                role.reads = role.follows.iter().filter(|_| receipts.chance(400)).take(3).cloned().collect();
                role.minds = sessions.iter().filter(|_| receipts.chance(300)).take(3).cloned().collect();
            }
        }
        // Entries and jobs, where nothing is removed or damaged: what is gone could not be told from what was lost.
        let work = &mut Random::new(seed, "work");
        limits.work.entry_bytes_max = 200;
        limits.work.progress_bytes_max = 64;
        limits.work.entries_bytes_per_tenant_max = *work.pick(&[4 << 10, 1 << 20]);
        let own = |role: Role| Role {
            subscriptions_max: limits.client_subscriptions_max,
            frame_bytes_max: limits.frame_bytes_max,
            data_bytes_max,
            ..role
        };
        if kept && work.chance(400) {
            let places: Vec<String> = ["e0", "e1", "bucket b"].iter().map(|place| (*place).to_owned()).collect();
            for _ in 0..work.between(1, 3) {
                let keeps = places.iter().filter(|_| work.chance(600)).cloned().collect();
                roles.push(own(Role { keeps, slow: work.chance(300), ..Role::default() }));
            }
        }
        let (ordered, deadline_ms) = (work.chance(600), *work.pick(&[100, 400]));
        let mut jobs = JobOptions { ordered, deadline_ms, ..JobOptions::default() };
        // Where segments are removed, of a job that is open they are not.
        let labour = &mut Random::new(seed, "labour");
        let labours = (kept || labour.chance(600)) && work.chance(500);
        if labours {
            let sessions: Vec<String> = (0..work.between(1, 4)).map(|n| format!("j{n}")).collect();
            let lease_ms = *work.pick(&[5, 40, 100]);
            let fallback = if work.chance(700) { ",\"fallback\":{\"topic\":\"answer.late\",\"data\":7}" } else { "" };
            jobs.capacity = *work.pick(&[8, 12, 1000]);
            let attempts = *work.pick(&[1, 3]);
            jobs.attempts = attempts;
            let policy = format!(
                "\"patterns\":[\"work.>\"],\"capacity\":{},\"lease_ms\":{lease_ms},\"deadline_ms\":{},\"attempts\":{},\
                 \"backoff_ms\":{},\"order\":\"{}\",\"dead_letter\":\"answer.dead\"{fallback}",
                jobs.capacity,
                jobs.deadline_ms,
                attempts,
                work.pick(&[0, 3]),
                if jobs.ordered { "session" } else { "none" },
            );
            jobs.side_capacity = *labour.pick(&[8, 1000]);
            let side = format!(
                "\"patterns\":[\"side.>\"],\"capacity\":{},\"lease_ms\":5,\"deadline_ms\":{},\"order\":\"{}\",\
                 \"dead_letter\":\"answer.dead\"",
                jobs.side_capacity,
                jobs.deadline_ms,
                if jobs.ordered { "session" } else { "none" },
            );
            let side = labour.chance(600).then_some(side);
            let boss =
                Role { bosses: sessions.clone(), declares: Some(policy), side, dice: labour.any(), ..Role::default() };
            roles.push(own(boss));
            if work.chance(500) {
                roles.push(own(Role { bosses: sessions, silent: true, slow: work.chance(500), ..Role::default() }));
            }
            for _ in 0..work.between(0, 3).max(u64::from(work.chance(800))) {
                let works = Some(*work.pick(&[1, 3, 20]));
                roles.push(own(Role { works, slow: work.chance(300), dice: labour.any(), ..Role::default() }));
            }
        } else {
            jobs.deadline_ms = 0;
        }
        let lives = &mut Random::new(seed, "lives");
        for role in &mut roles {
            let reads = !role.follows.is_empty() || !role.patterns.is_empty();
            role.resumes = reads && !role.crowd && !role.rude && lives.chance(400);
        }
        let guests = GuestOptions::draw(&mut Random::new(seed, "guest options"));
        limits.quotas = guests.quotas.clone();
        // Who is only in sessions, and reads none.
        let members = &mut Random::new(seed, "members");
        for role in roles.iter_mut().filter(|role| !role.rooms.is_empty() && role.listens_to_none()) {
            role.resumes = members.chance(400);
        }
        let bold = &mut Random::new(seed, "bold");
        let bolder = bold.chance(400);
        for role in &mut roles {
            role.bold = bolder && bold.chance(500);
        }
        let break_joins_every = if bold.chance(400) { *bold.pick(&[2, 8, 32]) } else { 0 };
        let logs = &mut Random::new(seed, "logs");
        if logs.chance(400) {
            for role in &mut roles {
                role.logs = role.rooms.iter().filter(|_| logs.chance(300)).cloned().collect();
            }
        }
        let damaged = swarm.chance(200) && !telling && !roles.iter().any(|role| !role.keeps.is_empty()) && !labours;
        let mut often = |per_mille: u32, every: &[u64]| if swarm.chance(per_mille) { *swarm.pick(every) } else { 0 };
        let stop_every = often(250, &[1500, 5000]);
        let stall_every = often(300, &[300, 2000]);
        let rot_every = if damaged { often(600, &[300, 1500]) } else { 0 };
        let misdirected = if damaged { often(600, &[20, 80]) as u32 } else { 0 };
        let read_fails = if damaged { often(700, &[1, 10, 50]) as u32 } else { 0 };
        let lingers = often(300, &[1]) > 0;
        let job_deaths = often(300, &[10, 100]) as u32;
        // A third of the seeds have a perfect disk between crashes, so that rare faults do not hide deep states.
        let faulty = r.chance(660);
        let rate = |r: &mut Random, most: u64| if faulty { r.below(most) as u32 } else { 0 };
        // One ends a process, so it takes many seeds that have it to meet many.
        let write_fails = if faulty && mixed.chance(300) { mixed.between(5, 30) as u32 } else { 0 };
        Self {
            shards: r.between(1, 8).min(r.between(1, 8)) as u16,
            reshard: r.chance(500),
            faults: Faults {
                write_fails: (if r.chance(200) { rate(r, 8) } else { 0 }).max(write_fails),
                sync_fails: if r.chance(300) { rate(r, 8) } else { 0 },
                read_fails,
                full_commit_fails: rate(r, 1000),
                delay_us: *r.pick(&[5, 50, 200, 2000]),
                names_reorder: r.chance(300),
                misdirected,
                job_deaths,
            },
            stop_every,
            stall_every,
            rot_every,
            linger: if lingers { 400 } else { 0 },
            far_jumps,
            crash_every: if crowded { 12_000 } else { *r.pick(&[400, 1500, 4000, 12_000]) },
            full_every: if r.chance(300) { 3000 } else { 0 },
            clock_jumps: r.chance(300),
            break_every: *r.pick(&[200, 1000, 5000]),
            break_joins_every,
            at_owner: *r.pick(&[0, 300, 1000]),
            chunk_bytes_max: if crowded { 65536 } else { *r.pick(&[1, 17, 300, 4096, 65536]) },
            deliver_bytes: *r.pick(&[600, 4096, 65536, 1 << 20]),
            step_us: *r.pick(&[1, 10, 60, 300]),
            patience_us: *lives.pick(&[0, 2000, 50_000, 5_000_000]),
            limits,
            log,
            guests,
            roles,
            jobs,
        }
    }

    /// A world of these clients in which nothing goes wrong by itself.
    pub fn plain(roles: Vec<Role>) -> Self {
        let mut drawn = Self::draw(1);
        drawn.spare_crashes();
        Self {
            shards: 2,
            reshard: false,
            log: LogConfig { partitions_resident_max: 64, ..LogConfig::small() },
            limits: Limits { connections_per_shard_max: 64, page_bytes: 8 << 10, ..Limits::default() },
            faults: Faults { delay_us: 50, ..Faults::default() },
            full_every: 0,
            break_joins_every: 0,
            step_us: 60,
            at_owner: 0,
            patience_us: 5_000_000,
            deliver_bytes: 1 << 20,
            roles: roles
                .into_iter()
                .map(|role| Role { subscriptions_max: 64, frame_bytes_max: 12 << 10, ..role })
                .collect(),
            ..drawn
        }
    }

    /// The same world without crashes, and without the disk faults that end a process.
    pub fn spare_crashes(&mut self) {
        self.crash_every = 0;
        self.faults.write_fails = 0;
        self.faults.sync_fails = 0;
        self.faults.job_deaths = 0;
        self.faults.misdirected = 0;
        self.rot_every = 0;
        self.stop_every = 0;
    }
}

/// Bounds at which every edge is met within a few commands.
fn limits(r: &mut Random) -> Limits {
    let event_bytes_max = *r.pick(&[256, 1024, 2000]);
    let frame_bytes_max = 12 << 10;
    let tight = r.chance(500);
    let pick = |r: &mut Random, small: &[usize], large: usize| if tight { *r.pick(small) } else { large };
    Limits {
        event_bytes_max,
        frame_bytes_max,
        client_subscriptions_max: 64,
        client_commands_in_flight_max: pick(r, &[4, 32], 1024) as u32,
        connections_per_shard_max: 64,
        subscriptions_per_shard_max: 1024,
        connection_send_bytes_max: pick(r, &[16 << 10, 24 << 10], 128 << 10),
        mailbox_slots: pick(r, &[8, 16, 64], 1024),
        mailbox_bytes: pick(r, &[64 << 10, 96 << 10], 1 << 20),
        page_bytes: pick(r, &[1 << 10, 4 << 10], 8 << 10),
        mail_per_peer_per_turn_max: pick(r, &[1, 4], 64),
        effects_max: pick(r, &[64, 512], 4096),
        parked_bytes_max: pick(r, &[32 << 10], 1 << 20),
        ..Limits::default()
    }
}

/// Leases that end within a run, or such that nothing that holds a shard up ends them.
fn presence_limits(r: &mut Random) -> PresenceLimits {
    let tick_ms = *r.pick(&[1, 5, 20]);
    let lease_ms = *r.pick(&[60, 300, 3000]);
    PresenceLimits {
        data_bytes_max: 256,
        client_changes_per_second_max: *r.pick(&[20, 5000, 5000]),
        session_members_max: *r.pick(&[3, 1000, 1000]),
        tick_ms,
        lease_ms,
        lease_ms_min: lease_ms.min(3 * tick_ms),
        lease_ms_max: 10_000,
        unknown_ms: *r.pick(&[10, 1000]),
        ..PresenceLimits::default()
    }
}

fn log_config(r: &mut Random) -> LogConfig {
    let small = LogConfig::small();
    let config = LogConfig {
        segment_bytes: *r.pick(&[64 << 10, 64 << 10, 128 << 10, 256 << 10]),
        groups_in_flight_max: r.between(1, 3) as usize,
        group_close_us: *r.pick(&[0, 100, 1000]),
        hot_tail_bytes: *r.pick(&[128 << 10, 128 << 10, 512 << 10]),
        partitions_resident_max: *r.pick(&[4, 8, 64]),
        checkpoint_bytes: *r.pick(&[16 << 10, 64 << 10, 256 << 10]),
        no_space_retry_us: 20_000,
        retention_bytes: if r.chance(150) { *r.pick(&[128 << 10, 512 << 10]) } else { 0 },
        ..small
    };
    config.check().unwrap_or_else(|fault| panic!("the simulator drew a bad log: {fault}"));
    config
}
