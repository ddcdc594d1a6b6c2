//! Messages about rooms between shards.
//!
//! ```text
//!   FOLLOW    roster u8 · tenant · session · follow u32               begin to tell me of a room, from the start
//!   UNFOLLOW  roster u8 · room u128 · follow u32
//!   ROSTER    roster u8 · room u128 · follow u32 · flags u8 · version u64 · { client, three versions, ended, name, value }
//!   ATTEND    roster u8 · tenant · session · client · lease u64 · value     a client is in
//!   RENEW     { roster u8, room u128, client u128, hold }                   these still are
//!   GONE      { hold, left u8 }                                             these are not
//! ```
//! All of them are said again, or make no difference, when they are late: no reply is awaited.

use super::hold::HoldId;
use super::room::Follower;
use super::roster::{RoomKey, Told as Change};
use super::serve::Told;
use crate::command::RosterKind;
use crate::ids::{PartitionId, ShardId};
use crate::mailbox::codec::{Reader, Writer};
use crate::mailbox::message::presence as kind;
use crate::shard::Shard;
use std::collections::VecDeque;

/// Holds in one message.
const HOLDS_MAX: usize = 128;

/// Holds that stand for nobody and wait to be told to one shard; beyond, they are told when they are renewed again.
const GONE_MAX: usize = 4096;

const ANEW: u8 = 1;
const COMPLETE: u8 = 2;
const WHOLE: u8 = 4;

fn put_kind(w: &mut Writer<'_>, roster: RosterKind) {
    w.u8(roster as u8);
}

fn get_kind(r: &mut Reader<'_>) -> RosterKind {
    if r.u8() == RosterKind::Receipts as u8 { RosterKind::Receipts } else { RosterKind::Presence }
}

fn get_key(r: &mut Reader<'_>) -> RoomKey {
    let roster = get_kind(r);
    (PartitionId(r.u128()), roster)
}

impl Shard {
    /// Takes a message in.
    pub(crate) fn handle_presence(&mut self, message: u8, peer: ShardId, r: &mut Reader<'_>) {
        match message {
            kind::FOLLOW => {
                let (roster, tenant, session, follow) = (get_kind(r), r.text(), r.text(), r.u32());
                let slot = self.presence.rooms.open((self.log.partition_id(tenant, session), roster));
                let followers = &mut self.presence.rooms.slots[slot as usize].followers;
                followers.retain(|follower| follower.shard != peer);
                followers.push(Follower { shard: peer, follow, cursor: 0, from: 0, anew: true, complete: false });
                self.presence.rooms.hurry(slot);
            }
            kind::UNFOLLOW => {
                let (key, follow) = (get_key(r), r.u32());
                let Some(slot) = self.presence.rooms.by_key.get(&key).copied() else { return };
                let followers = &mut self.presence.rooms.slots[slot as usize].followers;
                followers.retain(|follower| (follower.shard, follower.follow) != (peer, follow));
                self.presence.rooms.close_if_empty(slot);
            }
            kind::ROSTER => self.take_roster(r),
            kind::ATTEND => {
                let roster = get_kind(r);
                let (tenant, session, name) = (r.text(), r.text(), r.text());
                let (lease_ms, value) = (r.u64(), r.bytes());
                let key = (self.log.partition_id(tenant, session), roster);
                let client = self.log.partition_id(tenant, name);
                self.attend(key, (tenant, session), (client, name), value, lease_ms);
            }
            kind::RENEW => {
                while !r.0.is_empty() {
                    let (key, client, hold) = (get_key(r), PartitionId(r.u128()), (r.u32(), r.u32()));
                    if let Some(left) = self.renew(key, client) {
                        let peer = usize::from(peer.0);
                        if self.presence.gone.len() <= peer {
                            self.presence.gone.resize_with(peer + 1, VecDeque::new);
                        }
                        let line = &mut self.presence.gone[peer];
                        if line.len() < GONE_MAX {
                            line.push_back((hold, left));
                        }
                    }
                }
            }
            _ => {
                debug_assert_eq!(message, kind::GONE, "unknown message about rooms");
                while !r.0.is_empty() {
                    let (id, left) = ((r.u32(), r.u32()), r.u8() == 1);
                    self.hold_gone(id, left);
                }
            }
        }
    }

