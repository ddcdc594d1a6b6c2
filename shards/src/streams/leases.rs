//! Leases of open streams: one whose producer has not been heard of for `stream_lease_ms` is closed by the server.
//!
//! ```text
//!   append ─► renewed                          at its time: renewed since? ─ yes ─► looked at again then
//!                └── heap: when to look ──────►             └ no ─► due ─► partition, room ─► stream.close partial
//! ```
//! An append writes one number; the heap is touched once a lease. After a restart every lease begins anew: a producer that
//! could not reach the server is not gone. One table per shard, at most `streams_per_shard_max` long.

use super::SERVER;
use crate::command::StreamStatus;
use crate::commands::stream_close;
use crate::ids::{Now, PartitionId};
use crate::shard::{Opened, Shard};
use hashbrown::HashMap;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use storage::log::Streaming;
use storage::record::{EventBody, HEAD_BYTES};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_128_with_seed};

/// Ends of streams that one turn appends.
const CLOSES_PER_TURN_MAX: usize = 64;

/// Times to look at streams that have ended, beyond which they are swept out.
const STALE_LOOKS_MAX: usize = 1024;

/// Room for the record of an end.
const RECORD_BYTES_MAX: usize = HEAD_BYTES + size_of::<EventBody<'static>>() + 5 * 256 + 128;

/// Names a stream of a shard.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct StreamKey(u128);

impl StreamKey {
    pub fn of(partition: PartitionId, stream: &str) -> StreamKey {
        StreamKey(partition.0 ^ xxh3_128_with_seed(stream.as_bytes(), partition.0 as u64))
    }
}

struct Lease {
    tenant: Arc<str>,
    session: Box<str>,
    stream: Box<str>,
    /// When its producer was last heard of; `None` after a restart, until the first turn.
    renewed_us: Option<u64>,
}

/// All leases of a shard.
#[derive(Default)]
pub(crate) struct Leases {
    by_stream: HashMap<StreamKey, Lease, BuildHasherDefault<Xxh3Default>>,
    /// When to look at which.
    looks: BinaryHeap<Reverse<(u64, StreamKey)>>,
    /// Streams that were open when the log was recovered and have no time yet.
    recovered: Vec<StreamKey>,
    /// Streams to be closed, as soon as their session is in memory and the log has room.
    due: VecDeque<StreamKey>,
}

impl Leases {
    /// Those of streams that were open when the log was recovered.
    pub fn recovered(log: &storage::log::Log, streaming: Vec<Streaming>) -> Leases {
        let mut leases = Leases::default();
        for Streaming { tenant, session, streams, .. } in streaming {
            let tenant: Arc<str> = tenant.into();
            let partition = log.partition_id(&tenant, &session);
            for stream in streams {
                let key = StreamKey::of(partition, &stream);
                let lease = Lease { tenant: tenant.clone(), session: session.clone(), stream, renewed_us: None };
                leases.by_stream.insert(key, lease);
                leases.recovered.push(key);
            }
        }
        leases
    }

    pub fn len(&self) -> usize {
        self.by_stream.len()
    }

    /// The stream's producer was heard of.
    pub fn renew(
        &mut self,
        key: StreamKey,
        tenant: &Arc<str>,
        session: &str,
        stream: &str,
        now_us: u64,
        lease_us: u64,
    ) {
        if let Some(lease) = self.by_stream.get_mut(&key) {
            lease.renewed_us = Some(now_us);
            return;
        }
        let (session, stream) = (session.into(), stream.into());
        self.by_stream.insert(key, Lease { tenant: tenant.clone(), session, stream, renewed_us: Some(now_us) });
        self.looks.push(Reverse((now_us + lease_us, key)));
    }

    /// The stream is closed.
    pub fn end(&mut self, key: StreamKey) {
        self.by_stream.remove(&key);
        // Of streams that ended the times to look are left behind: no more of them than of those that live.
        if self.looks.len() > 2 * self.by_stream.len() + STALE_LOOKS_MAX {
            let streams = &self.by_stream;
            self.looks.retain(|Reverse((_, key))| streams.contains_key(key));
        }
    }

