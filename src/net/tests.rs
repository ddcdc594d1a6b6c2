//! Real sockets on a real ring, with the smallest service there is behind them.

use super::*;
use crate::ring::{Completion, Kind, Ring, RingConfig, Waker};
use shards::ids::ShardId;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tungstenite::{Message, WebSocket};

/// Echoes. A message `later N` is put off N times, or until somebody says `release`. Who comes to `/of/N` is a client of N. A
/// request for `/take` is handed to the peer.
struct Echo {
    peer: Option<Arc<Peer>>,
    mine: Arc<Peer>,
    later: HashMap<String, u64>,
    owners: HashMap<ConnectionId, Owner>,
    released: bool,
    open: Rc<RefCell<i64>>,
}

/// What another shard needs to hand a socket over.
pub(super) struct Peer {
    ring: std::sync::OnceLock<RawFd>,
    mail: Mutex<Vec<Adoption>>,
}

impl Peer {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { ring: std::sync::OnceLock::new(), mail: Mutex::new(Vec::new()) })
    }
}

impl Service for Echo {
    fn head(&mut self, knock: &Knock<'_>, answer: &mut Vec<u8>) -> Admission {
        let Knock { head, may_hand_off: may, full, busy, .. } = *knock;
        let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") else { return Admission::Incomplete };
        let text = String::from_utf8_lossy(&head[..end]).into_owned();
        if full || text.starts_with("GET /readyz") {
            answer.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return Admission::Answer;
        }
        if may && self.peer.is_some() && text.starts_with("GET /take") {
            return Admission::HandOff { shard: ShardId(1) };
        }
        if busy {
            return Admission::Wait { resumes: text.starts_with("GET /back").then_some(end as u64) };
        }
        let key = text.lines().find_map(|l| l.strip_prefix("Sec-WebSocket-Key: ")).unwrap().trim();
        let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
        answer.extend_from_slice(
            format!("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n").as_bytes(),
        );
        if let Some(owner) = text.strip_prefix("GET /of/") {
            self.owners.insert(knock.id, owner.split(' ').next().unwrap().parse().unwrap());
        }
        *self.open.borrow_mut() += 1;
        Admission::Open { head_bytes: end + 4, frame_bytes_max: 1 << 20, door: Door::Echo }
    }

    fn refuse(&mut self, wait_ms: u64, answer: &mut Vec<u8>) {
        let after_s = retry_after_s(wait_ms, 0);
        answer.extend_from_slice(format!("HTTP/1.1 503 x\r\nRetry-After: {after_s}\r\n\r\n").as_bytes());
    }

    fn not_secure(&mut self, answer: &mut Vec<u8>) {
        answer.extend_from_slice(b"HTTP/1.1 400 x\r\n\r\n");
    }

    fn give(&mut self, _: ShardId, adoption: Adoption) -> Result<RawFd, Adoption> {
        let peer = self.peer.as_ref().unwrap();
        peer.mail.lock().unwrap().push(adoption);
        Ok(*peer.ring.get().unwrap())
    }

    fn given(&mut self, ticket: u32, moved: bool) {
        if moved {
            return;
        }
        self.peer.as_ref().unwrap().mail.lock().unwrap().retain(|a| a.ticket != ticket);
    }

    fn adopt(&mut self, _: ShardId, ticket: u32) -> Option<Adoption> {
        let mut mail = self.mine.mail.lock().unwrap();
        let at = mail.iter().position(|a| a.ticket == ticket)?;
        Some(mail.swap_remove(at))
    }

    fn owner(&self, id: ConnectionId) -> Owner {
        self.owners.get(&id).copied().unwrap_or_default()
    }

    fn slow_down(&mut self, _: ConnectionId, _: Door, _: u64, _: &mut Sends) {}

    fn text(&mut self, id: ConnectionId, _: Door, text: &str, place: u64, _: Option<u64>, sends: &mut Sends) -> Taken {
        if text == "sleep" {
            std::thread::sleep(Duration::from_millis(100));
        }
        self.released |= text == "release";
        if let Some(n) = text.strip_prefix("later ").filter(|_| !self.released) {
            let rest = self.later.entry(text.to_owned()).or_insert(n.split(' ').next().unwrap().parse().unwrap());
            if *rest > 0 {
                *rest -= 1;
                return Taken::Later { place: place + 1 };
            }
        }
        if sends.room(id) < text.len() + 16 {
            return Taken::Later { place };
        }
        let mut frame = Vec::new();
        websocket::append_frame(&mut frame, websocket::Opcode::Text, text.as_bytes());
        sends.push(id, &frame, Class::Delivery);
        Taken::All
    }

