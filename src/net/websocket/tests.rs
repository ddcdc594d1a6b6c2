//! The codec against its table of violations, against itself in every cut, and against tungstenite both ways.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use std::io::{Cursor, Read, Write};
use tungstenite::protocol::{Role, WebSocketConfig};

const FRAME_BYTES_MAX: usize = 4096;

/// A message that owns its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Owned {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

/// What a whole stream came to: its messages, and the violation that ended it.
type Outcome = (Vec<Owned>, Option<Violation>);

/// A client's frame.
fn frame(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    match payload.len() {
        n @ 0..126 => out.push(0x80 | n as u8),
        n @ 126..0x1_0000 => {
            out.push(0x80 | 126);
            out.extend((n as u16).to_be_bytes());
        }
        n => {
            out.push(0x80 | 127);
            out.extend((n as u64).to_be_bytes());
        }
    }
    out.extend(mask);
    out.extend(payload.iter().enumerate().map(|(i, b)| b ^ mask[i % 4]));
    out
}

fn text_frame(payload: &[u8]) -> Vec<u8> {
    frame(0x81, [1, 2, 3, 4], payload)
}

/// Decodes a stream that arrives in parts of the given lengths, over and over.
fn decode(stream: &[u8], parts: &[usize]) -> Outcome {
    let mut decoder = Decoder::new(FRAME_BYTES_MAX);
    let mut assembly = Vec::new();
    let mut messages = Vec::new();
    let mut rest = stream.to_vec();
    let mut parts = parts.iter().copied().cycle();
    while !rest.is_empty() {
        let cut = parts.next().unwrap_or(usize::MAX).clamp(1, rest.len());
        let mut part: Vec<u8> = rest.drain(..cut).collect();
        let mut at = 0;
        while at < part.len() {
            if !decoder.holds_assembly() {
                // The edge may lend another buffer now, with anything in it.
                assembly = b"stale".to_vec();
            }
            match decoder.next(&mut part[at..], &mut assembly) {
                Ok((taken, message)) => {
                    assert!(taken > 0, "a call with bytes makes progress");
                    at += taken;
                    messages.extend(message.map(|message| match message {
                        Message::Text(text) => Owned::Text(text.to_owned()),
                        Message::Binary(bytes) => Owned::Binary(bytes.to_vec()),
                        Message::Ping(bytes) => Owned::Ping(bytes.to_vec()),
                        Message::Pong(bytes) => Owned::Pong(bytes.to_vec()),
                        Message::Close { code, reason } => Owned::Close(code, reason.to_owned()),
                    }));
                }
                Err(violation) => {
                    assert!(decoder.is_closed() && !decoder.holds_assembly());
                    let rest = part.len() - at;
                    assert_eq!(decoder.next(&mut part[at..], &mut assembly), Ok((rest, None)));
                    return (messages, Some(violation));
                }
            }
            assert!(assembly.len() <= FRAME_BYTES_MAX + CONTROL_BYTES_MAX);
        }
    }
    (messages, None)
}

