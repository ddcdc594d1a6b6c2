//! A strict JSON scanner (RFC 8259): one pass, no copy, no tree. It walks a text and hands out ranges of it.
//!
//! ```text
//!   Scanner { text, at }        at ──► next byte to look at; never inside a character
//!     value()   → Value         strings and numbers as ranges; arrays and objects checked to their end
//!     enter(b'{') · key() · …   to walk into one
//! ```
//! What is stricter than the grammar, and why: an escape of half a surrogate pair (`"\ud800"`) is refused, because
//! many readers fail on it and one publisher must not be able to stop another's subscribers; containers nest at
//! most 64 deep, because readers recurse. What is not: numbers of any size and repeated keys inside `data` are
//! well-formed and passed through; repeated keys of a command are refused by the decoder.

use super::digits;
use super::scan::{self, BLOCK};
use shards::limits::DATA_DEPTH_MAX;

/// Why a text is no JSON.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    /// Not the grammar, or half a surrogate pair.
    Syntax,
    /// Containers nested deeper than the scanner follows.
    TooDeep,
}

/// Bytes `start..end` of the scanned text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last.
    pub end: u32,
}

impl Span {
    /// Bytes.
    pub fn bytes(self) -> usize {
        (self.end - self.start) as usize
    }
}

/// What a value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Kind {
    /// `null`
    #[default]
    Null,
    /// `true`
    True,
    /// `false`
    False,
    /// A number.
    Number,
    /// A string without escapes: its bytes are its text. The span has no quotes.
    Plain,
    /// A string with escapes. The span has no quotes.
    Escaped,
    /// An array; the span has its brackets.
    Array,
    /// An object; the span has its braces.
    Object,
}

impl Kind {
    /// A string, with escapes or without.
    #[inline]
    pub fn is_string(self) -> bool {
        matches!(self, Kind::Plain | Kind::Escaped)
    }
}

/// A checked value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Value {
    /// What it is.
    pub kind: Kind,
    /// Containers inside one another, itself included; 0 for what is none.
    pub depth: u8,
    /// Where it stands.
    pub span: Span,
}

/// Walks one text.
#[derive(Clone, Copy, Debug)]
pub struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Deepest nesting that is followed. More than [`DATA_DEPTH_MAX`], so that data that is too deep is seen to its end
/// and refused alone.
const DEPTH_MAX: u8 = 124;

/// Checks that `text` is exactly one JSON value and no deeper than data may be.
///
/// # Errors
/// Says whether the grammar or the depth is at fault.
pub fn check(text: &str) -> Result<Value, Broken> {
    let mut scanner = Scanner::new(text, 0);
    let value = scanner.value()?;
    scanner.end()?;
    if usize::from(value.depth) > DATA_DEPTH_MAX { Err(Broken::TooDeep) } else { Ok(value) }
}

impl<'a> Scanner<'a> {
    /// Starts at byte `at`. A text has at most 2^32 − 1 bytes; what lies beyond is not seen.
    pub fn new(text: &'a str, at: usize) -> Self {
        let bytes = text.as_bytes();
        Self { bytes: &bytes[..bytes.len().min(u32::MAX as usize)], at }
    }

    /// Byte the scanner stands at.
    pub fn at(&self) -> usize {
        self.at
    }

    /// First byte after white space, not taken.
    #[inline(always)]
    pub fn peek(&mut self) -> Option<u8> {
        match self.bytes.get(self.at) {
            Some(byte) if *byte > b' ' => Some(*byte),
            _ => {
                self.at = after_space(self.bytes, self.at);
                self.bytes.get(self.at).copied()
            }
        }
    }

    /// Takes `byte` if it comes next after white space.
    #[inline(always)]
    pub fn take(&mut self, byte: u8) -> bool {
        let is = self.peek() == Some(byte);
        self.at += usize::from(is);
        is
    }

    /// Takes `byte`.
    ///
    /// # Errors
    /// Something else stands here.
    #[inline(always)]
    pub fn expect(&mut self, byte: u8) -> Result<(), Broken> {
        if self.take(byte) { Ok(()) } else { Err(Broken::Syntax) }
    }

    /// # Errors
    /// Something other than white space follows.
    pub fn end(&mut self) -> Result<(), Broken> {
        if self.peek().is_none() { Ok(()) } else { Err(Broken::Syntax) }
    }

