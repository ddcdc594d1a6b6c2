//! What the control plane may ask of a shard while it serves. Each answer is made in one turn and sent without waiting.
//!
//! ```text
//!   admin ── Look::Figures { empty recorder } ──► reactor ── full recorder, gauges ──► admin adds them up
//!         ── Look::Event ───────────────────────►         ── the owner's answer ─────► admin
//!         ── Look::Readers ─────────────────────►         ── who has it, who has not ► admin
//! ```

use super::Reactor;
use crate::observe::{Gauges, Recorder};
use shards::ids::ShardId;
use shards::why::{Asked, LookedUp, ReaderOf};
use std::fmt;

/// An order to look. A reply that finds nobody, or no room, is dropped: whoever asked has given up.
pub enum Look {
    /// What was recorded since the last look.
    Figures {
        /// Recording goes on in it.
        empty: Box<Recorder>,
        /// Where the full one goes.
        reply: flume::Sender<Figures>,
    },
    /// What the owner of a session knows of an event.
    Event {
        /// Which.
        asked: Asked,
        /// Where the answer goes.
        reply: flume::Sender<EventLook>,
    },
    /// Who on this shard has an event, and who has not.
    Readers {
        /// Which.
        asked: Asked,
        /// Where the answer goes.
        reply: flume::Sender<ReadersLook>,
    },
}

/// A shard's figures.
pub struct Figures {
    /// Whose.
    pub shard: ShardId,
    /// Since the last look.
    pub recorder: Box<Recorder>,
    /// Now, and since its start.
    pub gauges: Gauges,
}

/// A shard's answer about an event.
pub struct EventLook {
    /// Whose.
    pub shard: ShardId,
    /// What the core says.
    pub looked_up: LookedUp,
    /// When the turn that walked it gave its bytes to the kernel, and when the last of them was taken so far.
    pub out: Option<(u64, u64)>,
}

/// A shard's readers of an event.
pub struct ReadersLook {
    /// Whose.
    pub shard: ShardId,
    /// With the bytes that wait in the queue of each, and for how many microseconds.
    pub named: Vec<(ReaderOf, usize, u64)>,
    /// How many more.
    pub more: usize,
}

impl fmt::Debug for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Look::Figures { .. } => "Figures",
            Look::Event { .. } => "Event",
            Look::Readers { .. } => "Readers",
        })
    }
}

impl Reactor {
    pub(super) fn look(&mut self, look: Look) {
        let shard = self.shard;
        match look {
            Look::Figures { empty, reply } => {
                let recorder = self.tail.swap(empty);
                let _gone = reply.try_send(Figures { shard, recorder, gauges: self.gauges() });
            }
            Look::Event { asked, reply } => {
                let looked_up = self.doors.shard.look_up(&asked);
                let out = looked_up.trace.and_then(|trace| self.tail.out_of(trace.log_seq));
                let _gone = reply.try_send(EventLook { shard, looked_up, out });
            }
            Look::Readers { asked, reply } => {
                let readers = self.doors.shard.readers_of(&asked);
                let now_us = self.doors.now.mono_us as u32;
                let named = readers.named.into_iter().map(|reader| {
                    let (bytes, since_us) = self.net.sends.queued_since(reader.connection);
                    let waited_us = if bytes > 0 { now_us.wrapping_sub(since_us) } else { 0 };
                    (reader, bytes, u64::from(waited_us))
                });
                let _gone = reply.try_send(ReadersLook { shard, named: named.collect(), more: readers.more });
            }
        }
    }

    fn gauges(&self) -> Gauges {
        let (net, shard, log) = (self.net.stats(), &self.doors.shard, self.doors.shard.log().stats());
        let (mail_out, mail_in) = shard.mail_waiting();
        Gauges {
            connections: self.net.connections() as u64,
            clients: shard.clients() as u64,
            inputs_waiting: self.net.waiting() as u64,
            accepted: net.accepted,
            adopted: net.adopted,
            opened: net.opened,
            turned_away: net.refused,
            sends: net.sends,
            buffers_short: net.buffers_short,
            send_chunks: self.net.sends.chunks_used() as u64,
            records: log.records,
            record_bytes: log.record_bytes,
            uncommitted: shard.log().next_seq() - shard.log().committed_seq(),
            sessions: log.partitions as u64,
            sessions_dirty: log.partitions_dirty as u64,
            segments: log.segments as u64,
            cold_reads: log.cold_reads,
            checkpoints: log.checkpoints,
            no_space: shard.log().no_space(),
            open_files: self.disk.open_files() as u64,
            mail_out: mail_out as u64,
            mail_in: mail_in as u64,
            mail_missed: shard.counters().mail_missed,
            damaged_reads: shard.counters().damaged_reads,
            stall: self.tail.last_stall(),
        }
    }
}
