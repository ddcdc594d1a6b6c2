//! What is known of jobs: which were published, what every session of theirs holds, how each ended.
//!
//! ```text
//!   job ─► event at its offset ─► exactly one of: answer of a worker (with its end in one record) · fallback · dead letter
//!   order session: a job that a worker ended, ended after all that were published before it
//!   never before its deadline is a job answered by the server for its deadline
//!   an event that cancels it stands before its end ─► it was not waited for: no end for the deadline behind that
//!   an end as cancelled ─► such an event stands before it
//!   order session: a job that was not cancelled ends after all that were published before it, however each ends
//!   a job is begun no more often than its attempts, and once more for each death that may have forgotten one
//!   what was refused is not there; an entry that was put with the end of a job is there with it
//! ```
//! Where segments are removed some ends are read by nobody: of what a gap may hide nothing is asked.

use super::oracle::{Checked, parse_event_id};
use std::collections::{BTreeMap, BTreeSet};

/// How a job ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// A worker.
    Done,
    /// The server, at its deadline.
    Fallback,
    /// It was given up.
    Dead,
}

/// All sessions with jobs.
#[derive(Default)]
pub struct Jobs {
    /// What stands at each offset: topic and data.
    facts: BTreeMap<(String, u64), (String, String)>,
    sent: BTreeSet<(String, String)>,
    /// Told to be refused: it must not be there.
    refused: BTreeSet<(String, String)>,
    /// Of each session the job that was ended last together with an entry, and where.
    entries: BTreeMap<String, (u64, String)>,
    /// Cancelled ones among the ends.
    unwanted: BTreeSet<(String, u64)>,
    /// Events that cancel, by session and data: the job that each names, or all.
    cancelling: BTreeMap<(String, String), Option<u64>>,
    /// Those that were heard: where they stand.
    cancelled: BTreeMap<(String, u64), Option<u64>>,
    epochs: BTreeMap<String, String>,
    /// Acknowledged by the server.
    opened: BTreeSet<(String, u64)>,
    /// Job to its end and the offset of that.
    ends: BTreeMap<(String, u64), (End, u64)>,
    times: BTreeMap<(String, u64), u64>,
    /// Jobs of a session are worked on one after the other.
    pub ordered: bool,
    /// The wall clock does not jump: ends are held against deadlines.
    pub timely: bool,
    pub deadline_ms: u64,
    /// Nobody begins a job more often; 0: nothing is said.
    pub attempts: u64,
    /// Leases that workers were given, and when.
    leases: BTreeMap<(String, u64), BTreeMap<String, u64>>,
    /// When processes died, and the sessions whose shards had something then that was not on disk.
    deaths: Vec<(u64, BTreeSet<String>)>,
}

impl Jobs {
    /// A process has died.
    pub fn died(&mut self, now_us: u64, unsettled: BTreeSet<String>) {
        self.deaths.push((now_us, unsettled));
    }

    /// A job was begun under this lease: no more often than its queue allows, and once more for each death that may have forgotten one.
    fn begun(&mut self, job: &(String, u64), lease: &str, now_us: u64) -> Checked {
        let leases = self.leases.entry(job.clone()).or_default();
        leases.entry(lease.to_owned()).or_insert(now_us);
        let first_us = leases.values().min().copied().unwrap_or(now_us);
        let forgot = |(at_us, unsettled): &&(u64, BTreeSet<String>)| *at_us >= first_us && unsettled.contains(&job.0);
        let forgotten = self.deaths.iter().filter(forgot).count() as u64;
        if self.attempts > 0 && leases.len() as u64 > self.attempts + forgotten {
            return Err(format!("{job:?} was begun {} times, {} may be: {leases:?}", leases.len(), self.attempts));
        }
        Ok(())
    }

    /// A job is about to be published.
    pub fn sends(&mut self, session: &str, data: &str) {
        self.sent.insert((session.to_owned(), data.to_owned()));
    }

    /// A cancel is about to be published.
    pub fn cancels(&mut self, session: &str, data: &str, one: Option<u64>) {
        self.cancelling.insert((session.to_owned(), data.to_owned()), one);
    }

