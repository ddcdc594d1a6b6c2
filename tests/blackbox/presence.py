#!/usr/bin/env python3
"""Presence and receipts over the real binary: who watches sees what is true; no ghosts, no false leaves, floods refused.

    enter, update, leave ─► one frame a tick      cut sockets, back within the lease ─► nobody notices      gone ─► left
    kill -9 ─► complete: false, who is back ─► complete: true      log: snapshot, joined, left, ends; kill -9 ─► snapshot
    a room of N ─► bounded frames, one delta for a storm
"""

import argparse
import asyncio
import json
import sys
import time

from tide import Client, Refused, Server, history, run

FLAGS = ["--set", "presence_unknown_ms=4s"]
LEASE_MS = 2000


class View:
    """What one watcher believes; holes are errors."""

    def __init__(self):
        self.version = None
        self.more = True
        self.complete = None
        self.members = {}
        self.left = []
        self.frames = 0
        self.all = None

    def hear(self, frame):
        self.frames += 1
        if frame.get("snapshot"):
            self.version, self.members = 0, {}
        assert frame["after"] == self.version, (self.version, frame)
        self.version, self.more, self.complete = frame["version"], frame.get("more", False), frame["complete"]
        for member in frame.get("joined", []):
            self.members[member["client"]] = member
        for member in frame.get("updated", []):
            assert member["client"] in self.members, member
            self.members[member["client"]] = member
        for client in frame.get("left", []):
            self.members.pop(client, None)
            self.left.append(client)
        self.all = frame.get("all", self.all)


async def listen(client, view, until, timeout_s=20.0, kind="presence"):
    """Hears frames until `until(view)`."""
    end = time.monotonic() + timeout_s
    while not until(view):
        left = end - time.monotonic()
        believes = (len(view.members), sorted(view.members)[:9])
        assert left > 0, f"it believes {believes}, left {view.left[:9]}, complete {view.complete}"
        try:
            frame = await client.next_event(left)
        except (TimeoutError, asyncio.TimeoutError):
            continue
        if frame["type"] == kind:
            view.hear(frame)


