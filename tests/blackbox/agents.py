#!/usr/bin/env python3
"""The example of the agents, each of its parts killed in turn: every question ends once, in time, and what was said is said once.

    ask ─► wait until it is at the right place ─► kill one part, or several ─► start again ─► answer │ partial │ fallback

What is checked comes from the log, read by the tests' own client: one end for each question, within its deadline, caused by it,
in the order of the questions; no step of the orchestrator twice; the text what the streams say, a beginning of the whole answer,
all of it where the end is an answer. Beside that a reader on the example's client library gets each event once and in order, over
all that.
"""

import argparse
import asyncio
import itertools
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

from tide import GONE, ROOT, Client, Refused, Server, binary, environment, history, run, split_event_id

EXAMPLE = ROOT / "tools" / "examples" / "agents"
sys.path[:0] = [str(EXAMPLE), str(ROOT / "tools" / "clients" / "python")]

import model  # noqa: E402
import queues  # noqa: E402

import tidegate  # noqa: E402

AGENTS = {"orchestrator": "orchestrator", "tool": "tool", "model-1": "model", "model-2": "model"}
# What a deadline may be late, beside the time in which the server acknowledged nothing: it was dead, or the machine stood still.
GRACE_MS = 1000
BEAT_MS = 400


class Cast:
    """The server and the agents."""

    def __init__(self, server, deadline_ms, delay_ms):
        self.server = server
        self.flags = ["--url", f"ws://127.0.0.1:{server.port}", "--deadline-ms", str(deadline_ms)]
        self.deadline_ms = deadline_ms
        self.delay_ms = delay_ms
        self.processes = {}
        self.beats = []

    def start(self, name):
        flags = [*self.flags, "--name", name, *(["--delay-ms", str(self.delay_ms)] if AGENTS[name] == "model" else [])]
        self.processes[name] = subprocess.Popen([sys.executable, EXAMPLE / f"{AGENTS[name]}.py", *flags], env=environment())

    def kill(self, name):
        if name == "server":
            self.server.kill9()
            self.server.start(shards=random.choice([1, 2, 3]))
        elif name in self.processes:
            process = self.processes.pop(name)
            process.kill()
            process.wait()

    def start_missing(self):
        for name in AGENTS:
            if name not in self.processes or self.processes[name].poll() is not None:
                self.start(name)

    async def all_alive(self):
        """Starts whoever is missing, and waits until all are in their room."""
        self.start_missing()
        client = await Client.open(self.server.url)
        await client.call({"type": "presence.watch", "session": "agents"})
        there = set()
        while not there >= AGENTS.keys():
            frame = await client.next_event()
            if frame["type"] == "presence":
                there = set() if frame.get("snapshot") else there - set(frame.get("left", []))
                there |= {one["client"] for one in frame.get("joined", [])}
        await client.close()

    def close(self):
        for name in list(self.processes):
            self.kill(name)

    async def beat(self):
        """Notes when the server acknowledged something, all the time."""
        count = 0
        while True:
            count += 1
            beat = {"type": "publish", "session": "heart", "topic": "beat", "message_id": f"beat-{count}", "data": count}
            await patiently(self.server, beat)
            self.beats.append(time.time() * 1000)
            await asyncio.sleep(BEAT_MS / 4000)

    def stood_still_ms(self, begin, end):
        """How long between two moments the server acknowledged nothing, as far as that is more than its usual pace."""
        beats = [begin, *(beat for beat in self.beats if begin < beat < end), end]
        return sum(max(0, after - before - BEAT_MS) for before, after in itertools.pairwise(beats))


async def patiently(server, *commands):
    """Sends commands until they are taken, over as many connections as it takes."""
    while True:
        try:
            client = await Client.open(f"{server.url}?client=asker")
            try:
                return [await client.call(command) for command in commands]
            finally:
                await client.close()
        except GONE:
            await asyncio.sleep(0.05)
        except Refused as no:
            if not no.retry:
                raise
            await asyncio.sleep(no.frame.get("retry_after_ms", 50) / 1000)


async def log_of(server, session):
    while True:
        try:
            client = await Client.open(server.url)
            try:
                return await history(client, session)
            finally:
                await client.close()
        except GONE:
            await asyncio.sleep(0.05)
        except Refused as no:
            if no.name == "unknown_session":
                return []
            if not no.retry:
                raise


def topics(events):
    return [event.get("topic") for event in events]


async def until(server, session, happened, timeout_s=60.0):
    """Waits until the log of a session shows something; says what it shows if that never comes."""
    until_s = time.monotonic() + timeout_s
    while not happened(events := await log_of(server, session)):
        told = [f"{event['time']} {event['client']} {event['topic']} {str(event.get('data'))[:80]}" for event in events]
        assert time.monotonic() < until_s, f"{session} stands still:\n" + "\n".join(told)
        await asyncio.sleep(0.1)
    return events


