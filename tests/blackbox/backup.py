#!/usr/bin/env python3
"""A backup of a running server: everything acknowledged before it began is in it, in order, and it can be served from.

    publishers ──► server over small files that come and go ──► tidegate backup DEST, again and again; frozen now and then, so that
                                                                      │  much happens between its files
                                                                      └─► serve from DEST: what was acknowledged by then, no hole, no repeat
"""

import argparse
import asyncio
import os
import pathlib
import shutil
import signal
import subprocess
import time

from disk_mount import SMALL
from tide import GONE, Client, Refused, Server, Violations, binary, environment, history, run

PAD = "x" * 700


class Publisher:
    """One session: message n carries n, so that the stored list shows holes, repeats and order."""

    def __init__(self, name):
        self.name, self.sent, self.acked = name, 0, 0

    async def publish_until(self, url, ended):
        client = await Client.open(url)
        while not ended.is_set():
            numbers = range(self.sent, self.sent + 8)
            command = {"type": "publish", "session": self.name, "topic": "a"}
            commands = [{**command, "message_id": f"m{n}", "data": {"n": n, "pad": PAD}} for n in numbers]
            replies = await client.call_all(commands)
            assert all(reply["type"] == "published" for reply in replies), replies
            self.sent = self.acked = numbers[-1] + 1
        await client.close()


