#!/usr/bin/env python3
"""The server under a service manager: sockets that outlive it, what it tells the manager, and the units themselves.

    manager (this test) ── listens ── descriptors 3, 4 ──► serve ── SIGTERM ──► drains, exit 0     no client is refused or reset:
            │                                              (nobody accepts)                        who connects waits
            └───────────────────────────────────────────► serve, another number of shards
    NOTIFY_SOCKET ◄── READY=1, WATCHDOG=1, STOPPING=1
"""

import asyncio
import ctypes.util
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from tide import GONE, PATIENCE_S, ROOT, Client, Server, Violations, binary, environment, history, run
from websockets.exceptions import ConnectionClosed

UNITS = ROOT / "tools" / "systemd"
# Descriptors move to 3, 4, …, and the process says that they are its own: what systemd does between fork and exec.
ACTIVATE = """
import fcntl, os, sys
count, given = int(sys.argv[1]), [int(word) for word in sys.argv[2].split(",")]
high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in given]
for at, fd in enumerate(high):
    os.dup2(fd, 3 + at)
    os.close(fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count), LISTEN_FDNAMES=":".join(["tidegate"] * count))
os.execv(sys.argv[3], sys.argv[3:])
"""


class Manager(Server):
    """Starts the server as systemd does: with listening sockets that it keeps, and with an ear for what it says."""

    def __init__(self, *flags, sockets=2, shards=2, host="127.0.0.1"):
        super().__init__(*flags, shards=shards)
        self.host = host
        self.sockets = []
        for _ in range(sockets):
            one = socket.socket()
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind((host, self.sockets[0].getsockname()[1] if self.sockets else 0))
            one.listen(4096)
            self.sockets.append(one)
        self.port = self.sockets[0].getsockname()[1]
        self.ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ear.bind(os.path.join(self.folder, "notify"))
        self.ear.settimeout(PATIENCE_S)

    def arguments(self, *flags):
        given = ",".join(str(one.fileno()) for one in self.sockets)
        serve = [binary(), "serve", "--data", self.data, "--shards", str(self.shards), *self.flags, *flags]
        return [sys.executable, "-c", ACTIVATE, str(len(self.sockets)), given, *serve]

    def start(self, shards=None, timeout_s=30.0, flags=()):
        self.shards = shards or self.shards
        self.log = open(os.path.join(self.folder, "server.log"), "ab")
        env = {**environment(), "NOTIFY_SOCKET": os.path.join(self.folder, "notify"), "WATCHDOG_USEC": "400000"}
        descriptors = [one.fileno() for one in self.sockets]
        arguments = self.arguments(*flags)
        self.process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=self.log, env=env, pass_fds=descriptors)
        self.hears("READY=1")

    def hears(self, wanted):
        """Waits until the server has said that; returns all its lines of that message."""
        while True:
            try:
                lines = self.ear.recv(4096).decode().split("\n")
            except TimeoutError:
                raise AssertionError(f"{wanted} was not said: {self.tail()}") from None
            if wanted in lines:
                return lines

    def reap(self):
        self.process.wait()
        self.log.close()

    def refused(self, *flags):
        """Runs a start that must not come about; its one line."""
        given = [one.fileno() for one in self.sockets]
        pipes = {"capture_output": True, "text": True}
        done = subprocess.run(self.arguments(*flags), **pipes, timeout=30, env=environment(), pass_fds=given)
        lines = [line for line in done.stderr.splitlines() if line.startswith("tidegate: ")]
        assert done.returncode == 2 and len(lines) == 1, (done.returncode, done.stderr)
        return lines[0]


def notices(manager):
    manager.start()
    lines = manager.hears("WATCHDOG=1")
    manager.hears("WATCHDOG=1")
    manager.process.send_signal(signal.SIGTERM)
    lines = manager.hears("STOPPING=1")
    assert any(line.startswith("STATUS=") for line in lines), lines
    assert manager.process.wait(20) == 0, manager.tail()
    manager.reap()
    manager.start()
    # MAINPID is how a manager follows a takeover.
    manager.process.send_signal(signal.SIGTERM)
    assert manager.process.wait(20) == 0
    manager.reap()
    while select.select([manager.ear], [], [], 0)[0]:
        manager.ear.recv(4096)


