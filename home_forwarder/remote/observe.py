# SPDX-License-Identifier: GPL-3.0-or-later
"""Sent to a VPS: print, as JSON, what the question asks of it. Changes nothing.

Standard library of Python 3.9. The argument is the question, as JSON: question() in
home_forwarder/planning.py makes it and says what its keys are for. With its ports and units alone, it
is about who listens there, and no more.
"""

from __future__ import annotations

import datetime
import glob
import grp
import hashlib
import json
import os
import pwd
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator

from home_forwarder.remote.installed import missing
from home_forwarder.remote.sockets import listeners, processes

MASK = "/dev/null"
LIST_UNITS = ("systemctl", "list-units", "--all", "--full", "--output=json")
STARTED = "ExecMainStartTimestamp"


def output(*command: str) -> str:
    """What a command prints; nothing if there is no such command."""
    try:
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
        )
    except FileNotFoundError:
        return ""
    return result.stdout.decode(errors="replace")


def read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def text_of(path: str) -> str:
    return read(path).decode(errors="replace")


def name_of(lookup: Callable[[int], tuple], number: int) -> str:  # type: ignore[type-arg]
    try:
        return str(lookup(number)[0])
    except KeyError:
        return str(number)


# ---- Times -----------------------------------------------------------------------------------


def time_of(text: str) -> float:
    """A time of `systemctl show --timestamp=us+utc`, in seconds since 1970; 0 if there is none."""
    try:
        parsed = datetime.datetime.strptime(text.partition(" ")[2], "%Y-%m-%d %H:%M:%S.%f UTC")
    except ValueError:
        return 0.0
    return parsed.replace(tzinfo=datetime.timezone.utc).timestamp()


def times(units: set[str]) -> tuple[float, dict[str, float]]:
    """When systemd read its files last, and when each unit started last: at the boot at the latest."""
    show = ("systemctl", "show", "--timestamp=us+utc")
    manager = "UnitsLoadStartTimestamp,UnitsLoadTimestamp,UserspaceTimestamp"
    properties = dict(
        line.partition("=")[::2] for line in output(*show, "--property=" + manager).splitlines()
    )
    loaded = max(time_of(properties.get(name, "")) for name in manager.split(",")[:2])
    booted = time_of(properties.get("UserspaceTimestamp", ""))
    started = {}
    for unit in sorted(units):
        said = output(*show, "--property=" + STARTED, "--value", unit)
        started[unit] = max(booted, time_of(said.strip()))
    return loaded, started


# ---- Files and units -------------------------------------------------------------------------


def paths(places: list[list[str]], unfinished: str) -> Iterator[str]:
    """Paths that are ours: below each directory, and one deeper where the expression has a slash."""
    for directory, expression in places:
        pattern = re.compile(f"({expression})({re.escape(unfinished)})?")
        for name in listed(directory):
            below = [name]
            if "/" in expression and os.path.isdir(f"{directory}/{name}"):
                below += [f"{name}/{each}" for each in listed(f"{directory}/{name}")]
            for path in below:
                if pattern.fullmatch(path):
                    yield f"{directory}/{path}"


def listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def files(question: dict, loaded: float, started: dict[str, float]) -> dict[str, dict]:  # type: ignore[type-arg]
    """Files and links; "unread" are those that changed since their reader read them."""
    found = {}
    for path in paths(question["files"], question["unfinished"]):
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            continue
        entry: dict[str, object] = {
            "mode": format(stat.S_IMODE(status.st_mode), "o"),
            "owner": name_of(pwd.getpwuid, status.st_uid),
            "group": name_of(grp.getgrgid, status.st_gid),
        }
        if stat.S_ISLNK(status.st_mode):
            entry["target"] = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            entry["sha256"] = hashlib.sha256(read(path)).hexdigest()
        reader = question["readers"].get(path)
        last_read = loaded if path.startswith(question["units_directory"] + "/") else None
        if reader:
            last_read = started[reader]
        if last_read is not None and status.st_ctime > last_read:
            entry["unread"] = True
        found[path] = entry
    return found


