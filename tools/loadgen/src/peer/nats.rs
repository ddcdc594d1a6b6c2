//! NATS, and JetStream where events must be kept: one file-backed stream, a push consumer for each session.
//!
//! ```text
//!   publisher   PUB SESSION a.LANE.NUMBER n      ◄── MSG a.LANE.NUMBER {"stream":…}      (the acknowledgement)
//!   reader      SUB SESSION, or d.SESSION        ◄── MSG … data
//! ```

use super::{Link, Note, Peer, Publish, Role, Transport};
use crate::stamp::Stamp;
use crate::websocket;
use memchr::{memchr, memmem};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};

pub struct Nats {
    durable: bool,
    setup: Option<SocketAddrV4>,
}

impl Nats {
    pub fn new(durable: bool, setup: Option<SocketAddrV4>) -> Nats {
        Nats { durable, setup }
    }

    fn message(&self, link: &Link, head: &[u8], body: &[u8]) -> Note {
        match link.role {
            Role::Reader(_) => Stamp::find(body).map_or_else(|| shown(body), Note::Event),
            _ if memmem::find(body, b"\"error\"").is_some() => shown(body),
            _ => {
                let subject = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
                let number = subject.rsplit(|byte| *byte == b'.').next();
                let number = number.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
                number.map_or_else(|| shown(head), Note::Acknowledged)
            }
        }
    }
}

fn shown(bytes: &[u8]) -> Note {
    Note::Error(String::from_utf8_lossy(bytes).into_owned())
}

/// `session` as a subject: the part before its last dash is the stream's.
fn subject(session: &str) -> String {
    session.replacen('-', ".", 1)
}

impl Peer for Nats {
    fn transport(&self) -> Transport {
        Transport::Stream
    }

    fn path(&self, _link: &Link, _place: &str) -> String {
        "/".into()
    }

    fn subprotocol(&self) -> Option<&'static str> {
        None
    }

    fn acknowledges(&self) -> bool {
        self.durable
    }

    fn prepare(&self, sessions: &[String]) -> io::Result<()> {
        if !self.durable {
            return Ok(());
        }
        let setup = self.setup.ok_or_else(|| io::Error::other("JetStream needs --setup, the plain TCP listener"))?;
        let mut control = Control::open(setup)?;
        let stream = sessions[0].split('-').next().unwrap_or_default();
        let about = format!(r#"{{"name":"LOG","subjects":["{stream}.*"],"storage":"file","num_replicas":1}}"#);
        control.request("$JS.API.STREAM.CREATE.LOG", &about)?;
        for session in sessions {
            let subject = subject(session);
            let about = format!(
                r#"{{"stream_name":"LOG","config":{{"name":"{session}","deliver_subject":"d.{subject}","deliver_policy":"new","ack_policy":"none","filter_subject":"{subject}","mem_storage":true,"inactive_threshold":300000000000}}}}"#
            );
            control.request(&format!("$JS.API.CONSUMER.CREATE.LOG.{session}.{subject}"), &about)?;
        }
        Ok(())
    }

    fn opened(&mut self, link: &mut Link, out: &mut Vec<u8>) -> bool {
        let connect = r#"CONNECT {"verbose":false,"pedantic":false,"lang":"load","version":"1","protocol":1}"#;
        let subscribe = match link.role {
            Role::Reader(_) if self.durable => format!("SUB d.{} 1\r\n", subject(&link.session)),
            Role::Reader(_) => format!("SUB {} 1\r\n", subject(&link.session)),
            Role::Publisher(lane) if self.durable => format!("SUB a.{lane}.* 1\r\n"),
            _ => String::new(),
        };
        websocket::encode(out, websocket::BINARY, format!("{connect}\r\n{subscribe}PING\r\n").as_bytes());
        false
    }

    fn publish(&mut self, _link: &mut Link, publish: &Publish, out: &mut Vec<u8>) {
        let Publish { session, stamp, bytes } = publish;
        let bytes = (*bytes).max(crate::stamp::STAMP_BYTES);
        websocket::encode_with(out, websocket::BINARY, |text| {
            text.extend_from_slice(b"PUB ");
            let dash = session.find('-').unwrap_or(session.len());
            text.extend_from_slice(&session.as_bytes()[..dash]);
            text.push(b'.');
            text.extend_from_slice(session.as_bytes().get(dash + 1..).unwrap_or_default());
            // A Vec takes every write.
            let _infallible = match self.durable {
                true => write!(text, " a.{}.{} {bytes}\r\n", stamp.lane, stamp.number),
                false => write!(text, " {bytes}\r\n"),
            };
            stamp.write(text, bytes);
            text.extend_from_slice(b"\r\n");
        });
    }

    fn receive(&mut self, link: &mut Link, bytes: &[u8], out: &mut Vec<u8>, notes: &mut dyn FnMut(Note)) -> usize {
        let mut at = 0;
        while let Some(end) = memchr(b'\n', &bytes[at..]) {
            let line = bytes[at..at + end].strip_suffix(b"\r").unwrap_or(&bytes[at..at + end]);
            let next = at + end + 1;
            if line.starts_with(b"MSG ") {
                let digits = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
                let length = digits.iter().fold(0usize, |n, digit| n * 10 + usize::from(digit.wrapping_sub(b'0')));
                let Some(body) = bytes.get(next..next + length).filter(|_| bytes.len() >= next + length + 2) else {
                    return at;
                };
                notes(self.message(link, line, body));
                at = next + length + 2;
                continue;
            }
            match line {
                b"PING" => websocket::encode(out, websocket::BINARY, b"PONG\r\n"),
                b"PONG" => notes(Note::Ready { shard: 0 }),
                _ if line.starts_with(b"-ERR") => notes(shown(line)),
                _ => {} // INFO, +OK
            }
            at = next;
        }
        at
    }
}