class Visitor:
    """Connects, publishes a few events, leaves, and connects again. Every connection attempt must come to something."""

    def __init__(self, name, manager, bad):
        self.name, self.manager, self.bad = name, manager, bad
        self.sent, self.acked, self.connections, self.waited_s = 0, 0, 0, 0.0

    async def visit(self):
        began = time.monotonic()
        try:
            client = await Client.open(self.manager.url)
        except ConnectionClosed:
            return  # accepted before the drain began, and told to come back
        except GONE as why:
            return self.bad.add("a connection was refused", f"{self.name}: {why!r}")
        self.waited_s = max(self.waited_s, time.monotonic() - began)
        self.connections += 1
        try:
            for _ in range(5):
                await self.publish(client)
                await asyncio.sleep(0.01)
        except GONE:
            pass  # sent away in the drain; the next connection goes on with the same message
        await client.close(abort=True)

    async def publish(self, client):
        n = self.sent
        await client.call({"type": "publish", "session": self.name, "topic": "chat.message", "message_id": f"m{n}", "data": n})
        self.sent, self.acked = n + 1, n + 1

    async def go_on(self, ended):
        while not ended.is_set():
            await self.visit()


async def restarts(manager):
    """Restarts under load, with nobody at the door in between. What was acknowledged is there, once and in order."""
    bad, ended = Violations(), asyncio.Event()
    visitors = [Visitor(f"s{n}", manager, bad) for n in range(24)]
    manager.start()
    going = [asyncio.create_task(visitor.go_on(ended)) for visitor in visitors]
    for shards in (3, 1, 2):
        await asyncio.sleep(0.5)
        manager.process.send_signal(signal.SIGTERM)
        status = await asyncio.get_running_loop().run_in_executor(None, manager.process.wait, 30)
        assert status == 0, manager.tail()
        manager.log.close()
        await asyncio.sleep(0.3)  # the service is down: connections wait in the manager's sockets
        await asyncio.get_running_loop().run_in_executor(None, manager.start, shards)
    await asyncio.sleep(0.5)
    ended.set()
    await asyncio.gather(*going)
    client = await Client.open(manager.url)
    for visitor in visitors:
        stored = [event["data"] for event in await history(client, visitor.name)]
        if stored[: visitor.acked] != list(range(visitor.acked)) or len(stored) > visitor.acked + 1:
            bad.add("lost, doubled or out of order", f"{visitor.name}: {visitor.acked} acknowledged, stored {stored}")
    await client.close()
    bad.check()
    connections = sum(visitor.connections for visitor in visitors)
    assert connections > 2 * len(visitors), connections
    acked = sum(visitor.acked for visitor in visitors)
    waited = max(visitor.waited_s for visitor in visitors)
    print(f"restarts: {connections} connections, {acked} events acknowledged, none refused", end="; ")
    print(f"the longest wait {waited:.1f} s", flush=True)


async def all_are_served(manager):
    """Fewer sockets than shards: they share them."""
    clients = await asyncio.gather(*(Client.open(manager.url) for _ in range(60)))
    for number, client in enumerate(clients):
        await client.call({"type": "publish", "session": f"x{number}", "topic": "a", "message_id": "1", "data": 1})
    await asyncio.gather(*(client.close() for client in clients))


def refusals():
    manager = Manager(sockets=1)
    try:
        line = manager.refused("--listen", "127.0.0.1:1")
        assert "ListenStream=" in line, line
        kept, manager.sockets = manager.sockets, [*manager.sockets, socket.socket()]
        line = manager.refused()
        assert "(tidegate, descriptor 4)" in line and "no listening TCP socket" in line, line
        manager.sockets = kept
    finally:
        manager.close()
    public = Manager(sockets=1, host="0.0.0.0")
    try:
        assert "loopback" in public.refused(), "what a service manager opens to the world is checked like --listen"
    finally:
        public.close()


async def by_systemd():
    """The real thing: systemd's own starter, which waits for the first connection."""
    starter = shutil.which("systemd-socket-activate")
    if not starter:
        return print("SKIPPED: no systemd-socket-activate here", flush=True)
    server = Server(shards=2)
    starts = [starter, "-l", f"127.0.0.1:{server.port}", "--fdname=tidegate"]
    arguments = [*starts, binary(), "serve", "--data", server.data, "--shards", "2"]
    server.log = open(os.path.join(server.folder, "server.log"), "ab")
    server.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=server.log, env=environment())
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                client = await Client.open(server.url)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, server.tail()
                await asyncio.sleep(0.05)
        await client.call({"type": "publish", "session": "s", "topic": "a", "message_id": "1", "data": 1})
        await client.close()
        assert server.stop() == 0, server.tail()
    finally:
        server.close()


