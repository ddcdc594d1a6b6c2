#!/usr/bin/env python3
"""A very slow disk slows down who writes to it, by way of their acknowledgements, and nobody and nothing else.

    publishers, far more on offer than the disk takes ──► server, 5 writes a second by cgroup ──► a group every 0.2 s
       └ memory bounded, every publisher gets on           ├─► reader: sees what is committed, in order
                                                           ├─► ping: never waits for the disk
                                                           └─► history: goes on; a read may stand behind a write in the kernel
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
BEHIND = ("log_behind", "retry")


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
    # No limit of ours: an acknowledgement comes when the disk has the event. Who waited `held_timeout_ms` in front of a full
    # log is told so, with advice; that is followed.
    futures = [future for _, future in asked]
    await asyncio.wait(futures)
    replies = [future.result() for future in futures]
    if refused := note(book, bad, numbers, replies, BEHIND):
        await asyncio.sleep(max(reply.get("retry_after_ms", 0) for reply in replies) / 1000)
    return len(numbers) - len(refused)


async def asks(server, command, stop):
    """Asks the same again and again, writing nothing. Returns (answers, slowest in seconds)."""
    client = await Client.open(server.url)
    answers, slowest = 0, 0.0
    while not stop.is_set():
        began = time.monotonic()
        await client.call(command)
        slowest = max(slowest, time.monotonic() - began)
        answers += 1
        await asyncio.sleep(0.05)
    await client.close()
    return answers, slowest


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
        pinging = asyncio.create_task(asks(server, {"type": "ping"}, stop))
        looking = asyncio.create_task(asks(server, {"type": "history", "session": "warm", "from": 0, "limit": 8}, stop))
        reading = asyncio.create_task(read(server, bad, stop))
        highest = 0
        end = time.monotonic() + options.seconds
        while time.monotonic() < end:
            await asyncio.sleep(0.2)
            highest = max(highest, server.rss_kib() - before)
        rate = sum(progress) / options.seconds
        offered, acked = book.sent - 512, sum(progress)
        stop.set()
        pings, slowest_ping = await pinging
        histories, slowest_history = await looking
        seen = await reading
        for task in publishing:
            task.cancel()
        await asyncio.gather(*publishing, return_exceptions=True)
        server.kill9()
        server.start()
        found = await audit(server.url, book, bad, "after kill -9")
        print(
            f"{options.writes} writes/s a shard's disk: {acked} of {offered} events acknowledged ({rate:.0f}/s), slowest of {options.publishers} publishers "
            f"{min(progress)}, reader saw {seen}, {pings} pings, slowest {slowest_ping * 1000:.0f} ms, {histories} histories, slowest {slowest_history * 1000:.0f} ms; "
            f"server grew by {highest} KiB at most; {found} stored",
            flush=True,
        )
        bad.check()
        assert acked > 0 and min(progress) > 0, f"a publisher starved: {progress}"
        assert rate < options.writes * EVENTS_PER_WRITE_MAX, f"{rate:.0f} events/s: the disk was not slow, the test proved nothing"
        assert offered > acked + 512, f"only {offered} events were offered: nobody had to wait"
        # A ping is answered in the turn that reads it. Behind the disk it would wait for a group, one in 0.2 s, as every publisher does.
        assert pings > options.writes * options.seconds, f"only {pings} pings: they waited for somebody else's disk"
        assert histories > 0, "not one history was answered"
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
