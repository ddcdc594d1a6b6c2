//! TLS of one connection, between its socket and everything else: ciphertext in, plaintext out, and back. No sockets.
//!
//! ```text
//!   socket ─► take ─► plaintext ─► framer            hello ─► handshake ─► traffic ─► goodbye
//!   socket ◄─ out  ◄─ put ◄─ send queue               │ bounded in bytes and time     │ close_notify, behind all that was put
//!               └ one send with the kernel, or ready  └ not from a client that speaks plain: it is told, and closed
//! ```
//! What is `out` holds whole records of up to [`SEND_BYTES_MAX`] plaintext; it is made when the send before it is through, so that a
//! reader who does not read has its bytes in the send queue, where they are counted.

use rustls::ServerConnection;
use std::io::{self, Read as _, Write as _};
use std::sync::Arc;

/// Plaintext of one send.
pub const SEND_BYTES_MAX: usize = 64 << 10;
/// Bytes that a client may send until its handshake is through: room for a chain of certificates, which is kept as long as its
/// connection lives.
pub const HANDSHAKE_BYTES_MAX: usize = 16 << 10;
/// First byte of a handshake record.
const HANDSHAKE_RECORD: u8 = 22;

/// How a connection's bytes travel.
pub enum Transport {
    /// As they are.
    Plain,
    /// Encrypted.
    Tls(Box<Tls>),
}

impl Transport {
    /// As they are?
    pub fn is_plain(&self) -> bool {
        matches!(self, Transport::Plain)
    }

    /// What encrypts them, if something does.
    pub fn tls(&mut self) -> Option<&mut Tls> {
        match self {
            Transport::Plain => None,
            Transport::Tls(tls) => Some(tls),
        }
    }
}

/// What came of received bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Took {
    /// They were taken; there may be something to be sent.
    All,
    /// The peer says that it will send nothing more.
    Goodbye,
    /// They break TLS, or the handshake's bound. An alert is ready.
    Broken,
}

/// One connection's.
pub struct Tls {
    connection: ServerConnection,
    /// Records with the kernel, or ready.
    out: Vec<u8>,
    /// Of these, what is sent.
    sent: usize,
    /// Bytes of the send queue that they hold.
    plain: usize,
    sending: bool,
    /// Bytes that came until the handshake was through.
    hello_bytes: usize,
    /// It has had its turn among the newcomers.
    pub admitted: bool,
    broken: bool,
    goodbye: bool,
}

impl Tls {
    /// A connection that waits for its client's first bytes; `None` where the configuration is none for servers.
    pub fn new(config: &Arc<rustls::ServerConfig>) -> Option<Box<Self>> {
        let mut connection = ServerConnection::new(Arc::clone(config)).ok()?;
        // What is put is bounded here.
        connection.set_buffer_limit(None);
        Some(Box::new(Self {
            connection,
            out: Vec::new(),
            sent: 0,
            plain: 0,
            sending: false,
            hello_bytes: 0,
            admitted: false,
            broken: false,
            goodbye: false,
        }))
    }

    /// Could these first bytes be TLS?
    pub fn begins(bytes: &[u8]) -> bool {
        bytes.first().is_none_or(|first| *first == HANDSHAKE_RECORD)
    }

    /// Takes ciphertext; the plaintext in it goes behind what `plain` holds.
    pub fn take(&mut self, mut bytes: &[u8], plain: &mut Vec<u8>) -> Took {
        if self.broken {
            return Took::Broken;
        }
        if self.connection.is_handshaking() {
            self.hello_bytes += bytes.len();
            if self.hello_bytes > HANDSHAKE_BYTES_MAX {
                self.broken = true;
                return Took::Broken;
            }
        }
        while !bytes.is_empty() {
            // Takes what its buffer has room for; that a slice cannot fail.
            let Ok(1..) = self.connection.read_tls(&mut bytes) else { break };
            match self.connection.process_new_packets() {
                Ok(state) => {
                    let before = plain.len();
                    plain.resize(before + state.plaintext_bytes_to_read(), 0);
                    let read = self.connection.reader().read_exact(&mut plain[before..]);
                    if read.is_err() {
                        plain.truncate(before);
                    }
                    if state.peer_has_closed() {
                        return Took::Goodbye;
                    }
                }
                Err(_) => {
                    self.broken = true;
                    return Took::Broken;
                }
            }
        }
        Took::All
    }

    /// Ciphertext that is held for the kernel.
    pub fn out_bytes(&self) -> usize {
        self.out.len()
    }

    /// Is the handshake still under way?
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// It takes nothing more and sends nothing but an alert.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// May bytes of the send queue be put now?
    pub fn takes_plain(&self) -> bool {
        !self.sending && self.out.is_empty() && !self.broken && !self.goodbye && !self.connection.is_handshaking()
    }

    /// Encrypts bytes of the send queue.
    pub fn put(&mut self, bytes: &[u8]) {
        self.plain += bytes.len();
        // Without a limit it takes all.
        let _ = self.connection.writer().write_all(bytes);
    }

    /// Says that nothing more will be put. `true`: not said before.
    pub fn say_goodbye(&mut self) -> bool {
        if self.broken || std::mem::replace(&mut self.goodbye, true) {
            return false;
        }
        self.connection.send_close_notify();
        true
    }

    /// The bytes to send now, if there are some and none are with the kernel. They stay where they are until [`Tls::completed`].
    pub fn begin(&mut self) -> Option<&[u8]> {
        if self.sending {
            return None;
        }
        while self.sent == 0 && self.connection.wants_write() {
            // A vector takes every write.
            if !matches!(self.connection.write_tls(&mut self.out), Ok(1..)) {
                break;
            }
        }
        self.sending = self.sent < self.out.len();
        self.sending.then(|| &self.out[self.sent..])
    }

    /// A send ended after `bytes`. When all that was ready is through: how many bytes of the send queue that were.
    pub fn completed(&mut self, bytes: usize) -> Option<usize> {
        self.sending = false;
        self.sent += bytes;
        if self.sent < self.out.len() {
            return None;
        }
        self.sent = 0;
        // An idle connection holds none.
        self.out = Vec::new();
        Some(std::mem::take(&mut self.plain))
    }

    /// The socket is gone: nothing is sent any more.
    pub fn gives_up(&mut self) {
        self.broken = true;
        self.sending = false;
        self.sent = 0;
        self.plain = 0;
        self.out = Vec::new();
        let _ = self.connection.write_tls(&mut io::sink());
    }

    /// A send is with the kernel.
    pub fn is_sending(&self) -> bool {
        self.sending
    }

    /// Nothing is ready and nothing is with the kernel.
    pub fn is_idle(&self) -> bool {
        !self.sending && self.out.is_empty() && !self.connection.wants_write()
    }
}

#[cfg(test)]
pub(super) mod tests;
