//! One core's brain as a pure machine: `handle(input, now)`, `poll_effect()`, `deliver(outbox)`.
pub mod command;
pub mod effect;
pub mod ids;
pub mod input;
pub mod limits;
pub mod names;
pub mod outbox;
pub mod refusal;
