#!/usr/bin/env python3
"""Fuzzes the parsers, without cargo-fuzz: needs a nightly toolchain and a C++ compiler.

    tools/fuzz/run.py --seconds 600               every target so long, one after the other
    tools/fuzz/run.py --seconds 60 websocket      one
    tools/fuzz/run.py --input FILE json           one input again

The corpus in `tools/fuzz/corpus` is read and not changed; what a run finds new lies in target/fuzz/corpus, what fails in
target/fuzz/failures. A failure belongs into the corpus, and as a named regression into the tests of its module.
"""

import argparse
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent.parent / "target")).resolve() / "fuzz"
TRIPLE = "x86_64-unknown-linux-gnu" if os.uname().machine == "x86_64" else "aarch64-unknown-linux-gnu"
TARGETS = ["websocket", "json", "upgrade", "record", "segment", "checkpoint", "sidecar", "manifest"]
# What cargo-fuzz passes: coverage for libFuzzer, and AddressSanitizer for the modules with `unsafe`.
FLAGS = """-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address
    -Ccodegen-units=1 --cfg fuzzing"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--input", type=pathlib.Path)
    options = parser.parse_args()
    environment = {**os.environ, "RUSTFLAGS": " ".join(FLAGS.split()), "CARGO_TARGET_DIR": str(TARGET)}
    subprocess.run(["cargo", "+nightly", "build", "-q", "--release", "--target", TRIPLE, "--bins"], cwd=HERE, env=environment, check=True)
    failed = []
    for target in options.targets or TARGETS:
        program = TARGET / TRIPLE / "release" / target
        found, failures = TARGET / "corpus" / target, TARGET / "failures" / target
        found.mkdir(parents=True, exist_ok=True)
        failures.mkdir(parents=True, exist_ok=True)
        command = [program, options.input] if options.input else [
            program, found, HERE / "corpus" / target, f"-max_total_time={options.seconds}", "-max_len=4096", "-timeout=10",
            "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0", f"-artifact_prefix={failures}/",
        ]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        runs = [line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
        print(f"{target}: {'clean' if done.returncode == 0 else 'FAILED'}, {runs[0] if runs else '?'} inputs", flush=True)
        if done.returncode != 0:
            failed.append(target)
            print(done.stderr[-4000:])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
