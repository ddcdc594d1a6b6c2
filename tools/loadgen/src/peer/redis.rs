//! Redis over TCP: publish/subscribe, or one stream a session with blocking reads where events must be kept.

use super::{Link, Note, Peer, Publish, Role, Transport};
use crate::stamp::Stamp;
use std::io::Write as _;

pub struct Redis {
    durable: bool,
    data: Vec<u8>,
}

impl Redis {
    pub fn new(durable: bool) -> Redis {
        Redis { durable, data: Vec::new() }
    }
}

pub(super) fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
    // A Vec takes every write.
    let _infallible = write!(out, "*{}\r\n", words.len());
    for word in words {
        let _infallible = write!(out, "${}\r\n", word.len());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// Asks for what comes after the last entry seen.
fn wait_for_more(link: &Link, out: &mut Vec<u8>) {
    let last: &[u8] = if link.last.is_empty() { b"$" } else { &link.last };
    command(out, &[b"XREAD", b"BLOCK", b"0", b"STREAMS", link.session.as_bytes(), last]);
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Array(usize),
    Bulk(&'a [u8]),
    Integer,
    Nothing,
    Simple,
    Error(&'a [u8]),
}

/// Reads one value, its parts flattened in order, and returns its bytes; None while it is not whole.
pub(super) fn value<'a>(bytes: &'a [u8], parts: &mut Vec<Value<'a>>) -> Option<usize> {
    let line_end = memchr::memchr(b'\n', bytes)?;
    let line = bytes.get(1..line_end.checked_sub(1)?)?;
    let number = || std::str::from_utf8(line).ok()?.parse::<i64>().ok();
    let mut at = line_end + 1;
    match bytes[0] {
        b'*' => match number()? {
            n @ 0.. => {
                parts.push(Value::Array(n as usize));
                for _ in 0..n {
                    at += value(&bytes[at..], parts)?;
                }
            }
            _ => parts.push(Value::Nothing),
        },
        b'$' => match number()? {
            n @ 0.. => {
                let end = at + n as usize;
                bytes.get(..end + 2)?;
                parts.push(Value::Bulk(&bytes[at..end]));
                at = end + 2;
            }
            _ => parts.push(Value::Nothing),
        },
        b':' => parts.push(Value::Integer),
        b'-' => parts.push(Value::Error(line)),
        _ => parts.push(Value::Simple),
    }
    Some(at)
}

fn event(data: &[u8]) -> Note {
    Stamp::find(data).map_or_else(|| Note::Error("an event without a stamp".into()), Note::Event)
}

impl Redis {
    fn note(&self, link: &mut Link, parts: &[Value], out: &mut Vec<u8>, notes: &mut dyn FnMut(Note)) {
        match (link.role, parts) {
            (_, [Value::Error(why), ..]) => notes(Note::Error(String::from_utf8_lossy(why).into_owned())),
            (_, [Value::Simple]) => notes(Note::Ready { shard: 0 }),
            (Role::Publisher(_), _) => {
                notes(Note::Acknowledged(link.acknowledged));
                link.acknowledged += 1;
            }
            (_, [Value::Array(3), Value::Bulk(b"message"), _, Value::Bulk(data)]) => notes(event(data)),
            (_, [Value::Array(3), Value::Bulk(b"subscribe"), ..]) => notes(Note::Ready { shard: 0 }),
            // One stream: [[name, [[id, [field, data]], …]]]
            (_, [Value::Array(1), Value::Array(2), Value::Bulk(_), Value::Array(_), entries @ ..]) => {
                for entry in entries.chunks(5) {
                    if let [_, Value::Bulk(id), _, _, Value::Bulk(data)] = entry {
                        link.last.clear();
                        link.last.extend_from_slice(id);
                        notes(event(data));
                    }
                }
                wait_for_more(link, out);
            }
            (_, [Value::Nothing]) => wait_for_more(link, out),
            (_, strange) => notes(Note::Error(format!("unexpected {strange:?}"))),
        }
    }
}

impl Peer for Redis {
    fn transport(&self) -> Transport {
        Transport::Tcp
    }

    fn path(&self, _link: &Link, _place: &str) -> String {
        String::new()
    }

    fn subprotocol(&self) -> Option<&'static str> {
        None
    }

    fn acknowledges(&self) -> bool {
        true
    }

    fn opened(&mut self, link: &mut Link, out: &mut Vec<u8>) -> bool {
        match link.role {
            Role::Reader(_) if !self.durable => command(out, &[b"SUBSCRIBE", link.session.as_bytes()]),
            Role::Reader(_) => {
                command(out, &[b"PING"]);
                wait_for_more(link, out);
            }
            _ => command(out, &[b"PING"]),
        }
        false
    }

    fn publish(&mut self, _link: &mut Link, publish: &Publish, out: &mut Vec<u8>) {
        self.data.clear();
        publish.stamp.write(&mut self.data, publish.bytes);
        let session = publish.session.as_bytes();
        if self.durable {
            command(out, &[b"XADD", session, b"*", b"d", &self.data]);
        } else {
            command(out, &[b"PUBLISH", session, &self.data]);
        }
    }

    fn receive(&mut self, link: &mut Link, bytes: &[u8], out: &mut Vec<u8>, notes: &mut dyn FnMut(Note)) -> usize {
        let mut at = 0;
        let mut parts = Vec::with_capacity(16);
        while at < bytes.len() {
            parts.clear();
            let Some(taken) = value(&bytes[at..], &mut parts) else { break };
            at += taken;
            self.note(link, &parts, out, notes);
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(peer: &mut Redis, link: &mut Link, bytes: &[u8]) -> (usize, Vec<Note>, Vec<u8>) {
        let (mut notes, mut out) = (Vec::new(), Vec::new());
        let taken = peer.receive(link, bytes, &mut out, &mut |note| notes.push(note));
        (taken, notes, out)
    }

    #[test]
    fn a_stream_reply_in_pieces_gives_each_event_once_and_asks_for_more() {
        let mut peer = Redis::new(true);
        let mut link = Link::new(Role::Reader(3), "s");
        let stamp = Stamp { intended: 1, actual: 2, lane: 3, number: 4 };
        let mut data = Vec::new();
        stamp.write(&mut data, 60);
        let mut reply = b"*1\r\n*2\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n9-1\r\n*2\r\n$1\r\nd\r\n$60\r\n".to_vec();
        reply.extend_from_slice(&data);
        reply.extend_from_slice(b"\r\n");
        for cut in 1..reply.len() {
            assert_eq!(heard(&mut peer, &mut link, &reply[..cut]).0, 0, "{cut}");
        }
        let (taken, notes, out) = heard(&mut peer, &mut link, &reply);
        assert_eq!((taken, notes), (reply.len(), vec![Note::Event(stamp)]));
        assert!(out.ends_with(b"9-1\r\n"));
    }

    #[test]
    fn acknowledgements_count_up() {
        let mut peer = Redis::new(false);
        let mut link = Link::new(Role::Publisher(0), "s");
        let (_, notes, _) = heard(&mut peer, &mut link, b"+PONG\r\n:1\r\n:1\r\n");
        assert_eq!(notes, [Note::Ready { shard: 0 }, Note::Acknowledged(0), Note::Acknowledged(1)]);
        assert!(matches!(&heard(&mut peer, &mut link, b"-ERR no\r\n").1[..], [Note::Error(_)]));
    }
}
