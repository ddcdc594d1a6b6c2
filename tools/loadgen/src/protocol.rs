//! Commands out and frames in, as `src/wire/PROTOCOL.md` of the server defines them, plus the stamp that travels in `data`.
//!
//! ```text
//!   "data":"@@" intended(16 hex) actual(16 hex) lane(8 hex) number(8 hex) padding…
//! ```
//! Both ends are this process, so there is one clock. `number` counts the events of one lane (a session and its publisher)
//! from 0: a reader that sees anything but the next number has found a loss, a repeat or a wrong order.

use crate::websocket;
use memchr::memmem;
use std::io::Write as _;

/// Bytes of a stamp; the smallest payload.
pub const STAMP_BYTES: usize = 2 + 16 + 16 + 8 + 8;

/// What an event carries about its sending, times in ns of the engine's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub intended: u64,
    pub actual: u64,
    pub lane: u32,
    pub number: u32,
}

/// A frame of the server, as far as load cares.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    Welcome,
    Subscribed,
    /// The publish with this `id` is acknowledged.
    Published(u32),
    Event(Stamp),
    Refused(String),
    Other,
    /// An event without our stamp, or a frame that is none of the protocol's.
    Strange(String),
}

/// Writes publish commands of one lane without allocating per event.
pub struct Publisher {
    head: String,
    lane: u32,
    padding: usize,
    scratch: Vec<u8>,
}

impl Publisher {
    /// For events of `bytes` of data each.
    pub fn new(session: &str, lane: u32, bytes: usize, durability: Option<&str>) -> Publisher {
        let durability = durability.map(|class| format!(r#","durability":"{class}""#)).unwrap_or_default();
        let head = format!(r#"{{"type":"publish","session":"{session}","topic":"chat.message"{durability},"id":"#);
        Publisher { head, lane, padding: bytes.saturating_sub(STAMP_BYTES), scratch: Vec::new() }
    }

    /// Appends one framed publish command to `out`.
    pub fn publish(&mut self, out: &mut Vec<u8>, number: u32, intended: u64, actual: u64) {
        let text = &mut self.scratch;
        text.clear();
        text.extend_from_slice(self.head.as_bytes());
        // A Vec takes every write.
        let _infallible = write!(
            text,
            "{number},\"message_id\":\"m{number}\",\"data\":\"@@{intended:016x}{actual:016x}{:08x}{number:08x}",
            self.lane
        );
        text.resize(text.len() + self.padding, b'x');
        text.extend_from_slice(b"\"}");
        websocket::encode(out, websocket::TEXT, text);
    }
}

/// Appends a framed subscribe command.
pub fn subscribe(out: &mut Vec<u8>, session: &str) {
    let text = format!(r#"{{"type":"subscribe","id":1,"session":"{session}","from":"latest"}}"#);
    websocket::encode(out, websocket::TEXT, text.as_bytes());
}

/// Finds frames' meanings; holds the prepared searchers.
pub struct Parser {
    stamp: memmem::Finder<'static>,
    id: memmem::Finder<'static>,
}

impl Parser {
    pub fn new() -> Parser {
        Parser { stamp: memmem::Finder::new(b"\"@@"), id: memmem::Finder::new(b"\"id\":") }
    }

    /// Reads the two frequent types by their beginning, everything else as JSON.
    pub fn parse(&self, text: &[u8]) -> Frame {
        if text.starts_with(br#"{"type":"event""#) {
            return match self.stamp(text) {
                Some(stamp) => Frame::Event(stamp),
                None => Frame::Strange(String::from_utf8_lossy(text).into_owned()),
            };
        }
        if text.starts_with(br#"{"type":"published""#)
            && let Some(id) = self.id(text)
        {
            return Frame::Published(id);
        }
        self.slowly(text)
    }

    fn stamp(&self, text: &[u8]) -> Option<Stamp> {
        let at = self.stamp.find(text)? + 3;
        let hex = |from: usize, digits: usize| {
            text.get(at + from..at + from + digits)?.iter().try_fold(0u64, |n, byte| {
                let digit = match byte {
                    b'0'..=b'9' => byte - b'0',
                    b'a'..=b'f' => byte - b'a' + 10,
                    _ => return None,
                };
                Some(n << 4 | u64::from(digit))
            })
        };
        Some(Stamp {
            intended: hex(0, 16)?,
            actual: hex(16, 16)?,
            lane: hex(32, 8)? as u32,
            number: hex(40, 8)? as u32,
        })
    }

    fn id(&self, text: &[u8]) -> Option<u32> {
        let digits = text.get(self.id.find(text)? + 5..)?;
        let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
        std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
    }

    fn slowly(&self, text: &[u8]) -> Frame {
        let shown = || String::from_utf8_lossy(text).into_owned();
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(text) else { return Frame::Strange(shown()) };
        match value.get("type").and_then(|kind| kind.as_str()) {
            Some("welcome") => Frame::Welcome,
            Some("subscribed") => Frame::Subscribed,
            Some("refused") => Frame::Refused(shown()),
            Some("published") => match value.get("id").and_then(|id| id.as_u64()) {
                Some(id) => Frame::Published(id as u32),
                None => Frame::Strange(shown()),
            },
            Some("event") => self.stamp(text).map_or_else(|| Frame::Strange(shown()), Frame::Event),
            Some(_) => Frame::Other,
            None => Frame::Strange(shown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_the_way_through_a_server() {
        let mut out = Vec::new();
        let mut publisher = Publisher::new("s-1", 7, 128, None);
        publisher.publish(&mut out, 41, 0x1234, 0x5678);
        let command: serde_json::Value = serde_json::from_slice(&publisher.scratch).expect("JSON");
        assert_eq!(command["data"].as_str().map(str::len), Some(128));
        assert_eq!(command["message_id"], "m41");
        let event = format!(r#"{{"type":"event","event_id":"s-1:0:41","topic":"a","data":{}}}"#, command["data"]);
        let stamp = Stamp { intended: 0x1234, actual: 0x5678, lane: 7, number: 41 };
        assert_eq!(Parser::new().parse(event.as_bytes()), Frame::Event(stamp));
    }

    #[test]
    fn replies_are_read_in_any_field_order() {
        let parser = Parser::new();
        assert_eq!(parser.parse(br#"{"type":"published","id":12,"event_id":"s:0:1"}"#), Frame::Published(12));
        assert_eq!(parser.parse(br#"{"id":12,"type":"published"}"#), Frame::Published(12));
        assert_eq!(parser.parse(br#"{"type":"subscribed","id":1}"#), Frame::Subscribed);
        assert!(matches!(parser.parse(br#"{"type":"refused","id":1}"#), Frame::Refused(_)));
        assert!(matches!(parser.parse(br#"{"type":"event","data":1}"#), Frame::Strange(_)));
        assert!(matches!(parser.parse(b"nonsense"), Frame::Strange(_)));
    }
}
