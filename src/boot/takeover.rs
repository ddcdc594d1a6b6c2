//! A new process takes the place of a running one, and no client meets a closed door.
//!
//! ```text
//!   running process                          takeover.sock              new process: serve --takeover
//!     Gate ◄──────────────────────────── hello ─────────────────────────  reads its configuration, plans its memory
//!      │ listening sockets (SCM_RIGHTS) ─────────────────────────────────► makes its rings and threads
//!      │ ◄────────────────────────────── ready ──────────────────────────  and waits
//!     accepts nothing more; drains; commits; checkpoint                     (new clients wait in the sockets' backlog)
//!     lock of the folder let go ─────── released ────────────────────────► takes the lock, recovers, accepts
//!     exit 0
//! ```
//! Who holds the lock of the folder serves; nothing said here changes that. A new process that fails before `ready` changes
//! nothing; one that fails before the logs are closed is forgotten and the running one goes on serving. A running one that dies
//! leaves its lock, and the new one goes on by itself.

mod give;
mod rights;
mod take;
mod words;

#[cfg(test)]
mod tests;

pub(super) use give::{Gate, Offer};
pub(super) use take::Takeover;
