//! Clients with jobs: those who publish them and read what becomes of them, and those who work on them.
//!
//! ```text
//!   boss     declare ─► publish work.do ─► acknowledged: opened          listens to every session of its jobs from the start
//!   worker   pull ─► job ─► complete with an answer · fail · extend · progress · nothing at all
//! ```
//! Now and then a boss cancels: one job, by naming its event as the cause, or all of a session. It publishes under the condition that
//! the session goes on where it believes, and a worker ends a job so; what is refused for that must not be there.
//! What a worker has is its own matter; how each job ends is read from the sessions.

use super::declare::Side;
use super::*;

/// The queue of the world.
pub const QUEUE: &str = "q";

/// The entry of a session that names the job that was ended last together with it.
const LAST: &str = "last";

/// A session that is listened to.
#[derive(Debug, Default)]
struct Hear {
    state: State,
    next: u64,
    /// What its entry was when it was read last.
    last: Option<String>,
    reads_last: bool,
}

/// A job that it may work on.
#[derive(Clone, Debug)]
struct Task {
    job: String,
    lease: String,
}

/// An event on its way.
#[derive(Clone, Debug)]
struct Unsent {
    session: String,
    data: String,
    what: What,
    /// Only where the session goes on there.
    if_next: Option<u64>,
}

/// What an event is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
enum What {
    Job,
    /// A job of the other queue, if there is one: whether that is sure.
    Side(bool),
    /// It cancels this job, or all.
    Cancel(Option<String>),
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Labour {
    hears: BTreeMap<String, Hear>,
    pub(super) declared: bool,
    /// The queue that comes and goes.
    pub(super) side: Side,
    pub(super) dice: Option<Random>,
    /// A declaration is on its way; it works on jobs, and has asked for them.
    asked: bool,
    pulling: bool,
    tasks: Vec<Task>,
    /// Jobs that it was told of and that count against its credit, as far as it knows.
    taken: u64,
    /// Not acknowledged, by message id.
    unsent: BTreeMap<u64, Unsent>,
    next: u64,
}

/// A command that was sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Ask {
    Declare,
    Publish(u64),
    Pull,
    Hear(String),
    /// A declaration of the queue that comes and goes, its end, a list: whether that queue must be in it.
    DeclareSide,
    DropSide,
    List(Option<bool>),
    /// The entry of a session.
    Last(String),
    /// One that ends a job on a condition: session, data, and where the session must go on.
    EndAt(String, String, u64),
    /// One that ends a job: credit comes back whatever is answered.
    End,
    Other,
}

/// An event of a session with jobs?
pub(super) fn is_of_jobs(frame: &Frame<'_>) -> bool {
    frame.session.as_deref().is_some_and(|session| session.starts_with('j'))
}

impl Labour {
    pub fn new(role: &Role) -> Labour {
        let hears = role.bosses.iter().map(|session| (session.clone(), Hear::default())).collect();
        let works = role.declares.is_some() || role.works.is_some();
        Labour { hears, dice: works.then(|| Random::new(role.dice, "labour")), ..Labour::default() }
    }

    /// By chance, of its own dice.
    pub(super) fn chance(&mut self, per_mille: u32) -> bool {
        self.dice.as_mut().is_some_and(|dice| dice.chance(per_mille))
    }

    /// Whether the other queue is there is not sure from now on.
    pub(super) fn side_changes(&mut self) {
        for unsent in self.unsent.values_mut().filter(|unsent| matches!(unsent.what, What::Side(_))) {
            unsent.what = What::Side(false);
        }
    }

    /// Does it listen there?
    pub fn listens(&self, session: &str) -> bool {
        self.hears.contains_key(session)
    }

    /// The connection is gone.
    pub fn cut_off(&mut self) {
        self.hears.values_mut().for_each(|hear| hear.state = State::Idle);
        self.hears.values_mut().for_each(|hear| hear.reads_last = false);
        self.side.cut_off();
        (self.asked, self.pulling, self.taken) = (false, false, 0);
        // What it had it may still end: a lost socket is no failure.
    }

    /// Why it has not come to rest.
    pub fn unrest(&self, oracle: &Oracle) -> Option<String> {
        if let Some((id, _)) = self.unsent.first_key_value() {
            return Some(format!("job {id} is not published"));
        }
        for (session, hear) in &self.hears {
            if hear.state != State::Live || hear.next < oracle.jobs.tail(session) {
                return Some(format!("{session} is heard up to {} of {}", hear.next, oracle.jobs.tail(session)));
            }
            if let Some(job) = oracle.jobs.unended(session) {
                return Some(format!("{session}: job {job} has not ended"));
            }
            let last = oracle.jobs.last_entry(session).filter(|_| !oracle.retention);
            if last.is_some_and(|last| hear.last.as_deref() != Some(last)) {
                return Some(format!(
                    "{session}: its entry is {:?}, the job that was ended with it {last:?}",
                    hear.last
                ));
            }
        }
        None
    }
}

