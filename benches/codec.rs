//! What the codec costs per event, in ns, one core, warm cache. `cargo bench --bench codec`.
//!
//! ```text
//!   unmask        the client's mask, 128 B and 16 KiB
//!   framer        frames in 2 KiB receive buffers, whole and cut at every buffer's end
//!   decode        commands, borrowed from text
//!   encode        replies, and event views, to frames
//!   path          frame → command, and event → frame with its head: what one event costs both ways
//! ```
//! `-- NAME` runs the cases with NAME in theirs. Under `cargo test`, or with `--tiny`, every case runs a few times only,
//! so that it cannot rot. The hash is of the results: the same on every machine, and different if a case no longer
//! does what it did. What the numbers do not show: cache misses of real receive buffers, and the kernel, which costs
//! more than all of this together.
//!
//! `-- --count` prints instructions an operation in place of time, free of noise and of what else the machine does:
//! valgrind counts this very program twice, with `--calls` few and many, and the difference is divided.

use shards::command::Durability;
use shards::effect::Reply;
use shards::ids::CommandId;
use shards::outbox::VolatileEvent;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::time::Instant;
use storage::ids::{PartitionId, SliceId};
use storage::record::{
    CommitBody, DataKind, EventBody, Kind, NO_OFFSET, RecordHead, RecordView, commit_bytes_max, encode_commit,
};
use tidegate::net::websocket::{Decoder, Message, Opcode, append_head, append_with, unmask};
use tidegate::wire::decode::{Resume, Scratch, decode};
use tidegate::wire::{encode, json};
use xxhash_rust::xxh3::xxh3_64;

