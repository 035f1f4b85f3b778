# SPDX-License-Identifier: GPL-3.0-or-later
"""The operation that makes a VPS match its plan; a no-op on one that does."""

from __future__ import annotations

import getpass
import json
import socket
import time
from base64 import b64decode
from collections.abc import Iterable
from contextlib import suppress
from shlex import quote

from paramiko import SSHException
from pyinfra import host, logger, state
from pyinfra.api import FunctionCommand, QuoteString, StringCommand, operation
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host
from pyinfra.api.state import State
from pyinfra.context import ctx_host, ctx_state
from pyinfra.operations.util.files import generate_color_diff

from home_forwarder.applying import job_of, paths_of
from home_forwarder.compare import NO_CHANGES, Changes, Observed, compare, problems
from home_forwarder.outlook import new_forwards
from home_forwarder.plan import STATE, File, Link, Plan, some_of
from home_forwarder.render import sent_source_of
from operations.facts import Commands, contained, seen_first, seen_now
from operations.sending import Call, NotUnderstood, lines_of, run

LOCK_SECONDS = 60
"""So long does a deploy wait for another one of the same VPS."""
BUSY_SECONDS = 10
"""Between two lines that say so."""
APPLY_SECONDS = 900
"""Hundreds of forwards take their time on a small VPS; one that hangs is given up."""
NOT_KNOWN = (NotUnderstood, OSError, SSHException, PyinfraError)
"""What operations.sending.run() raises."""
CALM_ROUNDS = 3
"""Relays that end and start again all the time are never seen twice in one state: after so many
rounds it is enough that the files are as they were."""
ROUNDS = 6
"""A VPS that goes on changing under our hands is given up."""


@operation()
@contained
def match_plan(plan: Plan) -> Commands:
    """
    Write the plan's files, stop and delete what is not declared, load, start and restart what is.

    + plan: what the VPS must look like

    A relay is restarted only if its own settings changed (promise 10). All of it is one command on
    the VPS, made by one deploy at a time (promise 21).

    **Example:**

    .. code:: python

        match_plan(name="Make this VPS as declared", plan=make_plan(config))
    """
    first = seen_first(plan)
    changes = compare(plan, first)
    if changes == NO_CHANGES and state.is_executing:
        first = seen_now(plan)  # the comparison at the end of a deploy that changes nothing
        changes = compare(plan, first)
    _announce(plan, changes, first)
    if changes == NO_CHANGES:
        host.noop("this VPS is as declared")
        return
    yield FunctionCommand(_apply, (plan, first), {})


@operation()
def remove_state() -> Commands:
    """
    Delete the state directory: known addresses and messages not yet sent.
    """
    yield StringCommand(
        "rm", "-rf", QuoteString(STATE), QuoteString("/var/lib/private/home-forwarder")
    )


def _apply(state: State, host: Host, plan: Plan, seen: Observed) -> bool:
    """Until the VPS is as its plan says. Returns: whether it is; if not, the reason has been said."""
    call = Call(sent_source_of("apply.py"))
    changes = compare(plan, seen)
    # Without -y, the operator has agreed to this, and to nothing else.
    agreed = _shown(changes) if state.should_check_for_changes() else None
    waiting = _Waiting(host)
    for number in range(ROUNDS):
        basis = seen.basis if number < CALM_ROUNDS else seen.basis.partition(" ")[0]
        job = job_of(plan, changes, who=_operator(), basis=basis)
        try:
            result = run(state, host, call, stdin=json.dumps(job), timeout=APPLY_SECONDS)
            while "busy" in result:
                if not waiting.goes_on(result["busy"]):
                    return False
                result = run(state, host, call, stdin=json.dumps(job), timeout=APPLY_SECONDS)
            seen = Observed.from_json(result.get("other") or result["seen"])
        except (*NOT_KNOWN, KeyError, TypeError, ValueError, AttributeError) as error:
            return _fail(host, f"it is not known what came of it, so deploy again: {error}")
        if result.get("failed"):
            return _fail(host, *result["failed"])
        changes = compare(plan, seen)
        if changes == NO_CHANGES:
            return True
        if "other" not in result:
            agreed = None  # what is left follows from what was agreed to
        hindrances = problems(plan, seen)
        if hindrances:
            return _fail(host, *hindrances)
        if agreed is not None and _shown(changes) != agreed:
            return _fail(
                host,
                "this VPS has changed since it was looked at, so what is shown above is no longer what"
                " would be done; nothing was done: deploy again",
            )
    return _fail(host, "this VPS is still not as declared; left to do:", *_lines(changes))


