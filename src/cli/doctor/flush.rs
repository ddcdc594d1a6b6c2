//! Does the disk honour a flush? What it says of its cache, how long a sync takes, and what can be concluded from both.
//!
//! ```text
//!   4 KiB, O_DIRECT, in place, fdatasync ─► as on the server's way to an acknowledgement; the median of many
//!   cache      sync       disk           conclusion
//!   none       any        real           nothing to flush: so with power-loss protection, and with a setting made by hand
//!   volatile   < 100 µs   flash          too quick for a flush to flash: protected, or it lies
//!   volatile   < 1.5 ms   rotating       too quick for anything: it lies
//!   any        any        virtual        the host below decides; only its owner knows
//! ```
//! No program can prove a flush without cutting the power. `diskchecker.pl` with a second machine and a power switch does.

use super::Wanted;
use super::finding::{Findings, Level};
use super::host::Host;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

const CHECK: &str = "flush";
const ROUNDS_MAX: usize = 100;
const MEASURE_MAX: Duration = Duration::from_millis(500);
const FILE_BYTES: usize = 1 << 20;
const BLOCK_BYTES: usize = 4096;
/// No flash writes a page and its table that quickly.
const FLASH_US_MIN: u64 = 100;
/// No platter comes round that quickly.
const PLATTER_US_MIN: u64 = 1500;
/// Nothing that leaves the processor returns that quickly.
const ANY_US_MIN: u64 = 8;
/// A disk that other programs load, or one that is too slow for the durable class.
const SLOW_US: u64 = 20_000;

#[repr(align(4096))]
struct Block([u8; BLOCK_BYTES]);

/// What the kernel says of a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disk {
    pub name: String,
    /// `write back` or `write through`; empty where it does not say.
    pub cache: String,
    pub rotational: bool,
    pub is_virtual: bool,
}

/// How a sync of the data folder went.
pub enum Synced {
    /// Microseconds; with O_DIRECT or without.
    Median { us: u64, direct: bool },
    /// It could not be tried.
    Failed(io::Error),
    /// It was not tried: the files are another machine's.
    Untried,
}

pub fn check(host: &Host, wanted: &Wanted<'_>, out: &mut Findings) {
    let Some(mount) = host.mount_of(&wanted.data) else { return };
    if matches!(mount.kind.as_str(), "tmpfs" | "ramfs") {
        return; // said of the folder
    }
    let synced = if host.is_live() { measure(&wanted.data) } else { Synced::Untried };
    judge(disk_of(host, &mount.device).as_ref(), &synced, out);
}

/// The disk below a device: of a partition its disk, of a mapped device what it lies on.
fn disk_of(host: &Host, device: &str) -> Option<Disk> {
    let mut path = format!("sys/dev/block/{device}");
    for _ in 0..8 {
        if !host.exists(&format!("{path}/queue")) && host.exists(&format!("{path}/partition")) {
            path = format!("{path}/..");
        }
        match host.names(&format!("{path}/slaves")).into_iter().next() {
            Some(below) => path = format!("{path}/slaves/{below}"),
            None => break,
        }
    }
    let name = host.link_name(&path)?;
    let virtual_names = ["vd", "xvd", "loop", "zram", "ram", "nbd", "rbd"];
    let is_guest = host.text("proc/cpuinfo").is_some_and(|text| {
        text.lines().any(|line| line.starts_with("flags") && line.split_whitespace().any(|flag| flag == "hypervisor"))
    });
    Some(Disk {
        cache: host.text(&format!("{path}/queue/write_cache")).unwrap_or_default(),
        rotational: host.number(&format!("{path}/queue/rotational")) == Some(1),
        is_virtual: is_guest || virtual_names.iter().any(|prefix| name.starts_with(prefix)),
        name,
    })
}

fn measure(folder: &Path) -> Synced {
    // A server removes what ends so at its start, should this end in the middle.
    let path = folder.join(format!(".tidegate-doctor-{}.tmp", std::process::id()));
    let measured = measure_file(&path);
    let _ = std::fs::remove_file(&path);
    match measured {
        Ok((us, direct)) => Synced::Median { us, direct },
        Err(error) => Synced::Failed(error),
    }
}

