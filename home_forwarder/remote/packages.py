# SPDX-License-Identifier: GPL-3.0-or-later
"""Sent to a VPS: install what is missing, with apt-get or dnf. Standard library of Python 3.9.

Standard input: {"packages": [{name, rpm, unless, service}], "patience": seconds, "services": the text
of services.py, if a package has one} as JSON. A package may lack all but its name; Package in
home_forwarder/plan.py says what they mean. Standard output, a line of JSON, one of
    {"installed": [name], "warnings": [text]}   all are there now
    {"waiting": text}   others use the package manager, and `patience` is over: ask again
    {"failed": text}    what is wrong, and what the package manager said

What counts is whether the packages are there in the end. Package lists that could not be brought up to
date (a repository that is gone, unsigned, or was renamed) are a warning; nothing is accepted for it.

It is part of user-data, where every byte counts.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from typing import Any

# For each: what brings its lists up to date, and what installs. Nobody is there to be asked: conffiles
# of the admin stay, and a repository that was renamed is not accepted.
APT = ["--no-install-recommends", "-oDpkg::Options::=--force-confold"]
QUIET = ["-q", "-y", "--setopt=exit_on_lock=1"]
DNF = [*QUIET, "--setopt=install_weak_deps=0", "--setopt=*.skip_if_unavailable=1"]
MANAGERS = {
    "apt-get": (["update", "-qq"], ["install", "-qq", "-y", *APT]),
    "dnf": (["makecache", *QUIET], ["install", *DNF]),
}
LOCKED = ("dnf", 200)  # with exit_on_lock; see dnf(8), Exit Status
LOCKS = {
    "/var/lib/dpkg/lock-frontend": "dpkg is",
    "/var/lib/dpkg/lock": "dpkg is",
    "/var/lib/apt/lists/lock": "apt's package lists are",
    "/var/cache/apt/archives/lock": "apt's downloads are",
    "/var/lib/rpm/.rpm.lock": "rpm is",
    "/run/dnf/rpmtransaction.lock": "dnf is",
}
FLOCK = "hhqqi0q"  # struct flock of fcntl(2)
SHOWN = 8  # lines of what a command said

Package = dict[str, str]


class Failed(Exception):
    pass


class Busy(Exception):
    """Somebody else uses the package manager."""


def run(*command: str) -> tuple[int, list[str]]:
    """Its exit status, and the lines that it printed. It has nobody to ask. Raises: Busy."""
    result = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        stdin=subprocess.DEVNULL,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
    )
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    for line in lines if result.returncode else ():
        # Somebody was faster: taken between our look at the locks and apt-get's own.
        if "Could not get lock" in line:
            raise Busy(line)
    if (command[0], result.returncode) == LOCKED:
        raise Busy("dnf is locked by another one")
    return result.returncode, lines


def read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def manager() -> str:
    return next(filter(shutil.which, MANAGERS), "")


def names(packages: list[Package]) -> list[str]:
    """What this system calls them."""
    rpm = manager() == "dnf"
    return [(rpm and package.get("rpm")) or package["name"] for package in packages]


def missing(packages: list[Package]) -> list[Package]:
    """Those that are not installed, and that nothing else does as well for."""
    if manager() == "apt-get":
        query = ["dpkg-query", "-W", "-f", "${Package}${db:Status-Status}\n"]
        mark = "installed"
    else:
        query, mark = ["rpm", "-q", "--qf", "%{NAME}\n"], ""
    there = run(*query, *names(packages))[1] if packages and shutil.which(query[0]) else []
    return [
        package
        for name, package in zip(names(packages), packages)
        if name + mark not in there and run("sh", "-c", package.get("unless") or "false")[0]
    ]


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


def install(job: dict[str, Any], packages: list[Package]) -> list[str]:
    """Returns: warnings. Raises: Failed, Busy."""
    tool = manager()
    if not tool:
        raise Failed(
            f"neither of {', '.join(MANAGERS)} is here to install {', '.join(names(packages))}"
        )
    for path, what in LOCKS.items():
        who = holder(path)
        if who:
            raise Busy(f"{what} locked by {who}")
    if glob.glob("/var/lib/dpkg/updates/[0-9]*"):  # it was cut off; apt-get would only say so
        run("dpkg", "--force-confold", "--configure", "-a")
    said = []
    for options in MANAGERS[tool]:
        if options[0] == "install":
            services(job, "hold", *(each["service"] for each in packages if each.get("service")))
            options = [*options, *names(packages)]
        status, lines = run(tool, *options)
        if status:
            title = f"{tool} {options[0]} ended with {status}:"
            said.append("\n    ".join([title, *lines[-SHOWN:]]))
    left = missing(packages)
    if left:
        raise Failed("\n".join([f"could not install {', '.join(names(left))}", *said[::-1]]))
    return said


def services(job: dict[str, Any], *arguments: str) -> None:
    """Raises: Failed."""
    if "services" in job:
        status, lines = run(sys.executable, "-IS", "-c", job["services"], *arguments)
        if status:
            raise Failed("\n".join(lines))


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """See above."""
    deadline = time.monotonic() + job["patience"]
    while True:
        packages = missing(job["packages"])
        try:
            warnings = install(job, packages) if packages else []
            services(job, "release")
            return {"installed": names(packages), "warnings": warnings}
        except Busy as busy:
            if time.monotonic() > deadline:
                return {"waiting": str(busy)}
        except Failed as failure:
            return {"failed": str(failure)}
        time.sleep(0.5)


def main() -> None:
    print(json.dumps(answer(json.load(sys.stdin))))


if __name__ == "__main__":
    main()
