//! What shares and quotas cost per command, in ns, one core, warm cache. `cargo bench -p shards --bench shares`.
//!
//! ```text
//!   alone       one tenant: nothing is counted
//!   beside      two tenants: each command is looked at and charged
//!   quota       two tenants, and both rates of a quota
//! ```
//! The same volatile publish of 256 B throughout, handled and delivered to nobody; what a case costs is its distance to `alone`.
//! Under `cargo test`, or without `--bench`, a few operations only. What it does not show: cache misses of real tables.

use shards::command::{Command, DataKind, Durability, NewEvent};
use shards::ids::{CommandId, ConnectionId, HashKey, Now, ShardId};
use shards::input::{Handled, Input, Principal};
use shards::limits::{Kind, Limits, Quota, Quotas};
use shards::mailbox::mesh;
use shards::outbox::{
    DeadFrame, EntriesFrame, Gap, HistoryHead, JobFrame, Notice, Outbox, PageItem, PatternGap, RosterFrame, RunFrame,
    StreamFrame, VolatileEvent,
};
use shards::{Shard, ShardConfig};
use std::sync::Arc;
use std::time::Instant;
use storage::ids::LogId;
use storage::log::{Log, LogConfig, RecoveredLog};
use storage::record::EventView;

/// Commands of one turn: less than a quantum.
const TURN: u64 = 16;

fn main() {
    let timed = std::env::args().any(|argument| argument == "--bench");
    let (rounds, turns) = if timed { (9, 20_000) } else { (1, 4) };
    println!("{:<12}{:>10}{:>12}", "case", "ns/op", "over alone");
    let mut alone = 0.0;
    for case in ["alone", "beside", "quota", "in line"] {
        let ns = (0..rounds).map(|_| round(case, turns)).fold(f64::INFINITY, f64::min);
        if case == "alone" {
            alone = ns;
        }
        println!("{case:<12}{ns:>10.1}{:>12.1}", ns - alone);
    }
}

fn round(case: &str, turns: u64) -> f64 {
    let mut quotas = Quotas::default();
    if case == "quota" {
        let mut quota = Quota::default();
        (quota.max[Kind::Events as usize], quota.max[Kind::Bytes as usize]) = (Some(1 << 40), Some(1 << 40));
        quotas.others = quota;
    }
    let limits = Limits { quotas: Arc::new(quotas), ..Limits::default() };
    let mail = mesh(1, &limits).remove(0);
    let config = ShardConfig { shard: ShardId(0), shards: 1, limits, seed: 1 };
    let log = Log::new(LogConfig::small(), RecoveredLog::empty(HashKey(7, 9), LogId(0)));
    let mut shard = Shard::new(config, log, mail);
    let mut now = Now { mono_us: 1, wall_ms: 1_700_000_000_000 };
    let connection = ConnectionId { slot: 0, generation: 1 };
    let mut connect = |slot, tenant| {
        let connection = ConnectionId { slot, generation: 1 };
        let input = Input::Connected { connection, principal: Principal { tenant, client_id: "c", rights: None } };
        assert_eq!(shard.handle(input, now), Handled::Done);
    };
    connect(0, "acme");
    if case != "alone" {
        connect(1, "other");
    }
    let data = [b'7'; 256];
    let event = NewEvent {
        topic: "chat.message",
        message_id: "m",
        prev_event_id: None,
        prev_message_id: None,
        data: &data,
        data_kind: DataKind::Json,
        ttl_ms: None,
        producer: None,
        traceparent: "",
    };
    let command = Command::Publish { session: "session-0042", event, durability: Durability::Volatile };
    let mut id = 0;
    #[allow(clippy::disallowed_methods)]
    let began = Instant::now();
    for _ in 0..turns {
        now.mono_us += 400;
        for _ in 0..TURN {
            id += 1;
            let input = Input::Command { connection, id: CommandId::Number(id), command };
            assert_eq!(shard.handle(input, now), Handled::Done);
        }
        while shard.poll_effect().is_some() {}
        shard.deliver(now, 1 << 20, &mut Nobody);
    }
    began.elapsed().as_nanos() as f64 / id as f64
}

/// Nobody listens.
struct Nobody;

impl Outbox for Nobody {
    fn entries(&mut self, _: ConnectionId, _: CommandId, _: &EntriesFrame<'_>) {}
    fn job(&mut self, _: ConnectionId, _: &JobFrame<'_>) {}
    fn run(&mut self, _: ConnectionId, _: &RunFrame<'_>) {}
    fn dead(&mut self, _: ConnectionId, _: CommandId, _: &DeadFrame<'_>) {}

    fn room(&self, _: ConnectionId) -> usize {
        0
    }
    fn event(&mut self, _: ConnectionId, _: &EventView<'_>) -> usize {
        0
    }
    fn volatile(&mut self, _: ConnectionId, _: &VolatileEvent<'_>) -> usize {
        0
    }
    fn streams(&mut self, _: ConnectionId, _: &StreamFrame<'_>) -> usize {
        0
    }
    fn notice(&mut self, _: ConnectionId, _: &Notice<'_>) {}
    fn gap(&mut self, _: ConnectionId, _: &Gap<'_>) {}
    fn pattern_gap(&mut self, _: ConnectionId, _: &PatternGap) {}
    fn roster(&mut self, _: ConnectionId, _: &RosterFrame<'_>, _: bool) {}
    fn history(
        &mut self,
        _: ConnectionId,
        _: CommandId,
        _: &HistoryHead<'_>,
        _: &mut dyn Iterator<Item = PageItem<'_>>,
    ) {
    }
}
