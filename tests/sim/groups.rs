//! What is known of the group of the world: what was published for it, what members were dealt, what they acknowledged.
//!
//! ```text
//!   run of a lease, from ─ next      every event that is due lies in it, in order, as it was published
//!   from                             what is before it was acknowledged, by an acknowledgement that may have arrived
//!   two leases of a session          what was acknowledged under the one ends before the other begins
//! ```
//! The last line is all of fencing, whenever frames and answers come: an acknowledgement under a lease that another one has replaced
//! moves the marker over what that one has in hand.

use super::oracle::{Checked, parse_event_id};
use std::collections::BTreeMap;

/// A run that was dealt.
#[derive(Clone, Copy, Debug)]
struct Run {
    from: u64,
    /// Acknowledged up to here, as answered.
    acked: Option<u64>,
}

/// Sessions of the group.
#[derive(Default)]
pub struct Groups {
    /// It was declared, as answered: what is published from now on is due.
    pub declared: bool,
    /// What was sent, and whether it is due.
    sent: BTreeMap<(String, String), bool>,
    /// Acknowledged by the server and due: what stands there.
    due: BTreeMap<(String, u64), String>,
    runs: BTreeMap<(String, String), Run>,
    /// Up to where acknowledgements of a session may have arrived.
    said: BTreeMap<(String, u64), u32>,
    dealt: u64,
}

impl Groups {
    /// An event is about to be published, for the first time.
    pub fn sends(&mut self, session: &str, data: &str, wanted: bool) {
        self.sent.insert((session.to_owned(), data.to_owned()), wanted && self.declared);
    }

    /// It is on disk.
    pub fn published(&mut self, session: &str, event_id: &str, data: &str) -> Checked {
        let (named, _, offset) = parse_event_id(event_id)?;
        if named != session {
            return Err(format!("{event_id} acknowledges an event of {session}"));
        }
        if self.sent.get(&(session.to_owned(), data.to_owned())) == Some(&true) {
            self.due.insert((session.to_owned(), offset), data.to_owned());
        }
        Ok(())
    }

    /// A member was dealt this.
    pub fn dealt(&mut self, session: &str, lease: &str, from: u64, next: u64, events: &[(u64, String)]) -> Checked {
        self.dealt += 1;
        let here = |offset| (session.to_owned(), offset);
        if from >= next
            || events.windows(2).any(|two| two[0].0 >= two[1].0)
            || events.iter().any(|(at, _)| !(from..next).contains(at))
        {
            return Err(format!("{session}: {events:?} is dealt as {from}..{next}"));
        }
        for (offset, data) in events {
            if !self.sent.contains_key(&(session.to_owned(), data.clone())) {
                return Err(format!("{session}:{offset}: nobody published {data}"));
            }
        }
        for ((_, offset), data) in self.due.range(here(from)..here(next)) {
            if !events.iter().any(|(at, told)| at == offset && told == data) {
                return Err(format!("{session}:{offset} {data} is not in the run {from}..{next}: {events:?}"));
            }
        }
        for (_, offset) in self.due.range(here(0)..here(from)).map(|(at, _)| at) {
            if self.said.range((session.to_owned(), offset + 1)..=(session.to_owned(), u64::MAX)).next().is_none() {
                return Err(format!("{session}: a run begins at {from}, and nobody acknowledged {offset}"));
            }
        }
        let run = Run { from, acked: None };
        match self.runs.insert((session.to_owned(), lease.to_owned()), run) {
            Some(_) => Err(format!("{session}: the lease {lease} was given twice")),
            None => self.one_at_a_time(session),
        }
    }

    /// A member is about to acknowledge.
    pub fn says(&mut self, session: &str, to: u64) {
        *self.said.entry((session.to_owned(), to)).or_default() += 1;
    }

    /// The server has refused it.
    pub fn not_taken(&mut self, session: &str, to: u64) {
        let here = (session.to_owned(), to);
        let left = self.said.get(&here).map_or(0, |said| said - 1);
        if left == 0 {
            self.said.remove(&here);
        } else {
            self.said.insert(here, left);
        }
    }

    /// The server has taken it.
    pub fn acknowledged(&mut self, session: &str, lease: &str, to: u64) -> Checked {
        let Some(run) = self.runs.get_mut(&(session.to_owned(), lease.to_owned())) else {
            return Err(format!("{session}: {lease} was never dealt"));
        };
        run.acked = run.acked.max(Some(to));
        self.one_at_a_time(session)
    }

    fn one_at_a_time(&self, session: &str) -> Checked {
        let of = (session.to_owned(), String::new())..(format!("{session}\0"), String::new());
        let runs: Vec<(&String, &Run)> = self.runs.range(of).map(|((_, lease), run)| (lease, run)).collect();
        for (at, (lease, one)) in runs.iter().enumerate() {
            for (other_lease, other) in &runs[at + 1..] {
                // Where it stood already nothing was moved.
                let over = |a: &Run, b: &Run| a.acked.is_some_and(|acked| acked > b.from && acked > a.from);
                if over(one, other) && over(other, one) {
                    return Err(format!("{session}: {lease} {one:?} and {other_lease} {other:?} were at it together"));
                }
            }
        }
        Ok(())
    }

    /// An event that nobody has acknowledged, as far as anybody knows.
    pub fn undone(&self, session: &str) -> Option<u64> {
        let last = self.said.range((session.to_owned(), 0)..=(session.to_owned(), u64::MAX)).last();
        let to = last.map_or(0, |((_, to), _)| *to);
        let due = self.due.range((session.to_owned(), to)..=(session.to_owned(), u64::MAX)).next();
        due.map(|((_, offset), _)| *offset)
    }

    /// Runs that were dealt.
    pub fn count(&self) -> u64 {
        self.dealt
    }
}
