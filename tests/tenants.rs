//! Tenants are apart: one can neither learn of another, nor read it, nor disturb it. Every command of the wire's table and every path
//! of the server is tried with another tenant's names.
//!
//! ```text
//!   server 1   bcorp: everything PROTOCOL.md shows ─► acme: the same, under the same names ─► bcorp is as it was
//!   server 2                                          acme: the same                           and acme heard the same, word for word
//! ```
//! A command that is added to the table needs an example in PROTOCOL.md, and is walked from then on.

use base64::Engine as _;
use serde_json::{Value, json};
use shards::names::is_name;
use shards::rights::Capability;
use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use tidegate::auth::{Algorithm, PrivateKey, Wish};
use tidegate::http::Route;
use tidegate::wire::decode;
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

const DOCUMENT: &str = include_str!("../src/wire/PROTOCOL.md");
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Stands in everything that the other tenant says.
const SECRET: &str = "nobody-else-may-read-this";
/// The other tenant's client.
const CLIENT: &str = "bob-of-bcorp";

/// Every command that the document shows, one by one.
fn examples() -> Vec<Value> {
    let mut inside = false;
    let mut all = Vec::new();
    for line in DOCUMENT.lines() {
        if line.starts_with("```") {
            inside = line == "```json client";
        } else if inside {
            match serde_json::from_str(line) {
                Ok(Value::Array(commands)) => all.extend(commands),
                Ok(command) => all.push(command),
                // What is no JSON is no command.
                Err(_) => {}
            }
        }
    }
    all
}

#[test]
fn every_command_of_the_table_has_an_example() {
    let examples = examples();
    let shown: HashSet<&str> = examples.iter().filter_map(|command| command["type"].as_str()).collect();
    let lacking: Vec<&str> = decode::commands().filter(|name| !shown.contains(name)).collect();
    assert!(lacking.is_empty(), "PROTOCOL.md shows no {lacking:?}: give an example, so that it is walked");
}

/// A server with a key, as long as this lives.
struct Server {
    child: Child,
    authority: String,
    folder: PathBuf,
    key: PrivateKey,
}

