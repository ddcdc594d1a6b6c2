#!/usr/bin/env python3
"""`tidegate doctor` names each wrong setting that is planted on this machine, and those of a machine that is made of files.

    plant (ulimit, tmpfs, mode, cores, a network namespace, a cgroup) ─► doctor --json ─► the finding, its level, what mends it
    files of another machine below a folder ─► doctor --root
    the limits that it asks for ─► a server starts with them, and not with less
"""

import contextlib
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import tempfile
import time

from disk_mount import Disk, Impossible
from tide import binary, environment, free_port

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
CAP_SYS_RESOURCE = 1 << 24
FLAGS = ["--set", "connections_per_shard_max=1000", "--set", "memory_budget_bytes=64GiB"]


class Doctor:
    def __init__(self, folder):
        self.folder = folder
        self.data = os.path.join(folder, "data")
        os.mkdir(self.data, 0o700)
        # Where another user runs it.
        self.binary = os.path.join(folder, "tidegate")
        shutil.copy2(binary(), self.binary)
        os.chmod(self.binary, 0o755)
        os.chmod(folder, 0o755)

    def asks(self, *flags, before=(), data=None, shards="2", **options):
        """Runs it; returns (exit status, findings)."""
        words = [*before, self.binary, "doctor", "--json", *FLAGS, "--shards", shards, "--data", data or self.data, *flags]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment(), **options)
        assert done.returncode in (0, 1), (words, done.stdout, done.stderr)
        report = json.loads(done.stdout)
        wrong = sum(finding["level"] == "wrong" for finding in report["findings"])
        assert report["counts"]["wrong"] == wrong and (done.returncode == 1) == (wrong > 0), report["counts"]
        for finding in report["findings"]:
            assert finding["level"] in ("ok", "note") or (finding["why"] and finding["mend"]), finding
        return done.returncode, report["findings"]

    def names(self, what, level, mend, *flags, **options):
        """It must name `what` (the check) at that level, with `mend` in what mends it."""
        status, findings = self.asks(*flags, **options)
        found = [f for f in findings if f["check"] == what and f["level"] == level and mend in f["mend"]]
        assert found, f"{what}: {level} {mend!r} is not among {json.dumps([f for f in findings if f['check'] == what], indent=1)}"
        assert level != "wrong" or status == 1
        return found[0]


def limits(doctor):
    doctor.names("open files", "wrong", "LimitNOFILE=", before=["prlimit", "--nofile=64:64"])
    capabilities = re.search(r"^CapEff:\s*(\w+)$", pathlib.Path("/proc/self/status").read_text(), re.MULTILINE)[1]
    by_hand = "ulimit -Hn" if int(capabilities, 16) & CAP_SYS_RESOURCE else "limits.conf"
    doctor.names("open files", "wrong", by_hand, before=["prlimit", "--nofile=1000:1000"])
    doctor.names("open files", "ok", "", before=["prlimit", "--nofile=1300:1300"])
    if os.geteuid() == 0:
        doctor.names("locked memory", "wrong", "LimitMEMLOCK=", before=["prlimit", "--memlock=65536:65536", *NOBODY])
        locked_memory_is_as_it_says(doctor)
    elif resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] >= 65536:
        doctor.names("locked memory", "wrong", "LimitMEMLOCK=", before=["prlimit", "--memlock=65536:65536"])
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == resource.RLIM_INFINITY:
        pattern = pathlib.Path("/proc/sys/kernel/core_pattern").read_text()
        level = "note" if pattern.startswith(("|", "/")) else "warning"
        doctor.names("core dump", level, "LimitCORE=0", before=["prlimit", "--core=unlimited:unlimited"])