fn measure_file(path: &Path) -> io::Result<(u64, bool)> {
    let mut options = OpenOptions::new();
    let plain = options.write(true).create_new(true).mode(0o600).open(path)?;
    plain.write_all_at(&vec![0; FILE_BYTES], 0)?;
    plain.sync_all()?;
    let block = Block([0x5a; BLOCK_BYTES]);
    let mut options = OpenOptions::new();
    let direct = options.write(true).custom_flags(libc::O_DIRECT).open(path).and_then(|file| {
        file.write_all_at(&block.0, 0)?;
        Ok(file)
    });
    let (file, is_direct) = direct.map_or((plain, false), |file| (file, true));
    let began = Instant::now();
    let mut took = Vec::new();
    while took.len() < ROUNDS_MAX && began.elapsed() < MEASURE_MAX {
        let one = Instant::now();
        file.write_all_at(&block.0, ((took.len() * BLOCK_BYTES) % FILE_BYTES) as u64)?;
        file.sync_data()?;
        took.push(one.elapsed().as_micros() as u64);
    }
    took.sort_unstable();
    Ok((took[took.len() / 2], is_direct))
}

/// What follows from what was seen.
pub fn judge(disk: Option<&Disk>, synced: &Synced, out: &mut Findings) {
    let us = match synced {
        Synced::Median { us, direct } => {
            if !direct {
                let why = "writes go through the page cache: durable, and slower";
                out.warning(
                    "direct writes",
                    "this file system refuses O_DIRECT",
                    why,
                    "give a folder on ext4 or xfs: --data",
                );
            }
            Some(*us)
        }
        Synced::Failed(error) => {
            let why = "the server has to write there";
            out.wrong(
                CHECK,
                format!("a file cannot be written and synced: {error}"),
                why,
                "run it as the server's user, on its folder",
            );
            None
        }
        Synced::Untried => None,
    };
    let took =
        us.map_or_else(|| "not measured".to_owned(), |us| format!("4 KiB and fdatasync take {us} µs in the median"));
    let Some(disk) = disk else {
        return out.note(
            CHECK,
            format!("{took}; the disk is not known"),
            "whether it has a volatile cache decides what a sync is worth",
            "",
        );
    };
    let Disk { name, cache, rotational, is_virtual } = disk;
    let what = format!("{name}: {took}; cache {}", if cache.is_empty() { "unknown" } else { cache });
    let lies = "says done too quickly: check for a volatile cache without power-loss protection. A power cut would lose what was acknowledged";
    let off = format!(
        "hdparm -W 0 /dev/{name} (or nvme set-feature -f 6 -v 0 /dev/{name}), or a disk whose data sheet names power-loss protection"
    );
    let (level, why, mend) = match (cache.as_str(), us) {
        (_, Some(us)) if us < ANY_US_MIN => {
            let mend = "look for eatmydata or another library that swallows syncs (LD_PRELOAD), nobarrier, a RAM disk";
            (Level::Wrong, "no disk was asked: nothing that a sync promises holds", mend.to_owned())
        }
        (_, Some(us)) if us > SLOW_US => {
            let mend = "look for other programs' load (iostat -x 1), or take another disk".to_owned();
            (Level::Warning, "each acknowledgement of class `disk` waits that long", mend)
        }
        _ if *is_virtual => {
            let why = "a virtual disk: whether the host below passes a flush on to something that keeps it cannot be seen from here";
            let mend = "ask whoever runs the host: the disk's cache mode (none, writethrough or writeback with flush; never unsafe)";
            (Level::Note, why, mend.to_owned())
        }
        ("write through", _) => {
            let why = "the kernel sends no flush: right for a disk without a volatile cache, wrong where somebody set it by hand";
            let mend = format!(
                "hdparm -I /dev/{name} or nvme id-ctrl /dev/{name} (vwc); where it has one: echo 'write back' > /sys/block/{name}/queue/write_cache"
            );
            (Level::Note, why, mend)
        }
        (_, Some(us)) if *rotational && us < PLATTER_US_MIN => (Level::Wrong, lies, off),
        (_, Some(us)) if !*rotational && us < FLASH_US_MIN => (Level::Warning, lies, off),
        (_, Some(_)) => return out.ok(CHECK, format!("{what}; as long as a real flush takes")),
        (_, None) => (
            Level::Note,
            "how long a sync takes tells whether the cache is flushed",
            "run it on that machine".to_owned(),
        ),
    };
    out.add(CHECK, level, what, why, mend);
}
