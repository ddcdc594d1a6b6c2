//! `tidegate doctor`: what of this machine stands in the way of a server with this configuration, and what mends it.
//!
//! ```text
//!   files of the kernel (Host) ─┐
//!   configuration ─► Wanted ────┼─► one check a file ─► findings: ok, note, warning, wrong ─► text, or JSON
//!   tried: io_uring, a flush ───┘
//! ```
//! Nothing is changed. What only can be tried is tried on this machine alone: a small ring, a file of a MiB in the data folder.

mod cgroup;
mod clock;
mod core_dump;
mod cores;
mod finding;
mod flush;
mod folder;
mod governor;
mod host;
mod interrupts;
mod kernel;
mod limits;
mod memory;
mod network;
#[cfg(test)]
mod tests;

use super::{ConfigArgs, Failure, print_line};
use crate::boot;
use crate::boot::needs::Needs;
use crate::config::Config;
use clap::Args;
use finding::{Findings, Level};
use host::Host;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Look at the machine: what stands in the way of a server with this configuration, why, and what mends it.
#[derive(Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// One JSON document in place of text.
    #[arg(long)]
    json: bool,
    /// Limits, cores and cgroup of this process, such as a server that runs under a service manager.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Read /proc and /sys below this folder: the files of another machine. Nothing is tried then.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

/// What the server will want of the machine.
struct Wanted<'a> {
    config: &'a Config,
    shards: u16,
    /// Cores of the shards, in their order.
    cores: Vec<usize>,
    needs: Needs,
    /// Sum of the memory plan, bytes.
    plan_bytes: u64,
    /// The data folder, or the part of its path that is there, and whether it is all of it.
    data: PathBuf,
    is_made: bool,
}

impl<'a> Wanted<'a> {
    fn of(config: &'a Config, host: &Host) -> Wanted<'a> {
        let allowed: BTreeSet<usize> = host.allowed_cores();
        let shards = match config.shards {
            0 if host.is_this_process() => config.shard_count(),
            0 => u16::try_from(allowed.len()).unwrap_or(u16::MAX).max(1),
            shards => shards,
        };
        let cores = allowed.iter().copied().cycle().take(if allowed.is_empty() { 0 } else { shards.into() }).collect();
        let plan = boot::memory_plan(config);
        let data = std::path::absolute(&config.data).unwrap_or_else(|_| config.data.clone());
        let there = if host.is_live() { there(&data) } else { data.clone() };
        Wanted {
            config,
            shards,
            cores,
            needs: Needs::of(config, shards),
            plan_bytes: plan.total_bytes(),
            is_made: !host.is_live() || data.exists(),
            data: there,
        }
    }

    fn core_set(&self) -> BTreeSet<usize> {
        self.cores.iter().copied().collect()
    }

    fn connections(&self) -> u64 {
        u64::from(self.shards) * u64::from(self.config.connections_per_shard_max)
    }
}

/// The longest part of a path that is there, its links followed.
fn there(path: &Path) -> PathBuf {
    path.ancestors().find_map(|part| part.canonicalize().ok()).unwrap_or_else(|| path.to_owned())
}

type Check = fn(&Host, &Wanted<'_>, &mut Findings);

/// Every check, in the order of the report.
const CHECKS: &[Check] = &[
    kernel::check,
    limits::check,
    folder::check,
    flush::check,
    memory::check,
    cgroup::check,
    cores::check,
    governor::check,
    clock::check,
    interrupts::check,
    network::check,
    core_dump::check,
];

fn examine(host: &Host, config: &Config) -> Findings {
    let wanted = Wanted::of(config, host);
    let mut findings = Findings::default();
    for check in CHECKS {
        check(host, &wanted, &mut findings);
    }
    findings
}

pub(super) fn run(args: DoctorArgs) -> Result<(), Failure> {
    let config = args.config.load().map_err(Failure::wrong)?;
    let host = Host::new(args.root.as_deref(), args.pid);
    if host.of_process("status").is_none() {
        return Err(Failure::wrong("there is no such process, or no proc/self/status below that root"));
    }
    let findings = examine(&host, &config);
    let counts = [Level::Wrong, Level::Warning, Level::Note, Level::Ok].map(|level| (level, findings.count(level)));
    if args.json {
        let counts: serde_json::Map<String, serde_json::Value> =
            counts.iter().map(|(level, count)| (level.to_string(), (*count).into())).collect();
        let report = serde_json::json!({ "counts": counts, "findings": findings.0 });
        print_line(&report.to_string())?;
    } else {
        for finding in &findings.0 {
            print_line(&finding.to_string())?;
        }
        let [(_, wrong), (_, warnings), (_, notes), (_, ok)] = counts;
        print_line(&format!("{wrong} wrong, {warnings} warnings, {notes} notes, {ok} ok"))?;
    }
    match findings.count(Level::Wrong) {
        0 => Ok(()),
        wrong => {
            let names: BTreeSet<&str> = findings
                .0
                .iter()
                .filter(|finding| finding.level == Level::Wrong)
                .map(|finding| finding.check)
                .collect();
            let names: Vec<&str> = names.into_iter().collect();
            Err(Failure::failed(format!("{wrong} settings are wrong: {}", names.join(", "))))
        }
    }
}
