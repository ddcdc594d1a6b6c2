//! A client's presence: the sessions it is in, and those that it watches.
//!
//! ```text
//!   rooms    Unknown ─ enter, leave ─► Asked ─ entered, left ─► Told         a lost connection: Unknown
//!            trusts: its life has to bring it back, it only asks whether it did
//!   views    Idle ─ watch ─► Asked ─ watching ─► snapshot, deltas            a lost connection: Idle, nothing is believed
//! ```
//! At rest every view is what the board says. Before, it has no hole, and holds only what was said.

use super::*;
use crate::board::Board;

/// A session that it is in, or is not.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// What it wants to be there; `None` = nothing.
    wants: Option<String>,
    told: bool,
    asked: bool,
    /// Its connection was lost and it does not come back: its lease has to end it.
    silent: bool,
    /// Its life has what it was told last, whatever happens to its connections.
    kept: bool,
    /// It says nothing: its life has to bring it back.
    trusts: bool,
}

/// A session that it watches.
#[derive(Debug, Default)]
pub(super) struct View {
    /// So many of its commands about it are not answered.
    pub asked: u32,
    pub live: bool,
    version: u64,
    more: bool,
    pub believes: BTreeMap<String, String>,
}

/// A command that was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ask {
    Enter,
    Update,
    Leave,
    /// An update that changes nothing: is it in?
    Probe,
    Watch,
    Unwatch,
}

#[derive(Deserialize)]
pub(super) struct RosterText<'a> {
    pub session: &'a str,
    #[serde(default)]
    snapshot: bool,
    after: u64,
    version: u64,
    #[serde(default)]
    more: bool,
    #[serde(borrow, default)]
    pub joined: Vec<Member<'a>>,
    #[serde(borrow, default)]
    pub updated: Vec<Member<'a>>,
    #[serde(borrow, default)]
    left: Vec<&'a str>,
    pub all: Option<All>,
}

#[derive(Deserialize)]
pub(super) struct Member<'a> {
    pub client: &'a str,
    state: Option<&'a str>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    pub delivered: Option<u64>,
    pub read: Option<u64>,
}

/// Of all receipts.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct All {
    pub count: u64,
    pub delivered: u64,
    pub read: u64,
}

impl Room {
    /// It was told that it is in.
    pub(super) fn is_in(&self) -> bool {
        self.told && self.wants.is_some()
    }
}

impl Member<'_> {
    fn value(&self) -> String {
        match (self.state, self.delivered, self.read) {
            (Some(state), ..) => format!("{state} {}", self.data.map_or("", RawValue::get)),
            (None, Some(delivered), Some(read)) => format!("{delivered} {read}"),
            _ => "nothing".to_owned(),
        }
    }
}

impl View {
    /// It was told that it watches no longer.
    pub(super) fn end(&mut self) {
        *self = Self { asked: self.asked, ..Self::default() };
    }

    /// It was told that it watches, and nothing else yet.
    pub(super) fn begin(&mut self) {
        *self = Self { live: true, more: true, asked: self.asked, ..Self::default() };
    }

