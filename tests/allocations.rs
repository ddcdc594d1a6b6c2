//! Steady publish → commit → deliver allocates nothing per event: the server in this process, under an allocator that counts.
//!
//! ```text
//!   main thread: a publisher and its readers        counts of its own
//!   shard threads: the server                       these must not grow with events
//! ```
//! Tables that double and files that roll do allocate, once in a long while: hence a bound on the share, not zero calls.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::TcpStream;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use tungstenite::{Message, WebSocket};

/// Threads told apart.
const THREADS_MAX: usize = 64;
/// Allocations of shard threads for each event that would still count as none: a table doubling, a file rolling.
const PER_EVENT_MAX: f64 = 0.02;
const READERS: usize = 4;
const PIPELINE: usize = 32;
const WARM_EVENTS: usize = 4_000;
const EVENTS: usize = 20_000;

struct Counting;

static COUNTS: [AtomicU64; THREADS_MAX] = [const { AtomicU64::new(0) }; THREADS_MAX];
static THREADS: [AtomicI32; THREADS_MAX] = [const { AtomicI32::new(0) }; THREADS_MAX];
static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static OWN: Cell<usize> = const { Cell::new(usize::MAX) };
}

fn count() {
    // A thread that is being torn down has no cell any more; it has nothing to say here.
    let _torn_down = OWN.try_with(|own| {
        if own.get() == usize::MAX {
            own.set(NEXT.fetch_add(1, Ordering::Relaxed) % THREADS_MAX);
            // SAFETY: a system call without arguments.
            THREADS[own.get()].store(unsafe { libc::gettid() }, Ordering::Relaxed);
        }
        COUNTS[own.get()].fetch_add(1, Ordering::Relaxed);
    });
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: passed on.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations so far of all threads whose name begins so.
fn allocations(name: &str) -> u64 {
    let named = |slot: &usize| {
        let path = format!("/proc/self/task/{}/comm", THREADS[*slot].load(Ordering::Relaxed));
        std::fs::read_to_string(path).is_ok_and(|found| found.starts_with(name))
    };
    (0..THREADS_MAX).filter(named).map(|slot| COUNTS[slot].load(Ordering::Relaxed)).sum()
}

struct Clients {
    publisher: WebSocket<TcpStream>,
    readers: Vec<WebSocket<TcpStream>>,
    published: usize,
}

fn connect(port: u16, query: &str) -> WebSocket<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut socket, _) = tungstenite::client(format!("ws://127.0.0.1:{port}/v1/ws?session=s{query}"), stream).unwrap();
    assert!(text(&mut socket).contains("welcome"));
    socket
}

fn text(socket: &mut WebSocket<TcpStream>) -> String {
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

impl Clients {
    fn new(port: u16) -> Clients {
        let subscribe = r#"{"type":"subscribe","id":1,"session":"s"}"#;
        let readers = (0..READERS).map(|_| {
            let mut reader = connect(port, "");
            reader.send(Message::text(subscribe)).unwrap();
            assert!(text(&mut reader).contains("subscribed"));
            reader
        });
        Clients { readers: readers.collect(), publisher: connect(port, "&client=p"), published: 0 }
    }

    /// Publishes so many events and sees each acknowledged and delivered everywhere.
    fn exchange(&mut self, events: usize) {
        for _ in 0..events / PIPELINE {
            for _ in 0..PIPELINE {
                let n = self.published;
                self.published += 1;
                let data = "x".repeat(256);
                let publish = format!(
                    r#"{{"type":"publish","id":{n},"session":"s","topic":"a.b","message_id":"m{n}","data":"{data}"}}"#
                );
                self.publisher.write(Message::text(publish)).unwrap();
            }
            self.publisher.flush().unwrap();
            for _ in 0..PIPELINE {
                assert!(text(&mut self.publisher).contains("published"));
                for reader in &mut self.readers {
                    assert!(text(reader).contains(r#""type":"event""#));
                }
            }
        }
    }
}

fn main() {
    // Held in every thread from here on, so that the server, and nobody else, takes the signal that ends it.
    tidegate::shutdown::hold_signals();
    let folder = std::env::temp_dir().join(format!("tidegate-allocations-{}", std::process::id()));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let flags = [
        ("listen", format!("127.0.0.1:{port}")),
        ("data", folder.display().to_string()),
        ("shards", "1".into()),
        ("log", "error".into()),
    ];
    let flags = flags.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
    let config =
        tidegate::config::Config::load(&tidegate::config::Layers { file: None, env: Vec::new(), flags }).unwrap();
    let server = std::thread::spawn(move || tidegate::boot::serve(config));
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(std::time::Instant::now() < until && !server.is_finished(), "the server did not start");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let mut clients = Clients::new(port);
    clients.exchange(WARM_EVENTS);
    let (before, own) = (allocations("shard"), allocations(""));
    clients.exchange(EVENTS);
    let (after, own_after) = (allocations("shard"), allocations(""));
    // SAFETY: a signal to this process, which holds it.
    unsafe { libc::kill(libc::getpid(), libc::SIGTERM) };
    let _status_says_nothing_more = server.join().unwrap();
    let _leftovers_do_not_matter = std::fs::remove_dir_all(&folder);

    let per_event = (after - before) as f64 / EVENTS as f64;
    println!("allocations per event: {per_event:.4}");
    assert!(before > 0, "the shard's thread was not recognised");
    assert!(own_after - own > EVENTS as u64, "the clients allocate for every event: if that is not seen, nothing is");
    assert!(per_event <= PER_EVENT_MAX, "{} allocations of the shard in {EVENTS} events", after - before);
}
