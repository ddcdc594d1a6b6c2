#!/usr/bin/env python3
"""Rolling restarts under load: a new process takes over three times, once with another number of shards, and nobody notices.

    publishers ── open loop ──► sessions ──► readers: a fifth slow; some give positions, some resume with a token
       serve --takeover ×3 in the middle        on goaway some leave, some stay to the end, some come back at once
       at the end: read everything back; each reader saw each event once and in order; how long was each client away?

Clients are shared out to processes of their own (`--workers`), so that 2000 of them fit one test.
"""

import argparse
import asyncio
import collections
import json
import multiprocessing
import random
import socket
import time
import zlib

from tide import GONE, PATIENCE_S, Client, Refused, Server, Violations, history, run, split_event_id

MANNERS = ("leaves", "stays", "rushes")
KINDS = ("position", "token", "seen")
# What a slow reader's kernel keeps for it, so that the rest waits at the server.
SLOW_RECEIVE_BYTES = 128 << 10


class World:
    """What the clients of one process share."""

    def __init__(self, options, url):
        self.options = options
        self.url = url
        self.bad = Violations()
        self.stopping = asyncio.Event()
        self.hurry = asyncio.Event()
        self.acked = {}  # message id → event id
        self.sent = {}  # message id → (session, data)
        self.away = []  # (seconds, kind, manners)
        self.met = collections.Counter()  # how connections were refused, and what came of goodbyes
        self.loose = set()  # (publisher, session): its order was broken by a refusal

    async def connect(self, client_id, slow=False):
        """Connects as often as it takes. While one server takes over from the other no door may be closed."""
        query = f"?client={client_id}" if client_id else ""
        while True:
            options = {"max_queue": 1, "sock": await narrow_socket(self.url)} if slow else {}
            try:
                return await Client.open(f"{self.url}{query}", read=False, **options)
            except GONE as gone:
                status = getattr(getattr(gone, "response", None), "status_code", None)
                if status == 503:
                    self.met["503"] += 1
                    await asyncio.sleep(0.05 + float(gone.response.headers.get("Retry-After", "1")) * random.random())
                    continue
                self.met[type(gone).__name__] += 1
                self.bad.add("a connection was refused or reset", f"{type(gone).__name__}: {gone}")
                await asyncio.sleep(0.05 + 0.1 * random.random())


async def narrow_socket(url):
    """A connected socket that takes little at once."""
    host, port = url.split("/")[2].split(":")
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_RECEIVE_BYTES)
    narrow.setblocking(False)
    await asyncio.get_running_loop().sock_connect(narrow, (host, int(port)))
    return narrow


class Peer:
    """What readers and publishers have in common: a goodbye, and how long they were away."""

    def __init__(self, world, manners):
        self.world = world
        self.manners = manners
        self.gone_at = None  # when the last connection ended
        self.back_at = 0.0  # not to come back before
        self.leaving = False

    def told(self, frame):
        """A goaway came."""
        self.world.met["goaway"] += 1
        if self.manners != "rushes":
            self.back_at = time.monotonic() + frame["reconnect_after_ms"] / 1000
        self.leaving = self.manners == "leaves"

    def lost(self, client):
        self.gone_at = time.monotonic()
        self.leaving = False
        self.world.met[f"closed with {client.socket.close_code}"] += 1

    async def come_back(self):
        await asyncio.sleep(max(0.0, self.back_at - time.monotonic()))

    def here_again(self, kind):
        if self.gone_at is not None:
            self.world.away.append((time.monotonic() - self.gone_at, kind, self.manners))
            self.gone_at = None


