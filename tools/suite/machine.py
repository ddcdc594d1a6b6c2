"""Where a figure comes from, and how processes are put on cores."""

import os
import pathlib
import platform
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
RELEASE = TARGET / "release"


def pinned(cores):
    """Words that pin a command to cores, where there is more than one."""
    if isinstance(cores, int):
        cores = [cores]
    possible = len(os.sched_getaffinity(0)) > 1 and shutil.which("taskset")
    return ["taskset", "-c", ",".join(map(str, cores))] if possible else []


def first():
    """Words that let a command go before all others on its core, where that is allowed: it measures what others wait for."""
    words = ["chrt", "--rr", "1"]
    allowed = shutil.which("chrt") and subprocess.run([*words, "true"], stderr=subprocess.DEVNULL).returncode == 0
    return words if allowed else []


def build(*packages):
    flags = [word for package in packages for word in ("-p", package)]
    subprocess.run(["cargo", "build", "-q", "--release", "--locked", *flags], cwd=ROOT, check=True)


def about():
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    return {"cpu": cpu, "cores": os.cpu_count(), "kernel": platform.release(), "commit": commit, "command": " ".join(["tools/bench", *sys.argv[1:]])}


def plan_mib():
    """What the server says it may use at most, with one shard."""
    words = [RELEASE / "tidegate", "check-config", "--shards", "1"]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    total = next(line for line in lines if "memory plan:" in line and "budget" in line)
    return float(total.split("memory plan:")[1].split()[0])


def sequential_read_mb_per_s(files, seconds=3.0):
    """What the device gives when files are read past the page cache, 1 MiB at a time."""
    import mmap
    import time

    block = mmap.mmap(-1, 1 << 20)  # aligned, as O_DIRECT wants it
    total, began = 0, time.monotonic()
    for path in files:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
        except FileNotFoundError:  # re-clustered meanwhile
            continue
        try:
            while time.monotonic() - began < seconds:
                n = os.readv(handle, [block])
                total += n
                if n < len(block):
                    break
        finally:
            os.close(handle)
    return total / 1e6 / max(time.monotonic() - began, 1e-9)
