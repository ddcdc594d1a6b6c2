//! Memory: whether the plan fits, huge pages that nobody asked for, swap, and how the kernel promises memory.

use super::Wanted;
use super::finding::Findings;
use super::host::Host;
use crate::boot;

pub fn check(host: &Host, wanted: &Wanted<'_>, out: &mut Findings) {
    plan(host, wanted, out);
    huge_pages(host, out);
    swap(host, out);
    overcommit(host, wanted, out);
}

fn plan(host: &Host, wanted: &Wanted<'_>, out: &mut Findings) {
    let mib = wanted.plan_bytes >> 20;
    if host.is_live()
        && let Err(why) = boot::memory_plan(wanted.config).check()
    {
        return out.wrong(
            "memory plan",
            why,
            "the server does not start with a plan above its budget",
            "lower a bound of it, or --shards",
        );
    }
    match meminfo(host, "MemTotal") {
        Some(total) if total < wanted.plan_bytes => out.wrong(
            "memory plan",
            format!("{mib} MiB, and the machine has {}", total >> 20),
            "all bounds reached at once, the kernel ends the process",
            "lower bounds of the plan (`tidegate check-config` shows it), or --shards",
        ),
        Some(total) => out.ok("memory plan", format!("{mib} MiB at most, of {} MiB", total >> 20)),
        None => out.ok("memory plan", format!("{mib} MiB at most")),
    }
}

fn huge_pages(host: &Host, out: &mut Findings) {
    let Some(text) = host.text("sys/kernel/mm/transparent_hugepage/enabled") else { return };
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("", |(chosen, _)| chosen);
    if chosen == "always" {
        let why = "tables that are hardly used take 2 MiB at a time, beyond what the plan counts, and to make them stops a turn";
        let mend = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
        out.warning("huge pages", "always", why, mend);
    } else {
        out.ok("huge pages", chosen);
    }
}

fn swap(host: &Host, out: &mut Findings) {
    let swaps = host.text("proc/swaps").unwrap_or_default();
    let devices: Vec<&str> = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    if devices.is_empty() {
        return out.ok("swap", "none");
    }
    let swappiness = host.number("proc/sys/vm/swappiness").map_or_else(String::new, |n| format!(", vm.swappiness {n}"));
    out.warning(
        "swap",
        format!("{}{swappiness}", devices.join(", ")),
        "a page that was swapped out stops a whole shard until the disk has brought it back",
        "swapoff -a, or MemorySwapMax=0 in the unit",
    );
}

fn overcommit(host: &Host, wanted: &Wanted<'_>, out: &mut Findings) {
    let Some(mode) = host.number("proc/sys/vm/overcommit_memory") else { return };
    if mode != 2 {
        return out.ok("overcommit", format!("vm.overcommit_memory {mode}"));
    }
    let why =
        "the server reserves the tables of its plan and touches them as they fill; in this mode that counts at once";
    let mend = "sysctl -w vm.overcommit_memory=0";
    let left =
        meminfo(host, "CommitLimit").zip(meminfo(host, "Committed_AS")).map(|(limit, used)| limit.saturating_sub(used));
    match left {
        Some(left) if left < wanted.plan_bytes => {
            let what = format!(
                "vm.overcommit_memory 2 leaves {} MiB, the plan is {} MiB",
                left >> 20,
                wanted.plan_bytes >> 20
            );
            out.wrong("overcommit", what, why, mend);
        }
        _ => out.warning("overcommit", "vm.overcommit_memory 2", why, mend),
    }
}

/// A line of `/proc/meminfo`, bytes.
fn meminfo(host: &Host, name: &str) -> Option<u64> {
    let text = host.text("proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}
