//! Comings and goings in the session's log, where somebody who is in it wants that.
//!
//! ```text
//!   enter {log} ─► the room has a journal ─► somebody comes, leaves ─► due in JOURNAL_EVERY_MS ─► one event for all of them
//!                                                 ▲                       └ no room, session not in memory: a while later
//!                                                 └──── more than one event holds, or more since ──┘
//!   topic $presence   {"joined":["ann"],"left":["bob"],"snapshot":true,"ends":true}
//! ```
//! A journal is a cursor over the roster, as a watcher is: however many come and go, it writes who is in that was not, and who
//! is not in that was. So a storm costs a session one event a second, and a shard [`PRESENCE_JOURNALS_PER_SECOND_MAX`]; whoever
//! is back within its lease costs none. It begins with a snapshot, after a restart too, and ends with the last who wanted it.

use super::Presence;
use super::room::Rooms;
use super::roster::{Entry, RoomKey, Roster};
use super::value::wants_log;
use super::watch::{Place, happened};
use crate::ids::{Now, PartitionId};
use crate::limits::{PRESENCE_JOURNAL_EVERY_MS, PRESENCE_JOURNALS_PER_SECOND_MAX};
use crate::outbox::Happened;
use crate::quota::{Growth, Verdict};
use crate::shard::{Opened, Shard};
use crate::streams::SERVER;
use std::sync::Arc;
use storage::record::{DataKind, EventBody, HEAD_BYTES, NO_OFFSET};

/// Topic of its events. No client can publish under it, and no pattern matches it: it is for those who follow the session.
const TOPIC: &str = "$presence";

/// Bytes that the names in one event aim at, where events may be so large; one name more may make it larger.
const NAMES_BYTES: usize = 32 << 10;

/// Room for the longest name and all that is no name.
const SPARE_BYTES: usize = 256;

/// Room for the record of an event, beside its data.
const RECORD_BYTES: usize = HEAD_BYTES + size_of::<EventBody<'static>>() + 4 * 256;

/// Journals that one turn looks at.
const LOOKS_PER_TURN_MAX: usize = 64;

/// One room's.
pub(crate) struct Journal {
    tenant: Box<str>,
    session: Box<str>,
    place: Place,
    /// It stands among those that are due.
    queued: bool,
}

/// What a journal has to say.
#[derive(Debug)]
struct News {
    /// `None` where nothing has changed that it tells.
    text: Option<String>,
    /// Where it stands when that is said.
    place: Place,
    /// That is all.
    whole: bool,
    /// Nobody wants more.
    ends: bool,
}

impl Presence {
    /// The room's comings and goings are to be logged from now on.
    pub fn begin_journal(&mut self, key: RoomKey, tenant: &str, session: &str) {
        let due_us = self.due_us();
        let Some(slot) = self.rooms.by_key.get(&key).copied() else { return };
        let room = &mut self.rooms.slots[slot as usize];
        if room.journal.is_none() {
            let (tenant, session) = (tenant.into(), session.into());
            room.journal = Some(Box::new(Journal { tenant, session, place: Place::default(), queued: false }));
            self.rooms.journal(slot, due_us);
        }
    }

    /// When the next journal is due.
    pub fn journals_due_us(&self) -> Option<u64> {
        self.rooms.journals.front().map(|(due_us, _)| self.journals_at_us.max(*due_us))
    }
}

impl Rooms {
    /// A room's journal may have something to say: it is due a while after this. Times given rise.
    pub fn journal(&mut self, slot: u32, due_us: u64) {
        if let Some(journal) = &mut self.slots[slot as usize].journal
            && !std::mem::replace(&mut journal.queued, true)
        {
            self.journals.push_back((due_us + PRESENCE_JOURNAL_EVERY_MS * 1000, slot));
        }
    }
}

impl Journal {
    fn news(&self, roster: &Roster, names_bytes: usize) -> News {
        let mut place = self.place;
        if place.begun && roster.has_forgotten(place.from, place.cursor) {
            place = Place::default();
        }
        let snapshot = !place.begun;
        if snapshot {
            place.from = roster.version;
        }
        let (mut joined, mut left) = (Vec::new(), Vec::new());
        let weigh = |entry: &Entry| entry.name.len() + 3;
        place.cursor =
            roster.changes_by(place.cursor, names_bytes, weigh, |entry| match happened(entry, place.whole) {
                Happened::Joined => joined.push(&*entry.name),
                Happened::Left => left.push(&*entry.name),
                Happened::Updated => {}
            });
        let whole = place.cursor == roster.version;
        let ends = whole && !roster.any(wants_log);
        if whole {
            place.whole = place.cursor;
        }
        // Who has read it before has to hear that it ends, or that what it said does not hold any more.
        let says = !joined.is_empty() || !left.is_empty() || (self.place.begun && (ends || snapshot));
        place.begun |= says;
        News { text: says.then(|| text(&joined, &left, snapshot, ends)), place, whole, ends }
    }
}

