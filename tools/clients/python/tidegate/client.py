"""One life over many connections.

dial ─► welcome ─► resume, hello ─► resumed ─► unanswered commands, pulls, watches, rooms ─► frames … ─► gone ─► pause ─► dial
                     │                 └ what the life brought back is left alone, what it lost is subscribed again
                     └ token, seen, position
"""

import asyncio
import contextlib
import itertools
import json
import os
import pathlib
import random
import uuid

from .errors import Over, Refused
from .feed import Feed, Window
from .groups import Member
from .jobs import Pull
from .link import GONE, Pauses, dial
from .stream import Stream
from .watch import Watch

# How often credit goes back although there is some left: it is also how much of its place a life may forget in a crash.
ACK_EVERY_S = 1.0
COMMANDS_UNDER_WAY_MAX = 256


class _Ask:
    """A command that waits for its answer. One that belongs to its connection is not sent again on the next."""

    def __init__(self, command, of_connection):
        self.command = command
        self.of_connection = of_connection
        self.repeated = False
        self.answer = asyncio.get_running_loop().create_future()


class Client:
    """A client of a server. `name` is its identity; `keep` a file in which its life outlives the process.

    `credit` bounds how many events may come before they are worked off, `pause_s_max` how long it waits before it connects again.
    """

    def __init__(self, url, name=None, *, keep=None, credit=256, pause_s_max=10.0):
        self.url = url
        self.name = name
        self.keep = pathlib.Path(keep) if keep else None
        self.credit = credit
        self.pauses = Pauses(pause_s_max)
        self.link = None
        self.window = Window(credit)
        self.feeds = {}
        self.watches = {}
        self.pulls = {}
        self.rooms = {}
        self.connects = 0
        self.on_connection = lambda connected: None
        self._life = {"token": None, "attempt": 0, "seen": {}, "position": ""}
        # What the server restores of a life that began before this process: Feeds that nobody has asked for yet.
        self._from_before = False
        self._owed = 0
        self._brought = set()
        self._ids = itertools.count(1)
        self._waiting = {}
        self._room = asyncio.Semaphore(COMMANDS_UNDER_WAY_MAX)
        self._ready = asyncio.Event()
        self._why_over = None
        self._tasks = set()
        self._runner = None

    # --- beginning and end

    async def __aenter__(self):
        if self.keep and self.keep.exists():
            self._life = json.loads(self.keep.read_text())
            self.name = self._life["client"]
            self._from_before = True
        self._runner = asyncio.create_task(self._run())
        await self._ready.wait()
        self._check()
        return self

    async def __aexit__(self, *_):
        await self.close()

    async def close(self):
        """Ends the connection, not the life: with `keep` the next process goes on with it."""
        self._note()
        link = self.link
        if link:
            with contextlib.suppress(*GONE):
                if ack := self.window.ack():
                    await link.send(ack)
                await link.close()
        self._runner.cancel()
        await asyncio.wait([self._runner])
        self._end(True)

    def _check(self):
        if self._why_over:
            raise Over(str(self._why_over))

    def _end(self, why):
        self._why_over = self._why_over or ("closed" if why is True else why)
        for task in list(self._tasks):
            task.cancel()
        for pull in self.pulls.values():
            pull.stop()
        for one in [*self.feeds.values(), *self.watches.values()]:
            one.end(why)
        for ask in self._waiting.values():
            if not ask.answer.done():
                ask.answer.set_exception(Over(str(self._why_over)))
                ask.answer.exception()
        self._waiting.clear()
        self._ready.set()

    # --- commands

    async def call(self, command, *, timeout_s=None):
        """Sends a command until it is answered, over as many connections as it takes, and returns the answer.

        Where the server is full it is sent again after the time that the server names; every other refusal is raised.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                async with self._room:
                    answer = await self._ask(command, of_connection=False)
                if isinstance(answer, dict):
                    return answer
                if not answer.temporary:
                    raise answer
                await asyncio.sleep(answer.frame.get("retry_after_ms", 50) / 1000 * random.uniform(1.0, 1.5))

    async def _ask(self, command, of_connection):
        """The answer, or the Refused; None where the connection went that it belonged to."""
        self._check()
        number = next(self._ids)
        ask = _Ask({**command, "id": number}, of_connection)
        self._waiting[number] = ask
        try:
            if self._ready.is_set() and self.link:
                await self._send(ask.command)
            return await ask.answer
        finally:
            self._waiting.pop(number, None)

    async def _send(self, *commands):
        """Sends over the connection there is; what is lost with it is sent again by whoever waits for its answer."""
        with contextlib.suppress(*GONE):
            if self.link:
                await self.link.send(*commands)

    async def publish(self, session, topic, data, *, message_id=None, **fields):
        """An event; returns its id once it is on disk. Give a `message_id` of your own where your process may die meanwhile."""
        command = {"type": "publish", "session": session, "topic": topic, "data": data, **fields}
        if fields.get("durability") != "volatile":
            command["message_id"] = message_id or uuid.uuid4().hex
        return (await self.call(command)).get("event_id")

    def stream(self, session, name, topic=None):
        """An answer that grows by tokens."""
        return Stream(self, session, name, topic)

    async def history(self, session, start=None):
        """All events of a session that are kept, from an offset on; none where nothing was ever published."""
        while True:
            try:
                page = await self.call(
                    {"type": "history", "session": session, "limit": 256, **({} if start is None else {"from": start})}
                )
            except Refused as no:
                if no.name != "unknown_session":
                    raise
                return
            for event in page["events"]:
                yield event
            if page["next"] >= page["tail"]:
                return
            start = page["next"]

    # --- subscriptions

    async def subscribe(self, session=None, *, patterns=None, start="latest", policy=None):
        """A feed of a session, or of all that matches `patterns`. One that the life has kept goes on where it was."""
        self._check()
        key = "patterns" if patterns else session
        command = {"type": "subscribe", "from": start, **({"patterns": patterns} if patterns else {"session": session})}
        if policy:
            command["policy"] = policy
        feed = self.feeds.get(key)
        if feed and feed.command is None:
            feed.command = command
            return feed
        feed = self.feeds[key] = Feed(self, key, command)
        try:
            feed.begin(await self.call(command))
        except BaseException:
            self.feeds.pop(key, None)
            raise
        return feed

    async def drop(self, feed):
        if self.feeds.get(feed.key) is feed:
            del self.feeds[feed.key]
            self._life["seen"].pop(feed.key, None)
            feed.end(True)
            self._release(feed)
            with contextlib.suppress(Refused):
                await self.call({"type": "unsubscribe", **_scope(feed.key)})

    def _release(self, feed):
        """What a feed holds and nobody will read counts as worked off."""
        for _, costs, window in feed.frames:
            if costs and window.worked(costs):
                self.acknowledge(window)
        feed.frames.clear()

    def acknowledge(self, window):
        if window is self.window and (ack := window.ack()):
            self._task(self._send(ack))

    # --- watches, rooms, work

    async def watch(self, kind, **scope):
        """`watch("entry", session=…, prefix=…)`, `watch("entry", bucket=…)`, `watch("presence", session=…)`."""
        command = {"type": f"{kind}.watch", **scope}
        key = (kind, scope.get("session"), scope.get("bucket"), scope.get("prefix", ""))
        watch = self.watches[key] = Watch(self, key, command)
        await self.call(command)
        return watch

    async def unwatch(self, watch):
        if self.watches.pop(watch.key, None):
            watch.end(True)
            with contextlib.suppress(Refused):
                await self.call({**watch.command, "type": watch.command["type"].replace(".watch", ".unwatch")})

    async def enter(self, session, state="idle", data=None, **fields):
        """Is in a session, also after reconnects. Entered again, it says everything anew."""
        fresh = session not in self.rooms
        command = {
            "type": "presence.enter",
            "session": session,
            "state": state,
            **({} if data is None else {"data": data}),
            **fields,
        }
        self.rooms[session] = command
        kind = "presence.enter" if fresh else "presence.update"
        await self.call({**{name: value for name, value in command.items() if fresh or name != "lease_ms"}, "type": kind})

    async def leave(self, session):
        if self.rooms.pop(session, None):
            await self.call({"type": "presence.leave", "session": session})

    async def work(self, queue, handle, *, credit=1):
        """Works on jobs of a queue until cancelled: `await handle(job)` for each, so many at once."""
        pull = self.pulls[queue] = Pull(self, queue, handle, credit)
        try:
            await self._pull(pull)
        finally:
            self.pulls.pop(queue, None)
            pull.stop()

    async def join(self, group, handle, *, credit=1):
        """Is a member of a group until cancelled: `await handle(run)` for each run, of so many sessions at once."""
        # No queue's name begins so.
        member = self.pulls[f"${group}"] = Member(self, group, handle, credit)
        try:
            await self._pull(member)
        finally:
            self.pulls.pop(f"${group}", None)
            member.stop()
            if not self._why_over:
                self.restore({"type": "group.leave", "group": group})

    async def _pull(self, pull):
        await self.call(pull.command())
        while not self._why_over:
            await asyncio.sleep(1)
        self._check()

    # --- connections

    async def _run(self):
        try:
            while True:
                why = await self._connection()
                link, self.link = self.link, None
                self._ready.clear()
                self.on_connection(False)
                self._lost_with_connection()
                await asyncio.sleep(self.pauses.after(why, link))
        except asyncio.CancelledError:
            raise
        except BaseException as why:
            self._end(why)

    async def _connection(self):
        """One connection, from the attempt to its end; returns why it ended."""
        try:
            self.link = await dial(self.url, self.name, self._life["token"])
            self.pauses.welcomed()
            self.name = self.link.welcome["client"]
            self.window = Window(self.credit)
            self.connects += 1
            await self.link.send(self._resume(), {"type": "hello", "credit": {"events": self.credit}})
            ticker = asyncio.create_task(self._tick())
            try:
                async for frame in self.link:
                    self._take(frame)
            finally:
                ticker.cancel()
        except GONE as why:
            return why

    def _resume(self):
        life = self._life
        if not life["token"]:
            return {"type": "resume", "id": "resume"}
        life["attempt"] += 1
        seen = {**life["seen"], **{key: feed.seen for key, feed in self.feeds.items() if key != "patterns" and feed.seen}}
        position = self.feeds["patterns"].position if "patterns" in self.feeds else life["position"]
        self._note()
        command = {
            "type": "resume",
            "id": "resume",
            "token": life["token"],
            "attempt": life["attempt"],
            "seen": list(seen.values()),
        }
        return {**command, "position": position} if position else command

    def _lost_with_connection(self):
        for number in [number for number, ask in self._waiting.items() if ask.of_connection]:
            ask = self._waiting.pop(number)
            if not ask.answer.done():
                ask.answer.set_result(None)
        for ask in self._waiting.values():
            ask.repeated = True

    async def _tick(self):
        """Returns credit and keeps the place, now and then."""
        while True:
            await asyncio.sleep(ACK_EVERY_S)
            self.acknowledge(self.window)
            self._note()

    def _note(self):
        """Keeps the life where the next process finds it."""
        if not self.keep or not self._life["token"]:
            return
        for key, feed in self.feeds.items():
            if key == "patterns":
                self._life["position"] = feed.position
            elif feed.worked_to:
                self._life["seen"][key] = feed.worked_to
        self._life["client"] = self.name
        fresh = self.keep.with_suffix(".new")
        fresh.write_text(json.dumps(self._life))
        os.chmod(fresh, 0o600)
        fresh.replace(self.keep)

    # --- frames

    def _take(self, frame):
        kind = frame["type"]
        number = frame.get("id")
        if number == "resume":
            return self._resumed(frame)
        if number is not None:
            return self._answered(number, frame)
        if kind in ("event", "stream.delta", "gap", "volatile", "notice"):
            return self._deliver(frame)
        if kind in ("entries", "presence", "receipts"):
            name = "entry" if kind == "entries" else kind
            watch = self.watches.get((name, frame.get("session"), frame.get("bucket"), frame.get("prefix", "")))
            return watch.take(frame) if watch else None
        if kind == "job" and frame["queue"] in self.pulls:
            return self.pulls[frame["queue"]].take(frame)
        if kind == "group.run" and f"${frame['group']}" in self.pulls:
            return self.pulls[f"${frame['group']}"].take(frame)
        if kind in ("job.lost", "group.lost"):
            for pull in self.pulls.values():
                pull.lost(frame)
        if kind == "subscribed":
            return self._restored("patterns" if frame.get("patterns") else frame["session"], frame)
        if kind == "lost":
            return self._owes_less()

    def _answered(self, number, frame):
        ask = self._waiting.get(number)
        if ask and not ask.answer.done():
            ask.answer.set_result(Refused(frame, ask.repeated) if frame["type"] == "refused" else frame)

    def _deliver(self, frame):
        session = frame.get("session") or frame.get("event_id", "::").rsplit(":", 2)[0]
        feed = self.feeds.get(session) or self.feeds.get("patterns")
        if feed:
            feed.take(frame, self.window)
        elif frame["type"] in ("event", "stream.delta"):
            # On its way when the feed was closed.
            if self.window.worked(self.window.take()):
                self.acknowledge(self.window)

    def _resumed(self, frame):
        if frame["type"] == "refused":
            if Refused(frame).temporary or frame["refusal"] in ("stale_token", "bad_token"):
                if not Refused(frame).temporary:
                    self._life.update(token=None, attempt=0)
                    self._from_before = False
                pause_s = frame.get("retry_after_ms", 0) / 1000
                self._task(self._resume_again(pause_s))
                return
            raise Over(f"the life cannot go on: {frame['refusal']}")
        self._life.update(token=frame["token"], attempt=0)
        self._owed = frame["sessions"] + int(frame["patterns"])
        self._brought = set()
        self._note()
        self._ready.set()
        self.on_connection(True)
        for pull in self.pulls.values():
            pull.reconnected()
            self.restore(pull.command())
        for watch in self.watches.values():
            self.restore(watch.again())
        for room in self.rooms.values():
            self.restore(room)
        if again := [ask.command for ask in self._waiting.values() if not ask.of_connection]:
            self._task(self._send(*again))
        if not self._owed:
            self._all_restored()

    async def _resume_again(self, pause_s):
        await asyncio.sleep(pause_s)
        await self._send(self._resume())

    def restore(self, command):
        """Takes something up again on this connection; if the connection goes, the next one does it anew."""
        self._task(self._restore(command))

    async def _restore(self, command):
        while (answer := await self._ask(command, of_connection=True)) is not None:
            if isinstance(answer, dict) or not answer.temporary:
                return
            await asyncio.sleep(answer.frame.get("retry_after_ms", 50) / 1000)

    def _restored(self, key, frame):
        self._brought.add(key)
        if key in self.feeds:
            self.feeds[key].begin(frame)
        elif self._from_before:
            feed = self.feeds[key] = Feed(self, key, None)
            feed.begin(frame)
            if seen := self._life["seen"].get(key):
                _, epoch, offset = seen.rsplit(":", 2)
                feed.last = (epoch, int(offset))
        else:
            self.restore({"type": "unsubscribe", **_scope(key)})
        self._owes_less()

    def _owes_less(self):
        self._owed -= 1
        if self._owed == 0:
            self._all_restored()

    def _all_restored(self):
        self._from_before = False
        pending = {_key_of(ask.command) for ask in self._waiting.values() if ask.command["type"] == "subscribe"}
        for key, feed in self.feeds.items():
            if key not in self._brought and key not in pending and feed.command:
                self.restore(feed.again())

    def _task(self, work):
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _scope(key):
    return {"patterns": True} if key == "patterns" else {"session": key}


def _key_of(command):
    return "patterns" if command.get("patterns") else command["session"]
