#!/usr/bin/env python3
"""Is the alarm alive? Applies known bugs to a copy of the tree, one by one; each must be found within a minute of running.

    tools/canary/run.py                 all patches of this folder
    tools/canary/run.py NAME …          those whose name contains one of these

A patch begins with two lines: `Canary:` says what is broken, `Test:` names what must notice it, all of them:

    sim      the simulator              crash    kills and power cuts over the real binary
    loom     the mailbox under loom         takeover one process takes the place of another, over and over
    members  a group whose members and server are killed
    lives, journal, groups    clients that come back, that come and go, that share sessions, told step by step: for what
             chance meets too seldom

Builds go to a target folder of their own, so that only the crates that a patch changes compile again. First the tree runs as it
is: what fails without a bug proves nothing with one. Exit status 0 only if every canary was caught.
"""

import argparse
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "canary"
TREE = TARGET / "tree"
RUN_S = 60
BASE_S = 15
# Tests that drive the binary from outside; they need Python's websockets, which tools/check installs.
BLACKBOX = {"takeover": "tests/blackbox/takeover.py", "members": "tests/blackbox/groups.py"}
VENV_PYTHON = TARGET.parent / "check" / "venv" / "bin" / "python"
# Tests of the package `shards`: the same each time, so that one run says it.
OF_THE_CORE = {"loom": "mailbox_loom", "lives": "lives", "journal": "journal", "groups": "groups"}
# Rounds of one life of the crash test.
ROUNDS = 12


class Stale(Exception):
    """The patch does not fit the tree any more: a canary that cannot fly is no canary."""


