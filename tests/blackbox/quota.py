#!/usr/bin/env python3
"""Quotas on a running server: what a tenant may use is kept to, said with a time that is right, changed under way, and kept.

    [tenants.default]  a rate and a number of connections ─► refusals with advice, 4103
    tidegate quota     another bound ─► in force within a second ─► kill -9, start ─► still in force ─► --reset ─► as configured
    a file that is none ─► the old bounds stay; at a start: status 2 and one line
    what is kept       sessions, jobs, entries: refused beyond the bound, exactly, before and after kill -9 with other shards
    quota.set          by who has `$operator`: in force at once, in the same file; a tenant's own admin looks and no more

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


async def taken(client, commands, bound):
    """How many of these are taken; the others are refused for this bound, with advice."""
    count = 0
    for command in commands:
        try:
            await client.call(command)
            count += 1
        except Refused as why:
            assert why.name == "over_quota" and why.frame["field"] == bound and why.frame["retry_after_ms"] > 0, why
    return count


def sessions(names, tag):
    return [{**PUBLISH, "session": f"s{name}", "message_id": f"{tag}{name}", "data": 1} for name in names]


async def what_is_kept(server):
    one = await Client.open(f"{server.url}?client=c1")
    bounds = {"sessions_max": 5, "queue_depth_max": 3, "entries_bytes_max": 1000}
    reply = await one.call({"type": "quota.set", "quota": bounds})
    assert reply["type"] == "quota" and reply["tenant"] == "default" and reply["quota"] == {"weight": 1, **bounds}, reply
    assert await taken(one, sessions(range(12), "a"), "sessions_max") == 5
    declare = {"type": "queue.declare", "queue": "q", "patterns": ["job.>"], "deadline_ms": 600_000, "dead_letter": "dead"}
    await one.call(declare)
    # The queue itself is kept as an entry: what is left for others is counted in the same bytes.
    puts = [{"type": "entry.put", "bucket": f"b{n}", "key": "k", "data": "x" * 70} for n in range(12)]
    puts_taken = await taken(one, puts, "entries_bytes_max")
    assert 5 <= puts_taken < 10, puts_taken
    jobs = [{**PUBLISH, "session": f"s{n}", "topic": "job.a", "message_id": f"job{n}", "data": 1} for n in (0, 1, 2, 3, 4)]
    assert await taken(one, jobs, "queue_depth_max") == 3
    for shards in (2, 3):
        await one.close()
        server.kill9()
        server.start(shards=shards)
        one = await Client.open(f"{server.url}?client=c1")
        assert await taken(one, sessions(range(12), f"b{shards}-"), "sessions_max") == 5, "the same five exist"
        assert await taken(one, [{**puts[0], "bucket": f"new{shards}"}], "entries_bytes_max") == 0
        assert await taken(one, [{**puts[0]}], "entries_bytes_max") == 1, "what replaces as much takes nothing"
        assert await taken(one, [{**jobs[0], "message_id": f"more{shards}"}], "queue_depth_max") == 0
    # Room comes back with what goes.
    await one.call({"type": "entry.delete", "bucket": "b0", "key": "k"})
    deadline = time.monotonic() + SOON_S
    while not await taken(one, [{**puts[0], "bucket": "later"}], "entries_bytes_max"):
        assert time.monotonic() < deadline, "an entry went, and no other may come"
        await asyncio.sleep(0.2)
    await one.call({"type": "quota.set", "quota": {**bounds, "sessions_max": 7}})
    said = quota(server, "default")
    assert "sessions_max = 7" in said and "queue_depth_max = 3" in said, said
    deadline = time.monotonic() + SOON_S
    while (count := await taken(one, sessions(range(12), "c"), "sessions_max")) < 7:
        assert time.monotonic() < deadline, f"a bound that was raised is not in force: {count}"
        await asyncio.sleep(0.2)
    assert count == 7
    reply = await one.call({"type": "quota.set"})
    assert reply["quota"]["events_per_second_max"] == 50 and "sessions_max" not in reply["quota"], reply
    assert (await one.call({"type": "quota.get"}))["quota"] == reply["quota"], "as the configuration says"
    await one.close()
    print("sessions, entries and jobs are counted over all shards and three starts; bounds set on the wire are kept", flush=True)


async def who_may(folder):
    key = os.path.join(folder, "keys.json")
    subprocess.run([binary(), "keys", "make", "--out", key], check=True, capture_output=True, env=environment())

    def mint(tenant, *grants):
        flags = [flag for grant in grants for flag in ("--admin", grant)]
        command = [binary(), "token", "--keys", key, "--tenant", tenant, "--client", f"{tenant}-admin", "--publish", ">", *flags]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment()).stdout.strip()

    with Server("--set", f"auth_keys_file={key}", shards=2) as server:
        operator = await Client.open(server.url, auth=mint("ops", "$operator"))
        admin = await Client.open(server.url, auth=mint("acme", "*"))
        nobody = await Client.open(server.url, auth=mint("bcorp"))
        for client, command in [
            (admin, {"type": "quota.set", "quota": {"weight": 100}}),
            (admin, {"type": "quota.set", "tenant": "acme", "quota": {"weight": 100}}),
            (admin, {"type": "quota.get", "tenant": "bcorp"}),
            (nobody, {"type": "quota.get"}),
        ]:
            try:
                raise AssertionError(await client.call(command))
            except Refused as why:
                assert why.name == "forbidden" and why.frame["field"] == "capabilities.admin", why
        await operator.call({"type": "quota.set", "tenant": "acme", "quota": {"sessions_max": 1}})
        assert (await admin.call({"type": "quota.get"}))["quota"] == {"weight": 1, "sessions_max": 1}
        assert await taken(admin, sessions(range(3), "x"), "sessions_max") == 1
        assert await taken(nobody, sessions(range(3), "x"), "sessions_max") == 3, "another tenant's"
        for client in (operator, admin, nobody):
            await client.close()
    print("a tenant's admin looks at its quota, whoever has $operator sets it, nobody else does either", flush=True)


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
        with open(config, "w") as file:
            file.write("[tenants.default]\nevents_per_second_max = 50\n")
        with Server("--config", config, shards=3) as server:
            await what_is_kept(server)
        await who_may(folder)


if __name__ == "__main__":
    run(main())
