"""Jobs: what one costs from being asked for to being gone, how soon a worker on another shard has it, how late deadlines are.

    jobs        8 producers, 8 workers ─► saturation ─► half of it             CPU of the server for each job
    crossing    the same over two shards: jobs on one, workers on the other, both on the server's core
    deadlines   nobody works ─► few, then ten times as many jobs outstanding   lateness, and CPU for each deadline

Commands travel in arrays. Redis does the same in pipelines: a stream, a group of readers, XACK and XDEL for each job.
"""

from .servers import Ours


def two_shards():
    return Ours(shards=2)


def sessions(size, flags):
    """Many, as a session takes some two hundred open jobs; fewer where each must be asked where it lives."""
    return 512 if size.tiny or "--cross" in flags else 2048


def full(*flags):
    def phase(server, size, context):
        report = server.load("jobs", "--sessions", sessions(size, flags), *size.times, *flags)
        return {
            "jobs/s": report["jobs_per_s"],
            "CPU µs/job": report["server_us_per_job"],
            "generator core": report["own_cores"],
        }, report

    return phase


def half_of(server, context):
    """Half of what ours takes, or of what this one takes where that is less."""
    taken = [context[name]["jobs/s"] for name in ("ours", "ours again", server.name) if "jobs/s" in context.get(name, {})]
    return max(int(min(taken) / 2), 100)


def half(*flags):
    def phase(server, size, context):
        rate = half_of(server, context)
        report = server.load("jobs", "--sessions", sessions(size, flags), *size.times, *flags, "--rate", rate)
        claim, ack = report["claim"]["intended"], report["ack"]["intended"]
        return {
            "half: jobs/s": rate,
            "half: CPU µs/job": report["server_us_per_job"],
            "half: ack p50 ms": ack["p50_us"] / 1000,
            "at a worker p50 ms": claim["p50_us"] / 1000,
            "at a worker p99 ms": claim["p99_us"] / 1000,
            "at a worker p99.9 ms": claim["p999_us"] / 1000,
        }, report

    return phase


def deadlines(server, size, context):
    few, many, rate, deadline_ms = size.deadlines
    figures, costs = {}, []
    for number, count in enumerate((few, many)):
        if number:
            server.start_empty()
        report = server.load("deadlines", "--jobs", count, "--rate", rate, "--deadline-ms", deadline_ms)
        costs.append(report["server_us_per_deadline"])
        figures[f"{count:,} jobs: CPU µs/deadline"] = costs[-1]
    return {
        **figures,
        "CPU of many ÷ few": costs[1] / costs[0] if costs[0] else 0.0,
        "late p50 ms": report["late"]["actual"]["p50_us"] / 1000,
        "late p99.9 ms": report["late"]["actual"]["p999_us"] / 1000,
        "late max ms": report["late"]["actual"]["max_us"] / 1000,
        "fired late max ms": report["fired"]["actual"]["max_us"] / 1000,
        "deadlines/s": report["deadlines_per_s"],
    }, report
