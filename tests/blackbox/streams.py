#!/usr/bin/env python3
"""The answer of a model outlives the tab that asked for it, and can be stopped from anywhere (FIELD, row B1).

    worker ─ stream.append … ─► session ─► tab: cut off in the middle, comes back, has all of it
                                   │   └─► phone: joins late: the text so far in one frame; says control.cancel
    worker ◄── notice ─────────────┘       the worker closes: cancelled; what was said is kept
    worker killed ─► the server closes the stream as partial, once; also over kill -9 and another number of shards
"""

import asyncio
import os
import sys
import time

from tide import Client, Refused, Server, history, run, split_event_id

SESSION = "room"
LEASE_MS = 1500


def append(stream, seq, delta):
    return {"type": "stream.append", "session": SESSION, "stream": stream, "seq": seq, "delta": delta}


class Reader:
    """What a reader has of the streams of the session; asserts that nothing comes twice and nothing is missing."""

    def __init__(self):
        self.text, self.next, self.status = {}, {}, {}
        self.position, self.frames, self.events = None, 0, []

    def take(self, frame):
        if frame["type"] == "event" and "stream" in frame:
            if "status" in frame:
                self.put(frame["stream"], frame["seq"], frame["seq"], "", frame["status"])
            else:
                self.put(frame["stream"], frame["seq"], frame["seq"] + 1, frame["data"], None)
        elif frame["type"] == "stream.delta":
            self.frames += 1
            for part in frame["streams"]:
                first = part.get("from_seq", self.next.get(part["stream"], 0))
                self.put(part["stream"], first, part.get("to_seq", first - 1) + 1, part.get("delta", ""), part.get("status"))
        elif frame["type"] == "event":
            self.events.append(frame)
        if frame["type"] in ("event", "stream.delta") and "event_id" in frame:
            self.position = frame["event_id"]
        return frame

    def put(self, stream, first, after, text, status):
        assert self.next.get(stream, 0) == first, f"{stream}: {self.next.get(stream, 0)} was next, {first} came"
        assert stream not in self.status, f"{stream} has ended"
        self.next[stream] = after
        self.text[stream] = self.text.get(stream, "") + text
        if status:
            self.status[stream] = status

    async def until(self, client, done, timeout_s=20.0):
        async with asyncio.timeout(timeout_s):
            while not done():
                self.take(await client.next_event(timeout_s))

    def start(self):
        _, epoch, offset = split_event_id(self.position)
        return {"offset": offset + 1, "epoch": epoch}


def url(server, client):
    return f"{server.url}?session={SESSION}&client={client}"


async def subscribe(server, name, start="latest", policy="lossless"):
    client = await Client.open(url(server, name))
    reply = await client.call({"type": "subscribe", "session": SESSION, "from": start, "policy": policy})
    return client, reply


async def stop_and_resume(server):
    worker, _ = await subscribe(server, "worker")
    tab, _ = await subscribe(server, "tab")
    on_tab = Reader()
    stopped = asyncio.Event()
    said = []

    async def listen():
        while not stopped.is_set():
            frame = await worker.next_event(60.0)
            if frame["type"] == "notice" and frame["topic"] == "control.cancel":
                stopped.at = time.monotonic()
                stopped.set()

    listening = asyncio.create_task(listen())

    async def work(upto):
        while len(said) < upto and not stopped.is_set():
            said.append(f"tok{len(said)} ")
            await worker.call(append("answer", len(said) - 1, said[-1]))

    await work(40)
    await on_tab.until(tab, lambda: on_tab.next.get("answer") == 40)
    # The tab is gone; nothing is cancelled, and the worker does not even know.
    await tab.close(abort=True)
    await work(90)
    assert not stopped.is_set()
    tab, reply = await subscribe(server, "tab", on_tab.start())
    assert "joins" not in reply, reply
    # The phone joins late: the text so far in one frame.
    phone, reply = await subscribe(server, "phone", policy="rollup")
    assert reply.get("joins") is True, reply
    on_phone = Reader()
    on_phone.take(await phone.next_event())
    assert on_phone.frames == 1 and on_phone.next["answer"] == 90 and on_phone.text["answer"] == "".join(said), on_phone.text
    working = asyncio.create_task(work(100_000))
    await on_phone.until(phone, lambda: on_phone.next["answer"] > 100)
    sent = time.monotonic()
    await phone.call({"type": "publish", "session": SESSION, "topic": "control.cancel", "message_id": "stop", "data": {"stream": "answer"}})
    await asyncio.wait_for(stopped.wait(), 20.0)
    heard_ms = (stopped.at - sent) * 1000
    await working
    await listening
    await worker.call({"type": "stream.close", "session": SESSION, "stream": "answer", "status": "cancelled"})
    for reader, client in ((on_tab, tab), (on_phone, phone)):
        await reader.until(client, lambda: "answer" in reader.status)
        assert reader.text["answer"] == "".join(said), "the partial text is kept, whole"
        assert reader.status["answer"] == "cancelled"
        assert [event["topic"] for event in reader.events] == ["control.cancel"], reader.events
    try:
        await worker.call(append("answer", len(said), "more"))
        raise AssertionError("an append to a closed stream was taken")
    except Refused as no:
        assert no.name == "stream_closed", no
    for client in (worker, tab, phone):
        await client.close()
    return len(said), heard_ms


