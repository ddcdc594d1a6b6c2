"""Groups: runs of sessions, handed to a function, as many sessions at once as there is credit.

    await client.join("flow", step, credit=4)

    run frame ─► task of step(run) ─► returns: acknowledged          or run.commit(events=[…], entries=[…]): in one record with them
                      │  run.ack(offset)                               so far I have come; the lease begins anew
                      └─ group.lost, the connection gone ─► cancelled  somebody else has the session

What fails is dealt again when its lease is over: to whoever has credit.
"""

import asyncio
import logging

from .errors import Refused
from .feed import split_event_id

LOG = logging.getLogger("tidegate")


class Run:
    """Events of one session, in order, and the right to acknowledge them. `session`, `events`, `attempt`, `gap`, `next` are the frame's."""

    def __init__(self, client, frame):
        self.client = client
        self.frame = frame
        self.group = frame["group"]
        self.session = frame["session"]
        self.lease = frame["lease"]
        self.attempt = frame["attempt"]
        self.events = frame["events"]
        self.gap = frame.get("gap")
        self.next = frame["next"]
        self.acked = frame["from"]

    def marker(self, offset=None):
        """What a commit says to acknowledge everything before `offset`, or the whole run."""
        return {"group": self.group, "lease": self.lease, "offset": self.next if offset is None else offset}

    async def ack(self, offset=None):
        marker = self.marker(offset)
        answer = await self.client.call({"type": "group.ack", "session": self.session, **marker})
        self.acked = marker["offset"]
        return answer

    async def ack_event(self, event):
        """Up to this one, itself included."""
        return await self.ack(split_event_id(event["event_id"])[2] + 1)

    async def commit(self, events=(), entries=(), markers=(), offset=None):
        """Acknowledges, together with what is given, all of the session: everything or nothing."""
        marker = self.marker(offset)
        parts = {"events": list(events), "entries": list(entries), "markers": [*markers, marker]}
        command = {"type": "commit", "session": self.session, **{name: part for name, part in parts.items() if part}}
        answer = await self.client.call(command)
        self.acked = marker["offset"]
        return answer


class Member:
    """What one group has dealt this client."""

    def __init__(self, client, group, handle, credit):
        self.client = client
        self.group = group
        self.handle = handle
        self.credit = credit
        self.tasks = {}

    def command(self):
        return {"type": "group.join", "group": self.group, "credit": self.credit}

    def reconnected(self):
        # With its connection every lease of a member is over.
        self.stop()

    def take(self, frame):
        before = self.tasks.get(frame["session"])
        task = asyncio.create_task(self._run(Run(self.client, frame), before[1] if before else None))
        self.tasks[frame["session"]] = (frame["lease"], task)
        task.add_done_callback(lambda _: self._done(frame["session"], task))

    def lost(self, frame):
        if frame.get("group") != self.group:
            return
        lease, task = self.tasks.get(frame["session"], (None, None))
        if lease == frame["lease"]:
            task.cancel()
        # Who was silent is dealt nothing more before it joins again.
        self.client.restore(self.command())

    async def _run(self, run, before):
        if before:
            before.cancel()
            await asyncio.wait([before])
        try:
            await self.handle(run)
            if run.acked < run.next:
                await run.ack()
        except Refused as no:
            if no.name != "stale_lease":
                LOG.error("run of %s: %s", run.session, no)
        except Exception:
            LOG.exception("run of %s", run.session)

    def _done(self, session, task):
        if self.tasks.get(session, (None, None))[1] is task:
            del self.tasks[session]

    def stop(self):
        for _, task in list(self.tasks.values()):
            task.cancel()
