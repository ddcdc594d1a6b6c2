"""One connection, and how long to wait for the next one.

    dial(url, client, token) ─► Link ─► send({...}), async for frame in link ─► ends ─► Pauses.after(why) ─► dial …

The pauses are those of PROTOCOL.md, "How a client reconnects": the close code says whether to come back now, later, or never.
"""

import asyncio
import json
import logging
import random
from urllib.parse import quote

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from .errors import Over, said

LOG = logging.getLogger("tidegate")
SUBPROTOCOL = "tidegate.v1.json"
# Everything that means "no connection", from DNS to a close frame.
GONE = (ConnectionClosed, InvalidHandshake, OSError, EOFError, TimeoutError)
PAUSE_S_MIN = 0.1
PAUSE_S_MAX = 10.0
# After refusals without a hint pauses may grow further than after lost connections: the server is there, and full.
FULL_PAUSE_S_MAX = 60.0


class Link:
    """A connection that was welcomed."""

    def __init__(self, socket, welcome):
        self.socket = socket
        self.welcome = welcome
        self.goaway_s = None

    def __aiter__(self):
        return self

    async def __anext__(self):
        """The next frame; raises one of GONE at the end."""
        frame = json.loads(await self.socket.recv())
        LOG.debug("< %s", said(frame))
        if frame["type"] == "goaway":
            self.goaway_s = frame["reconnect_after_ms"] / 1000
        return frame

    async def send(self, *commands):
        """One command goes out as an object, several as one array."""
        for first in range(0, len(commands), 256):
            part = commands[first : first + 256]
            LOG.debug("> %s", said(part))
            await self.socket.send(json.dumps(part[0] if len(part) == 1 else part, ensure_ascii=False))

    async def close(self):
        await self.socket.close()

    @property
    def close_code(self):
        return self.socket.close_code


async def dial(url, client=None, token=None, timeout_s=10.0):
    """Connects to `url` (ws://host:port, or with a path of one's own). Raises one of GONE."""
    url = url.rstrip("/")
    if url.count("/") == 2:
        url += "/v1/ws"
    if client:
        url += f"{'&' if '?' in url else '?'}client={quote(client, safe='')}"
    protocols = [SUBPROTOCOL] + ([f"tidegate.resume.{token}"] if token else [])
    socket = await connect(url, subprotocols=protocols, compression=None, max_size=1 << 23, open_timeout=timeout_s)
    try:
        return Link(socket, json.loads(await asyncio.wait_for(socket.recv(), timeout_s)))
    except BaseException:
        await socket.close()
        raise


class Pauses:
    """How long to wait before each attempt, with chance in it, so that clients do not come back in step."""

    def __init__(self, longest_s=PAUSE_S_MAX):
        self.longest_s = longest_s
        self.next_s = PAUSE_S_MIN

    def welcomed(self):
        self.next_s = PAUSE_S_MIN

    def after(self, why, link=None):
        """Seconds to wait after a connection ended, or was not made, because of `why`. Raises Over where there is no way back."""
        if isinstance(why, InvalidStatus):
            return self._refused(why)
        code = link.close_code if link else None
        if code is not None and 4200 <= code < 4300:
            raise Over(f"closed with {code}: {link.socket.close_reason}")
        if code is not None and (code == 1001 or 4000 <= code < 4100):
            return link.goaway_s if link.goaway_s is not None else random.uniform(0, PAUSE_S_MIN)
        if code is not None and 4100 <= code < 4200:
            self.next_s = max(self.next_s, 1.0)
        return self._grow(self.longest_s)

    def _refused(self, why):
        hint = why.response.headers.get("Retry-After")
        if hint is not None and hint.isdigit():
            return float(hint) * random.uniform(1.0, 1.5)
        if why.response.status_code != 503:
            raise Over(f"the server refuses the upgrade: {why}")
        return self._grow(max(FULL_PAUSE_S_MAX, self.longest_s))

    def _grow(self, longest_s):
        pause = self.next_s
        self.next_s = min(self.next_s * 2, longest_s)
        return pause * random.uniform(0.5, 1.0)
