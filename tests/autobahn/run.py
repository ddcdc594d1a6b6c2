#!/usr/bin/env python3
"""Autobahn's fuzzing client, sections 1–7, 9 and 10, against the echo door; results must equal those in the tree.

    serve --echo ─► ws://…/echo ◄─ wstest -m fuzzingclient ─► reports/index.json ═ expected.json ?

The suite (PyPI `autobahntestsuite` 25.10.1) runs on Python 2.7 only. Where there is none this says `skipped` and ends well.
`--accept` writes expected.json from what was seen.
"""

import collections
import glob
import json
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "blackbox"))

from tide import Server  # noqa: E402

SUITE = "autobahntestsuite==25.10.1"
PASSED = {"OK", "NON-STRICT", "INFORMATIONAL"}
# Big messages of section 9 go up to 16 MiB; the echo door has its own bound.
TIMEOUT_S = 400


def python2():
    """A Python 2.7: $PY2, the path, or pyenv's."""
    candidates = [os.environ.get("PY2"), shutil.which("python2.7"), *glob.glob(str(pathlib.Path.home() / ".pyenv/versions/2.7.*/bin/python"))]
    for path in candidates:
        # A shim of pyenv is there for every version and runs only the chosen one.
        if path and subprocess.run([path, "-c", "import sys; sys.exit(sys.version_info[:2] != (2, 7))"], capture_output=True).returncode == 0:
            return path
    return None


def main():
    python = python2()
    if python is None:
        print("skipped: no Python 2.7 on this machine (set PY2 to one)")
        return 0
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "check"
    suite = target / "autobahn-suite"
    if not (suite / "autobahntestsuite").exists():
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(suite), SUITE], check=True, timeout=300)
    # A namespace package, which --target does not set up.
    (suite / "zope" / "__init__.py").touch()
    out = target / "autobahn"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)

    with Server("--echo", shards=1) as server:
        spec = json.loads((HERE / "fuzzingclient.json").read_text())
        spec["servers"][0]["url"] = f"ws://127.0.0.1:{server.port}/echo"
        (out / "spec.json").write_text(json.dumps(spec))
        start = 'import sys; sys.argv[0]="wstest"; from autobahntestsuite.wstest import run; run()'
        with open(out / "wstest.log", "w") as log:
            done = subprocess.run(
                [python, "-W", "ignore", "-c", start, "-m", "fuzzingclient", "-s", "spec.json"],
                cwd=out,
                env={**os.environ, "PYTHONPATH": str(suite)},
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT_S,
            )
        if done.returncode != 0:
            sys.exit((out / "wstest.log").read_text()[-3000:])
        if not server.alive():
            sys.exit(f"the server died: {server.tail()}")

    cases = json.loads((out / "reports" / "index.json").read_text())["tidegate"]
    order = sorted(cases, key=lambda case: [int(part) for part in case.split(".")])
    seen = {case: f"{cases[case]['behavior']} / {cases[case]['behaviorClose']}" for case in order}
    expected_path = HERE / "expected.json"
    if "--accept" in sys.argv:
        expected_path.write_text(json.dumps(seen, indent=1) + "\n")
    expected = json.loads(expected_path.read_text())
    failed = [case for case in order if cases[case]["behavior"] not in PASSED or cases[case]["behaviorClose"] not in PASSED]
    changed = [case for case in sorted({*seen, *expected}) if seen.get(case) != expected.get(case)]
    print(f"{len(seen)} cases: {dict(collections.Counter(case['behavior'] for case in cases.values()))}")
    for case in changed:
        print(f"case {case}: expected {expected.get(case)}, got {seen.get(case)}")
    for case in failed:
        print(f"case {case} failed: {seen[case]}")
    return 1 if failed or changed else 0


if __name__ == "__main__":
    sys.exit(main())
