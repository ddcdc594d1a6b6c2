//! What the host gives, without any server: the floors under the figures of the table.
//!
//! ```text
//!   disk       append + fdatasync, 4 and 64 KiB at a time (what a commit waits for) · sequential write and read (what history waits for)
//!   loopback   256 bytes there and back, and the CPU of the side that answers
//!   core       a loop that reads the clock: whenever the clock jumps, somebody else had the core
//! ```

use super::Cores;
use crate::boot::process;
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

/// Syncs of a run; a disk that takes a millisecond for each is done in a second.
const SYNCS_MAX: usize = 2_000;
/// Sequential transfers: bytes at once, and of the whole file.
const CHUNK_BYTES: usize = 1 << 20;
const SEQUENTIAL_BYTES_MAX: u64 = 1 << 30;
/// Alignment of buffers, positions and lengths past the page cache.
const ALIGNMENT: usize = 4096;
const ECHO_BYTES: usize = 256;
/// Reading the clock takes a fraction of this: a longer step means that the loop was not running.
const GAP_US_MIN: u64 = 20;

/// Latencies, µs.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Quantiles {
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
}

impl Quantiles {
    /// Of times in ns.
    pub fn of(mut times: Vec<u64>) -> Quantiles {
        times.sort_unstable();
        let at = |share: f64| {
            let last = times.len().saturating_sub(1);
            times.get((share * last as f64).round() as usize).map_or(0.0, |ns| *ns as f64 / 1e3)
        };
        Quantiles { p50_us: at(0.5), p99_us: at(0.99), max_us: at(1.0) }
    }
}

/// The disk under a folder.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Disk {
    /// False: the file system refuses O_DIRECT, and the page cache is in between.
    pub direct: bool,
    pub sync_4k: Quantiles,
    pub sync_64k: Quantiles,
    pub write_mb_per_s: f64,
    pub read_mb_per_s: f64,
}

/// A bare round trip over loopback TCP.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Loopback {
    pub round_trip: Quantiles,
    /// CPU of the answering side for each.
    pub answer_cpu_us: f64,
}

/// What a loop that only reads the clock did not get of its core.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Core {
    pub taken_share: f64,
    /// Of that, what other programs on this host had; the rest is the hypervisor's and interrupts.
    pub taken_by_programs_share: f64,
    pub longest_gap_us: f64,
}

#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Host {
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
    pub disk: Disk,
    pub loopback: Loopback,
    pub core: Core,
}

impl Host {
    /// Takes about `seconds` for each of disk, loopback and core; files go into `folder` and are removed.
    pub fn measure(folder: &Path, seconds: f64, cores: &Cores) -> io::Result<Host> {
        process::pin_to(cores.server);
        let core = busy_core(Duration::from_secs_f64(seconds));
        let disk = Disk::measure(folder, Duration::from_secs_f64(seconds / 2.0))?;
        let loopback = loopback(Duration::from_secs_f64(seconds), cores)?;
        let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Ok(Host {
            cpu: cpu.unwrap_or("unknown CPU").trim().to_owned(),
            cores: cpus.lines().filter(|line| line.starts_with("processor")).count(),
            kernel: kernel.trim().to_owned(),
            disk,
            loopback,
            core,
        })
    }
}

/// Cores that share hardware with `core`, itself among them.
pub(super) fn siblings(core: usize) -> Vec<usize> {
    let path = format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // "0,32" or "0-1"
    let ranges = text.trim().split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
    });
    ranges.flatten().collect()
}

impl Disk {
    fn measure(folder: &Path, each: Duration) -> io::Result<Disk> {
        let path = folder.join("disk");
        let open = |flags| {
            OpenOptions::new().read(true).write(true).create(true).truncate(true).custom_flags(flags).open(&path)
        };
        let mut block = vec![b'x'; CHUNK_BYTES + ALIGNMENT];
        let aligned = block.as_ptr().align_offset(ALIGNMENT);
        let block = &mut block[aligned..aligned + CHUNK_BYTES];
        // Some file systems take the flag and refuse the write.
        let direct = open(libc::O_DIRECT).is_ok_and(|file| file.write_all_at(&block[..ALIGNMENT], 0).is_ok());
        let flags = if direct { libc::O_DIRECT } else { 0 };

        let sync_4k = appends(&open(flags)?, &block[..4 << 10], each)?;
        let sync_64k = appends(&open(flags)?, &block[..64 << 10], each)?;
        let file = open(flags)?;
        let began = Instant::now();
        let mut written = 0;
        while began.elapsed() < each && written < SEQUENTIAL_BYTES_MAX {
            file.write_all_at(block, written)?;
            written += CHUNK_BYTES as u64;
        }
        file.sync_data()?;
        let write_mb_per_s = written as f64 / 1e6 / began.elapsed().as_secs_f64();
        let began = Instant::now();
        let mut read = 0;
        while began.elapsed() < each && read < written {
            file.read_exact_at(block, read)?;
            read += CHUNK_BYTES as u64;
        }
        let read_mb_per_s = read as f64 / 1e6 / began.elapsed().as_secs_f64();
        drop(file);
        std::fs::remove_file(&path)?;
        Ok(Disk { direct, sync_4k, sync_64k, write_mb_per_s, read_mb_per_s })
    }
}

