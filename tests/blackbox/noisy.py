#!/usr/bin/env python3
"""A noisy neighbour: one tenant offers far more than its share over many sessions, and the others do not notice much.

    noisy   a process of its own: N connections, each with as many publishes under way as it may
    quiet   one connection, a publish now and then ─► its own event            before the noise, and beside it
    quotas  a tenant over its rate is told when to come back, and it is right; one connection too many is closed with 4103

Needs tenants, so it needs keys: each tenant's token is minted by the server's own tools.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time

from websockets.exceptions import ConnectionClosed

from tide import PATIENCE_S, Client, Server, binary, environment, run

CONFIG = """
[tenants.metered]
events_per_second_max = 50
connections_max = 3
[tenants.quiet]
weight = 1
"""


def tidegate(*arguments):
    done = subprocess.run([binary(), *map(str, arguments)], capture_output=True, text=True, timeout=30, env=environment())
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def token(keys, tenant, client):
    return tidegate("token", "--keys", keys, "--tenant", tenant, "--client", client, "--all")


async def open_as(url, bearer, client):
    return await Client.open(f"{url}?client={client}", additional_headers={"Authorization": f"Bearer {bearer}"})


async def enter(server, keys, tenant, client):
    return await open_as(server.url, token(keys, tenant, client), client)


def publish(session, message_id, data):
    return {"type": "publish", "session": session, "topic": "chat.message", "message_id": message_id, "data": data}


async def make_noise(client, number, stop, batch):
    """Publishes without a pause, two frames ahead of the answers."""
    sent, flying = 0, set()
    while not stop.is_set():
        commands = [publish(f"noise-{number}-{n % 10}", f"m{sent + n}", "x" * 200) for n in range(batch)]
        sent += batch
        flying.add(asyncio.create_task(client.call_all(commands)))
        if len(flying) >= 2:
            _, flying = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
    if flying:
        await asyncio.wait(flying, timeout=PATIENCE_S)
    return sent


async def noise(options):
    """The noisy tenant: begins when it has a token, ends when it is told to, and says how much it sent."""
    bearer = sys.stdin.readline().strip()
    clients = [await open_as(options.noise, bearer, f"n{n}") for n in range(options.connections)]
    stop = asyncio.Event()
    tasks = [asyncio.create_task(make_noise(client, n, stop, options.batch)) for n, client in enumerate(clients)]
    await asyncio.sleep(0.5)
    print("begun", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    stop.set()
    sent = sum(await asyncio.gather(*tasks))
    for client in clients:
        await client.close(abort=True)
    print(sent, flush=True)


async def round_trips(client, seconds, tag):
    """Publish to delivery, one after the other. Returns the sorted times."""
    times, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        await client.call(publish("calm", f"{tag}-{len(times)}", len(times)))
        event = await client.next_event()
        assert event["data"] == len(times), event
        times.append(time.monotonic() - began)
        await asyncio.sleep(0.005)
    return sorted(times)


def at(times, share):
    return times[min(len(times) - 1, int(len(times) * share))] * 1000


async def neighbours(server, keys, options):
    quiet = await enter(server, keys, "quiet", "q")
    await quiet.call({"type": "subscribe", "session": "calm", "from": "latest"})
    before = await round_trips(quiet, options.seconds, "before")
    words = [sys.executable, __file__, "--noise", server.url, "--connections", options.connections, "--batch", options.batch]
    noise = subprocess.Popen([*map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        noise.stdin.write(token(keys, "noisy", "*") + "\n")
        noise.stdin.flush()
        assert noise.stdout.readline() == "begun\n", "there is no noise"
        began = time.monotonic()
        while_noisy = await round_trips(quiet, options.seconds, "while")
        seconds = time.monotonic() - began
        sent = int(noise.communicate("end\n", timeout=60)[0])
    finally:
        noise.kill()
        noise.wait()
    await quiet.close()
    print(
        f"quiet, publish to delivery: {len(before)} before, p50 {at(before, .5):.1f} p99.9 {at(before, .999):.1f} ms; "
        f"{len(while_noisy)} beside {sent / seconds:.0f} events/s of another tenant, p50 {at(while_noisy, .5):.1f} p99.9 {at(while_noisy, .999):.1f} ms",
        flush=True,
    )
    assert sent > 500, "there was no noise"
    # What starved would not come at all; how late it comes is for a quiet machine to say (tools/bench --only noisy).
    assert len(while_noisy) > 3, f"the quiet tenant starved: {while_noisy}"


async def quotas(server, keys):
    one = await enter(server, keys, "metered", "m1")
    replies = await one.call_all([publish("s", f"m{n}", n) for n in range(120)])
    taken = [reply for reply in replies if reply["type"] == "published"]
    refused = [reply for reply in replies if reply["type"] == "refused"]
    assert len(taken) >= 50 and len(refused) >= 20 and len(taken) + len(refused) == 120, (len(taken), len(refused))
    for reply in refused:
        assert reply["refusal"] == "over_quota" and reply["field"] == "events_per_second_max", reply
        assert 1 <= reply["retry_after_ms"] <= 1000, reply
    await asyncio.sleep(refused[-1]["retry_after_ms"] / 1000 + 0.01)
    reply = await one.call(publish("s", "again", 1))
    assert reply["type"] == "published", f"the advice was wrong: {reply}"
    others = [await enter(server, keys, "metered", f"m{n}") for n in (2, 3)]
    for client in others:
        assert (await client.call({"type": "ping"}))["type"] == "pong"
    late = await enter(server, keys, "metered", "m4")
    try:
        await late.call({"type": "ping"})
        raise AssertionError("a fourth connection works")
    except (ConnectionClosed, EOFError):
        assert late.socket.close_code == 4103, late.socket.close_code
    for client in [one, *others]:
        await client.close()
    print(f"quotas: {len(taken)} of 120 taken, the rest told when to come back; the fourth connection closed with 4103", flush=True)


async def main(options):
    with tempfile.TemporaryDirectory() as folder:
        keys, config = os.path.join(folder, "keys.json"), os.path.join(folder, "tidegate.toml")
        tidegate("keys", "make", "--algorithm", "eddsa", "--id", "k", "--out", keys)
        with open(config, "w") as file:
            file.write(CONFIG)
        for shards in (1, 2):
            with Server("--config", config, "--set", f"auth_keys_file={keys}", shards=shards) as server:
                await neighbours(server, keys, options)
                await quotas(server, keys)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--noise", metavar="URL", help="be the noisy tenant")
    options = parser.parse_args()
    run(noise(options) if options.noise else main(options))
