#!/usr/bin/env python3
"""The story that README tells: serve, paste the line that it prints, read it back, kill -9, restart, read it again.

    serve ─► a printed `tidegate pub …` line ─► sub --from earliest ─► kill -9 ─► serve ─► sub again: the same bytes
"""

import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request

from raw import Raw
from tide import ROOT, Server, binary, environment


def run(*arguments, status=0, timeout_s=20):
    """Runs a subcommand of the binary; returns (stdout, stderr)."""
    done = subprocess.run([binary(), *arguments], capture_output=True, text=True, timeout=timeout_s, env=environment())
    assert done.returncode == status, f"{arguments}: exit status {done.returncode}, expected {status}\n{done.stdout}{done.stderr}"
    return done.stdout, done.stderr


def pasted_line():
    """README's `tidegate pub` line, as a user would paste it."""
    readme = ROOT / "README.md"
    lines = readme.read_text().splitlines() if readme.exists() else []
    found = [line.strip().removeprefix("$ ") for line in lines if re.search(r"\btidegate pub\b.*--session demo", line)]
    assert found, "README.md shows no `tidegate pub … --session demo …` line"
    words = shlex.split(found[0])
    return words[words.index("pub") :]


def main():
    server = Server(shards=2)
    with server:
        ready = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/readyz", timeout=5)
        assert ready.status == 200
        echo = Raw(server.port)
        assert echo.request("/echo")[0] == 404, "/echo is open although --echo was not given"
        echo.close()

        url = ["--url", f"ws://127.0.0.1:{server.port}"]
        words = pasted_line()
        if "--url" in words:
            at = words.index("--url")
            del words[at : at + 2]
        acknowledgement = json.loads(run("pub", *url, *words[1:])[0])
        assert acknowledgement["type"] == "published" and acknowledgement["durability"] == "disk", acknowledgement

        read = ["sub", *url, "--session", "demo", "--from", "earliest", "--count", "1"]
        first = run(*read)[0]
        event = json.loads(first)
        assert event["event_id"] == acknowledgement["event_id"], (event, acknowledgement)

        again = ["pub", *url, "--session", "demo", "--topic", "chat.message", "--client", "me", "--message-id", "once", '{"n":2}']
        once, twice = json.loads(run(*again)[0]), json.loads(run(*again)[0])
        assert once["event_id"] == twice["event_id"] and twice.get("duplicate") is True, (once, twice)

        server.kill9()
        server.start()
        assert run(*read)[0] == first, "after kill -9 and restart the event reads differently"
        lines = run("sub", *url, "--pattern", "chat.>", "--from", "earliest", "--count", "2")[0].splitlines()
        assert [json.loads(line)["event_id"] for line in lines] == [event["event_id"], once["event_id"]], lines
        second = json.loads(run("sub", *url, "--session", "demo", "--from", "1", "--count", "1")[0])
        assert second["event_id"] == once["event_id"] and second["data"] == {"n": 2}, second

        # Refusals: exit status 1 and the server's own words on stderr; a wrong request: 2.
        _, said = run("pub", *url, "--session", "demo", "--topic", "bad topic", "1", status=1)
        assert "bad_topic" in said and len(said.strip().splitlines()) == 1, said
        _, said = run("pub", *url, "--session", "demo", "--topic", "t", "not json", status=2)
        assert "--text" in said, said
        acknowledgement = json.loads(run("pub", *url, "--session", "demo", "--topic", "t", "--text", "not json")[0])
        assert acknowledgement["type"] == "published"

        assert server.stop() == 0
        out, _ = run("log", "verify", server.data)
        assert "corrupt" not in out.lower(), out
        dumped = [json.loads(line) for line in run("log", "dump", server.data, "--session", "demo")[0].splitlines()]
        assert [e["event_id"] for e in dumped[:2]] == [event["event_id"], once["event_id"]], dumped
        assert len(dumped) == 3
    print("serve, pub, sub, kill -9, restart, sub, log verify, log dump: as README says")


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
