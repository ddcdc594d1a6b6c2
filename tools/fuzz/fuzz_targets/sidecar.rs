//! A sidecar with right checksums: refused, or every question about it has an answer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storage::ids::SliceId;
use storage::recluster::CLUSTERED;
use storage::sidecar::{BlockAt, SidecarIndex};
use tidegate_fuzz::{KEY, file_of, seal_sidecar, segment};

const APPENDED: &[u8] = include_bytes!("../../../storage/tests/golden/2/sidecar.idx");
const REWRITTEN: &[u8] = include_bytes!("../../../storage/tests/golden/2/clustered.idx");

fuzz_target!(|input: &[u8]| {
    let Some((choice, input)) = input.split_first() else { return };
    let (golden, name) = if choice & 1 == 0 { (APPENDED, segment(0)) } else { (REWRITTEN, segment(CLUSTERED)) };
    let mut file = file_of(input, golden);
    seal_sidecar(&mut file);
    let Ok(index) = SidecarIndex::parse(name, &file) else { return };
    let block = |at: BlockAt| file.get(at.at as usize..).and_then(|rest| rest.get(..at.len));
    for n in 0..3 {
        let id = KEY.partition("acme", &format!("session-{n}"));
        let mut at = index.partition_block(id, n);
        for _ in 0..8 {
            let Some(here) = at else { break };
            let Some(bytes) = block(here) else { break };
            if let Ok(rows) = index.partition_rows(here, bytes, id, 0) {
                std::hint::black_box(rows.map(|row| u64::from(row.position)).fold(0, u64::wrapping_add));
            }
            at = index.next_partition_block(here, id);
        }
        let slice = index.slice_ranges().get(n as usize).map_or(SliceId(n as u16), |range| range.slice);
        let mut at = index.slice_block(slice, n);
        for _ in 0..8 {
            let Some(here) = at else { break };
            let Some(bytes) = block(here) else { break };
            if let Ok(rows) = index.slice_rows(here, bytes, slice, 0) {
                std::hint::black_box(rows.map(|row| u64::from(row.position)).fold(0, u64::wrapping_add));
            }
            at = index.next_slice_block(here, slice);
        }
        let key = u128::from(n) << 64;
        if let Some(at) = index.dedupe_block(key)
            && let Some(bytes) = block(at)
        {
            let _ = std::hint::black_box(index.dedupe_row(at, bytes, key));
        }
    }
});
