//! Both ends over a socket pair, and every step at which one of them can fail the other.

use super::give::{Offer, Shared};
use super::rights;
use super::take::{Takeover, TakeoverError};
use super::words::{self, Word};
use crate::boot::listener;
use crate::reactor::control::Report;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(5);
const AT_ONCE: Duration = Duration::from_millis(20);

/// A server that could be taken over.
struct Running {
    shared: Arc<Shared>,
    reports: flume::Receiver<Report>,
    address: SocketAddr,
    /// What its shards accept from.
    listeners: Vec<OwnedFd>,
}

fn running(shards: u16) -> Running {
    let (address, listeners) = listener::bind("127.0.0.1:0".parse().unwrap(), shards).unwrap();
    let copies = listeners.iter().map(|socket| socket.try_clone().unwrap()).collect();
    let (reports_in, reports) = flume::unbounded();
    let shared = Shared::new(Offer { listeners: copies, address, within: SOON }, reports_in);
    Running { shared, reports, address, listeners }
}

impl Running {
    /// Somebody comes.
    fn visited(&self) -> UnixStream {
        self.met().0
    }

    /// Somebody comes; the thread ends once it is known what becomes of it.
    fn met(&self) -> (UnixStream, std::thread::JoinHandle<()>) {
        let (here, there) = UnixStream::pair().unwrap();
        let shared = Arc::clone(&self.shared);
        (there, std::thread::spawn(move || shared.meet(here, rights::own_uid())))
    }

    /// A process that knows how to take over.
    fn asked(&self) -> Result<Takeover, TakeoverError> {
        Takeover::ask(self.visited(), Path::new("data"), rights::own_uid(), SOON)
    }

    /// After an attempt has come to nothing another one succeeds: the first changed nothing.
    fn can_still_be_taken_over(&self) {
        self.serves();
        let taking = self.asked().unwrap();
        assert_eq!(taking.listeners.len(), self.listeners.len());
        drop(taking);
        self.serves();
    }

