#!/usr/bin/env python3
"""TLS with real clients: openssl, Python's ssl, Node; what does not belong on the port; certificates that change under way.

    wss:// ─► large frames both ways, many at once, a reader that does not read, a drain with its goodbye
    openssl ─► TLS 1.2, 1.3, a ticket on another connection; older ones refused
    garbage, plain words, half a handshake, broken records ─► refused, closed, counted; a bystander feels nothing
    SIGHUP ─► new connections see the new certificate, open ones go on; a broken file changes nothing
    clients' certificates ─► admission and nothing more
"""

import asyncio
import json
import os
import pathlib
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time

from websockets.exceptions import ConnectionClosed

from raw import CLOSE, Raw, frame
from tide import GONE, PATIENCE_S, Client, Server, binary, environment, history, run

PUBLISH = {"type": "publish", "session": "s", "topic": "chat.a"}


class Authority:
    """A certificate authority of openssl's."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name
        self.certificate = self.path("pem")
        self.openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj", f"/CN={name}", "-keyout", self.path("key"), "-out", self.certificate)

    def path(self, what):
        return os.path.join(self.folder, f"{self.name}.{what}")

    def openssl(self, *arguments):
        done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"openssl {arguments}: {done.stderr}"
        return done.stdout

    def issue(self, name, days=30):
        """(chain, key) of a certificate for localhost."""
        chain, key, request = (os.path.join(self.folder, f"{name}.{what}") for what in ("pem", "key", "csr"))
        self.openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", request)
        self.openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.path("key"), "-CAcreateserial", "-days", str(days), "-copy_extensions", "copyall", "-out", chain)
        return chain, key


def context(authority, client=None):
    made = ssl.create_default_context(cafile=authority.certificate)
    if client:
        made.load_cert_chain(*client)
    return made


class SecureServer(Server):
    """A server whose address speaks TLS."""

    def __init__(self, authority, *flags, name="server", **options):
        super().__init__(*flags, **options)
        self.authority = authority
        self.chain, self.key = os.path.join(self.folder, "chain.pem"), os.path.join(self.folder, "key.pem")
        self.install(name)
        self.flags += ["--set", f"tls_certificate_file={self.chain}", "--set", f"tls_key_file={self.key}"]

    def install(self, name):
        for source, target in zip(self.authority.issue(name), (self.chain, self.key)):
            os.replace(source, target)

    @property
    def url(self):
        return f"wss://localhost:{self.port}/v1/ws"

    async def client(self, query="", certificate=None, **options):
        return await Client.open(self.url + query, ssl=context(self.authority, certificate), **options)


async def say_and_hear(server):
    """Frames of every size both ways; what one says the others get whole and in order."""
    speaker, listener = await server.client("?session=s"), await server.client()
    await listener.call({"type": "subscribe", "session": "s"})
    sizes = [0, 1, 100, 1300, 1400, 2000, 2100, 4096, 16_000, 16_384, 16_400, 30_000, 60_000] * 3
    asked = []
    for n, size in enumerate(sizes):
        command, answer = speaker.ask({**PUBLISH, "message_id": f"m{n}", "data": "x" * size})
        asked.append(answer)
        await speaker.socket.send(json.dumps(command))
    replies = await asyncio.wait_for(asyncio.gather(*asked), PATIENCE_S)
    assert all(reply["type"] == "published" for reply in replies), replies
    for n, size in enumerate(sizes):
        event = await listener.next_event()
        assert event["message_id"] == f"m{n}" and event["data"] == "x" * size, (n, size, event["event_id"])
    assert len(await history(listener, "s")) == len(sizes)
    # A reader that does not read costs its bound; then it gets everything from the log.
    slow = await server.client(read=False, max_queue=1)
    await slow.socket.send(json.dumps({"type": "subscribe", "session": "s", "from": "earliest", "id": 1}))
    for n in range(60):
        await speaker.call({**PUBLISH, "message_id": f"more{n}", "data": "y" * 60_000})
    got = 0
    async with asyncio.timeout(60):
        while got < len(sizes) + 60:
            frame = json.loads(await slow.socket.recv())
            got += frame["type"] == "event"
    for client in (speaker, slow):
        await client.close()
    return listener


def openssl_client(server, *flags, words=b"", timeout_s=20):
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-servername", "localhost", "-CAfile", server.authority.certificate, *flags]
    done = subprocess.run(command, input=words, capture_output=True, timeout=timeout_s)
    return done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace")


def real_clients(server):
    request = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
    for flags, name in [(["-tls1_2"], "TLSv1.2"), (["-tls1_3"], "TLSv1.3")]:
        status, text = openssl_client(server, *flags, "-verify_return_error", "-ign_eof", words=request)
        assert status == 0 and name in text and "200 OK" in text, text
    status, text = openssl_client(server, "-tls1_1", words=request)
    assert "200 OK" not in text and ("alert" in text or "no protocols" in text or "unsupported" in text), text
    # A ticket of one connection is good on the next, on whichever shard that is.
    ticket = os.path.join(server.folder, "ticket")
    openssl_client(server, "-tls1_3", "-sess_out", ticket, "-ign_eof", words=request)
    reused = [openssl_client(server, "-tls1_3", "-sess_in", ticket, "-ign_eof", words=request)[1] for _ in range(4)]
    assert all("Reused, TLSv1.3" in text and "200 OK" in text for text in reused), reused
    script = pathlib.Path(__file__).with_name("secure.mjs")
    done = subprocess.run(["node", script, str(server.port), server.authority.certificate, '{"type":"ping","id":7}'], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["answer"]["type"] == "pong" and answer["protocol"] == "TLSv1.3" and answer["alpn"] == "http/1.1", answer
    # The line that the server prints, with the command line client.
    done = subprocess.run([binary(), "pub", "--url", f"wss://localhost:{server.port}", "--authority", server.authority.certificate, "--session", "cli", "--topic", "chat.a", '{"n":1}'], capture_output=True, text=True, timeout=30, env=environment())
    assert done.returncode == 0 and '"published"' in done.stdout, done.stdout + done.stderr
    done = subprocess.run([binary(), "pub", "--url", f"wss://localhost:{server.port}", "--session", "cli", "--topic", "chat.a", "1"], capture_output=True, text=True, timeout=30, env=environment())
    assert done.returncode == 1 and "certificate" in done.stderr.lower(), "whoever is not known is not believed: " + done.stderr


def until_closed(stream, timeout_s=PATIENCE_S):
    """All bytes until the peer closes."""
    stream.settimeout(timeout_s)
    got = b""
    try:
        while chunk := stream.recv(65536):
            got += chunk
    except ConnectionResetError:
        pass
    return got


def wrapped(server):
    """A connection whose handshake is through."""
    return context(server.authority).wrap_socket(socket.create_connection(("127.0.0.1", server.port)), server_hostname="localhost")


def hello():
    """A ClientHello, as Python's ssl sends it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def wrong_words(server, plain):
    """What does not belong on the port. Nobody else feels it: the caller looks."""
    # Plain words where TLS is spoken: an answer in plain words. What is neither is closed.
    told = Raw(server.port)
    assert told.request("/v1/ws")[0] == 400 and b"wss://" in told.buffer
    for garbage in (b"\x00" * 100, os.urandom(2000).replace(b"\x16", b"\x00", 1), b"\x80\x2e\x01\x03\x01", b"\xff"):
        stream = socket.create_connection(("127.0.0.1", server.port))
        stream.sendall(b"\x00" + garbage)
        assert until_closed(stream) == b"", garbage[:20]
    # What begins like a handshake and is none: an alert, then closed.
    for broken in (
        b"\x16\x03\x01\x00\x05hello" + b"x" * 50,
        b"\x16\x03\x01\xff\xff" + b"x" * 70_000,
        hello()[:-1] + b"\x00" + b"\x17\x03\x03\x00\x10" + b"x" * 16,
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff" * 10_000,
    ):
        stream = socket.create_connection(("127.0.0.1", server.port))
        try:
            stream.sendall(broken)
        except (BrokenPipeError, ConnectionResetError):
            pass
        got = until_closed(stream)
        assert got == b"" or got[0] in (21, 22), got[:20]
    # Half a handshake, and one in single bytes: a time, and no longer.
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    for stream in slow:
        stream.sendall(hello()[:100])
    # Inside TLS it is as without: a head without end, one in single bytes.
    flood = wrapped(server)
    flood.sendall(b"GET /v1/ws HTTP/1.1\r\nHost: x\r\n" + b"X-Flood: y\r\n" * 3000)
    assert b" 431 " in until_closed(flood).split(b"\r\n")[0]
    drip, ends = wrapped(server), time.monotonic() + 60
    try:
        for byte in b"GET /v1/ws HTTP/1.1\r\nX: " + b"y" * 600:
            drip.sendall(bytes([byte]))
            assert time.monotonic() < ends, "a head in single bytes has no more time than others"
            time.sleep(0.05)
        raise AssertionError("a head in single bytes was waited for")
    except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
        pass
    for stream in slow:
        until_closed(stream, 60)
    # A whole handshake and then silence: the request has the same time.
    assert until_closed(wrapped(server), 60) == b""
    # A record that is broken later.
    raw = socket.create_connection(("127.0.0.1", server.port))
    secure = context(server.authority).wrap_socket(raw, server_hostname="localhost")
    broken = socket.socket(fileno=secure.detach())
    broken.sendall(b"\x17\x03\x03\x00\x20" + os.urandom(32))
    assert until_closed(broken)[:1] in (b"\x15", b"\x16", b"\x17"), "an alert"
    # And TLS where plain is spoken: plain words, and closed at once.
    for bytes_ in (hello(), hello()[:3]):
        stream = socket.create_connection(("127.0.0.1", plain.port))
        stream.sendall(bytes_)
        assert b"does not speak TLS" in until_closed(stream)
    try:
        context(server.authority).wrap_socket(socket.create_connection(("127.0.0.1", plain.port)), server_hostname="localhost")
        raise AssertionError("TLS on the plain port")
    except ssl.SSLError:
        pass


