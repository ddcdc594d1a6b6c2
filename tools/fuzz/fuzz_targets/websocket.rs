//! The framer against tungstenite: the same messages from the same bytes, however they are cut, and the same end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::io::{Cursor, Read, Write};
use tidegate::net::websocket::{Decoder, Message, Violation};
use tungstenite::protocol::{Role, WebSocketConfig};

const FRAME_BYTES_MAX: usize = 2048;

#[derive(PartialEq, Debug)]
enum Owned {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

fn ours(stream: &[u8], cut: usize) -> (Vec<Owned>, Option<Violation>) {
    let (mut decoder, mut assembly, mut messages) = (Decoder::new(FRAME_BYTES_MAX), Vec::new(), Vec::new());
    for part in stream.chunks(cut) {
        let mut part = part.to_vec();
        let mut at = 0;
        while at < part.len() {
            match decoder.next(&mut part[at..], &mut assembly) {
                Ok((taken, message)) => {
                    messages.extend(message.map(|message| match message {
                        Message::Text(text) => Owned::Text(text.to_owned()),
                        Message::Binary(bytes) => Owned::Binary(bytes.to_vec()),
                        Message::Ping(bytes) => Owned::Ping(bytes.to_vec()),
                        Message::Pong(bytes) => Owned::Pong(bytes.to_vec()),
                        Message::Close { code, reason } => Owned::Close(code, reason.to_owned()),
                    }));
                    assert!(taken > 0, "a step that takes nothing");
                    at += taken;
                }
                Err(violation) => return (messages, Some(violation)),
            }
        }
        assert!(assembly.len() <= FRAME_BYTES_MAX + 125, "assembly within its bound");
    }
    (messages, None)
}

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

/// Its messages, and whether it found a violation.
fn theirs(stream: &[u8]) -> (Vec<Owned>, bool) {
    use tungstenite::error::{Error, ProtocolError};
    let config =
        WebSocketConfig::default().max_frame_size(Some(FRAME_BYTES_MAX)).max_message_size(Some(FRAME_BYTES_MAX));
    let oracle = Oracle(Cursor::new(stream.to_vec()));
    let mut socket = tungstenite::WebSocket::from_raw_socket(oracle, Role::Server, Some(config));
    let mut messages = Vec::new();
    loop {
        messages.push(match socket.read() {
            Ok(tungstenite::Message::Text(text)) => Owned::Text(text.to_string()),
            Ok(tungstenite::Message::Binary(bytes)) => Owned::Binary(bytes.to_vec()),
            Ok(tungstenite::Message::Ping(bytes)) => Owned::Ping(bytes.to_vec()),
            Ok(tungstenite::Message::Pong(bytes)) => Owned::Pong(bytes.to_vec()),
            Ok(tungstenite::Message::Close(close)) => {
                let close = close.map(|close| (u16::from(close.code), close.reason.to_string()));
                // A code that may not be sent comes back in this disguise.
                if close.as_ref().is_some_and(|(code, reason)| *code == 1002 && reason == "Protocol violation") {
                    return (messages, true);
                }
                messages.push(Owned::Close(close.as_ref().map(|c| c.0), close.map_or(String::new(), |c| c.1)));
                return (messages, false);
            }
            Ok(tungstenite::Message::Frame(_)) => unreachable!("never read"),
            Err(
                Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)
                | Error::ConnectionClosed
                | Error::AlreadyClosed
                | Error::Io(_),
            ) => return (messages, false),
            Err(_) => return (messages, true),
        });
    }
}

/// Code 1014 was registered after tungstenite made its list of those that may be sent.
fn registered_since(messages: &[Owned]) -> bool {
    matches!(messages.last(), Some(Owned::Close(Some(1014), _)))
}

/// A client must close with a code that may be sent; "Protocol violation" sent by a client itself is told apart by nobody.
fn disguised(messages: &[Owned]) -> bool {
    matches!(messages.last(), Some(Owned::Close(Some(1002), reason)) if reason == "Protocol violation")
}

fuzz_target!(|input: &[u8]| {
    let Some((cut, stream)) = input.split_first() else { return };
    let (messages, violation) = ours(stream, usize::from(*cut) + 1);
    assert_eq!(
        (&messages, violation),
        (&ours(stream, usize::MAX).0, ours(stream, usize::MAX).1),
        "cuts change nothing"
    );
    let (other, violated) = theirs(stream);
    if disguised(&messages) || registered_since(&messages) {
        return;
    }
    match violation {
        // tungstenite takes lengths in more bytes than needed, of control frames too, and what follows them.
        Some(Violation::LengthNotMinimal | Violation::LongControl) => {
            assert!(other.starts_with(&messages), "{messages:?} {other:?}")
        }
        // We look at parts of frames; tungstenite waits for the rest, which may never come.
        Some(_) => assert_eq!(messages, other),
        None => assert_eq!((messages, false), (other, violated)),
    }
});