    /// What was to be published was refused, and cannot come later.
    pub fn refused(&mut self, session: &str, data: &str) -> Checked {
        self.refused.insert((session.to_owned(), data.to_owned()));
        let here = (session.to_owned(), 0)..=(session.to_owned(), u64::MAX);
        match self.facts.range(here).find(|(_, (_, told))| told == data) {
            Some(((_, offset), _)) => Err(format!("{session}:{offset} is there, and was refused")),
            None => Ok(()),
        }
    }

    /// What the entry of a session must say.
    pub fn last_entry(&self, session: &str) -> Option<&str> {
        self.entries.get(session).map(|(_, job)| &**job)
    }

    /// Is an end of this job known, or could there be one that nobody has read yet?
    pub fn has_ended(&self, session: &str, name: &str) -> bool {
        let of = name.split_once('/').and_then(|(_, of)| parse_event_id(of).ok());
        of.is_some_and(|(named, _, job)| named == session && job < self.tail(session))
    }

    /// Everything before this offset is gone: how jobs before it end may never be known.
    pub fn gone(&mut self, session: &str, to: u64) {
        let jobs: Vec<(String, u64)> =
            self.opened.range((session.to_owned(), 0)..(session.to_owned(), to)).cloned().collect();
        for job in jobs {
            if !self.ends.contains_key(&job) {
                self.opened.remove(&job);
            }
        }
    }

    /// The job of a session that was acknowledged last, and its event.
    pub fn last_opened(&self, session: &str) -> Option<(u64, String)> {
        let (_, offset) = self.opened.range((session.to_owned(), 0)..=(session.to_owned(), u64::MAX)).last()?;
        Some((*offset, format!("{session}:{}:{offset}", self.epochs.get(session)?)))
    }

    /// It is on disk.
    pub fn opened(&mut self, event_id: &str, session: &str) -> Checked {
        let (named, _, offset) = parse_event_id(event_id)?;
        if named != session {
            return Err(format!("{event_id} acknowledges a job of {session}"));
        }
        self.opened.insert((session.to_owned(), offset));
        if let Some((_, epoch)) = event_id.rsplit_once(':').and_then(|(rest, _)| rest.rsplit_once(':')) {
            self.epochs.insert(session.to_owned(), epoch.to_owned());
        }
        Ok(())
    }

    /// A worker was given it.
    pub fn given(&mut self, session: &str, offset: u64, data: &str, lease: &str, now_us: u64) -> Checked {
        let job = (session.to_owned(), offset);
        if !self.sent.contains(&(session.to_owned(), data.to_owned())) {
            return Err(format!("{session}:{offset}: nobody published {data}"));
        }
        if let Some((_, known)) = self.facts.get(&job)
            && known != data
        {
            return Err(format!("{session}:{offset} holds {known}, given was {data}"));
        }
        self.begun(&job, lease, now_us)
    }

