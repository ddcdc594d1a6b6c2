//! The real binary over real sockets: starting, refusing to start, echoing, stopping.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tungstenite::{Message, WebSocket};

/// A server process over a folder of its own; both go with it.
struct Server {
    child: Child,
    address: String,
    data: PathBuf,
    /// What it said before it was ready.
    said: String,
}

fn fresh_folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("tidegate-serve-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}

fn command(data: &PathBuf, listen: &str, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["serve", "--listen", listen, "--data"]).arg(data).args(flags);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Server {
    fn start(name: &str, flags: &[&str]) -> Self {
        Self::over(fresh_folder(name), "127.0.0.1:0", flags)
    }

    /// Another process over the same folder; the one before has ended.
    fn restart(&mut self, listen: &str, flags: &[&str]) {
        let fresh = Self::over(self.data.clone(), listen, flags);
        // The old value must not take the folder with it.
        let mut old = std::mem::replace(self, fresh);
        old.data = PathBuf::new();
    }

    fn over(data: PathBuf, listen: &str, flags: &[&str]) -> Self {
        let mut child = command(&data, listen, flags).spawn().unwrap();
        let mut said = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("ready before the end of its output").unwrap();
            if let Some(address) = line.strip_prefix("ready http://") {
                break address.to_owned();
            }
            said.push_str(&line);
            said.push('\n');
        };
        Server { child, address, data, said }
    }

    fn connect(&self, path: &str) -> WebSocket<TcpStream> {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        tungstenite::client(format!("ws://{}{path}", self.address), stream).unwrap().0
    }

    fn signal(&self, signal: i32) {
        // SAFETY: sends a signal to a child that has not been waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// SIGTERM; the exit status and what was written to stderr.
    fn stop(self) -> (Option<i32>, String) {
        self.signal(libc::SIGTERM);
        self.wait()
    }

    fn wait(mut self) -> (Option<i32>, String) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "the stop has a bound");
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status.code(), log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.data);
    }
}

