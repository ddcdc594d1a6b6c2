//! From send queues to the ring.

use super::Net;
use super::send_queue::{Piece, SEND_PIECES_MAX};
use crate::ring::{Completion, Kind, Ring, UserData};
use shards::ids::ConnectionId;
use std::io;

/// Message heads that the kernel reads at the next enter.
const HEADS: usize = 16;

/// Memory that has to stay put between a push and the next enter. One per shard.
pub(super) struct Scratch {
    heads: Box<[libc::msghdr; HEADS]>,
    vectors: Box<[[libc::iovec; SEND_PIECES_MAX]; HEADS]>,
    used: usize,
    /// The ring's count of enters when `used` was reset.
    enters: u64,
    pub(super) pieces: Vec<Piece>,
}

impl Scratch {
    pub fn new() -> Self {
        // SAFETY: both are plain C structures for which all zeroes is a valid value.
        let (head, vector) = unsafe { (std::mem::zeroed::<libc::msghdr>(), std::mem::zeroed::<libc::iovec>()) };
        Self {
            heads: Box::new([head; HEADS]),
            vectors: Box::new([[vector; SEND_PIECES_MAX]; HEADS]),
            used: 0,
            enters: 0,
            pieces: Vec::with_capacity(SEND_PIECES_MAX),
        }
    }
}

impl Net {
    /// Pushes one send for every connection that has bytes and none in flight. Returns how many.
    ///
    /// # Errors
    /// The ring is unusable.
    pub fn transmit(&mut self, ring: &mut Ring) -> io::Result<usize> {
        let mut count = 0;
        while let Some(id) = self.sends.next_dirty() {
            self.begin_send(id, ring)?;
            ring.enter_if_many_sends()?;
            count += 1;
        }
        self.stats.sends += count as u64;
        Ok(count + self.transmit_secure(ring)?)
    }

    fn begin_send(&mut self, id: ConnectionId, ring: &mut Ring) -> io::Result<()> {
        let Some(connection) = self.table.get(id) else { return Ok(()) };
        if !connection.transport.is_plain() {
            self.secure_dirty.push(id);
            return Ok(());
        }
        let (socket, scratch) = (connection.socket, &mut self.scratch);
        self.sends.begin(id, &mut scratch.pieces, usize::MAX);
        let user_data = UserData::new(Kind::Send, id.slot, id.generation);
        match scratch.pieces.as_slice() {
            [] => {}
            [piece] => {
                // SAFETY: the chunk is not given back before `sends.completed`, which the completion calls.
                unsafe { ring.send(socket, piece.bytes, piece.len as u32, user_data) };
            }
            pieces => {
                if scratch.used == HEADS && scratch.enters == ring.enters() {
                    ring.enter()?;
                }
                if scratch.enters != ring.enters() {
                    scratch.enters = ring.enters();
                    scratch.used = 0;
                }
                let vector = &mut scratch.vectors[scratch.used];
                for (entry, piece) in vector.iter_mut().zip(pieces) {
                    *entry = libc::iovec { iov_base: piece.bytes.cast_mut().cast(), iov_len: piece.len };
                }
                let head = &mut scratch.heads[scratch.used];
                head.msg_iov = vector.as_mut_ptr();
                head.msg_iovlen = pieces.len();
                scratch.used += 1;
                // SAFETY: head and vector are not reused before the ring was entered; the chunks as above.
                unsafe { ring.send_pieces(socket, head, user_data) };
            }
        }
        Ok(())
    }

    pub(super) fn sent(&mut self, completion: &Completion, now_us: u64) -> Option<(ConnectionId, bool)> {
        let id = ConnectionId { slot: completion.user_data.slot(), generation: completion.user_data.generation() };
        let connection = self.table.get_mut(id)?;
        if !connection.transport.is_plain() {
            if completion.ok().is_ok() {
                connection.heard_us = now_us;
            }
            return Some((id, self.secure_sent(completion)));
        }
        match completion.ok() {
            Ok(bytes) => {
                connection.heard_us = now_us;
                self.sends.completed(id, bytes as usize);
                Some((id, true))
            }
            Err(errno) => {
                self.sends.completed(id, 0);
                Some((id, matches!(errno, libc::EINTR | libc::EAGAIN)))
            }
        }
    }
}
