#!/usr/bin/env python3
"""What bad input gets: a typed refusal or close code that names field and cure, and nobody else feels it.

    commands that are wrong    ─► refused {refusal, field, message}; the connection goes on
    frames that are wrong      ─► a close code
    requests that are wrong    ─► an HTTP status
    sockets that say nothing   ─► closed in time
    hosts that are wrong       ─► the server does not start: one line, exit status 2
A bystander publishes and reads during all of it.
"""

import asyncio
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time

import raw
from raw import Raw
from tide import Client, Server, Violations, environment, free_port, run

PUBLISH = {"type": "publish", "session": "s", "topic": "chat.message", "message_id": "m", "data": 1}
DEEP = "[" * 65 + "]" * 65


def without(field):
    return {k: v for k, v in PUBLISH.items() if k != field}


def with_data(text):
    """A publish command whose data is this very text."""
    return json.dumps({"id": "mine", **without("data")})[:-1] + f', "data": {text}}}'


# (what, command as object or text, refusal, field or None where any will do)
COMMANDS = [
    ("no JSON", "nonsense", "bad_frame", None),
    ("no object", '"text"', "bad_frame", None),
    ("half an object", '{"type":"ping"', "bad_frame", None),
    ("an array of 257", json.dumps([{"type": "ping"}] * 257), "bad_frame", None),
    ("a field given twice", '{"type":"ping","id":"mine","type":"ping"}', "repeated_field", "type"),
    ("an unknown command", {"type": "dance"}, "unknown_command", "type"),
    ("no type", {"session": "s"}, "missing_field", "type"),
    ("a type that is no text", {"type": 5}, "wrong_type", "type"),
    ("no session", without("session"), "missing_field", "session"),
    ("no topic", without("topic"), "missing_field", "topic"),
    ("no message_id", without("message_id"), "missing_field", "message_id"),
    ("no data", without("data"), "missing_field", "data"),
    ("a session that is a number", {**PUBLISH, "session": 5}, "wrong_type", "session"),
    ("a topic that is an array", {**PUBLISH, "topic": ["a"]}, "wrong_type", "topic"),
    ("a ttl that is text", {**PUBLISH, "ttl_ms": "1"}, "wrong_type", "ttl_ms"),
    ("a name with a blank", {**PUBLISH, "session": "a b"}, "bad_name", "session"),
    ("a name that is empty", {**PUBLISH, "session": ""}, "bad_name", "session"),
    ("a name too long", {**PUBLISH, "session": "x" * 129}, "bad_name", "session"),
    ("a reserved name", {**PUBLISH, "session": "$x"}, "bad_name", "session"),
    ("an empty token", {**PUBLISH, "topic": "a..b"}, "bad_topic", "topic"),
    ("17 tokens", {**PUBLISH, "topic": ".".join("a" * 17)}, "bad_topic", "topic"),
    ("a pattern as topic", {**PUBLISH, "topic": "a.*"}, "bad_topic", "topic"),
    ("a pattern with > in the middle", {"type": "subscribe", "patterns": ["a.>.b"]}, "bad_pattern", "patterns"),
    ("data too deep", with_data(DEEP), "bad_data", "data"),
    ("broken data", with_data('{"a":}'), "bad_data", "data"),
    ("a number that is none", with_data("01"), "bad_frame", None),
    ("half of a surrogate pair", with_data('"\\ud800"'), "bad_data", "data"),
    ("bytes that are no base64", {**PUBLISH, "data_kind": "bytes", "data": "*"}, "bad_data", "data"),
    ("an oversized event", {**PUBLISH, "data": "x" * 70_000}, "event_too_large", "data"),
    ("a cause that is not there", {**PUBLISH, "prev_event_id": "s:0000000000000000:99"}, "causal_gap", None),
    ("a cause that is no id", {**PUBLISH, "prev_event_id": "nothing"}, "causal_gap wrong_type", None),
    ("a foreign part", {"type": "commit", "session": "s", "events": [{**without("session"), "session": "t"}]}, "cross_session", "events[].session"),
    ("an offset of an unknown session", {"type": "subscribe", "session": "nowhere", "from": {"offset": 5}}, "unknown_session offset_out_of_range", None),
    ("history of an unknown session", {"type": "history", "session": "nowhere"}, "unknown_session", "session"),
    ("a start that is no start", {"type": "subscribe", "session": "known", "from": "sometimes"}, "wrong_type", "from"),
    ("a page of 257", {"type": "history", "session": "known", "limit": 257}, "out_of_range", "limit"),
    ("an offset beyond the end", {"type": "subscribe", "session": "known", "from": {"offset": 999}}, "offset_out_of_range", "from"),
    ("a foreign epoch", {"type": "subscribe", "session": "known", "from": {"offset": 0, "epoch": "0123456789abcdef"}}, "foreign_epoch", "from"),
    ("a number beyond 2^53", {"type": "subscribe", "session": "known", "from": {"offset": 2**60}}, "out_of_range offset_out_of_range wrong_type", None),
    ("an unknown marker", {"type": "subscribe", "session": "known", "from": {"marker": "nobody"}}, "unknown_marker", "from"),
    ("a position that is none", {"type": "subscribe", "patterns": ["a"], "from": {"position": "1,2"}}, "bad_position", "from"),
    ("an unsubscription without subscription", {"type": "unsubscribe", "session": "known"}, "not_subscribed", "session"),
    ("another body under a used id", {**PUBLISH, "session": "known", "message_id": "first", "data": 2}, "message_id_reused", "message_id"),
    ("an acknowledgement of what was never delivered", {"type": "ack", "events": 5}, "bad_credit", "events"),
]

