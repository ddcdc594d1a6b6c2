//! A queue that comes and goes: declared, dropped, listed by one boss, who knows whether it is there.
//!
//! ```text
//!   unsure ── declared ─► there ── drop ─► unsure ── dropped ─► gone ── declare ─► unsure        no answer: unsure for ever more
//! ```
//! Nobody works on its jobs: they end at their deadlines, also after it was dropped.

use super::labour::{Ask, QUEUE};
use super::*;

/// Its name.
pub const SIDE_QUEUE: &str = "q2";

/// What its boss knows of it.
#[derive(Debug, Default)]
pub(super) struct Side {
    is_there: Option<bool>,
    changes: bool,
    lists: bool,
}

/// A queue of a list.
#[derive(Deserialize)]
pub(super) struct Listed<'a> {
    #[serde(borrow)]
    queue: Cow<'a, str>,
    deadline_ms: u64,
}

impl Side {
    /// Surely.
    pub fn is_there(&self) -> bool {
        self.is_there == Some(true) && !self.changes
    }

    /// The connection is gone.
    pub fn cut_off(&mut self) {
        if std::mem::take(&mut self.changes) {
            self.is_there = None;
        }
        self.lists = false;
    }
}

impl Client {
    /// Declares it, drops it, asks for a list.
    pub(super) fn change_side(&mut self, net: &mut Random, calm: bool) {
        let Some(policy) = self.role.side.clone().filter(|_| !calm) else { return };
        let side = &self.labour.side;
        if side.changes || side.lists {
            return;
        }
        let is_there = side.is_there;
        if self.labour.chance(40) {
            self.labour.side.lists = true;
            let id = self.command(Pending::Labour(Ask::List(is_there)));
            return self.send(net, &format!("{{\"type\":\"queue.list\",\"id\":{id}}}"));
        }
        if !self.labour.chance(if is_there == Some(true) { 15 } else { 150 }) {
            return;
        }
        self.labour.side.changes = true;
        self.labour.side_changes();
        let again = self.labour.chance(300);
        if is_there == Some(true) && !again {
            let id = self.command(Pending::Labour(Ask::DropSide));
            self.send(net, &format!("{{\"type\":\"queue.drop\",\"id\":{id},\"queue\":\"{SIDE_QUEUE}\"}}"));
        } else {
            let id = self.command(Pending::Labour(Ask::DeclareSide));
            self.send(net, &format!("{{\"type\":\"queue.declare\",\"id\":{id},\"queue\":\"{SIDE_QUEUE}\",{policy}}}"));
        }
    }

    /// What came of it.
    pub(super) fn side_answered(&mut self, ask: &Ask, frame: &Frame<'_>) -> Checked {
        let retry = frame.code.is_some_and(|code| code < 4200);
        match (ask, &*frame.r#type, frame.refusal.as_deref()) {
            (Ask::List(must), "queues", _) => {
                self.labour.side.lists = false;
                let find = |name: &str| frame.queues.iter().find(|listed| listed.queue == name);
                if self.labour.declared && find(QUEUE).is_none() {
                    return Err(format!("{QUEUE} is declared, and in no list"));
                }
                if must.is_some_and(|must| must != find(SIDE_QUEUE).is_some()) {
                    return Err(format!("{SIDE_QUEUE} is there: {must:?}, the list says otherwise"));
                }
                if frame.queues.iter().any(|listed| listed.deadline_ms == 0) {
                    return Err("a queue without a deadline".to_owned());
                }
            }
            (Ask::List(_), ..) if retry => self.labour.side.lists = false,
            (Ask::DeclareSide, "declared", _) => {
                (self.labour.side.is_there, self.labour.side.changes) = (Some(true), false);
            }
            (Ask::DropSide, "queue.dropped", _) | (Ask::DropSide, _, Some("unknown_queue")) => {
                (self.labour.side.is_there, self.labour.side.changes) = (Some(false), false);
            }
            // Refused before anything was done; what an earlier one did that nobody answered is as unknown as before.
            (Ask::DeclareSide | Ask::DropSide, ..) if retry => self.labour.side.changes = false,
            (_, answer, refusal) => return Err(format!("{ask:?} answered by {answer} {refusal:?}")),
        }
        Ok(())
    }
}