class Reader(Peer):
    """Follows one session from its beginning."""

    def __init__(self, world, number, session, kind, manners, slow):
        super().__init__(world, manners)
        self.name = f"reader-{number}"
        self.session, self.kind, self.slow = session, kind, slow
        self.next, self.epoch, self.chain = 0, None, 0
        self.token = None
        self.attempt = 0
        self.kept = 0  # acknowledged, and told so by the server
        self.repeats_to = 0  # offsets below may come again after a resume

    async def run(self):
        while True:
            await self.come_back()
            client = await self.world.connect(self.name if self.token is None else None, self.slow)
            try:
                await self.begin(client)
                await self.read(client)
                await client.socket.close()
            except GONE:
                pass
            self.lost(client)

    async def begin(self, client):
        commands = []
        if self.kind != "position":
            resume = {"type": "resume", "id": "resume"}
            if self.token is not None:
                resume |= {"token": self.token, "attempt": self.attempt}
                self.attempt += 1
                if self.kind == "seen" and self.next > 0:
                    resume["seen"] = [f"{self.session}:{self.epoch}:{self.next - 1}"]
            commands.append(resume)
        if self.token is None:
            start = "earliest" if self.epoch is None else {"offset": self.next, "epoch": self.epoch}
            commands.append({"type": "subscribe", "id": "subscribe", "session": self.session, "from": start})
        for command in commands:
            await client.socket.send(json.dumps(command))
        self.repeats_to = self.next if self.kind == "token" else 0
        self.first = True

    async def read(self, client):
        events, acks = 0, {}
        while not self.leaving:
            frame = json.loads(await client.socket.recv())
            match frame["type"]:
                case "event":
                    self.take(frame)
                    events += 1
                    if self.kind != "position" and events % 4 == 0:
                        acks[events] = self.next
                        await client.socket.send(json.dumps({"type": "ack", "id": events, "events": events}))
                    if self.slow and not self.world.hurry.is_set():
                        await nap(self.world.hurry, self.world.options.slow_s)
                case "acked":
                    self.kept = max(self.kept, acks.pop(frame["id"]))
                case "resumed":
                    if self.token is not None and frame["sessions"] != 1:
                        self.world.bad.add("a subscription was not kept", (self.name, self.next, frame["sessions"]))
                    self.token, self.attempt = frame["token"], 0
                    self.here_again(self.kind)
                case "subscribed":
                    self.here_again(self.kind)
                case "goaway":
                    self.told(frame)
                case "slow_down":
                    self.world.met["slow_down"] += 1
                case _:
                    self.world.bad.add("a reader got a frame that it did not expect", (self.name, self.kind, frame))

    def take(self, frame):
        bad = self.world.bad
        session, epoch, offset = split_event_id(frame["event_id"])
        if session != self.session:
            bad.add("an event of another session", (self.name, frame["event_id"]))
            return
        if self.epoch not in (None, epoch):
            bad.add("an epoch changed", frame)
        self.epoch = epoch
        if self.first and self.kind == "token" and offset < self.kept:
            bad.add("an acknowledged event came again after a drain", (self.name, self.kept, offset))
        self.first = False
        if offset < self.next and offset < self.repeats_to:
            return  # not acknowledged when it left: promised to come again
        if offset != self.next:
            bad.add("a reader expected another offset", (self.name, self.kind, self.manners, self.slow, self.next, offset, self.kept))
            self.next = offset
        self.repeats_to = 0
        self.next = offset + 1
        self.chain = link(self.chain, frame)


def link(chain, frame):
    """One more event of a session, in a number that differs where anything before it differs."""
    return zlib.crc32(f"{frame['event_id']} {frame.get('message_id')} {json.dumps(frame['data'])}".encode(), chain)


async def nap(event, seconds):
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except (TimeoutError, asyncio.TimeoutError):
        pass


class Publisher(Peer):
    """Publishes at its times, whatever the server does; what was not acknowledged is sent again, in order."""

    def __init__(self, world, number, manners):
        super().__init__(world, manners)
        self.number = number
        self.random = random.Random(world.options.seed * 1000 + number)
        self.open = collections.OrderedDict()
        self.queue = collections.deque()
        self.news = asyncio.Event()
        self.made = 0
        self.count = collections.Counter()

    async def tick(self):
        """Open loop: the next message is due when it is due."""
        o = self.world.options
        due = time.monotonic() + self.random.random()
        while not self.world.stopping.is_set():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += o.publishers / o.rate
            session = f"s{self.random.randrange(o.sessions)}"
            message_id = f"m{self.number}-{self.made}"
            data = {"p": self.number, "n": self.count[session], "pad": "x" * self.random.randrange(2000)}
            self.made += 1
            self.count[session] += 1
            command = {"type": "publish", "session": session, "topic": "chat.message", "message_id": message_id, "data": data, "id": message_id}
            self.world.sent[message_id] = (session, data)
            self.open[message_id] = command
            self.queue.append(command)
            self.news.set()

    async def run(self):
        ticking = asyncio.create_task(self.tick())
        while self.open or not ticking.done():
            await self.come_back()
            client = await self.world.connect(f"publisher-{self.number}")
            self.here_again("publisher")
            self.queue = collections.deque(self.open.values())
            self.news.set()
            sending = asyncio.create_task(self.send(client))
            try:
                while not self.leaving and (self.open or not ticking.done()):
                    try:
                        self.hear(json.loads(await asyncio.wait_for(client.socket.recv(), 0.5)))
                    except (TimeoutError, asyncio.TimeoutError):
                        pass
                await client.socket.close()
            except GONE:
                pass
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            self.lost(client)
        await ticking

    async def send(self, client):
        while True:
            while self.queue:
                await client.socket.send(json.dumps(self.queue.popleft()))
            self.news.clear()
            await self.news.wait()

    def hear(self, frame):
        w = self.world
        match frame["type"]:
            case "published":
                message_id = frame["id"]
                known = w.acked.setdefault(message_id, frame["event_id"])
                if known != frame["event_id"]:
                    w.bad.add("one message, two event ids", (message_id, known, frame["event_id"]))
                if frame["durability"] != "disk":
                    w.bad.add("acknowledged with another durability than disk", frame)
                self.open.pop(message_id, None)
            case "refused":
                w.met[frame["refusal"]] += 1
                command = self.open.get(frame.get("id"))
                if command is None or not Refused(frame).retry:
                    w.bad.add("refused for good", frame)
                else:
                    w.loose.add((self.number, command["session"]))
                    self.queue.append(command)
                    self.news.set()
            case "goaway":
                self.told(frame)
            case "slow_down":
                w.met["slow_down"] += 1
            case _:
                w.bad.add("a publisher got a frame that it did not expect", frame)


