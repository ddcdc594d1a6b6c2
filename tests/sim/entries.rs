//! What is known of entries: each revision of a place is one change for ever, and what was acknowledged stays until something takes it
//! away.
//!
//! ```text
//!   sent ─► acknowledged, told in a page or to a watcher: a fact (place, revision) ─► (key, value), the same for everybody
//!   floor of a key: its last change that is known; below it nothing is told, and what is above was sent by its owner
//! ```

use super::oracle::Checked;
use std::collections::{BTreeMap, BTreeSet};

/// What a change left under its key; nothing where it took it away.
pub type Value = Option<String>;

/// All places that hold entries.
#[derive(Default)]
pub struct Entries {
    facts: BTreeMap<(String, u64), (String, Value)>,
    sent: BTreeSet<(String, String, String)>,
    floors: BTreeMap<(String, String), Floor>,
}

/// What is known of a key.
#[derive(Clone, Default)]
struct Floor {
    revision: u64,
    value: Value,
    /// It may go by itself, not before this time of the world.
    goes_us: Option<u64>,
    /// Something that would take it away may still arrive.
    may_go: bool,
}

impl Entries {
    /// Its owner is about to put it, for a while or for ever.
    pub fn puts(&mut self, place: &str, key: &str, value: &str, may_go: bool) {
        // If its answer is lost, it may be there, and gone again.
        self.floors.entry((place.to_owned(), key.to_owned())).or_default().may_go |= may_go;
        self.sent.insert((place.to_owned(), key.to_owned(), value.to_owned()));
    }

    /// Its owner is about to take it away.
    pub fn deletes(&mut self, place: &str, key: &str) {
        self.floors.entry((place.to_owned(), key.to_owned())).or_default().may_go = true;
    }

    /// A change is known: it was acknowledged, or told.
    pub fn fact(&mut self, place: &str, key: &str, revision: u64, value: Value) -> Checked {
        if revision == 0 {
            return Err(format!("{place}: {key} at revision 0"));
        }
        if let Some(value) = &value
            && !self.sent.contains(&(place.to_owned(), key.to_owned(), value.clone()))
        {
            return Err(format!("{place}: nobody put {value} under {key}"));
        }
        let told = (key.to_owned(), value);
        if let Some(known) = self.facts.insert((place.to_owned(), revision), told.clone())
            && known != told
        {
            return Err(format!("{place}: revision {revision} was {known:?}, and is now {told:?}"));
        }
        let floor = self.floors.entry((place.to_owned(), key.to_owned())).or_default();
        if revision > floor.revision {
            (floor.revision, floor.value, floor.goes_us) = (revision, told.1, Some(0));
        }
        Ok(())
    }

    /// As [`Entries::fact`], of a put that was acknowledged: it stays, until its life is over.
    pub fn kept(&mut self, place: &str, key: &str, revision: u64, value: &str, goes_us: Option<u64>) -> Checked {
        self.fact(place, key, revision, Some(value.to_owned()))?;
        let floor = self.floors.entry((place.to_owned(), key.to_owned())).or_default();
        if revision == floor.revision {
            (floor.goes_us, floor.may_go) = (goes_us, false);
        }
        Ok(())
    }

    /// The last change of a key that somebody knows of.
    pub fn known(&self, place: &str, key: &str) -> u64 {
        self.floors.get(&(place.to_owned(), key.to_owned())).map_or(0, |floor| floor.revision)
    }

    /// Somebody who asked when a revision of it was known is told by now what a key held in between.
    pub fn told(&self, place: &str, key: &str, found: Option<u64>, known: u64, now_us: u64) -> Checked {
        let Some(floor) = self.floors.get(&(place.to_owned(), key.to_owned())) else { return Ok(()) };
        match found {
            Some(revision) if revision < known => {
                Err(format!("{place}: {key} is told at {revision}, and was at {known} before it was asked for"))
            }
            Some(_) => Ok(()),
            None if floor.value.is_none() || floor.may_go => Ok(()),
            None if floor.goes_us.is_some_and(|goes_us| goes_us <= now_us) => Ok(()),
            None => Err(format!("{place}: {key} was at {}, and nothing took it away", floor.revision)),
        }
    }

    /// The last change that is known of a place.
    pub fn revision(&self, place: &str) -> u64 {
        let all = self.facts.range((place.to_owned(), 0)..=(place.to_owned(), u64::MAX));
        all.last().map_or(0, |((_, revision), _)| *revision)
    }

    /// What a watcher believes holds nothing older than what is known.
    pub fn believed(&self, place: &str, believes: &BTreeMap<String, (u64, String)>, revision: u64) -> Checked {
        for ((_, key), floor) in self.floors.iter().filter(|((of, _), _)| of == place) {
            if floor.revision > revision {
                continue;
            }
            match (believes.get(key), &floor.value) {
                (Some((at, _)), _) if *at < floor.revision => {
                    return Err(format!("{place}: {key} is believed at {at}, and was told at {}", floor.revision));
                }
                (None, Some(_)) if floor.goes_us.is_none() && !floor.may_go => {
                    return Err(format!("{place}: {key} is not believed, and is at {}", floor.revision));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Changes that are known.
    pub fn changes(&self) -> u64 {
        self.facts.len() as u64
    }
}
