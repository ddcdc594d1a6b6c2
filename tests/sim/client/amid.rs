//! In the middle of what a client is when its connection breaks, or the server dies: so that a report says which states were met.
//!
//! ```text
//!   resume ─► asked ─► restoring ─► life        tale ─► told in part        watch ─► snapshot in part
//! ```

use super::*;
use crate::counts::{AMID, Amid};

impl Client {
    /// What open streams said before is on its way to it.
    pub fn joins(&self) -> bool {
        self.tells.joins()
    }

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
