//! What a check has to say of one setting: how bad it is, what it is, why it matters, and the command that mends it.

use serde::Serialize;
use std::fmt;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Good to know; nobody has to act.
    Note,
    /// The server works, and slower or with less room than it could.
    Warning,
    /// It does not start, or what it promises does not hold.
    Wrong,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Wrong => "wrong",
        })
    }
}

/// One setting.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// Which setting.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What it is.
    pub what: String,
    /// Why it matters; empty where all is well.
    pub why: String,
    /// A command or a line that mends it; empty where there is nothing to mend.
    pub mend: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {:<16} {}", self.level, self.check, self.what)?;
        for (label, text) in [("why", &self.why), ("mend", &self.mend)] {
            if !text.is_empty() {
                write!(f, "\n{:<8} {:<16}   {label}: {text}", "", "")?;
            }
        }
        Ok(())
    }
}

/// All that was found, in the order of the checks.
#[derive(Default, Debug)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    pub fn ok(&mut self, check: &'static str, what: impl Into<String>) {
        self.add(check, Level::Ok, what, "", "");
    }

    pub fn note(&mut self, check: &'static str, what: impl Into<String>, why: &str, mend: impl Into<String>) {
        self.add(check, Level::Note, what, why, mend);
    }

    pub fn warning(&mut self, check: &'static str, what: impl Into<String>, why: &str, mend: impl Into<String>) {
        self.add(check, Level::Warning, what, why, mend);
    }

    pub fn wrong(&mut self, check: &'static str, what: impl Into<String>, why: &str, mend: impl Into<String>) {
        self.add(check, Level::Wrong, what, why, mend);
    }

    pub fn add(
        &mut self,
        check: &'static str,
        level: Level,
        what: impl Into<String>,
        why: &str,
        mend: impl Into<String>,
    ) {
        self.0.push(Finding { check, level, what: what.into(), why: why.into(), mend: mend.into() });
    }

    /// How many are of that level.
    pub fn count(&self, level: Level) -> usize {
        self.0.iter().filter(|finding| finding.level == level).count()
    }
}
