//! One request and its answer on the admin edge: blocking, with time-outs, a kilobyte or two.
//!
//! ```text
//!   bytes ─► head, 8 KiB at most, within two seconds ─► Asked { method, path, query, accept } ─► Answer ─► what still comes ─► close
//! ```
//! No request has a body that anybody reads. What is there unread when a socket is closed makes the kernel break the connection, and
//! the answer may be lost with it: so what comes is thrown away for a moment, until the other side has read and closed.

use serde_json::Value;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const HEAD_BYTES_MAX: usize = 8192;
const HEADERS_MAX: usize = 64;
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

/// What is asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub method: String,
    pub path: String,
    query: String,
    pub accept: String,
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

impl Asked {
    /// The value of a parameter, decoded.
    pub fn value(&self, name: &str) -> Option<String> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| decoded(value)).next().flatten()
    }
}

/// `None` where an escape is broken or the bytes are no UTF-8.
fn decoded(value: &str) -> Option<String> {
    let mut plain = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            plain.push((digit()? * 16 + digit()?) as u8);
        } else {
            plain.push(byte);
        }
    }
    String::from_utf8(plain).ok()
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
            if let Some(asked) = parse(&bytes, matches!(self, Stream::Tcp(_)))? {
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

/// `None`: more is to come. `by_tcp`: the host must be this one, or a page in a browser could ask under a name of its own.
fn parse(bytes: &[u8], by_tcp: bool) -> Result<Option<Asked>, Answer> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let malformed = || Answer::refused(Status::BadRequest, "this is no HTTP/1.1 request");
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err(Answer::refused(Status::HeadTooLarge, "send fewer and shorter headers"));
        }
        Err(_) => return Err(malformed()),
    }
    let (Some(method), Some(target)) = (request.method, request.path) else { return Err(malformed()) };
    let header = |name: &str| {
        let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok()).unwrap_or_default().trim()
    };
    if by_tcp && !is_this_host(header("host")) {
        return Err(Answer::refused(Status::Forbidden, "ask for localhost, 127.0.0.1 or [::1]"));
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (method, path, query) = (method.to_owned(), path.to_owned(), query.to_owned());
    Ok(Some(Asked { method, path, query, accept: header("accept").to_owned() }))
}

fn is_this_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(text: &str, by_tcp: bool) -> &'static str {
        match parse(text.as_bytes(), by_tcp) {
            Ok(Some(_)) => "200",
            Ok(None) => "more",
            Err(answer) => answer.status.code(),
        }
    }

    #[test]
    fn a_request_is_read_and_its_parameters_are_decoded() {
        let text = "GET /v1/why?event=a%3Ab:00ff:3&tenant=t HTTP/1.1\r\nHost: localhost:1\r\nAccept: x\r\n\r\n";
        let asked = parse(text.as_bytes(), true).unwrap().unwrap();
        assert_eq!((&*asked.method, &*asked.path, &*asked.accept), ("GET", "/v1/why", "x"));
        assert_eq!(
            (asked.value("event").as_deref(), asked.value("tenant").as_deref()),
            (Some("a:b:00ff:3"), Some("t"))
        );
        assert_eq!(asked.value("nothing"), None);
        for cut in 0..text.len() {
            assert_eq!(status(&text[..cut], true), "more", "{cut}");
        }
    }

    #[test]
    fn foreign_names_and_endless_heads_are_refused() {
        for (host, want) in [
            ("127.0.0.1:7778", "200"),
            ("[::1]:7778", "200"),
            ("localhost", "200"),
            ("evil.example:7778", "403"),
            ("10.0.0.1", "403"),
            ("", "403"),
        ] {
            assert_eq!(status(&format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n"), true), want, "{host}");
        }
        assert_eq!(status("GET /metrics HTTP/1.1\r\n\r\n", false), "200", "the socket needs no name");
        let long = format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(HEAD_BYTES_MAX));
        assert_eq!(status(&long, false), "431");
        assert_eq!(status("\x16\x03\x01\r\n\r\n", false), "400");
    }
}
