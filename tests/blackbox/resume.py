#!/usr/bin/env python3
"""Clients outlive their sockets: resume after a dropped socket, a kill -9, another number of shards; take-over; bad tokens.

    resume ─► token ─► subscribe, ack ─► socket cut ─► events go on ─► resume {token} ─► subscribed ─► exactly what was not acked
"""

import asyncio
import sys

from tide import GONE, Client, Refused, Server, run, split_event_id

SESSIONS = 12
EVENTS = 40


async def publish(client, session, first, count):
    """Events numbered from `first` on; all acknowledged."""
    frames = [
        {"type": "publish", "session": session, "topic": "chat.message", "message_id": f"m{n}", "data": {"n": n}} for n in range(first, first + count)
    ]
    for reply in await client.call_all(frames):
        assert reply["type"] == "published", reply


async def take(client, wanted, timeout_s=20.0):
    """Frames until `wanted` events have come: [(session, n, offset)], and the other frames."""
    events, others = [], []
    while len(events) < wanted:
        frame = await client.next_event(timeout_s)
        if frame["type"] == "event":
            session, _, offset = split_event_id(frame["event_id"])
            events.append((session, frame["data"]["n"], offset))
        else:
            others.append(frame)
    return events, others


async def nothing_more(client, seconds=0.3):
    try:
        frame = await client.next_event(seconds)
    except (TimeoutError, asyncio.TimeoutError):
        return
    raise AssertionError(f"more than was owed: {frame}")


async def refused(name, call):
    try:
        frame = await call
    except Refused as no:
        assert no.name == name, no
        return no.frame
    raise AssertionError(f"{name} was expected: {frame}")


def url(server, client):
    return f"{server.url}?client={client}"


async def story(server):
    writer = await Client.open(url(server, "writer"))
    sessions = [f"room-{n}" for n in range(SESSIONS)]
    for session in sessions:
        await publish(writer, session, 0, 3)

    # A life with subscriptions all over the shards; everything but the last five frames is acknowledged.
    tab = await Client.open(url(server, "tab"))
    first = await tab.call({"type": "resume"})
    assert first["type"] == "resumed" and first["client"] == "tab" and first["sessions"] == 0, first
    for session in sessions:
        await tab.call({"type": "subscribe", "session": session, "from": "earliest"})
    seen, _ = await take(tab, 3 * SESSIONS)
    await tab.call({"type": "ack", "events": len(seen) - 5})
    unacknowledged = seen[-5:]
    await asyncio.sleep(5.5)
    await tab.close(abort=True)
    for session in sessions:
        await publish(writer, session, 3, EVENTS)

    # Back with the token, under no name: what was not acknowledged comes again, then all that was missed, once and in order.
    tab = await Client.open(server.url)
    second = await tab.call({"type": "resume", "token": first["token"]})
    assert second["client"] == "tab" and second["generation"] > first["generation"] and second["sessions"] == SESSIONS, second
    events, others = await take(tab, SESSIONS * EVENTS + 5)
    assert sorted(frame["session"] for frame in others if frame["type"] == "subscribed") == sorted(sessions), others
    await check(events, unacknowledged, sessions, 3 + EVENTS)
    await nothing_more(tab)
    await refused("already_resumed", tab.call({"type": "resume"}))

    # The old token is of no use any more, nor is a made-up one; a newer connection takes the life and the old one is closed.
    stranger = await Client.open(server.url)
    await refused("stale_token", stranger.call({"type": "resume", "token": first["token"]}))
    broken = second["token"][:-2] + ("AA" if second["token"][-2:] != "AA" else "BB")
    for bad in [broken, "", "x" * 5000, second["token"] + "A"]:
        await refused("bad_token", stranger.call({"type": "resume", "token": bad}))
    third = await stranger.call({"type": "resume", "token": second["token"]})
    assert third["client"] == "tab" and third["generation"] > second["generation"], third
    try:
        while True:
            await tab.next_event(10)
    except GONE:
        pass
    assert tab.socket.close_code == 4200, (tab.socket.close_code, tab.socket.close_reason)
    await refused("stale_token", (await Client.open(server.url)).call({"type": "resume", "token": second["token"]}))

    # Acknowledge all, wait until that is kept, kill the server, come back with another number of shards.
    events, _ = await take(stranger, SESSIONS * EVENTS + 5)
    await stranger.call({"type": "ack", "events": len(events)})
    await asyncio.sleep(5.5)
    server.kill9()
    await stranger.close(abort=True)
    await writer.close(abort=True)
    server.start(shards=3)
    writer = await Client.open(url(server, "writer"))
    for session in sessions:
        await publish(writer, session, 3 + EVENTS, 2)
    tab = await Client.open(server.url)
    fourth = await tab.call({"type": "resume", "token": third["token"]})
    assert fourth["sessions"] == SESSIONS and fourth["generation"] > third["generation"], fourth
    events, _ = await take(tab, SESSIONS * 2)
    await check(events, [], sessions, 3 + EVENTS + 2)
    await nothing_more(tab)

    # Its own positions count more than what was kept: the last event of one session was worked off and not acknowledged.
    last = [frame for frame in events if frame[0] == sessions[0]][-1]
    await tab.close(abort=True)
    await asyncio.sleep(0.3)
    tab = await Client.open(server.url)
    epoch = (await writer.call({"type": "history", "session": sessions[0], "limit": 1}))["epoch"]
    await tab.call({"type": "resume", "token": fourth["token"], "seen": [f"{sessions[0]}:{epoch}:{last[2]}"]})
    events, _ = await take(tab, (SESSIONS - 1) * 2)
    assert all(frame[0] != sessions[0] for frame in events), events
    await nothing_more(tab)

    # A pattern feed is restored too, from where it was acknowledged.
    watcher = await Client.open(url(server, "watcher"))
    token = (await watcher.call({"type": "resume"}))["token"]
    await watcher.call({"type": "subscribe", "patterns": ["chat.>"]})
    for session in sessions:
        await publish(writer, session, 100, 2)
    events, others = await take(watcher, 2 * SESSIONS)
    assert all(frame["type"] != "event" for frame in others)
    await watcher.call({"type": "ack", "events": SESSIONS})
    await asyncio.sleep(5.5)
    await watcher.close(abort=True)
    await asyncio.sleep(0.3)
    watcher = await Client.open(server.url)
    again = await watcher.call({"type": "resume", "token": token})
    assert again["patterns"] is True, again
    repeated, _ = await take(watcher, SESSIONS)
    assert sorted(repeated) == sorted(events[SESSIONS:]), (repeated, events)
    await nothing_more(watcher)


async def check(events, first, sessions, end):
    """Each session's events once, in order, up to `end`; those in `first` among them, others from where they were acknowledged."""
    by_session = {session: [n for s, n, _ in events if s == session] for session in sessions}
    for session, numbers in by_session.items():
        assert numbers == list(range(end - len(numbers), end)), (session, numbers)
    for session, n, _ in first:
        assert n in by_session[session], (session, n)


def main():
    with Server(shards=2) as server:
        run(story(server))
    print("resume: a cut socket, a kill -9 with other shards, a take-over, own positions, patterns: each event once and in order")


if __name__ == "__main__":
    sys.exit(main())