async def quiet(client, view, seconds, kind="presence"):
    """Hears what comes in this time."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            frame = await client.next_event(left)
        except (TimeoutError, asyncio.TimeoutError):
            return
        if frame["type"] == kind:
            view.hear(frame)


async def refused(name, call):
    try:
        frame = await call
    except Refused as no:
        assert no.name == name, no
        return no.frame
    raise AssertionError(f"{name} was expected: {frame}")


def url(server, client):
    return f"{server.url}?client={client}"


async def enter(server, name, session="room", **more):
    client = await Client.open(url(server, name))
    await client.call({"type": "presence.enter", "session": session, "lease_ms": LEASE_MS, **more})
    return client


async def watch(server, name, session="room", kind="presence"):
    client = await Client.open(url(server, name))
    await client.call({"type": f"{kind}.watch", "session": session})
    return client, View()


async def story(server):
    # Watchers on several shards, by several connections: all see the same.
    watchers = [await watch(server, f"w{n}") for n in range(6)]
    ann = await enter(server, "ann", state="thinking", data={"model": "m"})
    bob = await enter(server, "bob")
    for client, view in watchers:
        await listen(client, view, lambda view: sorted(view.members) == ["ann", "bob"])
        assert view.members["ann"] == {"client": "ann", "state": "thinking", "data": {"model": "m"}}, view.members

    # Many changes, few frames; the last one is what holds.
    frames = watchers[0][1].frames
    for n in range(40):
        await ann.call({"type": "presence.update", "session": "room", "state": "tool", "data": n})
    for client, view in watchers:
        await listen(client, view, lambda view: view.members["ann"].get("data") == 39)
    assert watchers[0][1].frames - frames <= 20, watchers[0][1].frames

    # A flood is refused with the time to wait, and then there is room.
    answers = await ann.call_all([{"type": "presence.update", "session": "room", "data": n} for n in range(200)])
    floods = [a for a in answers if a.get("refusal") == "presence_flood"]
    assert floods and all(1 <= a["retry_after_ms"] <= 1000 for a in floods), floods[:1]
    await asyncio.sleep(floods[-1]["retry_after_ms"] / 1000 + 0.05)
    await ann.call({"type": "presence.update", "session": "room", "data": "calm"})

    # A second connection is the same member; one of them may go without anybody noticing, and come back, for longer than a lease.
    other = await enter(server, "ann", state="idle")
    await ann.close(abort=True)
    for _ in range(6):
        await asyncio.sleep(LEASE_MS / 4 / 1000)
        await bob.close(abort=True)
        bob = await enter(server, "bob")
    for client, view in watchers:
        await quiet(client, view, 0.3)
        assert sorted(view.members) == ["ann", "bob"] and not view.left, (view.members, view.left)

    # Whoever does not come back leaves when the lease ends; leave is at once.
    gone = time.monotonic()
    await bob.close(abort=True)
    client, view = watchers[1]
    await listen(client, view, lambda view: "bob" not in view.members)
    assert LEASE_MS * 0.5 <= (time.monotonic() - gone) * 1000, "the lease was cut short"
    await other.call({"type": "presence.leave", "session": "room"})
    await listen(client, view, lambda view: not view.members)
    await refused("not_present", other.call({"type": "presence.update", "session": "room", "state": "idle"}))
    await refused("out_of_range", other.call({"type": "presence.enter", "session": "room", "lease_ms": 5}))
    await refused("presence_too_large", other.call({"type": "presence.enter", "session": "room", "data": "x" * 1100}))
    await refused("wrong_type", other.call({"type": "presence.enter", "session": "room", "state": "asleep"}))
    await refused("not_watching", other.call({"type": "presence.unwatch", "session": "room"}))
    for client, _ in watchers:
        await client.close()

    await receipts(server)
    await restart(server)


async def receipts(server):
    """Delivered follows acknowledgements, read the client, `all` the lowest."""
    writer = await Client.open(url(server, "writer"))
    readers = []
    for name in ("r1", "r2"):
        reader = await Client.open(url(server, name))
        await reader.call({"type": "resume"})
        await reader.call({"type": "subscribe", "session": "talk", "from": "earliest"})
        await reader.call({"type": "read", "session": "talk", "offset": 0})
        readers.append(reader)
    watcher, view = await watch(server, "boss", "talk", "receipts")
    for n in range(5):
        await writer.call({"type": "publish", "session": "talk", "topic": "chat", "message_id": f"m{n}", "data": n})
    await readers[0].call({"type": "ack", "events": 5})
    await readers[1].call({"type": "ack", "events": 2})
    await readers[0].call({"type": "read", "session": "talk", "offset": 3})
    await listen(watcher, view, lambda view: view.all == {"count": 2, "delivered": 2, "read": 0}, kind="receipts")
    assert view.members["r1"] == {"client": "r1", "delivered": 5, "read": 3}, view.members
    await refused("read_backwards", readers[0].call({"type": "read", "session": "talk", "offset": 2}))
    await refused("offset_out_of_range", readers[0].call({"type": "read", "session": "talk", "offset": 6}))
    for client in [writer, watcher, *readers]:
        await client.close()


async def restart(server):
    """Kill -9: the owner knows nobody and says so; lives come back by themselves."""
    life = await Client.open(url(server, "life"))
    token = (await life.call({"type": "resume"}))["token"]
    await life.call({"type": "presence.enter", "session": "room", "state": "blocked", "lease_ms": LEASE_MS})
    await asyncio.sleep(0.3)
    server.kill9()
    await life.close(abort=True)
    server.start(shards=3)
    watcher, view = await watch(server, "w")
    await listen(watcher, view, lambda view: not view.more)
    assert view.complete is False and not view.members, (view.complete, view.members)
    back = await Client.open(server.url)
    await back.call({"type": "resume", "token": token})
    ann = await enter(server, "ann")
    await listen(watcher, view, lambda view: sorted(view.members) == ["ann", "life"])
    assert view.complete is False and view.members["life"]["state"] == "blocked", (view.complete, view.members)
    await listen(watcher, view, lambda view: view.complete)
    assert sorted(view.members) == ["ann", "life"] and not view.left, (view.members, view.left)
    for client in (watcher, back, ann):
        await client.close()


def told(events):
    """Who is in a session as its log tells it; `None` where nobody tells it any more."""
    known = None
    for event in (event for event in events if event["topic"] == "$presence"):
        data = event["data"]
        assert event["client"] == "$server" and not event.get("message_id"), event
        known = set() if data.get("snapshot") else known
        assert known is not None, f"a story without a beginning: {event}"
        known |= set(data.get("joined", []))
        assert known >= set(data.get("left", [])), f"it left and never came: {event}, {known}"
        known = None if data.get("ends") else known - set(data.get("left", []))
    return known


async def logged(client, session, who, timeout_s=20.0):
    """Reads the log of a session until that says who is in; all its events."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            events = await history(client, session)
        except Refused as no:
            # There is no such session before its first event.
            assert no.name == "unknown_session", no
            events = []
        known = told(events)
        if events and known == who:
            return events
        assert time.monotonic() < end, f"the log says {known}, not {who}: {events[-3:]}"
        await asyncio.sleep(0.2)


