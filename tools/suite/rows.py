"""What is measured. A row has contestants, phases and metrics.

    round:   phase 1 for floor, ours, ours again, peers      each on a fresh server; every second round in the opposite order
             phase 2 for the same                             (open loop at half of what ours did in phase 1, or less)

`ours` and `ours again` are the same program: how far they are apart is what this machine makes of equal things (A/A).
"""

import pathlib
import subprocess

from . import crowd, machine, neighbour, overload, streams, work
from .servers import Floor, Nats, Ours, Redis, Secure, Server, UWebSockets

OURS = ("ours", "ours again")
# Events of a session in flight while a log is filled: frames are merged on both ways, 5 million events in about a minute.
FILL_WINDOW = 32


class Size:
    """How much of everything a run does."""

    def __init__(self, tiny=False, quick=False):
        self.tiny = tiny
        self.sessions = 50 if tiny else 1000
        self.fan = (50, 200) if tiny else (1000, 10_000)
        self.idle = 200 if tiny else 10_000
        self.settle = 0.3 if tiny else 2.0
        self.seconds = 0.3 if tiny else 1.5 if quick else 2.5
        self.warm = 0.1 if tiny else 0.5
        self.log_events = 10_000 if tiny else 500_000 if quick else 5_000_000
        self.many_sessions = (200, 2000) if tiny else (1000, 10_000, 100_000) if quick else (1000, 10_000, 100_000, 1_000_000)
        self.bursts = (16, 32) if tiny else (1, 8, 16, 28, 32, 48, 64, 96)
        self.crowd, self.survivors = (330, 30) if tiny else (20_000, 500) if quick else (50_000, 500)
        self.crowd_interval, self.crowd_seconds = (1.0, 1.0) if tiny else (10.0, 20.0)
        # Streams, tokens per second of each, tokens of each, and when a reader joins.
        self.streams = (10, 100, 300, 200) if tiny else (2000, 5, 100, 60) if quick else (2000, 150, 5000, 4000)
        # Jobs outstanding, few and many; asked for, and due, per second; their deadline.
        self.deadlines = (100, 1000, 2000, 1000) if tiny else (10_000, 100_000, 10_000, 15_000)
        self.times = ["--warm", self.warm, "--seconds", self.seconds]


class Metric:
    """A figure of a row. Goals: ("ratio", who, x) to somebody else, ("at most", x), ("at least", x), ("above", who, x) in its unit."""

    def __init__(self, key, goal=None, high=False):
        self.key, self.goal, self.high = key, goal, high


class Row:
    def __init__(self, name, contestants, phases, metrics, peers=None, rounds_max=None, repeats=True, again=False):
        self.name, self.contestants, self.phases, self.metrics = name, contestants, phases, metrics
        self.peers = peers or {}
        self.rounds_max = rounds_max
        self.again = again  # ours twice, although there is no floor to judge it by: the A/A control stands alone
        self.repeats = repeats  # where a stranger came by; not where a run takes minutes, or is about memory


def chat_full(server, size, context):
    report = server.load("chat", "--sessions", size.sessions, *size.times, "--window", 1)
    return {
        "events/s": report["delivered_per_s"],
        "CPU µs/event": report["server_us_per_delivery"],
        "generator core": report["own_cores"],
    }, report


def chat_paced(server, size, context):
    """Everybody at half of what ours takes; who takes less than that, at half of that."""
    rate = max(int(min(context["ours events/s"], context[server.name]["events/s"]) / 2), 100)
    report = server.load("chat", "--sessions", size.sessions, *size.times, "--rate", rate)
    figures = {"paced events/s": rate, "paced CPU µs/event": report["server_us_per_delivery"]}
    for name, which in (("ack", "ack"), ("deliver", "delivery")):
        if report[which]["intended"]["count"] == 0:
            continue  # not everybody acknowledges
        for label, quantile in (("p50", "p50_us"), ("p99", "p99_us"), ("p99.9", "p999_us")):
            figures[f"{name} {label} ms"] = report[which]["intended"][quantile] / 1000
    return figures, report


