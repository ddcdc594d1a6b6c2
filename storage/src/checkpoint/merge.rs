//! Making the next checkpoint: what changed, merged with the previous file, in chunks.

use super::page::{PAGE_HEAD_BYTES, entry_at, page_entries, page_length};
use super::write::Writer;
use super::{BadCheckpoint, CheckpointIndex, LogPosition, Made};
use crate::disk::FileId;
use crate::group::BLOCK_BYTES;
use crate::ids::{LogId, LogSeq, PartitionId, SliceSeq};
use crate::jobs::{CHUNK_BYTES, JobDone, Step};
use std::ops::Range;

/// Dirty partitions as they were when collected, and what the next checkpoint will stand for. Made by the catalog.
#[derive(Debug, Default)]
pub struct Draft {
    pub(crate) bytes: Vec<u8>,
    pub(crate) entries: Vec<(PartitionId, Range<usize>)>,
    pub(crate) slice_next: Vec<SliceSeq>,
    /// Replay starts here: the log's position when the collection began.
    pub position: LogPosition,
    /// Everything below is in the draft; the job may run only when it is committed.
    pub through: LogSeq,
    /// The log is being stopped and nothing will follow.
    pub clean_stop: bool,
}

impl Draft {
    /// Partitions in it.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// No partition changed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// User memory in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<(PartitionId, Range<usize>)>()
    }
}

/// The checkpoint a draft is merged with: what the job must know of it without reading its tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Previous {
    log: LogId,
    number: u32,
    pages_end: u64,
    entries: u64,
}

impl From<&CheckpointIndex> for Previous {
    fn from(index: &CheckpointIndex) -> Previous {
        let CheckpointIndex { log, number, entries, .. } = *index;
        Previous { log, number, pages_end: index.pages_end(), entries }
    }
}

/// A checkpoint to be made.
#[derive(Debug)]
pub struct CheckpointJob {
    /// Log.
    pub log: LogId,
    /// Number of the new checkpoint: one above every earlier one of the log.
    pub number: u32,
    /// What changed.
    pub draft: Draft,
    /// What it changed from.
    pub previous: Option<Previous>,
}

/// Streaming reader of a checkpoint's pages, fed by the executor.
#[derive(Debug)]
struct OldPages {
    file: FileId,
    /// File position of `buffer[0]`.
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    /// Entries of the open page still to come, then the next page.
    entries: Range<usize>,
    next_page: usize,
}

/// What the next entry of the old checkpoint is.
enum Next {
    Entry(PartitionId, Range<usize>),
    NeedsBytes,
    End,
    Corrupt { at: u64 },
}

impl OldPages {
    fn new(previous: Previous) -> OldPages {
        OldPages {
            file: FileId::Checkpoint(previous.log, previous.number),
            at: BLOCK_BYTES as u64,
            end: previous.pages_end,
            buffer: Vec::new(),
            entries: 0..0,
            next_page: 0,
        }
    }

    fn peek(&mut self) -> Next {
        while self.entries.is_empty() {
            let page_at = self.at + self.next_page as u64;
            let bytes = &self.buffer[self.next_page..];
            if page_at == self.end {
                return Next::End;
            }
            if bytes.len() < BLOCK_BYTES {
                return Next::NeedsBytes;
            }
            let Some(length) = page_length(bytes) else { return Next::Corrupt { at: page_at } };
            let Some(page) = bytes.get(..length) else {
                let missing = page_at + length as u64 > self.end;
                return if missing { Next::Corrupt { at: page_at } } else { Next::NeedsBytes };
            };
            let Some(entries) = page_entries(page, (page_at / BLOCK_BYTES as u64) as u32) else {
                return Next::Corrupt { at: page_at };
            };
            let start = self.next_page + PAGE_HEAD_BYTES;
            self.entries = start..start + entries.len();
            self.next_page += length;
        }
        match entry_at(&self.buffer[self.entries.clone()]) {
            Some(entry) => Next::Entry(entry.id, self.entries.start..self.entries.start + entry.bytes.len()),
            None => Next::Corrupt { at: self.at + self.entries.start as u64 },
        }
    }

    /// Step past the entry just peeked.
    fn advance(&mut self, entry: Range<usize>) {
        self.entries.start = entry.end;
    }

    fn request(&self) -> Step<'static> {
        let at = self.at + self.buffer.len() as u64;
        Step::Read { file: self.file, at, len: CHUNK_BYTES.min((self.end - at) as usize) }
    }

    /// Takes what [`OldPages::request`] asked for; false if the file ends before its pages do.
    fn feed(&mut self, input: &[u8]) -> bool {
        self.buffer.drain(..self.next_page);
        self.at += self.next_page as u64;
        self.next_page = 0;
        self.entries = 0..0;
        self.buffer.extend_from_slice(input);
        !input.is_empty()
    }
}