def locked_memory_is_as_it_says(doctor):
    """A server of a user without privileges starts with what the doctor asks for, and with less than half of it does not."""
    for shards in ("1", "4"):
        little = ["prlimit", "--memlock=4096:4096", *NOBODY]
        finding = doctor.names("locked memory", "wrong", "LimitMEMLOCK=", shards=shards, before=little)
        need = int(re.search(r"shards need (\d+) KiB", finding["what"])[1]) << 10
        # The kernel takes the rings of a server that has ended off its user's account some time after.
        assert any(serves(doctor, shards, need) or time.sleep(0.2) for _ in range(50)), (shards, need)
        assert not serves(doctor, shards, need // 2 - 65536), (shards, need)


def serves(doctor, shards, limit):
    data = tempfile.mkdtemp(prefix="data-", dir=doctor.folder)
    os.chown(data, 65534, 65534)
    listen = f"127.0.0.1:{free_port()}"
    words = ["prlimit", f"--memlock={limit}:{limit}", *NOBODY, doctor.binary, "serve", "--listen", listen, "--data", data]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*words, *FLAGS, "--shards", shards], **pipes, env=environment())
    try:
        for line in process.stdout:
            if line.startswith("ready "):
                return True
        why = process.stderr.read()
        assert "memlock" in why or "Locked" in why or "locked" in why, why
        return False
    finally:
        process.kill()
        process.communicate()


def data_folder(doctor):
    doctor.names("data folder", "note", "", data=os.path.join(doctor.folder, "not", "yet"))
    os.chmod(doctor.data, 0o755)
    doctor.names("data folder", "warning", "chmod 700", data=doctor.data)
    os.chmod(doctor.data, 0o700)
    if subprocess.run(["stat", "-f", "-c", "%T", "/dev/shm"], capture_output=True, text=True).stdout.strip() == "tmpfs":
        with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
            doctor.names("data folder", "wrong", "ext4", data=memory)
    assert os.listdir(doctor.data) == [], "what was tried leaves nothing behind"
    with contextlib.suppress(Impossible), Disk(mib=24) as disk:
        assert "free" in doctor.names("data folder", "warning", "segment_bytes", data=disk.path)["what"]
        subprocess.run(["mount", "-o", "remount,nobarrier", disk.path], check=True)
        doctor.names("data folder", "wrong", "barrier=1", data=disk.path)
        subprocess.run(["mount", "-o", "remount,ro", disk.path], check=True)
        doctor.names("data folder", "wrong", "remount,rw", data=disk.path)
        print("small disks: named", flush=True)


def cores(doctor):
    first = min(os.sched_getaffinity(0))
    doctor.names("cores", "warning", "--shards 1", before=["taskset", "-c", str(first)])


def network(doctor):
    """A network namespace of our own has settings of its own."""
    for unshare in (["unshare", "-n"], ["unshare", "-Urn"]):
        # Never on the machine itself: without a namespace the test is skipped.
        if subprocess.run([*unshare, "true"], capture_output=True).returncode == 0:
            break
    else:
        return print("SKIPPED: no network namespace here", flush=True)
    planted = {
        "net/core/somaxconn": ("128", "backlog", "warning", "somaxconn="),
        "net/ipv4/tcp_abort_on_overflow": ("1", "overflow", "warning", "tcp_abort_on_overflow=0"),
        "net/ipv4/tcp_syncookies": ("0", "half-open", "warning", "tcp_syncookies=1"),
        "net/ipv4/ip_local_port_range": ("7000 8000", "ports", "warning", "ip_local_reserved_ports=7777"),
    }
    for path, (value, check, level, mend) in planted.items():
        shell = f'echo "{value}" > /proc/sys/{path} && exec "$@"'
        doctor.names(check, level, mend, before=[*unshare, "sh", "-c", shell, "sh"])
    print("network namespace: named", flush=True)


def groups(doctor):
    """A control group with little memory, half a core, few writes; version 1 or 2, whichever this machine lets us have."""
    if os.geteuid() != 0:
        return print("SKIPPED: no control group without root", flush=True)
    done = 0
    device = os.stat(doctor.data).st_dev
    device = f"{os.major(device)}:{os.minor(device)}"
    plants = {
        "memory.limit_in_bytes": (str(256 << 20), "cgroup memory", "wrong", "MemoryMax="),
        "memory.max": (str(256 << 20), "cgroup memory", "wrong", "MemoryMax="),
        "cpu.cfs_quota_us": ("50000", "cgroup CPU", "warning", "CPUQuota="),
        "cpu.max": ("50000 100000", "cgroup CPU", "warning", "CPUQuota="),
        "blkio.throttle.write_iops_device": (f"{device} 100000", "cgroup disk", "warning", "IOWriteIOPSMax="),
        "io.max": (f"{device} wiops=100000", "cgroup disk", "warning", "IOWriteIOPSMax="),
    }
    for line in pathlib.Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split()
        if kind not in ("cgroup", "cgroup2"):
            continue
        group = pathlib.Path(point, f"tidegate-doctor-{os.getpid()}")
        with contextlib.suppress(OSError):
            group.mkdir()
        try:
            for file, (value, check, level, mend) in plants.items():
                if not (group / file).exists():
                    continue
                try:
                    (group / file).write_text(value)
                except OSError:
                    continue  # a virtual device that cannot be throttled
                enter = f'echo $$ > {group}/cgroup.procs && exec "$@"'
                doctor.names(check, level, mend, before=["sh", "-c", enter, "sh"])
                done += 1
        finally:
            with contextlib.suppress(OSError):
                group.rmdir()
    print(f"control groups: {done} bounds named", flush=True)


