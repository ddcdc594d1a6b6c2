#!/usr/bin/env python3
"""Entries and jobs over a server that is killed: what a session knows stays, and each job ends once.

    put, expire ─► kill -9 ─► watch from a revision: the changes since, in order, once
    publish ─► workers that finish, give up or vanish, a server that is killed ─► one answer for each job
    publish, at work, cancel ─► kill -9 ─► ended as cancelled, with its partial result
    publish, nobody works ─► kill -9 over the deadline ─► one fallback          fail, fail ─► dead letter ─► redrive ─► answer
"""

import argparse
import asyncio
import collections
import random
import re
import subprocess
import sys
import textwrap
import time

from tide import GONE, ROOT, Client, Refused, Server, environment, history, run

SESSION = "room"
SESSIONS = [f"desk-{n}" for n in range(4)]


async def patiently(client, command):
    """Sends a command until it is taken."""
    while True:
        try:
            return await client.call(command)
        except Refused as no:
            if not no.retry:
                raise
            await asyncio.sleep(no.frame.get("retry_after_ms", 50) / 1000)


async def next_of(client, kind, timeout_s=20.0):
    async with asyncio.timeout(timeout_s):
        while (frame := await client.next_event(timeout_s))["type"] != kind:
            pass
    return frame


async def entries(server):
    """What was put is there after kill -9, with its revision; a watch goes on where it was; a time that was over stays over."""
    client = await Client.open(server.url)

    def put(key, data, **more):
        return client.call({"type": "entry.put", "session": SESSION, "key": key, "data": data, **more})

    first = await put("plan", {"step": 1})
    await client.call({"type": "entry.watch", "session": SESSION, "prefix": ""})
    seen = await next_of(client, "entries")
    assert [entry["key"] for entry in seen["entries"]] == ["plan"], seen
    await put("lock", "mine", ttl_ms=1500, if_revision=0)
    try:
        await put("lock", "mine too", if_revision=0)
        raise AssertionError("a second owner of the lock")
    except Refused as no:
        assert no.name == "wrong_revision", no.frame
    await put("plan", {"step": 2}, if_revision=first["revision"])
    await client.call({"type": "entry.put", "bucket": "models", "key": "best", "data": "m-1"})
    await client.close(abort=True)
    server.kill9()
    time.sleep(1.6)
    server.start(shards=3)

    client = await Client.open(server.url)
    await client.call({"type": "entry.watch", "session": SESSION, "prefix": "", "revision": seen["revision"]})
    told, at = [], seen["revision"]
    while not any("expired" in gone for gone in told):
        frame = await next_of(client, "entries")
        assert frame["after"] == at and "snapshot" not in frame, f"not the changes since {at}: {frame}"
        told += sorted(frame["entries"] + frame.get("deleted", []), key=lambda one: one["revision"])
        at = frame["revision"]
    # The lock was put and is gone: only that it is gone is left to tell.
    assert [(one["key"], one.get("data")) for one in told] in (
        [("plan", {"step": 2}), ("lock", None)],
        [("lock", "mine"), ("plan", {"step": 2}), ("lock", None)],
    ), told
    listed = await client.call({"type": "entry.list", "session": SESSION, "prefix": ""})
    assert [(e["key"], e["data"]) for e in listed["entries"]] == [("plan", {"step": 2})], listed
    best = await client.call({"type": "entry.get", "bucket": "models", "key": "best"})
    assert best["entries"][0]["data"] == "m-1", best
    await client.close()
    return len(told)


async def declare(client, queue, **policy):
    await patiently(client, {"type": "queue.declare", "queue": queue, "patterns": [f"{queue}.>"], **policy})


async def deadline(server):
    """Nobody works, and the server is dead while the deadline passes: it answers after its start, once."""
    client = await Client.open(server.url)
    await declare(client, "slow", lease_ms=300, deadline_ms=1000, fallback={"topic": "sorry", "data": "later"})
    await client.call({"type": "publish", "session": SESSION, "topic": "slow.ask", "message_id": "s1", "data": 1})
    await client.close(abort=True)
    server.kill9()
    time.sleep(1.2)
    for _ in range(2):
        server.start()
        client = await Client.open(server.url)
        async with asyncio.timeout(15):
            while not (said := [e for e in await history(client, SESSION) if e["topic"] == "sorry"]):
                await asyncio.sleep(0.05)
        assert len(said) == 1 and said[0]["data"]["reason"] == "deadline", said
        await client.close(abort=True)
        server.kill9()
    server.start()


