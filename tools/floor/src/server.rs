//! Connections, sessions as lists of subscribers, and the turn.
//!
//! ```text
//!   reap ─► accept │ bytes ─► frames ─► publish ─► (log) ─► sends ─► submit and wait
//! ```
//! One send of a connection is under way at a time: two could overtake each other when the socket is full.

use crate::link::{self, Finders, Publisher};
use crate::log::Log;
use crate::ring::{self, Completion, Kind, Ring};
use slab::Slab;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

/// Small: most connections are idle.
struct Connection {
    slot: u32,
    session: u32,
    /// Buffer that is being sent.
    sending: Option<u32>,
    /// With `--merge`: buffer that takes what this connection alone is owed in this turn.
    own: Option<u32>,
    /// Buffers that go out after it.
    queue: Vec<u32>,
    /// Bytes of a frame, or request, that is not whole.
    partial: Vec<u8>,
    /// What its events have in common; made with its first one.
    publisher: Option<Box<Publisher>>,
    client: Box<str>,
    open: bool,
    closed: bool,
}

#[derive(Default)]
struct Session {
    name: Box<str>,
    subscribers: Vec<u32>,
    /// With `--merge`: buffer that takes the events of this turn.
    burst: Option<u32>,
}

/// Bytes to be sent to so many connections.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    users: u32,
}

/// An event on its way to disk.
struct Owed {
    publisher: u32,
    session: u32,
    ack: u32,
    event: u32,
}

pub struct Server {
    ring: Ring,
    listener: i32,
    connections: Slab<Connection>,
    sessions: Vec<Session>,
    names: HashMap<Box<str>, u32>,
    buffers: Vec<Buffer>,
    free: Vec<u32>,
    log: Option<Log>,
    owed: Slab<Owed>,
    /// Events that the group being filled has no room for.
    backlog: VecDeque<usize>,
    durable: Vec<usize>,
    merge: bool,
    spin: Duration,
    bursts: Vec<u32>,
    owns: Vec<u32>,
    finders: Finders,
    input: Vec<u8>,
}

const NO_SESSION: u32 = u32::MAX;

impl Server {
    pub fn new(listener: &TcpListener, log: Option<Log>, merge: bool, spin_us: u64) -> io::Result<Server> {
        ring::no_delay(listener)?;
        let mut ring = Ring::open(ring::descriptors_max(), log.is_some())?;
        ring.accept(listener.as_raw_fd())?;
        Ok(Server {
            ring,
            listener: listener.as_raw_fd(),
            connections: Slab::new(),
            sessions: Vec::new(),
            names: HashMap::new(),
            buffers: Vec::new(),
            free: Vec::new(),
            log,
            owed: Slab::new(),
            backlog: VecDeque::new(),
            durable: Vec::new(),
            merge,
            spin: Duration::from_micros(spin_us),
            bursts: Vec::new(),
            owns: Vec::new(),
            finders: Finders::new(),
            input: Vec::new(),
        })
    }

    /// Serves until the ring breaks.
    pub fn serve(&mut self) -> io::Result<()> {
        let mut completions = Vec::with_capacity(8192);
        loop {
            self.wait()?;
            loop {
                self.ring.reap(&mut completions);
                if completions.is_empty() {
                    break;
                }
                for completion in &completions {
                    self.complete(completion)?;
                }
            }
            self.flush()?;
        }
    }

    /// Submits what was pushed; spins, then sleeps, until something completes.
    fn wait(&mut self) -> io::Result<()> {
        if !self.spin.is_zero() {
            let until = Instant::now() + self.spin;
            while Instant::now() < until {
                self.ring.enter()?;
                if !self.ring.is_quiet() {
                    return Ok(());
                }
            }
        }
        self.ring.wait()
    }