def talks(events, tokens=4):
    """Has a model said that much, and is the question still open?"""
    return sum("stream" in event for event in events) >= tokens or "chat.answer" in topics(events)


class Room:
    """A session with its questions."""

    def __init__(self, cast, name, questions=1):
        self.cast = cast
        self.name = name
        self.questions = [f"Question {n} of {name}: why does a tide gate close?" for n in range(questions)]

    async def ask(self):
        asks = [
            {
                "type": "publish",
                "session": self.name,
                "topic": "chat.ask",
                "message_id": f"{self.name}-{n}",
                "data": {"text": text},
            }
            for n, text in enumerate(self.questions)
        ]
        await patiently(self.cast.server, *asks)

    async def end(self):
        """Waits for all ends, a little longer, and checks; returns the outcomes."""
        wanted = len(self.questions)
        events = await until(self.cast.server, self.name, lambda events: topics(events).count("chat.answer") >= wanted, 90.0)
        return self.check(events)

    def check(self, events):
        asks = [event for event in events if event["topic"] == "chat.ask"]
        ends = [event for event in events if event["topic"] == "chat.answer"]
        assert len(asks) == len(self.questions), f"{self.name}: asked {len(asks)} times"
        causes = [end["prev_event_id"] for end in ends]
        assert sorted(causes) == sorted(ask["event_id"] for ask in asks), f"{self.name}: ends {ends}"
        ends = [ends[causes.index(ask["event_id"])] for ask in asks]
        for before, end in itertools.pairwise(ends):
            # Two deadlines that are over at once may be told in any order; an agent gets a turn only when the one before is over.
            ordered = split_event_id(before["event_id"])[2] < split_event_id(end["event_id"])[2]
            assert ordered or {before["client"], end["client"]} == {"$server"}, f"{self.name}: not in order: {before} {end}"
        return [self.check_turn(ask, end, events) for ask, end in zip(asks, ends)]

    def check_turn(self, ask, end, events):
        number = split_event_id(ask["event_id"])[2]
        took = end["time"] - ask["time"] - self.cast.stood_still_ms(ask["time"], end["time"])
        assert took <= self.cast.deadline_ms + GRACE_MS, f"{self.name}/{number}: ended after {took} ms: {end}"
        mine = [event for event in events if isinstance(event.get("data"), dict) and event["data"].get("turn") == number]
        for step in ("tool.call", "model.ask"):
            assert topics(mine).count(step) <= 1, f"{self.name}/{number}: {step} twice"
        text, stream = "", None
        for event in events[: events.index(end)]:
            if event in mine and event["topic"] == "model.started":
                text, stream = text[: event["data"]["after"]], event["data"]["stream"]
            elif event.get("stream") == stream and stream:
                text += event.get("data", "")
        found = next((event["data"].get("found") for event in mine if event["topic"] == "model.ask"), "")
        whole = model.answer(ask["data"]["text"], found)
        assert whole.startswith(text), f"{self.name}/{number}: said twice, or not in order: {text!r}"
        if end["client"] == "$server":
            return "partial" if text or end["data"].get("partial") else "fallback"
        outcome, said = end["data"]["outcome"], end["data"]["text"]
        if outcome == "answer":
            assert said == whole == text, f"{self.name}/{number}: {said!r} is not all of {text!r}"
        elif outcome == "partial":
            # A worker that does not know yet that it is over may add to its stream: that is behind the end of the answer.
            assert said and text.startswith(said), f"{self.name}/{number}: {said!r} instead of {text!r}"
        else:
            assert outcome == "fallback" and not text, end
        return outcome


class Reader:
    """A client on the example's library that hears every room from its beginning."""

    def __init__(self, server):
        self.client = tidegate.Client(f"ws://127.0.0.1:{server.port}", "reader", credit=32, pause_s_max=0.5)
        self.heard = {}
        self.tasks = []

    async def listen(self, name):
        feed = await self.client.subscribe(name, start="earliest")
        self.heard[name] = []

        async def read():
            async for frame in feed:
                assert frame["type"] in ("event", "notice"), frame
                if frame["type"] == "event":
                    self.heard[name].append(frame["event_id"])

        self.tasks.append(asyncio.create_task(read()))

    async def check(self, server, name):
        """It has heard what the log holds: all of it, once, in order."""
        async with asyncio.timeout(60):
            while True:
                events = [event["event_id"] for event in await log_of(server, name)]
                heard = self.heard[name]
                both = min(len(heard), len(events))
                assert heard[:both] == events[:both], f"{name}: heard {heard[both - 5 :]} of {events[both - 5 :]}"
                if both == len(events):
                    return
                await asyncio.sleep(0.05)


