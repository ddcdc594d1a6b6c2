//! The request head on the admin edge: what operators and Prometheus ask.
//!
//! ```text
//!   GET /v1/why?event=ID&tenant=T      ─► Asked { method, path, query, accept }
//!   no HTTP, too long, another host    ─► Unheard
//! ```

use super::HEAD_BYTES_MAX;
use super::request::HEADERS_MAX;
use std::net::IpAddr;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Of the request.
    pub method: String,
    /// Without its parameters.
    pub path: String,
    query: String,
    /// `Accept`, or nothing.
    pub accept: String,
}

/// Why nobody answers what is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unheard {
    /// Not HTTP/1.x.
    Malformed,
    /// More than [`HEAD_BYTES_MAX`] bytes or 64 header lines.
    TooLong,
    /// A page in a browser could ask under a name of its own.
    ForeignHost,
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

/// Reads everything received so far. `None`: more is to come. `by_tcp`: the host must be this one.
///
/// # Errors
/// It is nothing that is answered.
pub fn question(bytes: &[u8], by_tcp: bool) -> Result<Option<Asked>, Unheard> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => return Err(Unheard::TooLong),
        Err(_) => return Err(Unheard::Malformed),
    }
    let (Some(method), Some(target)) = (request.method, request.path) else { return Err(Unheard::Malformed) };
    let header = |name: &str| {
        let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok()).unwrap_or_default().trim()
    };
    if by_tcp && !is_this_host(header("host")) {
        return Err(Unheard::ForeignHost);
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

    #[test]
    fn a_request_is_read_and_its_parameters_are_decoded() {
        let text = "GET /v1/why?event=a%3Ab:00ff:3&tenant=t HTTP/1.1\r\nHost: localhost:1\r\nAccept: x\r\n\r\n";
        let asked = question(text.as_bytes(), true).unwrap().unwrap();
        assert_eq!((&*asked.method, &*asked.path, &*asked.accept), ("GET", "/v1/why", "x"));
        assert_eq!(
            (asked.value("event").as_deref(), asked.value("tenant").as_deref()),
            (Some("a:b:00ff:3"), Some("t"))
        );
        assert_eq!(asked.value("nothing"), None);
        for cut in 0..text.len() {
            assert_eq!(question(&text.as_bytes()[..cut], true), Ok(None), "{cut}");
        }
    }

    #[test]
    fn foreign_names_and_endless_heads_are_refused() {
        let said = |text: &str, by_tcp| question(text.as_bytes(), by_tcp).map(|asked| asked.is_some());
        for (host, want) in [
            ("127.0.0.1:7778", Ok(true)),
            ("[::1]:7778", Ok(true)),
            ("localhost", Ok(true)),
            ("evil.example:7778", Err(Unheard::ForeignHost)),
            ("10.0.0.1", Err(Unheard::ForeignHost)),
            ("", Err(Unheard::ForeignHost)),
        ] {
            assert_eq!(said(&format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n"), true), want, "{host}");
        }
        assert_eq!(said("GET /metrics HTTP/1.1\r\n\r\n", false), Ok(true), "the socket needs no name");
        let long = format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(HEAD_BYTES_MAX));
        assert_eq!(said(&long, false), Err(Unheard::TooLong));
        assert_eq!(said("\x16\x03\x01\r\n\r\n", false), Err(Unheard::Malformed));
    }
}