#[test]
fn every_violation_is_found_however_the_bytes_arrive() {
    let mut unmasked = Vec::new();
    append_frame(&mut unmasked, Opcode::Text, b"x");
    let long = vec![b'x'; FRAME_BYTES_MAX + 1];
    let half = vec![b'x'; FRAME_BYTES_MAX / 2 + 1];
    let cases: Vec<(Violation, Vec<Vec<u8>>)> = vec![
        (Violation::ReservedBits, vec![frame(0xc1, [0; 4], b""), frame(0xa1, [0; 4], b""), frame(0x91, [0; 4], b"")]),
        (
            Violation::ReservedOpcode,
            [3, 4, 5, 6, 7, 11, 12, 13, 14, 15].iter().map(|op| frame(0x80 | op, [0; 4], b"")).collect(),
        ),
        (Violation::Unmasked, vec![unmasked]),
        (
            Violation::LengthNotMinimal,
            vec![
                vec![0x81, 0xfe, 0, 125, 0, 0, 0, 0],
                // The whole of it is there.
                [&[0x81, 0xfe, 0, 125, 0, 0, 0, 0][..], &[b'x'; 125]].concat(),
                vec![0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0],
            ],
        ),
        (
            Violation::FragmentedControl,
            vec![frame(0x09, [0; 4], b""), frame(0x0a, [0; 4], b""), frame(0x08, [0; 4], b"")],
        ),
        (Violation::LongControl, vec![frame(0x89, [0; 4], &[0; 126]), frame(0x88, [0; 4], &[3; 126])]),
        (
            Violation::UnexpectedContinuation,
            vec![
                frame(0x80, [0; 4], b"x"),
                frame(0x00, [0; 4], b""),
                [frame(0x01, [0; 4], b"a"), frame(0x80, [0; 4], b"b"), frame(0x80, [0; 4], b"c")].concat(),
            ],
        ),
        (
            Violation::ExpectedContinuation,
            vec![
                [frame(0x01, [0; 4], b"a"), text_frame(b"b")].concat(),
                [frame(0x02, [0; 4], b""), frame(0x82, [0; 4], b"")].concat(),
            ],
        ),
        (
            Violation::BadCloseCode,
            [0u16, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535]
                .iter()
                .map(|code| frame(0x88, [9; 4], &code.to_be_bytes()))
                .chain([frame(0x88, [9; 4], b"\x03")])
                .collect(),
        ),
        (
            Violation::InvalidUtf8,
            vec![
                text_frame(b"\xce\xba\xed\xa0\x80"),
                text_frame(b"\xce"),
                text_frame(b"\xf4\x90\x80\x80"),
                text_frame(b"\xc0\xaf"),
                frame(0x88, [9; 4], b"\x03\xe8\xff"),
                [frame(0x01, [7; 4], b"\xce"), frame(0x00, [7; 4], b"\xba\xf4"), frame(0x00, [7; 4], b"\x90")].concat(),
                [frame(0x01, [7; 4], b"\xce"), frame(0x80, [7; 4], b"")].concat(),
            ],
        ),
        (
            Violation::TooLarge,
            vec![
                text_frame(&long),
                [frame(0x01, [0; 4], &half), frame(0x80, [0; 4], &half)].concat(),
                vec![0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
            ],
        ),
    ];
    assert_eq!(cases.iter().map(|(violation, _)| *violation).collect::<Vec<_>>(), Violation::ALL);
    for (violation, streams) in cases {
        assert!(violation.reason().len() <= CONTROL_BYTES_MAX - 2);
        assert!(close_code_is_valid(violation.close_code()));
        for stream in streams {
            let before = text_frame("vorher ä".as_bytes());
            for parts in [&[usize::MAX][..], &[1], &[3, 1, 7], &[13]] {
                let (messages, found) = decode(&[&before[..], &stream, &before].concat(), parts);
                assert_eq!(found, Some(violation), "{stream:x?} {parts:?}");
                assert!(messages.starts_with(&[Owned::Text("vorher ä".into())]));
            }
        }
    }
}

#[test]
fn wrong_text_is_refused_at_its_first_wrong_byte() {
    // Autobahn 6.4.3: the frame says 20 bytes, the fifth is wrong.
    let payload = b"\xce\xba\xe1\xbd\xb9\xf4\x90\x80\x80 and more of it";
    let whole = text_frame(payload);
    let head = whole.len() - payload.len();
    assert_eq!(decode(&whole[..head + 6], &[1]).1, None);
    assert_eq!(decode(&whole[..head + 7], &[1]).1, Some(Violation::InvalidUtf8));
}

#[test]
fn a_close_ends_the_stream() {
    for (payload, want) in [
        (&b""[..], Owned::Close(None, String::new())),
        (b"\x03\xe8", Owned::Close(Some(1000), String::new())),
        (b"\x0f\xa0bye", Owned::Close(Some(4000), "bye".into())),
    ] {
        let stream = [frame(0x88, [5; 4], payload), text_frame(b"late"), vec![0xff; 20]].concat();
        for parts in [&[usize::MAX][..], &[1]] {
            assert_eq!(decode(&stream, parts), (vec![want.clone()], None));
        }
    }
}

#[test]
fn a_whole_frame_is_not_copied() {
    let mut stream = text_frame(b"in place");
    let at = stream.as_ptr() as usize;
    let mut assembly = Vec::new();
    let mut decoder = Decoder::new(FRAME_BYTES_MAX);
    let Ok((taken, Some(Message::Text(text)))) = decoder.next(&mut stream, &mut assembly) else { panic!() };
    assert_eq!((text, taken, text.as_ptr() as usize - at), ("in place", 14, 6));
    assert_eq!(assembly.capacity(), 0);
    assert!(!decoder.holds_assembly());
}

#[test]
fn an_announced_length_costs_no_memory() {
    let mut head = vec![0x82, 0xfe, 0x10, 0x00, 0, 0, 0, 0, 1];
    let mut assembly = Vec::new();
    let mut decoder = Decoder::new(FRAME_BYTES_MAX);
    assert_eq!(decoder.next(&mut head, &mut assembly), Ok((9, None)));
    assert!(assembly.capacity() < 64, "{}", assembly.capacity());
}

/// A stream of a client: frames with their masks.
#[derive(Clone, Debug)]
enum Part {
    Message { text: bool, payload: String, cuts: Vec<Index>, between: Vec<Vec<u8>> },
    Control { ping: bool, payload: Vec<u8> },
}

fn part() -> impl Strategy<Value = Part> {
    let control = vec(any::<u8>(), 0..126);
    prop_oneof![
        3 => (any::<bool>(), "[a-z ä€😀]{0,120}|[a-z]{120,700}", vec(any::<Index>(), 0..4), vec(control.clone(), 0..3))
            .prop_map(|(text, payload, cuts, between)| Part::Message { text, payload, cuts, between }),
        1 => (any::<bool>(), control).prop_map(|(ping, payload)| Part::Control { ping, payload }),
    ]
}

/// The bytes of a stream, and the messages in it.
fn stream_of(parts: &[Part], mask: [u8; 4]) -> (Vec<u8>, Vec<Owned>) {
    let mut bytes = Vec::new();
    let mut messages = Vec::new();
    for part in parts {
        match part {
            Part::Control { ping, payload } => {
                bytes.extend(frame(if *ping { 0x89 } else { 0x8a }, mask, payload));
                let owned = if *ping { Owned::Ping } else { Owned::Pong };
                messages.push(owned(payload.clone()));
            }
            Part::Message { text, payload, cuts, between } => {
                let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
                cuts.sort_unstable();
                cuts.push(payload.len());
                let mut from = 0;
                for (i, to) in cuts.iter().enumerate() {
                    let opcode = if i > 0 {
                        0
                    } else if *text {
                        1
                    } else {
                        2
                    };
                    let fin = if i + 1 == cuts.len() { 0x80 } else { 0 };
                    bytes.extend(frame(fin | opcode, mask, &payload.as_bytes()[from..*to]));
                    from = *to;
                    if let (Some(ping), 0) = (between.get(i), fin) {
                        bytes.extend(frame(0x89, mask, ping));
                        messages.push(Owned::Ping(ping.clone()));
                    }
                }
                messages.push(match text {
                    true => Owned::Text(payload.clone()),
                    false => Owned::Binary(payload.clone().into_bytes()),
                });
            }
        }
    }
    (bytes, messages)
}

/// A stream that is read from memory and swallows what is written.
struct Oracle(Cursor<Vec<u8>>);

impl Read for Oracle {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(out)
    }
}

