//! `PROTOCOL.md` against the transcripts and the tables of the code.

use crate::transcript::{self, Step};
use shards::refusal::Refusal;
use std::collections::HashSet;
use tidegate::net::websocket::{Violation, append_close};
use tidegate::wire::codes::Close;

const DOCUMENT: &str = include_str!("../../src/wire/PROTOCOL.md");

/// Lines of the fenced examples of one side.
fn examples(side: &str) -> Vec<&'static str> {
    let fence = format!("```json {side}");
    let mut inside = false;
    let mut lines = Vec::new();
    for line in DOCUMENT.lines() {
        if line.starts_with("```") {
            inside = line == fence;
        } else if inside {
            lines.push(line);
        }
    }
    assert!(lines.len() > 20, "the examples are fenced as {fence}");
    lines
}

#[test]
fn every_example_is_a_line_of_a_transcript() {
    let mut sent = HashSet::new();
    let mut got = HashSet::new();
    for transcript in transcript::all() {
        for (_, step) in transcript.steps {
            match step {
                Step::Send { written, .. } => sent.insert(written),
                Step::Expect { text, .. } => got.insert(text),
                _ => false,
            };
        }
    }
    for (side, known) in [("client", &sent), ("server", &got)] {
        for example in examples(side) {
            assert!(known.contains(example), "no transcript has this {side} example: {example}");
        }
    }
}

#[test]
fn every_refusal_has_its_row_and_example() {
    let examples = examples("server");
    for refusal in Refusal::ALL {
        let row = format!("| {} | `{}` | {} |", refusal.code(), refusal.name(), refusal.cure());
        assert!(DOCUMENT.contains(&row), "PROTOCOL.md lacks: {row}");
        let name = format!("\"refusal\":\"{}\"", refusal.name());
        assert!(examples.iter().any(|example| example.contains(&name)), "PROTOCOL.md has no example of {name}");
    }
}

#[test]
fn every_close_has_its_row() {
    for close in Close::ALL {
        let mut frame = Vec::new();
        append_close(&mut frame, Some(close.code()), close.reason());
        let row = format!(
            "| {} | `{}` | {} | `{:02x} {:02x} {:02x} {:02x} …` |",
            close.code(),
            close.name(),
            close.reason(),
            frame[0],
            frame[1],
            frame[2],
            frame[3]
        );
        assert!(DOCUMENT.contains(&row), "PROTOCOL.md lacks: {row}");
    }
    for violation in Violation::ALL.iter().filter(|violation| violation.close_code() == 1002) {
        let row = format!("| {violation:?} | {} |", violation.reason());
        assert!(DOCUMENT.contains(&row), "PROTOCOL.md lacks: {row}");
    }
}