    fn complete(&mut self, completion: &Completion) -> io::Result<()> {
        let Completion { kind, index, result, more, buffer } = *completion;
        match kind {
            Kind::Accept => {
                if !more {
                    self.ring.accept(self.listener)?;
                }
                if let Ok(slot) = u32::try_from(result) {
                    let index = self.connections.insert(Connection::new(slot));
                    self.ring.recv(slot, index)?;
                }
                Ok(())
            }
            Kind::Recv => {
                if let (Some(bid), Ok(n)) = (buffer, usize::try_from(result)) {
                    let mut input = std::mem::take(&mut self.input);
                    input.clear();
                    if let Some(c) = self.connections.get_mut(index) {
                        input.append(&mut c.partial);
                    }
                    input.extend_from_slice(self.ring.received(bid, n));
                    self.ring.give_back(bid);
                    self.received(index, &mut input)?;
                    self.input = input;
                }
                if more {
                    Ok(())
                } else if result > 0 || result == -libc::ENOBUFS {
                    let slot = self.connections[index].slot;
                    self.ring.recv(slot, index)
                } else {
                    self.close(index)
                }
            }
            Kind::Send => {
                let c = &mut self.connections[index];
                let sent = c.sending.take();
                if let Some(sent) = sent {
                    self.release(sent);
                }
                let c = &mut self.connections[index];
                if c.closed {
                    self.connections.remove(index);
                } else if !c.queue.is_empty() {
                    let next = c.queue.remove(0);
                    self.start(index, next)?;
                }
                Ok(())
            }
            Kind::Write if result < 0 => Err(io::Error::from_raw_os_error(-result)),
            Kind::Sync if result < 0 => Err(io::Error::from_raw_os_error(-result)),
            Kind::Sync => {
                let mut durable = std::mem::take(&mut self.durable);
                if let Some(log) = &mut self.log {
                    log.synced(index, &mut durable);
                }
                for owed in durable.drain(..) {
                    let Owed { publisher, session, ack, event } = self.owed.remove(owed);
                    self.send(publisher as usize, ack)?;
                    self.broadcast(session, event)?;
                }
                self.durable = durable;
                Ok(())
            }
            Kind::Write | Kind::Close => Ok(()),
        }
    }

    fn received(&mut self, index: usize, input: &mut [u8]) -> io::Result<()> {
        let mut at = 0;
        if !self.connections[index].open {
            let Some(asked) = link::upgrade(input) else { return self.keep(index, input) };
            let (session, client, end) = (asked.session.to_string(), Box::from(asked.client), asked.bytes);
            let answer = self.buffer();
            link::welcome(&mut self.buffers[answer as usize].bytes, asked.key);
            let session = if session.is_empty() { NO_SESSION } else { self.session(&session) };
            let c = &mut self.connections[index];
            (c.open, c.session, c.client) = (true, session, client);
            self.send(index, answer)?;
            at = end;
        }
        while let Some(found) = link::masked(&input[at..]) {
            let payload = at + found.payload.start..at + found.payload.end;
            at = payload.end;
            if found.opcode == 1 {
                let text = &mut input[payload];
                link::unmask(text, found.key);
                self.command(index, text)?;
            }
        }
        self.keep(index, &input[at..])
    }

    fn keep(&mut self, index: usize, rest: &[u8]) -> io::Result<()> {
        if !rest.is_empty() {
            self.connections[index].partial = rest.to_vec();
        }
        Ok(())
    }

    fn command(&mut self, index: usize, text: &[u8]) -> io::Result<()> {
        if text.starts_with(br#"{"type":"publish""#) {
            return self.publish(index, text);
        }
        if let Some(name) = link::subscribed_session(text) {
            let session = self.session(name);
            self.connections[index].session = session;
            self.sessions[session as usize].subscribers.push(index as u32);
            let reply = self.buffer();
            let rest = br#"","next":0,"earliest":0}"#;
            let head = br#"{"type":"subscribed","id":1,"session":""#;
            link::frame(&mut self.buffers[reply as usize].bytes, &[head, name.as_bytes(), rest]);
            self.send(index, reply)?;
        }
        Ok(())
    }

    fn publish(&mut self, index: usize, text: &[u8]) -> io::Result<()> {
        let c = &mut self.connections[index];
        let Some(session) = self.sessions.get(c.session as usize) else { return Ok(()) };
        let number = c.session;
        let made = || Box::new(Publisher::new(&session.name, &c.client));
        let publisher = c.publisher.take().unwrap_or_else(made);
        if self.merge && self.log.is_none() {
            self.publish_merged(index, number, &publisher, text);
        } else {
            let (ack, event) = (self.buffer(), self.buffer());
            publisher.acknowledge(&mut self.buffers[ack as usize].bytes, &self.finders, text);
            publisher.event(&mut self.buffers[event as usize].bytes, &self.finders, text);
            if let Some(log) = &mut self.log {
                let owed = self.owed.insert(Owed { publisher: index as u32, session: number, ack, event });
                let bytes = &self.buffers[event as usize].bytes;
                if self.backlog.is_empty() && log.has_room(bytes.len()) {
                    log.append(bytes, owed);
                } else {
                    self.backlog.push_back(owed);
                }
            } else {
                self.send(index, ack)?;
                self.broadcast(number, event)?;
            }
        }
        self.connections[index].publisher = Some(publisher);
        Ok(())
    }

