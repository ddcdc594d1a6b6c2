//! What names and topics may look like. No byte allowed here needs an escape in JSON, which keeps encoding a copy.
//!
//! ```text
//! name     [A-Za-z0-9_.:-]{1,128}          tenant, session, client, message, marker
//! topic    token(.token){0,15}             token = [A-Za-z0-9_-]+
//! pattern  topic in which a token may be * and the last one >
//! ```
//! `$` begins what the server makes itself; no client may use it.

use crate::limits::{NAME_BYTES_MAX, TOPIC_BYTES_MAX, TOPIC_TOKENS_MAX, TRACEPARENT_BYTES_MAX};

const NAME: u8 = 1;
const TOKEN: u8 = 2;

const CLASS: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        if b.is_ascii_alphanumeric() || b == b'_' || b == b'-' {
            table[byte] = NAME | TOKEN;
        } else if b == b'.' || b == b':' {
            table[byte] = NAME;
        }
        byte += 1;
    }
    table
};

/// A tenant, session, client, message or marker name.
pub fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| CLASS[usize::from(b)] & NAME != 0)
}

/// A topic.
pub fn is_topic(text: &str) -> bool {
    text.len() <= TOPIC_BYTES_MAX && tokens_hold(text, |token, _| is_token(token))
}

/// A topic pattern.
pub fn is_pattern(text: &str) -> bool {
    text.len() <= TOPIC_BYTES_MAX
        && tokens_hold(text, |token, last| token == "*" || (last && token == ">") || is_token(token))
}

/// W3C trace context, held to the bytes it may have; empty = none.
pub fn is_traceparent(text: &str) -> bool {
    text.len() <= TRACEPARENT_BYTES_MAX && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

fn is_token(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|b| CLASS[usize::from(b)] & TOKEN != 0)
}

fn tokens_hold(text: &str, holds: impl Fn(&str, bool) -> bool) -> bool {
    let mut tokens = text.split('.').peekable();
    let mut count = 0;
    while let Some(token) = tokens.next() {
        count += 1;
        if count > TOPIC_TOKENS_MAX || !holds(token, tokens.peek().is_none()) {
            return false;
        }
    }
    true
}

/// Does a topic match a pattern? Both are well-formed. `>` stands for one token or more.
pub fn pattern_matches(pattern: &str, topic: &str) -> bool {
    let mut topic_tokens = topic.split('.');
    for token in pattern.split('.') {
        if token == ">" {
            return topic_tokens.next().is_some();
        }
        match topic_tokens.next() {
            Some(t) if token == "*" || token == t => {}
            _ => return false,
        }
    }
    topic_tokens.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_topics_and_patterns_are_told_apart() {
        for good in ["a", "A.b:c-d_e", &"x".repeat(128)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "$x", "a b", "ä", "a\"", &"x".repeat(129)] {
            assert!(!is_name(bad), "{bad}");
        }
        for good in ["chat", "chat.message", "a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p"] {
            assert!(is_topic(good), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a.*", "$a", "a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q"] {
            assert!(!is_topic(bad), "{bad}");
        }
        for good in [">", "*", "chat.>", "*.message", "a.*.c"] {
            assert!(is_pattern(good), "{good}");
        }
        for bad in ["", ">.a", "a*", "a.>>", "a..>"] {
            assert!(!is_pattern(bad), "{bad}");
        }
    }

    #[test]
    fn a_pattern_matches_whole_tokens() {
        for (pattern, topic, want) in [
            ("chat.>", "chat.message", true),
            ("chat.>", "chat", false),
            ("chat.>", "chat.a.b", true),
            (">", "x", true),
            ("*", "x", true),
            ("*", "x.y", false),
            ("a.*.c", "a.b.c", true),
            ("a.*.c", "a.c", false),
            ("chat", "chatter", false),
        ] {
            assert_eq!(pattern_matches(pattern, topic), want, "{pattern} {topic}");
        }
    }
}