    /// Looks at leases whose time has come.
    pub fn expire(&mut self, now_us: u64, lease_us: u64) {
        for key in self.recovered.drain(..) {
            if let Some(lease) = self.by_stream.get_mut(&key) {
                lease.renewed_us.get_or_insert(now_us);
                self.looks.push(Reverse((now_us + lease_us, key)));
            }
        }
        while let Some(Reverse((at, key))) = self.looks.peek().copied() {
            if at > now_us {
                break;
            }
            self.looks.pop();
            let Some(lease) = self.by_stream.get(&key) else { continue };
            let ends = lease.renewed_us.unwrap_or(now_us) + lease_us;
            if ends > now_us {
                self.looks.push(Reverse((ends, key)));
            } else {
                self.due.push_back(key);
            }
        }
    }

    /// When to look next.
    pub fn next_deadline_us(&self) -> Option<u64> {
        if !self.recovered.is_empty() {
            return Some(0);
        }
        self.looks.peek().map(|Reverse((at, _))| *at)
    }

    /// Does an end wait for room or for its session?
    pub fn wait(&self) -> bool {
        !self.due.is_empty()
    }
}

impl Shard {
    /// Closes streams whose producers are gone. Returns how many were worked off.
    pub(crate) fn serve_leases(&mut self, now: Now) -> usize {
        let lease_us = self.config.limits.stream_lease_ms * 1000;
        self.leases.expire(now.mono_us, lease_us);
        let mut done = 0;
        for _ in 0..self.leases.due.len().min(CLOSES_PER_TURN_MAX) {
            if !self.log.room(RECORD_BYTES_MAX) {
                break;
            }
            let Some(key) = self.leases.due.pop_front() else { break };
            let Some(lease) = self.leases.by_stream.get(&key) else { continue };
            if let Some(ends) = lease.renewed_us.map(|us| us + lease_us).filter(|ends| *ends > now.mono_us) {
                // Its producer came back while the end waited.
                self.leases.looks.push(Reverse((ends, key)));
                continue;
            }
            let (tenant, session, stream) = (lease.tenant.clone(), lease.session.clone(), lease.stream.clone());
            let partition = self.log.partition_id(&tenant, &session);
            match self.open(partition, &tenant, &session, None) {
                Opened::Ready(slot) => {
                    stream_close::close(self, slot, SERVER, &stream, StreamStatus::Partial, now);
                    self.leases.end(key);
                    done += 1;
                }
                Opened::Absent => self.leases.end(key),
                Opened::Park | Opened::Refused(_) => self.leases.due.push_back(key),
            }
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leases() -> (Leases, StreamKey) {
        let mut leases = Leases::default();
        let key = StreamKey::of(PartitionId(7), "s");
        leases.renew(key, &"t".into(), "demo", "s", 100, 50);
        (leases, key)
    }

    #[test]
    fn a_producer_that_is_heard_of_keeps_its_stream() {
        let (mut leases, key) = leases();
        for now in (100..1000).step_by(30) {
            leases.renew(key, &"t".into(), "demo", "s", now, 50);
            leases.expire(now, 50);
            assert!(!leases.wait(), "{now}");
        }
        leases.expire(1019, 50);
        assert!(!leases.wait(), "heard of at 970, the last time before 1000");
        leases.expire(1020, 50);
        assert_eq!(leases.due, [key]);
        leases.expire(9999, 50);
        assert_eq!(leases.due, [key], "due once");
        assert_eq!(leases.next_deadline_us(), None);
    }

    #[test]
    fn a_closed_stream_is_looked_at_no_more() {
        let (mut leases, key) = leases();
        assert_eq!(leases.next_deadline_us(), Some(150));
        leases.end(key);
        leases.expire(1000, 50);
        assert!(!leases.wait() && leases.len() == 0 && leases.next_deadline_us().is_none());
    }

    #[test]
    fn streams_that_come_and_go_leave_nothing_behind() {
        let (mut leases, kept) = leases();
        for n in 0..10_000 {
            let key = StreamKey::of(PartitionId(9), &n.to_string());
            leases.renew(key, &"t".into(), "demo", "s", 100, 50);
            leases.end(key);
        }
        assert!(leases.looks.len() <= STALE_LOOKS_MAX + 4);
        leases.expire(150, 50);
        assert_eq!(leases.due, [kept]);
    }

    #[test]
    fn after_a_restart_a_lease_begins_anew() {
        let (mut leases, key) = leases();
        leases.looks.clear();
        leases.by_stream.get_mut(&key).unwrap().renewed_us = None;
        leases.recovered.push(key);
        assert_eq!(leases.next_deadline_us(), Some(0));
        leases.expire(5000, 50);
        assert!(!leases.wait());
        leases.expire(5049, 50);
        assert!(!leases.wait());
        leases.expire(5050, 50);
        assert_eq!(leases.due, [key]);
    }
}