def serial(server):
    with wrapped(server) as stream:
        return stream.getpeercert()["serialNumber"]


async def new_certificate(server, bystander):
    before = serial(server)
    server.install("second")
    server.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + PATIENCE_S
    while serial(server) == before:
        assert time.monotonic() < deadline, "the new certificate is not shown"
        await asyncio.sleep(0.05)
    assert (await bystander.call({"type": "ping"}))["type"] == "pong", "an open connection goes on"
    now = serial(server)
    good = pathlib.Path(server.chain).read_text()
    pathlib.Path(server.chain).write_text("no certificate")
    server.process.send_signal(signal.SIGHUP)
    while "stays" not in server.tail():
        assert time.monotonic() < deadline + PATIENCE_S
        await asyncio.sleep(0.05)
    assert serial(server) == now, "a broken file changes nothing"
    pathlib.Path(server.chain).write_text(good)


async def clients_with_certificates(authority, folder):
    """A certificate lets its client in, and that is all: who it is, its token says."""
    keys = os.path.join(folder, "keys.json")
    subprocess.run([binary(), "keys", "make", "--out", keys], check=True, capture_output=True, env=environment())
    token = subprocess.run([binary(), "token", "--keys", keys, "--tenant", "acme", "--client", "ann", "--all"], check=True, capture_output=True, text=True, env=environment()).stdout.strip()
    own, stranger = authority.issue("client"), Authority(folder, "stranger").issue("stranger-client")
    server = SecureServer(authority, "--set", f"tls_client_authorities_file={authority.certificate}", "--set", f"auth_keys_file={keys}", name="asks")
    with server:
        for certificate in (None, stranger):
            try:
                await server.client(certificate=certificate, auth=token)
                raise AssertionError("let in without a certificate")
            except GONE:
                pass
        nobody = await server.client(certificate=own, hello=False)
        await nobody.socket.send('{"type":"ping","id":1}')
        try:
            raise AssertionError(await asyncio.wait_for(nobody.socket.recv(), PATIENCE_S))
        except ConnectionClosed:
            assert nobody.socket.close_code == 4203
        ann = await server.client(certificate=own, auth=token)
        assert ann.welcome["client"] == "ann"
        await ann.close()


