//! The event log as a pure machine.
mod archived;
mod bytes;
pub mod catalog;
pub mod checkpoint;
pub mod dedupe;
pub mod disk;
mod filter;
pub mod group;
pub mod ids;
pub mod jobs;
pub mod record;
pub mod recluster;
pub mod retention;
pub mod segment;
pub mod sidecar;
