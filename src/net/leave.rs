//! Connections are asked to leave: what a drain does to them, one by one. When each is told and closed the reactor decides.
//!
//! ```text
//!   open ──► told: a goaway is queued, all goes on ──► deaf: commands are thrown away, ──► closed
//!                                                      replies and events still go out
//! ```
//! What a deaf connection sends would have been in flight when it was closed: no client can tell the difference.

use super::connection::{Door, State};
use super::service::Service;
use super::{CloseWords, Net};
use crate::ring::Ring;
use shards::ids::{ConnectionId, Now};

impl Net {
    /// Connections that are served.
    pub fn open_connections(&self) -> usize {
        self.table.from(0).filter(|id| self.is_open(*id)).count()
    }

    /// Is this connection served?
    pub fn is_open(&self, id: ConnectionId) -> bool {
        self.table.get(id).is_some_and(|connection| connection.state == State::Open)
    }

    /// Up to `most` connections that are served, from slot `from` on, with what each is for.
    pub fn open_from(&self, from: u32, most: usize) -> Vec<(ConnectionId, Door)> {
        let door = |id: ConnectionId| self.table.get(id).filter(|c| c.state == State::Open).map(|c| (id, c.door));
        self.table.from(from).filter_map(door).take(most).collect()
    }

    /// Takes no command of this connection any more; those that were taken are answered.
    pub fn hear_no_more(&mut self, id: ConnectionId) {
        if let Some(connection) = self.table.get_mut(id) {
            connection.deaf = true;
        }
    }

    /// Input of this connection waits for room.
    pub fn holds_input(&self, id: ConnectionId) -> bool {
        self.table.get(id).is_some_and(|connection| connection.held.is_some())
    }

    /// Says `words`, waits a while for the peer's close frame, and is done with it.
    pub fn part_with<S: Service>(
        &mut self,
        id: ConnectionId,
        words: CloseWords,
        now: Now,
        ring: &mut Ring,
        service: &mut S,
    ) {
        self.close(id, words, now, service);
        self.progress(id, now, ring, service);
    }

    /// Has this connection still a socket?
    pub fn holds(&self, id: ConnectionId) -> bool {
        self.table.get(id).is_some()
    }

    /// Is there a connection whose request has not come?
    pub fn has_upgrading(&self) -> bool {
        self.table.from(0).any(|id| self.table.get(id).is_some_and(|connection| connection.state == State::Upgrading))
    }

    /// Ends every connection, whatever is still to be said.
    pub fn cut_off<S: Service>(&mut self, now: Now, ring: &mut Ring, service: &mut S) {
        let all: Vec<ConnectionId> = self.table.from(0).collect();
        for id in all {
            self.end(id, now, ring, service);
        }
    }
}
