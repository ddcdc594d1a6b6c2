//! What the server knows of its own time: where events spend it, which step of a turn took too long, who was refused.
//!
//! ```text
//!   turn    reap ────────────────────────────── collect ─ … ─ commit ─────── deliver ───── submit ─ enter
//!            │ came     begun    decoded appended │             │ closed      │ delivered    │         │
//!            ├ socket_in ┼ decode ┼─ append ─┐    │             │             │              │         │
//!            │           │        └ sent ────┼─ taken           │             │              │         │
//!            │           │          mailbox  │    append        │             │              │         │
//!            │           │                   └──── commit ──────┴─ committed ─┼─ deliver ────┼─ socket_out ─► taken by the kernel
//!
//!   hot     Tail ─ one per shard, touched only by its thread: Recorder (histograms, counts), Turns, Steps. No lock, no allocation
//!   look    the control plane sends an empty Recorder, the shard gives the full one for it: Totals adds it up
//! ```
//! Stages of one event meet: each begins where the one before ends, but for what a turn does in between for others, which
//! belongs to the stage that waits for it. `socket_in` begins with the turn that found the bytes: what the kernel held before is
//! bounded by the length of the turn before it, which `step` shows. `mailbox` counts every message between shards, `append` what
//! waits for room or a lookup, `commit` the group and the disk. `socket_out` is of sends, not of events: from the step that gave
//! the kernel a connection's bytes, or would have, to when it had taken them.

mod expose;
pub mod fault;
mod histogram;
mod recorder;
mod steps;
mod tail;
mod tenants;
mod totals;
mod turns;

pub use expose::{Dialect, Process, expose};
pub use histogram::Histogram;
pub use recorder::Recorder;
pub use steps::Stall;
pub use tail::{Gauges, Tail};
pub use tenants::{Tenant, Tenants};
pub use totals::{ShardTotals, Totals};

/// Where an event spends its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// In the turn that found its bytes, before the decoder got them.
    SocketIn,
    /// Being decoded.
    Decode,
    /// Between two shards.
    Mailbox,
    /// From a command to a record in the open group: room, lookups, checks.
    Append,
    /// From there to durable.
    Commit,
    /// From there to the send queues.
    Deliver,
    /// From there to the kernel.
    SocketOut,
}

impl Stage {
    /// All of them, in the order of an event's way.
    pub const ALL: [Stage; 7] = [
        Stage::SocketIn,
        Stage::Decode,
        Stage::Mailbox,
        Stage::Append,
        Stage::Commit,
        Stage::Deliver,
        Stage::SocketOut,
    ];

    /// Name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::SocketIn => "socket_in",
            Stage::Decode => "decode",
            Stage::Mailbox => "mailbox",
            Stage::Append => "append",
            Stage::Commit => "commit",
            Stage::Deliver => "deliver",
            Stage::SocketOut => "socket_out",
        }
    }
}

/// A step of a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Completions: sockets are read, input is decoded and handled where it lies.
    Reap,
    /// Mail of other shards.
    Collect,
    /// Timers.
    Expire,
    /// Input that found no room before.
    Handle,
    /// The log's operations go to the ring.
    Commit,
    /// Committed events go to send queues.
    Deliver,
    /// Sends go to the ring; newcomers.
    Submit,
    /// Rare orders and the end.
    WindDown,
    /// The kernel: sends are carried out.
    Enter,
}

impl Step {
    /// All of them, in the order of a turn.
    pub const ALL: [Step; 9] = [
        Step::Reap,
        Step::Collect,
        Step::Expire,
        Step::Handle,
        Step::Commit,
        Step::Deliver,
        Step::Submit,
        Step::WindDown,
        Step::Enter,
    ];

    /// Name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Step::Reap => "reap",
            Step::Collect => "collect",
            Step::Expire => "expire",
            Step::Handle => "handle",
            Step::Commit => "commit",
            Step::Deliver => "deliver",
            Step::Submit => "submit",
            Step::WindDown => "wind_down",
            Step::Enter => "enter",
        }
    }
}

/// Bytes that one shard's part of this module holds at most, the spare recorder of a look included, and of `copies` of its totals.
pub const fn memory_bytes_max(copies: usize) -> usize {
    2 * recorder::memory_bytes_max()
        + copies * recorder::own_bytes_max()
        + turns::memory_bytes_max()
        + tail::memory_bytes_max()
}
