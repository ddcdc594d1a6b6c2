//! The real binary dies, and what it acknowledged is there.
//!
//! ```text
//!   cargo test --release --test crash -- --kills 500 --seed 1                         SIGKILL on real files
//!   cargo test --release --test crash --features power-cut -- --cuts 500 --seed 1     the power goes
//!   … -- --cuts 50 --forget-syncs      commits are never synced: must find a loss, or the alarm is dead
//!
//!   life: one folder, one set of flags         round: one start of the server on what the last one left
//!     start ─► audit all promises ─► clients for 1–60 ms ─► SIGKILL (now and then SIGTERM, or before it is ready)
//!              └─ power: folder := journal up to the kill, less what no sync covers; also once up to any earlier point
//!                └─ now and then the power stays: the next round starts on what the kernel shows, synced or not
//!     end   ─► audit, and the reader gets what it has not seen
//! ```
//! A failure names its life's seed; timing is the machine's, so a seed repeats the draw and not the interleaving. The
//! folders of a failure are kept. `--seconds-max N`: a run that is not done by then has failed.

mod client;
mod cut;
mod history;
#[path = "../sim/random.rs"]
#[allow(dead_code)] // the simulator draws more kinds
mod random;
mod server;

use client::{Publisher, Reader, Run};
use cut::Disk;
use history::Ledger;
use random::Random;
use server::Server;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What is counted and told at the end.
const KILLS: &str = "rounds of kill";
const CUTS: &str = "rounds of power cut";
const ACKNOWLEDGED: &str = "events acknowledged";

/// A long run says this often how far it is.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Restarts of one folder: its history is read back each time.
const ROUNDS_PER_LIFE: u64 = 12;

struct Arguments {
    kills: u64,
    cuts: u64,
    seed: u64,
    forget_syncs: bool,
    seconds_max: u64,
    folder: PathBuf,
}

#[derive(Default)]
struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or_default()
    }

    fn add(&mut self, what: &'static str, count: u64) {
        *self.0.entry(what).or_default() += count;
    }
}

