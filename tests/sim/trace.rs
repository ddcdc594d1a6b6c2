//! What happened, in order: hashed always, printed with `-v`. The same seed must give the same hash.

use std::fmt;
use xxhash_rust::xxh3::Xxh3Default;

/// The trace of one run.
pub struct Trace {
    hasher: Xxh3Default,
    line: String,
    print: bool,
    lines: u64,
}

impl Trace {
    /// An empty trace, printed as it grows or only hashed.
    pub fn new(print: bool) -> Self {
        Self { hasher: Xxh3Default::new(), line: String::new(), print, lines: 0 }
    }

    /// One thing that happened, at a simulated time.
    pub fn say(&mut self, now_us: u64, what: fmt::Arguments<'_>) {
        use fmt::Write;
        self.line.clear();
        let _ = write!(self.line, "{now_us:>10} {what}");
        self.hasher.update(self.line.as_bytes());
        self.lines += 1;
        if self.print {
            println!("{}", self.line);
        }
    }

    /// Whether lines are printed.
    pub fn prints(&self) -> bool {
        self.print
    }

    /// A line for the reader of a printed trace alone.
    pub fn note(&mut self, now_us: u64, what: fmt::Arguments<'_>) {
        if self.print {
            println!("{now_us:>10} {what}");
        }
    }

    /// Bytes that somebody saw.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// Hash of everything so far, and lines.
    pub fn digest(&self) -> (u64, u64) {
        (self.hasher.digest(), self.lines)
    }
}
