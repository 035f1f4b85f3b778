# SPDX-License-Identifier: GPL-3.0-or-later
"""Part of programs that are sent to a VPS: which packages are missing. Standard library.

A package is {name, rpm, unless, service}, and may lack all but its name; Package in
home_forwarder/plan.py says what they mean. It is part of user-data, where every byte
counts, and of observe.py, which Python 3.7 has to understand.
"""

from __future__ import annotations

import shutil
import subprocess


def names(packages: list[dict[str, str]]) -> list[str]:
    """What this system calls them."""
    if shutil.which("apt-get"):
        return [package["name"] for package in packages]
    return [package.get("rpm") or package["name"] for package in packages]


def missing(packages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Those that are not installed, and that nothing else does as well for."""
    query, mark = "rpm -q --qf '%{NAME}\\n' ", ""
    if shutil.which("apt-get"):  # on Fedora, dpkg may be installed as any program
        query, mark = "dpkg-query -W -f '${Package}${db:Status-Status}\\n' ", "installed"
    said = subprocess.getoutput(query + " ".join(names(packages)))  # noqa: S605 - our own words
    return [
        package
        for name, package in zip(names(packages), packages)
        if name + mark not in said.splitlines()
        and subprocess.getstatusoutput(package.get("unless") or "false")[0]  # noqa: S605 - as well
    ]
