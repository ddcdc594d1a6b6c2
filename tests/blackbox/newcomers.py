#!/usr/bin/env python3
"""Sockets that cost something and bring nothing are closed, storms are let in at a bounded rate, and nobody else feels it.

    dribbles its request, or says nothing     ─► closed in time; pushed out by others when there are too many
    answers no ping                           ─► closed (4000)
    is gone without a word, and events go to it ─► its socket is gone
    three hundred at once                     ─► 101, or 503 with Retry-After and later 101; who shows a resume token waits instead
    a token that is forged, or shown often    ─► no better than none
    no room in the table                      ─► 503 with Retry-After and a cure; room again when one leaves
A bystander publishes and reads during the first three.
"""

import asyncio
import ctypes
import json
import re
import signal
import socket
import struct
import sys
import threading
import time

from raw import CLOSE, PING, TEXT, Raw, frame
from tide import Client, Server, run

SO_ATTACH_FILTER = 26
# For everything that is to happen in a second or two.
PATIENCE_S = 20.0
TOKENS = 60
BURST = 300


def settings(**values):
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def established(port):
    """Ports of the peers of the server's connections, as the kernel knows them."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    ends = [(row[1], row[2]) for row in rows if row[3] == "01"]
    return {int(peer.split(":")[1], 16) for own, peer in ends if int(own.split(":")[1], 16) == port}


def deafen(sock):
    """From here on the kernel drops whatever comes for this socket, acknowledgements among it: a peer behind a cut cable."""
    code = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0), 8)  # BPF: ret 0
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HxxxxxxP", 1, ctypes.addressof(code)))


async def until(what, holds, patience_s=PATIENCE_S):
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline, f"never came: {what}"
        await asyncio.sleep(0.05)


def ended(raw):
    """The server has closed this socket."""
    raw.socket.setblocking(False)
    try:
        return raw.socket.recv(65536) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


class Bystander:
    """Publishes and reads, in order, until it is told to stop."""

    async def begin(self, server, session):
        self.session, self.sent, self.stopped = session, 0, False
        self.reader = await Client.open(server.url)
        await self.reader.call({"type": "subscribe", "session": session})
        self.writer = await Client.open(server.url)
        self.task = asyncio.create_task(self.work())
        return self

    async def work(self):
        while not self.stopped:
            n = self.sent
            await self.writer.call({"type": "publish", "session": self.session, "topic": "chat.message", "message_id": f"m{n}", "data": n})
            self.sent += 1
            await asyncio.sleep(0.02)

    async def end(self):
        self.stopped = True
        await self.task
        seen = [(await self.reader.next_event())["data"] for _ in range(self.sent)]
        assert seen == list(range(self.sent)) and self.sent > 10, seen
        await self.reader.close()
        await self.writer.close()


async def reaped(server):
    bystander = await Bystander().begin(server, "by")

    # A request that never ends, and none at all.
    loris, silent = Raw(server.port), Raw(server.port)

    def dribble():
        request = b"GET /v1/ws HTTP/1.1\r\n" + b"X-Slow: " + b"a" * 100_000
        try:
            for at in range(len(request)):
                loris.send(request[at : at + 1])
                time.sleep(0.05)
        except OSError:
            pass

    threading.Thread(target=dribble, daemon=True).start()
    await until("the end of a dribbled request", lambda: ended(loris))
    await until("the end of a silent socket", lambda: ended(silent))

    # More silent ones than there may be: the oldest goes, long before its time; those who speak get in.
    many = [Raw(server.port) for _ in range(8)]
    await until("all of them are accepted", lambda: len(established(server.port) & {raw.socket.getsockname()[1] for raw in many}) == 8)
    status, _, _ = Raw(server.port).request()
    assert status == 101, status
    for raw in many:
        raw.close()

    # No pong: a ping, then the close code of idle connections.
    idle = Raw(server.port, timeout_s=PATIENCE_S)
    assert idle.request()[0] == 101

    def heard():
        got = []
        while (one := idle.receive()) is not None:
            got.append(one)
        return got

    # Not on this thread: the bystander has to answer its own pings.
    frames = await asyncio.to_thread(heard)
    opcodes = [opcode for opcode, _ in frames]
    assert struct.unpack(">H", frames[-1][1][:2])[0] == 4000, frames
    assert opcodes == [TEXT, PING, CLOSE], opcodes

    # Gone without a word while events are sent to it: every send "works" until the kernel gives up.
    dead = Raw(server.port)
    assert dead.request()[0] == 101
    dead.send(frame(TEXT, json.dumps({"type": "subscribe", "session": "by"}).encode()))
    port = dead.socket.getsockname()[1]
    assert port in established(server.port)
    deafen(dead.socket)
    await until("the end of a peer that is gone", lambda: port not in established(server.port))

    await bystander.end()


async def pushed_out(server):
    """With four silent sockets allowed on the only shard, the fifth closes the first, and only that one."""
    four = [Raw(server.port) for _ in range(4)]
    await asyncio.sleep(0.3)
    fifth = Raw(server.port)
    await until("the oldest silent socket is pushed out", lambda: ended(four[0]))
    for raw in [*four[1:], fifth]:
        raw.socket.setblocking(True)
        status, _, _ = raw.request()
        assert status == 101, status
    other = await Client.open(server.url)
    await other.call({"type": "ping"})
    await other.close()


def burst(server, requests):
    """All requests are there before the server looks at the first; the answers as (status, head)."""
    server.process.send_signal(signal.SIGSTOP)
    try:
        sockets = []
        for path, token in requests:
            raw = Raw(server.port, timeout_s=PATIENCE_S)
            names = "tidegate.v1.json" + (f", tidegate.resume.{token}" if token else "")
            key = "dGhlIHNhbXBsZSBub25jZQ=="
            head = f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            raw.send(f"{head}Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {names}\r\n\r\n".encode())
            sockets.append(raw)
    finally:
        server.process.send_signal(signal.SIGCONT)
    answers = []
    for raw in sockets:
        status, head, body = raw.response()
        assert status in (101, 503), head
        if status == 101:
            assert "tidegate.resume" not in head and "Sec-WebSocket-Protocol: tidegate.v1.json" in head, head
        else:
            after = int(re.search(r"\r\nRetry-After: (\d+)", head).group(1))
            assert 1 <= after <= 60, head
            while chunk := raw.socket.recv(4096):
                body += chunk
            assert b"Retry-After" in body and body.endswith(b"\n"), body
        answers.append((status, head))
    return answers, sockets


def statuses(answers, requests, kind):
    return [status for (status, _), (_, token) in zip(answers, requests) if kind(token)]


async def storm(server):
    # Lives to come back to.
    tokens = []
    for n in range(TOKENS):
        client = await Client.open(f"{server.url}?client=c{n}")
        tokens.append((await client.call({"type": "resume"}))["token"])
        await client.close()

    forged = [token[:-3] + ("AAA" if token[-3:] != "AAA" else "BBB") for token in tokens]
    valid, fake = set(tokens), set(forged)
    plain = [None] * (BURST - 2 * TOKENS)
    # In turn, so that nobody is early by chance; each names a session, so that half of them move to the other shard.
    shown = [token for three in zip(forged, plain, tokens) for token in three] + plain[TOKENS:]
    requests = [(f"/v1/ws?session=s{n}", token) for n, token in enumerate(shown)]
    answers, sockets = burst(server, requests)
    resumed = statuses(answers, requests, lambda token: token in valid)
    assert resumed == [101] * TOKENS, f"who resumes waits and gets in: {resumed}"
    others = statuses(answers, requests, lambda token: token not in valid)
    strangers = statuses(answers, requests, lambda token: token is None)
    pretenders = statuses(answers, requests, lambda token: token in fake)
    assert 503 in strangers and 503 in pretenders, "a forged token is no better than none"
    assert 101 in others, "and not nobody gets in"
    for raw in sockets:
        raw.close()

    # One token, shown by many, gives one place in front.
    requests = [("/v1/ws", tokens[0] if n % 2 else None) for n in range(BURST)]
    answers, sockets = burst(server, requests)
    assert 503 in statuses(answers, requests, lambda token: token is not None), "a token is not many tokens"
    for raw in sockets:
        raw.close()

    # Who was told to come back does, until all are in.
    left, rounds = BURST, 0
    while left:
        rounds += 1
        assert rounds < 100, f"{left} never got in"
        answers, sockets = burst(server, [("/v1/ws", None)] * min(left, 40))
        left -= sum(status == 101 for status, _ in answers)
        for raw in sockets:
            raw.close()

    # The shown token takes nothing: the life is taken with the command.
    client = await Client.open(server.url)
    assert (await client.call({"type": "resume", "token": tokens[0]}))["client"] == "c0"
    await client.close()


async def full(server):
    there = [await Client.open(server.url) for _ in range(20)]
    status, head, body = Raw(server.port).request()
    assert status == 503 and re.search(r"\r\nRetry-After: [1-9]", head) and b"connections_per_shard_max" in body, (head, body)
    await there[0].call({"type": "ping"})
    await there[1].close()

    def room():
        raw = Raw(server.port)
        status, _, _ = raw.request()
        raw.close()
        return status == 101

    await until("room again", room)
    for client in there:
        await client.close()


def main():
    times = {"handshake_timeout_ms": 1500, "newcomer_wait_ms": 500, "ping_interval_ms": 700, "idle_timeout_ms": 2000}
    with Server(*settings(**times), shards=2) as server:
        run(reaped(server))
    with Server(*settings(silent_newcomers_per_shard_max=4, handshake_timeout_ms=60_000), shards=1) as server:
        run(pushed_out(server))
    with Server(*settings(turn_newcomers_us_max=1, newcomer_wait_ms=0), shards=2) as server:
        run(storm(server))
    with Server(*settings(connections_per_shard_max=20), shards=1) as server:
        run(full(server))
    print("newcomers: dribblers, silent, idle and dead sockets reaped; storms bounded, resumes first, forged tokens last; a full table says so")


if __name__ == "__main__":
    sys.exit(main())
