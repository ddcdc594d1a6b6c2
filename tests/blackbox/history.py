#!/usr/bin/env python3
"""Every acknowledged event, once, in order: clients nobody here wrote against a server that is killed five times.

    publishers ── 20 % of messages sent again, random reconnects ──► 1000 sessions on 2 (once 3) shards ─┬─► followers of some sessions
       kill -9 and restart ×5 in the middle                                                              ├─► one `chat.>` reader
       at the end: read everything back and compare with what was acknowledged                           └─► history of every session
"""

import argparse
import asyncio
import collections
import json
import random
import time

from tide import GONE, Client, Refused, Server, Violations, history, run, split_event_id


class World:
    """What clients know of each other: only what a test may compare in the end."""

    def __init__(self, options, server):
        self.options = options
        self.server = server
        self.stopping = asyncio.Event()
        self.bad = Violations()
        self.acked = {}  # message id → event id
        self.sent = {}  # message id → (session, topic, data)
        self.repeats = 0
        self.duplicates = 0
        self.reconnects = 0
        self.refusals = collections.Counter()
        self.loose = set()  # (publisher, session) pairs whose pipeline a refusal has broken: their order is the client's own doing

    async def connect(self, client_id):
        """Connects as often as it takes; a server under test is often away."""
        while True:
            try:
                return await Client.open(f"{self.server.url}?client={client_id}")
            except GONE:
                await asyncio.sleep(0.05 + 0.1 * random.random())


class Publisher:
    """Publishes numbered messages into random sessions and keeps each until it is acknowledged."""

    PIPELINE = 16

    def __init__(self, world, number):
        self.world = world
        self.number = number
        self.random = random.Random(world.options.seed * 1000 + number)
        self.made = 0
        self.per_session = collections.Counter()
        self.open = collections.OrderedDict()  # message id → command, oldest first: all that a reconnect must send again
        self.client = None

    async def run(self):
        w = self.world
        while not w.stopping.is_set() or self.open:
            self.client = await w.connect(f"pub-{self.number}")
            pending = set()
            try:
                # What was in flight goes first and in order, and its acknowledgements are awaited like all others.
                again = list(self.open.values())
                for at in range(0, len(again), 64):
                    pending |= await self.send(again[at : at + 64])
                budget = self.random.randint(100, 1500)
                while budget > 0 and (self.open or not w.stopping.is_set()):
                    if not w.stopping.is_set() and len(pending) < self.PIPELINE:
                        batch = [self.make() for _ in range(self.random.choice((1, 1, 4, 8)))]
                        budget -= len(batch)
                        pending |= await self.send(batch)
                    if not pending:
                        break
                    done, pending = await asyncio.wait(pending, timeout=15, return_when=asyncio.FIRST_COMPLETED)
                    if not done:
                        w.bad.add("no reply within 15 s", list(self.open)[:1])
                        raise EOFError
                    # Every task is asked, so that none is left with an exception that nobody saw.
                    for gone in [why for task in done if (why := task.exception())][:1]:
                        raise gone
                await self.client.close(abort=self.random.random() < 0.5)
            except GONE:
                pass
            finally:
                for task in pending:
                    task.cancel()
                await asyncio.gather(*pending, return_exceptions=True)
                w.reconnects += 1
        if self.client:
            await self.client.close()

    def make(self):
        w = self.world
        session = f"s{self.random.randrange(w.options.sessions)}"
        topic = "tool.call" if self.random.random() < 0.1 else f"chat.{self.random.choice(('message', 'edit.text'))}"
        message_id = f"m{self.number}-{self.made}"
        data = {"p": self.number, "n": self.per_session[session], "pad": "x" * self.random.randrange(200)}
        self.made += 1
        self.per_session[session] += 1
        command = {"type": "publish", "session": session, "topic": topic, "message_id": message_id, "data": data}
        self.open[message_id] = command
        w.sent[message_id] = (session, topic, data)
        return command

    async def send(self, commands):
        """Sends commands in one frame, some of them twice, and returns tasks that await the replies."""
        twice = [c for c in commands if self.random.random() < 0.1]
        asked = [(c, *self.client.ask(c)) for c in commands + twice]
        self.world.repeats += len(twice)
        frames = [command for _, command, _ in asked]
        await self.client.socket.send(json.dumps(frames if len(frames) > 1 else frames[0]))
        return {asyncio.ensure_future(self.settle(c, future)) for c, _, future in asked}

    async def settle(self, command, future):
        w = self.world
        message_id = command["message_id"]
        reply = await future
        if reply["type"] == "refused":
            refused = Refused(reply)
            w.refusals[refused.name] += 1
            if not refused.retry:
                w.bad.add("refused for good", reply)
                self.open.pop(message_id, None)
                return
            w.loose.add((self.number, command["session"]))
            await asyncio.sleep(reply.get("retry_after_ms", 50) / 1000)
            again, future = self.client.ask(command)
            await self.client.socket.send(json.dumps(again))
            return await self.settle(command, future)
        w.duplicates += bool(reply.get("duplicate"))
        self.acknowledge(message_id, reply)
        # Half of the repeats come after the acknowledgement, as a client does that has not seen it.
        if self.random.random() < 0.1:
            w.repeats += 1
            again, future = self.client.ask(command)
            await self.client.socket.send(json.dumps(again))
            late = await future
            if late["type"] != "refused":
                if not late.get("duplicate"):
                    w.bad.add("a repeat of an acknowledged message is not called a duplicate", late)
                self.acknowledge(message_id, late)

    def acknowledge(self, message_id, reply):
        w = self.world
        known = w.acked.setdefault(message_id, reply["event_id"])
        if known != reply["event_id"]:
            w.bad.add("one message, two event ids", (message_id, known, reply["event_id"]))
        if reply.get("durability") != "disk":
            w.bad.add("acknowledged with another durability than disk", reply)
        self.open.pop(message_id, None)


