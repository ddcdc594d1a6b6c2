//! Deltas of token streams that were merged: their text once, and of each delta only where it ends.
//!
//! ```text
//!   offsets     40    41    42    43    44          deltas, each a record of its own
//!   slice seqs  70    72    73    77    78          others of the slice lie between
//!   stream      a 7   b 0   a 8   a 9   b 1
//!                        │
//!                        ▼
//!   head        offset 40, count 5, slice_seq 78, time and log_seq of the last
//!   parts       a: from 7, text a7·a8·a9      b: from 0, text b0·b1
//!   steps       for each offset: part · bytes of its text · distance of its slice sequence from the one before
//! ```
//! The offsets are a **span**: dense, and no events any more. What a reader may have had of it is told to the delta, by offset or by slice
//! sequence: it gets the rest and nothing twice. For the order of a slice the record stands at its last slice sequence alone, because
//! what lies between belongs to others.
//!
//! Steps are [bits](super::bits): part, `ceil(log2(parts))` bits; then `rice(bytes - bytes_min, bytes_k)`; then, but for the first,
//! `rice(distance - distance_min, distance_k)`. Each of the four is chosen for the record, so text of tokens costs about half a
//! byte a delta; numbers that are all the same take none.

use super::bits::{BitReader, BitWriter, RICE_MAX, RICE_NONE, rice_bits};
use super::*;
use crate::ids::COUNTER_MAX;
use std::ops::Range;

/// Bytes of text that one record gathers, if it stands for more than one delta.
pub const TEXT_BYTES_MAX: usize = 64 << 10;

/// Deltas that one record stands for.
pub const TEXT_DELTAS_MAX: usize = 16 << 10;

/// Streams in one record.
pub const TEXT_PARTS_MAX: usize = 32;

/// Body of [`Kind::Text`].
#[derive(Archive, Serialize, Clone, Copy)]
pub struct TextBody<'a> {
    /// Tenant name.
    #[rkyv(with = InlineAsBox)]
    pub tenant: &'a str,
    /// Session name.
    #[rkyv(with = InlineAsBox)]
    pub session: &'a str,
    /// What was said, by stream, in the order in which they first speak.
    #[rkyv(with = InlineAsBox)]
    pub parts: &'a [TextPart<'a>],
    /// Where each delta ends.
    #[rkyv(with = InlineAsBox)]
    pub steps: &'a [u8],
    /// Slice sequence of the first delta.
    pub first_slice_seq: u64,
    /// Bytes of the shortest delta.
    pub bytes_min: u32,
    /// Smallest distance of two slice sequences.
    pub distance_min: u32,
    /// `k` of the bytes.
    pub bytes_k: u8,
    /// `k` of the distances.
    pub distance_k: u8,
}

/// What one stream said.
#[derive(Archive, Serialize, Clone, Copy)]
pub struct TextPart<'a> {
    /// Its name.
    #[rkyv(with = InlineAsBox)]
    pub stream: &'a str,
    /// Topic of its events.
    #[rkyv(with = InlineAsBox)]
    pub topic: &'a str,
    /// Number of its first delta here.
    pub first_seq: u64,
    /// Text of its deltas back to back: JSON strings without their quotes.
    #[rkyv(with = InlineAsBox)]
    pub text: &'a str,
}

/// One delta, of a record of its own or of a merged one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeltaView<'a> {
    /// Stream.
    pub stream: &'a str,
    /// Topic.
    pub topic: &'a str,
    /// Its number in the stream.
    pub seq: u64,
    /// Offset in its session.
    pub offset: Offset,
    /// Place in its slice.
    pub slice_seq: SliceSeq,
    /// JSON string without the quotes.
    pub text: &'a str,
}

/// Deltas of a record in offset order; they say nothing false of a record that was checked, and end where bytes do.
#[derive(Clone)]
pub struct Deltas<'a> {
    body: Option<&'a ArchivedTextBody<'static>>,
    steps: BitReader<'a>,
    is_first: bool,
    part_bits: u32,
    offset: Offset,
    end: Offset,
    slice_seq: SliceSeq,
    /// Of each part: the next number, and the bytes that were passed.
    at: [(u64, usize); TEXT_PARTS_MAX],
}