class Confined(Server):
    """A server under the unit's filter of system calls, without capabilities, as a user with nothing of its own."""

    def arguments(self, *flags):
        drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
        confine = [sys.executable, str(pathlib.Path(__file__).with_name("confine.py")), str(UNITS / "tidegate.service")]
        return [*(drop if os.geteuid() == 0 else []), *confine, *super().arguments(*flags)]


async def confined():
    """io_uring, direct writes, a drain, and a start over what it left: under the unit's filter."""
    if not ctypes.util.find_library("seccomp") or not shutil.which("systemd-analyze"):
        return print("SKIPPED: no libseccomp or no systemd-analyze here", flush=True)
    server = Confined(shards=2)
    os.chmod(server.folder, 0o755)
    os.mkdir(server.data, 0o700)
    if os.geteuid() == 0:
        os.chown(server.data, 65534, 65534)
    # Where another user may read it.
    program = os.path.join(server.folder, "tidegate")
    shutil.copy2(binary(), program)
    os.chmod(program, 0o755)
    kept, os.environ["TIDEGATE_BIN"] = os.environ.get("TIDEGATE_BIN"), program
    try:
        for number in range(2):
            server.start()
            client = await Client.open(server.url)
            command = {"type": "publish", "session": "s", "topic": "a", "message_id": str(number), "data": number}
            assert (await client.call(command))["event_id"].endswith(f":{number}")
            assert [event["data"] for event in await history(client, "s")] == list(range(number + 1))
            await client.close()
            assert server.stop() == 0, server.tail()
    finally:
        server.close()
        os.environ.pop("TIDEGATE_BIN") if kept is None else os.environ.update(TIDEGATE_BIN=kept)
    print("confined: served and restarted under the unit's filter", flush=True)


def units():
    """What systemd itself says of the units, with the binary under test in their place; and that it would notice a mistake."""
    analyze = shutil.which("systemd-analyze")
    if not analyze:
        return print("SKIPPED: no systemd-analyze here", flush=True)
    with tempfile.TemporaryDirectory(prefix="tidegate-units-") as folder:

        def verdict(change=lambda text: text):
            names = []
            for unit in UNITS.glob("tidegate.*"):
                names.append(os.path.join(folder, unit.name))
                text = unit.read_text().replace("/usr/local/bin/tidegate", os.path.abspath(binary()))
                pathlib.Path(names[-1]).write_text(change(text))
            done = subprocess.run([analyze, "verify", "--man=no", *names], capture_output=True, text=True, timeout=30)
            status = f"exit status {done.returncode}\n" if done.returncode else ""
            return status + done.stdout + done.stderr

        said = verdict()
        assert said.strip() == "", said
        assert "WatchdogSecs" in verdict(lambda text: text.replace("WatchdogSec=", "WatchdogSecs="))
    # The unit gives the server the time that it takes at most.
    table = subprocess.run([binary(), "check-config"], capture_output=True, text=True, env=environment(), timeout=20).stdout
    bounds = dict(re.findall(r'^(drain_ms_max|stop_timeout_ms) = "(\d+)s"', table, re.MULTILINE))
    patience_s = int(re.search(r"^TimeoutStopSec=(\d+)$", (UNITS / "tidegate.service").read_text(), re.MULTILINE)[1])
    assert len(bounds) == 2 and patience_s > sum(map(int, bounds.values())) + 2, (bounds, patience_s)


async def main():
    for part in (units, refusals):
        part()
    manager = Manager("--set=drain_grace_ms=100ms")
    try:
        notices(manager)
        await restarts(manager)
        assert manager.stop() == 0, manager.tail()
        manager.start(5)
        await all_are_served(manager)
        assert manager.stop() == 0, manager.tail()
    finally:
        manager.close()
    await by_systemd()
    await confined()
    print("service: passed", flush=True)


if __name__ == "__main__":
    run(main())
