"""Fifty thousand clients, and what happens when all but a few of them are cut off at once and come back.

    server: 3 shards on core 0      core 1: load processes, each with its own source address and at most as many sockets as it may open
    go ─► calm for some seconds ─► cut: all but the survivors are reset ─► … ─► the last one is live again ─► on ─► end

CPU of a client that comes back is what the server used from the cut to the last one back, less what the survivors alone cost it in so
long, by clients; cleaning up after the cut and the resume are part of it. Its floor opens and resets bare WebSockets. Survivors publish
more often than the others, so that their p99.9 says something.
"""

import json
import pathlib
import select
import subprocess
import sys
import time

from .machine import RELEASE, first, pinned
from .servers import Floor, Ours

SHARDS = 3
# Sockets of one load process; the limit of open files is at least this on the machines this runs on, or the run says so.
SOCKETS_MAX = 19_000
# Seconds between two events of a survivor.
SURVIVOR_INTERVAL = 0.5
PATIENCE_S = 300


class Load:
    """A load process that is told what to do."""

    def __init__(self, server, number, clients, interval, seconds, *flags):
        words = [RELEASE / "loadgen", "crowd", "--clients", clients, "--interval", interval, "--seconds", seconds]
        words += ["--address", f"127.0.0.1:{server.port}", "--source", f"127.0.0.{2 + number}", *flags]
        self.clients = clients
        # Survivors go first on their core: it is the server's lateness that counts, not what the crowd's generators keep them from.
        patient = first() if "--survive" in flags else ["nice", "-n", "5"]
        self.process = subprocess.Popen([*pinned(1), *patient, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def say(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def hear(self, key, patience_s=PATIENCE_S):
        ready, _, _ = select.select([self.process.stdout], [], [], patience_s)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            sys.exit(f"a load process said nothing, waiting for {key!r}")
        heard = json.loads(line)
        if key not in heard:
            sys.exit(f"a load process said {line!r}, waiting for {key!r}")
        return heard

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def cpu_s(pid):
    """CPU time of all threads, seconds."""
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def rss_kib(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))


class Crowd:
    """All load processes of a run; the last one has the survivors."""

    def __init__(self, server, size, flags=(), survivors=0):
        # Buffers that all connections share, lanes between the shards, and hot tails and indexes of the logs are of fixed size, and
        # touched for the first time by the first thousands: not theirs to pay. Large events for the tails, many for the rest.
        server.load("handshake", "--seconds", 0.1 if size.tiny else 0.7)
        if not size.tiny:
            server.load("fill", "--sessions", 300, "--events", 50_000, "--bytes", 2048, "--window", 16)
            server.load("fill", "--sessions", 300, "--events", 450_000, "--bytes", 64, "--window", 32, "--spread")
            server.rest()
        self.server, self.size = server, size
        self.before_kib, before_s = rss_kib(server.process.pid), cpu_s(server.process.pid)
        self.loads = []
        left, count = size.crowd - survivors, -(-(size.crowd - survivors) // SOCKETS_MAX)
        for number in range(max(count, 2 if size.tiny else 3)):
            clients = left // (max(count, 2 if size.tiny else 3) - number)
            left -= clients
            self.loads.append(Load(server, number, clients, size.crowd_interval, size.crowd_seconds, *flags))
        if survivors:
            self.loads.append(Load(server, len(self.loads), survivors, SURVIVOR_INTERVAL, size.crowd_seconds, "--survive"))
        connected = self.all(key="connected")
        self.connect_s = max(heard["seconds"] for heard in connected)
        self.connect_us = (cpu_s(server.process.pid) - before_s) / size.crowd * 1e6

    def all(self, word=None, key=None, loads=None):
        for load in loads or self.loads:
            if word:
                load.say(word)
        return [load.hear(key) for load in loads or self.loads] if key else []

    def calm(self):
        """Some calm seconds; (KiB a client: connected, and when each has published; cores used)."""
        time.sleep(0.2 if self.size.tiny else 2.0)
        kib = [self.kib()]
        before, began = cpu_s(self.server.process.pid), time.monotonic()
        self.all("go", "calm")
        cores = (cpu_s(self.server.process.pid) - before) / (time.monotonic() - began)
        return [*kib, self.kib()], cores

    def kib(self):
        """What the server has grown by, for each client."""
        return (rss_kib(self.server.process.pid) - self.before_kib) / self.size.crowd

    def end(self):
        """Reports, and one that stands for all of them."""
        reports = self.all("end", "workload")
        together = {
            "valid": all(report["valid"] for report in reports),
            "invalid": [why for report in reports for why in report["invalid"]],
            "stranger": 0.0,
            "reports": reports,
        }
        return reports, together

    def close(self):
        for load in self.loads:
            load.close()


def p999_ms(reports, window):
    """Of the worst process."""
    return max(report[window]["intended"]["p999_us"] for report in reports) / 1000


def counts(reports):
    total = {key: sum(report[key] for report in reports) for key in ("lost", "repeated", "refused", "lost_connections", "opened")}
    total["told later"] = sum(sum(report["refusals"].values()) for report in reports)
    return {
        "lost or repeated": total["lost"] + total["repeated"],
        "503": total["refused"],
        "commands told later": total["told later"],
        "attempts/client": total["opened"] / sum(report["clients"] for report in reports),
        "generator core": sum(report["own_cores"] for report in reports),
    }


def calm(server, size, context):
    crowd = Crowd(server, size)
    try:
        (connected_kib, kib), cores = crowd.calm()
        reports, together = crowd.end()
    finally:
        crowd.close()
    return {
        "clients": size.crowd,
        "deliver p50 ms": max(report["calm"]["intended"]["p50_us"] for report in reports) / 1000,
        "deliver p99.9 ms": p999_ms(reports, "calm"),
        "KiB/client": kib,
        "KiB/client before their first event": connected_kib,
        "server core": cores,
        "connected in s": crowd.connect_s,
        "CPU µs/client connected": crowd.connect_us,
        **counts(reports),
    }, together


def storm(*flags):
    def phase(server, size, context):
        if isinstance(server, Floor):
            report = server.load("handshake", "--seconds", size.seconds)
            return {"CPU µs/client back": report["server_us_per_connect"]}, report
        crowd = Crowd(server, size, flags, survivors=size.survivors)
        pid = server.process.pid
        try:
            _, calm_cores = crowd.calm()
            # Nothing of the calm is left to be done.
            time.sleep(0.2 if size.tiny else 1.0)
            before, began = cpu_s(pid), time.monotonic()
            back = crowd.loads[:-1]
            crowd.all("cut")
            live = crowd.all(key="live", loads=back)
            seconds = time.monotonic() - began
            used = cpu_s(pid) - before
            time.sleep(0.2 if size.tiny else 2.0)
            before, began = cpu_s(pid), time.monotonic()
            time.sleep(0.5 if size.tiny else 3.0)
            survivors_cores = (cpu_s(pid) - before) / (time.monotonic() - began)
            crowd.all("on", loads=back)
            time.sleep(size.crowd_interval)
            reports, together = crowd.end()
        finally:
            crowd.close()
        clients = sum(load.clients for load in back)
        quiet, stormy = p999_ms(reports[-1:], "calm"), p999_ms(reports[-1:], "storm")
        return {
            "clients": clients,
            "all live in s": max(heard["seconds"] for heard in live),
            "half live in s": max(report["back_p50_s"] for report in reports[:-1]),
            "live/s": clients / seconds,
            "CPU µs/client connected": crowd.connect_us,
            "CPU µs/client back": (used - survivors_cores * seconds) / clients * 1e6,
            "server core": used / seconds,
            "server core, calm": calm_cores,
            "server core, survivors alone": survivors_cores,
            "survivors' p99.9 ms, calm": quiet,
            "survivors' p99.9 ms, storm": stormy,
            "storm ÷ calm": stormy / quiet if quiet else 0.0,
            **counts(reports),
        }, together

    return phase


def server():
    return Ours(shards=SHARDS)