    fn publish_merged(&mut self, index: usize, session: u32, publisher: &Publisher, text: &[u8]) {
        let own = match self.connections[index].own {
            Some(own) => own,
            None => {
                let own = self.buffer();
                self.connections[index].own = Some(own);
                self.owns.push(index as u32);
                own
            }
        };
        publisher.acknowledge(&mut self.buffers[own as usize].bytes, &self.finders, text);
        let burst = match self.sessions[session as usize].burst {
            Some(burst) => burst,
            None => {
                let burst = self.buffer();
                self.sessions[session as usize].burst = Some(burst);
                self.bursts.push(session);
                burst
            }
        };
        publisher.event(&mut self.buffers[burst as usize].bytes, &self.finders, text);
    }

    /// The end of a turn: merged sends, and a group for the disk.
    fn flush(&mut self) -> io::Result<()> {
        while let Some(index) = self.owns.pop() {
            let own = self.connections.get_mut(index as usize).and_then(|c| c.own.take());
            if let Some(own) = own {
                self.send(index as usize, own)?;
            }
        }
        while let Some(session) = self.bursts.pop() {
            if let Some(burst) = self.sessions[session as usize].burst.take() {
                self.broadcast(session, burst)?;
            }
        }
        if let Some(log) = &mut self.log {
            log.close(&mut self.ring)?;
            while let Some(owed) = self.backlog.front().copied() {
                let bytes = &self.buffers[self.owed[owed].event as usize].bytes;
                if !log.has_room(bytes.len()) {
                    break;
                }
                log.append(bytes, owed);
                self.backlog.pop_front();
            }
        }
        Ok(())
    }

    /// One send for each subscriber, all of the same bytes.
    fn broadcast(&mut self, session: u32, buffer: u32) -> io::Result<()> {
        let subscribers = std::mem::take(&mut self.sessions[session as usize].subscribers);
        self.buffers[buffer as usize].users += subscribers.len() as u32;
        for subscriber in &subscribers {
            self.send_shared(*subscriber as usize, buffer)?;
        }
        self.sessions[session as usize].subscribers = subscribers;
        if self.buffers[buffer as usize].users == 0 {
            self.free.push(buffer);
        }
        Ok(())
    }

    fn send(&mut self, index: usize, buffer: u32) -> io::Result<()> {
        self.buffers[buffer as usize].users += 1;
        self.send_shared(index, buffer)
    }

    fn send_shared(&mut self, index: usize, buffer: u32) -> io::Result<()> {
        match self.connections.get_mut(index) {
            Some(c) if c.closed => self.release(buffer),
            Some(c) if c.sending.is_some() => c.queue.push(buffer),
            Some(_) => self.start(index, buffer)?,
            None => self.release(buffer),
        }
        Ok(())
    }

    fn start(&mut self, index: usize, buffer: u32) -> io::Result<()> {
        let c = &mut self.connections[index];
        c.sending = Some(buffer);
        // SAFETY: a buffer with users is neither changed nor freed before its sends have completed; `buffers` may move its
        // elements, but not the bytes that they own.
        unsafe { self.ring.send(c.slot, &self.buffers[buffer as usize].bytes, index) }
    }

    fn release(&mut self, buffer: u32) {
        let b = &mut self.buffers[buffer as usize];
        b.users -= 1;
        if b.users == 0 {
            self.free.push(buffer);
        }
    }

    /// An empty buffer without users.
    fn buffer(&mut self) -> u32 {
        match self.free.pop() {
            Some(free) => {
                self.buffers[free as usize].bytes.clear();
                free
            }
            None => {
                self.buffers.push(Buffer::default());
                (self.buffers.len() - 1) as u32
            }
        }
    }

    fn session(&mut self, name: &str) -> u32 {
        if let Some(known) = self.names.get(name) {
            return *known;
        }
        let number = self.sessions.len() as u32;
        self.sessions.push(Session { name: name.into(), ..Session::default() });
        self.names.insert(name.into(), number);
        number
    }

    fn close(&mut self, index: usize) -> io::Result<()> {
        let c = &mut self.connections[index];
        c.closed = true;
        let (slot, session, idle) = (c.slot, c.session, c.sending.is_none());
        let queue = std::mem::take(&mut c.queue);
        if let Some(session) = self.sessions.get_mut(session as usize) {
            session.subscribers.retain(|subscriber| *subscriber as usize != index);
        }
        queue.into_iter().for_each(|buffer| self.release(buffer));
        if idle {
            self.connections.remove(index);
        }
        self.ring.close(slot)
    }
}

impl Connection {
    fn new(slot: u32) -> Connection {
        Connection {
            slot,
            session: NO_SESSION,
            sending: None,
            own: None,
            queue: Vec::new(),
            partial: Vec::new(),
            publisher: None,
            client: Box::default(),
            open: false,
            closed: false,
        }
    }
}
