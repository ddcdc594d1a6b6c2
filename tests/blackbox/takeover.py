#!/usr/bin/env python3
"""Every way a takeover can go wrong, and what a drain promises: the address never closes, one process has the folder, nothing is lost.

    a new process that is refused, dies early, dies while the old one drains      the old one serves on
    an old process that is killed or stopped while it drains, or never answers    the new one goes on, or says what to do
    SIGTERM: goodbye, commands answered, 503 for who comes, close; twice, thrice  ends as it should
"""

import asyncio
import os
import signal
import socket
import subprocess
import time

from tide import GONE, PATIENCE_S, Client, Server, environment, history, run

SLOW_GOODBYE = "--set=drain_grace_ms=3s"


class Taker:
    """A process that knows how to take over, up to where a test lets it go."""

    def __init__(self, server):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(os.path.join(server.data, "takeover.sock"))

    def say(self, line):
        self.socket.sendall(line.encode() + b"\n")

    def hear(self):
        """A line, byte by byte: descriptors may lie behind it."""
        line = b""
        while not line.endswith(b"\n"):
            byte = self.socket.recv(1)
            if not byte:
                return line.decode() + "<closed>"
            line += byte
        return line.decode().rstrip("\n")

    def takes_the_sockets(self):
        self.say(f"tidegate-takeover 1 {os.getpid()}")
        words = self.hear().split()
        assert words[0] == "listeners", words
        count = int(words[1])
        data, descriptors, _, _ = socket.recv_fds(self.socket, 1, count)
        assert data and len(descriptors) == count, (data, descriptors)
        return descriptors

    def close(self):
        self.socket.close()


def refused(server, **others):
    """Runs a takeover that must not come about, with other values for some flags; its one line."""
    arguments = server.arguments("--takeover")
    for name, value in others.items():
        arguments[arguments.index(f"--{name}") + 1] = value
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=30, env=environment())
    lines = [line for line in done.stderr.splitlines() if line.startswith("tidegate: ")]
    assert done.returncode == 2 and len(lines) == 1, (done.returncode, done.stderr)
    return lines[0]


def http(server, request):
    """What the server answers to a plain request."""
    with socket.create_connection((server.host, server.port), PATIENCE_S) as plain:
        plain.sendall(request.encode() + b"\r\n\r\n")
        answer = b""
        while chunk := plain.recv(4096):
            answer += chunk
    return answer.decode()


UPGRADE = (
    "GET /v1/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
)


class Story:
    """Publishes one event after the other, and knows how many must be there."""

    def __init__(self, server):
        self.server = server
        self.count = 0

    async def goes_on(self):
        """The server serves: a new connection publishes, and everything is still there, once and in order."""
        client = await Client.open(self.server.url)
        await self.publish(client)
        events = await history(client, "story")
        assert [event["data"] for event in events] == list(range(self.count)), events
        await client.close()

    async def publish(self, client):
        command = {"type": "publish", "session": "story", "topic": "chat.message", "message_id": f"m{self.count}", "data": self.count}
        reply = await client.call(command)
        assert reply["type"] == "published" and reply["event_id"].endswith(f":{self.count}"), reply
        self.count += 1


async def goodbye(client):
    """Frames until the goodbye; how long the client is to stay away."""
    while True:
        frame = await client.next_event()
        if frame["type"] == "goaway":
            return frame["reconnect_after_ms"]


async def closed(client):
    try:
        while True:
            await client.next_event()
    except GONE:
        return client.socket.close_code


async def refusals(server, story):
    line = refused(server, data=os.path.join(server.folder, "nothing"))
    assert "no server runs" in line and "without --takeover" in line, line
    line = refused(server, listen="127.0.0.1:1")
    assert "listens on" in line and "--listen" in line, line
    await story.goes_on()

    # Whoever comes and goes changes nothing, and one at a time may take over.
    for words in ([], ["tidegate-takeover 1 x"], ["\xff\xff"], ["x" * 10_000], ["ready"], ["tidegate-takeover 7 1"]):
        taker = Taker(server)
        for word in words:
            taker.say(word)
        if words:
            assert taker.hear().startswith("no "), words
        taker.close()
    taker = Taker(server)
    for descriptor in taker.takes_the_sockets():
        os.close(descriptor)
    line = refused(server)
    assert "taking over already" in line, line
    await story.goes_on()
    taker.close()
    await story.goes_on()

    # A server that does not answer is not waited for.
    os.kill(server.process.pid, signal.SIGSTOP)
    line = refused(server)
    assert "did not answer" in line and str(server.process.pid) in line, line
    os.kill(server.process.pid, signal.SIGCONT)
    await story.goes_on()


