"""What bad input gets on the admin edge: an answer that says what is wrong, a count, and nobody else feels it. Part of tail.py.

    heads that are wrong, endless or never whole ─► 400, 403, 404, 405, 408, 431, each counted by way and status
    every seat of the port taken by the silent   ─► 503; the socket in the data folder answers all the same
    the clients' own listener                    ─► has none of these paths
A client publishes all the while.
"""

import asyncio
import http.client
import os
import socket
import time

from prometheus_client.parser import text_string_to_metric_families as prometheus

import admin
from tail_clients import publish

OK_HOST = "Host: localhost\r\n"
# Seats on each way; src/boot/admin/mod.rs.
SEATS = 8
# (what, bytes, whether the sender ends its half, status on the port, status on the socket)
HEADS = [
    ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", False, 400, 400),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", False, 400, 400),
    ("a head of zeros", bytes(9000), False, 400, 400),
    ("half a request", b"GET /metrics HT", True, 400, 400),
    ("nothing at all", b"", True, 400, 400),
    ("300 headers", f"GET /metrics HTTP/1.1\r\n{OK_HOST}".encode() + b"X: y\r\n" * 300 + b"\r\n", False, 431, 431),
    ("a header without end", f"GET /metrics HTTP/1.1\r\n{OK_HOST}X: ".encode() + b"a" * (900 << 10), False, 431, 431),
    ("a target without end", b"GET /" + b"a" * (100 << 10), False, 431, 431),
    ("a foreign host", b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", False, 403, 200),
    ("no host", b"GET /metrics HTTP/1.1\r\n\r\n", False, 403, 200),
    ("another path", f"GET /v1/ws HTTP/1.1\r\n{OK_HOST}\r\n".encode(), False, 404, 404),
    ("a path that climbs", f"GET /../../etc/passwd HTTP/1.1\r\n{OK_HOST}\r\n".encode(), False, 404, 404),
    ("a body that never comes", f"POST /metrics HTTP/1.1\r\n{OK_HOST}Content-Length: 999999999\r\n\r\n".encode(), False, 405, 405),
    ("a body nobody asked for", f"GET /metrics HTTP/1.1\r\n{OK_HOST}Content-Length: 400000\r\n\r\n".encode() + b"b" * 400000, False, 200, 200),
    ("an endless interval", f"GET /v1/top?seconds=1e9 HTTP/1.1\r\n{OK_HOST}\r\n".encode(), False, 400, 400),
    ("an interval that is no number", f"GET /v1/top?seconds=nan HTTP/1.1\r\n{OK_HOST}\r\n".encode(), False, 400, 400),
    ("an event with broken escapes", f"GET /v1/why?event=%zz HTTP/1.1\r\n{OK_HOST}\r\n".encode(), False, 400, 400),
    ("an event that is no UTF-8", f"GET /v1/why?event=%ff%fe:0000000000000001:0 HTTP/1.1\r\n{OK_HOST}\r\n".encode(), False, 400, 400),
    ("an offset beyond all", f"GET /v1/why?event=a:0000000000000001:99999999999999999999 HTTP/1.1\r\n{OK_HOST}\r\n".encode(), False, 400, 400),
]


def opened(port, path):
    """A connection to the port, or to the socket where there is no port."""
    there = socket.create_connection(("127.0.0.1", port), timeout=20) if port else socket.socket(socket.AF_UNIX)
    there.settimeout(20)
    if not port:
        there.connect(path)
    return there


def status_of(there):
    """The status of the answer, read to its end."""
    answer = b""
    while chunk := there.recv(65536):
        answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 "), answer[:80]
    status = int(head.split()[1])
    assert status == 200 or len(body.splitlines()) == 1, ("a no is one line", body[:200])
    return status


def said(port, path, data, ends):
    """The status that these bytes get."""
    with opened(port, path) as there:
        there.sendall(data)
        if ends:
            there.shutdown(socket.SHUT_WR)
        return status_of(there)


