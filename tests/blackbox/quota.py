#!/usr/bin/env python3
"""Quotas on a running server: what a tenant may use is kept to, said with a time that is right, changed under way, and kept.

    [tenants.default]  a rate and a number of connections ─► refusals with advice, 4103
    tidegate quota     another bound ─► in force within a second ─► kill -9, start ─► still in force ─► --reset ─► as configured
    a file that is none ─► the old bounds stay; at a start: status 2 and one line

Without keys everybody is tenant `default`, so the table for all others is theirs.
"""

import asyncio
import os
import subprocess
import tempfile
import time

from websockets.exceptions import ConnectionClosed

from tide import Client, Refused, Server, binary, environment, run

CONFIG = """
[tenants.default]
events_per_second_max = 50
connections_max = 3
subscriptions_max = 2
"""
PUBLISH = {"type": "publish", "session": "s", "topic": "chat.message"}
# More than a second's worth of the small bound, and no more than a frame may hold.
BURST = 250
# A change is taken within 200 ms and a turn; the machine may be busy.
SOON_S = 20.0


def quota(server, *arguments, status=0):
    done = subprocess.run([binary(), "quota", "--data", server.data, *arguments], capture_output=True, text=True, timeout=30, env=environment())
    assert done.returncode == status, f"{arguments}: {done.returncode} {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


async def burst(client, tag, count):
    """Publishes so many at once. Returns how many were taken, and the refusals."""
    replies = await client.call_all([{**PUBLISH, "message_id": f"{tag}-{n}", "data": n} for n in range(count)])
    refused = [reply for reply in replies if reply["type"] == "refused"]
    for reply in refused:
        assert reply["refusal"] == "over_quota" and reply["code"] == 4106, reply
        assert reply["field"] == "events_per_second_max" and 1 <= reply["retry_after_ms"] <= 1000, reply
    return count - len(refused), refused


async def until(client, tag, wanted):
    """Tries until a burst is taken as wanted."""
    deadline = time.monotonic() + SOON_S
    attempt = 0
    while True:
        await asyncio.sleep(1.1)  # a whole second's worth may come at once
        taken, _ = await burst(client, f"{tag}{attempt}", BURST)
        if wanted(taken):
            return taken
        assert time.monotonic() < deadline, f"{tag}: {taken} of {BURST} are taken"
        attempt += 1


async def bounds(server):
    one = await Client.open(f"{server.url}?client=c1")
    taken, refused = await burst(one, "first", 120)
    assert 50 <= taken < 120 and refused, taken
    await asyncio.sleep(refused[-1]["retry_after_ms"] / 1000 + 0.05)
    await one.call({**PUBLISH, "message_id": "advised", "data": 1})
    for session in ("a", "b", "a"):
        await one.call({"type": "subscribe", "session": session})
    try:
        await one.call({"type": "subscribe", "session": "c"})
        raise AssertionError("a third subscription stands")
    except Refused as why:
        assert why.frame["field"] == "subscriptions_max" and why.frame["retry_after_ms"] > 0, why
    others = [await Client.open(f"{server.url}?client=c{n}") for n in (2, 3)]
    for client in others:
        assert (await client.call({"type": "ping"}))["type"] == "pong"
    late = await Client.open(f"{server.url}?client=c4")
    try:
        await late.call({"type": "ping"})
        raise AssertionError("a fourth connection works")
    except (ConnectionClosed, EOFError):
        assert late.socket.close_code == 4103, late.socket.close_code
    for client in others:
        await client.close()
    print(f"{taken} of 120 taken, the rest told when to come back; a third subscription refused, a fourth connection closed with 4103", flush=True)
    return one


async def changes(server, one):
    before = quota(server, "default")
    assert "as the configuration says" in before, before
    said = quota(server, "default", "events_per_second_max=100000", "weight=2")
    assert "events_per_second_max = 100000" in said and "weight = 2" in said, said
    await until(one, "more", lambda taken: taken == BURST)
    await one.close()
    server.kill9()
    server.start()
    one = await Client.open(f"{server.url}?client=c1")
    taken, _ = await burst(one, "kept", BURST)
    assert taken == BURST, f"a change is gone after a restart: {taken}"
    for bad in (("default", "events=1"), ("default", "weight=0"), ("a b", "weight=1")):
        quota(server, *bad, status=1)
    with open(os.path.join(server.data, "quotas.toml"), "a") as file:
        file.write("[tenants.default")
    await asyncio.sleep(1.0)
    taken, _ = await burst(one, "broken", BURST)
    assert taken == BURST, f"a file that is none took effect: {taken}"
    await one.close()
    server.stop()
    refused = subprocess.run(server.arguments(), capture_output=True, text=True, timeout=30, env=environment())
    assert refused.returncode == 2 and "quotas.toml" in refused.stderr.splitlines()[-1], refused
    os.remove(os.path.join(server.data, "quotas.toml"))
    server.start()
    one = await Client.open(f"{server.url}?client=c1")
    taken, _ = await burst(one, "again", BURST)
    assert 50 <= taken < BURST, f"the configuration is not in force: {taken}"
    quota(server, "default", "events_per_second_max=100000")
    await until(one, "once-more", lambda taken: taken == BURST)
    quota(server, "default", "--reset")
    await until(one, "reset", lambda taken: taken < BURST)
    await one.close()
    print("changed while it runs, kept over kill -9, a file that is none harms nothing, reset to the configuration", flush=True)


async def main():
    with tempfile.TemporaryDirectory() as folder:
        config = os.path.join(folder, "tidegate.toml")
        with open(config, "w") as file:
            file.write(CONFIG)
        checked = subprocess.run([binary(), "check-config", "--config", config], capture_output=True, text=True, timeout=30, env=environment())
        assert checked.returncode == 0 and "[tenants.default]\nweight = 1\nevents_per_second_max = 50\n" in checked.stdout, checked
        with Server("--config", config, shards=1) as server:
            await (await bounds(server)).close()
        with Server("--config", config, shards=3) as server:
            await changes(server, await bounds(server))


if __name__ == "__main__":
    run(main())