/// A [`CheckpointJob`] being executed: a merge of two sorted streams, in chunks.
#[derive(Debug)]
pub struct CheckpointRun {
    writer: Writer,
    draft: Draft,
    /// Entries of the draft already merged.
    merged: usize,
    old: Option<OldPages>,
    phase: Phase,
    /// Handed to the executor by the last step.
    chunk: Vec<u8>,
    index: Option<CheckpointIndex>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Merging,
    Reading,
    Appending,
    Publishing,
    Finished,
}

impl CheckpointRun {
    /// Begins the job.
    pub fn new(job: CheckpointJob) -> CheckpointRun {
        let CheckpointJob { log, number, mut draft, previous } = job;
        draft.entries.sort_unstable_by_key(|(id, _)| *id);
        let entries_max = draft.entries.len() as u64 + previous.map_or(0, |previous| previous.entries);
        CheckpointRun {
            writer: Writer::new(log, number, entries_max),
            draft,
            merged: 0,
            old: previous.map(OldPages::new),
            phase: Phase::Merging,
            chunk: Vec::new(),
            index: None,
        }
    }

    /// See [`JobRun::step`](crate::jobs::JobRun::step).
    pub fn step(&mut self, input: &[u8]) -> Step<'_> {
        let file = FileId::Checkpoint(self.writer.log, self.writer.number);
        match self.phase {
            Phase::Reading => {
                let old = self.old.as_mut().expect("reading means there is an old checkpoint");
                if !old.feed(input) {
                    let at = old.at;
                    return self.corrupt(at);
                }
                self.phase = Phase::Merging;
            }
            Phase::Publishing => {
                self.phase = Phase::Finished;
                return Step::Publish { file };
            }
            Phase::Finished => {
                let index = self.index.take().expect("a finished job was stepped again");
                return Step::Done(JobDone::Checkpointed { index: Box::new(index) });
            }
            Phase::Merging | Phase::Appending => {}
        }
        while self.writer.out.len() < CHUNK_BYTES && self.index.is_none() {
            match self.merge_one() {
                Next::Entry(..) => {}
                Next::NeedsBytes => {
                    self.phase = Phase::Reading;
                    return self.old.as_ref().expect("only an old checkpoint needs bytes").request();
                }
                Next::Corrupt { at } => return self.corrupt(at),
                Next::End => {
                    let slice_next = std::mem::take(&mut self.draft.slice_next);
                    let Draft { position, clean_stop, .. } = self.draft;
                    self.index = Some(self.writer.finish(position, clean_stop, slice_next));
                }
            }
        }
        self.phase = if self.index.is_some() { Phase::Publishing } else { Phase::Appending };
        self.chunk.clear();
        std::mem::swap(&mut self.chunk, &mut self.writer.out);
        Step::Append { file, bytes: &self.chunk }
    }

    /// Moves the smallest entry of both streams to the writer; the draft's wins where both have one.
    fn merge_one(&mut self) -> Next {
        let next_old = self.old.as_mut().map_or(Next::End, OldPages::peek);
        let fresh = self.draft.entries.get(self.merged).map(|(id, range)| (*id, range.clone()));
        match (next_old, fresh) {
            (Next::Entry(id, range), fresh) if fresh.as_ref().is_none_or(|(fresh, _)| id <= *fresh) => {
                let old = self.old.as_mut().expect("an entry was peeked from it");
                if fresh.is_none_or(|(fresh, _)| fresh != id) {
                    let entry = entry_at(&old.buffer[range.clone()]).expect("peeked");
                    self.writer.push(entry);
                }
                old.advance(range.clone());
                Next::Entry(id, range)
            }
            (Next::Entry(..) | Next::End, Some((id, range))) => {
                self.writer.push(entry_at(&self.draft.bytes[range.clone()]).expect("the catalog encoded it"));
                self.merged += 1;
                Next::Entry(id, range)
            }
            (other, _) => other,
        }
    }

    fn corrupt(&mut self, at: u64) -> Step<'static> {
        self.phase = Phase::Finished;
        let file = self.old.as_ref().map_or(FileId::Manifest, |old| old.file);
        Step::Done(JobDone::Corrupt { file, at })
    }
}

/// Runs a checkpoint job in memory, for boot and tests: the new file and its tables. `previous` is the whole old file.
///
/// # Errors
/// The old file does not verify.
pub fn merge(job: CheckpointJob, previous: &[u8]) -> Result<Made, BadCheckpoint> {
    let mut run = CheckpointRun::new(job);
    let (mut file, mut input) = (Vec::new(), Vec::new());
    loop {
        let step = run.step(&input);
        match step {
            Step::Read { at, len, .. } => {
                let at = usize::try_from(at).unwrap_or(usize::MAX).min(previous.len());
                input = previous[at..(at + len).min(previous.len())].to_vec();
            }
            Step::Append { bytes, .. } => file.extend_from_slice(bytes),
            Step::Done(JobDone::Checkpointed { index }) => return Ok((file, *index)),
            Step::Done(JobDone::Corrupt { at, .. }) => return Err(BadCheckpoint::Corrupt { at }),
            Step::Publish { .. } => {}
            Step::Zero { .. } | Step::Remove { .. } | Step::Done(_) => unreachable!("not a step of a checkpoint"),
        }
    }
}
