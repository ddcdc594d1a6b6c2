//! Writing the answer. Every body is one line that names the cure.

use super::{Bad, SUBPROTOCOLS};
use std::io::Write as _;
use tungstenite::handshake::derive_accept_key;

/// Accepts an upgrade. The subprotocol is named only where the client offered it.
pub fn append_switching(out: &mut Vec<u8>, key: &str, subprotocol: Option<&str>) {
    append(
        out,
        &["HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "],
    );
    append(out, &[&derive_accept_key(key.as_bytes()), "\r\n"]);
    if let Some(subprotocol) = subprotocol {
        append(out, &["Sec-WebSocket-Protocol: ", subprotocol, "\r\n"]);
    }
    append(out, &["\r\n"]);
}

/// Refuses a request and says why.
pub fn append_bad(out: &mut Vec<u8>, bad: Bad) {
    let (status, headers, body) = match bad {
        Bad::Malformed => ("400 Bad Request", "", "this is no HTTP/1.1 request: send GET /v1/ws HTTP/1.1"),
        Bad::Tls => ("400 Bad Request", "", "this port does not speak TLS: connect with ws:// or http://"),
        Bad::TooLong => (
            "431 Request Header Fields Too Large",
            "",
            "the request head is over 8192 bytes or 64 lines: send fewer and shorter headers",
        ),
        Bad::Method => ("405 Method Not Allowed", "Allow: GET\r\n", "only GET is served here: use GET"),
        Bad::NoUpgrade => (
            "426 Upgrade Required",
            "Upgrade: websocket\r\n",
            "this path speaks WebSocket: connect with a WebSocket client (Upgrade: websocket)",
        ),
        Bad::NoConnectionUpgrade => {
            ("400 Bad Request", "", "the upgrade is incomplete: send Connection: Upgrade over HTTP/1.1")
        }
        Bad::Version => (
            "426 Upgrade Required",
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
            "this WebSocket version is not spoken: send Sec-WebSocket-Version: 13",
        ),
        Bad::Key => ("400 Bad Request", "", "Sec-WebSocket-Key must be 16 random bytes in base64: send one"),
        Bad::Subprotocol => {
            return append_answer(
                out,
                "400 Bad Request",
                "",
                &format!("none of the offered subprotocols is spoken: offer {}, or none", SUBPROTOCOLS.join(" or ")),
            );
        }
        Bad::Session => {
            ("400 Bad Request", "", "session is no name: give 1 to 128 of A-Z a-z 0-9 _ . : - (percent-encoded)")
        }
        Bad::Client => {
            ("400 Bad Request", "", "client is no name: give 1 to 128 of A-Z a-z 0-9 _ . : - (percent-encoded)")
        }
        Bad::RepeatedToken => {
            ("400 Bad Request", "", "two tokens are given: send one, as Authorization: Bearer or as a subprotocol")
        }
        Bad::RepeatedParameter => ("400 Bad Request", "", "session or client is given twice: give each at most once"),
    };
    append_answer(out, status, headers, body);
}

/// `/readyz` and `/healthz`: 200 or 503.
pub fn append_health(out: &mut Vec<u8>, good: bool) {
    if good {
        append_answer(out, "200 OK", "", "ok");
    } else {
        append_unavailable(out, 1, "not ready: the server is starting or draining, ask again");
    }
}

/// The token that came is not accepted; `why` is what may be told.
pub fn append_unauthorized(out: &mut Vec<u8>, why: &str) {
    append_answer(out, "401 Unauthorized", "WWW-Authenticate: Bearer error=\"invalid_token\"\r\n", why);
}

/// The page that asks may not connect.
pub fn append_forbidden(out: &mut Vec<u8>) {
    append_answer(out, "403 Forbidden", "", "pages of this origin may not connect: add it to origins_allowed");
}

/// Plain words where TLS is spoken.
pub fn append_not_secure(out: &mut Vec<u8>) {
    append_answer(out, "400 Bad Request", "", "this port speaks TLS: connect with wss:// or https://");
}

/// No such path.
pub fn append_not_found(out: &mut Vec<u8>) {
    append_answer(out, "404 Not Found", "", "no such path: connect to /v1/ws, or GET /readyz or /healthz");
}

/// No room, or going away.
pub fn append_unavailable(out: &mut Vec<u8>, retry_after_s: u64, body: &str) {
    begin_answer(out, "503 Service Unavailable", body);
    // A Vec takes every write. Nothing is allocated: in a storm this is written thousands of times a second.
    let _infallible = write!(out, "Retry-After: {retry_after_s}\r\n");
    append(out, &["\r\n", body, "\n"]);
}

/// A whole answer with a one-line body, after which the connection is closed. `headers` are whole lines.
pub fn append_answer(out: &mut Vec<u8>, status: &str, headers: &str, body: &str) {
    begin_answer(out, status, body);
    append(out, &[headers, "\r\n", body, "\n"]);
}

fn begin_answer(out: &mut Vec<u8>, status: &str, body: &str) {
    append(out, &["HTTP/1.1 ", status, "\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: "]);
    // A Vec takes every write.
    let _infallible = write!(out, "{}", body.len() + 1);
    append(out, &["\r\nConnection: close\r\n"]);
}

fn append(out: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        out.extend_from_slice(part.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(fill: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        fill(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_accept_key_is_that_of_the_rfc() {
        assert_eq!(
            text(|out| append_switching(out, "dGhlIHNhbXBsZSBub25jZQ==", Some("tidegate.v1.json"))),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: tidegate.v1.json\r\n\r\n"
        );
    }

    #[test]
    fn every_answer_is_well_formed_and_one_line() {
        let mut all: Vec<String> = Bad::ALL.iter().map(|bad| text(|out| append_bad(out, *bad))).collect();
        all.push(text(append_not_found));
        all.push(text(append_forbidden));
        all.push(text(append_not_secure));
        all.push(text(|out| append_unauthorized(out, "no")));
        all.push(text(|out| append_health(out, true)));
        all.push(text(|out| append_health(out, false)));
        for answer in all {
            let mut headers = [httparse::EMPTY_HEADER; 16];
            let mut response = httparse::Response::new(&mut headers);
            let Ok(httparse::Status::Complete(head)) = response.parse(answer.as_bytes()) else { panic!("{answer}") };
            let length = response.headers.iter().find(|h| h.name == "Content-Length").unwrap().value;
            let body = &answer[head..];
            assert_eq!(std::str::from_utf8(length).unwrap(), body.len().to_string());
            assert_eq!(body.find('\n'), Some(body.len() - 1), "{answer}");
        }
    }
}