async def dead_letter(server):
    """A job that fails each time is given up once, kept over kill -9, and driven again to its end."""
    client = await Client.open(server.url)
    await declare(client, "odd", lease_ms=5000, deadline_ms=60000, attempts=2, backoff_ms=20, dead_letter="gave.up")
    await client.call({"type": "pull", "queue": "odd", "credit": 1})
    await client.call({"type": "publish", "session": SESSION, "topic": "odd.ask", "message_id": "o1", "data": 1})
    for attempt in (1, 2):
        job = await next_of(client, "job")
        assert job["attempt"] == attempt, job
        said = await client.call({"type": "job.fail", "job": job["job"], "lease": job["lease"]})
        assert said["type"] == ("failed" if attempt == 1 else "dead"), said
    await client.close(abort=True)
    server.kill9()
    server.start(shards=2)
    client = await Client.open(server.url)
    dead, start = [], 0
    while start is not None:
        page = await client.call({"type": "dead.list", "queue": "odd", "from": start})
        dead += page["dead"]
        start = page.get("next")
    assert [one["job"] for one in dead] == [job["job"]], dead
    assert [e["topic"] for e in await history(client, SESSION)].count("gave.up") == 1
    await client.call({"type": "pull", "queue": "odd", "credit": 1})
    await client.call({"type": "dead.redrive", "job": job["job"]})
    job = await next_of(client, "job")
    done = {"topic": "answer", "message_id": "o1-done", "data": job["event_id"]}
    await client.call({"type": "complete", "job": job["job"], "lease": job["lease"], "events": [done]})
    try:
        await client.call({"type": "job.fail", "job": job["job"], "lease": job["lease"]})
        raise AssertionError("a job that has ended was failed")
    except Refused as no:
        assert no.name in ("unknown_job", "stale_lease"), no.frame
    await client.close()


async def worker(server, dice, stop, count):
    """Works until told to stop, or killed; now and then vanishes with jobs in its hands, fails, or answers when its lease is over."""
    client = None
    while not stop.is_set():
        try:
            client = await Client.open(server.url)
            await client.call({"type": "pull", "queue": "ask", "credit": 4})
            while not stop.is_set():
                try:
                    frame = await client.next_event(0.2)
                except TimeoutError:
                    continue
                if frame["type"] != "job":
                    continue
                count[frame["attempt"] > 1 and "again" or "first"] += 1
                what = dice.random()
                if what < 0.08:
                    count["vanished"] += 1
                    await client.close(abort=True)
                    break
                if what < 0.14:
                    count["late"] += 1
                    await asyncio.sleep(0.5)
                mine = {"job": frame["job"], "lease": frame["lease"]}
                answer = {"topic": "answer", "data": {"job": frame["job"]}, "message_id": f"a{dice.getrandbits(60)}"}
                try:
                    if what > 0.94:
                        count["failed"] += 1
                        await patiently(client, {"type": "job.fail", **mine, "retry": what < 0.98})
                    else:
                        await patiently(client, {"type": "complete", **mine, "events": [answer]})
                except Refused as no:
                    assert no.name in ("stale_lease", "unknown_job"), no.frame
                    count[no.name] += 1
        except GONE:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            # Killed: its socket goes as that of a dead process, with whatever it had.
            if client:
                await client.close(abort=True)
            raise


async def publish(server, dice, stop, asked):
    """Each message is sent until it is acknowledged; its id makes it one event."""
    n = 0
    while not stop.is_set():
        try:
            client = await Client.open(server.url)
            while not stop.is_set():
                session = SESSIONS[n % len(SESSIONS)]
                said = await patiently(
                    client, {"type": "publish", "session": session, "topic": "ask.model", "message_id": f"q{n}", "data": n}
                )
                asked.append(said["event_id"])
                n += 1
                await asyncio.sleep(dice.random() * 0.01)
        except GONE:
            await asyncio.sleep(0.05)


ENDS = {"answer": "done", "ask-late": "fallback", "gave.up": "dead letter"}


async def account(client):
    """Every job of the sessions, and how often each ended how."""
    jobs, ends = set(), collections.defaultdict(collections.Counter)
    for session in SESSIONS:
        for event in await history(client, session):
            if event["topic"] == "ask.model":
                jobs.add(event["event_id"])
            elif event["topic"] in ENDS:
                ends[event["data"]["job"].removeprefix("ask/")][ENDS[event["topic"]]] += 1
    return jobs, ends