impl Server {
    fn start(name: &str) -> Server {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tenants-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let key = PrivateKey::make(Algorithm::EdDsa, "k").unwrap();
        std::fs::write(folder.join("keys.json"), key.public_text()).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let keys = format!("auth_keys_file={}", folder.join("keys.json").display());
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["serve", "--shards", "2", "--set", &keys, "--listen", &format!("127.0.0.1:{port}"), "--data"])
            .arg(folder.join("data"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let (ready, is_ready) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line.starts_with("ready http://") {
                    let _ = ready.send(());
                }
            }
        });
        is_ready.recv_timeout(PATIENCE).expect("the server prints its ready line");
        Server { child, authority: format!("127.0.0.1:{port}"), folder, key }
    }

    /// Everything, in one tenant.
    fn token(&self, tenant: &str, client: &str) -> String {
        let (topics, names) = ([">".to_string()], ["*".to_string()]);
        let grants = Capability::ALL.map(|capability| match capability {
            Capability::Publish | Capability::Subscribe => (capability, topics.as_slice()),
            _ => (capability, names.as_slice()),
        });
        let issued_s = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let wish = Wish {
            tenant,
            client: Some(client),
            audience: "tidegate",
            issued_s,
            expires_s: issued_s + 600,
            token_id: "t",
            grants: &grants,
        };
        self.key.sign(&wish).unwrap()
    }

    fn connect(&self, tenant: &str, client: &str, query: &str) -> Walker {
        let mut request = format!("ws://{}/v1/ws?{query}", self.authority).into_client_request().unwrap();
        let bearer = format!("Bearer {}", self.token(tenant, client));
        request.headers_mut().insert("Authorization", bearer.parse().unwrap());
        let stream = TcpStream::connect(&self.authority).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let socket = tungstenite::client(request, stream).unwrap().0;
        let mut walker = Walker { socket, number: 0, heard: String::new() };
        assert_eq!(walker.frame()["client"], client);
        walker
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

struct Walker {
    socket: WebSocket<TcpStream>,
    number: u64,
    /// Every byte that came.
    heard: String,
}

impl Walker {
    fn frame(&mut self) -> Value {
        loop {
            if let Message::Text(text) = self.socket.read().expect("a frame") {
                self.heard.push_str(&text);
                return serde_json::from_str(&text).unwrap();
            }
        }
    }

    /// The answer to a command.
    fn ask(&mut self, mut command: Value) -> Value {
        self.number += 1;
        command["id"] = self.number.into();
        self.socket.send(Message::text(command.to_string())).unwrap();
        loop {
            let frame = self.frame();
            if frame["id"] == command["id"] {
                return frame;
            }
        }
    }

    /// The code that the server closes with.
    fn closed(&mut self) -> Option<u16> {
        loop {
            match self.socket.read() {
                Ok(Message::Close(frame)) => return frame.map(|frame| frame.code.into()),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }

    /// Sends every example; the answers, without what is made by chance or counted over all tenants.
    fn walk(&mut self) -> Vec<(String, Value)> {
        let all = examples();
        let answer = |command: Value| {
            let text = command.to_string();
            let mut answer = masked(self.ask(command));
            // What has come by now to be acknowledged is a matter of time.
            if text.contains("\"type\":\"ack\"") && answer["refusal"] == "bad_credit" {
                answer = json!({ "id": answer["id"], "type": "acked" });
            }
            (text, answer)
        };
        all.into_iter().map(answer).collect()
    }
}

/// Epochs are made by chance, times are times; places in slices are counted over all sessions of a slice.
fn masked(mut value: Value) -> Value {
    match &mut value {
        Value::Array(items) => items.iter_mut().for_each(|item| *item = masked(item.take())),
        Value::Object(fields) => {
            for (key, field) in fields.iter_mut() {
                *field = match (key.as_str(), &*field) {
                    ("time" | "at" | "position" | "epoch" | "shard" | "token" | "expires" | "retry_after_ms", _) => {
                        Value::Null
                    }
                    ("event_id" | "prev_event_id", Value::String(id)) => {
                        let mut parts = id.rsplitn(3, ':');
                        let (offset, _, session) = (parts.next(), parts.next(), parts.next());
                        json!([session, offset])
                    }
                    ("data", _) => field.take(),
                    _ => masked(field.take()),
                };
            }
        }
        _ => {}
    }
    value
}

/// What the other tenant can see of itself.
fn state(walker: &mut Walker, sessions: &[&str]) -> Vec<Value> {
    let mut seen = Vec::new();
    for session in sessions {
        seen.push(walker.ask(json!({ "type": "history", "session": session })));
        seen.push(walker.ask(json!({ "type": "subscribe", "session": session, "from": { "marker": "planner" } })));
        walker.ask(json!({ "type": "unsubscribe", "session": session }));
    }
    seen.iter_mut().for_each(|frame| frame["id"] = Value::Null);
    seen.iter_mut().for_each(without_presence);
    seen
}

/// Takes away what the server logs of comings and goings, which comes in its own time; they are this tenant's.
fn without_presence(frame: &mut Value) {
    if let Some(events) = frame.get_mut("events").and_then(Value::as_array_mut) {
        events.retain(|event| {
            let is_log = event["topic"] == "$presence";
            assert!(!is_log || !event.to_string().contains("thief"), "somebody of the other tenant: {event}");
            !is_log
        });
    }
}

#[test]
fn a_tenant_neither_learns_of_another_nor_disturbs_it() {
    let examples = examples();
    let named = examples.iter().filter_map(|command| command["session"].as_str());
    let sessions: HashSet<&str> = named.filter(|session| is_name(session.as_bytes())).collect();
    let mut sessions: Vec<&str> = sessions.into_iter().collect();
    sessions.sort_unstable();
    assert!(sessions.contains(&"demo"));

    let both = Server::start("both");
    let mut theirs = both.connect("bcorp", CLIENT, "");
    theirs.walk();
    let secret = |session: &str, n: u32| json!({ "type": "publish", "session": session, "topic": "chat.secret", "message_id": format!("secret-{n}"), "data": SECRET });
    for session in &sessions {
        assert_eq!(theirs.ask(secret(session, 1))["type"], "published", "{session}");
    }
    // Others of the tenant that listen to everything, and one with a life.
    let mut listener = both.connect("bcorp", "listener", "");
    listener.ask(json!({ "type": "subscribe", "patterns": [">"] }));
    listener.ask(json!({ "type": "presence.watch", "session": "demo" }));
    let mut lives = both.connect("bcorp", "lives", "");
    let life = lives.ask(json!({ "type": "resume" }));
    let resume_token = life["token"].as_str().unwrap().to_owned();
    let before = state(&mut theirs, &sessions);
    listener.ask(json!({ "type": "ping" }));
    let heard_before = listener.heard.len();

    // The same names, of clients too; on every shard, and where the session lives.
    let mut ours = both.connect("acme", CLIENT, "");
    let answers = ours.walk();
    let alone = Server::start("alone");
    let mut control = alone.connect("acme", CLIENT, "");
    let expected = control.walk();
    for ((command, got), (_, want)) in answers.iter().zip(&expected) {
        assert_eq!(got, want, "{command}: the answer tells that another tenant is there");
    }
    let stolen = |walker: &mut Walker| walker.ask(json!({ "type": "resume", "token": resume_token }));
    let mut thief = both.connect("acme", "lives", "session=demo");
    let (there, elsewhere) = (stolen(&mut thief), stolen(&mut alone.connect("acme", "lives", "session=demo")));
    assert_eq!((&there["refusal"], &there), (&json!("bad_token"), &elsewhere));

    for session in &sessions {
        let mut enters = both.connect("acme", "thief", &format!("session={session}"));
        assert_eq!(enters.ask(json!({ "type": "presence.enter", "session": session, "log": true }))["type"], "entered");
    }

    // It listens to everything it may while the other one works on.
    let mut listens = both.connect("acme", "listener", "");
    listens.ask(json!({ "type": "subscribe", "patterns": [">"], "from": "earliest" }));
    for session in &sessions {
        listens.ask(json!({ "type": "subscribe", "session": session, "from": "earliest" }));
        listens.ask(json!({ "type": "presence.watch", "session": session }));
        listens.ask(json!({ "type": "receipts.watch", "session": session }));
    }
    for session in &sessions {
        assert_eq!(theirs.ask(secret(session, 2))["type"], "published");
        theirs.ask(json!({ "type": "presence.enter", "session": session, "data": SECRET }));
    }
    std::thread::sleep(Duration::from_millis(300));
    for walker in [&mut ours, &mut thief, &mut listens] {
        walker.ask(json!({ "type": "ping" }));
        assert!(!walker.heard.contains(SECRET), "another tenant's data");
    }
    // It has a client of that name itself; of the other one's names nothing else came.
    assert!(!listens.heard.contains("lives"), "another tenant's client");

    // And nothing of the other one has changed, nor did anybody there hear of it.
    listener.ask(json!({ "type": "ping" }));
    let heard = &listener.heard[heard_before..];
    let frames = heard.matches("\"type\":\"event\"").count();
    assert_eq!(frames, sessions.len(), "the second secret of each session, and nothing of the other tenant: {heard}");
    let mut after = state(&mut theirs, &sessions);
    for (before, after) in before.iter().zip(&mut after) {
        // But for what it has said itself since.
        if let Some(events) = after.get_mut("events").and_then(Value::as_array_mut) {
            let said = events.split_off(before["events"].as_array().unwrap().len());
            assert!(said.iter().any(|event| event["message_id"] == "secret-2"), "{said:?}");
            // The server answers jobs that nobody took, in the tenant's own name.
            let own = |event: &&Value| event["client"] == CLIENT || event["client"] == "$server";
            assert_eq!(said.iter().filter(own).count(), said.len(), "{said:?}");
        }
        for moved in ["next", "tail"] {
            if before["type"] == "history" {
                after[moved] = before[moved].clone();
            }
        }
        assert_eq!(before, after);
    }

    // Whom one tenant revokes, it revokes in itself.
    let mut ruler = both.connect("acme", "ruler", "");
    assert_eq!(ruler.ask(json!({ "type": "revoke.client", "name": "lives" }))["type"], "revoked");
    assert_eq!(thief.closed(), Some(4202), "its own client of that name");
    // All tokens here have this name, its own too.
    ruler.socket.send(Message::text(r#"{"type":"revoke.token","name":"t"}"#)).unwrap();
    assert_eq!(ruler.closed(), Some(4202));
    for walker in [&mut lives, &mut theirs, &mut listener] {
        assert_eq!(walker.ask(json!({ "type": "ping" }))["type"], "pong", "the other tenant's");
    }
}

/// Every path, and every way to show a token, with another tenant's names: the answer is that of names that nobody has.
#[test]
fn no_path_tells_of_another_tenant() {
    let server = Server::start("paths");
    let mut theirs = server.connect("bcorp", CLIENT, "session=demo");
    let publish = json!({ "type": "publish", "session": "demo", "topic": "chat.a", "message_id": "m", "data": SECRET });
    assert_eq!(theirs.ask(publish)["type"], "published");
    let token = server.token("acme", "ann");
    let key = base64::engine::general_purpose::STANDARD.encode([7u8; 16]);
    for (path, _) in Route::ALL {
        for upgrade in [true, false] {
            let answer = |session: &str, client: &str| {
                let mut lines = format!(
                    "GET {path}?session={session}&client={client} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
                );
                if upgrade {
                    lines.push_str("Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n");
                    lines.push_str(&format!("Sec-WebSocket-Key: {key}\r\n"));
                }
                let mut stream = TcpStream::connect(&server.authority).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.write_all(format!("{lines}\r\n").as_bytes()).unwrap();
                let mut bytes = Vec::new();
                let mut part = [0; 4096];
                // An upgrade that is accepted stays open: its head is enough.
                while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
                    match stream.read(&mut part).unwrap() {
                        0 => break,
                        read => bytes.extend_from_slice(&part[..read]),
                    }
                }
                let text = String::from_utf8_lossy(&bytes).into_owned();
                text.split("\r\n\r\n").next().unwrap_or_default().to_owned()
            };
            assert_eq!(answer("demo", CLIENT), answer("nowhere", "nobody"), "{path}");
            assert!(answer("demo", "ann").starts_with("HTTP/1.1 "), "{path}");
        }
    }
}