# (what, bytes after the upgrade, acceptable close codes)
FRAMES = [
    ("an unmasked frame", raw.frame(raw.TEXT, b'{"type":"ping"}', masked=False), {1002}),
    ("reserved bits", raw.frame(raw.TEXT, b"{}", reserved=4), {1002}),
    ("an unknown opcode", raw.frame(3, b"{}"), {1002}),
    ("a ping over 125 bytes", raw.frame(raw.PING, b"x" * 126), {1002}),
    ("a fragmented ping", raw.frame(raw.PING, b"x", fin=False), {1002}),
    ("a continuation of nothing", raw.frame(0, b"x"), {1002}),
    ("text that is no UTF-8", raw.frame(raw.TEXT, b'{"type":"\xff"}'), {1007}),
    ("a binary frame", raw.frame(raw.BINARY, b'{"type":"ping"}'), {1003}),
    ("a frame over frame_bytes_max", raw.frame(raw.TEXT, b" " * 300_000), {1009}),
    ("a head that promises an exabyte", bytes([0x81, 0xFF]) + b"\x0f" + b"\xff" * 7 + b"mask", {1002, 1009}),
    ("a close with an invalid code", raw.frame(raw.CLOSE, b"\x03\xed"), {1002}),
]

# (what, path, changed headers, status, words of the answer)
REQUESTS = [
    ("no key", "/v1/ws", {"Sec_WebSocket_Key": None}, 400, "Sec-WebSocket-Key"),
    ("a short key", "/v1/ws", {"Sec_WebSocket_Key": "abc"}, 400, "Sec-WebSocket-Key"),
    ("an old version", "/v1/ws", {"Sec_WebSocket_Version": "8"}, 426, "Sec-WebSocket-Version: 13"),
    ("no upgrade", "/v1/ws", {"Upgrade": None, "Connection": None}, 426, ""),
    ("an unknown subprotocol", "/v1/ws", {"Sec_WebSocket_Protocol": "chat"}, 400, "tidegate.v1.json"),
    ("another path", "/v2/ws", {}, 404, "/v1/ws"),
    ("a session that is no name", "/v1/ws?session=a%20b", {}, 400, "session"),
]


async def commands(server, bad):
    client = await Client.open(server.url)
    await client.call({**PUBLISH, "session": "known", "message_id": "first"})
    for what, command, names, field in COMMANDS:
        text = command if isinstance(command, str) else json.dumps({**command, "id": "mine"})
        await client.socket.send(text)
        try:
            reply = await client.next_event(5)
        except (EOFError, asyncio.TimeoutError) as gone:
            bad.add(what, f"no answer: {gone!r}")
            client = await Client.open(server.url)
            continue
        name = reply.get("refusal", reply["type"])
        if name not in names.split():
            bad.add(what, f"expected {names}, got {reply}")
        elif name != "published":
            if field is not None and reply.get("field") != field:
                bad.add(what, f"expected field {field}, got {reply}")
            if not 4000 <= reply.get("code", 0) < 4300 or len(reply.get("message", "")) < 10:
                bad.add(what, f"no code or no cure: {reply}")
            if '"mine"' in text and name != "bad_frame" and reply.get("id") != "mine":
                bad.add(what, f"the id did not come back: {reply}")
    reply = await client.call({"type": "ping"})
    if reply["type"] != "pong":
        bad.add("after all refusals", reply)
    # One bad command in an array is refused alone.
    replies = await client.call_all([{"type": "ping"}, {"type": "dance"}, {"type": "ping"}])
    if [r["type"] for r in replies] != ["pong", "refused", "pong"]:
        bad.add("a bad command among good ones", replies)
    # The server was started with room for 8.
    replies = await client.call_all([{"type": "subscribe", "session": f"many-{i}", "from": "latest"} for i in range(9)])
    if [r.get("refusal") for r in replies] != [None] * 8 + ["too_many_subscriptions"]:
        bad.add("too many subscriptions", [r.get("refusal") for r in replies])
    await client.close()


