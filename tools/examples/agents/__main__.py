"""A conversation that cannot be killed: a chat, an orchestrator, two model workers and a tool agent on one server.

    python3 tools/examples/agents                      builds the server, starts all, talks in the terminal and in a page
    python3 tools/examples/agents --binary PATH        with a server that is built already
    python3 tools/examples/agents --ask "why tides?"   one question, its answer, what happened, the end

Needs Linux, Python 3.11 and cargo; it makes itself a virtual environment with the one package it uses.
"""

import argparse
import asyncio
import functools
import http.server
import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import venv

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
CLIENTS = ROOT / "tools" / "clients"
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
WEBSOCKETS = "websockets==15.0.1"


def in_a_venv_of_its_own():
    """Starts again with an interpreter that has the package, unless this one has it."""
    if importlib.util.find_spec("websockets"):
        return
    folder = TARGET / "agents-venv"
    python = folder / "bin" / "python"
    if sys.prefix == str(folder):
        sys.exit(f"{WEBSOCKETS} is not to be had in {folder}: delete the folder and try again")
    if not python.exists():
        print(f"making {folder} with {WEBSOCKETS} …", flush=True)
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", WEBSOCKETS], check=True)
    os.execv(python, [str(python), *sys.argv])


def build():
    print("building the server …", flush=True)
    subprocess.run(["cargo", "build", "--release", "-q"], cwd=ROOT, check=True)
    return TARGET / "release" / "tidegate"


def port(wanted):
    """The port, or a free one where it is taken."""
    for number in (wanted, 0):
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", number))
                return s.getsockname()[1]
            except OSError:
                continue
    sys.exit("no free port")


class Page(http.server.SimpleHTTPRequestHandler):
    """The files of the page, the client library, and where the server is."""

    extensions_map = {
        ".js": "text/javascript",
        ".css": "text/css",
        ".html": "text/html; charset=utf-8",
        "": "application/octet-stream",
    }

    def __init__(self, *args, config, **more):
        self.config = config
        super().__init__(*args, directory=str(HERE / "web"), **more)

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/config.json":
            return self.answer(json.dumps(self.config).encode(), "application/json")
        if path == "/tidegate.js":
            return self.answer((CLIENTS / "js" / "tidegate.js").read_bytes(), "text/javascript")
        return super().do_GET()

    def answer(self, body, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self):
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, *_):
        pass


def serve_page(number, config):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", number), functools.partial(Page, config=config))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"


async def run(options):
    import fleet as fleets
    from queues import queues

    binary = options.binary or build()
    number = port(options.port)
    url = f"ws://127.0.0.1:{number}"
    config = {"url": f"{url}/v1/ws", "session": options.session, "deadline_ms": options.deadline_ms}
    page = serve_page(port(options.page_port), config)
    with tempfile.TemporaryDirectory(prefix="tidegate-agents-") as folder:
        data = pathlib.Path(options.data or folder) / "data"
        fleet = fleets.Fleet(url, queues(options.deadline_ms))
        fleet.add("server", fleets.serve_command(binary, number, data, options.shards))
        fleets.agents_of(fleet, options.deadline_ms)
        keeping = asyncio.create_task(fleet.run())
        try:
            ready = asyncio.create_task(fleet.ready.wait())
            await asyncio.wait([keeping, ready], return_when=asyncio.FIRST_COMPLETED)
            print(f"page   {page}#{options.session}\nserver {url}", flush=True)
            if options.no_chat:
                await keeping
            else:
                await talk(fleets, binary, data, url, options, keeping)
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])
            fleet.stop()


async def talk(fleets, binary, data, url, options, keeping):
    """The terminal client; it is started again where it was killed, for it is a part like the others."""
    keep = data.parent / "you.json"
    command = [sys.executable, HERE / "chat.py", "--url", url, "--session", options.session, "--name", "you", "--keep", keep]
    if fleets.knows(binary, "why"):
        command += ["--binary", binary, "--data", data]
    if options.ask:
        command += ["--ask", options.ask]
    while True:
        chat = await asyncio.create_subprocess_exec(*map(str, command))
        ended = asyncio.create_task(chat.wait())
        try:
            await asyncio.wait([ended, keeping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not ended.done():
                chat.terminate()
                await ended
        if keeping.done():
            keeping.result()
        if chat.returncode >= 0:
            return
        print("the chat was killed; it goes on", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", help="server binary; without it cargo builds one")
    parser.add_argument("--ask", help="ask one question and end")
    parser.add_argument("--no-chat", action="store_true", help="only the page, until Ctrl-C")
    parser.add_argument("--session", default="demo")
    parser.add_argument("--data", help="folder to keep the conversations in; without it they go with the demo")
    parser.add_argument("--deadline-ms", type=int, default=10_000, help="within which each question is answered")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--port", type=int, default=7777)
    parser.add_argument("--page-port", type=int, default=7780)
    options = parser.parse_args()
    in_a_venv_of_its_own()
    sys.path[:0] = [str(HERE), str(CLIENTS / "python")]
    try:
        asyncio.run(run(options))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