LISTEN_IN_JAVASCRIPT = """
const [library, url, ...sessions] = process.argv.slice(1);
const { Client } = await import(library);
const client = new Client(url, { name: "node", credit: 32, pauseMsMax: 500 });
const say = (frame) => frame.type === "event" && console.log(frame.event_id);
for (const session of sessions) await client.subscribe(session, { from: "earliest" }, say);
"""


class JavaScriptReader:
    """The same on the client library for browsers, where there is a Node that has WebSockets."""

    FLAGS = ["--experimental-websocket", "--experimental-default-type=module", "--no-warnings", "--input-type=module"]

    def __init__(self, server, *sessions):
        self.heard, self.process = [], None
        node = shutil.which("node")
        if not node or subprocess.run([node, *self.FLAGS, "-e", "0"], capture_output=True).returncode != 0:
            print("no Node with WebSockets: the JavaScript client was not tried", flush=True)
            return
        library = ROOT / "tools" / "clients" / "js" / "tidegate.js"
        command = [node, *self.FLAGS, "-e", LISTEN_IN_JAVASCRIPT, str(library), server.url, *sessions]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.heard.append(line.strip())

    def listens(self):
        return not self.process or self.heard

    async def check(self, server, session):
        while self.process:
            assert self.process.poll() is None, "the JavaScript client ended"
            events = [event["event_id"] for event in await log_of(server, session)]
            heard = [event_id for event_id in self.heard if event_id.startswith(f"{session}:")]
            both = min(len(heard), len(events))
            assert heard[:both] == events[:both], f"{session}: JavaScript heard {heard[both - 5 :]} of {events[both - 5 :]}"
            if both == len(events):
                return
            await asyncio.sleep(0.1)

    def close(self):
        if self.process:
            self.process.kill()
            self.process.wait()


def at_work(events):
    """The model that answers now, or any where none has begun."""
    started = [event["data"]["agent"] for event in events if event["topic"] == "model.started"]
    return started[-1] if started else "model-1"


async def round_of(cast, reader, title, when, victims, back=True, rooms=2, questions=1, before=None):
    """Some rooms ask; when the first is at the place, `victims` die; all rooms end."""
    await cast.all_alive()
    rooms = [Room(cast, f"{title.replace(' ', '-')}-{n}", questions) for n in range(rooms)]
    for room in rooms:
        await reader.listen(room.name)
    if before:
        await before()
    await asyncio.gather(*(room.ask() for room in rooms))
    events = await until(cast.server, rooms[0].name, when)
    killed = victims(events) if callable(victims) else victims
    for name in killed:
        cast.kill(name)
    if back:
        cast.start_missing()
    outcomes = [outcome for room in rooms for outcome in await room.end()]
    for room in rooms:
        await reader.check(cast.server, room.name)
    print(f"{title}: {', '.join(killed) or 'nobody'} killed; {', '.join(outcomes)}", flush=True)
    return rooms


async def settings(cast, name, **data):
    await patiently(cast.server, {"type": "entry.put", "bucket": "agents", "key": name, "data": data})


async def both_stall(cast):
    for name in ("model-1", "model-2"):
        await settings(cast, name, stall=True)


async def stopped(cast):
    """Another device says stop in the middle: the turn ends with what was said, and the worker finds its stream closed."""
    await cast.all_alive()
    for name in ("model-1", "model-2"):
        await settings(cast, name, delay_ms=50)
    room = Room(cast, "stopped")
    await room.ask()
    events = await until(cast.server, room.name, talks)
    stop = {"type": "publish", "session": room.name, "topic": "control.cancel", "message_id": "stop", "data": {"turn": 0}}
    await patiently(cast.server, {**stop, "prev_event_id": events[0]["event_id"]})
    outcomes = await room.end()
    events = await log_of(cast.server, room.name)
    end = next(event for event in events if event["topic"] == "chat.answer")
    assert outcomes == ["partial"], end
    said = next(event["time"] for event in events if event["topic"] == "control.cancel")
    took = end["time"] - said - cast.stood_still_ms(said, end["time"])
    assert took < 2 * GRACE_MS, f"said stop, and it ended {took} ms later: {end}"
    if end["data"].get("reason") == "stopped":
        assert any(event.get("status") == "cancelled" for event in events), f"no stream was closed: {topics(events)}"
    for name in ("model-1", "model-2"):
        await settings(cast, name)
    print(f"stop from another device; {', '.join(outcomes)}", flush=True)