    /// Takes a frame in. `said` and `left` say why a member cannot be as it says, or cannot have left.
    pub(super) fn hear(
        &mut self,
        frame: &RosterText<'_>,
        mut said: impl FnMut(&Member<'_>, &str) -> Checked,
        mut left: impl FnMut(&str) -> Checked,
    ) -> Checked {
        if frame.snapshot {
            self.version = 0;
            self.believes.clear();
        }
        if frame.after != self.version || frame.version < frame.after {
            return Err(format!("a hole: {} was known", self.version));
        }
        (self.version, self.more) = (frame.version, frame.more);
        for (members, known) in [(&frame.joined, false), (&frame.updated, true)] {
            for member in members {
                let value = member.value();
                said(member, &value)?;
                if self.believes.insert(member.client.to_owned(), value).is_none() && known {
                    return Err(format!("{} is updated and was never told", member.client));
                }
            }
        }
        for client in &frame.left {
            left(client)?;
            self.believes.remove(*client);
        }
        Ok(())
    }

    /// It watches, and was not told all yet.
    pub(super) fn is_in_part(&self) -> bool {
        self.live && self.more
    }

    /// All that is to be known is known.
    pub(super) fn is_whole(&self) -> bool {
        self.live && !self.more
    }
}

const STATES: [&str; 4] = ["idle", "thinking", "tool", "blocked"];

impl Client {
    /// The connection is gone.
    pub(super) fn presence_cut_off(&mut self) {
        for (at, room) in self.rooms.values_mut().enumerate() {
            // What was asked and not answered may have been done, or not.
            room.kept &= !room.asked;
            room.trusts = room.kept && room.wants.is_some() && (self.next_id + at as u64).is_multiple_of(2);
            (room.told, room.asked) = (room.silent, false);
        }
        self.views.values_mut().for_each(|view| *view = View::default());
    }

    /// No life brings it back on this connection.
    pub(super) fn presence_enters_anew(&mut self) {
        self.rooms.values_mut().for_each(|room| room.trusts = false);
    }

    /// Its life may have an older story, or none.
    pub(super) fn presence_may_be_lost(&mut self) {
        self.rooms.values_mut().for_each(|room| room.kept = false);
    }

    /// Some of what it was in it never mentions again: nobody but the lease ends that. A client with a life is where it was
    /// as soon as it resumes.
    pub fn presence_gives_up(&mut self, board: &mut Board) {
        let (name, number) = (self.name(), self.next_id);
        for (at, (session, room)) in self.rooms.iter_mut().enumerate() {
            if !self.role.resumes && (number + at as u64).is_multiple_of(3) {
                *room = Room { told: true, silent: true, ..Room::default() };
                board.left(session, &name);
            }
        }
    }

    /// Enters, changes, leaves, watches: something of it.
    pub(super) fn presence_acts(&mut self, workload: &mut Random, net: &mut Random, board: &mut Board) {
        if !self.views.is_empty() && workload.chance(250) {
            let sessions: Vec<String> = self.views.keys().cloned().collect();
            let session = workload.pick(&sessions).clone();
            let view = &self.views[&session];
            let ask = if view.live && view.asked == 0 && workload.chance(300) { Ask::Unwatch } else { Ask::Watch };
            return self.ask(&session, ask, "", net, board);
        }
        let sessions: Vec<String> = self.rooms.keys().cloned().collect();
        if sessions.is_empty() {
            return;
        }
        let session = workload.pick(&sessions).clone();
        if self.rooms[&session].trusts && workload.chance(700) {
            return self.probe(&session, net, board);
        }
        let value = (*workload.pick(&STATES), workload.below(1000));
        let wants = format!("{} {}", value.0, value.1);
        let fields = format!(",\"state\":\"{}\",\"data\":{}", value.0, value.1);
        let room = self.rooms.get_mut(&session).expect("picked from them");
        if room.asked {
            return;
        }
        if room.wants.is_some() && workload.chance(250) {
            room.wants = None;
            return self.ask(&session, Ask::Leave, "", net, board);
        }
        let ask = if room.told && room.wants.is_some() && workload.chance(600) { Ask::Update } else { Ask::Enter };
        room.wants = Some(wants);
        self.ask(&session, ask, &fields, net, board);
    }

    /// What one does about presence and receipts who tells streams or listens to them and does nothing else.
    pub(super) fn presence_aside(&mut self, workload: &mut Random, net: &mut Random, oracle: &mut Oracle, calm: bool) {
        if self.rooms.is_empty() && self.views.is_empty() && self.receipts.is_empty() {
            return;
        }
        if calm {
            self.presence_settles(workload.chance(20), net, &mut oracle.board);
            self.receipts_settle(net, oracle);
        } else if self.pending.len() < PENDING_MAX && workload.chance(50) {
            if workload.chance(500) {
                self.presence_acts(workload, net, &mut oracle.board);
            } else {
                self.receipts_act(workload, net, oracle);
            }
        }
    }