def another_process(doctor):
    """A server that runs under a service manager has limits of its own."""
    process = subprocess.Popen(["prlimit", "--nofile=64:64", "sleep", "60"])
    try:
        while pathlib.Path(f"/proc/{process.pid}/comm").read_text() != "sleep\n":
            time.sleep(0.01)
        finding = doctor.names("open files", "wrong", "LimitNOFILE=", "--pid", str(process.pid))
        assert "the limit is 64" in finding["what"], finding
    finally:
        process.kill()
        process.wait()


FILES = {
    "proc/self/status": "CapEff:\t0\nCpus_allowed_list:\t0-1\n",
    "proc/self/limits": "Max open files  65536  65536  files\nMax locked memory  8388608  8388608  bytes\n",
    "proc/self/mountinfo": "1 0 8:0 / / rw - ext4 /dev/sda rw\n",
    "proc/sys/kernel/osrelease": "6.8.0",
}


def another_machine(doctor):
    """What cannot be planted here is planted in files."""
    planted = {
        "sys/devices/system/clocksource/clocksource0/current_clocksource": ("hpet", "clock source", "warning", "tsc"),
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": ("powersave", "governor", "warning", "cpupower"),
        "sys/kernel/mm/transparent_hugepage/enabled": ("[always] madvise never", "huge pages", "warning", "madvise"),
        "proc/swaps": ("Filename\n/dev/sda2 partition 1 0 0", "swap", "warning", "swapoff"),
        "proc/sys/vm/overcommit_memory": ("2", "overcommit", "warning", "overcommit_memory=0"),
        "proc/sys/kernel/io_uring_disabled": ("2", "io_uring", "wrong", "io_uring_disabled=0"),
        "proc/sys/kernel/osrelease": ("5.10.0", "kernel", "wrong", "6.1"),
        "proc/sys/net/netfilter/nf_conntrack_max": ("1024", "conntrack", "warning", "nf_conntrack_max="),
        "proc/self/mountinfo": ("1 0 0:1 / / rw - nfs4 host:/x rw\n", "data folder", "wrong", "--data"),
    }
    for at, (path, (text, check, level, mend)) in enumerate(planted.items()):
        root = pathlib.Path(doctor.folder, f"root-{at}")
        for name, content in {**FILES, path: text}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)
        doctor.names(check, level, mend, "--root", str(root))
    print(f"another machine: {len(planted)} settings named", flush=True)


def text(doctor):
    """For people: levels, reasons, what mends it, a sum; and the names of what is wrong on stderr."""
    words = ["prlimit", "--nofile=64:64", doctor.binary, "doctor", *FLAGS, "--data", doctor.data]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment())
    assert done.returncode == 1 and "open files" in done.stderr, done
    lines = done.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("wrong    open files"))
    assert "why: " in lines[at + 1] and "mend: LimitNOFILE=" in lines[at + 2], lines[at : at + 3]
    assert re.fullmatch(r"\d+ wrong, \d+ warnings, \d+ notes, \d+ ok", lines[-1]), lines[-1]


def main():
    with tempfile.TemporaryDirectory(prefix="tidegate-doctor-") as folder:
        doctor = Doctor(folder)
        for part in (limits, data_folder, cores, network, groups, another_process, another_machine, text):
            part(doctor)
    print("doctor: passed", flush=True)


if __name__ == "__main__":
    main()
