//! One group on one shard: its sessions with lag, in the order in which they are dealt, and the shards with members.
//!
//! ```text
//!   ring   session A ─ session C ─ …      who was dealt goes to the end, so no session can starve another
//! ```

use crate::queues::line::Puller;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// One group's.
pub(super) struct Line {
    pub tenant: Arc<str>,
    /// By which it goes among queues.
    pub name: Box<str>,
    /// Sessions that may be dealt; some are not any more.
    pub ring: VecDeque<(u32, u64)>,
    pub pullers: Vec<Puller>,
    /// It is among the lines with news.
    pub has_news: bool,
    /// Where it stands.
    pub by_session: BTreeMap<Box<str>, u32>,
    /// The same, as they came.
    pub stands: BTreeMap<u64, u32>,
}

impl Line {
    pub fn new(tenant: Arc<str>, name: &str) -> Line {
        Line {
            tenant,
            name: name.into(),
            ring: VecDeque::new(),
            pullers: Vec::new(),
            has_news: false,
            by_session: BTreeMap::new(),
            stands: BTreeMap::new(),
        }
    }

    /// Is there anything to be dealt?
    pub fn is_claimable(&self) -> bool {
        !self.ring.is_empty()
    }

    /// Nothing stands here, and nobody pulls.
    pub fn is_idle(&self) -> bool {
        self.by_session.is_empty() && self.pullers.is_empty() && !self.has_news
    }
}
