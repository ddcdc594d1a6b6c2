//! What names and topics may look like. No byte allowed here needs an escape in JSON, which keeps encoding a copy.
//!
//! ```text
//! name     [A-Za-z0-9_.:-]{1,128}          tenant, session, client, message, marker
//! topic    token(.token){0,15}             token = [A-Za-z0-9_-]+
//! pattern  topic in which a token may be * and the last one >
//! ```
//! `$` begins what the server makes itself; no client may use it.

use crate::limits::{NAME_BYTES_MAX, TOPIC_BYTES_MAX, TOPIC_TOKENS_MAX, TRACEPARENT_BYTES_MAX};

/// A tenant, session, client, message or marker name.
pub fn is_name(name: &[u8]) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len()) && all(name, |b| in_token(b) | (b == b'.') | (b == b':'))
}

/// A topic.
pub fn is_topic(topic: &[u8]) -> bool {
    topic.len() <= TOPIC_BYTES_MAX && all(topic, |b| in_token(b) | (b == b'.')) && tokens_hold(topic)
}

/// A topic pattern.
pub fn is_pattern(pattern: &[u8]) -> bool {
    let mut tokens = pattern.split(|b| *b == b'.').peekable();
    let mut count = 0;
    while let Some(token) = tokens.next() {
        count += 1;
        let last = tokens.peek().is_none();
        let holds = token == b"*" || (last && token == b">") || (!token.is_empty() && all(token, in_token));
        if count > TOPIC_TOKENS_MAX || !holds {
            return false;
        }
    }
    pattern.len() <= TOPIC_BYTES_MAX
}

/// W3C trace context, held to the bytes it may have; empty = none.
pub fn is_traceparent(text: &[u8]) -> bool {
    text.len() <= TRACEPARENT_BYTES_MAX && text.iter().all(|b| b.is_ascii_hexdigit() || *b == b'-')
}

/// Whether no token is empty and they are not too many; their bytes have been looked at.
fn tokens_hold(topic: &[u8]) -> bool {
    // So many dots, with something between them, need more bytes than most topics have.
    if topic.len() > 2 * TOPIC_TOKENS_MAX && topic.iter().filter(|b| **b == b'.').count() >= TOPIC_TOKENS_MAX {
        return false;
    }
    let edge = |byte: Option<&u8>| byte.is_none_or(|byte| *byte == b'.');
    !edge(topic.first()) && !edge(topic.last()) && !two_dots(topic)
}

/// Whether two dots stand side by side: words that overlap by a byte see every pair.
fn two_dots(topic: &[u8]) -> bool {
    const LOWS: u64 = u64::MAX / 255 * 0x7f;
    let in_word = |word: &[u8; 8]| {
        let others = u64::from_le_bytes(*word) ^ u64::from_le_bytes([b'.'; 8]);
        let dots = !(((others & LOWS) + LOWS) | others | LOWS);
        dots & dots << 8 != 0
    };
    let Some(last) = topic.last_chunk() else { return topic.windows(2).any(|pair| pair == b"..") };
    let mut at = 0;
    while at + 8 < topic.len() {
        if topic[at..].first_chunk().is_none_or(in_word) {
            return true;
        }
        at += 7;
    }
    in_word(last)
}

/// A byte of a token. Comparisons without branches, so that [`all`] becomes vector instructions.
#[inline(always)]
fn in_token(byte: u8) -> bool {
    let letter = (byte | 0x20).wrapping_sub(b'a') < 26;
    letter | (byte.wrapping_sub(b'0') < 10) | (byte == b'_') | (byte == b'-')
}

/// Whether `holds` is true of all bytes: sixteen at once, some of them perhaps twice.
#[inline(always)]
fn all(bytes: &[u8], holds: impl Fn(u8) -> bool) -> bool {
    let block_holds = |block: &[u8; 16]| u128::from_ne_bytes(block.map(|byte| u8::from(!holds(byte)))) == 0;
    if let Some(last) = bytes.last_chunk() {
        return block_holds(last) && bytes.as_chunks().0.iter().all(block_holds);
    }
    if let (Some(first), Some(last)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        let mut both = [0; 16];
        both[..8].copy_from_slice(first);
        both[8..].copy_from_slice(last);
        return block_holds(&both);
    }
    bytes.iter().all(|byte| holds(*byte))
}

/// Does a topic match a pattern? Both are well-formed. `>` stands for one token or more. Topics of the server's own, which begin
/// with `$`, match none: no client can write such a pattern.
pub fn pattern_matches(pattern: &str, topic: &str) -> bool {
    if topic.starts_with('$') {
        return false;
    }
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
            assert!(is_name(good.as_bytes()), "{good}");
        }
        for bad in ["", "$x", "a b", "ä", "a\"", &"x".repeat(129)] {
            assert!(!is_name(bad.as_bytes()), "{bad}");
        }
        for good in ["chat", "chat.message", "a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p"] {
            assert!(is_topic(good.as_bytes()), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a.*", "$a", "a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q"] {
            assert!(!is_topic(bad.as_bytes()), "{bad}");
        }
        for good in [">", "*", "chat.>", "*.message", "a.*.c"] {
            assert!(is_pattern(good.as_bytes()), "{good}");
        }
        for bad in ["", ">.a", "a*", "a.>>", "a..>"] {
            assert!(!is_pattern(bad.as_bytes()), "{bad}");
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
