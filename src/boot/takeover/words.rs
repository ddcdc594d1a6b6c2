//! What two processes say to each other while one takes over from the other: lines of text, one after the other.
//!
//! ```text
//!   the new one                                     the running one
//!     tidegate-takeover 1 PID            ───────►
//!                                        ◄───────   listeners COUNT PID WITHIN_MS ADDRESS, then the sockets
//!     ready                              ───────►                               … it drains …
//!                                        ◄───────   released
//!                                        ◄───────   no WHY            at any point: it goes on serving
//! ```

use std::fmt;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Version of this talk. Another one is refused: both binaries are then to be stopped and started.
pub(super) const VERSION: u32 = 1;
const HELLO: &str = "tidegate-takeover";
/// Longest line.
const LINE_BYTES_MAX: usize = 512;

/// One line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Word {
    /// I am to take over.
    Hello { version: u32, pid: u32 },
    /// You are not.
    No { why: String },
    /// Here are my listening sockets.
    Listeners { count: usize, pid: u32, within_ms: u64, address: SocketAddr },
    /// I have all I need but the folder: begin to drain.
    Ready,
    /// The folder is yours.
    Released,
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Word::Hello { version, pid } => writeln!(f, "{HELLO} {version} {pid}"),
            Word::No { why } => writeln!(f, "no {why}"),
            Word::Listeners { count, pid, within_ms, address } => {
                writeln!(f, "listeners {count} {pid} {within_ms} {address}")
            }
            Word::Ready => f.write_str("ready\n"),
            Word::Released => f.write_str("released\n"),
        }
    }
}

impl Word {
    fn parse(line: &str) -> Option<Word> {
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        let parts: Vec<&str> = rest.split(' ').collect();
        Some(match (name, parts.as_slice()) {
            (HELLO, [version, pid]) => Word::Hello { version: version.parse().ok()?, pid: pid.parse().ok()? },
            ("no", _) => Word::No { why: rest.to_owned() },
            ("listeners", [count, pid, within_ms, address]) => Word::Listeners {
                count: count.parse().ok()?,
                pid: pid.parse().ok()?,
                within_ms: within_ms.parse().ok()?,
                address: address.parse().ok()?,
            },
            ("ready", [""]) => Word::Ready,
            ("released", [""]) => Word::Released,
            _ => return None,
        })
    }
}

/// Says a word.
pub(super) fn say(mut stream: &UnixStream, word: &Word) -> io::Result<()> {
    io::Write::write_all(&mut stream, word.to_string().as_bytes())
}

/// Waits for a word; `None`: the other end is closed. Never takes a byte more, since descriptors may lie behind it.
pub(super) fn hear(mut stream: &UnixStream, within: Option<Duration>) -> io::Result<Option<Word>> {
    let deadline = within.map(|within| Instant::now() + within);
    let mut line = Vec::new();
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(left)?;
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) if line.is_empty() => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) if byte == *b"\n" => break,
            Ok(_) if line.len() == LINE_BYTES_MAX => return Err(odd("a line without end")),
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Closed with words of ours unread: it is gone all the same.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset && line.is_empty() => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    let line = String::from_utf8(line).map_err(|_| odd("something that is no text"))?;
    Word::parse(&line).map(Some).ok_or_else(|| odd(&format!("the line {line:?}")))
}

fn odd(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} came: the two binaries do not understand each other"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn words_are_read_as_they_were_said() {
        let (here, there) = UnixStream::pair().unwrap();
        let all = [
            Word::Hello { version: 1, pid: 17 },
            Word::No { why: "it is going down: start again".into() },
            Word::Listeners { count: 3, pid: 9, within_ms: 20_000, address: "127.0.0.1:7777".parse().unwrap() },
            Word::Listeners { count: 1, pid: 9, within_ms: 1, address: "[::1]:80".parse().unwrap() },
            Word::Ready,
            Word::Released,
        ];
        all.iter().for_each(|word| say(&here, word).unwrap());
        drop(here);
        for word in all {
            assert_eq!(hear(&there, Some(Duration::from_secs(5))).unwrap(), Some(word));
        }
        assert_eq!(hear(&there, None).unwrap(), None);
    }

    #[test]
    fn what_is_no_word_is_an_error() {
        let endless = "x".repeat(LINE_BYTES_MAX + 1);
        for text in
            ["\n", "hello\n", "ready now\n", "listeners 1 2 3\n", "listeners -1 2 3 127.0.0.1:1\n", "rea", &endless]
        {
            let (mut here, there) = UnixStream::pair().unwrap();
            here.write_all(text.as_bytes()).unwrap();
            drop(here);
            hear(&there, Some(Duration::from_secs(5))).expect_err(text);
        }
        let (mut here, there) = UnixStream::pair().unwrap();
        here.write_all(b"\xff\xfe\n").unwrap();
        hear(&there, None).unwrap_err();
        here.write_all(b"rea").unwrap();
        let late = hear(&there, Some(Duration::from_millis(20))).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    }
}
