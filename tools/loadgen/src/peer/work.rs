//! Queues of work: how jobs are asked for and done, in two dialects.
//!
//! ```text
//!   tidegate   [publish, …] in one frame ─► job … ─► [complete, …] in one frame ─► committed …
//!   redis      XADD … in one write ─► XREADGROUP ─► XACK, XDEL … in one write ─► integers
//! ```
//! A job carries a stamp; what a job is on the wire is kept until its worker says that it is done.

use super::redis;
use crate::stamp::Stamp;
use crate::websocket;
use memchr::memmem;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};

/// Jobs that a worker takes at once, and commands of one frame.
pub const BATCH: usize = 256;

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Of a lane.
    Producer(u32),
    Worker(u32),
    /// Hears of every job that nobody did.
    Listener,
}

/// What a connection heard.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    Ready,
    /// The oldest job that this producer asked for and that was not acknowledged yet stands.
    Enqueued,
    /// For this worker.
    Job(Stamp),
    /// A job that this worker said was done is gone.
    Ended,
    /// The server answered instead of a worker. Unix ms: when the job began, and when it was answered.
    GivenUp {
        began: u64,
        fired: u64,
    },
    Error(String),
}

/// One connection.
pub struct Seat {
    pub side: Side,
    /// Sessions of its jobs, in turn.
    sessions: Vec<String>,
    /// Commands that are to leave with the next [`Work::flush`].
    owed: Vec<u8>,
    /// Jobs that it said were done: numbers its commands.
    done: u64,
    /// Of these, those that are owed.
    gathered: usize,
    /// Integers of Redis that came for the job at hand.
    answers: u8,
}

impl Seat {
    pub fn new(side: Side, sessions: Vec<String>) -> Seat {
        Seat { side, sessions, owed: Vec::new(), done: 0, gathered: 0, answers: 0 }
    }

    pub fn owes(&self) -> bool {
        !self.owed.is_empty()
    }

    /// Jobs that are done and not yet said to be.
    pub fn gathered(&self) -> usize {
        self.gathered
    }
}

/// What the queue is like.
#[derive(Clone)]
pub struct Queue {
    /// Its name; its jobs' topics begin with it.
    pub name: String,
    /// Jobs of one session one after the other.
    pub ordered: bool,
    pub deadline_ms: u64,
    pub capacity: u64,
}

/// A dialect, over the transport of the [`super::Peer`] of its name. Functions append whatever is to be sent to `out`.
pub trait Work {
    /// Path of the upgrade request; `place` is the session that says where the connection is to live.
    fn path(&self, side: Side, place: &str) -> String;
    /// Once, before any connection.
    fn prepare(&self) -> io::Result<()>;
    fn opened(&mut self, seat: &Seat, out: &mut Vec<u8>);
    /// Asks for a job; several between two flushes go together.
    fn enqueue(&mut self, seat: &mut Seat, stamp: Stamp, bytes: usize);
    /// Takes whole messages from the beginning of `bytes`, and says of every job in them that it is done.
    fn receive(&mut self, seat: &mut Seat, bytes: &[u8], out: &mut Vec<u8>, heard: &mut dyn FnMut(Heard)) -> usize;
    /// Hands over what is owed.
    fn flush(&self, seat: &mut Seat, out: &mut Vec<u8>);
}

/// Ours: WebSocket, JSON.
pub struct Ours {
    run: String,
    queue: Queue,
    lease: memmem::Finder<'static>,
    job: memmem::Finder<'static>,
}

impl Ours {
    pub fn new(run: &str, queue: Queue) -> Ours {
        let (job, lease) = (memmem::Finder::new(b"\"job\":\""), memmem::Finder::new(b"\"lease\":\""));
        Ours { run: run.into(), queue, job, lease }
    }

    fn declaration(&self) -> String {
        let Queue { name, ordered, deadline_ms, capacity } = &self.queue;
        let order = if *ordered { "session" } else { "none" };
        format!(
            r#"{{"type":"queue.declare","queue":"{name}","patterns":["{name}.>"],"order":"{order}","capacity":{capacity},"deadline_ms":{deadline_ms},"fallback":{{"topic":"late.{name}"}}}}"#
        )
    }

