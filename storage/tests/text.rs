//! Merged deltas: a log reads the same with and without, to the delta and to the byte; what a crash leaves, and what it takes on disk.

mod support;

use proptest::prelude::*;
use std::collections::BTreeMap;
use storage::disk::FileId;
use storage::ids::{SegmentId, SliceId};
use storage::jobs::{Job, JobDone};
use storage::recluster::{CLUSTERED, ReclusterJob, ReclusterLimits, SegmentMap, Source, plan};
use storage::record::*;
use storage::sidecar::SidecarIndex;
use support::{Folder, KEY, LOG, Writer, partition_rows, scan, seal, segment, slice_rows};

/// Largest record of deltas, so that some runs take several.
const RECORD_BYTES: usize = 900;

#[derive(Clone, Debug)]
enum Step {
    Delta { session: usize, stream: u8, text: &'static str },
    Close { session: usize, stream: u8 },
    Event { session: usize, events: u8 },
    Mark { session: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let texts = prop_oneof![
        Just(""),
        Just("a"),
        Just(" the"),
        Just("\\n\\u00e9"),
        Just("äöü"),
        Just("🙂"),
        Just("a longer piece of text than most are")
    ];
    prop_oneof![
        12 => (0usize..4, 0u8..3, texts).prop_map(|(session, stream, text)| Step::Delta { session, stream, text }),
        1 => (0usize..4, 0u8..3).prop_map(|(session, stream)| Step::Close { session, stream }),
        1 => (0usize..4, 1u8..4).prop_map(|(session, events)| Step::Event { session, events }),
        1 => (0usize..4).prop_map(|session| Step::Mark { session }),
    ]
}

/// Three sessions of one slice, and one of another.
fn names() -> Vec<String> {
    let slice = |name: &String| KEY.partition("t", name).slice();
    let all: Vec<String> = (0..8000).map(|n| format!("s{n}")).collect();
    let first = slice(&all[0]);
    let mut names: Vec<String> = all.iter().filter(|name| slice(name) == first).take(3).cloned().collect();
    names.extend(all.iter().find(|name| slice(name) != first).cloned());
    assert_eq!(names.len(), 4);
    names
}

/// Numbers of the streams of a log.
#[derive(Default)]
struct Scribe {
    writer: Writer,
    names: Vec<String>,
    /// Life and next number of a stream.
    streams: BTreeMap<(usize, u8), (u32, u64)>,
}

impl Scribe {
    fn new() -> Scribe {
        Scribe { names: names(), ..Scribe::default() }
    }

    fn segment(&mut self, number: u32, steps: &[Step]) -> Vec<u8> {
        let Scribe { writer, names, streams } = self;
        writer.pack(number, steps, |writer, step| record(writer, names, streams, step))
    }
}

fn record(
    writer: &mut Writer,
    names: &[String],
    streams: &mut BTreeMap<(usize, u8), (u32, u64)>,
    step: &Step,
) -> Vec<u8> {
    let plain = EventBody {
        topic: "chat.message",
        client_id: "client",
        message_id: "m",
        traceparent: "",
        data: b"{}",
        data_kind: DataKind::Json as u8,
        prev_offset: NO_OFFSET,
        expires_ms: 0,
        producer_epoch: 0,
        producer_seq: NO_OFFSET,
        dedupe_low: writer.log_seq + 1,
        dedupe_high: 1,
        body_hash: 5,
    };
    match step {
        Step::Delta { session, stream, text } => {
            let (life, seq) = streams.entry((*session, *stream)).or_default();
            let (name, data) = (format!("stream-{stream}-{life}"), format!("\"{text}\""));
            let delta = EventBody {
                topic: "stream",
                message_id: &name,
                data: data.as_bytes(),
                data_kind: DataKind::Delta as u8,
                producer_seq: *seq,
                dedupe_low: 0,
                dedupe_high: 0,
                ..plain
            };
            *seq += 1;
            writer.commit(&names[*session], &[delta], &[])
        }
        Step::Close { session, stream } => {
            let (life, seq) = streams.entry((*session, *stream)).or_default();
            let name = format!("stream-{stream}-{life}");
            let (data_kind, producer_seq) = (DataKind::Close as u8, *seq);
            (*life, *seq) = (*life + 1, 0);
            let data = b"\"complete\"";
            let close = EventBody { topic: "stream", message_id: &name, data, data_kind, producer_seq, ..plain };
            writer.commit(&names[*session], &[close], &[])
        }
        Step::Event { session, events } => writer.commit(&names[*session], &vec![plain; (*events).into()], &[]),
        Step::Mark { session } => writer.commit(&names[*session], &[], &[MarkerBody { name: "seen", offset: 1 }]),
    }
}

/// An offset of a session, its place in its slice, and what stands there.
type Seen = (String, u64, u64, String);

fn seen(record: RecordView<'_>) -> Vec<Seen> {
    let session = record.session().to_owned();
    let delta = |d: DeltaView<'_>| format!("{} {} {}: {}", d.topic, d.stream, d.seq, d.text);
    let merged = record.deltas().map(|d| (session.clone(), d.offset, d.slice_seq, delta(d)));
    let events = record.events().map(|event| {
        let what = event.delta().map_or_else(|| format!("{event:?} {:?}", event.data()), delta);
        (session.clone(), event.offset(), event.slice_seq(), what)
    });
    merged.chain(events).collect()
}

struct Files {
    folder: Folder,
    map: SegmentMap,
    indexes: BTreeMap<SegmentId, SidecarIndex>,
    clustered: u32,
}

impl Files {
    fn new(scribe: &mut Scribe, segments: &[Vec<Step>]) -> Files {
        let (folder, map, indexes) = (Folder::default(), SegmentMap::default(), BTreeMap::new());
        let mut files = Files { folder, map, indexes, clustered: CLUSTERED };
        for (number, steps) in (0..).zip(segments) {
            files.folder.files.insert(FileId::Segment(segment(number)), scribe.segment(number, steps));
            files.indexes.insert(segment(number), seal(&mut files.folder, number));
            files.map.insert(segment(number), (number, number));
        }
        files
    }

    fn job(&mut self, segments: &[SegmentId]) -> ReclusterJob {
        let contents: Vec<_> = segments.iter().map(|segment| self.indexes[segment].contents).collect();
        let target = segment(self.clustered);
        self.clustered += 1;
        ReclusterJob {
            target,
            salt: KEY.segment_salt(target),
            covers: (contents[0].covers.0, contents[contents.len() - 1].covers.1),
            sources: contents
                .iter()
                .map(|c| Source { segment: c.segment, salt: KEY.segment_salt(c.segment), end: c.end })
                .collect(),
            text_record_bytes_max: RECORD_BYTES,
        }
    }

    fn recluster(&mut self, segments: &[SegmentId]) -> SegmentId {
        let job = self.job(segments);
        let JobDone::Reclustered { index, .. } = self.folder.run(Job::Recluster(job)) else { panic!() };
        let (segment, covers) = (index.contents.segment, index.contents.covers);
        let bytes = &self.folder.files[&FileId::Sidecar(segment)];
        assert_eq!(SidecarIndex::parse(segment, bytes).as_ref(), Ok(&*index));
        self.indexes.insert(segment, *index);
        for file in self.map.insert(segment, covers) {
            self.folder.files.remove(&FileId::Segment(file));
            self.folder.files.remove(&FileId::Sidecar(file));
        }
        segment
    }

    /// What a session's reader sees, from an offset on.
    fn session(&self, name: &str, from: u64) -> Vec<Seen> {
        let id = KEY.partition("t", name);
        let rows = self.map.files().flat_map(|file| {
            let rows = partition_rows(&self.folder, &self.indexes[&file], id, from);
            rows.into_iter().map(move |row| (file, row))
        });
        let covered = rows.filter(|(_, (at, _, count))| at + u64::from(*count) > from);
        let all = covered.flat_map(|(file, (at, position, count))| {
            let record = self.folder.record(file, position);
            assert_eq!((record.offset(), record.count()), (at, count));
            seen(record)
        });
        all.filter(|seen| seen.1 >= from).collect()
    }

    /// What a pattern's reader sees of a slice that has seen it up to a place.
    fn slice(&self, slice: SliceId, after: u64) -> Vec<Seen> {
        let mut all = vec![];
        for file in self.map.files() {
            if file.number < CLUSTERED {
                let records = scan(&self.folder.files[&FileId::Segment(file)], file);
                all.extend(records.iter().filter(|(_, r)| r.slice() == slice).flat_map(|(_, r)| seen(*r)));
                continue;
            }
            let range = self.indexes[&file].slice_range(slice);
            let mut least = u64::MAX;
            for (at, position, count) in slice_rows(&self.folder, &self.indexes[&file], slice, 0) {
                let record = self.folder.record(file, position);
                assert_eq!((record.slice_seq(), record.slice_count()), (at, count));
                least = least.min(record.first_slice_seq());
                assert!(range.is_some_and(|range| at < range.end));
                all.extend(seen(record));
            }
            assert_eq!(range.map_or(u64::MAX, |range| range.first), least);
        }
        all.retain(|seen| seen.2 > after);
        all
    }

    fn bytes(&self) -> usize {
        self.map
            .files()
            .flat_map(|f| [FileId::Segment(f), FileId::Sidecar(f)])
            .map(|f| self.folder.files[&f].len())
            .sum()
    }
}

/// A pattern's reader gets each session in its order; text of one may stand behind events of another.
fn by_session(all: Vec<Seen>) -> BTreeMap<String, Vec<Seen>> {
    let mut sessions: BTreeMap<String, Vec<Seen>> = BTreeMap::new();
    all.into_iter().for_each(|seen| sessions.entry(seen.0.clone()).or_default().push(seen));
    sessions
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Merged or not, and merged again: every reader, from every place, sees the same deltas and events at the same places.
    #[test]
    fn a_log_reads_the_same_with_and_without(
        segments in proptest::collection::vec(proptest::collection::vec(step(), 0..80), 4..6),
    ) {
        let mut scribe = Scribe::new();
        let plain = Files::new(&mut scribe, &segments);
        let mut merged = Files { folder: plain.folder.clone(), map: plain.map.clone(), indexes: plain.indexes.clone(), ..plain };
        let plain = Files { clustered: 0, folder: merged.folder.clone(), map: merged.map.clone(), indexes: merged.indexes.clone() };
        let first = merged.recluster(&[segment(0), segment(1)]);
        let second = merged.recluster(&[segment(2), segment(3)]);
        for round in 0..2 {
            for name in &scribe.names {
                let tail = scribe.writer.sessions.get(name).map_or(0, |session| session.tail);
                for from in 0..=tail {
                    prop_assert_eq!(merged.session(name, from), plain.session(name, from), "{} from {}", name, from);
                }
                let slice = KEY.partition("t", name).slice();
                let end = scribe.writer.slices.get(&slice).copied().unwrap_or(1);
                for after in (0..end).step_by(11) {
                    let (merged, plain) = (merged.slice(slice, after), plain.slice(slice, after));
                    prop_assert_eq!(by_session(merged), by_session(plain), "{:?} after {}", slice, after);
                }
            }
            if round == 0 {
                merged.recluster(&[first, second]);
            }
        }
        let records = merged.map.files().map(|file| merged.indexes[&file].contents.records).sum::<u64>();
        prop_assert!(records <= plain.map.files().map(|file| plain.indexes[&file].contents.records).sum::<u64>());
    }

    /// A crash between any two steps leaves the sources, or what stands in for them, and the job done again makes the same bytes.
    #[test]
    fn a_crash_at_any_step_leaves_one_of_the_two(
        segments in proptest::collection::vec(proptest::collection::vec(step(), 1..60), 2..4),
    ) {
        let mut scribe = Scribe::new();
        let mut files = Files::new(&mut scribe, &segments);
        let sources: Vec<SegmentId> = files.map.files().collect();
        let job = files.job(&sources);
        let before: Vec<_> = scribe.names.iter().map(|name| files.session(name, 0)).collect();
        let whole = {
            let mut folder = files.folder.clone();
            folder.run(Job::Recluster(job.clone()));
            folder.files[&FileId::Segment(job.target)].clone()
        };
        for steps in 0.. {
            let mut folder = files.folder.clone();
            let done = folder.run_until(Job::Recluster(job.clone()), &mut { steps });
            for source in &sources {
                prop_assert_eq!(&folder.files[&FileId::Segment(*source)], &files.folder.files[&FileId::Segment(*source)]);
            }
            match folder.files.get(&FileId::Segment(job.target)) {
                None => prop_assert!(done.is_none()),
                Some(bytes) => {
                    prop_assert_eq!(bytes, &whole);
                    let index = SidecarIndex::parse(job.target, &folder.files[&FileId::Sidecar(job.target)]).unwrap();
                    let indexes = BTreeMap::from([(job.target, index)]);
                    let mut map = SegmentMap::default();
                    map.insert(job.target, job.covers);
                    let after = Files { folder: folder.clone(), map, indexes, clustered: 0 };
                    let after: Vec<_> = scribe.names.iter().map(|name| after.session(name, 0)).collect();
                    prop_assert_eq!(&after, &before);
                }
            }
            if done.is_some() {
                break;
            }
            folder.run(Job::Recluster(job.clone()));
            prop_assert_eq!(&folder.files[&FileId::Segment(job.target)], &whole);
        }
    }
}

/// Words of about the length of a model's tokens, a space before each.
fn tokens(n: usize) -> Step {
    const WORDS: [&str; 8] = [" the", " of", " answer", " is", ",", " that", " forty", "-two"];
    Step::Delta { session: n % 4, stream: (n / 4 % 2) as u8, text: WORDS[(7 * n + n / 5) % 8] }
}

/// Streams that interleave in their sessions and slices, cut into many segments: level by level, as the plan has it, until it has
/// nothing more to do. On disk are 1.2 bytes a byte of text.
#[test]
fn what_is_left_on_disk_is_the_text_and_a_fifth() {
    let mut steps: Vec<Step> = (0..64_000).map(tokens).collect();
    let text: usize = steps.iter().map(|step| if let Step::Delta { text, .. } = step { text.len() } else { 0 }).sum();
    steps.extend((0..8).map(|n| Step::Close { session: n % 4, stream: (n / 4) as u8 }));
    let mut scribe = Scribe::new();
    let mut files = Files::new(&mut scribe, &steps.chunks(2001).map(<[Step]>::to_vec).collect::<Vec<_>>());
    let raw = files.bytes();
    let limits = ReclusterLimits {
        segments_min: 2,
        segments_max: 16,
        bytes_max: raw as u64 / 8,
        text_record_bytes_max: 500 << 10,
    };
    let mut jobs = 0;
    loop {
        let sealed: Vec<_> = files.map.files().map(|file| files.indexes[&file].contents).collect();
        let sources: Vec<SegmentId> = plan(&sealed, LOG, u32::MAX, limits).iter().map(|c| c.segment).collect();
        if sources.is_empty() {
            break;
        }
        jobs += 1;
        let mut job = files.job(&sources);
        job.text_record_bytes_max = limits.text_record_bytes_max;
        let JobDone::Reclustered { index, .. } = files.folder.run(Job::Recluster(job)) else { panic!() };
        let (segment, covers) = (index.contents.segment, index.contents.covers);
        files.indexes.insert(segment, *index);
        files.map.insert(segment, covers);
    }
    assert!((5..40).contains(&jobs), "{jobs} jobs: each level is rewritten once");
    // Header, padding and tables of a file are blocks, which count where text is counted in kilobytes.
    let bytes = files.bytes() - files.map.files().count() * 6 * 4096;
    assert!(bytes * 10 <= text * 12, "{bytes} bytes for {text} of text, {raw} before");
    assert!(files.map.files().count() <= 4);
    let all: Vec<Seen> = scribe.names.iter().flat_map(|name| files.session(name, 0)).collect();
    assert_eq!(all.len(), 64_008);
}

/// In a log without streams, clustered segments are as large as a job may be, and stay as they are.
#[test]
fn large_clustered_segments_are_left_alone() {
    let mut scribe = Scribe::new();
    let events = vec![Step::Event { session: 0, events: 3 }; 200];
    let mut files = Files::new(&mut scribe, &vec![events; 8]);
    let end = files.indexes[&segment(0)].contents.end;
    let limits =
        ReclusterLimits { segments_min: 2, segments_max: 16, bytes_max: 2 * end, text_record_bytes_max: 1 << 20 };
    for pair in 0..4 {
        files.recluster(&[segment(2 * pair), segment(2 * pair + 1)]);
    }
    let sealed: Vec<_> = files.map.files().map(|file| files.indexes[&file].contents).collect();
    assert_eq!(plan(&sealed, LOG, u32::MAX, limits), []);
    let roomy = ReclusterLimits { bytes_max: 8 * end, ..limits };
    assert_eq!(plan(&sealed, LOG, u32::MAX, roomy).len(), 4, "small ones are taken together");
    assert_eq!(plan(&sealed[..3], LOG, u32::MAX, roomy), [], "fewer are not worth it");
    assert_eq!(plan(&sealed, LOG, 7, roomy), [], "recovery replays 7");
}