class Follower:
    """Subscribed to some sessions by name, over a connection that names none: most are owned by another shard."""

    def __init__(self, world, number, sessions):
        self.world = world
        self.number = number
        self.next = {session: 0 for session in sessions}
        self.epoch = {}
        self.random = random.Random(world.options.seed * 2000 + number)
        self.seen = 0

    async def run(self):
        while True:
            client = await self.world.connect(f"follow-{self.number}")
            try:
                for session, at in self.next.items():
                    start = {"offset": at, "epoch": self.epoch[session]} if session in self.epoch else "earliest"
                    await client.call({"type": "subscribe", "session": session, "from": start})
                deadline = time.monotonic() + self.random.uniform(3, 15)
                while time.monotonic() < deadline:
                    try:
                        frame = await client.next_event(1.0)
                    except asyncio.TimeoutError:
                        continue
                    self.take(frame)
                await client.close(abort=self.random.random() < 0.5)
                self.drain(client)
            except Refused as refused:
                # Before its first event a session is unknown to a reader that starts at its beginning.
                self.world.refusals[f"subscribe: {refused.name}"] += 1
                if not (refused.retry or refused.name == "unknown_session"):
                    self.world.bad.add("a subscription was refused", refused.frame)
                await client.close()
                self.drain(client)
                await asyncio.sleep(0.5)
            except GONE:
                self.drain(client)

    def drain(self, client):
        """Frames that came before the end count: the server has delivered them."""
        while not client.events.empty():
            frame = client.events.get_nowait()
            if frame is not None:
                self.take(frame)

    def take(self, frame):
        if frame["type"] == "goaway":
            return
        if frame["type"] != "event":
            self.world.bad.add("a follower got a frame that is no event", frame)
            return
        session, epoch, offset = split_event_id(frame["event_id"])
        if session not in self.next:
            self.world.bad.add("a follower got an event of a session that it did not ask for", frame)
        elif self.epoch.setdefault(session, epoch) != epoch:
            self.world.bad.add("an epoch changed", frame)
        elif offset != self.next[session]:
            self.world.bad.add("a follower expected another offset", (session, self.next[session], frame["event_id"]))
            self.next[session] = max(self.next[session], offset + 1)
        else:
            self.next[session] = offset + 1
            self.seen += 1