async def a_reader_that_lags(server):
    """It reads nothing while a long answer is given, and ends with the same bytes in few frames."""
    worker = await Client.open(url(server, "worker"))
    slow = await Client.open(url(server, "slow"), read=False)
    slow.last_id += 1
    await slow.socket.send('{"type":"hello","credit":{"events":1}}')
    await slow.socket.send(f'{{"type":"subscribe","session":"{SESSION}","policy":"rollup"}}')
    said = [f"word{n}{'é' * (n % 7)} " for n in range(1200)]
    await asyncio.sleep(0.3)
    for first in range(0, len(said), 200):
        replies = await worker.call_all([append("long", n, said[n]) for n in range(first, first + 200)])
        assert all(reply["type"] == "published" for reply in replies), replies[-1]
    await worker.call({"type": "stream.close", "session": SESSION, "stream": "long", "status": "complete"})
    slow.reader = asyncio.create_task(slow.read())
    reader, frames = Reader(), 0
    async with asyncio.timeout(20.0):
        while "long" not in reader.status:
            frame = reader.take(await slow.next_event())
            if frame["type"] in ("event", "stream.delta"):
                frames += 1
                await slow.socket.send(f'{{"type":"ack","events":{frames}}}')
    assert reader.text["long"] == "".join(said), "byte for byte"
    assert frames < 100, frames
    await worker.close()
    await slow.close()
    return frames


async def a_worker_that_vanishes(server):
    """Its streams end as partial, once: of a lease that runs out, after kill -9, after another number of shards."""
    tab, _ = await subscribe(server, "tab")
    worker = await Client.open(url(server, "worker"))
    await worker.call_all([append("lost", n, f"{n} ") for n in range(5)])
    await worker.close(abort=True)
    reader = Reader()
    await reader.until(tab, lambda: "lost" in reader.status)
    assert (reader.text["lost"], reader.status["lost"]) == ("0 1 2 3 4 ", "partial"), reader.text
    await tab.close()

    worker = await Client.open(url(server, "worker"))
    await worker.call_all([append("killed", n, f"{n} ") for n in range(5)])
    server.kill9()
    server.start()
    worker = await Client.open(url(server, "worker"))
    # Heard of again before its lease is over: it goes on where it was.
    again = (await worker.call_all([append("killed", n, f"{n} ") for n in range(4, 7)]))
    assert [reply.get("duplicate", False) for reply in again] == [True, False, False], again
    await worker.close(abort=True)
    assert server.stop() == 0
    server.start(shards=3)
    tab, _ = await subscribe(server, "tab", "earliest")
    reader = Reader()
    await reader.until(tab, lambda: "killed" in reader.status, 30.0)
    assert (reader.text["killed"], reader.status["killed"]) == ("0 1 2 3 4 5 6 ", "partial"), reader.text
    events = await history(tab, SESSION)
    ends = [event["stream"] for event in events if "status" in event]
    assert sorted(ends) == sorted(set(ends)), ends
    assert [event["client"] for event in events if event.get("stream") == "killed" and "status" in event] == ["$server"]
    await tab.close()


def clustered(server):
    """Names of the files that re-clustering made, and of those it has not come to."""
    names = [name for name in os.listdir(server.data) if name.startswith("seg-") and name.endswith((".log", ".idx"))]
    made = [name for name in names if int(name[13:21], 16) >= 1 << 31]
    return made, [name for name in names if name not in made and name.endswith(".idx")]


