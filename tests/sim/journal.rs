//! Comings and goings as the log of a session tells them: a story that must hold together, and be true at rest.
//!
//! ```text
//!   snapshot ─► joined, left, … ─► ends        the server died: the next is a snapshot, whatever came before
//!      └ nobody but whom it names                left: only whom the story knows      joined: only who ever said that it is in
//! ```
//! To the oracle each is an event like any other, sent by nobody: what one reader has seen all see, at that offset for ever.

use super::board::Board;
use super::oracle::{Checked, Key};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Its topic, under which no client can publish.
pub const TOPIC: &str = "$presence";

/// Who writes it.
pub const SERVER: &str = "$server";

/// One event.
#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
struct News {
    #[serde(default)]
    joined: Vec<String>,
    #[serde(default)]
    left: Vec<String>,
    #[serde(default)]
    snapshot: bool,
    #[serde(default)]
    ends: bool,
}

/// All sessions.
#[derive(Default)]
pub struct Journals(BTreeMap<String, BTreeMap<u64, News>>);

/// Under which the oracle knows an event of a journal.
pub fn key(offset: u64) -> Key {
    Key { client: u32::MAX, number: offset }
}

impl Journals {
    /// An event was seen, for the first time or again.
    pub fn seen(&mut self, session: &str, offset: u64, data: &str, board: &Board) -> Checked {
        let news: News = serde_json::from_str(data).map_err(|e| format!("no comings and goings: {e}"))?;
        if news.joined.is_empty() && news.left.is_empty() && !news.snapshot && !news.ends {
            return Err("it says nothing".to_owned());
        }
        if let Some(stranger) = news.joined.iter().chain(&news.left).find(|name| !board.was_ever_in(session, name)) {
            return Err(format!("{stranger} was never in {session}"));
        }
        self.0.entry(session.to_owned()).or_default().insert(offset, news);
        Ok(())
    }

    /// Who is in at the end of a story that was read to its end; `None` where nobody tells it any more. `torn`: it may begin
    /// anywhere; `in_parts`: one event does not hold all names, and who is at something else and leaves before its part is in
    /// `left` alone.
    pub fn tells(&self, session: &str, torn: bool, in_parts: bool) -> Checked<Option<BTreeSet<&str>>> {
        let mut known: Option<BTreeSet<&str>> = None;
        for (offset, news) in self.0.get(session).into_iter().flatten() {
            if news.snapshot {
                known = Some(BTreeSet::new());
            }
            let Some(is_in) = &mut known else {
                if torn {
                    continue;
                }
                return Err(format!("{session}: {offset} tells comings and goings without a beginning: {news:?}"));
            };
            is_in.extend(news.joined.iter().map(String::as_str));
            if let Some(stranger) = news.left.iter().find(|name| !is_in.remove(name.as_str()) && !in_parts) {
                return Err(format!("{session}: {offset} says that {stranger} has left, of whom nothing was told"));
            }
            if news.ends {
                known = None;
            }
        }
        Ok(known)
    }

    /// How many were seen.
    pub fn count(&self) -> u64 {
        self.0.values().map(|news| news.len() as u64).sum()
    }
}
