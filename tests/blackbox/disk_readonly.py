#!/usr/bin/env python3
"""A disk that takes no writes: the start is refused in one line; a running server says so and ends, and has lost nothing.

    read-only mount, read-only folder ─► exit status 2, one line that names the folder and the cure; nothing on it changed
    running ─┬─ file system goes read-only ─► exit status 1, one line ─┐
             └─ disk pulled out (EIO) ──────► exit status 1, one line ─┴─► repair ─► start ─► every acknowledged event, and on it goes
"""

import argparse
import asyncio
import hashlib
import os
import pathlib
import subprocess
import time

from disk_full import Book, audit, note
from disk_mount import SMALL, Disk, Impossible, command, skip_unless_possible
from tide import GONE, Client, Server, Violations, binary, environment, run


def fingerprint(folder):
    """Names and bytes of all files, but the lock."""
    files = sorted(path for path in pathlib.Path(folder).iterdir() if path.is_file() and path.name != "LOCK")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def last_words(said):
    return [line for line in said.splitlines() if line.startswith("tidegate:")]


def refuses_to_start(bad, what, server, *words, program=None, user=None):
    arguments = [program or binary(), *server.arguments()[1:]]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=20, env=environment(), user=user)
    lines = last_words(done.stderr)
    if done.returncode != 2 or len(lines) != 1:
        bad.add(what, f"exit status {done.returncode}, stderr {done.stderr!r}")
    elif not all(word in lines[0] for word in words):
        bad.add(what, f"the line names not {words}: {lines[0]}")
    else:
        print(f"{what}: {lines[0]}", flush=True)


async def publish_some(url, book, bad, count):
    client = await Client.open(url)
    for _ in range(count // 8):
        numbers = range(book.sent, book.sent + 8)
        book.sent += 8
        if note(book, bad, numbers, await client.call_all([book.command(n) for n in numbers])):
            bad.add("refused on a disk with room", None)
    await client.close()


async def publish_until_gone(url, book, bad):
    """Four publishers at once, until their connections break: what they were told counts."""

    async def one():
        try:
            client = await Client.open(url)
            while True:
                numbers = range(book.sent, book.sent + 8)
                book.sent += 8
                # Another publisher's messages may overtake these: each session's order is only that of one of them.
                book.late.update(numbers)
                note(book, bad, numbers, await client.call_all([book.command(n) for n in numbers]))
        except GONE:
            pass

    await asyncio.gather(*(one() for _ in range(4)))


def ends(bad, what, server, said_before, *words):
    """The server ends by itself, with status 1 and one line behind what the log held before it."""
    began = time.monotonic()
    try:
        status = server.process.wait(10)
    except subprocess.TimeoutExpired:
        bad.add(f"{what}: the server goes on as if nothing had happened", server.tail())
        server.kill9()
        return
    took = time.monotonic() - began
    server.reap()
    with open(server.log.name) as log:
        said = log.read()[said_before:]
    lines = last_words(said)
    if status != 1 or len(lines) != 1 or not all(word in lines[0] for word in words):
        bad.add(f"{what}: ends otherwise than with status 1 and one line", (status, said))
    else:
        print(f"{what}: ended after {took:.2f} s: {lines[0]}", flush=True)


async def while_running(what, disk, fault, book, bad, idle):
    """`fault` strikes under load, or an idle server that gets its next publish afterwards."""
    with Server(*SMALL, data=disk.path) as server:
        said_before = os.path.getsize(server.log.name)
        await publish_some(server.url, book, bad, 64)
        if idle:
            fault()
            await publish_until_gone(server.url, book, bad)
        else:
            publishing = asyncio.create_task(publish_until_gone(server.url, book, bad))
            await asyncio.sleep(0.3)
            fault()
            await asyncio.wait_for(publishing, 30)
        await asyncio.to_thread(ends, bad, what, server, said_before, "poisoned", "acknowledged is on disk")
    disk.repair()
    with Server(*SMALL, data=disk.path) as server:
        await audit(server.url, book, bad, f"{what}: after the repair")
        await publish_some(server.url, book, bad, 64)
        if (status := server.stop()) != 0:
            bad.add(f"{what}: SIGTERM did not end in exit status 0", status)


def at_start(disk, bad):
    """The folder, then its whole file system, is read-only."""
    server = Server(*SMALL, data=disk.path)
    before = fingerprint(disk.path)
    command("mount", "-o", "remount,ro", disk.path)
    refuses_to_start(bad, "read-only file system", server, disk.path, "Read-only", "writable")
    command("mount", "-o", "remount,rw", disk.path)
    # Root may write everywhere: somebody else starts the server. The program must be where that one can see it.
    os.chmod(disk.folder, 0o755)
    os.chmod(disk.path, 0o555)
    copy = os.path.join(disk.folder, "tidegate")
    with open(binary(), "rb") as program, open(copy, "wb") as out:
        out.write(program.read())
    os.chmod(copy, 0o755)
    refuses_to_start(bad, "folder of another user", server, disk.path, "belong to the user", program=copy, user=65534)
    os.chmod(disk.path, 0o700)
    if fingerprint(disk.path) != before:
        bad.add("a refused start changed the folder", disk.path)


async def main(options):
    bad = Violations()
    book = Book()
    with Disk(mib=64) as disk:
        with Server(*SMALL, data=disk.path) as server:
            await publish_some(server.url, book, bad, 512)
            server.stop()
        at_start(disk, bad)
        for turn in range(options.turns):
            idle = turn % 2 == 1
            how = "idle" if idle else "under load"
            for what, fault in ((f"gone read-only, {how}", disk.break_), (f"disk pulled, {how}", disk.pull)):
                try:
                    await while_running(what, disk, fault, book, bad, idle)
                except Impossible as why:
                    print(f"{what}: SKIPPED: {why}", flush=True)
    print(f"{len(book.acked)} events acknowledged, all of them there after every repair", flush=True)
    bad.check()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args()
    skip_unless_possible(lambda: Disk(mib=8).close())
    run(main(options))
