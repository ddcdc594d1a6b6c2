//! What is known of token streams: what was sent, what was acknowledged, how each ended. Every text that a reader is given
//! is held against it.
//!
//! ```text
//!   sent:   d0 d1 d2 d3           acknowledged or delivered: a fact, at one offset for ever
//!   heard:  single deltas, or a run merged into one text: always what was sent, in its order
//!   end:    once, with one status at one offset: its client's, or `partial` by the server
//! ```

use super::oracle::{Checked, parse_event_id};
use std::collections::BTreeMap;

/// All streams of all sessions.
#[derive(Default)]
pub struct Streams {
    stories: BTreeMap<(String, String), Story>,
    /// What stands at an offset of a session: stream and number.
    facts: BTreeMap<(String, u64), (String, u64)>,
}

/// One stream.
#[derive(Default)]
struct Story {
    /// Deltas as JSON string bytes without quotes, by number.
    sent: Vec<String>,
    /// Status its client sent.
    closing: Option<String>,
    /// Status, offset where it is known, how many deltas there were.
    end: Option<(String, Option<u64>, u64)>,
}

impl Streams {
    /// A client sends a delta for the first time.
    pub fn sent(&mut self, session: &str, stream: &str, delta: &str) {
        self.story(session, stream).sent.push(delta.to_owned());
    }

    /// A client sends the end.
    pub fn closing(&mut self, session: &str, stream: &str, status: &str) {
        self.story(session, stream).closing = Some(status.to_owned());
    }

    /// A delta stands at this place, says an acknowledgement or a frame.
    pub fn fact(&mut self, event_id: &str, session: &str, stream: &str, seq: u64, delta: Option<&str>) -> Checked<u64> {
        let (named, _, offset) = parse_event_id(event_id)?;
        if named != session {
            return Err(format!("{event_id} in a frame of {session}"));
        }
        self.stands(session, offset, stream, seq)?;
        let story = self.story(session, stream);
        if story.end.as_ref().is_some_and(|(_, end, count)| seq >= *count || end.is_some_and(|end| offset > end)) {
            return Err(format!("{event_id}: {stream} ended before its delta {seq}"));
        }
        match (story.sent.get(seq as usize), delta) {
            (None, _) => Err(format!("{event_id}: nobody sent delta {seq} of {stream}")),
            (Some(sent), Some(delta)) if sent != delta => Err(format!("{event_id}: sent {sent:?}, got {delta:?}")),
            _ => Ok(offset),
        }
    }

    /// A stream ended here, says an acknowledgement or a frame.
    pub fn ended(&mut self, event_id: &str, session: &str, stream: &str, status: &str, count: Option<u64>) -> Checked {
        let (_, _, offset) = parse_event_id(event_id)?;
        self.stands(session, offset, stream, u64::MAX)?;
        self.end(session, stream, status, Some(offset), count)
    }

    /// Deltas `from` to `to` say this.
    pub fn merged(&mut self, session: &str, stream: &str, from: u64, to: u64, text: &str) -> Checked {
        let story = self.story(session, stream);
        let sent = story.sent.get(from as usize..=to as usize).map(<[String]>::concat);
        if sent.as_deref() != Some(text) {
            return Err(format!("{stream} {from}..={to}: sent {sent:?}, got {text:?}"));
        }
        match &story.end {
            Some((_, _, count)) if to >= *count => Err(format!("{stream} ended before its delta {to}")),
            _ => Ok(()),
        }
    }

    /// A stream has this end; where it stands is known to some.
    pub fn end(
        &mut self,
        session: &str,
        stream: &str,
        status: &str,
        offset: Option<u64>,
        count: Option<u64>,
    ) -> Checked {
        let story = self.story(session, stream);
        if let Some((known, at, deltas)) = &mut story.end {
            let same = known == status
                && (offset.is_none() || at.is_none() || offset == *at)
                && count.is_none_or(|count| count == *deltas);
            *at = at.or(offset);
            return if same { Ok(()) } else { Err(format!("{stream} ended {:?}, and again {status}", story.end)) };
        }
        if status != "partial" && story.closing.as_deref() != Some(status) {
            return Err(format!("{stream} ended {status}, which nobody said"));
        }
        if let Some(count) = count {
            if count > story.sent.len() as u64 {
                return Err(format!("{stream} ended with {count} deltas of {}", story.sent.len()));
            }
            story.end = Some((status.to_owned(), offset, count));
        }
        Ok(())
    }

    /// First offset behind all that is known of a session.
    pub fn tail(&self, session: &str) -> u64 {
        let key = (session.to_owned(), u64::MAX);
        let last = self.facts.range(..=key).next_back().filter(|((of, _), _)| of == session);
        last.map_or(0, |((_, offset), _)| offset + 1)
    }

    /// Sessions in which anything was told.
    pub fn sessions(&self) -> Vec<String> {
        let all: std::collections::BTreeSet<&String> = self.facts.keys().map(|(session, _)| session).collect();
        all.into_iter().cloned().collect()
    }

    /// Streams that ended.
    pub fn ends(&self) -> u64 {
        self.stories.values().filter(|story| story.end.is_some()).count() as u64
    }

    fn stands(&mut self, session: &str, offset: u64, stream: &str, seq: u64) -> Checked {
        let here = (stream.to_owned(), seq);
        match self.facts.insert((session.to_owned(), offset), here.clone()) {
            Some(before) if before != here => Err(format!("{session}:{offset} was {before:?} and is {here:?}")),
            _ => Ok(()),
        }
    }

    fn story(&mut self, session: &str, stream: &str) -> &mut Story {
        self.stories.entry((session.to_owned(), stream.to_owned())).or_default()
    }
}
