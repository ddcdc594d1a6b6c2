//! A record whose checksum is right and whose bytes are anybody's: refused, or read to its last field without a fault.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storage::record::RecordView;
use tidegate_fuzz::{file_of, seal_record};

/// Behind the headers of segment and group.
const GOLDEN: &[u8] = include_bytes!("../../../storage/tests/golden/2/appended.log");
const FIRST: usize = 4096 + 64;

pub fn read(record: RecordView<'_>) {
    let mut sum = record.tenant().len() + record.session().len() + record.head().count as usize;
    sum += usize::from(record.span_reason()) + record.bytes().len();
    for event in record.events() {
        sum += event.topic().len() + event.client_id().len() + event.message_id().len() + event.traceparent().len();
        sum += event.data().len() + event.data_kind() as usize + event.body_hash() as usize % 2;
        sum += event.producer().is_some() as usize + event.prev_offset().is_some() as usize;
        sum += event.expires_ms().is_some() as usize + event.dedupe_key().is_some() as usize;
        assert!(event.offset() >= record.offset() && event.offset() < record.next_offset());
    }
    for (name, offset) in record.markers() {
        sum += name.len() + usize::from(offset > 0);
    }
    std::hint::black_box(sum);
}

fuzz_target!(|input: &[u8]| {
    let mut bytes = file_of(input, &GOLDEN[FIRST..]);
    let mut at = 0;
    while at + 8 <= bytes.len() {
        let next = seal_record(&mut bytes, at);
        let Ok(record) = RecordView::checked(&bytes[at..]) else { return };
        read(record);
        at = next;
    }
});