def copy_tree():
    """The tree as the editor has it, less what git ignores; unchanged files keep their times, or all would compile again."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True)
    names = {name for name in os.fsdecode(listed.stdout).split("\0") if name and (ROOT / name).is_file()}
    for name in names:
        source, copy = ROOT / name, TREE / name
        if not copy.exists() or copy.read_bytes() != source.read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
            shutil.copymode(source, copy)
    for copy in [path for path in TREE.rglob("*") if path.is_file()]:
        if str(copy.relative_to(TREE)) not in names:
            copy.unlink()


def touched(patch):
    """Files of the tree that a patch changes, with their bytes now: an editor at work meanwhile must not change the tree."""
    names = [line.split()[1].removeprefix("b/") for line in patch.read_text().splitlines() if line.startswith("+++ ")]
    return {TREE / name: (TREE / name).read_bytes() for name in names if (TREE / name).is_file()}


def apply(patch):
    command = ["patch", "-p1", "--forward", "--no-backup-if-mismatch", "--reject-file=-", "-s", "-i", patch]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True)
    if done.returncode != 0:
        raise Stale(done.stdout.strip() or done.stderr.strip())


def build(tests):
    """Name of each test to its program."""
    programs = {}
    # A canary changes a function or two, and compiling takes longer than finding it.
    quick = {"CARGO_INCREMENTAL": "1", "CARGO_PROFILE_SIM_OPT_LEVEL": "1", "CARGO_PROFILE_SIM_DEBUG": "0"}
    environment = {**os.environ, **quick, "CARGO_TARGET_DIR": str(TARGET)}
    outside = [name for name in tests if name in BLACKBOX]
    core = [OF_THE_CORE[name] for name in tests if name in OF_THE_CORE]
    inside = [name for name in tests if name not in OF_THE_CORE and name not in BLACKBOX]
    for package, names in [("tidegate", inside), ("shards", core), ("tidegate", ["tidegate"] * bool(outside))]:
        if not names:
            continue
        command = ["cargo", "build" if names == ["tidegate"] else "test", "--locked", "-q", "--profile", "sim", "--message-format=json", "-p", package]
        command += ["--features", "power-cut,stall"] * (package == "tidegate")
        if names == ["tidegate"]:
            command += ["--bin", "tidegate"]
        else:
            command += ["--no-run", *itertools.chain.from_iterable(["--test", name] for name in names)]
        # Many small units: a changed function compiles one of them again, not a quarter of its crate.
        command += list(itertools.chain.from_iterable(["--config", f"profile.sim.package.{crate}.codegen-units=64"] for crate in ("storage", "shards", "tidegate")))
        done = subprocess.run(command, cwd=TREE, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise Stale(f"does not compile: {done.stderr.strip()[-2000:]}")
        for line in done.stdout.splitlines():
            message = json.loads(line)
            if message.get("executable") and message["target"]["name"] in names:
                programs[message["target"]["name"].replace("mailbox_", "")] = message["executable"]
    binary = programs.pop("tidegate", None)
    return programs | {name: binary for name in outside}


def calls(test, folder):
    """Arguments of one call after another, and what a line holds that tells of a find."""
    for n in itertools.count(1):
        if test == "sim":
            yield ["--seeds", "1000000", "--from", str(n)], " failed: "
        elif test == "crash":
            yield ["--rounds", str(ROUNDS), "--seed", str(n), "--folder", os.path.join(folder, str(n))], "crash: rounds of "
        elif test in BLACKBOX:
            yield [], "Error: "
        else:
            yield [], "panicked"


def hunt(test, program, seconds):
    """Runs a test again and again; what it said when it failed, or None, and how long that took."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tidegate-canary-") as folder:
        for arguments, telling in calls(test, folder):
            command, environment = [program, *arguments], None
            if test in BLACKBOX:
                python = VENV_PYTHON if VENV_PYTHON.exists() else sys.executable
                command, environment = [python, BLACKBOX[test]], {**os.environ, "TIDEGATE_BIN": program}
            process = subprocess.Popen(command, cwd=TREE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
            alarm = threading.Timer(max(0.1, began + seconds - time.monotonic()), stop, [process])
            alarm.start()
            said, found = "no word", None
            for line in process.stdout:
                said = line
                if telling in line:
                    found = line
                    stop(process)
            status = process.wait()
            alarm.cancel()
            took = time.monotonic() - began
            # A test that ended by itself, and not well, has found something too.
            if found or status not in (0, -signal.SIGKILL):
                return (found or said).strip()[:200], took
            if test in OF_THE_CORE or test in BLACKBOX or took >= seconds:
                return None, took


def stop(process):
    """Ends a test with all the servers that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only patches whose name contains one of these")
    parser.add_argument("--no-base", action="store_true", help="do not run the tree as it is first")
    options = parser.parse_args()
    patches = [patch for patch in sorted(HERE.glob("*.patch")) if not options.names or any(name in patch.stem for name in options.names)]
    if not patches:
        sys.exit("no such canary")

    TREE.mkdir(parents=True, exist_ok=True)
    copy_tree()
    needed = sorted({test for patch in patches for test in tests_of(patch)})
    if not options.no_base:
        for test, program in build(needed).items():
            found, took = hunt(test, program, BASE_S)
            if found:
                sys.exit(f"{test} fails without a canary, so it proves nothing: {found}")
            print(f"as it is: {test} ran {took:.0f} s clean", flush=True)

    missed = []
    results = {patch.stem: [] for patch in patches}
    began_all, running = time.monotonic(), 0.0
    for patch in patches:
        tests = tests_of(patch)
        before = touched(patch)
        try:
            apply(patch)
            began = time.monotonic()
            programs = build(tests)
            built = time.monotonic() - began
            for test in tests:
                found, took = hunt(test, programs[test], RUN_S)
                running += took
                results[patch.stem].append((test, found, took))
                print(f"{'caught' if found else 'MISSED'}  {patch.stem} by {test} in {took:.1f} s (built in {built:.0f} s){': ' + found if found else ''}", flush=True)
                if not found:
                    missed.append(f"{patch.stem} by {test}")
        except Stale as why:
            print(f"STALE   {patch.stem}: {why}", flush=True)
            missed.append(patch.stem)
        finally:
            for path, held in before.items():
                path.write_bytes(held)
    width = max(len(patch.stem) for patch in patches)
    print(f"\n{'canary':{width}}  {'module':34}  caught by, after seconds of running")
    for patch in patches:
        module = ", ".join(path.removeprefix("+++ b/") for path in patch.read_text().splitlines() if path.startswith("+++ "))
        by = ", ".join(f"{test} {took:.1f}" if found else f"NOT {test}" for test, found, took in results[patch.stem])
        print(f"{patch.stem:{width}}  {module:34}  {by or 'STALE'}")
    built, ran = time.monotonic() - began_all - running, running
    print(f"{len(patches)} canaries, {len(missed)} missed{': ' + ', '.join(missed) if missed else ''}; {ran:.0f} s of running, {built:.0f} s of building")
    return 1 if missed else 0


def tests_of(patch):
    for line in patch.read_text().splitlines():
        if line.startswith("Test: "):
            return [test.strip() for test in line.removeprefix("Test: ").split(",")]
    sys.exit(f"{patch.name} does not say which test must notice it")


if __name__ == "__main__":
    sys.exit(main())
