//! Clients with jobs: those who publish them and read what becomes of them, and those who work on them.
//!
//! ```text
//!   boss     declare ─► publish work.do ─► acknowledged: opened          listens to every session of its jobs from the start
//!   worker   pull ─► job ─► complete with an answer · fail · extend · progress · nothing at all
//! ```
//! Now and then a boss cancels: one job, by naming its event as the cause, or all of a session.
//! What a worker has is its own matter; how each job ends is read from the sessions.

use super::*;

/// The queue of the world.
const QUEUE: &str = "q";

/// A session that is listened to.
#[derive(Debug, Default)]
struct Hear {
    state: State,
    next: u64,
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
    /// It cancels this job, or all.
    cancels: Option<Option<String>>,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Labour {
    hears: BTreeMap<String, Hear>,
    declared: bool,
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
        Labour { hears, ..Labour::default() }
    }

    /// Does it listen there?
    pub fn listens(&self, session: &str) -> bool {
        self.hears.contains_key(session)
    }

    /// The connection is gone.
    pub fn cut_off(&mut self) {
        self.hears.values_mut().for_each(|hear| hear.state = State::Idle);
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
        if !self.role.bosses.is_empty() && !self.role.silent {
            self.publish_jobs(workload, net, oracle, calm);
        }
        if let Some(credit) = self.role.works {
            self.work_on(credit, workload, net, calm);
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
            let cancels = workload.chance(60).then(|| {
                let one = workload.chance(600).then(|| oracle.jobs.last_opened(&session)).flatten();
                oracle.jobs.cancels(&session, &data, one.as_ref().map(|(offset, _)| *offset));
                one.map(|(_, event_id)| event_id)
            });
            if cancels.is_none() {
                oracle.jobs.sends(&session, &data);
            }
            self.labour.unsent.insert(self.labour.next, Unsent { session, data, cancels });
        }
        let todo: Vec<u64> = self.labour.unsent.keys().copied().filter(|id| !waiting.contains(id)).take(4).collect();
        for number in todo {
            let Unsent { session, data, cancels } = self.labour.unsent[&number].clone();
            let topic = if cancels.is_some() { "control.cancel" } else { "work.do" };
            let cause =
                cancels.flatten().map_or(String::new(), |event_id| format!("\"prev_event_id\":\"{event_id}\","));
            let id = self.command(Pending::Labour(Ask::Publish(number)));
            let text = format!(
                "{{\"type\":\"publish\",\"id\":{id},\"session\":\"{session}\",\"topic\":\"{topic}\",\"message_id\":\"w{number}\",\
                 {cause}\"data\":{data}}}"
            );
            self.send(net, &text);
        }
    }

    fn work_on(&mut self, credit: u64, workload: &mut Random, net: &mut Random, calm: bool) {
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

    /// A job has come.
    pub(super) fn job_frame(&mut self, frame: &Frame<'_>, oracle: &mut Oracle) -> Checked {
        self.counts.add("frame", "job");
        let (job, lease) = (Frame::text(&frame.job, "job")?, Frame::text(&frame.lease, "lease")?);
        let (session, _, offset) = crate::oracle::parse_event_id(Frame::text(&frame.event_id, "event_id")?)?;
        let event_id = Frame::text(&frame.event_id, "event_id")?;
        if job != format!("{QUEUE}/{event_id}") || Frame::text(&frame.topic, "topic")? != "work.do" {
            return Err("a job that is none of the queue".to_owned());
        }
        oracle.jobs.given(session, offset, frame.data.ok_or("no data")?.get())?;
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
            (Ask::Publish(number), "published", _) => {
                let Some(Unsent { session, cancels, .. }) = self.labour.unsent.remove(number) else { return Ok(()) };
                if cancels.is_some() || frame.durability.as_deref() != Some("disk") {
                    return Ok(());
                }
                oracle.jobs.opened(Frame::text(&frame.event_id, "event_id")?, &session)
            }
            (Ask::Publish(_), ..) if retry => Ok(()),
            (Ask::Hear(session), "subscribed", _) => {
                let hear = self.labour.hears.get_mut(session).ok_or("a session that is not listened to")?;
                hear.state = State::Live;
                if frame.next != Some(hear.next) {
                    return Err(format!("{} was next", hear.next));
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
