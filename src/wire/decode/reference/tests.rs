//! Frames of every command, and what becomes of them when they are mangled.

use super::*;
use proptest::prelude::*;

const FRAMES: &[&str] = &[
    r#"{"type":"publish","id":1234567,"session":"session-0042","topic":"chat.message","message_id":"01J9","data":{"text":"hi"}}"#,
    r#"{"type":"publish","id":"x","session":"s","topic":"a.b","message_id":"m","data":{"a":[1,2.5e-3,-0,null,true],"b":"\u00e9\ud83d\ude00\n"}}"#,
    r#" { "data" : [ ] , "m\u0065ssage_id":"m" , "unknown":[{"type":1}], "topic":"t","session":"s","type":"publish" } "#,
    r#"{"type":"publish","session":"s","topic":"t","data":"AAEC/w==","data_kind":"bytes","producer_epoch":1,"producer_seq":0,"ttl_ms":5,"durability":"volatile","traceparent":"00-ab"}"#,
    r#"{"type":"publish","session":"s","topic":"t","message_id":"m","prev_event_id":"a:b:00f1e2d3c4b5a697:12","prev_message_id":"n","data":null}"#,
    r#"{"type":"commit","id":7,"session":"s","events":[{"topic":"t","message_id":"m","data":{"a":[1]}},{"topic":"t","session":"s","message_id":"n","data":2}],"markers":[{"name":"n","offset":1}]}"#,
    r#"{"type":"subscribe","id":8,"session":"s","from":{"offset":4,"epoch":"00f1e2d3c4b5a697"}}"#,
    r#"{"type":"subscribe","id":8,"session":"s","from":{"marker":"planner"}}"#,
    r#"{"type":"subscribe","patterns":["chat.>","*.result"],"from":{"position":"12.9931,40.17"}}"#,
    r#"[{"type":"unsubscribe","session":"s"},{"type":"unsubscribe","patterns":true},{"type":"ping","id":1}]"#,
    r#"{"type":"ack","id":16,"events":123456789,"bytes":640}"#,
    r#"{"type":"mark","id":17,"session":"demo","name":"worker:1","offset":2}"#,
    r#"{"type":"group.declare","group":"flow","patterns":["chat.*","a.>"],"lease_ms":9}"#,
    r#"[{"type":"group.declare","group":"flow","patterns":[">"]},{"type":"group.drop","group":"flow"},{"type":"group.list","group":"flow","from":7}]"#,
    r#"[{"type":"group.join","group":"flow","credit":2},{"type":"group.leave","group":"flow"},{"type":"markers.list","session":"s","from":4}]"#,
    r#"{"type":"group.ack","session":"s","group":"flow","lease":"1.8899aabbccddeeff","offset":9}"#,
    r#"{"type":"commit","session":"s","markers":[{"group":"flow","lease":"1.8899aabbccddeeff","offset":9},{"name":"n","offset":1}]}"#,
    r#"{"type":"history","id":18,"session":"demo","from":1,"limit":2}"#,
    r#"{"type":"presence.enter","id":19,"session":"demo","state":"thinking","data":{"step":[1]},"lease_ms":60000}"#,
    r#"{"type":"presence.enter","session":"demo","log":true}"#,
    r#"{"type":"presence.update","session":"demo","data":null,"state":"blocked"}"#,
    r#"[{"type":"presence.leave","session":"demo"},{"type":"presence.watch","session":"a"},{"type":"receipts.unwatch","session":"b"}]"#,
    r#"{"type":"entry.put","id":1,"session":"s","key":"k","data":{"a":[1]},"ttl_ms":60000,"if_revision":3}"#,
    r#"[{"type":"entry.get","bucket":"b","key":"k"},{"type":"entry.delete","session":"s","key":"k:1"}]"#,
    r#"[{"type":"entry.list","session":"s","prefix":"job.","after":"job.7"},{"type":"entry.unwatch","bucket":"b"}]"#,
    r#"{"type":"entry.watch","bucket":"b","prefix":"","revision":41}"#,
    r#"{"type":"commit","session":"s","entries":[{"key":"a","data":null,"if_revision":0},{"key":"b"}]}"#,
    r#"{"type":"job.fail","job":"q/s:00f1e2d3c4b5a697:12","lease":"3.8899aabbccddeeff","retry_after_ms":5,"retry":false}"#,
    r#"[{"type":"job.extend","job":"q/a:b:00f1e2d3c4b5a697:0","lease":"1.8899aabbccddeeff","lease_ms":9},{"type":"pull","queue":"q","credit":2}]"#,
    r#"{"type":"job.progress","job":"q/s:00f1e2d3c4b5a697:12","lease":"65535.8899aabbccddeeff","data":{"a":[1]}}"#,
    r#"[{"type":"dead.redrive","job":"q/s:00f1e2d3c4b5a697:1"},{"type":"dead.drop","job":"q:r/s:00f1e2d3c4b5a697:1"},{"type":"dead.list","queue":"q","from":7}]"#,
    r#"{"type":"complete","job":"q/s:00f1e2d3c4b5a697:12","lease":"3.8899aabbccddeeff","events":[{"topic":"a","message_id":"m","data":1}]}"#,
    r#"{"type":"commit","session":"s","complete":{"job":"q/s:00f1e2d3c4b5a697:12","lease":"3.8899aabbccddeeff"},"if_next":13}"#,
    r#"{"type":"commit","session":"s","events":[{"topic":"a","message_id":"m","data":1}],"holds":{"job":"q/s:00f1e2d3c4b5a697:12","lease":"3.8899aabbccddeeff"}}"#,
    r#"{"type":"queue.declare","queue":"q","patterns":["job.*","a.>"],"priorities":["a.b"],"capacity":9,"lease_ms":5,"deadline_ms":50}"#,
    r#"{"type":"queue.declare","queue":"q","patterns":[">"],"attempts":2,"backoff_ms":0,"order":"none","fallback":{"topic":"x","data":[1]},"dead_letter":"y"}"#,
    r#"[{"type":"queue.drop","queue":"q"},{"type":"queue.list","after":"q"},{"type":"queue.list"}]"#,
    r#"{"type":"read","id":20,"session":"demo","offset":41}"#,
    r#"{"type":"hello","id":"h","credit":{"events":1000,"bytes":1048576}}"#,
    r#"{"type":"resume","id":1,"token":"AQEAAAAAZ-_","attempt":2,"seen":["a:b:00f1e2d3c4b5a697:12","s:00f1e2d3c4b5a698:0"],"position":"1.2"}"#,
    r#"[{"type":"resume"},{"type":"resume","seen":[]}]"#,
    r#"{"type":"stream.append","id":1,"session":"s","stream":"answer","seq":7,"delta":"a \"b\" \u00e9","topic":"t.u"}"#,
    r#"{"type":"stream.close","session":"s","stream":"answer","status":"cancelled"}"#,
    r#"{"type":"subscribe","session":"s","policy":"rollup"}"#,
    r#"[{"type":"presence.unwatch","session":"s"},{"type":"receipts.watch","session":"s"}]"#,
    r#"{"type":"auth","id":1,"token":"a.b.c"}"#,
    r#"[{"type":"revoke.client","name":"ann"},{"type":"revoke.token","name":"t:1"}]"#,
];

