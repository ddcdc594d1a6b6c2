//! The memory plan: the sum of everything a process with this configuration may hold, known before a port is opened.
//!
//! ```text
//!   per shard   × shards          hot tail, buffers, tables, caches            fixed by configuration
//!   per pair    × shards²         mailbox lanes                                grows with the square: see SHARDS_MAX
//!   per process × 1               binary, allocator, background executor
//!   ───────────────────────────────────────────────────────────────────────────
//!   total ≤ memory_budget_bytes, or the server does not start
//!
//!   connections   shards × as many as are configured, or as the limit of open files lets a ring's table of sockets have
//! ```
//!
//! Terms are worst cases. Untouched pages cost nothing, so a fresh server is far below its plan.

use crate::config::Config;
use shards::limits::{AWAY_MAX, GATHERED_BYTES_MAX, HOME_BYTES, LIFE_BYTES, NOTICE_BYTES, NOTICES_MAX};
use std::fmt;

/// User memory of an idle connection: its slot, its client, an index entry. DESIGN holds it under 1 KiB.
const CONNECTION_BYTES: u64 = 1024;
/// TLS of a connection: keys, states of both ways, 4 KiB of rustls for records that came in part. `tests/blackbox/secure.py --memory`:
/// an idle one has 7.6 KiB more than one without, over TLS 1.3 and 1.2.
const TLS_CONNECTION_BYTES: u64 = 8 << 10;
/// Who a connection is, where tokens say it: names, a share of its grants, when to look at it again.
const IDENTITY_BYTES: u64 = 1024;
/// One subscription: a cursor and its places in two indexes.
const SUBSCRIPTION_BYTES: u64 = 192;
/// A mailbox slot beside its payload bytes.
const MAIL_SLOT_BYTES: u64 = 128;
/// A watcher of presence or receipts: where it stands, its places in two lists.
const WATCH_BYTES: u64 = 160;
/// A watch of entries: names, where it stands, its places in lists.
const ENTRY_WATCH_BYTES: u64 = 384;
/// An open job: its place, its timers.
const JOB_BYTES: u64 = 512;
/// An effect that waits for the reactor.
const EFFECT_BYTES: u64 = 256;
/// An open stream's lease: names, table, the time to look at it.
const STREAM_BYTES: u64 = 384;
/// Lanes between two shards in one direction: requests and replies.
const LANES: u64 = 2;
/// Binary, allocator slack, background executor with its rings.
const PROCESS_BYTES: u64 = 64 << 20;

/// What the parts above configuration hold, bytes a shard; they say it themselves, so that the plan cannot drift from them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Parts {
    /// Ring: queues, receive buffers, table of direct slots.
    pub ring_bytes: u64,
    /// Frames kept for the next subscriber of the same event.
    pub frame_cache_bytes: u64,
    /// Pages being read for `history` and for other shards.
    pub page_bytes: u64,
    /// Messages of the echo door; 0 where it is closed.
    pub echo_bytes: u64,
    /// Histograms, and the ways of the last events.
    pub tail_bytes: u64,
    /// Certificates that one client may show, and which are kept with its connection; 0 where none are asked for.
    pub client_chain_bytes: u64,
}

/// One term of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// What the memory is for.
    pub name: &'static str,
    /// How many there are.
    pub count: u64,
    /// Bytes of one.
    pub bytes: u64,
}

/// How many connections fit. Sockets are slots of a ring's own table and no descriptors of the process; the table itself may be
/// as long as the limit of open files, so that more shards hold more connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Shards.
    pub shards: u64,
    /// Configured for each.
    pub wanted: u64,
    /// The limit of open files.
    pub open_files: u64,
    /// Slots of a table for connections that are being refused or are ending.
    pub spare: u64,
}

impl Room {
    /// Connections that the limit of open files lets a shard have.
    pub fn possible(&self) -> u64 {
        self.open_files.saturating_sub(self.spare)
    }

