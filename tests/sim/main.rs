//! The simulator: N shards on one thread, real core, log, codec and framer; simulated disk, network and clock.
//!
//! ```text
//!   cargo test --profile sim --test sim -- --seeds 200 [--from S] [--steps N]    many worlds
//!   cargo test --profile sim --test sim -- --one SEED [-v]                       one, its trace printed
//!   cargo test --profile sim --test sim -- --seeds 20 --meta                     each twice: equal traces?
//!   … --no-crash                                                                 the same worlds, never a crash
//! ```
//! Everything that varies is drawn from the seed, so a seed and a commit are a replay. Seeds that once failed are listed,
//! with what they found, in `regressions.txt` and run first.

mod boot;
mod client;
mod disk;
mod edge;
mod options;
mod oracle;
mod random;
mod trace;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;
use world::World;

/// Seeds of a plain `cargo test`: a smoke test, the long runs name their own.
const SEEDS_DEFAULT: u64 = 12;
/// Steps with faults of one seed.
const STEPS_DEFAULT: u64 = 12_000;

struct Arguments {
    seeds: u64,
    from: u64,
    one: Option<u64>,
    steps: u64,
    verbose: bool,
    meta: bool,
    no_crash: bool,
}

fn main() -> ExitCode {
    let arguments = match parse() {
        Ok(arguments) => arguments,
        Err(why) => {
            eprintln!("sim: {why}");
            return ExitCode::from(2);
        }
    };
    let begin = Instant::now();
    let mut counts = BTreeMap::new();
    let mut failed = Vec::new();
    let seeds: Vec<u64> = match arguments.one {
        Some(seed) => vec![seed],
        None => regressions().into_iter().chain(arguments.from..arguments.from + arguments.seeds).collect(),
    };
    for seed in &seeds {
        if let Err(why) = run(*seed, &arguments, &mut counts) {
            println!("seed {seed} failed: {why}");
            println!("again: cargo test --profile sim --test sim -- --one {seed} --steps {} -v", arguments.steps);
            failed.push(*seed);
            if failed.len() == 10 {
                break;
            }
        }
    }
    for (what, count) in &counts {
        println!("{count:>12}  {what}");
    }
    println!("sim: {} seeds, {} failed {failed:?}, {:.1} s", seeds.len(), failed.len(), begin.elapsed().as_secs_f64());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One seed, or with `--meta` twice.
fn run(seed: u64, arguments: &Arguments, counts: &mut BTreeMap<String, u64>) -> Result<(), String> {
    let once = |counts: &mut BTreeMap<String, u64>| {
        let ran = catch_unwind(AssertUnwindSafe(|| {
            let mut world = World::new(seed, arguments.verbose, arguments.no_crash);
            let result = world.run(arguments.steps);
            (result, world.trace.digest(), world.counts.clone(), world.client_counts())
        }));
        let (result, digest, world_counts, client_counts) =
            ran.map_err(|panic| match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
                (Some(text), _) => format!("panic: {text}"),
                (_, Some(text)) => format!("panic: {text}"),
                _ => "panic".to_owned(),
            })?;
        for (what, count) in world_counts {
            *counts.entry(what.to_owned()).or_default() += count;
        }
        for (what, count) in client_counts {
            *counts.entry(format!("client: {what}")).or_default() += count;
        }
        result.map(|()| digest)
    };
    let first = once(counts)?;
    if arguments.meta {
        let second = once(counts)?;
        if first != second {
            return Err(format!("two runs differ: {first:x?} and {second:x?}"));
        }
    }
    Ok(())
}

/// Seeds of `regressions.txt`: `SEED what it found`, `#` begins a comment.
fn regressions() -> Vec<u64> {
    include_str!("regressions.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect()
}

fn parse() -> Result<Arguments, String> {
    let mut arguments = Arguments {
        seeds: SEEDS_DEFAULT,
        from: 1,
        one: None,
        steps: STEPS_DEFAULT,
        verbose: false,
        meta: false,
        no_crash: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || {
            let text = words.next().ok_or_else(|| format!("{word} wants a number"))?;
            text.parse::<u64>().map_err(|_| format!("{word} wants a number, not {text:?}"))
        };
        match word.as_str() {
            "--seeds" => arguments.seeds = number()?,
            "--from" => arguments.from = number()?,
            "--one" => arguments.one = Some(number()?),
            "--steps" => arguments.steps = number()?,
            "-v" => arguments.verbose = true,
            "--meta" => arguments.meta = true,
            "--no-crash" => arguments.no_crash = true,
            // What cargo hands to every test binary.
            "--nocapture" | "--quiet" | "-q" => {}
            other => return Err(format!("unknown argument {other:?}: see the head of tests/sim/main.rs")),
        }
    }
    Ok(arguments)
}
