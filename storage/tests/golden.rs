//! Files of this format version and the one before, kept: what this build writes is what the former are, and it reads what they hold.
//!
//! A difference means that the format changed. Then it gets a new version, the old files stay as they are and are read by the
//! reader for the version before; those of the one before that go. Compiled with `TIDEGATE_GOLDEN=write`, it makes files that do not exist yet.

#![expect(clippy::disallowed_methods, reason = "a test may read files; the crate it tests may not")]

mod support;

use std::path::PathBuf;
use storage::catalog::{Catalog, Change, Load, Lookup, ProducerStep};
use storage::checkpoint::{CheckpointIndex, CheckpointJob, LogPosition, merge, verify_pages};
use storage::disk::FileId;
use storage::ids::SegmentId;
use storage::jobs::{Job, JobDone};
use storage::recluster::{CLUSTERED, ReclusterJob, Source, covers};
use storage::segment::{FORMAT_VERSION, FORMAT_VERSION_MIN, SegmentExpect, SegmentHeader, Verdict, scan_segment};
use storage::sidecar::{SealJob, SidecarIndex};
use support::{Folder, KEY, LOG, Wanted, Writer, segment};

fn path(version: u16, name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(version.to_string()).join(name)
}

/// What was kept of the version before.
fn before(name: &str) -> Vec<u8> {
    std::fs::read(path(FORMAT_VERSION_MIN, name)).unwrap()
}

fn golden(name: &str, written: &[u8]) -> Vec<u8> {
    let path = path(FORMAT_VERSION, name);
    if option_env!("TIDEGATE_GOLDEN") == Some("write") && !path.exists() {
        std::fs::write(&path, written).unwrap();
    }
    let kept = std::fs::read(&path).unwrap_or_else(|fault| panic!("{}: {fault}", path.display()));
    let first = kept.iter().zip(written).position(|(kept, written)| kept != written);
    assert!(
        kept == written,
        "{name}: {} bytes kept, {} written, first difference at {first:?}",
        kept.len(),
        written.len()
    );
    kept
}

#[test]
fn checkpoint() {
    let mut catalog = Catalog::new(LOG, 100, None);
    for n in 0..5u64 {
        let (session, number) = (format!("session-{n}"), n as u32);
        let id = KEY.partition("acme", &session);
        let slot = catalog.create(id, "acme", &session, 0xabc + n).unwrap();
        for log_seq in [n * 2, n * 2 + 1] {
            let change = Change { segment: segment(number + log_seq as u32 % 2), log_seq, count: 3 };
            let step = ProducerStep { client_id: "worker", epoch: 1, seq: log_seq, offset: 3 };
            catalog.append(slot, change, [("seen", n)], [step].into_iter().take(number as usize % 2));
        }
    }
    let position = LogPosition { segment: 4, at: 8192, group: 17, log_seq: 10 };
    catalog.collect_begin(position);
    assert!(catalog.collect(100));
    let draft = catalog.collect_end(10, true);
    let (written, _) = merge(CheckpointJob { log: LOG, number: 9, draft, previous: None }, &[]).unwrap();
    for kept in [golden("checkpoint.ckp", &written), before("checkpoint.ckp")] {
        let index = CheckpointIndex::parse(LOG, 9, &kept).unwrap();
        assert_eq!(verify_pages(&index, &kept), Ok(()));
        assert_eq!((index.position, index.clean_stop, index.entries), (position, true, 5));
        let mut catalog = Catalog::new(LOG, 100, Some(index));
        let id = KEY.partition("acme", "session-3");
        let Lookup::NeedsPage(at) = catalog.lookup(id, "acme", "session-3") else { panic!() };
        let page = &kept[at.at as usize..at.at as usize + at.len];
        let Load::Resident(slot) = catalog.load(id, "acme", "session-3", at, page) else { panic!() };
        let partition = catalog.get(slot).unwrap();
        assert_eq!((partition.epoch(), partition.tail(), partition.committed()), (0xabf, 6, 6));
        assert_eq!((partition.marker("seen"), partition.runs().len()), (Some(3), 2));
        assert_eq!(partition.producer("worker").map(|p| (p.epoch, p.seq, p.offset)), Some((1, 7, 3)));
        assert_eq!(catalog.slice_next(id.slice()), 7);
    }
}