def deleted_since(loaded: float, directories: list[str]) -> bool:
    """Were files of units deleted (or written) that systemd may still know?"""
    there = (path for place in directories for path in glob.glob(place))
    return any(os.stat(path).st_ctime > loaded for path in there)


def masked(directory: str, names: str) -> list[str]:
    """Names of units that the admin has masked, for ever or until the next boot."""
    there = [*glob.glob(f"{directory}/{names}"), *glob.glob(f"/run/systemd/system/{names}")]
    links = (path for path in there if os.path.islink(path) and os.readlink(path) == MASK)
    return sorted({os.path.basename(path) for path in links})


def units(question: dict, owners: dict[str, str]) -> dict[str, dict]:  # type: ignore[type-arg]
    """Units that systemd knows; `systemctl show` would take seconds for those of 100 forwards."""
    first = {}
    for pid, unit in owners.items():
        if unit and unit not in first and read(f"/proc/{pid}/environ"):
            first[unit] = pid
    found = {}
    for each in json.loads(output(*LIST_UNITS, question["unit_glob"]) or "[]"):
        name = each["unit"]
        if re.fullmatch(question["units"], name):
            found[name] = {
                "load": each["load"],
                "active": each["active"],
                "sub": each["sub"],
                "runs": name in first,
                "environment": environment(name, first.get(name), *question["environment"]),
            }
    return found


def environment(unit: str, pid: str | None, pattern: str, keys: list[str]) -> dict[str, str]:
    """The settings asked for, of those that a unit's first process runs with."""
    match = re.fullmatch(pattern, unit)
    if not (match and pid):
        return {}
    wanted = {key.format(*match.groups()): key for key in keys}
    there = dict(each.partition("=")[::2] for each in text_of(f"/proc/{pid}/environ").split("\0"))
    return {wanted[key]: there[key] for key in wanted if key in there}


# ---- The rest --------------------------------------------------------------------------------


def basis_of(*what: object) -> str:
    """What tells whether a VPS is still as it was when somebody decided what to do there: a word each."""
    return " ".join(
        hashlib.sha256(json.dumps(each, sort_keys=True).encode()).hexdigest() for each in what
    )


def owners_of(question: dict) -> dict[str, str]:  # type: ignore[type-arg]
    """Every process with its service, those of ours first."""
    ours = re.compile(question["units"])
    return dict(sorted(processes().items(), key=lambda each: not ours.fullmatch(each[1])))


def main() -> None:
    question = json.loads(sys.argv[1])
    if "files" not in question:
        print(json.dumps({"listeners": listeners(question["ports"], owners_of(question))}))
        return
    loaded, started = times(set(question["readers"].values()))
    owners = owners_of(question)
    where, address = question["addresses"]
    lacking = missing(question["packages"])
    files_there, units_there = files(question, loaded, started), units(question, owners)
    print(
        json.dumps(
            {
                "basis": basis_of(files_there, units_there),
                "files": files_there,
                "deleted_since_load": deleted_since(loaded, question["directories"]),
                "masked": masked(question["units_directory"], question["unit_glob"]),
                "units": units_there,
                "listeners": listeners(question["ports"], owners),
                "packages": [each["name"] for each in question["packages"] if each not in lacking],
                "addresses": dict(re.findall(address, text_of(where))),
                "texts": {path: text_of(path) for path in question["texts"]},
                "own_addresses": [
                    line.split()[0] for line in text_of("/proc/net/if_inet6").splitlines()
                ],
                "python": list(sys.version_info[:2]),
                "systemd": os.path.isdir("/run/systemd/system"),
                "root": os.geteuid() == 0,
                "manager": [each for each in ("apt-get", "dnf") if glob.glob(f"/usr/bin/{each}")],
            }
        )
    )


if __name__ == "__main__":
    main()
