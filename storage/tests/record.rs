//! Records: what goes in comes out, and nothing that is not a record is taken for one.

use proptest::prelude::*;
use storage::ids::{HashKey, PartitionId, SliceId};
use storage::record::*;

const KEY: HashKey = HashKey(1, 2);

fn head(partition: PartitionId) -> RecordHead {
    RecordHead {
        length: 0,
        kind: Kind::Commit,
        slice: partition.slice(),
        count: 0,
        slice_seq: 17,
        partition,
        offset: 41,
        epoch: 0xabcd,
        time_ms: 1_700_000_000_000,
        log_seq: 9,
        body_bytes: 0,
    }
}

fn event<'a>(topic: &'a str, message_id: &'a str, data: &'a [u8]) -> EventBody<'a> {
    EventBody {
        topic,
        client_id: "client",
        message_id,
        traceparent: "",
        data,
        data_kind: DataKind::Json as u8,
        prev_offset: NO_OFFSET,
        expires_ms: 0,
        producer_epoch: 0,
        producer_seq: NO_OFFSET,
        dedupe_low: 3,
        dedupe_high: 4,
        body_hash: 5,
    }
}

#[test]
fn a_record_reads_back_as_it_was_encoded() {
    let partition = KEY.partition("acme", "demo");
    let events = [
        event("chat.message", "m-1", b"{\"a\":1}"),
        EventBody {
            data_kind: DataKind::Bytes as u8,
            prev_offset: 40,
            expires_ms: 77,
            producer_epoch: 6,
            producer_seq: 8,
            dedupe_low: 0,
            dedupe_high: 0,
            traceparent: "00-aa-bb-01",
            ..event("tool.call", "", &[0, 255])
        },
    ];
    let markers = [MarkerBody { name: "seen", offset: 12 }];
    let body = CommitBody { tenant: "acme", session: "demo", events: &events, markers: &markers };
    let mut out = vec![0xee; 1024];
    let length = encode_commit(&head(partition), &body, &mut out);
    assert_eq!(length, commit_bytes_max(&body));
    assert!(out[length..].iter().all(|byte| *byte == 0xee), "encoder wrote behind the record");

    let record = RecordView::checked(&out).unwrap();
    assert_eq!(record.bytes().len(), length);
    assert_eq!((record.tenant(), record.session()), ("acme", "demo"));
    assert_eq!((record.count(), record.offset(), record.next_offset()), (2, 41, 43));
    assert_eq!((record.slice(), record.slice_seq(), record.log_seq()), (partition.slice(), 17, 9));
    assert_eq!((record.partition(), record.epoch(), record.time_ms()), (partition, 0xabcd, 1_700_000_000_000));
    assert_eq!(record.markers().collect::<Vec<_>>(), [("seen", 12)]);
    let views: Vec<EventView<'_>> = record.events().collect();
    assert_eq!((views[0].offset(), views[0].slice_seq(), views[0].topic()), (41, 17, "chat.message"));
    assert_eq!((views[0].data(), views[0].data_kind()), (&b"{\"a\":1}"[..], DataKind::Json));
    assert_eq!((views[0].prev_offset(), views[0].expires_ms(), views[0].producer()), (None, None, None));
    assert_eq!((views[0].dedupe_key(), views[0].body_hash()), (Some(4 << 64 | 3), 5));
    assert_eq!((views[1].offset(), views[1].slice_seq(), views[1].data()), (42, 18, &[0, 255][..]));
    assert_eq!(
        (views[1].prev_offset(), views[1].expires_ms(), views[1].producer()),
        (Some(40), Some(77), Some((6, 8)))
    );
    assert_eq!((views[1].dedupe_key(), views[1].traceparent()), (None, "00-aa-bb-01"));
    assert_eq!(views[1].data_kind(), DataKind::Bytes);
}

#[test]
fn a_span_reads_back_and_holds_no_events() {
    let partition = KEY.partition("acme", "demo");
    let body = SpanBody { tenant: "acme", session: "demo", reason: 1 };
    let mut out = vec![0; 256];
    let length = encode_span(&RecordHead { count: 1000, ..head(partition) }, &body, &mut out);
    assert_eq!(length, span_bytes_max(&body));
    let record = RecordView::checked(&out).unwrap();
    assert_eq!((record.kind(), record.count(), record.span_reason()), (Kind::Span, 1000, 1));
    assert_eq!((record.events().count(), record.markers().count()), (0, 0));
    assert_eq!(record.session(), "demo");
}

#[test]
fn the_largest_record_encodes_in_the_fixed_scratch() {
    let partition = KEY.partition("acme", "demo");
    let events = [event("a", "b", b"1"); RECORD_EVENTS_MAX];
    let markers = [MarkerBody { name: "seen", offset: 12 }; RECORD_MARKERS_MAX];
    let body = CommitBody { tenant: "acme", session: "demo", events: &events, markers: &markers };
    let mut out = vec![0; commit_bytes_max(&body)];
    encode_commit(&head(partition), &body, &mut out);
    assert_eq!(RecordView::checked(&out).unwrap().events().count(), RECORD_EVENTS_MAX);
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let partition = KEY.partition("acme", "demo");
    let events = [event("chat.message", "m-1", b"{\"a\":1}")];
    let body = CommitBody { tenant: "acme", session: "demo", events: &events, markers: &[] };
    let mut out = vec![0; commit_bytes_max(&body)];
    encode_commit(&head(partition), &body, &mut out);
    for cut in 0..out.len() {
        assert_eq!(RecordView::checked(&out[..cut]).unwrap_err(), RecordFault::Length);
    }
    for bit in 0..out.len() * 8 {
        out[bit / 8] ^= 1 << (bit % 8);
        assert!(RecordView::checked(&out).is_err(), "bit {bit}");
        out[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(RecordView::checked(&out).is_ok());
}

proptest! {
    /// With the checksum repaired after the damage, only the structural checks stand between garbage and the reader.
    #[test]
    fn damage_behind_a_right_checksum_never_panics(at in 8usize..300, value: u8, more in proptest::collection::vec((8usize..300, any::<u8>()), 0..4)) {
        let partition = KEY.partition("acme", "demo");
        let events = [event("chat.message", "m-1", b"{\"a\":1}"), event("b", "m-2", b"[]")];
        let markers = [MarkerBody { name: "seen", offset: 12 }];
        let body = CommitBody { tenant: "acme", session: "demo", events: &events, markers: &markers };
        let mut out = vec![0; commit_bytes_max(&body)];
        encode_commit(&head(partition), &body, &mut out);
        for (at, value) in more.into_iter().chain([(at, value)]) {
            if at < out.len() { out[at] = value; }
        }
        let crc = crc32c::crc32c(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        if let Ok(record) = RecordView::checked(&out) {
            prop_assert_eq!(record.slice(), SliceId(partition.slice().0));
            let mut bytes = record.tenant().len() + record.session().len();
            for event in record.events() {
                bytes += event.topic().len() + event.data().len() + event.message_id().len() + event.traceparent().len();
            }
            for (name, _) in record.markers() { bytes += name.len(); }
            prop_assert!(bytes <= out.len());
        }
    }
}

/// The sizes that FORMAT.md gives.
#[test]
fn archived_structs_have_the_documented_sizes() {
    assert_eq!(size_of::<ArchivedCommitBody<'static>>(), 32);
    assert_eq!(size_of::<ArchivedEventBody<'static>>(), 97);
    assert_eq!(size_of::<ArchivedMarkerBody<'static>>(), 16);
    assert_eq!(size_of::<ArchivedSpanBody<'static>>(), 17);
}
