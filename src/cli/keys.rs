//! `tidegate keys rotate`: a new key for resume tokens.

use super::{Failure, print_line};
use crate::disk::keys;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// The keys that resume tokens are signed with.
#[derive(Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Make a new key. Taken at the next start; tokens of the key before it are believed until the next rotation.
    Rotate {
        /// Folder of the log.
        #[arg(long, value_name = "DIR", default_value = "tidegate-data")]
        data: PathBuf,
    },
}

pub fn run(args: &KeysArgs) -> Result<(), Failure> {
    let What::Rotate { data } = &args.what;
    let keys = keys::rotate(data).map_err(|why| Failure::failed(format!("{}: {why}", data.display())))?;
    let number = keys.first().map_or(0, |key| key.number);
    print_line(&format!(
        "key {number} is made: it signs from the next start on, and {} is still believed",
        keys.len() - 1
    ))
}
