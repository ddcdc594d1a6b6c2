"""What the black-box tests share: a server process to start and kill, and a small client on the PyPI `websockets` package.

    Server.start() ─► "ready http://ADDR" ─► clients ─► kill9() / stop() ─► start(shards=3) …
    Client.call({...}) ─► the frame that carries the same id        Client.events ─► everything that was not asked for

The server binary comes from TIDEGATE_BIN (tools/check sets it); nothing of the server's code is used here.
"""

import asyncio
import collections
import json
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SUBPROTOCOL = "tidegate.v1.json"
# A connection attempt or a call that takes longer has failed.
PATIENCE_S = 20.0
# Everything that says "the connection is gone", for clients that reconnect.
GONE = (ConnectionClosed, InvalidHandshake, OSError, EOFError, TimeoutError, asyncio.TimeoutError)


def binary():
    """Path of the server binary under test."""
    named = os.environ.get("TIDEGATE_BIN")
    if named:
        return named
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    for profile in ("release", "sim", "debug"):
        if (target / profile / "tidegate").exists():
            return str(target / profile / "tidegate")
    sys.exit("no server binary: run `cargo build --release` or set TIDEGATE_BIN")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """One server process over a data folder of its own; the folder outlives the process until `close`."""

    def __init__(self, *flags, shards=2, data=None):
        self.folder = tempfile.mkdtemp(prefix="tidegate-") if data is None else None
        self.data = data or os.path.join(self.folder, "data")
        self.host = "127.0.0.1"
        self.port = free_port()
        self.flags = list(flags)
        self.shards = shards
        self.process = None
        self.log = None

    @property
    def url(self):
        return f"ws://127.0.0.1:{self.port}/v1/ws"

    def arguments(self, *flags):
        return [binary(), "serve", "--listen", f"{self.host}:{self.port}", "--data", self.data, "--shards", str(self.shards), *self.flags, *flags]

    def start(self, shards=None, timeout_s=30.0, flags=()):
        """Starts the process and returns the seconds until it was ready."""
        if shards is not None:
            self.shards = shards
        began = time.monotonic()
        self.log = open(os.path.join(self.folder or os.path.dirname(self.data), "server.log"), "ab")
        self.process = subprocess.Popen(self.arguments(*flags), stdout=subprocess.PIPE, stderr=self.log, env=environment())
        buffered = b""
        while b"ready http" not in buffered or not buffered.endswith(b"\n"):
            left = began + timeout_s - time.monotonic()
            readable, _, _ = select.select([self.process.stdout], [], [], max(0.0, left))
            chunk = os.read(self.process.stdout.fileno(), 4096) if readable else b""
            if not chunk:
                status = self.process.poll()
                self.kill9()
                raise AssertionError(f"server not ready after {time.monotonic() - began:.1f} s (exit status {status}): {self.tail()}")
            buffered += chunk
        return time.monotonic() - began

    def take_over(self, shards=None, timeout_s=60.0):
        """Starts a process that takes the place of the running one. Returns (seconds until it was ready, exit status of the old one)."""
        old, log = self.process, self.log
        seconds = self.start(shards, timeout_s, ["--takeover"])
        try:
            return seconds, old.wait(20)
        finally:
            old.kill()
            old.stdout.close()
            log.close()

    def tail(self):
        """The last lines that the server wrote to stderr."""
        with open(self.log.name, "rb") as log:
            return log.read()[-2000:].decode("utf-8", "replace")

    def rss_kib(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))

    def kill9(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.reap()

    def stop(self, timeout_s=20.0):
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(timeout_s)
        finally:
            self.kill9()
        return status

    def reap(self):
        if self.process:
            self.process.wait()
            self.process.stdout.close()
            self.log.close()

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def close(self):
        if self.alive():
            self.kill9()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, kind, *_):
        if kind is not None and self.log is not None:
            print(f"--- server's last words\n{self.tail()}", file=sys.stderr)
        self.close()


def environment():
    """The process environment without settings that would change the server under test."""
    return {k: v for k, v in os.environ.items() if not k.startswith("TIDEGATE_")}


class Refused(Exception):
    """The server said no; `frame` is its answer."""

    def __init__(self, frame):
        super().__init__(json.dumps(frame))
        self.frame = frame
        self.name = frame.get("refusal")
        self.retry = int(frame.get("code", 4200)) < 4200