    /// Connections that a shard has.
    pub fn each(&self) -> u64 {
        self.wanted.min(self.possible())
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Room { shards, wanted, open_files, spare } = *self;
        let each = self.each();
        write!(f, "connections: {:>12}  {shards} shards × {each}", shards.saturating_mul(each))?;
        if each < wanted {
            let files = wanted + spare;
            write!(f, "; {wanted} each with `ulimit -n {files}` in place of {open_files}, or start more shards")?;
        }
        Ok(())
    }
}

/// The plan of one configuration.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many connections fit.
    pub room: Option<Room>,
    /// Every term, the per-shard ones first.
    pub terms: Vec<Term>,
    /// What the sum may not exceed, bytes.
    pub budget_bytes: u64,
}

impl Plan {
    /// Adds up `config` and `parts`. `memory_bytes` is what the process may use, for a budget that was left at 0.
    pub fn of(config: &Config, parts: &Parts, memory_bytes: u64) -> Plan {
        let shards = u64::from(config.shard_count());
        let term = |name, count, bytes| Term { name, count, bytes };
        let connections = u64::from(config.connections_per_shard_max);
        let tables =
            connections * CONNECTION_BYTES + u64::from(config.subscriptions_per_shard_max) * SUBSCRIPTION_BYTES;
        let (secure, strict) = (config.tls_certificate_file.is_some(), config.auth_keys_file.is_some());
        let log_bytes = config.log_config().memory_bytes() as u64;
        let terms = vec![
            term("hot tail", shards, config.hot_tail_bytes),
            term("log: read buffers, indexes, message ids", shards, log_bytes.saturating_sub(config.hot_tail_bytes)),
            term("ring and receive buffers", shards, parts.ring_bytes),
            term("send bytes", shards, config.shard_send_bytes_max + parts.echo_bytes),
            term("frames of recent events", shards, parts.frame_cache_bytes),
            term("pages being read", shards, parts.page_bytes),
            term("connection and subscription tables", shards, tables),
            term("clients: what outlives their connections", shards, connections * (LIFE_BYTES + HOME_BYTES) as u64),
            term("clients: those who are away", shards, (AWAY_MAX * HOME_BYTES) as u64),
            term("notices that wait", shards, (NOTICES_MAX * NOTICE_BYTES) as u64),
            term(
                "TLS of connections, and what they are being sent",
                if secure { shards } else { 0 },
                connections * (TLS_CONNECTION_BYTES + parts.client_chain_bytes) + config.shard_send_bytes_max,
            ),
            term("who connections are", if strict { shards } else { 0 }, connections * IDENTITY_BYTES),
            term("parked commands", shards, config.parked_bytes_max),
            term(
                "open streams, and deltas being merged",
                shards,
                u64::from(config.streams_per_shard_max) * STREAM_BYTES + GATHERED_BYTES_MAX as u64,
            ),
            term(
                "presence: rooms, holds, copies of watched rooms",
                shards * (shards + 1),
                config.presence_bytes_per_shard_max,
            ),
            term("presence: watchers", shards, u64::from(config.watches_per_shard_max) * WATCH_BYTES),
            term("entries: watches", shards, u64::from(config.entry_watches_per_shard_max) * ENTRY_WATCH_BYTES),
            term("jobs: open ones, their timers", shards, u64::from(config.jobs_per_shard_max) * JOB_BYTES),
            term("effects", shards, u64::from(config.effects_max) * EFFECT_BYTES),
            term("histograms, ways of the last events", shards, parts.tail_bytes),
            term("messages that have come in part", shards, config.assembly_bytes_max + parts.echo_bytes),
            // Of all tenants: how they share it adds nothing.
            term("input that waits for room", shards, config.held_bytes_max),
            term(
                "mailbox lanes",
                shards * (shards - 1) * LANES,
                u64::from(config.mailbox_bytes) + u64::from(config.mailbox_slots) * MAIL_SLOT_BYTES,
            ),
            term("background: one segment being indexed or merged", 1, 2 * config.segment_bytes),
            term("process", 1, PROCESS_BYTES),
        ];
        let budget_bytes =
            if config.memory_budget_bytes == 0 { memory_bytes / 4 * 3 } else { config.memory_budget_bytes };
        Plan { room: None, terms, budget_bytes }
    }