    /// Brings presence to rest: says again what it wants to be, watches what it watches. What an old connection had still on
    /// its way may have undone it.
    pub(super) fn presence_settles(&mut self, again: bool, net: &mut Random, board: &mut Board) {
        self.watch_all(net, board);
        self.presence_pause = self.presence_pause.saturating_sub(1);
        if self.presence_pause > 0 {
            return;
        }
        let sessions: Vec<String> = self
            .rooms
            .iter()
            .filter(|(_, room)| !room.asked && !room.silent && (again || !room.told))
            .map(|r| r.0.clone())
            .collect();
        for session in sessions {
            if self.rooms[&session].trusts {
                self.probe(&session, net, board);
                continue;
            }
            let Room { wants, told, .. } = &self.rooms[&session];
            let (wants, told) = (wants.clone(), *told);
            match wants.as_deref().and_then(|wants| wants.split_once(' ')) {
                Some((state, data)) => {
                    let fields = format!(",\"state\":\"{state}\",\"data\":{data}");
                    self.ask(&session, Ask::Enter, &fields, net, board);
                }
                None => self.ask(&session, Ask::Leave, "", net, board),
            }
            // Said again, it knows no less than before.
            if let Some(room) = self.rooms.get_mut(&session) {
                room.told = told;
            }
        }
    }

    /// Asks whether its life has brought it back, once that has begun.
    fn probe(&mut self, session: &str, net: &mut Random, board: &mut Board) {
        if self.life.goes_on() && !self.rooms[session].asked {
            self.ask(session, Ask::Probe, "", net, board);
        }
    }

    pub(super) fn watch_all(&mut self, net: &mut Random, board: &mut Board) {
        let sessions: Vec<String> =
            self.views.iter().filter(|(_, view)| !view.live && view.asked == 0).map(|v| v.0.clone()).collect();
        for session in sessions {
            self.ask(&session, Ask::Watch, "", net, board);
        }
    }

    fn ask(&mut self, session: &str, ask: Ask, fields: &str, net: &mut Random, board: &mut Board) {
        let name = self.name();
        let kind = match ask {
            Ask::Enter => "enter",
            Ask::Update | Ask::Probe => "update",
            Ask::Leave => "leave",
            Ask::Watch => "watch",
            Ask::Unwatch => "unwatch",
        };
        if let (Ask::Watch | Ask::Unwatch, Some(view)) = (ask, self.views.get_mut(session)) {
            view.asked += 1;
        } else if let Some(room) = self.rooms.get_mut(session) {
            (room.asked, room.told, room.silent) = (true, false, false);
            room.trusts = ask == Ask::Probe;
            match &room.wants {
                _ if ask == Ask::Probe => {}
                Some(wants) => board.says(session, &name, wants),
                None => board.leaves(session, &name),
            }
        }
        let logs = ask == Ask::Enter && self.role.logs.iter().any(|logs| logs == session);
        let logs = if logs { ",\"log\":true" } else { "" };
        let id = self.command(Pending::Presence(session.to_owned(), ask));
        self.send(
            net,
            &format!("{{\"type\":\"presence.{kind}\",\"id\":{id},\"session\":\"{session}\"{fields}{logs}}}"),
        );
    }

