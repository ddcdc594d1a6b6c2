"""A noisy neighbour: fifty tenants on one core, of whom one offers by itself all that the core can do. What do the others notice?

    alone          the noisy one over 10 000 sessions, saturation ─► all that the core can do; its share is a fiftieth of it
    calm           the others: a session each, open loop
    beside         the noisy one offers fifty times its share, on schedule ─► p99.9 of the others ÷ calm
    calm again     the same without it: how far two equal windows are apart (A/A)

The others' generator goes first on its core: it is the server's lateness that counts, not what the noise keeps it from. Who was not
served within the noise's window is not waited for.
"""

import json
import os
import signal
import subprocess
import sys
import time

from .machine import RELEASE, first, pinned
from .servers import Ours

TENANTS = 50
KEYS = "keys.json"


def tidegate(*words):
    done = subprocess.run([RELEASE / "tidegate", *map(str, words)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"tidegate {' '.join(map(str, words))}: {done.stderr}")
    return done.stdout.strip()


class Tenants(Ours):
    """Ours with a key, and a token for each tenant."""

    def start(self):
        keys = os.path.join(self.folder, KEYS)
        if not os.path.exists(keys):
            tidegate("keys", "make", "--out", keys)
        return super().start()

    def command(self):
        return [*super().command(), "--set", f"auth_keys_file={self.folder}/{KEYS}"]

    def bearers(self, tenants):
        mint = ["token", "--keys", os.path.join(self.folder, KEYS), "--client", "*", "--all", "--tenant"]
        return [word for tenant in tenants for word in ("--bearer", tidegate(*mint, tenant))]


class Noise:
    """A generator that goes on until it is told to stop."""

    def __init__(self, server, *words):
        words = [RELEASE / "loadgen", *words, "--address", f"127.0.0.1:{server.port}", *server.adapter]
        command = [*pinned(1), "nice", "-n", "5", *map(str, words)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        heard = json.loads(self.process.stdout.readline() or "{}")
        if "connected" not in heard:
            sys.exit(f"the noise did not come about: {heard}")

    def begin(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self):
        """What it has to say, if it is through by itself."""
        try:
            report, _ = self.process.communicate(timeout=120)
            return json.loads(report)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            self.process.communicate()
            sys.exit("the noise did not end")


def neighbours(server, size, context):
    tenants, sessions, publishers, rate, seconds = (5, 100, 20, 100, 0.5) if size.tiny else (TENANTS, 10_000, 1000, 490, 20)
    noisy, others = server.bearers(["noisy"]), server.bearers(f"t{n}" for n in range(tenants - 1))
    shape = ["sessions", "--publishers", publishers, "--sessions", sessions, "--prefix", "noise", *noisy]
    server.load(*shape, "--create", "--window", 16)
    server.rest()
    alone = server.load(*shape, "--warm", size.warm, "--seconds", size.seconds, "--window", 16)
    server.rest()

    def quietly(prefix):
        words = ["chat", "--sessions", tenants - 1, "--rate", rate, "--warm", size.warm, "--seconds", seconds, "--prefix", prefix]
        words = [RELEASE / "loadgen", *words, "--address", f"127.0.0.1:{server.port}", "--pid", server.process.pid, *server.adapter, *others]
        done = subprocess.run([*pinned(1), *first(), *map(str, words)], capture_output=True, text=True, timeout=300)
        if not done.stdout.strip():
            server.failed(f"under the others: {done.stderr}")
        return json.loads(done.stdout)

    calm = quietly("calm")
    offered = int(alone["acked_per_s"])
    # Its window is the others', and some more on both sides.
    noise = Noise(server, *shape, "--rate", offered, "--warm", 0.2, "--seconds", seconds + 2 * size.warm + 1, "--hold")
    noise.begin()
    time.sleep(0.2)
    beside = quietly("beside")
    noisy_report = noise.end()
    server.rest()
    again = quietly("again")
    p999 = {name: report["delivery"]["intended"]["p999_us"] / 1000 for name, report in (("calm", calm), ("beside", beside), ("again", again))}
    reports = {"calm": calm, "beside": beside, "again": again}
    invalid = [f"{name}: {why}" for name, report in reports.items() for why in report["invalid"]]
    return {
        "others' p50 ms, calm": calm["delivery"]["intended"]["p50_us"] / 1000,
        "others' p50 ms, beside": beside["delivery"]["intended"]["p50_us"] / 1000,
        "others' p99.9 ms, calm": p999["calm"],
        "others' p99.9 ms, beside": p999["beside"],
        "p99.9 beside ÷ calm": p999["beside"] / max(p999["calm"], 0.001),
        "p99.9 calm again ÷ calm": p999["again"] / max(p999["calm"], 0.001),
        "alone events/s": alone["acked_per_s"],
        "server core, alone": alone["server_cores"],
        "offered ÷ share": noisy_report["sent_per_s"] * tenants / max(alone["acked_per_s"], 1.0),
        "noisy events/s": noisy_report["acked_per_s"],
        "others' lost or repeated": sum(report["lost"] + report["out_of_order"] for report in reports.values()),
        "generator core": beside["own_cores"] + noisy_report["own_cores"],
    }, {"valid": not invalid, "invalid": invalid, "stranger": 0.0, **reports, "noise": noisy_report}