    /// What changed in a room that another shard owns.
    fn take_roster(&mut self, r: &mut Reader<'_>) {
        let (key, follow, flags, version) = (get_key(r), r.u32(), r.u8(), r.u64());
        let Some(watched) = self.presence.watches.by_key.get(&key).copied() else { return };
        let found = &mut self.presence.watches.watched[watched as usize];
        // Of a room that was given up and taken up again: the owner begins anew for it.
        if found.follow != follow {
            return;
        }
        let copy = &mut found.copy;
        if flags & ANEW != 0 {
            copy.begin_anew();
        }
        while !r.0.is_empty() {
            let client = PartitionId(r.u128());
            let (version, joined, since, ended) = (r.u64(), r.u64(), r.u64(), r.u8() == 1);
            let (name, value) = (r.text(), r.bytes());
            copy.take(Change { client, name, value, version, joined, since, ended });
        }
        (copy.version, copy.complete, copy.whole) = (version, flags & COMPLETE != 0, flags & WHOLE != 0);
        if copy.whole {
            self.presence.watches.queue_all(watched);
        }
    }

    /// Tells a follower what lies behind its cursor, as much as one message takes.
    pub(super) fn tell_follower(&mut self, slot: u32, at: usize) -> Told {
        let frame_bytes = self.presence.frame_bytes;
        let room = &mut self.presence.rooms.slots[slot as usize];
        let (roster, Some(follower)) = (&room.roster, room.followers.get_mut(at)) else { return Told::Nothing };
        if !follower.anew && roster.has_forgotten(follower.from, follower.cursor) {
            (follower.cursor, follower.anew) = (0, true);
        }
        if follower.anew {
            follower.from = roster.version;
        }
        if !follower.anew && follower.cursor == roster.version && follower.complete == roster.complete {
            return Told::Nothing;
        }
        let mut message = std::mem::take(&mut self.scratch);
        message.clear();
        let mut w = Writer(&mut message);
        w.u8(kind::ROSTER);
        put_kind(&mut w, room.key.1);
        w.u128(room.key.0.0).u32(follower.follow);
        let flags_at = w.0.len();
        w.u8(0).u64(0);
        let to = roster.changes(follower.cursor, frame_bytes, |entry| {
            w.u128(entry.client.0).u64(entry.version).u64(entry.joined).u64(entry.since);
            w.u8(u8::from(entry.ended.is_some())).text(&entry.name).bytes(&entry.value);
        });
        let whole = to == roster.version;
        let flag = |bit: u8, set: bool| if set { bit } else { 0 };
        message[flags_at] = flag(ANEW, follower.anew) | flag(COMPLETE, roster.complete) | flag(WHOLE, whole);
        message[flags_at + 1..flags_at + 9].copy_from_slice(&to.to_le_bytes());
        let peer = follower.shard;
        let told = self.mail.tell(peer, &message);
        if told {
            (follower.cursor, follower.anew, follower.complete) = (to, false, roster.complete);
        }
        self.scratch = message;
        if !told {
            return Told::Full;
        }
        self.wake(peer);
        if whole { Told::All } else { Told::More }
    }

    /// Begins to follow a room. `false`: no room in the lane.
    pub(crate) fn follow(
        &mut self,
        owner: ShardId,
        roster: RosterKind,
        tenant: &str,
        session: &str,
        follow: u32,
    ) -> bool {
        self.scratch.clear();
        let mut w = Writer(&mut self.scratch);
        w.u8(kind::FOLLOW);
        put_kind(&mut w, roster);
        w.text(tenant).text(session).u32(follow);
        self.tell_owner(owner)
    }

