#!/usr/bin/env python3
"""Entries and jobs over a server that is killed: what a session knows stays, and each job ends once.

    put, expire ─► kill -9 ─► watch from a revision: the changes since, in order, once
    publish ─► workers that finish, give up or vanish, a server that is killed ─► one answer for each job
    publish, nobody works ─► kill -9 over the deadline ─► one fallback          fail, fail ─► dead letter ─► redrive ─► answer
"""

import argparse
import asyncio
import collections
import random
import time

from tide import GONE, Client, Refused, Server, history, run

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
    await put("lock", "mine", ttl_ms=400, if_revision=0)
    try:
        await put("lock", "mine too", if_revision=0)
        raise AssertionError("a second owner of the lock")
    except Refused as no:
        assert no.name == "wrong_revision", no.frame
    await put("plan", {"step": 2}, if_revision=first["revision"])
    await client.call({"type": "entry.put", "bucket": "models", "key": "best", "data": "m-1"})
    await client.close(abort=True)
    server.kill9()
    time.sleep(0.5)
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
    """Works until told to stop; sometimes vanishes with jobs in its hands, sometimes lets a lease run out and answers too late."""
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
                answer = {"topic": "answer", "data": frame["event_id"], "message_id": f"a{dice.getrandbits(60)}"}
                try:
                    await patiently(
                        client, {"type": "complete", "job": frame["job"], "lease": frame["lease"], "events": [answer]}
                    )
                except Refused as no:
                    assert no.name in ("stale_lease", "unknown_job"), no.frame
                    count[no.name] += 1
        except GONE:
            await asyncio.sleep(0.05)


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


async def once(server, dice, seconds):
    """Jobs under workers that vanish and a server that is killed: each acknowledged one is answered once."""
    client = await Client.open(server.url)
    await declare(client, "ask", lease_ms=400, deadline_ms=120000, attempts=1000, backoff_ms=10, order="none")
    await client.close()
    asked, count = [], collections.Counter()
    no_more, stop = asyncio.Event(), asyncio.Event()
    tasks = [asyncio.create_task(publish(server, dice, no_more, asked))]
    tasks += [asyncio.create_task(worker(server, dice, stop, count)) for _ in range(6)]
    until = time.monotonic() + seconds
    kills = 0
    while time.monotonic() < until:
        await asyncio.sleep(0.5 + dice.random())
        server.kill9()
        server.start(shards=dice.choice([1, 2, 3]))
        kills += 1
    no_more.set()
    await tasks[0]
    client = await Client.open(server.url)
    async with asyncio.timeout(30):
        while True:
            events = [e for session in SESSIONS for e in await history(client, session)]
            answers = collections.Counter(e["data"] for e in events if e["topic"] == "answer")
            if answers.keys() >= {e["event_id"] for e in events if e["topic"] == "ask.model"}:
                break
            await asyncio.sleep(0.2)
    # Whoever is late is late now.
    await asyncio.sleep(0.6)
    stop.set()
    await asyncio.gather(*tasks)
    events = [e for session in SESSIONS for e in await history(client, session)]
    answers = collections.Counter(e["data"] for e in events if e["topic"] == "answer")
    jobs = {e["event_id"] for e in events if e["topic"] == "ask.model"}
    assert set(asked) <= jobs, "an acknowledged job is not there"
    twice = [job for job, times in answers.items() if times != 1]
    assert not twice and answers.keys() == jobs, f"answered twice: {twice[:3]}; of {len(jobs)} jobs {len(answers)} answered"
    await client.close()
    return f"{len(jobs)} jobs, each answered once, {kills} kills, {dict(count)}"


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
        print(f"entries: {told} changes told after kill -9; {await once(server, random.Random(seed), options.seconds)}")


if __name__ == "__main__":
    run(main())
