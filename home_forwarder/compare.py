# SPDX-License-Identifier: GPL-3.0-or-later
"""How a VPS as it is differs from its plan, and so what a deploy has to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from home_forwarder.plan import UNITS, File, Link, Listen, Plan, Relay

REVISION = "FORWARD_REVISION"
ADDRESS = "HOME_IPV6_ADDRESS_{0}"
PROGRAM = "FORWARD_RELAY"
PER_CLIENT = "FORWARD_MAX_PER_CLIENT"
"""Keys of a relay's environment, as question() in home_forwarder/planning.py asks for them."""


@dataclass(frozen=True)
class SeenFile:
    """A file, link, or something else (neither digest nor target) that is there."""

    mode: str
    owner: str
    group: str
    sha256: str | None = None
    target: str | None = None
    unread: bool = False
    """Its reader (systemd, for a unit) has not read it since it changed."""


@dataclass(frozen=True)
class SeenUnit:
    """A unit that systemd knows; the first three as systemctl calls them."""

    load: str
    active: str
    sub: str
    runs: bool = False
    """It has a process."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Of a relay's process: REVISION, ADDRESS, PROGRAM, which socat does without, and PER_CLIENT."""


@dataclass(frozen=True)
class Listener:
    """Who listens on a port of the plan: address is "*" for both families at once."""

    protocol: str
    address: str
    port: int
    program: str
    unit: str

    @property
    def families(self) -> str:
        """The families that it takes, as `listen` of a forward says them."""
        return "46" if self.address == "*" else "6" if ":" in self.address else "4"


@dataclass(frozen=True)
class Observed:
    """A VPS as it is, from home_forwarder/remote/observe.py. The default has nothing on it."""

    basis: str = ""
    """What tells this state of files, and after a blank of units, from another."""
    files: Mapping[str, SeenFile] = field(default_factory=dict)
    deleted_since_load: bool = False
    masked: tuple[str, ...] = ()
    units: Mapping[str, SeenUnit] = field(default_factory=dict)
    listeners: tuple[Listener, ...] = ()
    packages: tuple[str, ...] = ()
    addresses: Mapping[str, str] = field(default_factory=dict)
    """Known IPv6 addresses of the homes, by INDEX."""
    texts: Mapping[str, str] = field(default_factory=dict)
    own_addresses: tuple[str, ...] = ()
    """IPv6 addresses of the VPS, in 32 hexadecimal digits."""
    python: tuple[int, ...] = ()
    systemd: bool = True
    root: bool = True
    manager: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Observed:
        """From what a VPS answered.

        Raises: TypeError if it is of another shape.
        """
        observed: Observed = made(cls, data)
        return observed


def made(kind: Any, value: Any) -> Any:
    """A value of JSON as one of this type, and of no other. Raises: TypeError."""
    origin, of = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        types = get_type_hints(kind)
        # Of a key that is too many, or missing, __init__ says which it is.
        return kind(**{key: made(types.get(key, Any), each) for key, each in value.items()})
    if origin is tuple and isinstance(value, list):
        return tuple(made(of[0], each) for each in value)
    if origin is Mapping and isinstance(value, dict):
        return {key: made(of[1], each) for key, each in value.items()}
    if kind is Any or type(value) in (of if origin is UnionType else (kind,)):
        return value
    raise TypeError(f"{str(value)[:40]!r} is no {getattr(kind, '__name__', kind)}")


@dataclass(frozen=True)
class Changes:
    """What a deploy has to do, in this order. Unit names, file paths."""

    write: tuple[File | Link, ...] = ()
    stop: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    reload: bool = False
    read_again: tuple[str, ...] = ()
    """Units that have to start again since a file of theirs changed: File.reader."""
    restart: tuple[str, ...] = ()
    start: tuple[str, ...] = ()

    @property
    def may_start_relays(self) -> bool:
        """Is there a reason to see whether all relays have come up?"""
        return bool(self.read_again or self.restart or self.start)


NO_CHANGES = Changes()


def compare(plan: Plan, seen: Observed) -> Changes:
    """What makes a VPS match its plan; all empty if it does."""
    write = tuple(entry for entry in plan.entries if not _same(entry, seen.files.get(entry.path)))
    declared = {entry.path for entry in plan.entries}
    remove = tuple(sorted(path for path in seen.files if path not in declared))
    written = {entry.path for entry in write}
    unread = {path for path, file in seen.files.items() if file.unread}
    readers = {file.path: file.reader for file in plan.files if file.reader}
    return Changes(
        write=write,
        stop=tuple(
            sorted(name for name in seen.units if name not in plan.units and _up(seen, name))
        ),
        remove=remove,
        reload=any(path.startswith(f"{UNITS}/") for path in (*written, *remove, *unread))
        or seen.deleted_since_load,
        read_again=tuple(
            dict.fromkeys(
                reader for path, reader in readers.items() if path in written or path in unread
            )
        ),
        restart=(
            *(relay.unit for relay in plan.relays if _outdated(relay, seen)),
            *(unit for unit in plan.running if _runs_by_older_file(unit, seen, written | unread)),
        ),
        start=tuple(_down(plan, seen)),
    )


