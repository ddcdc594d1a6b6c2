"""State that is told as it changes: entries under a prefix, members of a session.

    watch = await client.watch("entry", session="demo", prefix="turn.")
    async for changed in watch:                 keys that changed since the last time; watch.state is what holds now
        …

What changes faster than it is looked at is seen as the last state, so nothing queues.
"""

import asyncio

from .errors import Over


class Watch:
    """What holds now, by key: entries as the server tells them (`data`, `revision`), or members (`state`, `data`)."""

    def __init__(self, client, key, command):
        self.client = client
        self.key = key
        self.command = command
        self.state = {}
        self.revision = None
        self.changed = set()
        self.news = asyncio.Event()
        self.why_over = None

    def take(self, frame):
        named = "entries" if frame["type"] == "entries" else "joined"
        name = "key" if named == "entries" else "client"
        if frame.get("snapshot"):
            # What a snapshot does not name is gone; it may come in several frames.
            self.changed |= self.state.keys()
            self.state = {}
        for one in frame.get(named, []):
            self.state[one[name]] = one
            self.changed.add(one[name])
        for one in frame.get("updated", []):
            if one[name] in self.state:
                self.state[one[name]] = {**self.state[one[name]], **one}
                self.changed.add(one[name])
        for one in frame.get("deleted", []) + [{"client": gone} for gone in frame.get("left", [])]:
            if self.state.pop(one[name], None):
                self.changed.add(one[name])
        if not frame.get("more"):
            self.revision = frame.get("revision")
            self.news.set()

    def again(self):
        """The command that goes on with the watch on a new connection."""
        return {**self.command, "revision": self.revision} if self.revision else self.command

    def end(self, why):
        self.why_over = why
        self.news.set()

    def __aiter__(self):
        return self

    async def __anext__(self):
        await self.news.wait()
        if self.why_over:
            raise StopAsyncIteration if self.why_over is True else Over(str(self.why_over))
        self.news.clear()
        changed, self.changed = self.changed, set()
        return changed

    async def close(self):
        await self.client.unwatch(self)
