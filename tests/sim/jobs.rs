//! What is known of jobs: which were published, what every session of theirs holds, how each ended.
//!
//! ```text
//!   job ─► event at its offset ─► exactly one of: answer of a worker (with its end in one record) · fallback · dead letter
//!   order session: a job that a worker ended, ended after all that were published before it
//!   never before its deadline is a job answered by the server for its deadline
//! ```

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
}

impl Jobs {
    /// A job is about to be published.
    pub fn sends(&mut self, session: &str, data: &str) {
        self.sent.insert((session.to_owned(), data.to_owned()));
    }

    /// It is on disk.
    pub fn opened(&mut self, event_id: &str, session: &str) -> Checked {
        let (named, _, offset) = parse_event_id(event_id)?;
        if named != session {
            return Err(format!("{event_id} acknowledges a job of {session}"));
        }
        self.opened.insert((session.to_owned(), offset));
        Ok(())
    }

    /// A worker was given it.
    pub fn given(&self, session: &str, offset: u64, data: &str) -> Checked {
        let job = (session.to_owned(), offset);
        if !self.sent.contains(&(session.to_owned(), data.to_owned())) {
            return Err(format!("{session}:{offset}: nobody published {data}"));
        }
        if let Some((_, known)) = self.facts.get(&job)
            && known != data
        {
            return Err(format!("{session}:{offset} holds {known}, given was {data}"));
        }
        Ok(())
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
        let end = match topic {
            "work.do" => {
                let sent = self.sent.contains(&(session.to_owned(), data.to_owned()));
                return if sent { Ok(()) } else { Err(format!("{event_id}: nobody published {data}")) };
            }
            "answer.done" => End::Done,
            "answer.late" if client == "$server" => End::Fallback,
            "answer.dead" if client == "$server" => End::Dead,
            other => return Err(format!("{event_id}: {other} by {client}")),
        };
        let name = data.strip_prefix("{\"job\":\"").and_then(|rest| rest.split('"').next()).ok_or("no job is named")?;
        let (_, of) = name.split_once('/').ok_or("no job is named")?;
        let (named, _, job) = parse_event_id(of)?;
        if named != session || job >= offset {
            return Err(format!("{event_id} ends {name}"));
        }
        let key = (session.to_owned(), job);
        if let Some(before) = self.ends.insert(key.clone(), (end, offset)) {
            return Err(format!("{name} ended by {before:?}, and again by {end:?} at {offset}"));
        }
        let begun = self.times.get(&key).copied();
        if self.timely
            && end == End::Fallback
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
            let mut last = (0, 0);
            for ((_, job), (end, at)) in self.ends.range((session.clone(), 0)..=(session.clone(), u64::MAX)) {
                if *end == End::Done && *at < last.1 {
                    return Err(format!(
                        "{session}: job {job} was done at {at}, {} before it ended at {}",
                        last.0, last.1
                    ));
                }
                if *at > last.1 {
                    last = (*job, *at);
                }
            }
        }
        Ok(())
    }
}
