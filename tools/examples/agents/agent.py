"""What the agents share: flags, a client, a place in the room of agents, settings that others may change while they run.

room `agents`      presence: who is there and what they are at
    bucket `agents`    entry NAME: {"delay_ms": 60, "stall": false}
"""

import argparse
import asyncio
import logging
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "clients" / "python"))

from queues import queues  # noqa: E402

from tidegate import Client  # noqa: E402

ROOM = "agents"
# Whoever is killed is missed after this: the shortest lease that presence has.
LEASE_MS = 1000


class Agent:
    """A client with a role. `busy` says in the room what it is at."""

    def __init__(self, client, role):
        self.client = client
        self.role = role
        self.at = {}
        self.settings = {}
        self.changed = asyncio.Condition()
        self.now = ("idle", {})
        self.said = asyncio.Event()

    async def enter(self):
        await self.client.enter(ROOM, "idle", {"role": self.role, "at": []}, lease_ms=LEASE_MS)

    def busy(self, key, state=None, what=None):
        """Says what it is at, by job; without a state that job is over. Nobody waits for that to be heard."""
        if state:
            self.at[key] = (state, what)
        else:
            self.at.pop(key, None)
        state = next((state for state, _ in self.at.values()), "idle")
        self.now = (state, {"role": self.role, "at": [what for _, what in list(self.at.values())[:4]]})
        self.said.set()

    async def show(self):
        """Tells the room, the latest only."""
        while True:
            await self.said.wait()
            self.said.clear()
            await self.client.enter(ROOM, *self.now)

    async def follow_settings(self):
        watch = await self.client.watch("entry", bucket=ROOM, prefix=self.client.name)
        async for _ in watch:
            entry = watch.state.get(self.client.name)
            async with self.changed:
                self.settings = entry["data"] if entry else {}
                self.changed.notify_all()


def main(role, work, **flags):
    """Runs `await work(agent, options)` with a client that is in the room of agents."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--deadline-ms", type=int, default=10_000)
    for flag, default in flags.items():
        parser.add_argument(f"--{flag.replace('_', '-')}", type=type(default), default=default)
    options = parser.parse_args()
    logging.basicConfig(format=f"%(asctime)s {options.name}: %(message)s", level=os.environ.get("AGENTS_LOG", "WARNING"))
    logging.getLogger("websockets").setLevel(logging.WARNING)

    async def run():
        async with Client(options.url, options.name, pause_s_max=1.0) as client:
            for queue in queues(options.deadline_ms):
                await client.call({"type": "queue.declare", **queue})
            agent = Agent(client, role)
            await agent.enter()
            await asyncio.gather(work(agent, options), agent.show(), agent.follow_settings())

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        pass
