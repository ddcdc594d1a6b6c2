//! One request and its answer on the admin edge: blocking, with time-outs, a kilobyte or two.
//!
//! ```text
//!   bytes ─► http::question: 8 KiB at most, within two seconds ─► Asked { method, path, query, accept } ─► Answer ─► what still comes ─► close
//! ```
//! No request has a body that anybody reads. What is there unread when a socket is closed makes the kernel break the connection, and
//! the answer may be lost with it: so what comes is thrown away for a moment, until the other side has read and closed.

use crate::http::{Asked, Unheard, question};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// From accept to the last byte of the request.
const READ_WITHIN: Duration = Duration::from_secs(2);
/// The whole answer.
const WRITE_WITHIN: Duration = Duration::from_secs(5);
/// What comes after the answer is thrown away for so long, and so many bytes.
pub(super) const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES_MAX: usize = 1 << 20;

/// Who asks.
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// How an answer begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Status {
    Ok,
    BadRequest,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    Timeout,
    HeadTooLarge,
    Busy,
}

impl Status {
    pub const ALL: [Status; 8] = [
        Status::Ok,
        Status::BadRequest,
        Status::Forbidden,
        Status::NotFound,
        Status::MethodNotAllowed,
        Status::Timeout,
        Status::HeadTooLarge,
        Status::Busy,
    ];

    /// Code and words.
    const fn line(self) -> (&'static str, &'static str) {
        match self {
            Status::Ok => ("200", "OK"),
            Status::BadRequest => ("400", "Bad Request"),
            Status::Forbidden => ("403", "Forbidden"),
            Status::NotFound => ("404", "Not Found"),
            Status::MethodNotAllowed => ("405", "Method Not Allowed"),
            Status::Timeout => ("408", "Request Timeout"),
            Status::HeadTooLarge => ("431", "Request Header Fields Too Large"),
            Status::Busy => ("503", "Service Unavailable"),
        }
    }

    pub const fn code(self) -> &'static str {
        self.line().0
    }
}

/// What is answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: Status,
    content_type: &'static str,
    body: String,
}

impl Answer {
    pub fn of(content_type: &'static str, body: String) -> Self {
        Self { status: Status::Ok, content_type, body }
    }

    pub fn json(value: &Value) -> Self {
        Self::of("application/json", format!("{value}\n"))
    }

    /// A no, with one line that names the cure.
    pub fn refused(status: Status, cure: &str) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: format!("{cure}\n") }
    }

    pub fn busy() -> Self {
        Self::refused(Status::Busy, "too many requests at once on the admin edge: ask again")
    }
}

impl Stream {
    /// The request, or what is wrong with it.
    pub fn read(&mut self) -> Result<Asked, Answer> {
        let began = Instant::now();
        let mut bytes = Vec::new();
        let late = || Answer::refused(Status::Timeout, "send the whole request within two seconds");
        loop {
            let left = left_of(READ_WITHIN, began).ok_or_else(late)?;
            let mut chunk = [0; 2048];
            let read = self.read_some(&mut chunk, left).map_err(|_| late())?;
            bytes.extend_from_slice(&chunk[..read]);
            if let Some(asked) = heard(&bytes, matches!(self, Stream::Tcp(_)))? {
                return Ok(asked);
            }
            if read == 0 {
                return Err(Answer::refused(Status::BadRequest, "the request is not whole"));
            }
        }
    }

    /// Answers, and is done. Whoever has gone away, or does not read, misses it.
    pub fn answer(&mut self, answer: &Answer) {
        let Answer { status, content_type, body } = answer;
        let ((code, words), length) = (status.line(), body.len());
        let text = format!(
            "HTTP/1.1 {code} {words}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        let began = Instant::now();
        let mut rest = text.as_bytes();
        while !rest.is_empty()
            && let Some(left) = left_of(WRITE_WITHIN, began)
            && let Ok(written @ 1..) = self.write_some(rest, left)
        {
            rest = &rest[written..];
        }
    }

    /// Ends the answer, and throws away what still comes for so long at most. Says nothing of whether the other side got it.
    pub fn close(mut self, at_most: Duration) {
        let began = Instant::now();
        let mut bytes = 0;
        let mut chunk = [0; 8192];
        let ended = match &self {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
        };
        while ended.is_ok()
            && bytes < LINGER_BYTES_MAX
            && let Some(left) = left_of(at_most, began)
            && let Ok(read @ 1..) = self.read_some(&mut chunk, left)
        {
            bytes += read;
        }
    }

    fn read_some(&mut self, chunk: &mut [u8], left: Duration) -> std::io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.set_read_timeout(Some(left)).and_then(|()| stream.read(chunk)),
            Stream::Tcp(stream) => stream.set_read_timeout(Some(left)).and_then(|()| stream.read(chunk)),
        }
    }

    fn write_some(&mut self, bytes: &[u8], left: Duration) -> std::io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.set_write_timeout(Some(left)).and_then(|()| stream.write(bytes)),
            Stream::Tcp(stream) => stream.set_write_timeout(Some(left)).and_then(|()| stream.write(bytes)),
        }
    }
}

/// `None`: nothing is left.
fn left_of(time: Duration, began: Instant) -> Option<Duration> {
    time.checked_sub(began.elapsed()).filter(|left| !left.is_zero())
}

/// The request, if it is whole.
fn heard(bytes: &[u8], by_tcp: bool) -> Result<Option<Asked>, Answer> {
    question(bytes, by_tcp).map_err(|no| match no {
        Unheard::Malformed => Answer::refused(Status::BadRequest, "this is no HTTP/1.1 request"),
        Unheard::TooLong => Answer::refused(Status::HeadTooLarge, "send fewer and shorter headers"),
        Unheard::ForeignHost => Answer::refused(Status::Forbidden, "ask for localhost, 127.0.0.1 or [::1]"),
    })
}
