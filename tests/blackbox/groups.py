#!/usr/bin/env python3
"""A group whose members come, go and are killed, over a server that is killed: every event is acknowledged, in order, by one at a time.

    publish ─► kill -9 of a member, of the server, members that leave, vanish, or sleep over their leases ─► no lag anywhere
    the books: of each session what was acknowledged are ranges that follow each other, and between them nothing is missing
               but what somebody had said as it was killed, or as the server was
"""

import argparse
import asyncio
import collections
import json
import os
import random
import signal
import sys
import time

from tide import GONE, Client, Refused, Server, Violations, run, split_event_id

SESSIONS = [f"flow-{n}" for n in range(6)]
GROUP = {"group": "crew"}
LEASE_MS = 400


async def patiently(client, command):
    """Sends a command until it is taken."""
    while True:
        try:
            return await client.call(command)
        except Refused as no:
            if not no.retry:
                raise
            await asyncio.sleep(no.frame.get("retry_after_ms", 50) / 1000)


class Books:
    """Who has which session, and what was acknowledged."""

    def __init__(self):
        self.violations = Violations()
        self.held = {}  # session: (member, until)
        self.life = 0  # of the server
        self.acked = collections.defaultdict(list)  # session: (from, to), as answered
        self.said = collections.defaultdict(list)  # the same, before there is an answer
        self.count = collections.Counter()

    def deal(self, member, frame, life, is_fresh):
        session, now = frame["session"], time.time()
        holder, until = self.held.get(session, (None, 0))
        offsets = [split_event_id(event["event_id"])[2] for event in frame["events"]]
        if offsets != sorted(offsets) or not all(frame["from"] <= offset < frame["next"] for offset in offsets):
            self.violations.add("out of order", frame)
        self.count["again" if frame["attempt"] > 1 else "first"] += 1
        # One that lay there while its member slept may be older than what another has since: it says nothing.
        if not is_fresh and holder not in (None, member):
            return
        # Dealt by now, while the lease before it held for certain: it began no earlier than its last event was published.
        if holder not in (None, member) and now < until and life == self.life:
            self.violations.add("in flight at two members", f"{session}: {member} while {holder} has it")
        if life == self.life:
            self.held[session] = (member, (frame["events"][-1]["time"] + frame["lease_ms"]) / 1000)

    def release(self, member, session=None):
        for known in [session] if session else list(self.held):
            if self.held.get(known, (None,))[0] == member:
                del self.held[known]


async def member(url, name, books, stop, dice, vanishes=True):
    """Joins, does what it is dealt in halves or whole, now and then sleeps over its lease, leaves, or goes without a word."""
    while not stop.is_set():
        client = None
        try:
            life = books.life
            client = await Client.open(url())
            await patiently(client, {"type": "group.join", **GROUP, "credit": dice.choice([1, 2, 4])})
            while not stop.is_set():
                asked = time.time()
                try:
                    frame = await client.next_event(0.2)
                except TimeoutError:
                    continue
                is_fresh = time.time() - asked > 0.001
                if frame["type"] == "group.lost":
                    books.release(name, frame["session"])
                    books.count["lost"] += 1
                    await patiently(client, {"type": "group.join", **GROUP, "credit": 2})
                if frame["type"] != "group.run":
                    continue
                books.deal(name, frame, life, is_fresh)
                what = dice.random()
                if what < 0.02 and vanishes:
                    books.release(name)
                    books.count["vanished"] += 1
                    break
                if what < 0.04:
                    books.release(name)
                    await patiently(client, {"type": "group.leave", **GROUP})
                    books.count["left"] += 1
                    break
                if what < 0.06:
                    await asyncio.sleep(LEASE_MS / 1000 * 1.5)
                at, ends = frame["from"], [frame["next"]]
                if what > 0.7:
                    ends.insert(0, split_event_id(frame["events"][0]["event_id"])[2] + 1)
                for to in ends:
                    ack = {"session": frame["session"], "group": GROUP["group"], "lease": frame["lease"], "offset": to}
                    books.release(name, frame["session"] if to == frame["next"] else "")
                    books.said[frame["session"]].append((at, to))
                    if name == "killed":
                        print(json.dumps(["said", frame["session"], at, to]), flush=True)
                    try:
                        if what > 0.9:
                            said = {"type": "commit", "session": frame["session"], "markers": [ack]}
                            del ack["session"]
                        else:
                            said = {"type": "group.ack", **ack}
                        await patiently(client, said)
                    except Refused as no:
                        assert no.name == "stale_lease", no.frame
                        books.count["stale"] += 1
                        books.said[frame["session"]].remove((at, to))
                        break
                    if to > at:
                        books.acked[frame["session"]].append((at, to))
                        if name == "killed":
                            print(json.dumps(["acked", frame["session"], at, to]), flush=True)
                    at = to
        except (*GONE, Refused) as why:
            if isinstance(why, Refused) and not why.retry and why.name not in ("stale_lease", "marker_backwards"):
                raise
            books.release(name)
            await asyncio.sleep(0.05)
        finally:
            if client:
                await client.close(abort=True)


