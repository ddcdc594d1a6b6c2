//! Latencies, and what the server's process and this one cost.
//!
//! ```text
//!   intended ──── lag of this process ──── actual ──── server, sockets, disk ──── seen
//!   └────────────────── "intended" latency: what a user waits ─────────────────────┘
//!                                          └────────── "actual" latency ───────────┘
//! ```

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::sync::OnceLock;

/// Highest latency told apart, in tenths of a µs: 100 s.
const LATENCY_MAX: u64 = 1_000_000_000;

/// One kind of latency, from the intended and from the actual send time.
pub struct Latency {
    intended: Histogram<u64>,
    actual: Histogram<u64>,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX, 3).expect("constant bounds are valid")
}

impl Latency {
    pub fn new() -> Latency {
        Latency { intended: histogram(), actual: histogram() }
    }

    /// Times in ns.
    pub fn record(&mut self, intended: u64, actual: u64, seen: u64) {
        self.intended.saturating_record(seen.saturating_sub(intended) / 100);
        self.actual.saturating_record(seen.saturating_sub(actual) / 100);
    }

    pub fn report(&self) -> Value {
        json!({ "intended": quantiles(&self.intended), "actual": quantiles(&self.actual) })
    }
}

fn quantiles(h: &Histogram<u64>) -> Value {
    let us = |tenths: u64| tenths as f64 / 10.0;
    json!({
        "count": h.len(),
        "p50_us": us(h.value_at_quantile(0.50)),
        "p99_us": us(h.value_at_quantile(0.99)),
        "p999_us": us(h.value_at_quantile(0.999)),
        "max_us": us(h.max()),
    })
}

/// How late this process was with its own sends.
pub struct Lag(Histogram<u64>);

impl Lag {
    pub fn new() -> Lag {
        Lag(histogram())
    }

    pub fn record(&mut self, intended: u64, actual: u64) {
        self.0.saturating_record(actual.saturating_sub(intended) / 100);
    }

    pub fn p99_us(&self) -> f64 {
        self.0.value_at_quantile(0.99) as f64 / 10.0
    }

    pub fn report(&self) -> Value {
        quantiles(&self.0)
    }
}

/// CPU time of all threads of `pid`, ns: exact run time, or ticks of 10 ms where the kernel does not keep it.
pub fn process_cpu_ns(pid: u32) -> u64 {
    let exact = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    let threads: Option<Vec<u64>> =
        fs::read_dir(format!("/proc/{pid}/task")).ok().map(|tasks| tasks.flatten().filter_map(exact).collect());
    match threads {
        Some(threads) if threads.iter().sum::<u64>() > 0 => threads.iter().sum(),
        _ => {
            let (user, kernel) = ticks(pid).unwrap_or((0, 0));
            (user + kernel) * 10_000_000
        }
    }
}

/// CPU time of the kernel's softirq daemons of the cores that `pid` is pinned to, ns; none where it is not pinned.
///
/// Loopback delivers within the sender's softirq, on the sender's account, until one enter has sent so much that the kernel leaves the
/// rest to `ksoftirqd/N`. Without it a server with a few large batches seems cheaper than one with many small: 16 % were seen.
fn softirq_daemons_ns(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from).max(cores_busy_ns().len());
    let pinned: Vec<usize> = listed(allowed.trim()).collect();
    if pinned.len() >= cores {
        return 0;
    }
    let daemon = |core: &usize| DAEMONS.get_or_init(softirq_daemons).get(core).copied();
    pinned.iter().filter_map(daemon).map(process_cpu_ns).sum()
}

/// Core → pid.
static DAEMONS: OnceLock<HashMap<usize, u32>> = OnceLock::new();

fn softirq_daemons() -> HashMap<usize, u32> {
    let named = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        Some((name.trim().strip_prefix("ksoftirqd/")?.parse().ok()?, pid))
    };
    fs::read_dir("/proc").map(|entries| entries.flatten().filter_map(named).collect()).unwrap_or_default()
}