impl Client {
    /// Publishes jobs, works on them. `false`: it has nothing to do with any.
    pub(super) fn labours(&mut self, workload: &mut Random, net: &mut Random, oracle: &mut Oracle, calm: bool) -> bool {
        if self.role.bosses.is_empty() && self.role.works.is_none() {
            return false;
        }
        let idle: Vec<(String, u64)> = self
            .labour
            .hears
            .iter()
            .filter(|(_, hear)| hear.state == State::Idle)
            .map(|(session, hear)| (session.clone(), hear.next))
            .collect();
        for (session, next) in idle {
            let id = self.command(Pending::Labour(Ask::Hear(session.clone())));
            let from = format!("{{\"offset\":{next}}}");
            self.send(
                net,
                &format!("{{\"type\":\"subscribe\",\"id\":{id},\"session\":\"{session}\",\"from\":{from}}}"),
            );
            self.labour.hears.get_mut(&session).expect("listed").state = State::Asked;
        }
        if let Some(policy) = self.role.declares.clone()
            && !self.labour.declared
        {
            if !std::mem::replace(&mut self.labour.asked, true) {
                let id = self.command(Pending::Labour(Ask::Declare));
                self.send(net, &format!("{{\"type\":\"queue.declare\",\"id\":{id},\"queue\":\"{QUEUE}\",{policy}}}"));
            }
            return true;
        }
        self.change_side(net, calm);
        if calm && !oracle.retention {
            self.read_last(net, oracle);
        }
        if !self.role.bosses.is_empty() && !self.role.silent {
            self.publish_jobs(workload, net, oracle, calm);
        }
        if let Some(credit) = self.role.works {
            self.work_on(credit, workload, net, oracle, calm);
        }
        // Who audits follows other sessions as well.
        self.follows.is_empty()
    }

    fn publish_jobs(&mut self, workload: &mut Random, net: &mut Random, oracle: &mut Oracle, calm: bool) {
        // Again under their own ids: what is there already is answered as a duplicate.
        let waiting: BTreeSet<u64> = self
            .pending
            .values()
            .filter_map(|p| if let Pending::Labour(Ask::Publish(id)) = p { Some(*id) } else { None })
            .collect();
        if !calm && self.labour.unsent.len() < 8 && workload.chance(600) {
            let session = workload.pick(&self.role.bosses).clone();
            self.labour.next += 1;
            let data = format!("{{\"n\":{},\"c\":{}}}", self.labour.next, self.index);
            let what = if workload.chance(60) {
                let one = workload.chance(600).then(|| oracle.jobs.last_opened(&session)).flatten();
                oracle.jobs.cancels(&session, &data, one.as_ref().map(|(offset, _)| *offset));
                What::Cancel(one.map(|(_, event_id)| event_id))
            } else {
                oracle.jobs.sends(&session, &data);
                let side = self.role.side.is_some() && self.labour.chance(200);
                if side { What::Side(self.labour.side.is_there()) } else { What::Job }
            };
            let if_next = self.guess(&session, oracle);
            self.labour.unsent.insert(self.labour.next, Unsent { session, data, what, if_next });
        }
        let todo: Vec<u64> = self.labour.unsent.keys().copied().filter(|id| !waiting.contains(id)).take(4).collect();
        for number in todo {
            let Unsent { session, data, what, if_next } = self.labour.unsent[&number].clone();
            let (topic, cause) = match what {
                What::Job => ("work.do", None),
                What::Side(_) => ("side.do", None),
                What::Cancel(cause) => ("control.cancel", cause),
            };
            let cause = cause.map_or(String::new(), |event_id| format!("\"prev_event_id\":\"{event_id}\","));
            let id = self.command(Pending::Labour(Ask::Publish(number)));
            let event = format!("\"topic\":\"{topic}\",\"message_id\":\"w{number}\",{cause}\"data\":{data}");
            let at = format!("\"id\":{id},\"session\":\"{session}\"");
            let text = match if_next {
                None => format!("{{\"type\":\"publish\",{at},{event}}}"),
                Some(next) => format!("{{\"type\":\"commit\",{at},\"if_next\":{next},\"events\":[{{{event}}}]}}"),
            };
            self.send(net, &text);
        }
    }

