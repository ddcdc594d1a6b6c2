//! Reading the request head.

use super::{AUTH_PREFIX, HEAD_BYTES_MAX, RESUME_PREFIX, SUBPROTOCOLS};
use shards::names::is_name;
use std::borrow::Cow;

/// Header lines a request may have; browsers send about 15.
pub(super) const HEADERS_MAX: usize = 64;

/// What the bytes so far amount to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Head<'a> {
    /// More bytes are needed.
    Incomplete,
    /// One whole request head, or one that can no longer become right.
    Complete {
        /// What is asked.
        request: Request<'a>,
        /// Bytes of the head; what follows belongs to what the connection becomes.
        bytes: usize,
    },
}

/// What a client asks of the port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request<'a> {
    /// A WebSocket on `/v1/ws`.
    Upgrade(Upgrade<'a>),
    /// A WebSocket on `/echo`, the door for conformance suites.
    Echo(Upgrade<'a>),
    /// `/readyz`: may clients be sent here?
    Ready,
    /// `/healthz`: does the process turn?
    Health,
    /// No such path.
    NotFound,
    /// Refused; answer with [`super::append_bad`].
    Bad(Bad),
}

/// The paths that are served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// Commands and events.
    Events,
    /// The door for conformance suites.
    Echo,
    /// May clients be sent here?
    Ready,
    /// Does the process turn?
    Health,
}

impl Route {
    /// All of them, with their paths; tests walk it.
    pub const ALL: &'static [(&'static str, Route)] =
        &[("/v1/ws", Route::Events), ("/echo", Route::Echo), ("/readyz", Route::Ready), ("/healthz", Route::Health)];

    fn of(path: &str) -> Option<Route> {
        Route::ALL.iter().find(|(known, _)| *known == path).map(|(_, route)| *route)
    }
}

/// A well-formed upgrade.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upgrade<'a> {
    /// Session the client lives on, a valid name.
    pub session: Option<Cow<'a, str>>,
    /// Client id, a valid name.
    pub client: Option<Cow<'a, str>>,
    /// `Sec-WebSocket-Key`.
    pub key: &'a str,
    /// The subprotocol to accept; `None` where the client offered none, which means the first of [`SUBPROTOCOLS`].
    pub subprotocol: Option<&'static str>,
    /// What is said to be a resume token; nobody has verified it.
    pub resume: Option<&'a str>,
    /// What says who the client is; nobody has verified it.
    pub token: Option<&'a str>,
    /// The page that asks, where a browser does.
    pub origin: Option<&'a str>,
}

/// What is wrong with a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Bad {
    /// Not HTTP/1.x.
    Malformed,
    /// The beginning of TLS.
    Tls,
    /// More than [`HEAD_BYTES_MAX`] bytes or 64 header lines.
    TooLong,
    /// Not `GET`.
    Method,
    /// No `Upgrade: websocket`.
    NoUpgrade,
    /// No `Connection: upgrade`, or HTTP/1.0.
    NoConnectionUpgrade,
    /// `Sec-WebSocket-Version` is not 13.
    Version,
    /// `Sec-WebSocket-Key` is missing or not 16 bytes in base64.
    Key,
    /// Only unknown subprotocols are offered.
    Subprotocol,
    /// `session=` is no name.
    Session,
    /// `client=` is no name.
    Client,
    /// A parameter is given twice.
    RepeatedParameter,
    /// Two tokens say who the client is.
    RepeatedToken,
}

impl Bad {
    /// All of them, for tables and tests.
    pub const ALL: &'static [Bad] = &[
        Bad::Malformed,
        Bad::Tls,
        Bad::TooLong,
        Bad::Method,
        Bad::NoUpgrade,
        Bad::NoConnectionUpgrade,
        Bad::Version,
        Bad::Key,
        Bad::Subprotocol,
        Bad::Session,
        Bad::Client,
        Bad::RepeatedParameter,
        Bad::RepeatedToken,
    ];
}