impl Write for Oracle {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What tungstenite makes of the same stream: its messages, and whether it found a violation.
fn tungstenite_decode(stream: &[u8], role: Role) -> (Vec<Owned>, bool) {
    let config =
        WebSocketConfig::default().max_frame_size(Some(FRAME_BYTES_MAX)).max_message_size(Some(FRAME_BYTES_MAX));
    let oracle = Oracle(Cursor::new(stream.to_vec()));
    let mut socket = tungstenite::WebSocket::from_raw_socket(oracle, role, Some(config));
    let mut messages = Vec::new();
    loop {
        let owned = match socket.read() {
            Ok(tungstenite::Message::Text(text)) => Owned::Text(text.to_string()),
            Ok(tungstenite::Message::Binary(bytes)) => Owned::Binary(bytes.to_vec()),
            Ok(tungstenite::Message::Ping(bytes)) => Owned::Ping(bytes.to_vec()),
            Ok(tungstenite::Message::Pong(bytes)) => Owned::Pong(bytes.to_vec()),
            Ok(tungstenite::Message::Close(None)) => Owned::Close(None, String::new()),
            Ok(tungstenite::Message::Close(Some(close))) => {
                // A code that may not be sent comes back in this disguise.
                if u16::from(close.code) == 1002 && close.reason == "Protocol violation" {
                    return (messages, true);
                }
                Owned::Close(Some(close.code.into()), close.reason.to_string())
            }
            Ok(tungstenite::Message::Frame(_)) => unreachable!("never read"),
            Err(
                tungstenite::Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake)
                | tungstenite::Error::ConnectionClosed
                | tungstenite::Error::AlreadyClosed
                | tungstenite::Error::Io(_),
            ) => return (messages, false),
            Err(_) => return (messages, true),
        };
        let closed = matches!(owned, Owned::Close(..));
        messages.push(owned);
        if closed {
            return (messages, false);
        }
    }
}

