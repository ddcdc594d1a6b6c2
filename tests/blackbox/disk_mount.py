"""Small real disks for the black-box tests: an ext4 image behind a loop device, or a tmpfs, of a few MiB.

    Disk(mib=24) ─► image ─► loop device ─► ext4 ─► path          fill() / free()   a ballast file takes and gives back the space
                                                                  break_()          the file system stops and goes read-only
                                                                  pull()            the file system answers everything with EIO
                                                                  throttle(pid, n)  n writes a second for one process

They need root and mounts. Where those are not allowed the tests say so and pass: `skip_unless_possible`.
"""

import contextlib
import fcntl
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

# ioctl(EXT4_IOC_SHUTDOWN) with EXT4_GOING_FLAGS_LOGFLUSH: what the journal holds is written, then nothing is.
EXT4_IOC_SHUTDOWN = 0x8004587D
GOING_FLAGS_LOGFLUSH = 1
CGROUP = "tidegate-slow-disk"


class Impossible(Exception):
    """This machine does not let us."""


def skip_unless_possible(what):
    """Ends the test with status 0 and a line that says why, where `what()` is impossible here."""
    try:
        return what()
    except Impossible as why:
        print(f"SKIPPED: {why}", flush=True)
        sys.exit(0)


def command(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise Impossible(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


class Disk:
    """One small file system; everything of it is gone after `close`. Its root serves as a data folder."""

    def __init__(self, kind="ext4", mib=24):
        if os.geteuid() != 0:
            raise Impossible("needs root, to mount a small file system")
        if not all(shutil.which(tool) for tool in ("mount", "umount", "mkfs.ext4", "losetup")):
            raise Impossible("needs mount, umount, losetup and mkfs.ext4 (e2fsprogs)")
        self.kind = kind
        self.folder = tempfile.mkdtemp(prefix="tidegate-disk-")
        self.path = os.path.join(self.folder, "mnt")
        self.loop = None
        self.group = None
        os.mkdir(self.path)
        try:
            if kind == "tmpfs":
                command("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", self.path)
                return
            image = os.path.join(self.folder, "image")
            with open(image, "wb") as file:
                file.truncate(mib << 20)
            # No blocks kept back for root, who runs this.
            command("mkfs.ext4", "-q", "-m", "0", image)
            self.loop = command("losetup", "--find", "--show", image)
            self.mount()
        except BaseException:
            self.close()
            raise

    def mount(self, mode="rw"):
        command("mount", "-t", "ext4", "-o", f"errors=remount-ro,{mode}", self.loop, self.path)

    def unmount(self):
        command("umount", self.path)

    def repair(self):
        """What an operator does after a fault: unmount, check, mount again."""
        self.unmount()
        done = subprocess.run(["e2fsck", "-fy", self.loop], capture_output=True, text=True)
        if done.returncode > 2:
            raise AssertionError(f"e2fsck: {done.stdout}{done.stderr}")
        self.mount()

    def left(self):
        """Bytes that a file may still take."""
        state = os.statvfs(self.path)
        return state.f_bavail * state.f_frsize

    def fill(self, leave=0):
        """Takes all space but `leave` bytes."""
        with open(os.path.join(self.path, ".ballast"), "ab") as ballast:
            size = max(0, self.left() - leave)
            while size >= 4096:
                try:
                    os.posix_fallocate(ballast.fileno(), ballast.seek(0, os.SEEK_END), size)
                    size = max(0, self.left() - leave)
                except OSError:
                    size //= 2

    def free(self):
        os.unlink(os.path.join(self.path, ".ballast"))

    def break_(self):
        """ext4 finds itself inconsistent: every write from now on is refused as read-only."""
        trigger = pathlib.Path("/sys/fs/ext4", os.path.basename(self.loop), "trigger_fs_error")
        try:
            trigger.write_text("a test")
        except OSError as why:
            raise Impossible(f"{trigger}: {why}") from None

    def pull(self):
        """The disk is gone: everything fails."""
        folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, EXT4_IOC_SHUTDOWN, struct.pack("I", GOING_FLAGS_LOGFLUSH))
        except OSError as why:
            raise Impossible(f"EXT4_IOC_SHUTDOWN: {why}") from None
        finally:
            os.close(folder)

    def throttle(self, pid, writes_per_second):
        """The process `pid` gets so many writes a second on this disk, and no more."""
        device = os.stat(self.loop).st_rdev
        device = f"{os.major(device)}:{os.minor(device)}"
        for root, file, line in self.throttles(device, writes_per_second):
            group = root / f"{CGROUP}-{os.getpid()}"
            try:
                group.mkdir(exist_ok=True)
                self.group = group
                (group / file).write_text(line)
                (group / "cgroup.procs").write_text(str(pid))
                return
            except OSError:
                self.drop_group()
        raise Impossible("no cgroup of this machine throttles writes (blkio of version 1, io of version 2)")

    @staticmethod
    def throttles(device, writes_per_second):
        """(root of the hierarchy, file, line) of both versions of cgroups, where they are."""
        for line in pathlib.Path("/proc/self/mounts").read_text().splitlines():
            _, path, kind, options, *_ = line.split()
            if kind == "cgroup" and "blkio" in options.split(","):
                yield pathlib.Path(path), "blkio.throttle.write_iops_device", f"{device} {writes_per_second}"
            elif kind == "cgroup2":
                root = pathlib.Path(path)
                with contextlib.suppress(OSError):
                    (root / "cgroup.subtree_control").write_text("+io")
                yield root, "io.max", f"{device} wiops={writes_per_second}"

    def drop_group(self):
        if self.group:
            with contextlib.suppress(OSError):
                self.group.rmdir()
            self.group = None

    def close(self):
        subprocess.run(["umount", "-l", self.path], capture_output=True)
        if self.loop:
            subprocess.run(["losetup", "--detach", self.loop], capture_output=True)
        self.drop_group()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


# Small files, so that a few MiB hold several of everything; nothing expires by itself.
SMALL = [
    f"--set={pair}"
    for pair in (
        "segment_bytes=1MiB segment_records_max=4096 commit_bytes_max=128KiB frame_bytes_max=64KiB event_bytes_max=8KiB hot_tail_bytes=1MiB "
        "group_close_bytes=16KiB checkpoint_bytes=2MiB retention_ms=0 retention_bytes=0 recluster_bytes_max=4MiB no_space_retry_ms=100ms"
    ).split()
]