impl<'a> Deltas<'a> {
    pub(super) fn of(body: &'a ArchivedTextBody<'static>, offset: Offset, end: Offset) -> Deltas<'a> {
        let mut at = [(0, 0); TEXT_PARTS_MAX];
        for (at, part) in at.iter_mut().zip(body.parts.iter()) {
            at.0 = part.first_seq.to_native();
        }
        let slice_seq = body.first_slice_seq.to_native();
        let part_bits = part_bits(body.parts.len());
        let steps = BitReader::new(&body.steps);
        Deltas { body: Some(body), steps, is_first: true, part_bits, offset, end, slice_seq, at }
    }

    /// Of a record that has none.
    pub(super) fn none() -> Deltas<'a> {
        let at = [(0, 0); TEXT_PARTS_MAX];
        Deltas {
            body: None,
            steps: BitReader::new(&[]),
            is_first: true,
            part_bits: 0,
            offset: 0,
            end: 0,
            slice_seq: 0,
            at,
        }
    }

    fn step(&mut self, body: &'a ArchivedTextBody<'static>) -> Option<DeltaView<'a>> {
        let number = self.steps.bits(self.part_bits)? as usize;
        let parts: &'a [ArchivedTextPart<'static>] = &body.parts;
        let part = parts.get(number)?;
        let said: &'a str = &part.text;
        let bytes = self.steps.rice(body.bytes_k)?.checked_add(body.bytes_min.to_native().into())?;
        if !std::mem::take(&mut self.is_first) {
            let distance = self.steps.rice(body.distance_k)?.checked_add(body.distance_min.to_native().into())?;
            self.slice_seq = self.slice_seq.checked_add(distance)?;
        }
        let (seq, from) = self.at[number];
        let to = from.checked_add(usize::try_from(bytes).ok()?)?;
        let text = said.get(from..to)?;
        self.at[number] = (seq + 1, to);
        let (offset, slice_seq) = (self.offset, self.slice_seq);
        self.offset += 1;
        Some(DeltaView { stream: &part.stream, topic: &part.topic, seq, offset, slice_seq, text })
    }
}

impl<'a> Iterator for Deltas<'a> {
    type Item = DeltaView<'a>;

    fn next(&mut self) -> Option<DeltaView<'a>> {
        let body = self.body.filter(|_| self.offset < self.end)?;
        let delta = self.step(body);
        if delta.is_none() {
            self.body = None;
        }
        delta
    }
}

/// Does the body say what the head does, and nothing that it cannot mean?
pub(super) fn is_sound(body: &ArchivedTextBody<'static>, record: RecordView<'_>) -> bool {
    let parts = body.parts.len();
    let first = body.parts.iter().map(|part| part.first_seq.to_native()).max();
    let in_bounds = (1..=TEXT_PARTS_MAX).contains(&parts)
        && first.is_some_and(|seq| seq <= COUNTER_MAX)
        && (1..=TEXT_DELTAS_MAX).contains(&(record.count() as usize))
        && body.bytes_k.max(body.distance_k) <= RICE_NONE
        && body.distance_min.to_native() > 0
        && body.first_slice_seq.to_native() <= record.slice_seq();
    if !in_bounds {
        return false;
    }
    let mut deltas = Deltas::of(body, record.offset(), record.next_offset());
    let count = deltas.by_ref().count();
    count == record.count() as usize
        && deltas.slice_seq == record.slice_seq()
        && deltas.steps.is_done()
        && deltas.at.iter().zip(body.parts.iter()).all(|(at, part)| at.1 == part.text.len())
}

/// Bits that name one of so many parts.
fn part_bits(parts: usize) -> u32 {
    parts.next_power_of_two().trailing_zeros()
}

/// What one stream said, being gathered.
#[derive(Debug)]
struct Part<'a> {
    stream: &'a str,
    topic: &'a str,
    seqs: Range<u64>,
    text: String,
}

#[derive(Clone, Copy, Debug)]
struct DeltaStep {
    part: usize,
    bytes: u64,
    distance: u64,
}

/// Neighbouring records of deltas, being merged. Borrows their names.
#[derive(Debug, Default)]
pub(crate) struct TextMerge<'a> {
    head: Option<RecordHead>,
    names: (&'a str, &'a str),
    parts: Vec<Part<'a>>,
    steps: Vec<DeltaStep>,
    first_slice_seq: SliceSeq,
    text_bytes: usize,
    /// What the record may take at the most.
    bytes: usize,
}