    fn take(&self, seat: &mut Seat, text: &[u8], out: &mut Vec<u8>) -> Option<Heard> {
        if text.starts_with(br#"{"type":"published""#) {
            return Some(Heard::Enqueued);
        }
        if text.starts_with(br#"{"type":"committed""#) {
            return Some(Heard::Ended);
        }
        if text.starts_with(br#"{"type":"job","#) {
            return Some(self.job(seat, text).unwrap_or_else(|| strange(text)));
        }
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(text) else { return Some(strange(text)) };
        let mut say = |command: String| websocket::encode(out, websocket::TEXT, command.as_bytes());
        match (value["type"].as_str(), seat.side) {
            (Some("welcome"), Side::Producer(_)) | (Some("pulling" | "subscribed"), _) => Some(Heard::Ready),
            (Some("declared"), Side::Worker(_)) => {
                say(format!(r#"{{"type":"pull","queue":"{}","credit":{BATCH}}}"#, self.queue.name));
                None
            }
            (Some("declared"), _) => {
                say(format!(r#"{{"type":"subscribe","patterns":["late.{}"]}}"#, self.queue.name));
                None
            }
            (Some("event"), Side::Listener) => {
                // QUEUE:OFFSET:BEGAN
                let began = value["message_id"].as_str().and_then(|id| id.rsplit(':').next()?.parse().ok());
                let both = began.zip(value["time"].as_u64());
                Some(both.map_or_else(|| strange(text), |(began, fired)| Heard::GivenUp { began, fired }))
            }
            (Some("refused" | "job.lost") | None, _) => Some(strange(text)),
            _ => None,
        }
    }

    fn job(&self, seat: &mut Seat, text: &[u8]) -> Option<Heard> {
        let quoted = |finder: &memmem::Finder<'_>| {
            let rest = text.get(finder.find(text)? + finder.needle().len()..)?;
            rest.get(..memchr::memchr(b'"', rest)?)
        };
        let (job, lease, stamp) = (quoted(&self.job)?, quoted(&self.lease)?, Stamp::find(text)?);
        seat.done += 1;
        seat.gathered += 1;
        let out = &mut seat.owed;
        // A Vec takes every write.
        let _infallible = write!(out, r#",{{"type":"complete","id":{},"job":""#, seat.done);
        out.extend_from_slice(job);
        out.extend_from_slice(br#"","lease":""#);
        out.extend_from_slice(lease);
        out.extend_from_slice(b"\"}");
        Some(Heard::Job(stamp))
    }
}

fn strange(text: &[u8]) -> Heard {
    Heard::Error(String::from_utf8_lossy(text).into_owned())
}

impl Work for Ours {
    fn path(&self, side: Side, place: &str) -> String {
        match side {
            Side::Producer(lane) => format!("/v1/ws?session={place}&client={}-p{lane}", self.run),
            _ => format!("/v1/ws?session={place}"),
        }
    }

    fn prepare(&self) -> io::Result<()> {
        Ok(())
    }

    fn opened(&mut self, seat: &Seat, out: &mut Vec<u8>) {
        if !matches!(seat.side, Side::Producer(_)) {
            // By everyone: whoever has the answer may go on.
            websocket::encode(out, websocket::TEXT, self.declaration().as_bytes());
        }
    }

    fn enqueue(&mut self, seat: &mut Seat, stamp: Stamp, bytes: usize) {
        let (number, out) = (stamp.number, &mut seat.owed);
        let session = &seat.sessions[number as usize % seat.sessions.len()];
        out.extend_from_slice(br#",{"type":"publish","session":""#);
        out.extend_from_slice(session.as_bytes());
        let queue = &self.queue.name;
        // A Vec takes every write.
        let _infallible = write!(out, r#"","topic":"{queue}.do","id":{number},"message_id":"m{number}","data":""#);
        stamp.write(out, bytes);
        out.extend_from_slice(b"\"}");
    }

    fn receive(&mut self, seat: &mut Seat, bytes: &[u8], out: &mut Vec<u8>, heard: &mut dyn FnMut(Heard)) -> usize {
        if let Some(note) = self.take(seat, bytes, out) {
            heard(note);
        }
        bytes.len()
    }

    fn flush(&self, seat: &mut Seat, out: &mut Vec<u8>) {
        seat.gathered = 0;
        websocket::encode_with(out, websocket::TEXT, |text| {
            let start = text.len();
            text.append(&mut seat.owed);
            text[start] = b'[';
            text.push(b']');
        });
    }
}

/// Redis: a stream and one group of its readers.
pub struct Groups {
    address: SocketAddrV4,
    data: Vec<u8>,
}

const STREAM: &[u8] = b"jobs";
const GROUP: &[u8] = b"g";

impl Groups {
    pub fn new(address: SocketAddrV4) -> Groups {
        Groups { address, data: Vec::new() }
    }

    fn wait(worker: u32, out: &mut Vec<u8>) {
        let (name, count) = (format!("w{worker}"), BATCH.to_string());
        let group: [&[u8]; 5] = [b"XREADGROUP", b"GROUP", GROUP, name.as_bytes(), b"COUNT"];
        let from: [&[u8]; 6] = [count.as_bytes(), b"BLOCK", b"0", b"STREAMS", STREAM, b">"];
        redis::command(out, &[&group[..], &from].concat());
    }

    fn take(seat: &mut Seat, parts: &[redis::Value<'_>], out: &mut Vec<u8>, heard: &mut dyn FnMut(Heard)) {
        use redis::Value;
        match (seat.side, parts) {
            (_, [Value::Error(why), ..]) => heard(strange(why)),
            (_, [Value::Simple]) => heard(Heard::Ready),
            (Side::Producer(_), _) => heard(Heard::Enqueued),
            (Side::Worker(_), [Value::Integer]) => {
                seat.answers += 1;
                if seat.answers == 2 {
                    seat.answers = 0;
                    heard(Heard::Ended);
                }
            }
            // One stream: [[name, [[id, [field, data]], …]]]
            (Side::Worker(worker), [Value::Array(1), Value::Array(2), Value::Bulk(_), Value::Array(_), jobs @ ..]) => {
                for job in jobs.chunks(5) {
                    if let [_, Value::Bulk(id), _, _, Value::Bulk(data)] = job {
                        redis::command(out, &[b"XACK", STREAM, GROUP, id]);
                        redis::command(out, &[b"XDEL", STREAM, id]);
                        heard(Stamp::find(data).map_or_else(|| strange(data), Heard::Job));
                    }
                }
                Self::wait(worker, out);
            }
            (side, parts) => heard(Heard::Error(format!("{side:?} heard {parts:?}"))),
        }
    }
}

impl Work for Groups {
    fn path(&self, _: Side, _: &str) -> String {
        String::new()
    }

    fn prepare(&self) -> io::Result<()> {
        let mut stream = TcpStream::connect(self.address)?;
        let mut create = Vec::new();
        redis::command(&mut create, &[b"XGROUP", b"CREATE", STREAM, GROUP, b"$", b"MKSTREAM"]);
        stream.write_all(&create)?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer)?;
        if &answer == b"+OK\r\n" { Ok(()) } else { Err(io::Error::other("the group was not made")) }
    }

    fn opened(&mut self, seat: &Seat, out: &mut Vec<u8>) {
        redis::command(out, &[b"PING"]);
        if let Side::Worker(worker) = seat.side {
            Self::wait(worker, out);
        }
    }

    fn enqueue(&mut self, seat: &mut Seat, stamp: Stamp, bytes: usize) {
        self.data.clear();
        stamp.write(&mut self.data, bytes);
        redis::command(&mut seat.owed, &[b"XADD", STREAM, b"*", b"d", &self.data]);
    }

    fn receive(&mut self, seat: &mut Seat, bytes: &[u8], out: &mut Vec<u8>, heard: &mut dyn FnMut(Heard)) -> usize {
        let mut at = 0;
        let mut parts = Vec::with_capacity(4 + 5 * BATCH);
        while at < bytes.len() {
            parts.clear();
            let Some(taken) = redis::value(&bytes[at..], &mut parts) else { break };
            at += taken;
            Self::take(seat, &parts, out, heard);
        }
        at
    }

    fn flush(&self, seat: &mut Seat, out: &mut Vec<u8>) {
        out.append(&mut seat.owed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(work: &mut dyn Work, seat: &mut Seat, bytes: &[u8]) -> (Vec<Heard>, Vec<u8>) {
        let (mut notes, mut out) = (Vec::new(), Vec::new());
        assert_eq!(work.receive(seat, bytes, &mut out, &mut |note| notes.push(note)), bytes.len());
        (notes, out)
    }

    const STAMP: Stamp = Stamp { intended: 1, actual: 2, lane: 3, number: 4 };

    fn ours() -> Ours {
        Ours::new("r", Queue { name: "q".into(), ordered: false, deadline_ms: 1000, capacity: 9 })
    }

    #[test]
    fn jobs_go_out_as_one_array_and_what_was_done_comes_back_as_one() {
        let mut peer = ours();
        let (mut producer, mut out) = (Seat::new(Side::Producer(3), vec!["s".into()]), Vec::new());
        peer.enqueue(&mut producer, STAMP, 100);
        peer.enqueue(&mut producer, Stamp { number: 5, ..STAMP }, 100);
        peer.flush(&mut producer, &mut out);
        assert!(!producer.owes());
        let sent: serde_json::Value = serde_json::from_slice(&websocket::unmasked(&out)).expect("JSON");
        assert_eq!((sent[0]["message_id"].as_str(), sent[1]["id"].as_u64()), (Some("m4"), Some(5)));
        assert_eq!((sent[1]["topic"].as_str(), sent[1]["data"].as_str().map(str::len)), (Some("q.do"), Some(100)));

        let mut worker = Seat::new(Side::Worker(0), Vec::new());
        let job = |n: u32| {
            format!(r#"{{"type":"job","queue":"q","job":"q/s:0:{n}","lease":"1.0a","data":{}}}"#, sent[0]["data"])
        };
        for n in 0..2 {
            assert_eq!(heard(&mut peer, &mut worker, job(n).as_bytes()).0, [Heard::Job(STAMP)]);
        }
        let mut out = Vec::new();
        peer.flush(&mut worker, &mut out);
        let done: serde_json::Value = serde_json::from_slice(&websocket::unmasked(&out)).expect("JSON");
        assert_eq!(done[1], serde_json::json!({"type": "complete", "id": 2, "job": "q/s:0:1", "lease": "1.0a"}));
        let ended = br#"{"type":"committed","id":2,"count":0,"session":"s","durability":"disk"}"#;
        assert_eq!(heard(&mut peer, &mut worker, ended).0, [Heard::Ended]);
    }

    #[test]
    fn a_worker_declares_then_pulls_and_hears_of_a_refusal() {
        let (mut peer, mut worker) = (ours(), Seat::new(Side::Worker(0), Vec::new()));
        let (notes, out) = heard(&mut peer, &mut worker, br#"{"type":"declared","queue":"q"}"#);
        assert_eq!(notes, []);
        assert!(String::from_utf8_lossy(&websocket::unmasked(&out)).contains(r#""type":"pull","queue":"q""#));
        assert_eq!(heard(&mut peer, &mut worker, br#"{"type":"pulling","queue":"q","credit":256}"#).0, [Heard::Ready]);
        assert!(matches!(heard(&mut peer, &mut worker, br#"{"type":"refused","id":1}"#).0[..], [Heard::Error(_)]));
        let mut listener = Seat::new(Side::Listener, Vec::new());
        let late =
            br#"{"type":"event","topic":"late.q","client":"$server","message_id":"q:17:1000","time":1034,"data":{}}"#;
        assert_eq!(heard(&mut peer, &mut listener, late).0, [Heard::GivenUp { began: 1000, fired: 1034 }]);
    }

    #[test]
    fn a_group_acknowledges_and_deletes_each_job_and_asks_for_more() {
        let mut peer = Groups::new("127.0.0.1:1".parse().expect("an address"));
        let mut worker = Seat::new(Side::Worker(0), Vec::new());
        let mut data = Vec::new();
        STAMP.write(&mut data, 60);
        let mut reply = b"*1\r\n*2\r\n$4\r\njobs\r\n*1\r\n*2\r\n$3\r\n9-1\r\n*2\r\n$1\r\nd\r\n$60\r\n".to_vec();
        reply.extend_from_slice(&data);
        reply.extend_from_slice(b"\r\n");
        let (notes, out) = heard(&mut peer, &mut worker, &reply);
        assert_eq!(notes, [Heard::Job(STAMP)]);
        let said = String::from_utf8_lossy(&out);
        assert!(said.contains("XACK") && said.contains("XDEL") && said.ends_with("\r\n>\r\n"), "{said}");
        assert_eq!(heard(&mut peer, &mut worker, b":1\r\n:1\r\n:1\r\n").0, [Heard::Ended]);
        assert_eq!(heard(&mut peer, &mut worker, b":1\r\n").0, [Heard::Ended]);
    }
}