    fn binary(&mut self, id: ConnectionId, _: Door, bytes: &[u8], _: u64, sends: &mut Sends) -> Taken {
        // Not limited by room: for the test of the reserve.
        let mut frame = Vec::new();
        websocket::append_frame(&mut frame, websocket::Opcode::Binary, bytes);
        sends.push(id, &frame, Class::Reply);
        Taken::All
    }

    fn closed(&mut self, _: ConnectionId, _: Door) {
        *self.open.borrow_mut() -= 1;
    }
}

/// What a server thread left behind.
#[derive(Debug)]
pub(super) struct Rest {
    connections: usize,
    chunks: usize,
    open: i64,
    assembly_bytes: usize,
    held_bytes: usize,
    pub(super) held_bytes_most: usize,
    pub(super) stats: NetStats,
}

pub(super) struct Server {
    pub(super) address: SocketAddr,
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: JoinHandle<Rest>,
}

impl Server {
    fn start(direct: bool, mine: Arc<Peer>, peer: Option<Arc<Peer>>) -> Self {
        Self::start_with(direct, mine, peer, |_| {})
    }

    pub(super) fn start_with(
        direct: bool,
        mine: Arc<Peer>,
        peer: Option<Arc<Peer>>,
        change: impl FnOnce(&mut NetConfig),
    ) -> Self {
        Self::start_secure(direct, mine, peer, None, change)
    }

    pub(super) fn start_secure(
        direct: bool,
        mine: Arc<Peer>,
        peer: Option<Arc<Peer>>,
        tls: Option<Arc<rustls::ServerConfig>>,
        change: impl FnOnce(&mut NetConfig),
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let waker = Waker::new().unwrap();
        let mut config = NetConfig {
            shard: ShardId(u16::from(peer.is_none())),
            connections_max: 64,
            assembly_bytes_max: 8 << 20,
            held_bytes_max: 8 << 20,
            sends: SendLimits {
                connection_send_bytes_max: 256 << 10,
                reply_reserve_bytes: 64 << 10,
                delivery_bytes_max: 120 << 10,
                shard_send_bytes_max: 8 << 20,
            },
            held_timeout_us: 5_000_000,
            // A busy machine may let a client wait for seconds.
            handshake_timeout_us: 60_000_000,
            silent_newcomers_max: 32,
            gate: GateConfig { turn_newcomers_us_max: 1000, newcomer_wait_us_max: 200_000 },
            ping_interval_us: 300_000,
            idle_timeout_us: 60_000_000,
            closes: CloseTable {
                idle: (4000, "idle"),
                too_slow: (4100, "too slow"),
                unavailable: (4102, "unavailable"),
            },
        };
        change(&mut config);
        let thread = std::thread::spawn({
            let (stop, waker) = (stop.clone(), waker.clone());
            move || serve((config, tls), direct, listener, mine, peer, &stop, waker)
        });
        Server { address, stop, waker, thread }
    }

    pub(super) fn connect(&self, path: &str) -> WebSocket<TcpStream> {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        tungstenite::client(format!("ws://{}{path}", self.address), stream).unwrap().0
    }

    /// Waits until every slot is free again, then ends the thread.
    pub(super) fn stop(self) -> Rest {
        self.stop.store(true, Ordering::SeqCst);
        self.waker.wake();
        self.thread.join().unwrap()
    }
}

