//! Commands out and frames in, as `src/wire/PROTOCOL.md` of the server defines them.

use super::{Link, Note, Peer, Publish, Role, Transport};
use crate::stamp::Stamp;
use crate::websocket;
use memchr::memmem;
use std::io::Write as _;

/// Holds the prepared searcher and what all publishes have in common.
pub struct Tidegate {
    run: String,
    durability: String,
    id: memmem::Finder<'static>,
}

impl Tidegate {
    pub fn new(run: &str, durability: Option<&str>) -> Tidegate {
        let durability = durability.map(|class| format!(r#","durability":"{class}""#)).unwrap_or_default();
        Tidegate { run: run.into(), durability, id: memmem::Finder::new(b"\"id\":") }
    }

    fn id(&self, text: &[u8]) -> Option<u32> {
        let digits = text.get(self.id.find(text)? + 5..)?;
        let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
        std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
    }

    /// The two frequent types by their beginning, everything else as JSON.
    fn parse(&self, link: &mut Link, text: &[u8]) -> Option<Note> {
        if text.starts_with(br#"{"type":"event""#) {
            return Some(Stamp::find(text).map_or_else(|| strange(text), Note::Event));
        }
        if text.starts_with(br#"{"type":"published""#)
            && let Some(id) = self.id(text)
        {
            return Some(Note::Acknowledged(id));
        }
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(text) else { return Some(strange(text)) };
        match value.get("type").and_then(|kind| kind.as_str()) {
            Some("welcome") => {
                link.shard = value.get("shard").and_then(|shard| shard.as_u64()).unwrap_or(0) as u32;
                (!matches!(link.role, Role::Reader(_))).then_some(Note::Ready { shard: link.shard })
            }
            Some("subscribed") => Some(Note::Ready { shard: link.shard }),
            Some("published") => {
                let id = value.get("id").and_then(|id| id.as_u64());
                Some(id.map_or_else(|| strange(text), |id| Note::Acknowledged(id as u32)))
            }
            Some("event") => Some(Stamp::find(text).map_or_else(|| strange(text), Note::Event)),
            Some("refused") | None => Some(strange(text)),
            Some(_) => None,
        }
    }
}

fn strange(text: &[u8]) -> Note {
    Note::Error(String::from_utf8_lossy(text).into_owned())
}

/// Appends a command that reads a session from its first event on.
pub fn subscribe_from_start(out: &mut Vec<u8>, session: &str) {
    subscribe(out, session, "earliest");
}

fn subscribe(out: &mut Vec<u8>, session: &str, from: &str) {
    let text = format!(r#"{{"type":"subscribe","id":1,"session":"{session}","from":"{from}"}}"#);
    websocket::encode(out, websocket::TEXT, text.as_bytes());
}

impl Peer for Tidegate {
    fn transport(&self) -> Transport {
        Transport::Messages
    }

    fn path(&self, link: &Link, place: &str) -> String {
        // Message ids are remembered per client id: a publisher has a name of its own.
        let client = match link.role {
            Role::Publisher(lane) => format!("client={}-p{lane}", self.run),
            _ => String::new(),
        };
        let session = if place.is_empty() { String::new() } else { format!("session={place}") };
        let query = [session, client].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("&");
        format!("/v1/ws?{query}")
    }

    fn subprotocol(&self) -> Option<&'static str> {
        Some("tidegate.v1.json")
    }

    fn acknowledges(&self) -> bool {
        true
    }

    fn opened(&mut self, link: &mut Link, out: &mut Vec<u8>) -> bool {
        if matches!(link.role, Role::Reader(_)) {
            subscribe(out, &link.session, "latest");
        }
        false
    }

    fn publish(&mut self, _link: &mut Link, publish: &Publish, out: &mut Vec<u8>) {
        let (session, number) = (publish.session, publish.stamp.number);
        websocket::encode_with(out, websocket::TEXT, |text| {
            text.extend_from_slice(br#"{"type":"publish","session":""#);
            text.extend_from_slice(session.as_bytes());
            text.extend_from_slice(br#"","topic":"chat.message""#);
            text.extend_from_slice(self.durability.as_bytes());
            // A Vec takes every write.
            let _infallible = write!(text, r#","id":{number},"message_id":"m{number}","data":""#);
            publish.stamp.write(text, publish.bytes);
            text.extend_from_slice(b"\"}");
        });
    }

    fn receive(&mut self, link: &mut Link, bytes: &[u8], _out: &mut Vec<u8>, notes: &mut dyn FnMut(Note)) -> usize {
        if let Some(note) = self.parse(link, bytes) {
            notes(note);
        }
        bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_is_json_and_an_event_gives_the_stamp_back() {
        let mut peer = Tidegate::new("r", None);
        let mut link = Link::new(Role::Publisher(7), "s-1");
        let stamp = Stamp { intended: 0x1234, actual: 0x5678, lane: 7, number: 41 };
        let mut out = Vec::new();
        peer.publish(&mut link, &Publish { session: "s-1", stamp, bytes: 128 }, &mut out);
        let text = websocket::unmasked(&out);
        let command: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(command["data"].as_str().map(str::len), Some(128));
        assert_eq!(command["message_id"], "m41");
        let event = format!(r#"{{"type":"event","event_id":"s-1:0:41","topic":"a","data":{}}}"#, command["data"]);
        assert_eq!(peer.parse(&mut link, event.as_bytes()), Some(Note::Event(stamp)));
    }

    #[test]
    fn replies_are_read_in_any_field_order() {
        let peer = Tidegate::new("r", None);
        let link = &mut Link::new(Role::Reader(0), "s");
        let mut parse = |text: &str| peer.parse(link, text.as_bytes());
        assert_eq!(parse(r#"{"type":"published","id":12,"event_id":"s:0:1"}"#), Some(Note::Acknowledged(12)));
        assert_eq!(parse(r#"{"id":12,"type":"published"}"#), Some(Note::Acknowledged(12)));
        assert_eq!(parse(r#"{"type":"welcome","client":"a","shard":3}"#), None);
        assert_eq!(parse(r#"{"type":"subscribed","id":1}"#), Some(Note::Ready { shard: 3 }));
        assert!(matches!(parse(r#"{"type":"refused","id":1}"#), Some(Note::Error(_))));
        assert!(matches!(parse(r#"{"type":"event","data":1}"#), Some(Note::Error(_))));
        assert!(matches!(parse("nonsense"), Some(Note::Error(_))));
    }
}
