#!/usr/bin/env python3
"""Which lines of the core does the simulator reach?

    tools/coverage/run.py [--seeds N] [--blocks B]

    simulator with counters ─► seeds 1 to N, the regressions ─► a profile per process ─► lines of storage/src and shards/src

The same seeds on the same commit reach the same lines, so the sum is a figure of the commit. Code that only tests compile is not
in the simulator's binary, and so not in the table. The build has a target folder of its own, `coverage` beside the others.
llvm-profdata and llvm-cov must be of the LLVM that rustc has inside; where they are missing, Debian's package of that version is
installed.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "coverage"
CORE = ["storage/src", "shards/src"]
RUN_S_MAX = 900
TEXT_CHARS_MAX = 76


def tools():
    """Paths of llvm-profdata and llvm-cov."""
    said = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout
    major = re.search(r"LLVM version: (\d+)", said)[1]
    sysroot = subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True).stdout.strip()
    # The toolchain's own component llvm-tools, else the system's package.
    folders = [*pathlib.Path(sysroot).glob("lib/rustlib/*/bin"), pathlib.Path(f"/usr/lib/llvm-{major}/bin")]

    def found():
        for folder in folders:
            if all((folder / tool).exists() for tool in ("llvm-profdata", "llvm-cov")):
                return folder / "llvm-profdata", folder / "llvm-cov"
        return None

    if not found() and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-q"], check=True, timeout=300)
        subprocess.run(["apt-get", "install", "-y", "-q", "--no-install-recommends", f"llvm-{major}"], check=True, timeout=600)
    return found() or sys.exit(f"no llvm-cov of LLVM {major}: apt-get install llvm-{major}, or rustup component add llvm-tools")


def build():
    """The simulator with counters."""
    environment = {**os.environ, "CARGO_TARGET_DIR": str(TARGET), "RUSTFLAGS": "-C instrument-coverage"}
    command = ["cargo", "test", "--locked", "-q", "--profile", "sim", "--features", "tidegate/power-cut,tidegate/stall", "--test", "sim"]
    command += ["--no-run", "--message-format", "json"]
    # What build scripts and macros write while they compile is nobody's.
    environment["LLVM_PROFILE_FILE"] = os.devnull
    built = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if built.returncode != 0:
        sys.exit("the simulator does not build")
    messages = map(json.loads, built.stdout.splitlines())
    return next(m["executable"] for m in messages if m.get("target", {}).get("name") == "sim" and m.get("executable"))


def run_seeds(binary, seeds, folder):
    """All seeds, shared out among the cores; the regressions run first in each share."""
    cores = os.cpu_count() or 1
    share = -(-seeds // cores)
    environment = {**os.environ, "LLVM_PROFILE_FILE": os.path.join(folder, "%p.profraw")}
    processes = []
    for first in range(1, seeds + 1, share):
        command = [binary, "--from", str(first), "--seeds", str(min(share, seeds + 1 - first))]
        output = {"stdout": subprocess.PIPE, "text": True, "errors": "replace"}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, **output))
    try:
        texts = [process.communicate(timeout=RUN_S_MAX)[0] for process in processes]
    except BaseException as why:
        for process in processes:
            process.kill()
        if isinstance(why, subprocess.TimeoutExpired):
            sys.exit(f"the seeds take longer than {RUN_S_MAX} s")
        raise
    if any(process.returncode != 0 for process in processes):
        for line in "".join(texts).splitlines():
            if re.match(r"seed \d+ failed|again: ", line):
                print(line[:2000])
        sys.exit("the simulator found something")


def lines_of(binary, folder):
    """File of the core to {line: count}."""
    profdata, cov = tools()
    merged = os.path.join(folder, "all.profdata")
    raw = [str(path) for path in pathlib.Path(folder).glob("*.profraw")]
    subprocess.run([profdata, "merge", "-sparse", "-o", merged, *raw], check=True)
    sources = [str(ROOT / part) for part in CORE]
    command = [cov, "export", "-format=lcov", f"-instr-profile={merged}", binary, *sources]
    exported = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    files, lines = {}, {}
    for line in exported.splitlines():
        if line.startswith("SF:"):
            lines = files.setdefault(os.path.relpath(line[3:], ROOT), {})
        elif line.startswith("DA:"):
            number, count = line[3:].split(",")[:2]
            lines[int(number)] = int(count)
    return files


def blocks_of(name, lines):
    """Unreached lines without a reached one between them: (count, file, first, last)."""
    held, found = [], []
    for number in sorted(lines):
        if lines[number] == 0:
            held.append(number)
        elif held:
            found.append((len(held), name, held[0], held[-1]))
            held = []
    if held:
        found.append((len(held), name, held[0], held[-1]))
    return found


def report(files, blocks_max, seeds):
    """The table, the largest unreached blocks, and the sum as the last line."""
    blocks = []
    for name in sorted(files):
        lines = files[name]
        reached = sum(count > 0 for count in lines.values())
        print(f"{reached:>7} of {len(lines):>5}  {reached / max(1, len(lines)) * 100:5.1f} %  {name}")
        blocks += blocks_of(name, lines)
    blocks.sort(key=lambda block: (-block[0], block[1:]))
    print(f"unreached blocks, the largest {min(blocks_max, len(blocks))} of {len(blocks)}:")
    for count, name, first, last in blocks[:blocks_max]:
        text = (ROOT / name).read_text().splitlines()[first - 1].strip()
        print(f"{count:>7} lines  {name}:{first}-{last}  {text[:TEXT_CHARS_MAX]}")
    all_lines = [count for lines in files.values() for count in lines.values()]
    reached = sum(count > 0 for count in all_lines)
    share = reached / max(1, len(all_lines)) * 100
    by = f"by seeds 1 to {seeds} and the regressions"
    print(f"coverage: {reached} of {len(all_lines)} lines of {' and '.join(CORE)} reached, {share:.1f} %, {by}")
    if not all_lines:
        sys.exit("no line of the core in the profile")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds run, from 1 on")
    parser.add_argument("--blocks", type=int, default=25, help="how many unreached blocks are named")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("at least one seed")
    tools()
    binary = build()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tidegate-coverage-") as folder:
        run_seeds(binary, options.seeds, folder)
        print(f"ran in {time.monotonic() - began:.0f} s", flush=True)
        report(lines_of(binary, folder), options.blocks, options.seeds)


if __name__ == "__main__":
    main()