    /// In an object whose `{` is taken: the next key, its colon taken; `None` at the `}`, which is taken.
    /// `first` is whether no key came before.
    ///
    /// # Errors
    /// No key, comma or colon where one must be.
    #[inline(always)]
    pub fn key(&mut self, first: bool) -> Result<Option<Value>, Broken> {
        let mut next = self.peek();
        if !first && next == Some(b',') {
            self.at += 1;
            next = self.peek();
        } else if next == Some(b'}') {
            self.at += 1;
            return Ok(None);
        } else if !first {
            return Err(Broken::Syntax);
        }
        if next != Some(b'"') {
            return Err(Broken::Syntax);
        }
        let key = self.string()?;
        self.expect(b':')?;
        Ok(Some(key))
    }

    /// The next key as most writers put it: right after `before`, which is `{` or `,`, below 16 bytes, no escape, its
    /// colon right after it. The key is the first bytes of those returned, so many as the number says. All of it is
    /// taken; nothing if it is written in any other way: then [`Scanner::key`] says what stands here.
    #[inline(always)]
    pub fn short_key(&mut self, before: u8) -> Option<(&'a [u8; BLOCK], usize)> {
        let window: &[u8; BLOCK + 3] = self.bytes.get(self.at..)?.first_chunk()?;
        let block = window[2..].first_chunk()?;
        let end = scan::stops(block).trailing_zeros() as usize;
        let whole = window[0] == before
            && window[1] == b'"'
            && end < BLOCK
            && window[2 + end] == b'"'
            && window[3 + end] == b':';
        if !whole {
            return None;
        }
        self.at += end + 4;
        Some((block, end))
    }

    /// The next value if it is a string below 16 bytes without escapes, and no white space is before it.
    #[inline(always)]
    pub fn short_string(&mut self) -> Option<Span> {
        if !self.next_is(b'"') {
            return None;
        }
        let start = self.at + 1;
        let end = short_string(self.bytes, start)?;
        self.at = end + 1;
        Some(Span { start: start as u32, end: end as u32 })
    }

    /// In an array whose `[` is taken: whether another element follows; its comma, or the `]`, is taken.
    /// `first` is whether no element came before.
    ///
    /// # Errors
    /// Neither a comma nor the end.
    #[inline(always)]
    pub fn element(&mut self, first: bool) -> Result<bool, Broken> {
        if self.take(b']') {
            return Ok(false);
        }
        if !first {
            self.expect(b',')?;
        }
        Ok(true)
    }

    /// The next value, checked to its end.
    ///
    /// # Errors
    /// It is broken or too deep.
    #[inline(always)]
    pub fn value(&mut self) -> Result<Value, Broken> {
        match self.peek() {
            Some(b'"') => self.string(),
            Some(first @ (b'{' | b'[')) => {
                let start = self.at;
                let depth;
                (self.at, depth) = container(self.bytes, start)?;
                let kind = if first == b'{' { Kind::Object } else { Kind::Array };
                Ok(Value { kind, depth, span: self.since(start) })
            }
            Some(first) => {
                let start = self.at;
                let kind = self.scalar(first)?;
                Ok(Value { kind, depth: 0, span: self.since(start) })
            }
            None => Err(Broken::Syntax),
        }
    }

    /// A string; the scanner stands at its opening quote.
    #[inline(always)]
    fn string(&mut self) -> Result<Value, Broken> {
        let start = self.at + 1;
        let (end, kind) = match short_string(self.bytes, start) {
            Some(end) => (end, Kind::Plain),
            None => long_string(self.bytes, start)?,
        };
        self.at = end + 1;
        Ok(Value { kind, depth: 0, span: Span { start: start as u32, end: end as u32 } })
    }

    /// A string whose text nobody wants.
    #[inline(always)]
    fn pass_string(&mut self) -> Result<(), Broken> {
        let start = self.at + 1;
        self.at = match short_string(self.bytes, start) {
            Some(end) => end + 1,
            None => long_string(self.bytes, start)?.0 + 1,
        };
        Ok(())
    }

    /// A key whose name nobody wants, and its colon; the scanner stands at its opening quote.
    #[inline(always)]
    fn pass_key(&mut self) -> Result<(), Broken> {
        self.pass_string()?;
        self.expect(b':')
    }

