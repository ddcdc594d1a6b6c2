"""What a subscription brings, and when it counts as worked off.

    frame ─► Window.take ─► Feed ─► `async for` hands it out ─► the next one is asked for: the last is worked off ─► ack

A frame is worked off when its reader asks for the next one. Acknowledgements are cumulative, so the window moves only over frames
that are all worked off: one feed may be ahead of another, but nothing is acknowledged that somebody has still to look at.
"""

import asyncio
import collections

from .errors import Over


def split_event_id(event_id):
    """(session, epoch, offset): read from the right, a session's name may hold colons."""
    session, epoch, offset = event_id.rsplit(":", 2)
    return session, epoch, int(offset)


class Window:
    """Delivery credit of one connection."""

    def __init__(self, credit):
        self.credit = credit
        self.waiting = collections.deque()
        self.done = 0
        self.acknowledged = 0

    def take(self):
        """A frame that costs credit came; returns what marks it as worked off."""
        token = [False]
        self.waiting.append(token)
        return token

    def worked(self, token):
        """Returns true when it is time to acknowledge."""
        token[0] = True
        while self.waiting and self.waiting[0][0]:
            self.waiting.popleft()
            self.done += 1
        return self.done - self.acknowledged >= max(1, self.credit // 4)

    def ack(self):
        """The acknowledgement to send, if there is one."""
        if self.done == self.acknowledged:
            return None
        self.acknowledged = self.done
        return {"type": "ack", "events": self.done}


class Feed:
    """A subscription: `async for frame in feed`. It goes on by itself after a lost connection, each event once and in order.

    Frames are those of PROTOCOL.md §4: `event`, `stream.delta`, `gap`, `volatile`, `notice`. How many wait here is bounded by the
    client's credit.
    """

    def __init__(self, client, key, command):
        self.client = client
        self.key = key
        self.command = command
        # The last event that came, of a session as (epoch, offset), of patterns by slice: where a resume goes on.
        self.last = None
        self.at = {}
        self.worked_to = None
        self.frames = collections.deque()
        self.news = asyncio.Event()
        self.why_over = None
        self.in_hand = None

    # --- filled by the client

    def take(self, frame, window):
        """Puts a frame into the feed; what came before already is left out."""
        kind = frame["type"]
        costs = window.take() if kind in ("event", "stream.delta") else None
        event_id = frame.get("event_id")
        if event_id and kind != "notice" and self.key != "patterns":
            _, epoch, offset = split_event_id(event_id)
            if self.last and self.last[0] == epoch and offset <= self.last[1]:
                if costs:
                    window.worked(costs)
                return
            self.last = (epoch, offset)
        if self.key == "patterns" and "at" in frame and kind != "gap":
            slice_, _, place = frame["at"].partition(".")
            self.at[slice_] = max(int(place), self.at.get(slice_, 0))
        self.frames.append((frame, costs, window))
        self.news.set()

    def begin(self, answer):
        """What the server says when the subscription stands."""
        if "position" in answer and answer["position"] and not self.at:
            self.at = {
                slice_: int(place) for slice_, _, place in (one.partition(".") for one in answer["position"].split(","))
            }

    def again(self):
        """The command that subscribes again from where the feed is, for a life that has forgotten it."""
        if self.key == "patterns":
            return {**self.command, "from": {"position": self.position}} if self.at else self.command
        if not self.last:
            return self.command
        epoch, offset = self.last
        return {**self.command, "from": {"offset": offset + 1, "epoch": epoch}}

    @property
    def position(self):
        return ",".join(f"{slice_}.{place}" for slice_, place in self.at.items())

    @property
    def seen(self):
        """Event id of the last event that came, of a session's feed."""
        return f"{self.key}:{self.last[0]}:{self.last[1]}" if self.last else None

    def end(self, why):
        self.why_over = why
        self.news.set()

    # --- read by the program

    def __aiter__(self):
        return self

    async def __anext__(self):
        self._settle()
        while not self.frames:
            if self.why_over:
                raise StopAsyncIteration if self.why_over is True else Over(str(self.why_over))
            self.news.clear()
            await self.news.wait()
        self.in_hand = self.frames.popleft()
        return self.in_hand[0]

    async def next(self, timeout_s):
        """The next frame, or None after so many seconds."""
        try:
            return await asyncio.wait_for(self.__anext__(), timeout_s)
        except TimeoutError:
            return None

    def _settle(self):
        if self.in_hand:
            frame, costs, window = self.in_hand
            self.in_hand = None
            if frame.get("event_id") and frame["type"] != "notice":
                self.worked_to = frame["event_id"]
            if costs and window.worked(costs):
                self.client.acknowledge(window)

    async def close(self):
        """Ends the subscription."""
        self._settle()
        await self.client.drop(self)
