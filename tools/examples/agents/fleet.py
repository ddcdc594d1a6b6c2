"""The processes of the example: starts them, kills them when told, and starts again whatever died.

    session `ops`:  ops.kill {name} ─► SIGKILL          ops.died {name, how}, ops.started {name}      what the timelines show

Of what the fleet says nothing gets lost while the server is down: it is said when the server is back, with the time when it was.
"""

import asyncio
import contextlib
import ctypes
import pathlib
import signal
import subprocess
import sys
import time

from tidegate import Client

HERE = pathlib.Path(__file__).resolve().parent
OPS = "ops"
# So long something stays dead: long enough to see what that does.
DEAD_S = 1.5
DEATH_SIGNAL = 1


def die_with_parent():
    """In the child: it gets SIGTERM when the launcher is gone, however that went."""
    ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGTERM)


class Fleet:
    """Processes by name. `server` is one of them. `ready` is set when questions may be asked."""

    def __init__(self, url, queues, dead_s=DEAD_S):
        self.url = url
        self.queues = queues
        self.dead_s = dead_s
        self.commands = {}
        self.processes = {}
        self.notes = asyncio.Queue()
        self.ready = asyncio.Event()
        self.tasks = []

    def add(self, name, command):
        self.commands[name] = command

    def add_agent(self, role, name, *flags):
        self.add(name, [sys.executable, str(HERE / f"{role}.py"), "--url", self.url, "--name", name, *map(str, flags)])

    def start(self, name):
        output = subprocess.DEVNULL if name == "server" else None
        self.processes[name] = subprocess.Popen(
            self.commands[name], stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=die_with_parent
        )

    async def run(self):
        """Starts all, and again what dies, until cancelled."""
        for name in self.commands:
            self.start(name)
            if name == "server":
                await self.server_ready()
                await self.declare()
        self.tasks = [asyncio.create_task(self._speak()), *(asyncio.create_task(self._keep(name)) for name in self.commands)]
        try:
            await asyncio.gather(*self.tasks)
        finally:
            for task in self.tasks:
                task.cancel()

    async def server_ready(self, timeout_s=60):
        """Waits until something listens."""
        host, _, port = self.url.removeprefix("ws://").partition(":")
        async with asyncio.timeout(timeout_s):
            while self.processes["server"].poll() is None:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(host, int(port))
                    writer.close()
                    return
                await asyncio.sleep(0.05)
        sys.exit(f"the server ended with status {self.processes['server'].returncode}: {' '.join(self.commands['server'])}")

    async def declare(self):
        """An event becomes a job of the queues that there are when it is published; so they come before everybody."""
        async with Client(self.url, "fleet") as client:
            for queue in self.queues:
                await client.call({"type": "queue.declare", **queue})
        self.ready.set()

    async def _keep(self, name):
        while True:
            process = self.processes[name]
            while process.poll() is None:
                await asyncio.sleep(0.03)
            self.note("ops.died", name, how=how_it_died(process.returncode))
            await asyncio.sleep(self.dead_s)
            self.start(name)
            self.note("ops.started", name)

    def kill(self, name):
        """SIGKILL: nothing is said, nothing is saved."""
        if name in self.processes and self.processes[name].poll() is None:
            self.processes[name].kill()

    def note(self, topic, name, **more):
        self.notes.put_nowait((topic, {"name": name, "at": int(time.time() * 1000), **more}))

    async def _speak(self):
        async with Client(self.url, "fleet", pause_s_max=0.5) as client:
            feed = await client.subscribe(OPS)
            listener = asyncio.create_task(self._listen(feed))
            try:
                while True:
                    topic, data = await self.notes.get()
                    await client.publish(OPS, topic, data)
            finally:
                listener.cancel()

    async def _listen(self, feed):
        async for frame in feed:
            if frame["type"] == "event" and frame["topic"] == "ops.kill":
                self.kill(frame["data"]["name"])

    def stop(self):
        """Ends what it started: agents first, then the server, which writes its checkpoint."""
        for name in sorted(self.processes, key=lambda name: name == "server"):
            process = self.processes[name]
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def how_it_died(status):
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return "crashed" if status else "ended"


def serve_command(binary, port, data, shards):
    return [str(binary), "serve", "--listen", f"127.0.0.1:{port}", "--data", str(data), "--shards", str(shards)]


def agents_of(fleet, deadline_ms, *model_flags):
    """The agents of the demo."""
    deadline = ("--deadline-ms", deadline_ms)
    fleet.add_agent("orchestrator", "orchestrator", *deadline)
    fleet.add_agent("tool", "tool", *deadline)
    fleet.add_agent("model", "model-1", *deadline, *model_flags)
    fleet.add_agent("model", "model-2", *deadline, *model_flags)


def knows(binary, command):
    """Does this server binary have that command?"""
    return subprocess.run([str(binary), command, "--help"], capture_output=True, timeout=20).returncode == 0
