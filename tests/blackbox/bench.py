#!/usr/bin/env python3
"""`tidegate bench` as a user runs it: figures that are there, a verdict, and nothing left over; also after Ctrl-C and an error.

    bench --json ─► rows, floors, verdict          bench, SIGINT ─► 130          bench --data NOWHERE ─► 2
         └── no process and no folder is left after any of them ──┘
"""

import concurrent.futures
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from tide import Server, binary, environment

SHORT = ["--seconds", "0.2", "--sessions", "20"]
ROWS = [
    "durable chat, 20 sessions: at most",
    "durable chat: at half of that",
    "fan-out to 400, one at a time",
    "fan-out to 400, in bursts of 64",
    "connect and upgrade",
    "a lone client, not durable",
    "a lone client, durable",
    "history of one session",
    "chat with --sync off, 20 sessions: at most",
    "chat with --sync off: at half of that",
]
LIMITS = ["server_core", "disk", "generator", "shared_core", "noise", "network", "unknown"]


def servers_of(parent):
    """Processes that work in a folder below `parent`."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(str(parent).encode() in word for word in words):
            found.append(b" ".join(words).decode())
    return found


def nothing_left(parent):
    deadline = time.monotonic() + 5  # a killed child is gone a moment later
    while servers_of(parent) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not servers_of(parent), servers_of(parent)
    left = list(pathlib.Path(parent).iterdir())
    assert not left, f"left over: {left}"


def start(*words):
    return subprocess.Popen([binary(), "bench", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def check_rows(report, names):
    rows = report["rows"]
    assert len(rows) == len(names), [row["name"] for row in rows]
    for row, name in zip(rows, names):
        assert row["name"].startswith(name), (row["name"], name)
        # Something was done; on a busy machine perhaps none of it in the moment that was measured.
        did = row["report"]
        assert max(did.get(done, 0) for done in ("acked", "connects", "events")) > 0 and row["rate"] >= 0, row
        lost = [why for why in row["invalid"] if "lagged" not in why]  # a busy machine may make the generator late
        assert not lost, (row["name"], lost)
        waits = row["waits"]
        if waits and waits["max_us"] > 0:
            assert 0 < waits["p50_us"] <= waits["p99_us"] <= waits["p999_us"] <= waits["max_us"], row
    assert report["verdict"]["limit"] in LIMITS and report["verdict"]["lines"], report["verdict"]


def own_server(parent):
    bench = start("--data", parent, "--json", *SHORT)
    out, err = bench.communicate(timeout=60)
    assert bench.returncode == 0, f"exit status {bench.returncode}\n{err}"
    report = json.loads(out)
    check_rows(report, ROWS)
    for row in report["rows"]:
        assert 0 <= row["server_core"] < 4, row
        assert row["rate"] == 0 or row["server_us"] > 0, row
    assert sum(row["server_core"] for row in report["rows"]) > 0, report["rows"]
    assert any(row["waits"] and row["waits"]["p50_us"] > 0 for row in report["rows"]), report["rows"]
    host = report["host"]
    for sync in ("sync_4k", "sync_64k"):
        assert 0 < host["disk"][sync]["p50_us"] <= host["disk"][sync]["max_us"], host
    assert host["disk"]["write_mb_per_s"] > 0 and host["disk"]["read_mb_per_s"] > 0, host
    assert 0 < host["loopback"]["round_trip"]["p50_us"] and host["loopback"]["answer_cpu_us"] > 0, host
    assert 0 <= host["core"]["taken_by_programs_share"] <= host["core"]["taken_share"] <= 1, host
    nothing_left(parent)


def interrupted(parent):
    bench = start("--data", parent, "--seconds", "0.5")
    # Progress says when the server runs and the load is on it.
    for line in bench.stderr:
        if "durable chat" in line:
            break
    assert servers_of(parent), "no server is running"
    bench.send_signal(signal.SIGINT)
    assert bench.wait(10) == 128 + signal.SIGINT, bench.returncode
    nothing_left(parent)


def killed(parent):
    """Nobody clears up the folder, but the server does not outlive its bench."""
    bench = start("--data", parent, "--seconds", "0.5")
    for line in bench.stderr:
        if "durable chat" in line:
            break
    bench.kill()
    bench.wait()
    folder = next(pathlib.Path(parent).iterdir())
    subprocess.run(["rm", "-r", folder], check=True)
    nothing_left(parent)


def refused(parent):
    bench = start("--data", f"{parent}/nowhere", *SHORT)
    _, err = bench.communicate(timeout=20)
    assert bench.returncode == 2 and "nowhere" in err, (bench.returncode, err)
    nothing_left(parent)


def somebody_elses():
    with Server(shards=1) as server:
        bench = start("--url", f"ws://127.0.0.1:{server.port}", "--json", *SHORT)
        out, err = bench.communicate(timeout=60)
        assert bench.returncode == 0, f"exit status {bench.returncode}\n{err}"
        report = json.loads(out)
        check_rows(report, ROWS[:8])
        assert report["host"] is None and report["link_us"] > 0, report
        assert all(row["server_core"] is None for row in report["rows"]), report["rows"]
        assert server.alive()


def main():
    def apart(case):
        with tempfile.TemporaryDirectory(prefix="tidegate-") as parent:
            case(parent)

    # Side by side: nothing here depends on how fast it goes, and each of them mostly waits.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        cases = [pool.submit(apart, case) for case in (refused, own_server, interrupted, killed)]
        cases.append(pool.submit(somebody_elses))
        for case in cases:
            case.result()
    print("bench: figures, verdict, nothing left over")


if __name__ == "__main__":
    sys.exit(main())
