//! Newcomers at a busy moment, on a real ring with real sockets: the server of [`super::tests`] with a gate that is hardly open.

use super::tests::{Peer, Server, echoes, nothing_is_left};
use super::tls::tests::{client, configs};
use super::*;
use rustls::StreamOwned;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use tungstenite::Message;

const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// A server whose turns are all too long, and so takes the least in.
fn hardly_open(newcomer_wait_us_max: u64) -> Server {
    let server = Server::start_with(true, Peer::new(), None, |config| {
        config.gate = GateConfig { turn_newcomers_us_max: 1, newcomer_wait_us_max };
        config.handshake_timeout_us = 5_000_000;
    });
    // From 32 a turn to the least.
    for _ in 0..5 {
        echoes(&mut server.connect("/"), "one more");
    }
    server
}

/// Forty requests that find the server asleep, every fourth of somebody who comes back; the status lines of the answers.
fn a_burst(server: &Server) -> Vec<(bool, String)> {
    let mut busy = server.connect("/");
    busy.send(Message::text("sleep")).unwrap();
    let clients: Vec<(bool, TcpStream)> = (0..40)
        .map(|n| {
            let (back, mut stream) = (n % 4 == 3, TcpStream::connect(server.address).unwrap());
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            // A path of its own length, which is this server's mark of a client.
            let path = if back { format!("/back{}", "x".repeat(n)) } else { "/".into() };
            stream.write_all(format!("GET {path} HTTP/1.1\r\n{KEY}").as_bytes()).unwrap();
            (back, stream)
        })
        .collect();
    assert_eq!(busy.read().unwrap(), Message::text("sleep"));
    let read = |mut stream: TcpStream| {
        let (mut head, mut byte) = (Vec::new(), [0; 1]);
        while !head.ends_with(b"\r\n\r\n") {
            assert_eq!(stream.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&head));
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        if head.starts_with("HTTP/1.1 503") {
            assert_eq!(stream.read(&mut byte).unwrap(), 0, "closed behind the answer, and not reset");
        }
        head
    };
    clients.into_iter().map(|(back, stream)| (back, read(stream))).collect()
}

#[test]
fn a_burst_waits_in_line_and_everybody_gets_in() {
    let server = hardly_open(10_000_000);
    for (_, head) in a_burst(&server) {
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    }
    let rest = server.stop();
    assert!(rest.stats.waited > 0 && rest.stats.refused == 0, "{rest:?}");
    nothing_is_left(&rest);
}

#[test]
fn who_would_wait_too_long_is_told_when_to_come_back_and_who_comes_back_waits() {
    let server = hardly_open(0);
    let answers = a_burst(&server);
    let refused: Vec<&String> =
        answers.iter().filter(|(_, head)| head.starts_with("HTTP/1.1 503")).map(|(_, head)| head).collect();
    assert!(!refused.is_empty() && refused.len() < 30, "{answers:?}");
    assert!(refused.iter().all(|head| head.contains("Retry-After: ")), "{refused:?}");
    assert!(answers.iter().all(|(back, head)| !back || head.starts_with("HTTP/1.1 101")), "{answers:?}");
    let rest = server.stop();
    assert_eq!(rest.stats.refused as usize, refused.len(), "{rest:?}");
    nothing_is_left(&rest);
}

#[test]
fn who_speaks_tls_and_would_wait_too_long_is_told_by_an_alert_before_any_handshake() {
    let (secure, _) = configs();
    let server = Server::start_secure(true, Peer::new(), None, Some(Arc::clone(secure)), |config| {
        config.gate = GateConfig { turn_newcomers_us_max: 1, newcomer_wait_us_max: 0 };
        config.handshake_timeout_us = 5_000_000;
    });
    let connect = || {
        let stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    };
    let speak = || tungstenite::client("ws://localhost/", StreamOwned::new(client(), connect())).unwrap().0;
    for _ in 0..5 {
        echoes(&mut speak(), "one more");
    }
    let mut busy = speak();
    busy.send(Message::text("sleep")).unwrap();
    let mut hello = Vec::new();
    client().write_tls(&mut hello).unwrap();
    let clients: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut stream = connect();
            stream.write_all(&hello).unwrap();
            stream
        })
        .collect();
    assert_eq!(busy.read().unwrap(), Message::text("sleep"));
    let mut refused = 0;
    for mut stream in clients {
        let mut record = [0; 7];
        stream.read_exact(&mut record).unwrap();
        if record[0] == 21 {
            assert_eq!(record, super::secure::ALERT);
            assert_eq!(stream.read(&mut record).unwrap(), 0, "closed behind the alert, and not reset");
            refused += 1;
        }
    }
    assert!((1..40).contains(&refused), "{refused}");
    drop(busy);
    let rest = server.stop();
    assert_eq!((rest.stats.refused, rest.stats.handshakes_failed), (refused, 0), "{rest:?}");
    nothing_is_left(&rest);
}

#[test]
fn silent_sockets_push_each_other_out_and_nobody_else() {
    let server = Server::start_with(true, Peer::new(), None, |config| {
        config.silent_newcomers_max = 4;
        config.handshake_timeout_us = 60_000_000;
    });
    let mut talker = server.connect("/");
    let mut silent: Vec<TcpStream> = (0..5).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    let mut byte = [0; 1];
    assert!(matches!(silent[0].read(&mut byte), Ok(0) | Err(_)), "the oldest is out");
    // The others may still speak; a dribbler is silent until the last byte of its request.
    for stream in &mut silent[1..] {
        stream.write_all(format!("GET / HTTP/1.1\r\n{KEY}").as_bytes()).unwrap();
        assert_eq!(stream.read(&mut byte).unwrap(), 1);
    }
    let mut more: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    more[0].write_all(b"GET / HT").unwrap();
    echoes(&mut talker, "nobody is counted twice");
    drop(TcpStream::connect(server.address).unwrap());
    assert!(matches!(more[0].read(&mut byte), Ok(0) | Err(_)), "so is a dribbler");
    echoes(&mut talker, "and others feel nothing");
    drop((talker, silent, more));
    let rest = server.stop();
    assert_eq!(rest.stats.pushed_out, 2, "{rest:?}");
    nothing_is_left(&rest);
}
