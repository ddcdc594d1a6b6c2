//! What a server speaks: one small adapter for each, so that all of them meet the same load from the same loop.
//!
//! ```text
//!   tidegate   WebSocket, JSON commands; the floors of `tools/floor` speak it as far as load needs
//!   ws         WebSocket, /pub/SESSION and /sub/SESSION: what a publisher sends reaches the subscribers as it is
//!   nats       NATS or JetStream, over WebSocket
//!   redis      Redis publish/subscribe or streams, RESP over TCP
//! ```

pub mod life;
mod nats;
mod plain;
mod redis;
mod tidegate;
pub mod work;

pub use tidegate::subscribe_from_start;

use crate::stamp::Stamp;
use std::net::SocketAddrV4;

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Of a lane.
    Publisher(u32),
    /// Of a lane.
    Reader(u32),
    /// Does nothing.
    Bare,
}

/// How bytes travel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// A WebSocket message is a message of the protocol.
    Messages,
    /// WebSocket, but the payloads are one stream.
    Stream,
    /// Plain TCP.
    Tcp,
}

/// What a connection heard.
#[derive(Debug, PartialEq, Eq)]
pub enum Note {
    /// Everything asked for at the beginning stands. `shard` where the server says which one serves the connection.
    Ready {
        shard: u32,
    },
    /// The publish with this number of the connection's lane is acknowledged.
    Acknowledged(u32),
    Event(Stamp),
    Error(String),
}

/// Protocol state of one connection.
#[derive(Debug)]
pub struct Link {
    pub role: Role,
    /// Session of the lane.
    pub session: String,
    /// Publishes sent, where acknowledgements carry no number and come in order.
    acknowledged: u32,
    /// Where a reader that asks for more stands.
    last: Vec<u8>,
    shard: u32,
}

impl Link {
    pub fn new(role: Role, session: &str) -> Link {
        Link { role, session: session.into(), acknowledged: 0, last: Vec::new(), shard: 0 }
    }
}

/// One event to be published.
pub struct Publish<'a> {
    /// Where it goes; the link's session unless a publisher serves many.
    pub session: &'a str,
    pub stamp: Stamp,
    /// Bytes of data.
    pub bytes: usize,
}

/// A protocol. Functions append whatever is to be sent to `out`.
pub trait Peer {
    fn transport(&self) -> Transport;
    /// Path of the upgrade request; `place` is the session that says where the connection is to live.
    fn path(&self, link: &Link, place: &str) -> String;
    fn subprotocol(&self) -> Option<&'static str>;
    /// Whether publishes are acknowledged.
    fn acknowledges(&self) -> bool;
    /// Once, before any connection: whatever the server needs to be told first.
    fn prepare(&self, sessions: &[String]) -> std::io::Result<()> {
        let _nothing_to_prepare = sessions;
        Ok(())
    }
    /// The transport stands. True: the connection is ready at once.
    fn opened(&mut self, link: &mut Link, out: &mut Vec<u8>) -> bool;
    fn publish(&mut self, link: &mut Link, publish: &Publish, out: &mut Vec<u8>);
    /// Takes whole messages from the beginning of `bytes`; returns how many bytes those were.
    fn receive(&mut self, link: &mut Link, bytes: &[u8], out: &mut Vec<u8>, notes: &mut dyn FnMut(Note)) -> usize;
}

/// Which adapter, and how it is used.
#[derive(Clone)]
pub struct Choice {
    pub name: Name,
    /// Publishes are to be on disk (or where the server keeps them) before they are acknowledged.
    pub durable: bool,
    pub durability: Option<String>,
    /// Plain TCP listener for what cannot be prepared over the other one.
    pub setup: Option<SocketAddrV4>,
    /// Beginning of the client ids of this run.
    pub run: String,
}

/// The adapters.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Name {
    Tidegate,
    Ws,
    Nats,
    Redis,
}

pub fn make(choice: &Choice) -> Box<dyn Peer> {
    match choice.name {
        Name::Tidegate => Box::new(tidegate::Tidegate::new(&choice.run, choice.durability.as_deref())),
        Name::Ws => Box::new(plain::Plain),
        Name::Nats => Box::new(nats::Nats::new(choice.durable, choice.setup)),
        Name::Redis => Box::new(redis::Redis::new(choice.durable)),
    }
}
