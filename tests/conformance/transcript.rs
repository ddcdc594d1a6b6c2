//! Reading transcripts.

use serde::Deserialize;
use serde_json::value::RawValue;
use std::path::Path;

/// One transcript.
pub struct Transcript {
    pub file: String,
    pub live: bool,
    /// Lines with their numbers in the file.
    pub steps: Vec<(usize, Step)>,
}

/// One line.
#[derive(Clone, Debug)]
pub enum Step {
    Connect {
        connection: String,
        query: String,
    },
    /// The text as written, and as sent.
    Send {
        connection: String,
        written: String,
        text: String,
    },
    Raw {
        connection: String,
        bytes: Vec<u8>,
    },
    Expect {
        connection: String,
        text: String,
    },
    Close {
        connection: String,
        code: u16,
        reason: Option<String>,
    },
    Drop {
        connection: String,
    },
    /// The server is told to go down.
    Drain,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    transcript: Option<String>,
    live: Option<bool>,
    about: Option<String>,
    connect: Option<String>,
    query: Option<String>,
    from: Option<String>,
    #[serde(borrow)]
    send: Option<&'a RawValue>,
    text: Option<String>,
    raw: Option<String>,
    to: Option<String>,
    #[serde(borrow)]
    expect: Option<&'a RawValue>,
    close: Option<u16>,
    reason: Option<String>,
    drop: Option<String>,
    drain: Option<bool>,
}

/// All transcripts, by file name.
pub fn all() -> Vec<Transcript> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/golden");
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files.iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> Transcript {
    let file = path.file_name().unwrap().to_string_lossy().into_owned();
    let text = std::fs::read_to_string(path).unwrap();
    let mut transcript = Transcript { file, live: false, steps: Vec::new() };
    for (i, line) in text.lines().enumerate() {
        let number = i + 1;
        let at = format!("{}:{number}", transcript.file);
        let parsed: Line<'_> = serde_json::from_str(line).unwrap_or_else(|error| panic!("{at}: {error}"));
        if i == 0 {
            assert!(parsed.transcript.is_some(), "{at}: the first line says what the transcript is about");
            transcript.live = parsed.live.unwrap_or_else(|| panic!("{at}: live is missing"));
            continue;
        }
        if parsed.about.is_some() {
            continue;
        }
        let step = match parsed {
            Line { connect: Some(connection), query, .. } => {
                Step::Connect { connection, query: query.unwrap_or_default() }
            }
            Line { from: Some(connection), send: Some(written), .. } => {
                let written = written.get().to_owned();
                Step::Send { connection, text: expanded(&written), written }
            }
            Line { from: Some(connection), text: Some(written), .. } => {
                Step::Send { connection, text: expanded(&written), written }
            }
            Line { from: Some(connection), raw: Some(hex), .. } => {
                let byte = |digits: &str| u8::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("{at}: {digits}"));
                Step::Raw { connection, bytes: hex.split_whitespace().map(byte).collect() }
            }
            Line { to: Some(connection), expect: Some(text), .. } => {
                Step::Expect { connection, text: text.get().to_owned() }
            }
            Line { to: Some(connection), close: Some(code), reason, .. } => Step::Close { connection, code, reason },
            Line { drop: Some(connection), .. } => Step::Drop { connection },
            Line { drain: Some(true), .. } => Step::Drain,
            _ => panic!("{at}: no such line: {line}"),
        };
        transcript.steps.push((number, step));
    }
    transcript
}

/// Writes out `<x*7>`.
fn expanded(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(open) = rest.find('<') {
        let repeated = rest[open + 1..].find('>').and_then(|close| {
            let (part, times) = rest[open + 1..open + 1 + close].rsplit_once('*')?;
            Some((part.repeat(times.parse().ok()?), open + close + 2))
        });
        let (part, end) = repeated.unwrap_or_else(|| ("<".to_owned(), open + 1));
        out.push_str(&rest[..open]);
        out.push_str(&part);
        rest = &rest[end..];
    }
    out + rest
}

#[test]
fn repeats_are_written_out() {
    assert_eq!(expanded("a<b*3>c<[*2><]*2>"), "abbbc[[]]");
    assert_eq!(expanded("1 < 2 > 3"), "1 < 2 > 3");
}