class Client:
    """One connection. Replies go to their callers, everything else to `events` in the order of arrival."""

    def __init__(self, socket):
        self.socket = socket
        self.waiting = {}
        self.events = asyncio.Queue()
        self.last_id = 0
        self.welcome = None
        self.hints = []
        self.reader = None

    @classmethod
    async def open(cls, url, read=True, hello=True, auth=None, **options):
        """Connects; with `read=False` the caller reads `socket` itself. `auth`: a token, shown as browsers show it. Without `hello` no
        welcome is waited for: the server wants to know first who it is."""
        options = {"compression": None, "ping_interval": None, "max_size": 1 << 22, "open_timeout": PATIENCE_S, **options}
        shown = [SUBPROTOCOL] if auth is None else [SUBPROTOCOL, f"tidegate.auth.{auth}"]
        client = cls(await connect(url, subprotocols=shown, **options))
        if not hello:
            return client
        client.welcome = json.loads(await asyncio.wait_for(client.socket.recv(), PATIENCE_S))
        assert client.welcome["type"] == "welcome", client.welcome
        if read:
            client.reader = asyncio.create_task(client.read())
        return client

    async def read(self):
        why = EOFError("connection closed")
        try:
            async for text in self.socket:
                frame = json.loads(text)
                waiter = self.waiting.pop(frame.get("id"), None) if "id" in frame else None
                if waiter is None and frame["type"] == "slow_down":
                    self.hints.append(frame)
                elif waiter is None:
                    self.events.put_nowait(frame)
                elif not waiter.done():
                    waiter.set_result(frame)
        except GONE as gone:
            why = gone
        for waiter in self.waiting.values():
            if not waiter.done():
                waiter.set_exception(EOFError(str(why)))
                waiter.exception()  # seen: a caller that has gone away is no error
        self.waiting.clear()
        self.events.put_nowait(None)

    def ask(self, command):
        """Gives `command` an id and returns (command, future of its reply); the caller sends it."""
        self.last_id += 1
        future = asyncio.get_running_loop().create_future()
        if self.reader and self.reader.done():
            raise EOFError("connection closed")
        self.waiting[self.last_id] = future
        return {**command, "id": self.last_id}, future

    async def call(self, command):
        """Sends one command and waits for its reply; a refusal is raised."""
        command, future = self.ask(command)
        await self.socket.send(json.dumps(command))
        return accepted(await asyncio.wait_for(future, PATIENCE_S))

    async def call_all(self, commands):
        """Sends commands as one array frame and waits for every reply, refusals among them."""
        asked = [self.ask(command) for command in commands]
        await self.socket.send(json.dumps([command for command, _ in asked]))
        return await asyncio.wait_for(asyncio.gather(*(future for _, future in asked)), PATIENCE_S)

    async def next_event(self, timeout_s=PATIENCE_S):
        """The next frame that answers no command."""
        frame = await asyncio.wait_for(self.events.get(), timeout_s)
        if frame is None:
            self.events.put_nowait(None)
            raise EOFError("connection closed")
        return frame

    async def close(self, abort=False):
        if abort:
            self.socket.transport.abort()
        else:
            await self.socket.close()
        if self.reader:
            await asyncio.wait([self.reader], timeout=PATIENCE_S)


def accepted(frame):
    if frame["type"] == "refused":
        raise Refused(frame)
    return frame


async def history(client, session, start=0):
    """All events of a session that the server still holds, from `start` on."""
    events, at = [], start
    while True:
        page = await client.call({"type": "history", "session": session, "from": at, "limit": 256})
        events += page["events"]
        if page["next"] >= page["tail"] or page["next"] <= at:
            return events
        at = page["next"]


def run(test):
    """Runs a test's coroutine. After a failure its clients are not waited for: some may be in the middle of a reconnect."""

    async def guarded():
        try:
            await test
        except BaseException as why:
            if isinstance(why, SystemExit):
                print(why.code, file=sys.stderr)
            else:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)

    asyncio.run(guarded())


def split_event_id(event_id):
    """(session, epoch, offset): read from the right, a session name may hold colons."""
    session, epoch, offset = event_id.rsplit(":", 2)
    return session, epoch, int(offset)


class Violations:
    """What must not be; collected so that one run shows more than the first."""

    def __init__(self):
        self.count = collections.Counter()
        self.first = {}

    def add(self, kind, detail):
        self.count[kind] += 1
        self.first.setdefault(kind, detail)

    def check(self):
        if self.count:
            lines = [f"{kind}: {n} times, first: {self.first[kind]}" for kind, n in self.count.items()]
            sys.exit("FAILED\n" + "\n".join(lines))