def frames(server, bad):
    for what, data, codes in FRAMES:
        connection = Raw(server.port)
        status, _, _ = connection.request()
        assert status == 101
        opcode, payload = connection.receive()
        assert opcode == raw.TEXT and json.loads(payload)["type"] == "welcome", payload
        try:
            connection.send(data)
        except OSError:
            pass  # closed while we still wrote: the code is there all the same
        try:
            code = connection.close_code()
        except OSError as why:
            code = repr(why)
        if code not in codes:
            bad.add(what, f"expected close code {codes}, got {code}")
        connection.close()


def requests(server, bad):
    for what, path, headers, status, words in REQUESTS:
        connection = Raw(server.port)
        got, head, body = connection.request(path, **headers)
        if got != status or words not in head + body.decode():
            bad.add(what, f"expected {status} with {words!r}, got {head} {body}")
        connection.close()
    for what, data in [("no HTTP", b"\x16\x03\x01 hello\r\n\r\n"), ("an endless head", b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000)]:
        connection = Raw(server.port)
        try:
            connection.send(data)
            status, _, _ = connection.response()
            if status not in (400, 431):
                bad.add(what, status)
        except (EOFError, OSError):
            pass  # closed without a word is bounded, too
        connection.close()


def silent(server, bad):
    """The server was started with short timeouts: handshake 1 s, ping 1 s, idle 3 s."""
    quiet, half, mute = Raw(server.port), Raw(server.port), Raw(server.port)
    half.send(b"GET /v1/ws HTTP/1.1\r\nHost: x\r\n")
    assert mute.request()[0] == 101
    began = time.monotonic()
    for what, connection in [("a socket that says nothing", quiet), ("half a request", half), ("a client that answers no ping", mute)]:
        pinged = False
        try:
            while (got := connection.receive()) is not None:
                pinged |= got[0] == raw.PING
        except socket.timeout:
            bad.add(what, "not closed within 10 s")
        if connection is mute and not pinged:
            bad.add(what, "closed without a ping")
        connection.close()
    if time.monotonic() - began > 9:
        bad.add("silent sockets", "closed late")


def deaf(server, bad):
    """A client that sends commands and never reads an answer is closed, or no longer read: bounded either way."""
    before = server.rss_kib()
    connection = Raw(server.port, timeout_s=3)
    assert connection.request()[0] == 101
    ping = raw.frame(raw.TEXT, b'{"type":"ping","id":"' + b"x" * 60 + b'"}') * 500
    sent = 0
    try:
        while sent < 256 << 20:
            connection.send(ping)
            sent += len(ping)
        bad.add("a deaf client", "256 MiB of commands were taken although no answer was read")
    except OSError:
        pass  # a reset, or a full socket for 3 s
    grown = server.rss_kib() - before
    if grown > 32 << 10:
        bad.add("a deaf client", f"the server grew by {grown} KiB")
    connection.close()


async def bystander(server, bad, stop):
    """Publishes and reads all the time; returns its slowest round trip."""
    client = await Client.open(server.url)
    await client.call({"type": "subscribe", "session": "bystander", "from": "latest"})
    n, worst = 0, 0.0
    while not stop.is_set():
        began = time.monotonic()
        await client.call({**PUBLISH, "session": "bystander", "message_id": f"m{n}", "data": n})
        event = await client.next_event()
        if event["data"] != n:
            bad.add("the bystander", event)
        worst = max(worst, time.monotonic() - began)
        n += 1
        await asyncio.sleep(0.01)
    await client.close()
    return n, worst