async def what_is_left_on_disk():
    """Streams that are over are kept as text: 1.2 bytes a byte of it, and one frame for who comes later."""
    small = ("commit_bytes_max=512KiB", "segment_bytes=2MiB", "checkpoint_bytes=1MiB")
    flags = [flag for value in small for flag in ("--set", value)]
    words = [" the", " answer", " is", ",", " that", " forty", "-two", " because", " é", " question"]
    said = {f"s{n}": [words[(7 * at + at // 5 + n) % 10] for at in range(10_000)] for n in range(4)}
    with Server(*flags, shards=1) as server:
        worker = await Client.open(url(server, "worker"))
        for first in range(0, 10_000, 50):
            batch = [
                {**append(stream, seq, tokens[seq]), "session": f"room-{stream}"}
                for seq in range(first, first + 50)
                for stream, tokens in said.items()
            ]
            replies = await worker.call_all(batch)
            assert all(reply["type"] == "published" for reply in replies), replies[-1]
        for stream in said:
            close = {"type": "stream.close", "session": f"room-{stream}", "stream": stream, "status": "complete"}
            await worker.call(close)
        event_id = replies[-1]["event_id"]
        await worker.close()
        # Each start begins a segment, and what was before may be rewritten.
        for n in range(3):
            assert server.stop() == 0
            server.start()
            worker = await Client.open(url(server, "worker"))
            await worker.call({"type": "publish", "session": "other", "topic": "t", "message_id": f"m{n}", "data": n})
            await worker.close()
        async with asyncio.timeout(60.0):
            before = None
            # The newest that may be rewritten waits for another, and the one before the open one for a checkpoint.
            while clustered(server) != before or len(before[1]) > 2:
                before = clustered(server)
                await asyncio.sleep(1.0)
        made, left = before
        blocks = 6 * 4096 * sum(name.endswith(".log") for name in made)
        disk = sum(os.path.getsize(os.path.join(server.data, name)) for name in made) - blocks
        text = sum(len(token.encode()) for tokens in said.values() for token in tokens)
        assert disk <= 1.2 * text, f"{disk} bytes on disk for {text} of text"
        frames = {}
        for policy in ("lossless", "rollup", "latest"):
            reader, client = Reader(), await Client.open(url(server, f"late-{policy}"))
            await client.call({"type": "subscribe", "session": "room-s1", "from": "earliest", "policy": policy})
            await reader.until(client, lambda: "s1" in reader.status)
            assert reader.text["s1"] == "".join(said["s1"]), "byte for byte"
            assert reader.next["s1"] == 10_000
            frames[policy] = reader.frames
            await client.close()
        assert frames == {"lossless": 1, "rollup": 1, "latest": 1}, frames
        # From the middle of it, at the very delta; by pages; by pattern.
        tab = await Client.open(url(server, "tab"))
        reader = Reader()
        reader.next["s2"] = 1234
        await tab.call({"type": "subscribe", "session": "room-s2", "from": {"offset": 1234}})
        await reader.until(tab, lambda: "s2" in reader.status)
        assert reader.text["s2"] == "".join(said["s2"][1234:])
        pages, next_offset, texts = 0, 0, []
        while True:
            page = await tab.call({"type": "history", "session": "room-s3", "from": next_offset, "limit": 100})
            pages, next_offset = pages + 1, page["next"]
            texts += [part["delta"] for frame in page["events"] if frame["type"] == "stream.delta" for part in frame["streams"]]
            if next_offset == page["tail"]:
                break
        # A hundred pages of deltas; how many texts they became is a matter of where groups and segments ended.
        assert "".join(texts) == "".join(said["s3"]) and next_offset == 10_001 and pages < 10, pages
        feed = Reader()
        await tab.call({"type": "subscribe", "patterns": ["stream"], "from": "earliest"})
        await feed.until(tab, lambda: len(feed.status) == 3 and feed.next.get("s2") == 1234)
        expected = {stream: "".join(tokens[:1234] if stream == "s2" else tokens) for stream, tokens in said.items()}
        assert feed.text == expected, "each once; what the subscription delivers is left to it"
        # What is text now is still known.
        cause = {"prev_event_id": event_id, "session": "room-s3", "topic": "t", "message_id": "cause", "data": 1, "type": "publish"}
        await tab.call(cause)
        try:
            await tab.call({**append("s3", 9999, said["s3"][9999]), "session": "room-s3"})
            raise AssertionError("an append to a closed stream was taken")
        except Refused as no:
            assert no.name == "stream_closed", no
        await tab.close()
        assert server.stop() == 0
        return disk / text, len(left)


async def main():
    ratio, _ = await what_is_left_on_disk()
    with Server("--set", f"stream_lease_ms={LEASE_MS}") as server:
        tokens, heard_ms = await stop_and_resume(server)
        frames = await a_reader_that_lags(server)
        await a_worker_that_vanishes(server)
    print(f"streams: {tokens} tokens, stop heard after {heard_ms:.1f} ms; 1200 tokens to a reader that lags in {frames} frames; {ratio:.2f} bytes on disk a byte of text")


if __name__ == "__main__":
    run(main())
    sys.exit(0)