    pub(super) fn send_attend(
        &mut self,
        owner: ShardId,
        roster: RosterKind,
        (tenant, session, name): (&str, &str, &str),
        lease_ms: u64,
        value: &[u8],
    ) -> bool {
        self.scratch.clear();
        let mut w = Writer(&mut self.scratch);
        w.u8(kind::ATTEND);
        put_kind(&mut w, roster);
        w.text(tenant).text(session).text(name).u64(lease_ms).bytes(value);
        self.tell_owner(owner)
    }

    fn tell_owner(&mut self, owner: ShardId) -> bool {
        let told = self.mail.tell(owner, &self.scratch);
        if told {
            self.wake(owner);
        } else {
            self.presence.waits = true;
        }
        told
    }

    /// Renews leases, many in one message.
    pub(super) fn send_renewals(&mut self) -> usize {
        let mut done = 0;
        for owner in 0..self.presence.holds.renew.len() {
            while !self.presence.holds.renew[owner].is_empty() {
                let holds: Vec<HoldId> = self.presence.holds.renew[owner].iter().copied().take(HOLDS_MAX).collect();
                if !self.send_renewal(ShardId(owner as u16), &holds) {
                    break;
                }
                self.presence.holds.renew[owner].drain(..holds.len());
                for id in holds {
                    done += 1;
                    if let Some(hold) = self.presence.holds.get_mut(id) {
                        hold.renews = false;
                    }
                }
            }
        }
        done
    }

    fn send_renewal(&mut self, owner: ShardId, holds: &[HoldId]) -> bool {
        if owner == self.config.shard {
            for id in holds {
                let Some((key, client)) = self.presence.holds.get(*id).map(|hold| (hold.key, hold.client)) else {
                    continue;
                };
                if let Some(left) = self.renew(key, client) {
                    self.hold_gone(*id, left);
                }
            }
            return true;
        }
        self.scratch.clear();
        let mut w = Writer(&mut self.scratch);
        w.u8(kind::RENEW);
        for id in holds {
            let Some(hold) = self.presence.holds.get(*id) else { continue };
            put_kind(&mut w, hold.key.1);
            w.u128(hold.key.0.0).u128(hold.client.0).u32(id.0).u32(id.1);
        }
        self.tell_owner(owner)
    }

    /// Tells other shards which of their holds stand for nobody.
    pub(super) fn send_gone(&mut self) -> usize {
        let mut done = 0;
        for peer in 0..self.presence.gone.len() {
            while !self.presence.gone[peer].is_empty() {
                self.scratch.clear();
                let mut w = Writer(&mut self.scratch);
                w.u8(kind::GONE);
                let count = self.presence.gone[peer].len().min(HOLDS_MAX);
                for ((slot, generation), left) in self.presence.gone[peer].iter().take(count) {
                    w.u32(*slot).u32(*generation).u8(u8::from(*left));
                }
                if !self.tell_owner(ShardId(peer as u16)) {
                    break;
                }
                self.presence.gone[peer].drain(..count);
                done += count;
            }
        }
        done
    }

    /// Tells owners of rooms that nobody here watches any more.
    pub(super) fn send_unfollows(&mut self) -> usize {
        let mut done = 0;
        for _ in 0..self.presence.watches.unfollow.len() {
            let Some((owner, key, follow)) = self.presence.watches.unfollow.pop_front() else { break };
            self.scratch.clear();
            let mut w = Writer(&mut self.scratch);
            w.u8(kind::UNFOLLOW);
            put_kind(&mut w, key.1);
            w.u128(key.0.0).u32(follow);
            if self.tell_owner(owner) {
                done += 1;
            } else {
                self.presence.watches.unfollow.push_back((owner, key, follow));
            }
        }
        done
    }
}