    /// A number, `true`, `false` or `null`; the scanner stands at its `first` byte.
    #[inline(always)]
    fn scalar(&mut self, first: u8) -> Result<Kind, Broken> {
        let (kind, length) = match (first, self.bytes.get(self.at + 1..)) {
            (b'-' | b'0'..=b'9', _) => {
                self.at = number(self.bytes, self.at)?;
                return Ok(Kind::Number);
            }
            (b'n', Some([b'u', b'l', b'l', ..])) => (Kind::Null, 4),
            (b't', Some([b'r', b'u', b'e', ..])) => (Kind::True, 4),
            (b'f', Some([b'a', b'l', b's', b'e', ..])) => (Kind::False, 5),
            _ => return Err(Broken::Syntax),
        };
        self.at += length;
        Ok(kind)
    }

    #[inline(always)]
    fn next_is(&self, byte: u8) -> bool {
        self.bytes.get(self.at) == Some(&byte)
    }

    #[inline(always)]
    fn since(&self, start: usize) -> Span {
        Span { start: start as u32, end: self.at as u32 }
    }
}

// What follows takes and returns places, so that a scanner whose methods are inlined stays in registers.

/// First place from `at` on that is no white space.
#[inline(never)]
fn after_space(bytes: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = bytes.get(at) {
        at += 1;
    }
    at
}

/// End and depth of the array or object at `at`, without recursion: one bit per open container says which of the two
/// it is.
#[inline(never)]
fn container(bytes: &[u8], at: usize) -> Result<(usize, u8), Broken> {
    const _: () = assert!(DATA_DEPTH_MAX < DEPTH_MAX as usize && (DEPTH_MAX as u32) < u128::BITS);
    let mut scanner = Scanner { bytes, at };
    let mut objects = 0u128;
    let (mut depth, mut deepest) = (0, 0);
    'value: loop {
        // At the start of a value.
        match scanner.peek() {
            Some(b'"') => scanner.pass_string()?,
            Some(open @ (b'{' | b'[')) => {
                if depth == DEPTH_MAX {
                    return Err(Broken::TooDeep);
                }
                depth += 1;
                deepest = deepest.max(depth);
                scanner.at += 1;
                objects = objects << 1 | u128::from(open == b'{');
                match (open, scanner.peek()) {
                    // Empty: it is closed below.
                    (b'{', Some(b'}')) | (b'[', Some(b']')) => {}
                    (b'{', Some(b'"')) => {
                        scanner.pass_key()?;
                        continue 'value;
                    }
                    (b'[', Some(_)) => continue 'value,
                    _ => return Err(Broken::Syntax),
                }
            }
            Some(first) => {
                scanner.scalar(first)?;
            }
            None => return Err(Broken::Syntax),
        }
        // After a value: close what ends here.
        loop {
            let in_object = objects & 1 == 1;
            match scanner.peek() {
                Some(b',') => {
                    scanner.at += 1;
                    if in_object {
                        if scanner.peek() != Some(b'"') {
                            return Err(Broken::Syntax);
                        }
                        scanner.pass_key()?;
                    }
                    continue 'value;
                }
                Some(b'}') if in_object => {}
                Some(b']') if !in_object => {}
                _ => return Err(Broken::Syntax),
            }
            scanner.at += 1;
            depth -= 1;
            objects >>= 1;
            if depth == 0 {
                return Ok((scanner.at, deepest));
            }
        }
    }
}

/// Closing quote of a string that begins at `start`, if it is within a block and no escape is before it.
#[inline(always)]
fn short_string(bytes: &[u8], start: usize) -> Option<usize> {
    let block = bytes.get(start..)?.first_chunk::<BLOCK>()?;
    let end = scan::stops(block).trailing_zeros() as usize;
    (block.get(end) == Some(&b'"')).then_some(start + end)
}

/// Closing quote of any string that begins at `start`, and whether it has escapes.
#[inline(never)]
fn long_string(bytes: &[u8], start: usize) -> Result<(usize, Kind), Broken> {
    let mut at = start;
    let mut kind = Kind::Plain;
    loop {
        at = scan::plain_end(bytes, at);
        match bytes.get(at) {
            Some(b'"') => return Ok((at, kind)),
            Some(b'\\') => {
                kind = Kind::Escaped;
                at += escape(bytes, at)?;
            }
            // The end, or a control character.
            _ => return Err(Broken::Syntax),
        }
    }
}

