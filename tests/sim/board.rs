//! Who is in which session, as the clients themselves know it.
//!
//! ```text
//!   entered, left: told by the server    ─► present: what every watcher has to believe once all has come to rest
//!   came back: by its life               ─► present too, and what it is at is one of the things it said
//!   said: whatever was ever sent         ─► what a watcher may believe before
//!   spotless: entered since the boot, never left, never cut off ─► nobody may be told that it left
//! ```

use std::collections::{BTreeMap, BTreeSet};

/// One per world.
#[derive(Debug, Default)]
pub struct Board {
    present: BTreeMap<String, BTreeMap<String, Option<String>>>,
    said: BTreeSet<(String, String, String)>,
    spotless: BTreeSet<(String, String)>,
    /// Clients that left a session, or lost a connection, since the boot: what an old connection had on its way may still be
    /// done.
    spoiled: BTreeSet<(String, String)>,
    cut_off: BTreeSet<String>,
    /// What clients ever said that they have read, by session and client; the last one is the furthest.
    reads: BTreeMap<String, BTreeMap<String, BTreeSet<u64>>>,
    /// How far a client has confirmed a session: by an acknowledgement, or by going on there.
    confirmed: BTreeMap<(String, String), u64>,
    /// Clients whose receipts may say more than what they confirmed.
    pub inexact: BTreeSet<String>,
    /// Leases are longer than anything that holds a shard up: nobody leaves but by its word, or with its connection.
    pub strict: bool,
    /// Rooms are so small that not everybody finds place.
    pub is_tight: bool,
}

impl Board {
    /// A client says that it is in a session, with this value.
    pub fn says(&mut self, session: &str, client: &str, value: &str) {
        self.said.insert((session.to_owned(), client.to_owned(), value.to_owned()));
    }

    /// Was it ever said?
    pub fn was_said(&self, session: &str, client: &str, value: &str) -> bool {
        self.said.contains(&(session.to_owned(), client.to_owned(), value.to_owned()))
    }

    /// Has it ever said that it is in a session?
    pub fn was_ever_in(&self, session: &str, client: &str) -> bool {
        let least = (session.to_owned(), client.to_owned(), String::new());
        self.said.range(least..).next().is_some_and(|(of, who, _)| of == session && who == client)
    }

    /// The server has told it that it is.
    pub fn entered(&mut self, session: &str, client: &str, value: &str) {
        self.present.entry(session.to_owned()).or_default().insert(client.to_owned(), Some(value.to_owned()));
        let who = (session.to_owned(), client.to_owned());
        if !self.spoiled.contains(&who) && !self.cut_off.contains(client) {
            self.spotless.insert(who);
        }
    }

    /// Its life has brought it back, with something that it said before.
    pub fn came_back(&mut self, session: &str, client: &str) {
        self.present.entry(session.to_owned()).or_default().insert(client.to_owned(), None);
    }

    /// It asks to leave.
    pub fn leaves(&mut self, session: &str, client: &str) {
        let who = (session.to_owned(), client.to_owned());
        self.spotless.remove(&who);
        self.spoiled.insert(who);
    }

    /// The server has told it that it is not in.
    pub fn left(&mut self, session: &str, client: &str) {
        self.leaves(session, client);
        self.present.entry(session.to_owned()).or_default().remove(client);
    }

    /// A client says that it has read a session so far.
    pub fn reads(&mut self, session: &str, client: &str, offset: u64) {
        let readers = self.reads.entry(session.to_owned()).or_default();
        readers.entry(client.to_owned()).or_default().insert(offset);
    }

    /// Did it ever say that?
    pub fn was_read(&self, session: &str, client: &str, offset: u64) -> bool {
        self.reads.get(session).and_then(|readers| readers.get(client)).is_some_and(|said| said.contains(&offset))
    }

    /// Who has read a session, and how far.
    pub fn readers(&self, session: &str) -> impl Iterator<Item = (&String, u64)> {
        let readers = self.reads.get(session).into_iter().flatten();
        readers.filter_map(|(client, said)| Some((client, *said.last()?)))
    }

    /// A client has everything below.
    pub fn confirms(&mut self, session: &str, client: &str, next: u64) {
        let most = self.confirmed.entry((session.to_owned(), client.to_owned())).or_default();
        *most = next.max(*most);
    }

    /// How far a client has confirmed a session; `None` where its receipt may say more.
    pub fn confirmed(&self, session: &str, client: &str) -> Option<u64> {
        let most = self.confirmed.get(&(session.to_owned(), client.to_owned())).copied().unwrap_or(0);
        (!self.inexact.contains(client)).then_some(most)
    }

    /// Its connection is lost.
    pub fn cut_off(&mut self, client: &str) {
        self.spotless.retain(|(_, spotless)| spotless != client);
        self.cut_off.insert(client.to_owned());
    }

    /// The server has died, with all it knew.
    pub fn forget(&mut self) {
        self.spotless.clear();
        self.spoiled.clear();
        self.cut_off.clear();
    }

    /// May a watcher be told that a client has left?
    pub fn may_have_left(&self, session: &str, client: &str) -> bool {
        !self.strict || !self.spotless.contains(&(session.to_owned(), client.to_owned()))
    }

    /// Who is in, and with what where that is known.
    pub fn present(&self, session: &str) -> BTreeMap<String, Option<String>> {
        self.present.get(session).cloned().unwrap_or_default()
    }

    /// Is this what every watcher believes once all has come to rest?
    pub fn is_true(&self, session: &str, believes: &BTreeMap<String, String>) -> bool {
        let truth = self.present.get(session);
        let fits = |(client, value): (&String, &String)| match truth.and_then(|truth| truth.get(client)) {
            Some(Some(known)) => known == value,
            Some(None) => self.was_said(session, client, value),
            None => false,
        };
        believes.len() == truth.map_or(0, BTreeMap::len) && believes.iter().all(fits)
    }
}
