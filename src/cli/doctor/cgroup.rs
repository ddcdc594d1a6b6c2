//! What the control groups above the process leave to it: CPU time, memory, disk. Both versions.
//!
//! ```text
//!   /proc/self/cgroup   0::/a/b            version 2: cpu.max, memory.max, io.max in a/b, a and the root
//!                       4:memory:/a/b      version 1: one hierarchy for each controller
//! ```

use super::Wanted;
use super::finding::Findings;
use super::host::Host;

pub fn check(host: &Host, wanted: &Wanted<'_>, out: &mut Findings) {
    let before = out.0.len();
    for folder in folders(host) {
        cpu(host, &folder, wanted, out);
        memory(host, &folder, wanted, out);
        disk(host, &folder, out);
    }
    if out.0.len() == before {
        out.ok("cgroup", "no bound on CPU time, memory or disk");
    }
}

/// Every group that the process is in, from its own up, as folders below the mounts of the hierarchies.
fn folders(host: &Host) -> Vec<String> {
    let mut folders = Vec::new();
    let mounts = host.mounts();
    for line in host.of_process("cgroup").unwrap_or_default().lines() {
        let mut parts = line.splitn(3, ':');
        let (_, Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let mount = mounts.iter().find(|mount| match controllers {
            "" => mount.kind == "cgroup2",
            names => mount.kind == "cgroup" && names.split(',').all(|name| mount.options.iter().any(|o| o == name)),
        });
        let Some(point) = mount.and_then(|mount| mount.point.to_str()) else { continue };
        let mut path = path.trim_end_matches('/');
        loop {
            folders.push(format!("{point}{path}"));
            let Some((above, _)) = path.rsplit_once('/') else { break };
            path = above;
        }
    }
    folders
}

fn cpu(host: &Host, folder: &str, wanted: &Wanted<'_>, out: &mut Findings) {
    let quota = host.text(&format!("{folder}/cpu.max")).and_then(|text| {
        let (quota, period) = text.split_once(' ')?;
        Some((quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?))
    });
    let of_version_1 = || {
        let quota = host.number(&format!("{folder}/cpu.cfs_quota_us"))?;
        Some((quota, host.number(&format!("{folder}/cpu.cfs_period_us"))?))
    };
    let Some((quota, period)) = quota.or_else(of_version_1).filter(|(_, period)| *period > 0) else { return };
    let cores = quota as f64 / period as f64;
    let what = format!("{}: CPU time of {cores:.2} cores for {} shards", folder, wanted.shards);
    let why = "who has used up a period's time stands still until the next one: tens of milliseconds for every client";
    let mend = "CPUQuota= (empty) in the unit, or no --cpus for the container; bind it to cores of its own instead (CPUAffinity=, cpuset)";
    if cores < f64::from(wanted.shards) {
        out.warning("cgroup CPU", what, why, mend);
    } else {
        out.note("cgroup CPU", what, why, mend);
    }
}

fn memory(host: &Host, folder: &str, wanted: &Wanted<'_>, out: &mut Findings) {
    // Version 1 writes "no bound" as a number near 2^63.
    let bound = |file: &str| host.number(&format!("{folder}/{file}")).filter(|bytes| *bytes < 1 << 60);
    let plan = wanted.plan_bytes;
    let mend =
        format!("MemoryMax={} in the unit, or lower the plan (`tidegate check-config` shows it)", plan + plan / 4);
    if let Some(max) = bound("memory.max").or_else(|| bound("memory.limit_in_bytes")) {
        let what = format!("{}: {} MiB, the plan is {} MiB", folder, max >> 20, plan >> 20);
        if max < plan {
            out.wrong("cgroup memory", what, "all bounds reached at once, the kernel kills the server", mend);
        } else {
            out.ok("cgroup memory", what);
        }
    } else if let Some(high) = bound("memory.high").filter(|high| *high < plan) {
        let what = format!("{}: slowed down from {} MiB on, the plan is {} MiB", folder, high >> 20, plan >> 20);
        out.warning("cgroup memory", what, "above it every allocation of the server waits", mend);
    }
}

fn disk(host: &Host, folder: &str, out: &mut Findings) {
    let mut rules = Vec::new();
    for file in [
        "io.max",
        "blkio.throttle.write_iops_device",
        "blkio.throttle.write_bps_device",
        "blkio.throttle.read_iops_device",
        "blkio.throttle.read_bps_device",
    ] {
        let text = host.text(&format!("{folder}/{file}")).unwrap_or_default();
        rules.extend(text.lines().filter(|line| !line.is_empty()).map(|line| format!("{file} {line}")));
    }
    if !rules.is_empty() {
        out.warning(
            "cgroup disk",
            format!("{}: {}", folder, rules.join("; ")),
            "acknowledgements wait for the disk: what throttles it throttles every publisher",
            "no IOWriteIOPSMax=, IOWriteBandwidthMax= and the like in the unit; on version 1: echo 'MAJOR:MINOR 0' > the file",
        );
    }
}
