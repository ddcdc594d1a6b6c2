//! What a queue is: which events become its jobs, and what becomes of them.
//!
//! ```text
//!   definition   version u8 · queue · topics · priorities · numbers · order · fallback · dead letter       an entry of `$queues`
//! ```
//! A queue whose own answers would become its jobs again, by itself or over others, is refused: it would never end.

use crate::command::{Fallback, JobOrder, NewQueue};
use crate::limits::{FALLBACK_DATA_BYTES_MAX, QUEUE_PATTERNS_MAX, WorkLimits};
use crate::mailbox::codec::{Reader, Writer};
use crate::names::pattern_matches;
use crate::refusal::{Refusal, Refused};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Longest name of a queue, bytes: names of jobs are made of it, and are names.
pub(crate) const QUEUE_NAME_BYTES_MAX: usize = 80;

/// Most attempts of a job.
const ATTEMPTS_MAX: u64 = 1000;

const VERSION: u8 = 1;

/// A queue, as every shard knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Definition {
    pub queue: Box<str>,
    topics: Vec<Box<str>>,
    priorities: Vec<Box<str>>,
    pub capacity: u64,
    pub lease_ms: u64,
    pub deadline_ms: u64,
    pub attempts: u16,
    pub backoff_ms: u64,
    pub order: JobOrder,
    pub fallback: Option<(Box<str>, Box<[u8]>)>,
    pub dead_letter: Box<str>,
}

impl Definition {
    /// As it is declared.
    ///
    /// # Errors
    /// Its numbers contradict each other or their bounds.
    pub fn of(new: &NewQueue<'_>, limits: &WorkLimits, event_bytes_max: usize) -> Result<Self, Refused> {
        let bad = |field| Err(Refused::field(Refusal::BadPolicy, field));
        if new.queue.len() > QUEUE_NAME_BYTES_MAX {
            return Err(Refused::field(Refusal::BadName, "queue"));
        }
        if new.topics.is_empty() || new.topics.len() > QUEUE_PATTERNS_MAX {
            return bad("patterns");
        }
        if new.priorities.len() > QUEUE_PATTERNS_MAX {
            return bad("priorities");
        }
        if new.capacity > limits.queue_capacity_max {
            return Err(Refused::expects(Refusal::BadPolicy, "capacity", limits.queue_capacity_max));
        }
        if new.capacity == 0 {
            return Err(Refused::expects(Refusal::BadPolicy, "capacity", 1));
        }
        if !(1..=limits.job_deadline_ms_max).contains(&new.deadline_ms) {
            return Err(Refused::expects(Refusal::BadPolicy, "deadline_ms", limits.job_deadline_ms_max));
        }
        if !(1..=new.deadline_ms).contains(&new.lease_ms) {
            return Err(Refused::expects(Refusal::BadPolicy, "lease_ms", new.deadline_ms));
        }
        if new.backoff_ms > new.deadline_ms {
            return Err(Refused::expects(Refusal::BadPolicy, "backoff_ms", new.deadline_ms));
        }
        if !(1..=ATTEMPTS_MAX).contains(&new.attempts) {
            return Err(Refused::expects(Refusal::BadPolicy, "attempts", ATTEMPTS_MAX));
        }
        if new.fallback.is_some_and(|f| f.data.len() > FALLBACK_DATA_BYTES_MAX.min(event_bytes_max / 2)) {
            return bad("fallback");
        }
        let owned = |list: &[&str]| list.iter().map(|one| (*one).into()).collect();
        Ok(Self {
            queue: new.queue.into(),
            topics: owned(new.topics),
            priorities: owned(new.priorities),
            capacity: new.capacity,
            lease_ms: new.lease_ms,
            deadline_ms: new.deadline_ms,
            attempts: new.attempts as u16,
            backoff_ms: new.backoff_ms,
            order: new.order,
            fallback: new.fallback.map(|Fallback { topic, data }| (topic.into(), data.into())),
            dead_letter: new.dead_letter.into(),
        })
    }

