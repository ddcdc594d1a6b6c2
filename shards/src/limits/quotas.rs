//! What a tenant may use, and its share where the core is contended.
//!
//! ```text
//!   [tenants.default]   connections_max = 100                    for everybody who is not named
//!   [tenants.acme]      events_per_second_max = 5000, weight = 4
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

/// Something of which a tenant may have only so much.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Events published, a second.
    Events = 0,
    /// Bytes of their data, a second.
    Bytes = 1,
    /// Connections at once.
    Connections = 2,
    /// Subscriptions at once, pattern feeds included.
    Subscriptions = 3,
    /// Sessions that exist.
    Sessions = 4,
    /// Jobs that are open, in all queues.
    QueueDepth = 5,
    /// Bytes of entries, as a session counts them.
    EntryBytes = 6,
}

/// Kinds there are.
pub const KINDS: usize = Kind::ALL.len();

impl Kind {
    /// All of them, by number.
    pub const ALL: [Kind; 7] = [
        Kind::Events,
        Kind::Bytes,
        Kind::Connections,
        Kind::Subscriptions,
        Kind::Sessions,
        Kind::QueueDepth,
        Kind::EntryBytes,
    ];

    /// Those of what is kept in the log: they outlive connections, and the server.
    pub const KEPT: [Kind; 3] = [Kind::Sessions, Kind::QueueDepth, Kind::EntryBytes];

    /// Name of its bound in a configuration and on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Events => "events_per_second_max",
            Kind::Bytes => "bytes_per_second_max",
            Kind::Connections => "connections_max",
            Kind::Subscriptions => "subscriptions_max",
            Kind::Sessions => "sessions_max",
            Kind::QueueDepth => "queue_depth_max",
            Kind::EntryBytes => "entries_bytes_max",
        }
    }

    /// Comes back with time; the others come back when they are given back.
    pub const fn is_rate(self) -> bool {
        matches!(self, Kind::Events | Kind::Bytes)
    }

    /// Is kept in the log.
    pub const fn is_kept(self) -> bool {
        matches!(self, Kind::Sessions | Kind::QueueDepth | Kind::EntryBytes)
    }

    /// From its number.
    pub fn of(number: u8) -> Option<Kind> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// Largest bound: with it no sum of the accounts overflows.
pub const QUOTA_MAX: u64 = 1 << 40;

/// Largest weight.
pub const WEIGHT_MAX: u32 = 100;

/// Of one tenant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quota {
    /// Its share against the others', from 1 to [`WEIGHT_MAX`].
    pub weight: u32,
    /// By kind. `None`: as much as there is.
    pub max: [Option<u64>; KINDS],
}

impl Default for Quota {
    fn default() -> Self {
        Self { weight: 1, max: [None; KINDS] }
    }
}

impl Quota {
    /// Nothing is counted.
    pub fn is_unlimited(&self) -> bool {
        self.max.iter().all(Option::is_none)
    }

    /// Something of what is kept is bounded.
    pub fn bounds_kept(&self) -> bool {
        Kind::KEPT.iter().any(|kind| self.max[*kind as usize].is_some())
    }
}

/// Of all tenants.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Quotas {
    /// For whoever is not named.
    pub others: Quota,
    /// By name.
    pub tenants: BTreeMap<Arc<str>, Quota>,
}

impl Quotas {
    /// Of one tenant.
    pub fn of(&self, tenant: &str) -> Quota {
        self.tenants.get(tenant).copied().unwrap_or(self.others)
    }

    /// Something of what somebody keeps is bounded.
    pub fn bound_kept(&self) -> bool {
        self.others.bounds_kept() || self.tenants.values().any(Quota::bounds_kept)
    }
}