    /// The sum of all terms, bytes.
    pub fn total_bytes(&self) -> u64 {
        self.terms.iter().fold(0, |sum, term| sum.saturating_add(term.count.saturating_mul(term.bytes)))
    }

    /// Whether the plan fits.
    ///
    /// # Errors
    /// One line that names both numbers, the biggest term and the cure.
    pub fn check(&self) -> Result<(), String> {
        let total = self.total_bytes();
        if total <= self.budget_bytes {
            return Ok(());
        }
        let biggest = self.terms.iter().max_by_key(|term| term.count.saturating_mul(term.bytes));
        Err(format!(
            "the memory plan needs {} and the budget is {}; most of it is {}: lower its bound, start fewer shards, or raise memory_budget_bytes",
            mib(total),
            mib(self.budget_bytes),
            biggest.map_or("nothing", |term| term.name),
        ))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(room) = self.room {
            writeln!(f, "{room}")?;
        }
        for term in &self.terms {
            let sum = mib(term.count.saturating_mul(term.bytes));
            writeln!(f, "memory plan: {sum:>12}  {} ({} × {})", term.name, term.count, mib(term.bytes))?;
        }
        write!(f, "memory plan: {:>12}  of {} budget", mib(self.total_bytes()), mib(self.budget_bytes))
    }
}

fn mib(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

/// Bytes this process may use: the machine's memory, or less where a cgroup says so.
pub fn memory_bytes() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let machine = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map_or(u64::MAX, |kib| kib.saturating_mul(1024));
    // Version 2, then version 1; "max" and absent files do not parse and so do not bound.
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .into_iter()
        .filter_map(|path| read(path).trim().parse::<u64>().ok())
        .fold(machine, u64::min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layers;

    fn config(pairs: &[(&str, &str)]) -> Config {
        let flags = pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Config::load(&Layers { flags, ..Layers::default() }).unwrap()
    }

    #[test]
    fn the_default_plan_of_two_shards_fits_two_gibibytes() {
        let plan = Plan::of(&config(&[("shards", "2")]), &Parts::default(), 2 << 30);
        assert!(plan.total_bytes() < 2 << 30, "{plan}");
        assert_eq!(plan.budget_bytes, (2 << 30) / 4 * 3);
    }

    #[test]
    fn over_the_budget_is_refused_with_both_numbers_and_the_biggest_term() {
        let plan = Plan::of(
            &config(&[("shards", "2"), ("memory_budget_bytes", "1GiB"), ("hot_tail_bytes", "8GiB")]),
            &Parts::default(),
            0,
        );
        let why = plan.check().unwrap_err();
        assert!(why.contains("1024.0 MiB") && why.contains("hot tail") && !why.contains('\n'), "{why}");
    }

    #[test]
    fn room_is_what_is_configured_or_what_the_limit_of_open_files_leaves() {
        let room = Room { shards: 3, wanted: 60_000, open_files: 20_000, spare: 256 };
        assert_eq!((room.possible(), room.each()), (19_744, 19_744));
        let line = room.to_string();
        assert!(line.contains("59232") && line.contains("ulimit -n 60256") && !line.contains('\n'), "{line}");
        let room = Room { wanted: 10_000, ..room };
        assert_eq!((room.each(), room.to_string().contains("ulimit")), (10_000, false));
        assert_eq!(Room { open_files: 100, ..room }.each(), 0);
    }

    #[test]
    fn lanes_grow_with_the_square_of_shards() {
        let lanes = |n: &str| {
            let plan = Plan::of(&config(&[("shards", n)]), &Parts::default(), 1 << 40);
            plan.terms.iter().find(|term| term.name == "mailbox lanes").unwrap().count
        };
        assert_eq!((lanes("1"), lanes("2"), lanes("8")), (0, 4, 112));
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(memory_bytes() > 1 << 20 && memory_bytes() < u64::MAX);
    }
}