/// Numbers of a list such as `0,2-4`.
fn listed(list: &str) -> impl Iterator<Item = usize> {
    list.split(',').flat_map(|part| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let ends = from.parse::<usize>().ok().zip(to.parse::<usize>().ok());
        ends.map_or(0..0, |(from, to)| from..to + 1)
    })
}

/// (user, kernel) time of `pid` in ticks of 10 ms.
fn ticks(pid: u32) -> Option<(u64, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    Some((fields.get(11)?.parse().ok()?, fields.get(12)?.parse().ok()?))
}

/// Resident memory of `pid`, KiB.
pub fn process_rss_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Busy time of each core of the machine, ns, in ticks of 10 ms.
fn cores_busy_ns() -> Vec<u64> {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let cores = text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "));
    let busy = |line: &str| {
        let fields: Vec<u64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; guests are in user already.
        [0, 1, 2, 5, 6, 7].iter().filter_map(|at| fields.get(*at)).sum::<u64>() * 10_000_000
    };
    cores.map(busy).collect()
}

/// A reading of time and of both processes' CPU; two of them bound a measured interval.
#[derive(Clone)]
pub struct Reading {
    pub at: u64,
    pub server_ns: u64,
    pub own_ns: u64,
    /// (user, kernel) of the server, ticks.
    server_ticks: (u64, u64),
    cores_ns: Vec<u64>,
}

impl Reading {
    pub fn take(now: u64, server: Option<u32>) -> Reading {
        Reading {
            at: now,
            server_ns: server.map_or(0, |pid| process_cpu_ns(pid) + softirq_daemons_ns(pid)),
            own_ns: process_cpu_ns(std::process::id()),
            server_ticks: server.and_then(ticks).unwrap_or((0, 0)),
            cores_ns: cores_busy_ns(),
        }
    }

    /// (seconds, server's cores used, own cores used) since `earlier`.
    pub fn since(&self, earlier: &Reading) -> (f64, f64, f64) {
        let ns = (self.at.saturating_sub(earlier.at)).max(1) as f64;
        let share = |now: u64, then: u64| now.saturating_sub(then) as f64 / ns;
        (ns / 1e9, share(self.server_ns, earlier.server_ns), share(self.own_ns, earlier.own_ns))
    }

    /// Share of the server's CPU time since `earlier` that it spent in the kernel; none where it used none.
    pub fn kernel_share_since(&self, earlier: &Reading) -> Option<f64> {
        let user = self.server_ticks.0.saturating_sub(earlier.server_ticks.0);
        let kernel = self.server_ticks.1.saturating_sub(earlier.server_ticks.1);
        (user + kernel > 0).then(|| kernel as f64 / (user + kernel) as f64)
    }

    /// Share of each core of the machine that anybody used since `earlier`.
    pub fn cores_since(&self, earlier: &Reading) -> Vec<f64> {
        let ns = (self.at.saturating_sub(earlier.at)).max(1) as f64;
        self.cores_ns.iter().zip(&earlier.cores_ns).map(|(now, then)| now.saturating_sub(*then) as f64 / ns).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_generator_is_charged_in_intended_time_only() {
        let mut latency = Latency::new();
        latency.record(1_000_000, 6_000_000, 7_000_000);
        let report = latency.report();
        assert!((report["intended"]["p50_us"].as_f64().unwrap() - 6000.0).abs() < 6.0, "{report}");
        assert!((report["actual"]["p50_us"].as_f64().unwrap() - 1000.0).abs() < 1.0, "{report}");
    }

    #[test]
    fn lists_of_cores_are_read() {
        assert_eq!(listed("0,2-4").collect::<Vec<_>>(), [0, 2, 3, 4]);
        assert_eq!(listed("").count() + listed("x-2").count(), 0);
    }

    #[test]
    fn this_process_has_cpu_and_memory() {
        let pid = std::process::id();
        assert!(process_rss_kib(pid) > 0);
        let before = process_cpu_ns(pid);
        // Ends, or this process is not charged for what it does. Threads of other tests that end take their time along.
        while process_cpu_ns(pid) <= before {
            std::hint::black_box(pid);
        }
    }
}
