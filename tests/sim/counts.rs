//! What a run met, counted by kind: commands with their outcomes, refusals, faults, and what the world did.
//!
//! A hunt adds up the tables of many processes, so a line is `count  kind: name` and nothing else. Every refusal and every
//! fault has its line, also where it never came about: a nought is the finding.

use shards::refusal::Refusal;
use std::collections::BTreeMap;

/// Counts by (kind, name).
#[derive(Clone, Debug, Default)]
pub struct Counts(BTreeMap<(&'static str, &'static str), u64>);

/// Kind of what the world or the disk does to the server.
pub const FAULT: &str = "fault";
/// Kind of what merely happened.
pub const WORLD: &str = "world";
/// Kind of refusals, whatever the command.
pub const REFUSAL: &str = "refusal";
/// Kind of connections that the server closed, by code.
pub const CLOSE: &str = "close";

/// Every fault there is.
pub const FAULTS: &[&str] = &[
    "boot: a read fails",
    "boot: cut short",
    "clock jumps back",
    "clock jumps far ahead",
    "clock jumps ahead",
    "commit finds no space",
    "commit's write fails",
    "connection breaks",
    "connection breaks amid bytes down",
    "connection breaks amid bytes up",
    "connection lingers after its client left",
    "death: job, checkpoint",
    "death: job, prepare",
    "death: job, recluster",
    "death: job, remove",
    "death: job, seal",
    "death: of the process",
    "death: of the power",
    "death: sync in flight",
    "death: write in flight",
    "death: write in flight, first of a segment",
    "death: while stopping, hearing",
    "death: while stopping, settling",
    "death: while stopping, waves",
    "disk full",
    "job finds no space",
    "job fails",
    "quotas change",
    "read fails",
    "rot: checkpoint",
    "rot: manifest",
    "rot: segment",
    "rot: sidecar",
    "shard stalls",
    "sync fails",
    "write misdirected, its own place missed",
    "write misdirected, onto a sealed file",
];

/// Refusals that this core and this edge never give, and what they do in their place.
pub const NEVER_GIVEN: &[(Refusal, &str)] = &[
    (Refusal::TooManyConnections, "503 to the upgrade, outside of the core"),
    (Refusal::FrameTooLarge, "close code 1009"),
    (Refusal::BadUpgrade, "400 or 426 to the upgrade, outside of the core"),
];

/// In the middle of what a client is when something ends, as the two faults that it names.
#[derive(Clone, Copy, Debug)]
pub struct Amid {
    /// The server dies.
    pub death: &'static str,
    /// The connection breaks.
    pub cut: &'static str,
}

/// All of them, in the order in which clients say which of them hold.
pub const AMID: [Amid; 8] = [
    Amid { death: "death: amid a resume, asked", cut: "connection breaks amid a resume, asked" },
    Amid { death: "death: amid a resume, restoring", cut: "connection breaks amid a resume, restoring" },
    Amid { death: "death: of a process with lives", cut: "connection breaks that has a life" },
    Amid { death: "death: amid a stream", cut: "connection breaks amid a stream" },
    Amid { death: "death: amid a late join", cut: "connection breaks amid a late join" },
    Amid { death: "death: of a process with members", cut: "connection breaks of a member" },
    Amid { death: "death: amid a snapshot", cut: "connection breaks amid a snapshot" },
    Amid { death: "death: of a process with receipts", cut: "connection breaks that has receipts" },
];

fn is_amid(name: &str) -> bool {
    AMID.iter().any(|amid| amid.death == name || amid.cut == name)
}

impl Counts {
    /// One more.
    pub fn add(&mut self, kind: &'static str, name: &'static str) {
        self.add_many(kind, name, 1);
    }

    /// So many more.
    pub fn add_many(&mut self, kind: &'static str, name: &'static str, count: u64) {
        debug_assert!(kind != FAULT || FAULTS.contains(&name) || is_amid(name), "{name:?} is missing among the faults");
        *self.0.entry((kind, name)).or_default() += count;
    }

    /// All of another.
    pub fn take_in(&mut self, other: &Counts) {
        for ((kind, name), count) in &other.0 {
            *self.0.entry((kind, name)).or_default() += count;
        }
    }

    /// The table, sorted by kind and name, with a nought for each fault and refusal that never came about.
    pub fn print(&self) {
        let mut all = self.0.clone();
        for fault in FAULTS.iter().copied().chain(AMID.iter().flat_map(|amid| [amid.death, amid.cut])) {
            all.entry((FAULT, fault)).or_default();
        }
        for refusal in Refusal::ALL {
            if !NEVER_GIVEN.iter().any(|(never, _)| never == refusal) {
                all.entry((REFUSAL, refusal.name())).or_default();
            }
        }
        for ((kind, name), count) in &all {
            println!("{count:>12}  {kind}: {name}");
        }
        for (refusal, instead) in NEVER_GIVEN {
            println!("{:>12}  {REFUSAL}: {} is never given: {instead}", "-", refusal.name());
        }
    }
}