#[test]
fn sidecar_and_clustered_segment() {
    let (mut folder, mut writer, mut sources) = (Folder::default(), Writer::default(), vec![]);
    for number in 0..2 {
        let wanted = |n: u8| Wanted {
            session: n % 3,
            events: n % 4,
            marker: n.is_multiple_of(5),
            numbered: n == 7,
            restart: false,
        };
        let wanted: Vec<Wanted> = (0..20).map(wanted).collect();
        let (file, salt) = (segment(number), KEY.segment_salt(segment(number)));
        let bytes = writer.segment(number, &wanted);
        let end = bytes.len() as u64;
        folder.files.insert(FileId::Segment(file), bytes);
        sources.push(Source { segment: file, salt, end });
    }
    let Source { segment: file, salt, end } = sources[0];
    let JobDone::Sealed { index } = folder.run(Job::Seal(SealJob { segment: file, salt, end })) else { panic!() };
    let kept = golden("sidecar.idx", &folder.files[&FileId::Sidecar(file)]);
    assert_eq!(SidecarIndex::parse(file, &kept).as_ref(), Ok(&*index));
    assert_eq!(SidecarIndex::parse(file, &before("sidecar.idx")), Ok(*index));

    let target = segment(CLUSTERED);
    let job = ReclusterJob {
        target,
        salt: KEY.segment_salt(target),
        covers: (0, 1),
        sources,
        text_record_bytes_max: 1 << 20,
    };
    let JobDone::Reclustered { index, .. } = folder.run(Job::Recluster(job)) else { panic!() };
    for kept in [golden("clustered.log", &folder.files[&FileId::Segment(target)]), before("clustered.log")] {
        assert_eq!(SegmentHeader::get(&kept).map(|header| covers(&header)), Ok(Some((0, 1))));
        let (salt, end) = (KEY.segment_salt(target), kept.len() as u64);
        let expect = SegmentExpect { segment: target, salt, first: None, fixed_end: Some(end), durable_end: end };
        let mut records = 0;
        let scan = scan_segment(&kept, expect, |_, _| records += 1);
        assert_eq!((scan.verdict, records, index.contents.records), (Verdict::Clean, 40, 40));
    }
    golden("clustered.idx", &folder.files[&FileId::Sidecar(target)]);
}

#[test]
fn appended_segment() {
    use storage::group::{BLOCK_BYTES, GroupHeader};
    use storage::record::{CommitBody, DataKind, EventBody, Kind, MarkerBody, NO_OFFSET, RecordHead, SpanBody};
    use storage::record::{encode_commit, encode_span};
    let name = SegmentId { log: LOG, number: 2 };
    let salt = KEY.segment_salt(name);
    let partition = KEY.partition("acme", "demo");
    let event = EventBody {
        topic: "chat.message",
        client_id: "client",
        message_id: "m-1",
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        data: b"{\"text\":\"hello\"}",
        data_kind: DataKind::Json as u8,
        prev_offset: NO_OFFSET,
        expires_ms: 1_700_000_100_000,
        producer_epoch: 0,
        producer_seq: NO_OFFSET,
        dedupe_low: 3,
        dedupe_high: 4,
        body_hash: 5,
    };
    let numbered = EventBody {
        message_id: "",
        data: &[0, 255, 128],
        data_kind: DataKind::Bytes as u8,
        prev_offset: 40,
        producer_epoch: 6,
        producer_seq: 7,
        dedupe_low: 0,
        dedupe_high: 0,
        ..event
    };
    let head = RecordHead {
        length: 0,
        kind: Kind::Commit,
        slice: partition.slice(),
        count: 0,
        slice_seq: 1,
        partition,
        offset: 41,
        epoch: 0xabc,
        time_ms: 1_700_000_000_000,
        log_seq: 90,
        body_bytes: 0,
    };
    let mut written = vec![0; 3 * BLOCK_BYTES];
    let segment_header = SegmentHeader {
        segment: name,
        kind: storage::segment::SegmentKind::Appended,
        unsynced: false,
        previous: Some((1, 61440)),
        bytes: written.len() as u64,
        first_group: 17,
        first_log_seq: 90,
        salt,
    };
    segment_header.put(&mut written);
    let group = &mut written[BLOCK_BYTES..];
    let mut at = 64;
    let body = CommitBody { tenant: "acme", session: "demo", events: &[event, numbered], markers: &[] };
    at += encode_commit(&head, &body, &mut group[at..]);
    let markers = [MarkerBody { name: "seen", offset: 42 }];
    let body = CommitBody { tenant: "acme", session: "demo", events: &[], markers: &markers };
    at += encode_commit(&RecordHead { slice_seq: 3, offset: 43, log_seq: 91, ..head }, &body, &mut group[at..]);
    let span = SpanBody { tenant: "acme", session: "demo", reason: 1 };
    at += encode_span(&RecordHead { count: 5, slice_seq: 3, offset: 43, log_seq: 92, ..head }, &span, &mut group[at..]);
    let group_header = GroupHeader {
        group_bytes: BLOCK_BYTES as u32,
        records_bytes: at as u32 - 64,
        count: 3,
        segment: name,
        position: BLOCK_BYTES as u64,
        group: 17,
        first_log_seq: 90,
        durable_through: 16,
        salt,
    };
    group_header.put(group);
    for kept in [golden("appended.log", &written), before("appended.log")] {
        let expect = SegmentExpect { segment: name, salt, first: Some((17, 90)), fixed_end: None, durable_end: 0 };
        let mut events = vec![];
        let scan = scan_segment(&kept, expect, |_, record| {
            events
                .extend(record.events().map(|event| (event.offset(), event.topic().to_owned(), event.data().to_vec())));
        });
        assert_eq!((scan.verdict, scan.header, scan.records), (Verdict::Clean, Some(segment_header), 3));
        assert_eq!(events[0], (41, "chat.message".to_owned(), b"{\"text\":\"hello\"}".to_vec()));
        assert_eq!(events[1].2, [0, 255, 128]);
    }
}

