//! Frames that overtake: what is urgent goes out before all that waits, between two frames.
//!
//! ```text
//!   with the kernel          waits
//!   │ frame │ fra│           me │ frame │ frame │        the rest of a frame that is begun goes first,
//!                     urgent ──►▲                        then what is urgent, then the others
//! ```
//! Where a frame begins is known as long as nothing waits: the end of the queue. It is counted on, frame by frame, only for
//! queues that a send did not empty.

/// Bytes of urgent frames that one connection may have waiting.
pub(super) const URGENT_BYTES_MAX: usize = 4096;

/// Urgent frames of one connection.
#[derive(Clone, Default, Debug)]
pub(super) struct Urgent {
    /// With the kernel, or begun: stays where it is.
    begun: Vec<u8>,
    sent: usize,
    waiting: Vec<u8>,
}

impl Urgent {
    /// Takes a frame; `false`: as much waits as may.
    pub fn push(&mut self, frame: &[u8]) -> bool {
        let fits = self.waiting.len() + frame.len() <= URGENT_BYTES_MAX;
        if fits {
            self.waiting.extend_from_slice(frame);
        }
        fits
    }

    /// Bytes that no send has taken yet.
    #[cfg(test)]
    pub fn waiting_bytes(&self) -> usize {
        self.waiting.len()
    }

    /// Is some of it with the kernel, or sent in part?
    pub fn is_begun(&self) -> bool {
        !self.begun.is_empty()
    }

    /// The bytes to send now. They stay where they are until [`Urgent::completed`].
    pub fn begin(&mut self) -> &[u8] {
        if self.begun.is_empty() {
            std::mem::swap(&mut self.begun, &mut self.waiting);
            self.sent = 0;
        }
        &self.begun[self.sent..]
    }

    /// So many of them are sent. `true`: nothing is left.
    pub fn completed(&mut self, sent: usize) -> bool {
        self.sent += sent;
        if self.sent >= self.begun.len() {
            self.begun.clear();
        }
        self.begun.is_empty() && self.waiting.is_empty()
    }
}

/// Finds where frames begin, byte by byte of their heads. Server frames carry no mask.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Heads {
    head: [u8; 10],
    have: usize,
    /// Bytes of the frame at hand that are still to come.
    rest: usize,
}

impl Heads {
    /// `skip` bytes come before the first frame.
    pub fn behind(skip: usize) -> Heads {
        Heads { rest: skip, ..Heads::default() }
    }

    /// Goes over up to `most` bytes of payload. Returns how many; none where a byte of a head is next.
    pub fn skip(&mut self, most: usize) -> usize {
        let here = self.rest.min(most);
        self.rest -= here;
        here
    }

    /// The next byte of a head.
    pub fn take(&mut self, byte: u8) {
        self.head[self.have] = byte;
        self.have += 1;
        if let Some(payload) = self.payload() {
            self.rest = payload;
            self.have = 0;
        }
    }

    /// Bytes until the next frame begins; `None` in the middle of a head.
    pub fn rest(&self) -> Option<usize> {
        (self.have == 0).then_some(self.rest)
    }

    /// Payload of the frame at hand, once its head is complete.
    fn payload(&self) -> Option<usize> {
        let head = &self.head;
        match (self.have, head[1] & 0x7f) {
            (0 | 1, _) => None,
            (4, 126) => Some(usize::from(u16::from_be_bytes([head[2], head[3]]))),
            (10, 127) => {
                let [_, _, length @ ..] = *head;
                Some(u64::from_be_bytes(length) as usize)
            }
            (_, 126 | 127) => None,
            (_, length) => Some(usize::from(length)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::websocket::{Opcode, append_frame};
    use proptest::prelude::*;

    proptest! {
        /// Each beginning is where a frame was put.
        #[test]
        fn beginnings_are_found(
            frames in proptest::collection::vec(prop_oneof![0usize..300, 65_000usize..66_000], 1..8),
            cut in 1usize..5000,
        ) {
            let (mut bytes, mut ends) = (Vec::new(), vec![0]);
            for len in frames {
                append_frame(&mut bytes, Opcode::Text, &vec![0xff; len]);
                ends.push(bytes.len());
            }
            let (mut heads, mut at) = (Heads::default(), 0);
            while at < bytes.len() {
                if let Some(rest) = heads.rest() {
                    prop_assert!(ends.contains(&(at + rest)), "{} + {}", at, rest);
                }
                match heads.skip(cut.min(bytes.len() - at)) {
                    0 => {
                        heads.take(bytes[at]);
                        at += 1;
                    }
                    skipped => at += skipped,
                }
            }
            prop_assert_eq!(heads.rest(), Some(0));
        }
    }
}
