"""An answer that grows: tokens go in, deltas come out.

    append("Once") ─► sent          append(" upon"), append(" a") ─► wait ─► acknowledged ─► sent as one delta, " upon a"

One delta is under way at a time, and what is said meanwhile goes into the next. So order needs no care, a slow server gets fewer
and longer deltas, and whoever produces tokens waits only where a lot is unsent.
"""

import asyncio

# Characters that may wait before the producer does.
UNSENT_MAX = 4096


class Stream:
    """A stream of a session. Refusals (`stream_closed` where somebody said stop) are raised by the next append, or by close."""

    def __init__(self, client, session, name, topic=None):
        self.client = client
        self.command = {"session": session, "stream": name}
        self.topic = topic
        self.seq = 0
        self.unsent = []
        self.pump = None

    async def append(self, text):
        self.unsent.append(text)
        if self.pump and self.pump.done():
            self.pump.result()
            self.pump = None
        if not self.pump:
            self.pump = asyncio.create_task(self._send())
        elif sum(map(len, self.unsent)) > UNSENT_MAX:
            await self.flush()

    async def _send(self):
        while self.unsent:
            delta, self.unsent = "".join(self.unsent), []
            command = {"type": "stream.append", **self.command, "seq": self.seq, "delta": delta}
            if self.topic and self.seq == 0:
                command["topic"] = self.topic
            await self.client.call(command)
            self.seq += 1

    async def flush(self):
        """Waits until all that was said is on disk."""
        if self.pump:
            pump, self.pump = self.pump, None
            try:
                await pump
            except asyncio.CancelledError:
                pump.cancel()
                raise

    async def close(self, status="complete"):
        """Ends it. Where nothing was said there is no stream, and nothing to end."""
        await self.flush()
        if self.seq:
            await self.client.call({"type": "stream.close", **self.command, "status": status})

    def abandon(self):
        """Says nothing more. The server ends the stream when its lease is over, unless somebody does before."""
        if self.pump:
            self.pump.cancel()
