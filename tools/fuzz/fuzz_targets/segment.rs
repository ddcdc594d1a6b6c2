//! A whole segment: every verdict is within the file, groups come in order, and only checked records are shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storage::segment::{SegmentExpect, SegmentHeader, Verdict, scan_segment};
use storage::sidecar::SidecarBuilder;
use tidegate_fuzz::{BLOCK, KEY, file_of, seal, seal_record, segment, u32_at};

const APPENDED: &[u8] = include_bytes!("../../../storage/tests/golden/appended.log");
const CLUSTERED: &[u8] = include_bytes!("../../../storage/tests/golden/clustered.log");

fuzz_target!(|input: &[u8]| {
    let Some((choice, input)) = input.split_first() else { return };
    let golden = if choice & 1 == 0 { APPENDED } else { CLUSTERED };
    let mut file = file_of(input, golden);
    seal(&mut file, 60, 0, 60);
    let mut at = BLOCK;
    while at + 64 <= file.len() {
        seal(&mut file, at + 60, at, at + 60);
        let end = (at + 64 + u32_at(&file, at + 12)).min(file.len());
        let mut record = at + 64;
        while record < end && u32_at(&file, record) > 0 {
            record = seal_record(&mut file, record);
        }
        at += BLOCK;
    }
    let name = SegmentHeader::get(&file).map_or(segment(0), |header| header.segment);
    let salt = KEY.segment_salt(name);
    if file.len() >= 64 {
        file[56..60].copy_from_slice(&salt.to_le_bytes());
        seal(&mut file, 60, 0, 60);
    }
    let place = |bit: u8, at: u64| (choice & bit != 0).then_some(at);
    let expect = SegmentExpect {
        segment: name,
        salt,
        first: None,
        fixed_end: place(2, (file.len() as u64) & !4095),
        durable_end: place(4, 2 * BLOCK as u64).unwrap_or(0),
    };
    let (mut last, mut records) = (0, 0);
    let kind = SegmentHeader::get(&file).map(|header| header.kind);
    let mut sidecar = kind.ok().map(|kind| SidecarBuilder::new(name, kind, (name.number, name.number)));
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