/// What is put into frames: bytes that mean something, and fields that mean something in the wrong place.
const PIECES: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\\",
    " ",
    "\n",
    "\t",
    "\u{1}",
    "\u{7f}",
    "0",
    "9",
    "-",
    ".",
    "e",
    "a",
    "é",
    "€",
    "😀",
    "null",
    "true",
    "\"\"",
    "{}",
    "[]",
    "\\u0041",
    "\\ud800",
    "\"type\":",
    "\"id\":1,",
    "\"id\":null,",
    "\"data\":",
    ",\"session\":\"s\"",
    ",\"data\":[[1]]",
    "\"from\":\"latest\",",
    "\"state\":\"tool\",",
    "\"lease_ms\":7,",
    "\"log\":false,",
    "\"bucket\":\"b\",",
    "\"ttl_ms\":0,",
    "9007199254740992",
    "1.5",
    "..",
    "$",
    "publish",
    "                    ",
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
];

fn mangled() -> impl Strategy<Value = String> {
    let change =
        (any::<prop::sample::Index>(), 0usize..12, prop_oneof![3 => Just(""), 5 => prop::sample::select(PIECES)]);
    (prop::sample::select(FRAMES), prop::collection::vec(change, 0..4)).prop_map(|(frame, changes)| {
        let mut chars: Vec<char> = frame.chars().collect();
        for (at, cut, piece) in changes {
            let at = at.index(chars.len() + 1);
            // Half of all changes take nothing away.
            let end = if cut < 6 { at } else { (at + cut - 6).min(chars.len()) };
            chars.splice(at..end, piece.chars());
        }
        chars.into_iter().collect()
    })
}

#[test]
fn the_frames_are_commands() {
    for frame in FRAMES {
        let said = expected(frame);
        assert_eq!(decoded(frame), said);
        let refused = |one: &String| Refusal::ALL.iter().any(|no| one.contains(&format!(" {} ", no.name())));
        assert!(!said.iter().any(refused), "{said:?}");
    }
}

/// A command that is added is read by both.
#[test]
fn every_command_has_a_frame() {
    for command in commands() {
        let quoted = format!(r#""type":"{command}""#);
        assert!(FRAMES.iter().any(|frame| frame.contains(&quoted)), "no frame with {command}");
    }
}

/// Lists that are longer than they may be: what a mangled frame never holds.
#[test]
fn lists_are_bounded_alike() {
    let list = |one: &str, count: usize| vec![one; count].join(",");
    for count in [16, 17, 32, 33, 64, 65, 256, 257] {
        for frame in [
            format!(r#"{{"type":"subscribe","patterns":[{}]}}"#, list(r#""a""#, count)),
            format!(r#"{{"type":"queue.declare","queue":"q","patterns":[{}]}}"#, list(r#""a""#, count)),
            format!(
                r#"{{"type":"queue.declare","queue":"q","patterns":["a"],"priorities":[{}]}}"#,
                list(r#""a""#, count)
            ),
            format!(r#"{{"type":"commit","session":"s","entries":[{}]}}"#, list(r#"{"key":"a"}"#, count)),
            format!(r#"{{"type":"commit","session":"s","markers":[{}]}}"#, list(r#"{"name":"n","offset":1}"#, count)),
            format!("[{}]", list(r#"{"type":"ping"}"#, count)),
        ] {
            assert_eq!(decoded(&frame), expected(&frame), "{count}: {frame}");
        }
    }
    let progress = |data: usize| {
        format!(
            r#"{{"type":"job.progress","job":"q/s:00f1e2d3c4b5a697:1","lease":"1.8899aabbccddeeff","data":{}}}"#,
            "7".repeat(data)
        )
    };
    for frame in [progress(32), progress(33)] {
        assert_eq!(decoded(&frame), expected(&frame), "{frame}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16_384))]

    #[test]
    fn says_the_same_of_any_frame(frame in mangled()) {
        prop_assert_eq!(decoded(&frame), expected(&frame), "{}", frame);
    }
}