/// Appends `bytes` again and again, each synced.
fn appends(file: &File, bytes: &[u8], each: Duration) -> io::Result<Quantiles> {
    let mut times = Vec::new();
    let began = Instant::now();
    while times.is_empty() || (began.elapsed() < each && times.len() < SYNCS_MAX) {
        let from = Instant::now();
        file.write_all_at(bytes, (times.len() * bytes.len()) as u64)?;
        file.sync_data()?;
        times.push(from.elapsed().as_nanos() as u64);
    }
    Ok(Quantiles::of(times))
}

/// Answers on the server's core, asks on the load's.
fn loopback(each: Duration, cores: &Cores) -> io::Result<Loopback> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let core = cores.server;
    let answer = move || -> io::Result<u64> {
        process::pin_to(core);
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut bytes = [0; ECHO_BYTES];
        let before = own_schedule().0;
        while stream.read_exact(&mut bytes).is_ok() {
            stream.write_all(&bytes)?;
        }
        Ok(own_schedule().0 - before)
    };
    let answering = std::thread::Builder::new().name("answer".into()).spawn(answer)?;
    process::pin_to(cores.load);
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut bytes = [0; ECHO_BYTES];
    let mut times = Vec::new();
    let began = Instant::now();
    while began.elapsed() < each {
        let from = Instant::now();
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
        times.push(from.elapsed().as_nanos() as u64);
    }
    drop(stream);
    let cpu_ns = answering.join().map_err(|_| io::Error::other("the answering thread died"))??;
    let answer_cpu_us = cpu_ns as f64 / 1e3 / times.len().max(1) as f64;
    Ok(Loopback { round_trip: Quantiles::of(times), answer_cpu_us })
}

/// Keeps the core busy for so long.
fn busy_core(each: Duration) -> Core {
    let (mut taken, mut longest) = (Duration::ZERO, Duration::ZERO);
    let (began, waited) = (Instant::now(), own_schedule().1);
    let mut last = began;
    while last - began < each {
        let now = Instant::now();
        let gap = now - last;
        if gap >= Duration::from_micros(GAP_US_MIN) {
            taken += gap;
            longest = longest.max(gap);
        }
        last = now;
    }
    let all = (last - began).as_secs_f64();
    let by_programs = (own_schedule().1 - waited) as f64 / 1e9 / all;
    let taken_share = taken.as_secs_f64() / all;
    Core {
        taken_share,
        taken_by_programs_share: by_programs.min(taken_share),
        longest_gap_us: longest.as_secs_f64() * 1e6,
    }
}

/// (ns on a core, ns waiting for one) of the calling thread; zeros where the kernel does not keep them.
fn own_schedule() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let mut fields = text.split_whitespace().map(|field| field.parse().unwrap_or(0));
    (fields.next().unwrap_or(0), fields.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_times() {
        let q = Quantiles::of((1..=101).rev().map(|us| us * 1000).collect());
        assert_eq!((q.p50_us, q.p99_us, q.max_us), (51.0, 100.0, 101.0));
        assert_eq!(Quantiles::of(Vec::new()).max_us, 0.0);
    }

    #[test]
    fn the_disk_is_measured_and_nothing_of_it_is_left() {
        let folder = std::env::temp_dir().join(format!("tidegate-bench-test-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let disk = Disk::measure(&folder, Duration::from_millis(20)).unwrap();
        assert!(disk.sync_4k.p50_us > 0.0 && disk.sync_64k.p99_us >= disk.sync_64k.p50_us, "{disk:?}");
        assert!(disk.write_mb_per_s > 0.0 && disk.read_mb_per_s > 0.0, "{disk:?}");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        std::fs::remove_dir(&folder).unwrap();
    }
}
