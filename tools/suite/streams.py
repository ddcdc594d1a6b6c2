"""Answers of models, token by token: how late a reader hears of one, what a reader that joins late is sent, and what is left on disk.

    load ─► every stream closed ─► starts: each begins a segment, and what was before may be rewritten ─► disk ÷ text

Blocks that every file has whatever it holds (headers, padding, tables) are left out of the last: they count only where text is
counted in kilobytes.
"""

import os
import pathlib
import time

from .servers import Ours

# Segments of which a run fills some, and that are checkpointed as they are filled.
FLAGS = [flag for value in ("segment_bytes=16MiB", "checkpoint_bytes=16MiB") for flag in ("--set", value)]
STARTS = 3
BLOCKS_BYTES = 6 * 4096
# Nothing was rewritten for so long: compaction has come by.
QUIET_S = 3.0
PATIENCE_S = 300.0


def server():
    return Ours(*FLAGS)


def clustered(folder):
    """Segments that re-clustering made, with their sidecars: (files, bytes)."""
    names = [name for name in os.listdir(folder) if name.startswith("seg-") and name.endswith((".log", ".idx"))]
    made = [name for name in names if int(name[13:21], 16) >= 1 << 31]
    return sorted(made), sum(os.path.getsize(os.path.join(folder, name)) for name in made)


def compacted_bytes(server):
    """What is left on disk when nothing more is rewritten."""
    for number in range(STARTS):
        server.stop()
        server.start()
        server.load("fill", "--prefix", f"end{number}", "--sessions", 1, "--events", 4)
    folder = pathlib.Path(server.folder, "data")
    began = changed = time.monotonic()
    before = None
    while time.monotonic() - changed < QUIET_S and time.monotonic() - began < PATIENCE_S:
        try:
            now = clustered(folder)
        except FileNotFoundError:  # it was just rewritten
            now = None
        if now is None or now != before:
            before, changed = now, time.monotonic()
        time.sleep(0.2)
    files, size = before or ([], 0)
    return size - BLOCKS_BYTES * sum(name.endswith(".log") for name in files)


def tokens(server, size, context):
    streams, rate, count, join_at = size.streams
    report = server.load("streams", "--streams", streams, "--token-rate", rate, "--tokens", count, "--join-at", join_at)
    delivery = report["delivery"]["intended"]
    return {
        "token p50 ms": delivery["p50_us"] / 1000,
        "token p99.9 ms": delivery["p999_us"] / 1000,
        "tokens/s": report["tokens_per_s"],
        "frames to join": report["join_frames"],
        "frames of the slow": report["slow_frames"],
        "disk ÷ text": compacted_bytes(server) / report["text_bytes"],
        "generator core": report["own_cores"],
    }, report
