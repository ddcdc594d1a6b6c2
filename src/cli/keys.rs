//! `tidegate keys`: keys of resume tokens, and keys for clients' tokens in development.

use super::{Failure, print_line};
use crate::auth::{Algorithm, PrivateKey};
use crate::disk::keys;
use clap::{Args, Subcommand, ValueEnum};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

/// Keys: those that resume tokens are signed with, and those of clients' tokens.
#[derive(Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Make a new key for resume tokens. Taken at the next start; tokens of the key before it are believed until the next rotation.
    Rotate {
        /// Folder of the log.
        #[arg(long, value_name = "DIR", default_value = "tidegate-data")]
        data: PathBuf,
    },
    /// Make a key for clients' tokens: a JWK set with its private part, for `tidegate token` and for `auth_keys_file`.
    Make {
        /// How it signs.
        #[arg(long, value_enum, default_value = "eddsa")]
        algorithm: AlgorithmArg,
        /// What tokens call it (`kid`).
        #[arg(long, default_value = "dev")]
        id: String,
        /// File to make; one that is there stays.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Print a key without its private part: what a server needs that only verifies. HS256 has no public part.
    Public {
        /// JWK set with private parts.
        file: PathBuf,
    },
}

/// An algorithm, as it is given on the command line.
#[derive(Clone, Copy, ValueEnum)]
enum AlgorithmArg {
    Eddsa,
    Es256,
    Hs256,
}

pub fn run(args: &KeysArgs) -> Result<(), Failure> {
    match &args.what {
        What::Rotate { data } => {
            let keys = keys::rotate(data).map_err(|why| Failure::failed(format!("{}: {why}", data.display())))?;
            let number = keys.first().map_or(0, |key| key.number);
            print_line(&format!(
                "key {number} is made: it signs from the next start on, and {} is still believed",
                keys.len() - 1
            ))
        }
        What::Make { algorithm, id, out } => {
            let algorithm = match algorithm {
                AlgorithmArg::Eddsa => Algorithm::EdDsa,
                AlgorithmArg::Es256 => Algorithm::Es256,
                AlgorithmArg::Hs256 => Algorithm::Hs256,
            };
            let key = PrivateKey::make(algorithm, id).map_err(|why| Failure::failed(format!("the key {why}")))?;
            let failed = |why| Failure::failed(format!("{}: {why}", out.display()));
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(out).map_err(failed)?;
            file.write_all(key.private_text().as_bytes()).map_err(failed)?;
            print_line(&format!(
                "{}: {} key {id:?}, private part included: keep it so",
                out.display(),
                algorithm.name()
            ))
        }
        What::Public { file } => print_line(read(file, None)?.public_text().trim_end()),
    }
}

/// A private key of a file.
pub(super) fn read(file: &std::path::Path, id: Option<&str>) -> Result<PrivateKey, Failure> {
    let text = std::fs::read_to_string(file).map_err(|why| Failure::wrong(format!("{}: {why}", file.display())))?;
    PrivateKey::read(&text, id).map_err(|why| Failure::wrong(format!("{}: it {why}", file.display())))
}