/// Deltas of two streams, and an event between them, re-clustered.
#[test]
fn merged_deltas() {
    use storage::record::{DataKind, DeltaView, EventBody, Kind, NO_OFFSET, RecordView};
    let said = [("answer", 0, "Once"), ("plan", 0, ""), ("answer", 1, " upon"), ("", 0, ""), ("answer", 2, " a time")];
    let mut writer = Writer::default();
    let bytes = writer.pack(0, &said, |writer, (stream, seq, text)| {
        let data = format!("\"{text}\"");
        let is_event = stream.is_empty();
        let event = EventBody {
            topic: if is_event { "chat.message" } else { "stream" },
            client_id: "client",
            message_id: stream,
            traceparent: "",
            data: data.as_bytes(),
            data_kind: if is_event { DataKind::Json } else { DataKind::Delta } as u8,
            prev_offset: NO_OFFSET,
            expires_ms: 0,
            producer_epoch: 0,
            producer_seq: if is_event { NO_OFFSET } else { *seq },
            dedupe_low: u64::from(is_event),
            dedupe_high: 0,
            body_hash: 5,
        };
        writer.commit("demo", &[event], &[])
    });
    let mut folder = Folder::default();
    let (source, salt, end) = (segment(0), KEY.segment_salt(segment(0)), bytes.len() as u64);
    folder.files.insert(FileId::Segment(source), bytes);
    let sources = vec![Source { segment: source, salt, end }];
    let (target, text_record_bytes_max) = (segment(CLUSTERED), 4096);
    let salt = KEY.segment_salt(target);
    let job = ReclusterJob { target, salt, covers: (0, 0), sources, text_record_bytes_max };
    folder.run(Job::Recluster(job));
    let kept = golden("text.log", &folder.files[&FileId::Segment(target)]);
    let expect =
        SegmentExpect { segment: target, salt, first: None, fixed_end: Some(kept.len() as u64), durable_end: 0 };
    let mut found = vec![];
    let delta = |d: DeltaView<'_>| (d.offset, d.slice_seq, d.seq, format!("{}: {}", d.stream, d.text));
    let scan = scan_segment(&kept, expect, |_, record: RecordView<'_>| {
        found.push((record.kind(), record.offset(), record.count(), record.deltas().map(delta).collect::<Vec<_>>()));
    });
    assert_eq!(scan.verdict, Verdict::Clean);
    let merged = vec![
        (0, 1, 0, "answer: Once".to_owned()),
        (1, 2, 0, "plan: ".to_owned()),
        (2, 3, 1, "answer:  upon".to_owned()),
    ];
    let rest = [(Kind::Text, 0, 3, merged), (Kind::Commit, 3, 1, vec![]), (Kind::Commit, 4, 1, vec![])];
    assert_eq!(found, rest, "what stands alone stays as it was");
}

