//! As much of HTTP, WebSocket and the wire as load needs; frames have the sizes of the server's own.

use memchr::memmem;
use std::io::Write as _;

/// What a request for an upgrade says.
pub struct Upgrade<'a> {
    pub bytes: usize,
    pub session: &'a str,
    pub client: &'a str,
    pub key: &'a str,
}

/// The request at the beginning of `bytes`, if it is whole.
pub fn upgrade(bytes: &[u8]) -> Option<Upgrade<'_>> {
    let end = memmem::find(bytes, b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let query = head.split(' ').nth(1).and_then(|path| path.split_once('?')).map_or("", |(_, query)| query);
    let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)).unwrap_or_default();
    let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap_or_default();
    Some(Upgrade { bytes: end, session: value("session="), client: value("client="), key })
}

/// The answer to an upgrade, and the first frame.
pub fn welcome(out: &mut Vec<u8>, key: &str) {
    let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
    // A Vec takes every write.
    let _infallible = write!(
        out,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: tidegate.v1.json\r\n\r\n"
    );
    let text = br#"{"type":"welcome","client":"c0123456789abcdef","shard":0,"limits":{"event_bytes_max":65536,"frame_bytes_max":262144,"frame_commands_max":256,"client_commands_in_flight_max":1024,"client_subscriptions_max":256}}"#;
    frame(out, &[text]);
}

/// Appends one text frame made of `parts`.
pub fn frame(out: &mut Vec<u8>, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.push(0x81);
    match length {
        n @ 0..126 => out.push(n as u8),
        n @ 126..65536 => {
            out.push(126);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            out.push(127);
            out.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// A client's frame: where its payload lies, and its key.
pub struct Masked {
    pub opcode: u8,
    pub payload: std::ops::Range<usize>,
    pub key: [u8; 4],
}

/// The frame at the beginning of `bytes`, if it is whole. Clients mask.
pub fn masked(bytes: &[u8]) -> Option<Masked> {
    let (opcode, length) = (bytes.first()? & 0x0f, bytes.get(1)? & 0x7f);
    let (head, length) = match length {
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?),
        n => (2, usize::from(n)),
    };
    let key = bytes.get(head..head + 4)?.try_into().ok()?;
    let payload = head + 4..head + 4 + length;
    bytes.get(payload.clone())?;
    Some(Masked { opcode, payload, key })
}

/// Removes the mask.
pub fn unmask(payload: &mut [u8], key: [u8; 4]) {
    let wide = u64::from_ne_bytes(std::array::from_fn(|i| key[i & 3]));
    let mut words = payload.chunks_exact_mut(8);
    for word in &mut words {
        let value = u64::from_ne_bytes(std::array::from_fn(|i| word[i])) ^ wide;
        word.copy_from_slice(&value.to_ne_bytes());
    }
    words.into_remainder().iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
}

/// What is the same in all frames for one publisher's events: numbers have the usual number of digits and say nothing.
pub struct Publisher {
    event_head: Vec<u8>,
    ack_tail: Vec<u8>,
}

/// Finds the two things that change.
pub struct Finders {
    id: memmem::Finder<'static>,
    data: memmem::Finder<'static>,
}

impl Finders {
    pub fn new() -> Finders {
        Finders { id: memmem::Finder::new(b"\"id\":"), data: memmem::Finder::new(b"\"data\":") }
    }
}

impl Publisher {
    pub fn new(session: &str, client: &str) -> Publisher {
        let event = format!(
            r#"{{"type":"event","event_id":"{session}:00f1e2d3c4b5a697:00000","session":"{session}","topic":"chat.message","client":"{client}","message_id":"m00000","time":1767225600000,"at":"318.00000","#
        );
        let ack = format!(r#","event_id":"{session}:00f1e2d3c4b5a697:00000","durability":"disk"}}"#);
        Publisher { event_head: event.into_bytes(), ack_tail: ack.into_bytes() }
    }

    /// Appends the acknowledgement of the command `text`.
    pub fn acknowledge(&self, out: &mut Vec<u8>, finders: &Finders, text: &[u8]) -> Option<()> {
        let digits = &text[finders.id.find(text)? + 5..];
        let end = memchr::memchr(b',', digits)?;
        frame(out, &[br#"{"type":"published","id":"#, &digits[..end], &self.ack_tail]);
        Some(())
    }

    /// Appends the event of the command `text`, whose data comes last.
    pub fn event(&self, out: &mut Vec<u8>, finders: &Finders, text: &[u8]) -> Option<()> {
        frame(out, &[&self.event_head, &text[finders.data.find(text)?..]]);
        Some(())
    }
}

/// The session that a subscribe command names.
pub fn subscribed_session(text: &[u8]) -> Option<&str> {
    let from = memmem::find(text, br#""session":""#)? + 11;
    let end = memchr::memchr(b'"', &text[from..])?;
    std::str::from_utf8(&text[from..from + end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_becomes_an_acknowledgement_and_an_event_with_its_data() {
        let text =
            br#"{"type":"publish","session":"s","topic":"chat.message","id":17,"message_id":"m17","data":"@@xyz"}"#;
        let (publisher, finders) = (Publisher::new("s", "c"), Finders::new());
        let mut out = Vec::new();
        publisher.acknowledge(&mut out, &finders, text).unwrap();
        assert!(out[2..].starts_with(br#"{"type":"published","id":17,"event_id":"s:"#), "{out:?}");
        let mut out = Vec::new();
        publisher.event(&mut out, &finders, text).unwrap();
        assert!(out.ends_with(br#""at":"318.00000","data":"@@xyz"}"#), "{out:?}");
        assert_eq!(usize::from(u16::from_be_bytes([out[2], out[3]])), out.len() - 4);
        assert_eq!(subscribed_session(br#"{"type":"subscribe","id":1,"session":"abc"}"#), Some("abc"));
    }

    #[test]
    fn frames_in_part_are_none_and_the_mask_comes_off() {
        let key = [1, 2, 3, 4];
        let mut bytes = vec![0x81, 0x80 | 11];
        bytes.extend_from_slice(&key);
        bytes.extend(b"hello world".iter().zip(key.iter().cycle()).map(|(a, b)| a ^ b));
        assert!((0..bytes.len()).all(|cut| masked(&bytes[..cut]).is_none()));
        let found = masked(&bytes).unwrap();
        unmask(&mut bytes[found.payload.clone()], found.key);
        assert_eq!((found.opcode, &bytes[found.payload]), (1, &b"hello world"[..]));
        let request = b"GET /v1/ws?session=a&client=b HTTP/1.1\r\nSec-WebSocket-Key: k\r\n\r\nmore";
        let asked = upgrade(request).unwrap();
        assert_eq!((asked.session, asked.client, asked.key, asked.bytes), ("a", "b", "k", request.len() - 4));
    }
}