/// Length of the escape at `at`.
#[inline]
fn escape(bytes: &[u8], at: usize) -> Result<usize, Broken> {
    match bytes.get(at + 1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(2),
        Some(b'u') => {
            let (_, length) = unicode_escape(bytes.get(at..).unwrap_or_default()).ok_or(Broken::Syntax)?;
            Ok(length)
        }
        _ => Err(Broken::Syntax),
    }
}

/// End of the number at `at`.
#[inline(never)]
fn number(bytes: &[u8], mut at: usize) -> Result<usize, Broken> {
    at += usize::from(bytes.get(at) == Some(&b'-'));
    at = match bytes.get(at) {
        Some(b'0') => at + 1,
        _ => digits(bytes, at)?,
    };
    if bytes.get(at) == Some(&b'.') {
        at = digits(bytes, at + 1)?;
    }
    if let Some(b'e' | b'E') = bytes.get(at) {
        at += 1;
        at += usize::from(matches!(bytes.get(at), Some(b'+' | b'-')));
        at = digits(bytes, at)?;
    }
    Ok(at)
}

/// End of one digit or more.
#[inline(always)]
fn digits(bytes: &[u8], start: usize) -> Result<usize, Broken> {
    let end = digits::end(bytes, start);
    if end == start { Err(Broken::Syntax) } else { Ok(end) }
}

/// The character of a `\uXXXX` escape, or of a pair of them, and the bytes it takes. `None` if it is broken or half
/// a pair.
fn unicode_escape(bytes: &[u8]) -> Option<(char, usize)> {
    let unit = |bytes: &[u8]| -> Option<u32> {
        let [b'\\', b'u', a, b, c, d, ..] = *bytes else { return None };
        [a, b, c, d].into_iter().try_fold(0, |n, digit| Some((n << 4) | char::from(digit).to_digit(16)?))
    };
    let first = unit(bytes)?;
    if let Some(c) = char::from_u32(first) {
        return Some((c, 6));
    }
    let second = unit(bytes.get(6..)?)?;
    if first >= 0xdc00 || !(0xdc00..0xe000).contains(&second) {
        return None;
    }
    Some((char::from_u32(0x10000 + (((first - 0xd800) << 10) | (second - 0xdc00)))?, 12))
}

/// Appends the text that a checked string's bytes stand for.
pub fn unescape(mut raw: &str, out: &mut Vec<u8>) {
    while let Some(at) = memchr::memchr(b'\\', raw.as_bytes()) {
        let (plain, rest) = raw.split_at(at);
        out.extend_from_slice(plain.as_bytes());
        let (c, length) = match rest.as_bytes().get(1) {
            Some(b'b') => ('\u{8}', 2),
            Some(b'f') => ('\u{c}', 2),
            Some(b'n') => ('\n', 2),
            Some(b'r') => ('\r', 2),
            Some(b't') => ('\t', 2),
            Some(b'u') => unicode_escape(rest.as_bytes()).unwrap_or(('\u{fffd}', 2)),
            Some(c) => (char::from(*c), 2),
            None => return,
        };
        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        raw = rest.get(length..).unwrap_or("");
    }
    out.extend_from_slice(raw.as_bytes());
}