class PatternReader:
    """Reads `chat.>` over all sessions and resumes from the position that its own `at`s make."""

    def __init__(self, world):
        self.world = world
        self.position = None  # slice → last sequence number
        self.seen = collections.Counter()  # event id → times
        self.last = {}  # session → last offset
        self.resumes = 0
        self.random = random.Random(world.options.seed * 3000)

    async def run(self):
        while True:
            client = await self.world.connect("pattern-reader")
            try:
                start = "earliest" if self.position is None else {"position": ",".join(f"{s}.{n}" for s, n in self.position.items())}
                reply = await client.call({"type": "subscribe", "patterns": ["chat.>"], "from": start})
                self.resumes += 1
                if self.position is None:
                    self.position = dict(map(int, part.split(".")) for part in reply["position"].split(",") if part)
                deadline = time.monotonic() + self.random.uniform(4, 12)
                while time.monotonic() < deadline:
                    try:
                        self.take(await client.next_event(1.0))
                    except asyncio.TimeoutError:
                        continue
                await client.close(abort=self.random.random() < 0.5)
                self.drain(client)
            except Refused as refused:
                self.world.refusals[f"pattern: {refused.name}"] += 1
                if not refused.retry:
                    self.world.bad.add("the pattern subscription was refused", refused.frame)
                await client.close()
                await asyncio.sleep(0.5)
            except GONE:
                self.drain(client)

    drain = Follower.drain

    def take(self, frame):
        bad = self.world.bad
        if frame["type"] == "goaway" or self.position is None:
            return  # without a position nothing has been promised: the next attempt starts from the beginning again
        if frame["type"] != "event":
            return bad.add("the pattern reader got a frame that is no event", frame)
        if not frame["topic"].startswith("chat."):
            bad.add("the pattern reader got a foreign topic", frame)
        slice_, seq = map(int, frame["at"].split("."))
        if seq <= self.position.get(slice_, -1):
            bad.add("a slice went backwards", (self.position.get(slice_), frame["at"], frame["event_id"]))
        self.position[slice_] = seq
        session, _, offset = split_event_id(frame["event_id"])
        if offset <= self.last.get(session, -1):
            bad.add("the pattern reader saw a session out of order", (self.last.get(session), frame["event_id"]))
        self.last[session] = offset
        self.seen[frame["event_id"]] += 1


async def killer(world):
    """Five kills, evenly spread; the third restart has another number of shards, the fourth the first one again."""
    o = world.options
    loop = asyncio.get_running_loop()
    restarts = []
    for kill in range(o.kills):
        await asyncio.sleep(o.seconds / (o.kills + 1))
        world.server.kill9()
        await asyncio.sleep(0.2)
        shards = o.shards + 1 if kill == o.kills // 2 else o.shards
        restarts.append(await loop.run_in_executor(None, world.server.start, shards))
        print(f"killed and restarted with {shards} shards in {restarts[-1]:.2f} s, {len(world.acked)} acknowledged", flush=True)
    await asyncio.sleep(o.seconds / (o.kills + 1))
    return restarts


async def read_everything(world):
    """session → its events, by history, over a few connections."""
    found = {}
    todo = collections.deque(f"s{i}" for i in range(world.options.sessions))

    async def worker(number):
        client = await world.connect(f"auditor-{number}")
        while todo:
            session = todo.popleft()
            try:
                found[session] = await history(client, session)
            except Refused as refused:
                if refused.name != "unknown_session":
                    raise
                found[session] = []
        await client.close()

    await asyncio.gather(*(worker(n) for n in range(4)))
    return found