    /// Where a session goes on, as far as it knows, or one further; most of the time it makes no condition.
    fn guess(&mut self, session: &str, oracle: &Oracle) -> Option<u64> {
        let ahead = u64::from(self.labour.chance(100));
        self.labour.chance(250).then(|| oracle.jobs.tail(session) + ahead)
    }

    /// Reads the entries of sessions that were put together with the ends of jobs.
    fn read_last(&mut self, net: &mut Random, oracle: &Oracle) {
        let differs = |session: &str, hear: &Hear| {
            oracle.jobs.last_entry(session).is_some_and(|last| hear.last.as_deref() != Some(last)) && !hear.reads_last
        };
        let stale = self.labour.hears.iter().find(|(session, hear)| differs(session, hear));
        let Some(session) = stale.map(|(session, _)| session.clone()) else { return };
        self.labour.hears.get_mut(&session).expect("found").reads_last = true;
        let id = self.command(Pending::Labour(Ask::Last(session.clone())));
        self.send(net, &format!("{{\"type\":\"entry.get\",\"id\":{id},\"session\":\"{session}\",\"key\":\"{LAST}\"}}"));
    }

    /// Such an entry has come.
    pub(super) fn last_read(&mut self, session: &str, value: Option<&str>, oracle: &Oracle) -> Checked {
        let hear = self.labour.hears.get_mut(session).ok_or("a session that is not listened to")?;
        hear.reads_last = false;
        hear.last = value.map(|value| value.trim_matches('"').to_owned());
        match &hear.last {
            Some(last) if !oracle.jobs.has_ended(session, last) => {
                Err(format!("{session}: its entry says that {last} has ended"))
            }
            _ => Ok(()),
        }
    }

    /// What stood in a session it listens to is gone.
    pub(super) fn labour_gap(
        &mut self,
        session: &str,
        from: u64,
        to: u64,
        reason: &str,
        oracle: &mut Oracle,
    ) -> Checked {
        let hear = self.labour.hears.get_mut(session).ok_or("a session that is not listened to")?;
        if reason != "retention" || !oracle.retention || hear.next != from || to <= from {
            return Err(format!("{session}: {} was next, a gap {from}..{to} for {reason}", hear.next));
        }
        hear.next = to;
        oracle.jobs.gone(session, to);
        Ok(())
    }

    fn work_on(&mut self, credit: u64, workload: &mut Random, net: &mut Random, oracle: &Oracle, calm: bool) {
        if !self.labour.pulling {
            if !std::mem::replace(&mut self.labour.asked, true) {
                let id = self.command(Pending::Labour(Ask::Pull));
                self.send(net, &format!("{{\"type\":\"pull\",\"id\":{id},\"queue\":\"{QUEUE}\",\"credit\":{credit}}}"));
            }
            return;
        }
        if self.labour.tasks.is_empty() || !workload.chance(500) {
            return;
        }
        let at = workload.index(self.labour.tasks.len());
        let Task { job, lease } = self.labour.tasks[at].clone();
        let kind = if calm { 0 } else { workload.below(100) };
        let name = format!("\"job\":\"{job}\",\"lease\":\"{lease}\"");
        let (ask, text) = match kind {
            0..=59 => {
                let session =
                    job.split_once('/').and_then(|(_, event)| event.rsplitn(3, ':').nth(2)).unwrap_or_default();
                if self.labour.chance(250) {
                    return self.end_at(&job, &lease, session, net, oracle);
                }
                let data = format!("{{\"job\":\"{job}\",\"by\":{}}}", self.index);
                // Each attempt has an id of its own: a repeat of another one's answer is not to be taken for it.
                let event =
                    format!("{{\"topic\":\"answer.done\",\"message_id\":\"{}.{lease}\",\"data\":{data}}}", self.index);
                let text = if workload.chance(500) {
                    format!("{{\"type\":\"complete\",\"id\":#,{name},\"events\":[{event}]}}")
                } else {
                    format!(
                        "{{\"type\":\"commit\",\"id\":#,\"session\":\"{session}\",\"events\":[{event}],\"complete\":{{{name}}}}}"
                    )
                };
                (Ask::End, text)
            }
            60..=69 => (Ask::End, format!("{{\"type\":\"job.fail\",\"id\":#,{name}}}")),
            70..=73 => (Ask::End, format!("{{\"type\":\"job.fail\",\"id\":#,{name},\"retry\":false}}")),
            74..=79 => (Ask::Other, format!("{{\"type\":\"job.extend\",\"id\":#,{name}}}")),
            80..=87 => (Ask::Other, format!("{{\"type\":\"job.progress\",\"id\":#,{name},\"data\":\"half\"}}")),
            // It forgets the job, and says nothing.
            88..=91 => {
                self.labour.tasks.swap_remove(at);
                return;
            }
            _ => return,
        };
        if ask == Ask::End {
            // Now and then it says it again, as one who heard no answer.
            if !workload.chance(150) {
                self.labour.tasks.swap_remove(at);
            }
            self.labour.taken = self.labour.taken.saturating_sub(1);
        }
        let id = self.command(Pending::Labour(ask));
        self.send(net, &text.replacen('#', &id.to_string(), 1));
    }