/// Appends `text` as a JSON string, quotes included.
pub fn append_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut at = 0;
    loop {
        let end = scan::plain_end(bytes, at);
        out.extend_from_slice(&bytes[at..end]);
        let Some(&byte) = bytes.get(end) else { break };
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&digits);
            }
        }
        at = end + 1;
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn depth(n: usize) -> String {
        "[".repeat(n) + &"]".repeat(n)
    }

    #[test]
    fn depth_is_counted_in_containers() {
        assert!(check(&depth(64)).is_ok());
        assert_eq!(check(&depth(65)), Err(Broken::TooDeep));
        let objects = "{\"a\":".repeat(64) + "1" + &"}".repeat(64);
        assert!(check(&objects).is_ok());
        assert_eq!(check(&format!("[{objects}]")), Err(Broken::TooDeep));
    }

    #[test]
    fn half_a_surrogate_pair_is_refused() {
        for bad in [r#""\ud800""#, r#""\udc00""#, r#""\ud800\u0041""#, r#""\ud800x""#, r#""\udc00\ud800""#] {
            assert_eq!(check(bad), Err(Broken::Syntax), "{bad}");
        }
        assert!(check(r#""\ud83d\ude00""#).is_ok());
    }

    #[test]
    fn bounds_of_the_grammar() {
        for good in ["0", "-0", "1e400", "-1.5E+3", " [ ] ", "{}", "\"\"", "null", "[1,{\"a\":[]},\"\u{7f}\"]"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            " ",
            "01",
            "-",
            "1.",
            ".5",
            "1e",
            "+1",
            "nul",
            "nulx",
            "trux",
            "falsx",
            "truex",
            "[1,]",
            "[,1]",
            "{,}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "[1}",
            "{\"a\":1]",
            "\"",
            "\"\n\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\\"",
            "1 2",
            "]",
            "NaN",
            "\u{feff}1",
            "'a'",
            "[1 2]",
        ] {
            assert_eq!(check(bad), Err(Broken::Syntax), "{bad}");
        }
    }

    /// serde_json is stricter in one point (numbers beyond f64) and laxer in none that these texts reach but depth.
    fn agrees(text: &str) {
        let ours = check(text);
        match serde_json::from_str::<serde_json::Value>(text) {
            Ok(_) => assert!(ours.is_ok() || ours == Err(Broken::TooDeep), "{text}"),
            Err(error) if error.to_string().starts_with("number out of range") => {}
            Err(error) => assert!(ours.is_err(), "{text}: {error}"),
        }
    }

    fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            any::<f64>().prop_map(|n| serde_json::to_string(&n).unwrap()),
            any::<i64>().prop_map(|n| n.to_string()),
            any::<String>().prop_map(|s| serde_json::to_string(&s).unwrap()),
            "\"(\\\\[\"\\\\/bfnrt]|\\\\u[0-9a-fA-F]{4}|[a-z ä€😀])*\"",
        ];
        leaf.prop_recursive(6, 64, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(|v| format!("[ {}]", v.join(", "))),
                proptest::collection::vec((any::<String>(), inner), 0..6).prop_map(|v| {
                    let fields: Vec<String> =
                        v.iter().map(|(k, v)| format!("{}:{v}", serde_json::to_string(k).unwrap())).collect();
                    format!("{{{}}}", fields.join(","))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_serde_on_json(text in json()) { agrees(&text); }

        #[test]
        fn agrees_with_serde_on_broken_json(text in json(), at: proptest::sample::Index, with in "[\\[\\]{}:,\"\\\\0-9eE.+ tfnu\u{0}-\u{20}-]?") {
            let at = at.index(text.len().max(1));
            if text.is_char_boundary(at) && text.is_char_boundary((at + 1).min(text.len())) {
                agrees(&format!("{}{with}{}", &text[..at], &text[(at + 1).min(text.len())..]));
            }
        }

        #[test]
        fn agrees_with_serde_on_noise(text in "[\\[\\]{}:,\"\\\\0-9eE.+ truefalsn-]{0,24}") { agrees(&text); }

        #[test]
        fn strings_come_back(text: String) {
            let mut out = Vec::new();
            append_string(&mut out, &text);
            let written = String::from_utf8(out).unwrap();
            prop_assert_eq!(&serde_json::from_str::<String>(&written).unwrap(), &text);
            let inner = &written[1..written.len() - 1];
            let mut back = Vec::new();
            unescape(inner, &mut back);
            prop_assert_eq!(String::from_utf8(back).unwrap(), text);
        }

        #[test]
        fn escapes_read_as_serde_reads_them(text in "\"(\\\\[\"\\\\/bfnrt]|\\\\u[0-9a-fA-F]{4}|\\\\ud83d\\\\ude0[0-9]|[a-z ä€😀])*\"") {
            if let Ok(want) = serde_json::from_str::<String>(&text) {
                let mut out = Vec::new();
                unescape(&text[1..text.len() - 1], &mut out);
                prop_assert_eq!(String::from_utf8(out).unwrap(), want);
            } else {
                prop_assert!(check(&text).is_err());
            }
        }
    }
}
