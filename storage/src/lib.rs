//! The event log as a pure machine.
mod archived;
pub mod group;
pub mod ids;
pub mod record;
pub mod segment;