async def taker_dies_in_the_drain(server, story):
    client = await Client.open(server.url)
    taker = Taker(server)
    descriptors = taker.takes_the_sockets()
    taker.say("ready")
    assert await goodbye(client) > 0
    # Nobody accepts now: who comes waits, and is served when the old process stays.
    waiting = asyncio.create_task(Client.open(server.url))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    assert "taking over already" in refused(server)
    for descriptor in descriptors:
        os.close(descriptor)
    taker.close()
    late = await asyncio.wait_for(waiting, PATIENCE_S)
    await story.publish(late)
    assert await closed(client) == 1001, "who was told is still closed"
    await story.publish(late)
    await late.close()
    await story.goes_on()
    status = http(server, "GET /readyz HTTP/1.1\r\nHost: x")
    assert status.startswith("HTTP/1.1 200"), status


async def take_over(server, shards, meanwhile):
    """A takeover with something happening once the first client has heard its goodbye."""
    client = await Client.open(server.url)
    old, log = server.process, server.log
    began = asyncio.get_running_loop().run_in_executor(None, lambda: server.start(shards, 60, ["--takeover"]))
    await goodbye(client)
    await meanwhile(old, client)
    await asyncio.wait_for(began, 60)
    status = old.wait(20)
    old.stdout.close()
    log.close()
    return status


async def old_process_fails(server, story):
    async def killed(old, client):
        await story.publish(client)
        old.send_signal(signal.SIGKILL)

    assert await take_over(server, 3, killed) == -signal.SIGKILL
    await story.goes_on()

    async def terminated(old, client):
        await story.publish(client)
        old.send_signal(signal.SIGTERM)
        # It would be hurried by a second one: the first only takes the way back away.
        await asyncio.sleep(0.2)
        await story.publish(client)

    assert await take_over(server, 1, terminated) == 0
    await story.goes_on()

    async def hurried(old, client):
        old.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        old.send_signal(signal.SIGTERM)

    assert await take_over(server, 2, hurried) == 1
    await story.goes_on()


async def all_sockets_are_served(server, story):
    """With fewer shards than listening sockets, and more."""
    for shards in (3, 1, 4):
        _, status = await asyncio.get_running_loop().run_in_executor(None, server.take_over, shards)
        assert status == 0, status
        # The kernel deals connections out by their ports: among so many every socket gets some.
        clients = await asyncio.gather(*(Client.open(server.url) for _ in range(100)))
        shards_seen = {client.welcome["shard"] for client in clients}
        assert shards_seen == set(range(shards)), shards_seen
        await story.goes_on()
        await asyncio.gather(*(client.close() for client in clients))


async def signals(server, story):
    client = await Client.open(server.url)
    server.process.send_signal(signal.SIGTERM)
    assert await goodbye(client) > 0
    await story.publish(client)
    answer = http(server, UPGRADE)
    assert answer.startswith("HTTP/1.1 503") and "Retry-After: " in answer, answer
    assert http(server, "GET /readyz HTTP/1.1\r\nHost: x").startswith("HTTP/1.1 503")
    assert http(server, "GET /healthz HTTP/1.1\r\nHost: x").startswith("HTTP/1.1 200")
    line = refused(server)
    assert "going down" in line, line
    await story.publish(client)
    assert await closed(client) == 1001
    assert server.process.wait(20) == 0, server.tail()
    assert not os.path.exists(os.path.join(server.data, "takeover.sock"))
    server.reap()
    assert "no server runs" in refused(server)

    # Twice: at once, and still nothing is lost. A client that does not even read is no reason to wait.
    server.start()
    await story.goes_on()
    client = await Client.open(server.url)
    deaf = await Client.open(server.url, read=False, max_queue=1)
    await story.publish(client)
    server.process.send_signal(signal.SIGTERM)
    await goodbye(client)
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert await closed(client) == 1001
    assert server.process.wait(20) == 1
    assert time.monotonic() - began < 2.5, "a second signal was not waited for the grace"
    server.reap()
    server.start()
    await story.goes_on()
    deaf.socket.transport.abort()
    assert server.stop() == 0, server.tail()


async def main():
    with Server(SLOW_GOODBYE, shards=2) as server:
        story = Story(server)
        await story.goes_on()
        for part in (refusals, taker_dies_in_the_drain, old_process_fails, signals):
            began = time.monotonic()
            await part(server, story)
            print(f"{part.__name__}: {time.monotonic() - began:.1f} s", flush=True)
    with Server("--set=drain_grace_ms=50ms", shards=2) as server:
        story = Story(server)
        began = time.monotonic()
        await all_sockets_are_served(server, story)
        print(f"all_sockets_are_served: {time.monotonic() - began:.1f} s", flush=True)
        assert server.stop() == 0, server.tail()


if __name__ == "__main__":
    run(main())
