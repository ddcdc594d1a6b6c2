//! Clients: identities that outlive their sockets.
//!
//! ```text
//!  connection's shard                               home: owner of the session `$client.<id>` of the client's tenant
//!  life     resume ──── Open (claimed generation) ──────► home    generation compared, raised, appended, committed
//!           opened ◄─── generation, what was kept ────────┤
//!           restores: one subscribe for each              └─────► fence: the connection that had it before
//!           keeps ───── KEEP (subscriptions, acknowledged) ─────► appended when changed; nobody waits for it
//! ```
//! What is kept may be older than what the client has seen, never newer: a resume repeats, and leaves nothing out.
//! A client that gives its own positions gets each event once.

pub(crate) mod home;
pub(crate) mod life;
pub(crate) mod seen;
pub mod state;

/// Beginning of the names of hidden sessions.
pub(crate) const HIDDEN: &str = "$client.";

/// Topic of an event that begins a life.
pub(crate) const OPENED: &str = "$client.opened";

/// Topic of an event that keeps what has changed in a life.
pub(crate) const KEPT: &str = "$client.kept";

/// Name of a client's hidden session.
pub(crate) fn session_of(client_id: &str) -> String {
    [HIDDEN, client_id].concat()
}