async def once(server, dice, seconds):
    """Load; three of ten workers are killed for good, others vanish, the server is killed twice. Then the books: each job that was
    acknowledged is there, and each that is there has ended, once."""
    client = await Client.open(server.url)
    policy = {"lease_ms": 400, "deadline_ms": 2500, "attempts": 4, "backoff_ms": 10, "order": "none"}
    await declare(client, "ask", **policy, fallback={"topic": "ask-late", "data": None}, dead_letter="gave.up")
    await client.close()
    asked, count = [], collections.Counter()
    no_more, stop = asyncio.Event(), asyncio.Event()
    publisher = asyncio.create_task(publish(server, dice, no_more, asked))
    workers = [asyncio.create_task(worker(server, dice, stop, count)) for _ in range(10)]
    doomed = sorted(dice.sample(range(10), 3), reverse=True)
    fates = sorted((dice.random() * seconds, whom) for whom in ["server"] * 2 + ["worker"] * len(doomed))
    begun = time.monotonic()
    for at, whom in fates:
        await asyncio.sleep(max(0, begun + at - time.monotonic()))
        if whom == "server":
            server.kill9()
            server.start(shards=dice.choice([1, 2, 3]))
        else:
            workers.pop(doomed.pop(0)).cancel()
    await asyncio.sleep(max(0, begun + seconds - time.monotonic()))
    no_more.set()
    await publisher
    client = await Client.open(server.url)
    async with asyncio.timeout(30):
        while True:
            jobs, ends = await account(client)
            if ends.keys() >= jobs:
                break
            await asyncio.sleep(0.2)
    # Whoever is late is late now.
    await asyncio.sleep(0.6)
    stop.set()
    await asyncio.gather(*workers)
    jobs, ends = await account(client)
    assert set(asked) <= jobs, "an acknowledged job is not there"
    assert ends.keys() == jobs, f"{len(jobs)} jobs, {len(ends)} ended"
    twice = {job: dict(how) for job, how in ends.items() if sum(how.values()) != 1}
    assert not twice, f"ended more than once: {twice}"
    how = dict(sum(ends.values(), collections.Counter()))
    await client.close()
    return f"{len(jobs)} jobs, {len(asked)} acknowledged, each ended once: {how}; workers: {dict(count)}"


async def cancelled(server):
    """An acknowledged cancel holds over kill -9: the job ends as cancelled, with what there was of it, before its deadline."""
    client = await Client.open(server.url)
    await declare(client, "long", deadline_ms=600000, lease_ms=300000, fallback={"topic": "stopped", "data": None})
    await client.call({"type": "pull", "queue": "long", "credit": 1})
    asked = await client.call({"type": "publish", "session": SESSION, "topic": "long.ask", "message_id": "l1", "data": 1})
    job = await next_of(client, "job")
    await client.call({"type": "job.progress", "job": job["job"], "lease": job["lease"], "data": "half"})
    stop = {"type": "publish", "session": SESSION, "topic": "control.cancel", "message_id": "l2", "data": {}}
    await client.call({**stop, "prev_event_id": asked["event_id"]})
    await client.close(abort=True)
    server.kill9()
    server.start(shards=2)
    client = await Client.open(server.url)
    async with asyncio.timeout(15):
        while not (said := [e for e in await history(client, SESSION) if e["topic"] == "stopped"]):
            await asyncio.sleep(0.05)
    assert [(e["data"]["reason"], e["data"]["partial"]) for e in said] == [("cancelled", "half")], said
    await client.call({"type": "queue.drop", "queue": "long"})
    listed = await client.call({"type": "queue.list"})
    assert "long" not in [one["queue"] for one in listed["queues"]], listed
    await client.close()


def readme(server):
    """README's own program, once as it stands and once without its worker."""
    lines = (ROOT / "README.md").read_text().splitlines()
    first = lines.index("    import asyncio")
    program = textwrap.dedent("\n".join(lines[first : lines.index("    asyncio.run(main())", first) + 1]))
    program = program.replace("ws://127.0.0.1:7777", server.url)
    alone = re.sub(r"worker\.work\(.*\)\)", "asyncio.sleep(60))", program).replace("5000", "500")
    for text, client, said in ((program, "model-1", "Water."), (alone, "$server", "Nobody could answer in time.")):
        told = subprocess.run(
            [sys.executable, "-c", text],
            env={**environment(), "PYTHONPATH": str(ROOT / "tools" / "clients" / "python")},
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert told.stdout.startswith(f"{client} {{") and said in told.stdout, told


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    with Server() as server:
        told = await entries(server)
        await deadline(server)
        await dead_letter(server)
        await cancelled(server)
        await asyncio.to_thread(readme, server)
        print(f"entries: {told} changes told after kill -9; {await once(server, random.Random(seed), options.seconds)}")


if __name__ == "__main__":
    run(main())
