//! The simulator: N shards on one thread, real core, log, codec and framer; simulated disk, network and clock.
//!
//! ```text
//!   cargo test --profile sim --test sim -- --seeds 200 [--from S] [--steps N]    many worlds
//!   cargo test --profile sim --test sim -- --one SEED [-v]                       one, its trace printed
//!   cargo test --profile sim --test sim -- --seeds 20 --meta                     each twice: equal traces?
//!   … --no-crash                                                                 the same worlds, never a crash
//!   … --seconds S                                                                from a seed on until time is up
//!   … --every-byte                                                               a resume cut off at each byte, no seeds
//! ```
//! Everything that varies is drawn from the seed, so a seed and a commit are a replay. Seeds that once failed are listed,
//! with what they found, in `regressions.txt` and run first.

mod board;
mod boot;
mod client;
mod counts;
mod disk;
mod edge;
mod entries;
mod groups;
mod jobs;
mod journal;
mod options;
mod oracle;
mod random;
mod streams;
mod trace;
mod world;

use counts::Counts;
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
    seconds: Option<u64>,
    verbose: bool,
    meta: bool,
    no_crash: bool,
    every_byte: bool,
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
    if arguments.every_byte {
        let ran = World::every_byte(arguments.verbose);
        match &ran {
            Ok(cuts) => println!("sim: cut at {cuts} bytes, {:.1} s", begin.elapsed().as_secs_f64()),
            Err(why) => println!("sim: at every byte: failed: {why}"),
        }
        return if ran.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let mut counts = Counts::default();
    let mut failed = Vec::new();
    let mut ran = 0u64;
    let in_time = |ran: u64| match arguments.seconds {
        Some(seconds) => begin.elapsed().as_secs() < seconds,
        None => ran < arguments.seeds,
    };
    // Of a hunt every process has seeds of its own, so the regressions are left to the plain runs.
    let known = if arguments.seconds.is_some() { Vec::new() } else { regressions() };
    let mut seeds: Box<dyn Iterator<Item = u64>> = match arguments.one {
        Some(seed) => Box::new(std::iter::once(seed)),
        None => Box::new(
            known
                .into_iter()
                .chain((arguments.from..).enumerate().map_while(move |(n, seed)| in_time(n as u64).then_some(seed))),
        ),
    };
    while let Some(seed) = seeds.next().filter(|_| failed.len() < 10) {
        ran += 1;
        if let Err(why) = run(seed, &arguments, &mut counts) {
            println!("seed {seed} failed: {why}");
            let steps =
                if arguments.steps == STEPS_DEFAULT { String::new() } else { format!(" --steps {}", arguments.steps) };
            println!("again: cargo test --profile sim --test sim -- --one {seed}{steps} -v");
            failed.push(seed);
        }
    }
    counts.print();
    println!("sim: {ran} seeds, {} failed {failed:?}, {:.1} s", failed.len(), begin.elapsed().as_secs_f64());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One seed, or with `--meta` twice.
fn run(seed: u64, arguments: &Arguments, counts: &mut Counts) -> Result<(), String> {
    let once = |counts: &mut Counts| {
        let ran = catch_unwind(AssertUnwindSafe(|| {
            let mut world = World::new(seed, arguments.verbose, arguments.no_crash);
            let result = world.run(arguments.steps);
            (result, world.trace.digest(), world.all_counts())
        }));
        let (result, digest, met) =
            ran.map_err(|panic| match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
                (Some(text), _) => format!("panic: {text}"),
                (_, Some(text)) => format!("panic: {text}"),
                _ => "panic".to_owned(),
            })?;
        counts.take_in(&met);
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
        seconds: None,
        verbose: false,
        meta: false,
        no_crash: false,
        every_byte: false,
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
            "--seconds" => arguments.seconds = Some(number()?),
            "-v" => arguments.verbose = true,
            "--meta" => arguments.meta = true,
            "--every-byte" => arguments.every_byte = true,
            "--no-crash" => arguments.no_crash = true,
            // What cargo hands to every test binary.
            "--nocapture" | "--quiet" | "-q" => {}
            other => return Err(format!("unknown argument {other:?}: see the head of tests/sim/main.rs")),
        }
    }
    Ok(arguments)
}
