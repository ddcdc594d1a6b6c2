//! `tidegate serve`: the server itself.

use super::{ConfigArgs, Failure};
use crate::boot;
use clap::Args;
use std::process::ExitCode;

/// Run the server (the default).
#[derive(Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Take the place of the server that runs on the same data folder: it hands over its listening sockets, drains and ends.
    #[arg(long)]
    takeover: bool,
}

pub(super) fn run(args: ServeArgs) -> Result<ExitCode, Failure> {
    let config = args.config.load().map_err(Failure::wrong)?;
    Ok(if args.takeover { boot::take_over(config) } else { boot::serve(config) })
}