    /// Ends a job on the condition that nothing came in between, perhaps together with an entry. Each has an id and data of its own,
    /// so that of one that is refused nothing may be found.
    fn end_at(&mut self, job: &str, lease: &str, session: &str, net: &mut Random, oracle: &Oracle) {
        let (next, number) = (oracle.jobs.tail(session) + u64::from(self.labour.chance(100)), self.labour.next);
        self.labour.next += 1;
        let (mark, entries) = match self.labour.chance(500) {
            true => (",\"e\":1", format!("\"entries\":[{{\"key\":\"{LAST}\",\"data\":\"{job}\"}}],")),
            false => ("", String::new()),
        };
        let data = format!("{{\"job\":\"{job}\",\"by\":{},\"at\":{number}{mark}}}", self.index);
        let id = self.command(Pending::Labour(Ask::EndAt(session.to_owned(), data.clone(), next)));
        let event =
            format!("{{\"topic\":\"answer.done\",\"message_id\":\"{}.{lease}.{number}\",\"data\":{data}}}", self.index);
        let text = format!(
            "{{\"type\":\"commit\",\"id\":{id},\"session\":\"{session}\",\"if_next\":{next},\"events\":[{event}],{entries}\
             \"complete\":{{\"job\":\"{job}\",\"lease\":\"{lease}\"}}}}"
        );
        self.send(net, &text);
    }

    /// A job has come.
    pub(super) fn job_frame(&mut self, frame: &Frame<'_>, oracle: &mut Oracle) -> Checked {
        self.counts.add("frame", "job");
        let (job, lease) = (Frame::text(&frame.job, "job")?, Frame::text(&frame.lease, "lease")?);
        let (session, _, offset) = crate::oracle::parse_event_id(Frame::text(&frame.event_id, "event_id")?)?;
        let event_id = Frame::text(&frame.event_id, "event_id")?;
        if job != format!("{QUEUE}/{event_id}") || Frame::text(&frame.topic, "topic")? != "work.do" {
            return Err("a job that is none of the queue".to_owned());
        }
        let now_us = oracle.now_us;
        oracle.jobs.given(session, offset, frame.data.ok_or("no data")?.get(), lease, now_us)?;
        if !self.labour.pulling {
            return Err("a job for one who does not pull".to_owned());
        }
        self.labour.taken += 1;
        self.labour.tasks.retain(|task| task.job != job);
        self.labour.tasks.push(Task { job: job.to_owned(), lease: lease.to_owned() });
        Ok(())
    }

    /// A job is its own no longer.
    pub(super) fn job_lost(&mut self, frame: &Frame<'_>) -> Checked {
        self.counts.add("frame", "job.lost");
        let job = Frame::text(&frame.job, "job")?.to_owned();
        self.labour.taken = self.labour.taken.saturating_sub(1);
        // It tries to end it all the same, now and then, and must be refused.
        if self.event_frames.is_multiple_of(2) {
            self.labour.tasks.retain(|task| task.job != job);
        }
        Ok(())
    }

    /// An event of a session with jobs, to one who listens there.
    pub(super) fn labour_heard(&mut self, frame: &Frame<'_>, oracle: &mut Oracle) -> Option<Checked> {
        let session = frame.session.as_deref()?;
        let hear = self.labour.hears.get_mut(session)?;
        let (Some(event_id), Some(topic), Some(client), Some(data)) =
            (&frame.event_id, &frame.topic, &frame.client, frame.data)
        else {
            return Some(Err("an event with half of its fields".to_owned()));
        };
        let offset = match crate::oracle::parse_event_id(event_id) {
            Ok((_, _, offset)) => offset,
            Err(why) => return Some(Err(why)),
        };
        if hear.state != State::Live || hear.next != offset {
            return Some(Err(format!("{session}: {} was next, {:?}", hear.next, hear.state)));
        }
        hear.next += 1;
        Some(oracle.jobs.heard(event_id, topic, client, data.get(), frame.time.unwrap_or(0)))
    }

