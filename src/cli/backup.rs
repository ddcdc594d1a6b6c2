//! `tidegate backup DEST`: a copy of a data folder, also of a server that runs; `tidegate restore`: a folder to serve from, of a backup.
//!
//! ```text
//!   backup   ─► DEST, every record of it read, and marked
//!   restore  ─► a copy of DEST, likewise ─► serve ─► sessions get other epochs, and the mark goes
//! ```

use super::{Failure, print_line};
use crate::boot::process;
use crate::disk::backup;
use clap::Args;
use std::path::PathBuf;
use std::time::Instant;

/// Copy a data folder, also one that a server is writing to, and prove the copy.
#[derive(Args)]
pub(super) struct BackupArgs {
    /// Where the copy goes. Must not exist yet.
    dest: PathBuf,
    /// Folder of the log.
    #[arg(long, value_name = "DIR", env = "TIDEGATE_DATA", default_value = "tidegate-data")]
    data: PathBuf,
}

/// Make a data folder of a backup, and prove it. Its sessions go on under other epochs: it goes back in time, and gives later offsets a
/// second time.
#[derive(Args)]
pub(super) struct RestoreArgs {
    /// The backup. It stays as it is.
    backup: PathBuf,
    /// Folder of the log. Must not exist yet.
    #[arg(long, value_name = "DIR", env = "TIDEGATE_DATA", default_value = "tidegate-data")]
    data: PathBuf,
}

pub(super) fn restore(args: &RestoreArgs) -> Result<(), Failure> {
    let began = Instant::now();
    process::raise_open_files();
    let done = backup::copy(&args.backup, &args.data).map_err(Failure::failed)?;
    print_line(&format!(
        "restored {}: {} files, {} bytes, all good, in {:.1} s; served from here, sessions have other epochs than before",
        args.data.display(),
        done.files,
        done.bytes,
        began.elapsed().as_secs_f64()
    ))
}

pub(super) fn run(args: &BackupArgs) -> Result<(), Failure> {
    let began = Instant::now();
    // Every file of the folder is open at once.
    process::raise_open_files();
    let done = backup::copy(&args.data, &args.dest).map_err(Failure::failed)?;
    let records: u64 = done.report.findings.iter().map(|finding| finding.records).sum();
    print_line(&format!(
        "backup {}: {} files, {} bytes, {records} records, all good, in {:.1} s; what was acknowledged before it began is in it",
        args.dest.display(),
        done.files,
        done.bytes,
        began.elapsed().as_secs_f64()
    ))
}