const RECV_BYTES: usize = 2048;
const FRAME_BYTES_MAX: usize = 256 << 10;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let has = |flag: &str| arguments.iter().any(|a| a == flag);
    let mode = match arguments.iter().position(|a| a == "--calls") {
        Some(at) => Mode::Calls(arguments.get(at + 1).and_then(|n| n.parse().ok()).expect("--calls N NAME")),
        None if has("--count") => Mode::Count,
        None if has("--bench") && !has("--tiny") => Mode::Time { rounds: 7, operations: 200_000 },
        None => Mode::Time { rounds: 1, operations: 64 },
    };
    let filter = arguments.into_iter().skip(1).rfind(|a| !a.starts_with('-')).unwrap_or_default();
    let bench = Bench { mode, filter };
    match bench.mode {
        Mode::Time { .. } => println!("{:<28}{:>10}{:>10}  {:>16}", "case", "ns/op", "MB/s", "hash"),
        Mode::Count => println!("{:<28}{:>10}{:>10}", "case", "instr/op", "instr/B"),
        Mode::Calls(_) => {}
    }

    for bytes in [128, 16 << 10] {
        let plain = data(bytes);
        let mut buffer = plain.clone();
        bench.run(&format!("unmask {bytes} B"), bytes, if bytes > 1024 { 8 } else { 1 }, || {
            black_box(unmask(&mut buffer, [0x37, 0xfa, 0x21, 0x3d]));
            0
        });
    }

    for bytes in [128, 1024] {
        framer(&bench, bytes);
    }

    let mut scratch = Scratch::new(&Default::default());
    for bytes in [16, 128, 256, 1024, 4096] {
        let frame = publish(bytes);
        bench.run(&format!("decode publish {bytes} B"), frame.len(), 1, || decode_one(&frame, &mut scratch));
    }
    for (name, data) in [
        ("escapes", format!("\"{}\"", r#"said \"yes\",\nthen left. "#.repeat(10))),
        ("nested", format!("[{}]", [r#"{"a":[1,2.5e3,null,true],"b":"some text","c":{}}"#; 5].join(","))),
        ("unicode", format!("\"{}\"", "Grüße aus Köln 你好世界 😀 ".repeat(6))),
    ] {
        let frame = format!("{PUBLISH_HEAD}\"data\":{data}}}");
        bench.run(&format!("decode publish {name}"), frame.len(), 1, || decode_one(&frame, &mut scratch));
    }
    for (name, frame) in [
        (
            "subscribe",
            r#"{"type":"subscribe","id":8,"session":"session-0042","from":{"offset":4,"epoch":"00f1e2d3c4b5a697"}}"#,
        ),
        ("ack", r#"{"type":"ack","events":123456,"bytes":640000}"#),
    ] {
        bench.run(&format!("decode {name}"), frame.len(), 1, || decode_one(frame, &mut scratch));
    }
    let frame = format!(r#"{PUBLISH_HEAD}"data_kind":"bytes","data":"{}"}}"#, "A".repeat(1368));
    bench.run("decode publish base64 1 KiB", frame.len(), 1, || decode_one(&frame, &mut scratch));
    let events: Vec<String> =
        (0..16).map(|i| format!(r#"{{"topic":"tool.call","message_id":"m{i}","data":{{"n":{i}}}}}"#)).collect();
    let frame = format!(r#"{{"type":"commit","id":9,"session":"demo","events":[{}]}}"#, events.join(","));
    bench.run("decode commit of 16", frame.len(), 16, || decode_one(&frame, &mut scratch));
    let frame = format!("[{}]", vec![publish(128); 64].join(","));
    bench.run("decode array of 64", frame.len(), 64, || decode_one(&frame, &mut scratch));
    let text = format!("[{}]", vec![r#"{"a":[1,2.5e3,null,true],"b":"some text","c":{"d":"e"}}"#; 20].join(","));
    bench.run("json check 1.2 KiB", text.len(), 1, || u64::from(json::check(&text).is_ok()));

    let mut out = Vec::with_capacity(1 << 16);
    for (name, kind, bytes) in [
        ("", DataKind::Json, 16),
        ("", DataKind::Json, 128),
        ("", DataKind::Json, 256),
        ("", DataKind::Json, 1024),
        ("base64 ", DataKind::Bytes, 1024),
    ] {
        let record = record(kind, bytes);
        let view = RecordView::checked(&record).expect("just encoded").events().next().expect("one event");
        bench.run(&format!("encode event {name}{bytes} B"), bytes, 1, || {
            out.clear();
            encode::event(&mut out, &view);
            black_box(out.len() as u64)
        });
    }

    let id = CommandId::Number(1_234_567);
    let (session, epoch, offset) = ("session-0042", 0x00f1_e2d3_c4b5_a697, 4242);
    let published = Reply::Published { session, epoch, offset, durability: Durability::Disk, duplicate: false };
    bench.run("encode published", 1, 1, || {
        out.clear();
        encode::reply(&mut out, &id, black_box(&published));
        black_box(out.len() as u64)
    });
    let text = publish(128);
    let event = VolatileEvent {
        session,
        topic: "chat.typing",
        client_id: "client-0007",
        after_offset: offset,
        counter: 99,
        data: text.as_bytes(),
        data_kind: DataKind::Json,
        traceparent: "",
    };
    bench.run("encode volatile 256 B", 1, 1, || {
        out.clear();
        encode::volatile(&mut out, black_box(&event));
        black_box(out.len() as u64)
    });

    path(&bench);
}

enum Mode {
    /// The best of some rounds of so many operations.
    Time { rounds: usize, operations: usize },
    /// Instructions an operation.
    Count,
    /// The one case of the given name, so many times: what `Count` counts.
    Calls(usize),
}

struct Bench {
    mode: Mode,
    filter: String,
}

impl Bench {
    /// Runs `call`, which does `per_call` operations on `bytes` bytes in all, as the mode says.
    fn run(&self, name: &str, bytes: usize, per_call: usize, mut call: impl FnMut() -> u64) {
        match self.mode {
            Mode::Calls(calls) if name == self.filter => (0..calls).for_each(|_| {
                black_box(call());
            }),
            Mode::Time { rounds, operations } if name.contains(&self.filter) => {
                time(name, bytes, per_call, rounds, (operations / per_call).max(1), call);
            }
            Mode::Count if name.contains(&self.filter) => {
                let calls = 1000;
                let counted = instructions(name, 10 + calls) - instructions(name, 10);
                let each = counted as f64 / calls as f64;
                println!("{name:<28}{:>10.1}{:>10.2}", each / per_call as f64, each / bytes as f64);
            }
            _ => {}
        }
    }
}

/// Instructions of this program when it runs a case so often.
fn instructions(name: &str, calls: usize) -> u64 {
    let own = std::env::current_exe().expect("own path");
    let calls = calls.to_string();
    let out = std::process::Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(own)
        .args(["--calls", &calls, name])
        .output()
        .expect("valgrind is installed");
    let said = String::from_utf8_lossy(&out.stderr);
    let line = said.lines().find(|line| line.contains("Collected")).unwrap_or_else(|| panic!("{said}"));
    line.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{said}"))
}

/// Prints the best round.
fn time(name: &str, bytes: usize, per_call: usize, rounds: usize, calls: usize, mut call: impl FnMut() -> u64) {
    let mut best = f64::INFINITY;
    let mut results = Vec::new();
    for _ in 0..rounds {
        let mut sum = 0u64;
        let began = Instant::now();
        for _ in 0..calls {
            sum = sum.wrapping_add(call());
        }
        best = best.min(began.elapsed().as_nanos() as f64 / calls as f64);
        results = (sum / calls as u64).to_le_bytes().to_vec();
    }
    let hash = xxh3_64(&results);
    println!("{name:<28}{:>10.1}{:>10.0}  {hash:016x}", best / per_call as f64, bytes as f64 / best * 1000.0);
}

/// JSON-safe bytes.
fn data(bytes: usize) -> Vec<u8> {
    vec![b'x'; bytes]
}

const PUBLISH_HEAD: &str =
    r#"{"type":"publish","id":1234567,"session":"session-0042","topic":"chat.message","message_id":"01J9ZK3N5T8W2Q","#;

fn publish(bytes: usize) -> String {
    format!(r#"{PUBLISH_HEAD}"data":{{"text":"{}"}}}}"#, "x".repeat(bytes))
}

/// Decodes a frame; a number that depends on what came out.
fn decode_one(frame: &str, scratch: &mut Scratch) -> u64 {
    let mut sum = 0;
    decode(black_box(frame), Resume::default(), scratch, |id, result| {
        sum += match &result {
            Ok(shards::command::Command::Publish { session, event, .. }) => {
                (session.len() + event.topic.len() + event.message_id.len() + event.data.len()) as u64
            }
            Ok(shards::command::Command::Commit { events, .. }) => events.len() as u64,
            Ok(_) => 1,
            Err(refused) => panic!("{id:?} {refused:?}"),
        };
        black_box(&result);
        ControlFlow::Continue(())
    });
    sum
}

/// A client's frames, as many as fill some receive buffers.
fn masked_frames(payload: &[u8], count: usize) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut out = Vec::new();
    for _ in 0..count {
        let at = out.len();
        append_head(&mut out, Opcode::Text, payload.len());
        out[at + 1] |= 0x80;
        out.extend_from_slice(&mask);
        let start = out.len();
        out.extend_from_slice(payload);
        unmask(&mut out[start..], mask);
    }
    out
}

/// Runs a stream through the framer; messages seen.
fn frames(decoder: &mut Decoder, assembly: &mut Vec<u8>, bytes: &mut [u8]) -> u64 {
    let mut at = 0;
    let mut seen = 0;
    while at < bytes.len() {
        let (taken, message) = decoder.next(&mut bytes[at..], assembly).expect("well-formed");
        at += taken;
        if let Some(Message::Text(text)) = message {
            black_box(text);
            seen += 1;
        }
    }
    seen
}

fn framer(bench: &Bench, bytes: usize) {
    let per_buffer = (RECV_BYTES / (bytes + 8)).max(1);
    let whole = masked_frames(&data(bytes), per_buffer);
    let mut buffer = whole.clone();
    let mut assembly = Vec::new();
    let mut decoder = Decoder::new(FRAME_BYTES_MAX);
    // Each call decodes a fresh copy, as the kernel would have put it there: the copy is part of the price shown.
    bench.run(&format!("framer {bytes} B whole"), whole.len(), per_buffer, || {
        buffer.copy_from_slice(&whole);
        frames(&mut decoder, &mut assembly, &mut buffer)
    });
    let count = 8 * per_buffer;
    let stream = masked_frames(&data(bytes), count);
    let mut copy = stream.clone();
    bench.run(&format!("framer {bytes} B cut"), stream.len(), count, || {
        copy.copy_from_slice(&stream);
        copy.chunks_mut(RECV_BYTES).map(|part| frames(&mut decoder, &mut assembly, part)).sum()
    });
}

fn record(kind: DataKind, bytes: usize) -> Vec<u8> {
    let data = match kind {
        DataKind::Json => format!(r#"{{"text":"{}"}}"#, "x".repeat(bytes)).into_bytes(),
        DataKind::Bytes | DataKind::Delta | DataKind::Close => data(bytes),
    };
    let event = EventBody {
        topic: "chat.message",
        client_id: "client-0007",
        message_id: "01J9ZK3N5T8W2Q",
        traceparent: "",
        data: &data,
        data_kind: kind as u8,
        prev_offset: NO_OFFSET,
        expires_ms: 0,
        producer_epoch: 0,
        producer_seq: NO_OFFSET,
        dedupe_low: 1,
        dedupe_high: 1,
        body_hash: 1,
    };
    let body = CommitBody { tenant: "default", session: "session-0042", events: &[event], markers: &[] };
    let head = RecordHead {
        length: 0,
        kind: Kind::Commit,
        slice: SliceId(318),
        count: 1,
        slice_seq: 4711,
        partition: PartitionId(318 << 118),
        offset: 4242,
        epoch: 0x00f1_e2d3_c4b5_a697,
        time_ms: 1_767_225_600_000,
        log_seq: 0,
        body_bytes: 0,
    };
    let mut record = vec![0; commit_bytes_max(&body)];
    let length = encode_commit(&head, &body, &mut record);
    record.truncate(length);
    record
}

/// In through framer and decoder, out through encoder and frame head.
fn path(bench: &Bench) {
    for bytes in [128, 256] {
        path_in(bench, bytes);
    }
    let record = record(DataKind::Json, 128);
    let view = RecordView::checked(&record).expect("just encoded").events().next().expect("one event");
    let mut out = Vec::with_capacity(1 << 16);
    bench.run("path out 128 B", 128, 1, || {
        out.clear();
        append_with(&mut out, Opcode::Text, |out| encode::event(out, &view)) as u64
    });
}

fn path_in(bench: &Bench, bytes: usize) {
    let text = publish(bytes);
    let per_buffer = RECV_BYTES / (text.len() + 8);
    let whole = masked_frames(text.as_bytes(), per_buffer);
    let mut buffer = whole.clone();
    let mut assembly = Vec::new();
    let mut decoder = Decoder::new(FRAME_BYTES_MAX);
    let mut scratch = Scratch::new(&Default::default());
    bench.run(&format!("path in {bytes} B"), whole.len(), per_buffer, || {
        buffer.copy_from_slice(&whole);
        let mut at = 0;
        let mut sum = 0;
        while at < buffer.len() {
            let (taken, message) = decoder.next(&mut buffer[at..], &mut assembly).expect("well-formed");
            if let Some(Message::Text(text)) = message {
                sum += decode_one(text, &mut scratch);
            }
            at += taken;
        }
        sum
    });
}
