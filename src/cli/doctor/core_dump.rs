//! What a crash leaves behind.

use super::Wanted;
use super::finding::Findings;
use super::host::Host;

pub fn check(host: &Host, wanted: &Wanted<'_>, out: &mut Findings) {
    let (Some((soft, _)), Some(pattern)) =
        (host.limit("Max core file size"), host.text("proc/sys/kernel/core_pattern"))
    else {
        return;
    };
    let to_program = pattern.starts_with('|');
    // A program that takes cores is given them whatever the limit, unless it looks at it.
    if soft == 0 && !to_program {
        return out.note(
            "core dump",
            "none is written",
            "after a crash there is its log, and no more to look into",
            "LimitCORE=infinity in the unit, and a kernel.core_pattern on a disk with room, to have one",
        );
    }
    let what = format!("goes to {pattern:?}, up to {} MiB", wanted.plan_bytes >> 20);
    let why = "it holds events and keys of clients, and the next start waits until it is written";
    if to_program || pattern.starts_with('/') {
        out.note("core dump", what, why, "LimitCORE=0 in the unit, to have none");
    } else {
        let mend = "sysctl -w kernel.core_pattern='|/usr/lib/systemd/systemd-coredump %P %u %g %s %t %c %h', or LimitCORE=0 in the unit";
        out.warning("core dump", format!("{what}: a file in the folder where the server was started"), why, mend);
    }
}
