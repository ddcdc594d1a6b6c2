#!/usr/bin/env python3
"""Runs a program under the system call filter of a systemd unit, without the systemd: `confine.py UNIT PROGRAM [FLAG …]`.

    unit ─► SystemCallFilter= lines ─► systemd-analyze: sets become names ─► libseccomp: everything else is EPERM ─► exec
            MemoryDenyWriteExecute= ─► PR_SET_MDWE

Mounts, namespaces and users of the unit are not made; capabilities are dropped by whoever calls this (`setpriv`).
"""

import ctypes
import ctypes.util
import os
import re
import subprocess
import sys

ALLOW, ERRNO_EPERM = 0x7FFF0000, 0x00050001
PR_SET_NO_NEW_PRIVS, PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 38, 65, 1


def names_of(word):
    """System calls of a set, or the one call that it is."""
    if not word.startswith("@"):
        return {word}
    said = subprocess.run(["systemd-analyze", "syscall-filter", "--no-pager", word], capture_output=True, text=True, check=True).stdout
    lines = [line.strip() for line in said.splitlines()[1:]]
    return set().union(*(names_of(line) for line in lines if line and not line.startswith("#")))


def allowed(unit):
    names = set()
    for value in re.findall(r"^SystemCallFilter=(.+)$", unit, re.MULTILINE):
        words = set().union(*(names_of(word) for word in value.removeprefix("~").split()))
        names = names - words if value.startswith("~") else names | words
    return names


def confine(unit):
    seccomp = ctypes.CDLL(ctypes.util.find_library("seccomp"), use_errno=True)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    libc = ctypes.CDLL(None, use_errno=True)
    names = allowed(unit)
    assert "io_uring_enter" in names and "bpf" not in names, "the unit's filter is not what this file takes it for"
    # Python itself needs nothing more from here on but to start the program.
    context = ctypes.c_void_p(seccomp.seccomp_init(ERRNO_EPERM))
    for name in sorted(names):
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:
            status = seccomp.seccomp_rule_add(context, ALLOW, number, 0)
            assert status == 0, (name, status)
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    if re.search(r"^MemoryDenyWriteExecute=yes$", unit, re.MULTILINE):
        libc.prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)  # before Linux 6.3: not there, and not tested
    status = seccomp.seccomp_load(context)
    assert status == 0, f"seccomp_load: {os.strerror(-status)}"


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        confine(file.read())
    os.execv(sys.argv[2], sys.argv[2:])
