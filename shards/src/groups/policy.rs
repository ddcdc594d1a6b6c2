//! What a group is: which events it wants, and how long a member may be silent.
//!
//! ```text
//!   definition   version u8 · name · topics · lease        an entry of `$queues`, under the group's name with `$` in front
//! ```

use super::name_of;
use crate::limits::{QUEUE_PATTERNS_MAX, WorkLimits};
use crate::mailbox::codec::Writer;
use crate::names::pattern_matches;
use crate::queues::policy::{Careful, QUEUE_NAME_BYTES_MAX};
use crate::refusal::{Refusal, Refused};

/// Tells it from a queue's, whose versions count from 1.
const VERSION: u8 = 0x80;

/// A group, as every shard knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Definition {
    /// By which it goes among queues.
    pub name: Box<str>,
    topics: Vec<Box<str>>,
    pub lease_ms: u64,
}

impl Definition {
    /// As it is declared.
    ///
    /// # Errors
    /// Its numbers are outside their bounds.
    pub fn of(group: &str, topics: &[&str], lease_ms: u64, limits: &WorkLimits) -> Result<Self, Refused> {
        if group.len() > QUEUE_NAME_BYTES_MAX {
            return Err(Refused::field(Refusal::BadName, "group"));
        }
        if topics.is_empty() || topics.len() > QUEUE_PATTERNS_MAX {
            return Err(Refused::field(Refusal::BadPolicy, "patterns"));
        }
        if !(1..=limits.job_deadline_ms_max).contains(&lease_ms) {
            return Err(Refused::expects(Refusal::BadPolicy, "lease_ms", limits.job_deadline_ms_max));
        }
        let topics = topics.iter().map(|one| (*one).into()).collect();
        Ok(Self { name: name_of(group).into(), topics, lease_ms })
    }

    /// Does the group want an event of this topic?
    pub fn matches(&self, topic: &str) -> bool {
        self.topics.iter().any(|pattern| pattern_matches(pattern, topic))
    }

    pub fn put(&self, w: &mut Writer<'_>) {
        w.u8(VERSION).text(&self.name).u8(self.topics.len() as u8);
        self.topics.iter().for_each(|one| {
            w.text(one);
        });
        w.u64(self.lease_ms);
    }

    /// Reads one; `None` where it is of another version or is none.
    pub fn get(bytes: &[u8]) -> Option<Definition> {
        let mut r = Careful(bytes);
        if r.u8()? != VERSION {
            return None;
        }
        let name = r.text()?;
        let mut topics = Vec::new();
        for _ in 0..r.u8()? {
            topics.push(r.text()?);
        }
        let lease_ms = r.u64()?;
        (lease_ms > 0 && super::group_of(&name).is_some()).then_some(Definition { name, topics, lease_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_and_no_bytes_make_it_panic() {
        let limits = WorkLimits::default();
        let definition = Definition::of("flow", &["chat.*", "tool.>"], 5000, &limits).unwrap();
        let mut bytes = Vec::new();
        definition.put(&mut Writer(&mut bytes));
        assert_eq!(Definition::get(&bytes).as_ref(), Some(&definition));
        for cut in 0..bytes.len() {
            assert_eq!(Definition::get(&bytes[..cut]), None, "{cut}");
            let mut mangled = bytes.clone();
            mangled[cut] ^= 0x55;
            let _ = Definition::get(&mangled);
        }
        assert_eq!(Definition::of("flow", &[], 5000, &limits).unwrap_err().field, "patterns");
        assert_eq!(Definition::of("flow", &["a"], 0, &limits).unwrap_err().field, "lease_ms");
        assert_eq!(Definition::of(&"g".repeat(81), &["a"], 1, &limits).unwrap_err().field, "group");
    }
}