async def work(options, worker, url, pipe):
    """One process of clients: every `workers`th of each sort."""
    world = World(options, url)
    random.seed(options.seed + worker)
    readers = []
    for number in range(worker, options.clients - options.publishers, options.workers):
        # Sorts are drawn apart from each other, so that each meets each.
        draw = random.Random(options.seed * 77 + number)
        kind, manners, slow = draw.choice(KINDS), draw.choice(MANNERS), draw.random() < 0.2
        readers.append(Reader(world, number, f"s{number % options.sessions}", kind, manners, slow))
    publishers = [Publisher(world, n, MANNERS[n % 3]) for n in range(worker, options.publishers, options.workers)]
    reading = []
    for reader in readers:
        reading.append(asyncio.create_task(reader.run()))
        if len(reading) % 20 == 0:
            await asyncio.sleep(0.02)
    while any(reader.next == 0 for reader in readers):
        await asyncio.sleep(0.05)
        for task in reading:
            if task.done():
                task.result()
    publishing = [asyncio.create_task(publisher.run()) for publisher in publishers]
    loop = asyncio.get_running_loop()
    pipe.send("ready")

    # The parent restarts servers until it says stop.
    await loop.run_in_executor(None, pipe.recv)
    world.stopping.set()
    await asyncio.wait_for(asyncio.gather(*publishing), 60)
    pipe.send((world.acked, world.sent, world.loose))
    tails = await loop.run_in_executor(None, pipe.recv)
    world.hurry.set()
    deadline = time.monotonic() + 60
    behind = readers
    while behind and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
        behind = [reader for reader in behind if reader.next < tails[reader.session][0]]
    for task in reading:
        if task.done():
            task.result()
    for reader in behind:
        world.bad.add("a reader never caught up", (reader.name, reader.kind, reader.next, tails[reader.session][0]))
    for reader in readers:
        if (reader.next, reader.chain) != tails[reader.session] and reader not in behind:
            world.bad.add("a reader saw other events than are stored", (reader.name, reader.session, reader.next))
    pipe.send((world.bad, world.away, world.met, len(readers), sum(reader.slow for reader in readers)))


def client_process(options, worker, url, pipe):
    run(work(options, worker, url, pipe))


async def read_everything(options, url, acked, sent, loose, bad):
    """Compares what is stored with what was sent and acknowledged. Returns session → (tail, chain)."""
    client = await Client.open(url)
    tails, stored = {}, {}
    for session in (f"s{n}" for n in range(options.sessions)):
        order, chain = {}, 0
        events = await history(client, session)
        for expected, event in enumerate(events):
            chain = link(chain, event)
            if split_event_id(event["event_id"])[2] != expected:
                bad.add("offsets are not dense", (session, expected, event["event_id"]))
            message_id = event["message_id"]
            if expected == 0:
                continue  # the session's first event, made before the load
            if sent.get(message_id) != (session, event["data"]):
                bad.add("an event differs from what was sent", event)
            if message_id in stored:
                bad.add("a message is stored twice", (stored[message_id], event["event_id"]))
            stored[message_id] = event["event_id"]
            p, n = event["data"]["p"], event["data"]["n"]
            if n <= order.get(p, -1) and (p, session) not in loose:
                bad.add("a publisher's order is broken", (session, p, order[p], n))
            order[p] = n
        tails[session] = (len(events), chain)
    for message_id, event_id in acked.items():
        if stored.get(message_id) != event_id:
            bad.add("an acknowledged event is missing or has another id", (message_id, event_id, stored.get(message_id)))
    for message_id in set(sent) - set(acked):
        bad.add("a message was never acknowledged although its publisher retried", message_id)
    await client.close()
    return tails


