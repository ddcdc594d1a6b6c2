//! One core's brain as a pure machine: inputs in, effects and deliveries out. No IO, clock, thread or randomness.
//!
//! ```text
//!  shard ─► commands ─► sessions (owner's side)      delivery (client's side: cursors, feeds, patterns)
//!    │          │            │                            │
//!    └► walk ───┴── mail ────┴── behind, gather, scan ────┘      all over ─► storage::Log
//!                                  streams: open ones, leases, merged deltas, notices
//!                                  fair, quota: whose turn it is, and who may at all
//!  ids · limits · names · rights · command · refusal · input · effect · outbox · mailbox
//! ```
pub mod command;
pub mod effect;
pub mod ids;
pub mod input;
pub mod limits;
pub mod mailbox;
pub mod names;
pub mod outbox;
pub mod refusal;
pub mod rights;
pub mod shard;
pub mod traces;
pub mod why;

mod answers;
mod behind;
pub mod clients;
mod commands;
mod delivery;
mod effect_queue;
mod entries;
mod fair;
mod gather;
mod groups;
mod mail;
#[cfg(test)]
mod models;
mod packed;
mod parking;
mod patience;
mod presence;
pub mod queues;
mod quota;
mod run;
mod scan;
mod sessions;
mod streams;
mod volatile;
mod walk;
mod wheel;

pub use fair::Share;
pub use shard::{Counters, Shard, ShardConfig};