async def clients(bad):
    short = ["handshake_timeout_ms=1000", "ping_interval_ms=1000", "idle_timeout_ms=3000", "client_subscriptions_max=8"]
    with Server(*(word for pair in short for word in ("--set", pair))) as server:
        stop = asyncio.Event()
        watching = asyncio.create_task(bystander(server, bad, stop))
        await commands(server, bad)
        for check in (frames, requests, silent, deaf):
            await asyncio.to_thread(check, server, bad)
        stop.set()
        rounds, worst = await watching
        print(f"{len(COMMANDS)} commands, {len(FRAMES)} frames, {len(REQUESTS)} requests; bystander: {rounds} rounds, slowest {worst * 1000:.0f} ms")
        if worst > 2.0:
            bad.add("the bystander", f"waited {worst:.1f} s")
        if not server.alive():
            bad.add("the server", "died")
        elif server.stop() != 0:
            bad.add("the server", "did not stop with exit status 0")


def refuses(bad, what, server, *words, flags=(), preexec=None, may_run=False):
    """The server must not start: exit status 2 and one line that names `words`."""
    process = subprocess.Popen(
        server.arguments(*flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), preexec_fn=preexec
    )
    try:
        _, said = process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        if not may_run:
            bad.add(what, "the server started")
        return
    lines = [line for line in said.splitlines() if line.startswith("tidegate:")]
    if process.returncode != 2 or len(lines) != 1:
        bad.add(what, f"exit status {process.returncode}, stderr {said!r}")
    elif not all(word in lines[0].lower() for word in words):
        bad.add(what, f"the line names not {words}: {lines[0]}")


def limit(kind, value):
    return lambda: resource.setrlimit(kind, (value, value))


def start_up(bad):
    with Server() as running:
        fresh = Server()
        os.makedirs(os.path.join(fresh.folder, "empty"))
        same_folder = Server(data=running.data)
        refuses(bad, "a second server on the same folder", same_folder, "lock", "--data")
        same_port = Server()
        same_port.port = running.port
        refuses(bad, "the port of another server", same_port, str(running.port), "in use")
        same_port.close()
        with socket.socket() as occupied:
            occupied.bind(("127.0.0.1", 0))
            occupied.listen()
            fresh.port = occupied.getsockname()[1]
            refuses(bad, "an occupied port", fresh, str(fresh.port), "in use")
        fresh.port = free_port()
        if running.stop() != 0:
            bad.add("the server", "did not stop with exit status 0")

        file = os.path.join(fresh.folder, "file")
        with open(file, "w") as out:
            out.write("not a folder")
        refuses(bad, "a data folder that is a file", Server(data=file), "file")
        refuses(bad, "a data folder that cannot be made", Server(data="/proc/tidegate"), "/proc/tidegate")
        refuses(bad, "io_uring forbidden", fresh, "io_uring", preexec=raw.forbid_io_uring)
        refuses(bad, "too few descriptors", fresh, "ulimit -n", preexec=limit(resource.RLIMIT_NOFILE, 24))
        # A process with CAP_IPC_LOCK is not bound by it.
        refuses(bad, "too little locked memory", fresh, "memlock", preexec=limit(resource.RLIMIT_MEMLOCK, 4096), may_run=os.geteuid() == 0)
        refuses(bad, "over the memory budget", fresh, "memory_budget_bytes", flags=("--set", "memory_budget_bytes=16MiB"))
        refuses(bad, "an unknown key", fresh, "hot_tail_byte", "hot_tail_bytes", flags=("--set", "hot_tail_byte=1"))
        fresh.host = "0.0.0.0"
        refuses(bad, "a public address without keys", fresh, "loopback")

        future = os.path.join(fresh.folder, "future")
        shutil.copytree(running.data, future)
        newer(future)
        refuses(bad, "a newer format", Server(data=future), "version", "9999")
        damaged = os.path.join(fresh.folder, "damaged")
        shutil.copytree(running.data, damaged)
        with open(os.path.join(damaged, "manifest"), "r+b") as file:
            file.write(b"nonsense")
        refuses(bad, "a damaged manifest", Server(data=damaged), "manifest")
        fresh.close()


def newer(folder):
    """Gives the manifest a format version of the future, and the checksum that goes with it. See storage/FORMAT.md."""
    with open(os.path.join(folder, "manifest"), "r+b") as file:
        content = bytearray(file.read())
        content[16:18] = (9999).to_bytes(2, "little")
        content[8:12] = crc32c(content[12:]).to_bytes(4, "little")
        file.seek(0)
        file.write(content)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def main():
    bad = Violations()
    run(clients(bad))
    start_up(bad)
    bad.check()


if __name__ == "__main__":
    sys.exit(main())