    /// An event of a session with jobs.
    pub fn heard(&mut self, event_id: &str, topic: &str, client: &str, data: &str, time_ms: u64) -> Checked {
        let (session, _, offset) = parse_event_id(event_id)?;
        let here = (session.to_owned(), offset);
        let told = (topic.to_owned(), data.to_owned());
        if let Some(known) = self.facts.insert(here.clone(), told.clone()) {
            return if known == told { Ok(()) } else { Err(format!("{event_id} was {known:?}, and is now {told:?}")) };
        }
        self.times.insert(here, time_ms);
        if self.refused.contains(&(session.to_owned(), data.to_owned())) {
            return Err(format!("{event_id} is {data}, which was refused"));
        }
        if data.contains("\"reason\":\"lost\"") {
            return Err(format!("{event_id}: the event of an open job was lost"));
        }
        let end = match topic {
            "work.do" | "side.do" => {
                let sent = self.sent.contains(&(session.to_owned(), data.to_owned()));
                return if sent { Ok(()) } else { Err(format!("{event_id}: nobody published {data}")) };
            }
            "control.cancel" => {
                let told = (session.to_owned(), data.to_owned());
                let Some(one) = self.cancelling.get(&told) else {
                    return Err(format!("{event_id}: nobody cancelled {data}"));
                };
                self.cancelled.insert((session.to_owned(), offset), *one);
                return Ok(());
            }
            "answer.done" => End::Done,
            "answer.late" if client == "$server" => End::Fallback,
            "answer.dead" | "job.dead" if client == "$server" => End::Dead,
            other => return Err(format!("{event_id}: {other} by {client}")),
        };
        let name = data.strip_prefix("{\"job\":\"").and_then(|rest| rest.split('"').next()).ok_or("no job is named")?;
        let (queue, of) = name.split_once('/').ok_or("no job is named")?;
        let (named, _, job) = parse_event_id(of)?;
        if named != session || job >= offset {
            return Err(format!("{event_id} ends {name}"));
        }
        let key = (session.to_owned(), job);
        if let Some((of, _)) = self.facts.get(&key)
            && of != if queue == "q" { "work.do" } else { "side.do" }
        {
            return Err(format!("{event_id} ends {name}, which is {of}"));
        }
        if data.ends_with(",\"e\":1}") && self.entries.get(session).is_none_or(|(at, _)| *at < offset) {
            self.entries.insert(session.to_owned(), (offset, name.to_owned()));
        }
        if end != End::Done && data.contains("\"reason\":\"cancelled\"") {
            self.unwanted.insert(key.clone());
        }
        if let Some(before) = self.ends.insert(key.clone(), (end, offset)) {
            return Err(format!("{name} ended by {before:?}, and again by {end:?} at {offset}"));
        }
        let here = (session.to_owned(), job)..(session.to_owned(), offset);
        let cancelled = self.cancelled.range(here).any(|(_, one)| one.is_none_or(|one| one == job));
        if end != End::Done && data.contains("\"cancelled\"") && !cancelled {
            return Err(format!("{name} ended as cancelled at {offset}, and nothing before it says so"));
        }
        if end != End::Done && data.contains("\"deadline\"") && cancelled {
            return Err(format!("{name} was cancelled, and ended at {offset} for its deadline"));
        }
        let begun = self.times.get(&key).copied();
        if self.timely
            && end != End::Done
            && data.contains("\"deadline\"")
            && begun.is_some_and(|begun| time_ms < begun + self.deadline_ms)
        {
            return Err(format!("{name}: {begun:?} is answered at {time_ms}, before its deadline"));
        }
        Ok(())
    }

    /// First offset behind all that is known of a session.
    pub fn tail(&self, session: &str) -> u64 {
        let last = self.opened.range((session.to_owned(), 0)..=(session.to_owned(), u64::MAX)).last();
        let heard = self.facts.range((session.to_owned(), 0)..=(session.to_owned(), u64::MAX)).last();
        last.map_or(0, |(_, offset)| offset + 1).max(heard.map_or(0, |((_, offset), _)| offset + 1))
    }

    /// A job of a session that has not ended, as far as anybody has read.
    pub fn unended(&self, session: &str) -> Option<u64> {
        let of = self.opened.range((session.to_owned(), 0)..=(session.to_owned(), u64::MAX));
        of.map(|(_, offset)| *offset).find(|offset| !self.ends.contains_key(&(session.to_owned(), *offset)))
    }

    /// Sessions with jobs.
    pub fn sessions(&self) -> Vec<String> {
        let all: BTreeSet<&String> = self.opened.iter().map(|(session, _)| session).collect();
        all.into_iter().cloned().collect()
    }

    /// How many ended how.
    pub fn count(&self, end: End) -> u64 {
        self.ends.values().filter(|(of, _)| *of == end).count() as u64
    }

    /// Everything was read: each has ended, and where order is kept, in order.
    pub fn audit(&self) -> Checked {
        for session in self.sessions() {
            if let Some(job) = self.unended(&session) {
                return Err(format!("{session}: job {job} has not ended"));
            }
            if !self.ordered {
                continue;
            }
            for queue in ["work.do", "side.do"] {
                self.audit_order(&session, queue)?;
            }
        }
        Ok(())
    }

    /// Jobs of one queue in one session ended in the order in which they were published, but for those that were cancelled.
    fn audit_order(&self, session: &str, topic: &str) -> Checked {
        let mut last = (0, 0);
        let here = (session.to_owned(), 0)..=(session.to_owned(), u64::MAX);
        for (key @ (_, job), (end, at)) in self.ends.range(here) {
            if self.facts.get(key).is_none_or(|(of, _)| of != topic) {
                continue;
            }
            if *at < last.1 && !self.unwanted.contains(key) {
                let (before, ended) = last;
                return Err(format!("{session}: job {job} ended ({end:?}) at {at}, {before} before it at {ended}"));
            }
            if *at > last.1 {
                last = (*job, *at);
            }
        }
        Ok(())
    }
}
