#!/usr/bin/env python3
"""What the server says of its own time, to those who ask: Prometheus' own parsers, `tidegate top`, `tidegate why`, its log.

    publishers, readers ─► server ─► /metrics   both text formats, read by prometheus-client; counters against what was really done
                                  ─► top --once names shards, stages, tenants, refusals
                                  ─► why EVENT  who has it, who has not and why; old events; events that never were
    traceparent: from a publisher to readers on other shards, to history, through a restart
"""

import asyncio
import json
import os
import re
import shlex
import stat
import subprocess

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

import admin
import admin_bad_input
from tail_clients import elsewhere, publish
from tide import ROOT, Client, Refused, Server, binary, environment, history, run, split_event_id

STAGES = ["socket_in", "decode", "mailbox", "append", "commit", "deliver", "socket_out"]
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
EVENTS = 40


def sums(text, parse):
    """Samples of a page, added up over their shards: (name, other labels) → value."""
    out = {}
    for family in parse(text):
        for sample in family.samples:
            labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "shard"))
            out[sample.name, labels] = out.get((sample.name, labels), 0) + sample.value
    return out


def check_histograms(samples):
    """Buckets rise to the count, and there are many."""
    for (name, labels), count in samples.items():
        if not name.endswith("_seconds_count"):
            continue
        bucket = name.removesuffix("_count") + "_bucket"
        of = [(float(dict(l)["le"]), v) for (n, l), v in samples.items() if n == bucket and set(labels) <= set(l)]
        of.sort()
        assert len(of) >= 40 and of[-1] == (float("inf"), count), (name, labels, of[-2:], count)
        assert all(a[1] <= b[1] for a, b in zip(of, of[1:])), (name, labels)


async def metrics(port, server):
    for accept, parse in ((None, prometheus), ("application/openmetrics-text", openmetrics)):
        status, kind, text = await asyncio.to_thread(admin.request, port, "/metrics", **({"Accept": accept} if accept else {}))
        assert status == 200 and ("openmetrics" in kind) == bool(accept), (status, kind)
        samples = sums(text, parse)
        check_histograms(samples)
        for stage in STAGES:
            name = "tidegate_stage_seconds_count"
            at_least = EVENTS if stage not in ("mailbox", "socket_out") else 1
            assert samples[name, (("stage", stage),)] >= at_least, (stage, samples[name, (("stage", stage),)])
            tail = [samples["tidegate_stage_quantile_seconds", (("quantile", q), ("stage", stage))] for q in ("0.5", "0.99", "0.999", "1")]
            assert tail == sorted(tail) and tail[-1] > 0, (stage, tail)
        assert samples["tidegate_tenant_events_total", (("tenant", "default"),)] >= EVENTS
        assert samples["tidegate_refusals_total", (("code", "4205"), ("refusal", "bad_topic"))] == 3
        assert samples["tidegate_log_records_total", ()] >= EVENTS
        assert samples["tidegate_clients", ()] >= 3
        assert samples["tidegate_shards", ()] == 2 and samples["tidegate_shards_silent", ()] == 0
        assert 0 < samples["tidegate_process_resident_bytes", ()] < samples["tidegate_memory_plan_bytes", ()]
        assert samples["tidegate_shard_busy_seconds_total", ()] > 0
    pasted = {name for name, _ in sums(await asyncio.to_thread(by_curl, port), prometheus)}
    alarms = set(re.findall(r"tidegate_[a-z_]+", (ROOT / "README.md").read_text().partition("## Seeing the tail")[2].partition("\n## ")[0]))
    assert len(alarms) > 5 and alarms <= pasted, ("README names what there is not", alarms - pasted)
    assert admin.request(port, "/stall?stage=commit&ms=1", method="POST")[0] == 404, "a server for use takes no orders to stall"
    socket = os.path.join(server.data, "admin.sock")
    assert stat.S_IMODE(os.stat(socket).st_mode) == 0o600
    assert "tidegate_stage_seconds_bucket" in await asyncio.to_thread(admin.by_socket, socket, "/metrics")


def by_curl(port):
    """What README's line prints, as an operator would paste it."""
    lines = [line.strip() for line in (ROOT / "README.md").read_text().splitlines() if line.strip().startswith("curl ")]
    found = next(line for line in lines if "/metrics" in line)
    words = [word.replace("127.0.0.1:7778", f"127.0.0.1:{port}") for word in shlex.split(found.split("   ")[0])]
    assert any(str(port) in word for word in words), words
    return subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout


async def whys(server, publisher, session, ids, readers, poor):
    owner = (await admin.why(server, ids[-1]))["owner"]
    told = await admin.why(server, ids[-1])
    assert told["state"] == "durable" and told["trace"] == "kept", told
    stages = {stage["stage"]: stage["us"] for stage in told["stages"]}
    assert [stage for stage in STAGES if stage in stages] == list(stages), stages
    assert {"socket_in", "decode", "append", "commit", "deliver"} <= set(stages), stages
    assert abs(sum(stages.values()) - stages.get("socket_out", 0) - told["total_us"]) < 0.3 * told["total_us"] + 2000, told
    of = {reader["client"]: reader for reader in told["readers"]}
    for client in readers:
        assert of[client]["got"], of
    assert not of[poor]["got"] and "credit" in of[poor]["why"], of[poor]
    first = {reader["client"]: reader for reader in (await admin.why(server, ids[0]))["readers"]}
    assert first[poor]["got"], first[poor]
    late = await Client.open(f"{server.url}?client=late")
    await late.call({"type": "subscribe", "session": session, "from": "latest"})
    of = {reader["client"]: reader for reader in (await admin.why(server, ids[-1]))["readers"]}
    assert not of["late"]["got"] and "after" in of["late"]["why"], of["late"]
    name, epoch, offset = split_event_id(ids[-1])
    for event, state in ((f"{name}:{epoch}:{offset + 9}", "never appended"), (f"{name}:{'0' * 15}1:0", "another epoch"), (f"nobody:{epoch}:0", "no such session")):
        assert state in (await admin.why(server, event))["state"], (event, state)
    status, _, err = await admin.tidegate("why", "--data", server.data, "nonsense")
    assert status == 1 and "SESSION:EPOCH:OFFSET" in err, err
    status, out, _ = await admin.tidegate("why", "--data", server.data, ids[-1])
    assert status == 0 and f"- {poor}" in out and "commit" in out, out
    await late.close()
    return owner