def dribbled(port, path):
    """(status, seconds) of a request that comes a byte at a time."""
    began = time.monotonic()
    with opened(port, path) as there:
        there.settimeout(0.2)
        for byte in b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n":
            there.sendall(bytes([byte]))
            try:
                there.recv(1, socket.MSG_PEEK)
                break
            except TimeoutError:
                pass
        there.settimeout(20)
        return status_of(there), time.monotonic() - began


def counted(path):
    """Answers so far: (way, status) → how many. By the socket, whose own seats nobody else takes."""
    body = admin.by_socket(path, "/metrics").partition("\r\n\r\n")[2]
    family = next(family for family in prometheus(body) if family.name == "tidegate_admin_answers")
    return {(s.labels["way"], int(s.labels["status"])): s.value for s in family.samples}


def public(port):
    """The clients' listener knows nothing of the admin edge."""
    for target in ("/metrics", "/v1/top", "/v1/why?event=a:0000000000000001:0", "/stall?stage=commit&ms=1"):
        for method in ("GET", "POST"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request(method, target)
            answer = connection.getresponse()
            body = answer.read()
            assert 400 <= answer.status < 500 and b"tidegate_" not in body, (method, target, answer.status, body[:80])
            connection.close()


def heads(port, path):
    """Every wrong head on both ways, and their counts."""
    before = counted(path)
    expected = {("socket", 200): 1}
    for what, data, ends, by_port, by_socket in HEADS:
        for way, at, status in (("port", port, by_port), ("socket", None, by_socket)):
            got = said(at, path, data, ends)
            assert got == status, (what, way, got, status)
            expected[way, status] = expected.get((way, status), 0) + 1
    after = counted(path)
    for (way, status), count in expected.items():
        added = after[way, status] - before[way, status]
        # What others do meanwhile with top and the like is answered with 200.
        assert added == count or (status == 200 and added > count), (way, status, before, after)


def silent(port, path):
    """Connections that say nothing take every seat of the port, for two seconds at most."""
    before = counted(path)
    crowd = [opened(port, path) for _ in range(SEATS)]
    try:
        turned_away = 0
        for _ in range(50):
            try:
                turned_away += said(port, path, f"GET /metrics HTTP/1.1\r\n{OK_HOST}\r\n".encode(), False) == 503
            except ConnectionError:
                # Told and closed before its request was there.
                turned_away += 1
            if turned_away:
                break
        assert turned_away, "so many at once"
        assert "200 OK" in admin.by_socket(path, "/v1/top?seconds=0"), "the socket has seats of its own"
        # A seat that the test before has just left may not have been free yet.
        told = [status_of(there) for there in crowd]
        assert set(told) <= {408, 503} and told.count(408) > SEATS / 2, told
    finally:
        for there in crowd:
            there.close()
    after = counted(path)
    assert after["port", 408] - before["port", 408] == told.count(408) and after["port", 503] > before["port", 503], (before, after)
    assert said(port, path, f"GET /metrics HTTP/1.1\r\n{OK_HOST}\r\n".encode(), False) == 200, "and then it is as before"


async def check(server, port, publisher):
    path = os.path.join(server.data, "admin.sock")
    done = asyncio.Event()

    async def bystander():
        number = 0
        while not done.is_set():
            await publisher.call(publish("bystander", number))
            number += 1
            await asyncio.sleep(0.02)
        return number

    beside = asyncio.create_task(bystander())
    slow = asyncio.create_task(asyncio.to_thread(dribbled, port, path))
    await asyncio.to_thread(public, server.port)
    await asyncio.to_thread(heads, port, path)
    status, seconds = await slow
    assert status == 408 and seconds < 10, (status, seconds)
    await asyncio.to_thread(silent, port, path)
    done.set()
    assert await beside > 20
    return len(HEADS)
