"""The tool agent: looks things up, slowly.

queue tools ─► tool.call {query} ─► complete: tool.result {found}, one record
"""

import asyncio

from agent import main

FACTS = {
    "tide": "high water follows the moon's transit by a few hours, twice a day",
    "gate": "a tide gate opens with the ebb and closes itself against the flood",
    "log": "an append-only log is the simplest structure that survives a crash in order",
    "moon": "the moon pulls about twice as hard on the tides as the sun does",
}


def look_up(query):
    found = [fact for word, fact in FACTS.items() if word in query.lower()]
    return "; ".join(found) or "nothing in particular, but the sea is never quite still"


async def work(agent, options):
    async def call(job):
        agent.busy(job.name, "tool", {"session": job.session, "turn": job.data["turn"], "query": job.data["query"]})
        try:
            await asyncio.sleep(agent.settings.get("delay_ms", options.delay_ms) / 1000)
            found = {"turn": job.data["turn"], "agent": agent.client.name, "found": look_up(job.data["query"])}
            await job.complete(
                [{"topic": "tool.result", "message_id": f"{job.lease}-result", "prev_event_id": job.event_id, "data": found}]
            )
        finally:
            agent.busy(job.name)

    await agent.client.work("tools", call, credit=8)


if __name__ == "__main__":
    main("tool", work, delay_ms=400)