def chat(name, floor, flags, metrics, peers):
    return Row(name, {"floor": floor, "ours": lambda: Ours(*flags)}, [chat_full, chat_paced], metrics, peers)


PACED = [Metric("paced events/s", high=True), Metric("paced CPU µs/event"), Metric("ack p99 ms"), Metric("deliver p50 ms"), Metric("deliver p99 ms"), Metric("deliver p99.9 ms")]


def fan(which, window, burst):
    def phase(server, size, context):
        shape = ["--readers", size.fan[which], "--bytes", 128, "--window", window, "--burst", burst]
        report = server.load("fanout", *shape, *size.times)
        return {
            "deliveries/s": report["delivered_per_s"],
            "CPU µs/delivery": report["server_us_per_delivery"],
            "deliver p50 ms": report["delivery"]["intended"]["p50_us"] / 1000,
            "generator core": report["own_cores"],
        }, report

    return phase


SUBSCRIBE_PEERS = {"uWebSockets": UWebSockets, "NATS": Nats, "Redis (TCP)": Redis}


def fan_one(which, people):
    metrics = [Metric("CPU µs/delivery", ("ratio", "floor", 1.1)), Metric("deliveries/s", high=True)]
    return Row(f"fan-out to {people}, one at a time", {"floor": Floor, "ours": Ours}, [fan(which, 1, 1)], metrics, SUBSCRIBE_PEERS)


def fan_burst(which, people, burst):
    # The floor here merges: one send for each reader and turn.
    contestants = {"floor": lambda: Floor("--merge"), "ours": Ours}
    metrics = [Metric("deliveries/s", ("ratio", "uWebSockets", 1.5), high=True), Metric("CPU µs/delivery")]
    return Row(f"fan-out to {people}, bursts of {burst}", contestants, [fan(which, 2 * burst, burst)], metrics, SUBSCRIBE_PEERS)


def cliff(server, size, context):
    """The same readers, bursts of many sizes: the worst rate of a burst against that of one half its size or less."""
    rates, reports = [], []
    for burst in size.bursts:
        figures, report = fan(0, 2 * burst, burst)(server, size, context)
        rates.append(figures["deliveries/s"])
        reports.append(report)
    best = rates[0]
    fall = 1.0
    for rate in rates[1:]:
        fall, best = min(fall, rate / best), max(best, rate)
    figures = {f"bursts of {burst}: deliveries/s": rate for burst, rate in zip(size.bursts, rates)}
    return {**figures, "rate against the best smaller burst": fall}, reports[-1]


def idle(*flags):
    def phase(server, size, context):
        # Buffers that all connections share are touched for the first time by the first thousand: not theirs to pay.
        server.load("handshake", "--seconds", 0.1 if size.tiny else 0.7)
        report = server.load("idle", "--connections", size.idle, "--settle", size.settle, *flags)
        return {"KiB/connection": report["rss_kib_per_connection"], "idle core": report["idle_server_cores"]}, report

    return phase


def handshake(server, size, context):
    report = server.load("handshake", "--seconds", size.seconds)
    return {
        "CPU µs/connect": report["server_us_per_connect"],
        "connects/s": report["connects_per_s"],
        "generator core": report["own_cores"],
    }, report


def lone(server, size, context):
    """One client, one command at a time, no disk: ours takes volatile events, the floor just answers."""
    durability = ["--durability", "volatile"] if isinstance(server, Ours) else []
    report = server.load("lone", *size.times, *durability)
    return {"round trip p50 µs": report["ack"]["actual"]["p50_us"], "p99 µs": report["ack"]["actual"]["p99_us"]}, report


