//! In the middle of what a client is when its connection breaks, or the server dies: so that a report says which states were met.
//!
//! ```text
//!   resume ─► asked ─► restoring ─► life        tale ─► told in part        watch ─► snapshot in part
//! ```

use super::*;

/// One such state, as the two faults that it names.
#[derive(Clone, Copy, Debug)]
pub struct Amid {
    /// The server dies.
    pub death: &'static str,
    /// The connection breaks.
    pub cut: &'static str,
}

/// All of them, in the order of [`Client::amid`].
pub const AMID: [Amid; 8] = [
    Amid { death: "death: amid a resume, asked", cut: "connection breaks amid a resume, asked" },
    Amid { death: "death: amid a resume, restoring", cut: "connection breaks amid a resume, restoring" },
    Amid { death: "death: of a process with lives", cut: "connection breaks that has a life" },
    Amid { death: "death: amid a stream", cut: "connection breaks amid a stream" },
    Amid { death: "death: amid a late join", cut: "connection breaks amid a late join" },
    Amid { death: "death: of a process with members", cut: "connection breaks of a member" },
    Amid { death: "death: amid a snapshot", cut: "connection breaks amid a snapshot" },
    Amid { death: "death: of a process with receipts", cut: "connection breaks that has receipts" },
];

impl Client {
    /// What goes on now.
    pub fn amid(&self) -> impl Iterator<Item = Amid> {
        let is = [
            self.life.is_asked(),
            self.life.goes_on() && !self.life.is_whole(),
            self.life.is_whole(),
            self.tells.tells_something(),
            self.tells.joins(),
            self.rooms.values().any(presence::Room::is_in),
            self.views.values().any(presence::View::is_in_part),
            self.receipts.has_some(),
        ];
        AMID.into_iter().zip(is).filter_map(|(amid, is)| is.then_some(amid))
    }
}
