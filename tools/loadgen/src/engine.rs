//! Many connections on one thread: connects, upgrades, messages in, messages out.
//!
//! ```text
//!   open ─► Connecting ─► Upgrading ─► Open ──► Handler::received(connection, bytes, &mut out)
//!                    └─ plain TCP ──►   │              out is flushed once per step
//!                                       └─► Closed ──► Handler::lost
//! ```
//! Level-triggered; one shared read buffer. A connection owns bytes only while a frame is partial or a send is short.

use crate::line::Line;
use crate::net::{Poll, Ready};
use crate::peer::Transport;
use crate::websocket;
use rustls::ClientConfig;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// What a workload does with its connections.
pub trait Handler {
    /// The upgrade of `connection` was accepted; `out` takes first commands.
    fn opened(&mut self, connection: usize, out: &mut Vec<u8>);
    /// A message, or more of the stream, came at `now` (ns since the engine's start). Returns how much of it was taken; what
    /// is left of a stream comes again with what follows it.
    fn received(&mut self, connection: usize, now: u64, bytes: &[u8], out: &mut Vec<u8>) -> usize;
    /// The upgrade of `connection` was answered with no, and the connection is closed.
    fn refused(&mut self, connection: usize, head: &str) {
        self.lost(connection, format!("upgrade refused: {}", head.lines().next().unwrap_or_default()));
    }
    /// `connection` is gone although nobody here closed it.
    fn lost(&mut self, connection: usize, why: String);
}

/// Why a connection is over.
enum End {
    /// The head of the answer to its upgrade.
    Refused(String),
    Lost(String),
}

#[derive(PartialEq, Clone, Copy)]
enum Stage {
    Connecting,
    Upgrading,
    Open,
    Closed,
}

struct Connection {
    line: Option<Line>,
    stage: Stage,
    path: String,
    /// A token to be shown with the upgrade; most have none.
    token: Option<Box<str>>,
    /// Who it says it is.
    bearer: Option<Rc<str>>,
    /// The beginning of a response or frame whose end has not come yet.
    partial: Vec<u8>,
    /// The same for a stream inside WebSocket messages.
    stream: Vec<u8>,
    out: Vec<u8>,
    sent: usize,
    wants_write: bool,
    dirty: bool,
}

/// All connections of the process.
pub struct Engine {
    poll: Poll,
    address: SocketAddrV4,
    source: Option<Ipv4Addr>,
    tls: Option<Arc<ClientConfig>>,
    bearers: Vec<Rc<str>>,
    bearer: usize,
    transport: Transport,
    subprotocol: Option<&'static str>,
    accept: String,
    connections: Vec<Connection>,
    dirty: Vec<usize>,
    buffer: Vec<u8>,
    ready: Vec<Ready>,
    start: Instant,
    punctual: bool,
}

/// Sockets read between two looks at the schedule: what is due waits for all of them, some µs for each.
const READY_MAX_PUNCTUAL: usize = 64;

impl Engine {
    pub fn new(address: SocketAddrV4, transport: Transport, subprotocol: Option<&'static str>) -> io::Result<Engine> {
        Ok(Engine {
            poll: Poll::new()?,
            address,
            source: None,
            tls: None,
            bearers: Vec::new(),
            bearer: 0,
            transport,
            subprotocol,
            accept: tungstenite::handshake::derive_accept_key(websocket::HANDSHAKE_KEY.as_bytes()),
            connections: Vec::new(),
            dirty: Vec::new(),
            buffer: vec![0; 256 << 10],
            ready: Vec::new(),
            start: Instant::now(),
            punctual: true,
        })
    }

    /// Nanoseconds since the engine was made.
    pub fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Connections opened so far, closed ones included: the next one gets this number.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Connections come from this address from now on.
    pub fn come_from(&mut self, source: Option<Ipv4Addr>) {
        self.source = source;
    }

    /// Connections speak TLS from now on, if a configuration is given.
    pub fn encrypt(&mut self, tls: Option<Arc<ClientConfig>>) {
        self.tls = tls;
    }

    /// Tokens of those in whose name connections are opened.
    pub fn speak_for(&mut self, bearers: impl IntoIterator<Item = String>) {
        self.bearers = bearers.into_iter().map(Rc::from).collect();
    }

