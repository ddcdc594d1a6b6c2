//! One blocking connection to a server, for the subcommands `pub` and `sub`.
//!
//! ```text
//!   URL ──► TCP, TLS ──► upgrade (subprotocol tidegate.v1.json) ──► send(command) … next() → frame
//! ```

use super::Failure;
use super::line::{Line, LineArgs};
use serde_json::Value;
use std::net::TcpStream;
use std::time::Duration;
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::HandshakeError;
use tungstenite::http::{HeaderValue, Uri};
use tungstenite::protocol::{Message, WebSocket};

const SUBPROTOCOL: &str = "tidegate.v1.json";
const PATH: &str = "/v1/ws";
/// How long connecting and each awaited reply may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// A connection whose upgrade has been accepted.
pub(super) struct Client {
    socket: WebSocket<Line>,
}

impl Client {
    /// Connects to `url`; a URL without a path gets the server's. `session` names the one session that the connection is
    /// for, so that the server accepts it on the core that owns the session.
    pub fn connect(args: &LineArgs, url: &str, session: Option<&str>) -> Result<Client, Failure> {
        let uri: Uri = url.parse().map_err(|why| Failure::wrong(format!("--url {url:?}: {why}")))?;
        let (secure, authority) = match (uri.scheme_str(), uri.authority()) {
            (Some(scheme @ ("ws" | "wss")), Some(authority)) => (scheme == "wss", authority),
            _ => {
                return Err(Failure::wrong(format!(
                    "--url {url:?}: expected ws://HOST:PORT or wss://HOST:PORT, such as ws://127.0.0.1:7777"
                )));
            }
        };
        let path = if uri.path() == "/" { PATH } else { uri.path() };
        let query = match (uri.query(), session) {
            (Some(query), _) => format!("?{query}"),
            (None, Some(session)) => format!("?session={session}"),
            (None, None) => String::new(),
        };
        let mut request = format!("ws://{authority}{path}{query}")
            .into_client_request()
            .map_err(|why| Failure::wrong(format!("--url {url:?}: {why}")))?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(SUBPROTOCOL));
        if let Some(token) = &args.token {
            let bearer = HeaderValue::from_str(&format!("Bearer {}", token.trim()));
            let bearer = bearer.map_err(|_| Failure::wrong("--token: this is no token"))?;
            request.headers_mut().insert("Authorization", bearer);
        }

        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = TcpStream::connect((host, port)).map_err(|why| {
            Failure::failed(format!("cannot connect to {authority}: {why}; is `tidegate serve` running?"))
        })?;
        let prepared = stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(PATIENCE)));
        prepared.map_err(|why| Failure::failed(format!("socket to {authority}: {why}")))?;
        let line = match secure {
            true => Line::secure(stream, host, args.authority.as_deref())?,
            false => Line::Plain(stream),
        };
        match tungstenite::client(request, line) {
            Ok((socket, _response)) => Ok(Client { socket }),
            Err(HandshakeError::Failure(why)) => {
                Err(Failure::failed(format!("{authority} refused the upgrade: {why}")))
            }
            Err(HandshakeError::Interrupted(_)) => {
                Err(Failure::failed(format!("{authority} did not answer within {PATIENCE:?}")))
            }
        }
    }

    /// Sends one command.
    pub fn send(&mut self, command: String) -> Result<(), Failure> {
        self.socket.send(Message::text(command)).map_err(|why| Failure::failed(format!("connection lost: {why}")))
    }

    /// Waits for the next frame; from [`Client::wait_forever`] on without a limit.
    pub fn next(&mut self) -> Result<Frame, Failure> {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => {
                    let text = text.as_str().to_string();
                    let value: Value = serde_json::from_str(&text)
                        .map_err(|why| Failure::failed(format!("the server sent a frame that is not JSON: {why}")))?;
                    return Ok(Frame { text, value });
                }
                Ok(Message::Close(why)) => {
                    let why = why.map_or("no reason given".into(), |why| format!("{} {}", why.code, why.reason));
                    return Err(Failure::failed(format!("the server closed the connection: {why}")));
                }
                Ok(_) => {}
                Err(tungstenite::Error::Io(why)) if why.kind() == std::io::ErrorKind::WouldBlock => {
                    return Err(Failure::failed(format!("no answer within {PATIENCE:?}")));
                }
                Err(why) => return Err(Failure::failed(format!("connection lost: {why}"))),
            }
        }
    }

    /// Waits for the frame that answers the command with `id` 1; a refusal is an error. Frames in between are for `other`.
    pub fn reply(&mut self, mut other: impl FnMut(Frame) -> Result<(), Failure>) -> Result<Frame, Failure> {
        loop {
            let frame = self.next()?;
            if frame.kind() == "refused" && (frame.value.get("id").is_none() || frame.answers()) {
                let message = frame.value.get("message").and_then(Value::as_str).unwrap_or(&frame.text);
                let name = frame.value.get("refusal").and_then(Value::as_str).unwrap_or("refused");
                return Err(Failure::failed(format!("{name}: {message}")));
            }
            if frame.answers() {
                return Ok(frame);
            }
            other(frame)?;
        }
    }

    /// From now on silence is normal.
    pub fn wait_forever(&mut self) -> Result<(), Failure> {
        self.socket.get_ref().set_read_timeout(None).map_err(|why| Failure::failed(format!("socket: {why}")))
    }

    /// Says goodbye; what the peer makes of it no longer matters.
    pub fn close(mut self) {
        if self.socket.close(None).is_ok() && self.socket.flush().is_ok() {
            // Read up to the answer, so that the server sees an orderly close and not a reset.
            while self.socket.read().is_ok() {}
        }
    }
}

/// A server frame, as sent and parsed.
pub(super) struct Frame {
    /// The very text that came.
    pub text: String,
    /// The same, parsed.
    pub value: Value,
}

impl Frame {
    /// Its `type`.
    pub fn kind(&self) -> &str {
        self.value.get("type").and_then(Value::as_str).unwrap_or_default()
    }

    fn answers(&self) -> bool {
        self.value.get("id").and_then(Value::as_u64) == Some(1)
    }
}