/// Is the record one of deltas alone, its own or merged ones, of which nothing else has to be kept?
pub(crate) fn is_mergeable(record: RecordView<'_>) -> bool {
    match record.kind() {
        Kind::Text => true,
        Kind::Span | Kind::Work => false,
        Kind::Commit => {
            record.count() > 0
                && record.markers().next().is_none()
                && record.events().all(|event| {
                    event.data_kind() == DataKind::Delta
                        && event.expires_ms().is_none()
                        && event.prev_offset().is_none()
                        && event.dedupe_key().is_none()
                        && delta_text(event.data()).is_some()
                })
        }
    }
}

/// Text of a delta: what stands between the quotes.
pub(super) fn delta_text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data.strip_prefix(b"\"")?.strip_suffix(b"\"")?).ok()
}

/// Bytes of a record of so many bytes of names.
fn record_bytes(names: usize) -> usize {
    HEAD_BYTES + size_of::<ArchivedTextBody<'static>>() + names + RECORD_ALIGN
}

/// A step takes no more: a part, and two numbers below 2^17 with k = 15.
const STEP_BYTES_MAX: usize = 6;

/// A number that does not fit in it.
const NUMBER_BYTES_MAX: usize = 10;

impl<'a> TextMerge<'a> {
    /// Takes a [mergeable](is_mergeable) record, if it goes on where the last one ended and the record made of them stays within
    /// `record_bytes_max`. `false`: it was not taken, and nothing changed.
    pub fn take(&mut self, record: RecordView<'a>, record_bytes_max: usize) -> bool {
        let goes_on = self.head.is_none_or(|head| {
            (head.partition, head.epoch) == (record.partition(), record.epoch())
                && head.offset + u64::from(head.count) == record.offset()
        });
        let (parts, steps, bytes, text_bytes) = (self.parts.len(), self.steps.len(), self.bytes, self.text_bytes);
        let before: Vec<(u64, usize)> = self.parts.iter().map(|part| (part.seqs.end, part.text.len())).collect();
        let mut slice_seq = self.head.map(|head| head.slice_seq);
        if self.head.is_none() {
            self.names = (record.tenant(), record.session());
            self.bytes = record_bytes(self.names.0.len() + self.names.1.len());
            self.first_slice_seq = record.first_slice_seq();
        }
        let taken =
            goes_on && record.each_delta(|delta| self.add(delta, &mut slice_seq)) && self.fits(record_bytes_max);
        if !taken {
            self.parts.truncate(parts);
            for (part, (end, text)) in self.parts.iter_mut().zip(before) {
                part.seqs.end = end;
                part.text.truncate(text);
            }
            self.steps.truncate(steps);
            (self.bytes, self.text_bytes) = (bytes, text_bytes);
            return false;
        }
        let head = self.head.get_or_insert(RecordHead { count: 0, ..record.head() });
        head.count += record.count();
        (head.slice_seq, head.time_ms, head.log_seq) = (slice_seq.unwrap_or(0), record.time_ms(), record.log_seq());
        true
    }

    fn fits(&self, record_bytes_max: usize) -> bool {
        self.text_bytes <= TEXT_BYTES_MAX && self.steps.len() <= TEXT_DELTAS_MAX && self.bytes <= record_bytes_max
    }

    fn add(&mut self, delta: DeltaView<'a>, slice_seq: &mut Option<SliceSeq>) -> bool {
        let known = self.parts.iter().rposition(|part| part.stream == delta.stream);
        let part = match known {
            Some(at) if self.parts[at].seqs.end == delta.seq && self.parts[at].topic == delta.topic => at,
            // Another stream of the same name, or a hole: readers tell by its number, so it begins a record of its own.
            Some(_) => return false,
            None if self.parts.len() == TEXT_PARTS_MAX => return false,
            None => {
                self.bytes += size_of::<ArchivedTextPart<'static>>() + delta.stream.len() + delta.topic.len();
                let (stream, topic) = (delta.stream, delta.topic);
                self.parts.push(Part { stream, topic, seqs: delta.seq..delta.seq, text: String::new() });
                self.parts.len() - 1
            }
        };
        let distance = delta.slice_seq.saturating_sub(slice_seq.unwrap_or(delta.slice_seq));
        if slice_seq.is_some() && distance == 0 {
            return false;
        }
        *slice_seq = Some(delta.slice_seq);
        let bytes = delta.text.len() as u64;
        self.parts[part].seqs.end += 1;
        self.parts[part].text.push_str(delta.text);
        self.steps.push(DeltaStep { part, bytes, distance });
        self.text_bytes += delta.text.len();
        let large = [bytes, distance].into_iter().filter(|number| *number >= 1 << 17).count();
        self.bytes += delta.text.len() + STEP_BYTES_MAX + large * NUMBER_BYTES_MAX;
        true
    }

