//! Clients with a group: those who publish for it, and its members.
//!
//! ```text
//!   caller   declare ─► publish flow.do, flow.other ─► acknowledged: due
//!   member   join ─► run ─► acknowledge whole, in part, in a commit · sleep · leave · nothing at all
//! ```

use super::*;

/// The group of the world.
const GROUP: &str = "crew";

/// A run that it may acknowledge.
#[derive(Clone, Debug)]
struct Run {
    session: String,
    lease: String,
    /// Where it may be acknowledged up to.
    ends: Vec<u64>,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Crew {
    asked: bool,
    declared: bool,
    joined: bool,
    runs: Vec<Run>,
    /// Not acknowledged, by message id: session, data, wanted.
    unsent: BTreeMap<u64, (String, String, bool)>,
    next: u64,
}

/// A command that was sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Ask {
    Declare,
    Publish(u64),
    Join,
    Leave,
    /// Session, lease, offset.
    Ack(String, String, u64),
    List,
}

impl Crew {
    /// The connection is gone, and with it every lease.
    pub fn cut_off(&mut self, bold: bool) {
        (self.asked, self.joined) = (false, false);
        // One that is bold acknowledges all the same, and must be refused.
        if !bold {
            self.runs.clear();
        }
    }

    /// Why it has not come to rest.
    pub fn unrest(&self, role: &Role, oracle: &Oracle) -> Option<String> {
        if let Some((id, _)) = self.unsent.first_key_value() {
            return Some(format!("event {id} of a group is not published"));
        }
        let left = role.calls.iter().find_map(|session| Some((session, oracle.groups.undone(session)?)));
        left.map(|(session, offset)| format!("{session}:{offset} was acknowledged by no member"))
    }
}

impl Client {
    /// Publishes for the group, is a member. `false`: it has nothing to do with any.
    pub(super) fn crews(&mut self, workload: &mut Random, net: &mut Random, oracle: &mut Oracle, calm: bool) -> bool {
        if self.role.calls.is_empty() && self.role.joins.is_none() {
            return false;
        }
        if let Some(fields) = self.role.declares_group.clone()
            && !self.crew.declared
        {
            if !std::mem::replace(&mut self.crew.asked, true) {
                let id = self.command(Pending::Crew(Ask::Declare));
                self.send(net, &format!("{{\"type\":\"group.declare\",\"id\":{id},\"group\":\"{GROUP}\",{fields}}}"));
            }
            return true;
        }
        if !self.role.calls.is_empty() {
            self.call_the_group(workload, net, oracle, calm);
        }
        if let Some(credit) = self.role.joins {
            self.be_a_member(credit, workload, net, oracle, calm);
        }
        true
    }

    fn call_the_group(&mut self, workload: &mut Random, net: &mut Random, oracle: &mut Oracle, calm: bool) {
        let waiting: BTreeSet<u64> = self
            .pending
            .values()
            .filter_map(|p| if let Pending::Crew(Ask::Publish(id)) = p { Some(*id) } else { None })
            .collect();
        if !calm && self.crew.unsent.len() < 6 && workload.chance(500) {
            let session = workload.pick(&self.role.calls).clone();
            self.crew.next += 1;
            let data = format!("{{\"g\":{},\"c\":{}}}", self.crew.next, self.index);
            let wanted = workload.chance(700);
            oracle.groups.sends(&session, &data, wanted);
            self.crew.unsent.insert(self.crew.next, (session, data, wanted));
        }
        let todo: Vec<u64> = self.crew.unsent.keys().copied().filter(|id| !waiting.contains(id)).take(4).collect();
        for number in todo {
            let (session, data, wanted) = self.crew.unsent[&number].clone();
            let topic = if wanted { "flow.do" } else { "flow-other" };
            let id = self.command(Pending::Crew(Ask::Publish(number)));
            let text = format!(
                "{{\"type\":\"publish\",\"id\":{id},\"session\":\"{session}\",\"topic\":\"{topic}\",\"message_id\":\"g{number}\",\
                 \"data\":{data}}}"
            );
            self.send(net, &text);
        }
    }

    fn be_a_member(&mut self, credit: u64, workload: &mut Random, net: &mut Random, oracle: &mut Oracle, calm: bool) {
        if !self.crew.joined {
            if !std::mem::replace(&mut self.crew.asked, true) {
                let id = self.command(Pending::Crew(Ask::Join));
                let text = format!("{{\"type\":\"group.join\",\"id\":{id},\"group\":\"{GROUP}\",\"credit\":{credit}}}");
                self.send(net, &text);
            }
            return;
        }
        let what = if calm { 0 } else { workload.below(100) };
        if what >= 97 && !self.crew.asked {
            let kind = if what == 99 { "list" } else { "leave" };
            let id = self.command(Pending::Crew(if what == 99 { Ask::List } else { Ask::Leave }));
            self.crew.asked = what != 99;
            return self.send(net, &format!("{{\"type\":\"group.{kind}\",\"id\":{id},\"group\":\"{GROUP}\"}}"));
        }
        if self.crew.runs.is_empty() || !workload.chance(500) {
            return;
        }
        let at = workload.index(self.crew.runs.len());
        let run = &mut self.crew.runs[at];
        let whole = what < 60 || run.ends.len() == 1;
        let to = if whole { run.ends[run.ends.len() - 1] } else { run.ends[0] };
        let (session, lease) = (run.session.clone(), run.lease.clone());
        match what {
            // It forgets the run, and says nothing.
            90..=92 => {
                self.crew.runs.swap_remove(at);
                return;
            }
            93..=96 => return,
            _ => {}
        }
        if whole {
            // Now and then it says it again, as one who heard no answer.
            if calm || !workload.chance(100) {
                self.crew.runs.swap_remove(at);
            }
        } else {
            run.ends.remove(0);
        }
        oracle.groups.says(&session, to);
        let id = self.command(Pending::Crew(Ask::Ack(session.clone(), lease.clone(), to)));
        let marker = format!("\"group\":\"{GROUP}\",\"lease\":\"{lease}\",\"offset\":{to}");
        let text = if workload.chance(300) {
            format!("{{\"type\":\"commit\",\"id\":{id},\"session\":\"{session}\",\"markers\":[{{{marker}}}]}}")
        } else {
            format!("{{\"type\":\"group.ack\",\"id\":{id},\"session\":\"{session}\",{marker}}}")
        };
        self.send(net, &text);
    }