def big_log(server, size, context):
    """A log of so many events, one in five in one session; stopped, killed, started, and that session read from its start."""
    filled = server.load("fill", "--prefix", "f", "--sessions", size.sessions, "--events", size.log_events, "--window", FILL_WINDOW)
    if filled["acked"] != filled["sent"]:
        raise SystemExit(f"fill: {filled['sent']} sent, {filled['acked']} acknowledged: {filled['invalid']}")
    server.stop()
    after_stop = server.start()
    filled_more = server.load("fill", "--prefix", "g", "--sessions", size.sessions, "--events", max(size.log_events // 50, 1000), "--window", FILL_WINDOW)
    server.kill9()
    after_kill = server.start()
    server.rest()
    read = server.load("read", "--session", "f-hot", "--events", filled["hot_events"])
    segments = [path for path in pathlib.Path(server.folder, "data").rglob("seg-*.log") if path.is_file() and path.stat().st_size > 1 << 20]
    device = machine.sequential_read_mb_per_s(segments) if segments else 0.0
    return {
        "events in the log": filled["acked"] + filled_more["acked"],
        "ready after SIGTERM, s": after_stop,
        "ready after kill -9, s": after_kill,
        "first event ms": read["first_event_ms"],
        "read MB/s": read["mb_per_s"],
        "read events/s": read["events_per_s"],
        "device MB/s": device,
        "read ÷ device": read["mb_per_s"] / device if device else 0.0,
        "generator core": read["own_cores"],
    }, read


def sessions(server, size, context):
    """The same publishers over more and more sessions, chosen at random; each was written to once before. No readers."""
    figures, report, first, rss = {}, None, None, None
    for number, count in enumerate(size.many_sessions):
        if number:
            server.start_empty()
        publishers = min(size.sessions, count)
        shape = ["--publishers", publishers, "--sessions", count, "--prefix", f"s{count}"]
        server.load("sessions", "--create", "--window", 16, *shape)
        server.rest()
        report = server.load("sessions", *shape, *size.times)
        cost, rss = report["server_us_per_event"], report["server_rss_kib"] / 1024
        first = first or cost
        figures |= {f"{count:,} sessions: CPU µs/event": cost, f"{count:,} sessions: RSS MiB": rss}
    return {**figures, "CPU of most ÷ fewest sessions": cost / first, "plan MiB": machine.plan_mib(), "RSS ÷ plan": rss / machine.plan_mib()}, report


def allocations(server, size, context):
    """A test of its own: the server in one process with a counting allocator."""
    words = ["cargo", "test", "-q", "--profile", "sim", "--features", "tidegate/power-cut,tidegate/stall", "--test", "allocations", "--", "--nocapture"]
    done = subprocess.run(words, cwd=machine.ROOT, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("allocations per event:")]
    if not found:
        raise SystemExit(f"{' '.join(words)}:\n{done.stdout}{done.stderr}")
    return {"allocations per event": float(found[0].split(":")[1])}, {"valid": True, "stranger": 0.0}


def secure(*flags):
    return {"plain": lambda: Ours(*flags), "ours": lambda: Secure(*flags)}


class Nothing(Server):
    """For rows that need no server."""

    def start(self):
        return 0.0

    def close(self):
        pathlib.Path(self.folder).rmdir()


def rows():
    durable = [
        Metric("CPU µs/event", ("ratio", "floor", 1.3)),
        Metric("events/s", ("at least", 55_000), high=True),
        Metric("ack p50 ms", ("at most", 0.7)),
        Metric("ack p99.9 ms", ("above", "floor", 3.0)),
        *PACED,
    ]
    unsynced = [Metric("CPU µs/event", ("ratio", "floor", 1.15)), Metric("events/s", high=True), Metric("ack p50 ms"), Metric("ack p99.9 ms"), *PACED]
    always = {"JetStream always": lambda: Nats(jetstream=True), "Redis always (TCP)": lambda: Redis(streams=True)}
    ours = {"ours": Ours}
    both = {"floor": Floor, "ours": Ours}
    # Ours spins before it sleeps: where it is not busy all the time, its floor does the same.
    spinning = {"floor": lambda: Floor("--spin-us", 50), "ours": Ours}
    bare = [Metric("KiB/connection", ("at most", 0.5)), Metric("idle core", ("at most", 0.002))]
    subscribed = [Metric("KiB/connection", ("at most", 1.0)), Metric("idle core", ("at most", 0.002))]
    restarts = [
        Metric("ready after SIGTERM, s", ("at most", 2.0)),
        Metric("ready after kill -9, s", ("at most", 5.0)),
        Metric("first event ms", ("at most", 5.0)),
        Metric("read ÷ device", ("at least", 0.5), high=True),
        *(Metric(key, high=True) for key in ("read MB/s", "device MB/s", "read events/s")),
        Metric("events in the log"),
    ]
    handshakes = [Metric("CPU µs/connect", ("ratio", "floor", 1.3)), Metric("connects/s", high=True)]
    crowded = [
        Metric("deliver p99.9 ms", ("at most", 100.0)),
        Metric("KiB/client", ("at most", 1.5)),
        Metric("lost or repeated", ("at most", 0)),
        Metric("deliver p50 ms"),
        Metric("server core"),
    ]
    stormed = [
        Metric("all live in s"),
        Metric("live/s", high=True),
        Metric("CPU µs/client back", ("ratio", "floor", 1.6)),
        Metric("lost or repeated", ("at most", 0)),
        Metric("storm ÷ calm", ("at most", 2.0)),
        Metric("503"),
    ]
    overloaded = [
        Metric("goodput ÷ most", ("at least", 0.95), high=True),
        Metric("lost or repeated", ("at most", 0)),
        Metric("most events/s", high=True),
        Metric("offered/s", high=True),
        Metric("goodput/s", high=True),
        Metric("CPU µs/event"),
        Metric("RSS MiB"),
    ]
    slowed = [
        Metric("p99.9 stalled ÷ calm", ("at most", 1.2)),
        Metric("RSS ÷ plan", ("at most", 1.0)),
        Metric("lost or repeated", ("at most", 0)),
        Metric("others' p99.9 ms, calm"),
        Metric("others' p99.9 ms, stalled"),
        Metric("RSS MiB, calm"),
        Metric("RSS MiB, stalled"),
    ]
    isolated = [
        Metric("p99.9 beside ÷ calm", ("at most", 1.2)),
        Metric("p99.9 calm again ÷ calm"),
        Metric("others' lost or repeated", ("at most", 0)),
        Metric("others' p99.9 ms, calm"),
        Metric("others' p99.9 ms, beside"),
        Metric("offered ÷ share", ("at least", 45), high=True),
        Metric("alone events/s", high=True),
        Metric("server core, alone", ("at least", 0.95), high=True),
        Metric("noisy events/s", high=True),
    ]
    told = [
        Metric("token p99.9 ms", ("at most", 50.0)),
        Metric("frames to join", ("at most", 1)),
        Metric("disk ÷ text", ("at most", 1.2)),
        Metric("token p50 ms"),
        Metric("tokens/s", high=True),
        Metric("frames of the slow"),
    ]
    # What others did here with the same shape, in microseconds: Redis 7.1, a JetStream work queue without a sync for each message 11.7.
    worked = [
        Metric("CPU µs/job", ("ratio", "Redis always (TCP)", 1.0)),
        Metric("jobs/s", high=True),
        Metric("half: CPU µs/job", ("ratio", "Redis always (TCP)", 1.0)),
        Metric("half: jobs/s", high=True),
        Metric("half: ack p50 ms"),
        *(Metric(f"at a worker {which} ms") for which in ("p50", "p99", "p99.9")),
    ]
    ordered = [Metric(metric.key, high=metric.high) for metric in worked]
    crossed = [
        Metric("at a worker p99.9 ms", ("at most", 5.0)),
        *(Metric(f"at a worker {which} ms") for which in ("p50", "p99")),
        Metric("jobs/s", high=True),
        Metric("CPU µs/job"),
        Metric("half: CPU µs/job"),
    ]
    answered = [
        Metric("late max ms", ("at most", 100.0)),
        Metric("CPU of many ÷ few", ("at most", 1.2)),
        *(Metric(key) for key in ("late p50 ms", "late p99.9 ms", "fired late max ms")),
        Metric("deadlines/s", high=True),
    ]
    redis = {"Redis always (TCP)": lambda: Redis(streams=True)}
    return [
        chat("durable chat", lambda: Floor(log=True), [], durable, always),
        chat("chat with sync off", Floor, ["--sync", "off"], unsynced, SUBSCRIBE_PEERS),
        fan_one(0, "1000"),
        fan_one(1, "10000"),
        *(fan_burst(which, people, burst) for which, people in ((0, "1000"), (1, "10000")) for burst in (16, 64)),
        Row("cliff", ours, [cliff], [Metric("rate against the best smaller burst", ("at least", 0.7), high=True)], rounds_max=2, repeats=False),
        Row("idle bare", both, [idle("--bare")], bare, SUBSCRIBE_PEERS, rounds_max=2, repeats=False),
        Row("idle subscribed", both, [idle()], subscribed, SUBSCRIBE_PEERS, rounds_max=2, repeats=False),
        Row("handshake", spinning, [handshake], handshakes, SUBSCRIBE_PEERS),
        # What TLS costs: the same beside the same server without it.
        Row("TLS: chat with sync off", secure("--sync", "off"), [chat_full, chat_paced], [Metric("CPU µs/event"), Metric("events/s", high=True), Metric("ack p50 ms"), *PACED]),
        Row("TLS: fan-out to 1000, one at a time", secure(), [fan(0, 1, 1)], [Metric("CPU µs/delivery"), Metric("deliveries/s", high=True)]),
        Row("TLS: fan-out to 1000, bursts of 16", secure(), [fan(0, 32, 16)], [Metric("CPU µs/delivery"), Metric("deliveries/s", high=True)]),
        Row("TLS: handshake", secure(), [handshake], [Metric("CPU µs/connect"), Metric("connects/s", high=True)]),
        Row("TLS: idle bare", secure(), [idle("--bare")], [Metric("KiB/connection"), Metric("idle core")], rounds_max=2, repeats=False),
        Row("lone client", spinning, [lone], [Metric("round trip p50 µs", ("ratio", "floor", 1.5)), Metric("p99 µs")]),
        Row("a crowd", {"ours": crowd.server}, [crowd.calm], crowded, rounds_max=1, repeats=False, again=True),
        Row("a storm", {"floor": Floor, "ours": crowd.server}, [crowd.storm()], stormed, rounds_max=1, repeats=False),
        Row("a storm of strangers", {"floor": Floor, "ours": crowd.server}, [crowd.storm("--strangers")], stormed, rounds_max=1, repeats=False),
        Row("overload", {"floor": lambda: Floor(log=True), "ours": Ours}, [overload.overload], overloaded, rounds_max=1, repeats=False),
        Row("slow readers", ours, [overload.slow_readers], slowed, rounds_max=1, repeats=False, again=True),
        Row("noisy neighbour", {"ours": neighbour.Tenants}, [neighbour.neighbours], isolated, rounds_max=1, repeats=False, again=True),
        Row("streams", {"ours": streams.server}, [streams.tokens], told, rounds_max=2, repeats=False),
        Row("jobs: asked for, claimed, done", ours, [work.full(), work.half()], worked, redis, again=True),
        Row("jobs: in order of their sessions", ours, [work.full("--ordered"), work.half("--ordered")], ordered, again=True),
        Row("jobs: to a worker on another shard", {"ours": work.two_shards}, [work.full("--cross"), work.half("--cross")], crossed, again=True),
        Row("jobs: deadlines", ours, [work.deadlines], answered, rounds_max=2, repeats=False, again=True),
        Row("restart and history of a big log", ours, [big_log], restarts, rounds_max=1, repeats=False),
        Row(
            "many sessions",
            ours,
            [sessions],
            [Metric("CPU of most ÷ fewest sessions", ("at most", 1.2)), Metric("RSS ÷ plan", ("at most", 1.0))],
            rounds_max=1,
            repeats=False,
        ),
        Row("allocations", {"ours": Nothing}, [allocations], [Metric("allocations per event", ("at most", 0.0))], rounds_max=1),
    ]
