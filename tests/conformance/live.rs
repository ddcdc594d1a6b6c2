//! The transcripts against a running server: one of its own per transcript, or the one at `TIDEGATE_URL`
//! (`ws://host:port`), where the sessions get names of their own.
//!
//! What no transcript can know is masked on both sides: times, `at`, positions, the shard. The first epoch a server
//! names stands for the one in the transcript. Replies and deliveries are two lanes, each in order; how they
//! interleave is open.

use crate::transcript::{self, Step, Transcript};
use serde_json::Value;
use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

/// Longest wait for one frame, or for a server to be ready.
const PATIENCE: Duration = Duration::from_secs(10);

/// The epoch that transcripts use.
const EPOCH: &str = "00f1e2d3c4b5a697";

#[test]
fn transcripts_hold_against_a_running_server() {
    let given = std::env::var("TIDEGATE_URL").ok();
    for transcript in transcript::all().iter().filter(|transcript| transcript.live) {
        // A server that is somebody else's is not stopped.
        if given.is_some() && transcript.steps.iter().any(|(_, step)| matches!(step, Step::Drain)) {
            continue;
        }
        let (server, authority, run) = match &given {
            Some(url) => {
                let authority = url.trim_start_matches("ws://").trim_end_matches('/').to_owned();
                let nanos = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
                (None, authority, format!("-{nanos:x}"))
            }
            None => {
                let server = Server::start();
                let authority = server.authority.clone();
                (Some(server), authority, String::new())
            }
        };
        let process = server.as_ref().map(|server| server.child.id());
        Player { transcript, authority, process, run, epoch: None, connections: HashMap::new() }.play();
        drop(server);
    }
}

/// A server that lives as long as this.
struct Server {
    child: Child,
    authority: String,
    data: PathBuf,
}

impl Server {
    fn start() -> Server {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let data =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("conformance-{}-{port}", std::process::id()));
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            // A goodbye takes long enough for what a transcript does in between.
            .args(["serve", "--shards", "2", "--set", "drain_grace_ms=2s"])
            .args(["--listen", &format!("127.0.0.1:{port}"), "--data"])
            .arg(&data)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let server = Server { child, authority: format!("127.0.0.1:{port}"), data };
        let (ready, is_ready) = mpsc::channel();
        std::thread::spawn(move || {
            // Reads to the end, so that the server never blocks on a full pipe.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line.starts_with("ready http://") {
                    let _ = ready.send(());
                }
            }
        });
        is_ready.recv_timeout(PATIENCE).expect("the server prints its ready line");
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.data);
    }
}

struct Player<'a> {
    transcript: &'a Transcript,
    authority: String,
    /// The server, where it is our own.
    process: Option<u32>,
    /// What is put behind `demo` in the names of sessions.
    run: String,
    /// The epoch that stands for [`EPOCH`].
    epoch: Option<String>,
    connections: HashMap<String, Connection>,
}

struct Connection {
    socket: WebSocket<TcpStream>,
    replies: VecDeque<Value>,
    deliveries: VecDeque<Value>,
}

