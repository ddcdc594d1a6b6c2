"""A client of a Tidegate server: one life over many connections.

    async with Client("ws://127.0.0.1:7777", "tab-1") as client:
        await client.publish("demo", "chat.message", {"text": "hi"})
        async for frame in await client.subscribe("demo", start="earliest"):
            print(frame)

Connections come and go; the program does not notice but for the time. A command is sent until it is answered, under the same
message id, so it is done once. A feed goes on behind the last event that it brought. Jobs, memberships of groups, watches and
places in rooms are taken up again. Needs the PyPI package `websockets`, and nothing else.
"""

from .client import Client
from .errors import Over, Refused
from .feed import Feed, split_event_id
from .groups import Run
from .jobs import Job
from .stream import Stream
from .watch import Watch

__all__ = ["Client", "Feed", "Job", "Over", "Refused", "Run", "Stream", "Watch", "split_event_id"]