async def prepare(options, url):
    """One event in every session, so that a reader may start at its beginning."""
    client = await Client.open(url)
    for at in range(0, options.sessions, 100):
        commands = [
            {"type": "publish", "session": f"s{n}", "topic": "chat.message", "message_id": "first", "data": 0}
            for n in range(at, min(at + 100, options.sessions))
        ]
        for reply in await client.call_all(commands):
            assert reply["type"] == "published", reply
    await client.close()


def spread(seconds):
    ordered = sorted(seconds)
    at = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))]
    return f"p50 {at(0.5):.2f} s, p90 {at(0.9):.2f} s, p99 {at(0.99):.2f} s, most {ordered[-1]:.2f} s"


def receive(pipe, process):
    if not pipe.poll(120):
        raise AssertionError("a process of clients does not answer")
    try:
        return pipe.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"a process of clients ended with {process.exitcode}") from None


async def main(options):
    processes = []
    with Server(*options.set, shards=2) as server:
        await prepare(options, server.url)
        context = multiprocessing.get_context("spawn")
        pipes = []
        try:
            for worker in range(options.workers):
                here, there = context.Pipe()
                process = context.Process(target=client_process, args=(options, worker, server.url, there), daemon=True)
                process.start()
                there.close()
                processes.append(process)
                pipes.append(here)
            began = time.monotonic()
            each = lambda: [receive(pipe, process) for pipe, process in zip(pipes, processes)]
            each()
            print(f"{options.clients} clients connected in {time.monotonic() - began:.1f} s", flush=True)
            for restart, shards in enumerate((2, 3, 3)):
                time.sleep(options.pause_s)
                seconds, status = server.take_over(shards)
                print(f"taken over with {shards} shards: ready {seconds:.2f} s after its start, the old one ended with {status}", flush=True)
                assert status == 0, server.tail()
            time.sleep(options.pause_s)
            for pipe in pipes:
                pipe.send("stop")
            bad, acked, sent, loose = Violations(), {}, {}, set()
            for some in each():
                acked.update(some[0])
                sent.update(some[1])
                loose |= some[2]
            tails = await read_everything(options, server.url, acked, sent, loose, bad)
            for pipe in pipes:
                pipe.send(tails)
            results = each()
        finally:
            for process in processes:
                process.kill()
                process.join()
        status = server.stop()
        assert status == 0, f"SIGTERM ended in exit status {status}"

    away, met, readers, slow = [], collections.Counter(), 0, 0
    for others, gone, counts, count, slow_ones in results:
        bad.count.update(others.count)
        bad.first = {**others.first, **bad.first}
        away += gone
        met.update(counts)
        readers, slow = readers + count, slow + slow_ones
    print(f"{len(acked)} events acknowledged of {len(sent)} in {options.sessions} sessions; {readers} readers, {slow} of them slow; {dict(met)}")
    print(f"away, {len(away)} times: {spread([seconds for seconds, *_ in away])}")
    for sort in (*KINDS, "publisher", *MANNERS):
        some = [seconds for seconds, *sorts in away if sort in sorts]
        print(f"  {sort:<10} {len(some):>5} times: {spread(some)}")
    bad.check()
    assert len(away) >= 2 * (options.clients - slow), f"clients were away only {len(away)} times: the test proved little"
    assert len(acked) > options.rate * options.pause_s, "too little was published: the test proved little"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--publishers", type=int, default=40)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--rate", type=float, default=200, help="events per second, all publishers together")
    parser.add_argument("--workers", type=int, default=2, help="processes that the clients are shared out to")
    parser.add_argument("--pause-s", type=float, default=5, help="between two takeovers")
    parser.add_argument("--set", action="append", default=[], metavar="FLAG", help="flag of the server, such as --set=drain_grace_ms=1s")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    options.set = [f"--set={pair}" for pair in options.set]
    # A slow reader takes half of what comes.
    options.slow_s = 2 * options.sessions / options.rate
    print(f"seed {options.seed}", flush=True)
    run(main(options))