fn serve(
    (config, tls): (NetConfig, Option<Arc<rustls::ServerConfig>>),
    direct: bool,
    listener: TcpListener,
    mine: Arc<Peer>,
    peer: Option<Arc<Peer>>,
    stop: &AtomicBool,
    waker: Waker,
) -> Rest {
    let direct_slots = if direct { config.slots() as u32 } else { 0 };
    let ring_config =
        RingConfig { entries: 64, direct_slots, recv_buffers: 16, recv_buffer_bytes: 2048, io_workers: 1 };
    let mut ring = Ring::open(&ring_config, waker).unwrap();
    mine.ring.set(ring.raw_fd()).unwrap();
    let start = Instant::now();
    let clock = || Now { mono_us: start.elapsed().as_micros() as u64, wall_ms: 0 };
    let open = Rc::new(RefCell::new(0));
    let mut service =
        Echo { peer, mine, later: HashMap::new(), owners: HashMap::new(), released: false, open: open.clone() };
    let mut net = Net::new(config, clock()).unwrap();
    if let Some(tls) = tls {
        net.secure(tls);
    }
    net.listen(vec![listener.into()]);
    net.admit(clock(), &mut ring, &mut service);
    let mut batch: Vec<Completion> = Vec::new();
    let mut stopping: Option<Instant> = None;
    let mut held_bytes_most = 0;
    loop {
        let now = clock();
        ring.reap(&mut batch, 64);
        for completion in &batch {
            match completion.user_data.kind() {
                Kind::Control => ring.waker_rang(completion),
                _ => net.complete(completion, now, &mut ring, &mut service),
            }
        }
        net.rearm(now, &mut ring, &mut service);
        held_bytes_most = held_bytes_most.max(net.held.total());
        net.expire(now, &mut ring, &mut service);
        let on = net.retry(now, &mut ring, &mut service);
        net.close_overrun(now, &mut ring, &mut service);
        let taken_in = net.see_off(now, &mut ring, &mut service) + net.admit(now, &mut ring, &mut service);
        net.transmit(&mut ring).unwrap();
        if stop.load(Ordering::SeqCst) && stopping.is_none() {
            stopping = Some(Instant::now());
        }
        let out_of_time = stopping.is_some_and(|since| since.elapsed() > Duration::from_secs(5));
        if stopping.is_some() && (net.connections() == 0 || out_of_time) {
            return Rest {
                connections: net.connections(),
                chunks: net.sends.chunks_used(),
                open: *open.borrow(),
                assembly_bytes: net.assembly_bytes,
                held_bytes: net.held.total(),
                held_bytes_most,
                stats: net.stats(),
            };
        }
        if batch.is_empty() && on + taken_in == 0 {
            ring.park(if net.waiting() > 0 { 1000 } else { 50_000 }).unwrap();
        } else {
            ring.enter().unwrap();
            if net.took_newcomers() {
                net.turn_ended(clock().mono_us - now.mono_us);
            }
        }
    }
}

pub(super) fn nothing_is_left(rest: &Rest) {
    assert_eq!((rest.connections, rest.chunks, rest.open), (0, 0, 0), "{rest:?}");
    assert_eq!((rest.assembly_bytes, rest.held_bytes), (0, 0), "{rest:?}");
}

