# SPDX-License-Identifier: GPL-3.0-or-later
"""The operations: packages, files, units. Each is a no-op on a VPS that matches its plan."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable
from dataclasses import asdict, replace

from pyinfra import host, logger, state
from pyinfra.api import QuoteString, StringCommand, operation
from pyinfra.api.operation import OperationMeta
from pyinfra.facts.files import FileContents
from pyinfra.operations import apt, dnf, server
from pyinfra.operations.util.files import generate_color_diff

from home_forwarder.compare import NO_CHANGES, Changes, compare
from home_forwarder.nginx_service import DROP_IN, HOLD, PACKAGE, RELEASE
from home_forwarder.plan import STATE, File, Link, Plan
from home_forwarder.render import sent_program
from operations.facts import before, observe

Commands = Generator[StringCommand, None, None]

SHOWN = 8
"""Names said of a longer list."""
RPM_NAMES = {"libnginx-mod-stream": "nginx-mod-stream"}
"""What a package of the plan is called where packages are RPMs, if not the same."""


def install_packages(name: str, packages: Iterable[str]) -> None:
    """Install what is missing with the distribution's package manager; no command if nothing is."""
    missing = [package for package in packages if package not in before().packages]
    if PACKAGE in missing:
        server.shell(name="Keep nginx.service from starting", commands=[HOLD])
    if missing:
        _install(name, missing)
    leave_nginx_service_disabled(PACKAGE in missing)


def leave_nginx_service_disabled(just_installed: bool = False) -> None:
    """After nginx was installed, by this run or by an earlier one that was cut off."""
    if just_installed or DROP_IN in before().files:
        server.shell(name="Leave nginx.service disabled", commands=[RELEASE])


def _install(name: str, missing: list[str]) -> OperationMeta:
    if "apt-get" in before().manager:
        return apt.packages(
            name=name,
            packages=missing,
            update=True,
            no_recommends=True,
            # A new server is often busy with its own upgrades.
            extra_install_args="-o DPkg::Lock::Timeout=120",
        )
    return dnf.packages(name=name, packages=[RPM_NAMES.get(each, each) for each in missing])


@operation()
def write_files(plan: Plan) -> Commands:
    """
    Write the plan's files and links, each whole or not at all.

    + plan: what the VPS must look like
    """
    entries = compare(plan, observe()).write
    if not entries:
        host.noop("all files are as declared")
        return
    _announce("write", [entry.path for entry in entries])
    _show_diffs(entries)
    yield _program("install.py", {"write": [_entry(entry) for entry in entries], "remove": []})


@operation()
def switch_units(plan: Plan) -> Commands:
    """
    Stop and delete what is not declared, then load, start and restart what is.

    + plan: what the VPS must look like

    A relay is restarted only if its own settings changed (promise 10).
    """
    changes = _all_changes(plan)
    for verb, names in (
        ("stop", changes.stop),
        ("delete", changes.remove),
        ("restart", changes.restart),
        ("start", changes.start),
    ):
        _announce(verb, names)
    if changes == NO_CHANGES:
        host.noop("all units are as declared")
    yield from _switch_commands(plan, changes)


@operation()
def remove_state() -> Commands:
    """
    Delete the state directory: known addresses and messages not yet sent.
    """
    yield StringCommand(
        "rm", "-rf", QuoteString(STATE), QuoteString("/var/lib/private/home-forwarder")
    )


def _all_changes(plan: Plan) -> Changes:
    """What is to do now, and what the files written by this same deploy make necessary."""
    now, planned = compare(plan, observe()), compare(plan, before())
    return replace(now, reload=now.reload or planned.reload, look_up=now.look_up or planned.look_up)


def _switch_commands(plan: Plan, changes: Changes) -> Commands:
    if changes.stop:
        yield _stop(changes.stop)
    if changes.remove:
        yield _program("install.py", {"write": [], "remove": list(changes.remove)})
    if changes.reload:
        yield _systemctl("daemon-reload")
    if changes.look_up:
        yield _systemctl("start", ["home-address-updater.service"])
        changes = compare(plan, observe())  # relays may have an address now
    if changes.restart:
        yield _systemctl("restart", changes.restart)
    if changes.start:
        yield _systemctl("start", changes.start)
    if changes.anything_starts and plan.relays:
        yield from _wait_for_relays(plan)


def _wait_for_relays(plan: Plan) -> Commands:
    """A deploy that ends well has relays that listen; those without an address cannot yet."""
    known = observe().addresses
    relays = [
        {"unit": relay.unit, "protocol": relay.protocol, "port": relay.port}
        for relay in plan.relays
        if str(relay.home) in known
    ]
    yield _program("wait.py", relays)


def _systemctl(verb: str, units: Iterable[str] = ()) -> StringCommand:
    """One call for many units."""
    return StringCommand("systemctl", verb, *(QuoteString(unit) for unit in units))


def _stop(units: Iterable[str]) -> StringCommand:
    """Stop units, and forget the failure of those that failed, or they would stay known for ever.

    Once more if systemd called it off: a home that moved just now restarts its forwards.
    """
    names = [QuoteString(unit) for unit in units]
    return StringCommand(
        "systemctl stop",
        *names,
        "|| { sleep 1; systemctl stop",
        *names,
        "; } && for unit in",
        *names,
        '; do if systemctl is-failed -q "$unit"; then systemctl reset-failed "$unit"; fi; done',
    )


def _program(name: str, job: object) -> StringCommand:
    """One of the programs that are sent to a VPS.

    Its job goes through standard input: no secret in an argument list or a temporary file.
    """
    return StringCommand("python3 -IS -c", QuoteString(sent_program(name)), _stdin=json.dumps(job))


def _announce(verb: str, names: Iterable[str]) -> None:
    """What a deploy is going to do, for --dry and for the question that follows."""
    names = list(names)
    if not names or _was_said():
        return
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    host.log(f"Will {verb}: {', '.join(names[:SHOWN])}{more}", logger.info)


def _entry(entry: File | Link) -> dict[str, object]:
    """As install.py reads it."""
    return {key: value for key, value in asdict(entry).items() if key not in ("secret", "compact")}


def _was_said() -> bool:
    """An operation is looked at while a deploy is prepared, unless -y skips that, and once more when
    it is carried out."""
    return bool(state.is_executing and state.should_check_for_changes())


def _show_diffs(entries: Iterable[File | Link]) -> None:
    if not state.config.DIFF or _was_said():
        return
    for entry in entries:
        if isinstance(entry, Link):
            continue
        if entry.secret:
            host.log(f"{entry.path} (mode {entry.mode}, its content is secret)", logger.info)
            continue
        known = entry.path in before().files
        old = (host.get_fact(FileContents, path=entry.path) or []) if known else []
        host.log(f"{entry.path} (mode {entry.mode})", logger.info)
        new = entry.content.splitlines(keepends=True)
        for line in generate_color_diff([f"{each}\n" for each in old], new):
            logger.info("  %s", line.rstrip("\n"))
