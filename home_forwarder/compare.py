# SPDX-License-Identifier: GPL-3.0-or-later
"""How a VPS as it is differs from its plan, and so what a deploy has to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from home_forwarder.plan import UNITS, File, Link, Plan, Relay


@dataclass(frozen=True)
class Observed:
    """A VPS as it is, from operations/remote/observe.py. The default is one with nothing on it."""

    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    deleted_since_load: bool = False
    masked: tuple[str, ...] = ()
    units: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    listeners: tuple[Mapping[str, Any], ...] = ()
    packages: tuple[str, ...] = ()
    addresses: Mapping[str, str] = field(default_factory=dict)
    own_addresses: tuple[str, ...] = ()
    python: tuple[int, ...] = ()
    systemd: bool = True
    root: bool = True
    manager: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Observed:
        """Lists of `data` become tuples."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**values)


@dataclass(frozen=True)
class Changes:
    """What a deploy has to do, in this order. Unit names, file paths."""

    stop: tuple[str, ...]
    write: tuple[File | Link, ...]
    remove: tuple[str, ...]
    reload: bool
    look_up: bool
    restart: tuple[str, ...]
    start: tuple[str, ...]

    @property
    def anything_starts(self) -> bool:
        """Is there a reason to see whether all relays have come up?"""
        return bool(self.look_up or self.restart or self.start)


NO_CHANGES = Changes((), (), (), reload=False, look_up=False, restart=(), start=())


def compare(plan: Plan, seen: Observed) -> Changes:
    """What makes a VPS match its plan; all empty if it does."""
    write = tuple(entry for entry in plan.entries if not _same(entry, seen.files.get(entry.path)))
    declared = {entry.path for entry in plan.entries}
    remove = tuple(sorted(path for path in seen.files if path not in declared))
    written = {entry.path for entry in write}
    stop = tuple(sorted(name for name in seen.units if name not in plan.units and _up(seen, name)))
    restart = (
        *(relay.unit for relay in plan.relays if _outdated(relay, seen)),
        *(unit for unit in plan.running if _waits_for_reload(unit, seen, written)),
    )
    return Changes(
        stop=stop,
        write=write,
        remove=remove,
        reload=any(path.startswith(f"{UNITS}/") for path in (*written, *remove))
        or seen.deleted_since_load
        or any(entry.get("unread") for entry in seen.files.values()),
        look_up=bool(plan.files)
        and (
            "/etc/home-forwarder.conf" in written or not _active(seen, "home-address-updater.timer")
        ),
        restart=restart,
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
        found.append(f"{name} is masked here; to let us have it again: systemctl unmask {name}")
    ours = plan.units | frozenset(seen.units)
    for relay in plan.relays:
        for listener in seen.listeners:
            if _takes(listener, relay) and listener["unit"] not in ours:
                found.append(
                    f"{relay.protocol} port {relay.port} is taken by {_who(listener)}; forward"
                    " another port, or stop that program"
                )
                break
    return found


def _same(entry: File | Link, seen: Mapping[str, Any] | None) -> bool:
    if seen is None:
        return False
    if isinstance(entry, Link):
        return bool(seen.get("target") == entry.target)
    return (
        entry.has_content(seen.get("sha256", ""))
        and seen["mode"] == entry.mode
        and seen["owner"] == entry.owner
        and seen["group"] == entry.group
    )


def _active(seen: Observed, unit: str) -> bool:
    return bool(seen.units.get(unit, {}).get("ActiveState") == "active")


def _up(seen: Observed, unit: str) -> bool:
    """Neither stopped nor unknown: running, starting, waiting for its restart, or failed."""
    return bool(seen.units[unit]["ActiveState"] != "inactive")


def _outdated(relay: Relay, seen: Observed) -> bool:
    """It runs with other settings than its drop-in says, or leads to an address the home has left."""
    unit = seen.units.get(relay.unit)
    if unit is None or not unit["Runs"]:
        return False
    address = seen.addresses.get(str(relay.home), unit["HomeAddress"])
    return bool(unit["Revision"] != relay.revision or unit["HomeAddress"] != address)


def _waits_for_reload(unit: str, seen: Observed, written: set[str]) -> bool:
    """A timer or path unit that runs by an older file than the one on the disk."""
    if unit.endswith(".service") or not _active(seen, unit):
        return False
    template = unit.partition("@")[0] + "@." + unit.rpartition(".")[2] if "@" in unit else unit
    path = f"{UNITS}/{template}"
    return path in written or bool(seen.files.get(path, {}).get("unread"))


def _down(plan: Plan, seen: Observed) -> list[str]:
    """Declared units that do not run. A relay without an address is no fault: it waits for one."""
    units = [unit for unit in plan.running if not _active(seen, unit)]
    for relay in plan.relays:
        up = seen.units.get(relay.unit, {}).get("ActiveState") in ("active", "activating")
        if not up and _active(seen, relay.forward) and str(relay.home) in seen.addresses:
            units.append(relay.unit)
    return units


def _takes(listener: Mapping[str, Any], relay: Relay) -> bool:
    """Would the relay's socket clash with this one?"""
    address = str(listener["address"])
    families = "6" if "[" in address or ":" in address else "46" if address == "*" else "4"
    local = address.strip("[]").partition("%")[0]
    return (
        listener["protocol"] == relay.protocol
        and listener["port"] == relay.port
        and any(family in relay.listen for family in families)
        and bool(local)
    )


def _who(listener: Mapping[str, Any]) -> str:
    program = listener["program"] or "another program"
    return f"{program} ({listener['unit']})" if listener["unit"] else str(program)
