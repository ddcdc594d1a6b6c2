//! A client's receipts: how far it has read, and what it believes of others.
//!
//! ```text
//!   reads   Unknown ─ read ─► Asked ─ read ─► Told        a lost connection: Unknown; it says again what it said last, or more
//!   views   as those of presence
//! ```
//! A receipt never claims more than the client did: `read` is something it said, `delivered` no further than what it
//! acknowledged, or where it went on by its own word. At rest both are exact.

use super::presence::{All, Member, RosterText, View};
use super::*;

/// How far it has read a session.
#[derive(Debug, Default)]
struct Reading {
    /// The furthest it ever said.
    said: u64,
    told: bool,
    asked: bool,
    /// There was no room for its receipt.
    shut_out: bool,
}

/// All receipts that a client has to do with.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    reads: BTreeMap<String, Reading>,
    views: BTreeMap<String, (View, Option<All>)>,
}

impl Receipts {
    pub(super) fn new(role: &Role) -> Self {
        Self {
            reads: role.reads.iter().map(|session| (session.clone(), Reading::default())).collect(),
            views: role.minds.iter().map(|session| (session.clone(), Default::default())).collect(),
        }
    }

    /// The connection is gone.
    pub(super) fn cut_off(&mut self) {
        for reading in self.reads.values_mut() {
            (reading.told, reading.asked) = (false, false);
        }
        self.views.values_mut().for_each(|view| *view = Default::default());
    }

    /// Does it stand for something on this connection?
    pub(super) fn has_some(&self) -> bool {
        self.reads.values().any(|reading| reading.told)
    }

    /// Has it nothing to do with any?
    pub(super) fn is_empty(&self) -> bool {
        self.reads.is_empty() && self.views.is_empty()
    }
}

impl Client {
    /// Reads, watches, looks away: one of them.
    pub(super) fn receipts_act(&mut self, workload: &mut Random, net: &mut Random, oracle: &mut Oracle) {
        if !self.receipts.views.is_empty() && (self.receipts.reads.is_empty() || workload.chance(300)) {
            let sessions: Vec<&String> = self.receipts.views.keys().collect();
            let session = (*workload.pick(&sessions)).clone();
            let (view, _) = &self.receipts.views[&session];
            let ask = if view.live && view.asked == 0 && workload.chance(300) { "unwatch" } else { "watch" };
            return self.watch_receipts(&session, ask, net);
        }
        let sessions: Vec<&String> = self.receipts.reads.keys().collect();
        if let Some(session) = (!sessions.is_empty()).then(|| (*workload.pick(&sessions)).clone()) {
            self.read(&session, net, oracle);
        }
    }

    /// Watches what it should, and has read all that there is.
    pub(super) fn receipts_settle(&mut self, net: &mut Random, oracle: &mut Oracle) {
        let idle =
            |(session, (view, _)): (&String, &(View, _))| (!view.live && view.asked == 0).then(|| session.clone());
        let idle: Vec<String> = self.receipts.views.iter().filter_map(idle).collect();
        for session in idle {
            self.watch_receipts(&session, "watch", net);
        }
        if self.presence_pause > 0 {
            return;
        }
        let sessions: Vec<String> = self.receipts.reads.keys().cloned().collect();
        for session in sessions {
            let reading = &self.receipts.reads[&session];
            if !reading.shut_out && (!reading.told || self.reading_next(&session) > Some(reading.said)) {
                self.read(&session, net, oracle);
            }
        }
    }

    fn reading_next(&self, session: &str) -> Option<u64> {
        self.follows.get(session)?.next
    }

    fn read(&mut self, session: &str, net: &mut Random, oracle: &mut Oracle) {
        let (next, name) = (self.reading_next(session), self.name());
        let Some(reading) = self.receipts.reads.get_mut(session).filter(|reading| !reading.asked) else { return };
        let Some(next) = next else { return };
        reading.said = reading.said.max(next);
        (reading.asked, reading.told, reading.shut_out) = (true, false, false);
        let offset = reading.said;
        oracle.board.reads(session, &name, offset);
        let id = self.command(Pending::Read(session.to_owned(), offset));
        self.send(net, &format!("{{\"type\":\"read\",\"id\":{id},\"session\":\"{session}\",\"offset\":{offset}}}"));
    }

    fn watch_receipts(&mut self, session: &str, ask: &'static str, net: &mut Random) {
        if let Some((view, _)) = self.receipts.views.get_mut(session) {
            view.asked += 1;
        }
        let id = self.command(Pending::Minds(session.to_owned(), ask == "watch"));
        self.send(net, &format!("{{\"type\":\"receipts.{ask}\",\"id\":{id},\"session\":\"{session}\"}}"));
    }

    /// The answer to a `read`.
    pub(super) fn read_answered(&mut self, session: &str, offset: u64, stands: Option<u64>) -> Checked {
        let reading = self.receipts.reads.get_mut(session).ok_or("a session that it never read")?;
        (reading.asked, reading.told) = (false, true);
        if stands == Some(offset) { Ok(()) } else { Err(format!("read {offset}")) }
    }

