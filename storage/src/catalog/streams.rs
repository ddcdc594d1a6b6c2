//! Token streams of a session that are open: what the next record of a stream is checked against.
//!
//! ```text
//!   stream "s1":   seq 0 · 1 · 2 · … · next        each an event of the session, at an offset of its own
//!                  │first              └ expected
//!                  └ text so far begins here         closed ─► forgotten, once the close is committed
//! ```
//! The text itself is in the log and nowhere else. Entry of a stream in a checkpoint, little endian, not aligned:
//! ```text
//!  0  u64  first offset     8  u64  next seq     16  u64  bytes of text
//! 24  u8   stream bytes    25  u8   topic bytes  26  u8   recent
//! 27  stream, topic
//!     recent: u64 offset, u64 body hash; the last appends, oldest first
//! ```

use super::partition::Partition;
use super::{Catalog, Entries, NAME_BYTES_MAX, OpenJob, PartitionSlot};
use crate::bytes::{Put, Take};
use crate::checkpoint::{self, CheckpointIndex};
use crate::ids::{COUNTER_MAX, Epoch, Offset, PartitionId};

/// Most streams of a session that are open at once.
pub const STREAMS_MAX: usize = 32;
/// Last appends of a stream of which offset and body are remembered.
pub const STREAM_RECENT_MAX: usize = 8;

/// Bytes of a stream's entry before its names.
const STREAM_HEAD_BYTES: usize = 27;
/// Largest part of an entry that streams can take.
pub(super) const STREAMS_BYTES_MAX: usize =
    STREAMS_MAX * (STREAM_HEAD_BYTES + 2 * NAME_BYTES_MAX + STREAM_RECENT_MAX * 16);

/// A stream that is open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenStream {
    /// Name, unique in the session.
    pub name: Box<str>,
    /// Topic of its events: that of the first.
    pub topic: Box<str>,
    /// Offset of the first append.
    pub first: Offset,
    /// Number of the next append.
    pub next_seq: u64,
    /// Bytes of text so far.
    pub text_bytes: u64,
    /// The last appends, oldest first: offset and body hash.
    recent: Vec<(Offset, u64)>,
    /// Offset of its close, while that is not committed.
    closed: Option<Offset>,
}

impl OpenStream {
    /// Offset and body hash of append `seq`, where it is one of the last.
    pub fn recent(&self, seq: u64) -> Option<(Offset, u64)> {
        let back = self.next_seq.checked_sub(seq)?;
        let at = self.recent.len().checked_sub(usize::try_from(back).ok()?)?;
        self.recent.get(at).copied()
    }

    /// Its close was appended.
    pub fn is_closed(&self) -> bool {
        self.closed.is_some()
    }
}

/// What a record says of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamStep<'a> {
    /// Stream.
    pub name: &'a str,
    /// Topic of the event.
    pub topic: &'a str,
    /// Number of the append; of a close, how many there were.
    pub seq: u64,
    /// Offset of the event.
    pub offset: Offset,
    /// Bytes of text.
    pub text_bytes: u64,
    /// Hash of what was said.
    pub body_hash: u64,
    /// It closes the stream.
    pub closes: bool,
}

/// Open streams of one session.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Streams(Vec<OpenStream>);

impl Streams {
    fn step(&mut self, step: StreamStep<'_>, committed: Offset) {
        // What was closed is remembered only for readers who still see it open.
        self.0.retain(|stream| stream.closed.is_none_or(|closed| closed >= committed));
        let known = self.0.iter_mut().find(|stream| stream.closed.is_none() && *stream.name == *step.name);
        match known {
            Some(stream) if step.closes => stream.closed = Some(step.offset),
            Some(stream) => {
                if stream.recent.len() == STREAM_RECENT_MAX {
                    stream.recent.remove(0);
                }
                stream.recent.push((step.offset, step.body_hash));
                stream.next_seq = step.seq + 1;
                stream.text_bytes += step.text_bytes;
            }
            None if step.closes => {}
            None => self.0.push(OpenStream {
                name: step.name.into(),
                topic: step.topic.into(),
                first: step.offset,
                next_seq: step.seq + 1,
                text_bytes: step.text_bytes,
                recent: vec![(step.offset, step.body_hash)],
                closed: None,
            }),
        }
    }

