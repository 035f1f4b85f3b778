# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks. Each says what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from typing import NoReturn

import pytest

from home_forwarder.applying import paths_of
from home_forwarder.plan import File, Link, Relay
from home_forwarder.relay_programs import RELAY_PROGRAMS
from operations.target import Facts, Process, Target, Vps
from operations.visit import NotReached

UPDATER = "home-address-updater.service"
FINE = ("0", "3")
"""Exit statuses of home-address-update: 3 is a home that keeps its last good address."""
CAP_NET_BIND_SERVICE = 1 << 10
"""capabilities(7), linux/capability.h; the only capability a relay may have."""

FAMILIES = {"*": "IPv4 and IPv6", "0.0.0.0": "IPv4 only", "::": "IPv6 only"}
"""Local addresses: `*` is an IPv6 socket that takes IPv4 as well."""
LISTENS_ON = {"46": ("*",), "4": ("0.0.0.0",), "6": ("::",)}
LISTENS_ON_BOTH = ("0.0.0.0", "::")
"""Of a relay with a socket for each family."""

DIFF_LINES = 20
DEPLOY = "to mend it: pyinfra inventory.py deploy.py"
OVERRIDDEN = (
    "see: systemctl cat {unit}; to mend it, take away what overrides the unit there, and:"
    " systemctl daemon-reload && systemctl restart {unit}"
)


def wrong(what: str, *more: str) -> NoReturn:
    """Fail with a message for an admin, without a traceback."""
    pytest.fail("\n".join((what, *more)), pytrace=False)


def test_reachable(target: Target, visit: Facts | NotReached) -> None:
    """It answers, and shows us what we must see."""
    if isinstance(visit, NotReached):
        wrong(f"{target.name} {visit}", "nothing else was checked there")


def test_nothing_hinders_a_deploy(vps: Vps) -> None:
    """No unit is masked, no port is taken, Python is not too old."""
    if vps.problems:
        wrong(*vps.problems)


def test_package(vps: Vps, package: str) -> None:
    """A package is installed."""
    if package not in vps.seen.packages:
        wrong(f"{package} is not installed", DEPLOY)


def test_file(vps: Vps, file: File) -> None:
    """A file has its content, owner, group and mode."""
    seen = vps.seen.files.get(file.path)
    if seen is None:
        wrong(f"{file.path} does not exist", DEPLOY)
    if seen.sha256 is None:
        wrong(f"{file.path} is no regular file", DEPLOY)
    differing = [
        f"its {key} is {there}, not {declared}"
        for key, there, declared in (
            ("mode", seen.mode, file.mode),
            ("owner", seen.owner, file.owner),
            ("group", seen.group, file.group),
        )
        if there != declared
    ]
    diff = []
    if not vps.is_content_of(file):
        differing.append("its content differs")
        diff = [] if file.secret else short_diff(vps.facts.read(file.path), file)
    if differing:
        wrong(f"{file.path}: {', '.join(differing)}", *diff, DEPLOY)


def test_link(vps: Vps, link: Link) -> None:
    """A link leads where it must."""
    seen = vps.seen.files.get(link.path)
    if seen is None:
        wrong(f"{link.path} does not exist; it must lead to {link.target}", DEPLOY)
    if seen.target != link.target:
        leads = f"leads to {seen.target}" if seen.target else "is no link"
        wrong(f"{link.path} {leads}; it must lead to {link.target}", DEPLOY)


def test_unit_enabled(vps: Vps, unit: str) -> None:
    """A unit is started at boot."""
    state = vps.facts.enabled.get(unit, "disabled")
    if state != "enabled":
        wrong(f"{unit} is {state or 'unknown'}, not enabled", DEPLOY)


def test_unit_active(vps: Vps, unit: str) -> None:
    """A unit is active, and a timer among them has a next run."""
    state = state_of(vps, unit)
    if not state.startswith("active"):
        wrong(f"{unit} is {state}, not active", *vps.facts.journal(unit), DEPLOY)
    if state == "active (elapsed)":
        wrong(
            f"{unit} is active, but has no next run",
            f"see: systemctl cat {unit}; to mend it: systemctl restart {unit}",
        )


def test_last_look_up(vps: Vps) -> None:
    """The last run of home-address-updater.service ended well."""
    run = vps.facts.updater
    if run["ActiveState"] == "activating":
        return  # it runs just now; how the last run ended is forgotten
    if not run["ExecMainExitTimestamp"]:
        wrong(f"no run of {UPDATER} since the boot", f"to look up: systemctl start {UPDATER}")
    if run["Result"] != "success" or run["ExecMainStatus"] not in FINE:
        wrong(
            f"the last run of {UPDATER} failed: {run['Result']}, exit status"
            f" {run['ExecMainStatus']}",
            *vps.facts.journal(UPDATER),
            f"see: journalctl -u {UPDATER}; to try again: systemctl start {UPDATER}",
        )


def test_address(vps: Vps, home: int) -> None:
    """The address of a home with forwards is known."""
    if str(home) not in vps.seen.addresses:
        wanted = vps.target.config.numbered[home]
        wrong(
            f"no address of {wanted.label} ({wanted.hostname}) is known: /etc/home-address-ipv6 has"
            f" no HOME_IPV6_ADDRESS_{home}; its forwards wait for it",
            *vps.facts.journal(UPDATER),
            "to look it up: home-address-update",
        )