impl Player<'_> {
    fn play(mut self) {
        for (number, step) in &self.transcript.steps {
            let at = format!("{}:{number}", self.transcript.file);
            match step {
                Step::Connect { connection, query } => {
                    let opened = self.connect(query, &at);
                    self.connections.insert(connection.clone(), opened);
                }
                Step::Send { connection, text, .. } => {
                    let text = self.as_sent(text);
                    self.socket(connection, &at).send(Message::text(text)).unwrap_or_else(|e| panic!("{at}: {e}"));
                }
                Step::Raw { connection, bytes } => {
                    self.socket(connection, &at).get_mut().write_all(bytes).unwrap_or_else(|e| panic!("{at}: {e}"));
                }
                Step::Expect { connection, text } => {
                    let want = masked(serde_json::from_str(text).unwrap());
                    let got = self.next(connection, is_delivery(&want), &at);
                    assert_eq!(got, want, "{at}");
                }
                Step::Close { connection, code, reason } => {
                    self.expect_close(connection, *code, reason.as_deref(), &at)
                }
                Step::Drop { connection } => self.finish(connection, &at),
                Step::Drain => {
                    let process = self.process.unwrap_or_else(|| panic!("{at}: the server is not ours"));
                    // SAFETY: sends a signal to a child that has not been waited for.
                    unsafe { libc::kill(process as i32, libc::SIGTERM) };
                }
            }
        }
        let open: Vec<String> = self.connections.keys().cloned().collect();
        for connection in open {
            self.finish(&connection, &format!("{}: end", self.transcript.file));
        }
    }

    fn connect(&self, query: &str, at: &str) -> Connection {
        let query = query.replace("session=demo", &format!("session=demo{}", self.run));
        let mut request = format!("ws://{}/v1/ws?{query}", self.authority).into_client_request().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", "tidegate.v1.json".parse().unwrap());
        let stream = TcpStream::connect(&self.authority).unwrap_or_else(|e| panic!("{at}: {e}"));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (socket, response) = tungstenite::client(request, stream).unwrap_or_else(|e| panic!("{at}: {e}"));
        assert_eq!(response.headers()["sec-websocket-protocol"], "tidegate.v1.json", "{at}");
        Connection { socket, replies: VecDeque::new(), deliveries: VecDeque::new() }
    }

    fn connection(&mut self, name: &str, at: &str) -> &mut Connection {
        self.connections.get_mut(name).unwrap_or_else(|| panic!("{at}: {name} is not connected"))
    }

    fn socket(&mut self, name: &str, at: &str) -> &mut WebSocket<TcpStream> {
        &mut self.connection(name, at).socket
    }

    /// The next frame of a lane.
    fn next(&mut self, name: &str, delivery: bool, at: &str) -> Value {
        loop {
            let connection = self.connection(name, at);
            let lane = if delivery { &mut connection.deliveries } else { &mut connection.replies };
            if let Some(frame) = lane.pop_front() {
                return frame;
            }
            let text = match connection.socket.read() {
                // A busy disk makes the server say so.
                Ok(Message::Text(text)) if text.starts_with("{\"type\":\"slow_down\"") => continue,
                Ok(Message::Text(text)) => text.to_string(),
                Ok(Message::Ping(_) | Message::Pong(_)) => continue,
                other => panic!("{at}: expected a frame, got {other:?}"),
            };
            let Some(frame) = self.as_told(&text) else { continue };
            let connection = self.connection(name, at);
            let lane = if is_delivery(&frame) { &mut connection.deliveries } else { &mut connection.replies };
            lane.push_back(frame);
        }
    }

    /// Nothing may be left but what the transcript told.
    fn finish(&mut self, name: &str, at: &str) {
        let ping = r#"{"type":"ping","id":"the end"}"#;
        self.socket(name, at).send(Message::text(ping)).unwrap_or_else(|e| panic!("{at}: {e}"));
        let last = self.next(name, false, at);
        assert_eq!(last["id"], "the end", "{at}: the transcript does not tell of {last}");
        let connection = self.connections.remove(name).unwrap();
        assert!(connection.deliveries.is_empty(), "{at}: the transcript does not tell of {:?}", connection.deliveries);
    }

    fn expect_close(&mut self, name: &str, code: u16, reason: Option<&str>, at: &str) {
        let mut connection = self.connections.remove(name).unwrap();
        loop {
            match connection.socket.read() {
                Ok(Message::Close(Some(close))) => {
                    assert_eq!(u16::from(close.code), code, "{at}");
                    if let Some(reason) = reason {
                        assert_eq!(close.reason, reason, "{at}");
                    }
                    break;
                }
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                other => panic!("{at}: expected a close, got {other:?}"),
            }
        }
        // Then the server ends the connection; a reset is what a client gets that still sends.
        match connection.socket.read() {
            Ok(frame) => panic!("{at}: after the close came {frame:?}"),
            Err(tungstenite::Error::Io(e)) if e.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("{at}: the socket stays open after the close")
            }
            Err(_) => {}
        }
    }

    fn as_sent(&self, text: &str) -> String {
        let named = text.replace("\"demo", &format!("\"demo{}", self.run));
        match &self.epoch {
            Some(epoch) => named.replace(EPOCH, epoch),
            None => named,
        }
    }

    /// A frame as the transcript would have it; `None` if it is of somebody else's session.
    fn as_told(&mut self, text: &str) -> Option<Value> {
        let own = format!("\"demo{}", self.run);
        let frame: Value = serde_json::from_str(text).unwrap();
        if frame["session"].as_str().is_some_and(|session| !session.starts_with(&own[1..])) {
            return None;
        }
        if self.epoch.is_none() {
            // Of a run of events the first: it may come before the answer to who published it.
            let of_event = |frame: &'_ Value| frame["event_id"].as_str()?.rsplit(':').nth(1).map(str::to_owned);
            let epoch = frame["epoch"].as_str().map(str::to_owned);
            self.epoch = epoch.or_else(|| of_event(&frame)).or_else(|| of_event(&frame["events"][0]));
        }
        let mut text = text.replace(&own, "\"demo");
        if let Some(epoch) = &self.epoch {
            text = text.replace(epoch, EPOCH);
        }
        Some(masked(serde_json::from_str(&text).unwrap()))
    }
}

fn is_delivery(frame: &Value) -> bool {
    const DELIVERIES: &[&str] = &[
        "event",
        "volatile",
        "gap",
        "stream.delta",
        "notice",
        "presence",
        "receipts",
        "job",
        "job.lost",
        "group.run",
        "group.lost",
    ];
    // A page of entries answers a command, or is news for a watcher.
    let news = frame["type"] == "entries" && frame.get("id").is_none();
    news || frame["type"].as_str().is_some_and(|kind| DELIVERIES.contains(&kind))
}

/// Puts fixed values where a server's own stand, if they are of the right form.
fn masked(mut value: Value) -> Value {
    match &mut value {
        Value::Array(items) => items.iter_mut().for_each(|item| *item = masked(item.take())),
        Value::Object(fields) => {
            for (key, field) in fields.iter_mut() {
                let text = field.as_str().unwrap_or("?");
                let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
                let is_place = |text: &str| text.split_once('.').is_some_and(|(a, b)| digits(a) && digits(b));
                *field = match key.as_str() {
                    "time" | "deadline" | "expires" if field.is_u64() => Value::from(0),
                    "lease" if text.split_once('.').is_some_and(|(_, nonce)| nonce.len() == 16) => Value::from("1.0"),
                    // Of a server that has just started, or not.
                    "complete" if field.is_boolean() => Value::from(false),
                    "shard" if field.is_u64() => Value::from(0),
                    "reconnect_after_ms" if field.is_u64() => Value::from(250),
                    "at" if is_place(text) => Value::from("0.0"),
                    "position" if text.is_empty() || text.split(',').all(is_place) => Value::from("0.0"),
                    "data" => field.take(),
                    _ => masked(field.take()),
                };
            }
        }
        _ => {}
    }
    value
}
