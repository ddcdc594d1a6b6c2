//! What is kept of a client between its connections: one event of its own hidden session.
//!
//! ```text
//!   session  $client.<client_id>          in the client's tenant, on the shard that owns it: the client's home
//!   event    $client.opened               its offset + 1 is the generation: each take-over raises it, durably
//!   event    $client.kept                 subscriptions and acknowledged positions of that generation, the newest counts
//!   bytes    1 · generation u64 · claimed u64 · attempt u64 · sessions u16 { name, epoch u64, offset u64, policy u8 }
//!            · patterns u16 { text } · position u16 { slice u16, seq u64 }
//!            · presences u16 { name, lease_ms u64, value } · reads u16 { name, offset u64 }
//! ```
//! A `resume` whose answer was lost is said again, with the token that was good then and a higher `attempt`. So the generation that
//! was claimed and the attempt are kept, until the client has shown that it has the answer.
//!
//! Little endian; texts have a u16 length before them. Reading never trusts: a client of another version of this program
//! may have written it.

use crate::command::Policy;
use crate::ids::{Epoch, Offset, SLICES, SliceSeq};
use crate::limits::{CLIENT_PATTERNS_MAX, CLIENT_PRESENCES_BYTES_MAX, TOPIC_BYTES_MAX};

/// First byte.
const VERSION: u8 = 1;

/// Bytes that session subscriptions of one client may take in its state; one more is refused.
pub const CLIENT_SESSIONS_BYTES_MAX: usize = 12 << 10;

/// Largest state, bytes.
pub const CLIENT_STATE_BYTES_MAX: usize = 48
    + CLIENT_SESSIONS_BYTES_MAX
    + CLIENT_PATTERNS_MAX * (TOPIC_BYTES_MAX + 2)
    + SLICES as usize * 10
    + CLIENT_PRESENCES_BYTES_MAX;

/// Where a client stands in a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptSession {
    /// Session.
    pub session: Box<str>,
    /// Its epoch; 0 where nothing was delivered yet.
    pub epoch: Epoch,
    /// First offset that it has not acknowledged.
    pub offset: Offset,
    /// What it gets where it does not keep up.
    pub policy: Policy,
}

impl KeptSession {
    /// Bytes of one in the state.
    pub fn bytes(session: &str) -> usize {
        session.len() + 19
    }
}

/// A session that a client is in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptPresence {
    /// Session.
    pub session: Box<str>,
    /// How long it stays when its connection is gone.
    pub lease_ms: u64,
    /// State and data, as rooms keep them.
    pub value: Box<[u8]>,
}

/// How far a client has read a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptRead {
    /// Session.
    pub session: Box<str>,
    /// First offset that it has not read.
    pub offset: Offset,
}

/// What is kept of one client.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClientState {
    /// Life of the client that this belongs to.
    pub generation: u64,
    /// The generation that began it; 0 where none was claimed.
    pub claimed: u64,
    /// Attempt that claimed it; the largest number once its answer is known to have arrived.
    pub attempt: u64,
    /// Session subscriptions.
    pub sessions: Vec<KeptSession>,
    /// Its patterns, if it has a feed.
    pub patterns: Vec<Box<str>>,
    /// Last event of each slice that the feed delivered and that was acknowledged.
    pub position: Vec<(u16, SliceSeq)>,
    /// Sessions that it is in.
    pub presences: Vec<KeptPresence>,
    /// What it has read.
    pub reads: Vec<KeptRead>,
}

impl ClientState {
    /// Appends its bytes.
    pub fn put(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        for number in [self.generation, self.claimed, self.attempt] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&(self.sessions.len() as u16).to_le_bytes());
        for kept in &self.sessions {
            put_text(out, &kept.session);
            out.extend_from_slice(&kept.epoch.to_le_bytes());
            out.extend_from_slice(&kept.offset.to_le_bytes());
            out.push(kept.policy as u8);
        }
        out.extend_from_slice(&(self.patterns.len() as u16).to_le_bytes());
        for pattern in &self.patterns {
            put_text(out, pattern);
        }
        out.extend_from_slice(&(self.position.len() as u16).to_le_bytes());
        for (slice, seq) in &self.position {
            out.extend_from_slice(&slice.to_le_bytes());
            out.extend_from_slice(&seq.to_le_bytes());
        }
        out.extend_from_slice(&(self.presences.len() as u16).to_le_bytes());
        for KeptPresence { session, lease_ms, value } in &self.presences {
            put_text(out, session);
            out.extend_from_slice(&lease_ms.to_le_bytes());
            put_bytes(out, value);
        }
        out.extend_from_slice(&(self.reads.len() as u16).to_le_bytes());
        for KeptRead { session, offset } in &self.reads {
            put_text(out, session);
            out.extend_from_slice(&offset.to_le_bytes());
        }
    }

    /// Reads what [`ClientState::put`] wrote. `None`: it is not that.
    pub fn get(bytes: &[u8]) -> Option<ClientState> {
        let mut bytes = Bytes(bytes);
        if bytes.take::<1>()? != [VERSION] {
            return None;
        }
        let (generation, claimed, attempt) = (bytes.u64()?, bytes.u64()?, bytes.u64()?);
        let mut sessions = Vec::new();
        for _ in 0..bytes.u16()? {
            let session = bytes.text()?.into();
            let (epoch, offset, [policy]) = (bytes.u64()?, bytes.u64()?, bytes.take()?);
            sessions.push(KeptSession { session, epoch, offset, policy: Policy::from_number(policy) });
        }
        let mut patterns = Vec::new();
        for _ in 0..bytes.u16()? {
            patterns.push(bytes.text()?.into());
        }
        let mut position = Vec::new();
        for _ in 0..bytes.u16()? {
            position.push((bytes.u16().filter(|slice| *slice < SLICES)?, bytes.u64()?));
        }
        let (mut presences, mut reads) = (Vec::new(), Vec::new());
        for _ in 0..bytes.u16()? {
            let session = bytes.text()?.into();
            presences.push(KeptPresence { session, lease_ms: bytes.u64()?, value: bytes.bytes()?.into() });
        }
        for _ in 0..bytes.u16()? {
            let session = bytes.text()?.into();
            reads.push(KeptRead { session, offset: bytes.u64()? });
        }
        bytes.0.is_empty().then_some(ClientState {
            presences,
            reads,
            generation,
            claimed,
            attempt,
            sessions,
            patterns,
            position,
        })
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    out.extend_from_slice(bytes);
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(self.u16()?);
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state() -> ClientState {
        ClientState {
            generation: 7,
            claimed: 5,
            attempt: 77,
            sessions: vec![KeptSession { session: "demo".into(), epoch: 9, offset: 41, policy: Policy::Rollup }],
            patterns: vec!["chat.>".into()],
            position: vec![(3, 17), (9, 2)],
            presences: vec![KeptPresence {
                session: "room".into(),
                lease_ms: 30_000,
                value: b"\x01{}".as_slice().into(),
            }],
            reads: vec![KeptRead { session: "demo".into(), offset: 40 }],
        }
    }

    #[test]
    fn comes_back_as_it_was() {
        let mut bytes = Vec::new();
        state().put(&mut bytes);
        assert_eq!(ClientState::get(&bytes), Some(state()));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes: Vec<u8>, flips in proptest::collection::vec((0usize..80, any::<u8>()), 0..4)) {
            let _ = ClientState::get(&bytes);
            bytes.clear();
            state().put(&mut bytes);
            for (at, byte) in flips {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            let _ = ClientState::get(&bytes);
        }
    }
}