    /// Does an event of this topic become a job?
    pub fn matches(&self, topic: &str) -> bool {
        self.topics.iter().any(|pattern| pattern_matches(pattern, topic))
    }

    /// Class of priority of an event of this topic.
    pub fn priority(&self, topic: &str) -> u8 {
        let first = self.priorities.iter().position(|pattern| pattern_matches(pattern, topic));
        first.unwrap_or(self.priorities.len()) as u8
    }

    /// Milliseconds before the attempt after so many.
    pub fn backoff_ms(&self, attempts: u16) -> u64 {
        let doubled = u32::from(attempts.saturating_sub(1)).min(32);
        self.backoff_ms.saturating_mul(1 << doubled).min(self.deadline_ms)
    }

    /// Topics of what the server publishes for it.
    fn answers(&self) -> impl Iterator<Item = &str> {
        self.fallback.iter().map(|(topic, _)| &**topic).chain([&*self.dead_letter])
    }

    pub fn put(&self, w: &mut Writer<'_>) {
        w.u8(VERSION).text(&self.queue);
        for list in [&self.topics, &self.priorities] {
            w.u8(list.len() as u8);
            list.iter().for_each(|one| {
                w.text(one);
            });
        }
        w.u64(self.capacity).u64(self.lease_ms).u64(self.deadline_ms).u16(self.attempts).u64(self.backoff_ms);
        w.u8(u8::from(self.order == JobOrder::Free)).text(&self.dead_letter);
        match &self.fallback {
            Some((topic, data)) => w.u8(1).text(topic).bytes(data),
            None => w.u8(0),
        };
    }

    /// Reads one; `None` where it is of another version or is none.
    pub fn get(bytes: &[u8]) -> Option<Definition> {
        // From a disk: lengths are looked at before they are believed.
        let mut r = Careful(bytes);
        if r.u8()? != VERSION {
            return None;
        }
        let queue = r.text()?;
        let mut lists = [Vec::new(), Vec::new()];
        for list in &mut lists {
            for _ in 0..r.u8()? {
                list.push(r.text()?);
            }
        }
        let [topics, priorities] = lists;
        let (capacity, lease_ms, deadline_ms) = (r.u64()?, r.u64()?, r.u64()?);
        let (attempts, backoff_ms) = (r.u16()?, r.u64()?);
        let order = if r.u8()? == 1 { JobOrder::Free } else { JobOrder::Session };
        let dead_letter = r.text()?;
        let fallback = match r.u8()? {
            1 => Some((r.text()?, r.bytes()?.into())),
            _ => None,
        };
        let sound = capacity > 0 && deadline_ms > 0 && lease_ms > 0 && attempts > 0;
        sound.then_some(Definition {
            queue,
            topics,
            priorities,
            capacity,
            lease_ms,
            deadline_ms,
            attempts,
            backoff_ms,
            order,
            fallback,
            dead_letter,
        })
    }
}

/// A reader of bytes that may be anything.
pub(crate) struct Careful<'a>(pub &'a [u8]);

impl<'a> Careful<'a> {
    fn take(&mut self, count: usize) -> Option<Reader<'a>> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(Reader(head))
    }
    pub fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|mut r| r.u8())
    }
    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|mut r| r.u16())
    }
    pub fn u64(&mut self) -> Option<u64> {
        self.take(8).map(|mut r| r.u64())
    }
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let count = self.take(4)?.u32() as usize;
        self.take(count).map(|r| r.0)
    }
    pub fn text(&mut self) -> Option<Box<str>> {
        std::str::from_utf8(self.bytes()?).ok().map(Into::into)
    }
}

