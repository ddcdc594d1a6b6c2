"""More than the server can do, and readers that do not read.

    overload        saturation with several windows: the most it can do ─► three times that is offered, on schedule ─► goodput ÷ most
    slow readers    10 000 read ─► one in twenty stops reading ─► p99.9 of the others ÷ before

Under overload a publisher's kernel, then its own memory holds what the server does not read: the schedule goes on. All of it is
delivered in the end, and counted as goodput only inside the window.
"""

from .machine import plan_mib

# Events of a session in flight: the most of these counts as what a server can do.
WINDOWS = (1, 4, 16)
OFFERED = 3


def overload(server, size, context):
    shape = ["--sessions", size.sessions, *size.times]
    rates = {window: server.load("chat", *shape, "--window", window)["delivered_per_s"] for window in WINDOWS}
    most = max(rates.values())
    report = server.load("chat", *shape, "--rate", int(OFFERED * most))
    # Nobody is on time here: the generator's core is full, and its latencies are those of a queue that grows.
    report["invalid"] = [why for why in report["invalid"] if "lagged" not in why]
    report["valid"] = not report["invalid"]
    return {
        "most events/s": most,
        "offered/s": report["sent_per_s"],
        "goodput/s": report["delivered_per_s"],
        "goodput ÷ most": report["delivered_per_s"] / most if most else 0.0,
        "CPU µs/event": report["server_us_per_delivery"],
        "server core": report["server_cores"],
        "RSS MiB": report["server_rss_kib"] / 1024,
        "lost or repeated": report["lost"] + report["out_of_order"],
        "generator core": report["own_cores"],
    }, report


def slow_readers(server, size, context):
    clients, sessions, rate, flood, seconds = (200, 20, 100, 200, 0.6) if size.tiny else (10_000, 500, 1000, 12, 12)
    shape = ["--clients", clients, "--sessions", sessions, "--rate", rate, "--flood-rate", flood]
    report = server.load("stall", *shape, "--warm", size.warm, "--seconds", seconds)
    calm, stalled = (report[window]["intended"] for window in ("calm", "stalled"))
    rss = report["rss_stalled_kib"] / 1024
    return {
        "others' p50 ms, calm": calm["p50_us"] / 1000,
        "others' p50 ms, stalled": stalled["p50_us"] / 1000,
        "others' p99.9 ms, calm": calm["p999_us"] / 1000,
        "others' p99.9 ms, stalled": stalled["p999_us"] / 1000,
        "p99.9 stalled ÷ calm": stalled["p999_us"] / max(calm["p999_us"], 1.0),
        "RSS MiB, calm": report["rss_calm_kib"] / 1024,
        "RSS MiB, stalled": rss,
        "RSS ÷ plan": rss / plan_mib(),
        "lost or repeated": report["lost"] + report["repeated"],
        "caught up in s": report["caught_up_s"],
        "generator core": report["own_cores"],
    }, report

