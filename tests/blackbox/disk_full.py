#!/usr/bin/env python3
"""A full disk refuses with advice, goes on reading, and takes writes again as soon as there is room; a crash changes nothing.

    fill ─► publish until `no_space` ─► reads, subscriptions, ping ─► free ─► publish ─┐
      ▲                                                                               │  ext4 behind a loop device, and tmpfs
      └── kill -9 while full ◄── fill ◄── every acknowledged event is there ◄─────────┘
"""

import argparse
import asyncio
import os
import time

from disk_mount import SMALL, Disk, skip_unless_possible
from tide import Client, Refused, Server, Violations, history, run

SESSIONS = 8
PAD_BYTES = 3000


class Book:
    """What was acknowledged, and in which order each session got it."""

    def __init__(self, pad_bytes=PAD_BYTES):
        self.pad = "x" * pad_bytes
        self.acked = {}  # message id → event id
        self.late = set()  # refused once: what was sent after them may come before
        self.sent = 0

    def command(self, number):
        return {
            "type": "publish",
            "session": f"s{number % SESSIONS}",
            "topic": "chat.message",
            "message_id": f"m{number}",
            "data": {"n": number, "pad": self.pad},
        }


async def publish_until_full(client, book, bad, timeout_s=60):
    """Publishes in small arrays until one is refused; returns the refused message numbers."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        numbers = range(book.sent, book.sent + 4)
        book.sent += 4
        refused = note(book, bad, numbers, await client.call_all([book.command(n) for n in numbers]))
        if refused:
            return refused
    raise AssertionError(f"the disk is not full after {timeout_s} s and {len(book.acked)} events")


FULL = ("no_space", "full")


def note(book, bad, numbers, replies, wanted=FULL):
    """Keeps acknowledgements; a refusal must be `wanted` (its name, a word of its message), with advice. Returns the refused numbers."""
    refused = []
    name, word = wanted
    for number, reply in zip(numbers, replies):
        if reply["type"] == "published":
            if reply["durability"] != "disk":
                bad.add("acknowledged with another durability", reply)
            book.acked[f"m{number}"] = reply["event_id"]
        else:
            refused.append(number)
            book.late.add(number)
            if reply.get("refusal") != name or not 0 < reply.get("retry_after_ms", 0) <= 60_000 or word not in reply.get("message", ""):
                bad.add(f"refused in other words than {name} with advice", reply)
    return refused


async def publish_again(client, book, bad, numbers, timeout_s=20):
    """Repeats messages until all are acknowledged, as the refusal advises."""
    deadline = time.monotonic() + timeout_s
    began, refusals = time.monotonic(), 0
    while numbers:
        if time.monotonic() > deadline:
            raise AssertionError(f"{len(numbers)} messages are still refused {timeout_s} s after there was room again")
        numbers = note(book, bad, numbers, await client.call_all([book.command(n) for n in numbers]))
        refusals += len(numbers)
        if numbers:
            await asyncio.sleep(0.1)
    return time.monotonic() - began, refusals


async def audit(url, book, bad, when):
    """Every acknowledged event is there once, under its id, in the order of its session."""
    client = await Client.open(url)
    stored = {}
    for number in range(SESSIONS):
        try:
            events = await history(client, f"s{number}")
        except Refused as why:
            if why.name == "unknown_session":
                continue
            raise
        last = -1
        for event in events:
            message = f"m{event['data']['n']}"
            if message in stored:
                bad.add(f"{when}: an event is stored twice", event["event_id"])
            if event["data"]["n"] not in book.late:
                if event["data"]["n"] <= last:
                    bad.add(f"{when}: the order of a session is broken", event["event_id"])
                last = event["data"]["n"]
            if event["data"]["pad"] != book.pad:
                bad.add(f"{when}: an event's bytes differ", event["event_id"])
            stored[message] = event["event_id"]
    for message, event_id in book.acked.items():
        if stored.get(message) != event_id:
            bad.add(f"{when}: an acknowledged event is missing or has another id", (message, event_id, stored.get(message)))
    await client.close()
    return len(stored)


async def still_serves(server, book, bad):
    """On a full disk: ping, history, and a subscription from the beginning."""
    began = time.monotonic()
    client = await Client.open(server.url)
    if (await client.call({"type": "ping"}))["type"] != "pong":
        bad.add("full: no pong", None)
    await client.call({"type": "subscribe", "session": "s0", "from": "earliest"})
    wanted = sum(event_id.startswith("s0:") for event_id in book.acked.values())
    for offset in range(wanted):
        event = await client.next_event()
        if event.get("type") != "event" or not event["event_id"].endswith(f":{offset}"):
            bad.add("full: the subscription does not show everything in order", event)
            break
    await client.close()
    await audit(server.url, book, bad, "full")
    return time.monotonic() - began


def refused_to_start(server, kind, said_before, bad):
    """Exit status 2 and one line with the cure, or else the failure is another one."""
    with open(server.log.name) as log:
        lines = [line for line in log.read()[said_before:].splitlines() if line.startswith("tidegate:")]
    if server.process.returncode != 2 or len(lines) != 1 or "free some" not in lines[0]:
        bad.add("full: the restart fails without one clear line", (server.process.returncode, lines or server.tail()))
    else:
        print(f"{kind}: a full disk refuses the start: {lines[0]}", flush=True)


async def scenario(kind, options, bad):
    book = Book()
    with Disk(kind, options.mib) as disk, Server(*SMALL, data=disk.path) as server:
        reading_s = again_s = 0.0
        refusals = 0
        for turn in range(options.turns):
            # The second time the server dies while the disk is full.
            crash = turn % 2 == 1
            disk.fill(leave=options.leave_kib << 10)
            client = await Client.open(server.url)
            refused = await publish_until_full(client, book, bad)
            # Full it stays, for other sessions and whoever asks.
            refused += note(book, bad, more := range(book.sent, book.sent + SESSIONS), await client.call_all([book.command(n) for n in more]))
            book.sent += SESSIONS
            reading_s = max(reading_s, await still_serves(server, book, bad))
            if crash:
                server.kill9()
                # A start needs room for the indexes of what was not sealed. Without it: no server, and a line that says why.
                said_before = os.path.getsize(server.log.name)
                try:
                    server.start()
                    await audit(server.url, book, bad, "restarted while full")
                    print(f"{kind}: started on a full disk", flush=True)
                except AssertionError:
                    refused_to_start(server, kind, said_before, bad)
            disk.free()
            if not server.alive():
                server.start()
            if crash:
                client = await Client.open(server.url)
            took, again = await publish_again(client, book, bad, refused)
            again_s, refusals = max(again_s, took), refusals + again + len(refused)
            await audit(server.url, book, bad, "after room was made")
            await client.close()
        server.kill9()
        server.start()
        found = await audit(server.url, book, bad, "after kill -9")
        if (status := server.stop()) != 0:
            bad.add("SIGTERM did not end in exit status 0", status)
        print(
            f"{kind}: {len(book.acked)} events acknowledged, {found} stored, full {options.turns} times, {refusals} no_space, reads while full "
            f"took {reading_s:.2f} s at most, publishing worked {again_s:.2f} s after there was room",
            flush=True,
        )


async def main(options):
    bad = Violations()
    for kind in ("ext4", "tmpfs"):
        await scenario(kind, options, bad)
    bad.check()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=32)
    parser.add_argument("--leave-kib", type=int, default=4096, help="room for the log before the disk is full")
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args()
    skip_unless_possible(lambda: Disk(mib=8).close())
    run(main(options))