def test_relay_runs(vps: Vps, relay: Relay) -> None:
    """A relay process runs with the declared settings and leads to the known address of its home."""
    known = vps.seen.addresses.get(str(relay.home))
    process = running(vps, relay)
    if not process and not known:
        home = vps.target.config.numbered[relay.home].name
        wrong(f"{relay.unit} waits for an address: see test_address[{vps.name}-{home}]")
    if not process:
        wrong(
            f"{relay.unit} does not run; it is {state_of(vps, relay.unit)}",
            *vps.facts.journal(relay.unit),
            f"see: journalctl -u {relay.unit}; {DEPLOY}",
        )
    revision = process.environment.get("FORWARD_REVISION")
    if revision != relay.revision:
        wrong(
            f"{relay.unit} runs with other settings than declared: FORWARD_REVISION is"
            f" {revision or 'not set'}, not {relay.revision}",
            DEPLOY,
        )
    leads_to = process.environment.get(f"HOME_IPV6_ADDRESS_{relay.home}")
    if known and leads_to != known:
        wrong(
            f"{relay.unit} leads to {leads_to}, but the last good address of its home is {known}",
            f"home-address-watcher@{relay.home}.path should have restarted it; to mend it:"
            f" systemctl restart {relay.unit}",
        )


def test_relay_listens(vps: Vps, relay: Relay) -> None:
    """A relay listens on its port, for the declared families and no other."""
    there = [
        listener
        for listener in vps.seen.listeners
        if listener.protocol == relay.protocol and listener.port in relay.ports
    ]
    own = [listener for listener in there if listener.unit == relay.unit]
    declared: tuple[str, ...] = LISTENS_ON[relay.listen]
    if relay.listen == "46" and RELAY_PROGRAMS[relay.program].socket_per_family:
        declared = LISTENS_ON_BOTH
    expected = sorted((port, address) for port in relay.ports for address in declared)
    if sorted((listener.port, listener.address) for listener in own) == expected:
        return
    if not running(vps, relay):
        not_running(vps, relay)
    port = f"{relay.protocol} port {relay.ports}"
    if own:
        addresses = sorted({listener.address for listener in own})
        families = " and ".join(FAMILIES.get(address, f"{address} only") for address in addresses)
        wrong(
            f"{relay.unit} listens for {families}; declared is {FAMILIES[LISTENS_ON[relay.listen][0]]}",
            OVERRIDDEN.format(unit=relay.unit),
        )
    others = [f"{each.program} ({each.unit}) does" for each in there]
    full = "; it also stops listening while it has max_connections peers"
    wrong(
        "; ".join((f"{relay.unit} runs, but does not listen on {port}", *others)),
        *vps.facts.journal(relay.unit),
        f"see: systemctl status {relay.unit}" + (full if relay.protocol == "udp" else ""),
    )


def test_relay_is_unprivileged(vps: Vps, relay: Relay) -> None:
    """A relay runs without privileges, but for ports below 1024."""
    process = running(vps, relay)
    if not process:
        not_running(vps, relay)
    beyond = {
        name: value for name, value in process.capabilities.items() if value & ~CAP_NET_BIND_SERVICE
    }
    found = ["it runs as root"] if 0 in process.uids else []
    if beyond:
        masks = ", ".join(f"{name} {value:x}" for name, value in beyond.items())
        found.append(f"it has more capabilities than CAP_NET_BIND_SERVICE ({masks})")
    if not process.no_new_privileges:
        found.append("it may gain privileges (NoNewPrivs is 0)")
    if found:
        wrong(f"{relay.unit}: {', '.join(found)}", OVERRIDDEN.format(unit=relay.unit))


def test_nothing_undeclared(vps: Vps) -> None:
    """Nothing of ours is there that is not declared."""
    units, paths = vps.changes.stop, vps.changes.remove
    if units or paths:
        wrong(
            f"undeclared: {', '.join((*units, *paths))}",
            "to keep a forward, declare it in group_data/all.py; to take all of it away:"
            " pyinfra inventory.py deploy.py",
        )


def test_deploy_would_change_nothing(vps: Vps) -> None:
    """A deploy would say `No change` of everything."""
    names = [package.name for package in vps.target.plan.packages]
    missing = [name for name in names if name not in vps.seen.packages]
    changes = vps.changes
    todo = [
        f"    {verb} {', '.join(names)}"
        for verb, names in (
            ("install", missing),
            ("write", paths_of(changes.write)),
            ("stop", changes.stop),
            ("delete", changes.remove),
            ("restart", changes.restart),
            ("start", changes.start),
        )
        if names
    ]
    todo += ["    reload systemd"] if changes.reload else []
    todo += [f"    start {', '.join(changes.read_again)} again"] if changes.read_again else []
    if todo:
        wrong("a deploy would change this VPS; it would", *todo, DEPLOY)


def state_of(vps: Vps, unit: str) -> str:
    """As systemctl status says it: active (running)."""
    seen = vps.seen.units.get(unit)
    if seen is None:
        return "inactive (dead)"  # nothing refers to it, so systemd has forgotten it
    if seen.load != "loaded":
        return seen.load
    return f"{seen.active} ({seen.sub})"


def running(vps: Vps, relay: Relay) -> Process | None:
    """The relay's process, None if there is none."""
    active = state_of(vps, relay.unit) == "active (running)"
    return vps.facts.processes.get(relay.unit) if active else None


def not_running(vps: Vps, relay: Relay) -> NoReturn:
    """Fail in one line; test_relay_runs has the rest."""
    wrong(f"{relay.unit} does not run: see test_relay_runs[{vps.name}-{relay.unit}]")


def short_diff(seen: str, file: File) -> list[str]:
    """From what is there to what must be there, cut off if it is long."""
    lines = list(
        difflib.unified_diff(
            seen.splitlines(), file.content.splitlines(), "there", "declared", n=1, lineterm=""
        )
    )
    more = [f"    ... and {len(lines) - DIFF_LINES} more lines"] if len(lines) > DIFF_LINES else []
    return [f"    {line}" for line in lines[:DIFF_LINES]] + more