impl Shard {
    /// Writes journals that are due, as many as a second has room for. Returns how many were looked at.
    pub(super) fn write_journals(&mut self, now: Now) -> usize {
        let (mut done, now_us) = (0, self.presence.now_us);
        while done < LOOKS_PER_TURN_MAX && self.presence.journals_due_us().is_some_and(|due_us| due_us <= now_us) {
            match self.presence.journal_flood.check(now_us, PRESENCE_JOURNALS_PER_SECOND_MAX) {
                Err(wait_ms) => {
                    self.presence.journals_at_us = now_us + u64::from(wait_ms) * 1000;
                    break;
                }
                Ok(paid) => {
                    // A room stands as long as it has one.
                    let Some((_, slot)) = self.presence.rooms.journals.pop_front() else { break };
                    if self.write_journal(slot, now) {
                        self.presence.journal_flood = paid;
                    }
                }
            }
            done += 1;
        }
        done
    }

    /// Returns whether something was written.
    fn write_journal(&mut self, slot: u32, now: Now) -> bool {
        let names_bytes = self.config.limits.event_bytes_max.saturating_sub(SPARE_BYTES).min(NAMES_BYTES);
        let due_us = self.presence.due_us();
        let room = &mut self.presence.rooms.slots[slot as usize];
        let (partition, roster) = (room.key.0, &room.roster);
        let Some(journal) = &mut room.journal else { return false };
        journal.queued = false;
        let News { text, place, whole, ends } = journal.news(roster, names_bytes);
        if let Some(text) = &text {
            let (tenant, session) = (journal.tenant.clone(), journal.session.clone());
            if !self.append_journal(partition, &tenant, &session, text, now) {
                self.presence.rooms.journal(slot, due_us);
                return false;
            }
        }
        let room = &mut self.presence.rooms.slots[slot as usize];
        if ends {
            room.journal = None;
            self.presence.rooms.close_if_empty(slot);
        } else if let Some(journal) = &mut room.journal {
            journal.place = place;
            if !whole {
                self.presence.rooms.journal(slot, due_us);
            }
        }
        text.is_some()
    }

    /// `false`: not now.
    fn append_journal(&mut self, partition: PartitionId, tenant: &str, session: &str, text: &str, now: Now) -> bool {
        if !self.log.room(RECORD_BYTES + text.len()) {
            return false;
        }
        let mut opened = self.open(partition, tenant, session, None);
        if matches!(opened, Opened::Absent) {
            let epoch = self.new_epoch();
            opened = self.open(partition, tenant, session, Some(epoch));
        }
        let Opened::Ready(slot) = opened else { return false };
        // Where the tenant may have no session more, it is told when it may.
        let growth = Growth { sessions: self.begins_session(slot), ..Growth::default() };
        let owner: Arc<str> = tenant.into();
        if growth.sessions > 0 && !matches!(self.may_keep(&owner, partition, growth, now), Verdict::Passes) {
            return false;
        }
        let at = self.log.partition(slot);
        let (epoch, offset) = (at.epoch(), at.tail());
        // Offsets are never used twice in one epoch, so no two events have one key.
        let key = self.log.dedupe_key(partition, epoch, SERVER, itoa::Buffer::new().format(offset));
        let event = EventBody {
            topic: TOPIC,
            client_id: SERVER,
            message_id: "",
            traceparent: "",
            data: text.as_bytes(),
            data_kind: DataKind::Json as u8,
            prev_offset: NO_OFFSET,
            expires_ms: 0,
            producer_epoch: 0,
            producer_seq: NO_OFFSET,
            dedupe_low: key as u64,
            dedupe_high: (key >> 64) as u64,
            body_hash: 0,
        };
        self.log.append(slot, &[event], &[], now.wall_ms);
        self.count_kept(tenant, now);
        true
    }
}