class _Waiting:
    """For another deploy of the same VPS."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.until = time.monotonic() + LOCK_SECONDS
        self.next_line = 0.0

    def goes_on(self, who: str) -> bool:
        """False, with a message, if it is long enough. who: has the lock, and since when."""
        who = " ".join(lines_of(who))
        now = time.monotonic()
        if now >= self.until:
            return _fail(
                self.host,
                f"{who} is deploying to this VPS, for more than {LOCK_SECONDS} s now; nothing was done:"
                " deploy again later",
            )
        if now >= self.next_line:
            self.next_line = now + BUSY_SECONDS
            self.host.log_styled(
                f"{who} is deploying to this VPS; waiting for up to {self.until - now:.0f} s",
                fg="yellow",
                log_func=logger.warning,
            )
        return True


def _operator() -> str:
    """For others who wait for this deploy: user and machine."""
    user = "somebody"
    with suppress(OSError, KeyError, ImportError):
        user = getpass.getuser()
    return f"{user}@{socket.gethostname()}"


def _fail(host: Host, *texts: str) -> bool:
    for line in (line for text in texts for line in lines_of(text)):
        host.log_styled(line, fg="red", log_func=logger.error)
    return False


# ---- What is said of it beforehand -------------------------------------------------------------


def _shown(changes: Changes) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What is done, by the verb: of files the paths, else the units."""
    return (
        ("write", paths_of(changes.write)),
        ("stop", changes.stop),
        ("delete", changes.remove),
        ("restart", changes.restart),
        ("start", changes.start),
    )


def _lines(changes: Changes) -> list[str]:
    return [f"{verb}: {some_of(names)}" for verb, names in _shown(changes) if names]


def _announce(plan: Plan, changes: Changes, seen: Observed) -> None:
    """What a deploy is going to do, for --dry and for the question that follows."""
    if state.is_executing and state.should_check_for_changes():
        return  # an operation is looked at while a deploy is prepared, unless -y skips that
    forwards = new_forwards(plan, changes)
    if forwards:
        host.log(f"Will forward {some_of(forwards)}", logger.info)
    for line in _lines(changes):
        host.log(f"Will {line}", logger.info)
    if state.config.DIFF:
        _show_diffs(changes.write, seen)


def _show_diffs(entries: Iterable[File | Link], seen: Observed) -> None:
    """What the user declared comes first; of what is new and the same on every VPS, the name."""
    files = [entry for entry in entries if isinstance(entry, File)]
    for file in sorted(files, key=lambda file: file.generic):
        known = file.path in seen.files
        if file.secret:
            host.log(f"{file.path} (mode {file.mode}, its content is secret)", logger.info)
            continue
        new = file.content.splitlines(keepends=True)
        if file.generic and not known:
            host.log(f"{file.path} (mode {file.mode}, new, {len(new)} lines)", logger.info)
            continue
        old = _content_of(file.path) if known else []
        host.log(f"{file.path} (mode {file.mode})", logger.info)
        for line in generate_color_diff(old, new):
            logger.info("  %s", line.rstrip("\n"))


def _content_of(path: str) -> list[str]:
    """The lines of a file on the current host, with their ends. pyinfra's own fact would take what is
    said at login for a part of it."""
    call = Call(sent_source_of("run_command.py"), (f"cat -- {quote(path)}",))
    try:
        done = run(ctx_state.get(), ctx_host.get(), call)
    except NOT_KNOWN:
        return []
    return b64decode(done["stdout"]).decode("utf-8", errors="replace").splitlines(keepends=True)