fn next_text(socket: &mut WebSocket<TcpStream>) -> String {
    loop {
        match socket.read().unwrap() {
            // A busy disk makes the server say so.
            Message::Text(text) if text.starts_with("{\"type\":\"slow_down\"") => {}
            Message::Text(text) => return text.as_str().to_owned(),
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Runs a server that must not start; its exit status and its one line.
fn refused(data: &PathBuf, listen: &str, flags: &[&str]) -> (Option<i32>, String) {
    let output = command(data, listen, flags).output().unwrap();
    let line = String::from_utf8_lossy(&output.stderr)
        .lines()
        .filter(|line| line.starts_with("tidegate: "))
        .collect::<Vec<_>>()
        .join("|");
    (output.status.code(), line)
}

#[test]
fn says_what_it_opened_answers_readyz_and_ends_well() {
    let server = Server::start("ready", &["--shards", "2"]);
    assert!(server.said.contains("2 shards") && server.said.contains("memory plan"), "{}", server.said);
    let line = server.said.lines().find(|line| line.contains(" pub --url ws://")).expect("a line to paste");
    assert!(line.contains(env!("CARGO_BIN_EXE_tidegate")), "{line}");
    for (path, status) in [("/readyz", "200"), ("/healthz", "200"), ("/echo", "404"), ("/", "404"), ("/v1/ws", "426")] {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
    }
    let (status, log) = server.stop();
    assert_eq!(status, Some(0), "{log}");
}

#[test]
fn the_echo_door_returns_messages_of_every_size_and_pace() {
    let server = Server::start("echo", &["--echo", "--shards", "2"]);
    let mut socket = server.connect("/echo");
    for size in [0, 125, 126, 65_535, 65_536, 1 << 20, 16 << 20] {
        let message = Message::binary((0..size).map(|i| i as u8).collect::<Vec<u8>>());
        socket.send(message.clone()).unwrap();
        let back = loop {
            let message = socket.read().unwrap();
            if message.is_binary() {
                break message;
            }
        };
        assert!(back == message, "{size}");
    }
    // Pipelined far beyond every bound: held back by TCP, never lost.
    let mut writer = socket.get_ref().try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        for i in 0..300u32 {
            let mut frame = vec![0x82, 0xff];
            frame.extend_from_slice(&100_000u64.to_be_bytes());
            frame.extend_from_slice(&[0; 4]);
            frame.extend_from_slice(&i.to_be_bytes());
            frame.resize(14 + 100_000, 7);
            writer.write_all(&frame).unwrap();
        }
    });
    std::thread::sleep(Duration::from_millis(200));
    for i in 0..300u32 {
        loop {
            if let Message::Binary(bytes) = socket.read().unwrap() {
                assert_eq!((bytes.len(), &bytes[..4]), (100_000, &i.to_be_bytes()[..]));
                break;
            }
        }
    }
    sender.join().unwrap();
    socket.close(None).unwrap();
    while socket.read().is_ok() {}
    assert_eq!(server.stop().0, Some(0));
}

#[test]
fn events_published_on_one_shard_reach_subscribers_on_others() {
    let server = Server::start("events", &["--shards", "3"]);
    let mut subscribers: Vec<_> = (0..6).map(|_| server.connect("/v1/ws")).collect();
    for (i, subscriber) in subscribers.iter_mut().enumerate() {
        assert!(next_text(subscriber).contains("\"type\":\"welcome\""));
        for session in 0..8 {
            let text = format!("{{\"type\":\"subscribe\",\"session\":\"s{session}\",\"from\":\"earliest\"}}");
            subscriber.send(Message::text(text)).unwrap();
            let reply = next_text(subscriber);
            assert!(reply.contains("\"type\":\"subscribed\""), "{i}: {reply}");
        }
    }
    // Each publisher lives on its session's shard: handed over during the upgrade.
    for session in 0..8 {
        let mut publisher = server.connect(&format!("/v1/ws?session=s{session}&client=p{session}"));
        let welcome = next_text(&mut publisher);
        assert!(welcome.contains(&format!("\"client\":\"p{session}\"")), "{welcome}");
        for n in 0..20 {
            let text = format!(
                "{{\"type\":\"publish\",\"id\":{n},\"session\":\"s{session}\",\"topic\":\"chat.message\",\"message_id\":\"m{n}\",\"data\":{n}}}"
            );
            publisher.send(Message::text(text)).unwrap();
        }
        for n in 0..20 {
            let reply = next_text(&mut publisher);
            assert!(reply.contains("\"type\":\"published\"") && reply.contains(&format!(":{n}\"")), "{reply}");
        }
    }
    for subscriber in &mut subscribers {
        let mut next = [0u32; 8];
        for _ in 0..8 * 20 {
            let event = next_text(subscriber);
            let field = |name: &str| event.split(name).nth(1).and_then(|rest| rest.split(['"', ',', '}']).next());
            let session: usize = field("\"session\":\"s").unwrap().parse().unwrap();
            let data: u32 = field("\"data\":").unwrap().parse().unwrap();
            assert_eq!(data, next[session], "{event}");
            next[session] += 1;
        }
        assert_eq!(next, [20; 8]);
    }
    drop(subscribers);
    let (status, log) = server.stop();
    assert_eq!(status, Some(0), "{log}");
}

#[test]
fn what_was_acknowledged_is_there_after_a_kill_and_with_another_number_of_shards() {
    let mut server = Server::start("kill", &["--shards", "2"]);
    let port = server.address.clone();
    for round in 0..3u32 {
        let mut publishers: Vec<_> = (0..4).map(|n| server.connect(&format!("/v1/ws?session=s{n}"))).collect();
        for (session, publisher) in publishers.iter_mut().enumerate() {
            next_text(publisher);
            for n in 0..50 {
                let n = round * 50 + n;
                let text = format!(
                    "{{\"type\":\"publish\",\"session\":\"s{session}\",\"topic\":\"chat.message\",\"message_id\":\"m{n}\",\"data\":{n}}}"
                );
                publisher.send(Message::text(text)).unwrap();
            }
            for n in 0..50 {
                let reply = next_text(publisher);
                let offset = format!(":{}\"", round * 50 + n);
                assert!(reply.contains(&offset), "{offset} {reply}");
            }
        }
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        // On the same port: the dead process's rings hold it for a moment longer.
        server.restart(&port, &["--shards", if round == 1 { "3" } else { "2" }]);
        for session in 0..4 {
            let mut reader = server.connect("/v1/ws");
            next_text(&mut reader);
            let text = format!("{{\"type\":\"subscribe\",\"session\":\"s{session}\",\"from\":\"earliest\"}}");
            reader.send(Message::text(text)).unwrap();
            next_text(&mut reader);
            for n in 0..(round + 1) * 50 {
                let event = next_text(&mut reader);
                assert!(event.contains(&format!("\"data\":{n}}}")), "{session} {n}: {event}");
            }
        }
    }
    assert_eq!(server.stop().0, Some(0));
}

#[test]
fn clients_are_told_to_come_back_when_it_stops() {
    let server = Server::start("goaway", &["--shards", "2"]);
    let mut clients: Vec<_> = (0..8).map(|_| server.connect("/v1/ws")).collect();
    for client in &mut clients {
        next_text(client);
    }
    server.signal(libc::SIGTERM);
    for client in &mut clients {
        let goodbye = next_text(client);
        assert!(goodbye.contains("\"type\":\"goaway\""), "{goodbye}");
        let Message::Close(Some(frame)) = client.read().unwrap() else { panic!("a close frame") };
        assert_eq!(u16::from(frame.code), 1001);
        while client.read().is_ok() {}
    }
    assert_eq!(server.wait().0, Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let server = Server::start("impatient", &["--shards", "2"]);
    let mut stubborn = server.connect("/v1/ws");
    next_text(&mut stubborn);
    server.signal(libc::SIGTERM);
    // Seen by the client, so taken by the server: two signals at once would count as one.
    assert!(next_text(&mut stubborn).contains("goaway"));
    server.signal(libc::SIGINT);
    assert_eq!(server.wait().0, Some(1));
}

#[test]
fn a_client_that_ignores_the_farewell_does_not_hold_the_stop_up() {
    let server = Server::start("stubborn", &["--shards", "2", "--set", "stop_timeout_ms=2s"]);
    let mut stubborn = server.connect("/v1/ws");
    next_text(&mut stubborn);
    // And one that has never read the answers to its commands.
    let deaf = server.connect("/v1/ws");
    deaf.get_ref().set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let ping: Vec<u8> = [&[0x81, 0x8f, 0, 0, 0, 0][..], br#"{"type":"ping"}"#].concat().repeat(500);
    let mut taken = 0;
    while deaf.get_ref().write_all(&ping).is_ok() {
        taken += ping.len();
        assert!(taken < 100 << 20, "who does not read the answers is not read either");
    }
    let begun = Instant::now();
    assert_eq!(server.stop().0, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(6));
    drop(stubborn);
}

#[test]
fn ten_thousand_comings_and_goings_leave_nothing() {
    let server = Server::start("churn", &["--shards", "2", "--set", "handshake_timeout_ms=1s"]);
    std::thread::scope(|scope| {
        for worker in 0..4usize {
            let server = &server;
            scope.spawn(move || {
                for i in 0..2500usize {
                    let mut stream = TcpStream::connect(&server.address).unwrap();
                    match (i + worker) % 4 {
                        0 => {}
                        1 => stream.write_all(b"GET /v1/ws HT").unwrap(),
                        kind => {
                            let session = i % 50;
                            write!(
                                stream,
                                "GET /v1/ws?session=s{session} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                            )
                            .unwrap();
                            if kind == 2 {
                                stream.read_exact(&mut [0; 12]).unwrap();
                            }
                        }
                    }
                }
            });
        }
    });
    let mut probe = server.connect("/v1/ws");
    assert!(next_text(&mut probe).contains("welcome"));
    drop(probe);
    // A stop that finds no connection ends at once: what is left would hold it up until it is cut off.
    std::thread::sleep(Duration::from_millis(1500));
    let begun = Instant::now();
    let (status, log) = server.stop();
    assert_eq!(status, Some(0), "{log}");
    assert!(begun.elapsed() < Duration::from_secs(2), "slots were left: {:?}", begun.elapsed());
}

#[test]
fn what_cannot_work_is_refused_with_one_line_and_status_2() {
    let server = Server::start("refuse", &["--shards", "1"]);
    let other = fresh_folder("refuse-other");
    let (status, line) = refused(&other, &server.address, &[]);
    assert_eq!(status, Some(2), "{line}");
    assert!(line.contains("is in use") && line.contains("--listen"), "{line}");

    let (status, line) = refused(&server.data, "127.0.0.1:0", &[]);
    assert_eq!(status, Some(2), "{line}");
    assert!(line.contains("in use by another server") && line.contains("--data"), "{line}");

    let (status, line) = refused(&other, "127.0.0.1:0", &["--set", "memory_budget_bytes=1MiB"]);
    assert_eq!(status, Some(2), "{line}");
    assert!(line.contains("memory_budget_bytes"), "{line}");

    for (limit, cure) in [("-n 60", "ulimit -n"), ("-n 4000", "connections_per_shard_max")] {
        let line = format!(
            "ulimit -S {limit}; ulimit -H {limit}; exec {} serve --listen 127.0.0.1:0 --shards 1 --data {} --set connections_per_shard_max=16000",
            env!("CARGO_BIN_EXE_tidegate"),
            other.display()
        );
        let output = Command::new("bash").args(["-c", &line]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(cure), "{said}");
    }
    let _ = std::fs::remove_dir_all(other);
    assert_eq!(server.stop().0, Some(0));
}