    /// An answer to one of these.
    pub(super) fn laboured(&mut self, ask: &Ask, frame: &Frame<'_>, oracle: &mut Oracle) -> Checked {
        let (answer, refusal) = (&*frame.r#type, frame.refusal.as_deref());
        let retry = frame.code.is_some_and(|code| code < 4200);
        match (ask, answer, refusal) {
            (Ask::Declare, "declared", _) => {
                (self.labour.declared, self.labour.asked) = (true, false);
                Ok(())
            }
            (Ask::Pull, "pulling", _) => {
                (self.labour.pulling, self.labour.asked) = (true, false);
                Ok(())
            }
            (Ask::Declare, ..) if retry => {
                self.labour.asked = false;
                Ok(())
            }
            // Nobody has declared it yet.
            (Ask::Pull, _, Some("unknown_queue")) => {
                self.labour.asked = false;
                Ok(())
            }
            (Ask::Pull, ..) if retry => {
                self.labour.asked = false;
                Ok(())
            }
            (Ask::Publish(number), "published" | "committed", _) => {
                let if_next = self.labour.unsent.get(number).and_then(|unsent| unsent.if_next);
                let offset = crate::oracle::parse_event_id(Frame::text(&frame.event_id, "event_id")?)?.2;
                if if_next.is_some_and(|next| next != offset) {
                    return Err(format!("if_next was {if_next:?}"));
                }
                let Some(Unsent { session, what, .. }) = self.labour.unsent.remove(number) else { return Ok(()) };
                if frame.durability.as_deref() != Some("disk") || !matches!(what, What::Job | What::Side(true)) {
                    return Ok(());
                }
                oracle.jobs.opened(Frame::text(&frame.event_id, "event_id")?, &session)
            }
            (Ask::Publish(number), _, Some("wrong_next")) => {
                let Some(Unsent { session, data, if_next, .. }) = self.labour.unsent.remove(number) else {
                    return Ok(());
                };
                // Behind where it wanted to be nothing of it can come later, however often it was sent.
                if frame.expected > if_next { oracle.jobs.refused(&session, &data) } else { Ok(()) }
            }
            (Ask::DeclareSide | Ask::DropSide | Ask::List(_), ..) => self.side_answered(ask, frame),
            (Ask::Last(session), _, Some("unknown_entry" | "unknown_session")) => self.last_read(session, None, oracle),
            (Ask::Last(session), ..) if retry => {
                self.labour.hears.get_mut(session).ok_or("a session that is not listened to")?.reads_last = false;
                Ok(())
            }
            (Ask::EndAt(session, _, next), "committed", _) => {
                let (named, _, offset) = crate::oracle::parse_event_id(Frame::text(&frame.event_id, "event_id")?)?;
                if named == session && offset == *next { Ok(()) } else { Err(format!("if_next was {next}")) }
            }
            (Ask::EndAt(session, data, _), _, Some("wrong_next" | "unknown_job" | "stale_lease" | "causal_gap")) => {
                oracle.jobs.refused(session, data)
            }
            (Ask::EndAt(session, data, _), ..) if retry => oracle.jobs.refused(session, data),
            (Ask::Publish(_), ..) if retry => Ok(()),
            (Ask::Hear(session), "subscribed", _) => {
                let hear = self.labour.hears.get_mut(session).ok_or("a session that is not listened to")?;
                hear.state = State::Live;
                let next = frame.next.ok_or("no offset")?;
                if next != hear.next && !(oracle.retention && next > hear.next) {
                    return Err(format!("{} was next", hear.next));
                }
                if next > hear.next {
                    hear.next = next;
                    oracle.jobs.gone(session, next);
                }
                Ok(())
            }
            // Nothing is there yet.
            (Ask::Hear(session), ..) if retry || matches!(refusal, Some("offset_out_of_range" | "unknown_session")) => {
                if let Some(hear) = self.labour.hears.get_mut(session) {
                    hear.state = State::Idle;
                }
                Ok(())
            }
            (Ask::End, "committed" | "failed" | "dead", _) | (Ask::Other, "extended" | "progressed", _) => Ok(()),
            (
                Ask::End | Ask::Other,
                _,
                Some("unknown_job" | "stale_lease" | "past_deadline" | "progress_too_large"),
            ) => Ok(()),
            (Ask::End | Ask::Other, ..) if retry => Ok(()),
            _ => Err(format!("{ask:?} answered by {answer} {refusal:?}")),
        }
    }
}