    /// A `read` was refused.
    pub(super) fn read_refused(&mut self, session: &str, refusal: &str, retry: bool) -> Checked {
        let reading = self.receipts.reads.get_mut(session).ok_or("a session that it never read")?;
        reading.asked = false;
        match refusal {
            // Others may be in it for good.
            "room_full" => reading.shut_out = true,
            _ if retry => self.presence_pause = 100,
            _ => return Err(format!("a good `read` was refused for ever: {refusal}")),
        }
        Ok(())
    }

    /// The answer to a `receipts.watch` or `receipts.unwatch`.
    pub(super) fn minds_answered(&mut self, session: &str, watches: bool, answer: &str, retry: bool) -> Checked {
        let (view, all) = self.receipts.views.get_mut(session).ok_or("a session that it does not watch")?;
        view.asked = view.asked.saturating_sub(1);
        match (watches, answer) {
            (true, "watching") => view.begin(),
            (false, "unwatched") => view.end(),
            (_, "refused") if retry => return Ok(()),
            _ => return Err(format!("{watches} answered by {answer}")),
        }
        *all = None;
        Ok(())
    }

    /// A frame about receipts.
    pub(super) fn receipts_frame(&mut self, text: &str, oracle: &Oracle) -> Checked {
        let frame: RosterText<'_> = serde_json::from_str(text).map_err(|e| format!("no frame of ours: {e}"))?;
        self.counts.add("frame", "receipts");
        let (view, all) = self.receipts.views.get_mut(frame.session).ok_or("a session that is not watched")?;
        if !view.live {
            return if view.asked > 0 { Ok(()) } else { Err("a session that is watched no longer".to_owned()) };
        }
        let exact = !oracle.retention && !oracle.damage;
        let said = |member: &Member<'_>, _: &str| {
            let (Some(delivered), Some(read)) = (member.delivered, member.read) else {
                return Err("a receipt without offsets".to_owned());
            };
            let name = member.client;
            if !oracle.board.was_read(frame.session, name, read) {
                return Err(format!("{name} never said that it has read {read}"));
            }
            match oracle.board.confirmed(frame.session, name) {
                _ if delivered < read => Err(format!("{name} has read {read} and got {delivered}")),
                Some(most) if exact && delivered > most.max(read) => {
                    Err(format!("{name} is said to have {delivered}, and confirmed {most}"))
                }
                _ => Ok(()),
            }
        };
        view.hear(&frame, said, |_| Ok(()))?;
        *all = frame.all.or(*all);
        Ok(())
    }

    /// Why its receipts have not come to rest; what is true of them is written on the board by the one whose they are.
    pub(super) fn receipts_unrest(&self, oracle: &Oracle) -> Option<String> {
        for (session, reading) in &self.receipts.reads {
            if !reading.shut_out && (!reading.told || self.reading_next(session) > Some(reading.said)) {
                return Some(format!("it does not know whether it has read {session}: {reading:?}"));
            }
        }
        for (session, (view, all)) in &self.receipts.views {
            if !view.is_whole() {
                return Some(format!("its view of receipts of {session} is not whole"));
            }
            let lowest = |at: usize| {
                let number = |value: &String| value.split(' ').nth(at).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
                view.believes.values().map(number).min().unwrap_or(0)
            };
            let truth = All { count: view.believes.len() as u64, delivered: lowest(0), read: lowest(1) };
            if *all != Some(truth) {
                return Some(format!("of receipts of {session} it believes {:?}, and of all {all:?}", view.believes));
            }
            // Where not everybody finds place nobody knows who did.
            if oracle.board.is_tight {
                continue;
            }
            for (client, read) in oracle.board.readers(session) {
                let believed = view.believes.get(client).and_then(|value| value.split_once(' '));
                if believed.is_none_or(|(_, believed)| believed != read.to_string()) {
                    return Some(format!("{client} has read {read} of {session}, it believes {believed:?}"));
                }
            }
        }
        None
    }

    /// How far its subscription to a session has brought it, where all of it is acknowledged: what its receipt has to say.
    pub fn receipts_due(&self) -> impl Iterator<Item = (&String, u64)> {
        let due = self.life.is_whole() && !self.is_mixed();
        self.receipts.reads.iter().filter(move |(_, reading)| due && reading.told).filter_map(|(session, _)| {
            let follow = self.follows.get(session).filter(|follow| follow.state == State::Live)?;
            Some((session, follow.next.filter(|_| follow.gaps.is_empty() && follow.passed.is_empty())?))
        })
    }

    /// What it believes of receipts, as (session, client, delivered).
    pub fn believes_delivered(&self) -> impl Iterator<Item = (&String, &String, u64)> {
        self.receipts.views.iter().flat_map(|(session, (view, _))| {
            let delivered = |value: &String| value.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            view.believes.iter().map(move |(client, value)| (session, client, delivered(value)))
        })
    }
}