    pub fn memory_bytes(&self) -> usize {
        let each = |stream: &OpenStream| {
            size_of::<OpenStream>() + stream.name.len() + stream.topic.len() + stream.recent.capacity() * 16
        };
        size_of::<Streams>() + self.0.iter().map(each).sum::<usize>()
    }

    /// Streams that a checkpoint keeps. When it counts, every close in it is committed.
    pub fn open(&self) -> impl Iterator<Item = &OpenStream> {
        self.0.iter().filter(|stream| stream.closed.is_none())
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        for stream in self.open() {
            out.put_u64(stream.first);
            out.put_u64(stream.next_seq);
            out.put_u64(stream.text_bytes);
            out.put_u8(stream.name.len() as u8);
            out.put_u8(stream.topic.len() as u8);
            out.put_u8(stream.recent.len() as u8);
            out.put(stream.name.as_bytes());
            out.put(stream.topic.as_bytes());
            for (offset, body_hash) in &stream.recent {
                out.put_u64(*offset);
                out.put_u64(*body_hash);
            }
        }
    }

    /// Reads `count` streams of a session whose tail is given.
    pub fn decode(take: &mut Take<'_>, count: usize, tail: Offset) -> Option<Streams> {
        let mut streams = Vec::with_capacity(count.min(STREAMS_MAX));
        for _ in 0..count {
            let (first, next_seq, text_bytes) = (take.u64()?, take.u64()?, take.u64()?);
            let (name_bytes, topic_bytes, recent) = (take.u8()?, take.u8()?, take.u8()?);
            let (name, topic) = (take.str(name_bytes.into())?.into(), take.str(topic_bytes.into())?.into());
            let sound = usize::from(recent) <= STREAM_RECENT_MAX
                && u64::from(recent) <= next_seq
                && first < tail
                && next_seq.max(text_bytes) <= COUNTER_MAX;
            if !sound {
                return None;
            }
            let mut last = Vec::with_capacity(recent.into());
            for _ in 0..recent {
                last.push((take.u64()?, take.u64()?));
            }
            streams.push(OpenStream { name, topic, first, next_seq, text_bytes, recent: last, closed: None });
        }
        Some(Streams(streams))
    }
}

impl Partition {
    /// Streams whose close was not appended.
    pub fn open_streams(&self) -> impl Iterator<Item = &OpenStream> {
        self.streams.iter().flat_map(|streams| streams.open())
    }

    /// The stream of this name, if it is open.
    pub fn open_stream(&self, name: &str) -> Option<&OpenStream> {
        self.open_streams().find(|stream| *stream.name == *name)
    }

    /// Where the oldest stream begins that is open to a reader who sees what is committed.
    pub fn oldest_stream(&self) -> Option<Offset> {
        let committed = self.committed;
        let seen =
            |stream: &&OpenStream| stream.first < committed && stream.closed.is_none_or(|closed| closed >= committed);
        self.streams.iter().flat_map(|streams| streams.0.iter()).filter(seen).map(|stream| stream.first).min()
    }
}

/// A session in which something waits for its time when the log is recovered: streams that are open, entries, jobs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Streaming {
    /// Tenant.
    pub tenant: Box<str>,
    /// Session.
    pub session: Box<str>,
    /// Epoch of it.
    pub epoch: Epoch,
    /// Streams.
    pub streams: Vec<Box<str>>,
    /// Entries, if it ever had any.
    pub entries: Option<Box<Entries>>,
    /// Jobs that are open or dead.
    pub jobs: Vec<OpenJob>,
}