    /// Writes the record to `out` and forgets what was taken.
    ///
    /// # Panics
    /// If nothing was taken.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        let TextMerge { head, names, parts, steps, first_slice_seq, bytes, .. } = std::mem::take(self);
        let head = head.expect("something was taken");
        let (bytes_min, bytes_k) = best(steps.iter().map(|step| step.bytes));
        let (distance_min, distance_k) = best(steps.iter().skip(1).map(|step| step.distance));
        let distance_min = distance_min.max(1);
        let mut bits = BitWriter::default();
        for (number, step) in steps.iter().enumerate() {
            bits.bits(step.part as u64, part_bits(parts.len()));
            bits.rice(step.bytes - bytes_min, bytes_k);
            if number > 0 {
                bits.rice(step.distance - distance_min, distance_k);
            }
        }
        let bits = bits.into_bytes();
        let said: Vec<TextPart<'_>> = parts.iter().map(Part::view).collect();
        let body = TextBody {
            tenant: names.0,
            session: names.1,
            parts: &said,
            steps: &bits,
            first_slice_seq,
            bytes_min: bytes_min as u32,
            distance_min: distance_min as u32,
            bytes_k,
            distance_k,
        };
        out.clear();
        out.resize(bytes, 0);
        let length = encode_text(&head, &body, out);
        out.truncate(length);
    }
}

impl Part<'_> {
    fn view(&self) -> TextPart<'_> {
        TextPart { stream: self.stream, topic: self.topic, first_seq: self.seqs.start, text: &self.text }
    }
}

/// The smallest of some numbers, and the `k` with which the rest above it takes the fewest bits.
fn best(numbers: impl Iterator<Item = u64> + Clone) -> (u64, u8) {
    let min = numbers.clone().min().unwrap_or(0).min(u32::MAX.into());
    let cost = |k: &u8| numbers.clone().map(|number| rice_bits(number - min, *k)).sum::<u64>();
    (min, (0..=RICE_NONE).min_by_key(cost).unwrap_or(RICE_MAX))
}

