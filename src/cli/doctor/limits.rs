//! Open files and locked memory: what the plan needs against what the process is allowed.

use super::Wanted;
use super::finding::Findings;
use super::host::Host;

/// CAP_IPC_LOCK: locked memory is not counted.
const IPC_LOCK: u32 = 14;
/// CAP_SYS_RESOURCE: hard limits may be raised.
const SYS_RESOURCE: u32 = 24;

pub fn check(host: &Host, wanted: &Wanted<'_>, out: &mut Findings) {
    open_files(host, wanted, out);
    locked_memory(host, wanted, out);
}

fn open_files(host: &Host, wanted: &Wanted<'_>, out: &mut Findings) {
    // The server raises the soft limit to the hard one by itself.
    let Some((_, hard)) = host.limit("Max open files") else { return };
    let needs = &wanted.needs;
    let shards = wanted.shards;
    let count = needs.open_files_wanted;
    let mend = format!(
        "LimitNOFILE={count} in the unit, or {}{}",
        raise(host, "ulimit -Hn", "nofile", count),
        nr_open(host, count)
    );
    if hard < needs.open_files_min {
        let what = format!("the limit is {hard}, and {shards} shards need {} to start", needs.open_files_min);
        out.wrong("open files", what, "rings, segments and the folder are open files", mend);
    } else if hard < count {
        let spare = count - u64::from(wanted.config.connections_per_shard_max);
        let holds = hard.saturating_sub(spare);
        let what = format!(
            "the limit is {hard}: a shard holds {holds} connections of the {} configured",
            wanted.config.connections_per_shard_max
        );
        let why = "a ring's table of sockets may not be longer than this limit; who comes beyond gets 503";
        if needs.connections_chosen {
            out.wrong(
                "open files",
                what,
                "with connections_per_shard_max chosen the server refuses to start with less",
                mend,
            );
        } else {
            out.warning("open files", what, why, mend);
        }
    } else {
        out.ok("open files", format!("the limit is {hard}, wanted are {count}"));
    }
}

fn nr_open(host: &Host, count: u64) -> String {
    match host.number("proc/sys/fs/nr_open") {
        Some(most) if most < count => format!("; first `sysctl -w fs.nr_open={count}`, which is {most}"),
        _ => String::new(),
    }
}

fn locked_memory(host: &Host, wanted: &Wanted<'_>, out: &mut Findings) {
    let Some((soft, _)) = host.limit("Max locked memory") else { return };
    let need = wanted.needs.locked_bytes;
    if host.is_capable(IPC_LOCK) {
        return out.ok("locked memory", "CAP_IPC_LOCK: it is not counted");
    }
    let why = "the kernel counts the memory of rings against it, for all processes of a user together";
    let mend = format!("LimitMEMLOCK={} in the unit, or {}", 2 * need, raise(host, "ulimit -l", "memlock", need >> 9));
    let (have, kib) = (show(soft), need >> 10);
    if soft < need {
        out.wrong(
            "locked memory",
            format!("the limit is {have}, and {} shards need {kib} KiB", wanted.shards),
            why,
            mend,
        );
    } else if soft < 2 * need {
        let what = format!("the limit is {have}: enough for one server ({kib} KiB), not for two during a takeover");
        out.warning("locked memory", what, why, mend);
    } else {
        out.ok("locked memory", format!("the limit is {have}, wanted are {kib} KiB"));
    }
}

/// How whoever runs this raises a hard limit.
fn raise(host: &Host, command: &str, name: &str, value: u64) -> String {
    if host.is_capable(SYS_RESOURCE) {
        format!("`{command} {value}` before the start")
    } else {
        let lines = format!("`USER hard {name} {value}` and `USER soft {name} {value}`");
        format!("{lines} in /etc/security/limits.conf (there is no CAP_SYS_RESOURCE here)")
    }
}

fn show(bytes: u64) -> String {
    if bytes == u64::MAX { "none".into() } else { format!("{} KiB", bytes >> 10) }
}
