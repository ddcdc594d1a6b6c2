//! The file system of the data folder: its type, its options, its room, and whether it takes direct writes.

use super::Wanted;
use super::finding::Findings;
use super::host::{Host, Mount};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

const CHECK: &str = "data folder";
/// Files of another machine or another program: no promise of a sync reaches a disk that we know.
const FAR: &[&str] = &["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "lustre", "virtiofs", "afs"];
/// Each overwrite goes elsewhere, and a sync writes a tree.
const COPY_ON_WRITE: &[&str] = &["btrfs", "zfs", "bcachefs"];
const KNOWN: &[&str] = &["ext4", "xfs"];

pub fn check(host: &Host, wanted: &Wanted<'_>, out: &mut Findings) {
    let path = wanted.data.display();
    let shown = wanted.config.data.display();
    if !wanted.is_made {
        out.note(
            CHECK,
            format!("{shown} does not exist yet: looked at {path}"),
            "the server makes it, for its user alone",
            "",
        );
    }
    let Some(mount) = host.mount_of(&wanted.data) else {
        return out.note(
            CHECK,
            format!("no mount is known for {path}"),
            "its file system decides what a sync is worth",
            "df -T",
        );
    };
    kind(&mount, out);
    options(&mount, out);
    if host.is_live() {
        mode(wanted, out);
        room(wanted, out);
    }
}

fn kind(mount: &Mount, out: &mut Findings) {
    let kind = mount.kind.as_str();
    let what = format!("{kind} on {}", mount.point.display());
    let move_it = "give a folder on a local disk with ext4 or xfs: --data";
    if matches!(kind, "tmpfs" | "ramfs" | "rootfs") {
        let why = "it is memory: everything acknowledged as `disk` is gone when the machine stops";
        out.wrong(CHECK, what, why, move_it);
    } else if FAR.contains(&kind) || kind.starts_with("fuse") {
        let why = "what a sync, a lock and a direct write are worth there is another program's decision";
        out.wrong(CHECK, what, why, move_it);
    } else if kind == "overlay" {
        let why = "it is a container's own layer: gone with the container, and copied when an old file is written";
        out.wrong(CHECK, what, why, "mount a volume of the host at the data folder");
    } else if COPY_ON_WRITE.contains(&kind) {
        let why = "a log that writes in place is rewritten elsewhere each time: slower syncs, scattered files";
        out.note(
            CHECK,
            what,
            why,
            format!("{move_it}; or chattr +C on the empty folder (btrfs), logbias=throughput (zfs)"),
        );
    } else if KNOWN.contains(&kind) {
        out.ok(CHECK, what);
    } else {
        out.note(CHECK, what, "the server is tested on ext4, xfs and tmpfs", move_it);
    }
}

fn options(mount: &Mount, out: &mut Findings) {
    let has = |option: &str| mount.options.iter().any(|one| one == option);
    let remount = |option: &str| format!("mount -o remount,{option} {}, and in /etc/fstab", mount.point.display());
    if has("ro") {
        out.wrong(CHECK, "mounted read-only", "the server does not start", remount("rw"));
    }
    for option in ["nobarrier", "barrier=0"] {
        if has(option) {
            let why = "a sync returns while the disk still holds the data in its volatile cache: a power cut loses what was acknowledged";
            out.wrong(CHECK, format!("mounted with {option}"), why, remount("barrier=1"));
        }
    }
    if has("errors=continue") {
        let why = "after an error the file system goes on writing into what is broken";
        out.warning(CHECK, "mounted with errors=continue", why, remount("errors=remount-ro"));
    }
    if has("sync") || has("dirsync") {
        out.note(
            CHECK,
            "mounted with sync",
            "every write waits for the disk, also those that need not",
            remount("async"),
        );
    }
}

fn mode(wanted: &Wanted<'_>, out: &mut Findings) {
    if !wanted.is_made {
        return;
    }
    let Ok(about) = std::fs::metadata(&wanted.data) else { return };
    let mode = about.permissions().mode() & 0o777;
    if !about.is_dir() {
        return out.wrong(CHECK, "it is no folder", "the server does not start", "give a folder with --data");
    }
    if mode & 0o077 != 0 {
        let what = format!("mode {mode:03o}, of user id {}", about.uid());
        let why = "other users may read events and the keys of resume tokens";
        out.warning(CHECK, what, why, format!("chmod 700 {}", wanted.data.display()));
    }
}

fn room(wanted: &Wanted<'_>, out: &mut Findings) {
    let Some((left, size)) = space(&wanted.data) else { return };
    let shards = u64::from(wanted.shards);
    // The segment in use, one that is prepared, and what a job rewrites.
    let start = shards * (2 * wanted.config.segment_bytes + wanted.config.recluster_bytes_max);
    let kept = shards * wanted.config.retention_bytes;
    let what = format!("{} MiB of {} MiB are free", left >> 20, size >> 20);
    if left < start {
        let why = "when the disk is full publishers are refused, and a start may fail";
        out.warning(
            CHECK,
            format!("{what}, {shards} shards use {} MiB at once", start >> 20),
            why,
            "free some, or lower segment_bytes",
        );
    } else if kept > size {
        let what = format!("{what}, and retention_bytes lets {shards} shards keep {} MiB", kept >> 20);
        let why = "the disk is full before retention begins: publishers are refused then";
        out.warning(CHECK, what, why, format!("--set retention_bytes={}", size / 2 / shards));
    } else {
        out.ok(CHECK, what);
    }
}

/// Bytes that are free, and all.
fn space(path: &std::path::Path) -> Option<(u64, u64)> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: a plain C structure for which all zeroes is a valid value.
    let mut state: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends with a zero and `state` is writable.
    let failed = unsafe { libc::statvfs(path.as_ptr(), &raw mut state) };
    (failed == 0).then(|| (state.f_bavail * state.f_frsize, state.f_blocks * state.f_frsize))
}
