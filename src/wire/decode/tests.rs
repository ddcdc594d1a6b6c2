//! The decoder against its frames.

use super::fields::ALL;
use super::reference::decoded;
use super::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

fn one(frame: &str) -> String {
    let mut all = decoded(frame);
    assert_eq!(all.len(), 1, "{frame}");
    all.remove(0)
}

#[test]
fn fields_come_in_any_order_and_escapes_are_read() {
    let plain = one(r#"{"type":"publish","id":7,"session":"s","topic":"a.b","message_id":"m","data":{"a":[1]}}"#);
    let other = one(
        r#" { "data" : {"a":[1]} , "unknown":[{}], "m\u0065ssage_id":"\u006d","topic":"a\u002eb","id":7,"session":"s","type":"publish" } "#,
    );
    assert_eq!(plain, other);
    assert!(plain.starts_with("7 Publish"), "{plain}");
}

#[test]
fn data_is_passed_through_as_it_stands() {
    for data in ["null", "\"a\\u0041\"", "[ 1 ,2]", "-0.5e3", "{\"a\":1,\"a\":2}"] {
        let frame = format!(r#"{{"type":"publish","session":"s","topic":"t","message_id":"m","data":  {data}  }}"#);
        let mut scratch = Scratch::new(&Limits::default());
        let mut seen = false;
        decode(&frame, Resume::default(), &mut scratch, |_, result| {
            let Ok(Command::Publish { event, .. }) = result else { panic!("{result:?}") };
            assert_eq!(event.data, data.as_bytes());
            seen = true;
            ControlFlow::Continue(())
        });
        assert!(seen);
    }
}

#[test]
fn a_broken_frame_is_refused_whole() {
    assert_eq!(decoded(r#"[{"type":"ping","id":1},{"type":"ping","id":2}]"#), ["1 Ping", "2 Ping"]);
    assert_eq!(decoded(r#"[{"type":"ping","id":1},{"type":"ping","id":2"#), ["- bad_frame "]);
    assert_eq!(decoded(r#"[{"type":"ping","id":1},7]"#), ["- bad_frame "]);
    assert_eq!(decoded(r#"[{"type":"ping","id":1},{"type":1}]"#), ["1 Ping", "- wrong_type type"]);
    assert_eq!(decoded("[]"), [""; 0]);
    for frame in ["", "7", "[", "{", "{}x", "[]x", "null", "[[]]", "\u{feff}{}"] {
        assert!(one(frame).ends_with("bad_frame "), "{frame}: {}", one(frame));
    }
    assert_eq!(one(r#"{"type":"ping","id":3}]"#), "3 bad_frame ");
}

#[test]
fn a_frame_holds_at_most_256_commands() {
    let frame = |n: usize| format!("[{}]", vec![r#"{"type":"ping"}"#; n].join(","));
    assert_eq!(decoded(&frame(256)).len(), 256);
    assert_eq!(decoded(&frame(257)), ["- bad_frame "]);
}

#[test]
fn data_that_is_too_deep_is_refused_alone() {
    let publish = |depth: usize| {
        let data = "[".repeat(depth) + &"]".repeat(depth);
        format!(r#"{{"type":"publish","session":"s","topic":"t","message_id":"m","id":5,"data":{data}}}"#)
    };
    assert_eq!(one(&publish(65)), "5 bad_data data");
    assert_eq!(one(&publish(1000)), "5 bad_data data");
    let both = decoded(&format!("[{},{}]", publish(65), publish(64).replace("\"id\":5", "\"id\":6")));
    assert_eq!(both[0], "5 bad_data data");
    assert!(both[1].starts_with("6 Publish"), "{}", both[1]);
}

#[test]
fn a_stopped_frame_goes_on_at_the_same_command() {
    let frame =
        r#" [ {"type":"ping","id":1} , {"type":"ping","id":2} ,{"type":"nope","id":3}, {"type":"ping","id":4}]"#;
    let mut scratch = Scratch::new(&Limits::default());
    let mut seen = Vec::new();
    let mut resume = Resume::default();
    let mut stops = 0;
    // Every command is refused room once and taken the second time.
    loop {
        let mut refuse = true;
        let rest = decode(frame, resume, &mut scratch, |id, result| {
            if stops % 2 == 0 && refuse {
                return ControlFlow::Break(());
            }
            refuse = true;
            stops += 1;
            seen.push(format!("{id:?} {}", result.is_ok()));
            ControlFlow::Continue(())
        });
        stops += 1;
        match rest {
            Some(rest) => resume = rest,
            None => break,
        }
    }
    assert_eq!(seen, ["1 true", "2 true", "3 false", "4 true"]);
}

#[test]
fn the_allocations_of_lists_are_kept() {
    let frame = r#"{"type":"commit","session":"s","events":[{"topic":"t","message_id":"m","data":1}],"markers":[{"name":"n","offset":1}]}"#;
    let mut scratch = Scratch::new(&Limits::default());
    let mut at = Vec::new();
    for _ in 0..3 {
        decode(frame, Resume::default(), &mut scratch, |_, result| {
            let Ok(Command::Commit { events, markers, .. }) = result else { panic!("{result:?}") };
            at.push((events.as_ptr() as usize, markers.as_ptr() as usize));
            ControlFlow::Continue(())
        });
    }
    assert_eq!(at[0], at[1]);
    assert_eq!(at[1], at[2]);
}

#[test]
fn bytes_are_decoded_and_bounded() {
    let publish = |data: &str| {
        one(&format!(
            r#"{{"type":"publish","session":"s","topic":"t","message_id":"m","data_kind":"bytes","data":{data}}}"#
        ))
    };
    assert!(publish("\"AP+\\/\"").contains("data: [0, 255, 191]"));
    assert!(publish("\"\"").contains("data: []"));
    for bad in ["\"A\"", "\"AA\"", "\"AA=\"", "\"A A=\"", "7", "null", "\"__8=\""] {
        assert_eq!(publish(bad), "- bad_data data", "{bad}");
    }
    let full = STANDARD.encode([7; 128]);
    assert!(publish(&format!("\"{full}\"")).contains("Publish"));
    let over = STANDARD.encode([7; 129]);
    assert_eq!(publish(&format!("\"{over}\"")), "- event_too_large data");
    assert_eq!(publish(&format!("\"{}\"", over.replace('B', "\\u0042"))), "- event_too_large data");
}

#[test]
fn every_field_is_known_to_the_table_of_refusals() {
    // What is inside `from` is told by `from`.
    let inner = [Field::Epoch, Field::Marker, Field::Position];
    for field in ALL.into_iter().filter(|field| !inner.contains(field)) {
        assert!(shards::refusal::FIELDS.contains(&field.name(Inside::Command)), "{field:?}");
    }
    let keys = r#""topic":1,"message_id":1,"prev_event_id":1,"prev_message_id":1,"data_kind":1,"ttl_ms":"","producer_epoch":"","producer_seq":"","traceparent":1,"session":1"#;
    for key in keys.split(',') {
        let good = r#""topic":"t","message_id":"m","data":1,"producer_epoch":1,"producer_seq":1"#;
        let name = key.split('"').nth(1).unwrap();
        let rest: Vec<&str> = good.split(',').filter(|field| !field.contains(&format!("\"{name}\""))).collect();
        let refused = one(&format!(r#"{{"type":"commit","session":"s","events":[{{{key},{}}}]}}"#, rest.join(",")));
        let field = refused.rsplit(' ').next().unwrap();
        assert_eq!(field, format!("events[].{name}"));
        assert!(shards::refusal::FIELDS.contains(&field), "{field}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "[\\[\\]{}:,\"\\\\a-z0-9. _]{0,80}") {
        decoded(&text);
    }

    #[test]
    fn a_mangled_command_is_taken_or_refused_once(at: proptest::sample::Index, with in "[\\[\\]{}:,\"\\\\a0. -]?") {
        let frame = r#"{"type":"commit","id":"x","session":"s","events":[{"topic":"t","message_id":"m","data":{"a":[1,"b"]},"producer_epoch":1,"producer_seq":0}],"markers":[{"name":"n","offset":1}]}"#;
        let at = at.index(frame.len());
        one(&format!("{}{with}{}", &frame[..at], &frame[at + 1..]));
    }
}