def problems(plan: Plan, seen: Observed) -> list[str]:
    """Why this VPS cannot be deployed to as it is: a line each, empty if it can."""
    found = []
    if not seen.systemd:
        found.append(
            "systemd does not run here (no /run/systemd/system); a VPS with systemd is needed"
        )
    if not seen.root:
        found.append(
            'not root: set "ssh_user": "root" for this host in inventory.py, or "_sudo": True for a'
            " user who may use sudo"
        )
    if seen.python and seen.python < (3, 9):
        version = ".".join(map(str, seen.python))
        found.append(
            f"its Python is {version}; 3.9 or later is needed (Debian 11 and later have it)"
        )
    paths = {entry.path for entry in plan.entries} | {f"{UNITS}/{unit}" for unit in plan.units}
    for name in (name for name in seen.masked if f"{UNITS}/{name}" in paths):
        found.append(
            f"{name} is masked here; to let us have it again: systemctl unmask {name}"
            " (with --runtime if it was masked so)"
        )
    if seen.root:  # nobody else can see whose a socket is
        ours = plan.units | frozenset(seen.units)
        for listen in plan.listens:
            other = next((each for each in seen.listeners if _takes(each, listen, ours)), None)
            if other:
                found.append(
                    f"{other.protocol} port {other.port} is taken by {_who(other)}; forward"
                    " another port, or stop that program"
                )
    return found


def _same(entry: File | Link, seen: SeenFile | None) -> bool:
    if seen is None:
        return False
    if isinstance(entry, Link):
        return seen.target == entry.target
    return (
        seen.sha256 is not None
        and entry.accepts(seen.sha256)
        and (seen.mode, seen.owner, seen.group) == (entry.mode, entry.owner, entry.group)
    )


def _active(seen: Observed, unit: str) -> bool:
    return unit in seen.units and seen.units[unit].active == "active"


def _up(seen: Observed, unit: str) -> bool:
    """Neither stopped nor unknown: running, starting, waiting for its restart, or failed."""
    return seen.units[unit].active != "inactive"


def _outdated(relay: Relay, seen: Observed) -> bool:
    """It runs with other settings than its drop-in says, or leads to an address the home has left."""
    unit = seen.units.get(relay.unit)
    if unit is None or not unit.runs:
        return False
    leads_to = unit.environment.get(ADDRESS, "")
    known = seen.addresses.get(str(relay.home), leads_to)
    return unit.environment.get(REVISION) != relay.revision or leads_to != known


def _runs_by_older_file(unit: str, seen: Observed, changed: set[str]) -> bool:
    """A timer or path unit that runs by an older file than the one on the disk."""
    if unit.endswith(".service") or not _active(seen, unit):
        return False
    template = unit.partition("@")[0] + "@." + unit.rpartition(".")[2] if "@" in unit else unit
    return f"{UNITS}/{template}" in changed


def _is_up(relay: SeenUnit | None) -> bool:
    """Is it running, or starting? One that has ended, and is to be started again, may do so for ever."""
    if relay is None:
        return False
    return relay.active == "active" or (
        relay.active == "activating" and not relay.sub.startswith("auto-restart")
    )


def _down(plan: Plan, seen: Observed) -> list[str]:
    """Declared units that do not run. A relay without an address is no fault: it waits for one."""
    units = [unit for unit in plan.running if not _active(seen, unit)]
    for relay in plan.relays:
        if (
            not _is_up(seen.units.get(relay.unit))
            and _active(seen, relay.forward)
            and str(relay.home) in seen.addresses
        ):
            units.append(relay.unit)
    return units


def _takes(listener: Listener, listen: Listen, ours: frozenset[str]) -> bool:
    """Is it somebody else's, where the relay is to listen?"""
    return (
        listener.unit not in ours
        and listener.protocol == listen.protocol
        and listen.ports.first <= listener.port <= listen.ports.last
        and any(family in listen.families for family in listener.families)
    )


def _who(listener: Listener) -> str:
    program = listener.program or "another program"
    return f"{program} ({listener.unit})" if listener.unit else program