    /// Connections opened from now on are of the `nth` of them, counted round.
    pub fn in_the_name_of(&mut self, nth: usize) {
        self.bearer = nth;
    }

    /// Starts a connection to `path` and returns its number.
    pub fn open(&mut self, path: String) -> io::Result<usize> {
        self.open_with(path, None)
    }

    /// [`Engine::open`], showing a resume token.
    pub fn open_with(&mut self, path: String, token: Option<Box<str>>) -> io::Result<usize> {
        let number = self.connections.len();
        let socket = self.poll.connect(self.address, self.source, number)?;
        self.connections.push(Connection {
            line: Some(Line::new(socket, self.tls.as_ref())?),
            stage: Stage::Connecting,
            path,
            token,
            bearer: self.bearers.get(self.bearer % self.bearers.len().max(1)).cloned(),
            partial: Vec::new(),
            stream: Vec::new(),
            out: Vec::new(),
            sent: 0,
            wants_write: true,
            dirty: false,
        });
        Ok(number)
    }

    /// Drops a connection with a reset; the handler hears nothing of it.
    pub fn close(&mut self, connection: usize) {
        let c = &mut self.connections[connection];
        c.stage = Stage::Closed;
        c.line = None;
        c.path = String::new();
        c.token = None;
        c.bearer = None;
        c.out = Vec::new();
        c.partial = Vec::new();
        c.stream = Vec::new();
    }

    /// Stops reading a connection that has nothing to send: its kernel's buffer fills, then the server's queue.
    pub fn stop_reading(&mut self, connection: usize) -> io::Result<()> {
        match &self.connections[connection].line {
            Some(line) => self.poll.look_away(&line.socket, connection),
            None => Ok(()),
        }
    }

    /// Reads it again.
    pub fn read_again(&mut self, connection: usize) -> io::Result<()> {
        match &self.connections[connection].line {
            Some(line) => self.poll.want_write(&line.socket, connection, false),
            None => Ok(()),
        }
    }

    /// The send buffer of a connection, to be flushed with the next [`Engine::step`] or [`Engine::flush`].
    pub fn out(&mut self, connection: usize) -> &mut Vec<u8> {
        let c = &mut self.connections[connection];
        if !c.dirty {
            c.dirty = true;
            self.dirty.push(connection);
        }
        &mut c.out
    }

    /// Hands everything queued to the kernel; what it does not take goes with a later writable report.
    pub fn flush(&mut self, handler: &mut impl Handler) {
        while let Some(number) = self.dirty.pop() {
            let c = &mut self.connections[number];
            c.dirty = false;
            if let Err(why) = c.flush(&self.poll, number)
                && c.stage != Stage::Closed
            {
                self.close(number);
                handler.lost(number, why.to_string());
            }
        }
    }

    /// A schedule is to be kept, which costs some CPU; else as much is to be done as this core can do.
    pub fn set_punctual(&mut self, punctual: bool) {
        self.punctual = punctual;
    }

    /// Flushes, waits up to `wait_ns` for something to happen, and handles it.
    pub fn step(&mut self, handler: &mut impl Handler, wait_ns: u64) {
        self.flush(handler);
        let mut ready = std::mem::take(&mut self.ready);
        if self.punctual {
            // The kernel completes the server's direct writes on the core that the disk interrupts, which may be this one: a
            // generator that never sleeps would let them wait for the scheduler's tick.
            std::thread::yield_now();
        }
        let ready_max = if self.punctual { READY_MAX_PUNCTUAL } else { usize::MAX };
        self.poll.wait(&mut ready, wait_ns, ready_max);
        for event in &ready {
            if event.writable {
                self.writable(event.token, handler);
            }
            if event.readable
                && let Err(end) = self.readable(event.token, handler)
            {
                self.close(event.token);
                match end {
                    End::Refused(head) => handler.refused(event.token, &head),
                    End::Lost(why) => handler.lost(event.token, why),
                }
            }
        }
        self.ready = ready;
        self.flush(handler);
    }

