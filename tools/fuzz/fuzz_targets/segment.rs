//! A whole segment: every verdict is within the file, groups come in order, and only checked records are shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storage::recluster::{CLUSTERED, SEGMENTS_END, covers};
use storage::segment::{SegmentExpect, SegmentHeader, Verdict, scan_segment};
use storage::sidecar::SidecarBuilder;
use tidegate_fuzz::{BLOCK, KEY, file_of, seal_segment, segment};

const APPENDED: &[u8] = include_bytes!("../../../storage/tests/golden/2/appended.log");
const REWRITTEN: &[u8] = include_bytes!("../../../storage/tests/golden/2/clustered.log");

fuzz_target!(|input: &[u8]| {
    let Some((choice, input)) = input.split_first() else { return };
    let golden = if choice & 1 == 0 { APPENDED } else { REWRITTEN };
    let mut file = file_of(input, golden);
    seal_segment(&mut file, KEY);
    let name = SegmentHeader::get(&file).map_or(segment(0), |header| header.segment);
    let salt = KEY.segment_salt(name);
    let place = |bit: u8, at: u64| (choice & bit != 0).then_some(at);
    let expect = SegmentExpect {
        segment: name,
        salt,
        first: None,
        fixed_end: place(2, (file.len() as u64) & !4095),
        durable_end: place(4, 2 * BLOCK as u64).unwrap_or(0),
    };
    let (mut last, mut records) = (0, 0);
    let header = SegmentHeader::get(&file).ok().filter(|header| header.segment.number & !CLUSTERED != SEGMENTS_END);
    let range = header.and_then(|header| Some((header.kind, covers(&header)?)));
    let mut sidecar = range.map(|(kind, range)| SidecarBuilder::new(name, kind, range));
    let scan = scan_segment(&file, expect, |position, record| {
        assert!(position > last && position as usize + record.bytes().len() <= file.len());
        last = position;
        records += 1;
        // A sidecar is built of whatever verifies.
        if let Some(sidecar) = &mut sidecar {
            sidecar.add(position as u32, record);
        }
    });
    assert!(scan.end <= file.len() as u64 && scan.records == records);
    match scan.verdict {
        Verdict::Clean => {}
        Verdict::TornTail { at } => assert_eq!(at, scan.end),
        Verdict::Corrupt { at, .. } => assert!(at >= scan.end || at == 0),
    }
    if let Some(sidecar) = sidecar {
        let (bytes, index) = sidecar.finish(scan.end);
        assert_eq!(storage::sidecar::SidecarIndex::parse(name, &bytes), Ok(index), "a sidecar reads back");
    }
});