async def terminal(cast, folder):
    """The terminal client is killed in the middle, and its next process shows the end of the same question, asked once."""
    await cast.all_alive()
    room = Room(cast, "terminal", 1)
    ask = [
        "--ask",
        room.questions[0],
        "--name",
        "you",
        "--keep",
        f"{folder}/you.json",
        "--session",
        room.name,
        *cast.flags[:2],
    ]
    command = [sys.executable, EXAMPLE / "chat.py", *ask]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    await until(cast.server, room.name, talks)
    first.kill()
    first.communicate()
    second = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, env=environment())
    said = (await asyncio.wait_for(second.communicate(), 120))[0].decode()
    outcomes = room.check(await log_of(cast.server, room.name))
    ended = re.findall(r"^[✓◐✗] (\w+)", said, re.MULTILINE)
    assert ended == outcomes, f"the terminal says {ended}, the log {outcomes}: {said}"
    print(f"terminal: killed in the middle, goes on to its {ended[0]}", flush=True)


async def at_random(cast, reader, dice, seconds):
    """Whatever dies, whenever."""
    await cast.all_alive()
    rooms = [Room(cast, f"random-{n}", 2) for n in range(4)]
    for room in rooms:
        await reader.listen(room.name)
    asking = asyncio.gather(*(room.ask() for room in rooms))
    until_s, killed = time.monotonic() + seconds, []
    while time.monotonic() < until_s:
        await asyncio.sleep(dice.uniform(0.2, 0.8))
        killed.append(dice.choice(["server", *AGENTS]))
        cast.kill(killed[-1])
        if dice.random() < 0.7:
            cast.start_missing()
    await asking
    outcomes = [outcome for room in rooms for outcome in await room.end()]
    for room in rooms:
        await reader.check(cast.server, room.name)
    print(f"at random: {', '.join(killed)} killed; {', '.join(outcomes)}", flush=True)


def one_command():
    """The command of the README, with a binary that is there."""
    command = [
        sys.executable,
        EXAMPLE,
        "--binary",
        binary(),
        "--ask",
        "How does a log survive a crash?",
        "--port",
        "0",
        "--page-port",
        "0",
    ]
    said = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment())
    assert said.returncode == 0 and re.search(r"^[✓◐✗] (answer|partial|fallback)", said.stdout, re.MULTILINE), said
    print("one command: ends with its answer", flush=True)


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="each part once, in less than half a minute")
    parser.add_argument("--deadline-ms", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=3.0, help="of killing at random")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    dice = random.Random(seed)
    with Server() as server, tempfile.TemporaryDirectory() as folder:
        cast = Cast(server, options.deadline_ms, delay_ms=10)
        try:
            await patiently(server, *({"type": "queue.declare", **queue} for queue in queues.queues(options.deadline_ms)))
            reader = Reader(server)
            heart = asyncio.create_task(cast.beat())
            async with reader.client:
                await rounds(cast, reader, dice, options, folder)
            heart.cancel()
        finally:
            cast.close()
    one_command()


async def rounds(cast, reader, dice, options, folder):
    asked = lambda events: "chat.ask" in topics(events)  # noqa: E731
    called = lambda events: "tool.call" in topics(events)  # noqa: E731
    await round_of(cast, reader, "the worker", talks, lambda events: [at_work(events)])
    await round_of(cast, reader, "orchestrator", talks, ["orchestrator"])
    page = JavaScriptReader(cast.server, "server-0", "server-1")
    try:
        await round_of(cast, reader, "server", lambda events: talks(events) and page.listens(), ["server"], questions=2)
        async with asyncio.timeout(60):
            await page.check(cast.server, "server-0")
            await page.check(cast.server, "server-1")
    finally:
        page.close()
    if options.short:
        # Whoever comes back saves the turn its deadline.
        await round_of(cast, reader, "tool", called, ["tool"])
        await terminal(cast, folder)
        return
    await round_of(cast, reader, "tool", called, ["tool"], back=False)
    await terminal(cast, folder)
    await stopped(cast)
    await round_of(cast, reader, "both workers", talks, ["model-1", "model-2"], back=False)
    await round_of(cast, reader, "nobody", talks, [], questions=2)
    await round_of(cast, reader, "orchestrator for good", called, ["orchestrator"], back=False)
    await round_of(cast, reader, "all agents", asked, list(AGENTS), back=False)
    await round_of(cast, reader, "stuck", talks, [], before=lambda: both_stall(cast))
    for name in ("model-1", "model-2"):
        await settings(cast, name)
    await at_random(cast, reader, dice, options.seconds)


if __name__ == "__main__":
    run(main())
