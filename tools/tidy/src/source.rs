//! A file as the rules see it: path, text, and for Rust the text without comments and literals.
//!
//! ```text
//!   let a = "std::fs"; // std::fs          text
//!   let a = "       ";                     code: same length, same lines, only what the compiler acts on
//! ```

/// One file of the repository.
pub struct Source {
    /// Relative to the repository's root, with `/`.
    pub path: String,
    /// Size in bytes.
    pub bytes: usize,
    /// Whether it may be executed.
    pub executable: bool,
    /// Content, if it is text.
    pub text: Option<String>,
    /// For Rust: content with comments and literals blanked.
    pub code: Option<String>,
}

impl Source {
    pub fn new(path: &str, content: &[u8], executable: bool) -> Source {
        let text = std::str::from_utf8(content).ok().map(str::to_string);
        let code = text.as_deref().filter(|_| path.ends_with(".rs")).map(blank);
        Source { path: path.to_string(), bytes: content.len(), executable, text, code }
    }

    /// Lines of code before the first test module, numbered from 1.
    pub fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.code.as_deref().unwrap_or_default().lines().enumerate();
        lines.take_while(|(_, line)| line.trim() != "#[cfg(test)]").map(|(i, line)| (i + 1, line))
    }

    /// All lines of text, numbered from 1.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.as_deref().unwrap_or_default().lines().enumerate().map(|(i, line)| (i + 1, line))
    }
}

/// Replaces comments and the inside of literals by spaces, and keeps every line break.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut i = 0;
    let wipe = |out: &mut Vec<u8>, from: usize, to: usize| {
        for byte in &mut out[from..to.min(bytes.len())] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    };
    while i < bytes.len() {
        let rest = &bytes[i..];
        let end = if rest.starts_with(b"//") {
            i + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            i + block_comment(rest)
        } else if let Some(n) = raw_string(rest).filter(|_| i == 0 || !is_word(bytes[i - 1])) {
            i + n
        } else if rest[0] == b'"' {
            i + string(rest)
        } else if rest[0] == b'\'' {
            match char_literal(rest) {
                Some(n) => i + n,
                None => {
                    i += 1; // a lifetime
                    continue;
                }
            }
        } else {
            i += 1;
            continue;
        };
        wipe(&mut out, i, end);
        i = end;
    }
    String::from_utf8(out).unwrap_or_default()
}

/// Whether `byte` can be part of a word.
pub fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut i) = (0, 0);
    while i < rest.len() {
        if rest[i..].starts_with(b"/*") {
            depth += 1;
            i += 2;
        } else if rest[i..].starts_with(b"*/") {
            depth -= 1;
            i += 2;
            if depth == 0 {
                return i;
            }
        } else {
            i += 1;
        }
    }
    i
}

fn string(rest: &[u8]) -> usize {
    let mut i = 1;
    while i < rest.len() {
        match rest[i] {
            b'\\' => i += 2,
            b'"' => return i + 1,
            _ => i += 1,
        }
    }
    rest.len()
}

fn raw_string(rest: &[u8]) -> Option<usize> {
    let after_r = rest.strip_prefix(b"br").or_else(|| rest.strip_prefix(b"r"))?;
    let hashes = after_r.iter().take_while(|b| **b == b'#').count();
    if after_r.get(hashes) != Some(&b'"') {
        return None;
    }
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let start = rest.len() - after_r.len() + hashes + 1;
    let found = rest[start..].windows(close.len()).position(|window| window == close);
    Some(found.map_or(rest.len(), |at| start + at + close.len()))
}

fn char_literal(rest: &[u8]) -> Option<usize> {
    if rest.get(1) == Some(&b'\\') {
        return rest[3..].iter().position(|b| *b == b'\'').map(|at| at + 4);
    }
    // 'x' or a character of up to four bytes; anything longer is a lifetime.
    let close = rest.iter().skip(2).take(4).position(|b| *b == b'\'')? + 2;
    (close == 2 || rest[1] >= 0x80).then_some(close + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_lifetimes_are_not() {
        let text = "a/*x/*y*/z*/b \"q\\\"r\" 'c' '\\n' &'static r#\"s\"t\"# br\"u\" var // v\nnext";
        let code = blank(text);
        assert_eq!(code.len(), text.len());
        let words: Vec<&str> = code.split_whitespace().collect();
        assert_eq!(words, ["a", "b", "&'static", "var", "next"]);
        assert_eq!(code.lines().count(), 2);
    }

    #[test]
    fn test_modules_are_not_code() {
        let source = Source::new("a.rs", b"one\n#[cfg(test)]\nmod tests {}\n", false);
        assert_eq!(source.code_lines().collect::<Vec<_>>(), [(1, "one")]);
    }
}