async def tops(server):
    figures = await admin.top(server, 0)
    assert {stage["stage"]: stage["count"] for stage in figures["stages"]}["commit"] >= EVENTS
    assert figures["tenants"][0]["tenant"] == "default" and figures["refusals"][0]["refusal"] == "bad_topic", figures
    assert [shard["shard"] for shard in figures["shards"]] == [0, 1] and all(shard["turn"]["count"] for shard in figures["shards"])
    quiet = await admin.top(server, 0.3)
    assert sum(stage["count"] for stage in quiet["stages"]) < 100, "only what the interval brought"
    status, out, err = await admin.tidegate("top", "--data", server.data, "--once", "--seconds", "0")
    assert status == 0 and all(stage in out for stage in STAGES) and "bad_topic" in out and "\x1b" not in out, (out, err)


async def main():
    port, flags = admin.flags()
    with Server(*flags, "--log-format", "json") as server:
        session = "tail"
        publisher = await Client.open(f"{server.url}?client=publisher&session={session}")
        first = await publisher.call(publish(session, 0, traceparent=TRACEPARENT))
        owner = publisher.welcome["shard"]
        far = await elsewhere(server, owner)
        far_id = far.welcome["client"]
        near = await Client.open(f"{server.url}?client=near&session={session}")
        watcher = await Client.open(f"{server.url}?client=watcher")
        poor = await Client.open(f"{server.url}?client=poor&session={session}")
        await poor.call({"type": "hello", "credit": {"events": 2}})
        for client in (far, near, poor):
            await client.call({"type": "subscribe", "session": session, "from": "earliest"})
        await watcher.call({"type": "subscribe", "patterns": ["chat.>"], "from": "earliest"})
        ids = [first["event_id"]]
        for number in range(1, EVENTS):
            # From the other shard, too: by mailbox.
            client = far if number % 4 == 0 else publisher
            ids.append((await client.call(publish(session, number, traceparent=TRACEPARENT)))["event_id"])
        for client in (far, near, watcher):
            got = [await client.next_event() for _ in range(EVENTS)]
            assert [event["event_id"] for event in got] == ids
            assert all(event["traceparent"] == TRACEPARENT for event in got), "on every way"
        pointer = {"type": "publish", "session": session, "topic": "chat.typing", "durability": "volatile", "data": 1, "traceparent": TRACEPARENT}
        await far.call(pointer)
        for client in (far, near, watcher):
            assert (await client.next_event())["traceparent"] == TRACEPARENT, "volatile, too"
        for _ in range(3):
            try:
                await publisher.call({**publish(session, 99), "topic": "no topic"})
                raise AssertionError("taken")
            except Refused as no:
                assert no.name == "bad_topic", no
        assert await whys(server, publisher, session, ids, (far_id, "near", "watcher"), "poor") == owner
        await metrics(port, server)
        await tops(server)
        heads = await admin_bad_input.check(server, port, publisher)
        for client in (publisher, far, near, watcher, poor):
            await client.close()
        assert server.stop() == 0
        with open(server.log.name) as log:
            lines = [json.loads(line) for line in log.read().splitlines()]
        assert any(line["message"] == "every log is closed" and line["level"] == "INFO" for line in lines), lines[-3:]
        assert not os.path.exists(os.path.join(server.data, "admin.sock"))

        server.start()
        again = await Client.open(server.url)
        events = await history(again, session)
        assert [event["traceparent"] for event in events] == [TRACEPARENT] * EVENTS, "it is in the record"
        told = await admin.why(server, ids[3])
        assert told["state"] == "durable" and told["trace"].startswith("not kept") and not told["stages"], told
        await again.close()
        await asyncio.to_thread(server.take_over)
        assert (await admin.why(server, ids[3]))["state"] == "durable", "the new process has the socket"
        for _ in range(100):
            # The old one held the port until its end.
            try:
                assert (await asyncio.to_thread(admin.request, port, "/metrics"))[0] == 200
                break
            except OSError:
                await asyncio.sleep(0.1)
        else:
            raise AssertionError("the new process does not get the admin port")
    status, _, err = await admin.tidegate("top", "--data", os.path.dirname(binary()), "--once")
    assert status == 1 and "is a server running there" in err, err
    refused = subprocess.run(
        [binary(), "serve", "--set", "admin_listen=0.0.0.0:1", "--data", server.data], capture_output=True, text=True, env=environment()
    )
    assert refused.returncode == 2 and "admin_listen" in refused.stderr, refused.stderr
    print(f"tail: {EVENTS} events on two shards; both formats of /metrics parsed; top and why agree with what was done; {heads} bad requests refused")


run(main())
