#!/usr/bin/env python3
"""One server process holds more connections than it may open files, and says when it is full.

    nofile N ─► the plan says: 3 shards × (N - 256) connections
    load processes, each from its own address ─► more than N clients, each with a subscription, events and a life
    a few descriptors ─► events come once and in order ─► the table is filled: 503 with a cure ─► a start that asks for more: refused

    more_sockets.py                                        small, for every day: 2000 open files, 4800 clients
    more_sockets.py --nofile 20000 --clients 50000         the size of the issue; the load processes need nofile 20000 themselves

The server's three shards share one core, the load another, where there are two.
"""

import argparse
import json
import os
import re
import resource
import select
import shutil
import subprocess
import sys
import time

from raw import Raw
from tide import Server, binary, environment, free_port

SHARDS = 3
# Sockets of one load process.
LOAD_SOCKETS_MAX = 19_000
PATIENCE_S = 240.0


def pinned(core):
    return ["taskset", "-c", str(core)] if len(os.sched_getaffinity(0)) > 1 and shutil.which("taskset") else []


class Limited(Server):
    """A server that may have so many open files."""

    def __init__(self, nofile, **options):
        super().__init__(**options)
        self.nofile = nofile

    def arguments(self, *flags):
        limit = f"ulimit -n {self.nofile}; exec \"$@\""
        return [*pinned(0), "bash", "-c", limit, "limited", *super().arguments(*flags)]


class Load:
    def __init__(self, server, number, clients):
        generator = os.path.join(os.path.dirname(binary()), "loadgen")
        words = [generator, "crowd", "--address", f"127.0.0.1:{server.port}", "--source", f"127.0.0.{2 + number}"]
        words += ["--clients", str(clients), "--interval", "10", "--seconds", "10"]
        self.process = subprocess.Popen([*pinned(1), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def say(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def hear(self, key):
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE_S)
        line = self.process.stdout.readline() if ready else ""
        assert f'"{key}"' in line, f"waiting for {key}: {line!r}"
        return json.loads(line)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def established(port):
    """Connections of the server, counted by the kernel."""
    with open("/proc/net/tcp") as table:
        return sum(line.split()[3] == "01" and int(line.split()[1].split(":")[1], 16) == port for line in list(table)[1:])


def refusal(nofile):
    """A start that asks for more than the limit allows: its exit status and line."""
    words = [binary(), "serve", "--listen", f"127.0.0.1:{free_port()}", "--data", "/nonexistent", "--set", f"connections_per_shard_max={nofile}"]
    limit = ["bash", "-c", f"ulimit -n {nofile}; exec \"$@\"", "limited"]
    done = subprocess.run([*limit, *words], capture_output=True, text=True, env=environment(), timeout=30)
    return done.returncode, done.stderr


def plan(server):
    """The line of the plan that a server with the same settings prints."""
    words = [binary(), "check-config", "--shards", str(SHARDS)]
    limit = ["bash", "-c", f"ulimit -n {server.nofile}; exec \"$@\"", "limited"]
    done = subprocess.run([*limit, *words], capture_output=True, text=True, env=environment(), timeout=30)
    return next(line for line in done.stdout.splitlines() if "connections:" in line)


def test(server, clients):
    fits = int(re.search(r"connections: +(\d+)", plan(server)).group(1))
    assert fits == SHARDS * (server.nofile - 256), plan(server)
    assert server.nofile < clients < fits, f"{server.nofile} open files, {fits} connections"
    count = -(-clients // LOAD_SOCKETS_MAX)
    count = max(count, 2)
    loads = [Load(server, number, clients // count + (number < clients % count)) for number in range(count)]
    extra = []
    try:
        began = time.monotonic()
        for load in loads:
            load.hear("connected")
        seconds = time.monotonic() - began
        for load in loads:
            load.say("go")
        for load in loads:
            load.hear("calm")
        held, files = established(server.port), len(os.listdir(f"/proc/{server.process.pid}/fd"))
        assert held >= clients > server.nofile, f"{held} connections"
        assert files < 500 < server.nofile, f"{files} descriptors"

        # Up to the last slot of some shard: it says so, with a cure, and the others go on.
        while True:
            assert len(extra) < fits, "never full"
            raw = Raw(server.port)
            extra.append(raw)
            status, head, body = raw.request()
            if status != 101:
                break
        assert status == 503 and "Retry-After: " in head and b"ulimit -n" in body, (head, body)

        for load in loads:
            load.say("end")
        for load in loads:
            report = load.hear("workload")
            faults = [why for why in report["invalid"] if "lagged" not in why]
            assert not faults and report["delivered"] == report["sent"] > 0, report
            assert report["lost_connections"] == 0, report["lost_why"]
    finally:
        for load in loads:
            load.close()
        for raw in extra:
            raw.close()
    status, line = refusal(server.nofile)
    assert status == 2 and "ulimit -n" in line and line.count("\n") == 1, (status, line)
    print(f"more sockets: {held} live connections in a process with {files} descriptors of {server.nofile}, {seconds:.1f} s to connect; full at {len(extra)} more, and said so")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nofile", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=4800)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with Limited(options.nofile, shards=SHARDS) as server:
        test(server, options.clients)


if __name__ == "__main__":
    sys.exit(main())