/// Writes one text record to the start of `out` and returns its length. `count` and `slice_seq` of `head` are those of the record.
fn encode_text(head: &RecordHead, body: &TextBody<'_>, out: &mut [u8]) -> usize {
    let mut scratch = [MaybeUninit::<u8>::uninit(); SCRATCH_BYTES];
    let body_bytes = archived::serialize(body, &mut out[HEAD_BYTES..], &mut scratch);
    seal(RecordHead { kind: Kind::Text, ..*head }, body_bytes, out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PartitionId;
    use proptest::prelude::*;

    /// A record of one delta.
    fn delta(offset: u64, slice_seq: u64, stream: &str, seq: u64, text: &str) -> Vec<u8> {
        let data = format!("\"{text}\"");
        let event = EventBody {
            topic: "stream",
            client_id: "c",
            message_id: stream,
            traceparent: "",
            data: data.as_bytes(),
            data_kind: DataKind::Delta as u8,
            prev_offset: NO_OFFSET,
            expires_ms: 0,
            producer_epoch: 0,
            producer_seq: seq,
            dedupe_low: 0,
            dedupe_high: 0,
            body_hash: 1,
        };
        let body = CommitBody { tenant: "t", session: "s", events: &[event], markers: &[] };
        let partition = PartitionId(7);
        let head = RecordHead {
            length: 0,
            kind: Kind::Commit,
            slice: partition.slice(),
            count: 1,
            slice_seq,
            partition,
            offset,
            epoch: 3,
            time_ms: 1000 + offset,
            log_seq: 10 * offset,
            body_bytes: 0,
        };
        let mut out = vec![0; commit_bytes_max(&body)];
        encode_commit(&head, &body, &mut out);
        out
    }

    fn view(bytes: &[u8]) -> RecordView<'_> {
        RecordView::checked(bytes).unwrap()
    }

    fn merged(records: &[Vec<u8>]) -> Vec<u8> {
        let (mut merge, mut out) = (TextMerge::default(), Vec::new());
        assert!(records.iter().all(|record| is_mergeable(view(record)) && merge.take(view(record), 1 << 20)));
        merge.finish(&mut out);
        out
    }

    fn sample() -> Vec<Vec<u8>> {
        let said = [("a", 7, "Once"), ("b", 0, ""), ("a", 8, " up\\n"), ("a", 9, "ön"), ("b", 1, "🙂")];
        let place = |n: usize| (40 + n as u64, 70 + (n * n) as u64);
        said.iter()
            .enumerate()
            .map(|(n, (stream, seq, text))| delta(place(n).0, place(n).1, stream, *seq, text))
            .collect()
    }

    #[test]
    fn a_text_says_what_its_deltas_said() {
        let records = sample();
        let text = merged(&records);
        let text = view(&text);
        assert_eq!(text.kind(), Kind::Text);
        assert_eq!((text.offset(), text.count(), text.next_offset()), (40, 5, 45));
        assert_eq!((text.first_slice_seq(), text.slice_seq(), text.slice_count()), (70, 86, 1));
        assert_eq!((text.time_ms(), text.log_seq(), text.epoch()), (1044, 440, 3));
        let deltas: Vec<_> = records.iter().filter_map(|record| view(record).events().next()?.delta()).collect();
        assert_eq!(text.deltas().collect::<Vec<_>>(), deltas);
        assert_eq!((text.events().len(), text.markers().count()), (0, 0));
    }

    #[test]
    fn what_does_not_go_on_is_not_taken_and_changes_nothing() {
        let records = sample();
        let mut merge = TextMerge::default();
        assert!(records[..3].iter().all(|record| merge.take(view(record), 1 << 20)));
        let refused = [
            delta(44, 99, "a", 9, "a hole in the offsets"),
            delta(43, 99, "a", 10, "a hole in its numbers"),
            delta(43, 74, "a", 9, "not behind the last in its slice"),
            delta(43, 99, "c", 0, &"too long".repeat(9000)),
        ];
        for record in &refused {
            assert!(!merge.take(view(record), 1 << 20));
        }
        let narrow = delta(43, 99, "c", 0, "no room");
        assert!(!merge.take(view(&narrow), 100));
        assert!(records[3..].iter().all(|record| merge.take(view(record), 1 << 20)));
        let mut out = Vec::new();
        merge.finish(&mut out);
        assert_eq!(out, merged(&records));
    }

    #[test]
    fn streams_of_a_record_are_bounded() {
        let mut merge = TextMerge::default();
        let records: Vec<_> = (0..40).map(|n| delta(n, n + 1, &format!("s{n}"), 0, "x")).collect();
        let taken = records.iter().take_while(|record| merge.take(view(record), 1 << 20)).count();
        assert_eq!(taken, TEXT_PARTS_MAX);
        let mut out = Vec::new();
        merge.finish(&mut out);
        assert_eq!(view(&out).deltas().count(), TEXT_PARTS_MAX);
    }

    proptest! {
        /// The bound that admission counts with holds, whatever the deltas are; and merging merged ones is merging them at once.
        #[test]
        fn any_run_is_told_to_the_delta(
            steps in proptest::collection::vec((0u8..3, 0usize..40, prop_oneof![1u64..5, 1u64..100_000, Just(1 << 40)]), 2..200),
            cut in 0usize..200,
        ) {
            let (mut seqs, mut slice_seq, mut records) = ([0; 3], 0, vec![]);
            for (n, (stream, len, distance)) in steps.iter().enumerate() {
                slice_seq += distance;
                let seq = &mut seqs[usize::from(*stream)];
                records.push(delta(n as u64, slice_seq, &format!("s{stream}"), *seq, &"é".repeat(*len)));
                *seq += 1;
            }
            let whole = merged(&records);
            let deltas: Vec<_> = records.iter().filter_map(|record| view(record).events().next()?.delta()).collect();
            prop_assert_eq!(view(&whole).deltas().collect::<Vec<_>>(), deltas);
            let cut = cut.clamp(1, records.len() - 1);
            let halves = [merged(&records[..cut]), merged(&records[cut..])];
            prop_assert_eq!(merged(&halves), whole);
        }

        /// Bytes that no writer wrote, under a checksum that is right: refused, or read to their end.
        #[test]
        fn a_body_that_contradicts_itself_is_refused(at in 0usize..400, to in any::<u8>()) {
            let mut bytes = merged(&sample());
            let at = HEAD_BYTES + at % (bytes.len() - HEAD_BYTES);
            bytes[at] = to;
            let crc = crc32c::crc32c(&bytes[KIND_AT..]);
            bytes[4..8].copy_from_slice(&crc.to_le_bytes());
            if let Ok(view) = RecordView::checked(&bytes) {
                prop_assert_eq!(view.deltas().count(), view.count() as usize);
                prop_assert!(view.deltas().all(|delta| view.slice_seq() >= delta.slice_seq));
            }
        }
    }
}
