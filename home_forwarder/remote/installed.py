# SPDX-License-Identifier: GPL-3.0-or-later
"""Part of programs that are sent to a VPS: which packages are missing. Standard library of Python 3.9.

A package is {name, rpm, unless, service}, and may lack all but its name; Package in
home_forwarder/plan.py says what they mean. It is part of user-data, where every byte counts.
"""

from __future__ import annotations

import shutil
import subprocess

Package = dict[str, str]


def names(packages: list[Package]) -> list[str]:
    """What this system calls them."""
    if shutil.which("apt-get"):
        return [package["name"] for package in packages]
    return [package.get("rpm") or package["name"] for package in packages]


def missing(packages: list[Package]) -> list[Package]:
    """Those that are not installed, and that nothing else does as well for."""
    query, mark = "rpm -q --qf '%{NAME}\\n' ", ""
    if shutil.which("apt-get"):  # on Fedora, dpkg may be installed as any program
        query, mark = "dpkg-query -W -f '${Package}${db:Status-Status}\\n' ", "installed"
    there = shell(query + " ".join(names(packages)))[1].splitlines()
    return [
        package
        for name, package in zip(names(packages), packages)
        if name + mark not in there and shell(package.get("unless") or "false")[0]
    ]


def shell(command: str) -> tuple[int, str]:
    """Status and standard output."""
    result = subprocess.run(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
    )
    return result.returncode, result.stdout
