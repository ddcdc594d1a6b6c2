//! `tidegate log verify | dump`: reads a data folder without serving it, and changes nothing in it.
//!
//! ```text
//!   verify   every file ─► verdict, one line each        exit 0 clean or torn tail, 1 corrupt
//!   dump     every record ─► its events, one JSON object a line, as a subscriber would see them
//! ```
//! Beside a running server both see the log as it was at some moment of the look; its unfinished last write may show as torn.

use super::Failure;
use crate::disk::folder::DataFolder;
use crate::wire::encode;
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};
use storage::record::Kind;
use storage::recovery::{self, RecoverError, Report};

/// Look into a data folder.
#[derive(Args)]
pub(super) struct LogArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The verdict on every file. Exit status 1 where one is corrupt.
    Verify {
        /// Data folder.
        dir: PathBuf,
    },
    /// Every event, one JSON object a line, in the order of the log.
    Dump {
        /// Data folder.
        dir: PathBuf,
        /// Only this session.
        #[arg(long)]
        session: Option<String>,
    },
}

pub(super) fn run(args: &LogArgs) -> Result<(), Failure> {
    match &args.what {
        What::Verify { dir } => verify(dir),
        What::Dump { dir, session } => dump(dir, session.as_deref()),
    }
}

fn verify(dir: &Path) -> Result<(), Failure> {
    let folder = DataFolder::inspect(dir).map_err(Failure::wrong)?;
    let report = recovery::verify(&&folder).map_err(unreadable)?;
    for line in report.to_string().lines() {
        super::print_line(line)?;
    }
    super::print_line(&format!("{} files, {} torn: {}", report.findings.len(), report.torn(), verdict(&report)))?;
    conclude(&report)
}

fn dump(dir: &Path, session: Option<&str>) -> Result<(), Failure> {
    let folder = DataFolder::inspect(dir).map_err(Failure::wrong)?;
    let mut line = Vec::new();
    let mut stopped = Ok(());
    let report = recovery::dump(&&folder, |_, _, record| {
        if stopped.is_err() || session.is_some_and(|wanted| wanted != record.session()) {
            return;
        }
        if record.kind() == Kind::Text {
            line.clear();
            encode::merged(&mut line, record, record.offset(), record.next_offset());
            stopped = super::print_line(&String::from_utf8_lossy(&line));
        }
        for event in record.events() {
            line.clear();
            encode::event(&mut line, &event);
            stopped = super::print_line(&String::from_utf8_lossy(&line));
            if stopped.is_err() {
                return;
            }
        }
    });
    stopped?;
    conclude(&report.map_err(unreadable)?)
}

fn verdict(report: &Report) -> &'static str {
    if report.is_corrupt() { "corrupt" } else { "good" }
}

/// Damage is exit status 1, with the files on stderr.
fn conclude(report: &Report) -> Result<(), Failure> {
    if !report.is_corrupt() {
        return Ok(());
    }
    let damaged = report.to_string();
    let damaged: Vec<&str> = damaged.lines().filter(|line| line.contains("CORRUPT")).collect();
    Err(Failure::failed(format!("the log is damaged: {}", damaged.join("; "))))
}

fn unreadable(why: RecoverError) -> Failure {
    match why {
        RecoverError::Corrupt(report) => {
            conclude(&report).err().unwrap_or_else(|| Failure::failed("the log is damaged"))
        }
        why => Failure::failed(why),
    }
}
