#!/usr/bin/env python3
"""A stall of 40 ms in each stage, one after the other: `why`, `top` and the metrics each name it. Needs a server with the feature `stall`.

    POST /stall?stage=S&ms=40 ─► one event is published ─► why: S took 40 ms, most of all ─► metrics: one more beyond 30 ms in S
                                                        ─► top: S in its interval, and the step of the turn that was over its budget
"""

import asyncio
import os

from prometheus_client.parser import text_string_to_metric_families as prometheus

import admin
from tail_clients import elsewhere, publish
from tide import Client, Server, run

MS = 40
# Stage → step of the turn in which a stall of it happens.
STEPS = {
    "socket_in": "reap",
    "decode": "reap",
    "mailbox": "collect",
    "append": "reap",
    "commit": "commit",
    "deliver": "deliver",
    "socket_out": "submit",
}
# On a busy machine another stage of the same event may take longer than the stall, and top may begin late.
TRIES = 8


def beyond_30_ms(text, stage):
    """Times of a stage over 30 ms so far."""
    within = total = 0
    for family in prometheus(text):
        for sample in family.samples:
            if sample.name == "tidegate_stage_seconds_bucket" and sample.labels["stage"] == stage:
                within += sample.value if sample.labels["le"] == "0.03" else 0
                total += sample.value if sample.labels["le"] == "+Inf" else 0
    return total - within


async def stall(server, port, publisher, reader, number, stage):
    """One stall. Returns what a busy machine may have hidden, or None: `why` says that it was most of the event's way, and `top` saw it."""
    before = beyond_30_ms((await asyncio.to_thread(admin.request, port, "/metrics"))[2], stage)
    watching = asyncio.create_task(admin.top(server, 1))
    await asyncio.sleep(0.4)
    status, _, text = await asyncio.to_thread(admin.request, port, f"/stall?stage={stage}&ms={MS}", "POST")
    assert status == 200, text
    event_id = (await publisher.call(publish("stalls", number)))["event_id"]
    event = await reader.next_event()
    assert event["event_id"] == event_id, event
    # A send's completion is seen in the turn after it.
    await asyncio.sleep(0.2)
    told = await admin.why(server, event_id)
    took = {stage["stage"]: stage["us"] for stage in told["stages"]}
    assert took.get(stage, 0) >= MS * 1000, (stage, told)
    after = beyond_30_ms((await asyncio.to_thread(admin.request, port, "/metrics"))[2], stage)
    assert after > before, (stage, before, after)
    figures = await watching
    longest = next(s["max_us"] for s in figures["stages"] if s["stage"] == stage)
    steps = [step["step"] for shard in figures["shards"] for step in shard["steps"] if step["stalls"]]
    if longest < MS * 990 or STEPS[stage] not in steps:
        return f"not in the second that top shows: longest {longest} µs, steps {steps}"
    return None if told["slowest"] == stage else f"{told['slowest']} took longer"


async def main():
    port, flags = admin.flags()
    with Server(*flags) as server:
        home = await Client.open(f"{server.url}?session=stalls")
        await home.call(publish("stalls", 0))
        reader = await Client.open(f"{server.url}?session=stalls&client=reader")
        await reader.call({"type": "subscribe", "session": "stalls", "from": "latest"})
        far = await elsewhere(server, home.welcome["shard"])
        number = 0
        for stage in STEPS:
            publisher = far if stage == "mailbox" else home
            hidden = []
            for _ in range(TRIES):
                number += 1
                if (why := await stall(server, port, publisher, reader, number, stage)) is None:
                    break
                hidden.append(why)
            else:
                raise AssertionError(f"{stage}: {TRIES} stalls: {hidden}")
        status, out, _ = await admin.tidegate("top", "--data", server.data, "--once", "--seconds", "0")
        assert status == 0 and "stalled: " in out and "submit" in out, out
        server.stop()
        with open(server.log.name) as log:
            assert "a step of the turn took longer than its budget" in log.read()
        for client in (home, reader, far):
            await client.close(abort=True)
    print(f"stalls: {MS} ms in each of {', '.join(STEPS)}: named by why, top and the metrics")


if not os.environ.get("TIDEGATE_BIN") and not os.environ.get("CARGO_TARGET_DIR"):
    print("note: needs a binary built with --features stall")
run(main())
