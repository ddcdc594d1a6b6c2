"""Work: jobs of a queue, handed to a function, as many at once as there is credit.

    await client.work("models", answer, credit=4)

    job frame ─► task of answer(job) ─► job.complete(events=[…])      the end, with events and entries, in one record
                      │  job.extend(), job.progress({…})              I am alive; this far I have come
                      └─ job.lost, a newer lease ─► cancelled         somebody else has it, or its deadline is over

The lease is not renewed behind the function's back: who hangs is to lose the job.
"""

import asyncio
import logging

from .errors import Refused

LOG = logging.getLogger("tidegate")
# The job is somebody else's or has ended: nothing is left to be done here.
NOT_MINE = ("stale_lease", "unknown_job")


class Job:
    """One job and the right to work on it. `data`, `session`, `topic`, `event_id`, `attempt`, `deadline` are the frame's."""

    def __init__(self, client, frame):
        self.client = client
        self.frame = frame
        self.name = frame["job"]
        self.lease = frame["lease"]
        self.queue = frame["queue"]
        self.session = frame["session"]
        self.topic = frame["topic"]
        self.event_id = frame["event_id"]
        self.attempt = frame["attempt"]
        self.lease_ms = frame["lease_ms"]
        self.deadline = frame["deadline"]
        self.data = frame.get("data")
        self.ended = False

    def _command(self, kind, **fields):
        return {
            "type": kind,
            "job": self.name,
            "lease": self.lease,
            **{name: value for name, value in fields.items() if value is not None},
        }

    async def complete(self, events=(), entries=(), markers=()):
        """Ends the job, together with what is given, all of its session: everything or nothing."""
        parts = {"events": list(events), "entries": list(entries), "markers": list(markers)}
        answer = await self.client.call(self._command("complete", **{name: part for name, part in parts.items() if part}))
        self.ended = True
        return answer

    async def extend(self, lease_ms=None):
        return await self.client.call(self._command("job.extend", lease_ms=lease_ms))

    async def progress(self, data):
        """Keeps a partial result, which is part of a fallback, and begins the lease anew."""
        return await self.client.call(self._command("job.progress", data=data))

    async def fail(self, retry_after_ms=None, retry=None):
        answer = await self.client.call(self._command("job.fail", retry_after_ms=retry_after_ms, retry=retry))
        self.ended = True
        return answer


class Pull:
    """What one queue has given this client."""

    def __init__(self, client, queue, handle, credit):
        self.client = client
        self.queue = queue
        self.handle = handle
        self.credit = credit
        # Tasks by job; which of them came over an earlier connection, whose credit the server has forgotten.
        self.tasks = {}
        self.earlier = set()

    def command(self):
        return {"type": "pull", "queue": self.queue, "credit": max(0, self.credit - len(self.earlier))}

    def reconnected(self):
        self.earlier = set(self.tasks.values())

    def take(self, frame):
        job = Job(self.client, frame)
        before = self.tasks.get(job.name)
        task = asyncio.create_task(self._run(job, before))
        self.tasks[job.name] = task
        task.add_done_callback(lambda _: self._done(job.name, task))

    def lost(self, frame):
        if frame.get("job") in self.tasks:
            self.tasks[frame["job"]].cancel()

    async def _run(self, job, before):
        if before:
            # An earlier lease of the same job: only one of us may be at it.
            before.cancel()
            await asyncio.wait([before])
        try:
            await self.handle(job)
            if not job.ended:
                await job.fail()
        except Refused as no:
            if no.name not in NOT_MINE:
                LOG.error("job %s: %s", job.name, no)
                await self._give_up(job)
        except Exception:
            LOG.exception("job %s", job.name)
            await self._give_up(job)

    async def _give_up(self, job):
        try:
            await job.fail()
        except Refused as no:
            LOG.info("job %s: %s", job.name, no)

    def _done(self, name, task):
        if self.tasks.get(name) is task:
            del self.tasks[name]
        if task in self.earlier:
            self.earlier.discard(task)
            self.client.restore(self.command())

    def stop(self):
        for task in list(self.tasks.values()):
            task.cancel()
