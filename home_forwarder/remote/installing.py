# SPDX-License-Identifier: GPL-3.0-or-later
"""Part of programs that are sent to a VPS: install what is missing, with apt-get or dnf.

What counts is whether the packages are there in the end. Package lists that could not be brought up to
date (a repository that is gone, unsigned, or was renamed) are a warning; nothing is accepted for it.

Standard library of Python 3.9. It is part of user-data, where every byte counts.
"""

from __future__ import annotations

import glob
import os
import shutil
import sys

from home_forwarder.remote.installed import missing, names
from home_forwarder.remote.running import Failed, run

# For each: what brings its lists up to date, and what installs. Nobody is there to be asked: conffiles
# of the admin stay, and a repository that was renamed is not accepted.
# Neither waits for others who use it (apt-get would not say who, with DPkg::Lock::Timeout): try again.
APT = "--no-install-recommends -oDpkg::Options::=--force-confold"
DNF = "-q -y --setopt=exit_on_lock=1"
MANAGERS = {
    "apt-get": ("update -qq", f"install -qq -y {APT}"),
    "dnf": (
        f"makecache {DNF}",
        f"install {DNF} --setopt=install_weak_deps=0 --setopt=*.skip_if_unavailable=1",
    ),
}


def install(packages: list[dict[str, str]], services: str = "") -> tuple[list[str], list[str]]:
    """Make sure that packages are there.

    services: the text of services.py, if a package may have a service.
    Returns: the names of those that were missing, and warnings. Raises: Failed.
    """
    os.environ.update(DEBIAN_FRONTEND="noninteractive", LC_ALL="C.UTF-8")
    wanted = missing(packages)
    said: list[str] = []
    if wanted:
        tool = next(filter(shutil.which, MANAGERS), "")
        if not tool:
            raise Failed(
                f"neither of {', '.join(MANAGERS)} is here to install {', '.join(names(wanted))}"
            )
        if glob.glob("/var/lib/dpkg/updates/[0-9]*"):  # it was cut off; apt-get would only say so
            attempt(said, ["dpkg", "--force-confold", "--configure", "-a"])
        update, add = (options.split() for options in MANAGERS[tool])
        attempt(said, [tool, *update])
        tell(services, "hold", *(each["service"] for each in wanted if each.get("service")))
        attempt(said, [tool, *add, *names(wanted)])
        left = names(missing(wanted))
        if left:
            raise Failed("\n".join([f"could not install {', '.join(left)}", *said[::-1]]))
    tell(services, "release")
    return names(wanted), said


def attempt(said: list[str], command: list[str]) -> None:
    """What it says if it fails is added to what was said."""
    try:
        run(command, name=" ".join(command[:2]))
    except Failed as failure:
        said.append(str(failure))


def tell(services: str, *arguments: str) -> None:
    """Raises: Failed."""
    if services:
        run([sys.executable, "-IS", "-c", services, *arguments], name=f"{arguments[0]} services")