/// A record that changes entries and jobs beside an event and a marker; the version before had none.
#[test]
fn work() {
    use storage::record::{
        DataKind, EntryAct, EntryBody, EventBody, JobAct, JobBody, Kind, MarkerBody, NO_OFFSET, Parts, RecordHead,
        RecordView, encode_parts, parts_bytes_max,
    };
    let event = EventBody {
        topic: "chat.answer",
        client_id: "$server",
        message_id: "llm:3:1700000000000",
        traceparent: "",
        data: b"\"sorry\"",
        data_kind: DataKind::Json as u8,
        prev_offset: 3,
        expires_ms: 0,
        producer_epoch: 0,
        producer_seq: NO_OFFSET,
        dedupe_low: 3,
        dedupe_high: 4,
        body_hash: 5,
    };
    let entry = |key, value, act: EntryAct, expires_ms| EntryBody { key, value, act: act as u8, expires_ms };
    let entries = [
        entry("plan", &b"{\"step\":1}"[..], EntryAct::Put, 1_700_000_060_000),
        entry("lock", b"", EntryAct::Deleted, 0),
        entry("old", b"", EntryAct::Expired, 0),
    ];
    let acts: Vec<JobAct> = (0..).map_while(JobAct::of).collect();
    let job = |act: &JobAct| JobBody {
        queue: "llm",
        offset: *act as u64,
        act: *act as u8,
        priority: 1,
        attempts: 2,
        at_ms: 1_700_000_010_000,
        partial: if *act == JobAct::Progress { b"[1]" } else { b"" },
    };
    let jobs: Vec<JobBody<'_>> = acts.iter().map(job).collect();
    let markers = [MarkerBody { name: "planner", offset: 4 }];
    let parts = Parts { events: &[event], markers: &markers, entries: &entries, jobs: &jobs };
    let partition = KEY.partition("acme", "demo");
    let head = RecordHead {
        length: 0,
        kind: Kind::Work,
        slice: partition.slice(),
        count: 1,
        slice_seq: 1,
        partition,
        offset: 41,
        epoch: 0xabc,
        time_ms: 1_700_000_000_000,
        log_seq: 90,
        body_bytes: 0,
    };
    let mut written = vec![0; parts_bytes_max("acme", "demo", &parts)];
    let length = encode_parts(&head, "acme", "demo", &parts, &mut written);
    assert_eq!(length, written.len());
    let kept = golden("work.record", &written);
    let record = RecordView::checked(&kept).expect("it is whole");
    assert_eq!((record.kind(), record.session(), record.events().count()), (Kind::Work, "demo", 1));
    let found: Vec<_> = record.entries().map(|entry| (entry.key, entry.act, entry.expires_ms)).collect();
    let wanted =
        [("plan", EntryAct::Put, 1_700_000_060_000), ("lock", EntryAct::Deleted, 0), ("old", EntryAct::Expired, 0)];
    assert_eq!(found, wanted);
    assert_eq!(record.jobs().map(|job| (job.act, job.offset)).last(), Some((JobAct::Claimed, 9)));
    assert_eq!(record.jobs().map(|job| job.partial).find(|partial| !partial.is_empty()), Some(&b"[1]"[..]));
}

#[test]
fn manifest() {
    use storage::ids::{HashKey, LogId};
    use storage::manifest::Manifest;
    let manifest = Manifest {
        key: HashKey(0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210),
        next_log: LogId(7),
        logs: vec![LogId(5), LogId(6)],
        old: vec![LogId(0), LogId(1)],
    };
    let (kept, before) = (golden("manifest", &manifest.encode()), before("manifest"));
    assert_eq!(Manifest::parse(&kept).as_ref(), Ok(&manifest));
    assert!(!Manifest::is_of_version_before(&kept));
    assert_eq!(Manifest::parse(&before), Ok(manifest));
    assert!(Manifest::is_of_version_before(&before));
}
