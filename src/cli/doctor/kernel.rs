//! The kernel's version, and whether this process may use io_uring with all that the server asks of it.

use super::Wanted;
use super::finding::Findings;
use super::host::Host;
use crate::ring::{Ring, RingConfig, Waker};

const VERSION_MIN: (u32, u32) = (6, 1);
/// CAP_SYS_ADMIN: what `io_uring_disabled=1` asks for.
const SYS_ADMIN: u32 = 21;

pub fn check(host: &Host, _: &Wanted<'_>, out: &mut Findings) {
    let release = host.text("proc/sys/kernel/osrelease").unwrap_or_default();
    match version_of(&release) {
        Some(version) if version < VERSION_MIN => out.wrong(
            "kernel",
            format!("Linux {release}"),
            "io_uring of this kernel lacks operations that the server uses",
            "install Linux 6.1 or newer",
        ),
        Some(_) => out.ok("kernel", format!("Linux {release}")),
        None => out.note("kernel", "its version is not known", "the server needs Linux 6.1 or newer", "uname -r"),
    }
    if !sysctl(host, out) {
        return;
    }
    if !host.is_live() {
        return;
    }
    let opened = Waker::new().map_err(|error| error.to_string());
    match opened.and_then(|waker| Ring::open(&RingConfig::SMALLEST, waker).map_err(|why| why.to_string())) {
        Ok(_) => out.ok("io_uring", "a ring opens, and has every operation and feature that the server uses"),
        Err(why) => out.wrong(
            "io_uring",
            why,
            "without io_uring the server does not start",
            "the line above says what to change",
        ),
    }
}

/// False where nothing more can be said.
fn sysctl(host: &Host, out: &mut Findings) -> bool {
    let why = "without io_uring the server does not start";
    let mend = "sysctl -w kernel.io_uring_disabled=0";
    let setting = host.number("proc/sys/kernel/io_uring_disabled");
    match setting {
        Some(2) => {
            out.wrong("io_uring", "kernel.io_uring_disabled is 2: nobody may use io_uring", why, mend);
            false
        }
        Some(1) if !host.is_capable(SYS_ADMIN) && !is_in_group(host) => {
            let what = "kernel.io_uring_disabled is 1: only the group kernel.io_uring_group may use io_uring, and this process is not in it";
            out.wrong("io_uring", what, why, format!("{mend}, or put the server's user into that group"));
            false
        }
        Some(_) => {
            out.ok("io_uring", "kernel.io_uring_disabled lets this process use io_uring");
            true
        }
        // Kernels before 6.6 have no such setting.
        None => true,
    }
}

fn is_in_group(host: &Host) -> bool {
    let Some(group) = host.text("proc/sys/kernel/io_uring_group") else { return false };
    let groups = host.status("Groups").unwrap_or_default();
    let own = host.status("Gid").unwrap_or_default();
    groups.split_whitespace().chain(own.split_whitespace()).any(|one| one == group)
}

fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|byte: char| !byte.is_ascii_digit()).map(|digits| digits.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}