fn main() -> ExitCode {
    let arguments = match parse() {
        Ok(arguments) => arguments,
        Err(why) => {
            eprintln!("crash: {why}");
            return ExitCode::from(2);
        }
    };
    let begun = Instant::now();
    let mut counts = Counts::default();
    let mut failure = None;
    'modes: for (power, wanted, done) in [(false, arguments.kills, KILLS), (true, arguments.cuts, CUTS)] {
        let mut seed = arguments.seed;
        let mut said = Instant::now();
        while counts.of(done) < wanted {
            let rounds = (wanted - counts.of(done)).min(ROUNDS_PER_LIFE);
            let mut life = Life::new(seed, power, &arguments);
            let mut lived = life.live(rounds, &mut counts, done);
            if lived.is_ok() && begun.elapsed().as_secs() >= arguments.seconds_max && counts.of(done) < wanted {
                lived = Err(format!("only {} of {wanted} in {} s", counts.of(done), arguments.seconds_max));
            }
            if let Err(why) = lived {
                let kept = life.folder.parent().unwrap_or(Path::new(".")).display();
                failure = Some(format!("{done}, seed {seed}: {why}\nits folders are kept in {kept}"));
                break 'modes;
            }
            life.bury();
            seed += 1;
            if said.elapsed() >= SAY_EVERY {
                said = Instant::now();
                println!(
                    "crash: {} of {wanted} {done}, {} events acknowledged",
                    counts.of(done),
                    counts.of(ACKNOWLEDGED)
                );
            }
        }
    }
    for (what, count) in &counts.0 {
        println!("{count:>10}  {what}");
    }
    let summary = format!(
        "{} {KILLS}, {} {CUTS}, {} {ACKNOWLEDGED}, {:.1} s",
        counts.of(KILLS),
        counts.of(CUTS),
        counts.of(ACKNOWLEDGED),
        begun.elapsed().as_secs_f64()
    );
    match (failure, arguments.forget_syncs) {
        (None, false) => {
            println!("crash: every promise was kept: {summary}");
            ExitCode::SUCCESS
        }
        (Some(why), false) => {
            println!("crash: {why}\n{summary}");
            ExitCode::FAILURE
        }
        (Some(why), true) => {
            println!("crash: found, as it must be: {why}\n{summary}");
            ExitCode::SUCCESS
        }
        (None, true) => {
            println!("crash: commits were not synced and nobody noticed: the alarm is dead: {summary}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Arguments, String> {
    let power_cut = cfg!(feature = "power-cut");
    let mut arguments = Arguments {
        // Of a plain `cargo test`: a smoke test, long runs name their own.
        kills: 6,
        cuts: if power_cut { 6 } else { 0 },
        seed: 1,
        forget_syncs: false,
        seconds_max: 1800,
        folder: std::env::temp_dir().join(format!("tidegate-crash-{}", std::process::id())),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || {
            let text = words.next().ok_or_else(|| format!("{word} wants a number"))?;
            text.parse::<u64>().map_err(|_| format!("{word} wants a number, not {text:?}"))
        };
        match word.as_str() {
            "--kills" => (arguments.kills, arguments.cuts) = (number()?, 0),
            "--cuts" => (arguments.kills, arguments.cuts) = (0, number()?),
            "--rounds" => {
                arguments.kills = number()?;
                arguments.cuts = if power_cut { arguments.kills } else { 0 };
            }
            "--seed" => arguments.seed = number()?,
            "--seconds-max" => arguments.seconds_max = number()?,
            "--forget-syncs" => arguments.forget_syncs = true,
            "--folder" => arguments.folder = words.next().ok_or("--folder wants a path")?.into(),
            // What cargo hands to every test binary.
            "--nocapture" | "--quiet" | "-q" => {}
            other => return Err(format!("unknown argument {other:?}: see the head of tests/crash/main.rs")),
        }
    }
    if arguments.cuts > 0 && !power_cut {
        return Err("a server that writes down its syncs is needed: --features power-cut".to_owned());
    }
    Ok(arguments)
}

/// One folder from its making on.
struct Life {
    random: Random,
    folder: PathBuf,
    flags: Vec<String>,
    shards: u16,
    sessions: u64,
    ledger: Ledger,
    publishers: Vec<Publisher>,
    reader: Reader,
    power: bool,
    forget_syncs: bool,
    /// Disk of a round whose process died while the power stayed.
    carried: Option<Disk>,
}

impl Life {
    fn new(seed: u64, power: bool, arguments: &Arguments) -> Self {
        let mut random = Random::new(seed, if power { "power" } else { "kill" });
        let sessions = random.between(1, 8);
        let publishers = (0..random.between(1, 3)).map(|n| Publisher::new(n, sessions, seed)).collect();
        let folder = arguments.folder.join("data");
        let _ = std::fs::remove_dir_all(&arguments.folder);
        Self {
            flags: server::flags(&mut random),
            shards: random.between(1, 3) as u16,
            random,
            folder,
            sessions,
            ledger: Ledger::default(),
            publishers,
            reader: Reader::default(),
            power,
            forget_syncs: arguments.forget_syncs,
            carried: None,
        }
    }

    fn bury(&self) {
        if let Some(parent) = self.folder.parent() {
            let _ = std::fs::remove_dir_all(parent);
        }
    }

    fn live(&mut self, rounds: u64, counts: &mut Counts, done: &'static str) -> Result<(), String> {
        std::fs::create_dir_all(&self.folder).map_err(|why| format!("{}: {why}", self.folder.display()))?;
        for _ in 0..rounds {
            if self.random.chance(150) {
                self.shards = self.random.between(1, 3) as u16;
            }
            self.round(counts)?;
            counts.add(done, 1);
        }
        self.farewell(counts)
    }

    /// One run of the server, to its violent end.
    fn round(&mut self, counts: &mut Counts) -> Result<(), String> {
        let before = if self.power { server::snapshot(&self.folder) } else { BTreeMap::new() };
        let journal = self.power.then(|| self.folder.with_extension("journal"));
        // A server that is killed before it opens its journal must not be taken for the last one.
        journal.iter().for_each(|journal| drop(std::fs::remove_file(journal)));
        let mut server = Server::spawn(&self.folder, self.shards, &self.flags, journal.as_deref())?;
        if self.random.chance(120) {
            counts.add("killed before it was ready", 1);
            std::thread::sleep(Duration::from_micros(self.random.below(25_000)));
            server.kill();
        } else {
            server.ready()?;
            self.serve(&mut server, journal.clone(), counts)?;
        }
        let Some(journal) = journal else {
            self.ledger.settle();
            return Ok(());
        };
        let journal = std::fs::read(&journal).unwrap_or_default();
        let ends = cut::ends(&journal);
        counts.add("journal entries", ends.len() as u64);
        // Anywhere, for which it may forget what it promised later; then where it ended, and life goes on from there.
        let early = ends.get(self.random.index(ends.len().max(1))).copied().unwrap_or(0);
        let mut disk = self.carried.take().and_then(|disk| disk.outlive(&before)).unwrap_or_else(|| Disk::new(&before));
        disk.forget_commit_syncs = self.forget_syncs;
        let mut at_early = disk.clone();
        at_early.replay(&journal, early);
        let path = self.folder.with_file_name("early");
        server::restore(&path, &at_early.settle(&mut self.random)).map_err(|why| why.to_string())?;
        self.audit_copy(&path, early, counts).map_err(|why| format!("cut at byte {early} of the journal: {why}"))?;
        disk.replay(&journal, u64::MAX);
        if self.random.chance(300) {
            counts.add("killed while the power stayed", 1);
            self.carried = Some(disk);
        } else {
            server::restore(&self.folder, &disk.settle(&mut self.random)).map_err(|why| why.to_string())?;
        }
        self.ledger.settle();
        Ok(())
    }

    fn serve(&mut self, server: &mut Server, journal: Option<PathBuf>, counts: &mut Counts) -> Result<(), String> {
        let over = AtomicBool::new(false);
        let run = Run { address: &server.address.clone(), journal, over: &over };
        let stored = history::read(run.address, self.sessions as usize, &self.ledger)?;
        self.ledger.judge(&stored, u64::MAX)?;
        self.ledger.show(&stored, run.received());
        counts.add("events audited", stored.len() as u64);
        // Mostly short: a kill in the middle of the first commits is worth more than one in a steady state.
        let longest = *self.random.pick(&[2_000, 10_000, 60_000]);
        let lifetime = Duration::from_micros(self.random.below(longest));
        let politely = self.random.chance(100);
        let (publishers, reader) = (&mut self.publishers, &mut self.reader);
        let result = std::thread::scope(|scope| {
            let publishing: Vec<_> = publishers.iter_mut().map(|p| scope.spawn(|| p.run(&run))).collect();
            let reading = scope.spawn(|| reader.run(&run, None));
            std::thread::sleep(lifetime);
            let alive = server.alive();
            let ended = if politely {
                over.store(true, Ordering::Relaxed);
                server.stop()
            } else {
                server.kill();
                over.store(true, Ordering::Relaxed);
                Ok(())
            };
            let published = publishing.into_iter().map(|thread| thread.join().expect("a publisher panicked"));
            let published = published.collect::<Result<(), String>>();
            alive.and(ended).and(published).and(reading.join().expect("the reader panicked"))
        });
        counts.add(if politely { "stopped" } else { "killed while serving" }, 1);
        self.learn(counts);
        result.map_err(|why| format!("{why}; the server said: {}", server.complaints()))
    }

    fn learn(&mut self, counts: &mut Counts) {
        for publisher in &mut self.publishers {
            let learnt = std::mem::take(&mut publisher.learnt);
            counts.add("events sent", learnt.sent.len() as u64);
            counts.add(ACKNOWLEDGED, learnt.acknowledged.len() as u64);
            counts.add("commands refused for a while", std::mem::take(&mut publisher.refused));
            counts.add("commands acknowledged", std::mem::take(&mut publisher.acknowledged));
            counts.add("commands called duplicates", std::mem::take(&mut publisher.duplicates));
            self.ledger.sent.extend(learnt.sent);
            self.ledger.acknowledged.extend(learnt.acknowledged);
            self.ledger.loose.extend(learnt.loose);
            for (marker, offsets) in learnt.marked {
                counts.add("markers acknowledged", offsets.len() as u64);
                self.ledger.marked.entry(marker).or_default().extend(offsets);
            }
        }
        for (event, received) in std::mem::take(&mut self.reader.shown) {
            counts.add("events delivered", 1);
            self.ledger.show_one(&event, received);
        }
        counts.add("pattern feeds resumed", std::mem::take(&mut self.reader.resumed));
    }

    /// Another server over a copy of the folder keeps all promises made before byte `cut` of the journal.
    fn audit_copy(&self, path: &Path, cut: u64, counts: &mut Counts) -> Result<(), String> {
        let mut server = Server::spawn(path, self.shards, &self.flags, None)?;
        server.ready()?;
        let stored = history::read(&server.address, self.sessions as usize, &self.ledger)?;
        counts.add("early cuts audited", 1);
        self.ledger.judge(&stored, cut)
    }

    /// The last audit of a folder: promises are kept, and the reader gets what it has not seen.
    fn farewell(&mut self, counts: &mut Counts) -> Result<(), String> {
        let mut server = Server::spawn(&self.folder, self.shards, &self.flags, None)?;
        server.ready()?;
        let stored = history::read(&server.address, self.sessions as usize, &self.ledger)?;
        self.ledger.judge(&stored, u64::MAX)?;
        let over = AtomicBool::new(false);
        let run = Run { address: &server.address.clone(), journal: None, over: &over };
        self.reader.run(&run, Some(&stored.slices()))?;
        self.reader.judge(stored.sessions.values().flatten())?;
        self.learn(counts);
        counts.add("lives", 1);
        server.stop()
    }
}