def tidegate(*arguments, status=0):
    done = subprocess.run([binary(), *arguments], capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == status, (arguments, done.returncode, done.stdout, done.stderr)
    return (done.stdout + done.stderr).strip()


def stretched(*arguments):
    """Runs the binary in short pieces, for the world to go on between them; returns what it said."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([binary(), *arguments], **pipes, env=environment(), start_new_session=True)
    deadline = time.monotonic() + 60
    while process.poll() is None:
        time.sleep(0.004)
        if time.monotonic() < deadline - 50:
            os.killpg(process.pid, signal.SIGSTOP)
            time.sleep(0.05)
            os.killpg(process.pid, signal.SIGCONT)
        assert time.monotonic() < deadline, "the backup does not end"
    said = process.stdout.read().strip()
    process.stdout.close()
    assert process.returncode == 0, (process.returncode, said)
    return said


def copied(server, folder):
    """A server on a copy of a backup: the backup itself stays as it was."""
    other = Server(*SMALL, shards=server.shards)
    shutil.copytree(folder, other.data)
    return other


async def is_whole(server, acked, bad):
    """Each session holds what was acknowledged, and perhaps what came after, dense from 0."""
    client = await Client.open(server.url)
    extra = 0
    for name, wanted in acked.items():
        stored = [event["data"]["n"] for event in await history(client, name)]
        extra += len(stored) - wanted
        if stored != list(range(len(stored))) or len(stored) < wanted:
            bad.add("not whole", f"{name}: {wanted} were acknowledged, stored are {len(stored)}: {stored[:5]} … {stored[-5:]}")
    reply = await client.call({"type": "publish", "session": "after", "topic": "a", "message_id": "1", "data": 1})
    assert reply["type"] == "published", reply
    await client.close()
    return extra


async def under_load(server, rounds, bad):
    loop = asyncio.get_running_loop()
    publishers = [Publisher(f"s{n}") for n in range(24)]
    ended = asyncio.Event()
    going = [asyncio.create_task(publisher.publish_until(server.url, ended)) for publisher in publishers]
    backups = []
    for number in range(rounds):
        await asyncio.sleep(0.4)
        acked = {publisher.name: publisher.acked for publisher in publishers}
        dest = os.path.join(server.folder, f"backup-{number}")
        line = await loop.run_in_executor(None, lambda: stretched("backup", dest, "--data", server.data))
        assert "all good" in line, line
        backups.append((dest, acked))
    files = len(os.listdir(server.data))
    ended.set()
    await asyncio.gather(*going)
    events = sum(publisher.acked for publisher in publishers)
    print(f"{rounds} backups of up to {files} files while {events} events were published", flush=True)
    return backups


async def restored(server, backups, bad):
    for number, (dest, acked) in enumerate(backups):
        other = copied(server, dest)
        try:
            # Also with another number of shards: a restore may go to another host.
            other.start(shards=(2, 3, 1)[number % 3])
            extra = await is_whole(other, acked, bad)
            assert other.stop() == 0, other.tail()
        finally:
            other.close()
    print(f"{len(backups)} restored; the last one also had {extra} events from after its start", flush=True)


def tokens_and_modes(server, dest):
    names = set(os.listdir(dest))
    assert "resume.keys" in names and "LOCK" not in names and "takeover.sock" not in names, names
    assert os.stat(dest).st_mode & 0o777 == 0o700
    assert all(os.stat(os.path.join(dest, name)).st_mode & 0o777 == 0o600 for name in names)
    keys = pathlib.Path(server.data, "resume.keys").read_bytes()
    assert pathlib.Path(dest, "resume.keys").read_bytes() == keys


def refusals(server, dest):
    assert "exists already" in tidegate("backup", dest, "--data", server.data, status=1)
    new = os.path.join(server.folder, "new")
    empty = os.path.join(server.folder, "empty")
    os.mkdir(empty)
    assert "holds no log" in tidegate("backup", new, "--data", empty, status=1)
    assert "open the data folder" in tidegate("backup", new, "--data", os.path.join(server.folder, "nowhere"), status=1)
    assert not os.path.exists(new) and not os.path.exists(new + ".partial")


def damage_is_found(server, dest):
    """A sealed segment with a flipped bit makes no backup, and leaves nothing that looks like one."""
    broken = os.path.join(server.folder, "broken")
    shutil.copytree(dest, broken)
    # In the words of an event: what lies between groups to fill blocks belongs to nobody.
    segments = (path.with_suffix(".log") for path in sorted(pathlib.Path(broken).glob("seg-*.idx")))
    sealed = next(path for path in segments if PAD.encode() in path.read_bytes())
    bytes_of = bytearray(sealed.read_bytes())
    bytes_of[bytes_of.index(PAD.encode()) + 200] ^= 1
    sealed.write_bytes(bytes_of)
    new = os.path.join(server.folder, "of-broken")
    line = tidegate("backup", new, "--data", broken, status=1)
    assert "damaged" in line and sealed.name in line, line
    assert not os.path.exists(new) and not os.path.exists(new + ".partial")


async def of_a_dead_server(server, bad):
    """After kill -9, and after a stop: nobody has the folder."""
    publisher, ended = Publisher("last"), asyncio.Event()
    going = asyncio.create_task(publisher.publish_until(server.url, ended))
    await asyncio.sleep(0.5)
    acked = {"last": publisher.acked}
    os.kill(server.process.pid, signal.SIGKILL)
    try:
        await going
    except GONE:
        pass
    server.kill9()
    dest = os.path.join(server.folder, "of-the-dead")
    tidegate("backup", dest, "--data", server.data)
    await restored(server, [(dest, acked)], bad)


async def refused(client, name, command):
    try:
        raise AssertionError(await client.call(command))
    except Refused as why:
        assert why.name == name, why


async def back_in_time(server):
    """What was given out after the backup is given to nothing else: event ids, tokens, places in feeds."""
    publish = {"type": "publish", "session": "t", "topic": "in.time"}
    one = await Client.open(f"{server.url}?client=c")
    old = [(await one.call({**publish, "message_id": f"m{n}", "data": n}))["event_id"] for n in range(3)]
    life = await one.call({"type": "resume"})
    dest, new = os.path.join(server.folder, "in-time"), os.path.join(server.folder, "restored")
    tidegate("backup", dest, "--data", server.data)
    feed = await Client.open(f"{server.url}?client=f")
    await feed.call({"type": "subscribe", "patterns": ["in.time"], "from": "latest"})
    old += [(await one.call({**publish, "message_id": f"m{n}", "data": n}))["event_id"] for n in range(3, 6)]
    places = {}
    for _ in range(3):
        slice_, seq = (await feed.next_event())["at"].split(".")
        places[slice_] = seq
    await one.close()
    one = await Client.open(f"{server.url}?client=c")
    life = await one.call({"type": "resume", "token": life["token"]})
    for client in (one, feed):
        await client.close()
    tidegate("restore", dest, "--data", new)
    assert "exists already" in tidegate("restore", dest, "--data", new, status=1)
    epochs = {old[0].rsplit(":", 2)[1]}
    for folder in (new, None):
        other = copied(server, dest) if folder is None else Server(*SMALL, shards=server.shards, data=folder)
        try:
            other.start(shards=3)
            again = await Client.open(f"{other.url}?client=c")
            stored = await history(again, "t")
            assert [event["data"] for event in stored] == [0, 1, 2], stored
            epoch = stored[0]["event_id"].rsplit(":", 2)[1]
            assert epoch not in epochs, "each time is another"
            epochs.add(epoch)
            reply = await again.call({**publish, "message_id": "m1", "data": 1})
            assert reply.get("duplicate") and reply["event_id"] == f"t:{epoch}:1", reply
            await refused(again, "stale_token", {"type": "resume", "token": life["token"]})
            await refused(again, "causal_gap", {**publish, "message_id": "x", "data": 0, "prev_event_id": old[0]})
            await refused(again, "foreign_epoch", {"type": "subscribe", "session": "t", "from": {"offset": 5, "epoch": old[0].rsplit(":", 2)[1]}})
            feed = await Client.open(f"{other.url}?client=g")
            position = ",".join(f"{slice_}.{seq}" for slice_, seq in places.items())
            await feed.call({"type": "subscribe", "patterns": ["in.time"], "from": {"position": position}})
            ids = [(await again.call({**publish, "message_id": f"n{n}", "data": n, "prev_event_id": f"t:{epoch}:0"}))["event_id"] for n in range(6)]
            assert ids == [f"t:{epoch}:{3 + n}" for n in range(6)] and not set(ids) & set(old), ids
            for event_id in ids:
                frame = await feed.next_event()
                assert frame["event_id"] == event_id and frame["prev_event_id"] == f"t:{epoch}:0", frame
            fresh = await again.call({"type": "resume"})
            assert fresh["token"] != life["token"], fresh
            other.kill9()
            other.start(shards=2)
            again = await Client.open(f"{other.url}?client=c")
            assert (await history(again, "t"))[-1]["event_id"] == ids[-1], "the same time at each start"
            await again.call({"type": "resume", "token": fresh["token"]})
            at = await again.call({"type": "subscribe", "session": "t", "from": {"offset": 9, "epoch": epoch}})
            assert at["epoch"] == epoch and at["next"] == 9, at
            await again.close()
            assert other.stop() == 0, other.tail()
        finally:
            other.close()
    print(f"restored twice: {len(epochs)} epochs of one session, no event id, token or place of the time that is gone fits", flush=True)


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="backups under load")
    options = parser.parse_args()
    bad = Violations()
    with Server(*SMALL, shards=2) as server:
        began = time.monotonic()
        backups = await under_load(server, options.rounds, bad)
        tokens_and_modes(server, backups[0][0])
        refusals(server, backups[0][0])
        damage_is_found(server, backups[-1][0])
        await restored(server, backups, bad)
        await back_in_time(server)
        await of_a_dead_server(server, bad)
        bad.check()
        print(f"backup: passed in {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    run(main())