async def drained(server):
    """SIGTERM: a goaway, a close frame, TLS' own goodbye."""
    secure = context(server.authority).wrap_socket(socket.create_connection(("127.0.0.1", server.port)), server_hostname="localhost", suppress_ragged_eofs=False)
    secure.sendall(b"GET /v1/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    secure.settimeout(PATIENCE_S)
    while b"welcome" not in secure.recv(65536):
        pass
    server.process.send_signal(signal.SIGTERM)
    got = b""
    # Without suppress_ragged_eofs an end without close_notify is an error.
    while chunk := await asyncio.to_thread(secure.recv, 65536):
        got += chunk
        if struct.pack(">H", 1001) in chunk:
            secure.sendall(frame(CLOSE, struct.pack(">H", 1001)))
    assert b"goaway" in got and struct.pack(">H", 1001) in got, got
    assert server.process.wait(PATIENCE_S) == 0


async def story(server, plain, authority):
    bystander = await say_and_hear(server)
    await asyncio.to_thread(real_clients, server)
    noise = asyncio.create_task(asyncio.to_thread(wrong_words, server, plain))
    rounds = 0
    while not noise.done():
        assert (await bystander.call({"type": "ping"}))["type"] == "pong"
        rounds += 1
        await asyncio.sleep(0.02)
    await noise
    await new_certificate(server, bystander)
    await clients_with_certificates(authority, server.folder)
    deadline = time.monotonic() + PATIENCE_S
    for words, where in [("plain words on TLS", server), ("TLS handshakes that failed", server), ("broken TLS records", server), ("TLS on a plain port", plain)]:
        while words not in pathlib.Path(where.log.name).read_text():
            assert time.monotonic() < deadline, f"not counted: {words}"
            await asyncio.sleep(0.1)
    await drained(server)
    return rounds


def refusals(authority, folder):
    """Files that do not fit together: the server does not start."""
    (chain, _), (_, other) = authority.issue("one"), authority.issue("two")
    for flags, word in [
        (["--set", f"tls_certificate_file={chain}"], "tls_key_file"),
        (["--set", f"tls_certificate_file={chain}", "--set", f"tls_key_file={other}"], "tls_key_file"),
        (["--set", "tls_certificate_file=nowhere", "--set", f"tls_key_file={other}"], "nowhere"),
    ]:
        done = subprocess.run([binary(), "serve", "--data", os.path.join(folder, "none"), *flags], capture_output=True, text=True, timeout=30, env=environment())
        assert done.returncode == 2 and word in done.stderr and done.stderr.count("\n") == 1, done.stderr


def memory(count):
    """User memory of an idle connection, with TLS of both versions and without: what the memory plan is to say."""
    folder = Server()
    authority = Authority(folder.folder, "authority")
    patient = ["--set", "ping_interval_ms=600s", "--set", "idle_timeout_ms=1200s"]
    servers = [("plain", Server(*patient, shards=1), None)]
    for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
        servers.append((version.name, SecureServer(authority, *patient, shards=1), version))

    def anonymous_bytes(server):
        with open(f"/proc/{server.process.pid}/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon:"))

    def some(server, version, count):
        held = []
        for _ in range(count):
            stream = socket.create_connection(("127.0.0.1", server.port))
            if version:
                made = context(server.authority)
                made.minimum_version = made.maximum_version = version
                stream = made.wrap_socket(stream, server_hostname="localhost")
            stream.sendall(b"GET /v1/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
            got = b""
            while b"welcome" not in got:
                got += stream.recv(65536)
            held.append(stream)
        return held

    base = None
    for name, server, version in servers:
        with server:
            warm = some(server, version, 200)
            before = anonymous_bytes(server)
            held = some(server, version, count)
            time.sleep(1)
            each = (anonymous_bytes(server) - before) / count
            base = each if base is None else base
            print(f"{name}: {each:.0f} B for each of {len(held)} idle connections beyond {len(warm)}, {each - base:.0f} B more than without TLS")
    folder.close()


def main():
    if "--memory" in sys.argv:
        return memory(int(sys.argv[sys.argv.index("--memory") + 1]))
    plain = Server("--set", "handshake_timeout_ms=2s")
    authority = Authority(plain.folder, "authority")
    server = SecureServer(authority, "--set", "handshake_timeout_ms=2s")
    refusals(authority, plain.folder)
    results = []

    async def all_of_it():
        results.append(await story(server, plain, authority))

    with plain, server:
        run(all_of_it())
    print(f"secure: openssl, Python and Node; wrong words of every kind beside {results[0]} rounds of a bystander; a new certificate; clients' certificates")


if __name__ == "__main__":
    sys.exit(main())