    /// Waits until the end of an attempt was noticed, which its own thread does.
    fn serves(&self) {
        let until = Instant::now() + SOON;
        while !self.shared.is_serving() {
            assert!(Instant::now() < until, "an attempt that came to nothing is not forgotten");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn hello() -> Word {
    Word::Hello { version: words::VERSION, pid: 1 }
}

fn heard(stream: &UnixStream) -> Option<Word> {
    words::hear(stream, Some(SOON)).unwrap()
}

fn wait_in_thread(taking: Takeover) -> std::thread::JoinHandle<Result<(), String>> {
    std::thread::spawn(move || taking.wait().map_err(|why| why.to_string()))
}

#[test]
fn the_sockets_move_and_nobody_who_waits_in_them_is_reset() {
    let server = running(3);
    let mut waiting: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    // A connection is accepted when its request begins to come.
    waiting.iter_mut().for_each(|client| client.write_all(b"GET").unwrap());
    let taking = server.asked().unwrap();
    assert_eq!((taking.address, taking.pid), (server.address, std::process::id()));
    assert!(server.reports.is_empty(), "nothing begins before it is ready");
    let listeners: Vec<OwnedFd> = taking.listeners.iter().map(|socket| socket.try_clone().unwrap()).collect();
    let waiter = wait_in_thread(taking);
    assert!(matches!(server.reports.recv_timeout(SOON).unwrap(), Report::TakerReady { .. }));
    drop(server.listeners);
    server.shared.say_released();
    waiter.join().unwrap().unwrap();
    assert!(matches!(server.reports.recv_timeout(SOON).unwrap(), Report::TakerGone { .. }));
    drop(server.shared);
    let mut accepted = Vec::new();
    for socket in listeners {
        let listener = std::net::TcpListener::from(socket);
        listener.set_nonblocking(true).unwrap();
        accepted.extend(std::iter::from_fn(|| listener.accept().ok()));
    }
    assert_eq!(accepted.len(), waiting.len());
}

#[test]
fn a_new_process_that_fails_at_any_step_changes_nothing() {
    let server = running(2);
    type Step = fn(&UnixStream);
    let until_sockets: Step = |stream| {
        words::say(stream, &hello()).unwrap();
        assert!(matches!(heard(stream), Some(Word::Listeners { count: 2, .. })));
    };
    let steps: [(&str, Step); 7] = [
        ("says nothing", |_| {}),
        ("half a hello", |mut stream| stream.write_all(b"tidegate-take").unwrap()),
        ("no hello", |stream| words::say(stream, &Word::Ready).unwrap()),
        ("another version", |stream| {
            words::say(stream, &Word::Hello { version: 9, pid: 1 }).unwrap();
            let Some(Word::No { why }) = heard(stream) else { panic!("a refusal") };
            assert!(why.contains("version"), "{why}");
        }),
        ("gone before the sockets came", |stream| words::say(stream, &hello()).unwrap()),
        ("gone with the sockets", until_sockets),
        ("something else than ready", |stream| {
            words::say(stream, &hello()).unwrap();
            assert!(matches!(heard(stream), Some(Word::Listeners { .. })));
            rights::receive(stream, 2).unwrap();
            words::say(stream, &Word::Released).unwrap();
            assert!(matches!(heard(stream), Some(Word::No { .. })));
        }),
    ];
    for (what, step) in steps {
        let (stream, met) = server.met();
        step(&stream);
        drop(stream);
        // A hello that nobody has heard yet would meet the next attempt.
        met.join().unwrap();
        server.can_still_be_taken_over();
        assert!(server.reports.is_empty(), "{what}: the running server was told to drain");
    }
    assert_eq!(server.listeners.len(), 2);
}

#[test]
fn one_that_is_gone_after_ready_is_reported_and_forgotten() {
    let server = running(1);
    let taking = server.asked().unwrap();
    let refused = server.asked().unwrap_err().to_string();
    assert!(refused.contains("is taking over already") && !refused.contains('\n'), "{refused}");
    let stream = taking.into_stream();
    words::say(&stream, &Word::Ready).unwrap();
    assert!(matches!(server.reports.recv_timeout(SOON).unwrap(), Report::TakerReady { .. }));
    let refused = server.asked().unwrap_err().to_string();
    assert!(refused.contains("is taking over already"), "also while it drains: {refused}");
    drop(stream);
    assert!(matches!(server.reports.recv_timeout(SOON).unwrap(), Report::TakerGone { .. }));
    server.shared.serve_on("it stays");
    server.can_still_be_taken_over();
}

#[test]
fn a_server_that_serves_on_or_ends_says_so() {
    let server = running(1);
    let waiter = wait_in_thread(server.asked().unwrap());
    assert!(matches!(server.reports.recv_timeout(SOON).unwrap(), Report::TakerReady { .. }));
    server.shared.serve_on("it stays");
    assert!(waiter.join().unwrap().unwrap_err().contains("it stays"));

    let server = running(1);
    let waiter = wait_in_thread(server.asked().unwrap());
    server.shared.end();
    let refused = server.asked().unwrap_err().to_string();
    assert!(refused.contains("going down") && refused.contains("without --takeover"), "{refused}");
    server.shared.say_released();
    waiter.join().unwrap().expect("who came before the signal gets the folder");
}

#[test]
fn a_running_server_that_fails_at_any_step_is_told_apart() {
    let (address, listeners) = listener::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
    let listeners_word = |count, address| Word::Listeners { count, pid: 7, within_ms: 20, address };
    let ask = |there: UnixStream, within| Takeover::ask(there, Path::new("data"), rights::own_uid(), within);
    let foreign = OwnedFd::from(std::io::pipe().unwrap().0);

    // What the server does, and what the line must say.
    type Script<'a> = (&'a str, &'a dyn Fn(&UnixStream), &'a str);
    let scripts: [Script<'_>; 8] = [
        ("closes", &|_| {}, "refuses"),
        ("refuses", &|here| words::say(here, &Word::No { why: "not you".into() }).unwrap(), "not you"),
        ("speaks another language", &|mut here| here.write_all(b"HTTP/1.1 200 OK\r\n").unwrap(), "do not understand"),
        ("answers out of turn", &|here| words::say(here, &Word::Released).unwrap(), "the answer is another one's"),
        ("announces too many", &|here| words::say(here, &listeners_word(100_000, address)).unwrap(), "100000 sockets"),
        ("sends no sockets", &|here| words::say(here, &listeners_word(1, address)).unwrap(), "listening sockets"),
        (
            "sends what is no socket",
            &|here| {
                words::say(here, &listeners_word(1, address)).unwrap();
                rights::send(here, std::slice::from_ref(&foreign)).unwrap();
            },
            "listening sockets",
        ),
        (
            "sends a socket of another address",
            &|here| {
                words::say(here, &listeners_word(1, "127.0.0.1:1".parse().unwrap())).unwrap();
                rights::send(here, &listeners).unwrap();
            },
            "does not listen on",
        ),
    ];
    for (what, script, line) in scripts {
        let (here, there) = UnixStream::pair().unwrap();
        let error = std::thread::scope(|scope| {
            let asking = scope.spawn(move || ask(there, SOON));
            assert_eq!(heard(&here), Some(Word::Hello { version: words::VERSION, pid: std::process::id() }));
            script(&here);
            drop(here);
            asking.join().unwrap().unwrap_err().to_string()
        });
        assert!(error.contains(line) && !error.contains('\n'), "{what}: {error}");
    }

    let (_silent, there) = UnixStream::pair().unwrap();
    let line = ask(there, AT_ONCE).unwrap_err().to_string();
    assert!(line.contains("did not answer") && line.contains("kill"), "{line}");

    // After the sockets: it stays silent, dies, or says something odd.
    for (last, good) in [(None, true), (Some(Word::Ready), false), (Some(Word::Released), true)] {
        let (here, there) = UnixStream::pair().unwrap();
        words::say(&here, &listeners_word(1, address)).unwrap();
        rights::send(&here, &listeners).unwrap();
        let taking = ask(there, SOON).unwrap();
        if let Some(word) = last {
            words::say(&here, &word).unwrap();
        }
        drop(here);
        assert_eq!(taking.wait().is_ok(), good, "whether a dead server's lock is free the lock will tell");
    }
}

#[test]
fn a_server_of_another_user_is_left_alone_and_leaves_others_alone() {
    let server = running(1);
    let line = Takeover::ask(server.visited(), Path::new("data"), rights::own_uid() + 1, SOON).unwrap_err().to_string();
    assert!(line.contains("take over as that user") && line.contains("data"), "{line}");

    let (here, there) = UnixStream::pair().unwrap();
    let shared = Arc::clone(&server.shared);
    let meeting = std::thread::spawn(move || shared.meet(here, rights::own_uid() + 1));
    let line = Takeover::ask(there, Path::new("data"), rights::own_uid(), SOON).unwrap_err().to_string();
    meeting.join().unwrap();
    assert!(line.contains("take over as that user"), "{line}");
    server.can_still_be_taken_over();
    assert!(server.listeners.iter().all(|socket| socket.as_raw_fd() >= 0));
}
