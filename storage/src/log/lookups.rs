//! Dedupe keys that may be in a sealed segment: one block of its sidecar is read for each filter that says "maybe".
//!
//! ```text
//!   dedupe ─► hot map? ─► filters of the segments the session is in ─► none: No
//!                                       └─ some: Looking ─► blocks, newest first ─► Looked event ─► asked again: the answer
//! ```

use super::reader::{Purpose, ReadFault};
use super::{Log, LogEvent, Seen};
use crate::catalog::{KeyMap, PartitionSlot};
use crate::dedupe::SeenEvent;
use crate::disk::DiskFault;
use crate::ids::{PartitionId, SegmentId};
use crate::sidecar::BlockAt;
use slab::Slab;
use std::collections::VecDeque;

/// Answers kept until they are asked for.
const ANSWERS_MAX: usize = 1024;

#[derive(Debug)]
struct Lookup {
    id: PartitionId,
    key: u128,
    /// Blocks still to be asked, the newest segment's last: an original segment, the file that held it, and where in that.
    blocks: Vec<(SegmentId, SegmentId, BlockAt)>,
}

#[derive(Debug)]
pub(super) struct Lookups {
    waiting: Slab<Lookup>,
    by_key: KeyMap<u128, u32>,
    /// Those without a buffer, oldest first.
    queue: VecDeque<u32>,
    answers: VecDeque<(u128, Option<SeenEvent>)>,
}

impl Lookups {
    pub(super) fn new() -> Lookups {
        Lookups {
            waiting: Slab::new(),
            by_key: KeyMap::default(),
            queue: VecDeque::new(),
            answers: VecDeque::with_capacity(ANSWERS_MAX),
        }
    }
}

impl Log {
    pub(super) fn seen(&mut self, slot: PartitionSlot, key: u128) -> Seen {
        let partition = self.partition(slot);
        let (id, committed) = (partition.id(), partition.committed());
        let yes = |SeenEvent { offset, body_hash }| Seen::Yes { offset, body_hash, committed: offset < committed };
        if let Some(seen) = self.hot_keys.get(key) {
            return yes(seen);
        }
        if let Some((_, answer)) = self.lookups.answers.iter().rev().find(|(answered, _)| *answered == key) {
            return answer.map_or(Seen::No, yes);
        }
        if self.lookups.by_key.contains_key(&key) {
            return Seen::Looking;
        }
        let runs = self.partition(slot).runs();
        let found = self.shelf.dedupe_blocks(runs, key);
        let mut blocks: Vec<_> =
            found.map(|(original, index, block)| (original, index.contents.segment, block)).collect();
        // The newest segment's is asked first, from the back.
        blocks.reverse();
        if blocks.is_empty() {
            return Seen::No;
        }
        let lookup = self.lookups.waiting.insert(Lookup { id, key, blocks }) as u32;
        self.lookups.by_key.insert(key, lookup);
        self.lookups.queue.push_back(lookup);
        self.begin_lookups();
        Seen::Looking
    }

    /// Starts reads for those that wait, while there are buffers.
    pub(super) fn begin_lookups(&mut self) {
        while self.reader.free_for_loads()
            && let Some(lookup) = self.lookups.queue.pop_front()
        {
            match self.lookups.waiting[lookup as usize].blocks.last() {
                Some((_, _, block)) => {
                    let BlockAt { file, at, len } = *block;
                    let wanted = self.reader.begin(Purpose::KeyIndex { lookup }, file, at, len);
                    self.ask(wanted.expect("a buffer is free"));
                }
                None => self.looked(lookup, Ok(None)),
            }
        }
    }

    /// A block of a sidecar was read, or not.
    pub(super) fn key_block_read(&mut self, lookup: u32, slot: u16, result: Result<usize, DiskFault>) {
        let waiting = &mut self.lookups.waiting[lookup as usize];
        let key = waiting.key;
        let Some((original, segment, block)) = waiting.blocks.pop() else { return };
        let answer = match (result, self.shelf.index(segment)) {
            (Ok(bytes), Some(index)) => {
                let bytes = &self.reader.buffer(slot)[..bytes.min(block.len)];
                index.dedupe_row(block, bytes, key).map_err(|_| ReadFault::Corrupt { file: block.file, at: block.at })
            }
            // Retention took it: what it had seen is forgotten. Re-clustering: the key is in the new one.
            (Err(DiskFault::Missing), _) | (_, None) => {
                let moved = self.shelf.find(original).filter(|index| index.contents.segment != segment);
                let again = moved.and_then(|index| Some((original, index.contents.segment, index.dedupe_block(key)?)));
                self.lookups.waiting[lookup as usize].blocks.extend(again);
                Ok(None)
            }
            (Err(fault), Some(_)) => Err(ReadFault::Disk(fault)),
        };
        self.reader.put_back(slot);
        match answer {
            Ok(None) => self.lookups.queue.push_back(lookup),
            Ok(Some(row)) => self.looked(lookup, Ok(Some(SeenEvent { offset: row.offset, body_hash: row.body_hash }))),
            Err(fault) => self.looked(lookup, Err(fault)),
        }
    }

    /// Keys left the hot map for a sidecar: that one of them was not seen before is no longer true.
    pub(super) fn forget_unseen(&mut self) {
        self.lookups.answers.retain(|(_, answer)| answer.is_some());
    }

    fn looked(&mut self, lookup: u32, answer: Result<Option<SeenEvent>, ReadFault>) {
        let Lookup { id, key, .. } = self.lookups.waiting.remove(lookup as usize);
        self.lookups.by_key.remove(&key);
        if let Ok(answer) = answer {
            if self.lookups.answers.len() == ANSWERS_MAX {
                self.lookups.answers.pop_front();
            }
            self.lookups.answers.push_back((key, answer));
        }
        self.events.push_back(LogEvent::Looked { id, key, fault: answer.err() });
    }
}
