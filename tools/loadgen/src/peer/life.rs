//! Clients that outlive their connections, as `src/wire/PROTOCOL.md` of a Tidegate server defines it (`resume`).
//!
//! ```text
//!   welcome ─► resume ───────────────► resumed {token} ─► subscribe ─► subscribed ─► live          the first time
//!   welcome ─► resume {token, seen} ─► resumed {token} ─► live; what was missed comes              ever after
//! ```

use crate::stamp::Stamp;
use crate::websocket;
use memchr::memmem;
use std::io::Write as _;

/// Ids of commands; publishes have the number of their event, from 0.
pub const RESUME: u64 = 1 << 40;
pub const SUBSCRIBE: u64 = RESUME + 1;

/// What a client heard.
#[derive(Debug, PartialEq)]
pub enum Heard<'a> {
    Welcome,
    Resumed {
        token: String,
    },
    /// In answer to a command.
    Subscribed,
    Event {
        stamp: Stamp,
        id: &'a str,
    },
    Published {
        number: u32,
        duplicate: bool,
    },
    /// The command with this id; `again_ms` where it is to be repeated.
    Refused {
        id: u64,
        again_ms: Option<u64>,
    },
    /// A frame that says nothing about events.
    Other,
    /// Something was lost, or is not understood.
    Strange,
}

/// What a text frame says.
pub fn heard(text: &[u8]) -> Heard<'_> {
    if text.starts_with(br#"{"type":"event""#) {
        let id = || {
            let from = memmem::find(text, br#""event_id":""#)? + 12;
            let end = from + memchr::memchr(b'"', &text[from..])?;
            std::str::from_utf8(&text[from..end]).ok()
        };
        return match (Stamp::find(text), id()) {
            (Some(stamp), Some(id)) => Heard::Event { stamp, id },
            _ => Heard::Strange,
        };
    }
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(text) else { return Heard::Strange };
    let id = value.get("id").and_then(|id| id.as_u64());
    match (value.get("type").and_then(|kind| kind.as_str()), id) {
        (Some("welcome"), _) => Heard::Welcome,
        (Some("resumed"), _) => match value.get("token").and_then(|token| token.as_str()) {
            Some(token) => Heard::Resumed { token: token.into() },
            None => Heard::Strange,
        },
        (Some("subscribed"), Some(_)) => Heard::Subscribed,
        // Hints: who is told to go is closed next, and an open loop is not slowed down by being asked to.
        (Some("subscribed" | "goaway" | "slow_down"), _) => Heard::Other,
        (Some("published"), Some(number)) => {
            Heard::Published { number: number as u32, duplicate: value.get("duplicate").is_some() }
        }
        (Some("refused"), Some(id)) => {
            let code = value.get("code").and_then(|code| code.as_u64()).unwrap_or(4200);
            let after = value.get("retry_after_ms").and_then(|ms| ms.as_u64()).unwrap_or(100);
            Heard::Refused { id, again_ms: (code < 4200).then_some(after) }
        }
        _ => Heard::Strange,
    }
}

/// Appends a resume: of a new life, or of the one with this token, behind the event that was seen last.
pub fn resume(out: &mut Vec<u8>, token: Option<&str>, seen: Option<&str>) {
    websocket::encode_with(out, websocket::TEXT, |text| {
        // A Vec takes every write.
        let _infallible = write!(text, r#"{{"type":"resume","id":{RESUME}"#);
        if let Some(token) = token {
            let _infallible = write!(text, r#","token":"{token}""#);
        }
        if let Some(seen) = seen {
            let _infallible = write!(text, r#","seen":["{seen}"]"#);
        }
        text.push(b'}');
    });
}

/// Appends a subscription to `session` from the event `next` on; 0 is there also where nothing was published yet.
pub fn subscribe(out: &mut Vec<u8>, session: &str, next: u32) {
    let from = if next == 0 { r#""earliest""#.into() } else { format!(r#"{{"offset":{next}}}"#) };
    let text = format!(r#"{{"type":"subscribe","id":{SUBSCRIBE},"session":"{session}","from":{from}}}"#);
    websocket::encode(out, websocket::TEXT, text.as_bytes());
}

/// Appends a publish. Equal stamps make equal commands: a repeat is one event.
pub fn publish(out: &mut Vec<u8>, session: &str, stamp: &Stamp, bytes: usize) {
    websocket::encode_with(out, websocket::TEXT, |text| {
        let number = stamp.number;
        // A Vec takes every write.
        let _infallible = write!(
            text,
            r#"{{"type":"publish","session":"{session}","topic":"chat.message","id":{number},"message_id":"m{number}","data":""#
        );
        stamp.write(text, bytes);
        text.extend_from_slice(b"\"}");
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_json() {
        let stamp = Stamp { intended: 1, actual: 2, lane: 3, number: 4 };
        let mut out = Vec::new();
        publish(&mut out, "s", &stamp, 64);
        let command: serde_json::Value = serde_json::from_slice(&websocket::unmasked(&out)).expect("JSON");
        assert_eq!((command["id"].as_u64(), command["message_id"].as_str()), (Some(4), Some("m4")));
        for (token, seen) in [(None, None), (Some("t"), Some("s:0:1"))] {
            let mut out = Vec::new();
            resume(&mut out, token, seen);
            let command: serde_json::Value = serde_json::from_slice(&websocket::unmasked(&out)).expect("JSON");
            assert_eq!((command["token"].as_str(), command["seen"][0].as_str()), (token, seen));
        }
    }

    #[test]
    fn frames_are_told_apart() {
        let stamp = Stamp { intended: 1, actual: 2, lane: 3, number: 4 };
        let mut data = Vec::new();
        stamp.write(&mut data, 64);
        let data = String::from_utf8(data).expect("text");
        let event = format!(r#"{{"type":"event","event_id":"s:0:41","session":"s","data":"{data}"}}"#);
        assert_eq!(heard(event.as_bytes()), Heard::Event { stamp, id: "s:0:41" });
        assert_eq!(heard(br#"{"type":"resumed","id":1,"token":"T"}"#), Heard::Resumed { token: "T".into() });
        assert_eq!(heard(br#"{"type":"subscribed","session":"s"}"#), Heard::Other, "restored, not asked for");
        assert_eq!(
            heard(br#"{"type":"published","id":7,"duplicate":true}"#),
            Heard::Published { number: 7, duplicate: true }
        );
        assert_eq!(
            heard(br#"{"type":"refused","id":7,"code":4100,"retry_after_ms":50}"#),
            Heard::Refused { id: 7, again_ms: Some(50) }
        );
        assert_eq!(heard(br#"{"type":"refused","id":7,"code":4231}"#), Heard::Refused { id: 7, again_ms: None });
        for strange in [&br#"{"type":"gap","session":"s"}"#[..], br#"{"type":"lost"}"#, b"?", br#"{"type":"event"}"#] {
            assert_eq!(heard(strange), Heard::Strange);
        }
    }
}