    fn writable(&mut self, number: usize, handler: &mut impl Handler) {
        let c = &mut self.connections[number];
        if c.stage == Stage::Connecting {
            if self.transport == Transport::Tcp {
                c.stage = Stage::Open;
                handler.opened(number, &mut c.out);
            } else {
                c.stage = Stage::Upgrading;
                let (host, token, bearer) = (self.address.to_string(), c.token.as_deref(), c.bearer.as_deref());
                c.out = websocket::upgrade_request(&c.path, &host, self.subprotocol, token, bearer);
            }
        }
        self.out(number);
    }

    fn readable(&mut self, number: usize, handler: &mut impl Handler) -> Result<(), End> {
        let now = self.start.elapsed().as_nanos() as u64;
        let c = &mut self.connections[number];
        let Some(line) = &c.line else { return Ok(()) };
        let n = match line.read(&mut self.buffer) {
            Ok(0) => return Err(End::Lost("closed by the server without a close frame".into())),
            Ok(n) => n,
            Err(why) if why.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(why) => return Err(End::Lost(why.to_string())),
        };
        let joined;
        let mut bytes = &self.buffer[..n];
        if !c.partial.is_empty() {
            c.partial.extend_from_slice(bytes);
            joined = std::mem::take(&mut c.partial);
            bytes = &joined;
        }
        if c.stage == Stage::Upgrading {
            let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
                c.partial.extend_from_slice(bytes);
                return Ok(());
            };
            let head = String::from_utf8_lossy(&bytes[..end]);
            if !head.starts_with("HTTP/1.1 101") || !head.contains(&self.accept) {
                return Err(End::Refused(head.into_owned()));
            }
            bytes = &bytes[end + 4..];
            c.stage = Stage::Open;
            handler.opened(number, &mut c.out);
        }
        if self.transport == Transport::Tcp {
            let taken = handler.received(number, now, bytes, &mut c.out);
            bytes = &bytes[taken..];
        } else {
            while let Some((opcode, payload, rest)) = websocket::decode(bytes) {
                c.message(self.transport, opcode, payload, |bytes, out| handler.received(number, now, bytes, out))
                    .map_err(End::Lost)?;
                bytes = rest;
            }
        }
        if !bytes.is_empty() {
            c.partial.extend_from_slice(bytes);
        }
        if c.sent < c.out.len() {
            self.out(number);
        }
        Ok(())
    }
}

impl Connection {
    fn message(
        &mut self,
        transport: Transport,
        opcode: u8,
        payload: &[u8],
        received: impl FnOnce(&[u8], &mut Vec<u8>) -> usize,
    ) -> Result<(), String> {
        match opcode {
            websocket::PING => websocket::encode(&mut self.out, websocket::PONG, payload),
            websocket::PONG => {}
            websocket::CLOSE => {
                let code = payload.get(..2).map_or(0, |code| u16::from_be_bytes([code[0], code[1]]));
                let why = String::from_utf8_lossy(payload.get(2..).unwrap_or_default());
                return Err(format!("closed by the server: {code} {why}"));
            }
            _ if transport == Transport::Messages || self.stream.is_empty() => {
                let taken = received(payload, &mut self.out);
                self.stream.extend_from_slice(&payload[taken..]);
            }
            _ => {
                self.stream.extend_from_slice(payload);
                let taken = received(&self.stream, &mut self.out);
                self.stream.drain(..taken);
            }
        }
        Ok(())
    }

    fn flush(&mut self, poll: &Poll, number: usize) -> io::Result<()> {
        let Some(line) = &self.line else { return Ok(()) };
        if self.stage == Stage::Connecting {
            return Ok(());
        }
        let mut blocked = false;
        while self.sent < self.out.len() && !blocked {
            match line.write(&self.out[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => blocked = true,
                Err(why) => return Err(why),
            }
        }
        if !blocked {
            self.out.clear();
            self.sent = 0;
            blocked = match line.flush() {
                Err(why) if why.kind() == io::ErrorKind::WouldBlock => true,
                flushed => flushed.map(|()| false)?,
            };
        }
        if blocked != self.wants_write {
            poll.want_write(&line.socket, number, blocked)?;
            self.wants_write = blocked;
        }
        Ok(())
    }
}
