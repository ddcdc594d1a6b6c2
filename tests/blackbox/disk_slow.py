#!/usr/bin/env python3
"""A very slow disk slows down who writes to it, by way of their acknowledgements, and nobody and nothing else.

    publishers, far more on offer than the disk takes ──► server, 5 writes a second by cgroup ──► a group every 0.2 s
       └ memory bounded, every publisher gets on           ├─► reader: sees what is committed, in order
                                                           └─► ping, history: answered within a second
    kill -9 in the middle ─► start without the brake ─► every acknowledged event is there
"""

import argparse
import asyncio
import json
import time

from disk_full import Book, audit, note
from disk_mount import SMALL, Disk, skip_unless_possible
from tide import GONE, Client, Server, Violations, history, run

# Beside what grows with the events themselves (index, message ids): the hot tail is touched and commands are parked.
GROWTH_KIB_MAX = 32 * 1024
# A group of 128 KiB, the most that one write of SMALL holds, in events of this test.
EVENTS_PER_WRITE_MAX = 128


async def publish(server, book, bad, number, options, progress, stop):
    """Keeps more commands in flight than the server takes at once; counts what is acknowledged."""
    client = await Client.open(server.url)
    flying = set()
    try:
        while not stop.is_set():
            while len(flying) < 16:
                numbers = range(book.sent, book.sent + 8)
                book.sent += 8
                # Many publishers share the sessions: order between them is nobody's promise.
                book.late.update(numbers)
                flying.add(asyncio.create_task(told(client, book, bad, numbers)))
            done, flying = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                progress[number] += task.result()
    except GONE as why:
        bad.add("a publisher lost its connection", repr(why))
    finally:
        for task in flying:
            task.cancel()
        await asyncio.gather(*flying, return_exceptions=True)
    await client.close(abort=True)


async def told(client, book, bad, numbers):
    asked = [client.ask(book.command(n)) for n in numbers]
    await client.socket.send(json.dumps([command for command, _ in asked]))
    # No limit: an acknowledgement comes when the disk has the event.
    futures = [future for _, future in asked]
    await asyncio.wait(futures)
    return len(numbers) - len(note(book, bad, numbers, [future.result() for future in futures]))


async def ping(server, bad, stop):
    """Round trips of those who write nothing: ping, and the history of what is committed. Returns (rounds, slowest of each)."""
    client = await Client.open(server.url)
    rounds, worst = 0, {"ping": 0.0, "history": 0.0}
    while not stop.is_set():
        for command in ({"type": "ping"}, {"type": "history", "session": "warm", "from": 0, "limit": 8}):
            began = time.monotonic()
            await client.call(command)
            worst[command["type"]] = max(worst[command["type"]], time.monotonic() - began)
        rounds += 1
        await asyncio.sleep(0.05)
    await client.close()
    return rounds, worst


async def read(server, bad, stop):
    """Follows one session live: dense offsets, nothing twice."""
    client = await Client.open(server.url)
    reply = await client.call({"type": "subscribe", "session": "s1", "from": "earliest"})
    seen = 0
    while not stop.is_set():
        try:
            event = await client.next_event(0.5)
        except TimeoutError:
            continue
        if not event["event_id"].endswith(f":{seen}"):
            bad.add("the reader misses an event", (reply, seen, event["event_id"]))
        seen += 1
    await client.close()
    return seen


async def main(options):
    bad = Violations()
    book = Book(pad_bytes=1000)
    with Disk(mib=128) as disk, Server(*SMALL, data=disk.path) as server:
        client = await Client.open(server.url)
        for n in range(8):
            await client.call({"type": "publish", "session": "warm", "topic": "chat.message", "message_id": f"w{n}", "data": n})
        numbers = range(0, 512)
        book.sent = 512
        for at in range(0, 512, 32):
            note(book, bad, numbers[at : at + 32], await client.call_all([book.command(n) for n in numbers[at : at + 32]]))
        await client.close()
        skip_unless_possible(lambda: disk.throttle(server.process.pid, options.writes))
        before = server.rss_kib()
        stop = asyncio.Event()
        progress = [0] * options.publishers
        publishing = [asyncio.create_task(publish(server, book, bad, n, options, progress, stop)) for n in range(options.publishers)]
        pinging = asyncio.create_task(ping(server, bad, stop))
        reading = asyncio.create_task(read(server, bad, stop))
        highest = 0
        end = time.monotonic() + options.seconds
        while time.monotonic() < end:
            await asyncio.sleep(0.2)
            highest = max(highest, server.rss_kib() - before)
        rate = sum(progress) / options.seconds
        offered, acked = book.sent - 512, sum(progress)
        stop.set()
        rounds, worst = await pinging
        seen = await reading
        for task in publishing:
            task.cancel()
        await asyncio.gather(*publishing, return_exceptions=True)
        server.kill9()
        server.start()
        found = await audit(server.url, book, bad, "after kill -9")
        print(
            f"{options.writes} writes/s a shard's disk: {acked} of {offered} events acknowledged ({rate:.0f}/s), slowest of {options.publishers} publishers "
            f"{min(progress)}, reader saw {seen}, {rounds} pings, slowest {worst['ping'] * 1000:.0f} ms, as many histories, slowest {worst['history'] * 1000:.0f} ms; server grew by {highest} KiB at most; "
            f"{found} stored",
            flush=True,
        )
        bad.check()
        assert acked > 0 and min(progress) > 0, f"a publisher starved: {progress}"
        assert rate < options.writes * EVENTS_PER_WRITE_MAX, f"{rate:.0f} events/s: the disk was not slow, the test proved nothing"
        assert offered > acked + 512, f"only {offered} events were offered: nobody had to wait"
        assert worst["ping"] < 1.0, f"a ping took {worst['ping']:.2f} s behind somebody else's disk"
        assert rounds > options.seconds, f"only {rounds} pings"
        assert highest < GROWTH_KIB_MAX, f"the server grew by {highest} KiB, more than {GROWTH_KIB_MAX}"
        if (status := server.stop()) != 0:
            raise AssertionError(f"SIGTERM ended in {status}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--writes", type=int, default=5, help="writes a second that the disk takes")
    parser.add_argument("--publishers", type=int, default=8)
    options = parser.parse_args()
    skip_unless_possible(lambda: Disk(mib=8).close())
    run(main(options))