    /// A run has come.
    pub(super) fn run_frame(&mut self, frame: &Frame<'_>, oracle: &mut Oracle) -> Checked {
        self.counts.add("frame", "group.run");
        let (session, lease) = (Frame::text(&frame.session, "session")?, Frame::text(&frame.lease, "lease")?);
        let (from, next) = (frame.from.ok_or("no from")?, frame.next.ok_or("no next")?);
        let mut events = Vec::new();
        for event in &frame.events {
            let (named, _, offset) = crate::oracle::parse_event_id(Frame::text(&event.event_id, "event_id")?)?;
            if named != session || Frame::text(&event.topic, "topic")? != "flow.do" {
                return Err("an event that is none of the group's".to_owned());
            }
            events.push((offset, event.data.ok_or("no data")?.get().to_owned()));
        }
        oracle.groups.dealt(session, lease, from, next, &events)?;
        let mut ends: Vec<u64> = events.iter().map(|(offset, _)| offset + 1).collect();
        ends.pop();
        ends.push(next);
        let (session, lease) = (session.to_owned(), lease.to_owned());
        self.crew.runs.retain(|run| run.session != session);
        self.crew.runs.push(Run { session, lease, ends });
        Ok(())
    }

    /// A run is its own no longer.
    pub(super) fn run_lost(&mut self, frame: &Frame<'_>) -> Checked {
        self.counts.add("frame", "group.lost");
        let lease = Frame::text(&frame.lease, "lease")?.to_owned();
        // It was silent, and joins again. Now and then it acknowledges all the same, and must be refused.
        self.crew.joined = false;
        if self.event_frames.is_multiple_of(2) {
            self.crew.runs.retain(|run| run.lease != lease);
        }
        Ok(())
    }

    /// An answer to one of these.
    pub(super) fn crewed(&mut self, ask: &Ask, frame: &Frame<'_>, oracle: &mut Oracle) -> Checked {
        let (answer, refusal) = (&*frame.r#type, frame.refusal.as_deref());
        let retry = frame.code.is_some_and(|code| code < 4200);
        match (ask, answer, refusal) {
            (Ask::Declare, "group.declared", _) => {
                (self.crew.declared, self.crew.asked, oracle.groups.declared) = (true, false, true);
                Ok(())
            }
            (Ask::Join, "group.joined", _) => {
                (self.crew.joined, self.crew.asked) = (true, false);
                Ok(())
            }
            (Ask::Leave, "group.left", _) => {
                (self.crew.joined, self.crew.asked) = (false, false);
                self.crew.runs.clear();
                Ok(())
            }
            (Ask::Join, _, Some("unknown_group")) | (Ask::List, _, Some("unknown_group")) => {
                self.crew.asked = false;
                Ok(())
            }
            (Ask::List, "markers", _) => Ok(()),
            (Ask::List, ..) if retry => Ok(()),
            (Ask::Declare | Ask::Join | Ask::Leave, ..) if retry => {
                self.crew.asked = false;
                Ok(())
            }
            (Ask::Publish(number), "published", _) => {
                let Some((session, data, _)) = self.crew.unsent.remove(number) else { return Ok(()) };
                if frame.durability.as_deref() != Some("disk") {
                    return Ok(());
                }
                oracle.groups.published(&session, Frame::text(&frame.event_id, "event_id")?, &data)
            }
            (Ask::Publish(_), ..) if retry => Ok(()),
            (Ask::Ack(session, lease, to), "group.acked" | "committed", _) => {
                if answer == "group.acked" && frame.offset != Some(*to) {
                    return Err(format!("{to} was acknowledged, answered is {:?}", frame.offset));
                }
                oracle.groups.acknowledged(session, lease, *to)
            }
            // It says it again as soon as it is dealt again.
            (Ask::Ack(session, _, to), ..)
                if retry || matches!(refusal, Some("stale_lease" | "marker_backwards" | "unknown_session")) =>
            {
                oracle.groups.not_taken(session, *to);
                Ok(())
            }
            _ => Err(format!("{ask:?} answered by {answer} {refusal:?}")),
        }
    }
}