fn agrees_with_tungstenite(stream: &[u8], parts: &[usize]) {
    let (ours, violation) = decode(stream, parts);
    let (theirs, violated) = tungstenite_decode(stream, Role::Server);
    match violation {
        // tungstenite takes lengths in more bytes than needed, and what follows them.
        Some(Violation::LengthNotMinimal) => assert!(theirs.starts_with(&ours), "{ours:?} {theirs:?}"),
        // We look at parts of frames; tungstenite waits for the rest, which may never come.
        Some(_) => assert_eq!(ours, theirs),
        None => assert_eq!((&ours, false), (&theirs, violated)),
    }
}

proptest! {
    #[test]
    fn what_a_client_sends_arrives_however_it_is_cut(
        parts in vec(part(), 0..6), mask: [u8; 4], cuts in vec(1usize..200, 1..8)
    ) {
        let (bytes, messages) = stream_of(&parts, mask);
        prop_assert_eq!(decode(&bytes, &cuts), (messages.clone(), None));
        prop_assert_eq!(decode(&bytes, &[usize::MAX]), (messages, None));
        agrees_with_tungstenite(&bytes, &cuts);
    }

    #[test]
    fn mangled_bytes_get_the_same_verdict_from_tungstenite(
        parts in vec(part(), 1..5),
        mask: [u8; 4],
        cuts in vec(1usize..200, 1..8),
        flips in vec((any::<Index>(), any::<u8>()), 1..4),
        close in proptest::option::of(vec(any::<u8>(), 0..6)),
    ) {
        let (mut bytes, _) = stream_of(&parts, mask);
        if let Some(close) = close {
            bytes.extend(frame(0x88, mask, &close));
        }
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        agrees_with_tungstenite(&bytes, &cuts);
    }

    #[test]
    fn noise_gets_the_same_verdict_from_tungstenite(
        bytes in vec(prop_oneof![Just(0x81u8), Just(0x80), Just(0x01), Just(0x82), Just(0x88), Just(0), any::<u8>()], 0..60),
        cuts in vec(1usize..9, 1..4),
    ) {
        agrees_with_tungstenite(&bytes, &cuts);
    }

    #[test]
    fn the_cut_never_changes_the_outcome(
        parts in vec(part(), 1..4), mask: [u8; 4], at: Index, byte: u8, cuts in vec(1usize..50, 1..6)
    ) {
        let (mut bytes, _) = stream_of(&parts, mask);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let (whole, violation) = decode(&bytes, &[usize::MAX]);
        let (cut, cut_violation) = decode(&bytes, &cuts);
        prop_assert_eq!(whole, cut);
        prop_assert_eq!(violation, cut_violation);
    }

    #[test]
    fn tungstenite_reads_what_we_send(
        messages in vec((0u8..4, "[a-zä€ ]{0,40}|[a-z]{100,700}"), 0..8), code in proptest::option::of(3000u16..5000), reason in "[a-zä]{0,80}"
    ) {
        let mut bytes = Vec::new();
        let mut want = Vec::new();
        for (kind, payload) in messages {
            let cut = payload.as_bytes()[..payload.len().min(CONTROL_BYTES_MAX)].to_vec();
            let (opcode, owned) = match kind {
                0 => (Opcode::Text, Owned::Text(payload.clone())),
                1 => (Opcode::Binary, Owned::Binary(payload.clone().into_bytes())),
                2 => (Opcode::Ping, Owned::Ping(cut)),
                _ => (Opcode::Pong, Owned::Pong(cut)),
            };
            append_frame(&mut bytes, opcode, payload.as_bytes());
            want.push(owned);
        }
        append_close(&mut bytes, code, &reason);
        let mut cut = reason.len().min(123);
        while !reason.is_char_boundary(cut) { cut -= 1; }
        want.push(Owned::Close(code, if code.is_some() { reason[..cut].to_owned() } else { String::new() }));
        prop_assert_eq!(tungstenite_decode(&bytes, Role::Client), (want, false));
    }
}
