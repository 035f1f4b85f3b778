# SPDX-License-Identifier: GPL-3.0-or-later
"""What the unit tests share: sample data, and a VPS that matches a plan."""

from __future__ import annotations

import hashlib
import itertools
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from home_forwarder.compare import ADDRESS as ADDRESS_KEY
from home_forwarder.compare import PER_CLIENT, PROGRAM, REVISION, Observed, SeenFile, SeenUnit
from home_forwarder.config import load_config
from home_forwarder.mistakes import DataError
from home_forwarder.plan import CONF, UNITS, File, Link, Plan
from home_forwarder.planning import OWNED_FILES, make_plan

REPO = Path(__file__).resolve().parents[2]
UPDATER = "/usr/local/bin/home-address-update"
NOTIFY = "/usr/local/lib/home-forwarder/notify"
RELAY = "/usr/local/lib/home-forwarder/relay"
ADDRESS = "2001:db8::1"
EACH = [*itertools.product(("tcp", "udp"), ("46", "4", "6"))]
"""Protocol and `listen` of each kind of relay."""

FRITZBOX = {"name": "fritzbox", "hostname": "xxx.myfritz.net", "description": "Fritz!Box at home"}
NAS = {"name": "nas", "hostname": "somedyndns.address.test", "description": "Home server"}
TCP = {"home": "fritzbox", "protocol": "tcp", "port": 44444}
UDP = {"home": "nas", "protocol": "udp", "port": 33333}

Data = dict[str, Any]

FULL: Data = {
    "homes": [FRITZBOX, {**NAS, "allow_private": True}],
    "forwards": [
        TCP,
        {**UDP, "port": "33333-33334", "target_port": 51820, "idle_timeout": 60},
        {**TCP, "port": 80, "listen": "4"},
        {**TCP, "port": 80, "listen": "6", "home": "nas"},
        {**TCP, "port": 443, "listen": "4"},
        {**TCP, "port": 443, "listen": "6", "target_port": 8443},
        {**TCP, "port": 25, "home": "nas", "max_connections": 10},
    ],
    "notify": {"mail_to": "root"},
}
"""Every kind of forward that there is."""


def program(path: str) -> list[str]:
    """The start of a command line: the program that belongs at `path` on a VPS, as it runs there."""
    return [sys.executable, "-IS", "-B", str(REPO / "vps" / path.lstrip("/"))]


def data(**changes: object) -> Data:
    """Valid data of one VPS, with some keys changed."""
    return {"homes": [FRITZBOX, NAS], "forwards": [TCP, UDP], **changes}


def plan_of(**changes: object) -> Plan:
    """The plan of data(**changes)."""
    return make_plan(load_config(data(**changes)))


def file_of(plan: Plan, path: str) -> str:
    """The content of one file of a plan; `path` may leave the directory of the units out."""
    full = path if path.startswith("/") else f"{UNITS}/{path}"
    return next(file.content for file in plan.files if file.path == full)


def keys(text: str) -> dict[str, list[str]]:
    """The settings of a unit file, without comments."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def is_ours(path: str) -> bool:
    """Would a deploy delete it, if it were not declared?"""
    return any(
        path.startswith(f"{directory}/")
        and re.fullmatch(expression, path.removeprefix(f"{directory}/"))
        for directory, expression in OWNED_FILES
    )


# ---- A VPS -----------------------------------------------------------------------------------


def matching(plan: Plan) -> Observed:
    """A VPS that is as its plan says, with the address of every home known."""
    addresses = {str(relay.home): f"2001:db8::{relay.home + 1}" for relay in plan.relays}
    units = {
        **dict.fromkeys(plan.running, SeenUnit("loaded", "active", "running")),
        **dict.fromkeys(plan.triggered, SeenUnit("loaded", "inactive", "dead")),
    }
    for relay in plan.relays:
        environment = {REVISION: relay.revision, ADDRESS_KEY: addresses[str(relay.home)]}
        if relay.program != "socat":
            environment[PROGRAM] = relay.program
        if relay.per_client:
            environment[PER_CLIENT] = str(relay.per_client)
        units[relay.unit] = SeenUnit("loaded", "active", "running", True, environment)
    return Observed(
        files={entry.path: _seen(entry) for entry in plan.entries},
        units=units,
        packages=tuple(package.name for package in plan.packages),
        addresses=addresses,
        texts={file.path: file.content for file in plan.files if file.path == CONF},
        python=(3, 11),
    )


def _seen(entry: File | Link) -> SeenFile:
    if isinstance(entry, Link):
        return SeenFile("777", "root", "root", target=entry.target)
    digest = hashlib.sha256(entry.content.encode()).hexdigest()
    return SeenFile(entry.mode, entry.owner, entry.group, sha256=digest)


def with_unit(seen: Observed, name: str, **properties: Any) -> Observed:
    """The VPS with some properties of a unit changed, or with one more unit."""
    base = seen.units.get(name) or SeenUnit("loaded", "inactive", "dead")
    return replace(seen, units={**seen.units, name: replace(base, **properties)})


def with_file(seen: Observed, path: str, **properties: Any) -> Observed:
    """The VPS with some properties of a file changed, or with one more file."""
    base = seen.files.get(path) or SeenFile("644", "root", "root")
    return replace(seen, files={**seen.files, path: replace(base, **properties)})


# ---- Mistakes --------------------------------------------------------------------------------


class Mistake(NamedTuple):
    """One mistake: how the message starts (the key path), what was written, what would be right."""

    name: str
    changes: Data
    where: str
    written: str
    right: str


def top(name: str, key: str, value: object, right: str) -> Mistake:
    """A wrong value of a top-level key."""
    return Mistake(name, {key: value}, f"{key}: ", repr(value), right)


def complaint(mistake: Mistake, line: str) -> bool:
    """Does the line say where, what was written and what would be right?"""
    return line.startswith(mistake.where) and mistake.written in line and mistake.right in line


def check_mistake(mistake: Mistake) -> None:
    """Promise 11: exactly one line, which begins with the key."""
    with pytest.raises(DataError) as error:
        load_config(data(**mistake.changes))
    assert len(error.value.mistakes) == 1, error.value.mistakes
    (line,) = error.value.mistakes
    assert complaint(mistake, line), line
    assert line.isprintable()


def without(entry: Data, key: str) -> Data:
    """A dict without one of its keys."""
    return {each: value for each, value in entry.items() if each != key}


def as_sh_reads_it(text: str, names: list[str], directory: Path) -> list[str]:
    """The values that a POSIX shell has after sourcing the file."""
    path = directory / "conf"
    path.write_text(text, encoding="utf-8")
    script = '. "$0"; ' + "; ".join(f"printf '%s\\0' \"${name}\"" for name in names)
    done = subprocess.run(
        ["/bin/sh", "-euc", script, str(path)],
        env={"LC_ALL": "C.UTF-8", "PATH": "/nonexistent"},
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    return done.stdout.decode().split("\0")[:-1]
