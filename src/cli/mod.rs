//! The command line: one file per subcommand, nothing here but the grammar and the way to a [`Config`].
//!
//! ```text
//!   tidegate [serve]      flags ─► Config ─► boot::serve
//!   tidegate check-config flags ─► Config ─► table of values and origins
//!   tidegate pub | sub    a WebSocket client on one connection
//!   tidegate bench        a server of its own and load on it ─► table and verdict
//!   tidegate log verify | dump DIR     reads a data folder that no server has open
//!   tidegate top | why    what a running server does; what became of an event: asked of its admin edge
//!   tidegate keys         a new key for resume tokens; keys for clients' tokens
//!   tidegate token        a token for development
//!   tidegate revoke       a client or a token does not count any more
//!   tidegate quota TENANT KEY=VALUE    what a tenant may use, from now on
//!   tidegate backup       a copy of a data folder, also of a running server's
//!   tidegate restore      a data folder of such a copy
//!   tidegate doctor       what of this machine stands in the way, and what mends it
//! ```
//!
//! Exit status: 0 done, 1 the operation was refused or failed, 2 the request itself is wrong (flags, configuration, start-up).

mod ask;
mod backup;
mod bench;
mod check_config;
mod client;
mod doctor;
mod keys;
mod line;
mod log;
mod publish;
mod quota;
mod revoke;
mod serve;
mod subscribe;
mod token;
mod top;
mod why;

use crate::config::{Config, ConfigError, Layers};
use clap::{Args, Parser, Subcommand};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Durable, ordered events over WebSocket. Without a subcommand: serve.
#[derive(Parser)]
#[command(name = "tidegate", version, about, args_conflicts_with_subcommands = true)]
struct Line {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::ServeArgs,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::ServeArgs),
    /// Print every value and where it came from, and check that the server would start with them.
    CheckConfig(ConfigArgs),
    Pub(publish::PubArgs),
    Sub(subscribe::SubArgs),
    Log(log::LogArgs),
    Keys(keys::KeysArgs),
    Token(token::TokenArgs),
    Revoke(revoke::RevokeArgs),
    Quota(quota::QuotaArgs),
    Backup(backup::BackupArgs),
    Restore(backup::RestoreArgs),
    Doctor(doctor::DoctorArgs),
    Bench(bench::BenchArgs),
    Top(top::TopArgs),
    Why(why::WhyArgs),
}

/// Flags that end in a [`Config`].
#[derive(Args)]
struct ConfigArgs {
    /// TOML file with any of the keys that `check-config` lists.
    #[arg(long, env = "TIDEGATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address to listen on.
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Folder of the log.
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Number of shards, one core each; 0 = all cores.
    #[arg(long, value_name = "N")]
    shards: Option<String>,
    /// `on`: acknowledged means fdatasync has returned; `off`: written.
    #[arg(long, value_name = "on|off")]
    sync: Option<String>,
    /// Log lines as `text` or `json`.
    #[arg(long, value_name = "text|json")]
    log_format: Option<String>,
    /// Open /echo for conformance suites (loopback only).
    #[arg(long)]
    echo: bool,
    /// Any other key, as in the file; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArgs {
    fn load(self) -> Result<Config, ConfigError> {
        let file = match self.config {
            None => None,
            Some(path) => match std::fs::read_to_string(&path) {
                Ok(content) => Some((path, content)),
                Err(why) => return Err(ConfigError::new(format!("config file {}: {why}", path.display()))),
            },
        };
        let mut flags = Vec::new();
        for pair in self.set {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(ConfigError::new(format!("--set {pair:?}: expected KEY=VALUE")));
            };
            flags.push((key.trim().to_string(), value.trim().to_string()));
        }
        let named = [
            ("listen", self.listen),
            ("data", self.data),
            ("shards", self.shards),
            ("sync", self.sync),
            ("log_format", self.log_format),
        ];
        flags.extend(named.into_iter().filter_map(|(key, value)| Some((key.to_string(), value?))));
        if self.echo {
            flags.push(("echo".into(), "true".into()));
        }
        Config::load(&Layers { file, env: environment(), flags })
    }
}

/// What the environment says, without a file and flags.
fn layers() -> Layers {
    Layers { file: None, env: environment(), flags: Vec::new() }
}

/// The environment as text; a variable that is not UTF-8 is not one of ours.
fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Reads the command line and does what it says.
pub fn main() -> ExitCode {
    let line = Line::parse();
    let done = match line.command.unwrap_or(Command::Serve(line.serve)) {
        Command::Serve(args) => match serve::run(args) {
            Ok(status) => return status,
            Err(why) => Err(why),
        },
        Command::CheckConfig(args) => args.load().map_err(Failure::wrong).and_then(|config| check_config::run(&config)),
        Command::Pub(args) => publish::run(&args),
        Command::Sub(args) => subscribe::run(&args),
        Command::Log(args) => log::run(&args),
        Command::Keys(args) => keys::run(&args),
        Command::Token(args) => token::run(args),
        Command::Revoke(args) => revoke::run(args),
        Command::Quota(args) => quota::run(&args),
        Command::Backup(args) => backup::run(&args),
        Command::Restore(args) => backup::restore(&args),
        Command::Doctor(args) => doctor::run(args),
        Command::Bench(args) => bench::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Why(args) => why::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { status: 0, .. }) => ExitCode::SUCCESS,
        Err(Failure { status, line }) => {
            eprintln!("tidegate: {line}");
            ExitCode::from(status)
        }
    }
}

/// Why a subcommand ends early: one line for stderr and an exit status.
struct Failure {
    status: u8,
    line: String,
}

impl Failure {
    /// The operation was refused or failed.
    fn failed(why: impl std::fmt::Display) -> Self {
        Failure { status: 1, line: why.to_string() }
    }

    /// The request itself is wrong.
    fn wrong(why: impl std::fmt::Display) -> Self {
        Failure { status: 2, line: why.to_string() }
    }
}

/// One line on stdout, out at once. A reader that has gone away (`| head`) ends the command quietly.
fn print_line(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|why| match why.kind() {
        std::io::ErrorKind::BrokenPipe => Failure { status: 0, line: String::new() },
        _ => Failure::failed(format!("stdout: {why}")),
    })
}
