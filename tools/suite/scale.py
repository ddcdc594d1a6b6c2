"""Many shards: how the rate grows with cores, and what traffic between shards costs.

    shard 0..K-1 on cores 0..K-1        load processes on the cores that are left; where none is left they share with the shards

Each load process has sessions of its own, connects, and waits for the word to start, so that all measure the same seconds. A session
crosses when publisher and reader are both connected to another shard than the session's own: each event then goes over two lanes, and
its acknowledgement over one.
"""

import json
import os
import pathlib
import subprocess
import sys

from . import machine
from .machine import RELEASE, pinned
from .rows import Size
from .servers import Ours


def together(server, size, cores, loads, cross, rate=None):
    """All load processes at once; their reports."""
    sessions = max(size.sessions // loads, 1)
    pace = ["--rate", rate / loads] if rate else ["--window", 1]
    words = [RELEASE / "loadgen", "chat", "--sessions", sessions, *size.times, *pace, "--hold", "--cross", cross / 100]
    words += ["--address", f"127.0.0.1:{server.port}", "--pid", server.process.pid]
    processes = []
    for number in range(loads):
        command = [*pinned(cores[number % len(cores)]), *map(str, words)]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for process in processes:
        if "connected" not in process.stdout.readline():
            sys.exit("a load process could not connect")
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    reports = [json.loads(process.communicate(timeout=300)[0]) for process in processes]
    return reports


def cell(size, shards, cross, loads):
    everything = sorted(os.sched_getaffinity(0))
    left = everything[shards:]
    cores = left or everything
    loads = loads or max(len(left), 1)
    server = Ours(shards=shards)
    server.cores = everything[:shards]
    try:
        server.start()
        full = together(server, size, cores, loads, cross)
        rate = sum(report["delivered_per_s"] for report in full)
        paced = together(server, size, cores, loads, cross, rate=max(rate / 2, 100))
    finally:
        server.close()
    # Every process sees the whole server's CPU: the mean over them is the server's.
    cpu = sum(report["server_cores"] for report in full) / len(full)
    return {
        "shards": shards,
        "cross": cross,
        "loads": loads,
        "shared_cores": not left,
        "events_per_s": rate,
        "server_us_per_event": cpu / rate * 1e6,
        "server_cores": cpu,
        "generator_core_max": max(report["own_cores"] for report in full),
        "ack_p50_ms": max(report["ack"]["intended"]["p50_us"] for report in paced) / 1000,
        "ack_p999_ms": max(report["ack"]["intended"]["p999_us"] for report in paced) / 1000,
        "lanes_crossing": sum(report["lanes_crossing"] for report in full),
        "lost": sum(report["lost"] for report in [*full, *paced]),
        "valid": all(report["valid"] for report in [*full, *paced]),
        "invalid": [why for report in [*full, *paced] for why in report["invalid"]],
    }


def run(options):
    size = Size(tiny=options.tiny, quick=options.quick)
    machine.build("tidegate", "loadgen")
    about = machine.about()
    print(f"{about['cores']} cores {about['cpu']}, Linux {about['kernel']}, commit {about['commit']}, `{about['command']}`\n")
    print("| shards | crossing | load processes | events/s | against the first | server CPU µs/event | server cores | ack p50 / p99.9 ms at half | |")
    print("|---|---|---|---|---|---|---|---|---|")
    found, failed = [], False
    for shards in map(int, options.shards.split(",")):
        for cross in map(int, options.cross.split(",")):
            if shards == 1 and cross > 0:
                continue
            c = cell(size, shards, cross, options.loads)
            found.append(c)
            notes = ["load shares the shards' cores"] if c["shared_cores"] else []
            notes += ["a generator was full: lower bound"] if c["generator_core_max"] >= 0.95 else []
            notes += [f"INVALID: {why}" for why in c["invalid"]]
            # A generator that lags where it shares a core says nothing against the server.
            failed |= any("lagged" not in why for why in c["invalid"])
            print(
                f"| {shards} | {cross} % | {c['loads']} | {c['events_per_s']:,.0f} | {c['events_per_s'] / found[0]['events_per_s']:.2f} × "
                f"| {c['server_us_per_event']:.1f} | {c['server_cores']:.2f} | {c['ack_p50_ms']:.2f} / {c['ack_p999_ms']:.2f} | {'; '.join(notes)} |",
                flush=True,
            )
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps({"machine": about, "scale": found}, indent=1) + "\n")
    return 1 if failed else 0
