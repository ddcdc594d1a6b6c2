#!/usr/bin/env python3
"""Who may come in: tokens of real libraries (PyJWT, jose), every way to show one, every way to be turned away.

    no keys        ─► loopback only, said loudly; a public address is exit status 2
    good tokens    ─► EdDSA, ES256, HS256 of three makers; as a header, a subprotocol, the first frame
    bad tokens     ─► 401, one sentence for all who cannot sign; counted, and nothing of them in the log
    while one is in─► refresh, fewer rights, expiry 4201, revocation 4202 on every shard and after kill -9, keys read again on SIGHUP
"""

import asyncio
import base64
import datetime
import hashlib
import hmac
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from websockets.exceptions import ConnectionClosed, InvalidStatus

from raw import Raw
from tide import PATIENCE_S, ROOT, SUBPROTOCOL, Client, Refused, Server, binary, environment, run

ALGORITHMS = ["EdDSA", "ES256", "HS256"]
EVERYTHING = {"publish": [">"], "subscribe": [">"], "queue": ["*"], "entries": ["*"], "admin": ["*"]}


def tidegate(*arguments, status=0):
    done = subprocess.run([binary(), *map(str, arguments)], capture_output=True, text=True, timeout=30, env=environment())
    assert done.returncode == status, f"{arguments}: {done.returncode} {done.stdout}{done.stderr}"
    return done.stdout.strip() or done.stderr.strip()


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Keys:
    """Keys of three algorithms, made by `tidegate keys make` and by `cryptography`."""

    def __init__(self, folder):
        self.folder = folder
        self.private = []
        for algorithm in ALGORITHMS:
            out = os.path.join(folder, f"{algorithm}.json")
            tidegate("keys", "make", "--algorithm", algorithm.lower(), "--id", f"own-{algorithm}", "--out", out)
            assert os.stat(out).st_mode & 0o777 == 0o600
            self.private += json.load(open(out))["keys"]
        foreign = [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())]
        for algorithm, key in zip(ALGORITHMS, foreign):
            maker = jwt.get_algorithm_by_name(algorithm)
            self.private.append({**json.loads(maker.to_jwk(key)), "kid": f"py-{algorithm}", "alg": algorithm, "use": "sig"})
        self.private.append({"kty": "oct", "k": b64(os.urandom(32)), "kid": "py-HS256", "alg": "HS256"})

    def public(self, without=()):
        keys = [{k: v for k, v in key.items() if k not in ("d", "key_ops")} for key in self.private if key["kid"] not in without]
        return {"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "passed-over"}, *keys]}

    def write(self, name="keys.json", without=()):
        path = os.path.join(self.folder, name)
        with open(path + ".new", "w") as file:
            json.dump(self.public(without), file)
        os.rename(path + ".new", path)
        return path

    def of(self, kid):
        return next(key for key in self.private if key["kid"] == kid)


def claims(**changes):
    now = int(time.time())
    base = {"aud": "tidegate", "tenant": "acme", "client_id": "ann", "iat": now, "exp": now + 600, "jti": f"t{time.monotonic_ns()}", "capabilities": EVERYTHING}
    base.update(changes)
    return {k: v for k, v in base.items() if v is not None}


def sign(key, says, **header):
    """By PyJWT."""
    algorithm = key["alg"]
    secret = jwt.PyJWK(key).key
    return jwt.encode(says, secret, algorithm=algorithm, headers={"kid": key["kid"], **header})


def jose(requests):
    """By the npm package."""
    node = os.environ.get("TIDEGATE_NODE_MODULES", str(pathlib.Path(sys.executable).parent.parent.parent / "node"))
    script = pathlib.Path(__file__).with_name("mint.mjs")
    done = subprocess.run(["node", script, node], input=json.dumps(requests), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def enter(server, token, client=None, **options):
    query = f"?client={client}" if client else ""
    return await Client.open(server.url + query, additional_headers={"Authorization": f"Bearer {token}"}, **options)


async def turned_away(server, token, status=401, query="", **headers):
    """The body of the refusal."""
    connection = Raw(server.port)
    got, head, body = connection.request("/v1/ws" + query, Authorization=f"Bearer {token}", **headers)
    connection.close()
    assert got == status, (got, head, body)
    return body.decode().strip()


async def closed_with(client):
    """The code that the server closes this connection with."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                await (client.next_event(PATIENCE_S) if client.reader else client.socket.recv())
    except (EOFError, ConnectionClosed):
        return client.socket.close_code


async def good_tokens(server, keys):
    """Each maker, each algorithm."""
    tokens = [("PyJWT", key["kid"], sign(key, claims())) for key in keys.private]
    requests = [{"key": key, "header": {"alg": key["alg"], "kid": key["kid"], "typ": "JWT"}, "claims": claims()} for key in keys.private]
    tokens += [("jose", r["key"]["kid"], token) for r, token in zip(requests, jose(requests))]
    for algorithm in ALGORITHMS:
        own = tidegate("token", "--keys", os.path.join(keys.folder, f"{algorithm}.json"), "--tenant", "acme", "--client", "ann", "--all")
        tokens.append(("tidegate", f"own-{algorithm}", own))
    for n, (maker, kid, token) in enumerate(tokens):
        client = await enter(server, token)
        assert client.welcome["client"] == "ann" and client.welcome["expires"] > time.time() * 1000, (maker, kid, client.welcome)
        reply = await client.call({"type": "publish", "session": "s", "topic": "chat.a", "message_id": f"good-{n}", "data": kid})
        assert reply["type"] == "published"
        await client.close()
    return len(tokens)


async def ways_in(server, keys):
    key = keys.of("py-EdDSA")
    token = sign(key, claims())
    # As a browser does: the answer names the subprotocol, and nothing of the token.
    browser = await Client.open(server.url, auth=token)
    assert browser.socket.subprotocol == SUBPROTOCOL and browser.welcome["client"] == "ann"
    await browser.close()
    # As the first frame, alone or before others in an array.
    for frame in ({"type": "auth", "id": "a", "token": token}, [{"type": "auth", "id": "a", "token": token}, {"type": "ping", "id": "b"}]):
        plain = await Client.open(server.url, hello=False)
        await plain.socket.send(json.dumps(frame))
        got = [json.loads(await asyncio.wait_for(plain.socket.recv(), PATIENCE_S)) for _ in range(2 + isinstance(frame, list))]
        assert [f["type"] for f in got] == ["welcome", "authenticated", "pong"][: len(got)], got
        assert got[1]["id"] == "a" and got[1]["client"] == "ann", got
        await plain.close()
    for first in ('{"type":"ping","id":1}', '{"type":"auth","id":1,"token":"nonsense"}', "nonsense", '{"type":"auth"}', json.dumps({"type": "auth", "token": sign(key, claims(exp=1))})):
        plain = await Client.open(server.url, hello=False)
        await plain.socket.send(first)
        code = await closed_with(plain)
        assert code == (4201 if "eyJ" in first else 4203), (first, code)
    silent = await Client.open(server.url, hello=False)
    assert await closed_with(silent) == 4203, "whoever says nothing goes"
    # Whose name a connection has.
    assert (await enter(server, sign(key, claims(client_id="*")), "zoe")).welcome["client"] == "zoe"
    assert (await enter(server, sign(key, claims(client_id=None)))).welcome["client"].startswith("anon-")
    await turned_away(server, token, query="?client=bob")
    # Origin: with keys any page, if nothing else is said.
    page = Raw(server.port)
    assert page.request("/v1/ws", Authorization=f"Bearer {token}", Origin="https://anywhere.example")[0] == 101
    for path in ("/readyz", "/healthz"):
        health = Raw(server.port)
        assert health.request(path, Upgrade=None, Connection=None)[0] == 200


async def bad_tokens(server, keys):
    ed, es, hs = keys.of("py-EdDSA"), keys.of("py-ES256"), keys.of("py-HS256")
    good = sign(ed, claims())
    head, payload, signature = good.split(".")

    def made(header, says, sealed=b""):
        return f"{b64(json.dumps(header).encode())}.{b64(json.dumps(says).encode())}.{b64(sealed)}"

    def confused(key):
        """HS256 over the bytes of a public key, in each form that a server may hold it in."""
        public = jwt.PyJWK({k: v for k, v in key.items() if k != "d"}).key
        forms = [
            public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
            public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
            base64.urlsafe_b64decode(key["x"] + "=="),
            json.dumps({k: v for k, v in key.items() if k != "d"}).encode(),
        ]
        for secret in forms:
            for alg in ("HS256", key["alg"]):
                start = made({"alg": alg, "kid": key["kid"]}, claims()).rsplit(".", 1)[0]
                yield f"{start}.{b64(hmac.new(secret, start.encode(), hashlib.sha256).digest())}"

    stranger = {**ed, **json.loads(jwt.get_algorithm_by_name("EdDSA").to_jwk(ed25519.Ed25519PrivateKey.generate()))}
    unsigned = [
        *(made({"alg": alg, "kid": ed["kid"]}, claims()) for alg in ("none", "None", "NONE", "nOnE")),
        jwt.encode(claims(), None, algorithm="none", headers={"kid": ed["kid"]}),
        f"{head}.{payload}.",
        *confused(ed),
        *confused(es),
        sign(stranger, claims()),
        sign(stranger, claims(), jwk={k: v for k, v in stranger.items() if k != "d"}, jku="https://evil.example/keys"),
        sign({**ed, "kid": "nobody"}, claims()),
        sign(hs, claims(), kid=ed["kid"]),
        f"{head}.{b64(json.dumps(claims(tenant='bcorp')).encode())}.{signature}",
        f"{good[:-4]}AAAA",
        good[:-1],
        f"{good}.{signature}",
        sign(ed, claims(), cty="JWT"),
        sign(ed, claims(), crit=["exp"]),
        sign(ed, claims(more="x" * 4096)),
        jwt.encode({"token": good}, jwt.PyJWK(ed).key, algorithm="EdDSA", headers={"kid": ed["kid"], "cty": "JWT"}),
        "x",
        "." * 100,
        "A" * 5000,
    ]
    told = set()
    for token in unsigned:
        told.add(await turned_away(server, token))
    assert len(told) == 1, f"whoever cannot sign learns something: {told}"
    now = int(time.time())
    signed = [
        (claims(exp=now - 1), "expired"),
        (claims(exp=None), "claims"),
        (claims(exp=now + 10 * 86_400), "too long"),
        (claims(nbf=now + 600), "does not count yet"),
        (claims(aud="other"), "audience"),
        (claims(aud=None), "audience"),
        (claims(tenant=None), "claims"),
        (claims(tenant="a/b"), "claims"),
        (claims(client_id="$server"), "claims"),
        (claims(capabilities={"publish": ["a..b"]}), "claims"),
        (claims(capabilities={"publish": [f"t{n}" for n in range(33)]}), "claims"),
    ]
    for says, word in signed:
        body = await turned_away(server, sign(ed, says))
        assert word in body and "\n" not in body, (says, body)
    two = Raw(server.port)
    assert two.request("/v1/ws", Authorization=f"Bearer {good}", Sec_WebSocket_Protocol=f"{SUBPROTOCOL}, tidegate.auth.{good}")[0] == 400
    return [*unsigned, good]


async def rights(server, keys):
    key = keys.of("py-ES256")
    few = {"publish": ["mine-*/chat.>"], "subscribe": ["mine-*/>"]}
    client = await enter(server, sign(key, claims(client_id="few", capabilities=few)))
    everybody = await enter(server, sign(key, claims(client_id="all")))
    await everybody.call({"type": "publish", "session": "theirs", "topic": "chat.a", "message_id": "m", "data": 1})

    async def forbidden(command, capability):
        try:
            frame = await client.call(command)
        except Refused as no:
            assert no.name == "forbidden" and no.frame["field"] == f"capabilities.{capability}", no
            return {k: v for k, v in no.frame.items() if k != "id"}
        raise AssertionError(f"allowed: {frame}")

    for n in range(8):
        say = {"type": "publish", "session": f"mine-{n}", "topic": "chat.a", "message_id": "m", "data": n}
        assert (await client.call(say))["type"] == "published"
        assert (await client.call({"type": "subscribe", "session": f"mine-{n}"}))["type"] == "subscribed"
        await forbidden({**say, "topic": "tool.call"}, "publish")
    for command, capability in [
        ({"type": "publish", "topic": "chat.a", "message_id": "m", "data": 1}, "publish"),
        ({"type": "stream.append", "stream": "x", "seq": 0, "delta": "x"}, "publish"),
        ({"type": "presence.enter"}, "publish"),
        ({"type": "subscribe"}, "subscribe"),
        ({"type": "history"}, "subscribe"),
        ({"type": "mark", "name": "m", "offset": 0}, "subscribe"),
        ({"type": "presence.watch"}, "subscribe"),
        ({"type": "commit", "events": [], "markers": [{"name": "m", "offset": 0}]}, "subscribe"),
    ]:
        there, nowhere = [await forbidden({**command, "session": session}, capability) for session in ("theirs", "nowhere")]
        assert there == nowhere, "it tells what exists"
    await forbidden({"type": "subscribe", "patterns": ["chat.>"]}, "subscribe")
    # A newer token of the same client, with more; with less to read it is not taken, and of others neither.
    more = {"publish": [">"], "subscribe": ["mine-*/>", "chat.>"]}
    reply = await client.call({"type": "auth", "token": sign(key, claims(client_id="few", capabilities=more))})
    assert reply["type"] == "authenticated" and reply["client"] == "few", reply
    assert (await client.call({"type": "subscribe", "patterns": ["chat.>"]}))["patterns"] is True
    assert (await client.call({"type": "publish", "session": "theirs", "topic": "tool.call", "message_id": "m2", "data": 1}))["type"] == "published"
    for says, name in [
        (claims(client_id="few", capabilities=few), "narrower_rights"),
        (claims(client_id="all"), "bad_credential"),
        (claims(client_id="few", tenant="bcorp"), "bad_credential"),
    ]:
        try:
            raise AssertionError(await client.call({"type": "auth", "token": sign(key, says)}))
        except Refused as no:
            assert no.name == name, no
    # A resume token is of one client, and of one tenant.
    life = await client.call({"type": "resume"})
    await client.close()
    for says in (claims(client_id="thief"), claims(client_id="few", tenant="bcorp")):
        thief = await enter(server, sign(key, says))
        try:
            raise AssertionError(await thief.call({"type": "resume", "token": life["token"]}))
        except Refused as no:
            assert no.name == "bad_token", no
    again = await enter(server, sign(key, claims(client_id="few", capabilities={"subscribe": ["mine-1/>"]})))
    back = await again.call({"type": "resume", "token": life["token"]})
    assert back["sessions"] == 8 and back["patterns"] is False, back
    kept, lost = set(), set()
    while len(kept) + len(lost) < 8:
        frame = await again.next_event()
        (kept if frame["type"] == "subscribed" else lost).add(frame["session"])
    assert kept == {"mine-1"}, (kept, lost)


async def expiry(server, keys):
    key = keys.of("py-HS256")
    short = claims(client_id="short", exp=int(time.time()) + 3)
    goes, stays = await enter(server, sign(key, short)), await enter(server, sign(key, short))
    await stays.call({"type": "auth", "token": sign(key, claims(client_id="short"))})
    assert await closed_with(goes) == 4201
    assert (await stays.call({"type": "ping"}))["type"] == "pong"
    await stays.close()


async def by_wire(server, key):
    """By a client with the right to: on every shard within a second, only in its tenant, and not by those without it."""
    token = sign(key, claims(client_id="oscar"))
    oscars = [await enter(server, token) for _ in range(24)]
    foreign = await enter(server, sign(key, claims(client_id="oscar", tenant="bcorp")))
    named = await enter(server, sign(key, claims(client_id="peggy", jti="peggy-1")))
    everything_else = {**EVERYTHING, "admin": ["quotas", "rev", "room-1/revoke"]}
    nobody = await enter(server, sign(key, claims(client_id="nobody", capabilities=everything_else)))
    for command in ({"type": "revoke.client", "name": "oscar"}, {"type": "revoke.token", "name": "peggy-1"}, {"type": "revoke.client", "name": "not-there"}):
        try:
            raise AssertionError(await nobody.call(command))
        except Refused as no:
            assert no.name == "forbidden" and no.frame["field"] == "capabilities.admin", no.frame
    for client in (oscars[0], named):
        assert (await client.call({"type": "ping"}))["type"] == "pong"
    ruler = await enter(server, sign(key, claims(client_id="ruler", capabilities={"admin": ["revoke"]})))
    began = time.monotonic()
    assert (await ruler.call({"type": "revoke.client", "name": "oscar"}))["type"] == "revoked"
    codes = await asyncio.gather(*(closed_with(client) for client in oscars))
    seconds = time.monotonic() - began
    assert codes == [4202] * len(oscars), codes
    assert {client.welcome["shard"] for client in oscars} == set(range(4)), "they were on every shard"
    assert "revoked" in await turned_away(server, token)
    # Many at once: all are answered, and those that find no room are told when to come again.
    asked = [ruler.call({"type": "revoke.token", "name": f"peggy-{n}"}) for n in range(300)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    odd = [a for a in answers if isinstance(a, Exception) and getattr(a, "name", "") != "unavailable"]
    assert not odd and len(answers) == 300, odd[:3]
    if isinstance(answers[1], Exception):
        await ruler.call({"type": "revoke.token", "name": "peggy-1"})
    assert await closed_with(named) == 4202
    # Oneself too.
    for bystander in (foreign, nobody):
        assert (await bystander.call({"type": "ping"}))["type"] == "pong"
    await ruler.socket.send('{"type":"revoke.client","id":"own","name":"ruler"}')
    assert await closed_with(ruler) == 4202
    print(f"tokens: revoked over the wire on 4 shards in {seconds:.2f} s")
    return token


async def revocation(server, keys):
    key = keys.of("own-EdDSA")
    old = [sign(key, claims(client_id="mallory")) for _ in range(24)]
    clients = [await enter(server, token) for token in old]
    shards = {client.welcome["shard"] for client in clients}
    named = await enter(server, sign(key, claims(client_id="carol", jti="carol-1")))
    other = await enter(server, sign(key, claims(client_id="carol", jti="carol-2")))
    foreign = await enter(server, sign(key, claims(client_id="mallory", tenant="bcorp")))
    began = time.monotonic()
    tidegate("revoke", "--data", server.data, "--tenant", "acme", "--client", "mallory")
    codes = [await closed_with(client) for client in clients]
    seconds = time.monotonic() - began
    assert codes == [4202] * len(clients), codes
    tidegate("revoke", "--data", server.data, "--tenant", "acme", "--token", "carol-1")
    assert await closed_with(named) == 4202
    spare = await by_wire(server, key)
    for bystander in (other, foreign):
        assert (await bystander.call({"type": "ping"}))["type"] == "pong"
    assert "revoked" in await turned_away(server, old[0])
    server.kill9()
    server.start(shards=3)
    for token in (old[1], spare):
        assert "revoked" in await turned_away(server, token), "forgotten by a restart"
    later = claims(client_id="mallory", iat=int(time.time()) + 2)
    assert (await enter(server, sign(key, later))).welcome["client"] == "mallory", "a token that was issued later"
    tidegate("revoke", "--data", server.data, "--tenant", "acme", status=2)
    tidegate("revoke", "--data", server.data, "--tenant", "ac/me", "--client", "x", status=2)
    return seconds, len(shards)


async def reload(server, keys):
    old, new = keys.of("py-EdDSA"), keys.of("py-ES256")
    stays, goes = await enter(server, sign(new, claims())), await enter(server, sign(old, claims()))
    path = keys.write(without=["py-EdDSA"])
    server.process.send_signal(signal.SIGHUP)
    assert await closed_with(goes) == 4202, "its key is gone"
    await turned_away(server, sign(old, claims()))
    assert (await stays.call({"type": "ping"}))["type"] == "pong"
    # What cannot be read leaves everything as it is.
    pathlib.Path(path).write_text("{ no keys")
    server.process.send_signal(signal.SIGHUP)
    await wait_for(lambda: "stays in force" in server.tail())
    assert (await enter(server, sign(new, claims()))).welcome["client"] == "ann"
    keys.write()
    server.process.send_signal(signal.SIGHUP)
    await wait_for(lambda: server.tail().count("were read again") >= 2)
    assert (await enter(server, sign(old, claims()))).welcome["client"] == "ann"


async def wait_for(holds):
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it does not come about"
        await asyncio.sleep(0.05)


def starts(server):
    """What keeps a server from starting, and what it says."""
    for flags, words in [
        (["--listen", "0.0.0.0:0"], ["auth_keys_file", "loopback"]),
        (["--set", "auth_keys_file=nowhere.json"], ["auth_keys_file", "nowhere.json"]),
        (["--set", f"auth_keys_file={ROOT / 'README.md'}"], ["auth_keys_file", "README.md"]),
    ]:
        line = tidegate("serve", "--data", server.data + "-none", *flags, status=2)
        assert all(word in line for word in words) and "\n" not in line, line


async def origins():
    """Without keys a page of another host may not connect: it could, from any browser on this machine."""
    server = Server()
    with server:
        for origin, status in [(None, 101), ("http://localhost:3000", 101), ("https://evil.example", 403), ("null", 403)]:
            page = Raw(server.port)
            assert page.request("/v1/ws", Origin=origin)[0] == status, origin
            page.close()
    server = Server("--set", "origins_allowed=https://app.example")
    with server:
        for origin, status in [("https://app.example", 101), ("http://localhost", 403)]:
            page = Raw(server.port)
            assert page.request("/v1/ws", Origin=origin)[0] == status, origin
            page.close()


async def story(server, keys):
    count = await good_tokens(server, keys)
    await ways_in(server, keys)
    shown = await bad_tokens(server, keys)
    await rights(server, keys)
    await expiry(server, keys)
    await wait_for(lambda: "turned away" in server.tail())
    await reload(server, keys)
    seconds, shards = await revocation(server, keys)
    log = open(server.log.name, "rb").read().decode()
    # The header is the same for all tokens of a key: what tells one token is its payload and its signature.
    leaked = [token for token in shown for part in token.split(".")[1:] if len(part) > 40 and part in log]
    assert not leaked, f"tokens in the log: {leaked}"
    assert keys.of("own-HS256")["k"] not in log
    return count, len(shown), seconds, shards


def main():
    server = Server("--set", "handshake_timeout_ms=2s", shards=4)
    os.makedirs(server.folder, exist_ok=True)
    keys = Keys(server.folder)
    server.flags += ["--set", f"auth_keys_file={keys.write()}"]
    starts(server)
    results = []

    async def all_of_it():
        await origins()
        results.append(await story(server, keys))

    with server:
        run(all_of_it())
    count, bad, seconds, shards = results[0]
    print(f"tokens: {count} good ones of PyJWT, jose and tidegate; {bad} bad ones; revoked on {shards} shards in {seconds:.2f} s, also after kill -9")


if __name__ == "__main__":
    sys.exit(main())