async def journal(server):
    """Comings and goings in the log, for who wants them: over kill -9 and another number of shards the story begins anew."""
    life = await Client.open(url(server, "life"))
    token = (await life.call({"type": "resume"}))["token"]
    await life.call({"type": "presence.enter", "session": "club", "log": True, "lease_ms": LEASE_MS})
    bob = await enter(server, "bob", "club")
    await logged(life, "club", {"life", "bob"})
    await bob.close(abort=True)
    before = await logged(life, "club", {"life"})
    bob = await enter(server, "bob", "club")
    before = await logged(life, "club", {"life", "bob"})
    server.kill9()
    for client in (life, bob):
        await client.close(abort=True)
    server.start(shards=2)
    # Nobody who wants it is back: what was told stands, and nothing is added.
    ann = await enter(server, "ann", "club")
    await asyncio.sleep(1.5)
    after = await history(ann, "club")
    assert after == before, (before[-2:], after[-2:])
    # A life brings the wish back, without a word.
    back = await Client.open(server.url)
    await back.call({"type": "resume", "token": token})
    events = await logged(ann, "club", {"ann", "life"})
    assert events[: len(before)] == before and events[len(before)]["data"].get("snapshot"), events[len(before) :]
    # The last who wants it ends it, and what comes after is no news.
    await back.call({"type": "presence.leave", "session": "club"})
    events = await logged(ann, "club", None)
    await (await enter(server, "cy", "club")).close()
    await asyncio.sleep(1.5)
    assert await history(ann, "club") == events
    for client in (back, ann):
        await client.close()


async def crowd(server, members):
    """A large room: everybody comes, one watcher sees all of them, everybody goes."""
    watcher, view = await watch(server, "overseer", "hall")
    clients = []
    for first in range(0, members, 100):
        names = [f"c{n}" for n in range(first, min(first + 100, members))]
        clients += await asyncio.gather(*(enter(server, name, "hall", data={"n": name}) for name in names))
    await listen(watcher, view, lambda view: len(view.members) == members, 60)
    late, late_view = await watch(server, "late", "hall")
    await listen(late, late_view, lambda view: view.version is not None and not view.more)
    assert late_view.members == view.members, (len(late_view.members), members)
    largest = members * 60 / max(late_view.frames, 1)
    assert largest < 32 << 10, f"a snapshot of {members} members in {late_view.frames} frames"
    # All change within a second: each watcher gets a few frames, not thousands.
    frames = view.frames
    for client in clients:
        await client.socket.send(json.dumps({"type": "presence.update", "session": "hall", "state": "tool"}))
    await listen(watcher, view, lambda view: all(member["state"] == "tool" for member in view.members.values()), 60)
    changed = view.frames - frames
    for client in clients:
        await client.close(abort=True)
    await listen(watcher, view, lambda view: not view.members, 60)
    assert len(view.left) == members, len(view.left)
    await watcher.close()
    await late.close()
    print(f"presence: {members} members, snapshot in {late_view.frames} frames, {members} changes in {changed} frames, no ghosts")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=400, help="of the large room")
    options = parser.parse_args()
    with Server(*FLAGS, shards=2) as server:
        run(story(server))
        run(journal(server))
        run(crowd(server, options.members))
    print("presence: watchers, floods, reconnects, leases, receipts, comings and goings in the log, kill -9: as it is written")


if __name__ == "__main__":
    sys.exit(main())
