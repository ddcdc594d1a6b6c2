//! The event log as a pure machine.
pub mod ids;
pub mod record;
