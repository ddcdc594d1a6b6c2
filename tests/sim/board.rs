//! Who is in which session, as the clients themselves know it.
//!
//! ```text
//!   entered, left: told by the server    ─► present: what every watcher has to believe once all has come to rest
//!   said: whatever was ever sent         ─► what a watcher may believe before
//!   spotless: entered since the boot, never left, never cut off ─► nobody may be told that it left
//! ```

use std::collections::{BTreeMap, BTreeSet};

/// One per world.
#[derive(Debug, Default)]
pub struct Board {
    present: BTreeMap<String, BTreeMap<String, String>>,
    said: BTreeSet<(String, String, String)>,
    spotless: BTreeSet<(String, String)>,
    /// Clients that left a session, or lost a connection, since the boot: what an old connection had on its way may still be
    /// done.
    spoiled: BTreeSet<(String, String)>,
    cut_off: BTreeSet<String>,
    /// Leases are longer than anything that holds a shard up: nobody leaves but by its word, or with its connection.
    pub strict: bool,
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

    /// The server has told it that it is.
    pub fn entered(&mut self, session: &str, client: &str, value: &str) {
        self.present.entry(session.to_owned()).or_default().insert(client.to_owned(), value.to_owned());
        let who = (session.to_owned(), client.to_owned());
        if !self.spoiled.contains(&who) && !self.cut_off.contains(client) {
            self.spotless.insert(who);
        }
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

    /// What every watcher believes once all has come to rest.
    pub fn present(&self, session: &str) -> BTreeMap<String, String> {
        self.present.get(session).cloned().unwrap_or_default()
    }
}