async def publish(server, session, stop, sent):
    """Each message is sent until it is acknowledged; its id makes it one event."""
    n = 0
    while not stop.is_set():
        try:
            client = await Client.open(f"{server.url}?session={session}")
            while not stop.is_set():
                topic = "chat.ask" if n % 3 else "noise"
                said = await patiently(
                    client, {"type": "publish", "session": session, "topic": topic, "message_id": f"m{n}", "data": n}
                )
                if n % 3:
                    sent[session].append(split_event_id(said["event_id"])[2])
                n += 1
                await asyncio.sleep(0.004)
        except GONE:
            await asyncio.sleep(0.05)


async def lag(client):
    """Sessions in which the group has something to do, with lag."""
    found, at = {}, 0
    while at is not None:
        page = await client.call({"type": "group.list", **GROUP, "from": at})
        found |= {item["session"]: item["lag"] for item in page["markers"]}
        at = page.get("next")
    return found


async def check(server, seed, seconds):
    client = await Client.open(server.url)
    await client.call({"type": "group.declare", **GROUP, "patterns": ["chat.>"], "lease_ms": LEASE_MS})
    await client.close()
    books, sent = Books(), collections.defaultdict(list)
    quiet, stop = asyncio.Event(), asyncio.Event()
    publishers = [asyncio.create_task(publish(server, session, quiet, sent)) for session in SESSIONS]
    names = [f"m{n}" for n in range(4)]
    members = [asyncio.create_task(member(lambda: server.url, name, books, stop, random.Random(f"{seed} {name}"))) for name in names]
    # One more is a process of its own, and is killed as one.
    other = await asyncio.create_subprocess_exec(
        sys.executable, os.path.abspath(__file__), "--member", server.url, stdout=asyncio.subprocess.PIPE
    )
    await asyncio.sleep(seconds / 3)
    other.send_signal(signal.SIGKILL)
    for line in (await other.stdout.read()).decode().splitlines():
        what, session, at, to = json.loads(line)
        (books.acked if what == "acked" else books.said)[session].append((at, to))
        books.count["by the one killed"] += what == "acked"
    await other.wait()
    await asyncio.sleep(seconds / 3)
    server.kill9()
    books.life += 1
    books.held.clear()
    server.start(shards=3)
    await asyncio.sleep(seconds / 3)
    quiet.set()
    await asyncio.gather(*publishers)
    client = await Client.open(server.url)
    async with asyncio.timeout(20):
        while left := await lag(client):
            await asyncio.sleep(0.1)
    stop.set()
    await asyncio.gather(*members)
    assert not left
    for session in SESSIONS:
        ranges = sorted(books.acked[session])
        for (_, before), (at, to) in zip(ranges, ranges[1:]):
            if at < before:
                books.violations.add("acknowledged twice", f"{session}: {at}..{to} after one up to {before}")
        done = {offset for at, to in ranges for offset in range(at, to)}
        missing = [offset for offset in sent[session] if offset not in done]
        # What was said and not answered, because a socket went or a process died, may have been taken.
        books.count["acknowledged, not answered"] += len(missing)
        said = {offset for at, to in books.said[session] for offset in range(at, to)}
        for offset in missing:
            if offset not in said:
                books.violations.add("acknowledged by nobody", f"{session}: {offset}")
        told = await client.call({"type": "markers.list", "session": session})
        assert told["markers"] == [], told
    events = sum(map(len, sent.values()))
    assert books.count["acknowledged, not answered"] < events / 4, dict(books.count)
    await client.close()
    books.violations.check()
    return f"{events} events in {len(SESSIONS)} sessions; {dict(books.count)}"


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--seed", type=int, default=random.getrandbits(32))
    parser.add_argument("--member", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.member:
        return await member(lambda: options.member, "killed", Books(), asyncio.Event(), random.Random(), vanishes=False)
    print(f"seed {options.seed}")
    with Server(shards=3) as server:
        print(f"groups: {await check(server, options.seed, options.seconds)}")


if __name__ == "__main__":
    run(main())
