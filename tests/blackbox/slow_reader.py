#!/usr/bin/env python3
"""A subscriber that stops reading costs bounded memory, delays nobody, and gets everything from the log when it reads again.

    publisher ── 200 000 events ──► session ─┬─► live reader: sees all of them while they come
                                             └─► stuck reader: socket full, not one byte read … then reads all, in order
"""

import argparse
import asyncio
import json
import time

from tide import PATIENCE_S, Client, Server, run, split_event_id

SESSION = "flood"
BATCH = 200
# What may grow besides a queue for the stuck reader: the hot map of message ids (16 MiB a shard at most), the index of the
# segment being filled (16 MiB at most), send buffers. Frames of the flood are 74 MiB together: a queue of them would show.
GROWTH_KIB_MAX = 56 * 1024


async def publish(client, count, start):
    """Publishes in arrays, a few frames ahead of their acknowledgements."""
    pad = "x" * 200
    flying = set()
    for at in range(start, start + count, BATCH):
        batch = [
            {"type": "publish", "session": SESSION, "topic": "chat.message", "message_id": f"m{i}", "data": {"i": i, "pad": pad}}
            for i in range(at, min(at + BATCH, start + count))
        ]
        while len(flying) >= 4:
            done, flying = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
            check(done)
        flying.add(asyncio.create_task(client.call_all(batch)))
    check((await asyncio.wait(flying))[0])


def check(done):
    for task in done:
        for reply in task.result():
            assert reply["type"] == "published", reply


async def read_all(receive, count, start, what):
    """Reads `count` events from offset `start` on, exactly once and in order. Returns the seconds it took."""
    began = time.monotonic()
    for expected in range(start, start + count):
        frame = await asyncio.wait_for(receive(), PATIENCE_S)
        assert frame["type"] == "event", f"{what}: {frame}"
        _, _, offset = split_event_id(frame["event_id"])
        assert offset == expected and frame["data"]["i"] == expected, f"{what}: expected {expected}, got {frame['event_id']}"
    return time.monotonic() - began


async def round_trips(client, stop):
    """Publishes into a session of its own and waits for the event, again and again. Returns (rounds, slowest)."""
    await client.call({"type": "subscribe", "session": "other", "from": "latest"})
    rounds, worst = 0, 0.0
    while not stop.is_set():
        began = time.monotonic()
        await client.call({"type": "publish", "session": "other", "topic": "chat.message", "message_id": f"m{rounds}", "data": rounds})
        event = await client.next_event()
        assert event["data"] == rounds, event
        worst = max(worst, time.monotonic() - began)
        rounds += 1
        await asyncio.sleep(0.02)
    return rounds, worst


async def main(options):
    with Server("--set", "hot_tail_bytes=8MiB", shards=2) as server:
        publisher = await Client.open(server.url)
        # Touches every page of the hot tail and fills caches, so that what grows afterwards grows because of the reader.
        await publish(publisher, options.warm, 0)
        live = await Client.open(server.url)
        await live.call({"type": "subscribe", "session": SESSION, "from": "latest"})

        # A queue of one frame: soon after the last read nothing is taken from the socket, and the kernel's buffers, a few
        # MiB of the flood's 70, fill up. (A receive buffer below the loopback's segment size would only test TCP's patience.)
        stuck = await Client.open(server.url, read=False, max_queue=1)
        await stuck.socket.send(json.dumps({"type": "subscribe", "id": 1, "session": SESSION, "from": "latest"}))
        reply = json.loads(await stuck.socket.recv())
        assert reply["type"] == "subscribed" and reply["next"] == options.warm, reply

        before = server.rss_kib()
        stop = asyncio.Event()
        others = asyncio.create_task(round_trips(await Client.open(server.url), stop))
        live_reading = asyncio.create_task(read_all(live.next_event, options.events, options.warm, "live reader"))
        began = time.monotonic()
        await publish(publisher, options.events, options.warm)
        published_s = time.monotonic() - began
        live_s = await live_reading
        growth = server.rss_kib() - before
        print(f"{options.events} events published in {published_s:.1f} s, live reader done after {live_s:.1f} s, server grew by {growth} KiB", flush=True)
        assert growth < GROWTH_KIB_MAX, f"the server grew by {growth} KiB, more than {GROWTH_KIB_MAX}"
        stop.set()
        rounds, worst = await others
        print(f"others: {rounds} round trips meanwhile, slowest {worst * 1000:.0f} ms", flush=True)
        assert rounds > 10 and worst < 2.0, "another session's clients waited for the stuck reader"

        async def receive():
            return json.loads(await stuck.socket.recv())

        stuck_s = await read_all(receive, options.events, options.warm, "stuck reader")
        growth = server.rss_kib() - before
        print(f"stuck reader got all {options.events} in {stuck_s:.1f} s, server grew by {growth} KiB", flush=True)
        assert growth < GROWTH_KIB_MAX, f"serving from the log, the server grew by {growth} KiB, more than {GROWTH_KIB_MAX}"
        pong = await publisher.call({"type": "ping"})
        assert pong["type"] == "pong", pong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--warm", type=int, default=40_000)
    run(main(parser.parse_args()))