impl Streaming {
    /// Of a session, if it has any.
    pub(crate) fn of(partition: &Partition) -> Option<Streaming> {
        let streams: Vec<Box<str>> = partition.open_streams().map(|stream| stream.name.clone()).collect();
        let (tenant, session) = (partition.tenant().into(), partition.session().into());
        let (entries, jobs) = (partition.entries().cloned().map(Box::new), partition.jobs().to_vec());
        let waits = !streams.is_empty() || entries.is_some() || !jobs.is_empty();
        waits.then_some(Streaming { tenant, session, epoch: partition.epoch(), streams, entries, jobs })
    }
}

/// Sessions of a checkpoint in which something waits for its time. A page that does not verify is left out: whoever needs it next meets
/// the damage.
pub(crate) fn streaming(index: &CheckpointIndex, bytes: &[u8]) -> Vec<Streaming> {
    let of = |id: &PartitionId| {
        let at = index.page_of(*id)?;
        let from = usize::try_from(at.at).ok()?;
        let page = bytes.get(from..from.checked_add(at.len)?)?;
        let entry = checkpoint::find_in_page(page, at.at, *id).ok()??;
        Streaming::of(&Partition::decode(entry.bytes)?)
    };
    index.streaming().iter().filter_map(of).collect()
}

impl Catalog {
    /// Takes an event of a stream into the state. Its record was [appended](Catalog::append) or
    /// [replayed](Catalog::replay) just now.
    pub fn streamed(&mut self, slot: PartitionSlot, step: StreamStep<'_>) {
        let partition = &mut self.resident_mut(slot).partition;
        let committed = partition.committed;
        let streams = partition.streams.get_or_insert_default();
        streams.step(step, committed);
        if streams.0.is_empty() {
            partition.streams = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, seq: u64, offset: Offset, closes: bool) -> StreamStep<'_> {
        StreamStep { name, topic: "stream", seq, offset, text_bytes: 3, body_hash: 100 + seq, closes }
    }

    #[test]
    fn the_last_appends_are_remembered() {
        let mut streams = Streams::default();
        for seq in 0..20 {
            streams.step(step("s", seq, 2 * seq, false), 0);
        }
        let stream = streams.open().next().unwrap();
        assert_eq!((stream.first, stream.next_seq, stream.text_bytes), (0, 20, 60));
        assert_eq!(stream.recent(19), Some((38, 119)));
        assert_eq!(stream.recent(12), Some((24, 112)));
        assert_eq!(stream.recent(11), None, "too long ago");
        assert_eq!(stream.recent(20), None, "not yet");
    }

    #[test]
    fn a_closed_stream_is_remembered_until_its_close_is_committed() {
        let mut streams = Streams::default();
        streams.step(step("a", 0, 5, false), 5);
        streams.step(step("a", 1, 6, true), 5);
        assert_eq!((streams.open().count(), streams.0.len()), (0, 1), "readers at offset 5 see it open");
        streams.step(step("a", 0, 7, false), 6);
        assert_eq!((streams.open().count(), streams.0.len()), (1, 2), "its close is at 6, not below");
        streams.step(step("b", 0, 8, false), 7);
        assert_eq!(streams.0.len(), 2);
    }

    #[test]
    fn an_entry_comes_back_as_it_was_and_no_bytes_make_it_panic() {
        let mut streams = Streams::default();
        for (seq, name) in ["a", "b", "a", "a"].into_iter().enumerate() {
            streams.step(step(name, seq as u64, 10 + seq as u64, false), 0);
        }
        let mut bytes = Vec::new();
        streams.encode(&mut bytes);
        assert_eq!(Streams::decode(&mut Take(&bytes), 2, 20), Some(streams));
        assert_eq!(Streams::decode(&mut Take(&bytes), 2, 10), None, "begins at the tail");
        for end in 0..bytes.len() {
            assert_eq!(Streams::decode(&mut Take(&bytes[..end]), 2, 20), None);
        }
    }
}
