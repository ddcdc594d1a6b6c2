//! Segments made by hand and a folder in memory that runs jobs: shared by the tests of what is built from segments.

// Each test file uses a part of this.
#![allow(dead_code)]

use std::collections::BTreeMap;
use storage::disk::FileId;
use storage::group::{BLOCK_BYTES, GROUP_HEAD_BYTES, GroupHeader, group_bytes};
use storage::ids::{HashKey, LogId, PartitionId, SegmentId, SliceId};
use storage::jobs::{Job, JobDone, JobRun, Step};
use storage::record::*;
use storage::segment::{SegmentExpect, SegmentHeader, SegmentKind, Verdict, scan_segment};
use storage::sidecar::{BlockAt, SealJob, SidecarIndex};

pub const KEY: HashKey = HashKey(1, 2);
pub const LOG: LogId = LogId(3);

pub fn segment(number: u32) -> SegmentId {
    SegmentId { log: LOG, number }
}

/// A data folder in memory, and the one way a job may change it.
#[derive(Clone, Default)]
pub struct Folder {
    pub files: BTreeMap<FileId, Vec<u8>>,
    pub published: Vec<FileId>,
}

impl Folder {
    pub fn run(&mut self, job: Job) -> JobDone {
        self.run_until(job, &mut { usize::MAX }).expect("no crash was asked for")
    }

    /// Runs a job until `steps` are used up: then the process dies, and temporaries with it. `None` if it did.
    pub fn run_until(&mut self, job: Job, steps: &mut usize) -> Option<JobDone> {
        let mut run = JobRun::new(job);
        let (mut input, mut temporary) = (vec![], BTreeMap::<FileId, Vec<u8>>::new());
        loop {
            let step = run.step(&input);
            if !matches!(step, Step::Done(_)) {
                *steps = steps.checked_sub(1)?;
            }
            match step {
                Step::Read { file, at, len } => {
                    let bytes = &self.files[&file];
                    input = bytes[at as usize..(at as usize + len).min(bytes.len())].to_vec();
                    continue;
                }
                Step::Append { file, bytes } => temporary.entry(file).or_default().extend_from_slice(bytes),
                Step::Publish { file } => {
                    self.files.insert(file, temporary.remove(&file).unwrap());
                    self.published.push(file);
                }
                Step::Zero { file, bytes } => drop(self.files.insert(file, vec![0; bytes as usize])),
                Step::Remove { file } => drop(self.files.remove(&file)),
                Step::Done(done) => return Some(done),
            }
            input.clear();
        }
    }

    pub fn block(&self, at: BlockAt) -> &[u8] {
        &self.files[&at.file][at.at as usize..at.at as usize + at.len]
    }

    pub fn record(&self, segment: SegmentId, position: u32) -> RecordView<'_> {
        RecordView::checked(&self.files[&FileId::Segment(segment)][position as usize..]).unwrap()
    }
}

/// What a record of the test holds.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub session: u8,
    pub events: u8,
    pub marker: bool,
    pub numbered: bool,
    pub restart: bool,
}

#[derive(Clone, Default)]
pub struct Session {
    pub epoch: u64,
    pub tail: u64,
}

/// An appending log: sessions, slices and the segment being filled.
#[derive(Default)]
pub struct Writer {
    pub sessions: BTreeMap<String, Session>,
    pub slices: BTreeMap<SliceId, u64>,
    pub log_seq: u64,
    pub group: u64,
    pub messages: u64,
}

impl Writer {
    pub fn record(&mut self, wanted: Wanted) -> Vec<u8> {
        let name = format!("s{}", wanted.session);
        let partition = KEY.partition("t", &name);
        let session = self.sessions.entry(name.clone()).or_insert(Session { epoch: 1, tail: 0 });
        if wanted.restart {
            *session = Session { epoch: session.epoch + 1, tail: 0 };
        }
        let ids: Vec<String> = (0..wanted.events).map(|n| format!("m{}", self.messages + u64::from(n))).collect();
        let events: Vec<EventBody<'_>> = ids
            .iter()
            .map(|message_id| {
                let key = if wanted.numbered { 0 } else { KEY.dedupe(partition, session.epoch, "c", message_id) };
                EventBody {
                    topic: "chat.message",
                    client_id: "c",
                    message_id: if wanted.numbered { "" } else { message_id },
                    traceparent: "",
                    data: message_id.as_bytes(),
                    data_kind: 0,
                    prev_offset: NO_OFFSET,
                    expires_ms: 0,
                    producer_epoch: 1,
                    producer_seq: if wanted.numbered { 1 } else { NO_OFFSET },
                    dedupe_low: key as u64,
                    dedupe_high: (key >> 64) as u64,
                    body_hash: key as u64 ^ 7,
                }
            })
            .collect();
        let markers = [MarkerBody { name: "m", offset: session.tail }];
        let markers = if wanted.marker || wanted.events == 0 { &markers[..] } else { &[] };
        self.messages += u64::from(wanted.events);
        self.commit(&name, &events, markers)
    }

