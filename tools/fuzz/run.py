#!/usr/bin/env python3
"""Fuzzes the parsers, without cargo-fuzz.

    tools/fuzz/run.py --seconds 600 --jobs 2      every target so long, two at a time
    tools/fuzz/run.py --seconds 60 websocket      one
    tools/fuzz/run.py --replay                    every input of the corpus once: seconds
    tools/fuzz/run.py --input FILE json           one input again
    tools/fuzz/run.py --keep json                 what runs found and the corpus lacks goes into the tree, least first

One line a target says how many inputs ran, what share of the instrumented edges they reached and how the corpus grew. What a
run finds new lies in target/fuzz/corpus, its log in target/fuzz/logs, what fails in target/fuzz/failures. A failure belongs into
the corpus, and as a named regression into the tests of its module.

Needs a C++ compiler and a Rust toolchain with the AddressSanitizer runtime (rust-std of Linux on x86-64 and arm64 has it).
The flags are unstable: a nightly toolchain is taken where rustup has one, else the default one with RUSTC_BOOTSTRAP=1.
"""

import argparse
import concurrent.futures
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent.parent / "target")).resolve() / "fuzz"
TRIPLE = f"{platform.machine()}-unknown-linux-gnu"
TARGETS = sorted(path.stem for path in (HERE / "fuzz_targets").glob("*.rs"))
# What cargo-fuzz passes: coverage for libFuzzer, and AddressSanitizer for the modules with `unsafe`.
FLAGS = """-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
    -Ccodegen-units=1 --cfg fuzzing"""
# Largest input that libFuzzer makes up; the corpus may hold larger ones.
INPUT_BYTES_MAX = 4096


def toolchain():
    """Arguments and environment that make cargo take unstable flags, and the folder of its runtimes."""
    for argument, extra in (["+nightly"], {}), ([], {"RUSTC_BOOTSTRAP": "1"}):
        asked = subprocess.run(["rustc", *argument, "--print", "target-libdir"], capture_output=True, text=True)
        if asked.returncode == 0:
            return argument, extra, pathlib.Path(asked.stdout.strip())
    sys.exit("no rustc: install Rust (the version is in Cargo.toml, rust-version)")


def build(targets, sanitizer):
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        sys.exit("no C++ compiler, which libFuzzer is built with: install g++")
    argument, extra, libraries = toolchain()
    if sanitizer == "address" and not list(libraries.glob("librustc*_rt.asan.a")):
        sys.exit(f"no AddressSanitizer runtime in {libraries}: install a toolchain that has it, or give --sanitizer none")
    flags = FLAGS.split() + ([f"-Zsanitizer={sanitizer}"] if sanitizer != "none" else [])
    environment = {**os.environ, **extra, "RUSTFLAGS": " ".join(flags), "CARGO_TARGET_DIR": str(TARGET)}
    command = ["cargo", *argument, "build", "-q", "--release", "--locked", "--target", TRIPLE, *(word for target in targets for word in ("--bin", target))]
    print(f"building with {' '.join(argument) or 'RUSTC_BOOTSTRAP=1'}, sanitizer {sanitizer}", flush=True)
    if subprocess.run(command, cwd=HERE, env=environment).returncode != 0:
        sys.exit("the targets do not build")


def program(target):
    return TARGET / TRIPLE / "release" / target


def folder(kind, target):
    path = TARGET / kind / target
    path.mkdir(parents=True, exist_ok=True)
    return path


def fuzz(target, seconds):
    """Runs a target for so long, or the corpus once for 0 seconds; the line about it, and whether it is clean."""
    found, failures, log = folder("corpus", target), folder("failures", target), folder("logs", target) / "run.txt"
    before = {path.name for path in found.iterdir()}
    command = [
        program(target), found, HERE / "corpus" / target, f"-max_len={INPUT_BYTES_MAX}", "-timeout=60", "-rss_limit_mb=2048",
        "-print_final_stats=1", f"-artifact_prefix={failures}/", f"-max_total_time={seconds}" if seconds else "-runs=0",
    ]
    dictionary = HERE / "dictionaries" / f"{target}.txt"
    if dictionary.exists():
        command.append(f"-dict={dictionary}")
    with log.open("w") as out:
        status = subprocess.run(list(map(str, command)), stdout=out, stderr=out).returncode
    text = log.read_text(errors="replace")
    edges = sum(map(int, re.findall(r"\((\d+) inline 8-bit counters\)", text)))
    cover = [(int(cov), int(corpus)) for cov, corpus in re.findall(r"cov: (\d+) .*?corp: (\d+)", text)]
    started = re.search(r"INITED\s+cov: (\d+)", text)
    runs = re.search(r"number_of_executed_units:\s*(\d+)", text)
    rate = re.search(r"average_exec_per_sec:\s*(\d+)", text)
    new = {path.name for path in found.iterdir()} - before
    fresh = " ".join([
        f"{target:10} {'clean ' if status == 0 else 'FAILED'}",
        f"{int(runs[1]) if runs else 0:>11,} inputs",
        f"{int(rate[1]) if rate else 0:>7,}/s",
        f"cov {started[1] if started else '?'} → {cover[-1][0] if cover else '?'} of {edges} edges",
        f"corpus {cover[-1][1] if cover else '?'} ({len(new)} new)",
    ])
    if status != 0:
        fresh += f"\n{text[-4000:]}\nlog: {log}"
    return status == 0, fresh


def keep(target):
    """Adds the fewest inputs of former runs that reach what the corpus does not; libFuzzer names a file by its content."""
    kept = HERE / "corpus" / target
    before = len(list(kept.iterdir()))
    with tempfile.TemporaryDirectory() as scratch:
        command = [program(target), "-merge=1", f"-max_len={INPUT_BYTES_MAX}", f"-merge_control_file={scratch}/control", kept, folder("corpus", target)]
        subprocess.run(list(map(str, command)), check=True, stderr=subprocess.DEVNULL)
    print(f"{target:10} corpus {before} → {len(list(kept.iterdir()))} inputs, {sum(p.stat().st_size for p in kept.iterdir())} bytes", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=" ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time")
    parser.add_argument("--replay", action="store_true", help="the corpus once, nothing new")
    parser.add_argument("--keep", action="store_true", help="move what was found into the tree")
    parser.add_argument("--input", type=pathlib.Path, help="one input, to one target")
    parser.add_argument("--sanitizer", choices=["address", "none"], default="address")
    options = parser.parse_args()
    targets = options.targets or TARGETS
    unknown = [target for target in targets if target not in TARGETS]
    if unknown or (options.input and len(targets) != 1):
        parser.error(f"targets are {' '.join(TARGETS)}; --input takes one of them")
    build(targets, options.sanitizer)
    if options.input:
        return subprocess.run([program(targets[0]), options.input]).returncode
    if options.keep:
        for target in targets:
            keep(target)
        return 0
    clean = True
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for ok, line in pool.map(lambda target: fuzz(target, 0 if options.replay else options.seconds), targets):
            clean = clean and ok
            print(line, flush=True)
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