/// Names need no escapes.
fn text(joined: &[&str], left: &[&str], snapshot: bool, ends: bool) -> String {
    let mut fields = Vec::new();
    for (key, names) in [("joined", joined), ("left", left)] {
        if !names.is_empty() {
            fields.push(format!("\"{key}\":[\"{}\"]", names.join("\",\"")));
        }
    }
    for (key, holds) in [("snapshot", snapshot), ("ends", ends)] {
        if holds {
            fields.push(format!("\"{key}\":true"));
        }
    }
    format!("{{{}}}", fields.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::PresenceState;
    use crate::presence::of_presence;
    use crate::presence::roster::End;

    fn journal() -> Journal {
        Journal { tenant: "t".into(), session: "s".into(), place: Place::default(), queued: false }
    }

    fn put(roster: &mut Roster, client: u128, name: &str, log: bool) {
        roster.put(PartitionId(client), name, &of_presence(PresenceState::Idle, None, log), 1);
    }

    fn tell(journal: &mut Journal, roster: &Roster, names_bytes: usize) -> (String, bool) {
        let news = journal.news(roster, names_bytes);
        journal.place = news.place;
        (news.text.unwrap_or_default(), news.ends)
    }

    #[test]
    fn an_event_says_who_came_and_who_left_since_the_one_before() {
        let (mut roster, mut journal) = (Roster::new(true, true), journal());
        put(&mut roster, 1, "ann", true);
        put(&mut roster, 2, "bob", false);
        let snapshot = r#"{"joined":["ann","bob"],"snapshot":true}"#;
        assert_eq!(tell(&mut journal, &roster, 1000), (snapshot.to_owned(), false));
        // Who comes and goes between two events, and who is at something else, is no news.
        put(&mut roster, 3, "cy", false);
        roster.end(PartitionId(3), End::Left, 0);
        roster.put(PartitionId(2), "bob", &of_presence(PresenceState::Tool, None, false), 1);
        assert_eq!(tell(&mut journal, &roster, 1000), (String::new(), false));
        put(&mut roster, 4, "dan", false);
        roster.end(PartitionId(2), End::Lapsed, 0);
        assert_eq!(tell(&mut journal, &roster, 1000).0, r#"{"joined":["dan"],"left":["bob"]}"#);
        roster.end(PartitionId(1), End::Left, 0);
        let last = r#"{"left":["ann"],"ends":true}"#;
        assert_eq!(tell(&mut journal, &roster, 1000), (last.to_owned(), true));
    }

    #[test]
    fn more_than_one_event_holds_is_said_in_several() {
        let (mut roster, mut journal) = (Roster::new(true, true), journal());
        for n in 0..100 {
            put(&mut roster, n, &format!("c{n}"), n == 99);
        }
        let mut told = Vec::new();
        while journal.place.whole < roster.version {
            let (text, ends) = tell(&mut journal, &roster, 60);
            assert!(text.len() < 60 + SPARE_BYTES && !ends, "{text}");
            assert_eq!(text.contains("snapshot"), told.is_empty(), "{text}");
            told.push(text);
        }
        assert!(told.len() > 8);
        let all: Vec<&str> =
            told.iter().flat_map(|text| text.split('"').filter(|part| part.starts_with('c'))).collect();
        assert_eq!(all, (0..100).map(|n| format!("c{n}")).collect::<Vec<_>>());
    }

    #[test]
    fn what_was_forgotten_before_it_was_said_begins_it_anew() {
        let (mut roster, mut journal) = (Roster::new(true, true), journal());
        put(&mut roster, 1, "ann", true);
        put(&mut roster, 2, "bob", false);
        tell(&mut journal, &roster, 1000);
        roster.end(PartitionId(2), End::Left, 0);
        let version = roster.version;
        let slot = (0..8).find(|slot| roster.at(*slot, 2).is_some()).expect("the second entry");
        roster.forget(slot, version);
        assert_eq!(tell(&mut journal, &roster, 1000).0, r#"{"joined":["ann"],"snapshot":true}"#);
        roster.end(PartitionId(1), End::Left, 0);
        let (version, slot) = (roster.version, (0..8).find(|slot| roster.at(*slot, 1).is_some()).expect("the first"));
        roster.forget(slot, version);
        let last = r#"{"snapshot":true,"ends":true}"#;
        assert_eq!(tell(&mut journal, &roster, 1000), (last.to_owned(), true));
    }
}