def audit(world, found):
    """Compares what is stored with what was sent and acknowledged. Returns event ids of chat events."""
    bad = world.bad
    chat = set()
    stored = {}
    for session, events in found.items():
        order = {}
        for expected, event in enumerate(events):
            _, _, offset = split_event_id(event["event_id"])
            message_id = event.get("message_id")
            if offset != expected:
                bad.add("offsets are not dense", (session, expected, event["event_id"]))
            sent = world.sent.get(message_id)
            if sent is None:
                bad.add("an event that nobody sent", event)
                continue
            if (session, event["topic"], event["data"]) != sent:
                bad.add("an event differs from what was sent", (event, sent))
            if message_id in stored:
                bad.add("a message is stored twice", (stored[message_id], event["event_id"]))
            stored[message_id] = event["event_id"]
            p, n = event["data"]["p"], event["data"]["n"]
            if n <= order.get(p, -1) and (p, session) not in world.loose:
                bad.add("a publisher's order is broken", (session, p, order[p], n))
            order[p] = n
            if event["topic"].startswith("chat."):
                chat.add(event["event_id"])
    for message_id, event_id in world.acked.items():
        if stored.get(message_id) != event_id:
            bad.add("an acknowledged event is missing or has another id", (message_id, event_id, stored.get(message_id)))
    for message_id in world.sent:
        if message_id not in world.acked:
            bad.add("a message was never acknowledged although its publisher retried", message_id)
    return chat


async def main(options):
    server = Server(shards=options.shards)
    with server:
        world = World(options, server)
        publishers = [Publisher(world, n) for n in range(options.publishers)]
        follows = [Follower(world, n, [f"s{i}" for i in range(n, options.sessions, options.sessions // 8)]) for n in range(options.followers)]
        reader = PatternReader(world)
        tasks = [asyncio.create_task(p.run()) for p in publishers]
        readers = [asyncio.create_task(r.run()) for r in [*follows, reader]]
        killing = asyncio.create_task(killer(world))
        # A client that dies of its own mistake must end the test at once.
        everyone = [*tasks, *readers, killing]
        while not killing.done():
            done, _ = await asyncio.wait(everyone, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            everyone = [task for task in everyone if not task.done()]
        restarts = killing.result()
        world.stopping.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 60)

        # The longer it ran, the more there is to read; a busy machine takes its time.
        found = await asyncio.wait_for(read_everything(world), 60 + world.options.seconds)
        chat = audit(world, found)
        deadline = time.monotonic() + 30
        tails = {session: len(events) for session, events in found.items()}
        behind = lambda: [s for f in follows for s, at in f.next.items() if at < tails[s]]
        while (len(reader.seen) < len(chat) or behind()) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        for task in readers:
            if task.done():
                task.result()
            task.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        for session in behind()[:1]:
            world.bad.add("a follower never caught up", (session, tails[session]))
        for event_id in chat - set(reader.seen):
            world.bad.add("the pattern reader missed an event", event_id)
        for event_id, times in reader.seen.items():
            if times != 1:
                world.bad.add("the pattern reader saw an event more than once", (event_id, times))
            if event_id not in chat:
                world.bad.add("the pattern reader saw an event that is not stored", event_id)
        status = server.stop()
        if status != 0:
            world.bad.add("SIGTERM did not end in exit status 0", status)

        print(
            f"{len(world.sent)} messages, {world.repeats} sent again, {world.duplicates} answered as duplicates, "
            f"{world.reconnects} publisher connections, {sum(len(e) for e in found.values())} events in "
            f"{sum(bool(e) for e in found.values())} sessions, {len(reader.seen)} by pattern over {reader.resumes} subscriptions, "
            f"{sum(f.seen for f in follows)} by followers, restarts {', '.join(f'{s:.2f}' for s in restarts)} s, refusals {dict(world.refusals)}"
        )
        world.bad.check()
        assert len(world.acked) > options.seconds * 20, f"only {len(world.acked)} acknowledgements: the test proved little"
        assert world.duplicates > 0 and reader.resumes > options.kills


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=48)
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--publishers", type=int, default=12)
    parser.add_argument("--followers", type=int, default=12)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    random.seed(options.seed)
    run(main(options))