/// Would what the server publishes for `fresh` lead back to it, over the tenant's other queues?
pub(crate) fn loops(known: &BTreeMap<Box<str>, Arc<Definition>>, fresh: &Definition) -> bool {
    let mut seen: Vec<&str> = Vec::new();
    let mut next: Vec<&Definition> = vec![fresh];
    while let Some(at) = next.pop() {
        for topic in at.answers() {
            if fresh.matches(topic) {
                return true;
            }
            for other in known.values().filter(|other| other.queue != fresh.queue && other.matches(topic)) {
                if !seen.contains(&&*other.queue) {
                    seen.push(&other.queue);
                    next.push(other);
                }
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new<'a>(queue: &'a str, topics: &'a [&'a str], fallback: &'a str) -> NewQueue<'a> {
        NewQueue {
            queue,
            topics,
            priorities: &["job.urgent.>", "job.>"],
            capacity: 10,
            lease_ms: 1000,
            deadline_ms: 10_000,
            attempts: 3,
            backoff_ms: 100,
            order: JobOrder::Session,
            fallback: Some(Fallback { topic: fallback, data: b"\"sorry\"" }),
            dead_letter: "dead.letter",
        }
    }

    fn of(new: &NewQueue<'_>) -> Result<Definition, Refused> {
        Definition::of(new, &WorkLimits::default(), 64 << 10)
    }

    #[test]
    fn what_is_kept_comes_back_and_no_bytes_make_it_panic() {
        let definition = of(&new("q", &["job.*", "tool.>"], "job.late.answer")).unwrap();
        let mut bytes = Vec::new();
        definition.put(&mut Writer(&mut bytes));
        assert_eq!(Definition::get(&bytes).as_ref(), Some(&definition));
        for cut in 0..bytes.len() {
            assert_eq!(Definition::get(&bytes[..cut]), None, "{cut}");
            let mut mangled = bytes.clone();
            mangled[cut] ^= 0x55;
            let _ = Definition::get(&mangled);
        }
    }

    #[test]
    fn numbers_that_contradict_each_other_are_refused() {
        let good = new("q", &["job.a"], "x");
        assert!(of(&good).is_ok());
        let field = |bad: NewQueue<'_>| of(&bad).unwrap_err().field;
        assert_eq!(field(NewQueue { lease_ms: 10_001, ..good }), "lease_ms");
        assert_eq!(field(NewQueue { lease_ms: 0, ..good }), "lease_ms");
        assert_eq!(field(NewQueue { backoff_ms: 10_001, ..good }), "backoff_ms");
        assert_eq!(field(NewQueue { deadline_ms: 3_600_001, ..good }), "deadline_ms");
        assert_eq!(field(NewQueue { capacity: 0, ..good }), "capacity");
        assert_eq!(field(NewQueue { attempts: 0, ..good }), "attempts");
        assert_eq!(field(NewQueue { topics: &[], ..good }), "patterns");
    }

    #[test]
    fn classes_follow_the_patterns() {
        let definition = of(&new("q", &["job.>"], "x")).unwrap();
        assert_eq!(["job.urgent.a", "job.b", "tool"].map(|topic| definition.priority(topic)), [0, 1, 2]);
        assert_eq!([1, 2, 3, 9, 99].map(|attempts| definition.backoff_ms(attempts)), [100, 200, 400, 10_000, 10_000]);
    }

    #[test]
    fn answers_that_lead_back_are_found() {
        let mut known = BTreeMap::new();
        let mut add = |queue: &str, topics: &[&str], fallback: &str| {
            let fresh = of(&new(queue, topics, fallback)).unwrap();
            let back = loops(&known, &fresh);
            if !back {
                known.insert(fresh.queue.clone(), Arc::new(fresh));
            }
            back
        };
        assert!(add("a", &["late.>"], "late.a"), "itself");
        assert!(add("a", &[">"], "x"), "everything");
        assert!(!add("a", &["job.a"], "job.b"));
        assert!(!add("b", &["job.b"], "job.c"));
        assert!(add("c", &["job.c"], "job.a"), "over two others");
        assert!(!add("c", &["job.c"], "job.d"));
        assert!(!add("a", &["job.a"], "job.c"), "declared anew");
    }
}