    /// The answer to one of these; `refusal` where it was refused, and whether it may be tried again.
    pub(super) fn presence_answered(
        &mut self,
        session: &str,
        ask: Ask,
        answer: &str,
        refusal: Option<(&str, bool)>,
        board: &mut Board,
    ) -> Checked {
        let name = self.name();
        if let (Ask::Watch | Ask::Unwatch, Some(view)) = (ask, self.views.get_mut(session)) {
            view.asked = view.asked.saturating_sub(1);
            return match (ask, answer, refusal) {
                (Ask::Watch, "watching", _) => {
                    view.begin();
                    Ok(())
                }
                (Ask::Unwatch, "unwatched", _) => {
                    view.end();
                    Ok(())
                }
                (_, _, Some((_, true))) => Ok(()),
                _ => Err(format!("{ask:?} answered by {answer} {refusal:?}")),
            };
        }
        let kept = self.life.is_whole();
        let room = self.rooms.get_mut(session).ok_or("a room that it was never in")?;
        room.asked = false;
        match (ask, answer, refusal) {
            (Ask::Probe, "updated", _) => {
                (room.told, room.trusts, room.kept) = (true, false, kept);
                self.counts.add("resume", "a member is where it was");
                board.came_back(session, &name);
                Ok(())
            }
            // Its life has not brought it back yet. Where it has to, this is no rest.
            (Ask::Probe, _, Some(("not_present", _))) if room.kept && !board.is_tight => {
                self.presence_pause = 10;
                Ok(())
            }
            (Ask::Probe, _, Some(("not_present", _))) => {
                (room.trusts, room.kept) = (false, false);
                self.counts.add("resume", "a member was forgotten by a crash");
                board.left(session, &name);
                Ok(())
            }
            (Ask::Enter, "entered", _) | (Ask::Update, "updated", _) => {
                (room.told, room.kept) = (true, kept);
                board.entered(session, &name, room.wants.as_deref().unwrap_or_default());
                Ok(())
            }
            (Ask::Leave, "left", _) | (Ask::Leave, _, Some(("not_present", _))) => {
                (room.told, room.kept) = (true, kept);
                board.left(session, &name);
                Ok(())
            }
            // Its lease may have ended, or an old connection of it said so.
            (Ask::Update, _, Some(("not_present", _))) if !board.may_have_left(session, &name) => {
                Err(format!("{name} is not in {session} any more"))
            }
            // Others may be in it for good.
            (_, _, Some(("room_full", _))) => {
                room.wants = None;
                Ok(())
            }
            (_, _, Some((_, true) | ("not_present", _))) => {
                self.presence_pause = 100;
                Ok(())
            }
            _ => Err(format!("{ask:?} answered by {answer} {refusal:?}")),
        }
    }

    /// A frame about who is in a session.
    pub(super) fn presence_frame(&mut self, text: &str, board: &Board) -> Checked {
        let frame: RosterText<'_> = serde_json::from_str(text).map_err(|e| format!("no frame of ours: {e}"))?;
        self.counts.add("frame", if frame.snapshot { "presence, snapshot" } else { "presence" });
        let view = self.views.get_mut(frame.session).ok_or("a session that is not watched")?;
        if !view.live {
            // The answer to its `watch`, or that to its `unwatch`, is on its way.
            return if view.asked > 0 { Ok(()) } else { Err("a session that is watched no longer".to_owned()) };
        }
        let said = |member: &Member<'_>, value: &str| match board.was_said(frame.session, member.client, value) {
            true => Ok(()),
            false => Err(format!("{} never said {value:?}", member.client)),
        };
        let left = |client: &str| match board.may_have_left(frame.session, client) {
            true => Ok(()),
            false => Err(format!("{client} is connected and in, and is said to have left")),
        };
        view.hear(&frame, said, left)
    }

    /// Why presence has not come to rest.
    pub(super) fn presence_unrest(&self, board: &Board) -> Option<String> {
        if let Some((session, _)) = self.rooms.iter().find(|(_, room)| !room.told) {
            return Some(format!("it does not know whether it is in {session}"));
        }
        for (session, view) in &self.views {
            if !view.is_whole() {
                return Some(format!("its view of {session} is not whole"));
            }
            if !board.is_true(session, &view.believes) {
                let (believes, truth) = (&view.believes, board.present(session));
                return Some(format!("it believes that in {session} are {believes:?}, there are {truth:?}"));
            }
        }
        None
    }

    /// What it believes of sessions that others watch too.
    pub fn believes(&self) -> impl Iterator<Item = (&String, &BTreeMap<String, String>)> {
        self.views.iter().map(|(session, view)| (session, &view.believes))
    }
}
