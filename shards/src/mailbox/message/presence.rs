//! Presence and receipts in mail: kinds of request, commands and replies.

use super::{Reader, Writer};
use crate::command::{Command, PresenceAct, PresenceState, RosterKind};
use crate::effect::{PresenceReply, Reply};

/// A shard begins to follow a room of the receiver.
pub const FOLLOW: u8 = 40;
/// It follows it no longer.
pub const UNFOLLOW: u8 = 41;
/// What changed in a room of the sender.
pub const ROSTER: u8 = 42;
/// A client is in a room of the receiver.
pub const ATTEND: u8 = 43;
/// Clients still are.
pub const RENEW: u8 = 44;
/// Holds of the receiver that stand for nobody.
pub const GONE: u8 = 45;

/// Is it one of these?
pub fn is_kind(kind: u8) -> bool {
    (FOLLOW..=GONE).contains(&kind)
}

fn put_data(w: &mut Writer<'_>, data: Option<&[u8]>) {
    match data {
        Some(data) => w.u8(1).bytes(data),
        None => w.u8(0),
    };
}

fn get_data<'a>(r: &mut Reader<'a>) -> Option<&'a [u8]> {
    (r.u8() == 1).then(|| r.bytes())
}

fn get_roster(r: &mut Reader<'_>) -> RosterKind {
    if r.u8() == RosterKind::Receipts as u8 { RosterKind::Receipts } else { RosterKind::Presence }
}

/// Writes a command that a room's owner carries out; the others stay where the client is.
pub fn put_act(w: &mut Writer<'_>, session: &str, act: &PresenceAct<'_>) {
    w.text(session);
    match *act {
        PresenceAct::Enter { state, data, lease_ms, log } => {
            w.u8(1).u8(state as u8).option(lease_ms).u8(u8::from(log));
            put_data(w, data);
        }
        PresenceAct::Update { state, data } => {
            w.u8(2).option(state.map(|state| state as u64));
            put_data(w, data);
        }
        PresenceAct::Read { offset } => {
            w.u8(3).u64(offset);
        }
        PresenceAct::Leave | PresenceAct::Watch(_) | PresenceAct::Unwatch(_) => {
            w.u8(0);
        }
    }
}

/// Reads it.
pub fn get_act<'a>(r: &mut Reader<'a>) -> Command<'a> {
    let session = r.text();
    let act = match r.u8() {
        1 => {
            let (state, lease_ms, log) = (PresenceState::of_byte(r.u8()), r.option(), r.u8() == 1);
            PresenceAct::Enter { state, data: get_data(r), lease_ms, log }
        }
        2 => {
            let state = r.option().map(|state| PresenceState::of_byte(state as u8));
            PresenceAct::Update { state, data: get_data(r) }
        }
        3 => PresenceAct::Read { offset: r.u64() },
        _ => PresenceAct::Leave,
    };
    Command::Presence { session, act }
}

/// Writes a reply.
pub fn put_presence_reply(w: &mut Writer<'_>, session: &str, reply: &PresenceReply<'_>) {
    w.text(session);
    match *reply {
        PresenceReply::Entered { state, data, lease_ms, log } => {
            w.u8(1).u8(state as u8).u64(lease_ms).u8(u8::from(log));
            put_data(w, data);
        }
        PresenceReply::Updated { state, data, lease_ms, log } => {
            w.u8(2).u8(state as u8).u64(lease_ms).u8(u8::from(log));
            put_data(w, data);
        }
        PresenceReply::Left => {
            w.u8(3);
        }
        PresenceReply::Read { delivered, read, lease_ms } => {
            w.u8(4).u64(delivered).u64(read).u64(lease_ms);
        }
        PresenceReply::Watching(roster) => {
            w.u8(5).u8(roster as u8);
        }
        PresenceReply::Unwatched(roster) => {
            w.u8(6).u8(roster as u8);
        }
    }
}

/// Reads a reply.
pub fn get_presence_reply<'a>(r: &mut Reader<'a>) -> Reply<'a> {
    let session = r.text();
    let reply = match r.u8() {
        kind @ (1 | 2) => {
            let (state, lease_ms, log) = (PresenceState::of_byte(r.u8()), r.u64(), r.u8() == 1);
            let data = get_data(r);
            if kind == 1 {
                PresenceReply::Entered { state, data, lease_ms, log }
            } else {
                PresenceReply::Updated { state, data, lease_ms, log }
            }
        }
        4 => PresenceReply::Read { delivered: r.u64(), read: r.u64(), lease_ms: r.u64() },
        5 => PresenceReply::Watching(get_roster(r)),
        6 => PresenceReply::Unwatched(get_roster(r)),
        _ => PresenceReply::Left,
    };
    Reply::Presence { session, reply }
}
