# SPDX-License-Identifier: GPL-3.0-or-later
"""What one VPS must look like, and what to look at there: the parts, added up.

`make_plan` is pure. A deploy makes a VPS match a plan, user-data brings one that does, tests/verify
checks that one does.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from home_forwarder.compare import ADDRESS, PER_CLIENT, PROGRAM, REVISION
from home_forwarder.config import Config
from home_forwarder.parts import addresses, forwards, notify
from home_forwarder.plan import CONF, UNITS, File, Link, Ours, Part, Plan
from home_forwarder.render import render

UNFINISHED = ".home-forwarder-new"
"""Ends the name of a file that a deploy is just writing; it is renamed when all are written."""
ADDRESSES = ("/etc/home-address-ipv6", r"(?m)^HOME_IPV6_ADDRESS_(\d+)=(\S+)$")
"""Where the known addresses are, and an expression that finds INDEX and address."""

PARTS = (addresses.OURS, forwards.OURS, notify.OURS)
OURS = Ours(
    units=tuple(chain.from_iterable(part.units for part in PARTS)),
    drop_ins=tuple(chain.from_iterable(part.drop_ins for part in PARTS)),
    files=(
        *chain.from_iterable(part.files for part in PARTS),
        ("/etc", r"home-forwarder\.conf"),
    ),
)
_UNIT = "|".join(OURS.units)
_DROP_IN = "|".join(OURS.drop_ins)
OWNED_UNITS = rf"({_UNIT})"
"""Whole names of units that are ours: one that is not declared is stopped and disabled."""
OWNED_FILES: tuple[tuple[str, str], ...] = (
    (UNITS, rf"([^/]*\.wants/)?({_UNIT})|({_UNIT})\.d/({_DROP_IN})"),
    *OURS.files,
)
"""What is ours: a directory, and a regular expression of whole paths below it. What is not declared
is deleted. An admin's own drop-ins are not ours."""


def make_plan(config: Config) -> Plan:
    """The plan for a VPS with this data."""
    parts = (
        addresses.addresses_part(config.numbered, config.check_interval, config.unresolved_after),
        forwards.forwards_part(config.forwards, config.index_of),
        notify.notify_part(config.notify),
    )
    files = (_conf(parts), *chain.from_iterable(part.files for part in parts))
    paths = {file.path for file in files}
    enabled = tuple(chain.from_iterable(part.enabled for part in parts))
    return Plan(
        packages=tuple(dict.fromkeys(chain.from_iterable(part.packages for part in parts))),
        files=files,
        links=(
            *chain.from_iterable(part.links for part in parts),
            *(
                Link(f"{UNITS}/{wanting}.wants/{unit}", _file_of(unit, paths))
                for unit, wanted_by in enabled
                for wanting in wanted_by
            ),
        ),
        running=tuple(unit for unit, _ in enabled),
        relays=tuple(chain.from_iterable(part.relays for part in parts)),
        triggered=tuple(chain.from_iterable(part.triggered for part in parts)),
        listens=tuple(chain.from_iterable(part.listens for part in parts)),
        homes={index: home.hostname for index, home in config.numbered.items()},
    )


def question(plan: Plan) -> dict[str, object]:
    """What home_forwarder/remote/observe.py is to look at; by itself it knows of nothing of ours."""
    return {
        "files": OWNED_FILES,
        "unfinished": UNFINISHED,
        "units_directory": UNITS,
        # What was deleted there is seen by the directories' times.
        "directories": [UNITS, f"{UNITS}/home-*.wants", f"{UNITS}/home-*.d"],
        "units": OWNED_UNITS,
        "unit_glob": "home-*",
        # With what a relay runs, and where it leads: {0} is the INDEX of its home.
        "environment": [
            r"home-(?:tcp|udp)forwarder-[^@]*@(\d+):.*\.service",
            [REVISION, ADDRESS, PROGRAM, PER_CLIENT],
        ],
        "readers": {file.path: file.reader for file in plan.files if file.reader},
        "packages": [package.job for package in plan.packages],
        "ports": [
            [listen.protocol, listen.ports.first, listen.ports.last] for listen in plan.listens
        ],
        "addresses": [*ADDRESSES],
        "texts": [CONF],
    }


def _conf(parts: Iterable[Part]) -> File:
    settings = [line for part in parts for line in part.settings]
    text = render("etc/home-forwarder.conf.j2", settings=settings)
    return File(CONF, text, reader=addresses.UPDATER)


def _file_of(unit: str, paths: set[str]) -> str:
    """The file that a unit comes from: its own, or that of its template."""
    own = f"{UNITS}/{unit}"
    if own in paths:
        return own
    name, _, suffix = unit.rpartition(".")
    return f"{UNITS}/{name.partition('@')[0]}@.{suffix}"