/// Reads a request head from the first bytes of a connection. `bytes` is everything received so far; a closed echo door
/// is no path at all.
pub fn parse(bytes: &[u8], echo_open: bool) -> Head<'_> {
    let bad = |bad| Head::Complete { request: Request::Bad(bad), bytes: bytes.len() };
    // A handshake record: nothing else can come of it.
    if bytes.first() == Some(&22) {
        return bad(Bad::Tls);
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let head_bytes = match request.parse(&bytes[..bytes.len().min(HEAD_BYTES_MAX)]) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) if bytes.len() >= HEAD_BYTES_MAX => return bad(Bad::TooLong),
        Ok(httparse::Status::Partial) => return Head::Incomplete,
        Err(httparse::Error::TooManyHeaders) => return bad(Bad::TooLong),
        Err(_) => return bad(Bad::Malformed),
    };
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return bad(Bad::Malformed);
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let request = match Route::of(path) {
        None => Request::NotFound,
        Some(Route::Echo) if !echo_open => Request::NotFound,
        Some(_) if method != "GET" => Request::Bad(Bad::Method),
        Some(Route::Ready) => Request::Ready,
        Some(Route::Health) => Request::Health,
        Some(Route::Events) => {
            upgrade(query, version, request.headers, true).map_or_else(Request::Bad, Request::Upgrade)
        }
        Some(Route::Echo) => upgrade(query, version, request.headers, false).map_or_else(Request::Bad, Request::Echo),
    };
    Head::Complete { request, bytes: head_bytes }
}

fn upgrade<'a>(query: &'a str, version: u8, headers: &[httparse::Header<'a>], ours: bool) -> Result<Upgrade<'a>, Bad> {
    if !header_has_token(headers, "upgrade", "websocket") {
        return Err(Bad::NoUpgrade);
    }
    if version == 0 || !header_has_token(headers, "connection", "upgrade") {
        return Err(Bad::NoConnectionUpgrade);
    }
    if header(headers, "sec-websocket-version") != Some("13") {
        return Err(Bad::Version);
    }
    let key = header(headers, "sec-websocket-key").filter(|key| is_key(key)).ok_or(Bad::Key)?;
    let origin = origin(headers);
    if !ours {
        return Ok(Upgrade { session: None, client: None, key, subprotocol: None, resume: None, token: None, origin });
    }

    let offered = values(headers, "sec-websocket-protocol").flat_map(|line| line.split(',')).map(str::trim);
    let (mut any_offered, mut subprotocol, mut resume) = (false, None, None);
    let mut token = bearer(headers)?;
    for name in offered.filter(|name| !name.is_empty()) {
        any_offered = true;
        // The client's order is its preference.
        subprotocol = subprotocol.or_else(|| SUBPROTOCOLS.iter().find(|known| **known == name).copied());
        resume = resume.or_else(|| name.strip_prefix(RESUME_PREFIX));
        if let Some(shown) = name.strip_prefix(AUTH_PREFIX)
            && token.replace(shown).is_some()
        {
            return Err(Bad::RepeatedToken);
        }
    }
    if any_offered && subprotocol.is_none() {
        return Err(Bad::Subprotocol);
    }

    let mut session = None;
    let mut client = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (place, bad) = match name {
            "session" => (&mut session, Bad::Session),
            "client" => (&mut client, Bad::Client),
            // Unknown parameters are ignored, as unknown fields are.
            _ => continue,
        };
        if place.is_some() {
            return Err(Bad::RepeatedParameter);
        }
        *place = Some(percent_decoded(value).filter(|value| is_name(value.as_bytes())).ok_or(bad)?);
    }
    Ok(Upgrade { session, client, key, subprotocol, resume, token, origin })
}

/// The token in `Authorization: Bearer`. Another scheme is a proxy's affair.
fn bearer<'a>(headers: &[httparse::Header<'a>]) -> Result<Option<&'a str>, Bad> {
    let of = |value: &'a str| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    };
    let mut tokens = values(headers, "authorization").filter_map(of);
    let first = tokens.next();
    if tokens.next().is_some() { Err(Bad::RepeatedToken) } else { Ok(first) }
}

/// The page that asks. One that is said twice is no page that anybody has allowed.
fn origin<'a>(headers: &[httparse::Header<'a>]) -> Option<&'a str> {
    let mut all = values(headers, "origin");
    let first = all.next()?;
    Some(if all.next().is_some() { "" } else { first })
}

/// Values of a header, trimmed.
fn values<'a>(headers: &[httparse::Header<'a>], name: &str) -> impl Iterator<Item = &'a str> {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        // What is no text is no value that is looked for, and still a value: it must not hide that a header came twice.
        .map(|header| std::str::from_utf8(header.value).map_or("\u{fffd}", str::trim))
}

/// The only value of a header.
fn header<'a>(headers: &[httparse::Header<'a>], name: &str) -> Option<&'a str> {
    let mut all = values(headers, name);
    let first = all.next()?;
    all.next().is_none().then_some(first)
}