pub(super) fn echoes(socket: &mut WebSocket<impl Read + Write>, text: &str) {
    socket.send(Message::text(text)).unwrap();
    loop {
        match socket.read().unwrap() {
            Message::Text(got) => return assert_eq!(got.as_str(), text),
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn messages_of_all_sizes_come_back_however_they_are_cut() {
    for direct in [true, false] {
        let server = Server::start(direct, Peer::new(), None);
        let mut socket = server.connect("/");
        for size in [0, 1, 125, 126, 2000, 2048, 4096, 65_535, 65_536, 200_000] {
            echoes(&mut socket, &"x".repeat(size));
        }
        // A frame in single bytes, and many frames in one write.
        let mut raw = server.connect("/");
        let stream = raw.get_mut();
        stream.set_nodelay(true).unwrap();
        let frame = [0x81, 0x82, 0, 0, 0, 0, b'o', b'k'];
        for byte in frame {
            stream.write_all(&[byte]).unwrap();
        }
        stream.write_all(&frame.repeat(500)).unwrap();
        for _ in 0..501 {
            assert_eq!(raw.read().unwrap(), Message::text("ok"));
        }
        socket.close(None).unwrap();
        while socket.read().is_ok() {}
        drop(raw);
        nothing_is_left(&server.stop());
    }
}

#[test]
fn an_upgrade_request_in_pieces_and_frames_behind_it_are_understood() {
    let server = Server::start(true, Peer::new(), None);
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_nodelay(true).unwrap();
    let request = b"GET / HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\x81\x82\0\0\0\0ok";
    for part in request.chunks(7) {
        stream.write_all(part).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut got = Vec::new();
    let mut part = [0; 256];
    while !got.ends_with(b"\x81\x02ok") {
        let n = stream.read(&mut part).unwrap();
        assert!(n > 0);
        got.extend_from_slice(&part[..n]);
    }
    drop(stream);
    nothing_is_left(&server.stop());
}

#[test]
fn a_plain_request_is_answered_and_closed() {
    let server = Server::start(true, Peer::new(), None);
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(b"GET /readyz HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(stream);
    nothing_is_left(&server.stop());
}

#[test]
fn input_without_room_waits_its_turn_and_the_rest_follows_in_order() {
    let server = Server::start(true, Peer::new(), None);
    let mut slow = server.connect("/");
    let mut other = server.connect("/");
    slow.send(Message::text("later 40")).unwrap();
    for i in 0..2000 {
        slow.send(Message::text(format!("after {i}"))).unwrap();
    }
    echoes(&mut other, "others feel nothing");
    assert_eq!(slow.read().unwrap(), Message::text("later 40"));
    for i in 0..2000 {
        assert_eq!(slow.read().unwrap(), Message::text(format!("after {i}")));
    }
    drop((slow, other));
    nothing_is_left(&server.stop());
}

#[test]
fn a_reader_that_does_not_read_is_held_back_by_tcp_and_gets_everything_later() {
    let server = Server::start(true, Peer::new(), None);
    let mut socket = server.connect("/");
    let mut writer = socket.get_ref().try_clone().unwrap();
    const FRAMES: u8 = 200;
    let sender = std::thread::spawn(move || {
        for i in 0..FRAMES {
            let mut frame = vec![0x81, 0xff];
            frame.extend_from_slice(&100_000u64.to_be_bytes());
            frame.extend_from_slice(&[0; 4]);
            frame.extend_from_slice(&vec![b'0' + i % 10; 100_000]);
            writer.write_all(&frame).unwrap();
        }
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(!sender.is_finished(), "twenty megabytes do not fit: the sender must be held back");
    let mut i = 0;
    while i < FRAMES {
        match socket.read().unwrap() {
            Message::Text(text) => {
                assert_eq!(text.len(), 100_000);
                assert_eq!(text.as_bytes()[0], b'0' + i % 10);
                i += 1;
            }
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
    sender.join().unwrap();
    drop(socket);
    nothing_is_left(&server.stop());
}

#[test]
fn replies_that_nobody_reads_end_the_connection_with_a_code() {
    let server = Server::start(true, Peer::new(), None);
    let mut socket = server.connect("/");
    socket.get_ref().set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    // Far more than the socket buffers and the queue take.
    for _ in 0..400 {
        if socket.send(Message::binary(vec![1; 100_000])).is_err() {
            break;
        }
    }
    let end = loop {
        match socket.read() {
            Ok(Message::Close(frame)) => break frame.map(|f| u16::from(f.code)),
            Ok(_) => {}
            Err(_) => break None,
        }
    };
    assert!(end.is_none_or(|code| code == 4100), "{end:?}");
    drop(socket);
    nothing_is_left(&server.stop());
}

#[test]
fn silence_gets_a_ping_then_a_close() {
    let server = Server::start_with(true, Peer::new(), None, |config| config.idle_timeout_us = 900_000);
    let socket = server.connect("/");
    let mut stream = socket.get_ref().try_clone().unwrap();
    // Read without answering.
    let mut got = Vec::new();
    let begun = Instant::now();
    let _ = stream.read_to_end(&mut got);
    assert_eq!(&got[..2], b"\x89\x00", "a ping first");
    assert_eq!((got[2], u16::from_be_bytes([got[4], got[5]])), (0x88, 4000));
    assert!(begun.elapsed() > Duration::from_millis(800));
    drop((socket, stream));

    // A client that answers stays.
    let mut alive = server.connect("/");
    let begun = Instant::now();
    alive.get_ref().set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    while begun.elapsed() < Duration::from_millis(1500) {
        let _ = alive.read();
    }
    alive.get_ref().set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    echoes(&mut alive, "still here");
    drop(alive);
    nothing_is_left(&server.stop());
}

#[test]
fn a_request_that_never_ends_is_cut_off() {
    let server = Server::start_with(true, Peer::new(), None, |config| config.handshake_timeout_us = 400_000);
    let mut drip = TcpStream::connect(server.address).unwrap();
    let silent = TcpStream::connect(server.address).unwrap();
    let begun = Instant::now();
    while drip.write_all(b"G").is_ok() {
        std::thread::sleep(Duration::from_millis(20));
        assert!(begun.elapsed() < Duration::from_secs(3), "each byte would earn more time");
    }
    assert_eq!((&silent).read(&mut [0; 1]).unwrap(), 0);
    nothing_is_left(&server.stop());
}

#[test]
fn half_closed_and_reset_sockets_leak_nothing() {
    let server = Server::start(true, Peer::new(), None);
    let mut half = server.connect("/");
    half.send(Message::text("last words")).unwrap();
    half.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(half.read().unwrap(), Message::text("last words"), "what was asked for is still sent");
    assert!(half.read().is_err());

    let reset = server.connect("/");
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the option's value is a linger structure of that length.
    unsafe {
        libc::setsockopt(
            reset.get_ref().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as u32,
        );
    }
    drop(reset);
    // A client that closes and never hangs up.
    let mut rude = server.connect("/");
    rude.get_mut().write_all(&[0x88, 0x80, 0, 0, 0, 0]).unwrap();
    let begun = Instant::now();
    let mut end = Vec::new();
    rude.get_mut().read_to_end(&mut end).unwrap();
    assert_eq!(end, [0x88, 0], "the close is answered, then FIN");
    let rest = server.stop();
    assert!(begun.elapsed() < Duration::from_secs(4), "the peer's FIN is awaited for a bounded time");
    nothing_is_left(&rest);
    drop(rude);
}

#[test]
fn sockets_move_to_their_shard_with_the_bytes_already_read() {
    for direct in [true, false] {
        let (a, b) = (Peer::new(), Peer::new());
        let taker = Server::start(direct, b.clone(), None);
        while b.ring.get().is_none() {
            std::thread::yield_now();
        }
        let giver = Server::start(direct, a, Some(b));
        if !direct {
            // An ordinary descriptor needs no ring message; the reactor adopts it from the control channel.
            nothing_is_left(&giver.stop());
            nothing_is_left(&taker.stop());
            continue;
        }
        for _ in 0..50 {
            let mut stream = TcpStream::connect(giver.address).unwrap();
            stream
                .write_all(
                    b"GET /take HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\x81\x82\0\0\0\0ok",
                )
                .unwrap();
            let mut got = Vec::new();
            let mut part = [0; 256];
            while !got.ends_with(b"\x81\x02ok") {
                let n = stream.read(&mut part).unwrap();
                assert!(n > 0);
                got.extend_from_slice(&part[..n]);
            }
        }
        let (giver, taker) = (giver.stop(), taker.stop());
        assert_eq!((giver.stats.given, taker.stats.adopted, taker.stats.opened), (50, 50, 50));
        nothing_is_left(&giver);
        nothing_is_left(&taker);
    }
}

#[test]
fn a_full_table_answers_and_a_churn_of_clients_leaves_nothing() {
    let server = Server::start_with(true, Peer::new(), None, |config| config.connections_max = 4);
    let held: Vec<_> = (0..4).map(|_| server.connect("/")).collect();
    let mut fifth = TcpStream::connect(server.address).unwrap();
    fifth.write_all(b"GET / HTTP/1.1\r\nSec-WebSocket-Key: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    fifth.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "answered instead of opened: {answer}");
    drop(held);
    nothing_is_left(&server.stop());

    let server = Server::start(true, Peer::new(), None);
    let address = server.address;
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                for i in 0..500 {
                    let mut stream = TcpStream::connect(address).unwrap();
                    match (i + seed) % 5 {
                        0 => {}
                        1 => stream.write_all(b"GET / HT").unwrap(),
                        kind => {
                            stream
                                .write_all(b"GET / HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
                                .unwrap();
                            stream.write_all(b"\x81\x82\0\0\0\0ok\x81\xfe\x10\0\0\0\0\0half").unwrap();
                            if kind == 2 {
                                stream.read_exact(&mut [0; 8]).unwrap();
                            }
                        }
                    }
                }
            });
        }
    });
    let rest = server.stop();
    assert!(rest.stats.accepted >= 2000, "{rest:?}");
    nothing_is_left(&rest);
}

/// Far more input than may wait, from far more senders than one: they are slowed down, none is closed, nothing is lost, and
/// what waits stays within its bound.
#[test]
fn senders_are_slowed_down_when_too_much_input_waits() {
    const SENDERS: usize = 24;
    const MESSAGES: usize = 40;
    let held_bytes_max = 128 << 10;
    let server = Server::start_with(true, Peer::new(), None, |config| config.held_bytes_max = held_bytes_max);
    let threads: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let mut socket = server.connect("/");
            std::thread::spawn(move || {
                // The first message of each waits long enough for all others to come.
                let texts: Vec<String> = (0..MESSAGES)
                    .map(|n| {
                        let first = if n == 0 { "later 3000 " } else { "" };
                        format!("{first}{sender} {n} {}", "x".repeat(1500))
                    })
                    .collect();
                for text in &texts {
                    socket.write(Message::text(text.as_str())).unwrap();
                }
                socket.flush().unwrap();
                for text in &texts {
                    loop {
                        match socket.read().unwrap() {
                            Message::Ping(_) => {}
                            got => break assert_eq!(got, Message::text(text.as_str())),
                        }
                    }
                }
                socket.close(None).unwrap();
                while socket.read().is_ok() {}
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let rest = server.stop();
    nothing_is_left(&rest);
    // They are all of one tenant, which may hold half of what is not receive buffers.
    assert!(rest.held_bytes_most > held_bytes_max / 4, "the bound was never near: {rest:?}");
    assert!(rest.held_bytes_most <= held_bytes_max, "{rest:?}");
}
