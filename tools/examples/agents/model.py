"""A model worker with a fake model: it streams an answer token by token, and can be made slow, stuck, or to crash.

    queue models ─► model.ask ─► what was said before? ─► model.started ─► tokens … ─► stream.close ─► complete: model.result

It holds nothing that dies with it. Whoever takes a job over closes the stream of the worker before, reads what it said, and goes
on in a stream of its own. The lease is extended with the tokens, not by a timer: a stuck model loses its job.
"""

import asyncio
import os
import re
import time

from agent import main
from story import Story

from tidegate import Refused

# How long what a turn's workers need to know of each other outlives the turn.
TTL_MS = 600_000
# Refusals that say "this stream is over": somebody said stop, or took over.
CUT = ("stream_closed", "unknown_stream")


def answer(question, found):
    """What the fake model would say, if nobody interrupted it."""
    return (
        f"You asked: “{question.strip()}”. I had a tool look that up, and it says this: {found}. "
        "So here is the short of it. Water comes and goes on a clock that nobody here sets, and a good gate does not fight it: "
        "it takes what fits, holds what does not, and says so. The same goes for a stream of events: each one gets a number, "
        "lands on disk, and only then is it told to anyone. If a worker falls over halfway, the next one reads what was already "
        "said and goes on from there. That is what you are looking at now."
    )


def tokens(text):
    """Pieces of words, with the space behind them: about what a model emits at once. Together they are the text."""
    return iter(re.findall(r"\S{1,9}\s*|\s+", text))


async def said_before(client, job):
    """What workers before this one have said of the turn; they say no more after it."""
    name = f"say.{job.data['turn']}"
    start = int(job.data["asked"].rsplit(":", 1)[1])
    for last in (False, True):
        story = Story()
        async for event in client.history(job.session, start):
            story.take(event)
        turn = story.turns[job.data["turn"]]
        if last or not turn.stream or not turn.stream.startswith(name):
            return turn.text
        try:
            await client.call({"type": "stream.close", "session": job.session, "stream": turn.stream, "status": "partial"})
        except Refused as no:
            if no.name not in CUT:
                raise


async def begin(client, job):
    """Takes the turn's answer over: (name of the stream, what was said before).

    A worker may wake up late and not know that its lease is over. So: read the entry, ask whether the lease holds, and say
    `started` only if the entry is as it was. Whoever got the lease later has changed it by then, or will find it changed and read
    again.
    """
    key, stream = f"say.{job.data['turn']}", f"say.{job.data['turn']}.{job.lease}"
    while True:
        held = await client.call({"type": "entry.list", "session": job.session, "prefix": key})
        revision = next((entry["revision"] for entry in held["entries"] if entry["key"] == key), 0)
        await job.extend()
        said = await said_before(client, job)
        started = {
            "turn": job.data["turn"],
            "agent": client.name,
            "attempt": job.attempt,
            "stream": stream,
            "after": len(said),
        }
        event = {"topic": "model.started", "message_id": f"{stream}-started", "prev_event_id": job.event_id, "data": started}
        entry = {"key": key, "data": stream, "ttl_ms": TTL_MS, "if_revision": revision}
        try:
            await client.call({"type": "commit", "session": job.session, "events": [event], "entries": [entry]})
            return stream, said
        except Refused as no:
            if no.name != "wrong_revision":
                raise
            if no.repeated and await said_by(client, job, key) == stream:
                return stream, said


async def said_by(client, job, key):
    """The stream that the entry names now."""
    held = await client.call({"type": "entry.get", "session": job.session, "key": key})
    return held["entries"][0]["data"]


async def work(agent, options):
    client = agent.client
    # Words that steer, by (session, turn).
    steered = {}

    async def misbehave(n):
        """What the settings ask for: delay, a stall that lasts until it is taken back, a crash, once."""
        await asyncio.sleep(agent.settings.get("delay_ms", options.delay_ms) / 1000)
        if agent.settings.get("crash") and n >= options.trip_at:
            await client.call(
                {"type": "entry.put", "bucket": "agents", "key": client.name, "data": {**agent.settings, "crash": False}}
            )
            os._exit(3)
        async with agent.changed:
            await agent.changed.wait_for(lambda: not agent.settings.get("stall") or n < options.trip_at)

    async def say(job, stream, said):
        """Streams what is left of the answer."""
        full = answer(job.data["question"], job.data["found"])
        rest, heard, alive = tokens(full[len(said) :]), None, time.monotonic()
        out, n = client.stream(job.session, stream), 0
        try:
            while (token := next(rest, None)) is not None:
                await misbehave(n)
                word = steered.get((job.session, job.data["turn"]))
                if word and word != heard:
                    heard, rest = word, tokens(f"— you said “{word}”, so I will: a gate, a log, and nothing lost.")
                    continue
                await out.append(token)
                n += 1
                if time.monotonic() - alive > job.lease_ms / 3000:
                    alive = time.monotonic()
                    await job.extend()
            await out.close()
        finally:
            out.abandon()

    async def reply(job):
        turn = job.data["turn"]
        agent.busy(job.name, "thinking", {"session": job.session, "turn": turn, "question": job.data["question"][:80]})
        if job.data.get("steer"):
            steered[job.session, turn] = job.data["steer"]
        status = "complete"
        try:
            stream, said = await begin(client, job)
            try:
                await say(job, stream, said)
            except Refused as no:
                if no.name not in CUT:
                    raise
                status = "stopped"
            result = {"turn": turn, "agent": client.name, "status": status, "stream": stream}
            await job.complete(
                [{"topic": "model.result", "message_id": f"{stream}-result", "prev_event_id": job.event_id, "data": result}]
            )
        finally:
            steered.pop((job.session, turn), None)
            agent.busy(job.name)

    async def hear():
        """Control events of all sessions, of which only the steering ones are for a model: stopping closes its stream."""
        feed = await client.subscribe(patterns=["control.steer"])
        async for frame in feed:
            if frame["type"] == "event" and len(steered) < 1000:
                steered[frame["session"], frame["data"]["turn"]] = frame["data"]["text"]

    await asyncio.gather(hear(), client.work("models", reply, credit=options.credit))


if __name__ == "__main__":
    main("model", work, delay_ms=25, credit=4, trip_at=12)