fn header_has_token(headers: &[httparse::Header<'_>], name: &str, token: &str) -> bool {
    values(headers, name).flat_map(|line| line.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// 16 bytes in base64: 22 digits and two pads.
fn is_key(key: &str) -> bool {
    let digit = |b: u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'/';
    key.len() == 24 && key.ends_with("==") && key.bytes().take(22).all(digit)
}

/// `None` where an escape is broken or the bytes are no UTF-8. A `+` stands for itself: names hold no spaces.
fn percent_decoded(value: &str) -> Option<Cow<'_, str>> {
    if !value.contains('%') {
        return Some(Cow::Borrowed(value));
    }
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
    String::from_utf8(plain).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "GET /v1/ws?session=demo&client=a%3Ab HTTP/1.1\r\nHost: x\r\nUpgrade: WebSocket\r\n\
        Connection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt, tidegate.v1.json\r\n\r\n";

    fn request(text: &str) -> Request<'_> {
        match parse(text.as_bytes(), true) {
            Head::Complete { request, .. } => request,
            Head::Incomplete => panic!("incomplete: {text}"),
        }
    }

    #[test]
    fn a_good_upgrade_is_read_and_the_rest_left() {
        let bytes = [GOOD.as_bytes(), b"\x81\x80"].concat();
        let Head::Complete { request: Request::Upgrade(upgrade), bytes: head } = parse(&bytes, true) else { panic!() };
        assert_eq!(head, GOOD.len());
        assert_eq!(upgrade.session.as_deref(), Some("demo"));
        assert_eq!(upgrade.client.as_deref(), Some("a:b"));
        assert_eq!(upgrade.subprotocol, Some("tidegate.v1.json"));
        for cut in 0..GOOD.len() {
            assert_eq!(parse(&GOOD.as_bytes()[..cut], true), Head::Incomplete, "{cut}");
        }
    }

    /// The first of two versions was passed over because it was no text, and the second believed.
    #[test]
    fn regression_a_header_that_is_no_text_still_counts() {
        let split = GOOD.find("Sec-WebSocket-Version").unwrap();
        let bytes =
            [&GOOD.as_bytes()[..split], b"Sec-WebSocket-Version: \xee13\r\n", &GOOD.as_bytes()[split..]].concat();
        let Head::Complete { request, .. } = parse(&bytes, true) else { panic!("incomplete") };
        assert_eq!(request, Request::Bad(Bad::Version));
    }

    #[test]
    fn what_is_wrong_is_told_apart() {
        for (from, to, want) in [
            ("GET", "POST", Bad::Method),
            ("HTTP/1.1", "HTTP/3.1", Bad::Malformed),
            ("Upgrade: WebSocket\r\n", "", Bad::NoUpgrade),
            ("keep-alive, Upgrade", "keep-alive", Bad::NoConnectionUpgrade),
            ("HTTP/1.1", "HTTP/1.0", Bad::NoConnectionUpgrade),
            ("Version: 13", "Version: 8", Bad::Version),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhl", Bad::Key),
            ("Sec-WebSocket-Key", "X-Key", Bad::Key),
            ("mqtt, tidegate.v1.json", "mqtt", Bad::Subprotocol),
            ("session=demo", "session=de%20mo", Bad::Session),
            ("session=demo", "session=", Bad::Session),
            ("client=a%3Ab", "client=a%3", Bad::Client),
            ("client=a%3Ab", "client=a%ff", Bad::Client),
            ("client=a%3Ab", "session=b", Bad::RepeatedParameter),
        ] {
            assert!(GOOD.contains(from), "{from}");
            assert_eq!(request(&GOOD.replacen(from, to, 1)), Request::Bad(want), "{from} -> {to}");
        }
    }

    #[test]
    fn a_token_is_found_among_the_subprotocols_and_is_none_of_them() {
        for (offered, want) in [
            ("tidegate.v1.json, tidegate.resume.AQEA-_z", Some("AQEA-_z")),
            ("tidegate.resume.AQEA,tidegate.v1.json", Some("AQEA")),
            ("mqtt, tidegate.v1.json\r\nSec-WebSocket-Protocol: tidegate.resume.A, tidegate.resume.B", Some("A")),
            ("tidegate.v1.json, tidegate.resume", None),
            ("tidegate.v1.json, x.tidegate.resume.A", None),
        ] {
            let text = GOOD.replace("mqtt, tidegate.v1.json", offered);
            let Request::Upgrade(upgrade) = request(&text) else { panic!("{offered}") };
            assert_eq!((upgrade.subprotocol, upgrade.resume), (Some("tidegate.v1.json"), want), "{offered}");
        }
        let alone = GOOD.replace("mqtt, tidegate.v1.json", "tidegate.resume.AQEA");
        assert_eq!(request(&alone), Request::Bad(Bad::Subprotocol), "browsers close where none is named");
    }

    #[test]
    fn a_token_comes_as_a_header_or_among_the_subprotocols_and_once() {
        let lines = |lines: &str| GOOD.replace("Sec-WebSocket-Protocol: mqtt, tidegate.v1.json\r\n", lines);
        for (text, want) in [
            ("Authorization: Bearer a.b.c\r\n", Some("a.b.c")),
            ("authorization: bearer  a.b.c \r\n", Some("a.b.c")),
            ("Authorization: Basic YTpi\r\n", None),
            ("Authorization: Bearer\r\n", None),
            ("Sec-WebSocket-Protocol: tidegate.auth.a.b-_c, tidegate.v1.json\r\n", Some("a.b-_c")),
            ("Authorization: Basic YTpi\r\nSec-WebSocket-Protocol: tidegate.v1.json, tidegate.auth.a\r\n", Some("a")),
        ] {
            let text = lines(text);
            let Request::Upgrade(upgrade) = request(&text) else { panic!("{text}") };
            assert_eq!(upgrade.token, want, "{text}");
        }
        for text in [
            "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n",
            "Authorization: Bearer a\r\nSec-WebSocket-Protocol: tidegate.v1.json, tidegate.auth.a\r\n",
            "Sec-WebSocket-Protocol: tidegate.v1.json, tidegate.auth.a, tidegate.auth.b\r\n",
        ] {
            assert_eq!(request(&lines(text)), Request::Bad(Bad::RepeatedToken), "{text}");
        }
        for (text, want) in [
            ("", None),
            ("Origin: https://a.example\r\n", Some("https://a.example")),
            ("Origin: https://a.example\r\nOrigin: https://b.example\r\n", Some("")),
        ] {
            let text = lines(text);
            let Request::Upgrade(upgrade) = request(&text) else { panic!("{text}") };
            assert_eq!(upgrade.origin, want, "{text}");
        }
    }

    /// Each path of the table is one, and nothing else is.
    #[test]
    fn the_table_of_paths_is_what_is_served() {
        for (path, _) in Route::ALL {
            assert_ne!(request(&GOOD.replacen("/v1/ws", path, 1)), Request::NotFound, "{path}");
        }
        for path in ["/", "/v1", "/v1/ws/", "/V1/ws", "/v1/ws/x", "/readyz/"] {
            assert_eq!(request(&GOOD.replacen("/v1/ws", path, 1)), Request::NotFound, "{path}");
        }
    }

    #[test]
    fn no_subprotocol_means_the_first_and_other_paths_answer_for_themselves() {
        let bare = GOOD.replace("Sec-WebSocket-Protocol: mqtt, tidegate.v1.json\r\n", "");
        let Request::Upgrade(upgrade) = request(&bare) else { panic!() };
        assert_eq!(upgrade.subprotocol, None);
        assert!(matches!(request(&GOOD.replacen("/v1/ws", "/echo", 1)), Request::Echo(_)));
        let echo = GOOD.replacen("/v1/ws", "/echo", 1);
        let closed = parse(echo.as_bytes(), false);
        assert!(matches!(closed, Head::Complete { request: Request::NotFound, .. }), "a closed door is no path");
        assert_eq!(request("GET /readyz HTTP/1.0\r\n\r\n"), Request::Ready);
        assert_eq!(request("GET /healthz?x HTTP/1.1\r\n\r\n"), Request::Health);
        assert_eq!(request("GET / HTTP/1.1\r\n\r\n"), Request::NotFound);
    }

    #[test]
    fn a_head_without_end_is_refused() {
        let long = format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(HEAD_BYTES_MAX));
        assert_eq!(request(&long), Request::Bad(Bad::TooLong));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: 1\r\n".repeat(HEADERS_MAX + 1));
        assert_eq!(request(&many), Request::Bad(Bad::TooLong));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(cut in 0usize..400, at in 0usize..400, byte: u8) {
            let mut bytes = GOOD.as_bytes().to_vec();
            if let Some(b) = bytes.get_mut(at) { *b = byte; }
            bytes.truncate(cut);
            let _ = parse(&bytes, true);
        }
    }
}
