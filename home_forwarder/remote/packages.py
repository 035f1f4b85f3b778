# SPDX-License-Identifier: GPL-3.0-or-later
"""Sent to a VPS: install what is missing, with apt-get or dnf. Standard library of Python 3.9.

Standard input: {"packages": as installed.py has them, "patience": seconds, "services": the text of
services.py, if a package has one} as JSON. Standard output, a line of JSON, one of
    {"installed": [name], "warnings": [text]}   all are there now
    {"waiting": text}   others use the package manager, and `patience` is over: ask again
    {"failed": text}    what is wrong, and what the package manager said
"""

from __future__ import annotations

import fcntl
import json
import re
import struct
import sys
import time
from typing import Any

from home_forwarder.remote.installed import missing
from home_forwarder.remote.installing import install
from home_forwarder.remote.running import Failed

# Somebody was faster: taken between our look at the locks and their own. For dnf, with exit_on_lock, see
# dnf(8), Exit Status.
BUSY = re.compile(r"(E: Could not get lock .*)|dnf \w+ ended with 200:")
LOCKS = {
    "/var/lib/dpkg/lock-frontend": "dpkg is",
    "/var/lib/dpkg/lock": "dpkg is",
    "/var/lib/apt/lists/lock": "apt's package lists are",
    "/var/cache/apt/archives/lock": "apt's downloads are",
    "/var/lib/rpm/.rpm.lock": "rpm is",
    "/run/dnf/rpmtransaction.lock": "dnf is",
}
FLOCK = "hhqqi0q"  # struct flock of fcntl(2)


def read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def holder(path: str) -> str:
    """Who has locked the file, "" if nobody has. The kernel is asked, with F_GETLK of fcntl(2)."""
    try:
        with open(path, "rb") as file:
            lock = struct.pack(FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0)
            kind, *_, pid = struct.unpack(FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, lock))
    except OSError:
        return ""
    if kind == fcntl.F_UNLCK:
        return ""
    unit = re.search(r":/system\.slice/(?:.*/)?([^/\n]+\.service)", read(f"/proc/{pid}/cgroup"))
    name = read(f"/proc/{pid}/comm").strip() or "another program"
    return f"{name} (pid {pid}, {unit[1]})" if unit else f"{name} (pid {pid})"


def busy() -> str:
    """Who uses the package manager, "" if nobody does."""
    for path, what in LOCKS.items():
        who = holder(path)
        if who:
            return f"{what} locked by {who}"
    return ""


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """See above."""
    packages, services = job["packages"], job.get("services", "")
    deadline = time.monotonic() + job["patience"]
    while True:
        waiting = busy() if missing(packages) else ""
        if not waiting:
            try:
                installed, warnings = install(packages, services)
                return {"installed": installed, "warnings": warnings}
            except Failed as failure:
                found = BUSY.search(str(failure))
                if not found:
                    return {"failed": str(failure)}
                waiting = found[1] or "dnf is locked by another one"
        if time.monotonic() > deadline:
            return {"waiting": waiting}
        time.sleep(0.5)


def main() -> None:
    print(json.dumps(answer(json.load(sys.stdin))))


if __name__ == "__main__":
    main()
