"""The benchmark suite: the server on core 0, the load generator on core 1, a table for each row.

    tools/bench                  every row in full: rounds of pairs with an A/A control, a log of 5 million events, a million sessions
    tools/bench --quick          two short rounds, a smaller log, fewer sessions
    tools/bench --tiny           seconds, small numbers: shows that the suite works, and nothing about speed
    tools/bench --only durable --rounds 10 --json out.json
    tools/bench peers            the same, with NATS, Redis and uWebSockets in the first rounds (installs them by name)
    tools/bench scale --shards 1,2,4 [--cross 0,50,100] [--loads 2]
    tools/bench --list

    server ──(core 0)──► loopback ◄──(core 1)── loadgen        CPU of the server from /proc/PID/task/*/schedstat

Beside each figure stands its floor (tools/floor): a bare io_uring server that does the same socket operations and nothing else.
What the figures do not say: one machine, loopback (the sender pays for the receiver's softirq), one shard, short runs. Latency counts
from the intended send time, at half of what ours takes; at saturation it is only window ÷ rate and is not shown.
"""

import argparse
import json
import pathlib
import signal
import sys
import time

from . import judge, machine, scale, servers
from .rows import OURS, Size, rows

ROUNDS = {"full": 4, "quick": 2, "tiny": 1}
# Peers are there for orders of magnitude: half of the rounds are enough for them.
ROUNDS_PER_PEER_ROUND = 2
STRANGER_MAX = 0.2


def one(name, make, phase, size, context):
    """One run on a fresh server; (figures, report)."""
    server = make()
    server.name = name
    try:
        server.start()
        return phase(server, size, context)
    finally:
        server.close()


def run(row, name, make, phase, size, context):
    """Repeated once where a stranger was on the server's core; the cleaner run counts."""
    figures, report = one(name, make, phase, size, context)
    if report.get("stranger", 0) > STRANGER_MAX and row.repeats and not size.tiny:
        again = one(name, make, phase, size, context)
        if again[1].get("stranger", 0) < report["stranger"]:
            return again
    return figures, report


def round_of(row, size, contestants, number, reports):
    """All phases for all contestants; figures by contestant."""
    found = {name: {} for name in contestants}
    context = dict(found)
    for phase in row.phases:
        order = list(contestants) if number % 2 == 0 else list(reversed(contestants))
        for name in order:
            figures, report = run(row, name, contestants[name], phase, size, context)
            found[name] |= figures
            reports.append({"row": row.name, "round": number, "contestant": name, **report})
        rates = [found[name]["events/s"] for name in contestants if name in OURS and "events/s" in found[name]]
        if rates:
            context["ours events/s"] = min(rates)
    return found


def contestants_of(row, options, size, number):
    """Ours twice, for the A/A control; not where nothing is judged. Peers in every second round."""
    chosen = dict(row.contestants)
    if not size.tiny and ("floor" in chosen or "plain" in chosen or row.again):
        chosen[OURS[1]] = chosen[OURS[0]]
    if options.what == "peers" and number % ROUNDS_PER_PEER_ROUND == 0:
        chosen |= row.peers
    return chosen


def suite(options):
    size = Size(tiny=options.tiny, quick=options.quick)
    rounds_of_all = options.rounds or ROUNDS["tiny" if options.tiny else "quick" if options.quick else "full"]
    chosen = [row for row in rows() if not options.only or any(text in row.name for text in options.only.split(","))]
    if options.what == "peers":
        servers.install_peers()
    if options.tiny and not options.only:
        chosen = [row for row in chosen if row.name != "allocations"]  # compiles; a test stage runs it
    if options.list:
        print("\n".join(row.name for row in chosen))
        return 0
    if not chosen:
        sys.exit(f"no row is called {options.only!r}: {', '.join(row.name for row in rows())}")
    machine.build("tidegate", "loadgen", "floor")
    about = machine.about()
    if options.what == "peers":
        about["peers"] = servers.peer_versions()
    results, reports = {row.name: [] for row in chosen}, []
    if options.tiny:
        print("tiny: all sizes are smaller than the names say, nothing here is a measurement\n")
    print(f"{about['cores']} cores {about['cpu']}, Linux {about['kernel']}, commit {about['commit']}, `{about['command']}`, {rounds_of_all} round(s)")
    if "peers" in about:
        print(f"\npeers: {about['peers']}")
    for row in chosen:
        mine = []
        for number in range(min(rounds_of_all, row.rounds_max or rounds_of_all)):
            began = time.monotonic()
            results[row.name].append(round_of(row, size, contestants_of(row, options, size, number), number, mine))
            print(f"round {number + 1}: {row.name} in {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
        reports += mine
        print(f"\n### {row.name}\n\n{judge.table(row, results[row.name])}", flush=True)
        for note in judge.notes(row, results[row.name], mine):
            print(f"\nnote: {note}", flush=True)
        if options.json:  # after each row: a run of hours may be cut short
            pathlib.Path(options.json).write_text(json.dumps({"machine": about, "results": results, "reports": reports}, indent=1) + "\n")
    return faults(reports, size)


def faults(reports, size):
    """Prints what was invalid. A generator that lags spoils a figure; anything else is a fault."""
    invalid = [report for report in reports if not report["valid"]]
    for report in invalid:
        print(f"\nINVALID {report['row']} round {report['round'] + 1}, {report['contestant']}: {'; '.join(report['invalid'])}")
    found = [why for report in invalid for why in report["invalid"] if not size.tiny or "lagged" not in why]
    return 1 if found else 0


def told_to_end(number, _):
    """Ends servers and removes their folders, the way of every exception; told twice, it goes on with that."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def main():
    parser = argparse.ArgumentParser(prog="tools/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["suite", "peers", "scale"], default="suite")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", metavar="TEXT,…", help="rows whose name contains one of these")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--json", metavar="FILE", help="write every report there")
    parser.add_argument("--list", action="store_true", help="names of the rows")
    parser.add_argument("--shards", default="1,2", help="scale: numbers of shards")
    parser.add_argument("--cross", default="0,50,100", help="scale: percent of the sessions whose connections live on another shard")
    parser.add_argument("--loads", type=int, help="scale: load processes; default one for each core that has no shard")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, told_to_end)
    return scale.run(options) if options.what == "scale" else suite(options)