/// Requests and replies over plain TCP, one at a time.
struct Control {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Control {
    fn open(address: SocketAddrV4) -> io::Result<Control> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.write_all(b"CONNECT {\"verbose\":false}\r\nSUB r 1\r\n")?;
        Ok(Control { stream, unread: Vec::new() })
    }

    fn request(&mut self, subject: &str, body: &str) -> io::Result<()> {
        self.stream.write_all(format!("PUB {subject} r {}\r\n{body}\r\n", body.len()).as_bytes())?;
        loop {
            if let Some(from) = memmem::find(&self.unread, b"MSG r 1 ")
                && let Some(length) = memmem::find(&self.unread[from..], b"}\r\n")
            {
                let reply = String::from_utf8_lossy(&self.unread[from..from + length]).into_owned();
                self.unread.drain(..from + length + 3);
                return if reply.contains("\"error\"") {
                    Err(io::Error::other(format!("{subject}: {reply}")))
                } else {
                    Ok(())
                };
            }
            let mut bytes = [0; 16 << 10];
            let n = self.stream.read(&mut bytes)?;
            if n == 0 {
                return Err(io::Error::other("the server closed the connection that prepares it"));
            }
            self.unread.extend_from_slice(&bytes[..n]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_and_acknowledgements_are_read_whole_or_not_at_all() {
        let stamp = Stamp { intended: 1, actual: 2, lane: 3, number: 4 };
        let mut data = Vec::new();
        stamp.write(&mut data, 64);
        let mut peer = Nats::new(true, None);
        let mut reader = Link::new(Role::Reader(3), "lg1-3");
        let mut bytes = b"INFO {}\r\nMSG d.lg1.3 1 64\r\n".to_vec();
        let head = bytes.len();
        bytes.extend_from_slice(&data);
        bytes.extend_from_slice(b"\r\n");
        let mut notes = Vec::new();
        assert_eq!(peer.receive(&mut reader, &bytes[..head + 40], &mut Vec::new(), &mut |n| notes.push(n)), 9);
        assert_eq!(peer.receive(&mut reader, &bytes, &mut Vec::new(), &mut |n| notes.push(n)), bytes.len());
        assert_eq!(notes, [Note::Event(stamp)]);
        let mut publisher = Link::new(Role::Publisher(3), "lg1-3");
        let mut notes = Vec::new();
        peer.receive(&mut publisher, b"PONG\r\nMSG a.3.17 1 2\r\n{}\r\n", &mut Vec::new(), &mut |n| notes.push(n));
        assert_eq!(notes, [Note::Ready { shard: 0 }, Note::Acknowledged(17)]);
    }
}