    /// The next record of a session.
    pub fn commit(&mut self, name: &str, events: &[EventBody<'_>], markers: &[MarkerBody<'_>]) -> Vec<u8> {
        let partition = KEY.partition("t", name);
        let session = self.sessions.entry(name.to_owned()).or_insert(Session { epoch: 1, tail: 0 });
        let slice_seq = self.slices.entry(partition.slice()).or_insert(1);
        let body = CommitBody { tenant: "t", session: name, events, markers };
        let head = RecordHead {
            length: 0,
            kind: Kind::Commit,
            slice: partition.slice(),
            count: 0,
            slice_seq: *slice_seq,
            partition,
            offset: session.tail,
            epoch: session.epoch,
            time_ms: 1000 + self.log_seq,
            log_seq: self.log_seq,
            body_bytes: 0,
        };
        let mut out = vec![0; commit_bytes_max(&body)];
        encode_commit(&head, &body, &mut out);
        session.tail += events.len() as u64;
        *slice_seq += events.len() as u64;
        self.log_seq += 1;
        out
    }

    /// A sealed segment with these records, some to a group.
    pub fn segment(&mut self, number: u32, wanted: &[Wanted]) -> Vec<u8> {
        self.pack(number, wanted, |writer, wanted| writer.record(*wanted))
    }

    /// A sealed segment with what is made of these.
    pub fn pack<T>(&mut self, number: u32, all: &[T], mut record: impl FnMut(&mut Writer, &T) -> Vec<u8>) -> Vec<u8> {
        let (segment, salt) = (segment(number), KEY.segment_salt(segment(number)));
        let mut out = vec![0; BLOCK_BYTES];
        let header = SegmentHeader {
            segment,
            kind: SegmentKind::Appended,
            unsynced: false,
            previous: None,
            bytes: 1 << 20,
            first_group: self.group + 1,
            first_log_seq: self.log_seq,
            salt,
        };
        header.put(&mut out);
        for group in all.chunks(9) {
            let first_log_seq = self.log_seq;
            let records: Vec<u8> = group.iter().flat_map(|one| record(self, one)).collect();
            self.group += 1;
            let header = GroupHeader {
                group_bytes: group_bytes(records.len()) as u32,
                records_bytes: records.len() as u32,
                count: group.len() as u32,
                segment,
                position: out.len() as u64,
                group: self.group,
                first_log_seq,
                durable_through: self.group - 1,
                salt,
            };
            let start = out.len();
            out.resize(start + GROUP_HEAD_BYTES, 0);
            header.put(&mut out[start..]);
            out.extend_from_slice(&records);
            out.resize(start + header.group_bytes as usize, 0);
        }
        out
    }
}

/// Seals a segment.
pub fn seal(folder: &mut Folder, number: u32) -> SidecarIndex {
    let (segment, salt) = (segment(number), KEY.segment_salt(segment(number)));
    let end = folder.files[&FileId::Segment(segment)].len() as u64;
    match folder.run(Job::Seal(SealJob { segment, salt, end })) {
        JobDone::Sealed { index } => {
            let bytes = &folder.files[&FileId::Sidecar(segment)];
            assert_eq!(SidecarIndex::parse(segment, bytes).as_ref(), Ok(&*index));
            *index
        }
        other => panic!("{other:?}"),
    }
}

/// Records of a segment file by scanning it.
pub fn scan(bytes: &[u8], segment: SegmentId) -> Vec<(u32, RecordView<'_>)> {
    let (salt, end) = (KEY.segment_salt(segment), bytes.len() as u64);
    let expect = SegmentExpect { segment, salt, first: None, fixed_end: Some(end), durable_end: end };
    let mut positions = vec![];
    let scanned = scan_segment(bytes, expect, |position, _| positions.push(position as u32));
    assert_eq!((scanned.verdict, scanned.end), (Verdict::Clean, end));
    positions.into_iter().map(|at| (at, RecordView::checked(&bytes[at as usize..]).unwrap())).collect()
}

/// Rows of a partition from `offset` on, block after block, as a reader goes.
pub fn partition_rows(folder: &Folder, index: &SidecarIndex, id: PartitionId, offset: u64) -> Vec<(u64, u32, u32)> {
    let (mut rows, mut next) = (vec![], index.partition_block(id, offset));
    while let Some(at) = next {
        let block = index.partition_rows(at, folder.block(at), id, offset).unwrap();
        rows.extend(block.map(|row| (row.at, row.position, row.count)));
        next = index.next_partition_block(at, id);
    }
    rows
}

/// Rows of a slice, likewise.
pub fn slice_rows(folder: &Folder, index: &SidecarIndex, slice: SliceId, seq: u64) -> Vec<(u64, u32, u32)> {
    let (mut rows, mut next) = (vec![], index.slice_block(slice, seq));
    while let Some(at) = next {
        let block = index.slice_rows(at, folder.block(at), slice, seq).unwrap();
        rows.extend(block.map(|row| (row.at, row.position, row.count)));
        next = index.next_slice_block(at, slice);
    }
    rows
}
