"""The orchestrator: decides what comes next in a conversation, and keeps nothing of it in its process.

    chat.ask ─► job of `turns`, 10 s ─┬─► commit: tool.call  + entry turn.N = tool       queue tools  ─► tool.result │ gave_up
                                      ├─► commit: model.ask  + entry turn.N = model      queue models ─► model.result │ gave_up
                                      └─► complete: chat.answer − entry turn.N           or, at the deadline, the server: fallback

Each step is one record, made only if the entry is as it was read: of two orchestrators that both believe in a turn one gets on.
What it has heard is read again from the log, from the question on; the entry says how far it came. So it may die between any two
lines.
"""

import asyncio
import time

from agent import main
from story import ANSWER, FALLBACK, PARTIAL, SORRY, Story, offset_of

from tidegate import Refused

TTL_MS = 600_000
# A partial result may be 2 KiB with its quotes.
PARTIAL_CHARACTERS_MAX = 600
PROGRESS_EVERY_S = 0.25


class Turns:
    """One turn at a time of each session."""

    def __init__(self, agent):
        self.agent = agent
        self.client = agent.client

    async def run(self, job):
        """One lease of one turn: from wherever it stands to its end."""
        number = offset_of(job.event_id)
        self.agent.busy(job.name, "thinking", {"session": job.session, "turn": number})
        claimed = {"turn": number, "agent": self.client.name, "attempt": job.attempt}
        epoch = job.event_id.split(":")[-2]
        feed, _ = await asyncio.gather(
            self.client.subscribe(job.session, start={"offset": number, "epoch": epoch}, policy="rollup"),
            self.client.publish(
                job.session, "turn.claimed", claimed, message_id=f"{job.lease}-claimed", prev_event_id=job.event_id
            ),
        )
        try:
            await self._go(job, number, feed)
        finally:
            await feed.close()
            self.agent.busy(job.name)

    async def _go(self, job, number, feed):
        story, steer = Story(), None
        step, revision = await self._read(job.session, number)
        if step is None:
            step, revision = await self._step(job, number, revision, "tool", "tool.call", {"query": job.data["text"]})
        told, kept = time.monotonic(), ""
        while not job.ended:
            frame = await feed.next(PROGRESS_EVERY_S)
            changed = [turn for turn, _ in story.take(frame)] if frame else []
            turn = story.turns.get(number)
            event = frame if frame and frame["type"] == "event" and "stream" not in frame and turn in changed else None
            topic = event["topic"] if event else None
            if topic == "control.steer":
                steer = event["data"]["text"]
            if topic == "control.cancel":
                await self._end(job, number, PARTIAL, await self._cut(job, turn), "stopped")
            elif topic in ("tool.result", "tool.gave_up") and step == "tool":
                found = event["data"].get("found", "nothing, for the tool did not answer")
                ask = {
                    "question": job.data["text"],
                    "found": found,
                    "asked": job.event_id,
                    **({"steer": steer} if steer else {}),
                }
                step, revision = await self._step(job, number, revision, "model", "model.ask", ask)
            elif topic == "model.result" and event["data"]["status"] == "complete":
                await self._end(job, number, ANSWER, turn.text, "")
            elif topic == "model.result":
                await self._end(job, number, PARTIAL, await self._cut(job, turn), "stopped")
            elif topic == "model.gave_up":
                text = await self._cut(job, turn)
                await self._end(job, number, PARTIAL if text else FALLBACK, text or SORRY, "no model finished")
            elif time.monotonic() - told > PROGRESS_EVERY_S:
                told = time.monotonic()
                if turn and turn.text != kept:
                    kept = turn.text
                    await job.progress({"text": kept[:PARTIAL_CHARACTERS_MAX]})
                else:
                    await job.extend()

    async def _read(self, session, number):
        """(step, revision) of the turn's entry."""
        held = await self.client.call({"type": "entry.list", "session": session, "prefix": f"turn.{number}"})
        entry = next((entry for entry in held["entries"] if entry["key"] == f"turn.{number}"), None)
        return (entry["data"]["step"], entry["revision"]) if entry else (None, 0)

    async def _step(self, job, number, revision, step, topic, data):
        """Says what is to be done and that it was said, in one record; returns where the turn stands then, by whomever."""
        event = {
            "topic": topic,
            "message_id": f"{job.lease}-{step}",
            "prev_event_id": job.event_id,
            "data": {"turn": number, **data},
        }
        entry = {"key": f"turn.{number}", "data": {"step": step}, "ttl_ms": TTL_MS, "if_revision": revision}
        try:
            await self.client.call({"type": "commit", "session": job.session, "events": [event], "entries": [entry]})
        except Refused as no:
            if no.name != "wrong_revision":
                raise
        return await self._read(job.session, number)

    async def _cut(self, job, turn):
        """Ends the stream, so that whoever is answering is told at the next token; returns all that was said until then."""
        if turn.stream:
            close = {"type": "stream.close", "session": job.session, "stream": turn.stream, "status": "cancelled"}
            try:
                await self.client.call(close)
            except Refused as no:
                if no.name not in ("stream_closed", "unknown_stream"):
                    raise
        story = Story()
        async for event in self.client.history(job.session, turn.number):
            story.take(event)
        return story.turns[turn.number].text

    async def _end(self, job, number, outcome, text, reason):
        said = {"turn": number, "outcome": outcome, "text": text, **({"reason": reason} if reason else {})}
        event = {"topic": "chat.answer", "message_id": f"{job.lease}-answer", "prev_event_id": job.event_id, "data": said}
        await job.complete([event], entries=[{"key": f"turn.{number}"}])


async def work(agent, options):
    await agent.client.work("turns", Turns(agent).run, credit=16)


if __name__ == "__main__":
    main("orchestrator", work)
