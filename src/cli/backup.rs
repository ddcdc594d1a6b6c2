//! `tidegate backup DEST`: a copy of a data folder, also of a server that runs.
//!
//! ```text
//!   backup  ─► DEST, every record of it read      restore: serve from DEST, or from a copy of it
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
