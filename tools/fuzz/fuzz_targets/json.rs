//! The scanner against serde_json, and the decoder of frames: what it takes is what was sent, wherever it is interrupted.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use shards::command::{Command, DataKind};
use shards::limits::Limits;
use std::ops::ControlFlow;
use tidegate::wire::decode::{Resume, Scratch, decode};
use tidegate::wire::json::{self, Broken};

fn scanner(text: &str) {
    let value: Result<serde_json::Value, _> = serde_json::from_str(text);
    match json::check(text) {
        Ok(_) => {
            assert!(serde_json::from_str::<IgnoredAny>(text).is_ok(), "taken, and no JSON: {text}");
            // The grammar knows no largest number; a tree does.
            assert!(value.is_ok() || value.is_err_and(|why| why.to_string().contains("number out of range")), "{text}");
        }
        Err(Broken::Syntax) => assert!(value.is_err(), "refused, and JSON: {text}"),
        Err(Broken::TooDeep) => {}
    }
}

/// Each command as text, with every `stop`-th one handed back once before it is taken.
fn commands(frame: &str, scratch: &mut Scratch, stop: usize) -> Vec<String> {
    let (mut seen, mut resume, mut stopped) = (Vec::new(), Resume::default(), false);
    loop {
        let rest = decode(frame, resume, scratch, |id, result| {
            stopped = !stopped && seen.len() % stop == stop - 1;
            if stopped {
                return ControlFlow::Break(());
            }
            if let Ok(Command::Publish { event, .. }) = &result
                && event.data_kind == DataKind::Json
            {
                let data = std::str::from_utf8(event.data).expect("part of a text");
                assert!(frame.contains(data) && json::check(data).is_ok(), "passed on, and no JSON: {data}");
            }
            seen.push(format!("{id:?} {result:?}"));
            ControlFlow::Continue(())
        });
        match rest {
            // The same command comes first.
            Some(here) => resume = Resume::unpack(here.pack()),
            None => return seen,
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((stop, text)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    scanner(text);
    let mut scratch = Scratch::new(&Limits::default());
    let whole = commands(text, &mut scratch, usize::MAX);
    assert_eq!(whole, commands(text, &mut scratch, usize::from(*stop) + 2), "interrupted decoding differs");
    if serde_json::from_str::<IgnoredAny>(text).is_err() {
        let refused = |name: &str| whole.iter().any(|one| one.contains(name));
        assert!(refused("BadFrame") || refused("BadData"), "no JSON, and nobody says so: {whole:?}");
    }
});
